//! The floor: lines of the same length there and back over one stream of quinn, and nothing read of them.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::Ipv4Addr,
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use parking_lot::Mutex;
use quinn::{Endpoint, RecvStream, SendStream, crypto::rustls::QuicServerConfig};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};

use crate::{
    machine::{SERVER_CORE, pin},
    quic::{endpoint, tls},
    report::quantile,
    server::{CERTIFICATE, CERTIFICATE_KEY, HOST},
};

const PROTOCOL: &[u8] = b"floor";
/// Of a call and of its answer, as the tool's are.
const LINE: usize = 128;
const ANSWER: usize = 256;

/// The floor's `main`: answers until its stdin is closed.
pub(crate) fn main(directory: &Path) -> anyhow::Result<()> {
    pin(SERVER_CORE)?;
    let certificate = CertificateDer::from_pem_file(directory.join(CERTIFICATE))?;
    let key = PrivateKeyDer::from_pem_file(directory.join(CERTIFICATE_KEY))?;
    let mut tls = ServerConfig::builder().with_no_client_auth().with_single_cert(vec![certificate], key)?;
    tls.alpn_protocols = vec![PROTOCOL.to_vec()];
    let config = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls)?));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let endpoint = runtime.block_on(async { Endpoint::server(config, (Ipv4Addr::LOCALHOST, 0).into()) })?;
    writeln!(std::io::stdout().lock(), "{}", endpoint.local_addr()?)?;
    std::thread::spawn(move || {
        runtime.block_on(async move {
            while let Some(incoming) = endpoint.accept().await {
                let Ok(connection) = incoming.await else { continue };
                tokio::spawn(async move {
                    while let Ok((send, receive)) = connection.accept_bi().await {
                        tokio::spawn(answer(send, receive));
                    }
                });
            }
        });
    });
    std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink())?;
    Ok(())
}

async fn answer(mut send: SendStream, mut receive: RecvStream) -> anyhow::Result<()> {
    let mut rest = 0;
    while let Some(chunk) = receive.read_chunk(64 * 1024, true).await? {
        rest += chunk.bytes.len();
        send.write_all(&vec![b'.'; rest / LINE * ANSWER]).await?;
        rest %= LINE;
    }
    Ok(())
}

pub(crate) struct Floor {
    child: Child,
    _endpoint: Endpoint,
    streams: Mutex<Option<(SendStream, RecvStream)>>,
}

impl Floor {
    pub(crate) async fn start(directory: &Path) -> anyhow::Result<Self> {
        let mut child =
            Command::new(std::env::current_exe()?).arg("--floor").arg(directory).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("stdout is piped")?).read_line(&mut line)?;
        let endpoint = endpoint(tls(directory, PROTOCOL)?)?;
        let connection = endpoint.connect(line.trim().parse()?, HOST)?.await?;
        let streams = Mutex::new(Some(connection.open_bi().await?));
        Ok(Self { child, _endpoint: endpoint, streams })
    }

    async fn with<T>(&self, work: impl AsyncFnOnce(&mut SendStream, &mut RecvStream) -> anyhow::Result<T>) -> anyhow::Result<T> {
        let (mut send, mut receive) = self.streams.lock().take().context("one at a time")?;
        let done = work(&mut send, &mut receive).await;
        *self.streams.lock() = Some((send, receive));
        done
    }

    /// The median of so many, in microseconds.
    pub(crate) async fn one_at_a_time(&self, calls: usize) -> anyhow::Result<f64> {
        self.with(async |send, receive| {
            let mut times = Vec::with_capacity(calls);
            let mut answer = [0; ANSWER];
            for _ in 0..calls {
                let started = Instant::now();
                send.write_all(&[b'.'; LINE]).await?;
                receive.read_exact(&mut answer).await?;
                times.push(started.elapsed().as_nanos() as f64 / 1e3);
            }
            Ok(quantile(&times, 0.5))
        })
        .await
    }

    /// Lines answered a second, with so many in hand.
    pub(crate) async fn many(&self, in_flight: usize, span: Duration) -> anyhow::Result<f64> {
        self.with(async |send, receive| {
            for _ in 0..in_flight {
                send.write_all(&[b'.'; LINE]).await?;
            }
            let (started, mut answered) = (Instant::now(), 0_u64);
            let mut answer = [0; ANSWER];
            while started.elapsed() < span {
                receive.read_exact(&mut answer).await?;
                answered += 1;
                send.write_all(&[b'.'; LINE]).await?;
            }
            let rate = answered as f64 / started.elapsed().as_secs_f64();
            for _ in 0..in_flight {
                receive.read_exact(&mut answer).await?;
            }
            Ok(rate)
        })
        .await
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

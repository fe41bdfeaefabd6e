//! The load: as many requests at once as keep the server's core busy, each the next as soon as the last is answered.

use std::{
    convert::Infallible,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context as _;
use quinn::crypto::rustls::QuicClientConfig;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    runtime::Runtime,
    task::JoinSet,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::machine;
use crate::{
    asked::HOST,
    frames::{self, Http2},
    server::{CERTIFICATE, Server},
};

/// Connections of HTTP/1.1, a request at a time on each.
const HTTP1_CONNECTIONS: usize = 64;
/// Connections of HTTP/2, and requests at a time on each.
const HTTP2: (usize, usize) = (8, 64);
/// Connections of HTTP/3, and requests at a time on each.
const HTTP3: (usize, usize) = (8, 32);
/// Idle connections that are opened at a time.
const OPENED_AT_ONCE: usize = 32;
/// Longest wait for one answer, and for a connection.
const DEADLINE: Duration = Duration::from_secs(10);
/// Longer than any answer of HTTP/1.1, and than any frame of HTTP/2.
const BUFFER: usize = 32 * 1024;

/// What is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    Http1,
    Http2,
    Http3,
}

impl Version {
    const fn alpn(self) -> &'static [u8] {
        match self {
            Self::Http1 => b"http/1.1",
            Self::Http2 => b"h2",
            Self::Http3 => b"h3",
        }
    }
}

/// What a load came to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Throughput {
    /// Requests a second.
    pub(crate) rate: f64,
    /// The server's processor time a request.
    pub(crate) cpu_us: f64,
    /// The share of the span that the server's core was busy for.
    pub(crate) busy: f64,
}

/// The clients, all in this process.
pub(crate) struct Load {
    runtime: Runtime,
    tls: ClientConfig,
}

impl Load {
    /// Clients that trust the certificate in `directory`.
    pub(crate) fn new(directory: &Path) -> anyhow::Result<Self> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(directory.join(CERTIFICATE))?)?;
        let tls = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        Ok(Self { runtime: tokio::runtime::Builder::new_current_thread().enable_all().build()?, tls })
    }

    /// Loads `server` for `span`, from when it has settled.
    pub(crate) fn run(&self, version: Version, server: &Server, span: Duration) -> anyhow::Result<Throughput> {
        let answered = Arc::new(AtomicU64::new(0));
        self.runtime.block_on(async {
            let mut clients = self.clients(version, server, &answered).await?;
            // Never asleep: to wake this process is the kernel's work in the server's name, a microsecond an answer and more
            // for whichever server leaves it the time to fall asleep.
            clients.spawn(async {
                loop {
                    tokio::task::yield_now().await;
                }
            });
            let measured = async {
                tokio::time::sleep(span / 4).await;
                let now = || anyhow::Ok((answered.load(Ordering::Relaxed), machine::cpu(server.pid())?, Instant::now()));
                let (already, used, started) = now()?;
                tokio::time::sleep(span).await;
                let (answered, total, ended) = now()?;
                let (answered, used, took) = ((answered - already) as f64, total - used, ended - started);
                anyhow::ensure!(answered > 0.0, "nothing was answered");
                Ok(Throughput {
                    rate: answered / took.as_secs_f64(),
                    cpu_us: used.as_secs_f64() * 1e6 / answered,
                    busy: used.as_secs_f64() / took.as_secs_f64(),
                })
            };
            tokio::select! {
                measured = measured => measured,
                Some(ended) = clients.join_next() => {
                    let Err(error) = ended.context("a client panicked")?;
                    Err(error.context("a client ended"))
                }
            }
        })
    }

    async fn clients(
        &self,
        version: Version,
        server: &Server,
        answered: &Arc<AtomicU64>,
    ) -> anyhow::Result<JoinSet<anyhow::Result<Infallible>>> {
        let mut clients = JoinSet::new();
        match version {
            Version::Http1 => {
                for _ in 0..HTTP1_CONNECTIONS {
                    let stream = self.connect(version, server.ready.tcp).await?;
                    clients.spawn(http1(stream, frames::http1(&server.ready.key), answered.clone()));
                }
            }
            Version::Http2 => {
                let (connections, streams) = HTTP2;
                for _ in 0..connections {
                    let stream = self.connect(version, server.ready.tcp).await?;
                    clients.spawn(http2(stream, Http2::new(&server.ready.key), streams, answered.clone()));
                }
            }
            Version::Http3 => {
                let (connections, streams) = HTTP3;
                let mut tls = self.tls.clone();
                tls.alpn_protocols = vec![version.alpn().to_vec()];
                let config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
                let mut endpoint = quinn::Endpoint::client((Ipv4Addr::LOCALHOST, 0).into())?;
                endpoint.set_default_client_config(config);
                for _ in 0..connections {
                    let connection = tokio::time::timeout(DEADLINE, endpoint.connect(server.ready.udp, HOST)?).await??;
                    let mut control = connection.open_uni().await?;
                    control.write_all(&frames::HTTP3_CONTROL).await?;
                    clients.spawn(control_streams(connection.clone(), control));
                    for _ in 0..streams {
                        clients.spawn(http3(connection.clone(), frames::http3(&server.ready.key), answered.clone()));
                    }
                }
            }
        }
        Ok(clients)
    }

    /// Opens `count` connections, has one request answered on each, and returns what `then` says while they are idle.
    pub(crate) fn hold<T>(
        &self,
        version: Version,
        server: &Server,
        count: usize,
        then: impl FnOnce() -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        self.runtime.block_on(async {
            let mut held = Vec::with_capacity(count);
            while held.len() < count {
                let opened = (0..OPENED_AT_ONCE.min(count - held.len())).map(|_| async {
                    let mut stream = self.connect(version, server.ready.tcp).await?;
                    let asked = async {
                        match version {
                            Version::Http1 => ask_http1(&mut stream, &frames::http1(&server.ready.key), &mut vec![0; BUFFER]).await,
                            _ => ask_http2(&mut stream, &mut Http2::new(&server.ready.key)).await,
                        }
                    };
                    tokio::time::timeout(DEADLINE, asked).await??;
                    anyhow::Ok(stream)
                });
                held.extend(futures_util::future::try_join_all(opened).await?);
            }
            then()
        })
    }

    async fn connect(&self, version: Version, server: SocketAddr) -> anyhow::Result<TlsStream<TcpStream>> {
        let mut tls = self.tls.clone();
        tls.alpn_protocols = vec![version.alpn().to_vec()];
        let connecting = async {
            let stream = TcpStream::connect(server).await?;
            stream.set_nodelay(true)?;
            let stream = TlsConnector::from(Arc::new(tls)).connect(ServerName::try_from(HOST)?, stream).await?;
            anyhow::ensure!(stream.get_ref().1.alpn_protocol() == Some(version.alpn()), "another protocol");
            Ok(stream)
        };
        tokio::time::timeout(DEADLINE, connecting).await?
    }
}

async fn ask_http1(stream: &mut TlsStream<TcpStream>, request: &[u8], buffer: &mut [u8]) -> anyhow::Result<()> {
    stream.write_all(request).await?;
    stream.flush().await?;
    let mut filled = 0;
    loop {
        let more = stream.read(&mut buffer[filled..]).await?;
        anyhow::ensure!(more > 0, "ended after {:?}", String::from_utf8_lossy(&buffer[..filled]));
        filled += more;
        if frames::http1_answered(&buffer[..filled])? {
            return Ok(());
        }
    }
}

async fn http1(mut stream: TlsStream<TcpStream>, request: Vec<u8>, answered: Arc<AtomicU64>) -> anyhow::Result<Infallible> {
    let mut buffer = vec![0; BUFFER];
    loop {
        ask_http1(&mut stream, &request, &mut buffer).await?;
        answered.fetch_add(1, Ordering::Relaxed);
    }
}

async fn ask_http2(stream: &mut TlsStream<TcpStream>, client: &mut Http2) -> anyhow::Result<()> {
    client.ask();
    let (mut buffer, mut filled) = (vec![0; BUFFER], 0);
    while turn(stream, client, &mut buffer, &mut filled).await? == 0 {}
    // What the answer's frames ask for, such as the acknowledgement of settings.
    stream.write_all(&std::mem::take(&mut client.out)).await?;
    Ok(stream.flush().await?)
}

/// Sends what is to be sent, takes what has come, and returns how many answers it was.
async fn turn(stream: &mut TlsStream<TcpStream>, client: &mut Http2, buffer: &mut [u8], filled: &mut usize) -> anyhow::Result<u64> {
    if !client.out.is_empty() {
        stream.write_all(&client.out).await?;
        stream.flush().await?;
        client.out.clear();
    }
    let more = stream.read(&mut buffer[*filled..]).await?;
    anyhow::ensure!(more > 0, "the connection ended");
    *filled += more;
    let (taken, answers) = client.take(&buffer[..*filled])?;
    buffer.copy_within(taken..*filled, 0);
    *filled -= taken;
    Ok(answers)
}

async fn http2(
    mut stream: TlsStream<TcpStream>,
    mut client: Http2,
    streams: usize,
    answered: Arc<AtomicU64>,
) -> anyhow::Result<Infallible> {
    (0..streams).for_each(|_| client.ask());
    let (mut buffer, mut filled) = (vec![0; BUFFER], 0);
    loop {
        let answers = turn(&mut stream, &mut client, &mut buffer, &mut filled).await?;
        answered.fetch_add(answers, Ordering::Relaxed);
        (0..answers).for_each(|_| client.ask());
    }
}

/// Keeps the client's control stream open, and takes the server's.
async fn control_streams(connection: quinn::Connection, _control: quinn::SendStream) -> anyhow::Result<Infallible> {
    let mut theirs = JoinSet::new();
    loop {
        let mut stream = connection.accept_uni().await?;
        theirs.spawn(async move { while let Ok(Some(_)) = stream.read_chunk(BUFFER, false).await {} });
    }
}

async fn http3(connection: quinn::Connection, request: Vec<u8>, answered: Arc<AtomicU64>) -> anyhow::Result<Infallible> {
    loop {
        let (mut send, mut receive) = connection.open_bi().await?;
        send.write_all(&request).await?;
        send.finish()?;
        frames::http3_answered(&receive.read_to_end(BUFFER).await?)?;
        answered.fetch_add(1, Ordering::Relaxed);
    }
}

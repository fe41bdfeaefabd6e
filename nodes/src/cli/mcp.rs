//! `mcp`: a pipe to the node's tools, for programs that start MCP servers. The other end is the node's door over QUIC, and the certificate
//! is the operator's or the viewer's of whoever started this.

use std::{
    io::{self, Read as _},
    net::SocketAddr,
    os::fd::AsFd as _,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use clap::Args;
use futures_util::stream;
use horos_link::tls::Tls;
use horos_tools::{
    quic::Dialer,
    stdio::{BridgeError, DialFailed, Options, bridge},
};
use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio_util::io::StreamReader;

use super::{Common, Output, Via, run::via};
use crate::exit::Exit;

/// For a node to be reached, each time.
const REACH: Duration = Duration::from_secs(3);
/// For the node to hear that this is over.
const PARTING: Duration = Duration::from_secs(1);
/// Read from stdin at a time, and so many of these before whoever writes has to wait.
const CHUNK: usize = 64 * 1024;
const CHUNKS: usize = 4;

/// `mcp`.
#[derive(Clone, Copy, Debug, Args)]
pub struct Mcp {
    /// How long what is asked waits while no node can be reached
    #[arg(long, value_name = "SPAN", default_value = "15s", value_parser = crate::config::span)]
    pub patience: Duration,
}

pub(crate) async fn mcp(mcp: &Mcp, common: &Common, output: &Output) -> Result<(), Exit> {
    let Via { identity, .. } = via(common).map_err(|why| output.fail_text(Exit::Usage, &why, Some("--via names a node")))?;
    let local = |error: &dyn std::error::Error| output.fail_text(Exit::Local, &error.to_string(), None);
    let tls = Tls::open(&identity, Timestamp::now()).map_err(|error| output.fail(Exit::Usage, &error, None))?;
    let id = tls.credentials().id().clone();
    if id.role.is_node() {
        let why = format!("{} is a node's certificate; this takes an operator's or a viewer's", id.to_uri());
        return Err(output.fail_text(Exit::Usage, &why, Some("--identity names a directory with one")));
    }
    let dialer = Arc::new(Dialer::new(&tls).map_err(|error| local(&error))?);
    let input = input().map_err(|error| local(&error))?;
    let stdout = io::stdout().as_fd().try_clone_to_owned().map_err(|error| local(&error))?.into();
    let dial = || {
        let dialer = dialer.clone();
        async move {
            // Looked up anew: a node that was started again may be at another port.
            let Via { endpoint, .. } = via(common)?;
            let addresses: Vec<SocketAddr> = tokio::net::lookup_host(endpoint.to_string()).await?.collect();
            let mut last: DialFailed = format!("{endpoint} has no address").into();
            for address in addresses {
                match dialer.connect(address, REACH).await {
                    Ok(connection) => return Ok(connection),
                    Err(error) => last = error.into(),
                }
            }
            Err(last)
        }
    };
    let options = Options { patience: mcp.patience, ..Options::default() };
    let bridged = bridge(dial, input, tokio::fs::File::from_std(stdout), options).await;
    if let Some(dialer) = Arc::into_inner(dialer) {
        dialer.close(PARTING).await;
    }
    bridged.map_err(|error| match &error {
        // Whoever started this is gone, and reads no word of it.
        BridgeError::Output(_) => Exit::Local,
        BridgeError::Refused(_) => {
            output.fail(Exit::Unreachable, &error, Some("the node does not know this certificate; --identity names another"))
        }
        _ => output.fail(Exit::Local, &error, None),
    })
}

/// Stdin, read by a thread that nobody waits for: one that waits for input cannot be told to stop.
fn input() -> io::Result<impl tokio::io::AsyncRead + Unpin + Send + 'static> {
    let (sender, receiver) = mpsc::channel::<io::Result<Bytes>>(CHUNKS);
    std::thread::Builder::new().name("stdin".into()).spawn(move || {
        let mut stdin = io::stdin().lock();
        let mut chunk = vec![0; CHUNK];
        loop {
            let read = match stdin.read(&mut chunk) {
                Ok(0) => return,
                Ok(read) => Ok(Bytes::copy_from_slice(&chunk[..read])),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => Err(error),
            };
            let last = read.is_err();
            if sender.blocking_send(read).is_err() || last {
                return;
            }
        }
    })?;
    let chunks = stream::unfold(receiver, |mut receiver| async move { receiver.recv().await.map(|chunk| (chunk, receiver)) });
    Ok(StreamReader::new(Box::pin(chunks)))
}

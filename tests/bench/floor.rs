//! The floor: raw quinn, with the transport, TLS and runtime that the link has, and nothing else.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context as _;
use bytes::Bytes;
use horos_link::{
    Config, socket,
    tls::{self, Expected, SERVER_NAME, Tls},
    transport,
};
use quinn::{Connection, Endpoint, EndpointConfig, RecvStream, SendStream, TransportConfig, VarInt};
use tokio::time::timeout;

use crate::node::DEADLINE;

/// One stream for many echoes.
const ECHO: &[u8] = b"floor/echo";
/// One stream a call.
const CALL: &[u8] = b"floor/call";

/// The link's transport with room for a stream a call.
fn floor_transport() -> anyhow::Result<Arc<TransportConfig>> {
    let mut transport = transport(&Config::new(([127, 0, 0, 1], 0).into()));
    Arc::get_mut(&mut transport).context("a transport of our own")?.max_concurrent_bidi_streams(VarInt::from_u32(4096));
    Ok(transport)
}

/// Serves echoes and swallows bodies until the process ends; to be called on the runtime it is to use.
pub(crate) fn serve(tls: &Tls) -> anyhow::Result<SocketAddr> {
    let mut server = tls.server(&[ECHO, CALL]);
    server.transport_config(floor_transport()?);
    let socket = socket(([127, 0, 0, 1], 0).into())?;
    let endpoint = Endpoint::new(EndpointConfig::default(), Some(server), socket, Arc::new(quinn::TokioRuntime))?;
    let address = endpoint.local_addr()?;
    tokio::spawn(async move {
        while let Some(incoming) = endpoint.accept().await {
            let Ok(connection) = incoming.await else { continue };
            tokio::spawn(bodies(connection.clone()));
            tokio::spawn(echoes(connection));
        }
    });
    Ok(address)
}

async fn echoes(connection: Connection) {
    let by_call = tls::protocol(&connection).as_deref() == Some(CALL);
    while let Ok((send, receive)) = connection.accept_bi().await {
        tokio::spawn(async move {
            // The stream ends with its connection.
            let _ = if by_call { answer(send, receive).await } else { echo(send, receive).await };
        });
    }
}

async fn answer(mut send: SendStream, mut receive: RecvStream) -> anyhow::Result<()> {
    let body = receive.read_to_end(1024).await?;
    send.write_all(&body).await?;
    send.finish()?;
    Ok(())
}

async fn echo(mut send: SendStream, mut receive: RecvStream) -> anyhow::Result<()> {
    while let Some(chunk) = receive.read_chunk(64 * 1024, true).await? {
        send.write_all(&chunk.bytes).await?;
    }
    Ok(())
}

/// Reads each body to its end and says how long it was.
async fn bodies(connection: Connection) {
    while let Ok(mut receive) = connection.accept_uni().await {
        let connection = connection.clone();
        tokio::spawn(async move {
            let mut size = 0u64;
            let mut chunks = [const { Bytes::new() }; 64];
            while let Some(count) = receive.read_chunks(&mut chunks).await? {
                size += chunks[..count].iter_mut().map(|chunk| std::mem::take(chunk).len() as u64).sum::<u64>();
            }
            let mut send = connection.open_uni().await?;
            send.write_all(&size.to_le_bytes()).await?;
            send.finish()?;
            anyhow::Ok(())
        });
    }
}

/// The client's end.
pub(crate) struct Floor {
    _endpoint: Endpoint,
    calls: Connection,
    send: SendStream,
    receive: RecvStream,
}

impl Floor {
    pub(crate) async fn connect(tls: &Tls, server: SocketAddr) -> anyhow::Result<Self> {
        let socket = socket(([127, 0, 0, 1], 0).into())?;
        let endpoint = Endpoint::new(EndpointConfig::default(), None, socket, Arc::new(quinn::TokioRuntime))?;
        let connect = async |protocol: &[u8]| {
            let mut client = tls.client(&[protocol], Expected::AnyNode);
            client.transport_config(floor_transport()?);
            anyhow::Ok(endpoint.connect_with(client, server, SERVER_NAME)?.await?)
        };
        let (echoes, calls) = (connect(ECHO).await?, connect(CALL).await?);
        let (send, receive) = echoes.open_bi().await?;
        Ok(Self { _endpoint: endpoint.clone(), calls, send, receive })
    }

    /// One echo on the stream that all share.
    pub(crate) async fn echo(&mut self, body: &mut [u8]) -> anyhow::Result<()> {
        timeout(DEADLINE, async {
            self.send.write_all(body).await?;
            self.receive.read_exact(body).await?;
            anyhow::Ok(())
        })
        .await?
    }

    /// What calls go over.
    pub(crate) fn calls(&self) -> Connection {
        self.calls.clone()
    }

    /// Sends a body of `chunks` times `chunk`, and returns how long it took until all of it was read.
    pub(crate) async fn bulk(&self, chunk: Bytes, chunks: usize) -> anyhow::Result<Duration> {
        let started = std::time::Instant::now();
        let mut send = self.calls.open_uni().await?;
        for _ in 0..chunks {
            send.write_chunk(chunk.clone()).await?;
        }
        send.finish()?;
        let answer = self.calls.accept_uni().await?.read_to_end(8).await?;
        anyhow::ensure!(answer == ((chunk.len() * chunks) as u64).to_le_bytes(), "not all of the body arrived");
        Ok(started.elapsed())
    }
}

/// One call on a stream of its own.
pub(crate) async fn call(connection: &Connection, body: &[u8]) -> anyhow::Result<Vec<u8>> {
    timeout(DEADLINE, async {
        let (mut send, mut receive) = connection.open_bi().await?;
        send.write_all(body).await?;
        send.finish()?;
        Ok(receive.read_to_end(1024).await?)
    })
    .await?
}

//! The other end: MCP's client over a QUIC connection to a door, ours or the Go system's.
//!
//! Streams for requests are offered, and used where the server agrees. A request that is answered by nothing (its stream was reset, or
//! ended) ends in an error, so that nobody waits for what cannot come.

mod inbound;
mod outbound;

use std::{
    collections::HashMap,
    fmt,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use quinn::{ConnectError, Connection, ConnectionError, Endpoint, IdleTimeout, TransportConfig, VarInt};
use rmcp::{
    RoleClient,
    model::{JsonRpcMessage, RequestId},
    service::{RxJsonRpcMessage, TxJsonRpcMessage},
    transport::Transport as RmcpTransport,
};
use tokio::{
    sync::{Semaphore, mpsc, oneshot},
    task::JoinHandle,
    time::timeout,
};

use super::{
    ALPNS, Close, MAGIC,
    bounds::Meter,
    lines::Turns,
    outbox::{self, Out, Unread, Writer},
};
use crate::Credential;

/// Messages between the streams' readers and rmcp's loop.
const INBOX: usize = 64;
/// What a server may have sent and this side not read: the results of some large calls at once.
const WINDOW: u32 = 64 << 20;
/// The same of one stream.
const STREAM_WINDOW: u32 = 4 << 20;
/// What waits to be written to a server that does not read.
const UNREAD: usize = 64 << 20;
/// For the last words to reach the server.
const PARTING: Duration = Duration::from_secs(1);
/// Large messages that are read at once; the rest wait.
const LARGE: usize = 8;

/// How a connection is used.
#[derive(Clone, Debug)]
pub struct DialOptions {
    /// Shown in `_meta` of the first request; none where the certificate proves who this is.
    pub credential: Option<Credential>,
    /// Whether streams for requests are offered. Default: they are.
    pub streams: bool,
    /// For the stream and its magic. Default 10 s.
    pub handshake: Duration,
    /// For the rest of a message once its beginning is there, and for the server to take anything of what is written to it. Default 60 s.
    pub stalled: Duration,
}

impl Default for DialOptions {
    fn default() -> Self {
        Self { credential: None, streams: true, handshake: Duration::from_secs(10), stalled: Duration::from_secs(60) }
    }
}

/// Why there is no session with a server. Nothing was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DialError {
    /// The address or the configuration cannot be dialled at all.
    #[error("cannot dial: {0}")]
    Connect(#[from] ConnectError),
    /// The connection did not come up, or went.
    #[error("{0}")]
    Closed(#[from] SendError),
    /// The protocol that TLS agreed on is another.
    #[error("the server speaks none of mcp-quic-v1 and horos-mcp-v1")]
    Alpn,
    /// It took too long.
    #[error("no session within {0:?}")]
    Timeout(Duration),
}

/// Why a message was not sent, or a session ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// The server closed in good order: it stops, or nothing was said for long. Dial again.
    #[error("the server ended the session: {0}")]
    Ended(Box<str>),
    /// Who this is, is not proved, or no longer. Dialling again does not help.
    #[error("the server does not admit this client: {0}")]
    Unauthenticated(Box<str>),
    /// The server has no room, or this side has not read what it asked for. Dial again later.
    #[error("the server has no room: {0}")]
    Limit(Box<str>),
    /// The server understands something else.
    #[error("the server speaks another protocol: {0}")]
    Violation(Box<str>),
    /// This side closed it.
    #[error("the session was closed")]
    Closed,
    /// The connection is lost.
    #[error("the connection is lost: {0}")]
    Lost(Box<str>),
    /// The message cannot be written as JSON, or is larger than [`super::MAX_MESSAGE`].
    #[error("the message cannot be sent: {0}")]
    Message(Box<str>),
}

impl From<&ConnectionError> for SendError {
    fn from(error: &ConnectionError) -> Self {
        match error {
            ConnectionError::ApplicationClosed(closed) => {
                let reason = String::from_utf8_lossy(&closed.reason).into();
                match Close::from_code(closed.error_code.into_inner()) {
                    Some(Close::Done) => Self::Ended(reason),
                    Some(Close::Unauthenticated) => Self::Unauthenticated(reason),
                    Some(Close::Limit) => Self::Limit(reason),
                    Some(Close::Alpn | Close::Violation) => Self::Violation(reason),
                    None => Self::Lost(closed.to_string().into()),
                }
            }
            ConnectionError::LocallyClosed => Self::Closed,
            other => Self::Lost(other.to_string().into()),
        }
    }
}

impl From<ConnectionError> for SendError {
    fn from(error: ConnectionError) -> Self {
        Self::from(&error)
    }
}

/// The transport of the connections that this is used on: kept alive, with windows for results of several megabytes.
pub fn transport_config() -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport
        // The server's is 30 s of silence, and the shorter counts (RFC 9000 §10.1).
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(30_000))))
        .keep_alive_interval(Some(Duration::from_secs(10)))
        // A server opens none.
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(WINDOW))
        .datagram_receive_buffer_size(None);
    transport
}

/// What a session's parts share.
struct Inner {
    connection: Connection,
    options: DialOptions,
    /// Whether the first request was sent, which carries the key.
    shown: AtomicBool,
    /// Whether the server has agreed to streams for requests.
    streams: AtomicBool,
    pending: Mutex<HashMap<RequestId, Pending>>,
    first: mpsc::Sender<Out>,
    inbox: mpsc::Sender<RxJsonRpcMessage<RoleClient>>,
    unread: Unread,
    large: Turns,
}

/// A request that is not answered.
#[derive(Debug, Default)]
struct Pending {
    /// Whether it calls a tool, whose answer is read without trying all shapes.
    call: bool,
    /// Gives up its stream.
    stop: Option<oneshot::Sender<()>>,
}

/// MCP's client transport over QUIC.
pub struct Transport {
    inner: Arc<Inner>,
    inbox: mpsc::Receiver<RxJsonRpcMessage<RoleClient>>,
    reader: JoinHandle<()>,
    writer: Option<JoinHandle<()>>,
    closing: Option<oneshot::Sender<()>>,
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Transport({})", self.inner.connection.remote_address())
    }
}

/// Dials `address` and opens a session there; `config` says whom to expect, which of [`ALPNS`] to offer, and should have
/// [`transport_config`].
///
/// # Errors
/// [`DialError`].
pub async fn connect(
    endpoint: &Endpoint,
    config: quinn::ClientConfig,
    address: SocketAddr,
    name: &str,
    options: DialOptions,
) -> Result<Transport, DialError> {
    let connecting = endpoint.connect_with(config, address, name)?;
    let connection = timeout(options.handshake, connecting).await.map_err(|_| DialError::Timeout(options.handshake))?;
    dial(connection.map_err(SendError::from)?, options).await
}

/// Opens a session on a connection.
///
/// # Errors
/// [`DialError`].
pub async fn dial(connection: Connection, options: DialOptions) -> Result<Transport, DialError> {
    if !horos_link::tls::protocol(&connection).is_some_and(|protocol| ALPNS.contains(&&*protocol)) {
        connection.close(Close::Alpn.code(), b"bad ALPN");
        return Err(DialError::Alpn);
    }
    let opening = async {
        let (mut send, receive) = connection.open_bi().await.map_err(SendError::from)?;
        let written = send.write_all(&MAGIC).await;
        written.map_err(|error| lost(&connection, &error.to_string()))?;
        Ok::<_, SendError>((send, receive))
    };
    let opened = timeout(options.handshake, opening).await.map_err(|_| DialError::Timeout(options.handshake))?;
    let (send, receive) = opened?;
    let (first, mut waiting) = mpsc::channel(outbox::QUEUE);
    let (sender, inbox) = mpsc::channel(INBOX);
    let stalled = options.stalled;
    let large = Arc::new(Semaphore::new(LARGE));
    let unread = Unread { session: Meter::new(UNREAD), all: Meter::new(UNREAD) };
    let inner = Arc::new(Inner {
        connection: connection.clone(),
        options,
        shown: AtomicBool::new(false),
        streams: AtomicBool::new(false),
        pending: Mutex::default(),
        first,
        inbox: sender,
        unread,
        large: Turns { session: large.clone(), all: large, patience: stalled },
    });
    let (closing, closed) = oneshot::channel();
    let writer = tokio::spawn(async move {
        let mut writer = Writer::new(send, stalled);
        tokio::select! {
            _ = writer.run(&mut waiting) => {}
            _ = closed => {}
        }
        waiting.close();
        let _ = timeout(PARTING, writer.run(&mut waiting)).await;
        outbox::finish(&mut writer.stream, PARTING).await;
    });
    let reader = tokio::spawn(inbound::first(inner.clone(), receive));
    Ok(Transport { inner, inbox, reader, writer: Some(writer), closing: Some(closing) })
}

/// Why the connection is gone, if it is.
fn lost(connection: &Connection, otherwise: &str) -> SendError {
    connection.close_reason().map_or_else(|| SendError::Lost(otherwise.into()), |reason| SendError::from(&reason))
}

impl Transport {
    /// Why the session has ended, once it has.
    pub fn ended(&self) -> impl Future<Output = SendError> + Send + 'static {
        let connection = self.inner.connection.clone();
        async move { SendError::from(connection.closed().await) }
    }

    /// Whether the server has agreed to a stream for each request.
    pub fn has_streams(&self) -> bool {
        self.inner.streams.load(Ordering::Relaxed)
    }
}

impl RmcpTransport<RoleClient> for Transport {
    type Error = SendError;

    fn send(&mut self, message: TxJsonRpcMessage<RoleClient>) -> impl Future<Output = Result<(), SendError>> + Send + 'static {
        let inner = self.inner.clone();
        async move { outbound::send(&inner, message).await }
    }

    async fn receive(&mut self) -> Option<RxJsonRpcMessage<RoleClient>> {
        tokio::select! {
            biased;
            message = self.inbox.recv() => message,
            _ = self.inner.connection.closed() => None,
        }
    }

    async fn close(&mut self) -> Result<(), SendError> {
        self.closing.take();
        if let Some(writer) = self.writer.take() {
            // It has a time of its own.
            let _ = writer.await;
        }
        self.inner.connection.close(Close::Done.code(), b"client closing");
        Ok(())
    }
}

impl Drop for Transport {
    fn drop(&mut self) {
        self.reader.abort();
        if let Some(writer) = &self.writer {
            writer.abort();
        }
        // Nothing happens to one that is closed.
        self.inner.connection.close(Close::Done.code(), b"client closing");
    }
}

/// An answer of our own making to a request that will have none.
fn unanswered(id: RequestId, code: i32, what: &'static str) -> RxJsonRpcMessage<RoleClient> {
    JsonRpcMessage::error(rmcp::ErrorData::new(rmcp::model::ErrorCode(code), what, None), Some(id))
}

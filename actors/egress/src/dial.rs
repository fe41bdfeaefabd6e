//! How a host is reached: its name, the check of every address, TCP and TLS, or QUIC, and the version of HTTP that both speak.
//!
//! Between the check of an address and the connection to it there is nothing: no cache, no second look-up, no other text that might
//! mean another host. A name of which one address is not permitted is refused whole: a public host has no reason to say such a thing,
//! and which of its answers comes first is the other side's choice.

use std::{fmt, io, net::SocketAddr, sync::Arc, time::Duration};

use futures_util::TryFutureExt as _;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::OwnedSemaphorePermit,
    task::JoinSet,
};
use tokio_rustls::TlsConnector;

use super::{
    body::Sending,
    carrier,
    connect::Connect,
    error::Bound,
    http3,
    options::{Options, OptionsError},
    policy::{Admitted, Policy, Refusal},
    quic::Sockets,
    resolve::Resolve,
    target::{Host, Origin, Scheme},
    tls,
};

/// Addresses of one name that are looked at; more are no help, and are not tried.
const MAX_ADDRESSES: usize = 64;
/// Addresses of one name that are connected to.
const MAX_ATTEMPTS: usize = 4;
/// How long an address has before the next is tried beside it (RFC 8305 §5).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);
/// What a stream of HTTP/2 or HTTP/3 may send before it is read, and a connection.
pub(crate) const STREAM_WINDOW: u32 = 256 * 1024;
pub(crate) const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Bytes of a response's head, and over HTTP/1.1 also of what is read ahead.
pub(crate) const MAX_HEAD: usize = 64 * 1024;
/// Fields of a response's head.
pub(crate) const MAX_FIELDS: usize = 128;
/// How long a shared connection with requests in flight may be silent until it is asked whether it is still one, and how long it has
/// to answer.
pub(crate) const PING: Duration = Duration::from_secs(15);
pub(crate) const PONG: Duration = Duration::from_secs(10);

/// By what a host is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Over {
    /// HTTP/1.1 or HTTP/2, as TLS agrees on.
    Tcp,
    /// HTTP/3.
    Quic,
}

/// Why there is no connection. For all who waited for it.
#[derive(Clone, Debug)]
pub(crate) enum DialError {
    Refused(Refusal),
    Unresolved(Arc<str>),
    Unreachable(Arc<str>),
    Untrusted(Arc<str>),
    /// As many as there may be.
    NoRoom(Bound),
}

/// A fresh connection.
pub(crate) enum Opened {
    Http1(http1::SendRequest<Sending>),
    Shared(carrier::Shared),
}

pub(crate) struct Dialer {
    pub(crate) policy: Policy,
    resolver: Arc<dyn Resolve>,
    connector: Arc<dyn Connect>,
    tls: TlsConnector,
    sockets: Arc<Sockets>,
    pub(crate) within: Duration,
}

impl Dialer {
    pub(crate) fn new(options: &Options) -> Result<Self, OptionsError> {
        let tls = tls::config(options)?;
        Ok(Self {
            policy: Policy {
                plain: options.plain_http,
                ports: options.ports.clone(),
                trusted: options.trusted.clone(),
                deny: options.deny.clone(),
            },
            resolver: options.resolver.clone(),
            connector: options.connector.clone(),
            sockets: Arc::new(Sockets::new(speaking(&tls, &[http3::ALPN]))),
            tls: TlsConnector::from(Arc::new(tls)),
            within: options.timeouts.connect,
        })
    }

    /// Opens a connection to `origin`, which holds `room` for as long as it lasts.
    pub(crate) async fn dial(
        &self,
        origin: &Origin,
        over: Over,
        admitted: &Admitted,
        room: OwnedSemaphorePermit,
    ) -> Result<Opened, DialError> {
        let late = |_| DialError::Unreachable("no connection in time".into());
        let opening = async {
            let addresses = self.permitted(origin, admitted).await?;
            match over {
                Over::Tcp => self.open(origin, addresses, room).await,
                Over::Quic => self.open_quic(origin, addresses, room).await,
            }
        };
        tokio::time::timeout(self.within, opening).await.map_err(late)?
    }

    async fn open(&self, origin: &Origin, addresses: Vec<SocketAddr>, room: OwnedSemaphorePermit) -> Result<Opened, DialError> {
        let unreachable = |error: io::Error| DialError::Unreachable(error.to_string().into());
        let tcp = first(addresses, |address| self.connector.connect(address).map_err(unreachable)).await?;
        tcp.set_nodelay(true).map_err(unreachable)?;
        if origin.scheme == Scheme::Http {
            return speak(tcp, false, room).await;
        }
        let name = match &origin.host {
            Host::Name(name) => ServerName::try_from(name.to_string()).map_err(|error| DialError::Untrusted(error.to_string().into()))?,
            Host::Address(address) => ServerName::from(*address),
        };
        let tls = self.tls.connect(name, tcp).await.map_err(|error| match error.get_ref() {
            Some(inner) if inner.is::<rustls::Error>() => DialError::Untrusted(error.to_string().into()),
            _ => DialError::Unreachable(error.to_string().into()),
        })?;
        // Who makes no choice speaks HTTP/1.1 (RFC 9113 §3.2).
        let h2 = tls.get_ref().1.alpn_protocol() == Some(tls::H2);
        speak(tls, h2, room).await
    }

    async fn open_quic(&self, origin: &Origin, addresses: Vec<SocketAddr>, room: OwnedSemaphorePermit) -> Result<Opened, DialError> {
        let name: Arc<str> = match &origin.host {
            Host::Name(name) => (&**name).into(),
            Host::Address(address) => address.to_string().into(),
        };
        let attempt = |address| {
            let (sockets, name) = (self.sockets.clone(), name.clone());
            async move { sockets.connect(address, &name).await }
        };
        let connection = first(addresses, attempt).await?;
        http3::open(connection, room).await.map(|sender| Opened::Shared(carrier::Shared::Http3(sender)))
    }

    /// What its connections by TLS are configured with, but for the protocols.
    pub(crate) fn speaking(&self, protocols: &[&[u8]]) -> rustls::ClientConfig {
        speaking(self.tls.config(), protocols)
    }

    /// The addresses of `origin`, each checked; none if one of them must not be reached.
    pub(crate) async fn permitted(&self, origin: &Origin, admitted: &Admitted) -> Result<Vec<SocketAddr>, DialError> {
        let addresses = match &origin.host {
            Host::Address(address) => vec![*address],
            Host::Name(name) => {
                // Absolute, so that no search list turns a stranger's name into one of the owner's.
                let asked = if admitted.is_own_name() { name.to_string() } else { format!("{name}.") };
                self.resolver.resolve(&asked).await.map_err(|error| match error.kind() {
                    io::ErrorKind::ResourceBusy => DialError::NoRoom(Bound::Lookups),
                    _ => DialError::Unresolved(error.to_string().into()),
                })?
            }
        };
        if addresses.is_empty() {
            return Err(DialError::Unresolved("there is none".into()));
        }
        if addresses.len() > MAX_ADDRESSES {
            return Err(DialError::Unresolved("there are more than are looked at".into()));
        }
        for address in &addresses {
            self.policy.permit(admitted, *address, origin.port).map_err(DialError::Refused)?;
        }
        Ok(addresses.into_iter().take(MAX_ATTEMPTS).map(|address| SocketAddr::new(address, origin.port)).collect())
    }
}

fn speaking(tls: &rustls::ClientConfig, protocols: &[&[u8]]) -> rustls::ClientConfig {
    let mut config = tls.clone();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    config
}

/// The first of `addresses` that answers; each has a head start before the next (RFC 8305 §5).
async fn first<T, A>(addresses: Vec<SocketAddr>, attempt: impl Fn(SocketAddr) -> A) -> Result<T, DialError>
where
    T: Send + 'static,
    A: Future<Output = Result<T, DialError>> + Send + 'static,
{
    let mut last = None;
    let mut attempts = JoinSet::new();
    let mut addresses = addresses.into_iter();
    loop {
        let next = addresses.next();
        let is_last = next.is_none();
        if let Some(address) = next {
            attempts.spawn(attempt(address));
        }
        let outcome = tokio::select! {
            outcome = attempts.join_next() => outcome,
            () = tokio::time::sleep(ATTEMPT_DELAY), if !is_last => continue,
        };
        match outcome {
            Some(Ok(Ok(opened))) => return Ok(opened),
            // Somebody is there, and it is the wrong one.
            Some(Ok(Err(untrusted @ DialError::Untrusted(_)))) => return Err(untrusted),
            Some(Ok(Err(error))) => last = Some(error),
            Some(Err(error)) => last = Some(DialError::Unreachable(error.to_string().into())),
            None => return Err(last.unwrap_or_else(|| DialError::Unreachable("no address answered".into()))),
        }
    }
}

impl fmt::Debug for Dialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dialer").field("policy", &self.policy).field("resolver", &self.resolver).finish_non_exhaustive()
    }
}

async fn speak<T>(io: T, h2: bool, room: OwnedSemaphorePermit) -> Result<Opened, DialError>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let failed = |error: hyper::Error| DialError::Unreachable(error.to_string().into());
    if !h2 {
        let mut builder = http1::Builder::new();
        builder.max_headers(MAX_FIELDS).max_buf_size(MAX_HEAD);
        let (mut sender, connection) = builder.handshake(TokioIo::new(io)).await.map_err(failed)?;
        drive(connection, room);
        sender.ready().await.map_err(failed)?;
        return Ok(Opened::Http1(sender));
    }
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(STREAM_WINDOW as usize)
        .max_header_list_size(MAX_HEAD as u32)
        .keep_alive_interval(PING)
        .keep_alive_timeout(PONG);
    let (sender, connection) = builder.handshake(TokioIo::new(io)).await.map_err(failed)?;
    drive(connection, room);
    Ok(Opened::Shared(carrier::Shared::Http2(sender)))
}

/// Runs a connection until it ends: when it breaks, or when nobody holds its sender and no response is left.
fn drive(connection: impl Future<Output = Result<(), hyper::Error>> + Send + 'static, room: OwnedSemaphorePermit) {
    tokio::spawn(async move {
        let _room = room;
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection ended");
        }
    });
}

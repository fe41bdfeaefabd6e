//! How a connection to the owner is opened: its name, TCP, TLS with the owner's identity, and the version that they agree on.

use std::{fmt, io, net::SocketAddr, sync::Arc, time::Duration};

use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

use super::{
    super::{Config, ConfigError, Limits, Origin, STREAM_WINDOW, Version},
    Opened,
};

/// Addresses of one name that are tried.
const MAX_ADDRESSES: usize = 4;
/// How often an idle connection is asked whether it is still one, and how long it has to answer: a write must not be the first to
/// find out that the way is gone.
const PING: Duration = Duration::from_secs(10);
const PONG: Duration = Duration::from_secs(5);
/// Fields of an answer's head over HTTP/1.1.
const MAX_FIELDS: usize = 200;
/// Least that hyper takes for a head over HTTP/1.1.
const LEAST_HEAD: usize = 8 * 1024;

const H2: &[u8] = b"h2";
const HTTP1: &[u8] = b"http/1.1";

/// Why no connection was opened. Holds addresses: for the log, and for no client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) enum DialError {
    /// Nobody answers there, or not in time.
    Unreachable(Arc<str>),
    /// Somebody does who is not the owner.
    Stranger(Arc<str>),
}

impl fmt::Display for DialError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(why) | Self::Stranger(why) => f.write_str(why),
        }
    }
}

impl From<io::Error> for DialError {
    fn from(error: io::Error) -> Self {
        Self::Unreachable(error.to_string().into())
    }
}

pub(super) struct Dialer {
    owner: Origin,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    version: Version,
    within: Duration,
    limits: Limits,
}

impl Dialer {
    pub(super) fn new(config: &Config) -> Result<Self, ConfigError> {
        config.check()?;
        let tls = match config.tls.as_ref().filter(|_| config.owner.is_secure()) {
            Some(tls) => Some((TlsConnector::from(Arc::new(offering(tls, config.version))), config.name()?)),
            None => None,
        };
        let (version, within, limits) = (config.version, config.timeouts.connect, config.limits);
        Ok(Self { owner: config.owner.clone(), tls, version, within, limits })
    }

    pub(super) fn owner(&self) -> &Origin {
        &self.owner
    }

    pub(super) async fn dial(&self) -> Result<Opened, DialError> {
        let late = |_| DialError::Unreachable("no connection in time".into());
        tokio::time::timeout(self.within, self.open()).await.map_err(late)?
    }

    async fn open(&self) -> Result<Opened, DialError> {
        let tcp = self.connect().await?;
        tcp.set_nodelay(true)?;
        match &self.tls {
            None => self.speak(tcp, self.version == Version::Http2).await,
            Some((connector, name)) => {
                let tls = connector.connect(name.clone(), tcp).await.map_err(|error| match error.get_ref() {
                    Some(inner) if inner.is::<rustls::Error>() => DialError::Stranger(error.to_string().into()),
                    _ => error.into(),
                })?;
                let h2 = match tls.get_ref().1.alpn_protocol() {
                    Some(H2) => true,
                    // Who offers no choice speaks HTTP/1.1.
                    Some(HTTP1) | None if self.version != Version::Http2 => false,
                    _ => return Err(DialError::Stranger("it does not speak the HTTP version that is wanted".into())),
                };
                self.speak(tls, h2).await
            }
        }
    }

    async fn connect(&self) -> Result<TcpStream, DialError> {
        let addresses = tokio::net::lookup_host((self.owner.host(), self.owner.port())).await?;
        let addresses: Vec<SocketAddr> = addresses.take(MAX_ADDRESSES).collect();
        let mut last = DialError::Unreachable("its name has no address".into());
        for address in addresses {
            match TcpStream::connect(address).await {
                Ok(tcp) => return Ok(tcp),
                Err(error) => last = error.into(),
            }
        }
        Err(last)
    }

    async fn speak<T>(&self, io: T, h2: bool) -> Result<Opened, DialError>
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let failed = |error: hyper::Error| DialError::Unreachable(error.to_string().into());
        if !h2 {
            let mut builder = http1::Builder::new();
            builder.max_headers(MAX_FIELDS).max_buf_size(LEAST_HEAD.max(self.limits.head as usize));
            let (mut sender, connection) = builder.handshake(TokioIo::new(io)).await.map_err(failed)?;
            drive(connection);
            sender.ready().await.map_err(failed)?;
            return Ok(Opened::Http1(sender));
        }
        let streams = u32::try_from(self.limits.streams()).unwrap_or(u32::MAX);
        let window = streams.saturating_mul(STREAM_WINDOW).min(i32::MAX as u32);
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(window)
            .max_send_buf_size(STREAM_WINDOW as usize)
            .max_header_list_size(self.limits.head)
            .keep_alive_interval(PING)
            .keep_alive_timeout(PONG)
            .keep_alive_while_idle(true);
        let (sender, connection) = builder.handshake(TokioIo::new(io)).await.map_err(failed)?;
        drive(connection);
        Ok(Opened::Http2(sender))
    }
}

/// Runs a connection until it ends: when it breaks, or when nobody holds its sender and no answer is left.
fn drive(connection: impl Future<Output = Result<(), hyper::Error>> + Send + 'static) {
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection to the owner ended");
        }
    });
}

/// `tls`, offering what may be spoken, and without memory: each connection looks at the owner's certificate anew.
fn offering(tls: &ClientConfig, version: Version) -> ClientConfig {
    let mut tls = tls.clone();
    let (h2, http1) = (H2.to_vec(), HTTP1.to_vec());
    tls.alpn_protocols = match version {
        Version::Negotiated => vec![h2, http1],
        Version::Http1 => vec![http1],
        Version::Http2 => vec![h2],
    };
    // Early data can be replayed, and what is passed on writes.
    tls.enable_early_data = false;
    tls.resumption = rustls::client::Resumption::disabled();
    tls
}

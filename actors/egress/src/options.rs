//! What an [`Egress`](crate::Egress) may do, and how long, how much and how often.

use std::{num::NonZeroU32, ops::RangeInclusive, path::PathBuf, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    address::Network,
    connect::{Connect, TcpConnector},
    policy::{PlainHttp, Trusted},
    resolve::{Resolve, SystemResolver},
};

/// Most redirects that a caller may ask for: as many as browsers of old, twice as many as anybody needs.
pub const MAX_REDIRECTS: u8 = 10;

/// Longest timeout: what can be added to any instant.
const MAX_SPAN: Duration = Duration::from_secs(365 * 86_400);

/// How requests leave. Nothing here is read from the environment; in particular no proxy is.
///
/// Where strangers choose the URLs and the owner's own services are called too, make two: only the latter has [`Self::trusted`]
/// endpoints.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where `http` without TLS is spoken. Default: at trusted endpoints.
    pub plain_http: PlainHttp,
    /// Ports of public addresses. Default 80 and 443: whoever may choose any can speak to mail servers, databases and shells in
    /// somebody else's name. A range does not permit the ports that the Fetch standard blocks, nor those of databases that ask
    /// nobody who he is; such a port has to be listed alone. Trusted endpoints have their own.
    pub ports: Vec<RangeInclusive<u16>>,
    /// Endpoints that may be inside. Default none.
    pub trusted: Vec<Trusted>,
    /// Addresses that are never connected to, though they are public or trusted: the owner's own, say, or those of a network's own
    /// NAT64 prefix, which no table knows. Default none.
    pub deny: Vec<Network>,
    /// Who may vouch for a host besides [`Self::ca_files`].
    pub roots: Roots,
    /// Files of certificates in PEM of further authorities. Default none.
    pub ca_files: Vec<PathBuf>,
    /// How long.
    pub timeouts: Timeouts,
    /// How many.
    pub bounds: Bounds,
    /// When a host is left alone.
    pub breaker: BreakerOptions,
    /// Who looks names up. Default: the operating system.
    pub resolver: Arc<dyn Resolve>,
    /// Who opens connections, to addresses that have been checked. Default: TCP. Those of HTTP/3 are opened here, by UDP.
    pub connector: Arc<dyn Connect>,
}

/// Authorities whose certificates are believed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Roots {
    /// Those of the operating system (with none, no host is reached by `https`), or of the file and the directory that `SSL_CERT_FILE` and `SSL_CERT_DIR` name.
    #[default]
    System,
    /// None but [`Options::ca_files`].
    Files,
}

/// How long things may take. A caller's deadline may be sooner, never later.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// Looking the name up, TCP and TLS or QUIC together. Default 5 s.
    pub connect: Duration,
    /// From the last part of the request that the host took to the end of the response's head. Default 30 s.
    pub head: Duration,
    /// Between two parts of a response's body. Default 15 s.
    pub idle: Duration,
    /// A request from its first hop to the end of its response's body. Default 5 min.
    pub total: Duration,
    /// How long a connection is kept that nobody uses. Default 30 s; many servers close them after a minute.
    pub keep: Duration,
}

/// How many there may be of everything.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Requests in flight, until their response's body is read or dropped. Beyond: [`Overloaded`](crate::EgressError::Overloaded),
    /// at once. Default 1024.
    pub in_flight: usize,
    /// The same to one host. Default 128.
    pub in_flight_per_host: usize,
    /// Open connections, each a descriptor (all of HTTP/3 have two between them) and up to 1 MiB of what came and is not read. Default 512. When all are open, those that
    /// nobody uses are closed for new ones.
    pub connections: usize,
    /// Connections of HTTP/1.1 to one host that are kept for later. Default 8.
    pub idle_per_host: usize,
    /// Hosts whose connections, breaker and figures are remembered; those unused for longest are forgotten first. Default 1024.
    pub hosts: usize,
    /// Requests a second to one host; more are refused, so that nobody can turn this node against another's. Does not hold for a
    /// trusted endpoint that the URL itself names. Default 100.
    pub rate_per_host: NonZeroU32,
    /// Requests to one host that may come at once after a pause. Default 200.
    pub burst_per_host: NonZeroU32,
}

/// When a host is left alone: after so many failures in a row, for so long, until one request comes through.
///
/// A failure is what speaks against the host: no address, no connection, no answer, a broken one. Whatever it answers speaks for it,
/// and what was refused here, or given up by its caller, says nothing.
#[derive(Clone, Copy, Debug)]
pub struct BreakerOptions {
    /// Failures in a row. Default 5.
    pub failures: NonZeroU32,
    /// How long no request is let through then. Default 30 s.
    pub open: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            plain_http: PlainHttp::default(),
            ports: vec![80..=80, 443..=443],
            trusted: Vec::new(),
            deny: Vec::new(),
            roots: Roots::default(),
            ca_files: Vec::new(),
            timeouts: Timeouts::default(),
            bounds: Bounds::default(),
            breaker: BreakerOptions::default(),
            resolver: Arc::new(SystemResolver::default()),
            connector: Arc::new(TcpConnector),
        }
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            head: Duration::from_secs(30),
            idle: Duration::from_secs(15),
            total: Duration::from_secs(300),
            keep: Duration::from_secs(30),
        }
    }
}

impl Default for Bounds {
    fn default() -> Self {
        const RATE: NonZeroU32 = NonZeroU32::new(100).expect("is not 0");
        const BURST: NonZeroU32 = NonZeroU32::new(200).expect("is not 0");
        Self {
            in_flight: 1024,
            in_flight_per_host: 128,
            connections: 512,
            idle_per_host: 8,
            hosts: 1024,
            rate_per_host: RATE,
            burst_per_host: BURST,
        }
    }
}

impl Default for BreakerOptions {
    fn default() -> Self {
        const FAILURES: NonZeroU32 = NonZeroU32::new(5).expect("is not 0");
        Self { failures: FAILURES, open: Duration::from_secs(30) }
    }
}

/// Why no [`Egress`](crate::Egress) can be made of its options.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OptionsError {
    /// A bound or a timeout of 0 lets nothing through, and one beyond a year is no timeout.
    #[error("{0} is 0, or longer than a year")]
    OutOfRange(&'static str),
    /// A file of certificates cannot be read, or holds none.
    #[error("the certificates in {}", path.display())]
    CaFile {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: rustls_pki_types::pem::Error,
    },
    /// A certificate is no authority's.
    #[error("a certificate in {}", path.display())]
    Ca {
        /// In which file.
        path: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// The provider of cryptography has no version of TLS that is spoken.
    #[error("TLS cannot be set up")]
    Tls(#[source] rustls::Error),
}

impl Options {
    pub(crate) fn check(&self) -> Result<(), OptionsError> {
        let Bounds { in_flight, in_flight_per_host, connections, hosts, .. } = self.bounds;
        let Timeouts { connect, head, idle, total, keep } = self.timeouts;
        let spans = [
            ("timeouts.connect", connect),
            ("timeouts.head", head),
            ("timeouts.idle", idle),
            ("timeouts.total", total),
            ("timeouts.keep", keep),
            ("breaker.open", self.breaker.open),
        ];
        let counts = [
            ("bounds.in_flight", in_flight),
            ("bounds.in_flight_per_host", in_flight_per_host),
            ("bounds.connections", connections),
            ("bounds.hosts", hosts),
        ];
        let wrong = spans.iter().find(|(_, span)| span.is_zero() || *span > MAX_SPAN).map(|(name, _)| *name);
        let wrong = wrong.or(counts.iter().find(|(_, count)| *count == 0).map(|(name, _)| *name));
        wrong.map_or(Ok(()), |name| Err(OptionsError::OutOfRange(name)))
    }
}

/// What one request may cost.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// When its response must have been read. [`Timeouts::total`] may be sooner.
    pub deadline: Instant,
    /// Largest body that is sent, in bytes. Default 16 MiB.
    pub request_bytes: u64,
    /// Largest body that is read, in bytes, as it is transferred: nothing is decompressed here. Default 10 MiB.
    pub response_bytes: u64,
    /// Redirects that are followed, at most [`MAX_REDIRECTS`]. Default none: the redirect is the response.
    pub redirects: u8,
}

impl Limits {
    /// The defaults, until `timeout` from now.
    pub fn within(timeout: Duration) -> Self {
        let now = Instant::now();
        // A timeout beyond what a clock can say is as good as a day: `Timeouts::total` ends it sooner.
        let deadline = now.checked_add(timeout).unwrap_or(now + Duration::from_secs(86_400));
        Self { deadline, request_bytes: 16 << 20, response_bytes: 10 << 20, redirects: 0 }
    }
}

//! How requests are passed on. Checked by [`Config::check`]; past that, code trusts it.

use std::{fmt, sync::Arc, time::Duration};

use horos_wire::NodeName;
use http::uri::PathAndQuery;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;

use super::{ClientOf, Origin, Prefix};

/// Bytes that one stream of HTTP/2 may send before the other end has taken them. A connection has as much for each of its streams,
/// so a client that does not take its answer holds up nobody else's.
pub const STREAM_WINDOW: u32 = 256 * 1024;

/// What is spoken with the owner.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Version {
    /// HTTP/2 where TLS agrees on it, else HTTP/1.1. Without TLS: HTTP/1.1.
    #[default]
    Negotiated,
    /// HTTP/1.1 only.
    Http1,
    /// HTTP/2 only, without TLS too.
    Http2,
}

/// How requests are passed on to the owner.
#[derive(Clone)]
pub struct Config {
    /// The owner's port. Without TLS on loopback only.
    pub owner: Origin,
    /// How the owner proves who it is, for `https`: `horos_link::tls::Tls::https` checks the identity in a certificate of the
    /// cluster. The protocols (ALPN) are set here.
    pub tls: Option<Arc<ClientConfig>>,
    /// The name that the owner's certificate is checked for. Default the host of `owner`; the cluster's certificates have none.
    pub server_name: Option<ServerName<'static>>,
    /// What is spoken with it.
    pub version: Version,
    /// This node: in `Via`, by which a loop is noticed, and in the cookie's name.
    pub node: NodeName,
    /// The path under which clients find what is passed on; what is passed on comes without it. Default `/`.
    pub at: Prefix,
    /// The path under which the owner has it. Default `/`.
    pub to: Prefix,
    /// What clients call this node; the owner may build links from it. Default nothing is said: whatever a client writes into `Host`
    /// is not repeated.
    pub public: Option<Origin>,
    /// Who sent a request. Default nobody knows, and the owner counts it as this node's own.
    pub client: ClientOf,
    /// The cookie by which browsers read what they wrote, without a line of code.
    pub cookie: Option<Cookie>,
    /// What [`super::WriteProxy::watch`] asks the owner for; 200 is the one answer that means ready. Default `/readyz`.
    pub probe: PathAndQuery,
    /// How much is taken on.
    pub limits: Limits,
    /// How long things may take.
    pub timeouts: Timeouts,
}

/// The cookie that carries a bookmark from a browser's write to its reads: `HttpOnly`, `Secure`, `SameSite=Lax`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cookie {
    /// How long a browser brings it: longer than a replica is ever behind, or a write may be missed. Default 2 min.
    pub max_age: Duration,
    /// The same where the position is unknown, and all reads go to the owner as long. Default 15 s.
    pub unknown_max_age: Duration,
}

impl Default for Cookie {
    fn default() -> Self {
        Self { max_age: Duration::from_secs(120), unknown_max_age: Duration::from_secs(15) }
    }
}

/// How much is taken on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a request's body. Default 8 MiB.
    pub body: u64,
    /// Requests on their way at once, from their head to the end of their answer; one more is answered 503. Default 256.
    pub in_flight: usize,
    /// HTTP/2 connections among which they are spread. Default 4: 64 streams each, where the owner's port takes 128.
    pub connections: usize,
    /// HTTP/1.1 connections that are kept for the next request. Default 32.
    pub idle: usize,
    /// HTTP/1.1 connections that are being opened at once. Default 16.
    pub dials: usize,
    /// Bytes of an answer's head. Default 64 KiB.
    pub head: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { body: 8 * 1024 * 1024, in_flight: 256, connections: 4, idle: 32, dials: 16, head: 64 * 1024 }
    }
}

impl Limits {
    /// Streams of one connection: together they carry all that is in flight.
    pub(super) fn streams(&self) -> usize {
        self.in_flight.div_ceil(self.connections)
    }
}

/// How long things may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// The owner's answer, from the request's head to the answer's; a caller's own deadline counts where it is sooner. Default 30 s.
    pub answer: Duration,
    /// Opening a connection: name, TCP, TLS. Default 3 s.
    pub connect: Duration,
    /// Between two parts of an answer's body. Default 60 s.
    pub stalled: Duration,
    /// How long an HTTP/1.1 connection is kept without a request. Default 30 s: half of what the owner's port keeps it.
    pub idle: Duration,
    /// Between two looks whether the owner is ready. Default 2 s.
    pub probe: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        let s = Duration::from_secs;
        Self { answer: s(30), connect: s(3), stalled: s(60), idle: s(30), probe: s(2) }
    }
}

/// Why a [`Config`] cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// What is passed on holds credentials.
    #[error("{0} is neither https nor this machine: requests with their credentials would go over the network in clear")]
    Plain(String),
    /// Nothing says how the owner proves who it is.
    #[error("{0} is https, and nothing says by which certificate it is known")]
    NoTls(String),
    /// The owner's host is no name that TLS could check.
    #[error("{0} is no name that a certificate could have")]
    Name(String),
    /// One of [`Limits`] is zero.
    #[error("a limit is 0: nothing could ever be passed on")]
    Zero,
}

impl Config {
    /// The defaults, for the owner at `owner` and the node `node` that passes requests on.
    pub fn new(owner: Origin, node: NodeName) -> Self {
        Self {
            owner,
            tls: None,
            server_name: None,
            version: Version::default(),
            node,
            at: Prefix::default(),
            to: Prefix::default(),
            public: None,
            client: Arc::new(|_| None),
            cookie: Some(Cookie::default()),
            probe: PathAndQuery::from_static("/readyz"),
            limits: Limits::default(),
            timeouts: Timeouts::default(),
        }
    }

    /// Whether all of it fits together.
    ///
    /// # Errors
    /// [`ConfigError`], for whoever wrote the configuration.
    pub fn check(&self) -> Result<(), ConfigError> {
        let Limits { in_flight, connections, dials, head, .. } = self.limits;
        match (self.owner.is_secure(), &self.tls) {
            (true, None) => return Err(ConfigError::NoTls(self.owner.to_string())),
            (false, _) if !self.owner.is_loopback() => return Err(ConfigError::Plain(self.owner.to_string())),
            _ => {}
        }
        if in_flight == 0 || connections == 0 || dials == 0 || head == 0 {
            return Err(ConfigError::Zero);
        }
        self.name().map(drop)
    }

    /// The name that TLS asks for.
    pub(super) fn name(&self) -> Result<ServerName<'static>, ConfigError> {
        match &self.server_name {
            Some(name) => Ok(name.clone()),
            None => ServerName::try_from(self.owner.host().to_owned()).map_err(|_| ConfigError::Name(self.owner.host().to_owned())),
        }
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("owner", &self.owner)
            .field("version", &self.version)
            .field("node", &self.node)
            .field("at", &self.at)
            .field("to", &self.to)
            .field("public", &self.public)
            .field("cookie", &self.cookie)
            .field("limits", &self.limits)
            .field("timeouts", &self.timeouts)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(owner: &str) -> Config {
        Config::new(owner.parse().unwrap(), "fo-1".parse().unwrap())
    }

    #[test]
    fn credentials_go_over_the_network_by_tls_only_and_to_somebody_who_is_known() {
        assert!(matches!(config("http://192.0.2.7:7400").check(), Err(ConfigError::Plain(_))));
        assert!(matches!(config("https://192.0.2.7:7400").check(), Err(ConfigError::NoTls(_))));
        for loopback in ["http://127.0.0.1:7400", "http://[::1]:7400", "http://localhost:7400"] {
            assert_eq!(config(loopback).check(), Ok(()));
        }
    }

    #[test]
    fn no_limit_is_nothing_at_all() {
        let mut config = config("http://127.0.0.1:7400");
        config.limits.connections = 0;
        assert_eq!(config.check(), Err(ConfigError::Zero));
        assert_eq!(Limits { in_flight: 10, connections: 4, ..Limits::default() }.streams(), 3);
    }
}

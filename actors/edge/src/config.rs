//! How the port behaves. Checked by whoever reads configuration; trusted here.

use std::{net::IpAddr, time::Duration};

/// How the port behaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// How much is taken on.
    pub limits: Limits,
    /// How long things may take.
    pub timeouts: Timeouts,
    /// Addresses that are believed whom they speak for, as networks: address and prefix length. Default none.
    pub trusted_proxies: Vec<(IpAddr, u8)>,
    /// Where they say it. Default [`Forwarded::XForwardedFor`].
    pub forwarded: Forwarded,
    /// Who may read answers from other origins; none by default.
    pub cors: Cors,
    /// The port that `Alt-Svc` offers HTTP/3 at; `None` for the one that is listened on, 0 to offer none.
    pub alt_svc: Option<u16>,
    /// Browsers are told to come by HTTPS only for so long (RFC 6797). Default a year; zero says nothing.
    pub hsts: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            timeouts: Timeouts::default(),
            trusted_proxies: Vec::new(),
            forwarded: Forwarded::default(),
            cors: Cors::default(),
            alt_svc: None,
            hsts: Duration::from_secs(365 * 24 * 3600),
        }
    }
}

/// The one header in which a trusted proxy says whom it speaks for. A proxy that keeps one passes the other on as the client
/// wrote it, so never both are believed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Forwarded {
    /// `X-Forwarded-For`, as most proxies write it.
    #[default]
    XForwardedFor,
    /// `Forwarded` (RFC 7239).
    Forwarded,
}

/// How much is taken on; whoever comes beyond is refused, and counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections over TCP, and again over QUIC. At the limit those that have been idle longest make room. Default 16,384.
    pub connections: usize,
    /// Of them from one address (an IPv6 /64 counts as one); loopback and trusted proxies are exempt. Default 256.
    pub connections_per_address: usize,
    /// TLS handshakes in progress over TCP; an eighth of them from one address. Default 512.
    pub handshakes: usize,
    /// Requests in hand, from their head to the end of their answer, over all versions; probes and administration are exempt.
    /// Default 16,384, as connections: with one request each they do not reach it.
    pub in_flight: usize,
    /// Of them from one address (an IPv6 /64 counts as one); trusted proxies' clients count by their own addresses, and loopback
    /// is exempt. Default 512: four connections of HTTP/2 that are used to their limit.
    pub in_flight_per_address: usize,
    /// Requests at once on one HTTP/2 or HTTP/3 connection. Default 128.
    pub streams: u32,
    /// Bytes of one request's head. Default 32 KiB.
    pub head: usize,
    /// Header fields in it. Default 100.
    pub fields: usize,
    /// Bytes of one request's body, where the mounted service has no limit of its own. Default 8 MiB.
    pub body: u64,
    /// Requests a minute from one address (an IPv6 /64 counts as one), 0 for no limit; trusted proxies' clients count by
    /// their own addresses, and loopback is exempt. Default 60,000: an office behind one address, at a thousand a second.
    pub per_address: u32,
    /// Requests a minute by one key or user that has no limit of its own, 0 for no limit. Default 0: a key was given to
    /// somebody on purpose, and a limit with it where one is wanted.
    pub per_identity: u32,
    /// Wrong credentials a minute from one address, beyond which it is told to wait before any is looked at. Default 30.
    pub guesses_per_address: u32,
    /// Addresses that are counted at a time, and again identities, and addresses that guess; some 80 bytes each. Who owes least is
    /// forgotten first, and whoever comes in its place takes over what it owed. Default 65,536.
    pub counted: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 16_384,
            connections_per_address: 256,
            handshakes: 512,
            in_flight: 16_384,
            in_flight_per_address: 512,
            streams: 128,
            head: 32 * 1024,
            fields: 100,
            body: 8 * 1024 * 1024,
            per_address: 60_000,
            per_identity: 0,
            guesses_per_address: 30,
            counted: 65_536,
        }
    }
}

/// How long things may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// A TLS handshake over TCP. Default 5 s.
    pub handshake: Duration,
    /// The head of a request, from its first byte. Default 10 s.
    pub head: Duration,
    /// Between two parts of a request's body. Default 15 s.
    pub body: Duration,
    /// A service's answer, from the request's head to the answer's; also the deadline in the call context. A client may ask for
    /// less with `Request-Timeout`, in seconds. Default 30 s.
    pub answer: Duration,
    /// Without any part of an answer being taken by the client. Default 30 s.
    pub stalled: Duration,
    /// A connection without a request. Default 60 s; over QUIC at most 30 s.
    pub idle: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        let s = Duration::from_secs;
        Self { handshake: s(5), head: s(10), body: s(15), answer: s(30), stalled: s(30), idle: s(60) }
    }
}

/// Which other origins may read answers (Fetch standard §3.2).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cors {
    /// Exact origins such as `https://shop.example.org`; empty allows none. `*` allows every origin, without credentials.
    pub origins: Vec<Box<str>>,
    /// Whether cookies and client certificates may go along; never with `*`.
    pub credentials: bool,
    /// How long a browser may remember the answer. Default nothing.
    pub max_age: Duration,
}

//! What is known of a connection, and the reasons for which one is refused or ended.

use std::{fmt, net::SocketAddr};

use crate::Plane;

/// An HTTP version, as metrics and logs name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Version {
    /// HTTP/1.1, and 1.0.
    Http1,
    /// HTTP/2.
    Http2,
    /// HTTP/3.
    Http3,
}

impl Version {
    /// Every version.
    pub const ALL: [Self; 3] = [Self::Http1, Self::Http2, Self::Http3];

    /// `h1`, `h2` or `h3`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http1 => "h1",
            Self::Http2 => "h2",
            Self::Http3 => "h3",
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The other end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its address on the connection itself; that of a proxy, where there is one.
    pub address: SocketAddr,
    /// What it speaks.
    pub version: Version,
    /// Which listener it came to: [`Plane::Both`] where one address serves both.
    pub plane: Plane,
    /// Whether TLS protects it: always but for plain HTTP on loopback. Only then are browsers told to insist on HTTPS and
    /// where HTTP/3 is.
    pub tls: bool,
}

/// Why a connection or a request was refused or ended early. Each is a counter, by its [name](Reason::as_str).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// No room for another connection.
    ConnectionsFull,
    /// Too many connections from one address.
    AddressFull,
    /// Too many handshakes in progress.
    HandshakesFull,
    /// Too many handshakes in progress from one address.
    AddressHandshakesFull,
    /// A handshake that did not end in time.
    HandshakeTimeout,
    /// A handshake that failed.
    HandshakeFailed,
    /// A protocol that nobody serves here, or none.
    UnknownProtocol,
    /// The head of a request did not come in time.
    SlowHead,
    /// The body of a request stopped coming.
    SlowBody,
    /// The client does not take its answers.
    SlowReader,
    /// Ended to make room, or after its time without a request.
    Idle,
    /// The head of a request is too large.
    HeadTooLarge,
    /// The body of a request is too large.
    BodyTooLarge,
    /// More streams opened and cancelled than a client has reason to.
    ResetFlood,
    /// A frame larger than any has reason to be.
    FrameTooLarge,
    /// More frames or streams that carry nothing than a client has reason to send.
    FrameFlood,
    /// Not the protocol that it claims to be.
    Protocol,
    /// A request that names no host, several, or none that can be one.
    BadHost,
    /// A target that is none, or that two readers could take for two.
    BadPath,
    /// A body whose length is said wrongly, or in two ways.
    BadLength,
    /// A header field that is none, or not of the request's version.
    BadField,
    /// An idempotency key that is none.
    BadIdempotencyKey,
    /// Too many requests in hand.
    Overloaded,
    /// Too many requests in hand from one address.
    AddressOverloaded,
    /// Too many requests from one address.
    RateAddress,
    /// Too many requests by one key or user.
    RateIdentity,
    /// Too many wrong credentials from one address.
    RateGuesses,
    /// No credential where one is wanted, or one that proves nobody.
    Unauthenticated,
    /// A credential without the scope that is wanted.
    Forbidden,
    /// Maintenance.
    Maintenance,
    /// The service did not answer in time.
    Deadline,
    /// The service panicked.
    Panic,
    /// The node is stopping.
    Draining,
}

impl Reason {
    /// Every reason.
    pub const ALL: [Self; 33] = [
        Self::ConnectionsFull,
        Self::AddressFull,
        Self::HandshakesFull,
        Self::AddressHandshakesFull,
        Self::HandshakeTimeout,
        Self::HandshakeFailed,
        Self::UnknownProtocol,
        Self::SlowHead,
        Self::SlowBody,
        Self::SlowReader,
        Self::Idle,
        Self::HeadTooLarge,
        Self::BodyTooLarge,
        Self::ResetFlood,
        Self::FrameTooLarge,
        Self::FrameFlood,
        Self::Protocol,
        Self::BadHost,
        Self::BadPath,
        Self::BadLength,
        Self::BadField,
        Self::BadIdempotencyKey,
        Self::Overloaded,
        Self::AddressOverloaded,
        Self::RateAddress,
        Self::RateIdentity,
        Self::RateGuesses,
        Self::Unauthenticated,
        Self::Forbidden,
        Self::Maintenance,
        Self::Deadline,
        Self::Panic,
        Self::Draining,
    ];

    /// Its name in metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ConnectionsFull => "connections_full",
            Self::AddressFull => "address_full",
            Self::HandshakesFull => "handshakes_full",
            Self::AddressHandshakesFull => "address_handshakes_full",
            Self::HandshakeTimeout => "handshake_timeout",
            Self::HandshakeFailed => "handshake_failed",
            Self::UnknownProtocol => "unknown_protocol",
            Self::SlowHead => "slow_head",
            Self::SlowBody => "slow_body",
            Self::SlowReader => "slow_reader",
            Self::Idle => "idle",
            Self::HeadTooLarge => "head_too_large",
            Self::BodyTooLarge => "body_too_large",
            Self::ResetFlood => "reset_flood",
            Self::FrameTooLarge => "frame_too_large",
            Self::FrameFlood => "frame_flood",
            Self::Protocol => "protocol",
            Self::BadHost => "bad_host",
            Self::BadPath => "bad_path",
            Self::BadLength => "bad_length",
            Self::BadField => "bad_field",
            Self::BadIdempotencyKey => "bad_idempotency_key",
            Self::Overloaded => "overloaded",
            Self::AddressOverloaded => "address_overloaded",
            Self::RateAddress => "rate_address",
            Self::RateIdentity => "rate_identity",
            Self::RateGuesses => "rate_guesses",
            Self::Unauthenticated => "unauthenticated",
            Self::Forbidden => "forbidden",
            Self::Maintenance => "maintenance",
            Self::Deadline => "deadline",
            Self::Panic => "panic",
            Self::Draining => "draining",
        }
    }
}

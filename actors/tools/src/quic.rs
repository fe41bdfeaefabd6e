//! MCP over QUIC: the door by which clients come in, and the transport with which this node is a client of others.
//!
//! ALPN `mcp-quic-v1`, or `horos-mcp-v1`, which is the same. The client opens a two-way stream, writes [`MAGIC`], and then both sides write
//! JSON-RPC, a message a line. That is all that the Go system does, and its clients work.
//!
//! A client that offers the experimental capability [`STREAMS`] in `initialize` or `server/discover`, and finds it in the answer, may
//! further open a stream for each request: [`MAGIC`], one line with the request, FIN. What belongs to the request comes back there, the
//! answer last, FIN. So a slow tool or a large result delays nobody. A client that no longer wants the answer resets the stream or stops
//! it, which is `notifications/cancelled` in other words. Notifications and answers of the client go over the first stream.
//!
//! Whoever comes shows a certificate of the cluster in TLS, or a key or token in `_meta` under [`KEY`] of its first request. Nobody else
//! reaches a handler.
//!
//! | what comes | what becomes of it |
//! |---|---|
//! | nobody proved by the first request | `-32001`, then the connection is closed with [`Close::Unauthenticated`] |
//! | no stream, magic or request within [`Times`] | [`Close::Violation`] |
//! | a line beyond [`MAX_MESSAGE`] | `-32600` "message too large"; its stream is stopped with [`Reset::TooLarge`]; on the first stream the connection is closed with [`Close::Violation`] |
//! | a line that is not UTF-8, or not JSON | `-32700`; the session goes on, until there have been [`STRIKES`] in a row |
//! | JSON of another shape, an id in use | `-32600`; likewise |
//! | a stream beyond what was negotiated | reset and stopped with [`Reset::Confused`] |
//! | more requests, or bytes of them, than [`Bounds`] allow | `-32000`; nothing was done |
//! | a peer that does not read its answers | [`Close::Limit`] |
//! | no message for [`Times::idle`], and no request in hand | [`Close::Done`]; QUIC's own PINGs are no messages |
//! | the node stops | what is in hand is answered, what comes is refused with `-32000`, then [`Close::Done`] |

mod auth;
mod bounds;
mod client;
mod close;
mod counts;
mod dialer;
mod door;
mod lines;
pub(crate) mod message;
mod observed;
mod outbox;
mod session;
mod streams;
mod table;
mod transport;

pub use self::{
    bounds::{Bounds, Times},
    client::{DialError, DialOptions, SendError, Transport, connect, dial, transport_config},
    close::{Close, Reset},
    dialer::Dialer,
    door::{Door, Options},
    observed::Observed,
};

pub(crate) use self::{
    lines::{Lines, Turns},
    message::Refusal,
    outbox::write,
    streams::too_large,
};

/// The protocol's names in TLS: the Go system's, and ours.
pub const ALPNS: [&[u8]; 2] = [b"mcp-quic-v1", b"horos-mcp-v1"];
/// What a client's streams begin with. The Go system's, and so one way only.
pub const MAGIC: [u8; 4] = *b"MCP1";
/// Largest message in bytes, its newline not counted: the Go system's figure.
pub const MAX_MESSAGE: usize = 10 << 20;
/// The experimental capability by which a stream a request is agreed on.
pub const STREAMS: &str = "horos/streams";
/// Where in `_meta` a client of the stateless generation says what it can (MCP 2026-07-28).
const META_CAPABILITIES: &str = "io.modelcontextprotocol/clientCapabilities";
/// Where in `_meta` a client shows its key or token.
pub const KEY: &str = "horos/key";
/// Bad lines in a row before a session is closed: someone who echoes what we say must not keep both ends busy.
pub const STRIKES: u32 = 16;

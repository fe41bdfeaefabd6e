//! HTTP between a front office (FO) and the node that owns the data (its BO): what writes is passed on to the owner, and whoever
//! wrote reads what was written.
//!
//! Nothing here is an actor and nothing listens: these are `tower` services on `http` types, made and mounted by `nodes`. The one
//! loop, [`WriteProxy::watch`], is run by a worker of the node's supervisor.
//!
//! | on the | service | does |
//! |---|---|---|
//! | FO | [`ByMethod`] | sends what only reads one way and what writes the other |
//! | FO | [`WriteProxy`] | passes a request on to the owner's port, and the answer back |
//! | FO | [`RedirectToOwner`] | sends the client there itself (307) instead |
//! | FO | [`WaitForPosition`] | lets a read wait until the replica has what its client wrote, or asks the owner |
//! | BO | [`StampPosition`] | says with each answer to a write how far the log of changes had got: `X-Sync-Position` |
//!
//! **Promises.**
//! - A request that may have had an effect is never sent twice. One that was not sent (refused connection, dead connection in the
//!   pool) is tried once more. Every failure says which of the two it is, in its problem details (RFC 9457): `"effect": "none"` or
//!   `"unknown"`.
//! - What a client says about where it comes from (`Forwarded`, `X-Forwarded-…` and their like) reaches nobody. The owner is told the
//!   address that this node knows, in both usual forms; where the page was asked for is taken from the configuration, never from
//!   `Host`.
//! - Requests and answers are framed anew: `Transfer-Encoding`, `Content-Length` and what `Connection` names are not passed on, so
//!   the two ends cannot be made to disagree about where a message ends.
//! - Bodies stream both ways, and nothing is kept but what is on its way: at most [`Limits::in_flight`] requests, each with
//!   [`STREAM_WINDOW`] bytes each way.
//! - Failures close: a position that cannot be told is `unknown`, and whoever brings it back reads from the owner.
//!
//! **What the owner's node must be told.** It believes what is said about clients only by the nodes whose addresses stand in its
//! `http.trusted-proxies`: list the addresses that its FOs connect from, `/32` or `/128` each, and nobody else's. Either value of
//! `http.forwarded` will do. Rates, audit and `X-Request-ID` then go by the client. Without it the owner takes an FO for one client.
//! The mount on the FO is public (`Access::Public`): the owner asks for the key or token itself, and a mount that asks for one
//! takes it out of the head.

mod body;
mod bookmark;
mod by_method;
mod config;
mod forward;
mod head;
mod health;
mod origin;
mod pool;
mod problem;
mod ration;
mod redirect;
mod stamp;
mod stats;
mod wait;

use std::{convert::Infallible, net::IpAddr, sync::Arc};

use bytes::Bytes;
use http::Response;
use http_body_util::combinators::UnsyncBoxBody;

pub use bookmark::{Bookmark, BookmarkError, MAX_BOOKMARK, MAX_MARKS, X_SYNC_POSITION};
pub use by_method::ByMethod;
pub use config::{Config, ConfigError, Cookie, Limits, STREAM_WINDOW, Timeouts, Version};
pub use forward::WriteProxy;
pub use health::{Owner, Why};
pub use origin::{Origin, OriginError, Prefix, PrefixError};
pub use problem::Effect;
pub use redirect::RedirectToOwner;
pub use stamp::{Heads, StampPosition, Stamped, Stamps};
pub use stats::{ReadStats, Stats};
pub use wait::{NotReached, Positions, ReadLimits, WaitForPosition, Waiting};

/// Whatever a body may fail with.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The body of an answer.
pub type Body = UnsyncBoxBody<Bytes, BoxError>;

/// What a service's `call` comes to: it never fails, it answers.
pub type Answer = Result<Response<Body>, Infallible>;

/// Tells who sent a request from its extensions, where whoever serves HTTP has put it: the client, past the proxies that this node
/// itself trusts.
pub type ClientOf = Arc<dyn Fn(&http::Extensions) -> Option<IpAddr> + Send + Sync>;

/// A body of any kind as the one kind.
fn boxed<B>(body: B) -> Body
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    use http_body_util::BodyExt as _;
    body.map_err(Into::into).boxed_unsync()
}

/// Nothing.
fn empty() -> Body {
    boxed(http_body_util::Empty::new())
}

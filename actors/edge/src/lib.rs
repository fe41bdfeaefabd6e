//! The one port: HTTP/1.1 and HTTP/2 over TCP, HTTP/3 over QUIC, and what every request goes through before it
//! reaches a mounted service.
//!
//! Started by `nodes`. Other crates hand in `tower::Service`s on `http` types ([`Mount`]); axum shows nowhere else.
//! Nothing here knows what a key is: whoever can tell is an [`Authenticator`].

mod authenticate;
mod config;
mod drain;
mod metrics;
mod mount;
mod seen;

pub use authenticate::{Authenticator, Credential};
pub use axum::body::Body;
pub use config::{Config, Cors, Limits, Timeouts};
pub use drain::{Drain, Phase};
pub use metrics::{ConnectionGuard, HandshakeGuard, Metrics};
pub use mount::{Access, BoxError, Mount, MountError, Plane};
pub use seen::{Peer, Reason, Version};

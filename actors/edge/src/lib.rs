//! The one port: HTTP/1.1 and HTTP/2 over TCP, HTTP/3 over QUIC, and what every request goes through before it
//! reaches a mounted service.
//!
//! Started by `nodes`. Other crates hand in `tower::Service`s on `http` types ([`Mount`]); axum shows nowhere else.
//! Nothing here knows what a key is: whoever can tell is an [`Authenticator`].

mod app;
mod authenticate;
mod certificates;
mod client;
mod config;
mod connections;
mod drain;
mod edge;
mod guard;
mod h3;
mod health;
mod maintenance;
mod metrics;
mod mount;
mod problem;
mod rate;
mod seen;
mod tcp;

pub use app::{App, AppParts};
pub use authenticate::{Authenticator, Credential};
pub use axum::body::Body;
#[cfg(feature = "acme")]
pub use certificates::Acme;
pub use certificates::{CertificateError, Inspected, Source, inspect};
pub use client::Client;
pub use config::{Config, Cors, Forwarded, Limits, Timeouts};
pub use drain::{Drain, Phase};
pub use edge::{Edge, EdgeError, Listener, Parts};
pub use guard::Held;
pub use h3::Http3;
pub use health::{Condition, Conditions, MAX_CONDITIONS, MAX_REASON, Standing};
pub use maintenance::{MAX_MESSAGE, Maintenance, Notice};
pub use metrics::{ConnectionGuard, HandshakeGuard, Metrics};
pub use mount::{Access, BoxError, MAX_ANSWER, Mount, MountError, Plane};
pub use seen::{Peer, Reason, Version};
pub use tcp::{ListenError, Sockets, Transport};

//! The link between nodes: one QUIC endpoint, mutual TLS with node identity, and peer sessions.
//!
//! Started by `nodes`. Everything that runs here is an actor under the link's supervisor: the accept loop, the
//! dialer, gossip, and a session for each connection. Nothing here knows what the messages mean: names and
//! protocols come from the node's exchange and policy.

mod bulk;
mod config;
mod dial;
mod endpoint;
pub mod identity;
mod inbound;
mod link;
mod membership;
mod out;
mod peer;
mod peers;
mod streams;
pub mod tls;
mod window;

pub use config::{Admission, Config, Parts, Secret};
pub use endpoint::{ALPN, AlpnHandler, Endpoint, EndpointError, socket, transport};
pub use link::Limits;
pub use membership::TreeDigest;
pub use peers::{Known, Peers};

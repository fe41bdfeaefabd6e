//! The link between nodes: one QUIC endpoint, mutual TLS with node identity, and peer sessions.
//!
//! Started by `nodes`. Everything that runs here is an actor under the link's supervisor: the accept loop, the
//! dialer, gossip, a session for each node's connection, and the owner of the connections of other protocols, which are
//! served by whoever is registered for their ALPN. Nothing here knows what the messages mean: names and
//! protocols come from the node's exchange and policy.

mod bulk;
mod config;
mod counters;
mod dial;
mod door;
mod endpoint;
mod gone;
pub mod identity;
mod inbound;
mod link;
mod membership;
mod out;
mod peer;
mod peers;
mod public;
mod ration;
mod served;
mod streams;
pub mod tls;
mod transport;
mod window;

pub use config::{Admission, Config, Parts, Secret};
pub use counters::{AdmissionCounters, IdentitiesRefused};
pub use endpoint::{ALPN, Endpoint, EndpointError};
pub use link::Limits;
pub use membership::TreeDigest;
pub use peers::{Known, Peers};
pub use public::PublicEndpoint;
pub use served::{AlpnHandler, Handlers};
pub use transport::{accepting, socket, transport};

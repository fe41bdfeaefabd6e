//! MCP over real QUIC: clients of rmcp, of the Go system and by hand, peers that do as they like, and bystanders whose calls go on.

mod bridge;
mod clients;
mod hostile;
mod measure;
mod raw;
pub(crate) mod world;

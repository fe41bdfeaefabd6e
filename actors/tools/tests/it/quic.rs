//! MCP over real QUIC: clients of rmcp, of the Go system and by hand, peers that do as they like, and bystanders whose calls go on.

mod clients;
pub(crate) mod world;

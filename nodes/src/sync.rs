//! Replication on this node: what it publishes of its databases, and what it keeps replicas of.

mod layout;

pub use layout::{FILE, LayoutError, MAX_LISTED, MAX_NAME, Party, Publication, Replica, SyncLayout};

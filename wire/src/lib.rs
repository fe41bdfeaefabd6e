//! What is said between actors and between nodes: protocols, addresses, call context, errors, codec,
//! frames, and the session between two nodes as a state machine.
//!
//! Pure: nothing here opens a file or a socket, spawns a task, or reads a clock. Whoever drives a
//! state machine passes `now` and the bytes, and carries out what comes back. That is what lets one
//! seeded test play thousands of hostile schedules a second.

pub mod address;
pub mod bulk;
pub mod codec;
pub mod context;
pub mod control;
pub mod error;
pub mod frame;
pub mod go;
pub mod hex;
pub mod id;
pub mod policy;
pub mod principal;
pub mod protocol;
pub mod session;
pub mod tree;

pub use address::{ActorName, Address, ClusterName, Incarnation, NodeId, NodeName, Role, Scope};
pub use bulk::Bulk;
pub use bytes::Bytes;
pub use codec::Format;
pub use context::{CallContext, TraceId};
pub use error::{CallError, NoEffect, Unknown};
pub use protocol::{Methods, Never, Protocol, Request, Visit};

#[doc(hidden)]
pub mod macro_support {
    pub use schemars;
}

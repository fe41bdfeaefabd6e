//! The Model Context Protocol: tools as rows of `control.db`, for whoever speaks MCP over HTTP, QUIC or a pipe, and the other end of it,
//! a client by which routes lead to other people's tools.
//!
//! ```text
//! row ──check──▶ definition ──┐                       ┌─ http   a tower service, for the node's port
//!   (row, kind, arguments)    ├─ registry ─▶ tools ◀──┼─ quic   a door for `mcp-quic-v1` and `horos-mcp-v1`
//! protocols of actors ────────┘                       └─ stdio  a bridge to the door
//! ```
//!
//! [`Tools`] is the one way by which anything is listed or called: who asks is a [`Caller`], the policy decides, arguments are checked, the
//! deadline is kept, and every outcome is written down. Transports bring callers and take answers away, and decide nothing.

pub mod actor;
pub mod admin;
mod arguments;
pub mod audit;
mod caller;
pub mod client;
mod definition;
mod error;
pub mod http;
mod kind;
pub mod native;
pub mod operate;
mod pass_on;
mod policy;
pub mod quic;
mod registry;
pub mod reload;
mod row;
mod schema;
mod search;
pub mod server;
pub mod sql;
pub mod stdio;
mod strategy;
mod tools;

pub use rmcp;

pub use self::{
    caller::{Caller, Credential, Transport, Verify, Who},
    definition::{Behaviour, Definition, Mode, Spec},
    error::ToolError,
    kind::{Call, Kind, Kinds, Made, Output, Run},
    pass_on::{PassOn, ToNode},
    policy::{Policy, Rule, View},
    registry::{MAX_TOOLS, Registry, Snapshot, Taken, Wrong},
    row::{Problem, Row},
    schema::TOOLS_MIGRATIONS,
    strategy::Mcp,
    tools::{Counters, Durations, LONGEST, Listed, Options, Tools},
};

//! Promises of the router kept end to end: two nodes as processes, real sockets, routes edited in SQLite by other processes.
//!
//! The conventions are those of `tests/main.rs`; a binary of its own, because its full counts take as long as all the rest.
#![expect(clippy::unwrap_used, reason = "all of this is a test, but clippy's own exemption ends at `#[test]` functions")]

#[path = "router/edits.rs"]
mod edits;
#[path = "router/endpoints.rs"]
mod endpoints;
#[path = "router/flips.rs"]
mod flips;
mod harness;
#[path = "router/inside.rs"]
mod inside;
#[path = "router/killed.rs"]
mod killed;
#[path = "router/misbehaviour.rs"]
mod misbehaviour;
#[path = "router/rows.rs"]
mod rows;
#[path = "router/world.rs"]
mod world;

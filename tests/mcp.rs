//! Promises of MCP kept end to end: two nodes as processes, real sockets, tools and rules written by SQLite's own shell.
//!
//! The conventions are those of `tests/main.rs`; a binary of its own, because its full counts take as long as all the rest.
#![expect(clippy::unwrap_used, reason = "all of this is a test, but clippy's own exemption ends at `#[test]` functions")]

#[path = "mcp/commands.rs"]
mod commands;
mod harness;
#[path = "mcp/lasting.rs"]
mod lasting;
#[path = "mcp/operate.rs"]
mod operate;
#[path = "mcp/places.rs"]
mod places;
#[path = "mcp/ports.rs"]
mod ports;
#[path = "mcp/programs.rs"]
mod programs;
#[path = "mcp/rows.rs"]
mod rows;
#[path = "mcp/stdio.rs"]
mod stdio;
#[path = "mcp/world.rs"]
mod world;

//! Promises of MCP kept end to end, as others see it: the official conformance suite asks our server and is asked by our client, and the
//! official SDKs connect.
//!
//! The conventions are those of `tests/main.rs`; a binary of its own, because the suite's fixtures are mounted nowhere else.
#![expect(clippy::unwrap_used, reason = "all of this is a test, but clippy's own exemption ends at `#[test]` functions")]
#![expect(deprecated, reason = "what 2026-07-28 has removed, clients of the revisions before it still ask for")]

mod harness;

mod conformance {
    mod bridge;
    mod client;
    mod exceptions;
    mod fixtures;
    mod front;
    mod sdks;
    mod server;
    mod suite;
    mod world;
}

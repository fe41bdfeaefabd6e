//! Promises kept end to end: real processes, real sockets, real clients. A module per promise.
//!
//! Conventions: a test's name is the promise; it waits by polling a state ([`harness::poll_state`]) or
//! for a line of a process's output, never by sleeping; it draws its randomness from
//! [`harness::seed`], which prints it; it asks [`harness::scale`] how much to do. A test that
//! measures time or memory lives in a module called `measured`: nothing else runs beside it.
#![expect(clippy::unwrap_used, reason = "all of this is a test, but clippy's own exemption ends at `#[test]` functions")]

mod command_line;
mod copies;
mod dbsync;
mod drills;
mod edge;
mod faults;
mod five;
mod harness;
mod killed;
mod machine;
mod outside;
mod relay;
mod relay_faults;
mod rights;
mod routes;
mod stopping;
mod up;

//! What the store promises, with real files, threads and processes.

#![expect(clippy::unwrap_used, reason = "a test's helpers, too, fail by panicking")]

mod backups;
mod opening;
mod reading;
mod support;
mod watching;
mod writing;

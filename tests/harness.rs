//! What every end-to-end test stands on: processes that never outlive it, states polled with a
//! limit, seeds, and the amounts to do.
//!
//! The network is loopback; 127.0.0.2, 127.0.0.3, … stand for other hosts.
#![allow(dead_code, reason = "a tool box: each promise uses a part of it")]

pub(crate) mod cli;
pub(crate) mod clients;
mod guard;
pub(crate) mod http;
pub(crate) mod node;
pub(crate) mod output;
pub(crate) mod outside;
pub(crate) mod poll;
pub(crate) mod process;
mod proof;
pub(crate) mod site;

pub(crate) use node::{Cluster, Node};
pub(crate) use poll::poll_state;
pub(crate) use process::Process;
pub(crate) use site::Site;

use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::path::Path;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tempfile::TempDir;

/// The operator's command line, as Cargo built it for this run.
pub(crate) const HOROS: &str = env!("CARGO_BIN_EXE_horos");
/// The back-office node's own binary.
pub(crate) const HOROS_BO: &str = env!("CARGO_BIN_EXE_horos-bo");
/// The front-office node's own binary.
pub(crate) const HOROS_FO: &str = env!("CARGO_BIN_EXE_horos-fo");

/// How much to do: `normal` on every change, `full` under `tests/run --full`, which does what the
/// promise names (10 million casts, 10 s of silence) and not a sample of it.
pub(crate) fn scale<T>(normal: T, full: T) -> T {
    if std::env::var_os("HOROS_TEST_FULL").is_some_and(|value| value == "1") { full } else { normal }
}

/// The directory, below the target directory, of the profile that Cargo built all of this with: its name, but `debug` for `dev`.
///
/// # Panics
/// When Cargo has changed how it lays out its target directory.
pub(crate) fn profile() -> &'static str {
    Path::new(HOROS).parent().and_then(Path::file_name).and_then(|name| name.to_str()).expect("TARGET/PROFILE/horos")
}

/// Whether nodes and tests are optimised, as under `tests/run --full`: what time is promised is then looked at closely.
pub(crate) fn optimised() -> bool {
    profile() != "debug"
}

/// Lets this process have as many open files as it may.
///
/// # Panics
/// When those are fewer than `wanted`: a test of 10,000 connections that makes do with fewer has shown nothing.
pub(crate) fn open_files(wanted: u64) {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("one's own limit can be read");
    assert!(hard >= wanted, "{wanted} open files are needed and {hard} allowed: raise the limit (ulimit -Hn, or LimitNOFILE)");
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("the soft limit may be raised to the hard one");
    }
}

/// The seed of a random test, printed so that a failure can be repeated.
///
/// `HOROS_TEST_SEED` (decimal) decides it; without it every call draws another.
///
/// # Panics
/// When `HOROS_TEST_SEED` is not a decimal `u64`: testing something else than asked would be worse.
pub(crate) fn seed() -> u64 {
    let seed = match std::env::var_os("HOROS_TEST_SEED") {
        Some(text) => text
            .to_str()
            .and_then(|text| text.parse().ok())
            .unwrap_or_else(|| panic!("HOROS_TEST_SEED is {text:?}: give a decimal number below 2^64")),
        None => RandomState::new().hash_one("seed"),
    };
    eprintln!("seed {seed}: repeat with HOROS_TEST_SEED={seed}");
    seed
}

/// An empty directory that goes away with its owner.
///
/// # Panics
/// When the temporary file system refuses.
pub(crate) fn data_dir() -> TempDir {
    tempfile::Builder::new().prefix("horos-test-").tempdir().expect("the temporary directory is writable")
}

/// An address of `host` whose TCP and UDP port were free a moment ago, for what must be written into a
/// configuration before the node binds it. Where a node can bind port 0, prefer that.
///
/// # Panics
/// When `host` is not of this machine.
pub(crate) fn free_address(host: impl Into<IpAddr>) -> SocketAddr {
    let host = host.into();
    let free = (0..16).find_map(|_| {
        let listener = TcpListener::bind((host, 0)).expect("loopback has a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        UdpSocket::bind(address).is_ok().then_some(address)
    });
    free.expect("some port is free for TCP and UDP alike")
}

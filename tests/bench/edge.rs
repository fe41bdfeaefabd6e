//! The one port: HTTP/1.1, 2 and 3 with all that a request goes through, beside bare axum and bare h3; keys; idle connections.
//!
//! `cargo bench --bench edge [-- METRIC… --rounds N --quick --ours]`. Two processes, a core each: the server, ours or
//! the floor's, and this one, which is the load. Every round visits both, now one first and now the other.

#[path = "edge/asked.rs"]
mod asked;
#[path = "edge/floor.rs"]
mod floor;
#[path = "edge/frames.rs"]
mod frames;
#[path = "edge/keys.rs"]
mod keys;
#[path = "edge/load.rs"]
mod load;
mod machine;
#[allow(dead_code, reason = "what `wire` needs besides")]
mod memory;
#[path = "edge/ours.rs"]
mod ours;
#[allow(dead_code, reason = "what `local` needs besides")]
mod program;
#[allow(dead_code, reason = "what `wire` needs besides")]
mod report;
#[path = "edge/server.rs"]
mod server;

use std::{path::Path, process::ExitCode, time::Duration};

use crate::{
    keys::Million,
    load::{Load, Version},
    machine::{Awake, CLIENT_CORE},
    ours::Layout,
    report::{Arguments, Goal, Metric},
    server::{Kind, Server},
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What is loaded, and the names of what comes of it.
const LOADS: [(Version, Layout, [&str; 2]); 4] = [
    (Version::Http1, Layout::Split, ["http1", "http1_cpu"]),
    (Version::Http2, Layout::Split, ["http2", "http2_cpu"]),
    (Version::Http3, Layout::Split, ["http3", "http3_cpu"]),
    (Version::Http3, Layout::Single, ["http3_single", "http3_single_cpu"]),
];

const METRICS: [&str; 11] = [
    "http1",
    "http1_cpu",
    "http2",
    "http2_cpu",
    "http3",
    "http3_cpu",
    "http3_single",
    "http3_single_cpu",
    "key_lookup",
    "idle_connection_rss",
    "idle_connection_rss_http2",
];

/// A server that is less busy was not what limited the rate.
const BUSY: f64 = 0.95;
/// Idle connections whose memory is measured, after others that a server's first ones are compared with.
const IDLE: usize = 2_000;
const BEFORE: usize = 200;

fn main() -> anyhow::Result<ExitCode> {
    let given: Vec<String> = std::env::args().skip(1).collect();
    match given.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["bo", ..] => return ours::main(),
        ["--floor", directory] => server::serve_floor(Path::new(directory))?,
        ["--spin", core] => machine::spin(core.parse()?)?,
        _ => measure()?,
    }
    Ok(ExitCode::SUCCESS)
}

fn measure() -> anyhow::Result<()> {
    let arguments = Arguments::read(&METRICS)?;
    let directory = tempfile::tempdir()?;
    server::set_up(directory.path())?;
    let _awake = Awake::keep();
    machine::pin(CLIENT_CORE)?;
    throughput(&arguments, directory.path())?;
    key_lookup(&arguments, directory.path())?;
    idle(&arguments, directory.path())
}

/// Does `ours` and `floor` in turn, in every round and in one before that warms up.
fn rounds<T>(
    arguments: &Arguments,
    ours: impl Fn() -> anyhow::Result<T>,
    floor: impl Fn() -> anyhow::Result<T>,
    mut each: impl FnMut(usize, T, T),
) -> anyhow::Result<()> {
    for round in 0..=arguments.rounds {
        if !arguments.floor {
            // For a profiler: both are ours.
            each(round, ours()?, ours()?);
        } else if round.is_multiple_of(2) {
            let ours = ours()?;
            each(round, ours, floor()?);
        } else {
            let floor = floor()?;
            each(round, ours()?, floor);
        }
    }
    Ok(())
}

fn throughput(arguments: &Arguments, directory: &Path) -> anyhow::Result<()> {
    let span = Duration::from_secs(1) / if arguments.quick { 5 } else { 1 };
    let load = Load::new(directory)?;
    for (version, layout, [rate, cpu]) in LOADS {
        if !arguments.wants(&[rate, cpu]) {
            continue;
        }
        let (ours, floor) = (Server::start(Kind::Ours(layout), directory)?, Server::start(Kind::Floor, directory)?);
        let mut rate = Metric::new(rate, "requests/s", Goal::RatioAtLeast(0.8));
        let mut cpu = Metric::new(cpu, "us/request", Goal::RatioAtMost(1.25));
        let (mut busy, mut floor_busy) = (Vec::new(), Vec::new());
        let run = |server| load.run(version, server, span);
        rounds(
            arguments,
            || run(&ours),
            || run(&floor),
            |round, ours, floor| {
                rate.beside(ours.rate, floor.rate);
                cpu.beside(ours.cpu_us, floor.cpu_us);
                busy.push(ours.busy);
                floor_busy.push(floor.busy);
                if round == 0 {
                    rate.forget();
                    cpu.forget();
                }
            },
        )?;
        rate.print()?;
        cpu.print()?;
        for (whose, busy) in [("our", busy), ("the floor's", floor_busy)] {
            let busy = report::quantile(&busy, 0.5);
            let told = if busy < BUSY { "; the load did not fill it, so rates say less than processor time" } else { "" };
            eprintln!("#   {whose} server's core was busy for {:.0} % of the time{told}", busy * 100.0);
        }
    }
    Ok(())
}

fn key_lookup(arguments: &Arguments, directory: &Path) -> anyhow::Result<()> {
    if !arguments.wants(&["key_lookup"]) {
        return Ok(());
    }
    let part = if arguments.quick { 20 } else { 1 };
    let mut million = Million::make(directory, 1_000_000 / part)?;
    let mut metric = Metric::new("key_lookup", "us", Goal::AtMost(20.0));
    for round in 0..=arguments.rounds {
        metric.round(million.lookup(20_000 / part)?);
        if round == 0 {
            metric.forget();
        }
    }
    metric.print()
}

/// Memory that one round left behind would hide what the next needs, so each has servers of its own.
fn idle(arguments: &Arguments, directory: &Path) -> anyhow::Result<()> {
    let load = Load::new(directory)?;
    for (version, name) in [(Version::Http1, "idle_connection_rss"), (Version::Http2, "idle_connection_rss_http2")] {
        if !arguments.wants(&[name]) {
            continue;
        }
        let mut metric = Metric::new(name, "KiB", Goal::AtMost(32.0));
        let connections = if arguments.quick { IDLE / 4 } else { IDLE };
        let grown = |kind| {
            let server = Server::start(kind, directory)?;
            let memory = || memory::of(server.pid(), "VmRSS:");
            // What the first connections bring into memory, code and pools, is no connection's own.
            load.hold(version, &server, BEFORE, || Ok(()))?;
            let before = memory()?;
            let after = load.hold(version, &server, connections, memory)?;
            anyhow::Ok(after.saturating_sub(before) as f64 / connections as f64 / 1024.0)
        };
        rounds(
            arguments,
            || grown(Kind::Ours(Layout::Split)),
            || grown(Kind::Floor),
            |round, ours, floor| {
                metric.beside(ours, floor);
                if round == 0 {
                    metric.forget();
                }
            },
        )?;
        metric.print()?;
    }
    Ok(())
}

//! Between two nodes: calls, casts and bodies through the public API, beside raw quinn.
//!
//! `cargo bench --bench wire [-- METRIC… --rounds N --quick]`. Two processes, a core each; every round visits
//! every way of doing a thing once, so that what the machine does to one it does to all. What is one after
//! the other in a round is compared, round by round.

mod floor;
mod load;
mod machine;
mod memory;
mod node;
mod process;
mod report;

use std::path::Path;

use anyhow::Context as _;

use crate::{
    load::{Pair, Rounds},
    machine::{Awake, CLIENT_CORE},
    node::Layout,
    report::{Arguments, Goal, Metric},
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const METRICS: [&str; 11] = [
    "remote_call_p50",
    "remote_calls_64",
    "remote_calls_512",
    "remote_casts",
    "remote_casts_default",
    "remote_calls_64_default",
    "remote_cpu",
    "small_beside_paced_p99",
    "small_beside_saturating_p99",
    "bulk",
    "flood_rss",
];

fn main() -> anyhow::Result<()> {
    let given: Vec<String> = std::env::args().skip(1).collect();
    match given.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--serve", layout, directory] => {
            let layout = if layout == Layout::Single.name() { Layout::Single } else { Layout::Default };
            return process::serve(layout, Path::new(directory));
        }
        ["--spin", core] => return machine::spin(core.parse()?),
        ["--flood", directory] => return load::flood(Path::new(directory)),
        _ => {}
    }
    let arguments = Arguments::read(&METRICS)?;
    let directory = tempfile::tempdir()?;
    node::identities(directory.path())?;
    let _awake = Awake::keep();
    machine::pin(CLIENT_CORE)?;
    measure(&arguments, directory.path())
}

fn measure(arguments: &Arguments, directory: &Path) -> anyhow::Result<()> {
    let single = Pair::start(directory, Layout::Single)?;
    let rounds = Rounds::new(arguments);

    if arguments.wants(&["remote_call_p50"]) {
        let mut metric = Metric::new("remote_call_p50", "us", Goal::RatioAtMost(1.05));
        rounds.each(|round| {
            let (ours, floor) = round.alternate(|| single.call_latencies(rounds.calls), || single.echo_latencies(rounds.calls))?;
            metric.beside(ours.p50, floor.p50);
            round.done(&mut [&mut metric])
        })?;
        metric.print()?;
    }
    let casting = arguments.wants(&["remote_casts", "remote_casts_default"]);
    let calling = arguments.wants(&["remote_calls_64", "remote_calls_64_default", "remote_cpu"]);
    let default = if arguments.wants(&["remote_casts_default", "remote_calls_64_default"]) {
        Some(Pair::start(directory, Layout::Default)?)
    } else {
        None
    };
    if calling {
        let mut calls = Metric::new("remote_calls_64", "calls/s", Goal::RatioAtLeast(2.5));
        let mut in_default = Metric::new("remote_calls_64_default", "calls/s", Goal::RatioAtLeast(0.4));
        let mut cpu = Metric::new("remote_cpu", "us/call", Goal::AtMost(2.0));
        rounds.each(|round| {
            let (ours, floor) = round.alternate(|| single.calls(64, rounds.span), || single.floor_calls(64, rounds.span))?;
            calls.beside(ours.rate, floor.rate);
            cpu.beside(ours.cpu_us, floor.cpu_us);
            if let Some(default) = &default {
                in_default.beside(default.calls(64, rounds.span)?.rate, ours.rate);
            }
            round.done(&mut [&mut calls, &mut in_default, &mut cpu])
        })?;
        calls.print()?;
        in_default.print()?;
        cpu.print()?;
    }
    if arguments.wants(&["remote_calls_512"]) {
        let mut metric = Metric::new("remote_calls_512", "calls/s", Goal::RatioAtLeast(1.8));
        rounds.each(|round| {
            let (ours, floor) = round.alternate(|| single.calls(512, rounds.span), || single.floor_calls(512, rounds.span))?;
            metric.beside(ours.rate, floor.rate);
            round.done(&mut [&mut metric])
        })?;
        metric.print()?;
    }
    if casting {
        let mut casts = Metric::new("remote_casts", "casts/s", Goal::AtLeast(2_000_000.0));
        let mut in_default = Metric::new("remote_casts_default", "casts/s", Goal::RatioAtLeast(0.4));
        rounds.each(|round| {
            let ours = single.casts(rounds.casts)?;
            casts.round(ours);
            if let Some(default) = &default {
                in_default.beside(default.casts(rounds.casts)?, ours);
            }
            round.done(&mut [&mut casts, &mut in_default])
        })?;
        casts.print()?;
        in_default.print()?;
    }
    drop(default);
    if arguments.wants(&["small_beside_paced_p99", "small_beside_saturating_p99"]) {
        let mut paced = Metric::new("small_beside_paced_p99", "us", Goal::RatioAtMost(5.0));
        let mut saturating = Metric::new("small_beside_saturating_p99", "us", Goal::RatioAtMost(12.0));
        rounds.each(|round| {
            let idle = single.call_latencies(rounds.calls)?;
            let (beside, sent) = single.calls_beside(1, Some(load::PACE), rounds.span)?;
            eprintln!("#   beside {:.0} MB/s: p50 {:.0} us, p99 {:.0} us; idle p99 {:.0} us", sent / 1e6, beside.p50, beside.p99, idle.p99);
            paced.beside(beside.p99, idle.p99);
            let (beside, sent) = single.calls_beside(16, None, rounds.span)?;
            eprintln!("#   beside {:.0} MB/s: p50 {:.0} us, p99 {:.0} us", sent / 1e6, beside.p50, beside.p99);
            saturating.beside(beside.p99, idle.p99);
            round.done(&mut [&mut paced, &mut saturating])
        })?;
        paced.print()?;
        saturating.print()?;
    }
    if arguments.wants(&["bulk"]) {
        let mut metric = Metric::new("bulk", "MB/s", Goal::RatioAtLeast(0.97));
        rounds.each(|round| {
            let (ours, floor) = round.alternate(|| single.bulk(rounds.chunks), || single.floor_bulk(rounds.chunks))?;
            metric.beside(ours, floor);
            round.done(&mut [&mut metric])
        })?;
        metric.print()?;
    }
    drop(single);
    if arguments.wants(&["flood_rss"]) {
        let mut metric = Metric::new("flood_rss", "MiB", Goal::AtMost(16.0));
        // Memory that one round left behind would hide what the next needs, so each has processes of its own.
        for _ in 0..arguments.rounds {
            let flood = std::process::Command::new(std::env::current_exe()?).arg("--flood").arg(directory).output()?;
            eprint!("{}", String::from_utf8_lossy(&flood.stderr));
            anyhow::ensure!(flood.status.success(), "the flood ended with {}", flood.status);
            metric.round(String::from_utf8(flood.stdout)?.trim().parse().context("the flood's figure")?);
        }
        metric.print()?;
    }
    Ok(())
}

//! One node: a typed call beside a bare ractor call, how soon a service is back, how soon a node is ready, and what it holds.
//!
//! `cargo bench --bench local [-- METRIC… --rounds N --quick]`.

mod alone;
#[allow(dead_code, reason = "what `wire` needs besides")]
mod memory;
#[allow(dead_code, reason = "what `wire` needs besides")]
mod node;
mod program;
#[allow(dead_code, reason = "what `wire` needs besides")]
mod report;

use crate::report::{Arguments, Goal, Metric};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const METRICS: [&str; 4] = ["local_call_p50", "restart_p50", "ready", "idle_rss"];

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::read(&METRICS)?;
    let directory = tempfile::tempdir()?;
    node::identities(directory.path())?;
    let part = if arguments.quick { 10 } else { 1 };
    let deaths = 20 / part;
    let alone = alone::Alone::start(directory.path(), deaths * (arguments.rounds + 1))?;
    if arguments.wants(&["local_call_p50"]) {
        let mut metric = Metric::new("local_call_p50", "us", Goal::RatioAtMost(2.0));
        for round in 0..=arguments.rounds {
            // The first one warms up.
            if round == 1 {
                metric.forget();
            }
            let (ours, floor) = alone.calls(10_000 / part)?;
            metric.beside(ours, floor);
        }
        metric.print()?;
    }
    if arguments.wants(&["restart_p50"]) {
        let mut metric = Metric::new("restart_p50", "ms", Goal::AtMost(10.0));
        // What a panic prints is not what is measured.
        std::panic::set_hook(Box::new(|_| {}));
        for round in 0..=arguments.rounds {
            if round == 1 {
                metric.forget();
            }
            metric.round(alone.restarts(deaths * round..deaths * (round + 1))?);
        }
        metric.print()?;
    }
    if arguments.wants(&["ready", "idle_rss"]) {
        let mut ready = Metric::new("ready", "ms", Goal::AtMost(300.0));
        let mut idle = Metric::new("idle_rss", "MiB", Goal::AtMost(40.0));
        let data = directory.path().join("bo");
        program::set_up(&data)?;
        for round in 0..=arguments.rounds {
            // The first one makes its databases.
            if round == 1 {
                ready.forget();
                idle.forget();
            }
            let node = program::Started::start(&data)?;
            ready.round(node.ready.as_secs_f64() * 1e3);
            idle.round(node.idle_memory()? as f64 / f64::from(1 << 20));
            node.stop()?;
        }
        ready.print()?;
        idle.print()?;
    }
    Ok(())
}

//! Within one node: a typed call beside a bare ractor call, and how soon a service is back.
//!
//! `cargo bench --bench local [-- METRIC… --rounds N --quick]`.

mod alone;
#[allow(dead_code, reason = "what `wire` needs besides")]
mod node;
#[allow(dead_code, reason = "what `wire` needs besides")]
mod report;

use crate::report::{Arguments, Goal, Metric};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const METRICS: [&str; 2] = ["local_call_p50", "restart_p50"];

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
    Ok(())
}

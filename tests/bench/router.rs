//! Calls by route: what a route costs a call here and over QUIC, how soon an edited row is in force, and the gateway.
//!
//! `cargo bench --bench router [-- METRIC… --rounds N --quick --ours]`. What is compared is done in turn in every round, now one
//! first and now the other. Times of changed routes run from before the `UPDATE`, so its commit is in them.

#[allow(dead_code, reason = "what `local` needs besides")]
mod alone;
#[path = "router/asked.rs"]
mod asked;
#[path = "router/cluster.rs"]
mod cluster;
#[path = "router/floor.rs"]
mod floor;
#[allow(dead_code, reason = "what `edge` needs besides")]
#[path = "edge/frames.rs"]
mod frames;
#[allow(dead_code, reason = "what `edge` needs besides")]
#[path = "edge/load.rs"]
mod load;
#[allow(dead_code, reason = "what `wire` needs besides")]
mod machine;
#[allow(dead_code, reason = "what `local` needs besides")]
mod memory;
#[allow(dead_code, reason = "what `wire` needs besides")]
mod node;
#[path = "router/ours.rs"]
mod ours;
#[path = "router/placed.rs"]
mod placed;
#[allow(dead_code, reason = "what `local` needs besides")]
mod program;
#[path = "router/quic.rs"]
mod quic;
#[allow(dead_code, reason = "what `wire` needs besides")]
mod report;
#[path = "edge/server.rs"]
mod server;
#[path = "router/world.rs"]
mod world;

use std::{path::Path, process::ExitCode, time::Duration};

use crate::{
    cluster::Cluster,
    load::{Load, Version},
    machine::{Awake, CLIENT_CORE},
    ours::Layout,
    quic::Pair,
    report::{Arguments, Goal, Metric, quantile},
    server::{Kind, Server},
    world::World,
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const METRICS: [&str; 11] = [
    "routed_local_extra",
    "routed_quic",
    "route_change_same",
    "route_change_same_p99",
    "route_change_other",
    "route_change_other_node",
    "reload_10k",
    "reload_10k_others_p99",
    "gateway",
    "gateway_single",
    "gateway_own",
];

/// Routes of a reload.
const ROUTES: usize = 10_000;

fn main() -> anyhow::Result<ExitCode> {
    let given: Vec<String> = std::env::args().skip(1).collect();
    match given.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["bo" | "fo" | "call", ..] => return ours::main(&given[0]),
        ["--floor", directory] => server::serve_floor(Path::new(directory))?,
        ["--serve", directory] => quic::serve(Path::new(directory))?,
        ["--spin", core] => machine::spin(core.parse()?)?,
        _ => measure()?,
    }
    Ok(ExitCode::SUCCESS)
}

fn measure() -> anyhow::Result<()> {
    let arguments = Arguments::read(&METRICS)?;
    let directory = tempfile::tempdir()?;
    let _awake = Awake::keep();
    local(&arguments)?;
    change_same(&arguments, directory.path())?;
    reload(&arguments, directory.path())?;
    change_other(&arguments, directory.path())?;
    // From here on processes have a core each.
    machine::pin(CLIENT_CORE)?;
    quic(&arguments, directory.path())?;
    gateway(&arguments, directory.path())
}

/// Does `ours` and `floor` in turn, in every round and in one before that warms up.
fn rounds<T>(
    arguments: &Arguments,
    ours: impl Fn() -> anyhow::Result<T>,
    floor: impl Fn() -> anyhow::Result<T>,
    mut each: impl FnMut(T, T),
    warm: impl FnOnce(),
) -> anyhow::Result<()> {
    let mut warm = Some(warm);
    for round in 0..=arguments.rounds {
        if !arguments.floor {
            // For a profiler: both are ours.
            each(ours()?, ours()?);
        } else if round.is_multiple_of(2) {
            let ours = ours()?;
            each(ours, floor()?);
        } else {
            let floor = floor()?;
            each(ours()?, floor);
        }
        if let Some(warm) = warm.take() {
            warm();
        }
    }
    Ok(())
}

fn local(arguments: &Arguments) -> anyhow::Result<()> {
    if !arguments.wants(&["routed_local_extra"]) {
        return Ok(());
    }
    let world = World::start()?;
    let mut metric = Metric::new("routed_local_extra", "us", Goal::AtMost(1.0));
    let mut by_hand = Vec::new();
    for round in 0..=arguments.rounds {
        if round == 1 {
            metric.forget();
            by_hand.clear();
        }
        let figures = world.calls(if arguments.quick { 1_000 } else { 10_000 }, arguments.floor)?;
        metric.beside(figures.routed - figures.bare, figures.bare);
        by_hand.push(figures.typed - figures.bare);
    }
    metric.print()?;
    eprintln!("#   of that a call through a typed reference, without a route, adds {:.3} us", quantile(&by_hand, 0.5));
    Ok(())
}

fn change_same(arguments: &Arguments, directory: &Path) -> anyhow::Result<()> {
    if !arguments.wants(&["route_change_same", "route_change_same_p99"]) {
        return Ok(());
    }
    let world = World::start()?;
    world.follow(&directory.join("same.db"))?;
    let mut middle = Metric::new("route_change_same", "ms", Goal::AtMost(5.0));
    let mut last = Metric::new("route_change_same_p99", "ms", Goal::AtMost(100.0));
    for round in 0..=arguments.rounds {
        if round == 1 {
            middle.forget();
            last.forget();
        }
        let (seen, committed) = world.changes(if arguments.quick { 20 } else { 100 })?;
        middle.beside(quantile(&seen, 0.5), quantile(&committed, 0.5));
        last.beside(quantile(&seen, 0.99), quantile(&committed, 0.99));
    }
    middle.print()?;
    last.print()?;
    eprintln!("#   the floor is the commit alone");
    Ok(())
}

fn reload(arguments: &Arguments, directory: &Path) -> anyhow::Result<()> {
    if !arguments.wants(&["reload_10k", "reload_10k_others_p99"]) {
        return Ok(());
    }
    let world = World::start()?;
    let table = world.table(&directory.join("many.db"), ROUTES)?;
    let mut took = Metric::new("reload_10k", "ms", Goal::AtMost(10.0));
    let mut others = Metric::new("reload_10k_others_p99", "us", Goal::RatioAtMost(2.0));
    for round in 0..=arguments.rounds {
        if round == 1 {
            took.forget();
            others.forget();
        }
        let reloads = if arguments.quick { 5 } else { 30 };
        let (ours, floor): (Vec<_>, Vec<_>) = (0..reloads).map(|_| table.reload()).collect::<anyhow::Result<Vec<_>>>()?.into_iter().unzip();
        took.beside(quantile(&ours, 0.5), quantile(&floor, 0.5));
        let span = Duration::from_secs(1) / if arguments.quick { 5 } else { 1 };
        let (during, idle) = table.others(&world, span)?;
        others.beside(during, idle);
    }
    took.print()?;
    eprintln!("#   the floor is SQLite's own time to step through the rows");
    others.print()
}

fn change_other(arguments: &Arguments, directory: &Path) -> anyhow::Result<()> {
    if !arguments.wants(&["route_change_other", "route_change_other_node"]) {
        return Ok(());
    }
    let cluster = Cluster::start(&directory.join("nodes"))?;
    let mut process = Metric::new("route_change_other", "ms", Goal::AtMost(100.0));
    let mut node = Metric::new("route_change_other_node", "ms", Goal::AtMost(100.0));
    let span = Duration::from_secs(if arguments.quick { 6 } else { 15 });
    let mut middles: [Vec<f64>; 3] = Default::default();
    for round in 0..=arguments.rounds {
        if round == 1 {
            process.forget();
            node.forget();
        }
        let figures = cluster.changes(span)?;
        let [here, there, committed] = figures.each_ref().map(|times| quantile(times, 0.99));
        process.beside(here, committed);
        node.beside(there, committed);
        middles.iter_mut().zip(figures).for_each(|(all, times)| all.extend(times));
    }
    process.print()?;
    node.print()?;
    let [here, there, committed] = middles.map(|times| quantile(&times, 0.5));
    eprintln!(
        "#   medians: {here:.1} ms in another process, {there:.1} ms on another node; the floor is the commit alone, {committed:.1} ms"
    );
    Ok(())
}

fn quic(arguments: &Arguments, directory: &Path) -> anyhow::Result<()> {
    if !arguments.wants(&["routed_quic"]) {
        return Ok(());
    }
    let directory = directory.join("pair");
    std::fs::create_dir(&directory)?;
    node::identities(&directory)?;
    let pair = Pair::start(&directory)?;
    let mut metric = Metric::new("routed_quic", "us", Goal::RatioAtMost(1.1));
    for round in 0..=arguments.rounds {
        if round == 1 {
            metric.forget();
        }
        let (routed, direct) = pair.calls(if arguments.quick { 2_000 } else { 20_000 }, arguments.floor)?;
        metric.beside(routed, direct);
    }
    metric.print()
}

fn gateway(arguments: &Arguments, directory: &Path) -> anyhow::Result<()> {
    // The same node with a handler of axum under the port: what is the gateway's own, and not the port's.
    let compared = [
        ("gateway", Kind::Ours(Layout::Split), Kind::Floor),
        ("gateway_single", Kind::Ours(Layout::Single), Kind::Floor),
        ("gateway_own", Kind::Ours(Layout::Single), Kind::Ours(Layout::Mount)),
    ];
    if !arguments.wants(&compared.map(|(name, ..)| name)) {
        return Ok(());
    }
    let directory = directory.join("gateway");
    std::fs::create_dir(&directory)?;
    server::set_up(&directory)?;
    let load = Load::new(&directory)?;
    let span = Duration::from_secs(1) / if arguments.quick { 5 } else { 1 };
    for (name, ours, floor) in compared {
        if !arguments.wants(&[name]) {
            continue;
        }
        let (ours, floor) = (Server::start(ours, &directory)?, Server::start(floor, &directory)?);
        let metric = std::cell::RefCell::new(Metric::new(name, "requests/s", Goal::RatioAtLeast(0.85)));
        let cpu = std::cell::RefCell::new((Vec::new(), Vec::new()));
        rounds(
            arguments,
            || load.run(Version::Http1, &ours, span),
            || load.run(Version::Http1, &floor, span),
            |ours, floor| {
                metric.borrow_mut().beside(ours.rate, floor.rate);
                cpu.borrow_mut().0.push(ours.cpu_us);
                cpu.borrow_mut().1.push(floor.cpu_us);
            },
            || {
                metric.borrow_mut().forget();
                *cpu.borrow_mut() = (Vec::new(), Vec::new());
            },
        )?;
        metric.borrow().print()?;
        let (ours, floor) = &*cpu.borrow();
        eprintln!("#   processor time a request: {:.2} us, the floor's {:.2} us", quantile(ours, 0.5), quantile(floor, 0.5));
    }
    Ok(())
}

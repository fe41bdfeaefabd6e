//! Tools by MCP: calls over QUIC and HTTP/2, how soon a row can be called, and the list of ten thousand.
//!
//! `cargo bench --bench mcp [-- METRIC… --rounds N --quick --ours]`. The tool is a row: a query of one line of SQL, under its allow-list and
//! written down in the audit like any call. The clients send what was written down once and read no more of an answer than tells that it is
//! the right one, so that it is the node that is measured.

#[path = "mcp/floor.rs"]
mod floor;
#[path = "mcp/http2.rs"]
mod http2;
#[allow(dead_code, reason = "what `wire` needs besides")]
mod machine;
#[allow(dead_code, reason = "what `local` needs besides")]
mod memory;
#[path = "mcp/places.rs"]
mod places;
#[allow(dead_code, reason = "what `local` needs besides")]
mod program;
#[path = "mcp/quic.rs"]
mod quic;
#[allow(dead_code, reason = "what `wire` needs besides")]
mod report;
#[path = "mcp/server.rs"]
mod server;

use std::{
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

use crate::{
    http2::Http2,
    machine::{Awake, CLIENT_CORE},
    quic::Session,
    report::{Arguments, Goal, Metric, quantile},
    server::{QUERY, READS, SLOW, Server, WAITS},
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const METRICS: [&str; 8] = [
    "tool_call_p50",
    "tool_calls_64",
    "tool_calls_http2_64",
    "tool_p99_beside_waiting",
    "tool_p99_beside_reading",
    "tool_visible_p99",
    "tools_page",
    "tools_search",
];
/// Calls in hand at a time.
const IN_FLIGHT: usize = 64;
/// Tools of the long list.
const TOOLS: usize = 9_990;

fn main() -> anyhow::Result<ExitCode> {
    let given: Vec<String> = std::env::args().skip(1).collect();
    match given.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["bo", ..] => return places::main(),
        ["--floor", directory] => floor::main(Path::new(directory))?,
        ["--spin", core] => machine::spin(core.parse()?)?,
        _ => measure()?,
    }
    Ok(ExitCode::SUCCESS)
}

fn measure() -> anyhow::Result<()> {
    let arguments = Arguments::read(&METRICS)?;
    let directory = tempfile::tempdir()?;
    let _awake = Awake::keep();
    machine::pin(CLIENT_CORE)?;
    server::set_up(directory.path())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let ours = Server::start(directory.path())?;
        let floor = floor::Floor::start(directory.path()).await?;
        one_at_a_time(&arguments, &ours, &floor).await?;
        many(&arguments, &ours, &floor).await?;
        by_http2(&arguments, &ours).await?;
        beside_slow(&arguments, &ours).await?;
        visible(&arguments, &ours).await?;
        long_list(&arguments, &ours).await
    })
}

async fn one_at_a_time(arguments: &Arguments, ours: &Server, floor: &floor::Floor) -> anyhow::Result<()> {
    if !arguments.wants(&["tool_call_p50"]) {
        return Ok(());
    }
    let mut metric = Metric::new("tool_call_p50", "us", Goal::AtMost(150.0));
    let calls = if arguments.quick { 1_000 } else { 5_000 };
    let mut session = Session::open(ours).await?;
    for round in 0..=arguments.rounds {
        if round == 1 {
            metric.forget();
        }
        let mut times = Vec::with_capacity(calls);
        for _ in 0..calls {
            let started = Instant::now();
            session.call(QUERY).await?;
            times.push(micros(started));
        }
        metric.beside(quantile(&times, 0.5), floor.one_at_a_time(calls).await?);
    }
    metric.print()?;
    eprintln!("#   the floor is as many bytes there and back over a stream of quinn");
    Ok(())
}

async fn many(arguments: &Arguments, ours: &Server, floor: &floor::Floor) -> anyhow::Result<()> {
    if !arguments.wants(&["tool_calls_64"]) {
        return Ok(());
    }
    let mut metric = Metric::new("tool_calls_64", "calls/s", Goal::AtLeast(20_000.0));
    let span = span(arguments);
    let mut session = Session::open(ours).await?;
    let mut cpu = Vec::new();
    for round in 0..=arguments.rounds {
        if round == 1 {
            metric.forget();
            cpu.clear();
        }
        let (before, started) = (machine::cpu(ours.pid())?, Instant::now());
        let answered = session.many(QUERY, IN_FLIGHT, span).await?;
        let rate = answered as f64 / started.elapsed().as_secs_f64();
        cpu.push((machine::cpu(ours.pid())? - before).as_secs_f64() * 1e6 / answered as f64);
        metric.beside(rate, floor.many(IN_FLIGHT, span).await?);
    }
    metric.print()?;
    eprintln!(
        "#   processor time a call: {:.1} us of the node's; the floor is lines of the same length over one stream",
        quantile(&cpu, 0.5)
    );
    Ok(())
}

async fn by_http2(arguments: &Arguments, ours: &Server) -> anyhow::Result<()> {
    if !arguments.wants(&["tool_calls_http2_64"]) {
        return Ok(());
    }
    let mut metric = Metric::new("tool_calls_http2_64", "calls/s", Goal::AtLeast(8_000.0));
    let mut cpu = Vec::new();
    let client = Http2::connect(ours).await?;
    for round in 0..=arguments.rounds {
        if round == 1 {
            metric.forget();
            cpu.clear();
        }
        let (before, started) = (machine::cpu(ours.pid())?, Instant::now());
        let answered = client.many(QUERY, IN_FLIGHT, span(arguments)).await?;
        metric.round(answered as f64 / started.elapsed().as_secs_f64());
        cpu.push((machine::cpu(ours.pid())? - before).as_secs_f64() * 1e6 / answered as f64);
    }
    metric.print()?;
    eprintln!("#   processor time a call: {:.1} us of the node's", quantile(&cpu, 0.5));
    Ok(())
}

/// Calls one at a time, alone and while a tool of [`SLOW`] is in hand on the same stream of the same connection: in each round the one,
/// then the other.
async fn beside_slow(arguments: &Arguments, ours: &Server) -> anyhow::Result<()> {
    for (name, slow) in [("tool_p99_beside_waiting", WAITS), ("tool_p99_beside_reading", READS)] {
        if !arguments.wants(&[name]) {
            continue;
        }
        let mut metric = Metric::new(name, "us", Goal::RatioAtMost(1.5));
        let mut session = Session::open(ours).await?;
        let span = if arguments.quick { SLOW / 20 } else { SLOW * 4 / 10 };
        for round in 0..=arguments.rounds {
            if round == 1 {
                metric.forget();
            }
            let alone = session.times(QUERY, span).await?;
            // Its answer would be taken for a wrong one: it is in hand all the time.
            let slow = session.begin(slow).await?;
            let beside = session.times(QUERY, span).await?;
            session.abandon(slow).await?;
            metric.beside(quantile(&beside, 0.99), quantile(&alone, 0.99));
        }
        metric.print()?;
    }
    eprintln!("#   the floor is the same calls with nothing beside them; client and node have a core each");
    Ok(())
}

/// From before the `INSERT` of another process to the first call that is answered.
async fn visible(arguments: &Arguments, ours: &Server) -> anyhow::Result<()> {
    if !arguments.wants(&["tool_visible_p99"]) {
        return Ok(());
    }
    let mut metric = Metric::new("tool_visible_p99", "ms", Goal::AtMost(100.0));
    let mut session = Session::open(ours).await?;
    let rows = if arguments.quick { 20 } else { 100 };
    let mut middles = Vec::new();
    let mut number = 0;
    for round in 0..=arguments.rounds {
        if round == 1 {
            metric.forget();
            middles.clear();
        }
        let mut times = Vec::with_capacity(rows);
        for _ in 0..rows {
            number += 1;
            let name = format!("new_{number}");
            let started = Instant::now();
            ours.insert(&[name.as_str()])?;
            while !session.exists(&name).await? {
                anyhow::ensure!(started.elapsed() < Duration::from_secs(10), "{name} is never there");
            }
            times.push(started.elapsed().as_secs_f64() * 1e3);
            // The watcher's next look is met anywhere.
            tokio::time::sleep(Duration::from_millis(23)).await;
        }
        metric.round(quantile(&times, 0.99));
        middles.push(quantile(&times, 0.5));
        ours.remove_new()?;
    }
    metric.print()?;
    eprintln!("#   median {:.1} ms", quantile(&middles, 0.5));
    Ok(())
}

async fn long_list(arguments: &Arguments, ours: &Server) -> anyhow::Result<()> {
    if !arguments.wants(&["tools_page", "tools_search"]) {
        return Ok(());
    }
    let names: Vec<String> = (0..TOOLS).map(|number| format!("many_{number:05}")).collect();
    ours.insert(&names.iter().map(String::as_str).collect::<Vec<_>>())?;
    let mut session = Session::open(ours).await?;
    let started = Instant::now();
    while !session.exists(&names[TOOLS - 1]).await? {
        anyhow::ensure!(started.elapsed() < Duration::from_secs(60), "the tools are never there");
    }
    eprintln!("#   {TOOLS} tools inserted at once are there after {:.0} ms", started.elapsed().as_secs_f64() * 1e3);
    let (mut page, mut search) =
        (Metric::new("tools_page", "ms", Goal::AtMost(20.0)), Metric::new("tools_search", "ms", Goal::AtMost(20.0)));
    for round in 0..=arguments.rounds {
        if round == 1 {
            page.forget();
            search.forget();
        }
        // Each round's client is a new one: the first page that it asks for.
        let mut session = Session::open(ours).await?;
        let started = Instant::now();
        let tools = session.page().await?;
        page.round(started.elapsed().as_secs_f64() * 1e3);
        anyhow::ensure!(tools > 50, "the first page has {tools} tools");
        let started = Instant::now();
        session.search("goods 4711").await?;
        search.round(started.elapsed().as_secs_f64() * 1e3);
    }
    page.print()?;
    search.print()
}

fn span(arguments: &Arguments) -> Duration {
    Duration::from_millis(if arguments.quick { 300 } else { 1_000 })
}

fn micros(since: Instant) -> f64 {
    since.elapsed().as_nanos() as f64 / 1e3
}

//! Replication, BO to FO: how soon and how fast, on a database of 1 GiB with 5 million rows.
//!
//! `cargo bench --bench dbsync [-- METRIC… --rounds N --quick]`. Three processes on the cores that there are: both nodes, and this
//! one, which writes to the BO's file as any other process may and reads the FO's.

#[path = "dbsync/cluster.rs"]
mod cluster;
#[path = "dbsync/database.rs"]
mod database;
#[allow(dead_code, reason = "what `wire` needs besides")]
mod floor;
#[allow(dead_code, reason = "what `edge` needs besides")]
mod machine;
mod memory;
#[allow(dead_code, reason = "what `wire` needs besides")]
mod node;
#[allow(dead_code, reason = "what `wire` needs besides")]
mod report;
#[path = "dbsync/watch.rs"]
mod watch;

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    path::Path,
    process::{Child, Command, ExitCode, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context as _;
use bytes::Bytes;
use horos_wire::Role;

use crate::{
    cluster::{Cluster, now},
    database::ROWS,
    floor::Floor,
    node::Layout,
    report::{Arguments, Goal, Metric, quantile},
    watch::Watch,
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const METRICS: [&str; 8] =
    ["cold_start", "visible_p99", "visible_foreign_p99", "row_changes", "one_row_bytes", "fo_read_p99", "publisher_rss", "subscriber_rss"];

/// For the FO to have everything, however much that is.
const CATCH_UP: Duration = Duration::from_secs(300);

fn main() -> anyhow::Result<ExitCode> {
    let given: Vec<String> = std::env::args().skip(1).collect();
    match given.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["bo" | "fo", ..] => return Ok(cluster::program(true)),
        ["sync" | "call", ..] => return Ok(cluster::program(false)),
        ["--floor", directory] => serve_floor(Path::new(directory))?,
        ["--spin", core] => machine::spin(core.parse()?)?,
        _ => measure()?,
    }
    Ok(ExitCode::SUCCESS)
}

fn measure() -> anyhow::Result<()> {
    let mut arguments = Arguments::read(&METRICS)?;
    // A round of the cold start moves the whole database twice.
    arguments.rounds = arguments.rounds.min(5);
    let part = if arguments.quick { 20 } else { 1 };
    let directory = tempfile::tempdir()?;
    let app = directory.path().join("app.db");
    let bytes = database::make(&app, ROWS / part)?;
    eprintln!("# the database: {} rows, {} MiB", ROWS / part, bytes >> 20);
    node::identities(&directory.path().join("floor"))?;
    let _awake = machine::Awake::keep();
    let mut cluster = Cluster::start(&directory.path().join("nodes"), &app)?;
    memory::forget_peak(cluster.bo.pid())?;
    cold_start(&arguments, &mut cluster, directory.path(), bytes)?;
    if cluster.fo.is_none() {
        cluster.start_fo()?;
    }
    cluster.caught_up(CATCH_UP)?;
    visible(&arguments, &cluster)?;
    visible_foreign(&arguments, &cluster)?;
    row_changes(&arguments, &cluster)?;
    one_row_bytes(&arguments, &cluster)?;
    fo_read(&arguments, &cluster, ROWS / part)?;
    rss(&arguments, &cluster)
}

/// From the FO's start with nothing to the whole database in its place, beside a copy by SQLite and a raw stream of it.
fn cold_start(arguments: &Arguments, cluster: &mut Cluster, directory: &Path, bytes: u64) -> anyhow::Result<()> {
    if !arguments.wants(&["cold_start"]) {
        return Ok(());
    }
    let megabytes = bytes as f64 / 1e6;
    let mut metric = Metric::new("cold_start", "MB/s", Goal::RatioAtLeast(0.7));
    let app = cluster.app();
    for round in 0..=arguments.rounds {
        let mut ours = || {
            cluster.forget_fo()?;
            let started = Instant::now();
            cluster.start_fo()?;
            // It appears whole, or not at all.
            while !cluster.public().exists() {
                anyhow::ensure!(started.elapsed() < CATCH_UP, "no replica after {} s", CATCH_UP.as_secs());
                std::thread::park_timeout(Duration::from_millis(2));
            }
            anyhow::Ok(megabytes / started.elapsed().as_secs_f64())
        };
        let (ours, floor) = if round % 2 == 0 {
            let ours = ours()?;
            (ours, copy_and_stream(directory, &app)?)
        } else {
            let floor = copy_and_stream(directory, &app)?;
            (ours()?, floor)
        };
        metric.beside(ours, megabytes / floor.as_secs_f64());
        if round == 0 {
            metric.forget();
        }
    }
    metric.print()
}

/// `VACUUM INTO`, and then the copy over one QUIC stream to a process that only reads it.
fn copy_and_stream(directory: &Path, app: &Path) -> anyhow::Result<Duration> {
    let copy = directory.join("copy.db");
    let started = Instant::now();
    database::reader(app)?.execute("VACUUM INTO ?1", [copy.to_str().context("a path in UTF-8")?])?;
    let copied = started.elapsed();
    let server = FloorProcess::start(&directory.join("floor"))?;
    let streamed = server.stream(&directory.join("floor"), &copy)?;
    std::fs::remove_file(copy)?;
    Ok(copied + streamed)
}

struct FloorProcess {
    child: Child,
    address: std::net::SocketAddr,
}

impl FloorProcess {
    fn start(identities: &Path) -> anyhow::Result<Self> {
        let me = std::env::current_exe()?;
        let mut child = Command::new(me).arg("--floor").arg(identities).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("stdout is piped")?).read_line(&mut line)?;
        Ok(Self { child, address: line.trim().parse().context("the floor did not start")? })
    }

    fn stream(&self, identities: &Path, file: &Path) -> anyhow::Result<Duration> {
        let tls = node::tls(identities, Role::Fo)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let floor = Floor::connect(&tls, self.address).await?;
            let mut file = std::fs::File::open(file)?;
            let started = Instant::now();
            let connection = floor.calls();
            let mut send = connection.open_uni().await?;
            let mut block = vec![0; 1 << 20];
            let mut sent = 0u64;
            loop {
                let read = file.read(&mut block)?;
                if read == 0 {
                    break;
                }
                send.write_chunk(Bytes::copy_from_slice(&block[..read])).await?;
                sent += read as u64;
            }
            send.finish()?;
            let answer = connection.accept_uni().await?.read_to_end(8).await?;
            anyhow::ensure!(answer == sent.to_le_bytes(), "not all of it arrived");
            Ok(started.elapsed())
        })
    }
}

impl Drop for FloorProcess {
    fn drop(&mut self) {
        // It holds nothing that a kill could harm.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn serve_floor(identities: &Path) -> anyhow::Result<()> {
    let runtimes = node::Runtimes::start(Layout::Single)?;
    let tls = node::tls(identities, Role::Bo)?;
    let address = node::wait(&runtimes.link, async move { floor::serve(&tls) })??;
    writeln!(std::io::stdout().lock(), "{address}")?;
    std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink())?;
    Ok(())
}

/// Commits through the BO's own writer, and until each is seen on the FO.
fn visible(arguments: &Arguments, cluster: &Cluster) -> anyhow::Result<()> {
    if !arguments.wants(&["visible_p99"]) {
        return Ok(());
    }
    let mut metric = Metric::new("visible_p99", "ms", Goal::AtMost(50.0));
    for round in 0..=arguments.rounds {
        let watch = Watch::start(&cluster.public())?;
        let committed = cluster.commit(1_000, if arguments.quick { 2 } else { 10 })?;
        cluster.caught_up(CATCH_UP)?;
        metric.round(quantile(&watch.since(&committed)?, 0.99));
        if round == 0 {
            metric.forget();
        }
    }
    metric.print()
}

/// The same for commits by this process.
fn visible_foreign(arguments: &Arguments, cluster: &Cluster) -> anyhow::Result<()> {
    if !arguments.wants(&["visible_foreign_p99"]) {
        return Ok(());
    }
    let mut metric = Metric::new("visible_foreign_p99", "ms", Goal::AtMost(60.0));
    let database = database::foreign(&cluster.app())?;
    for round in 0..=arguments.rounds {
        let watch = Watch::start(&cluster.public())?;
        let mut committed = Vec::new();
        let mut next = Instant::now();
        for _ in 0..if arguments.quick { 200 } else { 1_000 } {
            database.execute("INSERT INTO events (body) VALUES ('a body of some forty bytes, as they come')", [])?;
            committed.push((database.last_insert_rowid(), now()));
            next += Duration::from_millis(10);
            std::thread::park_timeout(next.saturating_duration_since(Instant::now()));
        }
        cluster.caught_up(CATCH_UP)?;
        metric.round(quantile(&watch.since(&committed)?, 0.99));
        if round == 0 {
            metric.forget();
        }
    }
    metric.print()
}

/// Changes of rows, a thousand a commit, as fast as they go, until the FO has them all.
fn row_changes(arguments: &Arguments, cluster: &Cluster) -> anyhow::Result<()> {
    if !arguments.wants(&["row_changes"]) {
        return Ok(());
    }
    let mut metric = Metric::new("row_changes", "rows/s", Goal::AtLeast(25_000.0));
    let database = database::foreign(&cluster.app())?;
    let batches = if arguments.quick { 50 } else { 300 };
    for round in 0..=arguments.rounds {
        let started = Instant::now();
        for batch in 0..batches {
            let from = (batch * 7_919 + round as i64 * 1_000) % 200_000;
            database.execute("UPDATE rows SET owner = owner + 1 WHERE id > ?1 AND id <= ?1 + 1000", [from])?;
        }
        cluster.caught_up(CATCH_UP)?;
        metric.round(batches as f64 * 1_000.0 / started.elapsed().as_secs_f64());
        if round == 0 {
            metric.forget();
        }
    }
    metric.print()
}

/// Bytes that loopback carries for a change of one row, less what it carries anyway: packets both ways, headers and all.
fn one_row_bytes(arguments: &Arguments, cluster: &Cluster) -> anyhow::Result<()> {
    if !arguments.wants(&["one_row_bytes"]) {
        return Ok(());
    }
    let mut metric = Metric::new("one_row_bytes", "bytes", Goal::AtMost(1_024.0));
    let database = database::foreign(&cluster.app())?;
    let changes = 50;
    for round in 0..=arguments.rounds {
        cluster.caught_up(CATCH_UP)?;
        let carried = |change: bool| {
            let before = loopback()?;
            for id in 0..changes {
                if change {
                    database.execute("UPDATE rows SET owner = owner + 1 WHERE id = ?1", [id * 31 + round as i64])?;
                }
                std::thread::park_timeout(Duration::from_millis(60));
            }
            anyhow::Ok(loopback()? - before)
        };
        let idle = carried(false)?;
        metric.round(carried(true)?.saturating_sub(idle) as f64 / changes as f64);
        if round == 0 {
            metric.forget();
        }
    }
    metric.print()
}

/// Bytes that the loopback device has carried.
fn loopback() -> anyhow::Result<u64> {
    let devices = std::fs::read_to_string("/proc/net/dev")?;
    let line = devices.lines().find_map(|line| line.trim_start().strip_prefix("lo:")).context("no loopback device")?;
    Ok(line.split_whitespace().next().context("no count")?.parse()?)
}

/// Reads by key on the FO while it applies, beside the same while it does not.
fn fo_read(arguments: &Arguments, cluster: &Cluster, rows: i64) -> anyhow::Result<()> {
    if !arguments.wants(&["fo_read_p99"]) {
        return Ok(());
    }
    let mut metric = Metric::new("fo_read_p99", "us", Goal::RatioAtMost(2.0));
    let reader = database::reader(&cluster.public())?;
    let reads = if arguments.quick { 5_000 } else { 20_000 };
    let p99 = || {
        let mut statement = reader.prepare_cached("SELECT length(body) FROM rows WHERE id = ?1")?;
        let mut times = Vec::with_capacity(reads);
        for read in 0..reads as i64 {
            let started = Instant::now();
            let _: i64 = statement.query_row([1 + (read * 7_919) % rows], |row| row.get(0))?;
            times.push(started.elapsed().as_nanos() as f64 / 1e3);
            // As a program does that has something else to do, too.
            std::thread::park_timeout(Duration::from_micros(50));
        }
        anyhow::Ok(quantile(&times, 0.99))
    };
    for round in 0..=arguments.rounds {
        cluster.caught_up(CATCH_UP)?;
        let idle = p99()?;
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, database) = (stop.clone(), database::foreign(&cluster.app())?);
        let writing = std::thread::spawn(move || {
            let mut from = 0;
            while !stopped.load(Ordering::Relaxed) {
                from = (from + 7_919) % 200_000;
                database.execute("UPDATE rows SET owner = owner + 1 WHERE id > ?1 AND id <= ?1 + 20", [from])?;
                std::thread::park_timeout(Duration::from_millis(5));
            }
            anyhow::Ok(())
        });
        let busy = p99();
        stop.store(true, Ordering::Relaxed);
        writing.join().map_err(|_| anyhow::anyhow!("the writer panicked"))??;
        metric.beside(busy?, idle);
        if round == 0 {
            metric.forget();
        }
    }
    metric.print()
}

/// The most that either process held, everything included that a node is besides.
fn rss(arguments: &Arguments, cluster: &Cluster) -> anyhow::Result<()> {
    let fo = cluster.fo.as_ref().context("an FO")?;
    for (name, pid) in [("publisher_rss", cluster.bo.pid()), ("subscriber_rss", fo.pid())] {
        if arguments.wants(&[name]) {
            let mut metric = Metric::new(name, "MiB", Goal::AtMost(64.0));
            metric.round(memory::peak(pid)? as f64 / f64::from(1 << 20));
            metric.print()?;
        }
    }
    Ok(())
}

//! The loads: each the same through the link and, where there is one, through the floor.

use std::{
    io::Write as _,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use horos_supervision::{Context, Ref};
use horos_wire::Role;
use tokio::{sync::Mutex, task::JoinSet};

use crate::{
    floor::{self, Floor},
    machine::{self, CLIENT_CORE},
    memory,
    node::{self, Bench, Count, Counted, DEADLINE, Echo, Layout, Node, Runtimes, TARGETS, Take, Work},
    process::Server,
    report::{Arguments, Metric, quantile},
};

/// Bytes of a call's body.
const SMALL: usize = 64;
/// Bytes of a cast's body.
const CAST: usize = 100;
/// Bytes of a body's chunk.
const CHUNK: usize = 64 * 1024;
/// Bytes a second of a paced bulk transfer.
pub(crate) const PACE: u64 = 100_000_000;
/// A paced transfer sends what is due this often.
const PACE_EVERY: Duration = Duration::from_millis(5);

/// How much a round does.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rounds {
    rounds: usize,
    floor: bool,
    /// Calls one after the other.
    pub(crate) calls: usize,
    /// For calls side by side.
    pub(crate) span: Duration,
    /// Casts.
    pub(crate) casts: u64,
    /// Chunks of a bulk body.
    pub(crate) chunks: usize,
}

/// One round.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Round {
    number: usize,
    floor: bool,
}

impl Rounds {
    pub(crate) fn new(arguments: &Arguments) -> Self {
        let part = if arguments.quick { 10 } else { 1 };
        Self {
            rounds: arguments.rounds,
            floor: arguments.floor,
            calls: 20_000 / part,
            span: Duration::from_secs(1) / part as u32,
            casts: 2_000_000 / part as u64,
            chunks: 8_192 / part,
        }
    }

    /// Does every round, and one before that warms up.
    pub(crate) fn each(&self, mut round: impl FnMut(Round) -> anyhow::Result<()>) -> anyhow::Result<()> {
        (0..=self.rounds).try_for_each(|number| round(Round { number, floor: self.floor }))
    }
}

impl Round {
    /// Does both, now one first and now the other.
    pub(crate) fn alternate<T>(
        self,
        ours: impl Fn() -> anyhow::Result<T>,
        floor: impl Fn() -> anyhow::Result<T>,
    ) -> anyhow::Result<(T, T)> {
        if !self.floor {
            // For a profiler: both are ours.
            return Ok((ours()?, ours()?));
        }
        if self.number.is_multiple_of(2) {
            let ours = ours()?;
            Ok((ours, floor()?))
        } else {
            let floor = floor()?;
            Ok((ours()?, floor))
        }
    }

    pub(crate) fn done(self, metrics: &mut [&mut Metric]) -> anyhow::Result<()> {
        if self.number == 0 {
            metrics.iter_mut().for_each(|metric| metric.forget());
        }
        Ok(())
    }
}

/// Times of calls that were made one after the other, in microseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Latency {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
}

impl Latency {
    fn of(nanos: &[f64]) -> Self {
        Self { p50: quantile(nanos, 0.5) / 1e3, p99: quantile(nanos, 0.99) / 1e3 }
    }
}

/// What calls side by side came to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Throughput {
    pub(crate) rate: f64,
    /// Processor time a call, both processes together.
    pub(crate) cpu_us: f64,
}

/// A client node in this process and a server in another, linked, and a floor between them.
pub(crate) struct Pair {
    server: Server,
    runtimes: Runtimes,
    _node: Node,
    context: Context,
    floor: Arc<Mutex<Floor>>,
    calls: quinn::Connection,
}

impl Pair {
    pub(crate) fn start(directory: &Path, layout: Layout) -> anyhow::Result<Self> {
        let server = Server::start(directory, layout)?;
        let runtimes = Runtimes::start(layout)?;
        let tls = node::tls(directory, Role::Fo)?;
        let (theirs, addresses) = (runtimes.clone(), server.addresses);
        let (node, floor) = node::wait(&runtimes.link, async move {
            let floor = Floor::connect(&tls, addresses.floor).await?;
            let node = Node::start(tls, vec![addresses.node], theirs).await?;
            node.linked().await?;
            anyhow::Ok((node, floor))
        })??;
        let pair =
            Self { server, context: node.context(), _node: node, calls: floor.calls(), floor: Arc::new(Mutex::new(floor)), runtimes };
        Ok(pair)
    }

    fn targets(&self) -> Vec<Ref<Bench>> {
        (0..TARGETS).map(|target| self.context.at(&format!("echo-{target}@bo-1"))).collect()
    }

    /// Calls one after the other, through the link.
    pub(crate) fn call_latencies(&self, calls: usize) -> anyhow::Result<Latency> {
        let target = self.context.at::<Bench>("echo-0@bo-1");
        self.runtimes.run(async move {
            let mut nanos = Vec::with_capacity(calls);
            for _ in 0..calls {
                let body = vec![7; SMALL];
                let started = Instant::now();
                target.call(Echo { body }, DEADLINE).await?;
                nanos.push(started.elapsed().as_nanos() as f64);
            }
            Ok(Latency::of(&nanos))
        })?
    }

    /// The same echoes on one raw stream.
    pub(crate) fn echo_latencies(&self, calls: usize) -> anyhow::Result<Latency> {
        let floor = self.floor.clone();
        self.runtimes.run(async move {
            let mut floor = floor.lock().await;
            let mut nanos = Vec::with_capacity(calls);
            for _ in 0..calls {
                let mut body = vec![7; SMALL];
                let started = Instant::now();
                floor.echo(&mut body).await?;
                nanos.push(started.elapsed().as_nanos() as f64);
            }
            Ok(Latency::of(&nanos))
        })?
    }

    /// Calls by `callers` at once, through the link.
    pub(crate) fn calls(&self, callers: usize, span: Duration) -> anyhow::Result<Throughput> {
        let targets = self.targets();
        self.throughput(callers, span, |caller, over| {
            let target = targets[caller % TARGETS].clone();
            async move {
                let mut made = 0;
                while !over.load(Ordering::Relaxed) {
                    let echo = target.call(Echo { body: vec![7; SMALL] }, DEADLINE).await?;
                    anyhow::ensure!(echo.body.len() == SMALL, "an echo of another length");
                    made += 1;
                }
                Ok(made)
            }
        })
    }

    /// The same calls on a raw stream each.
    pub(crate) fn floor_calls(&self, callers: usize, span: Duration) -> anyhow::Result<Throughput> {
        self.throughput(callers, span, |_, over| {
            let connection = self.calls.clone();
            async move {
                let mut made = 0;
                while !over.load(Ordering::Relaxed) {
                    let echo = floor::call(&connection, &[7; SMALL]).await?;
                    anyhow::ensure!(echo.len() == SMALL, "an echo of another length");
                    made += 1;
                }
                Ok(made)
            }
        })
    }

    fn throughput<F>(&self, callers: usize, span: Duration, caller: impl Fn(usize, Arc<AtomicBool>) -> F) -> anyhow::Result<Throughput>
    where
        F: Future<Output = anyhow::Result<u64>> + Send + 'static,
    {
        let over = Arc::new(AtomicBool::new(false));
        let callers: Vec<F> = (0..callers).map(|number| caller(number, over.clone())).collect();
        let used = self.cpu()?;
        let (made, took) = self.runtimes.run(async move {
            let started = Instant::now();
            let mut tasks: JoinSet<_> = callers.into_iter().collect();
            tokio::time::sleep(span).await;
            over.store(true, Ordering::Relaxed);
            let mut made = 0;
            while let Some(ended) = tasks.join_next().await {
                made += ended??;
            }
            anyhow::Ok((made as f64, started.elapsed()))
        })??;
        let used = self.cpu()? - used;
        Ok(Throughput { rate: made / took.as_secs_f64(), cpu_us: used.as_secs_f64() * 1e6 / made })
    }

    fn cpu(&self) -> anyhow::Result<Duration> {
        Ok(machine::cpu(std::process::id())? + machine::cpu(self.server.pid())?)
    }

    /// Casts by one sender to one actor, a second: until the actor has counted the last.
    pub(crate) fn casts(&self, casts: u64) -> anyhow::Result<f64> {
        let target = self.context.at::<Bench>("count@bo-1");
        self.runtimes.run(async move {
            let started = Instant::now();
            for _ in 0..casts {
                target.cast(Count { body: vec![7; CAST] }, DEADLINE).await?;
            }
            // From the same sender to the same target, so it comes behind all of them.
            let counted = target.call(Counted {}, DEADLINE).await?;
            anyhow::ensure!(counted == casts, "{counted} of {casts} casts arrived");
            Ok(casts as f64 / started.elapsed().as_secs_f64())
        })?
    }

    /// Small calls one after the other for `span` beside `bodies` bulk transfers, and the bytes a second of these.
    pub(crate) fn calls_beside(&self, bodies: usize, pace: Option<u64>, span: Duration) -> anyhow::Result<(Latency, f64)> {
        let over = Arc::new(AtomicBool::new(false));
        let sent = Arc::new(AtomicU64::new(0));
        let readers: Vec<Ref<Bench>> = (0..bodies).map(|reader| self.context.at(&format!("take-{reader}@bo-1"))).collect();
        let target = self.context.at::<Bench>("echo-0@bo-1");
        self.runtimes.run(async move {
            let mut tasks: JoinSet<_> = readers.into_iter().map(|reader| keep_sending(reader, pace, over.clone(), sent.clone())).collect();
            // Not to measure how it starts.
            tokio::time::sleep(span / 10).await;
            let (mut nanos, before, started) = (Vec::new(), sent.load(Ordering::Relaxed), Instant::now());
            while started.elapsed() < span {
                let body = vec![7; SMALL];
                let called = Instant::now();
                target.call(Echo { body }, DEADLINE).await?;
                nanos.push(called.elapsed().as_nanos() as f64);
            }
            let rate = (sent.load(Ordering::Relaxed) - before) as f64 / started.elapsed().as_secs_f64();
            over.store(true, Ordering::Relaxed);
            while let Some(ended) = tasks.join_next().await {
                ended??;
            }
            Ok((Latency::of(&nanos), rate))
        })?
    }

    /// One bulk body of `chunks` through the link, in MB/s.
    pub(crate) fn bulk(&self, chunks: usize) -> anyhow::Result<f64> {
        let reader = self.context.at::<Bench>("take-0@bo-1");
        self.runtimes.run(async move {
            let chunk = Bytes::from(vec![7; CHUNK]);
            let started = Instant::now();
            let (body, mut writer) = reader.bulk(DEADLINE).await?;
            let write = async {
                for _ in 0..chunks {
                    writer.write(chunk.clone()).await?;
                }
                anyhow::Ok(writer.finish().await?)
            };
            let (read, written) = tokio::join!(reader.call(Take { body }, DEADLINE), write);
            written?;
            anyhow::ensure!(read? == (chunks * CHUNK) as u64, "not all of the body arrived");
            Ok((chunks * CHUNK) as f64 / started.elapsed().as_secs_f64() / 1e6)
        })?
    }

    /// The same on one raw stream.
    pub(crate) fn floor_bulk(&self, chunks: usize) -> anyhow::Result<f64> {
        let floor = self.floor.clone();
        self.runtimes.run(async move {
            let took = floor.lock().await.bulk(Bytes::from(vec![7; CHUNK]), chunks).await?;
            Ok((chunks * CHUNK) as f64 / took.as_secs_f64() / 1e6)
        })?
    }
}

/// Sends a bulk body until it is over, as quickly as it goes or at `pace` bytes a second.
async fn keep_sending(reader: Ref<Bench>, pace: Option<u64>, over: Arc<AtomicBool>, sent: Arc<AtomicU64>) -> anyhow::Result<()> {
    let chunk = Bytes::from(vec![7; CHUNK]);
    let (body, mut writer) = reader.bulk(DEADLINE).await?;
    let write = async {
        let (started, mut written) = (Instant::now(), 0u64);
        while !over.load(Ordering::Relaxed) {
            if let Some(pace) = pace {
                tokio::time::sleep(PACE_EVERY).await;
                let due = (started.elapsed().as_secs_f64() * pace as f64) as u64;
                while written + CHUNK as u64 <= due {
                    writer.write(chunk.clone()).await?;
                    written += CHUNK as u64;
                    sent.fetch_add(CHUNK as u64, Ordering::Relaxed);
                }
            } else {
                writer.write(chunk.clone()).await?;
                sent.fetch_add(CHUNK as u64, Ordering::Relaxed);
            }
        }
        anyhow::Ok(writer.finish().await?)
    };
    let (read, written) = tokio::join!(reader.call(Take { body }, Duration::from_secs(60)), write);
    written?;
    read?;
    Ok(())
}

/// The `main` of a client that floods a slow actor; prints by how many MiB the larger of both processes grew.
pub(crate) fn flood(directory: &Path) -> anyhow::Result<()> {
    const CASTS: u64 = 8_000;
    machine::pin(CLIENT_CORE)?;
    let pair = Pair::start(directory, Layout::Single)?;
    let pids = [std::process::id(), pair.server.pid()];
    let before: Vec<u64> = pids.iter().map(|pid| memory::forget_peak(*pid)).collect::<anyhow::Result<_>>()?;
    let target = pair.context.at::<Bench>("work@bo-1");
    let counted = pair.runtimes.run(async move {
        for _ in 0..CASTS {
            target.cast(Work { body: vec![7; CHUNK] }, DEADLINE).await?;
        }
        anyhow::Ok(target.call(Counted {}, Duration::from_secs(60)).await?)
    })??;
    anyhow::ensure!(counted == CASTS, "{counted} of {CASTS} casts were handled");
    let mut grown = Vec::new();
    for (pid, before) in pids.into_iter().zip(before) {
        grown.push((memory::peak(pid)?.saturating_sub(before)) as f64 / f64::from(1 << 20));
    }
    eprintln!("#   flood: the client grew by {:.1} MiB, the server by {:.1}", grown[0], grown[1]);
    writeln!(std::io::stdout().lock(), "{:.3}", grown[0].max(grown[1]))?;
    Ok(())
}

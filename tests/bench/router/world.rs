//! A node's router in this process: calls, and files whose rows it takes up.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context as _;
use horos_nodes::{
    Routes as _,
    store::{
        migrations::Migrations,
        open::{Access, Options, open},
        rusqlite::Connection,
        watch::{WatchConfig, Watcher},
        writer::{Writer, WriterConfig},
    },
};
use horos_router::{Router, admin::ROUTES_MIGRATIONS, breaker::Breakers, reload, spec::Row, strategy::Strategies};
use horos_supervision::{Context, Exchange, ServiceSpec, Strategy, Supervisor, SupervisorHandle, SupervisorSpec, service};
use horos_wire::{Incarnation, NodeId};
use parking_lot::Mutex;
use ractor::{Actor, ActorRef, rpc::CallResult};

use crate::{
    alone::{Ask, Bare},
    node::{Bench, Bencher, DEADLINE, Echo, Layout, Runtimes, wait},
    placed::{NAMES, Place, Placed, ROUTED, Who},
    report::quantile,
};

/// Calls between two looks at the clock, which costs a tenth of one.
const BATCH: usize = 50;
/// A retry's budget, a breaker and a timeout, as a route has that takes itself seriously.
const POLICIES: &str = r#"{"timeout_ms": 10000, "retry": {"retries": 2}, "breaker": {"failures": 5}, "idempotent": ["echo"]}"#;
/// Between two changes of a route: the watcher looks every 20 ms, and is to be met anywhere in between.
const BETWEEN: Duration = Duration::from_millis(33);
/// For a change to come into force.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct World {
    runtimes: Runtimes,
    router: Router,
    context: Context,
    bare: ActorRef<Ask>,
    root: SupervisorHandle,
    writer: Mutex<Option<Writer>>,
}

/// Medians of a call, in microseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figures {
    pub(crate) routed: f64,
    pub(crate) typed: f64,
    pub(crate) bare: f64,
}

impl World {
    /// A node without others; its services run on the thread that calls them, beside the bare actor.
    pub(crate) fn start() -> anyhow::Result<Self> {
        let runtimes = Runtimes::start(Layout::Default)?;
        let services = runtimes.run(async { tokio::runtime::Handle::current() })?;
        let id = NodeId { cluster: "bench".parse()?, role: horos_wire::Role::Bo, name: "bo-1".parse()? };
        let exchange = Exchange::new(id, Incarnation(1));
        let breakers = Breakers::new(None, Arc::new(|_, _| {}));
        let router = Router::new(exchange.clone(), Strategies::builtin(), breakers.clone());
        exchange.attach(Arc::new(router.clone()));
        let mut children =
            vec![breakers.child(), service(&exchange, &services, ServiceSpec::new("echo".parse()?), |_| async { Ok(Bencher::default()) })?];
        for name in NAMES {
            children.push(service(&exchange, &services, ServiceSpec::new(name.parse()?), move |_| async move { Ok(Place(name)) })?);
        }
        let root = wait(&runtimes.link, Supervisor::start(SupervisorSpec::new("root", Strategy::OneForOne, children), None))??;
        let (bare, _) = runtimes.run(Actor::spawn(None, Bare, ()))??;
        Ok(Self { context: Context::new(exchange, "bench"), runtimes, router, bare, root, writer: Mutex::default() })
    }

    /// By route with its whole chain, through a typed reference, and to the bare actor with the same timeout, batch by batch.
    pub(crate) fn calls(&self, batches: usize, floor: bool) -> anyhow::Result<Figures> {
        let taken = self.router.take_up(vec![row("routed", "echo", POLICIES)]);
        anyhow::ensure!(taken.wrong == 0, "the route is wrong");
        let (routed, typed, bare) = (self.context.routed::<Bench>("routed"), self.context.at::<Bench>("echo"), self.bare.clone());
        self.runtimes.run(async move {
            let mut times: [Vec<f64>; 3] = std::array::from_fn(|_| Vec::with_capacity(batches));
            let ask = || Echo { body: vec![7; 64] };
            for batch in 0..batches {
                for turn in 0..3 {
                    let which = if floor { (batch + turn) % 3 } else { 0 };
                    let started = Instant::now();
                    for _ in 0..BATCH {
                        match which {
                            0 => drop(routed.call(ask(), DEADLINE).await?),
                            1 => drop(typed.call(ask(), DEADLINE).await?),
                            _ => {
                                let answer = bare.call(|reply| Ask(ask(), reply), Some(DEADLINE)).await?;
                                anyhow::ensure!(matches!(answer, CallResult::Success(_)), "the bare actor did not answer");
                            }
                        }
                    }
                    times[which].push(started.elapsed().as_nanos() as f64);
                }
            }
            let [routed, typed, bare] = times.map(|batches| quantile(&batches, 0.5) / BATCH as f64 / 1e3);
            Ok(Figures { routed, typed, bare })
        })?
    }

    /// Takes up the rows of `path` as a node does those of its `control.db`, which it owns.
    pub(crate) fn follow(&self, path: &Path) -> anyhow::Result<()> {
        let (router, root, path) = (self.router.clone(), self.root.clone(), path.to_owned());
        let writer = wait(&self.runtimes.link, async move {
            let migrations = Migrations::new(ROUTES_MIGRATIONS);
            let writer = Writer::new(WriterConfig::new(Options::new(&path, Access::Owner), migrations));
            root.add_child(writer.child("writer")).await?;
            let insert = |tx: &Connection| insert(tx, ROUTED, NAMES[0], "{}");
            writer.transaction(Instant::now() + PATIENCE, insert).await?;
            let watcher = Watcher::start(WatchConfig::new(&path))?;
            writer.nudge_on_commit(&watcher.nudge());
            root.add_child(reload::child(router.clone(), path, watcher)).await?;
            while !router.is_routed(ROUTED) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            anyhow::Ok(writer)
        })??;
        *self.writer.lock() = Some(writer);
        Ok(())
    }

    /// Milliseconds from before an `UPDATE` by the node's own writer to the first call by the new route, and to its commit.
    pub(crate) fn changes(&self, count: usize) -> anyhow::Result<(Vec<f64>, Vec<f64>)> {
        let writer = self.writer.lock().clone().context("a file that is followed")?;
        let target = self.context.routed::<Placed>(ROUTED);
        self.runtimes.run(async move {
            let (mut seen, mut committed) = (Vec::new(), Vec::new());
            for _ in 0..count {
                let before = target.call(Who {}, DEADLINE).await?;
                let to = NAMES.into_iter().find(|name| *name != before).context("another name")?;
                let started = Instant::now();
                let update = move |tx: &Connection| tx.execute("UPDATE routes SET endpoint = ?1 WHERE service_name = ?2", (to, ROUTED));
                let mut writing = std::pin::pin!(writer.transaction(started + PATIENCE, update));
                let mut done = false;
                loop {
                    tokio::select! {
                        biased;
                        written = &mut writing, if !done => {
                            written?;
                            committed.push(millis(started));
                            done = true;
                        }
                        who = target.call(Who {}, DEADLINE) => if who? == to {
                            break;
                        },
                    }
                    anyhow::ensure!(started.elapsed() < PATIENCE, "the route never came into force");
                    tokio::task::yield_now().await;
                }
                seen.push(millis(started));
                if !done {
                    // It was in force before the writer's answer came.
                    writing.await?;
                    committed.push(millis(started));
                }
                tokio::time::sleep(BETWEEN).await;
            }
            Ok((seen, committed))
        })?
    }

    /// A file of `count` routes that are in force.
    pub(crate) fn table(&self, path: &Path, count: usize) -> anyhow::Result<Table> {
        let mut database = open(&Options::new(path, Access::Owner))?;
        Migrations::new(ROUTES_MIGRATIONS).apply(database.connection())?;
        let transaction = database.connection().transaction()?;
        for number in 0..count {
            insert(&transaction, &format!("service-{number}"), "echo", POLICIES)?;
        }
        transaction.commit()?;
        drop(database);
        let table = Table { router: self.router.clone(), path: path.to_owned(), database: Mutex::new(foreign(path)?) };
        let taken = reload::load(&self.router, path)?;
        anyhow::ensure!((taken.changed, taken.wrong) == (count, 0), "{taken:?}");
        Ok(table)
    }
}

/// A file of many routes.
pub(crate) struct Table {
    router: Router,
    path: PathBuf,
    database: Mutex<Connection>,
}

impl Table {
    /// Changes one route; milliseconds of the reload that follows, and of stepping through the rows.
    pub(crate) fn reload(&self) -> anyhow::Result<(f64, f64)> {
        self.change()?;
        let started = Instant::now();
        let taken = reload::load(&self.router, &self.path)?;
        let ours = millis(started);
        anyhow::ensure!((taken.changed, taken.gone, taken.wrong) == (1, 0, 0), "{taken:?}");
        let database = self.database.lock();
        let mut statement = database.prepare_cached("SELECT service_name, strategy, endpoint, config, updated_at FROM routes")?;
        let started = Instant::now();
        let mut rows = statement.query([])?;
        let mut bytes = 0;
        while let Some(row) = rows.next()? {
            bytes += row.get_ref(0)?.as_str()?.len() + row.get_ref(3)?.as_str()?.len();
        }
        let floor = millis(started);
        anyhow::ensure!(bytes > 0, "there are no rows");
        Ok((ours, floor))
    }

    fn change(&self) -> anyhow::Result<()> {
        let change = "UPDATE routes SET endpoint = CASE endpoint WHEN 'echo' THEN 'one' ELSE 'echo' END WHERE service_name = 'service-77'";
        anyhow::ensure!(self.database.lock().execute(change, [])? == 1, "no such route");
        Ok(())
    }

    /// Microseconds that 99 of 100 calls of another route stay below, while routes are reloaded one after the other and while none is.
    pub(crate) fn others(&self, world: &World, span: Duration) -> anyhow::Result<(f64, f64)> {
        let p99 = || {
            let target = world.context.routed::<Bench>("service-5");
            world.runtimes.run(async move {
                let (started, mut times) = (Instant::now(), Vec::new());
                while started.elapsed() < span {
                    let called = Instant::now();
                    target.call(Echo { body: vec![7; 64] }, DEADLINE).await?;
                    times.push(called.elapsed().as_nanos() as f64 / 1e3);
                }
                anyhow::Ok(quantile(&times, 0.99))
            })?
        };
        let idle = p99()?;
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let reloading = scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    self.change()?;
                    reload::load(&self.router, &self.path)?;
                }
                anyhow::Ok(())
            });
            let during = p99();
            over.store(true, Ordering::Relaxed);
            reloading.join().map_err(|_| anyhow::anyhow!("the reloads panicked"))??;
            anyhow::Ok((during?, idle))
        })
    }
}

fn row(service: &str, endpoint: &str, config: &str) -> Row {
    Row { service: service.into(), strategy: "local".into(), endpoint: Some(endpoint.into()), config: Some(config.into()), updated_at: 0 }
}

fn insert(database: &Connection, service: &str, endpoint: &str, config: &str) -> Result<usize, horos_nodes::store::rusqlite::Error> {
    let sql = "INSERT INTO routes (service_name, strategy, endpoint, config) VALUES (?1, 'local', ?2, ?3)";
    database.execute(sql, (service, endpoint, config))
}

/// A connection as any other program has one.
pub(crate) fn foreign(path: &Path) -> anyhow::Result<Connection> {
    let database = Connection::open(path)?;
    database.execute_batch("PRAGMA busy_timeout = 10000; PRAGMA synchronous = FULL;")?;
    Ok(database)
}

pub(crate) fn millis(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

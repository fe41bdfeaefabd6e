//! A BO with a database, FOs with replicas that are models, and a way between them that hands messages over in memory.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Debug,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use futures_util::future::BoxFuture;
use horos_supervision::{
    Context, Exchange, Handle, Service, ServiceSpec, Strategy, Supervisor, SupervisorHandle, SupervisorSpec,
    bulk::BulkWriter,
    exchange::{Carrier, Route},
    service,
};
use horos_wire::{
    Address, Bulk, CallError, Incarnation, NoEffect, NodeId, NodeName, Request, Role, Scope,
    protocol::sync::{
        Applied, Apply, Have, HaveAsk, KnownTable, Replica, ReplicaAsk, ReplicaError, ReplicaState, ReplicaStatus, ReplicaTable, Resume,
        Resumed, Rollback, RolledBack, STREAM_VERSION, Stream, Subscribe, Sync, TableMark, replica_name, sync_name,
    },
};
use parking_lot::Mutex;
use rusqlite::Connection;
use tempfile::TempDir;
use tokio::sync::watch;

use super::{
    super::{Publication, Publisher, PublisherLimits},
    model::Model,
};
use crate::{
    filter::{Filter, FilterSpec},
    source::{SourceConfig, wire},
    value::put_row,
};

pub(super) const LIMIT: Duration = Duration::from_secs(20);

/// The ways between the nodes of a test.
#[derive(Clone, Default)]
pub(super) struct Ways(Arc<Mutex<HashMap<NodeName, Exchange>>>);

impl Carrier for Ways {
    fn route(&self, address: Address, _: Option<(&'static str, u16)>, _: Instant) -> BoxFuture<'_, Result<Route, NoEffect>> {
        let Scope::Node(node) = &address.scope else { return Box::pin(std::future::ready(Err(NoEffect::NoRoute("?".into())))) };
        let there = self.0.lock().get(node).and_then(|exchange| exchange.find(&address.name));
        Box::pin(std::future::ready(there.map(Route::Local).ok_or_else(|| NoEffect::NoRoute(node.as_str().into()))))
    }

    fn bulk(&self, node: NodeName, _: Bulk) -> BoxFuture<'_, Result<BulkWriter, NoEffect>> {
        Box::pin(std::future::ready(Err(NoEffect::NoRoute(node.as_str().into()))))
    }
}

fn exchange(ways: &Ways, name: &str) -> Exchange {
    let id = NodeId::from_uri(&format!("spiffe://shop/{}/{name}", &name[..2])).unwrap();
    let exchange = Exchange::new(id.clone(), Incarnation(1));
    exchange.connect(Arc::new(ways.clone()));
    ways.0.lock().insert(id.name, exchange.clone());
    exchange
}

/// The BO: `shop.db`, and what of it is published under which name.
pub(super) struct World {
    pub(super) dir: Arc<TempDir>,
    pub(super) ways: Ways,
    pub(super) publisher: Publisher,
    pub(super) exchange: Exchange,
    pub(super) supervisor: SupervisorHandle,
    pub(super) conditions: Arc<Mutex<BTreeMap<String, String>>>,
    specs: Vec<(&'static str, FilterSpec)>,
}

/// What a test may set otherwise.
#[derive(Clone)]
pub(super) struct Setup {
    pub(super) limits: PublisherLimits,
    pub(super) config: fn(SourceConfig) -> SourceConfig,
    pub(super) verify_every: Duration,
}

impl Default for Setup {
    fn default() -> Self {
        let limits = PublisherLimits { lease: Duration::from_secs(120), ask: Duration::from_secs(2), ..PublisherLimits::default() };
        Self { limits, config: |config| config, verify_every: Duration::from_secs(3600) }
    }
}

pub(super) fn file(dir: &TempDir) -> PathBuf {
    dir.path().join("shop.db")
}

pub(super) fn connect(dir: &TempDir) -> Connection {
    let connection = Connection::open(file(dir)).unwrap();
    connection.busy_timeout(Duration::from_secs(5)).unwrap();
    connection.execute_batch("PRAGMA synchronous = OFF; PRAGMA journal_mode = WAL").unwrap();
    connection
}

/// The shop of these tests: items, some of them public.
pub(super) const SHOP: &str = "CREATE TABLE item(id INTEGER PRIMARY KEY, name TEXT, price INTEGER, public INTEGER, secret TEXT);
    CREATE TABLE note(line TEXT);
    CREATE TABLE other(id TEXT PRIMARY KEY, body BLOB);
    INSERT INTO item VALUES (1, 'hat', 10, 1, 'x'), (2, 'coat', 90, 0, 'y'), (3, 'shoe', 50, 1, 'z');";
pub(super) const ITEMS: &str = r#"{"partial-tables": {"item": {"columns": ["name", "price"], "where": "public"}}}"#;
pub(super) const ALL: &str = r#"{"full-tables": ["item", "note", "other"]}"#;

pub(super) fn shop() -> Arc<TempDir> {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    connect(&dir).execute_batch(SHOP).unwrap();
    dir
}

impl World {
    pub(super) async fn start(dir: &Arc<TempDir>, publications: &[(&'static str, &str)]) -> Self {
        Self::start_with(dir, publications, Setup::default()).await
    }

    pub(super) async fn start_with(dir: &Arc<TempDir>, publications: &[(&'static str, &str)], setup: Setup) -> Self {
        let ways = Ways::default();
        let exchange = exchange(&ways, "bo-1");
        let specs: Vec<(&'static str, FilterSpec)> =
            publications.iter().map(|(name, spec)| (*name, serde_json::from_str(spec).unwrap())).collect();
        let publications = specs.iter().map(|(name, spec)| {
            let publication = Publication::new(name, spec.clone()).to(Role::Fo);
            Publication { verify_every: setup.verify_every, ..publication }
        });
        let conditions: Arc<Mutex<BTreeMap<String, String>>> = Arc::default();
        let said = conditions.clone();
        let config = (setup.config)(SourceConfig::new("shop", file(dir), dir.path().join("sync")));
        let publisher = Publisher::new(
            &exchange,
            &tokio::runtime::Handle::current(),
            config,
            publications.collect(),
            &setup.limits,
            Arc::new(move |name, text| match text {
                Some(text) => drop(said.lock().insert(name.to_owned(), text.to_owned())),
                None => drop(said.lock().remove(name)),
            }),
        )
        .unwrap();
        let spec = SupervisorSpec::new("root", Strategy::OneForOne, vec![publisher.child()]);
        let supervisor = Supervisor::start(spec, None).await.unwrap();
        Self { dir: dir.clone(), ways, publisher, exchange, supervisor, conditions, specs }
    }

    /// The same BO in its next life, over the same file.
    pub(super) async fn stop(self) -> Ways {
        self.ways.0.lock().remove(&self.exchange.node().name);
        self.supervisor.stop().await;
        self.ways
    }

    pub(super) fn write(&self, sql: &str) {
        connect(&self.dir).execute_batch(sql).unwrap();
    }

    /// What is published under `name` now, and where the log is.
    pub(super) fn expected(&self, name: &str) -> BTreeMap<String, Vec<Vec<u8>>> {
        let connection = connect(&self.dir);
        let spec = &self.specs.iter().find(|(known, _)| *known == name).unwrap().1;
        let filter = Filter::load(&connection, spec).unwrap();
        let mut tables = BTreeMap::new();
        for table in filter.tables() {
            let mut statement = connection.prepare(table.select()).unwrap();
            let mut rows = statement.query([]).unwrap();
            let mut encoded = Vec::new();
            while let Some(row) = rows.next().unwrap() {
                let mut bytes = Vec::new();
                assert!(put_row(&mut bytes, row, table.columns().len()).unwrap());
                encoded.push(bytes);
            }
            tables.insert(table.name().to_owned(), encoded);
        }
        tables
    }

    pub(super) async fn head(&self) -> crate::capture::Position {
        crate::source::captured(self.publisher.source().head(Instant::now() + LIMIT).await.unwrap())
    }

    /// Waits until `fo` has everything that is there now.
    pub(super) async fn follows(&self, fo: &Fo) {
        let head = self.head().await;
        until(|| fo.switch.model.lock().position, |at| at.is_some_and(|at| at.epoch == head.epoch && at.seq >= head.seq)).await;
        until(|| fo.switch.model.lock().rows() == self.expected(fo.publication), |same| *same).await;
    }

    pub(super) fn status(&self, publication: &str) -> horos_wire::protocol::sync::PublicationStatus {
        self.publisher.status().into_iter().find(|status| &*status.name == publication).unwrap()
    }
}

/// How a test plays with a replica.
#[derive(Default)]
pub(super) struct Switch {
    pub(super) model: Mutex<Model>,
    /// Applies nothing and answers nothing.
    pub(super) dead: watch::Sender<bool>,
    /// Applies, and the answer is lost.
    pub(super) mute: AtomicBool,
    pub(super) statuses: std::sync::atomic::AtomicU64,
    pub(super) bodies: std::sync::atomic::AtomicU64,
}

/// An FO.
pub(super) struct Fo {
    pub(super) publication: &'static str,
    pub(super) switch: Arc<Switch>,
    pub(super) context: Context,
    _supervisor: SupervisorHandle,
}

struct Fake {
    switch: Arc<Switch>,
    /// Bodies between actors of one process wait at their sender's.
    sender: Context,
}

impl Service for Fake {
    type Protocol = Replica;
}

impl Handle<Apply> for Fake {
    async fn handle(&mut self, ask: Apply, _: &Context) -> Result<Applied, ReplicaError> {
        // The switch outlives its node: it does not close.
        let _ = self.switch.dead.subscribe().wait_for(|dead| !dead).await;
        let stream = match ask.stream {
            Stream::Inline(bytes) => bytes,
            Stream::Body(bulk) => {
                self.switch.bodies.fetch_add(1, SeqCst);
                let mut body = self.sender.claim(bulk, LIMIT).await.map_err(|error| ReplicaError::Corrupt(error.to_string().into()))?;
                let mut bytes = Vec::new();
                loop {
                    match body.chunk().await {
                        Ok(Some(chunk)) => bytes.extend_from_slice(&chunk),
                        Ok(None) => break bytes,
                        Err(error) => return Err(ReplicaError::Corrupt(error.to_string().into())),
                    }
                }
            }
        };
        let (mismatches, position) = {
            let mut model = self.switch.model.lock();
            (model.apply(&stream)?, model.position.unwrap())
        };
        assert!(!self.switch.mute.swap(false, SeqCst), "asked to lose the answer");
        Ok(Applied { position: wire(position), mismatches })
    }
}

impl Handle<ReplicaAsk> for Fake {
    async fn handle(&mut self, _: ReplicaAsk, _: &Context) -> Result<ReplicaStatus, ReplicaError> {
        self.switch.statuses.fetch_add(1, SeqCst);
        let model = self.switch.model.lock();
        Ok(ReplicaStatus {
            name: "shop".into(),
            source: Some("bo-1".parse().unwrap()),
            position: model.position.map(wire),
            tables: known(&model).into_iter().map(|table| ReplicaTable { name: table.name, mark: table.mark, changed_at: None }).collect(),
            state: if model.position.is_some() { ReplicaState::Live } else { ReplicaState::Empty },
            resume: false,
            applied_at: None,
            stale_ms: None,
            deltas: 0,
            snapshots: 0,
            received_bytes: 0,
            last_error: None,
        })
    }
}

impl Handle<HaveAsk> for Fake {
    async fn handle(&mut self, _: HaveAsk, _: &Context) -> Result<Have, ReplicaError> {
        Ok(Have { chunks: Vec::new(), next: None })
    }
}

impl Handle<Rollback> for Fake {
    async fn handle(&mut self, _: Rollback, _: &Context) -> Result<RolledBack, ReplicaError> {
        Err(ReplicaError::Busy)
    }
}

impl Handle<Resume> for Fake {
    async fn handle(&mut self, _: Resume, _: &Context) -> Result<Resumed, ReplicaError> {
        Ok(Resumed {})
    }
}

fn known(model: &Model) -> Vec<KnownTable> {
    let mark = |table: &super::model::Table| TableMark::from_bytes(table.head.fingerprint);
    model.tables.iter().map(|(name, table)| KnownTable { name: name.as_str().into(), mark: mark(table) }).collect()
}

impl Fo {
    /// Starts the node `name` with a replica of `publication`, which is not subscribed yet.
    pub(super) async fn start(world: &World, name: &str, publication: &'static str) -> Self {
        let exchange = exchange(&world.ways, name);
        let switch = Arc::new(Switch::default());
        let sender = Context::new(world.exchange.clone(), "bodies");
        let given = switch.clone();
        let child = service::<Fake, _, _>(
            &exchange,
            &tokio::runtime::Handle::current(),
            ServiceSpec::new(replica_name(publication).unwrap()),
            move |_| std::future::ready(Ok(Fake { switch: given.clone(), sender: sender.clone() })),
        )
        .unwrap();
        // What the tests kill is not what they are about.
        let spec = SupervisorSpec::new("fo", Strategy::OneForOne, vec![child]).intensity(1_000, LIMIT);
        let supervisor = Supervisor::start(spec, None).await.unwrap();
        Self { publication, switch, context: Context::new(exchange, "subscription"), _supervisor: supervisor }
    }

    pub(super) async fn ask<R: Request<Protocol = Sync>>(&self, request: R) -> Result<R::Reply, CallError<R::Error>> {
        let name = sync_name(self.publication).unwrap();
        self.context.at::<Sync>(&format!("{name}@bo-1")).call(request, LIMIT).await
    }

    pub(super) fn subscription(&self) -> Subscribe {
        let model = self.switch.model.lock();
        Subscribe { have: model.position.map(wire), tables: known(&model), version: STREAM_VERSION, resume: false }
    }

    /// Subscribes, once the database is captured.
    pub(super) async fn subscribe(&self) {
        let started = Instant::now();
        let mut looks = looks();
        loop {
            looks.tick().await;
            match self.ask(self.subscription()).await {
                Ok(_) => return,
                Err(error) => assert!(started.elapsed() < LIMIT, "{error}"),
            }
        }
    }

    /// One that is subscribed and has everything.
    pub(super) async fn following(world: &World, name: &str, publication: &'static str) -> Self {
        let fo = Self::start(world, name, publication).await;
        fo.subscribe().await;
        world.follows(&fo).await;
        fo
    }

    pub(super) fn counts(&self) -> (u64, u64) {
        let model = self.switch.model.lock();
        (model.snapshots, model.deltas)
    }
}

/// Waits until `probe` gives a value that satisfies `accept`; reports the last one if it never does.
pub(super) async fn until<T: Debug>(mut probe: impl FnMut() -> T, accept: impl Fn(&T) -> bool) -> T {
    let started = Instant::now();
    let mut looks = looks();
    loop {
        looks.tick().await;
        let value = probe();
        if accept(&value) {
            return value;
        }
        assert!(started.elapsed() < LIMIT, "never came: last seen {value:?}");
    }
}

/// Looks at a state that tells nobody when it changes.
fn looks() -> tokio::time::Interval {
    tokio::time::interval(Duration::from_millis(2))
}

/// What SQLite knows of the file besides its rows.
pub(super) fn schema(path: &Path) -> Vec<String> {
    let connection = Connection::open(path).unwrap();
    let mut statement = connection.prepare("SELECT type || ' ' || name || ' ' || coalesce(sql, '') FROM sqlite_master ORDER BY 1").unwrap();
    statement.query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap()
}

/// Somebody who only calls.
pub(super) fn outsider(world: &World, role: &str, name: &str, publication: &'static str) -> Outsider {
    let id = NodeId::from_uri(&format!("spiffe://shop/{role}/{name}")).unwrap();
    let exchange = Exchange::new(id, Incarnation(1));
    exchange.connect(Arc::new(world.ways.clone()));
    Outsider { publication, context: Context::new(exchange, "outside") }
}

pub(super) struct Outsider {
    publication: &'static str,
    context: Context,
}

impl Outsider {
    pub(super) async fn ask<R: Request<Protocol = Sync>>(&self, request: R) -> Result<R::Reply, CallError<R::Error>> {
        let name = sync_name(self.publication).unwrap();
        self.context.at::<Sync>(&format!("{name}@bo-1")).call(request, LIMIT).await
    }

    pub(super) fn subscription(&self) -> Subscribe {
        Subscribe { have: None, tables: Vec::new(), version: STREAM_VERSION, resume: false }
    }
}

//! A cluster of one owner and some replicas, joined by a carrier that hands messages over in memory and can be cut.

use std::{
    collections::HashMap,
    fmt::Debug,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use futures_util::future::BoxFuture;
use horos_identity::{Clock, KEYS_MIGRATIONS, Keys, KeysConfig, KeysParts, Mirror, NAME, Source, Verifier};
use horos_store::{
    migrations::Migrations,
    open::{Access, Options},
    readers::{Readers, ReadersConfig},
    writer::{Writer, WriterConfig},
};
use horos_supervision::{
    Context, Exchange, Ref, ServiceSpec, Strategy, Supervisor, SupervisorHandle, SupervisorSpec,
    bulk::BulkWriter,
    exchange::{Carrier, Route},
    service,
};
use horos_wire::{
    Address, Bulk, CallError, Incarnation, NoEffect, NodeId, NodeName, Request, Scope,
    principal::{Denied, Scope as Right},
    protocol::keys::{Create, Created, Keys as Protocol, KeysError},
};
use parking_lot::Mutex;
use tempfile::TempDir;

pub(crate) const LIMIT: Duration = Duration::from_secs(20);
/// When the tests play: 2027-01-15.
pub(crate) const START: i64 = 1_800_000_000;
/// A key that nobody made.
pub(crate) const NOBODYS: &str = "hk_ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff";
pub(crate) const DAY: i64 = 86_400;

/// A clock that the test sets.
#[derive(Clone)]
pub(crate) struct Time(Arc<AtomicI64>);

impl Time {
    pub(crate) fn new() -> Self {
        Self(Arc::new(AtomicI64::new(START)))
    }

    pub(crate) fn set(&self, now: i64) {
        self.0.store(now, SeqCst);
    }

    pub(crate) fn clock(&self) -> Clock {
        let now = self.0.clone();
        Clock::new(move || now.load(SeqCst))
    }
}

/// The ways between the nodes of a test.
#[derive(Clone, Default)]
pub(crate) struct Ways(Arc<Mutex<HashMap<NodeName, Exchange>>>);

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

pub(crate) struct Node {
    pub(crate) name: NodeName,
    pub(crate) exchange: Exchange,
    pub(crate) supervisor: SupervisorHandle,
    pub(crate) verifier: Verifier,
    pub(crate) writer: Writer,
    pub(crate) readers: Readers,
    pub(crate) conditions: Arc<Mutex<Option<String>>>,
    pub(crate) directory: Arc<TempDir>,
    ways: Ways,
}

/// What a node is in its cluster.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Part {
    Owner,
    Replica,
}

impl Node {
    /// Starts `name` over `directory`. The owner is called `bo-1`.
    pub(crate) async fn start(name: &str, part: Part, ways: &Ways, time: &Time, directory: Arc<TempDir>) -> Self {
        let role = &name[..2];
        let id = NodeId::from_uri(&format!("spiffe://shop/{role}/{name}")).unwrap();
        let exchange = Exchange::new(id.clone(), Incarnation(1));
        exchange.connect(Arc::new(ways.clone()));
        let options = Options::new(directory.path().join("control.db"), Access::Owner);
        let mut config = WriterConfig::new(options.clone(), Migrations::new(KEYS_MIGRATIONS));
        config.open.max_pages = None;
        let (writer, readers) = (Writer::new(config), Readers::new(ReadersConfig::new(options.clone())));
        let verifier = Verifier::new(&options, time.clock());
        let mut children = vec![writer.child("control:writer"), readers.child("control:readers")];
        if part == Part::Owner {
            let parts = KeysParts {
                writer: writer.clone(),
                readers: readers.clone(),
                data: directory.path().to_owned(),
                clock: time.clock(),
                config: KeysConfig { keys_per_owner: 20, ..KeysConfig::default() },
            };
            let spec = ServiceSpec::new(NAME.parse().unwrap());
            let runtime = tokio::runtime::Handle::current();
            children.push(service::<Keys, _, _>(&exchange, &runtime, spec, move |_| Keys::open(parts.clone())).unwrap());
        }
        let source = match part {
            Part::Owner => Source::Own(readers.clone()),
            Part::Replica => Source::Owner { node: "bo-1".parse().unwrap(), writer: writer.clone(), readers: readers.clone() },
        };
        let conditions: Arc<Mutex<Option<String>>> = Arc::default();
        let said = conditions.clone();
        let context = Context::new(exchange.clone(), "horos.keys.mirror");
        let mirror = Mirror::new(context, source, verifier.clone(), Arc::new(move |text| *said.lock() = text.map(str::to_owned)));
        children.push(mirror.child());
        let supervisor = Supervisor::start(SupervisorSpec::new("root", Strategy::RestForOne, children), None).await.unwrap();
        exchange.prove_users_with(Arc::new(verifier.clone()));
        ways.0.lock().insert(id.name.clone(), exchange.clone());
        Self { name: id.name, exchange, supervisor, verifier, writer, readers, conditions, directory, ways: ways.clone() }
    }

    /// Out of every other's reach, then stopped.
    pub(crate) async fn stop(self) -> Arc<TempDir> {
        self.ways.0.lock().remove(&self.name);
        self.supervisor.stop().await;
        self.directory
    }

    pub(crate) fn keys(&self) -> Ref<Protocol> {
        Context::new(self.exchange.clone(), "ana").at("horos.keys@bo-1")
    }

    pub(crate) async fn ask<R: Request<Protocol = Protocol>>(&self, request: R) -> Result<R::Reply, CallError<R::Error>> {
        self.keys().call(request, LIMIT).await
    }

    pub(crate) async fn create(&self, create: Create) -> Result<Created, KeysError> {
        match self.ask(create).await {
            Ok(created) => Ok(created),
            Err(CallError::Failed(error)) => Err(error),
            Err(other) => panic!("{other}"),
        }
    }

    /// A key with one scope that lasts 90 days: its text and its id.
    pub(crate) async fn key(&self, owner: &str) -> (String, Box<str>) {
        let created = self.create(create(owner)).await.unwrap();
        (created.secret.unwrap().reveal().to_owned(), created.key.id)
    }

    pub(crate) fn denied(&self, text: &str) -> Option<Denied> {
        self.verifier.check(text).err()
    }
}

pub(crate) fn right(text: &str) -> Right {
    text.parse().unwrap()
}

pub(crate) fn create(owner: &str) -> Create {
    Create { name: "till".into(), owner: owner.into(), scopes: vec![right("stock:read")], expires: None, per_minute: None }
}

pub(crate) fn failed<T: Debug, E: Debug>(outcome: Result<T, CallError<E>>) -> E {
    match outcome {
        Err(CallError::Failed(error)) => error,
        other => panic!("expected the callee's own error: {other:?}"),
    }
}

/// Waits until `probe` gives a value that satisfies `accept`; reports the last one if it never does.
pub(crate) async fn until<T: Debug>(mut probe: impl FnMut() -> T, accept: impl Fn(&T) -> bool) -> T {
    let started = Instant::now();
    loop {
        let value = probe();
        if accept(&value) {
            return value;
        }
        assert!(started.elapsed() < LIMIT, "never came: last seen {value:?}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// An owner called `bo-1` on its own.
pub(crate) async fn owner() -> (Node, Time, Ways) {
    let (time, ways) = (Time::new(), Ways::default());
    let node = Node::start("bo-1", Part::Owner, &ways, &time, Arc::new(TempDir::new().unwrap())).await;
    until(|| node.denied(NOBODYS), |denied| *denied == Some(Denied::Unknown)).await;
    node.verifier.take_refusals();
    (node, time, ways)
}

/// A replica whose copy is whole.
pub(crate) async fn replica(name: &str, ways: &Ways, time: &Time) -> Node {
    let node = Node::start(name, Part::Replica, ways, time, Arc::new(TempDir::new().unwrap())).await;
    until(|| node.denied(NOBODYS), |denied| *denied == Some(Denied::Unknown)).await;
    node
}

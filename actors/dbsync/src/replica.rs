//! A replica on this node: what another node publishes of a database, in a file of its own that is only read.
//!
//! `nodes` makes a [`Replica`] of each that is configured and puts its [`Replica::children`] under one supervisor:
//!
//! ```text
//! replica-NAME                  one-for-one
//! ├─ applier                    the thread that owns the files ([`crate::apply`])
//! ├─ readers                    a pool of connections that cannot write
//! ├─ horos.replica.NAME         the service: apply, have, rollback, resume
//! ├─ status-NAME                answers `status` under the same name, also while a snapshot comes
//! └─ subscription               asks the source to be fed, every 2 s
//! ```
//!
//! The handle is what actors of this node use: they [read](Replica::read), [wait](Replica::wait_for) until what they wrote elsewhere has
//! arrived here, and are [told](Replica::changes) what changed, to drop what they remember of it. Other processes read the file itself.
//!
//! - The position moves when the rows are committed, never before; whoever waited for it and then reads, reads them.
//! - Streams are taken from the configured source alone, by its certificate. One at a time; they come in order or are refused.
//! - With the source away, what is here is read on, and [`Replica::status`] says how old it may be.

mod changes;
mod desk;
mod subscription;
#[cfg(test)]
mod tests;
mod thread;
mod waiters;

use std::{
    any::TypeId,
    fmt,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::future::BoxFuture;
use horos_store::{
    open::{Access, Check, Options},
    readers::{ReadError, Readers, ReadersConfig},
};
use horos_supervision::{
    ChildSpec, Context, Exchange, ServiceSpec, Strategy, SupervisorSpec, Vitals,
    exchange::{Inbox, RegisterError},
    mailbox::{Post, Returned},
    service as hosted, worker,
};
use horos_wire::{
    NodeId, NodeName, Request, Role,
    address::AddressError,
    protocol::{
        Method,
        sync::{self, KnownTable, Position, ReplicaAsk, ReplicaState, ReplicaStatus, ReplicaTable, TableMark},
    },
};
use parking_lot::Mutex;
use rusqlite::Connection;
use serde::Serialize;
use tokio::sync::Notify;

pub use crate::{apply::ReadableBy, publisher::Conditions};
use crate::{
    apply::{Progress, Standing, State},
    publisher::cut,
    source::chain,
};
pub use changes::{Changed, Changes, Tables};
use desk::Desk;
use subscription::Subscription;
use thread::Jobs;
use waiters::Waiters;
pub use waiters::{MAX_WAITERS, WaitError};

/// A message of the service is a stream, which may take as long as the publisher lets it.
const STUCK_AFTER: Duration = Duration::from_secs(6 * 3600);
/// Without word from the source for so long, the node says so: six renewals.
const OUT_OF_TOUCH: Duration = Duration::from_secs(12);

/// Who feeds a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// This node.
    Node(NodeName),
    /// The node of this role that publishes it. Where several nodes of the role might publish something of that name, name the node.
    Role(Role),
}

/// A replica, as it is configured.
#[derive(Clone, Debug)]
pub struct ReplicaConfig {
    /// The publication's name, which is the replica's too.
    pub name: Box<str>,
    /// The database file. Other files of the replica are beside it, their names begin with its.
    pub path: PathBuf,
    /// Who feeds it.
    pub from: Origin,
    /// Who may read it besides the node. Default nobody.
    pub readable_by: ReadableBy,
    /// Most bytes of the file. What would make it larger is refused, and what is there is read on. Default none.
    pub max_bytes: Option<u64>,
    /// How the file is checked when the node starts; the pages of 1 GiB are read in a second or two. Default [`Check::Quick`].
    pub check: Check,
    /// Threads that read, a connection each. Default 2.
    pub readers: usize,
    /// Page cache of each of them, in KiB. Default 4,000.
    pub reader_cache_kib: u32,
    /// How long a stream may bring nothing before it is given up. Default 30 s.
    pub stall: Duration,
}

impl ReplicaConfig {
    /// The defaults.
    pub fn new(name: &str, path: impl Into<PathBuf>, from: Origin) -> Self {
        Self {
            name: name.into(),
            path: path.into(),
            from,
            readable_by: ReadableBy::Owner,
            max_bytes: None,
            check: Check::Quick,
            readers: 2,
            reader_cache_kib: 4_000,
            stall: Duration::from_secs(30),
        }
    }
}

/// Why a replica was not made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReplicaConfigError {
    /// Its name is none.
    #[error("replica {name:?}: {source}")]
    Name {
        /// What was given.
        name: Box<str>,
        /// What is wrong with it.
        source: AddressError,
    },
    /// A service of that name exists on this node.
    #[error(transparent)]
    Registered(#[from] RegisterError),
}

/// Why a read did not succeed. Reads have no effect, so every one may be tried again.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReplicaReadError<E> {
    /// There is nothing here yet. Ask the source.
    #[error("the replica has no snapshot yet")]
    NoSnapshot,
    /// The pool's answer.
    #[error(transparent)]
    Read(#[from] ReadError<E>),
}

/// A replica. Cheap to clone.
#[derive(Clone)]
pub struct Replica(Arc<Inner>);

struct Inner {
    config: ReplicaConfig,
    conditions: Conditions,
    readers: Readers,
    jobs: Jobs,
    progress: Progress,
    waiters: Waiters,
    changes: changes::Told,
    /// What the thread last said of the files.
    view: Mutex<View>,
    /// The subscription has something new to say.
    news: Notify,
    deltas: AtomicU64,
    snapshots: AtomicU64,
}

/// What is known of a replica without asking its thread.
#[derive(Default)]
struct View {
    /// Whether the files were opened: before that nobody knows what is here, and "nothing" would be answered with a snapshot.
    opened: bool,
    state: Option<Arc<State>>,
    /// Whether there are rows that a snapshot need not send.
    parts: bool,
    /// The node that was last subscribed at.
    source: Option<NodeName>,
    /// When everything was here that was published then.
    fresh: Option<Instant>,
    /// When the source last answered.
    in_touch: Option<Instant>,
    /// The last failure, until the next success.
    last_error: Option<Box<str>>,
    /// What the file was found to be.
    damage: Option<Box<str>>,
    /// Why the files cannot be opened.
    closed: Option<Box<str>>,
    /// Why nothing comes from the source.
    away: Option<Box<str>>,
    /// What was said last.
    said: Option<Option<String>>,
}

impl fmt::Debug for Replica {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Replica({:?})", self.0.config.name)
    }
}

impl Replica {
    /// A replica whose [`Replica::children`] do not run yet: reads wait for them.
    pub fn new(config: ReplicaConfig, conditions: Conditions) -> Self {
        let mut options = Options::new(&config.path, Access::ReadOnly);
        options.cache_kib = config.reader_cache_kib;
        // Mapped pages would count as this process's memory, up to the file's size.
        options.mmap_bytes = Some(0);
        let readers = Readers::new(ReadersConfig { threads: config.readers, ..ReadersConfig::new(options) });
        Self(Arc::new(Inner {
            config,
            conditions,
            readers,
            jobs: Jobs::new(),
            progress: Progress::default(),
            waiters: Waiters::default(),
            changes: changes::Told::default(),
            view: Mutex::default(),
            news: Notify::new(),
            deltas: AtomicU64::new(0),
            snapshots: AtomicU64::new(0),
        }))
    }

    /// Registers the service and gives what is to run, for a supervisor of its own. To be called once.
    ///
    /// # Errors
    /// [`ReplicaConfigError`].
    pub fn children(&self, exchange: &Exchange, runtime: &tokio::runtime::Handle) -> Result<Vec<ChildSpec>, ReplicaConfigError> {
        let name = &self.0.config.name;
        let bad = |source| ReplicaConfigError::Name { name: name.clone(), source };
        let public = sync::replica_name(name).map_err(bad)?;
        let asked = format!("status-{name}").parse().map_err(bad)?;
        let (work, worked) =
            self.hosted(exchange, runtime, ServiceSpec { stuck_after: STUCK_AFTER, ..ServiceSpec::new(public.clone()) })?;
        let (status, answered) = self.hosted(exchange, runtime, ServiceSpec::new(asked))?;
        exchange.register(public.clone(), Arc::new(Front { work: worked, status: answered }))?;
        let context = Context::new(exchange.clone(), public.as_str());
        let (applier, subscription) = (self.0.clone(), self.0.clone());
        Ok(vec![
            worker("applier", move |vitals| thread::run(applier.clone(), vitals)),
            self.0.readers.child("readers"),
            work,
            status,
            worker("subscription", move |vitals| Subscription::new(subscription.clone(), context.clone()).run(vitals)),
        ])
    }

    /// [`Replica::children`] under one supervisor, `replica-NAME`.
    ///
    /// # Errors
    /// [`ReplicaConfigError`].
    pub fn supervisor(&self, exchange: &Exchange, runtime: &tokio::runtime::Handle) -> Result<SupervisorSpec, ReplicaConfigError> {
        let children = self.children(exchange, runtime)?;
        Ok(SupervisorSpec::new(&format!("replica-{}", self.0.config.name), Strategy::OneForOne, children))
    }

    /// A service, and its mailbox, which is taken out of the directory again: it gets there behind a [`Front`].
    fn hosted(
        &self,
        exchange: &Exchange,
        runtime: &tokio::runtime::Handle,
        spec: ServiceSpec,
    ) -> Result<(ChildSpec, Arc<dyn Inbox>), ReplicaConfigError> {
        let (name, inner) = (spec.name.clone(), self.0.clone());
        let child = hosted::<Desk, _, _>(exchange, runtime, spec, move |_| std::future::ready(Ok(Desk::new(inner.clone()))))?;
        let inbox = exchange.find(&name).ok_or_else(|| RegisterError::Taken(name.clone()))?;
        exchange.unregister(&name);
        Ok((child, inbox))
    }

    /// Runs `work` in a read transaction, until `deadline` at most.
    ///
    /// # Errors
    /// [`ReplicaReadError`].
    ///
    /// # Cancel safety
    /// A dropped future leaves nothing behind.
    pub async fn read<T, E, F>(&self, deadline: Instant, work: F) -> Result<T, ReplicaReadError<E>>
    where
        T: Send + 'static,
        E: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, E> + Send + 'static,
    {
        match self.0.readers.read(deadline, work).await {
            Err(ReadError::Open(_)) if self.0.view.lock().state.is_none() => Err(ReplicaReadError::NoSnapshot),
            other => Ok(other?),
        }
    }

    /// What the replica has; none before its first snapshot, and after a roll-back until the next one.
    pub fn position(&self) -> Option<Position> {
        self.0.waiters.at()
    }

    /// Waits until everything up to `position` is here: what is read afterwards has it.
    ///
    /// # Errors
    /// [`WaitError`]: ask the source instead.
    ///
    /// # Cancel safety
    /// A dropped future leaves nothing behind.
    pub async fn wait_for(&self, position: &Position, deadline: Instant) -> Result<(), WaitError> {
        self.0.waiters.wait(position, deadline).await
    }

    /// What will have changed from now on, for whoever remembers what was read.
    pub fn changes(&self) -> Changes {
        self.0.changes.subscribe(self.clone())
    }

    /// Goes back to what was served before the last snapshot, as an operator may order.
    ///
    /// # Errors
    /// [`sync::ReplicaError`].
    pub async fn roll_back(&self) -> Result<sync::RolledBack, sync::ReplicaError> {
        self.0.roll_back().await
    }

    /// Takes changes again.
    ///
    /// # Errors
    /// [`sync::ReplicaError`].
    pub async fn resume(&self) -> Result<sync::Resumed, sync::ReplicaError> {
        self.0.resume().await
    }

    /// How it is, for operators. Asks nobody.
    pub fn status(&self) -> ReplicaStatus {
        self.0.status()
    }

    /// Counters.
    pub fn metrics(&self) -> ReplicaMetrics {
        let status = self.status();
        ReplicaMetrics {
            replica: status.name,
            seq: status.position.map(|position| position.seq),
            stale_ms: status.stale_ms,
            deltas: status.deltas,
            snapshots: status.snapshots,
            received_bytes: status.received_bytes,
            waiting: self.0.waiters.len() as u64,
            wal_bytes: crate::apply::wal_bytes(&self.0.config.path),
        }
    }
}

/// Counters of a replica, since the node was started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ReplicaMetrics {
    /// Its name.
    pub replica: Box<str>,
    /// The entry of the log up to which it has everything.
    pub seq: Option<i64>,
    /// How old its data may be, in milliseconds.
    pub stale_ms: Option<u64>,
    /// Streams of changes applied.
    pub deltas: u64,
    /// Snapshots applied.
    pub snapshots: u64,
    /// Bytes received.
    pub received_bytes: u64,
    /// Who waits for a position.
    pub waiting: u64,
    /// Bytes in the file's WAL.
    pub wal_bytes: u64,
}

impl Inner {
    /// Whether streams are taken from `node`.
    fn is_source(&self, node: &NodeId) -> bool {
        match &self.config.from {
            Origin::Node(name) => node.role.is_node() && node.name == *name,
            Origin::Role(role) => node.role == *role && self.view.lock().source.as_ref().is_none_or(|known| node.name == *known),
        }
    }

    /// What is said to the source.
    fn subscribe(&self) -> sync::Subscribe {
        let view = self.view.lock();
        let state = view.state.as_ref();
        sync::Subscribe {
            have: state.and_then(|state| state.current()),
            tables: state.map_or_else(Vec::new, |state| known(state)),
            version: sync::STREAM_VERSION,
            resume: view.parts,
        }
    }

    fn status(&self) -> ReplicaStatus {
        let view = self.view.lock();
        let state = view.state.as_ref();
        let doing = match state.map(|state| state.standing) {
            Some(Standing::Pinned) => ReplicaState::Pinned,
            _ if self.progress.receives_snapshot() => {
                ReplicaState::Receiving { rows: self.progress.rows(), bytes: self.progress.stream_bytes() }
            }
            Some(Standing::Broken) => ReplicaState::Broken,
            Some(Standing::Live) => ReplicaState::Live,
            None => ReplicaState::Empty,
        };
        let source = view.source.clone().or_else(|| match &self.config.from {
            Origin::Node(name) => Some(name.clone()),
            // Whoever publishes it is not known yet.
            Origin::Role(_) => None,
        });
        ReplicaStatus {
            name: self.config.name.clone(),
            source,
            position: state.and_then(|state| state.current()),
            tables: state.map_or_else(Vec::new, |state| {
                let table = |it: &crate::apply::Known| ReplicaTable {
                    name: it.shape.name().into(),
                    mark: TableMark::from_bytes(it.shape.head.fingerprint),
                    changed_at: Some(it.changed_at),
                };
                state.tables.iter().map(table).collect()
            }),
            state: doing,
            resume: view.parts,
            applied_at: state.map(|state| state.applied_at),
            stale_ms: view.fresh.map(|fresh| u64::try_from(fresh.elapsed().as_millis()).unwrap_or(u64::MAX)),
            deltas: self.deltas.load(Ordering::Relaxed),
            snapshots: self.snapshots.load(Ordering::Relaxed),
            received_bytes: self.progress.bytes(),
            last_error: view
                .last_error
                .clone()
                .or_else(|| view.closed.clone())
                .or_else(|| view.away.clone())
                .or_else(|| view.damage.clone()),
        }
    }

    /// Changes what is known, and says what is wrong now if that is something else.
    fn note(&self, change: impl FnOnce(&mut View)) {
        let said = {
            let mut view = self.view.lock();
            change(&mut view);
            let wrong = view.closed.as_deref().or(view.away.as_deref()).or(view.damage.as_deref());
            let now = wrong.map(|wrong| format!("replica {}: {wrong}", self.config.name));
            if view.said.as_ref() == Some(&now) {
                return;
            }
            view.said = Some(now.clone());
            now
        };
        match &said {
            Some(wrong) => tracing::warn!("{wrong}"),
            None => tracing::info!(replica = %self.config.name, "all is well"),
        }
        (self.conditions)(&self.config.name, said.as_deref());
    }

    fn failed(&self, error: &dyn std::error::Error) {
        let text = cut(chain(error).into());
        self.note(|view| view.last_error = Some(text));
    }
}

fn known(state: &State) -> Vec<KnownTable> {
    let table =
        |it: &crate::apply::Known| KnownTable { name: it.shape.name().into(), mark: TableMark::from_bytes(it.shape.head.fingerprint) };
    state.tables.iter().map(table).collect()
}

/// One name for two mailboxes, so that `status` is answered while a stream is applied.
struct Front {
    work: Arc<dyn Inbox>,
    status: Arc<dyn Inbox>,
}

impl Inbox for Front {
    fn post(&self, post: Box<Post>) -> Result<(), Box<Returned>> {
        if post.method == ReplicaAsk::METHOD { self.status.post(post) } else { self.work.post(post) }
    }
    fn protocol(&self) -> (&'static str, u16) {
        self.work.protocol()
    }
    fn protocol_type(&self) -> TypeId {
        self.work.protocol_type()
    }
    fn methods(&self) -> &'static [Method] {
        self.work.methods()
    }
    fn vitals(&self) -> &Arc<Vitals> {
        self.work.vitals()
    }
    fn is_closed(&self) -> bool {
        self.work.is_closed()
    }
    fn room(&self) -> BoxFuture<'static, ()> {
        self.work.room()
    }
}

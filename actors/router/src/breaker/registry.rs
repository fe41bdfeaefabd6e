//! All breakers of a node, by service and endpoint, and the supervisor of their actors.
//!
//! The map is in memory and answers at once. A *keeper*, first child of the supervisor, starts an actor at an endpoint's first use
//! and stops it when its route is gone; before that, at the node's start, it has read what was written down, so that nobody is let
//! through to an endpoint that was found broken a moment ago.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use horos_store::writer::Writer;
use horos_supervision::{ChildSpec, Strategy, SupervisorHandle, SupervisorSpec, Vitals, worker, worker_with};
use horos_wire::tree::Kind;
use parking_lot::{Mutex, RwLock};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::{sync::Notify, time::sleep};

use super::{Breaker, Forced, Snapshot, actor, actor::Written, store, store::Record};
use crate::config;

/// Most breakers of a node: what its supervisor can have as children, the keeper beside them. Endpoints beyond have a breaker that
/// is neither written down nor shown.
pub const MAX_BREAKERS: usize = horos_supervision::supervisor::MAX_CHILDREN - 1;
/// Open breakers that a condition names.
const MAX_NAMED: usize = 8;
/// Longest part of an endpoint in an actor's name.
const MAX_SHOWN: usize = 120;
/// The keeper looks no more often: thousands may open at once.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// What was not read is tried again after this.
const RECALL_AGAIN: Duration = Duration::from_secs(5);
/// The condition that names what is open.
const CONDITION: &str = "breakers";

/// Told what is wrong, by name: none when nothing is.
pub type Told = Arc<dyn Fn(&str, Option<&str>) + Send + Sync>;

/// An operator's decision, as it stands in `control.db`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForcedRow {
    /// Of which service.
    pub service: Box<str>,
    /// Of which endpoint; the empty one is all that have no row of their own.
    pub endpoint: Box<str>,
    /// Into what.
    pub forced: Option<Forced>,
    /// How often it was ordered to be reset.
    pub resets: i64,
}

/// A breaker and whose it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BreakerStatus {
    /// The service.
    pub service: Box<str>,
    /// The endpoint.
    pub endpoint: Box<str>,
    /// When it opened, in milliseconds since 1970.
    pub opened_at: Option<i64>,
    /// How it stands.
    #[serde(flatten)]
    pub breaker: Snapshot,
}

/// The breakers of a node. Cheap to clone.
#[derive(Clone)]
pub struct Breakers {
    shared: Arc<Shared>,
}

/// A breaker in the map.
pub(super) struct Entry {
    pub(super) service: Box<str>,
    pub(super) endpoint: Box<str>,
    pub(super) breaker: Arc<Breaker>,
    pub(super) written: Mutex<Option<Written>>,
    /// Orders to reset it that were carried out; none before it is known how many there were.
    resets: Mutex<Option<i64>>,
}

type ByEndpoint<T> = BTreeMap<Box<str>, BTreeMap<Box<str>, T>>;

pub(super) struct Shared {
    writer: Option<Writer>,
    told: Told,
    clock: fn() -> i64,
    entries: RwLock<Entries>,
    /// What it woke for is found by looking.
    woken: Notify,
    recalled: AtomicBool,
}

#[derive(Default)]
struct Entries {
    known: ByEndpoint<Arc<Entry>>,
    count: usize,
    /// Those that are not in use: written down in another life, or their route gone. As many as may be known at most.
    remembered: ByEndpoint<Record>,
    remembered_count: usize,
    /// None before it was first told.
    forced: Option<ByEndpoint<(Option<Forced>, i64)>>,
}

impl Breakers {
    /// No breaker yet. `writer` is of the file with [`store::MIGRATIONS`]; without one nothing is written down. Their actors run
    /// once [`child`](Self::child) is started; before that the breakers work, but remember nothing.
    pub fn new(writer: Option<Writer>, told: Told) -> Self {
        Self::with_clock(writer, told, unix_ms)
    }

    /// The same by another wall clock, in milliseconds since 1970, for tests.
    pub fn with_clock(writer: Option<Writer>, told: Told, clock: fn() -> i64) -> Self {
        let shared = Shared { writer, told, clock, entries: RwLock::default(), woken: Notify::new(), recalled: AtomicBool::new(false) };
        Self { shared: Arc::new(shared) }
    }

    /// The supervisor of the breakers' actors, called `breakers`. Starts after the writer and before the routes: once it has started,
    /// what was written down holds.
    pub fn child(&self) -> ChildSpec {
        self.supervisor().into_child()
    }

    /// The same, for whoever wants to keep its handle.
    pub fn supervisor(&self) -> SupervisorSpec {
        let shared = Arc::clone(&self.shared);
        let handle = Arc::new(std::sync::OnceLock::<SupervisorHandle>::new());
        let given = Arc::clone(&handle);
        let mut keeper = worker("keeper", move |vitals| {
            let handle = given.get().cloned();
            let shared = Arc::clone(&shared);
            async move {
                // It is given below, before anything can start.
                let Some(handle) = handle else { return };
                Keeper { shared, handle, vitals, running: BTreeMap::new(), told: None }.run().await;
            }
        });
        let (shared, start) = (Arc::clone(&self.shared), keeper.start);
        keeper.start = Arc::new(move |given| {
            let (shared, start) = (Arc::clone(&shared), Arc::clone(&start));
            Box::pin(async move {
                shared.recall().await;
                start(given).await
            })
        });
        let spec = SupervisorSpec::new("breakers", Strategy::OneForOne, vec![keeper]);
        let _ = handle.set(spec.handle());
        spec
    }

    /// The breaker of an endpoint: the same one as long as it is not retired, from now on with this policy.
    pub fn breaker(&self, service: &str, endpoint: &str, policy: config::Breaker) -> Arc<Breaker> {
        let now = Instant::now();
        if let Some(entry) = self.shared.entries.read().known.get(service).and_then(|of| of.get(endpoint)) {
            entry.breaker.set_policy(policy, now);
            return Arc::clone(&entry.breaker);
        }
        let mut entries = self.shared.entries.write();
        if let Some(entry) = entries.known.get(service).and_then(|of| of.get(endpoint)) {
            entry.breaker.set_policy(policy, now);
            return Arc::clone(&entry.breaker);
        }
        let breaker = Arc::new(Breaker::new(policy, now));
        let entry = Arc::new(Entry {
            service: service.into(),
            endpoint: endpoint.into(),
            breaker: Arc::clone(&breaker),
            written: Mutex::default(),
            resets: Mutex::default(),
        });
        let forced = entries.forced(service, endpoint);
        if entries.count >= MAX_BREAKERS {
            tracing::warn!(service, endpoint, most = MAX_BREAKERS, "too many breakers: this one is neither written down nor shown");
            entry.decide(forced, now);
            return breaker;
        }
        if let Some(record) = entries.recollect(service, endpoint) {
            entry.restore(&record, self.shared.unix_ms(), now);
        }
        entry.decide(forced, now);
        let shared = Arc::downgrade(&self.shared);
        breaker.on_first_use(move || {
            if let Some(shared) = Weak::upgrade(&shared) {
                shared.wake();
            }
        });
        entries.known.entry(service.into()).or_default().insert(endpoint.into(), entry);
        entries.count += 1;
        drop(entries);
        if breaker.snapshot(now).refuses() {
            // Shown although nobody calls through it.
            self.shared.wake();
        }
        breaker
    }

    /// The endpoint's route is gone: its actor is stopped. What it went through is remembered for when it comes back.
    pub fn retire(&self, service: &str, endpoint: &str) {
        let mut entries = self.shared.entries.write();
        let Some(of) = entries.known.get_mut(service) else { return };
        let Some(entry) = of.remove(endpoint) else { return };
        if of.is_empty() {
            entries.known.remove(service);
        }
        entries.count -= 1;
        let snapshot = entry.breaker.snapshot(Instant::now());
        if snapshot.state != super::State::Closed || snapshot.failures > 0 {
            let record = Record::of(&snapshot, entry.resets(), self.shared.unix_ms());
            entries.remember(service, endpoint, record);
        }
        drop(entries);
        self.shared.wake();
    }

    /// All breakers that an endpoint in the routes has, by name.
    pub fn list(&self) -> Vec<BreakerStatus> {
        let (now, unix_ms) = (Instant::now(), self.shared.unix_ms());
        self.shared.entries.read().all().map(|entry| entry.status(now, unix_ms)).collect()
    }

    /// Takes over what operators decided: all of it, each time. A row that counts more resets than before resets; a row that is gone
    /// leaves the breaker to itself.
    pub fn forced(&self, rows: &[ForcedRow]) {
        let now = Instant::now();
        let mut forced: ByEndpoint<_> = BTreeMap::new();
        for row in rows {
            forced.entry(row.service.clone()).or_default().insert(row.endpoint.clone(), (row.forced, row.resets));
        }
        // As a rule it is a route that was edited. What each breaker is forced into was decided when it was made, and when that changed.
        if self.shared.entries.read().forced.as_ref() == Some(&forced) {
            return;
        }
        let mut entries = self.shared.entries.write();
        entries.forced = Some(forced);
        for entry in entries.all() {
            entry.decide(entries.forced(&entry.service, &entry.endpoint), now);
        }
        drop(entries);
        self.shared.wake();
    }
}

impl fmt::Debug for Breakers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Breakers").field("count", &self.shared.entries.read().count).finish_non_exhaustive()
    }
}

impl Entry {
    pub(super) fn resets(&self) -> Option<i64> {
        *self.resets.lock()
    }

    fn restore(&self, record: &Record, unix_ms: i64, now: Instant) {
        *self.resets.lock() = record.resets;
        self.breaker.restore(&record.snapshot(unix_ms), now);
    }

    fn decide(&self, decided: Option<(Option<Forced>, i64)>, now: Instant) {
        let Some((forced, resets)) = decided else { return };
        self.breaker.force(forced, now);
        let before = self.resets.lock().replace(resets);
        if before.is_some_and(|before| resets > before) {
            self.breaker.reset(now);
        }
    }

    fn status(&self, now: Instant, unix_ms: i64) -> BreakerStatus {
        let breaker = self.breaker.snapshot(now);
        let opened_at = Record::of(&breaker, None, unix_ms).opened_at;
        BreakerStatus { service: self.service.clone(), endpoint: self.endpoint.clone(), opened_at, breaker }
    }

    /// The actor's name: that of the breaker, cut if need be, and then with a number that tells it from others.
    fn name(&self) -> Box<str> {
        let Self { service, endpoint, .. } = self;
        match endpoint.char_indices().nth(MAX_SHOWN) {
            None => format!("breaker {service} {endpoint}").trim_end().into(),
            Some((cut, _)) => {
                use sha2::{Digest as _, Sha256};
                let hash = Sha256::digest(endpoint.as_bytes());
                let number = u64::from_be_bytes(*hash.first_chunk().expect("SHA-256 gives 32 bytes"));
                format!("breaker {service} {}… {number:016x}", &endpoint[..cut]).into()
            }
        }
    }
}

impl Entries {
    fn all(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.known.values().flat_map(BTreeMap::values)
    }

    /// What holds for an endpoint; none if nothing has been told yet.
    fn forced(&self, service: &str, endpoint: &str) -> Option<(Option<Forced>, i64)> {
        let of = self.forced.as_ref()?.get(service);
        let row = |endpoint: &str| of.and_then(|of| of.get(endpoint)).copied().unwrap_or((None, 0));
        let (all, own) = (row(""), if endpoint.is_empty() { (None, 0) } else { row(endpoint) });
        Some((own.0.or(all.0), own.1.saturating_add(all.1)))
    }

    fn remember(&mut self, service: &str, endpoint: &str, record: Record) {
        if self.remembered_count >= MAX_BREAKERS {
            return;
        }
        let before = self.remembered.entry(service.into()).or_default().insert(endpoint.into(), record);
        self.remembered_count += usize::from(before.is_none());
    }

    fn recollect(&mut self, service: &str, endpoint: &str) -> Option<Record> {
        let of = self.remembered.get_mut(service)?;
        let record = of.remove(endpoint)?;
        if of.is_empty() {
            self.remembered.remove(service);
        }
        self.remembered_count -= 1;
        Some(record)
    }
}

impl Shared {
    pub(super) fn writer(&self) -> Option<&Writer> {
        self.writer.as_ref()
    }

    pub(super) fn unix_ms(&self) -> i64 {
        (self.clock)()
    }

    /// Has the keeper look.
    pub(super) fn wake(&self) {
        self.woken.notify_one();
    }

    /// Reads what was written down, once. Breakers that are in use already know better.
    async fn recall(&self) {
        let Some(writer) = self.writer.as_ref().filter(|_| !self.recalled.load(Ordering::Relaxed)) else { return };
        let unix_ms = self.unix_ms();
        match store::recall(writer, unix_ms).await {
            Ok(rows) => {
                let now = Instant::now();
                let mut entries = self.entries.write();
                for (service, endpoint, record) in rows {
                    let known = entries.known.get(&service).and_then(|of| of.get(&endpoint)).cloned();
                    match known {
                        Some(entry) if !entry.breaker.is_used() => {
                            entry.restore(&record, unix_ms, now);
                            entry.decide(entries.forced(&service, &endpoint), now);
                        }
                        Some(_) => {}
                        None => entries.remember(&service, &endpoint, record),
                    }
                }
                self.recalled.store(true, Ordering::Relaxed);
                (self.told)("breakers-remembered", None);
            }
            Err(error) => {
                // Calls are more than what is remembered of earlier ones.
                let error = super::chain(&error);
                tracing::warn!(%error, "what is remembered of breakers cannot be read: they start closed");
                (self.told)("breakers-remembered", Some("what is remembered of breakers cannot be read: they started closed"));
            }
        }
    }
}

/// Starts and stops the breakers' actors, and tells which are open.
struct Keeper {
    shared: Arc<Shared>,
    handle: SupervisorHandle,
    vitals: Arc<Vitals>,
    running: BTreeMap<Box<str>, Arc<Entry>>,
    told: Option<String>,
}

impl Keeper {
    async fn run(mut self) {
        // Those of an earlier life of this actor are started again below: which they were died with it.
        for child in self.handle.tree().children.iter().filter(|child| child.name.starts_with("breaker ")) {
            let _ = self.handle.remove_child(&child.name).await;
        }
        loop {
            self.look().await;
            self.vitals.progressed(Instant::now());
            sleep(LOOK_EVERY).await;
            if self.shared.writer.is_some() && !self.shared.recalled.load(Ordering::Relaxed) {
                tokio::select! {
                    () = self.shared.woken.notified() => {}
                    () = sleep(RECALL_AGAIN) => self.shared.recall().await,
                }
            } else {
                self.shared.woken.notified().await;
            }
        }
    }

    async fn look(&mut self) {
        let used: BTreeMap<_, _> = {
            let entries = self.shared.entries.read();
            let used = entries.all().filter(|entry| entry.breaker.is_used() || entry.breaker.snapshot(Instant::now()).refuses());
            used.map(|entry| (entry.name(), Arc::clone(entry))).collect()
        };
        let same = |one: Option<&Arc<Entry>>, other: &Arc<Entry>| one.is_some_and(|one| Arc::ptr_eq(one, other));
        let gone: Vec<_> =
            self.running.iter().filter(|(name, entry)| !same(used.get(*name), entry)).map(|(name, _)| name.clone()).collect();
        for name in gone {
            // It fails if there is none, or no supervisor any more: either way it does not run.
            let _ = self.handle.remove_child(&name).await;
            self.running.remove(&name);
        }
        let new: Vec<_> = used.iter().filter(|(name, _)| !self.running.contains_key(*name)).collect();
        for (name, entry) in new {
            let (shared, kept) = (Arc::clone(&self.shared), Arc::clone(entry));
            // Busy with being open for as long as it takes, and not stuck for that.
            let vitals = Vitals::new(name, Kind::Worker, Duration::MAX);
            let child = worker_with(vitals, move |vitals| actor::keep(Arc::clone(&shared), Arc::clone(&kept), vitals));
            match self.handle.add_child(child).await {
                Ok(()) => drop(self.running.insert(name.clone(), Arc::clone(entry))),
                Err(error) => {
                    let error = super::chain(&error);
                    tracing::warn!(actor = %name, %error, "a breaker's actor does not start: it is not written down");
                    self.shared.wake();
                }
            }
        }
        self.tell(used.values());
    }

    fn tell<'a>(&mut self, used: impl Iterator<Item = &'a Arc<Entry>>) {
        let now = Instant::now();
        let refusing = used.filter(|entry| entry.breaker.snapshot(now).refuses());
        let names: Vec<_> = refusing.map(|entry| format!("{} {}", entry.service, entry.endpoint).trim_end().to_owned()).collect();
        let wrong = (!names.is_empty()).then(|| {
            let more = names.len().saturating_sub(MAX_NAMED);
            let named = names[..names.len() - more].join(", ");
            if more == 0 { format!("open: {named}") } else { format!("open: {named} and {more} more") }
        });
        if wrong != self.told {
            (self.shared.told)(CONDITION, wrong.as_deref());
            self.told = wrong;
        }
    }
}

fn unix_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

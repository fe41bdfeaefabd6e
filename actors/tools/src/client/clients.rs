//! All endpoints of a node, and the supervisor of their actors.
//!
//! A *keeper*, first child of the supervisor, starts an actor at an endpoint's first use and stops it when nobody names it any more.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{Arc, OnceLock, Weak},
    time::{Duration, Instant},
};

use horos_egress::Egress;
use horos_link::{Peers, tls::Tls};
use horos_router::strategy::mcp::Endpoint;
use horos_supervision::{Strategy, SupervisorHandle, SupervisorSpec, Vitals, worker, worker_with};
use horos_wire::tree::Kind;
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};
use tokio::sync::Notify;

use super::{Client, Options, Programs, Status, life, quic::Quic, shared::Shared};

/// Most endpoints of a node: each has a connection, and over HTTP one request that is always in flight, of the 1024 of an `egress`.
pub const MAX_CLIENTS: usize = 256;
/// What the names of the actors begin with.
const PREFIX: &str = "mcp ";
/// Longest part of an endpoint in its actor's name.
const MAX_SHOWN: usize = 120;
/// The keeper looks no more often: a table of routes may be taken up at once.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// There are as many endpoints as there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there are {MAX_CLIENTS} endpoints by mcp already, which is as many as a node may have")]
pub struct TooMany;

/// By what a node reaches servers.
#[derive(Clone, Debug)]
pub struct Ways {
    pub(super) egress: Egress,
    pub(super) quic: Arc<Quic>,
    pub(super) programs: Programs,
}

impl Ways {
    /// By HTTP and QUIC, as `egress` permits, whose options are to be [`patient`](super::patient).
    pub fn new(egress: Egress) -> Self {
        Self { egress, quic: Arc::default(), programs: Programs::default() }
    }

    /// By these programs, too.
    #[must_use]
    pub fn starting(self, programs: Programs) -> Self {
        Self { programs, ..self }
    }
}

/// The endpoints of a node. Cheap to clone.
#[derive(Clone)]
pub struct Clients(Arc<Inner>);

struct Inner {
    ways: Ways,
    known: Mutex<Known>,
    woken: Arc<Notify>,
}

#[derive(Default)]
struct Known {
    /// By endpoint and what it is authorized by.
    by_key: HashMap<Key, Weak<Held>>,
    /// Of those that were used, by the names of their actors.
    used: BTreeMap<Arc<str>, Arc<Shared>>,
}

type Key = (Endpoint, Option<Box<str>>);

/// An endpoint, for as long as anybody names it.
pub(super) struct Held {
    pub(super) shared: Arc<Shared>,
    key: Key,
    clients: Weak<Inner>,
}

impl Drop for Held {
    fn drop(&mut self) {
        let Some(clients) = self.clients.upgrade() else { return };
        let mut known = clients.known.lock();
        // Another may have come in its place.
        if known.by_key.get(&self.key).is_some_and(|held| held.strong_count() == 0) {
            known.by_key.remove(&self.key);
        }
        known.used.retain(|_, shared| !Arc::ptr_eq(shared, &self.shared));
        drop(known);
        clients.woken.notify_one();
    }
}

impl fmt::Debug for Clients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Clients({})", self.0.known.lock().by_key.len())
    }
}

impl Clients {
    /// None yet. Their actors run once the [supervisor](Self::supervisor) does; before that calls wait for it.
    pub fn new(ways: Ways) -> Self {
        Self(Arc::new(Inner { ways, known: Mutex::default(), woken: Arc::default() }))
    }

    /// The client of `endpoint`: the one there is for whoever is authorized by the same, or a new one, with these options. Dials nobody.
    ///
    /// `authorized` names what `options` authorize by; two of the same name are the same.
    ///
    /// # Errors
    /// [`TooMany`].
    pub fn client(&self, endpoint: Endpoint, authorized: Option<&str>, options: Options) -> Result<Client, TooMany> {
        let key: Key = (endpoint, authorized.map(Into::into));
        let mut known = self.0.known.lock();
        if let Some(held) = known.by_key.get(&key).and_then(Weak::upgrade) {
            return Ok(Client(held));
        }
        if known.by_key.len() >= MAX_CLIENTS {
            return Err(TooMany);
        }
        let held = Arc::new_cyclic(|held: &Weak<Held>| {
            let (clients, this) = (Arc::downgrade(&self.0), held.clone());
            let on_first = move || {
                if let (Some(clients), Some(held)) = (clients.upgrade(), this.upgrade()) {
                    clients.known.lock().used.insert(held.shared.name.clone(), held.shared.clone());
                    clients.woken.notify_one();
                }
            };
            let shared = Shared::new(name(&key), key.0.clone(), self.0.ways.clone(), options, on_first);
            Held { shared: Arc::new(shared), key: key.clone(), clients: Arc::downgrade(&self.0) }
        });
        known.by_key.insert(key, Arc::downgrade(&held));
        Ok(Client(held))
    }

    /// The programs that may be started.
    pub fn programs(&self) -> &Programs {
        &self.0.ways.programs
    }

    /// All that are named, and how they stand.
    pub fn list(&self) -> Vec<Status> {
        let held: Vec<_> = self.0.known.lock().by_key.values().filter_map(Weak::upgrade).collect();
        let mut list: Vec<_> = held.iter().map(|held| held.shared.status()).collect();
        list.sort_by(|one, other| one.endpoint.cmp(&other.endpoint));
        list
    }

    /// From now on nodes of this cluster are reached too, by their names; `peers` knows where they are. Once; before, there is no route
    /// to them.
    pub fn reach_nodes(&self, tls: Arc<Tls>, peers: Arc<Peers>) {
        self.0.ways.quic.reach_nodes(tls, peers);
    }

    /// The supervisor of the actors, called `mcp-clients`.
    pub fn supervisor(&self) -> SupervisorSpec {
        let handle = Arc::new(OnceLock::<SupervisorHandle>::new());
        let (clients, given) = (Arc::downgrade(&self.0), Arc::clone(&handle));
        let keeper = worker("keeper", move |vitals| {
            let (clients, handle) = (clients.clone(), given.get().cloned());
            async move {
                // It is given below, before anything can start.
                let Some(handle) = handle else { return };
                Keeper { clients, handle, vitals, running: BTreeMap::new() }.run().await;
            }
        });
        let spec = SupervisorSpec::new("mcp-clients", Strategy::OneForOne, vec![keeper]);
        let _ = handle.set(spec.handle());
        spec
    }
}

/// What an endpoint is called. What stands in a URL's query may be a secret, and two that differ there only have different numbers.
fn name((endpoint, authorized): &Key) -> Arc<str> {
    let shown = match endpoint {
        Endpoint::Http(url) | Endpoint::Http3(url) => {
            let scheme = if matches!(endpoint, Endpoint::Http3(_)) { "h3" } else { url.scheme_str().unwrap_or_default() };
            format!("{scheme}://{}{}", url.authority().map_or("", |a| a.as_str()), url.path())
        }
        other => other.to_string(),
    };
    let whole = endpoint.to_string();
    if shown.len() <= MAX_SHOWN && shown == whole && authorized.is_none() {
        return shown.into();
    }
    let cut = shown.char_indices().nth(MAX_SHOWN).map_or(shown.len(), |(at, _)| at);
    let mut digest = Sha256::new();
    digest.update(whole.as_bytes());
    digest.update([0]);
    digest.update(authorized.as_deref().unwrap_or_default());
    let number = u32::from_be_bytes(*digest.finalize().first_chunk().expect("SHA-256 gives 32 bytes"));
    let more = if cut < shown.len() { "…" } else { "" };
    format!("{}{more} {number:08x}", &shown[..cut]).into()
}

/// Starts and stops the endpoints' actors.
struct Keeper {
    clients: Weak<Inner>,
    handle: SupervisorHandle,
    vitals: Arc<Vitals>,
    running: BTreeMap<Box<str>, Arc<Shared>>,
}

impl Keeper {
    async fn run(mut self) {
        // Those of an earlier life of this actor are started again below: which they were died with it.
        for child in self.handle.tree().children.iter().filter(|child| child.name.starts_with(PREFIX)) {
            let _ = self.handle.remove_child(&child.name).await;
        }
        loop {
            let Some(clients) = self.clients.upgrade() else {
                // Nobody is left who could name an endpoint.
                std::future::pending::<()>().await;
                continue;
            };
            let woken = clients.woken.clone();
            self.look(&clients).await;
            drop(clients);
            self.vitals.progressed(Instant::now());
            tokio::time::sleep(LOOK_EVERY).await;
            woken.notified().await;
        }
    }

    async fn look(&mut self, clients: &Inner) {
        let used: BTreeMap<Box<str>, Arc<Shared>> = {
            let known = clients.known.lock();
            known.used.iter().map(|(name, shared)| (format!("{PREFIX}{name}").into(), shared.clone())).collect()
        };
        let same = |one: Option<&Arc<Shared>>, other: &Arc<Shared>| one.is_some_and(|one| Arc::ptr_eq(one, other));
        let gone: Vec<_> =
            self.running.iter().filter(|(name, shared)| !same(used.get(*name), shared)).map(|(name, _)| name.clone()).collect();
        for name in gone {
            // It fails if there is none, or no supervisor any more: either way it does not run.
            let _ = self.handle.remove_child(&name).await;
            self.running.remove(&name);
        }
        let new: Vec<_> = used.iter().filter(|(name, _)| !self.running.contains_key(*name)).collect();
        for (name, shared) in new {
            let kept = shared.clone();
            // Busy with being away for as long as the server is, and not stuck for that.
            let child = worker_with(Vitals::new(name, Kind::Worker, Duration::MAX), move |vitals| life::keep(kept.clone(), vitals));
            match self.handle.add_child(child).await {
                Ok(()) => drop(self.running.insert(name.clone(), shared.clone())),
                Err(error) => {
                    tracing::warn!(actor = %name, %error, "an endpoint's actor does not start");
                    clients.woken.notify_one();
                }
            }
        }
    }
}

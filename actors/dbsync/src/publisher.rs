//! The publications of a database file: who may follow them, who does, and how far everybody is.
//!
//! [`Publisher`] is one supervisor a file, started by `nodes`:
//!
//! ```text
//! sync-FILE                     one-for-one
//! ├─ capture                    the file's [`Source`]
//! ├─ feeds-NAME                 one-for-one, a publication
//! │  └─ feed-NODE …             a subscriber: one at a time is on its way to it, whatever the others do
//! ├─ horos.sync.NAME            the service: subscribe, status, verify, head
//! └─ leases                     takes away the feeds of those that no longer renew
//! ```
//!
//! What is kept of a subscriber in memory is its lease and counters for people; where it is, it says itself. So a restart of anything
//! here, or of the node, costs a question and no snapshot.

mod roster;
mod service;

use std::{
    collections::BTreeMap,
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use horos_store::open::{Access, Options};
use horos_supervision::{
    ChildSpec, Context, Exchange, ServiceSpec, Strategy, SupervisorHandle, SupervisorSpec, exchange::RegisterError, service as hosted,
    worker,
};
use horos_wire::{
    NodeId, NodeName, Role,
    address::AddressError,
    protocol::sync::{self, PublicationStatus},
};
use serde::Serialize;
use tokio::sync::Semaphore;

use crate::{
    filter::FilterSpec,
    source::{Source, SourceConfig},
    spool::Spools,
};
pub(crate) use roster::{Progress, Roster, Said, Subscriber};
use service::Desk;

/// Told whenever it changes what is wrong with a database or a publication of that name: none when nothing is. What is said names no
/// path and no value.
pub type Conditions = Arc<dyn Fn(&str, Option<&str>) + Send + Sync>;

/// Memory for pages of a feed's connection: deltas read few, and a snapshot reads each once.
const CACHE_KIB: u32 = 1_024;
/// Subscribers of a publication that may be asked for their chunks at once: a list is 10 MB at most.
const ASKING: usize = 2;
/// Between two looks at the leases.
const LEASES: Duration = Duration::from_secs(1);

/// Who may follow a publication.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Audience {
    /// Every node of a role.
    Role(Role),
    /// One node.
    Node(NodeName),
}

/// What is published of a database under a name.
#[derive(Clone, Debug)]
pub struct Publication {
    /// Its name, which its replicas have too.
    pub name: Box<str>,
    /// What of the database.
    pub filter: FilterSpec,
    /// For whom. Nobody else is answered.
    pub to: Vec<Audience>,
    /// How long it takes until everything that a subscriber has was compared once, in the background. Default 1 h.
    pub verify_every: Duration,
}

impl Publication {
    /// A publication for nobody yet.
    pub fn new(name: &str, filter: FilterSpec) -> Self {
        Self { name: name.into(), filter, to: Vec::new(), verify_every: Duration::from_secs(3600) }
    }

    /// The same, for every node of `role` too.
    #[must_use]
    pub fn to(mut self, role: Role) -> Self {
        self.to.push(Audience::Role(role));
        self
    }

    /// The same, for `node` too.
    #[must_use]
    pub fn to_node(mut self, node: NodeName) -> Self {
        self.to.push(Audience::Node(node));
        self
    }

    fn is_for(&self, node: &NodeId) -> bool {
        self.to.iter().any(|audience| match audience {
            Audience::Role(role) => *role == node.role,
            Audience::Node(name) => *name == node.name,
        })
    }
}

/// What a publisher may take.
#[derive(Clone, Debug)]
pub struct PublisherLimits {
    /// How long a subscription holds unless it is renewed. Default [`sync::LEASE`].
    pub lease: Duration,
    /// Deltas of one file that are built at once; snapshots have their own place, one a publication. Default 4.
    pub builders: usize,
    /// Bytes of all spools of a file together. Default twice the size of the database, and 64 MiB.
    pub spool_bytes: Option<u64>,
    /// What an answer may take that needs no time: a status, a page of chunks. Default 5 s.
    pub ask: Duration,
    /// What a small delta may take until it is applied. Default 30 s.
    pub apply: Duration,
    /// How long a subscriber may take none of what it is sent before it is given up. Default 30 s.
    pub stall: Duration,
    /// Longest that a stream may take in all, from its first byte to the answer. Default 6 h.
    pub stream: Duration,
}

impl Default for PublisherLimits {
    fn default() -> Self {
        Self {
            lease: sync::LEASE,
            builders: 4,
            spool_bytes: None,
            ask: Duration::from_secs(5),
            apply: Duration::from_secs(30),
            stall: Duration::from_secs(30),
            stream: Duration::from_secs(6 * 3600),
        }
    }
}

/// Why a publisher was not made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PublisherError {
    /// A publication's name is none.
    #[error("publication {name:?}: {source}")]
    Name {
        /// What was given.
        name: Box<str>,
        /// What is wrong with it.
        source: AddressError,
    },
    /// Two publications of the file have one name.
    #[error("there are two publications called {0:?}")]
    Twice(Box<str>),
    /// A service of that name exists on this node.
    #[error(transparent)]
    Registered(#[from] RegisterError),
}

/// A publication at work.
pub(crate) struct Published {
    pub(crate) publication: Publication,
    pub(crate) source: Source,
    pub(crate) limits: PublisherLimits,
    pub(crate) context: Context,
    pub(crate) roster: Roster,
    pub(crate) feeds: SupervisorHandle,
    /// Held while feeds come and go, so that two orders about one node never cross.
    pub(crate) changing: tokio::sync::Mutex<()>,
    /// Deltas of the file that may be built now.
    pub(crate) builders: Arc<Semaphore>,
    /// One snapshot of the publication is built at a time; the others wait.
    pub(crate) snapshots: Arc<Semaphore>,
    /// Lists of chunks that are in memory, of [`sync::MAX_HAVE`] at most each.
    pub(crate) asking: Arc<Semaphore>,
    pub(crate) spools: Arc<Spools>,
}

impl fmt::Debug for Published {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Published({:?})", self.publication.name)
    }
}

impl Published {
    /// How a feed opens the file.
    pub(crate) fn options(&self) -> Options {
        Options { mmap_bytes: Some(0), cache_kib: CACHE_KIB, ..Options::new(&self.source.config().file, Access::ReadOnly) }
    }

    /// About how many rows are published, before anybody has counted them: 200 bytes a row.
    pub(crate) fn guessed_rows(&self) -> u64 {
        std::fs::metadata(&self.source.config().file).map_or(0, |of| of.len() / 200)
    }

    /// Everything that is known, for operators.
    pub(crate) fn status(&self) -> PublicationStatus {
        let view = self.source.view().borrow().clone();
        let loaded = view.loaded.get(&self.publication.name);
        let condition = view.condition.clone().or_else(|| loaded.and_then(|loaded| loaded.as_ref().err().cloned()));
        PublicationStatus {
            name: self.publication.name.clone(),
            file: Some(self.source.config().file.display().to_string().into()),
            head: view.head.map(crate::source::wire),
            log_entries: view.entries,
            tables: loaded.and_then(|loaded| loaded.as_ref().ok()).map_or(0, |loaded| loaded.known.len() as u32),
            blind: view.blind.to_vec(),
            condition: condition.map(cut),
            subscribers: self.roster.all().iter().map(|subscriber| subscriber.status(&view)).collect(),
        }
    }

    /// Takes away the feeds whose leases are over.
    async fn reap(&self, now: Instant) {
        for node in self.roster.lapsed(now) {
            let _changing = self.changing.lock().await;
            if self.roster.remove_lapsed(&node, now) {
                tracing::info!(publication = %self.publication.name, %node, "no longer subscribed: its lease is over");
                // It may have died by itself; gone it is in any case.
                let _ = self.feeds.remove_child(&feed_name(&node)).await;
                self.source.needs_nothing(&self.publication.name, &node);
            }
        }
    }
}

/// What the feed of a node is called among its siblings.
pub(crate) fn feed_name(node: &NodeName) -> String {
    format!("feed-{node}")
}

/// At most [`sync::MAX_TEXT`] bytes of a text for people.
pub(crate) fn cut(text: Box<str>) -> Box<str> {
    if text.len() <= sync::MAX_TEXT {
        return text;
    }
    let end = text.floor_char_boundary(sync::MAX_TEXT - '…'.len_utf8());
    format!("{}…", &text[..end]).into()
}

/// Counters of a publication, since the node was started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PublicationMetrics {
    /// Its name.
    pub publication: Box<str>,
    /// Who is subscribed now.
    pub subscribers: u64,
    /// Of those, how many have everything.
    pub live: u64,
    /// Changes that the one furthest behind does not have.
    pub lag_rows: u64,
    /// For how long the one longest behind has been so, in milliseconds.
    pub lag_ms: u64,
    /// Bytes sent to those who are subscribed now.
    pub sent_bytes: u64,
    /// Streams of changes that they have applied.
    pub deltas: u64,
    /// Snapshots that they have applied.
    pub snapshots: u64,
    /// Rows that were found different and sent again.
    pub repaired_rows: u64,
    /// Entries in the log of the file.
    pub log_entries: u64,
    /// Bytes in the spools of the file.
    pub spool_bytes: u64,
    /// Whether it is published now.
    pub published: bool,
}

/// The publications of one file, as `nodes` starts them.
#[derive(Clone, Debug)]
pub struct Publisher {
    source: Source,
    published: Vec<Arc<Published>>,
    spec: SupervisorSpec,
}

impl Publisher {
    /// Registers the service of each of `publications` and makes the supervisor of all. Nothing runs yet.
    ///
    /// # Errors
    /// [`PublisherError`].
    pub fn new(
        exchange: &Exchange,
        runtime: &tokio::runtime::Handle,
        config: SourceConfig,
        publications: Vec<Publication>,
        limits: &PublisherLimits,
        conditions: Conditions,
    ) -> Result<Self, PublisherError> {
        let mut filters = BTreeMap::new();
        for publication in &publications {
            if filters.insert(publication.name.clone(), publication.filter.clone()).is_some() {
                return Err(PublisherError::Twice(publication.name.clone()));
            }
        }
        let source = Source::new(config, filters, conditions);
        let config = source.config();
        let spools = Arc::new(Spools::new(config.directory.join("spool").join(&*config.name), config.file.clone(), limits.spool_bytes));
        let builders = Arc::new(Semaphore::new(limits.builders.max(1)));
        let mut published = Vec::new();
        let capture = source.clone();
        let swept = spools.clone();
        let mut children = vec![worker("capture", move |vitals| {
            swept.sweep();
            capture.clone().run(vitals)
        })];
        for publication in publications {
            let name =
                sync::sync_name(&publication.name).map_err(|source| PublisherError::Name { name: publication.name.clone(), source })?;
            let feeds = SupervisorSpec::new(&format!("feeds-{}", publication.name), Strategy::OneForOne, Vec::new());
            let one = Arc::new(Published {
                source: source.clone(),
                limits: limits.clone(),
                context: Context::new(exchange.clone(), name.as_str()),
                roster: Roster::default(),
                feeds: feeds.handle(),
                changing: tokio::sync::Mutex::default(),
                builders: builders.clone(),
                snapshots: Arc::new(Semaphore::new(1)),
                asking: Arc::new(Semaphore::new(ASKING)),
                spools: spools.clone(),
                publication,
            });
            published.push(one.clone());
            children.push(feeds.into_child());
            children.push(hosted::<Desk, _, _>(exchange, runtime, ServiceSpec::new(name), move |_| {
                std::future::ready(Ok(Desk::new(one.clone())))
            })?);
        }
        let leased = published.clone();
        children.push(worker("leases", move |vitals| {
            let leased = leased.clone();
            async move {
                let mut ticks = tokio::time::interval(LEASES);
                ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
                loop {
                    ticks.tick().await;
                    let now = Instant::now();
                    vitals.progressed(now);
                    for published in &leased {
                        published.reap(now).await;
                    }
                }
            }
        }));
        let spec = SupervisorSpec::new(&format!("sync-{}", source.config().name), Strategy::OneForOne, children);
        Ok(Self { source, published, spec })
    }

    /// The file that all of this is about.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// The supervisor, as a child of the node's.
    pub fn child(&self) -> ChildSpec {
        self.spec.clone().into_child()
    }

    /// How each publication and its subscribers are. Asks nobody.
    pub fn status(&self) -> Vec<PublicationStatus> {
        self.published.iter().map(|published| published.status()).collect()
    }

    /// Counters of each publication.
    pub fn metrics(&self) -> Vec<PublicationMetrics> {
        let metrics = |published: &Arc<Published>| {
            let status = published.status();
            let sum = |count: fn(&sync::SubscriberStatus) -> u64| status.subscribers.iter().map(count).sum();
            let most = |count: fn(&sync::SubscriberStatus) -> u64| status.subscribers.iter().map(count).max().unwrap_or_default();
            PublicationMetrics {
                publication: status.name.clone(),
                subscribers: status.subscribers.len() as u64,
                live: sum(|subscriber| u64::from(subscriber.state == sync::FeedState::Live)),
                lag_rows: most(|subscriber| subscriber.lag_rows),
                lag_ms: most(|subscriber| subscriber.lag_ms),
                sent_bytes: sum(|subscriber| subscriber.sent_bytes),
                deltas: sum(|subscriber| subscriber.deltas),
                snapshots: sum(|subscriber| subscriber.snapshots),
                repaired_rows: sum(|subscriber| subscriber.repaired_rows),
                log_entries: status.log_entries,
                spool_bytes: published.spools.used(),
                published: status.condition.is_none() && status.head.is_some(),
            }
        };
        self.published.iter().map(metrics).collect()
    }
}

#[cfg(test)]
mod tests;

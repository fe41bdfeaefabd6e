//! The one writer of a database file: a thread that owns the only write connection.
//!
//! [`WriterActor`] owns the thread; whoever owns the file starts it under a supervisor. The [`Writer`] handle and its queue
//! belong to the file's *name*: they are made once and survive restarts. When the thread dies, the actor fails, is restarted,
//! opens the file again, and what waited in the queue is served.
//!
//! **A reply means the commit is on disk** (with [`crate::open::Durability::Full`]). Up to 64 jobs or 2 ms of them share a
//! transaction and its `fsync`; each has a savepoint, so one that fails, panics or runs out of time is undone alone. When a
//! statement rolls the whole transaction back (disk full, `ON CONFLICT ROLLBACK`, an interrupt in mid-write), the innocent
//! run again, each in a transaction of its own: a closure may therefore run twice, and must do nothing but talk to its
//! connection. What ran before a commit is never run again after one.

mod actor;
mod commits;
mod group;
mod job;
mod thread;

use std::{
    any::Any,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use horos_supervision::{ChildSpec, Vitals};
use horos_wire::tree::Kind as ActorKind;
use parking_lot::Mutex;
use rusqlite::Connection;
use serde::Serialize;
use tokio::sync::oneshot;

pub use actor::{WriterActor, WriterMsg};
pub use commits::{Commits, Committed, Missed};

use crate::{
    StoreError,
    guard::Guard,
    migrations::{MigrationError, Migrations},
    open::{OpenError, Options},
    queue::{Queue, Refused},
    watch::Nudge,
};
use commits::Announcer;
use job::{Job, Progress, Work};

/// A writer at one job for longer is shown as stuck: twice what a caller usually waits.
pub const STUCK_AFTER: Duration = Duration::from_secs(10);
/// What a supervisor allows for the end: draining the queue, then the last checkpoint.
const SHUTDOWN: Duration = Duration::from_secs(12);

/// How the writer works.
#[derive(Clone, Debug)]
pub struct WriterConfig {
    /// The file and how it is opened; access is always [`crate::open::Access::Owner`].
    pub open: Options,
    /// The schema.
    pub migrations: Migrations,
    /// Jobs waiting before callers get [`WriteError::Overloaded`]. Default 1,024: at 64 a commit and 5 ms an `fsync` some
    /// 80 ms of work, beyond which waiting helps nobody.
    pub queue_depth: usize,
    /// Most jobs a transaction. Default 64.
    pub group_jobs: usize,
    /// A group takes no further job after this long. Default 2 ms, less than an `fsync` on most disks.
    pub group_time: Duration,
    /// WAL frames since the last checkpoint that start one that waits for nobody (`PASSIVE`). Default 1,000 (4 MiB).
    pub checkpoint_frames: u32,
    /// WAL size at which readers are waited for (at most [`WriterConfig::truncate_wait`]) and the file cut. Default 64 MiB.
    pub truncate_bytes: u64,
    /// Longest the writer stands still for a truncating checkpoint. Default 100 ms, tried at most once a second.
    pub truncate_wait: Duration,
    /// With no job for this long the WAL is emptied. Default 1 s.
    pub idle_after: Duration,
    /// Time between runs of `PRAGMA optimize`. Default one hour.
    pub optimize_every: Duration,
}

impl WriterConfig {
    /// The defaults for `open` and `migrations`.
    pub fn new(open: Options, migrations: Migrations) -> WriterConfig {
        WriterConfig {
            open,
            migrations,
            queue_depth: 1_024,
            group_jobs: 64,
            group_time: Duration::from_millis(2),
            checkpoint_frames: 1_000,
            truncate_bytes: 64 << 20,
            truncate_wait: Duration::from_millis(100),
            idle_after: Duration::from_secs(1),
            optimize_every: Duration::from_secs(3_600),
        }
    }
}

/// Why a transaction did not succeed. All but [`WriteError::Unknown`] had no effect.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError<E> {
    /// The queue is full. No effect; try later.
    #[error("the writer is overloaded; no effect, try later")]
    Overloaded,
    /// The writer has stopped for good. No effect.
    #[error("the writer has stopped; no effect")]
    Stopped,
    /// The deadline passed before the work became part of a commit. No effect.
    #[error("the deadline passed; no effect")]
    DeadlinePassed,
    /// The closure's own error; rolled back.
    #[error("the transaction failed and was rolled back")]
    Failed(E),
    /// The closure panicked; rolled back.
    #[error("the transaction panicked and was rolled back: {0}")]
    Panicked(String),
    /// A statement rolled the whole transaction back and the closure took no notice. No effect.
    #[error("a statement rolled the transaction back; no effect")]
    RolledBack,
    /// SQLite refused to begin or commit. No effect; the source says what may be done.
    #[error("the database refused the transaction; no effect")]
    Storage(#[source] StoreError),
    /// The commit was under way when the deadline passed, the disk failed or the thread died: it may be in the file or not.
    /// Look before doing it again, or use an idempotency key.
    #[error("the outcome is unknown: it may have been committed")]
    Unknown(#[source] Option<StoreError>),
}

impl<E> WriteError<E> {
    /// Whether it is certain that nothing was changed.
    pub fn had_no_effect(&self) -> bool {
        !matches!(self, WriteError::Unknown(_))
    }
}

/// Why the thread ended or did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriterFailure {
    /// The file could not be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The schema does not fit this release.
    #[error(transparent)]
    Migration(#[from] MigrationError),
    /// The connection is broken; opening again may help.
    #[error("the write connection broke")]
    Connection(#[from] StoreError),
    /// The thread panicked outside any job.
    #[error("the writer thread panicked: {0}")]
    Panicked(String),
    /// The system gave no thread.
    #[error("no thread for the writer")]
    Spawn(#[source] std::io::Error),
}

/// Counters of a writer, cheap to take.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct WriterStats {
    /// Jobs waiting now.
    pub waiting: usize,
    /// Transactions committed.
    pub commits: u64,
    /// Jobs in them.
    pub committed_jobs: u64,
    /// Jobs undone: failed, panicked or out of time.
    pub undone_jobs: u64,
    /// Groups that were lost as a whole and run again one by one.
    pub lost_groups: u64,
    /// Times a checkpoint could not finish because of a reader. Rising with [`WriterStats::wal_bytes`]: find the long reader.
    pub blocked_checkpoints: u64,
    /// Size of the WAL's content after the last commit or checkpoint.
    pub wal_bytes: u64,
    /// Longest commit so far, in microseconds.
    pub longest_commit_us: u64,
    /// Times the file was opened: one more than the restarts.
    pub opened: u64,
}

#[derive(Debug, Default)]
struct Counters {
    commits: AtomicU64,
    committed_jobs: AtomicU64,
    undone_jobs: AtomicU64,
    lost_groups: AtomicU64,
    blocked_checkpoints: AtomicU64,
    wal_bytes: AtomicU64,
    longest_commit_us: AtomicU64,
    opened: AtomicU64,
}

struct Shared {
    config: WriterConfig,
    queue: Queue<Box<dyn Job>>,
    announcer: Announcer,
    counters: Counters,
    /// Set once the writer is some supervisor's child.
    vitals: OnceLock<Arc<Vitals>>,
    /// Who sends jobs, as the recorder shows it: closures do not say whose they are.
    sender: Arc<str>,
    /// Held by the thread that serves: a successor waits until its predecessor has let go of the file.
    serving: Arc<tokio::sync::Mutex<()>>,
    /// What tells the thread of the latest incarnation to leave.
    incarnation: Mutex<Option<Arc<AtomicBool>>>,
    /// The job that runs now and the handle to interrupt it. Compared under the lock, so that a late interrupt never hits
    /// the next job.
    current: Mutex<Option<(Arc<Progress>, Arc<rusqlite::InterruptHandle>)>>,
}

/// The way to write to a database. Cheap to clone.
#[derive(Clone)]
pub struct Writer {
    shared: Arc<Shared>,
}

impl Writer {
    /// A handle whose thread is not running yet: jobs wait until a [`WriterActor`] given this handle is started.
    pub fn new(config: WriterConfig) -> Writer {
        let queue = Queue::new(config.queue_depth);
        Writer {
            shared: Arc::new(Shared {
                config,
                queue,
                announcer: Announcer::default(),
                counters: Counters::default(),
                vitals: OnceLock::new(),
                sender: "local".into(),
                serving: Arc::default(),
                incarnation: Mutex::new(None),
                current: Mutex::new(None),
            }),
        }
    }

    /// The writer as a supervisor's child called `name`: restarted whenever it dies, shown as stuck when a job takes longer than
    /// [`STUCK_AFTER`]. Its vital signs count jobs, and its mailbox is the queue.
    ///
    /// One writer is one child: a second call gives the same vital signs under the first name.
    pub fn child(&self, name: &str) -> ChildSpec {
        let vitals = self.shared.vitals.get_or_init(|| {
            let vitals = Vitals::new(name, ActorKind::Worker, STUCK_AFTER);
            let shared = Arc::downgrade(&self.shared);
            let limit = u32::try_from(self.shared.config.queue_depth).unwrap_or(u32::MAX);
            vitals.watch_mailbox(limit, move || shared.upgrade().map_or(0, |shared| u32::try_from(shared.queue.len()).unwrap_or(u32::MAX)));
            vitals
        });
        let writer = self.clone();
        ChildSpec::actor(Arc::clone(vitals), None, move |_| (WriterActor, writer.clone())).shutdown(SHUTDOWN)
    }

    /// Runs `work` in a transaction and answers when it is committed.
    ///
    /// The closure must not do anything but talk to its connection: it runs on the writer's thread, and runs a second time if a
    /// neighbour in its group loses the transaction. It cannot begin, commit or roll back itself (savepoints of its own are fine).
    ///
    /// # Errors
    /// [`WriteError::Unknown`] if it may have been committed; after all others it was not.
    ///
    /// # Cancel safety
    /// A dropped future takes the job back unless its commit is already under way.
    pub async fn transaction<T, E, F>(&self, deadline: Instant, work: F) -> Result<T, WriteError<E>>
    where
        T: Send + 'static,
        E: Send + 'static,
        F: FnMut(&Connection) -> Result<T, E> + Send + 'static,
    {
        self.run(deadline, None, work).await
    }

    /// [`Writer::transaction`], with `guard` asked what the statements of `work` may do, besides what no job may.
    ///
    /// # Errors
    /// As there; what the guard stops or does not permit is [`WriteError::Failed`] with SQLite's error for it.
    ///
    /// # Cancel safety
    /// As there.
    pub async fn transaction_guarded<T, E, F>(&self, deadline: Instant, guard: Arc<dyn Guard>, work: F) -> Result<T, WriteError<E>>
    where
        T: Send + 'static,
        E: Send + 'static,
        F: FnMut(&Connection) -> Result<T, E> + Send + 'static,
    {
        self.run(deadline, Some(guard), work).await
    }

    async fn run<T, E, F>(&self, deadline: Instant, guard: Option<Arc<dyn Guard>>, work: F) -> Result<T, WriteError<E>>
    where
        T: Send + 'static,
        E: Send + 'static,
        F: FnMut(&Connection) -> Result<T, E> + Send + 'static,
    {
        let progress = Arc::new(Progress::default());
        let (reply, answer) = oneshot::channel();
        let job = Work { closure: work, deadline, guard, progress: Arc::clone(&progress), queued: Instant::now(), result: None, reply };
        self.shared.queue.push(Box::new(job), |job| job.progress().is_wanted()).map_err(|refused| match refused {
            Refused::Full => {
                if let Some(vitals) = self.shared.vitals.get() {
                    vitals.refuse();
                }
                WriteError::Overloaded
            }
            Refused::Closed => WriteError::Stopped,
        })?;
        let claim = Claim { shared: &self.shared, progress: &progress };
        match tokio::time::timeout_at(deadline.into(), answer).await {
            Ok(Ok(result)) => result,
            // The thread died with it, or the queue was discarded.
            Ok(Err(_)) if progress.is_released() => Err(WriteError::Unknown(None)),
            Ok(Err(_)) => Err(WriteError::Stopped),
            Err(_) if claim.withdraw() => Err(WriteError::DeadlinePassed),
            Err(_) => Err(WriteError::Unknown(None)),
        }
    }

    /// Commits from here on, of this writer.
    pub fn commits(&self) -> Commits {
        self.shared.announcer.subscribe()
    }

    /// Wakes a watcher right after each commit of this writer instead of at its next poll.
    pub fn nudge_on_commit(&self, nudge: &Nudge) {
        self.shared.announcer.nudge(nudge);
    }

    /// Counters.
    pub fn stats(&self) -> WriterStats {
        let c = &self.shared.counters;
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        WriterStats {
            waiting: self.shared.queue.len(),
            commits: get(&c.commits),
            committed_jobs: get(&c.committed_jobs),
            undone_jobs: get(&c.undone_jobs),
            lost_groups: get(&c.lost_groups),
            blocked_checkpoints: get(&c.blocked_checkpoints),
            wal_bytes: get(&c.wal_bytes),
            longest_commit_us: get(&c.longest_commit_us),
            opened: get(&c.opened),
        }
    }

    /// How it was configured.
    pub fn config(&self) -> &WriterConfig {
        &self.shared.config
    }
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").field("open", &self.shared.config.open.location).field("queue", &self.shared.queue).finish_non_exhaustive()
    }
}

/// A caller's hold on its job: let go of, the job is withdrawn if it still can be.
struct Claim<'a> {
    shared: &'a Shared,
    progress: &'a Arc<Progress>,
}

impl Claim<'_> {
    /// True: it has no effect.
    fn withdraw(&self) -> bool {
        let withdrawn = self.progress.abandon();
        if withdrawn {
            let current = self.shared.current.lock();
            if let Some((running, handle)) = current.as_ref()
                && Arc::ptr_eq(running, self.progress)
            {
                handle.interrupt();
            }
        }
        withdrawn
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        // After an answer this changes nothing: the job is done with.
        self.withdraw();
    }
}

/// The text of a panic.
pub(crate) fn panic_text(payload: &(dyn Any + Send)) -> String {
    payload
        .downcast_ref::<&str>()
        .map(|s| (*s).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without text".into())
}

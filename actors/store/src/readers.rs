//! A small pool of connections that cannot write, each on its own thread.
//!
//! [`ReadersActor`] owns the threads; the [`Readers`] handle and its queue survive restarts. A read runs in one transaction, so
//! all its statements see the same state; SQLite itself stops it at its deadline. Files are opened at the first read and
//! opened again when another file takes the path (a replica being swapped), so a pool may exist before its file does.

mod actor;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use horos_supervision::{ChildSpec, Vitals};
use horos_wire::tree::Kind as ActorKind;
use rusqlite::Connection;
use serde::Serialize;
use tokio::sync::oneshot;

pub use actor::{ReadersActor, ReadersMsg};

use crate::{
    StoreError,
    budget::Budget,
    guard::Guard,
    identity::FileIdentity,
    open::{Access, OpenError, Options, open},
    queue::{Next, Queue, Refused},
    writer::panic_text,
};

/// How the pool works.
#[derive(Clone, Debug)]
pub struct ReadersConfig {
    /// The file and how it is opened; access is always read-only.
    pub open: Options,
    /// Threads, a connection each. Default 2: the machines we run on have two cores.
    pub threads: usize,
    /// Reads waiting before callers get [`ReadError::Overloaded`]. Default 256: at 1 ms a read, 128 ms of work for two threads.
    pub queue_depth: usize,
}

impl ReadersConfig {
    /// The defaults for `open`.
    pub fn new(open: Options) -> ReadersConfig {
        ReadersConfig { open: open.with_access(Access::ReadOnly), threads: 2, queue_depth: 256 }
    }
}

/// Why a read did not succeed. Reads have no effect, so every one may be retried.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError<E> {
    /// The queue is full; try later.
    #[error("the readers are overloaded; try later")]
    Overloaded,
    /// The pool has stopped.
    #[error("the readers have stopped")]
    Stopped,
    /// Stopped at its deadline.
    #[error("the deadline passed")]
    DeadlinePassed,
    /// The closure's own error.
    #[error("the read failed")]
    Failed(E),
    /// The closure panicked.
    #[error("the read panicked: {0}")]
    Panicked(String),
    /// The file cannot be opened (yet).
    #[error(transparent)]
    Open(OpenError),
    /// No read transaction could be begun.
    #[error("the database refused to be read")]
    Storage(#[source] StoreError),
}

/// Counters of a pool.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ReadersStats {
    /// Reads waiting now.
    pub waiting: usize,
    /// Reads that were answered.
    pub reads: u64,
    /// Of them, those that did not succeed.
    pub failed: u64,
    /// Times a connection was opened.
    pub opened: u64,
}

#[derive(Debug, Default)]
struct Counters {
    reads: AtomicU64,
    failed: AtomicU64,
    opened: AtomicU64,
}

struct Shared {
    config: ReadersConfig,
    queue: Queue<Box<dyn Job>>,
    counters: Counters,
    /// Set once the pool is some supervisor's child.
    vitals: OnceLock<Arc<Vitals>>,
}

/// The way to read a database. Cheap to clone.
#[derive(Clone)]
pub struct Readers {
    shared: Arc<Shared>,
}

impl Readers {
    /// A handle whose threads are not running yet: reads wait until a [`ReadersActor`] given this handle is started.
    pub fn new(config: ReadersConfig) -> Readers {
        let queue = Queue::new(config.queue_depth);
        Readers { shared: Arc::new(Shared { config, queue, counters: Counters::default(), vitals: OnceLock::new() }) }
    }

    /// The pool as a supervisor's child called `name`. One pool is one child: a second call gives the same vital signs.
    pub fn child(&self, name: &str) -> ChildSpec {
        let vitals = self.shared.vitals.get_or_init(|| {
            // Several reads are in hand at once, each with its own deadline: there is no one message to be stuck at.
            let vitals = Vitals::new(name, ActorKind::Worker, Duration::MAX);
            let shared = Arc::downgrade(&self.shared);
            let limit = u32::try_from(self.shared.config.queue_depth).unwrap_or(u32::MAX);
            vitals.watch_mailbox(limit, move || shared.upgrade().map_or(0, |shared| u32::try_from(shared.queue.len()).unwrap_or(u32::MAX)));
            vitals
        });
        let readers = self.clone();
        ChildSpec::actor(Arc::clone(vitals), None, move |_| (ReadersActor, readers.clone()))
    }

    /// Runs `work` in a read transaction, until `deadline` at most.
    ///
    /// # Errors
    /// [`ReadError`]; a write is [`ReadError::Failed`] with SQLite's read-only error.
    ///
    /// # Cancel safety
    /// A dropped future leaves nothing behind: a read that has not begun is skipped, one that runs ends at its deadline.
    pub async fn read<T, E, F>(&self, deadline: Instant, work: F) -> Result<T, ReadError<E>>
    where
        T: Send + 'static,
        E: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, E> + Send + 'static,
    {
        self.run(deadline, None, work).await
    }

    /// [`Readers::read`], with `guard` asked what the statements of `work` may do.
    ///
    /// # Errors
    /// As there; what the guard stops or does not permit is [`ReadError::Failed`] with SQLite's error for it.
    ///
    /// # Cancel safety
    /// As there.
    pub async fn read_guarded<T, E, F>(&self, deadline: Instant, guard: Arc<dyn Guard>, work: F) -> Result<T, ReadError<E>>
    where
        T: Send + 'static,
        E: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, E> + Send + 'static,
    {
        self.run(deadline, Some(guard), work).await
    }

    async fn run<T, E, F>(&self, deadline: Instant, guard: Option<Arc<dyn Guard>>, work: F) -> Result<T, ReadError<E>>
    where
        T: Send + 'static,
        E: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, E> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let job = Read { closure: Some(work), deadline, guard, reply };
        self.shared.queue.push(Box::new(job), |job| job.is_wanted()).map_err(|refused| match refused {
            Refused::Full => {
                if let Some(vitals) = self.shared.vitals.get() {
                    vitals.refuse();
                }
                ReadError::Overloaded
            }
            Refused::Closed => ReadError::Stopped,
        })?;
        match tokio::time::timeout_at(deadline.into(), answer).await {
            Ok(Ok(result)) => result,
            // Passed over by its thread, which was in time for others only.
            Ok(Err(_)) if Instant::now() >= deadline => Err(ReadError::DeadlinePassed),
            Ok(Err(_)) => Err(ReadError::Stopped),
            Err(_) => Err(ReadError::DeadlinePassed),
        }
    }

    /// Counters.
    pub fn stats(&self) -> ReadersStats {
        let c = &self.shared.counters;
        ReadersStats {
            waiting: self.shared.queue.len(),
            reads: c.reads.load(Ordering::Relaxed),
            failed: c.failed.load(Ordering::Relaxed),
            opened: c.opened.load(Ordering::Relaxed),
        }
    }
}

impl std::fmt::Debug for Readers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Readers")
            .field("open", &self.shared.config.open.location)
            .field("queue", &self.shared.queue)
            .finish_non_exhaustive()
    }
}

trait Job: Send {
    /// Runs and answers; false if it did not succeed.
    fn run(self: Box<Self>, connection: &Connection) -> bool;
    fn refuse(self: Box<Self>, error: Refusal);
    fn deadline(&self) -> Instant;
    fn guard(&self) -> Option<Arc<dyn Guard>>;
    fn is_wanted(&self) -> bool;
}

enum Refusal {
    Open(OpenError),
    Storage(StoreError),
}

struct Read<T, E, F> {
    closure: Option<F>,
    deadline: Instant,
    guard: Option<Arc<dyn Guard>>,
    reply: oneshot::Sender<Result<T, ReadError<E>>>,
}

impl<T, E, F> Job for Read<T, E, F>
where
    T: Send,
    E: Send,
    F: FnOnce(&Connection) -> Result<T, E> + Send,
{
    fn run(mut self: Box<Self>, connection: &Connection) -> bool {
        let Some(closure) = self.closure.take() else { return false };
        // Unwind safe: the closure is consumed and the connection's transaction is rolled back.
        let result = match catch_unwind(AssertUnwindSafe(|| closure(connection))) {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(_)) if Instant::now() >= self.deadline => Err(ReadError::DeadlinePassed),
            Ok(Err(error)) => Err(ReadError::Failed(error)),
            Err(payload) => Err(ReadError::Panicked(panic_text(payload.as_ref()))),
        };
        let succeeded = result.is_ok();
        // The caller may have gone.
        let _ = self.reply.send(result);
        succeeded
    }

    fn refuse(self: Box<Self>, error: Refusal) {
        let _ = self.reply.send(Err(match error {
            Refusal::Open(error) => ReadError::Open(error),
            Refusal::Storage(error) => ReadError::Storage(error),
        }));
    }

    fn deadline(&self) -> Instant {
        self.deadline
    }

    fn guard(&self) -> Option<Arc<dyn Guard>> {
        self.guard.clone()
    }

    fn is_wanted(&self) -> bool {
        !self.reply.is_closed() && Instant::now() < self.deadline
    }
}

/// One thread's connection.
struct Reader {
    connection: Connection,
    budget: Arc<Budget>,
    /// The file this connection reads; the path may by now mean another.
    file: Option<(PathBuf, FileIdentity)>,
}

impl Reader {
    fn open(shared: &Shared) -> Result<Reader, OpenError> {
        let options = &shared.config.open;
        // Before the open: if the file is replaced in between, the next read notices.
        let file = options.path().and_then(|path| Some((path.to_path_buf(), FileIdentity::of(path).ok()?)));
        let (mut connection, _) = open(options)?.into_parts();
        let budget = Budget::of_reader();
        budget
            .govern(&mut connection, options.busy_timeout)
            .and_then(|()| budget.authorize(&mut connection))
            .map_err(|source| OpenError::Sqlite { path: options.path().map(Into::into).unwrap_or_default(), source: source.into() })?;
        shared.counters.opened.fetch_add(1, Ordering::Relaxed);
        Ok(Reader { connection, budget, file })
    }

    fn is_current(&self) -> bool {
        self.file.as_ref().is_none_or(|(path, identity)| FileIdentity::of(path).is_ok_and(|now| now == *identity))
    }

    /// Runs one job; false if the connection must be given up.
    fn run(&self, shared: &Shared, job: Box<dyn Job>) -> bool {
        self.budget.set(job.deadline());
        if let Err(error) = self.connection.execute_batch("BEGIN") {
            job.refuse(Refusal::Storage(error.into()));
            return false;
        }
        let succeeded = self.budget.guard().during(job.guard(), || job.run(&self.connection));
        self.budget.clear();
        if !succeeded {
            shared.counters.failed.fetch_add(1, Ordering::Relaxed);
        }
        // The closure may have ended the transaction: then there is nothing to end.
        self.connection.is_autocommit() || self.connection.execute_batch("ROLLBACK").is_ok()
    }
}

/// What a thread of the pool does.
fn serve(shared: &Shared, leave: &AtomicBool) {
    /// A thread looks up this often even if nothing wakes it.
    const LOOK_UP: Duration = Duration::from_secs(60);
    let mut reader: Option<Reader> = None;
    loop {
        match shared.queue.next(LOOK_UP, leave) {
            Next::Closed => return,
            Next::Idle => {}
            Next::Job(job) if !job.is_wanted() => {}
            Next::Job(job) => {
                shared.counters.reads.fetch_add(1, Ordering::Relaxed);
                let current = match reader.take().filter(Reader::is_current).map_or_else(|| Reader::open(shared), Ok) {
                    Ok(current) => current,
                    Err(error) => {
                        shared.counters.failed.fetch_add(1, Ordering::Relaxed);
                        job.refuse(Refusal::Open(error));
                        continue;
                    }
                };
                let usable = current.run(shared, job);
                if let Some(vitals) = shared.vitals.get() {
                    vitals.progressed(Instant::now());
                }
                if usable {
                    reader = Some(current);
                }
            }
        }
    }
}

//! A published database file: captures what is published of it, sees every commit by anybody, and says where its log is.
//!
//! One [`Source`] a file, shared by all its publications, started under a supervisor by [`crate::publisher`]. It owns our triggers and
//! tables in the file and the witness beside the node's data; nobody else attaches. What it promises:
//!
//! - A commit, by whichever process, is seen within a look's interval (20 ms), one by this node's own writer within some
//!   two milliseconds ([`Source::follow`]). [`Source::head`] covers whatever was committed before it was called.
//! - What fires no trigger is found by the sentinel and re-based; schema changes are followed within a look.
//! - A filter that no longer fits its database stops that publication alone, and its reason is told.
//! - The file is written in short transactions of their own, and only to attach, to re-base and to trim.
//!
//! Nothing here runs on the runtime's workers: every look is a job for a blocking thread, one at a time.

mod captor;
mod kept;
mod union;

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use horos_store::{
    StoreError,
    open::{Access, OpenError, Options, open},
    rusqlite::{self, TransactionBehavior},
    writer::Writer,
};
use horos_supervision::{Vitals, backoff::Streak};
use horos_wire::{NodeName, protocol::sync};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use crate::{
    build,
    capture::{self, Blind, CaptureError, Position, Tracked},
    filter::FilterSpec,
    publisher::Conditions,
};
use captor::Captor;

/// Shortest time between two looks, however often somebody asks: a look after a commit reads the schema.
const SPACING: Duration = Duration::from_millis(1);
/// After a failed look the next waits, twice as long each time, between these.
const RETRY: horos_supervision::Backoff =
    horos_supervision::Backoff { base: Duration::from_millis(50), cap: Duration::from_secs(2), quiet: Duration::from_secs(10) };
/// Longest wait for a lock that another process holds, in one try; then the look fails and is tried again.
const LOCK_WAIT: Duration = Duration::from_millis(500);
/// Longest wait for the lock of a detach: nobody tries that again.
const DETACH_WAIT: Duration = Duration::from_secs(10);
/// Longest wait of a loop that ends for a look that still runs: most take a millisecond.
const LAST_WORD: Duration = Duration::from_millis(100);
/// Memory of a connection that looks or attaches: it reads some pages of the schema and the log.
const CACHE_KIB: u32 = 512;

/// How a file is captured.
#[derive(Clone, Debug)]
pub struct SourceConfig {
    /// What it is called, as a file's name may be.
    pub name: Box<str>,
    /// The database. It may appear later and be replaced. It is put into WAL mode, so that reading it holds up no writer.
    pub file: PathBuf,
    /// Where the witness and the spools are: `sync` in the node's data directory. Made if need be; nobody else's business.
    pub directory: PathBuf,
    /// Between two looks. Default 20 ms; a look at a file that nobody wrote costs some microseconds.
    pub look_every: Duration,
    /// Entries of the log that are kept at most, however far behind a subscriber is. Default [`capture::KEEP`].
    pub keep: u32,
    /// Entries that are kept for a subscriber that is away although all others are past them. Default 100,000.
    pub spare: u32,
    /// Between two trims of the log. Default 60 s: each is a write.
    pub trim_every: Duration,
}

impl SourceConfig {
    /// The defaults.
    pub fn new(name: &str, file: impl Into<PathBuf>, directory: impl Into<PathBuf>) -> Self {
        Self {
            name: name.into(),
            file: file.into(),
            directory: directory.into(),
            look_every: Duration::from_millis(20),
            keep: capture::KEEP,
            spare: 100_000,
            trim_every: Duration::from_secs(60),
        }
    }

    fn witness(&self) -> PathBuf {
        self.directory.join(format!("{}.witness.json", self.name))
    }
}

/// Why a source did not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// The database cannot be opened; it is tried again.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// It cannot be read or written for capture; it is tried again.
    #[error("the database cannot be captured: {0}")]
    Capture(#[from] CaptureError),
    /// SQLite failed; it is tried again.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What must be kept outside of the database cannot be written. Nothing is published until it can.
    #[error("the witness cannot be written: {0}")]
    Witness(#[source] std::io::Error),
    /// The schema changed while it was read, again and again; it is tried again.
    #[error("the schema does not stay the same for long enough to be read")]
    Restless,
    /// It is detached, by order.
    #[error("detached")]
    Detached,
    /// No publication fits the database, so that nothing is captured.
    #[error("no publication fits the database")]
    Nothing,
    /// It did not come to an answer in time. No effect.
    #[error("no answer in time")]
    TimedOut,
}

impl From<rusqlite::Error> for SourceError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Store(error.into())
    }
}

/// A filter that fits the database as of a schema.
#[derive(Debug)]
pub(crate) struct Loaded {
    /// What streams are made from.
    pub(crate) published: build::Published,
    /// The tables with what is published of them, as a subscriber that has everything has them.
    pub(crate) known: BTreeMap<String, [u8; 16]>,
    /// `PRAGMA schema_version` that the filter was loaded under.
    pub(crate) cookie: i64,
}

/// A publication's filter, or why it has none.
pub(crate) type LoadedOr = Result<Arc<Loaded>, Box<str>>;

/// What the last look left.
#[derive(Clone, Debug, Default)]
pub(crate) struct View {
    /// The log's end; none until it is attached.
    pub(crate) head: Option<Position>,
    /// Counts the times the file was opened: connections of before may see another file.
    pub(crate) opened: u64,
    /// Counts commits that moved no head: something may have got past the triggers.
    pub(crate) hints: u64,
    /// By the publications' names.
    pub(crate) loaded: Arc<BTreeMap<Box<str>, LoadedOr>>,
    /// Unique indexes that capture cannot see through, as `table.index`.
    pub(crate) blind: Arc<Vec<Box<str>>>,
    /// Entries in the log, told about once a second.
    pub(crate) entries: u64,
    /// Why the file is not captured now, if so.
    pub(crate) condition: Option<Box<str>>,
}

/// A published file. Cheap to clone.
#[derive(Clone)]
pub struct Source(Arc<Shared>);

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Source({:?})", self.0.config.name)
    }
}

/// A publication and who follows it.
type Subscription = (Box<str>, NodeName);

pub(crate) struct Shared {
    pub(crate) config: SourceConfig,
    filters: BTreeMap<Box<str>, FilterSpec>,
    conditions: Conditions,
    view: watch::Sender<View>,
    wake: Notify,
    /// Looks asked for, and served.
    asked: AtomicU64,
    served: watch::Sender<Served>,
    detached: AtomicBool,
    /// A replica has what this log never held, and whether that was acted upon in this process.
    doubted: AtomicBool,
    renewed: AtomicBool,
    /// Who is where, so that nothing is trimmed that somebody still needs.
    needs: Mutex<HashMap<Subscription, Option<Position>>>,
    /// Locked by the look that runs: a life that was ended leaves its last look running.
    captor: Mutex<Option<Captor>>,
    looks: AtomicU64,
}

#[derive(Clone, Debug, Default)]
struct Served {
    ticket: u64,
    failure: Option<Box<str>>,
}

impl Source {
    /// A source of what `filters`, by the publications' names, take from the file. Nothing is opened yet.
    pub(crate) fn new(config: SourceConfig, filters: BTreeMap<Box<str>, FilterSpec>, conditions: Conditions) -> Self {
        Self(Arc::new(Shared {
            config,
            filters,
            conditions,
            view: watch::Sender::default(),
            wake: Notify::new(),
            asked: AtomicU64::new(0),
            served: watch::Sender::default(),
            detached: AtomicBool::new(false),
            doubted: AtomicBool::new(false),
            renewed: AtomicBool::new(false),
            needs: Mutex::default(),
            captor: Mutex::new(None),
            looks: AtomicU64::new(0),
        }))
    }

    /// How it is configured.
    pub fn config(&self) -> &SourceConfig {
        &self.0.config
    }

    pub(crate) fn view(&self) -> watch::Receiver<View> {
        self.0.view.subscribe()
    }

    /// Looks at the file now rather than at the next interval.
    pub fn nudge(&self) {
        self.0.asked.fetch_add(1, SeqCst);
        self.0.wake.notify_one();
    }

    /// Looks at the file after each commit of this node's own `writer`. Lasts for as long as the returned future is polled; nothing is
    /// lost if it is not, for the file is looked at anyway.
    pub fn follow(&self, writer: &Writer) -> impl Future<Output = ()> + Send + 'static {
        let mut commits = writer.commits();
        let source = self.clone();
        async move {
            // Missed ones are commits like others: one look sees them all.
            while !matches!(commits.next().await, Ok(None)) {
                source.nudge();
            }
        }
    }

    /// The log's end now: whatever anybody has committed before the call is in it, what fires no trigger included as far as it can be
    /// seen at all.
    ///
    /// # Errors
    /// [`SourceError`]; nothing is published now, or not known to be.
    pub async fn head(&self, deadline: Instant) -> Result<sync::Position, SourceError> {
        self.look(deadline).await?;
        self.0.view.borrow().head.map(wire).ok_or(SourceError::Nothing)
    }

    /// Waits for a look that begins after the call.
    pub(crate) async fn look(&self, deadline: Instant) -> Result<(), SourceError> {
        let mut served = self.0.served.subscribe();
        let ticket = self.0.asked.fetch_add(1, SeqCst) + 1;
        self.0.wake.notify_one();
        let outcome = tokio::time::timeout_at(deadline.into(), served.wait_for(|served| served.ticket >= ticket)).await;
        let Ok(Ok(served)) = outcome else { return Err(SourceError::TimedOut) };
        match &served.failure {
            None => Ok(()),
            // Its own words have been logged; here it only matters that nothing is known.
            Some(_) if self.0.detached.load(SeqCst) => Err(SourceError::Detached),
            Some(_) => Err(SourceError::TimedOut),
        }
    }

    /// Removes every trigger and table of ours from the file, and the witness. Nothing is published from it any more in this process.
    ///
    /// # Errors
    /// [`SourceError`]; then what is in the file is as it was.
    pub async fn detach(&self) -> Result<(), SourceError> {
        self.0.detached.store(true, SeqCst);
        let shared = self.0.clone();
        let done = tokio::task::spawn_blocking(move || {
            let mut captor = shared.captor.lock();
            *captor = None;
            let done = detach(&shared.config.file, &shared.config.directory, &shared.config.name);
            shared.view.send_modify(|view| *view = View { opened: view.opened + 1, condition: Some("detached".into()), ..View::default() });
            done
        });
        done.await.unwrap_or(Err(SourceError::TimedOut))
    }

    /// What a subscriber has, or that it has nothing yet.
    pub(crate) fn needs(&self, publication: &str, node: &NodeName, position: Option<Position>) {
        self.0.needs.lock().insert((publication.into(), node.clone()), position);
    }

    /// A subscriber is past the log's end, in its epoch: the file was put back to where it was before what the subscriber got, and the
    /// witness, which is written down once a second, is not that new, because the node was killed or the power failed. A new
    /// epoch begins. Once in a process, for nobody can check what a subscriber says, and each new epoch is a snapshot for all; and once
    /// is enough, for what happens to the file from the start on is seen.
    pub(crate) fn doubt(&self) {
        if !self.0.renewed.swap(true, SeqCst) {
            self.0.doubted.store(true, SeqCst);
            self.nudge();
        }
    }

    /// A subscriber is gone.
    pub(crate) fn needs_nothing(&self, publication: &str, node: &NodeName) {
        self.0.needs.lock().remove(&(publication.into(), node.clone()));
    }

    /// Looks taken so far.
    pub fn looks(&self) -> u64 {
        self.0.looks.load(SeqCst)
    }

    /// The loop. It may end at any await: what runs on then is one look, and the next life waits for its end.
    pub(crate) async fn run(self, vitals: Arc<Vitals>) {
        let shared = self.0;
        let _last_word = LastWord(shared.clone());
        let mut streak = Streak::default();
        let mut pause = Duration::ZERO;
        let mut last = tokio::time::Instant::now();
        let mut anew = true;
        loop {
            if pause > shared.config.look_every {
                // It fails: nobody's asking makes it better sooner.
                tokio::time::sleep(pause).await;
            } else {
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = shared.wake.notified() => tokio::time::sleep_until(last + SPACING).await,
                }
            }
            last = tokio::time::Instant::now();
            let ticket = shared.asked.load(SeqCst);
            let job = shared.clone();
            let looked = tokio::task::spawn_blocking(move || job.look(anew)).await;
            let failure = match looked {
                Ok(outcome) => outcome.err(),
                Err(error) => match error.try_into_panic() {
                    // What the captor holds may be half done: this life ends, and the next begins anew.
                    Ok(panic) => std::panic::resume_unwind(panic),
                    Err(_) => return,
                },
            };
            anew = false;
            shared.looks.fetch_add(1, SeqCst);
            pause = match &failure {
                // That no filter fits is no failure of the file: the schema may change at any time.
                None | Some(SourceError::Nothing) => shared.config.look_every,
                Some(_) => streak.failed(Instant::now(), &RETRY, &mut rand::rng()).max(shared.config.look_every + SPACING),
            };
            shared.say(failure.as_ref());
            shared.served.send_replace(Served { ticket, failure: failure.map(|error| error.to_string().into()) });
            vitals.progressed(Instant::now());
        }
    }
}

/// Writes the witness down when the loop ends: whoever stops the node and puts a backup in the file's place is found out at the start.
struct LastWord(Arc<Shared>);

impl Drop for LastWord {
    fn drop(&mut self) {
        // A look that still runs holds it, and writes the witness down itself within the second.
        if let Some(captor) = self.0.captor.try_lock_for(LAST_WORD).as_mut().and_then(|captor| captor.as_mut())
            && let Err(error) = captor.save()
        {
            tracing::debug!(%error, "the last witness is not written down");
        }
    }
}

impl Shared {
    /// One look, on a blocking thread.
    fn look(self: &Arc<Self>, anew: bool) -> Result<(), SourceError> {
        let mut captor = self.captor.lock();
        if self.detached.load(SeqCst) {
            return Err(SourceError::Detached);
        }
        if anew {
            *captor = None;
        }
        captor.get_or_insert_with(|| Captor::new(self.clone())).turn()
    }

    /// Tells a failure once, and its end.
    fn say(&self, failure: Option<&SourceError>) {
        let text: Option<Box<str>> = failure.map(|error| chain(error).into());
        if self.view.borrow().condition == text {
            return;
        }
        match &text {
            Some(text) => tracing::warn!(database = %self.config.name, error = %text, "not captured"),
            None => tracing::info!(database = %self.config.name, "captured again"),
        }
        let condition = text.as_ref().map(|_| format!("sync: nothing new is published of {}: {}", self.config.name, brief(failure)));
        (self.conditions)(&self.config.name, condition.as_deref());
        self.view.send_modify(|view| view.condition = text);
    }
}

/// What anybody may be told: no path, no SQL.
fn brief(failure: Option<&SourceError>) -> &'static str {
    match failure {
        Some(SourceError::Open(_)) => "it cannot be opened",
        Some(SourceError::Witness(_)) => "the disk cannot be written",
        Some(SourceError::Store(error) | SourceError::Capture(CaptureError::Store(error))) => error.kind.advice(),
        Some(SourceError::Detached) => "it is detached",
        _ => "it cannot be captured",
    }
}

/// An error with its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        // Some say their cause themselves.
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

/// Removes every trigger and table of ours from `file`, and the witness that the source called `name` keeps in `directory`. For a
/// file that no node publishes now: one that does attaches again within a look.
///
/// # Errors
/// [`SourceError`]; then what is in the file is as it was.
pub fn detach(file: &Path, directory: &Path, name: &str) -> Result<(), SourceError> {
    let mut database = open(&Options { busy_timeout: DETACH_WAIT, cache_kib: CACHE_KIB, ..Options::new(file, Access::Guest) })?;
    let transaction = database.connection().transaction_with_behavior(TransactionBehavior::Immediate)?;
    capture::detach(&transaction)?;
    transaction.commit()?;
    let witness = SourceConfig::new(name, file, directory).witness();
    match std::fs::remove_file(witness) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(SourceError::Witness(error)),
        _ => Ok(()),
    }
}

fn blind_names(blind: &[Blind], tracked: &[Tracked]) -> Vec<Box<str>> {
    let name = |number| tracked.iter().find(|table| table.number == number).map_or("?", |table| &table.name);
    blind.iter().map(|one| format!("{}.{}", name(one.table), one.index).into()).collect()
}

/// A position as the wire has it.
pub(crate) fn wire(position: Position) -> sync::Position {
    sync::Position { epoch: sync::Epoch::from_bytes(position.epoch), seq: position.seq, stamp: position.stamp }
}

/// A position as capture has it.
pub(crate) fn captured(position: sync::Position) -> Position {
    Position { epoch: position.epoch.to_bytes(), seq: position.seq, stamp: position.stamp }
}

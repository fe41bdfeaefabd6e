//! Every outcome of a call, written down: who, what, when, how it ended. No argument and no secret is in it: arguments are there as
//! a SHA-256, so that two calls can be told to be the same.
//!
//! Owned by the node: the table `mcp_tool_audit` of its own [`FILE`], whose writer, readers and scribe ([`Audit::children`]) it starts.
//!
//! - A call takes a ticket before anything is decided, and with it a place in the queue: where there is none it waits, so a call that
//!   cannot be written down is not made. Dropped midway, by a client that went or a panic, the ticket writes that down.
//! - The scribe writes many in one transaction, at most [`LATEST`] after they ended. What a tool that writes did is on disk before the
//!   answer goes out.
//! - The queue belongs to the [`Audit`] and not to the scribe: a scribe that dies leaves what it had to its successor, under the same
//!   row numbers, so nothing is lost or there twice.
//! - The newest [`MAX_ROWS`] rows of the last [`MAX_AGE`] stay; the others are deleted in portions, beside what is written.

mod entry;
mod scribe;
mod table;

use std::{
    collections::VecDeque,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use horos_store::{
    open::Options,
    readers::{ReadError, Readers, ReadersConfig},
    rusqlite,
    writer::{Writer, WriterConfig},
};
use horos_supervision::{ChildSpec, worker};
use horos_wire::protocol::tools::AuditEntry;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, oneshot, watch};

use crate::Caller;
pub use entry::Filter;
use entry::Record;
pub(crate) use entry::cut;
pub use table::MIGRATIONS;

/// The file of the table, in the node's data directory.
pub const FILE: &str = "tools.db";
/// Most rows that stay.
pub const MAX_ROWS: i64 = 1_000_000;
/// How long a row stays.
pub const MAX_AGE: Duration = Duration::from_secs(90 * 24 * 3_600);
/// What a tool that only reads did is on disk after this at the latest, as long as the disk keeps up.
pub const LATEST: Duration = Duration::from_millis(100);
/// Calls and records between them and the disk: at 20,000 a second what comes in 400 ms, and some 3 MiB.
const QUEUE: usize = 8_192;
/// Rows that an [`Audit::in_memory`] keeps.
const IN_MEMORY: usize = 4_096;
/// Most rows that one look gives.
pub const MAX_TAIL: usize = 10_000;
/// Longest a look takes: one for a rare outcome goes through all rows.
const LOOK: Duration = Duration::from_secs(10);

/// Where outcomes are written down. Cheap to clone.
#[derive(Clone)]
pub struct Audit(Kept);

#[derive(Clone)]
enum Kept {
    File(Arc<File>),
    Memory(Arc<Mutex<VecDeque<AuditEntry>>>),
}

struct File {
    writer: Writer,
    readers: Readers,
    queue: mpsc::Sender<Record>,
    /// Outcomes that were put into the queue, and those of them that are on disk.
    sent: AtomicU64,
    written: watch::Sender<u64>,
    /// Somebody waits for the disk, or the queue fills up.
    urgent: Notify,
    /// Held by the scribe that works.
    desk: tokio::sync::Mutex<scribe::Desk>,
}

impl fmt::Debug for Audit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kept::File(file) => write!(f, "Audit({:?})", file.writer),
            Kept::Memory(_) => f.write_str("Audit(in memory)"),
        }
    }
}

impl Audit {
    /// One in the database that `open` says. Nothing is written before its [`Audit::children`] run; calls wait.
    pub fn new(open: Options) -> Self {
        let (queue, intake) = mpsc::channel(QUEUE);
        Self(Kept::File(Arc::new(File {
            readers: Readers::new(ReadersConfig { threads: 1, ..ReadersConfig::new(open.clone()) }),
            writer: Writer::new(WriterConfig::new(open, MIGRATIONS)),
            queue,
            sent: AtomicU64::new(0),
            written: watch::Sender::new(0),
            urgent: Notify::new(),
            desk: tokio::sync::Mutex::new(scribe::Desk::new(intake)),
        })))
    }

    /// One that keeps the newest few thousand in memory and writes nothing: for tests and programs that have no data directory.
    pub fn in_memory() -> Self {
        Self(Kept::Memory(Arc::default()))
    }

    /// What is to run: the file's writer and readers, and the scribe.
    pub fn children(&self) -> Vec<ChildSpec> {
        let Kept::File(file) = &self.0 else { return Vec::new() };
        let shared = file.clone();
        let scribe = worker("audit", move |vitals| scribe::write(shared.clone(), vitals));
        vec![file.writer.child(&format!("{FILE}:writer")), file.readers.child(&format!("{FILE}:readers")), scribe]
    }

    /// A place for one outcome, once there is one.
    ///
    /// # Cancel safety
    /// Dropped, nothing was taken.
    pub(crate) async fn ticket(&self, caller: &Caller) -> Ticket {
        let place = match &self.0 {
            Kept::Memory(rows) => Place::Memory(rows.clone()),
            Kept::File(file) => {
                if file.queue.capacity() < QUEUE / 2 {
                    file.urgent.notify_one();
                }
                // The receiver is in the same `File`, so the queue cannot be closed.
                let permit = file.queue.clone().reserve_owned().await;
                Place::File(permit.expect("a queue whose both ends one holds is open"), file.clone())
            }
        };
        Ticket { place: Some(place), record: Record::new(caller, unix_ms()), started: Instant::now() }
    }

    /// Waits until every outcome so far is on disk: before the node ends in good order, or somebody looks.
    pub async fn flush(&self) {
        let Kept::File(file) = &self.0 else { return };
        let sent = file.sent.load(Relaxed);
        file.urgent.notify_one();
        // The sender is in the same `File`, so it cannot have gone.
        let _ = file.written.subscribe().wait_for(|written| *written >= sent).await;
    }

    /// The newest `count` rows (at most [`MAX_TAIL`]) that `filter` lets through, newest first.
    ///
    /// # Errors
    /// [`ReadError`]: the file cannot be read now.
    pub async fn tail(&self, count: usize, filter: Filter) -> Result<Vec<AuditEntry>, ReadError<rusqlite::Error>> {
        let count = count.min(MAX_TAIL);
        match &self.0 {
            Kept::Memory(rows) => Ok(rows.lock().iter().rev().filter(|entry| filter.lets(entry)).take(count).cloned().collect()),
            Kept::File(file) => {
                // What is about to be written is waited for, but not for ever: an audit that cannot be written can be read.
                let _ = tokio::time::timeout(LATEST * 2, self.flush()).await;
                let deadline = Instant::now() + LOOK;
                file.readers.read(deadline, move |connection| table::tail(connection, count, &filter)).await
            }
        }
    }
}

/// A place for one outcome, to be filled: by [`Ticket::end`], or with `cancelled` when it is dropped.
pub(crate) struct Ticket {
    place: Option<Place>,
    record: Record,
    started: Instant,
}

enum Place {
    File(mpsc::OwnedPermit<Record>, Arc<File>),
    Memory(Arc<Mutex<VecDeque<AuditEntry>>>),
}

/// Told when an outcome is on disk; resolves at once where nothing is written.
pub(crate) type Written = Option<oneshot::Receiver<()>>;

impl Ticket {
    /// What is known of the call, for whoever decides it to fill in.
    pub(crate) fn record(&mut self) -> &mut Record {
        &mut self.record
    }

    /// How it ended.
    pub(crate) fn end(mut self, outcome: &'static str, waits: Waits) -> Written {
        self.fill(outcome, waits)
    }

    fn fill(&mut self, outcome: &'static str, waits: Waits) -> Written {
        let place = self.place.take()?;
        let mut record = std::mem::take(&mut self.record);
        record.outcome = outcome;
        record.duration = self.started.elapsed();
        match place {
            Place::Memory(rows) => {
                let mut rows = rows.lock();
                let id = rows.back().map_or(1, |newest| newest.id + 1);
                if rows.len() == IN_MEMORY {
                    rows.pop_front();
                }
                rows.push_back(record.entry(id));
                None
            }
            Place::File(permit, file) => {
                let written = (waits == Waits::Yes).then(|| {
                    let (told, written) = oneshot::channel();
                    record.told = Some(told);
                    written
                });
                permit.send(record);
                file.sent.fetch_add(1, Relaxed);
                if written.is_some() {
                    file.urgent.notify_one();
                }
                written
            }
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.fill(CANCELLED, Waits::No);
    }
}

/// The outcome of a call that was given up before it ended.
pub const CANCELLED: &str = "cancelled";
/// The outcome of a call that did what it should.
pub const DONE: &str = "ok";

/// Whether somebody waits until it is on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waits {
    Yes,
    No,
}

/// Milliseconds since 1970.
fn unix_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

//! Making deltas, snapshots and repairs on the BO.
//!
//! [`build`] reads one state of the database, that of its read transaction, and gives a sink the [stream](crate::frames) that brings a
//! subscriber from where it is to that state: the log says which keys changed, the filter's statements say what became of them.
//! Nothing here remembers anything of a subscriber, and nothing is written.
//!
//! What is promised:
//! - *One state.* All rows, and the position that they are of, are read in one transaction: the caller's, or one of its own.
//! - *Nothing unpublished.* Rows come from [`Filter`]'s statements alone. The log has keys of rows that a condition keeps back, and
//!   nobody remembers whether a row that is not published now was before: in a table with a condition such keys are not sent, the
//!   gap between the published rows around them is (`build/gap.rs`). Integer keys and rowids are sent as they are: they are numbers
//!   that the database drew, and whoever would rather not tell that a row exists can give the table another key.
//! - *Bounded memory*, whatever the database's size: a chunk of 1 MiB and its compressed form, a page of the log (4,000 keys or 4
//!   MiB), the compressor (some 1.5 MiB), the digests that the subscriber has (16 bytes each), and SQLite's page cache; a row of
//!   [`MAX_ROW`] costs three times its size on top while it is packed.
//! - *It ends when told to* ([`Job::cancel`]): within 1,000 rows, and within a statement that finds none.
//!
//! A key that changed in several pages of the log is sent once a page. That is harmless: its row is always that of the transaction.

mod delta;
mod gap;

use std::{
    collections::{BTreeMap, HashSet},
    ops::ControlFlow,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use gap::Gaps;
use horos_store::StoreError;
use parking_lot::Mutex;
use rusqlite::{Connection, InterruptHandle, limits::Limit};
use sha2::{Digest as _, Sha256};

use crate::{
    capture::{self, CaptureError, Gap, Plan, Position},
    chunk::{Ordered, ReadError, walk},
    filter::{Filter, KeyKind, Table},
    frames::{Encoding, Frame, FrameWriter, Header, KeyBytes, TableHead, WriteError, put_rows_head},
    value::MAX_ROW,
};

/// What a subscriber needs.
#[derive(Clone, Debug)]
pub(crate) struct Request<'a> {
    /// The publication's name.
    pub(crate) publication: &'a str,
    /// Where the subscriber is. `None`: everything, from nothing.
    pub(crate) base: Option<Position>,
    /// The tables that it has, with their [`table_fingerprint`]s. Others, and changed ones, are sent whole.
    pub(crate) known: &'a BTreeMap<String, [u8; 16]>,
    /// The beginnings of the digests of chunks that it has. Their rows are not sent again.
    pub(crate) have: &'a HashSet<[u8; 16]>,
    /// What it was found to have wrong.
    pub(crate) repairs: &'a [KeyRange],
    /// What it shall compare.
    pub(crate) sweep: Option<Sweep>,
    /// `PRAGMA schema_version` in the transaction in which the filter was loaded; compared, unless there is none.
    pub(crate) schema: Option<i64>,
    /// Now, in milliseconds since 1970.
    pub(crate) made_at: u64,
}

/// The rows with keys in (`after`, `through`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KeyRange {
    /// The table's name.
    pub(crate) table: String,
    /// `None`: from the first row on.
    pub(crate) after: Option<KeyBytes>,
    /// `None`: to the last row and beyond.
    pub(crate) through: Option<KeyBytes>,
}

/// Checks to be sent with a delta.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sweep {
    /// Where the last sweep ended; `None` begins with the first table.
    pub(crate) from: Option<Cursor>,
    /// How many chunks, of as many tables as that takes; at most [`crate::frames::MAX_CHECKS`].
    pub(crate) chunks: usize,
}

/// Where a sweep goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cursor {
    /// The table's name. If it is gone by then, the sweep goes on with the next one by name.
    pub(crate) table: String,
    /// Behind this key.
    pub(crate) after: Option<KeyBytes>,
}

/// What a sweep found on the BO, and the subscriber compares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Swept {
    /// The ranges, by the ids of their checks: 0, 1, 2 and so on. What the subscriber reports is to be repaired.
    pub(crate) ranges: Vec<KeyRange>,
    /// Rows in them.
    pub(crate) rows: u64,
    /// Where to go on; `None` after the last table.
    pub(crate) next: Option<Cursor>,
}

/// A stream that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Built {
    /// Where the subscriber is after it.
    pub(crate) to: Position,
    /// Rows and keys in it.
    pub(crate) rows: u64,
    /// Rows that the subscriber has, and that were therefore not sent.
    pub(crate) spared: u64,
    /// Its size.
    pub(crate) bytes: u64,
    /// What it asks to be compared, if a sweep was asked for.
    pub(crate) swept: Option<Swept>,
}

/// Whoever takes the stream does not want more of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stop;

/// Takes the stream in pieces.
pub(crate) type Sink<'a> = dyn FnMut(&[u8]) -> Result<(), Stop> + 'a;

/// Why a stream was not made. What the sink was given is of no use.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum BuildError {
    /// There is no way from the subscriber's position to the present: send a snapshot.
    #[error("the log does not lead on from the subscriber's position")]
    Gap(Gap),
    /// The schema is not the one that the filter was loaded for: load it again.
    #[error("the schema has changed since the filter was loaded")]
    SchemaChanged,
    /// Capture and filter disagree about a table: attach again with the filter's tables.
    #[error("table {table} is captured otherwise than it is published: {reason}")]
    Plan {
        /// The table.
        table: String,
        /// How.
        reason: &'static str,
    },
    /// Nothing can be published past this row until it is made smaller, or leaves the filter.
    #[error("table {table}: the row with the key {key} is larger than the {MAX_ROW} bytes that a row may have")]
    RowTooLarge {
        /// The table.
        table: String,
        /// The row's key, or the one before it, shortened.
        key: String,
    },
    /// [`Job::cancel`] was called.
    #[error("cancelled")]
    Cancelled,
    /// The sink said so.
    #[error("the receiver stopped the stream")]
    Stopped,
    /// The file says nothing of its text's encoding that is known.
    #[error("the database's text encoding is unknown")]
    Encoding,
    /// The log could not be read.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// SQLite failed; its kind says whether trying again may help.
    #[error("the database could not be read")]
    Store(#[from] StoreError),
    /// The stream could not be written.
    #[error(transparent)]
    Write(#[from] WriteError),
}

impl From<rusqlite::Error> for BuildError {
    fn from(error: rusqlite::Error) -> BuildError {
        BuildError::Store(error.into())
    }
}

/// A stream in the making, shared with whoever watches it.
#[derive(Default)]
pub(crate) struct Job {
    cancelled: AtomicBool,
    rows: AtomicU64,
    bytes: AtomicU64,
    interrupt: Mutex<Option<InterruptHandle>>,
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Job").field("cancelled", &self.cancelled).field("rows", &self.rows).field("bytes", &self.bytes).finish()
    }
}

impl Job {
    /// Ends the stream with [`BuildError::Cancelled`]; for good, also if it has not begun.
    pub(crate) fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
        if let Some(handle) = &*self.interrupt.lock() {
            handle.interrupt();
        }
    }

    /// Rows and keys written so far, those that were spared included.
    pub(crate) fn rows(&self) -> u64 {
        self.rows.load(Ordering::Relaxed)
    }

    /// Bytes given to the sink so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    fn check(&self) -> Result<(), BuildError> {
        if self.cancelled.load(Ordering::Relaxed) { Err(BuildError::Cancelled) } else { Ok(()) }
    }
}

/// What is changed on the connection for a stream, and put back.
struct Guard<'a> {
    connection: &'a Connection,
    job: &'a Job,
    limit: Option<i32>,
}

impl<'a> Guard<'a> {
    fn new(connection: &'a Connection, job: &'a Job) -> Result<Guard<'a>, BuildError> {
        *job.interrupt.lock() = Some(connection.get_interrupt_handle());
        // A larger value is refused by SQLite before it has it in memory. What is refused here could not be sent anyway.
        let most = i32::try_from(MAX_ROW + (1 << 20)).unwrap_or(i32::MAX);
        let limit = connection.limit(Limit::SQLITE_LIMIT_LENGTH).ok().filter(|limit| *limit > most);
        let guard = Guard { connection, job, limit };
        if limit.is_some() {
            connection.set_limit(Limit::SQLITE_LIMIT_LENGTH, most)?;
        }
        // Set before it was asked for: whoever cancelled in between found no handle.
        job.check()?;
        Ok(guard)
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        *self.job.interrupt.lock() = None;
        if let Some(limit) = self.limit {
            // It was in force before.
            let _ = self.connection.set_limit(Limit::SQLITE_LIMIT_LENGTH, limit);
        }
    }
}

/// A filter as streams are made from it: once for each time that it is loaded.
#[derive(Clone, Debug)]
pub(crate) struct Published {
    fingerprint: [u8; 32],
    /// By name, as the filter has them.
    tables: Vec<PublishedTable>,
    /// Places in `tables`, by the log's numbers.
    numbers: BTreeMap<u32, usize>,
}

#[derive(Clone, Debug)]
struct PublishedTable {
    head: TableHead,
    ordered: Ordered,
    by_key: String,
    /// How to delete without naming a key, where a key may be private.
    gaps: Option<Gaps>,
}

impl Published {
    /// What `filter` publishes, captured as `plan` says.
    ///
    /// # Errors
    /// [`BuildError::Plan`]: a table of the filter is not captured, or by another key.
    pub(crate) fn new(filter: &Filter, plan: &Plan) -> Result<Published, BuildError> {
        let mut numbers = BTreeMap::new();
        let mut tables = Vec::with_capacity(filter.tables().len());
        for table in filter.tables() {
            let refuse = |reason| BuildError::Plan { table: table.name().to_owned(), reason };
            let tracked = plan.tables.iter().find(|tracked| tracked.name.eq_ignore_ascii_case(table.name()));
            let tracked = tracked.ok_or_else(|| refuse("it is not captured"))?;
            let same = match &tracked.key {
                capture::Key::Rowid => table.key().kind != KeyKind::Declared,
                capture::Key::Columns(columns) => columns.iter().eq(table.key().columns.iter().map(|column| &column.name)),
            };
            if !same {
                return Err(refuse("by another key"));
            }
            numbers.insert(tracked.number, tables.len());
            tables.push(PublishedTable {
                head: head(table),
                ordered: Ordered::published(table),
                by_key: table.select_by_key().to_owned(),
                gaps: (table.condition().is_some() && table.key().kind == KeyKind::Declared).then(|| Gaps::new(table)),
            });
        }
        Ok(Published { fingerprint: *filter.fingerprint().as_bytes(), tables, numbers })
    }

    /// The tables, as streams describe them.
    pub(crate) fn heads(&self) -> impl Iterator<Item = &TableHead> {
        self.tables.iter().map(|table| &table.head)
    }

    fn place(&self, name: &str) -> Option<usize> {
        self.tables.iter().position(|table| table.head.name == name)
    }
}

fn head(table: &Table) -> TableHead {
    let key = &table.key().columns;
    TableHead {
        name: table.name().to_owned(),
        columns: table.columns().to_vec(),
        key: table.key_positions().into_iter().filter_map(|position| u16::try_from(position).ok()).collect(),
        collations: key.iter().map(|column| column.explicit_collation.then(|| column.collation.clone())).collect(),
        ddl: table.schema().to_vec(),
        fingerprint: table_fingerprint(table),
    }
}

/// Changes with anything that makes a replica's rows of `table`, or their form, others: its statements, columns, key and condition.
pub(crate) fn table_fingerprint(table: &Table) -> [u8; 16] {
    let mut hash = Sha256::new();
    for text in table.schema().iter().map(String::as_str).chain([table.select(), table.select_by_key()]) {
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text.as_bytes());
    }
    let mut fingerprint = [0; 16];
    fingerprint.copy_from_slice(&hash.finalize()[..16]);
    fingerprint
}

/// What one stream leaves for the next: memory that would otherwise be asked for, grown and given back a hundred times a second, and that
/// the allocator keeps for a while each time.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    writer: Option<FrameWriter>,
    /// Buffers of rows and keys.
    spare: Vec<Vec<u8>>,
}

/// As [`build_with`], with nothing left over.
#[cfg(test)]
pub(crate) fn build(
    connection: &Connection,
    published: &Published,
    request: &Request<'_>,
    job: &Job,
    sink: &mut Sink<'_>,
) -> Result<Built, BuildError> {
    build_with(&mut Scratch::default(), connection, published, request, job, sink)
}

/// Gives `sink` the stream from the subscriber's position to the present.
///
/// # Errors
/// [`BuildError`]. The connection is as it was.
pub(crate) fn build_with(
    scratch: &mut Scratch,
    connection: &Connection,
    published: &Published,
    request: &Request<'_>,
    job: &Job,
    sink: &mut Sink<'_>,
) -> Result<Built, BuildError> {
    let transaction = connection.is_autocommit().then(|| connection.unchecked_transaction()).transpose()?;
    let _guard = Guard::new(connection, job)?;
    let built = run(scratch, connection, published, request, job, sink).map_err(|error| match error {
        // Wherever the interruption met SQLite.
        BuildError::Store(failed) | BuildError::Capture(CaptureError::Store(failed))
            if failed.kind == horos_store::Kind::Interrupted && job.check().is_err() =>
        {
            BuildError::Cancelled
        }
        other => other,
    })?;
    if let Some(transaction) = transaction {
        transaction.finish()?;
    }
    Ok(built)
}

fn run(
    scratch: &mut Scratch,
    connection: &Connection,
    published: &Published,
    request: &Request<'_>,
    job: &Job,
    sink: &mut Sink<'_>,
) -> Result<Built, BuildError> {
    // The first statement: from here on nobody's commit is seen.
    let to = capture::head(connection)?;
    if let Some(schema) = request.schema {
        let now: i64 = connection.query_row("PRAGMA main.schema_version", [], |row| row.get(0))?;
        if now != schema {
            return Err(BuildError::SchemaChanged);
        }
    }
    let writer = match scratch.writer.take() {
        Some(mut writer) => {
            writer.begin_again();
            writer
        }
        None => FrameWriter::new()?,
    };
    let out = Out { writer, job, sink };
    let mut work = Work { connection, published, request, out, spared: 0, spare: std::mem::take(&mut scratch.spare) };
    let swept = match request.base {
        None => work.snapshot(to).map(|()| None)?,
        Some(base) => work.delta(base, to)?,
    };
    let Work { mut out, spared, spare, .. } = work;
    out.end()?;
    let built = Built { to, rows: out.writer.rows(), spared, bytes: out.writer.bytes(), swept };
    *scratch = Scratch { writer: Some(out.writer), spare };
    Ok(built)
}

/// Where frames go.
struct Out<'a> {
    writer: FrameWriter,
    job: &'a Job,
    sink: &'a mut Sink<'a>,
}

impl Out<'_> {
    fn frame(&mut self, frame: &Frame) -> Result<(), BuildError> {
        let bytes = self.writer.frame(frame)?;
        (self.sink)(bytes).map_err(|Stop| BuildError::Stopped)?;
        self.told()
    }

    /// Rows or keys behind the room for their head.
    fn rows(&mut self, payload: &mut [u8], deletes: bool, table: u16, count: u32) -> Result<(), BuildError> {
        put_rows_head(payload, deletes, table, count);
        let bytes = self.writer.rows_payload(payload, count)?;
        (self.sink)(bytes).map_err(|Stop| BuildError::Stopped)?;
        self.job.rows.fetch_add(u64::from(count), Ordering::Relaxed);
        self.told()
    }

    fn end(&mut self) -> Result<(), BuildError> {
        let bytes = self.writer.end()?;
        (self.sink)(bytes).map_err(|Stop| BuildError::Stopped)?;
        self.told()
    }

    fn told(&mut self) -> Result<(), BuildError> {
        self.job.bytes.store(self.writer.bytes(), Ordering::Relaxed);
        self.job.check()
    }
}

/// A stream in the making.
struct Work<'a> {
    connection: &'a Connection,
    published: &'a Published,
    request: &'a Request<'a>,
    out: Out<'a>,
    spared: u64,
    spare: Vec<Vec<u8>>,
}

impl Work<'_> {
    fn snapshot(&mut self, to: Position) -> Result<(), BuildError> {
        let every: Vec<usize> = (0..self.published.tables.len()).collect();
        self.header(None, to, true, &every)?;
        for place in every {
            self.whole(number(place), place)?;
        }
        Ok(())
    }

    /// Begins the stream, with the tables at `places`.
    fn header(&mut self, base: Option<Position>, to: Position, complete: bool, places: &[usize]) -> Result<(), BuildError> {
        let encoding: String = self.connection.query_row("PRAGMA main.encoding", [], |row| row.get(0))?;
        let tables = places.iter().map(|place| {
            let head = &self.published.tables[*place].head;
            let ddl = if base.is_some() && self.knows(head) { Vec::new() } else { head.ddl.clone() };
            TableHead { ddl, ..head.clone() }
        });
        let header = Header {
            publication: self.request.publication.to_owned(),
            base,
            to,
            fingerprint: self.published.fingerprint,
            made_at: self.request.made_at,
            encoding: Encoding::from_name(&encoding).ok_or(BuildError::Encoding)?,
            complete,
            tables: tables.collect(),
        };
        self.out.frame(&Frame::Header(header))
    }

    /// Whether the subscriber has the table as it is.
    fn knows(&self, head: &TableHead) -> bool {
        self.request.known.get(&head.name) == Some(&head.fingerprint)
    }

    /// All rows of the table at `place`, which the stream calls `table`.
    fn whole(&mut self, table: u16, place: usize) -> Result<(), BuildError> {
        let PublishedTable { head, ordered, .. } = &self.published.tables[place];
        self.out.frame(&Frame::Whole { table })?;
        let (out, have, spared) = (&mut self.out, self.request.have, &mut self.spared);
        let done = walk::<Failed>(self.connection, ordered, (None, None), &out.job.cancelled, |chunk| {
            let digest = chunk.digest();
            let rows = chunk.rows;
            if digest.first_chunk().is_some_and(|beginning| have.contains(beginning)) {
                *spared += u64::from(rows);
                out.job.rows.fetch_add(u64::from(rows), Ordering::Relaxed);
            } else {
                out.rows(chunk.payload, false, table, rows)?;
            }
            out.frame(&Frame::Chunk { table, rows, digest })?;
            Ok(ControlFlow::Continue(()))
        });
        done.map_err(|failed| failed.in_table(&head.name)).map(drop)
    }
}

/// A table's number in the stream; there are never more than [`crate::frames::MAX_TABLES`].
fn number(place: usize) -> u16 {
    u16::try_from(place).unwrap_or(u16::MAX)
}

/// Why a walk over a table ended.
enum Failed {
    Read(ReadError),
    Build(BuildError),
}

impl From<ReadError> for Failed {
    fn from(error: ReadError) -> Failed {
        Failed::Read(error)
    }
}

impl From<BuildError> for Failed {
    fn from(error: BuildError) -> Failed {
        Failed::Build(error)
    }
}

impl Failed {
    fn in_table(self, table: &str) -> BuildError {
        match self {
            Failed::Build(error) => error,
            Failed::Read(ReadError::Sqlite(error)) => error.into(),
            Failed::Read(ReadError::TooLarge { key }) => BuildError::RowTooLarge { table: table.to_owned(), key },
            Failed::Read(ReadError::Key(_)) => BuildError::Plan { table: table.to_owned(), reason: "a bound is not one of its keys" },
            Failed::Read(ReadError::Cancelled) => BuildError::Cancelled,
        }
    }
}

#[cfg(test)]
mod speed;
#[cfg(test)]
mod tests;

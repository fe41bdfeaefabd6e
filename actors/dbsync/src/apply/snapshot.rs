//! A snapshot: everything that is published, built in a file beside the live one.
//!
//! What is written is committed every 16 MiB, not synced but with a journal: a snapshot whose stream is cut, or whose node
//! is killed, keeps what it had, and only a power cut may cost it. Rows are appended in the order of their keys and indexes are
//! made at the end, so the journal stays small and no page is written twice.

use std::time::{Duration, Instant};

use rusqlite::Connection;

use super::{
    Applier, ApplyError, Doing as _, Done, Input, Standing, State,
    delta::distinct,
    files,
    live::{connect, explain_full, limit, now, pragma},
    nonsense, position,
    rows::Insert,
    shape::{self, Part, Shape},
    state,
};
use crate::frames::{Frame, FrameError, Header};

/// Page cache while a snapshot is built, in KiB: the right edges of the trees.
const CACHE_KIB: i64 = 4_000;
/// The same while indexes are made, and what each of the threads sorts at a time. Three times as much makes it no quicker.
const SORT_KIB: i64 = 2_000;
/// Threads that sort for the one that reads the rows.
const SORTERS: u32 = 1;
/// After the disk was full, so long no snapshot is tried: each try costs a transfer and fills the disk for others.
const FULL_FOR: Duration = Duration::from_secs(30);

/// A snapshot being built.
struct Incoming {
    connection: Connection,
    /// Encoded rows since the last commit.
    uncommitted: usize,
}

impl Applier {
    pub(super) fn snapshot(&mut self, header: &Header, input: &mut Input<'_>) -> Result<Done, ApplyError> {
        let to = position(&header.to);
        if let Some(at) = self.state().and_then(|state| state.position)
            && at.epoch == to.epoch
            && (to.seq < at.seq || (to.seq == at.seq && to.stamp != at.stamp))
        {
            return Err(ApplyError::Backwards);
        }
        if let Some(until) = self.full_until
            && Instant::now() < until
        {
            return Err(self.full());
        }
        let shapes = header.tables.iter().map(Shape::of).collect::<Result<Vec<_>, _>>()?;
        distinct(&shapes)?;
        self.retire_incoming()?;
        let outcome = self.receive(header, &shapes, input).and_then(|rows| {
            self.place(header.encoding)?;
            Ok(rows)
        });
        // Whatever came of it, what was offered is not what is here.
        self.have = None;
        match outcome {
            Ok(rows) => {
                self.full_until = None;
                files::remove(&self.paths.incoming)?;
                files::remove(&self.paths.partial)?;
                Ok(Done { position: to, mismatches: Vec::new(), tables: None, snapshot: true, rows })
            }
            Err(error) => {
                self.abandon(&error);
                Err(error)
            }
        }
    }

    /// Builds the file; gives the number of rows that came.
    fn receive(&mut self, header: &Header, shapes: &[Shape], input: &mut Input<'_>) -> Result<u64, ApplyError> {
        self.steps.before("create the incoming file")?;
        let mut incoming = Incoming::create(self, header)?;
        let received = self.fill(&mut incoming, header, shapes, input);
        match received {
            Ok(rows) => {
                self.finish(incoming, header, shapes)?;
                Ok(rows)
            }
            Err(error) => {
                // What came is kept if it can be; if not, that error would only hide the first one.
                let _ = incoming.connection.execute_batch("COMMIT");
                Err(explain_full(&incoming.connection, self.settings.max_bytes, incoming.uncommitted as u64, error))
            }
        }
    }

    fn fill(&mut self, incoming: &mut Incoming, header: &Header, shapes: &[Shape], input: &mut Input<'_>) -> Result<u64, ApplyError> {
        let mut came = vec![false; shapes.len()];
        loop {
            match input.next()? {
                Frame::Whole { table } => {
                    let table = usize::from(table);
                    let Some(shape) = shapes.get(table) else { return nonsense("a table that the stream does not name") };
                    shape::create(&mut incoming.connection, &header.tables[table], shape, Part::Table)?;
                    state::write_table(&incoming.connection, shape, header.made_at)?;
                    self.table(incoming, shape, input)?;
                    came[table] = true;
                }
                Frame::End { rows, .. } => {
                    if let Some(missing) = came.iter().position(|came| !came) {
                        return nonsense(format!("a snapshot without table {:?}", shapes[missing].name()));
                    }
                    return Ok(rows);
                }
                _ => return nonsense("a frame that no snapshot has"),
            }
        }
    }

    /// The rows of one table, up to the frame after them.
    fn table(&mut self, incoming: &mut Incoming, shape: &Shape, input: &mut Input<'_>) -> Result<(), ApplyError> {
        let Incoming { connection, uncommitted } = incoming;
        let mut insert = Insert::new(connection, shape)?;
        loop {
            match input.next()? {
                Frame::Rows { rows, count, .. } => {
                    insert.run(shape, &rows, count)?;
                    *uncommitted += rows.len();
                    input.took(count);
                    // The reader has compared it with the rows.
                    let Frame::Chunk { .. } = input.next()? else { return nonsense("rows of a table without their digest") };
                }
                Frame::Chunk { rows, digest, .. } => {
                    let Some(have) = &self.have else { return nonsense("a chunk that was not offered") };
                    have.fetch(self.live.as_ref(), &digest, rows, |bytes| {
                        *uncommitted += bytes.len();
                        insert.run(shape, bytes, rows)
                    })?;
                    input.took(rows);
                }
                next => {
                    input.give_back(next);
                    return Ok(());
                }
            }
            if *uncommitted >= self.batch {
                *uncommitted = 0;
                self.steps.before("commit a part of a snapshot")?;
                connection.execute_batch("COMMIT; BEGIN").doing("commit a part of a snapshot")?;
            }
        }
    }

    /// The stream was what it should be: makes the indexes, writes down what this is, and has it on disk.
    fn finish(&mut self, mut incoming: Incoming, header: &Header, shapes: &[Shape]) -> Result<(), ApplyError> {
        let path = self.paths.incoming.clone();
        let syncing = files::begin_sync(&path);
        let mut complete = || -> Result<(), ApplyError> {
            self.steps.before("make the indexes")?;
            let set = || -> rusqlite::Result<()> {
                pragma(&incoming.connection, "cache_size", -SORT_KIB)?;
                pragma(&incoming.connection, "threads", SORTERS)
            };
            set().doing("make the indexes")?;
            for (head, shape) in header.tables.iter().zip(shapes) {
                if head.ddl.len() > 1 {
                    shape::create(&mut incoming.connection, head, shape, Part::Indexes)?;
                }
            }
            let state = State {
                publication: header.publication.clone(),
                position: Some(position(&header.to)),
                fingerprint: header.fingerprint,
                applied_at: now(),
                standing: Standing::Live,
                tables: Vec::new(),
            };
            state::write(&incoming.connection, &state)?;
            self.steps.before("commit a snapshot")?;
            // SQLite wrote it, from rows whose digests were right: to check it now were to read back, from memory, what it has just
            // written. Once it has been on a disk, it is checked whenever it is opened.
            incoming.connection.execute_batch("COMMIT").doing("commit a snapshot")
        };
        let done = complete();
        let synced = syncing.end(&path);
        let max_bytes = self.settings.max_bytes;
        done.map_err(|error| explain_full(&incoming.connection, max_bytes, incoming.uncommitted as u64, error))?;
        if self.live.is_none() {
            // It gets the name by a rename, and whoever opens it then must find it as it stays.
            let mode: String = incoming
                .connection
                .pragma_update_and_check(None, "journal_mode", "wal", |row| row.get(0))
                .doing("give a snapshot a WAL")?;
            if mode != "wal" {
                return nonsense("the file system does not support a WAL: put the replica on a local one");
            }
        }
        let file = synced?;
        incoming.connection.close().map_err(|(_, error)| error).doing("close a snapshot")?;
        drop(file);
        self.steps.before("sync a snapshot")?;
        files::sync(&path)
    }

    /// Decides what remains of a snapshot that failed.
    fn abandon(&mut self, error: &ApplyError) {
        let keep = match error {
            // The sender's fault, or the network's: what was received is worth keeping.
            ApplyError::Cut(_) => true,
            ApplyError::Stream(error) => !matches!(error, FrameError::Magic | FrameError::Key | FrameError::TooMany | FrameError::Order),
            #[cfg(test)]
            ApplyError::File { doing: "pass", .. } => true,
            _ => false,
        };
        let mut remove = || -> Result<(), ApplyError> {
            if !keep {
                files::remove(&self.paths.incoming)?;
            }
            if error.is_full() {
                // Others need the disk, the live file first of all.
                self.full_until = Some(Instant::now() + FULL_FOR);
                files::remove(&self.paths.partial)?;
                files::remove(&self.paths.keeping)?;
            }
            Ok(())
        };
        if let Err(error) = remove() {
            tracing::warn!(error = &error as &dyn std::error::Error, "what remains of a snapshot cannot be removed");
        }
    }

    fn full(&self) -> ApplyError {
        let source = std::io::Error::new(std::io::ErrorKind::StorageFull, "the disk was full a moment ago");
        ApplyError::File { doing: "receive a snapshot into", path: self.paths.incoming.clone(), source }
    }
}

impl Incoming {
    fn create(applier: &Applier, header: &Header) -> Result<Incoming, ApplyError> {
        let doing = "begin a snapshot";
        let path = &applier.paths.incoming;
        files::remove(path)?;
        files::create(path, 0o600)?;
        let connection = connect(path, CACHE_KIB)?;
        let set = || -> rusqlite::Result<()> {
            pragma(&connection, "encoding", header.encoding.name())?;
            // Nobody else has it open, and a power cut costs no more than the transfer.
            pragma(&connection, "locking_mode", "exclusive")?;
            pragma(&connection, "journal_mode", "truncate")?;
            pragma(&connection, "synchronous", 0)?;
            // There is nothing to overwrite in what is only appended to.
            pragma(&connection, "secure_delete", 0)?;
            connection.execute_batch("BEGIN")
        };
        set().doing(doing)?;
        limit(&connection, applier.settings.max_bytes)?;
        state::create(&connection)?;
        let begun = State {
            publication: header.publication.clone(),
            position: None,
            fingerprint: header.fingerprint,
            applied_at: 0,
            standing: Standing::Live,
            tables: Vec::new(),
        };
        state::write(&connection, &begun)?;
        Ok(Incoming { connection, uncommitted: 0 })
    }
}

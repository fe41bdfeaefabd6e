//! The live file: opened, checked, written, and kept small.

use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use horos_store::{
    Kind, StoreError,
    open::{Check, OpenError, check},
};
use horos_wire::protocol::sync::Position;
use rusqlite::{Connection, OpenFlags, config::DbConfig};

use super::{
    ApplyError, Doing as _, Done, Input, Progress, Source, Standing, State,
    chunks::Have,
    files::{self, Paths, ReadableBy},
    nonsense, state,
};
use crate::frames::Encoding;

/// Page cache while deltas are applied: 4 MiB.
const CACHE_KIB: i64 = 4_000;
/// Statements kept prepared: upserts and deletes of as many tables as change in one delta of most databases.
const STATEMENTS: usize = 128;
/// New pages in the WAL after which they are copied into the file: 4 MiB. Readers are not waited for.
const CHECKPOINT_PAGES: i64 = 1_000;
/// Encoded rows of a snapshot between two commits: what a crash costs at most.
const BATCH: usize = 16 << 20;
/// A row that was withdrawn is in the previous snapshot's file for no longer, if the replica has a second's rest then.
const PRUNE_AFTER: Duration = Duration::from_secs(3_600);
/// Pages copied at a step: 4 MiB.
const PAGES_PER_STEP: i32 = 1_000;
/// What is left of the WAL's file when it starts over.
const WAL_LIMIT: i64 = 16 << 20;
/// Longest wait for a writer that should not be: an operator's shell.
const BUSY: Duration = Duration::from_secs(5);

/// How a replica's files are kept.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// The publication.
    pub(crate) name: String,
    /// The live file.
    pub(crate) path: PathBuf,
    pub(crate) readable_by: ReadableBy,
    /// Most bytes of the live file, and of one that is to take its place.
    pub(crate) max_bytes: Option<u64>,
    /// How the live file is checked when it is opened.
    pub(crate) check: Check,
}

/// Owns a replica's files.
pub(crate) struct Applier {
    pub(super) settings: Settings,
    pub(super) paths: Paths,
    /// None until the first snapshot.
    pub(super) live: Option<Live>,
    /// What has been offered of what is here.
    pub(super) have: Option<Have>,
    /// The disk was full: no snapshot before then.
    pub(super) full_until: Option<Instant>,
    /// Since when the previous snapshot may hold rows that have been withdrawn.
    pub(super) withdrawn: Option<Instant>,
    pub(super) prune_after: Duration,
    /// Encoded rows between two commits of a snapshot.
    pub(super) batch: usize,
    /// Pages copied between two looks at what stands in the way.
    pub(super) pages_per_step: i32,
    pub(super) steps: Steps,
    // Given up last.
    _lock: File,
}

impl std::fmt::Debug for Applier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Applier").field("live", &self.settings.path).finish_non_exhaustive()
    }
}

/// The open live file.
pub(super) struct Live {
    pub(super) connection: Connection,
    pub(super) state: State,
    pub(super) encoding: Encoding,
    wal: Wal,
}

/// How much is in the WAL.
struct Wal {
    /// Its pages after the last commit.
    pages: Arc<AtomicI64>,
    /// Its pages at the last checkpoint.
    seen: i64,
}

/// Where the tests look in, and let things fail.
#[derive(Default)]
pub(super) struct Steps {
    #[cfg(test)]
    pub(super) watch: Option<Watch>,
}

#[cfg(test)]
pub(super) type Watch = Box<dyn FnMut(&'static str) -> std::io::Result<()> + Send>;

impl Steps {
    /// What follows changes a file.
    #[cfg_attr(not(test), expect(clippy::unused_self, clippy::unnecessary_wraps, reason = "only tests look in"))]
    pub(super) fn before(&mut self, step: &'static str) -> Result<(), ApplyError> {
        #[cfg(test)]
        if let Some(watch) = &mut self.watch {
            let path = PathBuf::from(step);
            watch(step).map_err(|source| ApplyError::File { doing: "pass", path, source })?;
        }
        let _ = step;
        Ok(())
    }
}

impl Applier {
    /// Takes possession of the replica's files, and brings what a crash left behind in order.
    ///
    /// A live file that is damaged is put aside, and the replica begins without one; what was wrong is returned.
    ///
    /// # Errors
    /// [`ApplyError`]; nothing was touched when it is [`ApplyError::Owned`] or [`ApplyError::Foreign`].
    pub(crate) fn open(settings: Settings) -> Result<(Applier, Option<String>), ApplyError> {
        let paths = Paths::new(&settings.path)?;
        paths.make_directory(settings.readable_by)?;
        let lock = paths.lock()?;
        let mut applier = Applier {
            settings,
            paths,
            live: None,
            have: None,
            full_until: None,
            // What a life before this one withdrew is not known.
            withdrawn: Some(Instant::now()),
            prune_after: PRUNE_AFTER,
            batch: BATCH,
            pages_per_step: PAGES_PER_STEP,
            steps: Steps::default(),
            _lock: lock,
        };
        let damage = applier.open_live()?;
        applier.tidy()?;
        Ok((applier, damage))
    }

    /// What the live file holds; none before the first snapshot.
    pub(crate) fn state(&self) -> Option<&State> {
        self.live.as_ref().map(|live| &live.state)
    }

    /// Whether there are rows that a snapshot need not send.
    pub(crate) fn has_parts(&self) -> bool {
        self.live.is_some() || self.paths.incoming.exists() || self.paths.partial.exists()
    }

    /// Applies a stream, whole or not at all.
    ///
    /// # Errors
    /// [`ApplyError`]; what is read is as it was.
    pub(crate) fn apply(&mut self, source: Box<dyn Source>, progress: &Progress) -> Result<Done, ApplyError> {
        let mut input = Input::new(source, progress)?;
        let header = input.header()?;
        if header.publication != self.settings.name {
            return nonsense(format!("the stream is of publication {:?}", header.publication));
        }
        if self.state().is_some_and(|state| state.standing == Standing::Pinned) {
            return Err(ApplyError::Pinned);
        }
        match header.base {
            Some(base) => self.delta(&header, super::position(&base), &mut input),
            None => {
                progress.receives(true);
                input.ahead();
                let outcome = self.snapshot(&header, &mut input);
                progress.receives(false);
                outcome
            }
        }
    }

    /// Nothing is to be done: empties the WAL, unless somebody reads from it. Costs nothing when it is empty.
    pub(crate) fn rest(&mut self) {
        if let Some(live) = &mut self.live {
            live.empty_wal(Duration::ZERO);
        }
        if self.withdrawn.is_some_and(|since| since.elapsed() >= self.prune_after) {
            self.settle_previous();
        }
    }

    /// The node stops: empties the WAL and leaves it where it is, for readers that could not make another.
    pub(crate) fn close(mut self) {
        if let Some(mut live) = self.live.take() {
            live.empty_wal(Duration::from_millis(500));
        }
    }

    /// Opens the live file if there is one.
    fn open_live(&mut self) -> Result<Option<String>, ApplyError> {
        // A file of no length is what remains of an attempt to look at one that was not there.
        if files::length(&self.paths.live) == 0 {
            return Ok(None);
        }
        match self.look_at_live() {
            Ok(live) => {
                self.live = Some(live);
                Ok(None)
            }
            Err(ApplyError::Sqlite { source, .. }) if matches!(source.kind, Kind::Corrupt | Kind::NotADatabase) => {
                files::remove(&self.paths.damaged)?;
                // With its WAL: an operator may want to see what there was.
                for suffix in ["-wal", ""] {
                    let from = files::beside(&self.paths.live, suffix);
                    if files::exists(&from)? {
                        files::rename(&from, &files::beside(&self.paths.damaged, suffix))?;
                    }
                }
                files::remove(&self.paths.live)?;
                self.paths.sync_directory()?;
                Ok(Some(format!("the replica was damaged and is put aside as {}: {source}", self.paths.damaged.display())))
            }
            Err(error) => Err(error),
        }
    }

    fn look_at_live(&self) -> Result<Live, ApplyError> {
        let live = Live::open(&self.settings, &self.paths.live)?;
        match check(&live.connection, self.settings.check, &self.paths.live) {
            Ok(()) => Ok(live),
            Err(OpenError::Damaged { findings, .. }) => Err(ApplyError::Sqlite { doing: "check the replica", source: corrupt(&findings) }),
            Err(OpenError::Sqlite { source, .. }) => Err(ApplyError::Sqlite { doing: "check the replica", source }),
            Err(other) => nonsense(other.to_string()),
        }
    }
}

/// Findings of a check, as if SQLite had come upon them by itself.
fn corrupt(findings: &[String]) -> StoreError {
    let text = findings.first().cloned();
    rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT), text).into()
}

/// A connection with the settings that all of a replica's files have in common.
pub(super) fn connect(path: &Path, cache_kib: i64) -> Result<Connection, ApplyError> {
    let doing = "open a file of the replica";
    let flags = OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_EXRESCODE | OpenFlags::SQLITE_OPEN_READ_WRITE;
    let connection = Connection::open_with_flags(path, flags).doing(doing)?;
    let set = || -> rusqlite::Result<()> {
        connection.busy_timeout(BUSY)?;
        connection.set_prepared_statement_cache_capacity(STATEMENTS);
        // No statement of a schema that came from elsewhere gets at the schema table, a dangerous function or a string in the
        // place of a column.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false)?;
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_VIEW, false)?;
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DQS_DML, false)?;
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DQS_DDL, false)?;
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_FKEY, false)?;
        pragma(&connection, "cell_size_check", 1)?;
        pragma(&connection, "cache_size", -cache_kib)?;
        // Indexes are sorted in files: in memory they would take as much as they are large.
        pragma(&connection, "temp_store", 1)?;
        // What is deleted is overwritten.
        pragma(&connection, "secure_delete", 1)?;
        Ok(())
    };
    set().doing(doing)?;
    let secure: i64 = connection.pragma_query_value(None, "secure_delete", |row| row.get(0)).doing(doing)?;
    if secure != 1 {
        return nonsense("this SQLite does not overwrite what is deleted");
    }
    Ok(connection)
}

/// Sets a pragma, which may answer with a row.
pub(super) fn pragma(connection: &Connection, name: &str, value: impl rusqlite::ToSql) -> rusqlite::Result<()> {
    connection.pragma_update(None, name, value).or_else(|error| match error {
        rusqlite::Error::ExecuteReturnedResults => Ok(()),
        other => Err(other),
    })
}

/// Bounds the size of a file.
pub(super) fn limit(connection: &Connection, max_bytes: Option<u64>) -> Result<(), ApplyError> {
    let Some(max) = max_bytes else { return Ok(()) };
    let set = || -> rusqlite::Result<()> {
        let page: u64 = connection.pragma_query_value(None, "page_size", |row| row.get::<_, i64>(0))?.cast_unsigned();
        let pages = i64::try_from((max / page.max(1)).max(1)).unwrap_or(i64::MAX).min(i64::from(u32::MAX - 2));
        pragma(connection, "max_page_count", pages)
    };
    set().doing("bound the size of the replica")
}

/// What "full" means: the bound of the configuration, or the disk. By then SQLite has taken back what was `written`; together with
/// what is there it must have been more than half of the bound, for rows take up more room in a table than here.
pub(super) fn explain_full(connection: &Connection, max_bytes: Option<u64>, written: u64, error: ApplyError) -> ApplyError {
    let Some(max) = max_bytes.filter(|_| error.is_full()) else { return error };
    let number = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0)).unwrap_or(0).cast_unsigned();
    if number("page_count") * number("page_size") + written > max / 2 { ApplyError::TooLarge } else { error }
}

impl Live {
    /// Opens the live file, which exists.
    pub(super) fn open(settings: &Settings, path: &Path) -> Result<Live, ApplyError> {
        let doing = "open the replica";
        files::set_mode(path, settings.readable_by.file())?;
        let connection = connect(path, CACHE_KIB)?;
        let foreign = || ApplyError::Foreign { path: path.to_path_buf(), name: settings.name.clone() };
        // Before anything is written: it may be a database that somebody needs.
        let state = state::read(&connection)?.filter(|state| state.publication == settings.name).ok_or_else(foreign)?;
        let mode: String = connection.pragma_update_and_check(None, "journal_mode", "wal", |row| row.get(0)).doing(doing)?;
        if mode != "wal" {
            return nonsense("the file system does not support a WAL: put the replica on a local one");
        }
        let pages = Arc::new(AtomicI64::new(0));
        let set = || -> rusqlite::Result<String> {
            // A commit that power loss takes away is sent again; the file is sound in any case.
            pragma(&connection, "synchronous", 1)?;
            pragma(&connection, "wal_autocheckpoint", 0)?;
            pragma(&connection, "journal_size_limit", WAL_LIMIT)?;
            // A process that may not create the WAL can read as long as there is one.
            connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
            connection.pragma_query_value(None, "encoding", |row| row.get(0))
        };
        let encoding = set().doing(doing)?;
        limit(&connection, settings.max_bytes)?;
        let Some(encoding) = Encoding::from_name(&encoding) else { return nonsense(format!("the replica's text is {encoding}")) };
        let mut live = Live { connection, state, encoding, wal: Wal { pages, seen: 0 } };
        let counter = Arc::clone(&live.wal.pages);
        let count = move |_: &mut rusqlite::hooks::Wal, pages: i32| {
            counter.store(i64::from(pages), Ordering::Relaxed);
            Ok(())
        };
        live.connection.wal_hook(Some(count)).doing(doing)?;
        // What a life before this one left in the WAL.
        live.checkpoint();
        Ok(live)
    }

    /// Runs `work` in one transaction; the in-memory state is `work`'s to keep true.
    pub(super) fn transaction<T>(&mut self, work: impl FnOnce(&mut Live) -> Result<T, ApplyError>) -> Result<T, ApplyError> {
        self.connection.execute_batch("BEGIN IMMEDIATE").doing("begin a transaction")?;
        let outcome = work(self).and_then(|done| {
            self.connection.execute_batch("COMMIT").doing("commit")?;
            Ok(done)
        });
        if !self.connection.is_autocommit()
            && let Err(error) = self.connection.execute_batch("ROLLBACK")
        {
            tracing::error!(error = &error as &dyn std::error::Error, "a replica's transaction cannot be rolled back");
        }
        outcome
    }

    /// Moves what is in the WAL into the file once there is enough of it. Never waits for a reader, who only keeps a part back: the
    /// WAL grows by what is applied while the slowest reader reads.
    pub(super) fn checkpoint_if_due(&mut self) {
        let pages = self.wal.pages.load(Ordering::Relaxed);
        // Fewer than before: it has started over.
        let new = if pages < self.wal.seen { pages } else { pages - self.wal.seen };
        if new >= CHECKPOINT_PAGES {
            self.checkpoint();
        }
    }

    fn checkpoint(&mut self) {
        match self.connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |row| row.get::<_, i64>(1)) {
            Ok(pages) => {
                self.wal.seen = pages.max(0);
                self.wal.pages.store(pages.max(0), Ordering::Relaxed);
            }
            // Nothing is lost, the WAL only grows; the next one will tell.
            Err(error) => tracing::warn!(error = &error as &dyn std::error::Error, "a replica's checkpoint failed"),
        }
    }

    /// Moves everything into the file and cuts the WAL to nothing, waiting for readers for so long.
    pub(super) fn empty_wal(&mut self, wait: Duration) {
        if self.wal.pages.load(Ordering::Relaxed) == 0 {
            return;
        }
        let truncate = || -> rusqlite::Result<i64> {
            self.connection.busy_timeout(wait)?;
            self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))
        };
        match truncate() {
            Ok(0) => {
                self.wal.seen = 0;
                self.wal.pages.store(0, Ordering::Relaxed);
            }
            // Somebody reads from it.
            Ok(_) => {}
            Err(error) => tracing::warn!(error = &error as &dyn std::error::Error, "a replica's WAL cannot be emptied"),
        }
        let _ = self.connection.busy_timeout(BUSY);
    }

    /// After pages have come by another way than a commit of this connection's statements.
    pub(super) fn refilled(&mut self) {
        self.wal.pages.store(i64::MAX, Ordering::Relaxed);
        self.empty_wal(Duration::from_millis(200));
        if self.wal.pages.load(Ordering::Relaxed) != 0 {
            self.checkpoint();
        }
    }

    pub(super) fn position(&self) -> Option<Position> {
        self.state.current()
    }
}

/// Now, in milliseconds since 1970.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

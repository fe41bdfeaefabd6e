//! Opening a database file: the only place that knows the pragmas.
//!
//! Every setting is typed, set by statement (never in a connection string) and read back: a setting that SQLite did not take
//! is an error here and not a surprise after a power cut. Paths are passed as bytes and made absolute, so `?`, `#`, `%` and a
//! leading `file:` in a name mean nothing special.

mod files;
mod settings;

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use rusqlite::{Connection, OpenFlags};

pub(crate) use files::{OwnerLock, beside};

use crate::{Kind, StoreError};

/// Statements kept prepared a connection.
const PREPARED_STATEMENTS: usize = 128;
/// Most findings of an integrity check that are kept.
const MAX_FINDINGS: usize = 20;

/// What the connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Creates the file if need be and writes it; holds the file's owner lock, so there is one owner in all processes.
    Owner,
    /// Writes an existing file beside its owner (an operator's edit). SQLite's own locks keep it consistent.
    Guest,
    /// Only reads; the file must exist. `query_only` is on, besides the read-only open.
    ReadOnly,
}

/// When a commit counts as done (`PRAGMA synchronous`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// `FULL`: a commit that returned survives power loss. For everything that replies "done".
    Full,
    /// `NORMAL`: never corrupts, but the last commits may be lost with the power. For telemetry.
    Normal,
}

/// How thoroughly the content is checked on opening.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// The header only.
    Header,
    /// `PRAGMA quick_check`: every page, not the indexes against their tables.
    Quick,
    /// `PRAGMA integrity_check`: everything; about as long again.
    Full,
}

/// Where the database is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// A file.
    File(PathBuf),
    /// In memory, shared by all connections in this process that use the same name while one of them is open. For tests: it
    /// has no WAL, so readers and the writer wait for one another.
    Memory(u64),
}

/// Settings of a connection. The defaults suit a database whose replies promise durability.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where it is.
    pub location: Location,
    /// What it is for.
    pub access: Access,
    /// When a commit counts as done. Default [`Durability::Full`].
    pub durability: Durability,
    /// Longest wait for another process's lock. Default 5 s; a deadline shortens it.
    pub busy_timeout: Duration,
    /// Memory for cached pages, in KiB a connection. Default 16,000.
    pub cache_kib: u32,
    /// Bytes of the file mapped into memory. Default 128 MiB for readers, 0 for writers: a write error through a
    /// mapping is a signal, not an error code.
    pub mmap_bytes: Option<u64>,
    /// The WAL is cut to this size whenever it restarts. Default 64 MiB.
    pub journal_limit: u64,
    /// Written into a new file and demanded of an existing one, so that a wrong path is noticed.
    pub application_id: Option<u32>,
    /// How thoroughly the content is checked. Default [`Check::Header`].
    pub check: Check,
    /// Upper bound on the file's pages, a quota. Default none.
    pub max_pages: Option<u32>,
}

impl Options {
    /// Settings for `path`.
    pub fn new(path: impl Into<PathBuf>, access: Access) -> Options {
        Options::at(Location::File(path.into()), access)
    }

    /// Settings for a new database in memory, for tests.
    pub fn memory() -> Options {
        Options::at(Location::Memory(rand::random()), Access::Owner)
    }

    fn at(location: Location, access: Access) -> Options {
        Options {
            location,
            access,
            durability: Durability::Full,
            busy_timeout: Duration::from_secs(5),
            cache_kib: 16_000,
            mmap_bytes: None,
            journal_limit: 64 << 20,
            application_id: None,
            check: Check::Header,
            max_pages: None,
        }
    }

    /// The same database for `access`.
    #[must_use]
    pub fn with_access(&self, access: Access) -> Options {
        Options { access, ..self.clone() }
    }

    /// The file, unless it is in memory.
    pub fn path(&self) -> Option<&Path> {
        match &self.location {
            Location::File(path) => Some(path),
            Location::Memory(_) => None,
        }
    }

    fn label(&self) -> PathBuf {
        self.path().map_or_else(|| PathBuf::from(":memory:"), Path::to_path_buf)
    }
}

/// An open database. The owner lock, if any, is given up with it.
#[derive(Debug)]
pub struct Database {
    // Closed before the lock is released: fields drop in order.
    connection: Connection,
    lock: Option<OwnerLock>,
}

impl Database {
    /// The connection.
    pub fn connection(&mut self) -> &mut Connection {
        &mut self.connection
    }

    pub(crate) fn into_parts(self) -> (Connection, Option<OwnerLock>) {
        (self.connection, self.lock)
    }
}

impl std::ops::Deref for Database {
    type Target = Connection;
    fn deref(&self) -> &Connection {
        &self.connection
    }
}

/// Why a database could not be opened. Nothing was changed in it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The directory or the file is not there or not permitted.
    #[error("cannot {doing} {}: {advice}", path.display())]
    File {
        /// What was attempted.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// What to do.
        advice: &'static str,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// Another process (or actor) owns the file: stop it, or open as a guest.
    #[error("{} is owned by another process: stop that one first", path.display())]
    Owned {
        /// The file.
        path: PathBuf,
    },
    /// The file belongs to another application: the path is wrong.
    #[error("{} belongs to another application (id {found:#x}, expected {expected:#x}): check the path", path.display())]
    WrongApplication {
        /// The file.
        path: PathBuf,
        /// The id in its header.
        found: u32,
        /// The id demanded.
        expected: u32,
    },
    /// SQLite did not take a setting.
    #[error("{}: {setting} is {found}, wanted {wanted}: the file system or the SQLite build does not support it", path.display())]
    Setting {
        /// The file.
        path: PathBuf,
        /// The pragma.
        setting: &'static str,
        /// The value read back.
        found: String,
        /// The value set.
        wanted: String,
    },
    /// The check found damage.
    #[error("{} is damaged: restore the last backup (first finding: {})", path.display(), findings.first().map_or("", String::as_str))]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What the check said, at most 20 lines.
        findings: Vec<String>,
    },
    /// SQLite failed.
    #[error("cannot open {}", path.display())]
    Sqlite {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: StoreError,
    },
}

impl OpenError {
    /// SQLite's kind of failure, if it was SQLite's.
    pub fn kind(&self) -> Option<Kind> {
        match self {
            OpenError::Sqlite { source, .. } => Some(source.kind),
            OpenError::Damaged { .. } => Some(Kind::Corrupt),
            OpenError::File { .. } | OpenError::Owned { .. } | OpenError::WrongApplication { .. } | OpenError::Setting { .. } => None,
        }
    }
}

/// Opens a database.
///
/// # Errors
/// [`OpenError`] says what the operator may do; nothing was changed, but an owner may have created an empty file.
pub fn open(options: &Options) -> Result<Database, OpenError> {
    let label = options.label();
    let fail = |source: rusqlite::Error| OpenError::Sqlite { path: label.clone(), source: source.into() };
    let write = options.access != Access::ReadOnly;
    // A connection is used by one thread at a time, which the type system sees to: no mutex in SQLite.
    let flags = OpenFlags::SQLITE_OPEN_NO_MUTEX
        | OpenFlags::SQLITE_OPEN_EXRESCODE
        | if write { OpenFlags::SQLITE_OPEN_READ_WRITE } else { OpenFlags::SQLITE_OPEN_READ_ONLY };
    let (connection, lock) = match &options.location {
        Location::Memory(name) => {
            // Only digits go into this URI.
            let uri = format!("file:/horos-{name:016x}?vfs=memdb");
            // Read-write even for readers: the memory VFS knows no sharing of locks with a read-only handle.
            let flags = OpenFlags::SQLITE_OPEN_NO_MUTEX
                | OpenFlags::SQLITE_OPEN_EXRESCODE
                | OpenFlags::SQLITE_OPEN_READ_WRITE
                | OpenFlags::SQLITE_OPEN_CREATE
                | OpenFlags::SQLITE_OPEN_URI;
            (Connection::open_with_flags(uri, flags).map_err(fail)?, None)
        }
        Location::File(path) => {
            // Absolute, so that it starts with a slash: the bundled SQLite takes a leading "file:" for a URI, flag or not.
            let path = std::path::absolute(path).map_err(|source| files::explain("find", path, source))?;
            let lock = match options.access {
                Access::Owner => Some(files::prepare(&path)?),
                Access::Guest | Access::ReadOnly => {
                    files::demand(&path)?;
                    None
                }
            };
            (Connection::open_with_flags(&path, flags).map_err(fail)?, lock)
        }
    };
    let mut database = Database { connection, lock };
    settings::apply(&mut database.connection, options, &label)?;
    check(&database.connection, options.check, &label)?;
    Ok(database)
}

/// Checks the content of an open database.
///
/// # Errors
/// [`OpenError::Damaged`] with the first findings.
pub fn check(connection: &Connection, how: Check, path: &Path) -> Result<(), OpenError> {
    let pragma = match how {
        Check::Header => return Ok(()),
        Check::Quick => "quick_check",
        Check::Full => "integrity_check",
    };
    let mut findings: Vec<String> = Vec::new();
    let outcome = connection.pragma(None, pragma, MAX_FINDINGS as i64, |row| {
        findings.push(row.get(0)?);
        Ok(())
    });
    match outcome {
        Ok(()) if findings == ["ok"] => Ok(()),
        Ok(()) => Err(OpenError::Damaged { path: path.to_path_buf(), findings }),
        Err(source) => {
            let source = StoreError::from(source);
            if source.kind == Kind::Corrupt {
                findings.push(source.to_string());
                return Err(OpenError::Damaged { path: path.to_path_buf(), findings });
            }
            Err(OpenError::Sqlite { path: path.to_path_buf(), source })
        }
    }
}

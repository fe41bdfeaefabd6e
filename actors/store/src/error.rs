//! What SQLite says, sorted by what can be done about it. Sorted by result code, never by text.

use std::{fmt, sync::Arc};

use rusqlite::ffi;

/// What kind of failure it was, which decides what may be done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// Another connection held a lock for longer than we may wait.
    Busy,
    /// A read transaction is too old to become a write transaction (`SQLITE_BUSY_SNAPSHOT`); waiting does not help.
    Stale,
    /// The disk, the quota or `max_page_count` is exhausted.
    Full,
    /// The operating system failed a read, write, sync or lock.
    Io,
    /// The file's content contradicts itself.
    Corrupt,
    /// The file is not an SQLite database (or is encrypted).
    NotADatabase,
    /// The file, its directory or the connection does not permit writing.
    ReadOnly,
    /// The file or its directory cannot be opened.
    CannotOpen,
    /// Stopped by its deadline.
    Interrupted,
    /// A uniqueness, foreign key, check or not-null rule was broken.
    Constraint,
    /// The statement does something that its connection forbids (transaction control in a job, `ATTACH`, a write by a reader).
    Forbidden,
    /// The process has no memory left for it.
    NoMemory,
    /// A value or statement is larger than the connection's limit.
    TooBig,
    /// The schema or the statement is at fault: no such table, syntax error, wrong type, wrong parameter count.
    Statement,
}

impl Kind {
    /// What the operator may do next.
    pub fn advice(self) -> &'static str {
        match self {
            Kind::Busy => "another process holds the database; find it with `fuser`, or try again",
            Kind::Stale => "read again and retry",
            Kind::Full => "free space on the disk (or raise the quota) and retry; what was committed is safe",
            Kind::Io => "look at the kernel's log for the disk, then restart the node",
            Kind::Corrupt => "stop writing, keep a copy of the file with its -wal, and restore the last backup",
            Kind::NotADatabase => "the path points at another file or the file was overwritten; restore the last backup",
            Kind::ReadOnly => "give the node's user write permission on the file and on its directory",
            Kind::CannotOpen => "check that the directory exists and that the node's user may enter it",
            Kind::Interrupted => "the deadline passed; give it more time or less to do",
            Kind::Constraint => "the data breaks a rule of the schema; change the data",
            Kind::Forbidden => "the statement is not permitted here; use the API meant for it",
            Kind::NoMemory => "give the process more memory",
            Kind::TooBig => "store less in one value",
            Kind::Statement => "the statement does not fit the schema; check the versions of both",
        }
    }

    /// Whether the same request may succeed later with nothing changed by an operator.
    pub fn is_transient(self) -> bool {
        matches!(self, Kind::Busy | Kind::Stale | Kind::Interrupted)
    }

    /// Whether the connection it happened on must be given up.
    pub(crate) fn breaks_connection(self) -> bool {
        matches!(self, Kind::Io | Kind::Corrupt | Kind::NotADatabase | Kind::CannotOpen | Kind::NoMemory)
    }

    fn of(error: &rusqlite::Error) -> Kind {
        let Some(code) = error.sqlite_error().map(|e| e.extended_code) else {
            return match error {
                rusqlite::Error::SqliteSingleThreadedMode => Kind::CannotOpen,
                _ => Kind::Statement,
            };
        };
        match code {
            ffi::SQLITE_BUSY_SNAPSHOT => return Kind::Stale,
            ffi::SQLITE_IOERR_NOMEM => return Kind::NoMemory,
            // The file was renamed or unlinked under the connection: only opening again helps.
            ffi::SQLITE_READONLY_DBMOVED => return Kind::Io,
            _ => {}
        }
        match code & 0xff {
            ffi::SQLITE_BUSY | ffi::SQLITE_LOCKED => Kind::Busy,
            ffi::SQLITE_FULL => Kind::Full,
            ffi::SQLITE_IOERR | ffi::SQLITE_PROTOCOL => Kind::Io,
            ffi::SQLITE_CORRUPT => Kind::Corrupt,
            ffi::SQLITE_NOTADB => Kind::NotADatabase,
            ffi::SQLITE_READONLY => Kind::ReadOnly,
            ffi::SQLITE_CANTOPEN | ffi::SQLITE_PERM => Kind::CannotOpen,
            ffi::SQLITE_INTERRUPT | ffi::SQLITE_ABORT => Kind::Interrupted,
            ffi::SQLITE_CONSTRAINT => Kind::Constraint,
            ffi::SQLITE_AUTH => Kind::Forbidden,
            ffi::SQLITE_NOMEM => Kind::NoMemory,
            ffi::SQLITE_TOOBIG => Kind::TooBig,
            _ => Kind::Statement,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Busy => "the database is busy",
            Kind::Stale => "the read transaction is too old to write",
            Kind::Full => "the disk is full",
            Kind::Io => "the disk failed",
            Kind::Corrupt => "the database is corrupt",
            Kind::NotADatabase => "the file is not a database",
            Kind::ReadOnly => "the database is read-only",
            Kind::CannotOpen => "the database cannot be opened",
            Kind::Interrupted => "interrupted by its deadline",
            Kind::Constraint => "a constraint was broken",
            Kind::Forbidden => "the statement is not permitted here",
            Kind::NoMemory => "out of memory",
            Kind::TooBig => "too big",
            Kind::Statement => "the statement failed",
        })
    }
}

/// A failure of SQLite. Converts from [`rusqlite::Error`], so closures may use `?`; cheap to clone, because one failed commit
/// is reported to everyone in its group.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{kind}: {}", self.kind.advice())]
pub struct StoreError {
    /// What can be done about it.
    pub kind: Kind,
    /// SQLite's extended result code, when it came from SQLite (<https://sqlite.org/rescode.html>).
    pub code: Option<i32>,
    source: Arc<rusqlite::Error>,
}

impl From<rusqlite::Error> for StoreError {
    fn from(source: rusqlite::Error) -> StoreError {
        StoreError { kind: Kind::of(&source), code: source.sqlite_error().map(|e| e.extended_code), source: Arc::new(source) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_sorted_by_extended_code_never_by_text() {
        for (code, kind) in [
            (ffi::SQLITE_BUSY, Kind::Busy),
            (ffi::SQLITE_BUSY_RECOVERY, Kind::Busy),
            (ffi::SQLITE_BUSY_SNAPSHOT, Kind::Stale),
            (ffi::SQLITE_LOCKED_SHAREDCACHE, Kind::Busy),
            (ffi::SQLITE_FULL, Kind::Full),
            (ffi::SQLITE_IOERR_FSYNC, Kind::Io),
            (ffi::SQLITE_IOERR_NOMEM, Kind::NoMemory),
            (ffi::SQLITE_CORRUPT_INDEX, Kind::Corrupt),
            (ffi::SQLITE_NOTADB, Kind::NotADatabase),
            (ffi::SQLITE_READONLY_DIRECTORY, Kind::ReadOnly),
            (ffi::SQLITE_CANTOPEN_ISDIR, Kind::CannotOpen),
            (ffi::SQLITE_CONSTRAINT_UNIQUE, Kind::Constraint),
            (ffi::SQLITE_AUTH, Kind::Forbidden),
            (ffi::SQLITE_ERROR, Kind::Statement),
        ] {
            // The text says "locked" every time: it must not matter.
            let error = StoreError::from(rusqlite::Error::SqliteFailure(ffi::Error::new(code), Some("database is locked".into())));
            assert_eq!(error.kind, kind, "code {code}");
            assert_eq!(error.code, Some(code));
        }
    }
}

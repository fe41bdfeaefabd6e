//! A replica's files, and everything that is done to them.
//!
//! [`Applier`] owns them. It belongs to one thread ([`crate::replica`] runs it), blocks, and knows nothing of nodes, mailboxes or
//! time limits. What is promised:
//!
//! - **All or nothing.** A delta is one transaction, which also moves the position. A snapshot is built beside the live file and
//!   put in its place by one rename, or where there is one already by one transaction that replaces all of its pages: whoever
//!   reads, in whichever process, sees the state before or the state after, and never waits.
//! - **Nothing is believed.** Until the stream's SHA-256 was right nothing is committed. Statements of the BO run under an authorizer that
//!   permits the table and the indexes they are for and nothing else ([`shape`]). What does not fit is refused with a reason.
//! - **A crash costs time only.** The next start opens the live file, checks it, and goes on with what was received of a snapshot.
//! - **Deleted means gone**: `secure_delete` overwrites what is freed, and [`Applier::rest`] empties the WAL. Known limit: where SQLite
//!   moves rows to another page it leaves their bytes in the unused middle of the old one, until that page is written over; the
//!   next snapshot leaves nothing.
//!
//! | file | what | how long |
//! |---|---|---|
//! | `NAME.db`, `-wal`, `-shm` | what is read | for ever; the last two also while the node is down, so that a process that may not create them can read |
//! | `NAME.db-owner` | the lock by which one process owns the others | for ever |
//! | `NAME.db.incoming` | the snapshot that is being built | until it is in place, or to be gone on from |
//! | `NAME.db.partial` | what was received of an earlier one | while a snapshot is built |
//! | `NAME.db.previous` | what was served before the last snapshot, one at most | until the next; rows withdrawn since are removed at once by a snapshot, within the hour otherwise |
//! | `NAME.db.damaged` | a live file that did not pass its check, one at most | until an operator has looked at it |
//!
//! The disk holds at most four times the database's size while a snapshot replaces another: the live file, its previous state, the
//! new one, and the WAL through which it becomes the live one. (A partial one is removed when its rows have been taken over.)

mod chunks;
mod delta;
mod files;
mod input;
mod live;
mod place;
mod rollback;
mod rows;
mod shape;
mod snapshot;
mod state;
#[cfg(test)]
pub(crate) mod tests;

use std::{
    io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use horos_store::{Kind, StoreError};
use horos_wire::protocol::sync::{Epoch, Position};

use crate::{capture, frames::FrameError, value::Malformed};

pub(crate) use chunks::Page;
pub use files::ReadableBy;
use input::Input;
pub(crate) use input::{Cut, Source};
pub(crate) use live::{Applier, Settings};
pub(crate) use state::{Known, Standing, State};

/// Why nothing was changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApplyError {
    /// The changes begin elsewhere.
    #[error("the changes do not begin at the replica's position")]
    Mismatch {
        /// What the replica has.
        have: Option<Position>,
    },
    /// The stream is not one, or not what was sent.
    #[error(transparent)]
    Stream(#[from] FrameError),
    /// It ended before its end, or was held up for too long.
    #[error("the stream is cut off: {0}")]
    Cut(String),
    /// It is well formed and cannot be.
    #[error("{0}")]
    Nonsense(String),
    /// The file would become larger than it may.
    #[error("the file would become larger than it may")]
    TooLarge,
    /// A snapshot older than what is here.
    #[error("the snapshot is older than what the replica has")]
    Backwards,
    /// An operator has rolled back and not resumed.
    #[error("the replica is rolled back")]
    Pinned,
    /// There is nothing to go back to, or to resume from.
    #[error("{0}")]
    Nothing(&'static str),
    /// The live file is none of this replica's; nothing is touched.
    #[error("{} is not the replica {name:?}: choose another path, or remove the file", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// The replica.
        name: String,
    },
    /// Another process owns the files.
    #[error("{} is owned by another process: stop that one first", .0.display())]
    Owned(PathBuf),
    /// SQLite failed.
    #[error("cannot {doing}")]
    Sqlite {
        /// What was attempted.
        doing: &'static str,
        /// Why it failed, and what to do.
        #[source]
        source: StoreError,
    },
    /// The system failed.
    #[error("cannot {doing} {}", path.display())]
    File {
        /// What was attempted.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
}

impl ApplyError {
    /// Whether the disk, and not the stream, is at fault for lack of room.
    pub(crate) fn is_full(&self) -> bool {
        match self {
            ApplyError::Sqlite { source, .. } => source.kind == Kind::Full,
            ApplyError::File { source, .. } => matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded),
            _ => false,
        }
    }
}

impl From<Malformed> for ApplyError {
    fn from(error: Malformed) -> ApplyError {
        ApplyError::Stream(error.into())
    }
}

fn nonsense<T>(what: impl Into<String>) -> Result<T, ApplyError> {
    Err(ApplyError::Nonsense(what.into()))
}

/// Says what was attempted.
trait Doing<T> {
    fn doing(self, doing: &'static str) -> Result<T, ApplyError>;
}

impl<T> Doing<T> for rusqlite::Result<T> {
    fn doing(self, doing: &'static str) -> Result<T, ApplyError> {
        self.map_err(|error| ApplyError::Sqlite { doing, source: error.into() })
    }
}

/// Says what was attempted, and on which file.
trait DoingOn<T> {
    fn doing_on(self, doing: &'static str, path: &Path) -> Result<T, ApplyError>;
}

impl<T> DoingOn<T> for io::Result<T> {
    fn doing_on(self, doing: &'static str, path: &Path) -> Result<T, ApplyError> {
        self.map_err(|source| ApplyError::File { doing, path: path.to_path_buf(), source })
    }
}

/// A stream was applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Done {
    /// What the replica has now.
    pub(crate) position: Position,
    /// The checks that did not agree.
    pub(crate) mismatches: Vec<u32>,
    /// The tables that were changed; none when it was a snapshot, which changes all.
    pub(crate) tables: Option<Vec<String>>,
    /// Whether it was a snapshot.
    pub(crate) snapshot: bool,
    /// Rows and keys applied.
    pub(crate) rows: u64,
}

/// How far the stream in hand is, for whoever wants to know meanwhile.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// Bytes received since the start.
    bytes: AtomicU64,
    /// Of the stream in hand alone.
    stream_bytes: AtomicU64,
    /// Rows received or found to be here, of the snapshot in hand.
    rows: AtomicU64,
    /// Whether there is one.
    snapshot: AtomicBool,
}

impl Progress {
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn stream_bytes(&self) -> u64 {
        self.stream_bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn rows(&self) -> u64 {
        self.rows.load(Ordering::Relaxed)
    }

    /// Whether a snapshot is being received.
    pub(crate) fn receives_snapshot(&self) -> bool {
        self.snapshot.load(Ordering::Relaxed)
    }

    fn receives(&self, snapshot: bool) {
        self.snapshot.store(snapshot, Ordering::Relaxed);
    }

    fn begin(&self) {
        self.stream_bytes.store(0, Ordering::Relaxed);
        self.rows.store(0, Ordering::Relaxed);
    }

    fn received(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.stream_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn took(&self, rows: u32) {
        self.rows.fetch_add(u64::from(rows), Ordering::Relaxed);
    }
}

/// Bytes in the WAL of the live file at `path`.
pub(crate) fn wal_bytes(path: &Path) -> u64 {
    files::length(&files::beside(path, "-wal"))
}

/// As it goes between nodes.
pub(crate) fn position(it: &capture::Position) -> Position {
    Position { epoch: Epoch::from_bytes(it.epoch), seq: it.seq, stamp: it.stamp }
}

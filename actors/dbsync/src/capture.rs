//! Which rows changed, whichever process changed them.
//!
//! SQLite tells only the connection that writes what it writes, so the file itself keeps the record: triggers on every published
//! table append the keys of changed rows to `_horos_log`, in the same file and transaction as the change. Nothing here runs by
//! itself; the publisher calls [`attach()`] in a write transaction, [`Sentinel::look`] between its looks at the file, and
//! [`since`] in the read transaction in which it reads the rows.
//!
//! What is promised, and by what:
//! - *Row changes by SQL that fires triggers* are all in the log. A row that `REPLACE` removes fires no delete trigger (unless the
//!   writer set `recursive_triggers`), so `BEFORE` triggers look up the rows that a unique index would bring into conflict. An
//!   entry too many is possible (the conflict was ignored, the `UPDATE` changed nothing), one too few is not.
//! - *What fires no trigger* is found by [`Sentinel`] and [`attach()`]: the schema, our triggers, the file and the log are compared
//!   with a [`Witness`] that the publisher keeps outside the file. What was found is written into the log as "all of this table"
//!   or, when the log itself cannot be trusted, begins a new epoch. Writes by a connection that disabled triggers, and blob I/O,
//!   leave no trace but a commit without an entry: [`Look::Committed`] shows those as a hint, anti-entropy has the proof.
//! - *A foreign statement does not fail because of us*: the log has no constraint to break (the `OR` clause of an outer statement
//!   overrides those inside triggers), the triggers call nothing but `random`, `coalesce` and `max` and use the
//!   syntax of SQLite 3.24. `changes()` and `last_insert_rowid()` stay as they were; `total_changes()` counts our entries.
//! - *The log is bounded* ([`Plan::keep`]) though nobody reads it: the triggers prune it.
//!
//! Known limits. A unique index that names an unpublished column is not looked up, because no trigger may name that column; a
//! `REPLACE` through it is left to anti-entropy ([`Attached::blind`]). Whoever drops a unique index *and* one of its columns
//! before the next look gets an error from `ALTER TABLE` that names our trigger; after the look the trigger no longer names it.

mod attach;
mod changes;
mod schema;
mod sentinel;
mod text;
mod triggers;

use horos_store::{StoreError, rusqlite};
use serde::{Deserialize, Serialize};

pub use attach::{Attached, Blind, Inspection, attach, detach, inspect};
pub use changes::{Changes, Gap, KeyPart, Page, RowKey, TableChanges, head, since, trim};
pub use sentinel::{Cause, FileIdentity, Look, Sentinel, Witness};

/// Entries kept though nobody reads them: some 25 MB with small keys, and hours of catching up for a front office that was away.
pub const KEEP: u32 = 1_000_000;

/// A published table, as capture needs to know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tracked {
    /// Its number in the log; never another table's as long as the epoch lasts. From 1.
    pub number: u32,
    /// Its name.
    pub name: String,
    /// The columns that may be named in a trigger.
    pub columns: Vec<String>,
    /// What tells its rows apart.
    pub key: Key,
}

/// What tells the rows of a table apart.
///
/// A key stands for *the rows equal to it* (by `IS`, under the columns' own collations): a primary key that permits NULLs may
/// have several rows a key, and whoever replays a key replaces them all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    /// The rowid. `VACUUM` may renumber it unless a column is its alias.
    Rowid,
    /// These columns, unique together.
    Columns(Vec<String>),
}

/// What is captured, and how much of it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The published tables.
    pub tables: Vec<Tracked>,
    /// Entries kept. Between two prunings there are some 256 rows' more: which row prunes is drawn, and one pruning in a thousand
    /// million comes later than after 5,300. Default [`KEEP`].
    pub keep: u32,
}

impl Plan {
    /// Captures `tables` with the default bound.
    pub fn new(tables: Vec<Tracked>) -> Plan {
        Plan { tables, keep: KEEP }
    }
}

/// A place in the log. The stamp is the entry's own random number: another history of the same file, such as a backup put back
/// and written further, reaches the same sequence number but not the same stamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Position {
    /// Drawn when the log was begun.
    pub epoch: [u8; 16],
    /// The entry.
    pub seq: i64,
    /// The entry's random number.
    pub stamp: i64,
}

/// Why capture did not do what was asked. Whoever opened the transaction rolls it back; then nothing was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CaptureError {
    /// SQLite failed; its kind says whether trying again may help.
    #[error("the database could not be read or written for capture")]
    Store(#[from] StoreError),
    /// The plan does not fit the file: load the filter again.
    #[error("table {table} cannot be captured: {reason}")]
    Plan {
        /// The table.
        table: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The file's identity could not be read; it may be about to be replaced. Look again.
    #[error("cannot find the database file")]
    File(#[from] std::io::Error),
    /// Nothing is attached to this file: call [`attach()`].
    #[error("no capture is attached to this database")]
    Detached,
}

impl From<rusqlite::Error> for CaptureError {
    fn from(error: rusqlite::Error) -> CaptureError {
        CaptureError::Store(error.into())
    }
}

/// `name` as an SQL identifier.
pub(crate) fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

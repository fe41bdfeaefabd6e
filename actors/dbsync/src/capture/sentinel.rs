//! Noticing what fires no trigger.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use horos_store::rusqlite::{Connection, TransactionBehavior};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{
    CaptureError, Position, attach,
    changes::{self, Gap},
    triggers,
};

/// Which file a path means: it keeps its name while the file behind it is replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileIdentity {
    device: u64,
    inode: u64,
}

impl FileIdentity {
    /// Of the file behind `path` now.
    ///
    /// # Errors
    /// The system's.
    pub fn of(path: &Path) -> io::Result<FileIdentity> {
        fs::metadata(path).map(|m| FileIdentity { device: m.dev(), inode: m.ino() })
    }
}

/// What capture left in a file, to be kept *outside* of it: the file cannot testify for itself once it was replaced. Write it down
/// whenever [`Sentinel::look`] or [`attach()`](super::attach()) gives a newer one; an older one costs nothing but the log between.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Witness {
    /// The log's end.
    pub position: Position,
    file: Option<FileIdentity>,
    cookie: i64,
    tables: BTreeMap<u32, Fingerprint>,
}

/// What of the schema a table's capture depends on: the table, its unique indexes, our triggers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Fingerprint {
    /// Their texts.
    texts: [u8; 32],
    /// Their rows in `sqlite_master`: what is dropped and made again gets another.
    places: [u8; 32],
    /// Whether `VACUUM` may give its rows other keys.
    renumbered: bool,
}

impl Witness {
    /// What is in the file now. `None` when nothing is attached.
    pub(super) fn read(connection: &Connection, file: Option<FileIdentity>) -> Result<Option<Witness>, CaptureError> {
        let position = match changes::head(connection) {
            Ok(position) => position,
            Err(CaptureError::Detached) => return Ok(None),
            Err(error) => return Err(error),
        };
        let cookie = connection.query_row("PRAGMA main.schema_version", [], |row| row.get(0))?;
        let mut texts: BTreeMap<String, (Sha256, Sha256)> = BTreeMap::new();
        let mut statement =
            connection.prepare_cached("SELECT rowid, type, name, tbl_name, sql FROM main.sqlite_master ORDER BY type, name")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let (place, kind, name, table, sql): (i64, String, String, String, Option<String>) =
                (row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?);
            let matters = match kind.as_str() {
                "table" => true,
                // SQLite writes this much of the text itself; what it makes for a constraint has none.
                "index" => sql.as_deref().is_none_or(|sql| sql.starts_with("CREATE UNIQUE")),
                "trigger" => triggers::is_ours(&name),
                _ => false,
            };
            if !matters {
                continue;
            }
            let (text, places) = texts.entry(table.to_ascii_lowercase()).or_default();
            for part in [&kind, &name, sql.as_deref().unwrap_or_default()] {
                text.update((part.len() as u64).to_le_bytes());
                text.update(part);
            }
            places.update(place.to_le_bytes());
        }
        let mut tables = BTreeMap::new();
        for tracked in attach::tracked(connection)? {
            let (texts, places) = texts.get(&tracked.name.to_ascii_lowercase()).cloned().unwrap_or_default();
            let fingerprint =
                Fingerprint { texts: texts.finalize().into(), places: places.finalize().into(), renumbered: tracked.renumbered };
            tables.insert(tracked.number, fingerprint);
        }
        Ok(Some(Witness { position, file, cookie, tables }))
    }

    /// Why the log cannot be trusted any more, if so.
    pub(super) fn contradicted(&self, connection: &Connection, file: Option<FileIdentity>) -> Result<Option<Cause>, CaptureError> {
        if self.file != file {
            return Ok(Some(Cause::OtherFile));
        }
        let Some(epoch) = attach::epoch(connection)? else { return Ok(Some(Cause::Detached)) };
        Ok(changes::gap(connection, epoch, &self.position)?.map(|gap| match gap {
            Gap::Epoch => Cause::OtherEpoch,
            Gap::Pruned => Cause::Overrun,
            Gap::Diverged => Cause::OtherHistory,
        }))
    }

    /// The tables of which changes may be missing between this witness and `now`.
    pub(super) fn changed(&self, now: &Witness) -> Vec<u32> {
        let mut changed = Vec::new();
        for (number, was) in &self.tables {
            let same = now.tables.get(number).is_some_and(|is| {
                // Every statement that changes the schema adds one to the cookie, so a trigger that was dropped and made again
                // took two. What moves rows of `sqlite_master` by itself with one step is `VACUUM`, which changes no table's
                // content; but no row's key is safe from it if it is a rowid without a name.
                let vacuumed = now.cookie == self.cookie.wrapping_add(1);
                is.texts == was.texts
                    && (is.places == was.places || vacuumed)
                    && (now.cookie == self.cookie || !was.renumbered && !is.renumbered)
            });
            if !same {
                changed.push(*number);
            }
        }
        changed
    }
}

/// Why something must be re-based.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Cause {
    /// Nothing was attached.
    New,
    /// Our tables are missing, or not as we made them.
    Detached,
    /// The numbers mean other tables or keys than the log's.
    Rekeyed,
    /// There is a log but no witness to compare it with.
    Unwitnessed,
    /// Another file is behind the path, or it was moved to another place.
    OtherFile,
    /// The log is of another epoch: another file's content, or somebody attached in between.
    OtherEpoch,
    /// The log does not hold what it held: the file was restored from a backup, or lost its last commits with the power.
    OtherHistory,
    /// The log was pruned beyond the witness.
    Overrun,
    /// The schema of a table, its unique indexes or our triggers changed, or `VACUUM` ran on a table without a key.
    Schema,
}

/// What a look found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Look {
    /// Nobody committed.
    Quiet,
    /// Somebody committed, through the triggers as far as can be seen.
    Committed {
        /// The log's end.
        head: Position,
        /// Whether it moved. A commit without an entry wrote what is not published, checkpointed, or got past the triggers (a
        /// connection that disabled them, blob I/O): reason enough to have anti-entropy look sooner, and proof of nothing.
        logged: bool,
    },
    /// Another file is behind the path: open it, make a sentinel for it and call [`attach()`](super::attach()) with the last witness.
    Replaced,
    /// Call [`attach()`](super::attach()) with the last witness and give [`Sentinel::accept`] what it returns; until then every look
    /// says so again.
    Rebase {
        /// Why.
        cause: Cause,
        /// These tables; empty for everything.
        tables: Vec<u32>,
    },
}

/// Compares a file with what capture left in it. A look at a file that nobody wrote costs a `stat` and a pragma (some µs); one
/// after a commit also reads the schema.
#[derive(Debug)]
pub struct Sentinel {
    path: PathBuf,
    opened: FileIdentity,
    witness: Witness,
    data_version: Option<i64>,
}

impl Sentinel {
    /// Watches `path` from `witness` on. Make it right after the connection that is looked through was opened.
    ///
    /// # Errors
    /// [`CaptureError::File`].
    pub fn new(path: impl Into<PathBuf>, witness: Witness) -> Result<Sentinel, CaptureError> {
        let path = path.into();
        Ok(Sentinel { opened: FileIdentity::of(&path)?, path, witness, data_version: None })
    }

    /// What the last look left, to be kept outside the file.
    pub fn witness(&self) -> &Witness {
        &self.witness
    }

    /// Goes on from what [`attach()`](super::attach()) left.
    pub fn accept(&mut self, witness: Witness) {
        self.witness = witness;
        self.data_version = None;
    }

    /// Looks, through a connection that never writes (`PRAGMA data_version` does not count a connection's own commits) and is in
    /// no transaction.
    ///
    /// # Errors
    /// The look says nothing; take another.
    pub fn look(&mut self, connection: &Connection) -> Result<Look, CaptureError> {
        if FileIdentity::of(&self.path)? != self.opened {
            return Ok(Look::Replaced);
        }
        // Before the rest is read: what is committed in between is looked at twice rather than never.
        let version: i64 = connection.query_row("PRAGMA main.data_version", [], |row| row.get(0))?;
        if self.data_version == Some(version) {
            return Ok(Look::Quiet);
        }
        // One state of the file for all of it.
        let transaction = horos_store::rusqlite::Transaction::new_unchecked(connection, TransactionBehavior::Deferred)?;
        let file = Some(self.opened);
        if !attach::is_whole(&transaction)? {
            return Ok(Look::Rebase { cause: Cause::Detached, tables: Vec::new() });
        }
        if let Some(cause) = self.witness.contradicted(&transaction, file)? {
            return Ok(Look::Rebase { cause, tables: Vec::new() });
        }
        let Some(now) = Witness::read(&transaction, file)? else {
            return Ok(Look::Rebase { cause: Cause::Detached, tables: Vec::new() });
        };
        let tables = self.witness.changed(&now);
        if !tables.is_empty() {
            return Ok(Look::Rebase { cause: Cause::Schema, tables });
        }
        let logged = now.position != self.witness.position;
        let head = now.position;
        self.witness = now;
        self.data_version = Some(version);
        Ok(Look::Committed { head, logged })
    }
}

//! Numbered changes of a schema, each run once, in a transaction of its own that also records it.
//!
//! The record (`_migrations`) holds a checksum: a migration that was edited after it ran, that went missing, or that a newer
//! release ran is an error and never guessed around. Two processes that start at once each look again inside the transaction,
//! so a migration still runs once. A crash between two leaves the file at a whole number of them.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use rusqlite::{
    Connection, TransactionBehavior,
    hooks::{AuthAction, AuthContext, Authorization},
};
use sha2::{Digest, Sha256};

use crate::StoreError;

const RECORD: &str = "CREATE TABLE IF NOT EXISTS _migrations (
    version INTEGER PRIMARY KEY CHECK (version > 0),
    name TEXT NOT NULL,
    checksum TEXT NOT NULL,
    applied_at REAL NOT NULL
) STRICT";

/// One change. Never edited once released; the next change gets the next number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Migration {
    /// Its number, from 1 up. Gaps are allowed, so that numbers may be agreed on between branches.
    pub version: u32,
    /// What it does, in a few words.
    pub name: &'static str,
    /// The statements. Without transaction control: that is ours.
    pub sql: &'static str,
}

impl Migration {
    /// SHA-256 over name and statements.
    pub fn checksum(&self) -> String {
        let mut hash = Sha256::new();
        hash.update(self.name);
        // A byte no text contains, so that "a"+"bc" and "ab"+"c" differ.
        hash.update([0xff]);
        hash.update(self.sql);
        hex::encode(hash.finalize())
    }
}

/// All migrations of a database, in order. A constant of the crate that owns the schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Migrations(&'static [Migration]);

/// Where a migration stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Standing {
    /// Its number.
    pub version: u32,
    /// Its name.
    pub name: String,
    /// When it ran, in seconds since 1970; `None` if it is still to run.
    pub applied_at: Option<f64>,
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>5} {} {}", self.version, if self.applied_at.is_some() { "applied" } else { "pending" }, self.name)
    }
}

/// Why a database was not migrated. What ran before the failing migration stays and is whole.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MigrationError {
    /// The list itself is wrong: a programming error.
    #[error("migration {version} does not come after {before}: number them upwards from 1")]
    Unordered {
        /// The offender.
        version: u32,
        /// What stands before it.
        before: u32,
    },
    /// The file was written by a newer release; nothing was changed.
    #[error("the database is at version {found}, this release knows {known}: install the newer release or restore a backup")]
    Newer {
        /// The version in the file.
        found: u32,
        /// The last one known here.
        known: u32,
    },
    /// A migration that ran is not in the list any more.
    #[error("migration {version} ({name}) ran on this database and is not in this release: it must not be removed")]
    Missing {
        /// Its number.
        version: u32,
        /// Its recorded name.
        name: String,
    },
    /// A migration was edited after it ran.
    #[error("migration {version} ({name}) was changed after it ran here: restore its text and add a new one instead")]
    Changed {
        /// Its number.
        version: u32,
        /// Its name.
        name: String,
    },
    /// A migration was added below one that already ran.
    #[error("migration {version} ({name}) comes before {applied}, which already ran: give it a number above")]
    TooLate {
        /// Its number.
        version: u32,
        /// Its name.
        name: String,
        /// The highest that ran.
        applied: u32,
    },
    /// Its statements failed and were rolled back.
    #[error("migration {version} ({name}) failed and was rolled back")]
    Failed {
        /// Its number.
        version: u32,
        /// Its name.
        name: String,
        /// Why.
        #[source]
        source: StoreError,
    },
    /// It left rows whose foreign keys point nowhere; rolled back.
    #[error("migration {version} ({name}) leaves {rows} rows of {table} with dangling foreign keys; rolled back")]
    Dangling {
        /// Its number.
        version: u32,
        /// Its name.
        name: String,
        /// The first table concerned.
        table: String,
        /// How many rows in all.
        rows: usize,
    },
    /// The record could not be read or written.
    #[error("cannot read or write the record of migrations")]
    Record(#[source] StoreError),
}

impl From<rusqlite::Error> for MigrationError {
    fn from(source: rusqlite::Error) -> MigrationError {
        MigrationError::Record(source.into())
    }
}

struct Applied {
    name: String,
    checksum: String,
    at: f64,
}

impl Migrations {
    /// A database without a schema of ours.
    pub const NONE: Migrations = Migrations(&[]);

    /// `list`, in the order they run.
    pub const fn new(list: &'static [Migration]) -> Migrations {
        Migrations(list)
    }

    /// Lists every migration and whether it ran, changing nothing (a read-only connection will do).
    ///
    /// # Errors
    /// The same refusals as [`Migrations::apply`], so a dry run tells whether the real one would start.
    pub fn plan(&self, connection: &Connection) -> Result<Vec<Standing>, MigrationError> {
        let applied = self.verify(connection)?;
        Ok(self
            .0
            .iter()
            .map(|m| Standing { version: m.version, name: m.name.into(), applied_at: applied.get(&m.version).map(|a| a.at) })
            .collect())
    }

    /// Runs what has not run yet. Returns how many that were.
    ///
    /// # Errors
    /// [`MigrationError`]; the file is left after the last migration that succeeded.
    pub fn apply(&self, connection: &mut Connection) -> Result<usize, MigrationError> {
        let applied = self.verify(connection)?;
        if self.0.iter().all(|m| applied.contains_key(&m.version)) {
            return Ok(0);
        }
        // A table is rebuilt by dropping and renaming, which enforcement would forbid, and the pragma has no effect inside
        // a transaction. Each migration is checked as a whole before its commit instead.
        // <https://sqlite.org/lang_altertable.html#otheralter>
        let enforced: bool = connection.pragma_query_value(None, "foreign_keys", |row| row.get(0))?;
        connection.pragma_update(None, "foreign_keys", false)?;
        let outcome = self.0.iter().try_fold(0, |ran, migration| Ok(ran + usize::from(self.apply_one(connection, migration)?)));
        connection.pragma_update(None, "foreign_keys", enforced)?;
        outcome
    }

    fn apply_one(&self, connection: &mut Connection, migration: &Migration) -> Result<bool, MigrationError> {
        let failed = |source: StoreError| MigrationError::Failed { version: migration.version, name: migration.name.into(), source };
        // Transaction control inside the statements would commit half of them. The guard stands only around them.
        let guarded = Arc::new(AtomicBool::new(false));
        let guard = Arc::clone(&guarded);
        connection.authorizer(Some(move |context: AuthContext<'_>| match context.action {
            AuthAction::Transaction { .. } | AuthAction::Attach { .. } | AuthAction::Detach { .. } if guard.load(Ordering::Relaxed) => {
                Authorization::Deny
            }
            _ => Authorization::Allow,
        }))?;
        let outcome = (|| {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            transaction.execute_batch(RECORD)?;
            // Another process may have been here between our look and our lock.
            if self.verify(&transaction)?.contains_key(&migration.version) {
                return Ok(false);
            }
            guarded.store(true, Ordering::Relaxed);
            let ran = transaction.execute_batch(migration.sql);
            guarded.store(false, Ordering::Relaxed);
            ran.map_err(|e| failed(e.into()))?;
            dangling(&transaction, migration)?;
            transaction.execute(
                "INSERT INTO _migrations (version, name, checksum, applied_at) VALUES (?1, ?2, ?3, unixepoch('subsec'))",
                (migration.version, migration.name, migration.checksum()),
            )?;
            transaction.commit().map_err(|e| failed(e.into()))?;
            Ok(true)
        })();
        connection.authorizer(None::<fn(AuthContext<'_>) -> Authorization>)?;
        if let Ok(true) = outcome {
            tracing::info!(version = migration.version, name = migration.name, "migration applied");
        }
        outcome
    }

    /// Compares the record with the list.
    fn verify(&self, connection: &Connection) -> Result<BTreeMap<u32, Applied>, MigrationError> {
        let mut before = 0;
        for migration in self.0 {
            if migration.version <= before {
                return Err(MigrationError::Unordered { version: migration.version, before });
            }
            before = migration.version;
        }
        let known = before;
        let applied = recorded(connection)?;
        let Some((&highest, _)) = applied.last_key_value() else { return Ok(applied) };
        if highest > known {
            return Err(MigrationError::Newer { found: highest, known });
        }
        for (&version, record) in &applied {
            match self.0.iter().find(|m| m.version == version) {
                None => return Err(MigrationError::Missing { version, name: record.name.clone() }),
                Some(m) if m.checksum() != record.checksum => {
                    return Err(MigrationError::Changed { version, name: m.name.into() });
                }
                Some(_) => {}
            }
        }
        match self.0.iter().find(|m| m.version < highest && !applied.contains_key(&m.version)) {
            Some(m) => Err(MigrationError::TooLate { version: m.version, name: m.name.into(), applied: highest }),
            None => Ok(applied),
        }
    }
}

fn recorded(connection: &Connection) -> Result<BTreeMap<u32, Applied>, MigrationError> {
    if !connection.table_exists(Some("main"), "_migrations")? {
        return Ok(BTreeMap::new());
    }
    let mut statement = connection.prepare("SELECT version, name, checksum, applied_at FROM _migrations")?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, Applied { name: row.get(1)?, checksum: row.get(2)?, at: row.get(3)? })))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn dangling(connection: &Connection, migration: &Migration) -> Result<(), MigrationError> {
    let mut statement = connection.prepare("PRAGMA foreign_key_check")?;
    let tables = statement.query_map([], |row| row.get::<_, String>(0))?.collect::<Result<Vec<_>, _>>()?;
    match tables.first() {
        None => Ok(()),
        Some(table) => Err(MigrationError::Dangling {
            version: migration.version,
            name: migration.name.into(),
            table: table.clone(),
            rows: tables.len(),
        }),
    }
}

#[cfg(test)]
mod tests;

//! The pragmas, in the one order that works, each read back.

use std::path::Path;

use rusqlite::{Connection, config::DbConfig, types::FromSql};

use super::{Access, Durability, Location, OpenError, Options, PREPARED_STATEMENTS};
use crate::StoreError;

/// Pages changed before `ANALYZE` looks again: `PRAGMA optimize` at open with the bits that SQLite's documentation asks
/// of long-lived connections.
const OPTIMIZE_AT_OPEN: i64 = 0x10002;
/// `PRAGMA auto_vacuum` value: free pages are kept in a list that `incremental_vacuum` returns.
const INCREMENTAL: i64 = 2;

pub(super) fn apply(connection: &mut Connection, options: &Options, path: &Path) -> Result<(), OpenError> {
    Setter { connection, path }.all(options)
}

struct Setter<'a> {
    connection: &'a mut Connection,
    path: &'a Path,
}

impl Setter<'_> {
    fn all(&mut self, options: &Options) -> Result<(), OpenError> {
        let write = options.access != Access::ReadOnly;
        self.connection.busy_timeout(options.busy_timeout).map_err(|e| self.failed(e))?;
        self.connection.set_prepared_statement_cache_capacity(PREPARED_STATEMENTS);
        // A hostile file may carry triggers and views: they get no dangerous functions, and nobody rewrites the schema table.
        self.switch(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true, "defensive")?;
        self.switch(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false, "trusted_schema")?;
        // A misspelt "column" is an error and not a string.
        self.switch(DbConfig::SQLITE_DBCONFIG_DQS_DML, false, "double-quoted strings in statements")?;
        self.switch(DbConfig::SQLITE_DBCONFIG_DQS_DDL, false, "double-quoted strings in the schema")?;
        self.set("cell_size_check", 1)?;
        self.set("temp_store", 2)?;
        self.set("foreign_keys", 1)?;
        let file = matches!(options.location, Location::File(_));
        if write {
            self.identify(options)?;
            if file {
                self.journal()?;
                self.set("journal_size_limit", i64::try_from(options.journal_limit).unwrap_or(i64::MAX))?;
                self.set("wal_autocheckpoint", if options.access == Access::Owner { 0 } else { 1_000 })?;
            }
            self.set("synchronous", if options.durability == Durability::Full { 2 } else { 1 })?;
            if let Some(pages) = options.max_pages {
                self.set("max_page_count", i64::from(pages))?;
            }
            if options.access == Access::Owner {
                // It may leave `sqlite_stat1` behind: a guest leaves that to the owner.
                self.connection.pragma_update(None, "optimize", OPTIMIZE_AT_OPEN).or_else(benign).map_err(|e| self.failed(e))?;
            }
        } else {
            self.demand_application(options)?;
            self.set("query_only", 1)?;
        }
        // Behind the look at the indexes, which on a large file would fill it with pages that nobody asked for, and keep them.
        self.set("cache_size", -i64::from(options.cache_kib))?;
        if file {
            let bytes = options.mmap_bytes.unwrap_or(if write { 0 } else { 128 << 20 });
            // The build may cap it (SQLITE_MAX_MMAP_SIZE), and a smaller mapping is only slower: not read back.
            self.connection
                .pragma_update(None, "mmap_size", i64::try_from(bytes).unwrap_or(i64::MAX))
                .or_else(benign)
                .map_err(|e| self.failed(e))?;
        }
        Ok(())
    }

    /// Settings that must precede the first page, then the application's id.
    fn identify(&mut self, options: &Options) -> Result<(), OpenError> {
        let empty = self.get::<i64>("page_count")? == 0;
        if empty {
            self.set("auto_vacuum", INCREMENTAL)?;
            if let Some(id) = options.application_id {
                // The header's field is signed.
                self.set("application_id", i64::from(id.cast_signed()))?;
            }
            return Ok(());
        }
        self.demand_application(options)
    }

    fn demand_application(&mut self, options: &Options) -> Result<(), OpenError> {
        // Also the first read of the file: garbage is noticed here.
        let found = self.get::<i32>("application_id")?.cast_unsigned();
        match options.application_id {
            Some(expected) if expected != found => Err(OpenError::WrongApplication { path: self.path.to_path_buf(), found, expected }),
            _ => Ok(()),
        }
    }

    fn journal(&mut self) -> Result<(), OpenError> {
        let found: String =
            self.connection.pragma_update_and_check(None, "journal_mode", "wal", |row| row.get(0)).map_err(|e| self.failed(e))?;
        if found == "wal" { Ok(()) } else { Err(self.refused("journal_mode", found, "wal".into())) }
    }

    fn set(&mut self, name: &'static str, wanted: i64) -> Result<(), OpenError> {
        self.connection.pragma_update(None, name, wanted).or_else(benign).map_err(|e| self.failed(e))?;
        let found = self.get::<i64>(name)?;
        if found == wanted { Ok(()) } else { Err(self.refused(name, found.to_string(), wanted.to_string())) }
    }

    fn switch(&mut self, what: DbConfig, wanted: bool, name: &'static str) -> Result<(), OpenError> {
        let found = self.connection.set_db_config(what, wanted).map_err(|e| self.failed(e))?;
        if found == wanted { Ok(()) } else { Err(self.refused(name, found.to_string(), wanted.to_string())) }
    }

    fn get<T: FromSql>(&self, name: &'static str) -> Result<T, OpenError> {
        self.connection.pragma_query_value(None, name, |row| row.get(0)).map_err(|e| self.failed(e))
    }

    fn failed(&self, source: rusqlite::Error) -> OpenError {
        OpenError::Sqlite { path: self.path.to_path_buf(), source: StoreError::from(source) }
    }

    fn refused(&self, setting: &'static str, found: String, wanted: String) -> OpenError {
        OpenError::Setting { path: self.path.to_path_buf(), setting, found, wanted }
    }
}

/// Some pragmas answer a set with a row; rusqlite takes that for a mistake.
fn benign(error: rusqlite::Error) -> rusqlite::Result<()> {
    match error {
        rusqlite::Error::ExecuteReturnedResults => Ok(()),
        other => Err(other),
    }
}

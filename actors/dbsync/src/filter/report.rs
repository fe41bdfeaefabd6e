//! The operator's dry run: what a filter would publish of a file, counted.

use std::path::{Path, PathBuf};

use horos_store::{
    StoreError,
    open::{Access, OpenError, Options, open},
};
use rusqlite::Connection;
use serde::Serialize;

use super::{Filter, FilterProblems, FilterSpec, Fingerprint, Key, LeftOut, LoadError, Table};

/// What a filter publishes of a file.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The file.
    pub file: PathBuf,
    /// See [`Filter::fingerprint`].
    pub fingerprint: Fingerprint,
    /// The published tables.
    pub tables: Vec<TableReport>,
    /// What does not reach an FO.
    pub left_out: Vec<LeftOut>,
}

/// What a filter publishes of a table.
#[derive(Clone, Debug, Serialize)]
pub struct TableReport {
    /// The table.
    pub name: String,
    /// What tells its rows apart.
    pub key: Key,
    /// The published columns, the key's included.
    pub columns: Vec<String>,
    /// The columns that an FO has by name only.
    pub blanked: Vec<String>,
    /// The condition of its rows.
    pub condition: Option<String>,
    /// Rows in the file.
    pub rows: u64,
    /// Rows that are published.
    pub published: u64,
    /// Rows that are not published because NULL is in their key.
    pub null_keys: u64,
}

/// Why a file was not checked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckError {
    /// The file cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The filter does not fit it.
    #[error(transparent)]
    Problems(FilterProblems),
    /// The file was opened, but cannot be read.
    #[error("the database cannot be read")]
    Database(#[source] StoreError),
}

impl From<rusqlite::Error> for CheckError {
    fn from(error: rusqlite::Error) -> CheckError {
        CheckError::Database(error.into())
    }
}

/// Checks `spec` against the database in `file` and counts what it would publish. Opens the file for reading only, and reads all
/// of it as of one moment; every published table is scanned once.
///
/// # Errors
/// [`CheckError::Problems`] with everything that is wrong with the spec.
pub fn check(file: &Path, spec: &FilterSpec) -> Result<Report, CheckError> {
    let database = open(&Options::new(file, Access::ReadOnly))?;
    let transaction = database.unchecked_transaction()?;
    let filter = Filter::load(&database, spec).map_err(|error| match error {
        LoadError::Problems(problems) => CheckError::Problems(problems),
        LoadError::Database(source) => CheckError::Database(source),
    })?;
    let tables = filter.tables.iter().map(|table| count(&database, table)).collect::<rusqlite::Result<_>>()?;
    transaction.finish()?;
    Ok(Report { file: file.to_path_buf(), fingerprint: filter.fingerprint, tables, left_out: filter.left_out })
}

fn count(connection: &Connection, table: &Table) -> rusqlite::Result<TableReport> {
    let (rows, published, null_keys) = connection.query_row(&table.selects.count, [], |row| {
        let count = |column: usize| row.get::<_, i64>(column).map(i64::unsigned_abs);
        Ok((count(0)?, count(1)?, count(2)?))
    })?;
    Ok(TableReport {
        name: table.name.clone(),
        key: table.key.clone(),
        columns: table.columns.clone(),
        blanked: table.blanked.clone(),
        condition: table.condition.clone(),
        rows,
        published,
        null_keys,
    })
}

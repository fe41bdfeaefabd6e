//! A table of routes of the Go system, put where a node has its own: recognised, and moved aside for the migrations to take up.

use horos_store::rusqlite::{Connection, Error, TransactionBehavior};

/// The columns that the Go system's table has.
const COLUMNS: [&str; 5] = ["service_name", "strategy", "endpoint", "config", "updated_at"];

/// Why a foreign table was not taken up. Nothing was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdoptError {
    /// It is another program's.
    #[error("it has a table `routes` without the column {0}, so it is not the Go system's: move that file away")]
    Strange(&'static str),
    /// Both are there.
    #[error("it has a table `go_routes` beside its `routes`: move that file away, and import it with `horos routes import`")]
    Twice,
    /// It could not be read or written.
    #[error("its table of routes cannot be moved")]
    Sql(#[from] Error),
}

/// Whether the database has a table of routes that no release of ours has made.
///
/// # Errors
/// SQLite's.
pub fn is_foreign(database: &Connection) -> Result<bool, Error> {
    Ok(database.table_exists(Some("main"), "routes")? && !database.table_exists(Some("main"), "_migrations")?)
}

/// Moves such a table to `go_routes`, from where [`super::ROUTES_MIGRATIONS`] take its rows, whatever is in them. In one transaction: cut
/// short anywhere, it was done or not, and may be done again. Does nothing where there is none.
///
/// # Errors
/// [`AdoptError`].
pub fn adopt(database: &mut Connection) -> Result<bool, AdoptError> {
    let tx = database.transaction_with_behavior(TransactionBehavior::Immediate)?;
    if !is_foreign(&tx)? {
        return Ok(false);
    }
    if let Some(missing) = COLUMNS.into_iter().find(|column| !tx.column_exists(Some("main"), "routes", *column).unwrap_or(false)) {
        return Err(AdoptError::Strange(missing));
    }
    if tx.table_exists(Some("main"), "go_routes")? {
        return Err(AdoptError::Twice);
    }
    // The names are those of ours, and go with the table only once it is dropped.
    tx.execute_batch(
        "DROP TRIGGER IF EXISTS trg_routes_updated_at; DROP INDEX IF EXISTS idx_routes_strategy; ALTER TABLE routes RENAME TO go_routes",
    )?;
    tx.commit()?;
    Ok(true)
}

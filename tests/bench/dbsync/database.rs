//! The database: 5 million rows, 1 GiB.

use std::path::Path;

use horos_nodes::store::rusqlite::{Connection, OpenFlags};

/// Rows of the large table; a body of random digits makes each 205 bytes.
pub(crate) const ROWS: i64 = 5_000_000;

/// Makes the database at `path` with `rows` rows, and returns its size in bytes.
pub(crate) fn make(path: &Path, rows: i64) -> anyhow::Result<u64> {
    let database = Connection::open(path)?;
    database.execute_batch(
        "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -65536;
         CREATE TABLE rows (id INTEGER PRIMARY KEY, owner INTEGER NOT NULL, body TEXT NOT NULL);
         CREATE TABLE events (id INTEGER PRIMARY KEY, body TEXT NOT NULL);",
    )?;
    database.execute(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1)
         INSERT INTO rows SELECT i, abs(random()) % 100000, hex(randomblob(98)) FROM n",
        [rows],
    )?;
    database.execute_batch("CREATE INDEX rows_by_owner ON rows (owner); PRAGMA journal_mode = WAL;")?;
    database.close().map_err(|(_, error)| error)?;
    Ok(std::fs::metadata(path)?.len())
}

/// A connection of a foreign process: as durable as the node's own.
pub(crate) fn foreign(path: &Path) -> anyhow::Result<Connection> {
    let database = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    database.execute_batch("PRAGMA busy_timeout = 10000; PRAGMA synchronous = FULL;")?;
    Ok(database)
}

/// A reader of the replica.
pub(crate) fn reader(path: &Path) -> anyhow::Result<Connection> {
    let database = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    database.execute_batch("PRAGMA busy_timeout = 0;")?;
    Ok(database)
}

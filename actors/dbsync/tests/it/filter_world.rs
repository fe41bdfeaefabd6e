//! A database file, a filter over it, and the FO that the filter makes.

use std::ops::Deref;

use horos_dbsync::filter::{Filter, FilterProblems, FilterSpec, LoadError};
use rusqlite::{Connection, types::Value};
use tempfile::TempDir;

/// How much to do: `normal` on every change, `full` with `HOROS_TEST_FULL=1`.
pub(crate) fn scale<T>(normal: T, full: T) -> T {
    if std::env::var_os("HOROS_TEST_FULL").is_some_and(|value| value == "1") { full } else { normal }
}

/// A database on disk with `sql` in it, opened as a plain program would.
pub(crate) struct File {
    pub(crate) directory: TempDir,
    pub(crate) connection: Connection,
}

impl File {
    pub(crate) fn new(sql: &str) -> File {
        let directory = tempfile::tempdir().unwrap();
        let connection = Connection::open(directory.path().join("bo.db")).unwrap();
        connection.execute_batch(&format!("PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF; {sql}")).unwrap();
        File { directory, connection }
    }

    pub(crate) fn load(&self, yaml: &str) -> Filter {
        self.load_spec(&spec(yaml))
    }

    pub(crate) fn load_spec(&self, spec: &FilterSpec) -> Filter {
        Filter::load(&self.connection, spec).unwrap_or_else(|error| panic!("{error}"))
    }

    pub(crate) fn problems(&self, spec: &FilterSpec) -> FilterProblems {
        match Filter::load(&self.connection, spec) {
            Err(LoadError::Problems(problems)) => problems,
            Err(other) => panic!("{other:?}"),
            Ok(_) => panic!("{spec:?} was accepted"),
        }
    }
}

pub(crate) fn spec(yaml: &str) -> FilterSpec {
    serde_saphyr::from_str(yaml).unwrap()
}

pub(crate) fn rows(connection: &Connection, sql: &str) -> Vec<Vec<Value>> {
    let mut statement = connection.prepare(sql).unwrap();
    let width = statement.column_count();
    let rows = statement.query_map([], |row| (0..width).map(|i| row.get(i)).collect()).unwrap();
    rows.collect::<rusqlite::Result<_>>().unwrap()
}

/// An FO, and what its file consists of.
pub(crate) struct Fo {
    connection: Connection,
    bytes: Vec<u8>,
}

impl Deref for Fo {
    type Target = Connection;
    fn deref(&self) -> &Connection {
        &self.connection
    }
}

/// The FO: the filter's schema, with what its statements read in it.
pub(crate) fn replica(bo: &Connection, filter: &Filter) -> Fo {
    let mut fo = Connection::open_in_memory().unwrap();
    for sql in filter.schema() {
        fo.execute_batch(&sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
    }
    for table in filter.tables() {
        let columns: Vec<String> = table.columns().iter().map(|name| quote(name)).collect();
        let marks = vec!["?"; columns.len()].join(", ");
        let insert = format!("INSERT INTO {} ({}) VALUES ({marks})", quote(table.name()), columns.join(", "));
        for row in rows(bo, table.select()) {
            fo.execute(&insert, rusqlite::params_from_iter(row)).unwrap_or_else(|error| panic!("{insert}: {error}"));
        }
    }
    let bytes = fo.serialize("main").unwrap().to_vec();
    Fo { connection: fo, bytes }
}

pub(crate) fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Whether `secret` is anywhere in the bytes of the FO.
pub(crate) fn holds(fo: &Fo, secret: &str) -> bool {
    fo.bytes.windows(secret.len()).any(|window| window == secret.as_bytes())
}

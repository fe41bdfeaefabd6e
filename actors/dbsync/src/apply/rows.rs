//! Encoded rows and keys, bound to statements as they are.

use horos_store::{Kind, StoreError};
use rusqlite::{Connection, Statement};

use super::{ApplyError, Doing as _, shape::Shape};
use crate::value::{Rows, Value, key_values};

/// Runs `statement` for each of the `count` rows (or keys) of `width` values in `bytes`. Nothing is copied but by SQLite.
pub(super) fn run(statement: &mut Statement<'_>, table: &str, bytes: &[u8], width: usize, count: u32) -> Result<(), ApplyError> {
    let mut rows = Rows::new(bytes, width, count);
    let mut row: Vec<Value<'_>> = Vec::with_capacity(width);
    while rows.next_into(&mut row)? {
        execute(statement, table, &row)?;
    }
    Ok(())
}

/// Most rows of one statement that inserts: it begins, looks for the end of the table and ends once for them all.
const ROWS: usize = 64;
/// Most parameters of it.
const PARAMETERS: usize = 1_000;

/// Inserts rows into a table in which none with their keys is, many at a time. What fails leaves some of them behind.
pub(super) struct Insert<'c> {
    one: Statement<'c>,
    many: Statement<'c>,
    at_once: usize,
}

impl<'c> Insert<'c> {
    pub(super) fn new(connection: &'c Connection, shape: &Shape) -> Result<Insert<'c>, ApplyError> {
        let at_once = (PARAMETERS / shape.width()).clamp(1, ROWS);
        let prepare = |rows| connection.prepare(&shape.insert_or_fail(rows)).doing("write rows");
        Ok(Insert { one: prepare(1)?, many: prepare(at_once)?, at_once })
    }

    /// Inserts the `count` rows in `bytes`.
    pub(super) fn run(&mut self, shape: &Shape, bytes: &[u8], count: u32) -> Result<(), ApplyError> {
        let mut rows = Rows::new(bytes, shape.width(), count);
        let mut values: Vec<Value<'_>> = Vec::with_capacity(shape.width() * self.at_once);
        while rows.left() as usize >= self.at_once {
            values.clear();
            for _ in 0..self.at_once {
                rows.append_to(&mut values)?;
            }
            execute(&mut self.many, shape.name(), &values)?;
        }
        while rows.next_into(&mut values)? {
            execute(&mut self.one, shape.name(), &values)?;
        }
        Ok(())
    }
}

fn execute(statement: &mut Statement<'_>, table: &str, values: &[Value<'_>]) -> Result<(), ApplyError> {
    bind(statement, 1, values).and_then(|()| statement.raw_execute()).map(drop).map_err(|error| refused(table, error))
}

/// Binds `values` from parameter `first` on.
fn bind(statement: &mut Statement<'_>, first: usize, values: &[Value<'_>]) -> rusqlite::Result<()> {
    values.iter().enumerate().try_for_each(|(i, value)| statement.raw_bind_parameter(first + i, value))
}

/// What the rows themselves are to blame for is told apart from what the disk is.
fn refused(table: &str, error: rusqlite::Error) -> ApplyError {
    let source = StoreError::from(error);
    match source.kind {
        // Two rows with one key, a text where the table wants a number, more than SQLite can hold.
        Kind::Constraint | Kind::Statement | Kind::TooBig => {
            let text = std::error::Error::source(&source).map(ToString::to_string).unwrap_or_default();
            ApplyError::Nonsense(format!("a row does not fit into table {table:?}: {text}"))
        }
        _ => ApplyError::Sqlite { doing: "write rows", source },
    }
}

/// A range of keys, decoded.
pub(super) struct Bounds<'a> {
    after: Option<Vec<Value<'a>>>,
    through: Option<Vec<Value<'a>>>,
}

impl<'a> Bounds<'a> {
    pub(super) fn new(shape: &Shape, after: Option<&'a [u8]>, through: Option<&'a [u8]>) -> Result<Bounds<'a>, ApplyError> {
        let values = |key: Option<&'a [u8]>| key.map(|key| key_values(key, shape.head.key.len())).transpose();
        Ok(Bounds { after: values(after)?, through: values(through)? })
    }

    /// Deletes the rows in it.
    pub(super) fn delete(&self, connection: &Connection, shape: &Shape) -> Result<(), ApplyError> {
        let sql = shape.delete_range(self.after.is_some(), self.through.is_some());
        let run = || -> rusqlite::Result<()> {
            let mut statement = connection.prepare_cached(&sql)?;
            let mut next = 1;
            for values in [&self.after, &self.through].into_iter().flatten() {
                bind(&mut statement, next, values)?;
                next += values.len();
            }
            statement.raw_execute().map(drop)
        };
        run().doing("delete a range of rows")
    }
}

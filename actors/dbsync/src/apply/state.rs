//! What the replica's file says of itself: `_horos_replica…`, written in the transactions that make it true.

use horos_wire::protocol::sync::{Epoch, Position};
use rusqlite::{Connection, OptionalExtension as _, params};

use super::{ApplyError, Doing as _, shape::Shape};
use crate::frames::TableHead;

/// Of these tables. A file of another format is not this replica's.
const FORMAT: i64 = 1;

const SCHEMA: &str = "
    CREATE TABLE main.\"_horos_replica\" (
        one INTEGER PRIMARY KEY CHECK (one = 1), format INTEGER NOT NULL, publication TEXT NOT NULL,
        epoch BLOB, seq INTEGER, stamp INTEGER, fingerprint BLOB NOT NULL, applied_at INTEGER NOT NULL, standing INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE main.\"_horos_replica_table\" (
        name TEXT PRIMARY KEY COLLATE NOCASE, mark BLOB NOT NULL, changed_at INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE main.\"_horos_replica_column\" (
        tab TEXT COLLATE NOCASE, place INTEGER, name TEXT NOT NULL, key INTEGER, collation TEXT, PRIMARY KEY (tab, place)
    ) STRICT, WITHOUT ROWID;";

/// Whether what is in the file can be gone on from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It is what was published at its position.
    Live,
    /// It was rolled back, and takes no changes.
    Pinned,
    /// It was rolled back, and takes a snapshot.
    Broken,
}

/// What a replica's file holds.
#[derive(Clone, Debug)]
pub(crate) struct State {
    pub(crate) publication: String,
    /// The furthest that it has been; none while a snapshot is being built.
    pub(crate) position: Option<Position>,
    pub(crate) fingerprint: [u8; 32],
    /// When anything was last applied, in milliseconds since 1970.
    pub(crate) applied_at: u64,
    pub(crate) standing: Standing,
    pub(crate) tables: Vec<Known>,
}

/// A table in a replica's file.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    pub(crate) shape: Shape,
    /// When it was last changed, in milliseconds since 1970.
    pub(crate) changed_at: u64,
}

impl State {
    /// The position that can be gone on from.
    pub(crate) fn current(&self) -> Option<Position> {
        self.position.filter(|_| self.standing == Standing::Live)
    }

    /// All but the tables.
    pub(super) fn clone_head(&self) -> State {
        State { publication: self.publication.clone(), tables: Vec::new(), ..*self }
    }

    pub(super) fn find(&self, name: &str) -> Option<&Known> {
        self.tables.iter().find(|known| known.shape.is_called(name))
    }
}

pub(super) fn create(connection: &Connection) -> Result<(), ApplyError> {
    connection.execute_batch(SCHEMA).doing("begin a replica")
}

/// Whether the file has such tables at all.
pub(super) fn is_there(connection: &Connection) -> rusqlite::Result<bool> {
    let found: i64 = connection.query_row(
        "SELECT count(*) FROM main.sqlite_schema WHERE type = 'table' AND name IN ('_horos_replica', '_horos_replica_table')",
        [],
        |row| row.get(0),
    )?;
    Ok(found == 2)
}

/// What the file says; none when it is not a replica's.
pub(super) fn read(connection: &Connection) -> Result<Option<State>, ApplyError> {
    let doing = "read what the replica holds";
    if !is_there(connection).doing(doing)? {
        return Ok(None);
    }
    let head = connection
        .query_row(
            "SELECT publication, epoch, seq, stamp, fingerprint, applied_at, standing FROM main.\"_horos_replica\" WHERE format = ?1",
            [FORMAT],
            |row| {
                let epoch: Option<[u8; 16]> = row.get(1)?;
                let position = match (epoch, row.get(2)?, row.get(3)?) {
                    (Some(epoch), Some(seq), Some(stamp)) => Some(Position { epoch: Epoch::from_bytes(epoch), seq, stamp }),
                    _ => None,
                };
                let standing = match row.get::<_, i64>(6)? {
                    0 => Standing::Live,
                    1 => Standing::Pinned,
                    _ => Standing::Broken,
                };
                let applied_at: i64 = row.get(5)?;
                Ok(State {
                    publication: row.get(0)?,
                    position,
                    fingerprint: row.get(4)?,
                    applied_at: applied_at.cast_unsigned(),
                    standing,
                    tables: Vec::new(),
                })
            },
        )
        .optional()
        .doing(doing)?;
    let Some(mut state) = head else { return Ok(None) };
    state.tables = tables(connection).doing(doing)?;
    Ok(Some(state))
}

fn tables(connection: &Connection) -> rusqlite::Result<Vec<Known>> {
    let mut found: Vec<(TableHead, i64)> = Vec::new();
    let mut statement = connection.prepare("SELECT name, mark, changed_at FROM main.\"_horos_replica_table\" ORDER BY name")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let (columns, key, collations, ddl) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let head = TableHead { name: row.get(0)?, columns, key, collations, ddl, fingerprint: row.get(1)? };
        found.push((head, row.get(2)?));
    }
    drop(rows);
    let mut statement =
        connection.prepare("SELECT name, key, collation FROM main.\"_horos_replica_column\" WHERE tab = ?1 ORDER BY place")?;
    for (head, _) in &mut found {
        let mut key: Vec<(u16, u16, Option<String>)> = Vec::new();
        let mut rows = statement.query([&head.name])?;
        while let Some(row) = rows.next()? {
            let place = u16::try_from(head.columns.len()).unwrap_or(u16::MAX);
            if let Some(order) = row.get::<_, Option<u16>>(1)? {
                key.push((order, place, row.get(2)?));
            }
            head.columns.push(row.get(0)?);
        }
        key.sort_unstable_by_key(|(order, ..)| *order);
        (head.key, head.collations) = key.into_iter().map(|(_, place, collation)| (place, collation)).unzip();
    }
    Ok(found.into_iter().map(|(head, at)| Known { shape: Shape::known(head), changed_at: at.cast_unsigned() }).collect())
}

/// Writes everything but the tables.
pub(super) fn write(connection: &Connection, state: &State) -> Result<(), ApplyError> {
    let standing = match state.standing {
        Standing::Live => 0_i64,
        Standing::Pinned => 1,
        Standing::Broken => 2,
    };
    connection
        .prepare_cached(
            "INSERT OR REPLACE INTO main.\"_horos_replica\" (one, format, publication, epoch, seq, stamp, fingerprint, applied_at, standing)
             VALUES (1, ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        )
        .and_then(|mut statement| {
            let position = state.position.as_ref();
            statement.execute(params![
                FORMAT,
                state.publication,
                position.map(|it| it.epoch.to_bytes()),
                position.map(|it| it.seq),
                position.map(|it| it.stamp),
                state.fingerprint,
                state.applied_at.cast_signed(),
                standing
            ])
        })
        .doing("write the position")?;
    Ok(())
}

/// Writes a table in place of whichever has its name.
pub(super) fn write_table(connection: &Connection, shape: &Shape, changed_at: u64) -> Result<(), ApplyError> {
    let head = &shape.head;
    let write = || -> rusqlite::Result<()> {
        forget(connection, &head.name)?;
        connection
            .prepare_cached("INSERT INTO main.\"_horos_replica_table\" (name, mark, changed_at) VALUES (?1, ?2, ?3)")?
            .execute(params![head.name, head.fingerprint, changed_at.cast_signed()])?;
        let mut insert = connection
            .prepare_cached("INSERT INTO main.\"_horos_replica_column\" (tab, place, name, key, collation) VALUES (?1, ?2, ?3, ?4, ?5)")?;
        for (place, column) in head.columns.iter().enumerate() {
            let order = head.key.iter().position(|at| usize::from(*at) == place);
            let collation = order.and_then(|order| head.collations[order].as_ref());
            insert.execute(params![head.name, place as i64, column, order.map(|order| order as i64), collation])?;
        }
        Ok(())
    };
    write().doing("write down a table")
}

/// Says when a table was changed.
pub(super) fn touch(connection: &Connection, name: &str, changed_at: u64) -> Result<(), ApplyError> {
    connection
        .prepare_cached("UPDATE main.\"_horos_replica_table\" SET changed_at = ?2 WHERE name = ?1")
        .and_then(|mut statement| statement.execute(params![name, changed_at.cast_signed()]))
        .doing("write down a change")?;
    Ok(())
}

/// Forgets a table.
pub(super) fn forget(connection: &Connection, name: &str) -> rusqlite::Result<()> {
    connection.prepare_cached("DELETE FROM main.\"_horos_replica_column\" WHERE tab = ?1")?.execute([name])?;
    connection.prepare_cached("DELETE FROM main.\"_horos_replica_table\" WHERE name = ?1")?.execute([name])?;
    Ok(())
}

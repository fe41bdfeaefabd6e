//! Reading the log.

use std::collections::{BTreeMap, HashSet};

use horos_store::rusqlite::{
    self, Connection, OptionalExtension as _, Row, ToSql, params,
    types::{ToSqlOutput, ValueRef},
};

use super::{CaptureError, Position, attach};

/// Bytes of keys after which a page ends, however few entries it has: a key may be as large as a row.
const PAGE_BYTES: usize = 4 << 20;

/// One column of a key, exactly as it was: text need not be UTF-8 in SQLite, and 1 is not '1'.
#[derive(Clone, Debug, PartialEq)]
pub enum KeyPart {
    /// NULL.
    Null,
    /// An integer.
    Integer(i64),
    /// A floating point number, never NaN.
    Real(f64),
    /// Text in UTF-8, if it was text.
    Text(Vec<u8>),
    /// Bytes.
    Blob(Vec<u8>),
}

/// A key, in the order of its columns.
pub type RowKey = Vec<KeyPart>;

impl From<ValueRef<'_>> for KeyPart {
    fn from(value: ValueRef<'_>) -> KeyPart {
        match value {
            ValueRef::Null => KeyPart::Null,
            ValueRef::Integer(value) => KeyPart::Integer(value),
            ValueRef::Real(value) => KeyPart::Real(value),
            ValueRef::Text(value) => KeyPart::Text(value.to_vec()),
            ValueRef::Blob(value) => KeyPart::Blob(value.to_vec()),
        }
    }
}

impl ToSql for KeyPart {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self {
            KeyPart::Null => ValueRef::Null,
            KeyPart::Integer(value) => ValueRef::Integer(*value),
            KeyPart::Real(value) => ValueRef::Real(*value),
            KeyPart::Text(value) => ValueRef::Text(value),
            KeyPart::Blob(value) => ValueRef::Blob(value),
        }))
    }
}

impl KeyPart {
    /// Appends a form that no other value has.
    fn encode(&self, into: &mut Vec<u8>) {
        let (kind, bytes): (u8, &[u8]) = match self {
            KeyPart::Null => (0, &[]),
            KeyPart::Integer(value) => (1, &value.to_le_bytes()),
            KeyPart::Real(value) => (2, &value.to_bits().to_le_bytes()),
            KeyPart::Text(value) => (3, value),
            KeyPart::Blob(value) => (4, value),
        };
        into.push(kind);
        into.extend((bytes.len() as u64).to_le_bytes());
        into.extend(bytes);
    }
}

/// What changed in a table.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TableChanges {
    /// Any row may have changed, whether its key is in `keys` or not: compare the whole table.
    pub whole: bool,
    /// Keys whose rows were inserted, changed or deleted, each once, in the order of the first change. What became of them is in
    /// the table.
    pub keys: Vec<RowKey>,
}

/// A stretch of the log.
#[derive(Clone, Debug, PartialEq)]
pub struct Page {
    /// By the tables' numbers.
    pub tables: BTreeMap<u32, TableChanges>,
    /// Where the next page begins.
    pub through: Position,
    /// Entries read.
    pub entries: usize,
    /// Whether the log goes on. A page before the last may end within a transaction: only all pages of *one* read transaction,
    /// applied together with the rows read in it, are a state that the database was in.
    pub more: bool,
}

/// Why there is no way from a position to the present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Gap {
    /// The position is of another epoch.
    Epoch,
    /// The entry after it was pruned.
    Pruned,
    /// The log has no such entry, or another one: the file is older than the position, or of another history.
    Diverged,
}

/// What happened since a position.
#[derive(Clone, Debug, PartialEq)]
pub enum Changes {
    /// Unknown: begin with a snapshot.
    Gap(Gap),
    /// This.
    Page(Page),
}

/// The end of the log. Read in the transaction that made a change, it is that change's position.
///
/// # Errors
/// [`CaptureError::Detached`], or SQLite's.
pub fn head(connection: &Connection) -> Result<Position, CaptureError> {
    let epoch = attach::epoch(connection)?.ok_or(CaptureError::Detached)?;
    let mut statement = connection.prepare_cached("SELECT seq, stamp FROM main.\"_horos_log\" ORDER BY seq DESC LIMIT 1")?;
    let found = statement.query_row([], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
    let (seq, stamp) = found.ok_or(CaptureError::Detached)?;
    Ok(Position { epoch, seq, stamp })
}

/// Why `position` cannot be gone on from, if so.
pub(super) fn gap(connection: &Connection, epoch: [u8; 16], position: &Position) -> Result<Option<Gap>, CaptureError> {
    if epoch != position.epoch {
        return Ok(Some(Gap::Epoch));
    }
    let stamp: Option<i64> = connection
        .prepare_cached("SELECT stamp FROM main.\"_horos_log\" WHERE seq = ?1")?
        .query_row([position.seq], |row| row.get(0))
        .optional()?;
    if stamp == Some(position.stamp) {
        return Ok(None);
    }
    let oldest: Option<i64> = connection.prepare_cached("SELECT min(seq) FROM main.\"_horos_log\"")?.query_row([], |row| row.get(0))?;
    Ok(Some(if stamp.is_none() && oldest.is_some_and(|oldest| position.seq < oldest) { Gap::Pruned } else { Gap::Diverged }))
}

/// Reads on from `from`, at most `max` entries (at least one), and fewer when their keys are large: a page holds 4 MiB of them and
/// one key more. Call it in the read transaction in which the rows are read.
///
/// # Errors
/// [`CaptureError::Detached`], or SQLite's.
pub fn since(connection: &Connection, from: &Position, max: usize) -> Result<Changes, CaptureError> {
    let epoch = attach::epoch(connection)?.ok_or(CaptureError::Detached)?;
    if let Some(gap) = gap(connection, epoch, from)? {
        return Ok(Changes::Gap(gap));
    }
    let widths = attach::key_widths(connection)?;
    let max = max.max(1);
    let mut page = Page { tables: BTreeMap::new(), through: *from, entries: 0, more: false };
    let mut seen: HashSet<(u32, Vec<u8>)> = HashSet::new();
    let mut bytes = 0;
    // The columns after the third are the key's, as many as the widest key has.
    let mut statement = connection.prepare_cached("SELECT * FROM main.\"_horos_log\" WHERE seq > ?1 ORDER BY seq LIMIT ?2")?;
    let limit = i64::try_from(max).unwrap_or(i64::MAX).saturating_add(1);
    let mut rows = statement.query(params![from.seq, limit])?;
    while let Some(row) = rows.next()? {
        if page.entries == max || bytes >= PAGE_BYTES {
            page.more = true;
            break;
        }
        page.entries += 1;
        page.through = Position { epoch, seq: row.get(0)?, stamp: row.get(2)? };
        let tab: i64 = row.get(1)?;
        let Ok(number) = u32::try_from(tab.unsigned_abs()) else { continue };
        let Some(width) = widths.get(&number) else { continue }; // no longer published, or the log's first entry
        let table = page.tables.entry(number).or_default();
        if tab < 0 {
            table.whole = true;
            continue;
        }
        let (key, code) = key(row, *width)?;
        bytes += code.len();
        if seen.insert((number, code)) {
            table.keys.push(key);
        }
    }
    Ok(Changes::Page(page))
}

fn key(row: &Row<'_>, width: u32) -> Result<(RowKey, Vec<u8>), CaptureError> {
    let mut code = Vec::new();
    let mut key = Vec::new();
    for place in 0..width as usize {
        let part = KeyPart::from(row.get_ref(3 + place)?);
        part.encode(&mut code);
        key.push(part);
    }
    Ok((key, code))
}

/// Removes the entries before `position`, once every reader is past it. The entry itself stays, to be gone on from.
///
/// # Errors
/// SQLite's. Nothing is removed when the log does not hold `position`.
pub fn trim(connection: &Connection, position: &Position) -> Result<usize, CaptureError> {
    let epoch = attach::epoch(connection)?.ok_or(CaptureError::Detached)?;
    if gap(connection, epoch, position)?.is_some() {
        return Ok(0);
    }
    Ok(connection.execute("DELETE FROM main.\"_horos_log\" WHERE seq < ?1", [position.seq])?)
}

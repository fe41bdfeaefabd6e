//! Tables in pieces that both ends cut alike: by content, so that a row more or less changes the chunk it is in and, at most, the
//! next one, wherever in the table it is.
//!
//! A chunk ends after a row that says so: when a hash of its key is below a bound that grows with the row's size. On average that is
//! every 512 rows or every 128 KiB, whichever is less; a run of rows that do not say so is cut at 4,096 rows or 1 MiB. The same cuts
//! serve a snapshot that goes on where it was interrupted, the reuse of what a replica has, and anti-entropy: on the BO over what the
//! filter publishes, on the FO over its own file.
//!
//! Memory: one chunk, 1 MiB and a row.

use std::{
    ops::ControlFlow,
    sync::atomic::{AtomicBool, Ordering},
};

use rusqlite::{CachedStatement, Connection, Row, ffi, types::ValueRef};
use sha2::{Digest as _, Sha256};

use crate::{
    capture::quote,
    filter::{Table, ranged},
    frames::{KeyBytes, PAYLOAD, ROWS_HEAD, TableHead},
    value::{MAX_KEY, Malformed, Reader, key_values, put_key, put_row},
};

/// Mean rows of a chunk. Smaller ones make a difference cheaper to heal, larger ones the list of digests shorter: five million rows
/// are ten thousand digests.
const MEAN_ROWS: u64 = 512;
/// Mean bytes of a chunk of large rows.
const MEAN_BYTES: u64 = 128 << 10;
/// Rows after which a chunk ends in any case. One chunk in e^8 = 3,000 gets there.
const MAX_ROWS: u32 = 4_096;
/// How many rows are read between two looks at whether to go on: some milliseconds.
const LOOK_EVERY: u32 = 1_000;

/// Why a table was not read to the end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    /// SQLite's reason.
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
    /// A row or its key is more than travels. Its key, or the one before it.
    #[error("the row with the key {key} is larger than a row may be")]
    TooLarge {
        /// As SQL would write it, shortened.
        key: String,
    },
    /// A bound is not a key of this table.
    #[error("not a key of this table")]
    Key(#[from] Malformed),
    /// Whoever asked does not want it any more.
    #[error("cancelled")]
    Cancelled,
}

/// How a table is read in the order of its key.
#[derive(Clone, Debug)]
pub(crate) struct Ordered {
    width: usize,
    key: Vec<u16>,
    /// Without bounds, from, to, from and to.
    sql: [String; 4],
}

impl Ordered {
    /// On the BO: what is published of `table`.
    pub(crate) fn published(table: &Table) -> Ordered {
        let key = table.key_positions().into_iter().filter_map(|position| u16::try_from(position).ok()).collect();
        Ordered::new(table.columns().len(), key, |after, through| table.select_range(after, through))
    }

    /// On the FO: the replica's table, all of it.
    pub(crate) fn replica(head: &TableHead) -> Ordered {
        let list: Vec<String> = head.columns.iter().map(|name| quote(name)).collect();
        let from = format!("SELECT {} FROM main.{}", list.join(", "), quote(&head.name));
        let order: Vec<String> = head.key_terms();
        let order = order.join(", ");
        Ordered::new(list.len(), head.key.clone(), |after, through| ranged(&from, &[], &order, head.key.len(), after, through))
    }

    fn new(width: usize, key: Vec<u16>, sql: impl Fn(bool, bool) -> String) -> Ordered {
        Ordered { width, key, sql: [sql(false, false), sql(true, false), sql(false, true), sql(true, true)] }
    }

    /// The statement, with or without bounds.
    pub(crate) fn sql(&self, after: bool, through: bool) -> &str {
        &self.sql[usize::from(after) + 2 * usize::from(through)]
    }

    /// Where the key's columns stand.
    pub(crate) fn key(&self) -> &[u16] {
        &self.key
    }

    /// How many columns a row has.
    pub(crate) fn width(&self) -> usize {
        self.width
    }

    /// The statement over (`after`, `through`], its parameters bound.
    fn statement<'c>(
        &self,
        connection: &'c Connection,
        after: Option<&[u8]>,
        through: Option<&[u8]>,
    ) -> Result<CachedStatement<'c>, ReadError> {
        let mut statement = connection.prepare_cached(self.sql(after.is_some(), through.is_some()))?;
        let mut place = 0;
        for key in [after, through].into_iter().flatten() {
            for value in key_values(key, self.key.len())? {
                place += 1;
                statement.raw_bind_parameter(place, value)?;
            }
        }
        Ok(statement)
    }
}

impl TableHead {
    /// The key's columns as SQL terms that compare as the BO does.
    pub(crate) fn key_terms(&self) -> Vec<String> {
        let term = |(place, position): (usize, &u16)| {
            let name = quote(self.columns.get(usize::from(*position))?);
            let collation = self.collations.get(place).and_then(Option::as_deref);
            Some(collation.map_or_else(|| name.clone(), |collation| format!("{name} COLLATE {}", quote(collation))))
        };
        self.key.iter().enumerate().filter_map(term).collect()
    }
}

/// A fast hash of an encoded key, the same on both ends and in every release: eight bytes at a time, mixed as MurmurHash3 ends.
fn key_hash(key: &[u8]) -> u64 {
    const MULTIPLIER: u64 = 0xff51_afd7_ed55_8ccd;
    let mut hash = key.len() as u64 ^ 0x9e37_79b9_7f4a_7c15;
    let mut mix = |word: [u8; 8]| {
        hash = (hash ^ u64::from_le_bytes(word)).wrapping_mul(MULTIPLIER);
        hash ^= hash >> 32;
    };
    let (words, rest) = key.as_chunks::<8>();
    words.iter().for_each(|word| mix(*word));
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    mix(last);
    hash = hash.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

/// Whether a chunk ends after the row with this key and size.
fn ends_after(key: &[u8], size: usize) -> bool {
    let by_size = (size as u64).saturating_mul(u64::MAX / MEAN_BYTES);
    key_hash(key) < by_size.max(u64::MAX / MEAN_ROWS)
}

/// Gathers rows until a chunk is full.
#[derive(Debug)]
pub(crate) struct Chunker {
    width: usize,
    positions: Vec<u16>,
    /// Room for [`crate::frames::put_rows_head`], then the rows.
    payload: Vec<u8>,
    rows: u32,
    /// The last row's.
    key: Vec<u8>,
}

impl Chunker {
    pub(crate) fn new(ordered: &Ordered) -> Chunker {
        Chunker { width: ordered.width, positions: ordered.key.clone(), payload: vec![0; ROWS_HEAD], rows: 0, key: Vec::new() }
    }

    /// Appends `row`; `true` when that ends the chunk.
    ///
    /// # Errors
    /// [`ReadError`].
    #[inline]
    pub(crate) fn push(&mut self, row: &Row<'_>) -> Result<bool, ReadError> {
        let start = self.payload.len();
        if !put_row(&mut self.payload, row, self.width)? {
            return Err(self.too_large(row));
        }
        self.key.clear();
        put_key(&mut self.key, row, &self.positions)?;
        if self.key.len() > MAX_KEY {
            return Err(self.too_large(row));
        }
        self.rows += 1;
        let size = self.payload.len() - start;
        Ok(ends_after(&self.key, size) || self.rows == MAX_ROWS || self.payload.len() >= PAYLOAD)
    }

    #[cold]
    fn too_large(&self, row: &Row<'_>) -> ReadError {
        let parts = self.positions.iter().map(|position| row.get_ref(usize::from(*position)).map_or_else(|_| "?".to_owned(), in_short));
        ReadError::TooLarge { key: parts.collect::<Vec<_>>().join(", ") }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// What was gathered.
    pub(crate) fn chunk(&mut self) -> Chunk<'_> {
        Chunk { payload: &mut self.payload, rows: self.rows, key: &self.key }
    }

    /// Begins the next chunk.
    pub(crate) fn clear(&mut self) {
        self.payload.truncate(ROWS_HEAD);
        // A large row's memory is not kept for small ones.
        self.payload.shrink_to(2 * PAYLOAD);
        self.rows = 0;
    }
}

/// A value as SQL writes it, shortened.
pub(crate) fn in_short(value: ValueRef<'_>) -> String {
    const SHOWN: usize = 40;
    match value {
        ValueRef::Null => "NULL".to_owned(),
        ValueRef::Integer(value) => value.to_string(),
        ValueRef::Real(value) => format!("{value:?}"),
        ValueRef::Text(bytes) => {
            let shown: String = String::from_utf8_lossy(&bytes[..bytes.len().min(4 * SHOWN)]).chars().take(SHOWN).collect();
            let more = if shown.len() < bytes.len() { "…" } else { "" };
            format!("'{}'{more}", shown.replace('\'', "''"))
        }
        ValueRef::Blob(bytes) => {
            let more = if bytes.len() > SHOWN / 2 { "…" } else { "" };
            format!("x'{}'{more}", hex::encode(&bytes[..bytes.len().min(SHOWN / 2)]))
        }
    }
}

/// A chunk, or the rest of a table after the last one.
#[derive(Debug)]
pub(crate) struct Chunk<'a> {
    /// With room in front for the head of a frame.
    pub(crate) payload: &'a mut [u8],
    /// How many rows.
    pub(crate) rows: u32,
    /// The last row's key.
    pub(crate) key: &'a [u8],
}

impl Chunk<'_> {
    /// The encoded rows.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.payload[ROWS_HEAD..]
    }

    /// SHA-256 over the encoded rows.
    pub(crate) fn digest(&self) -> [u8; 32] {
        Sha256::digest(self.bytes()).into()
    }
}

/// Gives `each` the chunks of (`after`, `through`] in order; `each` may break off. `true` when all was read. From the end of a chunk
/// on, the chunks are those of the whole table.
///
/// # Errors
/// [`ReadError`], or what `each` returned.
pub(crate) fn walk<E: From<ReadError>>(
    connection: &Connection,
    ordered: &Ordered,
    (after, through): (Option<&[u8]>, Option<&[u8]>),
    cancelled: &AtomicBool,
    mut each: impl FnMut(Chunk<'_>) -> Result<ControlFlow<()>, E>,
) -> Result<bool, E> {
    let failed = |error: rusqlite::Error| E::from(interrupted(error, cancelled));
    let mut statement = ordered.statement(connection, after, through)?;
    let mut rows = statement.raw_query();
    let mut chunker = Chunker::new(ordered);
    let mut unlooked = 0;
    loop {
        let row = match rows.next() {
            Ok(Some(row)) => row,
            Ok(None) => break,
            Err(error) if error.sqlite_error_code() == Some(rusqlite::ErrorCode::TooBig) => {
                let key = Reader::new(&chunker.key)
                    .value()
                    .map_or_else(|_| "of the first row".to_owned(), |key| format!("after {}", in_short(key)));
                return Err(ReadError::TooLarge { key }.into());
            }
            Err(error) => return Err(failed(error)),
        };
        unlooked += 1;
        if unlooked == LOOK_EVERY {
            unlooked = 0;
            if cancelled.load(Ordering::Relaxed) {
                return Err(ReadError::Cancelled.into());
            }
        }
        if chunker.push(row)? {
            if each(chunker.chunk())?.is_break() {
                return Ok(false);
            }
            chunker.clear();
        }
    }
    if !chunker.is_empty() && each(chunker.chunk())?.is_break() {
        return Ok(false);
    }
    Ok(true)
}

/// An interruption that was asked for is not a failure of SQLite's.
pub(crate) fn interrupted(error: rusqlite::Error, cancelled: &AtomicBool) -> ReadError {
    let code = error.sqlite_error().map(|error| error.extended_code & 0xff);
    if code == Some(ffi::SQLITE_INTERRUPT) && cancelled.load(Ordering::Relaxed) { ReadError::Cancelled } else { error.into() }
}

/// A chunk that was read and let go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ChunkId {
    /// The last row's key.
    pub(crate) through: KeyBytes,
    /// How many rows.
    pub(crate) rows: u32,
    /// SHA-256 over the encoded rows.
    pub(crate) digest: [u8; 32],
}

/// The next chunks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Scanned {
    /// At most as many as were asked for.
    pub(crate) chunks: Vec<ChunkId>,
    /// Whether they go to the end of the table.
    pub(crate) last: bool,
}

/// The first `limit` chunks behind `after`, which is the last key of a chunk. Go on from the last one's key.
///
/// # Errors
/// [`ReadError`].
pub(crate) fn scan(
    connection: &Connection,
    ordered: &Ordered,
    after: Option<&[u8]>,
    limit: usize,
    cancelled: &AtomicBool,
) -> Result<Scanned, ReadError> {
    let mut chunks = Vec::new();
    if limit == 0 {
        return Ok(Scanned { chunks, last: false });
    }
    // One chunk more is looked for, so that no last one is taken for one before the last.
    let last = walk::<ReadError>(connection, ordered, (after, None), cancelled, |chunk| {
        if chunks.len() == limit {
            return Ok(ControlFlow::Break(()));
        }
        chunks.push(ChunkId { through: KeyBytes::copy_from_slice(chunk.key), rows: chunk.rows, digest: chunk.digest() });
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(Scanned { chunks, last })
}

/// What is in a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RangeDigest {
    /// How many rows.
    pub(crate) rows: u64,
    /// SHA-256 over the encoded rows, in the order of their keys.
    pub(crate) digest: [u8; 32],
}

/// Digests the rows with keys in (`after`, `through`]; `None` is from the first, or to the last and beyond.
///
/// # Errors
/// [`ReadError`].
pub(crate) fn digest_range(
    connection: &Connection,
    ordered: &Ordered,
    after: Option<&[u8]>,
    through: Option<&[u8]>,
    cancelled: &AtomicBool,
) -> Result<RangeDigest, ReadError> {
    let mut hash = Sha256::new();
    let mut rows = 0;
    walk::<ReadError>(connection, ordered, (after, through), cancelled, |chunk| {
        hash.update(chunk.bytes());
        rows += u64::from(chunk.rows);
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(RangeDigest { rows, digest: hash.finalize().into() })
}

#[cfg(test)]
mod tests;

//! The stream that carries deltas, snapshots and repairs: what is in it, and how it is written and read.
//!
//! ```text
//! stream  = "HSY2" frame*
//! frame   = u32 length of what follows | u8 flags (bit 0: zstd) | payload, 1 MiB and the row that reaches it at most
//! payload = one Frame: its number, then its fields; integers little endian, counts and texts' lengths varints
//! ```
//!
//! The frames of a stream, in this order (the reader insists):
//!
//! ```text
//! Header
//! (Rows | Deletes)*                      changes by key; none in a snapshot
//! (Whole (Rows? Chunk)*)*                each table at most once
//! (Range Rows*)*                         repairs
//! Check*                                 to be compared with the result of all that
//! End
//! ```
//!
//! [`FrameWriter`] packs and hashes, [`FrameReader`] is fed bytes as they come and gives frames. What the reader gives is in order and
//! within its bounds, each [`Frame::Chunk`] after rows has been compared with them, and once [`Frame::End`] has been given, the SHA-256
//! of all before it was right. *Until then nothing may be committed or used.* That is the SHA-256 over every byte of every frame but the
//! rows of whole tables, for which the SHA-256 in the [`Frame::Chunk`] behind them stands: no byte is hashed twice, which on both ends
//! was a fifth of a first snapshot's work. That the rows within a frame are well-formed
//! is found where they are decoded ([`crate::value::Rows`]), for they are decoded once.

mod reader;
mod writer;

use bytes::Bytes;

use crate::{
    capture::Position,
    value::{MAX_ROW, Malformed, Reader, put_varint},
};

pub(crate) use reader::{FrameError, FrameReader};
pub(crate) use writer::{FrameWriter, WriteError};

/// How a stream begins; the last digit is the version.
pub(crate) const MAGIC: [u8; 4] = *b"HSY2";

/// A writer ends a payload with the row that brings it to 1 MiB.
pub(crate) const PAYLOAD: usize = 1 << 20;

/// Largest payload that is accepted: a full one and a row of [`MAX_ROW`].
pub(crate) const MAX_PAYLOAD: usize = PAYLOAD + MAX_ROW + 1024;

/// Before the rows in a payload: the frame's number, the table's, and their count.
pub(crate) const ROWS_HEAD: usize = 1 + 2 + 4;

/// Most tables in a stream; `wire` says the same of a publication.
pub(crate) const MAX_TABLES: usize = crate::filter::MAX_TABLES;

/// Most checks in a stream: their answer is small enough for a message.
pub(crate) const MAX_CHECKS: usize = 1_024;

/// An encoded key ([`crate::value`]), exactly as many values as the table's key has.
pub(crate) type KeyBytes = Bytes;

/// One part of a stream.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Frame {
    /// The first one.
    Header(Header),
    /// From here on the table's rows replace all it has.
    Whole {
        /// Its place in [`Header::tables`], as in all the frames.
        table: u16,
    },
    /// Encoded rows. Changes: to be put in place of the rows with the same keys. In a whole table: one chunk of it, in key order.
    /// After a range: its content.
    Rows {
        /// The table.
        table: u16,
        /// The rows.
        rows: Bytes,
        /// How many; at least one.
        count: u32,
    },
    /// Encoded keys, of rows to be deleted if they are there.
    Deletes {
        /// The table.
        table: u16,
        /// The keys.
        keys: Bytes,
        /// How many; at least one.
        count: u32,
    },
    /// Ends a chunk of a whole table. Without rows before it, the subscriber has said that it has a chunk with this digest.
    Chunk {
        /// The table.
        table: u16,
        /// How many rows the chunk has.
        rows: u32,
        /// SHA-256 over its encoded rows.
        digest: [u8; 32],
    },
    /// Delete the rows with keys in (`after`, `through`]; the rows that follow, up to the next frame of another kind, are their
    /// content now.
    Range {
        /// The table.
        table: u16,
        /// `None`: from the first row on.
        after: Option<KeyBytes>,
        /// `None`: to the last row and beyond.
        through: Option<KeyBytes>,
    },
    /// Compare the rows with keys in (`after`, `through`].
    Check {
        /// What the answer calls it.
        id: u32,
        /// The table.
        table: u16,
        /// `None`: from the first row on.
        after: Option<KeyBytes>,
        /// `None`: to the last row and beyond.
        through: Option<KeyBytes>,
        /// How many there should be.
        rows: u64,
        /// SHA-256 over the encoded rows.
        digest: [u8; 32],
    },
    /// The last one: what came before is complete.
    End {
        /// Rows and keys in the stream.
        rows: u64,
        /// SHA-256 over every byte of the stream before this frame.
        sha256: [u8; 32],
    },
}

/// What a stream is about.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Header {
    /// The publication.
    pub(crate) publication: String,
    /// The position that it applies to, and to no other. `None`: a snapshot.
    pub(crate) base: Option<Position>,
    /// The position after it.
    pub(crate) to: Position,
    /// What is published ([`crate::filter::Filter::fingerprint`]).
    pub(crate) fingerprint: [u8; 32],
    /// When it was made, in milliseconds since 1970.
    pub(crate) made_at: u64,
    /// How the BO's file stores text. A new replica's file does the same (`PRAGMA encoding`), for in it `BINARY` compares those
    /// bytes: the order of keys, and with it every range, depends on it.
    pub(crate) encoding: Encoding,
    /// Whether `tables` are all that is published, so that the replica drops others. Otherwise they are those that the stream
    /// mentions, and nothing else about the set of tables has changed.
    pub(crate) complete: bool,
    /// Tables, at most [`MAX_TABLES`].
    pub(crate) tables: Vec<TableHead>,
}

/// How a file stores text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encoding {
    /// What nearly all files use.
    Utf8,
    /// UTF-16, little endian.
    Utf16le,
    /// UTF-16, big endian.
    Utf16be,
}

impl Encoding {
    /// As `PRAGMA encoding` writes it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Encoding::Utf8 => "UTF-8",
            Encoding::Utf16le => "UTF-16le",
            Encoding::Utf16be => "UTF-16be",
        }
    }

    /// From what `PRAGMA encoding` says.
    pub(crate) fn from_name(name: &str) -> Option<Encoding> {
        [Encoding::Utf8, Encoding::Utf16le, Encoding::Utf16be].into_iter().find(|it| it.name().eq_ignore_ascii_case(name))
    }
}

/// A table in a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TableHead {
    /// Its name.
    pub(crate) name: String,
    /// The columns of its rows, in order.
    pub(crate) columns: Vec<String>,
    /// Where the key's columns stand among them, in the key's order; at least one.
    pub(crate) key: Vec<u16>,
    /// For each column of the key, its collation where that is not the column's own.
    pub(crate) collations: Vec<Option<String>>,
    /// `CREATE TABLE`, then `CREATE INDEX`…; empty when the replica has the table with this very fingerprint.
    pub(crate) ddl: Vec<String>,
    /// Changes with its statements, its rows' condition and its key ([`crate::build::table_fingerprint`]).
    pub(crate) fingerprint: [u8; 16],
}

/// Set in a frame's flags when its payload is compressed.
const ZSTD: u8 = 1;

const HEADER: u8 = 1;
const WHOLE: u8 = 2;
const ROWS: u8 = 3;
const DELETES: u8 = 4;
const CHUNK: u8 = 5;
const RANGE: u8 = 6;
const CHECK: u8 = 7;
const END: u8 = 8;

/// Fills the head of a payload that has [`ROWS_HEAD`] bytes of room before its rows or keys.
pub(crate) fn put_rows_head(payload: &mut [u8], deletes: bool, table: u16, count: u32) {
    payload[0] = if deletes { DELETES } else { ROWS };
    payload[1..3].copy_from_slice(&table.to_le_bytes());
    payload[3..ROWS_HEAD].copy_from_slice(&count.to_le_bytes());
}

fn put_text(into: &mut Vec<u8>, text: &str) {
    put_varint(into, text.len() as u64);
    into.extend_from_slice(text.as_bytes());
}

fn put_position(into: &mut Vec<u8>, position: &Position) {
    into.extend_from_slice(&position.epoch);
    into.extend_from_slice(&position.seq.to_le_bytes());
    into.extend_from_slice(&position.stamp.to_le_bytes());
}

/// The length and one more, so that no key and an empty one differ.
fn put_bound(into: &mut Vec<u8>, key: Option<&KeyBytes>) {
    put_varint(into, key.map_or(0, |key| key.len() as u64 + 1));
    into.extend_from_slice(key.map_or(&[], |key| key));
}

impl Frame {
    /// Appends the payload.
    pub(crate) fn encode(&self, into: &mut Vec<u8>) {
        match self {
            Frame::Header(header) => {
                into.push(HEADER);
                header.encode(into);
            }
            Frame::Whole { table } => {
                into.push(WHOLE);
                into.extend_from_slice(&table.to_le_bytes());
            }
            Frame::Rows { table, rows: bytes, count } | Frame::Deletes { table, keys: bytes, count } => {
                let mut head = [0; ROWS_HEAD];
                put_rows_head(&mut head, matches!(self, Frame::Deletes { .. }), *table, *count);
                into.extend_from_slice(&head);
                into.extend_from_slice(bytes);
            }
            Frame::Chunk { table, rows, digest } => {
                into.push(CHUNK);
                into.extend_from_slice(&table.to_le_bytes());
                into.extend_from_slice(&rows.to_le_bytes());
                into.extend_from_slice(digest);
            }
            Frame::Range { table, after, through } => {
                into.push(RANGE);
                into.extend_from_slice(&table.to_le_bytes());
                put_bound(into, after.as_ref());
                put_bound(into, through.as_ref());
            }
            Frame::Check { id, table, after, through, rows, digest } => {
                into.push(CHECK);
                into.extend_from_slice(&id.to_le_bytes());
                into.extend_from_slice(&table.to_le_bytes());
                put_bound(into, after.as_ref());
                put_bound(into, through.as_ref());
                into.extend_from_slice(&rows.to_le_bytes());
                into.extend_from_slice(digest);
            }
            Frame::End { rows, sha256 } => {
                into.push(END);
                into.extend_from_slice(&rows.to_le_bytes());
                into.extend_from_slice(sha256);
            }
        }
    }

    /// Reads a payload. Rows, keys and bounds borrow its memory.
    ///
    /// # Errors
    /// [`FrameError`]: no encoder writes this.
    pub(crate) fn decode(payload: &Bytes) -> Result<Frame, FrameError> {
        let mut reader = Reader::new(payload);
        let frame = Frame::read(&mut reader, payload)?;
        if reader.is_empty() { Ok(frame) } else { Err(Malformed::LeftOver.into()) }
    }

    fn read(reader: &mut Reader<'_>, payload: &Bytes) -> Result<Frame, FrameError> {
        let number = reader.byte()?;
        if number == HEADER {
            return Header::read(reader).map(Frame::Header);
        }
        if number == END {
            return Ok(Frame::End { rows: u64::from_le_bytes(reader.array()?), sha256: reader.array()? });
        }
        let id = if number == CHECK { u32::from_le_bytes(reader.array()?) } else { 0 };
        let table = u16::from_le_bytes(reader.array()?);
        Ok(match number {
            WHOLE => Frame::Whole { table },
            ROWS | DELETES => {
                let count = u32::from_le_bytes(reader.array()?);
                let bytes = payload.slice_ref(reader.take(reader.rest().len())?);
                // A value has a byte or more, and a row or key a value or more.
                if count == 0 || count as usize > bytes.len() {
                    return Err(Malformed::Count.into());
                }
                if number == ROWS { Frame::Rows { table, rows: bytes, count } } else { Frame::Deletes { table, keys: bytes, count } }
            }
            CHUNK => Frame::Chunk { table, rows: u32::from_le_bytes(reader.array()?), digest: reader.array()? },
            RANGE => Frame::Range { table, after: bound(reader, payload)?, through: bound(reader, payload)? },
            CHECK => Frame::Check {
                id,
                table,
                after: bound(reader, payload)?,
                through: bound(reader, payload)?,
                rows: u64::from_le_bytes(reader.array()?),
                digest: reader.array()?,
            },
            other => return Err(FrameError::Unknown(other)),
        })
    }
}

fn bound(reader: &mut Reader<'_>, payload: &Bytes) -> Result<Option<KeyBytes>, Malformed> {
    let Some(length) = reader.varint()?.checked_sub(1) else { return Ok(None) };
    let key = reader.take(usize::try_from(length).map_err(|_| Malformed::Cut)?)?;
    Ok(Some(payload.slice_ref(key)))
}

fn text(reader: &mut Reader<'_>) -> Result<String, FrameError> {
    let length = reader.length()?;
    let bytes = reader.take(length)?;
    Ok(std::str::from_utf8(bytes).map_err(|_| FrameError::Text)?.to_owned())
}

/// `count` things of at least a byte each: the count is at most what is there, and nothing is reserved for it.
fn list<T>(reader: &mut Reader<'_>, mut one: impl FnMut(&mut Reader<'_>) -> Result<T, FrameError>) -> Result<Vec<T>, FrameError> {
    let count = reader.length()?;
    (0..count).map(|_| one(reader)).collect()
}

fn position(reader: &mut Reader<'_>) -> Result<Position, Malformed> {
    Ok(Position { epoch: reader.array()?, seq: i64::from_le_bytes(reader.array()?), stamp: i64::from_le_bytes(reader.array()?) })
}

fn flag(reader: &mut Reader<'_>) -> Result<bool, Malformed> {
    match reader.byte()? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Malformed::Number),
    }
}

impl Header {
    fn encode(&self, into: &mut Vec<u8>) {
        put_text(into, &self.publication);
        into.push(u8::from(self.base.is_some()));
        if let Some(base) = &self.base {
            put_position(into, base);
        }
        put_position(into, &self.to);
        into.extend_from_slice(&self.fingerprint);
        into.extend_from_slice(&self.made_at.to_le_bytes());
        into.push(self.encoding as u8);
        into.push(u8::from(self.complete));
        put_varint(into, self.tables.len() as u64);
        for table in &self.tables {
            put_text(into, &table.name);
            put_varint(into, table.columns.len() as u64);
            table.columns.iter().for_each(|column| put_text(into, column));
            put_varint(into, table.key.len() as u64);
            for (place, position) in table.key.iter().enumerate() {
                into.extend_from_slice(&position.to_le_bytes());
                // No collation has an empty name.
                put_text(into, table.collations.get(place).and_then(Option::as_deref).unwrap_or_default());
            }
            put_varint(into, table.ddl.len() as u64);
            table.ddl.iter().for_each(|sql| put_text(into, sql));
            into.extend_from_slice(&table.fingerprint);
        }
    }

    fn read(reader: &mut Reader<'_>) -> Result<Header, FrameError> {
        Ok(Header {
            publication: text(reader)?,
            base: if flag(reader)? { Some(position(reader)?) } else { None },
            to: position(reader)?,
            fingerprint: reader.array()?,
            made_at: u64::from_le_bytes(reader.array()?),
            encoding: match reader.byte()? {
                0 => Encoding::Utf8,
                1 => Encoding::Utf16le,
                2 => Encoding::Utf16be,
                _ => return Err(Malformed::Number.into()),
            },
            complete: flag(reader)?,
            tables: list(reader, TableHead::read)?,
        })
    }
}

impl TableHead {
    fn read(reader: &mut Reader<'_>) -> Result<TableHead, FrameError> {
        let name = text(reader)?;
        let columns = list(reader, text)?;
        let mut key = Vec::new();
        let mut collations = Vec::new();
        for _ in 0..reader.length()? {
            let position = u16::from_le_bytes(reader.array()?);
            if usize::from(position) >= columns.len() {
                return Err(FrameError::Key);
            }
            key.push(position);
            collations.push(Some(text(reader)?).filter(|name| !name.is_empty()));
        }
        if key.is_empty() {
            return Err(FrameError::Key);
        }
        Ok(TableHead { name, columns, key, collations, ddl: list(reader, text)?, fingerprint: reader.array()? })
    }
}

#[cfg(test)]
mod tests;

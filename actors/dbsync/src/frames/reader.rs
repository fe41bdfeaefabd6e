//! Unpacking frames, from bytes that nobody vouches for.

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use zstd::bulk::Decompressor;

use super::{Frame, Header, MAGIC, MAX_CHECKS, MAX_PAYLOAD, MAX_TABLES, ZSTD};
use crate::value::{Malformed, key_values};

/// Before a payload: its length and the flags.
const HEAD: usize = 5;

/// Why a stream is not one. Nothing of it may be used; what the sender wants to say it must say anew.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FrameError {
    /// It does not begin as one of this version does.
    #[error("not a stream of this version")]
    Magic,
    /// A frame announces more than any may have, or nothing.
    #[error("a frame of {0} bytes is not acceptable")]
    Length(u64),
    /// A flag or frame of another version.
    #[error("unknown flag or frame {0}")]
    Unknown(u8),
    /// What is compressed is not, or not as announced.
    #[error("a compressed frame cannot be unpacked")]
    Packed,
    /// No memory to unpack.
    #[error("cannot unpack")]
    Unpack(#[source] std::io::Error),
    /// A frame is not as any writer writes it.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// A name or statement is not UTF-8.
    #[error("a name or statement is not text")]
    Text,
    /// A table has no key, or its key is not among its columns.
    #[error("a table's key is not among its columns")]
    Key,
    /// More tables or checks than a stream may have.
    #[error("more tables or checks than a stream may have")]
    TooMany,
    /// A frame where it may not stand.
    #[error("a frame is not where it may stand")]
    Order,
    /// Rows are not those of their digest.
    #[error("rows do not match their digest")]
    Digest,
    /// It is not what was sent.
    #[error("the stream does not match its SHA-256")]
    Sum,
    /// Bytes after the end.
    #[error("bytes after the end of the stream")]
    Trailing,
    /// It ended before its end.
    #[error("the stream is cut off")]
    Truncated,
}

/// Where in the order of frames the reader is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Start,
    Changes,
    Wholes,
    Ranges,
    Checks,
    Ended,
}

/// Reads one stream. Holds one frame at a time, never more than was both announced and received.
pub(crate) struct FrameReader {
    unpacker: Decompressor<'static>,
    hash: Sha256,
    /// What is there of the next frame, with its head.
    pub(super) buffer: Vec<u8>,
    /// Whether [`MAGIC`] was taken.
    begun: bool,
    order: Order,
}

/// Insists on the order of frames and on their tables, keys and digests.
#[derive(Debug)]
struct Order {
    part: Part,
    tables: Vec<Shape>,
    delta: bool,
    /// The table of the whole section or range.
    section: Option<u16>,
    /// The digest and number of the rows that wait for their chunk.
    pending: Option<([u8; 32], u32)>,
    rows: u64,
    checks: usize,
}

#[derive(Debug)]
struct Shape {
    key: usize,
    whole: bool,
}

impl std::fmt::Debug for FrameReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FrameReader").field("order", &self.order).field("buffered", &self.buffer.len()).finish_non_exhaustive()
    }
}

impl FrameReader {
    /// Waits for the first byte.
    ///
    /// # Errors
    /// [`FrameError::Unpack`]: no memory for the decompressor.
    pub(crate) fn new() -> Result<FrameReader, FrameError> {
        Ok(FrameReader {
            unpacker: Decompressor::new().map_err(FrameError::Unpack)?,
            hash: Sha256::new(),
            buffer: Vec::new(),
            begun: false,
            order: Order { part: Part::Start, tables: Vec::new(), delta: false, section: None, pending: None, rows: 0, checks: 0 },
        })
    }

    /// Takes from the front of `input` what the next frame needs, and gives the frame once it is there. `None`: `input` is used up.
    ///
    /// # Errors
    /// [`FrameError`]; then the reader is of no more use.
    pub(crate) fn feed(&mut self, input: &mut &[u8]) -> Result<Option<Frame>, FrameError> {
        if self.order.part == Part::Ended {
            return if input.is_empty() { Ok(None) } else { Err(FrameError::Trailing) };
        }
        if !self.begun {
            if !self.fill(input, MAGIC.len()) {
                return if MAGIC.starts_with(&self.buffer) { Ok(None) } else { Err(FrameError::Magic) };
            }
            if self.buffer != MAGIC {
                return Err(FrameError::Magic);
            }
            self.hash.update(MAGIC);
            self.buffer.clear();
            self.begun = true;
        }
        if !self.fill(input, HEAD) {
            return Ok(None);
        }
        let [a, b, c, d, flags] = self.buffer[..HEAD] else { return Ok(None) };
        let length = u32::from_le_bytes([a, b, c, d]) as usize;
        if !(2..=MAX_PAYLOAD + 1).contains(&length) {
            return Err(FrameError::Length(length as u64));
        }
        if flags & !ZSTD != 0 {
            return Err(FrameError::Unknown(flags));
        }
        if !self.fill(input, HEAD - 1 + length) {
            return Ok(None);
        }
        let packed = std::mem::take(&mut self.buffer);
        let payload = if flags & ZSTD != 0 { self.unpack(&packed[HEAD..])? } else { Bytes::copy_from_slice(&packed[HEAD..]) };
        let frame = Frame::decode(&payload)?;
        self.order.check(&frame)?;
        if let Frame::End { sha256, .. } = &frame
            && self.hash.clone().finalize()[..] != sha256[..]
        {
            return Err(FrameError::Sum);
        }
        // Rows that their digest stands for, which is the next frame.
        if self.order.pending.is_none() {
            self.hash.update(&packed);
        }
        self.buffer = packed;
        self.buffer.clear();
        // A large row's memory is not kept for small ones.
        self.buffer.shrink_to(2 * super::PAYLOAD);
        Ok(Some(frame))
    }

    #[cfg(test)]
    /// Whether the end was read, and everything before it was as it was sent.
    pub(crate) fn ended(&self) -> bool {
        self.order.part == Part::Ended
    }

    #[cfg(test)]
    /// Called when there is no more input.
    ///
    /// # Errors
    /// [`FrameError::Truncated`] unless [`FrameReader::ended`].
    pub(crate) fn finish(self) -> Result<(), FrameError> {
        if self.ended() { Ok(()) } else { Err(FrameError::Truncated) }
    }

    /// Moves input into the buffer until that has `size` bytes; `false` when there was not enough. The buffer grows with what has
    /// come, not with what was announced.
    fn fill(&mut self, input: &mut &[u8], size: usize) -> bool {
        let missing = size.saturating_sub(self.buffer.len());
        let (taken, rest) = input.split_at(missing.min(input.len()));
        self.buffer.extend_from_slice(taken);
        *input = rest;
        taken.len() == missing
    }

    fn unpack(&mut self, packed: &[u8]) -> Result<Bytes, FrameError> {
        let announced = zstd::zstd_safe::get_frame_content_size(packed).ok().flatten().ok_or(FrameError::Packed)?;
        let size = usize::try_from(announced).ok().filter(|size| *size <= MAX_PAYLOAD).ok_or(FrameError::Length(announced))?;
        let mut payload = Vec::with_capacity(size);
        // Its capacity is all that is written to, whatever the frame holds.
        let written = self.unpacker.decompress_to_buffer(packed, &mut payload).map_err(|_| FrameError::Packed)?;
        if written == size { Ok(payload.into()) } else { Err(FrameError::Packed) }
    }
}

impl Order {
    fn check(&mut self, frame: &Frame) -> Result<(), FrameError> {
        match frame {
            Frame::Header(header) => {
                if self.part != Part::Start {
                    return Err(FrameError::Order);
                }
                self.begin(header)?;
            }
            Frame::Whole { table } => {
                self.advance(Part::Wholes)?;
                let shape = self.table(*table)?;
                if std::mem::replace(&mut shape.whole, true) {
                    return Err(FrameError::Order);
                }
                self.section = Some(*table);
            }
            Frame::Rows { table, rows, count } => {
                self.table(*table)?;
                self.rows = self.rows.saturating_add(u64::from(*count));
                match self.part {
                    Part::Changes if self.delta => {}
                    Part::Wholes if self.section == Some(*table) && self.pending.is_none() => {
                        self.pending = Some((Sha256::digest(rows).into(), *count));
                    }
                    Part::Ranges if self.section == Some(*table) => {}
                    _ => return Err(FrameError::Order),
                }
            }
            Frame::Deletes { table, count, .. } => {
                self.table(*table)?;
                self.rows = self.rows.saturating_add(u64::from(*count));
                if self.part != Part::Changes || !self.delta {
                    return Err(FrameError::Order);
                }
            }
            Frame::Chunk { table, rows, digest } => {
                if self.part != Part::Wholes || self.section != Some(*table) {
                    return Err(FrameError::Order);
                }
                if self.pending.take().is_some_and(|pending| pending != (*digest, *rows)) {
                    return Err(FrameError::Digest);
                }
            }
            Frame::Range { table, after, through } => {
                self.advance(Part::Ranges)?;
                self.bounds(*table, after.as_deref(), through.as_deref())?;
                self.section = Some(*table);
            }
            Frame::Check { table, after, through, .. } => {
                self.advance(Part::Checks)?;
                self.bounds(*table, after.as_deref(), through.as_deref())?;
                self.checks += 1;
                if self.checks > MAX_CHECKS {
                    return Err(FrameError::TooMany);
                }
            }
            Frame::End { rows, .. } => {
                self.advance(Part::Ended)?;
                if *rows != self.rows {
                    return Err(Malformed::Count.into());
                }
            }
        }
        Ok(())
    }

    fn begin(&mut self, header: &Header) -> Result<(), FrameError> {
        if header.tables.len() > MAX_TABLES {
            return Err(FrameError::TooMany);
        }
        self.tables = header.tables.iter().map(|table| Shape { key: table.key.len(), whole: false }).collect();
        self.delta = header.base.is_some();
        self.part = Part::Changes;
        Ok(())
    }

    fn table(&mut self, table: u16) -> Result<&mut Shape, FrameError> {
        self.tables.get_mut(usize::from(table)).ok_or(FrameError::Order)
    }

    fn bounds(&mut self, table: u16, after: Option<&[u8]>, through: Option<&[u8]>) -> Result<(), FrameError> {
        let width = self.table(table)?.key;
        for key in [after, through].into_iter().flatten() {
            key_values(key, width)?;
        }
        Ok(())
    }

    /// Begins `part`, or goes on with it.
    fn advance(&mut self, part: Part) -> Result<(), FrameError> {
        if self.part == Part::Start || self.part > part || self.pending.is_some() {
            return Err(FrameError::Order);
        }
        self.part = part;
        self.section = None;
        Ok(())
    }
}

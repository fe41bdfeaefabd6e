//! Packing frames.

use std::io::Cursor;

use sha2::{Digest as _, Sha256};
use zstd::bulk::Compressor;

use super::{Frame, MAGIC, MAX_PAYLOAD, ZSTD};

/// zstd's level, chosen by measurement (`build_speed`).
const LEVEL: i32 = 1;
/// Smaller payloads are not worth a try.
const LEAST: usize = 96;
/// After payloads that would not shrink, this many at most go out untried before the next try.
const MAX_SKIP: u32 = 32;
/// What a buffer keeps for the next frame; one that grew for a large row gives the rest back.
const KEEP: usize = 2 << 20;

/// Why a frame was not written. The stream is of no more use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WriteError {
    /// No reader would accept it.
    #[error("a frame of {0} bytes is larger than any reader accepts")]
    TooLarge(usize),
    /// The compressor failed, as it does without memory.
    #[error("cannot compress")]
    Compress(#[source] std::io::Error),
}

/// Writes the frames of one stream. What it gives is to be sent in the order in which it was given.
pub(crate) struct FrameWriter {
    compressor: Compressor<'static>,
    hash: Sha256,
    /// Whether rows are a whole table's, whose digest follows them.
    whole: bool,
    payload: Vec<u8>,
    out: Vec<u8>,
    rows: u64,
    bytes: u64,
    /// How many payloads to leave as they are before the next try, and how many after the next failure.
    skip: u32,
    patience: u32,
}

impl std::fmt::Debug for FrameWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FrameWriter").field("rows", &self.rows).field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

impl FrameWriter {
    /// Begins a stream.
    ///
    /// # Errors
    /// [`WriteError::Compress`]: no memory for the compressor.
    pub(crate) fn new() -> Result<FrameWriter, WriteError> {
        FrameWriter::with_level(LEVEL)
    }

    /// As [`FrameWriter::new`], with zstd's level.
    pub(crate) fn with_level(level: i32) -> Result<FrameWriter, WriteError> {
        Ok(FrameWriter {
            compressor: Compressor::new(level).map_err(WriteError::Compress)?,
            hash: Sha256::new(),
            whole: false,
            payload: Vec::new(),
            out: Vec::new(),
            rows: 0,
            bytes: 0,
            skip: 0,
            patience: 1,
        })
    }

    /// Begins another stream, with the memory and the compressor of the one before.
    pub(crate) fn begin_again(&mut self) {
        self.hash = Sha256::new();
        self.whole = false;
        (self.rows, self.bytes) = (0, 0);
        (self.skip, self.patience) = (0, 1);
    }

    /// Bytes given so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Rows and keys written so far.
    pub(crate) fn rows(&self) -> u64 {
        self.rows
    }

    /// The bytes of `frame`; with the first one, those that every stream begins with. Valid until the next call.
    ///
    /// # Errors
    /// [`WriteError`].
    pub(crate) fn frame(&mut self, frame: &Frame) -> Result<&[u8], WriteError> {
        let mut payload = std::mem::take(&mut self.payload);
        payload.clear();
        frame.encode(&mut payload);
        let rows = match frame {
            Frame::Rows { count, .. } | Frame::Deletes { count, .. } => Some(*count),
            _ => None,
        };
        self.whole = match frame {
            Frame::Whole { .. } => true,
            Frame::Rows { .. } | Frame::Chunk { .. } => self.whole,
            _ => false,
        };
        self.rows += u64::from(rows.unwrap_or(0));
        let packed = self.pack(&payload, rows.is_none() || !self.whole);
        payload.shrink_to(KEEP);
        self.payload = payload;
        packed?;
        Ok(&self.out)
    }

    /// As [`FrameWriter::frame`], of a payload that [`super::put_rows_head`] has completed: nothing is copied but the packed bytes.
    ///
    /// # Errors
    /// [`WriteError`].
    pub(crate) fn rows_payload(&mut self, payload: &[u8], count: u32) -> Result<&[u8], WriteError> {
        self.rows += u64::from(count);
        self.pack(payload, !self.whole)?;
        Ok(&self.out)
    }

    /// The last frame.
    ///
    /// # Errors
    /// [`WriteError`].
    pub(crate) fn end(&mut self) -> Result<&[u8], WriteError> {
        let end = Frame::End { rows: self.rows, sha256: self.hash.clone().finalize().into() };
        self.frame(&end)
    }

    fn pack(&mut self, payload: &[u8], hashed: bool) -> Result<(), WriteError> {
        if payload.len() > MAX_PAYLOAD {
            return Err(WriteError::TooLarge(payload.len()));
        }
        self.out.clear();
        self.out.shrink_to(KEEP);
        if self.bytes == 0 {
            self.out.extend_from_slice(&MAGIC);
        }
        let head = self.out.len();
        self.out.extend_from_slice(&[0; 5]);
        let body = self.out.len();
        let shrunk = payload.len() >= LEAST && self.shrink(payload)?;
        if !shrunk {
            self.out.truncate(body);
            self.out.extend_from_slice(payload);
        }
        let length = u32::try_from(self.out.len() - head - 4).map_err(|_| WriteError::TooLarge(payload.len()))?;
        self.out[head..head + 4].copy_from_slice(&length.to_le_bytes());
        self.out[head + 4] = if shrunk { ZSTD } else { 0 };
        if hashed {
            self.hash.update(&self.out);
        }
        self.bytes += self.out.len() as u64;
        Ok(())
    }

    /// Appends the compressed payload; `false` when it is not worth it.
    fn shrink(&mut self, payload: &[u8]) -> Result<bool, WriteError> {
        if self.skip > 0 {
            self.skip -= 1;
            return Ok(false);
        }
        let body = self.out.len();
        self.out.reserve(zstd::zstd_safe::compress_bound(payload.len()));
        let mut target = Cursor::new(std::mem::take(&mut self.out));
        target.set_position(body as u64);
        let packed = self.compressor.compress_to_buffer(payload, &mut target);
        self.out = target.into_inner();
        let length = packed.map_err(WriteError::Compress)?;
        // The FO unpacks every frame; below 5 % it would do so for nothing.
        let shrunk = length <= payload.len() - payload.len() / 20;
        if shrunk {
            self.patience = 1;
        } else {
            self.skip = self.patience;
            self.patience = (self.patience * 2).min(MAX_SKIP);
        }
        Ok(shrunk)
    }
}

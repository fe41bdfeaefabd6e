//! The frames of a stream (RFC 9114 §7.1), as they come from a host.
//!
//! h3 0.0.8 keeps every frame but DATA until it has all of it, however long, in the very packets that it came in, and takes an empty
//! DATA frame for a body's end. So it is shown heads, whole and of their own size, and frames of the control stream; bodies are read
//! here. What a host may announce, and how much of it may carry nothing, is bounded.
//!
//! Pure: no I/O.

use bytes::{Buf as _, Bytes, BytesMut};
use h3::error::Code;

use crate::dial::MAX_HEAD;

/// Frames of one response besides those that carry a body: interim heads, the head, trailers, and what is there to be ignored.
const FRAMES: u32 = 128;
/// Their bytes: as many as four of the largest heads.
const BYTES: u64 = 4 * MAX_HEAD as u64;
/// Longest frame of the control stream: settings are a few dozen bytes, all others fewer.
const CONTROL_FRAME: u64 = 4 * 1024;
/// Frames of the control stream in a connection's life: two or three that matter, and some that are there to be ignored.
const CONTROL_FRAMES: u32 = 1024;

const DATA: u64 = 0x0;
const HEADERS: u64 = 0x1;
const PUSH_PROMISE: u64 = 0x5;
const GOAWAY: u64 = 0x7;

/// What a host did that ends its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Violation {
    #[error("a head or another frame is larger than is read")]
    TooLarge,
    #[error("too many frames or streams carry nothing")]
    Flood,
    #[error("a stream ended within a frame")]
    Truncated,
    #[error("a frame that has no place there")]
    Unexpected,
    #[error("a push that nobody asked for")]
    Push,
}

impl Violation {
    /// RFC 9114 §8.1.
    pub(super) const fn code(self) -> Code {
        match self {
            Self::TooLarge | Self::Flood => Code::H3_EXCESSIVE_LOAD,
            Self::Truncated => Code::H3_FRAME_ERROR,
            Self::Unexpected => Code::H3_FRAME_UNEXPECTED,
            Self::Push => Code::H3_ID_ERROR,
        }
    }
}

/// What a stream is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stream {
    Response,
    /// The host's control stream, behind its type.
    Control,
}

/// A part of a stream that means something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// A frame, whole: of a response a head.
    Frame(Bytes),
    /// The host takes no request from this stream's number on.
    Goaway { frame: Bytes, first: u64 },
    /// Of a body.
    Data(Bytes),
}

/// How far a response is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Head,
    Body,
    End,
}

/// Where one is in a stream.
#[derive(Debug)]
enum State {
    /// In a frame's header, of which that much has come.
    Header {
        bytes: [u8; 16],
        len: usize,
    },
    Data {
        left: u64,
    },
    /// In a frame that is handed on when it is whole; `header` is the length of its header.
    Held {
        kind: u64,
        header: usize,
        bytes: BytesMut,
        left: usize,
    },
    Skipped {
        left: u64,
    },
}

const BETWEEN: State = State::Header { bytes: [0; 16], len: 0 };

/// The frames of one stream.
#[derive(Debug)]
pub(super) struct Frames {
    stream: Stream,
    state: State,
    at: At,
    frames: u32,
    bytes: u64,
}

impl Frames {
    pub(super) const fn new(stream: Stream) -> Self {
        Self { stream, state: BETWEEN, at: At::Head, frames: 0, bytes: 0 }
    }

    /// The last head was no interim one: what follows is the body.
    pub(super) const fn body_follows(&mut self) {
        self.at = At::Body;
    }

    /// Takes from the front of `chunk`, all of it unless a piece comes out.
    ///
    /// # Errors
    /// The connection is to be ended.
    pub(super) fn next(&mut self, chunk: &mut Bytes) -> Result<Option<Piece>, Violation> {
        while !chunk.is_empty() {
            match &mut self.state {
                State::Header { bytes, len } => {
                    bytes[*len] = chunk.get_u8();
                    *len += 1;
                    let (bytes, len) = (*bytes, *len);
                    let header = &bytes[..len];
                    let Some((kind, size)) = varint(header) else { continue };
                    let Some((length, _)) = varint(&header[size..]) else { continue };
                    self.state = self.begin(kind, length, header)?;
                    if let Some(piece) = self.held()? {
                        return Ok(Some(piece));
                    }
                }
                State::Data { left } => {
                    let piece = chunk.split_to(upto(*left, chunk.len()));
                    *left -= piece.len() as u64;
                    if *left == 0 {
                        self.state = BETWEEN;
                    }
                    return Ok(Some(Piece::Data(piece)));
                }
                State::Held { bytes, left, .. } => {
                    let some = chunk.split_to(chunk.len().min(*left));
                    bytes.extend_from_slice(&some);
                    *left -= some.len();
                    if let Some(piece) = self.held()? {
                        return Ok(Some(piece));
                    }
                }
                State::Skipped { left } => {
                    let some = upto(*left, chunk.len());
                    chunk.advance(some);
                    *left -= some as u64;
                    if *left == 0 {
                        self.state = BETWEEN;
                    }
                }
            }
        }
        Ok(None)
    }

    /// The stream ends here.
    pub(super) const fn end(&self) -> Result<(), Violation> {
        if matches!(self.state, State::Header { len: 0, .. }) { Ok(()) } else { Err(Violation::Truncated) }
    }

    fn begin(&mut self, kind: u64, length: u64, header: &[u8]) -> Result<State, Violation> {
        if kind == DATA && length > 0 && self.stream == Stream::Response {
            return if self.at == At::Body { Ok(State::Data { left: length }) } else { Err(Violation::Unexpected) };
        }
        self.frames += 1;
        self.bytes = self.bytes.saturating_add(length);
        let (frames, bytes, longest) = match self.stream {
            Stream::Response => (FRAMES, BYTES, MAX_HEAD as u64),
            Stream::Control => (CONTROL_FRAMES, u64::MAX, CONTROL_FRAME),
        };
        if length > longest {
            return Err(Violation::TooLarge);
        }
        if self.frames > frames || self.bytes > bytes {
            return Err(Violation::Flood);
        }
        let left = length as usize;
        let held = || State::Held { kind, header: header.len(), bytes: BytesMut::from(header), left };
        let skipped = if length == 0 { BETWEEN } else { State::Skipped { left: length } };
        Ok(match (self.stream, kind) {
            (Stream::Response, DATA) => skipped,
            (Stream::Response, HEADERS) => match self.at {
                At::Head => held(),
                // Trailers, which are for nobody.
                At::Body => {
                    self.at = At::End;
                    skipped
                }
                At::End => return Err(Violation::Unexpected),
            },
            // None was permitted (RFC 9114 §7.2.5).
            (Stream::Response, PUSH_PROMISE) => return Err(Violation::Push),
            // Those of the control stream, and those of HTTP/2 (RFC 9114 §7.2.8).
            (Stream::Response, 0x2..=0x9 | 0xd) => return Err(Violation::Unexpected),
            // What has no place there, and what comes in which order, h3 knows.
            (Stream::Control, 0x0..=0x9 | 0xd) => held(),
            // RFC 9114 §9.
            _ => skipped,
        })
    }

    /// The frame that is handed on, if it is whole.
    fn held(&mut self) -> Result<Option<Piece>, Violation> {
        let State::Held { kind, header, bytes, left: 0 } = &mut self.state else { return Ok(None) };
        let (kind, header, frame) = (*kind, *header, std::mem::take(bytes).freeze());
        self.state = BETWEEN;
        if kind != GOAWAY {
            return Ok(Some(Piece::Frame(frame)));
        }
        let (first, _) = varint(&frame[header..]).ok_or(Violation::Truncated)?;
        Ok(Some(Piece::Goaway { frame, first }))
    }
}

/// `left`, or as much of it as there is.
fn upto(left: u64, there: usize) -> usize {
    usize::try_from(left).unwrap_or(usize::MAX).min(there)
}

/// A variable-length integer (RFC 9000 §16) and how many bytes it takes, if it is whole.
pub(super) fn varint(bytes: &[u8]) -> Option<(u64, usize)> {
    let first = *bytes.first()?;
    let size = 1_usize << (first >> 6);
    let rest = bytes.get(1..size)?;
    Some((rest.iter().fold(u64::from(first & 0x3f), |value, byte| value << 8 | u64::from(*byte)), size))
}

/// The header of a DATA frame.
pub(super) fn data_header(length: usize) -> Bytes {
    let length = length as u64;
    let mut bytes = BytesMut::with_capacity(9);
    bytes.extend_from_slice(&[DATA as u8]);
    match length {
        0..=0x3f => bytes.extend_from_slice(&[length as u8]),
        0x40..=0x3fff => bytes.extend_from_slice(&(length as u16 | 0x4000).to_be_bytes()),
        0x4000..=0x3fff_ffff => bytes.extend_from_slice(&(length as u32 | 0x8000_0000).to_be_bytes()),
        _ => bytes.extend_from_slice(&(length | 0xc000_0000_0000_0000).to_be_bytes()),
    }
    bytes.freeze()
}

#[cfg(test)]
mod tests;

//! Frames: what stands on the message stream and in front of a large body.
//!
//! ```text
//! u32 length of what follows
//! u8 kind | u8 flags | u16 method | u32 target | u64 correlation        always, 16 bytes
//! u32 remaining milliseconds                                            DEADLINE
//! u128 trace | u8 hops                                                  TRACE
//! u16 length | claims (bincode)                                         CLAIMS
//! body
//! ```
//!
//! Everything is little endian and written by hand: sixteen bytes that every message pays for are no
//! place for a codec. Kinds and flags are never reused; an unknown one closes the session, because a
//! peer that negotiated this version cannot have meant it. Lengths are checked before anything is
//! allocated.

use bytes::Bytes;

use crate::{
    codec::{self, Format, MAX_BODY},
    context::{CallContext, Claims, TraceId},
};

/// Largest body on the message stream, in bytes; larger ones get a stream each, so that nothing small
/// waits behind them. 16 KiB is eleven Ethernet datagrams, about 10 µs of sending.
pub const MAX_SMALL_BODY: usize = 16 * 1024;
/// Largest claims, in bytes: the longest token, and 1 KiB for the rest.
pub const MAX_CLAIMS: usize = crate::protocol::keys::MAX_TOKEN + 1024;
/// The fixed part behind the length.
const FIXED: usize = 16;
/// The longest header behind the length.
pub const MAX_HEADER: usize = FIXED + 4 + 17 + 2 + MAX_CLAIMS;
/// Longest frame on the message stream, length field excluded.
pub const MAX_SMALL_FRAME: usize = MAX_HEADER + MAX_SMALL_BODY;
/// Longest frame in front of which nothing waits: a large reply on its own stream.
pub const MAX_LARGE_FRAME: usize = MAX_HEADER + MAX_BODY;

/// What a frame is. Numbers are never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A request that wants an answer.
    Call = 1,
    /// A request that wants none.
    Cast = 2,
    /// The answer.
    Reply = 3,
    /// The callee's own typed error.
    Failed = 4,
    /// The call had no effect; the body is a [`crate::NoEffect`].
    Refused = 5,
    /// The call's outcome is unknown; the body is a [`crate::Unknown`].
    Lost = 6,
}

impl Kind {
    const fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Call,
            2 => Self::Cast,
            3 => Self::Reply,
            4 => Self::Failed,
            5 => Self::Refused,
            6 => Self::Lost,
            _ => return None,
        })
    }
}

mod flag {
    pub(super) const DEADLINE: u8 = 1;
    pub(super) const TRACE: u8 = 1 << 1;
    pub(super) const CLAIMS: u8 = 1 << 2;
    pub(super) const JSON: u8 = 1 << 3;
    /// The body travels on a stream of its own; in its place stands a [`super::LargeBody`].
    pub(super) const LARGE: u8 = 1 << 4;
    pub(super) const KNOWN: u8 = DEADLINE | TRACE | CLAIMS | JSON | LARGE;
}

/// What stands in front of a frame's body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// What it is.
    pub kind: Kind,
    /// How the body is written.
    pub format: Format,
    /// Whether the body travels on a stream of its own.
    pub large: bool,
    /// Which request of the target's protocol; 0 in answers.
    pub method: u16,
    /// The number that the receiver gave the target when its name was bound; 0 in answers.
    pub target: u32,
    /// Joins answer and call; 0 in casts.
    pub correlation: u64,
    /// Milliseconds until the caller gives up.
    pub remaining_ms: Option<u32>,
    /// The trace.
    pub trace: TraceId,
    /// Actors passed so far.
    pub hops: u8,
    /// What only some messages carry.
    pub claims: Option<Box<Claims>>,
}

impl Header {
    /// The header of an answer.
    pub const fn answer(kind: Kind, format: Format, correlation: u64) -> Self {
        Self { kind, format, large: false, method: 0, target: 0, correlation, remaining_ms: None, trace: TraceId(0), hops: 0, claims: None }
    }
}

/// The parts of a request's header that its sender chooses.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// [`Kind::Call`] or [`Kind::Cast`].
    pub kind: Kind,
    /// How the body is written.
    pub format: Format,
    /// Which request.
    pub method: u16,
    /// The target's number.
    pub target: u32,
    /// Joins answer and call.
    pub correlation: u64,
    /// Milliseconds until the caller gives up.
    pub remaining_ms: Option<u32>,
    /// Trace, hops and claims.
    pub context: &'a CallContext,
}

/// A frame, its body still where it was received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// What stands in front.
    pub header: Header,
    /// The body.
    pub body: &'a [u8],
}

/// Stands in for a body that travels on a stream of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LargeBody {
    /// Joins the placeholder and the stream.
    pub id: u64,
    /// The body's length in bytes.
    pub length: u32,
}

impl LargeBody {
    /// Bytes that it takes.
    pub const SIZE: usize = 12;

    /// As it is written.
    pub fn to_bytes(self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[..8].copy_from_slice(&self.id.to_le_bytes());
        bytes[8..].copy_from_slice(&self.length.to_le_bytes());
        bytes
    }

    /// Reads it.
    ///
    /// # Errors
    /// [`FrameError::Truncated`], or [`FrameError::TooLong`] for a body over [`MAX_BODY`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, FrameError> {
        let (id, length) = bytes.split_first_chunk::<8>().ok_or(FrameError::Truncated)?;
        let length = u32::from_le_bytes(length.try_into().map_err(|_| FrameError::Truncated)?);
        if length as usize > MAX_BODY {
            return Err(FrameError::TooLong { length: length as usize, limit: MAX_BODY });
        }
        Ok(Self { id: u64::from_le_bytes(*id), length })
    }
}

/// Why bytes are no frame. Each closes the session: the stream cannot be trusted behind it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// Longer than the stream allows.
    #[error("a frame of {length} bytes, more than {limit}")]
    TooLong {
        /// Announced.
        length: usize,
        /// Allowed.
        limit: usize,
    },
    /// The length does not cover what the flags announce.
    #[error("a truncated frame")]
    Truncated,
    /// A kind this version does not know.
    #[error("frame kind {0}")]
    Kind(u8),
    /// A flag this version does not know.
    #[error("frame flags {0:#010b}")]
    Flags(u8),
    /// The claims are none.
    #[error("claims: {0}")]
    Claims(Box<str>),
}

/// Appends a request to `into`; `body` appends its body. Nothing stays behind when `body` fails.
///
/// # Errors
/// Whatever `body` returns, and [`codec::CodecError::TooLarge`] for claims over [`MAX_CLAIMS`].
pub fn write_request<E: From<codec::CodecError>>(
    into: &mut Vec<u8>,
    request: Request<'_>,
    large: bool,
    body: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
) -> Result<(), E> {
    let start = into.len();
    let context = request.context;
    let mut flags = 0;
    if request.remaining_ms.is_some() {
        flags |= flag::DEADLINE;
    }
    if !context.trace.is_none() || context.hops > 0 {
        flags |= flag::TRACE;
    }
    if context.claims.is_some() {
        flags |= flag::CLAIMS;
    }
    if request.format == Format::Json {
        flags |= flag::JSON;
    }
    if large {
        flags |= flag::LARGE;
    }
    let mut fixed = [0; 4 + FIXED];
    fixed[4] = request.kind as u8;
    fixed[5] = flags;
    fixed[6..8].copy_from_slice(&request.method.to_le_bytes());
    fixed[8..12].copy_from_slice(&request.target.to_le_bytes());
    fixed[12..20].copy_from_slice(&request.correlation.to_le_bytes());
    into.extend_from_slice(&fixed);
    if let Some(remaining) = request.remaining_ms {
        into.extend_from_slice(&remaining.to_le_bytes());
    }
    if flags & flag::TRACE != 0 {
        into.extend_from_slice(&context.trace.0.to_le_bytes());
        into.push(context.hops);
    }
    if let Some(claims) = &context.claims
        && let Err(error) = write_claims(into, claims)
    {
        into.truncate(start);
        return Err(error.into());
    }
    if let Err(error) = body(into) {
        into.truncate(start);
        return Err(error);
    }
    finish(into, start);
    Ok(())
}

fn write_claims(into: &mut Vec<u8>, claims: &Claims) -> Result<(), codec::CodecError> {
    let length_at = into.len();
    into.extend_from_slice(&[0; 2]);
    codec::encode(Format::Bincode, claims, into)?;
    let length = into.len() - length_at - 2;
    if length > MAX_CLAIMS {
        return Err(codec::CodecError::TooLarge(length));
    }
    into[length_at..length_at + 2].copy_from_slice(&(length as u16).to_le_bytes());
    Ok(())
}

/// Appends an answer to `into`; `body` appends its body. Nothing stays behind when `body` fails.
///
/// # Errors
/// Whatever `body` returns.
pub fn write_answer<E>(
    into: &mut Vec<u8>,
    kind: Kind,
    format: Format,
    correlation: u64,
    body: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
) -> Result<(), E> {
    let start = into.len();
    let mut fixed = [0; 4 + FIXED];
    fixed[4] = kind as u8;
    fixed[5] = if format == Format::Json { flag::JSON } else { 0 };
    fixed[12..20].copy_from_slice(&correlation.to_le_bytes());
    into.extend_from_slice(&fixed);
    if let Err(error) = body(into) {
        into.truncate(start);
        return Err(error);
    }
    finish(into, start);
    Ok(())
}

fn finish(into: &mut [u8], start: usize) {
    let length = (into.len() - start - 4) as u32;
    into[start..start + 4].copy_from_slice(&length.to_le_bytes());
}

/// Reads the frame at the start of `input`: the frame and how many bytes it took, or `None` when it is not all there yet.
///
/// # Errors
/// [`FrameError`]; a length over `limit` is refused as soon as it can be read.
pub fn read(input: &[u8], limit: usize) -> Result<Option<(Frame<'_>, usize)>, FrameError> {
    let Some((length, rest)) = input.split_first_chunk::<4>() else { return Ok(None) };
    let length = u32::from_le_bytes(*length) as usize;
    if length > limit {
        return Err(FrameError::TooLong { length, limit });
    }
    if length < FIXED {
        return Err(FrameError::Truncated);
    }
    if rest.len() < length {
        return Ok(None);
    }
    Ok(Some((parse(&rest[..length])?, 4 + length)))
}

/// Reads a frame from the whole of `input`, which starts behind the length.
fn parse(input: &[u8]) -> Result<Frame<'_>, FrameError> {
    let (fixed, mut rest) = input.split_first_chunk::<FIXED>().ok_or(FrameError::Truncated)?;
    let kind = Kind::from_number(fixed[0]).ok_or(FrameError::Kind(fixed[0]))?;
    let flags = fixed[1];
    if flags & !flag::KNOWN != 0 {
        return Err(FrameError::Flags(flags));
    }
    let mut remaining_ms = None;
    if flags & flag::DEADLINE != 0 {
        let (value, behind) = rest.split_first_chunk::<4>().ok_or(FrameError::Truncated)?;
        remaining_ms = Some(u32::from_le_bytes(*value));
        rest = behind;
    }
    let (mut trace, mut hops) = (TraceId(0), 0);
    if flags & flag::TRACE != 0 {
        let (value, behind) = rest.split_first_chunk::<17>().ok_or(FrameError::Truncated)?;
        let (id, hop) = value.split_first_chunk::<16>().ok_or(FrameError::Truncated)?;
        trace = TraceId(u128::from_le_bytes(*id));
        hops = hop[0];
        rest = behind;
    }
    let mut claims = None;
    if flags & flag::CLAIMS != 0 {
        let (length, behind) = rest.split_first_chunk::<2>().ok_or(FrameError::Truncated)?;
        let length = usize::from(u16::from_le_bytes(*length));
        if length > MAX_CLAIMS {
            return Err(FrameError::TooLong { length, limit: MAX_CLAIMS });
        }
        let (encoded, behind) = behind.split_at_checked(length).ok_or(FrameError::Truncated)?;
        claims = Some(codec::decode(Format::Bincode, encoded).map_err(|error| FrameError::Claims(error.to_string().into()))?);
        rest = behind;
    }
    let large = flags & flag::LARGE != 0;
    if large && rest.len() != LargeBody::SIZE {
        return Err(FrameError::Truncated);
    }
    Ok(Frame {
        header: Header {
            kind,
            format: if flags & flag::JSON != 0 { Format::Json } else { Format::Bincode },
            large,
            method: u16::from_le_bytes([fixed[2], fixed[3]]),
            target: u32::from_le_bytes([fixed[4], fixed[5], fixed[6], fixed[7]]),
            correlation: u64::from_le_bytes([fixed[8], fixed[9], fixed[10], fixed[11], fixed[12], fixed[13], fixed[14], fixed[15]]),
            remaining_ms,
            trace,
            hops,
            claims,
        },
        body: rest,
    })
}

/// Cuts a stream of chunks into frames.
///
/// Frames that lie whole in a chunk are read where they are; only one that straddles two is copied, so
/// at most one frame is ever held.
#[derive(Debug)]
pub struct Decoder {
    limit: usize,
    chunk: Bytes,
    position: usize,
    straddling: Vec<u8>,
    /// `straddling` was given out as a frame and is to be cleared.
    given: bool,
}

impl Decoder {
    /// A decoder that refuses frames longer than `limit`.
    pub fn new(limit: usize) -> Self {
        Self { limit, chunk: Bytes::new(), position: 0, straddling: Vec::new(), given: false }
    }

    /// Takes the next chunk. To be called when [`Decoder::next_frame`] has returned `None`.
    pub fn push(&mut self, chunk: Bytes) {
        debug_assert!(self.position == self.chunk.len(), "the last chunk is used up before the next comes");
        self.chunk = chunk;
        self.position = 0;
    }

    /// The next whole frame.
    ///
    /// # Errors
    /// [`FrameError`]; the stream is then of no more use.
    pub fn next_frame(&mut self) -> Result<Option<Frame<'_>>, FrameError> {
        if self.given {
            self.straddling.clear();
            self.given = false;
        }
        if self.straddling.is_empty() {
            // Read twice on the straight path only in appearance: the borrow of the first read cannot end before the return.
            match frame_length(&self.chunk[self.position..], self.limit)? {
                Some(length) if self.chunk.len() - self.position >= length => {
                    let start = self.position;
                    self.position += length;
                    return parse(&self.chunk[start + 4..start + length]).map(Some);
                }
                _ => {
                    self.straddling.extend_from_slice(&self.chunk[self.position..]);
                    self.position = self.chunk.len();
                    return Ok(None);
                }
            }
        }
        // First the length, then the frame: never more of the chunk than this frame needs.
        self.fill(4);
        let Some(length) = frame_length(&self.straddling, self.limit)? else { return Ok(None) };
        self.fill(length);
        if self.straddling.len() < length {
            return Ok(None);
        }
        self.given = true;
        parse(&self.straddling[4..]).map(Some)
    }

    fn fill(&mut self, wanted: usize) {
        let missing = wanted.saturating_sub(self.straddling.len()).min(self.chunk.len() - self.position);
        self.straddling.extend_from_slice(&self.chunk[self.position..self.position + missing]);
        self.position += missing;
    }
}

/// The whole length of the frame at the start of `input`, length field included, once it can be read.
fn frame_length(input: &[u8], limit: usize) -> Result<Option<usize>, FrameError> {
    let Some(length) = input.first_chunk::<4>() else { return Ok(None) };
    let length = u32::from_le_bytes(*length) as usize;
    if length > limit {
        return Err(FrameError::TooLong { length, limit });
    }
    if length < FIXED {
        return Err(FrameError::Truncated);
    }
    Ok(Some(4 + length))
}

#[cfg(test)]
mod tests;

//! The frames of a stream (RFC 9114 §7.1), looked at before h3 sees them.
//!
//! h3 0.0.8 keeps every frame but DATA until it has all of it, whatever its length, and keeps the very packets that it
//! came in. So what a peer sends passes through here first: a frame that is too long ends the connection as soon as its
//! header has been read, one that nobody knows is skipped, any other but DATA is handed on only when it is whole, in one
//! piece of its own size. DATA passes as it comes, without a copy. No I/O and no clock.

use bytes::{Buf as _, Bytes, BytesMut};

use super::violation::Violation;

/// The longest frame other than DATA: twice the default limit of a request's head, and no other frame is as long.
pub(super) const FRAME: u64 = 64 * 1024;
/// What the frames other than DATA may take in one request: a head, trailers, and what is there to be ignored.
pub(super) const REQUEST_BYTES: u64 = 4 * FRAME;
/// Their number in one request. Empty DATA frames count: they carry nothing.
pub(super) const REQUEST_FRAMES: u64 = 128;
/// Frames on the control stream that need no request to explain them: SETTINGS, GOAWAY, and what is there to be ignored.
pub(super) const CONTROL_FRAMES: u64 = 128;
/// More of them that each request explains: PRIORITY_UPDATE (RFC 9218 §7.2), which browsers send again as they load.
pub(super) const CONTROL_FRAMES_A_REQUEST: u64 = 16;

const DATA: u64 = 0x0;
/// Of drafts of WebTransport, and not spoken here. It has no length, so that nothing after it could be understood.
const WEBTRANSPORT: u64 = 0x41;

/// Whether h3 has something to say to a frame of this type; the others are to be ignored (RFC 9114 §9). Those of HTTP/2
/// are among them because they are errors (RFC 9114 §7.2.8).
const fn is_known(kind: u64) -> bool {
    matches!(kind, 0x1..=0x9 | 0xd)
}

/// What a stream is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stream {
    /// A request and its answer.
    Request,
    /// The peer's control stream.
    Control,
}

/// Where one is in a stream.
#[derive(Debug)]
enum State {
    /// In a frame's header, of which that much has come.
    Header { bytes: [u8; 16], len: usize },
    /// In a DATA frame.
    Data { left: u64 },
    /// In a frame that is handed on when it is whole.
    Held { bytes: BytesMut, left: usize },
    /// In a frame that nobody knows.
    Skipped { left: u64 },
}

const BETWEEN: State = State::Header { bytes: [0; 16], len: 0 };

/// The frames of one stream.
#[derive(Debug)]
pub(super) struct Frames {
    stream: Stream,
    state: State,
    /// Bytes of frames other than DATA, counted when they are announced.
    bytes: u64,
    frames: u64,
    /// How many there may be.
    granted: u64,
    /// What is of DATA in the piece that was handed on last.
    payload: usize,
}

impl Frames {
    pub(super) const fn new(stream: Stream) -> Self {
        let granted = match stream {
            Stream::Request => REQUEST_FRAMES,
            Stream::Control => CONTROL_FRAMES,
        };
        Self { stream, state: BETWEEN, bytes: 0, frames: 0, granted, payload: 0 }
    }

    /// How many requests there have been on the connection: they explain more frames on its control stream.
    pub(super) const fn requests(&mut self, requests: u64) {
        self.granted = CONTROL_FRAMES.saturating_add(requests.saturating_mul(CONTROL_FRAMES_A_REQUEST));
    }

    /// What is of DATA in the piece that was handed on last, its header aside.
    pub(super) const fn payload(&self) -> usize {
        self.payload
    }

    /// The bytes that are kept here.
    pub(super) fn held(&self) -> usize {
        match &self.state {
            State::Held { bytes, .. } => bytes.len(),
            State::Header { .. } | State::Data { .. } | State::Skipped { .. } => 0,
        }
    }

    /// Takes from the front of `chunk` and gives what h3 may see of it, if anything; `chunk` is empty afterwards, or there is more.
    ///
    /// # Errors
    /// The connection is to be ended.
    pub(super) fn next(&mut self, chunk: &mut Bytes) -> Result<Option<Bytes>, Violation> {
        self.payload = 0;
        while !chunk.is_empty() {
            match &mut self.state {
                State::Header { bytes, len } => {
                    let before = *len;
                    let fresh = chunk.len().min(bytes.len() - before);
                    bytes[before..before + fresh].copy_from_slice(&chunk[..fresh]);
                    let Some(header) = Header::read(&bytes[..before + fresh]) else {
                        *len = before + fresh;
                        chunk.advance(fresh);
                        continue;
                    };
                    let (bytes, size) = (*bytes, header.size);
                    if let Some(piece) = self.begin(&header, &bytes[..size], before, chunk)? {
                        return Ok(Some(piece));
                    }
                }
                State::Data { left } => {
                    let piece = chunk.split_to(upto(*left, chunk.len()));
                    *left -= piece.len() as u64;
                    if *left == 0 {
                        self.state = BETWEEN;
                    }
                    self.payload = piece.len();
                    return Ok(Some(piece));
                }
                State::Held { bytes, left } => {
                    let piece = chunk.split_to(chunk.len().min(*left));
                    bytes.extend_from_slice(&piece);
                    *left -= piece.len();
                    if *left == 0 {
                        let whole = std::mem::take(bytes).freeze();
                        self.state = BETWEEN;
                        return Ok(Some(whole));
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

    /// Begins the frame whose header, `bytes`, is read; `before` of it came before `chunk`.
    fn begin(&mut self, header: &Header, bytes: &[u8], before: usize, chunk: &mut Bytes) -> Result<Option<Bytes>, Violation> {
        let fresh = bytes.len() - before;
        self.account(header, bytes.len())?;
        if header.kind == DATA {
            if header.len == 0 {
                // h3 takes one for the end of the body.
                chunk.advance(fresh);
                self.state = BETWEEN;
                return Ok(None);
            }
            // The header, and what has come of the payload, where they are in one piece.
            let now = if before == 0 { upto(header.len, chunk.len() - fresh) } else { 0 };
            let piece = if before == 0 { chunk.split_to(fresh + now) } else { Bytes::copy_from_slice(bytes) };
            if before > 0 {
                chunk.advance(fresh);
            }
            self.payload = now;
            let left = header.len - now as u64;
            self.state = if left == 0 { BETWEEN } else { State::Data { left } };
            return Ok(Some(piece));
        }
        // Checked: at most `FRAME`.
        let len = header.len as usize;
        if !is_known(header.kind) {
            chunk.advance(fresh);
            self.state = if len == 0 { BETWEEN } else { State::Skipped { left: header.len } };
            return Ok(None);
        }
        if before == 0 && chunk.len() >= fresh + len {
            self.state = BETWEEN;
            return Ok(Some(chunk.split_to(fresh + len)));
        }
        chunk.advance(fresh);
        if len == 0 {
            self.state = BETWEEN;
            return Ok(Some(Bytes::copy_from_slice(bytes)));
        }
        // Grows with what comes: an announcement costs its sender as many bytes as us.
        self.state = State::Held { bytes: BytesMut::from(bytes), left: len };
        Ok(None)
    }

    fn account(&mut self, header: &Header, size: usize) -> Result<(), Violation> {
        if header.kind == WEBTRANSPORT || (header.kind == DATA && self.stream == Stream::Control) {
            return Err(Violation::UnexpectedFrame);
        }
        if header.kind == DATA && header.len > 0 {
            return Ok(());
        }
        if header.len > FRAME {
            return Err(Violation::FrameTooLarge);
        }
        self.frames += 1;
        self.bytes += size as u64 + header.len;
        // The control stream lasts as long as its connection: its frames are numbered by its requests, and each is bounded.
        if self.frames > self.granted || (self.stream == Stream::Request && self.bytes > REQUEST_BYTES) {
            return Err(Violation::FrameFlood);
        }
        Ok(())
    }

    /// The stream is at its end.
    ///
    /// # Errors
    /// When that is in the middle of a frame (RFC 9114 §7.1). h3 takes it for the end of the body, and panics at the
    /// trailers, so it never sees one.
    pub(super) const fn end(&self) -> Result<(), Violation> {
        if matches!(self.state, State::Header { len: 0, .. }) { Ok(()) } else { Err(Violation::Truncated) }
    }
}

/// The smaller of a length on the wire and one in memory.
fn upto(left: u64, here: usize) -> usize {
    usize::try_from(left).unwrap_or(usize::MAX).min(here)
}

/// A frame's header.
#[derive(Debug)]
struct Header {
    kind: u64,
    len: u64,
    /// Of the header itself.
    size: usize,
}

impl Header {
    /// `None` until all of it has come.
    fn read(bytes: &[u8]) -> Option<Self> {
        let (kind, first) = varint(bytes)?;
        let (len, second) = varint(&bytes[first..])?;
        Some(Self { kind, len, size: first + second })
    }
}

/// A variable-length integer (RFC 9000 §16) at the front of `bytes` and its size, or `None` until all of it has come.
pub(super) fn varint(bytes: &[u8]) -> Option<(u64, usize)> {
    let first = *bytes.first()?;
    let size = varint_size(first);
    let rest = bytes.get(1..size)?;
    let value = rest.iter().fold(u64::from(first & 0x3f), |value, byte| value << 8 | u64::from(*byte));
    Some((value, size))
}

/// The size of the variable-length integer that begins with `first`.
pub(super) const fn varint_size(first: u8) -> usize {
    1 << (first >> 6)
}

/// Puts the header of a DATA frame of `len` bytes.
pub(super) fn data_header(len: usize) -> Bytes {
    let mut bytes = [0; 9];
    let len = len as u64;
    // A length in memory is below 2^62.
    let size = match len {
        0..=0x3f => 1,
        0x40..=0x3fff => 2,
        0x4000..=0x3fff_ffff => 4,
        _ => 8,
    };
    bytes[1..].copy_from_slice(&len.to_be_bytes());
    bytes.copy_within(9 - size.., 1);
    bytes[1] |= (size.trailing_zeros() as u8) << 6;
    Bytes::copy_from_slice(&bytes[..=size])
}

#[cfg(test)]
mod tests;

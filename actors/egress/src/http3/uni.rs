//! The streams that carry no request (RFC 9114 §6.2): control, QPACK, and what is there to be ignored.

use std::{
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, Bytes};
use h3::{
    error::Code,
    quic::{self, StreamErrorIncoming, StreamId, WriteBuf},
};
use quinn::{ReadError, WriteError};

use super::{
    frames::{self, Frames, Piece, Stream, Violation},
    quic::{Shared, lost, poll_chunk, read_error, stream_id, varint},
};

/// A stream that a host opens.
pub(super) struct Incoming {
    stream: quinn::RecvStream,
    at: At,
    shared: Arc<Shared>,
}

enum At {
    /// In its type, of which so much has come.
    Type {
        bytes: [u8; 8],
        len: usize,
    },
    Control {
        frames: Frames,
        chunk: Bytes,
    },
    /// QPACK's, on which nothing can come that means anything, as we offer no table and use none (RFC 9204 §4.2), and those that nobody
    /// knows, which h3 stops. Unread, they hold what their windows permit.
    Other,
}

impl Incoming {
    pub(super) fn new(stream: quinn::RecvStream, shared: &Arc<Shared>) -> Self {
        Self { stream, at: At::Type { bytes: [0; 8], len: 0 }, shared: shared.clone() }
    }

    fn violates(&self, violation: Violation) -> Poll<Result<Option<Bytes>, StreamErrorIncoming>> {
        Poll::Ready(Err(StreamErrorIncoming::ConnectionErrorIncoming { connection_error: self.shared.end(violation) }))
    }
}

impl quic::RecvStream for Incoming {
    type Buf = Bytes;

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, StreamErrorIncoming>> {
        loop {
            match &mut self.at {
                At::Type { bytes, len } => {
                    // Not a byte more, so that the rest is whole for whoever reads it.
                    let size = if *len == 0 { 1 } else { 1 << (bytes[0] >> 6) };
                    if *len < size {
                        match ready!(pin!(self.stream.read(&mut bytes[*len..size])).poll(cx)) {
                            Ok(Some(read)) => *len += read,
                            // Allowed before its type has come (RFC 9114 §6.2).
                            Ok(None) | Err(ReadError::Reset(_)) => return Poll::Ready(Ok(None)),
                            Err(error) => return Poll::Ready(Err(read_error(error))),
                        }
                        continue;
                    }
                    let kind = Bytes::copy_from_slice(&bytes[..size]);
                    self.at = match frames::varint(&kind) {
                        Some((0x0, _)) => At::Control { frames: Frames::new(Stream::Control), chunk: Bytes::new() },
                        Some((0x1, _)) => return self.violates(Violation::Push),
                        _ => At::Other,
                    };
                    return Poll::Ready(Ok(Some(kind)));
                }
                At::Control { frames, chunk } => match frames.next(chunk) {
                    Ok(Some(Piece::Goaway { frame, first })) => {
                        self.shared.goodbye(first);
                        return Poll::Ready(Ok(Some(frame)));
                    }
                    Ok(Some(Piece::Frame(frame))) => return Poll::Ready(Ok(Some(frame))),
                    Ok(Some(Piece::Data(_))) => return self.violates(Violation::Unexpected),
                    Err(violation) => return self.violates(violation),
                    Ok(None) => match ready!(poll_chunk(&mut self.stream, cx)) {
                        Ok(Some(read)) => *chunk = read,
                        Ok(None) => return Poll::Ready(Ok(None)),
                        Err(error) => return Poll::Ready(Err(read_error(error))),
                    },
                },
                At::Other => return Poll::Pending,
            }
        }
    }

    fn stop_sending(&mut self, code: u64) {
        // It fails for one that the host has ended.
        let _ = self.stream.stop(varint(Code::from(code)));
    }

    fn recv_id(&self) -> StreamId {
        stream_id(self.stream.id())
    }
}

/// A stream on which no request goes: control, QPACK.
pub(super) struct Uni {
    stream: quinn::SendStream,
    writing: Option<WriteBuf<Bytes>>,
}

impl Uni {
    pub(super) const fn new(stream: quinn::SendStream) -> Self {
        Self { stream, writing: None }
    }
}

impl quic::SendStream<Bytes> for Uni {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        if let Some(data) = &mut self.writing {
            while data.has_remaining() {
                let some = ready!(Pin::new(&mut self.stream).poll_write(cx, data.chunk())).map_err(write_error)?;
                data.advance(some);
            }
        }
        self.writing = None;
        Poll::Ready(Ok(()))
    }

    fn send_data<T: Into<WriteBuf<Bytes>>>(&mut self, data: T) -> Result<(), StreamErrorIncoming> {
        // h3 waits for each write.
        self.writing = Some(data.into());
        Ok(())
    }

    fn poll_finish(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        Poll::Ready(self.stream.finish().map_err(|error| StreamErrorIncoming::Unknown(Box::new(error))))
    }

    fn reset(&mut self, code: u64) {
        // It fails for one that has ended.
        let _ = self.stream.reset(varint(Code::from(code)));
    }

    fn send_id(&self) -> StreamId {
        stream_id(self.stream.id())
    }
}

fn write_error(error: WriteError) -> StreamErrorIncoming {
    match error {
        WriteError::Stopped(code) => StreamErrorIncoming::StreamTerminated { error_code: code.into() },
        WriteError::ConnectionLost(error) => lost(error),
        error => StreamErrorIncoming::Unknown(Box::new(error)),
    }
}

//! QUIC as h3 sees it.
//!
//! h3 has two tasks here: what is said on the control streams, and heads. Everything that a host sends is looked at first ([`frames`]).
//! A request's stream is opened by whoever asks, who lays it out for h3 and keeps both halves: h3 writes the head into a buffer, so that
//! it goes in one packet with a small body, and reads heads from it; bodies pass it by. So no task waits within h3, which takes a
//! half-written stream for a whole one and panics where a half-read one is stopped.

use std::{
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use futures_util::{StreamExt as _, stream, stream::BoxStream};
use h3::{
    error::Code,
    quic::{self, ConnectionErrorIncoming, StreamErrorIncoming, StreamId, WriteBuf},
};
use parking_lot::Mutex;
use quinn::{ConnectionError, ReadError, VarInt, WriteError};
use tokio::sync::watch;

use super::frames::{self, Frames, Piece, Stream, Violation};

/// Streams that a host opens in a connection's life: three that matter, and some that are there to be ignored.
const STREAMS: u32 = 64;
/// A part of a body that is shorter is copied: it would hold on to the packet that it came in.
const SHORT: usize = 1024;

/// What the streams of a connection share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) connection: quinn::Connection,
    /// Why we ended it, if we did.
    verdict: Mutex<Option<Violation>>,
    /// The number of the first stream that the host does not take.
    pub(super) last: watch::Sender<u64>,
}

impl Shared {
    pub(super) fn new(connection: quinn::Connection) -> Arc<Self> {
        Arc::new(Self { connection, verdict: Mutex::default(), last: watch::Sender::new(u64::MAX) })
    }

    pub(super) fn verdict(&self) -> Option<Violation> {
        *self.verdict.lock()
    }

    /// Ends the connection.
    fn end(&self, violation: Violation) -> ConnectionErrorIncoming {
        self.verdict.lock().get_or_insert(violation);
        self.connection.close(varint(violation.code()), violation.to_string().as_bytes());
        ConnectionErrorIncoming::Undefined(Arc::new(violation))
    }

    fn goodbye(&self, first: u64) {
        self.last.send_if_modified(|known| {
            let sooner = first < *known;
            *known = first.min(*known);
            sooner
        });
    }
}

/// A code as QUIC carries it.
pub(super) fn varint(code: Code) -> VarInt {
    VarInt::from_u64(code.value()).unwrap_or(VarInt::MAX)
}

fn stream_id(id: quinn::StreamId) -> StreamId {
    u64::from(VarInt::from(id)).try_into().expect("QUIC's numbers are varints")
}

/// A connection, for h3.
pub(super) struct Quic {
    opener: Opener,
    incoming: BoxStream<'static, Result<quinn::RecvStream, ConnectionError>>,
    opened: u32,
}

impl Quic {
    pub(super) fn new(shared: &Arc<Shared>, next: &Next) -> Self {
        let accepting = stream::unfold(shared.connection.clone(), |connection| async { Some((connection.accept_uni().await, connection)) });
        Self { opener: Opener::new(shared, next), incoming: Box::pin(accepting), opened: 0 }
    }
}

impl quic::Connection<Bytes> for Quic {
    type RecvStream = Incoming;
    type OpenStreams = Opener;

    fn poll_accept_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Incoming, ConnectionErrorIncoming>> {
        let accepted = ready!(self.incoming.poll_next_unpin(cx)).expect("an unfold without end");
        let stream = accepted.map_err(connection_error)?;
        self.opened += 1;
        if self.opened > STREAMS {
            return Poll::Ready(Err(self.opener.shared.end(Violation::Flood)));
        }
        Poll::Ready(Ok(Incoming { stream, at: At::Type { bytes: [0; 8], len: 0 }, shared: self.opener.shared.clone() }))
    }

    fn poll_accept_bidi(&mut self, _cx: &mut Context<'_>) -> Poll<Result<Asked, ConnectionErrorIncoming>> {
        // QUIC permits the host none.
        Poll::Pending
    }

    fn opener(&self) -> Opener {
        Opener::new(&self.opener.shared, &self.opener.next)
    }
}

impl quic::OpenStreams<Bytes> for Quic {
    type BidiStream = Asked;
    type SendStream = Uni;

    fn poll_open_bidi(&mut self, cx: &mut Context<'_>) -> Poll<Result<Asked, StreamErrorIncoming>> {
        self.opener.poll_open_bidi(cx)
    }

    fn poll_open_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<Uni, StreamErrorIncoming>> {
        self.opener.poll_open_send(cx)
    }

    fn close(&mut self, code: Code, reason: &[u8]) {
        self.opener.close(code, reason);
    }
}

/// Where the stream of the next request is laid out for h3.
pub(super) type Next = Arc<Mutex<Option<Asked>>>;

/// Opens streams for h3.
pub(super) struct Opener {
    shared: Arc<Shared>,
    next: Next,
    opening: BoxStream<'static, Result<quinn::SendStream, ConnectionError>>,
}

/// Whoever asks h3 for a request lays a stream out before.
#[derive(Debug, thiserror::Error)]
#[error("no stream was laid out")]
struct NoStream;

impl Opener {
    fn new(shared: &Arc<Shared>, next: &Next) -> Self {
        let opening = stream::unfold(shared.connection.clone(), |connection| async { Some((connection.open_uni().await, connection)) });
        Self { shared: shared.clone(), next: next.clone(), opening: Box::pin(opening) }
    }
}

impl quic::OpenStreams<Bytes> for Opener {
    type BidiStream = Asked;
    type SendStream = Uni;

    fn poll_open_bidi(&mut self, _cx: &mut Context<'_>) -> Poll<Result<Asked, StreamErrorIncoming>> {
        Poll::Ready(self.next.lock().take().ok_or_else(|| StreamErrorIncoming::Unknown(Box::new(NoStream))))
    }

    fn poll_open_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<Uni, StreamErrorIncoming>> {
        let stream = ready!(self.opening.poll_next_unpin(cx)).expect("an unfold without end").map_err(lost)?;
        Poll::Ready(Ok(Uni { stream, writing: None }))
    }

    fn close(&mut self, code: Code, reason: &[u8]) {
        self.shared.connection.close(varint(code), reason);
    }
}

/// A request's stream, as h3 has it.
#[derive(Clone)]
pub(super) struct Asked {
    id: StreamId,
    /// What h3 writes: the request's head.
    pub(super) head: Arc<Mutex<BytesMut>>,
    pub(super) receiving: Arc<Mutex<Receiving>>,
}

impl Asked {
    pub(super) fn new(stream: quinn::RecvStream, shared: &Arc<Shared>) -> Self {
        let id = stream_id(stream.id());
        let frames = Frames::new(Stream::Response);
        let receiving = Receiving { stream, frames, chunk: Bytes::new(), ended: false, shared: shared.clone() };
        Self { id, head: Arc::default(), receiving: Arc::new(Mutex::new(receiving)) }
    }

    pub(super) fn number(&self) -> u64 {
        self.id.into_inner()
    }
}

impl quic::SendStream<Bytes> for Asked {
    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        Poll::Ready(Ok(()))
    }

    fn send_data<T: Into<WriteBuf<Bytes>>>(&mut self, data: T) -> Result<(), StreamErrorIncoming> {
        self.head.lock().put(data.into());
        Ok(())
    }

    fn poll_finish(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        // Whoever sends the body ends it.
        Poll::Ready(Ok(()))
    }

    fn reset(&mut self, _code: u64) {}

    fn send_id(&self) -> StreamId {
        self.id
    }
}

impl quic::RecvStream for Asked {
    type Buf = Bytes;

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, StreamErrorIncoming>> {
        let mut receiving = self.receiving.lock();
        Poll::Ready(match ready!(receiving.poll_piece(cx))? {
            Some(Piece::Frame(head)) => Ok(Some(head)),
            // It is asked for heads, before which there are none of these.
            Some(Piece::Data(_) | Piece::Goaway { .. }) => Err(receiving.refuse(Violation::Unexpected)),
            None => Ok(None),
        })
    }

    fn stop_sending(&mut self, code: u64) {
        self.receiving.lock().give_up(Code::from(code));
    }

    fn recv_id(&self) -> StreamId {
        self.id
    }
}

/// The half of a request's stream on which its response comes. Dropped before the end, it tells the host to stop.
pub(super) struct Receiving {
    stream: quinn::RecvStream,
    frames: Frames,
    /// Read, and not yet looked at.
    chunk: Bytes,
    ended: bool,
    shared: Arc<Shared>,
}

impl Receiving {
    /// What comes from here on is the body.
    pub(super) const fn body_follows(&mut self) {
        self.frames.body_follows();
    }

    /// The next piece, or the end. QUIC's flow control is its back-pressure: nothing is read that nobody asks for.
    pub(super) fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Piece>, StreamErrorIncoming>> {
        loop {
            match self.frames.next(&mut self.chunk) {
                Ok(Some(Piece::Data(data))) if data.len() < SHORT => {
                    return Poll::Ready(Ok(Some(Piece::Data(Bytes::copy_from_slice(&data)))));
                }
                Ok(Some(piece)) => return Poll::Ready(Ok(Some(piece))),
                Ok(None) => {}
                Err(violation) => return Poll::Ready(Err(self.refuse(violation))),
            }
            if self.ended {
                return Poll::Ready(Ok(None));
            }
            match ready!(poll_chunk(&mut self.stream, cx)) {
                Ok(Some(chunk)) => self.chunk = chunk,
                Ok(None) => {
                    self.ended = true;
                    if let Err(violation) = self.frames.end() {
                        return Poll::Ready(Err(self.refuse(violation)));
                    }
                }
                Err(error) => {
                    self.ended = true;
                    return Poll::Ready(Err(read_error(error)));
                }
            }
        }
    }

    fn refuse(&mut self, violation: Violation) -> StreamErrorIncoming {
        self.ended = true;
        StreamErrorIncoming::ConnectionErrorIncoming { connection_error: self.shared.end(violation) }
    }

    /// Tells the host to stop.
    pub(super) fn give_up(&mut self, code: Code) {
        if !std::mem::replace(&mut self.ended, true) {
            // It fails for one that the host has ended.
            let _ = self.stream.stop(varint(code));
        }
    }
}

impl Drop for Receiving {
    fn drop(&mut self) {
        // RFC 9114 §4.1.1.
        self.give_up(Code::H3_REQUEST_CANCELLED);
    }
}

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

/// A future of its own each time: it keeps nothing between polls, and who waits is known to the stream.
fn poll_chunk(stream: &mut quinn::RecvStream, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, ReadError>> {
    let read = ready!(pin!(stream.read_chunk(usize::MAX, true)).poll(cx));
    Poll::Ready(read.map(|chunk| chunk.map(|chunk| chunk.bytes)))
}

fn connection_error(error: ConnectionError) -> ConnectionErrorIncoming {
    match error {
        ConnectionError::ApplicationClosed(close) => ConnectionErrorIncoming::ApplicationClose { error_code: close.error_code.into() },
        ConnectionError::TimedOut => ConnectionErrorIncoming::Timeout,
        error => ConnectionErrorIncoming::Undefined(Arc::new(error)),
    }
}

fn lost(error: ConnectionError) -> StreamErrorIncoming {
    StreamErrorIncoming::ConnectionErrorIncoming { connection_error: connection_error(error) }
}

fn read_error(error: ReadError) -> StreamErrorIncoming {
    match error {
        ReadError::Reset(code) => StreamErrorIncoming::StreamTerminated { error_code: code.into() },
        ReadError::ConnectionLost(error) => lost(error),
        error => StreamErrorIncoming::Unknown(Box::new(error)),
    }
}

fn write_error(error: WriteError) -> StreamErrorIncoming {
    match error {
        WriteError::Stopped(code) => StreamErrorIncoming::StreamTerminated { error_code: code.into() },
        WriteError::ConnectionLost(error) => lost(error),
        error => StreamErrorIncoming::Unknown(Box::new(error)),
    }
}

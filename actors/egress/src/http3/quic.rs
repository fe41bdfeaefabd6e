//! QUIC as h3 sees it.
//!
//! h3 has two tasks here: what is said on the control streams, and heads. Everything that a host sends is looked at first
//! ([`super::frames`]).
//! A request's stream is opened by whoever asks, who lays it out for h3 and keeps both halves: h3 writes the head into a buffer, so that
//! it goes in one packet with a small body, and reads heads from it; bodies pass it by. So no task waits within h3, which takes a
//! half-written stream for a whole one and panics where a half-read one is stopped.

use std::{
    pin::pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::{StreamExt as _, stream, stream::BoxStream};
use h3::{
    error::Code,
    quic::{self, ConnectionErrorIncoming, StreamErrorIncoming, StreamId, WriteBuf},
};
use parking_lot::Mutex;
use quinn::{ConnectionError, ReadError, VarInt};
use tokio::sync::watch;

use super::{
    frames::{Frames, Piece, Stream, Violation},
    uni::{Incoming, Uni},
};

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
    pub(super) fn end(&self, violation: Violation) -> ConnectionErrorIncoming {
        self.verdict.lock().get_or_insert(violation);
        self.connection.close(varint(violation.code()), violation.to_string().as_bytes());
        ConnectionErrorIncoming::Undefined(Arc::new(violation))
    }

    pub(super) fn goodbye(&self, first: u64) {
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

pub(super) fn stream_id(id: quinn::StreamId) -> StreamId {
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
        Poll::Ready(Ok(Incoming::new(stream, &self.opener.shared)))
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
        Poll::Ready(Ok(Uni::new(stream)))
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

/// A future of its own each time: it keeps nothing between polls, and who waits is known to the stream.
pub(super) fn poll_chunk(stream: &mut quinn::RecvStream, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, ReadError>> {
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

pub(super) fn lost(error: ConnectionError) -> StreamErrorIncoming {
    StreamErrorIncoming::ConnectionErrorIncoming { connection_error: connection_error(error) }
}

pub(super) fn read_error(error: ReadError) -> StreamErrorIncoming {
    match error {
        ReadError::Reset(code) => StreamErrorIncoming::StreamTerminated { error_code: code.into() },
        ReadError::ConnectionLost(error) => lost(error),
        error => StreamErrorIncoming::Unknown(Box::new(error)),
    }
}

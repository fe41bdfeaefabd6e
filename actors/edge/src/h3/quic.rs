//! QUIC as h3 sees it: quinn, with everything that a peer sends looked at first.
//!
//! Owned by a connection's task. It does what h3-quinn does, and promises more: what h3 keeps of a peer's frames is
//! bounded (see [`super::frames`]), streams that carry no request are read here and never by h3 (see [`super::uni`]), a
//! half-read stream can be stopped (h3-quinn panics there), and one that is dropped says why.

use std::{
    collections::VecDeque,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream, stream::BoxStream};
use h3::{
    error::Code,
    quic::{self, ConnectionErrorIncoming, StreamErrorIncoming, StreamId, WriteBuf},
};
use parking_lot::Mutex;
use quinn::{ConnectionError, ReadError};

use super::{
    frames::{Frames, Stream},
    gate::Gate,
    outgoing::{Heads, Outgoing, OutgoingUni},
    uni::Uni,
    violation::{Violation, varint},
};
use crate::Reason;

/// Bytes of incomplete frames that a connection may have kept: as much as its flow control window.
const HELD: usize = 1024 * 1024;

/// What the streams of a connection share.
#[derive(Debug)]
pub(super) struct Shared {
    connection: quinn::Connection,
    /// Why we ended it, if we did.
    verdict: Mutex<Option<Reason>>,
    requests: AtomicU64,
    held: AtomicUsize,
    /// The last answers that were given, as many as there may be streams: those that the peer has not acknowledged are
    /// among them, since their streams count until then. Closing the connection would throw away what is under way.
    answered: Mutex<VecDeque<Arc<Outgoing>>>,
    streams: usize,
}

impl Shared {
    pub(super) fn new(connection: quinn::Connection, streams: usize) -> Arc<Self> {
        Arc::new(Self {
            connection,
            verdict: Mutex::default(),
            requests: AtomicU64::new(0),
            held: AtomicUsize::new(0),
            answered: Mutex::default(),
            streams,
        })
    }

    /// Ends the connection.
    pub(super) fn end(&self, violation: Violation) {
        self.verdict.lock().get_or_insert(violation.reason());
        self.connection.close(varint(violation.code()), violation.to_string().as_bytes());
    }

    /// Why we ended the connection, if we did.
    pub(super) fn verdict(&self) -> Option<Reason> {
        *self.verdict.lock()
    }

    /// How many requests there have been.
    pub(super) fn requests(&self) -> u64 {
        self.requests.load(Relaxed)
    }

    /// Waits until the peer has all answers.
    pub(super) async fn delivered(&self) {
        loop {
            let Some(answer) = self.answered.lock().pop_front() else { return };
            // Either way there is nothing more to wait for.
            let _ = answer.stopped().await;
        }
    }

    /// An answer is whole; it may be under way.
    pub(super) fn answered(&self, answer: Arc<Outgoing>) {
        let mut answered = self.answered.lock();
        if answered.len() >= self.streams {
            answered.pop_front();
        }
        answered.push_back(answer);
    }

    fn refuse(&self, violation: Violation) -> StreamErrorIncoming {
        self.end(violation);
        StreamErrorIncoming::ConnectionErrorIncoming { connection_error: ConnectionErrorIncoming::Undefined(Arc::new(violation)) }
    }
}

/// A connection, for h3.
pub(super) struct Quic {
    shared: Arc<Shared>,
    requests: BoxStream<'static, Result<(quinn::SendStream, quinn::RecvStream), ConnectionError>>,
    uni: Uni,
    opener: Opener,
    latest: Option<Arc<Outgoing>>,
}

impl Quic {
    pub(super) fn new(connection: &quinn::Connection, shared: Arc<Shared>) -> Self {
        let requests = stream::unfold(connection.clone(), |connection| async { Some((connection.accept_bi().await, connection)) });
        Self {
            uni: Uni::new(connection, shared.clone()),
            opener: Opener { shared: shared.clone(), opening: None },
            shared,
            requests: Box::pin(requests),
            latest: None,
        }
    }

    /// The sending half of the stream that was accepted last.
    pub(super) fn latest(&mut self) -> Option<Arc<Outgoing>> {
        self.latest.take()
    }
}

impl quic::Connection<Bytes> for Quic {
    type RecvStream = Incoming;
    type OpenStreams = Opener;

    fn poll_accept_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Incoming, ConnectionErrorIncoming>> {
        self.uni.poll_control(cx)
    }

    fn poll_accept_bidi(&mut self, cx: &mut Context<'_>) -> Poll<Result<Request, ConnectionErrorIncoming>> {
        let accepted = ready!(self.requests.poll_next_unpin(cx)).expect("an unfold without end");
        let (send, recv) = accepted.map_err(connection_error)?;
        self.shared.requests.fetch_add(1, Relaxed);
        let out = Outgoing::new(send);
        self.latest = Some(out.clone());
        let mut recv = Incoming::new(recv, Frames::new(Stream::Request), self.shared.clone());
        recv.out = Some(out.clone());
        Poll::Ready(Ok(Request { out: Heads::new(out), recv }))
    }

    fn opener(&self) -> Opener {
        Opener { shared: self.shared.clone(), opening: None }
    }
}

impl quic::OpenStreams<Bytes> for Quic {
    type BidiStream = Request;
    type SendStream = OutgoingUni;

    fn poll_open_bidi(&mut self, cx: &mut Context<'_>) -> Poll<Result<Request, StreamErrorIncoming>> {
        self.opener.poll_open_bidi(cx)
    }

    fn poll_open_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<OutgoingUni, StreamErrorIncoming>> {
        self.opener.poll_open_send(cx)
    }

    fn close(&mut self, code: Code, reason: &[u8]) {
        self.opener.close(code, reason);
    }
}

/// Opens the streams that a server opens.
pub(super) struct Opener {
    shared: Arc<Shared>,
    opening: Option<BoxStream<'static, Result<quinn::SendStream, ConnectionError>>>,
}

/// A server opens no request.
#[derive(Debug, thiserror::Error)]
#[error("a server opens no bidirectional stream")]
struct ServerOpens;

impl quic::OpenStreams<Bytes> for Opener {
    type BidiStream = Request;
    type SendStream = OutgoingUni;

    fn poll_open_bidi(&mut self, _cx: &mut Context<'_>) -> Poll<Result<Request, StreamErrorIncoming>> {
        Poll::Ready(Err(StreamErrorIncoming::Unknown(Box::new(ServerOpens))))
    }

    fn poll_open_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<OutgoingUni, StreamErrorIncoming>> {
        let connection = &self.shared.connection;
        let opening = self.opening.get_or_insert_with(|| {
            Box::pin(stream::unfold(connection.clone(), |connection| async { Some((connection.open_uni().await, connection)) }))
        });
        let opened = ready!(opening.poll_next_unpin(cx)).expect("an unfold without end");
        let stream = opened.map_err(lost)?;
        Poll::Ready(Ok(OutgoingUni::new(stream)))
    }

    fn close(&mut self, code: Code, reason: &[u8]) {
        if code != Code::H3_NO_ERROR {
            // h3 found it: whatever it is, it is not HTTP/3.
            self.shared.verdict.lock().get_or_insert(Reason::Protocol);
        }
        self.shared.connection.close(varint(code), reason);
    }
}

/// The stream of a request.
pub(super) struct Request {
    out: Heads,
    recv: Incoming,
}

impl quic::BidiStream<Bytes> for Request {
    type SendStream = Heads;
    type RecvStream = Incoming;

    fn split(self) -> (Heads, Incoming) {
        (self.out, self.recv)
    }
}

impl quic::RecvStream for Request {
    type Buf = Bytes;

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, StreamErrorIncoming>> {
        self.recv.poll_data(cx)
    }

    fn stop_sending(&mut self, code: u64) {
        self.recv.stop_sending(code);
    }

    fn recv_id(&self) -> StreamId {
        self.recv.recv_id()
    }
}

impl quic::SendStream<Bytes> for Request {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        self.out.poll_ready(cx)
    }

    fn send_data<T: Into<WriteBuf<Bytes>>>(&mut self, data: T) -> Result<(), StreamErrorIncoming> {
        self.out.send_data(data)
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        self.out.poll_finish(cx)
    }

    fn reset(&mut self, code: u64) {
        self.out.reset(code);
    }

    fn send_id(&self) -> StreamId {
        self.out.send_id()
    }
}

/// What is received on a stream of frames.
pub(super) struct Incoming {
    stream: quinn::RecvStream,
    frames: Frames,
    /// Read, and not yet looked at.
    chunks: [Bytes; 2],
    /// Nothing more comes.
    ended: bool,
    /// Of the connection's account of incomplete frames.
    held: usize,
    /// Of a stream that is seldom spoken on, so that nobody looks at it each time.
    gate: Option<Gate>,
    /// What was read of the stream before it came here, and h3 is to read again.
    read: Option<Bytes>,
    /// The other half of a request's stream, which knows how much of the body h3 has.
    out: Option<Arc<Outgoing>>,
    shared: Arc<Shared>,
}

impl Incoming {
    fn new(stream: quinn::RecvStream, frames: Frames, shared: Arc<Shared>) -> Self {
        Self { stream, frames, chunks: [Bytes::new(), Bytes::new()], ended: false, held: 0, gate: None, read: None, out: None, shared }
    }

    /// A control stream whose type has been read; h3 reads it again.
    pub(super) fn control(stream: quinn::RecvStream, shared: Arc<Shared>) -> Self {
        let mut control = Self::new(stream, Frames::new(Stream::Control), shared);
        control.gate = Some(Gate::new());
        control.read = Some(Bytes::from_static(&[0]));
        control
    }

    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, StreamErrorIncoming>> {
        // h3 asks for more each time it looks for a frame and again for its payload, and looks through all that it has: a
        // body in small frames would pile up there, and each look take longer. What it has, it hands on without more.
        if self.out.as_ref().is_some_and(|out| out.unread() > 0) {
            return Poll::Pending;
        }
        loop {
            if !self.chunks[0].is_empty() {
                let piece = self.frames.next(&mut self.chunks[0]);
                let account = self.account();
                match piece.and_then(|piece| account.map(|()| piece)) {
                    Ok(Some(piece)) => {
                        if let Some(out) = &self.out {
                            out.came(self.frames.payload());
                        }
                        return Poll::Ready(Ok(Some(piece)));
                    }
                    Ok(None) => continue,
                    Err(violation) => return Poll::Ready(Err(self.shared.refuse(violation))),
                }
            }
            self.chunks.swap(0, 1);
            if !self.chunks[0].is_empty() {
                continue;
            }
            // A future of its own each time: it keeps nothing between polls, and a poll costs no allocation. Two places,
            // so that an end that has come is seen with what came before it.
            match ready!(pin!(self.stream.read_chunks(&mut self.chunks)).poll(cx)) {
                Ok(Some(_)) => {}
                Ok(None) => {
                    self.ended = true;
                    return Poll::Ready(self.frames.end().map(|()| None).map_err(|violation| self.shared.refuse(violation)));
                }
                Err(error) => {
                    self.ended = true;
                    return Poll::Ready(Err(read_error(error)));
                }
            }
        }
    }

    fn account(&mut self) -> Result<(), Violation> {
        let held = self.frames.held();
        if held == self.held {
            return Ok(());
        }
        let (before, had) = (self.shared.held.fetch_add(held, Relaxed), std::mem::replace(&mut self.held, held));
        self.shared.held.fetch_sub(had, Relaxed);
        if before - had + held > HELD { Err(Violation::HeadsTooLarge) } else { Ok(()) }
    }
}

impl quic::RecvStream for Incoming {
    type Buf = Bytes;

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, StreamErrorIncoming>> {
        if let Some(read) = self.read.take() {
            return Poll::Ready(Ok(Some(read)));
        }
        if self.ended {
            return Poll::Ready(Ok(None));
        }
        let Some(gate) = self.gate.take() else { return self.poll_piece(cx) };
        self.frames.requests(self.shared.requests());
        let piece = gate.poll(cx, |cx| self.poll_piece(cx));
        self.gate = Some(gate);
        piece
    }

    fn stop_sending(&mut self, code: u64) {
        self.ended = true;
        // It fails for one that has ended.
        let _ = self.stream.stop(varint(Code::from(code)));
    }

    fn recv_id(&self) -> StreamId {
        stream_id(self.stream.id())
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        self.shared.held.fetch_sub(self.held, Relaxed);
        if !self.ended {
            // RFC 9114 §4.1: what is not wanted of a request is refused without an error.
            let _ = self.stream.stop(varint(Code::H3_NO_ERROR));
        }
    }
}

pub(super) fn stream_id(id: quinn::StreamId) -> StreamId {
    u64::from(quinn::VarInt::from(id)).try_into().expect("QUIC's ids are varints")
}

pub(super) fn connection_error(error: ConnectionError) -> ConnectionErrorIncoming {
    match error {
        ConnectionError::ApplicationClosed(close) => ConnectionErrorIncoming::ApplicationClose { error_code: close.error_code.into() },
        ConnectionError::TimedOut => ConnectionErrorIncoming::Timeout,
        error @ (ConnectionError::VersionMismatch
        | ConnectionError::Reset
        | ConnectionError::LocallyClosed
        | ConnectionError::CidsExhausted
        | ConnectionError::TransportError(_)
        | ConnectionError::ConnectionClosed(_)) => ConnectionErrorIncoming::Undefined(Arc::new(error)),
    }
}

pub(super) fn lost(error: ConnectionError) -> StreamErrorIncoming {
    StreamErrorIncoming::ConnectionErrorIncoming { connection_error: connection_error(error) }
}

fn read_error(error: ReadError) -> StreamErrorIncoming {
    match error {
        ReadError::Reset(code) => StreamErrorIncoming::StreamTerminated { error_code: code.into() },
        ReadError::ConnectionLost(error) => lost(error),
        error @ (ReadError::ClosedStream | ReadError::IllegalOrderedRead | ReadError::ZeroRttRejected) => {
            StreamErrorIncoming::Unknown(Box::new(error))
        }
    }
}

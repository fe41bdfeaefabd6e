//! The sending half of streams: h3 writes heads, [`super::request`] writes bodies, and a request's stream is both's.
//!
//! What h3 writes on a request's stream waits here for the payload that it goes with, so that a small answer is one write.
//! Bodies pass without a copy. Nothing that was not ended on purpose looks whole: it is reset.

use std::{
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use h3::{
    error::Code,
    quic::{ConnectionErrorIncoming, SendStream, StreamErrorIncoming, StreamId, WriteBuf},
};
use parking_lot::Mutex;
use quinn::{StoppedError, WriteError};

use super::{
    quic::{Shared, lost, stream_id},
    request::within,
    violation::varint,
};

/// What h3 sends on a request's stream: heads and trailers. They wait in [`Outgoing`] for what goes with them.
pub(super) struct Heads(Arc<Outgoing>);

impl Heads {
    pub(super) const fn new(out: Arc<Outgoing>) -> Self {
        Self(out)
    }
}

impl SendStream<Bytes> for Heads {
    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        Poll::Ready(Ok(()))
    }

    fn send_data<T: Into<WriteBuf<Bytes>>>(&mut self, data: T) -> Result<(), StreamErrorIncoming> {
        let mut data = data.into();
        let mut half = self.0.half.lock();
        half.heads.reserve(data.remaining());
        while data.has_remaining() {
            let some = data.chunk().len();
            half.heads.put_slice(data.chunk());
            data.advance(some);
        }
        Ok(())
    }

    fn poll_finish(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        // Whoever owns the answer ends it.
        Poll::Ready(Ok(()))
    }

    fn reset(&mut self, code: u64) {
        self.0.reset(Code::from(code));
    }

    fn send_id(&self) -> StreamId {
        self.0.id
    }
}

/// Why an answer could not be sent.
#[derive(Debug)]
pub(super) enum Unsent {
    /// The client does not want it, or is gone.
    Gone,
    /// The client took none of it for so long.
    Stalled,
}

/// The sending half of a request's stream, as h3 and whoever sends the answer's body share it.
#[derive(Debug)]
pub(super) struct Outgoing {
    id: StreamId,
    half: Mutex<Half>,
    /// Of the request's body, what h3 has and nobody has asked it for. Written where it is read, by the request's task.
    unread: AtomicUsize,
}

#[derive(Debug)]
struct Half {
    stream: quinn::SendStream,
    /// What h3 has written and is not sent yet: a head, trailers. Bounded by what a service answers.
    heads: BytesMut,
    ended: bool,
    /// What is said when nobody ends it.
    abandoned: Code,
}

impl Half {
    fn new(stream: quinn::SendStream) -> Self {
        // RFC 9114 §4.1.1: until a service has it, a request was rejected, and may be sent again.
        Self { stream, heads: BytesMut::new(), ended: false, abandoned: Code::H3_REQUEST_REJECTED }
    }
}

impl Outgoing {
    pub(super) fn new(stream: quinn::SendStream) -> Arc<Self> {
        Arc::new(Self { id: stream_id(stream.id()), half: Mutex::new(Half::new(stream)), unread: AtomicUsize::new(0) })
    }

    pub(super) const fn id(&self) -> StreamId {
        self.id
    }

    pub(super) fn unread(&self) -> usize {
        self.unread.load(Relaxed)
    }

    /// h3 has so much more of the body.
    pub(super) fn came(&self, payload: usize) {
        self.unread.fetch_add(payload, Relaxed);
    }

    /// It has handed so much on.
    pub(super) fn read(&self, payload: usize) {
        self.unread.fetch_sub(payload, Relaxed);
    }

    /// A service has the request: without an answer of its own, something broke here.
    pub(super) fn handed_on(&self) {
        self.half.lock().abandoned = Code::H3_INTERNAL_ERROR;
    }

    /// What h3 has written and is not sent yet.
    pub(super) fn heads(&self) -> Bytes {
        std::mem::take(&mut self.half.lock().heads).freeze()
    }

    /// Sends `chunks`; `stalled` is how long the client may take none of them.
    pub(super) async fn send(&self, chunks: &mut [Bytes], stalled: Duration) -> Result<(), Unsent> {
        let mut first = 0;
        while first < chunks.len() {
            if chunks[first].is_empty() {
                first += 1;
                continue;
            }
            let chunks = &mut chunks[first..];
            let some = std::future::poll_fn(|cx| pin!(self.half.lock().stream.write_chunks(chunks)).poll(cx));
            match within(stalled, pin!(some)).await {
                Ok(Ok(written)) => first += written.chunks,
                Ok(Err(
                    WriteError::Stopped(_) | WriteError::ConnectionLost(_) | WriteError::ClosedStream | WriteError::ZeroRttRejected,
                )) => {
                    return Err(Unsent::Gone);
                }
                Err(_) => return Err(Unsent::Stalled),
            }
        }
        Ok(())
    }

    /// The answer is whole.
    pub(super) fn finish(self: &Arc<Self>, shared: &Shared) {
        {
            let mut half = self.half.lock();
            half.ended = true;
            // It fails for one that the client has stopped.
            let _ = half.stream.finish();
        }
        shared.answered(self.clone());
    }

    /// There is no answer, or no rest of it.
    pub(super) fn reset(&self, code: Code) {
        let mut half = self.half.lock();
        half.ended = true;
        half.heads = BytesMut::new();
        // It fails for one that has ended.
        let _ = half.stream.reset(varint(code));
    }

    /// The client stops the answer, or has all of it.
    pub(super) fn stopped(&self) -> impl Future<Output = Result<Option<quinn::VarInt>, StoppedError>> + Send + Sync + 'static + use<> {
        self.half.lock().stream.stopped()
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        let half = self.half.get_mut();
        if !half.ended {
            // Dropped as it is, quinn would end the stream as if the answer were whole.
            let _ = half.stream.reset(varint(half.abandoned));
        }
    }
}

/// A stream on which a server sends no answer: control, QPACK.
pub(super) struct OutgoingUni {
    stream: quinn::SendStream,
    writing: Option<WriteBuf<Bytes>>,
}

impl OutgoingUni {
    pub(super) const fn new(stream: quinn::SendStream) -> Self {
        Self { stream, writing: None }
    }
}

impl SendStream<Bytes> for OutgoingUni {
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
        if self.writing.is_some() {
            // Only h3 could do that.
            let connection_error = ConnectionErrorIncoming::InternalError("a write before the last was done".to_owned());
            return Err(StreamErrorIncoming::ConnectionErrorIncoming { connection_error });
        }
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
        error @ (WriteError::ClosedStream | WriteError::ZeroRttRejected) => StreamErrorIncoming::Unknown(Box::new(error)),
    }
}

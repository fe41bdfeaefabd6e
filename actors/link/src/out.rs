//! The way out of a link: one buffer in front of the message stream.
//!
//! While the link is idle a sender writes to the stream itself, which saves a task switch and is what
//! makes a lone call as quick as a bare echo. With more in flight frames gather here: a datagram's worth is
//! still written by its last sender, so that the peer begins while the rest is being made; with many in flight
//! the writer task sends all there is, which is what makes many calls cheap. QUIC keeps each write apart until
//! it is acknowledged, and looks through them for every datagram, so few large ones cost it less than many small.

use std::{
    pin::Pin,
    task::{Context, Poll, Waker},
};

use parking_lot::Mutex;
use tokio::sync::Notify;

/// Bytes that answers may gather beyond the buffer's own limit before the peer, which sends calls and
/// does not read their answers, is given up: 16 MiB, one answer of the largest size.
pub(crate) const MAX_ANSWERS: usize = horos_wire::codec::MAX_BODY;

/// Frames are written in portions of at least this much: nearly an Ethernet datagram.
const PORTION: usize = 1200;

#[derive(Debug)]
pub(crate) struct Out {
    state: Mutex<State>,
    /// Wakes the writer.
    filled: Notify,
    /// Wakes senders that wait for room.
    drained: Notify,
    limit: usize,
}

#[derive(Debug)]
struct State {
    buffer: Vec<u8>,
    /// Here while the writer has nothing to do.
    stream: Option<quinn::SendStream>,
    closed: bool,
    waiting: bool,
}

/// Why a frame was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotTaken {
    /// No room now.
    Full,
    /// Never again.
    Closed,
}

/// Whether a frame may be written at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Eager {
    /// If nothing is in front of it: someone waits for just this frame.
    Each,
    /// As soon as they fill a datagram: few enough wait for that to be what keeps both ends busy at once.
    Portions,
    /// Better gathered with others.
    No,
}

/// What a woken writer finds.
enum Wake {
    Write(quinn::SendStream),
    Early,
    Closed,
}

/// Writes what the stream takes at once. One that takes nothing now has nobody registered: the writer task polls again
/// with its own waker.
fn write_now(stream: &mut quinn::SendStream, bytes: &[u8]) -> usize {
    match tokio::io::AsyncWrite::poll_write(Pin::new(stream), &mut Context::from_waker(Waker::noop()), bytes) {
        Poll::Ready(Ok(written)) => written,
        // The stream is broken, which the writer task will find.
        Poll::Ready(Err(_)) | Poll::Pending => 0,
    }
}

impl Out {
    pub(crate) fn new(limit: usize) -> Self {
        let state = State { buffer: Vec::new(), stream: None, closed: false, waiting: false };
        Self { state: Mutex::new(state), filled: Notify::new(), drained: Notify::new(), limit }
    }

    /// Takes a frame, if there is room.
    pub(crate) fn send(&self, frame: &[u8], eager: Eager) -> Result<(), NotTaken> {
        self.put(frame, eager, self.limit)
    }

    /// Takes an answer, which cannot wait: [`NotTaken::Full`] means that the peer does not read.
    pub(crate) fn answer(&self, frame: &[u8], eager: Eager) -> Result<(), NotTaken> {
        self.put(frame, eager, self.limit + MAX_ANSWERS)
    }

    fn put(&self, mut frame: &[u8], eager: Eager, limit: usize) -> Result<(), NotTaken> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(NotTaken::Closed);
        }
        if !state.buffer.is_empty() && state.buffer.len() + frame.len() > limit {
            state.waiting = true;
            return Err(NotTaken::Full);
        }
        let State { buffer, stream, .. } = &mut *state;
        let Some(stream) = stream else {
            // The writer is at work, and looks again before it rests.
            buffer.extend_from_slice(frame);
            return Ok(());
        };
        let idle = buffer.is_empty();
        match eager {
            Eager::Each if idle => frame = &frame[write_now(stream, frame)..],
            Eager::Portions if buffer.len() + frame.len() >= PORTION => {
                buffer.extend_from_slice(frame);
                let written = write_now(stream, buffer);
                buffer.drain(..written);
                frame = &[];
            }
            Eager::Each | Eager::Portions | Eager::No => {}
        }
        buffer.extend_from_slice(frame);
        // What was there before has woken the writer already.
        if idle && !buffer.is_empty() {
            drop(state);
            self.filled.notify_one();
        }
        Ok(())
    }

    /// Takes a frame as soon as there is room; false when the link is closed.
    ///
    /// # Cancel safety
    /// A frame is taken whole or not at all.
    pub(crate) async fn send_waiting(&self, frame: &[u8]) -> bool {
        loop {
            let drained = self.drained.notified();
            tokio::pin!(drained);
            drained.as_mut().enable();
            match self.send(frame, Eager::No) {
                Ok(()) => return true,
                Err(NotTaken::Closed) => return false,
                Err(NotTaken::Full) => drained.await,
            }
        }
    }

    /// Sends what gathers, until the stream fails or the link is closed.
    pub(crate) async fn write_to(&self, mut stream: quinn::SendStream) -> Result<(), quinn::WriteError> {
        let mut sending = Vec::new();
        loop {
            if self.gather(&mut sending) {
                stream.write_all(&sending).await?;
                sending.clear();
                // A burst's memory is not kept for ever.
                sending.shrink_to(self.limit / 4);
                continue;
            }
            if !self.idle_with(stream) {
                return Ok(());
            }
            stream = loop {
                self.filled.notified().await;
                match self.wake() {
                    Wake::Write(stream) => break stream,
                    Wake::Early => {}
                    Wake::Closed => return Ok(()),
                }
            };
        }
    }

    /// Takes what has gathered; false when that is nothing.
    fn gather(&self, sending: &mut Vec<u8>) -> bool {
        let mut state = self.state.lock();
        std::mem::swap(sending, &mut state.buffer);
        if std::mem::take(&mut state.waiting) {
            self.drained.notify_waiters();
        }
        !sending.is_empty()
    }

    /// Leaves the stream to the senders, if there is still nothing to write; false when the link is closed.
    fn idle_with(&self, stream: quinn::SendStream) -> bool {
        let mut state = self.state.lock();
        if state.closed {
            return false;
        }
        if !state.buffer.is_empty() {
            // Filled since it was looked at: whoever did so saw no idle stream and woke nobody.
            self.filled.notify_one();
        }
        state.stream = Some(stream);
        true
    }

    fn wake(&self) -> Wake {
        let mut state = self.state.lock();
        if state.closed {
            return Wake::Closed;
        }
        if state.buffer.is_empty() {
            return Wake::Early;
        }
        match state.stream.take() {
            Some(stream) => Wake::Write(stream),
            None => Wake::Closed,
        }
    }

    /// Takes nothing more; what has not been sent is lost.
    pub(crate) fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        state.buffer = Vec::new();
        state.stream = None;
        drop(state);
        self.filled.notify_one();
        self.drained.notify_waiters();
    }

    /// Whether everything taken has been handed to QUIC.
    pub(crate) fn is_drained(&self) -> bool {
        let state = self.state.lock();
        state.closed || (state.buffer.is_empty() && state.stream.is_some())
    }
}

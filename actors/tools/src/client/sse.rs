//! Server-sent events of bounded size.
//!
//! A stream of them has no end, and so no size; one event has. rmcp's own limit is for its own HTTP clients only.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream::BoxStream};
use http_body_util::BodyExt as _;
use rmcp::transport::common::client_side_sse::SseRetryPolicy;
use sse_stream::{Error as SseError, Sse, SseStream};

use super::life::Times;

/// A stream that cannot be had again so often in a row is given up: what waits for an answer on it is told so, and what it would have
/// told of is found by looking. With the default times that takes some 7 s, if the server has no other.
const MAX_TIMES: u32 = 6;

/// When a broken stream is asked for again, unless the server said how long (`retry:`): as a lost server is greeted again.
#[derive(Clone, Copy, Debug)]
pub(super) struct Again(pub(super) Times);

impl SseRetryPolicy for Again {
    fn retry(&self, times: usize) -> Option<Duration> {
        let failed = u32::try_from(times).ok().filter(|times| *times < MAX_TIMES)?;
        Some(self.0.wait(failed + 1))
    }
}

/// Why a stream of events broke off.
#[derive(Debug, thiserror::Error)]
enum Broken<E: std::error::Error + 'static> {
    /// Its body did.
    #[error(transparent)]
    Body(E),
    /// One event is larger than is read.
    #[error("an event is larger than {limit} bytes")]
    EventTooLarge {
        /// In bytes.
        limit: usize,
    },
}

/// The events of a response's body, none of them larger than `limit` bytes.
pub(super) fn events(body: horos_egress::ResponseBody, limit: usize) -> BoxStream<'static, Result<Sse, SseError>> {
    SseStream::from_bytes_stream(Bounded { inner: body.into_data_stream(), size: Size::new(limit), failed: false }).boxed()
}

struct Bounded<S> {
    inner: S,
    size: Size,
    failed: bool,
}

impl<S, E> Stream for Bounded<S>
where
    S: Stream<Item = Result<Bytes, E>> + Unpin,
    E: std::error::Error + Send + Sync + 'static,
{
    type Item = Result<Bytes, Broken<E>>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.failed {
            return Poll::Ready(None);
        }
        let next = std::task::ready!(self.inner.poll_next_unpin(cx));
        let next = match next {
            Some(Ok(chunk)) if self.size.read(&chunk) => Some(Ok(chunk)),
            Some(Ok(_)) => Some(Err(Broken::EventTooLarge { limit: self.size.limit })),
            Some(Err(error)) => Some(Err(Broken::Body(error))),
            None => None,
        };
        self.failed = matches!(next, Some(Err(_)));
        Poll::Ready(next)
    }
}

/// Counts the bytes since the last empty line, which ends an event.
#[derive(Clone, Copy, Debug)]
struct Size {
    limit: usize,
    event: usize,
    line: usize,
    after_cr: bool,
}

impl Size {
    const fn new(limit: usize) -> Self {
        Self { limit, event: 0, line: 0, after_cr: false }
    }

    /// Whether what is held of an event after `chunk` is within the limit; at no moment may it be more.
    fn read(&mut self, chunk: &[u8]) -> bool {
        for byte in chunk {
            // "\r\n" is one end of a line.
            let second = std::mem::replace(&mut self.after_cr, *byte == b'\r') && *byte == b'\n';
            match byte {
                b'\n' if second => {}
                b'\r' | b'\n' if self.line == 0 => self.event = 0,
                b'\r' | b'\n' => self.line = 0,
                _ => self.line += 1,
            }
            self.event += 1;
            if self.event > self.limit {
                return false;
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_has_a_largest_size_however_it_comes_and_a_stream_has_none() {
        let event = |end: &str| format!("id: 1{end}data: {}{end}{end}", "x".repeat(80));
        for end in ["\n", "\r", "\r\n"] {
            let mut size = Size::new(100);
            for _ in 0..1_000 {
                assert!(size.read(event(end).as_bytes()), "{end:?}");
            }
            let mut size = Size::new(100);
            for byte in event(end).repeat(50).into_bytes() {
                assert!(size.read(&[byte]), "{end:?}");
            }
            assert!(!size.read("y".repeat(101).as_bytes()), "{end:?}");
            let mut size = Size::new(100);
            let lines = format!("data: z{end}").repeat(20);
            assert!(!size.read(lines.as_bytes()), "many short lines are one event {end:?}");
            assert!(!Size::new(100).read(format!(":{}", "c".repeat(100)).as_bytes()), "nor has a comment more room");
        }
    }

    #[test]
    fn a_stream_is_asked_for_again_a_few_times_and_then_given_up() {
        let again = Again(Times::default());
        for times in 0..MAX_TIMES as usize {
            let wait = again.retry(times).unwrap();
            assert!(wait > Duration::ZERO && wait <= Times::default().backoff_cap, "{times}: {wait:?}");
        }
        assert_eq!([MAX_TIMES as usize, usize::MAX].map(|times| again.retry(times)), [None, None]);
    }
}

//! Bodies on their way through: a request's is limited, an answer's must not stall, and neither brings trailers.
//!
//! Trailers may be dropped by whoever passes a message on (RFC 9110 §6.5.1), and are: nothing here looks at a field that comes after
//! the head was checked.

use std::{
    fmt,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep};

use super::{Body, BoxError, empty, pool::Lease, problem::Failure};

/// What became of a request's body: whoever sends it learns of an error, but not of which.
#[derive(Clone, Debug, Default)]
pub(super) struct Fate(Arc<AtomicU8>);

const WHOLE: u8 = 0;
const OVERRAN: u8 = 1;
const CUT: u8 = 2;

impl Fate {
    pub(super) fn failure(&self) -> Option<Failure> {
        match self.0.load(Relaxed) {
            WHOLE => None,
            OVERRAN => Some(Failure::BodyOverran),
            _ => Some(Failure::BodyCut),
        }
    }
}

/// Why a body ended early.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Cut {
    #[error("the body is larger than is passed on here")]
    TooLarge,
    #[error("the answer stopped coming")]
    Stalled,
    #[error("the answer broke off")]
    Broken,
}

/// A request's body. After its first error nothing more comes.
pub(super) struct Sending {
    inner: Body,
    left: u64,
    fate: Fate,
}

impl Sending {
    pub(super) fn new(inner: Body, limit: u64) -> (Self, Fate) {
        let fate = Fate::default();
        (Self { inner, left: limit, fate: fate.clone() }, fate)
    }

    /// The body that a question has.
    pub(super) fn none() -> Self {
        Self { inner: empty(), left: 0, fate: Fate::default() }
    }

    fn fail(&mut self, fate: u8) {
        self.fate.0.store(fate, Relaxed);
        // What was there of the body is let go at once: nobody reads it any more.
        self.inner = empty();
    }
}

impl http_body::Body for Sending {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        loop {
            return Poll::Ready(match ready!(Pin::new(&mut this.inner).poll_frame(cx)) {
                Some(Ok(frame)) => {
                    let Ok(data) = frame.into_data() else { continue };
                    match this.left.checked_sub(data.len() as u64) {
                        Some(left) => {
                            this.left = left;
                            Some(Ok(Frame::data(data)))
                        }
                        None => {
                            this.fail(OVERRAN);
                            Some(Err(Cut::TooLarge.into()))
                        }
                    }
                }
                Some(Err(error)) => {
                    this.fail(CUT);
                    Some(Err(error))
                }
                None => None,
            });
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream() && self.fate.0.load(Relaxed) == WHOLE
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl fmt::Debug for Sending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sending").field("left", &self.left).finish_non_exhaustive()
    }
}

/// An answer's body. Holds what the request took, until the last of it has been read or nobody wants the rest.
pub(super) struct Receiving<P> {
    inner: Incoming,
    stalled: Duration,
    /// Made when the body is first waited for: most bodies are there with their head.
    timer: Option<Pin<Box<Sleep>>>,
    /// Whether the timer runs for the part that is waited for now.
    waiting: bool,
    ended: bool,
    lease: Option<Lease>,
    broke: Box<dyn Fn() + Send>,
    _permit: P,
}

impl<P> Receiving<P> {
    pub(super) fn new(inner: Incoming, stalled: Duration, lease: Lease, broke: Box<dyn Fn() + Send>, permit: P) -> Self {
        let mut body = Self { inner, stalled, timer: None, waiting: false, ended: false, lease: Some(lease), broke, _permit: permit };
        if body.inner.is_end_stream() {
            body.whole();
        }
        body
    }

    /// The last of it was read: the connection can carry another request.
    fn whole(&mut self) {
        self.ended = true;
        if let Some(lease) = self.lease.take() {
            lease.give_back();
        }
    }

    fn cut(&mut self, cut: Cut) -> Option<Result<Frame<Bytes>, BoxError>> {
        self.ended = true;
        self.lease = None;
        (self.broke)();
        Some(Err(cut.into()))
    }
}

impl<P: Unpin> http_body::Body for Receiving<P> {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        if this.ended {
            return Poll::Ready(None);
        }
        loop {
            return match Pin::new(&mut this.inner).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    this.waiting = false;
                    let Ok(data) = frame.into_data() else { continue };
                    if this.inner.is_end_stream() {
                        this.whole();
                    }
                    Poll::Ready(Some(Ok(Frame::data(data))))
                }
                // Passed on as what it is: an end here would make half an answer look like a whole one.
                Poll::Ready(Some(Err(error))) => {
                    tracing::debug!(%error, "the owner's answer broke off");
                    Poll::Ready(this.cut(Cut::Broken))
                }
                Poll::Ready(None) => {
                    this.whole();
                    Poll::Ready(None)
                }
                Poll::Pending => {
                    let until = Instant::now() + this.stalled;
                    let timer = this.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
                    if !std::mem::replace(&mut this.waiting, true) {
                        timer.as_mut().reset(until);
                    }
                    ready!(timer.as_mut().poll(cx));
                    Poll::Ready(this.cut(Cut::Stalled))
                }
            };
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ended || self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// A body that holds a permit until its end.
pub(super) struct Held<B, P> {
    inner: B,
    permit: Option<P>,
}

impl<B, P> Held<B, P> {
    pub(super) fn new(inner: B, permit: P) -> Self {
        Self { inner, permit: Some(permit) }
    }
}

impl<B: http_body::Body + Unpin, P: Unpin> http_body::Body for Held<B, P> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(cx));
        if !matches!(frame, Some(Ok(_))) {
            self.permit = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;
    use http_body_util::{BodyExt as _, StreamBody};

    use super::*;
    use crate::proxy::boxed;

    fn sending(frames: Vec<Result<Frame<Bytes>, BoxError>>, limit: u64) -> (Sending, Fate) {
        Sending::new(boxed(StreamBody::new(stream::iter(frames))), limit)
    }

    fn data(text: &'static str) -> Result<Frame<Bytes>, BoxError> {
        Ok(Frame::data(Bytes::from_static(text.as_bytes())))
    }

    #[tokio::test]
    async fn a_body_up_to_the_limit_passes_and_one_byte_more_does_not() {
        let (body, fate) = sending(vec![data("12345"), data(""), data("67890")], 10);
        assert_eq!(body.collect().await.unwrap().to_bytes(), "1234567890");
        assert_eq!(fate.failure(), None);
        let (mut body, fate) = sending(vec![data("12345"), data("678901"), data("never")], 10);
        assert!(body.frame().await.unwrap().is_ok());
        assert_eq!(body.frame().await.unwrap().unwrap_err().to_string(), Cut::TooLarge.to_string());
        assert!(body.frame().await.is_none() && !body.is_end_stream());
        assert_eq!(fate.failure(), Some(Failure::BodyOverran));
    }

    #[tokio::test]
    async fn no_trailer_gets_through_and_a_broken_body_is_told_from_a_whole_one() {
        let trailers = [("x-forwarded-for".parse().unwrap(), "1.2.3.4".parse().unwrap())].into_iter().collect();
        let (body, fate) = sending(vec![data("1"), Ok(Frame::trailers(trailers))], 10);
        assert!(body.collect().await.unwrap().trailers().is_none());
        assert_eq!(fate.failure(), None);
        let (body, fate) = sending(vec![data("1"), Err("gone".into())], 10);
        assert!(body.collect().await.is_err());
        assert_eq!(fate.failure(), Some(Failure::BodyCut));
    }
}

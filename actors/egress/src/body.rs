//! Bodies on their way: a request's is limited, a response's is limited and must keep coming.
//!
//! Trailers are dropped: whoever passes a message on may (RFC 9110 §6.5.1), and what comes behind a body nobody has checked.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::Response;
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt as _, combinators::UnsyncBoxBody};
use parking_lot::Mutex;
use tokio::time::{Instant, Sleep};

use super::{
    carrier::Incoming,
    error::{BodyError, BoxError, EgressError, RequestBodyError},
    hosts::Ticket,
    pool::Lease,
};

/// How a request's body fares: whoever sends it tells its driver of an error, but not which.
#[derive(Clone, Debug)]
pub(crate) struct Fate(Arc<Mutex<Progress>>);

#[derive(Clone, Copy, Debug)]
pub(crate) struct Progress {
    /// When the host last took a part of it, or asked for the next.
    pub(crate) since: Instant,
    /// The next part is its source's to give.
    pub(crate) waits_for_source: bool,
    pub(crate) failed: Option<RequestBodyError>,
}

impl Fate {
    pub(crate) fn look(&self) -> Progress {
        *self.0.lock()
    }

    /// From now on the host has it.
    pub(crate) fn restart(&self) {
        self.0.lock().since = Instant::now();
    }
}

/// A request's body. After its first error nothing more comes.
pub(crate) struct Sending {
    /// None after its end.
    inner: Option<UnsyncBoxBody<Bytes, BoxError>>,
    left: u64,
    fate: Fate,
}

impl Sending {
    pub(crate) fn new(inner: Option<UnsyncBoxBody<Bytes, BoxError>>, limit: u64) -> Self {
        let progress = Progress { since: Instant::now(), waits_for_source: false, failed: None };
        Self { inner: inner.filter(|body| !body.is_end_stream()), left: limit, fate: Fate(Arc::new(Mutex::new(progress))) }
    }

    pub(crate) fn fate(&self) -> Fate {
        self.fate.clone()
    }

    fn fail(&mut self, why: RequestBodyError) -> Option<Result<Frame<Bytes>, BoxError>> {
        self.fate.0.lock().failed = Some(why);
        // What was there of it is let go at once: nobody reads it any more.
        self.inner = None;
        Some(Err(why.into()))
    }
}

impl Body for Sending {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        loop {
            let Some(inner) = &mut this.inner else { return Poll::Ready(None) };
            let frame = Pin::new(inner).poll_frame(cx);
            {
                let mut progress = this.fate.0.lock();
                // Asked again while it waits: no progress.
                if frame.is_ready() || !progress.waits_for_source {
                    progress.since = Instant::now();
                }
                progress.waits_for_source = frame.is_pending();
            }
            return Poll::Ready(match ready!(frame) {
                Some(Ok(frame)) => {
                    let Ok(data) = frame.into_data() else { continue };
                    let Some(left) = this.left.checked_sub(data.len() as u64) else {
                        return Poll::Ready(this.fail(RequestBodyError::TooLarge));
                    };
                    this.left = left;
                    Some(Ok(Frame::data(data)))
                }
                Some(Err(error)) => {
                    tracing::debug!(%error, "the source of a request's body failed");
                    this.fail(RequestBodyError::Failed)
                }
                None => {
                    this.inner = None;
                    None
                }
            });
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Body::is_end_stream) && self.fate.look().failed.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.as_ref().map_or(SizeHint::with_exact(0), Body::size_hint)
    }
}

/// How long a response's body may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    /// Between two parts.
    pub(crate) idle: Duration,
    /// Until its end.
    pub(crate) deadline: Instant,
}

/// A response's body. It holds its request's place until its end is read or it is dropped, which closes what carries it.
///
/// It ends with an error and never early: what was read before an error is not the whole. After an error nothing more comes. Nothing is
/// decompressed: `Content-Encoding` is the reader's affair, and so is how far it swells.
///
/// A body over plain HTTP without a length ends where its connection does, which nobody can tell from a loss (RFC 9112 §8).
pub struct ResponseBody {
    inner: Incoming,
    limit: u64,
    left: u64,
    span: Span,
    /// Made when the body is first waited for: most are there with their head.
    timer: Option<Pin<Box<Sleep>>>,
    /// Whether the timer runs for the part that is waited for now.
    waiting: bool,
    ended: bool,
    held: Option<(Lease, Ticket)>,
}

impl ResponseBody {
    /// The body of `inner`; refused at once when it says itself that it is larger than `limit`.
    pub(crate) fn of(
        inner: Response<Incoming>,
        limit: u64,
        span: Span,
        lease: Lease,
        ticket: Ticket,
    ) -> Result<Response<Self>, EgressError> {
        let (parts, inner) = inner.into_parts();
        let held = Some((lease, ticket));
        let mut body = Self { inner, limit, left: limit, span, timer: None, waiting: false, ended: false, held };
        if body.inner.size_hint().lower() > limit {
            let why = BodyError::TooLarge { limit };
            body.cut(why);
            return Err(EgressError::Response(why));
        }
        if body.inner.is_end_stream() {
            body.whole();
        }
        Ok(Response::from_parts(parts, body))
    }

    /// All of it.
    ///
    /// # Errors
    /// [`EgressError::Response`] says why it is not whole.
    ///
    /// # Cancel safety
    /// Dropped, it lets the response go: what was read of it is lost.
    pub async fn bytes(self) -> Result<Bytes, EgressError> {
        self.collect().await.map(http_body_util::Collected::to_bytes).map_err(EgressError::Response)
    }

    /// Reads what little there may be left, so that the connection can be used again.
    pub(crate) async fn drain(self) {
        let _ = self.collect().await;
    }

    /// The last of it was read: the connection can carry another request.
    fn whole(&mut self) {
        self.ended = true;
        if let Some((lease, ticket)) = self.held.take() {
            lease.give_back();
            ticket.good();
        }
    }

    fn cut(&mut self, why: BodyError) -> Option<Result<Frame<Bytes>, BodyError>> {
        self.ended = true;
        if let Some((_lease, ticket)) = self.held.take() {
            match why {
                BodyError::Stalled | BodyError::Broken => ticket.bad(),
                // How large it is and how long it takes is the host's affair; how much of it is wanted, the caller's.
                BodyError::TooLarge { .. } | BodyError::TooLate => ticket.good(),
            }
        }
        Some(Err(why))
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        loop {
            if this.ended {
                return Poll::Ready(None);
            }
            // A host that always has something must not outlast the deadline either.
            if Instant::now() >= this.span.deadline {
                return Poll::Ready(this.cut(BodyError::TooLate));
            }
            return match Pin::new(&mut this.inner).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    this.waiting = false;
                    let Ok(data) = frame.into_data() else { continue };
                    let Some(left) = this.left.checked_sub(data.len() as u64) else {
                        return Poll::Ready(this.cut(BodyError::TooLarge { limit: this.limit }));
                    };
                    this.left = left;
                    if this.inner.is_end_stream() {
                        this.whole();
                    }
                    Poll::Ready(Some(Ok(Frame::data(data))))
                }
                // Passed on as what it is: an end here would make half a response look like a whole one.
                Poll::Ready(Some(Err(error))) => {
                    tracing::debug!(%error, "a response broke off");
                    Poll::Ready(this.cut(BodyError::Broken))
                }
                Poll::Ready(None) => {
                    this.whole();
                    Poll::Ready(None)
                }
                Poll::Pending => {
                    let until = (Instant::now() + this.span.idle).min(this.span.deadline);
                    let timer = this.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
                    if !std::mem::replace(&mut this.waiting, true) {
                        timer.as_mut().reset(until);
                    }
                    ready!(timer.as_mut().poll(cx));
                    let late = Instant::now() >= this.span.deadline;
                    Poll::Ready(this.cut(if late { BodyError::TooLate } else { BodyError::Stalled }))
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

impl Drop for ResponseBody {
    /// Whoever wants no more of it says nothing against the host, which has answered.
    fn drop(&mut self) {
        if let Some((_lease, ticket)) = self.held.take() {
            ticket.good();
        }
    }
}

impl fmt::Debug for ResponseBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseBody").field("left", &self.left).field("ended", &self.ended).finish_non_exhaustive()
    }
}

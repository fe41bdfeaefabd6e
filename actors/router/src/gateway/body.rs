//! Bodies on their way through the gateway: a request's is taken in whole or in parts, an answer's is watched.

use std::{
    collections::VecDeque,
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant as StdInstant},
};

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use parking_lot::Mutex;
use tokio::{
    sync::oneshot,
    time::{Instant, Sleep, timeout_at},
};

use super::{BoxError, carried::Parcel};
use crate::strategy::Body;

/// Why a request's body was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TakeError {
    TooLarge,
    /// It broke off, or its port cut it off, which says so itself.
    Broken,
    /// The deadline passed before its end.
    Late,
}

/// All of a body, of at most `most` bytes.
pub(super) async fn whole<B>(body: B, most: usize, until: Option<StdInstant>) -> Result<Bytes, TakeError>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    if body.size_hint().lower() > most as u64 {
        return Err(TakeError::TooLarge);
    }
    let all = async {
        match Limited::new(body, most).collect().await {
            Ok(all) => Ok(all.to_bytes()),
            Err(error) if error.is::<LengthLimitError>() => Err(TakeError::TooLarge),
            Err(_) => Err(TakeError::Broken),
        }
    };
    within(until, all).await
}

/// All of a body that has at most `most` bytes; of any other its beginning, and the rest as it comes.
pub(super) async fn begun<B>(body: B, most: usize, until: Option<StdInstant>) -> Result<(Parcel, Breaks), TakeError>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let mut body = Box::pin(body);
    let (mut first, mut length) = (VecDeque::new(), 0);
    let reading = async {
        while body.size_hint().lower() <= most as u64 {
            match body.frame().await {
                None => return Ok(true),
                Some(Err(_)) => return Err(TakeError::Broken),
                Some(Ok(frame)) => {
                    let Ok(data) = frame.into_data() else { continue };
                    length += data.len();
                    first.push_back(data);
                    if length > most {
                        return Ok(false);
                    }
                }
            }
        }
        Ok(false)
    };
    if within(until, reading).await? {
        let whole = match first.len() {
            0 | 1 => first.pop_front().unwrap_or_default(),
            _ => first.iter().flatten().copied().collect(),
        };
        return Ok((Parcel::Whole(whole), Breaks(None)));
    }
    let (breaks, broken) = oneshot::channel();
    let upload = Upload { first, rest: Some(body), breaks: Some(breaks) };
    Ok((Parcel::Stream(Arc::new(Mutex::new(Some(upload.boxed_unsync())))), Breaks(Some(broken))))
}

async fn within<T>(until: Option<StdInstant>, work: impl Future<Output = Result<T, TakeError>>) -> Result<T, TakeError> {
    match until {
        None => work.await,
        Some(until) => timeout_at(until.into(), work).await.unwrap_or(Err(TakeError::Late)),
    }
}

/// Tells when a body that is being sent on breaks off.
#[derive(Debug)]
pub(super) struct Breaks(Option<oneshot::Receiver<()>>);

impl Breaks {
    /// Never ends if it does not break.
    pub(super) async fn wait(self) {
        let broke = match self.0 {
            Some(broken) => broken.await.is_ok(),
            None => false,
        };
        if !broke {
            std::future::pending().await
        }
    }
}

/// A request's body, some of which has been read. After its first error nothing more comes.
struct Upload<B> {
    first: VecDeque<Bytes>,
    rest: Option<Pin<Box<B>>>,
    breaks: Option<oneshot::Sender<()>>,
}

impl<B> http_body::Body for Upload<B>
where
    B: http_body::Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Some(data) = self.first.pop_front() {
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        let Some(rest) = &mut self.rest else { return Poll::Ready(None) };
        let frame = ready!(rest.as_mut().poll_frame(cx));
        if !matches!(frame, Some(Ok(_))) {
            self.rest = None;
        }
        Poll::Ready(frame.map(|frame| {
            frame.map_err(|error| {
                if let Some(breaks) = self.breaks.take() {
                    // Whoever waited for an answer may have it already.
                    let _ = breaks.send(());
                }
                error.into()
            })
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_empty() && self.rest.as_ref().is_none_or(|rest| rest.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        let read: u64 = self.first.iter().map(|data| data.len() as u64).sum();
        let rest = self.rest.as_ref().map_or(SizeHint::with_exact(0), |rest| rest.size_hint());
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower().saturating_add(read));
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper.saturating_add(read));
        }
        hint
    }
}

/// An answer's body that comes as it is made. It holds what its call held until its end is read or it is dropped.
pub(super) struct Flow<K> {
    inner: Body,
    /// Between two parts.
    idle: Duration,
    /// Until its end.
    until: Instant,
    /// Made when the body is first waited for.
    timer: Option<Pin<Box<Sleep>>>,
    /// Whether the timer runs for the part that is waited for now.
    waiting: bool,
    /// None after its end.
    kept: Option<K>,
    /// Told of what broke off, where it did for a reason of its source's.
    broke: fn(&K),
}

/// Why an answer's body ended early. What was read of it is not the whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum Cut {
    #[error("the answer stopped coming")]
    Stalled,
    #[error("the answer took longer than any may")]
    Late,
}

impl<K> Flow<K> {
    /// `inner`, each part of it within `idle`, and all of it within `longest`; it keeps `kept`, and tells that by `broke`.
    pub(super) fn new(inner: Body, idle: Duration, longest: Duration, kept: K, broke: fn(&K)) -> Self {
        Self { inner, idle, until: Instant::now() + longest, timer: None, waiting: false, kept: Some(kept), broke }
    }

    fn end(&mut self) {
        self.kept = None;
        self.inner = super::whole(Bytes::new());
    }
}

impl<K: Unpin> http_body::Body for Flow<K> {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        let Some(kept) = &this.kept else { return Poll::Ready(None) };
        // Whoever always has something must not outlast the end either.
        if Instant::now() >= this.until {
            this.end();
            return Poll::Ready(Some(Err(Cut::Late.into())));
        }
        let error = match Pin::new(&mut this.inner).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                this.waiting = false;
                if this.inner.is_end_stream() {
                    this.end();
                }
                return Poll::Ready(Some(Ok(frame)));
            }
            Poll::Ready(None) => {
                this.end();
                return Poll::Ready(None);
            }
            // Passed on as what it is: an end here would make half an answer look like a whole one.
            Poll::Ready(Some(Err(error))) => error,
            Poll::Pending => {
                let until = (Instant::now() + this.idle).min(this.until);
                let timer = this.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
                if !std::mem::replace(&mut this.waiting, true) {
                    timer.as_mut().reset(until);
                }
                ready!(timer.as_mut().poll(cx));
                Cut::Stalled.into()
            }
        };
        tracing::debug!(%error, "an answer broke off");
        (this.broke)(kept);
        this.end();
        Poll::Ready(Some(Err(error)))
    }

    fn is_end_stream(&self) -> bool {
        self.kept.is_none() || self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl<K> fmt::Debug for Flow<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flow").field("ended", &self.kept.is_none()).finish_non_exhaustive()
    }
}

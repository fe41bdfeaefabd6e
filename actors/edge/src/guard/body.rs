//! Bodies on their way through: a request's is counted, limited and must not stall; an answer's is counted.

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
use tokio::time::{Instant, Sleep};

use crate::{Body, BoxError, Metrics, Version, metrics::Direction, problem::Problem};

/// What became of a request's body, for whoever answers: a service may well have taken the error for one of its own.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fate(Arc<AtomicU8>);

const WHOLE: u8 = 0;
const TOO_LARGE: u8 = 1;
const STALLED: u8 = 2;

impl Fate {
    /// What is wrong with the body as far as it was read.
    pub(crate) fn problem(&self) -> Option<Problem> {
        match self.0.load(Relaxed) {
            WHOLE => None,
            TOO_LARGE => Some(Problem::BODY_TOO_LARGE),
            _ => Some(Problem::SLOW_BODY),
        }
    }
}

/// Why a body ended early. A service that passes it on shows nothing but this text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum Cut {
    #[error("the body is larger than is taken here")]
    TooLarge,
    #[error("the body stopped coming")]
    Stalled,
}

/// A request's body. After its first error nothing more comes.
pub(crate) struct Intake {
    inner: Body,
    left: u64,
    idle: Duration,
    /// When all of it is to be there, where the deadline of its answer does not say so.
    whole_by: Option<Instant>,
    /// Made when the body is first waited for: most bodies are there with their head.
    timer: Option<Pin<Box<Sleep>>>,
    /// Whether the timer runs for the part that is waited for now.
    waiting: bool,
    fate: Fate,
    metrics: Metrics,
    version: Version,
}

impl Intake {
    pub(crate) fn new(inner: Body, limit: u64, idle: Duration, metrics: Metrics, version: Version) -> (Self, Fate) {
        let fate = Fate::default();
        (Self { inner, left: limit, idle, whole_by: None, timer: None, waiting: false, fate: fate.clone(), metrics, version }, fate)
    }

    /// The same, that has to be whole at some time, however steadily it comes.
    pub(crate) fn whole_by(self, by: Option<Instant>) -> Self {
        Self { whole_by: by, ..self }
    }

    fn stalled(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let until = Instant::now() + self.idle;
        let until = self.whole_by.map_or(until, |by| until.min(by));
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
        if !std::mem::replace(&mut self.waiting, true) {
            timer.as_mut().reset(until);
        }
        timer.as_mut().poll(cx)
    }
}

impl http_body::Body for Intake {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        let cut = match this.fate.0.load(Relaxed) {
            WHOLE => match Pin::new(&mut this.inner).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    this.waiting = false;
                    let bytes = frame.data_ref().map_or(0, |data| data.len() as u64);
                    this.metrics.bytes(this.version, Direction::Request, bytes);
                    match this.left.checked_sub(bytes) {
                        Some(left) => {
                            this.left = left;
                            return Poll::Ready(Some(Ok(frame)));
                        }
                        None => Cut::TooLarge,
                    }
                }
                Poll::Ready(other) => return Poll::Ready(other.map(|frame| frame.map_err(Into::into))),
                Poll::Pending => {
                    ready!(this.stalled(cx));
                    Cut::Stalled
                }
            },
            _ => return Poll::Ready(None),
        };
        // What was there of the body is let go at once: nobody reads it any more.
        this.inner = Body::empty();
        this.fate.0.store(if cut == Cut::TooLarge { TOO_LARGE } else { STALLED }, Relaxed);
        Poll::Ready(Some(Err(cut.into())))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream() && self.fate.0.load(Relaxed) == WHOLE
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl fmt::Debug for Intake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Intake").field("left", &self.left).finish_non_exhaustive()
    }
}

/// An answer's body whose length is not known before.
#[derive(Debug)]
pub(crate) struct Outgoing {
    inner: Body,
    metrics: Metrics,
    version: Version,
}

/// Counts `body`, without a wrapper where its length is known.
pub(crate) fn counted(body: Body, metrics: &Metrics, version: Version) -> Body {
    match body.size_hint().exact() {
        Some(0) => body,
        Some(bytes) => {
            metrics.bytes(version, Direction::Response, bytes);
            body
        }
        None => Body::new(Outgoing { inner: body, metrics: metrics.clone(), version }),
    }
}

impl http_body::Body for Outgoing {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(cx));
        if let Some(data) = frame.as_ref().and_then(|frame| frame.as_ref().ok()).and_then(Frame::data_ref) {
            self.metrics.bytes(self.version, Direction::Response, data.len() as u64);
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
    use futures_util::{FutureExt as _, StreamExt as _, stream};
    use http_body_util::BodyExt as _;

    use super::*;

    fn intake(body: Body, limit: u64) -> (Intake, Fate) {
        Intake::new(body, limit, Duration::from_secs(15), Metrics::default(), Version::Http1)
    }

    fn parts(parts: Vec<&'static str>) -> Body {
        Body::from_stream(stream::iter(parts).map(Ok::<_, BoxError>))
    }

    #[tokio::test]
    async fn a_body_up_to_the_limit_passes_and_one_byte_more_does_not() {
        let (body, fate) = intake(parts(vec!["12345", "", "67890"]), 10);
        assert_eq!(body.collect().await.unwrap().to_bytes(), "1234567890");
        assert_eq!(fate.problem(), None);
        let (mut body, fate) = intake(parts(vec!["12345", "678901", "never"]), 10);
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "12345");
        assert_eq!(body.frame().await.unwrap().unwrap_err().to_string(), "the body is larger than is taken here");
        assert!(body.frame().await.is_none() && !body.is_end_stream());
        assert_eq!(fate.problem(), Some(Problem::BODY_TOO_LARGE));
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_drips_is_taken_and_one_that_stops_is_not() {
        let drip = stream::iter(0..5).then(|_| tokio::time::sleep(Duration::from_secs(14)).map(|()| Ok::<_, BoxError>("x")));
        let (mut body, fate) = intake(Body::from_stream(Box::pin(drip.chain(stream::pending()))), 10);
        let started = Instant::now();
        for _ in 0..5 {
            assert!(body.frame().await.unwrap().is_ok());
        }
        assert_eq!(body.frame().await.unwrap().unwrap_err().to_string(), "the body stopped coming");
        assert_eq!(started.elapsed().as_secs(), 5 * 14 + 15);
        assert_eq!(fate.problem(), Some(Problem::SLOW_BODY));
    }

    #[tokio::test]
    async fn what_comes_and_goes_is_counted() {
        let metrics = Metrics::default();
        let (body, _) = Intake::new(parts(vec!["123", "45"]), 10, Duration::from_secs(1), metrics.clone(), Version::Http2);
        body.collect().await.unwrap();
        assert_eq!(counted(Body::from("1234567"), &metrics, Version::Http2).size_hint().exact(), Some(7));
        counted(parts(vec!["12", "3"]), &metrics, Version::Http2).collect().await.unwrap();
        let text = metrics.text();
        assert!(text.contains("horos_http_request_body_bytes_total{version=\"h2\"} 5\n"), "{text}");
        assert!(text.contains("horos_http_response_body_bytes_total{version=\"h2\"} 10\n"), "{text}");
    }
}

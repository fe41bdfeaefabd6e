//! On the owner: every answer to a write says how far the logs of its publications have got.
//!
//! They are read *after* the handler has answered, so they are at or behind what it committed. Where they cannot be read, in time or
//! at all, the answer says `unknown`: whoever brings that back reads from the owner, and sees what was written.

use std::{convert::Infallible, fmt, sync::Arc, task::Poll, time::Duration};

use futures_util::future::BoxFuture;
use horos_wire::{ActorName, protocol::sync::Position};
use http::{HeaderValue, Request, Response};
use tower::{Layer, Service, ServiceExt as _};

use super::{Bookmark, BoxError, X_SYNC_POSITION, bookmark};

/// How long an answer waits for the heads of the logs.
const PATIENCE: Duration = Duration::from_secs(1);

/// Tells how far the logs of this node's publications have got.
pub trait Heads: Send + Sync + 'static {
    /// The position of each publication, at or behind every commit that was answered before this was called.
    fn head(&self) -> BoxFuture<'_, Result<Vec<(ActorName, Position)>, BoxError>>;
}

/// Which answers are stamped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stamps {
    /// Those to methods that may write: all but `GET`, `HEAD`, `OPTIONS` and `TRACE`.
    #[default]
    Writes,
    /// All: where a `GET` writes.
    All,
}

/// Puts `X-Sync-Position` on what a service answers.
#[derive(Clone)]
pub struct StampPosition {
    heads: Arc<dyn Heads>,
    stamps: Stamps,
}

impl StampPosition {
    /// With what `heads` tells.
    pub fn new(heads: Arc<dyn Heads>, stamps: Stamps) -> Self {
        Self { heads, stamps }
    }

    async fn stamp(&self) -> HeaderValue {
        let why: BoxError = match tokio::time::timeout(PATIENCE, self.heads.head()).await {
            Ok(Ok(marks)) => match Bookmark::new(marks) {
                Some(bookmark) => return bookmark.header(),
                None => "more publications than a bookmark holds".into(),
            },
            Ok(Err(error)) => error,
            Err(elapsed) => elapsed.into(),
        };
        tracing::debug!(reason = %why, "how far the logs have got is not known");
        bookmark::unknown()
    }
}

impl fmt::Debug for StampPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StampPosition").field("stamps", &self.stamps).finish_non_exhaustive()
    }
}

impl<S> Layer<S> for StampPosition {
    type Service = Stamped<S>;

    fn layer(&self, inner: S) -> Stamped<S> {
        Stamped { inner, stamp: self.clone() }
    }
}

/// A service whose answers are stamped.
#[derive(Clone, Debug)]
pub struct Stamped<S> {
    inner: S,
    stamp: StampPosition,
}

impl<S, B, RB> Service<Request<B>> for Stamped<S>
where
    S: Service<Request<B>, Response = Response<RB>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
    B: Send + 'static,
    RB: Send + 'static,
{
    type Response = Response<RB>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<RB>, Infallible>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> Poll<Result<(), Infallible>> {
        // Each request waits for its own clone.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let Self { inner, stamp } = self.clone();
        let stamped = stamp.stamps == Stamps::All || !request.method().is_safe();
        Box::pin(async move {
            let mut answer = inner.oneshot(request).await?;
            // Whatever it answered: what failed may have written before it did.
            if stamped {
                answer.headers_mut().insert(X_SYNC_POSITION, stamp.stamp().await);
            }
            Ok(answer)
        })
    }
}

#[cfg(test)]
mod tests {
    use horos_wire::protocol::sync::Epoch;
    use http::Method;

    use super::*;

    /// Tells the head, fails, or never answers.
    struct Told(Option<Result<usize, ()>>);

    impl Heads for Told {
        fn head(&self) -> BoxFuture<'_, Result<Vec<(ActorName, Position)>, BoxError>> {
            let position = Position { epoch: Epoch(1), seq: 7, stamp: 0x52 };
            let marks = |n| (0..n).map(|n| (format!("p{n}").parse().unwrap(), position)).collect();
            match self.0 {
                Some(Ok(n)) => Box::pin(std::future::ready(Ok(marks(n)))),
                Some(Err(())) => Box::pin(std::future::ready(Err("the file is away".into()))),
                None => Box::pin(std::future::pending()),
            }
        }
    }

    async fn stamped(told: Option<Result<usize, ()>>, method: Method, stamps: Stamps) -> Option<String> {
        let handler = tower::service_fn(|_: Request<()>| async {
            Ok::<_, Infallible>(Response::builder().status(500).header(X_SYNC_POSITION, "the handler's own").body(()).unwrap())
        });
        let service = StampPosition::new(Arc::new(Told(told)), stamps).layer(handler);
        let answer = service.oneshot(Request::builder().method(method).body(()).unwrap()).await.unwrap();
        answer.headers().get(X_SYNC_POSITION).map(|value| value.to_str().unwrap().to_owned())
    }

    #[tokio::test(start_paused = true)]
    async fn every_answer_to_a_write_is_stamped_failed_ones_too() {
        let position = "p0=00000000000000000000000000000001.7.0000000000000052";
        for method in [Method::POST, Method::DELETE, "BREW".parse().unwrap()] {
            assert_eq!(stamped(Some(Ok(1)), method, Stamps::Writes).await.as_deref(), Some(position));
        }
        assert_eq!(stamped(Some(Ok(1)), Method::GET, Stamps::All).await.as_deref(), Some(position));
        assert_eq!(stamped(Some(Ok(1)), Method::GET, Stamps::Writes).await.as_deref(), Some("the handler's own"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_that_cannot_be_read_is_unknown_and_holds_nobody_up() {
        for told in [None, Some(Err(())), Some(Ok(0)), Some(Ok(super::super::MAX_MARKS + 1))] {
            assert_eq!(stamped(told, Method::POST, Stamps::Writes).await.as_deref(), Some("unknown"), "{told:?}");
        }
    }
}

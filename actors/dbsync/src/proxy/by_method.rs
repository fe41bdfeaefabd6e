//! Two services as one: what only reads goes to the first, all else to the second.

use std::{convert::Infallible, task::Poll};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Request, Response};
use tower::{Service, ServiceExt as _};

use super::{Answer, Body, BoxError, boxed};

/// Sends safe methods (RFC 9110 §9.2.1) to `reads` and all others, known or not, to `writes`.
#[derive(Clone, Debug)]
pub struct ByMethod<R, W> {
    reads: R,
    writes: W,
}

impl<R, W> ByMethod<R, W> {
    /// One of two.
    pub fn new(reads: R, writes: W) -> Self {
        Self { reads, writes }
    }
}

impl<R, W, B, RB, WB> Service<Request<B>> for ByMethod<R, W>
where
    B: Send + 'static,
    R: Service<Request<B>, Response = Response<RB>, Error = Infallible> + Clone + Send + 'static,
    R::Future: Send + 'static,
    RB: http_body::Body<Data = Bytes> + Send + 'static,
    RB::Error: Into<BoxError>,
    W: Service<Request<B>, Response = Response<WB>, Error = Infallible> + Clone + Send + 'static,
    W::Future: Send + 'static,
    WB: http_body::Body<Data = Bytes> + Send + 'static,
    WB::Error: Into<BoxError>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Answer>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> Poll<Result<(), Infallible>> {
        // Each request waits for the one that it goes to.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        if request.method().is_safe() {
            let reads = self.reads.clone();
            Box::pin(async move { Ok(reads.oneshot(request).await?.map(boxed)) })
        } else {
            let writes = self.writes.clone();
            Box::pin(async move { Ok(writes.oneshot(request).await?.map(boxed)) })
        }
    }
}

//! On a front office: a read waits until the replica has what its client wrote, or the owner is asked.
//!
//! A bookmark is the client's own word. What it says costs no more than a wait of [`ReadLimits::wait`] and a read at the owner, and
//! both are rationed by client and in all: however many bookmarks are made up, writes and other readers go on.

use std::{convert::Infallible, fmt, future::poll_fn, net::IpAddr, sync::Arc, task::Poll, time::Duration};

use bytes::Bytes;
use futures_util::future::{BoxFuture, try_join_all};
use horos_wire::{ActorName, CallContext, protocol::sync::Position};
use http::{Request, Response};
use tokio::{sync::Semaphore, time::Instant};
use tower::{Layer, Service, ServiceExt as _};

use super::{
    Answer, Body, Bookmark, BookmarkError, BoxError, ClientOf, ReadStats, body::Held, boxed, problem::Failure, ration::Rations,
    stats::ReadCounters,
};

/// Why a replica is not where a reader wants it. In each case the owner is asked instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotReached {
    /// It did not get there in time.
    #[error("the replica did not get there in time")]
    TimedOut,
    /// It follows another log, so positions cannot be compared: the database was restored, or the position was made up.
    #[error("the position is of another log than the replica's")]
    OtherEpoch,
    /// As many wait as may.
    #[error("too many are waiting for the replica")]
    Crowded,
    /// There is no replica yet.
    #[error("the replica has nothing yet")]
    NoSnapshot,
}

/// This node's replicas, for whoever waits for a position.
pub trait Positions: Send + Sync + 'static {
    /// Returns when the replica of `publication` is at `position` or behind it, at once where it is already.
    fn wait_for<'a>(
        &'a self,
        publication: &'a ActorName,
        position: &'a Position,
        deadline: std::time::Instant,
    ) -> BoxFuture<'a, Result<(), NotReached>>;
}

/// What bookmarks may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadLimits {
    /// How long a read waits for the replica; at most half of what its caller's deadline leaves. Default 1 s.
    pub wait: Duration,
    /// Reads that wait at once. Default 1,024, as many as a replica lets wait.
    pub waits: usize,
    /// The same for one client's address. Default 64: what lag makes of an office behind one address.
    pub waits_per_client: u32,
    /// Reads at the owner at once. Default 128: half of what a [`super::WriteProxy`] passes on, so that writes have room.
    pub at_owner: usize,
    /// Reads at the owner a second, for one client's address. Default 20.
    pub per_second: u32,
    /// How many of those may come at once. Default 60.
    pub burst: u32,
}

impl Default for ReadLimits {
    fn default() -> Self {
        Self { wait: Duration::from_secs(1), waits: 1024, waits_per_client: 64, at_owner: 128, per_second: 20, burst: 60 }
    }
}

/// Lets reads wait for what their clients wrote. `owner` answers where the replica does not get there: a [`super::WriteProxy`] that
/// passes on what is mounted here.
#[derive(Clone)]
pub struct WaitForPosition<O> {
    shared: Arc<Shared>,
    owner: O,
}

struct Shared {
    positions: Arc<dyn Positions>,
    publications: Box<[ActorName]>,
    limits: ReadLimits,
    client: ClientOf,
    rations: Arc<Rations>,
    waits: Arc<Semaphore>,
    at_owner: Arc<Semaphore>,
    counters: ReadCounters,
}

impl<O> WaitForPosition<O> {
    /// For handlers that read from replicas of `publications`. What a bookmark says of others does not concern them.
    pub fn new(
        positions: Arc<dyn Positions>,
        publications: impl IntoIterator<Item = ActorName>,
        owner: O,
        client: ClientOf,
        limits: ReadLimits,
    ) -> Self {
        let semaphore = |permits: usize| Arc::new(Semaphore::new(permits.min(Semaphore::MAX_PERMITS)));
        let shared = Shared {
            positions,
            publications: publications.into_iter().collect(),
            client,
            rations: Arc::new(Rations::new(limits.waits_per_client, limits.per_second, limits.burst)),
            waits: semaphore(limits.waits),
            at_owner: semaphore(limits.at_owner),
            counters: ReadCounters::default(),
            limits,
        };
        Self { shared: Arc::new(shared), owner }
    }

    /// What became of reads with a bookmark so far.
    pub fn stats(&self) -> ReadStats {
        self.shared.counters.shown()
    }
}

impl<O> fmt::Debug for WaitForPosition<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WaitForPosition")
            .field("publications", &self.shared.publications)
            .field("limits", &self.shared.limits)
            .finish_non_exhaustive()
    }
}

impl Shared {
    /// Where the replicas must be for a request with these headers.
    fn wanted(&self, headers: &http::HeaderMap) -> Result<Vec<(ActorName, Position)>, BookmarkError> {
        let mut marks = Bookmark::brought(headers)?;
        marks.retain(|(name, _)| self.publications.contains(name));
        Ok(marks)
    }

    /// Whether the replicas are at `marks`, now or soon.
    async fn there(&self, marks: &[(ActorName, Position)], until: Instant, client: Option<IpAddr>) -> bool {
        let waits = marks.iter().map(|(name, position)| self.positions.wait_for(name, position, until.into_std()));
        let mut waiting = Box::pin(try_join_all(waits));
        // Nearly always the replica is there, and then nobody is counted.
        let at_once = poll_fn(|cx| Poll::Ready(waiting.as_mut().poll(cx))).await;
        if let Poll::Ready(there) = at_once {
            if there.is_ok() {
                self.counters.there.count();
            }
            return there.is_ok();
        }
        let (Some(_ration), Ok(_permit)) = (self.rations.wait(client), self.waits.try_acquire()) else { return false };
        // Not left to whoever waits alone: a wait that did not end would be a request that did not.
        let there = matches!(tokio::time::timeout_at(until, waiting).await, Ok(Ok(_)));
        if there {
            self.counters.waited.count();
        }
        there
    }

    fn until(&self, extensions: &http::Extensions) -> Instant {
        let now = Instant::now();
        let deadline = extensions.get::<CallContext>().and_then(|call| call.deadline).map(Instant::from_std);
        let left = deadline.map_or(Duration::MAX, |deadline| deadline.saturating_duration_since(now));
        // The other half is for the owner's answer.
        now + self.limits.wait.min(left / 2)
    }

    /// Whether the owner may be asked: a permit for as long as its answer lasts.
    fn ask(&self, client: Option<IpAddr>) -> Result<tokio::sync::OwnedSemaphorePermit, Failure> {
        let asked = match self.at_owner.clone().try_acquire_owned() {
            Ok(permit) if self.rations.ask(client) => Ok(permit),
            Ok(_) => Err(Failure::ReadsOften),
            Err(_) => Err(Failure::ReadsFull),
        };
        if asked.is_ok() { &self.counters.asked_owner } else { &self.counters.refused }.count();
        asked
    }
}

impl<S, O: Clone> Layer<S> for WaitForPosition<O> {
    type Service = Waiting<S, O>;

    fn layer(&self, inner: S) -> Waiting<S, O> {
        Waiting { inner, wait: self.clone() }
    }
}

/// A service before whose answer the replica gets where the client wants it.
#[derive(Clone)]
pub struct Waiting<S, O> {
    inner: S,
    wait: WaitForPosition<O>,
}

impl<S: fmt::Debug, O> fmt::Debug for Waiting<S, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Waiting").field("inner", &self.inner).field("wait", &self.wait).finish()
    }
}

impl<S, O, B, SB, OB> Service<Request<B>> for Waiting<S, O>
where
    B: Send + 'static,
    S: Service<Request<B>, Response = Response<SB>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
    SB: http_body::Body<Data = Bytes> + Send + 'static,
    SB::Error: Into<BoxError>,
    O: Service<Request<B>, Response = Response<OB>, Error = Infallible> + Clone + Send + 'static,
    O::Future: Send + 'static,
    OB: http_body::Body<Data = Bytes> + Send + 'static,
    OB::Error: Into<BoxError>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Answer>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> Poll<Result<(), Infallible>> {
        // Each request waits for the one that answers it.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let Self { inner, wait: WaitForPosition { shared, owner } } = self.clone();
        Box::pin(async move {
            let client = (shared.client)(request.extensions());
            let there = match shared.wanted(request.headers()) {
                // What writes does not read from here.
                _ if !request.method().is_safe() => true,
                Ok(marks) if marks.is_empty() => true,
                Ok(marks) => {
                    let until = shared.until(request.extensions());
                    shared.there(&marks, until, client).await
                }
                Err(BookmarkError) => false,
            };
            if there {
                return Ok(inner.oneshot(request).await?.map(boxed));
            }
            match shared.ask(client) {
                Ok(permit) => Ok(owner.oneshot(request).await?.map(|body| boxed(Held::new(Box::pin(body), permit)))),
                Err(failure) => Ok(failure.answer()),
            }
        })
    }
}

//! Passes a request on to the owner of the data, and the answer back.
//!
//! A request is tried twice at most, and a second time only where the first was not sent: the owner refused the connection, or one
//! from the pool turned out to be closed before anything was written. What was sent is never sent again, whatever its method: this
//! node cannot know what it does.

use std::{convert::Infallible, fmt, sync::Arc, task::Poll, time::Duration};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use horos_wire::CallContext;
use http::{HeaderMap, Method, Request, Response, StatusCode, Version, header::CONTENT_LENGTH, request, uri::PathAndQuery};
use http_body::Body as _;
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::Instant,
};
use tower::Service;

use super::{
    Answer, Body, Bookmark, BoxError, Config, ConfigError, Effect, Owner, Stats, Why, X_SYNC_POSITION,
    body::{Fate, Receiving, Sending},
    bookmark::{self, Highest},
    boxed,
    head::{Known, Rewriter},
    health,
    pool::{DialError, Lease, Pool, Unreached},
    problem::Failure,
    stats::Counters,
};

/// Time kept back of a caller's deadline, so that it is told what became of its request, instead of giving up.
const MARGIN: Duration = Duration::from_millis(50);
/// Longest pause before the second try. An owner that is away for longer is not waited for.
const MAX_WAIT: Duration = Duration::from_millis(100);
/// How long a look at the owner may take.
const PROBE: Duration = Duration::from_secs(2);
/// Bytes that are read of what it answers then.
const PROBE_BODY: usize = 4096;

/// Passes requests on to the owner. Cheap to clone: all clones share connections and limits.
#[derive(Clone)]
pub struct WriteProxy(Arc<Inner>);

struct Inner {
    config: Config,
    rewriter: Rewriter,
    pool: Arc<Pool>,
    in_flight: Arc<Semaphore>,
    highest: Highest,
    owner: watch::Sender<Owner>,
    counters: Counters,
}

impl WriteProxy {
    /// One with these settings. Opens nothing until it is asked.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn new(config: Config) -> Result<Self, ConfigError> {
        Ok(Self(Arc::new(Inner {
            rewriter: Rewriter::new(&config),
            pool: Arc::new(Pool::new(&config)?),
            in_flight: Arc::new(Semaphore::new(config.limits.in_flight.min(Semaphore::MAX_PERMITS))),
            highest: Highest::default(),
            owner: watch::Sender::new(Owner::Unknown),
            counters: Counters::default(),
            config,
        })))
    }

    /// Looks at the owner again and again, for as long as it is polled: the work of a supervised worker.
    ///
    /// # Cancel safety
    /// May be dropped at any time.
    pub async fn watch(&self) -> Infallible {
        let inner = &self.0;
        let mut looks = tokio::time::interval(inner.config.timeouts.probe.max(Duration::from_millis(1)));
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            looks.tick().await;
            let look = inner.probe().await;
            health::look(&inner.owner, look);
        }
    }

    /// How the owner is doing, and whoever waits for it hears of changes. That it is away, requests notice too; that it is ready,
    /// [`Self::watch`] alone.
    pub fn owner(&self) -> watch::Receiver<Owner> {
        self.0.owner.subscribe()
    }

    /// What became of requests so far.
    pub fn stats(&self) -> Stats {
        let Inner { config, pool, in_flight, counters, .. } = &*self.0;
        let in_flight = config.limits.in_flight.saturating_sub(in_flight.available_permits()) as u64;
        Stats { in_flight, connections: pool.opened(), ..counters.shown() }
    }

    /// How requests are passed on.
    pub fn config(&self) -> &Config {
        &self.0.config
    }
}

impl fmt::Debug for WriteProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WriteProxy").field("config", &self.0.config).field("pool", &self.0.pool).finish_non_exhaustive()
    }
}

impl<B> Service<Request<B>> for WriteProxy
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Answer>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> Poll<Result<(), Infallible>> {
        // What is too much is answered, not kept waiting.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let inner = self.0.clone();
        let request = request.map(boxed);
        Box::pin(async move { Ok(inner.answer(request).await) })
    }
}

/// What is sent, in a form from which either version's request can be made, and made again.
struct Outgoing {
    method: Method,
    headers: HeaderMap,
    target: PathAndQuery,
    body: Sending,
    fate: Fate,
}

impl Inner {
    async fn answer(self: Arc<Self>, request: Request<Body>) -> Response<Body> {
        let writes = !request.method().is_safe();
        match self.clone().pass(request).await {
            Ok(mut answer) => {
                self.counters.answered.count();
                if writes {
                    self.mark(answer.headers_mut());
                }
                answer
            }
            Err(failure) => {
                self.counters.failed(failure);
                let mut answer = failure.answer();
                if writes && failure.effect() == Effect::Unknown {
                    self.mark(answer.headers_mut());
                }
                answer
            }
        }
    }

    /// Every answer to what may have written says how far the log had got, to programs and to browsers; or that it is unknown.
    fn mark(&self, headers: &mut HeaderMap) {
        let mut lines = headers.get_all(&X_SYNC_POSITION).iter();
        let said: Option<Bookmark> = lines.next().and_then(|line| line.to_str().ok()?.parse().ok());
        let said = said.filter(|_| lines.next().is_none());
        if said.is_none() {
            headers.insert(X_SYNC_POSITION, bookmark::unknown());
        }
        if let Some(cookie) = self.config.cookie {
            self.highest.set_cookie(headers, said.as_ref(), &self.config.node, cookie);
        }
    }

    async fn pass(self: Arc<Self>, request: Request<Body>) -> Result<Response<Body>, Failure> {
        let now = Instant::now();
        let until = self.until(request.extensions().get::<CallContext>(), now);
        let permit = self.in_flight.clone().try_acquire_owned().map_err(|_| Failure::Full)?;
        let outgoing = self.outgoing(request, until.saturating_duration_since(now))?;
        let fate = outgoing.fate.clone();
        let (lease, answer) = self.exchange(outgoing, until).await?;
        let (mut parts, body) = answer.into_parts();
        // A refusal may overtake the body that it refuses.
        if let Some(failure) = fate.failure().filter(|_| parts.status.is_success()) {
            return Err(failure);
        }
        self.rewriter.inbound(&mut parts)?;
        Ok(Response::from_parts(parts, self.body(body, lease, permit)))
    }

    fn body(self: &Arc<Self>, body: Incoming, lease: Lease, permit: OwnedSemaphorePermit) -> Body {
        let inner = self.clone();
        let broke = Box::new(move || inner.counters.broken.count());
        boxed(Receiving::new(body, self.config.timeouts.stalled, lease, broke, permit))
    }

    /// When the answer must be there: by the caller's deadline, if that is sooner than ours.
    fn until(&self, call: Option<&CallContext>, now: Instant) -> Instant {
        let ours = now + self.config.timeouts.answer;
        let Some(deadline) = call.and_then(|call| call.deadline).map(Instant::from_std) else { return ours };
        let left = deadline.saturating_duration_since(now);
        ours.min(now + left.saturating_sub(MARGIN.min(left / 10)))
    }

    fn outgoing(&self, request: Request<Body>, patience: Duration) -> Result<Outgoing, Failure> {
        let (mut parts, body) = request.into_parts();
        let limit = self.config.limits.body;
        let announced = announced(&parts, &body)?;
        if announced.max(body.size_hint().lower()) > limit {
            return Err(Failure::BodyTooLarge);
        }
        let client = (self.config.client)(&parts.extensions);
        let call = parts.extensions.remove::<CallContext>();
        let target = self.rewriter.outbound(&mut parts, &Known { client, call: call.as_ref(), patience })?;
        let (body, fate) = Sending::new(body, limit);
        // The extensions stay behind: what others have put there is not for hyper.
        Ok(Outgoing { method: parts.method, headers: parts.headers, target, body, fate })
    }

    async fn exchange(&self, mut outgoing: Outgoing, until: Instant) -> Result<(Lease, Response<Incoming>), Failure> {
        let mut again = true;
        loop {
            let mut lease = match self.pool.lease(until).await {
                Ok(lease) => lease,
                Err(unreached) => {
                    let pause = self.unreached(&unreached)?;
                    if !again || pause > until.min(Instant::now() + MAX_WAIT) {
                        return Err(Failure::Away);
                    }
                    again = false;
                    self.counters.again.count();
                    tokio::time::sleep_until(pause).await;
                    continue;
                }
            };
            let fate = outgoing.fate.clone();
            let request = self.form(outgoing, lease.is_shared())?;
            match tokio::time::timeout_at(until, lease.send(request)).await {
                Ok(Ok(answer)) => return Ok((lease, answer)),
                Ok(Err(mut error)) => match error.take_message() {
                    Some(request) if again => {
                        again = false;
                        self.counters.again.count();
                        lease.closed();
                        outgoing = unform(request, fate);
                    }
                    Some(_) => return Err(Failure::Away),
                    None => return Err(fate.failure().unwrap_or_else(|| lost(&error.into_error()))),
                },
                Err(_elapsed) => return Err(fate.failure().unwrap_or(Failure::TimedOut)),
            }
        }
    }

    /// When to try again, if at all.
    fn unreached(&self, unreached: &Unreached) -> Result<Instant, Failure> {
        match unreached {
            Unreached::TooLate => Err(Failure::TooLate),
            Unreached::Away(until, DialError::Unreachable(_)) => {
                health::look(&self.owner, Err(Why::Unreachable));
                Ok(*until)
            }
            Unreached::Away(_, DialError::Stranger(_)) => {
                health::look(&self.owner, Err(Why::Stranger));
                Err(Failure::Stranger)
            }
        }
    }

    /// A request in the form of HTTP/2 or of HTTP/1.1.
    fn form(&self, outgoing: Outgoing, shared: bool) -> Result<Request<Sending>, Failure> {
        let Outgoing { method, headers, target, body, fate: _ } = outgoing;
        let mut request = Request::new(body);
        *request.method_mut() = method;
        *request.headers_mut() = headers;
        if shared {
            *request.version_mut() = Version::HTTP_2;
            *request.uri_mut() = self.rewriter.uri(&target)?;
        } else {
            *request.version_mut() = Version::HTTP_11;
            *request.uri_mut() = target.into();
            request.headers_mut().insert(http::header::HOST, self.rewriter.host());
        }
        Ok(request)
    }

    async fn probe(&self) -> Result<(), Why> {
        let body = Sending::none();
        let question =
            Outgoing { method: Method::GET, headers: HeaderMap::new(), target: self.config.probe.clone(), body, fate: Fate::default() };
        let until = Instant::now() + PROBE;
        match self.exchange(question, until).await {
            Ok((lease, answer)) => {
                let status = answer.status();
                // Read to its end, so that the connection can be used again; a long answer is not worth one.
                let body = Receiving::new(answer.into_body(), PROBE, lease, Box::new(|| {}), ());
                let _whole = tokio::time::timeout_at(until, Limited::new(body, PROBE_BODY).collect()).await;
                if status == StatusCode::OK { Ok(()) } else { Err(Why::Status(status)) }
            }
            Err(Failure::Away) => Err(Why::Unreachable),
            Err(Failure::Stranger) => Err(Why::Stranger),
            Err(_) => Err(Why::Silent),
        }
    }
}

/// The other way round than `Inner::form`, for a request that was not sent.
fn unform(request: Request<Sending>, fate: Fate) -> Outgoing {
    let (mut parts, body) = request.into_parts();
    parts.headers.remove(http::header::HOST);
    let target = parts.uri.into_parts().path_and_query.unwrap_or(PathAndQuery::from_static("/"));
    Outgoing { method: parts.method, headers: parts.headers, target, body, fate }
}

/// What is said of a body's length, which must be the truth as far as that can be told.
fn announced(parts: &request::Parts, body: &Body) -> Result<u64, Failure> {
    let mut lines = parts.headers.get_all(CONTENT_LENGTH).iter();
    let Some(line) = lines.next() else { return Ok(0) };
    let digits = line.to_str().ok().filter(|text| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()));
    let length: u64 = digits.and_then(|digits| digits.parse().ok()).ok_or(Failure::BodyLength)?;
    // With a `Transfer-Encoding` beside it somebody may have taken the one for true, and somebody else the other (RFC 9112 §6.3).
    let doubtful = lines.next().is_some() || parts.headers.contains_key(http::header::TRANSFER_ENCODING);
    let wrong = body.size_hint().exact().is_some_and(|bytes| bytes != length);
    if doubtful || wrong { Err(Failure::BodyLength) } else { Ok(length) }
}

/// What became of a request that was on a connection when that failed.
fn lost(error: &hyper::Error) -> Failure {
    tracing::debug!(%error, "a request to the owner was lost");
    let mut cause: Option<&(dyn std::error::Error + 'static)> = std::error::Error::source(error);
    while let Some(error) = cause {
        if error.downcast_ref::<h2::Error>().is_some_and(not_taken) {
            return Failure::Away;
        }
        cause = error.source();
    }
    if error.is_parse() || error.is_user() { Failure::Nonsense } else { Failure::Lost }
}

/// Whether the owner says of a stream that it has not looked at it, and never will (RFC 9113 §8.7): it refused the stream, or it has
/// said goodbye and the stream is behind the last that it took. To those before that one h2 does not give this error.
fn not_taken(error: &h2::Error) -> bool {
    let refused = error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
    error.is_remote() && (refused || error.is_go_away())
}

#[cfg(test)]
mod tests {
    use http_body_util::Full;

    use super::*;

    fn said(lines: &[(&'static str, &str)], body: &'static str) -> Result<u64, Failure> {
        let mut request = Request::post("/").body(()).unwrap();
        for (name, value) in lines {
            request.headers_mut().append(*name, value.parse().unwrap());
        }
        announced(&request.into_parts().0, &boxed(Full::new(Bytes::from_static(body.as_bytes()))))
    }

    #[test]
    fn a_length_is_one_number_and_the_right_one() {
        assert_eq!(said(&[], "abc"), Ok(0));
        assert_eq!(said(&[("content-length", "3")], "abc"), Ok(3));
        for lines in [
            &[("content-length", "4")][..],
            &[("content-length", "3"), ("content-length", "3")],
            &[("content-length", "3, 3")],
            &[("content-length", "+3")],
            &[("content-length", "")],
            &[("content-length", "0x3")],
            &[("content-length", "99999999999999999999")],
            &[("content-length", "3"), ("transfer-encoding", "chunked")],
        ] {
            assert_eq!(said(lines, "abc"), Err(Failure::BodyLength), "{lines:?}");
        }
    }

    #[tokio::test]
    async fn the_callers_deadline_counts_where_it_is_sooner_and_leaves_time_to_say_so() {
        let config = Config::new("http://127.0.0.1:1".parse().unwrap(), "fo-1".parse().unwrap());
        let proxy = WriteProxy::new(config).unwrap();
        let now = Instant::now();
        let by = |left: Option<Duration>| {
            let deadline = left.map(|left| (now + left).into_std());
            proxy.0.until(Some(&CallContext { deadline, ..CallContext::default() }), now) - now
        };
        assert_eq!(by(None), Duration::from_secs(30));
        assert_eq!(by(Some(Duration::from_secs(90))), Duration::from_secs(30));
        assert_eq!(by(Some(Duration::from_secs(2))), Duration::from_millis(1_950));
        assert_eq!(by(Some(Duration::from_millis(10))), Duration::from_millis(9));
        assert_eq!(by(Some(Duration::ZERO)), Duration::ZERO);
    }
}

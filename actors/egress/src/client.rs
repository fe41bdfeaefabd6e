//! A request from its caller to its response: checks, hops, one connection after another.

use std::{
    fmt,
    net::SocketAddr,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, Request, Response, StatusCode, Version};
use http_body::Body;
use http_body_util::{BodyExt as _, Full, combinators::UnsyncBoxBody};
use tokio::{sync::OwnedSemaphorePermit, time::Instant};

use super::{
    body::{Fate, ResponseBody, Sending, Span},
    carrier::{Incoming, Outgoing, Unanswered, form, unform},
    dial::{DialError, Over},
    error::{Bound, BoxError, EgressError, RedirectError, RequestBodyError, RequestError},
    head,
    hosts::{HostEntry, HostStatus, Hosts, Ticket},
    options::{Limits, MAX_REDIRECTS, Options, OptionsError},
    policy::Trust,
    pool::{self, Lease},
    redirect,
    target::{Origin, Scheme, Target},
};

/// Largest body that is kept to be sent again where a redirect asks for it.
const MAX_KEPT: u64 = 64 * 1024;
/// Of a redirect's own body that much is read, so that its connection can be used again.
const MAX_DRAINED: u64 = 16 * 1024;
/// How long that may take: not longer than a new connection would.
const DRAIN: Duration = Duration::from_millis(250);
/// A request whose caller waited less than this for an answer says nothing about the host.
const LEAST_PATIENCE: Duration = Duration::from_secs(1);

/// Outbound HTTP. Clones share everything.
#[derive(Clone)]
pub struct Egress(Arc<Inner>);

struct Inner {
    hosts: Arc<Hosts>,
    sweeping: AtomicBool,
}

/// Figures of an [`Egress`].
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct Status {
    /// Requests in flight.
    pub in_flight: usize,
    /// Open connections, and those being opened.
    pub connections: usize,
    /// Requests and redirects that a rule forbade so far: URLs, schemes, ports, names and addresses.
    pub refused: u64,
    /// Requests that met [`EgressError::Overloaded`] so far.
    pub overloaded: u64,
    /// By origin. One that is also reached by redirects from elsewhere is there twice.
    pub hosts: Vec<HostStatus>,
}

impl Egress {
    /// Reads the authorities' certificates from disk, and blocks on it.
    ///
    /// # Errors
    /// [`OptionsError`] names the option.
    pub fn new(options: Options) -> Result<Self, OptionsError> {
        Ok(Self(Arc::new(Inner { hosts: Arc::new(Hosts::new(options)?), sweeping: AtomicBool::new(false) })))
    }

    /// Sends `request`, whose URI is absolute, and gives its response as soon as the head is there. The body comes as it is read.
    ///
    /// A request whose version is [`HTTP_3`](Version::HTTP_3) goes over HTTP/3 or not at all; of any other TLS decides over which it
    /// goes, HTTP/2 or HTTP/1.1.
    ///
    /// `Content-Length` is set by what the body knows of its size; a body that knows none goes in chunks. Redirects are followed as
    /// far as `limits` says; a body is sent again to the same origin only, and only if its size is known and at most 64 KiB, else
    /// the redirect is the response. No connection is tried twice, but for one that turns out closed before anything was written.
    ///
    /// # Errors
    /// [`EgressError::may_have_been_sent`] says whether the request had no effect, or whether nobody knows.
    ///
    /// # Cancel safety
    /// Dropped, the request may have been sent. What carries it is closed, its place is free at once, and the host is not blamed. A
    /// connection that was being opened is kept for the next request.
    pub async fn send<B>(&self, request: Request<B>, limits: &Limits) -> Result<Response<ResponseBody>, EgressError>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let (parts, body) = request.into_parts();
        // Nothing else of the parts goes on: what is in the extensions is not for hyper.
        let (uri, method, headers) = (parts.uri, parts.method, parts.headers);
        let over = if parts.version == Version::HTTP_3 { Over::Quic } else { Over::Tcp };
        let body = body.map_err(Into::into).boxed_unsync();
        let outcome = async move {
            let target = Target::try_from(&uri).map_err(EgressError::Url)?;
            Box::pin(self.0.run(target, over, method, headers, body, limits)).await
        };
        let outcome = outcome.await;
        match &outcome {
            Err(error) if error.refusal().is_some() => {
                self.0.hosts.refused.fetch_add(1, Relaxed);
                tracing::debug!(%error, "refused");
            }
            Err(EgressError::Url(_)) => drop(self.0.hosts.refused.fetch_add(1, Relaxed)),
            Err(EgressError::Overloaded(_)) => drop(self.0.hosts.overloaded.fetch_add(1, Relaxed)),
            _ => {}
        }
        outcome
    }

    /// The addresses of `host` at `port`, each checked as a request's would be, for a protocol that is not HTTP: whoever asks connects
    /// to these and to no others, at once, and asks again the next time.
    ///
    /// # Errors
    /// [`EgressError`]: nobody was connected to.
    ///
    /// # Cancel safety
    /// Nothing has happened.
    pub async fn addresses(&self, host: &str, port: u16) -> Result<Vec<SocketAddr>, EgressError> {
        // In brackets, as in any URL, so that what is an address is seen to be one.
        let url = if host.contains(':') { format!("https://[{host}]:{port}/") } else { format!("https://{host}:{port}/") };
        let target: Target = url.parse().map_err(EgressError::Url)?;
        let origin = &target.origin;
        let admitted = self.0.hosts.admit(origin, Trust::Counts).map_err(|why| EgressError::Refused { origin: origin.clone(), why });
        let found = match admitted {
            Ok(admitted) => self.0.hosts.addresses(origin, &admitted).await.map_err(|error| unreached(&target, error)),
            Err(refused) => Err(refused),
        };
        if let Err(error) = &found
            && error.refusal().is_some()
        {
            self.0.hosts.refused.fetch_add(1, Relaxed);
            tracing::debug!(%error, "refused");
        }
        found
    }

    /// Whom a connection that is not of HTTP believes: the same authorities, by the same cryptography; what it speaks is `protocols`.
    pub fn tls(&self, protocols: &[&[u8]]) -> rustls::ClientConfig {
        self.0.hosts.tls(protocols)
    }

    /// Figures, for those who look. Takes each host's locks, briefly.
    pub fn status(&self) -> Status {
        let hosts = &self.0.hosts;
        let bounds = hosts.options().bounds;
        Status {
            in_flight: bounds.in_flight.saturating_sub(hosts.requests.available_permits()),
            connections: bounds.connections.saturating_sub(hosts.room()),
            refused: hosts.refused.load(Relaxed),
            overloaded: hosts.overloaded.load(Relaxed),
            hosts: hosts.status(),
        }
    }
}

impl fmt::Debug for Egress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Egress").field("options", self.0.hosts.options()).finish_non_exhaustive()
    }
}

/// A body, as long as it may have to be sent again.
enum Payload {
    None,
    Kept(Bytes),
    Once(Option<UnsyncBoxBody<Bytes, BoxError>>),
}

impl Payload {
    fn is_none(&self) -> bool {
        matches!(self, Self::None)
    }

    /// Whether it can be sent another time.
    fn is_kept(&self) -> bool {
        !matches!(self, Self::Once(_))
    }

    fn sending(&mut self, limit: u64) -> Sending {
        let body = match self {
            Self::None => None,
            Self::Kept(bytes) => Some(Full::new(bytes.clone()).map_err(|never| match never {}).boxed_unsync()),
            Self::Once(body) => body.take(),
        };
        Sending::new(body, limit)
    }
}

impl Inner {
    async fn run(
        &self,
        mut target: Target,
        mut over: Over,
        mut method: Method,
        mut headers: HeaderMap,
        body: UnsyncBoxBody<Bytes, BoxError>,
        limits: &Limits,
    ) -> Result<Response<ResponseBody>, EgressError> {
        let deadline = limits.deadline.min(Instant::now() + self.hosts.options().timeouts.total);
        let hint = body.size_hint();
        head::outgoing(&method, &mut headers, hint.exact()).map_err(EgressError::Request)?;
        if over == Over::Quic && target.origin.scheme == Scheme::Http {
            return Err(EgressError::Request(RequestError::PlainHttp3));
        }
        if hint.lower() > limits.request_bytes {
            return Err(EgressError::RequestTooLarge { limit: limits.request_bytes });
        }
        let request = self.hosts.requests.clone().try_acquire_owned().map_err(|_| EgressError::Overloaded(Bound::Requests))?;
        let request = Arc::new(request);
        self.keep_swept();

        let redirects = limits.redirects.min(MAX_REDIRECTS);
        let mut payload = if body.is_end_stream() { Payload::None } else { Payload::Once(Some(body)) };
        if redirects > 0 && hint.exact().is_some_and(|bytes| bytes <= MAX_KEPT) {
            payload = keep(payload, limits, deadline, &target).await?;
        }
        let mut trust = Trust::Counts;
        let mut hop = 0;
        // Who redirected last.
        let mut by = target.origin.clone();
        loop {
            let outgoing = Outgoing { method: method.clone(), headers: headers.clone(), body: payload.sending(limits.request_bytes) };
            let outcome = self.hop(&target, trust, over, outgoing, &request, deadline).await;
            let (response, lease, ticket) = outcome.map_err(|error| behind(hop, &by, error))?;
            let onward = redirect::onward(response.status(), &method).filter(|_| redirects > 0);
            let again = onward.filter(|onward| *onward == redirect::Onward::Without || payload.is_kept());
            let span = Span { idle: self.hosts.options().timeouts.idle, deadline };
            let Some(onward) = again else {
                let response = ResponseBody::of(response, limits.response_bytes, span, lease, ticket);
                return response.map_err(|error| behind(hop, &by, error));
            };
            hop += 1;
            by = target.origin.clone();
            let failed = |source| EgressError::Redirect { hop, by: by.clone(), source: Box::new(source) };
            if hop > redirects {
                return Err(failed(RedirectError::TooMany { limit: redirects }));
            }
            let has_body = !payload.is_none();
            let there = redirect::next(&target, response.headers(), onward, has_body, &mut method, &mut headers);
            let there = there.map_err(failed)?;
            if onward == redirect::Onward::Without {
                payload = Payload::None;
            }
            if let Ok(answer) = ResponseBody::of(response, MAX_DRAINED, span, lease, ticket) {
                // Dropped half read, it costs a connection, and no more.
                let _ = tokio::time::timeout(DRAIN, answer.into_body().drain()).await;
            }
            // What a stranger says must not lead inside, and what the owner's own service says, only back to itself.
            if there.origin != target.origin {
                trust = Trust::Ignored;
                // What is known to be asked over HTTP/3 is the origin that the caller named.
                over = Over::Tcp;
            }
            target = there;
        }
    }

    /// One request to one origin, until the head of its response.
    async fn hop(
        &self,
        target: &Target,
        trust: Trust,
        over: Over,
        outgoing: Outgoing,
        request: &Arc<OwnedSemaphorePermit>,
        deadline: Instant,
    ) -> Result<(Response<Incoming>, Lease, Ticket), EgressError> {
        let origin = &target.origin;
        let refused = |why| EgressError::Refused { origin: origin.clone(), why };
        let admitted = self.hosts.admit(origin, trust).map_err(refused)?;
        let host = self.hosts.enter(origin, trust, over, admitted)?;
        let ticket = host.pass(request.clone())?;
        let started = Instant::now();
        match self.exchange(&host, target, outgoing, deadline).await {
            Ok((lease, response)) => {
                ticket.heard();
                Ok((response, lease, ticket))
            }
            Err(error) => {
                match &error {
                    EgressError::Lost { .. } | EgressError::Nonsense { .. } | EgressError::NotTaken { .. } => ticket.bad(),
                    EgressError::TimedOut { .. } if started.elapsed() >= LEAST_PATIENCE.min(self.hosts.options().timeouts.head) => {
                        ticket.bad();
                    }
                    // Not the host's fault, or said already by whoever dialled.
                    _ => drop(ticket),
                }
                Err(error)
            }
        }
    }

    async fn exchange(
        &self,
        host: &Arc<HostEntry>,
        target: &Target,
        mut outgoing: Outgoing,
        deadline: Instant,
    ) -> Result<(Lease, Response<Incoming>), EgressError> {
        let origin = || target.origin.clone();
        let mut again = true;
        loop {
            if self.hosts.room() == 0 {
                self.hosts.sweep(Duration::ZERO);
            }
            let mut lease = pool::lease(host, deadline).await.map_err(|error| unreached(target, error))?;
            let fate = outgoing.body.fate();
            let request = form(outgoing, target, lease.version());
            fate.restart();
            match self.answer(&mut lease, request, &fate, target, deadline).await? {
                Ok(response) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
                    return Err(EgressError::Nonsense { origin: origin(), why: "it switches to a protocol that nobody asked for".into() });
                }
                Ok(response) => return Ok((lease, response)),
                Err(Unanswered::Unsent(request)) if again => {
                    again = false;
                    lease.closed();
                    outgoing = unform(*request);
                }
                Err(Unanswered::Unsent(_)) => return Err(EgressError::NotTaken { origin: origin() }),
                Err(unanswered) => return Err(lost(target, &fate, unanswered)),
            }
        }
    }

    /// Waits for the head of a response: as long as the host takes parts of the request, and then its time for an answer.
    async fn answer(
        &self,
        lease: &mut Lease,
        request: Request<Sending>,
        fate: &Fate,
        target: &Target,
        deadline: Instant,
    ) -> Result<Result<Response<Incoming>, Unanswered>, EgressError> {
        let patience = self.hosts.options().timeouts.head;
        let sending = lease.send(request);
        tokio::pin!(sending);
        loop {
            let until = (fate.look().since + patience).min(deadline);
            if let Ok(outcome) = tokio::time::timeout_at(until, sending.as_mut()).await {
                return Ok(outcome);
            }
            let progress = fate.look();
            if let Some(why) = progress.failed {
                return Err(EgressError::RequestBody(why));
            }
            // Something may have moved while the timer ran.
            if Instant::now() < (progress.since + patience).min(deadline) {
                continue;
            }
            return Err(match progress.waits_for_source {
                true => EgressError::RequestBody(RequestBodyError::Stalled),
                false => EgressError::TimedOut { origin: target.origin.clone() },
            });
        }
    }

    /// Starts the task that closes what nobody uses, once; it ends with the last clone.
    fn keep_swept(&self) {
        if self.sweeping.swap(true, Relaxed) {
            return;
        }
        let hosts: Weak<Hosts> = Arc::downgrade(&self.hosts);
        let keep = self.hosts.options().timeouts.keep;
        tokio::spawn(async move {
            // So that nothing is kept for longer than half as long again.
            let mut ticks = tokio::time::interval((keep / 2).max(Duration::from_millis(100)));
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                let Some(hosts) = hosts.upgrade() else { return };
                hosts.sweep(keep);
            }
        });
    }
}

/// Reads a small body whole, so that it can be sent again.
async fn keep(payload: Payload, limits: &Limits, deadline: Instant, target: &Target) -> Result<Payload, EgressError> {
    let Payload::Once(Some(body)) = payload else { return Ok(payload) };
    // Nothing has been sent, so that no failure of it has an effect.
    let mut body = Sending::new(Some(body), limits.request_bytes.min(MAX_KEPT));
    let mut whole = BytesMut::new();
    let late = |_| EgressError::TooLate { origin: target.origin.clone() };
    while let Some(frame) = tokio::time::timeout_at(deadline, body.frame()).await.map_err(late)? {
        let data = frame.map_err(|_| EgressError::Request(RequestError::Body))?.into_data();
        whole.extend_from_slice(&data.unwrap_or_default());
    }
    Ok(Payload::Kept(whole.freeze()))
}

/// `error`, told as that of a redirect if it is one.
fn behind(hop: u8, by: &Origin, error: EgressError) -> EgressError {
    if hop == 0 {
        return error;
    }
    EgressError::Redirect { hop, by: by.clone(), source: Box::new(RedirectError::Hop(error)) }
}

fn unreached(target: &Target, error: Option<DialError>) -> EgressError {
    let origin = target.origin.clone();
    match error {
        None => EgressError::TooLate { origin },
        Some(DialError::Refused(why)) => EgressError::Refused { origin, why },
        Some(DialError::Unresolved(why)) => EgressError::Unresolved { origin, why },
        Some(DialError::Unreachable(why)) => EgressError::Unreachable { origin, why },
        Some(DialError::Untrusted(why)) => EgressError::Untrusted { origin, why },
        Some(DialError::NoRoom(bound)) => EgressError::Overloaded(bound),
    }
}

/// What is told of a request that got no response.
fn lost(target: &Target, fate: &Fate, unanswered: Unanswered) -> EgressError {
    let origin = target.origin.clone();
    if let Some(why) = fate.look().failed {
        return EgressError::RequestBody(why);
    }
    match unanswered {
        Unanswered::Unsent(_) | Unanswered::NotTaken => EgressError::NotTaken { origin },
        Unanswered::TooLarge => EgressError::Request(RequestError::TooLarge),
        Unanswered::Lost(why) => EgressError::Lost { origin, why },
        Unanswered::Nonsense(why) => EgressError::Nonsense { origin, why },
    }
}

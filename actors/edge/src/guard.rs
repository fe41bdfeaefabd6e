//! What every request goes through before and after it reaches a mounted service, whatever its HTTP version.
//!
//! One service and not a stack of layers, for its speed, and because the order is what protects, so it should be readable in
//! one place ([`Guard::answer`] and [`Guard::route`]):
//!
//! 1. its id, its trace, its deadline; who sent it, past trusted proxies;
//! 2. the rate of its address (429), the form of its head (431, 414, 400);
//! 3. questions of browsers about other origins, answered before any credential is asked for;
//! 4. the way to its service (404), a place among the requests in hand (503), maintenance (503);
//! 5. where the service wants a scope: wrong credentials so far (429), credentials (401), their rate (429), the scope (403); where
//!    it decides itself, the same for whatever is shown, and then it is asked;
//! 6. the length of its body (413), the service itself, within the deadline (504), its panics (500);
//! 7. on the way out: compression, `HEAD`, headers, metrics, a line of the log.
//!
//! Each refusal is problem details with the same headers as any answer, and a counter. Whatever goes wrong in here refuses.

use std::{
    convert::Infallible, future::poll_fn, num::NonZeroU32, panic::AssertUnwindSafe, pin::pin, sync::Arc, task::Poll, time::Duration,
    time::SystemTime,
};

use futures_util::FutureExt as _;
use horos_wire::{
    CallContext,
    context::Claims,
    principal::{Principal, Proof},
};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode,
    header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HOST, RETRY_AFTER, WWW_AUTHENTICATE},
    uri::Authority,
};
use http_body::Body as _;
use tower::{Layer as _, ServiceExt as _, service_fn};

use crate::{
    Access, AppParts, Body, Client, Config, Mount, MountError, Peer, Plane,
    client::Proxies,
    health::{self, Detail},
    maintenance::Prepared,
    metrics::MethodClass,
    problem::{self, Problem},
    rate::{Key, Limiter, address_key},
};

mod answer;
mod body;
mod cors;
mod credentials;
mod date;
mod entry;
mod head;
mod ids;
mod in_flight;
mod routes;
mod target;
mod visit;

use answer::{Headers, Own};
use body::Intake;
use date::Date;
use entry::Proved;
use head::{Head, Once};
use ids::{Ids, Random, Trace};
pub use in_flight::Held;
use in_flight::{Full, InFlight};
use routes::{Routes, Target};
use visit::{Asks, Budget, Visit};

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
/// draft-ietf-httpapi-ratelimit-headers-10: what is left, and of what.
pub(crate) const RATELIMIT: HeaderName = HeaderName::from_static("ratelimit");
pub(crate) const RATELIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// What the port itself answers to; services answer for themselves.
const OWN_METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD, OPTIONS");
const ALL_METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS");

#[derive(Debug)]
pub(crate) struct Guard {
    config: Arc<Config>,
    parts: AppParts,
    routes: Routes,
    proxies: Proxies,
    headers: Headers,
    cors: Option<cors::Rules>,
    ids: Ids,
    date: Date,
    addresses: Limiter,
    identities: Limiter,
    guesses: Limiter,
    in_flight: Arc<InFlight>,
}

impl Guard {
    pub(crate) fn new(config: Arc<Config>, mounts: Vec<Mount>, parts: AppParts) -> Result<Self, MountError> {
        let limiter = || Limiter::new(config.limits.counted);
        Ok(Self {
            routes: Routes::new(mounts)?,
            proxies: Proxies::new(&config.trusted_proxies, config.forwarded),
            headers: Headers::new(&config, &parts.h3),
            cors: cors::Rules::new(&config.cors),
            ids: Ids::default(),
            date: Date::default(),
            addresses: limiter(),
            identities: limiter(),
            guesses: limiter(),
            in_flight: InFlight::new(config.limits.in_flight, config.limits.in_flight_per_address),
            config,
            parts,
        })
    }

    pub(crate) async fn answer(self: Arc<Self>, mut request: Request<Body>, peer: Peer) -> Response<Held> {
        let guard = &*self;
        let (mut visit, sound) = guard.arrive(&mut request, peer);
        // Whoever looks after the node asks how it is, however much else comes from there.
        let counted = if routes::is_probe(visit.uri.path()) { Ok(()) } else { self.count_address(&mut visit) };
        let answer = match counted.and(sound) {
            Err(problem) => self.refuse(&visit, problem),
            Ok(()) => {
                let deadline = visit.deadline;
                let passed = {
                    let mut passing = pin!(AssertUnwindSafe(self.pass(&mut visit, &mut request)).catch_unwind());
                    // What is answered at once needs no timer.
                    match poll_fn(|cx| Poll::Ready(passing.as_mut().poll(cx))).await {
                        Poll::Ready(passed) => Ok(passed),
                        Poll::Pending => tokio::time::timeout_at(deadline, passing).await,
                    }
                };
                match passed {
                    Ok(Ok(answer)) => answer,
                    Ok(Err(_panic)) => {
                        // The panic's own text is the panic hook's to print: it may hold anything.
                        tracing::error!(request = visit.id(), path = visit.uri.path(), "a service panicked");
                        self.refuse(&visit, Problem::PANIC)
                    }
                    Err(_elapsed) => self.refuse(&visit, Problem::DEADLINE),
                }
            }
        };
        self.leave(visit, answer)
    }

    /// Reads the head, says what is wrong with it, and takes out what nobody further in should believe.
    fn arrive(&self, request: &mut Request<Body>, peer: Peer) -> (Visit<'_>, Result<(), Problem>) {
        let method = MethodClass::of(request.method());
        let head = Head::read(request.headers());
        let address = peer.address.ip();
        let trusted = self.proxies.trusts(address);
        let taken_over = head.request_id.one().filter(|id| trusted && ids::well_formed(id)).cloned();
        let renamed = taken_over.is_none() && !matches!(head.request_id, Once::Absent);
        let (arrived, mut random) = (SystemTime::now(), Random::draw());
        let trace = Trace::follow(head.traceparent.text(), &random);
        let untraced = (head.tracestate || !matches!(head.traceparent, Once::Absent)) && !trace.followed;
        let id = taken_over.unwrap_or_else(|| self.ids.next(arrived, &mut random));

        let mut visit = Visit::begin(peer, method, arrived, id, trace, &self.parts.metrics);
        if trusted {
            visit.client = self.proxies.client(visit.client, request.headers());
        }
        visit.asks = Asks {
            gzip: head.gzip,
            page: head.html && !head.json,
            json: head.json,
            key: head.key,
            bearer: head.bearer,
            origin: head.origin,
            preflight: head.preflight && method == MethodClass::Options,
        };
        visit.named = target::is_name(request.uri(), &head);
        let sound = self.examine(request, &head, &mut visit);

        let (forwarded, patience) = (head.forwarded, head.request_timeout.text().and_then(ids::patience));
        let headers = request.headers_mut();
        if forwarded {
            self.proxies.hush(trusted, headers);
        }
        if renamed {
            headers.insert(X_REQUEST_ID, visit.id.clone());
        }
        if untraced {
            headers.remove(TRACEPARENT);
            headers.remove(TRACESTATE);
        }
        if request.uri().authority().is_some() {
            target::prefer_target(request);
        }
        visit.uri = std::mem::take(request.uri_mut());
        let answer = self.answer_limit(&visit);
        let asked = patience.filter(|asked| *asked < answer);
        visit.hurried = asked.is_some();
        visit.deadline += asked.unwrap_or(answer);
        (visit, sound)
    }

    /// How long the service that the request is for may take for its answer.
    fn answer_limit(&self, visit: &Visit<'_>) -> Duration {
        let own = match self.routes.find(visit.uri.path(), visit.peer.plane) {
            Some(Target::Mount(mount)) => mount.answer_limit,
            _ => None,
        };
        own.map_or(self.config.timeouts.answer, |own| own.max(self.config.timeouts.answer))
    }

    fn examine(&self, request: &Request<Body>, head: &Head<'_>, visit: &mut Visit<'_>) -> Result<(), Problem> {
        let limits = &self.config.limits;
        if request.headers().len() > limits.fields || head.bytes > limits.head {
            return Err(Problem::FIELDS);
        }
        target::check(request, head)?;
        let announced = match (head.content_length, head.content_length.text()) {
            (Once::Absent, _) => 0,
            (_, Some(digits)) if digits.bytes().all(|b| b.is_ascii_digit()) => digits.parse().map_err(|_| Problem::LENGTH)?,
            _ => return Err(Problem::LENGTH),
        };
        visit.length = request.body().size_hint().lower().max(announced);
        visit.idempotency_key = match (head.idempotency_key, head.idempotency_key.one().and_then(ids::idempotency_key)) {
            (Once::Absent, _) => None,
            (_, Some(key)) => Some(key.into()),
            (_, None) => return Err(Problem::IDEMPOTENCY_KEY),
        };
        Ok(())
    }

    fn count_address(&self, visit: &mut Visit<'_>) -> Result<(), Problem> {
        let Some(per_minute) = NonZeroU32::new(self.config.limits.per_address) else { return Ok(()) };
        let Some(key) = self.stranger(visit) else { return Ok(()) };
        self.count(&self.addresses, &key, per_minute, "address", visit).map_err(|()| Problem::RATE_ADDRESS)
    }

    /// What the request's address is counted by, if it is. This machine is no stranger: all clients of a proxy that nobody has
    /// called trusted would count as one. One that is trusted names its clients; where it does not, they count as one.
    fn stranger(&self, visit: &Visit<'_>) -> Option<Key> {
        let is_own = visit.client.to_canonical().is_loopback() && !self.proxies.trusts(visit.peer.address.ip());
        (!is_own).then(|| address_key(visit.client))
    }

    /// Counts the request; whoever comes close to the limit is told with the answer, and whoever is past it is refused.
    fn count(&self, limiter: &Limiter, key: &Key, limit: NonZeroU32, policy: &'static str, visit: &mut Visit<'_>) -> Result<(), ()> {
        let per_minute = limit.get();
        let (left, wait) = match limiter.take(key, limit, visit.started) {
            Ok(left) if left > per_minute / 10 => return Ok(()),
            Ok(left) => (left, None),
            Err(wait) => (0, Some(wait.seconds())),
        };
        visit.budget = Some(Budget { policy, per_minute, left, wait });
        if wait.is_some() { Err(()) } else { Ok(()) }
    }

    /// The request goes from hand to hand as a reference: a future keeps what it is given, and each of these would keep all of it.
    async fn pass(&self, visit: &mut Visit<'_>, request: &mut Request<Body>) -> Response<Body> {
        let Some(rules) = self.cors.as_ref().filter(|_| visit.asks.origin) else { return self.route(visit, request).await };
        if visit.method == MethodClass::Options && !visit.asks.preflight {
            // `tower_http` takes every `OPTIONS` for a question about origins; this one is for the service.
            return self.route(visit, request).await;
        }
        let mut visit = Some(visit);
        let service = service_fn(move |mut request| {
            let visit = visit.take();
            async move {
                let visit = visit.expect("a service that is made for one request is called once");
                Ok::<_, Infallible>(self.route(visit, &mut request).await)
            }
        });
        // Boxed, because only some requests come this way, and every request has room for all its ways.
        match Box::pin(rules.layer.layer(service).oneshot(std::mem::take(request))).await {
            Ok(answer) => answer,
            Err(never) => match never {},
        }
    }

    async fn route(&self, visit: &mut Visit<'_>, request: &mut Request<Body>) -> Response<Body> {
        let path = visit.uri.path();
        match self.routes.find(path, visit.peer.plane) {
            Some(Target::Mount(mount)) => {
                // The service takes the request with it.
                let challenge = mount.described_at.as_deref().and_then(|place| challenge(visit, request.headers(), place));
                let mut answer = self.mounted(visit, mount, request).await;
                if let Some(challenge) = challenge.filter(|_| answer.status() == StatusCode::UNAUTHORIZED) {
                    answer.headers_mut().insert(WWW_AUTHENTICATE, challenge);
                }
                answer
            }
            Some(Target::Alive) => self.own(visit, health::alive),
            Some(Target::Ready) => {
                let verbose = visit.uri.query().is_some_and(|query| query.split('&').any(|it| it.split('=').next() == Some("verbose")));
                let detail = match (verbose, visit.asks.json) {
                    (false, _) => Detail::Word,
                    (true, false) => Detail::Lines,
                    (true, true) => Detail::Json,
                };
                self.own(visit, || health::readiness(&self.parts.conditions, &self.parts.drain, detail))
            }
            Some(Target::Metrics(access)) => match self.admit(visit, access, request.headers(), None).await {
                Ok(_) => self.own(visit, || self.metrics()),
                Err(problem) => self.refuse(visit, problem),
            },
            None if path == "*" && visit.method == MethodClass::Options => allowing(ALL_METHODS),
            None => self.refuse(visit, Problem::NOT_FOUND),
        }
    }

    /// What the port itself answers.
    fn own(&self, visit: &Visit<'_>, answer: impl FnOnce() -> Response<Body>) -> Response<Body> {
        match visit.method {
            MethodClass::Get | MethodClass::Head => answer(),
            MethodClass::Options => allowing(OWN_METHODS),
            _ => {
                let mut refusal = self.refuse(visit, Problem::METHOD);
                refusal.headers_mut().insert(ALLOW, OWN_METHODS);
                refusal
            }
        }
    }

    fn metrics(&self) -> Response<Body> {
        let mut answer = Response::new(Body::from(self.parts.metrics.text()));
        let kind = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
        answer.headers_mut().insert(CONTENT_TYPE, kind);
        answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        answer
    }

    async fn mounted(&self, visit: &mut Visit<'_>, mount: &Mount, request: &mut Request<Body>) -> Response<Body> {
        let mut known = None;
        // Administration is how maintenance ends, and how a node that is overwhelmed is looked after.
        if mount.plane != Plane::Cluster {
            match self.in_flight.take(self.stranger(visit).as_ref()) {
                Ok(permit) => visit.permit = Some(permit),
                Err(Full::All) => return self.refuse(visit, Problem::OVERLOADED),
                Err(Full::Address) => return self.refuse(visit, Problem::ADDRESS_OVERLOADED),
            }
            if let Some(prepared) = self.parts.maintenance.prepared() {
                known = self.bypasses(visit, &prepared, request.headers()).await;
                if known.is_none() {
                    return self.maintenance(visit, &prepared);
                }
            }
        }
        let proved = match self.admit(visit, mount.access(), request.headers(), known).await {
            Ok(proved) => proved,
            Err(problem) => return self.refuse(visit, problem),
        };
        let limit = mount.body_limit.unwrap_or(self.config.limits.body);
        if visit.length > limit {
            return self.refuse(visit, Problem::BODY_TOO_LARGE);
        }
        let Ok(below) = routes::below(&visit.uri, mount.prefix()) else { return self.refuse(visit, Problem::PATH) };
        *request.uri_mut() = below;
        if *request.method() == Method::HEAD {
            *request.method_mut() = Method::GET;
        }
        if visit.asks.proves() {
            match mount.access() {
                _ if mount.keeps_credentials => credentials::hide(request.headers_mut()),
                Access::Public => credentials::hide(request.headers_mut()),
                Access::Scope(_) | Access::PerRequest => credentials::remove(request.headers_mut(), visit.asks),
            }
        }
        let context = context(visit, &proved);
        let extensions = request.extensions_mut();
        extensions.insert(context);
        extensions.insert(Client(visit.client));
        if let Some(principal) = proved.principal {
            extensions.insert(principal);
        }
        if request.body().is_end_stream() {
            return self.settle(visit, mount, (mount.serve)(std::mem::take(request)).await);
        }
        let (timeouts, metrics) = (&self.config.timeouts, &self.parts.metrics);
        // A service that may take its time gives none of it to whoever drips: for the others the deadline sees to that.
        let whole_by = mount.answer_limit.map(|_| visit.started + timeouts.answer);
        let mut fate = body::Fate::default();
        let request = std::mem::take(request).map(|body| {
            let (intake, its) = Intake::new(body, limit, timeouts.body, metrics.clone(), visit.peer.version);
            fate = its;
            Body::new(intake.whole_by(whole_by))
        });
        let answer = (mount.serve)(request).await;
        match fate.problem() {
            // Whatever the service made of it: what it was given was not the whole.
            Some(problem) => self.refuse(visit, problem),
            None => self.settle(visit, mount, answer),
        }
    }

    /// A service's errors without a text are said in the one form, and its methods where they were asked for.
    fn settle(&self, visit: &Visit<'_>, mount: &Mount, answer: Response<Body>) -> Response<Body> {
        let status = answer.status();
        if !(status.is_client_error() || status.is_server_error()) {
            return answer;
        }
        if visit.method == MethodClass::Options
            && status == StatusCode::METHOD_NOT_ALLOWED
            && let Some(allowed) = answer.headers().get(ALLOW)
        {
            return allowing(allowed.clone());
        }
        if answer.body().size_hint().exact() != Some(0) || answer.headers().contains_key(CONTENT_TYPE) {
            return answer;
        }
        if mount.access == Access::PerRequest
            && let Some(problem) = self.decided(visit, status)
        {
            return self.refuse(visit, problem);
        }
        let told = self.refuse(visit, Problem::of_status(status));
        let (mut parts, _) = answer.into_parts();
        parts.headers.remove(http::header::CONTENT_LENGTH);
        for name in [CONTENT_TYPE, CACHE_CONTROL] {
            if let Some(value) = told.headers().get(&name) {
                parts.headers.entry(name).or_insert_with(|| value.clone());
            }
        }
        Response::from_parts(parts, told.into_body())
    }

    /// Who is let through all the same. Proved here, so that nobody is looked up and counted twice.
    async fn bypasses(&self, visit: &mut Visit<'_>, prepared: &Prepared, headers: &HeaderMap) -> Option<Proved> {
        let scope = prepared.notice.bypass.as_ref().filter(|_| visit.asks.proves())?;
        self.prove(visit, headers).await.ok().filter(|proved| proved.may(scope))
    }

    fn maintenance(&self, visit: &Visit<'_>, prepared: &Prepared) -> Response<Body> {
        let problem = Problem::MAINTENANCE;
        let mut answer = self.refuse(visit, problem);
        let (kind, body) = if visit.asks.page {
            (HeaderValue::from_static("text/html; charset=utf-8"), prepared.page.clone())
        } else {
            (problem::KIND, problem.body(visit.id(), visit.trace.id, Some(&prepared.notice.message)))
        };
        *answer.body_mut() = Body::from(body);
        answer.headers_mut().insert(CONTENT_TYPE, kind);
        answer.headers_mut().insert(RETRY_AFTER, prepared.retry_after.clone());
        answer
    }

    /// Counts the refusal and says it.
    fn refuse(&self, visit: &Visit<'_>, problem: Problem) -> Response<Body> {
        if let Some(reason) = problem.reason {
            self.parts.metrics.refused(reason, Some(visit.peer.version));
        }
        problem.answer(visit.id(), visit.trace.id)
    }

    fn leave(&self, mut visit: Visit<'_>, mut answer: Response<Body>) -> Response<Held> {
        if visit.method != MethodClass::Head {
            answer = answer.map(|body| body::counted(body, &self.parts.metrics, visit.peer.version));
        }
        answer::encode(&mut answer, visit.asks.gzip);
        if visit.method == MethodClass::Head {
            answer::behead(&mut answer);
        }
        let took = visit.started.elapsed();
        let own = Own {
            date: self.date.at(visit.arrived.checked_add(took).unwrap_or(visit.arrived)),
            id: visit.id.clone(),
            trace: visit.trace.header(),
        };
        let headers = answer.headers_mut();
        self.headers.put(visit.peer, visit.named, own, headers);
        if self.cors.as_ref().is_some_and(|rules| rules.varies) {
            answer::vary(headers, "origin", HeaderValue::from_static("origin"));
        }
        if let Some(budget) = visit.budget {
            budget.tell(headers);
        }
        let permit = visit.permit.take();
        visit.end(answer.status(), took);
        answer.map(|body| Held::new(body, permit))
    }
}

impl Budget {
    fn tell(self, headers: &mut HeaderMap) {
        let Self { policy, per_minute, left, wait } = self;
        let mut put = |name, text: String| {
            // Digits and fixed text are a header's value.
            headers.insert(name, text.try_into().unwrap_or(HeaderValue::from_static("")));
        };
        put(RATELIMIT_POLICY, format!("\"{policy}\";q={per_minute};w=60"));
        match wait {
            None => put(RATELIMIT, format!("\"{policy}\";r={left}")),
            Some(wait) => {
                put(RATELIMIT, format!("\"{policy}\";r={left};t={wait}"));
                put(RETRY_AFTER, wait.to_string());
            }
        }
    }
}

/// The answer to `OPTIONS`.
fn allowing(methods: HeaderValue) -> Response<Body> {
    let mut answer = Response::new(Body::empty());
    *answer.status_mut() = StatusCode::NO_CONTENT;
    answer.headers_mut().insert(ALLOW, methods);
    answer
}

/// What a 401 says of where it is told how to get what is missing (RFC 9728 §5.1): a whole URL, as this host is asked.
fn challenge(visit: &Visit<'_>, headers: &HeaderMap, place: &str) -> Option<HeaderValue> {
    let base = if place.starts_with('/') {
        let scheme = if visit.peer.tls { "https" } else { "http" };
        // It was looked at when the request came: no quote is in it.
        let host = visit.uri.authority().map(Authority::as_str).or_else(|| headers.get(HOST)?.to_str().ok())?;
        format!("{scheme}://{host}")
    } else {
        String::new()
    };
    HeaderValue::try_from(format!("Bearer realm=\"horos\", resource_metadata=\"{base}{place}\"")).ok()
}

/// An idempotency key as its services know it: behind the id of whoever asks, and of whom it asks for. Two who think of one key
/// are not each other's. A key holds no space (`ids::idempotency_key`) and here no id does, so no two are written alike.
fn whose(proved: &Proved, key: &str) -> Box<str> {
    let id = |principal: &Arc<Principal>| principal.id.replace('%', "%25").replace(' ', "%20");
    let asks = proved.principal.as_ref();
    let user = proved.user.as_ref().filter(|user| asks.is_some_and(|asks| asks.id != user.id));
    let ids: Vec<String> = asks.into_iter().chain(user).map(id).collect();
    [&*ids.join(" "), key].join(if ids.is_empty() { "" } else { " " }).into()
}

/// What goes with every call that the service makes for this request. A user is named only when a token proved it.
fn context(visit: &Visit<'_>, proved: &Proved) -> CallContext {
    let (user, token) = match proved.user.as_ref().map(|principal| &principal.proof) {
        Some(Proof::Token { user, token }) => (Some(user.clone()), Some(token.clone())),
        Some(Proof::Key { .. }) | None => (None, None),
    };
    let idempotency_key = visit.idempotency_key.as_deref().map(|key| whose(proved, key));
    let claims = Claims { request: Some(visit.id().into()), user, tenant: None, idempotency_key, token };
    CallContext { trace: visit.trace.id, deadline: Some(visit.deadline.into_std()), hops: 0, claims: Some(Arc::new(claims)) }
}

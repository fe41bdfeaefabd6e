//! Services over HTTP: `POST /{service}`, for those whose route says so.
//!
//! A [`Gateway`] is a value that is cloned, and owns nothing: whatever task asks it drives the call, and dropping that gives the call
//! up. `edge` mounts it, under any prefix, with `Access::PerRequest`: who asks has been proved by then, and is in the request's
//! extensions beside its [`CallContext`].
//!
//! - Who may call is the route's to say (`"gateway": "public"`, or `{"scope": "stock"}`). A service whose route does not say it, one
//!   that has no route and one that is not there are one and the same bare 404; 401 and 403 are bare too, and the port puts them in
//!   its own words.
//! - JSON services take `{"method": {…}}` and answer in JSON, up to [`MAX_JSON`]. Services of bytes ([`Payload::Bytes`], or an actor of
//!   this node that speaks `horos.bytes`, or only endpoints that are no actors) take anything; what is more than one message goes
//!   through as a stream, and so does what comes back, as quickly as its reader reads and with nothing kept.
//! - Every policy of the route holds, as for any call: rate, concurrency, breakers, retries, hedges, fallback. A body that streams
//!   through is sent once: of it nothing is kept to be sent again.
//! - What goes wrong is problem details (RFC 9457) by which a program knows what it may do ([`problem`]), and by which another
//!   Horos gets the very same error again. No name, address or text of the inside is in them.
//!
//! A service is told who called through claims and token of its [`Context`], as by any caller of this node.

mod body;
mod carried;
mod name;
pub mod problem;

use std::{
    convert::Infallible,
    fmt,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use horos_supervision::{Context, Exchange};
use horos_wire::{
    Address, CallContext, CallError, NoEffect, Protocol as _, TraceId, codec, context::MAX_HOPS, frame::MAX_SMALL_BODY,
    principal::Principal, protocol::bytes::ByteService,
};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode,
    header::{ACCEPT_ENCODING, ALLOW, CONTENT_ENCODING, CONTENT_TYPE},
};
use http_body_util::{BodyExt as _, Full};

use crate::{
    call::{JSON, Untyped, drive},
    config::{Gateway as Door, MAX_TIMEOUT_MS, Payload},
    router::Router,
    service::Service,
    strategy::{Answer, Body, Message, Target},
};
use carried::Carried;
use problem::Refusal;

/// Longest JSON message: less than an actor takes, by what stands around it on its way.
pub const MAX_JSON: usize = codec::MAX_BODY - 4096;
/// A call's time is its route's and its context's to say, and both are shorter.
const LONGEST: Duration = Duration::from_millis(MAX_TIMEOUT_MS);

/// How many actors and nodes a request has passed through on its way here. Who passes work on over HTTP says it, so that a ring of
/// routes ends.
pub(crate) const HOPS: HeaderName = HeaderName::from_static("horos-hops");

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The services of a node's router, as a [`tower::Service`] over HTTP. Cheap to clone.
#[derive(Clone)]
pub struct Gateway(Arc<Inner>);

struct Inner {
    router: Router,
    context: Context,
}

impl fmt::Debug for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Gateway").field(&self.0.router).finish()
    }
}

impl Gateway {
    /// To the services of `router`, called from the node of `exchange`.
    pub fn new(router: Router, exchange: &Exchange) -> Self {
        Self(Arc::new(Inner { router, context: Context::new(exchange.clone(), "gateway") }))
    }
}

impl<B> tower::Service<Request<B>> for Gateway
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> Poll<Result<(), Infallible>> {
        // How much it takes at once is each service's own affair.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let inner = self.0.clone();
        Box::pin(async move { Ok(inner.answer(request).await) })
    }
}

impl Inner {
    async fn answer<B>(&self, request: Request<B>) -> Response<Body>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let (parts, body) = request.into_parts();
        let call = called(parts.extensions.get::<CallContext>(), &parts.headers);
        let call = match call {
            Ok(call) => call,
            Err(refusal) => return refusal.answer(&CallContext::default()),
        };
        if parts.method != Method::POST {
            let mut answer = Refusal::METHOD.answer(&call);
            answer.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
            return answer;
        }
        let Some(name) = name::of(parts.uri.path()) else { return Refusal::NAME.answer(&call) };
        let (generation, principal) = (self.router.generation(), parts.extensions.get::<Arc<Principal>>());
        let service = match self.open_to(&name, principal) {
            Ok(service) => service,
            Err(status) => return bare(status),
        };
        if parts.headers.get_all(CONTENT_ENCODING).iter().any(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"identity")) {
            let mut answer = Refusal::CODING.answer(&call);
            // RFC 9110 §15.5.16: which codings would have been taken.
            answer.headers_mut().insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
            return answer;
        }
        let context = self.context.clone().with_call(call);
        let asked = Asked { context, service, generation, name: &name, headers: &parts.headers, principal };
        match self.payload(&asked.service) {
            Payload::Json => self.json(asked, body).await,
            Payload::Bytes => self.bytes(asked, body).await,
        }
    }

    /// The service called `name`, if its route lets `principal` in.
    fn open_to(&self, name: &str, principal: Option<&Arc<Principal>>) -> Result<Arc<Service>, StatusCode> {
        let entry = self.router.table().get(name).cloned();
        let service = entry.and_then(|entry| entry.service.clone()).ok_or(StatusCode::NOT_FOUND)?;
        match &service.config().gateway {
            None => Err(StatusCode::NOT_FOUND),
            Some(Door::Public) => Ok(service),
            Some(Door::Scope(scope)) => match principal {
                None => Err(StatusCode::UNAUTHORIZED),
                Some(principal) if principal.scopes.iter().any(|held| held.as_str() == &**scope) => Ok(service),
                Some(_) => Err(StatusCode::FORBIDDEN),
            },
        }
    }

    /// What the service's messages are: what its route says, else what its endpoints are seen to take.
    fn payload(&self, service: &Service) -> Payload {
        if let Some(said) = service.config().payload {
            return said;
        }
        let exchange = self.context.exchange();
        let takes_bytes = |place: usize| match service.target(place) {
            Target::Nobody(_) => false,
            Target::Transport(_) => true,
            Target::Here(name) | Target::Actor(Address { name, .. }) => {
                exchange.find(name).is_some_and(|inbox| inbox.protocol().0 == ByteService::NAME)
            }
        };
        if (0..service.places()).all(takes_bytes) { Payload::Bytes } else { Payload::Json }
    }

    async fn json<B>(&self, asked: Asked<'_>, body: B) -> Response<Body>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        if !is_json(asked.headers) {
            return Refusal::MEDIA_TYPE.answer(asked.context.call());
        }
        let body = match body::whole(body, MAX_JSON, asked.context.call().deadline).await {
            Ok(body) => body,
            Err(error) => return Refusal::of(&error).answer(asked.context.call()),
        };
        if let Err(status) = self.still_open(&asked) {
            return bare(status);
        }
        let kind = Untyped { router: &self.router, context: &asked.context, service: asked.name, payload: Payload::Json };
        let message = Message { content_type: JSON.into(), body, idempotent: false };
        match drive(&kind, message, LONGEST.into()).await {
            Ok(Answer { content_type, body }) => {
                let mut answer = Response::new(whole(body));
                let kind = content_type.and_then(|kind| HeaderValue::try_from(&*kind).ok());
                answer.headers_mut().insert(CONTENT_TYPE, kind.unwrap_or(HeaderValue::from_static(JSON)));
                answer
            }
            Err(error) => asked.failed(error),
        }
    }

    async fn bytes<B>(&self, asked: Asked<'_>, body: B) -> Response<Body>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let (parcel, broken) = match body::begun(body, MAX_SMALL_BODY, asked.context.call().deadline).await {
            Ok(begun) => begun,
            Err(error) => return Refusal::of(&error).answer(asked.context.call()),
        };
        if let Err(status) = self.still_open(&asked) {
            return bare(status);
        }
        let kind = Carried { router: &self.router, context: &asked.context, service: asked.name, headers: asked.headers };
        let outcome = tokio::select! {
            biased;
            // Given up like any call whose caller has gone: that says nothing of the endpoint.
            () = broken.wait() => return Refusal::BROKEN.answer(asked.context.call()),
            outcome = drive(&kind, parcel, LONGEST.into()) => outcome,
        };
        match outcome {
            Ok(download) => download.answer(),
            Err(error) => asked.failed(error),
        }
    }

    /// Whether the route still lets in who was let in: a body may take long to come.
    fn still_open(&self, asked: &Asked<'_>) -> Result<(), StatusCode> {
        if self.router.generation() == asked.generation {
            return Ok(());
        }
        self.open_to(asked.name, asked.principal).map(drop)
    }
}

/// A request that was let in.
struct Asked<'a> {
    context: Context,
    service: Arc<Service>,
    /// Of the table that it was found in, or of one before.
    generation: u64,
    name: &'a str,
    headers: &'a HeaderMap,
    principal: Option<&'a Arc<Principal>>,
}

impl Asked<'_> {
    /// What is said of a call without an answer.
    fn failed(&self, error: CallError<Bytes>) -> Response<Body> {
        match &error {
            CallError::Failed(_) => {}
            // For whoever looks after the node: a client can bring these about at will.
            CallError::NoEffect(why) => {
                tracing::debug!(service = self.name, trace = %self.context.call().trace, %why, "a call through the gateway")
            }
            CallError::Unknown(why) => {
                tracing::debug!(service = self.name, trace = %self.context.call().trace, %why, "a call through the gateway")
            }
        }
        let overloaded = matches!(error, CallError::NoEffect(NoEffect::Overloaded(_)));
        let limited = if overloaded { self.service.limited_for(Instant::now()) } else { None };
        problem::answer(&error, limited, self.context.call())
    }
}

/// The context that the call goes on with: the port's, or a new one where there is no port before.
fn called(known: Option<&CallContext>, headers: &HeaderMap) -> Result<CallContext, Refusal> {
    let fresh = || CallContext { trace: TraceId(rand::random()), ..CallContext::default() };
    let mut call = known.cloned().unwrap_or_else(fresh);
    if let Some(hops) = headers.get(HOPS) {
        let hops = hops.to_str().ok().and_then(|text| text.parse::<u8>().ok()).filter(|hops| *hops <= MAX_HOPS);
        call.hops = call.hops.max(hops.ok_or(Refusal::HOPS)?);
    }
    Ok(call)
}

/// RFC 6839 §3.1: what ends in `+json` is JSON too.
fn is_json(headers: &HeaderMap) -> bool {
    let mut kinds = headers.get_all(CONTENT_TYPE).iter();
    let (Some(kind), None) = (kinds.next().and_then(|kind| kind.to_str().ok()), kinds.next()) else { return false };
    let essence = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    match essence.split_once('/') {
        Some(("application", "json")) => true,
        Some((_, subtype)) => subtype.len() > "+json".len() && subtype.ends_with("+json"),
        None => false,
    }
}

/// The port says the rest, as it does of paths that lead nowhere.
fn bare(status: StatusCode) -> Response<Body> {
    let mut answer = Response::new(whole(Bytes::new()));
    *answer.status_mut() = status;
    answer
}

fn whole(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

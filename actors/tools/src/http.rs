//! Streamable HTTP, as a tower service for the node's port.
//!
//! The port proves who asks and puts an `Arc<Principal>` into the request. What comes without one is answered 401 with the way to a key or
//! token (RFC 9728) and reaches no handler. What a browser's page sends has to come from where this is served, or from an origin that is
//! named. From there on rmcp speaks the protocol; what it does not know is kept here: whose a session is, how many there may be
//! (`sessions`), that what proved the caller goes no further than into the [`Caller`], and that what was opened with it ends with it
//! (`proof`): sessions, streams and calls in hand.
//!
//! Requests of 2026-07-28 have no session and are answered in JSON, unless something has to be streamed. Requests of the earlier versions
//! have one, and are answered as events.

mod loads;
mod origin;
mod proof;
mod sessions;
mod well_known;

use std::{
    convert::Infallible,
    fmt,
    net::SocketAddr,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use ::http::{Extensions, HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, header};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use horos_wire::principal::Principal;
use http_body_util::{
    BodyExt as _, Empty,
    combinators::{BoxBody, UnsyncBoxBody},
};
use rmcp::{
    ServerHandler,
    model::ProtocolVersion,
    transport::{StreamableHttpServerConfig, StreamableHttpService, streamable_http_server::session::local::SessionConfig},
};
use tokio_util::sync::CancellationToken;

use crate::{Caller, Credential, Transport, Verify, Who};
use loads::{Load, Loads};
use proof::{Proofs, Until};
use sessions::{Sessions, Visit};
pub use well_known::{Resource, WellKnown, well_known};

/// Largest body of a request, in bytes; rmcp's own figure.
pub const MAX_BODY: usize = 4 << 20;

/// How long an answer is kept for a client that lost the stream on which it came: rmcp tells clients to come back after three seconds.
const RESUMED_WITHIN: Duration = Duration::from_secs(5);

const SESSION: HeaderName = HeaderName::from_static("mcp-session-id");
const VERSION: HeaderName = HeaderName::from_static("mcp-protocol-version");
const KEY: HeaderName = HeaderName::from_static("x-api-key");

type BoxError = Box<dyn std::error::Error + Send + Sync>;
type Incoming = UnsyncBoxBody<Bytes, BoxError>;
/// What answers are made of.
pub type Body = BoxBody<Bytes, Infallible>;

/// How MCP is served over HTTP.
#[derive(Clone, Debug)]
pub struct Options {
    /// Largest body of a request, in bytes. Default [`MAX_BODY`].
    pub max_body: usize,
    /// How often a stream on which nothing happens says so, so that no proxy takes it for dead. Default 15 s.
    pub keep_alive: Duration,
    /// Most sessions. Default 4,096; an idle one takes some 20 KiB.
    pub sessions: usize,
    /// Most sessions of one principal; one more ends that which was idle longest. Default 64: clients forget to end theirs.
    pub sessions_of_one: usize,
    /// A session without a request for so long is over. Default 30 min: many clients do not begin a new one when theirs is over, and
    /// people think.
    pub session_idle: Duration,
    /// Names under which this is served (`shop.example`, `shop.example:8443`). With any, only these are answered.
    pub hosts: Vec<String>,
    /// Names that surely lead here; all others are answered too. A page in a browser is answered where it asked one of these, an address or
    /// this machine: any other name may have been made to lead here by another site (DNS rebinding).
    pub names: Vec<String>,
    /// Origins whose pages may ask besides those served here: `https://inspector.example`, or `http://localhost:*` for any port. The same
    /// that may read answers from other origins.
    pub origins: Vec<String>,
    /// Where a 401 sends who has no key or token; a port that answers 401 itself has to say so as well.
    pub resource: Resource,
    /// Where the request came from; a mounted service knows only by what its port has put into the request.
    pub remote: fn(&Extensions) -> Option<SocketAddr>,
    /// Tells what a key or a token proves, for what lasts longer than the request that it came with. Without, a session that was opened is
    /// looked at again only by the port, when it is used.
    pub verify: Option<Arc<dyn Verify>>,
    /// How often what opened a session or a stream is looked at again where nobody tells of changes: a token that has run out has ended
    /// them then. Default 5 s.
    pub proof: Duration,
    /// Ends all streams and sessions, and begins none.
    pub drain: CancellationToken,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            max_body: MAX_BODY,
            keep_alive: Duration::from_secs(15),
            sessions: 4_096,
            sessions_of_one: 64,
            session_idle: Duration::from_secs(30 * 60),
            hosts: Vec::new(),
            names: Vec::new(),
            origins: Vec::new(),
            resource: Resource::default(),
            remote: |_| None,
            verify: None,
            proof: Duration::from_secs(5),
            drain: CancellationToken::new(),
        }
    }
}

type Serve = dyn Fn(Request<Incoming>) -> BoxFuture<'static, Response<Body>> + Send + Sync;

/// MCP over HTTP. Cheap to clone.
#[derive(Clone)]
pub struct Service(Arc<Inner>);

struct Inner {
    options: Options,
    origins: origin::Rules,
    sessions: Arc<Sessions>,
    loads: Arc<Loads>,
    proofs: Option<Proofs>,
    /// rmcp's service, whose type says which handler it has.
    serve: Box<Serve>,
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service").field("options", &self.0.options).finish_non_exhaustive()
    }
}

/// MCP over HTTP by the handlers that `factory` makes: one a request, or one a session, so it should make them cheaply.
pub fn service<H: ServerHandler>(factory: impl Fn() -> H + Clone + Send + Sync + 'static, options: Options) -> Service {
    let config = StreamableHttpServerConfig::default()
        // Both are looked at here, before it is asked.
        .disable_allowed_hosts()
        .disable_allowed_origins()
        .with_json_response(true)
        .with_sse_keep_alive(Some(options.keep_alive))
        .with_max_request_body_bytes(options.max_body)
        .with_cancellation_token(options.drain.clone());
    let proofs = options.verify.clone().map(|verify| Proofs { verify, every: options.proof });
    let mut session = SessionConfig::default();
    session.keep_alive = Some(options.session_idle);
    // By rmcp's own figure of a minute, whoever calls often has the node keep all results of that minute, however large they are.
    session.completed_cache_ttl = RESUMED_WITHIN;
    let sessions = Arc::new(Sessions::new(session, options.sessions, options.sessions_of_one, proofs.clone()));
    let rmcp = StreamableHttpService::new(move || Ok(factory()), sessions.clone(), config);
    let serve = move |request| -> BoxFuture<'static, Response<Body>> {
        let rmcp = rmcp.clone();
        Box::pin(async move { rmcp.handle(request).await })
    };
    let origins = origin::Rules::new(&options.hosts, &options.names, &options.origins);
    Service(Arc::new(Inner { options, origins, sessions, loads: Arc::default(), proofs, serve: Box::new(serve) }))
}

impl Service {
    /// Sessions that there are.
    pub fn sessions(&self) -> usize {
        self.0.sessions.count()
    }
}

impl<B> tower::Service<Request<B>> for Service
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let Admitted { visit, over, load } = match self.0.admit(&mut request) {
            Ok(admitted) => admitted,
            Err(refusal) => return Box::pin(std::future::ready(Ok(*refusal))),
        };
        let answer = (self.0.serve)(request.map(|body| body.map_err(Into::into).boxed_unsync()));
        let answer = visit.accompany(answer);
        Box::pin(async move {
            // Held until the answer is there, or is not waited for any more.
            let _load = load;
            let (answer, over) = match over {
                Over::Nobody => return Ok(answer.await),
                // Such a request is answered at once, by a stream.
                Over::Session(over) => (answer.await, over),
                Over::Proof(mut lost) => tokio::select! {
                    // First: what is answered at once needs no timer.
                    biased;
                    answer = answer => (answer, lost),
                    // What was asked for is given up.
                    () = &mut lost => return Ok(bare(StatusCode::UNAUTHORIZED)),
                },
            };
            let lasts = answer.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"));
            Ok(if lasts { answer.map(|body| Until::new(body, over).boxed()) } else { answer })
        })
    }
}

/// A request that may be served.
struct Admitted {
    visit: Arc<Visit>,
    over: Over,
    load: Option<Load>,
}

/// A session's id, and what tells its end.
type Named = (Arc<str>, CancellationToken);

/// What ends the request, or its stream, before its time.
enum Over {
    /// Nobody could tell.
    Nobody,
    /// The end of its session, which may have been shown newer proof than the stream was that it is asked by.
    Session(BoxFuture<'static, ()>),
    /// The end of what proved who asks.
    Proof(BoxFuture<'static, ()>),
}

impl Inner {
    /// Lets in who may ask at all, as whom the port has proved.
    fn admit<B: http_body::Body>(&self, request: &mut Request<B>) -> Result<Admitted, Box<Response<Body>>> {
        if !self.origins.allow(request) {
            return Err(Box::new(bare(StatusCode::FORBIDDEN)));
        }
        let Some(principal) = request.extensions().get::<Arc<Principal>>().cloned() else {
            let mut refusal = bare(StatusCode::UNAUTHORIZED);
            if let Some(challenge) = self.options.resource.challenge(request) {
                refusal.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
            }
            return Err(Box::new(refusal));
        };
        let Ok(load) = self.loads.take(&principal.id, request, self.options.max_body) else {
            tracing::debug!(caller = %principal.id, "no room for another large request");
            let mut refusal = bare(StatusCode::SERVICE_UNAVAILABLE);
            refusal.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            return Err(Box::new(refusal));
        };
        let remote = (self.options.remote)(request.extensions());
        let credential = credential(request.headers_mut());
        let (session, ends) = self.session(&principal, credential.as_ref(), request.headers_mut())?.unzip();
        let over = match (ends, &self.proofs, credential.clone()) {
            (Some(ends), ..) => Over::Session(Box::pin(ends.cancelled_owned())),
            (None, Some(proofs), Some(shown)) => {
                let proofs = proofs.clone();
                Over::Proof(Box::pin(async move { proofs.lost(|| Some(shown.clone())).await }))
            }
            (None, ..) => Over::Nobody,
        };
        let visit = Visit::new((*principal.id).into(), credential.clone());
        let caller = Caller { who: Who::Principal(principal), credential, transport: Transport::Http, session, remote };
        request.extensions_mut().insert(Arc::new(caller));
        Ok(Admitted { visit, over, load })
    }

    /// The session that the request names and what tells its end, if it is the principal's. Another's is as good as none.
    fn session(
        &self,
        principal: &Principal,
        shown: Option<&Credential>,
        headers: &mut HeaderMap,
    ) -> Result<Option<Named>, Box<Response<Body>>> {
        let Some(named) = headers.get(SESSION) else { return Ok(None) };
        let known = named.to_str().ok().and_then(|id| self.sessions.of(id, &principal.id, shown));
        if known.is_some() {
            return Ok(known);
        }
        // ISO dates: the order of their texts is their own. From this version on there are no sessions, and what is left of one is nothing.
        if headers.get(VERSION).is_some_and(|version| version.as_bytes() >= ProtocolVersion::V_2026_07_28.as_str().as_bytes()) {
            headers.remove(SESSION);
            return Ok(None);
        }
        // MCP 2025-11-25, "Session Management": the client then begins a new one.
        Err(Box::new(bare(StatusCode::NOT_FOUND)))
    }
}

/// What proved the caller, taken out of the head: nothing further in logs, lists or passes it on from there.
fn credential(headers: &mut HeaderMap) -> Option<Credential> {
    let (key, shown) = (headers.remove(KEY), headers.remove(header::AUTHORIZATION));
    let text = |value: HeaderValue| value.to_str().ok().map(|text| Credential(text.trim().into()));
    match (key, shown) {
        (Some(key), _) => text(key),
        (None, Some(shown)) => {
            let (scheme, credential) = shown.to_str().ok()?.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| Credential(credential.trim().into()))
        }
        (None, None) => None,
    }
}

fn empty() -> Body {
    Empty::new().boxed()
}

fn bare(status: StatusCode) -> Response<Body> {
    let mut answer = Response::new(empty());
    *answer.status_mut() = status;
    answer
}

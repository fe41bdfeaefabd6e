//! Streamable HTTP, as a tower service for the node's port.
//!
//! The port proves who asks and puts an `Arc<Principal>` into the request; what comes without one is answered 401 with the way to a key or
//! token (RFC 9728), and reaches no handler.

use std::{
    convert::Infallible,
    fmt,
    net::SocketAddr,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use ::http::{Extensions, HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use horos_wire::principal::Principal;
use http_body_util::{
    BodyExt as _, Empty,
    combinators::{BoxBody, UnsyncBoxBody},
};
use rmcp::{
    ServerHandler,
    transport::{StreamableHttpServerConfig, StreamableHttpService, streamable_http_server::session::local::LocalSessionManager},
};
use tokio_util::sync::CancellationToken;

use crate::{Caller, Credential, Transport, Who};

/// Largest body of a request, in bytes; rmcp's own figure.
pub const MAX_BODY: usize = 4 << 20;

type BoxError = Box<dyn std::error::Error + Send + Sync>;
type Incoming = UnsyncBoxBody<Bytes, BoxError>;
/// What answers are made of.
pub type Body = BoxBody<Bytes, Infallible>;

/// How MCP is served over HTTP.
#[derive(Clone, Debug)]
pub struct Options {
    /// Largest body of a request, in bytes.
    pub max_body: usize,
    /// How often a stream on which nothing happens says so, so that no proxy takes it for dead.
    pub keep_alive: Duration,
    /// Where the request came from; a mounted service knows only by what its port has put into the request.
    pub remote: fn(&Extensions) -> Option<SocketAddr>,
    /// Whose pages may ask, as `https://shop.example.org:443`, any port being `:*`. A request that a browser sends for another
    /// page is answered 403 (MCP, "Security Warning" of the transport): the same that may read answers from other origins. Default none.
    pub origins: Vec<String>,
    /// Ends all streams and sessions, and refuses what comes after.
    pub drain: CancellationToken,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            max_body: MAX_BODY,
            keep_alive: Duration::from_secs(15),
            remote: |_| None,
            origins: Vec::new(),
            drain: CancellationToken::new(),
        }
    }
}

type Serve = dyn Fn(Request<Incoming>) -> BoxFuture<'static, Response<Body>> + Send + Sync;

/// MCP over HTTP. Cheap to clone.
#[derive(Clone)]
pub struct Service {
    options: Arc<Options>,
    serve: Arc<Serve>,
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service").field("options", &self.options).finish_non_exhaustive()
    }
}

/// MCP over HTTP by the handlers that `factory` makes: one a request, or one a session, so it should make them cheaply.
pub fn service<H: ServerHandler>(factory: impl Fn() -> H + Clone + Send + Sync + 'static, options: Options) -> Service {
    let config = StreamableHttpServerConfig::default()
        // Under which names a node is reached only whoever stands before it knows.
        .disable_allowed_hosts()
        .with_allowed_origins(options.origins.clone())
        .enforce_origin_validation()
        .with_json_response(true)
        .with_sse_keep_alive(Some(options.keep_alive))
        .with_max_request_body_bytes(options.max_body)
        .with_cancellation_token(options.drain.clone());
    let inner = StreamableHttpService::new(move || Ok(factory()), Arc::new(LocalSessionManager::default()), config);
    let serve = move |request| -> BoxFuture<'static, Response<Body>> {
        let inner = inner.clone();
        Box::pin(async move { inner.handle(request).await })
    };
    Service { options: Arc::new(options), serve: Arc::new(serve) }
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
        let Some(caller) = caller(&mut request, &self.options) else {
            return Box::pin(std::future::ready(Ok(unauthorized())));
        };
        request.extensions_mut().insert(Arc::new(caller));
        let answer = (self.serve)(request.map(|body| body.map_err(Into::into).boxed_unsync()));
        Box::pin(async move { Ok(answer.await) })
    }
}

/// Who sent it, as the port has proved. What proved it goes from the head into the caller.
fn caller<B>(request: &mut Request<B>, options: &Options) -> Option<Caller> {
    let principal = request.extensions().get::<Arc<Principal>>()?.clone();
    let remote = (options.remote)(request.extensions());
    let headers = request.headers_mut();
    let credential = credential(headers);
    let session = headers.get("mcp-session-id").and_then(|id| id.to_str().ok()).map(Into::into);
    Some(Caller { who: Who::Principal(principal), credential, transport: Transport::Http, session, remote })
}

fn credential(headers: &mut HeaderMap) -> Option<Credential> {
    let key = headers.remove("x-api-key");
    let shown = headers.remove(header::AUTHORIZATION);
    let text = |value: &HeaderValue| value.to_str().ok().map(str::to_owned);
    let bearer = shown.as_ref().and_then(text).and_then(|text| text.get(7..).map(|token| token.trim().to_owned()));
    key.as_ref().and_then(text).or(bearer).map(|text| Credential(text.into()))
}

fn unauthorized() -> Response<Body> {
    let mut answer = Response::new(Empty::new().boxed());
    *answer.status_mut() = StatusCode::UNAUTHORIZED;
    answer.headers_mut().insert(
        header::WWW_AUTHENTICATE,
        HeaderValue::from_static("Bearer resource_metadata=\"/.well-known/oauth-protected-resource/mcp\""),
    );
    answer
}

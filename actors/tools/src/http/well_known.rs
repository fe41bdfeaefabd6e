//! Where who has no key or token is told to look for one: metadata of a protected resource (RFC 9728), as MCP asks.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    sync::Arc,
    task::{Context, Poll},
};

use ::http::{HeaderValue, Method, Request, Response, StatusCode, header};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use serde::Serialize;

use super::{Body, bare, origin::written_host};

/// Where the metadata is served.
const PREFIX: &str = "/.well-known/oauth-protected-resource";

/// What is served, as those outside know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// Scheme and authority (`https://shop.example`), where the request does not tell: behind a proxy that ends TLS, or as one name of
    /// several. Without, what the request asked for is believed, which is told to nobody but who asked it.
    pub base: Option<Box<str>>,
    /// The path at which MCP is mounted.
    pub path: Box<str>,
}

impl Default for Resource {
    fn default() -> Self {
        Self { base: None, path: "/mcp".into() }
    }
}

impl Resource {
    fn base<B>(&self, request: &Request<B>) -> Option<String> {
        match &self.base {
            Some(base) => Some(base.trim_end_matches('/').to_owned()),
            // Whoever shows a key shows it over TLS.
            None => written_host(request).map(|host| format!("https://{host}")),
        }
    }

    /// What a 401 says (RFC 9728 §5.1); nothing where it cannot be told where this is.
    pub(super) fn challenge<B>(&self, request: &Request<B>) -> Option<HeaderValue> {
        let base = self.base(request)?;
        HeaderValue::try_from(format!("Bearer realm=\"horos\", resource_metadata=\"{base}{PREFIX}{}\"", self.path)).ok()
    }
}

/// The metadata, as a service for the well-known path. Cheap to clone.
#[derive(Clone, Debug)]
pub struct WellKnown(Arc<Said>);

#[derive(Debug)]
struct Said {
    resource: Resource,
    issuers: Vec<Box<str>>,
}

/// The metadata of `resource`, whose tokens `issuers` give out; to be mounted at `/.well-known/oauth-protected-resource`, for everybody. It
/// answers there for the whole origin, and below for the resource itself and what is below that.
pub fn well_known(resource: Resource, issuers: Vec<Box<str>>) -> WellKnown {
    WellKnown(Arc::new(Said { resource, issuers }))
}

/// RFC 9728 §2.
#[derive(Serialize)]
struct Metadata<'a> {
    resource: String,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    authorization_servers: &'a [Box<str>],
    bearer_methods_supported: [&'a str; 1],
    resource_name: &'a str,
}

impl<B> tower::Service<Request<B>> for WellKnown {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        ready(Ok(self.0.answer(&request)))
    }
}

impl Said {
    fn answer<B>(&self, request: &Request<B>) -> Response<Body> {
        if request.method() != Method::GET && request.method() != Method::HEAD {
            let mut refusal = bare(StatusCode::METHOD_NOT_ALLOWED);
            refusal.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
            return refusal;
        }
        let path = request.uri().path().trim_end_matches('/');
        // `/mcp/search` is the same server with a shorter list.
        let below = path.strip_prefix(&*self.resource.path);
        if !path.is_empty() && !below.is_some_and(|below| below.is_empty() || below == "/search") {
            return bare(StatusCode::NOT_FOUND);
        }
        let Some(base) = self.resource.base(request) else { return bare(StatusCode::BAD_REQUEST) };
        let metadata = Metadata {
            resource: format!("{base}{path}"),
            authorization_servers: &self.issuers,
            bearer_methods_supported: ["header"],
            resource_name: "Horos tools",
        };
        // Strings have no reason to fail.
        let text = serde_json::to_vec(&metadata).unwrap_or_default();
        let mut answer = Response::new(Full::new(Bytes::from(text)).boxed());
        answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        answer
    }
}

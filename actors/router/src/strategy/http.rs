//! `http`: a POST to a URL: `https://host/path`, `h3://host/path` for the same over HTTP/3 and no other version, or `http://host/path`
//! where that is permitted.
//!
//! [`Http`] reaches out by `egress`, which a node has one of for its routes; `nodes` registers it over the built-in one, which only
//! checks rows:
//!
//! ```ignore
//! Strategies::builtin().register("http", Arc::new(Http::new(egress, data.join("secrets"))))
//! ```
//!
//! The body is the payload as it is, its media type `content_type` of the row or else the message's. Beside it go `traceparent`,
//! `Request-Timeout` (the seconds that are left, which a Horos there goes by), `Horos-Hops` (so that a ring of routes ends),
//! `Idempotency-Key` where the call has one, and as `Authorization` the line in the file of `secrets/` that the row names. A user's
//! own token does not leave: what proves somebody here is nobody's business there.
//!
//! What comes back with a 2xx is the reply. Whatever else is said by a Horos is the same error here as there ([`crate::gateway::problem`]);
//! of other servers' answers see [`answer`]. Redirects are not followed, and nothing is sent twice.

pub mod answer;
pub mod secret;

use std::{fmt::Write as _, path::PathBuf, sync::Arc, time::Instant};

use bytes::Bytes;
use futures_util::{FutureExt as _, future::BoxFuture};
use horos_egress::{Egress, Limits, ResponseBody};
use horos_wire::{CallContext, NoEffect, Unknown, codec, context::MAX_HOPS};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Uri, Version,
    header::{ACCEPT_ENCODING, AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE},
};
use http_body_util::{BodyExt as _, Full};
use sha2::{Digest as _, Sha256};

use super::{Answer, Body, Failure, Message, Strategy, Target, Transport};
use crate::{
    config::{Config, MAX_TIMEOUT_MS, Payload},
    gateway::HOPS,
};
use secret::Secret;

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const REQUEST_TIMEOUT: HeaderName = HeaderName::from_static("request-timeout");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// Most bytes of an answer that is read whole: as of one from an actor.
const MAX_ANSWER: u64 = codec::MAX_BODY as u64;
/// Longest idempotency key that is sent as it is: what a Horos takes for one.
const MAX_KEY: usize = 255;
/// What a key begins with that is not sent as it is.
const HASHED: &str = "sha256-";

/// Checks rows and reaches nothing: for a node, or a program, without a way out.
pub(super) struct Unreached;

impl Strategy for Unreached {
    fn is_a_placeholder(&self) -> bool {
        true
    }

    fn check(&self, _: &str, endpoint: &str, _: &Config) -> Result<(), String> {
        check(endpoint).map(drop)
    }

    fn open(&self, _: &str, _: &str, _: &Arc<Config>) -> Result<Target, String> {
        Err("this node reaches nothing over HTTP".to_owned())
    }
}

/// Reaches services over HTTP, by POST. Registered under `http`, in place of the built-in one, which only checks rows.
///
/// Beside the payload go trace, remaining time, hops and idempotency key of the call, and as `Authorization` what the row names.
#[derive(Clone, Debug)]
pub struct Http {
    egress: Egress,
    secrets: PathBuf,
}

impl Http {
    /// By `egress`, whose trusted endpoints are what may be inside; what proves this node elsewhere lies in files of `secrets`.
    pub fn new(egress: Egress, secrets: impl Into<PathBuf>) -> Self {
        Self { egress, secrets: secrets.into() }
    }
}

impl Strategy for Http {
    fn check(&self, _: &str, endpoint: &str, _: &Config) -> Result<(), String> {
        check(endpoint).map(drop)
    }

    fn open(&self, _: &str, endpoint: &str, config: &Arc<Config>) -> Result<Target, String> {
        let (url, version) = check(endpoint)?;
        let host = url.host().unwrap_or_default().into();
        let content_type = match config.content_type.as_deref().map(HeaderValue::try_from) {
            None => None,
            Some(Ok(kind)) => Some(kind),
            Some(Err(_)) => return Err("content_type is no media type".to_owned()),
        };
        let secret = config.authorization.as_ref().map(|authorization| Secret::new(&self.secrets, &authorization.file));
        if let Some(secret) = &secret {
            secret.read().map_err(|error| error.to_string())?;
        }
        let empty_is_null = config.payload != Some(Payload::Bytes);
        let endpoint = Endpoint { egress: self.egress.clone(), url, version, host, content_type, secret, empty_is_null };
        Ok(Target::Transport(Arc::new(endpoint)))
    }
}

/// What stands before a URL of `https` that is asked over HTTP/3, and not at all where that is not spoken.
const HTTP3: &str = "h3://";

/// The URL of `endpoint`, if it is one that may stand in a row, and the version that it wants; any but HTTP/3 is TLS's to agree on.
/// Whether it may be reached is decided when it is.
pub(super) fn check(endpoint: &str) -> Result<(Uri, Version), String> {
    let wanted = "an absolute URL, such as https://stock.example.org/v1, or h3:// in place of https://, without a user or password in it";
    let (text, version) = match endpoint.strip_prefix(HTTP3) {
        Some(rest) => (format!("https://{rest}"), Version::HTTP_3),
        None => (endpoint.to_owned(), Version::default()),
    };
    let url: Uri = text.parse().map_err(|error| format!("{error}; it is {wanted}"))?;
    let schemed = matches!(url.scheme_str(), Some("http" | "https"));
    match url.authority() {
        Some(authority) if schemed && !authority.as_str().contains('@') && !authority.host().is_empty() => Ok((url, version)),
        _ => Err(format!("it is {wanted}")),
    }
}

/// One URL, and what is said there.
struct Endpoint {
    egress: Egress,
    url: Uri,
    version: Version,
    /// What errors name it by, on this node.
    host: Box<str>,
    content_type: Option<HeaderValue>,
    secret: Option<Secret>,
    /// A server that has nothing to say says `null`, in JSON.
    empty_is_null: bool,
}

impl Transport for Endpoint {
    fn call(&self, message: Message, context: CallContext, until: Instant) -> BoxFuture<'_, Result<Answer, Failure>> {
        let in_json = self.empty_is_null && &*message.content_type == crate::call::JSON;
        async move {
            let mut headers = HeaderMap::new();
            let kind = HeaderValue::try_from(&*message.content_type).map_err(|_| NoEffect::Malformed("no media type".into()))?;
            headers.insert(CONTENT_TYPE, kind);
            let response = self.send(headers, Full::new(message.body), &context, until, until).await?;
            if response.headers().get_all(CONTENT_ENCODING).iter().any(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"identity")) {
                return Err(Unknown::MalformedReply("it is encoded, which was not asked for".into()).into());
            }
            let kind = response.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).map(Box::from);
            let body = response.into_body().bytes().await.map_err(|error| answer::of_error(error, &self.host))?;
            let body = if body.is_empty() && in_json { Bytes::from_static(b"null") } else { body };
            Ok(Answer { content_type: kind, body })
        }
        .boxed()
    }

    fn stream(&self, request: Request<Body>, context: CallContext, until: Instant) -> BoxFuture<'_, Result<Response<Body>, Failure>> {
        async move {
            let (parts, body) = request.into_parts();
            // The head is to come in time; for what comes after, `egress` and whoever reads it have bounds of their own.
            let latest = Instant::now() + std::time::Duration::from_millis(MAX_TIMEOUT_MS);
            let response = self.send(parts.headers, body, &context, until, latest);
            let response = tokio::time::timeout_at(until.into(), response).await.map_err(|_| Unknown::DeadlinePassed)??;
            Ok(response.map(|body| body.map_err(Into::into).boxed_unsync()))
        }
        .boxed()
    }
}

impl Endpoint {
    /// The response, if it is one of success.
    async fn send<B>(
        &self,
        mut headers: HeaderMap,
        body: B,
        context: &CallContext,
        until: Instant,
        latest: Instant,
    ) -> Result<Response<ResponseBody>, Failure>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<horos_egress::BoxError>,
    {
        self.head(&mut headers, context, until)?;
        let mut request = Request::new(body);
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.url.clone();
        *request.version_mut() = self.version;
        *request.headers_mut() = headers;
        let streams = latest != until;
        let limits = Limits {
            deadline: latest.into(),
            request_bytes: if streams { u64::MAX } else { MAX_ANSWER },
            response_bytes: if streams { u64::MAX } else { MAX_ANSWER },
            redirects: 0,
        };
        let response = self.egress.send(request, &limits).await.map_err(|error| answer::of_error(error, &self.host))?;
        if response.status().is_success() { Ok(response) } else { Err(answer::of_response(response, &self.host).await) }
    }

    fn head(&self, headers: &mut HeaderMap, context: &CallContext, until: Instant) -> Result<(), Failure> {
        if context.hops > MAX_HOPS {
            return Err(NoEffect::TooManyHops.into());
        }
        if let Some(kind) = &self.content_type {
            headers.insert(CONTENT_TYPE, kind.clone());
        }
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        headers.insert(HOPS, HeaderValue::from(u16::from(context.hops)));
        // Down to the millisecond, and never 0, which would be no time at all.
        let left = until.saturating_duration_since(Instant::now()).as_millis().clamp(1, u128::from(MAX_TIMEOUT_MS));
        headers.insert(REQUEST_TIMEOUT, plain(format!("{}.{:03}", left / 1000, left % 1000)));
        if !context.trace.is_none() {
            headers.insert(TRACEPARENT, plain(format!("00-{}-{:016x}-00", context.trace, rand::random::<u64>().max(1))));
        }
        if let Some(key) = context.claims.as_ref().and_then(|claims| claims.idempotency_key.as_deref()) {
            headers.insert(IDEMPOTENCY_KEY, plain(idempotency_key(key)));
        }
        if let Some(secret) = &self.secret {
            let authorization = secret.read().map_err(|error| {
                tracing::warn!(endpoint = %self.host, %error, "a route's authorization cannot be read");
                NoEffect::NoRoute(format!("{}: {error}", self.host).into())
            })?;
            headers.insert(AUTHORIZATION, authorization);
        }
        Ok(())
    }
}

/// Digits and fixed texts are a header's value.
fn plain(text: String) -> HeaderValue {
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static(""))
}

/// The key as it is sent: as it is, where servers take such a one, else its hash. One from outside holds who asked, with a space, and
/// that is also nobody's business there. No two keys are sent alike: none that is sent as it is begins as a hash does.
fn idempotency_key(key: &str) -> String {
    let visible = key.bytes().all(|b| b.is_ascii_graphic() && b != b'"' && b != b'\\');
    if visible && (1..=MAX_KEY).contains(&key.len()) && !key.starts_with(HASHED) {
        return key.to_owned();
    }
    let mut text = HASHED.to_owned();
    for byte in Sha256::digest(key) {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_sent_as_it_is_or_as_its_hash_and_no_two_are_sent_alike() {
        assert_eq!(idempotency_key("order-17"), "order-17");
        let hashed = ["key_1 order-17", "", "é", &"x".repeat(MAX_KEY + 1), "a\"b", &idempotency_key("key_1 order-17")].map(idempotency_key);
        for (place, key) in hashed.iter().enumerate() {
            assert!(key.starts_with(HASHED) && key.len() == HASHED.len() + 64, "{key}");
            assert!(!hashed[..place].contains(key));
        }
    }
}

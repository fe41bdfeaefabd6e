//! What every answer gets on its way out: headers that browsers heed, compression, and no body where none was asked for.

use std::{convert::Infallible, time::Duration};

use futures_util::FutureExt as _;
use http::{
    HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode,
    header::{
        ACCEPT_ENCODING, ACCEPT_RANGES, ALT_SVC, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_SECURITY_POLICY,
        CONTENT_TYPE, DATE, ETAG, REFERRER_POLICY, STRICT_TRANSPORT_SECURITY, VARY, X_CONTENT_TYPE_OPTIONS,
    },
};
use http_body::Body as _;
use tower::{ServiceExt as _, service_fn};
use tower_http::{CompressionLevel, compression::Compression};

use super::{TRACEPARENT, X_REQUEST_ID};
use crate::{Body, Config, Peer, Plane, Version};

/// Smaller answers are sent as they are: they fit a packet or two, and gzip's own frame eats what it saves.
const WORTH_IT: u64 = 1024;

/// What every answer says, as heads to begin with: copied whole, they cost a third of putting each field in. What differs from
/// one answer to the next has its place in them already, since filling that costs half of making it.
#[derive(Debug)]
pub(crate) struct Headers {
    /// Over plain HTTP.
    plain: HeaderMap,
    /// With TLS, to who asks an address or this machine, and to who asks a host by its name: only the latter is told to insist
    /// on it (RFC 6797 §8.1.1), for else a development node would shut a browser out of all others on its machine.
    tls: [Secured; 2],
}

/// What an answer says of itself.
#[derive(Clone, Debug)]
pub(crate) struct Own {
    pub(crate) date: Option<HeaderValue>,
    pub(crate) id: HeaderValue,
    pub(crate) trace: HeaderValue,
}

/// With TLS.
#[derive(Debug)]
struct Secured {
    /// Over HTTP/1.1 and 2: of the public plane, of the cluster's, and of an address for both.
    offering: [HeaderMap; 3],
    /// Over HTTP/3.
    h3: HeaderMap,
}

/// Fields that there is room for from the start: these, what services usually say, and the date and length that are the
/// server's.
const ROOM: usize = 24;

const OPENER_POLICY: HeaderName = HeaderName::from_static("cross-origin-opener-policy");
const PERMISSIONS_POLICY: HeaderName = HeaderName::from_static("permissions-policy");

/// What a page of a service that says nothing itself may do: load from its own origin, be framed by nobody.
const PAGE: HeaderValue =
    HeaderValue::from_static("default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'");
/// All else is data: should a browser be made to show it as a page, it can do nothing.
const DATA: HeaderValue = HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'");

impl Headers {
    pub(crate) fn new(config: &Config, h3: &[(Plane, u16)]) -> Self {
        let mut plain = HeaderMap::with_capacity(ROOM);
        for place in [CONTENT_TYPE, CONTENT_LENGTH, DATE, X_REQUEST_ID, TRACEPARENT] {
            plain.insert(place, HeaderValue::from_static(""));
        }
        plain.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        plain.insert(HeaderName::from_static("cross-origin-resource-policy"), HeaderValue::from_static("same-origin"));
        plain.insert(CONTENT_SECURITY_POLICY, DATA);
        // RFC 6797 §7.2: never over plain HTTP.
        let mut insisting = plain.clone();
        if config.hsts > Duration::ZERO {
            insisting.insert(STRICT_TRANSPORT_SECURITY, value(format!("max-age={}", config.hsts.as_secs())));
        }
        let offering = |secured: &HeaderMap, plane: Plane| {
            let mut headers = secured.clone();
            let served = h3.iter().find(|(of, _)| *of == plane).map(|(_, port)| *port);
            if let Some(port) = served.map(|served| config.alt_svc.unwrap_or(served)).filter(|port| *port != 0) {
                // A day, the default of RFC 7838 §3.1: an address that changes is looked up anew by then.
                headers.insert(ALT_SVC, value(format!("h3=\":{port}\"; ma=86400")));
            }
            headers
        };
        let tls = [&plain, &insisting].map(|secured| Secured {
            offering: [Plane::Public, Plane::Cluster, Plane::Both].map(|plane| offering(secured, plane)),
            // Over HTTP/3 it is known that there is HTTP/3.
            h3: secured.clone(),
        });
        Self { tls, plain }
    }

    /// Adds what is missing: what a service said itself stays. `named` is whether the host was asked by a name.
    pub(crate) fn put(&self, peer: Peer, named: bool, own: Own, headers: &mut HeaderMap) {
        let secured = &self.tls[usize::from(named)];
        let common = match (peer.tls, peer.version, peer.plane) {
            (false, ..) => &self.plain,
            (true, Version::Http3, _) => &secured.h3,
            (true, _, Plane::Public) => &secured.offering[0],
            (true, _, Plane::Cluster) => &secured.offering[1],
            (true, _, Plane::Both) => &secured.offering[2],
        };
        let said = std::mem::replace(headers, common.clone());
        let kind = said.get(CONTENT_TYPE);
        if kind.is_some_and(|kind| kind.as_bytes().starts_with(b"text/html")) {
            // Browsers heed these of a page and of nothing else, so an answer of data goes without them.
            headers.insert(CONTENT_SECURITY_POLICY, PAGE);
            headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
            headers.insert(OPENER_POLICY, HeaderValue::from_static("same-origin"));
            headers.insert(PERMISSIONS_POLICY, HeaderValue::from_static("camera=(), geolocation=(), microphone=(), payment=(), usb=()"));
        }
        if kind.is_none() {
            headers.remove(CONTENT_TYPE);
        }
        if !said.contains_key(CONTENT_LENGTH) {
            headers.remove(CONTENT_LENGTH);
        }
        match own.date {
            Some(date) => headers.insert(DATE, date),
            None => headers.remove(DATE),
        };
        // A field that a service said replaces ours, all its lines in their order.
        headers.extend(said);
        for (name, mut value) in [(X_REQUEST_ID, own.id), (TRACEPARENT, own.trace)] {
            // No two requests have it alike: in the table of HTTP/2's header compression it would push out what all answers
            // have in common. This keeps it out.
            value.set_sensitive(true);
            headers.insert(name, value);
        }
    }
}

/// Digits and fixed text are a header's value.
fn value(text: String) -> HeaderValue {
    text.try_into().unwrap_or(HeaderValue::from_static(""))
}

/// Compresses what is worth it, where the client takes it, and tells caches that there are two forms.
pub(crate) fn encode(answer: &mut Response<Body>, gzip: bool) {
    if !compressible(answer) {
        return;
    }
    vary(answer.headers_mut(), "accept-encoding", HeaderValue::from_static("accept-encoding"));
    if !gzip {
        return;
    }
    let plain = std::mem::take(answer);
    let mut asked = Request::new(());
    asked.headers_mut().insert(ACCEPT_ENCODING, HeaderValue::from_static("gzip"));
    let mut inner = Some(plain);
    let service = service_fn(move |_: Request<()>| std::future::ready(Ok::<_, Infallible>(inner.take().unwrap_or_default())));
    // The lightest level: it takes a third of the time of the usual one, on a thread that others wait for.
    let gzip = Compression::new(service).quality(CompressionLevel::Fastest).compress_when(compress_all());
    if let Some(Ok(compressed)) = gzip.oneshot(asked).now_or_never() {
        *answer = compressed.map(Body::new);
    }
    weaken(answer.headers_mut());
}

/// All that `compressible` let through.
fn compress_all() -> impl tower_http::compression::Predicate {
    |_: StatusCode, _: http::Version, _: &HeaderMap, _: &http::Extensions| true
}

fn compressible(answer: &Response<Body>) -> bool {
    let headers = answer.headers();
    let bodiless = answer.status().is_informational()
        || matches!(answer.status(), StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED | StatusCode::PARTIAL_CONTENT);
    if bodiless || answer.body().size_hint().exact().is_some_and(|bytes| bytes < WORTH_IT) {
        return false;
    }
    let fixed = |control: &HeaderValue| control.to_str().is_ok_and(|control| control.contains("no-transform"));
    if headers.contains_key(CONTENT_ENCODING) || headers.contains_key(CONTENT_RANGE) || headers.get(CACHE_CONTROL).is_some_and(fixed) {
        return false;
    }
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim_ascii_end();
    match kind.split_once('/') {
        // Events are to arrive one by one, and a compressor keeps them back.
        Some(("text", of)) => of != "event-stream",
        Some(("application", of)) => {
            matches!(of, "json" | "javascript" | "xml" | "wasm" | "openmetrics-text") || of.ends_with("+json") || of.ends_with("+xml")
        }
        Some(("image", of)) => of == "svg+xml",
        _ => false,
    }
}

/// Adds `name` to `Vary`, once.
pub(crate) fn vary(headers: &mut HeaderMap, name: &str, value: HeaderValue) {
    let names = |line: &HeaderValue| line.to_str().is_ok_and(|line| line.split(',').any(|it| it.trim().eq_ignore_ascii_case(name)));
    if !headers.get_all(VARY).iter().any(names) {
        headers.append(VARY, value);
    }
}

/// Other bytes are not the same representation: a strong validator becomes a weak one (RFC 9110 §8.8.1).
fn weaken(headers: &mut HeaderMap) {
    headers.remove(ACCEPT_RANGES);
    let Some(strong) = headers.get(ETAG).filter(|etag| !etag.as_bytes().starts_with(b"W/")) else { return };
    if let Ok(weak) = HeaderValue::from_bytes(&[b"W/", strong.as_bytes()].concat()) {
        headers.insert(ETAG, weak);
    }
}

/// The answer to a `HEAD`: what the `GET` would have had, without the content (RFC 9110 §9.3.2).
pub(crate) fn behead(answer: &mut Response<Body>) {
    let body = std::mem::take(answer.body_mut());
    let bodiless = answer.status().is_informational() || matches!(answer.status(), StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    if let Some(bytes) = body.size_hint().exact().filter(|_| !bodiless) {
        answer.headers_mut().entry(CONTENT_LENGTH).or_insert_with(|| bytes.into());
    }
}

#[cfg(test)]
mod tests;

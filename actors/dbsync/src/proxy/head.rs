//! What becomes of the head of a request on its way to the owner, and of the head of the answer on its way back.
//!
//! Pure: a head goes in, a head comes out.

use std::{
    hash::{BuildHasher as _, RandomState},
    net::IpAddr,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use horos_wire::{CallContext, NodeName};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri,
    header::{
        self, ALT_SVC, CONNECTION, CONTENT_LENGTH, CONTENT_LOCATION, COOKIE, FORWARDED, HOST, LOCATION, STRICT_TRANSPORT_SECURITY, TE,
        TRAILER, TRANSFER_ENCODING, UPGRADE, VIA,
    },
    request, response,
    uri::PathAndQuery,
};

use super::{Config, Origin, Prefix, problem::Failure};

/// What is said to the next hop and to nobody behind it (RFC 9110 §7.6.1), and `Expect`, which whoever reads the body answers.
const HOP_BY_HOP: [HeaderName; 11] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
    HeaderName::from_static("http2-settings"),
    header::EXPECT,
];

/// What says whom somebody speaks for: written by clients as easily as by proxies. All that begins with `x-forwarded-` besides.
const CLAIMED: [&str; 8] = [
    "forwarded",
    "x-real-ip",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-original-url",
    "x-original-host",
    "true-client-ip",
    "cf-connecting-ip",
];

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const REQUEST_TIMEOUT: HeaderName = HeaderName::from_static("request-timeout");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// Most proxies that `Via` may name; more is a loop of those that give no name.
const MAX_VIA: usize = 16;

/// Writes heads anew.
#[derive(Debug)]
pub(super) struct Rewriter {
    owner: Origin,
    authority: HeaderValue,
    at: Prefix,
    to: Prefix,
    public: Option<Public>,
    via: String,
    spans: (RandomState, AtomicU64),
}

/// What clients call this node.
#[derive(Debug)]
struct Public {
    scheme: &'static str,
    authority: HeaderValue,
}

/// What is known of a request besides its head.
#[derive(Debug)]
pub(super) struct Known<'a> {
    pub(super) client: Option<IpAddr>,
    pub(super) call: Option<&'a CallContext>,
    /// How long there is for the answer.
    pub(super) patience: Duration,
}

impl Rewriter {
    pub(super) fn new(config: &Config) -> Self {
        let public = config.public.as_ref();
        Self {
            authority: plain(config.owner.authority()),
            at: config.at.clone(),
            to: config.to.clone(),
            public: public.map(|public| Public { scheme: public.scheme(), authority: plain(public.authority()) }),
            via: pseudonym(&config.node),
            owner: config.owner.clone(),
            spans: (RandomState::new(), AtomicU64::new(0)),
        }
    }

    /// What cannot be passed on, whatever it asks for.
    pub(super) fn check(&self, parts: &request::Parts) -> Result<(), Failure> {
        let headers = &parts.headers;
        // An extended CONNECT (RFC 8441) is how HTTP/2 asks for WebSocket.
        let websocket = headers.get_all(UPGRADE).iter().any(|line| tokens(line).any(|token| token.eq_ignore_ascii_case("websocket")));
        if websocket || parts.method == Method::CONNECT {
            return Err(Failure::Upgrade);
        }
        if parts.method == Method::TRACE {
            return Err(Failure::Method);
        }
        let mut hops = headers.get_all(VIA).iter().flat_map(tokens).map(|hop| hop.split_ascii_whitespace().nth(1).unwrap_or(""));
        if hops.by_ref().take(MAX_VIA).any(|by| by == self.via) || hops.next().is_some() {
            return Err(Failure::Loop);
        }
        Ok(())
    }

    /// Makes the head of a request what the owner is to see.
    ///
    /// # Errors
    /// What makes it one that cannot be passed on; nothing was sent.
    pub(super) fn outbound(&self, parts: &mut request::Parts, known: &Known<'_>) -> Result<PathAndQuery, Failure> {
        self.check(parts)?;
        let target = self.target(&parts.uri)?;
        let headers = &mut parts.headers;
        strip(headers);
        // Both are said anew: by the body, and by what is spoken with the owner.
        headers.remove(CONTENT_LENGTH);
        headers.remove(HOST);
        forget_claims(headers);
        join_cookies(headers);
        if let Some(client) = known.client {
            headers.insert(X_FORWARDED_FOR, plain(client.to_canonical().to_string()));
        }
        if let Some(public) = &self.public {
            headers.insert(X_FORWARDED_HOST, public.authority.clone());
            headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static(public.scheme));
        }
        if let Some(forwarded) = self.forwarded(known.client) {
            headers.insert(FORWARDED, forwarded);
        }
        let version = match parts.version {
            http::Version::HTTP_10 => "1.0",
            http::Version::HTTP_2 => "2",
            http::Version::HTTP_3 => "3",
            _ => "1.1",
        };
        headers.append(VIA, plain(format!("{version} {}", self.via)));
        headers.insert(REQUEST_TIMEOUT, seconds(known.patience));
        if let Some(call) = known.call {
            if let Some(id) = call.claims.as_ref().and_then(|claims| claims.request.as_deref()) {
                headers.insert(X_REQUEST_ID, plain(id.to_owned()));
            }
            if !call.trace.is_none() && !headers.contains_key(TRACEPARENT) {
                headers.insert(TRACEPARENT, plain(format!("00-{}-{:016x}-00", call.trace, self.span())));
            }
        }
        Ok(target)
    }

    /// The owner's address for `target`, absolute as HTTP/2 has it.
    pub(super) fn uri(&self, target: &PathAndQuery) -> Result<Uri, Failure> {
        let authority = self.authority.as_bytes();
        Uri::builder().scheme(self.owner.scheme()).authority(authority).path_and_query(target.clone()).build().map_err(|_| Failure::Target)
    }

    /// The owner's host, as HTTP/1.1 has it.
    pub(super) fn host(&self) -> HeaderValue {
        self.authority.clone()
    }

    fn target(&self, uri: &Uri) -> Result<PathAndQuery, Failure> {
        let target = uri.path_and_query().map_or("/", PathAndQuery::as_str);
        // `*` of OPTIONS is about a whole server, and this is one behind another.
        let target = if target.starts_with('?') { format!("/{target}") } else { target.to_owned() };
        if target.starts_with('/') {
            PathAndQuery::try_from(self.to.join(&target)).map_err(|_| Failure::Target)
        } else {
            Err(Failure::Target)
        }
    }

    fn forwarded(&self, client: Option<IpAddr>) -> Option<HeaderValue> {
        let mut pairs = Vec::new();
        // RFC 7239 §6: what holds a colon is quoted, and an IPv6 address in brackets.
        match client.map(|client| client.to_canonical()) {
            Some(IpAddr::V4(four)) => pairs.push(format!("for={four}")),
            Some(IpAddr::V6(six)) => pairs.push(format!("for=\"[{six}]\"")),
            None => {}
        }
        if let Some(public) = &self.public {
            pairs.push(format!("host=\"{}\"", public.authority.to_str().unwrap_or_default()));
            pairs.push(format!("proto={}", public.scheme));
        }
        (!pairs.is_empty()).then(|| plain(pairs.join(";")))
    }

    /// A span's id that nobody foresees and that is not zero, which means none.
    fn span(&self) -> u64 {
        self.spans.0.hash_one(self.spans.1.fetch_add(1, Relaxed)).max(1)
    }

    /// Makes the head of an answer what the client is to see.
    ///
    /// # Errors
    /// [`Failure::Nonsense`]: the connection would become something else, or the body something that nobody asked for.
    pub(super) fn inbound(&self, parts: &mut response::Parts) -> Result<(), Failure> {
        if parts.status == StatusCode::SWITCHING_PROTOCOLS {
            return Err(Failure::Nonsense);
        }
        // Nobody was asked for another coding, and the field goes no further: what it says of the body would be lost.
        let codings: Vec<&str> = parts.headers.get_all(TRANSFER_ENCODING).iter().flat_map(tokens).collect();
        match codings[..] {
            [] => {}
            // Where both are said the length is not true (RFC 9112 §6.3).
            [coding] if coding.eq_ignore_ascii_case("chunked") => drop(parts.headers.remove(CONTENT_LENGTH)),
            _ => return Err(Failure::Nonsense),
        }
        strip(&mut parts.headers);
        // About the owner's own port: here they would name a port that nobody has, and promise what is not the owner's to promise.
        parts.headers.remove(ALT_SVC);
        parts.headers.remove(STRICT_TRANSPORT_SECURITY);
        for name in [LOCATION, CONTENT_LOCATION] {
            if let Some(local) = parts.headers.get(&name).and_then(|value| self.local(value.to_str().ok()?)) {
                parts.headers.insert(name, local);
            }
        }
        Ok(())
    }

    /// An address within the owner as one within this node; none for all others, which stay as they are.
    fn local(&self, location: &str) -> Option<HeaderValue> {
        let (secure, rest) = match location.split_once(':') {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => (Some(true), rest),
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => (Some(false), rest),
            // Another scheme is somebody else's; a colon further in is part of a path.
            _ => (None, location),
        };
        let path = match (secure, rest.strip_prefix("//")) {
            (_, Some(rest)) => {
                let (authority, path) = rest.split_at(rest.find(['/', '?', '#', '\\']).unwrap_or(rest.len()));
                if !self.owner.is_named(secure, authority) {
                    return None;
                }
                path
            }
            (None, None) if rest.starts_with('/') => rest,
            (_, None) => return None,
        };
        // A tab is nothing to a browser (URL standard §4.1), so what stands around it must be seen as it will be read.
        let path: String = path.chars().filter(|c| *c != '\t').collect();
        let path = if path.starts_with(['/', '\\']) { path } else { format!("/{path}") };
        let path = self.to.rest(&path).map(|rest| self.at.join(rest)).unwrap_or(path);
        let path = if path.starts_with('/') { path } else { format!("/{path}") };
        // Two slashes at the start, either way up, would be somebody else's host.
        let elsewhere = path.as_bytes().get(1).is_some_and(|b| matches!(b, b'/' | b'\\'));
        HeaderValue::try_from(if elsewhere { format!("/.{path}") } else { path }).ok()
    }
}

/// How a node is called in `Via`.
fn pseudonym(node: &NodeName) -> String {
    format!("horos-{node}")
}

/// Text that was checked when it was configured, or is made of digits and fixed text.
fn plain(text: String) -> HeaderValue {
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static(""))
}

/// `Request-Timeout`, in seconds and at least a millisecond.
fn seconds(patience: Duration) -> HeaderValue {
    plain(format!("{:.3}", patience.as_secs_f64().clamp(0.001, 3600.0)))
}

fn tokens(line: &HeaderValue) -> impl Iterator<Item = &str> {
    line.to_str().unwrap_or_default().split(',').map(str::trim)
}

/// Takes out what is for one hop: the fields that are always so, and those that `Connection` names.
fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> =
        headers.get_all(CONNECTION).iter().flat_map(tokens).filter_map(|name| HeaderName::try_from(name).ok()).collect();
    for name in HOP_BY_HOP.iter().chain(&named) {
        headers.remove(name);
    }
}

fn forget_claims(headers: &mut HeaderMap) {
    let claimed = |name: &str| {
        // Some take an underscore for a dash.
        let name = name.replace('_', "-");
        CLAIMED.contains(&&*name) || name.starts_with("x-forwarded-")
    };
    let named: Vec<HeaderName> = headers.keys().filter(|name| claimed(name.as_str())).cloned().collect();
    for name in named {
        headers.remove(name);
    }
}

/// HTTP/2 may split the field; in HTTP/1.1 it is one line (RFC 9113 §8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let lines: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if lines.len() > 1
        && let Ok(mut joined) = HeaderValue::from_bytes(&lines.join(&b"; "[..]))
    {
        joined.set_sensitive(true);
        headers.insert(COOKIE, joined);
    }
}

#[cfg(test)]
mod tests;

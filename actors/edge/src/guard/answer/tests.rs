use std::net::SocketAddr;

use http_body_util::BodyExt as _;

use super::*;

fn answer(kind: &str, body: impl Into<Body>) -> Response<Body> {
    Response::builder().header(CONTENT_TYPE, kind).body(body.into()).unwrap()
}

fn peer(version: Version, tls: bool) -> Peer {
    Peer { address: SocketAddr::from(([192, 0, 2, 1], 1)), version, plane: Plane::Both, tls }
}

fn own() -> Own {
    let text = HeaderValue::from_static;
    Own { date: Some(text("then")), id: text("req_1"), trace: text("00-1") }
}

#[test]
fn what_differs_has_its_place_and_what_nobody_said_is_not_there() {
    let headers = Headers::new(&Config::default(), &[]);
    let mut bare = HeaderMap::new();
    headers.put(peer(Version::Http2, true), false, own(), &mut bare);
    assert_eq!([&bare[DATE], &bare[X_REQUEST_ID], &bare[TRACEPARENT]], ["then", "req_1", "00-1"]);
    assert!(bare[X_REQUEST_ID].is_sensitive() && bare[TRACEPARENT].is_sensitive() && !bare[DATE].is_sensitive());
    assert!(bare.values().all(|value| !value.is_empty()), "{bare:?}");
    assert!(!bare.contains_key(CONTENT_TYPE) && !bare.contains_key(CONTENT_LENGTH));
    let mut said = answer("text/plain", "");
    said.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from_static("9"));
    said.headers_mut().insert(DATE, HeaderValue::from_static("now"));
    headers.put(peer(Version::Http2, true), false, Own { date: None, ..own() }, said.headers_mut());
    assert_eq!([&said.headers()[DATE], &said.headers()[CONTENT_LENGTH], &said.headers()[CONTENT_TYPE]], ["now", "9", "text/plain"]);
}

#[tokio::test]
async fn what_is_worth_it_is_compressed_and_comes_back_as_it_was() {
    let text = "lorem ipsum ".repeat(1000);
    let mut packed = answer("application/json", text.clone());
    packed.headers_mut().insert(ETAG, HeaderValue::from_static("\"1\""));
    packed.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(text.len()));
    encode(&mut packed, true);
    let headers = packed.headers();
    assert_eq!(headers[CONTENT_ENCODING], "gzip");
    assert_eq!(headers[ETAG], "W/\"1\"");
    assert_eq!(headers.get_all(VARY).iter().count(), 1);
    assert!(!headers.contains_key(CONTENT_LENGTH));
    let bytes = packed.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(bytes[..2], [0x1f, 0x8b]);
    assert!(bytes.len() < text.len() / 10, "{}", bytes.len());
}

#[test]
fn what_is_not_worth_it_or_not_wanted_is_left_alone() {
    let long = || "x".repeat(2000);
    let mut plain = answer("text/html; charset=utf-8", long());
    encode(&mut plain, false);
    assert!(!plain.headers().contains_key(CONTENT_ENCODING));
    assert_eq!(plain.headers()[VARY], "accept-encoding", "a cache must not give it to one who wants the other");
    for (kind, body) in
        [("text/event-stream", long()), ("image/png", long()), ("application/zip", long()), ("text/plain", "x".repeat(1023)), ("", long())]
    {
        let mut left = answer(kind, body);
        encode(&mut left, true);
        assert!(!left.headers().contains_key(CONTENT_ENCODING) && !left.headers().contains_key(VARY), "{kind}");
    }
    for (name, value) in [(CONTENT_ENCODING, "br"), (CONTENT_RANGE, "bytes 0-1/2"), (CACHE_CONTROL, "public, no-transform")] {
        let mut left = answer("text/plain", long());
        left.headers_mut().insert(&name, HeaderValue::from_static(value));
        encode(&mut left, true);
        assert_eq!(left.headers().get_all(CONTENT_ENCODING).iter().filter(|it| *it == "gzip").count(), 0, "{name}");
    }
}

#[test]
fn an_answer_to_head_tells_the_length_that_get_would_have_had() {
    let mut known = answer("text/plain", "12345");
    behead(&mut known);
    assert_eq!(known.headers()[CONTENT_LENGTH], "5");
    assert_eq!(known.body().size_hint().exact(), Some(0));
    // The compressed length is known to nobody: none is told rather than a wrong one (RFC 9110 §8.6).
    let mut packed = answer("text/plain", "x".repeat(2000));
    encode(&mut packed, true);
    behead(&mut packed);
    assert!(!packed.headers().contains_key(CONTENT_LENGTH) && packed.headers()[CONTENT_ENCODING] == "gzip");
    let mut nothing = Response::builder().status(204).body(Body::empty()).unwrap();
    behead(&mut nothing);
    assert!(nothing.headers().is_empty());
}

#[test]
fn browsers_are_told_what_not_to_do_and_a_service_may_say_otherwise() {
    let headers = Headers::new(&Config::default(), &[]);
    let mut data = answer("application/json", "{}");
    data.headers_mut().insert(REFERRER_POLICY, HeaderValue::from_static("origin"));
    headers.put(peer(Version::Http1, false), true, own(), data.headers_mut());
    assert_eq!(data.headers()[CONTENT_SECURITY_POLICY], "default-src 'none'; frame-ancestors 'none'");
    assert_eq!(data.headers()[REFERRER_POLICY], "origin");
    for (name, of_data) in [
        ("x-content-type-options", true),
        ("cross-origin-resource-policy", true),
        ("cross-origin-opener-policy", false),
        ("permissions-policy", false),
    ] {
        assert_eq!(data.headers().contains_key(name), of_data, "{name}");
    }
    let mut page = answer("text/html; charset=utf-8", "");
    headers.put(peer(Version::Http1, false), true, own(), page.headers_mut());
    for name in ["referrer-policy", "cross-origin-opener-policy", "permissions-policy"] {
        assert!(page.headers().contains_key(name), "{name}");
    }
    assert!(page.headers()[CONTENT_SECURITY_POLICY].to_str().unwrap().contains("default-src 'self'"));
}

#[test]
fn https_is_insisted_on_only_over_tls_and_http3_offered_only_where_it_is() {
    let offered = |config: &Config, version, tls, plane| {
        let mut headers = HeaderMap::new();
        let peer = Peer { plane, ..peer(version, tls) };
        Headers::new(config, &[(Plane::Both, 8443), (Plane::Public, 443)]).put(peer, true, own(), &mut headers);
        let text = |name| headers.get(name).map(|value| value.to_str().unwrap().to_owned());
        (text(STRICT_TRANSPORT_SECURITY), text(ALT_SVC))
    };
    let config = Config::default();
    let (hsts, alt_svc) = offered(&config, Version::Http2, true, Plane::Both);
    assert_eq!(hsts.as_deref(), Some("max-age=31536000"));
    assert_eq!(alt_svc.as_deref(), Some("h3=\":8443\"; ma=86400"));
    assert_eq!(offered(&config, Version::Http1, true, Plane::Public).1.as_deref(), Some("h3=\":443\"; ma=86400"));
    assert_eq!(offered(&config, Version::Http1, true, Plane::Cluster).1, None);
    assert_eq!(offered(&config, Version::Http3, true, Plane::Both).1, None);
    assert_eq!(offered(&config, Version::Http1, false, Plane::Both), (None, None));
    let moved = Config { alt_svc: Some(9), hsts: Duration::ZERO, ..Config::default() };
    assert_eq!(offered(&moved, Version::Http1, true, Plane::Both), (None, Some("h3=\":9\"; ma=86400".to_owned())));
    let none = Config { alt_svc: Some(0), ..Config::default() };
    assert_eq!(offered(&none, Version::Http1, true, Plane::Both).1, None);
}

#[test]
fn nobody_is_told_to_insist_on_https_of_an_address_or_of_this_machine() {
    let headers = Headers::new(&Config::default(), &[(Plane::Both, 8443)]);
    for version in Version::ALL {
        let told = |named| {
            let mut put = HeaderMap::new();
            headers.put(peer(version, true), named, own(), &mut put);
            (put.contains_key(STRICT_TRANSPORT_SECURITY), put.contains_key(ALT_SVC))
        };
        assert_eq!([told(false), told(true)], [(false, version != Version::Http3), (true, version != Version::Http3)], "{version}");
    }
}

use http::{Request, Response};
use proptest::prelude::*;

use super::*;

fn config(owner: &str) -> Config {
    Config::new(owner.parse().unwrap(), "fo-1".parse().unwrap())
}

fn rewriter() -> Rewriter {
    let mut config = config("https://bo.example.org:7400");
    config.public = Some("https://shop.example.org".parse().unwrap());
    Rewriter::new(&config)
}

fn known(client: Option<&str>) -> Known<'static> {
    Known { client: client.map(|it| it.parse().unwrap()), call: None, patience: Duration::from_millis(2_500) }
}

fn parts(lines: &[(&'static str, &str)]) -> request::Parts {
    let mut request = Request::post("/order?a=1").body(()).unwrap();
    for (name, value) in lines {
        request.headers_mut().append(*name, value.parse().unwrap());
    }
    request.into_parts().0
}

fn outbound(lines: &[(&'static str, &str)], client: Option<&str>) -> HeaderMap {
    let mut parts = parts(lines);
    rewriter().outbound(&mut parts, &known(client)).unwrap();
    parts.headers
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Vec<&'a str> {
    headers.get_all(name).iter().map(|it| it.to_str().unwrap()).collect()
}

#[test]
fn where_a_client_says_it_comes_from_reaches_nobody() {
    let claims = [
        ("forwarded", "for=1.2.3.4;host=evil.example"),
        ("x-forwarded-for", "1.2.3.4"),
        ("x-forwarded-for", "5.6.7.8"),
        ("x-forwarded-host", "evil.example"),
        ("x-forwarded-proto", "http"),
        ("x-forwarded-port", "1"),
        ("x-forwarded-anything", "x"),
        ("x_forwarded_for", "1.2.3.4"),
        ("x_real_ip", "1.2.3.4"),
        ("x-real-ip", "1.2.3.4"),
        ("true-client-ip", "1.2.3.4"),
        ("cf-connecting-ip", "1.2.3.4"),
        ("x-original-url", "/admin"),
        ("host", "evil.example"),
    ];
    let headers = outbound(&claims, Some("192.0.2.1"));
    assert_eq!(text(&headers, "x-forwarded-for"), ["192.0.2.1"]);
    assert_eq!(text(&headers, "forwarded"), ["for=192.0.2.1;host=\"shop.example.org\";proto=https"]);
    assert_eq!(text(&headers, "x-forwarded-host"), ["shop.example.org"]);
    assert_eq!(text(&headers, "x-forwarded-proto"), ["https"]);
    let left = format!("{headers:?}");
    for claim in ["1.2.3.4", "5.6.7.8", "evil", "admin", "x_", "anything", "port"] {
        assert!(!left.contains(claim), "{claim} in {left}");
    }
}

#[test]
fn what_is_not_known_is_not_said() {
    let headers = outbound(&[("x-forwarded-for", "1.2.3.4")], None);
    assert!(!headers.contains_key("x-forwarded-for"));
    let mut parts = parts(&[("host", "evil.example")]);
    Rewriter::new(&config("http://127.0.0.1:1")).outbound(&mut parts, &known(None)).unwrap();
    for name in ["forwarded", "x-forwarded-host", "x-forwarded-proto", "host"] {
        assert!(!parts.headers.contains_key(name), "{name}");
    }
}

#[test]
fn an_address_has_the_form_that_each_header_has_for_it() {
    for (client, plain, element) in
        [("2001:db8::1", "2001:db8::1", "for=\"[2001:db8::1]\""), ("::ffff:192.0.2.1", "192.0.2.1", "for=192.0.2.1")]
    {
        let headers = outbound(&[], Some(client));
        assert_eq!(text(&headers, "x-forwarded-for"), [plain]);
        assert!(text(&headers, "forwarded")[0].starts_with(element), "{headers:?}");
    }
}

#[test]
fn what_is_for_one_hop_goes_no_further_and_cannot_take_our_own_words_along() {
    let headers = outbound(
        &[
            ("connection", "close, X-Mine, x-forwarded-for, forwarded, via, request-timeout"),
            ("connection", "upgrade"),
            ("x-mine", "1"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("proxy-authorization", "Basic c2VjcmV0"),
            ("te", "trailers"),
            ("trailer", "x-forwarded-for"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("http2-settings", "AAMAAABk"),
            ("expect", "100-continue"),
            ("content-length", "7"),
            ("authorization", "Bearer hk_1"),
            ("cookie", "a=b"),
            ("idempotency-key", "k"),
        ],
        Some("192.0.2.1"),
    );
    let mut names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
    names.sort_unstable();
    let expected = [
        "authorization",
        "cookie",
        "forwarded",
        "idempotency-key",
        "request-timeout",
        "via",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-proto",
    ];
    assert_eq!(names, expected);
}

#[test]
fn the_callers_deadline_its_request_and_its_trace_go_along() {
    let claims = horos_wire::context::Claims { request: Some("req_1".into()), ..Default::default() };
    let call = CallContext { trace: horos_wire::TraceId(7), claims: Some(claims.into()), ..CallContext::default() };
    let mut head = parts(&[("x-request-id", "mine"), ("request-timeout", "9999")]);
    rewriter().outbound(&mut head, &Known { call: Some(&call), ..known(None) }).unwrap();
    assert_eq!(text(&head.headers, "request-timeout"), ["2.500"]);
    assert_eq!(text(&head.headers, "x-request-id"), ["req_1"]);
    let parent = text(&head.headers, "traceparent")[0];
    assert!(parent.starts_with("00-00000000000000000000000000000007-") && parent.len() == 55, "{parent}");
    assert_eq!(seconds(Duration::ZERO), "0.001");
    assert!(seconds(Duration::MAX).len() <= 10, "as much as the owner's port reads");
}

#[test]
fn cookies_that_http_2_split_are_one_line_again() {
    let headers = outbound(&[("cookie", "a=1"), ("cookie", "b=2; c=3")], None);
    assert_eq!(text(&headers, "cookie"), ["a=1; b=2; c=3"]);
}

#[test]
fn what_cannot_be_passed_on_is_told_apart() {
    let verdict = |lines: &[(&'static str, &str)]| rewriter().check(&parts(lines));
    assert_eq!(verdict(&[("upgrade", "WebSocket"), ("connection", "upgrade")]), Err(Failure::Upgrade));
    assert_eq!(verdict(&[("upgrade", "h2c, websocket")]), Err(Failure::Upgrade));
    assert_eq!(verdict(&[("upgrade", "h2c")]), Ok(()), "who is asked to upgrade need not (RFC 9110 §7.8)");
    assert_eq!(verdict(&[("via", "1.1 other, 2 horos-fo-1")]), Err(Failure::Loop));
    assert_eq!(verdict(&[("via", "1.1 horos-fo-2")]), Ok(()));
    assert_eq!(verdict(&[("via", &vec!["1.1 x"; MAX_VIA + 1].join(","))]), Err(Failure::Loop));
    for (method, failure) in [(Method::CONNECT, Failure::Upgrade), (Method::TRACE, Failure::Method)] {
        let mut parts = parts(&[]);
        parts.method = method;
        assert_eq!(rewriter().check(&parts), Err(failure));
    }
}

#[test]
fn a_path_reaches_the_owner_as_it_was_written() {
    let mut config = config("https://bo.example.org:7400");
    let uri = |config: &Config, asked: &str| {
        let rewriter = Rewriter::new(config);
        rewriter.target(&asked.parse().unwrap()).and_then(|target| rewriter.uri(&target)).map(|uri| uri.to_string())
    };
    for (asked, sent) in [
        ("/", "https://bo.example.org:7400/"),
        ("/a%2Fb//c?x=%20&y", "https://bo.example.org:7400/a%2Fb//c?x=%20&y"),
        ("//evil.example/x", "https://bo.example.org:7400//evil.example/x"),
        ("https://evil.example/x?y", "https://bo.example.org:7400/x?y"),
    ] {
        assert_eq!(uri(&config, asked).as_deref(), Ok(sent));
    }
    assert_eq!(uri(&config, "*"), Err(Failure::Target));
    config.to = "/api".parse().unwrap();
    assert_eq!(uri(&config, "/x").as_deref(), Ok("https://bo.example.org:7400/api/x"));
}

fn located(location: &str, at: &str, to: &str) -> String {
    let mut config = config("https://bo.example.org:7400");
    (config.at, config.to) = (at.parse().unwrap(), to.parse().unwrap());
    let mut parts = Response::builder().header("location", location).body(()).unwrap().into_parts().0;
    Rewriter::new(&config).inbound(&mut parts).unwrap();
    parts.headers["location"].to_str().unwrap().to_owned()
}

#[test]
fn an_address_of_the_owner_is_one_of_this_node_and_others_stay() {
    for (location, seen) in [
        ("https://bo.example.org:7400/x?y#z", "/x?y#z"),
        ("HTTPS://BO.example.org:7400", "/"),
        ("http://bo.example.org:7400/x", "/x"),
        ("//bo.example.org:7400/x", "/x"),
        ("https://bo.example.org:7400?q", "/?q"),
        ("/x", "/x"),
        ("x/y", "x/y"),
        ("?q", "?q"),
        ("https://login.example.org/x", "https://login.example.org/x"),
        ("https://bo.example.org/x", "https://bo.example.org/x"),
        ("https://user@bo.example.org:7400/x", "https://user@bo.example.org:7400/x"),
        ("mailto:bo@example.org", "mailto:bo@example.org"),
    ] {
        assert_eq!(located(location, "/", "/"), seen, "{location}");
    }
    assert_eq!(located("https://bo.example.org:7400/api/x", "/shop", "/api"), "/shop/x");
    assert_eq!(located("/api", "/shop", "/api"), "/shop");
    assert_eq!(located("/api?x", "/", "/api"), "/?x");
    assert_eq!(located("/apis/x", "/shop", "/api"), "/apis/x");
}

#[test]
fn no_address_of_the_owner_becomes_one_of_somebody_else() {
    for (location, seen) in [
        ("https://bo.example.org:7400//evil.example/x", "/.//evil.example/x"),
        ("https://bo.example.org:7400/\\evil.example", "/./\\evil.example"),
        ("https://bo.example.org:7400\\\\evil.example", "/./\\\\evil.example"),
        ("https://bo.example.org:7400/\t/evil.example", "/.//evil.example"),
    ] {
        let local = located(location, "/", "/");
        assert!(local.starts_with('/') && !local[1..].starts_with(['/', '\\', '\t']), "{location:?} became {local:?}");
        assert_eq!(local, seen, "{location}");
    }
    assert_eq!(located("/api//evil.example", "/", "/api"), "/.//evil.example");
}

#[test]
fn what_is_about_the_owners_own_port_stays_there() {
    let response = Response::builder()
        .header("alt-svc", "h3=\":7400\"")
        .header("strict-transport-security", "max-age=1")
        .header("connection", "x-hop")
        .header("x-hop", "1")
        .header("transfer-encoding", "chunked")
        .header("set-cookie", "a=b; Secure; Domain=bo.example.org")
        .header("set-cookie", "c=d; HttpOnly")
        .header("content-location", "https://bo.example.org:7400/x");
    let mut parts = response.body(()).unwrap().into_parts().0;
    rewriter().inbound(&mut parts).unwrap();
    assert_eq!(parts.headers.len(), 3);
    assert_eq!(text(&parts.headers, "set-cookie"), ["a=b; Secure; Domain=bo.example.org", "c=d; HttpOnly"]);
    assert_eq!(text(&parts.headers, "content-location"), ["/x"]);
    let chunked = Response::builder().header("transfer-encoding", "Chunked").header("content-length", "7").body(()).unwrap();
    let mut parts = chunked.into_parts().0;
    rewriter().inbound(&mut parts).unwrap();
    assert!(parts.headers.is_empty());
    let mut coded = Response::builder().header("transfer-encoding", "gzip, chunked").body(()).unwrap().into_parts().0;
    assert_eq!(rewriter().inbound(&mut coded), Err(Failure::Nonsense));
    let mut switched = Response::builder().status(101).body(()).unwrap().into_parts().0;
    assert_eq!(rewriter().inbound(&mut switched), Err(Failure::Nonsense));
}

proptest! {
    #[test]
    fn whatever_the_owner_writes_behind_its_own_name_stays_on_this_node(rest in "[/\\\\\t.?#a@:]{0,12}") {
        let location = format!("https://bo.example.org:7400/{rest}");
        let local = located(&location, "/", "/");
        // The URL standard reads a backslash as a slash, and no tab at all.
        let read = local.replace('\t', "").replace('\\', "/");
        prop_assert!(read.starts_with('/') && !read.starts_with("//"), "{:?} became {:?}", location, local);
    }
}

//! What answers look like, whoever gave them.

use std::time::Duration;

use horos_edge::{Body, Config, Cors, Drain, Peer, Phase, Plane, Reason, Version};
use http::Method;

use super::guard_world::{Answer, KEY, Keys, OTHER_KEY, Site, calm, get, method, peer, with};

async fn ask(site: &Site, of: Method, path: &str, fields: &[(&str, &str)]) -> Answer {
    site.ask(with(method(of, path), fields).body(Body::empty()).unwrap()).await
}

#[tokio::test]
async fn every_answer_has_the_headers_that_browsers_heed() {
    let site = Site::new();
    let protected = |answer: &Answer| {
        for name in ["strict-transport-security", "x-content-type-options", "content-security-policy", "cross-origin-resource-policy"] {
            assert!(answer.headers.contains_key(name), "{name}: {answer:?}");
        }
        let page = answer.header("content-type").is_some_and(|kind| kind.starts_with("text/html"));
        for name in ["referrer-policy", "cross-origin-opener-policy", "permissions-policy"] {
            assert_eq!(answer.headers.contains_key(name), page, "{name}: {answer:?}");
        }
        assert_eq!(answer.header("alt-svc"), Some("h3=\":8443\"; ma=86400"));
    };
    for path in ["/open/x", "/open/page", "/stock/x", "/nowhere", "/open/panic", "/livez", "/open/nothing"] {
        protected(&site.get(path).await);
    }
    assert_eq!(site.get("/open/page").await.header("x-content-type-options"), Some("own"), "a service's own word stays");
    let plain = site.ask_from(get("/open/x").body(Body::empty()).unwrap(), Peer { tls: false, ..peer() }).await;
    assert_eq!((plain.header("strict-transport-security"), plain.header("alt-svc")), (None, None));
}

#[tokio::test]
async fn a_panic_is_a_problem_and_the_next_request_is_served() {
    let site = Site::new();
    let answer = site.get("/open/panic").await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (500, "panic"));
    assert_eq!(answer.json()["trace_id"], answer.header("traceparent").unwrap()[3..35]);
    assert!(!answer.text().contains(KEY) && !answer.text().contains("text of this panic"));
    assert_eq!((site.get("/open/x").await.status.as_u16(), site.metrics.count(Reason::Panic)), (200, 1));
    assert_eq!(site.metrics.in_flight(), 0);
}

#[tokio::test]
async fn where_nothing_is_and_what_is_not_taken_is_said_in_the_one_form() {
    let site = Site::new();
    for path in ["/", "/nowhere", "/Open/x", "/openx", "/livez/x", "/open/nothing"] {
        let answer = site.get(path).await;
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (404, "not_found"), "{path}");
    }
    let told = site.get("/open/told").await;
    assert_eq!((told.status.as_u16(), told.text()), (409, "taken"), "what a service says itself stays");
    let fixed = ask(&site, Method::POST, "/open/fixed", &[]).await;
    assert_eq!((fixed.code().as_str(), fixed.header("allow")), ("method_not_allowed", Some("GET, HEAD")));
    let own = ask(&site, Method::DELETE, "/livez", &[]).await;
    assert_eq!((own.code().as_str(), own.header("allow")), ("method_not_allowed", Some("GET, HEAD, OPTIONS")));
    for tunnel in [Method::CONNECT, Method::TRACE] {
        assert_eq!(ask(&site, tunnel, "/open/x", &[]).await.code(), "method_not_allowed");
    }
}

#[tokio::test]
async fn options_tells_the_methods_that_there_are() {
    let site = Site::new();
    for (path, allowed) in [("/livez", "GET, HEAD, OPTIONS"), ("/open/fixed", "GET, HEAD")] {
        let answer = ask(&site, Method::OPTIONS, path, &[]).await;
        assert_eq!((answer.status.as_u16(), answer.header("allow"), answer.body.len()), (204, Some(allowed), 0), "{path}");
    }
    let star = site.ask(method(Method::OPTIONS, "*").body(Body::empty()).unwrap()).await;
    assert_eq!((star.status.as_u16(), star.headers.contains_key("allow")), (204, true));
    assert_eq!(ask(&site, Method::OPTIONS, "/stock/x", &[]).await.status, 401, "it is a request like any other");
}

#[tokio::test]
async fn head_is_get_without_the_content() {
    let site = Site::new();
    let head = ask(&site, Method::HEAD, "/open/text", &[]).await;
    let get = site.get("/open/text").await;
    assert_eq!((head.status, head.body.len()), (get.status, 0));
    assert_eq!(head.header("content-length"), Some(get.body.len().to_string().as_str()));
    for name in ["content-type", "etag", "vary"] {
        assert_eq!(head.header(name), get.header(name), "{name}");
    }
    // This path takes nothing but `GET`.
    let seen = ask(&site, Method::HEAD, "/open/fixed", &[]).await;
    assert_eq!(seen.status, 200);
    assert!(seen.header("content-length").unwrap().parse::<usize>().unwrap() > 100, "the handler of GET ran");
    assert_eq!(ask(&site, Method::HEAD, "/nowhere", &[]).await.body.len(), 0);
    assert_eq!(ask(&site, Method::HEAD, "/livez", &[]).await.header("content-length"), Some("6"));
    let text = site.metrics.text();
    assert!(text.contains("horos_http_requests_total{version=\"h1\",method=\"HEAD\",status=\"200\"} 3\n"), "{text}");
    assert!(text.contains("horos_http_requests_total{version=\"h1\",method=\"HEAD\",status=\"404\"} 1\n"), "{text}");
}

#[tokio::test]
async fn answers_are_compressed_where_the_client_takes_it() {
    let site = Site::new();
    let gzip = site.get_with("/open/text", &[("accept-encoding", "br, gzip")]).await;
    assert_eq!(
        (gzip.header("content-encoding"), gzip.header("vary"), gzip.header("etag")),
        (Some("gzip"), Some("accept-encoding"), Some("W/\"1\""))
    );
    assert!(gzip.body.len() < 500 && gzip.body[..2] == [0x1f, 0x8b]);
    for refused in ["gzip;q=0", "br", ""] {
        let plain = site.get_with("/open/text", &[("accept-encoding", refused)]).await;
        assert_eq!((plain.header("content-encoding"), plain.header("vary"), plain.body.len()), (None, Some("accept-encoding"), 6_000));
    }
    let small = site.get_with("/open/x", &[("accept-encoding", "gzip")]).await;
    assert_eq!(small.header("content-encoding"), None);
    // The length of what GET would have sent is not known, so none is said.
    let head = ask(&site, Method::HEAD, "/open/text", &[("accept-encoding", "gzip")]).await;
    assert_eq!((head.header("content-encoding"), head.header("content-length")), (Some("gzip"), None));
}

#[tokio::test]
async fn only_the_origins_that_are_named_may_read_answers() {
    let origins = vec!["https://shop.example.org".into(), "https://b.example.org".into()];
    let cors = Cors { origins, credentials: true, max_age: Duration::from_secs(600) };
    let site = Site::with(Config { cors, ..calm() }, Keys::usual());
    let preflight = [("access-control-request-method", "PUT"), ("access-control-request-headers", "x-api-key")];
    let of = |origin| [("origin", origin), preflight[0], preflight[1]];
    let allowed = ask(&site, Method::OPTIONS, "/stock/x", &of("https://shop.example.org")).await;
    assert_eq!(allowed.status, 200, "asked before any credential is");
    assert_eq!(allowed.header("access-control-allow-origin"), Some("https://shop.example.org"));
    assert_eq!(allowed.header("access-control-allow-credentials"), Some("true"));
    assert_eq!(allowed.header("access-control-allow-headers"), Some("x-api-key"));
    assert_eq!(allowed.header("access-control-max-age"), Some("600"));
    assert!(allowed.header("access-control-allow-methods").unwrap().contains("PUT"));
    for stranger in ["https://evil.example", "https://shop.example.org.evil.example", "http://shop.example.org", "null"] {
        let refused = ask(&site, Method::OPTIONS, "/stock/x", &of(stranger)).await;
        assert_eq!(refused.header("access-control-allow-origin"), None, "{stranger}");
    }
    assert_eq!((site.served(), site.metrics.count(Reason::Unauthenticated)), (0, 0));
    // Refusals are readable too, and caches tell origins apart even where none was named.
    let refused = site.get_with("/stock/x", &[("origin", "https://b.example.org")]).await;
    assert_eq!((refused.status.as_u16(), refused.header("access-control-allow-origin")), (401, Some("https://b.example.org")));
    assert!(refused.header("access-control-expose-headers").unwrap().contains("x-request-id"));
    assert_eq!(refused.headers.get_all("vary").iter().filter(|it| it.to_str().unwrap().contains("origin")).count(), 1);
    assert_eq!(site.get("/open/x").await.header("vary"), Some("origin"));
    // A plain OPTIONS is the service's.
    let plain = ask(&site, Method::OPTIONS, "/open/fixed", &[("origin", "https://b.example.org")]).await;
    assert_eq!((plain.status.as_u16(), plain.header("allow")), (204, Some("GET, HEAD")));
}

#[tokio::test]
async fn no_origin_may_read_anything_unless_it_is_configured_and_everybody_never_with_credentials() {
    let site = Site::new();
    let origin = [("origin", "https://shop.example.org"), ("access-control-request-method", "GET")];
    let answer = ask(&site, Method::OPTIONS, "/open/fixed", &origin).await;
    assert!(!answer.headers.keys().any(|name| name.as_str().starts_with("access-control")), "{answer:?}");
    assert_eq!(site.get("/open/x").await.header("vary"), None);
    let cors = Cors { origins: vec!["*".into()], credentials: true, max_age: Duration::ZERO };
    let site = Site::with(Config { cors, ..calm() }, Keys::usual());
    let answer = ask(&site, Method::OPTIONS, "/open/x", &origin).await;
    assert_eq!(answer.header("access-control-allow-origin"), Some("*"));
    assert_eq!(answer.header("access-control-allow-credentials"), None);
}

#[tokio::test]
async fn the_probes_tell_who_asks_why_the_node_is_not_ready() {
    let site = Site::new();
    assert_eq!((site.get("/livez").await.status.as_u16(), site.get("/readyz").await.text()), (200, "ready\n"));
    site.conditions.clear("mirror");
    site.conditions.note("backup", "the last one is two days old");
    assert_eq!(site.get("/readyz").await.status, 200);
    site.conditions.set("keys", "no replica yet");
    let word = site.get("/readyz").await;
    assert_eq!((word.status.as_u16(), word.text(), word.header("cache-control")), (503, "not ready\n", Some("no-store")));
    let lines = "not ready\n[~] backup: the last one is two days old\n[-] keys: no replica yet\n[+] mirror\n[+] accepting\n";
    assert_eq!(site.get("/readyz?verbose").await.text(), lines);
    let json = site.get_with("/readyz?verbose=1", &[("accept", "application/json")]).await.json();
    assert_eq!(json["ready"], false);
    assert_eq!(json["conditions"][1], serde_json::json!({"name": "keys", "standing": "failing", "reason": "no replica yet"}));
    assert_eq!(site.get("/livez").await.status, 200, "alive is not ready");
    site.conditions.clear("keys");
    assert_eq!(site.get("/readyz").await.status, 200);
}

#[tokio::test]
async fn a_node_that_is_about_to_stop_is_not_ready_and_serves() {
    let site = Site::new();
    let go = |drain: &Drain, phase| drain.go(phase);
    for phase in [Phase::NotReady, Phase::Draining { until: std::time::Instant::now() }] {
        go(&site.drain, phase);
        assert_eq!(site.get("/readyz").await.status, 503);
        assert!(site.get("/readyz?verbose").await.text().contains("[-] accepting: the node is"));
        assert_eq!((site.get("/open/x").await.status.as_u16(), site.get("/livez").await.status.as_u16()), (200, 200));
    }
}

#[tokio::test]
async fn figures_are_for_who_may_see_them() {
    let site = Site::new();
    assert_eq!(site.get("/metrics").await.status, 401);
    assert_eq!(site.get_with("/metrics", &[("x-api-key", KEY)]).await.status, 403);
    let figures = site.get_with("/metrics", &[("x-api-key", OTHER_KEY)]).await;
    assert_eq!(figures.header("content-type"), Some("application/openmetrics-text; version=1.0.0; charset=utf-8"));
    assert!(figures.text().contains("horos_http_requests_total{version=\"h1\",method=\"GET\",status=\"401\"} 1\n"), "{}", figures.text());
    assert!(figures.text().contains("horos_http_requests_in_flight{version=\"h1\"} 1\n"), "itself");
}

#[tokio::test]
async fn who_leaves_before_the_answer_is_counted_and_holds_nothing() {
    let site = Site::new();
    let from = Peer { version: Version::Http2, plane: Plane::Both, ..peer() };
    let mut waiting = Box::pin(site.app.handle(get("/open/wait").body(Body::empty()).unwrap(), from));
    assert!(futures_util::poll!(&mut waiting).is_pending());
    assert_eq!(site.metrics.in_flight(), 1);
    drop(waiting);
    assert_eq!(site.metrics.in_flight(), 0);
    assert!(site.metrics.text().contains("horos_http_requests_cancelled_total{version=\"h2\"} 1\n"));
}

#[tokio::test]
async fn an_answer_that_streams_is_counted_as_it_goes() {
    let site = Site::new();
    assert_eq!(site.get("/open/stream").await.text(), "onetwo");
    assert!(site.metrics.text().contains("horos_http_response_body_bytes_total{version=\"h1\"} 6\n"));
}

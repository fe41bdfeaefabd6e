//! What is made of a request's head: its names, its target, who sent it, how long it may take.

use std::time::Duration;

use horos_edge::{Body, Config, Forwarded, Limits, Reason, Version};
use http::Request;

use horos_wire::principal::Proof;

use super::guard_world::{KEY, Keys, Site, TOKEN, calm, get, peer, peer_at, principal, with};

fn behind_a_proxy() -> Site {
    Site::with(Config { trusted_proxies: vec![("10.0.0.0".parse().unwrap(), 8)], ..calm() }, Keys::usual())
}

#[tokio::test]
async fn every_answer_names_its_request_and_its_trace() {
    let site = Site::new();
    for path in ["/open/x", "/nowhere", "/stock/x", "/livez", "/open/panic"] {
        let answer = site.get(path).await;
        assert!(answer.header("x-request-id").unwrap().starts_with("req_"), "{answer:?}");
        assert_eq!(answer.header("traceparent").unwrap().len(), 55, "{answer:?}");
        assert!(!answer.headers.contains_key("server"));
    }
    let answer = site.get("/open/x").await;
    assert_eq!(answer.json()["request"], answer.header("x-request-id").unwrap());
}

#[tokio::test]
async fn a_trace_goes_on_and_what_is_none_is_replaced() {
    let site = Site::new();
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let answer = site.get_with("/open/x", &[("traceparent", parent), ("tracestate", "a=b")]).await;
    assert_eq!(answer.json()["trace"], "0af7651916cd43dd8448eb211c80319c");
    assert_eq!(answer.json()["headers"]["tracestate"], "a=b");
    assert!(answer.header("traceparent").unwrap().starts_with("00-0af7651916cd43dd8448eb211c80319c-"));
    for lines in [&[("traceparent", "00-nonsense"), ("tracestate", "a=b")][..], &[("traceparent", parent), ("traceparent", parent)]] {
        let answer = site.get_with("/open/x", lines).await;
        let json = answer.json();
        assert_ne!(json["trace"], "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(json["headers"].get("tracestate"), None, "{json}");
        assert_eq!(json["headers"].get("traceparent"), None, "{json}");
    }
}

#[tokio::test]
async fn a_requests_id_is_taken_over_from_a_trusted_proxy_only() {
    let site = behind_a_proxy();
    let request = |id: &str| with(get("/open/x"), &[("x-request-id", id)]).body(Body::empty()).unwrap();
    let proxied = site.ask_from(request("from-the-proxy.1"), peer_at("10.1.2.3")).await;
    assert_eq!(proxied.header("x-request-id"), Some("from-the-proxy.1"));
    assert_eq!(proxied.json()["request"], "from-the-proxy.1");
    for (id, from) in [("from-a-client", "192.0.2.1"), ("not plain", "10.1.2.3"), ("", "10.1.2.3")] {
        let answer = site.ask_from(request(id), peer_at(from)).await;
        let ours = answer.header("x-request-id").unwrap().to_owned();
        assert!(ours.starts_with("req_"), "{ours}");
        assert_eq!(answer.json()["headers"]["x-request-id"], *ours, "a service sees no other id than the logs have");
    }
}

#[tokio::test]
async fn only_a_trusted_proxy_says_where_a_request_comes_from() {
    let site = behind_a_proxy();
    let claims =
        [("x-forwarded-for", "203.0.113.9"), ("x-forwarded-proto", "https"), ("x-real-ip", "1.2.3.4"), ("forwarded", "for=203.0.113.9")];
    let request = || with(get("/open/x"), &claims).body(Body::empty()).unwrap();
    let proxied = site.ask_from(request(), peer_at("10.1.2.3")).await.json();
    assert_eq!(proxied["client"], "203.0.113.9");
    assert_eq!(proxied["headers"]["x-forwarded-proto"], "https");
    let direct = site.ask_from(request(), peer_at("192.0.2.1")).await.json();
    assert_eq!(direct["client"], "192.0.2.1");
    for (name, _) in claims {
        assert_eq!(direct["headers"].get(name), None, "{name} is nobody's to believe");
    }
    assert_eq!(proxied["headers"].get("forwarded"), None, "nor is what a proxy passes on without reading it");
    let forwarded = Config { forwarded: Forwarded::Forwarded, trusted_proxies: vec![("10.0.0.0".parse().unwrap(), 8)], ..calm() };
    let site = Site::with(forwarded, Keys::usual());
    let claims = [("x-forwarded-for", "203.0.113.9"), ("forwarded", "for=203.0.113.10;proto=https")];
    let proxied = site.ask_from(with(get("/open/x"), &claims).body(Body::empty()).unwrap(), peer_at("10.1.2.3")).await.json();
    assert_eq!(proxied["client"], "203.0.113.10");
    assert_eq!((proxied["headers"].get("x-forwarded-for"), proxied["headers"]["forwarded"].as_str()), (None, Some(claims[1].1)));
}

#[tokio::test]
async fn the_host_is_one_and_a_path_is_plain() {
    let site = Site::new();
    let ask = async |request: http::request::Builder| site.ask(request.body(Body::empty()).unwrap()).await;
    assert_eq!(ask(Request::builder().uri("/open/x")).await.code(), "bad_host");
    assert_eq!(ask(get("/open/x").header("host", "other")).await.code(), "bad_host");
    assert_eq!(ask(get("/open/../stock")).await.code(), "bad_path");
    assert_eq!(ask(get("/open/%2e%2e/stock")).await.code(), "bad_path");
    let absolute = ask(Request::builder().uri("http://shop.example.org/open/x?q").header("host", "other")).await;
    assert_eq!(absolute.json()["headers"]["host"], "shop.example.org");
    assert_eq!(absolute.json()["uri"], "http://shop.example.org/x?q");
    let two = |host: &'static str| {
        let request = Request::builder().version(http::Version::HTTP_2).uri("https://shop.example.org/open/x").header("host", host);
        (request.body(Body::empty()).unwrap(), horos_edge::Peer { version: Version::Http2, ..peer() })
    };
    let (request, from) = two("shop.example.org");
    assert_eq!(site.ask_from(request, from).await.status, 200);
    let (request, from) = two("other.example.org");
    assert_eq!(site.ask_from(request, from).await.code(), "bad_host");
    assert_eq!(site.served(), 2);
    assert_eq!((site.metrics.count(Reason::BadHost), site.metrics.count(Reason::BadPath)), (3, 2));
}

#[tokio::test]
async fn https_is_insisted_on_of_a_name_and_not_of_an_address() {
    let site = Site::new();
    let told = async |host: &str| {
        let request = Request::builder().uri("/open/x").header("host", host).body(Body::empty()).unwrap();
        site.ask(request).await.header("strict-transport-security").is_some()
    };
    assert!(told("shop.example.org").await && told("shop.example.org:8443").await);
    for host in ["localhost:7400", "127.0.0.1:7400", "[::1]", "192.0.2.1"] {
        assert!(!told(host).await, "{host}");
    }
}

#[tokio::test]
async fn a_head_beyond_the_limits_is_refused_and_counted() {
    let limits = Limits { fields: 10, head: 2_000, ..calm().limits };
    let site = Site::with(Config { limits, ..calm() }, Keys::usual());
    let fields = |count: usize| (1..count).fold(get("/open/x"), |request, i| request.header(format!("x-{i}"), "1"));
    assert_eq!(site.ask(fields(10).body(Body::empty()).unwrap()).await.status, 200);
    let many = site.ask(fields(11).body(Body::empty()).unwrap()).await;
    assert_eq!((many.status.as_u16(), many.code().as_str()), (431, "head_too_large"));
    let long = site.get_with("/open/x", &[("x-long", &"x".repeat(2_000))]).await;
    assert_eq!(long.status, 431);
    let uri = site.get(&format!("/open/{}", "x".repeat(8_000))).await;
    assert_eq!((uri.status.as_u16(), uri.code().as_str()), (414, "head_too_large"));
    assert_eq!(site.metrics.count(Reason::HeadTooLarge), 3);
    assert_eq!(site.served(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_deadline_is_the_ports_or_the_clients_where_that_is_sooner_and_sane() {
    let site = Site::new();
    for (asked, left) in
        [("", 30_000), ("5", 5_000), ("0.25", 250), ("60", 30_000), ("0", 30_000), ("-1", 30_000), ("soon", 30_000), ("1e9", 30_000)]
    {
        let answer = site.get_with("/open/x", &[("request-timeout", asked)]).await;
        assert_eq!(answer.json()["left_ms"], left, "{asked:?}");
    }
    let started = tokio::time::Instant::now();
    let late = site.get_with("/open/wait", &[("request-timeout", "2")]).await;
    assert_eq!((late.status.as_u16(), late.code().as_str()), (504, "deadline"));
    assert_eq!(started.elapsed().as_secs(), 2);
    assert_eq!(site.get("/open/wait").await.status, 504);
    assert_eq!(started.elapsed(), Duration::from_secs(32));
    assert_eq!(site.metrics.count(Reason::Deadline), 2);
}

#[tokio::test(start_paused = true)]
async fn a_service_that_may_take_longer_has_that_long_and_a_client_may_still_ask_for_less() {
    let site = Site::new();
    for (asked, left) in [("", 120_000), ("5", 5_000), ("60", 60_000), ("600", 120_000)] {
        let answer = site.get_with("/slow/x", &[("request-timeout", asked)]).await;
        assert_eq!(answer.json()["left_ms"], left, "{asked:?}");
    }
    let started = tokio::time::Instant::now();
    assert_eq!(site.get("/slow/wait").await.code(), "deadline");
    assert_eq!(started.elapsed(), Duration::from_secs(120));
    // Nobody else has longer for it.
    assert_eq!(site.get("/open/wait").await.code(), "deadline");
    assert_eq!(started.elapsed(), Duration::from_secs(150));
}

#[tokio::test]
async fn an_idempotency_key_goes_with_the_call_if_it_is_one() {
    let site = Site::new();
    assert_eq!(site.get_with("/open/x", &[("idempotency-key", "\"8e03978e\"")]).await.json()["idempotency_key"], "8e03978e");
    assert_eq!(site.get("/open/x").await.json()["idempotency_key"], serde_json::Value::Null);
    for lines in [
        &[("idempotency-key", "k".repeat(256).as_str())][..],
        &[("idempotency-key", "")],
        &[("idempotency-key", "a"), ("idempotency-key", "a")],
    ] {
        assert_eq!(site.get_with("/open/x", lines).await.code(), "bad_idempotency_key");
    }
    assert_eq!(site.metrics.count(Reason::BadIdempotencyKey), 3);
}

#[tokio::test]
async fn the_same_idempotency_key_of_two_principals_is_two() {
    let mut keys = Keys::usual();
    // As unkind as ids can be.
    keys.add("hk_a", principal("key 1", Proof::Key { owner: "shop".into() }, &["stock"]));
    keys.add("hk_b", principal("key%201", Proof::Key { owner: "shop".into() }, &["stock"]));
    keys.add("hk_c", principal("key", Proof::Key { owner: "shop".into() }, &["stock"]));
    let proof = Proof::Token { user: "1".into(), token: "t".into() };
    keys.add("other.token", principal("1", proof, &["stock"]));
    let site = Site::with(calm(), keys);
    let ana = format!("Bearer {TOKEN}");
    let seen = async |path: &str, fields: &[(&str, &str)]| {
        let mut fields = fields.to_vec();
        fields.push(("idempotency-key", "k"));
        site.get_with(path, &fields).await.json()["idempotency_key"].as_str().unwrap().to_owned()
    };
    let mut all = vec![seen("/open/x", &[]).await];
    for fields in [
        &[("x-api-key", KEY)][..],
        &[("x-api-key", "hk_a")],
        &[("x-api-key", "hk_b")],
        &[("x-api-key", "hk_c")],
        &[("authorization", &ana)],
        // One key for two users, and beside a token what could be taken for `key 1`.
        &[("x-api-key", KEY), ("authorization", &ana)],
        &[("x-api-key", KEY), ("authorization", "Bearer other.token")],
        &[("x-api-key", "hk_c"), ("authorization", "Bearer other.token")],
    ] {
        assert_eq!(seen("/stock/x", fields).await, seen("/stock/x", fields).await, "the same again is the same");
        all.push(seen("/stock/x", fields).await);
    }
    let count = all.len();
    assert_eq!((&*all[0], &*all[1]), ("k", "key_1 k"));
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), count, "{all:?}");
}

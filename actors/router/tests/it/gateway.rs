//! Services over HTTP: who is let in, what is answered, and what an error says.

use std::time::{Duration, Instant};

use serde_json::json;

use super::gateway_world::{Answer, MEMORY, Site, send, whole};

const PUBLIC: &str = r#"{"gateway": "public"}"#;
const SAY: &str = r#"{"say": {"text": "hello"}}"#;
const JSON: &[(&str, &str)] = &[("content-type", "application/json")];

#[tokio::test]
async fn a_service_that_is_private_one_that_is_wrong_and_none_at_all_are_one_and_the_same() {
    let site = Site::new(&[]).await;
    let taken = site.routes(&[
        ("shown", "local", "desk", PUBLIC),
        ("private", "local", "desk", "{}"),
        ("off", "noop", "", "{}"),
        ("wrong", "grpc", "desk", PUBLIC),
    ]);
    assert_eq!(taken.wrong, 1);
    assert_eq!(site.ask("/shown", SAY).await.json(), "hello");
    let mut told = Vec::new();
    // `desk` is an actor of this node, without a route.
    for name in ["private", "off", "wrong", "desk", "desk@bo", "nothing", "shown/x"] {
        for fields in [JSON, &[], &[("content-type", "x/y"), ("x-scopes", "stock")]] {
            let answer = site.post(&format!("/{name}"), fields, SAY).await;
            assert_eq!((answer.status.as_u16(), answer.text()), (404, ""), "{name}");
            let mut headers = answer.headers;
            headers.remove("date");
            told.push(headers);
        }
    }
    assert!(told.windows(2).all(|pair| pair[0] == pair[1]), "{told:?}");
}

#[tokio::test]
async fn names_have_slashes_and_escapes_and_bad_ones_are_refused_whatever_there_is() {
    let site = Site::new(&[]).await;
    site.routes(&[("a/b%c", "local", "desk", PUBLIC), ("café", "local", "desk", PUBLIC)]);
    for path in ["/a/b%25c", "/a%2Fb%25c", "/%61/b%25%63", "/caf%C3%A9"] {
        assert_eq!(site.ask(path, SAY).await.json(), "hello", "{path}");
    }
    assert_eq!(site.ask("/a/b%25c?x=/nothing", SAY).await.json(), "hello");
    for path in ["/", "/a//b", "/a/", "/%", "/%00", "/%ff", "/a/%2e%2e/b", "/a%5Cb"] {
        assert_eq!(site.ask(path, SAY).await.problem(), (400, "name".to_owned(), "none".to_owned()), "{path}");
    }
}

#[tokio::test]
async fn a_scope_wants_somebody_who_holds_it() {
    let site = Site::new(&[]).await;
    site.routes(&[("stock", "local", "desk", r#"{"gateway": {"scope": "stock:read"}}"#)]);
    for (scopes, status) in [(None, 401), (Some(""), 403), (Some("stock"), 403), (Some("other,stock:read"), 200)] {
        let mut fields = JSON.to_vec();
        fields.extend(scopes.map(|scopes| ("x-scopes", scopes)));
        let answer = site.post("/stock", &fields, SAY).await;
        assert_eq!(answer.status.as_u16(), status, "{scopes:?}");
        // Bare: the port puts it in its own words, those of every refusal.
        assert!(status == 200 || answer.body.is_empty());
    }
}

#[tokio::test]
async fn only_what_can_be_a_message_is_taken() {
    let site = Site::new(&[]).await;
    site.routes(&[
        ("desk", "local", "", PUBLIC),
        ("press", "local", "", PUBLIC),
        ("off", "noop", "", r#"{"gateway": "public", "reply": {"x": 1}}"#),
    ]);
    let get = http::Request::get("/desk").body(whole("")).unwrap();
    let get = Answer::of(send(site.address, get).await).await;
    assert_eq!((get.problem(), get.header("allow")), ((405, "method".to_owned(), "none".to_owned()), Some("POST")));
    let unknown = http::Request::put("/unknown").body(whole("")).unwrap();
    assert_eq!(Answer::of(send(site.address, unknown).await).await.status, 405, "the same whether it is there or not");

    for kind in ["application/json", "Application/JSON; charset=utf-8", "application/vnd.shop+json"] {
        assert_eq!(site.post("/desk", &[("content-type", kind)], SAY).await.status, 200, "{kind}");
    }
    for kind in ["text/plain", "application/x-www-form-urlencoded", "json", "application/jsonx", "application/+json"] {
        assert_eq!(site.post("/desk", &[("content-type", kind)], SAY).await.problem().1, "media-type", "{kind}");
        assert_eq!(site.post("/press", &[("content-type", kind)], SAY).await.text(), SAY, "bytes are bytes: {kind}");
    }
    assert_eq!(site.post("/desk", &[], SAY).await.status, 415, "nobody said what it is");
    assert_eq!(site.post("/press", &[("content-encoding", "gzip")], "x").await.problem(), (415, "coding".to_owned(), "none".to_owned()));
    for bad in ["", "{", "[]", "{}", r#"{"nothing": {}}"#, r#"{"say": {"text": 5}}"#, r#"{"say": {}, "who": {}}"#, "\"say\""] {
        assert_eq!(site.ask("/desk", bad).await.problem(), (400, "malformed".to_owned(), "none".to_owned()), "{bad}");
    }
    assert_eq!(site.ask("/off", "whatever").await.json(), json!({"x": 1}), "nobody is asked, and nobody reads it");
}

#[tokio::test]
async fn what_is_too_large_is_refused_and_never_cut_whether_or_not_it_says_so() {
    let _much = MEMORY.read().await;
    let site = Site::new(&[]).await;
    site.routes(&[("desk", "local", "", PUBLIC), ("off", "noop", "", PUBLIC)]);
    let message = |length: usize| {
        let frame = json!({"say": {"text": ""}}).to_string().len();
        json!({"say": {"text": "x".repeat(length - frame)}}).to_string()
    };
    let most = horos_router::gateway::MAX_JSON;
    let desk = site.post("/desk", JSON, message(1 << 20)).await;
    assert_eq!((desk.status.as_u16(), desk.body.len()), (200, (1 << 20) - json!({"say": {"text": ""}}).to_string().len() + 2));
    assert_eq!(site.post("/off", JSON, message(most)).await.status, 200);
    assert_eq!(site.post("/off", JSON, message(most + 1)).await.problem(), (413, "too-large".to_owned(), "none".to_owned()));
    for (length, status) in [(most, 200), (most + 1, 413)] {
        let parts = bytes::Bytes::from(message(length));
        let parts = futures_util::stream::iter((0..length).step_by(100_000).map(move |at| {
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(http_body::Frame::data(parts.slice(at..(at + 100_000).min(length))))
        }));
        let body = http_body_util::BodyExt::boxed(http_body_util::StreamBody::new(parts));
        let request = http::Request::post("/off").header("content-type", "application/json").body(body).unwrap();
        assert_eq!(send(site.address, request).await.status(), status, "in chunks, {length} bytes");
    }
}

#[tokio::test]
async fn an_error_says_what_may_be_done_and_nothing_of_the_inside() {
    let site = Site::new(&[]).await;
    site.routes(&[
        ("desk", "local", "", r#"{"gateway": "public", "timeout_ms": 300}"#),
        ("away", "quic", "desk@bo-secret-9", PUBLIC),
        ("rated", "local", "desk", r#"{"gateway": "public", "rate": {"per_second": 1}}"#),
        ("one", "local", "desk", r#"{"gateway": "public", "timeout_ms": 300, "concurrency": {"limit": 1}}"#),
        ("broken", "quic", "desk@bo-secret-9", r#"{"gateway": "public", "breaker": {"failures": 1, "open_ms": 7000}}"#),
    ]);
    let answer = site.ask("/desk", r#"{"buy": {}}"#).await;
    assert_eq!(answer.problem(), (422, "failed".to_owned(), "done".to_owned()));
    assert_eq!(answer.json()["error"], json!({"Stock": {"left": 3}}));
    assert_eq!((&answer.json()["request_id"], &answer.json()["trace_id"]), (&json!("req_1"), &json!("00000000000000000000000000000001")));
    assert_eq!(site.ask("/desk", r#"{"fall": {}}"#).await.problem(), (502, "died".to_owned(), "unknown".to_owned()));
    let answer = site.ask("/away", SAY).await;
    assert_eq!((answer.problem(), answer.header("retry-after")), ((503, "no-such-actor".to_owned(), "none".to_owned()), Some("1")));
    assert_eq!(site.ask("/rated", SAY).await.status, 200);
    let answer = site.ask("/rated", SAY).await;
    assert_eq!((answer.problem(), answer.header("retry-after")), ((429, "rate-limited".to_owned(), "none".to_owned()), Some("1")));
    assert!(answer.json()["retry_after"].as_f64().is_some_and(|seconds| seconds > 0.0 && seconds <= 1.0));
    site.ask("/broken", SAY).await;
    let answer = site.ask("/broken", SAY).await;
    assert_eq!((answer.problem().0, answer.problem().1, answer.header("retry-after")), (503, "circuit-open".to_owned(), Some("7")));

    // From here on the desk is at work for ever.
    let began = Instant::now();
    let (hanging, refused) = tokio::join!(site.ask("/one", r#"{"hang": {}}"#), async {
        loop {
            let answer = site.ask("/one", SAY).await;
            if answer.status != 200 {
                return answer;
            }
        }
    });
    assert_eq!(hanging.problem(), (504, "deadline-passed".to_owned(), "unknown".to_owned()));
    assert!(began.elapsed() < Duration::from_secs(5));
    assert_eq!((refused.problem(), refused.header("retry-after")), ((503, "overloaded".to_owned(), "none".to_owned()), Some("1")));
}

#[tokio::test]
async fn a_service_of_bytes_refuses_in_its_own_words() {
    let _much = MEMORY.read().await;
    let site = Site::new(&[]).await;
    site.routes(&[("press", "local", "", r#"{"gateway": "public", "timeout_ms": 300}"#)]);
    let answer = site.post("/press", &[("content-type", "x/refuse")], "x").await;
    assert_eq!(answer.problem(), (409, "failed".to_owned(), "done".to_owned()));
    assert_eq!((&answer.json()["detail"], &answer.json()["error"]["reason"]), (&json!("no such picture"), &json!("no such picture")));
    let huge = site.post("/press", &[("content-type", "x/huge")], "x").await;
    assert_eq!(huge.problem(), (502, "reply-too-large".to_owned(), "unknown".to_owned()));
    assert_eq!(site.post("/press", &[("content-type", "x/fall")], "x").await.problem().1, "died");
    assert_eq!(
        site.post("/press", &[("content-type", "x/hang")], "x").await.problem(),
        (504, "deadline-passed".to_owned(), "unknown".to_owned())
    );
}

#[tokio::test]
async fn what_the_port_knows_goes_on_with_the_call() {
    let site = Site::new(&[]).await;
    site.routes(&[("desk", "local", "", PUBLIC)]);
    let fields = [JSON[0], ("x-user", "ana"), ("idempotency-key", "k1"), ("request-timeout", "5.05")];
    let answer = site.post("/desk", &fields, r#"{"who": {}}"#).await;
    assert_eq!(answer.json(), "Some(\"ana\") Some(\"k1\") 00000000000000000000000000000001 Some(5000)");
    let expired = site.post("/desk", &[JSON[0], ("request-timeout", "0")], SAY).await;
    assert_eq!((expired.problem().1, expired.problem().2), ("expired".to_owned(), "none".to_owned()));
}

/// What is said directly, and behind one more Horos.
#[tokio::test]
async fn an_error_is_the_same_behind_another_gateway() {
    let far = Site::new(&[]).await;
    let near = Site::new(&[far.address]).await;
    let rows = [
        ("desk", r#"{"gateway": "public", "timeout_ms": 300}"#),
        ("rated", r#"{"gateway": "public", "rate": {"per_second": 1, "burst": 1}}"#),
        ("press", r#"{"gateway": "public", "timeout_ms": 300}"#),
    ];
    let desk = |name| if name == "press" { "press" } else { "desk" };
    let mut own: Vec<_> = rows.iter().map(|(name, config)| (*name, "local", desk(*name), *config)).collect();
    own.push(("away", "quic", "desk@bo-secret-9", r#"{"gateway": "public", "breaker": {"failures": 1, "open_ms": 7000}}"#));
    far.routes(&own);
    let urls: Vec<String> = ["desk", "rated", "press", "away", "nothing"].iter().map(|name| far.url(&format!("/{name}"))).collect();
    let never = r#""breaker": {"failures": 0, "failure_percent": 0}"#;
    let (json, bytes) = (format!(r#"{{"gateway": "public", "payload": "json", {never}}}"#), format!(r#"{{"gateway": "public", {never}}}"#));
    near.routes(&[
        ("desk", "http", &urls[0], &json),
        ("desk-as-bytes", "http", &urls[0], &bytes),
        ("rated", "http", &urls[1], &json),
        ("press", "http", &urls[2], &bytes),
        ("away", "http", &urls[3], &json),
        ("nothing", "http", &urls[4], &json),
    ]);
    for name in ["desk", "desk-as-bytes"] {
        let path = format!("/{name}");
        assert_eq!(near.ask(&path, SAY).await.json(), "hello");
        for bad in [r#"{"buy": {}}"#, r#"{"fall": {}}"#, "{", r#"{"nothing": {}}"#] {
            let (direct, behind) = (far.ask("/desk", bad).await, near.ask(&path, bad).await);
            assert_eq!(behind.problem(), direct.problem(), "{name} {bad}");
            assert_eq!(behind.json().get("error"), direct.json().get("error"));
        }
    }
    near.ask("/rated", SAY).await;
    let limited = near.ask("/rated", SAY).await;
    assert_eq!(limited.problem(), (503, "overloaded".to_owned(), "none".to_owned()), "the rate is not this one's");
    for (kind, wanted) in [("x/refuse", (409, "failed", "done")), ("x/fall", (502, "died", "unknown"))] {
        let answer = near.post("/press", &[("content-type", kind)], "x").await;
        assert_eq!(answer.problem(), (wanted.0, wanted.1.to_owned(), wanted.2.to_owned()));
        if kind == "x/refuse" {
            assert_eq!(answer.json()["error"], json!({"status": 409, "reason": "no such picture"}));
        }
    }
    assert_eq!(near.ask("/away", SAY).await.problem().1, "no-such-actor");
    let open = near.ask("/away", SAY).await;
    assert_eq!((open.problem().1, open.header("retry-after")), ("circuit-open".to_owned(), Some("7")));
    assert_eq!(near.ask("/nothing", SAY).await.problem().1, "no-such-actor", "what is 404 there is not there");
    // Last, because the desk is at it for ever.
    assert_eq!(near.ask("/desk", r#"{"hang": {}}"#).await.problem(), far.ask("/desk", r#"{"hang": {}}"#).await.problem());
}

#[tokio::test]
async fn a_ring_of_routes_ends() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let own = listener.local_addr().unwrap();
    let site = Site::on(listener, &[own]).await;
    let ring = r#"{"gateway": "public", "payload": "json"}"#;
    site.routes(&[("ring", "http", &site.url("/ring"), ring), ("once", "http", &site.url("/end"), ring), ("end", "noop", "", ring)]);
    let began = Instant::now();
    assert_eq!(site.ask("/ring", SAY).await.problem(), (508, "too-many-hops".to_owned(), "none".to_owned()));
    assert!(began.elapsed() < Duration::from_secs(10), "it ends long before its deadline");
    for (hops, status) in [("0", 200), ("31", 200), ("32", 508), ("33", 508), ("x", 508), ("-1", 508), ("256", 508)] {
        assert_eq!(site.post("/once", &[JSON[0], ("horos-hops", hops)], SAY).await.status, status, "{hops}");
    }
}

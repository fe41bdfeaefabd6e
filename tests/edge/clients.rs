//! Other people's clients are served alike, by whatever version of HTTP they come.

use serde_json::json;

use super::served;
use crate::harness::clients::Client;
use crate::harness::http::{Answer, Ask};

const LIMIT: usize = 64 * 1024;

/// Problem details (RFC 9457) of this status and code.
fn is_problem(client: Client, answer: &Answer, status: u16, code: &str) {
    assert_eq!(answer.status, status, "{client:?}: {answer:?}");
    assert_eq!(answer.header("content-type"), Some("application/problem+json"), "{client:?}: {answer:?}");
    let told = answer.json();
    assert_eq!((&told["status"], &told["code"]), (&json!(status), &json!(code)), "{client:?}: {answer:?}");
}

#[tokio::test]
async fn curl_fetch_httpx_and_aioquic_are_served_alike() {
    let (_cluster, bo) = served(|bo| bo.set("HTTP_LIMITS__BODY", "64KiB")).await;
    let (key, other) = (bo.key(&["drill"]).await, bo.key(&["other"]).await);
    let site = bo.site();
    let trace = "0af7651916cd43dd8448eb211c80319c";
    let note = json!({ "note": "zwölf Boxkämpfer" }).to_string();
    let asks = [
        Ask::get("/open/echo"),
        Ask::get("/drill/echo?n=7")
            .key(&key)
            .header("x-request-id", "e2e-4711")
            .header("traceparent", &format!("00-{trace}-b7ad6b7169203331-01")),
        Ask::new("POST", "/drill/echo").header("authorization", &format!("Bearer {key}")).body("application/json", &note),
        Ask::new("HEAD", "/drill/echo").key(&key),
        Ask::get("/drill/echo"),
        Ask::get("/drill/echo").key(&other),
        Ask::get("/drill/echo").key(&format!("hk_{}", "0".repeat(64))),
        Ask::get("/nowhere").key(&key),
        Ask::get("/drill/panic").key(&key),
        Ask::new("DELETE", "/readyz"),
        Ask::get("/drill/large?n=1000000").key(&key),
        Ask::new("POST", "/drill/echo").key(&key).body("application/json", json!({ "note": "x".repeat(LIMIT) }).to_string()),
    ];
    for client in Client::ALL {
        let answers = client.ask(&site, &asks).await;
        for answer in &answers {
            assert_eq!(answer.version, client.version(), "{client:?}: {answer:?}");
            assert!(answer.header("x-request-id").is_some_and(|id| !id.is_empty()), "{client:?}: {answer:?}");
            assert_eq!(answer.header("x-content-type-options"), Some("nosniff"), "{client:?}: {answer:?}");
        }
        let version = if client.version() == "1.1" { "HTTP/1.1".to_owned() } else { format!("HTTP/{}.0", client.version()) };
        let [open, get, post, head, keyless, scopeless, guess, nowhere, panic, method, large, too_large] = &answers[..] else {
            unreachable!()
        };

        assert_eq!((open.status, &open.json()["version"]), (200, &json!(version)), "{client:?}: {open:?}");
        let advertised = open.header("alt-svc").unwrap_or_default();
        assert_eq!(
            advertised.contains(&format!("h3=\":{}\"", site.address.port())),
            client != Client::AioquicHttp3,
            "{client:?}: {open:?}"
        );
        assert!(open.header("strict-transport-security").is_some(), "{client:?}: {open:?}");

        assert_eq!((get.status, get.header("content-type")), (200, Some("application/json")), "{client:?}: {get:?}");
        let seen = get.json();
        assert_eq!((&seen["method"], &seen["path"], &seen["query"]), (&json!("GET"), &json!("/echo"), &json!("n=7")), "{client:?}");
        // An id is given here, whoever asks for another; the trace goes on.
        let id = get.header("x-request-id").unwrap();
        assert_ne!(id, "e2e-4711", "{client:?}: {get:?}");
        assert_eq!(seen["request_id"], id, "{client:?}");
        assert!(get.header("traceparent").is_some_and(|it| it.contains(trace)), "{client:?}: {get:?}");

        assert_eq!((post.status, &post.json()["note"]), (200, &json!("zwölf Boxkämpfer")), "{client:?}: {post:?}");
        assert_eq!((head.status, head.body.as_str()), (200, ""), "{client:?}: {head:?}");

        is_problem(client, keyless, 401, "unauthenticated");
        assert!(keyless.header("www-authenticate").is_some(), "{client:?}: {keyless:?}");
        is_problem(client, scopeless, 403, "forbidden");
        is_problem(client, guess, 401, "unauthenticated");
        // Which of the two it was is told to nobody.
        assert_eq!(guess.json()["detail"], keyless.json()["detail"], "{client:?}");
        is_problem(client, nowhere, 404, "not_found");
        is_problem(client, panic, 500, "panic");
        assert!(!panic.body.contains("purpose"), "what a panic said stays inside: {panic:?}");
        is_problem(client, method, 405, "method_not_allowed");
        assert_eq!((large.status, large.body.len()), (200, 1_000_000), "{client:?}");
        is_problem(client, too_large, 413, "body_too_large");
    }
}

/// Debian 12's curl takes a stream that is reset behind its answer, as RFC 9113 §8.1 allows, for a fault, and a connection
/// that is closed on unread bytes may lose it: either way nobody would see why the request was refused.
#[tokio::test]
async fn curl_shows_why_its_body_was_not_taken_however_large_it_is() {
    let (_cluster, bo) = served(|bo| bo.set("HTTP_LIMITS__BODY", "64KiB")).await;
    let key = bo.key(&["drill"]).await;
    let site = bo.site();
    let upload = |path: &str, size: usize| {
        // Without a look before it sends: the answer comes in the middle.
        Ask::new("POST", path).key(&key).header("expect", "").body("application/octet-stream", "x".repeat(size))
    };
    for client in [Client::CurlHttp1, Client::CurlHttp2] {
        for size in [LIMIT + 1, 3 * 1024 * 1024, 20 * 1024 * 1024] {
            let asks = [upload("/drill/echo", size), upload("/nowhere", size), upload("/drill/echo", size).key("hk_wrong")];
            let answers = client.ask(&site, &asks).await;
            is_problem(client, &answers[0], 413, "body_too_large");
            is_problem(client, &answers[1], 404, "not_found");
            is_problem(client, &answers[2], 401, "unauthenticated");
        }
    }
}

#[tokio::test]
async fn a_client_that_trusts_another_authority_does_not_talk_to_the_node() {
    let (_cluster, bo) = served(|_| ()).await;
    let (other, _) = served(|_| ()).await;
    let mut site = bo.site();
    site.authority = other.authority().join("ca.pem");
    for client in Client::ALL {
        let asked = tokio::spawn(async move { client.ask(&site.clone(), &[Ask::get("/open/echo")]).await.len() });
        site = bo.site();
        site.authority = other.authority().join("ca.pem");
        assert!(asked.await.is_err(), "{client:?} believed a stranger");
    }
}

//! Services that panic, never answer, answer too late or too much.

use std::convert::Infallible;
use std::process::Command;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::response::IntoResponse;
use axum::routing::post;
use futures_util::stream;
use serde_json::{Value, json};

use super::world::{World, becomes, once, serve};
use crate::harness::{Node, cli, scale};

/// Bytes of an answer that does not fit.
fn huge() -> u64 {
    scale(192 << 20, 1 << 30)
}

/// What a node's memory may grow by while they pass through it, or are refused: far less than they are.
const GROWTH: u64 = 96 << 20;

/// Rounds in which a handler panics.
const FALLS: u64 = 4;

/// So many bytes, made as they are read.
fn bytes(count: u64) -> Body {
    const PART: Bytes = Bytes::from_static(&[b'.'; 65_536]);
    Body::from_stream(stream::iter((0..count / 65_536).map(|_| Ok::<_, Infallible>(PART))))
}

async fn never() {
    std::future::pending::<()>().await;
}

async fn late() -> impl IntoResponse {
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    axum::Json(Value::Null)
}

fn peaks(world: &mut World) -> [u64; 2] {
    [world.bo.process().peak_rss(), world.fo.process().peak_rss()]
}

fn assert_bounded(world: &mut World, before: [u64; 2], what: &str) {
    let grown = peaks(world).into_iter().zip(before).map(|(after, before)| after.saturating_sub(before)).max().unwrap();
    eprintln!("{what}: the nodes' memory grew by {} KiB at most", grown >> 10);
    assert!(grown < GROWTH, "{what}: {grown} bytes more");
}

/// Downloads what the gateway of `node` answers: curl's own exit code, the status, and how many bytes came.
async fn download(node: &Node, service: &str) -> (Option<i32>, String) {
    let mut curl = Command::new("curl");
    curl.args(["-s", "-o", "/dev/null", "-w", "%{http_code} %{size_download}", "--max-time", "25", "--data", "x", "--cacert"]);
    curl.arg(node.data.join("identity/ca.pem")).args(["-H", "content-type: application/octet-stream"]);
    let site = node.site();
    curl.args(["--resolve", &format!("{}:{}:{}", site.name, site.address.port(), site.address.ip())]);
    curl.arg(site.url(&format!("/services/{service}")));
    let outcome = cli::run(curl).await;
    (outcome.code, outcome.stdout)
}

#[tokio::test]
async fn a_service_that_panics_hangs_or_answers_too_late_costs_its_callers_a_typed_error_in_time_and_nobody_else_anything() {
    let server = serve(Router::new().route("/never", post(never)).route("/late", post(late))).await;
    let world = World::with(&[server], |_| ()).await;
    // Many failures are wanted here.
    let config = json!({ "breaker": { "failures": 0, "failure_percent": 0 } });
    world.route("local", "local", Some("wild"), &config);
    world.route("remote", "quic", Some("wild@fo-1"), &config);
    world.route("local-frozen", "local", Some("frozen"), &config);
    world.route("remote-frozen", "quic", Some("frozen@fo-1"), &config);
    world.route("http-late", "http", Some(&format!("http://{server}/late")), &config);
    world.route("http-never", "http", Some(&format!("http://{server}/never")), &config);
    becomes(&world.bo, "local", "wild@bo-1").await;
    becomes(&world.bo, "remote", "wild@fo-1").await;
    let cases = [
        ("local", json!("fall"), 5_000, "ActorDied"),
        ("remote", json!("fall"), 5_000, "ActorDied"),
        ("local", json!({ "nap": { "ms": 1_500 } }), 300, "DeadlinePassed"),
        ("remote", json!({ "nap": { "ms": 1_500 } }), 300, "DeadlinePassed"),
        ("local-frozen", json!("freeze"), 300, "DeadlinePassed"),
        ("remote-frozen", json!("freeze"), 300, "DeadlinePassed"),
        ("http-late", json!({ "nap": { "ms": 0 } }), 300, "DeadlinePassed"),
        ("http-never", json!({ "nap": { "ms": 0 } }), 300, "DeadlinePassed"),
    ];
    for round in 0..scale(2, 25) {
        // Its supervisor bears five in 30 s; beyond them it gives up, as it should, and takes the service's siblings along.
        for (service, what, timeout, why) in cases.iter().filter(|(_, what, ..)| *what != "fall" || round < FALLS) {
            // Who froze before keeps its mailbox: a later call waits there, and says that it had no effect.
            let whys = if round > 0 && service.ends_with("frozen") { vec![*why, "Expired"] } else { vec![*why] };
            let ended = once(&world.bo, service, what.clone(), *timeout).await;
            assert_ne!(ended["how"], "done", "{service} {what}: {ended}");
            assert!(whys.iter().any(|why| ended["why"] == *why), "{service} {what}: {ended}");
            assert!(ended["took_ms"].as_u64().unwrap() < timeout + 1_000, "{service} {what}: {ended}");
        }
        // Alive again, and those beside it never were anything else.
        becomes(&world.bo, "local", "wild@bo-1").await;
        becomes(&world.bo, "remote", "wild@fo-1").await;
        becomes(&world.bo, "counter", "counter@bo-1").await;
    }
}

#[tokio::test]
async fn an_answer_that_is_too_large_is_refused_by_a_typed_error_or_streamed_and_never_kept() {
    let size = huge();
    let server = Router::new().route("/huge", post(move || async move { bytes(size) }));
    let server = serve(server.route("/json", post(move || async move { ([("content-type", "application/json")], bytes(size)) }))).await;
    let mut world = World::with(&[server], |_| ()).await;
    world.route("large", "quic", Some("wild@fo-1"), &json!({}));
    world.route("json", "http", Some(&format!("http://{server}/json")), &json!({ "timeout_ms": 20_000 }));
    world.route("bytes", "http", Some(&format!("http://{server}/huge")), &json!({ "gateway": "public", "payload": "bytes" }));
    for node in world.nodes() {
        becomes(node, "large", "wild@fo-1").await;
    }
    let before = peaks(&mut world);
    let ended = once(&world.bo, "json", json!("count"), 20_000).await;
    assert_eq!((&ended["how"], &ended["why"]), (&json!("unknown"), &json!("ReplyTooLarge")), "{ended}");
    assert_bounded(&mut world, before, "an answer over HTTP, read whole");
    let before = peaks(&mut world);
    for node in world.nodes() {
        assert_eq!(download(node, "bytes").await, (Some(0), format!("200 {size}")), "through the gateway of {}", node.name);
    }
    assert_bounded(&mut world, before, "an answer through the gateway");
    // The actor itself made these, and the node passes on none of it.
    let ended = once(&world.bo, "large", json!({ "letters": { "count": 32 << 20 } }), 20_000).await;
    assert_eq!((&ended["how"], &ended["why"]), (&json!("unknown"), &json!("ReplyTooLarge")), "{ended}");
    becomes(&world.bo, "large", "wild@fo-1").await;
}

//! Three endpoints, one of which is ill.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use serde_json::json;

use super::world::{Load, World, becomes, serve};
use crate::harness::{scale, seed};

/// What a healthy endpoint takes.
const HEALTHY: Duration = Duration::from_millis(10);
/// Of its answers the ill one makes so many errors, in a hundred.
const ERRORS: u64 = 30;

/// A server that counts its requests, and where it is.
async fn server(name: &'static str, asked: Arc<AtomicU64>, takes: Duration, errors: u64, seed: u64) -> std::net::SocketAddr {
    let answer = move || {
        let number = asked.fetch_add(1, Ordering::SeqCst);
        async move {
            tokio::time::sleep(takes).await;
            // SplitMix64's end: whether this one fails hangs on seed and number alone.
            let z = (seed ^ number.wrapping_mul(0x9E37_79B9_7F4A_7C15)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            let fails = (z ^ (z >> 31)) % 100 < errors;
            let answer: Response =
                if fails { StatusCode::INTERNAL_SERVER_ERROR.into_response() } else { axum::Json(json!({ "by": name })).into_response() };
            answer
        }
    };
    serve(Router::new().route("/", post(answer))).await
}

#[tokio::test]
async fn one_of_three_endpoints_that_fails_and_is_slow_is_hardly_noticed_and_costs_hardly_any_load() {
    let (calls, seed) = (scale(4_000_u64, 100_000), seed());
    let asked = [(); 3].map(|()| Arc::<AtomicU64>::default());
    let ill = server("ill", asked[0].clone(), HEALTHY * 10, ERRORS, seed).await;
    let one = server("one", asked[1].clone(), HEALTHY, 0, seed).await;
    let two = server("two", asked[2].clone(), HEALTHY, 0, seed).await;
    let world = World::with(&[ill, one, two], |_| ()).await;
    let url = |address| format!("http://{address}/");
    let config = json!({
        "idempotent": true, "retry": { "retries": 2 }, "timeout_ms": 10_000,
        "endpoints": [{ "endpoint": url(one) }, { "endpoint": url(two) }],
    });
    world.route("stock", "http", Some(&url(ill)), &config);
    becomes(&world.bo, "stock", "one").await;
    let before: u64 = asked.iter().map(|asked| asked.load(Ordering::SeqCst)).sum();
    let began = Instant::now();
    let load = Load::begin(&world.bo, json!({ "service": "stock", "calls": calls, "at_once": 32, "timeout_ms": 10_000, "ring": 0 })).await;
    let record = load.finished(scale(Duration::from_secs(120), Duration::from_secs(1_000))).await;
    let requests = asked.iter().map(|asked| asked.load(Ordering::SeqCst)).sum::<u64>() - before;
    let done = record["done"].as_u64().unwrap();
    eprintln!(
        "{calls} calls in {:?}, {requests} requests, {} of them at the ill one: {record}",
        began.elapsed(),
        asked[0].load(Ordering::SeqCst)
    );
    assert_eq!(record["begun"], calls);
    assert!(done * 1_000 >= calls * 999, "{} of {calls} failed: {record}", calls - done);
    assert!(requests * 10 <= calls * 12, "{requests} requests for {calls} calls");
    // It was asked, and did fail: else this has shown nothing.
    assert!(asked[0].load(Ordering::SeqCst) > 10);
}

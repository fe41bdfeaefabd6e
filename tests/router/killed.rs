//! `kill -9` of the node behind a `quic` route.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::json;

use super::world::{Load, SOON, World, becomes, breaker, each_once, handled};
use crate::harness::{poll_state, scale};

/// What a call is given.
const TIMEOUT: u64 = 1_000;
/// By how much one may outlive it: an unoptimised build that shares two cores.
const LATE: u64 = 1_000;

#[tokio::test]
async fn callers_of_a_killed_node_get_typed_errors_in_time_its_breaker_opens_and_the_route_recovers_by_itself() {
    let kills = scale(2, 50);
    let mut world = World::start().await;
    let config = json!({ "breaker": { "failures": 3, "open_ms": 300, "successes": 2 } });
    world.route("stock", "quic", Some("counter@fo-1"), &config);
    becomes(&world.bo, "stock", "counter@fo-1").await;
    let edits = world.bo.ask(&["routes", "history", "stock"]).await.expect_code(0).json();
    let began = Instant::now();
    let load =
        Load::begin(&world.bo, json!({ "service": "stock", "calls": u64::MAX, "at_once": 8, "timeout_ms": TIMEOUT, "ring": 0 })).await;
    for round in 0..kills {
        let done = load.look().await["done"].as_u64().unwrap();
        poll_state("calls succeed", SOON, async || {
            let record = load.look().await;
            if record["done"].as_u64().unwrap() > done + 50 { Ok(()) } else { Err(record.to_string()) }
        })
        .await;
        world.fo.kill();
        poll_state("the breaker opens", SOON, async || {
            let breaker = breaker(&world.bo, "bo-1", "stock").await.ok_or("there is none")?;
            match breaker["state"].as_str() {
                Some("open" | "half_open") if breaker["last_error"].is_string() => Ok(()),
                _ => Err(breaker.to_string()),
            }
        })
        .await;
        poll_state("calls are refused at once", SOON, async || {
            let record = load.look().await;
            if record["no_effect"]["CircuitOpen"].as_u64() > Some(round) { Ok(()) } else { Err(record.to_string()) }
        })
        .await;
        let done = load.look().await["done"].as_u64().unwrap();
        world.fo.start().await;
        poll_state("the route recovers", SOON, async || {
            let record = load.look().await;
            if record["done"].as_u64().unwrap() > done + 50 { Ok(()) } else { Err(record.to_string()) }
        })
        .await;
        poll_state("the breaker closes", SOON, async || {
            let breaker = breaker(&world.bo, "bo-1", "stock").await.ok_or("there is none")?;
            if breaker["state"] == "closed" { Ok(()) } else { Err(breaker.to_string()) }
        })
        .await;
    }
    let load_on = &world.bo;
    let record = load.end().await;
    eprintln!("{kills} kills in {:?}: {record}", began.elapsed());
    assert!(record["late_ms"].as_u64().unwrap() <= LATE, "a caller hung: {record}");
    assert_eq!((&record["failed"], &record["by"].as_object().unwrap().len()), (&json!(0), &1), "{record}");
    assert_eq!(world.bo.ask(&["routes", "history", "stock"]).await.expect_code(0).json(), edits, "without an edit");

    // Whoever was told that it was done finds it done, once; and whoever was told that it had no effect does not.
    let book = each_once(&handled([&world.fo]));
    let ended = |how: &str| super::world::numbers(&load_on.data.join(format!("calls.{how}"))).into_iter().collect::<BTreeSet<_>>();
    let (done, refused, unknown) = (ended("done"), ended("refused"), ended("unknown"));
    assert_eq!(done.difference(&book).count(), 0, "done, and not in the book");
    assert_eq!(refused.intersection(&book).count(), 0, "no effect, and in the book");
    assert!(book.iter().all(|number| done.contains(number) || unknown.contains(number)), "handled, and nobody's");
    assert!(!refused.is_empty() && Duration::from_millis(TIMEOUT) < began.elapsed());
}

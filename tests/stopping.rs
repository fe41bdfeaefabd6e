//! A graceful stop under load: not ready, drain, stop, exit 0; a second signal stops at once.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::node::actor;
use crate::harness::{Cluster, Node, cli, outside, poll_state};

async fn handled(node: &Node, name: &str, at_least: u64) {
    poll_state(&format!("{name} has handled {at_least}"), Duration::from_secs(10), async || {
        let tree = node.tree().await;
        let seen = actor(&tree, name).and_then(|it| it["handled"].as_u64()).unwrap_or_default();
        if seen >= at_least { Ok(()) } else { Err(format!("{seen} handled")) }
    })
    .await;
}

#[tokio::test]
async fn sigterm_under_load_loses_no_call_that_was_taken() {
    let (_cluster, mut bo, fo) = Cluster::pair(outside::drill().await).await;
    let run = json!({ "run": {
        "target": "ledger@bo", "what": { "add": { "after_ms": 10 } }, "for_ms": 15_000, "at_once": 32,
        "timeout_ms": 12_000, "from": 1, "until_refused": true,
    } });
    let load = tokio::spawn(cli::run(fo.command(&fo.operator, &["call", "loader@fo-1", &run.to_string(), "--timeout", "25s"])));
    handled(&bo, "ledger", 20).await;
    let began = Instant::now();
    bo.process().terminate();
    let status = bo.process().wait(Duration::from_secs(15)).await;
    let took = began.elapsed();
    assert_eq!(status.code(), Some(0), "{:?}", bo.process().lines());
    // Thirty-two calls of 10 ms and a commit each are in hand at most: far from the drain's 10 s.
    assert!(took < Duration::from_secs(5), "stopped after {took:?}");
    assert!(!bo.data.join("address").exists(), "a stopped node is not to be found");

    let tally = load.await.unwrap().expect_code(0).json();
    // Every single call has an answer, or the assurance that it had no effect.
    assert_eq!(tally["unknown"], json!({}), "{tally}");
    assert_eq!(tally["failed"], 0, "{tally}");
    assert!(
        tally["no_effect"].as_object().unwrap().keys().all(|why| ["Stopping", "NoRoute"].contains(&why.as_str())),
        "{}",
        tally["no_effect"]
    );
    let ids = |kind: &str| tally[kind].as_array().unwrap().iter().filter_map(Value::as_u64).collect::<BTreeSet<_>>();
    eprintln!("stopped in {took:?} with {} calls answered, refused: {}", ids("written").len(), tally["no_effect"]);

    // And it is true.
    bo.start().await;
    let there = bo.call("ledger@bo-1", &json!({ "entries": {} })).await;
    let there: BTreeSet<u64> = there.as_array().unwrap().iter().filter_map(Value::as_u64).collect();
    assert_eq!(there, ids("written"));
    // It is taken up again where it was.
    fo.sees("bo-1", "up").await;
    fo.call("loader@fo", &json!({ "flood": { "target": "faulty@bo", "casts": 1, "ms": 0, "timeout_ms": 1000 } })).await;
}

#[tokio::test]
async fn a_second_signal_stops_at_once() {
    let cluster = Cluster::of(outside::drill().await);
    let mut bo = cluster.first("bo-1", [127, 0, 0, 1]).await;
    bo.start().await;
    let hang = tokio::spawn(cli::run(bo.command(&bo.operator, &["call", "faulty@bo", r#"{"hang":{}}"#, "--timeout", "25s"])));
    poll_state("the call is in hand", Duration::from_secs(10), async || {
        let tree = bo.tree().await;
        let faulty = actor(&tree, "faulty").unwrap();
        if faulty["busy_with"]["method"] == "hang" { Ok(()) } else { Err(faulty.to_string()) }
    })
    .await;
    bo.process().terminate();
    bo.process().wait_for_line("stopping", Duration::from_secs(5), |line| line.contains("stopping")).await;
    // What hangs holds the drain up, for 10 s.
    let other = bo.ask(&["call", "sibling@bo", r#"{"echo":{"n":1}}"#]).await;
    assert!(matches!(other.code, Some(3 | 5)), "new work is refused: {other:?}");
    assert!(bo.process().ended().is_none(), "{:?}", bo.process().lines());
    let second = Instant::now();
    bo.process().terminate();
    let status = bo.process().wait(Duration::from_secs(5)).await;
    assert_eq!(status.code(), Some(130), "{:?}", bo.process().lines());
    assert!(second.elapsed() < Duration::from_secs(1), "{:?}", second.elapsed());
    hang.await.unwrap().expect_code(4);
}

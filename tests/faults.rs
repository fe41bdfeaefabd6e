//! A service that misbehaves: restarted or reported, with its siblings and its node undisturbed.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::node::{actor, in_cluster, walk};
use crate::harness::{Cluster, Node, outside, poll_state};

/// A service is stuck after 5 s at one message; the watchdog looks every 50 ms, a tree costs a process.
const STUCK: Duration = Duration::from_secs(8);

async fn service(node: &Node, name: &str) -> Value {
    let tree = node.tree().await;
    actor(&tree, name).unwrap_or_else(|| panic!("no {name} in {tree}")).clone()
}

/// Waits for `name` to be reported stuck, and by what.
async fn stuck(node: &Node, name: &str, method: &str) -> Value {
    poll_state(&format!("{name} is reported stuck"), STUCK, async || {
        let seen = service(node, name).await;
        if seen["state"] == "stuck" && seen["busy_with"]["method"] == method { Ok(seen) } else { Err(seen.to_string()) }
    })
    .await
}

async fn bo() -> (Cluster, Node) {
    let cluster = Cluster::of(outside::drill().await);
    let mut bo = cluster.first("bo-1", [127, 0, 0, 1]).await;
    bo.set("LIMITS__MAILBOX", "64");
    bo.start().await;
    (cluster, bo)
}

#[tokio::test]
async fn a_panic_ends_its_call_as_unknown_and_the_service_is_opened_anew() {
    let (_cluster, bo) = bo().await;
    bo.call("sibling@bo", &json!({ "echo": { "n": 1 } })).await;
    let refused = bo.ask(&["call", "faulty@bo", r#"{"panic":{}}"#]).await.expect_code(4);
    assert!(refused.stderr.contains("may have been done"), "{}", refused.stderr);
    assert_eq!(bo.call("faulty@bo", &json!({ "echo": { "n": 2 } })).await, 2);
    let (faulty, sibling) = (service(&bo, "faulty").await, service(&bo, "sibling").await);
    assert_eq!((&faulty["state"], &faulty["restarts"]), (&json!("running"), &json!(1)), "{faulty}");
    assert!(faulty["last_error"].as_str().unwrap().contains("asked to"), "{faulty}");
    assert_eq!((&sibling["restarts"], &sibling["handled"]), (&json!(0), &json!(1)), "{sibling}");
    // The flight recorder keeps what it died of.
    let recording = bo.ask(&["recorder", "faulty@bo-1"]).await.expect_code(0).json();
    let last = recording["at_death"].as_array().unwrap().last().unwrap();
    assert_eq!((&last["method"], &last["outcome"]), (&json!("panic"), &json!("died")), "{recording}");
    assert!(recording["cause"].as_str().unwrap().contains("asked to"), "{recording}");
}

#[tokio::test]
async fn an_error_is_an_answer_and_restarts_nobody() {
    let (_cluster, bo) = bo().await;
    let failed = bo.ask(&["call", "faulty@bo", r#"{"fail":{}}"#]).await.expect_code(1);
    let told: Value = serde_json::from_str(&failed.stderr).unwrap();
    assert_eq!(told["error"], json!({ "code": 7 }));
    let faulty = service(&bo, "faulty").await;
    assert_eq!((&faulty["restarts"], &faulty["failed"], &faulty["handled"]), (&json!(0), &json!(1), &json!(1)), "{faulty}");
}

#[tokio::test]
async fn a_service_that_hangs_is_reported_stuck_and_its_flooded_mailbox_refuses_in_time() {
    let (_cluster, bo) = bo().await;
    let began = Instant::now();
    bo.ask(&["call", "faulty@bo", r#"{"hang":{}}"#, "--timeout", "500ms"]).await.expect_code(4);
    assert!(began.elapsed() < Duration::from_secs(3), "a deadline of 500 ms ended after {:?}", began.elapsed());

    // 64 messages wait; each further cast is refused when its 20 ms are over, and says so.
    let flood = json!({ "flood": { "target": "faulty@bo-1", "casts": 100, "ms": 0, "timeout_ms": 20 } });
    let tally = bo.call("loader@bo", &flood).await;
    assert_eq!(tally["done"], 64, "{tally}");
    assert_eq!(tally["no_effect"].as_object().unwrap().values().map(|n| n.as_u64().unwrap()).sum::<u64>(), 36, "{tally}");
    assert!(tally["no_effect"].get("Overloaded").is_some(), "{tally}");
    // The command line is told the same, in the same time.
    let full = bo.ask(&["call", "faulty@bo", r#"{"echo":{"n":1}}"#, "--timeout", "300ms"]).await.expect_code(3);
    assert!(full.stderr.contains("overloaded") || full.stderr.contains("full"), "{}", full.stderr);
    assert_eq!(bo.call("sibling@bo", &json!({ "echo": { "n": 2 } })).await, 2);

    let seen = stuck(&bo, "faulty", "hang").await;
    assert_eq!((&seen["mailbox"], &seen["mailbox_limit"], &seen["restarts"]), (&json!(64), &json!(64), &json!(0)), "{seen}");
    assert!(seen["busy_with"]["for_ms"].as_u64().unwrap() >= 5_000, "{seen}");
    assert_eq!(service(&bo, "sibling").await["state"], "running");

    // What the report is for: an operator ends it, and what waited is handled.
    bo.ask(&["crash", "faulty@bo-1"]).await.expect_code(0);
    assert_eq!(bo.call("faulty@bo", &json!({ "echo": { "n": 3 } })).await, 3);
    let after = service(&bo, "faulty").await;
    assert_eq!((&after["state"], &after["restarts"], &after["mailbox"]), (&json!("running"), &json!(1), &json!(0)), "{after}");
}

#[tokio::test]
async fn a_loop_in_one_service_leaves_its_node_up_and_is_named() {
    let (_cluster, mut bo, fo) = Cluster::pair(outside::drill().await).await;
    bo.ask(&["call", "faulty@bo", r#"{"spin":{}}"#, "--timeout", "300ms"]).await.expect_code(4);
    // From the peer's side, at every look until the culprit is named: up, never suspect.
    let began = Instant::now();
    let culprit = poll_state("the culprit is named in the peer's tree", STUCK, async || {
        let trees = fo.trees().await;
        let node = in_cluster(&trees, "bo-1").unwrap();
        assert_eq!(node["health"], "up", "after {:?} of looping: {node}", began.elapsed());
        let faulty = actor(&node["tree"], "faulty").cloned().ok_or_else(|| node["missing"].to_string())?;
        if faulty["state"] == "stuck" { Ok(faulty) } else { Err(faulty.to_string()) }
    })
    .await;
    assert_eq!(culprit["busy_with"]["method"], "spin", "{culprit}");
    assert_eq!(bo.call("sibling@bo", &json!({ "echo": { "n": 2 } })).await, 2);
    let tree = bo.tree().await;
    let stuck: Vec<_> = walk(&tree).into_iter().filter(|(_, actor)| actor["state"] == "stuck").map(|(path, _)| path).collect();
    assert_eq!(stuck, ["root/data/services/faulty"], "nobody else is blamed");
    // It cannot keep its node from stopping either: not even the second signal is needed.
    bo.process().terminate();
    let status = bo.process().wait(Duration::from_secs(25)).await;
    assert_eq!(status.code(), Some(0), "{:?}", bo.process().lines());
}

#[tokio::test]
async fn too_many_failures_go_upward_and_no_further() {
    let (_cluster, bo) = bo().await;
    let before = bo.tree().await;
    assert_eq!(actor(&before, "services").unwrap()["restarts"], 0);
    // Five in 30 s are ridden out; the sixth is beyond the supervisor of the services.
    for _ in 0..6 {
        bo.ask(&["call", "faulty@bo", r#"{"panic":{}}"#, "--timeout", "10s"]).await.expect_code(4);
    }
    let after = poll_state("the services' supervisor was started anew", Duration::from_secs(10), async || {
        let tree = bo.tree().await;
        let services = actor(&tree, "services").unwrap();
        let running = services["children"].as_array().is_some_and(|all| all.iter().all(|it| it["state"] == "running"));
        if services["restarts"] == 1 && running { Ok(tree) } else { Err(services.to_string()) }
    })
    .await;
    // Above it and beside it nothing was touched.
    for name in ["root", "data", "store", "node", "link", "certificates"] {
        assert_eq!(actor(&after, name).unwrap()["restarts"], 0, "{name}");
    }
    assert_eq!(bo.call("faulty@bo", &json!({ "echo": { "n": 4 } })).await, 4);
    assert_eq!(bo.call("sibling@bo", &json!({ "echo": { "n": 5 } })).await, 5);
}

#[tokio::test]
async fn a_node_whose_root_gives_up_ends_with_70_and_says_why() {
    let (_cluster, mut bo) = bo().await;
    let mut crashes = 0;
    while bo.process().ended().is_none() && crashes < 10 {
        let outcome = bo.ask(&["crash", "root/certificates"]).await;
        crashes += 1;
        assert!(outcome.code.is_some_and(|code| code == 0 || crashes > 5), "{outcome:?}");
    }
    assert!(crashes >= 6, "it gave up after {crashes}");
    let status = bo.process().wait(Duration::from_secs(15)).await;
    assert_eq!(status.code(), Some(70), "{:?}", bo.process().lines());
    let said = bo.process().lines().join("\n");
    assert!(said.contains("gave up") && said.contains("certificates"), "{said}");
}

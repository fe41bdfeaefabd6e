//! Who may do what: a revoked node is out within a second everywhere, a viewer only looks.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::node::{actor, in_cluster, text};
use crate::harness::{Cluster, Node, outside, poll_state};

/// The promise; what is measured includes the command's own start.
const REVOKED: Duration = Duration::from_secs(1);

#[tokio::test]
async fn a_revoked_node_is_out_on_all_nodes_within_a_second_and_cannot_come_back() {
    let cluster = Cluster::of(outside::drill().await);
    let mut first = cluster.first("bo-1", [127, 0, 0, 1]).await;
    first.start().await;
    let mut second = cluster.join("bo-2", "bo", [127, 0, 0, 2], &[first.address()]).await;
    second.start().await;
    let mut out = cluster.join("fo-1", "fo", [127, 0, 0, 3], &[first.address(), second.address()]).await;
    out.start().await;
    for node in [&first, &second] {
        node.sees("fo-1", "up").await;
    }
    first.sees("bo-2", "up").await;
    let marks = [first.process().mark(), second.process().mark()];

    let (authority, began) = (cluster.authority(), Instant::now());
    first.ask(&["identity", "revoke", "shop/fo/fo-1", "--authority", text(&authority)]).await.expect_code(0);
    let told = began.elapsed();
    for (node, mark) in [(&mut first, marks[0]), (&mut second, marks[1])] {
        let closed = |line: &crate::harness::output::Line| line.text.contains("session closed") && line.text.contains("fo-1");
        node.process().wait_for_line_since(mark, "the session with fo-1 is closed", Duration::from_secs(5), closed).await;
    }
    let closed = began.elapsed();
    eprintln!("revoked: the command took {told:?}, closed on both nodes after {closed:?}");
    assert!(closed < REVOKED.max(told) + Duration::from_millis(500), "closed after {closed:?}, the command took {told:?}");

    // Started again, with a key and a certificate that were good a moment ago.
    out.kill();
    let marks = [first.process().mark(), second.process().mark()];
    out.spawn();
    for (node, mark) in [(&mut first, marks[0]), (&mut second, marks[1])] {
        let refused = |line: &crate::harness::output::Line| line.text.contains("revoked");
        node.process().wait_for_line_since(mark, "refused: revoked", Duration::from_secs(10), refused).await;
        let trees = node.trees().await;
        let health = in_cluster(&trees, "fo-1").map_or(Value::Null, |it| it["health"].clone());
        assert_ne!(health, "up", "{trees}");
    }
    // The others go on, and the authority's list says what counts.
    assert_eq!(first.call("faulty@bo-2", &json!({ "place": {} })).await, "bo-2");
    let list = cluster.run(&["--json", "identity", "list", "--authority", text(&authority)]).await.expect_code(0).json();
    let states = |id: &str| list.as_array().unwrap().iter().filter(|it| it["id"] == id).map(|it| it["state"].clone()).collect::<Vec<_>>();
    assert_eq!(states("spiffe://shop/fo/fo-1"), ["revoked"]);
    assert_eq!(states("spiffe://shop/bo/bo-2"), ["in force"]);
}

/// What `policy show --json` lets a role do with the nodes' own protocol on a BO.
async fn allowed(node: &Node, caller: &str) -> Vec<String> {
    let rows = node.ask(&["policy", "show"]).await.expect_code(0).json();
    let mine = |row: &&Value| row["caller"] == caller && row["callee"] == "bo" && row["protocol"] == "horos.node";
    let rows: Vec<_> = rows.as_array().unwrap().iter().filter(mine).collect();
    assert!(!rows.is_empty(), "{caller}");
    rows.into_iter().filter(|row| row["allowed"] == true).map(|row| row["method"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_viewer_looks_and_does_nothing_and_policy_show_says_so() {
    let cluster = Cluster::of(outside::drill().await);
    let mut bo = cluster.first("bo-1", [127, 0, 0, 1]).await;
    bo.start().await;
    let viewer = cluster.person("viewer", "vera", &[]).await;
    let operator = cluster.person("operator", "olga", &["--days", "1"]).await;
    bo.ask_as(&operator, &["call", "faulty@bo", r#"{"panic":{}}"#]).await.expect_code(4);
    poll_state("it is running again", Duration::from_secs(5), async || {
        let tree = bo.tree().await;
        let faulty = actor(&tree, "faulty").unwrap();
        if faulty["restarts"] == 1 && faulty["state"] == "running" { Ok(()) } else { Err(faulty.to_string()) }
    })
    .await;

    // Looking.
    let tree = bo.ask_as(&viewer, &["tree"]).await.expect_code(0).json();
    let faulty = actor(&tree[0]["tree"], "faulty").unwrap();
    assert_eq!((&faulty["restarts"], &faulty["last_error"]), (&json!(1), &json!("asked to")), "{faulty}");
    bo.ask_as(&viewer, &["recorder", "faulty@bo-1"]).await.expect_code(0);
    bo.ask_as(&viewer, &["nodes"]).await.expect_code(0);
    bo.ask_as(&viewer, &["actors"]).await.expect_code(0);

    // Nothing else.
    for args in [&["crash", "faulty@bo-1"][..], &["restart", "faulty@bo-1"], &["call", "faulty@bo-1", r#"{"echo":{"n":1}}"#]] {
        let refused = bo.ask_as(&viewer, args).await.expect_code(3);
        let told: Value = serde_json::from_str(&refused.stderr).unwrap();
        assert!(told["next"].as_str().unwrap().contains("policy show"), "{told}");
    }
    // By role they are not even offered.
    bo.ask_as(&viewer, &["call", "faulty@bo", r#"{"echo":{"n":1}}"#]).await.expect_code(3);
    let authority = cluster.authority();
    bo.ask_as(&viewer, &["identity", "revoke", "shop/operator/olga", "--authority", text(&authority)]).await.expect_code(3);
    let faulty = actor(&bo.tree().await, "faulty").unwrap().clone();
    assert_eq!(faulty["restarts"], 1, "{faulty}");
    // What is revoked by who may is revoked for people too.
    bo.ask(&["identity", "revoke", "--send", "--authority", text(&authority)]).await.expect_code(0);
    let refused = bo.ask_as(&operator, &["tree"]).await;
    assert!(matches!(refused.code, Some(2 | 5)), "{refused:?}");
    assert!(refused.stderr.contains("revoked"), "{refused:?}");

    // The table is what was just enforced.
    let (view, operate) = (allowed(&bo, "viewer").await, allowed(&bo, "operator").await);
    for method in ["tree", "actors", "recorder"] {
        assert!(view.iter().any(|it| it == method), "{view:?}");
    }
    for method in ["crash", "restart", "revoke"] {
        assert!(!view.iter().any(|it| it == method), "{view:?}");
        assert!(operate.iter().any(|it| it == method), "{operate:?}");
    }
}

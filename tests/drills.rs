//! Every actor of a node can be killed and restarted by its path: the node stays usable, the link
//! itself included, and nobody beside it is touched.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::node::walk;
use crate::harness::{Cluster, Node, outside, poll_state};

/// The branches of `root/data`, in the order of their start.
const DATA: [&str; 7] =
    ["root/data/store", "root/data/keys", "root/data/router", "root/data/services", "root/data/tools", "root/data/http", "root/data/sync"];

/// Restarts by path. Sessions come and go with those who look, and feeds with those who subscribe; they are told apart.
fn restarts(tree: &Value) -> BTreeMap<String, u64> {
    let lasting = walk(tree).into_iter().filter(|(path, _)| !path.starts_with("root/link/sessions/") && !path.contains("/feed-"));
    lasting.map(|(path, actor)| (path, actor["restarts"].as_u64().unwrap())).collect()
}

/// Whether orders are given to `path`: not to the root, nor to the parts of a publication, which is started anew as a whole.
fn is_ordered(path: &str) -> bool {
    path != "root" && path.strip_prefix("root/data/sync/").is_none_or(|below| !below.contains('/'))
}

/// Gives `order` to `path`, waits until it runs again and the node answers, and checks who was touched.
async fn drill(bo: &Node, fo: &Node, order: &str, path: &str) {
    let before = restarts(&bo.tree().await);
    let outcome = bo.ask(&[order, &format!("{path}@bo-1")]).await;
    // Who ends the link ends the session that the order came by; who kills the one that carries it out gets no answer.
    let own_way = path.starts_with("root/link") || order == "crash" && path.starts_with("root/node");
    assert!(outcome.code == Some(0) || own_way && outcome.code == Some(4), "{order} {path}: {outcome:?}");
    let after = poll_state(&format!("{order} {path}: runs again"), Duration::from_secs(10), async || {
        let outcome = bo.ask(&["tree", "--local"]).await;
        if outcome.code != Some(0) {
            return Err(outcome.stderr);
        }
        let tree = outcome.json()[0]["tree"].clone();
        let all = walk(&tree);
        if let Some((path, down)) = all.iter().find(|(_, actor)| actor["state"] != "running") {
            return Err(format!("{path} is {}", down["state"]));
        }
        let now = restarts(&tree);
        if now.get(path).copied().unwrap_or_default() > before[path] { Ok(now) } else { Err(format!("{path}: not yet restarted")) }
    })
    .await;
    // Below it everything was started anew; rest for one takes along what was started after it.
    let behind = DATA.iter().skip_while(|branch| **branch != path).skip(1);
    let taken: Vec<_> = behind.copied().chain([path]).map(|branch| format!("{branch}/")).collect();
    let takes_along = |other: &str| taken.iter().any(|branch| format!("{other}/").starts_with(branch));
    for (other, count) in &before {
        let now = after.get(other).unwrap_or_else(|| panic!("{order} {path}: {other} is gone"));
        if other == path {
            assert_eq!(*now, count + 1, "{order} {path}");
        } else if !takes_along(other) {
            assert_eq!(now, count, "{order} {path}: {other} was disturbed");
        }
    }
    assert_eq!(bo.call("sibling@bo-1", &json!({ "echo": { "n": 1 } })).await, 1, "{order} {path}");
    assert!(bo.call("ledger@bo-1", &json!({ "entries": {} })).await.is_array(), "{order} {path}");
    fo.sees("bo-1", "up").await;
}

#[tokio::test]
async fn every_actor_can_be_crashed_by_its_path_and_the_node_stays_usable() {
    let (_cluster, mut bo, fo) = Cluster::pair(outside::drill().await).await;
    let paths: Vec<_> = restarts(&bo.tree().await).into_keys().filter(|path| is_ordered(path)).collect();
    assert!(paths.iter().any(|path| path == "root/link/sessions") && paths.len() > 12, "{paths:?}");
    let mut crashed = BTreeMap::new();
    for path in &paths {
        // A sixth within 30 s would be more than the supervisor of them all puts up with: the node starts its count anew.
        let siblings = crashed.entry(path.rsplit_once('/').map(|(parent, _)| parent)).or_insert(0);
        *siblings += 1;
        if *siblings > 5 {
            bo.process().terminate();
            assert_eq!(bo.process().wait(Duration::from_secs(15)).await.code(), Some(0));
            bo.start().await;
            fo.sees("bo-1", "up").await;
            crashed = BTreeMap::from([(path.rsplit_once('/').map(|(parent, _)| parent), 1)]);
        }
        drill(&bo, &fo, "crash", path).await;
    }
}

#[tokio::test]
async fn every_actor_can_be_restarted_by_its_path_and_that_counts_as_no_failure() {
    let (_cluster, bo, fo) = Cluster::pair(outside::drill().await).await;
    let paths: Vec<_> = restarts(&bo.tree().await).into_keys().filter(|path| is_ordered(path)).collect();
    for path in &paths {
        drill(&bo, &fo, "restart", path).await;
    }
    // Ten of one in a row would be far beyond any supervisor's patience, were they failures.
    for _ in 0..10 {
        bo.ask(&["restart", "faulty@bo-1"]).await.expect_code(0);
    }
    assert_eq!(bo.call("faulty@bo-1", &json!({ "echo": { "n": 1 } })).await, 1);
}

#[tokio::test]
async fn a_session_can_be_crashed_and_the_nodes_find_each_other_again() {
    let (_cluster, bo, fo) = Cluster::pair(outside::drill().await).await;
    let tree = bo.tree().await;
    let sessions: Vec<_> = walk(&tree).into_iter().filter(|(path, _)| path.starts_with("root/link/sessions/")).collect();
    let (path, _) = sessions.iter().find(|(path, _)| path.contains("fo-1")).unwrap_or_else(|| panic!("no session: {sessions:?}"));
    bo.ask(&["crash", &format!("{path}@bo-1")]).await.expect_code(0);
    fo.sees("bo-1", "up").await;
    bo.sees("fo-1", "up").await;
    assert_eq!(
        fo.call(
            "loader@fo",
            &json!({ "run": {
        "target": "faulty@bo", "what": "place", "for_ms": 100, "at_once": 1, "timeout_ms": 5000, "from": 0, "until_refused": true,
    } })
        )
        .await["no_effect"],
        json!({})
    );
    // What is not there, and the root, are refused with the way on.
    let none = bo.ask(&["crash", "root/nobody@bo-1"]).await.expect_code(1);
    assert!(none.stderr.contains("tree"), "{}", none.stderr);
    bo.ask(&["restart", "root@bo-1"]).await.expect_code(1);
}

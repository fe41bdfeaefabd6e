//! Five nodes on five addresses, joined by the documented commands alone; one is learnt by gossip, calls by
//! role spread, and a node that is cut off comes back.

use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::node::in_cluster;
use crate::harness::{Cluster, Node, outside, poll_state};

/// For everybody to know everybody: gossip goes round in seconds.
const ALL: Duration = Duration::from_secs(20);

async fn spread(fo: &Node) -> Value {
    let run = json!({ "run": {
        "target": "faulty@bo", "what": "place", "for_ms": 300, "at_once": 2, "timeout_ms": 2_000, "from": 0, "until_refused": false,
    } });
    fo.call(&format!("loader@{}", fo.name), &run).await
}

/// Waits until calls by role from `fo` are answered by just `places`, about equally often.
async fn spreads_over(fo: &Node, places: &[&str]) {
    poll_state(&format!("{} reaches {places:?}", fo.name), ALL, async || {
        let tally = spread(fo).await;
        let answered = tally["places"].as_object().unwrap();
        let (count, done) = (answered.len(), tally["done"].as_u64().unwrap());
        let clean = tally["unknown"] == json!({}) && tally["no_effect"] == json!({}) && done > 0;
        let fair = answered.values().all(|n| n.as_u64().unwrap() * 3 >= done / places.len() as u64);
        if clean && fair && count == places.len() && places.iter().all(|place| answered.contains_key(*place)) {
            Ok(())
        } else {
            Err(tally["places"].to_string() + &tally["no_effect"].to_string() + &tally["unknown"].to_string())
        }
    })
    .await;
}

#[tokio::test]
async fn five_nodes_find_each_other_spread_calls_and_take_back_one_that_was_away() {
    let cluster = Cluster::of(outside::drill().await);
    let mut first = cluster.first("bo-1", [127, 0, 0, 1]).await;
    first.start().await;
    // Everybody knows bo-1, nobody is told of bo-2: the FOs learn it by gossip.
    let mut second = cluster.join("bo-2", "bo", [127, 0, 0, 2], &[first.address()]).await;
    second.start().await;
    let mut faces = Vec::new();
    for n in 1..=3_u8 {
        let mut fo = cluster.join(&format!("fo-{n}"), "fo", [127, 0, 0, 2 + n], &[first.address()]).await;
        fo.start().await;
        faces.push(fo);
    }
    let everybody = ["bo-1", "bo-2", "fo-1", "fo-2", "fo-3"];
    for node in [&first, &second] {
        poll_state(&format!("{} knows all five", node.name), ALL, async || {
            let trees = node.trees().await;
            let seen = |name: &&str| in_cluster(&trees, name).is_some_and(|it| ["up", "here"].contains(&it["health"].as_str().unwrap()));
            if everybody.iter().all(seen) { Ok(()) } else { Err(trees.to_string().chars().take(2000).collect()) }
        })
        .await;
    }
    for fo in &faces {
        spreads_over(fo, &["bo-1", "bo-2"]).await;
    }

    // Cut off: there, but silent. Calls go to the other BO alone, and none is lost once it is known.
    second.process().freeze().await;
    for fo in &faces {
        fo.sees("bo-2", "down").await;
        spreads_over(fo, &["bo-1"]).await;
    }
    first.sees("bo-2", "down").await;
    second.process().thaw();
    for fo in &faces {
        spreads_over(fo, &["bo-1", "bo-2"]).await;
    }
    first.sees("bo-2", "up").await;
    // It was away, not restarted: nobody's services were.
    let back = second.tree().await;
    assert_eq!(crate::harness::node::actor(&back, "faulty").unwrap()["restarts"], 0);
}

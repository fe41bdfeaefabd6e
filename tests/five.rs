//! Five nodes on five addresses, joined by the documented commands alone; one is learnt by gossip, calls by
//! role spread, and a node that the network cuts off works on alone and comes back.
//!
//! bo-2 stands behind two relays, one for each way of dialling: into it, and from it to bo-1. No other path exists.
//! It listens on every address, so it has none to tell, and what is not told is not dialled; and it dials nobody that
//! it was not told of: between two BOs the smaller name dials, and an FO dials BOs.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::harness::node::{actor, in_cluster};
use crate::harness::{Cluster, Node, outside, poll_state, seed};
use crate::relay::{Direction, Relay};

/// For everybody to know everybody: gossip goes round in seconds.
const ALL: Duration = Duration::from_secs(20);
/// The promise: 2.5 s without a heartbeat, and half a second to tell.
const DOWN: Duration = Duration::from_secs(3);
/// The promise of a restart, which a healed path keeps too: the longest dial that a cut can have left behind tries again
/// after a second.
const BACK: Duration = Duration::from_secs(2);
/// A look at a tree is a process of its own, and five look at once.
const LOOK: Duration = Duration::from_secs(1);
/// For how long entries are written across a cut and across its end: longer than either takes to be known.
const WRITING: Duration = Duration::from_secs(5);

async fn spread(from: &Node) -> Value {
    let run = json!({ "run": {
        "target": "faulty@bo", "what": "place", "for_ms": 300, "at_once": 2, "timeout_ms": 2_000, "from": 0, "until_refused": false,
    } });
    from.call(&format!("loader@{}", from.name), &run).await
}

/// Waits until calls by role from `node` are answered by just `places`, about equally often.
async fn spreads_over(node: &Node, places: &[&str]) {
    poll_state(&format!("{} reaches {places:?}", node.name), ALL, async || {
        let tally = spread(node).await;
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

/// Waits until `node` sees all of `others` in one of the states `health`.
async fn sees_all(node: &Node, others: &[&str], health: &[&str]) {
    poll_state(&format!("{} sees {others:?} {health:?}", node.name), ALL, async || {
        let trees = node.trees().await;
        let seen = |name: &&str| in_cluster(&trees, name).is_some_and(|it| health.contains(&it["health"].as_str().unwrap()));
        if others.iter().all(seen) { Ok(()) } else { Err(trees.to_string().chars().take(2000).collect()) }
    })
    .await;
}

/// Writes entries with ids from `from` on, wherever calls by role lead, and gives how each ended.
async fn write(fo: &Node, from: u64) -> Value {
    let run = json!({ "run": {
        "target": "ledger@bo", "what": { "add": { "after_ms": 0 } }, "for_ms": WRITING.as_millis() as u64, "at_once": 4,
        "timeout_ms": 2_000, "from": from, "until_refused": false,
    } });
    fo.call(&format!("loader@{}", fo.name), &run).await
}

async fn ledger(bo: &Node) -> Value {
    let tree = bo.tree().await;
    actor(&tree, "ledger").unwrap_or_else(|| panic!("no ledger in {tree}")).clone()
}

/// Waits until some more entries are written at `bo`.
async fn is_written_to(bo: &Node) {
    let handled = async || ledger(bo).await["handled"].as_u64().unwrap();
    let before = handled().await;
    poll_state(&format!("entries are written at {}", bo.name), WRITING, async || {
        let now = handled().await;
        if now > before + 5 { Ok(()) } else { Err(format!("{before} before, {now} now")) }
    })
    .await;
}

fn ids(list: &Value) -> BTreeSet<u64> {
    list.as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect()
}

/// What `bo` has written; each entry by a message of its own, and no message that was not an entry.
async fn entries(bo: &Node) -> BTreeSet<u64> {
    let ledger = ledger(bo).await;
    let there = ids(&bo.call(&format!("ledger@{}", bo.name), &json!({ "entries": {} })).await);
    assert_eq!((&ledger["handled"], &ledger["failed"]), (&json!(there.len()), &json!(0)), "{}: one message, one entry: {ledger}", bo.name);
    there
}

mod measured {
    use super::*;

    #[tokio::test]
    async fn five_nodes_find_each_other_spread_calls_and_take_back_one_that_was_cut_off() {
        let (cluster, seed) = (Cluster::of(outside::drill().await), seed());
        let mut first = cluster.first("bo-1", [127, 0, 0, 1]).await;
        first.start().await;
        let outward = Relay::listen(([127, 0, 0, 9], 0).into(), first.address(), seed).unwrap();
        let mut second = cluster.join("bo-2", "bo", [0, 0, 0, 0], &[outward.address()]).await;
        second.start().await;
        let inward = Relay::listen(([127, 0, 0, 9], 0).into(), second.address(), seed).unwrap();
        // The FOs are told of bo-2 alone, nobody but bo-2 is told of bo-1: it and each other they learn by gossip.
        let mut faces = Vec::new();
        for n in 1..=3_u8 {
            let mut fo = cluster.join(&format!("fo-{n}"), "fo", [127, 0, 0, 2 + n], &[inward.address()]).await;
            fo.start().await;
            faces.push(fo);
        }
        let everybody = ["bo-1", "bo-2", "fo-1", "fo-2", "fo-3"];
        let others = ["bo-1", "fo-1", "fo-2", "fo-3"];
        let stay: Vec<&Node> = std::iter::once(&first).chain(&faces).collect();
        for node in [&first, &second] {
            sees_all(node, &everybody, &["up", "here"]).await;
        }
        for fo in &faces {
            spreads_over(fo, &["bo-1", "bo-2"]).await;
        }

        // Cut off in the midst of work: both sides know in time, and neither stops.
        let cut = async {
            is_written_to(&second).await;
            for relay in [&inward, &outward] {
                relay.partition();
            }
            let began = Instant::now();
            tokio::join!(join_all(stay.iter().map(|node| node.sees("bo-2", "down"))), sees_all(&second, &others, &["down"]));
            began.elapsed()
        };
        let (before, known) = tokio::join!(write(&faces[0], 1_000_000), cut);
        eprintln!("known to be down on both sides after {known:?}");
        assert!(known < DOWN + LOOK, "down after {known:?}");
        for fo in &faces {
            spreads_over(fo, &["bo-1"]).await;
        }
        spreads_over(&second, &["bo-2"]).await;
        assert_eq!(second.call("ledger@bo", &json!({ "add": { "id": 1, "after_ms": 0 } })).await, 1);
        // Both sides went on sending: what kept them apart is the network.
        for relay in [&inward, &outward] {
            assert!(relay.counters(Direction::ToUpstream).silenced > 0, "nobody tried {relay:?}");
        }

        let heal = async {
            is_written_to(&first).await;
            for relay in [&inward, &outward] {
                relay.heal();
            }
            let began = Instant::now();
            tokio::join!(join_all(stay.iter().map(|node| node.sees("bo-2", "up"))), sees_all(&second, &others, &["up"]));
            began.elapsed()
        };
        let (after, back) = tokio::join!(write(&faces[1], 2_000_000), heal);
        eprintln!("back on both sides after {back:?}");
        assert!(back < BACK + LOOK, "back after {back:?}");
        for fo in &faces {
            spreads_over(fo, &["bo-1", "bo-2"]).await;
        }
        // It was away, not restarted: nobody's services were.
        for bo in [&first, &second] {
            assert_eq!(actor(&bo.tree().await, "faulty").unwrap()["restarts"], 0);
        }

        // Each entry is where one message put it; what was said of it is so.
        let (here, there) = (entries(&first).await, entries(&second).await);
        assert!(here.is_disjoint(&there), "handled by both: {:?}", here.intersection(&there));
        let all: BTreeSet<u64> = here.union(&there).copied().collect();
        let mut told = BTreeSet::from([1]);
        for tally in [&before, &after] {
            let (written, refused, perhaps) = (ids(&tally["written"]), ids(&tally["refused"]), ids(&tally["perhaps"]));
            assert!(!written.is_empty() && written.is_subset(&all), "answered, and gone: {:?}", written.difference(&all));
            assert!(refused.is_disjoint(&all), "said to have had no effect, and there: {:?}", refused.intersection(&all));
            told.extend(written.into_iter().chain(perhaps));
        }
        assert!(all.is_subset(&told), "there, and nobody asked for it: {:?}", all.difference(&told));
    }
}

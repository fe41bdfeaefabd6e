//! Several FOs: one that stands still holds up nobody, and one that is new or comes back catches up.

use std::time::{Duration, Instant};

use super::world::{
    ACCOUNTS, ACCOUNTS_FILTER, ACCOUNTS_PUBLISHED, World, content, database, equal, healing, publication, replica, say, sqlite3,
    subscription, told, transfers,
};
use crate::harness::{optimised, poll_state, scale, seed};

/// Commits that are timed while the other stands still.
const COMMITS: (u32, u32) = (20, 500);

#[tokio::test]
async fn an_fo_that_stands_still_delays_no_other_and_catches_up_when_it_moves() {
    let mut world = World::start(ACCOUNTS, ACCOUNTS_FILTER, &ACCOUNTS_PUBLISHED).await;
    let two = world.another("fo-2", [127, 0, 0, 3]).await;
    equal(&world.bo, &two, &ACCOUNTS_PUBLISHED, healing()).await;
    world.fo.process().freeze().await;
    let mut times = Vec::new();
    for n in 0..scale(COMMITS.0, COMMITS.1) {
        let began = Instant::now();
        sqlite3(
            &database(&world.bo),
            &format!("INSERT INTO entry(id, amount, listed, pad) VALUES ({}, 0, 1, hex(randomblob(8000)))", 10_000 + n),
        );
        let sql = format!("SELECT 1 FROM entry WHERE id = {}", 10_000 + n);
        poll_state("the other has it", Duration::from_secs(10), async || match content(&replica(&two), &sql) {
            Ok(rows) if rows.len() == 1 => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
        times.push(began.elapsed());
    }
    times.sort();
    let (median, worst) = (times[times.len() / 2], times[times.len() - 1]);
    eprintln!("with the other frozen: median {median:?}, at worst {worst:?}, the shell's own start included");
    assert!(median < if optimised() { Duration::from_millis(250) } else { Duration::from_secs(2) }, "{times:?}");
    world.fo.process().thaw();
    world.in_step(&ACCOUNTS_PUBLISHED, healing()).await;
    equal(&world.bo, &two, &ACCOUNTS_PUBLISHED, healing()).await;
}

#[tokio::test]
async fn an_fo_that_is_new_and_one_that_was_away_catch_up_by_themselves() {
    let mut world = World::start(ACCOUNTS, ACCOUNTS_FILTER, &ACCOUNTS_PUBLISHED).await;
    world.fo.process().terminate();
    world.fo.process().wait(Duration::from_secs(20)).await;
    let load = transfers(&database(&world.bo), seed());
    // In the midst of writes.
    let two = world.another("fo-2", [127, 0, 0, 3]).await;
    poll_state("the new one has something", healing(), async || content(&replica(&two), "SELECT 1 FROM account LIMIT 1")).await;
    world.fo.start().await;
    load.end();
    world.in_step(&ACCOUNTS_PUBLISHED, healing()).await;
    equal(&world.bo, &two, &ACCOUNTS_PUBLISHED, healing()).await;
    // The one that was away needed no snapshot for it: its log was kept.
    let status = world.replica().await;
    assert_eq!(status["snapshots"], 0, "{status}");
}

#[tokio::test]
async fn a_bo_that_is_not_the_source_feeds_no_replica() {
    let mut world = World::start(ACCOUNTS, ACCOUNTS_FILTER, &ACCOUNTS_PUBLISHED).await;
    // Another BO of the cluster says that it publishes the same; the replica names the node that it is of.
    let mut other = world.cluster.join("bo-2", "bo", [127, 0, 0, 4], &[world.bo.address()]).await;
    sqlite3(&database(&other), ACCOUNTS);
    sqlite3(&database(&other), "UPDATE account SET owner = 'an impostor'");
    say(&other, &publication(ACCOUNTS_FILTER));
    other.start().await;
    let mut fo = world.cluster.join("fo-2", "fo", [127, 0, 0, 3], &[world.bo.address(), other.address()]).await;
    say(&fo, &subscription().replace("from: bo", "from: bo-1"));
    fo.start().await;
    equal(&world.bo, &fo, &ACCOUNTS_PUBLISHED, healing()).await;
    world.bo.kill();
    fo.sees("bo-1", "down").await;
    // It asks every 2 s: the other would long have been asked.
    poll_state("it has asked in vain", Duration::from_secs(30), async || {
        let status = told(&fo, "replicas").await;
        if status["stale_ms"].as_u64() > Some(5_000) { Ok(()) } else { Err(status.to_string()) }
    })
    .await;
    let owners = "SELECT id FROM account WHERE owner = 'an impostor'";
    assert_eq!(content(&replica(&fo), owners).unwrap().len(), 0);
    sqlite3(&database(&world.bo), "UPDATE account SET owner = 'the source'");
    world.bo.start().await;
    equal(&world.bo, &fo, &ACCOUNTS_PUBLISHED, healing()).await;
    assert_eq!(content(&replica(&fo), owners).unwrap().len(), 0);
    // The other feeds nobody, though it would.
    let status = told(&other, "publications").await;
    let nodes: Vec<_> = status["subscribers"].as_array().into_iter().flatten().map(|it| it["node"].clone()).collect();
    assert!(!nodes.contains(&"fo-2".into()), "{status}");
    fo.process().terminate();
}

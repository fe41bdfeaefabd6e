//! The publisher against replicas that are models, over real files and with other connections writing.

mod model;
mod world;

use std::{
    sync::atomic::Ordering::SeqCst,
    time::{Duration, Instant},
};

use horos_wire::{
    CallError,
    protocol::sync::{FeedState, Head, MAX_SUBSCRIBERS, PublisherStatusAsk, StartVerify, Subscribe, SyncError},
};
use rusqlite::config::DbConfig;

use super::PublisherLimits;
use crate::source::captured;
use world::{ALL, Fo, ITEMS, LIMIT, Setup, World, connect, file, schema, shop, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_any_connection_commits_is_on_every_fo_and_what_leaves_the_filter_is_gone() {
    let dir = shop();
    let world = World::start(&dir, &[("shop", ITEMS)]).await;
    let fo = Fo::following(&world, "fo-1", "shop").await;
    let two = Fo::following(&world, "fo-2", "shop").await;
    assert_eq!(world.expected("shop")["item"].len(), 2);
    for sql in [
        "INSERT INTO item VALUES (4, 'scarf', 20, 1, 'p')",
        "UPDATE item SET public = 1 WHERE id = 2",
        "UPDATE item SET public = 0 WHERE id = 1",
        "UPDATE item SET id = 30 WHERE id = 3",
        "REPLACE INTO item VALUES (4, 'shawl', 25, 1, 'q')",
        "DELETE FROM item WHERE id = 2",
        "INSERT INTO item SELECT value, 'bulk' || value, value, value % 3 FROM (WITH RECURSIVE n(value) AS (SELECT 100 UNION ALL SELECT value + 1 FROM n WHERE value < 3000) SELECT value FROM n)",
    ]
    .map(|sql| sql.replace("value % 3 FROM", "value % 3, '' FROM"))
    {
        world.write(&sql);
        world.follows(&fo).await;
        world.follows(&two).await;
    }
    assert_eq!((fo.counts().0, two.counts().0), (1, 1), "one snapshot, then changes");
    let status = world.status("shop");
    assert_eq!(status.condition, None);
    for subscriber in until(|| world.status("shop").subscribers, |all| all.iter().all(|one| one.state == FeedState::Live)).await {
        assert_eq!((subscriber.lag_rows, subscriber.lag_ms, subscriber.last_error), (0, 0, None));
        assert!(subscriber.sent_bytes > 0 && subscriber.deltas > 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_is_on_its_way_within_a_look() {
    let dir = shop();
    let world = World::start(&dir, &[("shop", ITEMS)]).await;
    let fo = Fo::following(&world, "fo-1", "shop").await;
    let foreign = connect(&dir);
    let mut waits: [Vec<Duration>; 2] = Default::default();
    for round in 0..60 {
        let own = round % 2 == 1;
        let before = fo.switch.model.lock().position.unwrap().seq;
        foreign.execute("UPDATE item SET price = price + 1 WHERE id = 1", []).unwrap();
        let committed = Instant::now();
        if own {
            // What a writer of this node does after each commit.
            world.publisher.source().nudge();
        }
        while fo.switch.model.lock().position.unwrap().seq == before {
            assert!(committed.elapsed() < LIMIT);
            tokio::task::yield_now().await;
        }
        waits[usize::from(own)].push(committed.elapsed());
    }
    for (what, waits) in ["foreign", "own"].iter().zip(&mut waits) {
        waits.sort();
        println!("{what}: median {:?}, worst {:?}", waits[waits.len() / 2], waits[waits.len() - 1]);
    }
    // Medians: what a busy machine does to the worst of them is its own affair. The interval is 20 ms.
    assert!(waits[0][15] < Duration::from_millis(60), "{waits:?}");
    assert!(waits[1][15] < Duration::from_millis(30), "{waits:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_too_far_behind_gets_a_snapshot_and_who_is_dead_delays_nobody() {
    let dir = shop();
    let setup = Setup { config: |config| crate::source::SourceConfig { keep: 500, ..config }, ..Setup::default() };
    let world = World::start_with(&dir, &[("shop", ITEMS)], setup).await;
    let dead = Fo::following(&world, "fo-1", "shop").await;
    let alive = Fo::following(&world, "fo-2", "shop").await;
    dead.switch.dead.send_replace(true);
    for round in 0..30 {
        world.write(&format!("UPDATE item SET price = {round} WHERE id <= 3"));
        world.write(&format!("WITH RECURSIVE n(v) AS (SELECT 1 UNION ALL SELECT v + 1 FROM n WHERE v < 100) INSERT INTO item SELECT {round} * 1000 + v + 10, 'n', v, 1, '' FROM n"));
        let started = Instant::now();
        world.follows(&alive).await;
        assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    }
    assert_eq!(alive.counts().0, 1);
    let behind = world.status("shop").subscribers;
    assert!(behind[0].lag_rows > 100 && behind[0].lag_ms > 0, "{behind:?}");
    dead.switch.dead.send_replace(false);
    world.follows(&dead).await;
    assert_eq!(dead.counts().0, 2, "what it missed is no longer in the log");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_answer_loses_nothing_and_repeats_nothing() {
    let dir = shop();
    let world = World::start(&dir, &[("shop", ITEMS)]).await;
    let fo = Fo::following(&world, "fo-1", "shop").await;
    let (_, deltas) = fo.counts();
    for round in 1..=5 {
        fo.switch.mute.store(true, SeqCst);
        world.write(&format!("UPDATE item SET price = {round} WHERE id = 1"));
        world.follows(&fo).await;
        until(|| world.status("shop").subscribers[0].state.clone(), |state| *state == FeedState::Live).await;
        assert_eq!(fo.counts(), (1, deltas + round));
    }
    assert!(fo.switch.statuses.load(SeqCst) >= 5, "it was asked where it is");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_publisher_goes_on_without_a_snapshot_and_a_restored_backup_needs_one() {
    let dir = shop();
    let world = World::start(&dir, &[("shop", ITEMS)]).await;
    let fo = Fo::following(&world, "fo-1", "shop").await;
    // A backup as an operator makes it.
    let backup = dir.path().join("backup.db");
    world.write(&format!("VACUUM INTO '{}'", backup.display()));
    world.write("UPDATE item SET price = 11 WHERE id = 1");
    world.follows(&fo).await;
    let kept = fo.switch.model.lock().clone();
    world.stop().await;

    connect(&dir).execute_batch("UPDATE item SET price = 12 WHERE id = 1; INSERT INTO item VALUES (9, 'belt', 5, 1, '')").unwrap();
    let world = World::start(&dir, &[("shop", ITEMS)]).await;
    let fo = Fo::start(&world, "fo-1", "shop").await;
    *fo.switch.model.lock() = kept;
    fo.subscribe().await;
    world.follows(&fo).await;
    assert_eq!(fo.counts().0, 1, "it went on from where it was");
    let epoch = fo.switch.model.lock().position.unwrap().epoch;
    let kept = fo.switch.model.lock().clone();
    world.stop().await;

    // Put back in place, and written further than it was: the sequence numbers of both histories are the same ones.
    for ending in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(dir.path().join(format!("shop.db{ending}")));
    }
    std::fs::rename(&backup, file(&dir)).unwrap();
    connect(&dir).execute_batch("UPDATE item SET price = 77; UPDATE item SET price = 78; UPDATE item SET price = 79").unwrap();
    let world = World::start(&dir, &[("shop", ITEMS)]).await;
    let fo = Fo::start(&world, "fo-1", "shop").await;
    *fo.switch.model.lock() = kept;
    fo.subscribe().await;
    world.follows(&fo).await;
    assert_eq!(fo.counts().0, 2);
    assert_ne!(fo.switch.model.lock().position.unwrap().epoch, epoch);

    // And the same while it runs.
    world.write(&format!("VACUUM INTO '{}'", backup.display()));
    world.write("UPDATE item SET price = 80");
    world.follows(&fo).await;
    for ending in ["-wal", "-shm"] {
        let _ = std::fs::remove_file(dir.path().join(format!("shop.db{ending}")));
    }
    std::fs::rename(&backup, file(&dir)).unwrap();
    let replaced = Instant::now();
    until(|| fo.switch.model.lock().snapshots, |snapshots| *snapshots == 3).await;
    println!("a replaced file is published after {:?}", replaced.elapsed());
    world.write("UPDATE item SET price = 81");
    world.follows(&fo).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_filter_that_no_longer_fits_stops_its_own_publication_alone() {
    let dir = shop();
    let world = World::start(&dir, &[("items", ITEMS), ("notes", r#"{"full-tables": ["note"]}"#)]).await;
    let items = Fo::following(&world, "fo-1", "items").await;
    let notes = Fo::following(&world, "fo-2", "notes").await;
    let last_good = items.switch.model.lock().rows();
    world.write("ALTER TABLE item RENAME COLUMN public TO visible");
    let status = until(|| world.status("items"), |status| status.condition.is_some()).await;
    assert!(status.condition.unwrap().contains("public"), "the reason");
    assert!(world.conditions.lock()["items"].contains("filter"));
    world.write("INSERT INTO note VALUES ('still'); UPDATE item SET price = 1000");
    world.follows(&notes).await;
    assert_eq!(world.status("notes").condition, None);
    assert_eq!(items.switch.model.lock().rows(), last_good, "the last good data stay");
    world.write("ALTER TABLE item RENAME COLUMN visible TO public; UPDATE item SET price = price + 1");
    world.follows(&items).await;
    world.follows(&notes).await;
    assert_eq!(world.status("items").condition, None);
    assert!(world.conditions.lock().is_empty());
    assert_eq!((items.counts().0, notes.counts().0), (1, 1), "nobody needed a snapshot for it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_schema_is_followed() {
    let dir = shop();
    let world = World::start(&dir, &[("all", ALL)]).await;
    let fo = Fo::following(&world, "fo-1", "all").await;
    let note = dir.path().to_owned();
    for sql in [
        "ALTER TABLE item ADD COLUMN colour TEXT DEFAULT 'red'; INSERT INTO item(id, name) VALUES (70, 'tie')",
        "ALTER TABLE item DROP COLUMN secret",
        "DROP TABLE other; CREATE TABLE other(id INTEGER PRIMARY KEY, a, b); INSERT INTO other VALUES (1, 2, 3)",
        "CREATE INDEX by_name ON item(name); UPDATE item SET name = 'x' WHERE id = 1",
        "CREATE TABLE unrelated(x); INSERT INTO unrelated VALUES (1); INSERT INTO note VALUES ('a'), ('b')",
        "DELETE FROM note WHERE line = 'a'; VACUUM; INSERT INTO note VALUES ('c')",
        "DROP TRIGGER _horos_1_insert",
    ] {
        if let Err(error) = connect(&dir).execute_batch(sql) {
            assert!(sql.contains("_horos"), "{sql}: {error} in {}", note.display());
            // Whatever it is called: one of ours is dropped, and then somebody writes.
            let trigger = schema(&file(&dir)).into_iter().find(|line| line.starts_with("trigger _horos")).unwrap();
            let name = trigger.split(' ').nth(1).unwrap();
            world.write(&format!("DROP TRIGGER {name}; INSERT INTO item(id, name) VALUES (80, 'unseen')"));
        }
        world.follows(&fo).await;
    }
    assert_eq!(fo.counts().0, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn detaching_leaves_no_trace() {
    let dir = shop();
    let before = schema(&file(&dir));
    let world = World::start(&dir, &[("shop", ITEMS)]).await;
    let fo = Fo::following(&world, "fo-1", "shop").await;
    assert_ne!(schema(&file(&dir)), before);
    world.publisher.source().detach().await.unwrap();
    assert_eq!(schema(&file(&dir)), before);
    assert!(!dir.path().join("sync/shop.witness.json").exists());
    world.write("UPDATE item SET price = 5");
    let looks = world.publisher.source().looks();
    until(|| world.publisher.source().looks(), |now| *now > looks + 1).await;
    assert_eq!(schema(&file(&dir)), before, "and nothing comes back");
    assert_eq!(world.status("shop").head, None);
    let refused = fo.ask(Head {}).await;
    assert!(matches!(refused, Err(CallError::Failed(SyncError::Unavailable(_)))), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_is_trimmed_but_not_past_what_somebody_needs() {
    let dir = shop();
    let config = |config| crate::source::SourceConfig { spare: 500, trim_every: Duration::from_millis(50), ..config };
    let world = World::start_with(&dir, &[("shop", ITEMS)], Setup { config, ..Setup::default() }).await;
    let alive = Fo::following(&world, "fo-1", "shop").await;
    let slow = Fo::following(&world, "fo-2", "shop").await;
    slow.switch.dead.send_replace(true);
    let entries = || connect(&dir).query_row("SELECT count(*) FROM _horos_log", [], |row| row.get::<_, i64>(0)).unwrap();
    let grow = "WITH RECURSIVE n(v) AS (SELECT 1000 UNION ALL SELECT v + 1 FROM n WHERE v < 5000) REPLACE INTO item SELECT v, 'n', random(), 1, '' FROM n";
    for _ in 0..3 {
        world.write(grow);
        world.follows(&alive).await;
    }
    let looks = world.publisher.source().looks();
    until(|| world.publisher.source().looks(), |now| *now > looks + 20).await;
    assert!(entries() > 8_000, "somebody still needs it");
    slow.switch.dead.send_replace(false);
    world.follows(&slow).await;
    assert_eq!(slow.counts().0, 1, "and got it");
    // The witness is written once a second at most, when somebody commits.
    let bounded = || {
        world.write("UPDATE item SET price = price + 1 WHERE id = 1");
        entries()
    };
    until(bounded, |entries| *entries < 2_000).await;
    world.follows(&alive).await;
    assert_eq!((alive.counts().0, slow.counts().0), (1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_differs_is_found_and_healed_at_the_cost_of_the_difference() {
    let dir = shop();
    connect(&dir)
        .execute_batch("WITH RECURSIVE n(v) AS (SELECT 1000 UNION ALL SELECT v + 1 FROM n WHERE v < 21000) INSERT INTO item SELECT v, 'n', v, 1, '' FROM n")
        .unwrap();
    let world = World::start(&dir, &[("shop", ITEMS)]).await;
    let fo = Fo::following(&world, "fo-1", "shop").await;
    let verify = async || {
        let mut report = operator(&world).ask(StartVerify { node: None, run: None }).await.unwrap();
        let started = Instant::now();
        while !report.done {
            assert!(started.elapsed() < LIMIT, "{report:?}");
            report = operator(&world).ask(StartVerify { node: None, run: Some(report.run) }).await.unwrap();
        }
        report.nodes[0].clone()
    };
    let clean = verify().await;
    assert_eq!((clean.rows, clean.mismatches, clean.repaired_rows), (20_003, 0, 0));
    assert_eq!(clean.total_chunks, clean.chunks);
    {
        let mut model = fo.switch.model.lock();
        let rows = &mut model.tables.get_mut("item").unwrap().rows;
        let keys: Vec<_> = rows.keys().cloned().collect();
        rows.remove(&keys[10_000]);
        let row = rows[&keys[500]].clone();
        rows.insert(vec![model::Part::Integer(50_000)], row);
    }
    let received = fo.switch.model.lock().received;
    let healed = verify().await;
    assert_eq!(healed.mismatches, 2);
    world.follows(&fo).await;
    let cost = fo.switch.model.lock().received - received;
    println!("{cost} rows for 2 that differed, of 20,003");
    assert!(cost < 9_000 && healed.repaired_rows == cost, "{cost} {healed:?}");
    assert_eq!(verify().await.mismatches, 0);
    let status = &world.status("shop").subscribers[0];
    assert!(status.verified_at.is_some() && status.repaired_rows == cost);
    let nobody = operator(&world).ask(StartVerify { node: Some("fo-7".parse().unwrap()), run: None }).await;
    assert!(matches!(nobody, Err(CallError::Failed(SyncError::NoSuch(_)))), "{nobody:?}");
}

/// Asks as an operator would.
fn operator(world: &World) -> world::Outsider {
    world::outsider(world, "operator", "ana", "shop")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_fired_no_trigger_is_found_early() {
    let dir = shop();
    let world = World::start(&dir, &[("shop", ITEMS)]).await;
    let fo = Fo::following(&world, "fo-1", "shop").await;
    until(|| world.status("shop").subscribers[0].state.clone(), |state| *state == FeedState::Live).await;
    let silent = connect(&dir);
    silent.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false).unwrap();
    silent.execute("UPDATE item SET price = 4711 WHERE id = 1", []).unwrap();
    world.follows(&fo).await;
    assert_eq!(fo.counts().0, 1);
    until(|| world.status("shop").subscribers[0].repaired_rows, |rows| *rows > 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_those_it_is_for_are_answered_and_only_so_many() {
    let dir = shop();
    let world = World::start(&dir, &[("shop", ITEMS)]).await;
    let fo = Fo::following(&world, "fo-1", "shop").await;
    let two = Fo::following(&world, "fo-2", "shop").await;
    let status = fo.ask(PublisherStatusAsk {}).await.unwrap();
    assert_eq!((status.file, status.subscribers.len(), status.subscribers[0].node.as_str()), (None, 1, "fo-1"));
    let stranger = world::outsider(&world, "bo", "bo-7", "shop");
    for outcome in [stranger.ask(stranger.subscription()).await.err(), operator(&world).ask(fo.subscription()).await.err()] {
        assert!(matches!(outcome, Some(CallError::Failed(SyncError::NotForYou | SyncError::Invalid(_)))), "{outcome:?}");
    }
    assert!(matches!(stranger.ask(Head {}).await, Err(CallError::Failed(SyncError::NotForYou))));
    let other = Subscribe { version: 9, ..two.subscription() };
    assert!(matches!(two.ask(other).await, Err(CallError::Failed(SyncError::Version(1)))));
    for number in 3..=MAX_SUBSCRIBERS {
        let more = world::outsider(&world, "fo", &format!("fo-{number}"), "shop");
        more.ask(more.subscription()).await.unwrap();
    }
    let one_more = world::outsider(&world, "fo", "fo-65", "shop");
    assert!(matches!(one_more.ask(one_more.subscription()).await, Err(CallError::Failed(SyncError::TooMany))));
    // Sixty-two that nobody can reach delay nobody.
    world.write("UPDATE item SET price = 3");
    world.follows(&fo).await;
    world.follows(&two).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_is_not_renewed_ends_the_feed() {
    let dir = shop();
    let limits = PublisherLimits { lease: Duration::from_millis(300), ..PublisherLimits::default() };
    let world = World::start_with(&dir, &[("shop", ITEMS)], Setup { limits, ..Setup::default() }).await;
    let fo = Fo::start(&world, "fo-1", "shop").await;
    fo.subscribe().await;
    until(|| fo.counts().0, |snapshots| *snapshots == 1).await;
    until(|| world.status("shop").subscribers.len(), |count| *count == 0).await;
    until(|| world.supervisor.find("feed-fo-1").is_none(), |gone| *gone).await;
    world.write("UPDATE item SET price = 6");
    world.head().await;
    assert_eq!(fo.counts(), (1, 0));
    fo.subscribe().await;
    until(|| fo.counts(), |counts| *counts == (1, 1)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_large_goes_by_a_spool_that_leaves_nothing() {
    let dir = shop();
    let world = World::start(&dir, &[("all", ALL)]).await;
    let fo = Fo::following(&world, "fo-1", "all").await;
    assert_eq!(fo.switch.bodies.load(SeqCst), 0);
    world.write("WITH RECURSIVE n(v) AS (SELECT 1 UNION ALL SELECT v + 1 FROM n WHERE v < 3000) INSERT INTO other SELECT 'k' || v, randomblob(1000) FROM n");
    world.follows(&fo).await;
    assert_eq!((fo.switch.bodies.load(SeqCst), fo.counts().0), (1, 1));
    assert!(world.status("all").subscribers[0].sent_bytes > 3_000_000);
    until(|| world.publisher.metrics()[0].spool_bytes, |bytes| *bytes == 0).await;
    let two = Fo::following(&world, "fo-2", "all").await;
    assert_eq!((two.switch.bodies.load(SeqCst), two.counts()), (1, (1, 0)), "a snapshot");
    let spools = std::fs::read_dir(dir.path().join("sync/spool/shop")).unwrap().count();
    assert_eq!(spools, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spool_without_room_is_an_error_and_no_loss() {
    let dir = shop();
    let limits = PublisherLimits { spool_bytes: Some(1_000_000), ..Setup::default().limits };
    let world = World::start_with(&dir, &[("all", ALL)], Setup { limits, ..Setup::default() }).await;
    let fo = Fo::following(&world, "fo-1", "all").await;
    world.write("WITH RECURSIVE n(v) AS (SELECT 1 UNION ALL SELECT v + 1 FROM n WHERE v < 3000) INSERT INTO other SELECT 'k' || v, randomblob(1000) FROM n");
    let error = until(|| world.status("all").subscribers[0].last_error.clone(), Option::is_some).await.unwrap();
    assert!(error.contains("spools are full"), "{error}");
    assert_eq!(world.status("all").subscribers[0].state, FeedState::Away);
    world.write("DELETE FROM other");
    world.follows(&fo).await;
    until(|| world.status("all").subscribers[0].last_error.clone(), Option::is_none).await;
    assert_eq!(fo.counts().0, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_head_covers_whatever_was_committed_before_it_was_asked_for() {
    let dir = shop();
    let world = World::start(&dir, &[("shop", ITEMS)]).await;
    let fo = Fo::following(&world, "fo-1", "shop").await;
    let foreign = connect(&dir);
    for round in 0..50 {
        foreign.execute("UPDATE item SET price = ?1 WHERE id = 3", [round]).unwrap();
        let written = crate::capture::head(&foreign).unwrap();
        let told = captured(fo.ask(Head {}).await.unwrap());
        assert_eq!(told, written);
    }
}

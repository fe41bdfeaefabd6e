//! `horos sync …`, as an operator types it: a roll-back and its end, a snapshot as a file, a filter that is tried.

use std::time::Duration;

use serde_json::Value;

use super::world::{ACCOUNTS, ACCOUNTS_FILTER, ACCOUNTS_PUBLISHED, DATABASE, NAME, World, content, database, healing, replica, sqlite3};
use crate::harness::node::text;
use crate::harness::poll_state;

const SOON: Duration = Duration::from_secs(20);

/// Rows of the replica that are called `owner`.
fn owned_by(world: &World, owner: &str) -> usize {
    content(&replica(&world.fo), &format!("SELECT id FROM account WHERE owner = '{owner}'")).map_or(usize::MAX, |rows| rows.len())
}

#[tokio::test]
async fn a_rolled_back_replica_serves_what_it_did_without_what_was_withdrawn_until_it_is_resumed() {
    let mut world = World::start(ACCOUNTS, ACCOUNTS_FILTER, &ACCOUNTS_PUBLISHED).await;
    let (file, at) = (database(&world.bo), format!("{NAME}@fo-1"));
    // With one snapshot there is nothing to go back to.
    let refused = world.fo.ask(&["sync", "rollback", &at]).await;
    assert_ne!(refused.code, Some(0), "{refused:?}");
    assert!(refused.stderr.contains("previous") || refused.stderr.contains("nothing"), "{}", refused.stderr);
    sqlite3(&file, "UPDATE account SET owner = 'before'");
    world.in_step(&ACCOUNTS_PUBLISHED, healing()).await;
    // Another: the log begins anew.
    world.bo.process().terminate();
    world.bo.process().wait(SOON).await;
    world.cluster.run(&["sync", "detach", "--data", text(&world.bo.data), DATABASE]).await.expect_code(0);
    sqlite3(&file, "UPDATE account SET owner = 'a mistake'; DELETE FROM account WHERE id <= 10");
    world.bo.start().await;
    world.in_step(&ACCOUNTS_PUBLISHED, healing()).await;
    sqlite3(&file, "DELETE FROM account WHERE id BETWEEN 11 AND 15");
    world.in_step(&ACCOUNTS_PUBLISHED, healing()).await;

    let done = world.fo.ask(&["sync", "rollback", &at]).await.expect_code(0).json();
    eprintln!("{done}");
    assert_eq!((owned_by(&world, "before"), owned_by(&world, "a mistake")), (185, 0), "what was withdrawn is not shown again: {done}");
    sqlite3(&file, "UPDATE account SET owner = 'mended'");
    let status = poll_state("it is said that it stays as it is", SOON, async || {
        let status = world.replica().await;
        let publication = world.publication().await;
        let told = publication["subscribers"][0]["last_error"].as_str().is_some_and(|error| error.contains("rolled back"));
        if told { Ok(status) } else { Err(format!("{status} {publication}")) }
    })
    .await;
    assert!(status["state"].to_string().contains("pinned"), "{status}");
    assert_eq!(owned_by(&world, "before"), 185);
    // Also over a restart.
    world.fo.process().terminate();
    world.fo.process().wait(SOON).await;
    world.fo.start().await;
    poll_state("it is up", SOON, async || {
        let status = world.replica().await;
        if status["state"].to_string().contains("pinned") { Ok(()) } else { Err(status.to_string()) }
    })
    .await;
    assert_eq!(owned_by(&world, "before"), 185);
    world.fo.ask(&["sync", "resume", &at]).await.expect_code(0);
    world.in_step(&ACCOUNTS_PUBLISHED, healing()).await;
    assert_eq!(owned_by(&world, "mended"), 185);
}

#[tokio::test]
async fn a_snapshot_is_a_file_as_a_replica_would_have_it_and_a_filter_is_tried_without_a_trace() {
    let world = World::start(ACCOUNTS, ACCOUNTS_FILTER, &ACCOUNTS_PUBLISHED).await;
    sqlite3(&database(&world.bo), "INSERT INTO entry(amount, listed) VALUES (1, 1), (2, 0)");
    let (to, data) = (world.cluster.path().join("public.db"), text(&world.bo.data).to_owned());
    let snapshot = ["--json", "sync", "snapshot", text(&to), "--data", &data, "--publication", NAME];
    let made = world.cluster.run(&snapshot).await.expect_code(0).json();
    assert_eq!(made["rows"], 201, "{made}");
    assert_eq!(made["sha256"].as_str().map(str::len), Some(64), "{made}");
    for it in &ACCOUNTS_PUBLISHED {
        assert_eq!(content(&database(&world.bo), it.here).unwrap(), content(&to, it.there).unwrap(), "{}", it.there);
    }
    assert!(!String::from_utf8_lossy(&std::fs::read(&to).unwrap()).contains("never published"));
    // Nothing that is there is written over.
    let refused = world.cluster.run(&snapshot).await;
    assert_ne!(refused.code, Some(0), "{refused:?}");

    let filter = world.cluster.path().join("filter.yaml");
    let check = async |yaml: &str| {
        std::fs::write(&filter, yaml).unwrap();
        let database = database(&world.bo);
        world.cluster.run(&["--json", "sync", "filter", "check", text(&filter), "--database", text(&database)]).await
    };
    let schema = "SELECT name, sql FROM sqlite_schema ORDER BY name";
    let before = content(&database(&world.bo), schema).unwrap();
    let good: Value = check(ACCOUNTS_FILTER).await.expect_code(0).json();
    assert!(good["filter"].to_string().contains("account"), "{good}");
    for (yaml, told) in [
        ("full-tables: [nobody]", "nobody"),
        ("filtered-tables: { entry: 'listed = random()' }", "random"),
        ("filtered-tables: { entry: 'id IN (SELECT id FROM account)' }", "entry"),
        ("partial-tables: { account: { columns: [colour] } }", "colour"),
        ("everything: true", "everything"),
    ] {
        let refused = check(yaml).await;
        assert_ne!(refused.code, Some(0), "{yaml}: {refused:?}");
        assert!(refused.stderr.contains(told), "{yaml}: {}", refused.stderr);
    }
    assert_eq!(content(&database(&world.bo), schema).unwrap(), before, "a trial leaves no trace");
}

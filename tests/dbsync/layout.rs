//! What is said by `sync.yaml`: mistakes are told before anything runs, what is not for a node it does not get, and what no longer fits
//! stops until it does again.

use std::time::Duration;

use super::world::{
    ACCOUNTS, ACCOUNTS_FILTER, ACCOUNTS_PUBLISHED, DATABASE, NAME, Published, REPLICA, World, database, healing, replica, say, sqlite3,
    told,
};
use crate::harness::node::text;
use crate::harness::{Cluster, poll_state};

const SOON: Duration = Duration::from_secs(20);

/// A mistake, and what the node says of it, all of it.
const MISTAKES: [(&str, &[&str]); 8] = [
    ("publicatoins: {}", &["publicatoins"]),
    ("publications: { Shop: { database: a.db, to: [fo], filter: { full-tables: [a] } } }", &["\"Shop\""]),
    ("publications: { one: { database: a.db, to: [], filter: { full-tables: [a] } } }", &["one", "nobody may have it"]),
    ("publications: { one: { database: a.db, to: [operator], filter: { full-tables: [a] } } }", &["operator"]),
    ("publications: { one: { database: a.db, to: [fo], filter: {} } }", &["one", "publishes nothing"]),
    ("publications: { one: { database: ../a.db, to: [fo], filter: { full-tables: [a] } } }", &["../a.db"]),
    ("replicas: { one: { file: control.db } }", &["one", "the node's own"]),
    (
        "publications: { one: { database: a.db, to: [fo], filter: { full-tables: [a] } } }\nreplicas: { two: { file: a.db } }",
        &["two", "a.db is published"],
    ),
];

#[tokio::test]
async fn a_mistake_in_sync_yaml_keeps_a_node_from_starting_and_is_told() {
    let cluster = Cluster::new();
    let mut bo = cluster.first("bo-1", [127, 0, 0, 1]).await;
    for (yaml, told) in MISTAKES {
        say(&bo, yaml);
        bo.spawn();
        let status = bo.process().wait(SOON).await;
        let said = bo.process().lines().join("\n");
        assert!(status.code().is_some_and(|code| code != 0), "{yaml}: {status}");
        for part in [&["sync.yaml"], told].concat() {
            assert!(said.contains(part), "{yaml}: no {part:?} in {said}");
        }
        assert!(!said.contains("panicked"), "{said}");
    }
    // Nothing was spoilt.
    std::fs::remove_file(bo.data.join("sync.yaml")).unwrap();
    bo.start().await;
}

#[tokio::test]
async fn a_node_that_a_publication_is_not_for_gets_nothing() {
    let cluster = Cluster::new();
    let mut bo = cluster.first("bo-1", [127, 0, 0, 1]).await;
    sqlite3(&database(&bo), ACCOUNTS);
    say(&bo, &super::world::publication(ACCOUNTS_FILTER).replace("[fo]", "[fo-2, bo]"));
    bo.start().await;
    let refused = super::world::fo(&cluster, "fo-1", [127, 0, 0, 2], bo.address()).await;
    let taken = super::world::fo(&cluster, "fo-2", [127, 0, 0, 3], bo.address()).await;
    super::world::equal(&bo, &taken, &ACCOUNTS_PUBLISHED, healing()).await;
    let status = poll_state("it says why it has nothing", SOON, async || {
        let status = told(&refused, "replicas").await;
        if status["last_error"].is_string() { Ok(status) } else { Err(status.to_string()) }
    })
    .await;
    assert!(status["position"].is_null() && status["received_bytes"] == 0, "{status}");
    eprintln!("it says: {}", status["last_error"]);
    let there = std::fs::metadata(replica(&refused)).map_or(0, |it| it.len());
    assert_eq!(there, 0, "nothing is in its file");
    // Nor may it ask by other ways.
    let publication = told(&bo, "publications").await;
    let subscribers: Vec<_> = publication["subscribers"].as_array().unwrap().iter().map(|it| it["node"].clone()).collect();
    assert_eq!(subscribers, ["fo-2"], "{publication}");
}

#[tokio::test]
async fn a_filter_that_no_longer_fits_stops_its_publication_and_it_goes_on_when_it_fits_again() {
    let world = World::start(ACCOUNTS, ACCOUNTS_FILTER, &ACCOUNTS_PUBLISHED).await;
    let file = database(&world.bo);
    let before = super::world::content(&replica(&world.fo), ACCOUNTS_PUBLISHED[0].there).unwrap();
    sqlite3(&file, "ALTER TABLE account RENAME COLUMN owner TO holder");
    let status = poll_state("the condition is told", SOON, async || {
        let status = world.publication().await;
        if status["condition"].is_string() { Ok(status) } else { Err(status.to_string()) }
    })
    .await;
    assert!(status["condition"].as_str().unwrap().contains("owner"), "{status}");
    sqlite3(&file, "UPDATE account SET holder = 'another' WHERE id < 50; INSERT INTO entry(amount, listed) VALUES (1, 1)");
    // What is there serves on, and nothing of a table that it is not known how to publish goes out.
    assert_eq!(super::world::content(&replica(&world.fo), ACCOUNTS_PUBLISHED[0].there).unwrap(), before);
    sqlite3(&file, "ALTER TABLE account RENAME COLUMN holder TO owner");
    world.in_step(&ACCOUNTS_PUBLISHED, healing()).await;
    poll_state("nothing is wrong any more", SOON, async || {
        let status = world.publication().await;
        if status["condition"].is_null() { Ok(()) } else { Err(status.to_string()) }
    })
    .await;
    // The same where the table itself goes and comes back.
    sqlite3(&file, "ALTER TABLE entry RENAME TO hidden");
    poll_state("the condition is told", SOON, async || {
        let status = world.publication().await;
        if status["condition"].as_str().is_some_and(|it| it.contains("entry")) { Ok(()) } else { Err(status.to_string()) }
    })
    .await;
    sqlite3(&file, "ALTER TABLE hidden RENAME TO entry; INSERT INTO entry(amount, listed) VALUES (2, 1)");
    world.in_step(&ACCOUNTS_PUBLISHED, healing()).await;
}

#[tokio::test]
async fn a_database_that_comes_later_is_published_then() {
    let cluster = Cluster::new();
    let mut bo = cluster.first("bo-1", [127, 0, 0, 1]).await;
    say(&bo, &super::world::publication(ACCOUNTS_FILTER));
    bo.start().await;
    let fo = super::world::fo(&cluster, "fo-1", [127, 0, 0, 2], bo.address()).await;
    poll_state("what is missing is told", SOON, async || {
        let status = told(&bo, "publications").await;
        if status["condition"].is_string() { Ok(()) } else { Err(status.to_string()) }
    })
    .await;
    sqlite3(&database(&bo), ACCOUNTS);
    super::world::equal(&bo, &fo, &ACCOUNTS_PUBLISHED, healing()).await;
}

#[tokio::test]
async fn detaching_leaves_no_trigger_and_no_table_of_ours_and_publishing_again_works() {
    let mut world = World::start(ACCOUNTS, ACCOUNTS_FILTER, &ACCOUNTS_PUBLISHED).await;
    let file = database(&world.bo);
    let ours = "SELECT count(*) FROM sqlite_schema WHERE name LIKE '%horos%' OR tbl_name LIKE '%horos%' OR sql LIKE '%horos%'";
    assert_ne!(sqlite3(&file, ours), "0", "there is something to detach");
    let data = text(&world.bo.data).to_owned();
    world.bo.process().terminate();
    world.bo.process().wait(SOON).await;
    world.cluster.run(&["sync", "detach", "--data", &data, DATABASE]).await.expect_code(0);
    assert_eq!(sqlite3(&file, ours), "0");
    assert_eq!(sqlite3(&file, "PRAGMA integrity_check"), "ok");
    // Nobody notices who writes now.
    sqlite3(&file, "UPDATE account SET owner = 'written while nobody looked' WHERE id % 2; DELETE FROM account WHERE id = 4");
    world.bo.start().await;
    world.in_step(&ACCOUNTS_PUBLISHED, healing()).await;
    sqlite3(&file, "UPDATE account SET owner = 'and after'");
    world.in_step(&ACCOUNTS_PUBLISHED, healing()).await;
}

/// The epoch of the publication's log.
async fn epoch(world: &World) -> String {
    let head = world.publication().await["head"].as_str().map(str::to_owned).expect("it is published");
    head.split('.').next().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn a_backup_that_was_put_back_and_written_further_ends_in_the_same_content() {
    let mut world = World::start(ACCOUNTS, ACCOUNTS_FILTER, &ACCOUNTS_PUBLISHED).await;
    let file = database(&world.bo);
    let published: &[Published] = &ACCOUNTS_PUBLISHED;
    let reading = super::world::looks(&world.fo);
    // Stopped, what was there last is known; killed, it need not be, and then it is the FO that knows better. Backups page by page, which
    // keep everything of ours that is in the file, and one as VACUUM writes it.
    for (round, (more, killed, vacuumed)) in
        [(3, false, false), (300, false, false), (300, false, true), (3, true, false), (300, true, false)].into_iter().enumerate()
    {
        let backup = world.cluster.path().join(format!("backup-{round}.db"));
        sqlite3(&file, &format!("INSERT INTO entry(amount, listed, pad) VALUES (1, 1, 'in backup {round}')"));
        sqlite3(&file, &if vacuumed { format!("VACUUM INTO '{}'", text(&backup)) } else { format!(".backup '{}'", text(&backup)) });
        let epoch = epoch(&world).await;
        sqlite3(&file, "INSERT INTO entry(amount, listed, pad) SELECT 2, 1, 'lost with the backup' FROM account LIMIT 50");
        world.in_step(published, healing()).await;
        if killed {
            world.bo.kill();
        } else {
            world.bo.process().terminate();
            world.bo.process().wait(SOON).await;
        }
        for suffix in ["-wal", "-shm"] {
            let _ = std::fs::remove_file(format!("{}{suffix}", file.display()));
        }
        std::fs::copy(&backup, &file).unwrap();
        // The log goes on from where the backup was, past where the FO is or not.
        sqlite3(
            &file,
            &format!("INSERT INTO entry(amount, listed, pad) SELECT 3, 1, 'after {round}' FROM account a, account b LIMIT {more}"),
        );
        world.bo.start().await;
        world.in_step(published, healing()).await;
        let now = self::epoch(&world).await;
        eprintln!("round {round}: {now} after {epoch}");
        // Killed, and past where the FO is: a log of the same epoch that differs in its stamps, which is enough for a snapshot.
        assert!(now != epoch || killed && more > 50, "round {round}: {now} after {epoch}");
    }
    assert!(reading.end() > 0);
    let report = world.bo.ask(&["sync", "verify", NAME]).await.expect_code(0).json();
    assert_eq!(report["nodes"][0]["mismatches"], 0, "{report}");
    // One previous snapshot is kept, and no more.
    let beside = std::fs::read_dir(&world.fo.data).unwrap().flatten();
    let kept = beside.filter(|it| it.file_name().to_string_lossy().starts_with(&format!("{REPLICA}.previous"))).count();
    assert!(kept <= 1, "{kept}");
}

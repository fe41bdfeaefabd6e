//! What a bad path and a full disk do to a replica: nothing that a reader would see. What is there serves on, and it heals by itself.

use std::fs;
use std::io::Write as _;
use std::time::{Duration, Instant};

use super::world::{
    ACCOUNTS, ACCOUNTS_FILTER, ACCOUNTS_PUBLISHED, Dice, assert_whole, bo, content, database, databases, equal, fo, healing, looks,
    replica, sqlite3, told, transfers,
};
use crate::harness::{Cluster, poll_state, scale, seed};
use crate::machine::Small;
use crate::relay::{Direction, Faults, Relay};

/// Rounds of trouble.
const ROUNDS: (u32, u32) = (1, 40);
/// For a first snapshot over a path that loses a packet in twenty-five: it carries a few megabytes a second, and each round has left
/// a few.
const BAD_PATH: Duration = Duration::from_secs(120);
/// A few megabytes that zstd makes no smaller.
const LUMP: &str = "INSERT INTO entry(source, target, amount, listed, pad)
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 60) SELECT 1, 1, 0, 1, hex(randomblob(20000)) FROM n";

#[tokio::test]
async fn a_path_that_cuts_delays_reorders_and_flips_bits_is_got_over() {
    let seed = seed();
    let mut dice = Dice(seed);
    let cluster = Cluster::new();
    // On every address, so that they are told of no other way than the relay.
    let bo = bo(&cluster, [0, 0, 0, 0], ACCOUNTS, ACCOUNTS_FILTER).await;
    let relay = Relay::listen(([127, 0, 0, 9], 0).into(), bo.address(), seed).unwrap();
    let mut fo = fo(&cluster, "fo-1", [0, 0, 0, 0], relay.address()).await;
    equal(&bo, &fo, &ACCOUNTS_PUBLISHED, healing()).await;
    let reading = looks(&fo);
    for round in 0..scale(ROUNDS.0, ROUNDS.1) {
        let load = transfers(&database(&bo), dice.next());
        relay.set_both(&Faults {
            drop: 0.02,
            duplicate: 0.05,
            reorder: 0.2,
            corrupt: 0.02,
            delay: Duration::from_millis(5),
            jitter: Duration::from_millis(20),
            ..Faults::default()
        });
        sqlite3(&database(&bo), LUMP);
        dice.moment(Duration::from_secs(2)).await;
        // Cut, in the midst of whatever it is, for longer than a lease of QUIC's or not.
        relay.partition();
        let before = content(&replica(&fo), "SELECT count(*) FROM account").unwrap();
        dice.moment(Duration::from_secs(4)).await;
        assert_eq!(content(&replica(&fo), "SELECT count(*) FROM account").unwrap(), before, "round {round}: it serves on");
        relay.set_both(&Faults::default());
        relay.heal();
        load.end();
        let began = Instant::now();
        equal(&bo, &fo, &ACCOUNTS_PUBLISHED, healing()).await;
        eprintln!("round {round}: equal {:?} after the path was mended", began.elapsed());
    }
    // A replica that begins anew does so over a bad path too.
    assert!(reading.end() > 0);
    fo.kill();
    for file in databases(&fo.data) {
        assert_whole(&file);
    }
    for entry in fs::read_dir(&fo.data).unwrap().flatten() {
        if entry.file_name().to_string_lossy().starts_with(super::world::REPLICA) {
            fs::remove_file(entry.path()).unwrap();
        }
    }
    relay.set_both(&Faults { drop: 0.02, reorder: 0.2, corrupt: 0.02, delay: Duration::from_millis(5), ..Faults::default() });
    fo.start().await;
    equal(&bo, &fo, &ACCOUNTS_PUBLISHED, BAD_PATH).await;
    for direction in Direction::BOTH {
        let counters = relay.counters(direction);
        assert!(counters.corrupted > 0 && counters.dropped > 0 && counters.reordered > 0 && counters.silenced > 0, "{counters:?}");
    }
    let report = bo.ask(&["sync", "verify", super::world::NAME]).await.expect_code(0).json();
    assert_eq!(report["nodes"][0]["mismatches"], 0, "{report}");
}

/// Leaves no byte on the disk of `path`.
fn fill(path: &std::path::Path) {
    let mut file = fs::File::create(path).unwrap();
    for chunk in [1 << 16, 1 << 12, 1 << 8, 1] {
        while file.write_all(&vec![b'x'; chunk]).is_ok() {}
    }
}

#[tokio::test]
async fn a_full_disk_on_the_fo_keeps_what_is_there_readable_and_heals_when_there_is_room() {
    let cluster = Cluster::new();
    let disk = cluster.path().join("disk");
    let Some(small) = Small::mount(disk.clone(), "24m") else {
        eprintln!("not promised here: only root may mount a file system to fill");
        return;
    };
    let bo = bo(&cluster, [127, 0, 0, 1], ACCOUNTS, ACCOUNTS_FILTER).await;
    std::os::unix::fs::symlink(&disk, cluster.path().join("fo-1")).unwrap();
    let mut fo = fo(&cluster, "fo-1", [127, 0, 0, 2], bo.address()).await;
    equal(&bo, &fo, &ACCOUNTS_PUBLISHED, healing()).await;
    let there = content(&replica(&fo), "SELECT count(*) FROM entry").unwrap();
    let reading = looks(&fo);
    let ballast = disk.join("ballast");
    fill(&ballast);
    sqlite3(&database(&bo), LUMP);
    let status = poll_state("the FO's replica says what is wrong", Duration::from_secs(20), async || {
        let status = told(&bo, "publications").await;
        let error = &status["subscribers"][0]["last_error"];
        if error.is_string() { Ok(status) } else { Err(status.to_string()) }
    })
    .await;
    eprintln!("on a full disk: {}", status["subscribers"][0]["last_error"]);
    assert_eq!(content(&replica(&fo), "SELECT count(*) FROM entry").unwrap(), there, "what was there serves on");
    fs::remove_file(&ballast).unwrap();
    let began = Instant::now();
    equal(&bo, &fo, &ACCOUNTS_PUBLISHED, healing() * 2).await;
    eprintln!("equal {:?} after there was room", began.elapsed());
    assert!(reading.end() > 0);
    // Killed on a full disk, and started on it.
    fill(&ballast);
    sqlite3(&database(&bo), LUMP);
    fo.kill();
    for file in databases(&fo.data) {
        assert_whole(&file);
    }
    fs::remove_file(&ballast).unwrap();
    fo.start().await;
    equal(&bo, &fo, &ACCOUNTS_PUBLISHED, healing() * 2).await;
    drop((bo, fo));
    drop(small);
}

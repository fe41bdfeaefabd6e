//! `kill -9` of either side at any moment, while another process writes on: no file is damaged, and content is equal soon after.

use std::path::Path;
use std::time::{Duration, Instant};

use super::world::{
    ACCOUNTS, ACCOUNTS_FILTER, ACCOUNTS_PUBLISHED, Dice, SUM, World, assert_whole, assert_whole_in_use, content, database, databases,
    equal, healing, replica, transfers,
};
use crate::harness::{optimised, scale, seed};

/// Of each side; the promise is 1,000 in all.
const KILLS: (u64, u64) = (3, 250);

/// The files of a replica, all of them.
fn forget(file: &Path) {
    let name = file.file_name().unwrap().to_str().unwrap().to_owned();
    for entry in std::fs::read_dir(file.parent().unwrap()).unwrap().flatten() {
        if entry.file_name().to_string_lossy().starts_with(&name) {
            std::fs::remove_file(entry.path()).unwrap();
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Bo,
    Fo,
}

async fn killed(side: Side, kills: u64) {
    let mut dice = Dice(seed());
    let mut world = World::start(ACCOUNTS, ACCOUNTS_FILTER, &ACCOUNTS_PUBLISHED).await;
    let (mut healed, mut written) = (Vec::new(), 0);
    for round in 0..kills {
        let load = transfers(&database(&world.bo), dice.next());
        dice.moment(Duration::from_millis(400)).await;
        let victim = if side == Side::Bo { &mut world.bo } else { &mut world.fo };
        victim.kill();
        for file in databases(&victim.data) {
            if side == Side::Bo && file == database(victim) { assert_whole_in_use(&file) } else { assert_whole(&file) }
        }
        if side == Side::Fo {
            let sum = content(&replica(victim), &format!("SELECT sum(amount) = {SUM} FROM account"));
            assert_eq!(sum.unwrap(), [b"I\x01\0\0\x001"], "round {round}: half a transaction");
        }
        if side == Side::Fo && dice.below(4) == 0 {
            // From nothing, and killed again in the midst of it.
            forget(&replica(victim));
            victim.start().await;
            dice.moment(Duration::from_millis(if optimised() { 150 } else { 1_500 })).await;
            victim.kill();
            for file in databases(&victim.data) {
                assert_whole(&file);
            }
        }
        victim.start().await;
        let ready = Instant::now();
        // Some go on being written to for a while.
        dice.moment(Duration::from_millis(200)).await;
        written += load.end();
        equal(&world.bo, &world.fo, &ACCOUNTS_PUBLISHED, healing().saturating_sub(ready.elapsed())).await;
        healed.push(ready.elapsed());
    }
    for node in [&mut world.bo, &mut world.fo] {
        node.process().terminate();
        node.process().wait(Duration::from_secs(20)).await;
        for file in databases(&node.data) {
            assert_whole(&file);
        }
    }
    healed.sort();
    eprintln!("{kills} kills, {written} transactions meanwhile; equal after {:?}, at worst {:?}", healed[healed.len() / 2], healed.last());
}

#[tokio::test]
async fn a_bo_killed_while_another_process_writes_loses_nothing() {
    killed(Side::Bo, scale(KILLS.0, KILLS.1)).await;
}

#[tokio::test]
async fn a_bo_killed_again_and_again_loses_nothing() {
    killed(Side::Bo, scale(1, KILLS.1)).await;
}

#[tokio::test]
async fn an_fo_killed_while_changes_come_has_all_of_them_or_none() {
    killed(Side::Fo, scale(KILLS.0, KILLS.1)).await;
}

#[tokio::test]
async fn an_fo_killed_again_and_again_has_all_of_them_or_none() {
    killed(Side::Fo, scale(1, KILLS.1)).await;
}

//! Whoever reads while the replica changes, from this process and from others.

use std::{
    os::unix::{
        fs::{MetadataExt as _, PermissionsExt as _, chown},
        process::CommandExt as _,
    },
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use rusqlite::Connection;

use super::world::{Bo, Fo, reader, settings, take};
use crate::apply::{Applier, ReadableBy, wal_bytes};

/// A hundred accounts that always hold 10,000 together: whoever sees another sum saw half a transaction.
fn accounts() -> Bo {
    Bo::with(
        "CREATE TABLE account (id INTEGER PRIMARY KEY, amount INTEGER, pad TEXT);
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100) INSERT INTO account SELECT i, 100, hex(zeroblob(200)) FROM n",
        "full_tables: [account]",
    )
}

fn sum(file: &Connection) -> rusqlite::Result<(i64, i64)> {
    file.query_row("SELECT count(*), sum(amount) FROM account", [], |row| Ok((row.get(0)?, row.get(1)?)))
}

fn transfer(bo: &Bo, round: i64) {
    let (from, to) = (1 + round % 100, 1 + (round * 37 + 11) % 100);
    bo.run(&format!(
        "BEGIN; UPDATE account SET amount = amount - 7 WHERE id = {from}; UPDATE account SET amount = amount + 7 WHERE id = {to}; COMMIT"
    ));
}

#[test]
fn readers_at_full_speed_see_no_error_and_only_whole_transactions() {
    let bo = accounts();
    let mut fo = Fo::of(&bo);
    let stop = Arc::new(AtomicBool::new(false));
    let reads = Arc::new(AtomicU64::new(0));
    let threads: Vec<_> = (0..3)
        .map(|number| {
            let (stop, reads, path) = (stop.clone(), reads.clone(), fo.path());
            std::thread::spawn(move || {
                let mut file = reader(&path);
                let mut wrong: Vec<String> = Vec::new();
                let mut round = 0;
                while !stop.load(Ordering::Relaxed) {
                    round += 1;
                    // One opens the file again and again.
                    if number == 0 && round % 20 == 0 {
                        file = reader(&path);
                    }
                    match sum(&file) {
                        Ok((100, 10_000)) => {}
                        other => wrong.push(format!("{other:?}")),
                    }
                    reads.fetch_add(1, Ordering::Relaxed);
                }
                wrong
            })
        })
        .collect();
    let until = Instant::now() + Duration::from_secs(2);
    let mut round = 0;
    while Instant::now() < until || round < 60 {
        round += 1;
        transfer(&bo, round);
        if round % 15 == 0 {
            fo.take(bo.snapshot()).unwrap();
        } else {
            let delta = bo.delta(&fo);
            fo.take(delta).unwrap();
        }
        if round % 40 == 0 {
            fo.rest();
        }
    }
    stop.store(true, Ordering::Relaxed);
    for thread in threads {
        assert_eq!(thread.join().unwrap(), Vec::<String>::new());
    }
    println!("{} reads beside {round} changes", reads.load(Ordering::Relaxed));
    fo.assert_equals(&bo);
}

#[test]
fn a_reader_that_stays_does_not_stop_changes_and_the_wal_is_emptied_when_it_is_gone() {
    let bo = accounts();
    let mut fo = Fo::of(&bo);
    let slow = fo.reader();
    slow.execute_batch("BEGIN").unwrap();
    assert_eq!(sum(&slow).unwrap(), (100, 10_000));
    let begun = Instant::now();
    for round in 0..300 {
        transfer(&bo, round);
        bo.run("UPDATE account SET pad = pad || 'x'");
        let delta = bo.delta(&fo);
        fo.take(delta).unwrap();
    }
    let grown = wal_bytes(&fo.path());
    assert!(grown > 4 << 20, "{grown} bytes: the reader holds it");
    fo.rest();
    assert_eq!(sum(&slow).unwrap(), (100, 10_000));
    slow.execute_batch("ROLLBACK").unwrap();
    fo.rest();
    assert_eq!(wal_bytes(&fo.path()), 0);
    println!("300 changes in {:?}", begun.elapsed());
    // Without anybody in the way it starts over by itself.
    for round in 0..300 {
        transfer(&bo, round);
        bo.run("UPDATE account SET pad = pad || 'x'");
        let delta = bo.delta(&fo);
        fo.take(delta).unwrap();
    }
    let bounded = wal_bytes(&fo.path());
    assert!(bounded < grown / 2 && bounded < 24 << 20, "{bounded} bytes, {grown} before");
    fo.assert_equals(&bo);
}

/// Anybody but root, who is stopped by no mode.
const NOBODY: u32 = 65_534;

/// What `sqlite3`, run by nobody, prints of `sql`.
fn shell(path: &Path, sql: &str) -> String {
    let output = Command::new("sqlite3").args(["-readonly", "-batch"]).arg(path).arg(sql).uid(NOBODY).gid(NOBODY).output().unwrap();
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)).trim().to_owned()
}

#[test]
fn a_process_that_may_not_write_the_directory_reads_while_changes_come_and_after_the_node_has_stopped() {
    let outer = tempfile::tempdir().unwrap();
    if std::fs::metadata(outer.path()).unwrap().uid() != 0 {
        println!("not run: only root can be another user");
        return;
    }
    let bo = accounts();
    let dir = outer.path().join("public");
    let open = || Applier::open(crate::apply::Settings { readable_by: ReadableBy::Group, ..settings(&dir) }).unwrap().0;
    let mut applier = open();
    // The group's, as an operator arranges it: a directory with the group's bit hands it on.
    std::fs::set_permissions(outer.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    chown(&dir, None, Some(NOBODY)).unwrap();
    std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o2750)).unwrap();
    take(&mut applier, bo.snapshot()).unwrap();
    let path = dir.join("fo.db");
    for suffix in ["", "-wal", "-shm"] {
        let metadata = std::fs::metadata(crate::apply::files::beside(&path, suffix)).unwrap();
        assert_eq!((metadata.mode() & 0o777, metadata.gid()), (0o640, NOBODY), "fo.db{suffix}");
    }
    let sql = "SELECT count(*) || ' ' || sum(amount) FROM account";
    assert_eq!(shell(&path, sql), "100 10000");
    assert!(shell(&path, "DELETE FROM account").contains("readonly"), "and cannot write");
    for round in 0..6 {
        transfer(&bo, round);
        bo.run(&format!("UPDATE account SET pad = 'round {round}'"));
        let stream = if round % 3 == 2 { bo.snapshot() } else { bo.delta(&applier) };
        take(&mut applier, stream).unwrap();
        if round == 4 {
            applier.rest();
        }
        assert_eq!(shell(&path, sql), "100 10000", "round {round}");
        assert_eq!(shell(&path, "SELECT DISTINCT pad FROM account"), format!("round {round}"));
    }
    applier.close();
    assert_eq!(shell(&path, sql), "100 10000", "the node is down");
    let applier = open();
    assert_eq!(shell(&path, sql), "100 10000");
    drop(applier);
    assert_eq!(shell(&path, sql), "100 10000", "the node was killed");
}

#[test]
fn nobody_else_reads_unless_it_is_configured() {
    let bo = accounts();
    let mut fo = Fo::of(&bo);
    fo.take(bo.snapshot()).unwrap();
    for name in fo.files() {
        let mode = std::fs::metadata(fo.dir.path().join(&name)).unwrap().mode() & 0o777;
        assert_eq!(mode, 0o600, "{name}");
    }
}

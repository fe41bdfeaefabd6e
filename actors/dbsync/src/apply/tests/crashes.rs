//! A node that is killed, and a disk that is full, at each of the steps at which files change.
//!
//! A kill is played by a copy of the files as they are at that instant, which is what another process finds after one: what was
//! written and not synced is there, what a connection held in memory is not.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use parking_lot::Mutex;
use tempfile::TempDir;

use super::world::{Bo, Fo, assert_same, files, open, reader, take};

/// All but the shared memory, which does not survive either.
fn copy(from: &Path) -> TempDir {
    let to = tempfile::tempdir().unwrap();
    for name in files(from).iter().filter(|name| !name.ends_with("-shm") && !name.ends_with("-owner")) {
        std::fs::copy(from.join(name), to.path().join(name)).unwrap();
    }
    to
}

/// Runs `stream` and keeps what a kill at each step would have left.
fn kills(fo: &mut Fo, stream: Vec<u8>) -> Vec<(String, TempDir)> {
    let left: Arc<Mutex<Vec<(String, TempDir)>>> = Arc::default();
    let (seen, dir) = (left.clone(), fo.dir.path().to_path_buf());
    fo.applier.steps.watch = Some(Box::new(move |step| {
        seen.lock().push((step.to_owned(), copy(&dir)));
        Ok(())
    }));
    fo.take(stream).unwrap();
    fo.applier.steps.watch = None;
    let last = ("the end".to_owned(), copy(fo.dir.path()));
    let mut left = std::mem::take(&mut *left.lock());
    left.push(last);
    left
}

/// Each is opened, is one of the two states, and takes what is sent anew.
fn assert_recovers(left: Vec<(String, TempDir)>, before: Option<&Bo>, bo: &Bo) {
    let steps: Vec<String> = left.iter().map(|(step, _)| step.clone()).collect();
    for (number, (step, dir)) in left.into_iter().enumerate() {
        println!("killed at step {number} of {steps:?}: {step}");
        let applier = open(dir.path());
        let mut fo = Fo { dir, applier };
        match fo.state().and_then(|state| state.current()) {
            Some(at) if at == crate::apply::position(&bo.head()) => fo.assert_equals(bo),
            Some(_) => assert_same(&fo.reader(), before.unwrap()),
            None => assert!(before.is_none() && !fo.path().exists()),
        }
        let (stream, _) = bo.snapshot_beside(&fo.offers());
        fo.take(stream).unwrap_or_else(|error| panic!("{step}: {error}"));
        fo.assert_equals(bo);
        assert!(
            fo.files().iter().all(|name| !name.contains("incoming") && !name.contains("partial") && !name.ends_with(".new")),
            "{:?}",
            fo.files()
        );
    }
}

#[test]
fn killed_at_any_step_of_a_first_snapshot_the_next_start_goes_on() {
    let bo = Bo::new();
    bo.fill(0, 500);
    // Two commits of its parts at least.
    bo.run("INSERT INTO note SELECT randomblob(10000), i FROM (WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 60) SELECT i FROM n)");
    let mut fo = Fo::new();
    fo.applier.batch = 200_000;
    let left = kills(&mut fo, bo.snapshot());
    assert!(left.len() >= 8, "{}", left.len());
    assert_recovers(left, None, &bo);
}

#[test]
fn killed_at_any_step_of_a_swap_the_replica_is_what_it_was_or_what_it_becomes() {
    let bo = Bo::filled(500);
    // Several steps of copying.
    bo.run("INSERT INTO note SELECT randomblob(9000), i FROM (WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 60) SELECT i FROM n)");
    let mut fo = Fo::of(&bo);
    fo.applier.pages_per_step = 100;
    // What was published then, for comparison: the same database at an earlier time.
    let frozen = Bo::filled(1);
    frozen.run("DELETE FROM item; DELETE FROM stock; DELETE FROM note");
    frozen.run(&format!("ATTACH '{}' AS now", bo.dir.path().join("bo.db").display()));
    frozen.run("INSERT INTO item SELECT * FROM now.item; INSERT INTO stock SELECT * FROM now.stock; INSERT INTO note (rowid, body, mark) SELECT rowid, * FROM now.note; DETACH now");
    bo.run("DELETE FROM item WHERE id % 3 = 0; UPDATE stock SET amount = -1; DELETE FROM note WHERE rowid % 10 = 1");
    let left = kills(&mut fo, bo.snapshot());
    assert!(left.iter().filter(|(step, _)| step == "copy pages of a snapshot").count() >= 2);
    assert_recovers(left, Some(&frozen), &bo);
}

#[test]
fn killed_while_a_delta_is_applied_the_replica_has_all_of_it_or_nothing() {
    let bo = Bo::filled(500);
    let mut fo = Fo::of(&bo);
    let count = bo.content()["item"].len();
    bo.run("DELETE FROM item WHERE id % 2; UPDATE stock SET amount = -1");
    let stream = bo.delta(&fo);
    for (step, dir) in kills(&mut fo, stream.clone()) {
        let mut again = open(dir.path());
        if step != "the end" {
            let file = reader(&dir.path().join("fo.db"));
            assert_eq!(file.query_row("SELECT count(*) FROM item", [], |row| row.get::<_, i64>(0)).unwrap(), count as i64);
            take(&mut again, stream.clone()).unwrap();
        }
        assert_same(&reader(&dir.path().join("fo.db")), &bo);
    }
}

/// Lets the `n`th step fail as a full disk does.
fn fill_disk_at(fo: &mut Fo, n: u32) -> Arc<AtomicU32> {
    let steps = Arc::new(AtomicU32::new(0));
    let count = steps.clone();
    fo.applier.steps.watch =
        Some(Box::new(
            move |_| {
                if count.fetch_add(1, Ordering::Relaxed) == n { Err(std::io::ErrorKind::StorageFull.into()) } else { Ok(()) }
            },
        ));
    steps
}

#[test]
fn a_disk_that_is_full_at_any_step_leaves_what_was_and_is_got_over() {
    let bo = Bo::filled(300);
    bo.run("INSERT INTO note SELECT randomblob(9000), i FROM (WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 50) SELECT i FROM n)");
    for n in 0.. {
        let mut fo = Fo::of(&bo);
        fo.applier.pages_per_step = 100;
        let rows = fo.reader().query_row("SELECT count(*) FROM item", [], |row| row.get::<_, i64>(0)).unwrap();
        let other = Bo::filled(350);
        let steps = fill_disk_at(&mut fo, n);
        let outcome = fo.take(other.snapshot());
        fo.applier.steps.watch = None;
        if steps.load(Ordering::Relaxed) <= n {
            assert!(n >= 8, "{n} steps");
            outcome.unwrap();
            return;
        }
        match outcome {
            Err(error) => {
                assert!(error.is_full(), "step {n}: {error}");
                let names = fo.files();
                let done = fo.reader().query_row("SELECT count(*) FROM item", [], |row| row.get::<_, i64>(0)).unwrap();
                // After the commit only a file is left to be removed.
                assert!(done == rows || names.iter().any(|name| name.ends_with("incoming")) || done == 350, "step {n}");
                if done == rows {
                    fo.assert_equals(&bo);
                }
                // It is told at once for a while, and not tried.
                let again = fo.take(other.snapshot()).unwrap_err();
                assert!(again.is_full(), "{again}");
                fo.applier.full_until = None;
            }
            // The previous snapshot could not be kept; that is no reason to serve it.
            Ok(_) => fo.assert_equals(&other),
        }
        fo.take(other.snapshot()).unwrap_or_else(|error| panic!("step {n}: {error}"));
        fo.assert_equals(&other);
    }
}

#[test]
fn a_damaged_file_is_put_aside_and_a_snapshot_begins_anew() {
    let bo = Bo::filled(3_000);
    let mut fo = Fo::of(&bo);
    fo.rest();
    let Fo { dir, applier } = fo;
    applier.close();
    let path = dir.path().join("fo.db");
    let mut bytes = std::fs::read(&path).unwrap();
    for page in 5..bytes.len() / 4096 {
        bytes[page * 4096..page * 4096 + 64].fill(0x5a);
    }
    std::fs::write(&path, bytes).unwrap();
    let (applier, damage) = crate::apply::Applier::open(super::world::settings(dir.path())).unwrap();
    assert!(damage.unwrap().contains("damaged"));
    let mut fo = Fo { dir, applier };
    assert!(fo.state().is_none() && !fo.path().exists());
    fo.take(bo.snapshot()).unwrap();
    fo.assert_equals(&bo);
    assert!(fo.files().contains(&"fo.db.damaged".to_owned()));
}

#[test]
fn what_remains_of_a_snapshot_may_be_anything() {
    let bo = Bo::filled(3_000);
    for garbage in [vec![], vec![0; 100_000], b"SQLite format 3\0 not really".to_vec()] {
        let mut fo = Fo::new();
        std::fs::write(fo.dir.path().join("fo.db.incoming"), &garbage).unwrap();
        std::fs::write(fo.dir.path().join("fo.db.partial"), &garbage).unwrap();
        std::fs::write(fo.dir.path().join("fo.db.previous.new"), &garbage).unwrap();
        fo = fo.restart();
        let (stream, _) = bo.snapshot_beside(&fo.offers());
        fo.take(stream).unwrap();
        fo.assert_equals(&bo);
        assert_eq!(fo.files(), ["fo.db", "fo.db-owner", "fo.db-shm", "fo.db-wal"]);
    }
}

use super::world::{Bo, CutOff, Fo};
use crate::apply::{ApplyError, Progress, position};

#[test]
fn a_first_snapshot_gets_the_name_when_it_is_whole_and_nothing_else_remains() {
    let bo = Bo::filled(3_000);
    let fo = Fo::of(&bo);
    assert_eq!(fo.files(), ["fo.db", "fo.db-owner", "fo.db-shm", "fo.db-wal"]);
    let state = fo.state().unwrap();
    assert_eq!(state.current(), Some(position(&bo.head())));
}

#[test]
fn a_second_one_takes_the_place_of_the_first_under_readers_that_stay() {
    let bo = Bo::filled(500);
    let mut fo = Fo::of(&bo);
    let reader = fo.reader();
    let inode = |fo: &Fo| std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(fo.path()).unwrap());
    let before = inode(&fo);
    let count = || reader.query_row("SELECT count(*) FROM item", [], |row| row.get::<_, i64>(0)).unwrap();
    assert_eq!(count(), 500);
    reader.execute_batch("BEGIN").unwrap();
    assert_eq!(count(), 500);
    bo.fill(1_000, 4_000);
    fo.take(bo.snapshot()).unwrap();
    assert_eq!(count(), 500, "an open transaction sees what it saw");
    reader.execute_batch("ROLLBACK").unwrap();
    assert_eq!(count(), 4_500);
    assert_eq!(inode(&fo), before);
    fo.assert_equals(&bo);
    // Smaller again, and a delta on top.
    bo.run("DELETE FROM item WHERE id > 100");
    fo.take(bo.snapshot()).unwrap();
    bo.run("UPDATE item SET name = 'x'");
    fo.follow(&bo);
    assert_eq!(fo.files(), ["fo.db", "fo.db-owner", "fo.db-shm", "fo.db-wal", "fo.db.previous"]);
}

#[test]
fn only_the_chunks_that_are_not_here_are_sent() {
    let bo = Bo::filled(12_000);
    let mut fo = Fo::of(&bo);
    bo.run("UPDATE item SET price = 0 WHERE id = 10000");
    let have = fo.offers();
    assert!(have.len() > 12, "{}", have.len());
    let (stream, built) = bo.snapshot_beside(&have);
    assert!(built.rows < 5_000, "{} rows sent", built.rows);
    fo.take(stream).unwrap();
    fo.assert_equals(&bo);
}

#[test]
fn one_that_was_cut_off_goes_on_from_where_it_was() {
    let bo = Bo::filled(12_000);
    let mut fo = Fo::new();
    let whole = bo.snapshot();
    let mut sent = u64::MAX;
    for part in [4, 3, 2] {
        let (stream, built) = bo.snapshot_beside(&fo.offers());
        assert!(built.rows < sent, "{} rows, and {sent} before", built.rows);
        sent = built.rows;
        let at = stream.len() - stream.len() / part;
        let error = fo.applier.apply(Box::new(CutOff { bytes: stream.into(), at }), &Progress::default()).unwrap_err();
        assert!(matches!(error, ApplyError::Cut(_)), "{error}");
        assert!(fo.has_parts() && fo.state().is_none());
        // As after a restart of the node.
        fo = fo.restart();
    }
    let (stream, built) = bo.snapshot_beside(&fo.offers());
    assert!(built.rows < 7_000 && stream.len() < whole.len() / 2, "{} rows", built.rows);
    fo.take(stream).unwrap();
    fo.assert_equals(&bo);
    assert_eq!(fo.files(), ["fo.db", "fo.db-owner", "fo.db-shm", "fo.db-wal"]);
}

#[test]
fn what_was_received_of_one_serves_the_next_though_the_source_has_gone_on() {
    let bo = Bo::filled(8_000);
    let mut fo = Fo::of(&bo);
    bo.fill(50_000, 8_000);
    let stream = bo.snapshot();
    let at = stream.len() * 3 / 4;
    fo.applier.apply(Box::new(CutOff { bytes: stream.into(), at }), &Progress::default()).unwrap_err();
    bo.run("DELETE FROM item WHERE id BETWEEN 300 AND 400; UPDATE item SET name = 'y' WHERE id = 51000");
    let (stream, built) = bo.snapshot_beside(&fo.offers());
    assert!(built.rows < 9_000, "{} rows", built.rows);
    fo.take(stream).unwrap();
    fo.assert_equals(&bo);
    // And a delta after a cut-off snapshot is as good.
    let stream = bo.snapshot();
    let at = stream.len() / 2;
    fo.applier.apply(Box::new(CutOff { bytes: stream.into(), at }), &Progress::default()).unwrap_err();
    bo.run("DELETE FROM stock");
    fo.follow(&bo);
}

#[test]
fn a_chunk_that_is_here_no_more_ends_the_snapshot_and_not_the_replica() {
    let bo = Bo::filled(5_000);
    let mut fo = Fo::of(&bo);
    let have = fo.offers();
    fo.applier.live.as_ref().unwrap().connection.execute_batch("UPDATE item SET price = -1 WHERE id = 77").unwrap();
    let (stream, _) = bo.snapshot_beside(&have);
    let error = fo.take(stream).unwrap_err();
    assert!(matches!(error, ApplyError::Cut(_)), "{error}");
    let (stream, _) = bo.snapshot_beside(&fo.offers());
    fo.take(stream).unwrap();
    fo.assert_equals(&bo);
    // Never offered at all.
    let mut other = Fo::new();
    let (stream, _) = bo.snapshot_beside(&fo.offers());
    assert!(matches!(other.take(stream), Err(ApplyError::Nonsense(_))));
    assert_eq!(other.files(), ["fo.db-owner"]);
}

#[test]
fn an_older_one_of_the_same_log_is_refused_and_one_of_a_new_log_is_taken() {
    let bo = Bo::filled(100);
    let old = bo.snapshot();
    let mut fo = Fo::of(&bo);
    bo.run("DELETE FROM item WHERE id = 1");
    fo.follow(&bo);
    assert!(matches!(fo.take(old), Err(ApplyError::Backwards)));
    fo.assert_equals(&bo);
    // The same position once more is no step back.
    fo.take(bo.snapshot()).unwrap();
    let other = Bo::filled(7);
    fo.take(other.snapshot()).unwrap();
    fo.assert_equals(&other);
    assert_ne!(position(&bo.head()).epoch, position(&other.head()).epoch);
}

#[test]
fn a_row_of_megabytes_arrives() {
    let bo = Bo::filled(10);
    bo.run("INSERT INTO note VALUES (zeroblob(5000000), randomblob(1000000))");
    let mut fo = Fo::of(&bo);
    bo.run("INSERT INTO note VALUES (hex(zeroblob(1000000)), NULL)");
    fo.follow(&bo);
}

#[test]
fn more_than_the_replica_may_become_is_refused_and_what_is_there_stays() {
    let bo = Bo::filled(100);
    let dir = tempfile::tempdir().unwrap();
    let settings = crate::apply::Settings { max_bytes: Some(400 << 10), ..super::world::settings(dir.path()) };
    let (mut applier, _) = crate::apply::Applier::open(settings).unwrap();
    super::world::take(&mut applier, bo.snapshot()).unwrap();
    let small = bo.content();
    bo.fill(1_000, 20_000);
    let refused = super::world::take(&mut applier, bo.snapshot()).unwrap_err();
    assert!(matches!(refused, ApplyError::TooLarge), "{refused:?}");
    let delta = bo.delta(&applier);
    let refused = super::world::take(&mut applier, delta).unwrap_err();
    assert!(matches!(refused, ApplyError::TooLarge), "{refused:?}");
    let reader = super::world::reader(&dir.path().join("fo.db"));
    assert_eq!(super::world::all(&reader, "SELECT 1 FROM item").len(), small["item"].len());
    assert!(!super::world::files(dir.path()).iter().any(|name| name.ends_with("incoming")), "{:?}", super::world::files(dir.path()));
}

#[test]
fn another_encoding_takes_the_file_s_place_instead_of_its_content() {
    let bo = Bo::with("CREATE TABLE t (k TEXT PRIMARY KEY, v); INSERT INTO t VALUES ('a', 1)", "full_tables: [t]");
    let other =
        Bo::with("PRAGMA encoding = 'UTF-16be'; CREATE TABLE t (k TEXT PRIMARY KEY, v); INSERT INTO t VALUES ('é', 2)", "full_tables: [t]");
    let mut fo = Fo::of(&bo);
    let stays = fo.reader();
    fo.take(other.snapshot()).unwrap();
    fo.assert_equals(&other);
    let seen: String = stays.query_row("SELECT k FROM t", [], |row| row.get(0)).unwrap();
    assert_eq!(seen, "a", "whoever had the old file open goes on with it");
    other.run("INSERT INTO t VALUES ('z', 3)");
    fo.follow(&other);
}

#[test]
fn a_replica_of_nothing_is_a_replica() {
    let mut bo = Bo::with("CREATE TABLE t (a PRIMARY KEY)", "full_tables: [t]");
    let mut fo = Fo::of(&bo);
    bo.reload("full_tables: []");
    fo.follow(&bo);
    bo.reload("full_tables: [t]");
    bo.run("INSERT INTO t VALUES (1)");
    fo.follow(&bo);
}

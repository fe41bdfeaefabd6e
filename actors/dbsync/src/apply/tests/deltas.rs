use super::world::{Bo, Fo, SPEC, open, take};
use crate::{
    apply::{ApplyError, position},
    build::{KeyRange, Sweep},
    value::put_value,
};

#[test]
fn a_delta_makes_the_replica_what_is_published() {
    let bo = Bo::filled(2_000);
    let mut fo = Fo::of(&bo);
    bo.run(
        "UPDATE item SET price = 1.5 WHERE id % 3 = 0; DELETE FROM item WHERE id % 5 = 0; UPDATE item SET listed = 0 WHERE id % 7 = 0;
         UPDATE stock SET shop = upper(shop) WHERE amount % 2; INSERT INTO note VALUES (NULL, NULL), (12, 'x');
         UPDATE item SET id = id + 10000 WHERE id BETWEEN 11 AND 19",
    );
    let done = fo.follow(&bo);
    assert_eq!(done.tables.unwrap(), ["item", "note", "stock"]);
    bo.run("UPDATE item SET listed = 1 WHERE id % 7 = 0; DELETE FROM note");
    assert_eq!(fo.follow(&bo).tables.unwrap(), ["item", "note"]);
}

#[test]
fn only_what_changed_is_said_to_have_changed_and_a_restart_remembers_the_position() {
    let bo = Bo::filled(50);
    let mut fo = Fo::of(&bo);
    bo.run("INSERT INTO note VALUES ('a', 'b')");
    assert_eq!(fo.follow(&bo).tables.unwrap(), ["note"]);
    let before = fo.state().unwrap().clone();
    let fo = fo.restart();
    let after = fo.state().unwrap();
    assert_eq!(after.current(), Some(position(&bo.head())));
    assert_eq!(format!("{before:?}"), format!("{after:?}"));
    fo.assert_equals(&bo);
}

#[test]
fn values_of_every_kind_arrive_as_they_are() {
    let bo = Bo::with("CREATE TABLE t (k BLOB PRIMARY KEY, v)", "full_tables: [t]");
    let mut fo = Fo::of(&bo);
    bo.run(
        "INSERT INTO t VALUES (1, -9223372036854775808), ('1', 9223372036854775807), (x'31', 1e308), (2.5, ''), ('', x''), (x'', NULL),
         ('nul' || char(0) || 'x', CAST(x'ff00fe' AS TEXT)), ('real', 3.0), ('neg', -0.0), ('blob', zeroblob(70000)), ('Ω', 'ő')",
    );
    fo.follow(&bo);
}

#[test]
fn a_delta_that_begins_elsewhere_is_refused_with_the_position() {
    let bo = Bo::filled(20);
    let mut fo = Fo::of(&bo);
    let at = fo.state().unwrap().current();
    bo.run("DELETE FROM item WHERE id = 3");
    let delta = bo.delta(&fo);
    fo.take(delta.clone()).unwrap();
    let now = fo.state().unwrap().current();
    assert_ne!(at, now);
    // The same again, as after an answer that was lost.
    assert!(matches!(fo.take(delta.clone()), Err(ApplyError::Mismatch { have }) if have == now));
    let mut empty = Fo::new();
    assert!(matches!(empty.take(delta), Err(ApplyError::Mismatch { have: None })));
    fo.assert_equals(&bo);
}

#[test]
fn schema_changes_follow() {
    let mut bo = Bo::filled(300);
    let mut fo = Fo::of(&bo);
    bo.run(
        "ALTER TABLE stock ADD COLUMN place TEXT; UPDATE stock SET place = 'x' || amount; CREATE INDEX stock_by_place ON stock (place);
         CREATE TABLE extra (a PRIMARY KEY, b); INSERT INTO extra VALUES (1, 2); DROP TABLE note",
    );
    bo.reload(&SPEC.replace("note", "extra"));
    let done = fo.follow(&bo);
    assert_eq!(done.tables, None, "a table is gone");
    assert!(fo.state().unwrap().find("note").is_none());
    bo.run("INSERT INTO extra VALUES (3, 4); DELETE FROM stock WHERE amount > 5");
    let mut fo = fo.restart();
    fo.follow(&bo);
    // Fewer columns, another condition.
    bo.reload(&SPEC.replace("note", "extra").replace("[name, price]", "[name]").replace("listed = 1", "id % 2"));
    fo.follow(&bo);
    let indexes: i64 =
        fo.reader().query_row("SELECT count(*) FROM sqlite_schema WHERE name = 'stock_by_place'", [], |row| row.get(0)).unwrap();
    assert_eq!(indexes, 1);
}

#[test]
fn what_differs_is_found_by_checks_and_healed_by_repairs() {
    let bo = Bo::filled(3_000);
    let mut fo = Fo::of(&bo);
    {
        // A disk that forgets, or somebody with the sqlite3 shell on the wrong file.
        let live = &fo.applier.live.as_ref().unwrap().connection;
        live.execute_batch("DELETE FROM item WHERE id = 1234; UPDATE note SET body = 'other' WHERE rowid = 7").unwrap();
    }
    let (stream, built) = bo.delta_with(&fo, &[], Some(Sweep { from: None, chunks: 1_000 }));
    let done = fo.take(stream).unwrap();
    let swept = built.swept.unwrap();
    assert_eq!(swept.next, None);
    assert_eq!(done.mismatches.len(), 2);
    let repairs: Vec<KeyRange> = done.mismatches.iter().map(|id| swept.ranges[*id as usize].clone()).collect();
    let (stream, built) = bo.delta_with(&fo, &repairs, None);
    assert!(built.rows < 2_500, "{} rows", built.rows);
    fo.take(stream).unwrap();
    fo.assert_equals(&bo);
    let (stream, _) = bo.delta_with(&fo, &[], Some(Sweep { from: None, chunks: 1_000 }));
    assert_eq!(fo.take(stream).unwrap().mismatches, Vec::<u32>::new());
}

#[test]
fn a_repair_of_everything_from_the_first_row_to_the_last() {
    let bo = Bo::filled(400);
    let mut fo = Fo::of(&bo);
    fo.applier.live.as_ref().unwrap().connection.execute_batch("DELETE FROM item; INSERT INTO item (id) VALUES (-5), (99999)").unwrap();
    let mut key = Vec::new();
    put_value(&mut key, rusqlite::types::ValueRef::Integer(200));
    let key: bytes::Bytes = key.into();
    let ranges = [
        KeyRange { table: "item".into(), after: None, through: Some(key.clone()) },
        KeyRange { table: "item".into(), after: Some(key), through: None },
    ];
    let (stream, _) = bo.delta_with(&fo, &ranges, None);
    fo.take(stream).unwrap();
    fo.assert_equals(&bo);
}

#[test]
fn text_of_another_encoding_keeps_its_order() {
    let bo = Bo::with(
        "PRAGMA encoding = 'UTF-16le'; CREATE TABLE t (k TEXT PRIMARY KEY, v); INSERT INTO t VALUES (char(0xffff), 1), (char(0x10000), 2), ('a', 3)",
        "full_tables: [t]",
    );
    let mut fo = Fo::of(&bo);
    bo.run("INSERT INTO t VALUES (char(0xfffe), 4)");
    let (stream, _) = bo.delta_with(&fo, &[], Some(Sweep { from: None, chunks: 10 }));
    assert_eq!(fo.take(stream).unwrap().mismatches, Vec::<u32>::new());
    fo.assert_equals(&bo);
}

#[test]
fn a_file_that_is_no_replica_of_this_publication_is_not_touched() {
    let bo = Bo::filled(10);
    let fo = Fo::of(&bo);
    let dir = fo.dir.path().to_path_buf();
    let mut settings = super::world::settings(&dir);
    assert!(matches!(crate::apply::Applier::open(settings.clone()), Err(ApplyError::Owned(_))), "it has an owner");
    let Fo { applier, dir } = fo;
    applier.close();
    settings.name = "other".into();
    assert!(matches!(crate::apply::Applier::open(settings.clone()), Err(ApplyError::Foreign { .. })));
    settings.path = dir.path().join("app.db");
    rusqlite::Connection::open(&settings.path).unwrap().execute_batch("CREATE TABLE precious (a)").unwrap();
    assert!(matches!(crate::apply::Applier::open(settings), Err(ApplyError::Foreign { .. })));
    let mut again = open(dir.path());
    bo.run("DELETE FROM note");
    let delta = bo.delta(&again);
    take(&mut again, delta).unwrap();
}

//! What fires no trigger is noticed and re-based; the log is bounded; detaching leaves nothing.

use std::fs;

use horos_dbsync::capture::{Cause, Changes, Gap, Key, Look, Plan, Position, Witness, attach, detach, head, inspect, since, trim};

use rusqlite::StatementStatus;

use crate::it::capture_world::{World, columns, schema, shell};

const SCHEMA: &str = "
    CREATE TABLE item(id INTEGER PRIMARY KEY, sku TEXT, b BLOB);
    CREATE TABLE keyless(a);
    CREATE TABLE private(x);
    CREATE UNIQUE INDEX item_sku ON item(sku);
    INSERT INTO item VALUES (1,'a',zeroblob(4)),(2,'b',NULL); INSERT INTO keyless VALUES ('x'),('y');";

fn world() -> World {
    World::new(SCHEMA, vec![columns(1, "item", &["id", "sku", "b"], &["id"]), columns(2, "keyless", &["a"], &[])])
}

#[test]
fn a_look_is_quiet_until_somebody_commits() {
    let world = world();
    let (mut sentinel, reader) = world.sentinel();
    assert_eq!(sentinel.look(&reader).unwrap(), Look::Quiet);
    shell(&world.path(), "DELETE FROM item WHERE id = 1;");
    let Look::Committed { head: position, logged: true } = sentinel.look(&reader).unwrap() else { panic!("a logged commit") };
    assert_eq!(position, head(&reader).unwrap());
    shell(&world.path(), "INSERT INTO private VALUES (1);");
    assert_eq!(sentinel.look(&reader).unwrap(), Look::Committed { head: position, logged: false });
    assert_eq!(sentinel.look(&reader).unwrap(), Look::Quiet);
}

#[test]
fn every_change_of_the_schema_that_triggers_cannot_see_re_bases_its_tables_and_no_others() {
    let item = "_horos_1_insert";
    let cases: &[(&str, String, &[u32])] = &[
        ("a column is added", "ALTER TABLE item ADD COLUMN c;".into(), &[1, 2]),
        ("a trigger is dropped", format!("DROP TRIGGER {item};"), &[1, 2]),
        (
            "a trigger is dropped, rows written, and the same trigger made again",
            format!(
                ".output {{}}/t.sql\nSELECT sql || ';' FROM sqlite_master WHERE name = '{item}';\n.output\nDROP TRIGGER {item};\n\
                 INSERT INTO item(sku) VALUES ('unseen');\n.read {{}}/t.sql\n"
            ),
            &[1, 2],
        ),
        ("a unique index is made", "CREATE UNIQUE INDEX more ON item(b);".into(), &[1, 2]),
        ("a unique index is dropped", "DROP INDEX item_sku;".into(), &[1, 2]),
        (
            "the table is rebuilt",
            "CREATE TABLE n(id INTEGER PRIMARY KEY, sku TEXT, b BLOB); INSERT INTO n SELECT * FROM item WHERE id = 1; DROP TABLE item;
             ALTER TABLE n RENAME TO item;"
                .into(),
            &[1, 2],
        ),
        ("VACUUM may have renumbered what has no key", "DELETE FROM keyless WHERE a = 'x'; VACUUM;".into(), &[2]),
        ("something else is made", "CREATE TABLE other(x); CREATE INDEX o ON other(x);".into(), &[2]),
        (
            "writable_schema, without telling",
            format!(
                ".output /dev/null\n.dbconfig defensive off\n.output\nPRAGMA writable_schema=ON; DELETE FROM sqlite_master WHERE name = '{item}';"
            ),
            &[1],
        ),
    ];
    for (what, script, expected) in cases {
        let mut world = world();
        let (mut sentinel, reader) = world.sentinel();
        let output = shell(&world.path(), &script.replace("{}", &world.dir.path().display().to_string()));
        assert_eq!(output, "", "{what}");
        let look = Look::Rebase { cause: Cause::Schema, tables: expected.to_vec() };
        assert_eq!(sentinel.look(&reader).unwrap(), look, "{what}");
        assert_eq!(sentinel.look(&reader).unwrap(), look, "{what}: until it is mended");
        let before = sentinel.witness().clone();
        let mended = world.mend(&before);
        assert_eq!((mended.renewed, mended.rebased.as_slice()), (None, *expected), "{what}");
        assert!(inspect(&reader, &world.plan).unwrap().is_sound(), "{what}");
        // The log says so to whoever was away.
        let page = world.changes(&reader, before.position);
        assert!(expected.iter().all(|number| page.tables[number].whole), "{what}: {page:?}");
        sentinel.accept(mended.witness);
        assert!(matches!(sentinel.look(&reader).unwrap(), Look::Committed { .. }), "{what}");
        assert_eq!(sentinel.look(&reader).unwrap(), Look::Quiet, "{what}");
        shell(&world.path(), "INSERT INTO item(sku) VALUES ('seen');");
        assert!(matches!(sentinel.look(&reader).unwrap(), Look::Committed { logged: true, .. }), "{what}");
    }
}

#[test]
fn writes_past_the_triggers_show_as_commits_without_an_entry() {
    let world = world();
    let (mut sentinel, reader) = world.sentinel();
    shell(&world.path(), ".dbconfig enable_trigger off\nDELETE FROM item WHERE id = 2;");
    assert!(matches!(sentinel.look(&reader).unwrap(), Look::Committed { logged: false, .. }));
    let writer = world.writer();
    let mut blob = writer.blob_open("main", "item", "b", 1, false).unwrap();
    std::io::Write::write_all(&mut blob, b"blob").unwrap();
    blob.close().unwrap();
    assert!(matches!(sentinel.look(&reader).unwrap(), Look::Committed { logged: false, .. }));
}

/// The file's content put back as it was, by `how`; then written further until its log is as long as before.
fn restored(how: impl Fn(&World)) -> (World, Witness) {
    let world = world();
    shell(&world.path(), "INSERT INTO item(sku) VALUES ('kept'); PRAGMA wal_checkpoint(TRUNCATE);");
    shell(&world.path(), &format!(".backup '{}'", world.dir.path().join("backup.db").display()));
    shell(&world.path(), "INSERT INTO item(sku) VALUES ('lost 1'), ('lost 2');");
    let (sentinel, reader) = {
        let mut sentinel = horos_dbsync::capture::Sentinel::new(world.path(), world.attached.witness.clone()).unwrap();
        let reader = world.reader();
        assert!(matches!(sentinel.look(&reader).unwrap(), Look::Committed { logged: true, .. }));
        (sentinel, reader)
    };
    let witness = sentinel.witness().clone();
    drop(reader);
    how(&world);
    shell(&world.path(), "INSERT INTO item(sku) VALUES ('else 1'), ('else 2'), ('else 3');");
    (world, witness)
}

#[test]
fn a_backup_that_is_put_back_and_written_further_is_another_history() {
    // In place, by SQLite's own means, which is a commit like others; the same inode.
    let (mut world, witness) = restored(|world| {
        assert_eq!(shell(&world.path(), &format!(".restore '{}'", world.dir.path().join("backup.db").display())), "");
    });
    let reader = world.reader();
    assert!(head(&reader).unwrap().seq > witness.position.seq, "the sequence number alone would not tell");
    let mut sentinel = horos_dbsync::capture::Sentinel::new(world.path(), witness.clone()).unwrap();
    assert_eq!(sentinel.look(&reader).unwrap(), Look::Rebase { cause: Cause::OtherHistory, tables: Vec::new() });
    assert_eq!(since(&reader, &witness.position, 10).unwrap(), Changes::Gap(Gap::Diverged));
    let mended = world.mend(&witness);
    assert_eq!(mended.renewed, Some(Cause::OtherHistory));
    assert_ne!(mended.position().epoch, witness.position.epoch);
    assert_eq!(since(&reader, &witness.position, 10).unwrap(), Changes::Gap(Gap::Epoch));

    // Copied over it while nobody had it open; the same inode again.
    let (mut world, witness) = restored(|world| {
        fs::write(world.path(), fs::read(world.dir.path().join("backup.db")).unwrap()).unwrap();
    });
    assert_eq!(world.mend(&witness).renewed, Some(Cause::OtherHistory));

    // Another file under its name, even with the same content.
    let mut world = self::world();
    let (mut sentinel, reader) = world.sentinel();
    shell(&world.path(), "PRAGMA wal_checkpoint(TRUNCATE);");
    let copy = world.dir.path().join("copy.db");
    fs::copy(world.path(), &copy).unwrap();
    fs::rename(&copy, world.path()).unwrap();
    assert_eq!(sentinel.look(&reader).unwrap(), Look::Replaced);
    assert_eq!(world.mend(&sentinel.witness().clone()).renewed, Some(Cause::OtherFile));
}

#[test]
fn whatever_is_done_to_our_tables_ends_in_a_new_epoch() {
    for script in [
        "DELETE FROM _horos_log;",
        "UPDATE _horos_meta SET value = randomblob(16) WHERE name = 'epoch';",
        "UPDATE _horos_meta SET value = 99 WHERE name = 'format';",
        "UPDATE _horos_log SET stamp = 1;",
        "INSERT INTO _horos_log(seq) VALUES (9223372036854775807);",
        "ALTER TABLE _horos_log ADD COLUMN foreign_hand TEXT;",
        "DROP TABLE _horos_meta;",
        "DROP TABLE _horos_tracked;",
        "DROP TABLE _horos_log;",
    ] {
        let mut world = world();
        let (mut sentinel, reader) = world.sentinel();
        assert_eq!(shell(&world.path(), script), "");
        let Look::Rebase { tables, .. } = sentinel.look(&reader).unwrap() else { panic!("{script} was not noticed") };
        assert!(tables.is_empty(), "{script}");
        let witness = sentinel.witness().clone();
        assert!(world.mend(&witness).renewed.is_some(), "{script}");
        assert!(inspect(&reader, &world.plan).unwrap().is_sound(), "{script}");
        assert_ne!(head(&reader).unwrap().epoch, witness.position.epoch, "{script}");
    }
}

#[test]
fn attaching_again_changes_nothing_and_another_plan_what_it_must() {
    let mut world = world();
    let writer = world.writer();
    let before = (schema(&writer), world.attached.witness.clone());
    assert_eq!(world.attached.renewed, Some(Cause::New));
    let again = world.mend(&before.1);
    assert_eq!((again.renewed, again.rebased.as_slice()), (None, [].as_slice()));
    assert_eq!((schema(&writer), again.witness), before);

    // A table more, with a wider key: the old positions stay good.
    writer.execute_batch("CREATE TABLE wide(x, y, z, PRIMARY KEY(x, y)) WITHOUT ROWID; INSERT INTO wide VALUES (1,2,3)").unwrap();
    world.plan.tables.push(columns(3, "wide", &["x", "y"], &["x", "y"]));
    let more = world.mend(&before.1);
    assert_eq!((more.renewed, more.rebased.as_slice()), (None, [2, 3].as_slice()), "a keyless table is re-based with any new schema");
    assert_eq!(world.mend(&more.witness).rebased, [0_u32; 0]);

    // A table less: its triggers go, the others' stay.
    world.plan.tables.remove(0);
    let witness = world.attached.witness.clone();
    assert_eq!(world.mend(&witness).renewed, None);
    assert!(schema(&writer).iter().all(|text| !text.contains("_horos_1_")));

    // A table with another key: its old entries mean nothing any more.
    world.plan.tables[1].key = Key::Columns(vec!["y".into(), "x".into()]);
    let witness = world.attached.witness.clone();
    assert_eq!(world.mend(&witness).renewed, Some(Cause::Rekeyed));
    assert_eq!(attach(&writer, &world.plan, None).unwrap().renewed, Some(Cause::Unwitnessed));
}

#[test]
fn a_log_that_nobody_reads_is_bounded_and_its_readers_find_the_gap() {
    let plan = Plan { tables: vec![columns(1, "t", &["id", "u"], &["id"])], keep: 3_000 };
    let world = World::keeping("CREATE TABLE t(id INTEGER PRIMARY KEY, u UNIQUE)", plan);
    let entries = || world.reader().query_row("SELECT count(*) FROM _horos_log", [], |row| row.get::<_, i64>(0)).unwrap();
    let series = |from: u32, to: u32| format!("WITH RECURSIVE s(i) AS (SELECT {from} UNION ALL SELECT i + 1 FROM s WHERE i < {to})");
    let start = world.attached.position();
    for (what, script) in [
        ("inserts", format!("{} INSERT INTO t SELECT i, i FROM s;", series(1, 9_000))),
        ("another table's greater rowids", "CREATE TABLE other(x); INSERT INTO other(rowid) VALUES (99999999999);".into()),
        ("ignored conflicts", format!("{} INSERT OR IGNORE INTO t SELECT -1, i FROM s;", series(1, 9_000))),
        ("moved keys", "UPDATE t SET id = id + 100000;".into()),
        ("deletes", "DELETE FROM t;".into()),
    ] {
        assert_eq!(shell(&world.path(), &script), "", "{what}");
        let entries = entries();
        assert!((1..=3_000 + 5_300).contains(&entries), "{what}: {entries} entries");
    }
    let reader = world.reader();
    assert_eq!(since(&reader, &start, 10).unwrap(), Changes::Gap(Gap::Pruned));
    let end = head(&reader).unwrap();
    assert!(matches!(since(&reader, &end, 10).unwrap(), Changes::Page(page) if page.entries == 0 && !page.more && page.through == end));
    assert_eq!(since(&reader, &Position { stamp: !end.stamp, ..end }, 10).unwrap(), Changes::Gap(Gap::Diverged));
    assert_eq!(since(&reader, &Position { seq: end.seq + 1, ..end }, 10).unwrap(), Changes::Gap(Gap::Diverged));
    assert!(trim(&world.writer(), &end).unwrap() > 0);
    assert_eq!(entries(), 1);
    assert!(matches!(since(&reader, &end, 10).unwrap(), Changes::Page(_)));
}

#[test]
fn detaching_leaves_the_schema_as_it_was_even_of_what_is_half_made() {
    for damage in [
        "",
        "DROP TABLE _horos_meta;",
        "DROP TRIGGER _horos_1_insert;",
        "ALTER TABLE item RENAME TO renamed; ALTER TABLE renamed RENAME TO item;",
    ] {
        let world = world();
        let writer = world.writer();
        writer.execute_batch("CREATE TRIGGER _horos_user AFTER INSERT ON private BEGIN SELECT 1; END").unwrap();
        shell(&world.bare(), "CREATE TRIGGER _horos_user AFTER INSERT ON private BEGIN SELECT 1; END;");
        shell(&world.path(), damage);
        detach(&writer).unwrap();
        let bare = horos_store::rusqlite::Connection::open(world.bare()).unwrap();
        let plain = |text: Vec<String>| -> Vec<String> { text.into_iter().map(|line| line.replace('"', "")).collect() };
        assert_eq!(plain(schema(&writer)), plain(schema(&bare)), "{damage}");
        assert!(!inspect(&writer, &world.plan).unwrap().is_sound());
        detach(&writer).unwrap();
    }
}

#[test]
fn a_log_at_its_bound_costs_a_row_no_more_than_a_short_one() {
    let plan = Plan { tables: vec![columns(1, "t", &["id"], &["id"])], keep: 10 };
    let world = World::keeping("CREATE TABLE t(id INTEGER PRIMARY KEY)", plan);
    let writer = world.writer();
    let mut insert = writer.prepare("INSERT INTO t DEFAULT VALUES").unwrap();
    // SQLite's own count of what it does for a row, its triggers included; one that prunes does more, and few do.
    let mut median = |rows: usize| {
        let mut steps: Vec<i32> = (0..rows)
            .map(|_| {
                insert.execute([]).unwrap();
                insert.reset_status(StatementStatus::VmStep)
            })
            .collect();
        steps.sort_unstable();
        steps[rows / 2]
    };
    let (short, full) = (median(10), median(4_000));
    assert!(full <= 2 * short, "{full} steps for a row, and {short} while the log was short");
}

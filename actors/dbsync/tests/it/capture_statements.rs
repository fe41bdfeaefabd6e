//! Row changes by any statement, written by the `sqlite3` shell: the right keys, and the same results and errors as without us.

use std::collections::BTreeSet;

use horos_dbsync::capture::{KeyPart, Plan, Tracked, attach};
use horos_store::rusqlite::Connection;

use crate::it::capture_world::{World, columns, schema, shell};

/// What the log says, `table:key`, sorted.
fn keys(world: &World, script: &str) -> Vec<String> {
    let reader = world.reader();
    let before = world.content(&reader);
    let old = Connection::open(world.bare()).unwrap();
    let (ours, theirs) = {
        // The bare file is changed after its old rows were read by the replay; so a copy takes the statement.
        let bare = world.dir.path().join("twin.db");
        std::fs::copy(world.bare(), &bare).unwrap();
        (shell(&world.path(), script), shell(&bare, script))
    };
    assert_eq!(ours, theirs, "the same results and errors with our triggers and without: {script}");
    let page = world.changes(&reader, world.attached.position());
    let replayed = world.replay(&reader, &before, &old, &page);
    assert_eq!(replayed, world.content(&reader), "no change without an entry: {script}");
    let mut found: Vec<String> = Vec::new();
    for (number, changes) in &page.tables {
        assert!(!changes.whole);
        for key in &changes.keys {
            let parts: Vec<String> = key
                .iter()
                .map(|part| match part {
                    KeyPart::Null => "null".to_owned(),
                    KeyPart::Integer(value) => value.to_string(),
                    KeyPart::Real(value) => format!("{value:?}"),
                    KeyPart::Text(value) => format!("'{}'", String::from_utf8_lossy(value)),
                    KeyPart::Blob(value) => format!("x'{}'", hex::encode(value)),
                })
                .collect();
            found.push(format!("{number}:{}", parts.join(",")));
        }
    }
    found.sort();
    found
}

const SHOP: &str = "
    CREATE TABLE item(id INTEGER PRIMARY KEY, sku TEXT NOT NULL DEFAULT 'none' UNIQUE, name TEXT COLLATE NOCASE, active INT, secret TEXT);
    CREATE UNIQUE INDEX item_name ON item(lower(name)) WHERE active = 1;
    CREATE TABLE line(shop TEXT, n INT, item INT REFERENCES item(id) ON DELETE CASCADE ON UPDATE CASCADE, code TEXT,
        PRIMARY KEY(shop, n), UNIQUE(code)) WITHOUT ROWID;
    CREATE TABLE word(w PRIMARY KEY, v);
    CREATE TABLE loose(a, b, g AS (b * 10), UNIQUE(g));
    CREATE TABLE private(x);
    INSERT INTO item VALUES (1,'a','Apple',1,'s1'),(2,'b','Bread',1,'s2'),(3,'c','Corn',0,'s3'),(4,'none','Date',0,'s4');
    INSERT INTO line VALUES ('p',1,1,'c1'),('p',2,2,'c2'),('q',1,2,'c3');
    INSERT INTO word VALUES ('one',1),(x'00ff',2),(NULL,3),(NULL,4),(7,5);
    INSERT INTO loose VALUES (1,1),(2,2),(NULL,3);";

fn tables() -> Vec<Tracked> {
    vec![
        columns(1, "item", &["id", "sku", "name", "active"], &["id"]),
        columns(2, "line", &["shop", "n", "item", "code"], &["shop", "n"]),
        columns(3, "word", &["w", "v"], &["w"]),
        columns(4, "loose", &["a", "b", "g"], &[]),
    ]
}

#[test]
fn every_kind_of_statement_gives_exactly_the_keys_of_the_rows_it_changed() {
    let cases: &[(&str, &[&str])] = &[
        ("INSERT INTO item(sku, name) VALUES ('x','X'),('y','Y');", &["1:5", "1:6"]),
        ("INSERT INTO item(sku) SELECT 'n' || id FROM item WHERE id < 3;", &["1:5", "1:6"]),
        ("UPDATE item SET active = 7 WHERE id > 2;", &["1:3", "1:4"]),
        ("UPDATE item SET id = id + 10 WHERE id = 3;", &["1:13", "1:3"]),
        ("UPDATE item SET rowid = 30 WHERE id = 3;", &["1:3", "1:30"]),
        ("DELETE FROM item;", &["1:1", "1:2", "1:3", "1:4"]),
        ("DELETE FROM item WHERE id = 99; UPDATE item SET id = id WHERE id = 99;", &[]),
        ("INSERT INTO private VALUES (1); UPDATE private SET x = 2;", &[]),
        // Rows that a REPLACE removes: by the key, by a UNIQUE, by the default that takes the place of NULL, by a partial index
        // over an expression, by the rowid of a table with another key, by a generated column.
        ("REPLACE INTO item(id, sku) VALUES (1, 'z');", &["1:1"]),
        ("INSERT OR REPLACE INTO item(id, sku, name, active) VALUES (9, 'a', 'BREAD', 1);", &["1:1", "1:2", "1:9"]),
        ("REPLACE INTO item(sku) VALUES (NULL);", &["1:4", "1:5"]),
        ("UPDATE OR REPLACE item SET sku = NULL WHERE id = 1;", &["1:1", "1:4"]),
        ("UPDATE OR REPLACE item SET sku = 'b', id = 3 WHERE id = 1;", &["1:1", "1:2", "1:3"]),
        ("UPDATE OR REPLACE item SET name = 'apple', active = 1 WHERE id = 3;", &["1:1", "1:3"]),
        ("REPLACE INTO word(rowid, w, v) VALUES (1, 'two', 2);", &["3:'one'", "3:'two'"]),
        ("UPDATE OR REPLACE word SET rowid = 1 WHERE w = 7;", &["3:'one'", "3:7"]),
        ("REPLACE INTO loose(a, b) VALUES (9, 2);", &["4:2", "4:4"]),
        ("UPDATE OR REPLACE loose SET b = 1 WHERE a = 2;", &["4:1", "4:2"]),
        ("REPLACE INTO line VALUES ('z', 9, NULL, 'c2');", &["2:'p',2", "2:'z',9"]),
        ("PRAGMA recursive_triggers=ON; REPLACE INTO item(id, sku) VALUES (9, 'a');", &["1:1", "1:9"]),
        // UPSERT, RETURNING, UPDATE FROM.
        ("INSERT INTO item(sku, name) VALUES ('a', 'Q') ON CONFLICT(sku) DO UPDATE SET name = excluded.name RETURNING id, name;", &["1:1"]),
        ("INSERT INTO item(id, sku) VALUES (1, 'new') ON CONFLICT DO NOTHING RETURNING id;", &[]),
        ("UPDATE item SET name = p.x FROM (SELECT 'f' AS x) AS p WHERE id = 2 RETURNING *;", &["1:2"]),
        ("DELETE FROM line WHERE shop = 'p' RETURNING code, changes(), last_insert_rowid();", &["2:'p',1", "2:'p',2"]),
        // Types and collations of keys.
        ("DELETE FROM word WHERE w IS NULL;", &["3:null"]),
        ("UPDATE word SET w = 'x' || v WHERE v IN (2, 3);", &["3:'x2'", "3:'x3'", "3:null", "3:x'00ff'"]),
        ("INSERT INTO word VALUES ('7', 1), (CAST(x'ff' AS TEXT), 2) ON CONFLICT DO NOTHING;", &["3:'7'", "3:'\u{fffd}'"]),
        // Cascades, also those that a REPLACE sets off.
        ("PRAGMA foreign_keys=ON; DELETE FROM item WHERE id = 2;", &["1:2", "2:'p',2", "2:'q',1"]),
        ("PRAGMA foreign_keys=ON; UPDATE item SET id = 20 WHERE id = 2;", &["1:2", "1:20", "2:'p',2", "2:'q',1"]),
        ("PRAGMA foreign_keys=ON; REPLACE INTO item(id, sku) VALUES (9, 'b');", &["1:2", "1:9", "2:'p',2", "2:'q',1"]),
        // What is rolled back was not.
        ("BEGIN; DELETE FROM item; ROLLBACK;", &[]),
        ("BEGIN; UPDATE item SET active=5 WHERE id=1; SAVEPOINT s; DELETE FROM item; ROLLBACK TO s; COMMIT;", &["1:1"]),
        ("INSERT INTO item(id, sku) VALUES (7, 'k'), (8, 'a');", &[]),
        ("INSERT OR FAIL INTO line VALUES ('n', 1, 1, 'k'), ('p', 1, 1, 'l');", &["2:'n',1"]),
        ("BEGIN; INSERT INTO word VALUES ('w', 1); INSERT OR ROLLBACK INTO word VALUES ('one', 2); COMMIT;", &[]),
        // What the writer is told of its own statement.
        (
            "REPLACE INTO item(id, sku) VALUES (9, 'a'); SELECT changes(), last_insert_rowid(); UPDATE item SET id = id + 10 WHERE id > 3; SELECT changes(), last_insert_rowid();",
            &["1:1", "1:14", "1:19", "1:4", "1:9"],
        ),
        // Another connection's settings and objects.
        ("PRAGMA trusted_schema=OFF; INSERT INTO item(sku) VALUES ('t');", &["1:5"]),
        ("CREATE TEMP TABLE item(id, sku); CREATE TEMP TABLE _horos_log(x UNIQUE); INSERT INTO main.item(sku) VALUES ('t');", &["1:5"]),
        (
            "CREATE TEMP TRIGGER tt AFTER INSERT ON main.word BEGIN UPDATE item SET active = 0 WHERE id = 1; END; INSERT INTO word VALUES ('w', 1);",
            &["1:1", "3:'w'"],
        ),
    ];
    for (script, expected) in cases {
        let world = World::new(SHOP, tables());
        assert!(world.attached.blind.is_empty());
        assert_eq!(keys(&world, script), *expected, "{script}");
    }
}

#[test]
fn what_is_ignored_or_conflicts_may_give_an_entry_too_many_and_never_one_too_few() {
    for script in [
        "INSERT OR IGNORE INTO item(id, sku) VALUES (9, 'a'), (10, 'ok');",
        "UPDATE OR IGNORE item SET sku = 'b';",
        "UPDATE OR FAIL item SET sku = 'q' || (id > 1);",
        "INSERT INTO item(id, sku) VALUES (-1, 'minus'); REPLACE INTO item(sku) VALUES ('minus');",
        "REPLACE INTO word(rowid, w) VALUES (-1, 'm'); REPLACE INTO word(rowid, w) VALUES (-1, 'n');",
    ] {
        let world = World::new(SHOP, tables());
        keys(&world, script);
    }
}

#[test]
fn a_write_through_an_attached_name_is_logged_in_the_file_that_was_written() {
    let world = World::new(SHOP, tables());
    let script = format!("ATTACH '{}' AS other; REPLACE INTO other.item(id, sku) VALUES (9, 'a');", world.path().display());
    assert_eq!(shell(&world.dir.path().join("mine.db"), &script), "");
    let page = world.changes(&world.reader(), world.attached.position());
    assert_eq!(page.tables[&1].keys, [vec![KeyPart::Integer(1)], vec![KeyPart::Integer(9)]]);
}

#[test]
fn a_row_that_is_written_once_is_logged_once() {
    let world = World::new(SHOP, tables());
    shell(
        &world.path(),
        "UPDATE item SET active = active + 5 WHERE id = 2; INSERT INTO word VALUES ('w', 1); DELETE FROM line WHERE n = 2;",
    );
    assert_eq!(world.changes(&world.reader(), world.attached.position()).entries, 3);
    shell(&world.path(), "UPDATE item SET id = 50 WHERE id = 2;");
    assert_eq!(world.changes(&world.reader(), world.attached.position()).entries, 5);
}

#[test]
fn no_trigger_names_an_unpublished_column_and_the_indexes_that_do_are_reported() {
    let world = World::new(
        "CREATE TABLE t(id INTEGER PRIMARY KEY, a, hidden, UNIQUE(a, hidden)); CREATE UNIQUE INDEX i ON t(a) WHERE hidden IS NULL",
        vec![columns(1, "t", &["id", "a"], &["id"])],
    );
    let blind: BTreeSet<&str> = world.attached.blind.iter().map(|blind| blind.index.as_str()).collect();
    assert_eq!(blind, BTreeSet::from(["i", "sqlite_autoindex_t_1"]));
    assert!(schema(&world.writer()).iter().filter(|text| text.starts_with("trigger")).all(|text| !text.contains("hidden")));
}

#[test]
fn foreign_changes_of_the_schema_do_not_fail_because_of_us() {
    for script in [
        "ALTER TABLE item DROP COLUMN secret; INSERT INTO item(sku) VALUES ('s'); SELECT count(*) FROM item;",
        "ALTER TABLE item ADD COLUMN more DEFAULT 3; UPDATE item SET more = 4;",
        "ALTER TABLE item RENAME COLUMN sku TO article; REPLACE INTO item(article) VALUES ('a'); SELECT * FROM item;",
        "ALTER TABLE item RENAME COLUMN id TO number; UPDATE item SET number = 50 WHERE number = 1;",
        "ALTER TABLE item RENAME COLUMN active TO enabled; REPLACE INTO item(name, enabled) VALUES ('apple', 1); SELECT * FROM item;",
        "ALTER TABLE word RENAME TO words; REPLACE INTO words(rowid, w) VALUES (1, 'two'); SELECT * FROM words;",
        "PRAGMA legacy_alter_table=ON; ALTER TABLE item RENAME TO old; CREATE TABLE item(id INTEGER PRIMARY KEY, sku TEXT);
         INSERT INTO item SELECT id, sku FROM old; DROP TABLE old; SELECT * FROM item;",
        "CREATE TABLE n(id INTEGER PRIMARY KEY, sku TEXT); INSERT INTO n SELECT id, sku FROM item; DROP TABLE item;
         ALTER TABLE n RENAME TO item; SELECT * FROM item;",
        "DROP INDEX item_name; INSERT INTO item(sku, name, active) VALUES ('t', 'Apple', 1); SELECT * FROM item;",
        "DROP TABLE line; VACUUM; REINDEX; ANALYZE; INSERT INTO item(sku) VALUES ('v'); PRAGMA integrity_check;",
    ] {
        let world = World::new(SHOP, tables());
        assert_eq!(shell(&world.path(), script), shell(&world.bare(), script), "{script}");
    }
}

#[test]
fn without_its_index_a_lookup_does_not_read_the_table() {
    let world = World::new(SHOP, tables());
    let plan =
        |script: &str| shell(&world.path(), &format!("{script}.stats on\nINSERT INTO item(sku, name, active) VALUES ('new', 'N', 1);"));
    shell(&world.path(), "INSERT INTO item(sku) SELECT hex(randomblob(9)) FROM generate_series(1, 20000);");
    let steps = |text: &str| -> u64 {
        let line = text.lines().find(|line| line.contains("Fullscan Steps")).unwrap_or_else(|| panic!("no statistics in {text}"));
        line.split_whitespace().last().unwrap().parse().unwrap()
    };
    assert!(steps(&plan("")) < 1_000);
    assert!(steps(&plan("DROP INDEX item_name;\n")) < 1_000, "the index is gone, and the rows are not read instead");
}

#[test]
fn names_that_need_quotes_and_defaults_that_are_names_do_no_harm() {
    let world = World::new(
        "CREATE TABLE \"a \"\"b'\"(\"k \"\"1\" TEXT PRIMARY KEY, \"select\" TEXT NOT NULL DEFAULT abc, rowid, oid, UNIQUE(\"select\"));
         CREATE UNIQUE INDEX \"on ('\" ON \"a \"\"b'\"(\"select\" COLLATE NOCASE, rowid);
         INSERT INTO \"a \"\"b'\" VALUES ('x', 'abc', 1, 2), ('y', 'D', 3, 4);",
        vec![columns(7, "a \"b'", &["k \"1", "select", "rowid", "oid"], &["k \"1"])],
    );
    assert!(world.attached.blind.is_empty());
    assert_eq!(keys(&world, "REPLACE INTO \"a \"\"b'\" VALUES ('z', NULL, 5, 6), ('w', 'd', 3, 0);"), ["7:'w'", "7:'x'", "7:'y'", "7:'z'"]);
}

#[test]
fn a_table_whose_inserts_would_fail_with_any_trigger_is_refused() {
    let world = World::new("CREATE TABLE t(a, b); CREATE TABLE c(x REFERENCES t(a))", vec![columns(2, "c", &["x"], &[])]);
    let plan = Plan::new(vec![columns(1, "t", &["a", "b"], &[])]);
    let error = attach(&world.writer(), &plan, None).unwrap_err();
    assert!(error.to_string().contains("foreign key"), "{error}");
}

#[test]
fn a_row_that_replace_removes_is_found_though_the_new_one_has_no_rowid_yet() {
    let replaced = |index: &str, insert: &str| {
        let table = "CREATE TABLE t(id INTEGER PRIMARY KEY, u, w NOT NULL DEFAULT 'a'); INSERT INTO t VALUES (1, 'x', 'A');";
        let world = World::new(&format!("{table} CREATE UNIQUE INDEX i ON t({index})"), vec![columns(1, "t", &["id", "u", "w"], &["id"])]);
        (keys(&world, insert), world.attached.blind.len())
    };
    let both = vec!["1:1".to_owned(), "1:2".to_owned()];
    for index in ["lower(w)) WHERE (id > 0", "u, w) WHERE (rowid > 0 AND u = 'x'", "w COLLATE NOCASE, id % 1", "lower(w), id < 9"] {
        for insert in ["REPLACE INTO t(u, w) VALUES ('x', 'A');", "REPLACE INTO t(id, u) SELECT NULL, u FROM t WHERE w = 'A';"] {
            let insert = if index.contains("u, w") { "REPLACE INTO t(u, w) VALUES ('x', 'A');" } else { insert };
            assert_eq!(replaced(index, insert), (both.clone(), 0), "{index}: {insert}");
        }
    }
    // An index that says nothing without the rowid is left to the comparison, and said to be; one of the rowid itself has no conflict.
    assert_eq!(replaced("id % 1", "REPLACE INTO t(u) VALUES ('x');").1, 1);
    assert_eq!(replaced("id, w", "REPLACE INTO t(u, w) VALUES ('x', 'A');"), (vec!["1:2".to_owned()], 0));
}

#[test]
fn a_row_that_an_update_replaces_through_a_computed_column_is_found() {
    let schema = |columns: &str| {
        format!(
            "CREATE TABLE t(id INT UNIQUE, u, {columns}); CREATE UNIQUE INDEX i ON t(v);
             INSERT INTO t(id, u, w) VALUES (0, 'a', 2), (1, 'a', 1);"
        )
    };
    for columns_ in ["v AS (u || w), w", "w, v AS (upper(u) || w) STORED", "x AS (u || w), w, v AS (x || '!')"] {
        let world = World::new(&schema(columns_), vec![columns(1, "t", &["id", "u", "v", "w"], &["id"])]);
        assert!(world.attached.blind.is_empty());
        assert_eq!(keys(&world, "UPDATE OR REPLACE t SET w = 1 WHERE id = 0;"), ["1:0", "1:1"], "{columns_}");
        let world = World::new(&schema(columns_), vec![columns(1, "t", &["id", "v", "w"], &["id"])]);
        assert_eq!(world.attached.blind.len(), 1, "what it is computed from is not published: {columns_}");
    }
}

//! Random histories: replaying the logged keys with the present rows is the whole difference, and nobody notices us.

use horos_dbsync::capture::{Position, Tracked};
use horos_store::rusqlite::Connection;
use proptest::{prelude::*, sample::select};

use crate::it::capture_world::{World, columns};

/// Tables `t(id, u, v, w)` of many kinds, and a child whose rows cascade where the parent's key permits it.
const SCHEMAS: [(&str, &[&str]); 6] = [
    ("CREATE TABLE t(id INTEGER PRIMARY KEY, u INT UNIQUE, v TEXT COLLATE NOCASE, w INT NOT NULL DEFAULT 3, UNIQUE(v, w))", &["id"]),
    ("CREATE TABLE t(id TEXT COLLATE NOCASE PRIMARY KEY, u UNIQUE ON CONFLICT REPLACE, v, w NOT NULL DEFAULT 3) WITHOUT ROWID", &["id"]),
    ("CREATE TABLE t(id, u, v NOT NULL DEFAULT a, w, PRIMARY KEY(id, u)); CREATE UNIQUE INDEX i ON t(v COLLATE NOCASE, w)", &["id", "u"]),
    ("CREATE TABLE t(id UNIQUE, u INT, v, w); CREATE UNIQUE INDEX i ON t(u + 1) WHERE v IS NOT NULL; CREATE UNIQUE INDEX j ON t(w)", &[]),
    ("CREATE TABLE t(id INT, u, v AS (u || w), w, UNIQUE(id)); CREATE UNIQUE INDEX i ON t(v)", &["id"]),
    (
        "CREATE TABLE t(id INTEGER PRIMARY KEY, u, v, w NOT NULL DEFAULT 'a'); CREATE UNIQUE INDEX i ON t(lower(w)) WHERE id > 0 AND u = 1",
        &["id"],
    ),
];
const CHILD: &str = "CREATE TABLE c(id INTEGER PRIMARY KEY, u REFERENCES t(id) ON DELETE CASCADE ON UPDATE SET NULL, w UNIQUE)";
const ORPHAN: &str = "CREATE TABLE c(id INTEGER PRIMARY KEY, u, w UNIQUE)";

fn value() -> impl Strategy<Value = &'static str> {
    select(&["NULL", "0", "1", "2", "3", "-1", "1.0", "'1'", "'a'", "'A'", "'b'", "x'61'"][..])
}

fn conflict() -> impl Strategy<Value = &'static str> {
    select(&["", "", "OR REPLACE ", "OR REPLACE ", "OR REPLACE ", "OR IGNORE ", "OR ABORT ", "OR FAIL ", "OR ROLLBACK "][..])
}

fn column() -> impl Strategy<Value = &'static str> {
    select(&["id", "u", "v", "w"][..])
}

fn statement() -> impl Strategy<Value = String> {
    prop_oneof![
        6 => (conflict(), value(), value(), value(), value()).prop_map(|(or, a, b, c, d)| format!("INSERT {or}INTO t(id, u, v, w) VALUES ({a}, {b}, {c}, {d}), ({d}, {a}, {b}, {c})")),
        3 => (conflict(), value(), value(), value()).prop_map(|(or, a, b, c)| format!("INSERT {or}INTO t(id, u, w) VALUES ({a}, {b}, {c}) RETURNING *, changes()")),
        2 => (conflict(), value(), value(), value()).prop_map(|(or, a, b, c)| format!("INSERT {or}INTO t(rowid, id, u, w) VALUES (2, {a}, {b}, {c})")),
        3 => (value(), value(), value(), column(), value()).prop_map(|(a, b, c, set, to)| {
            format!("INSERT INTO t(id, u, w) VALUES ({a}, {b}, {c}) ON CONFLICT DO UPDATE SET {set} = {to}")
        }),
        5 => (conflict(), column(), value(), column(), value()).prop_map(|(or, set, to, of, is)| format!("UPDATE {or}t SET {set} = {to} WHERE {of} IS {is}")),
        2 => (conflict(), column(), column(), value()).prop_map(|(or, set, from, is)| format!("UPDATE {or}t SET {set} = {from}, w = {is}")),
        1 => (conflict(), value(), value()).prop_map(|(or, is, to)| format!("UPDATE {or}t SET rowid = {to} WHERE u = {is}")),
        2 => (column(), value()).prop_map(|(of, is)| format!("DELETE FROM t WHERE {of} = {is}")),
        1 => Just("DELETE FROM t".to_owned()),
        3 => (conflict(), value(), value(), value()).prop_map(|(or, a, b, c)| format!("INSERT {or}INTO c VALUES ({a}, {b}, {c})")),
        1 => (conflict(), value(), value()).prop_map(|(or, a, b)| format!("UPDATE {or}c SET w = {a} WHERE u IS {b}")),
        6 => select(&["BEGIN", "COMMIT", "COMMIT", "ROLLBACK", "SAVEPOINT s", "ROLLBACK TO s", "RELEASE s"][..]).prop_map(str::to_owned),
    ]
}

/// What a statement gave, as its writer sees it.
fn outcome(connection: &Connection, sql: &str) -> String {
    let mut text = String::new();
    let mut run = || -> horos_store::rusqlite::Result<()> {
        let mut statement = connection.prepare(sql)?;
        let width = statement.column_count();
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            for place in 0..width {
                text.push_str(&format!("{:?} ", row.get_ref(place)?));
            }
        }
        Ok(())
    };
    let result = run().map_err(|error| error.to_string());
    let changes = if result.is_ok() { connection.changes() } else { 0 };
    format!("{text}{result:?} {changes} {}", connection.is_autocommit())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if std::env::var_os("HOROS_TEST_FULL").is_some() { 3_000 } else { 48 }))]

    #[test]
    fn replaying_the_logged_keys_with_the_present_rows_is_the_whole_difference(
        which in 0..SCHEMAS.len(),
        settings in select(&["PRAGMA foreign_keys=ON", "PRAGMA foreign_keys=OFF", "PRAGMA recursive_triggers=ON", "PRAGMA trusted_schema=OFF"][..]),
        history in prop::collection::vec(statement(), 1..60),
    ) {
        let (schema, key) = SCHEMAS[which];
        let tables: Vec<Tracked> = vec![columns(1, "t", &["id", "u", "v", "w"], key), columns(2, "c", &["id", "u", "w"], &["id"])];
        // A foreign key to a part of a key is an error of the schema; `attach` refuses that table.
        let child = if key.len() > 1 { ORPHAN } else { CHILD };
        let world = World::new(&format!("{schema}; {child}"), tables);
        prop_assert!(world.attached.blind.is_empty());
        let (live, bare) = (world.writer(), Connection::open(world.bare()).unwrap());
        for connection in [&live, &bare] {
            connection.execute_batch(&format!("PRAGMA synchronous=OFF; {settings}")).unwrap();
        }
        let mut from: Position = world.attached.position();
        let (mut past, mut present) = (world.reader(), world.reader());
        past.execute_batch("BEGIN; SELECT count(*) FROM t").unwrap();
        let mut before = world.content(&past);
        // An `UPDATE` of several rows in conflict depends on the order in which SQLite takes them, which is nobody's promise and
        // differs with triggers: from the first such difference on the twin has another history.
        let (mut twin, mut order_matters) = (true, false);
        for sql in &history {
            order_matters |= sql.starts_with("UPDATE OR");
            let (ours, theirs) = (outcome(&live, sql), if twin { outcome(&bare, sql) } else { String::new() });
            twin &= ours == theirs || !order_matters;
            prop_assert!(!twin || ours == theirs, "{ours} and without us {theirs}: {sql}");
            if !live.is_autocommit() {
                continue;
            }
            present.execute_batch("BEGIN").unwrap();
            let after = world.content(&present);
            let same = !twin || after == world.content(&bare);
            twin &= same;
            prop_assert!(same || order_matters, "the same rows as without us: {sql}");
            let page = world.changes(&present, from);
            prop_assert_eq!(&world.replay(&present, &before, &past, &page), &after, "{}", sql);
            (from, before) = (page.through, after);
            past.execute_batch("COMMIT").unwrap();
            std::mem::swap(&mut past, &mut present);
        }
    }
}

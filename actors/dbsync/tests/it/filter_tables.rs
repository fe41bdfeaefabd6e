//! Which tables can be published, by which name and key.

use horos_dbsync::filter::{FilterSpec, KeyKind, LeftOutKind, MAX_PROBLEMS, MAX_TABLES, Part};
use rusqlite::types::Value;

use super::filter_world::{File, replica, rows, spec};

fn full(table: &str) -> FilterSpec {
    FilterSpec { full_tables: vec![table.to_owned()], ..FilterSpec::default() }
}

#[test]
fn what_is_no_ordinary_table_is_refused_with_the_reason() {
    let file = File::new(
        "CREATE TABLE t (id INTEGER PRIMARY KEY AUTOINCREMENT, x TEXT);
         INSERT INTO t (x) VALUES ('a'); CREATE INDEX ix ON t (x); ANALYZE;
         CREATE VIEW v AS SELECT x FROM t; CREATE VIEW broken AS SELECT y FROM nowhere;
         CREATE VIRTUAL TABLE words USING fts5 (x, content='t', content_rowid='id');
         CREATE VIRTUAL TABLE boxes USING rtree (id, a, b);
         CREATE TABLE _horos_log (id INTEGER PRIMARY KEY);
         CREATE TABLE shadowed (rowid, _rowid_, OID);",
    );
    for (table, reason) in [
        ("V", "view"),
        ("broken", "view"),
        ("words", "virtual table"),
        ("boxes", "virtual table"),
        ("words_data", "part of a virtual table"),
        ("boxes_node", "part of a virtual table"),
        ("sqlite_sequence", "SQLite's own"),
        ("SQLITE_STAT1", "SQLite's own"),
        ("sqlite_schema", "SQLite's own"),
        ("sqlite_master", ""),
        ("_HOROS_log", "Horos's own"),
        ("shadowed", "hide its rowid"),
        ("ix", "no such table"),
        ("", "no such table"),
        ("t\" --", "no such table"),
        ("main.t", "no such table"),
    ] {
        let problems = file.problems(&full(table));
        assert_eq!(problems.list.len(), 1, "{problems}");
        assert_eq!((problems.list[0].table.as_str(), &problems.list[0].part), (table, &Part::Table));
        assert!(problems.list[0].what.contains(reason), "{problems}");
    }
}

#[test]
fn a_table_whose_name_only_resembles_sqlites_is_ordinary_and_stays_private_unless_named() {
    let file = File::new(
        "CREATE TABLE sqlitesecrets (id INTEGER PRIMARY KEY, x TEXT); INSERT INTO sqlitesecrets VALUES (1, 'hidden');
         CREATE TABLE xhoros_log (id INTEGER PRIMARY KEY);",
    );
    let filter = file.load("{}");
    assert!(filter.tables().is_empty() && filter.schema().is_empty());
    let names: Vec<&str> = filter.left_out().iter().map(|it| it.name.as_str()).collect();
    assert_eq!(names, ["sqlitesecrets", "xhoros_log"]);
    assert!(filter.left_out().iter().all(|it| it.kind == LeftOutKind::Table));
    assert_eq!(file.load("full-tables: [sqlitesecrets, xhoros_log]").tables().len(), 2);
}

#[test]
fn tables_of_a_module_that_is_not_loaded_here_are_taken_for_its_shadow() {
    let file = File::new(
        "CREATE TABLE docs_content (id INTEGER PRIMARY KEY, x TEXT);
         PRAGMA writable_schema = ON;
         INSERT INTO sqlite_schema VALUES ('table', 'docs', 'docs', 0, 'CREATE VIRTUAL TABLE docs USING unheard_of (x)');
         PRAGMA writable_schema = RESET;",
    );
    let problems = file.problems(&full("Docs_Content"));
    assert!(problems.list[0].what.contains("part of a virtual table"), "{problems}");
}

#[test]
fn names_are_compared_as_sqlite_does_and_kept_as_the_database_spells_them() {
    let file = File::new(
        "CREATE TABLE \"Order \"\"Lines\"\"; --\" (\"The Id\" INTEGER PRIMARY KEY, \"Näme\" TEXT, \"select\" INT);
         INSERT INTO \"Order \"\"Lines\"\"; --\" VALUES (1, 'a', 2);",
    );
    let filter = file.load("partial-tables: {'ORDER \"lines\"; --': {columns: ['NäME', SELECT], where: '\"SELECT\" = 2'}}");
    let table = &filter.tables()[0];
    assert_eq!(table.name(), "Order \"Lines\"; --");
    assert_eq!(table.columns(), ["The Id", "Näme", "select"]);
    assert_eq!(rows(&replica(&file.connection, &filter), "SELECT * FROM \"Order \"\"Lines\"\"; --\"").len(), 1);
    // Only ASCII letters have two cases.
    let other = spec("partial-tables: {'ORDER \"lines\"; --': {columns: ['NÄME']}}");
    assert_eq!(file.problems(&other).list[0].fix, "did you mean \"Näme\"?");
}

#[test]
fn a_temporary_table_of_the_same_name_is_not_read() {
    let file = File::new("CREATE TABLE t (id INTEGER PRIMARY KEY, x TEXT); INSERT INTO t VALUES (1, 'a')");
    file.connection.execute_batch("CREATE TEMP TABLE t (id, y); INSERT INTO temp.t VALUES (9, 'b'); CREATE TEMP TABLE u (x)").unwrap();
    let filter = file.load("filtered-tables: {t: x = 'a'}");
    assert_eq!(rows(&file.connection, filter.select("t").unwrap()), [[Value::Integer(1), Value::Text("a".to_owned())]]);
    assert!(file.problems(&full("u")).list[0].what.contains("no such table"));
}

#[test]
fn every_problem_is_reported_at_once() {
    let file = File::new("CREATE TABLE orders (id INTEGER PRIMARY KEY, customer TEXT); CREATE TABLE notes (x TEXT)");
    let problems = file.problems(&spec(
        "full-tables: [ordres, notes, NOTES]
filtered-tables: {orders: 'custmer = 1'}
partial-tables:
  Orders: {columns: [id]}
  invoices: {columns: [id]}
",
    ));
    let text = problems.to_string();
    assert_eq!(problems.list.len(), 5, "{text}");
    for expected in [
        "table \"ordres\": there is no such table; did you mean \"orders\"?",
        "table \"NOTES\": the filter names it more than once",
        "table \"orders\", condition `custmer = 1`: no such column: custmer; did you mean \"customer\"?",
        "table \"Orders\": the filter names it more than once",
        "table \"invoices\": there is no such table; name a table of this database",
    ] {
        assert!(text.contains(expected), "{text}");
    }
    let problems = file.problems(&spec("partial-tables: {orders: {columns: [id, custommer, ID]}, notes: {columns: []}}"));
    let text = problems.to_string();
    for expected in [
        "table \"orders\", column \"custommer\": there is no such column; did you mean \"customer\"?",
        "table \"orders\", column \"ID\": it is kept twice",
        "table \"notes\": it keeps no column",
    ] {
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn a_spec_of_any_size_costs_a_bounded_report() {
    let file = File::new("CREATE TABLE t (x)");
    let many = |n: usize| FilterSpec { full_tables: (0..n).map(|i| format!("none{i}")).collect(), ..FilterSpec::default() };
    let problems = file.problems(&many(MAX_TABLES));
    assert_eq!((problems.list.len(), problems.left_off), (MAX_PROBLEMS, MAX_TABLES - MAX_PROBLEMS));
    assert!(file.problems(&many(MAX_TABLES + 1)).list[0].what.contains("more than 1000"));
}

#[test]
fn each_kind_of_key_tells_rows_apart_on_both_sides() {
    let file = File::new(
        "CREATE TABLE a (id INTEGER PRIMARY KEY, x);
         CREATE TABLE b (id TEXT PRIMARY KEY COLLATE NOCASE, x) WITHOUT ROWID;
         CREATE TABLE c (x, p TEXT, q INT, PRIMARY KEY (q DESC, p));
         CREATE TABLE d (x); CREATE TABLE e (rowid TEXT, x);
         CREATE TABLE f (id INTEGER PRIMARY KEY DESC, x);
         CREATE TABLE g (id TEXT COLLATE NOCASE, x, PRIMARY KEY (id COLLATE BINARY));
         INSERT INTO a VALUES (1, 10), (2, 20); INSERT INTO b VALUES ('A', 10), ('b', 20);
         INSERT INTO c VALUES (10, 'p', 1), (20, 'q', 1), (30, 'p', 2);
         INSERT INTO d (rowid, x) VALUES (7, 10), (9, 20); INSERT INTO e (_rowid_, rowid, x) VALUES (7, 'r', 10), (9, 'r', 20);
         INSERT INTO f VALUES (1, 10), (2, 20); INSERT INTO g VALUES ('a', 10), ('A', 20);",
    );
    let filter = file.load("full-tables: [a, b, c, d, e, f, g]");
    let fo = replica(&file.connection, &filter);
    let kinds: Vec<KeyKind> = filter.tables().iter().map(|table| table.key().kind).collect();
    use KeyKind::{Declared, Integer, Rowid};
    assert_eq!(kinds, [Integer, Declared, Declared, Rowid, Rowid, Declared, Declared]);
    assert_eq!(filter.table("e").unwrap().columns(), ["_rowid_", "rowid", "x"]);
    assert_eq!(filter.table("c").unwrap().key_positions(), [2, 1]);
    for table in filter.tables() {
        let all = rows(&file.connection, table.select());
        // The FO's own content, read by the same statement, is the same.
        assert_eq!(rows(&fo, table.select()), all, "{}", table.name());
        for row in &all {
            let key: Vec<&Value> = table.key_positions().into_iter().map(|i| &row[i]).collect();
            let mut statement = file.connection.prepare(table.select_by_key()).unwrap();
            let found: Vec<Value> = statement
                .query_map(rusqlite::params_from_iter(key), |found| found.get(found.as_ref().column_count() - 1))
                .unwrap()
                .collect::<rusqlite::Result<_>>()
                .unwrap();
            assert_eq!(found, row[row.len() - 1..], "{}: one row a key", table.name());
        }
    }
    assert!(fo.execute("INSERT INTO b VALUES ('a', 1)", []).is_err(), "a NOCASE key is a NOCASE key");
    fo.execute("INSERT INTO f VALUES ('not a number', 1)", []).unwrap();
}

#[test]
fn a_table_is_walked_in_steps_by_its_key() {
    let file = File::new("CREATE TABLE t (a TEXT, b INT, x, PRIMARY KEY (a DESC, b)) WITHOUT ROWID");
    for i in 0..100 {
        file.connection.execute("INSERT INTO t VALUES (?1, ?2, ?3)", (format!("k{}", i % 7), i, i)).unwrap();
    }
    let filter = file.load("filtered-tables: {t: x % 3 = 0}");
    let table = filter.table("t").unwrap();
    let all = rows(&file.connection, table.select());
    assert_eq!(all.len(), 34);
    let (mut walked, mut key) = (Vec::new(), (Value::Text(String::new()), Value::Integer(0)));
    loop {
        let mut statement = file.connection.prepare(table.select_after()).unwrap();
        let step: Vec<Vec<Value>> = statement
            .query_map((&key.0, &key.1, 5), |row| (0..3).map(|i| row.get(i)).collect())
            .unwrap()
            .collect::<rusqlite::Result<_>>()
            .unwrap();
        let Some(last) = step.last() else { break };
        key = (last[0].clone(), last[1].clone());
        walked.extend(step);
    }
    assert_eq!(walked, all);
}

#[test]
fn rows_are_found_by_key_through_an_index_and_walked_without_sorting() {
    let file = File::new(
        "CREATE TABLE a (id INTEGER PRIMARY KEY, x); CREATE TABLE b (id TEXT PRIMARY KEY COLLATE NOCASE, x);
         CREATE TABLE c (p TEXT, q INT, x, PRIMARY KEY (p, q)) WITHOUT ROWID; CREATE TABLE d (x);
         CREATE TABLE e (id TEXT COLLATE NOCASE, x, PRIMARY KEY (id COLLATE BINARY)) WITHOUT ROWID;",
    );
    let filter = file.load("filtered-tables: {a: x > 1, b: x > 1, c: x > 1, d: x > 1, e: x > 1}");
    for table in filter.tables() {
        for (sql, searches) in [(table.select(), false), (table.select_by_key(), true), (table.select_after(), true)] {
            let mut statement = file.connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
            let nulls = vec![Value::Null; statement.parameter_count()];
            let plan: Vec<String> =
                statement.query_map(rusqlite::params_from_iter(nulls), |row| row.get(3)).unwrap().collect::<rusqlite::Result<_>>().unwrap();
            assert!(!plan.iter().any(|step| step.contains("TEMP B-TREE")), "{sql}: {plan:?}");
            assert!(!searches || plan.iter().all(|step| step.starts_with("SEARCH")), "{sql}: {plan:?}");
        }
    }
}

#[test]
fn a_row_whose_key_is_null_is_not_published() {
    let file = File::new(
        "CREATE TABLE t (id TEXT PRIMARY KEY, x); INSERT INTO t VALUES ('a', 1), (NULL, 2), (NULL, 3);
         CREATE TABLE u (id TEXT NOT NULL PRIMARY KEY, x);",
    );
    let filter = file.load("full-tables: [t, u]");
    assert_eq!(rows(&file.connection, filter.select("t").unwrap()).len(), 1);
    assert!(!filter.select("u").unwrap().contains("NULL"));
}

#[test]
fn a_key_in_a_collation_of_the_program_is_refused() {
    // Made by a program that has the collation, read by one that has not.
    let file = File::new(
        "CREATE TABLE t (id TEXT PRIMARY KEY COLLATE NOCASE, x);
         CREATE TABLE u (id INTEGER PRIMARY KEY, x TEXT COLLATE NOCASE);
         CREATE INDEX ux ON u (x);
         PRAGMA writable_schema = ON; UPDATE sqlite_schema SET sql = replace(sql, 'NOCASE', 'mine'); PRAGMA writable_schema = RESET;",
    );
    let problems = file.problems(&full("t"));
    assert_eq!(problems.list[0].part, Part::Column("id".to_owned()));
    assert!(problems.list[0].what.contains("\"mine\""), "{problems}");
    // Elsewhere it is left out, with the index that needs it.
    let filter = file.load("full-tables: [u]");
    assert!(!filter.schema().concat().contains("mine"));
    let left: Vec<_> = filter.left_out().iter().filter(|it| it.table.as_deref() == Some("u")).map(|it| it.kind).collect();
    assert_eq!(left, [LeftOutKind::Index, LeftOutKind::Collation]);
    let sorted = spec("filtered-tables: {u: x > 'a'}");
    assert!(file.problems(&sorted).list[0].what.contains("mine"));
}

#[test]
fn the_fingerprint_changes_with_what_is_published_and_with_nothing_else() {
    let file = File::new("CREATE TABLE t (id INTEGER PRIMARY KEY, a TEXT, b TEXT); CREATE TABLE private (x)");
    let of = |yaml: &str| file.load(yaml).fingerprint();
    let first = of("full-tables: [t]");
    assert_eq!(first, of("full-tables: [T]"));
    assert_eq!(first.to_string().len(), 64);
    assert_ne!(first, of("filtered-tables: {t: a = 'x'}"));
    assert_ne!(of("filtered-tables: {t: a = 'x'}"), of("filtered-tables: {t: a = 'y'}"));
    assert_ne!(first, of("partial-tables: {t: {columns: [a]}}"));
    file.connection
        .execute_batch("ALTER TABLE private ADD COLUMN y; CREATE INDEX p ON private (x); INSERT INTO t VALUES (1, 'a', 'b')")
        .unwrap();
    assert_eq!(first, of("full-tables: [t]"));
    file.connection.execute_batch("CREATE INDEX i ON t (a)").unwrap();
    let indexed = of("full-tables: [t]");
    assert_ne!(first, indexed);
    file.connection.execute_batch("ALTER TABLE t ADD COLUMN c").unwrap();
    assert_ne!(indexed, of("full-tables: [t]"));
}

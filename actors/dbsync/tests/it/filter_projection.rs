//! What an FO has of a table of which some columns are not published, for every kind of constraint, and that nothing private is
//! in it.

use horos_dbsync::filter::LeftOutKind;
use rusqlite::types::Value;

use super::filter_world::{File, holds, replica, rows};

fn text(value: &str) -> Value {
    Value::Text(value.to_owned())
}

#[test]
fn a_unique_not_null_column_is_blanked_without_a_conflict() {
    let file = File::new(
        "CREATE TABLE users (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE COLLATE NOCASE,
            email TEXT NOT NULL UNIQUE, phone TEXT UNIQUE, age INT NOT NULL, score REAL NOT NULL, photo BLOB NOT NULL,
            any NOT NULL, price DECIMAL(10, 2) NOT NULL, CHECK (email LIKE '%@%'), CHECK (age > 17));
         INSERT INTO users VALUES (1, 'ann', 'a@secret', '555-1', 30, 1.5, x'01', 'x', 9), (2, 'bob', 'b@secret', NULL, 40, 2.5, x'02', 'y', 8);",
    );
    let filter = file.load("partial-tables: {users: {columns: [name]}}");
    let table = filter.table("users").unwrap();
    assert_eq!(table.columns(), ["id", "name"]);
    assert_eq!(table.blanked(), ["email", "phone", "age", "score", "photo", "any", "price"]);
    let fo = replica(&file.connection, &filter);
    let blank = [text(""), Value::Null, Value::Integer(0), Value::Real(0.0), Value::Blob(Vec::new()), text(""), Value::Integer(0)];
    let expected = |id, name: &str| [vec![Value::Integer(id), text(name)], blank.to_vec()].concat();
    // A program written for the BO's columns reads the FO.
    let read = "SELECT id, name, email, phone, age, score, photo, \"any\", price FROM users ORDER BY id";
    assert_eq!(rows(&fo, read), [expected(1, "ann"), expected(2, "bob")]);
    assert_eq!(rows(&fo, "SELECT id FROM users WHERE name = 'ANN'"), [[Value::Integer(1)]], "collations are kept");
    for private in ["secret", "555-1", "%@%", "AUTOINCREMENT", "sqlite_sequence", "UNIQUE"] {
        assert!(!holds(&fo, private), "{private}");
    }
    let indexes: Vec<&str> = filter.left_out().iter().filter(|it| it.kind == LeftOutKind::Index).map(|it| it.reason.as_str()).collect();
    assert_eq!(indexes, ["column \"email\" is not published", "column \"phone\" is not published"]);
}

#[test]
fn strict_tables_stay_strict() {
    let file = File::new(
        "CREATE TABLE s (id TEXT PRIMARY KEY, a ANY, b BLOB NOT NULL, c ANY NOT NULL, d REAL NOT NULL, e INT NOT NULL, f INTEGER) STRICT;
         INSERT INTO s VALUES ('k', '007', x'ff', 1, 1.5, 3, 4);",
    );
    let filter = file.load("partial-tables: {s: {columns: [a]}}");
    let fo = replica(&file.connection, &filter);
    let expected = [text("k"), text("007"), Value::Blob(Vec::new()), text(""), Value::Real(0.0), Value::Integer(0), Value::Null];
    assert_eq!(rows(&fo, "SELECT * FROM s"), [expected]);
    assert!(fo.execute("INSERT INTO s (id, f) VALUES ('l', 'no number')", []).is_err());
    let whole = replica(&file.connection, &file.load("full-tables: [s]"));
    assert_eq!(rows(&whole, "SELECT * FROM s"), rows(&file.connection, "SELECT * FROM s"));
}

#[test]
fn values_keep_their_types_whatever_the_column_was_declared_as() {
    let file = File::new(
        "CREATE TABLE t (id INTEGER PRIMARY KEY, a, b TEXT, c VARCHAR(20), d DOUBLE PRECISION, e DATETIME, f BLOB, g \"strange type\",
            h CHARINT, i UNSIGNED BIG INT, j STRING /* secret */ (3), k \"FLOATING POINT\", l 'se''cret');",
    );
    let values = [text("12"), text("1e3"), text("x"), Value::Integer(7), Value::Real(7.5), Value::Real(1e300), Value::Blob(b"1".to_vec())];
    for value in values {
        file.connection.execute("INSERT INTO t VALUES (NULL, ?1, ?1, ?1, ?1, ?1, ?1, ?1, ?1, ?1, ?1, ?1, ?1)", [value]).unwrap();
    }
    let filter = file.load("full-tables: [t]");
    let fo = replica(&file.connection, &filter);
    let typed = "SELECT *, typeof(a), typeof(b), typeof(c), typeof(d), typeof(e), typeof(f), typeof(g), typeof(h), typeof(i),
        typeof(j), typeof(k), typeof(l), b < 5, d < 'x', g = '12', j = '12' FROM t ORDER BY id";
    assert_eq!(rows(&fo, typed), rows(&file.connection, typed));
    assert!(!holds(&fo, "secret") && !holds(&fo, "cret"));
    assert!(holds(&fo, "VARCHAR(20)") && holds(&fo, "DOUBLE PRECISION"), "{:?}", filter.schema());
}

#[test]
fn generated_columns_are_published_as_their_values_only() {
    let file = File::new(
        "CREATE TABLE t (id INTEGER PRIMARY KEY, salary INT, band TEXT AS (iif(salary > 31337, 'high', 'low')) STORED,
            doubled INT GENERATED ALWAYS AS (salary * 2) VIRTUAL NOT NULL);
         INSERT INTO t (salary) VALUES (50000), (10);",
    );
    let filter = file.load("partial-tables: {t: {columns: [band], where: doubled > 20}}");
    let fo = replica(&file.connection, &filter);
    assert_eq!(rows(&fo, "SELECT * FROM t"), [[Value::Integer(1), Value::Null, text("high"), Value::Integer(0)]]);
    assert!(!holds(&fo, "31337") && !holds(&fo, "low"));
    let whole = replica(&file.connection, &file.load("full-tables: [t]"));
    assert_eq!(rows(&whole, "SELECT * FROM t"), rows(&file.connection, "SELECT * FROM t"));
    assert!(!holds(&whole, "31337"));
}

#[test]
fn only_indexes_over_published_columns_go_out_and_none_is_unique() {
    let file = File::new(
        "CREATE TABLE t (id INTEGER PRIMARY KEY, a TEXT, b TEXT, private TEXT, UNIQUE (a, b), UNIQUE (b, private));
         CREATE INDEX plain ON t (a COLLATE NOCASE DESC, b); CREATE UNIQUE INDEX sole ON t (b);
         CREATE INDEX both ON t (a, private); CREATE INDEX expr ON t (upper(private)); CREATE INDEX harmless ON t (lower(a));
         CREATE INDEX part ON t (a) WHERE private = 'topsecret'; CREATE INDEX on_rowid ON t (a, id);",
    );
    let filter = file.load("partial-tables: {t: {columns: [a, b]}}");
    let fo = replica(&file.connection, &filter);
    let listed = rows(&fo, "SELECT name FROM sqlite_schema WHERE type = 'index' ORDER BY 1");
    let names: Vec<&Value> = listed.iter().map(|row| &row[0]).collect();
    assert_eq!(names.len(), 4, "{names:?}");
    assert!(["plain", "sole", "on_rowid"].iter().all(|name| names.contains(&&text(name))), "{names:?}");
    assert!(!holds(&fo, "UNIQUE") && !holds(&fo, "topsecret") && !holds(&fo, "upper"));
    let inside = "SELECT name, \"desc\", coll FROM pragma_index_xinfo('plain') WHERE key";
    assert_eq!(rows(&fo, inside), rows(&file.connection, inside));
    let left: Vec<&str> = filter.left_out().iter().filter(|it| it.kind == LeftOutKind::Index).map(|it| it.name.as_str()).collect();
    assert_eq!(left, ["both", "expr", "harmless", "part", "sqlite_autoindex_t_2"]);
    // Rows that exchange what the BO says is unique arrive one after the other.
    fo.execute_batch(
        "INSERT INTO t (id, b) VALUES (1, 'x'), (2, 'y'); UPDATE t SET b = 'y' WHERE id = 1; UPDATE t SET b = 'x' WHERE id = 2",
    )
    .unwrap();
}

#[test]
fn nothing_that_stands_in_the_schema_text_travels() {
    let file = File::new(
        "PRAGMA foreign_keys = OFF;
         CREATE TABLE private (id INTEGER PRIMARY KEY, note TEXT DEFAULT 'S3CRET default of a private table');
         CREATE TABLE t ( -- S3CRET comment
            id INTEGER CONSTRAINT \"S3CRET constraint\" PRIMARY KEY, /* S3CRET comment */
            a TEXT DEFAULT 'S3CRET default' CHECK (a <> 'S3CRET check'),
            b TEXT DEFAULT ('S3CRET' || 'x') REFERENCES private (\"S3CRET parent\") ON DELETE SET DEFAULT,
            c TEXT AS (a || 'S3CRET generated'),
            CONSTRAINT \"S3CRET name\" CHECK (length(b) < 99 OR b = 'S3CRET check 2'));
         CREATE INDEX i ON t (a) WHERE a <> 'S3CRET where'; CREATE INDEX j ON t (a || 'S3CRET expression');
         CREATE VIEW v AS SELECT 'S3CRET view', note FROM private;
         CREATE TRIGGER g AFTER INSERT ON t BEGIN INSERT INTO private (note) VALUES ('S3CRET trigger'); END;
         INSERT INTO private VALUES (1, 'S3CRET value'); INSERT INTO t (id, a, b) VALUES (1, 'S3CRET a', 'open'), (2, 'S3CRET row', 'x');
         DELETE FROM private WHERE note = 'S3CRET trigger';",
    );
    let filter = file.load("partial-tables: {t: {columns: [b], where: a <> 'S3CRET row'}}");
    let fo = replica(&file.connection, &filter);
    assert_eq!(rows(&fo, "SELECT * FROM t"), [[Value::Integer(1), Value::Null, text("open"), Value::Null]]);
    assert!(!holds(&fo, "S3CRET") && !holds(&fo, "private"));
    let left: Vec<(LeftOutKind, &str)> = filter.left_out().iter().map(|it| (it.kind, it.name.as_str())).collect();
    use LeftOutKind::{Column, Default, ForeignKey, Index, Table, Trigger, View};
    assert_eq!(
        left,
        [
            (Index, "i"),
            (Index, "j"),
            (Column, "a"),
            (Default, "a"),
            (Default, "b"),
            (Column, "c"),
            (ForeignKey, "private"),
            (Trigger, "g"),
            (Table, "private"),
            (View, "v")
        ]
    );
}

#[test]
fn a_table_that_this_program_cannot_read_is_found_at_loading() {
    let file = File::new("");
    let flags = rusqlite::functions::FunctionFlags::SQLITE_DETERMINISTIC | rusqlite::functions::FunctionFlags::SQLITE_UTF8;
    file.connection.create_scalar_function("own", 1, flags, |it| it.get::<i64>(0)).unwrap();
    file.connection.execute_batch("CREATE TABLE t (id INTEGER PRIMARY KEY, x INT, y AS (own(x)))").unwrap();
    let plain = rusqlite::Connection::open(file.directory.path().join("bo.db")).unwrap();
    let file = File { connection: plain, ..file };
    let problems = file.problems(&super::filter_world::spec("full-tables: [t]"));
    assert!(problems.list[0].what.contains("own"), "{problems}");
    file.load("partial-tables: {t: {columns: [x]}}");
}

//! Which conditions decide what is published, and what they decide.

use std::collections::BTreeMap;

use horos_dbsync::filter::{FilterSpec, Part};
use rusqlite::types::Value;

use super::filter_world::{File, rows};

const SCHEMA: &str = "
    CREATE TABLE docs (id INTEGER PRIMARY KEY, visibility TEXT, n INTEGER, \"odd name\" TEXT COLLATE NOCASE, body BLOB);
    CREATE TABLE secrets (id TEXT PRIMARY KEY, v TEXT);
    INSERT INTO secrets VALUES ('a', 'public'), ('b', 'hidden');
    INSERT INTO docs VALUES
        (1, 'public', 1, 'Alpha', x'00'), (2, 'private', 2, 'beta', NULL), (3, NULL, 3, NULL, 'text'),
        (4, 'public', NULL, 'alpha', x''), (5, 'p%', 5, '', 1.5), (6, 'PUBLIC ', -1, 'it''s', '{\"a\":1}'),
        (7, 'please update me; DROP TABLE x -- /* ) (', 7, 'x', 'y');";

fn filtered(table: &str, condition: &str) -> FilterSpec {
    FilterSpec { filtered_tables: BTreeMap::from([(table.to_owned(), condition.to_owned())]), ..FilterSpec::default() }
}

/// Conditions that must not load, with a word of the reason.
const HOSTILE: &[(&str, &str)] = &[
    // Parentheses that close what they did not open: the whole table was published.
    ("visibility = 'public') AND (1=0", "one expression"),
    ("1) OR (1", "one expression"),
    ("1) IS TRUE OR (1", "one expression"),
    ("visibility='public') OR ('' = ''", "one expression"),
    ("1)) UNION ALL SELECT 1 FROM docs WHERE ((1", ""),
    ("(1", ""),
    ("1)", ""),
    (")(", ""),
    // What may follow a condition.
    ("1 LIMIT 1", ""),
    ("1 ORDER BY id", ""),
    ("1 GROUP BY id", ""),
    ("1 HAVING 1", ""),
    ("1 RETURNING id", ""),
    ("1 WINDOW w AS ()", ""),
    ("1 UNION SELECT 1", ""),
    ("1 UNION(SELECT 1)", ""),
    ("1\rUNION\rSELECT 1", ""),
    ("1 EXCEPT SELECT 1", ""),
    ("1, 2", ""),
    ("1 AS x", ""),
    ("WHERE 1", ""),
    ("SELECT 1", ""),
    ("*", ""),
    ("docs.*", ""),
    ("NOT", ""),
    ("id = = 1", ""),
    // Other statements and comments.
    ("1;", ""),
    ("1; DROP TABLE docs", ""),
    ("1); DROP TABLE docs; SELECT (1", ""),
    (";", ""),
    ("1 -- all of it", "comment"),
    ("1 -- all\n", "comment"),
    ("1 /* all */", "comment"),
    ("/* */ 1", "comment"),
    ("1 /*", "comment"),
    ("--", "comment"),
    // Literals and names that do not end.
    ("'abc", ""),
    ("\"abc", ""),
    ("[abc", ""),
    ("`abc", ""),
    ("x'0", ""),
    // Other rows and tables.
    ("(SELECT 1)", "beyond its own row"),
    ("EXISTS (SELECT 1 FROM secrets)", "beyond its own row"),
    ("id IN (SELECT v FROM secrets)", "beyond its own row"),
    ("id IN secrets", "beyond its own row"),
    ("id IN main.secrets", ""),
    ("id IN sqlite_schema", ""),
    ("id IN pragma_table_list", ""),
    ("id IN json_each('[1]')", ""),
    ("n IN (VALUES (1))", "beyond its own row"),
    ("n AND (SELECT v FROM secrets)", "beyond its own row"),
    ("CASE WHEN 1 THEN 1 ELSE (SELECT 1) END", ""),
    ("(WITH RECURSIVE r(x) AS (SELECT 1 UNION ALL SELECT x FROM r) SELECT x FROM r)", ""),
    ("secrets.v = 'public'", "no such column"),
    ("main.secrets.v = 'public'", "no such column"),
    ("temp.docs.id = 1", "no such column"),
    ("sqlite_schema.sql", "no such column"),
    ("NEW.id = 1", "no such column"),
    ("OLD.id = 1", "no such column"),
    ("excluded.id = 1", "no such column"),
    ("visiblity = 'public'", "no such column"),
    ("visibility = \"public\"", "no such column"),
    // Answers that differ from one time to the next.
    ("random() > 0", "random"),
    ("randomblob(4) > x''", "randomblob"),
    ("changes() = 0", "changes"),
    ("total_changes() = 0", "total_changes"),
    ("last_insert_rowid() = 1", "last_insert_rowid"),
    ("sqlite_version() > '3'", "sqlite_version"),
    ("sqlite_compileoption_used('X')", "sqlite_compileoption_used"),
    ("date('now') > '2020-01-01'", "present moment"),
    ("DATE(visibility) > '2020-01-01'", "present moment"),
    ("datetime(n, 'unixepoch', 'localtime') > '2020'", "present moment"),
    ("strftime('%s', 'now') > n", "present moment"),
    ("unixepoch() > n", "present moment"),
    ("julianday(visibility) > 0", "present moment"),
    ("current_timestamp > visibility", "present moment"),
    ("CURRENT_DATE > visibility", "present moment"),
    ("CURRENT_TIME > visibility", "present moment"),
    ("n > 5 OR n = 0 AND random()", "random"),
    // Failures for some rows.
    ("abs(n) = 1", "fails"),
    ("printf('%*d', n, 1) = ''", "fails"),
    ("format('%s', n) = ''", "fails"),
    ("replace(visibility, 'a', body) = ''", "fails"),
    ("zeroblob(n) = x''", "fails"),
    ("json_extract(body, '$.a') = 1", "no JSON"),
    ("body -> 'a' = 1", "no JSON"),
    ("body ->> 'a' = 1", "no JSON"),
    ("json_array_length(body) = 1", "no JSON"),
    // Other powers.
    ("load_extension('/tmp/x')", "load_extension"),
    ("readfile('/etc/passwd') IS NULL", "readfile"),
    ("writefile('/tmp/x', body) IS NULL", "writefile"),
    ("edit(body) IS NULL", "edit"),
    ("eval('SELECT 1')", "eval"),
    ("fts3_tokenizer('x') IS NULL", "fts3_tokenizer"),
    ("body MATCH 'x'", "MATCH"),
    ("body REGEXP 'x'", "REGEXP"),
    ("RAISE(IGNORE)", "RAISE"),
    ("n COLLATE secret = 1", "collation"),
    ("no_such_function(n)", "no_such_function"),
    // Other rows by another door.
    ("count(*) > 1", ""),
    ("sum(n) > 1", ""),
    ("max(n) = n", ""),
    ("group_concat(visibility) = ''", ""),
    ("row_number() OVER (ORDER BY id) = 1", ""),
    ("lag(n) OVER () IS NULL", ""),
    // Parameters.
    ("id = ?", "parameter"),
    ("id = ?7", "parameter"),
    ("id = :a", "parameter"),
    ("id = @a", "parameter"),
    ("id = $a", "parameter"),
    // Not a truth value.
    ("(1, 2)", "row value"),
    ("(id, n)", "row value"),
    ("(id, n) = 1", "row value"),
    // Nothing, and too much.
    ("", "empty"),
    (" \t\n", "empty"),
    ("1\0) OR 1", "NUL"),
];

#[test]
fn no_hostile_condition_loads_and_each_is_told_why() {
    let file = File::new(SCHEMA);
    let mut unexplained = Vec::new();
    for (condition, reason) in HOSTILE {
        let problems = file.problems(&filtered("docs", condition));
        assert_eq!(problems.list.len(), 1, "{condition}: {problems}");
        let problem = &problems.list[0];
        assert_eq!((problem.table.as_str(), &problem.part), ("docs", &Part::Condition((*condition).to_owned())));
        if !problem.what.to_lowercase().contains(&reason.to_lowercase()) {
            unexplained.push(problem.to_string());
        }
        assert!(!problem.fix.is_empty());
    }
    assert!(unexplained.is_empty(), "{unexplained:#?}");
    // None of them has left anything behind.
    assert_eq!(rows(&file.connection, "SELECT count(*) FROM docs"), [[Value::Integer(7)]]);
    assert_eq!(rows(&file.connection, "SELECT count(*) FROM sqlite_schema"), [[Value::Integer(3)]]);
}

#[test]
fn what_sqlites_parser_drops_is_not_run() {
    let file = File::new(SCHEMA);
    for (dropped, all) in [("0 AND (SELECT v FROM secrets)", false), ("NOT ((SELECT v FROM secrets) IN ())", true)] {
        let filter = file.load_spec(&filtered("docs", dropped));
        let published = rows(&file.connection, filter.select("docs").unwrap());
        assert_eq!(published.len(), if all { 7 } else { 0 }, "{dropped}");
        let plan = rows(&file.connection, &format!("EXPLAIN {}", filter.select("docs").unwrap()));
        let ran = |word: &str| plan.iter().flatten().any(|it| matches!(it, Value::Text(text) if text.contains(word)));
        assert!(!ran("secrets"), "{plan:?}");
    }
}

#[test]
fn deep_and_long_conditions_are_refused_before_they_cost_anything() {
    let file = File::new(SCHEMA);
    let many = |unit: &str, times: usize| unit.repeat(times);
    for condition in [
        format!("{}1{}", many("(", 3_000), many(")", 3_000)),
        format!("{}1", many("NOT ", 300)),
        format!("1{}", many(" OR 1", 300)),
        format!("1{}", many(" + 1", 250)),
        format!("n IN ({}0)", many("1234,", 5_000)),
        format!("visibility = '{}'", many("x", 9_000)),
    ] {
        assert_eq!(file.problems(&filtered("docs", &condition)).list.len(), 1, "{}", &condition[..40]);
    }
}

/// Conditions that must load. What they publish is what a plain `WHERE` finds.
const ACCEPTED: &[&str] = &[
    "visibility = 'public'",
    "visibility <> 'private'",
    "NOT (visibility = 'private')",
    "NOT visibility = 'private' OR n > 2",
    "visibility IS NULL",
    "visibility IS NOT DISTINCT FROM 'public'",
    "visibility = 'please update me; DROP TABLE x -- /* ) ('",
    "visibility LIKE '%select%' OR visibility LIKE '%update%'",
    "visibility LIKE 'p\\%' ESCAPE '\\'",
    "visibility GLOB 'p*'",
    "docs.visibility = 'public'",
    "main.docs.visibility = 'public'",
    "\"visibility\" = 'public'",
    "[odd name] = 'ALPHA'",
    "`odd name` IN ('alpha', 'it''s')",
    "n BETWEEN 1 AND 3",
    "n IN (1, 2, 3)",
    "n IN ()",
    "n NOT IN (1, NULL)",
    "(id, n) = (1, 1)",
    "(id, n) > (2, 0)",
    "n",
    "n % 2",
    "n & 1 OR n << 2 > 8 OR ~n = 0",
    "visibility",
    "body = x'00'",
    "typeof(body) = 'blob' AND length(body) = 0",
    "CAST(n AS TEXT) = '1'",
    "CASE visibility WHEN 'public' THEN 1 WHEN 'private' THEN NULL ELSE 0 END",
    "lower(trim(visibility)) = 'public'",
    "coalesce(visibility, 'public') = 'public'",
    "ifnull(n, 0) = 0 OR iif(n > 3, 1, NULL)",
    "max(n, 2) = 2 AND min(n, 2) = 1",
    "visibility || '' COLLATE NOCASE = 'public '",
    "substr(visibility, 1, 1) = 'p' AND instr(visibility, 'u')",
    "likely(n = 1) OR unlikely(n = 2) OR likelihood(n = 3, 0.5)",
    "rowid > 2",
    "_rowid_ = 1 OR oid = 2 OR docs.rowid = 3",
    "1",
    "0",
    "NULL",
    "NOT NULL",
    "1 = 1 OR 1/0",
    "9223372036854775807 + 1 > 0 AND n > -9223372036854775808",
    "TRUE AND n IS NOT FALSE",
    "'select' = 'select' AND 'union' <> 'pragma' AND '--' <> '/*'",
    "((((n))))",
    "\n n\n=\n1\n",
];

#[test]
fn what_is_true_is_published_and_null_is_not() {
    let file = File::new(SCHEMA);
    for condition in ACCEPTED {
        let filter = file.load_spec(&filtered("docs", condition));
        let published = rows(&file.connection, filter.select("docs").unwrap());
        let plain = rows(&file.connection, &format!("SELECT * FROM docs WHERE {condition} ORDER BY id"));
        assert_eq!(published, plain, "{condition}");
        let by_key = filter.select_by_key("DOCS").unwrap();
        for id in 1..=7 {
            let found = file.connection.prepare(by_key).unwrap().exists([id]).unwrap();
            assert_eq!(found, published.iter().any(|row| row[0] == Value::Integer(id)), "{condition}: row {id}");
        }
    }
    let published = |condition: &str| rows(&file.connection, file.load_spec(&filtered("docs", condition)).select("docs").unwrap()).len();
    assert_eq!(published("visibility <> 'private'"), 5, "the row without a visibility stays");
    assert_eq!(published("NULL"), 0);
}

#[test]
fn a_condition_that_loads_fails_for_no_row() {
    let file = File::new(SCHEMA);
    let hostile = [
        Value::Null,
        Value::Integer(i64::MIN),
        Value::Integer(i64::MAX),
        Value::Real(f64::INFINITY),
        Value::Real(-0.0),
        Value::Text("now".to_owned()),
        Value::Text("{\"a\":".to_owned()),
        Value::Text("%_\u{0}\u{10ffff}".to_owned()),
        Value::Text("x".repeat(60_000)),
        Value::Blob(vec![0xff; 300]),
        Value::Blob(Vec::new()),
    ];
    for (i, value) in hostile.iter().enumerate() {
        let id = 100 + i64::try_from(i).unwrap();
        let sql = "INSERT INTO docs VALUES (?1, ?2, ?2, ?2, ?2)";
        file.connection.execute(sql, rusqlite::params![id, value]).unwrap();
    }
    for condition in ACCEPTED {
        let filter = file.load_spec(&filtered("docs", condition));
        let mut statement = file.connection.prepare(filter.select("docs").unwrap()).unwrap();
        let mut found = statement.query([]).unwrap();
        while found.next().unwrap_or_else(|error| panic!("{condition}: {error}")).is_some() {}
    }
}

#[test]
fn a_rowid_that_vacuum_renumbers_decides_nothing() {
    let file = File::new("CREATE TABLE a (x); CREATE TABLE b (x TEXT PRIMARY KEY); CREATE TABLE c (rowid TEXT, x TEXT PRIMARY KEY)");
    for table in ["a", "b"] {
        assert!(file.problems(&filtered(table, "rowid > 5")).list[0].what.contains("VACUUM"));
    }
    // Here it is a column as any other.
    file.load_spec(&filtered("c", "rowid > 5"));
}

#[test]
fn a_misspelt_column_is_told_the_nearest_name() {
    let file = File::new(SCHEMA);
    for condition in ["visiblity = 1", "docs.visiblity = 1", "\"visiblity\" = 1"] {
        let problems = file.problems(&filtered("docs", condition));
        assert_eq!(problems.list[0].fix, "did you mean \"visibility\"?", "{condition}: {problems}");
    }
}

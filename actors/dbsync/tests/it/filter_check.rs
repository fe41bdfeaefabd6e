//! How a filter is written, and the operator's dry run.

use horos_dbsync::filter::{CheckError, FilterSpec, PartialTable, check};

use super::filter_world::{File, spec};

#[test]
fn the_three_forms_are_read_in_our_spelling_and_in_gos() {
    let expected = FilterSpec {
        full_tables: vec!["a".to_owned()],
        filtered_tables: [("b".to_owned(), "x = 1".to_owned())].into(),
        partial_tables: [
            ("c".to_owned(), PartialTable { columns: vec!["id".to_owned()], condition: Some("y".to_owned()) }),
            ("d".to_owned(), PartialTable { columns: vec!["id".to_owned()], condition: None }),
        ]
        .into(),
    };
    let ours = "full-tables: [a]\nfiltered-tables: {b: x = 1}\npartial-tables:\n  c: {columns: [id], where: y}\n  d:\n    columns: [id]\n";
    assert_eq!(spec(ours), expected);
    let gos = r#"{"FullTables":["a"],"FilteredTables":{"b":"x = 1"},"PartialTables":{"c":{"Columns":["id"],"Where":"y"},"d":{"Columns":["id"],"Where":""}}}"#;
    assert_eq!(serde_json::from_str::<FilterSpec>(gos).unwrap(), expected);
    let empty = r#"{"FullTables":null,"FilteredTables":null,"PartialTables":null}"#;
    assert_eq!(serde_json::from_str::<FilterSpec>(empty).unwrap(), FilterSpec::default());
    let written = serde_json::to_string(&expected).unwrap();
    assert_eq!(serde_json::from_str::<FilterSpec>(&written).unwrap(), expected);
}

#[test]
fn what_is_misspelt_or_said_twice_is_not_read() {
    for wrong in [
        r#"{"full-table": ["a"]}"#,
        r#"{"partial-tables": {"a": {"column": ["x"]}}}"#,
        r#"{"partial-tables": {"a": {"columns": ["x"], "were": "1"}}}"#,
        r#"{"filtered-tables": {"a": "x = 1", "a": "1"}}"#,
        r#"{"full-tables": ["a"], "FullTables": ["b"]}"#,
        r#"{"filtered-tables": {"a": null}}"#,
        r#"{"filtered-tables": ["a"]}"#,
    ] {
        assert!(serde_json::from_str::<FilterSpec>(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn the_dry_run_counts_what_goes_out_and_says_what_does_not() {
    let file = File::new(
        "CREATE TABLE t (id TEXT PRIMARY KEY, a TEXT, b TEXT); CREATE TABLE private (x);
         INSERT INTO t VALUES ('1', 'x', 's'), ('2', 'y', 's'), ('3', NULL, 's'), (NULL, 'x', 's');",
    );
    let path = file.directory.path().join("bo.db");
    let report = check(&path, &spec("partial-tables: {t: {columns: [a], where: a = 'x'}}")).unwrap();
    let json = serde_json::to_value(&report).unwrap();
    let table = &json["tables"][0];
    assert_eq!((&table["rows"], &table["published"], &table["null_keys"]), (&4.into(), &1.into(), &1.into()));
    assert_eq!(table["columns"], serde_json::json!(["id", "a"]));
    assert_eq!(table["blanked"], serde_json::json!(["b"]));
    assert_eq!(table["key"]["kind"], "declared");
    assert_eq!(
        json["left_out"][1],
        serde_json::json!({"kind": "table", "name": "private", "table": null, "reason": "the filter does not name it"})
    );
    assert_eq!(json["fingerprint"].as_str().unwrap().len(), 64);

    assert!(matches!(check(&path, &spec("full-tables: [u]")), Err(CheckError::Problems(_))));
    assert!(matches!(check(&file.directory.path().join("none.db"), &spec("{}")), Err(CheckError::Open(_))));
    std::fs::write(file.directory.path().join("text.db"), "not a database, but long enough to look at it".repeat(20)).unwrap();
    let error = check(&file.directory.path().join("text.db"), &spec("{}")).unwrap_err();
    assert!(matches!(error, CheckError::Open(_) | CheckError::Database(_)), "{error}");
}

#[test]
fn loading_leaves_the_callers_transaction_as_it_was() {
    let file = File::new("CREATE TABLE t (id INTEGER PRIMARY KEY)");
    file.load("full-tables: [t]");
    assert!(file.connection.is_autocommit());
    file.connection.execute_batch("BEGIN IMMEDIATE; CREATE TABLE u (id INTEGER PRIMARY KEY)").unwrap();
    file.load("full-tables: [t, u]");
    assert!(!file.connection.is_autocommit());
    file.connection.execute_batch("ROLLBACK").unwrap();
    file.problems(&spec("full-tables: [u]"));
    assert!(file.connection.is_autocommit());
}

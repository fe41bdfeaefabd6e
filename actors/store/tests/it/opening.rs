use std::{fs, os::unix::fs::PermissionsExt};

use horos_store::{
    Kind,
    open::{Access, Check, Durability, OpenError, Options, open},
};

fn pragma(connection: &horos_store::rusqlite::Connection, name: &str) -> i64 {
    connection.pragma_query_value(None, name, |row| row.get(0)).unwrap()
}

#[test]
fn every_setting_is_taken_and_files_are_private() {
    let directory = tempfile::tempdir().unwrap();
    // Names that a connection string would trip over.
    let path = directory.path().join("a/b/file:x?mode=memory&y=%20#z.db");
    let options = Options { application_id: Some(0xf00d_cafe), ..Options::new(&path, Access::Owner) };
    let database = open(&options).unwrap();
    database.execute_batch("CREATE TABLE t (x)").unwrap();
    for (name, value) in [
        ("synchronous", 2),
        ("foreign_keys", 1),
        ("cell_size_check", 1),
        ("trusted_schema", 0),
        ("auto_vacuum", 2),
        ("wal_autocheckpoint", 0),
        ("cache_size", -16000),
    ] {
        assert_eq!(pragma(&database, name), value, "{name}");
    }
    let mode = |p: &std::path::Path| fs::metadata(p).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o600);
    assert_eq!(mode(path.parent().unwrap()), 0o700);
    assert_eq!(mode(path.parent().unwrap().parent().unwrap()), 0o700);
    let wal = fs::read_dir(path.parent().unwrap()).unwrap().map(|e| e.unwrap().path()).find(|p| p.to_string_lossy().ends_with("-wal"));
    assert_eq!(mode(&wal.unwrap()), 0o600);
    drop(database);
    let normal = open(&Options { durability: Durability::Normal, ..options.clone() }).unwrap();
    assert_eq!(pragma(&normal, "synchronous"), 1);
    drop(normal);
    let other = open(&Options { application_id: Some(1), ..options });
    assert!(matches!(other, Err(OpenError::WrongApplication { found: 0xf00d_cafe, expected: 1, .. })));
}

#[test]
fn a_file_has_one_owner_and_any_number_of_guests_and_readers() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.db");
    let owner = open(&Options::new(&path, Access::Owner)).unwrap();
    assert!(matches!(open(&Options::new(&path, Access::Owner)), Err(OpenError::Owned { .. })));
    let guest = open(&Options::new(&path, Access::Guest)).unwrap();
    guest.execute_batch("CREATE TABLE t (x)").unwrap();
    let reader = open(&Options::new(&path, Access::ReadOnly)).unwrap();
    let refused = horos_store::StoreError::from(reader.execute_batch("INSERT INTO t VALUES (1)").unwrap_err());
    assert_eq!(refused.kind, Kind::ReadOnly);
    drop(owner);
    open(&Options::new(&path, Access::Owner)).unwrap();
}

#[test]
fn what_is_not_a_database_is_named_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let garbage = "this is no database at all, it only looks long enough ".repeat(100);
    fs::write(at("garbage"), &garbage).unwrap();
    for access in [Access::Owner, Access::Guest, Access::ReadOnly] {
        let error = open(&Options::new(at("garbage"), access)).unwrap_err();
        assert_eq!(error.kind(), Some(Kind::NotADatabase), "{access:?}: {error}");
    }
    assert_eq!(fs::read_to_string(at("garbage")).unwrap(), garbage);
    assert!(matches!(open(&Options::new(at("absent"), Access::ReadOnly)), Err(OpenError::File { doing: "open", .. })));
    assert!(matches!(open(&Options::new(directory.path(), Access::Owner)), Err(OpenError::File { .. })));
    assert!(matches!(open(&Options::new(at("garbage").join("below"), Access::Owner)), Err(OpenError::File { .. })));
    fs::write(at("empty"), "").unwrap();
    open(&Options::new(at("empty"), Access::Owner)).unwrap();
}

#[test]
fn damage_inside_is_found_when_asked_for() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.db");
    let database = open(&Options::new(&path, Access::Owner)).unwrap();
    database.execute_batch("CREATE TABLE t (x); WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < 2000) INSERT INTO t SELECT hex(randomblob(20)) FROM n").unwrap();
    drop(database);
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2 / 4096 * 4096;
    bytes[middle..middle + 4096].fill(0xa5);
    fs::write(&path, bytes).unwrap();
    open(&Options::new(&path, Access::ReadOnly)).unwrap();
    let checked = open(&Options { check: Check::Quick, ..Options::new(&path, Access::ReadOnly) });
    assert!(
        matches!(&checked, Err(e @ OpenError::Damaged { findings, .. }) if !findings.is_empty() && e.kind() == Some(Kind::Corrupt)),
        "{checked:?}"
    );
}

#[test]
fn memory_is_shared_by_name() {
    let options = Options::memory();
    let writer = open(&options).unwrap();
    writer.execute_batch("CREATE TABLE t (x); INSERT INTO t VALUES (7)").unwrap();
    let reader = open(&options.with_access(Access::ReadOnly)).unwrap();
    assert_eq!(reader.query_row("SELECT x FROM t", [], |row| row.get::<_, i64>(0)).unwrap(), 7);
    assert!(reader.execute_batch("DELETE FROM t").is_err());
    assert!(open(&Options::memory()).unwrap().execute_batch("SELECT * FROM t").is_err());
}

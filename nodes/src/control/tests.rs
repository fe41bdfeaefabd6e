//! Files as nodes of this release and of the one before leave them, and as a Go system does.

use std::{fs, path::Path};

use horos_store::rusqlite::Connection;

use super::*;

fn database(path: &Path, migrations: Migrations) -> Connection {
    let mut database = Connection::open(path).unwrap();
    database.execute_batch("PRAGMA journal_mode = WAL; PRAGMA wal_autocheckpoint = 0").unwrap();
    migrations.apply(&mut database).unwrap();
    database
}

/// The keys' replica as it was before it had a file of its own, with its last commit in the WAL as `kill -9` leaves it.
fn mirror_of_before(data: &Path) {
    let elsewhere = tempfile::tempdir().unwrap();
    let database = database(&elsewhere.path().join(FILE), Migrations::new(KEYS_MIGRATIONS));
    database.execute_batch("INSERT INTO key_state VALUES ('position', '{}'), ('whole', 'true'), ('epoch', 'an old one')").unwrap();
    for file in ["control.db", "control.db-wal"] {
        fs::copy(elsewhere.path().join(file), data.join(file)).unwrap();
    }
}

fn names(data: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(data).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.retain(|name| !name.ends_with("lock"));
    names.sort();
    names
}

fn whole(path: &Path) -> bool {
    let sql = "SELECT EXISTS (SELECT 1 FROM key_state WHERE name = 'whole')";
    Connection::open(path).unwrap().query_row(sql, [], |row| row.get(0)).unwrap()
}

#[test]
fn a_mirror_of_before_goes_on_as_keys_db_and_leaves_no_byte_behind() {
    let data = tempfile::tempdir().unwrap();
    mirror_of_before(data.path());
    settle(data.path(), false).unwrap();
    assert_eq!(names(data.path()), [KEYS_FILE]);
    assert!(whole(&data.path().join(KEYS_FILE)), "what only the WAL had is in it");
    // As a start that was cut short between the copy and the removal leaves it: what is newer stays.
    Connection::open(data.path().join(KEYS_FILE)).unwrap().execute_batch("INSERT INTO key_state VALUES ('newer', '')").unwrap();
    mirror_of_before(data.path());
    settle(data.path(), false).unwrap();
    settle(data.path(), false).unwrap();
    assert_eq!(names(data.path()), [KEYS_FILE]);
    let keys = Connection::open(data.path().join(KEYS_FILE)).unwrap();
    let newer: bool = keys.query_row("SELECT EXISTS (SELECT 1 FROM key_state WHERE name = 'newer')", [], |row| row.get(0)).unwrap();
    assert!(newer);
}

#[test]
fn the_owners_file_is_never_removed_whoever_owns_it_now() {
    let data = tempfile::tempdir().unwrap();
    let file = data.path().join(FILE);
    // Of this release, and of the one before.
    drop(database(&file, MIGRATIONS));
    settle(data.path(), true).unwrap();
    assert!(file.exists(), "it is the owner's own");
    settle(data.path(), false).unwrap();
    assert_eq!(names(data.path()), ["control.db.owned"]);
    database(&file, Migrations::new(KEYS_MIGRATIONS)).execute_batch("INSERT INTO key_state VALUES ('epoch', 'a log')").unwrap();
    settle(data.path(), false).unwrap();
    assert_eq!(names(data.path()), ["control.db.owned", "control.db.owned.2"]);
}

#[test]
fn an_owner_does_not_start_on_a_replica_and_a_replica_is_left_alone() {
    let data = tempfile::tempdir().unwrap();
    settle(data.path(), true).unwrap();
    settle(data.path(), false).unwrap();
    let file = data.path().join(FILE);
    Connection::open(&file).unwrap().execute_batch("CREATE TABLE _horos_replica (a); CREATE TABLE routes (a)").unwrap();
    settle(data.path(), false).unwrap();
    assert!(matches!(settle(data.path(), true), Err(FilesError::Replica(_))));
    assert!(is_replica(data.path()));
    assert_eq!(names(data.path()), [FILE]);
}

/// The Go system's schema, as far as it has constraints.
const GO: &str = "
    CREATE TABLE routes (
        service_name TEXT PRIMARY KEY,
        strategy TEXT NOT NULL CHECK (strategy IN ('local', 'quic', 'http', 'mcp', 'dbsync', 'embed', 'noop')),
        endpoint TEXT, config TEXT DEFAULT '{}', updated_at INTEGER NOT NULL DEFAULT (strftime('%s', 'now')));
    CREATE INDEX idx_routes_strategy ON routes(strategy);
    CREATE TRIGGER trg_routes_updated_at AFTER UPDATE ON routes BEGIN
        UPDATE routes SET updated_at = strftime('%s', 'now') WHERE service_name = NEW.service_name;
    END;
    INSERT INTO routes (service_name, strategy) VALUES ('mail', 'noop'), (NULL, 'local');
";

#[test]
fn routes_of_a_go_system_in_place_of_the_file_are_the_owners_from_then_on() {
    let data = tempfile::tempdir().unwrap();
    let file = data.path().join(FILE);
    let go = Connection::open(&file).unwrap();
    go.execute_batch("PRAGMA journal_mode = WAL").unwrap();
    go.execute_batch(GO).unwrap();
    drop(go);
    settle(data.path(), true).unwrap();
    // As a start that was cut short before it went on leaves it.
    settle(data.path(), true).unwrap();
    let ours = database(&file, MIGRATIONS);
    settle(data.path(), true).unwrap();
    let services = "SELECT group_concat(service_name, ' ' ORDER BY service_name) FROM routes";
    assert_eq!(ours.query_row(services, [], |row| row.get::<_, String>(0)).unwrap(), "mail unnamed:2");
    drop(ours);
    settle(data.path(), false).unwrap();
    assert_eq!(names(data.path()), ["control.db.owned"], "and of another node nothing is lost");
}

#[test]
fn a_file_of_another_program_is_left_as_it_is() {
    let data = tempfile::tempdir().unwrap();
    let file = data.path().join(FILE);
    Connection::open(&file).unwrap().execute_batch("CREATE TABLE routes (bus INTEGER, stop TEXT)").unwrap();
    let error = settle(data.path(), true).unwrap_err();
    assert!(matches!(error, FilesError::Foreign { .. }), "{error:?}");
    assert!(Connection::open(&file).unwrap().column_exists(Some("main"), "routes", "bus").unwrap());
}

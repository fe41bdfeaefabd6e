//! Files as nodes of this release and of the one before leave them, and edits on a database without a node.

use std::{fs, path::Path};

use horos_store::rusqlite::Connection;
use horos_wire::protocol::control::{
    ControlError, DeleteRoute, Expected, ListRoutes, MAX_CONFIG, MAX_ENDPOINT, MAX_ROUTES, MAX_SERVICE, MAX_WHY, Route, SetRoute, Strategy,
};

use super::{
    routes::{View, check_delete, check_set, delete, list, set},
    service::Fault,
    *,
};

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

fn routes() -> Connection {
    let mut tables = Connection::open_in_memory().unwrap();
    MIGRATIONS.apply(&mut tables).unwrap();
    tables
}

fn route(service: &str) -> SetRoute {
    let endpoint = Some("https://example.org/x".into());
    let config = Some(r#"{"timeout_ms": 5}"#.into());
    SetRoute { service: service.into(), strategy: Strategy::Http, endpoint, config, expected: None, why: Some("because".into()) }
}

fn all(tables: &Connection, view: View) -> Vec<Route> {
    list(tables, &ListRoutes { after: None }, view).unwrap().routes
}

#[test]
fn an_edit_meets_what_it_expects_or_has_no_effect() {
    let tables = routes();
    let absent = SetRoute { expected: Some(Expected::Absent), ..route("mail") };
    let first = set(&tables, &absent, "operator@ana").unwrap().route.unwrap();
    assert!(matches!(set(&tables, &absent, "operator@ana"), Err(Fault::Refused(ControlError::Conflict { found: Some(_), .. }))));
    let faster = SetRoute { strategy: Strategy::Noop, expected: Some(Expected::Version(first.version)), ..route("mail") };
    let second = set(&tables, &faster, "operator@ben").unwrap().route.unwrap();
    assert_ne!(first.version, second.version);
    let late = Err::<(), _>(ControlError::Conflict { service: "mail".into(), found: Some(second.version) });
    let refused = |outcome: Result<_, Fault>| match outcome {
        Err(Fault::Refused(error)) => Err::<(), _>(error),
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(set(&tables, &faster, "operator@ana")), late);
    let drop = |expected| DeleteRoute { service: "mail".into(), expected, why: None };
    assert_eq!(refused(delete(&tables, &drop(Some(first.version)), "operator@ana")), late);
    assert_eq!(all(&tables, View::Whole), std::slice::from_ref(&second));
    assert_eq!(delete(&tables, &drop(Some(second.version)), "operator@ana").unwrap().edit, 3);
    assert_eq!(refused(delete(&tables, &drop(None), "operator@ana")), Err(ControlError::NoSuchRoute("mail".into())));
    // Somebody with a shell changes the version too.
    let version = set(&tables, &route("mail"), "operator@ana").unwrap().route.unwrap().version;
    tables.execute("UPDATE routes SET endpoint = NULL", []).unwrap();
    assert_ne!(all(&tables, View::Whole)[0].version, version);
}

#[test]
fn who_edited_what_and_why_is_written_down_and_the_newest_is_kept() {
    let tables = routes();
    set(&tables, &route("mail"), "operator@ana").unwrap();
    delete(&tables, &DeleteRoute { service: "mail".into(), expected: None, why: None }, "operator@ben").unwrap();
    let mut edits = tables.prepare("SELECT who, what, why FROM edits ORDER BY id").unwrap();
    let edits: Vec<(String, String, String)> =
        edits.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).unwrap().map(Result::unwrap).collect();
    assert_eq!((&*edits[0].0, &*edits[0].2), ("operator@ana", "because"));
    assert!(edits[0].1.contains("timeout_ms") && edits[0].1.contains("https://example.org/x"), "{edits:?}");
    assert_eq!((&*edits[1].0, &*edits[1].1), ("operator@ben", r#"{"delete_route":{"service":"mail"}}"#));
    tables.execute("UPDATE edits SET id = id + 20000 WHERE id = 2", []).unwrap();
    assert_eq!(set(&tables, &route("mail"), "operator@ana").unwrap().edit, 20_003);
    assert_eq!(tables.query_row("SELECT count(*) FROM edits", [], |row| row.get::<_, u32>(0)).unwrap(), 2);
}

#[test]
fn an_fo_is_listed_no_configuration_and_nothing_of_dbsync_and_pages_end() {
    let tables = routes();
    for service in ["dbsync:orders", "DBSync:shop", "mail", "dbsyncs"] {
        set(&tables, &route(service), "operator@ana").unwrap();
    }
    assert_eq!(all(&tables, View::Whole).len(), 4);
    assert!(all(&tables, View::Whole).iter().all(|route| route.config.is_some()));
    let public: Vec<_> = all(&tables, View::Public).into_iter().map(|route| (route.service, route.config)).collect();
    assert_eq!(public, [("dbsyncs".into(), None), ("mail".into(), None)]);
    // Large ones: a page is full by its bytes.
    for n in 0..40 {
        let config = format!(r#"{{"x": "{}"}}"#, "x".repeat(MAX_CONFIG - 100));
        set(&tables, &SetRoute { config: Some(config.into()), ..route(&format!("large-{n:02}")) }, "operator@ana").unwrap();
    }
    let (mut after, mut seen) = (None, Vec::new());
    loop {
        let page = list(&tables, &ListRoutes { after }, View::Whole).unwrap();
        assert!(!page.routes.is_empty() && page.routes.len() <= 20);
        seen.extend(page.routes.into_iter().map(|route| route.service));
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(seen.len(), 44);
    assert!(seen.is_sorted());
}

#[test]
fn what_makes_no_sense_or_is_too_much_is_refused() {
    let fine = route("mail");
    assert_eq!(check_set(&fine), Ok(()));
    let with = |change: fn(&mut SetRoute)| {
        let mut changed = fine.clone();
        change(&mut changed);
        check_set(&changed)
    };
    for (n, bad) in [
        with(|it| it.service = "".into()),
        with(|it| it.service = "a b".into()),
        with(|it| it.service = "a\u{1b}".into()),
        with(|it| it.service = "x".repeat(MAX_SERVICE + 1).into()),
        with(|it| it.endpoint = Some("".into())),
        with(|it| it.endpoint = Some("x".repeat(MAX_ENDPOINT + 1).into())),
        with(|it| it.endpoint = Some("https://ana:secret@example.org/x".into())),
        with(|it| it.endpoint = Some("ana@example.org:80".into())),
        with(|it| it.config = Some("[]".into())),
        with(|it| it.config = Some("{".into())),
        with(|it| it.config = Some(format!("{{\"x\":\"{}\"}}", "x".repeat(MAX_CONFIG)).into())),
        with(|it| it.why = Some("a\nb".into())),
        with(|it| it.why = Some("x".repeat(MAX_WHY + 1).into())),
    ]
    .into_iter()
    .enumerate()
    {
        assert!(matches!(bad, Err(ControlError::Invalid(_))), "{n}: {bad:?}");
    }
    assert_eq!(with(|it| it.endpoint = Some("https://example.org/@ana".into())), Ok(()));
    assert!(check_delete(&DeleteRoute { service: "".into(), expected: None, why: None }).is_err());
    let tables = routes();
    let many = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1)
                INSERT INTO routes (service_name, strategy) SELECT 'r' || i, 'noop' FROM n";
    tables.execute(many, [MAX_ROUTES]).unwrap();
    assert!(matches!(set(&tables, &fine, "operator@ana"), Err(Fault::Refused(ControlError::TooMany))));
    set(&tables, &route("r1"), "operator@ana").unwrap();
    assert!(tables.execute("INSERT INTO routes (service_name, strategy) VALUES ('x', 'grpc')", []).is_err());
    assert!(tables.execute("INSERT INTO routes (service_name, strategy) VALUES (NULL, 'noop')", []).is_err());
}

#[test]
fn whoever_updates_a_route_by_hand_dates_it() {
    for recursive in ["OFF", "ON"] {
        let tables = routes();
        tables.execute_batch(&format!("PRAGMA recursive_triggers = {recursive}")).unwrap();
        tables.execute("INSERT INTO routes (service_name, strategy, updated_at) VALUES ('a', 'noop', 1)", []).unwrap();
        tables.execute("UPDATE routes SET strategy = 'local'", []).unwrap();
        let age: i64 = tables.query_row("SELECT unixepoch() - updated_at FROM routes", [], |row| row.get(0)).unwrap();
        assert!((0..60).contains(&age), "{age}");
    }
}

use super::*;

const ONE: Migration = Migration { version: 1, name: "shelves", sql: "CREATE TABLE shelf (id INTEGER PRIMARY KEY, label TEXT) STRICT" };
const TWO: Migration = Migration {
    version: 2,
    name: "books",
    sql: "CREATE TABLE book (id INTEGER PRIMARY KEY, shelf INTEGER NOT NULL REFERENCES shelf) STRICT; INSERT INTO shelf VALUES (1, 'a')",
};

fn memory() -> Connection {
    Connection::open_in_memory().unwrap()
}

#[test]
fn each_runs_once_and_the_plan_says_which() {
    let mut c = memory();
    const BOTH: Migrations = Migrations::new(&[ONE, TWO]);
    assert!(BOTH.plan(&c).unwrap().iter().all(|s| s.applied_at.is_none()));
    assert!(!c.table_exists(None, "_migrations").unwrap(), "a plan changes nothing");
    assert_eq!(Migrations::new(&[ONE]).apply(&mut c).unwrap(), 1);
    assert_eq!(BOTH.apply(&mut c).unwrap(), 1);
    assert_eq!(BOTH.apply(&mut c).unwrap(), 0);
    assert!(BOTH.plan(&c).unwrap().iter().all(|s| s.applied_at.is_some()));
    assert!(c.pragma_query_value(None, "foreign_keys", |r| r.get::<_, bool>(0)).unwrap(), "enforcement is back on");
}

#[test]
fn a_failing_migration_leaves_the_one_before_it() {
    let mut c = memory();
    const BAD: Migrations = Migrations::new(&[
        ONE,
        Migration { version: 2, name: "bad", sql: "CREATE TABLE book (id INTEGER); INSERT INTO nowhere VALUES (1)" },
    ]);
    assert!(matches!(BAD.apply(&mut c), Err(MigrationError::Failed { version: 2, .. })));
    assert!(!c.table_exists(None, "book").unwrap());
    assert_eq!(Migrations::new(&[ONE, TWO]).apply(&mut c).unwrap(), 1);
}

#[test]
fn statements_cannot_commit_half_of_a_migration() {
    let mut c = memory();
    const SLY: Migrations =
        Migrations::new(&[Migration { version: 1, name: "sly", sql: "CREATE TABLE a (x); COMMIT; CREATE TABLE b (x)" }]);
    let Err(MigrationError::Failed { source, .. }) = SLY.apply(&mut c) else { panic!("accepted") };
    assert_eq!(source.kind, crate::Kind::Forbidden);
    assert!(!c.table_exists(None, "a").unwrap());
}

#[test]
fn history_that_does_not_match_is_refused() {
    let mut c = memory();
    Migrations::new(&[ONE, TWO]).apply(&mut c).unwrap();
    let edited = Migration { sql: "CREATE TABLE shelf (id INTEGER PRIMARY KEY)", ..ONE };
    let list = |l: Vec<Migration>| Migrations::new(l.leak());
    assert!(matches!(list(vec![edited, TWO]).apply(&mut c), Err(MigrationError::Changed { version: 1, .. })));
    assert!(matches!(list(vec![TWO]).apply(&mut c), Err(MigrationError::Missing { version: 1, .. })));
    assert!(matches!(list(vec![ONE]).apply(&mut c), Err(MigrationError::Newer { found: 2, known: 1 })));
    assert!(matches!(list(vec![TWO, ONE]).plan(&c), Err(MigrationError::Unordered { version: 1, before: 2 })));
    let mut gap = memory();
    list(vec![ONE, Migration { version: 5, ..TWO }]).apply(&mut gap).unwrap();
    let late = Migration { version: 3, name: "late", sql: "" };
    assert!(matches!(
        list(vec![ONE, late, Migration { version: 5, ..TWO }]).apply(&mut gap),
        Err(MigrationError::TooLate { version: 3, applied: 5, .. })
    ));
}

#[test]
fn dangling_foreign_keys_roll_back() {
    let mut c = memory();
    const BAD: Migrations = Migrations::new(&[ONE, TWO, Migration { version: 3, name: "orphan", sql: "INSERT INTO book VALUES (1, 99)" }]);
    assert!(matches!(BAD.apply(&mut c), Err(MigrationError::Dangling { version: 3, rows: 1, .. })));
    assert_eq!(c.query_row("SELECT count(*) FROM book", [], |r| r.get::<_, i64>(0)).unwrap(), 0);
}

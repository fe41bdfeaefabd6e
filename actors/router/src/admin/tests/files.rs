//! Files of the Go system, and of this system before routes took any strategy.

use horos_store::rusqlite::types::Value;

use super::*;

/// The Go system's schema.
const GO: &str = "
    CREATE TABLE routes (
        service_name TEXT PRIMARY KEY,
        strategy TEXT NOT NULL CHECK (strategy IN ('local', 'quic', 'http', 'mcp', 'dbsync', 'embed', 'noop')),
        endpoint TEXT,
        config TEXT DEFAULT '{}',
        updated_at INTEGER NOT NULL DEFAULT (strftime('%s', 'now'))
    );
    CREATE INDEX idx_routes_strategy ON routes(strategy);
    CREATE TRIGGER trg_routes_updated_at AFTER UPDATE ON routes FOR EACH ROW BEGIN
        UPDATE routes SET updated_at = strftime('%s', 'now') WHERE service_name = NEW.service_name;
    END;
";

/// Rows that it takes, odd ones among them.
const ROWS: &str = "
    INSERT INTO routes VALUES ('mail', 'http', 'https://mail.example.org/', '{\"timeout_ms\": 1500}', 1700000000);
    INSERT INTO routes VALUES (NULL, 'http', 'https://nobody.example.org/', '{\"x\": 1}', 1700000001);
    INSERT INTO routes VALUES (NULL, 'noop', NULL, NULL, 1700000002);
    INSERT INTO routes VALUES ('unnamed:3', 'noop', NULL, '{}', 1700000003);
    INSERT INTO routes VALUES (x'6d61696c', 'local', NULL, '{}', 1700000004);
    INSERT INTO routes VALUES ('', 'embed', x'00ff', x'7b7d', 1700000005.5);
    INSERT INTO routes VALUES ('broken', 'mcp', 'x:1', '{', 'yesterday');
    INSERT INTO routes VALUES (42, 'noop', 7, 8, 9);
    INSERT INTO routes VALUES ('off', 'noop', 'https://mail.example.org/', '{}', 10);
";

type Stored = (String, String, Option<Vec<u8>>, Option<Vec<u8>>, i64);

fn stored(tables: &Connection) -> Vec<Stored> {
    let sql = "SELECT service_name, strategy, CAST(endpoint AS BLOB), CAST(config AS BLOB), updated_at FROM routes ORDER BY service_name";
    let mut rows = tables.prepare(sql).unwrap();
    rows.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?))).unwrap().map(Result::unwrap).collect()
}

#[test]
fn a_file_of_the_go_system_is_taken_up_with_every_row_that_it_has() {
    let mut file = Connection::open_in_memory().unwrap();
    file.execute_batch(GO).unwrap();
    file.execute_batch(ROWS).unwrap();
    assert!(is_foreign(&file).unwrap());
    assert!(adopt(&mut file).unwrap());
    assert!(!adopt(&mut file).unwrap(), "again it does nothing");
    Migrations::new(ROUTES_MIGRATIONS).apply(&mut file).unwrap();
    assert!(!is_foreign(&file).unwrap() && !adopt(&mut file).unwrap());
    let bytes = |text: &str| Some(text.as_bytes().to_vec());
    let row = |service: &str, strategy: &str, endpoint, config, at| (service.to_owned(), strategy.to_owned(), endpoint, config, at);
    let mut found = stored(&file);
    let doubled = found.iter().position(|row| row.0.starts_with("unnamed:3:")).expect("the name was taken, so another was made");
    assert_eq!(found.remove(doubled).1, "noop");
    let wanted = [
        row("", "embed", Some(vec![0, 255]), bytes("{}"), 1_700_000_005),
        row("42", "noop", bytes("7"), bytes("8"), 9),
        row("broken", "mcp", bytes("x:1"), bytes("{"), 0),
        row("mail", "http", bytes("https://mail.example.org/"), bytes("{\"timeout_ms\": 1500}"), 1_700_000_000),
        row("off", "noop", bytes("https://mail.example.org/"), bytes("{}"), 10),
        row("unnamed:2", "http", bytes("https://nobody.example.org/"), bytes("{\"x\": 1}"), 1_700_000_001),
        row("unnamed:3", "noop", None, bytes("{}"), 1_700_000_003),
        row("unnamed:5:6D61696C", "local", None, bytes("{}"), 1_700_000_004),
    ];
    assert_eq!(found, wanted);
    assert!(!file.table_exists(Some("main"), "go_routes").unwrap());
    // Shown, each with what is wrong with it.
    let listed = all(&file, View::Whole);
    assert_eq!(listed.len(), 9);
    for route in &listed {
        assert_eq!(route.problems.is_empty(), ["mail", "off"].contains(&&*route.service), "{route:?}");
        if route.service.starts_with("unnamed:") {
            assert!(route.problems.iter().any(|problem| &*problem.key == "service_name"), "{route:?}");
        }
    }
    // And they are gone once somebody has looked at them.
    for route in listed.iter().filter(|route| !route.problems.is_empty()) {
        delete(&file, &route.service, ANA).unwrap();
    }
    assert_eq!(all(&file, View::Whole).len(), 2);
    let go = "SELECT group_concat(name) FROM sqlite_schema WHERE sql LIKE '%go_routes%'";
    assert_eq!(file.query_row(go, [], |row| row.get::<_, Value>(0)).unwrap(), Value::Null);
}

#[test]
fn a_table_that_only_has_the_name_is_nobodys_and_left_alone() {
    let mut file = Connection::open_in_memory().unwrap();
    file.execute_batch("CREATE TABLE routes (service_name TEXT, path TEXT)").unwrap();
    assert!(matches!(adopt(&mut file), Err(AdoptError::Strange("strategy"))));
    assert!(is_foreign(&file).unwrap() && file.column_exists(Some("main"), "routes", "path").unwrap());
}

#[test]
fn what_was_edited_before_has_a_before_and_an_after_too() {
    let mut file = Connection::open_in_memory().unwrap();
    Migrations::new(&ROUTES_MIGRATIONS[..1]).apply(&mut file).unwrap();
    file.execute_batch(
        r#"INSERT INTO routes VALUES ('mail', 'noop', NULL, '{}', 3);
        INSERT INTO edits VALUES
            (4, 1, 'operator@ana', '{"set_route":{"service":"mail","strategy":"http","endpoint":"https://a","config":null}}', 'first'),
            (5, 1, 'operator@ana', '{"set_route":{"service":"news","strategy":"local","endpoint":null,"config":"{\"weight\":2}"}}', ''),
            (6, 2, 'operator@ben', '{"delete_route":{"service":"news"}}', ''),
            (7, 3, 'operator@ben', '{"set_route":{"service":"mail","strategy":"noop","endpoint":null,"config":"{}"}}', 'down')"#,
    )
    .unwrap();
    Migrations::new(ROUTES_MIGRATIONS).apply(&mut file).unwrap();
    assert_eq!(stored(&file), [("mail".into(), "noop".into(), None, Some(b"{}".to_vec()), 3)]);
    let edits: Vec<_> = history::page(&file, None)
        .into_iter()
        .map(|edit| {
            let strategy = |content: Option<horos_wire::protocol::control::Content>| content.map(|content| content.strategy.to_string());
            (edit.edit, edit.what.to_string(), edit.why.to_string(), strategy(edit.before), strategy(edit.after))
        })
        .collect();
    let (http, local, noop) = (Some("http".to_owned()), Some("local".to_owned()), Some("noop".to_owned()));
    assert_eq!(
        edits,
        [
            (7, "set".into(), "down".into(), http.clone(), noop),
            (6, "delete".into(), String::new(), local.clone(), None),
            (5, "set".into(), String::new(), None, local),
            (4, "set".into(), "first".into(), None, http),
        ]
    );
}

#[test]
fn a_migration_is_the_same_for_whoever_ran_it_before() {
    // Whoever changes its text locks every node out of its file.
    let checksums: Vec<_> = ROUTES_MIGRATIONS.iter().map(|it| (it.version, it.checksum()[..16].to_owned())).collect();
    assert_eq!(checksums[0], (100, "836041b543288ed7".into()));
}

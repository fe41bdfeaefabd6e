//! What other programs write: any row is taken, dated and written down, and no statement of theirs fails because of us.

use horos_wire::protocol::control::{KEPT_EDITS, MAX_STRATEGY};

use super::*;

#[test]
fn whoever_updates_a_route_by_hand_dates_it() {
    for recursive in ["OFF", "ON"] {
        let tables = tables();
        tables.execute_batch(&format!("PRAGMA recursive_triggers = {recursive}")).unwrap();
        tables.execute("INSERT INTO routes (service_name, strategy, updated_at) VALUES ('a', 'noop', 1)", []).unwrap();
        tables.execute("UPDATE routes SET strategy = 'local'", []).unwrap();
        tables.execute("INSERT INTO breakers (service_name, updated_at) VALUES ('a', 1)", []).unwrap();
        tables.execute("UPDATE breakers SET forced = 'open'", []).unwrap();
        for table in ["routes", "breakers"] {
            let age = format!("SELECT unixepoch() - updated_at FROM {table}");
            let age: i64 = tables.query_row(&age, [], |row| row.get(0)).unwrap();
            assert!((0..60).contains(&age), "{table}: {age}");
        }
        assert_eq!(history::page(&tables, None).len(), 4);
    }
}

#[test]
fn any_row_is_taken_and_what_is_wrong_with_it_is_shown() {
    let tables = tables();
    let (long, huge) = ("n".repeat(MAX_SERVICE + 1), "x".repeat(300_000));
    for (service, strategy, endpoint, config) in [
        ("grpc", "grpc", None, Some("{}")),
        ("odd", "No Strategy!", Some("a b"), None),
        ("broken", "http", Some("https://example.org/"), Some("{")),
        ("typo", "http", Some("https://example.org/"), Some(r#"{"timeout": 5}"#)),
        (&long, "noop", None, None),
        ("huge", &huge, Some(&*huge), Some(&*huge)),
        ("a\0b", "noop", None, None),
    ] {
        let sql = "INSERT INTO routes (service_name, strategy, endpoint, config) VALUES (?1, ?2, ?3, ?4)";
        tables.execute(sql, (service, strategy, endpoint, config)).unwrap();
    }
    tables.execute("INSERT INTO routes (service_name, strategy) VALUES (CAST(x'ff61' AS TEXT), CAST(x'ff' AS TEXT))", []).unwrap();
    tables.execute("INSERT INTO routes (service_name, strategy) VALUES ('fine', 'local')", []).unwrap();
    let listed = all(&tables, View::Whole);
    assert_eq!(listed.len(), 9);
    for route in &listed {
        assert_eq!(route.problems.is_empty(), &*route.service == "fine", "{route:?}");
        assert!(route.strategy.len() <= MAX_STRATEGY + 1 && route.config.as_ref().is_none_or(|it| it.len() <= MAX_CONFIG + 1));
    }
    let huge = listed.iter().find(|route| &*route.service == "huge").unwrap();
    assert!(huge.problems.len() >= 3, "{:?}", huge.problems);
    // Its edit is written down cut, and cannot be brought back.
    let edit = &history::page(&tables, Some("huge"))[0];
    assert!(edit.after.as_ref().unwrap().cut);
    delete(&tables, "huge", ANA).unwrap();
    let ask = horos_wire::protocol::control::Rollback {
        service: "huge".into(),
        to: horos_wire::protocol::control::RollbackTo::Last,
        expected: None,
        why: None,
    };
    assert!(matches!(refused(routes::rollback(&tables, &ask, ANA, &strategies())), ControlError::Invalid(_)));
    assert!(tables.execute("INSERT INTO routes (service_name, strategy) VALUES (NULL, 'noop')", []).is_err());
}

/// Every form of statement, under every clause: what it says of itself is as if there were no triggers.
#[test]
fn no_statement_fails_or_says_another_thing_because_of_the_triggers() {
    let plain = Connection::open_in_memory().unwrap();
    plain
        .execute_batch(
            "CREATE TABLE routes (service_name TEXT NOT NULL PRIMARY KEY, strategy TEXT NOT NULL, endpoint TEXT, config TEXT DEFAULT '{}',
             updated_at INTEGER NOT NULL DEFAULT 0) STRICT",
        )
        .unwrap();
    for recursive in ["OFF", "ON"] {
        let ours = tables();
        ours.execute_batch(&format!("PRAGMA recursive_triggers = {recursive}")).unwrap();
        plain.execute_batch(&format!("PRAGMA recursive_triggers = {recursive}; DELETE FROM routes")).unwrap();
        let mut written = 0;
        for clause in ["", "OR REPLACE", "OR IGNORE", "OR FAIL", "OR ABORT", "OR ROLLBACK"] {
            for sql in [
                format!("INSERT {clause} INTO routes (service_name, strategy) VALUES ('a', 'noop')"),
                format!("INSERT {clause} INTO routes (service_name, strategy) VALUES ('a', 'local'), ('b', 'quic')"),
                format!("INSERT {clause} INTO routes (service_name, strategy) VALUES (NULL, 'local')"),
                format!("UPDATE {clause} routes SET strategy = strategy || 'x'"),
                format!("UPDATE {clause} routes SET service_name = 'a' WHERE service_name = 'b'"),
                format!("UPDATE {clause} routes SET service_name = 'c' WHERE service_name = 'a'"),
                format!("UPDATE {clause} routes SET config = NULL, endpoint = x'00'"),
                "INSERT INTO routes (service_name, strategy) VALUES ('c', 'noop') ON CONFLICT DO UPDATE SET strategy = 'embed'".to_owned(),
                "INSERT INTO routes (service_name, strategy) VALUES ('c', 'noop') ON CONFLICT DO NOTHING".to_owned(),
                "DELETE FROM routes WHERE service_name = 'a'".to_owned(),
                "REPLACE INTO routes (service_name, strategy) SELECT service_name || 'd', 'mcp' FROM routes".to_owned(),
            ] {
                let outcome = |file: &Connection| {
                    let before = file.last_insert_rowid();
                    match file.execute(&sql, []) {
                        Ok(changes) => Ok((changes, file.changes(), file.last_insert_rowid() == before)),
                        Err(error) => Err(error.to_string()),
                    }
                };
                assert_eq!(outcome(&ours), outcome(&plain), "{recursive} {sql}");
                let content = |file: &Connection| -> Vec<(String, String)> {
                    let mut rows = file.prepare("SELECT service_name, strategy FROM routes ORDER BY 1").unwrap();
                    rows.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap().map(Result::unwrap).collect()
                };
                assert_eq!(content(&ours), content(&plain), "{recursive} {sql}");
                // What is written down is what there is: the last edit of each name says what it is now.
                for (name, strategy) in content(&ours) {
                    let last = history::page(&ours, Some(&name)).remove(0);
                    assert_eq!(last.after.map(|after| after.strategy.to_string()), Some(strategy), "{recursive} {sql}: {name}");
                    assert_eq!(&*last.who, "sql");
                }
                written += 1;
            }
        }
        assert!(written > 50 && ours.query_row("SELECT count(*) < 2 FROM route_before", [], |row| row.get(0)).unwrap());
    }
}

#[test]
fn a_row_that_is_replaced_or_renamed_over_is_in_the_history() {
    let tables = tables();
    tables
        .execute_batch(
            "INSERT INTO routes (service_name, strategy) VALUES ('a', 'local'), ('b', 'quic');
             REPLACE INTO routes (service_name, strategy) VALUES ('a', 'noop');
             UPDATE OR REPLACE routes SET service_name = 'b' WHERE service_name = 'a'",
        )
        .unwrap();
    let strategy = |content: &Option<horos_wire::protocol::control::Content>| content.as_ref().map(|it| it.strategy.to_string());
    let edits: Vec<_> = history::page(&tables, None)
        .iter()
        .map(|edit| (edit.service.to_string(), strategy(&edit.before).unwrap_or_default(), strategy(&edit.after).unwrap_or_default()))
        .collect();
    let edit = |service: &str, before: &str, after: &str| (service.to_owned(), before.to_owned(), after.to_owned());
    let wanted =
        [edit("b", "quic", "noop"), edit("a", "noop", ""), edit("a", "local", "noop"), edit("b", "", "quic"), edit("a", "", "local")];
    assert_eq!(edits, wanted);
}

#[test]
fn the_bounds_in_the_tables_are_those_of_the_protocol() {
    let tables = tables();
    let fits = |length: usize, column: &str| {
        let sql = format!(
            "REPLACE INTO routes (service_name, strategy, endpoint, config) VALUES ('a', {})",
            match column {
                "strategy" => "?1, NULL, NULL",
                "endpoint" => "'noop', ?1, NULL",
                _ => "'noop', NULL, ?1",
            }
        );
        tables.execute(&sql, ["x".repeat(length)]).unwrap();
        !history::page(&tables, Some("a"))[0].after.as_ref().unwrap().cut
    };
    for (column, most) in [("strategy", MAX_STRATEGY), ("endpoint", MAX_ENDPOINT), ("config", MAX_CONFIG)] {
        assert!(fits(most, column) && !fits(most + 1, column), "{column}");
    }
    let pruned = ROUTES_MIGRATIONS[1].sql.matches(&format!("(SELECT max(id) FROM edits) - {KEPT_EDITS};")).count();
    assert_eq!(pruned, 8, "in every trigger that appends");
    for bound in [MAX_STRATEGY, MAX_SERVICE, MAX_ENDPOINT, MAX_CONFIG] {
        assert!(rows::AFTER.contains(&format!("> {bound} THEN")), "{bound}");
    }
}

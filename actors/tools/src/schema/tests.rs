//! Tables as any program writes them: whatever it does is in the history, and nothing of it fails or means another thing because of us.

use std::{
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
};

use horos_store::{
    migrations::Migrations,
    rusqlite::{Connection, Row},
};

use super::*;

fn tables() -> Connection {
    let mut tables = Connection::open_in_memory().unwrap();
    Migrations::new(TOOLS_MIGRATIONS).apply(&mut tables).unwrap();
    tables
}

fn recursive(tables: &Connection, on: bool) {
    tables.pragma_update(None, "recursive_triggers", on).unwrap();
}

fn all<T>(tables: &Connection, sql: &str, read: impl Fn(&Row<'_>) -> horos_store::rusqlite::Result<T>) -> Vec<T> {
    tables.prepare(sql).unwrap().query_map([], |row| read(row)).unwrap().map(Result::unwrap).collect()
}

/// What there is of `name` in the history, the oldest first.
fn history(tables: &Connection, name: &str) -> Vec<(i64, String, String, Option<String>)> {
    let sql =
        format!("SELECT version, what, changed_by, change_reason FROM mcp_tools_history WHERE tool_name = '{name}' ORDER BY history_id");
    all(tables, &sql, |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))
}

fn versions(tables: &Connection, name: &str) -> Vec<(i64, String)> {
    history(tables, name).into_iter().map(|(version, what, ..)| (version, what)).collect()
}

fn version(tables: &Connection, name: &str) -> i64 {
    tables.query_row("SELECT version FROM mcp_tools_registry WHERE tool_name = ?1", [name], |row| row.get(0)).unwrap()
}

fn insert(tables: &Connection, verb: &str, name: &str) {
    let sql = format!("{verb} INTO mcp_tools_registry (tool_name, description, handler_type) VALUES (?1, 'does it', 'sql_query')");
    tables.execute(&sql, [name]).unwrap();
}

fn told(entries: &[(i64, &str)]) -> Vec<(i64, String)> {
    entries.iter().map(|(version, what)| (*version, (*what).to_owned())).collect()
}

#[test]
fn every_change_is_a_version_and_says_who_and_why_if_they_did() {
    for on in [false, true] {
        let tables = tables();
        recursive(&tables, on);
        insert(&tables, "INSERT", "a");
        tables.execute_batch("UPDATE mcp_tools_registry SET description = 'other', changed_by = 'ana', change_reason = 'a typo'").unwrap();
        tables.execute_batch("UPDATE mcp_tools_registry SET timeout_ms = 5").unwrap();
        tables.execute_batch("DELETE FROM mcp_tools_registry").unwrap();
        let entry = |version, what: &str, who: &str, why: Option<&str>| (version, what.to_owned(), who.to_owned(), why.map(str::to_owned));
        let expected = [
            entry(1, "created", "sql", Some("created")),
            entry(2, "updated", "ana", Some("a typo")),
            entry(3, "updated", "sql", None),
            entry(4, "deleted", "sql", Some("deleted")),
        ];
        assert_eq!(history(&tables, "a"), expected, "recursive_triggers {on}");
        let last: (String, i64) = tables
            .query_row("SELECT description, timeout_ms FROM mcp_tools_history WHERE version = 4", [], |row| Ok((row.get(0)?, row.get(1)?)))
            .unwrap();
        assert_eq!(last, ("other".to_owned(), 5), "what it had said until then");
    }
}

#[test]
fn each_column_that_makes_a_tool_is_kept_in_its_history() {
    let tables = tables();
    let own = ["version", "updated_at", "changed_by", "change_reason"];
    let columns = all(&tables, "SELECT name FROM pragma_table_info('mcp_tools_registry')", |row| row.get::<_, String>(0));
    let kept = all(&tables, "SELECT name FROM pragma_table_info('mcp_tools_history')", |row| row.get::<_, String>(0));
    insert(&tables, "INSERT", "a");
    let mut expected = 1;
    for column in columns.iter().filter(|column| !own.contains(&column.as_str()) && *column != "tool_name") {
        assert!(kept.contains(column), "{column}");
        tables.execute(&format!("UPDATE mcp_tools_registry SET {column} = 77"), []).unwrap();
        expected += 1;
        assert_eq!(version(&tables, "a"), expected, "{column} makes a version");
        let sql = format!("SELECT CAST({column} AS TEXT) FROM mcp_tools_history WHERE version = {expected}");
        assert_eq!(tables.query_row(&sql, [], |row| row.get::<_, String>(0)).unwrap(), "77", "{column}");
    }
    tables.execute_batch("UPDATE mcp_tools_registry SET title = title, timeout_ms = timeout_ms").unwrap();
    assert_eq!(version(&tables, "a"), expected, "what changes nothing is none");
}

#[test]
fn no_version_of_a_name_is_given_twice_whatever_becomes_of_its_rows() {
    for on in [false, true] {
        let tables = tables();
        recursive(&tables, on);
        insert(&tables, "INSERT", "a");
        insert(&tables, "REPLACE", "a");
        insert(&tables, "INSERT OR REPLACE", "a");
        let replaced = if on {
            told(&[(1, "created"), (2, "deleted"), (3, "replaced"), (4, "deleted"), (5, "replaced")])
        } else {
            told(&[(1, "created"), (2, "replaced"), (3, "replaced")])
        };
        assert_eq!(versions(&tables, "a"), replaced, "recursive_triggers {on}");
        let before = version(&tables, "a");
        assert_eq!(before, replaced.last().unwrap().0);
        tables.execute_batch("DELETE FROM mcp_tools_registry").unwrap();
        insert(&tables, "INSERT", "a");
        assert_eq!(version(&tables, "a"), before + 2, "made anew, it goes on where it was");
        // A program that writes versions itself.
        tables.execute_batch("UPDATE mcp_tools_registry SET version = 1").unwrap();
        assert_eq!(version(&tables, "a"), before + 3);
        tables.execute_batch("UPDATE mcp_tools_registry SET version = 9223372036854775807, description = 'x'").unwrap();
        assert_eq!(version(&tables, "a"), before + 4);
        tables
            .execute_batch("REPLACE INTO mcp_tools_registry (tool_name, description, handler_type, version) VALUES ('a', '', '', -5)")
            .unwrap();
        tables
            .execute_batch("REPLACE INTO mcp_tools_registry (tool_name, description, handler_type, version) VALUES ('a', '', '', 'x')")
            .unwrap();
        insert(&tables, "INSERT", "b");
        tables.execute_batch("UPDATE OR REPLACE mcp_tools_registry SET tool_name = 'a' WHERE tool_name = 'b'").unwrap();
        tables.execute_batch("UPDATE mcp_tools_registry SET tool_name = 'b' WHERE tool_name = 'a'").unwrap();
        for name in ["a", "b"] {
            let numbers: Vec<_> = versions(&tables, name).into_iter().map(|(version, _)| version).collect();
            assert!(numbers.is_sorted_by(|one, next| one < next), "{name}: {numbers:?}");
        }
        assert_eq!(versions(&tables, "a").last().unwrap().1, "deleted");
        assert_eq!(version(&tables, "b"), versions(&tables, "b").last().unwrap().0);
    }
}

#[test]
fn a_row_does_not_go_back_to_a_version_that_is_left_of_those_deleted() {
    for on in [false, true] {
        let tables = tables();
        recursive(&tables, on);
        insert(&tables, "INSERT", "a");
        for _ in 0..5 {
            tables.execute_batch("UPDATE mcp_tools_registry SET timeout_ms = timeout_ms + 1").unwrap();
        }
        let deleted = tables.execute("DELETE FROM mcp_tools_history WHERE version > 1", []).unwrap();
        assert_eq!(deleted, 5, "what was asked for, and nothing of ours is counted");
        assert_eq!((versions(&tables, "a"), version(&tables, "a")), (told(&[(1, "created"), (7, "updated")]), 7));
        tables.execute_batch("UPDATE mcp_tools_registry SET version = 1").unwrap();
        assert_eq!(version(&tables, "a"), 8, "recursive_triggers {on}");
        tables.execute_batch("DELETE FROM mcp_tools_history").unwrap();
        assert!(versions(&tables, "a").is_empty(), "all of it goes when all of it is to");
        tables.execute_batch("UPDATE mcp_tools_registry SET version = 1").unwrap();
        assert_eq!(version(&tables, "a"), 9);
    }
}

#[test]
fn a_version_is_not_given_again_when_the_history_has_forgotten_it() {
    for on in [false, true] {
        let tables = tables();
        recursive(&tables, on);
        insert(&tables, "INSERT", "old");
        insert(&tables, "INSERT", "kept");
        for _ in 0..5 {
            tables.execute_batch("UPDATE mcp_tools_registry SET timeout_ms = timeout_ms + 1").unwrap();
        }
        tables.execute_batch("DELETE FROM mcp_tools_registry WHERE tool_name = 'old'").unwrap();
        assert_eq!(versions(&tables, "old").last(), Some(&(7, "deleted".to_owned())));
        insert(&tables, "INSERT", "busy");
        let mut update = tables.prepare("UPDATE mcp_tools_registry SET timeout_ms = ?1 WHERE tool_name = 'busy'").unwrap();
        tables.execute_batch("BEGIN").unwrap();
        for count in 0..KEPT_VERSIONS + 10 {
            update.execute([count]).unwrap();
        }
        tables.execute_batch("COMMIT").unwrap();
        assert_eq!(tables.query_row("SELECT count(*) FROM mcp_tools_history", [], |row| row.get::<_, i64>(0)).unwrap(), KEPT_VERSIONS);
        assert!(versions(&tables, "old").is_empty() && versions(&tables, "kept").is_empty());
        insert(&tables, "INSERT", "old");
        assert_eq!(version(&tables, "old"), 8);
        tables.execute_batch("UPDATE mcp_tools_registry SET title = 'x' WHERE tool_name = 'kept'").unwrap();
        assert_eq!(version(&tables, "kept"), 7);
        tables.execute_batch("DELETE FROM mcp_tools_history").unwrap();
        insert(&tables, "REPLACE", "kept");
        assert!(version(&tables, "kept") > 7);
    }
    let pruned = TOOLS.sql.matches(&format!("max(history_id) FROM mcp_tools_history) - {KEPT_VERSIONS};")).count();
    assert_eq!(pruned, 4, "in every trigger that appends");
}

#[test]
fn rows_of_the_go_system_are_taken_as_they_are() {
    let tables = tables();
    // Its tables, as its release before the last made them and migrated them.
    tables
        .execute_batch(
            r#"ATTACH ':memory:' AS go;
            CREATE TABLE go.mcp_tools_registry (tool_name TEXT PRIMARY KEY, tool_category TEXT NOT NULL, description TEXT NOT NULL,
                input_schema TEXT NOT NULL, handler_type TEXT NOT NULL CHECK (handler_type IN ('sql_query', 'sql_script', 'go_function')),
                handler_config TEXT NOT NULL, mode TEXT NOT NULL DEFAULT 'readwrite' CHECK (mode IN ('readonly', 'readwrite')),
                is_active INTEGER NOT NULL DEFAULT 1 CHECK (is_active IN (0, 1)), created_at INTEGER NOT NULL DEFAULT (strftime('%s', 'now')),
                updated_at INTEGER, created_by TEXT, version INTEGER NOT NULL DEFAULT 1, group_tag TEXT DEFAULT 'default',
                timeout_ms INTEGER DEFAULT 30000);
            INSERT INTO go.mcp_tools_registry VALUES
                ('find', 'shop', 'Finds goods', '{"type":"object"}', 'sql_query', '{"query":"SELECT 1"}', 'readonly', 1, 1, 2, 'ana', 3, NULL, 0),
                ('raw', '', 'x', x'7b7d', 'go_function', x'7b7d', 'readwrite', 0, 1, NULL, NULL, 1, 'g', NULL);
            CREATE TABLE go.mcp_tools_history (history_id INTEGER PRIMARY KEY AUTOINCREMENT, tool_name TEXT, tool_category TEXT,
                description TEXT, input_schema TEXT, handler_type TEXT, handler_config TEXT, mode TEXT, version INTEGER, changed_by TEXT,
                changed_at INTEGER, change_reason TEXT);
            INSERT INTO go.mcp_tools_history (tool_name, description, version) VALUES ('find', 'older', 1), ('find', 'old', 2), ('find', 'x', 3);
            CREATE TABLE go.mcp_tool_policy (policy_id INTEGER PRIMARY KEY AUTOINCREMENT, tool_name TEXT NOT NULL,
                role TEXT NOT NULL DEFAULT '*', effect TEXT NOT NULL DEFAULT 'allow' CHECK (effect IN ('allow', 'deny')), created_at INTEGER);
            INSERT INTO go.mcp_tool_policy (tool_name, created_at) VALUES ('find', 5);

            INSERT INTO mcp_tools_history (tool_name, tool_category, description, input_schema, handler_type, handler_config, mode, version,
                changed_by, changed_at, change_reason)
                SELECT tool_name, tool_category, description, input_schema, handler_type, handler_config, mode, version, changed_by,
                changed_at, change_reason FROM go.mcp_tools_history ORDER BY history_id;
            INSERT INTO mcp_tools_registry (tool_name, tool_category, description, input_schema, handler_type, handler_config, mode, is_active,
                created_at, updated_at, created_by, version, group_tag, timeout_ms)
                SELECT tool_name, tool_category, description, input_schema, handler_type, handler_config, mode, is_active, created_at,
                updated_at, created_by, version, group_tag, timeout_ms FROM go.mcp_tools_registry;
            INSERT INTO mcp_tool_policy (tool_name, role, effect, created_at)
                SELECT tool_name, role, effect, created_at FROM go.mcp_tool_policy;"#,
        )
        .unwrap();
    let rows = all(&tables, "SELECT tool_name, version, updated_at, created_by FROM mcp_tools_registry", |row| {
        Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?, row.get::<_, Option<i64>>(2)?, row.get::<_, Option<String>>(3)?))
    });
    let rows: Vec<_> = rows.iter().map(|(name, version, at, by)| (name.as_str(), *version, *at, by.as_deref())).collect();
    assert_eq!(rows, [("find", 4, Some(2), Some("ana")), ("raw", 1, None, None)]);
    let numbers =
        all(&tables, "SELECT version FROM mcp_tools_history WHERE tool_name = 'find' ORDER BY history_id", |row| row.get::<_, i64>(0));
    assert_eq!(numbers, [1, 2, 3, 4]);
}

/// Every form of statement, under every clause: what it says of itself is as if there were no triggers.
#[test]
fn no_statement_fails_or_says_another_thing_because_of_the_triggers() {
    let values = "(tool_name, description, handler_type) VALUES";
    for on in [false, true] {
        let ours = tables();
        let plain = Connection::open_in_memory().unwrap();
        plain
            .execute_batch(
                "CREATE TABLE mcp_tools_registry (tool_name TEXT NOT NULL PRIMARY KEY, description TEXT NOT NULL, handler_type TEXT NOT NULL,
                    mode TEXT, timeout_ms INTEGER, version INTEGER NOT NULL DEFAULT 1, changed_by TEXT) WITHOUT ROWID;
                CREATE TABLE mcp_tool_policy (policy_id INTEGER PRIMARY KEY, tool_name TEXT NOT NULL, role TEXT NOT NULL DEFAULT '*',
                    effect TEXT NOT NULL DEFAULT 'allow');",
            )
            .unwrap();
        recursive(&ours, on);
        recursive(&plain, on);
        let mut written = 0;
        for clause in ["", "OR REPLACE", "OR IGNORE", "OR FAIL", "OR ABORT", "OR ROLLBACK"] {
            for sql in [
                format!("INSERT {clause} INTO mcp_tools_registry {values} ('a', '', 'x')"),
                format!("INSERT {clause} INTO mcp_tools_registry {values} ('a', '', 'y'), ('b', '', 'z')"),
                format!("INSERT {clause} INTO mcp_tools_registry {values} (NULL, '', 'y')"),
                format!("INSERT {clause} INTO mcp_tools_registry {values} ('n', '', NULL)"),
                format!("INSERT {clause} INTO mcp_tools_registry {values} (x'ff00', x'00ff', 1.5)"),
                format!("UPDATE {clause} mcp_tools_registry SET handler_type = handler_type || 'x'"),
                format!("UPDATE {clause} mcp_tools_registry SET handler_type = NULL WHERE tool_name = 'b'"),
                format!("UPDATE {clause} mcp_tools_registry SET tool_name = 'a' WHERE tool_name = 'b'"),
                format!("UPDATE {clause} mcp_tools_registry SET tool_name = 'c' WHERE tool_name = 'a'"),
                format!("UPDATE {clause} mcp_tools_registry SET timeout_ms = 'never', version = NULL"),
                format!("UPDATE {clause} mcp_tools_registry SET timeout_ms = 1e300, version = 'x', changed_by = x'00'"),
                format!("INSERT INTO mcp_tools_registry {values} ('c', '', 'x') ON CONFLICT DO UPDATE SET handler_type = 'embed'"),
                format!("INSERT INTO mcp_tools_registry {values} ('c', '', 'x') ON CONFLICT DO NOTHING"),
                "DELETE FROM mcp_tools_registry WHERE tool_name = 'a'".to_owned(),
                "REPLACE INTO mcp_tools_registry (tool_name, description, handler_type) SELECT tool_name || 'd', '', 'm' FROM mcp_tools_registry"
                    .to_owned(),
                format!("INSERT {clause} INTO mcp_tool_policy (policy_id, tool_name) VALUES (1, 'a')"),
                format!("INSERT {clause} INTO mcp_tool_policy (policy_id, tool_name, effect) VALUES (1, 'b', 'deny'), (2, 'b', x'00')"),
                format!("UPDATE {clause} mcp_tool_policy SET effect = NULL"),
                format!("UPDATE {clause} mcp_tool_policy SET policy_id = 2 WHERE policy_id = 1"),
                format!("UPDATE {clause} mcp_tool_policy SET role = role || 'x', tool_name = 'c'"),
                "DELETE FROM mcp_tool_policy WHERE policy_id = 2".to_owned(),
            ] {
                let outcome = |file: &Connection| {
                    let before = file.last_insert_rowid();
                    match file.execute(&sql, []) {
                        Ok(changes) => Ok((changes, file.changes(), file.last_insert_rowid() == before)),
                        Err(error) => Err(error.to_string()),
                    }
                };
                assert_eq!(outcome(&ours), outcome(&plain), "{on} {sql}");
                let tools = "SELECT hex(tool_name), CAST(handler_type AS TEXT), '' FROM mcp_tools_registry ORDER BY tool_name";
                let rules = "SELECT hex(tool_name), role, hex(effect) FROM mcp_tool_policy ORDER BY policy_id";
                for rows in [tools, rules] {
                    let content =
                        |file: &Connection| all(file, rows, |row| Ok([row.get::<_, String>(0)?, row.get(1)?, row.get(2)?]));
                    assert_eq!(content(&ours), content(&plain), "{on} {sql}");
                }
                // What is written down is what there is: the last entry of each name says what it is now, and in which version.
                let astray = ours.query_row(
                    "SELECT count(*) FROM mcp_tools_registry AS r LEFT JOIN mcp_tools_history AS h ON h.history_id =
                        (SELECT max(history_id) FROM mcp_tools_history WHERE tool_name IS r.tool_name)
                     WHERE h.version IS NOT r.version OR h.handler_type IS NOT r.handler_type OR h.what = 'deleted'
                        OR r.changed_by IS NOT NULL",
                    [],
                    |row| row.get::<_, i64>(0),
                );
                assert_eq!(astray.unwrap(), 0, "{on} {sql}");
                written += 1;
            }
        }
        assert!(written > 100);
        assert!(ours.query_row("SELECT count(*) FROM mcp_tools_before", [], |row| row.get::<_, i64>(0)).unwrap() <= 1);
    }
}

/// The shell that people have: an older SQLite than ours, and with what it does not trust turned off.
fn shell(file: &Path, sql: &str) -> String {
    let mut shell = Command::new("sqlite3").arg(file).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    shell.stdin.take().unwrap().write_all(sql.as_bytes()).unwrap();
    let output = shell.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_shell_of_an_older_sqlite_writes_them_as_any_table() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("control.db");
    Migrations::new(TOOLS_MIGRATIONS).apply(&mut Connection::open(&file).unwrap()).unwrap();
    for (recursive, trusted) in [("OFF", "ON"), ("ON", "OFF")] {
        let told = shell(
            &file,
            &format!(
                "PRAGMA recursive_triggers = {recursive}; PRAGMA trusted_schema = {trusted}; PRAGMA foreign_keys = ON;
                INSERT INTO mcp_tools_registry (tool_name, description, handler_type) VALUES ('a', 'd', 'sql_query');
                SELECT changes();
                UPDATE mcp_tools_registry SET description = 'e';
                SELECT changes();
                REPLACE INTO mcp_tools_registry (tool_name, description, handler_type) VALUES ('a', 'f', 'sql_query');
                DELETE FROM mcp_tools_registry;
                SELECT changes();
                INSERT INTO mcp_tool_policy (tool_name) VALUES ('a');
                DELETE FROM mcp_tool_policy;"
            ),
        );
        assert_eq!(told, "1\n1\n1\n", "{recursive}");
    }
    let tables = Connection::open(&file).unwrap();
    let numbers: Vec<_> = versions(&tables, "a").into_iter().map(|(version, _)| version).collect();
    assert!(numbers.len() >= 8 && numbers.is_sorted_by(|one, next| one < next), "{numbers:?}");
}

#[test]
fn what_is_too_large_is_written_down_cut_and_says_so() {
    let tables = tables();
    let write = |length: usize| {
        let sql = "REPLACE INTO mcp_tools_registry (tool_name, description, handler_type) VALUES ('a', ?1, 'x')";
        tables.execute(sql, ["x".repeat(length)]).unwrap();
        let sql = "SELECT cut, length(description) FROM mcp_tools_history ORDER BY history_id DESC LIMIT 1";
        tables.query_row(sql, [], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?))).unwrap()
    };
    let kept = i64::try_from(KEPT_TEXT).unwrap();
    assert_eq!(write(KEPT_TEXT), (0, kept));
    assert_eq!(write(KEPT_TEXT + 1), (1, kept));
    let bounds = TOOLS.sql.matches(&format!("> {KEPT_TEXT}")).count();
    assert_eq!(bounds, 5 * 2 * 11, "each text, of each of the five entries that triggers make");
}

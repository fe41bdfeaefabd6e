//! From a real file, whoever writes it, to the tools in force.

use horos_store::{
    rusqlite::Connection,
    watch::{WatchConfig, Watcher},
};
use horos_supervision::{Strategy, Supervisor, SupervisorSpec};
use horos_tools::{Registry, reload};

use super::world::{File, SOON, insert, kinds, names};

#[test]
fn a_file_is_read_whole_and_what_it_has_not_is_nothing() {
    let file = File::new();
    let registry = Registry::new(kinds().0, Vec::new());
    file.write(&insert("a", "one"));
    file.write("INSERT INTO mcp_tools_registry (tool_name, description, handler_type, is_active) VALUES ('off', 'x', 'echo', 0)");
    let taken = reload::load(&registry, &file.path).unwrap();
    assert_eq!((taken.changed, taken.wrong), (1, 0));
    assert_eq!(names(&registry), ["a"]);
    assert_eq!(registry.snapshot().tools["a"].spec.version, 1);
    assert_eq!(reload::load(&registry, &file.path).unwrap().changed, 0);
    // A replica of an owner of another release, and one that has nothing yet.
    file.write("ALTER TABLE mcp_tools_registry RENAME TO elsewhere");
    assert_eq!(reload::load(&registry, &file.path).unwrap().gone, 1);
    let gone = file.directory.path().join("none.db");
    assert!(matches!(reload::load(&registry, &gone), Err(reload::ReloadError::Open(_))));
}

#[test]
fn a_read_that_fails_leaves_all_as_it_was() {
    let file = File::new();
    let registry = Registry::new(kinds().0, Vec::new());
    file.write(&insert("a", "one"));
    reload::load(&registry, &file.path).unwrap();
    // A table of that name which is another program's.
    file.write("ALTER TABLE mcp_tools_registry RENAME TO elsewhere; CREATE TABLE mcp_tools_registry (tool_name TEXT)");
    assert!(matches!(reload::load(&registry, &file.path), Err(reload::ReloadError::Sql(_))));
    assert_eq!(names(&registry), ["a"]);
    file.write("DROP TABLE mcp_tools_registry; ALTER TABLE elsewhere RENAME TO mcp_tools_registry");
    file.write(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 10000)
         INSERT INTO mcp_tools_registry (tool_name, description, handler_type) SELECT 't' || i, 'x', 'echo' FROM n",
    );
    file.write("INSERT INTO mcp_tool_policy (tool_name, role) VALUES ('a', 'shop')");
    assert!(matches!(reload::load(&registry, &file.path), Err(reload::ReloadError::TooMany)));
    assert_eq!(names(&registry), ["a"], "of too many none is taken up");
    let caller = super::world::key("ana", &["shop"]);
    assert!(registry.snapshot().policy.allows(&caller, "a"), "who may use what is in force is");
}

/// Rows such as no program of ours would write. Each is shown, and none keeps another from serving.
#[test]
fn hostile_rows_are_shown_and_disturb_nobody() {
    let file = File::new();
    let registry = Registry::new(kinds().0, Vec::new());
    file.shell(&insert("fine", "one"));
    let hostile = [
        "(x'ff00', 'x', 'echo', '{\"type\":\"object\"}', 1)",
        "(CAST(x'ff' AS TEXT), 'x', 'echo', '{\"type\":\"object\"}', 1)",
        "('nul' || char(0), 'x', 'echo', '{\"type\":\"object\"}', 1)",
        "('', 'x', 'echo', '{\"type\":\"object\"}', 1)",
        "(printf('%.*c', 100000, 'n'), 'x', 'echo', '{\"type\":\"object\"}', 1)",
        "('fine' || printf('%.*c', 100000, 'n'), 'x', 'echo', '{\"type\":\"object\"}', 1)",
        "('huge', printf('%.*c', 30000000, 'd'), 'echo', '{\"type\":\"object\"}', 1)",
        "('blob', x'ffff', 'echo', '{\"type\":\"object\"}', 1)",
        "('number', 'x', 5, '{\"type\":\"object\"}', 1)",
        "('deep', 'x', 'echo', printf('%.*c', 60000, '['), 1)",
        "('text', 'x', 'echo', '{\"type\":\"object\"}', 'yes')",
        "('two', 'x', 'echo', '{\"type\":\"object\"}', 2)",
        "('real', 'x', 'echo', '{\"type\":\"object\"}', 0.5)",
        "('ref', 'x', 'echo', '{\"type\":\"object\",\"$ref\":\"https://example.org\"}', 1)",
        "('hidden', 'a' || char(8203), 'echo', '{\"type\":\"object\"}', 1)",
    ];
    for row in hostile {
        file.shell(&format!(
            "INSERT INTO mcp_tools_registry (tool_name, description, handler_type, input_schema, is_active) VALUES {row};"
        ));
    }
    file.shell(
        "INSERT INTO mcp_tools_registry (tool_name, description, handler_type, timeout_ms, version, destructive, group_tag)
            VALUES ('numbers', 'x', 'echo', 'never', 'x', 'y', NULL);
        INSERT INTO mcp_tools_registry (tool_name, description, handler_type, timeout_ms, version, group_tag, input_schema, handler_config)
            VALUES ('null', 'x', 'echo', NULL, -1, NULL, x'7b2274797065223a226f626a656374227d', x'7b7d');",
    );
    let taken = reload::load(&registry, &file.path).unwrap();
    assert_eq!(names(&registry), ["fine", "null"], "JSON may be stored as bytes, as the Go system's driver does");
    assert_eq!(taken.wrong, hostile.len() + 1);
    let snapshot = registry.snapshot();
    for wrong in &snapshot.wrong {
        assert!(!wrong.problems.is_empty() && wrong.name.len() < 600 && wrong.to_string().len() < 5_000, "{wrong}");
    }
    let at = |name: &str| snapshot.wrong.iter().find(|wrong| &*wrong.name == name).unwrap().problems[0].at.to_string();
    for (name, place) in [
        ("huge", "description"),
        ("blob", "description"),
        ("number", "handler_type"),
        ("deep", "input_schema"),
        ("text", "is_active"),
        ("two", "is_active"),
        ("ref", "input_schema/$ref"),
        ("numbers", "destructive"),
    ] {
        assert_eq!(at(name), place, "{name}");
    }
    // Again, and all is as it was.
    let generation = snapshot.generation;
    assert_eq!(reload::load(&registry, &file.path).unwrap().changed, 0);
    assert_eq!(registry.snapshot().generation, generation);
    // What is not clear to be on is off at once.
    file.shell("UPDATE mcp_tools_registry SET is_active = 'no' WHERE tool_name = 'fine';");
    reload::load(&registry, &file.path).unwrap();
    assert_eq!(names(&registry), ["null"]);
    file.shell("UPDATE mcp_tools_registry SET is_active = 1 WHERE tool_name = 'fine';");
    reload::load(&registry, &file.path).unwrap();
    assert_eq!(names(&registry), ["fine", "null"]);
}

/// The whole way: a child that follows the file, and programs that write it, ours and others'.
#[tokio::test(flavor = "multi_thread")]
async fn what_anybody_commits_is_listed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("control.db");
    let registry = Registry::new(kinds().0, Vec::new());
    let mut changes = registry.changes();
    let watcher = Watcher::start(WatchConfig::new(&path)).unwrap();
    let children = vec![reload::child(registry.clone(), path.clone(), watcher)];
    let supervisor = Supervisor::start(SupervisorSpec::new("root", Strategy::OneForOne, children), None).await.unwrap();
    // There is no file yet.
    let file = File::new();
    let source = file.open();
    source.execute_batch(&insert("first", "x")).unwrap();
    source.execute_batch("PRAGMA wal_checkpoint(TRUNCATE); PRAGMA journal_mode = DELETE").unwrap();
    std::fs::copy(&file.path, &path).unwrap();
    let file = File { path, ..file };
    let mut until = async |expected: &[&str]| {
        let listed = async {
            while names(&registry) != expected {
                changes.changed().await.unwrap();
            }
        };
        if tokio::time::timeout(SOON, listed).await.is_err() {
            panic!("{:?} and not {expected:?}", names(&registry));
        }
    };
    until(&["first"]).await;
    file.shell(&insert("second", "x"));
    until(&["first", "second"]).await;
    file.shell("UPDATE mcp_tools_registry SET is_active = 0 WHERE tool_name = 'first';");
    until(&["second"]).await;
    file.shell("REPLACE INTO mcp_tools_registry (tool_name, description, handler_type) VALUES ('first', 'y', 'echo');");
    until(&["first", "second"]).await;
    assert_eq!(registry.snapshot().tools["first"].spec.version, 3);
    file.shell("DELETE FROM mcp_tools_registry;");
    until(&[]).await;
    drop(source);
    let _: Connection = file.open();
    supervisor.stop().await;
}

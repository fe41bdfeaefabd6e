//! Rows that make no sense, in a table made by the Go system and written by any program.

use horos_store::rusqlite::Connection;
use serde_json::json;

use super::world::{SOON, World, becomes, problems, served, sqlite3, tables};
use crate::harness::poll_state;

/// As the Go system makes it, with rows that it takes and nobody can serve.
const GO: &str = "
    CREATE TABLE routes (
        service_name TEXT PRIMARY KEY,
        strategy TEXT NOT NULL CHECK (strategy IN ('local', 'quic', 'http', 'mcp', 'dbsync', 'embed', 'noop')),
        endpoint TEXT, config TEXT DEFAULT '{}', updated_at INTEGER NOT NULL DEFAULT (strftime('%s', 'now')));
    INSERT INTO routes (service_name, strategy, endpoint) VALUES ('stock', 'quic', 'c1@bo-1'), ('other', 'quic', 'c2@bo-1');
    INSERT INTO routes (service_name, strategy, endpoint) VALUES (NULL, 'local', 'c3'), (NULL, 'noop', NULL);
    INSERT INTO routes (service_name, strategy, endpoint, config) VALUES ('torn', 'local', 'c4', '{'), ('tools', 'mcp', 'x', '{}'),
        ('bytes', 'local', x'ff00', '{}'), (x'ff', 'local', 'c5', '{}'), ('nil', 'local', 'c6', NULL), ('numbers', 'http', 7, 8.5);
";

/// What makes a row wrong, and what is said of it.
fn wrong() -> Vec<(String, &'static str)> {
    let long = "x".repeat(200 * 1024);
    vec![
        ("config = '{'".into(), "config"),
        ("config = '[]'".into(), "config"),
        ("config = x'ff00'".into(), "config"),
        ("config = 42".into(), "config"),
        ("config = '{\"timeout_ms\": \"soon\"}'".into(), "config"),
        ("strategy = 'grpc'".into(), "grpc"),
        ("strategy = 42".into(), "42"),
        ("strategy = 'embed'".into(), "embed"),
        ("strategy = ''".into(), "strategy"),
        ("endpoint = -7.5".into(), "endpoint"),
        ("endpoint = 'c9@nowhere at all'".into(), "endpoint"),
        (format!("config = '{{\"padding\": \"{long}\"}}'"), "config"),
        (format!("config = '{long}'"), "config"),
        (format!("endpoint = '{long}'"), "endpoint"),
    ]
}

#[tokio::test]
async fn a_row_that_is_wrong_is_shown_on_every_node_takes_nothing_away_and_is_healed_by_a_right_one() {
    let world = World::with(&[], |bo| {
        for ending in ["", "-wal", "-shm"] {
            let _ = std::fs::remove_file(bo.data.join(format!("control.db{ending}")));
        }
        Connection::open(tables(bo)).unwrap().execute_batch(GO).unwrap();
    })
    .await;
    for node in world.nodes() {
        becomes(node, "stock", "c1@bo-1").await;
        becomes(node, "other", "c2@bo-1").await;
        becomes(node, "nil", &format!("c6@{}", node.name)).await;
        for service in ["torn", "tools", "bytes", "numbers"] {
            assert_eq!(served(node, service).await, "NoSuchActor", "{service} from {}", node.name);
        }
    }
    for service in ["torn", "tools", "bytes", "numbers"] {
        for (node, found) in problems(&world.bo, service).await {
            assert!(!found.is_empty(), "{service} on {node}");
        }
    }
    let listed = world.bo.ask(&["routes", "list"]).await.expect_code(0).json();
    assert_eq!(listed.as_array().unwrap().len(), 10, "{listed}");

    // One service for each way to be wrong, all of them right at first.
    let wrong = wrong();
    for number in 0..wrong.len() {
        world.route(&format!("s{number}"), "quic", Some(&format!("c{number}@bo-1")), &json!({}));
    }
    for node in world.nodes() {
        becomes(node, &format!("s{}", wrong.len() - 1), &format!("c{}@bo-1", wrong.len() - 1)).await;
    }
    let connection = super::world::connect(&world.bo);
    let set = |wrong: &str, number: usize| connection.execute(&format!("UPDATE routes SET {wrong} WHERE service_name = 's{number}'"), []);
    for (number, (wrong, said)) in wrong.iter().enumerate() {
        let shown = &wrong[..wrong.len().min(60)];
        // A STRICT table refuses some of them itself, which is as good; what it takes is shown on both nodes.
        if let Err(error) = set(wrong, number) {
            assert!(error.to_string().contains("cannot store"), "{shown}: {error}");
            continue;
        }
        poll_state(&format!("{shown} is shown"), SOON, async || {
            let found = problems(&world.bo, &format!("s{number}")).await;
            let all = found.len() == 2 && found.iter().all(|(_, problems)| problems.iter().any(|problem| problem.contains(said)));
            if all { Ok(()) } else { Err(format!("{found:?}").chars().take(500).collect()) }
        })
        .await;
        let node = world.nodes()[number % 2];
        let by = format!("c{number}@bo-1");
        assert_eq!(served(node, &format!("s{number}")).await, by, "{shown}: the last good one serves on {}", node.name);
    }
    // Another route goes on, and is even changed.
    sqlite3(&tables(&world.bo), "UPDATE routes SET endpoint = 'c99@bo-1' WHERE service_name = 'other'");
    for node in world.nodes() {
        becomes(node, "stock", "c1@bo-1").await;
        becomes(node, "other", "c99@bo-1").await;
    }
    let fix = "UPDATE routes SET strategy = 'quic', endpoint = 'c100@bo-1', config = '{}' WHERE service_name GLOB 's[0-9]*'";
    sqlite3(&tables(&world.bo), fix);
    for number in 0..wrong.len() {
        poll_state(&format!("s{number} is healed"), SOON, async || {
            let found = problems(&world.bo, &format!("s{number}")).await;
            if found.iter().all(|(_, problems)| problems.is_empty()) { Ok(()) } else { Err(format!("{found:?}")) }
        })
        .await;
        assert_eq!(served(world.nodes()[number % 2], &format!("s{number}")).await, "c100@bo-1");
    }
    // Healed by another place, which is then in force.
    world.route("torn", "quic", Some("c7@fo-1"), &json!({}));
    for node in world.nodes() {
        becomes(node, "torn", "c7@fo-1").await;
    }
}

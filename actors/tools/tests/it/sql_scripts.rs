//! Scripts: all or nothing, within their list, with values that are shared and given back.

use std::time::{Duration, Instant};

use horos_store::StoreError;
use horos_tools::{Mode, ToolError};
use serde_json::{Value, json};

use super::sql_world::{LIMIT, Terms, World};

/// What a query outside finds, as text.
fn one(world: &World, sql: &str) -> String {
    world.aside().query_row(sql, [], |row| row.get_ref(0).map(|value| format!("{value:?}"))).unwrap()
}

#[tokio::test]
async fn parent_and_child_share_an_id_which_is_given_back() {
    let world = World::new().await;
    let config = json!({
        "let": { "parent": "{{uuid()}}", "at": "{{now()}}" },
        "statements": [
            { "sql": "INSERT INTO lines (id, parent, what) VALUES (:parent, '', :what)" },
            { "sql": "INSERT INTO lines (id, parent, what) VALUES (?, ?, 'child') RETURNING id, parent", "params": ["{{uuid()}}", "parent"], "name": "child" },
            { "sql": "SELECT count(*) AS n FROM lines WHERE parent = ?", "params": ["{{parent}}"], "let": "children" },
            { "sql": "INSERT INTO orders (sku, qty) VALUES ('p-1', :children)", "let": "order" },
        ],
        "tables": { "lines": true, "orders": true, "goods": ["sku"] }, "writes": { "lines": ["insert"], "orders": ["insert"] },
    });
    let tool = world.script(config, json!({ "what": { "type": "string" } })).unwrap();
    let found = tool.json(json!({ "what": "first" })).await;
    let parent = found["values"]["parent"].as_str().unwrap();
    assert_eq!(parent.len(), 36);
    assert_eq!(found["results"]["child"][0]["parent"], parent);
    assert_ne!(found["results"]["child"][0]["id"], parent);
    assert_eq!((&found["values"]["children"], &found["values"]["order"]), (&json!(1), &json!(3)));
    assert!(found["values"]["at"].as_i64().unwrap() > 1_700_000_000);
    assert_eq!((&found["success"], &found["affected_rows"], &found["last_insert_id"]), (&json!(true), &json!(3), &json!(3)));
    assert_eq!(
        one(&world, "SELECT group_concat(what, ',') FROM (SELECT what FROM lines ORDER BY what)"),
        "Text(\"child,first\")".replace("\"child,first\"", "[99, 104, 105, 108, 100, 44, 102, 105, 114, 115, 116]")
    );
}

#[tokio::test]
async fn results_are_those_of_the_go_system_where_it_is_asked_for() {
    let world = World::new().await;
    let call = async |give: &str, sql: &str| {
        let config = json!({ "statements": [{ "sql": sql }], "return": give, "tables": { "orders": true, "goods": true }, "writes": { "orders": ["insert", "update"] } });
        world.script(config, json!({})).unwrap().json(json!({})).await
    };
    assert_eq!(call("last_insert_rowid", "INSERT INTO orders (sku, qty) VALUES ('p-1', 1)").await, json!({ "last_insert_id": 3 }));
    assert_eq!(call("affected_rows", "UPDATE orders SET qty = 2").await, json!({ "affected_rows": 3 }));
    assert_eq!(
        call("all", "UPDATE orders SET qty = 2 WHERE 0").await,
        json!({ "success": true, "affected_rows": 0, "last_insert_id": null })
    );
}

#[tokio::test]
async fn a_failure_at_the_end_takes_back_the_beginning() {
    let world = World::new().await;
    let script = |transaction: bool| {
        let config = json!({
            "statements": [{ "sql": "UPDATE orders SET qty = qty + 1 WHERE id = 1" }, { "sql": "INSERT INTO orders (id, sku, qty) VALUES (1, 'p-1', 1)" }],
            "transaction": transaction, "tables": { "orders": true, "goods": true }, "writes": { "orders": ["insert", "update"] },
        });
        world.script(config, json!({})).unwrap()
    };
    let said = script(true).call(json!({})).await;
    assert!(matches!(&said, Err(ToolError::Failed(text)) if text.contains("conflicts") && !text.contains("kept")), "{said:?}");
    assert_eq!(one(&world, "SELECT qty FROM orders WHERE id = 1"), "Integer(2)");
    // Each by itself, where that is asked for: then it is said what is kept.
    let said = script(false).call(json!({})).await;
    assert!(matches!(&said, Err(ToolError::Failed(text)) if text.contains("kept")), "{said:?}");
    assert_eq!(one(&world, "SELECT qty FROM orders WHERE id = 1"), "Integer(3)");
}

#[tokio::test]
async fn a_script_is_stopped_at_its_deadline_and_undone() {
    let world = World::new().await;
    let config = json!({
        "statements": [{ "sql": "UPDATE orders SET qty = 99" },
            { "sql": "INSERT INTO orders (sku, qty) WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT 'p-1', i FROM n" }],
        "tables": { "orders": true, "goods": true }, "writes": { "orders": ["insert", "update"] },
    });
    let tool = world.script(config, json!({})).unwrap();
    let terms = Terms { within: Duration::from_millis(100), ..Terms::default() };
    let ended = tool.call_on(&terms, json!({})).await;
    assert!(matches!(ended, Err(ToolError::Deadline { undone: true, .. })), "{ended:?}");
    assert_eq!(one(&world, "SELECT sum(qty) FROM orders"), "Integer(3)");
}

#[tokio::test]
async fn triggers_of_the_schema_write_by_the_tools_list_and_capture_by_its_own() {
    let world = World::new().await;
    let script = |writes: Value| {
        let config = json!({ "statements": [{ "sql": "DELETE FROM orders WHERE id = :id" }], "tables": { "orders": ["id"], "goods": ["sku"] }, "writes": writes });
        world.script(config, json!({ "id": {} })).unwrap()
    };
    assert!(matches!(script(json!({ "orders": ["delete"] })).call(json!({ "id": 1 })).await, Err(ToolError::Failed(_))));
    assert_eq!(one(&world, "SELECT count(*) FROM orders"), "Integer(2)");
    let listed = script(json!({ "orders": ["delete"], "audit": ["insert"] }));
    assert_eq!(listed.json(json!({ "id": 1 })).await["affected_rows"], 1);
    // As capture names its triggers, and nobody else can.
    world
        .aside()
        .execute_batch("CREATE TRIGGER _horos_1_delete AFTER DELETE ON orders BEGIN INSERT INTO _horos_log (row) VALUES (OLD.note); END")
        .unwrap();
    assert_eq!(listed.json(json!({ "id": 2 })).await["affected_rows"], 1);
    assert_eq!(one(&world, "SELECT count(*) FROM _horos_log"), "Integer(2)");
}

#[tokio::test]
async fn what_replaces_needs_the_right_to_delete() {
    let world = World::new().await;
    let script = |sql: &str, writes: Value| {
        let config = json!({ "statements": [{ "sql": sql }], "tables": { "lines": true }, "writes": { "lines": writes } });
        world.script(config, json!({})).unwrap()
    };
    world.aside().execute_batch("INSERT INTO lines VALUES ('a', '', 'old')").unwrap();
    let forms = [
        ("REPLACE INTO lines VALUES ('a', '', 'new')", "insert"),
        ("INSERT OR REPLACE INTO lines VALUES ('a', '', 'new')", "insert"),
        ("UPDATE OR REPLACE lines SET what = 'new'", "update"),
        ("WITH x AS (SELECT 1) REPLACE INTO lines SELECT 'a', '', 'new' FROM x", "insert"),
    ];
    for (sql, right) in forms {
        assert!(matches!(script(sql, json!([right])).call(json!({})).await, Err(ToolError::Failed(_))), "{sql}");
        assert_eq!(one(&world, "SELECT what = 'old' FROM lines"), "Integer(1)", "{sql}");
    }
    for (sql, right) in forms {
        script(sql, json!([right, "delete"])).json(json!({})).await;
    }
    assert_eq!(one(&world, "SELECT what = 'new' FROM lines"), "Integer(1)");
}

#[tokio::test]
async fn an_update_keeps_to_its_columns() {
    let world = World::new().await;
    let script = |sql: &str| {
        let config = json!({ "statements": [{ "sql": sql }], "tables": { "orders": true }, "writes": { "orders": { "insert": true, "update": ["status"] } } });
        world.script(config, json!({})).unwrap()
    };
    assert_eq!(script("UPDATE orders SET status = 'sent'").json(json!({})).await["affected_rows"], 2);
    assert!(matches!(script("UPDATE orders SET status = 'sent', qty = 0").call(json!({})).await, Err(ToolError::Failed(_))));
    let upsert = "INSERT INTO orders (id, sku, qty) VALUES (1, 'p-1', 1) ON CONFLICT (id) DO UPDATE SET qty = 0";
    assert!(matches!(script(upsert).call(json!({})).await, Err(ToolError::Failed(_))));
    assert_eq!(one(&world, "SELECT sum(qty) FROM orders WHERE status = 'sent'"), "Integer(3)");
}

#[tokio::test]
async fn the_writer_is_left_as_it_was() {
    let world = World::new().await;
    let refused = json!({ "statements": [{ "sql": "UPDATE orders SET qty = 5" }, { "sql": "DELETE FROM secrets" }], "tables": {}, "writes": { "orders": ["update"] } });
    let refused = world.script(refused, json!({})).unwrap();
    for _ in 0..3 {
        assert!(refused.call(json!({})).await.is_err());
        // The next job, of the node itself, is asked nothing and limited by nothing of the tool's.
        let done = world.shelf.writer.transaction(Instant::now() + LIMIT, |connection| {
            connection.execute("UPDATE secrets SET password = hex(zeroblob(300000))", [])?;
            connection.execute("UPDATE secrets SET password = 'hunter2-xyzzy'", [])?;
            Ok::<_, StoreError>(connection.changes())
        });
        assert_eq!(done.await.unwrap(), 1);
    }
    assert_eq!(one(&world, "SELECT sum(qty) FROM orders"), "Integer(3)");
}

#[tokio::test]
async fn a_result_that_is_too_large_undoes_what_was_done() {
    let world = World::new().await;
    let config = json!({ "statements": [{ "sql": "UPDATE orders SET note = hex(zeroblob(1000)) RETURNING note" }], "tables": { "orders": true }, "writes": { "orders": ["update"] } });
    let tool = world.script(config, json!({})).unwrap();
    let ended = tool.call_on(&Terms { max_bytes: 2_500, ..Terms::default() }, json!({})).await;
    assert!(matches!(ended, Err(ToolError::TooLarge { limit: 2_500 })), "{ended:?}");
    assert_eq!(one(&world, "SELECT count(note) FROM orders"), "Integer(0)");
}

#[tokio::test]
async fn a_script_without_a_list_says_what_it_would_have_to_be() {
    let world = World::new().await;
    let config = json!({ "statements": [{ "sql": "INSERT INTO orders (sku, qty) VALUES (?, 1) RETURNING id", "params": ["sku"] }, { "sql": "UPDATE orders SET qty = 2" }] });
    let tool = world.script(config.clone(), json!({ "sku": {} })).unwrap();
    let mut operator = Terms::default();
    operator.caller.who = horos_tools::Who::Node(std::sync::Arc::new(horos_wire::NodeId::from_uri("spiffe://test/operator/ann").unwrap()));
    let said = tool.call_on(&operator, json!({ "sku": "p-1" })).await.unwrap_err().to_string();
    let list = said.split_once("add ").unwrap().1;
    assert_eq!(one(&world, "SELECT count(*) FROM orders"), "Integer(2)");
    let mut config = config;
    for (key, value) in serde_json::from_str::<Value>(list).unwrap().as_object().unwrap() {
        config[key] = value.clone();
    }
    let made = world.script(config, json!({ "sku": {} })).unwrap().json(json!({ "sku": "p-1" })).await;
    assert_eq!(made["affected_rows"], 4, "{list}");
}

#[tokio::test]
async fn a_script_that_is_wrong_is_said_to_be_where() {
    let world = World::new().await;
    let config = json!({
        "let": { "id": "{{uuuid()}}", "sku": 1 },
        "statements": [{ "sql": "UPDATE orders SET qty = :qyt" }, { "sql": "DROP TABLE orders" }, { "sql": "SELECT 1", "name": "3" }, { "sql": "SELECT 1; SELECT 2" }, { "sql": "SELECT ?", "params": [] , "extra": 1 }],
    });
    let problems = world.make(&world.script, Mode::ReadOnly, &config, &json!({ "sku": {}, "qty": {} })).err().unwrap();
    let at: Vec<&str> = problems.iter().map(|problem| &*problem.at).collect();
    for place in [
        "mode",
        "handler_config.database",
        "handler_config.let.id",
        "handler_config.let.sku",
        "handler_config.statements[0]",
        "handler_config.statements[1].sql",
        "handler_config.statements[3].sql",
        "handler_config.statements[4].params",
        "handler_config.statements[4].extra",
    ] {
        assert!(at.contains(&place), "{place} in {at:?}");
    }
}

//! Queries: what they give, and that they give no more.

use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use horos_tools::{
    Call, Caller, Kind as _, Mode, Output, PassOn, ToolError, Transport, Who,
    sql::{Query, Script},
};
use horos_wire::NodeId;
use proptest::{prelude::*, test_runner::TestRunner};
use serde_json::{Value, json};

use super::sql_world::{Terms, World, scale, somebody};

fn goods() -> Value {
    json!({ "goods": ["sku", "price"] })
}

#[tokio::test]
async fn a_query_answers_with_typed_rows() {
    let world = World::new().await;
    let config = json!({ "query": "SELECT sku, price FROM goods WHERE price < :most ORDER BY sku", "tables": goods() });
    let tool = world.query(config, json!({ "most": { "type": "integer" } })).unwrap();
    let rows = json!([{ "sku": "p-1", "price": 30 }, { "sku": "p-3", "price": 9 }]);
    assert_eq!(tool.json(json!({ "most": 100 })).await, json!({ "columns": ["sku", "price"], "rows": rows }));
    assert!(tool.output.is_some());
}

#[tokio::test]
async fn positional_parameters_are_names_templates_and_literals() {
    let world = World::new().await;
    let config = json!({ "query": "SELECT ? AS a, ? AS b, ? AS c, ? AS d, length(?) AS e, ? > 1000000000 AS f, ? AS g",
        "params": ["x", "{{x}}", 42, { "value": "x" }, "{{uuid()}}", "{{now()}}", "missing"], "tables": {} });
    let tool = world.query(config, json!({ "x": {}, "missing": {} })).unwrap();
    let row = json!({ "a": "v", "b": "v", "c": 42, "d": "x", "e": 36, "f": 1, "g": null });
    assert_eq!(tool.json(json!({ "x": "v" })).await["rows"], json!([row]));
}

#[tokio::test]
async fn an_object_is_a_row_itself_or_null() {
    let world = World::new().await;
    let config =
        json!({ "query": "SELECT sku, price FROM goods WHERE sku = ?", "params": ["sku"], "result_format": "object", "tables": goods() });
    let tool = world.query(config, json!({ "sku": {} })).unwrap();
    assert_eq!(tool.json(json!({ "sku": "p-2" })).await, json!({ "sku": "p-2", "price": 250 }));
    let none = tool.call(json!({ "sku": "none" })).await.unwrap();
    assert!(none.structured.is_none() && none.content.len() == 1);
    assert!(format!("{:?}", none.content).contains("null"));
}

#[tokio::test]
async fn pages_follow_one_another_to_the_last_row() {
    let world = World::new().await;
    let numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :count) SELECT i FROM n";
    let config = json!({ "query": numbers, "tables": {}, "page_rows": 7, "max_rows": 30 });
    let tool = world.query(config, json!({ "count": { "type": "integer" } })).unwrap();
    for (count, pages, truncated) in
        [(1, 1, false), (7, 1, false), (8, 2, false), (29, 5, false), (30, 5, false), (31, 5, true), (1000, 5, true)]
    {
        let (mut seen, mut turned, mut cursor) = (Vec::new(), 0, None::<Value>);
        let last = loop {
            let mut arguments = json!({ "count": count });
            if let Some(cursor) = cursor {
                arguments["cursor"] = cursor;
            }
            let page = tool.json(arguments).await;
            turned += 1;
            seen.extend(page["rows"].as_array().unwrap().iter().map(|row| row["i"].as_i64().unwrap()));
            match page.get("next") {
                Some(next) => cursor = Some(next.clone()),
                None => break page,
            }
        };
        assert_eq!((seen, turned), ((1..=count.min(30)).collect::<Vec<_>>(), pages), "{count}");
        assert_eq!(last.get("truncated").is_some(), truncated, "{count}");
    }
}

#[tokio::test]
async fn a_page_ends_where_its_bytes_do_and_nothing_is_lost() {
    let world = World::new().await;
    let wide =
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 50) SELECT i, printf('%*d', i * 20, i) AS wide FROM n";
    let tool = world.query(json!({ "query": wide, "tables": {} }), json!({})).unwrap();
    let terms = Terms { max_bytes: 4_000, ..Terms::default() };
    let (mut rows, mut arguments) = (0, json!({}));
    loop {
        let page = tool.call_on(&terms, arguments.clone()).await.unwrap().structured.unwrap();
        assert!(page.to_string().len() <= 4_000);
        rows += page["rows"].as_array().unwrap().len();
        let Some(next) = page.get("next") else { break };
        arguments = json!({ "cursor": next });
    }
    assert_eq!(rows, 50);
    let terms = Terms { max_bytes: 600, ..Terms::default() };
    let mut arguments = json!({});
    let ended = loop {
        match tool.call_on(&terms, arguments).await {
            Ok(page) => arguments = json!({ "cursor": page.structured.unwrap()["next"] }),
            Err(error) => break error,
        }
    };
    assert!(matches!(ended, ToolError::TooLarge { limit: 600 }), "{ended:?}");
}

#[tokio::test]
async fn a_cursor_is_bound_to_its_arguments() {
    let world = World::new().await;
    let config = json!({ "query": "SELECT sku FROM goods WHERE price < :most ORDER BY sku", "tables": goods(), "page_rows": 1 });
    let tool = world.query(config, json!({ "most": {} })).unwrap();
    let next = tool.json(json!({ "most": 300 })).await["next"].clone();
    assert_eq!(tool.json(json!({ "most": 300, "cursor": next })).await["rows"], json!([{ "sku": "p-2" }]));
    let other = tool.call(json!({ "most": 301, "cursor": next })).await;
    assert!(matches!(other, Err(ToolError::Arguments(_))), "{other:?}");
}

#[tokio::test]
async fn values_come_out_as_they_went_in() {
    let world = World::new().await;
    let insert = json!({ "statements": [{ "sql": "INSERT INTO plain (a, b) VALUES (:a, :b) RETURNING a, b" }], "tables": { "plain": true }, "writes": { "plain": ["insert"] } });
    let insert = world.script(insert, json!({ "a": {}, "b": {} })).unwrap();
    let find = json!({ "query": "SELECT a, b FROM plain WHERE rowid = :id", "tables": { "plain": true }, "result_format": "object" });
    let find = world.query(find, json!({ "id": {} })).unwrap();
    let value = prop_oneof![
        Just(Value::Null),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_filter("JSON has no such number", |real| real.is_finite()).prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        prop::collection::vec(any::<u8>(), 0..40).prop_map(|bytes| {
            use base64::{Engine as _, prelude::BASE64_STANDARD};
            json!({ "base64": BASE64_STANDARD.encode(bytes) })
        }),
    ];
    let config = ProptestConfig { cases: scale(64, 4_096), failure_persistence: None, ..ProptestConfig::default() };
    let (runtime, mut runner) = (tokio::runtime::Handle::current(), TestRunner::new(config));
    tokio::task::spawn_blocking(move || {
        let ran = runner.run(&(value.clone(), value), |(a, b)| {
            let row = json!({ "a": a, "b": b });
            let made = runtime.block_on(insert.json(row.clone()));
            prop_assert_eq!(&made["results"]["1"], &json!([row]));
            let found = runtime.block_on(find.json(json!({ "id": made["last_insert_id"] })));
            prop_assert_eq!(found, row);
            Ok(())
        });
        ran.unwrap();
    })
    .await
    .unwrap();
    drop(world);
}

#[tokio::test]
async fn one_tools_prepared_statement_never_runs_under_anothers_rights() {
    let world = World::new().await;
    let tool = |tables: Value| world.query(json!({ "query": "SELECT sku, cost FROM goods", "tables": tables }), json!({})).unwrap();
    let (all, some) = (tool(json!({ "goods": true })), tool(goods()));
    for _ in 0..5 {
        assert_eq!(all.json(json!({})).await["rows"].as_array().unwrap().len(), 3);
        assert!(matches!(some.call(json!({})).await, Err(ToolError::Failed(_))));
    }
}

#[tokio::test]
async fn a_statement_that_is_prepared_anew_is_authorized_anew() {
    let world = World::new().await;
    let query = json!({ "query": "SELECT sku, price FROM cheap", "tables": { "cheap": true, "goods": ["sku", "price"] } });
    let tool = world.query(query, json!({})).unwrap();
    for _ in 0..4 {
        assert_eq!(tool.json(json!({})).await["rows"].as_array().unwrap().len(), 2);
    }
    // The view now shows something else under the same names.
    world.aside().execute_batch("DROP VIEW cheap; CREATE VIEW cheap AS SELECT sku, cost AS price FROM goods").unwrap();
    for _ in 0..4 {
        assert!(matches!(tool.call(json!({})).await, Err(ToolError::Failed(_))));
    }
    // And a name that a statement defines becomes a table's.
    let tool =
        world.query(json!({ "query": "WITH later AS (SELECT 1) SELECT count(*) AS n FROM later", "tables": {} }), json!({})).unwrap();
    assert_eq!(tool.json(json!({})).await["rows"], json!([{ "n": 1 }]));
    world.aside().execute_batch("CREATE TABLE later (a)").unwrap();
    for _ in 0..4 {
        assert!(matches!(tool.call(json!({})).await, Err(ToolError::Failed(_))));
    }
}

#[tokio::test]
async fn a_view_is_read_where_it_and_what_it_reads_are_listed() {
    let world = World::new().await;
    let tool = |tables: Value| world.query(json!({ "query": "SELECT sku FROM cheap ORDER BY sku", "tables": tables }), json!({})).unwrap();
    let rows = json!([{ "sku": "p-1" }, { "sku": "p-3" }]);
    assert_eq!(tool(json!({ "cheap": ["sku"], "goods": ["sku", "price"] })).json(json!({})).await["rows"], rows);
    for tables in [json!({ "cheap": true }), json!({ "goods": true }), json!({ "cheap": ["sku"], "goods": ["sku"] })] {
        assert!(matches!(tool(tables.clone()).call(json!({})).await, Err(ToolError::Failed(_))), "{tables}");
    }
}

#[tokio::test]
async fn a_row_without_tables_tells_an_operator_what_to_write_and_nobody_else() {
    let world = World::new().await;
    let query = "SELECT g.sku, count(*), random() FROM goods g JOIN orders o ON o.sku = g.sku WHERE g.price > 1 GROUP BY g.sku";
    let tool = world.query(json!({ "query": query }), json!({})).unwrap();
    let said = tool.call(json!({})).await.unwrap_err().to_string();
    assert!(!said.contains("goods") && said.contains("reference"), "{said}");
    let node = NodeId::from_uri("spiffe://test/operator/ann").unwrap();
    let operator = Caller { who: Who::Node(Arc::new(node)), credential: None, ..somebody() };
    let said = tool.call_on(&Terms { caller: operator, ..Terms::default() }, json!({})).await.unwrap_err().to_string();
    let lists = r#"{"functions":["random"],"tables":{"goods":["price","sku"],"orders":["sku"]}}"#;
    assert!(said.ends_with(lists), "{said}");
    let mut config: Value = serde_json::from_str(lists).unwrap();
    config["query"] = query.into();
    assert_eq!(world.query(config, json!({})).unwrap().json(json!({})).await["rows"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn everything_wrong_with_a_row_is_said_at_once_and_where() {
    let world = World::new().await;
    let config = json!({ "database": "control.db", "query": "SELEC sku FROM goods", "params": ["x"], "tables": ["goods"], "page_rows": 0, "typo": 1 });
    let problems = world.query(config, json!({ "cursor": {} })).err().unwrap();
    let at: Vec<&str> = problems.iter().map(|problem| &*problem.at).collect();
    for place in [
        "handler_config.database",
        "handler_config.query",
        "handler_config.tables",
        "handler_config.page_rows",
        "handler_config.typo",
        "input_schema.properties.cursor",
    ] {
        assert!(at.contains(&place), "{place} in {at:?}");
    }
}

/// Answers for another node.
#[derive(Debug)]
struct Owner;

impl PassOn for Owner {
    fn pass_on<'a>(&'a self, call: Call<'a>) -> BoxFuture<'a, Result<Output, ToolError>> {
        Box::pin(async move { Ok(Output::json(json!({ "passed": call.tool, "with": call.arguments, "by": call.caller.id() }))) })
    }
}

#[tokio::test]
async fn what_is_elsewhere_is_passed_on_once() {
    let world = World::new().await;
    let (query, script) =
        (Query::new(world.shelf.clone()).passing_on(Arc::new(Owner)), Script::new(world.shelf.clone()).passing_on(Arc::new(Owner)));
    let read = json!({ "database": "other.db", "query": "SELECT 1 AS one", "tables": {} });
    let write = json!({ "database": "other.db", "statements": [{ "sql": "DELETE FROM orders" }], "writes": {} });
    let tools = [
        world.make(&query, Mode::ReadOnly, &read, &json!({ "x": {} })).unwrap(),
        world.make(&script, Mode::ReadWrite, &write, &json!({ "x": {} })).unwrap(),
    ];
    for tool in tools {
        assert_eq!(tool.json(json!({ "x": 1 })).await, json!({ "passed": "tool", "with": { "x": 1 }, "by": "key_1" }));
        let again = Terms { caller: Caller { transport: Transport::Link, ..somebody() }, ..Terms::default() };
        assert!(matches!(tool.call_on(&again, json!({})).await, Err(ToolError::Unavailable(_))));
    }
    // A node that has a replica reads that.
    let replica = json!({ "database": "other.db", "replica": "app.db", "query": "SELECT 1 AS one", "tables": {} });
    let tool = world.make(&query, Mode::ReadOnly, &replica, &json!({})).unwrap();
    assert_eq!(tool.json(json!({})).await["rows"], json!([{ "one": 1 }]));
    assert!(query.check(&Default::default(), Mode::ReadOnly, &Default::default(), &Default::default()).is_err());
}

#[tokio::test]
async fn a_statement_that_fills_the_memory_is_stopped() {
    let world = World::new().await;
    let query = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT hex(zeroblob(50000)) || i AS w FROM n ORDER BY w";
    let tool = world.query(json!({ "query": query, "tables": {} }), json!({})).unwrap();
    let said = tool.call(json!({})).await;
    assert!(matches!(&said, Err(ToolError::Failed(text)) if text.contains("memory")), "{said:?}");
}

#[tokio::test]
async fn the_connection_has_its_limits_back_afterwards() {
    let world = World::new().await;
    let tool = world.query(json!({ "query": "SELECT length(zeroblob(300000)) AS n", "tables": {} }), json!({})).unwrap();
    assert!(matches!(tool.call(json!({})).await, Err(ToolError::Failed(_))));
    let until = std::time::Instant::now() + Duration::from_secs(20);
    for _ in 0..4 {
        let long: i64 = world
            .shelf
            .readers
            .read(until, |connection| connection.query_row("SELECT length(hex(zeroblob(300000)))", [], |row| row.get(0)))
            .await
            .unwrap();
        assert_eq!(long, 600_000);
    }
    let tool = world
        .query(json!({ "query": "SELECT length(zeroblob(300000)) AS n", "tables": {}, "max_value_bytes": 400_000 }), json!({}))
        .unwrap();
    assert_eq!(tool.json(json!({})).await["rows"], json!([{ "n": 300_000 }]));
}

#[tokio::test]
async fn columns_are_called_what_they_are_called_now() {
    let world = World::new().await;
    let tool = world.query(json!({ "query": "SELECT * FROM plain ORDER BY 1 LIMIT 1", "tables": { "plain": true } }), json!({})).unwrap();
    for _ in 0..4 {
        assert_eq!(tool.json(json!({})).await["rows"], json!([{ "a": 1, "b": "one" }]));
    }
    world.aside().execute_batch("DROP TABLE plain; CREATE TABLE plain (b, c, a); INSERT INTO plain VALUES ('x', 'y', 'z')").unwrap();
    for _ in 0..4 {
        let found = tool.json(json!({})).await;
        assert_eq!((&found["columns"], &found["rows"]), (&json!(["b", "c", "a"]), &json!([{ "a": "z", "b": "x", "c": "y" }])));
    }
    world.aside().execute_batch("DELETE FROM plain; ALTER TABLE plain DROP COLUMN c").unwrap();
    for _ in 0..4 {
        assert_eq!(tool.json(json!({})).await, json!({ "columns": ["b", "a"], "rows": [] }));
    }
}

#[tokio::test]
async fn a_list_among_the_arguments_is_a_table_where_that_is_listed() {
    let world = World::new().await;
    let query = "SELECT sku, price FROM goods WHERE sku IN (SELECT value FROM json_each(:skus)) ORDER BY sku";
    let tables = json!({ "goods": ["sku", "price"], "json_each": ["value"] });
    let tool = world.query(json!({ "query": query, "tables": tables }), json!({ "skus": { "type": "array" } })).unwrap();
    let found = tool.json(json!({ "skus": ["p-1", "p-3", "' OR 1"] })).await;
    assert_eq!(found["rows"], json!([{ "sku": "p-1", "price": 30 }, { "sku": "p-3", "price": 9 }]));
}

#[tokio::test]
async fn joins_by_name_are_for_columns_that_are_listed() {
    let world = World::new().await;
    let using = "SELECT o.id FROM orders o JOIN goods g USING (sku) ORDER BY o.id";
    let tool = world.query(json!({ "query": using, "tables": { "goods": ["sku"], "orders": ["id", "sku"] } }), json!({})).unwrap();
    assert_eq!(tool.json(json!({})).await["rows"], json!([{ "id": 1 }, { "id": 2 }]));
    let natural = using.replace("o JOIN", "o NATURAL JOIN").replace("USING (sku)", "");
    let tool = world.query(json!({ "query": natural, "tables": { "goods": true, "orders": true } }), json!({})).unwrap();
    assert_eq!(tool.json(json!({})).await["rows"].as_array().unwrap().len(), 2);
    assert!(world.query(json!({ "query": natural, "tables": { "goods": true, "orders": ["id", "sku"] } }), json!({})).is_err());
}

//! Tools that are rows: committed by anybody on the owner, they are listed and called on every node.

use serde_json::{Value, json};

use super::world::{Came, Client, Line, SOON, World, numbers, sqlite3};
use crate::harness::http::Ask;
use crate::harness::http::{Session, Speaks, metric};
use crate::harness::{Node, poll_state};

const BELOW: &str = "SELECT sku, price FROM goods WHERE price < :price ORDER BY sku";

fn below_600() -> Value {
    json!([{ "sku": "cups", "price": 200 }, { "sku": "tea", "price": 500 }])
}

#[tokio::test]
async fn a_row_committed_by_sqlite3_is_listed_and_called_on_both_nodes_and_sessions_elsewhere_are_told() {
    let world = World::start().await;
    let mut listening = Line::open(&world.fo, &world.fo.operator.clone()).await;
    let key = world.bo.key(&["shop"]).await;
    let mut clients = [Client::open(&world.bo, &key).await, Client::open(&world.fo, &key).await];
    for client in &mut clients {
        assert_eq!(client.names().await, Vec::<String>::new(), "nothing is anybody's without a rule");
    }

    world.allow("goods_below", "shop");
    world.query("goods_below", BELOW, &numbers(&["price"]));
    // The rule is one change, and the row another.
    let mut listed = false;
    while !listed {
        listening.hears("notifications/tools/list_changed").await;
        listed = listening.names().await.contains(&"goods_below".to_owned());
    }
    for client in &mut clients {
        client.lists("goods_below", true).await;
        // The FO has no such file: the BO does it, for whoever the key proves there.
        assert_eq!(client.call("goods_below", json!({ "price": 600 })).await.rows(), below_600());
        let Came::Failed(words) = client.call("goods_below", json!({ "price": "cheap" })).await else { panic!("it takes a number") };
        assert!(words.contains("/price") && words.contains("invalid arguments"), "{words}");
        assert!(matches!(client.call("goods_above", json!({})).await, Came::Refused(-32602, _)));
    }

    // Edited, turned off and deleted, each by a program of its own.
    world.commit("UPDATE mcp_tools_registry SET description = 'What is cheap.' WHERE tool_name = 'goods_below'");
    for client in &mut clients {
        poll_state("the new words are listed", SOON, async || {
            let tool = client.list().await.into_iter().find(|tool| tool["name"] == "goods_below").unwrap();
            if tool["description"] == "What is cheap." { Ok(()) } else { Err(tool.to_string()) }
        })
        .await;
    }
    world.commit("UPDATE mcp_tools_registry SET is_active = 0");
    for client in &mut clients {
        client.lists("goods_below", false).await;
        assert!(matches!(client.call("goods_below", json!({ "price": 600 })).await, Came::Refused(-32602, _)));
    }
}

#[tokio::test]
async fn an_fo_that_has_a_replica_reads_it_while_the_owner_is_away_and_sends_nothing_else_on() {
    let mut world = World::replicating().await;
    world.allow("*", "shop");
    world.query("goods_below", BELOW, &numbers(&["price"]));
    let key = world.bo.key(&["shop"]).await;
    let mut client = Client::open(&world.fo, &key).await;
    client.lists("goods_below", true).await;
    poll_state("the replica has the goods", SOON, async || match client.call("goods_below", json!({ "price": 600 })).await {
        Came::Done(result) if result["rows"] == below_600() => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    poll_state(
        "public.db is there",
        SOON,
        async || {
            if world.fo.data.join("public.db").is_file() { Ok(()) } else { Err("not yet".to_owned()) }
        },
    )
    .await;
    world.bo.kill();
    assert_eq!(client.call("goods_below", json!({ "price": 600 })).await.rows(), below_600(), "nobody else was asked");
}

#[tokio::test]
async fn a_script_changes_the_owners_file_whole_or_not_at_all_from_whichever_node_it_is_called() {
    let world = World::replicating().await;
    world.allow("*", "shop");
    let statements = json!([
        { "sql": "UPDATE goods SET price = price + :by WHERE sku = :sku" },
        { "sql": "INSERT INTO goods (sku, price, cost) VALUES (:other, :by, 0)" },
    ]);
    let config = json!({
        "database": "app.db", "replica": "public.db", "statements": statements,
        "tables": { "goods": true }, "writes": { "goods": ["insert", "update"] },
    });
    let input = json!({
        "type": "object", "required": ["sku", "other", "by"],
        "properties": { "sku": { "type": "string" }, "other": { "type": "string" }, "by": { "type": "integer" } },
    });
    world.row("goods_raise", "sql_script", "readwrite", &config, &input);
    let key = world.bo.key(&["shop"]).await;
    let prices =
        || sqlite3(&world.bo.data.join("app.db"), "SELECT group_concat(sku || '=' || price, ' ') FROM (SELECT * FROM goods ORDER BY sku)");
    for (number, node) in world.nodes().into_iter().enumerate() {
        let mut client = Client::open(node, &key).await;
        client.lists("goods_raise", true).await;
        let other = format!("new-{number}");
        let came = client.call("goods_raise", json!({ "sku": "tea", "other": other, "by": 10 })).await;
        assert!(matches!(came, Came::Done(_)), "{came:?}");
        let before = prices();
        assert!(before.contains(&format!("{other}=10")) && before.contains(&format!("tea={}", 510 + 10 * number)), "{before}");
        // The second statement cannot be, so the first was not.
        let came = client.call("goods_raise", json!({ "sku": "tea", "other": "cups", "by": 10 })).await;
        assert!(matches!(came, Came::Failed(_)), "{came:?}");
        assert_eq!(prices(), before);
    }
}

#[tokio::test]
async fn a_row_that_is_wrong_takes_nothing_away_and_is_shown() {
    let world = World::start().await;
    world.allow("goods_*", "shop");
    world.allow("odd", "shop");
    world.query("goods_below", BELOW, &numbers(&["price"]));
    let key = world.bo.key(&["shop"]).await;
    let mut clients = [Client::open(&world.bo, &key).await, Client::open(&world.fo, &key).await];
    for client in &mut clients {
        client.lists("goods_below", true).await;
    }
    world.commit("UPDATE mcp_tools_registry SET handler_config = '{\"database\": \"app.db\", \"query\": \"DELETE FROM goods\"}'");
    world.commit("INSERT INTO mcp_tools_registry (tool_name, description, handler_type) VALUES ('odd', 'x', 'magic')");
    for (node, client) in world.nodes().into_iter().zip(&mut clients) {
        poll_state(&format!("{} shows that two are wrong", node.name), SOON, async || {
            let wrong = metric(&metrics(node).await, "horos_tools_wrong", &[]);
            if wrong == 2.0 { Ok(()) } else { Err(wrong.to_string()) }
        })
        .await;
        assert_eq!(client.call("goods_below", json!({ "price": 600 })).await.rows(), below_600(), "the last good one serves");
        assert_eq!(client.names().await, ["goods_below", "search_tools"]);
    }
    assert_eq!(sqlite3(&world.bo.data.join("app.db"), "SELECT count(*) FROM goods").trim(), "3");
}

#[tokio::test]
async fn no_file_of_a_nodes_own_is_a_tools_whatever_a_row_says() {
    let world = World::start().await;
    world.allow("*", "shop");
    let key = world.bo.key(&["shop"]).await;
    std::os::unix::fs::symlink(world.bo.data.join("control.db"), world.bo.data.join("link.db")).unwrap();
    let files = ["control.db", "keys.db", "router.db", "tools.db", "../bo-1/control.db", "./control.db", "link.db", "sync/layout.json"];
    for (number, file) in files.iter().enumerate() {
        let config = json!({ "database": file, "query": "SELECT name FROM sqlite_schema", "tables": { "sqlite_schema": true } });
        world.row(&format!("peek_{number}"), "sql_query", "readonly", &config, &numbers(&[]));
        let config = json!({ "database": file, "query": "SELECT * FROM keys", "tables": { "keys": true } });
        world.row(&format!("keys_{number}"), "sql_query", "readonly", &config, &numbers(&[]));
        let config =
            json!({ "database": file, "query": "SELECT count(*) AS n FROM mcp_tool_policy", "tables": { "mcp_tool_policy": true } });
        world.row(&format!("rules_{number}"), "sql_query", "readonly", &config, &numbers(&[]));
    }
    world.query("goods_below", BELOW, &numbers(&["price"]));
    for node in world.nodes() {
        let mut client = Client::open(node, &key).await;
        client.lists("goods_below", true).await;
        for name in (0..files.len()).flat_map(|number| ["peek", "keys", "rules"].map(|what| format!("{what}_{number}"))) {
            let came = client.call(&name, json!({})).await;
            assert!(matches!(came, Came::Failed(_) | Came::Refused(..)), "{name} on {}: {came:?}", node.name);
            assert!(!came.words().contains("control.db") && !came.words().contains("/tmp"), "{name}: {came:?}");
        }
    }
}

pub(crate) async fn metrics(node: &Node) -> String {
    let mut session = Session::open(&node.site(), Speaks::Http2).await.unwrap();
    let key = node_key(node).await;
    session.ask(&Ask::get("/metrics").key(&key)).await.unwrap().body
}

/// A key for the metrics, which the owner makes.
async fn node_key(node: &Node) -> String {
    node.ask(&["keys", "create", "--name", "metrics", "--owner", "tests", "--scope", "metrics"]).await.expect_code(0).json()["secret"]
        .as_str()
        .unwrap()
        .to_owned()
}

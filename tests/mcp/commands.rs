//! `horos tools`: what an operator does to rows and rules holds on both nodes, and what nodes did can be looked at.

use serde_json::{Value, json};

use super::world::{Client, SOON, World, sqlite3};
use crate::harness::poll_state;

const BELOW: &str = "SELECT sku, price FROM goods WHERE price < :price ORDER BY sku";

fn names(list: &Value) -> Vec<&str> {
    list.as_array().into_iter().flatten().filter_map(|it| it["name"].as_str()).collect()
}

#[tokio::test]
async fn a_tool_is_set_allowed_called_edited_and_put_back_by_commands_through_either_node() {
    let world = World::start().await;
    let (bo, fo) = (&world.bo, &world.fo);
    let set = ["tools", "set", "goods.below", "--query", BELOW, "--param", "price:integer", "--tables", "goods=sku,price"];
    let described = ["--description", "Goods below a price.", "--expect", "absent", "--why", "a drill"];
    let made = fo.ask(&[&set[..], &described[..]].concat()).await.expect_code(0).json();
    assert_eq!(
        (&made["version"], &made["tool"]["text"]["mode"], &made["tool"]["text"]["category"]),
        (&json!(1), &json!("readonly"), &json!("goods"))
    );
    let again = fo.ask(&[&set[..], &described[..]].concat()).await.expect_code(1);
    assert!(again.stderr.contains("is not what was expected"), "{again:?}");
    let wrong = fo.ask(&["tools", "set", "goods.below", "--query", "DELETE FROM goods"]).await.expect_code(2);
    assert!(wrong.stderr.contains("handler_config.query"), "{wrong:?}");

    let key = bo.key(&["shop"]).await;
    let mut client = Client::open(fo, &key).await;
    assert_eq!(client.names().await, Vec::<String>::new());
    fo.ask(&["tools", "allow", "goods.*", "shop"]).await.expect_code(0);
    client.lists("goods.below", true).await;
    let rows = json!([{ "sku": "cups", "price": 200 }, { "sku": "tea", "price": 500 }]);
    assert_eq!(client.call("goods.below", json!({ "price": 600 })).await.rows(), rows);

    // The operator's own call is made where the data is; no certificate is passed on.
    let called = bo.ask(&["tools", "call", "goods.below", "{\"price\": 600}"]).await.expect_code(0).json();
    assert_eq!(called["rows"], rows);
    bo.ask(&["tools", "call", "goods.below", "{\"price\": \"cheap\"}"]).await.expect_code(2);
    bo.ask(&["tools", "call", "goods.above"]).await.expect_code(1);
    let denied = fo.ask(&["tools", "call", "goods.below", "{\"price\": 600}"]).await.expect_code(1);
    assert!(denied.stderr.contains("no certificate can be passed on"), "{denied:?}");

    // What is not named stays; and back.
    bo.ask(&["tools", "set", "goods.below", "--title", "Cheap goods"]).await.expect_code(0);
    let shown = bo.ask(&["tools", "show", "goods.below"]).await.expect_code(0).json();
    assert_eq!((&shown["version"], &shown["text"]["title"], &shown["problems"]), (&json!(2), &json!("Cheap goods"), &json!([])));
    fo.ask(&["tools", "disable", "goods.below", "--expect", "2"]).await.expect_code(0);
    client.lists("goods.below", false).await;
    fo.ask(&["tools", "enable", "goods.below", "--expect", "2"]).await.expect_code(1);
    bo.ask(&["tools", "remove", "goods.below"]).await.expect_code(0);
    bo.ask(&["tools", "show", "goods.below"]).await.expect_code(1);
    bo.ask(&["tools", "rollback", "goods.below", "1", "--expect", "absent"]).await.expect_code(0);
    client.lists("goods.below", true).await;
    let edits = fo.ask(&["tools", "history", "goods.below"]).await.expect_code(0).json();
    let told: Vec<_> = edits.as_array().unwrap().iter().map(|it| it["what"].as_str().unwrap()).collect();
    assert_eq!(told, ["created", "deleted", "updated", "updated", "created"]);
    assert!(
        edits.as_array().unwrap().iter().all(|it| it["who"] == "operator@admin" || it["who"].as_str().unwrap().starts_with("operator@"))
    );
    assert_eq!(edits[4]["why"], "a drill");

    fo.ask(&["tools", "deny", "goods.below", "*", "--why", "stocktaking"]).await.expect_code(0);
    client.lists("goods.below", false).await;
    bo.ask(&["tools", "drop-rule", "goods.below", "*"]).await.expect_code(0);
    bo.ask(&["tools", "drop-rule", "goods.below", "*"]).await.expect_code(1);
    client.lists("goods.below", true).await;
    assert_eq!(bo.ask(&["tools", "policy"]).await.expect_code(0).json().as_array().unwrap().len(), 1);
    assert_eq!(bo.ask(&["tools", "policy", "--history"]).await.expect_code(0).json().as_array().unwrap().len(), 3);
}

#[tokio::test]
async fn viewers_look_at_tools_and_change_nothing() {
    let world = World::start().await;
    let viewer = world.person("viewer", "vera").await;
    world.query("goods_all", "SELECT sku FROM goods", &json!({ "type": "object" }));
    world.commit("INSERT INTO mcp_tools_registry (tool_name, description, handler_type) VALUES ('odd', 'x', 'nothing')");
    let look = async |args: &[&str]| world.bo.ask_as(&viewer, args).await.expect_code(0).json();
    assert_eq!(names(&look(&["tools", "list"]).await), ["goods_all", "odd"]);
    poll_state("both nodes say what is wrong", SOON, async || {
        let status = look(&["tools", "status"]).await;
        let told = status.as_array().unwrap().iter().filter(|it| it["status"]["wrong_rows"][0]["row"]["name"] == "odd").count();
        if told == 2 { Ok(()) } else { Err(status.to_string()) }
    })
    .await;
    assert!(names(&look(&["tools", "list", "--on", "fo-1"]).await).contains(&"goods_all"));
    assert_eq!(look(&["tools", "history"]).await.as_array().unwrap().len(), 2);
    assert_eq!(look(&["tools", "policy"]).await, json!([]));
    look(&["tools", "audit"]).await;
    for denied in [
        &["tools", "remove", "odd"][..],
        &["tools", "enable", "odd"],
        &["tools", "rollback", "odd", "1"],
        &["tools", "allow", "odd", "*"],
        &["tools", "deny", "odd", "*"],
        &["tools", "drop-rule", "odd", "*"],
        &["tools", "call", "goods_all"],
    ] {
        world.bo.ask_as(&viewer, denied).await.expect_code(3);
    }
}

#[tokio::test]
async fn what_cannot_be_undone_is_asked_for_twice_and_who_called_what_is_shown() {
    let world = World::start().await;
    let bo = &world.bo;
    let set = ["tools", "set", "purge", "--description", "Deletes what is dearer.", "--destructive", "--statement"];
    let sql = ["DELETE FROM goods WHERE price > :price", "--param", "price:integer", "--tables", "goods", "--writes", "goods=delete"];
    bo.ask(&[&set[..], &sql[..]].concat()).await.expect_code(0);
    let count = || sqlite3(&bo.data.join("app.db"), "SELECT count(*) FROM goods").trim().to_owned();
    let call = ["tools", "call", "purge", "{\"price\": 600}"];
    poll_state("it is served", SOON, async || {
        let served = bo.ask(&["tools", "list", "--on", "bo-1"]).await.expect_code(0).json();
        if names(&served).contains(&"purge") { Ok(()) } else { Err(served.to_string()) }
    })
    .await;
    let asked = bo.ask(&call).await.expect_code(1);
    assert!(asked.stderr.contains("asked for twice") && asked.stderr.contains("--confirm"), "{asked:?}");
    assert_eq!(count(), "3");
    bo.ask(&[&call[..], &["--confirm"]].concat()).await.expect_code(0);
    assert_eq!(count(), "2");
    let entries = bo.ask(&["tools", "audit", "--tool", "purge"]).await.expect_code(0).json();
    let told: Vec<_> = entries.as_array().unwrap().iter().map(|it| it["outcome"].as_str().unwrap()).collect();
    assert_eq!(told, ["to_confirm", "to_confirm", "ok"], "{entries}");
    assert!(entries.as_array().unwrap().iter().all(|it| it["transport"] == "command"), "{entries}");
    let confirmed = bo.ask(&["tools", "audit", "--tool", "purge", "--outcome", "ok"]).await.expect_code(0).json();
    assert_eq!((confirmed.as_array().unwrap().len(), &confirmed[0]["confirmed"]), (1, &json!(true)));
}

#[tokio::test]
async fn a_go_systems_tools_are_taken_in_with_what_is_wrong_with_them() {
    let world = World::start().await;
    let go = world.bo.data.join("go.db");
    sqlite3(
        &go,
        "CREATE TABLE mcp_tools_registry (tool_name TEXT PRIMARY KEY, tool_category TEXT NOT NULL, description TEXT NOT NULL,
             input_schema TEXT NOT NULL, handler_type TEXT NOT NULL, handler_config TEXT NOT NULL, is_active INTEGER NOT NULL DEFAULT 1);
         CREATE TABLE mcp_tool_policy (policy_id INTEGER PRIMARY KEY, tool_name TEXT, role TEXT DEFAULT '*', effect TEXT DEFAULT 'allow');
         INSERT INTO mcp_tools_registry VALUES
             ('goods_count', 'shop', 'Counts goods.', '{\"type\":\"object\"}', 'sql_query', '{\"query\":\"SELECT count(*) AS n FROM goods\"}', 1),
             ('broken', 'shop', 'Is broken.', 'null', 'sql_query', '{}', 1);
         INSERT INTO mcp_tool_policy (tool_name, role) VALUES ('goods_count', 'shop');",
    );
    let file = go.to_str().unwrap().to_owned();
    let done = world.fo.ask(&["tools", "import", &file, "--database", "app.db"]).await.expect_code(1).json();
    assert_eq!(
        (&done["added"], &done["rules"], &done["closed"]),
        (&json!(["broken", "goods_count"]), &json!(1), &json!(["broken"])),
        "{done}"
    );
    assert_eq!(done["wrong"][0]["name"], "broken", "{done}");
    // What it may read nobody has said yet.
    world.bo.ask(&["tools", "set", "goods_count", "--tables", "goods=sku"]).await.expect_code(0);
    let key = world.bo.key(&["shop"]).await;
    let mut client = Client::open(&world.bo, &key).await;
    client.lists("goods_count", true).await;
    poll_state("it counts", SOON, async || match client.call("goods_count", json!({})).await {
        super::world::Came::Done(result) if result["rows"] == json!([{ "n": 3 }]) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
}

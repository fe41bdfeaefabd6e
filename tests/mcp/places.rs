//! Who comes in, by every way: nobody without a key, a token or a certificate; and whoever has one may what the rules say, at once.

use serde_json::json;

use super::world::{Came, Client, Line, SOON, World, numbers};
use crate::harness::http::{Ask, Session, Speaks};
use crate::harness::poll_state;

const COUNT: &str = "SELECT count(*) AS n FROM goods";

/// Code of the error for whoever is nobody (see the door's table).
const UNAUTHENTICATED: i64 = -32_001;

#[tokio::test]
async fn nobody_lists_or_calls_anything_without_a_proof_by_any_way() {
    let world = World::start().await;
    // For everybody who has proved who they are; which nobody here has.
    world.allow("*", "*");
    world.query("goods_count", COUNT, &numbers(&[]));
    let key = world.bo.key(&["shop"]).await;
    let guess = format!("hk_{}", "0".repeat(64));
    let ask = |method: &str| json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": { "name": "goods_count" } }).to_string();
    for node in world.nodes() {
        Client::open(node, &key).await.lists("goods_count", true).await;
        for speaks in Speaks::ALL {
            let mut session = Session::open(&node.site(), speaks).await.unwrap();
            for path in ["/mcp", "/mcp/search", "/mcp/x"] {
                for method in ["initialize", "tools/list", "tools/call", "server/discover", "ping"] {
                    let message = Ask::new("POST", path).header("accept", "application/json, text/event-stream");
                    let message = message.body("application/json", ask(method));
                    let bare = session.ask(&message).await.unwrap();
                    assert_eq!(bare.status, 401, "{method} at {path} over {speaks:?}: {bare:?}");
                    let challenge = bare.header("www-authenticate").unwrap_or_default();
                    assert!(challenge.contains("resource_metadata=\"https://") && challenge.contains("/.well-known/"), "{challenge}");
                }
            }
            let message = Ask::new("POST", "/mcp").header("accept", "application/json, text/event-stream");
            let guessed = session.ask(&message.body("application/json", ask("tools/list")).key(&guess)).await.unwrap();
            assert_eq!(guessed.status, 401, "over {speaks:?}: {guessed:?}");
            assert!(guessed.header("www-authenticate").unwrap_or_default().contains("resource_metadata"), "{guessed:?}");
            let events = session.ask(&Ask::get("/mcp").header("accept", "text/event-stream")).await.unwrap();
            assert_eq!(events.status, 401, "{events:?}");
        }

        let mut nobody = Line::connect(node, None).await;
        let answer = nobody.ask("tools/list", json!({})).await;
        assert_eq!(answer["error"]["code"], UNAUTHENTICATED, "{answer}");
        nobody.closed().await;
        let mut guessing = Line::connect(node, None).await;
        let answer = guessing.greet(&guess).await;
        assert_eq!(answer["error"]["code"], UNAUTHENTICATED, "{answer}");
        guessing.closed().await;
        let mut known = Line::connect(node, None).await;
        let answer = known.greet(&key).await;
        assert_eq!(answer["result"]["serverInfo"]["name"], "horos", "{answer}");
        known.send(&json!({ "jsonrpc": "2.0", "method": "notifications/initialized" })).await;
        assert_eq!(known.call("goods_count", json!({})).await.rows(), json!([{ "n": 3 }]));
    }
}

#[tokio::test]
async fn where_to_get_a_proof_is_told_to_everybody() {
    let world = World::start().await;
    for node in world.nodes() {
        for speaks in Speaks::ALL {
            let mut session = Session::open(&node.site(), speaks).await.unwrap();
            let told = session.ask(&Ask::get("/.well-known/oauth-protected-resource/mcp")).await.unwrap();
            assert_eq!(told.status, 200, "{told:?}");
            assert_eq!(told.json()["resource"], node.site().url("/mcp"), "{told:?}");
            assert_eq!(told.json()["bearer_methods_supported"], json!(["header"]));
            let told = session.ask(&Ask::get("/.well-known/oauth-protected-resource")).await.unwrap();
            assert_eq!(told.status, 200, "{told:?}");
            let none = session.ask(&Ask::get("/.well-known/oauth-protected-resource/shop")).await.unwrap();
            assert_eq!(none.status, 404, "{none:?}");
        }
    }
}

#[tokio::test]
async fn a_rule_that_denies_and_a_key_that_is_revoked_count_in_sessions_that_are_open() {
    let world = World::start().await;
    world.allow("goods_*", "shop");
    world.query("goods_count", COUNT, &numbers(&[]));
    let record = world.bo.key_record(&["shop"], &[]).await;
    let key = record["secret"].as_str().unwrap();
    let mut clients = [Client::open(&world.bo, key).await, Client::open(&world.fo, key).await];
    let mut line = Line::connect(&world.fo, None).await;
    line.greet(key).await;
    line.send(&json!({ "jsonrpc": "2.0", "method": "notifications/initialized" })).await;
    for client in &mut clients {
        client.lists("goods_count", true).await;
    }
    // Another has it, and keeps it.
    let other = world.bo.key(&["shop", "more"]).await;
    let mut others = Client::open(&world.bo, &other).await;

    world.commit("INSERT INTO mcp_tool_policy (tool_name, role, effect) VALUES ('goods_count', 'key:tests', 'deny')");
    for client in &mut clients {
        client.lists("goods_count", false).await;
        assert!(
            matches!(client.call("goods_count", json!({})).await, Came::Refused(-32602, _)),
            "there is no such tool for whoever may not"
        );
    }
    assert!(matches!(line.call("goods_count", json!({})).await, Came::Refused(-32602, _)));
    assert_eq!(line.names().await, Vec::<String>::new());
    world.commit("DELETE FROM mcp_tool_policy WHERE effect = 'deny'");
    for client in &mut clients {
        client.lists("goods_count", true).await;
    }

    let id = record["key"]["id"].as_str().unwrap();
    world.bo.ask(&["keys", "revoke", id]).await.expect_code(0);
    for client in &mut clients {
        poll_state("the key opens nothing, in a session that it opened", SOON, async || {
            match client.asked("tools/list", json!({})).await {
                (401, _) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    }
    // A session over QUIC has ended by itself.
    assert_eq!(line.closed().await, 4, "unauthenticated");
    others.lists("goods_count", true).await;
}

#[tokio::test]
async fn a_list_for_models_is_two_tools_long_and_leads_to_all_that_one_may() {
    let world = World::start().await;
    world.allow("goods_*", "shop");
    world.query("goods_count", COUNT, &numbers(&[]));
    world.query("secret_count", COUNT, &numbers(&[]));
    let key = world.bo.key(&["shop"]).await;
    Client::open(&world.bo, &key).await.lists("goods_count", true).await;
    let mut client = Client::open_at(&world.bo, &key, Speaks::Http2, "/mcp/search").await;
    assert_eq!(client.names().await, ["call_tool", "search_tools"]);
    let Came::Done(found) = client.call("search_tools", json!({ "query": "count" })).await else { panic!("it searches") };
    let text = found.to_string();
    assert!(text.contains("goods_count") && !text.contains("secret_count"), "{text}");
    let call = json!({ "name": "goods_count", "arguments": {} });
    assert_eq!(client.call("call_tool", call).await.rows(), json!([{ "n": 3 }]));
    let call = json!({ "name": "secret_count", "arguments": {} });
    assert!(matches!(client.call("call_tool", call).await, Came::Failed(_) | Came::Refused(..)));
}

#[tokio::test]
async fn a_node_whose_configuration_turns_tools_off_serves_none() {
    let mut world = World::start().await;
    let key = world.bo.key(&["shop"]).await;
    world.bo.process().terminate();
    world.bo.process().wait(SOON).await;
    world.bo.set("MCP__ENABLED", "false");
    world.bo.start().await;
    let mut session = Session::open(&world.bo.site(), Speaks::Http2).await.unwrap();
    for path in ["/mcp", "/mcp/search", "/.well-known/oauth-protected-resource"] {
        let answer = session.ask(&Ask::get(path).key(&key)).await.unwrap();
        assert_eq!(answer.status, 404, "{answer:?}");
    }
    let site = world.bo.site();
    let endpoint = crate::harness::site::dialer(site.address.ip());
    let refused = site.quic(&endpoint, &site.tls(&[super::world::ALPN], Some(&world.bo.operator))).await;
    assert!(refused.is_err());
}

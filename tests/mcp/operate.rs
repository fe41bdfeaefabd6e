//! Operating Horos by MCP: its own actors' methods as tools, for whom the rules let; what takes something from users is asked for twice.

use serde_json::{Value, json};

use super::world::{Came, Client, Line, SOON, World};
use crate::harness::poll_state;

fn done(came: Came) -> Value {
    match came {
        Came::Done(value) => value,
        other => panic!("{other:?}"),
    }
}

/// What is to be shown for the call to be made.
fn token(came: &Came) -> String {
    let words = came.words();
    let (_, after) = words.split_once("\"confirm\": \"").unwrap_or_else(|| panic!("{words}"));
    after.split('"').next().unwrap().to_owned()
}

#[tokio::test]
async fn an_operator_operates_a_cluster_by_certificate_and_asks_twice_for_what_takes_something_from_users() {
    let world = World::start().await;
    let mut operator = Line::open(&world.bo, &world.bo.operator.clone()).await;
    let names = operator.names().await;
    for name in ["horos_health", "horos_tree", "horos_recorder", "horos_routes_set", "horos_breaker_force", "horos_sync_status"] {
        assert!(names.iter().any(|listed| listed == name), "{names:?}");
    }

    // Each that only looks answers in the shape that it promises.
    let looks = [
        ("horos_health", json!({})),
        ("horos_health", json!({ "node": "fo-1" })),
        ("horos_tree", json!({ "cluster": true })),
        ("horos_actors", json!({})),
        ("horos_describe", json!({ "actor": "horos.control" })),
        ("horos_recorder", json!({ "actor": "root/data/store" })),
        ("horos_serving", json!({})),
        ("horos_routes_list", json!({})),
        ("horos_routes_history", json!({})),
        ("horos_routes_status", json!({ "node": "fo-1" })),
        ("horos_breaker_list", json!({})),
        ("horos_breaker_forced", json!({})),
        ("horos_sync_status", json!({})),
    ];
    for (name, arguments) in looks {
        let came = operator.call(name, arguments).await;
        assert!(matches!(came, Came::Done(_)), "{name}: {came:?}");
    }
    let health = done(operator.call("horos_health", json!({ "node": "fo-1" })).await);
    assert_eq!((&health["node"]["node"]["name"], &health["ready"]), (&json!("fo-1"), &json!(true)), "{health}");
    let tree = done(operator.call("horos_tree", json!({ "cluster": true })).await);
    assert_eq!(tree["nodes"].as_array().unwrap().len(), 2, "{tree}");
    let sync = done(operator.call("horos_sync_status", json!({})).await);
    assert_eq!(sync["publications"][0]["node"], "bo-1", "{sync}");

    // An edit says who asked for it, and can be taken back.
    let set = json!({ "service": "mail", "strategy": "noop", "config": { "timeout_ms": 500 }, "why": "a test" });
    assert_eq!(done(operator.call("horos_routes_set", set).await)["route"]["strategy"], "noop");
    let history = done(operator.call("horos_routes_history", json!({ "service": "mail" })).await);
    let edit = &history["edits"][0];
    let who = edit["who"].as_str().unwrap();
    assert!(who.starts_with("mcp:") && who.contains("/operator/") && edit["why"] == "a test", "{edit}");
    let wrong = operator.call("horos_routes_set", json!({ "service": "mail", "strategy": "http", "endpoint": "no url" })).await;
    assert!(wrong.words().contains("endpoint"), "{wrong:?}");
    let gone = operator.call("horos_routes_get", json!({ "service": "nobody" })).await;
    assert!(gone.words().contains("horos_routes_list"), "{gone:?}");

    // Deleting it takes a second word, which holds for this very call, once.
    let delete = json!({ "service": "mail" });
    let asked = operator.call("horos_routes_delete", delete.clone()).await;
    let confirm = token(&asked);
    assert!(asked.words().contains("Nothing has been done"), "{asked:?}");
    done(operator.call("horos_routes_get", delete.clone()).await);
    let other = operator.call("horos_routes_delete", json!({ "service": "post", "confirm": confirm })).await;
    assert!(matches!(other, Came::Failed(_)), "{other:?}");
    let deleted = done(operator.call("horos_routes_delete", json!({ "service": "mail", "confirm": confirm })).await);
    assert_eq!(deleted["route"], Value::Null);
    let again = operator.call("horos_routes_delete", json!({ "service": "mail", "confirm": confirm })).await;
    assert!(matches!(again, Came::Failed(_)), "{again:?}");
    let back = done(operator.call("horos_routes_rollback", json!({ "service": "mail", "to": "last" })).await);
    assert_eq!(back["route"]["strategy"], "noop");

    // So does a restart, which then is one.
    let restart = json!({ "actor": "root/data/sync" });
    let confirm = token(&operator.call("horos_restart", restart).await);
    done(operator.call("horos_restart", json!({ "actor": "root/data/sync", "confirm": confirm })).await);
    let nobody = operator.call("horos_recorder", json!({ "actor": "nobody" })).await;
    assert!(nobody.words().contains("horos_tree"), "{nobody:?}");
}

#[tokio::test]
async fn a_viewer_looks_a_key_does_what_its_rules_say_and_nobody_sees_the_keys() {
    let world = World::start().await;
    let viewer = world.person("viewer", "vera").await;
    let mut viewer = Line::open(&world.bo, &viewer).await;
    let names = viewer.names().await;
    assert!(names.contains(&"horos_tree".to_owned()) && names.contains(&"horos_recorder".to_owned()), "{names:?}");
    for name in ["horos_routes_set", "horos_routes_delete", "horos_restart", "horos_breaker_force", "horos_maintenance"] {
        assert!(!names.iter().any(|listed| listed == name), "{names:?}");
        assert!(matches!(viewer.call(name, json!({ "service": "x", "actor": "x" })).await, Came::Refused(-32602, _)), "{name}");
    }
    assert!(!names.iter().any(|name| name.contains("key")), "{names:?}");

    world.allow("horos_routes_*", "ops");
    let key = world.bo.key(&["ops"]).await;
    for node in world.nodes() {
        let mut client = Client::open(node, &key).await;
        client.lists("horos_routes_set", true).await;
        let names = client.names().await;
        assert!(names.iter().all(|name| name.starts_with("horos_routes_") || name == "search_tools"), "{names:?}");
        assert!(matches!(client.call("horos_tree", json!({})).await, Came::Refused(-32602, _)));
        // The owner makes it, for whoever the key proves there, wherever it was asked for.
        let service = format!("via-{}", node.name);
        done(client.call("horos_routes_set", json!({ "service": service, "strategy": "noop" })).await);
        let confirm = token(&client.call("horos_routes_delete", json!({ "service": service })).await);
        done(client.call("horos_routes_delete", json!({ "service": service, "confirm": confirm })).await);
        let history = done(client.call("horos_routes_history", json!({ "service": service })).await);
        let who: Vec<_> = history["edits"].as_array().unwrap().iter().map(|edit| edit["who"].as_str().unwrap()).collect();
        assert!(who.len() == 2 && who.iter().all(|who| who.starts_with("mcp:key_")), "{history}");
    }
    // A certificate cannot be passed on: the FO says where to ask.
    let mut operator = Line::open(&world.fo, &world.fo.operator.clone()).await;
    let came = operator.call("horos_routes_set", json!({ "service": "mail", "strategy": "noop" })).await;
    assert!(came.words().contains("bo-1"), "{came:?}");
    done(operator.call("horos_routes_list", json!({})).await);

    // A rule of the owner's that denies holds there, whatever the FO has heard.
    world.commit("INSERT INTO mcp_tool_policy (tool_name, role, effect) VALUES ('horos_routes_set', 'ops', 'deny')");
    let mut client = Client::open(&world.fo, &key).await;
    poll_state("it is denied", SOON, async || match client.call("horos_routes_set", json!({ "service": "x", "strategy": "noop" })).await {
        Came::Refused(-32602, _) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
}

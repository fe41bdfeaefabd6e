use std::collections::BTreeSet;

use horos_wire::{
    Incarnation, NodeId,
    protocol::control::{Expected, Force, History, RollbackTo, SetRoute, Strategy},
};
use serde_json::json;

use super::*;
use crate::{Behaviour, Mode};

fn desk(name: &str) -> Desk {
    let node = NodeId { cluster: "shop".parse().unwrap(), role: "bo".parse().unwrap(), name: name.parse().unwrap() };
    Desk::new(Exchange::new(node, Incarnation(1)), "bo-1".parse().unwrap(), None)
}

fn ask<R>(desk: &Desk, at: At) -> Ask<R> {
    let (desk, defaults) = (desk.clone(), JsonObject::from_iter([("limit".to_owned(), json!(50))]));
    Ask { desk, at, defaults, texts: vec!["config"], wrapped: None, request: PhantomData }
}

fn arguments(value: Value) -> JsonObject {
    value.as_object().unwrap().clone()
}

#[tokio::test]
async fn every_tool_has_a_name_of_its_own_words_of_its_own_and_says_what_each_argument_is() {
    let tools = desk("bo-1").tools();
    let names: BTreeSet<_> = tools.iter().map(|tool| tool.spec.name.clone()).collect();
    assert!(tools.len() >= 25 && names.len() == tools.len(), "{names:?}");
    for tool in &tools {
        let spec = &tool.spec;
        assert!(spec.name.starts_with(PREFIX) && spec.title.is_some(), "{}", spec.name);
        assert!((60..=crate::definition::MAX_DESCRIPTION).contains(&spec.description.len()), "{}", spec.name);
        for (argument, schema) in spec.input["properties"].as_object().unwrap() {
            assert!(schema["description"].as_str().is_some_and(|about| about.len() > 8), "{}: {argument}: {schema}", spec.name);
            // Types that only Rust has are no help to a model.
            assert!(!schema["description"].as_str().unwrap().contains("MAX_"), "{}: {argument}: {schema}", spec.name);
        }
    }
    for named in ["horos_routes_list", "horos_breaker_force", "horos_sync_status", "horos_tree", "horos_recorder", "horos_health"] {
        assert!(names.contains(named), "{named}");
    }
    assert!(!names.iter().any(|name| name.contains("key") || name.contains("revoke")), "{names:?}");
}

#[tokio::test]
async fn what_takes_something_from_users_is_destructive_and_what_looks_is_read_only() {
    let with = |wanted: fn(&Behaviour) -> bool| -> BTreeSet<Box<str>> {
        desk("bo-1").tools().iter().filter(|tool| wanted(&tool.spec.behaviour)).map(|tool| tool.spec.name.clone()).collect()
    };
    let destructive = ["breaker_force", "crash", "maintenance", "restart", "routes_delete", "sync_rollback"];
    assert_eq!(with(|it| it.destructive), destructive.map(|name| format!("{PREFIX}{name}").into()).into());
    let changing = ["breaker_reset", "routes_rollback", "routes_set", "routes_set_strategy", "sync_resume", "sync_verify"]
        .into_iter()
        .chain(destructive);
    assert_eq!(with(|it| it.mode == Mode::ReadWrite), changing.map(|name| format!("{PREFIX}{name}").into()).collect());
}

#[tokio::test]
async fn arguments_become_the_methods_own_request() {
    let desk = desk("bo-1");
    let request = ask::<SetRoute>(&desk, At::OwnerItself).request(arguments(json!({
        "service": "stock", "strategy": "quic", "config": { "timeout_ms": 500 }, "expected": "absent",
    })));
    let wanted = SetRoute {
        service: "stock".into(),
        strategy: Strategy::QUIC,
        endpoint: None,
        config: Some(r#"{"timeout_ms":500}"#.into()),
        expected: Some(Expected::Absent),
        why: None,
    };
    // A default that the method has no use for is passed over, as serde does.
    assert_eq!(request.unwrap(), wanted);
    let request = ask::<History>(&desk, At::OwnerItself).request(arguments(json!({ "service": "stock" })));
    assert_eq!(request.unwrap(), History { service: Some("stock".into()), before: None, limit: 50 });
    let rollback = ask::<horos_wire::protocol::control::Rollback>(&desk, At::OwnerItself);
    assert_eq!(rollback.request(arguments(json!({ "service": "stock", "to": { "before": 7 } }))).unwrap().to, RollbackTo::Before(7));
    let error = rollback.request(arguments(json!({ "service": "stock", "to": "yesterday" }))).unwrap_err();
    assert_eq!(error.outcome(), "invalid_arguments");
    let force = ask::<horos_wire::protocol::control::ForceBreaker>(&desk, At::OwnerItself);
    assert_eq!(force.request(arguments(json!({ "service": "stock", "state": "open" }))).unwrap().state, Force::Open);
}

#[tokio::test]
async fn an_actor_is_addressed_on_the_node_that_is_meant_and_nothing_else_can_be_slipped_in() {
    let desk = desk("bo-2");
    let address = |at: At, given: Value| at.address(&desk, &mut arguments(given)).map_err(|error| error.outcome());
    assert_eq!(address(At::Here("horos.node"), json!({ "node": "fo-1" })).unwrap(), "horos.node@bo-2");
    assert_eq!(address(At::Node("horos.node"), json!({})).unwrap(), "horos.node@bo-2");
    assert_eq!(address(At::Node("horos.node"), json!({ "node": "fo-1" })).unwrap(), "horos.node@fo-1");
    assert_eq!(address(At::Owner, json!({})).unwrap(), "horos.control@bo-1");
    assert_eq!(address(At::Publication, json!({ "publication": "shop" })).unwrap(), "horos.sync.shop@bo-2");
    for name in ["", "a b", "shop@fo-1", "../keys", "Shop"] {
        assert_eq!(address(At::Publication, json!({ "publication": name })), Err("invalid_arguments"), "{name}");
        assert_eq!(address(At::Replica, json!({ "replica": name })), Err("invalid_arguments"), "{name}");
        assert_eq!(address(At::Node("horos.node"), json!({ "node": name })), Err("invalid_arguments"), "{name}");
    }
    let mut given = arguments(json!({ "node": "fo-1", "after": "x" }));
    At::Node("horos.node").address(&desk, &mut given).unwrap();
    assert_eq!(given, arguments(json!({ "after": "x" })), "the method is not given what is the tool's own");
}

#[test]
fn what_an_actor_says_of_its_files_stays_on_the_node() {
    let storage = ControlError::Storage("/srv/shop/control.db: disk I/O error".into()).told();
    assert!(!storage.to_string().contains("/srv"), "{storage}");
    let storage = ReplicaError::Storage("/srv/shop/public.db: disk full".into()).told();
    assert!(!storage.to_string().contains("/srv"), "{storage}");
    let away = SyncError::Unavailable("/srv/shop/app.db is locked".into()).told();
    assert!(!away.to_string().contains("/srv"), "{away}");
}

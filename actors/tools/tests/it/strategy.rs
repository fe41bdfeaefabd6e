//! Calls by route to other people's tools: a row, a router, a real server.

use std::{sync::Arc, time::Duration};

use horos_router::{
    Router,
    breaker::Breakers,
    spec::Row,
    strategy::{Strategies, Strategy as _},
};
use horos_supervision::{Context, Exchange};
use horos_tools::{
    Mcp,
    client::{Options, Times},
};
use horos_wire::{CallError, Incarnation, NoEffect, NodeId, Unknown};
use serde_json::{Value, json};

use super::client_world::{Age, Book, LONG, Server, World, eventually, full, times};

struct Node {
    router: Router,
    context: Context,
    world: World,
    _secrets: tempfile::TempDir,
}

impl Node {
    async fn new(servers: &[&Server]) -> Self {
        let world = World::new(&servers.iter().map(|server| server.address).collect::<Vec<_>>()).await;
        let secrets = tempfile::tempdir().unwrap();
        let mcp = Mcp::new(world.clients.clone(), secrets.path()).options(Options { times: times(), ..Options::default() });
        let node = NodeId::from_uri("spiffe://shop/bo/bo-1").unwrap();
        let exchange = Exchange::new(node, Incarnation(1));
        let strategies = Strategies::builtin().in_place("mcp", Arc::new(mcp));
        let router = Router::new(exchange.clone(), strategies, Breakers::new(None, Arc::new(|_, _| {})));
        Self { router, context: Context::new(exchange, "test"), world, _secrets: secrets }
    }

    fn routes(&self, rows: &[(&str, &str, Value)]) -> usize {
        let row = |(service, endpoint, config): &(&str, &str, Value)| Row {
            service: (*service).into(),
            strategy: "mcp".into(),
            endpoint: Some((*endpoint).into()),
            config: Some(config.to_string().into()),
            updated_at: 0,
        };
        self.router.take_up(rows.iter().map(row).collect()).wrong
    }

    async fn call(&self, service: &str, message: Value) -> Result<Value, CallError<Value>> {
        self.router.call_json(&self.context, service, &message.to_string(), LONG).await
    }
}

#[tokio::test]
async fn a_row_leads_to_a_tool_by_the_methods_name_or_by_its_own() {
    for age in [Age::Old, Age::New] {
        let book = Book::new(age);
        let server = Server::start("127.0.0.1:0", &book, false, None).await;
        let node = Node::new(&[&server]).await;
        let url = server.url();
        assert_eq!(
            node.routes(&[
                ("any", &url, json!({})),
                ("sum", &url, json!({"tool_name": "add"})),
                ("say", &url, json!({"tool_name": "say"}))
            ]),
            0
        );
        assert_eq!(node.call("any", json!({"add": {"a": 2, "b": 3}})).await, Ok(json!({"sum": 5})), "{age:?}");
        assert_eq!(node.call("sum", json!({"whatever": {"a": 2, "b": 3}})).await, Ok(json!({"sum": 5})));
        assert_eq!(node.call("sum", json!({"a": 1, "b": 1})).await, Ok(json!({"sum": 2})), "arguments themselves");
        assert_eq!(node.call("say", json!({"say": {"text": "tea"}})).await, Ok(json!("tea")));
        assert_eq!(node.call("say", json!({"say": {"text": "{\"sku\": \"tea\"}"}})).await, Ok(json!({"sku": "tea"})), "JSON in text");
        assert_eq!(node.call("say", json!({"say": {"text": "42"}})).await, Ok(json!("42")), "a text that is no object stays one");
        assert_eq!(node.call("any", json!({"fail": {}})).await, Err(CallError::Failed(json!("there is none left"))));
        assert!(matches!(
            node.call("any", json!({"nothing": {}})).await,
            Err(CallError::NoEffect(NoEffect::NoSuchActor(_) | NoEffect::Malformed(_)))
        ));
        assert!(matches!(node.call("any", json!({"odd": {}})).await, Err(CallError::Unknown(Unknown::MalformedReply(_)))));
        for none in [json!([]), json!("text"), json!({"a": 1}), json!({"a": {}, "b": {}})] {
            assert!(matches!(node.call("any", none.clone()).await, Err(CallError::NoEffect(NoEffect::Malformed(_)))), "{none}");
        }
        let told = book.metas().pop().unwrap();
        assert!(told["horos/hops"].is_u64() && told["horos/timeout-ms"].as_u64() <= Some(30_000), "{told}");
        assert_eq!(node.world.clients.list().len(), 1, "three rows, one connection");
        assert_eq!(node.world.clients.list()[0].connections, 1);
    }
}

#[tokio::test]
async fn the_endpoint_of_a_row_that_is_gone_is_let_go_of() {
    let book = Book::new(Age::New);
    let server = Server::start("127.0.0.1:0", &book, false, None).await;
    let node = Node::new(&[&server]).await;
    let url = server.url();
    node.routes(&[("any", &url, json!({})), ("other", &url, json!({"tool_name": "add"}))]);
    node.call("any", json!({"add": {}})).await.unwrap();
    node.routes(&[("other", &url, json!({"tool_name": "add"}))]);
    node.call("other", json!({"add": {}})).await.unwrap();
    node.routes(&[]);
    eventually(|| {
        let list = node.world.clients.list();
        (list.is_empty(), list)
    })
    .await;
    let actors = || node.world.supervisor.tree().children.len();
    eventually(|| (actors() == 1, node.world.supervisor.tree())).await;
}

#[tokio::test]
async fn a_server_that_is_away_costs_no_effect_and_the_fallback_is_asked() {
    let book = Book::new(Age::New);
    let server = Server::start("127.0.0.1:0", &book, false, None).await;
    let dead = Server::answering("127.0.0.1:0", |_| Box::pin(async { full(500, "text/plain", "") })).await;
    let away = dead.url();
    let node = Node::new(&[&server, &dead]).await;
    drop(dead);
    node.routes(&[("any", &away, json!({"fallback": "other"})), ("alone", &away, json!({})), ("other", &server.url(), json!({}))]);
    assert_eq!(node.call("any", json!({"add": {"a": 7}})).await, Ok(json!({"sum": 7})));
    let refused = node.router.call_json(&node.context, "alone", r#"{"add": {}}"#, Duration::from_millis(500)).await;
    assert!(matches!(refused, Err(CallError::NoEffect(_))), "{refused:?}");
}

#[tokio::test]
async fn what_is_late_is_unknown_and_its_tool_told_that_nobody_waits() {
    let book = Book::new(Age::New);
    let server = Server::start("127.0.0.1:0", &book, false, None).await;
    let node = Node::new(&[&server]).await;
    node.routes(&[("any", &server.url(), json!({}))]);
    node.call("any", json!({"add": {}})).await.unwrap();
    let late = node.router.call_json(&node.context, "any", r#"{"slow": {}}"#, Duration::from_millis(200)).await;
    assert_eq!(late, Err(CallError::Unknown(Unknown::DeadlinePassed)));
    eventually(|| (book.cancelled() == 1, book.cancelled())).await;
}

#[tokio::test]
async fn rows_that_no_server_can_have_are_wrong() {
    let node = Node::new(&[]).await;
    for (endpoint, config) in [
        ("", json!({})),
        ("stock@bo", json!({})),
        ("https://u:p@example.org/mcp", json!({})),
        ("https://example.org/mcp", json!({"tool_name": ""})),
        ("https://example.org/mcp", json!({"insecure_tls": true})),
        ("https://example.org/mcp", json!({"authorization": {"file": "nothing"}})),
        ("node:bo-2", json!({"authorization": {"file": "nothing"}})),
        ("stdio:files", json!({})),
        ("stdio:files", json!({"authorization": {"file": "nothing"}})),
        ("stdio:/bin/sh", json!({})),
    ] {
        assert_eq!(node.routes(&[("any", endpoint, config.clone())]), 1, "{endpoint} {config}");
    }
    let mcp = Mcp::new(node.world.clients.clone(), "/nowhere");
    assert!(!mcp.is_a_placeholder());
    let _: Times = times();
}

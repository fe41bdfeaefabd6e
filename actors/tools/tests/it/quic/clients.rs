//! Clients that do as they should.

use std::time::Duration;

use horos_tools::quic;
use horos_wire::Role;
use rmcp::{
    RoleClient, ServiceExt as _,
    model::{CallToolRequest, CallToolRequestParams, CallToolResult, ClientRequest},
    service::{PeerRequestOptions, RunningService, ServiceError},
};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::{
    raw::{Heard, Raw, call, closed, initialize},
    world::{KEY, Node, SOON, counts, scale, text},
};

async fn tool(client: &RunningService<RoleClient, ()>, name: &'static str, arguments: Value) -> Result<CallToolResult, ServiceError> {
    let params = CallToolRequestParams::new(name).with_arguments(arguments.as_object().cloned().unwrap_or_default());
    timeout(SOON, client.call_tool(params)).await.expect("an answer in time")
}

#[tokio::test]
async fn a_client_of_rmcp_lists_and_calls() {
    let node = Node::new().await;
    for streams in [true, false] {
        let client = node.client_with(quic::DialOptions { streams, ..Default::default() }).await;
        let tools = client.list_all_tools().await.unwrap();
        assert!(tools.iter().any(|tool| tool.name == "echo"));
        let result = tool(&client, "echo", json!({"sku": "a", "n": 1.5})).await.unwrap();
        assert_eq!(result.structured_content, Some(json!({"sku": "a", "n": 1.5})));
        assert_eq!(text(&tool(&client, "who", json!({})).await.unwrap()), "hk_good");
        let agreed = client.peer_info().unwrap().capabilities.experimental.clone().unwrap_or_default();
        assert_eq!(agreed.contains_key("horos/streams"), streams);
        let error = tool(&client, "none", json!({})).await.unwrap_err();
        assert!(matches!(error, ServiceError::McpError(_)), "{error}");
        client.cancel().await.unwrap();
    }
    let seen = node.hand.seen.lock().join("\n");
    assert!(!seen.contains(KEY) && !seen.contains("horos/key"), "a handler has seen the key: {seen}");
    node.stop().await;
}

#[tokio::test]
async fn a_certificate_of_the_cluster_needs_no_key() {
    let node = Node::new().await;
    for (role, name) in [(Role::Operator, "ann"), (Role::Viewer, "ben"), (Role::Fo, "fo-1")] {
        let transport = quic::dial(node.holder(role, name).await, quic::DialOptions::default()).await.unwrap();
        let client = timeout(SOON, ().serve(transport)).await.unwrap().unwrap();
        assert_eq!(text(&tool(&client, "who", json!({})).await.unwrap()), format!("spiffe://shop/{role}/{name}"));
        // Whoever shows a certificate is its holder, whatever else it shows.
        client.cancel().await.unwrap();
        let mut raw = Raw::open(node.holder(role, name).await).await;
        raw.begin(KEY, false).await;
        raw.call(json!(1), "who", json!({})).await;
        assert_eq!(raw.heard.line().await["result"]["content"][0]["text"], json!(format!("spiffe://shop/{role}/{name}")));
    }
    node.stop().await;
}

/// What a client of the Go system's writes (quic-go, go-sdk 1.3.1), byte for byte but for the key that it has to show here.
#[tokio::test]
async fn a_client_of_the_go_system_works() {
    let node = Node::new().await;
    for version in ["2025-03-26", "2025-06-18", "2025-11-25"] {
        let mut raw = Raw::open(node.stranger().await).await;
        let initialize = r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"_meta":{"horos/key":"KEY"},"capabilities":{"roots":{"listChanged":true}},"clientInfo":{"name":"horos-quic-client","version":"1.0.0"},"protocolVersion":"VERSION"}}"#;
        raw.write(format!("{}\n", initialize.replace("KEY", KEY).replace("VERSION", version)).as_bytes()).await;
        let answer = raw.heard.bytes().await.unwrap();
        assert!(answer.starts_with(br#"{"jsonrpc":"2.0","id":1,"result":{"#), "{}", String::from_utf8_lossy(&answer));
        let answer: Value = serde_json::from_slice(&answer).unwrap();
        assert_eq!(answer["result"]["protocolVersion"], json!(version));
        assert_eq!(answer["result"]["capabilities"].get("experimental"), None, "what was not offered is not agreed to");
        raw.write(b"{\"jsonrpc\":\"2.0\",\"method\":\"notifications/initialized\",\"params\":{}}\n").await;
        raw.write(b"{\"jsonrpc\":\"2.0\",\"id\":2,\"method\":\"tools/list\",\"params\":{}}\n").await;
        let listed = raw.heard.line().await;
        assert_eq!((&listed["id"], &listed["result"]["tools"][0]["name"]), (&json!(2), &json!("echo")));
        // A nil map of arguments.
        raw.write(b"{\"jsonrpc\":\"2.0\",\"id\":3,\"method\":\"tools/call\",\"params\":{\"name\":\"echo\",\"arguments\":null}}\n").await;
        let called = raw.heard.line().await;
        assert_eq!((&called["id"], &called["result"]["structuredContent"]), (&json!(3), &json!({})), "{called}");
        raw.write(
            b"{\"jsonrpc\":\"2.0\",\"id\":4,\"method\":\"ping\",\"params\":null}\n{\"jsonrpc\":\"2.0\",\"id\":5,\"method\":\"ping\"}\r\n",
        )
        .await;
        assert_eq!(raw.heard.line().await, json!({"jsonrpc": "2.0", "id": 4, "result": {}}));
        assert_eq!(raw.heard.line().await, json!({"jsonrpc": "2.0", "id": 5, "result": {}}));
        // It ends the stream, and closes with 0.
        raw.send.finish().unwrap();
        assert_eq!(raw.heard.bytes().await, None, "the server ends its side, too");
        raw.connection.close(0u32.into(), b"client closing");
    }
    node.stop().await;
}

#[tokio::test]
async fn the_stateless_generation_is_served_with_streams_and_subscriptions() {
    let node = Node::new().await;
    let meta = |more: Value| {
        let mut meta = json!({
            "io.modelcontextprotocol/protocolVersion": "2026-07-28",
            "io.modelcontextprotocol/clientInfo": {"name": "raw", "version": "1"},
            "io.modelcontextprotocol/clientCapabilities": {"experimental": {"horos/streams": {}}},
        });
        meta.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        meta
    };
    let mut raw = Raw::open(node.stranger().await).await;
    let params = json!({"_meta": meta(json!({"horos/key": KEY}))});
    raw.say(&json!({"jsonrpc": "2.0", "id": "d", "method": "server/discover", "params": params})).await;
    let discovered = raw.heard.line().await;
    assert_eq!(discovered["result"]["capabilities"]["experimental"]["horos/streams"], json!({"max": 128}), "{discovered}");
    // The id of a subscription is the client's in everything that is said of it.
    let params = json!({"_meta": meta(json!({})), "notifications": {"toolsListChanged": true}});
    let (mut send, receive) = raw.connection.open_bi().await.unwrap();
    let listen = json!({"jsonrpc": "2.0", "id": "sub-1", "method": "subscriptions/listen", "params": params});
    send.write_all(format!("MCP1{listen}\n").as_bytes()).await.unwrap();
    let mut subscription = Heard::new(receive);
    let acknowledged = subscription.line().await;
    assert_eq!(acknowledged["method"], json!("notifications/subscriptions/acknowledged"), "{acknowledged}");
    assert_eq!(acknowledged["params"]["_meta"]["io.modelcontextprotocol/subscriptionId"], json!("sub-1"), "{acknowledged}");
    let changed = subscription.line().await;
    assert_eq!(changed["method"], json!("notifications/tools/list_changed"), "{changed}");
    assert_eq!(changed["params"]["_meta"]["io.modelcontextprotocol/subscriptionId"], json!("sub-1"), "{changed}");
    let called = json!({"jsonrpc": "2.0", "id": 7, "method": "tools/call",
        "params": {"name": "echo", "arguments": {"a": [1]}, "_meta": meta(json!({}))}});
    raw.say(&called).await;
    let answer = raw.heard.line().await;
    assert_eq!((&answer["id"], &answer["result"]["structuredContent"]), (&json!(7), &json!({"a": [1]})), "{answer}");
    node.hand.gate.add_permits(1);
    let ended = subscription.line().await;
    assert_eq!(
        (&ended["id"], &ended["result"]["_meta"]["io.modelcontextprotocol/subscriptionId"]),
        (&json!("sub-1"), &json!("sub-1")),
        "{ended}"
    );
    assert_eq!(subscription.bytes().await, None);
    // One that lasts does not keep a node from stopping.
    let params = json!({"_meta": meta(json!({})), "notifications": {"toolsListChanged": true}});
    raw.say(&json!({"jsonrpc": "2.0", "id": "sub-2", "method": "subscriptions/listen", "params": params})).await;
    counts(&node.hand.waiting, 1).await;
    timeout(SOON, node.door.drain(std::time::Instant::now() + Duration::from_secs(60))).await.expect("it ends at once");
    counts(&node.hand.cancelled, 1).await;
    node.stop().await;
}

#[tokio::test]
async fn a_tool_that_takes_its_time_delays_nobody() {
    let node = Node::new().await;
    for streams in [true, false] {
        let client = node.client_with(quic::DialOptions { streams, ..Default::default() }).await;
        let slow = {
            let peer = client.peer().clone();
            tokio::spawn(async move { peer.call_tool(CallToolRequestParams::new("gate")).await })
        };
        counts(&node.hand.waiting, 1).await;
        for n in 0..100 {
            let result = tool(&client, "echo", json!({"n": n})).await.unwrap();
            assert_eq!(result.structured_content, Some(json!({"n": n})));
        }
        assert!(!slow.is_finished());
        node.hand.gate.add_permits(1);
        let result = timeout(SOON, slow).await.unwrap().unwrap().unwrap();
        assert_eq!(text(&result), "through");
        client.cancel().await.unwrap();
    }
    node.stop().await;
}

#[tokio::test]
async fn answers_of_many_calls_at_once_go_to_whom_they_belong() {
    let node = Node::new().await;
    for streams in [true, false] {
        let client = node.client_with(quic::DialOptions { streams, ..Default::default() }).await;
        let calls = scale(400, 20_000);
        let asked = (0..calls).map(|n| {
            let client = &client;
            async move { (n, tool(client, "echo", json!({"n": n})).await.unwrap()) }
        });
        use futures_util::StreamExt as _;
        let mut answers = futures_util::stream::iter(asked).buffer_unordered(64);
        let mut seen = 0;
        while let Some((n, result)) = answers.next().await {
            assert_eq!(result.structured_content, Some(json!({"n": n})));
            seen += 1;
        }
        assert_eq!(seen, calls);
        drop(answers);
        client.cancel().await.unwrap();
    }
    node.stop().await;
}

#[tokio::test]
async fn what_belongs_to_a_request_comes_on_its_stream_and_in_order() {
    let node = Node::new().await;
    let mut raw = Raw::open(node.stranger().await).await;
    let agreed = raw.begin(KEY, true).await;
    assert_eq!(agreed["result"]["capabilities"]["experimental"]["horos/streams"], json!({"max": 128}), "{agreed}");
    let mut asked = call(json!("count-it"), "count", json!({"to": 5}));
    asked["params"]["_meta"] = json!({"progressToken": "mine"});
    let (mut send, receive) = raw.connection.open_bi().await.unwrap();
    send.write_all(format!("MCP1{asked}\n").as_bytes()).await.unwrap();
    send.finish().unwrap();
    let mut stream = Heard::new(receive);
    for step in 1..=5 {
        let progress = stream.line().await;
        assert_eq!(
            (&progress["params"]["progressToken"], progress["params"]["progress"].as_f64()),
            (&json!("mine"), Some(f64::from(step)))
        );
        let said = stream.line().await;
        assert_eq!((&said["method"], &said["params"]["data"]), (&json!("notifications/message"), &json!(step)), "{said}");
    }
    let answer = stream.line().await;
    assert_eq!((&answer["id"], &answer["result"]["content"][0]["text"]), (&json!("count-it"), &json!("counted")), "{answer}");
    assert_eq!(stream.bytes().await, None, "the answer is the last");
    assert_eq!(raw.heard.line().await["method"], json!("notifications/tools/list_changed"), "what belongs to no request");
    node.stop().await;
}

#[tokio::test]
async fn a_request_is_cancelled_by_its_stream_and_by_word() {
    let node = Node::new().await;
    let mut raw = Raw::open(node.stranger().await).await;
    raw.begin(KEY, true).await;
    // Stopped, reset, and by word.
    let (_send, mut heard) = raw.call_beside(json!(1), "gate", json!({})).await;
    counts(&node.hand.waiting, 1).await;
    heard.stream.stop(0u32.into()).unwrap();
    counts(&node.hand.cancelled, 1).await;
    let (mut send, receive) = raw.connection.open_bi().await.unwrap();
    send.write_all(format!("MCP1{}\n", call(json!(1), "gate", json!({}))).as_bytes()).await.unwrap();
    counts(&node.hand.waiting, 1).await;
    send.reset(0u32.into()).unwrap();
    counts(&node.hand.cancelled, 2).await;
    drop(receive);
    raw.call(json!("w"), "gate", json!({})).await;
    counts(&node.hand.waiting, 1).await;
    raw.say(&json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": "w"}})).await;
    counts(&node.hand.cancelled, 3).await;
    // Nothing was answered to any of them, and their ids are free.
    raw.call(json!("w"), "echo", json!({})).await;
    let answer = raw.heard.line().await;
    assert_eq!((&answer["id"], &answer["result"]["structuredContent"]), (&json!("w"), &json!({})));
    raw.is_served().await;
    // By rmcp's client, which stops the stream.
    let client = node.client().await;
    let request = ClientRequest::CallToolRequest(CallToolRequest::new(CallToolRequestParams::new("gate")));
    let handle = client.send_cancellable_request(request, PeerRequestOptions::no_options()).await.unwrap();
    counts(&node.hand.waiting, 1).await;
    handle.cancel(None).await.unwrap();
    counts(&node.hand.cancelled, 4).await;
    node.stop().await;
}

#[tokio::test]
async fn a_client_is_asked_on_the_stream_of_the_call_that_asks() {
    let node = Node::new().await;
    let mut raw = Raw::open(node.stranger().await).await;
    let mut first = initialize(Some(KEY), true);
    first["params"]["capabilities"]["roots"] = json!({});
    raw.say(&first).await;
    raw.heard.line().await;
    raw.say(&json!({"jsonrpc": "2.0", "method": "notifications/initialized"})).await;
    let (_send, mut stream) = raw.call_beside(json!(5), "ask", json!({})).await;
    let asked = stream.line().await;
    assert_eq!(asked["method"], json!("roots/list"), "{asked}");
    raw.say(&json!({"jsonrpc": "2.0", "id": asked["id"], "result": {"roots": [{"uri": "file:///a"}]}})).await;
    let answer = stream.line().await;
    assert_eq!(answer["result"]["content"][0]["text"], json!("1"), "{answer}");
    // An answer to nothing is told so.
    raw.say(&json!({"jsonrpc": "2.0", "id": 4711, "result": {}})).await;
    assert_eq!(raw.heard.error().await.1, -32600);
    raw.is_served().await;
    node.stop().await;
}

#[tokio::test]
async fn a_node_that_stops_answers_what_it_has_in_hand() {
    let node = Node::new().await;
    let mut raw = Raw::open(node.stranger().await).await;
    raw.begin(KEY, true).await;
    raw.call(json!(1), "gate", json!({})).await;
    let (_send, mut beside) = raw.call_beside(json!(2), "gate", json!({})).await;
    counts(&node.hand.waiting, 2).await;
    let idle = node.raw().await;
    let door = node.door.clone();
    let drained = tokio::spawn(async move { door.drain(std::time::Instant::now() + SOON).await });
    assert_eq!(closed(&idle.connection).await, (0, "the server is stopping".to_owned()));
    raw.call(json!(3), "echo", json!({})).await;
    let (id, code, what) = raw.heard.error().await;
    assert_eq!((id, code), (json!(3), -32000));
    assert!(what.contains("nothing was done"), "{what}");
    assert!(!drained.is_finished());
    node.hand.gate.add_permits(2);
    assert_eq!(beside.line().await["id"], json!(2));
    assert_eq!(raw.heard.line().await["id"], json!(1));
    assert_eq!(raw.closed().await, (0, "the server is stopping".to_owned()));
    timeout(SOON, drained).await.unwrap().unwrap();
    assert_eq!(node.door.sessions(), 0);
    // Whoever comes now is told so.
    assert_eq!(closed(&node.stranger().await).await.0, 0);
    node.stop().await;
}

#[tokio::test]
async fn what_does_not_end_in_time_is_cut_when_the_node_stops() {
    let node = Node::new().await;
    let mut raw = node.raw().await;
    raw.call(json!(1), "gate", json!({})).await;
    counts(&node.hand.waiting, 1).await;
    timeout(SOON, node.door.drain(std::time::Instant::now() + Duration::from_millis(100))).await.unwrap();
    assert_eq!(raw.closed().await.0, 0);
    counts(&node.hand.cancelled, 1).await;
    node.stop().await;
}

#[tokio::test]
async fn how_the_server_closed_is_told_by_type() {
    let node = Node::new().await;
    let bad = horos_tools::Credential("wrong".into());
    let options = quic::DialOptions { credential: Some(bad), ..Default::default() };
    let transport = quic::dial(node.stranger().await, options).await.unwrap();
    let ended = transport.ended();
    let error = timeout(SOON, ().serve(transport)).await.unwrap().unwrap_err();
    assert!(error.to_string().contains("unauthenticated"), "{error}");
    assert!(matches!(ended.await, quic::SendError::Unauthenticated(_) | quic::SendError::Closed));
    let client = node.client().await;
    let waiting = {
        let peer = client.peer().clone();
        tokio::spawn(async move { peer.call_tool(CallToolRequestParams::new("gate")).await })
    };
    counts(&node.hand.waiting, 1).await;
    node.endpoint.close(Duration::from_secs(1)).await;
    let error = timeout(SOON, waiting).await.expect("nobody waits for what cannot come").unwrap().unwrap_err();
    assert!(matches!(error, ServiceError::TransportClosed), "{error}");
    node.stop().await;
}

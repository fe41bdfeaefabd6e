//! What lasts: calls that take longer than the port lets others take, streams that are open when the node stops, and those whose key is
//! revoked.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::rows::metrics;
use super::world::{Came, Client, Line, SOON, modern, numbers, sqlite3};
use crate::harness::http::{Coming, Session, Speaks, metric};
use crate::harness::{Cluster, Node, poll_state};

const UP_TO: &str = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :count) SELECT count(*) AS n FROM n";
const ENDLESS: &str = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) AS n FROM n";

/// A BO alone, with a tool that counts and one that never ends within its 300 ms, and a key that may use them.
async fn alone(prepare: impl FnOnce(&mut Node)) -> (Cluster, Node, String) {
    let cluster = Cluster::new();
    let mut bo = cluster.first("bo-1", [127, 0, 0, 1]).await;
    sqlite3(&bo.data.join("app.db"), "PRAGMA journal_mode = WAL; CREATE TABLE goods (sku TEXT)");
    prepare(&mut bo);
    bo.start().await;
    let row = |name: &str, query: &str, input: &Value, ms: u32| {
        let config = json!({ "database": "app.db", "query": query, "tables": {} }).to_string();
        let sql = format!(
            "INSERT INTO mcp_tools_registry (tool_name, description, input_schema, handler_type, handler_config, mode, timeout_ms)
             VALUES ('{name}', 'A tool of the tests.', '{input}', 'sql_query', '{config}', 'readonly', {ms})"
        );
        sqlite3(&bo.data.join("control.db"), &sql);
    };
    row("up_to", UP_TO, &numbers(&["count"]), 60_000);
    row("endless", ENDLESS, &numbers(&[]), 300);
    sqlite3(&bo.data.join("control.db"), "INSERT INTO mcp_tool_policy (tool_name, role) VALUES ('*', 'shop')");
    let key = bo.key(&["shop"]).await;
    Client::open(&bo, &key).await.lists("up_to", true).await;
    (cluster, bo, key)
}

fn called(tool: &str, arguments: Value) -> Value {
    json!({ "name": tool, "arguments": arguments })
}

/// A count that takes this machine at least `long`.
async fn count_for(client: &mut Client, long: Duration) -> u64 {
    let mut count = 50_000;
    loop {
        let began = Instant::now();
        let came = client.call("up_to", json!({ "count": count })).await;
        assert_eq!(came.rows(), json!([{ "n": count }]));
        if began.elapsed() > long {
            return count;
        }
        count *= 2;
    }
}

#[tokio::test]
async fn a_tool_has_its_own_time_and_not_the_ports_over_every_http() {
    const PORTS: Duration = Duration::from_millis(100);
    let (_cluster, bo, key) = alone(|bo| bo.set("HTTP_TIMEOUTS__ANSWER", "100ms")).await;
    let mut client = Client::open(&bo, &key).await;
    // In a session, whose answers are streams; and without one, where the port waits for the answer.
    let count = count_for(&mut client, PORTS * 3).await;
    for speaks in Speaks::ALL {
        let mut session = Session::open(&bo.site(), speaks).await.unwrap();
        let answer = session.ask(&modern(&key, "tools/call", called("up_to", json!({ "count": count })))).await.unwrap();
        assert_eq!(answer.status, 200, "{speaks:?}: {answer:?}");
        assert_eq!(Came::of(&answer.json()).rows(), json!([{ "n": count }]), "{speaks:?}");
        // Beyond its own it is interrupted, and that is told in words.
        let answer = session.ask(&modern(&key, "tools/call", called("endless", json!({})))).await.unwrap();
        let Came::Failed(words) = Came::of(&answer.json()) else { panic!("{speaks:?}: {answer:?}") };
        assert!(words.contains("deadline") || words.contains("took longer") || words.contains("time"), "{speaks:?}: {words}");
    }
    assert!(matches!(client.call("endless", json!({})).await, Came::Failed(_)));
}

/// What a stream says before its first message, so that it is surely open.
async fn opened(mut coming: Coming) -> Coming {
    assert_eq!(coming.status, 200);
    coming.part().await.unwrap().expect("it begins");
    coming
}

fn listen() -> Value {
    json!({ "notifications": { "toolsListChanged": true } })
}

#[tokio::test]
async fn a_node_that_stops_answers_what_it_has_in_hand_and_ends_streams_in_order() {
    let (_cluster, mut bo, key) = alone(|_| ()).await;
    let count = count_for(&mut Client::open(&bo, &key).await, Duration::from_millis(400)).await;
    let (mut clients, mut streams, mut calls) = (Vec::new(), Vec::new(), Vec::new());
    for speaks in Speaks::ALL {
        // One for what is pushed in a session, one for what is listened for without; each on a connection of its own.
        let mut client = Client::open_at(&bo, &key, speaks, "/mcp").await;
        streams.push((speaks, "pushed", client.hear().await));
        clients.push(client);
        let mut session = Session::open(&bo.site(), speaks).await.unwrap();
        streams.push((speaks, "listening", opened(session.begin(&modern(&key, "subscriptions/listen", listen())).await.unwrap()).await));
        // HTTP/1.1 has one request a connection.
        let asking = if speaks == Speaks::Http1 { Session::open(&bo.site(), speaks).await.unwrap() } else { session };
        calls.push((speaks, asking, modern(&key, "tools/call", called("up_to", json!({ "count": count })))));
    }
    let mut line = Line::open(&bo, &bo.operator.clone()).await;
    let calling = calls.into_iter().map(|(speaks, mut session, ask)| {
        tokio::spawn(async move {
            let answer = session.ask(&ask).await.unwrap();
            // With it goes its connection, on which the streams are.
            (speaks, answer, session)
        })
    });
    let calling: Vec<_> = calling.collect();
    let over_quic = tokio::spawn(async move {
        let came = line.call("up_to", json!({ "count": count })).await;
        (came, line)
    });
    poll_state("all are in hand", SOON, async || {
        let in_hand = metric(&metrics(&bo).await, "horos_tool_calls_in_hand", &[]);
        if in_hand == 4.0 { Ok(()) } else { Err(in_hand.to_string()) }
    })
    .await;
    let began = Instant::now();
    bo.process().terminate();
    let mut sessions = Vec::new();
    for call in calling {
        let (speaks, answer, session) = call.await.unwrap();
        sessions.push(session);
        assert_eq!(answer.status, 200, "{speaks:?}: {answer:?}");
        assert_eq!(Came::of(&answer.json()).rows(), json!([{ "n": count }]), "{speaks:?}");
    }
    let (came, line) = over_quic.await.unwrap();
    assert_eq!(came.rows(), json!([{ "n": count }]));
    assert_eq!(line.closed().await, 0);
    for (speaks, what, mut stream) in streams {
        stream.rest().await.unwrap_or_else(|error| panic!("{speaks:?} {what}: {error:#}"));
    }
    let status = bo.process().wait(SOON).await;
    assert_eq!(status.code(), Some(0), "{:?}", bo.process().lines());
    // The drain's limit is 10 s.
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    let is_wrong = |line: &String| line.contains("ERROR") || line.contains("panicked");
    let wrong: Vec<_> = bo.process().lines().into_iter().filter(is_wrong).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[tokio::test]
async fn what_a_key_has_opened_ends_on_every_node_when_it_is_revoked() {
    let world = super::world::World::start().await;
    world.allow("*", "shop");
    let record = world.bo.key_record(&["shop"], &[]).await;
    let (key, other) = (record["secret"].as_str().unwrap().to_owned(), world.bo.key(&["shop", "more"]).await);
    let (mut kept, mut streams, mut lines) = (Vec::new(), Vec::new(), Vec::new());
    for node in world.nodes() {
        for speaks in Speaks::ALL {
            let mut client = Client::open_at(node, &key, speaks, "/mcp").await;
            streams.push((speaks, client.hear().await));
            let mut session = Session::open(&node.site(), speaks).await.unwrap();
            streams.push((speaks, opened(session.begin(&modern(&key, "subscriptions/listen", listen())).await.unwrap()).await));
            kept.push((client, session));
        }
        let mut line = Line::connect(node, None).await;
        line.greet(&key).await;
        lines.push(line);
    }
    let mut others = Client::open(&world.fo, &other).await;
    let mut others_stream = others.hear().await;
    let began = Instant::now();
    world.bo.ask(&["keys", "revoke", record["key"]["id"].as_str().unwrap()]).await.expect_code(0);
    for (speaks, mut stream) in streams {
        stream.rest().await.unwrap_or_else(|error| panic!("{speaks:?}: {error:#}"));
    }
    for line in lines {
        assert_eq!(line.closed().await, 4, "unauthenticated");
    }
    // A replica asks the owner four times a second; nothing here waits for the five seconds after which all is looked at anyway.
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    world.query("goods_count", "SELECT count(*) AS n FROM goods", &numbers(&[]));
    let mut heard = String::new();
    while !heard.contains("list_changed") {
        let part = others_stream.part().await.unwrap().expect("another's goes on");
        heard.push_str(std::str::from_utf8(&part).unwrap());
    }
}

#[tokio::test]
async fn pages_go_on_after_a_restart_and_from_another_node() {
    let mut world = super::world::World::start().await;
    world.allow("*", "shop");
    let config = json!({
        "database": "app.db", "query": "SELECT sku FROM goods ORDER BY sku", "tables": { "goods": ["sku"] }, "page_rows": 1,
    });
    world.row("goods_all", "sql_query", "readonly", &config, &numbers(&[]));
    let key = world.bo.key(&["shop"]).await;
    let mut clients = [Client::open(&world.bo, &key).await, Client::open(&world.fo, &key).await];
    for client in &mut clients {
        client.lists("goods_all", true).await;
    }
    let page = async |client: &mut Client, cursor: &Value| match client.call("goods_all", json!({ "cursor": cursor })).await {
        Came::Done(page) => (page["rows"][0]["sku"].as_str().unwrap().to_owned(), page["next"].clone()),
        other => panic!("{other:?}"),
    };
    let [bo, fo] = &mut clients;
    let first = bo.call("goods_all", json!({})).await;
    let Came::Done(first) = first else { panic!("{first:?}") };
    assert_eq!(first["rows"], json!([{ "sku": "coffee" }]));
    // The FO asks the BO for each of them.
    let (sku, next) = page(fo, &first["next"]).await;
    assert_eq!(sku, "cups");
    world.bo.process().terminate();
    world.bo.process().wait(SOON).await;
    world.bo.start().await;
    world.fo.sees("bo-1", "up").await;
    let mut again = Client::open(&world.bo, &key).await;
    again.lists("goods_all", true).await;
    assert_eq!(page(&mut again, &next).await, ("tea".to_owned(), Value::Null));
    // Forged, and of the tool before its edit.
    let words = again.call("goods_all", json!({ "cursor": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA" })).await.words().to_owned();
    assert!(words.contains("/cursor"), "{words}");
    world.commit("UPDATE mcp_tools_registry SET description = 'Edited.' WHERE tool_name = 'goods_all'");
    poll_state("the edit is in force, and cursors from before it are none", SOON, async || {
        match again.call("goods_all", json!({ "cursor": next })).await {
            Came::Failed(words) if words.contains("/cursor") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

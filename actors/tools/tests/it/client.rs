//! A client against rmcp's own server, in both generations of the protocol.

use std::time::Duration;

use horos_tools::client::{Client, ClientError, Options, Times};
use horos_wire::{NoEffect, Unknown};
use rmcp::model::{CallToolResult, JsonObject, RequestMetaObject};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use super::client_world::{Age, Book, LONG, Server, World, eventually, pair, times, until};

/// Less than any wait that a test is to show nobody waits for.
const SOON: Duration = Duration::from_secs(3);

pub(crate) async fn call(client: &Client, tool: &str, arguments: Value) -> Result<CallToolResult, ClientError> {
    within(client, tool, arguments, LONG).await
}

pub(crate) async fn within(client: &Client, tool: &str, arguments: Value, span: Duration) -> Result<CallToolResult, ClientError> {
    let arguments: Option<JsonObject> = arguments.as_object().cloned();
    client.call(tool, arguments, RequestMetaObject::default(), until(span)).await
}

fn sum(result: &CallToolResult) -> Option<i64> {
    result.structured_content.as_ref()?["sum"].as_i64()
}

#[tokio::test]
async fn a_tool_is_called_in_both_generations_and_both_forms_of_answer() {
    for (age, version) in [(Age::Old, "2025-11-25"), (Age::New, "2026-07-28")] {
        for json in [false, true] {
            let (book, _server, world, client) = pair(age, json).await;
            assert_eq!(client.status().state, "idle", "nothing is dialled before it is called");
            let result = call(&client, "add", json!({"a": 2, "b": 3})).await.unwrap();
            assert_eq!(sum(&result), Some(5), "{age:?} {json}");
            let tools = client.tools(until(LONG)).await.unwrap();
            assert_eq!(tools.len(), 7);
            let status = client.status();
            assert_eq!((status.state, status.version.as_deref(), status.tools), ("connected", Some(version), Some(7)));
            assert_eq!(book.calls(), 1);
            let tree = serde_json::to_string(&world.supervisor.tree()).unwrap();
            assert!(tree.contains(&format!("mcp/{version} 7 tools")), "{tree}");
        }
    }
}

#[tokio::test]
async fn progress_comes_before_an_answer_and_is_none() {
    for age in [Age::Old, Age::New] {
        let (_book, _server, _world, client) = pair(age, false).await;
        let result = call(&client, "steps", json!({})).await.unwrap();
        assert_eq!(result.structured_content, Some(json!({"steps": 3})), "{age:?}");
    }
}

#[tokio::test]
async fn what_a_tool_says_of_itself_is_its_answer_and_what_the_server_says_tells_whether_it_was_asked() {
    for age in [Age::Old, Age::New] {
        let (_book, _server, _world, client) = pair(age, false).await;
        assert_eq!(call(&client, "fail", json!({})).await.unwrap().is_error, Some(true));
        client.tools(until(LONG)).await.unwrap();
        let unknown = call(&client, "nonsense", json!({})).await.unwrap_err();
        assert!(matches!(&unknown, ClientError::NoEffect { why: NoEffect::NoSuchActor(_), .. }), "{age:?} {unknown:?}");
        let broken = call(&client, "odd", json!({})).await.unwrap_err();
        assert!(matches!(&broken, ClientError::Unknown { why: Unknown::MalformedReply(_), .. }), "{age:?} {broken:?}");
        assert_eq!(sum(&call(&client, "add", json!({"a": 1})).await.unwrap()), Some(1), "the connection is none the worse");
        assert_eq!(client.status().connections, 1);
    }
}

#[tokio::test]
async fn a_call_ends_at_its_deadline_and_the_server_is_told() {
    for age in [Age::Old, Age::New] {
        let (book, _server, _world, client) = pair(age, false).await;
        client.connected(until(LONG)).await.unwrap();
        let late = within(&client, "slow", json!({}), Duration::from_millis(200)).await.unwrap_err();
        assert_eq!(late, Unknown::DeadlinePassed.into(), "{age:?}");
        eventually(|| (book.cancelled() == 1, book.cancelled())).await;
        assert_eq!(sum(&call(&client, "add", json!({"a": 1})).await.unwrap()), Some(1));
        assert_eq!(client.status().connections, 1, "{age:?}: one late answer is no reason to greet again");
    }
}

#[tokio::test]
async fn a_tool_that_is_added_is_listed_as_soon_as_the_server_tells_of_it() {
    for age in [Age::Old, Age::New] {
        let (book, _server, _world, client) = pair(age, false).await;
        assert_eq!(client.tools(until(LONG)).await.unwrap().len(), 7);
        // The stream that tells may not be there yet, and then the list is read again when it is.
        book.add_tool("new").await;
        eventually(|| (client.status().tools == Some(8), client.status())).await;
        eventually(|| {
            let lists = book.lists();
            (lists >= 2, lists)
        })
        .await;
        assert_eq!(call(&client, "new", json!({})).await.unwrap().structured_content, Some(json!({"called": "new"})));
    }
}

#[tokio::test]
async fn a_server_that_dies_is_found_again_where_it_was() {
    for age in [Age::Old, Age::New] {
        let (book, server, world, client) = pair(age, false).await;
        assert_eq!(sum(&call(&client, "add", json!({"a": 1})).await.unwrap()), Some(1));
        let address = server.address.to_string();
        let in_hand = tokio::spawn({
            let client = client.clone();
            async move { call(&client, "slow", json!({})).await }
        });
        eventually(|| (book.calls() == 2, book.calls())).await;
        drop(server);
        // The server had its broken streams asked for every 3 s; nobody waits for that once it is seen to be gone.
        let cut = timeout(SOON, in_hand).await.expect("whose call was cut is told at once").unwrap().unwrap_err();
        assert!(matches!(&cut, ClientError::Unknown { .. }), "{age:?}: it was written, and nobody knows: {cut:?}");
        let away = within(&client, "add", json!({"a": 1}), Duration::from_millis(400)).await.unwrap_err();
        assert!(matches!(&away, ClientError::NoEffect { .. }), "{age:?}: it was never written: {away:?}");
        eventually(|| (client.status().last_error.is_some(), client.status())).await;
        assert!(serde_json::to_string(&world.supervisor.tree()).unwrap().contains(&address), "and shown with why");

        let _server = Server::start(&address, &book, false, None).await;
        let mut tries = 0;
        loop {
            match call(&client, "add", json!({"a": 4})).await {
                Ok(result) => break assert_eq!(sum(&result), Some(4)),
                Err(ClientError::NoEffect { retry_after, .. }) => {
                    tries += 1;
                    assert!(tries < 100);
                    sleep(retry_after.unwrap_or(Duration::from_millis(20))).await;
                }
                Err(other) => panic!("{age:?} {other:?}"),
            }
        }
        eventually(|| (client.status().last_error.is_none(), client.status())).await;
        assert_eq!(book.calls(), 3, "{age:?}: nothing was called twice");
    }
}

#[tokio::test]
async fn a_server_that_is_back_is_in_use_with_the_next_call_however_long_it_was_away() {
    for age in [Age::Old, Age::New] {
        let book = Book::new(age);
        let server = Server::start("127.0.0.1:0", &book, false, None).await;
        let (address, url) = (server.address, server.url());
        drop(server);
        let world = World::new(&[address]).await;
        // Nothing would be tried again by itself for 6 s at least.
        let minute = Duration::from_secs(60);
        let client = world.with(
            &url,
            Options {
                times: Times { backoff: minute, backoff_cap: minute, afresh: Duration::from_millis(50), ..times() },
                ..Options::default()
            },
        );
        let away = call(&client, "add", json!({})).await.unwrap_err();
        let ClientError::NoEffect { retry_after: Some(wait), .. } = away else { panic!("{age:?} {away:?}") };
        assert!(wait <= Duration::from_millis(50), "{age:?}: {wait:?}");
        let _server = Server::start(&address.to_string(), &book, false, None).await;
        let back = timeout(SOON, async {
            loop {
                match call(&client, "add", json!({"a": 4})).await {
                    Ok(result) => break result,
                    Err(ClientError::NoEffect { retry_after, .. }) => sleep(retry_after.unwrap_or_default()).await,
                    Err(other) => panic!("{age:?} {other:?}"),
                }
            }
        });
        assert_eq!(sum(&back.await.expect("no call waits for the actor's own next attempt")), Some(4), "{age:?}");
    }
}

#[tokio::test]
async fn the_actor_starts_with_the_first_call_and_ends_with_the_last_that_names_the_endpoint() {
    let (_book, _server, world, client) = pair(Age::New, false).await;
    let actors = || world.supervisor.tree().children.iter().filter(|child| child.name.starts_with("mcp ")).count();
    assert_eq!((actors(), world.clients.list().len()), (0, 1));
    client.connected(until(LONG)).await.unwrap();
    eventually(|| (actors() == 1, world.supervisor.tree())).await;
    let other = client.clone();
    drop(client);
    call(&other, "add", json!({})).await.unwrap();
    drop(other);
    eventually(|| (actors() == 0, world.supervisor.tree())).await;
    assert_eq!(world.clients.list(), []);
}

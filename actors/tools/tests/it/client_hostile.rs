//! Servers that answer late, never, too much, something else, or somewhere else.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use horos_tools::client::{
    Answers, Authorize, AuthorizeError, Challenge, ClientError, IN_FLIGHT, MAX_CHALLENGES, MAX_MESSAGE, Options, Times,
};
use horos_wire::{NoEffect, Unknown};
use http::{HeaderValue, Request};
use parking_lot::Mutex;
use rmcp::{
    ErrorData,
    model::{ClientCapabilities, ElicitRequestParams, ElicitResult, ElicitationAction, ElicitationCapability},
};
use serde_json::json;

use super::{
    client::{call, within},
    client_world::{Age, Body, Book, Instead, LONG, Server, World, asks, eventually, full, times, until},
};

/// Answers calls of tools by `answer`, which is told how many there were before, and leaves the rest to the server.
fn calls(answer: impl Fn(usize, &Request<Bytes>) -> Option<http::Response<Body>> + Send + Sync + 'static) -> Instead {
    let count = AtomicUsize::new(0);
    Arc::new(move |request| {
        asks(request, "tools/call")?;
        let answer = answer(count.fetch_add(1, SeqCst), request)?;
        Some(Box::pin(std::future::ready(answer)))
    })
}

async fn odd(age: Age, instead: Instead) -> (Book, Server, World, horos_tools::client::Client) {
    let book = Book::new(age);
    let server = Server::start("127.0.0.1:0", &book, false, Some(instead)).await;
    let world = World::new(&[server.address]).await;
    let client = world.client(&server.url());
    (book, server, world, client)
}

#[tokio::test]
async fn an_answer_that_is_none_is_told_at_once_and_spoils_nothing() {
    let answers: [(&str, &str, &str); 8] = [
        ("application/json", "{", "broken JSON"),
        ("application/json", "", "nothing"),
        ("application/json", "[]", "a list"),
        ("application/json", r#"{"jsonrpc": "2.0", "id": 987654, "result": {"content": []}}"#, "another's answer"),
        ("application/json", r#"{"jsonrpc": "2.0", "method": "notifications/message", "params": {}}"#, "no answer"),
        ("text/html", "<html>", "a page"),
        ("text/event-stream", "data: nonsense\n\n", "an event that is none"),
        ("text/event-stream", "\u{fffd}\u{0}\n\n\n", "no events"),
    ];
    for age in [Age::Old, Age::New] {
        let (_book, _server, _world, client) =
            odd(age, calls(move |count, _| answers.get(count).map(|(kind, body, _)| full(200, kind, *body)))).await;
        for (_, _, what) in answers {
            let began = Instant::now();
            let error = call(&client, "add", json!({"a": 1})).await.unwrap_err();
            assert!(matches!(error, ClientError::Unknown { .. }), "{age:?} {what}: {error:?}");
            assert!(began.elapsed() < LONG / 3, "{age:?} {what}: it is not waited for what cannot come");
        }
        let result = call(&client, "add", json!({"a": 1})).await.unwrap();
        assert_eq!(result.structured_content, Some(json!({"sum": 1})), "{age:?}");
    }
}

#[tokio::test]
async fn no_answer_is_read_beyond_its_largest_size() {
    let huge = "x".repeat(MAX_MESSAGE + 1);
    for age in [Age::Old, Age::New] {
        let huge = huge.clone();
        let answer = move |count: usize, _: &Request<Bytes>| match count {
            0 => Some(full(200, "application/json", format!("\"{huge}\""))),
            1 => Some(full(200, "text/event-stream", format!("data: {huge}\n\n"))),
            _ => None,
        };
        let (_book, _server, _world, client) = odd(age, calls(answer)).await;
        let error = call(&client, "add", json!({})).await.unwrap_err();
        assert!(matches!(&error, ClientError::Unknown { why: Unknown::ReplyTooLarge(_), .. }), "{age:?} {error:?}");
        let error = call(&client, "add", json!({})).await.unwrap_err();
        assert!(matches!(&error, ClientError::Unknown { .. }), "{age:?} {error:?}");
        call(&client, "add", json!({})).await.unwrap();
        let larger = json!({"text": "y".repeat(MAX_MESSAGE)});
        let error = call(&client, "say", larger).await.unwrap_err();
        assert!(matches!(&error, ClientError::NoEffect { why: NoEffect::TooLarge(_), .. }), "{age:?} {error:?}");
    }
}

#[tokio::test]
async fn a_server_says_when_to_come_again() {
    for age in [Age::Old, Age::New] {
        let answer = |count: usize, _: &Request<Bytes>| {
            let status = [429, 503, 503, 500, 403].get(count)?;
            let mut response =
                full(*status, "application/json", r#"{"jsonrpc": "2.0", "id": null, "error": {"code": -32603, "message": "no"}}"#);
            if count < 2 {
                response.headers_mut().insert("retry-after", HeaderValue::from_static("7"));
            }
            Some(response)
        };
        let (_book, _server, _world, client) = odd(age, calls(answer)).await;
        for status in [429, 503] {
            let error = call(&client, "add", json!({})).await.unwrap_err();
            assert!(matches!(&error, ClientError::NoEffect { why: NoEffect::Overloaded(_), .. }), "{age:?} {status} {error:?}");
            assert_eq!(error.retry_after(), Some(Duration::from_secs(7)), "{age:?} {status}");
        }
        for status in [503, 500] {
            let error = call(&client, "add", json!({})).await.unwrap_err();
            assert!(matches!(&error, ClientError::Unknown { why: Unknown::MalformedReply(_), .. }), "{age:?} {status} {error:?}");
        }
        let error = call(&client, "add", json!({})).await.unwrap_err();
        assert!(matches!(&error, ClientError::NoEffect { why: NoEffect::NotAllowed(_), .. }), "{age:?} {error:?}");
        call(&client, "add", json!({})).await.unwrap();
    }
}

#[tokio::test]
async fn a_session_that_the_server_forgot_is_made_again_and_the_call_made_once() {
    let forget = Arc::new(AtomicUsize::new(0));
    let instead: Instead = {
        let forget = forget.clone();
        Arc::new(move |request| {
            let call = asks(request, "tools/call").is_some();
            let forgets = call && forget.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok();
            forgets.then(|| Box::pin(std::future::ready(full(404, "text/plain", "no such session"))) as BoxFuture<'static, _>)
        })
    };
    let (book, _server, _world, client) = odd(Age::Old, instead).await;
    client.tools(until(LONG)).await.unwrap();
    for round in 1..=3 {
        forget.store(1, SeqCst);
        let lists = book.lists();
        let result = call(&client, "add", json!({"a": round})).await.unwrap();
        assert_eq!(result.structured_content, Some(json!({"sum": round})));
        eventually(|| (book.lists() > lists, book.lists())).await;
    }
    assert_eq!((book.calls(), client.status().connections), (3, 1), "once each, and by the same connection");
    // One that knows no session at all is not asked for ever.
    forget.store(usize::MAX, SeqCst);
    let error = call(&client, "add", json!({})).await.unwrap_err();
    assert!(matches!(&error, ClientError::NoEffect { .. }), "{error:?}");
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_taken_up_where_it_was_when_the_server_wants_it() {
    const RETRY: Duration = Duration::from_millis(300);
    for age in [Age::Old, Age::New] {
        let broke = Arc::new(Mutex::new(None::<(Instant, serde_json::Value)>));
        let resumed = Arc::new(Mutex::new(None::<Duration>));
        let instead: Instead = {
            let (broke, resumed) = (broke.clone(), resumed.clone());
            Arc::new(move |request| {
                let response = if let Some(message) = asks(request, "tools/call") {
                    *broke.lock() = Some((Instant::now(), message["id"].clone()));
                    full(200, "text/event-stream", format!("id: e-1\nretry: {}\ndata: \n\n", RETRY.as_millis()))
                } else {
                    let last = request.headers().get("last-event-id")?;
                    assert_eq!(last, "e-1");
                    let (at, id) = broke.lock().clone().unwrap();
                    *resumed.lock() = Some(at.elapsed());
                    let answer = json!({"jsonrpc": "2.0", "id": id, "result": {"content": [{"type": "text", "text": "resumed"}]}});
                    full(200, "text/event-stream", format!("id: e-2\ndata: {answer}\n\n"))
                };
                Some(Box::pin(std::future::ready(response)))
            })
        };
        let (_book, _server, _world, client) = odd(age, instead).await;
        let result = call(&client, "say", json!({})).await.unwrap();
        assert_eq!(result.content[0].as_text().unwrap().text, "resumed", "{age:?}");
        let waited = resumed.lock().unwrap();
        assert!(waited >= RETRY && waited < RETRY + LONG / 3, "{age:?}: {waited:?}");
    }
}

#[tokio::test]
async fn a_server_that_never_answers_its_greeting_costs_a_caller_its_patience_and_no_more() {
    let silent = Server::answering("127.0.0.1:0", |_| Box::pin(std::future::pending())).await;
    let world = World::new(&[silent.address]).await;
    let client = world.client(&silent.url());
    let error = within(&client, "add", json!({}), Duration::from_millis(300)).await.unwrap_err();
    assert!(matches!(&error, ClientError::NoEffect { why: NoEffect::Expired, .. }), "{error:?}");
    let times = Times {
        connect: Duration::from_millis(200),
        grace: Duration::from_millis(100),
        backoff: Duration::from_secs(20),
        backoff_cap: Duration::from_secs(20),
        ..times()
    };
    let client = world.with(&format!("{}?other", silent.url()), Options { times, ..Options::default() });
    let error = call(&client, "add", json!({})).await.unwrap_err();
    assert!(
        matches!(&error, ClientError::NoEffect { why: NoEffect::NoRoute(_), retry_after: Some(wait) } if *wait > Duration::ZERO && *wait <= times.afresh),
        "{error:?}"
    );
    assert_eq!(client.status().state, "waiting");
    assert!(!client.status().endpoint.contains("other"), "what stands in a query may be a secret");
}

#[tokio::test]
async fn nobody_inside_is_reached_by_a_row_nor_by_a_redirect() {
    let asked = Arc::new(AtomicUsize::new(0));
    let counting = asked.clone();
    let inside = Server::answering("127.0.0.1:0", move |_| {
        counting.fetch_add(1, SeqCst);
        Box::pin(std::future::ready(full(500, "text/plain", "")))
    })
    .await;
    let location = HeaderValue::try_from(inside.url()).unwrap();
    let outside = Server::answering("127.0.0.1:0", move |_| {
        let location = location.clone();
        Box::pin(async move {
            let mut response = full(307, "text/plain", "");
            response.headers_mut().insert("location", location);
            response
        })
    })
    .await;
    let world = World::new(&[outside.address]).await;
    let refused = [
        outside.url(),
        inside.url(),
        format!("https://{}/mcp", inside.address),
        format!("https://localhost:{}/mcp", inside.address.port()),
        "https://169.254.169.254/mcp".into(),
        "https://[::ffff:127.0.0.1]/mcp".into(),
        "https://2130706433/mcp".into(),
        format!("quic://{}", inside.address),
        "quic://10.0.0.1:7400".into(),
        "node:bo-1".into(),
    ];
    for url in refused {
        let times = Times { grace: Duration::ZERO, ..times() };
        let client = world.with(&url, Options { times, ..Options::default() });
        let error = call(&client, "add", json!({})).await.unwrap_err();
        assert!(matches!(&error, ClientError::NoEffect { .. }), "{url}: {error:?}");
        assert!(!error.to_string().contains("deadline"), "{url}: {error}");
    }
    assert_eq!(asked.load(SeqCst), 0);
}

#[tokio::test]
async fn calls_beyond_the_bound_are_refused_at_once_and_those_in_flight_go_on() {
    let (book, _server, _world, client) = super::client_world::pair(Age::New, false).await;
    client.connected(until(LONG)).await.unwrap();
    let mut slow: Vec<_> = (0..IN_FLIGHT)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { call(&client, "slow", json!({})).await })
        })
        .collect();
    eventually(|| (book.calls() == IN_FLIGHT, book.calls())).await;
    let error = call(&client, "add", json!({})).await.unwrap_err();
    assert!(matches!(&error, ClientError::NoEffect { why: NoEffect::Overloaded(_), .. }), "{error:?}");
    slow.pop().unwrap().abort();
    eventually(|| (book.cancelled() == 1, book.cancelled())).await;
    call(&client, "add", json!({})).await.unwrap();
    drop(slow);
}

/// Gives out the next of its tokens at each challenge.
#[derive(Debug, Default)]
struct Tokens {
    given: AtomicUsize,
    challenges: Mutex<Vec<Challenge>>,
}

impl Authorize for Tokens {
    fn authorization(&self) -> BoxFuture<'_, Result<Option<HeaderValue>, AuthorizeError>> {
        let given = self.given.load(SeqCst);
        Box::pin(std::future::ready(Ok((given > 0).then(|| format!("Bearer {given}").try_into().unwrap()))))
    }

    fn challenged(&self, challenge: Challenge) -> BoxFuture<'_, Result<Option<HeaderValue>, AuthorizeError>> {
        self.challenges.lock().push(challenge);
        let given = self.given.fetch_add(1, SeqCst) + 1;
        Box::pin(std::future::ready(Ok(Some(format!("Bearer {given}").try_into().unwrap()))))
    }
}

#[tokio::test]
async fn a_challenge_is_answered_and_not_for_ever() {
    for (age, wanted) in [(Age::Old, 2), (Age::New, 2), (Age::New, 1_000)] {
        let requests = Arc::new(AtomicUsize::new(0));
        let counting = requests.clone();
        let instead: Instead = Arc::new(move |request| {
            counting.fetch_add(1, SeqCst);
            let shown = request.headers().get("authorization").map(|value| value.to_str().unwrap().to_owned());
            if shown.as_deref() == Some(&format!("Bearer {wanted}")) {
                return None;
            }
            let mut response = full(if shown.is_none() { 401 } else { 403 }, "text/plain", "");
            response
                .headers_mut()
                .insert("www-authenticate", HeaderValue::from_static("Bearer error=\"insufficient_scope\", scope=\"a b\""));
            Some(Box::pin(std::future::ready(response)))
        });
        let book = Book::new(age);
        let server = Server::start("127.0.0.1:0", &book, false, Some(instead)).await;
        let world = World::new(&[server.address]).await;
        let tokens = Arc::new(Tokens::default());
        let times = Times { backoff: LONG, backoff_cap: LONG, grace: Duration::ZERO, ..times() };
        let client = world.with(&server.url(), Options { authorize: Some(tokens.clone()), times, ..Options::default() });
        let called = call(&client, "add", json!({"a": 1})).await;
        if wanted == 2 {
            assert_eq!(called.unwrap().structured_content, Some(json!({"sum": 1})));
            let challenges = tokens.challenges.lock();
            assert_eq!(challenges.iter().map(|challenge| challenge.status.as_u16()).collect::<Vec<_>>(), [401, 403], "{age:?}");
            assert!(challenges[1].www_authenticate[0].contains("scope=\"a b\"") && challenges[1].shown.is_some());
        } else {
            assert!(matches!(called, Err(ClientError::NoEffect { why: NoEffect::NotAllowed(_), .. })), "{called:?}");
            assert_eq!(requests.load(SeqCst), MAX_CHALLENGES + 1);
        }
    }
}

/// Says yes.
struct Somebody;

impl Answers for Somebody {
    fn capabilities(&self) -> ClientCapabilities {
        let mut capabilities = ClientCapabilities::default();
        capabilities.elicitation = Some(ElicitationCapability::default());
        capabilities
    }

    fn elicit(&self, _: ElicitRequestParams) -> BoxFuture<'_, Result<ElicitResult, ErrorData>> {
        Box::pin(std::future::ready(Ok(ElicitResult::new(ElicitationAction::Accept).with_content(json!({"name": "ana"})))))
    }
}

#[tokio::test]
async fn nobody_is_asked_on_a_servers_behalf_unless_the_program_has_somebody() {
    let (_book, server, world, client) = super::client_world::pair(Age::Old, false).await;
    let refused = call(&client, "ask", json!({})).await.unwrap();
    let said = &refused.content[0].as_text().unwrap().text;
    assert!(refused.is_error == Some(true) && !said.contains("ana"), "{said}");
    let asked =
        world.with(&format!("{}?answers", server.url()), Options { answers: Arc::new(Somebody), times: times(), ..Options::default() });
    let answered = call(&asked, "ask", json!({})).await.unwrap();
    assert!(answered.content[0].as_text().unwrap().text.contains("ana"));
}

//! What a client that behaves gets over HTTP/3, and how a connection ends.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use bytes::{Buf as _, Bytes};
use futures_util::future::join_all;
use h3::error::{Code, StreamError};
use horos_edge::{Config, Reason, Timeouts, Version};
use http::{HeaderMap, HeaderValue, Method, StatusCode};

use super::{
    h3_world::{Client, Door, HEADS, INTERNAL_ERROR, NO_ERROR, REQUEST_REJECTED, answer, closed, head, quick, request, said},
    world::{Counting as _, LONG, eventually, scale},
};

#[tokio::test]
async fn a_get_is_answered_through_the_application() {
    let door = Door::open(quick());
    let mut client = door.client().await;
    for _ in 0..3 {
        let (response, body) = client.get("/t/hello").await;
        assert_eq!((response.status(), &body[..]), (StatusCode::OK, &b"hello"[..]));
        assert_eq!(response.headers()["content-length"], "5");
        assert!(response.headers().contains_key("date"), "{response:?}");
    }
    let (_, seen) = client.get("/t/seen").await;
    assert!(seen.starts_with(b"HTTP/3.0 GET "), "{seen:?}");
    assert_eq!(client.get("/nothing").await.0.status(), StatusCode::NOT_FOUND);
    assert_eq!(door.metrics.open(Version::Http3), 1);
    drop(client);
    door.connections(0).await;
    assert!(door.counts().is_empty(), "nobody did anything wrong: {:?}", door.counts());
}

#[tokio::test]
async fn answers_of_all_sizes_arrive_whole() {
    let door = Door::open(quick());
    let mut client = door.client().await;
    for size in [0, 1, 63, 64, 1200, 16_383, 16_384, 65_536, 3_000_000] {
        assert_eq!(client.get(&format!("/t/bytes/{size}")).await.1.len(), size);
    }
}

#[tokio::test]
async fn a_body_streams_both_ways_at_once() {
    let door = Door::open(quick());
    let mut client = door.client().await;
    let mut asked = client.ask(Method::POST, "/t/echo").await;
    for round in 0..20_u8 {
        // What was sent comes back before more is sent. An empty part is not the end.
        let part = Bytes::from(vec![round; 1 + usize::from(round) * 500]);
        asked.send_data(part.clone()).await.unwrap();
        asked.send_data(Bytes::new()).await.unwrap();
        if round == 0 {
            assert_eq!(asked.recv_response().await.unwrap().status(), StatusCode::OK);
        }
        let mut echo = Vec::new();
        while echo.len() < part.len() {
            echo.extend_from_slice(asked.recv_data().await.unwrap().expect("more").chunk());
        }
        assert_eq!(echo, part);
    }
    asked.finish().await.unwrap();
    assert!(asked.recv_data().await.unwrap().is_none());
}

#[tokio::test]
async fn a_large_body_is_read_at_the_services_pace() {
    let door = Door::open(quick());
    let mut client = door.client().await;
    let mut asked = client.ask(Method::POST, "/t/read").await;
    let part = Bytes::from(vec![7; 100_000]);
    for _ in 0..50 {
        asked.send_data(part.clone()).await.unwrap();
    }
    asked.finish().await.unwrap();
    assert_eq!(answer(&mut asked).await.1, "5000000 ");
}

#[tokio::test]
async fn trailers_pass_both_ways() {
    let door = Door::open(quick());
    let mut client = door.client().await;
    let mut asked = client.ask(Method::POST, "/t/read").await;
    asked.send_data(Bytes::from_static(b"hello")).await.unwrap();
    let trailers = HeaderMap::from_iter([("x-sum".parse().unwrap(), HeaderValue::from_static("5"))]);
    asked.send_trailers(trailers.clone()).await.unwrap();
    asked.finish().await.unwrap();
    assert_eq!(answer(&mut asked).await.1, r#"5 {"x-sum": "5"}"#);
    let mut asked = client.ask(Method::GET, "/t/trailers").await;
    asked.finish().await.unwrap();
    assert_eq!(answer(&mut asked).await.1, "hello");
    assert_eq!(asked.recv_trailers().await.unwrap(), Some(trailers));
}

#[tokio::test]
async fn heads_are_read_as_they_were_meant_by_anothers_decoder() {
    let door = Door::open(quick());
    let mut client = door.client().await;
    for (number, (status, name, value)) in HEADS.into_iter().enumerate() {
        let (response, _) = client.get(&format!("/t/head/{number}")).await;
        assert_eq!(response.status(), status);
        assert_eq!(response.headers()[name], value, "{name}");
        assert_eq!(response.headers()["x-marked"], value);
    }
}

#[tokio::test]
async fn head_and_no_content_have_no_body_and_nothing_of_one_hop_is_sent() {
    let door = Door::open(quick());
    let mut client = door.client().await;
    let mut asked = client.ask(Method::HEAD, "/t/hello").await;
    asked.finish().await.unwrap();
    let (response, body) = answer(&mut asked).await;
    assert_eq!((response.status(), body.len()), (StatusCode::OK, 0));
    let (response, body) = client.get("/t/empty").await;
    assert_eq!((response.status(), body.len()), (StatusCode::NO_CONTENT, 0));
    assert!(!response.headers().contains_key("content-length"));
    let (response, body) = client.get("/t/hop").await;
    assert_eq!(body, "hop");
    let names: Vec<_> = response.headers().keys().map(|name| name.as_str()).collect();
    assert!(names.contains(&"x-kept"), "{names:?}");
    assert!(["connection", "keep-alive", "x-mine"].iter().all(|name| !names.contains(name)), "{names:?}");
}

#[tokio::test]
async fn who_is_answered_early_is_told_to_stop_without_an_error() {
    let door = Door::open(quick());
    let raw = door.raw().await;
    let (send, mut recv) = raw.say(&head("POST", "/t/early", &[])).await;
    let stopped = tokio::time::timeout(LONG, send.stopped()).await.unwrap().unwrap();
    assert_eq!(stopped.map(u64::from), Some(NO_ERROR));
    assert!(said(&mut recv).await.unwrap().ends_with(b"no"), "and has the whole answer");
    assert!(door.counts().is_empty(), "{:?}", door.counts());
}

#[tokio::test]
async fn work_ends_when_its_client_stops_wanting_it() {
    let door = Door::open(quick());
    let raw = door.raw().await;
    // Before there is an answer, in the middle of one that waits for its service, and in the middle of one that waits
    // for its client.
    for (done, path) in ["/t/wait", "/t/silent", "/t/endless"].into_iter().enumerate() {
        let (mut send, mut recv) = raw.say(&head("GET", path, &[])).await;
        send.finish().unwrap();
        if path == "/t/wait" {
            door.waiting(1).await;
        } else {
            recv.read_chunk(100, true).await.unwrap().expect("some of the answer");
        }
        assert_eq!(door.told.dropped.load(Relaxed), done);
        recv.stop(0x10c_u32.into()).unwrap();
        door.dropped(done + 1).await;
    }
    // And with the connection.
    let (_send, _recv) = raw.say(&head("GET", "/t/wait", &[])).await;
    door.waiting(2).await;
    raw.connection.close(0x100_u32.into(), b"");
    door.dropped(4).await;
    door.connections(0).await;
}

#[tokio::test]
async fn an_answer_that_breaks_off_never_looks_whole() {
    let door = Door::open(quick());
    let raw = door.raw().await;
    for path in ["/t/broken", "/t/short"] {
        let (mut send, mut recv) = raw.say(&head("GET", path, &[])).await;
        send.finish().unwrap();
        assert_eq!(said(&mut recv).await, Err(INTERNAL_ERROR), "{path}");
    }
    let mut client = door.client().await;
    assert_eq!(client.get("/t/hello").await.1, "hello", "others are served");
}

#[test]
fn requests_are_served_on_the_runtime_that_the_door_was_given() {
    let runtime = || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().thread_name("edge").build().unwrap();
    let edge = runtime();
    let quic = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    quic.block_on(async {
        let door = Door::on(quick(), edge.handle().clone());
        let mut client = door.client().await;
        assert_eq!(client.get("/t/thread").await.1, "edge");
    });
}

#[tokio::test]
async fn requests_of_a_connection_are_served_side_by_side_up_to_the_limit() {
    let mut config = quick();
    config.limits.streams = 10;
    let door = Door::open(config);
    let raw = door.raw().await;
    let mut held = Vec::new();
    for _ in 0..10 {
        held.push(raw.say(&head("GET", "/t/wait", &[])).await);
    }
    door.waiting(10).await;
    assert!(tokio::time::timeout(Duration::from_millis(100), raw.connection.open_bi()).await.is_err(), "an eleventh stream");
    for (send, _) in &mut held {
        send.finish().unwrap();
    }
    drop(held);
    door.told.gate.add_permits(10);
    door.waiting(0).await;
    assert!(tokio::time::timeout(LONG, raw.connection.open_bi()).await.is_ok());
}

#[tokio::test]
async fn a_connection_without_a_request_is_closed_without_an_error() {
    let mut config = quick();
    config.timeouts = Timeouts { idle: Duration::from_millis(300), ..config.timeouts };
    let door = Door::open(config);
    let (silent, settled, mut used) = (door.quic().await, door.raw().await, door.client().await);
    // Whoever has a request in hand is not idle.
    let mut asked = used.ask(Method::GET, "/t/wait").await;
    asked.finish().await.unwrap();
    let began = Instant::now();
    assert_eq!(closed(&silent).await, NO_ERROR);
    assert_eq!(settled.closed().await, NO_ERROR);
    door.counted(Reason::Idle, 2).await;
    assert!(began.elapsed() < LONG / 2);
    door.told.gate.add_permits(1);
    assert_eq!(answer(&mut asked).await.1, "waited");
    assert_eq!(used.closed().await, NO_ERROR);
    door.counted(Reason::Idle, 3).await;
    door.connections(0).await;
}

#[tokio::test]
async fn a_drain_finishes_what_is_in_hand_and_takes_no_more() {
    let door = Door::open(quick());
    let raw = door.raw().await;
    let mut held = raw.say(&head("GET", "/t/wait", &[])).await;
    door.waiting(1).await;
    door.drain(LONG);
    // Whoever comes now is told to go.
    let late = door.quic().await;
    assert_eq!(closed(&late).await, NO_ERROR);
    // What was asked before the client could know is served, until it is told where the server stops.
    let rejected = loop {
        let (mut send, mut recv) = raw.say(&head("GET", "/t/hello", &[])).await;
        let _ = send.finish();
        match said(&mut recv).await {
            Ok(bytes) => assert!(bytes.ends_with(b"hello")),
            Err(code) => break code,
        }
    };
    assert_eq!(rejected, REQUEST_REJECTED);
    door.told.gate.add_permits(1);
    assert!(said(&mut held.1).await.unwrap().ends_with(b"waited"));
    assert_eq!(raw.closed().await, NO_ERROR);
    tokio::time::timeout(LONG, door.http3.emptied()).await.unwrap();
}

#[tokio::test]
async fn a_drained_connection_stays_until_its_client_has_what_was_answered() {
    let door = Door::open(quick());
    let raw = door.raw().await;
    let (mut send, mut recv) = raw.say(&head("GET", "/t/wait/500000", &[])).await;
    send.finish().unwrap();
    door.waiting(1).await;
    door.drain(LONG);
    // Told where the server stops, so that it closes when this one is answered.
    while said(&mut raw.say(&head("GET", "/t/hello", &[])).await.1).await != Err(REQUEST_REJECTED) {}
    door.told.gate.add_permits(1);
    // All of it is written at once, and a few packets of it are under way.
    assert!(said(&mut recv).await.expect("the whole answer").len() > 500_000);
    assert_eq!(raw.closed().await, NO_ERROR);
}

#[tokio::test]
async fn a_drain_cuts_off_what_does_not_end_in_time() {
    let door = Door::open(quick());
    let raw = door.raw().await;
    let _held = raw.say(&head("GET", "/t/wait", &[])).await;
    door.waiting(1).await;
    let until = door.drain(Duration::from_millis(300));
    assert_eq!(raw.closed().await, NO_ERROR);
    assert!(Instant::now() >= until, "before its time");
    door.dropped(1).await;
    door.counted(Reason::Draining, 1).await;
    door.connections(0).await;
}

#[test]
fn an_idle_client_that_says_nothing_any_more_does_not_hold_up_a_drain() {
    let runtime = || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (clients, server) = (runtime(), runtime());
    server.block_on(async {
        // Long, so that nothing but the drain ends it.
        let door = Arc::new(Door::open(Config { timeouts: Timeouts::default(), ..quick() }));
        let inner = door.clone();
        let client = clients.spawn(async move {
            let (mut served, mut waiting) = (inner.client().await, inner.client().await);
            assert_eq!(served.get("/t/hello").await.1, "hello");
            let mut asked = waiting.ask(Method::GET, "/t/wait").await;
            asked.finish().await.unwrap();
            inner.waiting(1).await;
            (served, waiting, asked)
        });
        let client = client.await.unwrap();
        door.connections(2).await;
        // Nobody is left who acknowledges anything, and nobody says so. One of the two is answered all the same.
        clients.shutdown_background();
        door.told.gate.add_permits(1);
        door.waiting(0).await;
        let until = door.drain(LONG);
        tokio::time::timeout(LONG, door.http3.emptied()).await.unwrap();
        assert!(Instant::now() + LONG / 2 < until, "a few seconds at most");
        assert_eq!(door.metrics.count(Reason::Draining), 0);
        std::mem::forget(client);
    });
}

#[tokio::test]
async fn a_drain_under_load_loses_no_request_that_was_taken() {
    // What is slow here is the machine.
    let door = Door::open(Config { timeouts: Timeouts::default(), ..quick() });
    let clients = scale(8, 64);
    let total = Arc::new(AtomicUsize::new(0));
    let ask = |mut client: Client, total: Arc<AtomicUsize>| async move {
        let mut answered = 0;
        loop {
            let mut asked = match client.send.send_request(request(Method::GET, "/t/bytes/3000")).await {
                Ok(asked) => asked,
                // Told to go away before it asked.
                Err(error) => return (answered, format!("{error:?}")),
            };
            let _ = asked.finish().await;
            match asked.recv_response().await {
                Ok(response) => assert_eq!(response.status(), StatusCode::OK),
                // Told that it was not taken.
                Err(StreamError::RemoteTerminate { code: Code::H3_REQUEST_REJECTED, .. }) => return (answered, "rejected".to_owned()),
                Err(error) => panic!("a request was lost after {answered}: {error:?}"),
            }
            let mut body = 0;
            while let Some(part) = asked.recv_data().await.unwrap_or_else(|error| panic!("an answer was cut: {error:?}")) {
                body += part.remaining();
            }
            assert_eq!(body, 3000);
            answered += 1;
            total.fetch_add(1, Relaxed);
        }
    };
    let mut asking = Vec::new();
    for _ in 0..clients {
        asking.push(tokio::spawn(ask(door.client().await, total.clone())));
    }
    eventually("some answers", || match total.load(Relaxed) {
        answers if answers > 200 => Ok(()),
        answers => Err(answers.to_string()),
    })
    .await;
    door.drain(LONG);
    for asked in join_all(asking).await {
        let (answered, why) = asked.unwrap();
        assert!(answered > 0, "{why}");
    }
    tokio::time::timeout(LONG, door.http3.emptied()).await.unwrap();
    assert_eq!(door.metrics.count(Reason::Protocol), 0, "{:?}", door.counts());
}

#[tokio::test]
async fn the_longest_idle_makes_room() {
    let mut config = quick();
    config.limits.connections = 3;
    let door = Door::open(config);
    let mut first = door.client().await;
    let mut asked = first.ask(Method::GET, "/t/wait").await;
    asked.finish().await.unwrap();
    door.waiting(1).await;
    let mut idle = door.client().await;
    idle.get("/t/hello").await;
    let (mut recent, since) = (door.client().await, Instant::now());
    // Until it is the more recent by the clock that is looked at, which counts milliseconds.
    while since.elapsed() < Duration::from_millis(2) {
        recent.get("/t/hello").await;
    }
    let mut newest = door.client().await;
    assert_eq!(newest.get("/t/hello").await.1, "hello");
    assert_eq!(idle.closed().await, NO_ERROR);
    door.counted(Reason::Idle, 1).await;
    assert_eq!(recent.get("/t/hello").await.1, "hello");
    door.told.gate.add_permits(1);
    assert_eq!(answer(&mut asked).await.1, "waited");
}

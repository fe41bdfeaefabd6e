//! HTTP/3 clients that mean no good: refused at once, counted, and never at the others' expense.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use horos_edge::{Config, Reason, Timeouts};
use http::{Method, StatusCode};
use parking_lot::Mutex;
use proptest::{
    collection::vec,
    prelude::*,
    test_runner::{TestCaseError, TestRunner},
};
use quinn::{TransportConfig, VarInt};

use super::{
    h3_world::{
        CLOSED_CRITICAL_STREAM, Door, EXCESSIVE_LOAD, FRAME_ERROR, FRAME_UNEXPECTED, INTERNAL_ERROR, MESSAGE_ERROR, NO_ERROR,
        REQUEST_REJECTED, Raw, STREAM_CREATION_ERROR, announce, answer, closed, frame, get, head, quick, request, said, section, varint,
    },
    world::{Counting as _, LONG, scale},
};

const QPACK_ENCODER_STREAM_ERROR: u64 = 0x201;
const QPACK_DECODER_STREAM_ERROR: u64 = 0x202;
const QPACK_DECOMPRESSION_FAILED: u64 = 0x200;

/// With 256 streams at once.
fn wide() -> Config {
    let mut config = quick();
    config.limits.streams = 256;
    config
}

#[tokio::test]
async fn frames_that_announce_a_gibibyte_are_refused_at_their_header() {
    let door = Door::open(wide());
    let mut other = door.client().await;
    let kinds = [0x1, 0x21, 0x3, 0x4, 0x5, 0x7, 0xd, 0xf0700, 0x2];
    for (index, kind) in kinds.into_iter().enumerate() {
        let raw = door.raw().await;
        // On as many streams as there may be; the first that is read ends them all.
        for _ in 0..256 {
            let Ok((mut send, _recv)) = raw.connection.open_bi().await else { break };
            if send.write_all(&announce(kind, 1 << 30)).await.is_err() {
                break;
            }
        }
        assert_eq!(raw.closed().await, EXCESSIVE_LOAD, "type {kind:#x}");
        door.counted(Reason::FrameTooLarge, index as u64 + 1).await;
        assert_eq!(other.get("/t/hello").await.1, "hello", "others are served");
    }
    door.connections(1).await;
}

#[tokio::test]
async fn a_frame_that_announces_too_much_is_refused_on_the_control_stream_and_after_a_head() {
    let door = Door::open(quick());
    let mut raw = door.raw().await;
    raw.control.write_all(&announce(0x21, 1 << 30)).await.unwrap();
    assert_eq!(raw.closed().await, EXCESSIVE_LOAD);
    let raw = door.raw().await;
    let _stream = raw.say(&[head("POST", "/t/read", &[]), frame(0, b"some"), announce(0x1, 1 << 30)].concat()).await;
    assert_eq!(raw.closed().await, EXCESSIVE_LOAD);
    door.counted(Reason::FrameTooLarge, 2).await;
}

#[tokio::test]
async fn half_a_head_is_given_up_in_time_and_holds_nobody_up() {
    let door = Door::open(quick());
    let raw = door.raw().await;
    let whole = head("GET", "/t/hello", &[]);
    let mut slow = Vec::new();
    for _ in 0..20 {
        slow.push(raw.say(&whole[..whole.len() / 2]).await);
    }
    // On the same connection and on another.
    let (mut send, mut recv) = raw.say(&whole).await;
    send.finish().unwrap();
    assert!(said(&mut recv).await.unwrap().ends_with(b"hello"));
    assert_eq!(door.client().await.get("/t/hello").await.1, "hello");
    for (_, recv) in &mut slow {
        assert_eq!(said(recv).await, Err(REQUEST_REJECTED));
    }
    door.counted(Reason::SlowHead, 20).await;
}

#[tokio::test]
async fn half_a_body_is_given_up_in_time() {
    let door = Door::open(quick());
    let raw = door.raw().await;
    let whole = frame(0, b"hello");
    let (_send, mut recv) = raw.say(&[head("POST", "/t/read", &[]), whole[..4].to_vec()].concat()).await;
    assert!(said(&mut recv).await.is_ok(), "it is answered, with what went wrong");
    door.counted(Reason::SlowBody, 1).await;
}

/// h3 would read two of them for each that it hands on, and look through all that it has for each.
#[tokio::test]
async fn a_body_in_the_smallest_frames_is_read_in_step() {
    let door = Door::open(Config { timeouts: Timeouts { answer: LONG, ..quick().timeouts }, ..quick() });
    let raw = door.raw().await;
    let (mut send, mut recv) = raw.say(&head("POST", "/t/read", &[])).await;
    let (parts, part) = (scale(200, 1_000), frame(0, b"x").repeat(1_000));
    for _ in 0..parts {
        send.write_all(&part).await.unwrap();
    }
    send.finish().unwrap();
    let answer = said(&mut recv).await.unwrap();
    assert!(answer.ends_with(format!("{} ", parts * 1_000).as_bytes()), "{answer:?}");
}

#[tokio::test]
async fn incomplete_heads_are_bounded_by_the_connection() {
    let door = Door::open(Config { timeouts: Timeouts { head: LONG, ..quick().timeouts }, ..wide() });
    let raw = door.raw().await;
    // Each is allowed; together they would be 12 MiB.
    let part = [announce(0x1, 60_000), vec![0; 50_000]].concat();
    let mut held = Vec::new();
    for _ in 0..250 {
        let Ok((mut send, recv)) = raw.connection.open_bi().await else { break };
        if send.write_all(&part).await.is_err() {
            break;
        }
        held.push((send, recv));
    }
    assert_eq!(raw.closed().await, EXCESSIVE_LOAD);
    door.counted(Reason::HeadTooLarge, 1).await;
}

#[tokio::test]
async fn a_head_too_large_is_answered_so() {
    let door = Door::open(quick());
    let raw = door.raw().await;
    let large = "x".repeat(40_000);
    let many: Vec<_> = (0..101).map(|_| ("a", "b")).collect();
    for (index, fields) in [&[("x-large", &large[..])][..], &many].into_iter().enumerate() {
        let (mut send, mut recv) = raw.say(&head("GET", "/t/hello", fields)).await;
        send.finish().unwrap();
        let answer = said(&mut recv).await.unwrap();
        // RFC 9204 appendix A has no 431: `:status` by its name, and the value as it is or by Huffman's code.
        assert!(!answer.is_empty() && answer[0] == 1, "a head: {answer:?}");
        door.counted(Reason::HeadTooLarge, index as u64 + 1).await;
    }
    let mut client = door.client().await;
    let mut asked = client.send.send_request(request(Method::GET, "/t/hello")).await.unwrap();
    asked.finish().await.unwrap();
    assert_eq!(answer(&mut asked).await.0.status(), StatusCode::OK);
    let mut large = request(Method::GET, "/t/hello");
    for _ in 0..120 {
        large.headers_mut().append("a", http::HeaderValue::from_static("b"));
    }
    let mut asked = client.send.send_request(large).await.unwrap();
    asked.finish().await.unwrap();
    assert_eq!(answer(&mut asked).await.0.status(), StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
}

#[tokio::test]
async fn a_body_that_is_cut_within_a_frame_ends_the_connection_and_no_task_panics() {
    let door = Door::open(quick());
    for path in ["/t/read", "/t/echo"] {
        let raw = door.raw().await;
        let (mut send, mut recv) = raw.say(&[head("POST", path, &[]), announce(0, 100), vec![7; 50]].concat()).await;
        if path == "/t/echo" {
            // What there was is read before the end comes.
            recv.read_chunk(100, true).await.unwrap().expect("some of the answer");
        }
        send.finish().unwrap();
        assert_eq!(raw.closed().await, FRAME_ERROR, "{path}");
    }
    door.counted(Reason::Protocol, 2).await;
}

#[tokio::test]
async fn malformed_requests_are_refused_without_a_service() {
    let door = Door::open(quick());
    let raw = door.raw().await;
    let post = |fields: &[(&str, &str)], body: &[u8]| [head("POST", "/t/wait", fields), frame(0, body)].concat();
    let malformed = [
        post(&[("connection", "close")], b"x"),
        post(&[("transfer-encoding", "chunked")], b"x"),
        post(&[("te", "gzip")], b"x"),
        post(&[("content-length", "1"), ("content-length", "2")], b"x"),
        post(&[("content-length", "0")], b"x"),
        head("GET", "/t/wait", &[("content-length", "5")]),
        head("GET", "/t/wait", &[("Upper", "case")]),
    ];
    for (index, bytes) in malformed.into_iter().enumerate() {
        let (mut send, mut recv) = raw.say(&bytes).await;
        let _ = send.finish();
        assert_eq!(said(&mut recv).await, Err(MESSAGE_ERROR), "{index}");
    }
    for (reason, count) in [(Reason::BadField, 3), (Reason::BadLength, 3), (Reason::Protocol, 1)] {
        door.counted(reason, count).await;
    }
    assert_eq!(door.told.waiting.load(Relaxed), 0);
    // Known only later: the service is told that the body is not what it should be.
    let (mut send, mut recv) = raw.say(&[head("POST", "/t/echo", &[("content-length", "5")]), frame(0, b"abc")].concat()).await;
    recv.read_chunk(100, true).await.unwrap().expect("some of the answer");
    let _ = send.write_all(&frame(0, b"defg")).await;
    assert_eq!(said(&mut recv).await, Err(INTERNAL_ERROR));
}

#[tokio::test]
async fn what_has_no_place_on_a_stream_ends_the_connection() {
    let door = Door::open(quick());
    let on_request: [(&[u8], u64); 6] = [
        (&frame(0, b"no head"), FRAME_UNEXPECTED),
        (&frame(0x4, b""), FRAME_UNEXPECTED),
        (&frame(0x2, b""), FRAME_UNEXPECTED),
        (&[0x40, 0x41, 0x00], FRAME_UNEXPECTED),
        (&[head("POST", "/t/read", &[]), frame(0x7, &[0])].concat(), FRAME_UNEXPECTED),
        // A reference to the dynamic table that there is not.
        (&frame(0x1, &[2, 0, 0x80]), QPACK_DECOMPRESSION_FAILED),
    ];
    for (index, (bytes, code)) in on_request.into_iter().enumerate() {
        let raw = door.raw().await;
        let (mut send, _recv) = raw.say(bytes).await;
        let _ = send.finish();
        assert_eq!(raw.closed().await, code, "on a request, {index}");
    }
    let on_control: [(&[u8], u64); 4] = [
        (&frame(0, b"x"), FRAME_UNEXPECTED),
        (&frame(0x1, b"x"), FRAME_UNEXPECTED),
        (&frame(0x4, b""), FRAME_UNEXPECTED),
        (&[frame(0x7, &[0]), frame(0x7, &[4])].concat(), 0x108),
    ];
    for (index, (bytes, code)) in on_control.into_iter().enumerate() {
        let mut raw = door.raw().await;
        raw.control.write_all(bytes).await.unwrap();
        assert_eq!(raw.closed().await, code, "on the control stream, {index}");
    }
    let on_own: [(&[u8], u64); 7] = [
        (&[0x0], STREAM_CREATION_ERROR),
        (&[0x1, 0x0], STREAM_CREATION_ERROR),
        // A table of 4,096, an insertion.
        (&[0x2, 0x3f, 0xe1, 0x1f], QPACK_ENCODER_STREAM_ERROR),
        (&[0x2, 0xc0, 0x01, 0x61], QPACK_ENCODER_STREAM_ERROR),
        // An acknowledgement, an increment.
        (&[0x3, 0x84], QPACK_DECODER_STREAM_ERROR),
        (&[0x3, 0x01], QPACK_DECODER_STREAM_ERROR),
        // Its stream must stay open.
        (&[0x3], CLOSED_CRITICAL_STREAM),
    ];
    for (index, (bytes, code)) in on_own.into_iter().enumerate() {
        let raw = door.raw().await;
        let mut own = raw.connection.open_uni().await.unwrap();
        own.write_all(bytes).await.unwrap();
        if bytes.len() == 1 && code == CLOSED_CRITICAL_STREAM {
            own.finish().unwrap();
        }
        assert_eq!(raw.closed().await, code, "on a stream of its own, {index}");
    }
    let mut raw = door.raw().await;
    raw.control.finish().unwrap();
    assert_eq!(raw.closed().await, CLOSED_CRITICAL_STREAM);
    door.counted(Reason::Protocol, 18).await;
}

#[tokio::test]
async fn floods_of_frames_that_carry_nothing_end_the_connection() {
    let door = Door::open(quick());
    let mut raw = door.raw().await;
    // Priorities of streams that were never opened.
    let _ = raw.control.write_all(&frame(0xf0700, b"\x00u=1").repeat(10_000)).await;
    assert_eq!(raw.closed().await, EXCESSIVE_LOAD);
    for kind in [0x0, 0x21] {
        let raw = door.raw().await;
        let (mut send, _recv) = raw.say(&head("POST", "/t/read", &[])).await;
        let _ = send.write_all(&frame(kind, b"").repeat(10_000)).await;
        assert_eq!(raw.closed().await, EXCESSIVE_LOAD, "type {kind:#x}");
    }
    let raw = door.raw().await;
    let mut decoder = raw.connection.open_uni().await.unwrap();
    let _ = decoder.write_all(&[&[0x3][..], &[0x44; 10_000]].concat()).await;
    assert_eq!(raw.closed().await, EXCESSIVE_LOAD);
    door.counted(Reason::FrameFlood, 4).await;
}

#[tokio::test]
async fn streams_of_unknown_types_are_stopped_unread_and_there_are_so_many() {
    let door = Door::open(quick());
    let raw = door.raw().await;
    let mut stopped = 0;
    loop {
        let Ok(Ok(mut unknown)) = tokio::time::timeout(LONG, raw.connection.open_uni()).await else { break };
        if unknown.write_all(&varint(0x21 + 0x1f * 7)).await.is_err() {
            break;
        }
        match unknown.stopped().await {
            Ok(code) => assert_eq!(code.map(u64::from), Some(STREAM_CREATION_ERROR)),
            Err(_) => break,
        }
        stopped += 1;
    }
    assert_eq!(stopped, 64);
    assert_eq!(raw.closed().await, EXCESSIVE_LOAD);
    door.counted(Reason::FrameFlood, 1).await;
    // Whoever opens streams and says nothing on them has a few, and no more.
    let raw = door.raw().await;
    let mut silent = Vec::new();
    while let Ok(opened) = tokio::time::timeout(Duration::from_millis(50), raw.connection.open_uni()).await {
        silent.push(opened.unwrap());
        assert!(silent.len() < 8, "as many at once as it likes");
    }
    let (mut send, mut recv) = raw.say(&head("GET", "/t/hello", &[])).await;
    send.finish().unwrap();
    assert!(said(&mut recv).await.is_ok(), "and is served");
}

#[tokio::test]
async fn requests_opened_and_reset_in_a_loop_end_the_connection() {
    let door = Door::open(quick());
    let mut other = door.client().await;
    let raw = door.raw().await;
    let whole = head("GET", "/t/wait", &[]);
    let mut opened = 0;
    while let Ok(Ok((mut send, mut recv))) = tokio::time::timeout(LONG, raw.connection.open_bi()).await {
        opened += 1;
        let _ = send.write_all(&whole).await;
        let _ = send.reset(VarInt::from_u32(0x10c));
        let _ = recv.stop(VarInt::from_u32(0x10c));
        assert!(opened < 100_000, "it never ends");
    }
    assert_eq!(raw.closed().await, EXCESSIVE_LOAD);
    door.counted(Reason::ResetFlood, 1).await;
    assert_eq!(other.get("/t/hello").await.1, "hello", "others are served");
    door.connections(1).await;
}

#[tokio::test]
async fn who_takes_no_answers_is_given_up() {
    let door = Door::open(quick());
    let mut transport = TransportConfig::default();
    transport.stream_receive_window(VarInt::from_u32(20_000));
    let connection = door.quic_with(transport).await;
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    send.write_all(&head("GET", "/t/endless", &[])).await.unwrap();
    send.finish().unwrap();
    door.counted(Reason::SlowReader, 1).await;
    door.dropped(1).await;
    assert!(matches!(said(&mut recv).await, Err(0x10c)));
    assert!(connection.close_reason().is_none(), "what it asks else is served");
}

#[tokio::test]
async fn connections_beyond_the_limit_are_refused_while_all_are_at_work() {
    let mut config = quick();
    config.limits.connections = 2;
    let door = Door::open(config);
    let mut held = Vec::new();
    for at_work in 1..=2 {
        let raw = door.raw().await;
        let stream = raw.say(&head("GET", "/t/wait", &[])).await;
        door.waiting(at_work).await;
        held.push((raw, stream));
    }
    assert_eq!(closed(&door.quic().await).await, EXCESSIVE_LOAD);
    door.counted(Reason::ConnectionsFull, 1).await;
    drop(held);
    door.connections(0).await;
    assert_eq!(door.client().await.get("/t/hello").await.1, "hello");
}

#[tokio::test]
async fn who_gives_no_room_for_the_control_stream_is_given_up() {
    let door = Door::open(quick());
    let mut transport = TransportConfig::default();
    transport.max_concurrent_uni_streams(VarInt::from_u32(0));
    let connection = door.quic_with(transport).await;
    assert_eq!(closed(&connection).await, STREAM_CREATION_ERROR);
    door.counted(Reason::SlowHead, 1).await;
    // One that opens its streams and lets nothing be said on them is idle like any other.
    door.connections(0).await;
}

#[tokio::test]
async fn a_goaway_of_the_client_ends_its_connection_when_all_is_answered() {
    let door = Door::open(quick());
    let mut raw = door.raw().await;
    let (mut send, mut recv) = raw.say(&head("GET", "/t/wait", &[])).await;
    send.finish().unwrap();
    door.waiting(1).await;
    raw.control.write_all(&frame(0x7, &[0])).await.unwrap();
    door.told.gate.add_permits(1);
    assert!(said(&mut recv).await.unwrap().ends_with(b"waited"));
    assert_eq!(raw.closed().await, NO_ERROR);
    assert!(door.counts().is_empty(), "{:?}", door.counts());
}

/// What a client may say on one stream, with some sense in it.
fn speech() -> impl Strategy<Value = Vec<u8>> {
    let field_section = prop_oneof![
        Just(section("GET", "/t/hello", &[])),
        vec(any::<u8>(), 0..200),
        vec(any::<u8>(), 0..200).prop_map(|bytes| [&[0, 0][..], &bytes].concat()),
        // Strings in Huffman's code.
        vec(any::<u8>(), 1..100).prop_map(|bytes| [&[0, 0, 0x51, 0x80 | bytes.len() as u8][..], &bytes].concat()),
    ];
    let kind = prop_oneof![4 => Just(1_u64), 2 => Just(0), 1 => 0_u64..0x50, 1 => any::<u32>().prop_map(u64::from)];
    let framed = (kind, field_section).prop_map(|(kind, payload)| frame(kind, &payload));
    vec(prop_oneof![4 => framed, 1 => vec(any::<u8>(), 0..40)], 0..4).prop_map(|frames| frames.concat())
}

#[test]
fn whatever_is_said_nothing_panics_and_others_are_served() {
    // A task that panics fails alone, and would not be seen.
    let panics = Arc::new(Mutex::new(Vec::new()));
    let (seen, usual) = (panics.clone(), std::panic::take_hook());
    std::panic::set_hook(Box::new(move |what| {
        if what.location().is_some_and(|at| at.file().contains("/h3")) {
            seen.lock().push(what.to_string());
        }
        usual(what);
    }));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (door, other) = runtime.block_on(async {
        let door = Door::open(quick());
        let other = door.client().await;
        (door, other)
    });
    let config = ProptestConfig { cases: scale(48, 2_000), failure_persistence: None, ..ProptestConfig::default() };
    TestRunner::new(config)
        .run(&(vec(speech(), 1..6), vec(speech(), 0..3), any::<bool>()), |(requests, own, finish)| {
            let failed = |what: String| Err(TestCaseError::fail(what));
            runtime.block_on(async {
                let Raw { connection, control: _control } = door.raw().await;
                for bytes in requests {
                    let Ok((mut send, _recv)) = connection.open_bi().await else { break };
                    let _ = send.write_all(&bytes).await;
                    if finish {
                        let _ = send.finish();
                    }
                }
                for bytes in own {
                    let Ok(mut send) = connection.open_uni().await else { break };
                    let _ = send.write_all(&bytes).await;
                    if finish {
                        let _ = send.finish();
                    }
                }
                // So that what was said is heard before the connection goes.
                let heard = get(&mut other.send.clone(), "/t/hello").await.1;
                connection.close(VarInt::from_u32(0x100), b"");
                if heard == "hello" { Ok(()) } else { failed(format!("{heard:?}")) }
            })
        })
        .unwrap();
    runtime.block_on(async {
        drop(other);
        door.connections(0).await;
    });
    assert_eq!(*panics.lock(), Vec::<String>::new());
}

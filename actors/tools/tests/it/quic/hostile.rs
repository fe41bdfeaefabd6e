//! Peers that do as they like, and a bystander whose calls go on.

use std::{
    sync::atomic::Ordering::{self, SeqCst},
    time::{Duration, Instant},
};

use horos_link::identity::authority::Revoke;
use horos_tools::quic::{MAX_MESSAGE, Times};
use horos_wire::{Role, principal::Denied};
use jiff::Timestamp;
use quinn::{ReadError, StoppedError, VarInt, WriteError};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::{
    raw::{Heard, Raw, call, closed, initialize},
    world::{KEY, Node, SOON, client, counts, dial, dialer, eventually, scale},
};

const VIOLATION: u64 = 3;
const UNAUTHENTICATED: u64 = 4;
const LIMIT: u64 = 5;

#[tokio::test]
async fn nobody_lists_or_calls_without_a_proof() {
    let node = Node::new().await;
    let mut bystander = node.raw().await;
    let mut shown = vec![("no key", initialize(None, false))];
    for (what, key) in [("a wrong key", json!("hk_bad.1")), ("a number", json!(7)), ("nothing", json!("")), ("null", Value::Null)] {
        let mut first = initialize(None, false);
        first["params"]["_meta"] = json!({"horos/key": key});
        shown.push((what, first));
    }
    shown.push(("a call at once", call(json!(0), "echo", json!({}))));
    shown.push(("a list at once", json!({"jsonrpc": "2.0", "id": 0, "method": "tools/list"})));
    shown.push(("a method of nobody's", json!({"jsonrpc": "2.0", "id": 0, "method": "no/such"})));
    for (what, first) in shown {
        let mut raw = Raw::open(node.stranger().await).await;
        raw.say(&first).await;
        // What comes behind is not looked at.
        raw.call(json!(1), "echo", json!({})).await;
        let (id, code, message) = raw.heard.error().await;
        assert_eq!((id, code), (json!(0), -32001), "{what}: {message}");
        assert!(message.contains("horos/key"), "{what}: {message}");
        assert_eq!(raw.heard.bytes().await, None, "{what}");
        assert_eq!(raw.closed().await, (UNAUTHENTICATED, "unauthenticated".to_owned()), "{what}");
    }
    for first in
        [json!({"jsonrpc": "2.0", "method": "notifications/initialized"}), json!({"jsonrpc": "2.0", "id": 1, "result": {}}), json!([])]
    {
        let mut raw = Raw::open(node.stranger().await).await;
        raw.say(&first).await;
        assert_eq!(raw.heard.error().await.1, -32600, "{first}");
        assert_eq!(raw.closed().await.0, VIOLATION, "{first}");
    }
    assert!(node.hand.seen.lock().is_empty());
    bystander.is_served().await;
    node.stop().await;
}

#[tokio::test]
async fn a_proof_that_no_longer_holds_ends_the_session() {
    let node = Node::with(|options| options.times.proof = Duration::ZERO).await;
    let mut raw = node.raw().await;
    raw.is_served().await;
    *node.keys.says.lock() = Err(Denied::Unavailable);
    raw.call(json!(1), "echo", json!({})).await;
    let (id, code, what) = raw.heard.error().await;
    assert_eq!((id, code), (json!(1), -32001), "{what}");
    *node.keys.says.lock() = Ok(());
    raw.is_served().await;
    *node.keys.says.lock() = Err(Denied::Revoked);
    raw.call(json!(2), "echo", json!({})).await;
    // That it is over may be found out before the request is read.
    if let Some(line) = raw.heard.bytes().await {
        let line: Value = serde_json::from_slice(&line).unwrap();
        assert_eq!((&line["id"], &line["error"]["code"]), (&json!(2), &json!(-32001)), "{line}");
    }
    assert_eq!(raw.closed().await.0, UNAUTHENTICATED);
    node.stop().await;
}

#[tokio::test]
async fn what_is_revoked_ends_sessions_that_ask_for_nothing_and_what_they_have_in_hand() {
    const NEVER: Duration = Duration::from_secs(3_600);
    let node = Node::with(|options| (options.times.proof, options.times.idle) = (NEVER, 8 * NEVER)).await;
    let mut raw = node.raw().await;
    raw.call(json!(1), "gate", json!({})).await;
    counts(&node.hand.waiting, 1).await;
    let mut holder = Raw::open(node.holder(Role::Operator, "ann").await).await;
    holder.say(&initialize(None, false)).await;
    holder.heard.line().await;
    // Nobody is cut off because it cannot be told now.
    let asked = node.keys.asked.load(SeqCst);
    node.keys.tell(Err(Denied::Unavailable));
    eventually("it is looked at", || if node.keys.asked.load(SeqCst) > asked { Ok(()) } else { Err("not yet".into()) }).await;
    node.keys.tell(Ok(()));
    raw.is_served().await;
    node.keys.tell(Err(Denied::Revoked));
    assert_eq!(raw.closed().await.0, UNAUTHENTICATED);
    counts(&node.hand.cancelled, 1).await;

    // Who has a certificate has it on.
    holder.is_served().await;
    let ann = node.cluster.tls(Role::Operator, "ann").credentials().id().clone();
    let text = node.cluster.authority.revoke(&[Revoke::Identity(ann)], Timestamp::now()).unwrap();
    node.tls.deny(&text).unwrap();
    assert_eq!(holder.closed().await.0, UNAUTHENTICATED);
    eventually("nothing is left of them", || if node.door.sessions() == 0 { Ok(()) } else { Err("some".into()) }).await;
    node.stop().await;
}

#[tokio::test]
async fn what_runs_out_ends_its_session_without_anybody_telling() {
    let node = Node::with(|options| options.times.proof = Duration::from_millis(20)).await;
    let raw = node.raw().await;
    *node.keys.says.lock() = Err(Denied::Expired);
    assert_eq!(raw.closed().await.0, UNAUTHENTICATED);
    node.stop().await;
}

#[tokio::test]
async fn a_session_is_of_one_key() {
    let node = Node::new().await;
    let mut raw = node.raw().await;
    for (key, served) in [(KEY, true), ("hk_good.other", false)] {
        let mut asked = call(json!(1), "echo", json!({}));
        asked["params"]["_meta"] = json!({"horos/key": key});
        raw.say(&asked).await;
        let answer = raw.heard.line().await;
        assert_eq!(answer.get("result").is_some(), served, "{answer}");
    }
    assert!(!node.hand.seen.lock().join("\n").contains(KEY));
    raw.is_served().await;
    node.stop().await;
}

#[tokio::test]
async fn whoever_is_slow_to_begin_is_sent_away() {
    let short = Times { handshake: Duration::from_millis(200), ..Times::default() };
    let node = Node::with(|options| options.times = short).await;
    let silent = node.stranger().await;
    let without_magic = {
        let connection = node.stranger().await;
        let (mut send, receive) = connection.open_bi().await.unwrap();
        send.write_all(b"MC").await.unwrap();
        (connection, send, receive)
    };
    let mut without_request = Raw::open(node.stranger().await).await;
    let mut half = Raw::open(node.stranger().await).await;
    half.write(b"{\"jsonrpc\":\"2.0\",").await;
    assert_eq!(closed(&silent).await, (VIOLATION, "no stream was opened".to_owned()));
    assert_eq!(closed(&without_magic.0).await.0, VIOLATION);
    for raw in [&mut without_request, &mut half] {
        assert_eq!(raw.heard.error().await.1, -32700);
        assert_eq!(raw.closed().await, (VIOLATION, "no request came in time".to_owned()));
    }
    let wrong = node.stranger().await;
    let (mut send, _receive) = wrong.open_bi().await.unwrap();
    send.write_all(b"HTTP/1.1").await.unwrap();
    assert_eq!(closed(&wrong).await, (VIOLATION, "invalid magic bytes: expected MCP1".to_owned()));
    eventually("all are gone", || if node.door.sessions() == 0 { Ok(()) } else { Err(node.door.sessions().to_string()) }).await;
    node.stop().await;
}

#[tokio::test]
async fn a_message_beyond_the_limit_is_refused_while_it_comes() {
    let node = Node::new().await;
    let mut bystander = node.raw().await;
    let long = vec![b'x'; 11 << 20];
    // Of a stranger, who may say less.
    let mut stranger = Raw::open(node.stranger().await).await;
    stranger.write(&long[..70 * 1024]).await;
    assert_eq!(stranger.heard.error().await.1, -32600);
    assert_eq!(stranger.closed().await, (VIOLATION, "message too large".to_owned()));
    // On the first stream, and one that never ends.
    for _ in 0..2 {
        let mut raw = node.raw().await;
        let sent = timeout(SOON, raw.send.write_all(&long)).await.expect("refused while it comes");
        if sent.is_ok() {
            raw.write(b"\n").await;
        }
        let (id, code, what) = raw.heard.error().await;
        assert_eq!((id, code), (Value::Null, -32600));
        assert_eq!(what, "message too large: at most 10485760 bytes");
        assert_eq!(raw.closed().await, (VIOLATION, "message too large".to_owned()));
    }
    // On a stream of its own only that request is refused.
    let mut raw = Raw::open(node.stranger().await).await;
    raw.begin(KEY, true).await;
    let (mut send, receive) = raw.connection.open_bi().await.unwrap();
    send.write_all(b"MCP1").await.unwrap();
    let sent = timeout(SOON, send.write_all(&long)).await.expect("refused while it comes");
    assert!(matches!(sent, Ok(()) | Err(WriteError::Stopped(_))), "{sent:?}");
    let mut heard = Heard::new(receive);
    let (_, code, what) = heard.error().await;
    assert_eq!((code, &*what), (-32600, "message too large: at most 10485760 bytes"));
    assert_eq!(send.stopped().await.unwrap(), Some(VarInt::from_u32(3)));
    raw.is_served().await;
    bystander.is_served().await;
    node.stop().await;
}

#[tokio::test]
async fn a_message_at_the_limit_is_taken() {
    let node = Node::new().await;
    let mut raw = Raw::open(node.stranger().await).await;
    raw.begin(KEY, true).await;
    let frame = call(json!(1), "who", json!({"x": ""})).to_string();
    let padding = "y".repeat(MAX_MESSAGE - frame.len());
    let line = call(json!(1), "who", json!({"x": padding})).to_string();
    assert_eq!(line.len(), MAX_MESSAGE);
    raw.write(format!("{line}\n").as_bytes()).await;
    assert_eq!(raw.heard.line().await["id"], json!(1));
    let (mut send, receive) = raw.connection.open_bi().await.unwrap();
    timeout(SOON, send.write_all(format!("MCP1{line}\n").as_bytes())).await.unwrap().unwrap();
    send.finish().unwrap();
    assert_eq!(Heard::new(receive).line().await["id"], json!(1));
    node.stop().await;
}

#[tokio::test]
async fn what_is_no_message_is_refused_in_words() {
    let node = Node::new().await;
    let mut raw = node.raw().await;
    let cases: [(&[u8], Value, i64); 19] = [
        (b"\xff\xfe{}", Value::Null, -32700),
        (b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\",\"params\":{\"x\":\"\xc3\x28\"}}", Value::Null, -32700),
        (b"not json", Value::Null, -32700),
        (b"{\"jsonrpc\":\"2.0\",\"id\":1", Value::Null, -32700),
        (b"{} {}", Value::Null, -32700),
        (b"[]", Value::Null, -32600),
        (b"[{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\"}]", Value::Null, -32600),
        (b"\"text\"", Value::Null, -32600),
        (b"{}", Value::Null, -32600),
        (b"{\"id\":1,\"method\":\"ping\"}", json!(1), -32600),
        (b"{\"jsonrpc\":\"1.0\",\"id\":\"a\",\"method\":\"ping\"}", json!("a"), -32600),
        (b"{\"jsonrpc\":\"2.0\",\"id\":null,\"method\":\"ping\"}", Value::Null, -32600),
        (b"{\"jsonrpc\":\"2.0\",\"id\":[1],\"method\":\"ping\"}", Value::Null, -32600),
        (b"{\"jsonrpc\":\"2.0\",\"id\":2,\"id\":3,\"method\":\"ping\"}", Value::Null, -32600),
        (b"{\"jsonrpc\":\"2.0\",\"id\":2,\"method\":7}", json!(2), -32600),
        (b"{\"jsonrpc\":\"2.0\",\"id\":2,\"method\":\"ping\",\"params\":[1]}", json!(2), -32600),
        (b"{\"jsonrpc\":\"2.0\",\"id\":2,\"method\":\"ping\",\"result\":{}}", json!(2), -32600),
        (b"{\"jsonrpc\":\"2.0\",\"id\":2,\"method\":\"tools/call\",\"params\":{\"name\":5}}", json!(2), -32602),
        (b"{\"jsonrpc\":\"2.0\",\"id\":2,\"method\":\"tools/call\"}", json!(2), -32602),
    ];
    for (line, id, code) in cases {
        raw.write(line).await;
        raw.write(b"\n").await;
        let (told, refused, what) = raw.heard.error().await;
        assert_eq!((told, refused), (id, code), "{}: {what}", String::from_utf8_lossy(line));
        // The session goes on.
        raw.is_served().await;
    }
    // Nested beyond what is read, and not a stack overflow.
    let deep = format!(
        "{{\"jsonrpc\":\"2.0\",\"id\":9,\"method\":\"tools/call\",\"params\":{{\"name\":\"echo\",\"arguments\":{{\"a\":{}{}}}}}}}\n",
        "[".repeat(100_000),
        "]".repeat(100_000)
    );
    raw.write(deep.as_bytes()).await;
    let (id, code, _) = raw.heard.error().await;
    assert_eq!((id, code), (json!(9), -32602));
    raw.is_served().await;
    // Somebody that says nothing else is not listened to for ever.
    for _ in 0..16 {
        raw.write(b"junk\n").await;
    }
    for _ in 0..16 {
        assert_eq!(raw.heard.error().await.1, -32700);
    }
    assert_eq!(raw.closed().await, (VIOLATION, "too many bad messages".to_owned()));
    node.stop().await;
}

#[tokio::test]
async fn an_id_in_use_is_refused_and_the_first_is_answered() {
    let node = Node::new().await;
    let mut raw = Raw::open(node.stranger().await).await;
    raw.begin(KEY, true).await;
    raw.call(json!(7), "gate", json!({})).await;
    counts(&node.hand.waiting, 1).await;
    raw.call(json!(7), "echo", json!({})).await;
    let (id, code, what) = raw.heard.error().await;
    assert_eq!((id, code), (json!(7), -32600), "{what}");
    let (_send, mut beside) = raw.call_beside(json!(7), "echo", json!({})).await;
    assert_eq!(beside.error().await.1, -32600);
    // Another one by JSON's types.
    raw.call(json!("7"), "echo", json!({})).await;
    assert_eq!(raw.heard.line().await["id"], json!("7"));
    node.hand.gate.add_permits(1);
    let answer = raw.heard.line().await;
    assert_eq!((&answer["id"], &answer["result"]["content"][0]["text"]), (&json!(7), &json!("through")));
    raw.call(json!(7), "echo", json!({})).await;
    assert!(raw.heard.line().await.get("result").is_some(), "answered, the id is free");
    node.stop().await;
}

#[tokio::test]
async fn streams_that_were_not_agreed_on_are_refused_and_the_session_goes_on() {
    let node = Node::new().await;
    let mut raw = node.raw().await;
    for _ in 0..20 {
        let (mut send, mut receive) = timeout(SOON, raw.connection.open_bi()).await.expect("places come back").unwrap();
        let _ = send.write_all(b"MCP1{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\"}\n").await;
        let read = timeout(SOON, receive.read_to_end(1024)).await.expect("not left hanging");
        let reset = matches!(&read, Err(quinn::ReadToEndError::Read(ReadError::Reset(code))) if *code == VarInt::from_u32(2));
        assert!(reset, "{read:?}");
        assert_eq!(timeout(SOON, send.stopped()).await.unwrap().unwrap(), Some(VarInt::from_u32(2)));
        let mut send = timeout(SOON, raw.connection.open_uni()).await.expect("places come back").unwrap();
        let _ = send.write_all(b"MCP1").await;
        let stopped = timeout(SOON, send.stopped()).await.expect("not left hanging");
        assert!(
            matches!(stopped, Ok(Some(code)) if code == VarInt::from_u32(2)) || matches!(stopped, Err(StoppedError::ConnectionLost(_)))
        );
    }
    raw.is_served().await;
    // Agreed on, but something else is said there.
    let mut raw = Raw::open(node.stranger().await).await;
    raw.begin(KEY, true).await;
    let (mut send, mut receive) = raw.connection.open_bi().await.unwrap();
    send.write_all(b"GET / HTTP/1.1\n").await.unwrap();
    let read = timeout(SOON, receive.read_to_end(1024)).await.unwrap();
    assert!(matches!(read, Err(quinn::ReadToEndError::Read(ReadError::Reset(code))) if code == VarInt::from_u32(2)));
    let (mut send, receive) = raw.connection.open_bi().await.unwrap();
    send.write_all(b"MCP1{\"jsonrpc\":\"2.0\",\"method\":\"notifications/initialized\"}\n").await.unwrap();
    assert_eq!(Heard::new(receive).error().await.1, -32600, "a stream of its own is for a request");
    raw.is_served().await;
    node.stop().await;
}

/// A client to whom little can be sent that it does not read: a burst of megabytes would push the close out of the socket's buffer.
fn narrow() -> quinn::ClientConfig {
    let mut config = client(b"mcp-quic-v1", None);
    let mut transport = horos_tools::quic::transport_config();
    transport.stream_receive_window(VarInt::from_u32(16 * 1024));
    config.transport_config(std::sync::Arc::new(transport));
    config
}

#[tokio::test]
async fn a_peer_that_does_not_read_is_closed_and_others_are_served() {
    let node = Node::with(|options| options.bounds.unread = 2 << 20).await;
    let mut bystander = node.raw().await;
    let mut raw = Raw::open(dial(&dialer(), node.address(), narrow()).await.unwrap()).await;
    raw.begin(KEY, false).await;
    for id in 0..32 {
        raw.call(json!(id), "fill", json!({"bytes": 256 << 10})).await;
    }
    let began = Instant::now();
    while raw.connection.close_reason().is_none() {
        bystander.is_served().await;
        assert!(began.elapsed() < SOON, "it is still open");
    }
    assert_eq!(raw.closed().await, (LIMIT, "answers are not read".to_owned()));
    bystander.is_served().await;
    node.stop().await;
}

#[tokio::test]
async fn a_peer_that_stalls_is_closed_when_its_time_is_over() {
    let node = Node::with(|options| options.times.stalled = Duration::from_millis(300)).await;
    let mut raw = Raw::open(dial(&dialer(), node.address(), narrow()).await.unwrap()).await;
    raw.begin(KEY, false).await;
    raw.call(json!(1), "fill", json!({"bytes": 1 << 20})).await;
    assert_eq!(raw.closed().await, (LIMIT, "answers are not read".to_owned()));
    node.stop().await;
}

#[tokio::test]
async fn more_in_hand_than_agreed_is_refused_and_cancelling_does_not_make_room() {
    let node = Node::with(|options| options.bounds.in_flight = 4).await;
    let mut raw = node.raw().await;
    for id in 0..4 {
        raw.call(json!(id), "deaf", json!({})).await;
    }
    counts(&node.hand.waiting, 4).await;
    raw.call(json!(4), "echo", json!({})).await;
    let (id, code, what) = raw.heard.error().await;
    assert_eq!((id, code), (json!(4), -32000), "{what}");
    // The handlers are still at work.
    for id in 0..4 {
        raw.say(&json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": id}})).await;
    }
    raw.call(json!(5), "echo", json!({})).await;
    assert_eq!(raw.heard.error().await.1, -32000);
    node.hand.gate.add_permits(4);
    counts(&node.hand.waiting, 0).await;
    let served = async {
        loop {
            raw.call(json!(6), "echo", json!({})).await;
            if raw.heard.line().await.get("result").is_some() {
                return;
            }
        }
    };
    timeout(SOON, served).await.expect("the places come back");
    node.stop().await;
}

#[tokio::test]
async fn bytes_in_hand_are_bounded() {
    let node = Node::with(|options| options.bounds.in_hand = 1 << 20).await;
    let mut raw = node.raw().await;
    raw.call(json!(0), "gate", json!({"x": "y".repeat(700_000)})).await;
    counts(&node.hand.waiting, 1).await;
    raw.call(json!(1), "echo", json!({"x": "y".repeat(700_000)})).await;
    let (id, code, _) = raw.heard.error().await;
    assert_eq!((id, code), (json!(1), -32000));
    raw.is_served().await;
    node.stop().await;
}

#[tokio::test]
async fn an_idle_session_ends_and_one_with_a_request_in_hand_does_not() {
    let node = Node::with(|options| options.times.idle = Duration::from_millis(400)).await;
    // Pings of QUIC's own are no messages.
    let mut config = client(b"mcp-quic-v1", None);
    let mut transport = horos_tools::quic::transport_config();
    transport.keep_alive_interval(Some(Duration::from_millis(50)));
    config.transport_config(std::sync::Arc::new(transport));
    let mut idle = Raw::open(dial(&dialer(), node.address(), config).await.unwrap()).await;
    idle.begin(KEY, false).await;
    let mut busy = node.raw().await;
    busy.call(json!(1), "gate", json!({})).await;
    assert_eq!(idle.closed().await, (0, "idle".to_owned()));
    assert!(busy.connection.close_reason().is_none());
    node.hand.gate.add_permits(1);
    assert_eq!(busy.heard.line().await["id"], json!(1));
    assert_eq!(busy.closed().await, (0, "idle".to_owned()));
    node.stop().await;
}

#[tokio::test]
async fn sessions_of_one_principal_and_strangers_have_bounds_of_their_own() {
    let node = Node::with(|options| {
        options.bounds.sessions = 2;
        options.bounds.strangers_per_address = 3;
    })
    .await;
    let (_one, _two) = (node.raw().await, node.raw().await);
    let mut third = Raw::open(node.stranger().await).await;
    third.say(&initialize(Some(KEY), false)).await;
    assert_eq!(third.heard.error().await.1, -32000);
    assert_eq!(third.closed().await, (LIMIT, "too many sessions of one principal".to_owned()));
    let mut another = Raw::open(node.stranger().await).await;
    another.begin("hk_good2.1", false).await;
    let mut silent = Vec::new();
    for _ in 0..3 {
        silent.push(node.stranger().await);
    }
    eventually("they are in", || if node.door.sessions() >= 6 { Ok(()) } else { Err(node.door.sessions().to_string()) }).await;
    assert_eq!(closed(&node.stranger().await).await.0, LIMIT);
    // Who has a certificate is no stranger.
    let mut holder = Raw::open(node.holder(horos_wire::Role::Operator, "ann").await).await;
    holder.say(&initialize(None, false)).await;
    holder.heard.line().await;
    holder.is_served().await;
    another.is_served().await;
    node.stop().await;
}

/// The memory of this process that is in use, in KiB.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok()).unwrap() * 4
}

#[tokio::test]
async fn a_thousand_idle_sessions_cost_little_and_disturb_nobody() {
    let node = Node::new().await;
    let mut bystander = node.raw().await;
    bystander.is_served().await;
    let many = scale(200, 1_000);
    let before = resident();
    let mut idle = Vec::with_capacity(many);
    let endpoint = dialer();
    for _ in 0..many {
        let connection = dial(&endpoint, node.address(), client(b"mcp-quic-v1", None)).await.unwrap();
        let mut raw = Raw::open(connection).await;
        raw.begin(KEY, true).await;
        idle.push(raw);
    }
    bystander.is_served().await;
    let each = resident().saturating_sub(before) / many;
    // Both ends of each are in this process, and QUIC's are the larger part.
    assert!(each < 512, "{each} KiB a session");
    assert_eq!(node.door.sessions(), many + 1);
    idle.clear();
    eventually("they are gone", || if node.door.sessions() == 1 { Ok(()) } else { Err(node.door.sessions().to_string()) }).await;
    bystander.is_served().await;
    assert!(node.keys.asked.load(Ordering::SeqCst) >= many);
    node.stop().await;
}

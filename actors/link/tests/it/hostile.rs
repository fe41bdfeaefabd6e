//! A peer with a good certificate that breaks the protocol: it is closed with a code, or its message is
//! refused; nothing panics, and nobody else notices.

use std::time::{Duration, Instant};

use horos_supervision::{bulk::MAX_PARKED, reference::Watch};
use horos_wire::{
    CallError, NoEffect, Role,
    control::{self, Bind, Bound, Close, Control, DownReason, Hello, MAX_BINDINGS, MAX_OFFERS, MAX_WATCHES, Offer, Offers},
    frame::{self, Kind, LargeBody},
    session::Liveness,
};
use rand::RngExt;
use tokio::time::timeout;

use super::{
    cluster::{Cluster, Echo, Echoed, Hang, Node, Take, Test},
    raw::{Raw, encoded, hello, placeholder, request},
    world::{dice, eventually, no_panics, scale, seed, watch},
};

const SOON: Duration = Duration::from_secs(5);
const ECHO: u16 = 1;
const HANG: u16 = 6;

/// A BO, and an FO with manners linked to it, whose link is to stay as it is.
struct Town {
    cluster: Cluster,
    bo: Node,
    fo: Node,
    watch: Watch,
}

impl Town {
    async fn new() -> Self {
        watch();
        let cluster = Cluster::new();
        // The raw peers answer heartbeats only while they listen; what they do otherwise is what is tested.
        let liveness = Liveness { suspect: Duration::from_secs(30), down: Duration::from_secs(60), ..Liveness::default() };
        let bo = cluster
            .node_with(Role::Bo, "bo-1", |config| {
                config.gossip = false;
                config.liveness = liveness;
            })
            .await;
        bo.serve("tester").await;
        bo.serve("other").await;
        let seeds = vec![bo.address()];
        let fo = cluster
            .node_with(Role::Fo, "fo-1", |config| {
                config.seeds = seeds;
                config.gossip = false;
                config.liveness = liveness;
            })
            .await;
        fo.linked(1).await;
        let watch = fo.context().at::<Test>("other@bo-1").watch(SOON).await.unwrap();
        Self { cluster, bo, fo, watch }
    }

    async fn raw(&self) -> Raw {
        Raw::open(&self.cluster, Role::Fo, "raw-1", self.bo.address()).await
    }

    /// The other peer is served as if nothing had happened.
    async fn undisturbed(&mut self) {
        let began = Instant::now();
        let echoed = self.fo.context().at::<Test>("other@bo-1").call(Echo { body: vec![1, 2, 3] }, SOON).await;
        assert_eq!(echoed, Ok(Echoed { body: vec![1, 2, 3] }));
        assert!(began.elapsed() < Duration::from_secs(1), "a call beside took {:?}", began.elapsed());
        assert!(futures_util::poll!(&mut self.watch).is_pending(), "the other peer's link was lost");
        no_panics();
    }

    async fn end(mut self) {
        self.undisturbed().await;
        self.fo.stop().await;
        self.bo.stop().await;
    }
}

#[tokio::test]
async fn a_wrong_hello_closes_with_its_code() {
    let mut town = Town::new().await;
    let id = town.cluster.tls(Role::Fo, "raw-1").credentials().id().clone();
    let good = hello(&id);
    let mut other = id.clone();
    other.name = "bo-1".parse().unwrap();
    let mut elsewhere = id.clone();
    elsewhere.cluster = "elsewhere".parse().unwrap();
    let mut above = id.clone();
    above.role = Role::Bo;
    let many = (0..2000).map(|port| ([10, 0, 0, 1], port).into()).collect();
    let cases = [
        ("a version to come", Control::Hello(Hello { version_min: 2, version_max: 9, ..good.clone() }), Close::Version),
        ("a version gone", Control::Hello(Hello { version_min: 0, version_max: 0, ..good.clone() }), Close::Version),
        ("no version at all", Control::Hello(Hello { version_min: 9, version_max: 1, ..good.clone() }), Close::Version),
        ("another's name", Control::Hello(Hello { node: other, ..good.clone() }), Close::Identity),
        ("another cluster", Control::Hello(Hello { node: elsewhere, ..good.clone() }), Close::Identity),
        ("another role", Control::Hello(Hello { node: above, ..good.clone() }), Close::Identity),
        ("addresses without end", Control::Hello(Hello { addresses: many, ..good.clone() }), Close::Limit),
        ("a release without end", Control::Hello(Hello { release: "x".repeat(100_000).into(), ..good.clone() }), Close::Limit),
        ("something else first", Control::Heartbeat { sequence: 1 }, Close::Protocol),
    ];
    for (what, first, expected) in cases {
        let mut raw = Raw::mute(&town.cluster, Role::Fo, "raw-1", town.bo.address()).await;
        raw.say(&first).await;
        assert_eq!(raw.closed().await, expected, "{what}");
    }
    town.undisturbed().await;
    assert_eq!(town.bo.endpoint.peers().known().len(), 1, "none of them was taken in");
    town.end().await;
}

#[tokio::test]
async fn silence_after_the_handshake_closes_in_time() {
    let town = Town::new().await;
    let began = Instant::now();
    let mute = Raw::mute(&town.cluster, Role::Fo, "raw-1", town.bo.address()).await;
    let tls = town.cluster.tls(Role::Fo, "raw-2");
    let endpoint = super::raw::dialer("127.0.0.1");
    let streamless = super::raw::connect(&endpoint, &tls, horos_link::ALPN, town.bo.address()).await.unwrap();
    assert_eq!(mute.closed().await, Close::Silent);
    assert_eq!(super::raw::closed(&streamless).await, Close::Silent);
    assert!(began.elapsed() < Duration::from_secs(4), "after {:?}", began.elapsed());
    town.end().await;
}

#[tokio::test]
async fn control_frames_out_of_turn_or_over_a_limit_close_with_a_code() {
    let town = Town::new().await;
    let id = town.cluster.tls(Role::Fo, "raw-1").credentials().id().clone();
    let offer = |n: usize| Offer { name: format!("n{n}").parse().unwrap(), protocol: "test".into(), version: 1 };
    let bound = Bound { target: 1, protocol: "test".into(), version: 1, methods: vec![] };
    let once = |frame: Control| vec![frame];
    let bind = |binding: usize| Bind { binding: binding as u32, name: "tester".parse().unwrap(), protocol: None };
    let binds = (0..MAX_BINDINGS + 904).map(|n| Control::Bind(bind(n))).collect();
    let mut watches = vec![Control::Bind(bind(1))];
    watches.extend((0..=MAX_WATCHES as u32).map(|watch| Control::Watch { watch, target: 1 }));
    let cases: [(&str, Vec<Control>, Close); 10] = [
        ("a second hello", once(Control::Hello(hello(&id))), Close::Protocol),
        ("an answer to no question", once(Control::Bound { binding: 5, outcome: Ok(bound) }), Close::Protocol),
        ("a beat never asked for", once(Control::HeartbeatAck { sequence: 1 << 40 }), Close::Protocol),
        ("room for nothing", once(Control::Grant { target: 1, units: 1 }), Close::Protocol),
        ("a watch of nothing", once(Control::Watch { watch: 1, target: 0 }), Close::Protocol),
        ("a watch of nobody", once(Control::Watch { watch: 1, target: 9 }), Close::Protocol),
        (
            "one watch twice",
            vec![Control::Bind(bind(1)), Control::Watch { watch: 1, target: 1 }, Control::Watch { watch: 1, target: 1 }],
            Close::Protocol,
        ),
        ("offers without end", once(Control::Offers(Offers { names: (0..=MAX_OFFERS).map(offer).collect(), ready: true })), Close::Limit),
        ("5,000 binds", binds, Close::Limit),
        ("4,097 watches", watches, Close::Limit),
    ];
    for (what, frames, expected) in cases {
        let mut raw = town.raw().await;
        for (n, frame) in frames.iter().enumerate() {
            raw.say(frame).await;
            // Paced, because the kernel drops what a burst of answers does not find room for, the close included.
            if n % 64 == 63 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        assert_eq!(raw.closed().await, expected, "{what}");
    }
    town.end().await;
}

#[tokio::test]
async fn bytes_that_are_no_frame_close_with_a_code() {
    let mut town = Town::new().await;
    let good = request(Kind::Call, 1, ECHO, 1, &encoded(&Echo { body: vec![1] }));
    let with = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        bytes
    };
    let mut reply = with(4, Kind::Reply as u8);
    reply[5] |= 1 << 4;
    let cases: [(&str, Vec<u8>); 8] = [
        ("a frame too long", (frame::MAX_SMALL_FRAME as u32 + 1).to_le_bytes().to_vec()),
        ("a frame of 4 GiB", u32::MAX.to_le_bytes().to_vec()),
        ("a frame too short", [15, 0, 0, 0, 1].to_vec()),
        ("an unknown kind", with(4, 7)),
        ("kind zero", with(4, 0)),
        ("an unknown flag", with(5, 1 << 7)),
        ("a target never bound", with(8, 200)),
        ("an answer elsewhere", reply),
    ];
    for (what, bytes) in cases {
        let mut raw = town.raw().await;
        assert_eq!(raw.bind("tester").await, Ok(1), "{what}");
        raw.write(&bytes).await;
        assert_eq!(raw.closed().await, Close::Protocol, "{what}");
    }
    for length in [control::MAX_CONTROL_FRAME as u32 + 1, u32::MAX] {
        let mut raw = town.raw().await;
        raw.control.write_all(&length.to_le_bytes()).await.unwrap();
        assert_eq!(raw.closed().await, Close::Protocol);
    }
    let mut raw = town.raw().await;
    raw.control.write_all(&[3, 0, 0, 0, 0xEE, 0xEE, 0xEE]).await.unwrap();
    assert_eq!(raw.closed().await, Close::Protocol);
    // One-way streams that open as what they cannot be, and an answer of impossible length.
    for bytes in [vec![1], vec![2], [vec![4], vec![1; 20]].concat()] {
        let raw = town.raw().await;
        let mut stream = raw.connection.open_uni().await.unwrap();
        stream.write_all(&bytes).await.unwrap();
        stream.finish().unwrap();
        assert_eq!(raw.closed().await, Close::Protocol, "{bytes:?}");
    }
    town.undisturbed().await;
    town.end().await;
}

#[tokio::test]
async fn what_means_nothing_is_ignored_and_the_rest_is_served() {
    let mut town = Town::new().await;
    let mut raw = town.raw().await;
    let target = raw.bind("tester").await.unwrap();
    for n in 0..3000u64 {
        let answers = &mut raw.asked.as_mut().unwrap().0;
        answers.write_all(&request(Kind::Reply, 0, 0, n << 32 | 3, b"to nobody")).await.unwrap();
        raw.say(&Control::Cancel { correlation: n }).await;
    }
    raw.say(&Control::Unwatch { watch: 4 }).await;
    raw.say(&Control::Down { watch: 4, reason: DownReason::Died }).await;
    raw.say(&Control::GoAway).await;
    for first in [&[][..], &[99], &[0]] {
        let mut stream = raw.connection.open_uni().await.unwrap();
        stream.write_all(first).await.unwrap();
        stream.finish().unwrap();
    }
    raw.call(target, ECHO, 9000, b"not a message").await;
    let malformed = raw.answer(9000).await;
    assert!(matches!(malformed, Err(CallError::NoEffect(NoEffect::Malformed(_)))), "{malformed:?}");
    raw.call(target, 999, 10000, &[]).await;
    let unknown = raw.answer(10000).await;
    assert!(matches!(unknown, Err(CallError::NoEffect(NoEffect::NotAllowed(_)))), "{unknown:?}");
    raw.call(target, ECHO, 11000, &encoded(&Echo { body: vec![5] })).await;
    assert_eq!(raw.answer(11000).await, Ok(encoded(&Echoed { body: vec![5] })));
    assert!(raw.bind("nobody").await.is_err());
    town.undisturbed().await;
    town.end().await;
}

#[tokio::test]
async fn a_flood_of_heartbeats_is_answered_sparingly_and_delays_nobody() {
    let mut town = Town::new().await;
    let mut raw = town.raw().await;
    let mut flood = Vec::new();
    for sequence in 1..=scale(100_000u64, 2_000_000) {
        control::write(&mut flood, &Control::Heartbeat { sequence }).unwrap();
    }
    let tester = town.fo.context().at::<Test>("other@bo-1");
    let worst = async {
        let mut worst = Duration::ZERO;
        for _ in 0..100 {
            let began = Instant::now();
            tester.call(Echo { body: vec![] }, SOON).await.unwrap();
            worst = worst.max(began.elapsed());
        }
        worst
    };
    let (written, worst) = tokio::join!(raw.control.write_all(&flood), worst);
    println!("worst call beside {} bytes of heartbeats: {worst:?}", flood.len());
    assert!(worst < Duration::from_millis(500), "{worst:?}");
    if written.is_ok() {
        let last = scale(100_000, 2_000_000);
        let mut answers = 0;
        raw.hear(|frame| match frame {
            Control::HeartbeatAck { sequence } => {
                answers += 1;
                (sequence == last).then_some(())
            }
            _ => None,
        })
        .await;
        assert!(answers < last / 4, "{answers} answers");
    }
    town.undisturbed().await;
    town.end().await;
}

#[tokio::test]
async fn a_body_that_never_comes_or_is_not_as_announced_holds_up_nobody_else() {
    let mut town = Town::new().await;
    let mut raw = town.raw().await;
    let target = raw.bind("tester").await.unwrap();
    let other = raw.bind("other").await.unwrap();
    // Never comes: what follows for the same target waits, another target does not.
    raw.write(&placeholder(target, ECHO, 1, LargeBody { id: 900, length: 20_000 })).await;
    raw.call(target, ECHO, 2, &encoded(&Echo { body: vec![2] })).await;
    raw.call(other, ECHO, 3, &encoded(&Echo { body: vec![3] })).await;
    assert_eq!(raw.answer(3).await, Ok(encoded(&Echoed { body: vec![3] })));
    town.undisturbed().await;
    let began = Instant::now();
    let late = timeout(Duration::from_secs(8), raw.answers(&[1, 2])).await.expect("given up in time");
    assert!(matches!(&late[0], Err(CallError::NoEffect(_))), "{late:?}");
    assert_eq!(late[1], Ok(encoded(&Echoed { body: vec![2] })));
    assert!(began.elapsed() < Duration::from_secs(7));
    // Too short and too long.
    for (correlation, sent) in [(4, 10_000), (5, 30_000)] {
        let mut stream = raw.connection.open_uni().await.unwrap();
        stream.write_all(&[3]).await.unwrap();
        let id = stream.id().index();
        raw.write(&placeholder(target, ECHO, correlation, LargeBody { id, length: 20_000 })).await;
        stream.write_all(&vec![0; sent]).await.ok();
        let _ = stream.finish();
        let refused = raw.answer(correlation).await;
        assert!(matches!(refused, Err(CallError::NoEffect(NoEffect::Malformed(_)))), "{sent} bytes: {refused:?}");
    }
    // Given up half way.
    let mut stream = raw.connection.open_uni().await.unwrap();
    stream.write_all(&[3]).await.unwrap();
    let id = stream.id().index();
    raw.write(&placeholder(target, ECHO, 6, LargeBody { id, length: 20_000 })).await;
    stream.write_all(&[0; 100]).await.unwrap();
    stream.reset(0u32.into()).unwrap();
    // QUIC may throw away what came before a reset, and then it looks like one that never came.
    let refused = timeout(Duration::from_secs(8), raw.answers(&[6])).await.expect("given up in time").remove(0);
    assert!(matches!(refused, Err(CallError::NoEffect(NoEffect::Malformed(_)))), "{refused:?}");
    // One body announced twice.
    raw.write(&placeholder(target, ECHO, 7, LargeBody { id: 901, length: 20_000 })).await;
    raw.write(&placeholder(other, ECHO, 8, LargeBody { id: 901, length: 20_000 })).await;
    assert_eq!(raw.closed().await, Close::Protocol);
    town.end().await;
}

#[tokio::test]
async fn a_body_longer_than_any_closes() {
    let town = Town::new().await;
    let mut raw = town.raw().await;
    let target = raw.bind("tester").await.unwrap();
    raw.write(&placeholder(target, ECHO, 1, LargeBody { id: 3, length: u32::MAX })).await;
    assert_eq!(raw.closed().await, Close::Protocol);
    town.end().await;
}

#[tokio::test]
async fn streams_nobody_claims_leave_room_for_other_peers() {
    let mut town = Town::new().await;
    let raw = town.raw().await;
    // More than the node parks, and as many as QUIC lets one peer have.
    let mut streams = Vec::new();
    for n in 0..MAX_PARKED as u128 + 44 {
        let Ok(stream) = timeout(Duration::from_millis(200), raw.connection.open_uni()).await else { break };
        let mut stream = stream.unwrap();
        let mut bytes = vec![5];
        bytes.extend_from_slice(&n.to_le_bytes());
        bytes.extend_from_slice(&[0; 1000]);
        if stream.write_all(&bytes).await.is_err() {
            continue;
        }
        streams.push(stream);
    }
    println!("{} streams taken", streams.len());
    // A body of somebody else is claimed all the same, although it is parked first.
    let tester = town.fo.context().at::<Test>("other@bo").pinned(SOON).await.unwrap();
    for _ in 0..20 {
        let (body, mut writer) = tester.bulk(SOON).await.unwrap();
        writer.write(vec![1; 10_000].into()).await.unwrap();
        writer.finish().await.unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert_eq!(tester.call(Take { body }, SOON).await, Ok(10_000));
    }
    town.undisturbed().await;
    town.end().await;
}

#[tokio::test]
async fn bodies_that_nobody_reads_leave_the_link_to_the_others() {
    let town = Town::new().await;
    // Large calls behind one that hangs, and bulk bodies that nobody claims, over the link of a peer with manners.
    let hanging = town.fo.context().at::<Test>("tester@bo-1");
    let mut calls = tokio::task::JoinSet::new();
    let first = hanging.clone();
    calls.spawn(async move { first.call(Hang {}, SOON).await.is_ok() });
    for _ in 0..30 {
        let hanging = hanging.clone();
        calls.spawn(async move { hanging.call(Echo { body: vec![0; 1024 * 1024] }, SOON).await.is_ok() });
    }
    let mut writers = Vec::new();
    for _ in 0..20 {
        let (_, mut writer) = hanging.bulk(SOON).await.unwrap();
        writers.push(tokio::spawn(async move { while writer.write(vec![0; 64 * 1024].into()).await.is_ok() {} }));
    }
    let end = Instant::now() + Duration::from_secs(4);
    let mut worst = Duration::ZERO;
    let other = town.fo.context().at::<Test>("other@bo-1");
    while Instant::now() < end {
        let began = Instant::now();
        other.call(Echo { body: vec![1] }, SOON).await.unwrap();
        worst = worst.max(began.elapsed());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    println!("worst call beside 50 MB that nobody reads: {worst:?}");
    assert!(worst < Duration::from_secs(1), "{worst:?}");
    assert_eq!(town.fo.endpoint.peers().known()[0].health, horos_wire::tree::Health::Up);
    writers.iter().for_each(tokio::task::JoinHandle::abort);
    timeout(2 * SOON, calls.join_all()).await.expect("every call ends");
    town.end().await;
}

#[tokio::test]
async fn a_peer_that_calls_a_full_mailbox_and_reads_no_answer_is_given_up() {
    let mut town = Town::new().await;
    let mut raw = town.raw().await;
    let target = raw.bind("tester").await.unwrap();
    raw.call(target, HANG, 1, &[]).await;
    let call = request(Kind::Call, target, ECHO, 2, &encoded(&Echo { body: vec![] }));
    let many: Vec<u8> = call.iter().copied().cycle().take(call.len() * 1000).collect();
    let flood = async {
        while raw.connection.close_reason().is_none() {
            raw.write(&many).await;
        }
        raw.closed().await
    };
    let close = timeout(Duration::from_secs(60), flood).await.expect("given up in time");
    assert_eq!(close, Close::Limit);
    town.undisturbed().await;
    town.end().await;
}

#[tokio::test]
async fn large_answers_to_no_question_cost_no_memory() {
    let mut town = Town::new().await;
    let raw = town.raw().await;
    let before = super::world::resident();
    let mut streams = Vec::new();
    let mut header = request(Kind::Reply, 0, 0, 7, &[]);
    header[..4].copy_from_slice(&(15 * 1024 * 1024u32).to_le_bytes());
    for _ in 0..64 {
        let mut stream = raw.connection.open_uni().await.unwrap();
        stream.write_all(&[4]).await.unwrap();
        stream.write_all(&header).await.unwrap();
        // As far as the node lets it.
        let _ = timeout(Duration::from_millis(20), stream.write_all(&vec![0; 4 * 1024 * 1024])).await;
        streams.push(stream);
    }
    let grown = super::world::resident().saturating_sub(before);
    println!("grown by {grown} KiB");
    town.undisturbed().await;
    town.end().await;
}

#[tokio::test]
async fn watching_and_unwatching_for_ever_keeps_nothing() {
    let mut town = Town::new().await;
    let mut raw = town.raw().await;
    raw.bind("tester").await.unwrap();
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let before = tasks();
    let mut frames = Vec::new();
    for watch in 0..20_000 {
        control::write(&mut frames, &Control::Watch { watch, target: 1 }).unwrap();
        control::write(&mut frames, &Control::Unwatch { watch }).unwrap();
    }
    raw.control.write_all(&frames).await.unwrap();
    assert_eq!(raw.bind("tester").await, Ok(2));
    eventually("no monitor is left", SOON, || if tasks() < before + 100 { Ok(()) } else { Err(format!("{} tasks", tasks())) }).await;
    town.undisturbed().await;
    town.end().await;
}

#[tokio::test]
async fn flipped_and_truncated_frames_close_or_are_refused_and_nothing_panics() {
    let mut town = Town::new().await;
    let mut dice = dice(seed());
    let bind = Bind { binding: 3, name: "tester".parse().unwrap(), protocol: Some(("test".into(), 1)) };
    let offer = Offer { name: "raw".parse().unwrap(), protocol: "test".into(), version: 1 };
    let frames = [
        Control::Offers(Offers { names: vec![offer], ready: true }),
        Control::Bind(bind),
        Control::Watch { watch: 8, target: 1 },
        Control::Heartbeat { sequence: 3 },
        Control::Cancel { correlation: 12 },
        Control::DenyList("horos-deny-list 1\n".into()),
    ];
    let mut control_bytes = Vec::new();
    for frame in &frames {
        control::write(&mut control_bytes, frame).unwrap();
    }
    let mut message_bytes = Vec::new();
    for correlation in 1..6 {
        message_bytes.extend(request(Kind::Call, 1, ECHO, correlation, &encoded(&Echo { body: vec![7; 40] })));
        message_bytes.extend(request(Kind::Cast, 1, 2, 0, &[1, 2, 3]));
    }
    message_bytes.extend(placeholder(1, ECHO, 7, LargeBody { id: 2, length: 17_000 }));
    let mut survived = 0;
    for round in 0..scale(40, 2000) {
        let mut raw = town.raw().await;
        raw.bind("tester").await.unwrap();
        let mut bytes = if round % 2 == 0 { control_bytes.clone() } else { message_bytes.clone() };
        for _ in 0..dice.random_range(1..4) {
            let at = dice.random_range(0..bytes.len());
            bytes[at] ^= 1 << dice.random_range(0..8);
        }
        if dice.random_bool(0.3) {
            bytes.truncate(dice.random_range(1..bytes.len()));
        }
        let stream = if round % 2 == 0 { &mut raw.control } else { &mut raw.messages };
        let _ = stream.write_all(&bytes).await;
        let _ = stream.finish();
        // The end of either stream ends the session, whatever stood in it.
        let close = raw.closed().await;
        survived += usize::from(close == Close::Done);
        assert!(matches!(close, Close::Done | Close::Protocol | Close::Limit), "{close:?}");
        if round % 20 == 0 {
            town.undisturbed().await;
        }
    }
    println!("{survived} mutations were harmless");
    town.undisturbed().await;
    town.end().await;
}

//! No decoder panics, runs on or grows on what a hostile peer sends.
//!
//! The promises are those of `fuzz/entry.rs`; here honest messages are damaged at random. A failing case
//! is printed shrunk; `PROPTEST_RNG_SEED=<seed>` repeats a run and `PROPTEST_CASES=<n>` makes it longer.

#![expect(clippy::unwrap_used, reason = "a test that cannot make its input has failed")]

use std::{sync::Arc, time::Duration};

use horos_wire::{
    CallContext, Format, Incarnation, NoEffect, NodeId, TraceId, codec,
    context::Claims,
    control::{self, Bind, Bound, Control, DownReason, Hello, Offer, Offers},
    frame, go,
    id::{Dossier, Id, Seeded, Shorts, UnixMillis, Uuid7s, stamp},
    protocol::{
        keys::{Change, KeyHash, KeyRow, Mark, Page, Position},
        node::{NodeError, Offered, Recorder, Revoke, Tree},
    },
    tree::{Actor, Health, Kind, NodeTree, Quantiles, State},
};
use proptest::{prelude::*, sample::Index};
use serde::Serialize;

#[path = "../fuzz/entry.rs"]
mod entry;

/// What befalls bytes on their way.
#[derive(Clone, Debug)]
enum Damage {
    Flip(Index, u8),
    Set(Index, u8),
    Cut(Index),
    Drop(Index, usize),
    Repeat(Index, usize),
    Insert(Index, Vec<u8>),
}

fn damage() -> impl Strategy<Value = Vec<Damage>> {
    // 0xfb to 0xfe announce long integers in bincode, so lengths become huge.
    let byte = prop_oneof![any::<u8>(), 0xfbu8..=0xff, 0u8..4];
    let one = prop_oneof![
        4 => (any::<Index>(), 0u8..8).prop_map(|(at, bit)| Damage::Flip(at, 1 << bit)),
        4 => (any::<Index>(), byte).prop_map(|(at, byte)| Damage::Set(at, byte)),
        1 => any::<Index>().prop_map(Damage::Cut),
        1 => (any::<Index>(), 1usize..20).prop_map(|(at, count)| Damage::Drop(at, count)),
        1 => (any::<Index>(), 1usize..40).prop_map(|(at, count)| Damage::Repeat(at, count)),
        1 => (any::<Index>(), prop::collection::vec(any::<u8>(), 1..20)).prop_map(|(at, bytes)| Damage::Insert(at, bytes)),
    ];
    prop::collection::vec(one, 0..5)
}

fn apply(mut bytes: Vec<u8>, damage: &[Damage]) -> Vec<u8> {
    for one in damage {
        if bytes.is_empty() {
            break;
        }
        let len = bytes.len();
        match one {
            Damage::Flip(at, bit) => bytes[at.index(len)] ^= bit,
            Damage::Set(at, byte) => bytes[at.index(len)] = *byte,
            Damage::Cut(at) => bytes.truncate(at.index(len)),
            Damage::Drop(at, count) => drop(bytes.drain(at.index(len)..(at.index(len) + count).min(len))),
            Damage::Repeat(at, count) => {
                let piece = bytes[at.index(len)..(at.index(len) + count).min(len)].to_vec();
                bytes.splice(at.index(len)..at.index(len), piece);
            }
            Damage::Insert(at, more) => drop(bytes.splice(at.index(len)..at.index(len), more.iter().copied())),
        }
    }
    bytes
}

fn written(value: &impl Serialize) -> [Vec<u8>; 2] {
    [Format::Bincode, Format::Json].map(|format| {
        let mut bytes = Vec::new();
        codec::encode(format, value, &mut bytes).unwrap();
        bytes
    })
}

fn node() -> NodeId {
    NodeId::from_uri("spiffe://shop/fo/fo-1").unwrap()
}

fn bodies() -> Vec<Vec<u8>> {
    let actor = |children| Actor {
        name: "root".into(),
        kind: Kind::RestForOne,
        state: State::Running,
        protocol: Some("stock/1".into()),
        mailbox: 1,
        mailbox_limit: 1024,
        handled: 1 << 40,
        failed: 0,
        refused: 0,
        restarts: 0,
        last_progress_ms: None,
        wait: Quantiles::default(),
        handling: Quantiles::default(),
        busy_with: None,
        last_error: Some("it broke".into()),
        children,
    };
    let tree = NodeTree {
        node: node(),
        incarnation: Some(Incarnation(7)),
        health: Health::Up,
        addresses: vec!["127.0.0.1:7000".into()],
        tree: Some(actor(vec![actor(vec![]), actor(vec![actor(vec![])])])),
        missing: None,
    };
    let offered = Offered {
        name: "stock".parse().unwrap(),
        node: "bo-1".parse().unwrap(),
        protocol: "stock".into(),
        version: 1,
        methods: vec!["a".into()],
    };
    [
        written(&Tree { cluster: true }),
        written(&vec![tree.clone(), tree]),
        written(&vec![offered]),
        written(&Recorder { actor: "root/link".into() }),
        written(&Revoke { list: "list".into() }),
        written(&NodeError::Refused("no".into())),
        written(&Page {
            begins: false,
            position: Position { epoch: Mark(1), seq: 2, stamp: Mark(3) },
            changes: vec![Change::Key(KeyRow {
                hash: KeyHash([7; 32]),
                id: "key_1".into(),
                owner: "ana".into(),
                scopes: r#"["stock:read"]"#.into(),
                per_minute: Some(60),
                expires_at: 1 << 40,
                revoked_at: None,
            })],
            part: None,
            more: true,
        }),
        written(&NoEffect::CircuitOpen { retry_after: Duration::from_secs(1) }),
        written(&Claims { user: Some("u".into()), ..Claims::default() }),
    ]
    .concat()
}

/// Four bytes of chunk sizes, then frames of every kind and flag.
fn frames(cuts: [u8; 4]) -> Vec<u8> {
    let mut bytes = cuts.to_vec();
    let claims = Arc::new(Claims { tenant: Some("t".into()), ..Claims::default() });
    for (context, remaining_ms, format) in [
        (CallContext::default(), None, Format::Bincode),
        (CallContext { trace: TraceId(9), hops: 2, claims: Some(claims), ..CallContext::default() }, Some(2000), Format::Json),
    ] {
        for kind in [frame::Kind::Call, frame::Kind::Cast] {
            let request = frame::Request { kind, format, method: 3, target: 1, correlation: 77, remaining_ms, context: &context };
            frame::write_request::<codec::CodecError>(&mut bytes, request, false, |into| {
                into.extend_from_slice(b"a body of some bytes");
                Ok(())
            })
            .unwrap();
        }
    }
    for kind in [frame::Kind::Reply, frame::Kind::Failed, frame::Kind::Refused, frame::Kind::Lost] {
        frame::write_answer::<codec::CodecError>(&mut bytes, kind, Format::Json, 77, |_| Ok(())).unwrap();
    }
    bytes
}

fn controls() -> Vec<Control> {
    let bound = Bound { target: 1, protocol: "stock".into(), version: 1, methods: vec![(1, "reserve".into())] };
    let hello = Hello {
        version_min: 1,
        version_max: 1,
        features: 0,
        node: node(),
        incarnation: Incarnation(7),
        release: "0.1.0".into(),
        addresses: vec!["[::1]:7000".parse().unwrap()],
    };
    let name = "stock".parse().unwrap();
    vec![
        Control::Hello(hello),
        Control::Offers(Offers { names: vec![Offer { name, protocol: "stock".into(), version: 1 }], ready: true }),
        Control::Bind(Bind { binding: 1, name: "stock".parse().unwrap(), protocol: Some(("stock".into(), 1)) }),
        Control::Bound { binding: 1, outcome: Ok(bound) },
        Control::Bound { binding: 2, outcome: Err(NoEffect::NotAllowed("no".into())) },
        Control::Watch { watch: 1, target: 1 },
        Control::Unwatch { watch: 1 },
        Control::Down { watch: 1, reason: DownReason::Died },
        Control::Heartbeat { sequence: 1 },
        Control::HeartbeatAck { sequence: 1 },
        Control::Grant { target: 1, units: 64 },
        Control::Cancel { correlation: 77 },
        Control::GoAway,
    ]
}

fn texts() -> Vec<String> {
    let uuid = Uuid7s::new().next(UnixMillis(1_767_323_045_999), &mut Seeded::new(1)).unwrap();
    let short = Shorts::new().next(UnixMillis(1_767_323_045_999), &mut Seeded::new(1)).unwrap();
    vec![
        uuid.to_string(),
        uuid.to_string().to_uppercase(),
        format!("urn:uuid:{uuid}"),
        Id::<Dossier>::new(uuid).unwrap().to_string(),
        short.with_check(),
        short.to_string(),
        stamp::timestamped(uuid).unwrap(),
        "0123456789ab".into(),
        "stock@bo".into(),
        "stock@bo-1".into(),
        node().to_uri(),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn damaged_bodies_are_read_back_or_refused(which: Index, damage in damage()) {
        let bodies = bodies();
        entry::codec(&apply(bodies[which.index(bodies.len())].clone(), &damage));
    }

    #[test]
    fn a_damaged_message_stream_is_the_same_however_it_is_cut(cuts: [u8; 4], damage in damage()) {
        entry::frame(&apply(frames(cuts), &damage));
    }

    #[test]
    fn a_session_survives_any_order_of_damaged_control_frames(
        mode in 0u8..4,
        order in prop::collection::vec(any::<Index>(), 0..40),
        damage in damage(),
    ) {
        let controls = controls();
        let mut bytes = Vec::new();
        for at in order {
            control::write(&mut bytes, &controls[at.index(controls.len())]).unwrap();
        }
        let mut data = vec![mode];
        data.extend(apply(bytes, &damage));
        entry::session(&data);
    }

    #[test]
    fn damaged_envelopes_are_opened_by_the_table_or_refused(format in 0u16..4, payload: Vec<u8>, error: bool, damage in damage()) {
        let payload = if error { go::ServiceError::new("stock", go::Code::NotFound, "no").encode().unwrap().to_vec() } else { payload };
        entry::go(&apply(go::wrap(go::FormatId(format), &payload).unwrap().to_vec(), &damage));
        entry::go(&apply(payload, &damage));
    }

    #[test]
    fn damaged_ids_and_addresses_are_canonical_or_refused(which: Index, damage in damage()) {
        let texts = texts();
        let text = apply(texts[which.index(texts.len())].clone().into_bytes(), &damage);
        entry::ids(&text);
        entry::address(&text);
    }

    #[test]
    fn arbitrary_bytes_harm_no_decoder(data in prop::collection::vec(any::<u8>(), 0..400)) {
        entry::codec(&data);
        entry::frame(&data);
        entry::session(&data);
        entry::go(&data);
        entry::ids(&data);
        entry::address(&data);
    }
}

/// Twenty thousand questions from a peer that reads no answer: what waits for it stays within its bound.
#[test]
fn a_peer_that_asks_and_never_reads_fills_no_more_than_the_outbox() {
    let mut data = vec![2];
    for sequence in 0..20_000 {
        control::write(&mut data, &Control::Heartbeat { sequence }).unwrap();
    }
    entry::session(&data);
    let mut data = vec![2];
    for binding in 0..20_000 {
        control::write(&mut data, &Control::Bind(Bind { binding, name: "stock".parse().unwrap(), protocol: None })).unwrap();
    }
    entry::session(&data);
}

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    time::Duration,
};

use proptest::prelude::*;

use super::*;
use crate::{
    ActorName, Address, ClusterName, NoEffect, NodeId, NodeName, Role, TraceId, Unknown,
    address::Incarnation,
    context::Claims,
    control::{Bind, Bound, Control, DownReason, Hello, Offer, Offers},
    id::{Dossier, Id, NanoId, ShortId},
    policy,
    principal::Scope,
    protocol::{control as routes, keys, node::*, router, sync},
    tree::{self, Busy, Health, Kind, NodeTree, Outcome, Quantiles, Recorded, Recording, State},
};

fn bytes<T: Serialize>(format: Format, value: &T) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode(format, value, &mut bytes).unwrap();
    bytes
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn actor(name: &str, children: Vec<tree::Actor>) -> tree::Actor {
    tree::Actor {
        name: name.into(),
        kind: Kind::OneForOne,
        state: State::Stuck,
        protocol: Some("stock/1".into()),
        mailbox: 3,
        mailbox_limit: 1024,
        handled: u64::MAX,
        failed: 2,
        refused: 1,
        restarts: 4,
        last_progress_ms: Some(300),
        wait: Quantiles { p50_us: 1, p99_us: 251 },
        handling: Quantiles { p50_us: 70_000, p99_us: 1 << 40 },
        busy_with: Some(Busy { method: "reserve".into(), for_ms: 9 }),
        last_error: Some("é".into()),
        children,
    }
}

fn node_id() -> NodeId {
    NodeId { cluster: "shop".parse().unwrap(), role: Role::Bo, name: "bo-1".parse().unwrap() }
}

fn node_tree() -> NodeTree {
    NodeTree {
        node: node_id(),
        incarnation: Some(Incarnation(7)),
        health: Health::Up,
        addresses: vec!["[::1]:7000".into()],
        tree: Some(actor("root", vec![actor("stock", vec![])])),
        missing: None,
    }
}

fn recorded() -> Recorded {
    Recorded {
        ago_us: 1,
        method: "reserve".into(),
        sender: "fo-1".into(),
        size: 64,
        trace: TraceId(0xabc),
        waited_us: 2,
        took_us: None,
        outcome: Outcome::Died,
    }
}

fn scope(text: &str) -> Scope {
    text.parse().unwrap()
}

fn key_record() -> keys::KeyRecord {
    keys::KeyRecord {
        id: "i".into(),
        prefix: "hk_".into(),
        name: "n".into(),
        owner: "o".into(),
        scopes: vec![scope("s")],
        per_minute: None,
        state: keys::KeyState::Revoked,
        created_at: "c".into(),
        created_by: "b".into(),
        expires_at: None,
        revoked_at: Some("r".into()),
        revoked_by: Some("x".into()),
        refused: 300,
        last_refused_at: Some("l".into()),
    }
}

fn refusals() -> keys::Refusals {
    keys::Refusals { malformed: 1, unknown: 2, revoked: 3, expired: 4, not_yet_valid: 5, other_audience: 6, wrong_scope: 7, unavailable: 8 }
}

fn route() -> routes::Route {
    routes::Route {
        service: "a".into(),
        strategy: "noop".into(),
        endpoint: None,
        config: None,
        updated_at: 2,
        version: routes::RouteVersion(0xab),
        version_on_fo: routes::RouteVersion(0xac),
        problems: vec![problem()],
    }
}

fn problem() -> routes::Problem {
    routes::Problem { key: "k".into(), what: "w".into() }
}

fn content() -> routes::Content {
    routes::Content { strategy: "noop".into(), endpoint: None, config: Some("{}".into()), cut: true }
}

fn forced_breaker() -> routes::ForcedBreaker {
    routes::ForcedBreaker { service: "a".into(), endpoint: "b".into(), state: routes::Force::Open, resets: 2, updated_at: 3 }
}

fn service_status() -> router::ServiceStatus {
    let quantiles = Quantiles { p50_us: 1, p99_us: 2 };
    let endpoint = router::EndpointStatus {
        key: "quic:b".into(),
        strategy: "quic".into(),
        endpoint: "b".into(),
        weight: 1,
        canary_percent: Some(5),
        breaker: router::BreakerState::HalfOpen,
        forced: routes::Force::Closed,
        until_ms: Some(7),
        in_flight: 2,
        calls: 3,
        failures: 4,
        latency: quantiles,
        last_error: Some("e".into()),
    };
    router::ServiceStatus {
        service: "a".into(),
        row: Some(router::RowInForce { version: routes::RouteVersion(1), taken_up_ms: 2 }),
        problem: Some(router::RowProblem { version: routes::RouteVersion(2), since_ms: 3, problems: vec![problem()] }),
        strategy: "quic".into(),
        endpoints: vec![endpoint],
        in_flight: 1,
        calls: 2,
        failures: 3,
        retries: 4,
        latency: quantiles,
    }
}

fn sync_position() -> sync::Position {
    sync::Position { epoch: sync::Epoch(1), seq: 2, stamp: -3 }
}

fn subscriber(state: sync::FeedState) -> sync::SubscriberStatus {
    sync::SubscriberStatus {
        node: "fo-1".parse().unwrap(),
        position: Some(sync_position()),
        lag_rows: 1,
        lag_ms: 2,
        sent_bytes: 300,
        deltas: 4,
        snapshots: 5,
        last_error: Some("e".into()),
        state,
        verified_at: Some(6),
        repaired_rows: 7,
    }
}

fn position() -> keys::Position {
    keys::Position { epoch: keys::Mark(1), seq: 2, stamp: keys::Mark(3) }
}

/// Names every public type of the wire with a value and its bytes, and passes each to a check.
macro_rules! each {
    ($check:ident) => {
        $check(ActorName::new("stock").unwrap(), "0573746f636b");
        $check(NodeName::new("bo-1").unwrap(), "04626f2d31");
        $check(ClusterName::new("shop").unwrap(), "0473686f70");
        $check("stock@bo".parse::<Address>().unwrap(), "0873746f636b40626f");
        $check(Role::ALL, "00010203");
        $check(Incarnation(300), "fb2c01");
        $check(node_id(), "0473686f700004626f2d31");
        $check(TraceId(0xabc), "10bc0a0000000000000000000000000000");
        $check(
            Claims {
                request: Some("r".into()),
                user: None,
                tenant: Some("t".into()),
                idempotency_key: Some("k".into()),
                token: Some("e.p.s".into()),
            },
            "0101720001017401016b0105652e702e73",
        );
        $check([Format::Bincode, Format::Json], "0001");
        $check(actor("a", vec![]), "01610202010773746f636b2f3103fb0004fdffffffffffffffff02010401fb2c0101fbfb00fc70110100fd0000000000010000010772657365727665090102c3a900");
        $check(Busy { method: "m".into(), for_ms: 251 }, "016dfbfb00");
        $check(Quantiles { p50_us: 250, p99_us: 65_536 }, "fafc00000100");
        $check([Kind::Worker, Kind::Service, Kind::OneForOne, Kind::OneForAll, Kind::RestForOne], "0001020304");
        $check([State::Starting, State::Running, State::Stuck, State::Restarting, State::Stopped, State::Failed], "000102030405");
        $check([Health::Here, Health::Up, Health::Suspect, Health::Down, Health::Heard], "0001020304");
        $check([Outcome::InHand, Outcome::Done, Outcome::Failed, Outcome::Refused, Outcome::Died], "0001020304");
        $check(node_tree(), "0473686f700004626f2d31010701010a5b3a3a315d3a373030300104726f6f740202010773746f636b2f3103fb0004fdffffffffffffffff02010401fb2c0101fbfb00fc70110100fd0000000000010000010772657365727665090102c3a9010573746f636b0202010773746f636b2f3103fb0004fdffffffffffffffff02010401fb2c0101fbfb00fc70110100fd0000000000010000010772657365727665090102c3a90000");
        $check(recorded(), "01077265736572766504666f2d314010bc0a0000000000000000000000000000020004");
        $check(Recording { current: vec![recorded()], at_death: Some(vec![recorded()]), cause: Some("x".into()) }, "0101077265736572766504666f2d314010bc0a0000000000000000000000000000020004010101077265736572766504666f2d314010bc0a0000000000000000000000000000020004010178");
        $check(Tree { cluster: true }, "01");
        $check(Actors { cluster: false }, "00");
        $check(
            Offered {
                name: "s".parse().unwrap(),
                node: "n".parse().unwrap(),
                protocol: "p".into(),
                version: 1,
                methods: vec!["a".into(), "b".into()],
            },
            "0173016e0170010201610162",
        );
        $check(Describe { actor: "s".parse().unwrap() }, "0173");
        $check(
            Description {
                protocol: "p".into(),
                version: 2,
                methods: vec![MethodDescription { name: "m".into(), request: "{}".into(), reply: "true".into(), error: "false".into() }],
            },
            "0170020101 6d 027b7d 0474727565 0566616c7365",
        );
        $check(Recorder { actor: "root/link".into() }, "09726f6f742f6c696e6b");
        $check(Restart { actor: "s".into() }, "0173");
        $check(Crash { actor: "s".into() }, "0173");
        $check(Done {}, "");
        $check(Status {}, "");
        $check(
            StatusReport {
                node: NodeTree { tree: None, ..node_tree() },
                version: "0.1.0".into(),
                ready: false,
                conditions: vec!["draining".into()],
                uptime_s: 1,
                resident: 2,
            },
            "0473686f700004626f2d31010701010a5b3a3a315d3a37303030000005302e312e30000108647261696e696e670102",
        );
        $check(Revoke { list: "l".into() }, "016c");
        $check(Serving {}, "");
        $check(ServingReport { addresses: vec!["https://a".into()], maintenance: Some("m".into()) }, "010968747470733a2f2f61 01016d");
        $check(Maintain { message: Some("m".into()) }, "01016d");
        $check(ControlOwner {}, "");
        $check(ControlOwnerReport { owner: "bo-1".parse().unwrap() }, "04626f2d31");
        $check([NodeError::NoSuchActor("s".into()), NodeError::Refused("r".into())], "000173010172");
        $check(
            [
                NoEffect::NoSuchActor("a".into()),
                NoEffect::Overloaded("a".into()),
                NoEffect::CircuitOpen { retry_after: Duration::from_millis(1) },
                NoEffect::NotAllowed("a".into()),
                NoEffect::VersionNotSpoken("a".into()),
                NoEffect::TooLarge("a".into()),
                NoEffect::Malformed("a".into()),
                NoEffect::NoRoute("a".into()),
                NoEffect::Expired,
                NoEffect::ActorDied,
                NoEffect::Stopping,
                NoEffect::TooManyHops,
                NoEffect::InvalidAddress("a".into()),
            ],
            "000161 010161 0200fc40420f00 030161 040161 050161 060161 070161 08 09 0a 0b 0c0161",
        );
        $check(
            [
                Unknown::DeadlinePassed,
                Unknown::PeerLost("a".into()),
                Unknown::ActorDied,
                Unknown::NoReply,
                Unknown::MalformedReply("a".into()),
                Unknown::ReplyTooLarge("a".into()),
            ],
            "00 010161 02 03 040161 050161",
        );
        $check(
            [
                Control::Hello(Hello {
                    version_min: 1,
                    version_max: 1,
                    features: 0,
                    node: node_id(),
                    incarnation: Incarnation(7),
                    release: "0.1.0".into(),
                    addresses: vec!["127.0.0.1:7400".parse().unwrap(), "[::1]:7400".parse().unwrap()],
                }),
                Control::Offers(Offers {
                    names: vec![Offer { name: "s".parse().unwrap(), protocol: "p".into(), version: 1 }],
                    ready: true,
                }),
                Control::Bind(Bind { binding: 1, name: "s".parse().unwrap(), protocol: Some(("p".into(), 1)) }),
                Control::Bound {
                    binding: 1,
                    outcome: Ok(Bound { target: 2, protocol: "p".into(), version: 1, methods: vec![(1, "m".into())] }),
                },
                Control::Bound { binding: 1, outcome: Err(NoEffect::Stopping) },
                Control::Watch { watch: 1, target: 2 },
                Control::Unwatch { watch: 1 },
                Control::Down { watch: 1, reason: DownReason::Died },
                Control::Heartbeat { sequence: 300 },
                Control::HeartbeatAck { sequence: 300 },
                Control::Grant { target: 2, units: 262_144 },
                Control::Cancel { correlation: 1 << 32 },
                Control::GoAway,
                Control::DenyList("l".into()),
            ],
            "000101000473686f700004626f2d310705302e312e3002007f000001fbe81c0100000000000000000000000000000001fbe81c01010173017001010201017301017001030100020170010101016d0301010a040102050106010007fb2c0108fb2c010902fc000004000afd00000000010000000b0c016c",
        );
        $check(
            [DownReason::Died, DownReason::Stopped, DownReason::NodeDown, DownReason::NodeRestarted, DownReason::NoSuchActor],
            "0001020304",
        );
        $check(crate::Bulk(0xabc), "10bc0a0000000000000000000000000000");
        $check(policy::Policy::builtin().rows().swap_remove(0), "00000d686f726f732e636f6e74726f6c097365745f726f75746500");
        $check(
            keys::Create {
                name: "n".into(),
                owner: "o".into(),
                scopes: vec![scope("a:b")],
                expires: Some("9d".into()),
                per_minute: Some(7),
            },
            "016e 016f 0103613a62 01023964 0107",
        );
        $check(keys::Created { key: key_record(), secret: Some(keys::Secret::new("hk_")) }, "0169 03686b5f 016e 016f 010173 00 02 0163 0162 00 010172 010178 fb2c01 01016c 01 03686b5f");
        $check([keys::KeyState::Active, keys::KeyState::Expired, keys::KeyState::Revoked], "000102");
        $check(keys::List { owner: Some("o".into()), all: true, after: None }, "01016f 01 00");
        $check(keys::KeyList { keys: vec![key_record()], next: Some("k".into()) }, "01 0169 03686b5f 016e 016f 010173 00 02 0163 0162 00 010172 010178 fb2c01 01016c 01016b");
        $check(keys::Revoke { which: keys::Which::Key("k".into()) }, "00016b");
        $check(keys::Revoke { which: keys::Which::Owner("o".into()) }, "01016f");
        $check(keys::Revoked { count: 1, keys: vec![] }, "0100");
        $check(
            keys::TrustIssuer {
                kid: "k".into(),
                issuer: "i".into(),
                audience: "a".into(),
                public_key: "p".into(),
                grants: keys::Grants::Only(vec![scope("s")]),
            },
            "016b 0169 0161 0170 01010173",
        );
        $check(keys::DistrustIssuer { kid: "k".into() }, "016b");
        $check(keys::Issuers {}, "");
        $check(
            keys::Issuer {
                kid: "k".into(),
                issuer: "i".into(),
                audience: "a".into(),
                public_key: "p".into(),
                grants: keys::Grants::Any,
                own: true,
                trusted_at: "t".into(),
                trusted_by: "b".into(),
            },
            "016b 0169 0161 0170 00 01 0174 0162",
        );
        $check(
            keys::IssueToken { user: "u".into(), scopes: vec![], audience: None, expires: Some("1h".into()) },
            "0175 00 00 01023168",
        );
        $check(
            keys::IssuedToken {
                token: keys::Secret::new("t"),
                jti: "j".into(),
                kid: "k".into(),
                audience: "a".into(),
                expires_at: "e".into(),
            },
            "0174 016a 016b 0161 0165",
        );
        $check(keys::RevokeToken { jti: "j".into(), until: None }, "016a 00");
        $check(keys::Done {}, "");
        $check(keys::Refused { minutes: 3 }, "03");
        $check(
            keys::RefusedMinute { minute: "m".into(), node: "n".parse().unwrap(), refusals: refusals() },
            "016d 016e 0102030405060708",
        );
        $check(keys::Report { refusals: refusals(), keys: vec![("k".into(), 2)] }, "0102030405060708 01 016b02");
        $check(keys::Changes { position: Some(position()), copied: Some(keys::Copied::Nothing) }, "01 1001000000000000000000000000000000 02 1003000000000000000000000000000000 01 00");
        $check(
            [keys::Copied::Nothing, keys::Copied::Tokens("j".into()), keys::Copied::Keys(keys::KeyHash([7; 32]))],
            "00 01016a 0220 0707070707070707070707070707070707070707070707070707070707070707",
        );
        $check(
            keys::Page {
                begins: true,
                position: position(),
                changes: vec![
                    keys::Change::Key(keys::KeyRow {
                        hash: keys::KeyHash([1; 32]),
                        id: "i".into(),
                        owner: "o".into(),
                        scopes: "[]".into(),
                        per_minute: None,
                        expires_at: i64::MAX,
                        revoked_at: Some(-1),
                    }),
                    keys::Change::NoKey(keys::KeyHash([2; 32])),
                    keys::Change::Issuer(keys::IssuerRow {
                        kid: "k".into(),
                        issuer: "i".into(),
                        audience: "a".into(),
                        public_key: "p".into(),
                        grants: "g".into(),
                    }),
                    keys::Change::NoIssuer("k".into()),
                    keys::Change::Token(keys::TokenRow { jti: "j".into(), until: 5 }),
                    keys::Change::NoToken("j".into()),
                ],
                part: Some(keys::Part { after: keys::Copied::Nothing, upto: None, rows: vec![] }),
                more: false,
            },
            "01 1001000000000000000000000000000000 02 1003000000000000000000000000000000 06 00 200101010101010101010101010101010101010101010101010101010101010101 0169 016f 025b5d 00 fdfeffffffffffffff 0101 01 200202020202020202020202020202020202020202020202020202020202020202 02 016b 0169 0161 0170 0167 03 016b 04 016a 0a 05 016a 01 00 00 00 00",
        );
        $check(
            [
                keys::KeysError::Invalid("a".into()),
                keys::KeysError::NoSuchKey("a".into()),
                keys::KeysError::Ambiguous("a".into()),
                keys::KeysError::NoSuchIssuer("a".into()),
                keys::KeysError::KidTaken("a".into()),
                keys::KeysError::TooMany("a".into()),
                keys::KeysError::Storage("a".into()),
                keys::KeysError::Unknown,
            ],
            "000161 010161 020161 030161 040161 050161 060161 07",
        );
        $check(sync_position(), "10010000000000000000000000000000000405");
        $check(
            sync::Subscribe { have: Some(sync_position()), tables: vec![sync::KnownTable { name: "t".into(), mark: sync::TableMark(0xab) }], version: 1, resume: true },
            "011001000000000000000000000000000000040501017410ab0000000000000000000000000000000101",
        );
        $check(sync::Subscribed { head: sync_position(), lease_ms: 10_000 }, "10010000000000000000000000000000000405fb1027");
        $check(sync::PublisherStatusAsk {}, "");
        $check(
            sync::PublicationStatus {
                name: "shop".into(),
                file: Some("s.db".into()),
                head: Some(sync_position()),
                log_entries: 5,
                tables: 2,
                blind: vec!["t.i".into()],
                condition: Some("c".into()),
                subscribers: vec![subscriber(sync::FeedState::Snapshot { done_rows: 1, total_rows: 2, bytes: 3 })],
            },
            "0473686f700104732e6462011001000000000000000000000000000000040505020103742e690101630104666f2d3101100100000000000000000000000000000004050102fb2c01040501016502010203010607",
        );
        $check(
            [sync::FeedState::Live, sync::FeedState::CatchingUp, sync::FeedState::Snapshot { done_rows: 1, total_rows: 2, bytes: 3 }, sync::FeedState::Away],
            "00010201020303",
        );
        $check(sync::StartVerify { node: Some("fo-1".parse().unwrap()), run: Some(7) }, "0104666f2d310107");
        $check(
            sync::VerifyReport {
                run: 7,
                done: true,
                nodes: vec![sync::NodeVerify {
                    node: "fo-1".parse().unwrap(),
                    chunks: 1,
                    total_chunks: 2,
                    rows: 3,
                    mismatches: 4,
                    repaired_rows: 5,
                    done: false,
                    error: Some("e".into()),
                }],
            },
            "07010104666f2d31010203040500010165",
        );
        $check(sync::Head {}, "");
        $check(
            [
                sync::SyncError::NotForYou,
                sync::SyncError::TooMany,
                sync::SyncError::Version(1),
                sync::SyncError::Unavailable("a".into()),
                sync::SyncError::NoSuch("a".into()),
                sync::SyncError::Invalid("a".into()),
            ],
            "00010201030161040161050161",
        );
        $check(sync::Apply { stream: sync::Stream::Inline(vec![1, 2, 3]), bytes: Some(3) }, "00030102030103");
        $check(sync::Apply { stream: sync::Stream::Body(crate::Bulk(0xabc)), bytes: None }, "0110bc0a000000000000000000000000000000");
        $check(sync::Applied { position: sync_position(), mismatches: vec![1, 300] }, "100100000000000000000000000000000004050201fb2c01");
        $check(sync::ReplicaAsk {}, "");
        $check(
            sync::ReplicaStatus {
                name: "shop".into(),
                source: Some("bo-1".parse().unwrap()),
                position: Some(sync_position()),
                tables: vec![sync::ReplicaTable { name: "t".into(), mark: sync::TableMark(0xab), changed_at: Some(9) }],
                state: sync::ReplicaState::Receiving { rows: 1, bytes: 2 },
                resume: true,
                applied_at: Some(8),
                stale_ms: Some(7),
                deltas: 1,
                snapshots: 2,
                received_bytes: 3,
                last_error: Some("e".into()),
            },
            "0473686f700104626f2d31011001000000000000000000000000000000040501017410ab00000000000000000000000000000001090201020101080107010203010165",
        );
        $check(
            [
                sync::ReplicaState::Empty,
                sync::ReplicaState::Live,
                sync::ReplicaState::Receiving { rows: 1, bytes: 2 },
                sync::ReplicaState::Pinned,
                sync::ReplicaState::Broken,
            ],
            "00010201020304",
        );
        $check(sync::HaveAsk { from: Some(5_000) }, "01fb8813");
        $check(sync::Have { chunks: vec![sync::ChunkMark(0xcd)], next: Some(5_000) }, "0110cd00000000000000000000000000000001fb8813");
        $check(sync::Rollback {}, "");
        $check(sync::RolledBack { position: sync_position(), withdrawn_rows: 2 }, "1001000000000000000000000000000000040502");
        $check(sync::Resume {}, "");
        $check(sync::Resumed {}, "");
        $check(
            [
                sync::ReplicaError::NotMySource,
                sync::ReplicaError::Mismatch { have: Some(sync_position()) },
                sync::ReplicaError::Corrupt("a".into()),
                sync::ReplicaError::TooLarge,
                sync::ReplicaError::Backwards,
                sync::ReplicaError::Pinned,
                sync::ReplicaError::Busy,
                sync::ReplicaError::Storage("a".into()),
                sync::ReplicaError::Malformed("a".into()),
                sync::ReplicaError::Nothing("a".into()),
            ],
            "0001011001000000000000000000000000000000040502016103040506070161080161090161",
        );
        $check(
            routes::SetRoute {
                service: "stock".into(),
                strategy: routes::Strategy::HTTP,
                endpoint: Some("a".into()),
                config: Some("{}".into()),
                expected: Some(routes::Expected::Version(routes::RouteVersion(0xab))),
                why: Some("b".into()),
            },
            "0573746f636b046874747001016101027b7d010110ab000000000000000000000000000000010162",
        );
        $check([routes::Expected::Absent, routes::Expected::Version(routes::RouteVersion(1))], "00 0110 01000000000000000000000000000000");
        $check(routes::Strategy::KNOWN, "056c6f63616c04717569630468747470036d637006646273796e6305656d626564046e6f6f70");
        $check(
            routes::DeleteRoute { service: "stock".into(), expected: None, why: None },
            "0573746f636b 00 00",
        );
        $check(routes::Edited { edit: 7, route: Some(route()) }, "0e010161046e6f6f7000000410ab00000000000000000000000000000010ac00000000000000000000000000000001016b0177");
        $check(routes::ListRoutes { after: Some("a".into()) }, "010161");
        $check(routes::RouteList { routes: vec![route()], next: Some("a".into()) }, "010161046e6f6f7000000410ab00000000000000000000000000000010ac00000000000000000000000000000001016b0177010161");
        $check(routes::GetRoute { service: "a".into() }, "0161");
        $check(route(), "0161046e6f6f7000000410ab00000000000000000000000000000010ac00000000000000000000000000000001016b0177");
        $check(
            routes::SetStrategy {
                service: "a".into(),
                strategy: routes::Strategy::NOOP,
                endpoint: Some("".into()),
                expected: Some(routes::RouteVersion(1)),
                why: None,
            },
            "0161046e6f6f70010001100100000000000000000000000000000000",
        );
        $check(routes::History { service: None, before: Some(7), limit: 20 }, "00010e14");
        $check(
            routes::HistoryPage {
                edits: vec![routes::Edit {
                    edit: 7,
                    at: 2,
                    who: "w".into(),
                    why: "y".into(),
                    what: "set".into(),
                    service: "a".into(),
                    before: None,
                    after: Some(content()),
                    breaker: Some(routes::BreakerEdit { endpoint: "b".into(), before: routes::Force::Auto, after: Some(routes::Force::Open) }),
                }],
                next: Some(7),
            },
            "010e04017701790373657401610001046e6f6f700001027b7d01010162000101010e",
        );
        $check(
            routes::Rollback { service: "a".into(), to: routes::RollbackTo::AsOf(7), expected: Some(routes::Expected::Absent), why: None },
            "0161020e010000",
        );
        $check([routes::RollbackTo::Last, routes::RollbackTo::Before(1), routes::RollbackTo::AsOf(2)], "0001020204");
        $check([routes::Force::Auto, routes::Force::Open, routes::Force::Closed], "000102");
        $check(
            routes::ForceBreaker {
                service: "a".into(),
                endpoint: Some("b".into()),
                state: routes::Force::Open,
                expected: Some(routes::Force::Auto),
                why: Some("c".into()),
            },
            "0161010162010100010163",
        );
        $check(routes::ResetBreaker { service: "a".into(), endpoint: None, why: None }, "01610000");
        $check(routes::BreakerEdited { edit: 7, breaker: forced_breaker() }, "0e01610162010406");
        $check(routes::ListForced { after: Some(("a".into(), "b".into())) }, "0101610162");
        $check(routes::ForcedList { breakers: vec![forced_breaker()], next: None }, "010161016201040600");
        $check(
            routes::ImportRoutes {
                rows: vec![routes::ImportedRow { service: "a".into(), strategy: "Odd".into(), endpoint: None, config: Some("".into()) }],
                replace: true,
                why: None,
            },
            "010161034f64640001000100",
        );
        $check(
            routes::Imported {
                added: vec!["a".into()],
                replaced: vec!["b".into()],
                same: vec!["c".into()],
                left: vec![routes::LeftRow { service: "d".into(), why: "y".into() }],
                wrong: vec![routes::WrongRow { service: "a".into(), problems: vec![problem()] }],
            },
            "010161010162010163010164017901016101016b0177",
        );
        $check(
            [
                routes::ControlError::Invalid("a".into()),
                routes::ControlError::NoSuchRoute("a".into()),
                routes::ControlError::Conflict { service: "a".into(), found: None },
                routes::ControlError::TooMany,
                routes::ControlError::Storage("a".into()),
                routes::ControlError::Unknown,
                routes::ControlError::NotImplemented { strategy: routes::Strategy::MCP, available: vec!["x".into()] },
                routes::ControlError::Wrong(vec![problem()]),
                routes::ControlError::NoSuchEdit { service: "a".into(), edit: 7 },
                routes::ControlError::BreakerConflict { service: "a".into(), found: routes::Force::Closed },
                routes::ControlError::TooManyBreakers,
            ],
            "00016101016102016100030401610506036d63700101780701016b01770801610e090161020a",
        );
        $check(router::ListServices { after: Some("a".into()) }, "010161");
        $check(router::ServiceList { services: vec![service_status()], next: None }, "010161011001000000000000000000000000000000040110020000000000000000000000000000000601016b017704717569630106717569633a620471756963016201010502020107020304010201016501020304010200");
        $check(router::GetService { service: "a".into() }, "0161");
        $check(
            router::ServiceDetail {
                status: router::ServiceStatus { row: None, problem: None, endpoints: vec![], ..service_status() },
                policies: "{}".into(),
                waiting: 1,
                overloaded: 2,
                limited: 3,
                refused: 4,
                hedged: (5, 6),
                fell_back: 7,
                over_budget: 8,
            },
            "01610000047175696300010203040102027b7d0102030405060708",
        );
        $check([router::BreakerState::Closed, router::BreakerState::Open, router::BreakerState::HalfOpen], "000102");
        $check(router::ListBreakers { after: None }, "00");
        $check(
            router::BreakerList {
                breakers: vec![router::BreakerStatus {
                    service: "a".into(),
                    key: "quic:b".into(),
                    state: router::BreakerState::Open,
                    forced: routes::Force::Auto,
                    until_ms: Some(1),
                    failures_in_row: 2,
                    transitions: 3,
                    opened_ms: Some(4),
                    last_error: None,
                }],
                next: Some(("a".into(), "b".into())),
            },
            "01016106717569633a620100010102030108000101610162",
        );
        $check([router::RouterError::NoSuchService("a".into())], "000161");
        $check("dos_01900000-0000-719e-910a-2dec89025cc1".parse::<Id<Dossier>>().unwrap(), "019000000000719e910a2dec89025cc1");
        $check("0680000001282BK0".parse::<ShortId>().unwrap(), "01900000000044812e60");
        $check("0123456789ab".parse::<NanoId<12>>().unwrap(), "0c303132333435363738396162");
    };
}

#[test]
fn every_type_reads_back_in_both_formats() {
    fn check<T: Serialize + DeserializeOwned + PartialEq + Debug>(value: T, _: &str) {
        for format in [Format::Bincode, Format::Json] {
            assert_eq!(decode::<T>(format, &bytes(format, &value)).unwrap(), value, "{format:?}");
        }
    }
    each!(check);
}

#[test]
fn golden_bytes_of_every_type_do_not_change() {
    fn check<T: Serialize + Debug>(value: T, golden: &str) {
        assert_eq!(hex(&bytes(Format::Bincode, &value)), golden.replace(' ', ""), "{value:?}");
    }
    each!(check);
}

/// A new request, reply or error without a line in `each` would be free to change its bytes.
#[test]
fn no_message_of_horos_own_protocols_is_without_golden_bytes() {
    thread_local!(static COVERED: RefCell<BTreeSet<&'static str>> = const { RefCell::new(BTreeSet::new()) });
    /// The type's own name, or that of what it is a list of.
    fn element<T>() -> &'static str {
        let name = std::any::type_name::<T>();
        let list = name.strip_prefix("alloc::vec::Vec<").and_then(|rest| rest.strip_suffix('>'));
        let array = name.strip_prefix('[').and_then(|rest| rest.split_once("; ")).map(|(element, _)| element);
        list.or(array).unwrap_or(name)
    }
    fn check<T>(_: T, _: &str) {
        COVERED.with_borrow_mut(|covered| covered.insert(element::<T>()));
    }
    each!(check);
    struct Looked(BTreeSet<&'static str>);
    impl<R: crate::Request> crate::Visit<R> for Looked {
        fn visit(&mut self) {
            self.0.extend([element::<R>(), element::<R::Reply>(), element::<R::Error>()]);
        }
    }
    let mut looked = Looked(BTreeSet::new());
    <Node as crate::Methods<Looked>>::visit(&mut looked);
    <keys::Keys as crate::Methods<Looked>>::visit(&mut looked);
    <routes::Control as crate::Methods<Looked>>::visit(&mut looked);
    <router::Router as crate::Methods<Looked>>::visit(&mut looked);
    <sync::Sync as crate::Methods<Looked>>::visit(&mut looked);
    <sync::Replica as crate::Methods<Looked>>::visit(&mut looked);
    // It has no value to write.
    looked.0.remove(element::<crate::Never>());
    assert!(looked.0.len() > 40, "{:?}", looked.0);
    let missing: Vec<_> = COVERED.with_borrow(|covered| looked.0.difference(covered).copied().collect());
    assert_eq!(missing, [""; 0]);
}

#[test]
fn a_length_that_the_body_cannot_hold_is_refused_before_room_is_made() {
    /// 2^60 as bincode writes it.
    const HUGE: [u8; 9] = [253, 0, 0, 0, 0, 0, 0, 0, 16];
    fn refused<T: DeserializeOwned>(before: &[u8]) {
        let body = [before, &HUGE, &[1; 40]].concat();
        assert!(decode::<T>(Format::Bincode, &body).is_err(), "{}", std::any::type_name::<T>());
    }
    refused::<String>(&[]);
    refused::<Box<str>>(&[]);
    refused::<bytes::Bytes>(&[]);
    refused::<serde_bytes::ByteBuf>(&[]);
    refused::<Vec<u8>>(&[]);
    refused::<Vec<u64>>(&[]);
    refused::<Vec<NodeTree>>(&[]);
    refused::<Vec<Vec<Vec<String>>>>(&[1, 1]);
    refused::<Vec<Box<str>>>(&[1]);
    refused::<BTreeMap<String, Vec<u8>>>(&[]);
    refused::<Option<Box<str>>>(&[1]);
    refused::<NoEffect>(&[0]);
    // These take no bytes: without a bound the loop would run 2^60 times.
    refused::<Vec<()>>(&[]);
    refused::<Vec<Done>>(&[]);
    refused::<Vec<Vec<Done>>>(&[1]);
}

#[test]
fn nesting_ends_in_an_error_before_the_stack_does() {
    let bottomless = |levels: usize| {
        let mut tree = actor("a", vec![]);
        for _ in 1..levels {
            tree = actor("a", vec![tree]);
        }
        tree
    };
    let fits = bottomless(50);
    for format in [Format::Bincode, Format::Json] {
        assert_eq!(decode::<tree::Actor>(format, &bytes(format, &fits)).unwrap(), fits);
    }
    // 100,000 levels, as a hostile peer would write them: nothing on our side could build such a value.
    let leaf = bytes(Format::Bincode, &actor("a", vec![]));
    let (open, _) = leaf.split_at(leaf.len() - 1);
    let mut body = [open, &[1]].concat().repeat(100_000);
    body.extend(&leaf);
    let error = decode::<tree::Actor>(Format::Bincode, &body).unwrap_err();
    assert!(error.to_string().contains("nested too deep"), "{error}");
    assert!(decode::<tree::Actor>(Format::Json, "[".repeat(1_000_000).as_bytes()).is_err());
}

#[test]
fn what_is_written_is_read_however_small_its_numbers() {
    // bincode's own limit counts eight bytes for each and refused the second half of these.
    let many: Vec<u64> = (0..4_000_000).map(|i| i % 200).collect();
    assert_eq!(decode::<Vec<u64>>(Format::Bincode, &bytes(Format::Bincode, &many)).unwrap(), many);
    let empty = vec![(); bounded::FREE_ELEMENTS];
    assert_eq!(decode::<Vec<()>>(Format::Bincode, &bytes(Format::Bincode, &empty)).unwrap(), empty);
}

#[test]
fn the_limit_and_the_end_of_a_body_hold_in_both_formats() {
    for format in [Format::Bincode, Format::Json] {
        let mut into = b"before".to_vec();
        let large = "x".repeat(MAX_BODY);
        assert!(matches!(encode(format, &large, &mut into), Err(CodecError::TooLarge(_))));
        assert_eq!(into, b"before");
        assert_eq!(decode::<String>(format, &vec![b' '; MAX_BODY + 1]), Err(CodecError::TooLarge(MAX_BODY + 1)));
        let mut body = bytes(format, &Tree { cluster: true });
        body.push(b'1');
        assert!(decode::<Tree>(format, &body).is_err(), "bytes left over");
    }
    assert_eq!(decode::<Tree>(Format::Bincode, &[1, 0, 0]), Err(CodecError::Trailing(2)));
    let unwritable = BTreeMap::from([((1, 2), 3)]);
    let mut into = Vec::new();
    assert!(matches!(encode(Format::Json, &unwritable, &mut into), Err(CodecError::Encode(_))));
    assert!(into.is_empty());
}

fn read_everything(body: &[u8]) {
    macro_rules! read {
        ($($type:ty)*) => { $(
            for format in [Format::Bincode, Format::Json] {
                // Bincode writes a value in one way: what it reads, it writes again no longer than it was.
                if let Ok(value) = decode::<$type>(format, body) {
                    let again = bytes(format, &value);
                    assert_eq!(decode::<$type>(format, &again).map_err(|e| e.to_string()).map(|v| bytes(format, &v)), Ok(again));
                }
            }
        )* };
    }
    read! {
        Tree Actors Describe Recorder Restart Crash Status Revoke Serving ServingReport Maintain ControlOwner ControlOwnerReport Vec<NodeTree> Vec<Offered> Description Recording Done
        StatusReport NodeError keys::Create keys::Created keys::List keys::KeyList keys::Revoke keys::Revoked keys::TrustIssuer keys::Issuer
        keys::IssueToken keys::IssuedToken keys::RevokeToken keys::Changes keys::Page keys::Report keys::RefusedMinute keys::KeysError
        NoEffect Unknown Claims Address NodeId Id<Dossier> ShortId NanoId<12> policy::Row
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    #[test]
    fn mutated_bodies_never_panic(
        which in 0usize..5,
        json: bool,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut: prop::sample::Index,
    ) {
        let format = if json { Format::Json } else { Format::Bincode };
        let mut body = match which {
            0 => bytes(format, &vec![node_tree(), node_tree()]),
            1 => bytes(format, &Recording { current: vec![recorded(); 3], at_death: Some(vec![recorded()]), cause: None }),
            3 => bytes(format, &keys::KeyList { keys: vec![key_record(); 3], next: None }),
            2 => bytes(format, &NoEffect::CircuitOpen { retry_after: Duration::from_secs(1) }),
            _ => bytes(format, &Claims { request: Some("r".into()), user: Some("u".into()), ..Claims::default() }),
        };
        for (at, byte) in changes {
            let at = at.index(body.len());
            body[at] = byte;
        }
        body.truncate(cut.index(body.len()) + 1);
        read_everything(&body);
    }

    #[test]
    fn arbitrary_bodies_never_panic(body in prop::collection::vec(any::<u8>(), 0..300)) {
        read_everything(&body);
    }
}

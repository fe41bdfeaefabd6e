//! The path between two nodes drops, duplicates, reorders, delays, falls silent and heals.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use horos_wire::{CallError, NoEffect, Role, tree::Health};
use tokio::task::JoinSet;

use super::{
    cluster::{Cluster, Echo, Log, Logged, Node, Test},
    relay::{Direction, Faults, Relay},
    world::{eventually, no_panics, scale, seed, watch},
};

const SOON: Duration = Duration::from_secs(5);
/// A call's deadline in these tests, and how long after it the caller may still wait for a scheduler.
const DEADLINE: Duration = Duration::from_secs(2);
const SLACK: Duration = Duration::from_secs(1);

/// An FO that knows its BO only through a relay.
async fn through_a_relay(seed: u64) -> (Node, Relay, Node) {
    watch();
    let cluster = Cluster::new();
    let bo = cluster.node_with(Role::Bo, "bo-1", |config| config.gossip = false).await;
    bo.serve("tester").await;
    let relay = Relay::start(bo.address(), seed).unwrap();
    let fo = cluster
        .node_with(Role::Fo, "fo-1", |config| {
            config.seeds = vec![relay.address()];
            config.gossip = false;
        })
        .await;
    fo.linked(1).await;
    (bo, relay, fo)
}

fn bad_weather() -> Faults {
    Faults { drop: 0.05, duplicate: 0.05, reorder: 0.10, delay: Duration::from_millis(50), ..Faults::default() }
}

/// What the callers and senders of a storm have seen.
#[derive(Default)]
struct Seen {
    replies: AtomicU64,
    no_effect: AtomicU64,
    unknown: AtomicU64,
    casts: AtomicU64,
    refused: AtomicU64,
}

/// Callers with unique payloads and senders with numbered casts, until told to stop.
fn storm(fo: &Node, stop: &Arc<AtomicBool>, seen: &Arc<Seen>) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    for caller in 0..16u64 {
        let (tester, stop, seen) = (fo.context().at::<Test>("tester@bo-1"), stop.clone(), seen.clone());
        tasks.spawn(async move {
            for number in 0.. {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                // Mostly small; some on a stream of their own, both ways. Such a path carries some 80 KB/s
                // (Mathis et al. 1997), and what is asked of it stays below.
                let size = if number % 40 == 3 { 17_000 } else { 64 };
                let mut body = vec![caller as u8; size];
                body[..8].copy_from_slice(&(caller << 32 | number).to_le_bytes());
                let began = Instant::now();
                let outcome = tester.call(Echo { body: body.clone() }, DEADLINE).await;
                assert!(began.elapsed() < DEADLINE + SLACK, "a call took {:?}: {outcome:?}", began.elapsed());
                match outcome {
                    Ok(echoed) => {
                        assert!(echoed.body == body, "caller {caller} got the answer to another call");
                        seen.replies.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(CallError::NoEffect(_)) => {
                        seen.no_effect.fetch_add(1, Ordering::Relaxed);
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                    Err(CallError::Unknown(_)) => {
                        seen.unknown.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
        });
    }
    for sender in 0..4u64 {
        let (tester, stop, seen) = (fo.context().at::<Test>("tester@bo-1"), stop.clone(), seen.clone());
        tasks.spawn(async move {
            for number in 0.. {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let padding = vec![0; if number % 200 == 7 { 17_000 } else { 20 }];
                match tester.cast(Log { number: sender << 32 | number, padding }, DEADLINE).await {
                    Ok(()) => seen.casts.fetch_add(1, Ordering::Relaxed),
                    Err(_) => seen.refused.fetch_add(1, Ordering::Relaxed),
                };
                tokio::time::sleep(Duration::from_millis(40)).await;
            }
        });
    }
    tasks
}

async fn stopped(stop: &AtomicBool, tasks: JoinSet<()>) {
    stop.store(true, Ordering::Relaxed);
    tokio::time::timeout(Duration::from_secs(10), tasks.join_all()).await.expect("no call hangs");
}

/// What was handled: each once, and in the order in which its sender sent it.
async fn handled(fo: &Node) -> u64 {
    let log = fo.context().at::<Test>("tester@bo-1").call(Logged {}, SOON).await.unwrap();
    let mut last = [None; 4];
    for entry in &log {
        let (sender, number) = ((entry >> 32) as usize, entry & 0xFFFF_FFFF);
        assert!(last[sender] < Some(number), "sender {sender}: {number} came after {:?}", last[sender]);
        last[sender] = Some(number);
    }
    log.len() as u64
}

#[tokio::test]
async fn a_lossy_reordering_duplicating_path_and_a_long_silence_double_nothing_and_mix_up_nothing() {
    let (bo, relay, fo) = through_a_relay(seed()).await;
    let watch = fo.context().at::<Test>("tester@bo-1").watch(SOON).await.unwrap();
    relay.set_both(&bad_weather());
    let (stop, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(Seen::default()));
    let tasks = storm(&fo, &stop, &seen);
    eventually("calls pass in bad weather", scale(Duration::from_secs(60), Duration::from_secs(300)), || {
        let replies = seen.replies.load(Ordering::Relaxed);
        if replies > scale(150, 1000) { Ok(()) } else { Err(format!("{replies} replies")) }
    })
    .await;
    let calm = fo.context().at::<Test>("tester@bo-1").call(Echo { body: vec![] }, SOON).await;
    assert!(calm.is_ok(), "{calm:?}");

    let silent = Instant::now();
    relay.partition();
    let reason = tokio::time::timeout(Duration::from_secs(4), watch).await.expect("the watcher knows within the down time");
    let known = silent.elapsed();
    assert_eq!(reason, horos_wire::control::DownReason::NodeDown);
    assert!(known < Duration::from_secs(3) + SLACK / 4, "down after {known:?}");
    let health = fo.endpoint.peers().known()[0].health;
    assert_eq!(health, Health::Down);
    let began = Instant::now();
    let nowhere = fo.context().at::<Test>("tester@bo-1").call(Echo { body: vec![] }, SOON).await;
    assert!(matches!(nowhere, Err(CallError::NoEffect(NoEffect::NoRoute(_)))), "{nowhere:?}");
    assert!(began.elapsed() < Duration::from_secs(1), "told after {:?}", began.elapsed());
    tokio::time::sleep_until((silent + scale(Duration::from_millis(3500), Duration::from_secs(10))).into()).await;
    relay.heal();
    let healed = Instant::now();
    fo.linked(1).await;
    println!("silent: down after {known:?}; healed: linked after {:?}", healed.elapsed());
    let before = seen.replies.load(Ordering::Relaxed);
    eventually("references made before the silence are good again", Duration::from_secs(30), || {
        let now = seen.replies.load(Ordering::Relaxed);
        if now >= before + 50 { Ok(()) } else { Err(format!("{} more replies", now - before)) }
    })
    .await;
    stopped(&stop, tasks).await;
    relay.set_both(&Faults::default());
    let handled = handled(&fo).await;
    let casts = seen.casts.load(Ordering::Relaxed);
    println!(
        "{handled} of {casts} casts handled, {} refused; {} replies, {} without effect, {} unknown; {:?}",
        seen.refused.load(Ordering::Relaxed),
        seen.replies.load(Ordering::Relaxed),
        seen.no_effect.load(Ordering::Relaxed),
        seen.unknown.load(Ordering::Relaxed),
        relay.counters(Direction::ToUpstream),
    );
    assert!(handled > 0 && handled <= casts, "at most once");
    assert!(seen.unknown.load(Ordering::Relaxed) > 0, "the silence caught calls in flight");
    no_panics();
    fo.stop().await;
    bo.stop().await;
}

#[tokio::test]
async fn a_silence_shorter_than_the_down_time_loses_nothing_and_keeps_the_link() {
    let (bo, relay, fo) = through_a_relay(seed()).await;
    let tester = fo.context().at::<Test>("tester@bo-1");
    let mut watch = std::pin::pin!(tester.watch(SOON).await.unwrap());
    relay.partition();
    let silent = Instant::now();
    let calls: JoinSet<_> = (0..8u8)
        .map(|n| {
            let tester = tester.clone();
            async move { tester.call(Echo { body: vec![n; 100] }, SOON).await.map(|echoed| echoed.body == vec![n; 100]) }
        })
        .collect();
    for number in 0..200 {
        tester.cast(Log { number, padding: vec![0; 100] }, SOON).await.unwrap();
    }
    eventually("the silent peer is suspect", Duration::from_secs(2), || match fo.endpoint.peers().known()[0].health {
        Health::Suspect => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    tokio::time::sleep_until((silent + Duration::from_millis(1700)).into()).await;
    relay.heal();
    for answer in calls.join_all().await {
        assert_eq!(answer, Ok(true));
    }
    assert_eq!(tester.call(Logged {}, SOON).await.unwrap(), (0..200).collect::<Vec<_>>());
    eventually("it is up again", Duration::from_secs(2), || match fo.endpoint.peers().known()[0].health {
        Health::Up => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    let kept = futures_util::poll!(&mut watch);
    assert!(kept.is_pending(), "the link was given up: {kept:?}");
    fo.stop().await;
    bo.stop().await;
}

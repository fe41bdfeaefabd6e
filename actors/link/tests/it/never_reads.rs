//! A peer that completes the handshake and the hello, and then never reads.
//!
//! Run in a process of its own: what is measured is that process's memory.

use std::{
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use horos_wire::{NoEffect, Role, tree::Health};
use tokio::task::JoinSet;

use super::{
    cluster::{Cluster, Echo, Log, Test},
    raw::Raw,
    world::{quantile, resident, scale},
};

const SOON: Duration = Duration::from_secs(5);
const DEADLINE: Duration = Duration::from_millis(100);
/// 32 MiB, in KiB.
const GROWTH: usize = 32 * 1024;

#[test]
fn casts_to_a_peer_that_never_reads_cost_bounded_memory_and_nobody_else() {
    let mut test = Command::new(std::env::current_exe().unwrap());
    test.args(["--exact", "it::never_reads::in_a_process_of_its_own", "--ignored", "--nocapture", "--test-threads=1"]);
    let output = test.output().unwrap();
    println!("{}", String::from_utf8_lossy(&output.stdout));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test]
#[ignore = "run by the test above, in a process of its own"]
async fn in_a_process_of_its_own() {
    let cluster = Cluster::new();
    let bo = cluster.node_with(Role::Bo, "bo-1", |config| config.gossip = false).await;
    bo.serve("tester").await;
    let seeds = vec![bo.address()];
    let fo = cluster
        .node_with(Role::Fo, "fo-1", |config| {
            config.seeds = seeds;
            config.gossip = false;
        })
        .await;
    fo.serve("tester").await;
    fo.linked(1).await;
    let mut raw = Raw::open(&cluster, Role::Fo, "deaf-1", bo.address()).await;
    raw.offer("tester", "test").await;
    bo.linked(2).await;
    let deaf = bo.context().at::<Test>("tester@deaf-1");
    let (bound, ()) = tokio::join!(deaf.cast(Log { number: 0, padding: vec![0; 100] }, SOON), raw.answer_bind());
    bound.unwrap();
    // From here on the peer reads nothing, and is there all the same: its QUIC acknowledges.
    let before = resident();
    let began = Instant::now();
    let casts: u64 = scale(200_000, 10_000_000);
    let (left, overloaded, no_route, worst) =
        (Arc::new(AtomicU64::new(casts)), Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let mut senders = JoinSet::new();
    for _ in 0..500 {
        let deaf = deaf.clone();
        let (left, overloaded, no_route, worst) = (left.clone(), overloaded.clone(), no_route.clone(), worst.clone());
        senders.spawn(async move {
            while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
                let began = Instant::now();
                match deaf.cast(Log { number: 1, padding: vec![0; 100] }, DEADLINE).await {
                    Ok(()) => {}
                    Err(NoEffect::Overloaded(_)) => drop(overloaded.fetch_add(1, Ordering::Relaxed)),
                    Err(_) => {
                        no_route.fetch_add(1, Ordering::Relaxed);
                        tokio::task::yield_now().await;
                    }
                }
                worst.fetch_max(began.elapsed().as_millis() as u64, Ordering::Relaxed);
            }
        });
    }
    let beside = fo.context().at::<Test>("tester@bo-1");
    let health = || {
        let known = bo.endpoint.peers().known();
        known.iter().map(|known| (known.node.name.to_string(), known.health)).collect::<std::collections::HashMap<_, _>>()
    };
    let (mut took, mut down, mut peak) = (Vec::new(), None, before);
    while !senders.is_empty() {
        let call = Instant::now();
        beside.call(Echo { body: vec![1] }, SOON).await.unwrap();
        took.push(call.elapsed());
        let health = health();
        assert_eq!(health["fo-1"], Health::Up, "the other peer's heartbeats pass");
        if down.is_none() && health["deaf-1"] == Health::Down {
            down = Some(began.elapsed());
        }
        peak = peak.max(resident());
        while senders.try_join_next().is_some() {}
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let down = down.expect("it is seen to be down");
    let (overloaded, no_route) = (overloaded.load(Ordering::Relaxed), no_route.load(Ordering::Relaxed));
    let worst = Duration::from_millis(worst.load(Ordering::Relaxed));
    let p99 = quantile(&mut took, 0.99);
    println!(
        "{casts} casts in {:?}: {overloaded} overloaded, {no_route} without a way, the slowest {worst:?}; down after {down:?}; \
         memory grew by {} KiB at most; p99 of {} calls beside: {p99:?}",
        began.elapsed(),
        peak - before,
        took.len()
    );
    assert!(peak - before <= GROWTH, "{} KiB", peak - before);
    assert!(overloaded > 0, "senders are told");
    assert!(worst < Duration::from_secs(1), "in time: {worst:?}");
    assert!(down < Duration::from_secs(3), "{down:?}");
    // 500 senders on the same thread, in a build without optimisation, take their share of each call beside.
    assert!(p99 < Duration::from_millis(250), "{p99:?}");
    drop(raw);
    fo.stop().await;
    bo.stop().await;
}

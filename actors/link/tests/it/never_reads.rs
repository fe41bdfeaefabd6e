//! A peer that completes the handshake and the hello, and then never reads.
//!
//! Run in a process of its own: what is measured is that process's memory.

use std::{
    net::SocketAddr,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use horos_wire::{NoEffect, Role, control::Control, tree::Health};
use tokio::{
    runtime::{Builder, Handle},
    sync::watch,
    task::JoinSet,
    time::sleep_until,
};

use super::{
    cluster::{Cluster, Echo, Log, Test},
    raw::Raw,
    world::{quantile, resident, scale},
};

const SOON: Duration = Duration::from_secs(5);
const DEADLINE: Duration = Duration::from_millis(100);
/// How often the third peer sends a heartbeat: often enough for a p99 of the seconds that the flood lasts.
const BEAT: Duration = Duration::from_millis(10);
/// Within which it passes, there and back.
const PASSES: Duration = Duration::from_millis(50);
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

#[test]
#[ignore = "run by the test above, in a process of its own"]
fn in_a_process_of_its_own() {
    // As in a node: its services have threads of their own, apart from the one that drives the links.
    let services = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let links = Builder::new_current_thread().enable_all().build().unwrap();
    links.block_on(flood(services.handle()));
}

/// The third peer, on a thread of its own: while the flood lasts, how long each of its heartbeats took there and back, and
/// by how much this thread was late at most to send one: that is the machine's doing and not the link's.
fn heartbeats(cluster: &Cluster, to: SocketAddr, mut flooding: watch::Receiver<bool>) -> (Vec<Duration>, Duration) {
    Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        let mut raw = Raw::open(cluster, Role::Fo, "fo-2", to).await;
        flooding.wait_for(|flooding| *flooding).await.unwrap();
        let (mut due, mut passed, mut late) = (Instant::now(), Vec::new(), Duration::ZERO);
        while *flooding.borrow() {
            sleep_until(due.into()).await;
            let (sequence, sent) = (passed.len() as u64 + 1, Instant::now());
            late = late.max(due.elapsed());
            raw.say(&Control::Heartbeat { sequence }).await;
            raw.hear(|frame| (frame == Control::HeartbeatAck { sequence }).then_some(())).await;
            passed.push(sent.elapsed());
            due = (due + BEAT).max(sent);
        }
        (passed, late)
    })
}

#[expect(clippy::print_stdout, reason = "the numbers are what the test is run for")]
async fn flood(services: &Handle) {
    let cluster = Arc::new(Cluster::new());
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
    let (flooding, lasts) = watch::channel(false);
    let third = thread::spawn({
        let (cluster, to) = (cluster.clone(), bo.address());
        move || heartbeats(&cluster, to, lasts)
    });
    bo.linked(3).await;
    let deaf = bo.context().at::<Test>("tester@deaf-1");
    let (bound, ()) = tokio::join!(deaf.cast(Log { number: 0, padding: vec![0; 100] }, SOON), raw.answer_bind());
    bound.unwrap();
    // From here on the peer reads nothing, and is there all the same: its QUIC acknowledges.
    flooding.send(true).unwrap();
    let before = resident();
    let began = Instant::now();
    let casts: u64 = scale(200_000, 10_000_000);
    let (left, overloaded, no_route, worst) =
        (Arc::new(AtomicU64::new(casts)), Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let mut senders = JoinSet::new();
    for _ in 0..500 {
        let deaf = deaf.clone();
        let (left, overloaded, no_route, worst) = (left.clone(), overloaded.clone(), no_route.clone(), worst.clone());
        let sender = async move {
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
        };
        senders.spawn_on(sender, services);
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
    flooding.send(false).unwrap();
    let (mut passed, late) = tokio::task::spawn_blocking(move || third.join()).await.unwrap().unwrap();
    let (beats, beat_p99) = (passed.len(), quantile(&mut passed, 0.99));
    println!(
        "{casts} casts in {:?}: {overloaded} overloaded, {no_route} without a way, the slowest {worst:?}; down after {down:?}; \
         memory grew by {} KiB at most; p99 of {} calls beside: {p99:?}, \
         of {beats} heartbeats: {beat_p99:?}, the slowest {:?} (and its own thread up to {late:?} late)",
        began.elapsed(),
        peak - before,
        took.len(),
        passed.last().unwrap()
    );
    assert!(peak - before <= GROWTH, "{} KiB", peak - before);
    assert!(overloaded > 0, "senders are told");
    assert!(worst < Duration::from_secs(1), "in time: {worst:?}");
    assert!(down < Duration::from_secs(3), "{down:?}");
    // In a build without optimisation, with other tests beside it, on two cores.
    assert!(p99 < Duration::from_millis(100), "{p99:?}");
    assert!(beats > 50, "{beats} heartbeats are too few to tell by");
    // Not the slowest: on two cores a thread of the test's own may wait longer than that for its turn.
    assert!(beat_p99 < PASSES, "{beat_p99:?}");
    drop(raw);
    fo.stop().await;
    bo.stop().await;
}

//! Nodes that come, go, come back, meet in the middle, and take leave.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use horos_wire::{CallError, Role, tree::Health};
use rand::RngExt;
use tokio::task::JoinSet;

use super::{
    cluster::{Cluster, Echo, Node, Test},
    world::{dice, eventually, no_panics, quantile, scale, seed, watch},
};

const SOON: Duration = Duration::from_secs(5);

pub(crate) fn free_address() -> SocketAddr {
    std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// Waits until nobody has `address`: a node gives it back when the last of its tasks has ended.
async fn freed(address: SocketAddr) {
    eventually("the port is free", SOON, || std::net::UdpSocket::bind(address).map(drop).map_err(|error| error.to_string())).await;
}

/// Calls until the first answer, and says how long that took.
async fn called(node: &Node, address: &str) -> Duration {
    let tester = node.context().at::<Test>(address);
    let began = Instant::now();
    loop {
        match tester.call(Echo { body: vec![1] }, Duration::from_secs(1)).await {
            Ok(_) => return began.elapsed(),
            Err(CallError::NoEffect(_) | CallError::Unknown(_)) => {
                assert!(began.elapsed() < 2 * SOON, "{address} is not reached");
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            Err(CallError::Failed(never)) => match never {},
        }
    }
}

#[tokio::test]
async fn two_that_dial_each_other_at_once_settle_on_one_link() {
    watch();
    let cluster = Cluster::new();
    for round in 0..scale(8, 50) {
        let (a, b) = (free_address(), free_address());
        let start = async |name: &str, listen: SocketAddr, seed: SocketAddr| {
            let node = cluster
                .node_with(Role::Bo, name, |config| {
                    config.listen = listen;
                    config.seeds = vec![seed];
                    config.gossip = false;
                })
                .await;
            node.serve("tester").await;
            node
        };
        let (one, two) = tokio::join!(start("bo-1", a, b), start("bo-2", b, a));
        one.linked(1).await;
        two.linked(1).await;
        // Settled: the same session is the one on both sides, and no other is left.
        let sessions = |node: &Node| node.root.tree().children.iter().filter(|child| child.name.contains('#')).count();
        eventually("one session is left on each side", SOON, || match (sessions(&one), sessions(&two)) {
            (1, 1) => Ok(()),
            other => Err(format!("round {round}: {other:?}")),
        })
        .await;
        called(&one, "tester@bo-2").await;
        called(&two, "tester@bo-1").await;
        one.stop().await;
        two.stop().await;
    }
    no_panics();
}

#[tokio::test]
async fn a_restarted_node_is_callable_a_quarter_of_a_second_after_its_port_is_open() {
    watch();
    let cluster = Cluster::new();
    let listen = free_address();
    let start = async || {
        let node = cluster
            .node_with(Role::Bo, "bo-1", |config| {
                config.listen = listen;
                config.gossip = false;
            })
            .await;
        node.serve("tester").await;
        node
    };
    let mut bo = start().await;
    let fo = cluster
        .node_with(Role::Fo, "fo-1", |config| {
            config.seeds = vec![listen];
            config.gossip = false;
        })
        .await;
    fo.linked(1).await;
    let (mut took, mut dice) = (Vec::new(), dice(seed()));
    let mut incarnation = fo.endpoint.peers().known()[0].incarnation;
    for _ in 0..scale(5, 30) {
        bo.stop().await;
        eventually("it is seen to be down", SOON, || match fo.endpoint.peers().known()[0].health {
            Health::Down => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
        freed(listen).await;
        // Away for longer than a round of short dials: the long one that follows must not keep it waiting.
        tokio::time::sleep(Duration::from_millis(dice.random_range(0..2000))).await;
        bo = start().await;
        took.push(called(&fo, "tester@bo-1").await);
        let known = fo.endpoint.peers().known()[0].incarnation;
        assert_ne!(known, incarnation, "another life");
        incarnation = known;
    }
    let worst = *took.iter().max().unwrap();
    println!("callable after {:?} (median), {worst:?} (worst)", quantile(&mut took, 0.5));
    assert!(worst < Duration::from_secs(1), "{took:?}");
    fo.stop().await;
    bo.stop().await;
}

#[tokio::test]
async fn a_new_life_replaces_the_old_at_once() {
    watch();
    let cluster = Cluster::new();
    let fo = cluster.node_with(Role::Bo, "bo-9", |config| config.gossip = false).await;
    let seed = fo.address();
    let start = async || {
        let node = cluster
            .node_with(Role::Bo, "bo-1", |config| {
                config.seeds = vec![seed];
                config.gossip = false;
            })
            .await;
        node.serve("tester").await;
        node
    };
    let old = start().await;
    fo.linked(1).await;
    let before = fo.endpoint.peers().known()[0].incarnation;
    let watch = fo.context().at::<Test>("tester@bo-1").watch(SOON).await.unwrap();
    // The old process is still there, as one is that hangs; nobody waits until it counts as down.
    let began = Instant::now();
    let new = start().await;
    eventually("the new life is known", SOON, || match fo.endpoint.peers().known()[0].incarnation {
        now if now != before => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    tokio::time::timeout(SOON, watch).await.expect("whoever watched the old is told");
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    new.stop().await;
    old.stop().await;
    fo.stop().await;
}

#[tokio::test]
async fn a_rolling_restart_under_load_loses_no_call_that_is_tried_again_on_no_effect() {
    watch();
    let cluster = Cluster::new();
    let listen = [free_address(), free_address()];
    let start = async |n: usize| {
        let node = cluster
            .node_with(Role::Bo, &format!("bo-{n}"), |config| {
                config.listen = listen[n];
                config.gossip = false;
            })
            .await;
        node.serve("tester").await;
        node
    };
    let mut nodes = [Some(start(0).await), Some(start(1).await)];
    let fo = cluster
        .node_with(Role::Fo, "fo-1", |config| {
            config.seeds = listen.to_vec();
            config.gossip = false;
        })
        .await;
    fo.linked(2).await;
    let stop = Arc::new(AtomicBool::new(false));
    let (done, again) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let mut callers = JoinSet::new();
    for caller in 0..32u8 {
        let (tester, stop, done, again) = (fo.context().at::<Test>("tester@bo"), stop.clone(), done.clone(), again.clone());
        callers.spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                let began = Instant::now();
                loop {
                    match tester.call(Echo { body: vec![caller; 64] }, SOON).await {
                        Ok(echoed) => break assert_eq!(echoed.body, vec![caller; 64]),
                        Err(CallError::NoEffect(_)) if began.elapsed() < SOON => {
                            again.fetch_add(1, Ordering::Relaxed);
                            tokio::task::yield_now().await;
                        }
                        lost => panic!("lost to the restart: {lost:?}"),
                    }
                }
                done.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    for round in 0..scale(4, 20) {
        let before = done.load(Ordering::Relaxed);
        eventually("calls pass", SOON, || if done.load(Ordering::Relaxed) > before + 200 { Ok(()) } else { Err("few".into()) }).await;
        let leaving = nodes[round % 2].take().unwrap();
        leaving.endpoint.peers().drain(Instant::now() + SOON).await;
        leaving.stop().await;
        freed(listen[round % 2]).await;
        nodes[round % 2] = Some(start(round % 2).await);
        fo.linked(2).await;
    }
    stop.store(true, Ordering::Relaxed);
    callers.join_all().await;
    println!("{} calls, {} tried again", done.load(Ordering::Relaxed), again.load(Ordering::Relaxed));
    no_panics();
    fo.stop().await;
    for node in nodes.into_iter().flatten() {
        node.stop().await;
    }
}

#[tokio::test]
async fn any_of_the_links_own_actors_may_crash_and_all_comes_back() {
    watch();
    let cluster = Cluster::new();
    let bo = cluster.node_with(Role::Bo, "bo-1", |_| {}).await;
    bo.serve("tester").await;
    let seeds = vec![bo.address()];
    let fo = cluster.node_with(Role::Fo, "fo-1", |config| config.seeds = seeds).await;
    fo.linked(1).await;
    let children = |node: &Node| node.root.tree().children.iter().map(|child| child.name.to_string()).collect::<Vec<_>>();
    for node in [&bo, &fo] {
        for child in children(node) {
            if child == "tester" {
                continue;
            }
            let call = {
                let tester = fo.context().at::<Test>("tester@bo-1");
                tokio::spawn(async move { tester.call(Echo { body: vec![2] }, SOON).await })
            };
            // A session may have been replaced since the list was made.
            let crashed = node.root.crash_child(&child).await;
            let ended = tokio::time::timeout(2 * SOON, call).await.expect("no call hangs").unwrap();
            assert!(matches!(ended, Ok(_) | Err(CallError::NoEffect(_) | CallError::Unknown(_))));
            let back = called(&fo, "tester@bo-1").await;
            println!("{child} {crashed:?}: callable after {back:?}");
        }
    }
    let late = cluster.node(Role::Fo, "fo-2", vec![bo.address()]).await;
    late.linked(1).await;
    called(&late, "tester@bo-1").await;
    late.stop().await;
    fo.stop().await;
    bo.stop().await;
}

#[tokio::test]
async fn a_stopped_node_lets_go_of_its_port() {
    watch();
    let cluster = Cluster::new();
    for linked in [false, true] {
        let bo = cluster.node_with(Role::Bo, "bo-1", |_| {}).await;
        bo.serve("tester").await;
        let listen = bo.address();
        let fo = if linked {
            let fo = cluster.node_with(Role::Fo, "fo-1", |config| config.seeds = vec![listen]).await;
            called(&fo, "tester@bo-1").await;
            Some(fo)
        } else {
            None
        };
        bo.stop().await;
        println!("linked: {linked}");
        freed(listen).await;
        if let Some(fo) = fo {
            fo.stop().await;
        }
    }
}

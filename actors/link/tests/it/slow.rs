//! A slow actor slows nobody else, loses nothing, and says when it is full.

use std::time::{Duration, Instant};

use horos_supervision::{Ref, ServiceSpec};
use horos_wire::{CallError, NoEffect, Role};
use tokio::task::JoinSet;

use super::{
    cluster::{Cluster, Echo, Hang, Log, Logged, Test},
    world::{eventually, no_panics, quantile, scale, watch},
};

const SOON: Duration = Duration::from_secs(10);
const LONG: Duration = Duration::from_secs(120);

async fn calls(tester: &Ref<Test>, count: usize) -> Vec<Duration> {
    let mut took = Vec::new();
    for _ in 0..count {
        let began = Instant::now();
        tester.call(Echo { body: vec![0; 64] }, SOON).await.unwrap();
        took.push(began.elapsed());
    }
    took
}

#[tokio::test]
async fn slow_actors_flooded_from_two_nodes_slow_no_other_and_drop_nothing() {
    watch();
    let cluster = Cluster::new();
    let bo = cluster.node(Role::Bo, "bo-1", vec![]).await;
    let millisecond = Duration::from_millis(1);
    // Three, because one alone leaves some of the link's credit and two would not.
    for name in ["slow-1", "slow-2", "slow-3"] {
        bo.serve_slow(ServiceSpec { capacity: 64, ..ServiceSpec::new(name.parse().unwrap()) }, millisecond).await;
    }
    bo.serve("quick").await;
    let seeds = vec![bo.address()];
    let nodes = [cluster.node(Role::Fo, "fo-1", seeds.clone()).await, cluster.node(Role::Fo, "fo-2", seeds).await];
    for node in &nodes {
        node.linked(1).await;
    }
    let quick = nodes[0].context().at::<Test>("quick@bo-1");
    let idle = quantile(&mut calls(&quick, 200).await, 0.99);
    let count = scale(1500u64, 8000);
    let mut floods = JoinSet::new();
    for (sender, node) in nodes.iter().enumerate() {
        for name in ["slow-1@bo-1", "slow-2@bo-1", "slow-3@bo-1"] {
            let slow = node.context().at::<Test>(name);
            floods.spawn(async move {
                for number in 0..count {
                    // A hundred bytes mostly, and some that travel apart.
                    let padding = vec![0; if number % 100 == 50 { 64 * 1024 } else { 100 }];
                    slow.cast(Log { number: (sender as u64) << 32 | number, padding }, LONG).await.unwrap();
                }
            });
        }
    }
    let mut beside = Vec::new();
    while floods.try_join_next().is_none() {
        beside.extend(calls(&quick, 5).await);
    }
    floods.join_all().await;
    let p99 = quantile(&mut beside, 0.99);
    println!("p99 of {} calls beside three slow actors: {p99:?}; idle: {idle:?}", beside.len());
    assert!(beside.len() >= 20);
    assert!(p99 < 50 * idle + Duration::from_millis(50), "{p99:?} beside {idle:?}");
    for name in ["slow-1@bo-1", "slow-2@bo-1", "slow-3@bo-1"] {
        // Behind everything that the two have sent: in order per sender, so one question from each is enough.
        let slow = nodes[1].context().at::<Test>(name);
        let mut log = Vec::new();
        while log.len() < 2 * count as usize {
            log.extend(match slow.call(Logged {}, LONG).await {
                Err(CallError::NoEffect(NoEffect::Overloaded(_))) => {
                    tokio::task::yield_now().await;
                    continue;
                }
                logged => logged.unwrap(),
            });
        }
        for sender in 0..2u64 {
            let numbers: Vec<u64> = log.iter().filter(|entry| *entry >> 32 == sender).map(|entry| entry & 0xFFFF_FFFF).collect();
            assert_eq!(numbers, (0..count).collect::<Vec<_>>(), "{name}, sender {sender}");
        }
    }
    no_panics();
    for node in nodes {
        node.stop().await;
    }
    bo.stop().await;
}

#[tokio::test]
async fn a_full_mailbox_refuses_calls_at_once_from_near_and_far() {
    watch();
    let cluster = Cluster::new();
    let bo = cluster.node(Role::Bo, "bo-1", vec![]).await;
    bo.serve_with(ServiceSpec { capacity: 8, ..ServiceSpec::new("tester".parse().unwrap()) }).await;
    let fo = cluster.node(Role::Fo, "fo-1", vec![bo.address()]).await;
    fo.linked(1).await;
    for node in [&fo, &bo] {
        let tester = node.context().at::<Test>("tester@bo-1");
        let mut waiting = JoinSet::new();
        let hang = tester.clone();
        waiting.spawn(async move { hang.call(Hang {}, LONG).await });
        // Were it sent together with the others, it could be the one that finds the mailbox full.
        let vitals = bo.root.find("tester").unwrap();
        eventually("the actor hangs", SOON, || vitals.snapshot().busy_with.map(drop).ok_or_else(|| "idle".to_owned())).await;
        for _ in 0..8 {
            let tester = tester.clone();
            waiting.spawn(async move { tester.call(Echo { body: vec![] }, LONG).await.map(drop) });
        }
        let (mut refused, mut last) = (None, None);
        for _ in 0..200 {
            let began = Instant::now();
            let outcome = tester.call(Echo { body: vec![] }, Duration::from_millis(250)).await;
            if let Err(CallError::NoEffect(NoEffect::Overloaded(_))) = outcome {
                refused = Some(began.elapsed());
                break;
            }
            last = Some(outcome);
        }
        let refused = refused.unwrap_or_else(|| panic!("a ninth call is refused, not {last:?}"));
        assert!(refused < Duration::from_millis(100), "after {refused:?}");
        // For the second round, a new life.
        bo.root.crash_child("tester").await.unwrap();
        tokio::time::timeout(SOON, waiting.join_all()).await.expect("those who waited are told");
    }
    no_panics();
    fo.stop().await;
    bo.stop().await;
}

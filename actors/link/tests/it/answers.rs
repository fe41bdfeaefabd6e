//! Every call ends, with its answer or a typed reason, in time.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::BoxFuture;
use horos_supervision::{
    Concurrent, Places,
    concurrent::concurrent,
    mailbox::{Post, Work},
};
use horos_wire::{CallError, NoEffect, Role, Unknown, codec::MAX_BODY};
use tokio::{sync::mpsc, task::JoinSet};

use super::{
    cluster::{Cluster, Echo, Fill, Hang, Node, Panic, Test},
    world::{no_panics, watch},
};

const SOON: Duration = Duration::from_secs(10);

async fn pair() -> (Node, Node) {
    watch();
    let cluster = Cluster::new();
    let bo = cluster.node(Role::Bo, "bo-1", vec![]).await;
    bo.serve("tester").await;
    let fo = cluster.node(Role::Fo, "fo-1", vec![bo.address()]).await;
    fo.linked(1).await;
    (bo, fo)
}

#[tokio::test]
async fn the_largest_reply_arrives_and_a_larger_one_is_a_typed_unknown() {
    let (bo, fo) = pair().await;
    let tester = fo.context().at::<Test>("tester@bo");
    // The length before the bytes takes five.
    let largest = MAX_BODY as u64 - 5;
    assert_eq!(tester.call(Fill { size: largest }, SOON).await.unwrap().body.len() as u64, largest);
    let over = tester.call(Fill { size: MAX_BODY as u64 }, SOON).await;
    assert!(matches!(over, Err(CallError::Unknown(Unknown::ReplyTooLarge(_)))), "{:?}", over.map(|echoed| echoed.body.len()));
    let over = tester.call(Echo { body: vec![0; MAX_BODY] }, SOON).await;
    assert!(matches!(over, Err(CallError::NoEffect(NoEffect::TooLarge(_)))), "{:?}", over.map(|echoed| echoed.body.len()));
    tester.call(Echo { body: vec![1] }, SOON).await.unwrap();
    no_panics();
    fo.stop().await;
    bo.stop().await;
}

#[tokio::test]
async fn many_of_the_largest_replies_at_once_all_arrive() {
    let (bo, fo) = pair().await;
    let tester = fo.context().at::<Test>("tester@bo");
    let calls: JoinSet<_> = (0..12u64)
        .map(|n| {
            let tester = tester.clone();
            async move {
                tester.call(Fill { size: 4 * 1024 * 1024 + n }, Duration::from_secs(60)).await.map(|echoed| echoed.body.len() as u64 - n)
            }
        })
        .collect();
    for size in calls.join_all().await {
        assert_eq!(size, Ok(4 * 1024 * 1024));
    }
    fo.stop().await;
    bo.stop().await;
}

#[tokio::test]
async fn a_target_that_dies_tells_every_waiting_caller_within_two_round_trips() {
    let (bo, fo) = pair().await;
    let tester = fo.context().at::<Test>("tester@bo-1");
    let mut echo = Vec::new();
    for _ in 0..20 {
        let began = Instant::now();
        tester.call(Echo { body: vec![] }, SOON).await.unwrap();
        echo.push(began.elapsed());
    }
    let round_trip = super::world::quantile(&mut echo, 0.5);
    let began = Instant::now();
    let mut calls = JoinSet::new();
    let panicking = tester.clone();
    calls.spawn(async move { panicking.call(Panic {}, SOON).await.map(|()| vec![]) });
    for n in 0..50u8 {
        let tester = tester.clone();
        calls.spawn(async move { tester.call(Echo { body: vec![n] }, SOON).await.map(|echoed| echoed.body) });
    }
    let outcomes = calls.join_all().await;
    let took = began.elapsed();
    println!("51 calls around a panic ended within {took:?}; a round trip takes {round_trip:?}");
    // The panic's own report takes most of it; the callers' deadline is seconds away.
    assert!(took < 2 * round_trip + Duration::from_millis(500), "{took:?}");
    assert!(outcomes.iter().all(|outcome| {
        matches!(outcome, Ok(_) | Err(CallError::Unknown(Unknown::ActorDied) | CallError::NoEffect(NoEffect::ActorDied)))
    }));
    assert_eq!(outcomes.iter().filter(|outcome| matches!(outcome, Err(CallError::Unknown(Unknown::ActorDied)))).count(), 1);
    fo.stop().await;
    bo.stop().await;
}

#[tokio::test]
async fn a_thousand_callers_that_find_a_link_at_once_are_all_served() {
    let (bo, fo) = pair().await;
    let tester = fo.context().at::<Test>("tester@bo");
    // More than a peer may have bound: each asked for the name, the link would be closed.
    let calls: JoinSet<_> = (0..6000u64)
        .map(|_| {
            let tester = tester.clone();
            async move {
                loop {
                    match tester.call(Echo { body: vec![1] }, SOON).await {
                        Err(CallError::NoEffect(NoEffect::Overloaded(_))) => tokio::task::yield_now().await,
                        outcome => return outcome,
                    }
                }
            }
        })
        .collect();
    assert!(calls.join_all().await.iter().all(Result::is_ok));
    fo.stop().await;
    bo.stop().await;
}

#[tokio::test]
async fn ten_thousand_callers_that_give_up_at_once_do_not_cost_the_link() {
    let (bo, fo) = pair().await;
    bo.serve("other").await;
    let tester = fo.context().at::<Test>("tester@bo-1");
    let mut watch = std::pin::pin!(fo.context().at::<Test>("other@bo-1").watch(SOON).await.unwrap());
    let hang = tester.clone();
    let mut calls = JoinSet::new();
    calls.spawn(async move { hang.call(Hang {}, Duration::from_secs(1)).await });
    for _ in 0..10_000 {
        let tester = tester.clone();
        calls.spawn(async move { tester.call(Echo { body: vec![] }, Duration::from_millis(900)).await.map(drop) });
    }
    let outcomes = calls.join_all().await;
    // Those that came before the one that hangs were served.
    let other = outcomes
        .iter()
        .find(|outcome| !matches!(outcome, Ok(()) | Err(CallError::NoEffect(_) | CallError::Unknown(Unknown::DeadlinePassed))));
    assert_eq!(other, None);
    fo.context().at::<Test>("other@bo-1").call(Echo { body: vec![] }, SOON).await.unwrap();
    assert!(futures_util::poll!(&mut watch).is_pending(), "the link was closed");
    no_panics();
    fo.stop().await;
    bo.stop().await;
}

/// Answers nobody, and says when a call has come and when its caller has given it up.
struct Listener(mpsc::Sender<&'static str>);

impl Concurrent for Listener {
    type Protocol = Test;

    fn answer(self: Arc<Self>, post: Box<Post>) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let Work::Encoded { answer: Some(answer), .. } = post.work else { return };
            self.0.send("came").await.unwrap();
            answer.abandoned().await;
            self.0.send("given up").await.unwrap();
        })
    }
}

#[tokio::test]
async fn whoever_works_for_a_caller_on_another_node_hears_when_that_gives_up_or_is_gone() {
    let (bo, fo) = pair().await;
    let (heard, mut hears) = mpsc::channel(4);
    let listener = concurrent(&bo.exchange, "listener", Places { at_once: 4, per_node: 4 }, Listener(heard)).unwrap();
    bo.root.add_child(listener).await.unwrap();
    let listener = fo.context().at::<Test>("listener@bo");
    let call = |listener: horos_supervision::Ref<Test>| tokio::spawn(async move { listener.call(Hang {}, SOON).await });
    let mut next = async || tokio::time::timeout(SOON, hears.recv()).await.expect("it is told in time").unwrap();
    let given_up = call(listener.clone());
    assert_eq!(next().await, "came");
    let waits = call(listener);
    assert_eq!(next().await, "came");
    given_up.abort();
    assert_eq!(next().await, "given up");
    assert!(!waits.is_finished(), "the other caller still waits");
    fo.stop().await;
    assert_eq!(next().await, "given up");
    bo.stop().await;
}

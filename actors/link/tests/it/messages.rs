use std::time::Duration;

use horos_wire::{
    Bytes, CallError, NoEffect, Role, Unknown,
    control::{DownReason, MAX_WATCHES},
};

use super::cluster::{Cluster, Echo, Hang, Log, Logged, Panic, Refuse, Refused, Secret, Take, Test};

const SOON: Duration = Duration::from_secs(5);

async fn pair() -> (super::cluster::Node, super::cluster::Node) {
    let cluster = Cluster::new();
    let bo = cluster.node(Role::Bo, "bo-1", vec![]).await;
    bo.serve("tester").await;
    let fo = cluster.node(Role::Fo, "fo-1", vec![bo.address()]).await;
    fo.linked(1).await;
    (bo, fo)
}

#[tokio::test]
async fn a_call_is_answered_from_another_node_small_and_large() {
    let (bo, fo) = pair().await;
    let cx = fo.context();
    for address in ["tester", "tester@bo", "tester@bo-1"] {
        let tester = cx.at::<Test>(address);
        for size in [0, 64, 16 * 1024 - 20, 16 * 1024 + 1, 3_000_000] {
            let body: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
            let echoed = tester.call(Echo { body: body.clone() }, SOON).await.unwrap();
            assert!(echoed.body == body, "{size} bytes to {address}");
        }
    }
    fo.stop().await;
    bo.stop().await;
}

#[tokio::test]
async fn the_callees_own_error_arrives_as_itself_typed_and_in_json() {
    let (bo, fo) = pair().await;
    let cx = fo.context();
    let refused = cx.at::<Test>("tester@bo").call(Refuse { why: "because".into() }, SOON).await;
    assert_eq!(refused, Err(CallError::Failed(Refused { why: "because".into() })));
    let refused = cx.call_json("tester@bo", r#"{"refuse": {"why": "because"}}"#, SOON).await;
    assert_eq!(refused, Err(CallError::Failed(serde_json::json!({"why": "because"}))));
    let unknown = cx.call_json("tester@bo", r#"{"nonsense": {}}"#, SOON).await;
    assert!(matches!(unknown, Err(CallError::NoEffect(NoEffect::Malformed(why))) if why.contains("refuse")));
    fo.stop().await;
    bo.stop().await;
}

#[tokio::test]
async fn what_the_policy_does_not_list_is_refused_and_the_link_stays() {
    let (bo, fo) = pair().await;
    let tester = fo.context().at::<Test>("tester@bo-1");
    let refused = tester.call(Secret {}, SOON).await;
    assert!(matches!(refused, Err(CallError::NoEffect(NoEffect::NotAllowed(_)))), "{refused:?}");
    tester.call(Echo { body: vec![1] }, SOON).await.unwrap();
    fo.stop().await;
    bo.stop().await;
}

#[tokio::test]
async fn casts_of_all_sizes_arrive_once_each_and_in_order() {
    let (bo, fo) = pair().await;
    let tester = fo.context().at::<Test>("tester@bo");
    let sizes = [10, 40_000, 0, 17_000, 300, 200_000, 1, 1];
    for number in 0..2_000 {
        let padding = vec![0; sizes[number as usize % sizes.len()]];
        tester.cast(Log { number, padding }, SOON).await.unwrap();
    }
    let logged = tester.call(Logged {}, SOON).await.unwrap();
    assert_eq!(logged, (0..2_000).collect::<Vec<_>>());
    fo.stop().await;
    bo.stop().await;
}

#[tokio::test]
async fn a_handler_that_dies_is_an_unknown_outcome_and_its_actor_comes_back() {
    let (bo, fo) = pair().await;
    let tester = fo.context().at::<Test>("tester@bo");
    let watch = tester.watch(SOON).await.unwrap();
    let (died, queued) = tokio::join!(tester.call(Panic {}, SOON), tester.call(Echo { body: vec![] }, SOON));
    assert_eq!(died, Err(CallError::Unknown(Unknown::ActorDied)));
    assert!(matches!(queued, Ok(_) | Err(CallError::NoEffect(NoEffect::ActorDied))), "{queued:?}");
    assert_eq!(tokio::time::timeout(SOON, watch).await.unwrap(), DownReason::Died);
    tester.call(Echo { body: vec![1] }, SOON).await.unwrap();
    fo.stop().await;
    bo.stop().await;
}

#[tokio::test]
async fn one_watch_too_many_is_refused_the_link_stays_and_one_dropped_makes_room_though_it_was_never_polled() {
    let (bo, fo) = pair().await;
    let tester = fo.context().at::<Test>("tester@bo-1");
    let lost = tester.watch(SOON).await.unwrap();
    let mut watches = Vec::new();
    while watches.len() < MAX_WATCHES - 1 {
        watches.push(tester.watch(SOON).await.unwrap());
    }
    for _ in 0..3 {
        let refused = tester.watch(SOON).await;
        assert!(matches!(refused, Err(NoEffect::Overloaded(_))), "{refused:?}");
        // The answer comes after all that was said before: the peer has counted.
        tester.call(Echo { body: vec![1] }, SOON).await.unwrap();
        drop(watches.pop());
        watches.push(tester.watch(SOON).await.unwrap());
    }
    tester.call(Panic {}, SOON).await.unwrap_err();
    assert_eq!(tokio::time::timeout(SOON, lost).await.unwrap(), DownReason::Died, "the link was never lost");
    fo.stop().await;
    bo.stop().await;
}

#[tokio::test]
async fn a_call_past_its_deadline_is_unknown_and_one_to_a_lost_node_too() {
    let (bo, fo) = pair().await;
    let tester = fo.context().at::<Test>("tester@bo-1");
    let late = tester.call(Hang {}, Duration::from_millis(50)).await;
    assert_eq!(late, Err(CallError::Unknown(Unknown::DeadlinePassed)));
    let watch = tester.watch(SOON).await.unwrap();
    let (lost, ()) = tokio::join!(tester.call(Echo { body: vec![] }, SOON), async {
        bo.endpoint.close(Duration::from_secs(1)).await;
    });
    assert!(matches!(lost, Err(CallError::Unknown(Unknown::PeerLost(_)) | CallError::NoEffect(NoEffect::NoRoute(_)))), "{lost:?}");
    assert_eq!(tokio::time::timeout(SOON, watch).await.unwrap(), DownReason::NodeDown);
    fo.stop().await;
}

#[tokio::test]
async fn a_bulk_body_arrives_whole_beside_its_message() {
    let (bo, fo) = pair().await;
    let tester = fo.context().at::<Test>("tester@bo").pinned(SOON).await.unwrap();
    let (body, mut writer) = tester.bulk(SOON).await.unwrap();
    let write = async {
        for _ in 0..200 {
            writer.write(Bytes::from(vec![7; 64 * 1024])).await.unwrap();
        }
        writer.finish().await.unwrap();
    };
    let (size, ()) = tokio::join!(tester.call(Take { body }, SOON), write);
    assert_eq!(size, Ok(200 * 64 * 1024));
    fo.stop().await;
    bo.stop().await;
}

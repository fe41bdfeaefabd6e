//! The replica as other actors see it: on a node of its own, fed through its service.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use horos_supervision::{Context, Exchange, Ref, Supervisor, SupervisorHandle};
use horos_wire::{
    Bytes, CallError, Incarnation, NodeId,
    protocol::sync::{self, Apply, HaveAsk, Position, Replica as Protocol, ReplicaAsk, ReplicaError, ReplicaState, Rollback, Stream},
};
use parking_lot::Mutex;

use super::*;
use crate::apply::{
    position,
    tests::world::{Bo, files},
};

const LIMIT: Duration = Duration::from_secs(20);

fn soon() -> Instant {
    Instant::now() + LIMIT
}

/// A node with a replica; whoever calls on it is `bo-1`, its source.
struct World {
    dir: Arc<tempfile::TempDir>,
    replica: Replica,
    exchange: Exchange,
    supervisor: SupervisorHandle,
    conditions: Arc<Mutex<Vec<Option<String>>>>,
}

impl World {
    async fn new(from: &str) -> World {
        let world = World::over(from, Arc::new(tempfile::tempdir().unwrap())).await;
        until(|| world.replica.0.view.lock().opened).await;
        world
    }

    async fn over(from: &str, dir: Arc<tempfile::TempDir>) -> World {
        let exchange = Exchange::new(NodeId::from_uri("spiffe://shop/bo/bo-1").unwrap(), Incarnation(1));
        let mut config = ReplicaConfig::new("shop", dir.path().join("public.db"), Origin::Node(from.parse().unwrap()));
        config.stall = Duration::from_millis(300);
        let conditions: Arc<Mutex<Vec<Option<String>>>> = Arc::default();
        let said = conditions.clone();
        let replica = Replica::new(config, Arc::new(move |_, text| said.lock().push(text.map(str::to_owned))));
        let spec = replica.supervisor(&exchange, &tokio::runtime::Handle::current()).unwrap();
        let supervisor = Supervisor::start(spec, None).await.unwrap();
        World { dir, replica, exchange, supervisor, conditions }
    }

    fn service(&self) -> Ref<Protocol> {
        Context::new(self.exchange.clone(), "feed").at("horos.replica.shop@bo-1")
    }

    async fn apply(&self, stream: Vec<u8>) -> Result<sync::Applied, ReplicaError> {
        let apply = Apply { bytes: Some(stream.len() as u64), stream: Stream::Inline(stream) };
        failed(self.service().call(apply, LIMIT).await)
    }

    /// As a body of 10 kB pieces, of which so many come.
    async fn send(&self, stream: &[u8], pieces: usize, end: bool, announced: Option<u64>) -> Result<sync::Applied, ReplicaError> {
        let service = self.service();
        let (bulk, mut writer) = service.bulk(LIMIT).await.unwrap();
        let call = service.call(Apply { stream: Stream::Body(bulk), bytes: announced }, LIMIT);
        let write = async {
            for piece in stream.chunks(10_000).take(pieces) {
                if writer.write(Bytes::copy_from_slice(piece)).await.is_err() {
                    return None;
                }
            }
            if end {
                let _ = writer.finish().await;
                return None;
            }
            Some(writer)
        };
        let (outcome, _unfinished) = tokio::join!(call, write);
        failed(outcome)
    }

    async fn count(&self) -> i64 {
        let count = |file: &rusqlite::Connection| file.query_row("SELECT count(*) FROM item", [], |row| row.get(0));
        self.replica.read(soon(), count).await.unwrap()
    }

    async fn stop(self) -> Arc<tempfile::TempDir> {
        self.supervisor.stop().await;
        self.dir
    }
}

fn failed<T>(outcome: Result<T, CallError<ReplicaError>>) -> Result<T, ReplicaError> {
    outcome.map_err(|error| match error {
        CallError::Failed(error) => error,
        other => panic!("{other}"),
    })
}

async fn until(mut true_at_last: impl FnMut() -> bool) {
    let begun = Instant::now();
    let mut looks = tokio::time::interval(Duration::from_millis(2));
    while !true_at_last() {
        assert!(begun.elapsed() < LIMIT, "it never came");
        looks.tick().await;
    }
}

fn delta(bo: &Bo, world: &World) -> Vec<u8> {
    let state = world.replica.0.view.lock().state.clone().unwrap();
    bo.delta_from(&state)
}

#[tokio::test]
async fn what_is_pushed_is_read_waited_for_and_told() {
    let bo = Bo::filled(40);
    let world = World::new("bo-1").await;
    let replica = &world.replica;
    let none = replica.read(soon(), |_| Ok::<_, rusqlite::Error>(())).await;
    assert!(matches!(none, Err(ReplicaReadError::NoSnapshot)), "{none:?}");
    assert_eq!(replica.wait_for(&position(&bo.head()), soon()).await, Err(WaitError::NoSnapshot));
    assert_eq!(replica.status().state, ReplicaState::Empty);
    let mut changes = replica.changes();

    let first = world.apply(bo.snapshot()).await.unwrap().position;
    assert_eq!((replica.position(), first), (Some(first), position(&bo.head())));
    assert_eq!(changes.next().await, Changed { position: Some(first), tables: Tables::All });
    assert_eq!(world.count().await, 40);
    let status = replica.status();
    assert_eq!((status.state, status.snapshots, status.tables.len()), (ReplicaState::Live, 1, 3));
    assert!(status.stale_ms.unwrap() < 20_000);

    bo.run("DELETE FROM item WHERE id < 10");
    let next = position(&bo.head());
    let wait = replica.wait_for(&next, soon());
    let push = world.apply(delta(&bo, &world));
    let (waited, applied) = tokio::join!(wait, push);
    assert_eq!((waited, applied.unwrap().position), (Ok(()), next));
    assert_eq!(world.count().await, 30);
    assert_eq!(changes.next().await, Changed { position: Some(next), tables: Tables::These(["item".to_owned()].as_slice().into()) });
    assert_eq!(replica.metrics().deltas, 1);

    // After a restart of the node it is there at once, and knows where it is.
    let dir = world.stop().await;
    let world = World::over("bo-1", dir).await;
    until(|| world.replica.position() == Some(next)).await;
    assert_eq!(world.count().await, 30);
    world.stop().await;
}

#[tokio::test]
async fn waits_end_for_every_reason_that_they_name() {
    let bo = Bo::filled(5);
    let world = World::new("bo-1").await;
    let at = world.apply(bo.snapshot()).await.unwrap().position;
    let replica = &world.replica;
    assert_eq!(replica.wait_for(&at, soon()).await, Ok(()));
    assert_eq!(replica.wait_for(&Position { seq: at.seq - 1, stamp: 7, ..at }, soon()).await, Ok(()), "earlier is here");
    assert_eq!(replica.wait_for(&Position { stamp: at.stamp ^ 1, ..at }, soon()).await, Err(WaitError::OtherEpoch));
    assert_eq!(replica.wait_for(&Position { epoch: sync::Epoch(1), ..at }, soon()).await, Err(WaitError::OtherEpoch));
    let later = Position { seq: at.seq + 1_000, ..at };
    let begun = Instant::now();
    assert_eq!(replica.wait_for(&later, begun + Duration::from_millis(30)).await, Err(WaitError::TimedOut));
    assert!(begun.elapsed() >= Duration::from_millis(30));
    assert_eq!(replica.metrics().waiting, 0, "who gave up is forgotten");

    let waits: Vec<_> = (0..MAX_WAITERS)
        .map(|_| {
            let replica = replica.clone();
            tokio::spawn(async move { replica.wait_for(&later, soon()).await })
        })
        .collect();
    until(|| replica.metrics().waiting == MAX_WAITERS as u64).await;
    assert_eq!(replica.wait_for(&later, soon()).await, Err(WaitError::Crowded));
    // Another log altogether: nobody can be answered any more.
    world.apply(Bo::filled(3).snapshot()).await.unwrap();
    for wait in waits {
        assert_eq!(wait.await.unwrap(), Err(WaitError::OtherEpoch));
    }
    world.stop().await;
}

#[tokio::test]
async fn nobody_but_the_source_feeds_it_or_learns_what_it_has() {
    let bo = Bo::filled(5);
    let world = World::new("bo-2").await;
    assert_eq!(world.apply(bo.snapshot()).await, Err(ReplicaError::NotMySource));
    let have = world.service().call(HaveAsk { from: None }, LIMIT).await;
    assert_eq!(failed(have), Err(ReplicaError::NotMySource));
    let status = failed(world.service().call(ReplicaAsk {}, LIMIT).await).unwrap();
    assert_eq!((status.state, status.source.as_ref().map(|it| it.as_str())), (ReplicaState::Empty, Some("bo-2")));
    assert!(!files(world.dir.path()).iter().any(|name| name.contains("incoming")));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_lies_stalls_or_breaks_off_changes_nothing_and_the_next_is_taken() {
    let bo = Bo::filled(3_000);
    let world = World::new("bo-1").await;
    let stream = bo.snapshot();
    let size = stream.len() as u64;
    assert!(size > 30_000);
    for (pieces, end, announced, why) in [
        (usize::MAX, true, Some(size - 1), "longer than announced"),
        (usize::MAX, true, Some(size + 1), "shorter than announced"),
        (2, true, None, "ended too soon"),
        (2, false, None, "stalled"),
    ] {
        let refused = world.send(&stream, pieces, end, announced).await;
        assert!(matches!(refused, Err(ReplicaError::Corrupt(_))), "{why}: {refused:?}");
        assert_eq!(world.replica.position(), None, "{why}");
    }
    let lie = Apply { bytes: Some(3), stream: Stream::Inline(vec![1; 9]) };
    assert!(matches!(failed(world.service().call(lie, LIMIT).await), Err(ReplicaError::Malformed(_))));
    world.send(&stream, usize::MAX, true, Some(size)).await.unwrap();
    assert_eq!(world.count().await, 3_000);
    assert_eq!(world.replica.status().last_error, None);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn how_it_is_is_told_while_a_snapshot_comes_and_a_delta_cannot_overtake_it() {
    let bo = Bo::filled(3_000);
    let world = World::new("bo-1").await;
    let stream = bo.snapshot();
    let service = world.service();
    let (bulk, mut writer) = service.bulk(LIMIT).await.unwrap();
    let call = service.call(Apply { stream: Stream::Body(bulk), bytes: None }, LIMIT);
    let rest = async {
        let (first, last) = stream.split_at(stream.len() / 2);
        for piece in first.chunks(5_000) {
            writer.write(Bytes::copy_from_slice(piece)).await.unwrap();
        }
        until(|| matches!(world.replica.status().state, ReplicaState::Receiving { bytes, .. } if bytes > 0)).await;
        let status = failed(world.service().call(ReplicaAsk {}, LIMIT).await).unwrap();
        assert!(matches!(status.state, ReplicaState::Receiving { .. }), "{:?}", status.state);
        writer.write(Bytes::copy_from_slice(last)).await.unwrap();
        writer.finish().await.unwrap();
    };
    let (applied, ()) = tokio::join!(call, rest);
    assert_eq!(failed(applied).unwrap().position, position(&bo.head()));
    assert_eq!(world.replica.status().state, ReplicaState::Live);
    world.stop().await;
}

#[tokio::test]
async fn a_roll_back_is_told_and_ends_with_a_snapshot() {
    let bo = Bo::filled(10);
    let world = World::new("bo-1").await;
    world.apply(bo.snapshot()).await.unwrap();
    bo.run("UPDATE item SET name = 'oops'");
    world.apply(bo.snapshot()).await.unwrap();
    let mut changes = world.replica.changes();
    failed(world.service().call(Rollback {}, LIMIT).await).unwrap();
    assert_eq!(changes.next().await, Changed { position: None, tables: Tables::All });
    assert_eq!(world.replica.position(), None);
    assert_eq!(world.replica.status().state, ReplicaState::Pinned);
    assert_eq!(world.apply(bo.snapshot()).await, Err(ReplicaError::Pinned));
    world.replica.resume().await.unwrap();
    assert_eq!(world.replica.status().state, ReplicaState::Broken);
    world.apply(bo.snapshot()).await.unwrap();
    assert_eq!(world.replica.status().state, ReplicaState::Live);
    world.stop().await;
}

#[tokio::test]
async fn whoever_does_not_keep_up_with_changes_is_told_that_everything_changed() {
    let bo = Bo::filled(5);
    let world = World::new("bo-1").await;
    world.apply(bo.snapshot()).await.unwrap();
    let mut changes = world.replica.changes();
    for round in 0..100 {
        bo.run(&format!("UPDATE item SET price = {round} WHERE id = 1"));
        world.apply(delta(&bo, &world)).await.unwrap();
    }
    assert_eq!(changes.next().await, Changed { position: world.replica.position(), tables: Tables::All });
    world.stop().await;
}

#[tokio::test]
async fn a_source_that_is_away_and_files_that_are_another_s_are_said() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    rusqlite::Connection::open(dir.path().join("public.db")).unwrap().execute_batch("CREATE TABLE precious (a)").unwrap();
    let world = World::over("bo-1", dir).await;
    until(|| world.conditions.lock().iter().flatten().any(|text| text.contains("another database"))).await;
    let text = world.conditions.lock().iter().flatten().next().unwrap().clone();
    assert!(!text.contains("/"), "{text}");
    world.stop().await;
}

//! An actor that answers many at once: who waits for whom, and what becomes of what nobody waits for.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use futures_util::future::BoxFuture;
use horos_supervision::{
    Backoff, Concurrent, Context, Exchange, Places, Strategy, Supervisor, SupervisorHandle, SupervisorSpec,
    concurrent::{answer, concurrent},
    mailbox::Post,
};
use horos_wire::{CallError, Incarnation, Never, NoEffect, NodeId, Unknown, protocol};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::{
    sync::{Notify, Semaphore},
    task::JoinHandle,
};

use super::LONG;

/// Waits until the test lets it go on, or answers at once.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Ask {
    /// Whether to wait.
    hold: bool,
}

protocol! {
    Counter = "counter" v1 {
        1 ask: Ask => u32;
    }
}

/// What the test and the actor share.
struct Room {
    /// A permit lets one call that holds go on.
    gate: Semaphore,
    held: AtomicU32,
    changed: Notify,
}

impl Room {
    /// Resolves when so many calls are held.
    async fn holds(&self, count: u32) {
        loop {
            let mut changed = pin!(self.changed.notified());
            changed.as_mut().enable();
            if self.held.load(Ordering::SeqCst) == count {
                return;
            }
            changed.await;
        }
    }
}

/// One call that is held, until it is dropped.
struct Held(Arc<Room>);

impl Held {
    fn new(room: Arc<Room>) -> Self {
        room.held.fetch_add(1, Ordering::SeqCst);
        room.changed.notify_waiters();
        Self(room)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.held.fetch_sub(1, Ordering::SeqCst);
        self.0.changed.notify_waiters();
    }
}

struct Clerk(Arc<Room>);

impl Concurrent for Clerk {
    type Protocol = Counter;

    fn answer(self: Arc<Self>, post: Box<Post>) -> BoxFuture<'static, ()> {
        Box::pin(answer(post, async move |ask: Ask, _| {
            if ask.hold {
                let _held = Held::new(self.0.clone());
                self.0.gate.acquire().await.expect("the gate is never closed").forget();
            }
            Ok::<_, CallError<Never>>(self.0.held.load(Ordering::SeqCst))
        }))
    }
}

struct Office {
    room: Arc<Room>,
    context: Context,
    root: SupervisorHandle,
}

impl Office {
    async fn open(places: Places) -> Self {
        let exchange = Exchange::new(NodeId::from_uri("spiffe://shop/bo/bo-1").unwrap(), Incarnation(1));
        let room = Arc::new(Room { gate: Semaphore::new(0), held: AtomicU32::new(0), changed: Notify::new() });
        let child = concurrent(&exchange, "counter", places, Clerk(room.clone())).unwrap();
        let spec = SupervisorSpec::new("root", Strategy::OneForOne, vec![child]).intensity(100, LONG).backoff(Backoff::NONE);
        Self { room, context: Context::new(exchange, "test"), root: Supervisor::start(spec, None).await.unwrap() }
    }

    fn ask(&self, hold: bool) -> JoinHandle<Result<Value, CallError<Value>>> {
        let context = self.context.clone();
        tokio::spawn(async move { context.call_json("counter", &json!({ "ask": { "hold": hold } }).to_string(), LONG).await })
    }
}

#[tokio::test]
async fn a_call_that_takes_long_keeps_nobody_waiting() {
    let office = Office::open(Places { at_once: 2, per_node: 4 }).await;
    let slow = office.ask(true);
    office.room.holds(1).await;
    for _ in 0..10 {
        assert_eq!(office.ask(false).await.unwrap(), Ok(json!(1)));
    }
    office.room.gate.add_permits(1);
    assert!(slow.await.unwrap().is_ok());
}

#[tokio::test]
async fn beyond_its_places_a_node_is_refused_without_effect_and_what_waits_is_served_after() {
    let office = Office::open(Places { at_once: 2, per_node: 3 }).await;
    let begun = [office.ask(true), office.ask(true)];
    office.room.holds(2).await;
    let waits = office.ask(false);
    // Tasks run in their order: it has taken its place when the next finds none.
    let refused = office.ask(false).await.unwrap();
    assert!(matches!(&refused, Err(CallError::NoEffect(NoEffect::Overloaded(name))) if **name == *"counter"), "{refused:?}");
    assert!(!waits.is_finished());
    office.room.gate.add_permits(2);
    assert!(waits.await.unwrap().is_ok());
    for call in begun {
        assert!(call.await.unwrap().is_ok());
    }
    // Every place was given back.
    assert_eq!(office.ask(false).await.unwrap(), Ok(json!(0)));
}

#[tokio::test]
async fn what_its_caller_gave_up_is_dropped_and_its_place_is_free() {
    let office = Office::open(Places { at_once: 1, per_node: 1 }).await;
    let given_up = office.ask(true);
    office.room.holds(1).await;
    given_up.abort();
    office.room.holds(0).await;
    loop {
        match office.ask(false).await.unwrap() {
            Ok(held) => break assert_eq!(held, 0),
            // The task that was dropped is about to give its place back.
            Err(CallError::NoEffect(NoEffect::Overloaded(_))) => tokio::task::yield_now().await,
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn an_actor_that_dies_leaves_the_outcome_of_what_was_begun_unknown_and_serves_the_rest_in_its_next_life() {
    let office = Office::open(Places { at_once: 1, per_node: 2 }).await;
    let begun = office.ask(true);
    office.room.holds(1).await;
    let waits = office.ask(false);
    office.root.crash_child("counter").await.unwrap();
    assert_eq!(begun.await.unwrap(), Err(CallError::Unknown(Unknown::ActorDied)));
    assert_eq!(waits.await.unwrap(), Ok(json!(0)));
}

#[tokio::test]
async fn a_typed_message_of_its_own_node_is_refused_with_what_to_do() {
    let office = Office::open(Places { at_once: 1, per_node: 1 }).await;
    let refused = office.context.at::<Counter>("counter").call(Ask { hold: false }, Duration::from_secs(20)).await;
    assert!(matches!(&refused, Err(CallError::NoEffect(NoEffect::VersionNotSpoken(why))) if why.contains("in JSON")), "{refused:?}");
}

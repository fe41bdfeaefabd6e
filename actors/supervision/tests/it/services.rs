//! Services of one node and the references to them: room, order, deadlines, hops, and what a caller is told.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use horos_supervision::{
    Backoff, Context, Exchange, Handle, OpenError, Service, ServiceSpec, Strategy, Supervisor, SupervisorHandle, SupervisorSpec, service,
};
use horos_wire::{CallError, Incarnation, Never, NoEffect, NodeId, Unknown, context::MAX_HOPS, protocol, tree::State};
use parking_lot::Mutex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::{sync::Semaphore, task::JoinHandle};

use super::{LONG, until};

/// Writes a number down.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Note {
    number: u64,
}
/// Waits until the test lets it go on.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Hold {}
/// Kills the actor.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Fall {}
/// How many milliseconds of the caller's deadline are left.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Left {}
/// Asks the other the same with a deadline of an hour.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct AskLeft {}
/// Passes itself on to the other.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct PassOn {}

protocol! {
    Desk = "desk" v1 {
        1 note: Note => ();
        2 hold: Hold => ();
        3 fall: Fall => ();
        4 left: Left => u64;
        5 ask_left: AskLeft => u64;
        6 pass_on: PassOn => ();
    }
}

/// What the desks of a test share.
struct Room {
    notes: Mutex<Vec<u64>>,
    /// A permit lets one [`Hold`] go on.
    gate: Semaphore,
    /// A permit lets one life begin.
    door: Semaphore,
    /// How passing on ended.
    passed: Mutex<Option<(u8, NoEffect)>>,
}

struct Clerk {
    room: Arc<Room>,
    other: &'static str,
}

impl Service for Clerk {
    type Protocol = Desk;
}
impl Handle<Note> for Clerk {
    async fn handle(&mut self, note: Note, _: &Context) -> Result<(), Never> {
        self.room.notes.lock().push(note.number);
        Ok(())
    }
}
impl Handle<Hold> for Clerk {
    async fn handle(&mut self, _: Hold, _: &Context) -> Result<(), Never> {
        self.room.gate.acquire().await.expect("the gate is never closed").forget();
        Ok(())
    }
}
impl Handle<Fall> for Clerk {
    async fn handle(&mut self, _: Fall, _: &Context) -> Result<(), Never> {
        panic!("asked to")
    }
}
impl Handle<Left> for Clerk {
    async fn handle(&mut self, _: Left, cx: &Context) -> Result<u64, Never> {
        Ok(cx.remaining().map_or(u64::MAX, |left| left.as_millis() as u64))
    }
}
impl Handle<AskLeft> for Clerk {
    async fn handle(&mut self, _: AskLeft, cx: &Context) -> Result<u64, Never> {
        Ok(cx.at::<Desk>(self.other).call(Left {}, LONG).await.unwrap())
    }
}
impl Handle<PassOn> for Clerk {
    async fn handle(&mut self, ask: PassOn, cx: &Context) -> Result<(), Never> {
        if let Err(why) = cx.at::<Desk>(self.other).cast(ask, LONG).await {
            *self.room.passed.lock() = Some((cx.call().hops, why));
        }
        Ok(())
    }
}

/// Two desks on a node, `one` with room for `capacity` messages.
struct Office {
    room: Arc<Room>,
    root: SupervisorHandle,
    context: Context,
}

impl Office {
    async fn open(capacity: usize) -> Self {
        let exchange = Exchange::new(NodeId::from_uri("spiffe://shop/bo/bo-1").unwrap(), Incarnation(1));
        let room = Arc::new(Room { notes: Mutex::default(), gate: Semaphore::new(0), door: Semaphore::new(2), passed: Mutex::default() });
        let mut children = Vec::new();
        for (name, other) in [("one", "two"), ("two", "one")] {
            let (spec, room) = (ServiceSpec { capacity, ..ServiceSpec::new(name.parse().unwrap()) }, room.clone());
            let open = move |_| {
                let room = room.clone();
                async move {
                    room.door.acquire().await?.forget();
                    Ok::<_, OpenError>(Clerk { room, other })
                }
            };
            children.push(service(&exchange, &tokio::runtime::Handle::current(), spec, open).unwrap());
        }
        let spec = SupervisorSpec::new("root", Strategy::OneForOne, children).intensity(100, LONG).backoff(Backoff::NONE);
        let root = Supervisor::start(spec, None).await.unwrap();
        Self { room, root, context: Context::new(exchange, "test") }
    }

    /// The first desk has a [`Hold`] in hand; resolves with how that ended.
    async fn held(&self) -> JoinHandle<Result<(), CallError<Never>>> {
        let one = self.context.at::<Desk>("one");
        let hold = tokio::spawn(async move { one.call(Hold {}, LONG).await });
        let vitals = self.root.find("one").unwrap();
        until("the hold", || vitals.snapshot().busy_with.map(drop).ok_or_else(|| "idle".into())).await;
        hold
    }

    async fn waiting(&self, messages: u32) {
        let vitals = self.root.find("one").unwrap();
        until("the mailbox", || match vitals.snapshot().mailbox {
            now if now == messages => Ok(()),
            now => Err(format!("{now} of {messages} wait")),
        })
        .await;
    }

    fn refused(&self) -> u64 {
        self.root.find("one").unwrap().snapshot().refused
    }
}

#[tokio::test]
async fn a_cast_waits_for_room_in_a_full_mailbox_and_keeps_its_place() {
    let office = Office::open(4).await;
    let hold = office.held().await;
    let one = office.context.at::<Desk>("one");
    let sender = tokio::spawn(async move {
        for number in 0..40 {
            one.cast(Note { number }, LONG).await?;
        }
        Ok::<_, NoEffect>(())
    });
    office.waiting(4).await;
    // A call is refused where a cast waits.
    let call = office.context.at::<Desk>("one").call(Note { number: 99 }, LONG).await;
    assert!(matches!(call, Err(CallError::NoEffect(NoEffect::Overloaded(_)))), "{call:?}");
    assert!(!sender.is_finished(), "the fifth waits");
    office.room.gate.add_permits(1);
    assert_eq!((sender.await.unwrap(), hold.await.unwrap()), (Ok(()), Ok(())));
    // Behind all of them.
    office.waiting(0).await;
    office.context.at::<Desk>("one").call(Left {}, LONG).await.unwrap();
    assert_eq!(*office.room.notes.lock(), (0..40).collect::<Vec<_>>());
    assert_eq!(office.refused(), 1, "waiting is not being refused");
    office.root.stop().await;
}

#[tokio::test]
async fn a_cast_without_room_by_its_deadline_is_overloaded_and_takes_no_effect_later() {
    let office = Office::open(1).await;
    let hold = office.held().await;
    let one = office.context.at::<Desk>("one");
    one.cast(Note { number: 1 }, LONG).await.unwrap();
    let wait = Duration::from_millis(20);
    let began = Instant::now();
    let typed = one.cast(Note { number: 2 }, wait).await;
    let json = office.context.cast_json("one", r#"{"note": {"number": 3}}"#, wait).await;
    assert!(began.elapsed() >= 2 * wait, "refused after {:?}", began.elapsed());
    for refused in [typed, json] {
        assert!(matches!(refused, Err(NoEffect::Overloaded(_))), "{refused:?}");
    }
    office.room.gate.add_permits(1);
    hold.await.unwrap().unwrap();
    office.waiting(0).await;
    office.context.at::<Desk>("one").call(Left {}, LONG).await.unwrap();
    assert_eq!((*office.room.notes.lock()).clone(), [1]);
    assert_eq!(office.refused(), 2);
    office.root.stop().await;
}

#[tokio::test]
async fn a_cast_that_waits_when_the_actor_dies_reaches_its_next_life() {
    let office = Office::open(1).await;
    let hold = office.held().await;
    let one = office.context.at::<Desk>("one");
    let queued = {
        let one = one.clone();
        tokio::spawn(async move { one.call(Note { number: 1 }, LONG).await })
    };
    office.waiting(1).await;
    let waits = tokio::spawn(async move { one.cast(Note { number: 2 }, LONG).await });
    tokio::task::yield_now().await;
    assert!(!waits.is_finished());
    office.room.door.add_permits(1);
    office.root.crash_child("one").await.unwrap();
    assert_eq!(hold.await.unwrap(), Err(CallError::Unknown(Unknown::ActorDied)));
    assert_eq!(queued.await.unwrap(), Err(CallError::NoEffect(NoEffect::ActorDied)));
    assert_eq!(waits.await.unwrap(), Ok(()));
    office.context.at::<Desk>("one").call(Left {}, LONG).await.unwrap();
    assert_eq!((*office.room.notes.lock()).clone(), [2]);
    office.root.stop().await;
}

#[tokio::test]
async fn a_panic_ends_its_call_as_unknown_and_what_waited_behind_it_without_effect() {
    let office = Office::open(16).await;
    let hold = office.held().await;
    let one = office.context.at::<Desk>("one");
    let fall = {
        let one = one.clone();
        tokio::spawn(async move { one.call(Fall {}, LONG).await })
    };
    office.waiting(1).await;
    let mut behind = Vec::new();
    for number in 0..5 {
        let (one, context) = (one.clone(), office.context.clone());
        behind.push(tokio::spawn(async move {
            // What dies is told alike to callers that know its types and to those that speak JSON.
            if number % 2 == 0 {
                one.call(Note { number }, LONG).await.map_err(|error| error.to_string())
            } else {
                let message = format!(r#"{{"note": {{"number": {number}}}}}"#);
                context.call_json("one", &message, LONG).await.map(drop).map_err(|error| error.to_string())
            }
        }));
        office.waiting(2 + number as u32).await;
    }
    office.room.door.add_permits(1);
    office.room.gate.add_permits(1);
    hold.await.unwrap().unwrap();
    assert_eq!(fall.await.unwrap(), Err(CallError::Unknown(Unknown::ActorDied)));
    let died = CallError::<Never>::NoEffect(NoEffect::ActorDied).to_string();
    for call in behind {
        assert_eq!(call.await.unwrap(), Err(died.clone()));
    }
    assert_eq!(*office.room.notes.lock(), Vec::<u64>::new());
    one.call(Note { number: 7 }, LONG).await.unwrap();
    assert_eq!((*office.room.notes.lock()).clone(), [7]);
    office.root.stop().await;
}

#[tokio::test]
async fn what_is_sent_between_two_lives_is_served_by_the_second() {
    let office = Office::open(16).await;
    office.root.crash_child("one").await.unwrap();
    let vitals = office.root.find("one").unwrap();
    until("the death", || if vitals.state() == State::Restarting { Ok(()) } else { Err(format!("{:?}", vitals.state())) }).await;
    let one = office.context.at::<Desk>("one");
    let call = {
        let one = one.clone();
        tokio::spawn(async move { one.call(Left {}, LONG).await })
    };
    office.waiting(1).await;
    one.cast(Note { number: 1 }, LONG).await.unwrap();
    assert!(!call.is_finished() && vitals.lives() == 1);
    office.room.door.add_permits(1);
    call.await.unwrap().unwrap();
    one.call(Left {}, LONG).await.unwrap();
    assert_eq!(((*office.room.notes.lock()).clone(), vitals.lives()), (vec![1], 2));
    office.root.stop().await;
}

#[tokio::test]
async fn nobody_works_for_a_caller_who_has_given_up() {
    let office = Office::open(16).await;
    let hold = office.held().await;
    let one = office.context.at::<Desk>("one");
    let late = one.call(Note { number: 1 }, Duration::from_millis(20)).await;
    assert_eq!(late, Err(CallError::Unknown(Unknown::DeadlinePassed)));
    let json = office.context.call_json("one", r#"{"note": {"number": 2}}"#, Duration::from_millis(20)).await;
    assert_eq!(json, Err(CallError::Unknown(Unknown::DeadlinePassed)));
    // A cast is a message with a deadline, too.
    one.cast(Note { number: 3 }, Duration::from_millis(20)).await.unwrap();
    let gone = {
        let one = one.clone();
        tokio::spawn(async move { one.call(Note { number: 4 }, LONG).await })
    };
    office.waiting(4).await;
    gone.abort();
    let over = Instant::now() + Duration::from_millis(20);
    until("the cast's deadline", || if Instant::now() > over { Ok(()) } else { Err("to come".into()) }).await;
    office.room.gate.add_permits(1);
    hold.await.unwrap().unwrap();
    one.call(Left {}, LONG).await.unwrap();
    assert_eq!(*office.room.notes.lock(), Vec::<u64>::new());
    // One that is over before it is sent is not sent.
    let past = one.call(Note { number: 5 }, Instant::now()).await;
    assert_eq!(past, Err(CallError::NoEffect(NoEffect::Expired)));
    office.root.stop().await;
}

#[tokio::test]
async fn what_a_handler_calls_in_turn_gets_what_is_left_of_its_caller() {
    let office = Office::open(16).await;
    let left = office.context.at::<Desk>("one").call(AskLeft {}, Duration::from_secs(60)).await.unwrap();
    assert!(left <= 60_000, "{left} ms of a minute");
    let json = office.context.call_json("one", r#"{"ask_left": {}}"#, Duration::from_secs(60)).await.unwrap();
    assert!(json.as_u64().unwrap() <= 60_000, "{json}");
    office.root.stop().await;
}

#[tokio::test]
async fn a_message_that_two_actors_pass_to_each_other_ends() {
    let office = Office::open(16).await;
    office.context.at::<Desk>("one").cast(PassOn {}, LONG).await.unwrap();
    let end = until("the last hop", || office.room.passed.lock().clone().ok_or_else(|| "under way".into())).await;
    assert_eq!(end, (MAX_HOPS, NoEffect::TooManyHops));
    office.root.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ordered_restart_under_load_refuses_nobody() {
    let office = Office::open(1024).await;
    office.room.door.add_permits(1_000);
    let over = Arc::new(AtomicBool::new(false));
    let mut callers = tokio::task::JoinSet::new();
    for number in 0..8 {
        let (one, over) = (office.context.at::<Desk>("one"), over.clone());
        callers.spawn(async move {
            let mut made = 0;
            while !over.load(Ordering::Relaxed) {
                one.call(Note { number }, LONG).await?;
                made += 1;
            }
            Ok::<_, CallError<Never>>(made)
        });
    }
    for _ in 0..200 {
        office.root.restart_child("one").await.unwrap();
    }
    over.store(true, Ordering::Relaxed);
    let mut made = 0;
    while let Some(caller) = callers.join_next().await {
        made += caller.unwrap().unwrap();
    }
    assert_eq!(office.room.notes.lock().len(), made, "each was handled, and once");
    assert_eq!((office.refused(), office.root.find("one").unwrap().lives()), (0, 201));
    office.root.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_calls_while_the_last_life_ends_is_told_and_waits_for_no_deadline() {
    for _ in 0..40 {
        let office = Office::open(64).await;
        let mut callers = tokio::task::JoinSet::new();
        for number in 0..8 {
            let one = office.context.at::<Desk>("one");
            callers.spawn(async move {
                loop {
                    // Calls and casts alike, until there is nobody any more.
                    one.cast(Note { number }, LONG).await?;
                    match one.call(Note { number }, LONG).await {
                        Ok(()) => {}
                        Err(CallError::NoEffect(why)) => return Err::<(), _>(why),
                        Err(other) => panic!("{other:?}"),
                    }
                }
            });
        }
        until("some were served", || if office.room.notes.lock().len() > 50 { Ok(()) } else { Err("few".into()) }).await;
        office.root.remove_child("one").await.unwrap();
        let told = async {
            while let Some(caller) = callers.join_next().await {
                let why = caller.unwrap().unwrap_err();
                assert!(matches!(why, NoEffect::ActorDied | NoEffect::NoSuchActor(_)), "{why:?}");
            }
        };
        tokio::time::timeout(super::SOON, told).await.expect("nobody waits for an hour");
        office.root.stop().await;
    }
}

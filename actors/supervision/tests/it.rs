//! Supervisors with real actors, one test per promise.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "in a test a panic is the report, and seeds are printed")]

#[path = "it/concurrent.rs"]
mod concurrent;
#[path = "it/services.rs"]
mod services;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU32, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use horos_supervision::{
    Backoff, ChildSpec, Incoming, OnStuck, Restart, StartError, Strategy, Supervisor, SupervisorHandle, SupervisorSpec, Vitals,
    supervisor::{Ended, OrderError},
};
use horos_wire::{
    TraceId,
    control::DownReason,
    tree::{Kind, Outcome, State},
};
use parking_lot::Mutex;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};

const SOON: Duration = Duration::from_secs(20);
const LONG: Duration = Duration::from_secs(3600);

/// What a test's actors share: who lives, and what happened in which order.
#[derive(Default)]
struct World {
    alive: AtomicI64,
    log: Mutex<Vec<String>>,
    actors: Mutex<HashMap<String, ActorRef<Do>>>,
    per_name: Mutex<HashMap<String, u32>>,
    /// The next starts that fail.
    refuse_starts: AtomicU32,
}

impl World {
    fn tell(&self, name: &str, what: Do) {
        let actor = self.actors.lock()[name].clone();
        let _ = actor.cast(what);
    }

    fn id(&self, name: &str) -> ractor::ActorId {
        self.actors.lock()[name].get_id()
    }

    fn take_log(&self) -> Vec<String> {
        std::mem::take(&mut *self.log.lock())
    }
}

#[derive(Debug)]
enum Do {
    Panic,
    Fail,
    Stop,
    /// Awaits what never comes.
    Hang,
    /// Holds its thread until the flag is set.
    Block(Arc<std::sync::atomic::AtomicBool>),
}

struct Worker;

struct Alive {
    world: Arc<World>,
    vitals: Arc<Vitals>,
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.world.log.lock().push(format!("-{}", self.vitals.name()));
        *self.world.per_name.lock().get_mut(self.vitals.name()).unwrap() -= 1;
        self.world.alive.fetch_sub(1, SeqCst);
    }
}

impl Actor for Worker {
    type Msg = Do;
    type Arguments = (Arc<World>, Arc<Vitals>);
    type State = Alive;

    async fn pre_start(&self, me: ActorRef<Do>, (world, vitals): Self::Arguments) -> Result<Alive, ActorProcessingErr> {
        if world.refuse_starts.try_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok() {
            return Err("not today".into());
        }
        let name = vitals.name().to_owned();
        world.log.lock().push(format!("+{name}"));
        world.alive.fetch_add(1, SeqCst);
        let lives = {
            let mut per_name = world.per_name.lock();
            let lives = per_name.entry(name.clone()).or_default();
            *lives += 1;
            *lives
        };
        assert_eq!(lives, 1, "two lives of {name} at once");
        world.actors.lock().insert(name, me);
        Ok(Alive { world, vitals })
    }

    async fn handle(&self, me: ActorRef<Do>, what: Do, state: &mut Alive) -> Result<(), ActorProcessingErr> {
        let method = match what {
            Do::Panic => "Panic",
            Do::Fail => "Fail",
            Do::Stop => "Stop",
            Do::Hang => "Hang",
            Do::Block(_) => "Block",
        };
        let message = Incoming { method, sender: &"test".into(), size: 0, trace: TraceId(1), waited: Duration::ZERO };
        state.vitals.begin(Instant::now(), message);
        match what {
            Do::Panic => panic!("ouch"),
            Do::Fail => return Err("broken".into()),
            Do::Stop => me.stop(None),
            Do::Hang => std::future::pending().await,
            Do::Block(until) => {
                while !until.load(SeqCst) {
                    std::hint::spin_loop();
                }
            }
        }
        state.vitals.end(Instant::now(), Outcome::Done);
        Ok(())
    }
}

fn child_stuck_after(world: &Arc<World>, name: &str, stuck_after: Duration) -> ChildSpec {
    let world = Arc::clone(world);
    ChildSpec::actor(Vitals::new(name, Kind::Worker, stuck_after), None, move |start| {
        (Worker, (Arc::clone(&world), Arc::clone(&start.vitals)))
    })
}

fn child(world: &Arc<World>, name: &str) -> ChildSpec {
    child_stuck_after(world, name, LONG)
}

fn spec(strategy: Strategy, children: Vec<ChildSpec>) -> SupervisorSpec {
    SupervisorSpec::new("root", strategy, children).intensity(1_000, LONG).backoff(Backoff::NONE)
}

async fn until<T>(what: &str, mut look: impl FnMut() -> Result<T, String>) -> T {
    let limit = Instant::now() + SOON;
    loop {
        match look() {
            Ok(found) => return found,
            Err(last) if Instant::now() > limit => panic!("{what}: still {last} after {SOON:?}"),
            Err(_) => tokio::time::sleep(Duration::from_micros(200)).await,
        }
    }
}

async fn lives(supervisor: &SupervisorHandle, name: &str, lives: u32) {
    let vitals = supervisor.find(name).unwrap_or_else(|| panic!("{name} is no child"));
    until(name, || {
        let now = (vitals.lives(), vitals.state());
        if now == (lives, State::Running) { Ok(()) } else { Err(format!("{now:?}, not {lives} lives and running")) }
    })
    .await;
}

async fn nobody_left(world: &World) {
    until("actors alive", || match world.alive.load(SeqCst) {
        0 => Ok(()),
        left => Err(format!("{left} left")),
    })
    .await;
}

async fn dies_and_is_restarted(how: Do, cause: &str) {
    let world = Arc::<World>::default();
    let supervisor = Supervisor::start(spec(Strategy::OneForOne, vec![child(&world, "a"), child(&world, "b")]), None).await.unwrap();
    let (first, sibling) = (world.id("a"), world.id("b"));
    let mut downs = supervisor.find("a").unwrap().downs();
    world.tell("a", how);
    lives(&supervisor, "a", 2).await;
    assert_ne!(world.id("a"), first);
    assert_eq!(world.id("b"), sibling, "the sibling is the same life");
    assert_eq!(supervisor.find("b").unwrap().lives(), 1);
    let down = downs.borrow_and_update().clone().expect("its monitor was told");
    assert_eq!((down.life, down.reason), (1, DownReason::Died));
    let recording = supervisor.find("a").unwrap().recording();
    assert!(recording.cause.as_deref().unwrap().contains(cause), "{:?}", recording.cause);
    assert_eq!(recording.at_death.unwrap().last().unwrap().outcome, Outcome::Died);
    assert_eq!(supervisor.stop().await, Ended::Stopped);
    nobody_left(&world).await;
    assert_eq!(supervisor.tree().state, State::Stopped);
}

#[tokio::test]
async fn an_actor_that_panics_is_restarted_and_its_sibling_is_not() {
    dies_and_is_restarted(Do::Panic, "ouch").await;
}

#[tokio::test]
async fn an_actor_that_returns_an_error_is_restarted_and_its_sibling_is_not() {
    dies_and_is_restarted(Do::Fail, "broken").await;
}

#[tokio::test]
async fn an_actor_that_hangs_is_named_and_restarted_where_its_spec_says_so() {
    let world = Arc::<World>::default();
    let quick = Duration::from_millis(60);
    let children = vec![child_stuck_after(&world, "kept", quick), child_stuck_after(&world, "killed", quick).on_stuck(OnStuck::Restart)];
    let supervisor = Supervisor::start(spec(Strategy::OneForOne, children), None).await.unwrap();
    world.tell("kept", Do::Hang);
    world.tell("killed", Do::Hang);
    lives(&supervisor, "killed", 2).await;
    let recording = supervisor.find("killed").unwrap().recording();
    assert_eq!(recording.cause.as_deref(), Some("stuck at Hang: killed"));
    let kept = supervisor.find("kept").unwrap();
    until("kept", || if kept.state() == State::Stuck { Ok(()) } else { Err(format!("{:?}", kept.state())) }).await;
    assert_eq!((kept.lives(), &*kept.snapshot().busy_with.unwrap().method), (1, "Hang"));
    // It hangs in its stop, too: killed when its time is up.
    supervisor.remove_child("killed").await.unwrap();
    supervisor.add_child(child(&world, "late").shutdown(Duration::from_millis(20))).await.unwrap();
    world.tell("late", Do::Hang);
    supervisor.remove_child("late").await.unwrap();
    supervisor.crash_child("kept").await.unwrap();
    lives(&supervisor, "kept", 2).await;
    supervisor.stop().await;
    nobody_left(&world).await;
}

#[tokio::test]
async fn a_parent_that_stops_takes_its_children_in_reverse_order() {
    let world = Arc::<World>::default();
    let inner = SupervisorSpec::new("inner", Strategy::OneForOne, vec![child(&world, "c"), child(&world, "d")]);
    let children = vec![child(&world, "a"), child(&world, "b"), inner.into_child(), child(&world, "e")];
    let supervisor = Supervisor::start(spec(Strategy::OneForOne, children), None).await.unwrap();
    assert_eq!(world.take_log(), ["+a", "+b", "+c", "+d", "+e"]);
    let down = supervisor.find("inner/c").unwrap().down();
    assert_eq!(supervisor.stop().await, Ended::Stopped);
    assert_eq!(world.take_log(), ["-e", "-d", "-c", "-b", "-a"]);
    assert_eq!(down.await, DownReason::Stopped);
    nobody_left(&world).await;
    let ended = supervisor.add_child(child(&world, "f")).await;
    assert!(matches!(ended, Err(OrderError::Stopped)), "{ended:?}");
}

#[tokio::test]
async fn a_killed_supervisor_leaves_nobody_behind_and_comes_back_whole() {
    let world = Arc::<World>::default();
    let inner = SupervisorSpec::new("inner", Strategy::OneForOne, vec![child(&world, "a"), child(&world, "b")]);
    let handle = inner.handle();
    let supervisor = Supervisor::start(spec(Strategy::OneForOne, vec![inner.into_child()]), None).await.unwrap();
    supervisor.crash_child("inner").await.unwrap();
    for name in ["inner", "inner/a", "inner/b"] {
        lives(&supervisor, name, 2).await;
    }
    handle.add_child(child(&world, "c")).await.unwrap();
    assert_eq!(world.alive.load(SeqCst), 3, "the handle serves the second life");
    supervisor.stop().await;
    nobody_left(&world).await;
}

#[tokio::test]
async fn one_for_all_restarts_all_in_order_and_rest_for_one_those_after() {
    for (strategy, expected) in [
        (Strategy::OneForAll, ["-b", "-d", "-c", "-a", "+a", "+b", "+c", "+d"].as_slice()),
        (Strategy::RestForOne, ["-b", "-d", "-c", "+b", "+c", "+d"].as_slice()),
        (Strategy::OneForOne, ["-b", "+b"].as_slice()),
    ] {
        let world = Arc::<World>::default();
        let children = ["a", "b", "c", "d"].map(|name| child(&world, name)).to_vec();
        let supervisor = Supervisor::start(spec(strategy, children), None).await.unwrap();
        world.take_log();
        world.tell("b", Do::Panic);
        for name in ["a", "b", "c", "d"] {
            let restarted = expected.contains(&&*format!("+{name}"));
            lives(&supervisor, name, 1 + u32::from(restarted)).await;
        }
        assert_eq!(world.take_log(), expected, "{strategy:?}");
        supervisor.stop().await;
        nobody_left(&world).await;
    }
}

#[tokio::test]
async fn transient_ends_for_good_in_good_order_only_and_temporary_in_any() {
    let world = Arc::<World>::default();
    let children = vec![
        child(&world, "permanent"),
        child(&world, "transient").restart(Restart::Transient),
        child(&world, "temporary").restart(Restart::Temporary),
        child(&world, "quitter").restart(Restart::Transient),
    ];
    let supervisor = Supervisor::start(spec(Strategy::OneForOne, children), None).await.unwrap();
    world.tell("permanent", Do::Stop);
    world.tell("transient", Do::Panic);
    world.tell("temporary", Do::Panic);
    world.tell("quitter", Do::Stop);
    lives(&supervisor, "permanent", 2).await;
    lives(&supervisor, "transient", 2).await;
    until("temporary", || if supervisor.find("temporary").is_none() { Ok(()) } else { Err("a child".into()) }).await;
    let quitter = supervisor.find("quitter").unwrap();
    until("quitter", || if quitter.state() == State::Stopped { Ok(()) } else { Err(format!("{:?}", quitter.state())) }).await;
    assert_eq!(quitter.lives(), 1);
    supervisor.restart_child("quitter").await.unwrap();
    assert_eq!(quitter.lives(), 2);
    supervisor.stop().await;
    nobody_left(&world).await;
}

#[tokio::test]
async fn past_its_intensity_a_supervisor_fails_upward_and_its_parent_restarts_it() {
    let world = Arc::<World>::default();
    let inner = SupervisorSpec::new("inner", Strategy::OneForOne, vec![child(&world, "a"), child(&world, "b")]).intensity(2, LONG);
    let children = vec![child(&world, "aside"), inner.backoff(Backoff::NONE).into_child()];
    let supervisor = Supervisor::start(spec(Strategy::OneForOne, children).intensity(1, LONG), None).await.unwrap();
    let aside = world.id("aside");
    for life in 2..=3 {
        world.tell("a", Do::Panic);
        lives(&supervisor, "a", life).await;
        assert_eq!(supervisor.find("inner").unwrap().lives(), 1);
    }
    world.tell("a", Do::Panic);
    lives(&supervisor, "inner", 2).await;
    lives(&supervisor, "a", 4).await;
    lives(&supervisor, "b", 2).await;
    let cause = supervisor.find("inner").unwrap().last_error().unwrap();
    assert!(cause.contains("a failed more than 2 times") && cause.contains("ouch"), "{cause}");
    assert_eq!(world.id("aside"), aside);
    // The new life has its full measure, and the parent has none left.
    for life in 5..=6 {
        world.tell("a", Do::Panic);
        lives(&supervisor, "a", life).await;
    }
    world.tell("a", Do::Panic);
    let ended = supervisor.wait().await;
    assert!(matches!(&ended, Ended::Failed(why) if why.contains("inner failed more than 1 times")), "{ended:?}");
    nobody_left(&world).await;
    assert_eq!(supervisor.tree().state, State::Failed);
}

#[tokio::test]
async fn a_start_that_fails_is_tried_again_with_backoff_and_counts() {
    let world = Arc::<World>::default();
    let backoff = Backoff { base: Duration::from_millis(4), cap: Duration::from_millis(8), quiet: LONG };
    let supervisor =
        Supervisor::start(spec(Strategy::OneForOne, vec![child(&world, "a")]).intensity(6, LONG).backoff(backoff), None).await.unwrap();
    world.refuse_starts.store(4, SeqCst);
    world.tell("a", Do::Panic);
    lives(&supervisor, "a", 2).await;
    assert_eq!(world.refuse_starts.load(SeqCst), 0);
    assert_eq!(supervisor.find("a").unwrap().last_error().as_deref(), Some("not today"));
    // One death and four failed starts are counted; the sixth is borne, the seventh is not.
    world.refuse_starts.store(u32::MAX, SeqCst);
    world.tell("a", Do::Panic);
    assert!(matches!(supervisor.wait().await, Ended::Failed(_)));
    nobody_left(&world).await;
}

#[tokio::test]
async fn a_child_that_cannot_start_at_all_fails_the_start_and_those_before_it_are_stopped() {
    let world = Arc::<World>::default();
    let bad = ChildSpec::new(Vitals::new("bad", Kind::Worker, LONG), |_| async { panic!("no such file") });
    let error = Supervisor::start(spec(Strategy::OneForOne, vec![child(&world, "a"), bad.clone()]), None).await.unwrap_err();
    assert_eq!(error.to_string(), "bad: panicked: no such file");
    nobody_left(&world).await;
    let supervisor = Supervisor::start(spec(Strategy::OneForOne, vec![child(&world, "a")]), None).await.unwrap();
    let refused = supervisor.add_child(bad).await;
    assert!(matches!(&refused, Err(OrderError::Start { .. })), "{refused:?}");
    assert!(supervisor.find("bad").is_none());
    let slow = ChildSpec::new(Vitals::new("slow", Kind::Worker, LONG), |_| std::future::pending::<Result<_, StartError>>());
    let spec = spec(Strategy::OneForOne, vec![slow]).start_within(Duration::from_millis(10));
    assert_eq!(Supervisor::start(spec, None).await.unwrap_err().to_string(), "slow: did not start within 10ms");
    supervisor.stop().await;
    nobody_left(&world).await;
}

#[tokio::test]
async fn orders_are_refused_with_their_reason() {
    let world = Arc::<World>::default();
    let supervisor = Supervisor::start(spec(Strategy::OneForOne, vec![child(&world, "a")]), None).await.unwrap();
    assert!(matches!(supervisor.add_child(child(&world, "a")).await, Err(OrderError::NameTaken(_))));
    assert!(matches!(supervisor.remove_child("x").await, Err(OrderError::NoSuchChild(_))));
    assert!(matches!(supervisor.restart_child("x").await, Err(OrderError::NoSuchChild(_))));
    assert!(matches!(supervisor.crash_child("x").await, Err(OrderError::NoSuchChild(_))));
    supervisor.restart_child("a").await.unwrap();
    supervisor.crash_child("a").await.unwrap();
    lives(&supervisor, "a", 3).await;
    assert_eq!(supervisor.find("a").unwrap().last_error().as_deref(), Some("crashed on request"));
    supervisor.remove_child("a").await.unwrap();
    assert_eq!(supervisor.tree().children, []);
    supervisor.stop().await;
    nobody_left(&world).await;
}

#[tokio::test]
async fn a_child_that_takes_long_to_stop_holds_up_nobody_else() {
    let world = Arc::<World>::default();
    let children = vec![child(&world, "a"), child(&world, "slow").shutdown(LONG)];
    let supervisor = Supervisor::start(spec(Strategy::OneForOne, children), None).await.unwrap();
    world.tell("slow", Do::Hang);
    let slow = supervisor.find("slow").unwrap();
    until("slow", || slow.snapshot().busy_with.map(|_| ()).ok_or_else(|| "idle".into())).await;
    let order = {
        let supervisor = supervisor.clone();
        tokio::spawn(async move { supervisor.remove_child("slow").await })
    };
    world.tell("a", Do::Panic);
    lives(&supervisor, "a", 2).await;
    supervisor.add_child(child(&world, "b")).await.unwrap();
    assert!(matches!(supervisor.crash_child("slow").await, Err(OrderError::NotRunning(_)) | Ok(())));
    assert!(!order.is_finished());
    order.abort();
    let killed = world.actors.lock()["slow"].get_cell();
    killed.kill();
    until("slow", || if supervisor.find("slow").is_none() { Ok(()) } else { Err("a child".into()) }).await;
    supervisor.stop().await;
    nobody_left(&world).await;
}

#[tokio::test]
async fn two_hundred_panics_are_two_hundred_restarts_each_within_ten_milliseconds_at_the_median() {
    let world = Arc::<World>::default();
    let supervisor = Supervisor::start(spec(Strategy::OneForOne, vec![child(&world, "a"), child(&world, "b")]), None).await.unwrap();
    let sibling = world.id("b");
    let vitals = supervisor.find("a").unwrap();
    let mut took = Vec::new();
    for life in 2..=201 {
        let begun = Instant::now();
        world.tell("a", Do::Panic);
        until("restart", || if vitals.lives() == life { Ok(()) } else { Err(format!("life {}", vitals.lives())) }).await;
        took.push(begun.elapsed());
    }
    took.sort();
    println!("panic to serving again: median {:?}, worst {:?}", took[100], took[199]);
    assert!(took[100] <= Duration::from_millis(10), "median {:?}", took[100]);
    assert_eq!((vitals.lives(), world.id("b")), (201, sibling));
    supervisor.stop().await;
    nobody_left(&world).await;
}

#[test]
fn the_tree_is_told_and_the_culprit_named_while_every_worker_thread_is_blocked() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (world, free) = (Arc::<World>::default(), Arc::<std::sync::atomic::AtomicBool>::default());
    let names = ["a", "b"];
    let children = names.map(|name| child_stuck_after(&world, name, Duration::from_millis(50)).on_stuck(OnStuck::Restart)).to_vec();
    let supervisor = runtime.block_on(Supervisor::start(spec(Strategy::OneForOne, children), None)).unwrap();
    for name in names {
        world.tell(name, Do::Block(Arc::clone(&free)));
    }
    let limit = Instant::now() + SOON;
    let tree = loop {
        let tree = supervisor.tree();
        if tree.children.iter().all(|child| child.state == State::Stuck) {
            break tree;
        }
        assert!(Instant::now() < limit, "{tree:?}");
        std::thread::yield_now();
    };
    for child in tree.children {
        assert_eq!(&*child.busy_with.unwrap().method, "Block");
        assert_eq!(child.restarts, 0, "a loop that never waits cannot be ended from outside");
    }
    free.store(true, SeqCst);
    runtime.block_on(async {
        until("progress", || match supervisor.tree().children.iter().map(|child| child.state).collect::<Vec<_>>() {
            states if states.iter().all(|state| *state == State::Running) => Ok(()),
            states => Err(format!("{states:?}")),
        })
        .await;
        supervisor.stop().await;
        nobody_left(&world).await;
    });
}

#[tokio::test]
async fn a_loop_that_never_waits_delays_its_restart_but_not_its_removal_or_the_end() {
    let services = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (world, free) = (Arc::<World>::default(), Arc::<std::sync::atomic::AtomicBool>::default());
    let on_services = |name: &str| {
        let world = Arc::clone(&world);
        let make = move |start: &horos_supervision::Start| (Worker, (Arc::clone(&world), Arc::clone(&start.vitals)));
        let vitals = Vitals::new(name, Kind::Worker, Duration::from_millis(50));
        ChildSpec::actor(vitals, Some(services.handle().clone()), make).shutdown(Duration::from_millis(10))
    };
    let supervisor = Supervisor::start(spec(Strategy::OneForAll, vec![child(&world, "a"), on_services("loops")]), None).await.unwrap();
    let loops = supervisor.find("loops").unwrap();
    world.tell("loops", Do::Block(Arc::clone(&free)));
    // An order to stop would overtake a message that it has not yet taken.
    until("loops", || loops.snapshot().busy_with.map(|_| ()).ok_or_else(|| "idle".into())).await;
    world.tell("a", Do::Panic);
    // Its group waits for it, so it never lives twice, and it is shown as what it is.
    until("loops", || if loops.state() == State::Stuck { Ok(()) } else { Err(format!("{:?}", loops.state())) }).await;
    assert_eq!((loops.lives(), supervisor.find("a").unwrap().lives()), (1, 1));
    free.store(true, SeqCst);
    lives(&supervisor, "a", 2).await;
    lives(&supervisor, "loops", 2).await;
    free.store(false, SeqCst);
    world.tell("loops", Do::Block(Arc::clone(&free)));
    until("loops", || loops.snapshot().busy_with.map(|_| ()).ok_or_else(|| "idle".into())).await;
    supervisor.remove_child("loops").await.unwrap();
    assert_eq!(loops.last_error().as_deref(), Some("abandoned: it could not be killed"));
    assert_eq!(supervisor.stop().await, Ended::Stopped);
    assert_eq!(world.alive.load(SeqCst), 1, "the loop is still at it");
    free.store(true, SeqCst);
    nobody_left(&world).await;
    services.shutdown_background();
}

/// Erlang's `supervisor` in a few lines, for what ends in quiet.
struct Model {
    strategy: Strategy,
    children: BTreeMap<String, (Restart, u32, bool)>,
}

impl Model {
    fn end(&mut self, name: &str, normal: bool) {
        let child = self.children.get_mut(name).unwrap();
        child.2 = false;
        match child.0 {
            Restart::Temporary => drop(self.children.remove(name)),
            Restart::Transient if normal => {}
            Restart::Permanent | Restart::Transient => {
                let strategy = self.strategy;
                let in_group = |other: &str| match strategy {
                    Strategy::OneForOne => other == name,
                    Strategy::OneForAll => true,
                    Strategy::RestForOne => other >= name,
                };
                self.children.retain(|other, child| !in_group(other) || child.0 != Restart::Temporary);
                for (_, child) in self.children.iter_mut().filter(|(other, _)| in_group(other)) {
                    (child.1, child.2) = (child.1 + 1, true);
                }
            }
        }
    }
}

fn seed() -> u64 {
    let seed = rand::random();
    println!("seed {seed}");
    seed
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_dies_the_same_children_live_as_under_otp() {
    let mut rng = StdRng::seed_from_u64(seed());
    for round in 0..30 {
        let strategy = *[Strategy::OneForOne, Strategy::OneForAll, Strategy::RestForOne].choose(&mut rng).unwrap();
        let world = Arc::<World>::default();
        let mut model = Model { strategy, children: BTreeMap::new() };
        let mut children = Vec::new();
        for i in 0..rng.random_range(1..7u32) {
            let restart = *[Restart::Permanent, Restart::Permanent, Restart::Transient, Restart::Temporary].choose(&mut rng).unwrap();
            let name = format!("c{i}");
            children.push(child(&world, &name).restart(restart));
            model.children.insert(name, (restart, 1, true));
        }
        let supervisor = Supervisor::start(spec(strategy, children), None).await.unwrap();
        for _ in 0..12 {
            let living: Vec<String> = model.children.iter().filter(|(_, child)| child.2).map(|(name, _)| name.clone()).collect();
            let Some(victim) = living.choose(&mut rng) else { break };
            let (how, normal) = match rng.random_range(0..4) {
                0 => (Some(Do::Stop), true),
                1 => (Some(Do::Fail), false),
                2 => (Some(Do::Panic), false),
                _ => (None, false),
            };
            match how {
                Some(how) => world.tell(victim, how),
                None => supervisor.crash_child(victim).await.unwrap(),
            }
            model.end(victim, normal);
            let expected: Vec<_> = model
                .children
                .iter()
                .map(|(name, (_, lives, up))| (name.clone(), *lives, if *up { State::Running } else { State::Stopped }))
                .collect();
            until("the children", || {
                let tree = supervisor.tree();
                let seen: Vec<_> = tree.children.iter().map(|child| (child.name.to_string(), child.restarts + 1, child.state)).collect();
                if seen == expected { Ok(()) } else { Err(format!("round {round}, {strategy:?}: {seen:?}, not {expected:?}")) }
            })
            .await;
        }
        assert_eq!(supervisor.stop().await, Ended::Stopped);
        nobody_left(&world).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_deaths_and_orders_ends_with_every_permanent_child_running_once() {
    let mut rng = StdRng::seed_from_u64(seed());
    for strategy in [Strategy::OneForOne, Strategy::OneForAll, Strategy::RestForOne] {
        let world = Arc::<World>::default();
        let names = ["a", "b", "c", "d", "e"];
        let supervisor = Supervisor::start(spec(strategy, names.map(|name| child(&world, name)).to_vec()), None).await.unwrap();
        for _ in 0..300 {
            let name = *names.choose(&mut rng).unwrap();
            match rng.random_range(0..8) {
                0 => drop(supervisor.restart_child(name).await),
                1 => drop(supervisor.crash_child(name).await),
                2 => world.tell(name, Do::Stop),
                3 => world.tell(name, Do::Fail),
                4 => tokio::task::yield_now().await,
                _ => world.tell(name, Do::Panic),
            }
        }
        until("calm", || {
            let states: Vec<_> = supervisor.tree().children.iter().map(|child| child.state).collect();
            let alive = world.alive.load(SeqCst);
            if alive == 5 && states == [State::Running; 5] { Ok(()) } else { Err(format!("{strategy:?}: {alive} alive, {states:?}")) }
        })
        .await;
        supervisor.stop().await;
        nobody_left(&world).await;
    }
}

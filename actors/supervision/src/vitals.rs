//! An actor's vital signs: what it does, how it fares, and what it did last.
//!
//! One [`Vitals`] a *slot*, that is a name: it outlives the actor's lives. The actor writes it around each
//! message, its supervisor at each start and death. Counters are atomics outside the mailbox, so whoever
//! asks (the watchdog's thread, `horos tree`) never needs the actor's help nor its runtime's: a handler
//! that blocks its runtime is seen and named. The recorder is behind a lock that is held for some tens of
//! nanoseconds and never over foreign code.

use std::{
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use futures_util::{FutureExt as _, future::BoxFuture};
use horos_wire::{
    TraceId,
    control::DownReason,
    tree::{self, Busy, Kind, Outcome, Recording, State},
};
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;

use crate::{
    census,
    histogram::{Histogram, nanos},
    recorder::{Recorder, cut},
    supervisor::subtree::Subtree,
};

/// A message as its handling begins.
#[derive(Clone, Copy, Debug)]
pub struct Incoming<'a> {
    /// The request's name.
    pub method: &'static str,
    /// Who sent it.
    pub sender: &'a Arc<str>,
    /// Bytes on the wire; 0 for a message from the same node.
    pub size: u32,
    /// The trace it belongs to.
    pub trace: TraceId,
    /// How long it waited in the mailbox.
    pub waited: Duration,
}

/// An actor's life ended, by death or in good order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Down {
    /// Which life, counted from 1.
    pub life: u32,
    /// How it ended: by death or in good order.
    pub reason: DownReason,
    /// Why, in words.
    pub cause: Arc<str>,
}

/// What a supervisor is told of an actor that is at one message for too long.
#[derive(Clone, Debug)]
pub(crate) struct StuckAt {
    pub(crate) method: &'static str,
    pub(crate) since: u64,
}

type Alarm = Box<dyn Fn(StuckAt) + Send + Sync>;
type Depth = Box<dyn Fn() -> u32 + Send + Sync>;
type Retired = Box<dyn Fn() + Send + Sync>;

/// The vital signs of one named actor over all its lives.
pub struct Vitals {
    name: Box<str>,
    kind: Kind,
    stuck_after: u64,
    state: AtomicU8,
    lives: AtomicU32,
    /// A start is under way that has not been counted as a life yet.
    unborn: AtomicBool,
    handled: AtomicU64,
    failed: AtomicU64,
    refused: AtomicU64,
    /// Nanoseconds since the epoch, as the next; 0 for never.
    progressed: AtomicU64,
    /// When the message in hand was taken up; 0 for none.
    busy_since: AtomicU64,
    wait: Histogram,
    handling: Histogram,
    recorder: Mutex<Recorder>,
    /// What is wrong with what it works on, if it says so.
    trouble: Mutex<Option<Arc<str>>>,
    protocol: RwLock<Option<Box<str>>>,
    mailbox: RwLock<Option<(u32, Depth)>>,
    alarm: Mutex<Option<Alarm>>,
    retired: OnceLock<Retired>,
    down: watch::Sender<Option<Down>>,
    /// What it supervises, if it does.
    subtree: OnceLock<Arc<Subtree>>,
}

/// Nanoseconds from the process's first look at the clock to `now`, never 0: they fit an atomic, an `Instant` does not.
pub(crate) fn since_epoch(now: Instant) -> u64 {
    static EPOCH: OnceLock<Instant> = OnceLock::new();
    nanos(now.saturating_duration_since(*EPOCH.get_or_init(|| now.checked_sub(Duration::from_secs(1)).unwrap_or(now)))).max(1)
}

const STATES: [State; 6] = [State::Starting, State::Running, State::Stuck, State::Restarting, State::Stopped, State::Failed];

fn code(state: State) -> u8 {
    STATES.iter().position(|known| *known == state).expect("STATES lists every state") as u8
}

impl Vitals {
    /// Vital signs for the slot `name`. A message in hand for longer than `stuck_after` makes it [`State::Stuck`].
    ///
    /// Enters it in the process's census, which the watchdog's thread walks for as long as the value lives.
    pub fn new(name: &str, kind: Kind, stuck_after: Duration) -> Arc<Self> {
        let vitals = Arc::new(Self {
            name: name.into(),
            kind,
            stuck_after: nanos(stuck_after),
            state: AtomicU8::new(code(State::Starting)),
            lives: AtomicU32::new(0),
            unborn: AtomicBool::new(true),
            handled: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            progressed: AtomicU64::new(0),
            busy_since: AtomicU64::new(0),
            wait: Histogram::new(),
            handling: Histogram::new(),
            recorder: Mutex::default(),
            trouble: Mutex::default(),
            protocol: RwLock::default(),
            mailbox: RwLock::default(),
            alarm: Mutex::default(),
            retired: OnceLock::new(),
            down: watch::Sender::new(None),
            subtree: OnceLock::new(),
        });
        since_epoch(Instant::now());
        census::enter(&vitals);
        vitals
    }

    /// The slot's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it supervises, and how.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// A start is under way; `state` is what it is until then.
    pub(crate) fn starting(&self, state: State) {
        self.unborn.store(true, Relaxed);
        self.set_state(state);
    }

    /// A life begins: the state is [`State::Running`] and one more life is counted.
    ///
    /// An actor that is ready before its supervisor knows may say so itself; the supervisor says it again without effect.
    pub fn started(&self) {
        if self.unborn.swap(false, Relaxed) {
            self.lives.fetch_add(1, Relaxed);
            self.set_state(State::Running);
        }
    }

    /// How often it was started.
    pub fn lives(&self) -> u32 {
        self.lives.load(Relaxed)
    }

    /// The handling of `message` begins.
    pub fn begin(&self, now: Instant, message: Incoming<'_>) {
        let at = since_epoch(now);
        let waited = nanos(message.waited);
        let mut recorder = self.recorder.lock();
        recorder.begin(&message, at, waited);
        self.wait.record(waited);
        self.busy_since.store(at, Relaxed);
    }

    /// The handling that began last has ended. [`Outcome::Died`] leaves the recorder's entry without a duration.
    pub fn end(&self, now: Instant, outcome: Outcome) {
        let now = since_epoch(now);
        let mut recorder = self.recorder.lock();
        let Some(begun) = recorder.end(now, outcome) else { return };
        self.busy_since.store(0, Relaxed);
        // Loads and stores in place of read-modify-write: the lock makes this the only writer.
        match outcome {
            Outcome::Done | Outcome::Failed => {
                self.handling.record(now.saturating_sub(begun));
                self.handled.store(self.handled.load(Relaxed) + 1, Relaxed);
                if outcome == Outcome::Failed {
                    self.failed.store(self.failed.load(Relaxed) + 1, Relaxed);
                }
            }
            Outcome::Refused => drop(self.refused.fetch_add(1, Relaxed)),
            Outcome::Died => {
                self.failed.store(self.failed.load(Relaxed) + 1, Relaxed);
                return;
            }
            Outcome::InHand => {}
        }
        self.progressed.store(now, Relaxed);
        if self.state.load(Relaxed) == code(State::Stuck) {
            self.recovered();
        }
    }

    #[cold]
    fn recovered(&self) {
        if self.state.compare_exchange(code(State::Stuck), code(State::Running), Relaxed, Relaxed).is_ok() {
            tracing::info!(actor = %self.name, "is no longer stuck");
        }
    }

    /// A message was refused before it reached the actor: mailbox full, expired, or malformed.
    pub fn refuse(&self) {
        self.refused.fetch_add(1, Relaxed);
    }

    /// Something was finished. For actors of the node's own workings, which have no [`begin`](Self::begin) and [`end`](Self::end).
    pub fn progressed(&self, now: Instant) {
        self.handled.fetch_add(1, Relaxed);
        self.progressed.store(since_epoch(now), Relaxed);
    }

    /// The life ended by death: the recorder's content is kept with `cause`, and the monitors are told.
    ///
    /// The state is left to the supervisor, who knows whether there will be another life.
    pub fn died(&self, cause: &str) {
        let cause = cut(cause);
        let mut recorder = self.recorder.lock();
        if recorder.in_hand().is_some() {
            self.failed.store(self.failed.load(Relaxed) + 1, Relaxed);
        }
        recorder.freeze(Arc::clone(&cause));
        self.busy_since.store(0, Relaxed);
        drop(recorder);
        self.tell(DownReason::Died, cause);
    }

    /// The life ended in good order and none will follow: the state is [`State::Stopped`], and the monitors are told.
    pub fn stopped(&self, reason: &str) {
        self.stopped_until(reason, State::Stopped);
    }

    /// The same where another life may follow: `state` says whether one will, and is never anything else in between.
    pub(crate) fn stopped_until(&self, reason: &str, state: State) {
        self.recorder.lock().close(since_epoch(Instant::now()));
        self.busy_since.store(0, Relaxed);
        self.set_state(state);
        self.tell(DownReason::Stopped, cut(reason));
    }

    fn tell(&self, reason: DownReason, cause: Arc<str>) {
        self.down.send_replace(Some(Down { life: self.lives(), reason, cause }));
    }

    /// Sets the state.
    pub fn set_state(&self, state: State) {
        self.state.store(code(state), Relaxed);
        if matches!(state, State::Stopped | State::Failed)
            && let Some(retired) = self.retired.get()
        {
            retired();
        }
    }

    /// Has `retired` called whenever the last life for now is over. Once a slot; `retired` must not block.
    pub(crate) fn on_retirement(&self, retired: impl Fn() + Send + Sync + 'static) {
        let _ = self.retired.set(Box::new(retired));
    }

    /// The state.
    pub fn state(&self) -> State {
        STATES[usize::from(self.state.load(Relaxed))]
    }

    /// Tells where the mailbox's depth is to be read, and its limit. `depth` must not block.
    pub fn watch_mailbox(&self, limit: u32, depth: impl Fn() -> u32 + Send + Sync + 'static) {
        *self.mailbox.write() = Some((limit, Box::new(depth)));
    }

    /// Names the protocol the actor answers, as `stock/1`.
    pub fn set_protocol(&self, protocol: &str) {
        *self.protocol.write() = Some(protocol.into());
    }

    /// The last messages: of this life, and those before the last death.
    pub fn recording(&self) -> Recording {
        self.recorder.lock().told(since_epoch(Instant::now()))
    }

    /// What is wrong with what it works on, shown as its last error until it says otherwise: it goes on with the last good state.
    pub fn set_trouble(&self, trouble: Option<&str>) {
        *self.trouble.lock() = trouble.map(cut);
    }

    /// What is wrong with what it works on, or else why it last died.
    pub fn last_error(&self) -> Option<Arc<str>> {
        let trouble = self.trouble.lock().clone();
        trouble.or_else(|| self.recorder.lock().cause())
    }

    /// The actor as data, without children.
    pub fn snapshot(&self) -> tree::Actor {
        let now = since_epoch(Instant::now());
        let (in_hand, cause) = {
            let recorder = self.recorder.lock();
            (recorder.in_hand(), recorder.cause())
        };
        let (mailbox_limit, mailbox) = self.mailbox.read().as_ref().map_or((0, 0), |(limit, depth)| (*limit, depth()));
        let progressed = self.progressed.load(Relaxed);
        tree::Actor {
            name: self.name.clone(),
            kind: self.kind,
            state: self.state(),
            protocol: self.protocol.read().clone(),
            mailbox,
            mailbox_limit,
            handled: self.handled.load(Relaxed),
            failed: self.failed.load(Relaxed),
            refused: self.refused.load(Relaxed),
            restarts: self.lives().saturating_sub(1),
            last_progress_ms: (progressed != 0).then(|| now.saturating_sub(progressed) / 1_000_000),
            wait: self.wait.quantiles(),
            handling: self.handling.quantiles(),
            busy_with: in_hand.map(|(method, at)| Busy { method: method.into(), for_ms: now.saturating_sub(at) / 1_000_000 }),
            last_error: self.trouble.lock().as_deref().or(cause.as_deref()).map(Into::into),
            children: Vec::new(),
        }
    }

    /// The slot's deaths and stops as they happen; the value is the latest, so a slow monitor sees the last one.
    pub fn downs(&self) -> watch::Receiver<Option<Down>> {
        self.down.subscribe()
    }

    /// Resolves when the present life ends; at once when there is none and none will follow.
    pub fn down(&self) -> BoxFuture<'static, DownReason> {
        let mut downs = self.downs();
        if matches!(self.state(), State::Stopped | State::Failed) {
            let reason = downs.borrow().as_ref().map_or(DownReason::Stopped, |down| down.reason.clone());
            return std::future::ready(reason).boxed();
        }
        async move {
            // A closed channel is a slot that was taken away.
            let changed = downs.changed().await;
            let down = downs.borrow_and_update();
            down.as_ref().filter(|_| changed.is_ok()).map_or(DownReason::Stopped, |down| down.reason.clone())
        }
        .boxed()
    }

    /// Makes it a supervisor's: the subtree shows below it.
    pub(crate) fn grow(&self, subtree: Arc<Subtree>) {
        let _ = self.subtree.set(subtree);
    }

    pub(crate) fn subtree(&self) -> Option<&Arc<Subtree>> {
        self.subtree.get()
    }

    /// Who is told when the actor is stuck: its supervisor, for as long as the slot is filled.
    pub(crate) fn raise(&self, alarm: impl Fn(StuckAt) + Send + Sync + 'static) {
        *self.alarm.lock() = Some(Box::new(alarm));
    }

    /// The watchdog's look at `now`. Cheap unless the actor is stuck.
    pub(crate) fn look(&self, now: Instant) {
        let since = self.busy_since.load(Relaxed);
        let state = self.state.load(Relaxed);
        let over = since != 0 && since_epoch(now).saturating_sub(since) > self.stuck_after;
        if !over {
            // `end` may have run between a look's two halves and left the state behind.
            if state == code(State::Stuck) {
                self.recovered();
            }
            return;
        }
        if state != code(State::Running) {
            return;
        }
        // The recorder knows the method; it may have moved on to another message since.
        let Some((method, at)) = self.recorder.lock().in_hand().filter(|(_, at)| *at == since) else { return };
        if self.state.compare_exchange(state, code(State::Stuck), Relaxed, Relaxed).is_err() {
            return;
        }
        let for_ms = since_epoch(now).saturating_sub(at) / 1_000_000;
        tracing::warn!(actor = %self.name, method, for_ms, "is stuck at one message");
        if let Some(alarm) = &*self.alarm.lock() {
            alarm(StuckAt { method, since });
        }
    }

    /// Whether the message that was taken up at `since` is still in hand.
    pub(crate) fn still_at(&self, since: u64) -> bool {
        self.busy_since.load(Relaxed) == since
    }
}

impl fmt::Debug for Vitals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vitals").field("name", &self.name).field("state", &self.state()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use super::*;

    static SENDER: LazyLock<Arc<str>> = LazyLock::new(|| "test".into());

    fn incoming(method: &'static str) -> Incoming<'static> {
        Incoming { method, sender: &SENDER, size: 7, trace: TraceId(9), waited: Duration::from_micros(3) }
    }

    #[test]
    fn the_recorder_keeps_the_last_64_and_what_led_to_death() {
        let vitals = Vitals::new("recorded", Kind::Worker, Duration::from_secs(60));
        vitals.started();
        let now = Instant::now();
        for _ in 0..100 {
            vitals.begin(now, incoming("Ask"));
            vitals.end(now + Duration::from_micros(5), Outcome::Done);
        }
        vitals.begin(now, incoming("Kill"));
        vitals.died("boom");
        let recording = vitals.recording();
        assert!(recording.current.is_empty(), "the next life has its own");
        let last = recording.at_death.unwrap();
        assert_eq!(last.len(), 64);
        assert_eq!((&*last[63].method, last[63].took_us, last[63].outcome), ("Kill", None, Outcome::Died));
        assert!(last[..63].iter().all(|entry| &*entry.method == "Ask" && entry.took_us == Some(5) && entry.waited_us == 3));
        assert_eq!(recording.cause.as_deref(), Some("boom"));
        let told = vitals.snapshot();
        assert_eq!((told.handled, told.failed, told.busy_with), (100, 1, None));
    }

    #[test]
    fn a_message_in_hand_for_too_long_is_stuck_until_it_ends() {
        let vitals = Vitals::new("slow", Kind::Worker, Duration::from_secs(3600));
        vitals.started();
        let (sent, got) = std::sync::mpsc::channel();
        vitals.raise(move |stuck| sent.send(stuck.method).unwrap());
        let now = Instant::now();
        vitals.begin(now, incoming("Dig"));
        vitals.look(now + Duration::from_secs(3599));
        assert_eq!(vitals.state(), State::Running);
        for _ in 0..3 {
            vitals.look(now + Duration::from_secs(3601));
        }
        assert_eq!(vitals.state(), State::Stuck);
        assert_eq!(&*vitals.snapshot().busy_with.unwrap().method, "Dig");
        vitals.end(now + Duration::from_secs(3602), Outcome::Done);
        assert_eq!(vitals.state(), State::Running);
        assert_eq!(got.try_iter().collect::<Vec<_>>(), ["Dig"], "told once");
    }

    #[test]
    fn a_monitor_sees_each_death_with_its_reason() {
        let vitals = Vitals::new("mortal", Kind::Worker, Duration::from_secs(1));
        let mut downs = vitals.downs();
        for (life, cause) in [(1, "a"), (2, "b")] {
            vitals.starting(State::Restarting);
            vitals.started();
            vitals.died(cause);
            assert!(downs.has_changed().unwrap());
            assert_eq!(*downs.borrow_and_update(), Some(Down { life, reason: DownReason::Died, cause: cause.into() }));
        }
    }

    #[test]
    fn a_cause_of_any_length_and_script_is_cut_not_refused() {
        let vitals = Vitals::new("loud", Kind::Worker, Duration::from_secs(1));
        vitals.died(&"é".repeat(10_000));
        assert_eq!(vitals.last_error().unwrap().len(), 1_024);
    }

    /// Not a check of speed but a way to see it: `cargo test --release -p horos-supervision begin_and_end -- --ignored --nocapture`.
    #[test]
    #[ignore = "prints a figure"]
    fn begin_and_end_cost() {
        let vitals = Vitals::new("quick", Kind::Worker, Duration::from_secs(60));
        vitals.started();
        let (sender, now, rounds) = (Arc::<str>::from("test"), Instant::now(), 5_000_000u32);
        let started = Instant::now();
        for _ in 0..rounds {
            let message = Incoming { method: "Ask", sender: &sender, size: 0, trace: TraceId(1), waited: Duration::ZERO };
            vitals.begin(now, message);
            vitals.end(now, Outcome::Done);
        }
        println!("begin + end: {:.1} ns", started.elapsed().as_secs_f64() * 1e9 / f64::from(rounds));
    }
}

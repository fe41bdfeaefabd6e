//! Circuit breakers: an endpoint that fails is not asked until it has had time to recover, and then by a few probes first.
//!
//! A [`Breaker`] is a plain value beside its endpoint, asked and told by whoever calls it: it reads no clock, waits for nothing and
//! writes nothing. What it went through is written down and shown by an actor of its own (`actor`), which [`Breakers`] starts at
//! the endpoint's first use, so that no call ever waits for a file.
//!
//! - It opens on failures in a row, failures in a time, a share of failures or a share of slow calls, as its policy says.
//! - Half-open lets out a quota of probes. A [`Ticket`] is such a place; whichever way it is let go of, it is given back.
//! - What was admitted before a transition says nothing after it: neither late failures nor late successes count.
//! - Cancelled calls, refusals of this node and a callee's own errors count as neither. A panic on the way is a failure.

mod actor;
mod machine;
mod registry;
pub mod store;
#[cfg(test)]
mod tests;
mod window;

use std::{
    fmt,
    str::FromStr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

pub use registry::{BreakerStatus, Breakers, ForcedRow, MAX_BREAKERS, Told};

use crate::config;
use machine::Machine;

/// What a breaker does with calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Lets them through.
    Closed,
    /// Refuses them.
    Open,
    /// Lets a few through, to see.
    HalfOpen,
}

impl State {
    /// Its name, as it is stored and shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half-open",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Neither `open` nor `closed`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a breaker is forced \"open\" or \"closed\", not {0:?}")]
pub struct NotForced(Box<str>);

impl FromStr for Forced {
    type Err = NotForced;
    fn from_str(text: &str) -> Result<Self, NotForced> {
        match text {
            "open" => Ok(Self::Open),
            "closed" => Ok(Self::Closed),
            other => Err(NotForced(other.chars().take(64).collect())),
        }
    }
}

/// What an operator decided for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Forced {
    /// Nobody is let through: maintenance.
    Open,
    /// Everybody is, whatever fails.
    Closed,
}

/// What became of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The endpoint answered.
    Success,
    /// It did not, or said that it cannot.
    Failure,
    /// It says nothing of the endpoint: the caller cancelled, this node refused, or the callee's own typed error.
    Ignored,
}

/// Why a breaker changed its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// So many failures in a row.
    FailuresInARow,
    /// So many failures within the window.
    FailuresInWindow,
    /// Their share of the window's calls.
    FailureRate,
    /// The share of slow calls.
    SlowRate,
    /// The endpoint asked to be left alone for a while.
    RetryAfter,
    /// It has been open for long enough to probe.
    Elapsed,
    /// A probe failed.
    ProbeFailed,
    /// Enough of them succeeded.
    ProbesSucceeded,
    /// An operator forced it, or ceased to.
    Forced,
    /// An operator reset it.
    Reset,
    /// It was so before the node started.
    Restored,
}

/// A change of state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transition {
    /// What it was.
    pub from: State,
    /// What it is.
    pub to: State,
    /// Why.
    pub reason: Reason,
}

/// The breaker lets no call through: nothing was sent, and nothing had an effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the breaker is {}open; try again after {retry_after:?}", if *forced { "forced " } else { "" })]
pub struct Rejected {
    /// When it may be worth another try.
    pub retry_after: Duration,
    /// Whether an operator wants it so.
    pub forced: bool,
}

/// A breaker as it stands. Times are spans from when it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Snapshot {
    /// Its state, whether or not it is forced into another.
    pub state: State,
    /// Why, unless it has been closed from the beginning.
    pub reason: Option<Reason>,
    /// Its transitions so far.
    pub generation: u64,
    /// What it is forced to.
    pub forced: Option<Forced>,
    /// Failures in a row.
    pub failures: u32,
    /// How long ago the last of them was.
    pub failed_ms_ago: Option<u64>,
    /// Probes that failed in a row: how often its time was doubled.
    pub reopenings: u32,
    /// How long ago it opened, if it has not closed since.
    pub opened_ms_ago: Option<u64>,
    /// In how long it will probe.
    pub open_for_ms: Option<u64>,
    /// Probes that are out.
    pub probing: u32,
    /// Calls within the window.
    pub calls_in_window: u32,
    /// Of those, how many failed.
    pub failures_in_window: u32,
    /// Of those, how many were slow.
    pub slow_in_window: u32,
}

impl Snapshot {
    /// Whether calls are refused now.
    pub fn refuses(&self) -> bool {
        match self.forced {
            Some(forced) => forced == Forced::Open,
            None => self.state == State::Open,
        }
    }
}

type FirstUse = Box<dyn Fn() + Send + Sync>;

/// The breaker of an endpoint.
pub struct Breaker {
    /// The generation, and in the lowest bit whether all calls are let through: then nobody needs the lock to be.
    gate: AtomicU64,
    used: AtomicBool,
    machine: Mutex<Machine>,
    /// Its state changed.
    turned: Notify,
    /// Its count of failures in a row changed.
    counted: Notify,
    first_use: OnceLock<FirstUse>,
}

impl Breaker {
    /// A closed one.
    pub fn new(policy: config::Breaker, now: Instant) -> Self {
        Self::with_seed(policy, now, rand::random())
    }

    /// The same, with all that it leaves to chance decided by `seed`.
    pub fn with_seed(policy: config::Breaker, now: Instant, seed: u64) -> Self {
        let machine = Machine::new(policy, now, seed);
        Self {
            gate: AtomicU64::new(gate(&machine)),
            used: AtomicBool::new(false),
            machine: Mutex::new(machine),
            turned: Notify::new(),
            counted: Notify::new(),
            first_use: OnceLock::new(),
        }
    }

    /// Lets a call through, or does not. What became of it is told to the [`Ticket`].
    ///
    /// # Errors
    /// [`Rejected`]: the call must not be made.
    pub fn admit(self: &Arc<Self>, now: Instant) -> Result<Ticket, Rejected> {
        if !self.used.load(Ordering::Relaxed) {
            self.begin_use();
        }
        let gate = self.gate.load(Ordering::Acquire);
        let generation = if gate & 1 == 1 { gate >> 1 } else { self.admit_with_care(now)? };
        Ok(Ticket { breaker: Arc::clone(self), generation, admitted: now, settled: false })
    }

    fn admit_with_care(&self, now: Instant) -> Result<u64, Rejected> {
        let mut machine = self.machine.lock();
        let transition = machine.admit(now)?;
        self.gate.store(gate(&machine), Ordering::Release);
        let generation = machine.generation();
        drop(machine);
        if transition.is_some() {
            self.turned.notify_one();
        }
        Ok(generation)
    }

    #[cold]
    fn begin_use(&self) {
        if !self.used.swap(true, Ordering::Relaxed)
            && let Some(first_use) = self.first_use.get()
        {
            first_use();
        }
    }

    /// Whether a call would probably be let through: for choosing among endpoints. Takes no place.
    pub fn is_ready(&self, now: Instant) -> bool {
        self.gate.load(Ordering::Relaxed) & 1 == 1 || self.machine.lock().is_ready(now)
    }

    /// The endpoint asked not to be called for `at_least` (RFC 9110 §10.2.3): it opens, for at most eight times its policy's
    /// `open_ms`, as it does of itself.
    pub fn retry_after(&self, at_least: Duration, now: Instant) -> Option<Transition> {
        self.change(|machine| machine.retry_after(at_least, now))
    }

    /// An operator's decision; none leaves it to itself again. After having been forced open it probes first.
    pub fn force(&self, forced: Option<Forced>, now: Instant) -> Option<Transition> {
        self.change(|machine| machine.force(forced, now))
    }

    /// Closes it, with nothing counted. What it is forced to stays.
    pub fn reset(&self, now: Instant) -> Transition {
        let transition = self.change(|machine| Some(machine.reset(now)));
        transition.expect("a reset is always a transition")
    }

    /// Another policy from now on; its state stays.
    pub fn set_policy(&self, policy: config::Breaker, now: Instant) {
        self.change(|machine| {
            machine.set_policy(policy, now);
            None
        });
    }

    /// What it is forced to.
    pub fn forced(&self) -> Option<Forced> {
        self.machine.lock().forced()
    }

    /// How it stands.
    pub fn snapshot(&self, now: Instant) -> Snapshot {
        self.machine.lock().snapshot(now)
    }

    /// Goes on where it was in another life, but never stays open for longer than its policy knows. A restored half-open one
    /// probes from the beginning. What it was forced to is not taken over: that is read where it is decided.
    pub fn restore(&self, saved: &Snapshot, now: Instant) {
        self.change(|machine| {
            machine.restore(saved, now);
            None
        });
    }

    /// Whether anybody has called through it.
    pub fn is_used(&self) -> bool {
        self.used.load(Ordering::Relaxed)
    }

    /// Resolves when its state has changed since this last resolved. For one waiter.
    pub async fn turned(&self) {
        self.turned.notified().await;
    }

    /// Resolves when its count of failures in a row has changed since this last resolved. For one waiter.
    pub async fn counted(&self) {
        self.counted.notified().await;
    }

    /// Has `first_use` called by the first call, which must not block it.
    fn on_first_use(&self, first_use: impl Fn() + Send + Sync + 'static) {
        let _ = self.first_use.set(Box::new(first_use));
    }

    fn change(&self, change: impl FnOnce(&mut Machine) -> Option<Transition>) -> Option<Transition> {
        let mut machine = self.machine.lock();
        let transition = change(&mut machine);
        self.gate.store(gate(&machine), Ordering::Release);
        drop(machine);
        if transition.is_some() {
            self.turned.notify_one();
        }
        transition
    }

    fn record(&self, generation: u64, outcome: Outcome, took: Duration, now: Instant) -> Option<Transition> {
        let mut machine = self.machine.lock();
        let before = machine.row();
        let transition = machine.record(generation, outcome, took, now);
        let counted = machine.row() != before;
        if transition.is_some() {
            self.gate.store(gate(&machine), Ordering::Release);
        }
        drop(machine);
        if transition.is_some() {
            self.turned.notify_one();
        } else if counted {
            self.counted.notify_one();
        }
        transition
    }
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

fn gate(machine: &Machine) -> u64 {
    machine.generation() << 1 | u64::from(machine.lets_all_through())
}

impl fmt::Debug for Breaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Breaker").field("machine", &self.machine).finish_non_exhaustive()
    }
}

/// A call that was let through, until it is known what became of it.
///
/// Dropped without a word it counts as neither, as a call does that its caller has cancelled; dropped by a panic it is a failure.
#[derive(Debug)]
#[must_use = "dropped, it counts as a call that was cancelled"]
pub struct Ticket {
    breaker: Arc<Breaker>,
    generation: u64,
    admitted: Instant,
    settled: bool,
}

impl Ticket {
    /// Says what became of the call, and whether that changed the breaker's state. `took` says whether it was slow.
    pub fn record(mut self, outcome: Outcome, took: Duration, now: Instant) -> Option<Transition> {
        self.settled = true;
        self.breaker.record(self.generation, outcome, took, now)
    }

    /// When it was let through.
    pub fn admitted(&self) -> Instant {
        self.admitted
    }

    /// The breaker that let it through.
    pub fn breaker(&self) -> &Arc<Breaker> {
        &self.breaker
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.settled {
            return;
        }
        if thread::panicking() {
            let now = Instant::now().max(self.admitted);
            self.breaker.record(self.generation, Outcome::Failure, now - self.admitted, now);
        } else {
            // No time is needed to give a place back.
            self.breaker.record(self.generation, Outcome::Ignored, Duration::ZERO, self.admitted);
        }
    }
}

//! What a breaker decides: a plain value under [`super::Breaker`]'s lock, which reads no clock and tells nobody.

use std::time::{Duration, Instant};

use super::{
    Forced, Outcome, Reason, Rejected, Snapshot, State, Transition,
    window::{Counts, Window},
};
use crate::config;

/// How often the open time doubles: up to eight times the first.
const MAX_DOUBLINGS: u32 = 3;
/// What callers are told to wait while probes are out or the calls let through still grow, at most: by then either is decided.
const SOON: Duration = Duration::from_secs(1);
/// A tenth, in thousandths: what is let through right after closing.
const RAMP_FROM: u64 = 100;

/// A [`config::Breaker`] with its units, and with nothing in it that would make it never open or never close.
#[derive(Clone, Copy, Debug)]
struct Policy {
    given: config::Breaker,
    slow: Duration,
    window: Duration,
    open: Duration,
    ramp: Duration,
}

impl Policy {
    fn new(given: config::Breaker) -> Self {
        let ms = |ms: u64| Duration::from_millis(ms.min(config::MAX_TIMEOUT_MS));
        Self {
            given: config::Breaker {
                successes: given.successes.max(1),
                probes: given.probes.max(1),
                minimum_calls: given.minimum_calls.max(1),
                ..given
            },
            slow: ms(given.slow_ms),
            window: ms(given.window_ms.max(10)),
            open: ms(given.open_ms.max(1)),
            ramp: ms(given.ramp_ms),
        }
    }

    /// Failures further apart than this are no row: had the first opened the breaker, it would be over.
    fn row(&self) -> Duration {
        self.open.max(self.window)
    }

    /// Longest that it stays open after so many probes failed in a row.
    fn longest(&self, reopenings: u32) -> Duration {
        self.open * (1 << reopenings.min(MAX_DOUBLINGS))
    }

    /// Why it is to open, if it is.
    fn broken(&self, row: u32, counts: Counts) -> Option<Reason> {
        let policy = &self.given;
        let reached = |count: u32, limit: u32| limit > 0 && count >= limit;
        let share = |count: u32, percent: u32| {
            percent > 0 && counts.calls >= policy.minimum_calls && u64::from(count) * 100 >= u64::from(percent) * u64::from(counts.calls)
        };
        if reached(row, policy.failures) {
            Some(Reason::FailuresInARow)
        } else if reached(counts.failures, policy.failures_in_window) {
            Some(Reason::FailuresInWindow)
        } else if share(counts.failures, policy.failure_percent) {
            Some(Reason::FailureRate)
        } else if share(counts.slow, policy.slow_percent) {
            Some(Reason::SlowRate)
        } else {
            None
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    Closed {
        ramp: Option<Ramp>,
    },
    Open {
        since: Instant,
        until: Instant,
    },
    HalfOpen {
        opened: Instant,
        successes: u32,
        /// Probes that are out.
        probing: u32,
        /// When the last one was let out.
        granted: Instant,
    },
}

/// The calls let through grow. By carrying what a call is short of over to the next one the share is exact.
#[derive(Clone, Copy, Debug)]
struct Ramp {
    since: Instant,
    /// Thousandths of a call.
    credit: u64,
}

#[derive(Debug)]
pub(super) struct Machine {
    policy: Policy,
    phase: Phase,
    /// Counts transitions: what was admitted under another one has nothing to say here any more.
    generation: u64,
    /// Why it is as it is.
    reason: Option<Reason>,
    forced: Option<Forced>,
    window: Window,
    /// Failures in a row, and when the last was.
    row: u32,
    failed: Option<Instant>,
    /// Probes that failed in a row.
    reopenings: u32,
    dice: u64,
}

impl Machine {
    pub(super) fn new(policy: config::Breaker, now: Instant, seed: u64) -> Self {
        let policy = Policy::new(policy);
        Self {
            policy,
            phase: Phase::Closed { ramp: None },
            generation: 0,
            reason: None,
            forced: None,
            window: Window::new(policy.window, now),
            row: 0,
            failed: None,
            reopenings: 0,
            dice: seed,
        }
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// Failures in a row.
    pub(super) fn row(&self) -> u32 {
        self.row
    }

    pub(super) fn forced(&self) -> Option<Forced> {
        self.forced
    }

    /// Whether every call is let through, whatever the time.
    pub(super) fn lets_all_through(&self) -> bool {
        match self.forced {
            Some(forced) => forced == Forced::Closed,
            None => matches!(self.phase, Phase::Closed { ramp: None }),
        }
    }

    /// Whether [`admit`](Self::admit) would let a call through, but for one held back by the ramp.
    pub(super) fn is_ready(&self, now: Instant) -> bool {
        match (self.forced, self.phase) {
            (Some(forced), _) => forced == Forced::Closed,
            (None, Phase::Closed { .. }) => true,
            (None, Phase::Open { until, .. }) => now >= until,
            (None, Phase::HalfOpen { probing, granted, .. }) => probing < self.policy.given.probes || self.is_lost(granted, now),
        }
    }

    /// Whether probes let out at `granted` have been out for so long that another one is due: one that never comes back must not
    /// keep it half-open for ever.
    fn is_lost(&self, granted: Instant, now: Instant) -> bool {
        now.saturating_duration_since(granted) >= self.policy.open
    }

    pub(super) fn admit(&mut self, now: Instant) -> Result<Option<Transition>, Rejected> {
        match self.forced {
            Some(Forced::Open) => return Err(Rejected { retry_after: self.policy.open, forced: true }),
            Some(Forced::Closed) => return Ok(None),
            None => {}
        }
        let mut transition = None;
        if let Phase::Open { since, until } = self.phase {
            let left = until.saturating_duration_since(now);
            if !left.is_zero() {
                return Err(Rejected { retry_after: left, forced: false });
            }
            transition = Some(self.enter(Phase::HalfOpen { opened: since, successes: 0, probing: 0, granted: now }, Reason::Elapsed, now));
        }
        let lease = self.policy.open;
        match &mut self.phase {
            Phase::HalfOpen { probing, granted, .. } => {
                if *probing < self.policy.given.probes {
                    *probing += 1;
                } else if now.saturating_duration_since(*granted) < lease {
                    let due = (*granted + self.policy.open).saturating_duration_since(now);
                    return Err(Rejected { retry_after: due.min(SOON), forced: false });
                }
                *granted = now;
            }
            Phase::Closed { ramp } => {
                if let Some(Ramp { since, credit }) = ramp {
                    let passed = now.saturating_duration_since(*since);
                    if passed >= self.policy.ramp {
                        *ramp = None;
                    } else {
                        *credit += RAMP_FROM + thousandths(passed, self.policy.ramp) * (1_000 - RAMP_FROM) / 1_000;
                        if *credit < 1_000 {
                            return Err(Rejected { retry_after: (self.policy.ramp - passed).min(SOON), forced: false });
                        }
                        *credit -= 1_000;
                    }
                }
            }
            Phase::Open { .. } => {}
        }
        Ok(transition)
    }

    /// What became of a call that was admitted in `generation`. `took` decides whether it was slow.
    pub(super) fn record(&mut self, generation: u64, outcome: Outcome, took: Duration, now: Instant) -> Option<Transition> {
        // Of an earlier generation: it says how the endpoint was, and that is known.
        if generation != self.generation || self.forced.is_some() {
            return None;
        }
        let slow = self.policy.given.slow_percent > 0 && took > self.policy.slow;
        match &mut self.phase {
            Phase::Closed { .. } => {
                let failed = match outcome {
                    Outcome::Ignored => return None,
                    Outcome::Failure => true,
                    Outcome::Success => false,
                };
                if failed {
                    let quiet = self.failed.is_some_and(|last| now.saturating_duration_since(last) > self.policy.row());
                    self.row = if quiet { 1 } else { self.row.saturating_add(1) };
                    self.failed = Some(now);
                } else {
                    self.row = 0;
                }
                let counts = self.window.add(Counts { calls: 1, failures: failed.into(), slow: slow.into() }, now);
                let reason = self.policy.broken(self.row, counts)?;
                Some(self.open(self.policy.open, reason, now))
            }
            // Whatever was admitted in this generation is a probe.
            Phase::HalfOpen { successes, probing, .. } => {
                *probing = probing.saturating_sub(1);
                match outcome {
                    Outcome::Ignored => None,
                    Outcome::Success if !slow => {
                        *successes += 1;
                        (*successes >= self.policy.given.successes).then(|| self.close(now))
                    }
                    Outcome::Success | Outcome::Failure => Some(self.reopen(now)),
                }
            }
            Phase::Open { .. } => None,
        }
    }

    /// Stays or becomes open for `at_least`, but never longer than it would of itself.
    pub(super) fn retry_after(&mut self, at_least: Duration, now: Instant) -> Option<Transition> {
        if at_least.is_zero() || self.forced.is_some() {
            return None;
        }
        let wait = at_least.min(self.policy.longest(MAX_DOUBLINGS));
        if let Phase::Open { until, .. } = &mut self.phase {
            *until = (*until).max(now + wait);
            return None;
        }
        Some(self.open(wait, Reason::RetryAfter, now))
    }

    pub(super) fn force(&mut self, forced: Option<Forced>, now: Instant) -> Option<Transition> {
        let before = std::mem::replace(&mut self.forced, forced);
        if before == forced {
            return None;
        }
        if forced.is_none() {
            self.reopenings = 0;
        }
        // How the endpoint is was not seen while it was forced: it is probed where nobody was let through.
        let phase = match (before, forced) {
            (Some(Forced::Open), None) => Phase::HalfOpen { opened: now, successes: 0, probing: 0, granted: now },
            (Some(Forced::Closed), None) => Phase::Closed { ramp: None },
            (_, Some(_)) | (None, None) => self.phase,
        };
        Some(self.enter(phase, Reason::Forced, now))
    }

    pub(super) fn reset(&mut self, now: Instant) -> Transition {
        self.reopenings = 0;
        self.enter(Phase::Closed { ramp: None }, Reason::Reset, now)
    }

    pub(super) fn set_policy(&mut self, policy: config::Breaker, now: Instant) {
        if policy == self.policy.given {
            return;
        }
        let before = std::mem::replace(&mut self.policy, Policy::new(policy));
        if before.window != self.policy.window {
            self.window = Window::new(self.policy.window, now);
        }
        let longest = now + self.policy.longest(self.reopenings);
        if let Phase::Open { until, .. } = &mut self.phase {
            *until = (*until).min(longest);
        }
    }

    fn open(&mut self, wait: Duration, reason: Reason, now: Instant) -> Transition {
        self.enter(Phase::Open { since: now, until: now + wait }, reason, now)
    }

    fn reopen(&mut self, now: Instant) -> Transition {
        self.reopenings = self.reopenings.saturating_add(1);
        // Half of it is left to chance: else all that saw the endpoint fail would probe it at the same time again.
        let most = self.policy.longest(self.reopenings);
        let wait = most / 2 + most.mul_f64(self.roll() / 2.0);
        let opened = match self.phase {
            Phase::HalfOpen { opened, .. } => opened,
            Phase::Open { .. } | Phase::Closed { .. } => now,
        };
        self.enter(Phase::Open { since: opened, until: now + wait }, Reason::ProbeFailed, now)
    }

    fn close(&mut self, now: Instant) -> Transition {
        self.reopenings = 0;
        let ramp = (!self.policy.ramp.is_zero()).then_some(Ramp { since: now, credit: 0 });
        self.enter(Phase::Closed { ramp }, Reason::ProbesSucceeded, now)
    }

    fn enter(&mut self, phase: Phase, reason: Reason, now: Instant) -> Transition {
        let from = self.state(now);
        self.phase = phase;
        self.generation += 1;
        self.reason = Some(reason);
        self.row = 0;
        self.failed = None;
        self.window.clear(now);
        // A time that has passed made it half-open in all but name.
        let from = if reason == Reason::Elapsed { State::Open } else { from };
        Transition { from, to: self.state(now), reason }
    }

    fn state(&self, now: Instant) -> State {
        match self.phase {
            Phase::Closed { .. } => State::Closed,
            Phase::Open { until, .. } if now < until => State::Open,
            Phase::Open { .. } | Phase::HalfOpen { .. } => State::HalfOpen,
        }
    }

    /// SplitMix64 (Steele, Lea and Flood, 2014), as a number from 0 to 1: chance for jitter, nothing that anybody must not guess.
    fn roll(&mut self) -> f64 {
        self.dice = self.dice.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.dice;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    pub(super) fn snapshot(&mut self, now: Instant) -> Snapshot {
        let ago = |then: Instant| millis(now.saturating_duration_since(then));
        let (opened, until, probing) = match self.phase {
            Phase::Closed { .. } => (None, None, 0),
            Phase::Open { since, until } => (Some(since), Some(until), 0),
            Phase::HalfOpen { opened, probing, .. } => (Some(opened), None, probing),
        };
        let row = self.failed.is_some_and(|last| now.saturating_duration_since(last) <= self.policy.row());
        let counts = self.window.total(now);
        Snapshot {
            state: self.state(now),
            reason: self.reason,
            generation: self.generation,
            forced: self.forced,
            failures: if row { self.row } else { 0 },
            failed_ms_ago: self.failed.map(ago),
            reopenings: self.reopenings,
            opened_ms_ago: opened.map(ago),
            open_for_ms: until.map(|until| millis(until.saturating_duration_since(now))).filter(|ms| *ms > 0),
            probing,
            calls_in_window: counts.calls,
            failures_in_window: counts.failures,
            slow_in_window: counts.slow,
        }
    }

    /// Goes on where another life of it was. Whatever it says, it never stays open for longer than it would have of itself.
    pub(super) fn restore(&mut self, saved: &Snapshot, now: Instant) {
        let then = |ms: Option<u64>| ms.and_then(|ms| now.checked_sub(Duration::from_millis(ms))).unwrap_or(now);
        self.reopenings = match saved.state {
            State::Closed => 0,
            State::Open | State::HalfOpen => saved.reopenings,
        };
        let phase = match saved.state {
            State::Closed => Phase::Closed { ramp: None },
            State::Open | State::HalfOpen => {
                let left = Duration::from_millis(saved.open_for_ms.unwrap_or(0)).min(self.policy.longest(self.reopenings));
                Phase::Open { since: then(saved.opened_ms_ago), until: now + left }
            }
        };
        self.enter(phase, Reason::Restored, now);
        if saved.state == State::Closed && saved.failures > 0 {
            self.row = saved.failures;
            self.failed = Some(then(saved.failed_ms_ago));
        }
    }
}

fn thousandths(part: Duration, whole: Duration) -> u64 {
    u64::try_from(part.as_micros().saturating_mul(1_000) / whole.as_micros().max(1)).unwrap_or(1_000).min(1_000)
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

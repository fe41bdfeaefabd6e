//! What a supervisor decides, without doing any of it: OTP's semantics as a state machine.
//!
//! Owned by the supervisor's state. Told what happened, it answers with [`Step`]s to carry out and never
//! waits: stopping and starting a group goes one step at a time, each taken when the one before has been
//! reported done. Semantics are those of Erlang's `supervisor`, with two additions: the second and later
//! restarts wait out a [`Backoff`], and a start that fails is counted and tried again with it.

use std::{collections::BTreeMap, time::Instant};

use rand::rngs::StdRng;

use super::{
    child::Restart,
    intensity::{Intensity, Window},
};
use crate::backoff::{Backoff, Streak};

/// Which children are restarted when one dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strategy {
    /// The one that died.
    OneForOne,
    /// All: they are stopped in reverse start order, then started in start order.
    OneForAll,
    /// The one that died and those started after it, in the same manner.
    RestForOne,
}

/// A child; ids rise in start order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ChildId(pub(crate) u64);

/// How a child's life ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// It stopped itself in good order.
    Normal,
    /// It died: error, panic, kill.
    Abnormal,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Start it; report [`Plan::up`] or [`Plan::start_failed`].
    Start(ChildId),
    /// Stop it, or call off its start; report [`Plan::ended`].
    Stop(ChildId),
    /// It is no child any more.
    Forget(ChildId),
    /// Too many failures: stop everything in reverse order and fail upward. The plan ends here.
    Fail(ChildId),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Idle,
    Starting,
    Up,
    Stopping,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    /// It is to run.
    Up,
    /// It ended as it may; only a group's restart or an order starts it again.
    Down,
    /// It is to be forgotten once it has ended.
    Gone,
}

#[derive(Debug)]
struct Child {
    restart: Restart,
    phase: Phase,
    wish: Wish,
    not_before: Option<Instant>,
    streak: Streak,
}

/// A group's restart under way: of all children from `from` on.
#[derive(Debug)]
struct Cycle {
    from: ChildId,
    stopping: bool,
    not_before: Instant,
}

/// The decisions of one supervisor.
#[derive(Debug)]
pub(crate) struct Plan {
    strategy: Strategy,
    backoff: Backoff,
    window: Window,
    rng: StdRng,
    children: BTreeMap<ChildId, Child>,
    cycle: Option<Cycle>,
    failed: bool,
}

impl Plan {
    pub(crate) fn new(strategy: Strategy, intensity: Intensity, backoff: Backoff, rng: StdRng) -> Self {
        Self { strategy, backoff, window: Window::new(intensity), rng, children: BTreeMap::new(), cycle: None, failed: false }
    }

    /// A child that already runs, as all do when the supervisor has started.
    pub(crate) fn running(&mut self, id: ChildId, restart: Restart) {
        self.children.insert(id, Child { restart, phase: Phase::Up, wish: Wish::Up, not_before: None, streak: Streak::default() });
    }

    /// A child to be started.
    pub(crate) fn add(&mut self, id: ChildId, restart: Restart, now: Instant) -> Vec<Step> {
        self.children.insert(id, Child { restart, phase: Phase::Idle, wish: Wish::Up, not_before: None, streak: Streak::default() });
        self.advance(now)
    }

    /// The start succeeded.
    pub(crate) fn up(&mut self, id: ChildId, now: Instant) -> Vec<Step> {
        if let Some(child) = self.children.get_mut(&id)
            && child.phase == Phase::Starting
        {
            child.phase = Phase::Up;
        }
        self.advance(now)
    }

    /// The start failed: one more failure, and tried again.
    pub(crate) fn start_failed(&mut self, id: ChildId, now: Instant) -> Vec<Step> {
        self.over(id, None, now)
    }

    /// A life ended, asked for or not.
    pub(crate) fn ended(&mut self, id: ChildId, how: Ending, now: Instant) -> Vec<Step> {
        self.over(id, Some(how), now)
    }

    fn over(&mut self, id: ChildId, how: Option<Ending>, now: Instant) -> Vec<Step> {
        let Some(child) = self.children.get_mut(&id) else { return Vec::new() };
        let asked = child.phase == Phase::Stopping;
        child.phase = Phase::Idle;
        if !asked && child.wish == Wish::Up {
            match (child.restart, how) {
                // A temporary child is never started twice, whatever became of it.
                (Restart::Temporary, _) => child.wish = Wish::Gone,
                (Restart::Transient, Some(Ending::Normal)) => child.wish = Wish::Down,
                (Restart::Permanent | Restart::Transient, _) => {
                    if self.window.exceeded(now) {
                        self.failed = true;
                        return vec![Step::Fail(id)];
                    }
                    let not_before = now + child.streak.failed(now, &self.backoff, &mut self.rng);
                    self.restart_from(id, not_before);
                }
            }
        }
        self.advance(now)
    }

    fn restart_from(&mut self, id: ChildId, not_before: Instant) {
        let first = self.children.keys().next().copied().unwrap_or(id);
        let from = match self.strategy {
            Strategy::OneForOne => {
                if let Some(child) = self.children.get_mut(&id) {
                    child.not_before = Some(not_before);
                }
                return;
            }
            Strategy::OneForAll => first,
            Strategy::RestForOne => id,
        };
        // A failure during a group's restart widens it and begins it again.
        let (from, not_before) = match &self.cycle {
            Some(cycle) => (cycle.from.min(from), cycle.not_before.max(not_before)),
            None => (from, not_before),
        };
        self.cycle = Some(Cycle { from, stopping: true, not_before });
    }

    /// Stops the child if it runs and starts it, with those that a failure of it would take along: they were
    /// opened on what it had. No failure is counted and no backoff waited out.
    pub(crate) fn restart(&mut self, id: ChildId, now: Instant) -> Vec<Step> {
        let mut steps = Vec::new();
        if let Some(child) = self.children.get_mut(&id)
            && child.wish != Wish::Gone
        {
            child.wish = Wish::Up;
            child.not_before = None;
            let runs = matches!(child.phase, Phase::Up | Phase::Starting);
            // A group's restart would end a temporary child for good.
            if runs && self.strategy != Strategy::OneForOne && child.restart != Restart::Temporary {
                self.restart_from(id, now);
            } else if runs {
                child.phase = Phase::Stopping;
                steps.push(Step::Stop(id));
            }
        }
        steps.extend(self.advance(now));
        steps
    }

    /// Stops the child if it runs and forgets it.
    pub(crate) fn remove(&mut self, id: ChildId, now: Instant) -> Vec<Step> {
        let mut steps = Vec::new();
        if let Some(child) = self.children.get_mut(&id) {
            child.wish = Wish::Gone;
            if matches!(child.phase, Phase::Up | Phase::Starting) {
                child.phase = Phase::Stopping;
                steps.push(Step::Stop(id));
            }
        }
        steps.extend(self.advance(now));
        steps
    }

    /// A child that an order added could not be started: it is none.
    pub(crate) fn remove_unstarted(&mut self, id: ChildId, now: Instant) -> Vec<Step> {
        if let Some(child) = self.children.get_mut(&id) {
            child.wish = Wish::Gone;
            child.phase = Phase::Idle;
        }
        self.advance(now)
    }

    /// Whether the supervisor has given up.
    pub(crate) fn has_failed(&self) -> bool {
        self.failed
    }

    /// Whether the child's end was asked for.
    pub(crate) fn is_stopping(&self, id: ChildId) -> bool {
        self.children.get(&id).is_some_and(|child| child.phase == Phase::Stopping)
    }

    /// Whether the child is to run again after the end that was just reported.
    pub(crate) fn returns(&self, id: ChildId) -> bool {
        self.children.get(&id).is_some_and(|child| child.wish == Wish::Up)
    }

    /// When [`advance`](Self::advance) is due though nothing happens.
    pub(crate) fn next(&self) -> Option<Instant> {
        let alone = self.children.values().filter(|child| child.phase == Phase::Idle && child.wish == Wish::Up);
        let alone = alone.filter_map(|child| child.not_before).min();
        let group = self.cycle.as_ref().filter(|cycle| !cycle.stopping).map(|cycle| cycle.not_before);
        alone.into_iter().chain(group).min()
    }

    /// Takes the steps that are due.
    pub(crate) fn advance(&mut self, now: Instant) -> Vec<Step> {
        let mut steps = Vec::new();
        if self.failed {
            return steps;
        }
        self.stop_group(&mut steps);
        self.children.retain(|id, child| {
            let gone = child.wish == Wish::Gone && child.phase == Phase::Idle;
            if gone {
                steps.push(Step::Forget(*id));
            }
            !gone
        });
        self.start_group(now, &mut steps);
        let group = self.cycle.as_ref().map(|cycle| cycle.from);
        for (id, child) in &mut self.children {
            let due = child.not_before.is_none_or(|at| at <= now);
            if group.is_none_or(|from| *id < from) && child.phase == Phase::Idle && child.wish == Wish::Up && due {
                child.phase = Phase::Starting;
                child.not_before = None;
                steps.push(Step::Start(*id));
            }
        }
        steps
    }

    fn stop_group(&mut self, steps: &mut Vec<Step>) {
        let Some(cycle) = self.cycle.as_mut().filter(|cycle| cycle.stopping) else { return };
        let mut group = self.children.range_mut(cycle.from..).rev();
        match group.find(|(_, child)| child.phase != Phase::Idle) {
            Some((id, child)) if child.phase != Phase::Stopping => {
                child.phase = Phase::Stopping;
                steps.push(Step::Stop(*id));
            }
            Some(_) => {}
            None => {
                cycle.stopping = false;
                for (_, child) in self.children.range_mut(cycle.from..) {
                    child.not_before = None;
                    // As in OTP: a group's restart ends temporary children for good and revives the transient that had finished.
                    child.wish = match (child.wish, child.restart) {
                        (Wish::Gone, _) | (_, Restart::Temporary) => Wish::Gone,
                        (Wish::Up | Wish::Down, Restart::Permanent | Restart::Transient) => Wish::Up,
                    };
                }
            }
        }
    }

    fn start_group(&mut self, now: Instant, steps: &mut Vec<Step>) {
        let Some(cycle) = self.cycle.as_ref().filter(|cycle| !cycle.stopping && cycle.not_before <= now) else { return };
        let mut group = self.children.range_mut(cycle.from..).filter(|(_, child)| child.wish == Wish::Up);
        match group.find(|(_, child)| child.phase != Phase::Up) {
            Some((id, child)) if child.phase == Phase::Idle => {
                child.phase = Phase::Starting;
                steps.push(Step::Start(*id));
            }
            Some(_) => {}
            None => self.cycle = None,
        }
    }
}

#[cfg(test)]
mod tests;

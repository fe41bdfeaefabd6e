//! A service with a sick endpoint, on a clock of its own: what its callers see, and what the endpoints have to bear.
//!
//! The calls are made as the engine makes them: an endpoint is chosen, its breaker asked; a failure is retried elsewhere after its
//! backoff, if the budget permits. Events are carried out in the order of their time, so a seed decides everything.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
};

use super::*;
use crate::{
    backoff::Backoff,
    breaker::{Breaker, Outcome, Ticket},
    budget::{Budget, Withdrawal},
};

/// How an endpoint answers.
#[derive(Clone, Copy)]
struct Nature {
    failing: f64,
    latency_ms: f64,
}

const WELL: Nature = Nature { failing: 0.0, latency_ms: 10.0 };
const SICK: Nature = Nature { failing: 0.3, latency_ms: 100.0 };
const DEAD: Nature = Nature { failing: 1.0, latency_ms: 1.0 };

#[derive(Debug)]
struct Seen {
    calls: u32,
    succeeded: u32,
    attempts: u32,
    at: Vec<u32>,
}

impl Seen {
    fn success(&self) -> f64 {
        f64::from(self.succeeded) / f64::from(self.calls)
    }

    fn amplification(&self) -> f64 {
        f64::from(self.attempts) / f64::from(self.calls)
    }
}

/// What becomes of a call at a time.
enum Event {
    Arrives,
    /// A retry's backoff is over.
    Tries(Call),
    Answers(Box<Attempt>),
}

struct Call {
    arrived: Instant,
    exclude: u32,
    retries: u32,
    held: Option<Withdrawal>,
}

struct Attempt {
    call: Call,
    at: usize,
    ticket: Ticket,
    in_flight: InFlight,
    began: Instant,
    failed: bool,
}

const DEADLINE: Duration = Duration::from_secs(2);

struct World {
    start: Instant,
    balance: Balance,
    breakers: Vec<Arc<Breaker>>,
    budget: Arc<Budget>,
    backoff: Backoff,
    policy: config::Retry,
    natures: Vec<Nature>,
    dice: StdRng,
    queue: BinaryHeap<Reverse<(Instant, u64)>>,
    events: HashMap<u64, Event>,
    seen: Seen,
}

impl World {
    fn new(natures: &[Nature], seed: u64) -> Self {
        let (start, policy) = (Instant::now(), config::Retry::default());
        let endpoints = natures.len() as u64;
        Self {
            start,
            balance: Balance::new(natures.iter().map(|_| candidate(1, Locality::Elsewhere, start))),
            breakers: (0..endpoints).map(|n| Arc::new(Breaker::with_seed(config::Breaker::default(), start, seed ^ n))).collect(),
            budget: Arc::new(Budget::new(&policy, start)),
            backoff: Backoff::new(&policy),
            policy,
            natures: natures.into(),
            dice: StdRng::seed_from_u64(seed),
            queue: BinaryHeap::new(),
            events: HashMap::new(),
            seen: Seen { calls: 0, succeeded: 0, attempts: 0, at: vec![0; natures.len()] },
        }
    }

    fn plan(&mut self, at: Instant, event: Event) {
        let number = self.events.len() as u64 + (u64::from(self.seen.calls + self.seen.attempts) << 32);
        let number = (number..).find(|number| !self.events.contains_key(number)).unwrap();
        self.queue.push(Reverse((at, number)));
        self.events.insert(number, event);
    }

    /// So many calls, spread at random over the time they take at `per_second`.
    fn run(mut self, calls: u32, per_second: f64) -> Seen {
        self.plan(self.start, Event::Arrives);
        while let Some(Reverse((now, number))) = self.queue.pop() {
            match self.events.remove(&number).unwrap() {
                Event::Arrives => {
                    self.seen.calls += 1;
                    self.budget.call(now);
                    if self.seen.calls < calls {
                        let gap = -(1.0 - self.dice.random::<f64>()).ln() / per_second;
                        self.plan(now + Duration::from_secs_f64(gap), Event::Arrives);
                    }
                    self.attempt(Call { arrived: now, exclude: 0, retries: 0, held: None }, now);
                }
                Event::Tries(call) => self.attempt(call, now),
                Event::Answers(attempt) => self.answer(*attempt, now),
            }
        }
        assert_eq!(self.budget.held(), 0);
        assert!(self.balance.candidates().iter().all(|one| one.load.in_flight() == 0));
        self.seen
    }

    fn attempt(&mut self, mut call: Call, now: Instant) {
        let at = self.balance.choose(now, call.exclude, self.dice.random(), |at| self.breakers[at].is_ready(now)).unwrap();
        let Ok(ticket) = self.breakers[at].admit(now) else { return self.again(call, at, now) };
        if let Some(held) = &mut call.held {
            held.sent(now);
        }
        self.seen.attempts += 1;
        self.seen.at[at] += 1;
        let Nature { failing, latency_ms } = self.natures[at];
        // Exponential around its mean, as queues are.
        let took = Duration::from_secs_f64(latency_ms / 1e3 * -(1.0 - self.dice.random::<f64>()).ln());
        let failed = self.dice.random::<f64>() < failing;
        let in_flight = self.balance.candidates()[at].load.begin();
        self.plan(now + took, Event::Answers(Box::new(Attempt { call, at, ticket, in_flight, began: now, failed })));
    }

    fn answer(&mut self, attempt: Attempt, now: Instant) {
        let Attempt { mut call, at, ticket, in_flight, began, failed } = attempt;
        let took = now - began;
        in_flight.answered(took, now, !failed);
        let _ = ticket.record(if failed { Outcome::Failure } else { Outcome::Success }, took, now);
        call.held = None;
        if failed {
            self.again(call, at, now);
        } else if now - call.arrived <= DEADLINE {
            self.seen.succeeded += 1;
        }
    }

    fn again(&mut self, mut call: Call, tried: usize, now: Instant) {
        if call.retries >= self.policy.retries {
            return;
        }
        let Some(held) = self.budget.withdraw(now) else { return };
        let at = now + self.backoff.wait(call.retries, None, &mut self.dice);
        if at - call.arrived > DEADLINE {
            return;
        }
        call.exclude |= 1 << tried;
        call.retries += 1;
        call.held = Some(held);
        self.plan(at, Event::Tries(call));
    }
}

/// The promise: at least 99.9 % of the callers succeed, and the endpoints bear at most 1.2 times the calls.
#[test]
fn one_of_three_sick_is_hardly_seen_by_callers_and_costs_little() {
    for (seed, per_second) in [(1, 1_000.0), (2, 100.0), (3, 10_000.0), (4, 10.0)] {
        let seen = World::new(&[WELL, SICK, WELL], seed).run(50_000, per_second);
        println!("{per_second}/s: {:.4} % succeed, {:.4} times the load, {:?}", seen.success() * 100.0, seen.amplification(), seen.at);
        assert!(seen.success() >= 0.999 && seen.amplification() <= 1.2, "seed {seed}: {seen:?}");
    }
}

#[test]
fn one_of_three_dead_is_found_and_left_alone() {
    let seen = World::new(&[WELL, DEAD, WELL], 5).run(50_000, 1_000.0);
    assert!(seen.success() >= 0.999 && seen.amplification() <= 1.01, "{seen:?}");
    assert!(seen.at[1] < 100, "{seen:?}");
}

#[test]
fn when_all_are_dead_nobody_hammers_them() {
    let seen = World::new(&[DEAD, DEAD, DEAD], 6).run(50_000, 1_000.0);
    assert!(seen.amplification() <= 0.01, "{seen:?}");
}

#[test]
fn when_all_are_sick_what_retries_add_is_what_the_budget_permits() {
    let sick = Nature { failing: 0.45, latency_ms: 10.0 };
    let seen = World::new(&[sick, sick, sick], 7).run(100_000, 1_000.0);
    assert!(seen.amplification() <= 1.21, "{seen:?}");
}

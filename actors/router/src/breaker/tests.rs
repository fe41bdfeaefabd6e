mod model;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::atomic::{AtomicU32, Ordering::SeqCst},
};

use super::*;

const MS: Duration = Duration::from_millis(1);
const S: Duration = Duration::from_secs(1);

/// Only failures in a row: the other conditions are switched on where they are tested.
fn in_a_row(failures: u32) -> config::Breaker {
    config::Breaker { failures, failure_percent: 0, open_ms: 10_000, successes: 1, ..config::Breaker::default() }
}

struct World {
    breaker: Arc<Breaker>,
    now: Instant,
}

impl World {
    fn new(policy: config::Breaker) -> Self {
        let now = Instant::now();
        Self { breaker: Arc::new(Breaker::with_seed(policy, now, 7)), now }
    }

    fn call(&self, outcome: Outcome) -> Option<Transition> {
        self.took(outcome, MS)
    }

    fn took(&self, outcome: Outcome, took: Duration) -> Option<Transition> {
        self.breaker.admit(self.now).unwrap().record(outcome, took, self.now)
    }

    fn fail(&self, times: u32) {
        for _ in 0..times {
            self.call(Outcome::Failure);
        }
    }

    fn state(&self) -> State {
        self.breaker.snapshot(self.now).state
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
    }

    fn refused(&self) -> Rejected {
        self.breaker.admit(self.now).map(drop).unwrap_err()
    }
}

#[test]
fn five_failures_open_it_for_thirty_seconds_and_two_successes_close_it() {
    let mut world = World::new(config::Breaker::default());
    world.fail(4);
    assert_eq!(world.state(), State::Closed);
    let opened = world.call(Outcome::Failure).unwrap();
    assert_eq!(opened, Transition { from: State::Closed, to: State::Open, reason: Reason::FailuresInARow });
    assert_eq!(world.refused(), Rejected { retry_after: 30 * S, forced: false });
    world.pass(30 * S - MS);
    assert_eq!(world.refused().retry_after, MS);
    world.pass(MS);
    assert_eq!(world.call(Outcome::Success), None);
    assert_eq!(world.state(), State::HalfOpen);
    let closed = world.call(Outcome::Success).unwrap();
    assert_eq!(closed, Transition { from: State::HalfOpen, to: State::Closed, reason: Reason::ProbesSucceeded });
}

#[test]
fn a_success_in_between_ends_the_row_and_so_does_a_time_in_which_it_would_have_recovered() {
    let mut world = World::new(in_a_row(3));
    for _ in 0..10 {
        world.fail(2);
        world.call(Outcome::Success);
    }
    assert_eq!(world.state(), State::Closed);
    // Five in a week, and nothing in between.
    for _ in 0..5 {
        world.call(Outcome::Failure);
        world.pass(24 * 3_600 * S);
    }
    assert_eq!(world.state(), State::Closed);
    for _ in 0..3 {
        world.call(Outcome::Failure);
        world.pass(9 * S);
    }
    assert_ne!(world.state(), State::Closed, "rarely called, and it never answers");
}

#[test]
fn every_second_call_failing_opens_it_by_rate_once_there_are_enough_calls() {
    let world = World::new(config::Breaker { failure_percent: 50, minimum_calls: 20, ..in_a_row(5) });
    let mut calls = 0;
    let opened = loop {
        calls += 1;
        let outcome = if calls % 2 == 0 { Outcome::Failure } else { Outcome::Success };
        if let Some(transition) = world.call(outcome) {
            break transition;
        }
    };
    assert_eq!((calls, opened.reason), (20, Reason::FailureRate));
}

#[test]
fn so_many_failures_within_the_window_open_it_and_those_before_do_not_count() {
    let mut world = World::new(config::Breaker { failures_in_window: 4, window_ms: 10_000, ..in_a_row(0) });
    for _ in 0..20 {
        world.fail(1);
        for _ in 0..100 {
            world.call(Outcome::Success);
        }
        world.pass(4 * S);
    }
    assert_eq!(world.state(), State::Closed, "three within any ten seconds");
    world.fail(1);
    let reason = world.call(Outcome::Failure).map(|transition| transition.reason);
    assert_eq!(reason, Some(Reason::FailuresInWindow), "two now, and two four and eight seconds ago");
}

#[test]
fn slow_calls_open_it_although_they_succeed_and_a_slow_probe_keeps_it_open() {
    let mut world = World::new(config::Breaker { slow_percent: 40, slow_ms: 100, minimum_calls: 10, ..in_a_row(0) });
    for call in 0..9 {
        assert_eq!(world.took(Outcome::Success, if call % 2 == 0 { 101 * MS } else { 100 * MS }), None);
    }
    assert_eq!(world.took(Outcome::Success, MS).unwrap().reason, Reason::SlowRate);
    world.pass(10 * S);
    assert_eq!(world.took(Outcome::Success, S).unwrap().reason, Reason::ProbeFailed);
    world.pass(20 * S);
    assert_eq!(world.took(Outcome::Success, MS).unwrap().to, State::Closed);
}

#[test]
fn what_says_nothing_of_the_endpoint_counts_for_nothing() {
    let world = World::new(config::Breaker { failures_in_window: 1, failure_percent: 1, minimum_calls: 1, ..in_a_row(1) });
    for _ in 0..100 {
        world.call(Outcome::Ignored);
        drop(world.breaker.admit(world.now).unwrap());
    }
    let snapshot = world.breaker.snapshot(world.now);
    assert_eq!((snapshot.state, snapshot.calls_in_window, snapshot.failures), (State::Closed, 0, 0));
}

#[test]
fn a_panic_on_the_way_is_a_failure() {
    let world = World::new(in_a_row(1));
    let ticket = world.breaker.admit(world.now).unwrap();
    let panicked = catch_unwind(AssertUnwindSafe(move || {
        let _ticket = ticket;
        panic!("the handler's");
    }));
    assert!(panicked.is_err());
    assert_eq!(world.breaker.snapshot(Instant::now()).state, State::Open);
}

#[test]
fn half_open_lets_out_its_quota_and_a_cancelled_probe_gives_its_place_back() {
    let mut world = World::new(config::Breaker { probes: 2, successes: 3, ..in_a_row(1) });
    world.fail(1);
    world.pass(10 * S);
    let (one, other) = (world.breaker.admit(world.now).unwrap(), world.breaker.admit(world.now).unwrap());
    let refused = world.refused();
    assert!(!refused.forced && refused.retry_after <= S && !refused.retry_after.is_zero(), "{refused:?}");
    assert!(!world.breaker.is_ready(world.now));
    drop(one);
    let again = world.breaker.admit(world.now).unwrap();
    assert!(world.breaker.admit(world.now).is_err());
    assert_eq!(again.record(Outcome::Ignored, MS, world.now), None);
    assert_eq!(other.record(Outcome::Success, MS, world.now), None);
    assert_eq!(world.call(Outcome::Success), None);
    assert_eq!(world.call(Outcome::Success).unwrap().to, State::Closed);
}

#[test]
fn a_probe_that_never_comes_back_does_not_keep_it_half_open_for_ever() {
    let mut world = World::new(in_a_row(1));
    world.fail(1);
    world.pass(10 * S);
    let lost = world.breaker.admit(world.now).unwrap();
    world.pass(10 * S - MS);
    assert_eq!(world.refused().retry_after, MS);
    world.pass(MS);
    assert!(world.breaker.is_ready(world.now));
    assert_eq!(world.call(Outcome::Success).unwrap().to, State::Closed);
    assert_eq!(lost.record(Outcome::Failure, 20 * S, world.now), None);
    assert_eq!(world.state(), State::Closed);
}

#[test]
fn what_was_admitted_before_it_turned_neither_keeps_it_open_nor_closes_it() {
    let mut world = World::new(config::Breaker { successes: 1, probes: 1, ..in_a_row(1) });
    let stragglers: Vec<_> = (0..4).map(|_| world.breaker.admit(world.now).unwrap()).collect();
    let mut stragglers = stragglers.into_iter();
    world.fail(1);
    world.pass(5 * S);
    assert_eq!(stragglers.next().unwrap().record(Outcome::Failure, 5 * S, world.now), None);
    assert_eq!(world.refused().retry_after, 5 * S, "not a moment longer");
    world.pass(5 * S);
    let probe = world.breaker.admit(world.now).unwrap();
    assert_eq!(stragglers.next().unwrap().record(Outcome::Success, 10 * S, world.now), None);
    assert_eq!(stragglers.next().unwrap().record(Outcome::Failure, 10 * S, world.now), None);
    drop(stragglers);
    assert_eq!(world.state(), State::HalfOpen);
    assert!(world.breaker.admit(world.now).is_err(), "nor did they give back a place that was not theirs");
    assert_eq!(probe.record(Outcome::Success, MS, world.now).unwrap().to, State::Closed);
}

#[test]
fn each_probe_that_fails_doubles_the_wait_up_to_eight_times_with_jitter_and_closing_forgets_it() {
    for seed in 0..50 {
        let start = Instant::now();
        let mut world = World { breaker: Arc::new(Breaker::with_seed(in_a_row(1), start, seed)), now: start };
        world.fail(1);
        world.pass(world.refused().retry_after);
        for most in [20, 40, 80, 80, 80] {
            assert_eq!(world.call(Outcome::Failure).unwrap().reason, Reason::ProbeFailed);
            let wait = world.refused().retry_after;
            assert!(wait >= most * S / 2 && wait <= most * S, "seed {seed}: {wait:?} of {most} s");
            world.pass(wait);
        }
        assert_eq!(world.call(Outcome::Success).unwrap().to, State::Closed);
        world.fail(1);
        assert_eq!(world.refused().retry_after, 10 * S);
    }
    let waits = (0..50).map(|seed| {
        let start = Instant::now();
        let mut world = World { breaker: Arc::new(Breaker::with_seed(in_a_row(1), start, seed)), now: start };
        world.fail(1);
        world.pass(10 * S);
        world.fail(1);
        world.refused().retry_after
    });
    assert!(waits.collect::<std::collections::BTreeSet<_>>().len() > 45, "not all at the same time");
}

#[test]
fn after_closing_the_calls_let_through_grow_from_a_tenth_to_all() {
    let mut world = World::new(config::Breaker { ramp_ms: 10_000, ..in_a_row(1) });
    world.fail(1);
    world.pass(10 * S);
    world.call(Outcome::Success);
    let mut passed = Vec::new();
    for _ in 0..11 {
        let through = (0..1_000)
            .filter(|_| world.breaker.admit(world.now).is_ok_and(|ticket| ticket.record(Outcome::Success, MS, world.now).is_none()));
        passed.push(through.count());
        world.pass(S);
    }
    let wanted: Vec<_> = (0..11).map(|second| 100 + second * 90).collect();
    assert!(passed.iter().zip(&wanted).all(|(passed, wanted)| passed.abs_diff(*wanted) <= 1), "{passed:?}");
    world.fail(1);
    assert_eq!(world.state(), State::Open);
}

#[test]
fn a_time_that_the_endpoint_named_is_kept_within_bounds() {
    let mut world = World::new(in_a_row(5));
    assert_eq!(world.breaker.retry_after(Duration::ZERO, world.now), None);
    let opened = world.breaker.retry_after(3 * S, world.now).unwrap();
    assert_eq!((opened.to, opened.reason, world.refused().retry_after), (State::Open, Reason::RetryAfter, 3 * S));
    assert_eq!(world.breaker.retry_after(S, world.now), None);
    assert_eq!(world.refused().retry_after, 3 * S, "the longest counts");
    world.breaker.retry_after(Duration::MAX, world.now);
    assert_eq!(world.refused().retry_after, 80 * S, "a year would be a way to take itself out");
    world.pass(80 * S);
    assert_eq!(world.call(Outcome::Success).unwrap().to, State::Closed);
}

#[test]
fn what_an_operator_forces_holds_whatever_happens_and_leaves_no_trace() {
    let mut world = World::new(in_a_row(1));
    let straggler = world.breaker.admit(world.now).unwrap();
    world.breaker.force(Some(Forced::Open), world.now);
    assert!(world.refused().forced && !world.breaker.is_ready(world.now) && world.breaker.snapshot(world.now).refuses());
    assert_eq!(straggler.record(Outcome::Failure, MS, world.now), None);
    world.pass(3_600 * S);
    assert!(world.refused().forced);
    world.breaker.force(None, world.now);
    assert_eq!(world.state(), State::HalfOpen, "after maintenance it is probed");
    assert_eq!(world.call(Outcome::Success).unwrap().to, State::Closed);
    world.fail(1);
    world.breaker.force(Some(Forced::Closed), world.now);
    for _ in 0..1_000 {
        assert_eq!(world.call(Outcome::Failure), None);
    }
    world.breaker.retry_after(S, world.now);
    assert!(world.breaker.is_ready(world.now));
    world.breaker.force(None, world.now);
    assert_eq!((world.state(), world.breaker.snapshot(world.now).calls_in_window), (State::Closed, 0));
    world.fail(1);
    assert_eq!(world.breaker.reset(world.now), Transition { from: State::Open, to: State::Closed, reason: Reason::Reset });
    assert!(world.breaker.admit(world.now).is_ok());
}

#[test]
fn another_policy_holds_at_once_and_shortens_what_it_would_not_have_waited() {
    let mut world = World::new(config::Breaker { open_ms: 3_600_000, ..in_a_row(1) });
    world.fail(1);
    world.breaker.set_policy(config::Breaker { open_ms: 1_000, ..in_a_row(3) }, world.now);
    assert_eq!(world.refused().retry_after, S);
    world.pass(S);
    world.call(Outcome::Success);
    world.fail(2);
    assert_eq!(world.state(), State::Closed);
}

#[test]
fn a_policy_of_zeroes_neither_panics_nor_stays_open_for_ever() {
    let zero = config::Breaker {
        failures: 1,
        failures_in_window: 0,
        failure_percent: 0,
        slow_percent: 0,
        slow_ms: 0,
        minimum_calls: 0,
        window_ms: 0,
        open_ms: 0,
        successes: 0,
        probes: 0,
        ramp_ms: 0,
    };
    let huge = config::Breaker { window_ms: u64::MAX, open_ms: u64::MAX, slow_ms: u64::MAX, ramp_ms: u64::MAX, ..zero };
    for policy in [zero, huge] {
        let mut world = World::new(policy);
        for _ in 0..10 {
            world.fail(1);
            world.pass(world.refused().retry_after);
        }
        assert_eq!(world.call(Outcome::Success).unwrap().to, State::Closed);
    }
}

#[test]
fn restored_it_goes_on_counting_and_is_never_open_for_longer_than_it_could_be() {
    let restored = |saved: Snapshot| {
        let world = World::new(in_a_row(5));
        world.breaker.restore(&saved, world.now);
        world
    };
    let world = World::new(in_a_row(5));
    world.fail(4);
    // A restart at every failure: the fifth life opens.
    let world = restored(world.breaker.snapshot(world.now));
    assert_eq!(world.call(Outcome::Failure).unwrap().to, State::Open);
    let open = world.breaker.snapshot(world.now);
    assert_eq!(restored(open).refused().retry_after, 10 * S);
    for (ahead, wait) in [(Some(u64::MAX), 10), (Some(5_000), 5)] {
        assert_eq!(restored(Snapshot { open_for_ms: ahead, ..open }).refused().retry_after, wait * S);
    }
    let doubled = Snapshot { open_for_ms: Some(u64::MAX), reopenings: u32::MAX, ..open };
    assert_eq!(restored(doubled).refused().retry_after, 80 * S);
    for over in [Snapshot { open_for_ms: None, ..open }, Snapshot { state: State::HalfOpen, probing: 1, ..open }] {
        let over = Snapshot { open_for_ms: None, ..over };
        let world = restored(over);
        assert_eq!(world.call(Outcome::Success).unwrap().to, State::Closed, "its probes were lost with the life before");
    }
    let old = Snapshot { state: State::Closed, failures: 4, failed_ms_ago: Some(11_000), open_for_ms: None, ..open };
    assert_eq!(restored(old).call(Outcome::Failure), None, "a row that ended long ago");
    let unknown = Snapshot { failed_ms_ago: Some(u64::MAX), opened_ms_ago: Some(u64::MAX), ..open };
    assert_eq!(restored(unknown).state(), State::Open);
}

#[test]
fn whoever_asks_at_once_no_more_probes_are_out_than_its_quota() {
    for quota in [1, 3] {
        let mut world = World::new(config::Breaker { probes: quota, successes: 1_000, open_ms: 3_600_000, ..in_a_row(1) });
        world.fail(1);
        world.pass(3_600 * S);
        let (out, most, passed) = (AtomicU32::new(0), AtomicU32::new(0), AtomicU32::new(0));
        std::thread::scope(|scope| {
            for thread in 0..8u32 {
                let (world, out, most, passed) = (&world, &out, &most, &passed);
                scope.spawn(move || {
                    for round in 0..2_000 {
                        let Ok(ticket) = world.breaker.admit(world.now) else { continue };
                        most.fetch_max(out.fetch_add(1, SeqCst) + 1, SeqCst);
                        passed.fetch_add(1, SeqCst);
                        std::thread::yield_now();
                        out.fetch_sub(1, SeqCst);
                        match (thread + round) % 3 {
                            0 => drop(ticket),
                            _ => drop(ticket.record(Outcome::Ignored, MS, world.now)),
                        }
                    }
                });
            }
        });
        assert!(most.load(SeqCst) <= quota, "{most:?} of {quota}");
        assert!(passed.load(SeqCst) >= quota);
        assert_eq!(world.breaker.snapshot(world.now).probing, 0, "all places were given back");
    }
}

#[test]
fn turning_and_using_at_once_loses_no_place() {
    let world = World::new(config::Breaker { open_ms: 1, successes: 2, probes: 2, ..in_a_row(2) });
    let start = world.now;
    std::thread::scope(|scope| {
        for thread in 0..6u64 {
            let breaker = &world.breaker;
            scope.spawn(move || {
                for round in 0..5_000u64 {
                    let now = start + Duration::from_micros(round * 100);
                    let Ok(ticket) = breaker.admit(now) else { continue };
                    match (thread * 7 + round * 13) % 5 {
                        0 | 1 => drop(ticket.record(Outcome::Success, MS, now)),
                        2 | 3 => drop(ticket.record(Outcome::Failure, MS, now)),
                        _ => drop(ticket),
                    }
                }
            });
        }
    });
    let end = start + 3_600 * S;
    let snapshot = world.breaker.snapshot(end);
    assert_eq!(snapshot.probing, 0, "{snapshot:?}");
    assert!(snapshot.generation > 10, "{snapshot:?}");
    for _ in 0..2 {
        world.breaker.admit(end).unwrap().record(Outcome::Success, MS, end);
    }
    assert_eq!(world.breaker.snapshot(end).state, State::Closed);
}

/// Not a check of speed but a way to see it: `cargo test --release -p horos-router cost -- --ignored --nocapture`.
#[test]
#[ignore = "prints a figure"]
fn admit_and_record_cost() {
    let world = World::new(config::Breaker::default());
    let rounds = 10_000_000u32;
    let started = Instant::now();
    for _ in 0..rounds {
        std::hint::black_box(world.breaker.admit(world.now).unwrap().record(Outcome::Success, MS, world.now));
    }
    println!("admit + record: {:.1} ns", started.elapsed().as_secs_f64() * 1e9 / f64::from(rounds));
}

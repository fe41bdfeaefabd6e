use std::{collections::BTreeSet, time::Duration};

use rand::{Rng, RngExt as _, SeedableRng as _, seq::IndexedRandom as _};

use super::*;

const LONG: Duration = Duration::from_secs(3600);

fn plan(strategy: Strategy, max: u32, backoff: Backoff) -> Plan {
    Plan::new(strategy, Intensity { max, within: LONG }, backoff, StdRng::seed_from_u64(1))
}

fn running(strategy: Strategy, max: u32) -> Plan {
    let mut plan = plan(strategy, max, Backoff::NONE);
    (0..3).for_each(|id| plan.running(ChildId(id), Restart::Permanent));
    plan
}

#[test]
fn one_failure_too_many_ends_the_plan() {
    let (mut plan, now) = (running(Strategy::OneForOne, 1), Instant::now());
    assert_eq!(plan.ended(ChildId(0), Ending::Abnormal, now), [Step::Start(ChildId(0))]);
    assert_eq!(plan.start_failed(ChildId(0), now), [Step::Fail(ChildId(0))]);
    assert_eq!(plan.ended(ChildId(1), Ending::Abnormal, now), [Step::Fail(ChildId(1))]);
    assert_eq!(plan.advance(now), []);
}

#[test]
fn a_permanent_child_that_stops_itself_counts_as_a_failure() {
    let (mut plan, now) = (running(Strategy::OneForOne, 0), Instant::now());
    assert_eq!(plan.ended(ChildId(0), Ending::Normal, now), [Step::Fail(ChildId(0))]);
}

#[test]
fn a_failure_before_the_group_is_up_again_widens_the_group() {
    let (mut plan, now) = (running(Strategy::RestForOne, 9), Instant::now());
    assert_eq!(plan.ended(ChildId(2), Ending::Abnormal, now), [Step::Start(ChildId(2))]);
    assert_eq!(plan.ended(ChildId(1), Ending::Abnormal, now), [Step::Stop(ChildId(2))]);
    assert_eq!(plan.ended(ChildId(0), Ending::Abnormal, now), [], "two is on its way out already");
    assert_eq!(plan.ended(ChildId(2), Ending::Normal, now), [Step::Start(ChildId(0))]);
    assert_eq!(plan.up(ChildId(0), now), [Step::Start(ChildId(1))]);
    assert_eq!(plan.up(ChildId(1), now), [Step::Start(ChildId(2))]);
    assert_eq!(plan.up(ChildId(2), now), []);
}

#[test]
fn a_failure_while_the_group_stops_does_not_narrow_it() {
    let (mut plan, now) = (running(Strategy::RestForOne, 9), Instant::now());
    assert_eq!(plan.ended(ChildId(0), Ending::Abnormal, now), [Step::Stop(ChildId(2))]);
    assert_eq!(plan.ended(ChildId(1), Ending::Abnormal, now), [], "nobody starts before all have stopped");
    assert_eq!(plan.ended(ChildId(2), Ending::Normal, now), [Step::Start(ChildId(0))]);
}

#[test]
fn a_group_that_failed_twice_waits_before_it_starts_but_not_before_it_stops() {
    let rule = Backoff { base: Duration::from_secs(10), cap: Duration::from_secs(10), quiet: LONG };
    let (mut plan, now) = (plan(Strategy::OneForAll, 9, rule), Instant::now());
    (0..2).for_each(|id| plan.running(ChildId(id), Restart::Permanent));
    assert_eq!(plan.ended(ChildId(0), Ending::Abnormal, now), [Step::Stop(ChildId(1))]);
    assert_eq!(plan.ended(ChildId(1), Ending::Normal, now), [Step::Start(ChildId(0))], "the first restart is immediate");
    assert_eq!(plan.start_failed(ChildId(0), now), []);
    let due = plan.next().expect("a second restart waits");
    assert!(due > now && due <= now + Duration::from_secs(10));
    assert_eq!(plan.advance(now), []);
    assert_eq!(plan.advance(due), [Step::Start(ChildId(0))]);
}

#[test]
fn an_order_to_restart_waits_out_no_backoff_and_counts_nothing() {
    let rule = Backoff { base: LONG, cap: LONG, quiet: LONG };
    let (mut plan, now) = (plan(Strategy::OneForOne, 2, rule), Instant::now());
    plan.running(ChildId(0), Restart::Permanent);
    for _ in 0..10 {
        assert_eq!(plan.restart(ChildId(0), now), [Step::Stop(ChildId(0))]);
        assert_eq!(plan.ended(ChildId(0), Ending::Abnormal, now), [Step::Start(ChildId(0))]);
        assert_eq!(plan.up(ChildId(0), now), []);
    }
    plan.ended(ChildId(0), Ending::Abnormal, now);
    plan.up(ChildId(0), now);
    assert_eq!(plan.ended(ChildId(0), Ending::Abnormal, now), []);
    assert_eq!(plan.restart(ChildId(0), now), [Step::Start(ChildId(0))]);
}

/// A supervisor's children in the test's hands: what the plan asked for is reported when the test feels like it.
#[derive(Default)]
struct Children {
    up: BTreeSet<ChildId>,
    starting: BTreeSet<ChildId>,
    stopping: BTreeSet<ChildId>,
    failed: bool,
}

impl Children {
    fn take(&mut self, steps: Vec<Step>, in_order: bool) {
        for step in steps {
            assert!(!self.failed, "{step:?} after the end");
            match step {
                Step::Start(id) => {
                    let elsewhere = self.up.contains(&id) || self.stopping.contains(&id);
                    assert!(!elsewhere && self.starting.insert(id), "{id:?} would live twice");
                    if in_order {
                        assert!(self.up.iter().all(|other| *other < id), "{id:?} started before an earlier one");
                    }
                }
                Step::Stop(id) => {
                    assert!(self.up.remove(&id) || self.starting.contains(&id), "{id:?} does not live");
                    assert!(self.stopping.insert(id), "{id:?} is stopped twice");
                }
                Step::Forget(id) => {
                    assert!(!self.up.contains(&id) && !self.starting.contains(&id) && !self.stopping.contains(&id), "{id:?} still lives");
                }
                Step::Fail(_) => self.failed = true,
            }
        }
    }
}

fn pick(set: &BTreeSet<ChildId>, rng: &mut impl Rng) -> Option<ChildId> {
    let all: Vec<_> = set.iter().copied().collect();
    all.choose(rng).copied()
}

#[test]
fn in_any_order_of_reports_nobody_lives_twice_and_all_is_up_in_the_end() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    for _ in 0..2_000 {
        let strategy = *[Strategy::OneForOne, Strategy::OneForAll, Strategy::RestForOne].choose(&mut rng).unwrap();
        // An order restarts one child of a group alone; without orders, a group's starts are in order.
        let orders: bool = rng.random();
        let in_order = !orders && strategy == Strategy::OneForAll;
        let rule = Backoff { base: Duration::from_millis(5), cap: Duration::from_secs(1), quiet: Duration::from_secs(1) };
        let (mut plan, mut children, mut now) = (plan(strategy, 10_000, rule), Children::default(), Instant::now());
        let count = rng.random_range(1..6);
        for id in (0..count).map(ChildId) {
            plan.running(id, Restart::Permanent);
            children.up.insert(id);
        }
        for turn in 0..300 {
            now += Duration::from_millis(rng.random_range(0..20));
            // Towards the end nothing more goes wrong.
            let trouble = turn < 100;
            let steps = match rng.random_range(0..7) {
                0 if trouble => pick(&children.up, &mut rng).map(|id| {
                    children.up.remove(&id);
                    plan.ended(id, if rng.random() { Ending::Normal } else { Ending::Abnormal }, now)
                }),
                1 if trouble && orders => Some(plan.restart(ChildId(rng.random_range(0..count)), now)),
                2 => pick(&children.starting, &mut rng).map(|id| {
                    children.starting.remove(&id);
                    if children.stopping.contains(&id) {
                        // Called off; the actor that started all the same is stopped at once, or never was.
                        children.stopping.remove(&id);
                        plan.ended(id, Ending::Normal, now)
                    } else if trouble && rng.random() {
                        plan.start_failed(id, now)
                    } else {
                        children.up.insert(id);
                        plan.up(id, now)
                    }
                }),
                3 | 4 => pick(&children.stopping, &mut rng).filter(|id| !children.starting.contains(id)).map(|id| {
                    children.stopping.remove(&id);
                    plan.ended(id, Ending::Normal, now)
                }),
                _ => plan.next().is_some_and(|due| due <= now).then(|| plan.advance(now)),
            };
            children.take(steps.unwrap_or_default(), in_order);
        }
        while children.up.len() < count as usize {
            let steps = if let Some(id) = children.stopping.pop_last() {
                children.starting.remove(&id);
                plan.ended(id, Ending::Normal, now)
            } else if let Some(id) = children.starting.pop_last() {
                children.up.insert(id);
                plan.up(id, now)
            } else {
                now = plan.next().expect("with nothing under way, something is due");
                plan.advance(now)
            };
            children.take(steps, in_order);
        }
        assert_eq!(plan.next(), None);
    }
}

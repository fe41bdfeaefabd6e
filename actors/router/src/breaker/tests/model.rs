//! The breaker against a simple one, that remembers everything and computes anew what it wants to know.

use proptest::prelude::*;

use super::*;

/// All times are whole buckets of the window: then it is known exactly what is in it.
const BUCKET_MS: u64 = 1_000;

#[derive(Clone, Debug)]
enum Step {
    Pass(u64),
    Admit,
    /// Of those that are out, counted from the oldest and round again.
    Record(usize, Outcome, Slow),
    Drop(usize),
    RetryAfter(u64),
    Force(Option<Forced>),
    Reset,
}

#[derive(Clone, Copy, Debug)]
enum Slow {
    Yes,
    No,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let outcome = prop_oneof![1 => Just(Outcome::Success), 2 => Just(Outcome::Failure), 1 => Just(Outcome::Ignored)];
    let step = prop_oneof![
        3 => (0u64..7).prop_map(Step::Pass),
        1 => (7u64..50).prop_map(Step::Pass),
        20 => Just(Step::Admit),
        20 => (any::<usize>(), outcome, prop_oneof![3 => Just(Slow::No), 1 => Just(Slow::Yes)]).prop_map(|(at, outcome, slow)| Step::Record(at, outcome, slow)),
        4 => any::<usize>().prop_map(Step::Drop),
        1 => (0u64..200).prop_map(Step::RetryAfter),
        1 => prop_oneof![Just(None), Just(Some(Forced::Open)), Just(Some(Forced::Closed))].prop_map(Step::Force),
        1 => Just(Step::Reset),
    ];
    prop::collection::vec(step, 1..250)
}

fn policies() -> impl Strategy<Value = config::Breaker> {
    (0u32..5, 0u32..6, prop_oneof![Just(0u32), 20u32..90], prop_oneof![Just(0u32), 20u32..90], 1u32..8, 1u64..20, 1u32..4, 1u32..4)
        .prop_map(|(failures, failures_in_window, failure_percent, slow_percent, minimum_calls, open, successes, probes)| config::Breaker {
            failures,
            failures_in_window,
            failure_percent,
            slow_percent,
            slow_ms: 100,
            minimum_calls,
            window_ms: BUCKET_MS * 10,
            open_ms: open * BUCKET_MS,
            successes,
            probes,
            ramp_ms: 0,
        })
}

/// A call that came back while it was closed: when, and how.
type Came = (u64, bool, bool);

#[derive(Debug, PartialEq)]
enum Is {
    Closed(Vec<Came>),
    Open { until_ms: u64 },
    HalfOpen { successes: u32, out: Vec<u64>, granted: u64 },
}

struct Model {
    policy: config::Breaker,
    is: Is,
    /// Tickets below were given out before the last transition.
    first: u64,
    next: u64,
    reopenings: u32,
    forced: Option<Forced>,
}

impl Model {
    fn turn(&mut self, is: Is) {
        self.is = is;
        self.first = self.next;
    }

    fn admit(&mut self, now: u64) -> Option<u64> {
        match self.forced {
            Some(Forced::Open) => return None,
            Some(Forced::Closed) => {}
            None => {
                if let Is::Open { until_ms } = self.is {
                    if now * BUCKET_MS < until_ms {
                        return None;
                    }
                    self.turn(Is::HalfOpen { successes: 0, out: Vec::new(), granted: now });
                }
                if let Is::HalfOpen { out, granted, .. } = &mut self.is {
                    if out.len() >= self.policy.probes as usize {
                        if (now - *granted) * BUCKET_MS < self.policy.open_ms {
                            return None;
                        }
                        // Given up: its place is another's.
                        out.pop();
                    }
                    out.push(self.next);
                    *granted = now;
                }
            }
        }
        self.next += 1;
        Some(self.next - 1)
    }

    /// Whether it is to open; the caller knows for how long.
    fn record(&mut self, ticket: u64, outcome: Outcome, slow: Slow, now: u64) -> bool {
        if ticket < self.first || self.forced.is_some() {
            return false;
        }
        let policy = self.policy;
        let slow = policy.slow_percent > 0 && matches!(slow, Slow::Yes);
        match &mut self.is {
            Is::Open { .. } => false,
            Is::Closed(came) => {
                if outcome != Outcome::Ignored {
                    came.push((now, outcome == Outcome::Failure, slow));
                }
                outcome != Outcome::Ignored && Self::is_broken(&policy, came, now)
            }
            Is::HalfOpen { successes, out, .. } => {
                // Whichever it is: a place is a place.
                out.pop();
                match outcome {
                    Outcome::Ignored => false,
                    Outcome::Success if !slow => {
                        *successes += 1;
                        if *successes >= policy.successes {
                            self.reopenings = 0;
                            self.turn(Is::Closed(Vec::new()));
                        }
                        false
                    }
                    Outcome::Success | Outcome::Failure => {
                        self.reopenings += 1;
                        true
                    }
                }
            }
        }
    }

    fn is_broken(policy: &config::Breaker, came: &[Came], now: u64) -> bool {
        let quiet = policy.open_ms.max(policy.window_ms) / BUCKET_MS;
        let mut row = 0;
        let mut last = None;
        for (at, failed, _) in came {
            row = match (failed, last) {
                (false, _) => 0,
                (true, Some(last)) if at - last > quiet => 1,
                (true, _) => row + 1,
            };
            if *failed {
                last = Some(*at);
            }
        }
        let window: Vec<_> = came.iter().filter(|(at, ..)| now - at < 10).collect();
        let (failures, slow) = (window.iter().filter(|call| call.1).count(), window.iter().filter(|call| call.2).count());
        let share = |count: usize, percent: u32| {
            percent > 0 && window.len() >= policy.minimum_calls as usize && count * 100 >= window.len() * percent as usize
        };
        policy.failures > 0 && row >= policy.failures
            || policy.failures_in_window > 0 && failures >= policy.failures_in_window as usize
            || share(failures, policy.failure_percent)
            || share(slow, policy.slow_percent)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if std::env::var_os("HOROS_TEST_FULL").is_some() { 20_000 } else { 400 }, ..ProptestConfig::default() })]

    #[test]
    fn it_does_what_a_simple_one_does(policy in policies(), steps in steps(), seed in any::<u64>()) {
        let start = Instant::now();
        let breaker = Arc::new(Breaker::with_seed(policy, start, seed));
        let mut model = Model { policy, is: Is::Closed(Vec::new()), first: 0, next: 0, reopenings: 0, forced: None };
        let (mut now, mut out) = (0, Vec::<(u64, Ticket)>::new());
        for step in steps {
            let at = start + Duration::from_millis(now * BUCKET_MS);
            let mut opens = false;
            match step {
                Step::Pass(buckets) => now += buckets,
                Step::Admit => {
                    let ready = breaker.is_ready(at);
                    let (ticket, wanted) = (breaker.admit(at), model.admit(now));
                    prop_assert_eq!(ticket.is_ok(), wanted.is_some());
                    prop_assert_eq!(ready, ticket.is_ok());
                    if let Err(rejected) = &ticket {
                        prop_assert!(!rejected.retry_after.is_zero());
                    }
                    out.extend(wanted.into_iter().zip(ticket));
                }
                Step::Record(which, outcome, slow) if !out.is_empty() => {
                    let (number, ticket) = out.remove(which % out.len());
                    let took = if matches!(slow, Slow::Yes) { 101 * MS } else { 100 * MS };
                    ticket.record(outcome, took, at);
                    opens = model.record(number, outcome, slow, now);
                }
                Step::Drop(which) if !out.is_empty() => {
                    let (number, ticket) = out.remove(which % out.len());
                    drop(ticket);
                    model.record(number, Outcome::Ignored, Slow::No, now);
                }
                Step::Record(..) | Step::Drop(_) => {}
                Step::RetryAfter(seconds) => {
                    breaker.retry_after(Duration::from_secs(seconds), at);
                    let until = now * BUCKET_MS + (seconds * 1_000).min(policy.open_ms * 8);
                    match &mut model.is {
                        _ if seconds == 0 || model.forced.is_some() => {}
                        Is::Open { until_ms } => *until_ms = until.max(*until_ms),
                        Is::Closed(_) | Is::HalfOpen { .. } => model.turn(Is::Open { until_ms: until }),
                    }
                }
                Step::Force(forced) => {
                    breaker.force(forced, at);
                    let before = std::mem::replace(&mut model.forced, forced);
                    if before != forced {
                        if forced.is_none() {
                            model.reopenings = 0;
                        }
                        match (before, forced) {
                            (Some(Forced::Open), None) => model.turn(Is::HalfOpen { successes: 0, out: Vec::new(), granted: now }),
                            (Some(Forced::Closed), None) => model.turn(Is::Closed(Vec::new())),
                            _ => model.first = model.next,
                        }
                    }
                }
                Step::Reset => {
                    breaker.reset(at);
                    model.reopenings = 0;
                    model.turn(Is::Closed(Vec::new()));
                }
            }
            if opens {
                // Chance decides how long a reopened one stays so, within bounds; an opened one is exact.
                let snapshot = breaker.snapshot(at);
                let wait = snapshot.open_for_ms.unwrap_or(0);
                let most = policy.open_ms << model.reopenings.min(3);
                let least = if model.reopenings == 0 { most } else { most / 2 };
                prop_assert!((least..=most).contains(&wait), "{} is not within {} to {}", wait, least, most);
                model.turn(Is::Open { until_ms: now * BUCKET_MS + wait });
            }
            let snapshot = breaker.snapshot(start + Duration::from_millis(now * BUCKET_MS));
            let (state, probing) = match &model.is {
                Is::Closed(_) => (State::Closed, 0),
                Is::Open { until_ms } if now * BUCKET_MS < *until_ms => (State::Open, 0),
                Is::Open { .. } => (State::HalfOpen, 0),
                Is::HalfOpen { out, .. } => (State::HalfOpen, out.len()),
            };
            if model.forced.is_none() {
                prop_assert_eq!((snapshot.state, snapshot.probing as usize), (state, probing));
            }
            prop_assert_eq!(snapshot.forced, model.forced);
            prop_assert_eq!(snapshot.reopenings, model.reopenings);
        }
    }
}

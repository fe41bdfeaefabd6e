//! When a host is left alone.
//!
//! Pure: `now` comes in.

use std::time::Duration;

use tokio::time::Instant;

use super::options::BreakerOptions;

/// When to come again while a request finds out: when it will have is not known.
const PROBING: Duration = Duration::from_secs(1);

/// A host's breaker: closed, open, or half open while one request finds out.
#[derive(Debug)]
pub(crate) struct Breaker {
    options: BreakerOptions,
    state: State,
    /// Grows each time it opens or closes: what was let through before says nothing about now.
    generation: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Closed { failures: u32 },
    Open { until: Instant },
    HalfOpen,
}

/// What a breaker is, for those who look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Circuit {
    /// Requests pass.
    Closed,
    /// None passes, until its time is over.
    Open,
    /// The next request, or one that is under way, decides.
    HalfOpen,
}

/// Let through; says how it went, once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Passage {
    generation: u64,
}

/// What a request says about its host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Good,
    Bad,
    /// Its caller gave up, or it was refused here.
    Nothing,
}

impl Breaker {
    pub(crate) fn new(options: BreakerOptions) -> Self {
        Self { options, state: State::Closed { failures: 0 }, generation: 0 }
    }

    /// Lets a request through, or says when to come again.
    pub(crate) fn pass(&mut self, now: Instant) -> Result<Passage, Duration> {
        match self.state {
            State::Closed { .. } => {}
            State::Open { until } if now < until => return Err(until - now),
            State::Open { .. } => {
                self.state = State::HalfOpen;
                self.generation += 1;
            }
            State::HalfOpen => return Err(PROBING.min(self.options.open)),
        }
        Ok(Passage { generation: self.generation })
    }

    pub(crate) fn report(&mut self, passage: Passage, verdict: Verdict, now: Instant) {
        if passage.generation != self.generation {
            return;
        }
        match (&mut self.state, verdict) {
            (State::Closed { .. }, Verdict::Nothing) | (State::Open { .. }, _) => {}
            (State::Closed { failures }, Verdict::Good) => *failures = 0,
            (State::Closed { failures }, Verdict::Bad) => {
                *failures += 1;
                if *failures >= self.options.failures.get() {
                    self.open(now);
                }
            }
            (State::HalfOpen, Verdict::Good) => {
                self.state = State::Closed { failures: 0 };
                self.generation += 1;
            }
            (State::HalfOpen, Verdict::Bad) => self.open(now),
            // It found nothing out: the next one does.
            (State::HalfOpen, Verdict::Nothing) => {
                self.state = State::Open { until: now };
                self.generation += 1;
            }
        }
    }

    /// A dial failed, for however many requests: that is one failure, and their own verdicts say nothing.
    pub(crate) fn dial_failed(&mut self, now: Instant) {
        self.report(Passage { generation: self.generation }, Verdict::Bad, now);
    }

    /// A response began: whoever waits to know whether the host is back has heard enough, however long its body may take.
    pub(crate) fn heard(&mut self, passage: Passage, now: Instant) {
        if self.state == State::HalfOpen {
            self.report(passage, Verdict::Good, now);
        }
    }

    fn open(&mut self, now: Instant) {
        self.state = State::Open { until: now + self.options.open };
        self.generation += 1;
    }

    pub(crate) fn circuit(&self, now: Instant) -> Circuit {
        match self.state {
            State::Closed { .. } => Circuit::Closed,
            State::Open { until } if now < until => Circuit::Open,
            State::Open { .. } | State::HalfOpen => Circuit::HalfOpen,
        }
    }

    /// Whether it holds nothing that would be missed.
    pub(crate) fn is_fresh(&self) -> bool {
        self.state == State::Closed { failures: 0 }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    const OPEN: Duration = Duration::from_secs(30);

    fn breaker() -> (Breaker, Instant) {
        let options = BreakerOptions { failures: NonZeroU32::new(3).unwrap(), open: OPEN };
        (Breaker::new(options), Instant::now())
    }

    fn fail(breaker: &mut Breaker, times: u32, now: Instant) {
        for _ in 0..times {
            let passage = breaker.pass(now).unwrap();
            breaker.report(passage, Verdict::Bad, now);
        }
    }

    #[test]
    fn failures_in_a_row_open_it_and_a_success_between_them_does_not() {
        let (mut breaker, now) = breaker();
        fail(&mut breaker, 2, now);
        let passage = breaker.pass(now).unwrap();
        breaker.report(passage, Verdict::Good, now);
        fail(&mut breaker, 2, now);
        let passage = breaker.pass(now).unwrap();
        breaker.report(passage, Verdict::Nothing, now);
        assert_eq!(breaker.circuit(now), Circuit::Closed);
        fail(&mut breaker, 1, now);
        assert_eq!(breaker.circuit(now), Circuit::Open);
        assert_eq!(breaker.pass(now + Duration::from_secs(10)).unwrap_err(), Duration::from_secs(20));
    }

    #[test]
    fn one_request_finds_out_whether_it_heals() {
        let (mut breaker, now) = breaker();
        fail(&mut breaker, 3, now);
        let later = now + OPEN;
        let probe = breaker.pass(later).unwrap();
        assert!(breaker.pass(later).is_err(), "one at a time");
        breaker.report(probe, Verdict::Bad, later);
        assert_eq!(breaker.circuit(later), Circuit::Open);
        let later = later + OPEN;
        let probe = breaker.pass(later).unwrap();
        breaker.report(probe, Verdict::Good, later);
        assert!(breaker.is_fresh());
    }

    #[test]
    fn a_probe_that_its_caller_gave_up_leaves_the_place_to_the_next() {
        let (mut breaker, now) = breaker();
        fail(&mut breaker, 3, now);
        let later = now + OPEN;
        let probe = breaker.pass(later).unwrap();
        breaker.report(probe, Verdict::Nothing, later);
        assert!(breaker.pass(later).is_ok());
    }

    #[test]
    fn stragglers_say_nothing() {
        let (mut breaker, now) = breaker();
        let old = breaker.pass(now).unwrap();
        fail(&mut breaker, 3, now);
        breaker.report(old, Verdict::Good, now);
        assert_eq!(breaker.circuit(now), Circuit::Open, "it was let through before");
        let later = now + OPEN;
        let probe = breaker.pass(later).unwrap();
        breaker.report(old, Verdict::Bad, later);
        breaker.report(probe, Verdict::Good, later);
        assert_eq!(breaker.circuit(later), Circuit::Closed);
        fail(&mut breaker, 2, later);
        breaker.report(probe, Verdict::Bad, later);
        assert_eq!(breaker.circuit(later), Circuit::Closed);
    }
}

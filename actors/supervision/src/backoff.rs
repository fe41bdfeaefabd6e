//! How long to wait before the next try: exponential, capped, with full jitter.
//!
//! Full jitter (uniform between nothing and the cap of that try) spreads the retries of many that failed
//! together best: "Exponential Backoff And Jitter", AWS Architecture Blog, 2015. Pure: it reads no clock.

use std::time::{Duration, Instant};

use rand::{Rng, RngExt as _};

/// The rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// Most that the second try waits; it doubles with each further one. The first never waits.
    pub base: Duration,
    /// Most that any try waits.
    pub cap: Duration,
    /// After this long without a failure, the next one is a first one again.
    pub quiet: Duration,
}

impl Backoff {
    /// No try ever waits.
    pub const NONE: Self = Self { base: Duration::ZERO, cap: Duration::ZERO, quiet: Duration::ZERO };
}

impl Default for Backoff {
    /// 10 ms doubling to 5 s, forgotten after 10 s: what fails for a passing reason is back at once, what
    /// fails for a lasting one costs a start every few seconds.
    fn default() -> Self {
        Self { base: Duration::from_millis(10), cap: Duration::from_secs(5), quiet: Duration::from_secs(10) }
    }
}

/// How often something has failed in a row.
#[derive(Clone, Copy, Debug, Default)]
pub struct Streak {
    failures: u32,
    last: Option<Instant>,
}

impl Streak {
    /// Counts a failure at `now` and says how long to wait before the next try.
    pub fn failed(&mut self, now: Instant, rule: &Backoff, rng: &mut impl Rng) -> Duration {
        if self.last.is_some_and(|last| now.saturating_duration_since(last) > rule.quiet) {
            self.failures = 0;
        }
        self.last = Some(now);
        let earlier = self.failures;
        self.failures = self.failures.saturating_add(1);
        let Some(doublings) = earlier.checked_sub(1) else { return Duration::ZERO };
        let most = rule.base.saturating_mul(1u32.checked_shl(doublings).unwrap_or(u32::MAX)).min(rule.cap);
        most.mul_f64(rng.random::<f64>())
    }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng as _, rngs::StdRng};

    use super::*;

    #[test]
    fn the_first_try_is_immediate_and_the_rest_wait_up_to_a_doubling_cap() {
        let rule = Backoff { base: Duration::from_millis(10), cap: Duration::from_millis(100), quiet: Duration::from_secs(1) };
        let (now, mut rng) = (Instant::now(), StdRng::seed_from_u64(1));
        let mut most = [Duration::ZERO; 50];
        for _ in 0..500 {
            let mut streak = Streak::default();
            for most in &mut most {
                *most = streak.failed(now, &rule, &mut rng).max(*most);
            }
        }
        assert_eq!(most[0], Duration::ZERO);
        for (i, most) in most.iter().enumerate().skip(1) {
            let cap = Duration::from_millis((10u64 << (i - 1).min(10)).min(100));
            assert!(*most <= cap && *most * 2 > cap, "try {i} waited at most {most:?} of {cap:?}");
        }
    }

    #[test]
    fn a_quiet_time_makes_the_next_failure_a_first_one() {
        let rule = Backoff { quiet: Duration::from_secs(1), ..Backoff::default() };
        let (now, mut rng, mut streak) = (Instant::now(), StdRng::seed_from_u64(1), Streak::default());
        for _ in 0..5 {
            streak.failed(now, &rule, &mut rng);
        }
        assert_eq!(streak.failed(now + Duration::from_millis(1_001), &rule, &mut rng), Duration::ZERO);
    }
}

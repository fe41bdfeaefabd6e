//! How long a retry waits: anything up to a cap that doubles, full jitter.
//!
//! Full jitter spreads the retries of many that failed together best: "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
//! Not the supervisors' `Backoff`, whose first try is immediate: what has just failed under load is not asked again at once.

use std::time::Duration;

use rand::{Rng, RngExt as _};

use crate::config;

/// The rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    base: Duration,
    cap: Duration,
}

impl Backoff {
    /// What the policy says.
    pub fn new(policy: &config::Retry) -> Self {
        let ms = |ms: u64| Duration::from_millis(ms.min(config::MAX_TIMEOUT_MS));
        Self { base: ms(policy.base_ms), cap: ms(policy.max_ms) }
    }

    /// How long the retry after `retries` others waits. Where the endpoint named a time (`Retry-After`) it is not before that, and
    /// the jitter comes on top: else all it turned away would be back at the same moment.
    pub fn wait(&self, retries: u32, not_before: Option<Duration>, rng: &mut impl Rng) -> Duration {
        let most = self.base.saturating_mul(1u32.checked_shl(retries).unwrap_or(u32::MAX)).min(self.cap);
        not_before.unwrap_or_default().saturating_add(most.mul_f64(rng.random::<f64>()))
    }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng as _, rngs::StdRng};

    use super::*;

    #[test]
    fn waits_are_anything_up_to_a_cap_that_doubles_and_none_is_too_long_however_many_there_were() {
        let backoff = Backoff::new(&config::Retry { base_ms: 50, max_ms: 2_000, ..config::Retry::default() });
        let mut rng = StdRng::seed_from_u64(1);
        for (retries, cap) in [(0, 50), (1, 100), (2, 200), (5, 1_600), (6, 2_000), (31, 2_000), (32, 2_000), (u32::MAX, 2_000)] {
            let waits: Vec<_> = (0..2_000).map(|_| backoff.wait(retries, None, &mut rng).as_secs_f64() * 1_000.0).collect();
            let (least, most) = waits.iter().fold((f64::MAX, 0f64), |(least, most), wait| (least.min(*wait), most.max(*wait)));
            let mean = waits.iter().sum::<f64>() / waits.len() as f64;
            let cap = f64::from(cap);
            assert!(least < cap * 0.01 && most <= cap && most > cap * 0.99, "{retries}: {least} to {most} of {cap}");
            assert!((mean - cap / 2.0).abs() < cap * 0.03, "{retries}: {mean} of {cap}");
        }
    }

    #[test]
    fn nobody_is_back_before_the_time_that_the_endpoint_named() {
        let backoff = Backoff::new(&config::Retry::default());
        let mut rng = StdRng::seed_from_u64(2);
        let named = Duration::from_secs(7);
        let waits: Vec<_> = (0..1_000).map(|_| backoff.wait(0, Some(named), &mut rng)).collect();
        assert!(waits.iter().all(|wait| *wait >= named && *wait <= named + Duration::from_millis(50)));
        assert!(waits.iter().max() > waits.iter().min(), "nor all at once");
        assert_eq!(backoff.wait(0, Some(Duration::MAX), &mut rng), Duration::MAX);
    }
}

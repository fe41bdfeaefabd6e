//! How often a service is called: the generic cell rate algorithm (GCRA; ITU-T I.371), in one atomic.
//!
//! What is kept is when the calls let through so far would be done if each took its share of a second. A call is let through when that
//! is no further ahead than a burst takes. Nothing runs beside it, and nothing is to be refilled.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use crate::config;

/// Units of time a nanosecond: so fine that a share of a second, rounded, is off by less than 0.1 % at ten million a second. As many
/// as let a `u64` count for 36 years.
const UNITS: u64 = 16;

/// How often a service may be called.
#[derive(Debug)]
pub struct Rate {
    origin: Instant,
    /// When what was let through so far is done, in units since `origin`.
    done: AtomicU64,
    /// A call's share of a second.
    share: AtomicU64,
    /// How far ahead of now `done` may be after a call.
    burst: AtomicU64,
}

impl Rate {
    /// What the policy says; all of its burst is free.
    pub fn new(policy: &config::Rate, now: Instant) -> Self {
        let (share, burst) = units(policy);
        Self { origin: now, done: AtomicU64::new(0), share: AtomicU64::new(share), burst: AtomicU64::new(burst) }
    }

    /// Lets a call through, or says when to try again.
    ///
    /// # Errors
    /// How long it is until one may be let through.
    pub fn check(&self, now: Instant) -> Result<(), Duration> {
        let now = self.units(now);
        let (share, burst) = (self.share.load(Ordering::Relaxed), self.burst.load(Ordering::Relaxed));
        let mut done = self.done.load(Ordering::Relaxed);
        loop {
            let after = done.max(now).saturating_add(share);
            let ahead = after.saturating_sub(now);
            if ahead > burst {
                return Err(Duration::from_nanos((ahead - burst).div_ceil(UNITS)));
            }
            match self.done.compare_exchange_weak(done, after, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Ok(()),
                Err(other) => done = other,
            }
        }
    }

    /// How long it is until a call may be let through; none where one would be now.
    pub fn wait(&self, now: Instant) -> Option<Duration> {
        let now = self.units(now);
        let ahead = self.done.load(Ordering::Relaxed).max(now).saturating_add(self.share.load(Ordering::Relaxed)).saturating_sub(now);
        let over = ahead.checked_sub(self.burst.load(Ordering::Relaxed)).filter(|over| *over > 0)?;
        Some(Duration::from_nanos(over.div_ceil(UNITS)))
    }

    /// Another policy from now on. What was let through counts, but nobody waits for longer than by the new one.
    pub fn set(&self, policy: &config::Rate, now: Instant) {
        let (share, burst) = units(policy);
        self.share.store(share, Ordering::Relaxed);
        self.burst.store(burst, Ordering::Relaxed);
        self.done.fetch_min(self.units(now).saturating_add(burst), Ordering::Relaxed);
    }

    fn units(&self, now: Instant) -> u64 {
        let since = now.saturating_duration_since(self.origin);
        since.as_secs().saturating_mul(1_000_000_000 * UNITS).saturating_add(u64::from(since.subsec_nanos()) * UNITS)
    }
}

fn units(policy: &config::Rate) -> (u64, u64) {
    let per_second = u64::from(policy.per_second.max(1));
    // Rounded up: rather a call too few.
    let share = (1_000_000_000 * UNITS).div_ceil(per_second);
    (share, share.saturating_mul(u64::from(policy.burst.unwrap_or(policy.per_second).max(1))))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use super::*;

    fn rate(per_second: u32, burst: Option<u32>) -> config::Rate {
        config::Rate { per_second, burst }
    }

    #[test]
    fn a_burst_is_let_through_and_then_the_rate() {
        let start = Instant::now();
        for (per_second, burst) in [(1, 1), (3, 1), (10, 5), (1_000, 1), (7, 100), (10_000, 10_000)] {
            let rate = Rate::new(&rate(per_second, Some(burst)), start);
            let at_once = (0..burst * 2 + 2).filter(|_| rate.check(start).is_ok()).count();
            assert_eq!(at_once, burst as usize, "{per_second}/{burst}");
            // As soon as it says, and not before.
            let mut now = start;
            for _ in 0..per_second.min(100) {
                let wait = rate.check(now).unwrap_err();
                assert_eq!(rate.wait(now), Some(wait));
                assert!(rate.check(now + wait - Duration::from_nanos(1)).is_err(), "{per_second}/{burst}");
                now += wait;
                assert_eq!(rate.wait(now), None);
                assert_eq!(rate.check(now), Ok(()), "{per_second}/{burst}");
            }
            let took = (now - start).as_secs_f64() * f64::from(per_second) / f64::from(per_second.min(100));
            assert!((took - 1.0).abs() < 1e-3, "{per_second}/{burst}: {took} s");
        }
    }

    #[test]
    fn at_ten_million_a_second_the_count_of_a_second_is_right_to_a_thousandth() {
        for per_second in [7_000_000, 9_999_999, 10_000_000u32] {
            let start = Instant::now();
            let rate = Rate::new(&rate(per_second, Some(100)), start);
            let span = 5_000_000;
            let passed = (0..span).step_by(20).filter(|ns| rate.check(start + Duration::from_nanos(*ns)).is_ok()).count();
            let wanted = f64::from(per_second) * 0.005 + 100.0;
            assert!((passed as f64 - wanted).abs() <= wanted * 0.001 + 1.0, "{passed} of {wanted}");
        }
    }

    #[test]
    fn a_clock_that_seems_to_go_back_lets_nobody_through_twice() {
        let start = Instant::now();
        let rate = Rate::new(&rate(1, Some(1)), start + Duration::from_secs(5));
        assert_eq!(rate.check(start + Duration::from_secs(5)), Ok(()));
        assert!(rate.check(start).is_err());
    }

    #[test]
    fn a_new_rate_holds_at_once() {
        let start = Instant::now();
        let rate = Rate::new(&rate(1, Some(1_000_000)), start);
        for _ in 0..100_000 {
            rate.check(start).unwrap();
        }
        // By the old one the burst would be spent in days.
        rate.set(&config::Rate { per_second: 10, burst: Some(1) }, start);
        let wait = rate.check(start).unwrap_err();
        assert!(wait <= Duration::from_millis(100), "{wait:?}");
    }

    #[test]
    fn however_many_ask_at_once_no_more_are_let_through() {
        let (start, passed) = (Instant::now(), AtomicU32::new(0));
        let rate = Rate::new(&rate(1, Some(1_000)), start);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..1_000 {
                        if rate.check(start).is_ok() {
                            passed.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        assert_eq!(passed.into_inner(), 1_000);
    }
}

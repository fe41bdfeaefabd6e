//! How the calls of the last while went, in a fixed number of buckets: whatever comes, it takes the same memory.

use std::time::{Duration, Instant};

/// Buckets of a window: it forgets by tenths, so it spans between nine and ten of them.
const BUCKETS: usize = 10;

/// Calls counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) calls: u32,
    pub(super) failures: u32,
    pub(super) slow: u32,
}

impl Counts {
    fn add(&mut self, other: Self) {
        self.calls = self.calls.saturating_add(other.calls);
        self.failures = self.failures.saturating_add(other.failures);
        self.slow = self.slow.saturating_add(other.slow);
    }

    fn subtract(&mut self, other: Self) {
        self.calls = self.calls.saturating_sub(other.calls);
        self.failures = self.failures.saturating_sub(other.failures);
        self.slow = self.slow.saturating_sub(other.slow);
    }
}

/// The counts of the last while.
#[derive(Clone, Debug)]
pub(super) struct Window {
    bucket: Duration,
    /// When the current bucket does.
    ends: Instant,
    current: usize,
    buckets: [Counts; BUCKETS],
    /// Kept beside the buckets, so that a call costs no sum over them.
    total: Counts,
}

impl Window {
    pub(super) fn new(span: Duration, now: Instant) -> Self {
        let bucket = (span / BUCKETS as u32).max(Duration::from_millis(1));
        Self { bucket, ends: now + bucket, current: 0, buckets: [Counts::default(); BUCKETS], total: Counts::default() }
    }

    pub(super) fn clear(&mut self, now: Instant) {
        *self = Self::new(self.bucket * BUCKETS as u32, now);
    }

    /// Counts a call and says how the window stands with it. A `now` before one seen earlier counts as that one.
    pub(super) fn add(&mut self, call: Counts, now: Instant) -> Counts {
        self.advance(now);
        self.buckets[self.current].add(call);
        self.total.add(call);
        self.total
    }

    pub(super) fn total(&mut self, now: Instant) -> Counts {
        self.advance(now);
        self.total
    }

    fn advance(&mut self, now: Instant) {
        if now < self.ends {
            return;
        }
        let passed = 1 + now.duration_since(self.ends).as_nanos() / self.bucket.as_nanos();
        if passed >= BUCKETS as u128 {
            self.clear(now);
            return;
        }
        for _ in 0..passed {
            self.current = (self.current + 1) % BUCKETS;
            self.total.subtract(std::mem::take(&mut self.buckets[self.current]));
            self.ends += self.bucket;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// What is as old as the window is out of it, what is younger than nine tenths of it is in.
        #[test]
        fn it_holds_what_was_counted_within_its_span(steps in prop::collection::vec((0u64..4_000, any::<bool>()), 1..200)) {
            let start = Instant::now();
            let mut window = Window::new(Duration::from_millis(10_000), start);
            let (mut now, mut calls) = (start, Vec::new());
            for (after, failed) in steps {
                now += Duration::from_millis(after);
                calls.push((now, failed));
                let total = window.add(Counts { calls: 1, failures: failed.into(), slow: 0 }, now);
                let within = |ms: u64| {
                    let young = calls.iter().filter(|(at, _)| now - *at < Duration::from_millis(ms));
                    young.fold((0, 0), |(calls, failures), (_, failed)| (calls + 1, failures + u32::from(*failed)))
                };
                let (least, most) = (within(9_000), within(10_001));
                prop_assert!(least.0 <= total.calls && total.calls <= most.0, "{least:?} {total:?} {most:?}");
                prop_assert!(least.1 <= total.failures && total.failures <= most.1, "{least:?} {total:?} {most:?}");
            }
        }
    }
}

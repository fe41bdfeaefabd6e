//! Durations counted in log-linear buckets: fixed memory, no allocation, quantiles to within 12.5 %.
//!
//! Any number of readers, who take no lock and may see a sample in one bucket and not yet in another. Writers take turns, as those of a
//! [`Vitals`](crate::Vitals) do, who hold its recorder's lock, or count by [`Histogram::record_shared`].

use std::{
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::Duration,
};

use horos_wire::tree::Quantiles;

/// Eight buckets to a power of two: a bucket is an eighth of its lower bound wide, hence the 12.5 %.
const STEPS_LOG2: u32 = 3;
const STEPS: usize = 1 << STEPS_LOG2;
/// Everything from 2³² µs (71 minutes) up shares the last bucket.
const MAX_LOG2: u32 = 32;
const BUCKETS: usize = STEPS + (MAX_LOG2 - STEPS_LOG2) as usize * STEPS;
/// All counts are halved when they sum to this: the quantiles then lean on the last ~64 thousand samples,
/// so that what was slow an hour ago does not hide what is slow now.
const HALVE_AT: u32 = 1 << 16;

/// A kilobyte, whatever is counted.
#[derive(Debug)]
pub struct Histogram {
    counts: [AtomicU32; BUCKETS],
    total: AtomicU32,
}

impl Default for Histogram {
    fn default() -> Self {
        Self::new()
    }
}

impl Histogram {
    /// An empty one.
    pub const fn new() -> Self {
        Self { counts: [const { AtomicU32::new(0) }; BUCKETS], total: AtomicU32::new(0) }
    }

    /// Counts one sample. Callers take turns: plain loads and stores, as the lock they hold already orders them.
    pub fn record(&self, nanos: u64) {
        let count = &self.counts[bucket(nanos / 1_000)];
        count.store(count.load(Relaxed) + 1, Relaxed);
        let total = self.total.load(Relaxed) + 1;
        self.total.store(total, Relaxed);
        if total >= HALVE_AT {
            self.halve();
        }
    }

    /// Counts one sample, whoever else counts one meanwhile.
    pub fn record_shared(&self, nanos: u64) {
        self.counts[bucket(nanos / 1_000)].fetch_add(1, Relaxed);
        // Two who halve at once would halve twice: the counts are a little too small then, their proportions right.
        if self.total.fetch_add(1, Relaxed) + 1 >= HALVE_AT {
            self.halve();
        }
    }

    #[cold]
    fn halve(&self) {
        let mut total = 0;
        for count in &self.counts {
            let half = count.load(Relaxed) / 2;
            count.store(half, Relaxed);
            total += half;
        }
        self.total.store(total, Relaxed);
    }

    /// The median and the 99th percentile, in microseconds; zeroes while nothing was counted.
    pub fn quantiles(&self) -> Quantiles {
        let counts = std::array::from_fn::<u32, BUCKETS, _>(|i| self.counts[i].load(Relaxed));
        let total: u64 = counts.iter().copied().map(u64::from).sum();
        let at = |per_cent: u64| {
            // The rank of the sample that `per_cent` of all do not exceed.
            let rank = (total * per_cent).div_ceil(100);
            let mut seen = 0;
            counts.iter().position(|count| {
                seen += u64::from(*count);
                seen >= rank
            })
        };
        if total == 0 {
            return Quantiles::default();
        }
        let value = |per_cent| at(per_cent).map_or(0, middle);
        Quantiles { p50_us: value(50), p99_us: value(99) }
    }
}

/// The bucket of `micros`. Below [`STEPS`] each value has its own.
fn bucket(micros: u64) -> usize {
    if micros < STEPS as u64 {
        return micros as usize;
    }
    let log2 = micros.ilog2();
    if log2 >= MAX_LOG2 {
        return BUCKETS - 1;
    }
    let step = (micros >> (log2 - STEPS_LOG2)) as usize & (STEPS - 1);
    STEPS + (log2 - STEPS_LOG2) as usize * STEPS + step
}

/// The middle of a bucket, in microseconds.
fn middle(bucket: usize) -> u64 {
    let Some(above) = bucket.checked_sub(STEPS) else { return bucket as u64 };
    let shift = (above / STEPS) as u32;
    let low = ((STEPS + above % STEPS) as u64) << shift;
    low + (1u64 << shift) / 2
}

/// Nanoseconds of `span`, at most `u64::MAX` (584 years).
pub(crate) fn nanos(span: Duration) -> u64 {
    span.as_secs().saturating_mul(1_000_000_000).saturating_add(u64::from(span.subsec_nanos()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_is_never_further_than_an_eighth_from_what_it_counts() {
        let mut micros = 0u64;
        while micros < 1 << 32 {
            let told = middle(bucket(micros));
            assert!(told.abs_diff(micros) * 8 <= micros, "{micros} is told as {told}");
            micros += 1 + micros / 97;
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn quantiles_are_those_of_what_was_recorded() {
        let histogram = Histogram::new();
        assert_eq!(histogram.quantiles(), Quantiles::default());
        for micros in 1..=1_000u64 {
            histogram.record(micros * 1_000);
        }
        let Quantiles { p50_us, p99_us } = histogram.quantiles();
        assert!(p50_us.abs_diff(500) * 8 <= 500, "{p50_us}");
        assert!(p99_us.abs_diff(990) * 8 <= 990, "{p99_us}");
    }

    #[test]
    fn the_present_outweighs_the_past() {
        let histogram = Histogram::new();
        for _ in 0..1_000_000 {
            histogram.record(1_000_000);
        }
        for _ in 0..200_000 {
            histogram.record(4_000);
        }
        assert_eq!(histogram.quantiles().p50_us, 4);
    }
}

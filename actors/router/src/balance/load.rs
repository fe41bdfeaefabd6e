//! What an endpoint has to do: the calls in flight, and how long they have been taking.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// In so long without an answer the latency halves: an endpoint that was slow is given another chance after some of these.
const HALF_LIFE: Duration = Duration::from_secs(5);
/// What an answer counts in the average, as RFC 6298 §2 smooths round-trip times.
const SMOOTHING: u64 = 8;
/// Latencies within this factor are taken for equal: that is noise, and to follow it would take the weights' meaning away.
const NOISE: u64 = 2;

/// What an endpoint has to do.
#[derive(Debug)]
pub struct Load {
    origin: Instant,
    in_flight: AtomicU32,
    /// Nanoseconds, smoothed; 0 before the first answer.
    latency: AtomicU64,
    /// When the last one came, in milliseconds since `origin`.
    answered: AtomicU64,
}

impl Load {
    /// Nothing yet.
    pub fn new(now: Instant) -> Arc<Self> {
        Arc::new(Self { origin: now, in_flight: AtomicU32::new(0), latency: AtomicU64::new(0), answered: AtomicU64::new(0) })
    }

    /// A call goes out. It is in flight until the guard is dropped.
    pub fn begin(self: &Arc<Self>) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        InFlight { load: Arc::clone(self) }
    }

    /// Calls in flight.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// How long answers have been taking, the less the longer ago; zero if nothing is known.
    pub fn latency(&self, now: Instant) -> Duration {
        let quiet = self.millis(now).saturating_sub(self.answered.load(Ordering::Relaxed));
        let halvings = quiet / HALF_LIFE.as_millis() as u64;
        Duration::from_nanos(self.latency.load(Ordering::Relaxed).checked_shr(halvings.min(64) as u32).unwrap_or(0))
    }

    fn answered(&self, took: Duration, now: Instant, faultless: bool) {
        let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX / 2).max(1);
        let before = u64::try_from(self.latency(now).as_nanos()).unwrap_or(u64::MAX / 2);
        // An endpoint that fails at once is not a quick one.
        let took = if faultless { took } else { took.max(before) };
        let after = if before == 0 { took } else { before - before / SMOOTHING + took / SMOOTHING };
        // Two answers at once may lose one of them to the average, which it can bear.
        self.latency.store(after.max(1), Ordering::Relaxed);
        self.answered.store(self.millis(now), Ordering::Relaxed);
    }

    fn millis(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.origin).as_millis()).unwrap_or(u64::MAX)
    }
}

/// A call in flight. Dropped without an answer it says nothing of the latency.
#[derive(Debug)]
#[must_use = "dropped, the call is no longer in flight"]
pub struct InFlight {
    load: Arc<Load>,
}

impl InFlight {
    /// The endpoint answered, after `took`. `faultless` is whether the answer is one that it gave by doing its work.
    pub fn answered(self, took: Duration, now: Instant, faultless: bool) {
        self.load.answered(took, now, faultless);
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.load.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Whether `one`, its calls and latency, has less to do than `other`.
pub(super) fn less(one: (f64, Duration), other: (f64, Duration)) -> bool {
    let slower = |this: Duration, that: Duration| {
        let known = !this.is_zero() && !that.is_zero();
        if known && this.as_nanos() > that.as_nanos() * u128::from(NOISE) { this.as_secs_f64() / that.as_secs_f64() } else { 1.0 }
    };
    one.0 * slower(one.1, other.1) < other.0 * slower(other.1, one.1)
}

//! How many retries a service may cost: a share of its calls, so that what is down is not kept down by those who try again.
//!
//! Retries that wait in their backoff count from the decision on, and those under way until they have ended, however long that takes:
//! a limit that saw only those sent in the last while would let a whole backoff's worth of them loose at once.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Instant,
};

use parking_lot::Mutex;

use crate::config;

/// Seconds of the window.
const WINDOW: u32 = 10;
/// One a second: the window moves by the second.
const BUCKETS: usize = WINDOW as usize;

/// A service's budget for retries.
#[derive(Debug)]
pub struct Budget {
    origin: Instant,
    percent: AtomicU32,
    per_second: AtomicU32,
    /// Calls by the second, which stands in the upper half: counted at each call, so without a lock.
    calls: [AtomicU64; BUCKETS],
    retries: Mutex<Retries>,
}

#[derive(Debug)]
struct Retries {
    /// Waiting or under way.
    held: u32,
    /// Sent and over, by the second they were sent in.
    over: [(u32, u32); BUCKETS],
}

impl Budget {
    /// What the policy says.
    pub fn new(policy: &config::Retry, now: Instant) -> Self {
        Self {
            origin: now,
            percent: AtomicU32::new(policy.budget_percent),
            per_second: AtomicU32::new(policy.budget_per_second),
            calls: [const { AtomicU64::new(0) }; BUCKETS],
            retries: Mutex::new(Retries { held: 0, over: [(0, 0); BUCKETS] }),
        }
    }

    /// Another policy from now on; what was counted stays.
    pub fn set(&self, policy: &config::Retry) {
        self.percent.store(policy.budget_percent, Ordering::Relaxed);
        self.per_second.store(policy.budget_per_second, Ordering::Relaxed);
    }

    /// Counts a call, not its retries.
    pub fn call(&self, now: Instant) {
        let second = self.second(now);
        let bucket = &self.calls[second as usize % BUCKETS];
        let seen = bucket.load(Ordering::Relaxed);
        if (seen >> 32) as u32 == second {
            // It may be the next second's by now, whose call it is then.
            bucket.fetch_add(1, Ordering::Relaxed);
        } else if ((seen >> 32) as u32) < second {
            let first = u64::from(second) << 32 | 1;
            if bucket.compare_exchange(seen, first, Ordering::Relaxed, Ordering::Relaxed).is_err() {
                bucket.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Takes a retry out of the budget, at the decision to make it. None: it must not be made.
    pub fn withdraw(self: &Arc<Self>, now: Instant) -> Option<Withdrawal> {
        let second = self.second(now);
        let within = |of: u32| of <= second && second - of < WINDOW;
        let calls: u64 = self.calls.iter().map(|bucket| bucket.load(Ordering::Relaxed)).fold(0, |sum, bucket| {
            let (of, count) = ((bucket >> 32) as u32, bucket & u64::from(u32::MAX));
            if within(of) { sum + count } else { sum }
        });
        let most = calls * u64::from(self.percent.load(Ordering::Relaxed)) / 100
            + u64::from(self.per_second.load(Ordering::Relaxed)) * u64::from(WINDOW);
        let mut retries = self.retries.lock();
        let over: u64 = retries.over.iter().filter(|(of, _)| within(*of)).map(|(_, count)| u64::from(*count)).sum();
        if over + u64::from(retries.held) >= most {
            return None;
        }
        retries.held += 1;
        drop(retries);
        Some(Withdrawal { budget: Arc::clone(self), sent: None })
    }

    /// Retries that wait or are under way.
    pub fn held(&self) -> u32 {
        self.retries.lock().held
    }

    /// It starts where second 0, which is that of an untouched bucket, is out of the window.
    fn second(&self, now: Instant) -> u32 {
        u32::try_from(now.saturating_duration_since(self.origin).as_secs() + u64::from(WINDOW)).unwrap_or(u32::MAX)
    }
}

/// A retry's place in the budget, held until it has ended. One that was never sent gives it back.
#[derive(Debug)]
#[must_use = "dropped, the retry's place is given back"]
pub struct Withdrawal {
    budget: Arc<Budget>,
    sent: Option<u32>,
}

impl Withdrawal {
    /// The retry is sent: from now on it counts for the window's time at least.
    pub fn sent(&mut self, now: Instant) {
        self.sent = Some(self.budget.second(now));
    }
}

impl Drop for Withdrawal {
    fn drop(&mut self) {
        let mut retries = self.budget.retries.lock();
        retries.held -= 1;
        if let Some(second) = self.sent {
            let (of, count) = &mut retries.over[second as usize % BUCKETS];
            if *of < second {
                (*of, *count) = (second, 0);
            }
            // A later second has the bucket: this one is out of the window, and done with.
            if *of == second {
                *count += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests;

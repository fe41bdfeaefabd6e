//! What was refused on this node since it was last told to the owner.
//!
//! A guess costs an atomic addition and no memory: nothing of it is kept, not even a hash. Keys that were made here are
//! counted by id, [`MAX_REPORTED`] of them at most.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use horos_wire::{
    principal::Denied,
    protocol::keys::{MAX_REPORTED, Refusals, Report},
};
use parking_lot::Mutex;

#[derive(Debug, Default)]
pub(crate) struct Tally {
    malformed: AtomicU64,
    unknown: AtomicU64,
    revoked: AtomicU64,
    expired: AtomicU64,
    not_yet_valid: AtomicU64,
    other_audience: AtomicU64,
    wrong_scope: AtomicU64,
    unavailable: AtomicU64,
    keys: Mutex<HashMap<Box<str>, u64>>,
}

impl Tally {
    /// Counts a refusal, and whose it was if it was a known key.
    pub(crate) fn denied(&self, denied: Denied, key: Option<&str>) {
        let counter = match denied {
            Denied::Malformed => &self.malformed,
            Denied::Unknown => &self.unknown,
            Denied::Revoked => &self.revoked,
            Denied::Expired => &self.expired,
            Denied::NotYetValid => &self.not_yet_valid,
            Denied::OtherAudience => &self.other_audience,
            Denied::Unavailable => &self.unavailable,
        };
        counter.fetch_add(1, Relaxed);
        self.count_key(key);
    }

    /// Counts a valid credential that was shown for what it may not do.
    pub(crate) fn wrong_scope(&self, key: Option<&str>) {
        self.wrong_scope.fetch_add(1, Relaxed);
        self.count_key(key);
    }

    fn count_key(&self, key: Option<&str>) {
        if let Some(key) = key {
            add(&mut self.keys.lock(), key.into(), 1);
        }
    }

    /// All that was counted since the last time; none when that is nothing.
    pub(crate) fn take(&self) -> Option<Report> {
        let take = |counter: &AtomicU64| counter.swap(0, Relaxed);
        let refusals = Refusals {
            malformed: take(&self.malformed),
            unknown: take(&self.unknown),
            revoked: take(&self.revoked),
            expired: take(&self.expired),
            not_yet_valid: take(&self.not_yet_valid),
            other_audience: take(&self.other_audience),
            wrong_scope: take(&self.wrong_scope),
            unavailable: take(&self.unavailable),
        };
        let keys: Vec<_> = std::mem::take(&mut *self.keys.lock()).into_iter().collect();
        (refusals != Refusals::default() || !keys.is_empty()).then_some(Report { refusals, keys })
    }

    /// Puts back what could not be told.
    pub(crate) fn put_back(&self, report: Report) {
        let Refusals { malformed, unknown, revoked, expired, not_yet_valid, other_audience, wrong_scope, unavailable } = report.refusals;
        for (counter, count) in [
            (&self.malformed, malformed),
            (&self.unknown, unknown),
            (&self.revoked, revoked),
            (&self.expired, expired),
            (&self.not_yet_valid, not_yet_valid),
            (&self.other_audience, other_audience),
            (&self.wrong_scope, wrong_scope),
            (&self.unavailable, unavailable),
        ] {
            counter.fetch_add(count, Relaxed);
        }
        let mut keys = self.keys.lock();
        for (key, count) in report.keys {
            add(&mut keys, key, count);
        }
    }
}

fn add(keys: &mut HashMap<Box<str>, u64>, key: Box<str>, count: u64) {
    if let Some(known) = keys.get_mut(&key) {
        *known = known.saturating_add(count);
    } else if keys.len() < MAX_REPORTED {
        keys.insert(key, count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_told_is_told_the_next_time_and_nothing_twice() {
        let tally = Tally::default();
        assert_eq!(tally.take(), None);
        tally.denied(Denied::Revoked, Some("key_1"));
        tally.denied(Denied::Unknown, None);
        let report = tally.take().unwrap();
        tally.put_back(report.clone());
        tally.wrong_scope(Some("key_1"));
        let again = tally.take().unwrap();
        assert_eq!(again.refusals, Refusals { wrong_scope: 1, ..report.refusals });
        assert_eq!(again.keys, [("key_1".into(), 2)]);
        assert_eq!(tally.take(), None);
    }

    #[test]
    fn keys_beyond_the_bound_are_in_the_totals_alone() {
        let tally = Tally::default();
        for n in 0..MAX_REPORTED * 2 {
            tally.denied(Denied::Expired, Some(&format!("key_{n}")));
        }
        let report = tally.take().unwrap();
        assert_eq!((report.refusals.expired, report.keys.len()), (2 * MAX_REPORTED as u64, MAX_REPORTED));
    }
}

//! What calls came to, and how long they took: for `/metrics`. Labels are few and fixed; which tool it was, the audit says.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use crate::{Transport, audit};

/// Whatever a call comes to, as the audit has it.
const OUTCOMES: [&str; 13] = [
    audit::DONE,
    audit::CANCELLED,
    "no_such_tool",
    "denied",
    "invalid_arguments",
    "to_confirm",
    "failed",
    "deadline",
    "too_large",
    "busy",
    "unavailable",
    "unknown",
    "internal",
];
const TRANSPORTS: [Transport; 4] = [Transport::Http, Transport::Quic, Transport::Link, Transport::Command];
/// Upper ends of the histogram's buckets, in microseconds: from a look into memory to the longest that a tool may run.
const BUCKETS: [u64; 12] = [250, 1_000, 2_500, 5_000, 10_000, 25_000, 100_000, 500_000, 2_500_000, 10_000_000, 60_000_000, 600_000_000];

/// Counts since the node started.
#[derive(Debug, Default)]
pub struct Counters {
    outcomes: [[AtomicU64; OUTCOMES.len()]; TRANSPORTS.len()],
    /// The last is of those beyond all.
    buckets: [AtomicU64; BUCKETS.len() + 1],
    sum_us: AtomicU64,
    in_hand: AtomicUsize,
}

/// How long calls took.
#[derive(Clone, Debug, PartialEq)]
pub struct Durations {
    /// How many.
    pub count: u64,
    /// All together, in seconds.
    pub sum: f64,
    /// How many took at most so many seconds and more than the one before; the last is without end.
    pub buckets: Vec<(f64, u64)>,
}

impl Counters {
    /// Calls that are not answered yet.
    pub fn in_hand(&self) -> usize {
        self.in_hand.load(Relaxed)
    }

    /// Calls by transport and outcome; all combinations, so that none appears only once it has happened.
    pub fn outcomes(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
        let each = TRANSPORTS.iter().zip(&self.outcomes);
        each.flat_map(|(transport, counts)| {
            OUTCOMES.iter().zip(counts).map(|(outcome, count)| (transport.as_str(), *outcome, count.load(Relaxed)))
        })
    }

    /// How long they took.
    pub fn durations(&self) -> Durations {
        let ends = BUCKETS.iter().map(|us| *us as f64 / 1e6).chain([f64::MAX]);
        let buckets: Vec<_> = ends.zip(self.buckets.iter().map(|count| count.load(Relaxed))).collect();
        // Of what the buckets say, so that they agree whoever counts meanwhile.
        let count = buckets.iter().map(|(_, count)| count).sum();
        Durations { count, sum: self.sum_us.load(Relaxed) as f64 / 1e6, buckets }
    }

    /// Counts a call that begins; one that is dropped before its end was cancelled.
    pub(super) fn begin(self: &Arc<Self>, transport: Transport) -> Counting {
        self.in_hand.fetch_add(1, Relaxed);
        Counting { counters: self.clone(), transport, began: Instant::now(), outcome: audit::CANCELLED }
    }

    fn count(&self, transport: Transport, outcome: &str, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let (from, what) = (TRANSPORTS.iter().position(|known| *known == transport), OUTCOMES.iter().position(|known| *known == outcome));
        if let (Some(from), Some(what)) = (from, what) {
            self.outcomes[from][what].fetch_add(1, Relaxed);
        }
        self.buckets[BUCKETS.partition_point(|end| *end < us)].fetch_add(1, Relaxed);
        self.sum_us.fetch_add(us, Relaxed);
    }
}

/// A call that is in hand.
pub(super) struct Counting {
    counters: Arc<Counters>,
    transport: Transport,
    began: Instant,
    outcome: &'static str,
}

impl Counting {
    pub(super) fn end(mut self, outcome: &'static str) {
        self.outcome = outcome;
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        self.counters.in_hand.fetch_sub(1, Relaxed);
        self.counters.count(self.transport, self.outcome, self.began.elapsed());
    }
}

#[cfg(test)]
mod tests {
    use horos_wire::{NoEffect, Unknown};

    use super::*;
    use crate::ToolError;

    #[test]
    fn every_outcome_that_there_is_has_a_counter() {
        let errors = [
            ToolError::NoSuchTool("x".into()),
            ToolError::Denied("x".into()),
            ToolError::Arguments(Vec::new()),
            ToolError::Confirm { what: "x".into(), token: "x".into(), within: Duration::ZERO },
            ToolError::Failed("x".into()),
            ToolError::Deadline { after: Duration::ZERO, undone: true },
            ToolError::TooLarge { limit: 1 },
            ToolError::Busy(Duration::ZERO),
            ToolError::Unavailable(NoEffect::Stopping),
            ToolError::Unknown(Unknown::NoReply),
            ToolError::Internal { reference: "x".into() },
        ];
        for error in &errors {
            assert!(OUTCOMES.contains(&error.outcome()), "{}", error.outcome());
        }
        assert_eq!(OUTCOMES.len(), errors.len() + 2, "those two are no errors");
    }

    #[test]
    fn a_call_is_counted_once_with_how_it_came_and_ended_and_given_up_as_cancelled() {
        let counters = Arc::new(Counters::default());
        let (first, second) = (counters.begin(Transport::Quic), counters.begin(Transport::Http));
        assert_eq!(counters.in_hand(), 2);
        first.end(audit::DONE);
        drop(second);
        assert_eq!(counters.in_hand(), 0);
        let counted: Vec<_> = counters.outcomes().filter(|(.., count)| *count > 0).collect();
        assert_eq!(counted, [("http", audit::CANCELLED, 1), ("quic", audit::DONE, 1)]);
        counters.count(Transport::Quic, audit::DONE, Duration::from_micros(250));
        counters.count(Transport::Quic, audit::DONE, Duration::from_secs(3_600));
        let durations = counters.durations();
        assert_eq!(durations.count, 4);
        assert!(durations.buckets[0].1 >= 1 && durations.buckets.last().unwrap().1 == 1 && durations.sum > 3_600.0, "{durations:?}");
    }
}

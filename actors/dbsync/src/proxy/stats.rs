//! What became of the requests, counted.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::problem::Failure;

/// What became of the requests that a [`super::WriteProxy`] was given, since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Answered by the owner, whatever it answered.
    pub answered: u64,
    /// Tried a second time, because the first was not sent.
    pub again: u64,
    /// Refused: too many were on their way.
    pub full: u64,
    /// Not sent: the owner could not be reached, in time or at all.
    pub away: u64,
    /// Not sent: whoever was at the owner's address was not the owner.
    pub strangers: u64,
    /// Sent, and the answer was lost or made no sense.
    pub lost: u64,
    /// Sent, and no answer came in time.
    pub timed_out: u64,
    /// Refused for what they were: their length, their form, a loop.
    pub refused: u64,
    /// Answers whose body broke off.
    pub broken: u64,
    /// Requests on their way now.
    pub in_flight: u64,
    /// Connections that were opened.
    pub connections: u64,
}

/// What became of the reads that a [`super::WaitForPosition`] was given with a bookmark, since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReadStats {
    /// The replica was there already.
    pub there: u64,
    /// It got there while they waited.
    pub waited: u64,
    /// The owner was asked.
    pub asked_owner: u64,
    /// Refused: too many, or too often from one client.
    pub refused: u64,
}

macro_rules! counters {
    ($(#[$doc:meta])* $name:ident => $shown:ident { $($field:ident),+ }) => {
        $(#[$doc])*
        #[derive(Debug, Default)]
        pub(super) struct $name { $(pub(super) $field: Counter),+ }

        impl $name {
            pub(super) fn shown(&self) -> $shown {
                $shown { $($field: self.$field.0.load(Relaxed)),+ }
            }
        }
    };
}

#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn count(&self) {
        self.0.fetch_add(1, Relaxed);
    }
}

counters! {
    /// Counts [`Stats`]; what is in flight, whoever shows it knows.
    Counters => Stats { answered, again, full, away, strangers, lost, timed_out, refused, broken, in_flight, connections }
}

counters! {
    /// Counts [`ReadStats`].
    ReadCounters => ReadStats { there, waited, asked_owner, refused }
}

impl Counters {
    pub(super) fn failed(&self, failure: Failure) {
        let counter = match failure {
            Failure::Full | Failure::ReadsFull | Failure::ReadsOften => &self.full,
            Failure::Away | Failure::TooLate => &self.away,
            Failure::Stranger => &self.strangers,
            Failure::Lost | Failure::Nonsense => &self.lost,
            Failure::TimedOut => &self.timed_out,
            Failure::BodyTooLarge
            | Failure::BodyOverran
            | Failure::BodyCut
            | Failure::BodyLength
            | Failure::Upgrade
            | Failure::Method
            | Failure::Loop
            | Failure::Target
            | Failure::ReadsHere => &self.refused,
        };
        counter.count();
    }
}

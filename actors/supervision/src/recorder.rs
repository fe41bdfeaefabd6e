//! The flight recorder: an actor's last 64 messages, overwritten in place.
//!
//! Owned by a [`Vitals`](crate::Vitals), under its lock. What it held when the actor died is kept until the next death.

use std::sync::Arc;

use horos_wire::{
    TraceId,
    tree::{Outcome, Recorded, Recording},
};

use crate::vitals::Incoming;

/// Messages an actor's recorder holds.
pub const RECORDED: usize = 64;
/// Longest cause of death that is kept, in bytes: a panic may print a whole table.
pub(crate) const MAX_CAUSE: usize = 1_024;
/// `took` of a message that has none.
const NEVER: u64 = u64::MAX;

/// One message; times in nanoseconds since the process's epoch.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) at: u64,
    pub(crate) method: &'static str,
    pub(crate) sender: Arc<str>,
    pub(crate) size: u32,
    pub(crate) outcome: Outcome,
    pub(crate) trace: TraceId,
    pub(crate) waited: u64,
    pub(crate) took: u64,
}

impl Entry {
    fn told(&self, now: u64) -> Recorded {
        Recorded {
            ago_us: now.saturating_sub(self.at) / 1_000,
            method: self.method.into(),
            sender: self.sender.as_ref().into(),
            size: self.size,
            trace: self.trace,
            waited_us: self.waited / 1_000,
            took_us: (self.took != NEVER).then_some(self.took / 1_000),
            outcome: self.outcome,
        }
    }
}

/// The ring. It grows to its full size with the first messages, so that an idle actor costs nothing.
#[derive(Debug, Default)]
pub(crate) struct Recorder {
    ring: Vec<Entry>,
    /// Where the latest entry is.
    latest: usize,
    at_death: Option<Vec<Entry>>,
    cause: Option<Arc<str>>,
}

impl Recorder {
    pub(crate) fn begin(&mut self, message: &Incoming<'_>, at: u64, waited: u64) {
        let Incoming { method, sender, size, trace, .. } = *message;
        if self.ring.len() < RECORDED {
            self.latest = self.ring.len();
            let sender = Arc::clone(sender);
            self.ring.push(Entry { at, method, sender, size, outcome: Outcome::InHand, trace, waited, took: NEVER });
            return;
        }
        self.latest = (self.latest + 1) % RECORDED;
        let entry = &mut self.ring[self.latest];
        (entry.at, entry.method, entry.size, entry.trace, entry.waited) = (at, method, size, trace, waited);
        (entry.outcome, entry.took) = (Outcome::InHand, NEVER);
        // Most actors hear from few: what is there already need not be counted up and down again.
        if !Arc::ptr_eq(&entry.sender, sender) {
            entry.sender = Arc::clone(sender);
        }
    }

    /// Ends the message in hand; gives back when it began, or `None` if none was in hand.
    pub(crate) fn end(&mut self, now: u64, outcome: Outcome) -> Option<u64> {
        let entry = self.ring.get_mut(self.latest).filter(|entry| entry.outcome == Outcome::InHand)?;
        entry.outcome = outcome;
        if outcome != Outcome::Died {
            entry.took = now.saturating_sub(entry.at);
        }
        Some(entry.at)
    }

    /// The message in hand, and when it began.
    pub(crate) fn in_hand(&self) -> Option<(&'static str, u64)> {
        self.ring.get(self.latest).filter(|entry| entry.outcome == Outcome::InHand).map(|entry| (entry.method, entry.at))
    }

    /// Keeps what is recorded, and starts the next life with an empty ring.
    pub(crate) fn freeze(&mut self, cause: Arc<str>) {
        if let Some(entry) = self.ring.get_mut(self.latest).filter(|entry| entry.outcome == Outcome::InHand) {
            entry.outcome = Outcome::Died;
        }
        self.at_death = Some(self.oldest_first().cloned().collect());
        self.ring.clear();
        self.latest = 0;
        self.cause = Some(cause);
    }

    /// Ends a life in good order: the message in hand, if any, was abandoned.
    pub(crate) fn close(&mut self, now: u64) {
        self.end(now, Outcome::Failed);
    }

    pub(crate) fn cause(&self) -> Option<Arc<str>> {
        self.cause.clone()
    }

    pub(crate) fn told(&self, now: u64) -> Recording {
        Recording {
            current: self.oldest_first().map(|entry| entry.told(now)).collect(),
            at_death: self.at_death.as_ref().map(|entries| entries.iter().map(|entry| entry.told(now)).collect()),
            cause: self.cause.as_deref().map(Into::into),
        }
    }

    fn oldest_first(&self) -> impl Iterator<Item = &Entry> {
        let oldest = if self.ring.len() < RECORDED { 0 } else { (self.latest + 1) % RECORDED };
        self.ring[oldest..].iter().chain(&self.ring[..oldest])
    }
}

/// `cause`, cut to [`MAX_CAUSE`] bytes at a character's end.
pub(crate) fn cut(cause: &str) -> Arc<str> {
    if cause.len() <= MAX_CAUSE { cause.into() } else { cause[..cause.floor_char_boundary(MAX_CAUSE)].into() }
}

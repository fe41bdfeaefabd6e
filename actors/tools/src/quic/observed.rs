//! What a door has done, in numbers.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

use super::{
    Close,
    message::{BUSY, Refusal, UNAUTHENTICATED},
};

/// What a door has done and holds; cheap to ask for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Observed {
    /// Connections that are open, proved or not.
    pub open: u64,
    /// Sessions that were proved and begun.
    pub sessions: u64,
    /// Requests that reached a handler.
    pub requests: u64,
    /// Messages refused because nobody was proved.
    pub unauthenticated: u64,
    /// Messages refused for their form: not JSON, of another shape, too large, with an id in use.
    pub malformed: u64,
    /// Requests refused because too much was in hand, or the door was closing.
    pub busy: u64,
    /// Streams refused that were not agreed on.
    pub streams: u64,
    /// Connections closed because the peer did not speak the protocol.
    pub violations: u64,
    /// Connections closed because a bound was reached.
    pub limits: u64,
    /// Bytes of requests in hand.
    pub in_hand: u64,
    /// Bytes of answers that no peer has taken yet.
    pub unread: u64,
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) sessions: AtomicU64,
    pub(super) requests: AtomicU64,
    unauthenticated: AtomicU64,
    malformed: AtomicU64,
    busy: AtomicU64,
    pub(super) streams: AtomicU64,
    violations: AtomicU64,
    limits: AtomicU64,
}

pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Counters {
    pub(super) fn refused(&self, refusal: &Refusal) {
        count(match refusal.code {
            UNAUTHENTICATED => &self.unauthenticated,
            BUSY => &self.busy,
            _ => &self.malformed,
        });
    }

    pub(super) fn closed(&self, close: Close) {
        match close {
            Close::Violation | Close::Alpn => count(&self.violations),
            Close::Limit => count(&self.limits),
            Close::Done | Close::Unauthenticated => {}
        }
    }

    pub(super) fn observed(&self) -> Observed {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Observed {
            sessions: read(&self.sessions),
            requests: read(&self.requests),
            unauthenticated: read(&self.unauthenticated),
            malformed: read(&self.malformed),
            busy: read(&self.busy),
            streams: read(&self.streams),
            violations: read(&self.violations),
            limits: read(&self.limits),
            ..Observed::default()
        }
    }
}

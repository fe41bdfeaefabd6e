//! What is counted of a service and of each of its endpoints, for people, metrics and [`horos_wire::protocol::router`].

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use horos_supervision::Histogram;
use horos_wire::{CallError, NoEffect, protocol::router::MAX_ERROR, tree::Quantiles};
use parking_lot::Mutex;

/// Of a service, as long as it has a route; editing that changes nothing here.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    in_flight: AtomicU32,
    calls: AtomicU64,
    failures: AtomicU64,
    retries: AtomicU64,
    hedges: AtomicU64,
    hedges_won: AtomicU64,
    fallbacks: AtomicU64,
    overloaded: AtomicU64,
    limited: AtomicU64,
    refused: AtomicU64,
    over_budget: AtomicU64,
    latency: Latency,
}

/// A histogram that is made when there is something to count: most of ten thousand services are called by nobody here.
#[derive(Debug, Default)]
struct Latency(OnceLock<Box<Histogram>>);

impl Latency {
    fn record(&self, took: Duration) {
        self.0.get_or_init(Box::default).record_shared(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
    }

    fn quantiles(&self) -> Quantiles {
        self.0.get().map(|histogram| histogram.quantiles()).unwrap_or_default()
    }
}

/// The figures of [`Counters`] at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Figures {
    pub(crate) in_flight: u32,
    pub(crate) calls: u64,
    pub(crate) failures: u64,
    pub(crate) retries: u64,
    pub(crate) hedges: u64,
    pub(crate) hedges_won: u64,
    pub(crate) fallbacks: u64,
    pub(crate) overloaded: u64,
    pub(crate) limited: u64,
    pub(crate) refused: u64,
    pub(crate) over_budget: u64,
    pub(crate) latency: Quantiles,
}

impl Counters {
    pub(crate) fn begun(&self) {
        self.in_flight.fetch_add(1, Relaxed);
    }

    /// No longer in hand, whether it has ended or was given up.
    pub(crate) fn let_go(&self) {
        self.in_flight.fetch_sub(1, Relaxed);
    }

    pub(crate) fn ended<T, E>(&self, result: &Result<T, CallError<E>>, took: Duration) {
        self.calls.fetch_add(1, Relaxed);
        self.latency.record(took);
        match result {
            Ok(_) | Err(CallError::Failed(_)) => {}
            Err(CallError::NoEffect(NoEffect::CircuitOpen { .. })) => {
                self.refused.fetch_add(1, Relaxed);
                self.failures.fetch_add(1, Relaxed);
            }
            Err(_) => {
                self.failures.fetch_add(1, Relaxed);
            }
        }
    }

    pub(crate) fn retried(&self) {
        self.retries.fetch_add(1, Relaxed);
    }

    pub(crate) fn hedged(&self) {
        self.hedges.fetch_add(1, Relaxed);
    }

    pub(crate) fn hedge_won(&self) {
        self.hedges_won.fetch_add(1, Relaxed);
    }

    pub(crate) fn fell_back(&self) {
        self.fallbacks.fetch_add(1, Relaxed);
    }

    pub(crate) fn overloaded(&self) {
        self.overloaded.fetch_add(1, Relaxed);
    }

    pub(crate) fn limited(&self) {
        self.limited.fetch_add(1, Relaxed);
    }

    pub(crate) fn over_budget(&self) {
        self.over_budget.fetch_add(1, Relaxed);
    }

    pub(crate) fn figures(&self) -> Figures {
        Figures {
            in_flight: self.in_flight.load(Relaxed),
            calls: self.calls.load(Relaxed),
            failures: self.failures.load(Relaxed),
            retries: self.retries.load(Relaxed),
            hedges: self.hedges.load(Relaxed),
            hedges_won: self.hedges_won.load(Relaxed),
            fallbacks: self.fallbacks.load(Relaxed),
            overloaded: self.overloaded.load(Relaxed),
            limited: self.limited.load(Relaxed),
            refused: self.refused.load(Relaxed),
            over_budget: self.over_budget.load(Relaxed),
            latency: self.latency.quantiles(),
        }
    }
}

/// Of one endpoint.
#[derive(Debug, Default)]
pub(crate) struct EndpointCounters {
    calls: AtomicU64,
    failures: AtomicU64,
    latency: Latency,
    last_error: Mutex<Option<Box<str>>>,
}

impl EndpointCounters {
    /// An attempt has ended; `failure` is why it counts against the endpoint.
    pub(crate) fn ended(&self, took: Duration, failure: Option<String>) {
        self.calls.fetch_add(1, Relaxed);
        self.latency.record(took);
        if let Some(mut text) = failure {
            self.failures.fetch_add(1, Relaxed);
            text.truncate(text.floor_char_boundary(MAX_ERROR));
            *self.last_error.lock() = Some(text.into());
        }
    }

    pub(crate) fn calls(&self) -> u64 {
        self.calls.load(Relaxed)
    }

    pub(crate) fn failures(&self) -> u64 {
        self.failures.load(Relaxed)
    }

    pub(crate) fn latency(&self) -> Quantiles {
        self.latency.quantiles()
    }

    pub(crate) fn last_error(&self) -> Option<Box<str>> {
        self.last_error.lock().clone()
    }
}

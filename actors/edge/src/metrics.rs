//! What the port counts, for `/metrics` and for tests.
//!
//! Owned by whoever opens the port, one for each node: nothing here is process-wide, so that several nodes in one
//! process count apart. Every set of labels is bounded by what this crate knows (versions, methods, statuses, reasons);
//! nothing that a client writes becomes a label. Counting is an addition to an atomic: no lock, no hash, no allocation.

use std::{
    ops::DerefMut,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use horos_wire::principal::Denied;
use http::{Method, StatusCode};
use parking_lot::Mutex;
use prometheus_client::{encoding::text, registry::Registry};

use crate::{Reason, Version};

mod collect;

/// A method, as metrics tell them apart: a client can invent as many as it likes, and they are all `other`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MethodClass {
    Get,
    Head,
    Post,
    Put,
    Patch,
    Delete,
    Options,
    Other,
}

impl MethodClass {
    const ALL: [Self; 8] = [Self::Get, Self::Head, Self::Post, Self::Put, Self::Patch, Self::Delete, Self::Options, Self::Other];

    pub(crate) fn of(method: &Method) -> Self {
        match *method {
            Method::GET => Self::Get,
            Method::HEAD => Self::Head,
            Method::POST => Self::Post,
            Method::PUT => Self::Put,
            Method::PATCH => Self::Patch,
            Method::DELETE => Self::Delete,
            Method::OPTIONS => Self::Options,
            _ => Self::Other,
        }
    }

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Patch => "PATCH",
            Self::Delete => "DELETE",
            Self::Options => "OPTIONS",
            Self::Other => "other",
        }
    }
}

/// Why nobody was proved, as metrics tell it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// No credential was shown.
    Missing,
    /// One was, and proved nobody.
    Denied(Denied),
}

impl Failure {
    const ALL: [Self; 8] = [
        Self::Missing,
        Self::Denied(Denied::Malformed),
        Self::Denied(Denied::Unknown),
        Self::Denied(Denied::Revoked),
        Self::Denied(Denied::Expired),
        Self::Denied(Denied::NotYetValid),
        Self::Denied(Denied::OtherAudience),
        Self::Denied(Denied::Unavailable),
    ];

    const fn index(self) -> usize {
        match self {
            Self::Missing => 0,
            Self::Denied(Denied::Malformed) => 1,
            Self::Denied(Denied::Unknown) => 2,
            Self::Denied(Denied::Revoked) => 3,
            Self::Denied(Denied::Expired) => 4,
            Self::Denied(Denied::NotYetValid) => 5,
            Self::Denied(Denied::OtherAudience) => 6,
            Self::Denied(Denied::Unavailable) => 7,
        }
    }

    const fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Denied(Denied::Malformed) => "malformed",
            Self::Denied(Denied::Unknown) => "unknown",
            Self::Denied(Denied::Revoked) => "revoked",
            Self::Denied(Denied::Expired) => "expired",
            Self::Denied(Denied::NotYetValid) => "not_yet_valid",
            Self::Denied(Denied::OtherAudience) => "other_audience",
            Self::Denied(Denied::Unavailable) => "unavailable",
        }
    }
}

/// Which way bytes of bodies go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Request,
    Response,
}

const VERSIONS: usize = Version::ALL.len();
const REASONS: usize = Reason::ALL.len();
const METHODS: usize = MethodClass::ALL.len();
/// Statuses are 100 to 599 (RFC 9110 §15); the one place more is for whatever else a service may invent.
const STATUSES: usize = 501;

/// Upper bounds of the duration histogram in microseconds: 100 µs to 30 s, the default deadline of an answer.
const BUCKETS: [u64; 14] =
    [100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 100_000, 250_000, 1_000_000, 2_500_000, 10_000_000, 30_000_000];

/// What happened with one HTTP version.
#[derive(Debug, Default)]
struct Spoken {
    requests_in_flight: AtomicI64,
    /// Requests whose client went away before the answer.
    cancelled: AtomicU64,
    /// One place for what is slower than all bounds.
    durations: [AtomicU64; BUCKETS.len() + 1],
    duration_micros: AtomicU64,
    request_bytes: AtomicU64,
    response_bytes: AtomicU64,
    connections_open: AtomicI64,
    connections: AtomicU64,
}

#[derive(Debug)]
struct Counters {
    spoken: [Spoken; VERSIONS],
    /// By version, method and status, in this order: 12,024 places, 94 KiB. Only what was counted is shown.
    requests: Box<[AtomicU64]>,
    /// By reason, and for each by version, with one place for none.
    refused: [[AtomicU64; VERSIONS + 1]; REASONS],
    failures: [AtomicU64; Failure::ALL.len()],
    handshakes_in_progress: AtomicI64,
    handshakes: AtomicU64,
    handshake_micros: AtomicU64,
}

/// What the port counts. Cheap to clone: every clone counts into the same.
#[derive(Clone, Debug)]
pub struct Metrics {
    counters: Arc<Counters>,
    registry: Arc<Mutex<Registry>>,
}

impl Default for Metrics {
    fn default() -> Self {
        let counters = Arc::new(Counters {
            spoken: Default::default(),
            requests: std::iter::repeat_with(AtomicU64::default).take(VERSIONS * METHODS * STATUSES).collect(),
            refused: std::array::from_fn(|_| Default::default()),
            failures: Default::default(),
            handshakes_in_progress: AtomicI64::default(),
            handshakes: AtomicU64::default(),
            handshake_micros: AtomicU64::default(),
        });
        let mut registry = Registry::default();
        registry.register_collector(Box::new(counters.clone()));
        Self { counters, registry: Arc::new(Mutex::new(registry)) }
    }
}

impl Metrics {
    /// Counts a refusal; `version` is `None` where none was agreed on yet.
    pub fn refused(&self, reason: Reason, version: Option<Version>) {
        self.counters.refused[place_of_reason(reason)][version.map_or(VERSIONS, place_of)].fetch_add(1, Relaxed);
    }

    /// How often something was refused for `reason`.
    pub fn count(&self, reason: Reason) -> u64 {
        self.counters.refused[place_of_reason(reason)].iter().map(|count| count.load(Relaxed)).sum()
    }

    /// Counts a connection, open until the guard is dropped.
    pub fn opened(&self, version: Version) -> ConnectionGuard {
        let spoken = self.spoken(version);
        spoken.connections.fetch_add(1, Relaxed);
        spoken.connections_open.fetch_add(1, Relaxed);
        ConnectionGuard { metrics: self.clone(), version }
    }

    /// How many connections of `version` are open.
    pub fn open(&self, version: Version) -> i64 {
        self.spoken(version).connections_open.load(Relaxed)
    }

    /// Counts a TLS handshake, in progress until the guard is dropped.
    pub fn handshaking(&self) -> HandshakeGuard {
        self.counters.handshakes_in_progress.fetch_add(1, Relaxed);
        HandshakeGuard { metrics: self.clone() }
    }

    /// How many TLS handshakes are in progress.
    pub fn handshakes(&self) -> i64 {
        self.counters.handshakes_in_progress.load(Relaxed)
    }

    /// How many requests were answered with `status`, over all versions and methods.
    pub fn answered(&self, status: StatusCode) -> u64 {
        let place = place_of_status(status);
        self.counters.requests.iter().skip(place).step_by(STATUSES).map(|count| count.load(Relaxed)).sum()
    }

    /// How many requests wait for their answer.
    pub fn in_flight(&self) -> i64 {
        Version::ALL.iter().map(|version| self.spoken(*version).requests_in_flight.load(Relaxed)).sum()
    }

    /// Where others register what is to be shown at `/metrics` too. Held only while registering: a scrape waits for it.
    pub fn registry(&self) -> impl DerefMut<Target = Registry> + '_ {
        self.registry.lock()
    }

    /// Everything, in the OpenMetrics text format.
    pub fn text(&self) -> String {
        let mut text = String::with_capacity(16 * 1024);
        // Writing to a `String` does not fail; a collector registered from elsewhere may, and then what it wrote is missing.
        if let Err(error) = text::encode(&mut text, &self.registry.lock()) {
            tracing::warn!(%error, "a collector failed: its metrics are missing");
        }
        text
    }

    pub(crate) fn started(&self, version: Version) {
        self.spoken(version).requests_in_flight.fetch_add(1, Relaxed);
    }

    pub(crate) fn cancelled(&self, version: Version) {
        self.spoken(version).requests_in_flight.fetch_sub(1, Relaxed);
        self.spoken(version).cancelled.fetch_add(1, Relaxed);
    }

    pub(crate) fn finished(&self, version: Version, method: MethodClass, status: StatusCode, took: Duration) {
        let spoken = self.spoken(version);
        spoken.requests_in_flight.fetch_sub(1, Relaxed);
        let micros = took.as_micros().try_into().unwrap_or(u64::MAX);
        let bucket = BUCKETS.iter().position(|bound| micros <= *bound).unwrap_or(BUCKETS.len());
        spoken.durations[bucket].fetch_add(1, Relaxed);
        spoken.duration_micros.fetch_add(micros, Relaxed);
        let place = (place_of(version) * METHODS + method as usize) * STATUSES + place_of_status(status);
        self.counters.requests[place].fetch_add(1, Relaxed);
    }

    pub(crate) fn bytes(&self, version: Version, direction: Direction, bytes: u64) {
        let spoken = self.spoken(version);
        let counter = match direction {
            Direction::Request => &spoken.request_bytes,
            Direction::Response => &spoken.response_bytes,
        };
        counter.fetch_add(bytes, Relaxed);
    }

    pub(crate) fn failed(&self, failure: Failure) {
        self.counters.failures[failure.index()].fetch_add(1, Relaxed);
    }

    fn spoken(&self, version: Version) -> &Spoken {
        &self.counters.spoken[place_of(version)]
    }
}

/// Holds a connection in the gauge of open ones.
#[derive(Debug)]
pub struct ConnectionGuard {
    metrics: Metrics,
    version: Version,
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.metrics.spoken(self.version).connections_open.fetch_sub(1, Relaxed);
    }
}

/// Holds a TLS handshake in the gauge of those in progress.
#[derive(Debug)]
pub struct HandshakeGuard {
    metrics: Metrics,
}

impl HandshakeGuard {
    /// It succeeded and took so long.
    pub fn done(self, took: Duration) {
        self.metrics.counters.handshakes.fetch_add(1, Relaxed);
        self.metrics.counters.handshake_micros.fetch_add(took.as_micros().try_into().unwrap_or(u64::MAX), Relaxed);
    }
}

impl Drop for HandshakeGuard {
    fn drop(&mut self) {
        self.metrics.counters.handshakes_in_progress.fetch_sub(1, Relaxed);
    }
}

const fn place_of(version: Version) -> usize {
    match version {
        Version::Http1 => 0,
        Version::Http2 => 1,
        Version::Http3 => 2,
    }
}

/// Fieldless and in the order of [`Reason::ALL`], which a test holds.
const fn place_of_reason(reason: Reason) -> usize {
    reason as usize
}

fn place_of_status(status: StatusCode) -> usize {
    match status.as_u16() {
        code @ 100..=599 => usize::from(code - 100),
        _ => STATUSES - 1,
    }
}

#[cfg(test)]
mod tests;

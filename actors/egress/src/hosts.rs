//! What is kept of each host: its connections, its breaker, its rate, its requests in flight and its figures.
//!
//! A host is an origin over TCP, or over QUIC, and separately the same origin where trusted endpoints do not count: a connection that was opened because the
//! owner trusts an endpoint never carries a request that a stranger's redirect sends there.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use governor::{
    DefaultDirectRateLimiter, Quota, RateLimiter,
    clock::{Clock as _, DefaultClock},
};
use parking_lot::Mutex;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

use super::{
    breaker::{Breaker, Circuit, Passage, Verdict},
    dial::{DialError, Dialer, Opened, Over},
    error::{Bound, EgressError},
    options::{Bounds, Options, OptionsError},
    policy::{Admitted, Refusal, Trust},
    pool::{Held, Pool, PoolBounds},
    target::Origin,
};

/// How long a host that nobody asks is remembered.
const FORGET: Duration = Duration::from_secs(600);

/// All hosts.
pub(crate) struct Hosts {
    ways: Arc<Ways>,
    options: Options,
    table: Mutex<HashMap<(Origin, Trust, Over), Arc<HostEntry>>>,
    pub(crate) requests: Arc<Semaphore>,
    pub(crate) refused: AtomicU64,
    pub(crate) overloaded: AtomicU64,
}

/// What all hosts have in common: how they are reached.
pub(crate) struct Ways {
    dialer: Dialer,
    /// A permit a connection.
    room: Arc<Semaphore>,
}

/// One host.
pub(crate) struct HostEntry {
    pub(crate) origin: Origin,
    over: Over,
    admitted: Admitted,
    ways: Arc<Ways>,
    pub(crate) pool: Pool,
    breaker: Mutex<Breaker>,
    rate: DefaultDirectRateLimiter,
    slots: Arc<Semaphore>,
    used: Mutex<Instant>,
    counters: Counters,
}

#[derive(Debug, Default)]
struct Counters {
    answered: AtomicU64,
    failed: AtomicU64,
    turned_away: AtomicU64,
}

/// A host's figures.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct HostStatus {
    /// Scheme, host and port.
    pub origin: String,
    /// Whether it is asked over QUIC.
    pub quic: bool,
    /// Whether requests pass.
    pub circuit: Circuit,
    /// Requests in flight.
    pub in_flight: usize,
    /// Open connections of HTTP/2, or of HTTP/3.
    pub shared: usize,
    /// Connections of HTTP/1.1 that wait for a request.
    pub idle: usize,
    /// Connections being opened.
    pub dialing: usize,
    /// Connections opened so far.
    pub opened: u64,
    /// Requests answered to their end, whatever the status.
    pub answered: u64,
    /// Requests that failed in a way that speaks against the host.
    pub failed: u64,
    /// Requests not sent for the breaker, the rate or the bound.
    pub turned_away: u64,
}

impl Hosts {
    pub(crate) fn new(options: Options) -> Result<Self, OptionsError> {
        options.check()?;
        let bounds = options.bounds;
        Ok(Self {
            ways: Arc::new(Ways { dialer: Dialer::new(&options)?, room: permits(bounds.connections) }),
            table: Mutex::default(),
            requests: permits(bounds.in_flight),
            refused: AtomicU64::new(0),
            overloaded: AtomicU64::new(0),
            options,
        })
    }

    pub(crate) fn options(&self) -> &Options {
        &self.options
    }

    /// Connections that may yet be opened.
    pub(crate) fn room(&self) -> usize {
        self.ways.room.available_permits()
    }

    /// Whether `origin` may be asked at all; its addresses are not known yet.
    pub(crate) fn admit(&self, origin: &Origin, trust: Trust) -> Result<Admitted, Refusal> {
        self.ways.dialer.policy.admit(origin, trust)
    }

    /// The addresses of an admitted origin, each checked.
    pub(crate) async fn addresses(&self, origin: &Origin, admitted: &Admitted) -> Result<Vec<SocketAddr>, Option<DialError>> {
        let dialer = &self.ways.dialer;
        let looked = tokio::time::timeout(dialer.within, dialer.permitted(origin, admitted)).await;
        looked.map_err(|_| Some(DialError::Unresolved("no answer in time".into())))?.map_err(Some)
    }

    /// Whom a connection believes that speaks `protocols`.
    pub(crate) fn tls(&self, protocols: &[&[u8]]) -> rustls::ClientConfig {
        self.ways.dialer.speaking(protocols)
    }

    /// The entry of an admitted origin; that which was unused for longest makes room for it.
    pub(crate) fn enter(&self, origin: &Origin, trust: Trust, over: Over, admitted: Admitted) -> Result<Arc<HostEntry>, EgressError> {
        let now = Instant::now();
        let mut table = self.table.lock();
        let key = (origin.clone(), trust, over);
        if let Some(host) = table.get(&key) {
            *host.used.lock() = now;
            return Ok(host.clone());
        }
        if table.len() >= self.options.bounds.hosts {
            // Those in whose breaker there is something to remember come last.
            let free = table.iter().filter(|(_, host)| host.is_unused(self.options.bounds.in_flight_per_host));
            let oldest = free.min_by_key(|(_, host)| (!host.breaker.lock().is_fresh(), *host.used.lock()));
            let oldest = oldest.map(|(key, _)| key.clone()).ok_or(EgressError::Overloaded(Bound::Hosts))?;
            table.remove(&oldest);
        }
        let host = Arc::new(HostEntry::new(origin.clone(), over, admitted, self.ways.clone(), &self.options, now));
        table.insert(key, host.clone());
        Ok(host)
    }

    /// Closes connections that nobody has used for `span`, and forgets hosts that nobody asks.
    pub(crate) fn sweep(&self, span: Duration) {
        let now = Instant::now();
        self.table.lock().retain(|_, host| {
            host.pool.sweep(span);
            let idle = host.is_unused(self.options.bounds.in_flight_per_host) && host.breaker.lock().is_fresh();
            !idle || now - *host.used.lock() < FORGET
        });
    }

    pub(crate) fn status(&self) -> Vec<HostStatus> {
        let hosts: Vec<_> = self.table.lock().values().cloned().collect();
        let mut all: Vec<_> = hosts.iter().map(|host| host.status(self.options.bounds)).collect();
        all.sort_by(|one, other| one.origin.cmp(&other.origin));
        all
    }
}

impl HostEntry {
    fn new(origin: Origin, over: Over, admitted: Admitted, ways: Arc<Ways>, options: &Options, now: Instant) -> Self {
        let Bounds { in_flight_per_host, idle_per_host, rate_per_host, burst_per_host, .. } = options.bounds;
        Self {
            origin,
            over,
            admitted,
            ways,
            pool: Pool::new(PoolBounds::new(in_flight_per_host, idle_per_host, options.timeouts.keep)),
            breaker: Mutex::new(Breaker::new(options.breaker)),
            rate: RateLimiter::direct(Quota::per_second(rate_per_host).allow_burst(burst_per_host)),
            slots: permits(in_flight_per_host),
            used: Mutex::new(now),
            counters: Counters::default(),
        }
    }

    /// Lets a request through that is one of `request`'s hops.
    pub(crate) fn pass(self: &Arc<Self>, request: Arc<OwnedSemaphorePermit>) -> Result<Ticket, EgressError> {
        let outcome = self.try_pass(request);
        if outcome.is_err() {
            self.counters.turned_away.fetch_add(1, Relaxed);
        }
        outcome
    }

    fn try_pass(self: &Arc<Self>, request: Arc<OwnedSemaphorePermit>) -> Result<Ticket, EgressError> {
        let origin = || self.origin.clone();
        let slot = self.slots.clone().try_acquire_owned().map_err(|_| EgressError::Overloaded(Bound::RequestsToHost))?;
        let open = |retry_after| EgressError::CircuitOpen { origin: origin(), retry_after };
        let passage = self.breaker.lock().pass(Instant::now()).map_err(open)?;
        // From here on dropping it tells the breaker that nothing was found out.
        let ticket = Ticket { host: self.clone(), passage: Some(passage), _slot: slot, _request: request };
        // Last, for it is spent. The owner's own services are not held to what strangers can bear.
        let rate = if self.admitted.is_own() { Ok(()) } else { self.rate.check() };
        rate.map_err(|not_until| {
            let retry_after = not_until.wait_time_from(DefaultClock::default().now());
            EgressError::RateLimited { origin: origin(), retry_after }
        })?;
        Ok(ticket)
    }

    /// Opens a connection. What speaks against the host is said here, once for all who wait.
    pub(crate) async fn dial(&self) -> Result<Opened, DialError> {
        let Ways { dialer, room } = &*self.ways;
        let room = tokio::time::timeout(dialer.within, room.clone().acquire_owned()).await;
        let room = room.ok().and_then(Result::ok).ok_or(DialError::NoRoom(Bound::Connections))?;
        let outcome = dialer.dial(&self.origin, self.over, &self.admitted, room).await;
        if let Err(error) = &outcome {
            tracing::debug!(origin = %self.origin, ?error, "no connection");
            if !matches!(error, DialError::Refused(_) | DialError::NoRoom(_)) {
                self.breaker.lock().dial_failed(Instant::now());
                self.counters.failed.fetch_add(1, Relaxed);
            }
        }
        outcome
    }

    fn is_unused(&self, slots: usize) -> bool {
        self.slots.available_permits() == slots
    }

    fn status(&self, bounds: Bounds) -> HostStatus {
        let Held { shared, idle, dialing, opened } = self.pool.held();
        HostStatus {
            origin: self.origin.to_string(),
            quic: self.over == Over::Quic,
            circuit: self.breaker.lock().circuit(Instant::now()),
            in_flight: bounds.in_flight_per_host.saturating_sub(self.slots.available_permits()),
            shared,
            idle,
            dialing,
            opened,
            answered: self.counters.answered.load(Relaxed),
            failed: self.counters.failed.load(Relaxed),
            turned_away: self.counters.turned_away.load(Relaxed),
        }
    }
}

fn permits(count: usize) -> Arc<Semaphore> {
    Arc::new(Semaphore::new(count.min(Semaphore::MAX_PERMITS)))
}

/// A request's place at its host, from before it is sent until its response is read. Dropped, it says nothing about the host.
pub(crate) struct Ticket {
    host: Arc<HostEntry>,
    /// None when the verdict is said.
    passage: Option<Passage>,
    _slot: OwnedSemaphorePermit,
    _request: Arc<OwnedSemaphorePermit>,
}

impl Ticket {
    /// The response's head is there.
    pub(crate) fn heard(&self) {
        if let Some(passage) = self.passage {
            self.host.breaker.lock().heard(passage, Instant::now());
        }
    }

    pub(crate) fn good(mut self) {
        self.host.counters.answered.fetch_add(1, Relaxed);
        self.say(Verdict::Good);
    }

    pub(crate) fn bad(mut self) {
        self.host.counters.failed.fetch_add(1, Relaxed);
        self.say(Verdict::Bad);
    }

    fn say(&mut self, verdict: Verdict) {
        if let Some(passage) = self.passage.take() {
            self.host.breaker.lock().report(passage, verdict, Instant::now());
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.say(Verdict::Nothing);
    }
}

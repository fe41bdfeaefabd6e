//! Owns the table of connections over TCP: how many there are, from where, and how each fares.
//!
//! A connection's own task writes its [`Life`] as things happen (a request begins, a byte of a head comes, the socket
//! takes no more). The door's reaper looks at all of them some times a second ([`Connections::inspect`]) and tells the
//! one that keeps to no time to leave or cuts it off: one loop, in place of timers for every connection, head, and part
//! of an answer.
//!
//! Bounds: connections in all, where the one that has been idle longest makes room; connections an address; handshakes
//! in progress, where the oldest makes room once it has had its chance, and handshakes of an address.

mod address;
mod life;

use std::{
    collections::{BTreeMap, HashMap, hash_map::Entry},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::sync::Notify;

pub(crate) use self::{
    address::{Network, Prefix},
    life::{Command, Hold, Life},
};
use crate::{Limits, Metrics, Phase, Reason, Timeouts, Version};

/// Connections on their way out to make room, beyond which the next are cut off without a farewell.
const LEAVING: usize = 64;
/// How long a connection that is told to leave has for its farewell: an HTTP/2 client answers the PING behind a GOAWAY. One that
/// has no request in hand is not waited for any longer, were it only that it does not read: nobody is failed by its end.
const FAREWELL: Duration = Duration::from_secs(1);
/// The part of all handshakes that one address may have in progress: it takes eight to leave others none.
const ADDRESSES: usize = 8;
/// A handshake that is younger is never cut off for a newer one: two round trips to the other side of the earth.
const CHANCE: Duration = Duration::from_millis(800);
/// While the node drains, an HTTP/1.1 connection without a request is closed after so long: whoever had a request on its
/// way when the drain began still gets an answer.
const LAST_REQUEST: Duration = Duration::from_secs(1);
/// Idle connections found at one look through the table, that those after the first need none of their own.
const CANDIDATES: usize = 64;

/// The table. Shared by the accept loop, the reaper and every connection.
#[derive(Debug)]
pub(crate) struct Connections {
    limits: Limits,
    timeouts: Timeouts,
    exempt: Box<[Network]>,
    metrics: Metrics,
    epoch: Instant,
    table: Mutex<Table>,
    emptied: Notify,
}

#[derive(Debug, Default)]
struct Table {
    next: u64,
    open: HashMap<u64, Arc<Life>>,
    /// Those of `open` that are at their handshake, oldest first.
    shaking: BTreeMap<u64, Arc<Life>>,
    /// As many of `open` have been told to leave.
    leaving: usize,
    addresses: HashMap<Prefix, Counts>,
    /// Idle when last looked at; the longest is last.
    candidates: Vec<Candidate>,
    looked: Option<Instant>,
}

/// Of one address.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    open: usize,
    /// Of them, at their handshake.
    shaking: usize,
}

impl Table {
    /// It is no longer at its handshake.
    fn shaken(&mut self, life: &Life) {
        if self.shaking.remove(&life.id()).is_some()
            && let Some(counts) = life.prefix().and_then(|prefix| self.addresses.get_mut(&prefix))
        {
            counts.shaking -= 1;
        }
    }
}

/// Orders by what should go first: nothing heard of a next request, then idle for long, then old.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    has_begun: bool,
    since: u64,
    id: u64,
}

/// A connection's place in the table, given up when it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    life: Arc<Life>,
    connections: Arc<Connections>,
}

impl Place {
    pub(crate) fn life(&self) -> &Arc<Life> {
        &self.life
    }

    /// The handshake is over.
    pub(crate) fn speaks(&self, version: Version) {
        self.life.speaks(version);
        self.connections.table.lock().shaken(&self.life);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.connections.remove(&self.life);
    }
}

impl Connections {
    pub(crate) fn new(limits: Limits, timeouts: Timeouts, trusted: &[(IpAddr, u8)], metrics: Metrics) -> Arc<Self> {
        let exempt = trusted.iter().map(|(address, bits)| Network::new(*address, *bits)).collect();
        let table = Mutex::default();
        Arc::new(Self { limits, timeouts, exempt, metrics, epoch: Instant::now(), table, emptied: Notify::new() })
    }

    /// A place for a connection from `peer`, at its handshake.
    ///
    /// # Errors
    /// Why there is none; the caller counts it.
    pub(crate) fn admit(self: &Arc<Self>, peer: SocketAddr) -> Result<Place, Reason> {
        let ip = peer.ip().to_canonical();
        let is_exempt = ip.is_loopback() || self.exempt.iter().any(|network| network.contains(ip));
        let prefix = (!is_exempt).then(|| Prefix::of(ip));
        let mut table = self.table.lock();
        let counts = prefix.and_then(|prefix| table.addresses.get(&prefix)).copied().unwrap_or_default();
        if counts.open >= self.limits.connections_per_address {
            return Err(Reason::AddressFull);
        }
        if counts.shaking >= (self.limits.handshakes / ADDRESSES).max(1) {
            return Err(Reason::AddressHandshakesFull);
        }
        if table.shaking.len() >= self.limits.handshakes {
            self.end_oldest_handshake(&mut table)?;
        }
        if table.open.len() - table.leaving >= self.limits.connections {
            self.make_room_in(&mut table)?;
        }
        if let Some(prefix) = prefix {
            let counts = table.addresses.entry(prefix).or_default();
            counts.open += 1;
            counts.shaking += 1;
        }
        table.next += 1;
        let life = Arc::new(Life::new(table.next, peer, prefix, self.epoch));
        table.open.insert(life.id(), life.clone());
        table.shaking.insert(life.id(), life.clone());
        Ok(Place { life, connections: self.clone() })
    }

    fn remove(&self, life: &Life) {
        let mut table = self.table.lock();
        table.open.remove(&life.id());
        table.shaken(life);
        if life.command() != Command::Stay {
            table.leaving -= 1;
        }
        if let Some(prefix) = life.prefix()
            && let Entry::Occupied(mut counts) = table.addresses.entry(prefix)
        {
            counts.get_mut().open -= 1;
            if counts.get().open == 0 {
                counts.remove();
            }
        }
        if table.open.is_empty() {
            // What a flood made it grow to is given back.
            table.open.shrink_to(64);
            table.addresses.shrink_to(64);
            drop(table);
            self.emptied.notify_waiters();
        }
    }

    fn end_oldest_handshake(&self, table: &mut Table) -> Result<(), Reason> {
        let Some((_, oldest)) = table.shaking.first_key_value() else { return Err(Reason::HandshakesFull) };
        if oldest.age(Instant::now()) < CHANCE {
            return Err(Reason::HandshakesFull);
        }
        let oldest = oldest.clone();
        table.shaken(&oldest);
        self.cut_in(table, &oldest, Reason::HandshakeTimeout);
        Ok(())
    }

    /// Ends the connection that has been idle longest: for an accept loop that is out of file descriptors.
    pub(crate) fn make_room(&self) {
        // Where nobody is idle there is no room to be made, and the loop waits.
        let _ = self.make_room_in(&mut self.table.lock());
    }

    fn make_room_in(&self, table: &mut Table) -> Result<(), Reason> {
        loop {
            while let Some(candidate) = table.candidates.pop() {
                let Some(life) = table.open.get(&candidate.id) else { continue };
                if life.idle_since() != Some(candidate.since) || life.command() != Command::Stay {
                    continue;
                }
                let life = life.clone();
                if table.leaving >= LEAVING {
                    self.cut_in(table, &life, Reason::Idle);
                } else {
                    self.metrics.refused(Reason::Idle, life.version());
                    self.send_off(table, &life, Instant::now() + FAREWELL);
                }
                return Ok(());
            }
            // A look costs some tens of nanoseconds a connection: under a flood at most every tenth of the time goes there.
            let now = Instant::now();
            let pause = Duration::from_nanos(500) * u32::try_from(table.open.len()).unwrap_or(u32::MAX);
            if table.looked.is_some_and(|looked| now < looked + pause) {
                return Err(Reason::ConnectionsFull);
            }
            table.looked = Some(now);
            let idle = table.open.values().filter(|life| life.command() == Command::Stay).filter_map(|life| {
                let since = life.idle_since()?;
                Some(Candidate { has_begun: life.head_since().is_some(), since, id: life.id() })
            });
            let mut found: Vec<_> = idle.collect();
            if found.is_empty() {
                return Err(Reason::ConnectionsFull);
            }
            if found.len() > CANDIDATES {
                found.select_nth_unstable(CANDIDATES);
                found.truncate(CANDIDATES);
            }
            found.sort_unstable_by(|a, b| b.cmp(a));
            table.candidates = found;
        }
    }

    fn send_off(&self, table: &mut Table, life: &Life, by: Instant) {
        // It may have ended since it was looked at, and then nobody would take it off the count of those that leave.
        if table.open.contains_key(&life.id()) && life.leave(by) {
            table.leaving += 1;
        }
    }

    fn cut_in(&self, table: &mut Table, life: &Life, reason: Reason) {
        if end_in(table, life) {
            self.metrics.refused(reason, life.version());
            tracing::debug!(peer = %life.peer(), reason = reason.as_str(), "connection cut off");
        }
    }

    /// Looks at every connection once. Returns when the next look is due.
    pub(crate) fn inspect(&self, phase: Phase) -> Duration {
        let now = Instant::now();
        // The lock is not held over the walk: the accept loop waits for it.
        let all: Vec<_> = self.table.lock().open.values().cloned().collect();
        for life in all {
            self.inspect_one(&life, now, phase);
        }
        match phase {
            Phase::Draining { until } => {
                self.look_every().min(Duration::from_millis(50)).min(until.saturating_duration_since(now).max(Duration::from_millis(5)))
            }
            Phase::Open | Phase::NotReady => self.look_every(),
        }
    }

    /// An eighth of the shortest time that is kept, at most twice a second.
    fn look_every(&self) -> Duration {
        let Timeouts { head, stalled, idle, .. } = self.timeouts;
        (head.min(stalled).min(idle) / 8).clamp(Duration::from_millis(10), Duration::from_millis(500))
    }

    fn inspect_one(&self, life: &Arc<Life>, now: Instant, phase: Phase) {
        let is_over = |since: Option<u64>, limit: Duration| since.is_some_and(|since| life.since(since, now) > limit);
        match (life.command(), phase) {
            (Command::Cut, _) => return,
            (_, Phase::Draining { until }) if now >= until => return self.cut_in(&mut self.table.lock(), life, Reason::Draining),
            (Command::Leave, Phase::Draining { .. }) if self.has_said_farewell(life, now) => {
                return self.cut_in(&mut self.table.lock(), life, Reason::Idle);
            }
            (Command::Leave, _) if life.has_overstayed(now) => {
                // It was counted when it was told.
                end_in(&mut self.table.lock(), life);
                return;
            }
            _ => {}
        }
        let Some(version) = life.version() else { return };
        if is_over(life.blocked_since(), self.timeouts.stalled) {
            return self.cut_in(&mut self.table.lock(), life, Reason::SlowReader);
        }
        if is_over(life.head_since(), self.timeouts.head) {
            return self.cut_in(&mut self.table.lock(), life, Reason::SlowHead);
        }
        for _ in 0..life.end_stalled(now, self.timeouts.stalled) {
            self.metrics.refused(Reason::SlowReader, Some(version));
        }
        if life.command() != Command::Stay {
            return;
        }
        match phase {
            Phase::Draining { until } if version == Version::Http2 => return self.send_off(&mut self.table.lock(), life, until),
            Phase::Draining { until } if life.head_since().is_none() && is_over(life.idle_since(), LAST_REQUEST) => {
                return self.send_off(&mut self.table.lock(), life, until);
            }
            _ => {}
        }
        if is_over(life.idle_since(), self.timeouts.idle) {
            self.metrics.refused(Reason::Idle, Some(version));
            self.send_off(&mut self.table.lock(), life, now + FAREWELL);
        }
    }

    /// Whether there is nothing more to be heard of one that was told to leave, nor anything that it has yet to take.
    fn has_said_farewell(&self, life: &Life, now: Instant) -> bool {
        let is_over = |since: Option<u64>| since.is_some_and(|since| life.since(since, now) > FAREWELL);
        life.version() == Some(Version::Http2)
            && is_over(life.told_since())
            && is_over(life.idle_since())
            && life.head_since().is_none()
            && life.blocked_since().is_none()
    }

    /// Cuts off whoever is left.
    pub(crate) fn cut_all(&self, reason: Reason) {
        let mut table = self.table.lock();
        let all: Vec<_> = table.open.values().cloned().collect();
        for life in all {
            self.cut_in(&mut table, &life, reason);
        }
    }

    pub(crate) fn open(&self) -> usize {
        self.table.lock().open.len()
    }

    /// Returns when there is none.
    pub(crate) async fn emptied(&self) {
        loop {
            let emptied = self.emptied.notified();
            if self.open() == 0 {
                return;
            }
            emptied.await;
        }
    }
}

/// Cuts a connection off, unless it was or has ended.
fn end_in(table: &mut Table, life: &Life) -> bool {
    let had = life.command();
    if had == Command::Cut || !table.open.contains_key(&life.id()) {
        return false;
    }
    if had == Command::Stay {
        table.leaving += 1;
    }
    life.cut();
    true
}

#[cfg(test)]
mod tests;

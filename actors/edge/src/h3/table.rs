//! Owns the table of HTTP/3 connections: how many there are, from where, and which one makes room for the next.
//!
//! Bounds: connections in all, where the one that has been idle longest is told to leave; connections an address.

use std::{
    collections::{HashMap, hash_map},
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::{
    Reason,
    connections::{Network, Prefix},
};

/// Idle connections found at one look through the table, that those after the first need none of their own.
const CANDIDATES: usize = 64;

/// The table.
#[derive(Debug)]
pub(super) struct Table {
    connections: usize,
    an_address: usize,
    exempt: Box<[Network]>,
    epoch: Instant,
    inner: Mutex<Inner>,
    emptied: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    next: u64,
    /// Those that count; one that is told to make room counts no more.
    open: HashMap<u64, Arc<Entry>>,
    leaving: usize,
    addresses: HashMap<Prefix, usize>,
    /// Idle when last looked at; the longest is last.
    candidates: Vec<(u64, u64)>,
    looked: Option<Instant>,
}

#[derive(Debug)]
struct Entry {
    /// Milliseconds since the table's epoch, from 1; 0 while there is a request.
    idle_since: AtomicU64,
    is_to_leave: AtomicBool,
    waker: AtomicWaker,
}

/// A connection's place, given up when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    id: u64,
    prefix: Option<Prefix>,
    entry: Arc<Entry>,
    table: Arc<Table>,
}

impl Table {
    pub(super) fn new(connections: usize, an_address: usize, trusted: &[(IpAddr, u8)]) -> Arc<Self> {
        let exempt = trusted.iter().map(|(address, bits)| Network::new(*address, *bits)).collect();
        Arc::new(Self { connections, an_address, exempt, epoch: Instant::now(), inner: Mutex::default(), emptied: Notify::new() })
    }

    /// A place for a connection from `peer`.
    ///
    /// # Errors
    /// Why there is none; the caller counts it.
    pub(super) fn enter(self: &Arc<Self>, peer: SocketAddr) -> Result<Place, Reason> {
        let ip = peer.ip().to_canonical();
        let is_exempt = ip.is_loopback() || self.exempt.iter().any(|network| network.contains(ip));
        let prefix = (!is_exempt).then(|| Prefix::of(ip));
        let mut inner = self.inner.lock();
        if prefix.is_some_and(|prefix| inner.addresses.get(&prefix).is_some_and(|open| *open >= self.an_address)) {
            return Err(Reason::AddressFull);
        }
        if inner.open.len() >= self.connections && !make_room(&mut inner) {
            return Err(Reason::ConnectionsFull);
        }
        if let Some(prefix) = prefix {
            *inner.addresses.entry(prefix).or_default() += 1;
        }
        inner.next += 1;
        let id = inner.next;
        let entry = Arc::new(Entry {
            idle_since: AtomicU64::new(self.millis(Instant::now())),
            is_to_leave: AtomicBool::new(false),
            waker: AtomicWaker::new(),
        });
        inner.open.insert(id, entry.clone());
        Ok(Place { id, prefix, entry, table: self.clone() })
    }

    pub(super) fn open(&self) -> usize {
        let inner = self.inner.lock();
        inner.open.len() + inner.leaving
    }

    /// Returns when there is none.
    pub(super) async fn emptied(&self) {
        loop {
            let emptied = self.emptied.notified();
            if self.open() == 0 {
                return;
            }
            emptied.await;
        }
    }

    fn millis(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.epoch).as_millis()).unwrap_or(u64::MAX).max(1)
    }
}

/// Tells the connection that has been idle longest to leave.
fn make_room(inner: &mut Inner) -> bool {
    loop {
        while let Some((since, id)) = inner.candidates.pop() {
            let hash_map::Entry::Occupied(open) = inner.open.entry(id) else { continue };
            if open.get().idle_since.load(Relaxed) != since {
                continue;
            }
            let entry = open.remove();
            inner.leaving += 1;
            entry.is_to_leave.store(true, Relaxed);
            entry.waker.wake();
            return true;
        }
        // A look costs some tens of nanoseconds a connection: under a flood at most every tenth of the time goes there.
        let pause = Duration::from_nanos(500) * u32::try_from(inner.open.len()).unwrap_or(u32::MAX);
        if inner.looked.is_some_and(|looked| looked.elapsed() < pause) {
            return false;
        }
        inner.looked = Some(Instant::now());
        let mut found: Vec<_> =
            inner.open.iter().map(|(id, entry)| (entry.idle_since.load(Relaxed), *id)).filter(|(since, _)| *since != 0).collect();
        if found.is_empty() {
            return false;
        }
        if found.len() > CANDIDATES {
            found.select_nth_unstable(CANDIDATES);
            found.truncate(CANDIDATES);
        }
        found.sort_unstable_by(|a, b| b.cmp(a));
        inner.candidates = found;
    }
}

impl Place {
    /// There is a request.
    pub(super) fn busy(&self) {
        self.entry.idle_since.store(0, Relaxed);
    }

    /// There is none.
    pub(super) fn idle(&self, now: Instant) {
        self.entry.idle_since.store(self.table.millis(now), Relaxed);
    }

    /// Ready when it is to make room.
    pub(super) fn poll_leave(&self, cx: &Context<'_>) -> Poll<()> {
        self.entry.waker.register(cx.waker());
        if self.entry.is_to_leave.load(Relaxed) { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut inner = self.table.inner.lock();
        if inner.open.remove(&self.id).is_none() {
            inner.leaving -= 1;
        }
        if let Some(prefix) = self.prefix
            && let hash_map::Entry::Occupied(mut open) = inner.addresses.entry(prefix)
        {
            *open.get_mut() -= 1;
            if *open.get() == 0 {
                open.remove();
            }
        }
        if inner.open.is_empty() && inner.leaving == 0 {
            // What a flood made it grow to is given back.
            inner.open.shrink_to(64);
            inner.addresses.shrink_to(64);
            drop(inner);
            self.table.emptied.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    fn from(address: &str) -> SocketAddr {
        SocketAddr::new(address.parse().unwrap(), 1)
    }

    fn is_told(place: &Place) -> bool {
        place.poll_leave(&Context::from_waker(Waker::noop())).is_ready()
    }

    #[test]
    fn the_longest_idle_makes_room_and_the_busy_stay() {
        let table = Table::new(3, 9, &[]);
        let places = [1, 2, 3].map(|n| table.enter(from(&format!("192.0.2.{n}"))).unwrap());
        places[0].busy();
        places[1].entry.idle_since.store(7, Relaxed);
        places[2].entry.idle_since.store(5, Relaxed);
        let fourth = table.enter(from("192.0.2.4")).unwrap();
        assert_eq!(places.each_ref().map(is_told), [false, false, true]);
        assert_eq!(table.open(), 4);
        let [first, second, third] = places;
        drop(third);
        assert_eq!(table.open(), 3);
        second.busy();
        fourth.busy();
        assert_eq!(table.enter(from("192.0.2.5")).unwrap_err(), Reason::ConnectionsFull);
        drop(first);
        assert!(table.enter(from("192.0.2.5")).is_ok());
    }

    #[test]
    fn an_address_has_so_many_and_a_64_is_one() {
        let table = Table::new(99, 1, &[("10.0.0.0".parse().unwrap(), 8)]);
        let held: Vec<_> = ["2001:db8::1", "192.0.2.1", "127.0.0.1", "127.0.0.1", "10.1.2.3", "10.1.2.3", "2001:db8:0:1::1"]
            .map(|address| table.enter(from(address)).unwrap())
            .into();
        for address in ["2001:db8::2", "192.0.2.1", "::ffff:192.0.2.1"] {
            assert_eq!(table.enter(from(address)).unwrap_err(), Reason::AddressFull, "{address}");
        }
        drop(held);
        assert_eq!(table.open(), 0);
        assert!(table.enter(from("192.0.2.1")).is_ok());
    }
}

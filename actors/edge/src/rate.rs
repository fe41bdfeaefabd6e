//! How many requests a client may make: GCRA (ITU-T I.371) by `governor`, over a bounded table of our own.
//!
//! A limit of *n* a minute lets *n* come at once and then one each 60/*n* seconds: no window to straddle, and in any time
//! *w* at most *n* + *n* · *w* / 60 s. A refused request costs nothing.
//!
//! Owned by the guard, one [`Limiter`] for each kind of key, so that a flood of addresses never makes a key's count be
//! forgotten. Counts are of this node and of this life.

use std::{
    hash::{BuildHasher as _, RandomState},
    net::IpAddr,
    num::NonZeroU32,
    time::Duration,
};

use governor::{
    NotUntil, Quota, RateLimiter,
    clock::Clock,
    middleware::{StateInformationMiddleware, StateSnapshot},
    nanos::Nanos,
};
use tokio::time::Instant;

mod table;

use table::{At, Table};

/// What requests are counted by.
pub(crate) type Key = [u8; 16];

/// An address, an IPv6 one without its last 64 bits: those are the client's to choose (RFC 4291 §2.5.1).
pub(crate) fn address_key(address: IpAddr) -> Key {
    match address.to_canonical() {
        IpAddr::V4(four) => four.to_ipv6_mapped().octets(),
        IpAddr::V6(six) => (u128::from_be_bytes(six.octets()) & !u128::from(u64::MAX)).to_be_bytes(),
    }
}

/// Come back after so long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wait(pub(crate) Duration);

impl Wait {
    /// In whole seconds, rounded up: who waits so long is not refused for having come a moment early.
    pub(crate) fn seconds(self) -> u64 {
        let whole = self.0.as_secs() + u64::from(self.0.subsec_nanos() > 0);
        whole.max(1)
    }
}

/// Counts one kind of key.
#[derive(Debug)]
pub(crate) struct Limiter {
    table: Table,
    start: Instant,
    /// Makes keys out of names; two so that a key has 128 bits. Drawn anew each life, so that no one can make names collide.
    names: [RandomState; 2],
}

impl Limiter {
    /// Keeps count of `counted` keys at a time.
    pub(crate) fn new(counted: usize) -> Self {
        Self { table: Table::new(counted), start: Instant::now(), names: [RandomState::new(), RandomState::new()] }
    }

    pub(crate) fn name_key(&self, name: &str) -> Key {
        let [high, low] = self.names.each_ref().map(|state| state.hash_one(name));
        (u128::from(high) << 64 | u128::from(low)).to_be_bytes()
    }

    /// Counts one more of `key`, and tells how many more may follow at once; or tells to wait, and counts nothing.
    pub(crate) fn take(&self, key: &Key, per_minute: NonZeroU32, now: Instant) -> Result<u32, Wait> {
        decide(self.at(now, true), key, per_minute).map(|state| state.remaining_burst_capacity())
    }

    /// Whether `key` may take one more, without counting it.
    pub(crate) fn look(&self, key: &Key, per_minute: NonZeroU32, now: Instant) -> Result<(), Wait> {
        decide(self.at(now, false), key, per_minute).map(drop)
    }

    fn at(&self, now: Instant, keeps: bool) -> At<'_> {
        // 584 years of uptime.
        let now = u64::try_from(now.saturating_duration_since(self.start).as_nanos()).unwrap_or(u64::MAX);
        At { table: &self.table, now, keeps }
    }
}

/// A clock that stands still at the moment of one decision; stores count from it.
#[derive(Clone, Copy, Debug)]
struct Now;

impl Clock for Now {
    type Instant = Nanos;
    fn now(&self) -> Nanos {
        Nanos::new(0)
    }
}

/// `governor` has one quota a limiter, and here each key may have its own: a limiter is a few numbers, so one is made for
/// each decision, and only the store lives on.
fn decide(store: At<'_>, key: &Key, per_minute: NonZeroU32) -> Result<StateSnapshot, Wait> {
    let limiter = RateLimiter::<Key, At<'_>, Now, StateInformationMiddleware>::new(Quota::per_minute(per_minute), store, Now);
    limiter.check_key(key).map_err(|until: NotUntil<Nanos>| Wait(until.wait_time_from(Nanos::new(0))))
}

#[cfg(test)]
mod tests;

//! What each key owes, for a bounded number of keys.
//!
//! GCRA's state of a key is one instant, its *theoretical arrival time*: how far it lies ahead is what the key owes. A
//! key that owes nothing is as good as forgotten, so when a shard is full the key that **owes the least** makes room: the
//! longest silent of those that came equally often. And the newcomer **takes over what that one owed** (Metwally et al.,
//! "space saving"). Three things follow, whatever an attacker does:
//!
//! - Nobody is ever let through more often than by a table without a bound: what the least one owes only grows while a shard
//!   is full, so that a key which comes back after it was forgotten owes at least what it did.
//! - To push out one that owes much, every other place of its shard must owe more: as many addresses as there are
//!   places, each having made as many requests as that one. A flood of addresses that come once or twice pushes
//!   out each other.
//! - Strangers are refused for others' requests only once all the places of their shard are at their limit together, which
//!   takes as many requests a minute as there are places times the limit.
//!
//! Which shard a key is in is decided by a hash with a secret of this life.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    hash::{BuildHasher as _, RandomState},
};

use governor::{nanos::Nanos, state::StateStore};
use parking_lot::Mutex;

use super::Key;

/// Threads that count at the same time seldom meet at one of 64.
const SHARDS: usize = 64;
/// A shard of fewer could be full of others' debts while there is room beside it.
const LEAST_PLACES: usize = 64;

#[derive(Debug)]
pub(super) struct Table {
    shards: Box<[Mutex<Shard>]>,
    hasher: RandomState,
}

#[derive(Debug)]
struct Shard {
    /// Most keys in it.
    places: usize,
    index: HashMap<Key, usize, RandomState>,
    slots: Vec<Slot>,
    /// Every slot once, with what it owed when it was put there: once the shard is full, and not before. Debts only
    /// grow, so what stands here is never too much, and the least is found by correcting what comes out.
    least: BinaryHeap<Reverse<(u64, usize)>>,
}

#[derive(Debug)]
struct Slot {
    key: Key,
    /// The theoretical arrival time, in nanoseconds from the limiter's start.
    arrival: u64,
}

/// Where a key stands, or would.
enum Place {
    Known(usize),
    Free,
    InsteadOf(usize),
}

impl Table {
    pub(super) fn new(counted: usize) -> Self {
        let shards = (counted / LEAST_PLACES).clamp(1, SHARDS);
        let hasher = RandomState::new();
        let shard = |i| {
            let places = counted.max(1) / shards + usize::from(i < counted % shards);
            Mutex::new(Shard { places, index: HashMap::with_hasher(hasher.clone()), slots: Vec::new(), least: BinaryHeap::new() })
        };
        Self { shards: (0..shards).map(shard).collect(), hasher }
    }

    fn shard(&self, key: &Key) -> &Mutex<Shard> {
        // The high half: the map inside the shard uses the low bits of the same hash.
        let high = (self.hasher.hash_one(key) >> 32) as usize;
        &self.shards[high % self.shards.len()]
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().slots.len()).sum()
    }
}

impl Shard {
    fn place(&mut self, key: &Key) -> Place {
        if let Some(known) = self.index.get(key) {
            return Place::Known(*known);
        }
        if self.slots.len() < self.places { Place::Free } else { Place::InsteadOf(self.least()) }
    }

    /// The slot that owes the least. Each turn of the loop corrects one entry, and each entry is only wrong if its slot was
    /// counted since: over all requests it costs no more than they do.
    fn least(&mut self) -> usize {
        if self.least.is_empty() {
            self.least = self.slots.iter().enumerate().map(|(slot, it)| Reverse((it.arrival, slot))).collect();
        }
        loop {
            let mut top = self.least.peek_mut().expect("a full shard has a place, and each is in the heap");
            let Reverse((believed, slot)) = *top;
            let arrival = self.slots[slot].arrival;
            if believed == arrival {
                return slot;
            }
            *top = Reverse((arrival, slot));
        }
    }

    fn arrival(&self, place: &Place) -> Option<u64> {
        match place {
            Place::Known(slot) | Place::InsteadOf(slot) => Some(self.slots[*slot].arrival),
            Place::Free => None,
        }
    }

    fn put(&mut self, place: &Place, key: &Key, arrival: u64) {
        match *place {
            Place::Known(slot) => self.slots[slot].arrival = arrival,
            Place::Free => {
                self.index.insert(*key, self.slots.len());
                self.slots.push(Slot { key: *key, arrival });
            }
            Place::InsteadOf(slot) => {
                let forgotten = std::mem::replace(&mut self.slots[slot], Slot { key: *key, arrival });
                self.index.remove(&forgotten.key);
                self.index.insert(*key, slot);
            }
        }
    }
}

/// The table at one moment, from which `governor` counts: what a key owes is told and taken relative to it.
#[derive(Debug)]
pub(super) struct At<'a> {
    pub(super) table: &'a Table,
    pub(super) now: u64,
    /// Whether what is decided is kept, or the key was only looked at.
    pub(super) keeps: bool,
}

impl StateStore for At<'_> {
    type Key = Key;
    fn measure_and_replace<T, F, E>(&self, key: &Key, decide: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let mut shard = self.table.shard(key).lock();
        let place = shard.place(key);
        let owed = shard.arrival(&place).map(|arrival| Nanos::new(arrival.saturating_sub(self.now)));
        let (outcome, owes) = decide(owed)?;
        if self.keeps {
            shard.put(&place, key, self.now.saturating_add(owes.as_u64()));
        }
        Ok(outcome)
    }
}

//! UUIDv7 in an order that never turns back (RFC 9562 §5.7, §6.2).
//!
//! ```text
//! 48 bits  milliseconds       the clock's, or the last id's where the clock stands still or went back
//!  4       version 7
//! 12       counter, high
//!  2       variant
//! 30       counter, low       42 bits together (§6.2 method 1): drawn anew each millisecond, top bit 0
//! 32       random             or 16 of shard and 16 random
//! ```
//!
//! Within a millisecond the counter rises by one an id. Should it overflow (after at least 2^41 ids)
//! or the clock go back, the time runs ahead of the clock by as little as keeps the order.

use uuid::Uuid;

use super::{Entropy, IdError, UnixMillis};

/// Most ids [`Uuid7s::batch`] makes at once: 1 MiB of them.
pub const MAX_BATCH: usize = 65_536;

/// How far ahead of this node's clock an id from another node may be and still be believed by
/// [`Uuid7s::observe`]: a minute is more than clocks under NTP ever differ, and little enough that a
/// hostile id cannot push this node's ids far into the future.
pub const MAX_AHEAD_MS: u64 = 60_000;

const COUNTER_BITS: u32 = 42;
const COUNTER_MAX: u64 = (1 << COUNTER_BITS) - 1;
/// The counter starts with its top bit 0, so that half its range is always left (§6.2, "rollover guard").
const SEED_MASK: u64 = COUNTER_MAX >> 1;

/// Makes UUIDv7s, each greater than all that this generator made before.
///
/// Two generators never share state: their ids differ by at least 73 random bits a millisecond, or,
/// with [`Uuid7s::on_shard`], by their shard with certainty.
#[derive(Clone, Debug, Default)]
pub struct Uuid7s {
    last_ms: u64,
    counter: u64,
    started: bool,
    shard: Option<u16>,
}

impl Uuid7s {
    /// A generator with no memory.
    pub const fn new() -> Self {
        Self { last_ms: 0, counter: 0, started: false, shard: None }
    }

    /// The same with `shard` in bits 96 to 111 of each id, for routing by id: see [`shard`].
    #[must_use]
    pub const fn on_shard(mut self, shard: u16) -> Self {
        self.shard = Some(shard);
        self
    }

    /// Continues behind `last`, the greatest id that this node stored before it stopped, so that a
    /// clock set back over a restart reorders nothing.
    ///
    /// # Errors
    /// [`IdError::Version`] when `last` is no UUIDv7.
    pub fn resume(&mut self, last: Uuid) -> Result<(), IdError> {
        self.raise(super::seven(last)?);
        Ok(())
    }

    /// Makes all later ids greater than `seen`, an id from another node: what is caused by it then sorts
    /// behind it, however the two clocks differ (a hybrid logical clock).
    ///
    /// # Errors
    /// [`IdError::TooFarAhead`] past [`MAX_AHEAD_MS`], [`IdError::Version`] when it is no UUIDv7;
    /// the generator is then as it was.
    pub fn observe(&mut self, now: UnixMillis, seen: Uuid) -> Result<(), IdError> {
        let seen = super::seven(seen)?;
        let ahead_ms = millis(seen).0.saturating_sub(now.0);
        if ahead_ms > MAX_AHEAD_MS {
            return Err(IdError::TooFarAhead { ahead_ms });
        }
        self.raise(seen);
        Ok(())
    }

    fn raise(&mut self, seen: Uuid) {
        let floor = (millis(seen).0, counter(seen));
        if !self.started || floor > (self.last_ms, self.counter) {
            (self.last_ms, self.counter) = floor;
            self.started = true;
        }
    }

    /// Makes the next id.
    ///
    /// # Errors
    /// [`IdError::Entropy`] or [`IdError::Time`]; the generator is then as it was.
    pub fn next(&mut self, now: UnixMillis, entropy: &mut impl Entropy) -> Result<Uuid, IdError> {
        let mut random = [0; 12];
        entropy.fill(&mut random)?;
        let [a, b, c, d, seed @ ..] = random;
        self.step(now, u64::from_le_bytes(seed))?;
        Ok(self.compose(u32::from_le_bytes([a, b, c, d])))
    }

    /// Makes `count` ids in rising order with one draw of randomness: all of them or none.
    ///
    /// # Errors
    /// [`IdError::Length`] past [`MAX_BATCH`], else as [`Uuid7s::next`].
    pub fn batch(&mut self, now: UnixMillis, count: usize, entropy: &mut impl Entropy) -> Result<Vec<Uuid>, IdError> {
        if count > MAX_BATCH {
            return Err(IdError::Length { found: count, min: 0, max: MAX_BATCH });
        }
        let mut random = vec![0; 8 + 4 * count];
        entropy.fill(&mut random)?;
        let (seed, tails) = random.split_at(8);
        let seed = seed.iter().fold(0, |seed, byte| seed << 8 | u64::from(*byte));
        let mut next = self.clone();
        let mut ids = Vec::with_capacity(count);
        for tail in tails.chunks_exact(4) {
            next.step(now, seed)?;
            ids.push(next.compose(tail.iter().fold(0, |tail, byte| tail << 8 | u32::from(*byte))));
        }
        *self = next;
        Ok(ids)
    }

    /// Moves to the next pair of time and counter, which is greater than the last.
    fn step(&mut self, now: UnixMillis, seed: u64) -> Result<(), IdError> {
        let seed = seed & SEED_MASK;
        let (ms, counter) = match () {
            () if !self.started || now.0 > self.last_ms => (now.0, seed),
            () if self.counter < COUNTER_MAX => (self.last_ms, self.counter + 1),
            // §6.2, "counter rollover": ahead of the clock by one millisecond.
            () => (self.last_ms.saturating_add(1), seed),
        };
        if ms > UnixMillis::MAX.0 {
            return Err(IdError::Time(ms));
        }
        (self.last_ms, self.counter, self.started) = (ms, counter, true);
        Ok(())
    }

    fn compose(&self, random: u32) -> Uuid {
        let tail = match self.shard {
            Some(shard) => u32::from(shard) << 16 | (random & 0xffff),
            None => random,
        };
        let high = self.last_ms << 16 | 0x7000 | self.counter >> 30;
        let low = 0b10 << 62 | (self.counter & ((1 << 30) - 1)) << 32 | u64::from(tail);
        Uuid::from_u64_pair(high, low)
    }
}

/// The time in a UUIDv7.
pub const fn millis(uuid: Uuid) -> UnixMillis {
    UnixMillis(uuid.as_u64_pair().0 >> 16)
}

/// The shard in a UUIDv7 made by a generator [`Uuid7s::on_shard`]; random bits in any other.
pub const fn shard(uuid: Uuid) -> u16 {
    // Truncation keeps bits 16 to 31, which are the shard.
    (uuid.as_u64_pair().1 >> 16) as u16
}

const fn counter(uuid: Uuid) -> u64 {
    let (high, low) = uuid.as_u64_pair();
    (high & 0xfff) << 30 | (low >> 32 & ((1 << 30) - 1))
}

//! How many calls a service has in hand: more wait in a queue, in the order they came, and no longer than they have time.
//!
//! A place that is free is taken without waiting or allocating. Whoever stops waiting leaves the queue, and a place that was being
//! given to them goes to the next.

use std::{collections::VecDeque, sync::Arc, time::Instant};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::config;

/// No place was free in time; the call was not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Overloaded {
    /// As many wait as may. Try later, or elsewhere.
    #[error("all places are taken, and as many calls wait as may")]
    Full,
    /// The deadline passed in the queue.
    #[error("all places were taken until the deadline")]
    DeadlinePassed,
}

/// A limit of calls in hand.
#[derive(Debug)]
pub struct Limit {
    places: Mutex<Places>,
}

#[derive(Debug)]
struct Places {
    limit: u32,
    queue: u32,
    in_hand: u32,
    /// By rising number, so that one that leaves is found quickly.
    waiting: VecDeque<(u64, oneshot::Sender<()>)>,
    next: u64,
}

impl Places {
    /// Gives free places to those who have waited longest.
    fn give(&mut self) {
        while self.in_hand < self.limit
            && let Some((_, waiter)) = self.waiting.pop_front()
        {
            // Whoever has left took themselves out under the lock, or finds the place given and gives it back.
            let _ = waiter.send(());
            self.in_hand += 1;
        }
    }
}

impl Limit {
    /// What the policy says.
    pub fn new(policy: &config::Concurrency) -> Arc<Self> {
        let places = Places { limit: policy.limit.max(1), queue: policy.queue, in_hand: 0, waiting: VecDeque::new(), next: 0 };
        Arc::new(Self { places: Mutex::new(places) })
    }

    /// Another policy from now on. Who holds a place keeps it and who waits goes on waiting, even if there are too many of them now.
    pub fn set(&self, policy: &config::Concurrency) {
        let mut places = self.places.lock();
        (places.limit, places.queue) = (policy.limit.max(1), policy.queue);
        places.give();
    }

    /// A place, if one is free and nobody waits.
    pub fn try_acquire(self: &Arc<Self>) -> Option<Permit> {
        self.places.lock().take().then(|| Permit { limit: Arc::clone(self) })
    }

    /// A place, waiting for it until `until` at most.
    ///
    /// # Errors
    /// [`Overloaded`].
    ///
    /// # Cancel safety
    /// A dropped future has left the queue, and holds no place.
    pub async fn acquire(self: &Arc<Self>, until: Instant) -> Result<Permit, Overloaded> {
        let (number, given) = {
            let mut places = self.places.lock();
            if places.take() {
                return Ok(Permit { limit: Arc::clone(self) });
            }
            if places.waiting.len() >= places.queue as usize {
                return Err(Overloaded::Full);
            }
            let (waiter, given) = oneshot::channel();
            let number = places.next;
            places.next += 1;
            places.waiting.push_back((number, waiter));
            (number, given)
        };
        let place = Waiting { limit: self, number };
        match tokio::time::timeout_at(until.into(), given).await {
            Ok(_) => {
                std::mem::forget(place);
                Ok(Permit { limit: Arc::clone(self) })
            }
            Err(_) => Err(Overloaded::DeadlinePassed),
        }
    }

    /// Calls in hand.
    pub fn in_hand(&self) -> u32 {
        self.places.lock().in_hand
    }

    /// Calls that wait.
    pub fn waiting(&self) -> usize {
        self.places.lock().waiting.len()
    }
}

impl Places {
    fn take(&mut self) -> bool {
        // While anybody waits nobody overtakes them; then no place is free anyway.
        let free = self.in_hand < self.limit && self.waiting.is_empty();
        self.in_hand += u32::from(free);
        free
    }
}

/// One who waits, until they have a place.
struct Waiting<'a> {
    limit: &'a Limit,
    number: u64,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut places = self.limit.places.lock();
        match places.waiting.binary_search_by_key(&self.number, |(number, _)| *number) {
            Ok(at) => drop(places.waiting.remove(at)),
            Err(_) => {
                // It had been given one in that moment.
                places.in_hand -= 1;
                places.give();
            }
        }
    }
}

/// A place; given to the next when dropped.
#[derive(Debug)]
#[must_use = "dropped, the place is given to the next"]
pub struct Permit {
    limit: Arc<Limit>,
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut places = self.limit.places.lock();
        places.in_hand -= 1;
        places.give();
    }
}

#[cfg(test)]
mod tests;

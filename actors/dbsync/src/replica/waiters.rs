//! Who waits until something has arrived here.

use std::{collections::BTreeMap, time::Instant};

use horos_wire::protocol::sync::Position;
use parking_lot::Mutex;
use tokio::{sync::oneshot, time::timeout_at};

/// Most that wait for positions of one replica. Who comes later asks the source at once: a wait is there to spare it a question, not
/// to hold a request for as long as it takes.
pub const MAX_WAITERS: usize = 1_024;

/// Why what was waited for is not here. Ask the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WaitError {
    /// It has not come by the deadline.
    #[error("it has not come in time")]
    TimedOut,
    /// The position is of another log of changes, or of another history of this one: it cannot be compared.
    #[error("the position is of another history of the database")]
    OtherEpoch,
    /// Too many wait already.
    #[error("{MAX_WAITERS} wait already")]
    Crowded,
    /// There is nothing here that has a position.
    #[error("the replica has no snapshot")]
    NoSnapshot,
}

/// The position, and those who wait for a later one. Only they are woken whom it lets go on.
#[derive(Default)]
pub(super) struct Waiters(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    at: Option<Position>,
    next: u64,
    /// By the entry that each waits for.
    waiting: BTreeMap<(i64, u64), oneshot::Sender<()>>,
}

impl Waiting {
    /// What is to be said of `wanted` now; none: wait.
    fn answer(&self, wanted: &Position) -> Option<Result<(), WaitError>> {
        let Some(at) = &self.at else { return Some(Err(WaitError::NoSnapshot)) };
        if at.epoch != wanted.epoch || (at.seq == wanted.seq && at.stamp != wanted.stamp) {
            return Some(Err(WaitError::OtherEpoch));
        }
        (at.seq >= wanted.seq).then_some(Ok(()))
    }
}

impl Waiters {
    pub(super) fn at(&self) -> Option<Position> {
        self.0.lock().at
    }

    pub(super) fn len(&self) -> usize {
        self.0.lock().waiting.len()
    }

    /// What is here now. To be called when it can be read.
    pub(super) fn moved(&self, at: Option<Position>) {
        let mut inner = self.0.lock();
        let before = std::mem::replace(&mut inner.at, at);
        let woken = match (before, at) {
            (Some(before), Some(at)) if before.epoch == at.epoch => match at.seq.checked_add(1) {
                Some(next) => {
                    let later = inner.waiting.split_off(&(next, 0));
                    std::mem::replace(&mut inner.waiting, later)
                }
                None => std::mem::take(&mut inner.waiting),
            },
            _ => std::mem::take(&mut inner.waiting),
        };
        drop(inner);
        for waiter in woken.into_values() {
            // It may have given up.
            let _ = waiter.send(());
        }
    }

    pub(super) async fn wait(&self, wanted: &Position, deadline: Instant) -> Result<(), WaitError> {
        loop {
            let (place, woken) = {
                let mut inner = self.0.lock();
                if let Some(answer) = inner.answer(wanted) {
                    return answer;
                }
                if Instant::now() >= deadline {
                    return Err(WaitError::TimedOut);
                }
                if inner.waiting.len() >= MAX_WAITERS {
                    return Err(WaitError::Crowded);
                }
                let (waiter, woken) = oneshot::channel();
                inner.next += 1;
                let key = (wanted.seq, inner.next);
                inner.waiting.insert(key, waiter);
                (Place { waiters: self, key }, woken)
            };
            let outcome = timeout_at(deadline.into(), woken).await;
            drop(place);
            if outcome.is_err() {
                // It may have come in the very moment.
                return self.0.lock().answer(wanted).unwrap_or(Err(WaitError::TimedOut));
            }
        }
    }
}

/// Given up with the wait.
struct Place<'a> {
    waiters: &'a Waiters,
    key: (i64, u64),
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.waiters.0.lock().waiting.remove(&self.key);
    }
}

//! How long the statement that runs now may take: read by SQLite's progress and busy handlers.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use rusqlite::{
    Connection,
    hooks::{AuthContext, Authorization},
};

use crate::guard::Slot;

/// Virtual machine steps between two looks at the clock: some 10 µs of work, so a look (25 ns) costs nothing.
const STEPS_PER_LOOK: i32 = 1_000;
/// First and longest pause of the busy handler. Short: the usual holder is another group commit of a millisecond.
const FIRST_PAUSE: Duration = Duration::from_micros(200);
const LONGEST_PAUSE: Duration = Duration::from_millis(20);
const NONE: u64 = u64::MAX;
/// What reads for longer lets others go first: a look-up is done by then, and what scans is not held up by much.
const PATIENCE: Duration = Duration::from_millis(1);
/// Between two times that it does: one system call of half a microsecond.
const GIVE_WAY_EVERY: Duration = Duration::from_micros(20);

/// The deadline of what a connection does now, and its guard. Shared with the handlers installed on that connection.
#[derive(Debug)]
pub(crate) struct Budget {
    origin: Instant,
    deadline: AtomicU64,
    /// When others are let go first the next time; never for what holds a lock that they may wait for.
    gives_way: AtomicU64,
    reads: bool,
    guard: Slot,
}

impl Budget {
    /// For a connection that writes.
    pub(crate) fn of_writer() -> Arc<Budget> {
        Self::new(false)
    }

    /// For a connection that only reads: a statement that takes long leaves its core, again and again, to whoever waits for it. On a busy
    /// core the scheduler would otherwise give each of them its slice of milliseconds in turn, calls and heartbeats too.
    pub(crate) fn of_reader() -> Arc<Budget> {
        Self::new(true)
    }

    fn new(reads: bool) -> Arc<Budget> {
        let (deadline, gives_way) = (AtomicU64::new(NONE), AtomicU64::new(NONE));
        Arc::new(Budget { origin: Instant::now(), deadline, gives_way, reads, guard: Slot::default() })
    }

    pub(crate) fn set(&self, deadline: Instant) {
        self.deadline.store(nanos_of(deadline.saturating_duration_since(self.origin)), Ordering::Relaxed);
        if self.reads {
            self.gives_way.store(nanos_of(self.origin.elapsed() + PATIENCE), Ordering::Relaxed);
        }
    }

    pub(crate) fn clear(&self) {
        self.deadline.store(NONE, Ordering::Relaxed);
        self.gives_way.store(NONE, Ordering::Relaxed);
    }

    fn is_spent(&self) -> bool {
        let deadline = self.deadline.load(Ordering::Relaxed);
        deadline != NONE && self.origin.elapsed() >= Duration::from_nanos(deadline) || self.guard.is_spent()
    }

    /// Leaves the core to others for a moment, if it is time to.
    fn give_way(&self) {
        let at = self.gives_way.load(Ordering::Relaxed);
        if at != NONE && nanos_of(self.origin.elapsed()) >= at {
            std::thread::yield_now();
            self.gives_way.store(nanos_of(self.origin.elapsed() + GIVE_WAY_EVERY), Ordering::Relaxed);
        }
    }

    /// What runs now may be confined.
    pub(crate) fn guard(&self) -> &Slot {
        &self.guard
    }

    /// Makes `connection` ask the guard of what runs, and nobody besides.
    pub(crate) fn authorize(self: &Arc<Budget>, connection: &mut Connection) -> rusqlite::Result<()> {
        let budget = Arc::clone(self);
        connection.authorizer(Some(move |context: AuthContext<'_>| -> Authorization { budget.guard.authorize(&context) }))
    }

    /// Makes `connection` obey this budget. A wait for a lock ends after `busy_timeout` or with the budget, whichever is first.
    pub(crate) fn govern(self: &Arc<Budget>, connection: &mut Connection, busy_timeout: Duration) -> rusqlite::Result<()> {
        let budget = Arc::clone(self);
        connection.progress_handler(
            STEPS_PER_LOOK,
            Some(move || {
                budget.give_way();
                budget.is_spent()
            }),
        )?;
        let budget = Arc::clone(self);
        let mut since = Instant::now();
        connection.busy_handler(Some(move |attempt: i32| {
            if attempt == 0 {
                since = Instant::now();
            }
            if budget.is_spent() || since.elapsed() >= busy_timeout {
                return false;
            }
            let pause = FIRST_PAUSE.saturating_mul(1 << attempt.clamp(0, 7)).min(LONGEST_PAUSE);
            // Between half and all of it, so that two waiters do not meet again and again. Nobody unparks this thread
            // for good: an early return costs one more attempt.
            std::thread::park_timeout(pause.mul_f64(rand::random_range(0.5..1.0)));
            true
        }))
    }
}

fn nanos_of(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(NONE)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts to a million, which is far more than [`PATIENCE`].
    const LONG: &str = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000000) SELECT count(*) FROM n";

    /// When it gives way next, before and after `sql`.
    fn ways(budget: &Arc<Budget>, sql: &str) -> (u64, u64) {
        let mut connection = Connection::open_in_memory().unwrap();
        budget.govern(&mut connection, Duration::ZERO).unwrap();
        budget.set(Instant::now() + Duration::from_secs(60));
        let before = budget.gives_way.load(Ordering::Relaxed);
        connection.query_row(sql, [], |_| Ok(())).unwrap();
        (before, budget.gives_way.load(Ordering::Relaxed))
    }

    #[test]
    fn what_reads_for_long_gives_way_and_neither_a_look_up_nor_a_writer_does() {
        let (before, after) = ways(&Budget::of_reader(), LONG);
        assert!(after > before && after != NONE, "{before} {after}");
        let (before, after) = ways(&Budget::of_reader(), "SELECT 1");
        assert_eq!(before, after);
        assert_eq!(ways(&Budget::of_writer(), LONG), (NONE, NONE));
        let done = Budget::of_reader();
        ways(&done, LONG);
        done.clear();
        assert_eq!(done.gives_way.load(Ordering::Relaxed), NONE, "nothing of the last statement is left to the next");
    }
}

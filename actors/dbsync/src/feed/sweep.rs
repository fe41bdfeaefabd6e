//! When what a subscriber has is compared with what it should have: a pure value, told the time.
//!
//! A *cycle* walks all tables once, some chunks at a time, each batch with a stream of changes or as one of its own. In the background
//! a cycle takes as long as is configured, spread evenly. A comparison by order is a cycle of its
//! own, as quick as it is answered. A commit that left no entry in the log begins a cycle early, one a minute at most and never more
//! than a tenth of the time, however large the database.

use std::time::{Duration, Instant};

use crate::build::Cursor;

/// Chunks at a time in the background: some 2,000 rows, a few milliseconds at both ends, so that the changes beside them hardly wait.
const BACKGROUND: usize = 4;
/// Chunks at a time when somebody waits for it: some 30,000 rows.
const ORDERED: usize = 64;
/// Shortest time between two cycles that a commit without an entry has begun.
const EARLY_EVERY: Duration = Duration::from_secs(60);
/// A cycle begun early takes a tenth of the time at most.
const DUTY: u32 = 10;
/// Longest that a batch in the background waits for a moment without changes, in intervals.
const PATIENCE: u32 = 2;

/// Rows of a chunk, on average ([`crate::chunk`]).
pub(super) const ROWS_A_CHUNK: u64 = 512;

/// Which cycle is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pace {
    /// Spread over the configured time.
    Background,
    /// One batch after the other.
    Early,
    /// The same, larger, for the run of this number.
    Ordered(u64),
}

/// Paces the comparisons of a feed.
#[derive(Debug)]
pub(super) struct Sweeper {
    every: Duration,
    pace: Pace,
    /// Where the cycle goes on; none at its beginning.
    cursor: Option<Cursor>,
    begun: Instant,
    next: Instant,
    /// Chunks of the cycle so far, and of the last whole one, or about how many there will be.
    chunks: u64,
    total: Option<u64>,
    guess: u64,
    hints: Option<u64>,
    /// When a cycle may be begun early again.
    early_from: Instant,
    wanted: bool,
}

/// What a batch means for the run it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Batch {
    /// By order, for this run.
    pub(super) run: Option<u64>,
    /// It was the cycle's last.
    pub(super) last: bool,
}

impl Sweeper {
    /// A cycle every `every`, of about `guess` chunks as long as none was counted.
    pub(super) fn new(every: Duration, guess: u64, now: Instant) -> Self {
        let mut sweeper = Self {
            every,
            pace: Pace::Background,
            cursor: None,
            begun: now,
            next: now,
            chunks: 0,
            total: None,
            guess,
            hints: None,
            early_from: now,
            wanted: false,
        };
        sweeper.next = now + sweeper.interval();
        sweeper
    }

    /// Chunks of the last whole cycle.
    pub(super) fn total(&self) -> Option<u64> {
        self.total
    }

    /// Where the next batch begins.
    pub(super) fn cursor(&self) -> Option<&Cursor> {
        self.cursor.as_ref()
    }

    /// When there is something to do again, if nothing happens before.
    pub(super) fn next(&self) -> Instant {
        if self.wanted { self.next.min(self.early_from) } else { self.next }
    }

    /// How many commits without an entry there have been.
    pub(super) fn hinted(&mut self, hints: u64, now: Instant) {
        let before = self.hints.replace(hints);
        self.wanted |= before.is_some_and(|before| before != hints);
        if self.wanted && self.pace == Pace::Background && now >= self.early_from {
            self.wanted = false;
            self.begin(Pace::Early, now);
            self.next = now;
        }
    }

    fn begin(&mut self, pace: Pace, now: Instant) {
        self.pace = pace;
        self.cursor = None;
        self.chunks = 0;
        self.begun = now;
    }

    /// How many chunks are to be compared now; 0 for none. `run` is the comparison that somebody waits for, and `behind` whether there
    /// are changes to be sent, which go first in the background.
    pub(super) fn due(&mut self, run: Option<u64>, behind: bool, now: Instant) -> usize {
        match (run, self.pace) {
            (Some(run), pace) if pace != Pace::Ordered(run) => self.begin(Pace::Ordered(run), now),
            // Whoever waited has gone.
            (None, Pace::Ordered(_)) => {
                self.begin(Pace::Background, now);
                self.next = now + self.interval();
            }
            _ => {}
        }
        match self.pace {
            Pace::Ordered(_) => ORDERED,
            Pace::Early if now >= self.next => BACKGROUND,
            Pace::Background if now >= self.next + if behind { self.interval() * PATIENCE } else { Duration::ZERO } => BACKGROUND,
            Pace::Early | Pace::Background => 0,
        }
    }

    /// Between two batches in the background.
    fn interval(&self) -> Duration {
        let batches = self.total.unwrap_or(self.guess).div_ceil(BACKGROUND as u64).max(1);
        self.every / u32::try_from(batches).unwrap_or(u32::MAX)
    }

    /// A batch of `chunks` was compared in `took`, and the cycle goes on at `cursor`.
    pub(super) fn swept(&mut self, chunks: u64, cursor: Option<Cursor>, took: Duration, now: Instant) -> Batch {
        self.chunks += chunks;
        let last = cursor.is_none();
        self.cursor = cursor;
        let batch = Batch { run: if let Pace::Ordered(run) = self.pace { Some(run) } else { None }, last };
        if last {
            self.total = Some(self.chunks);
            let cycle = now.saturating_duration_since(self.begun);
            if self.pace == Pace::Early {
                self.early_from = now + EARLY_EVERY.max(cycle * (DUTY - 1));
            }
            self.begin(Pace::Background, now);
        }
        self.next = match self.pace {
            // As long as the last one took: the changes of others have the other half.
            Pace::Early => now + took,
            Pace::Ordered(_) => now,
            Pace::Background => now + self.interval(),
        };
        batch
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn at(chunk: u64, of: u64) -> Option<Cursor> {
        (chunk < of).then(|| Cursor { table: format!("t{chunk}"), after: None })
    }

    /// Sweeps until the cycle is over, as fast as it may; how long that took, and how many batches.
    fn cycle(sweeper: &mut Sweeper, now: &mut Instant, of: u64, run: Option<u64>) -> (Duration, u32) {
        let (start, mut batches, mut done) = (*now, 0, 0);
        loop {
            let chunks = sweeper.due(run, false, *now) as u64;
            if chunks == 0 {
                *now = sweeper.next();
                continue;
            }
            batches += 1;
            done = (done + chunks).min(of);
            *now += Duration::from_millis(10);
            if sweeper.swept(chunks.min(of), at(done, of), Duration::from_millis(10), *now).last {
                return (*now - start, batches);
            }
        }
    }

    #[test]
    fn a_cycle_takes_as_long_as_configured_spread_evenly() {
        let mut now = Instant::now();
        let mut sweeper = Sweeper::new(HOUR, 400, now);
        cycle(&mut sweeper, &mut now, 400, None);
        let (took, batches) = cycle(&mut sweeper, &mut now, 400, None);
        assert_eq!(batches, 100);
        assert!(took > HOUR - Duration::from_secs(60) && took < HOUR + Duration::from_secs(60), "{took:?}");
    }

    #[test]
    fn one_by_order_is_as_quick_as_it_is_answered_and_the_background_goes_on_after_it() {
        let mut now = Instant::now();
        let mut sweeper = Sweeper::new(HOUR, 400, now);
        let (took, batches) = cycle(&mut sweeper, &mut now, 6_400, Some(7));
        assert_eq!((took, batches), (Duration::from_secs(1), 100));
        assert_eq!(sweeper.due(None, false, now), 0);
        assert!(sweeper.next() > now);
    }

    #[test]
    fn commits_without_entries_begin_a_cycle_once_a_minute_and_a_tenth_of_the_time_at_most() {
        let mut now = Instant::now();
        let start = now;
        let mut sweeper = Sweeper::new(HOUR, 400, now);
        let (mut busy, mut hints) = (Duration::ZERO, 0);
        while now - start < HOUR / 2 {
            hints += 1;
            sweeper.hinted(hints, now);
            if sweeper.due(None, false, now) > 0 {
                // 4 chunks of 4,000 each time, half a second apiece.
                let done = sweeper.chunks + 4;
                now += Duration::from_millis(500);
                busy += Duration::from_millis(500);
                sweeper.swept(4, at(done, 400), Duration::from_millis(500), now);
            }
            now += Duration::from_millis(100);
        }
        assert!(busy > Duration::from_secs(50), "{busy:?}");
        assert!(busy < HOUR / 2 / 10 + Duration::from_secs(60), "{busy:?}");
    }

    #[test]
    fn changes_go_first_but_not_for_ever() {
        let mut now = Instant::now();
        let mut sweeper = Sweeper::new(HOUR, 400, now);
        now = sweeper.next();
        assert_eq!((sweeper.due(None, true, now), sweeper.due(None, false, now)), (0, BACKGROUND));
        now += HOUR / 100 * PATIENCE;
        assert_eq!(sweeper.due(None, true, now), BACKGROUND);
    }
}

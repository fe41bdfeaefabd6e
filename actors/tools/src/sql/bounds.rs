//! How much a tool's statement may take besides its time.

use std::{
    fs,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use rusqlite::{Connection, limits::Limit};

/// Longest text or blob that a statement may make, read or be given, where its tool does not say. Functions that look for one in another
/// take the product of both lengths in one step that no deadline interrupts: with this, under a second.
pub(super) const VALUE_BYTES: i32 = 256 << 10;
/// Longest that a tool may ask for.
pub(super) const MAX_VALUE_BYTES: i32 = 4 << 20;
/// Most parameters of one statement.
pub(super) const MAX_PARAMETERS: i32 = 250;
/// Memory that a statement may fill, with rows to be sorted and the like: SQLite keeps them there, and knows no limit of its own a statement.
const MEMORY: u64 = 256 << 20;
/// Between two looks at it. A look costs some 20 µs.
const LOOK: Duration = Duration::from_millis(2);

/// Puts a connection's limits where a tool's statement may go (<https://sqlite.org/limits.html>), and gives what they were.
///
/// # Errors
/// SQLite does not know one of them.
pub(super) fn limit(connection: &Connection, value_bytes: i32) -> rusqlite::Result<Vec<(Limit, i32)>> {
    let limits = [
        (Limit::SQLITE_LIMIT_LENGTH, value_bytes),
        // What the schema has is parsed under these as well: not shorter than anybody's `CREATE TABLE`.
        (Limit::SQLITE_LIMIT_SQL_LENGTH, 1 << 20),
        (Limit::SQLITE_LIMIT_EXPR_DEPTH, 500),
        (Limit::SQLITE_LIMIT_COMPOUND_SELECT, 50),
        (Limit::SQLITE_LIMIT_VDBE_OP, 100_000),
        (Limit::SQLITE_LIMIT_FUNCTION_ARG, 100),
        (Limit::SQLITE_LIMIT_ATTACHED, 0),
        // Time grows with the product of pattern and text.
        (Limit::SQLITE_LIMIT_LIKE_PATTERN_LENGTH, 256),
        (Limit::SQLITE_LIMIT_VARIABLE_NUMBER, MAX_PARAMETERS),
        (Limit::SQLITE_LIMIT_TRIGGER_DEPTH, 16),
        (Limit::SQLITE_LIMIT_WORKER_THREADS, 0),
    ];
    limits
        .into_iter()
        .map(|(limit, value)| {
            // Never more than the connection had.
            let before = connection.limit(limit)?;
            connection.set_limit(limit, value.min(before))?;
            Ok((limit, before))
        })
        .collect()
}

/// The limits of a connection while a tool's statement runs. Given back when dropped.
pub(super) struct Limits<'a> {
    connection: &'a Connection,
    before: Vec<(Limit, i32)>,
}

impl<'a> Limits<'a> {
    /// # Errors
    /// SQLite does not know one of them.
    pub(super) fn put(connection: &'a Connection, value_bytes: i32) -> rusqlite::Result<Self> {
        Ok(Self { connection, before: limit(connection, value_bytes)? })
    }
}

impl Drop for Limits<'_> {
    fn drop(&mut self) {
        for (limit, before) in self.before.drain(..) {
            // It took another value of it a moment ago.
            let _ = self.connection.set_limit(limit, before);
        }
    }
}

/// Watches one call: whether anybody waits for it, and the memory that the process has taken since it began.
pub(super) struct Meter {
    abandoned: AtomicBool,
    full: AtomicBool,
    looks: Mutex<Looks>,
}

struct Looks {
    next: Option<Instant>,
    before: Option<u64>,
}

impl Meter {
    pub(super) fn new() -> Self {
        Self { abandoned: AtomicBool::new(false), full: AtomicBool::new(false), looks: Mutex::new(Looks { next: None, before: None }) }
    }

    /// Nobody waits any more.
    pub(super) fn abandon(&self) {
        self.abandoned.store(true, Ordering::Relaxed);
    }

    /// Whether it was stopped for the memory it took.
    pub(super) fn is_full(&self) -> bool {
        self.full.load(Ordering::Relaxed)
    }

    pub(super) fn is_spent(&self) -> bool {
        if self.abandoned.load(Ordering::Relaxed) || self.is_full() {
            return true;
        }
        let now = Instant::now();
        let mut looks = self.looks.lock();
        match looks.next {
            // Most statements end before the first look: it costs them nothing.
            None => looks.next = Some(now + LOOK),
            Some(next) if now < next => {}
            Some(_) => {
                looks.next = Some(now + LOOK);
                let taken = taken();
                let before = *looks.before.get_or_insert(taken);
                if taken.saturating_sub(before) > MEMORY {
                    self.full.store(true, Ordering::Relaxed);
                    return true;
                }
            }
        }
        false
    }
}

/// Memory that the process has for itself, in bytes; 0 where the system does not say, and then time is the only bound.
fn taken() -> u64 {
    let Ok(status) = fs::read_to_string("/proc/self/status") else { return 0 };
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok()).map_or(0, |kib| kib << 10)
}

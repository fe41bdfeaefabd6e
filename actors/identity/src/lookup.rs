//! Reading the tables by primary key, on the thread that asks.
//!
//! A key is found in a handful of pages that are in memory, which takes less time than handing the question to another
//! thread and back: among a million keys 6.1 µs at the median and 11.0 µs at p90, through the pool of readers 9.5 and 13.5 µs
//! (two shared cores, `cargo test --release -p horos-identity --test it -- --ignored lookup --nocapture`). So the verifier has
//! connections of its own, read-only, which wait for a lock 5 ms at most; a file in WAL mode locks readers out only while it
//! is recovered or replaced. What cannot be read then is refused, never allowed.

use std::time::{Duration, Instant};

use horos_store::open::{Access, Database, Options, open};
use parking_lot::{Mutex, MutexGuard};
use rusqlite::Connection;

/// Connections: as many threads as can look at once without waiting for another's few microseconds.
const CONNECTIONS: usize = 4;
/// Longest wait for a lock of another process.
const BUSY: Duration = Duration::from_millis(5);
/// After a failed open, the next is this much later at the earliest: guesses must not buy opens.
const REOPEN: Duration = Duration::from_millis(100);
/// Page cache of a connection, in KiB: what is mapped needs none of it.
const CACHE_KIB: u32 = 4_000;
/// Bytes of the file that are mapped, so that a look copies no page: 3 million keys. Address space, not memory; the
/// connections share the system's one copy.
const MAPPED: u64 = 1 << 30;

/// The tables cannot be read now.
#[derive(Debug)]
pub(crate) struct Unreadable;

pub(crate) struct Lookup {
    options: Options,
    slots: [Mutex<Slot>; CONNECTIONS],
}

#[derive(Default)]
struct Slot {
    connection: Option<Database>,
    not_before: Option<Instant>,
}

impl std::fmt::Debug for Lookup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Lookup({:?})", self.options.location)
    }
}

impl Lookup {
    /// Reads the database of `options`, which is opened by the first look.
    pub(crate) fn new(options: &Options) -> Self {
        let options =
            Options { busy_timeout: BUSY, cache_kib: CACHE_KIB, mmap_bytes: Some(MAPPED), ..options.with_access(Access::ReadOnly) };
        Self { options, slots: Default::default() }
    }

    fn slot(&self) -> MutexGuard<'_, Slot> {
        self.slots.iter().find_map(Mutex::try_lock).unwrap_or_else(|| self.slots[0].lock())
    }

    /// Runs `look` on a connection. An error closes the connection; the next look opens it again.
    pub(crate) fn look<T>(&self, look: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, Unreadable> {
        let mut slot = self.slot();
        let connection = match slot.connection.take() {
            Some(connection) => connection,
            None => self.open(&mut slot)?,
        };
        match look(&connection) {
            Ok(found) => {
                slot.connection = Some(connection);
                Ok(found)
            }
            Err(error) => {
                tracing::warn!(%error, "the keys cannot be read");
                slot.not_before = Some(Instant::now() + REOPEN);
                Err(Unreadable)
            }
        }
    }

    fn open(&self, slot: &mut Slot) -> Result<Database, Unreadable> {
        if slot.not_before.is_some_and(|then| Instant::now() < then) {
            return Err(Unreadable);
        }
        open(&self.options).map_err(|error| {
            tracing::warn!(%error, "the keys cannot be read");
            slot.not_before = Some(Instant::now() + REOPEN);
            Unreadable
        })
    }
}

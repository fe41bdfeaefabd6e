//! The writer's thread: opens, migrates, serves the queue, keeps the WAL small, closes.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use super::{Shared, WriterFailure, group::Group};
use crate::{
    Kind, StoreError,
    open::{Access, Location, OwnerLock, open},
    queue::Next,
};

/// Between two attempts at a checkpoint that readers are waited for.
const TRUNCATE_PAUSE: Duration = Duration::from_secs(1);
/// Longest the checkpoint at start and at the end waits for readers of other processes.
const EDGE_WAIT: Duration = Duration::from_millis(500);

/// What the thread owns. Fields drop in order: the connection is closed before the lock is given up.
pub(super) struct Served {
    group: Group,
    _lock: Option<OwnerLock>,
    page_size: u64,
    /// Frames in the WAL when it was last checkpointed.
    checkpointed: u32,
    truncated: Instant,
    optimized: Instant,
    /// Whether anything was committed since the WAL was last emptied.
    dirty: bool,
}

impl Served {
    pub(super) fn open(shared: &Shared) -> Result<Served, WriterFailure> {
        let options = shared.config.open.with_access(Access::Owner);
        let mut database = open(&options)?;
        shared.config.migrations.apply(database.connection())?;
        let (connection, lock) = database.into_parts();
        let page_size: u32 = connection.pragma_query_value(None, "page_size", |row| row.get(0)).map_err(StoreError::from)?;
        let in_memory = matches!(options.location, Location::Memory(_));
        let group = Group::new(connection, options.busy_timeout, in_memory)?;
        let now = Instant::now();
        let mut served =
            Served { group, _lock: lock, page_size: page_size.into(), checkpointed: 0, truncated: now, optimized: now, dirty: !in_memory };
        // What a crash left in the WAL goes into the file now, not into every reader's start.
        served.truncate(shared, EDGE_WAIT)?;
        Ok(served)
    }

    /// Serves until the queue is closed or `leave` is set.
    pub(super) fn serve(mut self, shared: &Shared, leave: &AtomicBool) -> Result<(), StoreError> {
        loop {
            match shared.queue.next(shared.config.idle_after, leave) {
                Next::Job(job) => {
                    self.group.commit(shared, job)?;
                    self.after_commit(shared)?;
                }
                Next::Idle => self.idle(shared)?,
                Next::Closed => break,
            }
        }
        self.optimize()?;
        self.truncate(shared, EDGE_WAIT)?;
        Ok(())
    }

    fn after_commit(&mut self, shared: &Shared) -> Result<(), StoreError> {
        let frames = self.group.frames();
        self.dirty |= frames > 0;
        if frames < self.checkpointed {
            self.checkpointed = 0; // SQLite started the WAL over.
        }
        self.note_wal(shared);
        if self.wal_bytes() >= shared.config.truncate_bytes && self.truncated.elapsed() >= TRUNCATE_PAUSE {
            return self.truncate(shared, shared.config.truncate_wait);
        }
        // Counted from the last one, not from zero: a long reader that pins the WAL must not cost a checkpoint each commit.
        if frames - self.checkpointed >= shared.config.checkpoint_frames {
            let complete = self.checkpoint("PRAGMA wal_checkpoint(PASSIVE)", Duration::ZERO)?;
            self.checkpointed = frames;
            if !complete {
                shared.counters.blocked_checkpoints.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    fn idle(&mut self, shared: &Shared) -> Result<(), StoreError> {
        if self.dirty && self.truncated.elapsed() >= TRUNCATE_PAUSE {
            // No wait: somebody reading just now is no reason to keep the next job waiting.
            self.truncate(shared, Duration::ZERO)?;
        }
        if self.optimized.elapsed() >= shared.config.optimize_every {
            self.optimize()?;
        }
        Ok(())
    }

    /// Empties the WAL, waiting for readers at most `wait`.
    fn truncate(&mut self, shared: &Shared, wait: Duration) -> Result<(), StoreError> {
        self.truncated = Instant::now();
        if !self.dirty {
            return Ok(());
        }
        if self.checkpoint("PRAGMA wal_checkpoint(TRUNCATE)", wait)? {
            self.dirty = false;
            self.checkpointed = 0;
            self.group.reset_frames();
        } else {
            shared.counters.blocked_checkpoints.fetch_add(1, Ordering::Relaxed);
        }
        self.note_wal(shared);
        Ok(())
    }

    /// Whether it went all the way.
    fn checkpoint(&self, sql: &str, wait: Duration) -> Result<bool, StoreError> {
        self.group.budget.set(Instant::now() + wait);
        let outcome = self.group.connection.query_row(sql, [], |row| {
            let (busy, log, done): (i64, i64, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
            Ok(busy == 0 && log == done)
        });
        self.group.budget.clear();
        match outcome.map_err(StoreError::from) {
            Ok(complete) => Ok(complete),
            // No space to write back is no reason to die: the commits are safe in the WAL.
            Err(error) if error.kind.is_transient() || error.kind == Kind::Full => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn optimize(&mut self) -> Result<(), StoreError> {
        self.optimized = Instant::now();
        self.group.budget.set(Instant::now() + EDGE_WAIT);
        let outcome = self.group.connection.execute_batch("PRAGMA optimize").map_err(StoreError::from);
        self.group.budget.clear();
        match outcome {
            Err(error) if error.kind.breaks_connection() => Err(error),
            Err(error) => {
                tracing::debug!(%error, "statistics not refreshed; tried again in an hour");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    fn wal_bytes(&self) -> u64 {
        u64::from(self.group.frames()) * self.page_size
    }

    fn note_wal(&self, shared: &Shared) {
        shared.counters.wal_bytes.store(self.wal_bytes(), Ordering::Relaxed);
    }
}

//! One transaction somebody asked for, and the exact account of how far it got.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Instant,
};

use rusqlite::Connection;
use tokio::sync::oneshot;

use super::WriteError;
use crate::{StoreError, guard::Guard};

const QUEUED: u8 = 0;
const RUNNING: u8 = 1;
/// Its savepoint is part of a transaction that will be committed: from here on the caller cannot take it back.
const RELEASED: u8 = 2;
const ABANDONED: u8 = 3;

/// How far a job got; shared by its caller and the thread. A caller who gives up *before* the release has a guarantee that
/// the job has no effect; after it, nobody can know until the commit has returned.
#[derive(Debug, Default)]
pub(super) struct Progress(AtomicU8);

impl Progress {
    /// The thread starts it (or, after a lost group, starts it again).
    pub(super) fn start(&self) -> bool {
        self.0.compare_exchange(QUEUED, RUNNING, Ordering::AcqRel, Ordering::Acquire).is_ok()
            || self.0.compare_exchange(RELEASED, RUNNING, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    pub(super) fn release(&self) -> bool {
        self.0.compare_exchange(RUNNING, RELEASED, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Its savepoint was rolled back; it may be started again or given up.
    pub(super) fn undo(&self) {
        let _ = self.0.compare_exchange(RUNNING, QUEUED, Ordering::AcqRel, Ordering::Acquire);
    }

    /// The caller gives up. True: it has and will have no effect.
    pub(super) fn abandon(&self) -> bool {
        self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, |s| (s != RELEASED).then_some(ABANDONED)).is_ok()
    }

    /// Whether somebody still waits for it.
    pub(super) fn is_wanted(&self) -> bool {
        self.0.load(Ordering::Acquire) != ABANDONED
    }

    /// Whether it may be in the file although nobody answered.
    pub(super) fn is_released(&self) -> bool {
        self.0.load(Ordering::Acquire) == RELEASED
    }
}

/// Why the thread overrules what the closure returned.
#[derive(Clone, Debug)]
pub(super) enum Verdict {
    NoEffect(StoreError),
    Unknown(StoreError),
    DeadlinePassed,
    /// The closure returned, but a statement of it had rolled the whole transaction back.
    RolledBack,
}

pub(super) trait Job: Send {
    /// Runs the closure; true if it wants its effect kept.
    fn run(&mut self, connection: &Connection) -> bool;
    fn overrule(&mut self, verdict: Verdict);
    /// Whether it has a verdict that a second run could not change for the better: it panicked or ran out of time.
    fn is_final(&self) -> bool;
    fn reply(self: Box<Self>);
    fn progress(&self) -> &Arc<Progress>;
    fn deadline(&self) -> Instant;
    fn guard(&self) -> Option<Arc<dyn Guard>>;
    fn queued(&self) -> Instant;
}

pub(super) struct Work<T, E, F> {
    pub(super) closure: F,
    pub(super) deadline: Instant,
    pub(super) guard: Option<Arc<dyn Guard>>,
    pub(super) progress: Arc<Progress>,
    pub(super) queued: Instant,
    pub(super) result: Option<Result<T, WriteError<E>>>,
    pub(super) reply: oneshot::Sender<Result<T, WriteError<E>>>,
}

impl<T, E, F> Job for Work<T, E, F>
where
    T: Send,
    E: Send,
    F: FnMut(&Connection) -> Result<T, E> + Send,
{
    fn run(&mut self, connection: &Connection) -> bool {
        // Unwind safe: what the closure may leave half done is in the savepoint, which is rolled back, and in the closure,
        // which does not run again after a panic.
        let result = match catch_unwind(AssertUnwindSafe(|| (self.closure)(connection))) {
            Ok(result) => result.map_err(WriteError::Failed),
            Err(payload) => Err(WriteError::Panicked(crate::writer::panic_text(payload.as_ref()))),
        };
        let keep = result.is_ok();
        self.result = Some(result);
        keep
    }

    fn overrule(&mut self, verdict: Verdict) {
        self.result = Some(Err(match verdict {
            Verdict::NoEffect(source) => WriteError::Storage(source),
            Verdict::Unknown(source) => WriteError::Unknown(Some(source)),
            Verdict::DeadlinePassed => WriteError::DeadlinePassed,
            Verdict::RolledBack => WriteError::RolledBack,
        }));
    }

    fn is_final(&self) -> bool {
        !matches!(self.result, None | Some(Ok(_) | Err(WriteError::Failed(_))))
    }

    fn reply(self: Box<Self>) {
        if let Some(result) = self.result {
            // The caller may have gone; it then knows (from `Progress`) what it may assume.
            let _ = self.reply.send(result);
        }
    }

    fn progress(&self) -> &Arc<Progress> {
        &self.progress
    }

    fn deadline(&self) -> Instant {
        self.deadline
    }

    fn guard(&self) -> Option<Arc<dyn Guard>> {
        self.guard.clone()
    }

    fn queued(&self) -> Instant {
        self.queued
    }
}

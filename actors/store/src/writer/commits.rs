//! Telling others that something was committed, after it was.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::Mutex;
use tokio::sync::broadcast;

use crate::watch::Nudge;

/// Commits a slow subscriber may be behind before it is told how many it missed. At 64 jobs a commit some 16,000 jobs.
const LAG: usize = 256;

/// A commit by this process's writer that changed the file. On disk when it is announced.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Committed {
    /// Counts this writer's commits from 1, without gaps, restarts included.
    pub seq: u64,
    /// Tables whose rows changed.
    pub tables: BTreeSet<String>,
    /// Whether there are changes that cannot be told by table: `WITHOUT ROWID` tables, a truncating `DELETE`, the schema.
    pub others: bool,
}

impl Committed {
    /// Whether rows of `table` may have changed.
    pub fn touches(&self, table: &str) -> bool {
        self.others || self.tables.iter().any(|t| t.eq_ignore_ascii_case(table))
    }
}

/// How many commits a subscriber missed by being slow: treat everything as changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("missed {0} commits: treat everything as changed")]
pub struct Missed(pub u64);

/// A subscription to a writer's commits.
#[derive(Debug)]
pub struct Commits(broadcast::Receiver<Arc<Committed>>);

impl Commits {
    /// The next commit; `None` when the writer's handles are gone.
    ///
    /// # Errors
    /// [`Missed`] if more than 256 went by since the last call. The next call goes on with the oldest still there.
    ///
    /// # Cancel safety
    /// Nothing is lost if the future is dropped.
    pub async fn next(&mut self) -> Result<Option<Arc<Committed>>, Missed> {
        match self.0.recv().await {
            Ok(committed) => Ok(Some(committed)),
            Err(broadcast::error::RecvError::Closed) => Ok(None),
            Err(broadcast::error::RecvError::Lagged(missed)) => Err(Missed(missed)),
        }
    }
}

pub(super) struct Announcer {
    sender: broadcast::Sender<Arc<Committed>>,
    nudges: Mutex<Vec<Nudge>>,
    seq: AtomicU64,
}

impl Default for Announcer {
    fn default() -> Announcer {
        Announcer { sender: broadcast::Sender::new(LAG), nudges: Mutex::new(Vec::new()), seq: AtomicU64::new(0) }
    }
}

impl Announcer {
    pub(super) fn subscribe(&self) -> Commits {
        Commits(self.sender.subscribe())
    }

    pub(super) fn nudge(&self, nudge: &Nudge) {
        let mut nudges = self.nudges.lock();
        nudges.retain(Nudge::is_heard);
        nudges.push(nudge.clone());
    }

    pub(super) fn announce(&self, tables: BTreeSet<String>, others: bool) {
        let seq = self.seq.fetch_add(1, Ordering::Relaxed) + 1;
        // No subscriber is no error.
        let _ = self.sender.send(Arc::new(Committed { seq, tables, others }));
        self.nudges.lock().iter().for_each(Nudge::give);
    }
}

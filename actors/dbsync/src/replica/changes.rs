//! What changed, for whoever remembers what was read.

use std::sync::Arc;

use horos_wire::protocol::sync::Position;
use tokio::sync::broadcast::{self, error::RecvError};

use super::Replica;

/// Changes that a listener may be behind before it is told that everything changed instead: at 1,000 commits a second, 64 ms.
const BEHIND: usize = 64;

/// Something was applied, and can be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed {
    /// What the replica has now; none after a roll-back.
    pub position: Option<Position>,
    /// What is different.
    pub tables: Tables,
}

/// The tables that changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tables {
    /// Any of them may have, and tables may have come or gone.
    All,
    /// These, sorted.
    These(Arc<[String]>),
}

/// Changes as they come.
#[derive(Debug)]
pub struct Changes {
    receiver: broadcast::Receiver<Changed>,
    replica: Replica,
}

impl Changes {
    /// The next change. Whoever does not keep up is told that all tables changed, once: nothing is missed.
    ///
    /// # Cancel safety
    /// No change is lost by dropping the future.
    pub async fn next(&mut self) -> Changed {
        match self.receiver.recv().await {
            Ok(changed) => changed,
            // What was left out is in it; what comes after may be told twice.
            Err(RecvError::Lagged(_)) => Changed { position: self.replica.position(), tables: Tables::All },
            // The sender lives as long as the replica that is held here.
            Err(RecvError::Closed) => std::future::pending().await,
        }
    }
}

/// The sending end.
pub(super) struct Told(broadcast::Sender<Changed>);

impl Default for Told {
    fn default() -> Self {
        Self(broadcast::Sender::new(BEHIND))
    }
}

impl Told {
    pub(super) fn subscribe(&self, replica: Replica) -> Changes {
        Changes { receiver: self.0.subscribe(), replica }
    }

    pub(super) fn tell(&self, changed: Changed) {
        // Nobody may be listening.
        let _ = self.0.send(changed);
    }
}

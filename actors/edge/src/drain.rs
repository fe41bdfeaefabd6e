//! How far a node has gone in stopping, for everything that must know.

use std::time::Instant;

use tokio::sync::watch;

/// How far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Takes requests.
    Open,
    /// Still takes requests, and says at `/readyz` that it will not for long, so that whoever spreads load looks elsewhere.
    NotReady,
    /// Takes no new connection; tells those that are open to go away (GOAWAY, `Connection: close`) and finishes what is
    /// in hand, until then.
    Draining {
        /// When what is left is cut off.
        until: Instant,
    },
}

/// Tells everybody. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Drain(watch::Sender<Phase>);

impl Default for Drain {
    fn default() -> Self {
        Self(watch::Sender::new(Phase::Open))
    }
}

impl Drain {
    /// Where it stands.
    pub fn phase(&self) -> Phase {
        *self.0.borrow()
    }

    /// Goes on to `phase`.
    pub fn go(&self, phase: Phase) {
        self.0.send_replace(phase);
    }

    /// Changes with the phase.
    pub fn watch(&self) -> watch::Receiver<Phase> {
        self.0.subscribe()
    }
}

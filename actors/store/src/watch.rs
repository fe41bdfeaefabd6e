//! Seeing that a database changed, whoever changed it, and acting on it.
//!
//! A [`Watcher`] is one thread with one connection that never writes and never stays in a transaction; everyone interested in the
//! file shares it by cloning the handle. Each look (every 20 ms, or at once when our own writer [nudges](Nudge)) compares the
//! file's identity and `PRAGMA data_version`, and only when one moved the other detectors' tokens. `data_version` means nothing
//! outside this connection, so tokens are compared for inequality and never leave here: what callers get is a *generation*, a counter
//! that only grows.
//!
//! Known limits: a `data_version` move may be a mere checkpoint (a reload too many, never one too few), and [`Detector::MaxColumn`]
//! sees neither deletes nor updates that keep the maximum.

mod poller;
mod reload;

use std::{
    path::PathBuf,
    sync::{Arc, Weak},
    time::Duration,
};

use parking_lot::{Condvar, Mutex};
use serde::Serialize;
use tokio::sync::watch;

use poller::Poller;
pub use reload::{Debounce, Reload, ReloadStats, Retry, Subscription};

/// What counts as a change.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Detector {
    /// Any commit by anybody.
    DataVersion,
    /// `PRAGMA user_version`, bumped by the application. May be negative and may go back.
    UserVersion,
    /// The greatest value of a column (an integer), 0 for an empty table.
    MaxColumn {
        /// The table.
        table: String,
        /// The column; have an index on it.
        column: String,
    },
}

/// How a file is watched.
#[derive(Clone, Debug)]
pub struct WatchConfig {
    /// The file. It may appear later, vanish and be replaced.
    pub path: PathBuf,
    /// Between two looks. Default 20 ms; a look costs some microseconds.
    pub interval: Duration,
}

impl WatchConfig {
    /// The defaults for `path`.
    pub fn new(path: impl Into<PathBuf>) -> WatchConfig {
        WatchConfig { path: path.into(), interval: Duration::from_millis(20) }
    }
}

/// What a detector last saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Grows by one with each change; 0 until the file was first read.
    pub generation: u64,
    /// The token behind it. Comparable only for [`Detector::UserVersion`] and [`Detector::MaxColumn`].
    pub token: i64,
}

/// Counters of a watcher.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct WatchStats {
    /// Looks taken.
    pub checks: u64,
    /// Changes found, over all detectors.
    pub changes_detected: u64,
    /// Looks that failed.
    pub errors: u64,
    /// Times the file was opened.
    pub opened: u64,
    /// The last failure; `None` once a look succeeds again.
    pub last_error: Option<String>,
}

/// Why a wait ended without its generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the watcher has stopped")]
pub struct WatcherStopped;

/// The thread could not be started.
#[derive(Debug, thiserror::Error)]
#[error("no thread for the watcher")]
pub struct WatchStartError(#[from] std::io::Error);

/// A watched file. Cheap to clone; the thread ends with the last clone and subscription.
#[derive(Clone, Debug)]
pub struct Watcher {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    poller: Arc<Poller>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.poller.wake.stop();
    }
}

impl Watcher {
    /// Starts watching.
    ///
    /// # Errors
    /// The system gives no thread. A missing or unreadable file is no error here: see [`WatchStats::last_error`].
    pub fn start(config: WatchConfig) -> Result<Watcher, WatchStartError> {
        let poller = Arc::new(Poller::new(config));
        let thread = Arc::clone(&poller);
        std::thread::Builder::new().name("store-watcher".into()).spawn(move || thread.run())?;
        Ok(Watcher { inner: Arc::new(Inner { poller }) })
    }

    /// Follows `detector`. All followers of the same detector share one query.
    pub fn changes(&self, detector: Detector) -> Changes {
        let receiver = self.inner.poller.follow(detector);
        self.inner.poller.wake.ask();
        Changes { receiver, _alive: self.clone() }
    }

    /// Looks at the file now. When this returns, everything committed before the call has its generation.
    ///
    /// # Errors
    /// [`WatcherStopped`].
    pub async fn look(&self) -> Result<(), WatcherStopped> {
        let mut looked = self.inner.poller.looked.subscribe();
        let ticket = self.inner.poller.wake.ask();
        looked.wait_for(|done| *done >= ticket).await.map(drop).map_err(|_| WatcherStopped)
    }

    /// What wakes this watcher ahead of its interval.
    pub fn nudge(&self) -> Nudge {
        Nudge(Arc::downgrade(&self.inner.poller.wake))
    }

    /// Counters.
    pub fn stats(&self) -> WatchStats {
        self.inner.poller.stats.lock().clone()
    }
}

/// The generations of one detector, as they come.
#[derive(Clone, Debug)]
pub struct Changes {
    receiver: watch::Receiver<Seen>,
    _alive: Watcher,
}

impl Changes {
    /// What was last seen.
    pub fn current(&self) -> Seen {
        *self.receiver.borrow()
    }

    /// Waits for a generation this receiver has not returned yet. Those in between are skipped: only the last one counts.
    ///
    /// # Errors
    /// [`WatcherStopped`].
    ///
    /// # Cancel safety
    /// Nothing is lost if the future is dropped.
    pub async fn next(&mut self) -> Result<Seen, WatcherStopped> {
        self.receiver.changed().await.map_err(|_| WatcherStopped)?;
        Ok(*self.receiver.borrow_and_update())
    }

    /// Waits until the generation is `generation` or later; at once if it is already. A wake-up cannot be missed: the value is
    /// compared under the channel's lock. Bound it with a timeout.
    ///
    /// # Errors
    /// [`WatcherStopped`].
    pub async fn wait_for_version(&mut self, generation: u64) -> Result<Seen, WatcherStopped> {
        self.receiver.wait_for(|seen| seen.generation >= generation).await.map(|seen| *seen).map_err(|_| WatcherStopped)
    }
}

/// Wakes a watcher ahead of its interval; does nothing once the watcher is gone.
#[derive(Clone, Debug)]
pub struct Nudge(Weak<Wake>);

impl Nudge {
    /// Wakes it.
    pub fn give(&self) {
        if let Some(wake) = self.0.upgrade() {
            wake.ask();
        }
    }

    pub(crate) fn is_heard(&self) -> bool {
        self.0.strong_count() > 0
    }
}

/// How the poller's thread is woken.
#[derive(Debug, Default)]
struct Wake {
    state: Mutex<Asked>,
    woken: Condvar,
}

#[derive(Debug, Default)]
struct Asked {
    tickets: u64,
    served: u64,
    stop: bool,
}

impl Wake {
    /// Asks for a look that begins after this call; returns its ticket.
    fn ask(&self) -> u64 {
        let mut state = self.state.lock();
        state.tickets += 1;
        let ticket = state.tickets;
        drop(state);
        self.woken.notify_one();
        ticket
    }

    fn stop(&self) {
        self.state.lock().stop = true;
        self.woken.notify_one();
    }

    /// Waits for a ticket, `interval` at most. Returns the tickets the coming look serves, `None` to end.
    fn wait(&self, interval: Duration) -> Option<u64> {
        let mut state = self.state.lock();
        if !state.stop && state.tickets == state.served {
            self.woken.wait_for(&mut state, interval);
        }
        state.served = state.tickets;
        (!state.stop).then_some(state.served)
    }
}

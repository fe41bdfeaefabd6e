//! Telling a peer that the list of tools has changed.

use std::{fmt, time::Duration};

use parking_lot::Mutex;
use rmcp::{
    RoleServer,
    service::{Peer, SubscriptionSink},
};
use tokio::{sync::watch, task::AbortHandle, time::sleep};

/// A peer is told no more often: a thousand rows that are written one by one are a dozen notifications.
pub(super) const EVERY: Duration = Duration::from_millis(100);

/// Who can be told.
pub(super) trait Listener: Send + 'static {
    /// Tells it; whether it is still there.
    fn tell(&self) -> impl Future<Output = bool> + Send;
}

/// Of the versions with `initialize`.
impl Listener for Peer<RoleServer> {
    async fn tell(&self) -> bool {
        self.notify_tool_list_changed().await.is_ok()
    }
}

/// Of 2026-07-28.
impl Listener for SubscriptionSink {
    async fn tell(&self) -> bool {
        self.notify_tool_list_changed().await.is_ok()
    }
}

/// Tells `listener` of each change from now on, of several at once in one; ends when it has gone.
///
/// Not an `async fn`: what changes between the call and the first poll is a change too.
pub(super) fn tell<L: Listener>(mut changes: watch::Receiver<u64>, listener: L) -> impl Future<Output = ()> + Send {
    changes.mark_unchanged();
    async move {
        while changes.changed().await.is_ok() && listener.tell().await {
            sleep(EVERY).await;
        }
        // Nothing changes any more, or nobody hears it; whoever waits for the end waits for its own.
        std::future::pending().await
    }
}

/// The task that tells one server's peer, which ends with the server. A clone is another server, and has none.
#[derive(Default)]
pub(super) struct Watch(Mutex<Option<AbortHandle>>);

impl Watch {
    /// Begins, and ends what was begun before: a peer may say several times that it is ready.
    pub(super) fn begin(&self, telling: impl Future<Output = ()> + Send + 'static) {
        let before = self.0.lock().replace(tokio::spawn(telling).abort_handle());
        if let Some(before) = before {
            before.abort();
        }
    }
}

impl Clone for Watch {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(task) = self.0.get_mut().take() {
            task.abort();
        }
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Watch")
    }
}

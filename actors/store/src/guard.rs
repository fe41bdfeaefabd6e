//! What one piece of work may do on a connection that serves others too.
//!
//! Somebody else's statement (a tool's, written by whoever may write tools) runs on the same connections as everybody's. Its guard is
//! asked while that one piece of work runs and by nothing else: it is put in place before and taken away after, however the work ends.
//! The hooks themselves are set once a connection, because SQLite prepares every statement anew when its authorizer is changed. So a
//! statement that stays prepared has been authorized by the guard it was first prepared under: who uses
//! [`prepare_cached`](rusqlite::Connection::prepare_cached) under a guard makes the text differ by what the guard permits, as by a comment
//! in front of it.

use std::sync::Arc;

use parking_lot::Mutex;
use rusqlite::hooks::{AuthContext, Authorization};

/// Decides for one piece of work, on the thread of its connection. It cannot use the connection.
pub trait Guard: Send + Sync + 'static {
    /// Whether a statement may be prepared that does this. Asked while it is prepared, and again when it is prepared anew because the
    /// schema has changed.
    fn authorize(&self, context: &AuthContext<'_>) -> Authorization;

    /// Whether the work is to be stopped now, besides by its deadline: it has had its share of something else, or nobody waits for it.
    /// Asked every 1,000 steps of SQLite's virtual machine.
    fn is_spent(&self) -> bool {
        false
    }
}

/// Where a connection's hooks find the guard of what runs now.
#[derive(Default)]
pub(crate) struct Slot(Mutex<Option<Arc<dyn Guard>>>);

impl std::fmt::Debug for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Slot({})", if self.0.lock().is_some() { "guarded" } else { "free" })
    }
}

impl Slot {
    /// Runs `work` under `guard`, if there is one.
    pub(crate) fn during<T>(&self, guard: Option<Arc<dyn Guard>>, work: impl FnOnce() -> T) -> T {
        struct Leave<'a>(&'a Slot);
        impl Drop for Leave<'_> {
            fn drop(&mut self) {
                *self.0.0.lock() = None;
            }
        }
        if guard.is_none() {
            return work();
        }
        *self.0.lock() = guard;
        let _leave = Leave(self);
        work()
    }

    pub(crate) fn authorize(&self, context: &AuthContext<'_>) -> Authorization {
        // Not asked under the lock: a guard that panics must not leave it taken.
        let guard = self.0.lock().clone();
        guard.map_or(Authorization::Allow, |guard| guard.authorize(context))
    }

    pub(crate) fn is_spent(&self) -> bool {
        let guard = self.0.lock().clone();
        guard.is_some_and(|guard| guard.is_spent())
    }
}

//! The thread that looks.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use rusqlite::Connection;
use tokio::sync::watch;

use super::{Detector, Seen, Wake, WatchConfig, WatchStats};
use crate::{
    StoreError,
    identity::FileIdentity,
    open::{Access, OpenError, Options, open},
    writer::panic_text,
};

/// Longest wait for a lock within a look: a look that takes longer counts as failed and the next one tries again.
const LOCK_WAIT: Duration = Duration::from_millis(100);
/// Cache of the watching connection; it reads a page or two.
const CACHE_KIB: u32 = 256;

#[derive(Debug)]
pub(super) struct Poller {
    config: WatchConfig,
    pub(super) wake: Arc<Wake>,
    followed: Mutex<Vec<Followed>>,
    pub(super) looked: watch::Sender<u64>,
    pub(super) stats: Mutex<WatchStats>,
}

#[derive(Clone, Debug)]
struct Followed {
    detector: Detector,
    sender: watch::Sender<Seen>,
}

#[derive(Debug, thiserror::Error)]
enum LookError {
    #[error("{0}")]
    Open(#[from] OpenError),
    #[error("cannot find the file: {0}")]
    File(#[from] std::io::Error),
    #[error("{0}")]
    Sqlite(#[from] StoreError),
    #[error("panicked: {0}")]
    Panicked(String),
}

impl From<rusqlite::Error> for LookError {
    fn from(error: rusqlite::Error) -> LookError {
        LookError::Sqlite(error.into())
    }
}

/// The connection and what it last saw.
struct View {
    connection: Connection,
    file: FileIdentity,
    data_version: i64,
}

impl Poller {
    pub(super) fn new(config: WatchConfig) -> Poller {
        Poller { config, wake: Arc::default(), followed: Mutex::default(), looked: watch::Sender::new(0), stats: Mutex::default() }
    }

    pub(super) fn follow(&self, detector: Detector) -> watch::Receiver<Seen> {
        let mut followed = self.followed.lock();
        if let Some(same) = followed.iter().find(|f| f.detector == detector) {
            return same.sender.subscribe();
        }
        // Whoever nobody follows any more makes room: the list is bounded by the detectors in use.
        followed.retain(|f| f.sender.receiver_count() > 0);
        let (sender, receiver) = watch::channel(Seen::default());
        followed.push(Followed { detector, sender });
        receiver
    }

    pub(super) fn run(&self) {
        let mut view = None;
        // True while some detector has yet to be read for what `data_version` last showed.
        let mut unread = true;
        while let Some(ticket) = self.wake.wait(self.config.interval) {
            let outcome = catch_unwind(AssertUnwindSafe(|| self.look(&mut view, &mut unread)))
                .unwrap_or_else(|payload| Err(LookError::Panicked(panic_text(payload.as_ref()))));
            let mut stats = self.stats.lock();
            stats.checks += 1;
            match outcome {
                Ok(changes) => {
                    stats.changes_detected += changes;
                    stats.last_error = None;
                }
                Err(error) => {
                    stats.errors += 1;
                    let text = error.to_string();
                    // Logged when it is new, not fifty times a second.
                    if stats.last_error.as_ref() != Some(&text) {
                        let path = self.config.path.display();
                        // It may come later: a replica does, and the owner's file with whoever opens it first.
                        if self.config.path.exists() {
                            tracing::warn!(%path, error = text, "cannot look at the database");
                        } else {
                            tracing::debug!(%path, "there is no database to look at yet");
                        }
                        stats.last_error = Some(text);
                    }
                    unread = true;
                    let keep = matches!(&error, LookError::Sqlite(e) if !e.kind.breaks_connection());
                    if !keep {
                        view = None;
                    }
                }
            }
            drop(stats);
            self.looked.send_replace(ticket);
        }
        // Waiters learn of the end when the senders are dropped.
        self.followed.lock().clear();
    }

    fn look(&self, view: &mut Option<View>, unread: &mut bool) -> Result<u64, LookError> {
        let file = FileIdentity::of(&self.config.path)?;
        // Another file under this name: what we have open is history, whatever its version says.
        let replaced = view.as_ref().is_none_or(|v| v.file != file);
        if replaced {
            *view = Some(self.open(file)?);
        }
        let Some(view) = view.as_mut() else { return Ok(0) };
        let version: i64 = view.connection.prepare_cached("PRAGMA data_version")?.query_row([], |row| row.get(0))?;
        let moved = replaced || version != view.data_version;
        view.data_version = version;
        *unread |= moved;
        let mut changes = 0;
        let mut failure = None;
        // Collected first: the lock must not be held over a query, because followers take it on a runtime's thread.
        let due: Vec<Followed> = {
            let followed = self.followed.lock();
            followed.iter().filter(|f| *unread || f.sender.borrow().generation == 0).cloned().collect()
        };
        for each in due {
            let before = *each.sender.borrow();
            match token(&view.connection, &each.detector, version) {
                // A replaced file is a change even if the token happens to be equal.
                Ok(token) if before.generation == 0 || replaced || token != before.token => {
                    each.sender.send_replace(Seen { generation: before.generation + 1, token });
                    changes += u64::from(before.generation > 0);
                }
                Ok(_) => {}
                Err(error) => failure = Some(error),
            }
        }
        *unread = false;
        failure.map_or(Ok(changes), |error| Err(LookError::Sqlite(error.into())))
    }

    fn open(&self, file: FileIdentity) -> Result<View, LookError> {
        let mut options = Options::new(&self.config.path, Access::ReadOnly);
        options.busy_timeout = LOCK_WAIT;
        options.cache_kib = CACHE_KIB;
        options.mmap_bytes = Some(0);
        let (connection, _) = open(&options)?.into_parts();
        self.stats.lock().opened += 1;
        Ok(View { connection, file, data_version: 0 })
    }
}

fn token(connection: &Connection, detector: &Detector, data_version: i64) -> rusqlite::Result<i64> {
    match detector {
        Detector::DataVersion => Ok(data_version),
        Detector::UserVersion => connection.prepare_cached("PRAGMA user_version")?.query_row([], |row| row.get(0)),
        Detector::MaxColumn { table, column } => {
            // Identifiers cannot be bound; quoted, with the quotes in them doubled, they are only names.
            let sql = format!("SELECT COALESCE(MAX({}), 0) FROM {}", quoted(column), quoted(table));
            connection.prepare_cached(&sql)?.query_row([], |row| row.get(0))
        }
    }
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::quoted;

    #[test]
    fn identifiers_cannot_break_out_of_their_quotes() {
        assert_eq!(quoted("a\"b; DROP"), "\"a\"\"b; DROP\"");
    }
}

//! Nodes of the Go system beside ours: a publication is pushed to them as they know it, and what they push becomes a replica here.
//!
//! What comes is kept as a database of its own in `sync/go` and published from there, to this node alone: a file that replaces the last
//! one is a new state like any other, and its replica takes what differs, in one transaction, while it is read.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use horos_dbsync::{
    export::{Exported, export},
    go::{Inbox, InboxConfig, Meta, PushError, Pusher, Taken, Target},
    source::Source,
};
use horos_edge::Conditions;
use horos_link::tls::Tls;
use horos_store::rusqlite::{self, Connection, OpenFlags, backup::Backup};
use horos_supervision::{Backoff, ChildSpec, backoff::Streak};
use horos_wire::NodeId;
use tokio::runtime::Handle;

use super::{
    Here, Publication, SyncLayout,
    layout::{DIRECTORY, PushTo},
    waiting,
};

/// Below the directory of replication.
const GO: &str = "go";
/// Between two looks whether there is something new to push, and how long it must have been quiet before that: a whole snapshot goes
/// out for each change. The Go system's own figures.
const LOOK: Duration = Duration::from_millis(200);
/// However restless the database is, something goes out so often.
const AT_MOST: Duration = Duration::from_secs(2);
/// For the end of the log to be told.
const HEAD: Duration = Duration::from_secs(2);
/// After a failed push.
const RETRY: Backoff = Backoff { base: Duration::from_millis(500), cap: Duration::from_secs(60), quiet: Duration::from_secs(300) };
/// Pages copied at a time, so that the copy is one transaction.
const ALL_PAGES: i32 = i32::MAX;

/// Where the database is from which a replica is fed that the Go system pushes.
pub(super) fn database(data: &Path, name: &str) -> PathBuf {
    data.join(DIRECTORY).join(GO).join(format!("{name}.db"))
}

/// What takes the files of those that push; none where nobody does.
///
/// # Errors
/// When the directory cannot be made.
pub(super) fn inbox(layout: &SyncLayout, tls: &Arc<Tls>, data: &Path, runtime: &Handle) -> io::Result<Option<Inbox>> {
    let mut senders = Vec::new();
    for (name, replica) in &layout.replicas {
        if let Some(by) = &replica.pushed_by {
            let place = database(data, name);
            let taken: Taken = Arc::new(move |file, meta| {
                let place = place.clone();
                Box::pin(async move {
                    let work = tokio::task::spawn_blocking(move || take(&file, &place, &meta));
                    work.await.unwrap_or_else(|error| Err(error.to_string()))
                })
            });
            senders.push((by.node.clone(), taken));
        }
    }
    if senders.is_empty() {
        return Ok(None);
    }
    let directory = data.join(DIRECTORY).join(GO);
    let config = InboxConfig { senders, directory, runtime: runtime.clone(), max_age: None };
    Inbox::open(tls.clone(), config).map(Some)
}

/// Copies `file`, which is whole and what its meta says, over the database at `place`, in one transaction.
fn take(file: &Path, place: &Path, meta: &Meta) -> Result<(), String> {
    let said = place.with_extension("json");
    let newest: Option<i64> = fs::read(&said).ok().and_then(|text| serde_json::from_slice(&text).ok());
    if let Some(newest) = newest.filter(|newest| meta.version < *newest) {
        return Err(format!("version {} is older than {newest}, which is there", meta.version));
    }
    copy(file, place).map_err(|error| format!("open new db: {error}"))?;
    // Lost, it lets an older file in after a restart, once.
    let kept = serde_json::to_vec(&meta.version).map_err(io::Error::from).and_then(|text| fs::write(&said, text));
    kept.map_err(|error| format!("rename: {error}"))
}

fn copy(file: &Path, place: &Path) -> rusqlite::Result<()> {
    // Nobody else has it, and it is left as it came, without files of SQLite's beside it.
    let uri = format!("file:{}?immutable=1", file.display().to_string().replace('%', "%25").replace('?', "%3f").replace('#', "%23"));
    let from = Connection::open_with_flags(uri, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI)?;
    let sound: String = from.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if sound != "ok" {
        return Err(rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT), Some(sound)));
    }
    let mut into = Connection::open(place)?;
    into.execute_batch("PRAGMA busy_timeout = 10000; PRAGMA synchronous = FULL;")?;
    Backup::new(&from, &mut into)?.run_to_completion(ALL_PAGES, Duration::from_millis(5), None)?;
    Ok(())
}

/// Pushes `publication`, called `name`, to a node of the Go system whenever it changed.
pub(super) fn push(name: &str, publication: &Publication, to: &PushTo, source: Source, here: Here<'_>) -> ChildSpec {
    let Here { exchange, tls, data, conditions, .. } = here;
    let cluster = exchange.node().cluster.clone();
    let pushing = Arc::new(Pushing {
        label: format!("push-{name}-{}", to.node),
        target: Target { node: NodeId { cluster, role: to.role, name: to.node.clone() }, address: to.address },
        compressed: to.compressed,
        database: data.join(publication.database.as_str()),
        filter: publication.filter.clone(),
        file: data.join(DIRECTORY).join(GO).join(format!("push-{name}-{}.db", to.node)),
        source,
        tls: tls.clone(),
        conditions: conditions.clone(),
    });
    waiting(&pushing.label.clone(), move || {
        let pushing = pushing.clone();
        async move {
            let error = pushing.run().await;
            tracing::error!(%error, "nothing can be pushed");
        }
    })
}

struct Pushing {
    label: String,
    target: Target,
    compressed: bool,
    database: PathBuf,
    filter: horos_dbsync::filter::FilterSpec,
    file: PathBuf,
    source: Source,
    tls: Arc<Tls>,
    conditions: Conditions,
}

/// Why nothing was pushed.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error(transparent)]
    Source(#[from] horos_dbsync::source::SourceError),
    #[error(transparent)]
    Export(#[from] horos_dbsync::export::ExportError),
    #[error(transparent)]
    Push(#[from] PushError),
    #[error("the snapshot cannot be made: {0}")]
    Io(#[from] io::Error),
}

impl Pushing {
    /// Ends only when it cannot have a port.
    async fn run(&self) -> io::Error {
        let pusher = match Pusher::open(self.tls.clone()) {
            Ok(pusher) => pusher,
            Err(error) => return error,
        };
        let (mut done, mut hash) = (None, None::<String>);
        let (mut streak, mut said) = (Streak::default(), false);
        loop {
            match self.turn(&pusher, &mut done, &mut hash).await {
                Ok(()) => {
                    if std::mem::take(&mut said) {
                        self.conditions.clear(&self.label);
                    }
                    tokio::time::sleep(LOOK).await;
                }
                Err(error) => {
                    if !std::mem::replace(&mut said, true) {
                        tracing::warn!(to = %self.target.node.name, %error, "not pushed; it is tried again");
                        self.conditions.note(&self.label, "the last snapshot could not be pushed");
                    }
                    let pause = streak.failed(Instant::now(), &RETRY, &mut rand::rng());
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }

    async fn turn(&self, pusher: &Pusher, done: &mut Option<String>, hash: &mut Option<String>) -> Result<(), Failed> {
        let mut head = self.head().await?;
        if *done == Some(head.clone()) {
            return Ok(());
        }
        // Until it is quiet, or it has been restless for long enough.
        let until = Instant::now() + AT_MOST;
        loop {
            tokio::time::sleep(LOOK).await;
            let now = self.head().await?;
            if std::mem::replace(&mut head, now.clone()) == now || Instant::now() >= until {
                break;
            }
        }
        let made = self.snapshot().await?;
        if hash.as_ref() != Some(&made.sha256) {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let meta = Meta {
                version: i64::try_from(now.as_millis()).unwrap_or(i64::MAX),
                hash: made.sha256.clone(),
                size: made.bytes,
                timestamp: i64::try_from(now.as_secs()).unwrap_or(i64::MAX),
                compressed: self.compressed,
            };
            pusher.push(&self.target, &self.file, &meta).await?;
            tracing::info!(to = %self.target.node.name, bytes = made.bytes, rows = made.rows, "a snapshot was pushed and is in its place");
            *hash = Some(made.sha256);
        }
        *done = Some(head);
        // It is made anew for the next.
        let _ = fs::remove_file(&self.file);
        Ok(())
    }

    async fn head(&self) -> Result<String, Failed> {
        Ok(self.source.head(Instant::now() + HEAD).await?.to_string())
    }

    async fn snapshot(&self) -> Result<Exported, Failed> {
        let (database, filter, file) = (self.database.clone(), self.filter.clone(), self.file.clone());
        let made = tokio::task::spawn_blocking(move || {
            if let Some(directory) = file.parent() {
                fs::create_dir_all(directory)?;
            }
            match fs::remove_file(&file) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(Failed::Io(error)),
                _ => {}
            }
            Ok(export(&database, &filter, &file, &mut |_, _| ())?)
        });
        made.await.map_err(|error| Failed::Io(io::Error::other(error)))?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(directory: &Path, name: &str, rows: i64) -> PathBuf {
        let path = directory.join(name);
        let _ = fs::remove_file(&path);
        let made = Connection::open(&path).unwrap();
        // As the Go system leaves its files: in WAL mode, by their header.
        made.execute_batch(
            "PRAGMA journal_mode = WAL; CREATE TABLE goods (sku INTEGER PRIMARY KEY); CREATE VIEW v AS SELECT * FROM goods;",
        )
        .unwrap();
        for row in 0..rows {
            made.execute("INSERT INTO goods VALUES (?1)", [row]).unwrap();
        }
        made.close().unwrap();
        path
    }

    fn meta(version: i64) -> Meta {
        Meta { version, hash: "0".repeat(64), size: 1, timestamp: 0, compressed: false }
    }

    #[test]
    fn a_file_that_comes_takes_the_place_of_the_last_and_an_older_one_does_not() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("shop.db");
        let count = || -> i64 { Connection::open(&place).unwrap().query_row("SELECT count(*) FROM goods", [], |row| row.get(0)).unwrap() };
        take(&file(directory.path(), "1", 3), &place, &meta(10)).unwrap();
        assert_eq!(count(), 3);
        // While somebody has it open, as its publisher does.
        let open = Connection::open(&place).unwrap();
        open.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE ours (x); INSERT INTO ours VALUES (1)").unwrap();
        take(&file(directory.path(), "2", 5), &place, &meta(20)).unwrap();
        assert_eq!(count(), 5);
        assert!(take(&file(directory.path(), "3", 1), &place, &meta(19)).unwrap_err().contains("older"));
        let broken = directory.path().join("4");
        fs::write(&broken, "no database, though it has some length to it").unwrap();
        assert!(take(&broken, &place, &meta(30)).is_err());
        assert_eq!(count(), 5, "what was there serves on");
    }
}

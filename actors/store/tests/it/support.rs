use std::{
    fmt::Debug,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use horos_store::{
    migrations::{Migration, Migrations},
    open::{Access, Options},
    readers::{Readers, ReadersActor, ReadersConfig, ReadersMsg},
    rusqlite::Connection,
    writer::{WriteError, Writer, WriterActor, WriterConfig, WriterMsg},
};
use ractor::{Actor, ActorRef};
use tempfile::TempDir;
use tokio::task::JoinHandle;

/// Long enough for a machine that does other things; nothing here waits for it to pass.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

pub(crate) const SCHEMA: Migrations = Migrations::new(&[Migration {
    version: 1,
    name: "items",
    sql: "CREATE TABLE item (id INTEGER PRIMARY KEY, label TEXT NOT NULL UNIQUE) STRICT;
          CREATE TABLE part (id INTEGER PRIMARY KEY, item INTEGER NOT NULL REFERENCES item DEFERRABLE INITIALLY DEFERRED) STRICT;
          CREATE TABLE pair (k TEXT PRIMARY KEY, v TEXT) STRICT, WITHOUT ROWID;",
}]);

pub(crate) fn soon() -> Instant {
    Instant::now() + LIMIT
}

/// A database in a directory of its own, with its writer running.
pub(crate) struct World {
    pub(crate) directory: TempDir,
    pub(crate) path: PathBuf,
    pub(crate) writer: Writer,
    pub(crate) actor: ActorRef<WriterMsg>,
    pub(crate) end: JoinHandle<()>,
}

impl World {
    pub(crate) async fn new() -> World {
        World::with(|_| {}).await
    }

    pub(crate) async fn with(adjust: impl FnOnce(&mut WriterConfig)) -> World {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("a.db");
        let mut config = WriterConfig::new(Options::new(&path, Access::Owner), SCHEMA);
        adjust(&mut config);
        let writer = Writer::new(config);
        let (actor, end) = Actor::spawn(None, WriterActor, writer.clone()).await.unwrap();
        World { directory, path, writer, actor, end }
    }

    pub(crate) async fn insert(&self, label: impl Into<String>) -> Result<i64, WriteError<horos_store::StoreError>> {
        let label = label.into();
        self.writer
            .transaction(soon(), move |tx| {
                tx.execute("INSERT INTO item (label) VALUES (?1)", [&label])?;
                Ok(tx.last_insert_rowid())
            })
            .await
    }

    /// The labels another connection sees.
    pub(crate) fn labels(&self) -> Vec<String> {
        labels(&self.path)
    }

    pub(crate) async fn readers(&self) -> (Readers, ActorRef<ReadersMsg>) {
        let readers = Readers::new(ReadersConfig::new(Options::new(&self.path, Access::ReadOnly)));
        let (actor, _) = Actor::spawn(None, ReadersActor, readers.clone()).await.unwrap();
        (readers, actor)
    }

    pub(crate) async fn stop(self) -> TempDir {
        self.actor.stop(None);
        tokio::time::timeout(LIMIT, self.end).await.unwrap().unwrap();
        self.directory
    }
}

pub(crate) fn labels(path: &Path) -> Vec<String> {
    let connection = Connection::open(path).unwrap();
    let mut statement = connection.prepare("SELECT label FROM item ORDER BY id").unwrap();
    statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
}

/// Waits until `probe` gives a value that satisfies `accept`; reports the last one if it never does.
pub(crate) async fn until<T: Debug>(mut probe: impl FnMut() -> T, accept: impl Fn(&T) -> bool) -> T {
    let started = Instant::now();
    loop {
        let value = probe();
        if accept(&value) {
            return value;
        }
        assert!(started.elapsed() < LIMIT, "never came: last seen {value:?}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

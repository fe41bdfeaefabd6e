//! The database files that tools may use: those in the data directory, whoever made them, but for the node's own.
//!
//! Tools read by readers of their own: a statement somebody else wrote may hold a thread for longer than its deadline, and services' reads
//! are not to wait for it. They write by the file's one writer, which is the services' too. A replica is only read; writing is its owner's.

use std::{collections::BTreeSet, fs, path::PathBuf, sync::Arc};

use futures_util::future::BoxFuture;
use horos_store::{
    open::Access,
    readers::{Readers, ReadersConfig},
    writer::Writer,
};
use horos_supervision::SupervisorHandle;
use horos_tools::{
    audit,
    sql::{Elsewhere, Shelf, THREADS},
};
use horos_wire::ActorName;
use tokio::sync::Mutex;

use crate::{
    control,
    databases::{Databases, MAX_DATABASES},
    router,
    sync::SyncLayout,
};

/// The node's own files. Nor is any file a tool's whose name goes on after one of these: a former owner's, or what a restore has kept.
const RESERVED: [&str; 4] = [control::FILE, control::KEYS_FILE, router::FILE, audit::FILE];
/// Files that tools read; each costs its readers' threads. As many as services may have.
const MAX_FILES: usize = MAX_DATABASES;
/// Memory for pages, in KiB a thread: tools read here and there, and the system keeps what many of them read.
const CACHE_KIB: u32 = 2_000;

/// A node's files. Cheap to clone.
#[derive(Clone)]
pub(super) struct Files(Arc<Inner>);

struct Inner {
    data: PathBuf,
    databases: Databases,
    /// Files that another node's data is in.
    replicas: BTreeSet<Box<str>>,
    /// Whose children the readers are.
    supervisor: SupervisorHandle,
    open: Mutex<Vec<(Box<str>, Readers)>>,
}

impl Files {
    pub(super) fn new(data: PathBuf, databases: Databases, layout: &SyncLayout, supervisor: SupervisorHandle) -> Self {
        let replicas = layout.replicas.values().map(|replica| replica.file.as_str().into()).collect();
        Self(Arc::new(Inner { data, databases, replicas, supervisor, open: Mutex::default() }))
    }

    /// Whether there is such a file here, and tools may use it.
    fn is_here(&self, file: &str) -> bool {
        // A name of our own rules has no path in it, and no capitals by which a file system might mean another file.
        let named = file.parse::<ActorName>().is_ok() && !RESERVED.iter().any(|reserved| file.starts_with(reserved));
        // Nothing that only points to a file: it might point to one of the node's own.
        named && fs::symlink_metadata(self.0.data.join(file)).is_ok_and(|found| found.is_file())
    }

    async fn readers_of(&self, file: &str) -> Result<Readers, Elsewhere> {
        if !self.is_here(file) {
            return Err(Elsewhere);
        }
        let mut open = self.0.open.lock().await;
        let name = format!("{file}:tools");
        let readers = match open.iter().find(|(known, _)| **known == *file) {
            Some((_, readers)) => readers.clone(),
            None if open.len() >= MAX_FILES => {
                tracing::warn!(file, "tools read {MAX_FILES} files already, as many as they may");
                return Err(Elsewhere);
            }
            None => {
                let mut options = self.0.databases.options(file).with_access(Access::ReadOnly);
                // Mapped pages would count as this process's memory, up to the file's size.
                options.mmap_bytes = Some(0);
                options.cache_kib = CACHE_KIB;
                Readers::new(ReadersConfig { threads: THREADS, ..ReadersConfig::new(options) })
            }
        };
        // Those of a supervisor that was started anew have to be given to it again.
        if self.0.supervisor.find(&name).is_none() {
            self.0.supervisor.add_child(readers.child(&name)).await.map_err(|error| {
                tracing::warn!(file, %error, "its readers cannot be started");
                Elsewhere
            })?;
        }
        if !open.iter().any(|(known, _)| **known == *file) {
            open.push((file.into(), readers.clone()));
        }
        Ok(readers)
    }

    async fn writer_of(&self, file: &str) -> Result<Writer, Elsewhere> {
        if !self.is_here(file) || self.0.replicas.contains(file) {
            return Err(Elsewhere);
        }
        self.0.databases.shared_writer(file).await.map_err(|error| {
            tracing::warn!(file, %error, "it cannot be written");
            Elsewhere
        })
    }
}

impl Shelf for Files {
    fn readers<'a>(&'a self, file: &'a str) -> BoxFuture<'a, Result<Readers, Elsewhere>> {
        Box::pin(self.readers_of(file))
    }

    fn writer<'a>(&'a self, file: &'a str) -> BoxFuture<'a, Result<Writer, Elsewhere>> {
        Box::pin(self.writer_of(file))
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::symlink, path::Path, time::Duration, time::Instant};

    use horos_store::{migrations::Migrations, rusqlite::Connection};
    use horos_supervision::{Strategy, Supervisor, SupervisorSpec};

    use super::*;
    use crate::config::Store;

    async fn files(data: &Path, sync: &str) -> (Files, Databases) {
        let [store, tools] = ["store", "tools"].map(|name| SupervisorSpec::new(name, Strategy::OneForOne, Vec::new()));
        let databases = Databases::new(data, Store::default(), store.handle());
        fs::write(data.join("sync.yaml"), sync).unwrap();
        let files = Files::new(data.to_owned(), databases.clone(), &SyncLayout::load(data).unwrap(), tools.handle());
        let children = vec![store.into_child(), tools.into_child()];
        Supervisor::start(SupervisorSpec::new("root", Strategy::OneForOne, children), None).await.unwrap();
        (files, databases)
    }

    fn make(path: &Path) {
        Connection::open(path).unwrap().execute_batch("CREATE TABLE goods (sku TEXT); INSERT INTO goods VALUES ('tea')").unwrap();
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    async fn count(files: &Files, file: &str) -> i64 {
        let readers = files.readers_of(file).await.unwrap();
        readers.read(soon(), |connection| connection.query_row("SELECT count(*) FROM goods", [], |row| row.get(0))).await.unwrap()
    }

    #[tokio::test]
    async fn no_tool_has_a_file_of_the_nodes_own_by_whatever_name() {
        let data = tempfile::tempdir().unwrap();
        let (files, _) = files(data.path(), "").await;
        let own = ["control.db", "keys.db", "router.db", "tools.db", "control.db.owned", "keys.db-wal", "control.db.before-restore"];
        for name in own {
            make(&data.path().join(name));
            assert!(files.readers_of(name).await.is_err() && files.writer_of(name).await.is_err(), "{name}");
        }
        fs::create_dir(data.path().join("sync")).unwrap();
        make(&data.path().join("sync/staged.db"));
        symlink(data.path().join("control.db"), data.path().join("app.db")).unwrap();
        for name in ["sync/staged.db", "../control.db", "./control.db", "Control.db", "/etc/passwd", "sync", "app.db", "", "nothing.db"] {
            assert!(files.readers_of(name).await.is_err() && files.writer_of(name).await.is_err(), "{name}");
        }
    }

    #[tokio::test]
    async fn a_file_that_anybody_made_is_read_and_written_and_a_replica_only_read() {
        let data = tempfile::tempdir().unwrap();
        let (files, _) = files(data.path(), "replicas: { shop: { file: public.db } }\n").await;
        for file in ["app.db", "public.db"] {
            assert!(files.readers_of(file).await.is_err(), "it is not there yet");
            make(&data.path().join(file));
            assert_eq!(count(&files, file).await, 1);
        }
        let writer = files.writer_of("app.db").await.unwrap();
        writer.transaction(soon(), |tx| tx.execute("INSERT INTO goods VALUES ('jam')", [])).await.unwrap();
        assert_eq!(count(&files, "app.db").await, 2);
        assert!(files.writer_of("public.db").await.is_err());
    }

    #[tokio::test]
    async fn a_service_that_opens_a_file_after_a_tool_has_written_it_has_it_with_its_own_migrations() {
        use horos_store::migrations::Migration;
        const OWN: Migrations = Migrations::new(&[Migration { version: 1, name: "goods", sql: "CREATE TABLE more (x)" }]);
        let data = tempfile::tempdir().unwrap();
        let (files, databases) = files(data.path(), "").await;
        make(&data.path().join("app.db"));
        let early = files.writer_of("app.db").await.unwrap();
        let service = databases.open("app.db", OWN).await.unwrap();
        service.writer.transaction(soon(), |tx| tx.execute("INSERT INTO more VALUES (1)", [])).await.unwrap();
        assert!(early.transaction(soon(), |tx| tx.execute("INSERT INTO goods VALUES ('x')", [])).await.is_err(), "there is one writer");
        let late = files.writer_of("app.db").await.unwrap();
        late.transaction(soon(), |tx| tx.execute("INSERT INTO goods VALUES ('jam')", [])).await.unwrap();
        assert_eq!(count(&files, "app.db").await, 2);
    }
}

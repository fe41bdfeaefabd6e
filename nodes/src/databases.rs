//! The node's databases: one writer and one pool of readers a file, whichever services use it.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use horos_store::{
    migrations::Migrations,
    open::{Access, Durability, Options},
    readers::{Readers, ReadersConfig},
    writer::{Writer, WriterConfig},
};
use horos_supervision::{OpenError, SupervisorHandle};
use horos_wire::ActorName;
use tokio::sync::{Mutex, Notify};

use crate::{
    config::{Store, Synchronous},
    control,
};

/// Databases that the services of one node may use; each costs three threads.
pub const MAX_DATABASES: usize = 32;

/// A database of the node.
#[derive(Clone)]
pub struct Database {
    /// The one way to write to it.
    pub writer: Writer,
    /// The way to read from it.
    pub readers: Readers,
}

impl std::fmt::Debug for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Database")
    }
}

/// The databases that services have asked for. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Databases(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    data: PathBuf,
    config: Store,
    supervisor: SupervisorHandle,
    open: Mutex<HashMap<Box<str>, (Migrations, Database)>>,
    /// Writers of files that no service has opened; a file has one, so each goes when a service does.
    bare: Mutex<HashMap<Box<str>, Writer>>,
    /// Told of each that is opened.
    opened: Notify,
}

impl Databases {
    pub(crate) fn new(data: &Path, config: Store, supervisor: SupervisorHandle) -> Self {
        Self(Arc::new(Inner {
            data: data.to_owned(),
            config,
            supervisor,
            open: Mutex::default(),
            bare: Mutex::default(),
            opened: Notify::new(),
        }))
    }

    /// How the database in `file` is opened.
    pub(crate) fn options(&self, file: &str) -> Options {
        let mut options = Options::new(self.0.data.join(file), Access::Owner);
        options.durability = match self.0.config.synchronous {
            Synchronous::Full => Durability::Full,
            Synchronous::Normal => Durability::Normal,
        };
        options.busy_timeout = self.0.config.busy_timeout;
        options
    }

    /// The database called `name`, opened by the first service of a user's that asks.
    pub(crate) async fn open(&self, name: &str, migrations: Migrations) -> Result<Database, OpenError> {
        if [control::FILE, control::KEYS_FILE].contains(&name) {
            return Err(format!("{name} is the node's own").into());
        }
        self.open_with(name, migrations, self.0.config.readers as usize).await
    }

    /// The same with as many threads for readers.
    pub(crate) async fn open_with(&self, name: &str, migrations: Migrations, threads: usize) -> Result<Database, OpenError> {
        // A name of our own rules is a file name without a path in it.
        let file: ActorName = name.parse().map_err(|error| format!("the database name {name:?}: {error}"))?;
        let mut open = self.0.open.lock().await;
        if let Some((known, database)) = open.get(name) {
            if *known != migrations {
                return Err(format!("{name} is in use with other migrations").into());
            }
            let database = database.clone();
            // A store that was started anew has lost the children it was given since its first start.
            for child in [database.writer.child(&format!("{name}:writer")), database.readers.child(&format!("{name}:readers"))] {
                if self.0.supervisor.find(&child.name).is_none() {
                    self.0.supervisor.add_child(child).await?;
                }
            }
            return Ok(database);
        }
        if open.len() >= MAX_DATABASES {
            return Err(format!("a node has at most {MAX_DATABASES} databases").into());
        }
        let config = &self.0.config;
        let options = self.options(file.as_str());
        let mut writer = WriterConfig::new(options.clone(), migrations);
        writer.queue_depth = config.queue as usize;
        writer.group_jobs = config.group_commit as usize;
        writer.group_time = config.group_wait;
        let mut readers = ReadersConfig::new(options);
        readers.threads = threads;
        let (writer, readers) = (Writer::new(writer), Readers::new(readers));
        if self.0.bare.lock().await.remove(name).is_some() {
            // Where it is gone with a store that was started anew, there is nothing to remove.
            let _ = self.0.supervisor.remove_child(&bare(name)).await;
        }
        // The writer first: it makes the file and brings it up to date.
        self.0.supervisor.add_child(writer.child(&format!("{name}:writer"))).await?;
        if let Err(error) = self.0.supervisor.add_child(readers.child(&format!("{name}:readers"))).await {
            // Asked for again it starts from nothing; a writer that will not stop stays with its supervisor, which reports it.
            let _ = self.0.supervisor.remove_child(&format!("{name}:writer")).await;
            return Err(error.into());
        }
        let database = Database { writer, readers };
        open.insert(name.into(), (migrations, database.clone()));
        self.0.opened.notify_waiters();
        Ok(database)
    }

    /// The writer of the file `name`, which is there: that of the services, or one without migrations until a service opens it.
    pub(crate) async fn shared_writer(&self, name: &str) -> Result<Writer, OpenError> {
        // Held to the end, so that no service opens it meanwhile.
        let open = self.0.open.lock().await;
        if let Some((_, database)) = open.get(name) {
            return Ok(database.writer.clone());
        }
        let mut writers = self.0.bare.lock().await;
        let known = writers.get(name).cloned();
        if known.is_none() && open.len() + writers.len() >= MAX_DATABASES {
            return Err(format!("a node has at most {MAX_DATABASES} databases").into());
        }
        let writer = known.unwrap_or_else(|| Writer::new(WriterConfig::new(self.options(name), Migrations::new(&[]))));
        let child = bare(name);
        if self.0.supervisor.find(&child).is_none() {
            self.0.supervisor.add_child(writer.child(&child)).await?;
        }
        writers.insert(name.into(), writer.clone());
        Ok(writer)
    }

    /// This node's writer of the database called `name`, once a service has opened it.
    pub(crate) async fn writer(&self, name: &str) -> Writer {
        loop {
            let opened = self.0.opened.notified();
            tokio::pin!(opened);
            // From here on none is missed.
            opened.as_mut().enable();
            if let Some((_, database)) = self.0.open.lock().await.get(name) {
                return database.writer.clone();
            }
            opened.await;
        }
    }
}

/// The writer's name in the tree, where no service has opened the file.
fn bare(name: &str) -> String {
    format!("{name}:tools-writer")
}

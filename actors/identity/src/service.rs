//! The service `horos.keys`: makes, lists and revokes keys, trusts issuers, signs and revokes tokens.
//!
//! Runs on the owner of `control.db` alone, started by `nodes`. Who may ask for what is the policy's; who asked is written
//! down beside what was done and logged under `horos_identity::audit`. A reply means that the commit is on disk.

mod issuers;
mod keys;
mod refused;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use horos_store::{
    readers::{ReadError, Readers},
    writer::{WriteError, Writer},
};
use horos_supervision::{Context, Handle, OpenError, Service};
use horos_wire::{
    id::{Id, Key, Uuid7s},
    protocol::keys::{Changes, Keys as Protocol, KeysError, Mark, Page},
};
use rusqlite::{Connection, OptionalExtension as _};

use crate::{clock::Clock, key, log};

/// For a commit or a read when the caller sets no sooner deadline.
const TIMEOUT: Duration = Duration::from_secs(5);

/// What is configured of keys.
#[derive(Clone, Debug)]
pub struct KeysConfig {
    /// Keys of one owner that may open something at once. Default 1,000.
    pub keys_per_owner: u32,
    /// Guesses in one minute, over all nodes, from which on the log says so. Default 1,000: nobody mistypes that often.
    pub guesses_per_minute: u64,
}

impl Default for KeysConfig {
    fn default() -> Self {
        Self { keys_per_owner: 1_000, guesses_per_minute: 1_000 }
    }
}

/// What the service works with.
#[derive(Clone, Debug)]
pub struct KeysParts {
    /// Writes `control.db`, which has [`crate::KEYS_MIGRATIONS`].
    pub writer: Writer,
    /// Reads it.
    pub readers: Readers,
    /// The node's data directory, where the signing key's file is.
    pub data: PathBuf,
    /// The clock.
    pub clock: Clock,
    /// The configuration.
    pub config: KeysConfig,
}

/// The service `horos.keys`, for the owner of `control.db`.
#[derive(Debug)]
pub struct Keys {
    parts: KeysParts,
    ids: Uuid7s,
    guesses: refused::Guesses,
}

/// Why a transaction did nothing.
#[derive(Debug)]
enum Fault {
    /// Told to the caller as it is.
    Refused(KeysError),
    Sql(rusqlite::Error),
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sql(error)
    }
}

impl From<KeysError> for Fault {
    fn from(error: KeysError) -> Self {
        Self::Refused(error)
    }
}

fn invalid(why: impl Into<Box<str>>) -> KeysError {
    KeysError::Invalid(why.into())
}

/// The caller is told the kind; paths and SQL stay in the log.
fn storage(error: &(dyn std::error::Error + 'static), brief: &str) -> KeysError {
    tracing::error!(error, "control.db");
    KeysError::Storage(brief.into())
}

fn sql(error: rusqlite::Error) -> KeysError {
    let error = horos_store::StoreError::from(error);
    storage(&error, error.kind.advice())
}

impl Keys {
    /// Opens the service: gives the file its log if it has none.
    ///
    /// # Errors
    /// What the storage says; the supervisor tries again.
    pub async fn open(parts: KeysParts) -> Result<Self, OpenError> {
        let mark = Mark(u128::from_le_bytes(key::random()?));
        let last = parts
            .writer
            .transaction(Instant::now() + TIMEOUT, move |tx| {
                log::own(tx, mark)?;
                tx.query_row("SELECT id FROM api_keys ORDER BY id DESC LIMIT 1", [], |row| row.get::<_, String>(0)).optional()
            })
            .await
            .map_err(|error: WriteError<rusqlite::Error>| error.to_string())?;
        let mut ids = Uuid7s::new();
        if let Some(last) = last.and_then(|last| last.parse::<Id<Key>>().ok()) {
            // Newest first stays newest first over a clock set back.
            ids.resume(last.uuid())?;
        }
        Ok(Self { parts, ids, guesses: refused::Guesses::default() })
    }

    fn now(&self) -> i64 {
        self.parts.clock.now()
    }

    async fn write<T, F>(&self, cx: &Context, work: F) -> Result<T, KeysError>
    where
        T: Send + 'static,
        F: FnMut(&Connection) -> Result<T, Fault> + Send + 'static,
    {
        let deadline = Instant::now() + cx.remaining().unwrap_or(TIMEOUT).min(TIMEOUT);
        self.parts.writer.transaction(deadline, work).await.map_err(|error| match error {
            WriteError::Failed(Fault::Refused(error)) => error,
            WriteError::Failed(Fault::Sql(error)) => sql(error),
            WriteError::Unknown(_) => KeysError::Unknown,
            WriteError::Storage(error) => storage(&error, error.kind.advice()),
            WriteError::Panicked(text) => {
                tracing::error!(text, "control.db");
                KeysError::Storage("a bug, which the log of the node names".into())
            }
            other => KeysError::Storage(other.to_string().into()),
        })
    }

    async fn read<T, F>(&self, cx: &Context, work: F) -> Result<T, KeysError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        let deadline = Instant::now() + cx.remaining().unwrap_or(TIMEOUT).min(TIMEOUT);
        self.parts.readers.read(deadline, work).await.map_err(|error| match error {
            ReadError::Failed(error) => sql(error),
            ReadError::Storage(error) => storage(&error, error.kind.advice()),
            ReadError::Open(error) => storage(&error, "control.db cannot be opened"),
            other => KeysError::Storage(other.to_string().into()),
        })
    }
}

/// A mark for an entry of the log.
fn stamp() -> Result<[u8; 16], KeysError> {
    key::random().map_err(|error| KeysError::Storage(error.to_string().into()))
}

impl Service for Keys {
    type Protocol = Protocol;
}

impl Handle<Changes> for Keys {
    async fn handle(&mut self, ask: Changes, cx: &Context) -> Result<Page, KeysError> {
        let page = self.read(cx, move |tables| log::page(tables, &ask)).await?;
        page.ok_or_else(|| KeysError::Storage("the log of changes is gone".into()))
    }
}

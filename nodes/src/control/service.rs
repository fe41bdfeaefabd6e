//! The service `horos.control`: edits routes and lists them.
//!
//! Runs on the owner of `control.db` alone. Who may ask for what is the policy's; what is written down of an edit is the caller that
//! its link's certificate proves. A reply means that the commit is on disk.

use std::time::{Duration, Instant};

use horos_store::{
    StoreError,
    readers::ReadError,
    rusqlite::{self, Connection},
    writer::WriteError,
};
use horos_supervision::{Context, Handle, Service};
use horos_wire::{
    Role,
    protocol::control::{Control, ControlError, DeleteRoute, Edited, ListRoutes, RouteList, SetRoute},
};

use super::routes::{self, View};
use crate::databases::Database;

/// For a commit or a read when the caller sets no sooner deadline.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The service, with the owner's file.
pub(super) struct Routes(Database);

/// Why a transaction did nothing.
#[derive(Debug)]
pub(super) enum Fault {
    /// Told to the caller as it is.
    Refused(ControlError),
    Sql(rusqlite::Error),
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sql(error)
    }
}

impl From<ControlError> for Fault {
    fn from(error: ControlError) -> Self {
        Self::Refused(error)
    }
}

/// The caller is told the kind; paths and SQL stay in the log.
fn storage(error: &(dyn std::error::Error + 'static), brief: &str) -> ControlError {
    tracing::error!(error, "control.db");
    ControlError::Storage(brief.into())
}

fn sql(error: rusqlite::Error) -> ControlError {
    let error = StoreError::from(error);
    storage(&error, error.kind.advice())
}

fn until(cx: &Context) -> Instant {
    Instant::now() + cx.remaining().unwrap_or(TIMEOUT).min(TIMEOUT)
}

impl Routes {
    pub(super) fn new(database: Database) -> Self {
        Self(database)
    }

    async fn edit<F>(&self, cx: &Context, work: F) -> Result<Edited, ControlError>
    where
        F: FnMut(&Connection) -> Result<Edited, Fault> + Send + 'static,
    {
        self.0.writer.transaction(until(cx), work).await.map_err(|error| match error {
            WriteError::Failed(Fault::Refused(error)) => error,
            WriteError::Failed(Fault::Sql(error)) => sql(error),
            WriteError::Unknown(_) => ControlError::Unknown,
            WriteError::Storage(error) => storage(&error, error.kind.advice()),
            WriteError::Panicked(text) => {
                tracing::error!(text, "control.db");
                ControlError::Storage("a bug, which the log of the node names".into())
            }
            other => ControlError::Storage(other.to_string().into()),
        })
    }
}

impl Service for Routes {
    type Protocol = Control;
}

impl Handle<SetRoute> for Routes {
    async fn handle(&mut self, ask: SetRoute, cx: &Context) -> Result<Edited, ControlError> {
        routes::check_set(&ask)?;
        let (service, strategy, by) = (ask.service.clone(), ask.strategy, cx.caller().to_string());
        let edited = self.edit(cx, move |tx| routes::set(tx, &ask, &by)).await?;
        // Without the configuration, which may hold what the log should not.
        tracing::warn!(target: "horos_nodes::audit", caller = %cx.caller(), service, %strategy, edit = edited.edit, "route set");
        Ok(edited)
    }
}

impl Handle<DeleteRoute> for Routes {
    async fn handle(&mut self, ask: DeleteRoute, cx: &Context) -> Result<Edited, ControlError> {
        routes::check_delete(&ask)?;
        let (service, by) = (ask.service.clone(), cx.caller().to_string());
        let edited = self.edit(cx, move |tx| routes::delete(tx, &ask, &by)).await?;
        tracing::warn!(target: "horos_nodes::audit", caller = %cx.caller(), service, edit = edited.edit, "route deleted");
        Ok(edited)
    }
}

impl Handle<ListRoutes> for Routes {
    async fn handle(&mut self, ask: ListRoutes, cx: &Context) -> Result<RouteList, ControlError> {
        // By the certificate: what an FO's replica is not told, its calls are not told either.
        let view = if cx.caller().node().role == Role::Fo { View::Public } else { View::Whole };
        self.0.readers.read(until(cx), move |tables| routes::list(tables, &ask, view)).await.map_err(|error| match error {
            ReadError::Failed(error) => sql(error),
            ReadError::Storage(error) => storage(&error, error.kind.advice()),
            ReadError::Open(error) => storage(&error, "control.db cannot be opened"),
            other => ControlError::Storage(other.to_string().into()),
        })
    }
}

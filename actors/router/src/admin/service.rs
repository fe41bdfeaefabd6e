//! The service `horos.control`: edits routes and forces breakers, and lists both.
//!
//! Runs on the owner of `control.db` alone. Who may ask for what is the policy's; what is written down of an edit is the caller that
//! its link's certificate proves. A reply means that the commit is on disk.

use std::time::{Duration, Instant};

use horos_store::{
    StoreError,
    readers::{ReadError, Readers},
    rusqlite::Connection,
    writer::{WriteError, Writer},
};
use horos_supervision::{Context, Handle, Service};
use horos_wire::{
    Role,
    protocol::control::{
        BreakerEdited, Control, ControlError, DeleteRoute, Edited, ForceBreaker, ForcedList, GetRoute, History, HistoryPage, ImportRoutes,
        Imported, ListForced, ListRoutes, ResetBreaker, Rollback, Route, RouteList, SetRoute, SetStrategy,
    },
};

use super::{Fault, View, breakers, check_why, edits, import, routes};
use crate::strategy::Strategies;

/// For a commit or a read when the caller sets no sooner deadline.
const TIMEOUT: Duration = Duration::from_secs(5);
/// What the log is filtered by that is kept of edits.
const AUDIT: &str = "horos_router::audit";

/// The service, with the owner's file.
#[derive(Debug)]
pub struct Administration {
    writer: Writer,
    readers: Readers,
    strategies: Strategies,
}

/// The caller is told the kind; paths and SQL stay in the log.
fn storage(error: &(dyn std::error::Error + 'static), brief: &str) -> ControlError {
    tracing::error!(error, "control.db");
    ControlError::Storage(brief.into())
}

fn told(fault: Fault) -> ControlError {
    match fault {
        Fault::Refused(error) => error,
        Fault::Sql(error) => {
            let error = StoreError::from(error);
            storage(&error, error.kind.advice())
        }
    }
}

fn until(cx: &Context) -> Instant {
    Instant::now() + cx.remaining().unwrap_or(TIMEOUT).min(TIMEOUT)
}

/// By the certificate: what an FO's replica is not told, its calls are not told either.
fn view(cx: &Context) -> View {
    if cx.caller().node().role == Role::Fo { View::Public } else { View::Whole }
}

impl Administration {
    /// For the file behind `writer` and `readers`, which has [`super::ROUTES_MIGRATIONS`]. Routes are checked by what `strategies` have.
    pub fn new(writer: Writer, readers: Readers, strategies: Strategies) -> Self {
        Self { writer, readers, strategies }
    }

    async fn edit<T, F>(&self, cx: &Context, mut work: F) -> Result<T, ControlError>
    where
        T: Send + 'static,
        F: FnMut(&Connection, &str, &Strategies) -> Result<T, Fault> + Send + 'static,
    {
        let (by, strategies) = (cx.caller().to_string(), self.strategies.clone());
        self.writer.transaction(until(cx), move |tx| work(tx, &by, &strategies)).await.map_err(|error| match error {
            WriteError::Failed(fault) => told(fault),
            WriteError::Unknown(_) => ControlError::Unknown,
            WriteError::Storage(error) => storage(&error, error.kind.advice()),
            WriteError::Panicked(text) => {
                tracing::error!(text, "control.db");
                ControlError::Storage("a bug, which the log of the node names".into())
            }
            other => ControlError::Storage(other.to_string().into()),
        })
    }

    async fn read<T, F>(&self, cx: &Context, work: F) -> Result<T, ControlError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection, View, &Strategies) -> Result<T, Fault> + Send + 'static,
    {
        let (view, strategies) = (view(cx), self.strategies.clone());
        self.readers.read(until(cx), move |tables| work(tables, view, &strategies)).await.map_err(|error| match error {
            ReadError::Failed(fault) => told(fault),
            ReadError::Storage(error) => storage(&error, error.kind.advice()),
            ReadError::Open(error) => storage(&error, "control.db cannot be opened"),
            other => ControlError::Storage(other.to_string().into()),
        })
    }
}

impl Service for Administration {
    type Protocol = Control;
}

impl Handle<SetRoute> for Administration {
    async fn handle(&mut self, ask: SetRoute, cx: &Context) -> Result<Edited, ControlError> {
        check_why(ask.why.as_deref())?;
        routes::check_row(&routes::asked(&ask), &self.strategies)?;
        let (service, strategy) = (ask.service.clone(), ask.strategy.clone());
        let edited = self.edit(cx, move |tx, by, strategies| routes::set(tx, &ask, by, strategies)).await?;
        // Without the configuration, which may hold what the log should not.
        tracing::warn!(target: AUDIT, caller = %cx.caller(), service, %strategy, edit = edited.edit, "route set");
        Ok(edited)
    }
}

impl Handle<SetStrategy> for Administration {
    async fn handle(&mut self, ask: SetStrategy, cx: &Context) -> Result<Edited, ControlError> {
        check_why(ask.why.as_deref())?;
        routes::check_lookup(&ask.service)?;
        let (service, strategy) = (ask.service.clone(), ask.strategy.clone());
        let edited = self.edit(cx, move |tx, by, strategies| routes::set_strategy(tx, &ask, by, strategies)).await?;
        tracing::warn!(target: AUDIT, caller = %cx.caller(), service, %strategy, edit = edited.edit, "route's strategy set");
        Ok(edited)
    }
}

impl Handle<DeleteRoute> for Administration {
    async fn handle(&mut self, ask: DeleteRoute, cx: &Context) -> Result<Edited, ControlError> {
        check_why(ask.why.as_deref())?;
        routes::check_lookup(&ask.service)?;
        let service = ask.service.clone();
        let edited = self.edit(cx, move |tx, by, _| routes::delete(tx, &ask, by)).await?;
        tracing::warn!(target: AUDIT, caller = %cx.caller(), service, edit = edited.edit, "route deleted");
        Ok(edited)
    }
}

impl Handle<Rollback> for Administration {
    async fn handle(&mut self, ask: Rollback, cx: &Context) -> Result<Edited, ControlError> {
        check_why(ask.why.as_deref())?;
        routes::check_lookup(&ask.service)?;
        let (service, to) = (ask.service.clone(), ask.to);
        let edited = self.edit(cx, move |tx, by, strategies| routes::rollback(tx, &ask, by, strategies)).await?;
        tracing::warn!(target: AUDIT, caller = %cx.caller(), service, ?to, edit = edited.edit, "route rolled back");
        Ok(edited)
    }
}

impl Handle<ImportRoutes> for Administration {
    async fn handle(&mut self, ask: ImportRoutes, cx: &Context) -> Result<Imported, ControlError> {
        check_why(ask.why.as_deref())?;
        import::check_import(&ask)?;
        let done = self.edit(cx, move |tx, by, strategies| import::import(tx, &ask, by, strategies)).await?;
        let (added, replaced, left) = (done.added.len(), done.replaced.len(), done.left.len());
        tracing::warn!(target: AUDIT, caller = %cx.caller(), added, replaced, left, "routes imported");
        Ok(done)
    }
}

impl Handle<ForceBreaker> for Administration {
    async fn handle(&mut self, ask: ForceBreaker, cx: &Context) -> Result<BreakerEdited, ControlError> {
        check_why(ask.why.as_deref())?;
        breakers::check_breaker(&ask.service, ask.endpoint.as_deref())?;
        let (service, state) = (ask.service.clone(), ask.state);
        let edited = self.edit(cx, move |tx, by, _| breakers::force(tx, &ask, by)).await?;
        tracing::warn!(target: AUDIT, caller = %cx.caller(), service, %state, edit = edited.edit, "breaker forced");
        Ok(edited)
    }
}

impl Handle<ResetBreaker> for Administration {
    async fn handle(&mut self, ask: ResetBreaker, cx: &Context) -> Result<BreakerEdited, ControlError> {
        check_why(ask.why.as_deref())?;
        breakers::check_breaker(&ask.service, ask.endpoint.as_deref())?;
        let service = ask.service.clone();
        let edited = self.edit(cx, move |tx, by, _| breakers::reset(tx, &ask, by)).await?;
        tracing::warn!(target: AUDIT, caller = %cx.caller(), service, edit = edited.edit, "breaker reset");
        Ok(edited)
    }
}

impl Handle<ListRoutes> for Administration {
    async fn handle(&mut self, ask: ListRoutes, cx: &Context) -> Result<RouteList, ControlError> {
        self.read(cx, move |tables, view, strategies| Ok(routes::list(tables, &ask, view, strategies)?)).await
    }
}

impl Handle<GetRoute> for Administration {
    async fn handle(&mut self, ask: GetRoute, cx: &Context) -> Result<Route, ControlError> {
        routes::check_lookup(&ask.service)?;
        self.read(cx, move |tables, view, strategies| routes::get(tables, &ask, view, strategies)).await
    }
}

impl Handle<History> for Administration {
    async fn handle(&mut self, ask: History, cx: &Context) -> Result<HistoryPage, ControlError> {
        if view(cx) == View::Public {
            // The policy does not let it come so far.
            return Err(super::invalid("an FO is not told what was edited"));
        }
        self.read(cx, move |tables, _, _| Ok(edits::history(tables, &ask)?)).await
    }
}

impl Handle<ListForced> for Administration {
    async fn handle(&mut self, ask: ListForced, cx: &Context) -> Result<ForcedList, ControlError> {
        self.read(cx, move |tables, view, _| Ok(breakers::list(tables, &ask, view)?)).await
    }
}

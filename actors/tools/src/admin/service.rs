//! The service `horos.registry`: edits tools and rules, and lists both.
//!
//! Runs on the owner of `control.db` alone. Who may ask for what is the policy's; what is written down of an edit is the caller that its
//! link's certificate proves. A reply means that the commit is on disk.

use std::time::{Duration, Instant};

use horos_store::{
    StoreError,
    readers::{ReadError, Readers},
    rusqlite::Connection,
    writer::{WriteError, Writer},
};
use horos_supervision::{Context, Handle, Service};
use horos_wire::protocol::registry::{
    DeleteTool, DropRule, GetTool, ImportTools, ListRules, ListTools, Registry as Protocol, RegistryError, RollbackTool, RuleEdited,
    RuleHistory, RuleHistoryPage, RuleList, SetRule, SetTool, ToolEdited, ToolHistory, ToolHistoryPage, ToolList, ToolRow, ToolsImported,
    TurnTool,
};

use super::{Fault, check_why, edits, import, rows, rules, tools};
use crate::Registry;

/// For a commit or a read when the caller sets no sooner deadline.
const TIMEOUT: Duration = Duration::from_secs(5);
/// What the log is filtered by that is kept of edits.
const AUDIT: &str = "horos_tools::audit";

/// The service, with the owner's file.
#[derive(Debug)]
pub struct Administration {
    writer: Writer,
    readers: Readers,
    registry: Registry,
}

/// The caller is told the kind; paths and SQL stay in the log.
fn storage(error: &(dyn std::error::Error + 'static), brief: &str) -> RegistryError {
    tracing::error!(error, "control.db");
    RegistryError::Storage(brief.into())
}

fn told(fault: Fault) -> RegistryError {
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

impl Administration {
    /// For the file behind `writer` and `readers`, which has [`crate::TOOLS_MIGRATIONS`]. Tools are checked as `registry` takes them up.
    pub fn new(writer: Writer, readers: Readers, registry: Registry) -> Self {
        Self { writer, readers, registry }
    }

    async fn edit<T, F>(&self, cx: &Context, mut work: F) -> Result<T, RegistryError>
    where
        T: Send + 'static,
        F: FnMut(&Connection, &str, &Registry) -> Result<T, Fault> + Send + 'static,
    {
        let (by, registry) = (cx.caller().to_string(), self.registry.clone());
        self.writer.transaction(until(cx), move |tx| work(tx, &by, &registry)).await.map_err(|error| match error {
            WriteError::Failed(fault) => told(fault),
            WriteError::Unknown(_) => RegistryError::Unknown,
            WriteError::Storage(error) => storage(&error, error.kind.advice()),
            WriteError::Panicked(text) => {
                tracing::error!(text, "control.db");
                RegistryError::Storage("a bug, which the log of the node names".into())
            }
            other => RegistryError::Storage(other.to_string().into()),
        })
    }

    async fn read<T, F>(&self, cx: &Context, work: F) -> Result<T, RegistryError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection, &Registry) -> Result<T, Fault> + Send + 'static,
    {
        let registry = self.registry.clone();
        self.readers.read(until(cx), move |tables| work(tables, &registry)).await.map_err(|error| match error {
            ReadError::Failed(fault) => told(fault),
            ReadError::Storage(error) => storage(&error, error.kind.advice()),
            ReadError::Open(error) => storage(&error, "control.db cannot be opened"),
            other => RegistryError::Storage(other.to_string().into()),
        })
    }
}

impl Service for Administration {
    type Protocol = Protocol;
}

impl Handle<SetTool> for Administration {
    async fn handle(&mut self, ask: SetTool, cx: &Context) -> Result<ToolEdited, RegistryError> {
        check_why(ask.why.as_deref())?;
        edits::check(&self.registry, &rows::row(&ask.name, &ask.text))?;
        let name = ask.name.clone();
        let edited = self.edit(cx, move |tx, by, registry| edits::set(tx, &ask, by, registry)).await?;
        // Without the configuration, which may hold what the log should not.
        tracing::warn!(target: AUDIT, caller = %cx.caller(), tool = &*name, version = edited.version, "tool set");
        Ok(edited)
    }
}

impl Handle<DeleteTool> for Administration {
    async fn handle(&mut self, ask: DeleteTool, cx: &Context) -> Result<ToolEdited, RegistryError> {
        check_why(ask.why.as_deref())?;
        tools::check_lookup(&ask.name)?;
        let name = ask.name.clone();
        let edited = self.edit(cx, move |tx, by, _| edits::delete(tx, &ask, by)).await?;
        tracing::warn!(target: AUDIT, caller = %cx.caller(), tool = &*name, version = edited.version, "tool deleted");
        Ok(edited)
    }
}

impl Handle<TurnTool> for Administration {
    async fn handle(&mut self, ask: TurnTool, cx: &Context) -> Result<ToolEdited, RegistryError> {
        check_why(ask.why.as_deref())?;
        tools::check_lookup(&ask.name)?;
        let (name, active) = (ask.name.clone(), ask.active);
        let edited = self.edit(cx, move |tx, by, registry| edits::turn(tx, &ask, by, registry)).await?;
        tracing::warn!(target: AUDIT, caller = %cx.caller(), tool = &*name, active, version = edited.version, "tool turned on or off");
        Ok(edited)
    }
}

impl Handle<RollbackTool> for Administration {
    async fn handle(&mut self, ask: RollbackTool, cx: &Context) -> Result<ToolEdited, RegistryError> {
        check_why(ask.why.as_deref())?;
        tools::check_lookup(&ask.name)?;
        let (name, to) = (ask.name.clone(), ask.to);
        let edited = self.edit(cx, move |tx, by, registry| edits::rollback(tx, &ask, by, registry)).await?;
        tracing::warn!(target: AUDIT, caller = %cx.caller(), tool = &*name, to, version = edited.version, "tool rolled back");
        Ok(edited)
    }
}

impl Handle<ListTools> for Administration {
    async fn handle(&mut self, ask: ListTools, cx: &Context) -> Result<ToolList, RegistryError> {
        self.read(cx, move |tables, registry| Ok(tools::list(tables, &ask, registry)?)).await
    }
}

impl Handle<GetTool> for Administration {
    async fn handle(&mut self, ask: GetTool, cx: &Context) -> Result<ToolRow, RegistryError> {
        tools::check_lookup(&ask.name)?;
        self.read(cx, move |tables, registry| tools::get(tables, &ask, registry)).await
    }
}

impl Handle<ToolHistory> for Administration {
    async fn handle(&mut self, ask: ToolHistory, cx: &Context) -> Result<ToolHistoryPage, RegistryError> {
        ask.name.as_deref().map_or(Ok(()), tools::check_lookup)?;
        self.read(cx, move |tables, _| Ok(edits::history(tables, &ask)?)).await
    }
}

impl Handle<SetRule> for Administration {
    async fn handle(&mut self, ask: SetRule, cx: &Context) -> Result<RuleEdited, RegistryError> {
        check_why(ask.why.as_deref())?;
        rules::check_rule(&ask.tool, &ask.role)?;
        let (tool, role, effect) = (ask.tool.clone(), ask.role.clone(), ask.effect);
        let edited = self.edit(cx, move |tx, by, _| rules::set(tx, &ask, by)).await?;
        tracing::warn!(target: AUDIT, caller = %cx.caller(), tool = &*tool, role = &*role, %effect, edit = edited.edit, "rule of tools set");
        Ok(edited)
    }
}

impl Handle<DropRule> for Administration {
    async fn handle(&mut self, ask: DropRule, cx: &Context) -> Result<RuleEdited, RegistryError> {
        check_why(ask.why.as_deref())?;
        // Any that is there may be named: rules that make no sense have to be taken away.
        tools::check_lookup(&ask.tool)?;
        tools::check_lookup(&ask.role)?;
        let (tool, role) = (ask.tool.clone(), ask.role.clone());
        let edited = self.edit(cx, move |tx, by, _| rules::remove(tx, &ask, by)).await?;
        tracing::warn!(target: AUDIT, caller = %cx.caller(), tool = &*tool, role = &*role, edit = edited.edit, "rule of tools taken away");
        Ok(edited)
    }
}

impl Handle<ListRules> for Administration {
    async fn handle(&mut self, ask: ListRules, cx: &Context) -> Result<RuleList, RegistryError> {
        self.read(cx, move |tables, _| Ok(rules::list(tables, &ask)?)).await
    }
}

impl Handle<RuleHistory> for Administration {
    async fn handle(&mut self, ask: RuleHistory, cx: &Context) -> Result<RuleHistoryPage, RegistryError> {
        self.read(cx, move |tables, _| Ok(rules::history(tables, &ask)?)).await
    }
}

impl Handle<ImportTools> for Administration {
    async fn handle(&mut self, ask: ImportTools, cx: &Context) -> Result<ToolsImported, RegistryError> {
        check_why(ask.why.as_deref())?;
        import::check_import(&ask)?;
        let done = self.edit(cx, move |tx, by, registry| import::import(tx, &ask, by, registry)).await?;
        let (added, replaced, left, rules) = (done.added.len(), done.replaced.len(), done.left.len(), done.rules);
        tracing::warn!(target: AUDIT, caller = %cx.caller(), added, replaced, left, rules, "tools imported");
        Ok(done)
    }
}

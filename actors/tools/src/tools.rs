//! The one way by which tools are listed and called.

use std::{fmt, sync::Arc, time::Instant};

use horos_wire::CallContext;
use rmcp::model::{JsonObject, Tool};
use tokio::sync::watch;

use crate::{Call, Caller, Definition, Output, Registry, ToolError};

/// The tools of a node, for whoever may use them. Cheap to clone.
#[derive(Clone)]
pub struct Tools(Arc<Inner>);

struct Inner {
    registry: Registry,
}

/// A page of a list.
#[derive(Clone, Debug)]
pub struct Listed {
    /// In the order of their names.
    pub tools: Vec<Tool>,
    /// Where the next page begins, to be given back as it is; none after the last.
    pub next: Option<String>,
}

impl fmt::Debug for Tools {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.registry.fmt(f)
    }
}

impl Tools {
    /// The tools of `registry`.
    pub fn new(registry: Registry) -> Self {
        Self(Arc::new(Inner { registry }))
    }

    /// The registry.
    pub fn registry(&self) -> &Registry {
        &self.0.registry
    }

    /// What `caller` may call, from `cursor` on.
    ///
    /// # Errors
    /// [`ToolError::Arguments`]: a cursor that is none.
    pub fn list(&self, caller: &Caller, cursor: Option<&str>) -> Result<Listed, ToolError> {
        let _ = cursor;
        let snapshot = self.0.registry.snapshot();
        let visible = snapshot.tools.values().filter(|tool| snapshot.policy.allows(caller, &tool.spec.name));
        Ok(Listed { tools: visible.map(|tool| tool.tool.clone()).collect(), next: None })
    }

    /// Calls a tool.
    ///
    /// # Errors
    /// [`ToolError`].
    ///
    /// # Cancel safety
    /// Dropped, the call is given up; what became of it is written down all the same.
    pub async fn call(&self, caller: &Caller, tool: &str, arguments: JsonObject, context: CallContext) -> Result<Output, ToolError> {
        let snapshot = self.0.registry.snapshot();
        let found = snapshot.tools.get(tool).filter(|_| snapshot.policy.allows(caller, tool));
        let definition = found.ok_or_else(|| ToolError::NoSuchTool(tool.into()))?;
        definition.input.check(&serde_json::Value::Object(arguments.clone())).map_err(ToolError::Arguments)?;
        let until = Instant::now() + definition.spec.timeout;
        let call = Call { tool, arguments: &arguments, caller, context: &context, until, max_bytes: 1 << 20 };
        definition.run.run(call).await
    }

    /// The tool called `name`, for what is the same for all callers: the schema that HTTP heads are checked against.
    pub(crate) fn find(&self, name: &str) -> Option<Arc<Definition>> {
        self.0.registry.snapshot().tools.get(name).cloned()
    }

    /// Changes whenever what is listed may have.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.registry.changes()
    }
}

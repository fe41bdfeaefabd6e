//! The one way by which tools are listed and called.

use std::{fmt, sync::Arc};

use horos_wire::CallContext;
use rmcp::model::{JsonObject, Tool};
use tokio::sync::watch;

use crate::{Caller, Output, Registry, ToolError};

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
        let _ = (caller, cursor);
        Ok(Listed { tools: Vec::new(), next: None })
    }

    /// Calls a tool.
    ///
    /// # Errors
    /// [`ToolError`].
    ///
    /// # Cancel safety
    /// Dropped, the call is given up; what became of it is written down all the same.
    pub async fn call(&self, caller: &Caller, tool: &str, arguments: JsonObject, context: CallContext) -> Result<Output, ToolError> {
        let _ = (caller, arguments, context);
        tokio::task::yield_now().await;
        Err(ToolError::NoSuchTool(tool.into()))
    }

    /// Changes whenever what is listed may have.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.registry.changes()
    }
}

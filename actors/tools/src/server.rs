//! What answers MCP's requests, whatever brought them.
//!
//! One [`ServerHandler`] for both generations of the protocol: with `initialize` and sessions (up to 2025-11-25), and without (2026-07-28).
//! It holds no session itself, so a transport may make one a connection, a stream or a request, as it likes: a clone is a pointer.
//!
//! Every request has to carry the [`Caller`] that its transport has proved; one without is told nothing.

use std::{borrow::Cow, fmt, sync::Arc};

use horos_wire::CallContext;
use rmcp::{
    ErrorData, RoleServer, ServerHandler,
    model::{
        CallToolRequestParams, CallToolResponse, CallToolResult, ContentBlock, Implementation, ListToolsResult, PaginatedRequestParams,
        ProtocolVersion, ServerCapabilities, ServerConfig, Tool,
    },
    service::RequestContext,
};

use crate::{Caller, Output, ToolError, Tools};

/// The name that it gives itself.
pub const NAME: &str = "horos";

/// What of the tools is listed. All that the caller may is callable either way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum View {
    /// All that the caller may call.
    #[default]
    All,
    /// Only `search_tools` and `call_tool`: for clients that put whatever is listed before a language model.
    Search,
}

/// Answers MCP's requests by the tools of a node. Cheap to clone.
#[derive(Clone)]
pub struct Server {
    tools: Tools,
    view: View,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("tools", &self.tools).field("view", &self.view).finish()
    }
}

impl Server {
    /// One that lists all tools that the caller may call.
    pub fn new(tools: Tools) -> Self {
        Self { tools, view: View::All }
    }

    /// The same with another view.
    #[must_use]
    pub fn with_view(self, view: View) -> Self {
        Self { view, ..self }
    }
}

/// Whoever sends the request; an internal error, as no transport lets one through that has none.
fn caller(context: &RequestContext<RoleServer>) -> Result<Arc<Caller>, ErrorData> {
    Caller::of(&context.extensions).ok_or_else(|| ErrorData::internal_error("nobody is known to have sent this", None))
}

/// What goes with the call, where the transport has said so.
fn call_context(context: &RequestContext<RoleServer>) -> CallContext {
    let told = context.extensions.get::<CallContext>();
    told.or_else(|| context.extensions.get::<::http::request::Parts>()?.extensions.get()).cloned().unwrap_or_default()
}

impl ServerHandler for Server {
    fn get_info(&self) -> ServerConfig {
        let capabilities = ServerCapabilities::builder().enable_tools().enable_tool_list_changed().build();
        let server = Implementation::new(NAME, env!("CARGO_PKG_VERSION"));
        ServerConfig::new(capabilities).with_server_info(server)
    }

    fn supported_protocol_versions(&self) -> Cow<'static, [ProtocolVersion]> {
        Cow::Borrowed(ProtocolVersion::KNOWN_VERSIONS)
    }

    async fn list_tools(
        &self,
        request: Option<PaginatedRequestParams>,
        context: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        let caller = caller(&context)?;
        let cursor = request.and_then(|request| request.cursor);
        let listed = self.tools.list(&caller, cursor.as_deref()).map_err(|error| ErrorData::invalid_params(error.to_string(), None))?;
        Ok(ListToolsResult { next_cursor: listed.next, ..ListToolsResult::with_all_items(listed.tools) })
    }

    async fn call_tool(&self, request: CallToolRequestParams, context: RequestContext<RoleServer>) -> Result<CallToolResponse, ErrorData> {
        let caller = caller(&context)?;
        let call = self.tools.call(&caller, &request.name, request.arguments.unwrap_or_default(), call_context(&context));
        match call.await {
            Ok(output) => Ok(told(output).into()),
            Err(error @ ToolError::NoSuchTool(_)) => Err(ErrorData::invalid_params(error.to_string(), None)),
            Err(error) => Ok(CallToolResult::error(vec![ContentBlock::text(error.to_string())]).into()),
        }
    }

    fn get_tool(&self, name: &str) -> Option<Tool> {
        self.tools.find(name)
    }
}

/// As the protocol says it: what is structured is told as text too (MCP 2025-06-18, "Structured Content").
fn told(output: Output) -> CallToolResult {
    let Output { structured, mut content } = output;
    let mut result = CallToolResult::success(Vec::new());
    if let Some(value) = structured {
        content.insert(0, ContentBlock::text(value.to_string()));
        result.structured_content = Some(value);
    }
    result.content = content;
    result
}

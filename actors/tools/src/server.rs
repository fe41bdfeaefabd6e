//! What answers MCP's requests, whatever brought them.
//!
//! One [`ServerHandler`] for both generations of the protocol: with `initialize` and sessions (up to 2025-11-25), and without (2026-07-28).
//! A transport makes one a connection, a stream or a request, as it likes; all that one has of its own is the task that tells its peer of
//! changes, which ends with it.
//!
//! Every request has to carry the [`Caller`] that its transport has proved; one without is told nothing.

mod changes;

use std::{borrow::Cow, fmt, sync::Arc};

use changes::Watch;
use horos_wire::{CallContext, TraceId};
use rmcp::{
    ErrorData, RoleServer, ServerHandler,
    model::{
        CacheScope, CallToolRequestParams, CallToolResponse, CallToolResult, ContentBlock, Implementation, ListToolsResult,
        PaginatedRequestParams, ProtocolVersion, ServerCapabilities, ServerConfig, SubscriptionFilter, Tool,
    },
    service::{NotificationContext, RequestContext, SubscriptionContext},
};
use tokio_util::sync::CancellationToken;

use crate::{
    Caller, Output, ToolError, Tools,
    strategy::payload::{HOPS, OUTCOME, RETRY_AFTER},
};

/// The name that it gives itself.
pub const NAME: &str = "horos";

/// How long a list may be taken for fresh, in milliseconds (MCP 2026-07-28, "Caching"): who listens for changes hears of them within
/// [`changes::EVERY`], and who does not asks again soon.
const FRESH_MS: u64 = 1_000;

/// What of the tools is listed. All that the caller may is callable either way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum View {
    /// All that the caller may call.
    #[default]
    All,
    /// Only `search_tools` and `call_tool`: for clients that put whatever is listed before a language model.
    Search,
}

/// Answers MCP's requests by the tools of a node. Cheap to make and to clone.
#[derive(Clone)]
pub struct Server {
    tools: Tools,
    view: View,
    watch: Watch,
    end: CancellationToken,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("tools", &self.tools).field("view", &self.view).finish_non_exhaustive()
    }
}

impl Server {
    /// One that lists all tools that the caller may call.
    pub fn new(tools: Tools) -> Self {
        Self { tools, view: View::All, watch: Watch::default(), end: CancellationToken::new() }
    }

    /// The same with another view.
    #[must_use]
    pub fn with_view(self, view: View) -> Self {
        Self { view, ..self }
    }

    /// The same whose subscriptions are answered, as what they are done with, when `end` is cancelled: a transport that is cut before that
    /// takes no answer any more.
    #[must_use]
    pub fn ending_with(self, end: CancellationToken) -> Self {
        Self { end, ..self }
    }
}

/// Whoever sends the request; an internal error, as no transport lets one through that has none.
fn caller(context: &RequestContext<RoleServer>) -> Result<Arc<Caller>, ErrorData> {
    Caller::of(&context.extensions).ok_or_else(|| ErrorData::internal_error("nobody is known to have sent this", None))
}

/// What goes with the call: as the transport has said, else the trace that the request names (MCP 2026-07-28, "Trace Context"), else a new one.
fn call_context(context: &RequestContext<RoleServer>) -> CallContext {
    let told = context.extensions.get::<CallContext>();
    let told = told.or_else(|| context.extensions.get::<::http::request::Parts>()?.extensions.get());
    let mut call = told.cloned().unwrap_or_default();
    if call.trace.is_none() {
        // W3C Trace Context §3.2: 00-TRACE-PARENT-FLAGS.
        let named = context.meta.get("traceparent").and_then(|value| value.as_str()?.split('-').nth(1)?.parse().ok());
        call.trace = named.filter(|trace: &TraceId| !trace.is_none()).unwrap_or_else(|| TraceId(rand::random()));
    }
    // A Horos that calls by route says how often the work was passed on; so a ring of routes over several nodes ends. Who lies about it
    // has his own call end sooner, or later by as much as he could have called again himself.
    if let Some(hops) = context.meta.get(HOPS).and_then(serde_json::Value::as_u64) {
        call.hops = call.hops.max(u8::try_from(hops).unwrap_or(u8::MAX));
    }
    call
}

/// An error as a result. What it means stands beside its text, for a Horos that calls by route.
fn refused(error: &ToolError) -> CallToolResult {
    let mut result = CallToolResult::error(vec![ContentBlock::text(error.to_string())]);
    let mut meta = rmcp::model::MetaObject::new();
    meta.0.insert(OUTCOME.to_owned(), error.outcome().into());
    if let ToolError::Busy(wait) = error {
        meta.0.insert(RETRY_AFTER.to_owned(), u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).into());
    }
    result.meta = Some(meta);
    result
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
        let listed = match self.view {
            View::All => self.tools.list(&caller, cursor.as_deref()),
            View::Search => Ok(self.tools.list_builtin()),
        };
        let listed = listed.map_err(|error| ErrorData::invalid_params(error.to_string(), None))?;
        let result = ListToolsResult::with_all_items(listed.tools).with_ttl_ms(FRESH_MS).with_cache_scope(CacheScope::Private);
        Ok(ListToolsResult { next_cursor: listed.next, ..result })
    }

    async fn call_tool(&self, request: CallToolRequestParams, context: RequestContext<RoleServer>) -> Result<CallToolResponse, ErrorData> {
        let caller = caller(&context)?;
        let call = self.tools.call(&caller, &request.name, request.arguments.unwrap_or_default(), call_context(&context));
        let result = tokio::select! {
            result = call => result,
            // Who cancels gets no answer (MCP 2025-11-25, "Cancellation"); dropping the call gives it up.
            () = context.ct.cancelled() => return Err(ErrorData::internal_error("cancelled", None)),
        };
        match result {
            Ok(output) => Ok(told(output).into()),
            Err(error @ ToolError::NoSuchTool(_)) => Err(ErrorData::invalid_params(error.to_string(), None)),
            Err(error) => Ok(refused(&error).into()),
        }
    }

    async fn on_initialized(&self, context: NotificationContext<RoleServer>) {
        if self.view == View::All {
            self.watch.begin(changes::tell(self.tools.changes(), context.peer));
        }
    }

    fn accepted_subscription_filter(&self, _: &SubscriptionFilter) -> Option<SubscriptionFilter> {
        Some(SubscriptionFilter::builder().tools_list_changed().build())
    }

    async fn listen(&self, context: SubscriptionContext) -> Result<(), ErrorData> {
        caller(context.request_context())?;
        let telling = async {
            match self.view {
                View::All => changes::tell(self.tools.changes(), context.sink().clone()).await,
                // What this lists never changes.
                View::Search => std::future::pending().await,
            }
        };
        tokio::select! {
            () = telling => {}
            () = context.cancelled() => {}
            () = self.end.cancelled() => {}
        }
        Ok(())
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

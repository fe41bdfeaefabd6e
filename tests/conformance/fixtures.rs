//! The tools, prompts and resources that the suite calls, before our own server: what is none of them is [`Server`]'s to answer.
//!
//! One handler for both generations of the protocol. It holds nothing itself but the level of its session's log: what calls share is in
//! [`Shared`], as a transport makes a handler for each session, or for each request.

mod prompts;
mod resources;
mod rounds;
mod tools;

use std::borrow::Cow;
use std::sync::{Arc, OnceLock};

use horos_tools::rmcp::model::{
    CallToolRequestParams, CallToolResponse, CompleteRequestParams, CompleteResult, CompletionInfo, GetPromptRequestParams,
    GetPromptResponse, ListPromptsResult, ListResourceTemplatesResult, ListResourcesResult, ListToolsResult, LoggingLevel,
    PaginatedRequestParams, ProtocolVersion, ReadResourceRequestParams, ReadResourceResponse, ServerCapabilities, ServerConfig,
    SetLevelRequestParams, SubscribeRequestParams, SubscriptionFilter, Tool, UnsubscribeRequestParams,
};
use horos_tools::rmcp::service::{RequestContext, SubscriptionContext};
use horos_tools::rmcp::{ErrorData, RoleServer, ServerHandler};
use horos_tools::server::Server;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::watch;

/// What all handlers of a server share.
pub(crate) struct Shared {
    rounds: rounds::Rounds,
    /// Told when somebody had the list of tools, or of prompts, changed.
    tools: watch::Sender<()>,
    prompts: watch::Sender<()>,
}

impl Shared {
    pub(crate) fn new() -> Self {
        Self { rounds: rounds::Rounds::default(), tools: watch::Sender::default(), prompts: watch::Sender::default() }
    }
}

/// Our server with what the suite wants before it.
#[derive(Clone)]
pub(crate) struct Fixtures {
    server: Server,
    shared: Arc<Shared>,
    /// As the client of this session has set it.
    level: Arc<OnceLock<LoggingLevel>>,
}

impl Fixtures {
    pub(crate) fn new(server: Server, shared: Arc<Shared>) -> Self {
        Self { server, shared, level: Arc::default() }
    }
}

/// What the protocol's JSON means: fixtures are written as the suite's own description shows them.
fn meant<T: DeserializeOwned>(json: Value) -> T {
    serde_json::from_value(json).expect("a fixture is of the protocol's shape")
}

impl ServerHandler for Fixtures {
    fn get_info(&self) -> ServerConfig {
        let mut info = self.server.get_info();
        let ours = std::mem::replace(
            &mut info.capabilities,
            ServerCapabilities::builder()
                .enable_completions()
                .enable_logging()
                .enable_prompts()
                .enable_prompts_list_changed()
                .enable_resources()
                .enable_resources_list_changed()
                .enable_resources_subscribe()
                .build(),
        );
        info.capabilities.tools = ours.tools;
        info.capabilities.experimental = ours.experimental;
        info
    }

    fn supported_protocol_versions(&self) -> Cow<'static, [ProtocolVersion]> {
        self.server.supported_protocol_versions()
    }

    async fn list_tools(
        &self,
        request: Option<PaginatedRequestParams>,
        context: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        let mut listed = self.server.list_tools(request, context).await?;
        listed.tools.extend(tools::all().iter().cloned());
        Ok(listed)
    }

    async fn call_tool(&self, request: CallToolRequestParams, context: RequestContext<RoleServer>) -> Result<CallToolResponse, ErrorData> {
        if tools::find(&request.name).is_none() {
            return self.server.call_tool(request, context).await;
        }
        match self.shared.rounds.call(&request, &context) {
            Some(answer) => answer,
            None => tools::call(self, request, context).await,
        }
    }

    fn get_tool(&self, name: &str) -> Option<Tool> {
        tools::find(name).cloned().or_else(|| self.server.get_tool(name))
    }

    async fn list_prompts(&self, _: Option<PaginatedRequestParams>, _: RequestContext<RoleServer>) -> Result<ListPromptsResult, ErrorData> {
        Ok(ListPromptsResult::with_all_items(prompts::all()))
    }

    async fn get_prompt(&self, request: GetPromptRequestParams, _: RequestContext<RoleServer>) -> Result<GetPromptResponse, ErrorData> {
        prompts::get(&request)
    }

    async fn complete(&self, _: CompleteRequestParams, _: RequestContext<RoleServer>) -> Result<CompleteResult, ErrorData> {
        let values = ["paris", "park", "party"].map(str::to_owned);
        Ok(CompleteResult::new(CompletionInfo::with_all_values(values.into()).expect("three are few")))
    }

    async fn list_resources(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListResourcesResult, ErrorData> {
        Ok(ListResourcesResult::with_all_items(resources::all()))
    }

    async fn list_resource_templates(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListResourceTemplatesResult, ErrorData> {
        Ok(ListResourceTemplatesResult::with_all_items(resources::templates()))
    }

    async fn read_resource(
        &self,
        request: ReadResourceRequestParams,
        _: RequestContext<RoleServer>,
    ) -> Result<ReadResourceResponse, ErrorData> {
        resources::read(&request.uri).map(Into::into)
    }

    async fn subscribe(&self, _: SubscribeRequestParams, _: RequestContext<RoleServer>) -> Result<(), ErrorData> {
        Ok(())
    }

    async fn unsubscribe(&self, _: UnsubscribeRequestParams, _: RequestContext<RoleServer>) -> Result<(), ErrorData> {
        Ok(())
    }

    async fn set_level(&self, request: SetLevelRequestParams, _: RequestContext<RoleServer>) -> Result<(), ErrorData> {
        let _ = self.level.set(request.level);
        Ok(())
    }

    fn accepted_subscription_filter(&self, requested: &SubscriptionFilter) -> Option<SubscriptionFilter> {
        Some(requested.clone())
    }

    async fn listen(&self, context: SubscriptionContext) -> Result<(), ErrorData> {
        let (mut tools, mut prompts, sink) = (self.shared.tools.subscribe(), self.shared.prompts.subscribe(), context.sink().clone());
        let wanted = context.accepted().clone();
        let told = async {
            loop {
                // What nobody asked for is not for this subscription to send.
                tokio::select! {
                    _ = tools.changed(), if wanted.tools_list_changed == Some(true) => sink.notify_tool_list_changed().await,
                    _ = prompts.changed(), if wanted.prompts_list_changed == Some(true) => sink.notify_prompt_list_changed().await,
                    else => std::future::pending().await,
                }
                .map_err(|error| ErrorData::internal_error(error.to_string(), None))?;
            }
        };
        tokio::select! {
            ended = told => ended,
            ended = self.server.listen(context) => ended,
        }
    }
}

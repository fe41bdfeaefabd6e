//! What a server may ask of its client: as a rule nothing.
#![expect(deprecated, reason = "sampling and roots are still asked for, by servers of before 2026-07-28")]

use std::{fmt, sync::Arc};

use futures_util::future::BoxFuture;
use rmcp::{
    ClientHandler, ErrorData, RoleClient,
    model::{
        ClientCapabilities, ClientConfig, CreateMessageRequestMethod, CreateMessageRequestParams, CreateMessageResult, ElicitRequestParams,
        ElicitResult, ErrorCode, Implementation, ListRootsRequestMethod, ListRootsResult, ProtocolVersion,
    },
    service::{NotificationContext, RequestContext},
};
use tokio::sync::{Notify, Semaphore};

/// Questions of one server at once; more are refused. As many as a person, or a model, is asked at a time with sense.
const QUESTIONS: usize = 16;
/// What a refusal for want of room is (JSON-RPC 2.0 §5.1: -32000 to -32099 are the implementation's).
const OVERLOADED: ErrorCode = ErrorCode(-32000);

/// Answers what servers ask their clients: for a program that has somebody to ask. Nothing here has a default that says yes.
pub trait Answers: Send + Sync + 'static {
    /// What is declared to servers; they may ask for nothing else.
    fn capabilities(&self) -> ClientCapabilities;

    /// Input of a user's (MCP 2025-11-25, "Elicitation"). Default: refused, as a mode that was not declared is.
    fn elicit(&self, asked: ElicitRequestParams) -> BoxFuture<'_, Result<ElicitResult, ErrorData>> {
        let _ = asked;
        Box::pin(std::future::ready(Err(not_declared("elicitation"))))
    }

    /// A model's output ("Sampling"). Default: there is no such method here.
    fn sample(&self, asked: CreateMessageRequestParams) -> BoxFuture<'_, Result<CreateMessageResult, ErrorData>> {
        let _ = asked;
        Box::pin(std::future::ready(Err(ErrorData::method_not_found::<CreateMessageRequestMethod>())))
    }

    /// The directories that the server may work in ("Roots"). Default: there is no such method here.
    fn roots(&self) -> BoxFuture<'_, Result<ListRootsResult, ErrorData>> {
        Box::pin(std::future::ready(Err(ErrorData::method_not_found::<ListRootsRequestMethod>())))
    }
}

/// Nobody is there to be asked, and servers are told so.
#[derive(Clone, Copy, Debug)]
pub struct Nobody;

impl Answers for Nobody {
    fn capabilities(&self) -> ClientCapabilities {
        ClientCapabilities::default()
    }
}

fn not_declared(what: &str) -> ErrorData {
    ErrorData::invalid_params(format!("{what} was not declared"), None)
}

/// The client's end of a session.
pub(super) struct Handler {
    answers: Arc<dyn Answers>,
    /// Told that the server's list is another.
    changed: Arc<Notify>,
    room: Semaphore,
}

impl fmt::Debug for Handler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handler").finish_non_exhaustive()
    }
}

impl Handler {
    pub(super) fn new(answers: Arc<dyn Answers>, changed: Arc<Notify>) -> Self {
        Self { answers, changed, room: Semaphore::new(QUESTIONS) }
    }

    /// A place for one question; none where the capability was not declared or there are too many.
    fn room(&self, declared: bool, what: &str) -> Result<tokio::sync::SemaphorePermit<'_>, ErrorData> {
        if !declared {
            return Err(not_declared(what));
        }
        self.room.try_acquire().map_err(|_| ErrorData::new(OVERLOADED, "too many questions at once", None))
    }
}

impl ClientHandler for Handler {
    async fn create_message(
        &self,
        params: CreateMessageRequestParams,
        _: RequestContext<RoleClient>,
    ) -> Result<CreateMessageResult, ErrorData> {
        if self.answers.capabilities().sampling.is_none() {
            return Err(ErrorData::method_not_found::<CreateMessageRequestMethod>());
        }
        let _room = self.room(true, "sampling")?;
        self.answers.sample(params).await
    }

    async fn list_roots(&self, _: RequestContext<RoleClient>) -> Result<ListRootsResult, ErrorData> {
        if self.answers.capabilities().roots.is_none() {
            return Err(ErrorData::method_not_found::<ListRootsRequestMethod>());
        }
        let _room = self.room(true, "roots")?;
        self.answers.roots().await
    }

    async fn create_elicitation(&self, request: ElicitRequestParams, _: RequestContext<RoleClient>) -> Result<ElicitResult, ErrorData> {
        let declared = self.answers.capabilities().elicitation;
        let mode = match &request {
            ElicitRequestParams::UrlElicitationParams { .. } => declared.is_some_and(|declared| declared.url.is_some()),
            _ => declared.is_some_and(|declared| declared.form.is_some() || declared.url.is_none()),
        };
        let _room = self.room(mode, "this mode of elicitation")?;
        self.answers.elicit(request).await
    }

    async fn on_tool_list_changed(&self, _: NotificationContext<RoleClient>) {
        self.changed.notify_one();
    }

    fn get_info(&self) -> ClientConfig {
        let name = Implementation::new("horos", env!("CARGO_PKG_VERSION"));
        ClientConfig::new(self.answers.capabilities(), name).with_protocol_version(ProtocolVersion::LATEST_WITH_INITIALIZE)
    }
}

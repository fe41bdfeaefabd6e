//! One session with a server, from its handshake to its end: what is asked in it, and how its end is noticed.

use std::{
    pin::pin,
    sync::{Arc, atomic::AtomicBool, atomic::Ordering::Relaxed},
    time::Duration,
};

use rmcp::{
    RoleClient,
    model::{
        CallToolRequestParams, CallToolResult, ClientRequest, DiscoverRequest, DiscoverRequestParams, JsonObject, ListToolsRequest,
        PaginatedRequestParams, PingRequest, ProtocolVersion, RequestMetaObject, ServerResult, SubscriptionFilter, Tool,
    },
    service::{
        ClientInitializeError, ClientLifecycleMode, Peer, RunningService, RxJsonRpcMessage, ServiceError, Subscription, TxJsonRpcMessage,
        serve_client_with_lifecycle,
    },
    transport::{StreamableHttpClientTransport, Transport, streamable_http_client::StreamableHttpClientTransportConfig},
};
use tokio::{
    sync::{Notify, watch},
    time::timeout,
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    IN_FLIGHT, MAX_MESSAGE, MAX_TOOLS,
    error::{self, ClientError},
    handler::{Answers, Handler},
    http::Http,
    life::Times,
    program, sse,
};

/// Pages of a list that are read: a server whose cursors never end is left there.
const MAX_PAGES: usize = 1_000;
/// Requests beside the calls: the list, a sign of life, a subscription, and one to spare.
const BESIDE: usize = 4;

/// For a call of a session that is given up to be told so by the transport, which knows whether it was written.
const LAST_WORDS: Duration = Duration::from_millis(250);

/// For a program's end to be known, where its pipes have ended.
const PARTING_WORDS: Duration = Duration::from_secs(1);

/// What a transport knows of its end, once it has come by itself.
pub(super) type Why = watch::Receiver<Option<Arc<str>>>;

/// A running session.
pub(super) struct Session {
    running: RunningService<RoleClient, Handler>,
    host: Arc<str>,
    ended: CancellationToken,
    why: Option<Why>,
    /// Why calls in hand are not waited for any more, once they are not.
    given_up: watch::Sender<Option<Box<str>>>,
    /// Counts handshakes made beneath it, where the transport makes them.
    pub(super) handshakes: Option<watch::Receiver<u64>>,
    /// Whether calls have found the server without what it had said to have.
    doubted: AtomicBool,
}

/// How versions are chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Lifecycle {
    /// The newest is asked for, and a server that does not know the question is greeted as of old.
    #[default]
    Auto,
    /// The newest only: between nodes of one cluster.
    Discover,
    /// By `initialize` only.
    Initialize,
}

impl Lifecycle {
    fn mode(self) -> ClientLifecycleMode {
        let preferred_versions = vec![ProtocolVersion::LATEST];
        match self {
            Self::Auto => ClientLifecycleMode::Auto { preferred_versions, legacy_version: None },
            Self::Discover => ClientLifecycleMode::Discover { preferred_versions },
            Self::Initialize => ClientLifecycleMode::Initialize,
        }
    }
}

impl Session {
    /// Greets the server at `url`.
    pub(super) async fn over_http(
        http: Http,
        url: &str,
        host: &Arc<str>,
        lifecycle: Lifecycle,
        times: Times,
        answers: Arc<dyn Answers>,
        changed: Arc<Notify>,
    ) -> Result<Self, NotOpened> {
        let handshakes = http.handshakes();
        let mut config = StreamableHttpClientTransportConfig::with_uri(url)
            .max_concurrent_requests(IN_FLIGHT + BESIDE)
            .max_sse_event_size(MAX_MESSAGE)
            .reinit_on_expired_session(true);
        config.retry_config = Arc::new(sse::Again(times));
        let transport = StreamableHttpClientTransport::with_client(http, config);
        Self::open(transport, host, lifecycle, answers, changed, Some(handshakes)).await
    }

    /// Greets a program that was just started.
    pub(super) async fn with_program(
        transport: program::Transport,
        host: &Arc<str>,
        lifecycle: Lifecycle,
        answers: Arc<dyn Answers>,
        changed: Arc<Notify>,
    ) -> Result<Self, NotOpened> {
        let mut why = transport.why();
        match Self::open(transport, host, lifecycle, answers, changed, None).await {
            Ok(session) => Ok(Self { why: Some(why), ..session }),
            Err(not) if not.is_end => {
                // It comes a little later than the end itself; and then some of before 2026-07-28 end at a question that they do not know.
                let Ok(Ok(ended)) = timeout(PARTING_WORDS, why.wait_for(Option::is_some)).await else { return Err(not) };
                let ended = horos_wire::NoEffect::NoRoute(format!("{host}: {}", ended.as_deref().unwrap_or_default()).into());
                Err(NotOpened { error: ended.into(), is_old: lifecycle == Lifecycle::Auto, is_end: true })
            }
            Err(not) => Err(not),
        }
    }

    /// Greets the server at the other end of `transport`.
    pub(super) async fn open<T>(
        transport: T,
        host: &Arc<str>,
        lifecycle: Lifecycle,
        answers: Arc<dyn Answers>,
        changed: Arc<Notify>,
        handshakes: Option<watch::Receiver<u64>>,
    ) -> Result<Self, NotOpened>
    where
        T: Transport<RoleClient> + 'static,
    {
        let ended = CancellationToken::new();
        let watched = Watched { inner: transport, ended: ended.clone(), _guard: ended.clone().drop_guard() };
        let handler = Handler::new(answers, changed);
        let opened: Result<_, ClientInitializeError> = Box::pin(serve_client_with_lifecycle(handler, watched, lifecycle.mode())).await;
        let running =
            opened.map_err(|error| NotOpened { is_old: is_old(&error), is_end: is_end(&error), error: error::of_opening(&error, host) })?;
        // What the handshake itself counted is not another.
        let handshakes = handshakes.map(|mut handshakes| {
            handshakes.mark_unchanged();
            handshakes
        });
        Ok(Self {
            running,
            host: host.clone(),
            ended,
            why: None,
            given_up: watch::Sender::new(None),
            handshakes,
            doubted: AtomicBool::new(false),
        })
    }

    /// Resolves when the other end is gone, with why.
    pub(super) async fn ended(&self) -> ClientError {
        self.ended.cancelled().await;
        let why = self.why().unwrap_or_else(|| "the connection was lost".into());
        horos_wire::NoEffect::NoRoute(format!("{}: {why}", self.host).into()).into()
    }

    /// Why the other end is gone, if it is and that is known.
    fn why(&self) -> Option<Arc<str>> {
        self.why.as_ref()?.borrow().clone()
    }

    /// What a request that was given to the session has come to.
    fn failed(&self, error: &ServiceError, knows: Option<bool>) -> ClientError {
        match (error::of_service(error, &self.host, knows), self.why()) {
            (ClientError::Unknown { why: horos_wire::Unknown::PeerLost(_), .. }, Some(why)) => {
                horos_wire::Unknown::PeerLost(format!("{}: {why}", self.host).into()).into()
            }
            (error, _) => error,
        }
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended.is_cancelled() || self.running.is_transport_closed() || self.given_up.borrow().is_some()
    }

    /// Tells those who wait for an answer that none comes.
    pub(super) fn give_up(&self, why: &ClientError) {
        self.given_up.send_replace(Some(why.to_string().into()));
    }

    /// Resolves when the session is given up.
    async fn without_hope(&self) -> String {
        let mut given_up = self.given_up.subscribe();
        // It cannot fail: the other half is here.
        let why = given_up.wait_for(Option::is_some).await;
        error::cut(why.ok().as_deref().and_then(Option::as_deref).unwrap_or_default())
    }

    pub(super) fn version(&self) -> String {
        self.running.peer_info().map_or_else(String::new, |info| info.protocol_version.to_string())
    }

    /// The name that the server gives itself.
    pub(super) fn server(&self) -> Option<String> {
        let info = self.running.peer_info()?;
        let server = info.server_info.as_ref()?;
        Some(error::cut(&format!("{} {}", server.name, server.version)))
    }

    /// Whether it is one without handshake and sessions.
    pub(super) fn is_stateless(&self) -> bool {
        self.running.peer_info().is_some_and(|info| !info.protocol_version.has_initialize())
    }

    /// Whether the server tells of changes in its list.
    pub(super) fn tells_of_changes(&self) -> bool {
        let info = self.running.peer_info();
        info.and_then(|info| info.capabilities.tools.clone()).is_some_and(|tools| tools.list_changed == Some(true))
    }

    /// Whether it has tools at all, as far as it says.
    pub(super) fn has_tools(&self) -> bool {
        self.running.peer_info().is_none_or(|info| info.capabilities.tools.is_some())
    }

    /// Marks that what was said in the handshake no longer holds; whether that is new.
    pub(super) fn doubt(&self) -> bool {
        !self.doubted.swap(true, Relaxed)
    }

    pub(super) fn is_doubted(&self) -> bool {
        self.doubted.load(Relaxed)
    }

    /// Calls a tool. What it asks for in between is answered by whoever answers.
    ///
    /// # Cancel safety
    /// Dropped, the server is told that nobody waits any more.
    pub(super) async fn call(&self, params: CallToolRequestParams, knows: Option<bool>) -> Result<CallToolResult, CallFailure> {
        if self.has_ended() {
            // Nothing can have been written any more.
            let why = horos_wire::NoEffect::NoRoute(format!("{}: the connection is closed", self.host).into());
            return Err(CallFailure { error: why.into(), headers_differ: false });
        }
        let mut asked = pin!(self.running.call_tool(params));
        let asked = tokio::select! {
            biased;
            asked = &mut asked => asked,
            // One that was not written yet is told that it could not be.
            why = self.without_hope() => timeout(LAST_WORDS, asked).await.map_err(|_| CallFailure {
                error: horos_wire::Unknown::PeerLost(format!("{}: {why}", self.host).into()).into(),
                headers_differ: false,
            })?,
        };
        asked.map_err(|error| CallFailure {
            headers_differ: matches!(&error, ServiceError::McpError(error) if error.code == rmcp::model::ErrorCode::HEADER_MISMATCH),
            error: self.failed(&error, knows),
        })
    }

    /// All pages of the server's list, as it is now.
    pub(super) async fn tools(&self) -> Result<Vec<Tool>, ClientError> {
        let mut tools = Vec::new();
        let mut cursor = None;
        for _ in 0..MAX_PAGES {
            // Past rmcp's own cache, which would answer with an old list where the server does not.
            let params = cursor.take().map(|cursor| PaginatedRequestParams::default().with_cursor(Some(cursor)));
            let request = ListToolsRequest { method: Default::default(), params, extensions: Default::default() };
            let ServerResult::ListToolsResult(page) = self.ask(ClientRequest::ListToolsRequest(request)).await? else {
                return Err(self.odd("its list"));
            };
            tools.extend(page.tools);
            if tools.len() > MAX_TOOLS {
                let why = horos_wire::Unknown::ReplyTooLarge(format!("{}: it has more than {MAX_TOOLS} tools", self.host).into());
                return Err(why.into());
            }
            match page.next_cursor {
                Some(next) => cursor = Some(next),
                None => return Ok(tools),
            }
        }
        Err(self.odd("its list has no end"))
    }

    /// Whether the server is there, and knows the session.
    pub(super) async fn ping(&self) -> Result<(), ClientError> {
        let request = if self.is_stateless() {
            ClientRequest::DiscoverRequest(DiscoverRequest::new(DiscoverRequestParams {}))
        } else {
            ClientRequest::PingRequest(PingRequest { method: Default::default(), extensions: Default::default() })
        };
        match self.ask(request).await {
            Ok(_) => Ok(()),
            // It is there, and has not heard of this question.
            Err(ClientError::NoEffect { why: horos_wire::NoEffect::NoSuchActor(_), .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Asks to be told of changes, by a server that is stateless.
    pub(super) async fn listen(&self) -> Result<Subscription, ClientError> {
        let filter = SubscriptionFilter::builder().tools_list_changed().build();
        self.running.listen(filter).await.map_err(|error| self.failed(&error, None))
    }

    /// Ends the session and tells the server, for `within` at most.
    pub(super) async fn close(mut self, within: Duration) {
        // What is left of it is ended by its drop.
        let _ = self.running.close_with_timeout(within).await;
    }

    async fn ask(&self, request: ClientRequest) -> Result<ServerResult, ClientError> {
        let peer: &Peer<RoleClient> = &self.running;
        peer.send_request(request).await.map_err(|error| self.failed(&error, None))
    }

    fn odd(&self, what: &str) -> ClientError {
        horos_wire::Unknown::MalformedReply(format!("{}: {what}", self.host).into()).into()
    }
}

/// Why there is no session.
pub(super) struct NotOpened {
    pub(super) error: ClientError,
    /// Whether the server knows the question, and answers that it is one of those that are greeted by `initialize`: rmcp takes that for
    /// the end of the matter.
    pub(super) is_old: bool,
    /// Whether the other end is gone.
    is_end: bool,
}

impl From<ClientError> for NotOpened {
    fn from(error: ClientError) -> Self {
        Self { error, is_old: false, is_end: false }
    }
}

fn is_old(error: &ClientInitializeError) -> bool {
    matches!(error, ClientInitializeError::NoCompatibleProtocolVersion { server_supported, .. }
        if server_supported.iter().any(|version| version.has_initialize() && ProtocolVersion::KNOWN_VERSIONS.contains(version)))
}

fn is_end(error: &ClientInitializeError) -> bool {
    match error {
        ClientInitializeError::ConnectionClosed(_) | ClientInitializeError::TransportError { .. } => true,
        ClientInitializeError::LegacyFallbackFailed { fallback, .. } => is_end(fallback),
        _ => false,
    }
}

/// What a call failed with.
pub(super) struct CallFailure {
    pub(super) error: ClientError,
    /// Whether the server misses fields that its list says to send (`x-mcp-header`): with the list of now it may be asked again.
    pub(super) headers_differ: bool,
}

/// The parameters of a call.
pub(super) fn params(tool: &str, arguments: Option<JsonObject>, meta: RequestMetaObject) -> CallToolRequestParams {
    let mut params = CallToolRequestParams::new(tool.to_owned());
    params.arguments = arguments;
    params.meta = (!meta.0.is_empty()).then_some(meta);
    params
}

/// A transport whose end is seen.
struct Watched<T> {
    inner: T,
    ended: CancellationToken,
    /// It ends with the loop that reads it, too.
    _guard: DropGuard,
}

impl<T: Transport<RoleClient>> Transport<RoleClient> for Watched<T> {
    type Error = T::Error;

    fn send(&mut self, item: TxJsonRpcMessage<RoleClient>) -> impl Future<Output = Result<(), Self::Error>> + Send + 'static {
        self.inner.send(item)
    }

    async fn receive(&mut self) -> Option<RxJsonRpcMessage<RoleClient>> {
        let message = self.inner.receive().await;
        if message.is_none() {
            self.ended.cancel();
        }
        message
    }

    async fn close(&mut self) -> Result<(), Self::Error> {
        self.inner.close().await
    }
}

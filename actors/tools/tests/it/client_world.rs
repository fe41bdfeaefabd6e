//! A server of rmcp's on a real socket, which can die, come back and be odd, and a client of ours in front of it.

use std::{
    borrow::Cow,
    collections::BTreeSet,
    convert::Infallible,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use horos_egress::{Egress, Options as EgressOptions, Roots};
use horos_router::strategy::mcp::Endpoint;
use horos_supervision::{Supervisor, SupervisorHandle};
use horos_tools::client::{Client, Clients, Options, Times, Ways, patient};
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full, combinators::UnsyncBoxBody};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rmcp::{
    ErrorData, RoleServer, ServerHandler,
    model::{
        CallToolRequestParams, CallToolResponse, CallToolResult, ContentBlock, ElicitRequest, ElicitRequestParams, ElicitationSchema,
        ListToolsResult, PaginatedRequestParams, ProgressNotificationParam, ProtocolVersion, ServerCapabilities, ServerConfig,
        ServerRequest, SubscriptionFilter, Tool,
    },
    service::{NotificationContext, Peer, RequestContext, SubscriptionContext},
    transport::{StreamableHttpServerConfig, StreamableHttpService, streamable_http_server::session::local::LocalSessionManager},
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::watch, task::JoinSet};

/// Far more than anything here takes.
pub(crate) const LONG: Duration = Duration::from_secs(30);

pub(crate) fn until(span: Duration) -> Instant {
    Instant::now() + span
}

/// Which generation a server is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Age {
    /// `initialize`, sessions, pushed notifications.
    Old,
    /// 2026-07-28.
    New,
}

/// What all lives of a server share.
#[derive(Clone)]
pub(crate) struct Book(Arc<Pages>);

struct Pages {
    age: Age,
    tools: Mutex<BTreeSet<String>>,
    listed: watch::Sender<u64>,
    peers: Mutex<Vec<Peer<RoleServer>>>,
    calls: AtomicUsize,
    lists: AtomicUsize,
    cancelled: AtomicUsize,
    metas: Mutex<Vec<Value>>,
}

impl Book {
    pub(crate) fn new(age: Age) -> Self {
        let tools = ["add", "ask", "fail", "say", "slow", "odd", "steps"].map(str::to_owned).into();
        let (calls, lists, cancelled) = Default::default();
        Self(Arc::new(Pages {
            age,
            tools: Mutex::new(tools),
            listed: watch::Sender::new(0),
            peers: Mutex::default(),
            calls,
            lists,
            cancelled,
            metas: Mutex::default(),
        }))
    }

    pub(crate) fn calls(&self) -> usize {
        self.0.calls.load(SeqCst)
    }

    pub(crate) fn lists(&self) -> usize {
        self.0.lists.load(SeqCst)
    }

    pub(crate) fn cancelled(&self) -> usize {
        self.0.cancelled.load(SeqCst)
    }

    pub(crate) fn metas(&self) -> Vec<Value> {
        self.0.metas.lock().clone()
    }

    /// Adds a tool, and tells of it as servers of this age do.
    pub(crate) async fn add_tool(&self, name: &str) {
        self.0.tools.lock().insert(name.to_owned());
        self.0.listed.send_modify(|count| *count += 1);
        let peers = self.0.peers.lock().clone();
        for peer in peers {
            // Those of sessions that are gone cannot be told.
            let _ = peer.notify_tool_list_changed().await;
        }
    }
}

#[derive(Clone)]
pub(crate) struct Fixture(pub(crate) Book);

impl ServerHandler for Fixture {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(ServerCapabilities::builder().enable_tools().enable_tool_list_changed().build())
    }

    fn supported_protocol_versions(&self) -> Cow<'static, [ProtocolVersion]> {
        match self.0.0.age {
            Age::Old => Cow::Owned(ProtocolVersion::KNOWN_VERSIONS.iter().filter(|version| version.has_initialize()).cloned().collect()),
            Age::New => Cow::Owned(vec![ProtocolVersion::V_2026_07_28]),
        }
    }

    async fn on_initialized(&self, context: NotificationContext<RoleServer>) {
        self.0.0.peers.lock().push(context.peer);
    }

    fn accepted_subscription_filter(&self, requested: &SubscriptionFilter) -> Option<SubscriptionFilter> {
        Some(requested.intersection(&SubscriptionFilter::builder().tools_list_changed().build()))
    }

    async fn listen(&self, context: SubscriptionContext) -> Result<(), ErrorData> {
        let mut listed = self.0.0.listed.subscribe();
        loop {
            tokio::select! {
                () = context.cancelled() => return Ok(()),
                _ = listed.changed() => {
                    let _ = context.sink().notify_tool_list_changed().await;
                }
            }
        }
    }

    async fn list_tools(&self, _: Option<PaginatedRequestParams>, _: RequestContext<RoleServer>) -> Result<ListToolsResult, ErrorData> {
        self.0.0.lists.fetch_add(1, SeqCst);
        let schema = Arc::new(json!({"type": "object"}).as_object().unwrap().clone());
        let tools = self.0.0.tools.lock().iter().map(|name| Tool::new(name.clone(), "a tool", schema.clone())).collect();
        Ok(ListToolsResult::with_all_items(tools))
    }

    async fn call_tool(&self, asked: CallToolRequestParams, context: RequestContext<RoleServer>) -> Result<CallToolResponse, ErrorData> {
        self.0.0.calls.fetch_add(1, SeqCst);
        self.0.0.metas.lock().push(serde_json::to_value(&context.meta).unwrap());
        let arguments = asked.arguments.unwrap_or_default();
        let number = |name: &str| arguments.get(name).and_then(Value::as_i64).unwrap_or(0);
        let text = |name: &str| arguments.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        let result = match &*asked.name {
            "add" => CallToolResult::structured(json!({"sum": number("a") + number("b")})),
            "say" => CallToolResult::success(vec![ContentBlock::text(text("text"))]),
            "fail" => CallToolResult::error(vec![ContentBlock::text("there is none left")]),
            "ask" => {
                let schema = ElicitationSchema::builder().optional_string("name").build().unwrap();
                let question =
                    ElicitRequestParams::FormElicitationParams { meta: None, message: "who?".to_owned(), requested_schema: schema };
                match context.peer.send_request(ServerRequest::ElicitRequest(ElicitRequest::new(question))).await {
                    Ok(answer) => CallToolResult::success(vec![ContentBlock::text(serde_json::to_string(&answer).unwrap())]),
                    Err(error) => CallToolResult::error(vec![ContentBlock::text(error.to_string())]),
                }
            }
            "odd" => return Err(ErrorData::internal_error("it broke", None)),
            "slow" => {
                tokio::select! {
                    () = context.ct.cancelled() => drop(self.0.0.cancelled.fetch_add(1, SeqCst)),
                    () = tokio::time::sleep(LONG) => {}
                }
                CallToolResult::success(vec![ContentBlock::text("at last")])
            }
            "steps" => {
                if let Some(token) = context.meta.get_progress_token() {
                    for step in 1..=3 {
                        let _ = context.peer.notify_progress(ProgressNotificationParam::new(token.clone(), f64::from(step))).await;
                    }
                }
                CallToolResult::structured(json!({"steps": 3}))
            }
            name if self.0.0.tools.lock().contains(name) => CallToolResult::structured(json!({"called": name})),
            name => return Err(ErrorData::invalid_params(format!("Unknown tool: {name}"), None)),
        };
        Ok(result.into())
    }
}

pub(crate) type Body = UnsyncBoxBody<Bytes, Infallible>;
/// What a server does with a request instead of answering it; nothing if it answers.
pub(crate) type Instead = Arc<dyn Fn(&Request<Bytes>) -> Option<BoxFuture<'static, Response<Body>>> + Send + Sync>;

/// What answers over streamable HTTP.
pub(crate) fn service(book: &Book, json: bool) -> StreamableHttpService<Fixture, LocalSessionManager> {
    let fixture = Fixture(book.clone());
    let config = StreamableHttpServerConfig::default().with_json_response(json).with_sse_retry(Some(Duration::from_millis(20)));
    StreamableHttpService::new(move || Ok(fixture.clone()), Arc::new(LocalSessionManager::default()), config)
}

/// A server that is up.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    /// It dies, with all its connections.
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    /// rmcp's, at `address`, unless `instead` takes a request.
    pub(crate) async fn start(address: &str, book: &Book, json: bool, instead: Option<Instead>) -> Self {
        let service = service(book, json);
        Self::answering(address, move |request: Request<Bytes>| {
            let taken = instead.as_ref().and_then(|instead| instead(&request));
            let service = service.clone();
            Box::pin(async move {
                match taken {
                    Some(taken) => taken.await,
                    None => service.handle(request.map(Full::new)).await.map(|body| body.boxed_unsync()),
                }
            })
        })
        .await
    }

    /// Whatever answers.
    pub(crate) async fn answering<F>(address: &str, answer: F) -> Self
    where
        F: Fn(Request<Bytes>) -> BoxFuture<'static, Response<Body>> + Clone + Send + Sync + 'static,
    {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let answer = answer.clone();
                connections.spawn(async move {
                    let service = service_fn(move |request: Request<Incoming>| {
                        let answer = answer.clone();
                        async move {
                            let (parts, body) = request.into_parts();
                            let Ok(body) = body.collect().await else { return Err(std::io::Error::other("it broke off")) };
                            Ok(answer(Request::from_parts(parts, body.to_bytes())).await)
                        }
                    });
                    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(tcp), service).await;
                });
            }
        });
        Self { address, task }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/mcp", self.address)
    }
}

pub(crate) fn full(status: u16, kind: &str, body: impl Into<Bytes>) -> Response<Body> {
    Response::builder().status(status).header("content-type", kind).body(Full::new(body.into()).boxed_unsync()).unwrap()
}

/// The message in a request, if it is one of this method.
pub(crate) fn asks(request: &Request<Bytes>, method: &str) -> Option<Value> {
    let message: Value = serde_json::from_slice(request.body()).ok()?;
    (message["method"] == method).then_some(message)
}

/// Short, so that tests are.
pub(crate) fn times() -> Times {
    Times {
        connect: Duration::from_secs(15),
        backoff: Duration::from_millis(20),
        backoff_cap: Duration::from_millis(200),
        grace: Duration::from_secs(1),
        ..Times::default()
    }
}

/// Clients that run.
pub(crate) struct World {
    pub(crate) clients: Clients,
    pub(crate) supervisor: SupervisorHandle,
}

impl World {
    /// Those at `trusted` may be inside.
    pub(crate) async fn new(trusted: &[SocketAddr]) -> Self {
        Self::believing(trusted, &[]).await
    }

    /// The same, which believes the authorities in these files.
    pub(crate) async fn believing(trusted: &[SocketAddr], authorities: &[PathBuf]) -> Self {
        let trusted = trusted.iter().map(|address| address.to_string().parse().unwrap()).collect();
        let ca_files = authorities.to_vec();
        let mut options = patient(EgressOptions { trusted, ca_files, roots: Roots::Files, ..EgressOptions::default() });
        options.breaker.open = Duration::from_millis(50);
        let clients = Clients::new(Ways::new(Egress::new(options).unwrap()));
        let supervisor = Supervisor::start(clients.supervisor(), None).await.unwrap();
        Self { clients, supervisor }
    }

    pub(crate) fn client(&self, url: &str) -> Client {
        self.with(url, Options { times: times(), ..Options::default() })
    }

    pub(crate) fn with(&self, url: &str, options: Options) -> Client {
        self.clients.client(url.parse::<Endpoint>().unwrap(), None, options).unwrap()
    }
}

/// A server of that age and a client of it.
pub(crate) async fn pair(age: Age, json: bool) -> (Book, Server, World, Client) {
    let book = Book::new(age);
    let server = Server::start("127.0.0.1:0", &book, json, None).await;
    let world = World::new(&[server.address]).await;
    let client = world.client(&server.url());
    (book, server, world, client)
}

/// Looks until it is so, and says what it saw last if it never is.
pub(crate) async fn eventually<T: std::fmt::Debug>(mut look: impl FnMut() -> (bool, T)) {
    let limit = Instant::now() + LONG;
    loop {
        let (so, seen) = look();
        if so {
            return;
        }
        assert!(Instant::now() < limit, "never: {seen:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

//! Tools of all manners behind MCP over HTTP on a real socket, and rmcp's own client before it.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::{StreamExt as _, future::BoxFuture, stream::BoxStream};
use horos_tools::{
    Behaviour, Call, Definition, Kinds, Mode, Options, Output, Registry, Rule, Run, Spec, ToolError, Tools,
    audit::Audit,
    http::{self, Service},
    server::{Server, View},
};
use horos_wire::{
    CallContext, TraceId,
    context::Claims,
    principal::{Principal, Proof},
};
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response, body::Incoming, client::conn::http1, header, service::service_fn};
use hyper_util::rt::TokioIo;
use rmcp::{
    model::{ClientJsonRpcMessage, JsonObject},
    transport::streamable_http_client::{
        SseError, StreamableHttpClient, StreamableHttpClientTransport, StreamableHttpClientTransportConfig, StreamableHttpError,
        StreamableHttpPostResponse,
    },
};
use serde_json::{Value, json};
use sse_stream::{Sse, SseStream};
use tokio::net::{TcpListener, TcpStream};
use tower::Service as _;

/// Far more than anything here takes.
pub(crate) const LONG: Duration = Duration::from_secs(30);

/// What the tools have seen.
#[derive(Default)]
pub(crate) struct Seen {
    /// Calls that ran.
    pub(crate) ran: AtomicUsize,
    /// Calls that were dropped before they ended.
    pub(crate) dropped: AtomicUsize,
    /// Calls of `wait` that are in hand.
    pub(crate) waiting: AtomicUsize,
    /// What came with the last call, as text.
    pub(crate) last: parking_lot::Mutex<String>,
}

/// What a tool of these tests does.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Does {
    Add,
    Fail,
    Panic,
    PanicAtOnce,
    Wait,
    Huge,
    Odd,
    Nothing,
}

struct Tool {
    does: Does,
    seen: Arc<Seen>,
}

struct Dropped<'a>(&'a Seen);

impl Drop for Dropped<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, SeqCst);
        self.0.dropped.fetch_add(1, SeqCst);
    }
}

impl Run for Tool {
    fn run<'a>(&'a self, call: Call<'a>) -> BoxFuture<'a, Result<Output, ToolError>> {
        self.seen.ran.fetch_add(1, SeqCst);
        *self.seen.last.lock() = format!("{call:?}");
        assert!(!matches!(self.does, Does::PanicAtOnce), "asked to, with the password hunter2");
        Box::pin(async move {
            let sum = || call.arguments.values().filter_map(Value::as_i64).sum::<i64>();
            match self.does {
                Does::Add => Ok(Output::json(json!({ "sum": sum() }))),
                Does::Fail => Err(ToolError::Failed("there is none left".into())),
                Does::Panic | Does::PanicAtOnce => panic!("asked to, with the password hunter2"),
                Does::Wait => {
                    self.seen.waiting.fetch_add(1, SeqCst);
                    let _dropped = Dropped(&self.seen);
                    std::future::pending().await
                }
                Does::Huge => Ok(Output::json(json!({ "sum": "x".repeat(call.max_bytes) }))),
                Does::Odd => Ok(Output::json(json!({ "sum": "many" }))),
                Does::Nothing => Ok(Output::default()),
            }
        })
    }
}

pub(crate) fn object(value: Value) -> JsonObject {
    match value {
        Value::Object(object) => object,
        other => panic!("no object: {other}"),
    }
}

/// A tool that reads; change it as you like.
pub(crate) fn spec(name: &str) -> Spec {
    let input = json!({
        "type": "object",
        "properties": { "a": { "type": "integer" }, "b": { "type": "integer" } },
        "required": ["a"],
        "additionalProperties": false,
    });
    let output = json!({ "type": "object", "properties": { "sum": { "type": "integer" } }, "required": ["sum"] });
    Spec {
        name: name.into(),
        title: None,
        description: format!("The tool {name}").into(),
        category: "tests".into(),
        input: object(input),
        output: Some(object(output)),
        behaviour: Behaviour { mode: Mode::ReadOnly, destructive: false, idempotent: true },
        group: "default".into(),
        timeout: Duration::from_secs(10),
        version: 7,
    }
}

const WRITES: Behaviour = Behaviour { mode: Mode::ReadWrite, destructive: false, idempotent: false };
const DESTROYS: Behaviour = Behaviour { mode: Mode::ReadWrite, destructive: true, idempotent: false };

/// The tools of these tests.
pub(crate) fn own(seen: &Arc<Seen>) -> Vec<Arc<Definition>> {
    let plain = |name: &str, does: Does| (spec(name), does);
    let specs = [
        plain("add", Does::Add),
        plain("fail", Does::Fail),
        plain("panic", Does::Panic),
        plain("panic_at_once", Does::PanicAtOnce),
        plain("huge", Does::Huge),
        plain("odd", Does::Odd),
        plain("nothing", Does::Nothing),
        plain("wait", Does::Wait),
        plain("hidden", Does::Add),
        (Spec { timeout: Duration::from_millis(50), ..spec("late") }, Does::Wait),
        (Spec { timeout: Duration::from_millis(50), behaviour: WRITES, ..spec("late_write") }, Does::Wait),
        (Spec { behaviour: WRITES, ..spec("write") }, Does::Add),
        (Spec { behaviour: DESTROYS, ..spec("destroy") }, Does::Add),
        (Spec { behaviour: DESTROYS, ..spec("destroy_too") }, Does::Add),
        (Spec { group: "payroll".into(), ..spec("pay") }, Does::Add),
        (Spec { group: "web".into(), ..spec("publish") }, Does::Add),
    ];
    specs.map(|(spec, does)| Arc::new(Definition::new(spec, Arc::new(Tool { does, seen: seen.clone() })).unwrap())).into()
}

/// The rules of these tests: whoever has the scope `use` may use all but `hidden`.
pub(crate) fn rules() -> Vec<Rule> {
    let rule = |tool: &str, role: &str, allows| Rule { tool: tool.into(), role: role.into(), allows };
    vec![rule("*", "use", true), rule("hidden", "*", false)]
}

/// A registry of `own` under [`rules`].
pub(crate) fn registry(own: Vec<Arc<Definition>>) -> Registry {
    let registry = Registry::new(Kinds::default(), own);
    registry.take(Vec::new(), rules());
    registry
}

pub(crate) struct Site {
    pub(crate) address: SocketAddr,
    pub(crate) registry: Registry,
    pub(crate) tools: Tools,
    pub(crate) seen: Arc<Seen>,
    pub(crate) service: Service,
}

impl Site {
    pub(crate) async fn new() -> Self {
        Self::with(http::Options::default(), View::All, Audit::in_memory()).await
    }

    pub(crate) async fn with(options: http::Options, view: View, audit: Audit) -> Self {
        let seen = Arc::new(Seen::default());
        let registry = registry(own(&seen));
        let tools = Tools::new(registry.clone(), audit, Options { in_flight_per_caller: 4, ..Options::default() });
        let server = Server::new(tools.clone()).with_view(view);
        let service = http::service(move || server.clone(), options);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let served = service.clone();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let served = served.clone();
                let answer = service_fn(move |request| {
                    let mut served = served.clone();
                    async move { served.call(port(request)).await }
                });
                // A client that goes is no error of this side.
                tokio::spawn(async move {
                    drop(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(socket), answer).await)
                });
            }
        });
        Self { address, registry, tools, seen, service }
    }

    pub(crate) fn client(&self, key: &str) -> StreamableHttpClientTransport<Hyper> {
        let config = StreamableHttpClientTransportConfig::with_uri(format!("http://{}/mcp", self.address)).auth_header(key);
        StreamableHttpClientTransport::with_client(Hyper(self.address), config)
    }

    /// Sends what somebody wrote.
    pub(crate) async fn send(&self, method: &str, fields: &[(&str, &str)], body: impl Into<Bytes>) -> Response<Incoming> {
        let mut request = Request::builder().method(method).uri("/mcp");
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        send(self.address, request.body(Full::new(body.into())).unwrap()).await.unwrap()
    }

    /// The same as JSON, with what every request has.
    pub(crate) async fn post(&self, fields: &[(&str, &str)], body: &Value) -> Answer {
        let usual =
            [("authorization", "Bearer ana"), ("content-type", "application/json"), ("accept", "application/json, text/event-stream")];
        let told = |name: &str| fields.iter().any(|(field, _)| *field == name);
        let all: Vec<_> = usual.into_iter().filter(|(name, _)| !told(name)).chain(fields.iter().copied()).collect();
        Answer::of(self.send("POST", &all, body.to_string()).await).await
    }

    /// A call as of 2026-07-28.
    pub(crate) async fn call(&self, tool: &str, arguments: Value) -> Answer {
        self.post(&modern("tools/call", Some(tool)), &modern_body("tools/call", json!({ "name": tool, "arguments": arguments }))).await
    }

    pub(crate) async fn eventually(&self, what: &str, is: impl Fn(&Self) -> bool) {
        let end = Instant::now() + LONG;
        while !is(self) {
            assert!(Instant::now() < end, "{what}: never");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

/// What 2026-07-28 has in the head.
pub(crate) fn modern<'a>(method: &'a str, name: Option<&'a str>) -> Vec<(&'a str, &'a str)> {
    let mut fields = vec![("mcp-protocol-version", "2026-07-28"), ("mcp-method", method)];
    fields.extend(name.map(|name| ("mcp-name", name)));
    fields
}

/// What it has in the body.
pub(crate) fn modern_body(method: &str, mut params: Value) -> Value {
    params["_meta"] = json!({
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientInfo": { "name": "by hand", "version": "1" },
        "io.modelcontextprotocol/clientCapabilities": {},
    });
    json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params })
}

/// What the port does: whose key it is (its text is the owner's name here; `nobody`'s is wrong), and what joins it all.
fn port(mut request: Request<Incoming>) -> Request<Incoming> {
    let shown = request.headers().get(header::AUTHORIZATION).map(|value| value.to_str().unwrap().replace("Bearer ", ""));
    if let Some(id) = shown.filter(|id| id != "nobody") {
        let scopes = ["use".parse().unwrap()].into();
        // One may have several, as tokens are: ana/1, ana/2.
        let owner = id.split('/').next().unwrap();
        let principal = Principal { id: owner.into(), proof: Proof::Key { owner: owner.into() }, scopes, per_minute: None };
        request.extensions_mut().insert(Arc::new(principal));
    }
    static TRACE: AtomicU64 = AtomicU64::new(1);
    let claims = Claims { request: Some("req_1".into()), ..Claims::default() };
    let trace = TraceId(TRACE.fetch_add(1, SeqCst).into());
    let deadline = Some(Instant::now() + LONG);
    request.extensions_mut().insert(CallContext { trace, deadline, hops: 0, claims: Some(Arc::new(claims)) });
    request
}

/// An answer with its whole body.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: header::HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) async fn of(response: Response<Incoming>) -> Self {
        let (parts, body) = response.into_parts();
        let body = tokio::time::timeout(LONG, body.collect()).await.expect("a whole answer in time").unwrap().to_bytes();
        Self { status: parts.status.as_u16(), headers: parts.headers, body }
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The message in it: as JSON, or the first of the events that is one.
    pub(crate) fn json(&self) -> Value {
        let text = self.text();
        let data = text.lines().filter_map(|line| line.strip_prefix("data:")).map(str::trim).find(|data| !data.is_empty());
        serde_json::from_str(data.unwrap_or(&text)).unwrap_or_else(|_| panic!("no JSON: {self:?}"))
    }

    /// The text of a result, and whether it is an error's.
    pub(crate) fn told(&self) -> (String, bool) {
        let json = self.json();
        let result = &json["result"];
        assert!(result.is_object(), "{json}");
        (result["content"][0]["text"].as_str().unwrap_or_default().to_owned(), result["isError"] == json!(true))
    }
}

/// One request on a connection of its own.
pub(crate) async fn send(address: SocketAddr, mut request: Request<Full<Bytes>>) -> std::io::Result<Response<Incoming>> {
    let host = address.to_string().parse().unwrap();
    request.headers_mut().entry(header::HOST).or_insert(host);
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(TcpStream::connect(address).await?)).await.map_err(std::io::Error::other)?;
    tokio::spawn(async move { drop(connection.await) });
    sender.send_request(request).await.map_err(std::io::Error::other)
}

/// How rmcp's client sends its requests here.
#[derive(Clone)]
pub(crate) struct Hyper(SocketAddr);

type Failed = StreamableHttpError<std::io::Error>;
type Fields = HashMap<header::HeaderName, header::HeaderValue>;

impl Hyper {
    async fn send(
        &self,
        method: &str,
        session: Option<&str>,
        key: Option<String>,
        fields: Fields,
        body: Vec<u8>,
    ) -> Result<Response<Incoming>, Failed> {
        let mut request = Request::builder().method(method).uri("/mcp");
        request = request.header("content-type", "application/json").header("accept", "application/json, text/event-stream");
        if let Some(session) = session {
            request = request.header("mcp-session-id", session);
        }
        if let Some(key) = key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        for (name, value) in fields {
            request = request.header(name, value);
        }
        let answer = send(self.0, request.body(Full::new(body.into())).unwrap()).await.map_err(Failed::Client)?;
        match answer.status().as_u16() {
            404 if session.is_some() => Err(Failed::SessionExpired),
            405 => Err(Failed::ServerDoesNotSupportSse),
            200..=299 => Ok(answer),
            status => Err(Failed::UnexpectedServerResponse(format!("{status}").into())),
        }
    }
}

fn events(answer: Response<Incoming>) -> BoxStream<'static, Result<Sse, SseError>> {
    SseStream::new(answer.into_body()).boxed()
}

impl StreamableHttpClient for Hyper {
    type Error = std::io::Error;

    async fn post_message(
        &self,
        _: Arc<str>,
        message: ClientJsonRpcMessage,
        session: Option<Arc<str>>,
        key: Option<String>,
        fields: Fields,
    ) -> Result<StreamableHttpPostResponse, Failed> {
        let answer = self.send("POST", session.as_deref(), key, fields, serde_json::to_vec(&message)?).await?;
        if answer.status() == 202 {
            return Ok(StreamableHttpPostResponse::Accepted);
        }
        let session = answer.headers().get("mcp-session-id").map(|id| id.to_str().unwrap().to_owned());
        if answer.headers()["content-type"] == "text/event-stream" {
            return Ok(StreamableHttpPostResponse::Sse(events(answer), session));
        }
        let answer = Answer::of(answer).await;
        Ok(StreamableHttpPostResponse::Json(serde_json::from_slice(&answer.body)?, session))
    }

    async fn delete_session(&self, _: Arc<str>, session: Arc<str>, key: Option<String>, fields: Fields) -> Result<(), Failed> {
        self.send("DELETE", Some(&session), key, fields, Vec::new()).await.map(drop)
    }

    async fn get_stream(
        &self,
        _: Arc<str>,
        session: Option<Arc<str>>,
        last: Option<String>,
        key: Option<String>,
        mut fields: Fields,
    ) -> Result<BoxStream<'static, Result<Sse, SseError>>, Failed> {
        if let Some(last) = last {
            fields.insert("last-event-id".parse().unwrap(), last.parse().unwrap());
        }
        Ok(events(self.send("GET", session.as_deref(), key, fields, Vec::new()).await?))
    }
}

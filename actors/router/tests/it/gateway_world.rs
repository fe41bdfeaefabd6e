//! Nodes with a gateway on a real socket, services behind it, and a client.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use horos_egress::{Egress, Options, Roots};
use horos_router::{
    Router, Taken,
    breaker::Breakers,
    gateway::Gateway,
    strategy::{Http, Strategies},
};
use horos_supervision::{
    Context, Exchange, Handle, Service, ServiceSpec, Supervisor, SupervisorHandle, SupervisorSpec, service,
    supervisor::Strategy as Restarts,
};
use horos_wire::{
    CallContext, Incarnation, Never, NodeId, TraceId,
    context::Claims,
    principal::{Principal, Proof},
    protocol,
    protocol::bytes::{Content, Refused},
};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, combinators::BoxBody};
use hyper::{body::Incoming, client::conn::http1 as client, server::conn::http1 as server};
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, TcpStream};
use tower::{Service as _, service_fn};

use super::world::row;

/// What these tests wait for at most.
pub(crate) const LONG: Duration = Duration::from_secs(30);

/// Whoever measures this process's memory holds it alone, and whoever needs much of it shares it: tests may run beside each other.
pub(crate) static MEMORY: tokio::sync::RwLock<()> = tokio::sync::RwLock::const_new(());

pub(crate) type OutBody = BoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;

/// Who asks, and by which key.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Who {}
/// Answers the same.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Say {
    pub(crate) text: String,
}
/// Answers so many letters.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Letters {
    pub(crate) count: usize,
}
/// Refuses.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Buy {}
/// Panics.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Fall {}
/// Never answers.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Hang {}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, thiserror::Error)]
pub(crate) enum OutOf {
    #[error("{left} left")]
    Stock { left: u32 },
}

protocol! {
    pub(crate) Desk = "gateway-desk" v1 {
        1 who: Who => String;
        2 say: Say => String;
        3 letters: Letters => String;
        4 buy: Buy => (), OutOf;
        5 fall: Fall => ();
        6 hang: Hang => ();
    }
}

struct Clerk;

impl Service for Clerk {
    type Protocol = Desk;
}
impl Handle<Who> for Clerk {
    async fn handle(&mut self, _: Who, cx: &Context) -> Result<String, Never> {
        let claims = cx.call().claims.as_deref().cloned().unwrap_or_default();
        let left = cx.remaining().map(|left| left.as_millis() / 100 * 100);
        Ok(format!("{:?} {:?} {} {left:?}", claims.user, claims.idempotency_key, cx.call().trace))
    }
}
impl Handle<Say> for Clerk {
    async fn handle(&mut self, say: Say, _: &Context) -> Result<String, Never> {
        Ok(say.text)
    }
}
impl Handle<Letters> for Clerk {
    async fn handle(&mut self, letters: Letters, _: &Context) -> Result<String, Never> {
        Ok("x".repeat(letters.count))
    }
}
impl Handle<Buy> for Clerk {
    async fn handle(&mut self, _: Buy, _: &Context) -> Result<(), OutOf> {
        Err(OutOf::Stock { left: 3 })
    }
}
impl Handle<Fall> for Clerk {
    async fn handle(&mut self, _: Fall, _: &Context) -> Result<(), Never> {
        panic!("asked to, with the password hunter2")
    }
}
impl Handle<Hang> for Clerk {
    async fn handle(&mut self, _: Hang, _: &Context) -> Result<(), Never> {
        std::future::pending().await
    }
}

/// What a service of bytes has seen.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Bytes that it has written, and read, so far.
    pub(crate) written: AtomicU64,
    pub(crate) read: AtomicU64,
    /// Its reader wanted no more.
    pub(crate) stopped: AtomicBool,
    /// What it read was not the whole; was.
    pub(crate) broken: AtomicBool,
    pub(crate) whole: AtomicBool,
}

/// Does what the media type says.
struct Press(Arc<Seen>);

impl Service for Press {
    type Protocol = protocol::bytes::ByteService;
}

/// A part of a body that costs nothing to make.
static PART: [u8; 65_536] = [b'.'; 65_536];

impl Handle<Content> for Press {
    async fn handle(&mut self, content: Content, cx: &Context) -> Result<Content, Refused> {
        let kind = content.content_type.clone().unwrap_or_default();
        let seen = self.0.clone();
        match &*kind {
            "x/refuse" => return Err(Refused { status: 409, reason: "no such picture".into() }),
            "x/huge" => return Ok(Content { body: vec![0; 17 << 20].into(), ..Content::default() }),
            "x/fall" => panic!("asked to"),
            "x/hang" => std::future::pending::<()>().await,
            _ => {}
        }
        // So many bytes, or without end.
        if let Some(count) = kind.strip_prefix("x/stream-") {
            let (mut left, breaks) = match count {
                "endless" => (u64::MAX, false),
                "broken" => (1 << 20, true),
                count => (count.parse().unwrap(), false),
            };
            let (stream, mut writer) = cx.bulk_to_caller(LONG).await.unwrap();
            tokio::spawn(async move {
                while left > 0 {
                    let part = Bytes::from_static(&PART[..PART.len().min(usize::try_from(left).unwrap_or(usize::MAX))]);
                    left -= part.len() as u64;
                    let length = part.len() as u64;
                    if writer.write(part).await.is_err() {
                        seen.stopped.store(true, Relaxed);
                        return;
                    }
                    seen.written.fetch_add(length, Relaxed);
                }
                if !breaks {
                    let _ = writer.finish().await;
                }
            });
            return Ok(Content { content_type: Some(kind), stream: Some(stream), ..Content::default() });
        }
        let Some(stream) = content.stream else {
            self.0.read.fetch_add(content.body.len() as u64, Relaxed);
            return Ok(Content { content_type: Some(kind), body: content.body, stream: None });
        };
        let mut reader = cx.claim(stream, LONG).await.unwrap();
        let (back, mut writer) = cx.bulk_to_caller(LONG).await.unwrap();
        tokio::spawn(async move {
            loop {
                match reader.chunk().await {
                    Ok(Some(part)) => {
                        seen.read.fetch_add(part.len() as u64, Relaxed);
                        if writer.write(part).await.is_err() {
                            seen.stopped.store(true, Relaxed);
                            return;
                        }
                    }
                    Ok(None) => {
                        seen.whole.store(true, Relaxed);
                        let _ = writer.finish().await;
                        return;
                    }
                    Err(_) => return seen.broken.store(true, Relaxed),
                }
            }
        });
        Ok(Content { content_type: Some(kind), body: Bytes::new(), stream: Some(back) })
    }
}

/// A node with a gateway on a socket: `desk` and `press` run on it.
pub(crate) struct Site {
    pub(crate) address: SocketAddr,
    pub(crate) router: Router,
    pub(crate) context: Context,
    pub(crate) seen: Arc<Seen>,
    pub(crate) secrets: tempfile::TempDir,
    _root: SupervisorHandle,
}

impl Site {
    /// One that may reach these addresses by HTTP.
    pub(crate) async fn new(reaches: &[SocketAddr]) -> Self {
        Self::on(TcpListener::bind("127.0.0.1:0").await.unwrap(), reaches).await
    }

    /// The same where `listener` listens.
    pub(crate) async fn on(listener: TcpListener, reaches: &[SocketAddr]) -> Self {
        let exchange = Exchange::new(NodeId::from_uri("spiffe://shop/bo/bo-secret-1").unwrap(), Incarnation(1));
        let (seen, secrets) = (Arc::new(Seen::default()), tempfile::tempdir().unwrap());
        let runtime = tokio::runtime::Handle::current();
        let spec = |name: &str| ServiceSpec::new(name.parse().unwrap());
        let press = {
            let seen = seen.clone();
            move |_: Context| {
                let press = Press(seen.clone());
                async move { Ok(press) }
            }
        };
        let children = vec![
            service(&exchange, &runtime, spec("desk"), |_: Context| async { Ok(Clerk) }).unwrap(),
            service(&exchange, &runtime, spec("press"), press).unwrap(),
        ];
        let root = SupervisorSpec::new("root", Restarts::OneForOne, children).intensity(1_000, Duration::from_secs(1));
        let root = Supervisor::start(root, None).await.unwrap();
        let egress = egress(reaches);
        let strategies = Strategies::builtin().register("http", Arc::new(Http::new(egress, secrets.path())));
        let router = Router::new(exchange.clone(), strategies, Breakers::new(None, Arc::new(|_, _| {})));
        let gateway = Gateway::new(router.clone(), &exchange);
        let address = serve_on(listener, move |request: Request<Incoming>| {
            let mut gateway = gateway.clone();
            async move { gateway.call(port(request)).await }
        });
        Self { address, router, context: Context::new(exchange, "test"), seen, secrets, _root: root }
    }

    /// Puts these routes in force: service, strategy, endpoint, configuration.
    pub(crate) fn routes(&self, rows: &[(&str, &str, &str, &str)]) -> Taken {
        self.router.take_up(rows.iter().map(|(service, strategy, endpoint, config)| row(service, strategy, endpoint, config)).collect())
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) async fn post(&self, path: &str, fields: &[(&str, &str)], body: impl Into<Bytes>) -> Answer {
        let mut request = Request::post(path);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        Answer::of(send(self.address, request.body(whole(body)).unwrap()).await).await
    }

    /// In JSON.
    pub(crate) async fn ask(&self, path: &str, body: &str) -> Answer {
        self.post(path, &[("content-type", "application/json")], body.to_owned()).await
    }
}

pub(crate) fn egress(reaches: &[SocketAddr]) -> Egress {
    let trusted = reaches.iter().map(|address| address.to_string().parse().unwrap()).collect();
    Egress::new(Options { trusted, roots: Roots::Files, ..Options::default() }).unwrap()
}

/// What the port before a gateway does, as far as it matters here: who asks, for how long, and what joins it all.
fn port(mut request: Request<Incoming>) -> Request<Incoming> {
    let field = |name: &str| request.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
    let principal = field("x-scopes").map(|scopes| {
        let scopes = scopes.split(',').filter(|scope| !scope.is_empty()).map(|scope| scope.parse().unwrap()).collect();
        Arc::new(Principal { id: "key_1".into(), proof: Proof::Key { owner: "o".into() }, scopes, per_minute: None })
    });
    let seconds: f64 = field("request-timeout").map_or(30.0, |text| text.parse().unwrap());
    let trace = field("traceparent").map_or(TraceId(1), |text| text[3..35].parse().unwrap());
    let claims = Claims {
        request: Some("req_1".into()),
        user: field("x-user").map(Into::into),
        idempotency_key: field("idempotency-key").map(Into::into),
        ..Claims::default()
    };
    let deadline = Some(Instant::now() + Duration::from_secs_f64(seconds));
    request.extensions_mut().insert(CallContext { trace, deadline, hops: 0, claims: Some(Arc::new(claims)) });
    if let Some(principal) = principal {
        request.extensions_mut().insert(principal);
    }
    request
}

/// Serves HTTP/1.1 on a port of its own, until the test ends.
pub(crate) async fn serve<F, B>(answer: impl Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static) -> SocketAddr
where
    F: Future<Output = Result<Response<B>, Infallible>> + Send + 'static,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    serve_on(TcpListener::bind("127.0.0.1:0").await.unwrap(), answer)
}

fn serve_on<F, B>(listener: TcpListener, answer: impl Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static) -> SocketAddr
where
    F: Future<Output = Result<Response<B>, Infallible>> + Send + 'static,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let service = TowerToHyperService::new(service_fn(answer.clone()));
            // A client that goes is no error of this side.
            tokio::spawn(async move { drop(server::Builder::new().serve_connection(TokioIo::new(socket), service).await) });
        }
    });
    address
}

pub(crate) fn whole(body: impl Into<Bytes>) -> OutBody {
    Full::new(body.into()).map_err(|never| match never {}).boxed()
}

/// Sends `request` on a connection of its own, and gives the answer as soon as its head is there.
pub(crate) async fn send(address: SocketAddr, mut request: Request<OutBody>) -> Response<Incoming> {
    request.headers_mut().insert("host", address.to_string().parse().unwrap());
    let socket = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) = client::handshake(TokioIo::new(socket)).await.unwrap();
    tokio::spawn(async move { drop(connection.await) });
    tokio::time::timeout(LONG, sender.send_request(request)).await.expect("an answer in time").unwrap()
}

/// An answer with its whole body.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) async fn of(response: Response<Incoming>) -> Self {
        let (parts, body) = response.into_parts();
        Self { status: parts.status, headers: parts.headers, body: body.collect().await.unwrap().to_bytes() }
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("no JSON: {self:?}"))
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    /// Status, the last word of the problem's type, and its effect.
    pub(crate) fn problem(&self) -> (u16, String, String) {
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self:?}");
        let json = self.json();
        assert_eq!(json["status"], self.status.as_u16());
        assert!(!self.text().contains("secret") && !self.text().contains("hunter2"), "{json}");
        let kind = json["type"].as_str().unwrap().strip_prefix(horos_router::gateway::problem::TYPES).unwrap().to_owned();
        (self.status.as_u16(), kind, json["effect"].as_str().unwrap().to_owned())
    }
}

/// Polls a state until it is as it should be; fails with the last one seen.
pub(crate) async fn eventually<T: std::fmt::Debug>(what: &str, mut look: impl FnMut() -> (bool, T)) {
    let end = Instant::now() + LONG;
    loop {
        let (is, seen) = look();
        if is {
            return;
        }
        assert!(Instant::now() < end, "{what}: last seen {seen:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The memory of this process that is in use, in MiB.
pub(crate) fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok()).unwrap() * 4 / 1024
}

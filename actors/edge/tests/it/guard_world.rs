//! An application without a port: requests go in and answers come out, and nothing between is a socket.

use std::{
    collections::HashMap,
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{FutureExt as _, future::BoxFuture};
use horos_edge::{
    Access, App, AppParts, Authenticator, Body, Client, Conditions, Config, Credential, Drain, Limits, Maintenance, Metrics, Mount, Peer,
    Plane, Version,
};
use horos_wire::{
    CallContext,
    principal::{Denied, Principal, Proof},
};
use http::{HeaderMap, Method, Request, Response, StatusCode, request::Builder};
use http_body_util::BodyExt as _;
use tokio::sync::Semaphore;
use tower::service_fn;

/// Grants `stock`.
pub(crate) const KEY: &str = "hk_0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
/// Grants `metrics` and `work`.
pub(crate) const OTHER_KEY: &str = "hk_fedcba9876543210fedcba9876543210fedcba9876543210fedcba9876543210";
/// Proves Ana, and grants `stock`.
pub(crate) const TOKEN: &str = "eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiJhbmEifQ.c2lnbmF0dXJl";

/// Who knows a few keys, and counts how often it is asked.
#[derive(Default)]
pub(crate) struct Keys {
    pub(crate) known: HashMap<String, Result<Arc<Principal>, Denied>>,
    pub(crate) asked: AtomicUsize,
    /// How often it had to look.
    pub(crate) looked: AtomicUsize,
    /// Answers from memory, and without waiting.
    pub(crate) remembers: bool,
    /// Looking takes a permit, where there is one.
    pub(crate) slow: Option<Arc<Semaphore>>,
    pub(crate) panics: bool,
}

impl Keys {
    pub(crate) fn usual() -> Self {
        let mut keys = Self { remembers: true, ..Self::default() };
        keys.add(KEY, principal("key_1", Proof::Key { owner: "shop".into() }, &["stock"]));
        keys.add(OTHER_KEY, principal("key_2", Proof::Key { owner: "ops".into() }, &["metrics", "work"]));
        let proof = Proof::Token { user: "ana".into(), token: TOKEN.into() };
        keys.add(TOKEN, principal("https://issuer.example/ana", proof, &["stock"]));
        keys
    }

    pub(crate) fn add(&mut self, text: &str, principal: Principal) {
        self.known.insert(text.to_owned(), Ok(Arc::new(principal)));
    }

    pub(crate) fn deny(&mut self, text: &str, why: Denied) {
        self.known.insert(text.to_owned(), Err(why));
    }

    fn tell(&self, credential: &Credential) -> Result<Arc<Principal>, Denied> {
        let (Credential::Key(text) | Credential::Token(text)) = credential;
        self.known.get(&**text).cloned().unwrap_or(Err(Denied::Unknown))
    }
}

pub(crate) fn principal(id: &str, proof: Proof, scopes: &[&str]) -> Principal {
    let scopes = scopes.iter().map(|scope| scope.parse().unwrap()).collect();
    Principal { id: id.into(), proof, scopes, per_minute: None }
}

impl Authenticator for Keys {
    fn recall(&self, credential: &Credential) -> Option<Result<Arc<Principal>, Denied>> {
        self.asked.fetch_add(1, Relaxed);
        assert!(!self.panics, "the text of this panic holds {KEY}");
        self.remembers.then(|| self.tell(credential))
    }

    fn verify(&self, credential: Credential) -> BoxFuture<'static, Result<Arc<Principal>, Denied>> {
        self.looked.fetch_add(1, Relaxed);
        let (told, slow) = (self.tell(&credential), self.slow.clone());
        async move {
            if let Some(slow) = slow {
                slow.acquire().await.unwrap().forget();
            }
            told
        }
        .boxed()
    }
}

/// An application and all that it shares with others.
pub(crate) struct Site {
    pub(crate) app: App,
    pub(crate) keys: Arc<Keys>,
    pub(crate) metrics: Metrics,
    pub(crate) conditions: Conditions,
    pub(crate) maintenance: Maintenance,
    pub(crate) drain: Drain,
    /// How many requests reached a service.
    pub(crate) served: Arc<AtomicUsize>,
}

/// No limits on rates: those that are tested are set by their tests.
pub(crate) fn calm() -> Config {
    Config { limits: Limits { per_address: 0, per_identity: 0, ..Limits::default() }, ..Config::default() }
}

/// An answer with its whole body.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("no JSON: {self:?}"))
    }

    /// The code of the problem that it must be.
    pub(crate) fn code(&self) -> String {
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self:?}");
        let json = self.json();
        assert_eq!(json["status"], self.status.as_u16());
        assert_eq!(json["request_id"], self.header("x-request-id").unwrap());
        json["code"].as_str().unwrap().to_owned()
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

impl Site {
    pub(crate) fn new() -> Self {
        Self::with(calm(), Keys::usual())
    }

    pub(crate) fn with(config: Config, keys: Keys) -> Self {
        let (conditions, keys) = (Conditions::default(), Arc::new(keys));
        let (metrics, drain) = (Metrics::default(), Drain::default());
        let maintenance = Maintenance::new(conditions.clone());
        let served = Arc::new(AtomicUsize::new(0));
        let parts = AppParts {
            authenticator: keys.clone(),
            conditions: conditions.clone(),
            maintenance: maintenance.clone(),
            drain: drain.clone(),
            metrics: metrics.clone(),
            h3: vec![(Plane::Both, 8443)],
        };
        let scope = |scope: &str| Access::Scope(scope.parse().unwrap());
        let mounts = [
            ("/open", Access::Public, Plane::Both),
            ("/each", Access::PerRequest, Plane::Both),
            ("/stock", scope("stock"), Plane::Public),
            ("/admin", scope("work"), Plane::Cluster),
        ];
        let mut mounts: Vec<Mount> = mounts.map(|(prefix, access, plane)| mount(prefix, access, plane, &served)).into();
        mounts.push(mount("/upload", Access::Public, Plane::Both, &served).with_body_limit(100));
        mounts.push(mount("/slow", Access::Public, Plane::Both, &served).with_answer_limit(Duration::from_secs(120)));
        mounts.push(mount("/told", Access::PerRequest, Plane::Both, &served).described_at("/.well-known/it"));
        let app = App::new(Arc::new(config), mounts, parts).unwrap();
        Self { app, keys, metrics, conditions, maintenance, drain, served }
    }

    pub(crate) async fn ask(&self, request: Request<Body>) -> Answer {
        self.ask_from(request, peer()).await
    }

    pub(crate) async fn ask_from(&self, request: Request<Body>, peer: Peer) -> Answer {
        let (parts, body) = self.app.handle(request, peer).await.into_parts();
        Answer { status: parts.status, headers: parts.headers, body: body.collect().await.unwrap().to_bytes() }
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.ask(get(path).body(Body::empty()).unwrap()).await
    }

    pub(crate) async fn get_with(&self, path: &str, fields: &[(&str, &str)]) -> Answer {
        self.ask(with(get(path), fields).body(Body::empty()).unwrap()).await
    }

    pub(crate) fn served(&self) -> usize {
        self.served.load(Relaxed)
    }
}

pub(crate) fn peer() -> Peer {
    peer_at("192.0.2.1")
}

pub(crate) fn peer_at(address: &str) -> Peer {
    let address = SocketAddr::new(address.parse().unwrap(), 40_000);
    Peer { address, version: Version::Http1, plane: Plane::Both, tls: true }
}

pub(crate) fn get(path: &str) -> Builder {
    Request::builder().uri(path).header("host", "shop.example.org")
}

pub(crate) fn method(method: Method, path: &str) -> Builder {
    get(path).method(method)
}

pub(crate) fn with(mut request: Builder, fields: &[(&str, &str)]) -> Builder {
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request
}

fn mount(prefix: &str, access: Access, plane: Plane, served: &Arc<AtomicUsize>) -> Mount {
    let served = served.clone();
    let service = service_fn(move |request| {
        served.fetch_add(1, Relaxed);
        serve(request).map(Ok::<_, Infallible>)
    });
    Mount::new(prefix, access, plane, service).unwrap()
}

async fn serve(request: Request<Body>) -> Response<Body> {
    let path = request.uri().path().to_owned();
    let answer = Response::builder();
    let made = match &*path {
        "/panic" => panic!("the text of this panic holds {KEY}"),
        "/wait" => std::future::pending().await,
        "/length" => match request.into_body().collect().await {
            Ok(body) => answer.body(Body::from(body.to_bytes().len().to_string())),
            // As a service does that takes the error for a fault of its own.
            Err(_) => answer.status(500).body(Body::from("it broke")),
        },
        "/fine" => {
            let _whatever = request.into_body().collect().await;
            answer.body(Body::from("fine"))
        }
        "/text" => answer.header("content-type", "text/plain").header("etag", "\"1\"").body(Body::from("lorem ipsum ".repeat(500))),
        "/page" => answer.header("content-type", "text/html").header("x-content-type-options", "own").body(Body::from("<p>")),
        "/stream" => {
            let parts = ["one", "two"].map(|part| Ok::<_, Infallible>(Bytes::from(part)));
            answer.body(Body::from_stream(futures_util::stream::iter(parts)))
        }
        "/unauthenticated" => answer.status(401).body(Body::empty()),
        "/forbidden" => answer.status(403).body(Body::empty()),
        "/own-words" => answer.status(403).header("content-type", "text/plain").body(Body::from("not you")),
        "/nothing" => answer.status(404).body(Body::empty()),
        "/told" => answer.status(409).header("content-type", "text/plain").body(Body::from("taken")),
        "/fixed" if *request.method() != Method::GET => answer.status(405).header("allow", "GET, HEAD").body(Body::empty()),
        _ => answer.header("content-type", "application/json").body(Body::from(seen(&request).to_string())),
    };
    made.unwrap()
}

/// All that a service sees of a request.
fn seen(request: &Request<Body>) -> serde_json::Value {
    let headers: HashMap<&str, &str> = request.headers().iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
    let context: &CallContext = request.extensions().get().unwrap();
    let claims = context.claims.as_deref().unwrap();
    let left = context.deadline.unwrap().saturating_duration_since(tokio::time::Instant::now().into_std());
    let principal: Option<&Arc<Principal>> = request.extensions().get();
    let Client(client) = request.extensions().get().unwrap();
    serde_json::json!({
        "method": request.method().as_str(),
        "uri": request.uri().to_string(),
        "headers": headers,
        "trace": context.trace.to_string(),
        "left_ms": u64::try_from((left + Duration::from_micros(500)).as_millis()).unwrap(),
        "request": claims.request,
        "user": claims.user,
        "token": claims.token,
        "tenant": claims.tenant,
        "idempotency_key": claims.idempotency_key,
        "principal": principal.map(|principal| &principal.id),
        "client": client,
    })
}

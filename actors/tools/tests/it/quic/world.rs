//! A node's port with the door of MCP on it, a handler whose tools the tests hold in their hands, and clients of all manners.

#![expect(deprecated, reason = "what clients of the older protocol still use")]

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::future::BoxFuture;
use horos_link::{
    Config, Endpoint, Parts,
    identity::{authority::Authority, certificate::Validity, request},
    tls::{self, Expected, SERVER_NAME, Tls},
};
use horos_supervision::{Exchange, Strategy, Supervisor, SupervisorHandle, SupervisorSpec};
use horos_tools::{
    Caller, Credential, Verify, Who,
    quic::{self, Door},
};
use horos_wire::{
    Incarnation, NodeId, Role,
    policy::Policy,
    principal::{Denied, Principal, Proof},
};
use jiff::Timestamp;
use parking_lot::Mutex;
use quinn::{Connection, ConnectionError, crypto::rustls::QuicClientConfig};
use rmcp::{
    ErrorData, RoleClient, RoleServer, ServerHandler, ServiceExt as _,
    model::{
        CallToolRequestParams, CallToolResponse, CallToolResult, ContentBlock, ListToolsResult, LoggingLevel, LoggingMessageNotification,
        LoggingMessageNotificationParam, PaginatedRequestParams, ProgressNotificationParam, ServerCapabilities, ServerConfig,
        ServerNotification, SubscriptionFilter, Tool,
    },
    service::{OriginatingRequestId, RequestContext, RunningService, SubscriptionContext},
};
use rustls::{
    DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    sync::{Semaphore, watch},
    time::timeout,
};

use super::raw::Raw;

pub(crate) const SOON: Duration = Duration::from_secs(10);
/// A key that opens.
pub(crate) const KEY: &str = "hk_good.0123456789";

/// The authority and the holders of a cluster.
pub(crate) struct Cluster {
    directory: TempDir,
    pub(crate) authority: Authority,
}

impl Cluster {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let validity = Validity::days(Timestamp::now(), 365);
        let authority = Authority::create(&directory.path().join("ca"), &"shop".parse().unwrap(), validity).unwrap();
        Self { directory, authority }
    }

    pub(crate) fn tls(&self, role: Role, name: &str) -> Arc<Tls> {
        let id = NodeId { cluster: "shop".parse().unwrap(), role, name: name.parse().unwrap() };
        let directory = self.directory.path().join(name);
        if !directory.exists() {
            let csr = std::fs::read_to_string(request::create(&directory, &id).unwrap()).unwrap();
            let (certificate, _) = self.authority.sign(&csr, &id, Validity::usual(Timestamp::now(), &id)).unwrap();
            request::install(&directory, &certificate, self.authority.certificate_pem(), Timestamp::now()).unwrap();
        }
        Arc::new(Tls::open(&directory, Timestamp::now()).unwrap())
    }
}

/// Knows one key, until it is taken away.
pub(crate) struct Keys {
    pub(crate) says: Mutex<Result<(), Denied>>,
    pub(crate) asked: AtomicUsize,
    /// Told of what was taken away.
    pub(crate) changes: watch::Sender<u64>,
}

impl Keys {
    /// Says so from now on, and tells everybody.
    pub(crate) fn tell(&self, says: Result<(), Denied>) {
        *self.says.lock() = says;
        self.changes.send_modify(|count| *count += 1);
    }
}

impl Verify for Keys {
    fn verify(&self, credential: &Credential) -> BoxFuture<'static, Result<Arc<Principal>, Denied>> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let good = credential.0.starts_with("hk_good");
        let said = *self.says.lock();
        let principal = Principal {
            // The part of a key that is no secret.
            id: credential.0.split('.').next().unwrap_or_default().into(),
            proof: Proof::Key { owner: "shop".into() },
            scopes: Box::default(),
            per_minute: None,
        };
        Box::pin(async move { if good { said.map(|()| Arc::new(principal)) } else { Err(Denied::Unknown) } })
    }

    fn changes(&self) -> Option<watch::Receiver<u64>> {
        Some(self.changes.subscribe())
    }
}

/// What the tests hold of the handler.
pub(crate) struct Hand {
    /// `gate` waits for a permit.
    pub(crate) gate: Semaphore,
    /// Calls of `gate` that wait.
    pub(crate) waiting: watch::Sender<usize>,
    /// Calls that were cancelled.
    pub(crate) cancelled: watch::Sender<usize>,
    /// Everything that reached a handler, as text.
    pub(crate) seen: Mutex<Vec<String>>,
}

#[derive(Clone)]
pub(crate) struct Fixture(pub(crate) Arc<Hand>);

impl ServerHandler for Fixture {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(ServerCapabilities::builder().enable_tools().enable_tool_list_changed().enable_logging().build())
    }

    async fn list_tools(
        &self,
        _: Option<PaginatedRequestParams>,
        context: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        self.0.seen.lock().push(format!("{context:?}"));
        assert!(Caller::of(&context.extensions).is_some(), "a request without a caller");
        let schema = Arc::new(json!({"type": "object"}).as_object().unwrap().clone());
        Ok(ListToolsResult::with_all_items(
            ["echo", "gate", "fill", "who", "count", "cut"].into_iter().map(|name| Tool::new(name, "A tool.", schema.clone())).collect(),
        ))
    }

    fn accepted_subscription_filter(&self, _: &SubscriptionFilter) -> Option<SubscriptionFilter> {
        Some(SubscriptionFilter::builder().tools_list_changed().build())
    }

    /// Tells of one change, and ends at a permit of `gate`.
    async fn listen(&self, context: SubscriptionContext) -> Result<(), ErrorData> {
        let _waits = Waits::new(&self.0.waiting);
        context.sink().notify_tool_list_changed().await.unwrap();
        tokio::select! {
            permit = self.0.gate.acquire() => permit.unwrap().forget(),
            () = context.cancelled() => self.0.cancelled.send_modify(|count| *count += 1),
        }
        Ok(())
    }

    async fn call_tool(&self, request: CallToolRequestParams, context: RequestContext<RoleServer>) -> Result<CallToolResponse, ErrorData> {
        self.0.seen.lock().push(format!("{request:?} {context:?}"));
        let caller = Caller::of(&context.extensions).expect("a request without a caller");
        let arguments = request.arguments.unwrap_or_default();
        let number = |name: &str| arguments.get(name).and_then(Value::as_u64).unwrap_or_default();
        Ok(match &*request.name {
            "echo" => CallToolResult::structured(Value::Object(arguments)),
            "gate" => {
                let hand = &self.0;
                let _waits = Waits::new(&hand.waiting);
                tokio::select! {
                    permit = hand.gate.acquire() => permit.unwrap().forget(),
                    () = context.ct.cancelled() => hand.cancelled.send_modify(|count| *count += 1),
                }
                CallToolResult::success(vec![ContentBlock::text("through")])
            }
            "ask" => {
                let roots = context.peer.list_roots().await;
                let roots = roots.map_or_else(|error| error.to_string(), |roots| roots.roots.len().to_string());
                CallToolResult::success(vec![ContentBlock::text(roots)])
            }
            // Does not look at whether anybody still wants it.
            "deaf" => {
                let _waits = Waits::new(&self.0.waiting);
                self.0.gate.acquire().await.unwrap().forget();
                CallToolResult::success(vec![ContentBlock::text("through")])
            }
            "fill" => CallToolResult::success(vec![ContentBlock::text("x".repeat(number("bytes") as usize))]),
            "who" => {
                let who = match &caller.who {
                    Who::Node(node) => node.to_uri(),
                    Who::Principal(principal) => principal.id.to_string(),
                };
                CallToolResult::success(vec![ContentBlock::text(who)])
            }
            "count" => {
                let token = context.meta.get_progress_token().expect("a progress token");
                for step in 1..=number("to") {
                    let param = ProgressNotificationParam::new(token.clone(), step as f64);
                    context.peer.notify_progress(param).await.unwrap();
                    let mut said = LoggingMessageNotification::new(LoggingMessageNotificationParam::new(LoggingLevel::Info, json!(step)));
                    said.extensions.insert(OriginatingRequestId(context.id.clone()));
                    context.peer.send_notification(ServerNotification::LoggingMessageNotification(said)).await.unwrap();
                }
                context.peer.notify_tool_list_changed().await.unwrap();
                CallToolResult::success(vec![ContentBlock::text("counted")])
            }
            _ => return Err(ErrorData::invalid_params("there is no such tool", None)),
        }
        .into())
    }
}

/// Counts for as long as it lives.
struct Waits<'a>(&'a watch::Sender<usize>);

impl<'a> Waits<'a> {
    fn new(count: &'a watch::Sender<usize>) -> Self {
        count.send_modify(|count| *count += 1);
        Self(count)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

/// Waits until a count is what it should be.
pub(crate) async fn counts(count: &watch::Sender<usize>, to: usize) {
    let mut counted = count.subscribe();
    let seen = timeout(SOON, counted.wait_for(|count| *count == to)).await.map(drop);
    assert!(seen.is_ok(), "{} and not {to}", *count.borrow());
}

/// A node with a door.
pub(crate) struct Node {
    pub(crate) cluster: Cluster,
    pub(crate) endpoint: Endpoint,
    pub(crate) door: Door,
    pub(crate) keys: Arc<Keys>,
    pub(crate) tls: Arc<Tls>,
    pub(crate) hand: Arc<Hand>,
    root: SupervisorHandle,
}

impl Node {
    pub(crate) async fn new() -> Self {
        Self::with(|_| {}).await
    }

    pub(crate) async fn with(adjust: impl FnOnce(&mut quic::Options)) -> Self {
        let cluster = Cluster::new();
        let tls = cluster.tls(Role::Bo, "bo-1");
        let keys = Arc::new(Keys { says: Mutex::new(Ok(())), asked: AtomicUsize::new(0), changes: watch::Sender::new(0) });
        let hand = Arc::new(Hand {
            gate: Semaphore::new(0),
            waiting: watch::Sender::new(0),
            cancelled: watch::Sender::new(0),
            seen: Mutex::default(),
        });
        let mut options = quic::Options::new(tls.clone(), keys.clone());
        adjust(&mut options);
        let fixture = Fixture(hand.clone());
        let door = Door::new(move || fixture.clone(), options);
        let exchange = Exchange::new(tls.credentials().id().clone(), Incarnation(1));
        let root = Supervisor::start(SupervisorSpec::new("root", Strategy::OneForOne, Vec::new()), None).await.unwrap();
        let parts = Parts { exchange, policy: Arc::new(Policy::builtin()), tls: tls.clone(), release: "test", public: None };
        let mut config = Config::new("127.0.0.1:0".parse().unwrap());
        config.gossip = false;
        config.admission.handshakes_per_address = 1024;
        let endpoint = Endpoint::open(config, parts, door.handlers(), root.clone()).unwrap();
        for child in endpoint.children() {
            root.add_child(child).await.unwrap();
        }
        Self { cluster, endpoint, door, keys, tls, hand, root }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.endpoint.local_addr().unwrap()
    }

    pub(crate) async fn stop(self) {
        self.endpoint.close(Duration::from_secs(1)).await;
        self.root.stop().await;
    }

    /// A connection of somebody without a certificate.
    pub(crate) async fn stranger(&self) -> Connection {
        dial(&dialer(), self.address(), client(b"mcp-quic-v1", None)).await.unwrap()
    }

    /// A connection of a person or a node.
    pub(crate) async fn holder(&self, role: Role, name: &str) -> Connection {
        let tls = self.cluster.tls(role, name);
        dial(&dialer(), self.address(), client(b"horos-mcp-v1", Some(&tls))).await.unwrap()
    }

    /// A client with a key, by rmcp.
    pub(crate) async fn client(&self) -> RunningService<RoleClient, ()> {
        self.client_with(quic::DialOptions::default()).await
    }

    pub(crate) async fn client_with(&self, options: quic::DialOptions) -> RunningService<RoleClient, ()> {
        let options = quic::DialOptions { credential: Some(Credential(KEY.into())), ..options };
        let transport = quic::dial(self.stranger().await, options).await.unwrap();
        timeout(SOON, ().serve(transport)).await.expect("a session begins").unwrap()
    }

    /// A session in which lines are written by hand, with a key.
    pub(crate) async fn raw(&self) -> Raw {
        let mut raw = Raw::open(self.stranger().await).await;
        raw.begin(KEY, false).await;
        raw
    }
}

/// An endpoint that dials.
pub(crate) fn dialer() -> quinn::Endpoint {
    let socket = horos_link::socket("127.0.0.1:0".parse().unwrap()).unwrap();
    quinn::Endpoint::new(quinn::EndpointConfig::default(), None, socket, Arc::new(quinn::TokioRuntime)).unwrap()
}

pub(crate) async fn dial(endpoint: &quinn::Endpoint, to: SocketAddr, config: quinn::ClientConfig) -> Result<Connection, ConnectionError> {
    timeout(SOON, endpoint.connect_with(config, to, SERVER_NAME).unwrap()).await.expect("the handshake ends")
}

/// A client that shows a certificate, or none.
pub(crate) fn client(alpn: &[u8], shown: Option<&Tls>) -> quinn::ClientConfig {
    let mut config = match shown {
        Some(tls) => tls.client(&[alpn], Expected::AnyNode),
        None => {
            let mut config = rustls::ClientConfig::builder_with_provider(tls::provider().clone())
                .with_protocol_versions(&[&rustls::version::TLS13])
                .unwrap()
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(Anyone))
                .with_no_client_auth();
            config.alpn_protocols = vec![alpn.to_vec()];
            quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(config).unwrap()))
        }
    };
    config.transport_config(Arc::new(quic::transport_config()));
    config
}

/// Believes any server: what is tested here is the server.
#[derive(Debug)]
struct Anyone;

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2".into()))
    }
    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        tls::provider().signature_verification_algorithms.supported_schemes()
    }
}

/// Polls a state until it is as it should be; fails with the last one seen.
pub(crate) async fn eventually<T>(what: &str, mut look: impl FnMut() -> Result<T, String>) -> T {
    let end = Instant::now() + SOON;
    loop {
        match look() {
            Ok(value) => return value,
            Err(seen) => assert!(Instant::now() < end, "{what}: not in time; last seen: {seen}"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// How much to do: `normal` on every change, `full` with `HOROS_TEST_FULL=1`, which does what the promise names.
pub(crate) fn scale<T>(normal: T, full: T) -> T {
    if std::env::var_os("HOROS_TEST_FULL").is_some_and(|value| value == "1") { full } else { normal }
}

pub(crate) fn text(result: &CallToolResult) -> &str {
    result.content[0].as_text().map(|text| text.text.as_str()).unwrap()
}

//! Nodes for tests: an authority, certificates, endpoints on loopback, and a service to call.

use std::{
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use horos_link::{
    Config, Endpoint, Handlers, Parts,
    identity::{authority::Authority, certificate::Validity, request},
    tls::Tls,
};
use horos_supervision::{
    ChildSpec, Context, Exchange, Handle, Service, ServiceSpec, Strategy, Supervisor, SupervisorHandle, SupervisorSpec, service,
};
use horos_wire::{
    Incarnation, Never, NodeId, Role,
    policy::{Allowed, Policy, Rule},
    protocol,
};
use jiff::Timestamp;
use rustls::server::ResolvesServerCert;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Echo {
    #[serde(with = "serde_bytes")]
    #[schemars(with = "Vec<u8>")]
    pub(crate) body: Vec<u8>,
}
#[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Echoed {
    #[serde(with = "serde_bytes")]
    #[schemars(with = "Vec<u8>")]
    pub(crate) body: Vec<u8>,
}
/// Appends to the log; numbers are to arrive in order.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Log {
    pub(crate) number: u64,
    #[serde(with = "serde_bytes")]
    #[schemars(with = "Vec<u8>")]
    pub(crate) padding: Vec<u8>,
}
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Logged {}
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Refuse {
    pub(crate) why: String,
}
#[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema, thiserror::Error)]
#[error("refused: {why}")]
pub(crate) struct Refused {
    pub(crate) why: String,
}
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Panic {}
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Hang {}
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Secret {}
/// Answers with so many bytes.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Fill {
    pub(crate) size: u64,
}
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Take {
    pub(crate) body: horos_wire::Bulk,
}

protocol! {
    pub(crate) Test = "test" v1 {
        1 echo: Echo => Echoed;
        2 log: Log => ();
        3 logged: Logged => Vec<u64>;
        4 refuse: Refuse => (), Refused;
        5 panic: Panic => ();
        6 hang: Hang => ();
        7 secret: Secret => ();
        8 take: Take => u64;
        9 fill: Fill => Echoed;
    }
}

#[derive(Default)]
pub(crate) struct Tester {
    log: Vec<u64>,
    /// How long a [`Log`] takes.
    pause: Duration,
}

impl Service for Tester {
    type Protocol = Test;
}
impl Handle<Echo> for Tester {
    async fn handle(&mut self, echo: Echo, _: &Context) -> Result<Echoed, Never> {
        Ok(Echoed { body: echo.body })
    }
}
impl Handle<Log> for Tester {
    async fn handle(&mut self, log: Log, _: &Context) -> Result<(), Never> {
        if !self.pause.is_zero() {
            tokio::time::sleep(self.pause).await;
        }
        self.log.push(log.number);
        Ok(())
    }
}
impl Handle<Logged> for Tester {
    async fn handle(&mut self, _: Logged, _: &Context) -> Result<Vec<u64>, Never> {
        Ok(std::mem::take(&mut self.log))
    }
}
impl Handle<Refuse> for Tester {
    async fn handle(&mut self, refuse: Refuse, _: &Context) -> Result<(), Refused> {
        Err(Refused { why: refuse.why })
    }
}
impl Handle<Panic> for Tester {
    async fn handle(&mut self, _: Panic, _: &Context) -> Result<(), Never> {
        panic!("asked to")
    }
}
impl Handle<Hang> for Tester {
    async fn handle(&mut self, _: Hang, _: &Context) -> Result<(), Never> {
        std::future::pending().await
    }
}
impl Handle<Secret> for Tester {
    async fn handle(&mut self, _: Secret, _: &Context) -> Result<(), Never> {
        Ok(())
    }
}
impl Handle<Fill> for Tester {
    async fn handle(&mut self, fill: Fill, _: &Context) -> Result<Echoed, Never> {
        Ok(Echoed { body: vec![7; fill.size as usize] })
    }
}
impl Handle<Take> for Tester {
    async fn handle(&mut self, take: Take, cx: &Context) -> Result<u64, Never> {
        let mut body = cx.claim(take.body, Duration::from_secs(5)).await.unwrap();
        let mut size = 0;
        while let Some(chunk) = body.chunk().await.unwrap() {
            size += chunk.len() as u64;
        }
        Ok(size)
    }
}

pub(crate) struct Cluster {
    pub(crate) directory: TempDir,
    pub(crate) authority: Authority,
}

/// What a node's port serves beside the nodes.
#[derive(Default)]
pub(crate) struct Beside {
    pub(crate) socket: Option<UdpSocket>,
    pub(crate) handlers: Handlers,
    pub(crate) public: Option<Arc<dyn ResolvesServerCert>>,
}

static LIVES: AtomicU64 = AtomicU64::new(1);

impl Cluster {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let authority =
            Authority::create(&directory.path().join("ca"), &"shop".parse().unwrap(), Validity::days(Timestamp::now(), 365)).unwrap();
        Self { directory, authority }
    }

    pub(crate) fn tls(&self, role: Role, name: &str) -> Arc<Tls> {
        let id = NodeId { cluster: "shop".parse().unwrap(), role, name: name.parse().unwrap() };
        let directory = self.directory.path().join(name);
        if !directory.exists() {
            let csr = request::create(&directory, &id).unwrap();
            let csr = std::fs::read_to_string(csr).unwrap();
            let (certificate, _) = self.authority.sign(&csr, &id, Validity::usual(Timestamp::now(), &id)).unwrap();
            request::install(&directory, &certificate, self.authority.certificate_pem(), Timestamp::now()).unwrap();
        }
        Arc::new(Tls::open(&directory, Timestamp::now()).unwrap())
    }

    pub(crate) async fn node(&self, role: Role, name: &str, seeds: Vec<SocketAddr>) -> Node {
        self.node_with(role, name, |config| config.seeds = seeds).await
    }

    pub(crate) async fn node_with(&self, role: Role, name: &str, adjust: impl FnOnce(&mut Config)) -> Node {
        self.node_beside(role, name, Beside::default(), adjust).await
    }

    /// A node whose port serves other protocols, too.
    pub(crate) async fn node_beside(&self, role: Role, name: &str, beside: Beside, adjust: impl FnOnce(&mut Config)) -> Node {
        let tls = self.tls(role, name);
        let incarnation = Incarnation(LIVES.fetch_add(1, Ordering::Relaxed));
        let exchange = Exchange::new(tls.credentials().id().clone(), incarnation);
        let root = Supervisor::start(SupervisorSpec::new("root", Strategy::OneForOne, Vec::new()), None).await.unwrap();
        let parts =
            Parts { exchange: exchange.clone(), policy: Arc::new(policy()), tls: tls.clone(), release: "test", public: beside.public };
        let mut config = Config::new("127.0.0.1:0".parse().unwrap());
        adjust(&mut config);
        let endpoint = match beside.socket {
            Some(socket) => Endpoint::open_on(socket, config, parts, beside.handlers, root.clone()),
            None => Endpoint::open(config, parts, beside.handlers, root.clone()),
        };
        let endpoint = endpoint.unwrap();
        for child in endpoint.children() {
            root.add_child(child).await.unwrap();
        }
        endpoint.peers().set_ready(true);
        Node { exchange, root, endpoint, tls }
    }
}

fn policy() -> Policy {
    let mut policy = Policy::builtin();
    policy.declare::<Test>();
    policy.offer(Role::Bo, "back").unwrap();
    policy.allow(Rule { caller: Role::Fo, callee: Role::Bo, protocol: "back".into(), methods: Allowed::All }).unwrap();
    for role in [Role::Bo, Role::Fo] {
        policy.offer(role, "test").unwrap();
    }
    for (caller, callee) in [(Role::Fo, Role::Bo), (Role::Bo, Role::Bo), (Role::Fo, Role::Fo), (Role::Bo, Role::Fo)] {
        let methods = Allowed::List([1, 2, 3, 4, 5, 6, 8, 9].into());
        policy.allow(Rule { caller, callee, protocol: "test".into(), methods }).unwrap();
    }
    policy
}

pub(crate) struct Node {
    pub(crate) exchange: Exchange,
    pub(crate) root: SupervisorHandle,
    pub(crate) endpoint: Endpoint,
    pub(crate) tls: Arc<Tls>,
}

impl Node {
    pub(crate) fn address(&self) -> SocketAddr {
        self.endpoint.local_addr().unwrap()
    }

    pub(crate) async fn serve(&self, name: &str) {
        self.serve_with(ServiceSpec::new(name.parse().unwrap())).await;
    }

    pub(crate) async fn serve_with(&self, spec: ServiceSpec) {
        self.serve_slow(spec, Duration::ZERO).await;
    }

    /// A tester that takes `pause` for each [`Log`].
    pub(crate) async fn serve_slow(&self, spec: ServiceSpec, pause: Duration) {
        let open = move |_| async move { Ok(Tester { log: Vec::new(), pause }) };
        let child: ChildSpec = service(&self.exchange, &tokio::runtime::Handle::current(), spec, open).unwrap();
        self.root.add_child(child).await.unwrap();
    }

    pub(crate) fn context(&self) -> Context {
        Context::new(self.exchange.clone(), "test")
    }

    pub(crate) async fn stop(self) {
        self.endpoint.close(Duration::from_secs(1)).await;
        self.root.stop().await;
    }

    /// Waits until this node is linked to `count` others.
    pub(crate) async fn linked(&self, count: usize) {
        let mut changed = self.endpoint.peers().changed();
        let up = || self.endpoint.peers().known().iter().filter(|known| known.health == horos_wire::tree::Health::Up).count();
        let end = Instant::now() + Duration::from_secs(10);
        while up() < count {
            let waited = tokio::time::timeout_at(end.into(), changed.changed()).await;
            assert!(waited.is_ok(), "linked to {} of {count}", up());
        }
    }
}

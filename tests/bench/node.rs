//! A node as its binary makes one, without the binary: certificates, exchange, link, services, and the
//! runtimes they run on.

use std::{
    collections::HashMap,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use horos_link::{
    Config, Endpoint, Parts,
    identity::{authority::Authority, certificate::Validity, request},
    tls::Tls,
};
use horos_supervision::{
    Context, Exchange, Handle, Intensity, Service, ServiceSpec, Strategy, Supervisor, SupervisorHandle, SupervisorSpec, service,
};
use horos_wire::{
    Incarnation, Never, NodeId, Role,
    policy::{Allowed, Policy, Rule},
    protocol,
    tree::Health,
};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::runtime::{Builder, Handle as Runtime};

/// Long enough never to pass, short enough to be a deadline like any other.
pub(crate) const DEADLINE: Duration = Duration::from_secs(10);
/// Threads for services, as `nodes` starts them: one a service, eight at most.
const SERVICE_THREADS: usize = 8;
/// The actors that calls are spread over.
pub(crate) const TARGETS: usize = 8;

/// Asks for its own bytes.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Echo {
    #[serde(with = "serde_bytes")]
    #[schemars(with = "Vec<u8>")]
    pub(crate) body: Vec<u8>,
}
/// Is counted.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Count {
    #[serde(with = "serde_bytes")]
    #[schemars(with = "Vec<u8>")]
    pub(crate) body: Vec<u8>,
}
/// How many were counted.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Counted {}
/// Keeps the actor busy for a millisecond.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Work {
    #[serde(with = "serde_bytes")]
    #[schemars(with = "Vec<u8>")]
    pub(crate) body: Vec<u8>,
}
/// Reads a bulk body.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Take {
    pub(crate) body: horos_wire::Bulk,
}
/// Kills the actor.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Panic {}

protocol! {
    /// What the benchmarks call.
    pub(crate) Bench = "bench" v1 {
        1 echo: Echo => Echo;
        2 count: Count => ();
        3 counted: Counted => u64;
        4 work: Work => ();
        5 take: Take => u64;
        6 panic: Panic => ();
    }
}

#[derive(Default)]
pub(crate) struct Bencher {
    counted: u64,
}

impl Service for Bencher {
    type Protocol = Bench;
}
impl Handle<Echo> for Bencher {
    async fn handle(&mut self, echo: Echo, _: &Context) -> Result<Echo, Never> {
        Ok(echo)
    }
}
impl Handle<Count> for Bencher {
    async fn handle(&mut self, _: Count, _: &Context) -> Result<(), Never> {
        self.counted += 1;
        Ok(())
    }
}
impl Handle<Counted> for Bencher {
    async fn handle(&mut self, _: Counted, _: &Context) -> Result<u64, Never> {
        Ok(std::mem::take(&mut self.counted))
    }
}
impl Handle<Work> for Bencher {
    async fn handle(&mut self, work: Work, _: &Context) -> Result<(), Never> {
        tokio::time::sleep(Duration::from_millis(1)).await;
        self.counted += u64::from(work.body.len() == 64 * 1024);
        Ok(())
    }
}
impl Handle<Take> for Bencher {
    async fn handle(&mut self, take: Take, cx: &Context) -> Result<u64, Never> {
        // A sender that stops half way is counted for what it sent.
        let Ok(mut body) = cx.claim(take.body, DEADLINE).await else { return Ok(0) };
        let mut size = 0;
        while let Ok(Some(chunk)) = body.chunk().await {
            size += chunk.len() as u64;
        }
        Ok(size)
    }
}
impl Handle<Panic> for Bencher {
    async fn handle(&mut self, _: Panic, _: &Context) -> Result<(), Never> {
        panic!("asked to")
    }
}

/// On how many runtimes a node runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// One `current_thread` runtime for all.
    Single,
    /// The node's default: the link on a `current_thread` runtime of its own, services on [`SERVICE_THREADS`] more.
    Default,
}

impl Layout {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Single => "single",
            Self::Default => "default",
        }
    }
}

/// A node's runtimes, each on its thread for as long as the process lives.
#[derive(Clone, Debug)]
pub(crate) struct Runtimes {
    pub(crate) link: Runtime,
    /// Services take them in turn.
    services: Arc<[Runtime]>,
    next: Arc<AtomicUsize>,
}

impl Runtimes {
    pub(crate) fn start(layout: Layout) -> anyhow::Result<Self> {
        let link = keep("link", Builder::new_current_thread())?;
        let services = match layout {
            Layout::Single => vec![link.clone()],
            Layout::Default => {
                (0..SERVICE_THREADS).map(|_| keep("service", Builder::new_current_thread())).collect::<anyhow::Result<_>>()?
            }
        };
        Ok(Self { link, services: services.into(), next: Arc::default() })
    }

    fn service(&self) -> &Runtime {
        &self.services[self.next.fetch_add(1, Ordering::Relaxed) % self.services.len()]
    }

    /// Runs `future` among the services and waits for it.
    pub(crate) fn run<T: Send + 'static>(&self, future: impl Future<Output = T> + Send + 'static) -> anyhow::Result<T> {
        wait(&self.services[0], future)
    }
}

/// Builds a runtime that a thread of its own keeps, and, if it has no others, drives.
fn keep(name: &str, mut builder: Builder) -> anyhow::Result<Runtime> {
    let runtime = builder.enable_all().build()?;
    let handle = runtime.handle().clone();
    std::thread::Builder::new().name(name.to_owned()).spawn(move || runtime.block_on(std::future::pending::<()>()))?;
    Ok(handle)
}

/// Runs `future` on `runtime` and waits for it, off every runtime.
pub(crate) fn wait<T: Send + 'static>(runtime: &Runtime, future: impl Future<Output = T> + Send + 'static) -> anyhow::Result<T> {
    let (sender, receiver) = std::sync::mpsc::sync_channel(1);
    runtime.spawn(async move { sender.send(future.await) });
    receiver.recv().context("the task panicked")
}

/// Makes an authority and the identities of both ends, one directory each, in `directory`.
pub(crate) fn identities(directory: &Path) -> anyhow::Result<()> {
    let now = Timestamp::now();
    let authority = Authority::create(&directory.join("ca"), &"bench".parse()?, Validity::days(now, 365))?;
    for role in [Role::Bo, Role::Fo] {
        let id = identity(role)?;
        let directory = directory.join(role.to_string());
        let csr = std::fs::read_to_string(request::create(&directory, &id)?)?;
        let (certificate, _) = authority.sign(&csr, &id, Validity::usual(now, &id))?;
        request::install(&directory, &certificate, authority.certificate_pem(), now)?;
    }
    Ok(())
}

fn identity(role: Role) -> anyhow::Result<NodeId> {
    Ok(NodeId { cluster: "bench".parse()?, role, name: format!("{role}-1").parse()? })
}

/// The identity of `role` out of [`identities`].
pub(crate) fn tls(directory: &Path, role: Role) -> anyhow::Result<Arc<Tls>> {
    Ok(Arc::new(Tls::open(&directory.join(role.to_string()), Timestamp::now())?))
}

/// A node, in the hands of the benchmark that started it.
pub(crate) struct Node {
    exchange: Exchange,
    root: SupervisorHandle,
    endpoint: Endpoint,
    runtimes: Runtimes,
}

static LIVES: AtomicU64 = AtomicU64::new(1);

impl Node {
    /// Starts a node; to be awaited on its link's runtime.
    pub(crate) async fn start(tls: Arc<Tls>, seeds: Vec<SocketAddr>, runtimes: Runtimes) -> anyhow::Result<Self> {
        let exchange = Exchange::new(tls.credentials().id().clone(), Incarnation(LIVES.fetch_add(1, Ordering::Relaxed)));
        // One that is killed on purpose, again and again, is not to take the node with it.
        let mut spec = SupervisorSpec::new("root", Strategy::OneForOne, Vec::new());
        spec.intensity = Intensity { max: u32::MAX, within: Duration::from_secs(1) };
        let root = Supervisor::start(spec, None).await?;
        let parts = Parts { exchange: exchange.clone(), policy: Arc::new(policy()?), tls, release: "bench", public: None };
        let config = Config { seeds, ..Config::new(([127, 0, 0, 1], 0).into()) };
        let endpoint = Endpoint::open(config, parts, HashMap::new(), root.clone())?;
        for child in endpoint.children() {
            root.add_child(child).await?;
        }
        endpoint.peers().set_ready(true);
        Ok(Self { exchange, root, endpoint, runtimes })
    }

    pub(crate) fn address(&self) -> anyhow::Result<SocketAddr> {
        Ok(self.endpoint.local_addr()?)
    }

    pub(crate) async fn serve(&self, name: &str) -> anyhow::Result<()> {
        let spec = ServiceSpec::new(name.parse()?);
        let child = service(&self.exchange, self.runtimes.service(), spec, |_| async { Ok(Bencher::default()) })?;
        self.root.add_child(child).await?;
        Ok(())
    }

    /// Waits until this node is linked to another.
    pub(crate) async fn linked(&self) -> anyhow::Result<()> {
        let mut changed = self.endpoint.peers().changed();
        let up = || self.endpoint.peers().known().iter().any(|known| known.health == Health::Up);
        let until = tokio::time::Instant::now() + DEADLINE;
        while !up() {
            tokio::time::timeout_at(until, changed.changed()).await.context("the nodes did not link")??;
        }
        Ok(())
    }

    pub(crate) fn context(&self) -> Context {
        Context::new(self.exchange.clone(), "bench")
    }
}

fn policy() -> anyhow::Result<Policy> {
    let mut policy = Policy::builtin();
    policy.declare::<Bench>();
    policy.offer(Role::Bo, "bench")?;
    policy.allow(Rule { caller: Role::Fo, callee: Role::Bo, protocol: "bench".into(), methods: Allowed::All })?;
    Ok(policy)
}

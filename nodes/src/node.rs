//! One node: its supervision tree, from start to stop.
//!
//! ```text
//! root             one for one; past its intensity the node ends
//! ├─ data          rest for one: services are opened anew when the store was
//! │  ├─ store      the databases' writers and readers, each file apart
//! │  └─ services   the users' services, on threads of their own
//! ├─ node          horos.node and horos.cluster
//! ├─ certificates  takes up renewed certificates and deny lists
//! ├─ memory        writes down where the peers are, for the next life
//! └─ link          accept loop, dialer, gossip
//!    └─ sessions   one for each connection
//! ```

use std::{
    collections::HashMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use horos_link::{
    Admission, Endpoint, Limits, Parts as LinkParts,
    tls::{Expected, Tls},
};
use horos_supervision::{
    Context, Exchange, ServiceSpec, Strategy, Supervisor, SupervisorHandle, SupervisorSpec, service, supervisor::Ended,
};
use horos_wire::{Incarnation, NodeId, protocol::node::NAME, session::Liveness};
use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::{
    runtime::{Builder, Handle},
    signal::unix::{SignalKind, signal},
};

use crate::{
    admin::{Admin, CLUSTER, Insight, Root},
    app::{Horos, Parts},
    config::{Config, DataDir, Layout, Seed},
    databases::Databases,
    maintenance::Maintenance,
    memory,
    threads::{MAX_DEFAULT, Threads},
};

/// What a node writes into its data directory once its port is open, for the command line on the same machine.
pub(crate) const ADDRESS_FILE: &str = "address";
/// For peers to acknowledge the last word of a node that stops.
const CLOSE_WITHIN: Duration = Duration::from_millis(500);

/// Why a node did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum NodeError {
    #[error(transparent)]
    Identity(#[from] horos_link::identity::CredentialsError),
    #[error("the certificate in {} names {found}, but the configuration says {expected}: put the right one there, or correct cluster.name, node.role and node.name", path.display())]
    OtherIdentity { path: PathBuf, found: String, expected: String },
    #[error(transparent)]
    Endpoint(#[from] horos_link::EndpointError),
    #[error(transparent)]
    Register(#[from] horos_supervision::exchange::RegisterError),
    #[error(transparent)]
    Start(#[from] horos_supervision::StartError),
    #[error(transparent)]
    Order(#[from] horos_supervision::supervisor::OrderError),
    #[error("cannot {action}: {source}")]
    Io { action: &'static str, source: std::io::Error },
}

/// How a node's life ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Finished {
    /// Asked to, and everything in hand was finished.
    Stopped,
    /// Asked twice: stopped at once.
    AtOnce,
    /// Something failed more often than its supervisors could mend.
    Broken(String),
}

/// A running node.
pub(crate) struct RunningNode {
    root: SupervisorHandle,
    endpoint: Endpoint,
    insight: Insight,
    address: SocketAddr,
    address_file: PathBuf,
    drain: Duration,
    /// Dropped last.
    _threads: Arc<Threads>,
}

/// Runs a node until it is stopped. `ready` is called with the address when it takes work.
pub(crate) fn run(
    config: Config,
    _held: DataDir,
    horos: Arc<Horos>,
    ready: impl FnOnce(&NodeId, SocketAddr),
) -> Result<Finished, NodeError> {
    let io = |action| move |source| NodeError::Io { action, source };
    let runtime = Builder::new_current_thread().enable_all().build().map_err(io("start the runtime"))?;
    runtime.block_on(async {
        // Signals first, so that one that comes during the start is not the kernel's to answer.
        let mut interrupt = signal(SignalKind::interrupt()).map_err(io("listen for signals"))?;
        let mut terminate = signal(SignalKind::terminate()).map_err(io("listen for signals"))?;
        let node = tokio::select! {
            node = RunningNode::start(config, &horos) => node?,
            _ = interrupt.recv() => return Ok(Finished::AtOnce),
            _ = terminate.recv() => return Ok(Finished::AtOnce),
        };
        ready(node.endpoint.peers().node(), node.address);
        tokio::select! {
            ended = node.root.wait() => {
                let cause = match ended {
                    Ended::Failed(cause) => cause.to_string(),
                    other => format!("{other:?}"),
                };
                node.close().await;
                return Ok(Finished::Broken(cause));
            }
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        tracing::info!("stopping: no new work is taken; a second signal stops at once");
        tokio::select! {
            () = node.stop() => Ok(Finished::Stopped),
            _ = interrupt.recv() => Ok(Finished::AtOnce),
            _ = terminate.recv() => Ok(Finished::AtOnce),
        }
    })
}

impl RunningNode {
    pub(crate) async fn start(config: Config, horos: &Horos) -> Result<Self, NodeError> {
        let started = Instant::now();
        let tls = Arc::new(Tls::open(&config.identity.dir, Timestamp::now())?);
        let id = NodeId { cluster: config.cluster.name.clone(), role: config.node.role, name: config.node.name.clone() };
        if *tls.credentials().id() != id {
            return Err(NodeError::OtherIdentity {
                path: config.identity.dir.clone(),
                found: tls.credentials().id().to_uri(),
                expected: id.to_uri(),
            });
        }
        let threads = match (config.runtime.layout, config.runtime.service_threads) {
            (Layout::Single, _) => 0,
            // Each service has its own, so that one which never yields holds up no other.
            (Layout::Split, 0) => horos.services_on(config.node.role).clamp(1, MAX_DEFAULT),
            (Layout::Split, threads) => usize::from(threads),
        };
        let threads =
            Threads::start("service", threads).map_err(|source| NodeError::Io { action: "start the services' threads", source })?;
        let threads = Arc::new(threads);
        let exchange = Exchange::new(id, Incarnation(rand::random()));

        // Handles come before what they lead to, so that every lasting child stands in its supervisor's own
        // list: a supervisor that is started anew begins with just those.
        let store = SupervisorSpec::new("store", Strategy::OneForOne, Vec::new());
        let sessions = SupervisorSpec::new("sessions", Strategy::OneForOne, Vec::new());
        let parts = LinkParts {
            exchange: exchange.clone(),
            policy: Arc::new(horos.policy().clone()),
            tls: tls.clone(),
            release: env!("CARGO_PKG_VERSION"),
            public: None,
        };
        let mut link_config = link_config(&config);
        link_config.greet = memory::peers(&config.data);
        let secret = memory::secret(&config.data);
        link_config.secret =
            Some(secret.map_err(|source| NodeError::Io { action: "keep the endpoint's secret in the data directory", source })?);
        let endpoint = Endpoint::open(link_config, parts, HashMap::new(), sessions.handle())?;
        let address = endpoint.local_addr().map_err(|source| NodeError::Io { action: "read the bound address", source })?;
        let parts = Parts {
            exchange: exchange.clone(),
            threads: threads.clone(),
            http: Handle::current(),
            databases: Databases::new(&config.data, config.store.clone(), store.handle()),
            data: Arc::new(config.data.clone()),
            capacity: config.limits.mailbox as usize,
        };
        let services = SupervisorSpec::new("services", Strategy::OneForOne, horos.children(config.node.role, &parts)?);
        let insight = Insight {
            exchange: exchange.clone(),
            root: Arc::default(),
            peers: endpoint.peers().clone(),
            started,
            conditions: Arc::new(Mutex::new(vec!["starting".into()])),
            maintenance: Maintenance::open(&config.data),
            http: Arc::new([]),
        };
        let mut admins = Vec::new();
        for (name, cluster) in [(NAME, false), (CLUSTER, true)] {
            let insight = insight.clone();
            let spec = ServiceSpec::new(name.parse().expect("a literal name that keeps the rules"));
            let open = move |_: Context| {
                let insight = insight.clone();
                async move { Ok(Admin { insight, cluster }) }
            };
            admins.push(service(&exchange, &Handle::current(), spec, open)?);
        }
        let admin = SupervisorSpec::new("node", Strategy::OneForOne, admins);
        let mut doors = vec![sessions.clone().into_child()];
        doors.extend(endpoint.children());
        let link = SupervisorSpec::new("link", Strategy::OneForOne, doors);
        let branches = vec![
            ("root/data/store", store.handle()),
            ("root/data/services", services.handle()),
            ("root/node", admin.handle()),
            ("root/link", link.handle()),
            ("root/link/sessions", sessions.handle()),
        ];
        let data = SupervisorSpec::new("data", Strategy::RestForOne, vec![store.into_child(), services.into_child()]);
        let certificates = crate::certificates::child(tls, endpoint.peers().clone(), config.identity.dir.clone());
        let data_handle = data.handle();
        // The doors last: whoever comes in finds everything in its place.
        let children = vec![
            data.into_child(),
            admin.into_child(),
            certificates,
            memory::child(endpoint.peers().clone(), config.data.clone()),
            link.into_child(),
        ];
        let root = SupervisorSpec::new("root", Strategy::OneForOne, children);
        let supervisors = branches.into_iter().chain([("root", root.handle()), ("root/data", data_handle)]);
        insight
            .root
            .set(Root { handle: root.handle(), supervisors: supervisors.map(|(path, handle)| (path.to_owned(), handle)).collect() });
        let root = Supervisor::start(root, None).await?;
        let address_file = config.data.join(ADDRESS_FILE);
        write_address(&address_file, address)?;
        endpoint.peers().set_ready(true);
        insight.conditions.lock().clear();
        tracing::info!(node = %exchange.node().to_uri(), %address, incarnation = %exchange.incarnation(),
            ms = started.elapsed().as_millis() as u64, "ready");
        Ok(Self { root, endpoint, insight, address, address_file, drain: config.drain.timeout, _threads: threads })
    }

    /// Where it listens.
    #[cfg(test)]
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Not ready, drain, stop the children in reverse order, close.
    async fn stop(&self) {
        self.insight.conditions.lock().push("stopping".into());
        self.endpoint.peers().drain(Instant::now() + self.drain).await;
        self.close().await;
        self.root.stop().await;
        tracing::info!("stopped");
    }

    async fn close(&self) {
        // Whoever reads a stale address would only fail to connect.
        let _ = std::fs::remove_file(&self.address_file);
        self.endpoint.close(CLOSE_WITHIN).await;
    }
}

/// The link's configuration as the node's says it.
fn link_config(config: &Config) -> horos_link::Config {
    let mut link = horos_link::Config::new(config.listen.cluster);
    link.seed_names = config.peers.iter().map(|seed| (seed.address.to_string().into(), expected(config, seed))).collect();
    link.liveness = Liveness {
        heartbeat: config.liveness.heartbeat,
        suspect: config.liveness.suspect,
        down: config.liveness.down,
        ..Liveness::default()
    };
    link.limits = Limits {
        out_buffer: config.limits.out_buffer.bytes(),
        in_flight_messages: config.limits.in_flight_messages,
        in_flight_bytes: config.limits.in_flight_bytes.0,
    };
    link.admission = Admission {
        handshakes: config.limits.handshakes as usize,
        handshakes_per_address: config.limits.handshakes_per_address as usize,
        handshake_timeout: config.limits.handshake_timeout,
        sessions: config.limits.connections as usize,
    };
    link
}

fn expected(config: &Config, seed: &Seed) -> Expected {
    match (&seed.name, seed.role) {
        (Some(name), Some(role)) => Expected::Node(NodeId { cluster: config.cluster.name.clone(), role, name: name.clone() }),
        (None, Some(role)) => Expected::Role(role),
        _ => Expected::AnyNode,
    }
}

fn write_address(path: &Path, address: SocketAddr) -> Result<(), NodeError> {
    std::fs::write(path, format!("{address}\n")).map_err(|source| NodeError::Io { action: "write the address file", source })
}

//! A node's start: its sockets first, its doors last.

use std::{net::SocketAddr, path::Path, sync::Arc, time::Instant};

use horos_edge::{Conditions, Drain, Edge, Http3, Maintenance as Switch, Metrics, Parts as EdgeParts};
use horos_link::{Parts as LinkParts, tls::Tls};
use horos_supervision::{ChildSpec, Context, Exchange, ServiceSpec, Strategy, Supervisor, SupervisorSpec, service};
use horos_wire::{Incarnation, NodeId, protocol::node::NAME};
use jiff::Timestamp;
use tokio::runtime::Handle;

use super::{
    ADDRESS_FILE, NodeError, RunningNode,
    doors::{self, Bound, Doors, Quic},
    metrics::NodeMetrics,
};
use crate::{
    admin::{Admin, CLUSTER, Insight, Root},
    app::{Horos, Parts},
    config::{Config, Layout},
    control,
    databases::Databases,
    keys::{self, NodeKeys},
    maintenance::Maintenance,
    memory,
    router::{self, Laid},
    sync::{self, Here, Owner, SyncLayout},
    threads::{HttpThreads, MAX_DEFAULT, Threads},
    tools,
};

/// The condition that holds once the node has started.
const STARTED: &str = "started";

impl RunningNode {
    /// Starts a node; when this returns it takes work.
    pub(crate) async fn start(config: Config, horos: &Horos) -> Result<Self, NodeError> {
        let started = Instant::now();
        let (id, tls) = identify(&config)?;
        // Before anything is opened that would have to be closed again when somebody has the port.
        let bound = Bound::bind(&config.listen)?;
        let address = bound.cluster.address;
        let addresses: Vec<_> = bound.addresses().collect();
        let advertise = bound.advertised(&config.listen).await?;
        let http = bound.http(config.http.tls);
        let (threads, http_threads) = threads(&config, horos)?;
        let exchange = Exchange::new(id, Incarnation(rand::random()));
        let conditions = Conditions::default();
        conditions.set(STARTED, "the node is starting");
        let drain = Drain::default();
        let metrics = Metrics::default();
        let switch = Switch::new(conditions.clone());
        let maintenance = Maintenance::open(&config.data, switch.clone());

        // Handles come before what they lead to, so that every lasting child stands in its supervisor's own
        // list: a supervisor that is started anew begins with just those.
        let store = SupervisorSpec::new("store", Strategy::OneForOne, Vec::new());
        let sessions = SupervisorSpec::new("sessions", Strategy::OneForOne, Vec::new());
        control::settle(&config.data, control::is_owner(&config))?;
        let databases = Databases::new(&config.data, config.store.clone(), store.handle());
        let layout = horos.sync(config.node.role).join(SyncLayout::load(&config.data)?)?;
        layout.write_down(&config.data).map_err(|source| NodeError::Io { action: "write down what is published", source })?;
        let runtime = Handle::current();
        let here =
            Here { exchange: &exchange, runtime: &runtime, tls: &tls, data: &config.data, databases: &databases, conditions: &conditions };
        let (node_sync, syncing) = sync::lay(&layout, &config.control.owner, here)?;
        let syncing = SupervisorSpec::new("sync", Strategy::OneForOne, syncing);
        let Laid { router, children: routing, breakers, clients, servers } =
            router::lay(&config, &exchange, &databases, &conditions, horos.strategies())?;
        let routing = SupervisorSpec::new("router", Strategy::OneForOne, routing);
        let parts = Parts {
            exchange: exchange.clone(),
            threads: threads.clone(),
            http: http_threads.handle().clone(),
            databases,
            data: Arc::new(config.data.clone()),
            capacity: config.limits.mailbox as usize,
            sync: Arc::new(node_sync),
            owner: Owner::of(&config, &layout, tls.clone())?,
            router,
        };
        let NodeKeys { authenticator, verifier, mut children } = keys::lay(&config, &exchange, &parts.databases, &conditions)?;
        children.extend(control::lay(&config, &exchange, &parts.databases, parts.router.strategies())?);
        let keys = SupervisorSpec::new("keys", Strategy::OneForOne, children);
        let services = SupervisorSpec::new("services", Strategy::OneForOne, horos.children(config.node.role, &parts)?);
        let here = tools::Here {
            exchange: &exchange,
            databases: &parts.databases,
            layout: &layout,
            router: &parts.router,
            natives: horos.natives(&parts),
            tls: &tls,
            verifier,
            runtime: http_threads.handle(),
        };
        let tools::Laid { children: tooling, files, mounts: tool_mounts, served } = tools::lay(&config, here)?;
        let tooling = SupervisorSpec::new("tools", Strategy::OneForOne, tooling);
        let (mut mounts, openers) = horos.mounts(config.node.role, &parts)?;
        mounts.extend(tool_mounts);
        let mounted = SupervisorSpec::new("http", Strategy::OneForOne, openers);
        let (listeners, udp) = bound.split();
        let edge_parts = EdgeParts {
            runtime: http_threads.handle().clone(),
            mounts,
            authenticator,
            conditions: conditions.clone(),
            maintenance: switch,
            drain: drain.clone(),
            metrics: metrics.clone(),
            certificate: doors::certificate(&config, &tls),
            listeners,
        };
        let edge = Edge::open(config.edge(), edge_parts)?;
        let http3 = Http3::new(edge.app().clone(), Arc::new(config.edge()), metrics.clone(), drain.clone(), http_threads.handle().clone());
        let others = sync::handlers(&layout, &tls, &config.data, http_threads.handle());
        let others = others.map_err(|source| NodeError::Io { action: "make a place for what is pushed", source })?;
        let link_parts = LinkParts {
            exchange: exchange.clone(),
            policy: Arc::new(horos.policy().clone()),
            tls: tls.clone(),
            release: env!("CARGO_PKG_VERSION"),
            public: None,
        };
        let doors = Doors::open(&config, udp, advertise, edge, Quic { http3, mcp: served.clone(), others }, link_parts, sessions.handle())?;
        let peers = doors.endpoint.peers().clone();
        clients.reach_nodes(tls.clone(), peers.clone());
        let programs = clients.programs().clone();
        let insight = Insight {
            exchange: exchange.clone(),
            root: Arc::default(),
            peers: peers.clone(),
            started,
            conditions: conditions.clone(),
            drain: drain.clone(),
            maintenance,
            control_owner: config.control.owner.clone(),
            http: http.into(),
        };
        let shown = NodeMetrics {
            insight: insight.clone(),
            doors: doors.counters(),
            sync: parts.sync.clone(),
            router: parts.router.clone(),
            served,
        };
        metrics.registry().register_collector(Box::new(shown));

        let admin = SupervisorSpec::new("node", Strategy::OneForOne, admins(&exchange, &insight)?);
        let edge = SupervisorSpec::new("edge", Strategy::OneForOne, doors.edge());
        let mut by_link = vec![sessions.clone().into_child()];
        by_link.extend(doors.link());
        let link = SupervisorSpec::new("link", Strategy::OneForOne, by_link);
        let mut branches = vec![
            ("root/data/store", store.handle()),
            ("root/data/keys", keys.handle()),
            ("root/data/router", routing.handle()),
            ("root/data/router/breakers", breakers),
            ("root/data/router/mcp-clients", servers),
            ("root/data/services", services.handle()),
            ("root/data/tools", tooling.handle()),
            ("root/data/tools/files", files),
            ("root/data/http", mounted.handle()),
            ("root/data/sync", syncing.handle()),
            ("root/node", admin.handle()),
            ("root/edge", edge.handle()),
            ("root/link", link.handle()),
            ("root/link/sessions", sessions.handle()),
        ];
        let by_data = vec![
            store.into_child(),
            keys.into_child(),
            routing.into_child(),
            services.into_child(),
            tooling.into_child(),
            mounted.into_child(),
            syncing.into_child(),
        ];
        let data = SupervisorSpec::new("data", Strategy::RestForOne, by_data);
        branches.push(("root/data", data.handle()));
        // The doors last: whoever comes in finds everything in its place.
        let children = vec![
            data.into_child(),
            admin.into_child(),
            crate::certificates::child(tls, peers.clone(), config.identity.dir.clone()),
            memory::child(peers.clone(), config.data.clone()),
            edge.into_child(),
            link.into_child(),
        ];
        let root = SupervisorSpec::new("root", Strategy::OneForOne, children);
        branches.push(("root", root.handle()));
        let supervisors = branches.into_iter().map(|(path, handle)| (path.to_owned(), handle)).collect();
        insight.root.set(Root { handle: root.handle(), supervisors });
        let root = Supervisor::start(root, None).await?;
        let address_file = config.data.join(ADDRESS_FILE);
        write_addresses(&address_file, &addresses)?;
        conditions.clear(STARTED);
        peers.set_ready(true);
        tracing::info!(node = %exchange.node().to_uri(), %address, http = %insight.http.join(" "), incarnation = %exchange.incarnation(),
            ms = started.elapsed().as_millis() as u64, "ready");
        let threads = (threads, http_threads);
        Ok(Self { root, doors, programs, address, address_file, drain, stopping: config.drain, _threads: threads })
    }
}

/// Who this node is, as configuration and certificate agree.
fn identify(config: &Config) -> Result<(NodeId, Arc<Tls>), NodeError> {
    let tls = Arc::new(Tls::open(&config.identity.dir, Timestamp::now())?);
    let id = NodeId { cluster: config.cluster.name.clone(), role: config.node.role, name: config.node.name.clone() };
    if *tls.credentials().id() != id {
        return Err(NodeError::OtherIdentity {
            path: config.identity.dir.clone(),
            found: tls.credentials().id().to_uri(),
            expected: id.to_uri(),
        });
    }
    Ok((id, tls))
}

fn threads(config: &Config, horos: &Horos) -> Result<(Arc<Threads>, HttpThreads), NodeError> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let (services, http) = match config.runtime.layout {
        Layout::Single => (0, 0),
        Layout::Split => {
            // Each service has its own, so that one which never yields holds up no other.
            let services = match config.runtime.service_threads {
                0 => horos.services_on(config.node.role).clamp(1, MAX_DEFAULT),
                threads => usize::from(threads),
            };
            let http = match config.runtime.http_threads {
                0 => cores.saturating_sub(1).max(1),
                threads => usize::from(threads),
            };
            (services, http)
        }
    };
    let failed = |source| NodeError::Io { action: "start the node's threads", source };
    Ok((Arc::new(Threads::start("service", services).map_err(failed)?), HttpThreads::start(http).map_err(failed)?))
}

/// What answers about the node itself.
fn admins(exchange: &Exchange, insight: &Insight) -> Result<Vec<ChildSpec>, NodeError> {
    let mut admins = Vec::new();
    for (name, cluster) in [(NAME, false), (CLUSTER, true)] {
        let insight = insight.clone();
        let spec = ServiceSpec::new(name.parse().expect("a literal name that keeps the rules"));
        let open = move |_: Context| {
            let insight = insight.clone();
            async move { Ok(Admin { insight, cluster }) }
        };
        admins.push(service(exchange, &Handle::current(), spec, open)?);
    }
    Ok(admins)
}

/// The cluster's address on the first line, the public's on the second where it is another.
fn write_addresses(path: &Path, addresses: &[SocketAddr]) -> Result<(), NodeError> {
    let io = |source| NodeError::Io { action: "write down the address in the data directory", source };
    // Whole or not at all, for readers that look while it is written.
    let partial = path.with_extension("partial");
    let text: String = addresses.iter().map(|address| format!("{address}\n")).collect();
    std::fs::write(&partial, text).map_err(io)?;
    std::fs::rename(&partial, path).map_err(io)
}

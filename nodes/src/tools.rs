//! The node's tools: rows of `control.db` and what the program registered, for whoever speaks MCP to this node.
//!
//! Laid out behind the router, which tools call by, and started behind the services, under `root/data/tools`. Who called what is in
//! `tools.db`, which is this node's alone.

mod shelf;

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::BoxFuture;
use horos_edge::{Access, Client, Mount, MountError, Plane};
use horos_identity::Verifier;
use horos_link::tls::Tls;
use horos_router::Router;
use horos_store::watch::{WatchConfig, WatchStartError, Watcher};
use horos_supervision::{
    ChildSpec, Context, Exchange, ServiceSpec, Strategy, SupervisorHandle, SupervisorSpec, exchange::RegisterError, service,
};
use horos_tools::{
    Credential, Kind, Kinds, LONGEST, Options, PassOn, Registry, ToNode, Tools, Verify,
    actor::Actors,
    admin::{Administration, Node},
    audit::{Audit, FILE},
    http::{Options as HttpOptions, Resource, Service as HttpService, service as service_over_http, well_known},
    native::Natives,
    operate::Desk,
    quic::{Bounds, Door, Options as QuicOptions, Times},
    reload,
    server::{Server, View},
    sql::{Query, Script},
};
use horos_wire::{
    principal::{Denied, Principal},
    protocol::registry::NAME,
};
use http::{Extensions, Uri};
use tokio::{runtime::Handle, sync::watch};
use tokio_util::sync::CancellationToken;

use crate::{
    config::{Config, HttpTls},
    control,
    databases::Databases,
    router::follow,
    sync::SyncLayout,
};
use shelf::Files;

/// Where MCP is served, and what of it where only a few tools are to be listed.
const PATHS: [(&str, View); 2] = [("/mcp", View::All), ("/mcp/search", View::Search)];

/// Where clients without a key or token are told to look for one (RFC 9728 §3).
const WELL_KNOWN: &str = "/.well-known/oauth-protected-resource";
/// For answers that were given to reach the wire before streams are ended.
const LAST_WORDS: Duration = Duration::from_millis(100);
/// Between two looks at whether calls are in hand.
const LOOK: Duration = Duration::from_millis(10);

/// Why a node has no tools.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ToolsError {
    #[error(transparent)]
    Mount(#[from] MountError),
    #[error(transparent)]
    Register(#[from] RegisterError),
    #[error(transparent)]
    Watch(#[from] WatchStartError),
}

/// A node's tools, laid out.
pub(crate) struct Laid {
    /// What is to run.
    pub(crate) children: Vec<ChildSpec>,
    /// The supervisor of their files' readers, which is among it.
    pub(crate) files: SupervisorHandle,
    pub(crate) mounts: Vec<Mount>,
    pub(crate) served: Served,
}

/// What is served, for those who count it and those who end it. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Served {
    pub(crate) tools: Tools,
    pub(crate) door: Option<Door>,
    over_http: Vec<HttpService>,
    /// Ends subscriptions over HTTP.
    end: CancellationToken,
    /// Ends streams and sessions over HTTP.
    drain: CancellationToken,
}

impl Served {
    /// Sessions by how they came.
    pub(crate) fn sessions(&self) -> [(&'static str, usize); 2] {
        let over_http = self.over_http.iter().map(HttpService::sessions).sum();
        [("http", over_http), ("quic", self.door.as_ref().map_or(0, Door::sessions))]
    }

    /// Takes no more over QUIC, and ends streams over HTTP once no call is in hand: they would never end by themselves, and hold up whoever
    /// waits for the last request.
    pub(crate) async fn drain(&self, until: Instant) {
        let over_quic = async {
            if let Some(door) = &self.door {
                door.drain(until).await;
            }
        };
        let over_http = async {
            while self.tools.counters().in_hand() > 0 && Instant::now() < until {
                tokio::time::sleep(LOOK).await;
            }
            self.end.cancel();
            tokio::time::sleep(LAST_WORDS).await;
            self.drain.cancel();
        };
        tokio::join!(over_quic, over_http);
        // What tools that only read did is written a little later than they answer.
        let _ = tokio::time::timeout_at(until.into(), self.tools.audit().flush()).await;
    }
}

/// The node, as far as its tools need it.
pub(crate) struct Here<'a> {
    pub(crate) exchange: &'a Exchange,
    pub(crate) databases: &'a Databases,
    pub(crate) layout: &'a SyncLayout,
    pub(crate) router: &'a Router,
    /// What the program lets tools be made of.
    pub(crate) natives: Natives,
    pub(crate) tls: &'a Arc<Tls>,
    pub(crate) verifier: Verifier,
    /// Where requests are worked on.
    pub(crate) runtime: &'a Handle,
}

/// The tools of a node, and what is to run; nothing does before.
///
/// # Errors
/// [`ToolsError`].
pub(crate) fn lay(config: &Config, here: Here<'_>) -> Result<Laid, ToolsError> {
    let Here { exchange, databases, layout, router, natives, tls, verifier, runtime } = here;
    let proves: Arc<dyn Verify> = Arc::new(Proves(verifier));
    let owner = &config.control.owner;
    let pass_on: Arc<dyn PassOn> = Arc::new(ToNode::new(Context::new(exchange.clone(), "tools"), owner.clone()));
    let desk = Desk::new(exchange.clone(), owner.clone(), Some(pass_on.clone()));
    let by_file = SupervisorSpec::new("files", Strategy::OneForOne, Vec::new());
    let files = by_file.handle();
    let shelf = Arc::new(Files::new(config.data.clone(), databases.clone(), layout, files.clone()));
    let natives: Arc<dyn Kind> = Arc::new(natives);
    let kinds = Kinds::default()
        .with("sql_query", Arc::new(Query::new(shelf.clone()).passing_on(pass_on.clone())))
        .with("sql_script", Arc::new(Script::new(shelf).passing_on(pass_on)))
        .with("native", natives.clone())
        // As rows of the Go system call it.
        .with("go_function", natives)
        .with("actor", Arc::new(Actors::new(router.clone(), exchange.clone())));
    let registry = Registry::new(kinds, desk.tools());
    let audit = Audit::new(databases.options(FILE));
    let tools = Tools::new(registry.clone(), audit.clone(), options(config));
    let path = config.data.join(control::FILE);
    let watcher = Watcher::start(WatchConfig::new(&path))?;
    let mut children = vec![by_file.into_child()];
    children.extend(audit.children());
    children.push(reload::child(registry.clone(), path, watcher.clone()));
    children.push(Node::new(tools.clone(), proves.clone()).child(exchange)?);
    if control::is_owner(config) {
        children.push(follow("follow-tools", watcher, databases.clone()));
        children.push(administration(exchange, databases, registry)?);
    }
    let (end, drain) = (CancellationToken::new(), CancellationToken::new());
    let (mut mounts, mut over_http) = (Vec::new(), Vec::new());
    if config.mcp.enabled {
        let options = http_options(config, proves.clone(), drain.clone());
        let base = options.resource.base.as_deref().unwrap_or_default().trim_end_matches('/');
        let described = format!("{base}{WELL_KNOWN}{}", options.resource.path);
        for (path, view) in PATHS {
            let server = Server::new(tools.clone()).with_view(view).ending_with(end.clone());
            let service = service_over_http(move || server.clone(), options.clone());
            over_http.push(service.clone());
            // What was shown goes on with a call that another node has to make, and is proved there again.
            let mount = Mount::new(path, Access::PerRequest, Plane::Public, service)?;
            // A tool's deadline is its own, and not the port's.
            mounts.push(mount.keeping_credentials().described_at(&described).with_answer_limit(LONGEST));
        }
        let issuers = config.mcp.authorization_servers.iter().map(|server| server.to_string().into()).collect();
        mounts.push(Mount::new(WELL_KNOWN, Access::Public, Plane::Public, well_known(options.resource, issuers))?);
    }
    let door = config.mcp.enabled.then(|| {
        let server = Server::new(tools.clone());
        let sessions = config.mcp.sessions as usize;
        let bounds = Bounds { connections: sessions, ..Bounds::default() };
        let times = Times { idle: config.mcp.idle, ..Times::default() };
        // Beside the thread that drives QUIC and the nodes' heartbeats.
        let options = QuicOptions { bounds, times, runtime: Some(runtime.clone()), ..QuicOptions::new(tls.clone(), proves) };
        Door::new(move || server.clone(), options)
    });
    Ok(Laid { children, files, mounts, served: Served { tools, door, over_http, end, drain } })
}

/// What answers edits of rows and rules, on the owner of `control.db`.
fn administration(exchange: &Exchange, databases: &Databases, registry: Registry) -> Result<ChildSpec, RegisterError> {
    let databases = databases.clone();
    let open = move |_: Context| {
        let (databases, registry) = (databases.clone(), registry.clone());
        async move {
            let file = databases.open_with(control::FILE, control::MIGRATIONS, control::READERS).await?;
            Ok(Administration::new(file.writer, file.readers, registry))
        }
    };
    service(exchange, &Handle::current(), ServiceSpec::new(NAME.parse().expect("a literal name")), open)
}

fn http_options(config: &Config, verify: Arc<dyn Verify>, drain: CancellationToken) -> HttpOptions {
    let section = &config.mcp;
    let base = section.address.as_ref().map(|address| address.to_string().into());
    HttpOptions {
        sessions: section.sessions as usize,
        session_idle: section.http_idle,
        hosts: section.hosts.iter().map(ToString::to_string).collect(),
        names: names(config),
        origins: section.allowed_origins.iter().map(ToString::to_string).collect(),
        resource: Resource { base, ..Resource::default() },
        remote,
        verify: Some(verify),
        drain,
        ..HttpOptions::default()
    }
}

/// The names that are this node's by its configuration, and so nobody else's: a page under one of them is of this node.
fn names(config: &Config) -> Vec<String> {
    let address = config.mcp.address.iter().filter_map(|address| address.to_string().parse::<Uri>().ok()?.host().map(str::to_owned));
    let domains = if config.http.tls == HttpTls::Acme { &*config.http.acme_domains } else { &[] };
    let advertised = config.listen.advertise.iter().map(|advertised| advertised.host.to_string());
    address.chain(domains.iter().cloned()).chain(advertised).collect()
}

fn options(config: &Config) -> Options {
    let section = &config.mcp;
    Options {
        in_flight: section.calls as usize,
        in_flight_per_caller: section.calls_per_caller as usize,
        max_output: section.result.bytes(),
    }
}

/// From where a request comes, as the port has found out.
fn remote(extensions: &Extensions) -> Option<SocketAddr> {
    extensions.get::<Client>().map(|client| SocketAddr::new(client.0, 0))
}

/// The node's own way to tell what a key or a token proves.
struct Proves(Verifier);

impl Verify for Proves {
    fn verify(&self, credential: &Credential) -> BoxFuture<'static, Result<Arc<Principal>, Denied>> {
        self.0.verify(&credential.0)
    }

    fn changes(&self) -> Option<watch::Receiver<u64>> {
        Some(self.0.changes())
    }
}

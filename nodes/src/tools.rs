//! The node's tools: rows of `control.db` and what the program registered, for whoever speaks MCP to this node.
//!
//! Laid out behind the router, which tools call by, and started behind the services, under `root/data/tools`. Who called what is in
//! `tools.db`, which is this node's alone.

use std::{net::SocketAddr, sync::Arc};

use futures_util::future::BoxFuture;
use horos_edge::{Access, Client, Mount, MountError, Plane};
use horos_identity::Verifier;
use horos_link::tls::Tls;
use horos_store::watch::{WatchConfig, WatchStartError, Watcher};
use horos_supervision::{ChildSpec, Context, Exchange, ServiceSpec, exchange::RegisterError, service};
use horos_tools::{
    Credential, Kinds, Options, PassOn, Registry, ToNode, Tools, Verify,
    admin::{Administration, Node},
    audit::{Audit, FILE},
    http::{Options as HttpOptions, service as over_http},
    operate::Desk,
    quic::{Bounds, Door, Options as QuicOptions, Times},
    reload,
    server::{Server, View},
};
use horos_wire::{
    principal::{Denied, Principal},
    protocol::registry::NAME,
};
use http::Extensions;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::{config::Config, control, databases::Databases, router::follow};

/// Where MCP is served, and what of it where only a few tools are to be listed.
const PATHS: [(&str, View); 2] = [("/mcp", View::All), ("/mcp/search", View::Search)];

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
    pub(crate) mounts: Vec<Mount>,
    /// Where MCP comes in over QUIC, where it does.
    pub(crate) door: Option<Door>,
    /// Ends whatever of MCP is still open.
    pub(crate) drain: CancellationToken,
}

/// The node, as far as its tools need it.
pub(crate) struct Here<'a> {
    pub(crate) exchange: &'a Exchange,
    pub(crate) databases: &'a Databases,
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
    let Here { exchange, databases, tls, verifier, runtime } = here;
    let proves: Arc<dyn Verify> = Arc::new(Proves(verifier));
    let owner = &config.control.owner;
    let pass_on: Arc<dyn PassOn> = Arc::new(ToNode::new(Context::new(exchange.clone(), "tools"), owner.clone()));
    let desk = Desk::new(exchange.clone(), owner.clone(), Some(pass_on));
    let registry = Registry::new(Kinds::default(), desk.tools());
    let audit = Audit::new(databases.options(FILE));
    let tools = Tools::new(registry.clone(), audit.clone(), options(config));
    let path = config.data.join(control::FILE);
    let watcher = Watcher::start(WatchConfig::new(&path))?;
    let mut children = audit.children();
    children.push(reload::child(registry.clone(), path, watcher.clone()));
    children.push(Node::new(tools.clone(), proves.clone()).child(exchange)?);
    if control::is_owner(config) {
        children.push(follow("follow-tools", watcher, databases.clone()));
        children.push(administration(exchange, databases, registry)?);
    }
    let drain = CancellationToken::new();
    let origins = config.mcp.allowed_origins.iter().map(ToString::to_string).collect();
    let options = HttpOptions { remote, origins, drain: drain.clone(), ..HttpOptions::default() };
    let served = PATHS.into_iter().filter(|_| config.mcp.enabled);
    let mounts = served.map(|(path, view)| {
        let server = Server::new(tools.clone()).with_view(view);
        let service = over_http(move || server.clone(), options.clone());
        // What was shown goes on with a call that another node has to make, and is proved there again.
        Ok(Mount::new(path, Access::PerRequest, Plane::Public, service)?.keeping_credentials())
    });
    let mounts = mounts.collect::<Result<_, MountError>>()?;
    let door = config.mcp.enabled.then(|| {
        let server = Server::new(tools.clone());
        let sessions = config.mcp.sessions as usize;
        let bounds = Bounds { connections: sessions, ..Bounds::default() };
        let times = Times { idle: config.mcp.idle, ..Times::default() };
        // Beside the thread that drives QUIC and the nodes' heartbeats.
        let options = QuicOptions { bounds, times, runtime: Some(runtime.clone()), ..QuicOptions::new(tls.clone(), proves) };
        Door::new(move || server.clone(), options)
    });
    Ok(Laid { children, mounts, door, drain })
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
}

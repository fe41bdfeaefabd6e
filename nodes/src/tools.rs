//! The node's tools: rows of `control.db` and what the program registered, for whoever speaks MCP to this node.
//!
//! Laid out behind the router, which tools call by, and started behind the services, under `root/data/tools`. Who called what is in
//! `tools.db`, which is this node's alone.

use std::{net::SocketAddr, sync::Arc};

use futures_util::future::BoxFuture;
use horos_edge::{Access, Client, Mount, MountError, Plane};
use horos_identity::Verifier;
use horos_supervision::{ChildSpec, Context, Exchange, exchange::RegisterError};
use horos_tools::{
    Credential, Kinds, Options, PassOn, Registry, ToNode, Tools, Verify,
    admin::Node,
    audit::{Audit, FILE},
    http::{Options as HttpOptions, service},
    operate::Desk,
    server::{Server, View},
};
use horos_wire::principal::{Denied, Principal};
use http::Extensions;
use tokio_util::sync::CancellationToken;

use crate::{config::Config, databases::Databases};

/// Where MCP is served, and what of it where only a few tools are to be listed.
const PATHS: [(&str, View); 2] = [("/mcp", View::All), ("/mcp/search", View::Search)];

/// Why a node has no tools.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ToolsError {
    #[error(transparent)]
    Mount(#[from] MountError),
    #[error(transparent)]
    Register(#[from] RegisterError),
}

/// A node's tools, laid out.
pub(crate) struct Laid {
    /// What is to run.
    pub(crate) children: Vec<ChildSpec>,
    pub(crate) mounts: Vec<Mount>,
    /// Ends whatever of MCP is still open.
    pub(crate) drain: CancellationToken,
}

/// The tools of a node, and what is to run; nothing does before.
///
/// # Errors
/// [`ToolsError`].
pub(crate) fn lay(config: &Config, exchange: &Exchange, databases: &Databases, verifier: Verifier) -> Result<Laid, ToolsError> {
    let proves: Arc<dyn Verify> = Arc::new(Proves(verifier));
    let owner = &config.control.owner;
    let pass_on: Arc<dyn PassOn> = Arc::new(ToNode::new(Context::new(exchange.clone(), "tools"), owner.clone()));
    let desk = Desk::new(exchange.clone(), owner.clone(), Some(pass_on));
    let registry = Registry::new(Kinds::default(), desk.tools());
    let audit = Audit::new(databases.options(FILE));
    let tools = Tools::new(registry, audit.clone(), options(config));
    let mut children = audit.children();
    children.push(Node::new(tools.clone(), proves).child(exchange)?);
    let drain = CancellationToken::new();
    let origins = config.mcp.allowed_origins.iter().map(ToString::to_string).collect();
    let options = HttpOptions { remote, origins, drain: drain.clone(), ..HttpOptions::default() };
    let served = PATHS.into_iter().filter(|_| config.mcp.enabled);
    let mounts = served.map(|(path, view)| {
        let server = Server::new(tools.clone()).with_view(view);
        let service = service(move || server.clone(), options.clone());
        // What was shown goes on with a call that another node has to make, and is proved there again.
        Ok(Mount::new(path, Access::PerRequest, Plane::Public, service)?.keeping_credentials())
    });
    let mounts = mounts.collect::<Result<_, MountError>>()?;
    Ok(Laid { children, mounts, drain })
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

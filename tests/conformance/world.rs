//! The server under test: our port and our doors, as a node opens them, with the suite's fixtures before our own server.

use std::collections::HashMap;
use std::fs::Permissions;
use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use horos_edge::{
    Access, Authenticator, Conditions, Config, Credential, Drain, Edge, Http3, Listener, Maintenance, Metrics, Mount, Parts, Plane,
    Sockets, Source,
};
use horos_link::{Admission, AlpnHandler, PublicEndpoint};
use horos_supervision::{Strategy, Supervisor, SupervisorHandle, SupervisorSpec};
use horos_tools::audit::Audit;
use horos_tools::server::Server;
use horos_tools::{Kinds, Options, Registry, Tools, http};
use horos_wire::principal::{Denied, Principal, Proof};
use tempfile::TempDir;
use tokio::runtime::Handle;

use super::fixtures::{Fixtures, Shared};
use crate::harness::{Site, data_dir};

/// The one key that is good.
pub(crate) const KEY: &str = "hk_0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
/// Where MCP is mounted.
pub(crate) const PATH: &str = "/mcp";

/// A server under test, until it is dropped.
pub(crate) struct Served {
    pub(crate) site: Site,
    _edge: Edge,
    _endpoint: PublicEndpoint,
    _supervisor: SupervisorHandle,
    _directory: TempDir,
}

/// Knows one key.
struct OneKey(Arc<Principal>);

impl Authenticator for OneKey {
    fn recall(&self, credential: &Credential) -> Option<Result<Arc<Principal>, Denied>> {
        let good = matches!(credential, Credential::Key(key) if **key == *KEY);
        Some(if good { Ok(self.0.clone()) } else { Err(Denied::Unknown) })
    }

    fn verify(&self, credential: Credential) -> BoxFuture<'static, Result<Arc<Principal>, Denied>> {
        let known = self.recall(&credential).unwrap_or(Err(Denied::Unknown));
        async move { known }.boxed()
    }
}

impl Served {
    /// Opens it on a port of loopback.
    pub(crate) async fn start() -> Self {
        let directory = data_dir();
        let (certificate, key) = (directory.path().join("certificate.pem"), directory.path().join("key.pem"));
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        std::fs::write(&certificate, made.cert.pem()).unwrap();
        std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        // A key that others may read is taken by no node.
        std::fs::set_permissions(&key, Permissions::from_mode(0o600)).unwrap();

        let shared = Arc::new(Shared::new());
        let server = Server::new(Tools::new(Registry::new(Kinds::default(), Vec::new()), Audit::in_memory(), Options::default()));
        let factory = move || Fixtures::new(server.clone(), shared.clone());
        // The suite asks as a page of the bridge's would.
        let options = http::Options { origins: vec!["http://127.0.0.1:*".to_owned()], ..http::Options::default() };
        let service = http::service(factory, options);
        let mount = Mount::new(PATH, Access::PerRequest, Plane::Both, service).unwrap();

        let Sockets { tcp, udp, address } = Sockets::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let (conditions, drain, metrics, config) = (Conditions::default(), Drain::default(), Metrics::default(), Config::default());
        let proof = Proof::Key { owner: "suite".into() };
        let principal = Principal { id: "conformance".into(), proof, scopes: Box::default(), per_minute: None };
        let parts = Parts {
            runtime: Handle::current(),
            mounts: vec![mount],
            authenticator: Arc::new(OneKey(Arc::new(principal))),
            conditions: conditions.clone(),
            maintenance: Maintenance::new(conditions),
            drain: drain.clone(),
            metrics: metrics.clone(),
            certificate: Source::Files { certificate: certificate.clone(), key },
            listeners: vec![Listener { tcp, plane: Plane::Both, address }],
        };
        let edge = Edge::open(config.clone(), parts).unwrap();
        let http3 = Http3::new(edge.app().clone(), Arc::new(config), metrics, drain, Handle::current());
        let doors: HashMap<Vec<u8>, Arc<dyn AlpnHandler>> = HashMap::from([(Http3::ALPN.to_vec(), http3.door(Plane::Both))]);
        let endpoint = open(udp, &edge, doors);
        let children = edge.children().into_iter().chain(endpoint.children()).collect();
        let supervisor = Supervisor::start(SupervisorSpec::new("served", Strategy::OneForOne, children), None).await.unwrap();
        let site = Site { address, name: "localhost".to_owned(), authority: certificate };
        Self { site, _edge: edge, _endpoint: endpoint, _supervisor: supervisor, _directory: directory }
    }
}

fn open(udp: UdpSocket, edge: &Edge, doors: HashMap<Vec<u8>, Arc<dyn AlpnHandler>>) -> PublicEndpoint {
    PublicEndpoint::open(udp, Admission::default(), edge.certificates(), doors).unwrap()
}

//! The server under test: a node's port and its doors, of the parts that a node is made of, with the suite's fixtures before our own
//! server. Nothing else of a node runs.

use std::sync::Arc;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use horos_edge::{
    Access, Authenticator, Conditions, Config, Drain, Edge, Http3, Listener, Maintenance, Metrics, Mount, Parts, Plane, Sockets, Source,
};
use horos_link::identity::authority::{self, Authority};
use horos_link::identity::certificate::Validity;
use horos_link::identity::{CA_CERTIFICATE, request};
use horos_link::tls::Tls;
use horos_link::{Config as LinkConfig, Endpoint, Parts as LinkParts};
use horos_supervision::{Exchange, Strategy, Supervisor, SupervisorHandle, SupervisorSpec};
use horos_tools::audit::Audit;
use horos_tools::quic::{self, Door};
use horos_tools::server::Server;
use horos_tools::{Credential, Kinds, Options, Registry, Tools, Verify, http};
use horos_wire::policy::Policy;
use horos_wire::principal::{Denied, Principal, Proof};
use horos_wire::{Incarnation, NodeId};
use jiff::Timestamp;
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
    _endpoint: Endpoint,
    _supervisors: [SupervisorHandle; 2],
    _directory: TempDir,
}

/// Knows one key.
struct OneKey(Arc<Principal>);

impl OneKey {
    fn prove(&self, shown: &str) -> Result<Arc<Principal>, Denied> {
        if shown == KEY { Ok(self.0.clone()) } else { Err(Denied::Unknown) }
    }
}

impl Authenticator for OneKey {
    fn recall(&self, credential: &horos_edge::Credential) -> Option<Result<Arc<Principal>, Denied>> {
        let (horos_edge::Credential::Key(shown) | horos_edge::Credential::Token(shown)) = credential;
        Some(self.prove(shown))
    }

    fn verify(&self, credential: horos_edge::Credential) -> BoxFuture<'static, Result<Arc<Principal>, Denied>> {
        let known = self.recall(&credential).unwrap_or(Err(Denied::Unknown));
        async move { known }.boxed()
    }
}

impl Verify for OneKey {
    fn verify(&self, credential: &Credential) -> BoxFuture<'static, Result<Arc<Principal>, Denied>> {
        let known = self.prove(&credential.0);
        async move { known }.boxed()
    }
}

impl Served {
    /// Opens it on a port of loopback, for TCP and UDP.
    pub(crate) async fn start() -> Self {
        let directory = data_dir();
        let (site, tls) = identity(&directory);
        let keys = {
            let proof = Proof::Key { owner: "suite".into() };
            Arc::new(OneKey(Arc::new(Principal { id: "suite".into(), proof, scopes: Box::default(), per_minute: None })))
        };
        let fixtures = {
            let server = Server::new(Tools::new(Registry::new(Kinds::default(), Vec::new()), Audit::in_memory(), Options::default()));
            let shared = Arc::new(Shared::new());
            move || Fixtures::new(server.clone(), shared.clone())
        };
        let Sockets { tcp, udp, address } = Sockets::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        // The suite asks as a page of the bridge's would, for another port.
        let options = http::Options { origins: vec!["http://127.0.0.1:*".to_owned()], ..http::Options::default() };
        let mount = Mount::new(PATH, Access::PerRequest, Plane::Both, http::service(fixtures.clone(), options)).unwrap();
        let (conditions, drain, metrics, config) = (Conditions::default(), Drain::default(), Metrics::default(), Config::default());
        let parts = Parts {
            runtime: Handle::current(),
            mounts: vec![mount],
            authenticator: keys.clone(),
            conditions: conditions.clone(),
            maintenance: Maintenance::new(conditions),
            drain: drain.clone(),
            metrics: metrics.clone(),
            certificate: Source::Cluster(tls.certificate()),
            listeners: vec![Listener { tcp, plane: Plane::Both, address }],
        };
        let edge = Edge::open(config.clone(), parts).unwrap();
        let http3 = Http3::new(edge.app().clone(), Arc::new(config), metrics, drain, Handle::current());

        let mut doors = Door::new(fixtures, quic::Options::new(tls.clone(), keys)).handlers();
        doors.insert(Http3::ALPN.to_vec(), http3.door(Plane::Both));
        let exchange = Exchange::new(tls.credentials().id().clone(), Incarnation(1));
        let parts = LinkParts { exchange, policy: Arc::new(Policy::builtin()), tls, release: "test", public: None };
        let mut config = LinkConfig::new(address);
        config.gossip = false;
        let link = Supervisor::start(SupervisorSpec::new("link", Strategy::OneForOne, Vec::new()), None).await.unwrap();
        let endpoint = Endpoint::open_on(udp, config, parts, doors, link.clone()).unwrap();
        for child in endpoint.children() {
            link.add_child(child).await.unwrap();
        }
        let port = Supervisor::start(SupervisorSpec::new("edge", Strategy::OneForOne, edge.children()), None).await.unwrap();
        let site = Site { address, ..site };
        Self { site, _edge: edge, _endpoint: endpoint, _supervisors: [link, port], _directory: directory }
    }
}

/// The identity of a node, and what others know it by; its address is yet to come.
fn identity(directory: &TempDir) -> (Site, Arc<Tls>) {
    let now = Timestamp::now();
    let id = NodeId::from_uri("spiffe://shop/bo/bo-1").unwrap();
    let authority = Authority::create(&directory.path().join("authority"), &id.cluster, Validity::days(now, 365)).unwrap();
    let holder = directory.path().join("holder");
    let request = std::fs::read_to_string(request::create(&holder, &id).unwrap()).unwrap();
    let (certificate, _) = authority.sign(&request, &id, Validity::usual(now, &id)).unwrap();
    request::install(&holder, &certificate, authority.certificate_pem(), now).unwrap();
    let tls = Arc::new(Tls::open(&holder, now).unwrap());
    let address = ([127, 0, 0, 1], 0).into();
    (Site { address, name: authority::domain(&id), authority: holder.join(CA_CERTIFICATE) }, tls)
}

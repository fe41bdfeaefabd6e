//! Servers over QUIC: the doors of this cluster's nodes, by certificate, and those of others.
//!
//! A node is found by its name where the link knows it, and proves to be that node. A stranger's host is resolved and checked by
//! [`Egress`] as any other is, and proves its name to the authorities that egress believes.

use std::{
    fmt,
    net::{Ipv6Addr, SocketAddr},
    sync::{Arc, OnceLock},
};

use horos_egress::Egress;
use horos_link::{
    Peers,
    tls::{Expected, Tls},
};
use horos_wire::{NoEffect, NodeId, NodeName, tree::Health};
use parking_lot::Mutex;
use quinn::{ClientConfig, Endpoint, crypto::rustls::QuicClientConfig};

use super::error::{ClientError, of_egress};
use crate::{
    Credential,
    quic::{ALPNS, DialError, DialOptions, SendError, Transport, connect, transport_config},
};

/// What a node's own name is on its side of a handshake; whom it expects is checked by certificate.
const NODE: &str = horos_link::tls::SERVER_NAME;

/// How nodes of this cluster are reached. Both come with the link, which is opened after the routes are laid out.
#[derive(Clone)]
struct Cluster {
    tls: Arc<Tls>,
    peers: Arc<Peers>,
}

/// The ways over QUIC. Opens no socket before one is used.
#[derive(Default)]
pub(super) struct Quic {
    cluster: OnceLock<Cluster>,
    endpoint: Mutex<Option<Endpoint>>,
}

impl fmt::Debug for Quic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Quic").field("cluster", &self.cluster.get().is_some()).finish_non_exhaustive()
    }
}

impl Quic {
    pub(super) fn reach_nodes(&self, tls: Arc<Tls>, peers: Arc<Peers>) {
        // The first is the node's own; there is no other.
        let _ = self.cluster.set(Cluster { tls, peers });
    }

    /// A session with the door of the node `name`.
    pub(super) async fn node(&self, name: &NodeName) -> Result<Transport, ClientError> {
        let unreachable = |why: &str| ClientError::from(NoEffect::NoRoute(format!("node:{name}: {why}").into()));
        let cluster = self.cluster.get().ok_or_else(|| unreachable("this node has no link"))?;
        let (node, addresses) = cluster.find(name).ok_or_else(|| unreachable("no such node is known"))?;
        let mut config = cluster.tls.client(&ALPNS, Expected::Node(node));
        config.transport_config(Arc::new(transport_config()));
        self.first(&addresses, &config, NODE, DialOptions::default(), &format!("node:{name}")).await
    }

    /// A session with a server at `host` and `port`.
    pub(super) async fn host(
        &self,
        egress: &Egress,
        host: &str,
        port: u16,
        credential: Option<Credential>,
    ) -> Result<Transport, ClientError> {
        let known = format!("quic://{host}:{port}");
        let addresses = egress.addresses(host, port).await.map_err(|error| of_egress(&error, &known))?;
        let crypto = QuicClientConfig::try_from(egress.tls(&ALPNS));
        let crypto = crypto.map_err(|error| ClientError::from(NoEffect::NoRoute(format!("{known}: {error}").into())))?;
        let mut config = ClientConfig::new(Arc::new(crypto));
        config.transport_config(Arc::new(transport_config()));
        self.first(&addresses, &config, host, DialOptions { credential, ..DialOptions::default() }, &known).await
    }

    /// The first of `addresses` that answers.
    async fn first(
        &self,
        addresses: &[SocketAddr],
        config: &ClientConfig,
        name: &str,
        options: DialOptions,
        known: &str,
    ) -> Result<Transport, ClientError> {
        let endpoint = self.endpoint().map_err(|error| ClientError::from(NoEffect::NoRoute(format!("{known}: {error}").into())))?;
        let mut last = NoEffect::NoRoute(format!("{known}: it has no address").into()).into();
        for address in addresses {
            match connect(&endpoint, config.clone(), *address, name, options.clone()).await {
                Ok(transport) => return Ok(transport),
                Err(error) => last = of_dial(&error, known),
            }
        }
        Err(last)
    }

    /// The socket of all connections; another if it broke.
    fn endpoint(&self) -> std::io::Result<Endpoint> {
        let mut endpoint = self.endpoint.lock();
        if let Some(endpoint) = &*endpoint
            && endpoint.local_addr().is_ok()
        {
            return Ok(endpoint.clone());
        }
        // Both families by one socket, where the system has both.
        let opened = Endpoint::client((Ipv6Addr::UNSPECIFIED, 0).into()).or_else(|_| Endpoint::client(([0, 0, 0, 0], 0).into()))?;
        Ok(endpoint.insert(opened).clone())
    }
}

impl Cluster {
    /// Who that is and where it can be dialled; nodes of that name that are up before those that were only heard of.
    fn find(&self, name: &NodeName) -> Option<(NodeId, Vec<SocketAddr>)> {
        let me = self.peers.node();
        if me.name == *name {
            return Some((me.clone(), self.peers.addresses()));
        }
        let mut known: Vec<_> = self.peers.known().into_iter().filter(|known| known.node.name == *name).collect();
        known.sort_by_key(|known| known.health != Health::Up);
        known.into_iter().map(|known| (known.node, known.addresses)).next()
    }
}

fn of_dial(error: &DialError, known: &str) -> ClientError {
    let text = || Box::<str>::from(format!("{known}: {error}"));
    match error {
        DialError::Closed(SendError::Unauthenticated(_)) => NoEffect::NotAllowed(text()).into(),
        DialError::Closed(SendError::Limit(_)) => NoEffect::Overloaded(text()).into(),
        DialError::Alpn | DialError::Closed(SendError::Violation(_)) => NoEffect::VersionNotSpoken(text()).into(),
        _ => NoEffect::NoRoute(text()).into(),
    }
}

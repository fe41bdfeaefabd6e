//! Where a node is come in by: its port, TCP and UDP under one number, and the public's where that is another.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use horos_edge::{Edge, Http3, ListenError, Listener, Plane, Sockets, Source};
use horos_link::{
    Admission, AdmissionCounters, Endpoint, Handlers, Limits, Parts as LinkParts, PublicEndpoint,
    tls::{Expected, Tls},
};
use horos_supervision::{ChildSpec, SupervisorHandle};
use horos_tools::quic::Door;
use horos_wire::{NodeId, session::Liveness};

use super::NodeError;
use crate::{
    advertise::{self, AdvertiseError},
    config::{Config, HttpTls, Listen, Seed},
    memory,
    tools::Served,
};

/// The sockets, before anything is opened that would have to be closed when one of them is taken.
pub(super) struct Bound {
    pub(super) cluster: Sockets,
    pub(super) public: Option<Sockets>,
}

impl Bound {
    pub(super) fn bind(listen: &Listen) -> Result<Self, ListenError> {
        Ok(Self { cluster: Sockets::bind(listen.cluster)?, public: listen.public.map(Sockets::bind).transpose()? })
    }

    /// Where others are told to dial the cluster's address; nothing where that is as it was bound.
    pub(super) async fn advertised(&self, listen: &Listen) -> Result<Vec<SocketAddr>, AdvertiseError> {
        let bound = self.cluster.address;
        if listen.advertise.is_empty() && bound.ip().is_unspecified() {
            tracing::warn!(
                "this node listens on every address and tells other nodes none: only those find it that have it among their seeds; \
                 listen.advertise says where it can be dialled"
            );
        }
        advertise::resolve(&listen.advertise, bound.port()).await
    }

    /// Where HTTP is served, as people write it; the cluster's address first.
    pub(super) fn http(&self, tls: HttpTls) -> Vec<Box<str>> {
        let scheme = if tls == HttpTls::Plain { "http" } else { "https" };
        self.addresses().map(|address| format!("{scheme}://{address}").into()).collect()
    }

    /// The cluster's address, and the public's where that is another.
    pub(super) fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        [Some(&self.cluster), self.public.as_ref()].into_iter().flatten().map(|sockets| sockets.address)
    }

    /// The TCP halves for HTTP, and the UDP halves for QUIC.
    pub(super) fn split(self) -> (Vec<Listener>, Udp) {
        let plane = if self.public.is_some() { Plane::Cluster } else { Plane::Both };
        let Sockets { tcp, udp: cluster, address } = self.cluster;
        let mut listeners = vec![Listener { tcp, plane, address }];
        let public = self.public.map(|Sockets { tcp, udp, address }| {
            listeners.push(Listener { tcp, plane: Plane::Public, address });
            udp
        });
        (listeners, Udp { cluster, public })
    }
}

/// The UDP halves.
pub(super) struct Udp {
    cluster: std::net::UdpSocket,
    public: Option<std::net::UdpSocket>,
}

/// What is served over QUIC besides the nodes' protocol.
pub(super) struct Quic {
    pub(super) http3: Http3,
    /// MCP, for the cluster's address and the public's.
    pub(super) mcp: Served,
    /// Protocols of nodes that are not ours, for the cluster's address.
    pub(super) others: Handlers,
}

/// Everything that is come in by.
pub(super) struct Doors {
    pub(super) endpoint: Endpoint,
    public: Option<PublicEndpoint>,
    edge: Edge,
    /// None where there is no TLS: HTTP/3 is never without.
    http3: Option<Http3>,
    mcp: Served,
}

/// The protocol's name in TLS (RFC 9114 §3.1).
const H3: &[u8] = b"h3";

impl Doors {
    /// Opens QUIC beside `edge`, with the certificate that HTTPS has.
    pub(super) fn open(
        config: &Config,
        udp: Udp,
        advertise: Vec<SocketAddr>,
        edge: Edge,
        quic: Quic,
        mut parts: LinkParts,
        sessions: SupervisorHandle,
    ) -> Result<Self, NodeError> {
        let Quic { http3, mcp, others } = quic;
        let http3 = (config.http.tls != HttpTls::Plain).then_some(http3);
        let handlers = |plane| -> Handlers {
            let http3 = http3.iter().map(|http3| (H3.to_vec(), http3.door(plane)));
            http3.chain(mcp.door.iter().flat_map(Door::handlers)).collect()
        };
        parts.public = http3.is_some().then(|| edge.certificates());
        let plane = if udp.public.is_some() { Plane::Cluster } else { Plane::Both };
        let link = horos_link::Config { advertise, ..link_config(config)? };
        let endpoint = Endpoint::open_on(udp.cluster, link, parts, handlers(plane).into_iter().chain(others).collect(), sessions)?;
        let public = udp
            .public
            .filter(|_| http3.is_some())
            .map(|socket| PublicEndpoint::open(socket, admission(config), edge.certificates(), handlers(Plane::Public)));
        Ok(Self { endpoint, public: public.transpose()?, edge, http3, mcp })
    }

    /// HTTP's part of the tree.
    pub(super) fn edge(&self) -> Vec<ChildSpec> {
        self.edge.children()
    }

    /// The link's part of the tree.
    pub(super) fn link(&self) -> Vec<ChildSpec> {
        let public = self.public.iter().flat_map(PublicEndpoint::children);
        self.endpoint.children().into_iter().chain(public).collect()
    }

    /// What became of whoever came by UDP, by the name of its door.
    pub(super) fn counters(&self) -> Vec<(&'static str, Arc<AdmissionCounters>)> {
        let public = self.public.iter().map(|public| ("public", public.counters().clone()));
        std::iter::once(("cluster", self.endpoint.counters().clone())).chain(public).collect()
    }

    /// Takes nobody new; returns when nobody's work is in hand any more, or at `until`. The link stays open for what HTTP's
    /// requests still call.
    pub(super) async fn drain(&self, until: Instant) {
        self.endpoint.stop_accepting();
        if let Some(public) = &self.public {
            public.stop_accepting();
        }
        let http3 = async {
            if let Some(http3) = &self.http3 {
                // What is left then, `close` cuts.
                let _ = tokio::time::timeout_at(until.into(), http3.emptied()).await;
            }
        };
        tokio::join!(self.edge.drained(until), http3, self.mcp.drain(until), self.endpoint.peers().drain(until));
    }

    /// Closes whatever is left.
    pub(super) async fn close(&self, within: Duration) {
        let public = async {
            if let Some(public) = &self.public {
                public.close(within).await;
            }
        };
        tokio::join!(self.endpoint.close(within), public);
    }
}

/// Where HTTPS's certificate comes from.
pub(super) fn certificate(config: &Config, tls: &Tls) -> Source {
    let http = &config.http;
    match http.tls {
        HttpTls::Plain => Source::Plain,
        HttpTls::Cluster => Source::Cluster(tls.certificate()),
        HttpTls::Development => Source::Development { directory: config.data.join("development") },
        HttpTls::Files => {
            let (certificate, key) = http.files().expect("the configuration was checked");
            Source::Files { certificate: certificate.clone(), key: key.clone() }
        }
        #[cfg(feature = "acme")]
        HttpTls::Acme => Source::Acme(acme(config)),
        #[cfg(not(feature = "acme"))]
        HttpTls::Acme => unreachable!("the configuration was checked: this program has no ACME"),
    }
}

#[cfg(feature = "acme")]
fn acme(config: &Config) -> horos_edge::Acme {
    let http = &config.http;
    horos_edge::Acme {
        directory_url: http.acme_directory.as_str().into(),
        contact: http.acme_contact.as_deref().map(Into::into),
        domains: http.acme_domains.iter().map(|domain| domain.as_str().into()).collect(),
        directory: config.data.join("acme"),
        trust: None,
    }
}

/// The link's configuration as the node's says it.
fn link_config(config: &Config) -> Result<horos_link::Config, NodeError> {
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
    link.admission = admission(config);
    link.greet = memory::peers(&config.data);
    let secret = memory::secret(&config.data);
    link.secret = Some(secret.map_err(|source| NodeError::Io { action: "keep the endpoint's secret in the data directory", source })?);
    Ok(link)
}

fn admission(config: &Config) -> Admission {
    Admission {
        handshakes: config.limits.handshakes as usize,
        handshakes_per_address: config.limits.handshakes_per_address as usize,
        handshake_timeout: config.limits.handshake_timeout,
        sessions: config.limits.connections as usize,
    }
}

fn expected(config: &Config, seed: &Seed) -> Expected {
    match (&seed.name, seed.role) {
        (Some(name), Some(role)) => Expected::Node(NodeId { cluster: config.cluster.name.clone(), role, name: name.clone() }),
        (None, Some(role)) => Expected::Role(role),
        _ => Expected::AnyNode,
    }
}

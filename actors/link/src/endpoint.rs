//! The one QUIC endpoint of a node: who comes in, by which protocol, and who is dialled.
//!
//! Opened by `nodes`; its accept loop, its dialer, its gossip and the owner of other protocols' connections are children of
//! the link's supervisor, and so is every session. [`crate::door`] says who comes in. Client certificates are optional to
//! TLS, which cannot tell protocols apart, so each ALPN's handler looks at its peer before it reads; the nodes' protocol
//! admits nobody without a certificate of this cluster, and only then are a connection's limits those of a link.

use std::{
    collections::HashSet,
    fmt, io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use aws_lc_rs::hmac;
use futures_util::future::BoxFuture;
use horos_supervision::{ChildSpec, OnStuck, Restart, Start, StartError, SupervisorHandle, Vitals, worker};
use horos_wire::{control::Close, tree::Kind};
use jiff::Timestamp;
use parking_lot::Mutex;
use quinn::{Connection, ConnectionError, EndpointConfig, TransportConfig};
use ractor::Actor;

use crate::{
    config::{Config, Parts, Secret},
    counters::{AdmissionCounters, count},
    dial::PATIENCE,
    door::{self, Door},
    gone,
    peer::{Peer, PeerArgs, Side},
    peers::Peers,
    ration::Ration,
    served::{Handlers, Served},
    tls::{self, Expected, RefusedByPeer, SERVER_NAME},
    transport,
};

/// The protocol between nodes.
pub const ALPN: &[u8] = b"horos/1";

/// Why an endpoint could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EndpointError {
    /// The address is taken.
    #[error("{address} is in use: another node runs there, or choose another listen.cluster")]
    InUse {
        /// The address.
        address: SocketAddr,
    },
    /// The address cannot be bound.
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The socket that was given cannot be used.
    #[error("cannot use the socket: {0}")]
    Socket(#[source] io::Error),
    /// A handler was given for the nodes' own protocol: a fault of the program.
    #[error("horos/1 is the nodes' own protocol and takes no handler")]
    Reserved,
}

/// A node's endpoint. Cheap to clone.
#[derive(Clone)]
pub struct Endpoint {
    quinn: quinn::Endpoint,
    door: Door,
    config: Arc<Config>,
    peers: Arc<Peers>,
    supervisor: SupervisorHandle,
    /// What dials are made with.
    transport: Arc<TransportConfig>,
    next_session: Arc<std::sync::atomic::AtomicU64>,
    /// Addresses being dialled, so that a node known from two places is not dialled twice at once.
    dialling: Arc<Mutex<HashSet<SocketAddr>>>,
    /// How often it is said who was refused: whoever comes without a certificate costs the disk nothing.
    refusals: Arc<Ration>,
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Endpoint({:?})", self.quinn.local_addr())
    }
}

/// Lets a node recognise, and answer with a reset, what is still sent to its last life.
fn endpoint_config(secret: Option<Secret>) -> EndpointConfig {
    let Some(Secret(secret)) = secret else { return EndpointConfig::default() };
    let key = hmac::Key::new(hmac::HMAC_SHA256, &secret);
    // Two uses, two keys: what the generator shows in its connection ids says nothing about the reset key.
    let ids = hmac::sign(&key, b"horos connection ids");
    let ids = u64::from_le_bytes(*ids.as_ref().first_chunk().expect("SHA-256 has 32 bytes"));
    let reset = hmac::Key::new(hmac::HMAC_SHA256, hmac::sign(&key, b"horos stateless reset").as_ref());
    let mut config = EndpointConfig::new(Arc::new(reset));
    config.cid_generator(move || Box::new(quinn_proto::HashedConnectionIdGenerator::from_key(ids)));
    config
}

impl Endpoint {
    /// Opens the endpoint on a socket of its own at `config.listen`. Sessions become children of `supervisor`.
    ///
    /// # Errors
    /// [`EndpointError`] when the address cannot be had.
    pub fn open(config: Config, parts: Parts, handlers: Handlers, supervisor: SupervisorHandle) -> Result<Self, EndpointError> {
        let socket = transport::socket(config.listen)?;
        Self::open_on(socket, config, parts, handlers, supervisor)
    }

    /// Opens the endpoint on a socket that is bound already, by [`crate::socket`]: for a port number that is shared with a
    /// TCP listener. `config.listen` plays no part. To be called on the runtime that is to drive the endpoint.
    ///
    /// # Errors
    /// [`EndpointError::Reserved`] when a handler is given for the nodes' protocol; [`EndpointError::Socket`].
    pub fn open_on(
        socket: std::net::UdpSocket,
        config: Config,
        parts: Parts,
        handlers: Handlers,
        supervisor: SupervisorHandle,
    ) -> Result<Self, EndpointError> {
        if handlers.contains_key(ALPN) {
            return Err(EndpointError::Reserved);
        }
        let served = Served::new(handlers);
        // One that cannot be called (a person's command line) takes no connections.
        let server = parts.exchange.node().role.is_node().then(|| {
            let protocols: Vec<_> = std::iter::once(ALPN).chain(served.names()).collect();
            let mut server = match &parts.public {
                Some(public) => parts.tls.server_beside(&protocols, public.clone()),
                None => parts.tls.server(&protocols),
            };
            door::bounded(&mut server, &config.admission, transport::accepting(config.mtu));
            server
        });
        let runtime = Arc::new(quinn::TokioRuntime);
        let quinn = quinn::Endpoint::new(endpoint_config(config.secret), server, socket, runtime).map_err(EndpointError::Socket)?;
        let counters = AdmissionCounters { identities: parts.tls.refused().clone(), ..AdmissionCounters::default() };
        let door = Door::new(quinn.clone(), config.admission, Arc::new(counters), served);
        let peers = Peers::new(parts, config.liveness, config.limits);
        if peers.exchange.node().role.is_node() {
            let bound = quinn.local_addr().map_err(EndpointError::Socket)?;
            *peers.advertised.write() = match &*config.advertise {
                // Whoever dialled that would dial itself.
                [] if bound.ip().is_unspecified() => Vec::new(),
                [] => vec![bound],
                told => told.to_vec(),
            };
        }
        peers.exchange.connect(peers.clone());
        let transport = transport::transport(&config);
        Ok(Self {
            quinn,
            door,
            config: Arc::new(config),
            peers,
            supervisor,
            transport,
            next_session: Arc::default(),
            dialling: Arc::default(),
            refusals: Arc::default(),
        })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// When the socket is gone.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.quinn.local_addr()
    }

    /// The node's peers.
    pub fn peers(&self) -> &Arc<Peers> {
        &self.peers
    }

    /// What became of whoever came.
    pub fn counters(&self) -> &Arc<AdmissionCounters> {
        &self.door.counters
    }

    /// Connections that are open or closing, dialled ones included, whatever their protocol.
    pub fn open_connections(&self) -> usize {
        self.quinn.open_connections()
    }

    /// The children that the link's supervisor is to start: the accept loop, the owner of other protocols' connections,
    /// the dialer, and gossip.
    pub fn children(&self) -> Vec<ChildSpec> {
        let mut children = Vec::new();
        if self.peers.exchange.node().role.is_node() {
            let endpoint = self.clone();
            let accept = move |vitals| {
                let (door, endpoint) = (endpoint.door.clone(), endpoint.clone());
                let node = move |connection| {
                    let endpoint = endpoint.clone();
                    async move { endpoint.session(connection, Side::Acceptor).await }
                };
                door.run(vitals, node)
            };
            children.push(worker("accept", accept));
            if self.door.served.names().next().is_some() {
                let served = self.door.served.clone();
                children.push(worker("connections", move |vitals| served.clone().run(vitals)));
            }
        }
        let endpoint = self.clone();
        children.push(worker("dial", move |vitals| crate::dial::run(endpoint.clone(), vitals)));
        if self.config.gossip && self.peers.exchange.node().role.is_node() {
            let peers = self.peers.clone();
            children.push(worker("gossip", move |vitals| crate::membership::run(peers.clone(), vitals)));
        }
        children
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    /// Refuses new connections of every protocol from now on, at once (`CONNECTION_REFUSED`, RFC 9000 §20.1), so that who
    /// comes can look elsewhere. Open connections, sessions and handshakes in progress go on; so do dials.
    ///
    /// A node that stops does so in this order, or requests fail that need not:
    /// 1. it says that it is not ready, and waits until it is sent less;
    /// 2. `stop_accepting`;
    /// 3. the other protocols' handlers drain their connections (GOAWAY, then what is in hand), and beside that
    ///    [`Peers::drain`] the sessions;
    /// 4. [`close`](Self::close), which cuts whatever is left on the port, of any protocol.
    pub fn stop_accepting(&self) {
        self.door.shut();
    }

    /// Closes every session with a word, and every other connection on the endpoint, waits until the peers have it or
    /// `within` has passed, and gives the port back. What handlers are to finish, they have finished before: see [`stop_accepting`](Self::stop_accepting).
    pub async fn close(&self, within: Duration) {
        self.door.shut();
        self.peers.close_all(Close::GoingAway);
        self.quinn.close((Close::GoingAway as u32).into(), b"the node is stopping");
        // A peer that is gone cannot acknowledge.
        let _ = tokio::time::timeout(within, self.quinn.wait_idle()).await;
        gone::let_go(&self.quinn);
    }

    /// Starts the session of a proven connection.
    pub(crate) async fn session(&self, connection: quinn::Connection, side: Side) -> Result<(), Close> {
        let from = connection.remote_address();
        let identity = self.peers.tls.admit(&connection, Timestamp::now()).map_err(|refused| {
            if side == Side::Acceptor {
                self.door.counters.identities.count(&refused);
            }
            if self.refusals.allows("peers refused") {
                tracing::warn!(%from, %refused, "refused");
            }
            match refused {
                tls::PeerRefused::Revoked { .. } => Close::Revoked,
                _ => Close::Identity,
            }
        })?;
        if side == Side::Dialer && !identity.id.role.is_node() {
            tracing::warn!(%from, peer = %identity.id.to_uri(), "refused: only nodes are dialled");
            return Err(Close::Identity);
        }
        if identity.id.name == self.peers.exchange.node().name && identity.id.role.is_node() {
            return Err(Close::Identity);
        }
        // People have half of the places at most, so that they never keep a node out.
        let places = if identity.id.role.is_node() { self.config.admission.sessions } else { self.config.admission.sessions / 2 };
        let Some(place) = self.peers.enter(&identity.id, places) else {
            count(&self.door.counters.sessions_full);
            tracing::warn!(%from, peer = %identity.id.to_uri(), "refused: no more sessions");
            return Err(Close::Limit);
        };
        if side == Side::Acceptor {
            transport::admitted(&connection);
        }
        let number = self.next_session.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let name = format!("{}@{}#{number}", identity.id.role, identity.id.name);
        let vitals = Vitals::new(&name, Kind::Worker, Duration::from_secs(2));
        let peers = self.peers.clone();
        let once = Mutex::new(Some((connection, identity, place)));
        let start = move |start: Start| -> BoxFuture<'static, Result<ractor::ActorCell, StartError>> {
            let taken = once.lock().take();
            let peers = peers.clone();
            Box::pin(async move {
                let (connection, identity, place) = taken.ok_or_else(|| StartError::new("a session is started once"))?;
                let args = PeerArgs { connection, side, identity, place, peers, vitals: start.vitals };
                let spawned = Actor::spawn_linked(None, Peer, args, start.supervisor).await;
                let (actor, _) = spawned.map_err(|error| StartError::new(error.to_string()))?;
                Ok(actor.get_cell())
            })
        };
        let child = ChildSpec {
            name: name.as_str().into(),
            restart: Restart::Temporary,
            shutdown: Duration::from_secs(1),
            on_stuck: OnStuck::Report,
            vitals,
            start: Arc::new(start),
        };
        self.supervisor.add_child(child).await.map_err(|error| {
            tracing::error!(%from, %error, "the session could not be started");
            Close::Limit
        })
    }

    /// Dials a node and waits until its session is open: for callers that know whom they want and cannot wait for the dialer.
    ///
    /// # Errors
    /// Why there is no session, in words.
    pub async fn link_to(&self, address: SocketAddr, expected: Expected, within: Duration) -> Result<(), String> {
        let until = Instant::now() + within;
        let mut changed = self.peers.changed();
        let connection = self.dial(address, expected, within).await?;
        loop {
            changed.mark_unchanged();
            if self.peers.is_heard_out(address) {
                return Ok(());
            }
            tokio::select! {
                looked = tokio::time::timeout_at(until.into(), changed.changed()) => {
                    if looked.is_err() {
                        return Err("the session did not open in time".to_owned());
                    }
                }
                // In TLS 1.3 the dialler has finished before its certificate is judged (RFC 8446 §4.4.2.4).
                error = connection.closed() => return Err(told(&error)),
            }
        }
    }

    /// Dials once: an established connection's session, or why there is none.
    pub(crate) async fn dial(&self, address: SocketAddr, expected: Expected, patience: Duration) -> Result<Connection, String> {
        let _dialling = Dialling::begin(&self.dialling, address).ok_or(ALREADY)?;
        let connection = self.reach(address, &expected, patience).await?;
        match self.session(connection.clone(), Side::Dialer).await {
            Ok(()) => {
                self.peers.answered_at(address, &connection);
                Ok(connection)
            }
            Err(close) => {
                // Why the peer ended it, if it did, says more than that it ended.
                let why = connection.close_reason().map_or_else(|| close.to_string(), |error| told(&error));
                connection.close((close as u32).into(), close.to_string().as_bytes());
                Err(why)
            }
        }
    }

    /// Connects, with a fresh first packet every [`PATIENCE`] beside the one that is given all of `patience`.
    ///
    /// The one is for peers far away. The fresh ones are for a peer whose port opens meanwhile: QUIC would send the one's
    /// first packet again only after a second, and then after two.
    async fn reach(&self, address: SocketAddr, expected: &Expected, patience: Duration) -> Result<quinn::Connection, String> {
        let connect = || {
            let mut client = self.peers.tls.client(&[ALPN], expected.clone());
            client.transport_config(self.transport.clone());
            self.quinn.connect_with(client, address, SERVER_NAME).map_err(|error| error.to_string())
        };
        let end = tokio::time::Instant::now() + patience;
        let mut first = std::pin::pin!(connect()?);
        let mut fresh: Option<quinn::Connecting> = None;
        loop {
            let turn = tokio::time::sleep_until(end.min(tokio::time::Instant::now() + PATIENCE));
            let again = async {
                match &mut fresh {
                    Some(connecting) => connecting.await,
                    None => std::future::pending().await,
                }
            };
            let connected = tokio::select! {
                connected = &mut first => connected,
                connected = again => connected,
                () = turn => {
                    if tokio::time::Instant::now() >= end {
                        return Err(format!("no answer within {} ms", patience.as_millis()));
                    }
                    fresh = Some(connect()?);
                    continue;
                }
            };
            return connected.map_err(|error| told(&error));
        }
    }
}

/// Why a connection is none, in the peer's words where it said so.
fn told(error: &ConnectionError) -> String {
    RefusedByPeer::of(error).map_or_else(|| error.to_string(), |refused| refused.to_string())
}

/// What a second dial of the same address is told: no news.
pub(crate) const ALREADY: &str = "being dialled already";

/// An address being dialled.
struct Dialling {
    all: Arc<Mutex<HashSet<SocketAddr>>>,
    address: SocketAddr,
}

impl Dialling {
    fn begin(all: &Arc<Mutex<HashSet<SocketAddr>>>, address: SocketAddr) -> Option<Self> {
        all.lock().insert(address).then(|| Self { all: all.clone(), address })
    }
}

impl Drop for Dialling {
    fn drop(&mut self) {
        self.all.lock().remove(&self.address);
    }
}

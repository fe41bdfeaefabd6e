//! The one QUIC endpoint of a node: who comes in, by which protocol, and who is dialled.
//!
//! Started by `nodes` as the first child of the link's supervisor. The accept loop never awaits a
//! handshake; handshakes have a deadline and a cap for each address. Client certificates are optional to
//! TLS, which cannot tell protocols apart, so each ALPN's handler looks at its peer before it reads.

use std::{
    collections::{HashMap, HashSet},
    fmt, io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use aws_lc_rs::hmac;
use futures_util::future::BoxFuture;
use horos_supervision::{ChildSpec, OnStuck, Restart, Start, StartError, SupervisorHandle, Vitals, worker};
use horos_wire::{control::Close, tree::Kind};
use jiff::Timestamp;
use parking_lot::Mutex;
use quinn::{AckFrequencyConfig, Connection, ConnectionError, EndpointConfig, Incoming, TransportConfig, VarInt};
use ractor::Actor;
use tokio::{sync::Semaphore, task::JoinSet};

use crate::{
    config::{Admission, Config, Parts, Secret},
    dial::PATIENCE,
    peer::{Peer, PeerArgs, STREAMS, Side},
    peers::Peers,
    tls::{self, Expected, RefusedByPeer, SERVER_NAME},
    window,
};

/// The protocol between nodes.
pub const ALPN: &[u8] = b"horos/1";

/// Serves the connections of one ALPN other than [`ALPN`]. Looks at the peer (see [`tls::peer_identity`]) before it reads a stream.
pub trait AlpnHandler: Send + Sync + 'static {
    /// Serves a connection until it ends.
    fn serve(&self, connection: quinn::Connection) -> BoxFuture<'static, ()>;
}

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
}

/// What a peer may have sent on one stream and we not read: 1 MiB, 20 MB/s at 50 ms, as much as quinn's own default.
const STREAM_WINDOW: u32 = 1024 * 1024;

/// A node's endpoint.
#[derive(Clone)]
pub struct Endpoint {
    quinn: quinn::Endpoint,
    config: Arc<Config>,
    peers: Arc<Peers>,
    handlers: Arc<HashMap<Vec<u8>, Arc<dyn AlpnHandler>>>,
    supervisor: SupervisorHandle,
    transport: Arc<TransportConfig>,
    next_session: Arc<std::sync::atomic::AtomicU64>,
    /// Addresses being dialled, so that a node known from two places is not dialled twice at once.
    dialling: Arc<Mutex<HashSet<SocketAddr>>>,
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Endpoint({:?})", self.quinn.local_addr())
    }
}

/// The transport of every connection; public so that a benchmark's floor uses the same.
pub fn transport(config: &Config) -> Arc<TransportConfig> {
    let mut transport = TransportConfig::default();
    // A lost tail is noticed after the peer's delay, 25 ms by default; 5 ms brings the p99 at 2 % loss from 29 to 7 ms.
    let mut acks = AckFrequencyConfig::default();
    acks.ack_eliciting_threshold(VarInt::from_u32(1)).max_ack_delay(Some(Duration::from_millis(5)));
    transport
        .ack_frequency_config(Some(acks))
        .initial_mtu(config.mtu.min(6500))
        .max_idle_timeout(Some(Duration::from_secs(5).try_into().expect("five seconds fit a varint")))
        .keep_alive_interval(Some(Duration::from_secs(1)))
        // Control and messages.
        .max_concurrent_bidi_streams(VarInt::from_u32(2))
        .max_concurrent_uni_streams(VarInt::from_u32(STREAMS as u32))
        // What a peer may have sent and we not read, by stream and in all. The whole is the sum of its parts: were it
        // less, a few streams that nobody reads yet (a bulk body whose reader is slow, large bodies behind a full
        // mailbox) would use it up, and heartbeats would wait behind them until the link is down.
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32((STREAMS as u32 + 2) * STREAM_WINDOW))
        // What we may have written and the peer not acknowledged; it is memory, so it is bounded like the rest.
        .send_window(window::MOST)
        .datagram_receive_buffer_size(None);
    let mut discovery = quinn::MtuDiscoveryConfig::default();
    discovery.upper_bound(config.mtu.min(6500));
    transport.mtu_discovery_config(Some(discovery));
    Arc::new(transport)
}

/// A UDP socket with the buffers that GSO batches need: the 208 KiB default loses two thousand packets in 256 MB on loopback.
pub fn socket(address: SocketAddr) -> Result<std::net::UdpSocket, EndpointError> {
    let bind = || -> io::Result<std::net::UdpSocket> {
        let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::DGRAM, Some(socket2::Protocol::UDP))?;
        const BUFFER: usize = 4 * 1024 * 1024;
        // The kernel's own limit may be lower, and then less is what there is.
        let _ = socket.set_recv_buffer_size(BUFFER);
        let _ = socket.set_send_buffer_size(BUFFER);
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        Ok(socket.into())
    };
    bind().map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => EndpointError::InUse { address },
        _ => EndpointError::Bind { address, source },
    })
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
    /// Opens the endpoint. Sessions become children of `supervisor`.
    ///
    /// # Errors
    /// [`EndpointError`] when the address cannot be had.
    pub fn open(
        config: Config,
        parts: Parts,
        handlers: HashMap<Vec<u8>, Arc<dyn AlpnHandler>>,
        supervisor: SupervisorHandle,
    ) -> Result<Self, EndpointError> {
        let transport = transport(&config);
        let socket = socket(config.listen)?;
        let mut protocols: Vec<&[u8]> = vec![ALPN];
        protocols.extend(handlers.keys().map(Vec::as_slice));
        // One that cannot be called (a person's command line) takes no connections.
        let server = parts.exchange.node().role.is_node().then(|| {
            let mut server = parts.tls.server(&protocols);
            server.transport_config(transport.clone()).max_incoming(config.admission.handshakes);
            server
        });
        let bind = |source| EndpointError::Bind { address: config.listen, source };
        let quinn = quinn::Endpoint::new(endpoint_config(config.secret), server, socket, Arc::new(quinn::TokioRuntime)).map_err(bind)?;
        let peers = Peers::new(parts, config.liveness, config.limits);
        if peers.exchange.node().role.is_node() {
            let bound = quinn.local_addr().map_err(bind)?;
            *peers.advertised.write() = if config.advertise.is_empty() { vec![bound] } else { config.advertise.clone() };
        }
        peers.exchange.connect(peers.clone());
        Ok(Self {
            quinn,
            config: Arc::new(config),
            peers,
            handlers: Arc::new(handlers),
            supervisor,
            transport,
            next_session: Arc::default(),
            dialling: Arc::default(),
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

    /// The children that the link's supervisor is to start: the accept loop, the dialer, and gossip.
    pub fn children(&self) -> Vec<ChildSpec> {
        let mut children = Vec::new();
        if self.peers.exchange.node().role.is_node() {
            let endpoint = self.clone();
            children.push(worker("accept", move |vitals| endpoint.clone().accept(vitals)));
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

    /// Closes every session with a word, and waits until the peers have it or `within` has passed.
    pub async fn close(&self, within: Duration) {
        self.peers.close_all(Close::GoingAway);
        self.quinn.close((Close::GoingAway as u32).into(), b"the node is stopping");
        // A peer that is gone cannot acknowledge.
        let _ = tokio::time::timeout(within, self.quinn.wait_idle()).await;
    }

    async fn accept(self, vitals: Arc<Vitals>) {
        let places = Arc::new(Semaphore::new(self.config.admission.handshakes));
        let by_address = ByAddress::default();
        let mut handshakes = JoinSet::new();
        loop {
            let incoming = tokio::select! {
                incoming = self.quinn.accept() => incoming,
                Some(_) = handshakes.join_next() => continue,
            };
            let Some(incoming) = incoming else { return std::future::pending().await };
            vitals.progressed(Instant::now());
            let from = incoming.remote_address();
            // Once half the places are taken, whoever wants one shows first that it receives at its address: a flood
            // from made-up addresses then holds none.
            if places.available_permits() <= self.config.admission.handshakes / 2
                && incoming.may_retry()
                && !incoming.remote_address_validated()
            {
                // It fails only for one that was validated.
                let _ = incoming.retry();
                continue;
            }
            let Ok(place) = places.clone().try_acquire_owned() else {
                incoming.refuse();
                continue;
            };
            let Some(turn) = by_address.enter(from.ip(), &self.config.admission) else {
                // Whoever cannot receive at its address does not get through this.
                if incoming.may_retry() && !incoming.remote_address_validated() {
                    // It fails only for one that was validated.
                    let _ = incoming.retry();
                } else {
                    tracing::warn!(%from, "too many handshakes at once from this address");
                    incoming.refuse();
                }
                continue;
            };
            let endpoint = self.clone();
            handshakes.spawn(async move {
                let (_place, _turn) = (place, turn);
                endpoint.shake_hands(incoming, from).await;
            });
        }
    }

    async fn shake_hands(&self, incoming: Incoming, from: SocketAddr) {
        let connecting = match incoming.accept() {
            Ok(connecting) => connecting,
            Err(error) => {
                tracing::info!(%from, %error, "refused");
                return;
            }
        };
        let connection = match tokio::time::timeout(self.config.admission.handshake_timeout, connecting).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => {
                tracing::warn!(%from, %error, "handshake failed");
                return;
            }
            Err(_) => {
                tracing::warn!(%from, "handshake not finished in time");
                return;
            }
        };
        let protocol = tls::protocol(&connection);
        match protocol.as_deref() {
            Some(ALPN) => {
                if let Err(close) = self.session(connection.clone(), Side::Acceptor).await {
                    connection.close((close as u32).into(), close.to_string().as_bytes());
                }
            }
            Some(other) => match self.handlers.get(other) {
                // Served apart: a connection's life is not a handshake's.
                Some(handler) => drop(tokio::spawn(handler.serve(connection))),
                None => connection.close((Close::Alpn as u32).into(), b"protocol not served"),
            },
            None => connection.close((Close::Alpn as u32).into(), b"no protocol"),
        }
    }

    /// Starts the session of a proven connection.
    pub(crate) async fn session(&self, connection: quinn::Connection, side: Side) -> Result<(), Close> {
        let from = connection.remote_address();
        let identity = self.peers.tls.admit(&connection, Timestamp::now()).map_err(|refused| {
            tracing::warn!(%from, %refused, "refused");
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
            tracing::warn!(%from, peer = %identity.id.to_uri(), "refused: no more sessions");
            return Err(Close::Limit);
        };
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

/// Handshakes at once, by address.
#[derive(Clone, Default)]
struct ByAddress(Arc<Mutex<HashMap<IpAddr, usize>>>);

impl ByAddress {
    fn enter(&self, ip: IpAddr, admission: &Admission) -> Option<Turn> {
        let mut counts = self.0.lock();
        let count = counts.entry(ip).or_default();
        if *count >= admission.handshakes_per_address {
            return None;
        }
        *count += 1;
        Some(Turn { counts: self.clone(), ip })
    }
}

/// One handshake's place among those of its address.
struct Turn {
    counts: ByAddress,
    ip: IpAddr,
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut counts = self.counts.0.lock();
        if let Some(count) = counts.get_mut(&self.ip) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.ip);
            }
        }
    }
}

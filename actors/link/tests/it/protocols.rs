//! One port, many protocols: who is shown which certificate, who must show one, how much a stranger may hold, and what
//! becomes of connections when the accept loop dies, a handler panics, or the node stops.

use std::{
    collections::HashMap,
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::future::BoxFuture;
use horos_link::{ALPN, Admission, AlpnHandler, Handlers, IdentitiesRefused, PublicEndpoint, tls};
use horos_supervision::{Strategy, Supervisor, SupervisorSpec};
use horos_wire::{Role, control::Close};
use quinn::{Connection, ConnectionError, Endpoint, SendStream};
use rcgen::{CertificateParams, KeyPair};
use rustls::{
    pki_types::{CertificateDer, PrivatePkcs8KeyDer},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio::time::timeout;

use super::{
    cluster::{Beside, Cluster, Echo, Node, Test},
    raw::{Raw, closed, dialer},
    strangers::{Shown, client, client_offering, forged, params},
    world::{eventually, no_panics, watch},
};

const SOON: Duration = Duration::from_secs(5);
const OTHER: &[u8] = b"other/1";
/// As QUIC carries TLS's alert 120 (RFC 9001 §4.8).
const NO_PROTOCOL: u64 = 0x178;

/// Answers every stream with what it brought. A node's connection is one like others, but it is told who it is.
struct Echoes {
    most: usize,
    serving: Arc<AtomicUsize>,
}

impl Echoes {
    fn new(most: usize) -> (Arc<Self>, Arc<AtomicUsize>) {
        let serving = Arc::<AtomicUsize>::default();
        (Arc::new(Self { most, serving: serving.clone() }), serving)
    }
}

/// Counts for as long as it lives.
struct Served(Arc<AtomicUsize>);

impl Drop for Served {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl AlpnHandler for Echoes {
    fn serve(&self, connection: Connection) -> BoxFuture<'static, ()> {
        self.serving.fetch_add(1, Ordering::SeqCst);
        let served = Served(self.serving.clone());
        Box::pin(async move {
            let _served = served;
            while let Ok((mut send, mut receive)) = connection.accept_bi().await {
                let Ok(asked) = receive.read_to_end(1024).await else { continue };
                let answer = match &*asked {
                    b"panic" => panic!("asked to"),
                    b"end" => return,
                    b"who" => match tls::peer_identity(&connection) {
                        Ok(peer) => peer.id.to_uri().into_bytes(),
                        Err(refused) => refused.to_string().into_bytes(),
                    },
                    _ => asked,
                };
                // Who goes before the answer does not want it.
                let _ = send.write_all(&answer).await;
                let _ = send.finish();
            }
        })
    }

    fn connections(&self) -> usize {
        self.most
    }

    fn refuse(&self, connection: &Connection) {
        connection.close(0x107_u32.into(), b"full");
    }
}

async fn ask(connection: &Connection, what: &[u8]) -> Result<Vec<u8>, String> {
    let ask = async {
        let (mut send, mut receive) = connection.open_bi().await.map_err(|error| error.to_string())?;
        send.write_all(what).await.map_err(|error| error.to_string())?;
        let _ = send.finish();
        receive.read_to_end(1024).await.map_err(|error| error.to_string())
    };
    timeout(SOON, ask).await.map_err(|_| "no answer in time".to_owned())?
}

/// Shows one certificate to everybody, and counts them.
#[derive(Debug)]
struct Public {
    key: Arc<CertifiedKey>,
    shown: AtomicU64,
}

impl Public {
    fn new() -> Arc<Self> {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec!["shop.example".to_owned()]).unwrap().self_signed(&key).unwrap();
        let signing = tls::provider().key_provider.load_private_key(PrivatePkcs8KeyDer::from(key.serialize_der()).into()).unwrap();
        Arc::new(Self { key: Arc::new(CertifiedKey::new(vec![certificate.der().clone()], signing)), shown: AtomicU64::new(0) })
    }
}

impl ResolvesServerCert for Public {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.shown.fetch_add(1, Ordering::SeqCst);
        Some(self.key.clone())
    }
}

fn other(handler: Arc<dyn AlpnHandler>) -> Handlers {
    HashMap::from([(OTHER.to_vec(), handler)])
}

async fn node(cluster: &Cluster, handler: Arc<dyn AlpnHandler>, public: Option<Arc<dyn ResolvesServerCert>>) -> Node {
    watch();
    let beside = Beside { handlers: other(handler), public, socket: None };
    cluster.node_beside(Role::Bo, "bo-1", beside, |config| config.gossip = false).await
}

async fn come(endpoint: &Endpoint, to: SocketAddr, config: quinn::ClientConfig) -> Result<Connection, ConnectionError> {
    timeout(SOON, endpoint.connect_with(config, to, tls::SERVER_NAME).unwrap()).await.expect("the handshake ends")
}

/// How the connection fared, once the server has judged the client's certificate: that comes after the client's handshake.
async fn fared(endpoint: &Endpoint, to: SocketAddr, config: quinn::ClientConfig) -> Result<Connection, ConnectionError> {
    let connection = come(endpoint, to, config).await?;
    match ask(&connection, b"hello").await {
        Ok(_) => Ok(connection),
        Err(_) => Err(connection.closed().await),
    }
}

fn shown_by(connection: &Connection) -> CertificateDer<'static> {
    connection.peer_identity().unwrap().downcast::<Vec<CertificateDer<'static>>>().unwrap()[0].clone()
}

fn kind(refused: &IdentitiesRefused, name: &str) -> u64 {
    refused.kinds().into_iter().find(|(kind, _)| *kind == name).unwrap().1
}

fn transport_code(error: &ConnectionError) -> Option<u64> {
    match error {
        ConnectionError::ConnectionClosed(close) => Some(close.error_code.into()),
        _ => None,
    }
}

#[tokio::test]
async fn nodes_are_shown_the_nodes_certificate_and_everybody_else_the_publics() {
    let cluster = Cluster::new();
    let public = Public::new();
    let bo = node(&cluster, Echoes::new(8).0, Some(public.clone())).await;
    let own = bo.tls.credentials().fingerprint();
    let endpoint = dialer("127.0.0.1");
    let fingerprint = |connection: &Connection| horos_link::identity::Fingerprint::of(&shown_by(connection));
    for offered in [&[ALPN][..], &[OTHER, ALPN]] {
        let connection = come(&endpoint, bo.address(), client_offering(offered, None)).await.unwrap();
        assert_eq!(fingerprint(&connection), own);
        assert_eq!(closed(&connection).await, Close::Identity, "whoever offers it, speaks it, and is nobody");
    }
    assert_eq!(public.shown.load(Ordering::SeqCst), 0);
    let connection = come(&endpoint, bo.address(), client(OTHER, None)).await.unwrap();
    assert_eq!(shown_by(&connection), public.key.cert[0]);
    assert_eq!(ask(&connection, b"hello").await.unwrap(), b"hello");
    // A hello without a protocol is the public's, and without effect.
    let error = come(&endpoint, bo.address(), client_offering(&[], None)).await.unwrap_err();
    assert_eq!((transport_code(&error), public.shown.load(Ordering::SeqCst)), (Some(NO_PROTOCOL), 2));
    assert_eq!(bo.endpoint.counters().unknown_protocol.load(Ordering::SeqCst), 1);
    no_panics();
    bo.stop().await;

    // Where the public has none of its own, it is shown the node's.
    let bo = node(&cluster, Echoes::new(8).0, None).await;
    let connection = come(&endpoint, bo.address(), client(OTHER, None)).await.unwrap();
    assert_eq!(fingerprint(&connection), own);
    bo.stop().await;
}

/// Nobody, and those who are not who they say.
fn peers(cluster: &Cluster) -> [(&'static str, Option<Shown>); 4] {
    let uri = "spiffe://shop/fo/fo-1";
    let mut expired = params(uri);
    expired.not_after = rcgen::date_time_ymd(2021, 1, 1);
    [
        ("no_certificate", None),
        ("unknown_issuer", Some(forged(&Cluster::new(), &params(uri)))),
        ("expired", Some(forged(cluster, &expired))),
        ("other_cluster", Some(forged(cluster, &params("spiffe://elsewhere/fo/fo-1")))),
    ]
}

#[tokio::test]
async fn the_nodes_protocol_lets_in_nobody_without_a_certificate_that_holds() {
    let cluster = Cluster::new();
    let bo = node(&cluster, Echoes::new(8).0, Some(Public::new())).await;
    let endpoint = dialer("127.0.0.1");
    let refused = &bo.endpoint.counters().identities;
    for (what, shown) in peers(&cluster) {
        let error = fared(&endpoint, bo.address(), client(ALPN, shown)).await.unwrap_err();
        assert!(matches!(error, ConnectionError::ApplicationClosed(_) | ConnectionError::ConnectionClosed(_)), "{what}: {error}");
        assert_eq!(kind(refused, what), 1, "{what}: {:?}", refused.kinds());
    }
    assert_eq!(refused.kinds().iter().map(|(_, count)| count).sum::<u64>(), 4);
    assert_eq!(bo.endpoint.counters().admitted.load(Ordering::SeqCst), 0);
    assert!(bo.endpoint.peers().known().is_empty());
    no_panics();
    bo.stop().await;
}

#[tokio::test]
async fn another_protocol_serves_nobody_in_particular_and_refuses_a_certificate_that_does_not_hold() {
    let cluster = Cluster::new();
    let bo = node(&cluster, Echoes::new(8).0, Some(Public::new())).await;
    let endpoint = dialer("127.0.0.1");
    let refused = &bo.endpoint.counters().identities;
    for (what, shown) in peers(&cluster) {
        let anonymous = shown.is_none();
        match fared(&endpoint, bo.address(), client(OTHER, shown)).await {
            Ok(connection) => {
                assert!(anonymous, "{what}");
                assert_eq!(ask(&connection, b"who").await.unwrap(), b"no certificate was presented");
            }
            Err(error) => {
                assert!(!anonymous && transport_code(&error).is_some(), "{what}: {error}");
                assert_eq!(kind(refused, what), 1, "{what}: {:?}", refused.kinds());
            }
        }
    }
    let good = forged(&cluster, &params("spiffe://shop/operator/ann"));
    let operator = fared(&endpoint, bo.address(), client(OTHER, Some(good))).await.unwrap();
    assert_eq!(ask(&operator, b"who").await.unwrap(), b"spiffe://shop/operator/ann");
    assert_eq!(bo.endpoint.counters().admitted.load(Ordering::SeqCst), 2);
    no_panics();
    bo.stop().await;
}

#[tokio::test]
async fn the_publics_own_endpoint_asks_for_no_certificate_and_speaks_no_node() {
    watch();
    let cluster = Cluster::new();
    let public = Public::new();
    let socket = horos_link::socket("127.0.0.1:0".parse().unwrap()).unwrap();
    let (handler, _) = Echoes::new(8);
    let door = PublicEndpoint::open(socket, Admission::default(), public.clone(), other(handler)).unwrap();
    let root = Supervisor::start(SupervisorSpec::new("root", Strategy::OneForOne, door.children()), None).await.unwrap();
    let (endpoint, to) = (dialer("127.0.0.1"), door.local_addr().unwrap());
    for (what, shown) in peers(&cluster) {
        let connection = fared(&endpoint, to, client(OTHER, shown)).await.unwrap();
        assert_eq!(shown_by(&connection), public.key.cert[0], "{what}");
        assert_eq!(ask(&connection, b"who").await.unwrap(), b"no certificate was presented", "{what}");
    }
    for offered in [&[ALPN][..], &[b"h3"], &[]] {
        let error = come(&endpoint, to, client_offering(offered, None)).await.unwrap_err();
        assert_eq!(transport_code(&error), Some(NO_PROTOCOL));
    }
    let counters: HashMap<_, _> = door.counters().outcomes().into_iter().collect();
    assert_eq!((counters["admitted"], counters["unknown_protocol"], counters["failed"]), (4, 3, 0));
    assert!(door.counters().identities.kinds().iter().all(|(_, count)| *count == 0));

    let (handler, _) = Echoes::new(8);
    let reserved = PublicEndpoint::open(
        horos_link::socket("127.0.0.1:0".parse().unwrap()).unwrap(),
        Admission::default(),
        public,
        HashMap::from([(ALPN.to_vec(), handler as Arc<dyn AlpnHandler>)]),
    );
    assert!(matches!(reserved, Err(horos_link::EndpointError::Reserved)));
    door.close(Duration::from_secs(1)).await;
    root.stop().await;
    eventually("the port is free", SOON, || UdpSocket::bind(to).map(drop).map_err(|error| error.to_string())).await;
    no_panics();
}

#[tokio::test]
async fn a_port_number_is_shared_with_a_tcp_listener() {
    watch();
    let cluster = Cluster::new();
    // Port 0 for the one is a number for the other; somebody else may have it there.
    let (tcp, socket) = (0..16)
        .find_map(|_| {
            let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
            let socket = horos_link::socket(tcp.local_addr().unwrap()).ok()?;
            Some((tcp, socket))
        })
        .unwrap();
    let address = tcp.local_addr().unwrap();
    let beside = Beside { socket: Some(socket), ..Beside::default() };
    let bo = cluster.node_beside(Role::Bo, "bo-1", beside, |_| {}).await;
    bo.serve("tester").await;
    assert_eq!((bo.address(), bo.endpoint.peers().addresses()), (address, vec![address]));
    let fo = cluster.node(Role::Fo, "fo-1", vec![address]).await;
    fo.linked(1).await;
    fo.context().at::<Test>("tester@bo-1").call(Echo { body: vec![1] }, SOON).await.unwrap();
    TcpStream::connect(address).unwrap();
    tcp.accept().unwrap();
    no_panics();
    fo.stop().await;
    bo.stop().await;
}

#[tokio::test]
async fn other_protocols_connections_go_on_when_the_accept_loop_dies_and_end_with_their_owner() {
    let cluster = Cluster::new();
    let (handler, serving) = Echoes::new(8);
    let bo = node(&cluster, handler, None).await;
    let endpoint = dialer("127.0.0.1");
    let old = come(&endpoint, bo.address(), client(OTHER, None)).await.unwrap();
    assert_eq!(ask(&old, b"one").await.unwrap(), b"one");
    bo.root.crash_child("accept").await.unwrap();
    assert_eq!(ask(&old, b"two").await.unwrap(), b"two");
    let new = come(&endpoint, bo.address(), client(OTHER, None)).await.unwrap();
    assert_eq!(ask(&new, b"three").await.unwrap(), b"three");
    bo.root.crash_child("connections").await.unwrap();
    for connection in [&old, &new] {
        timeout(SOON, connection.closed()).await.unwrap();
    }
    let newest = come(&endpoint, bo.address(), client(OTHER, None)).await.unwrap();
    assert_eq!(ask(&newest, b"four").await.unwrap(), b"four");
    assert_eq!(serving.load(Ordering::SeqCst), 1);
    no_panics();
    bo.stop().await;
    assert_eq!(serving.load(Ordering::SeqCst), 0, "no handler outlives the node");
}

#[tokio::test]
async fn a_handler_that_panics_or_ends_closes_its_connection_and_no_other() {
    let cluster = Cluster::new();
    let (handler, serving) = Echoes::new(8);
    let bo = node(&cluster, handler, None).await;
    let endpoint = dialer("127.0.0.1");
    let beside = come(&endpoint, bo.address(), client(OTHER, None)).await.unwrap();
    assert_eq!(ask(&beside, b"one").await.unwrap(), b"one");
    for last in [&b"panic"[..], b"end"] {
        let connection = come(&endpoint, bo.address(), client(OTHER, None)).await.unwrap();
        ask(&connection, last).await.unwrap_err();
        assert_eq!(closed(&connection).await, Close::Done);
    }
    assert_eq!(ask(&beside, b"two").await.unwrap(), b"two");
    assert_eq!(serving.load(Ordering::SeqCst), 1);
    no_panics();
    bo.stop().await;
}

#[tokio::test]
async fn a_protocol_has_as_many_connections_as_it_says_and_a_place_comes_back() {
    let cluster = Cluster::new();
    let (handler, _) = Echoes::new(2);
    let bo = node(&cluster, handler, None).await;
    let endpoint = dialer("127.0.0.1");
    let mut within = Vec::new();
    for _ in 0..2 {
        within.push(fared(&endpoint, bo.address(), client(OTHER, None)).await.unwrap());
    }
    let beyond = fared(&endpoint, bo.address(), client(OTHER, None)).await.unwrap_err();
    assert!(matches!(&beyond, ConnectionError::ApplicationClosed(close) if u64::from(close.error_code) == 0x107), "{beyond}");
    assert_eq!(bo.endpoint.counters().protocol_full.load(Ordering::SeqCst), 1);
    within.pop().unwrap().close(0u32.into(), b"");
    // The place is free when the server has heard of it.
    let end = std::time::Instant::now() + SOON;
    while fared(&endpoint, bo.address(), client(OTHER, None)).await.is_err() {
        assert!(std::time::Instant::now() < end, "no place came back");
    }
    // Nodes have places of their own.
    let fo = cluster.node(Role::Fo, "fo-1", vec![bo.address()]).await;
    fo.linked(1).await;
    no_panics();
    fo.stop().await;
    bo.stop().await;
}

/// Takes connections and reads nothing.
struct Deaf;

impl AlpnHandler for Deaf {
    fn serve(&self, connection: Connection) -> BoxFuture<'static, ()> {
        Box::pin(async move { drop(connection.closed().await) })
    }
}

/// The one-way streams that the other end lets be open at once.
async fn one_way(connection: &Connection) -> Vec<SendStream> {
    let mut streams = Vec::new();
    // Granted soon or not at all: nobody ends one.
    while let Ok(stream) = timeout(Duration::from_millis(300), connection.open_uni()).await {
        streams.push(stream.unwrap());
    }
    streams
}

#[tokio::test]
async fn a_stranger_holds_little_and_a_node_what_a_link_needs() {
    let cluster = Cluster::new();
    let bo = node(&cluster, Arc::new(Deaf), None).await;
    let endpoint = dialer("127.0.0.1");
    let stranger = come(&endpoint, bo.address(), client(OTHER, None)).await.unwrap();
    let mut streams = one_way(&stranger).await;
    assert_eq!(streams.len(), 3);
    let chunk = vec![0; 64 * 1024];
    for stream in &mut streams {
        // Until nothing is taken any more, here or there.
        while let Ok(written) = timeout(Duration::from_millis(100), stream.write(&chunk)).await {
            written.unwrap();
        }
    }
    let sent = stranger.stats().udp_tx.bytes;
    assert!((900_000..1_400_000).contains(&sent), "{sent} bytes sent to somebody who does not read");
    let mut two_way = Vec::new();
    while let Ok(stream) = timeout(Duration::from_millis(300), stranger.open_bi()).await {
        two_way.push(stream.unwrap());
    }
    assert_eq!(two_way.len(), 8);
    stranger.close(0u32.into(), b"");

    let fo = Raw::open(&cluster, Role::Fo, "fo-1", bo.address()).await;
    assert_eq!(one_way(&fo.connection).await.len(), 64, "raised as soon as it is known who it is");
    no_panics();
    bo.stop().await;
}

#[tokio::test]
async fn a_node_that_stops_refuses_newcomers_at_once_and_finishes_what_it_has() {
    let cluster = Cluster::new();
    let (handler, _) = Echoes::new(8);
    let bo = node(&cluster, handler, None).await;
    bo.serve("tester").await;
    let fo = cluster.node(Role::Fo, "fo-1", vec![bo.address()]).await;
    fo.linked(1).await;
    let endpoint = dialer("127.0.0.1");
    let open = come(&endpoint, bo.address(), client(OTHER, None)).await.unwrap();
    assert_eq!(ask(&open, b"one").await.unwrap(), b"one");
    bo.endpoint.stop_accepting();
    let refused = come(&endpoint, bo.address(), client(OTHER, None)).await.unwrap_err();
    // CONNECTION_REFUSED (RFC 9000 §20.1).
    assert_eq!(transport_code(&refused), Some(2), "{refused}");
    assert_eq!(bo.endpoint.counters().stopping.load(Ordering::SeqCst), 1);
    assert_eq!(ask(&open, b"two").await.unwrap(), b"two");
    fo.context().at::<Test>("tester@bo-1").call(Echo { body: vec![1] }, SOON).await.unwrap();
    bo.endpoint.close(Duration::from_secs(1)).await;
    assert_eq!(closed(&open).await, Close::GoingAway);
    no_panics();
    fo.stop().await;
    bo.stop().await;
}

//! A port with a few services behind it, and clients that say exactly what a test wants said.

use std::{
    convert::Infallible,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::{FutureExt as _, future::BoxFuture};
use horos_edge::{
    Access, Authenticator, Body, Conditions, Config, Credential, Drain, Edge, Limits, Listener, Maintenance, Metrics, Mount, Parts, Phase,
    Plane, Sockets, Source, Timeouts,
};
use horos_supervision::{Strategy, Supervisor, SupervisorHandle, SupervisorSpec};
use horos_wire::principal::{Denied, Principal};
use http::{Request, Response};
use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tempfile::TempDir;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    runtime::Handle,
    sync::Semaphore,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

pub(crate) use super::counts::Counting;

/// Longer than anything here may take; a test that waits for it has failed.
pub(crate) const LONG: Duration = Duration::from_secs(20);

/// How much to do: `normal` on every change, `full` with `HOROS_TEST_FULL=1`, which does what the promise names.
pub(crate) fn scale<T>(normal: T, full: T) -> T {
    if std::env::var_os("HOROS_TEST_FULL").is_some_and(|value| value == "1") { full } else { normal }
}

/// Polls a state until it is as it should be; fails with the last one seen.
pub(crate) async fn eventually<T>(what: &str, mut look: impl FnMut() -> Result<T, String>) -> T {
    let end = Instant::now() + LONG;
    loop {
        match look() {
            Ok(value) => return value,
            Err(seen) => assert!(Instant::now() < end, "{what}: not within {LONG:?}; last seen: {seen}"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Nobody has a key here.
#[derive(Debug)]
struct Nobody;

impl Authenticator for Nobody {
    fn recall(&self, _: &Credential) -> Option<Result<Arc<Principal>, Denied>> {
        Some(Err(Denied::Unknown))
    }

    fn verify(&self, _: Credential) -> BoxFuture<'static, Result<Arc<Principal>, Denied>> {
        async { Err(Denied::Unknown) }.boxed()
    }
}

/// Times that make a test quick and limits that it can reach.
pub(crate) fn quick() -> Config {
    let ms = Duration::from_millis;
    let timeouts = Timeouts { handshake: ms(1500), head: ms(400), body: ms(400), stalled: ms(400), idle: ms(5000), answer: ms(10_000) };
    let limits = Limits { per_address: 0, per_identity: 0, ..Limits::default() };
    Config { limits, timeouts, ..Config::default() }
}

/// A port that is open.
pub(crate) struct Port {
    pub(crate) address: SocketAddr,
    pub(crate) edge: Edge,
    pub(crate) metrics: Metrics,
    pub(crate) drain: Drain,
    pub(crate) conditions: Conditions,
    /// Requests to `/t/wait` are answered as it has permits.
    pub(crate) gate: Arc<Semaphore>,
    /// Those that wait for one.
    waiting: Arc<AtomicUsize>,
    _directory: TempDir,
    supervisor: SupervisorHandle,
    _udp: std::net::UdpSocket,
}

impl Port {
    /// With a development certificate.
    pub(crate) async fn open(config: Config) -> Self {
        let directory = TempDir::new().unwrap();
        let source = Source::Development { directory: directory.path().to_owned() };
        Self::with(config, source, directory).await
    }

    pub(crate) async fn with(config: Config, source: Source, directory: TempDir) -> Self {
        Self::serving(config, source, directory, Vec::new()).await
    }

    /// With more than what is always mounted.
    pub(crate) async fn serving(config: Config, source: Source, directory: TempDir, mut mounts: Vec<Mount>) -> Self {
        let Sockets { tcp, udp, address } = Sockets::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let (gate, waiting) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
        mounts.push(mount(gate.clone(), waiting.clone()));
        let parts = Parts { mounts, ..parts(source, tcp, address) };
        let (metrics, drain, conditions) = (parts.metrics.clone(), parts.drain.clone(), parts.conditions.clone());
        let edge = Edge::open(config, parts).unwrap();
        let spec = SupervisorSpec::new("edge", Strategy::OneForOne, edge.children());
        let supervisor = Supervisor::start(spec, None).await.unwrap();
        Self { address, edge, metrics, drain, conditions, gate, waiting, _directory: directory, supervisor, _udp: udp }
    }

    pub(crate) fn supervisor(&self) -> &SupervisorHandle {
        &self.supervisor
    }

    /// Stops all of it, listeners included.
    pub(crate) async fn close(self) {
        self.supervisor.stop().await;
    }

    /// Waits until as many requests wait at the gate.
    pub(crate) async fn waiting(&self, wanted: usize) {
        eventually("requests at the gate", || match self.waiting.load(Relaxed) {
            now if now == wanted => Ok(()),
            now => Err(format!("{now}, not {wanted}")),
        })
        .await;
    }

    pub(crate) async fn connections(&self, open: usize) {
        eventually("open connections", || match self.edge.open_connections() {
            now if now == open => Ok(()),
            now => Err(format!("{now}, not {open}; {:?}", self.counts())),
        })
        .await;
    }

    pub(crate) fn drain(&self, within: Duration) -> Instant {
        let until = Instant::now() + within;
        self.drain.go(Phase::Draining { until });
        until
    }

    pub(crate) async fn tcp(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        stream
    }

    /// A TLS connection that offers these protocols.
    pub(crate) async fn tls(&self, protocols: &[&[u8]]) -> TlsStream<TcpStream> {
        shake(self.tcp().await, protocols).await.unwrap()
    }

    pub(crate) async fn http1(&self) -> TlsStream<TcpStream> {
        self.tls(&[b"http/1.1"]).await
    }

    /// After the prefaces of both sides.
    pub(crate) async fn http2(&self) -> TlsStream<TcpStream> {
        self.http2_with(&[]).await
    }

    /// The same with settings of the client's.
    pub(crate) async fn http2_with(&self, settings: &[(u16, u32)]) -> TlsStream<TcpStream> {
        let mut stream = self.tls(&[b"h2"]).await;
        stream.write_all(PREFACE).await.unwrap();
        let settings: Vec<u8> = settings.iter().flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat()).collect();
        stream.write_all(&frame(SETTINGS, 0, 0, &settings)).await.unwrap();
        stream.write_all(&frame(SETTINGS, ACK, 0, &[])).await.unwrap();
        stream
    }
}

impl Counting for Port {
    fn metrics(&self) -> &Metrics {
        &self.metrics
    }
}

/// All that an edge needs, with nothing mounted.
pub(crate) fn parts(certificate: Source, tcp: std::net::TcpListener, address: SocketAddr) -> Parts {
    let conditions = Conditions::default();
    Parts {
        runtime: Handle::current(),
        mounts: Vec::new(),
        authenticator: Arc::new(Nobody),
        conditions: conditions.clone(),
        maintenance: Maintenance::new(conditions),
        drain: Drain::default(),
        metrics: Metrics::default(),
        certificate,
        listeners: vec![Listener { tcp, plane: Plane::Both, address }],
    }
}

/// `/t/hello`, `/t/wait`, `/t/bytes/N`, `/t/endless`, and `/t/echo`, which answers with the body's length.
fn mount(gate: Arc<Semaphore>, waiting: Arc<AtomicUsize>) -> Mount {
    let service = tower::service_fn(move |request: Request<Body>| {
        let (gate, waiting) = (gate.clone(), waiting.clone());
        async move { Ok::<_, Infallible>(serve(request, gate, waiting).await) }
    });
    Mount::new("/t", Access::Public, Plane::Both, service).unwrap()
}

async fn serve(request: Request<Body>, gate: Arc<Semaphore>, waiting: Arc<AtomicUsize>) -> Response<Body> {
    use http_body_util::BodyExt as _;
    let path = request.uri().path().to_owned();
    match path.as_str() {
        "/wait" => {
            let _here = Here::new(waiting);
            gate.acquire().await.unwrap().forget();
            Response::new(Body::from("waited"))
        }
        "/endless" => {
            let part = Bytes::from(vec![b'e'; 64 * 1024]);
            Response::new(Body::from_stream(futures_util::stream::repeat_with(move || Ok::<_, Infallible>(part.clone()))))
        }
        "/echo" => match request.into_body().collect().await {
            Ok(body) => Response::new(Body::from(body.to_bytes().len().to_string())),
            Err(_) => Response::builder().status(400).body(Body::empty()).unwrap(),
        },
        _ => match path.strip_prefix("/bytes/") {
            Some(count) => Response::new(Body::from(vec![b'b'; count.parse().unwrap()])),
            None => Response::new(Body::from("hello")),
        },
    }
}

/// A request at the gate, or a client that has gone.
struct Here(Arc<AtomicUsize>);

impl Here {
    fn new(count: Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Relaxed);
        Self(count)
    }
}

impl Drop for Here {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

pub(crate) async fn shake(stream: TcpStream, protocols: &[&[u8]]) -> std::io::Result<TlsStream<TcpStream>> {
    shake_with(stream, tls(protocols)).await
}

pub(crate) async fn shake_with(stream: TcpStream, config: Arc<ClientConfig>) -> std::io::Result<TlsStream<TcpStream>> {
    TlsConnector::from(config).connect(ServerName::try_from("localhost").unwrap(), stream).await
}

/// A client's side that offers these protocols.
pub(crate) fn tls(protocols: &[&[u8]]) -> Arc<ClientConfig> {
    tls_of(rustls::DEFAULT_VERSIONS, protocols)
}

pub(crate) fn tls_of(versions: &[&'static rustls::SupportedProtocolVersion], protocols: &[&[u8]]) -> Arc<ClientConfig> {
    let mut config = ClientConfig::builder_with_provider(horos_link::tls::provider().clone())
        .with_protocol_versions(versions)
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody))
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    Arc::new(config)
}

/// Takes every certificate: which one it is, a test looks at itself.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

/// Reads until the other side closes, an error ends it, or nothing more comes for too long.
pub(crate) async fn read_to_end(stream: &mut (impl AsyncRead + Unpin)) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut part = vec![0; 16 * 1024];
    loop {
        match tokio::time::timeout(LONG, stream.read(&mut part)).await.expect("the other side closes") {
            Ok(0) | Err(_) => return bytes,
            Ok(read) => bytes.extend_from_slice(&part[..read]),
        }
    }
}

/// One answer of HTTP/1.1 with a content length.
pub(crate) async fn read_answer(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut bytes = Vec::new();
    loop {
        let byte = tokio::time::timeout(LONG, stream.read_u8()).await.expect("an answer in time").expect("an answer");
        bytes.push(byte);
        if bytes.ends_with(b"\r\n\r\n") {
            break;
        }
    }
    let head = String::from_utf8(bytes).unwrap();
    let length = head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ").map(str::to_owned));
    let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
    stream.read_exact(&mut body).await.unwrap();
    head + std::str::from_utf8(&body).unwrap()
}

/// Asks for `path` over HTTP/1.1 and returns the answer.
pub(crate) async fn get(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), path: &str) -> String {
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n").as_bytes()).await.unwrap();
    read_answer(stream).await
}

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const ACK: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

/// A frame of HTTP/2.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A field of HPACK, literal and not indexed (RFC 7541 §6.2.2).
pub(crate) fn field(name: &str, value: &str) -> Vec<u8> {
    let mut bytes = vec![0];
    for text in [name, value] {
        // RFC 7541 §5.1, with a prefix of seven bits.
        match text.len() {
            short @ ..127 => bytes.push(short as u8),
            long => {
                bytes.push(127);
                let mut left = long - 127;
                while left >= 128 {
                    bytes.push((left % 128) as u8 | 128);
                    left /= 128;
                }
                bytes.push(left as u8);
            }
        }
        bytes.extend_from_slice(text.as_bytes());
    }
    bytes
}

/// The header block of a GET.
pub(crate) fn head(path: &str) -> Vec<u8> {
    [field(":method", "GET"), field(":scheme", "https"), field(":authority", "localhost"), field(":path", path)].concat()
}

/// A whole GET.
pub(crate) fn ask(stream: u32, path: &str) -> Vec<u8> {
    frame(HEADERS, END_STREAM | END_HEADERS, stream, &head(path))
}

/// A frame that came.
#[derive(Clone, Debug)]
pub(crate) struct Came {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

/// The next frame; `None` at the end of the stream.
pub(crate) async fn next_frame(stream: &mut (impl AsyncRead + Unpin)) -> Option<Came> {
    let mut head = [0; 9];
    tokio::time::timeout(LONG, stream.read_exact(&mut head)).await.expect("a frame in time").ok()?;
    let [a, b, c, kind, flags, d, e, f, g] = head;
    let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
    stream.read_exact(&mut payload).await.ok()?;
    Some(Came { kind, flags, stream: u32::from_be_bytes([d, e, f, g]), payload })
}

/// Reads frames until one is of `kind`; `None` if the connection ends before.
pub(crate) async fn frame_of(stream: &mut (impl AsyncRead + Unpin), kind: u8) -> Option<Came> {
    loop {
        let frame = next_frame(stream).await?;
        if frame.kind == kind {
            return Some(frame);
        }
    }
}

/// The bytes of an answer to `asked`, read to its end.
pub(crate) async fn body_of(stream: &mut (impl AsyncRead + Unpin), asked: u32) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let frame = next_frame(stream).await.unwrap_or_else(|| panic!("the answer to {asked} ends"));
        if frame.stream == asked && frame.kind == DATA {
            body.extend_from_slice(&frame.payload);
        }
        if frame.stream == asked && frame.flags & END_STREAM != 0 && matches!(frame.kind, DATA | HEADERS) {
            return body;
        }
    }
}

/// A certificate for `localhost` in files of its own.
pub(crate) fn certificate(directory: &Path, name: &str) -> (PathBuf, PathBuf, CertificateDer<'static>) {
    let (chain, key) = (directory.join(format!("{name}.pem")), directory.join(format!("{name}.key")));
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(&chain, made.cert.pem()).unwrap();
    secret(&key, &made.signing_key.serialize_pem());
    (chain, key, made.cert.der().clone())
}

/// Writes a file that only its owner can read.
pub(crate) fn secret(path: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

//! HTTP/3's door behind a QUIC endpoint, with a few services, and clients that behave or say exactly what a test wants said.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use bytes::{Buf as _, Bytes};
use futures_util::{StreamExt as _, future::BoxFuture, stream};
use h3::client::{RequestStream, SendRequest};
use horos_edge::{
    Access, App, AppParts, Authenticator, Body, Conditions, Config, Credential, Drain, Http3, Maintenance, Metrics, Mount, Phase, Plane,
};
use horos_wire::principal::{Denied, Principal};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use quinn::{ClientConfig, Connection, ConnectionError, Endpoint, RecvStream, SendStream, ServerConfig, TransportConfig, VarInt};
use rustls::RootCertStore;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::{runtime::Handle, sync::Semaphore, task::JoinHandle};

use super::world::{Counting, LONG, eventually};

pub(crate) const NO_ERROR: u64 = 0x100;
pub(crate) const INTERNAL_ERROR: u64 = 0x102;
pub(crate) const STREAM_CREATION_ERROR: u64 = 0x103;
pub(crate) const CLOSED_CRITICAL_STREAM: u64 = 0x104;
pub(crate) const FRAME_UNEXPECTED: u64 = 0x105;
pub(crate) const FRAME_ERROR: u64 = 0x106;
pub(crate) const EXCESSIVE_LOAD: u64 = 0x107;
pub(crate) const REQUEST_REJECTED: u64 = 0x10b;
pub(crate) const MESSAGE_ERROR: u64 = 0x10e;

/// Nobody has a key here.
#[derive(Debug)]
struct Nobody;

impl Authenticator for Nobody {
    fn recall(&self, _: &Credential) -> Option<Result<Arc<Principal>, Denied>> {
        Some(Err(Denied::Unknown))
    }

    fn verify(&self, _: Credential) -> BoxFuture<'static, Result<Arc<Principal>, Denied>> {
        Box::pin(std::future::ready(Err(Denied::Unknown)))
    }
}

/// What `/t/head/N` answers: statuses and fields that the static table of QPACK has (RFC 9204, appendix A), whole or by name, and
/// others.
pub(crate) const HEADS: [(u16, &str, &str); 34] = [
    (200, "accept-ranges", "bytes"),
    (204, "access-control-allow-credentials", "TRUE"),
    (206, "access-control-allow-headers", "*"),
    (302, "access-control-allow-origin", "*"),
    (304, "age", "0"),
    (201, "alt-svc", "h3=\":443\"; ma=86400"),
    (421, "cache-control", "no-cache"),
    (425, "cache-control", "no-store"),
    (200, "cache-control", "max-age=0"),
    (200, "cache-control", "max-age=2592000"),
    (200, "cache-control", "max-age=604800"),
    (200, "cache-control", "private"),
    (200, "content-disposition", "attachment"),
    (200, "content-encoding", "gzip"),
    (200, "content-encoding", "br"),
    (200, "content-security-policy", "default-src 'self'"),
    (200, "content-type", "application/json"),
    (200, "content-type", "text/html; charset=utf-8"),
    (200, "content-type", "text/plain"),
    (200, "content-type", "application/javascript"),
    (200, "content-type", "image/gif"),
    (200, "content-type", "image/jpeg"),
    (200, "content-type", "image/png"),
    (200, "content-type", "text/css"),
    (200, "etag", "\"7\""),
    (200, "last-modified", "Sat, 21 Nov 2026 12:00:00 GMT"),
    (200, "link", "</next>; rel=next"),
    (200, "location", "/there"),
    (200, "server", "horos"),
    (200, "set-cookie", "a=b"),
    (200, "strict-transport-security", "max-age=31536000"),
    (200, "vary", "origin"),
    (200, "x-content-type-options", "nosniff"),
    (
        599,
        "x-a-name-that-no-table-has-and-that-needs-more-than-one-byte-for-its-length",
        "\"and a value that is longer than the hundred and twenty-seven bytes which one byte tells, for it goes on and on and on and on and on\"",
    ),
];

/// What the services tell a test.
#[derive(Debug)]
pub(crate) struct Told {
    /// Requests to `/t/wait` are answered as it has permits.
    pub(crate) gate: Semaphore,
    pub(crate) waiting: AtomicUsize,
    /// Work that was dropped before it was done.
    pub(crate) dropped: AtomicUsize,
}

/// A door that is open.
pub(crate) struct Door {
    pub(crate) address: SocketAddr,
    pub(crate) metrics: Metrics,
    pub(crate) drain: Drain,
    pub(crate) http3: Http3,
    pub(crate) told: Arc<Told>,
    roots: RootCertStore,
    endpoint: Endpoint,
    accepts: JoinHandle<()>,
    clients: parking_lot::Mutex<Vec<Endpoint>>,
}

impl Drop for Door {
    fn drop(&mut self) {
        self.accepts.abort();
        self.endpoint.close(VarInt::from_u32(0), b"");
    }
}

impl Door {
    pub(crate) fn open(config: Config) -> Self {
        Self::on(config, Handle::current())
    }

    /// With requests served on `runtime`.
    pub(crate) fn on(config: Config, runtime: Handle) -> Self {
        let (metrics, drain) = (Metrics::default(), Drain::default());
        let told = Arc::new(Told { gate: Semaphore::new(0), waiting: AtomicUsize::new(0), dropped: AtomicUsize::new(0) });
        let conditions = Conditions::default();
        let parts = AppParts {
            authenticator: Arc::new(Nobody),
            maintenance: Maintenance::new(conditions.clone()),
            conditions,
            drain: drain.clone(),
            metrics: metrics.clone(),
            h3: Vec::new(),
        };
        let config = Arc::new(config);
        let app = App::new(config.clone(), vec![mount(told.clone())], parts).unwrap();
        let http3 = Http3::new(app, config, metrics.clone(), drain.clone(), runtime);
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(made.cert.der().clone()).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
        let endpoint = Endpoint::server(server(made.cert.der().clone(), key), "127.0.0.1:0".parse().unwrap()).unwrap();
        let (handler, accepting) = (http3.door(Plane::Both), endpoint.clone());
        let accepts = tokio::spawn(async move {
            while let Some(incoming) = accepting.accept().await {
                let handler = handler.clone();
                tokio::spawn(async move {
                    if let Ok(connection) = incoming.await {
                        handler.serve(connection).await;
                    }
                });
            }
        });
        let address = endpoint.local_addr().unwrap();
        Self { address, metrics, drain, http3, told, roots, endpoint, accepts, clients: parking_lot::Mutex::default() }
    }

    pub(crate) async fn connections(&self, open: usize) {
        eventually("open connections", || match self.http3.open() {
            now if now == open => Ok(()),
            now => Err(format!("{now}, not {open}; {:?}", self.counts())),
        })
        .await;
    }

    pub(crate) async fn waiting(&self, requests: usize) {
        eventually("requests that wait", || match self.told.waiting.load(Relaxed) {
            now if now == requests => Ok(()),
            now => Err(format!("{now}, not {requests}; {:?}", self.counts())),
        })
        .await;
    }

    pub(crate) async fn dropped(&self, works: usize) {
        eventually("dropped work", || match self.told.dropped.load(Relaxed) {
            now if now == works => Ok(()),
            now => Err(format!("{now}, not {works}; {:?}", self.counts())),
        })
        .await;
    }

    pub(crate) fn drain(&self, within: Duration) -> Instant {
        let until = Instant::now() + within;
        self.drain.go(Phase::Draining { until });
        until
    }

    /// A QUIC connection of ALPN `h3` on which nothing was said.
    pub(crate) async fn quic(&self) -> Connection {
        self.quic_with(TransportConfig::default()).await
    }

    pub(crate) async fn quic_with(&self, transport: TransportConfig) -> Connection {
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let builder =
            rustls::ClientConfig::builder_with_provider(provider.into()).with_protocol_versions(&[&rustls::version::TLS13]).unwrap();
        let mut tls = builder.with_root_certificates(self.roots.clone()).with_no_client_auth();
        tls.alpn_protocols = vec![b"h3".to_vec()];
        let mut config = ClientConfig::new(Arc::new(quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap()));
        config.transport_config(Arc::new(transport));
        let endpoint = Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
        let connection = endpoint.connect_with(config, self.address, "localhost").unwrap().await.unwrap();
        self.clients.lock().push(endpoint);
        connection
    }

    /// A connection with the control stream and SETTINGS, for hand-written frames.
    pub(crate) async fn raw(&self) -> Raw {
        let connection = self.quic().await;
        let mut control = connection.open_uni().await.unwrap();
        control.write_all(&[&[0][..], &frame(0x4, b"")].concat()).await.unwrap();
        Raw { connection, control }
    }

    pub(crate) async fn client(&self) -> Client {
        Client::on(self.quic().await).await
    }
}

impl Counting for Door {
    fn metrics(&self) -> &Metrics {
        &self.metrics
    }
}

fn server(certificate: CertificateDer<'static>, key: PrivateKeyDer<'static>) -> ServerConfig {
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let builder = rustls::ServerConfig::builder_with_provider(provider.into()).with_protocol_versions(&[&rustls::version::TLS13]).unwrap();
    let mut tls = builder.with_no_client_auth().with_single_cert(vec![certificate], key).unwrap();
    tls.alpn_protocols = vec![b"h3".to_vec()];
    let mut config = ServerConfig::with_crypto(Arc::new(quinn::crypto::rustls::QuicServerConfig::try_from(tls).unwrap()));
    // As the node's endpoint takes whom it does not know: few streams, small windows; the door raises what it needs.
    config.transport_config(horos_link::accepting(1472));
    config
}

/// Times that make a test quick and limits that it can reach.
pub(crate) fn quick() -> Config {
    super::world::quick()
}

/// A client that behaves.
pub(crate) struct Client {
    pub(crate) connection: Connection,
    pub(crate) send: SendRequest<h3_quinn::OpenStreams, Bytes>,
    /// Drives the connection; its end is what tests look at.
    _driver: JoinHandle<h3::error::ConnectionError>,
}

pub(crate) type Asked = RequestStream<h3_quinn::BidiStream<Bytes>, Bytes>;

impl Client {
    pub(crate) async fn on(connection: Connection) -> Self {
        let (mut driver, send) = h3::client::new(h3_quinn::Connection::new(connection.clone())).await.unwrap();
        let driver = tokio::spawn(async move { std::future::poll_fn(|cx| driver.poll_close(cx)).await });
        Self { connection, send, _driver: driver }
    }

    pub(crate) async fn ask(&mut self, method: Method, path: &str) -> Asked {
        self.send.send_request(request(method, path)).await.unwrap()
    }

    pub(crate) async fn get(&mut self, path: &str) -> (Response<()>, Bytes) {
        get(&mut self.send, path).await
    }

    /// The code with which the server closed the connection.
    pub(crate) async fn closed(&self) -> u64 {
        closed(&self.connection).await
    }
}

pub(crate) async fn get(send: &mut SendRequest<h3_quinn::OpenStreams, Bytes>, path: &str) -> (Response<()>, Bytes) {
    let mut asked = send.send_request(request(Method::GET, path)).await.unwrap();
    asked.finish().await.unwrap();
    answer(&mut asked).await
}

pub(crate) fn request(method: Method, path: &str) -> Request<()> {
    Request::builder().method(method).uri(format!("https://localhost{path}")).body(()).unwrap()
}

pub(crate) async fn answer(asked: &mut Asked) -> (Response<()>, Bytes) {
    let response = tokio::time::timeout(LONG, asked.recv_response()).await.expect("an answer in time").expect("an answer");
    let mut body = Vec::new();
    while let Some(part) = tokio::time::timeout(LONG, asked.recv_data()).await.expect("a body in time").expect("a body") {
        body.extend_from_slice(part.chunk());
    }
    (response, body.into())
}

/// The code with which the server closed a connection.
pub(crate) async fn closed(connection: &Connection) -> u64 {
    match tokio::time::timeout(LONG, connection.closed()).await.expect("the server closes") {
        ConnectionError::ApplicationClosed(close) => close.error_code.into(),
        other => panic!("not closed by the application: {other}"),
    }
}

/// A client that says what it is told to.
pub(crate) struct Raw {
    pub(crate) connection: Connection,
    pub(crate) control: SendStream,
}

impl Raw {
    /// Opens a request's stream and says that.
    pub(crate) async fn say(&self, bytes: &[u8]) -> (SendStream, RecvStream) {
        let (mut send, recv) = self.connection.open_bi().await.unwrap();
        send.write_all(bytes).await.unwrap();
        (send, recv)
    }

    pub(crate) async fn closed(&self) -> u64 {
        closed(&self.connection).await
    }
}

/// The code with which the server reset a stream, or what it said.
pub(crate) async fn said(recv: &mut RecvStream) -> Result<Vec<u8>, u64> {
    match tokio::time::timeout(LONG, recv.read_to_end(1 << 20)).await.expect("the stream ends") {
        Ok(bytes) => Ok(bytes),
        Err(quinn::ReadToEndError::Read(quinn::ReadError::Reset(code))) => Err(code.into()),
        Err(other) => panic!("neither ended nor reset: {other}"),
    }
}

/// A variable-length integer.
pub(crate) fn varint(value: u64) -> Vec<u8> {
    match value {
        0..=0x3f => vec![value as u8],
        0x40..=0x3fff => (value as u16 | 0x4000).to_be_bytes().to_vec(),
        0x4000..=0x3fff_ffff => (value as u32 | 0x8000_0000).to_be_bytes().to_vec(),
        _ => (value | 0xc000_0000_0000_0000).to_be_bytes().to_vec(),
    }
}

/// A frame of HTTP/3.
pub(crate) fn frame(kind: u64, payload: &[u8]) -> Vec<u8> {
    [announce(kind, payload.len() as u64), payload.to_vec()].concat()
}

/// The header of one.
pub(crate) fn announce(kind: u64, len: u64) -> Vec<u8> {
    [varint(kind), varint(len)].concat()
}

/// A string of QPACK, its length with a prefix of `bits` (RFC 7541 §5.1).
fn text(flags: u8, bits: u8, text: &str) -> Vec<u8> {
    let most = (1_usize << bits) - 1;
    let mut bytes = Vec::new();
    if text.len() < most {
        bytes.push(flags | text.len() as u8);
    } else {
        bytes.push(flags | most as u8);
        let mut left = text.len() - most;
        while left >= 128 {
            bytes.push((left % 128) as u8 | 128);
            left /= 128;
        }
        bytes.push(left as u8);
    }
    bytes.extend_from_slice(text.as_bytes());
    bytes
}

/// A field, both name and value literal (RFC 9204 §4.5.6).
pub(crate) fn field(name: &str, value: &str) -> Vec<u8> {
    [text(0x20, 3, name), text(0, 7, value)].concat()
}

/// The field section of a request.
pub(crate) fn section(method: &str, path: &str, fields: &[(&str, &str)]) -> Vec<u8> {
    let pseudo = [(":method", method), (":scheme", "https"), (":authority", "localhost"), (":path", path)];
    let fields: Vec<u8> = pseudo.iter().chain(fields).flat_map(|(name, value)| field(name, value)).collect();
    [&[0, 0][..], &fields].concat()
}

/// A HEADERS frame of a request.
pub(crate) fn head(method: &str, path: &str, fields: &[(&str, &str)]) -> Vec<u8> {
    frame(0x1, &section(method, path, fields))
}

/// Counts itself when it is dropped before it is done.
struct Work(Arc<Told>, bool);

impl Drop for Work {
    fn drop(&mut self) {
        if !self.1 {
            self.0.dropped.fetch_add(1, Relaxed);
        }
    }
}

fn mount(told: Arc<Told>) -> Mount {
    let service = tower::service_fn(move |request: Request<Body>| {
        let told = told.clone();
        async move { Ok::<_, Infallible>(serve(request, told).await) }
    });
    Mount::new("/t", Access::Public, Plane::Both, service).unwrap()
}

async fn serve(request: Request<Body>, told: Arc<Told>) -> Response<Body> {
    let path = request.uri().path().to_owned();
    match path.as_str() {
        _ if path.starts_with("/wait") => {
            let mut work = Work(told.clone(), false);
            told.waiting.fetch_add(1, Relaxed);
            told.gate.acquire().await.unwrap().forget();
            told.waiting.fetch_sub(1, Relaxed);
            work.1 = true;
            let bytes = path.strip_prefix("/wait/").map(|count| vec![b'w'; count.parse().unwrap()]);
            Response::new(Body::from(bytes.unwrap_or_else(|| b"waited".to_vec())))
        }
        // Answers with what comes, as it comes.
        "/echo" => Response::new(request.into_body()),
        // Answers when all has come, with what it was.
        "/read" => match request.into_body().collect().await {
            Ok(body) => {
                let trailers = body.trailers().map(|trailers| format!("{trailers:?}")).unwrap_or_default();
                Response::new(Body::from(format!("{} {trailers}", body.to_bytes().len())))
            }
            Err(_) => Response::builder().status(StatusCode::BAD_REQUEST).body(Body::empty()).unwrap(),
        },
        // Without a look at the body.
        "/early" => Response::builder().status(StatusCode::PAYLOAD_TOO_LARGE).body(Body::from("no")).unwrap(),
        "/endless" => {
            let work = Work(told, false);
            let part = Bytes::from(vec![b'e'; 16 * 1024]);
            let parts = stream::repeat_with(move || {
                let _ = &work;
                Ok::<_, Infallible>(part.clone())
            });
            Response::new(Body::from_stream(parts))
        }
        // Says something, and then nothing for ever.
        "/silent" => {
            let work = Work(told, false);
            let parts = stream::iter([Ok::<_, Infallible>(Bytes::from_static(b"first"))]).chain(stream::pending());
            Response::new(Body::from_stream(parts.inspect(move |_| {
                let _ = &work;
            })))
        }
        "/broken" => {
            let parts = [Ok(Bytes::from_static(b"first")), Err(std::io::Error::other("asked to break"))];
            Response::new(Body::from_stream(stream::iter(parts)))
        }
        "/short" => {
            Response::builder().header("content-length", "10").body(Body::from_stream(stream::iter([Ok::<_, Infallible>("few")]))).unwrap()
        }
        "/empty" => Response::builder().status(StatusCode::NO_CONTENT).body(Body::empty()).unwrap(),
        "/hop" => {
            let response = Response::builder().header("connection", "keep-alive, x-mine").header("keep-alive", "timeout=5");
            response.header("x-mine", "1").header("x-kept", "1").body(Body::from("hop")).unwrap()
        }
        "/thread" => Response::new(Body::from(std::thread::current().name().unwrap_or_default().to_owned())),
        "/seen" => Response::new(Body::from(format!("{:?} {} {}", request.version(), request.method(), request.uri()))),
        "/trailers" => {
            let mut trailers = http::HeaderMap::new();
            trailers.insert("x-sum", http::HeaderValue::from_static("5"));
            let body = http_body_util::Full::new(Bytes::from_static(b"hello")).with_trailers(std::future::ready(Some(Ok(trailers))));
            Response::new(Body::new(body))
        }
        _ if path.starts_with("/head/") => {
            let (status, name, value) = HEADS[path["/head/".len()..].parse::<usize>().unwrap()];
            let mut marked = HeaderValue::from_static(value);
            marked.set_sensitive(true);
            let response = Response::builder().status(status).header(name, value).header("x-marked", marked);
            response.body(Body::empty()).unwrap()
        }
        _ => match path.strip_prefix("/bytes/") {
            Some(count) => Response::new(Body::from(vec![b'b'; count.parse().unwrap()])),
            None => Response::new(Body::from("hello")),
        },
    }
}

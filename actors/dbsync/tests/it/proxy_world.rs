//! Owners and front offices for tests: real servers on loopback, HTTP/1.1 and HTTP/2, with and without TLS.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use horos_dbsync::proxy::{Body, BoxError, Config, WriteProxy};
use horos_link::{
    identity::{Authority, Validity, request},
    tls::{Expected, Tls},
};
use horos_wire::{NodeId, Role};
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, Empty, Full, StreamBody};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use jiff::Timestamp;
use rustls::ServerConfig;
use tempfile::TempDir;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;
use tower::{Service, ServiceExt as _};

/// How much to do: `normal` on every change, `full` with `HOROS_TEST_FULL=1`.
pub(crate) fn scale<T>(normal: T, full: T) -> T {
    if std::env::var_os("HOROS_TEST_FULL").is_some_and(|value| value == "1") { full } else { normal }
}

/// Polls a state until it is as it should be.
pub(crate) async fn eventually(what: &str, mut is: impl FnMut() -> bool) {
    let end = std::time::Instant::now() + Duration::from_secs(20);
    while !is() {
        assert!(std::time::Instant::now() < end, "{what}: not within 20 s");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

pub(crate) type Handler = Arc<dyn Fn(Request<Incoming>) -> BoxFuture<'static, Result<Response<Body>, BoxError>> + Send + Sync>;

/// Turns a closure into what an owner answers with; an error closes the connection without an answer.
pub(crate) fn handler<F>(f: impl Fn(Request<Incoming>) -> F + Send + Sync + 'static) -> Handler
where
    F: Future<Output = Result<Response<Body>, BoxError>> + Send + 'static,
{
    Arc::new(move |request| Box::pin(f(request)))
}

/// A whole body.
pub(crate) fn full(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).map_err(Into::into).boxed_unsync()
}

pub(crate) fn nothing() -> Body {
    Empty::new().map_err(Into::into).boxed_unsync()
}

/// What an owner speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Speaks {
    Http1,
    Http2,
}

/// A server that answers as its handler does, until it is dropped.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) connections: Arc<AtomicU64>,
    drain: watch::Sender<()>,
    tasks: Option<JoinSet<()>>,
}

impl Server {
    pub(crate) async fn open(speaks: Speaks, handler: Handler) -> Self {
        Self::open_on("127.0.0.1:0".parse().unwrap(), speaks, None, handler).await
    }

    pub(crate) async fn open_on(address: SocketAddr, speaks: Speaks, tls: Option<ServerConfig>, handler: Handler) -> Self {
        // As a node does: what its last life left in TIME_WAIT does not keep its port.
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicU64::new(0));
        let counted = connections.clone();
        let tls = tls.map(|mut tls| {
            tls.alpn_protocols = vec![if speaks == Speaks::Http2 { b"h2".to_vec() } else { b"http/1.1".to_vec() }];
            TlsAcceptor::from(Arc::new(tls))
        });
        let drain = watch::Sender::new(());
        let draining = drain.clone();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut served = JoinSet::new();
            loop {
                let Ok((tcp, _)) = listener.accept().await else { continue };
                counted.fetch_add(1, Relaxed);
                tcp.set_nodelay(true).unwrap();
                let (tls, handler, drained) = (tls.clone(), handler.clone(), draining.subscribe());
                served.spawn(async move {
                    match tls {
                        None => serve(tcp, speaks, handler, drained).await,
                        Some(tls) => {
                            if let Ok(tls) = tls.accept(tcp).await {
                                serve(tls, speaks, handler, drained).await;
                            }
                        }
                    }
                });
            }
        });
        Self { address, connections, drain, tasks: Some(tasks) }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn connections(&self) -> u64 {
        self.connections.load(Relaxed)
    }

    /// Lets every connection end that is open now, as a node does that stops: with what is in hand, and nothing new.
    pub(crate) fn drain(&self) {
        self.drain.send_replace(());
    }

    /// Cuts every connection and takes no more.
    pub(crate) async fn kill(&mut self) {
        if let Some(mut tasks) = self.tasks.take() {
            tasks.shutdown().await;
        }
    }
}

/// Why a connection is closed without an answer.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Cut(String);

async fn serve<T: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    io: T,
    speaks: Speaks,
    handler: Handler,
    mut drained: watch::Receiver<()>,
) {
    let service = service_fn(move |request| {
        let answer = handler(request);
        async move { answer.await.map_err(|error| Cut(error.to_string())) }
    });
    macro_rules! run {
        ($connection:expr) => {{
            let connection = $connection;
            tokio::pin!(connection);
            // How a connection ends is what tests bring about.
            let _ = tokio::select! {
                ended = connection.as_mut() => ended,
                _ = drained.changed() => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
        }};
    }
    match speaks {
        Speaks::Http1 => {
            run!(hyper::server::conn::http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(io), service))
        }
        Speaks::Http2 => {
            let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            run!(builder.timer(TokioTimer::new()).max_concurrent_streams(512).serve_connection(TokioIo::new(io), service));
        }
    }
}

/// A front office's port: HTTP/1.1 before `service`.
pub(crate) async fn front<S>(service: S) -> Server
where
    S: Service<Request<Incoming>, Response = Response<Body>, Error = Infallible> + Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
{
    Server::open(Speaks::Http1, of(service)).await
}

/// A service as what an owner answers with.
pub(crate) fn of<S>(service: S) -> Handler
where
    S: Service<Request<Incoming>, Response = Response<Body>, Error = Infallible> + Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
{
    Arc::new(move |request| {
        let answer = service.clone().oneshot(request);
        Box::pin(async move { Ok(answer.await?) })
    })
}

pub(crate) fn config(url: &str) -> Config {
    Config::new(url.parse().unwrap(), "fo-1".parse().unwrap())
}

pub(crate) fn speaking(url: &str, speaks: Speaks) -> Config {
    let mut config = config(url);
    config.version = match speaks {
        Speaks::Http1 => horos_dbsync::proxy::Version::Http1,
        Speaks::Http2 => horos_dbsync::proxy::Version::Http2,
    };
    config
}

/// An answer, read to its end.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) status: u16,
    pub(crate) headers: http::HeaderMap,
    pub(crate) body: Result<Bytes, String>,
}

impl Seen {
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(self.body.as_ref().unwrap()).unwrap()
    }

    /// A member of a problem's details.
    pub(crate) fn problem(&self, member: &str) -> String {
        assert_eq!(self.headers["content-type"], "application/problem+json", "{self:?}");
        let value: serde_json::Value = serde_json::from_str(self.text()).unwrap();
        value[member].as_str().unwrap_or_else(|| panic!("{member} in {value}")).to_owned()
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).unwrap_or_else(|| panic!("{name} in {:?}", self.headers)).to_str().unwrap()
    }
}

pub(crate) fn ask<S, B>(service: &S, request: Request<B>) -> BoxFuture<'static, Seen>
where
    S: Service<Request<B>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
    B: Send + 'static,
{
    let service = service.clone();
    Box::pin(async move {
        let Ok(answer) = service.oneshot(request).await;
        read(answer).await
    })
}

pub(crate) async fn read(answer: Response<Body>) -> Seen {
    let (parts, body) = answer.into_parts();
    let body = body.collect().await.map(|body| body.to_bytes()).map_err(|error| error.to_string());
    Seen { status: parts.status.as_u16(), headers: parts.headers, body }
}

pub(crate) fn post(text: &str) -> Request<Body> {
    Request::post("/order").body(full(text.to_owned())).unwrap()
}

pub(crate) fn get(path: &str) -> Request<Body> {
    Request::get(path).body(nothing()).unwrap()
}

pub(crate) fn proxy(config: Config) -> WriteProxy {
    WriteProxy::new(config).unwrap()
}

/// An authority and nodes with certificates of it.
pub(crate) struct Cluster {
    root: TempDir,
    authority: Authority,
    nodes: BTreeMap<&'static str, PathBuf>,
}

impl Cluster {
    pub(crate) fn new(nodes: &[(Role, &'static str)]) -> Self {
        let root = tempfile::tempdir().unwrap();
        let now = Timestamp::now();
        let authority =
            Authority::create(&root.path().join("ca"), &"test".parse().unwrap(), Validity::days(now, Validity::AUTHORITY_DAYS)).unwrap();
        let mut cluster = Self { root, authority, nodes: BTreeMap::new() };
        for (role, name) in nodes {
            let directory = cluster.enrol(&cluster.id(*role, name));
            cluster.nodes.insert(name, directory);
        }
        cluster
    }

    pub(crate) fn id(&self, role: Role, name: &str) -> NodeId {
        NodeId { cluster: self.authority.cluster().clone(), role, name: name.parse().unwrap() }
    }

    fn enrol(&self, id: &NodeId) -> PathBuf {
        let directory = self.root.path().join(id.name.as_str());
        let asked = std::fs::read_to_string(request::create(&directory, id).unwrap()).unwrap();
        let now = Timestamp::now();
        let (certificate, _) = self.authority.sign(&asked, id, Validity::usual(now, id)).unwrap();
        request::install(&directory, &certificate, self.authority.certificate_pem(), now).unwrap();
        directory
    }

    fn tls(&self, node: &str) -> Tls {
        Tls::open(Path::new(&self.nodes[node]), Timestamp::now()).unwrap()
    }

    /// The accepting side of `node`'s HTTPS, as the port has it.
    pub(crate) fn server(&self, node: &str) -> ServerConfig {
        ServerConfig::builder_with_provider(horos_link::tls::provider().clone())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(self.tls(node).certificate())
    }

    /// `node`'s side, towards `owner` alone.
    pub(crate) fn client(&self, node: &str, owner: &NodeId) -> Arc<rustls::ClientConfig> {
        Arc::new(self.tls(node).https(Expected::Node(owner.clone())))
    }
}

/// A listener whose connections the test speaks on by itself.
pub(crate) async fn raw() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// Reads one head of HTTP/1.1 and nothing behind it.
pub(crate) async fn read_head(tcp: &mut TcpStream) -> String {
    use tokio::io::AsyncReadExt as _;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        assert_eq!(tcp.read(&mut byte).await.unwrap(), 1, "the head broke off: {:?}", String::from_utf8_lossy(&head));
        head.extend(byte);
    }
    String::from_utf8(head).unwrap()
}

pub(crate) const BOTH: [Speaks; 2] = [Speaks::Http1, Speaks::Http2];

/// Counts what it does, and answers.
pub(crate) fn counting(count: &Arc<AtomicU64>) -> Handler {
    let count = count.clone();
    handler(move |request| {
        let count = count.clone();
        async move {
            request.into_body().collect().await?;
            count.fetch_add(1, Relaxed);
            Ok(Response::new(full("done")))
        }
    })
}

/// A body that comes part by part, and ends with the first error.
pub(crate) fn streamed(parts: mpsc::Receiver<Result<&'static str, BoxError>>) -> Body {
    let parts = futures_util::stream::unfold(parts, |mut parts| async {
        let part = parts.recv().await?;
        Some((part.map(|text| Frame::data(Bytes::from_static(text.as_bytes()))), parts))
    });
    StreamBody::new(parts).boxed_unsync()
}

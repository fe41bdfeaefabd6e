//! Servers, well behaved and otherwise.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{Full, combinators::UnsyncBoxBody};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::TlsAcceptor;

pub(crate) type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

/// A server that counts.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) connections: Arc<AtomicUsize>,
    pub(crate) requests: Arc<AtomicUsize>,
}

impl Server {
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(SeqCst)
    }

    pub(crate) fn requests(&self) -> usize {
        self.requests.load(SeqCst)
    }
}

pub(crate) fn full(response: Response<impl Into<Bytes>>) -> Answer {
    use http_body_util::BodyExt as _;
    response.map(|body| Full::new(body.into()).boxed_unsync())
}

/// HTTP/1.1 without TLS, answering by `answer`.
pub(crate) async fn plain<F, A>(answer: F) -> Server
where
    F: Fn(Request<Incoming>) -> A + Clone + Send + Sync + 'static,
    A: Future<Output = Answer> + Send + 'static,
{
    serve(None, answer).await
}

/// HTTP over TLS, in the versions that `authority` offers.
pub(crate) async fn serve<F, A>(tls: Option<TlsAcceptor>, answer: F) -> Server
where
    F: Fn(Request<Incoming>) -> A + Clone + Send + Sync + 'static,
    A: Future<Output = Answer> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = Server { address: listener.local_addr().unwrap(), connections: Arc::default(), requests: Arc::default() };
    let Server { connections, requests, .. } = server.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            connections.fetch_add(1, SeqCst);
            let (tls, answer, requests) = (tls.clone(), answer.clone(), requests.clone());
            let service = service_fn(move |request| {
                requests.fetch_add(1, SeqCst);
                let answering = answer(request);
                async move { Ok::<_, Infallible>(answering.await) }
            });
            tokio::spawn(async move {
                let Some(tls) = tls else {
                    return drop(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await);
                };
                let Ok(stream) = tls.accept(stream).await else { return };
                let h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                let stream = TokioIo::new(stream);
                if h2 {
                    drop(hyper::server::conn::http2::Builder::new(TokioExecutor::new()).serve_connection(stream, service).await);
                } else {
                    drop(hyper::server::conn::http1::Builder::new().serve_connection(stream, service).await);
                }
            });
        }
    });
    server
}

/// A server that reads a request's head and then does as it likes.
pub(crate) async fn raw<F, A>(act: F) -> Server
where
    F: Fn(BufReader<TcpStream>, String) -> A + Clone + Send + Sync + 'static,
    A: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = Server { address: listener.local_addr().unwrap(), connections: Arc::default(), requests: Arc::default() };
    let Server { connections, requests, .. } = server.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            connections.fetch_add(1, SeqCst);
            let (act, requests) = (act.clone(), requests.clone());
            tokio::spawn(async move {
                let mut stream = BufReader::new(stream);
                let mut head = String::new();
                while !head.ends_with("\r\n\r\n") {
                    if stream.read_line(&mut head).await.unwrap_or(0) == 0 {
                        return;
                    }
                }
                requests.fetch_add(1, SeqCst);
                act(stream, head).await;
            });
        }
    });
    server
}

/// A server that answers every request with these bytes, and then either closes or waits.
pub(crate) async fn says(bytes: impl Into<Bytes>, then: Then) -> Server {
    let bytes = bytes.into();
    raw(move |mut stream, _| {
        let bytes = bytes.clone();
        async move {
            if stream.write_all(&bytes).await.is_ok() && then == Then::Wait {
                // Until the client goes.
                let _ = stream.read_line(&mut String::new()).await;
            }
        }
    })
    .await
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    Close,
    Wait,
}

/// An authority of its own.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) pem: String,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// TLS as `name`, speaking what is offered in `alpn`.
    pub(crate) fn acceptor(&self, name: &str, alpn: &[&str]) -> TlsAcceptor {
        TlsAcceptor::from(Arc::new(self.config(name, alpn)))
    }

    /// The same, of QUIC.
    pub(crate) fn quic(&self, name: &str, alpn: &[&str]) -> quinn::ServerConfig {
        let crypto = quinn::crypto::rustls::QuicServerConfig::try_from(self.config(name, alpn)).unwrap();
        quinn::ServerConfig::with_crypto(Arc::new(crypto))
    }

    fn config(&self, name: &str, alpn: &[&str]) -> ServerConfig {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, &self.issuer).unwrap();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        config
    }

    /// Its certificate in a file, for as long as that is held.
    pub(crate) fn file(&self) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &self.pem).unwrap();
        file
    }
}

//! The way from our client to the suite's servers: those speak HTTP/1.1 without TLS, so our client is let ask a [`Front`], which speaks to
//! it over what is to be tested and passes everything on.
//!
//! Over QUIC a front does what streamable HTTP wants beside the messages: it keeps the session's id, and repeats in fields what the
//! messages say. Scenarios about those fields are not its to pass; `exceptions.txt` names them.

mod http3;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::State;
use axum::http::{HeaderValue, Request, Response, StatusCode, Uri, header};
use axum::response::IntoResponse as _;
use futures_util::StreamExt as _;
use horos_tools::quic::{ALPNS, MAGIC, MAX_MESSAGE};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use quinn::crypto::rustls::QuicServerConfig;
use quinn::{Endpoint, RecvStream, SendStream};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex as Turn;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::exceptions::Over;
use crate::harness::data_dir;

/// An open front; it goes with its owner.
pub(crate) struct Front {
    /// What our client is to ask.
    pub(crate) url: String,
    /// Whom it is to believe.
    pub(crate) authority: PathBuf,
    serving: JoinHandle<()>,
    _directory: TempDir,
}

impl Drop for Front {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Front {
    /// Before the suite's server at `url`.
    pub(crate) async fn open(over: Over, url: &str) -> Result<Self> {
        let target: Uri = url.parse()?;
        let directory = data_dir();
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
        let authority = directory.path().join("authority.pem");
        std::fs::write(&authority, made.cert.pem())?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = ServerConfig::builder_with_provider(provider).with_protocol_versions(&[&rustls::version::TLS13])?;
        let mut tls = tls.with_no_client_auth().with_single_cert(vec![made.cert.der().clone()], key)?;
        let (url, serving) = match over {
            Over::Quic => {
                tls.alpn_protocols = ALPNS.map(<[u8]>::to_vec).into();
                let config = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls)?));
                let endpoint = Endpoint::server(config, ([127, 0, 0, 1], 0).into())?;
                (format!("quic://localhost:{}", endpoint.local_addr()?.port()), tokio::spawn(doors(endpoint, target)))
            }
            Over::Http3 => {
                tls.alpn_protocols = vec![b"h3".to_vec()];
                let config = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls)?));
                let endpoint = Endpoint::server(config, ([127, 0, 0, 1], 0).into())?;
                let url = format!("h3://localhost:{}{}", endpoint.local_addr()?.port(), target.path());
                (url, tokio::spawn(http3::serve(endpoint, Arc::new(target))))
            }
            Over::Http1 | Over::Http2 => {
                tls.alpn_protocols = vec![b"h2".to_vec()];
                let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
                let url = format!("https://localhost:{}{}", listener.local_addr()?.port(), target.path());
                let app = Router::new().fallback(pass).with_state(Arc::new(target));
                let listener = Tls { listener, acceptor: TlsAcceptor::from(Arc::new(tls)) };
                let serving = async move { axum::serve(listener, app).await.expect("a listener on loopback goes on") };
                (url, tokio::spawn(serving))
            }
        };
        Ok(Self { url, authority, serving, _directory: directory })
    }
}

/// TLS that speaks HTTP/2 and nothing else.
struct Tls {
    listener: TcpListener,
    acceptor: TlsAcceptor,
}

impl axum::serve::Listener for Tls {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, SocketAddr) {
        loop {
            // One that fails is its client's to try again.
            let Ok((stream, from)) = self.listener.accept().await else { continue };
            if let Ok(stream) = self.acceptor.accept(stream).await {
                return (stream, from);
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

async fn pass(State(target): State<Arc<Uri>>, request: Request<Body>) -> Response<Body> {
    match send(&target, request).await {
        Ok(answer) => answer,
        Err(error) => (StatusCode::BAD_GATEWAY, format!("{error:#}")).into_response(),
    }
}

/// Sends a request to the suite's server, by a connection of its own.
async fn send(target: &Uri, request: Request<Body>) -> Result<Response<Body>> {
    let authority = target.authority().context("a whole URL")?;
    let (mut head, body) = request.into_parts();
    head.uri = head.uri.path_and_query().context("a path")?.clone().into();
    head.version = axum::http::Version::HTTP_11;
    head.headers.insert(header::HOST, HeaderValue::from_str(authority.as_str())?);
    let stream = TcpStream::connect(("localhost", authority.port_u16().context("a port")?)).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let mut answer = sender.send_request(Request::from_parts(head, body)).await?.map(Body::new);
    for name in [header::CONNECTION, header::TRANSFER_ENCODING, header::HeaderName::from_static("keep-alive")] {
        answer.headers_mut().remove(name);
    }
    *answer.version_mut() = axum::http::Version::default();
    Ok(answer)
}

/// Serves every connection, until it is dropped.
async fn doors(endpoint: Endpoint, target: Uri) {
    while let Some(incoming) = endpoint.accept().await {
        let target = target.clone();
        tokio::spawn(async move {
            let session = async {
                let connection = incoming.await?;
                let (send, receive) = connection.accept_bi().await?;
                serve(Arc::new(Line { target, send: Turn::new(send), session: Mutex::default(), versions: Mutex::default() }), receive)
                    .await
            };
            // What went wrong the client says better.
            let _ = session.await;
        });
    }
}

/// The one stream of a session.
struct Line {
    target: Uri,
    send: Turn<SendStream>,
    session: Mutex<Option<HeaderValue>>,
    /// What was agreed on, for requests that do not say it themselves.
    versions: Mutex<Option<String>>,
}

async fn serve(line: Arc<Line>, mut receive: RecvStream) -> Result<()> {
    let mut magic = [0; 4];
    receive.read_exact(&mut magic).await?;
    ensure!(magic == MAGIC, "another protocol");
    let mut lines = BufReader::new(receive).lines();
    while let Some(text) = lines.next_line().await? {
        let message: Value = serde_json::from_str(&text)?;
        let (line, begun) = (line.clone(), message["method"] == "notifications/initialized");
        if message["method"] == "initialize" || begun {
            line.ask(message).await?;
            if begun {
                tokio::spawn(async move { line.listen().await });
            }
        } else {
            // A request may wait for an answer that comes behind it.
            tokio::spawn(async move { line.ask(message).await });
        }
    }
    Ok(())
}

impl Line {
    async fn ask(&self, message: Value) -> Result<()> {
        let method = message["method"].as_str().unwrap_or_default();
        let mut fields = HashMap::from([("content-type", "application/json".to_owned()), ("mcp-method", method.to_owned())]);
        fields.insert("accept", "application/json, text/event-stream".to_owned());
        if let Some(name) = message["params"].get("name").or(message["params"].get("uri")).and_then(Value::as_str) {
            fields.insert("mcp-name", name.to_owned());
        }
        let said = message["params"]["_meta"]["io.modelcontextprotocol/protocolVersion"].as_str().map(str::to_owned);
        if let Some(version) = said.or_else(|| self.versions.lock().clone()) {
            fields.insert("mcp-protocol-version", version);
        }
        let mut request = Request::post(self.target.path());
        for (name, value) in fields.iter().filter(|(_, value)| !value.is_empty()) {
            request = request.header(*name, value);
        }
        if let Some(session) = &*self.session.lock() {
            request = request.header("mcp-session-id", session);
        }
        let answer = send(&self.target, request.body(Body::from(message.to_string()))?).await?;
        if let Some(session) = answer.headers().get("mcp-session-id") {
            *self.session.lock() = Some(session.clone());
        }
        let is_events = answer.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"));
        if !is_events {
            let body = to_bytes(answer.into_body(), MAX_MESSAGE).await?;
            return self.say(std::str::from_utf8(&body)?).await;
        }
        self.pass_events(answer.into_body()).await
    }

    /// What the server says beside its answers (2025-11-25, "Listening for Messages from the Server").
    async fn listen(&self) -> Result<()> {
        let mut request = Request::get(self.target.path()).header(header::ACCEPT, "text/event-stream");
        if let Some(session) = &*self.session.lock() {
            request = request.header("mcp-session-id", session);
        }
        if let Some(version) = &*self.versions.lock() {
            request = request.header("mcp-protocol-version", version);
        }
        let answer = send(&self.target, request.body(Body::empty())?).await?;
        ensure!(answer.status() == StatusCode::OK, "it has nothing to say");
        self.pass_events(answer.into_body()).await
    }

    async fn pass_events(&self, body: Body) -> Result<()> {
        let (mut parts, mut read) = (body.into_data_stream(), String::new());
        while let Some(part) = parts.next().await {
            read.push_str(std::str::from_utf8(&part?)?);
            while let Some((event, rest)) = read.split_once("\n\n") {
                let data = event.lines().filter_map(|line| line.strip_prefix("data:")).map(str::trim_start).collect::<String>();
                let rest = rest.to_owned();
                self.say(&data).await?;
                read = rest;
            }
        }
        Ok(())
    }

    /// Passes a message on to our client.
    async fn say(&self, text: &str) -> Result<()> {
        let Ok(message) = serde_json::from_str::<Value>(text) else { return Ok(()) };
        if let Some(version) = message["result"]["protocolVersion"].as_str() {
            *self.versions.lock() = Some(version.to_owned());
        }
        Ok(self.send.lock().await.write_all(format!("{message}\n").as_bytes()).await?)
    }
}

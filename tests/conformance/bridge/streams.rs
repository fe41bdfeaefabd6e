//! The far side of a bridge over QUIC: requests that arrive by streamable HTTP go out on streams, and lines that come back are answers
//! and events.
//!
//! What HTTP has and a stream has not is made here, as little as the suite can do with: a session is a connection, by an id of the
//! bridge's own; what is not of a session goes over one connection that all share; an error's code becomes the status that 2026-07-28
//! gives it. Fields of requests (`Host`, `Origin`, `Mcp-…`) and ids of events mean nothing here, and what the suite wants to know of
//! them is a matter of `exceptions.txt`.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, Result, bail};
use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, Method, Request, Response, StatusCode, header};
use futures_util::StreamExt as _;
use futures_util::stream::{BoxStream, once, unfold};
use horos_tools::quic::{ALPNS, KEY, MAGIC, MAX_MESSAGE, STREAMS};
use parking_lot::Mutex;
use quinn::{Connection, Endpoint, RecvStream, SendStream};
use rustls::ClientConfig;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::sync::{Mutex as Turn, OnceCell, broadcast};

use crate::harness::{Site, site};

/// The header by which a session is known over HTTP.
const SESSION: &str = "mcp-session-id";
/// The revision without sessions.
const STATELESS: &str = "2026-07-28";
/// Messages on a first stream that nobody has read yet; the suite causes a handful.
const UNREAD: usize = 256;

/// The server under test, as a client sees it that has a key.
pub(crate) struct Streams {
    site: Site,
    tls: ClientConfig,
    key: String,
    endpoint: Endpoint,
    sessions: Mutex<HashMap<String, Arc<Session>>>,
    shared: OnceCell<Arc<Session>>,
    next: AtomicU64,
}

/// A connection.
struct Session {
    connection: Connection,
    /// Notifications and answers of the client's go here.
    first: Turn<SendStream>,
    /// What the server said there.
    said: broadcast::Sender<String>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.connection.close(0_u32.into(), b"");
    }
}

fn json_answer(status: StatusCode, line: impl Into<Body>) -> Response<Body> {
    let answer = Response::builder().status(status).header(header::CONTENT_TYPE, "application/json");
    answer.body(line.into()).expect("a plain head")
}

fn bare(status: StatusCode) -> Response<Body> {
    Response::builder().status(status).body(Body::empty()).expect("a plain head")
}

fn events(lines: BoxStream<'static, Result<String>>) -> Response<Body> {
    let events = lines.map(|line| line.map(|line| format!("event: message\ndata: {line}\n\n")));
    let answer = Response::builder().header(header::CONTENT_TYPE, "text/event-stream");
    answer.body(Body::from_stream(events)).expect("a plain head")
}

/// What a line that answers is over HTTP (MCP 2026-07-28, "Streamable HTTP").
fn status(line: &Value) -> StatusCode {
    match line["error"]["code"].as_i64() {
        Some(-32601) => StatusCode::NOT_FOUND,
        Some(-32700 | -32600 | -32602 | -32022..=-32020) => StatusCode::BAD_REQUEST,
        _ => StatusCode::OK,
    }
}

impl Streams {
    pub(crate) fn new(site: &Site, key: &str) -> Self {
        let alpn = std::str::from_utf8(ALPNS[1]).expect("a protocol's name is plain");
        Self {
            tls: site.tls(&[alpn], None),
            site: site.clone(),
            key: key.to_owned(),
            endpoint: site::dialer(site.address.ip()),
            sessions: Mutex::default(),
            shared: OnceCell::new(),
            next: AtomicU64::new(1),
        }
    }

    pub(crate) async fn ask(&self, request: Request<Body>) -> Result<Response<Body>> {
        let (head, body) = request.into_parts();
        let word = |headers: &HeaderMap, name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let id = word(&head.headers, SESSION);
        let session = match &id {
            Some(id) => match self.sessions.lock().get(id) {
                Some(session) => Some(session.clone()),
                None => return Ok(bare(StatusCode::NOT_FOUND)),
            },
            None => None,
        };
        match (head.method, session) {
            (Method::POST, session) => {
                let body = to_bytes(body, MAX_MESSAGE).await?;
                let Ok(message) = serde_json::from_slice::<Value>(&body) else {
                    return Ok(json_answer(
                        StatusCode::BAD_REQUEST,
                        r#"{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"no JSON"}}"#,
                    ));
                };
                let is_stateless = word(&head.headers, "mcp-protocol-version").is_some_and(|version| *version >= *STATELESS);
                match session {
                    Some(session) => post(&session, &message, |_| StatusCode::OK).await,
                    None if message["method"] == "initialize" && !is_stateless => self.initialize(message).await,
                    None => post(self.shared.get_or_try_init(|| self.open_shared()).await?, &message, status).await,
                }
            }
            (Method::GET, Some(session)) => {
                let heard = unfold(session.said.subscribe(), |mut said| async {
                    let line = said.recv().await.ok()?;
                    Some((Ok(line), said))
                });
                Ok(events(heard.boxed()))
            }
            (Method::DELETE, Some(_)) => {
                self.sessions.lock().remove(&id.unwrap_or_default());
                Ok(bare(StatusCode::OK))
            }
            _ => Ok(bare(StatusCode::METHOD_NOT_ALLOWED)),
        }
    }

    /// Begins a session of the older generation.
    async fn initialize(&self, mut message: Value) -> Result<Response<Body>> {
        message["params"]["capabilities"]["experimental"][STREAMS] = json!({});
        let (session, answer) = self.open(message).await?;
        let id = format!("quic-{}", self.next.fetch_add(1, Ordering::Relaxed));
        self.sessions.lock().insert(id.clone(), session);
        let mut answer = json_answer(StatusCode::OK, answer);
        answer.headers_mut().insert(SESSION, id.parse().context("a plain id")?);
        Ok(answer)
    }

    /// The connection of all that is not of a session.
    async fn open_shared(&self) -> Result<Arc<Session>> {
        let meta = json!({
            "io.modelcontextprotocol/protocolVersion": STATELESS,
            "io.modelcontextprotocol/clientInfo": { "name": "bridge", "version": "0" },
            "io.modelcontextprotocol/clientCapabilities": { "experimental": { STREAMS: {} } },
        });
        let discover = json!({ "jsonrpc": "2.0", "id": "bridge", "method": "server/discover", "params": { "_meta": meta } });
        Ok(self.open(discover).await?.0)
    }

    /// Connects and says `first`, with the key; what is answered comes back as it is.
    async fn open(&self, mut first: Value) -> Result<(Arc<Session>, String)> {
        first["params"]["_meta"][KEY] = json!(self.key);
        let connection = self.site.quic(&self.endpoint, &self.tls).await?;
        let (mut send, receive) = connection.open_bi().await?;
        send.write_all(&[&MAGIC[..], first.to_string().as_bytes(), b"\n"].concat()).await?;
        let mut lines = BufReader::new(receive).lines();
        let answer = lines.next_line().await?.context("the server closed the first stream")?;
        let agreed = serde_json::from_str::<Value>(&answer)?;
        if agreed["result"]["capabilities"]["experimental"].get(STREAMS).is_none() {
            bail!("no streams for requests were agreed on: {answer}");
        }
        let session = Arc::new(Session { connection, first: Turn::new(send), said: broadcast::Sender::new(UNREAD) });
        // It ends with the connection.
        let said = session.said.clone();
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                // Nobody may be listening.
                let _ = said.send(line);
            }
        });
        Ok((session, answer))
    }
}

/// Passes a message on: a request by a stream of its own, anything else by the first.
async fn post(session: &Session, message: &Value, status: fn(&Value) -> StatusCode) -> Result<Response<Body>> {
    let line = message.to_string();
    if message.get("method").is_none() || message.get("id").is_none() {
        session.first.lock().await.write_all(format!("{line}\n").as_bytes()).await?;
        return Ok(bare(StatusCode::ACCEPTED));
    }
    let (mut send, receive) = session.connection.open_bi().await?;
    send.write_all(&[&MAGIC[..], line.as_bytes(), b"\n"].concat()).await?;
    send.finish()?;
    let mut lines = BufReader::new(receive).lines();
    let first = lines.next_line().await?.context("the server closed a request's stream without an answer")?;
    let read: Value = serde_json::from_str(&first)?;
    if read.get("method").is_none() {
        return Ok(json_answer(status(&read), first));
    }
    Ok(events(once(async { Ok(first) }).chain(rest(lines)).boxed()))
}

/// Dropped, it tells the server that nobody wants the answer any more.
fn rest(lines: Lines<BufReader<RecvStream>>) -> impl futures_util::Stream<Item = Result<String>> + Send {
    unfold(lines, |mut lines| async {
        let line = lines.next_line().await.transpose()?;
        Some((line.map_err(Into::into), lines))
    })
}

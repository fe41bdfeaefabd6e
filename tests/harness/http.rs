//! HTTP clients of the tests' own: hyper for HTTP/1.1 and 2, h3 for HTTP/3. For amounts and times; what other
//! people's clients make of a node is asked of them ([`super::clients`]).

use std::future::poll_fn;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use axum::body::{Body, BodyDataStream};
use bytes::{Buf, Bytes, BytesMut};
use futures_util::StreamExt as _;
use hyper::client::conn::{http1, http2};
use hyper::{Method, Request, Version};
use hyper_util::rt::{TokioExecutor, TokioIo};
use quinn::Endpoint;
use rustls::ClientConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

use super::site::Site;

/// For one answer.
const ANSWER: Duration = Duration::from_secs(20);
/// Largest body taken.
const BODY: usize = 64 << 20;

/// What a node answered, to whatever client.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    /// `1.1`, `2` or `3`.
    pub(crate) version: String,
    pub(crate) status: u16,
    /// Names in lower case, in the order that they came.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Answer {
    /// The value of the header `name`, where it came exactly once.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut found = self.headers.iter().filter(|(header, _)| header == name);
        let value = found.next().map(|(_, value)| value.as_str());
        if found.next().is_some() { None } else { value }
    }

    /// The body as JSON.
    ///
    /// # Panics
    /// When it is none.
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// What is asked.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    pub(crate) method: &'static str,
    pub(crate) path: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Option<String>,
}

impl Ask {
    pub(crate) fn new(method: &'static str, path: impl Into<String>) -> Self {
        Self { method, path: path.into(), headers: Vec::new(), body: None }
    }

    pub(crate) fn get(path: impl Into<String>) -> Self {
        Self::new("GET", path)
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn key(self, key: &str) -> Self {
        self.header("x-api-key", key)
    }

    pub(crate) fn body(mut self, kind: &str, body: impl Into<String>) -> Self {
        self.body = Some(body.into());
        self.header("content-type", kind)
    }

    fn request(&self, site: &Site, version: Version) -> Result<Request<()>> {
        let mut request = Request::builder().method(Method::from_bytes(self.method.as_bytes())?).version(version);
        // HTTP/1.1 names the authority in a field, the others in the request line's place.
        request = if version == Version::HTTP_11 {
            let request = request.uri(&self.path);
            let named = self.headers.iter().any(|(name, _)| name == "host");
            if named { request } else { request.header("host", site.authority()) }
        } else {
            request.uri(site.url(&self.path))
        };
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        Ok(request.body(())?)
    }
}

/// Which HTTP a [`Session`] speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) enum Speaks {
    Http1,
    Http2,
    Http3,
}

impl Speaks {
    pub(crate) const ALL: [Self; 3] = [Self::Http1, Self::Http2, Self::Http3];

    pub(crate) fn alpn(self) -> &'static str {
        match self {
            Self::Http1 => "http/1.1",
            Self::Http2 => "h2",
            Self::Http3 => "h3",
        }
    }
}

/// One connection to a node.
pub(crate) struct Session {
    site: Site,
    kind: Kind,
}

enum Kind {
    Http1(http1::SendRequest<Body>),
    Http2(http2::SendRequest<Body>),
    /// The endpoint goes with the connection: quinn ends both when it is dropped.
    Http3(h3::client::SendRequest<h3_quinn::OpenStreams, Bytes>, Endpoint),
}

impl Session {
    /// Connects, speaking `speaks` and showing no certificate.
    ///
    /// # Errors
    /// When the node does not let it.
    pub(crate) async fn open(site: &Site, speaks: Speaks) -> Result<Self> {
        let tls = Arc::new(site.tls(&[speaks.alpn()], None));
        Self::open_with(site, speaks, &tls).await
    }

    /// The same with a TLS configuration made before: making one reads files.
    ///
    /// # Errors
    /// When the node does not let it.
    pub(crate) async fn open_with(site: &Site, speaks: Speaks, tls: &Arc<ClientConfig>) -> Result<Self> {
        match speaks {
            Speaks::Http1 => Self::http1(site, site.stream(tls).await?).await,
            Speaks::Http2 => Self::http2(site, site.stream(tls).await?).await,
            Speaks::Http3 => {
                let endpoint = super::site::dialer(site.address.ip());
                let connection = site.quic(&endpoint, tls).await?;
                Self::http3(site, connection, endpoint).await
            }
        }
    }

    /// HTTP/1.1 on a connection that is there already.
    pub(crate) async fn http1(site: &Site, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Result<Self> {
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self { site: site.clone(), kind: Kind::Http1(sender) })
    }

    /// HTTP/2 on a connection that is there already.
    pub(crate) async fn http2(site: &Site, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Result<Self> {
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self { site: site.clone(), kind: Kind::Http2(sender) })
    }

    /// HTTP/3 on a connection that is there already.
    pub(crate) async fn http3(site: &Site, connection: quinn::Connection, endpoint: Endpoint) -> Result<Self> {
        let (mut driver, sender) = h3::client::new(h3_quinn::Connection::new(connection)).await?;
        tokio::spawn(async move { poll_fn(|cx| driver.poll_close(cx)).await });
        Ok(Self { site: site.clone(), kind: Kind::Http3(sender, endpoint) })
    }

    /// Asks, and waits for the whole answer.
    ///
    /// # Errors
    /// When none comes.
    pub(crate) async fn ask(&mut self, ask: &Ask) -> Result<Answer> {
        timeout(ANSWER, self.asked(ask)).await.with_context(|| format!("{} {}: no answer in {ANSWER:?}", ask.method, ask.path))?
    }

    async fn asked(&mut self, ask: &Ask) -> Result<Answer> {
        let mut coming = self.begun(ask).await?;
        let mut body = BytesMut::new();
        while let Some(part) = coming.parts.next().await? {
            ensure!(body.len() + part.len() <= BODY, "the answer does not end");
            body.extend_from_slice(&part);
        }
        answer(coming.version, coming.status, &coming.headers, &body)
    }

    /// Asks, and gives the answer as it comes; the connection has to be kept for as long.
    ///
    /// # Errors
    /// When none begins.
    pub(crate) async fn begin(&mut self, ask: &Ask) -> Result<Coming> {
        timeout(ANSWER, self.begun(ask)).await.with_context(|| format!("{} {}: no answer in {ANSWER:?}", ask.method, ask.path))?
    }

    async fn begun(&mut self, ask: &Ask) -> Result<Coming> {
        let body = || ask.body.clone().map_or_else(Body::empty, Body::from);
        let (version, head, parts) = match &mut self.kind {
            Kind::Http1(sender) => {
                sender.ready().await?;
                let response = sender.send_request(ask.request(&self.site, Version::HTTP_11)?.map(|()| body())).await?;
                let (head, body) = response.into_parts();
                ("1.1", head, Parts::Tcp(Body::new(body).into_data_stream()))
            }
            Kind::Http2(sender) => {
                sender.ready().await?;
                let response = sender.send_request(ask.request(&self.site, Version::HTTP_2)?.map(|()| body())).await?;
                let (head, body) = response.into_parts();
                ("2", head, Parts::Tcp(Body::new(body).into_data_stream()))
            }
            Kind::Http3(sender, _) => {
                let mut stream = sender.send_request(ask.request(&self.site, Version::HTTP_3)?).await?;
                if let Some(body) = &ask.body {
                    stream.send_data(body.clone().into()).await?;
                }
                stream.finish().await?;
                let (head, ()) = stream.recv_response().await?.into_parts();
                ("3", head, Parts::Http3(Box::new(stream)))
            }
        };
        Ok(Coming { version, status: head.status.as_u16(), headers: head.headers, parts })
    }

    /// How long `count` requests took, one after the other with `pause` between them, the shortest first.
    ///
    /// # Errors
    /// When one of them is not answered with 200.
    pub(crate) async fn times(&mut self, ask: &Ask, count: usize, pause: Duration) -> Result<Vec<Duration>> {
        let mut times = Vec::with_capacity(count);
        let mut next = tokio::time::interval(pause);
        next.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        for _ in 0..count {
            next.tick().await;
            let began = Instant::now();
            let answer = self.ask(ask).await?;
            times.push(began.elapsed());
            ensure!(answer.status == 200, "{answer:?}");
        }
        times.sort_unstable();
        Ok(times)
    }
}

/// An answer that comes part by part.
pub(crate) struct Coming {
    pub(crate) status: u16,
    version: &'static str,
    headers: hyper::HeaderMap,
    parts: Parts,
}

enum Parts {
    Tcp(BodyDataStream),
    Http3(Box<h3::client::RequestStream<h3_quinn::BidiStream<Bytes>, Bytes>>),
}

impl Parts {
    async fn next(&mut self) -> Result<Option<Bytes>> {
        Ok(match self {
            Parts::Tcp(body) => body.next().await.transpose()?,
            Parts::Http3(stream) => stream.recv_data().await?.map(|mut part| part.copy_to_bytes(part.remaining())),
        })
    }
}

impl Coming {
    /// The next part; none at the end.
    ///
    /// # Errors
    /// When it is cut off, or none comes.
    pub(crate) async fn part(&mut self) -> Result<Option<Bytes>> {
        timeout(ANSWER, self.parts.next()).await.context("no part in time")?
    }

    /// All that is still to come, as text.
    ///
    /// # Errors
    /// When it is cut off, or does not end.
    pub(crate) async fn rest(&mut self) -> Result<String> {
        let mut rest = Vec::new();
        while let Some(part) = self.part().await? {
            ensure!(rest.len() + part.len() <= BODY, "the answer does not end");
            rest.extend_from_slice(&part);
        }
        Ok(String::from_utf8(rest)?)
    }
}

fn answer(version: &str, status: u16, headers: &hyper::HeaderMap, body: &[u8]) -> Result<Answer> {
    let plain = |(name, value): (&hyper::header::HeaderName, &hyper::header::HeaderValue)| {
        (name.as_str().to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned())
    };
    Ok(Answer {
        version: version.to_owned(),
        status,
        headers: headers.iter().map(plain).collect(),
        body: String::from_utf8(body.to_vec()).context("the body is text")?,
    })
}

/// The value of a metric on a node's `/metrics` page, whose labels contain all of `labels`, summed.
pub(crate) fn metric(page: &str, name: &str, labels: &[&str]) -> f64 {
    let samples = page.lines().filter_map(|line| line.strip_prefix(name)).filter(|rest| rest.starts_with(['{', ' ']));
    let meant = samples.filter(|rest| labels.iter().all(|label| rest.contains(label)));
    meant.filter_map(|rest| rest.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
}

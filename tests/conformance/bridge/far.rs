//! The far side of a bridge over HTTP: requests that arrive go out again by HTTP/1.1, 2 or 3.

use std::future::poll_fn;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use axum::body::{Body, Bytes};
use axum::http::uri::{PathAndQuery, Uri};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Request, Response, Version, header};
use bytes::Buf as _;
use futures_util::StreamExt as _;
use h3::client::{RequestStream, SendRequest};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use quinn::Endpoint;
use rustls::ClientConfig;
use tokio::sync::OnceCell;

use super::super::exceptions::Over;
use crate::harness::{Site, site};

/// Of one connection, and not of what goes over it.
const OF_THE_CONNECTION: [HeaderName; 4] =
    [header::CONNECTION, header::TRANSFER_ENCODING, header::UPGRADE, HeaderName::from_static("keep-alive")];

/// The server under test, as a client sees it that has a key.
pub(crate) struct Far {
    site: Site,
    tls: Arc<ClientConfig>,
    key: HeaderValue,
    spoken: Spoken,
}

/// The connections, made when they are first wanted.
enum Spoken {
    /// Those that wait for a request.
    Http1(Mutex<Vec<http1::SendRequest<Body>>>),
    Http2(OnceCell<http2::SendRequest<Body>>),
    /// The endpoint goes with the connection: quinn ends both when it is dropped.
    Http3(OnceCell<(SendRequest<h3_quinn::OpenStreams, Bytes>, Endpoint)>),
}

impl Far {
    pub(crate) fn new(site: &Site, over: Over, key: &str) -> Self {
        let (alpn, spoken) = match over {
            Over::Http1 => ("http/1.1", Spoken::Http1(Mutex::default())),
            Over::Http2 => ("h2", Spoken::Http2(OnceCell::new())),
            Over::Http3 => ("h3", Spoken::Http3(OnceCell::new())),
            Over::Quic => unreachable!("there is another far side for QUIC"),
        };
        let key = HeaderValue::from_str(key).expect("a key is plain");
        Self { site: site.clone(), tls: Arc::new(site.tls(&[alpn], None)), key, spoken }
    }

    /// Passes `request` on, and its answer back as soon as it begins.
    pub(crate) async fn ask(&self, request: Request<Body>) -> Result<Response<Body>> {
        let (mut head, body) = request.into_parts();
        for name in &OF_THE_CONNECTION {
            head.headers.remove(name);
        }
        head.headers.insert("x-api-key", self.key.clone());
        let path = head.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        match &self.spoken {
            Spoken::Http1(idle) => {
                head.uri = path.into();
                head.version = Version::HTTP_11;
                let mut sender = self.http1(idle).await?;
                let answer = sender.send_request(Request::from_parts(head, body)).await?;
                // Taken up again once this answer has been read to its end.
                idle.lock().push(sender);
                Ok(answer.map(Body::new))
            }
            Spoken::Http2(connection) => {
                head.uri = named(&mut head.headers, path)?;
                head.version = Version::HTTP_2;
                let mut sender = connection.get_or_try_init(|| self.http2()).await?.clone();
                Ok(sender.send_request(Request::from_parts(head, body)).await?.map(Body::new))
            }
            Spoken::Http3(connection) => {
                head.uri = named(&mut head.headers, path)?;
                head.version = Version::HTTP_3;
                let mut sender = connection.get_or_try_init(|| self.http3()).await?.0.clone();
                let stream = sender.send_request(Request::from_parts(head, ())).await?;
                by_http3(stream, body).await
            }
        }
    }

    async fn http1(&self, idle: &Mutex<Vec<http1::SendRequest<Body>>>) -> Result<http1::SendRequest<Body>> {
        let ready = {
            let mut idle = idle.lock();
            idle.retain(|sender| !sender.is_closed());
            let ready = idle.iter().position(http1::SendRequest::is_ready);
            ready.map(|at| idle.swap_remove(at))
        };
        if let Some(sender) = ready {
            return Ok(sender);
        }
        let (sender, connection) = http1::handshake(TokioIo::new(self.site.stream(&self.tls).await?)).await?;
        tokio::spawn(connection);
        Ok(sender)
    }

    async fn http2(&self) -> Result<http2::SendRequest<Body>> {
        let stream = TokioIo::new(self.site.stream(&self.tls).await?);
        let (sender, connection) = http2::handshake(TokioExecutor::new(), stream).await?;
        tokio::spawn(connection);
        Ok(sender)
    }

    async fn http3(&self) -> Result<(SendRequest<h3_quinn::OpenStreams, Bytes>, Endpoint)> {
        let endpoint = site::dialer(self.site.address.ip());
        let connection = self.site.quic(&endpoint, &self.tls).await?;
        let (mut driver, sender) = h3::client::new(h3_quinn::Connection::new(connection)).await?;
        tokio::spawn(async move { poll_fn(|cx| driver.poll_close(cx)).await });
        Ok((sender, endpoint))
    }
}

/// The URI as HTTP/2 and 3 have it: the name under which the bridge was asked stands there and not in `Host`.
fn named(headers: &mut HeaderMap, path: PathAndQuery) -> Result<Uri> {
    let host = headers.remove(header::HOST).context("HTTP/1.1 has a Host")?;
    Ok(Uri::builder().scheme("https").authority(host.as_bytes()).path_and_query(path).build()?)
}

type Stream = RequestStream<h3_quinn::BidiStream<Bytes>, Bytes>;

async fn by_http3(mut stream: Stream, body: Body) -> Result<Response<Body>> {
    let mut parts = body.into_data_stream();
    while let Some(part) = parts.next().await {
        stream.send_data(part?).await?;
    }
    stream.finish().await?;
    let answer = stream.recv_response().await?;
    // Dropped with the answer's body, the stream tells the server that nobody reads on.
    let read = futures_util::stream::unfold(stream, |mut stream| async {
        let part = match stream.recv_data().await {
            Ok(Some(mut part)) => Ok(part.copy_to_bytes(part.remaining())),
            Ok(None) => return None,
            Err(error) => Err(error),
        };
        Some((part, stream))
    });
    let mut answer = answer.map(|()| Body::from_stream(read));
    // It goes on by another version, which hyper would not write.
    *answer.version_mut() = Version::HTTP_11;
    Ok(answer)
}

//! A client over HTTP/2: one connection, a stream a call, stateless as MCP 2026-07-28 has it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;
use tokio::{net::TcpStream, task::JoinSet};
use tokio_rustls::TlsConnector;

use crate::{
    quic::tls,
    server::{ANSWERED, ARGUMENTS, HOST, Server},
};

/// What 2026-07-28 wants in each request, since there is no session that knows it.
const META: &str = concat!(
    r#""_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","#,
    r#""io.modelcontextprotocol/clientInfo":{"name":"bench","version":"1"},"io.modelcontextprotocol/clientCapabilities":{}}"#
);

pub(crate) struct Http2 {
    sender: http2::SendRequest<Full<Bytes>>,
    key: String,
    _connection: tokio::task::JoinHandle<hyper::Result<()>>,
}

impl Http2 {
    pub(crate) async fn connect(server: &Server) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(server.address).await?;
        stream.set_nodelay(true)?;
        let connector = TlsConnector::from(Arc::new(tls(&server.directory, b"h2")?));
        let stream = connector.connect(ServerName::try_from(HOST)?, stream).await?;
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        Ok(Self { sender, key: server.key.clone(), _connection: tokio::spawn(connection) })
    }

    fn request(&self, tool: &str) -> anyhow::Result<Request<Full<Bytes>>> {
        let body = format!(
            "{{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"tools/call\",\"params\":{{\"name\":\"{tool}\",\"arguments\":{ARGUMENTS},{META}}}}}"
        );
        let request = Request::post(format!("https://{HOST}/mcp"))
            .header("x-api-key", &self.key)
            .header("content-type", "application/json")
            .header("accept", "application/json, text/event-stream")
            .header("mcp-protocol-version", "2026-07-28")
            .header("mcp-method", "tools/call")
            .header("mcp-name", tool);
        Ok(request.body(Full::new(body.into()))?)
    }

    /// How many calls are answered in `span` with so many in hand.
    pub(crate) async fn many(&self, tool: &str, in_flight: usize, span: Duration) -> anyhow::Result<u64> {
        let (answered, over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let mut clients = JoinSet::new();
        for _ in 0..in_flight {
            let (mut sender, request) = (self.sender.clone(), self.request(tool)?);
            let (answered, over) = (answered.clone(), over.clone());
            clients.spawn(async move {
                while !over.load(Ordering::Relaxed) {
                    sender.ready().await?;
                    let response = sender.send_request(request.clone()).await?;
                    let status = response.status();
                    let body = response.into_body().collect().await?.to_bytes();
                    let right = status == 200 && memchr(&body, ANSWERED.as_bytes());
                    anyhow::ensure!(right, "{status}: {}", String::from_utf8_lossy(&body));
                    answered.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            });
        }
        tokio::select! {
            () = tokio::time::sleep(span) => {}
            Some(ended) = clients.join_next() => ended??,
        }
        let answers = answered.load(Ordering::Relaxed);
        over.store(true, Ordering::Relaxed);
        while let Some(ended) = clients.join_next().await {
            ended??;
        }
        Ok(answers)
    }
}

fn memchr(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}

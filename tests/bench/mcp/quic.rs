//! A client over QUIC as the Go system's is: one stream, a message a line.

use std::{
    net::Ipv4Addr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use quinn::{Endpoint, RecvStream, SendStream, crypto::rustls::QuicClientConfig};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject as _},
};
use serde_json::Value;

use crate::server::{ANSWERED, ARGUMENTS, CERTIFICATE, HOST, QUERY, Server};

/// Longest wait for an answer.
const DEADLINE: Duration = Duration::from_secs(20);
const CHUNK: usize = 64 * 1024;

/// TLS that trusts the certificate in the directory and offers `protocol`.
pub(crate) fn tls(directory: &std::path::Path, protocol: &[u8]) -> anyhow::Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(directory.join(CERTIFICATE))?)?;
    let mut tls = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    tls.alpn_protocols = vec![protocol.to_vec()];
    Ok(tls)
}

/// An endpoint that dials by `tls`.
pub(crate) fn endpoint(tls: ClientConfig) -> anyhow::Result<Endpoint> {
    let mut endpoint = Endpoint::client((Ipv4Addr::LOCALHOST, 0).into())?;
    endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?)));
    Ok(endpoint)
}

pub(crate) struct Session {
    _endpoint: Endpoint,
    send: SendStream,
    receive: RecvStream,
    unread: Vec<u8>,
    next: u64,
}

impl Session {
    pub(crate) async fn open(server: &Server) -> anyhow::Result<Self> {
        let endpoint = endpoint(tls(&server.directory, b"mcp-quic-v1")?)?;
        let connection = tokio::time::timeout(DEADLINE, endpoint.connect(server.address, HOST)?).await??;
        let (mut send, receive) = connection.open_bi().await?;
        send.write_all(b"MCP1").await?;
        let mut session = Self { _endpoint: endpoint, send, receive, unread: Vec::new(), next: 0 };
        let hello = serde_json::json!({
            "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": { "name": "bench", "version": "1" },
            "_meta": { "horos/key": server.key },
        });
        session.ask("initialize", &hello.to_string()).await?;
        session.send.write_all(b"{\"jsonrpc\":\"2.0\",\"method\":\"notifications/initialized\"}\n").await?;
        let started = Instant::now();
        while !session.exists(QUERY).await? {
            anyhow::ensure!(started.elapsed() < DEADLINE, "the tool is never there");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(session)
    }

    /// A line, without its end.
    async fn line(&mut self) -> anyhow::Result<String> {
        let mut searched = 0;
        loop {
            if let Some(end) = self.unread[searched..].iter().position(|byte| *byte == b'\n') {
                let rest = self.unread.split_off(searched + end + 1);
                let mut line = std::mem::replace(&mut self.unread, rest);
                line.pop();
                return Ok(String::from_utf8(line)?);
            }
            searched = self.unread.len();
            let chunk = tokio::time::timeout(DEADLINE, self.receive.read_chunk(CHUNK, true)).await??;
            self.unread.extend_from_slice(&chunk.context("the session ended")?.bytes);
        }
    }

    async fn put(&mut self, method: &str, params: &str) -> anyhow::Result<u64> {
        self.next += 1;
        let line = format!("{{\"jsonrpc\":\"2.0\",\"id\":{},\"method\":\"{method}\",\"params\":{params}}}\n", self.next);
        self.send.write_all(line.as_bytes()).await?;
        Ok(self.next)
    }

    /// The answer to a request.
    async fn ask(&mut self, method: &str, params: &str) -> anyhow::Result<Value> {
        let id = self.put(method, params).await?;
        loop {
            let answer: Value = serde_json::from_str(&self.line().await?)?;
            // What is told in between is nobody's answer.
            if answer["id"] == id {
                return Ok(answer);
            }
        }
    }

    pub(crate) async fn call(&mut self, tool: &str) -> anyhow::Result<()> {
        self.put("tools/call", &format!("{{\"name\":\"{tool}\",\"arguments\":{ARGUMENTS}}}")).await?;
        self.answer().await
    }

    async fn answer(&mut self) -> anyhow::Result<()> {
        loop {
            let line = self.line().await?;
            if line.contains(ANSWERED) {
                return Ok(());
            }
            anyhow::ensure!(!line.contains("\"id\":"), "another answer: {line}");
        }
    }

    /// How long each call takes, in microseconds, one after the other for `span`.
    pub(crate) async fn times(&mut self, tool: &str, span: Duration) -> anyhow::Result<Vec<f64>> {
        let (begun, mut times) = (Instant::now(), Vec::new());
        while begun.elapsed() < span {
            let started = Instant::now();
            self.call(tool).await?;
            times.push(started.elapsed().as_nanos() as f64 / 1e3);
        }
        Ok(times)
    }

    /// Calls `tool` and does not wait for its answer.
    pub(crate) async fn begin(&mut self, tool: &str) -> anyhow::Result<u64> {
        self.put("tools/call", &format!("{{\"name\":\"{tool}\",\"arguments\":{{}}}}")).await
    }

    /// Takes a call back that was begun, which is not answered then.
    pub(crate) async fn abandon(&mut self, id: u64) -> anyhow::Result<()> {
        let line = format!("{{\"jsonrpc\":\"2.0\",\"method\":\"notifications/cancelled\",\"params\":{{\"requestId\":{id}}}}}\n");
        Ok(self.send.write_all(line.as_bytes()).await?)
    }

    /// How many calls are answered in `span` with so many in hand.
    pub(crate) async fn many(&mut self, tool: &str, in_flight: usize, span: Duration) -> anyhow::Result<u64> {
        let params = format!("{{\"name\":\"{tool}\",\"arguments\":{ARGUMENTS}}}");
        for _ in 0..in_flight {
            self.put("tools/call", &params).await?;
        }
        let (started, mut answered) = (Instant::now(), 0);
        loop {
            self.answer().await?;
            answered += 1;
            if started.elapsed() >= span {
                break;
            }
            self.put("tools/call", &params).await?;
        }
        for _ in 1..in_flight {
            self.answer().await?;
        }
        Ok(answered)
    }

    /// Whether a call of `tool` is answered.
    pub(crate) async fn exists(&mut self, tool: &str) -> anyhow::Result<bool> {
        let answer = self.ask("tools/call", &format!("{{\"name\":\"{tool}\",\"arguments\":{ARGUMENTS}}}")).await?;
        match &answer["result"]["isError"] {
            _ if answer["error"].is_object() => Ok(false),
            Value::Bool(true) => anyhow::bail!("{tool} failed: {answer}"),
            _ => Ok(true),
        }
    }

    /// How many tools are on the first page.
    pub(crate) async fn page(&mut self) -> anyhow::Result<usize> {
        let answer = self.ask("tools/list", "{}").await?;
        Ok(answer["result"]["tools"].as_array().context("no list")?.len())
    }

    pub(crate) async fn search(&mut self, query: &str) -> anyhow::Result<()> {
        let params = serde_json::json!({ "name": "search_tools", "arguments": { "query": query } });
        let answer = self.ask("tools/call", &params.to_string()).await?;
        anyhow::ensure!(answer["result"].is_object() && answer["result"]["isError"] != true, "{answer}");
        Ok(())
    }
}

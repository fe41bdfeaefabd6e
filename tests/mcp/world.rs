//! A BO that owns the tools and an FO that keeps a replica of them, and clients of both: over HTTP as the versions with sessions have it, and
//! over QUIC, line by line.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::timeout;

use crate::harness::http::{Answer, Ask, Coming, Session, Speaks};
use crate::harness::site::{self, Site};
use crate::harness::{Cluster, Node, poll_state};

/// For a row to be in force on both nodes: generous, no promise of time is tested here.
pub(crate) const SOON: Duration = Duration::from_secs(20);
/// The name of the protocol in TLS.
pub(crate) const ALPN: &str = "horos-mcp-v1";

pub(crate) struct World {
    cluster: Cluster,
    pub(crate) bo: Node,
    pub(crate) fo: Node,
}

impl World {
    /// Both running and linked, with goods in the BO's `app.db`.
    pub(crate) async fn start() -> Self {
        Self::with(None).await
    }

    /// The same, where the FO keeps a replica of the goods in `public.db`.
    pub(crate) async fn replicating() -> Self {
        let publishes = "publications: { shop: { database: app.db, to: [fo], filter: { full-tables: [goods] } } }\n";
        Self::with(Some((publishes, "replicas: { shop: { file: public.db } }\n"))).await
    }

    async fn with(sync: Option<(&str, &str)>) -> Self {
        let cluster = Cluster::new();
        let mut bo = cluster.first("bo-1", [127, 0, 0, 1]).await;
        sqlite3(
            &bo.data.join("app.db"),
            "PRAGMA journal_mode = WAL; CREATE TABLE goods (sku TEXT PRIMARY KEY, price INTEGER, cost INTEGER);
             INSERT INTO goods VALUES ('tea', 500, 300), ('coffee', 900, 700), ('cups', 200, 100)",
        );
        // All of a test comes from one address.
        bo.set("HTTP_LIMITS__PER_ADDRESS", "100000000");
        if let Some((publishes, _)) = sync {
            std::fs::write(bo.data.join("sync.yaml"), publishes).unwrap();
        }
        bo.start().await;
        let mut fo = cluster.join("fo-1", "fo", [127, 0, 0, 2], &[bo.address()]).await;
        fo.set("HTTP_LIMITS__PER_ADDRESS", "100000000");
        if let Some((_, keeps)) = sync {
            std::fs::write(fo.data.join("sync.yaml"), keeps).unwrap();
        }
        fo.start().await;
        bo.sees("fo-1", "up").await;
        fo.sees("bo-1", "up").await;
        Self { cluster, bo, fo }
    }

    pub(crate) fn nodes(&self) -> [&Node; 2] {
        [&self.bo, &self.fo]
    }

    /// Changes the owner's tables as another program does: by SQLite's own shell.
    pub(crate) fn commit(&self, sql: &str) {
        sqlite3(&self.bo.data.join("control.db"), sql);
    }

    /// Puts a tool in place, of the kind `sql_query` on `app.db`.
    pub(crate) fn query(&self, name: &str, query: &str, input: &Value) {
        let config = json!({ "database": "app.db", "replica": "public.db", "query": query, "tables": { "goods": ["sku", "price"] } });
        self.row(name, "sql_query", "readonly", &config, input);
    }

    pub(crate) fn row(&self, name: &str, kind: &str, mode: &str, config: &Value, input: &Value) {
        let quoted = |value: &Value| value.to_string().replace('\'', "''");
        self.commit(&format!(
            "INSERT OR REPLACE INTO mcp_tools_registry (tool_name, tool_category, description, input_schema, handler_type, handler_config, mode)
             VALUES ('{name}', 'shop', 'A tool of the tests.', '{}', '{kind}', '{}', '{mode}')",
            quoted(input),
            quoted(config)
        ));
    }

    /// Lets whoever has `role` use `tool`.
    pub(crate) fn allow(&self, tool: &str, role: &str) {
        self.commit(&format!("INSERT INTO mcp_tool_policy (tool_name, role) VALUES ('{tool}', '{role}')"));
    }

    /// A certificate of a person, in a directory.
    pub(crate) async fn person(&self, role: &str, name: &str) -> PathBuf {
        self.cluster.person(role, name, &[]).await
    }
}

/// The schema of arguments that are numbers, all of them wanted.
pub(crate) fn numbers(names: &[&str]) -> Value {
    let properties: serde_json::Map<_, _> = names.iter().map(|name| ((*name).to_owned(), json!({ "type": "integer" }))).collect();
    json!({ "type": "object", "properties": properties, "required": names })
}

/// Has SQLite's own shell do `sql`.
pub(crate) fn sqlite3(file: &Path, sql: &str) -> String {
    let output = Command::new("sqlite3").args(["-batch", "-bail", "-cmd", ".timeout 10000"]).arg(file).arg(sql).output().unwrap();
    assert!(output.status.success(), "{sql}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) fn request(id: u64, method: &str, params: Value) -> Value {
    json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params })
}

pub(crate) fn greeting(version: &str) -> Value {
    json!({ "protocolVersion": version, "capabilities": {}, "clientInfo": { "name": "tests", "version": "1" } })
}

/// A request of 2026-07-28, which has no sessions.
pub(crate) fn modern(key: &str, method: &str, mut params: Value) -> Ask {
    params["_meta"] = json!({
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientInfo": { "name": "tests", "version": "1" },
        "io.modelcontextprotocol/clientCapabilities": {},
    });
    let ask = Ask::new("POST", "/mcp").header("authorization", &format!("Bearer {key}")).header("mcp-protocol-version", "2026-07-28");
    let ask = ask.header("accept", "application/json, text/event-stream").header("mcp-method", method);
    let ask = match params["name"].as_str() {
        Some(name) => ask.header("mcp-name", name),
        None => ask,
    };
    ask.body("application/json", request(1, method, params).to_string())
}

/// What came of a call, in a form that can be compared.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Came {
    /// What is structured of the result.
    Done(Value),
    /// The tool's error, in words.
    Failed(String),
    /// The protocol's error: its code and words.
    Refused(i64, String),
}

impl Came {
    pub(crate) fn of(answer: &Value) -> Self {
        if let Some(error) = answer.get("error") {
            return Self::Refused(error["code"].as_i64().unwrap(), error["message"].as_str().unwrap_or_default().to_owned());
        }
        let result = &answer["result"];
        let text = || result["content"][0]["text"].as_str().unwrap_or_default().to_owned();
        if result["isError"] == true {
            return Self::Failed(text());
        }
        // The same JSON as text, for clients that know of no structure.
        assert_eq!(serde_json::from_str::<Value>(&text()).unwrap(), result["structuredContent"], "{result}");
        Self::Done(result["structuredContent"].clone())
    }

    /// The rows of a query's result.
    pub(crate) fn rows(&self) -> Value {
        match self {
            Self::Done(value) => value["rows"].clone(),
            other => panic!("{other:?}"),
        }
    }

    /// The words of an error.
    pub(crate) fn words(&self) -> &str {
        match self {
            Self::Failed(words) | Self::Refused(_, words) => words,
            Self::Done(value) => panic!("{value}"),
        }
    }
}

/// A client over HTTP, in a session.
pub(crate) struct Client {
    session: Session,
    key: String,
    id: Option<String>,
    path: &'static str,
    next: u64,
}

impl Client {
    /// Greets `node`, showing `key`.
    pub(crate) async fn open(node: &Node, key: &str) -> Self {
        Self::open_at(node, key, Speaks::Http2, "/mcp").await
    }

    pub(crate) async fn open_at(node: &Node, key: &str, speaks: Speaks, path: &'static str) -> Self {
        Self::open_on(&node.site(), key, speaks, path).await
    }

    pub(crate) async fn open_on(site: &Site, key: &str, speaks: Speaks, path: &'static str) -> Self {
        let session = Session::open(site, speaks).await.unwrap();
        let mut client = Self { session, key: key.to_owned(), id: None, path, next: 0 };
        // A replica of the keys that has none yet answers 503.
        let answer = poll_state("the node knows the key", SOON, async || {
            let answer = client.post(&request(0, "initialize", greeting("2025-06-18"))).await;
            if answer.status == 200 { Ok(answer) } else { Err(format!("{answer:?}")) }
        })
        .await;
        client.id = answer.header("mcp-session-id").map(str::to_owned);
        let told = client.post(&json!({ "jsonrpc": "2.0", "method": "notifications/initialized" })).await;
        assert_eq!(told.status, 202, "{told:?}");
        client
    }

    async fn post(&mut self, message: &Value) -> Answer {
        let mut ask = Ask::new("POST", self.path)
            .header("authorization", &format!("Bearer {}", self.key))
            .header("accept", "application/json, text/event-stream")
            .body("application/json", message.to_string());
        if let Some(id) = &self.id {
            ask = ask.header("mcp-session-id", id).header("mcp-protocol-version", "2025-06-18");
        }
        self.session.ask(&ask).await.unwrap()
    }

    /// Asks, and gives the status and the answer, where there is one.
    pub(crate) async fn asked(&mut self, method: &str, params: Value) -> (u16, Value) {
        self.next += 1;
        let answer = self.post(&request(self.next, method, params)).await;
        let events = answer.body.lines().filter_map(|line| line.strip_prefix("data:")).filter_map(|data| serde_json::from_str(data).ok());
        // Notifications may stand before it.
        let found = events.chain(serde_json::from_str(&answer.body)).find(|message: &Value| message["id"] == self.next);
        (answer.status, found.unwrap_or(Value::Null))
    }

    /// Begins the stream for what the node has to say.
    pub(crate) async fn hear(&mut self) -> Coming {
        let ask = Ask::get(self.path).header("authorization", &format!("Bearer {}", self.key)).header("accept", "text/event-stream");
        let id = self.id.as_deref().expect("a session");
        let ask = ask.header("mcp-session-id", id).header("mcp-protocol-version", "2025-06-18");
        let coming = self.session.begin(&ask).await.unwrap();
        assert_eq!(coming.status, 200);
        coming
    }

    /// The names that are listed, all pages together.
    pub(crate) async fn names(&mut self) -> Vec<String> {
        let tools = self.list().await;
        tools.iter().map(|tool| tool["name"].as_str().unwrap().to_owned()).collect()
    }

    /// All that is listed.
    pub(crate) async fn list(&mut self) -> Vec<Value> {
        let (mut tools, mut cursor) = (Vec::new(), Value::Null);
        loop {
            let params = if cursor.is_null() { json!({}) } else { json!({ "cursor": cursor }) };
            let (status, answer) = self.asked("tools/list", params).await;
            assert_eq!(status, 200, "{answer}");
            tools.extend(answer["result"]["tools"].as_array().unwrap_or_else(|| panic!("{answer}")).iter().cloned());
            cursor = answer["result"]["nextCursor"].clone();
            if cursor.is_null() {
                return tools;
            }
        }
    }

    pub(crate) async fn call(&mut self, tool: &str, arguments: Value) -> Came {
        let (status, answer) = self.asked("tools/call", json!({ "name": tool, "arguments": arguments })).await;
        assert_eq!(status, 200, "{answer}");
        Came::of(&answer)
    }

    /// Waits until `tool` is listed, or is not.
    pub(crate) async fn lists(&mut self, tool: &str, listed: bool) {
        poll_state(&format!("{tool} is {}listed", if listed { "" } else { "not " }), SOON, async || {
            let names = self.names().await;
            if names.iter().any(|name| name == tool) == listed { Ok(()) } else { Err(format!("{names:?}")) }
        })
        .await;
    }
}

/// A client over QUIC, on one stream, as the Go system's is.
pub(crate) struct Line {
    connection: quinn::Connection,
    _endpoint: quinn::Endpoint,
    send: quinn::SendStream,
    receive: quinn::RecvStream,
    read: Vec<u8>,
    /// Notifications that came while an answer was waited for.
    pub(crate) told: VecDeque<Value>,
    next: u64,
}

impl Line {
    /// Connects with the certificate in `identity`, or without one; says nothing yet but the magic.
    pub(crate) async fn connect(node: &Node, identity: Option<&Path>) -> Self {
        let site = node.site();
        let endpoint = site::dialer(site.address.ip());
        let connection = site.quic(&endpoint, &site.tls(&[ALPN], identity)).await.unwrap();
        Self::on(connection, endpoint).await
    }

    /// The same on a connection that is there already.
    pub(crate) async fn on(connection: quinn::Connection, endpoint: quinn::Endpoint) -> Self {
        let (mut send, receive) = connection.open_bi().await.unwrap();
        send.write_all(b"MCP1").await.unwrap();
        Self { connection, _endpoint: endpoint, send, receive, read: Vec::new(), told: VecDeque::new(), next: 0 }
    }

    /// Connects and greets, by the certificate in `identity`.
    pub(crate) async fn open(node: &Node, identity: &Path) -> Self {
        let mut line = Self::connect(node, Some(identity)).await;
        let answer = line.ask("initialize", greeting("2025-06-18")).await;
        assert_eq!(answer["result"]["serverInfo"]["name"], "horos", "{answer}");
        line.send(&json!({ "jsonrpc": "2.0", "method": "notifications/initialized" })).await;
        line
    }

    /// Greets, showing `key` as the protocol of the door has it.
    pub(crate) async fn greet(&mut self, key: &str) -> Value {
        let mut params = greeting("2025-06-18");
        params["_meta"] = json!({ "horos/key": key });
        self.ask("initialize", params).await
    }

    pub(crate) async fn send(&mut self, message: &Value) {
        self.send.write_all(format!("{message}\n").as_bytes()).await.unwrap();
    }

    /// The next line.
    pub(crate) async fn line(&mut self) -> Value {
        loop {
            if let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.read.drain(..=end).collect();
                return serde_json::from_slice(&line).unwrap();
            }
            let chunk = timeout(SOON, self.receive.read_chunk(64 * 1024, true)).await.expect("a line comes").unwrap();
            self.read.extend_from_slice(&chunk.expect("the stream goes on").bytes);
        }
    }

    pub(crate) async fn ask(&mut self, method: &str, params: Value) -> Value {
        self.next += 1;
        self.send(&request(self.next, method, params)).await;
        loop {
            let line = self.line().await;
            if line["id"] == self.next || line["id"].is_null() && line.get("error").is_some() {
                return line;
            }
            self.told.push_back(line);
        }
    }

    pub(crate) async fn names(&mut self) -> Vec<String> {
        let answer = self.ask("tools/list", json!({})).await;
        let tools = answer["result"]["tools"].as_array().unwrap_or_else(|| panic!("{answer}"));
        tools.iter().map(|tool| tool["name"].as_str().unwrap().to_owned()).collect()
    }

    pub(crate) async fn call(&mut self, tool: &str, arguments: Value) -> Came {
        Came::of(&self.ask("tools/call", json!({ "name": tool, "arguments": arguments })).await)
    }

    /// Waits for a notification.
    pub(crate) async fn hears(&mut self, method: &str) {
        loop {
            while let Some(told) = self.told.pop_front() {
                if told["method"] == method {
                    return;
                }
            }
            let line = self.line().await;
            self.told.push_back(line);
        }
    }

    /// How the node closed the connection.
    pub(crate) async fn closed(&self) -> u64 {
        match timeout(SOON, self.connection.closed()).await.expect("the connection is closed") {
            quinn::ConnectionError::ApplicationClosed(close) => close.error_code.into_inner(),
            other => panic!("{other}"),
        }
    }
}

//! Clients that write what they like, line by line.

use quinn::{Connection, ConnectionError, RecvStream, SendStream};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::world::SOON;

/// A client that writes what it likes.
pub(crate) struct Raw {
    pub(crate) connection: Connection,
    pub(crate) send: SendStream,
    pub(crate) heard: Heard,
}

/// What comes on a stream, line by line.
pub(crate) struct Heard {
    pub(crate) stream: RecvStream,
    buffer: Vec<u8>,
}

impl Heard {
    pub(crate) fn new(stream: RecvStream) -> Self {
        Self { stream, buffer: Vec::new() }
    }

    /// The next line, as bytes; none at the end.
    pub(crate) async fn bytes(&mut self) -> Option<Vec<u8>> {
        let read = async {
            loop {
                if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                    let rest = self.buffer.split_off(end + 1);
                    let mut line = std::mem::replace(&mut self.buffer, rest);
                    line.pop();
                    return Some(line);
                }
                match self.stream.read_chunk(64 * 1024, true).await {
                    Ok(Some(chunk)) => self.buffer.extend_from_slice(&chunk.bytes),
                    Ok(None) | Err(_) => return None,
                }
            }
        };
        timeout(SOON, read).await.expect("a line, or the end, in time")
    }

    pub(crate) async fn line(&mut self) -> Value {
        let line = self.bytes().await.expect("the stream goes on");
        serde_json::from_slice(&line).unwrap()
    }

    pub(crate) async fn error(&mut self) -> (Value, i64, String) {
        let line = self.line().await;
        let error = &line["error"];
        (line["id"].clone(), error["code"].as_i64().unwrap_or_else(|| panic!("{line}")), error["message"].as_str().unwrap().to_owned())
    }
}

impl Raw {
    /// Opens the first stream, and writes the magic.
    pub(crate) async fn open(connection: Connection) -> Self {
        let (mut send, receive) = connection.open_bi().await.unwrap();
        send.write_all(b"MCP1").await.unwrap();
        Self { connection, send, heard: Heard::new(receive) }
    }

    pub(crate) async fn write(&mut self, bytes: &[u8]) {
        // Whether the server still listens is seen elsewhere.
        let _ = timeout(SOON, self.send.write_all(bytes)).await.expect("written in time");
    }

    pub(crate) async fn say(&mut self, line: &Value) {
        self.write(format!("{line}\n").as_bytes()).await;
    }

    /// Initializes, offering streams or not.
    pub(crate) async fn begin(&mut self, key: &str, streams: bool) -> Value {
        self.say(&initialize(Some(key), streams)).await;
        let answer = self.heard.line().await;
        assert_eq!(answer["id"], json!(0), "{answer}");
        self.say(&json!({"jsonrpc": "2.0", "method": "notifications/initialized"})).await;
        answer
    }

    pub(crate) async fn call(&mut self, id: Value, tool: &str, arguments: Value) {
        self.say(&call(id, tool, arguments)).await;
    }

    /// Calls on a stream of its own.
    pub(crate) async fn call_beside(&self, id: Value, tool: &str, arguments: Value) -> (SendStream, Heard) {
        let (mut send, receive) = timeout(SOON, self.connection.open_bi()).await.expect("a stream in time").unwrap();
        send.write_all(format!("MCP1{}\n", call(id, tool, arguments)).as_bytes()).await.unwrap();
        send.finish().unwrap();
        (send, Heard::new(receive))
    }

    /// How the server closed the connection.
    pub(crate) async fn closed(&self) -> (u64, String) {
        closed(&self.connection).await
    }

    /// That the session goes on.
    pub(crate) async fn is_served(&mut self) {
        self.call(json!("alive"), "echo", json!({"a": 1})).await;
        let answer = self.heard.line().await;
        assert_eq!((&answer["id"], &answer["result"]["structuredContent"]), (&json!("alive"), &json!({"a": 1})), "{answer}");
    }
}

pub(crate) async fn closed(connection: &Connection) -> (u64, String) {
    match timeout(SOON, connection.closed()).await.expect("the server closes the connection") {
        ConnectionError::ApplicationClosed(close) => (close.error_code.into_inner(), String::from_utf8_lossy(&close.reason).into_owned()),
        other => panic!("closed without a code: {other}"),
    }
}

pub(crate) fn initialize(key: Option<&str>, streams: bool) -> Value {
    let mut capabilities = json!({});
    if streams {
        capabilities = json!({"experimental": {"horos/streams": {}}});
    }
    let mut params = json!({
        "protocolVersion": "2025-06-18",
        "capabilities": capabilities,
        "clientInfo": {"name": "raw", "version": "1"},
    });
    if let Some(key) = key {
        params["_meta"] = json!({"horos/key": key});
    }
    json!({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params})
}

pub(crate) fn call(id: Value, tool: &str, arguments: Value) -> Value {
    json!({"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": {"name": tool, "arguments": arguments}})
}

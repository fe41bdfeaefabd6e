//! `horos mcp`: MCP over a pipe, as programs that start MCP servers have it.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use serde_json::{Value, json};

use super::world::{SOON, World, numbers};
use crate::harness::HOROS;
use crate::harness::node::text;

/// A host's end of the pipe.
struct Host {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
}

impl Host {
    fn start(args: &[&str]) -> Self {
        let mut command = Command::new(HOROS);
        command.arg("mcp").args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, stdin, lines }
    }

    fn say(&mut self, text: &str) {
        self.stdin.as_mut().unwrap().write_all(format!("{text}\n").as_bytes()).unwrap();
    }

    /// The next line, which is JSON-RPC as every line is.
    fn line(&self) -> Value {
        let line = self.lines.recv_timeout(SOON).expect("a line comes");
        let message: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert_eq!(message["jsonrpc"], "2.0", "{line}");
        message
    }

    fn ask(&mut self, id: u64, method: &str, params: Value) -> Value {
        self.say(&json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params }).to_string());
        loop {
            let message = self.line();
            if message["id"] == id {
                return message;
            }
        }
    }

    fn greet(&mut self) {
        let greeting = json!({ "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": { "name": "host", "version": "1" } });
        let answer = self.ask(0, "initialize", greeting);
        assert_eq!(answer["result"]["serverInfo"]["name"], "horos", "{answer}");
        self.say(&json!({ "jsonrpc": "2.0", "method": "notifications/initialized" }).to_string());
    }

    /// Ends the input, and gives how the program ends.
    fn end(mut self) -> i32 {
        drop(self.stdin.take());
        let until = std::time::Instant::now() + SOON;
        loop {
            match self.child.try_wait().unwrap() {
                Some(status) => return status.code().unwrap(),
                None => assert!(std::time::Instant::now() < until, "it ends with its input"),
            }
            std::thread::park_timeout(Duration::from_millis(10));
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_starts_horos_mcp_has_the_nodes_tools_also_after_the_node_was_started_again() {
    let mut world = World::start().await;
    world.query("goods_count", "SELECT count(*) AS n FROM goods", &numbers(&[]));
    let operator = world.bo.operator.clone();
    let mut host = Host::start(&["--data", text(&world.bo.data), "--identity", text(&operator)]);
    host.greet();
    let names = |answer: &Value| -> Vec<String> {
        answer["result"]["tools"].as_array().unwrap().iter().map(|tool| tool["name"].as_str().unwrap().to_owned()).collect()
    };
    let listed = names(&host.ask(1, "tools/list", json!({})));
    assert!(listed.contains(&"horos_tree".to_owned()) && listed.contains(&"goods_count".to_owned()), "{listed:?}");
    let called = host.ask(2, "tools/call", json!({ "name": "goods_count", "arguments": {} }));
    assert_eq!(called["result"]["structuredContent"]["rows"], json!([{ "n": 3 }]), "{called}");
    host.say("this is no message");
    assert_eq!(host.line()["error"]["code"], -32_700);

    world.bo.kill();
    world.bo.start().await;
    // What was written to the node that died may have been done, and is said to be unknown; what comes then is done by the new one.
    let mut called = Value::Null;
    for id in 3..100 {
        called = host.ask(id, "tools/call", json!({ "name": "goods_count", "arguments": {} }));
        match called["error"]["message"].as_str() {
            Some(words) => assert!(words.contains("unknown") || words.contains("nothing was done"), "{words}"),
            None => break,
        }
    }
    assert_eq!(called["result"]["structuredContent"]["rows"], json!([{ "n": 3 }]), "{called}");
    assert_eq!(host.end(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_no_certificate_of_the_cluster_is_told_and_has_no_tools() {
    let world = World::start().await;
    let via = world.bo.address().to_string();
    let node = world.bo.data.join("identity");
    for identity in [text(&node), "/nonexistent"] {
        let mut host = Host::start(&["--via", &via, "--identity", identity]);
        assert_eq!(host.child.wait().unwrap().code(), Some(2), "{identity}");
        assert!(host.lines.recv_timeout(SOON).is_err(), "nothing is said on stdout");
    }
    // A stranger's cluster.
    let other = World::start().await;
    let mut host = Host::start(&["--via", &via, "--identity", text(&other.bo.operator), "--patience", "1s"]);
    host.say(&json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {} }).to_string());
    let told = host.line();
    assert!(told.get("error").is_some(), "{told}");
}

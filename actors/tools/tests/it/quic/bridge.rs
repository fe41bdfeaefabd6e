//! The bridge of a pipe to a node's door.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use horos_tools::{
    quic,
    stdio::{self, BridgeError, DialFailed, Options},
};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, DuplexStream, Lines},
    task::JoinHandle,
    time::timeout,
};

use super::{
    raw::{call, initialize},
    world::{KEY, Node, SOON, client, counts, dial, dialer},
};

/// A host that has started a bridge.
struct Host {
    input: DuplexStream,
    output: Lines<BufReader<DuplexStream>>,
    bridge: JoinHandle<Result<(), BridgeError>>,
    /// Where the node is now; none while there is none.
    address: Arc<Mutex<Option<SocketAddr>>>,
}

impl Host {
    fn start(node: &Node, adjust: impl FnOnce(&mut Options)) -> Self {
        let mut options = Options { credential: Some(horos_tools::Credential(KEY.into())), ..Options::default() };
        adjust(&mut options);
        let address = Arc::new(Mutex::new(Some(node.address())));
        let there = address.clone();
        let endpoint = dialer();
        let reach = move || {
            let (there, endpoint) = (*there.lock(), endpoint.clone());
            async move {
                let there = there.ok_or_else(|| DialFailed::from("there is none"))?;
                Ok(dial(&endpoint, there, client(b"horos-mcp-v1", None)).await?)
            }
        };
        let (input, bridged) = tokio::io::duplex(64 * 1024);
        let (out, output) = tokio::io::duplex(64 * 1024);
        let bridge = tokio::spawn(stdio::bridge(reach, bridged, out, options));
        Self { input, output: BufReader::new(output).lines(), bridge, address }
    }

    async fn write(&mut self, line: &str) {
        self.input.write_all(format!("{line}\n").as_bytes()).await.unwrap();
    }

    async fn say(&mut self, line: Value) {
        self.write(&line.to_string()).await;
    }

    async fn line(&mut self) -> Value {
        let line = timeout(SOON, self.output.next_line()).await.expect("a line in time").unwrap();
        serde_json::from_str(&line.expect("the bridge goes on")).unwrap()
    }

    async fn begin(&mut self) {
        self.say(initialize(None, false)).await;
        let answer = self.line().await;
        assert!(answer["result"]["serverInfo"].is_object(), "{answer}");
        self.say(json!({"jsonrpc": "2.0", "method": "notifications/initialized"})).await;
    }

    async fn ends(self) -> Result<(), BridgeError> {
        drop(self.input);
        timeout(SOON, self.bridge).await.expect("the bridge ends").unwrap()
    }
}

#[tokio::test]
async fn a_host_talks_with_a_node_through_the_bridge() {
    let node = Node::new().await;
    let mut host = Host::start(&node, |_| {});
    host.begin().await;
    host.say(call(json!("a"), "echo", json!({"x": 1}))).await;
    let answer = host.line().await;
    assert_eq!((&answer["id"], &answer["result"]["structuredContent"]), (&json!("a"), &json!({"x": 1})));
    host.say(call(json!(2), "who", json!({}))).await;
    assert_eq!(host.line().await["result"]["content"][0]["text"], json!("hk_good"));
    // What is no message is said so here.
    for (line, code) in [("junk", -32700), ("[]", -32600), ("{}", -32600)] {
        host.write(line).await;
        assert_eq!(host.line().await["error"]["code"], json!(code), "{line}");
    }
    host.write(&"x".repeat(quic::MAX_MESSAGE + 1)).await;
    assert_eq!(host.line().await["error"]["message"], json!("message too large: at most 10485760 bytes"));
    // What was asked before the end is answered.
    host.say(call(json!(3), "gate", json!({}))).await;
    counts(&node.hand.waiting, 1).await;
    let Host { input, mut output, bridge, .. } = host;
    drop(input);
    node.hand.gate.add_permits(1);
    let last: Value = serde_json::from_str(&timeout(SOON, output.next_line()).await.unwrap().unwrap().unwrap()).unwrap();
    assert_eq!(last["id"], json!(3));
    timeout(SOON, bridge).await.unwrap().unwrap().unwrap();
    assert_eq!(output.next_line().await.unwrap(), None);
    node.stop().await;
}

#[tokio::test]
async fn a_node_that_restarts_is_dialled_again_and_no_call_is_made_twice() {
    let node = Node::new().await;
    let mut host = Host::start(&node, |_| {});
    host.begin().await;
    host.say(call(json!("lost"), "gate", json!({}))).await;
    counts(&node.hand.waiting, 1).await;
    *host.address.lock() = None;
    node.endpoint.close(Duration::from_secs(1)).await;
    let lost = host.line().await;
    assert_eq!(lost["id"], json!("lost"), "{lost}");
    assert!(lost["error"]["message"].as_str().unwrap().contains("the outcome is unknown"), "{lost}");
    // Asked while there is no node, answered by the next.
    host.say(call(json!("later"), "echo", json!({"x": 2}))).await;
    let again = Node::new().await;
    *host.address.lock() = Some(again.address());
    let mut heard = [host.line().await, host.line().await];
    heard.sort_by_key(|line| line.get("id").is_some());
    assert_eq!(heard[0]["method"], json!("notifications/tools/list_changed"));
    assert_eq!((&heard[1]["id"], &heard[1]["result"]["structuredContent"]), (&json!("later"), &json!({"x": 2})));
    assert_eq!(*again.hand.waiting.borrow(), 0, "nothing was called twice");
    assert!(host.ends().await.is_ok());
    node.stop().await;
    again.stop().await;
}

#[tokio::test]
async fn without_a_node_each_request_is_told_that_nothing_was_done() {
    let node = Node::new().await;
    let mut host = Host::start(&node, |options| options.patience = Duration::from_millis(200));
    *host.address.lock() = None;
    host.say(initialize(None, false)).await;
    let told = host.line().await;
    assert_eq!((&told["id"], &told["error"]["code"]), (&json!(0), &json!(-32000)), "{told}");
    assert!(told["error"]["message"].as_str().unwrap().contains("nothing was done"), "{told}");
    *host.address.lock() = Some(node.address());
    host.begin().await;
    assert!(host.ends().await.is_ok());
    node.stop().await;
}

#[tokio::test]
async fn whom_the_node_does_not_admit_is_told_and_the_bridge_ends() {
    let node = Node::new().await;
    let mut host = Host::start(&node, |options| options.credential = None);
    host.say(initialize(None, false)).await;
    assert_eq!(host.line().await["error"]["code"], json!(-32001));
    let ended = timeout(SOON, host.bridge).await.expect("the bridge ends").unwrap();
    assert!(matches!(ended, Err(BridgeError::Refused(quic::SendError::Unauthenticated(_)))), "{ended:?}");
    node.stop().await;
}

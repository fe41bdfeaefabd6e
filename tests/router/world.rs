//! A BO that owns the routes and an FO that keeps a replica of them, both of them the tests' own program with its counters and callers.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use axum::Router;
use horos_store::rusqlite::Connection;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::harness::{Cluster, Node, outside, poll_state};

/// For an edit to be in force on both nodes: generous, no promise of time is tested here.
pub(crate) const SOON: Duration = Duration::from_secs(20);

pub(crate) struct World {
    _cluster: Cluster,
    pub(crate) bo: Node,
    pub(crate) fo: Node,
}

impl World {
    /// Both running and linked.
    pub(crate) async fn start() -> Self {
        Self::with(&[], |_| ()).await
    }

    /// The same, trusting servers at `inside`; `prepare` has the BO before its first start.
    pub(crate) async fn with(inside: &[SocketAddr], prepare: impl FnOnce(&Node)) -> Self {
        let cluster = Cluster::of(outside::routed().await);
        let mut bo = cluster.first("bo-1", [127, 0, 0, 1]).await;
        let trusted: Vec<_> = inside.iter().map(ToString::to_string).collect();
        configure(&mut bo, &trusted);
        prepare(&bo);
        bo.start().await;
        let mut fo = cluster.join("fo-1", "fo", [127, 0, 0, 1], &[bo.address()]).await;
        configure(&mut fo, &trusted);
        fo.start().await;
        bo.sees("fo-1", "up").await;
        fo.sees("bo-1", "up").await;
        Self { _cluster: cluster, bo, fo }
    }

    /// Changes the owner's tables as another program does.
    pub(crate) fn edit(&self, sql: &str) {
        connect(&self.bo).execute_batch(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
    }

    /// Puts a route in place, by SQL.
    pub(crate) fn route(&self, service: &str, strategy: &str, endpoint: Option<&str>, config: &Value) {
        let sql = "INSERT OR REPLACE INTO routes (service_name, strategy, endpoint, config) VALUES (?1, ?2, ?3, ?4)";
        connect(&self.bo).execute(sql, (service, strategy, endpoint, config.to_string())).unwrap();
    }

    /// Has the BO reach the FO's gateway by HTTP, whose port is known only now.
    pub(crate) async fn trust_fo(&mut self) {
        self.bo.process().terminate();
        self.bo.process().wait(SOON).await;
        self.bo.set("EGRESS__TRUSTED", format!("localhost:{}", self.fo.address().port()));
        self.bo.start().await;
        self.bo.sees("fo-1", "up").await;
        self.fo.sees("bo-1", "up").await;
    }

    pub(crate) fn nodes(&self) -> [&Node; 2] {
        [&self.bo, &self.fo]
    }
}

fn configure(node: &mut Node, trusted: &[String]) {
    node.set("EGRESS__TRUSTED", trusted.join(","));
    node.set("EGRESS__AUTHORITIES", "identity/ca.pem");
    // All of a test comes from one address.
    node.set("HTTP_LIMITS__PER_ADDRESS", "100000000");
}

/// `control.db` of the node that owns it.
pub(crate) fn tables(node: &Node) -> PathBuf {
    node.data.join("control.db")
}

pub(crate) fn connect(node: &Node) -> Connection {
    let connection = Connection::open(tables(node)).unwrap();
    connection.busy_timeout(Duration::from_secs(20)).unwrap();
    connection
}

/// Has SQLite's own shell do `sql`.
pub(crate) fn sqlite3(file: &Path, sql: &str) {
    let output = Command::new("sqlite3").args(["-batch", "-bail", "-cmd", ".timeout 10000"]).arg(file).arg(sql).output().unwrap();
    assert!(output.status.success(), "{sql}: {}", String::from_utf8_lossy(&output.stderr));
}

/// How one call of `service` from `node` ends: `{how, by, why, text, took_ms}`.
pub(crate) async fn once(node: &Node, service: &str, what: Value, timeout_ms: u64) -> Value {
    let once = json!({ "once": { "service": service, "what": what, "timeout_ms": timeout_ms } });
    node.call(&format!("phone@{}", node.name), &once).await
}

/// Who answers a call of `service` from `node`, or why nobody does.
pub(crate) async fn served(node: &Node, service: &str) -> String {
    let ended = once(node, service, json!("count"), 5_000).await;
    let word = |key: &str| ended[key].as_str().unwrap_or_default().to_owned();
    if ended["how"] == "done" { word("by") } else { word("why") }
}

/// Waits until calls of `service` from `node` end so.
pub(crate) async fn becomes(node: &Node, service: &str, wanted: &str) {
    poll_state(&format!("{service} from {} is {wanted}", node.name), SOON, async || match served(node, service).await {
        found if found == wanted => Ok(()),
        found => Err(found),
    })
    .await;
}

/// Load on a service, made by a node.
pub(crate) struct Load<'a>(&'a Node);

impl<'a> Load<'a> {
    pub(crate) async fn begin(node: &'a Node, begin: Value) -> Self {
        node.call(&format!("phone@{}", node.name), &json!({ "begin": begin })).await;
        Self(node)
    }

    /// What has come of it so far.
    pub(crate) async fn look(&self) -> Value {
        self.0.call(&format!("phone@{}", self.0.name), &json!({ "look": { "end": false } })).await
    }

    /// Waits until it has made all its calls.
    pub(crate) async fn finished(&self, limit: Duration) -> Value {
        let (at, look) = (format!("phone@{}", self.0.name), json!({ "look": { "end": false } }).to_string());
        poll_state("all calls are made", limit, async || {
            // A node under all the load that it can take may keep one look waiting, on a machine that others use too.
            let outcome = self.0.ask(&["call", &at, &look, "--timeout", "20s"]).await;
            if outcome.code != Some(0) {
                return Err(outcome.stderr);
            }
            let record = outcome.json();
            if record["running"] == false { Ok(record) } else { Err(record.to_string()) }
        })
        .await
    }

    /// Has it end, and gives what came of it.
    pub(crate) async fn end(self) -> Value {
        self.0.call(&format!("phone@{}", self.0.name), &json!({ "look": { "end": true } })).await;
        self.finished(SOON).await
    }

    /// The numbers of its calls that ended so, once it has finished.
    pub(crate) fn numbers(&self, how: &str) -> Vec<u64> {
        numbers(&self.0.data.join(format!("calls.{how}")))
    }
}

pub(crate) fn numbers(file: &Path) -> Vec<u64> {
    let bytes = fs::read(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    bytes.as_chunks::<8>().0.iter().map(|bytes| u64::from_le_bytes(*bytes)).collect()
}

/// Every number that a counter of these nodes has in its book, in order, twice what was handled twice; without single calls.
pub(crate) fn handled<'a>(nodes: impl IntoIterator<Item = &'a Node>) -> Vec<u64> {
    let mut all = Vec::new();
    for node in nodes {
        for entry in fs::read_dir(&node.data).unwrap().flatten() {
            if entry.path().extension().is_some_and(|extension| extension == "book") {
                all.extend(numbers(&entry.path()).into_iter().filter(|number| *number != u64::MAX));
            }
        }
    }
    all.sort_unstable();
    all
}

/// Whether no number stands there twice; and all of them.
pub(crate) fn each_once(sorted: &[u64]) -> BTreeSet<u64> {
    let twice: Vec<_> = sorted.windows(2).filter(|pair| pair[0] == pair[1]).map(|pair| pair[0]).take(10).collect();
    assert_eq!(twice, Vec::<u64>::new(), "handled twice");
    sorted.iter().copied().collect()
}

/// The breaker of `service` at `key`, as `node` has it.
pub(crate) async fn breaker(asked: &Node, node: &str, service: &str) -> Option<Value> {
    let listed = asked.ask(&["breaker", "list", service]).await.expect_code(0).json();
    listed["breakers"].as_array().unwrap().iter().find(|it| it["node"] == node).cloned()
}

/// What is wrong with the row of `service`, as each node tells it: the keys.
pub(crate) async fn problems(asked: &Node, service: &str) -> Vec<(String, Vec<String>)> {
    let inspected = asked.ask(&["routes", "inspect", service]).await.expect_code(0).json();
    let of = |node: &Value| {
        let problems = node["service"]["status"]["problem"]["problems"].as_array().into_iter().flatten();
        problems.map(|problem| format!("{}: {}", problem["key"].as_str().unwrap(), problem["what"].as_str().unwrap())).collect()
    };
    inspected["nodes"].as_array().unwrap().iter().map(|node| (node["node"].as_str().unwrap().to_owned(), of(node))).collect()
}

/// Serves `router` on loopback until the test ends.
pub(crate) async fn serve(router: Router) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

//! The official SDKs, as people's programs have them: for TypeScript in both its generations, and for Python by both of the protocol's.
//! They come to a node's own port, over TLS that its cluster's authority vouches for, with a key.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use horos_store::rusqlite::Connection;
use serde_json::{Value, json};

use super::world::{KEY, PATH, Served};
use crate::harness::clients::{installed, python, script};
use crate::harness::{Cluster, Node, Process, Site};

/// For one program from its start to its end: interpreters start slowly on a machine that others use too.
const LIMIT: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sdk {
    /// `@modelcontextprotocol/sdk`: with `initialize`.
    TypeScript1,
    /// `@modelcontextprotocol/client`: without, where the server can.
    TypeScript2,
    PythonSessions,
    PythonStateless,
}

impl Sdk {
    const ALL: [Self; 4] = [Self::TypeScript1, Self::TypeScript2, Self::PythonSessions, Self::PythonStateless];

    /// The revision that it and we agree on.
    fn revision(self) -> &'static str {
        match self {
            Self::TypeScript1 | Self::PythonSessions => "2025-11-25",
            Self::TypeScript2 | Self::PythonStateless => "2026-07-28",
        }
    }

    /// Starts its program, which is to do `wanted` at `site`.
    fn start(self, site: &Site, key: &str, mut wanted: Value) -> Process {
        wanted["url"] = format!("https://localhost:{}{PATH}", site.address.port()).into();
        wanted["key"] = key.into();
        let command = match self {
            Self::TypeScript1 | Self::TypeScript2 => {
                wanted["sdk"] = if self == Self::TypeScript1 { "sdk" } else { "client" }.into();
                let mut node = Command::new(installed("HOROS_TEST_NODE"));
                node.env("HOROS_TEST_NODE_MODULES", installed("HOROS_TEST_NODE_MODULES")).env("NODE_EXTRA_CA_CERTS", &site.authority);
                node.arg(script("node/mcp.mjs")).arg(wanted.to_string());
                node
            }
            Self::PythonSessions | Self::PythonStateless => {
                wanted["mode"] = if self == Self::PythonSessions { "legacy" } else { "auto" }.into();
                wanted["ca"] = site.authority.to_str().unwrap().into();
                let mut python = python("mcp_client.py");
                python.arg(wanted.to_string());
                python
            }
        };
        Process::spawn(&format!("{self:?}"), command).unwrap()
    }
}

/// What a program tells at its end.
async fn told(process: &mut Process) -> Value {
    let line = process.wait_for_line("what it saw", LIMIT, |line| line.starts_with("{\"server\"")).await;
    let status = process.wait(LIMIT).await;
    assert!(status.success(), "{}: {status}", process.name());
    serde_json::from_str(&line).unwrap()
}

fn sql(file: &Path, statements: &str) {
    let connection = Connection::open(file).unwrap();
    connection.busy_timeout(Duration::from_secs(20)).unwrap();
    connection.execute_batch(statements).unwrap_or_else(|error| panic!("{statements}: {error}"));
}

/// The statement by which a tool becomes a row.
fn tool(name: &str) -> String {
    let input = json!({ "type": "object", "properties": { "sku": { "type": "string" } }, "required": ["sku"] });
    let query = "SELECT sku, price FROM goods WHERE sku = :sku";
    let config = json!({ "database": "app.db", "query": query, "tables": { "goods": ["sku", "price"] } });
    format!(
        "INSERT INTO mcp_tools_registry (tool_name, tool_category, description, input_schema, handler_type, handler_config, mode)
         VALUES ('{name}', 'shop', 'Finds an article', '{input}', 'sql_query', '{config}', 'readonly');"
    )
}

/// A node with one article, and a tool that finds it.
async fn shop(cluster: &Cluster) -> Node {
    let mut node = cluster.first("bo-1", [127, 0, 0, 1]).await;
    sql(&node.data.join("app.db"), "CREATE TABLE goods (sku TEXT PRIMARY KEY, price INTEGER); INSERT INTO goods VALUES ('p-1', 30);");
    node.start().await;
    let policy = "INSERT INTO mcp_tool_policy (tool_name, role, effect) VALUES ('*', 'scope:shop', 'allow');";
    sql(&node.data.join("control.db"), &format!("{policy} {}", tool("find")));
    node
}

#[tokio::test(flavor = "multi_thread")]
async fn official_sdks_list_call_and_are_told_of_a_tool_that_an_insert_adds() {
    let cluster = Cluster::new();
    let node = shop(&cluster).await;
    let control = node.data.join("control.db");
    let (site, key) = (node.site(), node.key(&["shop"]).await);
    for (at, sdk) in Sdk::ALL.into_iter().enumerate() {
        let call = json!({ "name": "find", "arguments": { "sku": "p-1" } });
        let mut process = sdk.start(&site, &key, json!({ "call": call, "progress": null, "change": true }));
        process.wait_for_line("waiting", LIMIT, |line| line == "waiting").await;
        let added = format!("find_{at}");
        sql(&control, &tool(&added));
        let told = told(&mut process).await;
        let has = |list: &Value, name: &str| list.as_array().unwrap().iter().any(|tool| tool == name);
        assert_eq!(told["server"], "horos", "{sdk:?}: {told}");
        assert_eq!(told["version"], sdk.revision(), "{sdk:?}: {told}");
        assert!(has(&told["tools"], "find") && !has(&told["tools"], &added), "{sdk:?}: {told}");
        assert!(told["result"]["structuredContent"].to_string().contains("30"), "{sdk:?}: {told}");
        assert!(has(&told["after"], &added), "{sdk:?}: {told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn official_sdks_are_told_how_far_a_tool_is() {
    let served = Served::start().await;
    for sdk in Sdk::ALL {
        let call = json!({ "name": "test_simple_text", "arguments": {} });
        let wanted = json!({ "call": call, "progress": "test_tool_with_progress", "change": false });
        let told = told(&mut sdk.start(&served.site, KEY, wanted)).await;
        let progress: Vec<_> = told["progress"].as_array().unwrap().iter().filter_map(Value::as_f64).collect();
        assert_eq!(progress, [0.0, 50.0, 100.0], "{sdk:?}: {told}");
        assert_eq!(told["result"]["content"][0]["text"], "This is a simple text response for testing.", "{sdk:?}: {told}");
    }
}

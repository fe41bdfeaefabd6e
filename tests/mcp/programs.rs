//! Programs that speak MCP on their standard input and output, as people have them: by the official SDKs, named by a node's configuration
//! and reached by a row.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use serde_json::{Value, json};

use super::world::{SOON, sqlite3};
use crate::harness::clients::{installed, script};
use crate::harness::{Cluster, Node, poll_state};

/// Not to be found in any environment by chance.
const TOKEN: &str = "tk-5f1c";

fn route(node: &Node, name: &str, endpoint: &str) {
    let sql =
        format!("INSERT OR REPLACE INTO routes (service_name, strategy, endpoint, config) VALUES ('{name}', 'mcp', '{endpoint}', '{{}}')");
    sqlite3(&node.data.join("control.db"), &sql);
}

/// A node with a till by each SDK.
async fn shop(cluster: &Cluster) -> Node {
    let mut node = cluster.first("bo-1", [127, 0, 0, 1]).await;
    let secrets = node.data.join("secrets");
    fs::create_dir_all(&secrets).unwrap();
    let file = secrets.join("till");
    fs::write(&file, format!("{TOKEN}\n")).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let command = |program: &str, name: &str| json!([installed(program), script(name)]);
    let programs = json!({
        "python": { "command": command("HOROS_TEST_PYTHON", "python/mcp_server.py"), "env": { "PYTHONDONTWRITEBYTECODE": 1 }, "secrets": { "TOKEN": "till" } },
        "typescript": {
            "command": command("HOROS_TEST_NODE", "node/mcp_server.mjs"),
            "env": { "HOROS_TEST_NODE_MODULES": installed("HOROS_TEST_NODE_MODULES") },
            "secrets": { "TOKEN": "till" },
        },
    });
    node.set("MCP__PROGRAMS", programs.to_string());
    // A secret of the node's own, which is nobody else's business.
    node.variable("NODES_OWN", "x");
    node.start().await;
    node
}

/// Calls a till until a row that was just written is in force.
async fn called(node: &Node, name: &str, message: &Value) -> Value {
    poll_state(&format!("{name} answers"), SOON, async || {
        let outcome = node.ask(&["call", name, &message.to_string()]).await;
        if outcome.code == Some(0) { Ok(outcome.json()) } else { Err(format!("{outcome:?}")) }
    })
    .await
}

async fn pid(node: &Node, name: &str) -> u64 {
    called(node, name, &json!({ "about": {} })).await["pid"].as_u64().unwrap()
}

fn runs(pid: u64) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
}

async fn ends(pid: u64) {
    poll_state("the program has ended", Duration::from_secs(10), async || if runs(pid) { Err(pid.to_string()) } else { Ok(()) }).await;
}

#[tokio::test]
async fn a_row_leads_to_a_program_of_the_configuration_which_lives_and_dies_with_the_node() {
    let cluster = Cluster::new();
    let mut node = shop(&cluster).await;
    for name in ["python", "typescript"] {
        route(&node, name, &format!("stdio:{name}"));
        assert_eq!(called(&node, name, &json!({ "total": { "prices": [500, 900] } })).await, json!({ "total": 1400 }), "{name}");
        let about = called(&node, name, &json!({ "about": {} })).await;
        assert_eq!(about["token"], TOKEN, "{name}");
        let names = about["names"].as_str().unwrap();
        assert!(!names.contains("NODES_OWN") && !names.contains("HOROS__"), "{name}: {names}");
    }

    // One that dies is there again with the next call.
    let old = pid(&node, "python").await;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(i32::try_from(old).unwrap()), nix::sys::signal::Signal::SIGKILL).unwrap();
    ends(old).await;
    let pids = [pid(&node, "python").await, pid(&node, "typescript").await];
    assert_ne!(pids[0], old);

    // A node that is killed cannot end them: their input does.
    node.kill();
    for pid in pids {
        ends(pid).await;
    }
    node.start().await;
    let pids = [pid(&node, "python").await, pid(&node, "typescript").await];
    node.process().terminate();
    assert!(node.process().wait(SOON).await.success());
    // A node that has stopped leaves nothing behind: what did not end in time was killed by it, and needs a moment to be gone.
    for pid in pids {
        ends(pid).await;
    }
    assert!(!node.process().lines().iter().any(|line| line.contains(TOKEN)), "no secret is logged");
}

#[tokio::test]
async fn a_row_can_name_no_command_and_no_program_that_the_configuration_does_not() {
    let cluster = Cluster::new();
    let mut node = cluster.first("bo-1", [127, 0, 0, 1]).await;
    node.start().await;
    let mark = cluster.path().join("mark");
    for (name, endpoint) in [
        ("unknown", "stdio:till".to_owned()),
        ("path", "stdio:/bin/sh".to_owned()),
        ("shell", format!("stdio:sh -c touch {}", mark.display())),
    ] {
        route(&node, name, &endpoint);
    }
    poll_state("the row is shown with what to add", SOON, async || {
        let said = node.ask(&["routes", "inspect", "unknown"]).await;
        if said.stdout.contains("mcp.programs.till.command") { Ok(()) } else { Err(format!("{} {}", said.stdout, said.stderr)) }
    })
    .await;
    for name in ["path", "shell"] {
        node.ask(&["call", name, "{\"total\": {}}"]).await;
    }
    assert!(!mark.exists());
}

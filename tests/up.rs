//! `up`: one command starts a BO and an FO with everything made on the spot, and leaves nothing behind.

use std::net::UdpSocket;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::harness::node::text;
use crate::harness::{HOROS, Process, cli, data_dir, poll_state};

/// A BO, an FO and a cluster's keys, in a debug build.
const BOTH: Duration = Duration::from_secs(20);

fn up(data: &Path, ports: [&str; 2]) -> Process {
    let args = ["up", "--data", text(data), "--no-tree", "--bo-port", ports[0], "--fo-port", ports[1]];
    Process::start("up", HOROS, args).unwrap()
}

/// Starts it on ports of the system's choice and gives the nodes' addresses.
async fn running(data: &Path) -> (Process, String, String) {
    let mut process = up(data, ["0", "0"]);
    let mut address = async |node: &str| {
        let line = process.wait_for_line(node, BOTH, |line| line.starts_with(&format!("{node} on "))).await;
        line.rsplit(' ').next().unwrap().to_owned()
    };
    let (bo, fo) = (address("bo-1").await, address("fo-1").await);
    (process, bo, fo)
}

/// The processes that run a node out of `data`, by role.
fn nodes(data: &Path) -> Vec<(String, Pid)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // A process may end between the two looks.
        let Ok(line) = std::fs::read_to_string(entry.path().join("cmdline")) else { continue };
        let mut words = line.split('\0').skip(1);
        let role = words.next().unwrap_or_default().to_owned();
        if ["bo", "fo"].contains(&&*role) && words.any(|word| Path::new(word).starts_with(data)) {
            found.push((role, Pid::from_raw(pid)));
        }
    }
    found.sort();
    found
}

async fn horos(data: &Path, via: &str, args: &[&str]) -> cli::Outcome {
    cli::horos(&[&["--json", "--data", text(data), "--via", via], args].concat()).await
}

async fn tea(data: &Path, via: &str) -> Value {
    let levels = horos(data, via, &["call", "stock@bo", r#"{"levels":{}}"#]).await.expect_code(0).json();
    levels.as_array().unwrap().iter().find(|it| it["sku"] == "tea").unwrap()["quantity"].clone()
}

#[tokio::test]
async fn one_command_runs_a_shop_that_remembers_and_ctrl_c_leaves_nothing_behind() {
    let dir = data_dir();
    let data = dir.path().join("shop");
    let (mut first, bo, fo) = running(&data).await;
    // Sold on the FO, taken off the BO's shelf.
    poll_state("the FO sells", BOTH, async || {
        let order = json!({ "order": { "sku": "tea", "quantity": 3 } }).to_string();
        let sold = horos(&data, &fo, &["call", "shop@fo", &order]).await;
        if sold.code == Some(0) { Ok(()) } else { Err(sold.stderr) }
    })
    .await;
    assert_eq!(tea(&data, &bo).await, 37);
    assert_eq!(nodes(&data).len(), 2);
    first.signal(Signal::SIGINT);
    let status = first.wait(Duration::from_secs(20)).await;
    assert_eq!(status.code(), Some(0), "{:?}", first.lines());
    assert_eq!(nodes(&data), [], "no process is left");

    let (mut second, bo, _) = running(&data).await;
    assert_eq!(tea(&data, &bo).await, 37, "what was sold stays sold");
    second.terminate();
    assert_eq!(second.wait(Duration::from_secs(20)).await.code(), Some(0), "{:?}", second.lines());
    assert_eq!(nodes(&data), []);
}

#[tokio::test]
async fn a_node_of_ups_that_is_killed_is_started_again_where_it_was() {
    let dir = data_dir();
    let data = dir.path().join("shop");
    let (mut process, bo, fo) = running(&data).await;
    for role in ["bo", "fo"] {
        let (_, victim) = nodes(&data).into_iter().find(|(it, _)| it == role).unwrap();
        kill(victim, Signal::SIGKILL).unwrap();
        poll_state(&format!("the {role} is there again, and the shop sells"), Duration::from_secs(20), async || {
            let now = nodes(&data);
            if now.len() != 2 || now.iter().any(|(_, pid)| *pid == victim) {
                return Err(format!("{now:?}"));
            }
            let order = json!({ "order": { "sku": "coffee", "quantity": 1 } }).to_string();
            let sold = horos(&data, &fo, &["call", "shop@fo", &order]).await;
            if sold.code == Some(0) { Ok(()) } else { Err(sold.stderr) }
        })
        .await;
        assert_eq!(tea(&data, &bo).await, 40);
    }
    process.signal(Signal::SIGINT);
    assert_eq!(process.wait(Duration::from_secs(20)).await.code(), Some(0), "{:?}", process.lines());
    assert_eq!(nodes(&data), []);
}

#[tokio::test]
async fn up_killed_by_force_takes_its_nodes_with_it() {
    let dir = data_dir();
    let data = dir.path().join("shop");
    let (mut process, ..) = running(&data).await;
    process.kill_9();
    poll_state("its nodes end", Duration::from_secs(20), async || {
        let left = nodes(&data);
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;
}

#[tokio::test]
async fn up_says_which_port_is_taken_and_what_to_do() {
    let dir = data_dir();
    let data = dir.path().join("shop");
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let mut process = up(&data, [&port, "0"]);
    let status = process.wait(BOTH).await;
    let said = process.lines().join("\n");
    assert!(matches!(status.code(), Some(6 | 70)), "{status}: {said}");
    assert!(said.contains(&port) && said.contains("--bo-port"), "{said}");
    assert_eq!(nodes(&data), []);
    // Nothing is spoilt: with a port that is free it runs.
    let (mut process, bo, _) = running(&data).await;
    assert_eq!(tea(&data, &bo).await, 40);
    process.signal(Signal::SIGINT);
    assert_eq!(process.wait(Duration::from_secs(20)).await.code(), Some(0));
}

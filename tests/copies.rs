//! Backups taken while writes go on, and put back while they do not.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::node::{actor, text};
use crate::harness::{Cluster, Node, cli, outside, poll_state};

async fn entries(bo: &Node) -> BTreeSet<u64> {
    let there = bo.call("ledger@bo", &json!({ "entries": {} })).await;
    there.as_array().unwrap().iter().filter_map(Value::as_u64).collect()
}

#[tokio::test]
async fn a_backup_under_load_is_whole_and_goes_back_into_a_stopped_node_only() {
    let cluster = Cluster::of(outside::drill().await);
    let mut bo = cluster.first("bo-1", [127, 0, 0, 1]).await;
    bo.start().await;
    let run = json!({ "run": {
        "target": "ledger@bo", "what": { "add": { "after_ms": 0 } }, "for_ms": 3_000, "at_once": 8,
        "timeout_ms": 10_000, "from": 1, "until_refused": true,
    } });
    let load = tokio::spawn(cli::run(bo.command(&bo.operator, &["call", "loader@bo-1", &run.to_string(), "--timeout", "25s"])));
    poll_state("entries are written", Duration::from_secs(10), async || {
        let tree = bo.tree().await;
        let handled = actor(&tree, "ledger").and_then(|it| it["handled"].as_u64()).unwrap_or_default();
        if handled > 20 { Ok(()) } else { Err(format!("{handled} handled")) }
    })
    .await;
    let before = entries(&bo).await;
    let to = cluster.path().join("backup");
    let made = bo.ask(&["backup", "--data", text(&bo.data), text(&to)]).await.expect_code(0).json();
    let databases = made["databases"].as_array().unwrap();
    assert_eq!(databases.iter().map(|it| &it["file"]).collect::<Vec<_>>(), ["control.db", "ledger.db", "router.db", "tools.db"], "{made}");
    assert!(databases.iter().all(|it| it["sha256"].as_str().unwrap().len() == 64), "{made}");
    let after = entries(&bo).await;
    let tally = load.await.unwrap().expect_code(0).json();
    assert!(before.len() < after.len() && after.len() as u64 <= tally["done"].as_u64().unwrap(), "writes went on meanwhile");

    // An independent witness: SQLite's own shell finds it whole.
    let check =
        Command::new("sqlite3").arg(to.join("ledger.db")).arg("PRAGMA integrity_check; SELECT count(*) FROM entries").output().unwrap();
    let told = String::from_utf8(check.stdout).unwrap();
    let (whole, count) = told.trim().split_once('\n').unwrap_or_else(|| panic!("{told}"));
    assert_eq!(whole, "ok");
    let count: usize = count.parse().unwrap();
    assert!((before.len()..=after.len()).contains(&count), "{} ≤ {count} ≤ {}", before.len(), after.len());

    // Over a running node: refused, and nothing is touched.
    let last = entries(&bo).await;
    let refused = bo.ask(&["restore", "--data", text(&bo.data), text(&to), "--replace"]).await.expect_code(3);
    assert!(refused.stderr.contains("in use") && refused.stderr.contains("stop"), "{}", refused.stderr);
    assert_eq!(entries(&bo).await, last);
    // A backup is never written over.
    bo.ask(&["backup", "--data", text(&bo.data), text(&to)]).await.expect_code(3);

    bo.process().terminate();
    assert_eq!(bo.process().wait(Duration::from_secs(15)).await.code(), Some(0));
    let refused = bo.ask(&["restore", "--data", text(&bo.data), text(&to)]).await.expect_code(3);
    assert!(refused.stderr.contains("--replace"), "{}", refused.stderr);
    bo.ask(&["restore", "--data", text(&bo.data), text(&to), "--replace"]).await.expect_code(0);
    let kept = std::fs::read_dir(&bo.data).unwrap().flatten().any(|it| it.file_name().to_string_lossy().contains("before-restore"));
    assert!(kept, "what was replaced is kept beside");
    bo.start().await;
    let restored = entries(&bo).await;
    assert_eq!(restored.len(), count);
    assert!(before.is_subset(&restored) && restored.is_subset(&after));
    // And it takes up work where the backup stood.
    bo.call("ledger@bo", &json!({ "add": { "id": 9_000_000, "after_ms": 0 } })).await;

    // A damaged copy is no backup.
    let damaged = to.join("ledger.db");
    let mut bytes = std::fs::read(&damaged).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&damaged, bytes).unwrap();
    bo.process().terminate();
    bo.process().wait(Duration::from_secs(15)).await;
    bo.ask(&["restore", "--data", text(&bo.data), text(&to), "--replace"]).await.expect_code(6);
    bo.start().await;
    assert_eq!(entries(&bo).await.len(), count + 1, "nothing is lost to a restore that was refused");
}

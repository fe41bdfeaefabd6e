//! Programs beside the node that read a replica's file: another user's, who may write nothing there, not even in the directory.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::world::{
    ACCOUNTS, ACCOUNTS_FILTER, ACCOUNTS_PUBLISHED, NAME, REPLICA, SUM, bo, database, equal, healing, replica, say, sqlite3, transfers,
};
use crate::harness::{Cluster, poll_state, scale, seed};

/// Somebody who is nobody here, and a group that readers are in.
const READER: u32 = 65_534;
const GROUP: u32 = 65_534;

/// Whether this is root, who can be anybody; by the owner of what this process has made.
fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|it| it.uid() == 0)
}

/// What SQLite's shell says of `sql`, run by who may only read.
fn read(file: &Path, sql: &str) -> (bool, String) {
    let mut command = if is_root() {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", &READER.to_string(), "--regid", &GROUP.to_string(), "--clear-groups", "sqlite3"]);
        command
    } else {
        // Another user cannot be had: the directory is mounted so that nothing in it can be written.
        let mut command = Command::new("unshare");
        let script = "mount --bind \"$0\" \"$0\" && mount -o remount,bind,ro \"$0\" && exec sqlite3 \"$@\"";
        command.args(["--user", "--map-root-user", "--mount", "sh", "-c", script]).arg(file.parent().unwrap());
        command
    };
    let output = command.args(["-readonly", "-batch", "-cmd", ".timeout 5000"]).arg(file).arg(sql).output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output.status.success(), said.trim().to_owned())
}

#[tokio::test]
async fn a_process_that_may_write_nothing_reads_whole_transactions_while_the_fo_applies() {
    let cluster = Cluster::new();
    let mut bo = bo(&cluster, [127, 0, 0, 1], ACCOUNTS, ACCOUNTS_FILTER).await;
    let mut fo = cluster.join("fo-1", "fo", [127, 0, 0, 2], &[bo.address()]).await;
    say(&fo, &format!("replicas:\n  {NAME}: {{ file: {REPLICA}, from: bo, readable-by: group }}\n"));
    // As an operator arranges it: the group may go through the directory, and what is made in it is the group's.
    std::fs::set_permissions(cluster.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
    if is_root() {
        chown(&fo.data, None, Some(GROUP)).unwrap();
    }
    std::fs::set_permissions(&fo.data, std::fs::Permissions::from_mode(0o2710)).unwrap();
    fo.start().await;
    equal(&bo, &fo, &ACCOUNTS_PUBLISHED, healing()).await;

    let (file, sql) = (replica(&fo), "SELECT sum(amount), (SELECT count(*) FROM entry WHERE listed <> 1) FROM account");
    let load = transfers(&database(&bo), seed());
    let whole = format!("{SUM}|0");
    let looks = async |times: u32, when: &str| {
        for look in 0..times {
            let (file, sql) = (file.clone(), sql);
            let (success, said) = tokio::task::spawn_blocking(move || read(&file, sql)).await.unwrap();
            assert!(success && said == whole, "{when}, look {look}: {said}");
        }
    };
    looks(scale(40, 2_000), "while it applies").await;
    let (success, said) = read(&file, "DELETE FROM account");
    assert!(!success && said.contains("readonly"), "{said}");
    let (success, said) = read(&fo.data.join("control.db"), "SELECT 1 FROM sqlite_schema");
    assert!(!success && (said.contains("unable to open") || said.contains("denied")), "what is the node's alone: {said}");
    // Across a snapshot that takes the file's place: the log begins anew under another epoch.
    let inode = std::fs::metadata(&file).unwrap().ino();
    load.end();
    bo.process().terminate();
    bo.process().wait(Duration::from_secs(20)).await;
    let args = ["sync", "detach", "--data", crate::harness::node::text(&bo.data), super::world::DATABASE];
    cluster.run(&args).await.expect_code(0);
    sqlite3(&database(&bo), "UPDATE account SET owner = 'after the swap'");
    bo.spawn();
    poll_state("the swap is seen", healing() * 2, async || {
        let (success, said) = read(&file, sql);
        assert!(success && said == whole, "at the swap: {said}");
        let (_, owners) = read(&file, "SELECT DISTINCT owner FROM account");
        if owners == "after the swap" { Ok(()) } else { Err(owners.lines().next().unwrap_or_default().to_owned()) }
    })
    .await;
    bo.ready().await;
    assert_eq!(std::fs::metadata(&file).unwrap().ino(), inode, "who has it open reads on");
    // The node stopped, killed and started again.
    fo.process().terminate();
    fo.process().wait(Duration::from_secs(20)).await;
    looks(2, "the node has stopped").await;
    fo.start().await;
    looks(2, "it was started again").await;
    fo.kill();
    looks(2, "it was killed").await;
}

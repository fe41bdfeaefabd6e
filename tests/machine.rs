//! A machine or an operator that gets it wrong: what is said names the fix, the exit code is the documented
//! one, and nothing is lost.

use std::fs;
use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use horos_link::identity::{Authority, CERTIFICATE, KEY, Validity};
use horos_wire::NodeId;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::harness::cli::{self, Outcome};
use crate::harness::node::text;
use crate::harness::{Cluster, Node, outside};

/// Runs the node to its end, which must come by itself.
async fn fails(cluster: &Cluster, node: &Node, more: &[&str]) -> Outcome {
    cluster.run(&[&[&*node.role, "--data", text(&node.data)][..], more].concat()).await
}

/// A BO with something in its books.
async fn with_entries(program: &Path) -> (Cluster, Node) {
    let cluster = Cluster::of(program);
    let mut bo = cluster.first("bo-1", [127, 0, 0, 1]).await;
    bo.start().await;
    for id in 1..=3 {
        bo.call("ledger@bo", &json!({ "add": { "id": id, "after_ms": 0 } })).await;
    }
    (cluster, bo)
}

async fn stop(bo: &mut Node) {
    bo.process().terminate();
    assert_eq!(bo.process().wait(Duration::from_secs(15)).await.code(), Some(0));
}

async fn is_whole(bo: &mut Node) {
    bo.start().await;
    assert_eq!(bo.call("ledger@bo", &json!({ "entries": {} })).await, json!([1, 2, 3]));
}

#[tokio::test]
async fn every_problem_of_a_configuration_is_told_at_once_before_anything_is_touched() {
    let (cluster, mut bo) = with_entries(outside::drill().await).await;
    stop(&mut bo).await;
    let file = bo.data.join("horos.yaml");
    let good = fs::read(&file).unwrap();
    let bad = "cluster:\n  name: Not A Name\nnode:\n  name: bo-1\n  role: king\nlisten:\n  cluster: nowhere\nliveness:\n  heartbeat: 5\n  \
               suspect: soon\nlimits:\n  mailbox: 0\n  message: 1TiB\nstore:\n  synchronous: perhaps\n  raeders: 4\nruntime:\n  layout: twisted\n\
               peers:\n  seeds:\n    - address: no-port\n";
    fs::write(&file, bad).unwrap();
    let told = fails(&cluster, &bo, &[]).await.expect_code(2);
    for key in [
        "cluster.name",
        "node.role",
        "listen.cluster",
        "liveness.heartbeat",
        "liveness.suspect",
        "limits.mailbox",
        "limits.message",
        "store.synchronous",
        "store.raeders",
        "runtime.layout",
        "peers.seeds[0]",
    ] {
        assert!(told.stderr.contains(key), "{key} is not told of:\n{}", told.stderr);
    }
    // Where, and what is meant.
    assert!(told.stderr.contains("horos.yaml:2") && told.stderr.contains("readers"), "{}", told.stderr);
    assert!(told.stderr.contains("nothing was started"), "{}", told.stderr);
    assert!(!bo.data.join("address").exists());
    fs::write(&file, good).unwrap();
    is_whole(&mut bo).await;
}

#[tokio::test]
async fn a_port_in_use_is_named_and_the_node_runs_once_it_is_free() {
    let (cluster, mut bo) = with_entries(outside::drill().await).await;
    stop(&mut bo).await;
    let taken = UdpSocket::bind(bo.address()).unwrap();
    let address = bo.address().to_string();
    let told = fails(&cluster, &bo, &["--listen", &address]).await.expect_code(6);
    assert!(told.stderr.contains(&address) && told.stderr.contains("taken"), "{}", told.stderr);
    assert!(told.stderr.contains("listen") || told.stderr.contains("doctor"), "the next step: {}", told.stderr);
    drop(taken);
    is_whole(&mut bo).await;
}

#[tokio::test]
async fn a_data_directory_of_a_running_node_is_not_opened_twice() {
    let (cluster, mut bo) = with_entries(outside::drill().await).await;
    let pid = bo.process().pid().to_string();
    let told = fails(&cluster, &bo, &["--listen", "127.0.0.1:0"]).await.expect_code(6);
    assert!(told.stderr.contains(&pid) && told.stderr.contains("stop"), "{}", told.stderr);
    assert_eq!(bo.call("ledger@bo", &json!({ "entries": {} })).await, json!([1, 2, 3]));
}

#[tokio::test]
async fn a_data_directory_that_is_none_is_named() {
    let cluster = Cluster::new();
    let bo = cluster.first("bo-1", [127, 0, 0, 1]).await;
    // A file where the directory ought to be: unreadable for root as well.
    let file = bo.data.join("horos.yaml/inside");
    let told = cluster.run(&["bo", "--data", text(&file)]).await;
    assert!(matches!(told.code, Some(2 | 6)), "{told:?}");
    assert!(told.stderr.contains(text(&file)), "{}", told.stderr);
    let told = cluster.run(&["init", "--data", text(&file)]).await.expect_code(6);
    assert!(told.stderr.contains("horos.yaml"), "{}", told.stderr);
    // A directory without a node: what makes one is named.
    let empty = cluster.path().join("empty");
    fs::create_dir(&empty).unwrap();
    let told = cluster.run(&["bo", "--data", text(&empty)]).await.expect_code(2);
    assert!(told.stderr.contains("init --data"), "{}", told.stderr);
    assert_eq!(fs::read_dir(&empty).unwrap().count(), 0, "and nothing is made in it");
}

#[tokio::test]
async fn a_relative_data_directory_and_the_default_one_work_like_any_other() {
    let dir = crate::harness::data_dir();
    for data in [&["--data", "shop"][..], &[]] {
        let run = |args: &[&str]| {
            let mut command = Command::new(crate::harness::HOROS);
            command.current_dir(dir.path()).args(args).args(data);
            command
        };
        cli::run(run(&["init", "--listen", "127.0.0.1:0"])).await.expect_code(0);
        let mut node = crate::harness::Process::spawn("bo-1", run(&["bo"])).unwrap();
        node.wait_for_line("ready", Duration::from_secs(10), |line| line.contains(" ready on ")).await;
        // It is found by its directory alone.
        let nodes = cli::run(run(&["nodes", "--json"])).await.expect_code(0).json();
        assert_eq!(nodes[0]["health"], "here");
        node.terminate();
        assert_eq!(node.wait(Duration::from_secs(15)).await.code(), Some(0));
    }
}

/// A small file system of its own; unmounted however the test ends.
pub(crate) struct Small(PathBuf);

impl Small {
    pub(crate) fn mount(at: PathBuf, size: &str) -> Option<Self> {
        fs::create_dir(&at).unwrap();
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={size}"), "horos-test"]).arg(&at).output();
        mounted.is_ok_and(|it| it.status.success()).then_some(Self(at))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[tokio::test]
async fn a_full_disk_refuses_new_entries_keeps_old_ones_and_heals_when_there_is_room() {
    let cluster = Cluster::of(outside::drill().await);
    let disk = cluster.path().join("disk");
    let Some(small) = Small::mount(disk.clone(), "6m") else {
        eprintln!("not promised here: only root may mount a file system to fill");
        return;
    };
    // The data directory is a place on that disk.
    std::os::unix::fs::symlink(&disk, cluster.path().join("bo-1")).unwrap();
    let mut bo = cluster.first("bo-1", [127, 0, 0, 1]).await;
    bo.start().await;
    for id in 1..=3 {
        bo.call("ledger@bo", &json!({ "add": { "id": id, "after_ms": 0 } })).await;
    }
    let ballast = disk.join("ballast");
    fill(&ballast);
    // The WAL may have room for a few; then each is refused, as one that was not written.
    let mut written = vec![1, 2, 3];
    let mut refused = None;
    for id in 4..2_000 {
        let outcome = bo.ask(&["call", "ledger@bo", &json!({ "add": { "id": id, "after_ms": 0 } }).to_string()]).await;
        if outcome.code == Some(0) {
            written.push(id);
        } else {
            refused = Some(outcome);
            break;
        }
    }
    let refused = refused.expect("a full disk refuses").expect_code(1);
    assert!(refused.stderr.contains("not_written") && refused.stderr.contains("full"), "{}", refused.stderr);
    // It says so and goes on: what is there can be read.
    assert_eq!(bo.call("ledger@bo", &json!({ "entries": {} })).await, json!(written));
    // Stopped and started on the full disk, it still has everything.
    bo.process().terminate();
    bo.process().wait(Duration::from_secs(20)).await;
    bo.spawn();
    let started = bo
        .process()
        .wait_for_line("an end or a start", Duration::from_secs(15), |line| line.contains(" ready on ") || line.contains("error:"));
    let started = started.await;
    eprintln!("on a full disk: {started}");
    fs::remove_file(&ballast).unwrap();
    if !started.contains(" ready on ") {
        assert!(started.contains("space") || started.contains("full"), "{started}");
        bo.process().wait(Duration::from_secs(10)).await;
        bo.start().await;
    }
    assert_eq!(bo.call("ledger@bo", &json!({ "entries": {} })).await, json!(written));
    bo.call("ledger@bo", &json!({ "add": { "id": 5_000, "after_ms": 0 } })).await;
    drop(bo);
    drop(small);
}

/// Takes what room is left.
pub(crate) fn fill(file: &Path) {
    use std::io::Write;
    let mut file = fs::File::create(file).unwrap();
    for block in [64 * 1024, 4096, 1] {
        while file.write_all(&vec![0; block]).is_ok() {}
    }
}

#[tokio::test]
async fn a_key_that_others_can_read_is_refused_with_the_command_that_mends_it() {
    let (cluster, mut bo) = with_entries(outside::drill().await).await;
    stop(&mut bo).await;
    let key = bo.data.join("identity").join(KEY);
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let told = fails(&cluster, &bo, &["--listen", "127.0.0.1:0"]).await.expect_code(6);
    assert!(told.stderr.contains(text(&key)) && told.stderr.contains("chmod"), "{}", told.stderr);
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    is_whole(&mut bo).await;
}

/// Signs the node's own request for another time, as the authority would have then.
async fn certify(cluster: &Cluster, bo: &Node, from: SignedDuration, until: SignedDuration) {
    let request = cluster.run(&["identity", "request", "--data", text(&bo.data)]).await.expect_code(0).stdout;
    let authority = Authority::load(&cluster.authority()).unwrap();
    let now = Timestamp::now();
    let validity = Validity { not_before: now + from, not_after: now + until };
    let id = NodeId::from_uri(&format!("spiffe://shop/bo/{}", bo.name)).unwrap();
    let (certificate, _) = authority.sign(&request, &id, validity).unwrap();
    fs::write(bo.data.join("identity").join(CERTIFICATE), certificate).unwrap();
}

#[tokio::test]
async fn a_certificate_out_of_date_or_of_another_node_is_told_with_the_way_to_a_new_one() {
    let (cluster, mut bo) = with_entries(outside::drill().await).await;
    stop(&mut bo).await;
    let certificate = bo.data.join("identity").join(CERTIFICATE);
    let good = fs::read(&certificate).unwrap();
    let hours = SignedDuration::from_hours;

    certify(&cluster, &bo, hours(-48), hours(-24)).await;
    let told = fails(&cluster, &bo, &["--listen", "127.0.0.1:0"]).await.expect_code(6);
    assert!(told.stderr.contains("expired") && told.stderr.contains("identity"), "{}", told.stderr);
    let doctor = cluster.run(&["doctor", "--data", text(&bo.data)]).await.expect_code(1);
    assert!(doctor.stdout.contains("expired"), "{}", doctor.stdout);

    // Not yet valid: a clock that jumped back, or one that was never set.
    certify(&cluster, &bo, hours(24), hours(48)).await;
    let told = fails(&cluster, &bo, &["--listen", "127.0.0.1:0"]).await.expect_code(6);
    assert!(told.stderr.contains("clock"), "{}", told.stderr);

    // The configuration says another name than the certificate.
    fs::write(&certificate, &good).unwrap();
    let file = bo.data.join("horos.yaml");
    let config = fs::read_to_string(&file).unwrap();
    fs::write(&file, config.replace("bo-1", "bo-7")).unwrap();
    let told = fails(&cluster, &bo, &["--listen", "127.0.0.1:0"]).await.expect_code(6);
    assert!(told.stderr.contains("bo-7") && told.stderr.contains("bo-1"), "{}", told.stderr);

    fs::write(&file, config).unwrap();
    is_whole(&mut bo).await;
}

#[tokio::test]
async fn a_certificate_that_ends_while_the_node_runs_ends_its_sessions_and_a_new_one_is_taken_up() {
    let (cluster, mut bo, mut fo) = Cluster::pair(outside::drill().await).await;
    let mark = bo.process().mark();
    certify(&cluster, &bo, SignedDuration::from_hours(-1), SignedDuration::from_secs(4)).await;
    bo.process()
        .wait_for_line_since(mark, "certificates were read again", Duration::from_secs(5), |line| line.text.contains("read again"))
        .await;
    // The clock passes the end of the certificate that sessions opened from now on would show.
    fo.kill();
    fo.start().await;
    fo.sees("bo-1", "up").await;
    fo.sees("bo-1", "down").await;
    // Renewed by the documented commands, without a restart.
    cluster.enrol("bo-1", "shop/bo/bo-1", &[]).await;
    fo.sees("bo-1", "up").await;
    assert!(bo.process().ended().is_none());
}

/// The library that turns a process's clock, which `tests/run` installs.
/// Gives `node` a wall clock that is turned by writing into the file that this returns; only that one jumps, nothing turns
/// the monotonic one back.
///
/// # Panics
/// Without libfaketime, which `tests/run` installs.
pub(crate) fn turnable_clock(cluster: &Cluster, node: &mut Node) -> PathBuf {
    let dirs = ["/usr/lib/x86_64-linux-gnu/faketime", "/usr/lib/aarch64-linux-gnu/faketime"];
    let library = dirs.iter().map(|dir| Path::new(dir).join("libfaketimeMT.so.1")).find(|path| path.exists());
    let library = library.expect("libfaketime is installed: run tests/run");
    let clock = cluster.path().join("clock");
    fs::write(&clock, "+0").unwrap();
    for (name, value) in [
        ("LD_PRELOAD", text(&library)),
        ("FAKETIME_TIMESTAMP_FILE", text(&clock)),
        ("FAKETIME_NO_CACHE", "1"),
        ("DONT_FAKE_MONOTONIC", "1"),
    ] {
        node.variable(name, value);
    }
    clock
}

#[tokio::test]
async fn a_clock_that_jumps_disturbs_no_session_and_no_call() {
    let cluster = Cluster::of(outside::drill().await);
    let mut bo = cluster.first("bo-1", [127, 0, 0, 1]).await;
    let clock = turnable_clock(&cluster, &mut bo);
    bo.start().await;
    let mut fo = cluster.join("fo-1", "fo", [127, 0, 0, 2], &[bo.address()]).await;
    fo.start().await;
    fo.sees("bo-1", "up").await;
    let mark = fo.process().mark();
    for jump in ["+3h", "-30m", "+20d", "+0"] {
        let before = SystemTime::now();
        fs::write(&clock, jump).unwrap();
        // Long enough for several heartbeats on either side of the jump.
        let run = json!({ "run": {
            "target": "faulty@bo", "what": "echo", "for_ms": 2_000, "at_once": 2, "timeout_ms": 1_000, "from": 0, "until_refused": false,
        } });
        let tally = fo.call("loader@fo", &run).await;
        assert!(tally["unknown"] == json!({}) && tally["no_effect"] == json!({}), "{jump}: {} {}", tally["unknown"], tally["no_effect"]);
        assert!(tally["slowest_ms"].as_u64().unwrap() < 1_000, "{jump}: {tally}");
        eprintln!("{jump}: {} calls in {:?}", tally["done"], before.elapsed().unwrap());
    }
    let lost: Vec<_> = fo.process().lines().split_off(usize::try_from(mark).unwrap().min(fo.process().lines().len()));
    assert!(!lost.iter().any(|line| line.contains("bo-1") && line.contains("closed")), "{lost:?}");
}

#[tokio::test]
async fn doctor_finds_what_the_node_would_trip_over() {
    let (cluster, mut bo) = with_entries(outside::drill().await).await;
    stop(&mut bo).await;
    let healthy: Value = cluster.run(&["--json", "doctor", "--data", text(&bo.data)]).await.expect_code(0).json();
    assert!(healthy.as_array().unwrap().iter().all(|it| it["state"] != "fail"), "{healthy}");
    let key = bo.data.join("identity").join(KEY);
    fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
    let ill = cluster.run(&["--json", "doctor", "--data", text(&bo.data)]).await.expect_code(1).json();
    let failed: Vec<_> = ill.as_array().unwrap().iter().filter(|it| it["state"] == "fail").collect();
    assert!(!failed.is_empty() && failed.iter().all(|it| it.to_string().contains("chmod")), "{failed:?}");
    let output = cli::run(bo.command(&bo.operator, &["tree"])).await;
    assert_eq!(output.code, Some(5), "{output:?}");
}

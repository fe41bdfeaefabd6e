//! The harness keeps its own promises, shown on shells.

use std::process::Command;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal;
use nix::unistd::Pid;

use super::{Process, cli, data_dir, free_address, poll_state, scale};

const SOON: Duration = Duration::from_secs(10);

fn shell(script: &str) -> Process {
    Process::start("shell", "/bin/sh", ["-c", script]).unwrap()
}

async fn gone(pid: Pid) {
    poll_state("process gone", SOON, async || match signal::kill(pid, None) {
        Err(Errno::ESRCH) => Ok(()),
        // An orphan's corpse stays until init collects it; it no longer runs.
        _ if std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z ")) => Ok(()),
        other => Err(format!("kill -0 says {other:?}")),
    })
    .await;
}

fn number(line: &str) -> Pid {
    Pid::from_raw(line.rsplit(' ').next().unwrap().parse().unwrap())
}

#[tokio::test]
async fn a_line_is_found_whenever_it_came() {
    let mut shell = shell("echo early; echo talk >&2; read -r never; echo late");
    assert_eq!(shell.wait_for_line("early", SOON, |line| line == "early").await, "early");
    assert_eq!(shell.wait_for_line("early again", SOON, |line| line == "early").await, "early");
    shell.wait_for_line("talk", SOON, |line| line == "talk").await;
    let late = shell.wait_for_line_since(1, "late", SOON, |line| line.text == "late").await;
    assert_eq!(late.stream, super::output::Stream::Stdout);
    assert!(shell.wait(SOON).await.success());
}

#[tokio::test]
#[should_panic(expected = "ended without saying “never”; its last output:\n  | only this")]
async fn a_line_that_cannot_come_any_more_is_not_waited_for() {
    shell("echo only this").wait_for_line("never", SOON, |line| line == "never").await;
}

#[tokio::test]
async fn a_flood_of_output_neither_blocks_the_process_nor_stays_in_memory() {
    let mut shell = shell("i=0; while [ $i -lt 20000 ]; do echo $i; i=$((i+1)); done; head -c 300000 /dev/zero; echo; echo end");
    shell.wait_for_line("end", SOON * 3, |line| line == "end").await;
    let lines = shell.lines();
    assert!(lines.len() <= 4096, "{} lines kept", lines.len());
    assert!(lines.iter().all(|line| line.len() <= 16 * 1024));
    assert_eq!(shell.mark(), 20_002, "every line was read, the cut one as one");
}

#[tokio::test]
async fn kill_9_ends_only_the_process_and_drop_the_rest_of_its_group() {
    let mut parent = shell("sleep 1000 & echo child $!; wait");
    let child = number(&parent.wait_for_line("child", SOON, |line| line.starts_with("child")).await);
    parent.kill_9();
    signal::kill(child, None).expect("an orphan survives kill -9 of its parent");
    drop(parent);
    gone(child).await;
}

#[tokio::test]
async fn what_a_killed_test_started_dies_too() {
    // The guard's own death of natural causes: a second test process that is killed at once.
    let mut test = Command::new(std::env::current_exe().unwrap());
    test.args(["--exact", "harness::proof::helper_that_never_ends", "--ignored", "--nocapture"]);
    let mut test = Process::spawn("a test", test).unwrap();
    let line = test.wait_for_line("its child", SOON, |line| line.contains("started ")).await;
    test.kill_9();
    gone(number(&line)).await;
}

#[tokio::test]
#[ignore = "started by what_a_killed_test_started_dies_too, which kills it"]
async fn helper_that_never_ends() {
    let mut shell = shell("echo started $$; sleep 1000");
    eprintln!("{}", shell.wait_for_line("started", SOON, |line| line.starts_with("started")).await);
    shell.wait(SOON * 100).await;
}

#[tokio::test]
async fn a_frozen_process_says_nothing_until_thawed_and_can_be_dropped_frozen() {
    let mut shell = shell("while :; do echo tick; sleep 0.01; done");
    shell.wait_for_line("tick", SOON, |line| line == "tick").await;
    shell.freeze().await;
    let mark = shell.mark();
    shell.thaw();
    shell.wait_for_line_since(mark, "tick after the thaw", SOON, |line| line.text == "tick").await;
    shell.freeze().await;
    let pid = shell.pid();
    drop(shell);
    gone(pid).await;
}

#[tokio::test]
async fn sigterm_reaches_a_trap_and_the_exit_code_comes_back() {
    let mut shell = shell("trap 'echo bye; exit 7' TERM; echo ready; while :; do sleep 0.01; done");
    shell.wait_for_line("ready", SOON, |line| line == "ready").await;
    assert!(shell.ended().is_none());
    shell.terminate();
    assert_eq!(shell.wait(SOON).await.code(), Some(7));
    shell.wait_for_line("bye", SOON, |line| line == "bye").await;
}

#[tokio::test]
async fn memory_is_read_in_bytes() {
    let mut shell = shell("echo empty; x=$(head -c 20000000 /dev/zero | tr '\\0' x); echo full; sleep 1000; echo ${#x}");
    // Not before it has spoken: between fork and the loader's end there is next to nothing.
    shell.wait_for_line("empty", SOON, |line| line == "empty").await;
    let rss = shell.rss();
    assert!(rss >= 100 * 1024, "{rss} bytes are too few for a shell");
    shell.wait_for_line("full", SOON, |line| line == "full").await;
    assert!(shell.peak_rss() >= 20_000_000, "{} bytes cannot hold 20 MB", shell.peak_rss());
}

#[tokio::test]
#[should_panic(expected = "the moon: not within 30ms; last seen: waning")]
async fn a_state_that_never_comes_is_reported_as_last_seen() {
    poll_state("the moon", Duration::from_millis(30), async || Err::<(), _>("waning".into())).await;
}

#[tokio::test]
#[should_panic(expected = "a look still hung after 30ms; the last that ended saw: half")]
async fn a_look_that_hangs_is_reported_as_such() {
    let mut looks = 0;
    poll_state("the moon", Duration::from_millis(30), async || {
        looks += 1;
        if looks > 1 {
            std::future::pending::<()>().await;
        }
        Err::<(), _>("half".into())
    })
    .await;
}

#[tokio::test]
async fn a_command_gives_code_data_and_talk_apart() {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "echo '{\"n\":1}'; echo talk >&2; echo \"[$HOROS_TEST_SEED]\" >&2; exit 3"]);
    let outcome = cli::run(command).await.expect_code(3);
    assert_eq!(outcome.json()["n"], 1);
    assert_eq!(outcome.stderr, "talk\n[]\n", "the environment of the test run does not leak in");
}

#[test]
fn directories_addresses_and_amounts() {
    let dir = data_dir();
    let path = dir.path().to_owned();
    assert!(path.is_dir());
    drop(dir);
    assert!(!path.exists());
    let there = free_address([127, 0, 0, 3]);
    assert_eq!(there.ip().to_string(), "127.0.0.3");
    let tcp = std::net::TcpListener::bind(there).unwrap();
    assert_ne!(free_address([127, 0, 0, 3]), there, "a port that TCP has is not free");
    drop(tcp);
    assert!([1, 2].contains(&scale(1, 2)));
}

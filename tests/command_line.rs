//! What scripts and people rely on: help with examples, completions that a shell accepts, documented
//! exit codes, and JSON whose keys do not change by accident.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::harness::node::{text, walk};
use crate::harness::{Cluster, cli, outside};

const COMMANDS: &[&str] = &[
    "init",
    "identity request",
    "identity sign",
    "identity install",
    "identity revoke",
    "identity list",
    "policy show",
    "keys create",
    "keys list",
    "keys revoke",
    "keys refused",
    "tokens issue",
    "tokens revoke",
    "tokens trust",
    "tokens distrust",
    "tokens issuers",
    "routes list",
    "routes set",
    "routes get",
    "routes set-strategy",
    "routes delete",
    "routes inspect",
    "routes history",
    "routes rollback",
    "routes import",
    "breaker list",
    "breaker open",
    "breaker close",
    "breaker auto",
    "breaker reset",
    "tools list",
    "tools show",
    "tools set",
    "tools remove",
    "tools enable",
    "tools disable",
    "tools history",
    "tools rollback",
    "tools allow",
    "tools deny",
    "tools drop-rule",
    "tools policy",
    "tools status",
    "tools audit",
    "tools call",
    "tools import",
    "sync status",
    "sync verify",
    "sync snapshot",
    "sync filter check",
    "sync detach",
    "sync rollback",
    "sync resume",
    "maintenance",
    "up",
    "bo",
    "fo",
    "tree",
    "nodes",
    "status",
    "actors",
    "send",
    "call",
    "mcp",
    "restart",
    "crash",
    "recorder",
    "doctor",
    "backup",
    "restore",
    "completions",
];

#[tokio::test]
async fn every_command_explains_itself_with_examples_and_the_exit_codes_are_listed() {
    let all = cli::horos(&["--help"]).await.expect_code(0);
    for code in ["0 ", "1 ", "2 ", "3 ", "4 ", "5 ", "6 ", "70 ", "130 "] {
        assert!(all.stdout.lines().any(|line| line.trim_start().starts_with(code)), "{code}: {}", all.stdout);
    }
    for command in COMMANDS {
        let args: Vec<_> = command.split(' ').chain(["--help"]).collect();
        let help = cli::horos(&args).await.expect_code(0);
        assert!(help.stdout.contains("Examples:") && help.stdout.contains(&format!("horos {}", args[0])), "{command}: {}", help.stdout);
        assert!(!help.stdout.contains("{bin}"), "{command}: {}", help.stdout);
        assert!(all.stdout.contains(&format!("  {} ", args[0])), "{command} is not among the commands");
    }
    // Every command is in the list above, or it is not promised anything.
    let listed = all.stdout.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| line.starts_with("  "));
    for line in listed.filter(|line| !line.starts_with("   ")) {
        let name = line.split_whitespace().next().unwrap();
        assert!(name == "help" || COMMANDS.iter().any(|it| it.split(' ').next() == Some(name)), "{name} is not tested");
    }
}

#[tokio::test]
async fn completions_are_accepted_by_the_shells_there_are() {
    for (shell, check) in [("bash", &["-n"][..]), ("zsh", &["-n"]), ("fish", &["--no-execute"])] {
        let script = cli::horos(&["completions", shell]).await.expect_code(0).stdout;
        assert!(script.contains("horos") && script.contains("recorder"), "{shell}");
        let dir = crate::harness::data_dir();
        let file = dir.path().join("completions");
        std::fs::write(&file, script).unwrap();
        match Command::new(shell).args(check).arg(&file).stdin(Stdio::null()).output() {
            Ok(told) => assert!(told.status.success(), "{shell}: {}", String::from_utf8_lossy(&told.stderr)),
            Err(error) => eprintln!("{shell} is not here to judge: {error}"),
        }
    }
}

#[tokio::test]
async fn exit_codes_say_whether_to_try_again() {
    let cluster = Cluster::of(outside::drill().await);
    let mut bo = cluster.first("bo-1", [127, 0, 0, 1]).await;
    bo.start().await;
    let echo = r#"{"echo":{"n":1}}"#;
    let call = async |address: &str, message: &str| bo.ask(&["call", address, message]).await;
    call("faulty@bo", echo).await.expect_code(0);
    call("faulty@bo", r#"{"fail":{}}"#).await.expect_code(1);
    // Nothing is sent that cannot be right.
    call("faulty@bo", "no json").await.expect_code(2);
    call("faulty@bo@x", echo).await.expect_code(2);
    let misused = cluster.run(&["call", "--json"]).await.expect_code(2);
    let told: Value = serde_json::from_str(&misused.stderr).unwrap();
    assert!(told["error"].is_string() && told["next"].is_string() && told["exit"] == 2 && misused.stdout.is_empty(), "{told}");
    // Refused, with what there is instead.
    let unknown = call("faulty@bo", r#"{"ecco":{"n":1}}"#).await.expect_code(3);
    assert!(unknown.stderr.contains("ecco"), "{}", unknown.stderr);
    let wrong = call("faulty@bo", r#"{"echo":{"n":"one"}}"#).await.expect_code(3);
    let told: Value = serde_json::from_str(&wrong.stderr).unwrap();
    assert!(told["error"].is_string() && told["next"].is_string() && told["exit"] == 3, "{told}");
    call("nobody@bo-1", echo).await.expect_code(3);
    call("faulty@bo", r#"{"panic":{}}"#).await.expect_code(4);
    // Nobody of that role, nobody of that name, nobody at all.
    call("faulty@fo", echo).await.expect_code(5);
    call("faulty@bo-9", echo).await.expect_code(5);
    let nobody = crate::harness::free_address([127, 0, 0, 1]).to_string();
    let args = ["--json", "--via", &nobody, "--identity", text(&bo.operator), "tree"];
    cluster.run(&args).await.expect_code(5);
    let empty = crate::harness::data_dir();
    bo.ask_as(empty.path(), &["tree"]).await.expect_code(2);
    // A cast is done when it is taken.
    bo.ask(&["send", "faulty@bo", echo]).await.expect_code(0);
    bo.ask(&["send", "nobody@bo-1", echo]).await.expect_code(3);
}

fn keys(value: &Value) -> BTreeSet<&str> {
    value.as_object().unwrap_or_else(|| panic!("no object: {value}")).keys().map(String::as_str).collect()
}

/// Adding a key is a decision, taking one away or renaming it breaks scripts: both are made here first.
#[tokio::test]
async fn the_keys_of_json_output_are_these() {
    const NODE: &[&str] = &["addresses", "health", "incarnation", "missing", "node", "tree"];
    const NODES: &[&str] = &["addresses", "health", "incarnation", "missing", "node", "status", "tree"];
    const STATUS: &[&str] = &["conditions", "node", "ready", "resident", "uptime_s", "version"];
    const ID: &[&str] = &["cluster", "name", "role"];
    const ACTOR: &[&str] = &[
        "busy_with",
        "children",
        "failed",
        "handled",
        "handling",
        "kind",
        "last_error",
        "last_progress_ms",
        "mailbox",
        "mailbox_limit",
        "name",
        "protocol",
        "refused",
        "restarts",
        "state",
        "wait",
    ];
    const QUANTILES: &[&str] = &["p50_us", "p99_us"];
    const OFFERED: &[&str] = &["methods", "name", "node", "protocol", "version"];
    const RECORDING: &[&str] = &["at_death", "cause", "current"];
    const RECORDED: &[&str] = &["ago_us", "method", "outcome", "sender", "size", "took_us", "trace", "waited_us"];
    const MADE: &[&str] = &["authority", "config", "node", "operator", "request"];
    const ROW: &[&str] = &["allowed", "callee", "caller", "method", "protocol"];
    let is = |value: &Value, golden: &[&str]| assert_eq!(keys(value), golden.iter().copied().collect(), "{value}");

    let cluster = Cluster::of(outside::drill().await);
    let mut bo = cluster.first("bo-1", [127, 0, 0, 1]).await;
    bo.start().await;
    bo.call("faulty@bo", &json!({ "echo": { "n": 1 } })).await;

    let trees = bo.trees().await;
    is(&trees[0], NODE);
    is(&trees[0]["node"], ID);
    for (_, actor) in walk(&trees[0]["tree"]) {
        is(actor, ACTOR);
        is(&actor["wait"], QUANTILES);
        is(&actor["handling"], QUANTILES);
    }
    let nodes = bo.ask(&["nodes"]).await.expect_code(0).json();
    is(&nodes[0], NODES);
    is(&nodes[0]["status"], STATUS);
    assert_eq!(nodes[0]["tree"], Value::Null);
    let actors = bo.ask(&["actors"]).await.expect_code(0).json();
    is(&actors[0], OFFERED);
    let recording = bo.ask(&["recorder", "faulty@bo-1"]).await.expect_code(0).json();
    is(&recording, RECORDING);
    is(&recording["current"][0], RECORDED);
    let policy = bo.ask(&["policy", "show"]).await.expect_code(0).json();
    is(&policy[0], ROW);
    let data = cluster.path().join("another");
    let args = ["--json", "init", "--data", text(&data), "--cluster", "shop", "--role", "fo", "--request"];
    is(&cluster.run(&args).await.expect_code(0).json(), MADE);
    // The enumerations that scripts compare with.
    let kinds: BTreeSet<_> = walk(&trees[0]["tree"]).into_iter().map(|(_, actor)| actor["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, BTreeSet::from(["one_for_one", "rest_for_one", "service", "worker"]));
    assert_eq!((&trees[0]["health"], &trees[0]["tree"]["state"]), (&json!("here"), &json!("running")));
}

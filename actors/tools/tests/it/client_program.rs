//! Programs that are started, called and brought to their end; and those that behave badly.

use std::{collections::BTreeMap, fs, os::unix::fs::PermissionsExt as _, time::Duration};

use horos_egress::{Egress, Options as EgressOptions};
use horos_router::strategy::mcp::Endpoint;
use horos_supervision::{Supervisor, SupervisorHandle};
use horos_tools::client::{Client, ClientError, Clients, INHERITED, Options, Program, Programs, Times, Ways};
use horos_wire::{NoEffect, Unknown};
use serde_json::{Value, json};

use super::{
    client::{call, within},
    client_world::{LONG, eventually, times, until},
};

const SERVER: &str = include_str!("client_program/server.sh");

/// The server of a generation, which ends in a way of its own.
fn server(age: &str, ends: &str) -> Program {
    Program::new("sh", ["-c", SERVER, "server", age, ends])
}

struct World {
    programs: Programs,
    clients: Clients,
    _supervisor: SupervisorHandle,
}

impl World {
    async fn new(programs: &[(&str, Program)]) -> Self {
        let known: BTreeMap<_, _> = programs.iter().map(|(name, program)| (name.parse().unwrap(), program.clone())).collect();
        let programs = Programs::new(known);
        let clients = Clients::new(Ways::new(Egress::new(EgressOptions::default()).unwrap()).starting(programs.clone()));
        let supervisor = Supervisor::start(clients.supervisor(), None).await.unwrap();
        Self { programs, clients, _supervisor: supervisor }
    }

    fn client(&self, name: &str) -> Client {
        let times = Times { parting: Duration::from_millis(200), ..times() };
        let endpoint: Endpoint = format!("stdio:{name}").parse().unwrap();
        self.clients.client(endpoint, None, Options { times, ..Options::default() }).unwrap()
    }
}

async fn one(program: Program) -> (World, Client) {
    let world = World::new(&[("it", program)]).await;
    let client = world.client("it");
    (world, client)
}

/// What a tool says in words.
async fn text(client: &Client, tool: &str) -> String {
    let result = call(client, tool, json!({})).await.unwrap();
    result.content[0].as_text().unwrap().text.clone()
}

async fn number(client: &Client, tool: &str) -> i32 {
    text(client, tool).await.parse().unwrap()
}

/// Whether it runs; what is only not reaped yet does not.
fn runs(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
}

#[tokio::test]
async fn a_program_is_started_by_the_first_call_and_spoken_to_as_it_speaks() {
    for (age, version) in [("old", "2025-11-25"), ("nameless", "2025-11-25"), ("strict", "2025-11-25"), ("new", "2026-07-28")] {
        let (_world, client) = one(server(age, "")).await;
        assert_eq!(client.status().state, "idle", "nothing is started before it is called");
        let result = call(&client, "hello", json!({})).await.unwrap();
        assert_eq!(result.structured_content, Some(json!({"hello": "there"})), "{age}");
        assert_eq!(client.tools(until(LONG)).await.unwrap().len(), 1);
        let status = client.status();
        assert_eq!((status.version.as_deref(), status.connections, &*status.endpoint), (Some(version), 1, "stdio:it"), "{age}");
        let pid = number(&client, "pid").await;
        assert_eq!(number(&client, "pid").await, pid, "{age}: one process for all calls");
    }
}

#[tokio::test]
async fn it_knows_of_the_nodes_environment_what_is_named_and_of_its_secrets_its_own() {
    let directory = tempfile::tempdir().unwrap();
    let secret = directory.path().join("token");
    fs::write(&secret, "s3cret\n").unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    let program = server("new", "").with("MODE", "x").with_secret("TOKEN", directory.path(), "token").in_directory(directory.path());
    assert!(!format!("{program:?}").contains("s3cret"));
    let (_world, client) = one(program).await;
    assert!(std::env::vars().any(|(name, _)| name.starts_with("CARGO")), "there is something to be kept from it");
    let names = text(&client, "names").await;
    let shell = ["MODE", "TOKEN", "PWD", "OLDPWD", "SHLVL", "_"];
    let strange: Vec<_> = names.split_whitespace().filter(|name| !INHERITED.contains(name) && !shell.contains(name)).collect();
    assert!(strange.is_empty() && names.contains("MODE"), "{strange:?} of {names}");
    assert_eq!(text(&client, "token").await, "s3cret");
    assert_eq!(fs::canonicalize(text(&client, "where").await).unwrap(), fs::canonicalize(directory.path()).unwrap());
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o644)).unwrap();
    let (_other, exposed) = one(server("new", "").with_secret("TOKEN", directory.path(), "token")).await;
    let error = call(&exposed, "token", json!({})).await.unwrap_err().to_string();
    assert!(error.contains("may be read by others") && !error.contains("s3cret"), "{error}");
}

#[tokio::test]
async fn it_ends_with_the_last_who_names_it_and_all_that_it_has_started_with_it() {
    for ends in ["", "patient", "deaf"] {
        let (world, client) = one(server("new", ends)).await;
        let (pid, left) = (number(&client, "pid").await, number(&client, "leave").await);
        assert!(runs(pid) && runs(left), "{ends:?}");
        drop(client);
        eventually(|| (!runs(pid) && !runs(left), (ends, pid, left))).await;
        world.programs.ended(LONG).await;
    }
}

#[tokio::test]
async fn it_ends_with_the_actors_though_it_was_in_the_middle_of_a_call() {
    let (world, client) = one(server("new", "deaf")).await;
    let pid = number(&client, "pid").await;
    let in_hand = tokio::spawn({
        let client = client.clone();
        async move { call(&client, "stuck", json!({})).await }
    });
    eventually(|| (client.status().in_flight == 1, client.status())).await;
    world._supervisor.stop().await;
    in_hand.abort();
    let _ = in_hand.await;
    drop(client);
    world.programs.ended(LONG).await;
    assert!(!runs(pid), "when it is said to have ended it has");
}

#[tokio::test]
async fn it_ends_with_the_runtime_at_the_latest() {
    let left = tokio::task::spawn_blocking(|| {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(async {
            let (world, client) = one(server("new", "deaf")).await;
            let pids = [number(&client, "pid").await, number(&client, "leave").await];
            std::mem::forget((world, client));
            pids
        })
    });
    let left = left.await.unwrap();
    eventually(|| (left.iter().all(|pid| !runs(*pid)), left)).await;
}

#[tokio::test]
async fn one_that_dies_leaves_its_call_unknown_with_why_and_is_started_again() {
    for age in ["old", "new"] {
        let (_world, client) = one(server(age, "")).await;
        let (pid, left) = (number(&client, "pid").await, number(&client, "leave").await);
        let error = call(&client, "die", json!({})).await.unwrap_err();
        let ClientError::Unknown { why: Unknown::PeerLost(why), .. } = &error else { panic!("{age} {error:?}") };
        assert!(why.contains("stdio:it") && why.contains("exit status: 3"), "{why}");
        let again = number(&client, "pid").await;
        assert!(again != pid && client.status().connections == 2, "{age}: {again}");
        eventually(|| (!runs(left), left)).await;
    }
}

#[tokio::test]
async fn one_that_does_not_start_or_ends_at_once_has_had_no_effect_and_is_tried_later_and_later() {
    let ended = Program::new("sh", ["-c", "exit 7"]);
    let missing = Program::new("/nowhere/server", [""; 0]);
    let elsewhere = server("new", "").in_directory("/nowhere");
    let world = World::new(&[("ended", ended), ("missing", missing), ("elsewhere", elsewhere)]).await;
    for (name, said) in [("ended", "exit status: 7"), ("missing", "cannot be started"), ("elsewhere", "cannot be started")] {
        let client = world.client(name);
        let error = within(&client, "hello", json!({}), Duration::from_secs(1)).await.unwrap_err();
        let ClientError::NoEffect { why: NoEffect::NoRoute(why), retry_after: Some(_) } = &error else { panic!("{name} {error:?}") };
        assert!(why.contains(said), "{name}: {why}");
        assert_eq!(client.status().connections, 0);
        assert!(client.status().last_error.unwrap().contains(said));
    }
    let unknown = world.client("other");
    let error = within(&unknown, "hello", json!({}), Duration::from_secs(1)).await.unwrap_err().to_string();
    assert!(error.contains("mcp.programs.other.command"), "{error}");
}

#[tokio::test]
async fn what_is_no_message_is_passed_over_until_it_is_too_much() {
    let (_world, client) = one(server("new", "")).await;
    assert_eq!(text(&client, "noise").await, "noisy");
    assert_eq!(text(&client, "quoted").await, "quoted", "some make texts of numbers");
    assert_eq!(text(&client, "wordy").await, "said", "what it says beside is read, and holds nothing up");
    let wrong = call(&client, "wrong", json!({})).await.unwrap_err();
    assert!(matches!(&wrong, ClientError::Unknown { why: Unknown::MalformedReply(_), .. }), "{wrong:?}");
    assert_eq!(client.status().connections, 1, "the session is none the worse");
    let error = call(&client, "garbage", json!({})).await.unwrap_err();
    let ClientError::Unknown { why: Unknown::PeerLost(why), .. } = &error else { panic!("{error:?}") };
    assert!(why.contains("no message: not { json"), "{why}");
    assert_eq!(call(&client, "hello", json!({})).await.unwrap().structured_content, Some(json!({"hello": "there"})));
}

#[tokio::test]
async fn an_answer_that_is_too_large_is_its_own_calls_and_disturbs_no_other() {
    let (_world, client) = one(server("old", "")).await;
    client.connected(until(LONG)).await.unwrap();
    let other = tokio::spawn({
        let client = client.clone();
        async move { within(&client, "silent", json!({}), Duration::from_secs(3)).await }
    });
    eventually(|| (client.status().in_flight == 1, client.status())).await;
    let error = call(&client, "large", json!({})).await.unwrap_err();
    assert!(matches!(&error, ClientError::Unknown { why: Unknown::ReplyTooLarge(_), .. }), "{error:?}");
    assert_eq!(text(&client, "quoted").await, "quoted");
    assert_eq!(client.status().connections, 1);
    assert_eq!(other.await.unwrap().unwrap_err(), Unknown::DeadlinePassed.into(), "and one that never comes is late");
}

#[tokio::test]
async fn one_that_reads_nothing_costs_no_more_than_what_may_wait() {
    let (_world, client) = one(server("new", "deaf")).await;
    let pid = number(&client, "pid").await;
    let big: Value = json!({"text": "x".repeat(9 << 20)});
    let calls = (0..9).map(|at| {
        let (client, big) = (client.clone(), big.clone());
        tokio::spawn(async move { within(&client, if at == 0 { "stuck" } else { "hello" }, big, Duration::from_secs(2)).await })
    });
    let mut refused = 0;
    for called in calls.collect::<Vec<_>>() {
        match called.await.unwrap().unwrap_err() {
            ClientError::NoEffect { why: NoEffect::Overloaded(_), .. } => refused += 1,
            ClientError::Unknown { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(refused >= 2, "nine times 9 MiB is more than 64 MiB: {refused}");
    drop(client);
    eventually(|| (!runs(pid), pid)).await;
}

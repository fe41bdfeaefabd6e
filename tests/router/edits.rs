//! Edits by whichever program: in force on every node, one at a time, and kept over restarts.

use std::time::Duration;

use serde_json::json;

use super::world::{SOON, World, becomes, breaker, once, served, sqlite3, tables};
use crate::harness::{cli, poll_state, scale};

#[tokio::test]
async fn a_row_edited_by_the_shell_is_in_force_on_every_node_and_a_breaker_forced_by_sql_holds_on_all_until_it_is_lifted() {
    let world = World::start().await;
    let file = tables(&world.bo);
    sqlite3(
        &file,
        "INSERT INTO routes (service_name, strategy, endpoint) VALUES ('stock', 'quic', 'c1@bo-1'), ('other', 'quic', 'c9@bo-1')",
    );
    for (endpoint, by) in [("c1@bo-1", "c1@bo-1"), ("c2@fo-1", "c2@fo-1"), ("c3@bo-1", "c3@bo-1")] {
        sqlite3(&file, &format!("UPDATE routes SET endpoint = '{endpoint}' WHERE service_name = 'stock'"));
        for node in world.nodes() {
            becomes(node, "stock", by).await;
        }
    }
    for round in 0..scale(2, 20) {
        sqlite3(&file, "INSERT INTO breakers (service_name, forced) VALUES ('stock', 'open')");
        for node in world.nodes() {
            becomes(node, "stock", "CircuitOpen").await;
            assert_eq!(served(node, "other").await, "c9@bo-1", "round {round}: another service is left alone");
            let found = breaker(&world.bo, &node.name, "stock").await.expect("it is listed");
            assert_eq!(found["forced"], "open", "{found}");
        }
        let lift = if round % 2 == 0 { "DELETE FROM breakers" } else { "UPDATE breakers SET forced = NULL" };
        sqlite3(&file, lift);
        for node in world.nodes() {
            becomes(node, "stock", "c3@bo-1").await;
        }
        sqlite3(&file, "DELETE FROM breakers");
    }
    sqlite3(&file, "DELETE FROM routes WHERE service_name = 'stock'");
    for node in world.nodes() {
        becomes(node, "stock", "NoSuchActor").await;
    }
}

#[tokio::test]
async fn an_open_breaker_is_open_after_a_restart_and_after_a_kill_and_on_no_other_node() {
    let mut world = World::start().await;
    let config = json!({ "breaker": { "failures": 2, "open_ms": 3_600_000 } });
    world.route("stock", "quic", Some("wild@bo-1"), &config);
    for node in world.nodes() {
        becomes(node, "stock", "wild@bo-1").await;
    }
    for _ in 0..2 {
        assert_eq!(once(&world.fo, "stock", json!("fall"), 5_000).await["why"], "ActorDied");
        becomes(&world.bo, "stock", "wild@bo-1").await;
    }
    assert_eq!(served(&world.fo, "stock").await, "CircuitOpen");
    world.fo.process().terminate();
    world.fo.process().wait(Duration::from_secs(20)).await;
    for restart in ["stopped", "killed"] {
        world.fo.start().await;
        world.bo.sees("fo-1", "up").await;
        // Until the row is in force the service is an actor of that name, which is not there.
        poll_state(&format!("{restart}: the route is in force"), SOON, async || match served(&world.fo, "stock").await {
            found if found == "CircuitOpen" => Ok(()),
            found => {
                assert_eq!(found, "NoSuchActor", "{restart}: an open breaker let a call through");
                Err(found)
            }
        })
        .await;
        let found = breaker(&world.bo, "fo-1", "stock").await.expect("it is listed");
        assert_eq!((&found["state"], found["until_ms"].is_u64()), (&json!("open"), true), "{restart}: {found}");
        assert_eq!(served(&world.bo, "stock").await, "wild@bo-1", "what one node sees is its own");
        world.fo.kill();
    }
    world.fo.start().await;
    world.bo.sees("fo-1", "up").await;
    world.bo.ask(&["breaker", "reset", "stock"]).await.expect_code(0);
    becomes(&world.fo, "stock", "wild@bo-1").await;
}

#[tokio::test]
async fn of_two_processes_that_edit_a_route_at_once_exactly_one_wins() {
    let world = World::start().await;
    let (mut version, rounds) = ("absent".to_owned(), scale(6, 200));
    let mut wins = [0_u32; 2];
    for round in 0..rounds {
        let set = |number: usize| {
            let node = world.nodes()[number];
            let endpoint = format!("c{}@{}", round % 100, node.name);
            let command = node.command(
                &node.operator,
                &["routes", "set", "stock", "--strategy", "quic", "--endpoint", &endpoint, "--expect", &version, "--why", "a race"],
            );
            async move { (cli::run(command).await, endpoint) }
        };
        let (first, second) = tokio::join!(set(0), set(1));
        let winners: Vec<_> = [first, second].into_iter().enumerate().filter(|(_, (outcome, _))| outcome.code == Some(0)).collect();
        let [(number, (outcome, endpoint))] = &winners[..] else { panic!("round {round}: {winners:?}") };
        wins[*number] += 1;
        let made = outcome.json();
        assert_eq!((&made["route"]["endpoint"], made["edit"].as_i64()), (&json!(endpoint), Some(round + 1)), "{made}");
        let there = world.fo.ask(&["routes", "get", "stock"]).await.expect_code(0).json();
        assert_eq!(there, made["route"], "round {round}: the winner's is there");
        version = there["version"].as_str().map_or_else(|| there["version"].to_string(), ToOwned::to_owned);
    }
    let history = world.bo.ask(&["routes", "history", "stock", "--limit", "1000"]).await.expect_code(0).json();
    assert_eq!(history.as_array().map(Vec::len), Some(rounds as usize), "nobody else's edit is there");
    assert!(history.as_array().unwrap().iter().all(|edit| edit["why"] == "a race"));
    eprintln!("{rounds} races, won by {wins:?}");
}

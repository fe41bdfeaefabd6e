//! Keys: shown once, counted on every node at their first use, and gone from every node within a second.

use serde_json::{Value, json};
use std::time::Duration;

use super::{refused, served};
use crate::harness::http::{Ask, Session, Speaks};
use crate::harness::{Cluster, Node, outside, poll_state, scale};

/// The status of `/drill/echo` under `key` at `node`.
async fn status(session: &mut Session, key: &str) -> u16 {
    session.ask(&Ask::get("/drill/echo").key(key)).await.unwrap().status
}

async fn becomes(node: &Node, key: &str, wanted: u16, within: Duration) {
    let mut session = Session::open(&node.site(), Speaks::Http1).await.unwrap();
    poll_state(&format!("{}: {wanted}", node.name), within, async || match status(&mut session, key).await {
        seen if seen == wanted => Ok(()),
        seen => Err(seen.to_string()),
    })
    .await;
}

async fn listed(node: &Node, id: &str) -> Value {
    let keys = node.ask(&["keys", "list", "--all"]).await.expect_code(0).json();
    keys.as_array().unwrap().iter().find(|key| key["id"] == id).unwrap_or_else(|| panic!("{id} is not in {keys}")).clone()
}

#[tokio::test]
async fn a_key_is_shown_once_and_kept_nowhere() {
    let (_cluster, mut bo) = served(|_| ()).await;
    let made = bo.key_record(&["drill", "drill:more"], &["--per-minute", "100"]).await;
    let secret = made["secret"].as_str().unwrap();
    let digits = secret.strip_prefix("hk_").expect("keys say what they are");
    assert_eq!(digits.len(), 64, "{secret}");
    assert!(digits.bytes().all(|digit| digit.is_ascii_hexdigit()), "{secret}");
    becomes(&bo, secret, 200, Duration::from_secs(1)).await;

    let id = made["key"]["id"].as_str().unwrap();
    let record = listed(&bo, id).await;
    assert_eq!((&record["scopes"], &record["state"]), (&json!(["drill", "drill:more"]), &json!("active")), "{record}");
    // 90 days unless said otherwise.
    let time = |name: &str| record[name].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    assert_eq!((time("expires_at") - time("created_at")).total(jiff::Unit::Hour).unwrap().round(), 90.0 * 24.0, "{record}");

    // The text is in no answer after the first, in no log, and in no file of the node.
    let list = bo.ask(&["keys", "list", "--all"]).await.expect_code(0);
    assert!(!list.stdout.contains(digits), "{}", list.stdout);
    let said = bo.process().lines().join("\n");
    assert!(!said.contains(digits), "{said}");
    bo.process().terminate();
    bo.process().wait(Duration::from_secs(15)).await;
    let mut files = 0;
    let mut dirs = vec![bo.data.clone()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
            if entry.file_type().unwrap().is_dir() {
                dirs.push(entry.path());
            } else if entry.file_type().unwrap().is_file() {
                let bytes = std::fs::read(entry.path()).unwrap();
                let held = bytes.windows(digits.len()).any(|window| window == digits.as_bytes());
                assert!(!held, "{} holds the key", entry.path().display());
                files += 1;
            }
        }
    }
    assert!(files > 3, "the node has files");

    // What is stored opens the same door after a restart.
    bo.start().await;
    becomes(&bo, secret, 200, Duration::from_secs(2)).await;
}

#[tokio::test]
async fn a_key_without_a_scope_or_with_an_end_that_is_none_is_not_made() {
    let (_cluster, bo) = served(|_| ()).await;
    let create = ["keys", "create", "--name", "test", "--owner", "tests"];
    bo.ask(&create).await.expect_code(2);
    bo.ask(&[&create[..], &["--scope", "Not A Scope"]].concat()).await.expect_code(2);
    for end in ["tomorrow", "-1d", "2020-01-01T00:00:00Z", "9999d"] {
        let end = format!("--expires={end}");
        let refused = bo.ask(&[&create[..], &["--scope", "drill", &end]].concat()).await;
        assert!(matches!(refused.code, Some(1..=3)), "{refused:?}");
    }
    assert_eq!(bo.ask(&["keys", "list", "--all"]).await.expect_code(0).json(), json!([]));
}

#[tokio::test]
async fn only_operators_make_and_revoke_keys_and_viewers_list_them() {
    let (cluster, bo) = served(|_| ()).await;
    let viewer = cluster.person("viewer", "vera", &[]).await;
    let id = bo.key_record(&["drill"], &[]).await["key"]["id"].as_str().unwrap().to_owned();
    let list = bo.ask_as(&viewer, &["keys", "list"]).await.expect_code(0).json();
    assert_eq!(list[0]["id"], json!(id), "{list}");
    bo.ask_as(&viewer, &["keys", "create", "--name", "n", "--owner", "o", "--scope", "drill"]).await.expect_code(3);
    bo.ask_as(&viewer, &["keys", "revoke", &id]).await.expect_code(3);
    assert_eq!(listed(&bo, &id).await["state"], "active");
}

#[tokio::test]
async fn an_expired_key_opens_nothing_and_is_counted() {
    let (_cluster, bo) = served(|_| ()).await;
    let metrics = bo.key(&["metrics"]).await;
    let made = bo.key_record(&["drill"], &["--expires", "2s"]).await;
    let (id, secret) = (made["key"]["id"].as_str().unwrap(), made["secret"].as_str().unwrap());
    becomes(&bo, secret, 200, Duration::from_secs(1)).await;
    becomes(&bo, secret, 401, Duration::from_secs(4)).await;
    let record = poll_state("the owner knows that it was shown after its end", Duration::from_secs(5), async || {
        let record = listed(&bo, id).await;
        if record["refused"].as_u64() >= Some(1) { Ok(record) } else { Err(record.to_string()) }
    })
    .await;
    assert_eq!(record["state"], "expired", "{record}");
    assert!(refused(&bo, &metrics, "unauthenticated").await >= 1.0);
}

#[tokio::test]
async fn keys_of_another_cluster_and_forged_ones_open_nothing() {
    let (_cluster, bo) = served(|bo| bo.set("HTTP_LIMITS__GUESSES_PER_ADDRESS", "1000")).await;
    let (_other, stranger) = served(|_| ()).await;
    let foreign = stranger.key(&["drill"]).await;
    let own = bo.key(&["drill"]).await;
    let mut session = Session::open(&bo.site(), Speaks::Http2).await.unwrap();
    let upper = own.to_uppercase();
    let flipped = {
        let last = if own.ends_with('0') { '1' } else { '0' };
        format!("{}{last}", &own[..own.len() - 1])
    };
    for forged in [&foreign, &own[..own.len() - 1], &format!("{own}0"), &flipped, &upper, &own[3..], "hk_", "", &"hk_x".repeat(20)] {
        assert_eq!(status(&mut session, forged).await, 401, "{forged}");
    }
    // Two at once prove nobody either: which of them counts is not for a client to choose.
    let both = Ask::get("/drill/echo").key(&own).header("authorization", &format!("Bearer {foreign}"));
    let answer = session.ask(&both).await.unwrap();
    assert!(matches!(answer.status, 400 | 401), "{answer:?}");
    assert_eq!(status(&mut session, &own).await, 200);
}

#[tokio::test]
async fn with_the_owner_away_others_go_on_with_what_they_know_and_edits_are_refused() {
    let (_cluster, mut bo, mut fo) = Cluster::pair(outside::drill().await).await;
    let made = bo.key_record(&["drill"], &[]).await;
    let (id, secret) = (made["key"]["id"].as_str().unwrap(), made["secret"].as_str().unwrap());
    let gone = bo.key(&["drill"]).await;
    becomes(&fo, secret, 200, Duration::from_secs(3)).await;
    becomes(&fo, &gone, 200, Duration::from_secs(3)).await;
    bo.ask(&["keys", "revoke", &gone[..12]]).await.expect_code(0);
    becomes(&fo, &gone, 401, Duration::from_secs(3)).await;

    bo.kill();
    fo.sees("bo-1", "down").await;
    becomes(&fo, secret, 200, Duration::from_secs(1)).await;
    becomes(&fo, &gone, 401, Duration::from_secs(1)).await;
    for args in [&["keys", "create", "--name", "n", "--owner", "o", "--scope", "drill"][..], &["keys", "revoke", id]] {
        let refused = fo.ask(args).await;
        // Nothing was done, and the answer says so, and whose it is to do.
        assert_eq!(refused.code, Some(5), "{refused:?}");
        assert!(refused.stderr.contains("bo-1 owns the keys (control.owner) and cannot be asked"), "{refused:?}");
    }
    // Even started anew without the owner it knows what it knew.
    fo.process().terminate();
    fo.process().wait(Duration::from_secs(15)).await;
    fo.start().await;
    becomes(&fo, secret, 200, Duration::from_secs(3)).await;
    becomes(&fo, &gone, 401, Duration::from_secs(1)).await;

    // What is decided on its return counts there too.
    bo.start().await;
    bo.ask(&["keys", "revoke", id]).await.expect_code(0);
    becomes(&fo, secret, 401, Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_key_is_asked_of_the_node_that_control_owner_names_and_works_on_each_at_its_first_use() {
    let cluster = Cluster::of(outside::drill().await);
    let mut nodes = vec![cluster.first("bo-1", [127, 0, 0, 1]).await];
    nodes[0].start().await;
    let seed = [nodes[0].address()];
    for (name, role, host) in [("bo-2", "bo", 2), ("fo-1", "fo", 3)] {
        let mut node = cluster.join(name, role, [127, 0, 0, host], &seed).await;
        node.start().await;
        node.sees("bo-1", "up").await;
        nodes.push(node);
    }
    // A BO that owns other databases and not these, too, knows whose they are.
    for node in &nodes {
        becomes(node, &format!("hk_{}", "0".repeat(64)), 401, Duration::from_secs(5)).await;
    }
    for asked in &nodes {
        let key = asked.key(&["drill"]).await;
        for node in &nodes {
            let mut session = Session::open(&node.site(), Speaks::Http2).await.unwrap();
            assert_eq!(status(&mut session, &key).await, 200, "made through {}, first shown to {}", asked.name, node.name);
        }
        let token = asked.ask(&["tokens", "issue", "--user", "ana", "--scope", "drill"]).await.expect_code(0).json();
        let bearer = Ask::get("/drill/echo").header("authorization", &format!("Bearer {}", token["token"].as_str().unwrap()));
        for node in nodes.iter().rev() {
            let answer = Session::open(&node.site(), Speaks::Http2).await.unwrap().ask(&bearer).await.unwrap();
            assert_eq!(answer.status, 200, "issued through {}, first shown to {}", asked.name, node.name);
        }
    }
    // One that names another gets nothing done there, and says why.
    let mut strayed = cluster.join("fo-2", "fo", [127, 0, 0, 4], &seed).await;
    strayed.set("CONTROL__OWNER", "bo-2");
    strayed.start().await;
    strayed.sees("bo-2", "up").await;
    let refused = strayed.ask(&["keys", "list"]).await.expect_code(3);
    assert!(refused.stderr.contains("bo-2 owns the keys (control.owner) and cannot be asked"), "{refused:?}");
}

#[tokio::test]
async fn a_key_has_its_own_rate_and_others_are_not_held_up_by_it() {
    let (_cluster, bo) = served(|_| ()).await;
    let slow = bo.key_record(&["drill"], &["--per-minute", "6"]).await["secret"].as_str().unwrap().to_owned();
    let other = bo.key(&["drill"]).await;
    let mut session = Session::open(&bo.site(), Speaks::Http2).await.unwrap();
    let mut seen = Vec::new();
    for _ in 0..20 {
        seen.push(session.ask(&Ask::get("/drill/echo").key(&slow)).await.unwrap());
    }
    let served = seen.iter().filter(|answer| answer.status == 200).count();
    assert!((1..=8).contains(&served), "{served} of 20 at six a minute");
    let last = seen.last().unwrap();
    assert_eq!((last.status, &last.json()["code"]), (429, &json!("rate_identity")), "{last:?}");
    let wait: u64 = last.header("retry-after").and_then(|wait| wait.parse().ok()).expect("it is told when to come back");
    assert!((1..=60).contains(&wait), "{last:?}");
    assert_eq!(status(&mut session, &other).await, 200);
}

mod measured {
    use std::time::Instant;

    use super::*;

    /// From the order's answer until the node refuses the key.
    async fn until_refused(node: &Node, key: &str, began: Instant) -> Duration {
        let mut session = Session::open(&node.site(), Speaks::Http1).await.unwrap();
        loop {
            match status(&mut session, key).await {
                401 => return began.elapsed(),
                200 => assert!(began.elapsed() < Duration::from_secs(10), "{} still lets it in", node.name),
                other => panic!("{other}"),
            }
        }
    }

    #[tokio::test]
    async fn a_revoked_key_is_refused_on_every_node_within_a_second() {
        let (cluster, bo, fo) = Cluster::pair(outside::drill().await).await;
        let mut second = cluster.join("fo-2", "fo", [127, 0, 0, 3], &[bo.address()]).await;
        second.start().await;
        second.sees("bo-1", "up").await;
        for _ in 0..scale(3, 20) {
            let made = bo.key_record(&["drill"], &[]).await;
            let (id, secret) = (made["key"]["id"].as_str().unwrap(), made["secret"].as_str().unwrap());
            for node in [&bo, &fo, &second] {
                becomes(node, secret, 200, Duration::from_secs(2)).await;
            }
            // Asked of a node that does not own the keys: the order finds its way.
            let order = fo.ask(&["keys", "revoke", id]).await;
            let answered = Instant::now();
            order.expect_code(0);
            let took = tokio::join!(
                until_refused(&bo, secret, answered),
                until_refused(&fo, secret, answered),
                until_refused(&second, secret, answered)
            );
            eprintln!("refused after {took:?}");
            for took in [took.0, took.1, took.2] {
                assert!(took < Duration::from_secs(1), "{took:?}");
            }
        }
    }
}

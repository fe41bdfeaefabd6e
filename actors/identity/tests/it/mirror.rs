//! Replicas: they catch up, survive the owner, and notice a restored backup.

use std::{
    fs,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{FutureExt as _, future::join_all};
use horos_store::rusqlite::Connection;
use horos_wire::{
    principal::Denied,
    protocol::keys::{Changes, IssueToken, PAGE, Revoke, Which},
};
use tempfile::TempDir;

use super::world::{LIMIT, NOBODYS, Node, Part, START, Time, Ways, create, owner, replica, until};

fn revoke(id: &str) -> Revoke {
    Revoke { which: Which::Key(id.into()) }
}

async fn follows(node: &Node, text: &str, expected: Option<Denied>) {
    until(|| node.denied(text), |denied| *denied == expected).await;
}

#[tokio::test]
async fn what_is_made_and_revoked_holds_on_every_node_within_a_second() {
    let (bo, time, ways) = owner().await;
    let (before, _) = bo.key("ana").await;
    let (fo, two) = (replica("fo-1", &ways, &time).await, replica("bo-2", &ways, &time).await);
    for node in [&bo, &fo, &two] {
        assert_eq!(node.denied(&before), None, "copied");
    }
    let (text, id) = bo.key("ana").await;
    for node in [&bo, &fo, &two] {
        follows(node, &text, None).await;
        assert!(matches!(node.verifier.recall(&text), Some(Ok(_))), "remembered");
    }
    bo.ask(revoke(&id)).await.unwrap();
    let revoked = Instant::now();
    for node in [&bo, &fo, &two] {
        follows(node, &text, Some(Denied::Revoked)).await;
        assert_eq!(node.denied(&before), None, "no other is forgotten");
    }
    println!("refused on three nodes after {:?}", revoked.elapsed());
    assert!(revoked.elapsed().as_secs_f32() < 1.0, "{:?}", revoked.elapsed());
    for node in [fo, two, bo] {
        node.stop().await;
    }
}

#[tokio::test]
async fn a_key_and_the_first_token_work_on_every_node_at_their_first_use() {
    let (bo, time, ways) = owner().await;
    let (fo, two) = (replica("fo-1", &ways, &time).await, replica("bo-2", &ways, &time).await);
    for node in [&fo, &two] {
        // In touch with the owner: before, nobody could tell it anything new.
        until(|| node.verifier.verify(NOBODYS).now_or_never(), Option::is_none).await;
        node.verifier.take_refusals();
    }
    let mut slowest = Duration::ZERO;
    let mut first_use = async |text: &str| {
        let verify = [&bo, &fo, &two].map(|node| node.verifier.verify(text));
        let shown = Instant::now();
        for found in join_all(verify).await {
            found.unwrap();
        }
        slowest = slowest.max(shown.elapsed());
    };
    for _ in 0..10 {
        let (text, _) = bo.key("ana").await;
        first_use(&text).await;
    }
    let ask = IssueToken { user: "ana".into(), scopes: vec![], audience: None, expires: None };
    let token = bo.ask(ask).await.unwrap().token;
    first_use(token.reveal()).await;
    println!("at most {slowest:?} for three nodes");
    for node in [&bo, &fo, &two] {
        assert_eq!(node.verifier.take_refusals(), None, "what was only late is no refusal");
    }
    for node in [fo, two, bo] {
        node.stop().await;
    }
}

#[tokio::test]
async fn with_the_owner_away_what_is_not_known_is_refused_without_waiting() {
    let (bo, time, ways) = owner().await;
    let fo = replica("fo-1", &ways, &time).await;
    until(|| fo.verifier.verify(NOBODYS).now_or_never(), Option::is_none).await;
    let directory = bo.stop().await;
    until(|| fo.verifier.verify(NOBODYS).now_or_never(), Option::is_some).await;
    for _ in 0..1000 {
        assert_eq!(fo.verifier.verify(NOBODYS).now_or_never(), Some(Err(Denied::Unknown)));
    }
    // And once it is back, a new key is worth waiting for again.
    let bo = Node::start("bo-1", Part::Owner, &ways, &time, directory).await;
    until(|| fo.verifier.verify(NOBODYS).now_or_never(), Option::is_none).await;
    let (text, _) = bo.key("ana").await;
    fo.verifier.verify(&text).await.unwrap();
    fo.stop().await;
    bo.stop().await;
}

#[tokio::test]
async fn a_node_without_its_first_copy_refuses_what_it_cannot_know() {
    let (time, ways) = (Time::new(), Ways::default());
    let fo = Node::start("fo-1", Part::Replica, &ways, &time, Arc::new(TempDir::new().unwrap())).await;
    assert_eq!(fo.denied(NOBODYS), Some(Denied::Unavailable));
    assert_eq!(fo.denied("hk_0"), Some(Denied::Malformed), "that much is certain");
    let said = until(|| fo.conditions.lock().clone(), Option::is_some).await.unwrap();
    assert!(said.starts_with("keys: not in touch with the owner for "), "{said}");
    fo.stop().await;
}

#[tokio::test]
async fn with_the_owner_away_the_last_replica_serves_and_the_node_says_so() {
    let (bo, time, ways) = owner().await;
    let ((kept, _), (gone, id)) = (bo.key("ana").await, bo.key("ana").await);
    let fo = replica("fo-1", &ways, &time).await;
    bo.ask(revoke(&id)).await.unwrap();
    follows(&fo, &gone, Some(Denied::Revoked)).await;
    let directory = bo.stop().await;
    until(|| fo.conditions.lock().clone(), Option::is_some).await;
    assert_eq!((fo.denied(&kept), fo.denied(&gone)), (None, Some(Denied::Revoked)));
    // The replica outlives its own node too.
    let own = fo.stop().await;
    let fo = Node::start("fo-1", Part::Replica, &ways, &time, own).await;
    follows(&fo, &kept, None).await;
    follows(&fo, NOBODYS, Some(Denied::Unknown)).await;
    assert_eq!(fo.denied(&gone), Some(Denied::Revoked));
    let bo = Node::start("bo-1", Part::Owner, &ways, &time, directory).await;
    until(|| fo.conditions.lock().clone(), Option::is_none).await;
    let (text, _) = bo.key("ana").await;
    follows(&fo, &text, None).await;
    fo.stop().await;
    bo.stop().await;
}

/// The whole file, as a backup would hold it.
fn copy(from: &TempDir, to: &TempDir) {
    for name in ["control.db", "control.db-wal"] {
        if from.path().join(name).exists() {
            fs::copy(from.path().join(name), to.path().join(name)).unwrap();
        }
    }
}

#[tokio::test]
async fn a_restored_backup_that_was_written_on_is_told_from_the_log_that_it_replaced() {
    let (bo, time, ways) = owner().await;
    let (old, _) = bo.key("ana").await;
    let directory = bo.stop().await;
    let backup = Arc::new(TempDir::new().unwrap());
    copy(&directory, &backup);
    let bo = Node::start("bo-1", Part::Owner, &ways, &time, directory).await;
    let fo = replica("fo-1", &ways, &time).await;
    let mut lost = Vec::new();
    for _ in 0..5 {
        lost.push(bo.key("ana").await.0);
    }
    for text in &lost {
        follows(&fo, text, None).await;
    }
    bo.stop().await;
    // As many entries as the lost log had: only their marks differ.
    let bo = Node::start("bo-1", Part::Owner, &ways, &time, backup).await;
    let mut new = Vec::new();
    for _ in 0..5 {
        new.push(bo.key("bob").await.0);
    }
    for text in &new {
        follows(&fo, text, None).await;
    }
    for text in &lost {
        follows(&fo, text, Some(Denied::Unknown)).await;
    }
    assert_eq!(fo.denied(&old), None);
    fo.stop().await;
    bo.stop().await;
}

/// Makes `count` keys at once, past the service; the first one's and the last one's texts.
async fn fill(node: &Node, count: usize) -> [String; 2] {
    let text = |n: usize| format!("hk_{n:064x}");
    let fill = node.writer.transaction(Instant::now() + LIMIT, move |tx| {
        let sql = "INSERT INTO api_keys (hash, id, owner, scopes, expires_at) VALUES (?1, ?2, 'ana', '[\"a\"]', ?3)";
        let mut insert = tx.prepare(sql)?;
        for n in 0..count {
            let hash = horos_identity::hash(&text(n)).unwrap().0;
            insert.execute((&hash[..], format!("key_{n:08}"), START * 2))?;
        }
        Ok::<_, horos_store::rusqlite::Error>(())
    });
    fill.await.unwrap();
    [text(0), text(count - 1)]
}

async fn count(node: &Node) -> i64 {
    let count = |tables: &Connection| tables.query_row("SELECT count(*) FROM api_keys", [], |row| row.get(0));
    node.readers.read(Instant::now() + LIMIT, count).await.unwrap()
}

#[tokio::test]
async fn a_copy_of_many_pages_takes_changes_in_between_and_goes_on_after_a_restart() {
    let (bo, time, ways) = owner().await;
    let [first, last] = fill(&bo, PAGE * 6 + 7).await;
    let fo = Node::start("fo-1", Part::Replica, &ways, &time, Arc::new(TempDir::new().unwrap())).await;
    let (made, id) = bo.key("bob").await;
    let directory = fo.stop().await;
    bo.ask(revoke(&id)).await.unwrap();
    let fo = Node::start("fo-1", Part::Replica, &ways, &time, directory).await;
    for (text, expected) in [(&first, None), (&last, None), (&made, Some(Denied::Revoked))] {
        follows(&fo, text, expected).await;
    }
    follows(&fo, NOBODYS, Some(Denied::Unknown)).await;
    assert_eq!(count(&fo).await, count(&bo).await);
    fo.stop().await;
    bo.stop().await;
}

#[tokio::test]
async fn a_page_is_bounded_and_a_position_from_elsewhere_begins_a_copy() {
    let (bo, _, _) = owner().await;
    fill(&bo, PAGE + 1).await;
    let mut ask = Changes { position: None, copied: None };
    let mut rows = 0;
    for turn in 0.. {
        let page = bo.ask(ask.clone()).await.unwrap();
        let part = page.part.unwrap();
        assert_eq!(page.begins, turn == 0);
        assert!(part.rows.len() <= PAGE);
        rows += part.rows.len();
        let Some(upto) = part.upto else { break };
        assert!(page.more);
        ask = Changes { position: Some(page.position), copied: Some(upto) };
    }
    assert_eq!(rows, PAGE + 1);
    let position = bo.ask(Changes { position: None, copied: None }).await.unwrap().position;
    assert!(!bo.ask(Changes { position: Some(position), copied: None }).await.unwrap().begins);
    bo.create(create("bob")).await.unwrap();
    let next = bo.ask(Changes { position: Some(position), copied: None }).await.unwrap();
    assert_eq!((next.begins, next.changes.len(), next.part), (false, 1, None));
    let mark = horos_wire::protocol::keys::Mark(7);
    for elsewhere in [
        horos_wire::protocol::keys::Position { epoch: mark, ..next.position },
        horos_wire::protocol::keys::Position { stamp: mark, ..next.position },
        horos_wire::protocol::keys::Position { seq: 9, ..next.position },
        horos_wire::protocol::keys::Position { seq: u64::MAX, ..next.position },
    ] {
        assert!(bo.ask(Changes { position: Some(elsewhere), copied: None }).await.unwrap().begins, "{elsewhere:?}");
    }
    bo.stop().await;
}

#[tokio::test]
async fn a_revocation_that_cannot_be_written_holds_from_memory() {
    let (bo, time, ways) = owner().await;
    let ((text, id), (kept, _)) = (bo.key("ana").await, bo.key("ana").await);
    let fo = replica("fo-1", &ways, &time).await;
    assert_eq!(fo.denied(&text), None);
    // As a full disk would: nothing can be written, everything can be read.
    let refuse = |what: &'static str| fo.writer.transaction(Instant::now() + LIMIT, move |tx| tx.execute_batch(what));
    refuse("CREATE TRIGGER full BEFORE INSERT ON api_keys BEGIN SELECT RAISE(ABORT, 'disk full'); END").await.unwrap();
    bo.ask(revoke(&id)).await.unwrap();
    follows(&fo, &text, Some(Denied::Revoked)).await;
    assert_eq!(fo.denied(&kept), None);
    let said = until(|| fo.conditions.lock().clone(), Option::is_some).await.unwrap();
    assert!(said.contains("cannot be written"), "{said}");
    let (late, _) = bo.key("ana").await;
    follows(&fo, &late, None).await;
    refuse("DROP TRIGGER full").await.unwrap();
    until(|| fo.conditions.lock().clone(), Option::is_none).await;
    assert_eq!((fo.denied(&text), fo.denied(&late), fo.denied(&kept)), (Some(Denied::Revoked), None, None));
    let stored = fo.readers.read(Instant::now() + LIMIT, |tables| {
        tables.query_row("SELECT count(*) FROM api_keys WHERE revoked_at IS NOT NULL", [], |row| row.get::<_, i64>(0))
    });
    assert_eq!(stored.await.unwrap(), 1);
    fo.stop().await;
    bo.stop().await;
}

#[tokio::test]
async fn what_was_held_from_memory_does_not_outlive_what_is_written_later() {
    let (bo, time, ways) = owner().await;
    let fo = replica("fo-1", &ways, &time).await;
    let refuse = |what: &'static str| fo.writer.transaction(Instant::now() + LIMIT, move |tx| tx.execute_batch(what));
    refuse("CREATE TRIGGER full BEFORE INSERT ON api_keys BEGIN SELECT RAISE(ABORT, 'disk full'); END").await.unwrap();
    let (text, id) = bo.key("ana").await;
    follows(&fo, &text, None).await;
    // A new life of the mirror, which does not know what the last one held; and then there is room again.
    fo.supervisor.restart_child("keys-mirror").await.unwrap();
    refuse("DROP TRIGGER full").await.unwrap();
    until(|| fo.conditions.lock().clone(), Option::is_none).await;
    follows(&fo, &text, None).await;
    bo.ask(revoke(&id)).await.unwrap();
    follows(&fo, &text, Some(Denied::Revoked)).await;
    fo.stop().await;
    bo.stop().await;
}

//! Keys: made, listed, revoked, expired, and what each row of the table can do at most.

use horos_supervision::Context;
use horos_wire::{
    CallError,
    context::Claims,
    principal::{Denied, Proof},
    protocol::keys::{Create, KeyState, KeysError, List, Revoke, Which},
};

use super::world::{DAY, LIMIT, Node, START, create, failed, owner, right, until};

fn which(text: &str) -> Revoke {
    Revoke { which: Which::Key(text.into()) }
}

fn all() -> List {
    List { owner: None, all: true, after: None }
}

#[tokio::test]
async fn a_key_opens_what_it_was_made_for_until_it_is_revoked() {
    let (node, _, _) = owner().await;
    let created = node.create(Create { per_minute: Some(60), ..create("ana") }).await.unwrap();
    let text = created.secret.unwrap().reveal().to_owned();
    assert_eq!((text.len(), &*created.key.prefix), (67, &text[..11]));
    assert_eq!(created.key.created_by.as_ref(), "ana", "the caller");
    assert_eq!(created.key.expires_at.as_deref(), Some("2027-04-15T08:00:00Z"), "90 days");
    assert!(node.verifier.recall(&text).is_none(), "never seen");
    let principal = node.verifier.verify(&text).await.unwrap();
    assert_eq!(principal.id, created.key.id);
    assert_eq!(principal.proof, Proof::Key { owner: "ana".into() });
    assert_eq!(principal.per_minute, Some(60));
    assert!(principal.may(&right("stock:read")) && !principal.may(&right("stock")) && !principal.may(&right("stock:write")));
    assert_eq!(node.verifier.recall(&text), Some(Ok(principal)));
    let revoked = node.ask(which(&created.key.id)).await.unwrap();
    assert_eq!((revoked.count, revoked.keys[0].state), (1, KeyState::Revoked));
    until(|| node.denied(&text), |denied| *denied == Some(Denied::Revoked)).await;
    let again = node.ask(which(&created.key.id)).await.unwrap();
    assert_eq!((again.count, &again.keys[0].revoked_at), (0, &revoked.keys[0].revoked_at), "revoked once");
    node.stop().await;
}

#[tokio::test]
async fn what_would_open_nothing_or_everything_is_not_made() {
    let (node, _, _) = owner().await;
    let good = create("ana");
    let with = |change: &dyn Fn(&mut Create)| {
        let mut bad = good.clone();
        change(&mut bad);
        bad
    };
    for (what, bad) in [
        ("no scope", with(&|c| c.scopes.clear())),
        ("too many scopes", with(&|c| c.scopes = (0..65).map(|n| right(&format!("s{n}"))).collect())),
        ("no owner", with(&|c| c.owner = "".into())),
        ("no name", with(&|c| c.name = "".into())),
        ("a line break", with(&|c| c.name = "a\nb".into())),
        ("a long owner", with(&|c| c.owner = "a".repeat(201).into())),
        ("no requests", with(&|c| c.per_minute = Some(0))),
        ("no zone", with(&|c| c.expires = Some("2027-02-01".into()))),
        ("a typo", with(&|c| c.expires = Some("9O d".into()))),
        ("over", with(&|c| c.expires = Some("2026-01-01T00:00:00Z".into()))),
        ("too far", with(&|c| c.expires = Some("3 years".into()))),
    ] {
        assert!(matches!(node.create(bad).await, Err(KeysError::Invalid(_))), "{what}");
    }
    assert!(node.ask(all()).await.unwrap().keys.is_empty());
    let twice = Create { scopes: vec![right("b"), right("a"), right("b")], ..good };
    assert_eq!(node.create(twice).await.unwrap().key.scopes, [right("a"), right("b")]);
    node.stop().await;
}

#[tokio::test]
async fn a_key_ends_when_it_was_said_to_over_a_clock_that_jumps_a_year_both_ways() {
    let (node, time, _) = owner().await;
    let made = |expires: &str| node.create(Create { expires: Some(expires.into()), ..create("ana") });
    let text = |created: horos_wire::protocol::keys::Created| created.secret.unwrap().reveal().to_owned();
    let (day, never) = (text(made("1d").await.unwrap()), text(made("never").await.unwrap()));
    assert_eq!((node.denied(&day), node.denied(&never)), (None, None));
    time.set(START + DAY - 1);
    assert_eq!(node.denied(&day), None);
    time.set(START + DAY);
    assert!(matches!(node.verifier.recall(&day), Some(Err(Denied::Expired))), "what is remembered expires too");
    for (now, expected) in
        [(START + 365 * DAY, Some(Denied::Expired)), (START - 365 * DAY, None), (START, None), (i64::MAX, Some(Denied::Expired))]
    {
        time.set(now);
        assert_eq!((node.denied(&day), node.denied(&never)), (expected, None), "at {now}");
    }
    time.set(START + 365 * DAY);
    let listed = node.ask(List { owner: None, all: false, after: None }).await.unwrap().keys;
    assert_eq!(listed.iter().map(|key| key.expires_at.as_deref()).collect::<Vec<_>>(), [None], "only what opens something");
    assert_eq!(node.ask(all()).await.unwrap().keys.iter().filter(|key| key.state == KeyState::Expired).count(), 1);
    node.stop().await;
}

/// Puts `value` into a column of the only key, as a slip of the hand would.
async fn spoil(node: &Node, column: &'static str, value: Option<&'static str>) -> bool {
    let changed = node
        .writer
        .transaction(std::time::Instant::now() + LIMIT, move |tx| tx.execute(&format!("UPDATE api_keys SET {column} = ?1"), [value]));
    changed.await.is_ok()
}

#[tokio::test]
async fn a_row_that_cannot_be_read_opens_nothing() {
    let (node, time, ways) = owner().await;
    let (text, _) = node.key("ana").await;
    // A verifier that remembers nothing sees the row as it is.
    let fresh = || horos_identity::Verifier::new(&node.writer.config().open, time.clock());
    for scopes in ["", "null", "[]", "{}", "stock:read", "[\"*\"]", "[\"stock:read\"", "[1]", "[\"stock:read\", \"\"]"] {
        assert!(spoil(&node, "scopes", Some(scopes)).await);
        let principal = fresh().check(&text).unwrap();
        assert!(principal.scopes.is_empty(), "{scopes:?} grants {:?}", principal.scopes);
    }
    assert!(!spoil(&node, "scopes", None).await, "the table takes no NULL for scopes");
    assert!(!spoil(&node, "expires_at", None).await, "nor for the end");
    assert!(!spoil(&node, "expires_at", Some("soon")).await, "nor a text that is no number");
    assert!(spoil(&node, "expires_at", Some("0")).await);
    assert_eq!(fresh().check(&text), Err(Denied::Expired));
    assert!(spoil(&node, "revoked_at", Some("0")).await);
    assert_eq!(fresh().check(&text), Err(Denied::Revoked));
    drop(ways);
    node.stop().await;
}

#[tokio::test]
async fn keys_are_listed_newest_first_by_owner_and_never_with_their_secret() {
    let (node, time, _) = owner().await;
    let mut texts = Vec::new();
    for n in 0..5 {
        // The clock goes back meanwhile.
        time.set(START - n * 1000);
        texts.push(node.key(if n % 2 == 0 { "ana" } else { "bob" }).await);
    }
    let ids = |list: &[horos_wire::protocol::keys::KeyRecord]| list.iter().map(|key| key.id.clone()).collect::<Vec<_>>();
    let listed = node.ask(all()).await.unwrap();
    assert_eq!(ids(&listed.keys), texts.iter().rev().map(|(_, id)| id.clone()).collect::<Vec<_>>());
    let bobs = node.ask(List { owner: Some("bob".into()), ..all() }).await.unwrap().keys;
    assert_eq!(ids(&bobs), [texts[3].1.clone(), texts[1].1.clone()]);
    let rest = node.ask(List { after: Some(texts[3].1.clone()), ..all() }).await.unwrap().keys;
    assert_eq!(ids(&rest), ids(&listed.keys[2..]));
    let shown = format!("{listed:?} {}", serde_json::to_string(&listed).unwrap());
    for (text, _) in &texts {
        assert!(!shown.contains(&text[11..]) && !shown.contains(&hex::encode(horos_identity::hash(text).unwrap().0)));
    }
    let created = node.create(create("ana")).await.unwrap();
    let text = created.secret.as_ref().unwrap().reveal().to_owned();
    assert!(!format!("{created:?}").contains(&text[11..]));
    let principal = node.verifier.check(&text).unwrap();
    assert!(!format!("{principal:?} {:?}", node.verifier).contains(&text[11..]));
    node.stop().await;
}

#[tokio::test]
async fn a_key_is_found_by_id_by_prefix_and_by_its_text() {
    let (node, _, _) = owner().await;
    let ((one, _), (two, id), (three, _)) = (node.key("ana").await, node.key("ana").await, node.key("ana").await);
    assert_eq!(node.ask(which(&one[..11])).await.unwrap().count, 1);
    assert_eq!(node.ask(which(&id)).await.unwrap().count, 1);
    assert_eq!(node.ask(which(&three)).await.unwrap().count, 1, "a key found lying about");
    for text in ["hk_zzzzzzzz", "key_1", "", "x' OR 1=1", &format!("hk_{}", "0".repeat(64))] {
        let error = failed(node.ask(which(text)).await);
        assert!(matches!(error, KeysError::NoSuchKey(_)), "{text:?}: {error:?}");
        assert!(error.to_string().len() < 200 && !error.to_string().contains(&"0".repeat(20)), "{error}");
    }
    assert!(matches!(failed(node.ask(which("hk_")).await), KeysError::Invalid(_)), "a prefix of all");
    assert!(spoil(&node, "prefix", Some("hk_11112222")).await);
    assert!(matches!(failed(node.ask(which(&two[..3].to_owned().replace("hk_", "hk_11112"))).await), KeysError::Ambiguous(_)));
    node.stop().await;
}

#[tokio::test]
async fn an_owner_who_leaves_loses_every_key_and_has_no_more_than_the_limit() {
    let (node, _, _) = owner().await;
    let mut texts = Vec::new();
    for _ in 0..20 {
        texts.push(node.key("ana").await.0);
    }
    let (bobs, _) = node.key("bob").await;
    assert!(matches!(node.create(create("ana")).await, Err(KeysError::TooMany(_))));
    let revoked = node.ask(Revoke { which: Which::Owner("ana".into()) }).await.unwrap();
    assert_eq!((revoked.count, revoked.keys.len()), (20, 20));
    for text in &texts {
        until(|| node.denied(text), |denied| *denied == Some(Denied::Revoked)).await;
    }
    assert_eq!(node.denied(&bobs), None);
    assert!(node.create(create("ana")).await.is_ok(), "the revoked do not count");
    node.stop().await;
}

#[tokio::test]
async fn asked_twice_with_one_idempotency_key_it_is_made_once_and_shown_once() {
    let (node, _, _) = owner().await;
    let claims = || Claims { idempotency_key: Some("k1".into()), ..Claims::default() };
    let keys = |caller: &'static str| Context::new(node.exchange.clone(), caller).with_claims(claims()).at("horos.keys@bo-1");
    let first = keys("ana").call(create("ana"), LIMIT).await.unwrap();
    let second = keys("ana").call(create("ana"), LIMIT).await.unwrap();
    assert_eq!((first.key.clone(), first.secret.is_some()), (second.key, true));
    assert!(second.secret.is_none());
    assert!(matches!(keys("ana").call(create("bob"), LIMIT).await, Err(CallError::Failed(KeysError::Invalid(_)))));
    assert_ne!(keys("eve").call(create("ana"), LIMIT).await.unwrap().key.id, first.key.id, "another caller's is another");
    assert_eq!(node.ask(all()).await.unwrap().keys.len(), 2);
    node.stop().await;
}

#[tokio::test]
async fn no_text_but_the_exact_key_verifies() {
    use proptest::{prelude::*, test_runner::TestRunner};
    let (node, _, _) = owner().await;
    let (text, _) = node.key("ana").await;
    let mut runner = TestRunner::default();
    let damage = (any::<prop::sample::Index>(), any::<char>(), 0..4u8);
    runner
        .run(&damage, |(at, with, how)| {
            let mut chars: Vec<char> = text.chars().collect();
            let at = at.index(chars.len());
            match how {
                0 => chars[at] = with,
                1 => chars.insert(at, with),
                2 => drop(chars.remove(at)),
                _ => chars.truncate(at),
            }
            let damaged: String = chars.into_iter().collect();
            prop_assert_eq!(node.verifier.check(&damaged).is_ok(), damaged == text, "{}", damaged);
            Ok(())
        })
        .unwrap();
    for damaged in [text.to_uppercase(), format!(" {text}"), format!("{text}\n"), format!("{text}\0"), text.replace("hk_", "")] {
        assert!(node.verifier.check(&damaged).is_err(), "{damaged:?}");
    }
    assert_eq!(node.denied(&text), None);
    node.stop().await;
}

//! How often one may ask.

use std::{sync::Arc, time::Duration};

use horos_edge::{Body, Config, Limits, Reason};
use horos_wire::principal::{Denied, Proof};
use tokio::{sync::Semaphore, time::advance};

use super::guard_world::{KEY, Keys, Site, calm, get, peer_at, principal, with};

fn limited(limits: Limits) -> Site {
    Site::with(Config { limits, trusted_proxies: vec![("10.0.0.0".parse().unwrap(), 8)], ..calm() }, Keys::usual())
}

#[tokio::test(start_paused = true)]
async fn an_address_is_refused_past_its_limit_and_told_when_to_come_back() {
    let site = limited(Limits { per_address: 5, ..calm().limits });
    let ask = async |from: &str| site.ask_from(get("/open/x").body(Body::empty()).unwrap(), peer_at(from)).await;
    for _ in 0..5 {
        assert_eq!(ask("192.0.2.1").await.status, 200);
    }
    advance(Duration::from_millis(500)).await;
    let refused = ask("192.0.2.1").await;
    assert_eq!((refused.status.as_u16(), refused.code().as_str()), (429, "rate_address"));
    assert_eq!(refused.header("retry-after"), Some("12"), "eleven and a half seconds, rounded up");
    assert_eq!(refused.header("ratelimit"), Some("\"address\";r=0;t=12"));
    assert_eq!(refused.header("ratelimit-policy"), Some("\"address\";q=5;w=60"));
    assert_eq!(ask("192.0.2.2").await.status, 200);
    advance(Duration::from_secs(12)).await;
    let last = ask("192.0.2.1").await;
    assert_eq!(last.status, 200);
    assert_eq!(last.header("ratelimit"), Some("\"address\";r=0"), "who comes close is told before being refused");
    assert_eq!(ask("192.0.2.1").await.status, 429);
    assert_eq!(site.metrics.count(Reason::RateAddress), 2);
}

#[tokio::test(start_paused = true)]
async fn a_probe_costs_nothing_and_is_answered_when_nothing_is_left() {
    let site = limited(Limits { per_address: 1, ..calm().limits });
    let ask = async |path: &str| site.ask_from(get(path).body(Body::empty()).unwrap(), peer_at("192.0.2.1")).await.status.as_u16();
    for _ in 0..10 {
        assert_eq!((ask("/livez").await, ask("/readyz?verbose").await), (200, 200));
    }
    assert_eq!((ask("/open/x").await, ask("/open/x").await, ask("/livez/x").await), (200, 429, 429));
    assert_eq!((ask("/livez").await, ask("/readyz").await), (200, 200));
}

#[tokio::test(start_paused = true)]
async fn this_machine_is_no_stranger_but_what_a_trusted_proxy_forwards_is() {
    let limits = Limits { per_address: 1, ..calm().limits };
    let site = Site::with(Config { limits, trusted_proxies: vec![("127.0.0.9".parse().unwrap(), 32)], ..calm() }, Keys::usual());
    let ask = async |from: &str, client: Option<&str>| {
        let request = with(get("/open/x"), &client.map(|client| ("x-forwarded-for", client)).into_iter().collect::<Vec<_>>());
        site.ask_from(request.body(Body::empty()).unwrap(), peer_at(from)).await.status.as_u16()
    };
    for from in ["127.0.0.1", "127.0.0.2", "::1"] {
        assert_eq!((ask(from, None).await, ask(from, None).await), (200, 200), "{from}");
    }
    for client in [Some("192.0.2.1"), None] {
        assert_eq!((ask("127.0.0.9", client).await, ask("127.0.0.9", client).await), (200, 429), "{client:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_head_that_is_refused_is_counted_all_the_same() {
    let site = limited(Limits { per_address: 2, ..calm().limits });
    let ask = async || {
        let request = with(get("/open/x"), &[("idempotency-key", "a"), ("idempotency-key", "b")]);
        site.ask_from(request.body(Body::empty()).unwrap(), peer_at("192.0.2.1")).await.status.as_u16()
    };
    assert_eq!((ask().await, ask().await, ask().await), (400, 400, 429));
}

#[tokio::test(start_paused = true)]
async fn a_client_is_counted_by_what_it_cannot_choose() {
    let site = limited(Limits { per_address: 3, ..calm().limits });
    let ask = async |from: &str, claimed: &str| {
        let request = with(get("/open/x"), &[("x-forwarded-for", claimed)]);
        site.ask_from(request.body(Body::empty()).unwrap(), peer_at(from)).await.status.as_u16()
    };
    // Not by what it claims, nor by the half of its IPv6 address that is its own.
    for i in 0..3 {
        assert_eq!(ask("192.0.2.1", &format!("203.0.113.{i}")).await, 200);
        assert_eq!(ask(&format!("2001:db8:1:2::{i}"), "1.1.1.1").await, 200);
    }
    assert_eq!(ask("192.0.2.1", "203.0.113.77").await, 429);
    assert_eq!(ask("2001:db8:1:2:ffff::1", "1.1.1.1").await, 429);
    assert_eq!(ask("2001:db8:1:3::1", "1.1.1.1").await, 200);
    // Behind a trusted proxy each client has its own count.
    for _ in 0..3 {
        assert_eq!(ask("10.0.0.1", "203.0.113.9").await, 200);
    }
    assert_eq!(ask("10.0.0.2", "203.0.113.9").await, 429);
    assert_eq!(ask("10.0.0.1", "203.0.113.10").await, 200);
}

#[tokio::test(start_paused = true)]
async fn a_key_is_refused_past_its_own_limit_wherever_it_comes_from() {
    let mut keys = Keys::usual();
    let own = |id, limit| horos_wire::principal::Principal {
        per_minute: Some(limit),
        ..principal(id, Proof::Key { owner: "shop".into() }, &["stock"])
    };
    keys.add("hk_two", own("key_two", 2));
    keys.add("hk_none", own("key_none", 0));
    let site = Site::with(Config { limits: Limits { per_identity: 4, ..calm().limits }, ..calm() }, keys);
    let ask = async |key: &str, from: &str| {
        site.ask_from(with(get("/stock/x"), &[("x-api-key", key)]).body(Body::empty()).unwrap(), peer_at(from)).await
    };
    for i in 0..4 {
        assert_eq!(ask(KEY, &format!("192.0.2.{i}")).await.status, 200);
    }
    let refused = ask(KEY, "192.0.2.99").await;
    assert_eq!((refused.status.as_u16(), refused.code().as_str()), (429, "rate_identity"));
    assert_eq!((refused.header("retry-after"), refused.header("ratelimit-policy")), (Some("15"), Some("\"identity\";q=4;w=60")));
    assert_eq!(ask("hk_two", "192.0.2.1").await.status, 200);
    assert_eq!(ask("hk_two", "192.0.2.1").await.status, 200);
    assert_eq!(ask("hk_two", "192.0.2.1").await.header("retry-after"), Some("30"));
    assert_eq!(ask("hk_none", "192.0.2.1").await.status, 429, "nothing a minute is nothing");
    assert_eq!(site.metrics.count(Reason::RateIdentity), 3);
}

#[tokio::test(start_paused = true)]
async fn guessing_ends_before_anything_is_looked_up() {
    let mut keys = Keys::usual();
    keys.remembers = false;
    let site = Site::with(Config { limits: Limits { guesses_per_address: 3, ..calm().limits }, ..calm() }, keys);
    let ask = async |key: &str, from: &str| {
        site.ask_from(with(get("/stock/x"), &[("x-api-key", key)]).body(Body::empty()).unwrap(), peer_at(from)).await
    };
    let looked = || site.keys.looked.load(std::sync::atomic::Ordering::Relaxed);
    for _ in 0..50 {
        assert_eq!(ask(KEY, "192.0.2.1").await.status, 200, "right credentials cost no guess");
    }
    for i in 0..3 {
        assert_eq!(ask(&format!("hk_{i}"), "192.0.2.1").await.status, 401);
    }
    assert_eq!(looked(), 53);
    for key in ["hk_4", KEY, "not a key"] {
        let refused = ask(key, "192.0.2.1").await;
        assert_eq!((refused.status.as_u16(), refused.code().as_str()), (429, "rate_guesses"));
        assert_eq!(refused.header("retry-after"), Some("20"));
    }
    assert_eq!(looked(), 53);
    assert_eq!(site.metrics.count(Reason::RateGuesses), 3);
    assert_eq!(ask(KEY, "192.0.2.2").await.status, 200, "others are not refused for it");
    advance(Duration::from_secs(20)).await;
    assert_eq!(ask(KEY, "192.0.2.1").await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn what_is_waited_for_is_a_guess_meanwhile_however_many_wait() {
    let mut keys = Keys::usual();
    keys.remembers = false;
    let answers = Arc::new(Semaphore::new(0));
    keys.slow = Some(answers.clone());
    let site = Site::with(Config { limits: Limits { guesses_per_address: 3, ..calm().limits }, ..calm() }, keys);
    let ask = async |key: &str, from: &str| {
        site.ask_from(with(get("/stock/x"), &[("x-api-key", key)]).body(Body::empty()).unwrap(), peer_at(from)).await.status.as_u16()
    };
    // All on their way before any is answered; a key that is right pays like the others, this once.
    let (mut guesses, told) = (futures_util::future::join_all((0..50).map(|i| ask(["hk_1", KEY][i % 2], "192.0.2.1"))), async {
        tokio::task::yield_now().await;
        answers.add_permits(50);
    });
    let statuses = tokio::join!(&mut guesses, told).0;
    let count = |wanted| statuses.iter().filter(|status| **status == wanted).count();
    assert_eq!((count(401), count(200), count(429)), (2, 1, 47));
    assert_eq!(ask(KEY, "192.0.2.1").await, 429);
    assert_eq!(ask(KEY, "192.0.2.2").await, 200);
}

#[tokio::test(start_paused = true)]
async fn who_guesses_shuts_out_nobody_who_was_known_before() {
    let site = limited(Limits { guesses_per_address: 1, ..calm().limits });
    let ask = async |fields: &[(&str, &str)]| {
        site.ask_from(with(get("/stock/x"), fields).body(Body::empty()).unwrap(), peer_at("192.0.2.1")).await.status.as_u16()
    };
    assert_eq!(ask(&[("x-api-key", "hk_0")]).await, 401);
    for _ in 0..3 {
        assert_eq!(ask(&[("x-api-key", "hk_1")]).await, 429);
        assert_eq!(ask(&[("x-api-key", KEY)]).await, 200);
        assert_eq!(ask(&[("x-api-key", KEY), ("authorization", "Bearer forged")]).await, 429, "one that holds carries no other");
    }
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_checked_is_no_guess() {
    let mut keys = Keys::usual();
    keys.deny("hk_later", Denied::Unavailable);
    keys.remembers = false;
    keys.slow = Some(Arc::new(Semaphore::new(100)));
    let site = Site::with(Config { limits: Limits { guesses_per_address: 1, ..calm().limits }, ..calm() }, keys);
    for _ in 0..5 {
        let answer = site.get_with("/stock/x", &[("x-api-key", "hk_later")]).await;
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (503, "credentials_unchecked"));
        assert_eq!(answer.header("retry-after"), Some("1"));
    }
    assert_eq!(site.get("/stock/x").await.status, 401, "and to show nothing is none either");
    assert_eq!(site.get_with("/stock/x", &[("x-api-key", KEY)]).await.status, 200);
}

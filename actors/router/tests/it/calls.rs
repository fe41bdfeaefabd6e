//! One call: where it goes, what is tried again, and what its caller is told.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::BoxFuture;
use horos_router::{
    Routes, Taken,
    policy::{Around, Call, Ended, Inside, Policy},
};
use horos_wire::{CallError, NoEffect, Unknown, context::Claims};

use parking_lot::Mutex;

use super::world::{Count, Counted, Counting, Does, Hang, LONG, Panic, Refusal, Refuse, Scripted, World};

async fn by(world: &World, number: u64) -> Result<Option<String>, CallError<horos_wire::Never>> {
    Ok(world.context.routed::<Counting>("stock").call(Count { number }, LONG).await?.map(|counted| counted.by))
}

#[tokio::test]
async fn changing_the_row_moves_the_next_call_of_a_reference_that_is_in_use() {
    let world = World::new(&["stock", "shelf"], None).await;
    let stock = world.context.routed::<Counting>("stock");
    let by = async |number| stock.call(Count { number }, LONG).await.unwrap().map(|counted: Counted| counted.by);
    assert_eq!(by(1).await.as_deref(), Some("stock"), "without a route it is the actor of that name");
    world.routes(&[("stock", "local", "shelf", "{}")]);
    assert_eq!(by(2).await.as_deref(), Some("shelf"));
    world.routes(&[("stock", "noop", "", "{}")]);
    assert_eq!(by(3).await, None, "nobody is called, and that is no failure");
    world.routes(&[("stock", "noop", "", r#"{"reply": {"by": "nobody", "number": 7}}"#)]);
    assert_eq!(by(4).await.as_deref(), Some("nobody"));
    world.routes(&[("stock", "quic", "stock@bo-1", "{}")]);
    assert_eq!(by(5).await.as_deref(), Some("stock"));
    world.routes(&[]);
    assert_eq!(by(6).await.as_deref(), Some("stock"));
    assert_eq!(world.book.lock().len(), 4, "what nobody was called for, nobody counted");
}

#[tokio::test]
async fn a_bad_row_leaves_the_last_good_route_in_force_and_one_that_never_was_good_is_closed() {
    let world = World::new(&["stock", "shelf"], None).await;
    assert_eq!(world.routes(&[("stock", "local", "shelf", "{}")]), Taken { changed: 1, gone: 0, wrong: 0 });
    for (strategy, endpoint, config) in [
        ("grpc", "", "{}"),
        ("mcp", "https://x", "{}"),
        ("local", "shelf", "{"),
        ("local", "shelf", r#"{"timeout": 5}"#),
        ("http", "not a url", "{}"),
        ("local", "Shelf!", "{}"),
    ] {
        assert_eq!(world.routes(&[("stock", strategy, endpoint, config)]).wrong, 1, "{strategy} {config}");
        assert_eq!(by(&world, 1).await.unwrap().as_deref(), Some("shelf"), "{strategy} {config}");
    }
    // The same row again is not a change, and one that is right heals it.
    assert_eq!(world.routes(&[("stock", "local", "Shelf!", "{}")]), Taken { changed: 0, gone: 0, wrong: 1 });
    assert_eq!(world.routes(&[("stock", "local", "", "{}")]), Taken { changed: 1, gone: 0, wrong: 0 });
    assert_eq!(by(&world, 2).await.unwrap().as_deref(), Some("stock"));

    world.routes(&[("stock", "local", "", "{}"), ("shelf", "grpc", "", "{}")]);
    let refused = world.context.routed::<Counting>("shelf").call(Count { number: 3 }, LONG).await.unwrap_err();
    assert!(matches!(&refused, CallError::NoEffect(NoEffect::NoSuchActor(why)) if why.contains("wrong")), "{refused}");
}

#[tokio::test]
async fn a_typed_error_is_an_answer_that_is_neither_repeated_nor_held_against_its_endpoint() {
    let world = World::new(&["stock"], None).await;
    world.routes(&[("stock", "local", "", r#"{"idempotent": true, "retry": {"retries": 3, "base_ms": 1}, "breaker": {"failures": 1}}"#)]);
    let stock = world.context.routed::<Counting>("stock");
    for _ in 0..5 {
        assert_eq!(stock.call(Refuse {}, LONG).await, Err(CallError::Failed(Refusal { left: 3 })));
    }
}

#[tokio::test]
async fn what_may_have_been_done_is_repeated_only_where_that_is_said_to_be_harmless() {
    let lossy = Scripted::new(|call, _| if call % 2 == 0 { Does::IsLost } else { Does::Answers });
    let world = World::new(&[], Some(lossy.clone())).await;
    let retry = r#""retry": {"retries": 1, "base_ms": 1, "budget_percent": 100}"#;
    world.routes(&[("stock", "wire", "a", &format!("{{{retry}}}"))]);
    let lost = by(&world, 1).await.unwrap_err();
    assert!(matches!(lost, CallError::Unknown(Unknown::PeerLost(_))), "{lost}");
    assert_eq!(lossy.calls(), 1);
    // Its key is how the callee knows it again.
    let keyed = world.context.clone().with_claims(Claims { idempotency_key: Some("k".into()), ..Claims::default() });
    let again = async || keyed.routed::<Counting>("stock").call(Count { number: 2 }, LONG).await;
    assert!(again().await.is_ok(), "the second call of the transport answers");
    assert!(again().await.is_ok(), "the third is lost, and repeated");
    assert_eq!(lossy.calls(), 4);
    world.routes(&[("stock", "wire", "a", &format!(r#"{{"idempotent": ["count"], {retry}}}"#))]);
    assert!(by(&world, 3).await.is_ok());
    assert_eq!(lossy.calls(), 6);
}

#[tokio::test]
async fn what_one_attempt_may_have_done_no_later_one_takes_back() {
    // The first attempt is lost, and whatever is asked next does nothing: another endpoint, an open breaker, a fallback.
    let wire = Scripted::new(|call, _| if call == 0 { Does::IsLost } else { Does::IsOverloaded { retry_after: None } });
    let world = World::new(&[], Some(wire.clone())).await;
    let retry = r#""idempotent": true, "retry": {"retries": 1, "base_ms": 1}"#;
    world.routes(&[("stock", "wire", "a", &format!(r#"{{{retry}, "endpoints": [{{"endpoint": "b"}}]}}"#))]);
    assert!(matches!(by(&world, 1).await, Err(CallError::Unknown(Unknown::PeerLost(_)))));
    assert_eq!(wire.calls(), 2);
    let one = Scripted::new(|_, _| Does::IsLost);
    let world = World::new(&[], Some(one.clone())).await;
    world.routes(&[("stock", "wire", "a", &format!(r#"{{{retry}, "breaker": {{"failures": 1}}}}"#))]);
    assert!(matches!(by(&world, 2).await, Err(CallError::Unknown(Unknown::PeerLost(_)))));
    assert_eq!(one.calls(), 1, "its breaker has opened");
    let world = World::new(&[], Some(Scripted::new(|_, _| Does::IsLost))).await;
    world.routes(&[("stock", "wire", "a", r#"{"idempotent": true, "fallback": "nobodys"}"#)]);
    assert!(matches!(by(&world, 3).await, Err(CallError::Unknown(Unknown::PeerLost(_)))));
}

#[tokio::test]
async fn an_open_breaker_refuses_with_the_time_to_come_again_and_heals_by_probes() {
    let down = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true));
    let flag = down.clone();
    let wire = Scripted::new(move |_, _| if flag.load(std::sync::atomic::Ordering::Relaxed) { Does::IsLost } else { Does::Answers });
    let world = World::new(&[], Some(wire.clone())).await;
    world.routes(&[("stock", "wire", "a", r#"{"breaker": {"failures": 3, "open_ms": 40, "successes": 1}}"#)]);
    for number in 0..3 {
        assert!(matches!(by(&world, number).await, Err(CallError::Unknown(_))));
    }
    let refused = by(&world, 3).await.unwrap_err();
    let CallError::NoEffect(NoEffect::CircuitOpen { retry_after }) = refused else { panic!("{refused}") };
    assert!(retry_after <= Duration::from_millis(80), "{retry_after:?}");
    assert_eq!(wire.calls(), 3, "an open breaker sends nothing");
    down.store(false, std::sync::atomic::Ordering::Relaxed);
    let healed = Instant::now() + LONG;
    while by(&world, 4).await.is_err() {
        assert!(Instant::now() < healed, "it never healed");
        tokio::task::yield_now().await;
    }
    // An edit of the row around it leaves it as it is.
    world.routes(&[("stock", "wire", "a", r#"{"timeout_ms": 9, "breaker": {"failures": 3, "open_ms": 40, "successes": 1}}"#)]);
    assert!(by(&world, 5).await.is_ok());
}

#[tokio::test]
async fn an_endpoint_that_asks_to_be_left_alone_is() {
    let wire = Scripted::new(|_, endpoint| match endpoint {
        "a" => Does::IsOverloaded { retry_after: Some(Duration::from_secs(600)) },
        _ => Does::Answers,
    });
    let world = World::new(&[], Some(wire.clone())).await;
    world.routes(&[("stock", "wire", "a", r#"{"retry": {"retries": 1, "base_ms": 1}, "endpoints": [{"endpoint": "b"}]}"#)]);
    for number in 0..50 {
        assert_eq!(by(&world, number).await.unwrap().as_deref(), Some("b"));
    }
    assert!(wire.calls() <= 51, "{} calls for 50: the one that was asked of a was its last", wire.calls());
}

#[tokio::test]
async fn a_fallback_answers_for_what_failed_without_effect_and_its_own_fallback_does_not() {
    let world = World::new(&["shelf"], Some(Scripted::new(|_, _| Does::IsLost))).await;
    let rows = |idempotent: bool| {
        let config = format!(r#"{{"idempotent": {idempotent}, "fallback": "shelf"}}"#);
        world.routes(&[("stock", "wire", "a", &config), ("shelf", "local", "", r#"{"fallback": "stock"}"#)]);
    };
    rows(false);
    assert!(matches!(by(&world, 1).await, Err(CallError::Unknown(_))), "it may have been done: nobody else does it once more");
    rows(true);
    assert_eq!(by(&world, 2).await.unwrap().as_deref(), Some("shelf"));
    // Two that fall back on each other.
    world.routes(&[
        ("stock", "wire", "a", r#"{"idempotent": true, "fallback": "shelf"}"#),
        ("shelf", "wire", "b", r#"{"idempotent": true, "fallback": "stock"}"#),
    ]);
    assert!(matches!(by(&world, 3).await, Err(CallError::Unknown(_))));
}

#[tokio::test]
async fn a_slow_endpoint_is_hedged_by_another_and_only_for_what_is_idempotent() {
    let wire = Scripted::new(|_, endpoint| match endpoint {
        "slow" => Does::AnswersAfter(Duration::from_secs(600)),
        _ => Does::Answers,
    });
    let world = World::new(&[], Some(wire.clone())).await;
    // The slow one is the only choice of the first attempt.
    let config = |idempotent: &str| {
        format!(
            r#"{{"idempotent": {idempotent}, "timeout_ms": 1500, "hedge": {{"after_ms": 5}}, "endpoints": [{{"endpoint": "quick", "weight": 0}}]}}"#
        )
    };
    world.routes(&[("stock", "wire", "slow", &config("true"))]);
    assert_eq!(by(&world, 1).await.unwrap().as_deref(), Some("quick"));
    assert_eq!(wire.calls(), 2);
    world.routes(&[("stock", "wire", "slow", &config(r#"["hang"]"#))]);
    assert!(matches!(by(&world, 2).await, Err(CallError::Unknown(Unknown::DeadlinePassed))));
    assert_eq!(wire.calls(), 3);
}

#[tokio::test]
async fn concurrency_and_rate_refuse_what_is_beyond_them_without_effect() {
    let world = World::new(&["stock"], None).await;
    world.routes(&[("stock", "local", "", r#"{"concurrency": {"limit": 1}}"#)]);
    let hanging = {
        let stock = world.context.routed::<Counting>("stock");
        // Whichever of the two is first, this one is in hand in the end.
        tokio::spawn(async move {
            while matches!(stock.call(Hang {}, LONG).await, Err(CallError::NoEffect(NoEffect::Overloaded(_)))) {
                tokio::task::yield_now().await;
            }
        })
    };
    let refused_by = Instant::now() + LONG;
    loop {
        match by(&world, 1).await {
            Err(CallError::NoEffect(NoEffect::Overloaded(_))) => break,
            other => assert!(other.is_ok() && Instant::now() < refused_by, "{other:?}"),
        }
        tokio::task::yield_now().await;
    }
    hanging.abort();
    world.routes(&[("stock", "noop", "", r#"{"rate": {"per_second": 1, "burst": 5}}"#)]);
    let mut refused = 0;
    for number in 0..20 {
        refused += u32::from(matches!(by(&world, number).await, Err(CallError::NoEffect(NoEffect::Overloaded(_)))));
    }
    assert!((13..=15).contains(&refused), "{refused} of 20");
}

#[tokio::test]
async fn a_handler_that_panics_or_hangs_ends_its_call_and_opens_the_breaker() {
    let world = World::new(&["stock"], None).await;
    world.routes(&[("stock", "local", "", r#"{"timeout_ms": 1100, "breaker": {"failures": 2, "open_ms": 600000}}"#)]);
    let stock = world.context.routed::<Counting>("stock");
    assert!(matches!(stock.call(Panic {}, LONG).await, Err(CallError::Unknown(Unknown::ActorDied))));
    assert!(matches!(stock.call(Hang {}, LONG).await, Err(CallError::Unknown(Unknown::DeadlinePassed))));
    assert!(matches!(stock.call(Count { number: 1 }, LONG).await, Err(CallError::NoEffect(NoEffect::CircuitOpen { .. }))));
}

#[tokio::test]
async fn callers_that_give_up_open_nobodys_breaker() {
    let world = World::new(&[], Some(Scripted::new(|_, _| Does::AnswersAfter(Duration::from_millis(30))))).await;
    world.routes(&[("stock", "wire", "a", r#"{"breaker": {"failures": 1}}"#)]);
    let stock = world.context.routed::<Counting>("stock");
    for _ in 0..20 {
        assert!(stock.call(Count { number: 1 }, Duration::from_millis(1)).await.is_err());
        let given_up = tokio::time::timeout(Duration::from_millis(1), stock.call(Count { number: 1 }, LONG)).await;
        assert!(given_up.is_err());
    }
    assert!(stock.call(Count { number: 1 }, LONG).await.is_ok());
}

#[tokio::test]
async fn json_goes_the_same_way() {
    let world = World::new(&["stock", "shelf"], None).await;
    world.routes(&[("stock", "local", "shelf", "{}"), ("nobody", "noop", "", r#"{"reply": [1]}"#)]);
    let ask = async |name: &str, message: &str| world.router.call_json(&world.context, name, message, LONG).await;
    assert_eq!(ask("stock", r#"{"count": {"number": 4}}"#).await.unwrap(), serde_json::json!({ "by": "shelf", "number": 4 }));
    assert_eq!(ask("nobody", r#"{"anything": {}}"#).await.unwrap(), serde_json::json!([1]));
    assert_eq!(ask("stock", r#"{"refuse": {}}"#).await, Err(CallError::Failed(serde_json::json!({ "left": 3 }))));
    assert!(matches!(ask("stock", "{").await, Err(CallError::NoEffect(NoEffect::Malformed(_)))));
    assert!(matches!(ask("elsewhere", r#"{"count": {}}"#).await, Err(CallError::NoEffect(NoEffect::NoSuchActor(_)))));
}

/// Lets so many calls of a tenant in, and counts how they end.
#[derive(Default)]
struct Quota {
    ended: Arc<Mutex<Vec<Ended>>>,
}

struct Left {
    left: Mutex<u64>,
    ended: Arc<Mutex<Vec<Ended>>>,
}

struct Counts(Arc<Mutex<Vec<Ended>>>);

impl Policy for Quota {
    fn open(&self, _: &str, settings: &serde_json::Value) -> Result<Arc<dyn Around>, String> {
        let left = settings["calls"].as_u64().ok_or("calls: a number")?;
        Ok(Arc::new(Left { left: Mutex::new(left), ended: self.ended.clone() }))
    }
}
impl Around for Left {
    fn enter<'a>(&'a self, call: &'a Call<'a>) -> BoxFuture<'a, Result<Box<dyn Inside>, NoEffect>> {
        assert_eq!((call.service, call.method), ("stock", "count"));
        let mut left = self.left.lock();
        let entered = left.checked_sub(1).ok_or_else(|| NoEffect::Overloaded("the quota is used up".into()));
        let entered = entered.map(|rest| {
            *left = rest;
            Box::new(Counts(self.ended.clone())) as Box<dyn Inside>
        });
        Box::pin(std::future::ready(entered))
    }
}
impl Inside for Counts {
    fn ended(self: Box<Self>, how: Ended) {
        self.0.lock().push(how);
    }
}

#[tokio::test]
async fn a_programs_own_policy_stands_around_the_calls_of_the_rows_that_name_it() {
    let ended = Arc::new(Mutex::new(Vec::new()));
    let quota = Quota { ended: ended.clone() };
    let world = World::with(&["stock"], |strategies| strategies.policy("quota", Arc::new(quota))).await;
    assert_eq!(world.routes(&[("stock", "local", "", r#"{"policies": {"quota": {"calls": "two"}}}"#)]).wrong, 1, "its settings are wrong");
    assert_eq!(world.routes(&[("stock", "local", "", r#"{"policies": {"nobodys": {}}}"#)]).wrong, 1, "nobody registered it");
    world.routes(&[("stock", "local", "", r#"{"policies": {"quota": {"calls": 2}}}"#)]);
    for number in 0..2 {
        assert!(by(&world, number).await.is_ok());
    }
    assert!(matches!(by(&world, 2).await, Err(CallError::NoEffect(NoEffect::Overloaded(_)))));
    assert_eq!(*ended.lock(), [Ended::Answered, Ended::Answered]);
    assert_eq!(world.book.lock().len(), 2);
}

#[test]
fn what_the_readme_has_in_a_rows_config_is_taken() {
    let readme = include_str!("../../../../README.md");
    let block = readme.split("```json\n").nth(1).and_then(|rest| rest.split("\n```").next()).unwrap();
    assert_eq!(horos_router::spec::check("stock", "quic", Some("stock@bo"), Some(block)), Ok(()));
}

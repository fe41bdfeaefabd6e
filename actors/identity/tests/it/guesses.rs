//! Refusals: counted for nothing, told once a second, stored by the owner.

use std::time::{Duration, Instant};

use futures_util::{FutureExt as _, StreamExt as _, stream};
use horos_identity::NAME;
use horos_wire::{
    principal::Denied,
    protocol::keys::{List, Refused, Revoke, Which},
};

use super::world::{NOBODYS, Node, owner, replica, right, until};

/// The resident memory of this process, in KiB.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_hundred_thousand_guesses_are_refused_counted_and_cost_no_memory() {
    let (bo, _, _) = owner().await;
    let seed: u64 = u64::from(std::process::id());
    println!("seed {seed}");
    let guess = |n: u64| format!("hk_{:064x}", u128::from(n.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ seed));
    for n in 0..1_000 {
        assert_eq!(bo.denied(&guess(n)), Some(Denied::Unknown));
    }
    let (before, started) = (resident(), Instant::now());
    for n in 1_000..100_000 {
        assert_eq!(bo.denied(&guess(n)), Some(Denied::Unknown));
    }
    println!("{:?} a guess, {} KiB more", started.elapsed() / 99_000, resident().saturating_sub(before));
    assert!(resident() < before + 4 * 1024, "{} KiB", resident() - before);
    let told = |minutes: Vec<horos_wire::protocol::keys::RefusedMinute>| minutes.iter().map(|minute| minute.refusals.unknown).sum::<u64>();
    let mut last = 0;
    while last < 100_000 {
        assert!(started.elapsed().as_secs() < 60, "only {last} were told");
        tokio::task::yield_now().await;
        last = told(bo.ask(Refused { minutes: 10 }).await.unwrap());
    }
    assert_eq!(last, 100_000);
    bo.stop().await;
}

#[tokio::test]
async fn the_owner_learns_which_key_was_refused_how_often_and_where() {
    let (bo, time, ways) = owner().await;
    let (text, id) = bo.key("ana").await;
    let fo = replica("fo-1", &ways, &time).await;
    let principal = fo.verifier.check(&text).unwrap();
    assert!(!principal.may(&right("admin")));
    fo.verifier.wrong_scope(&principal);
    bo.ask(Revoke { which: Which::Key(id.clone()) }).await.unwrap();
    until(|| fo.denied(&text), Option::is_some).await;
    for _ in 0..3 {
        assert_eq!(fo.denied(&text), Some(Denied::Revoked));
    }
    assert_eq!(fo.denied("nonsense, and no key"), Some(Denied::Malformed));
    let started = Instant::now();
    let refused = loop {
        let keys = bo.ask(List { owner: None, all: true, after: None }).await.unwrap().keys;
        let minutes = bo.ask(Refused { minutes: 5 }).await.unwrap();
        let fos = minutes.iter().find(|minute| minute.node.as_str() == "fo-1").map(|minute| minute.refusals);
        if let Some(fos) = fos.filter(|fos| fos.malformed == 1)
            && keys[0].refused == 5
        {
            assert!(keys[0].last_refused_at.is_some());
            break fos;
        }
        assert!(started.elapsed().as_secs() < 20, "{keys:?} {minutes:?}");
        tokio::task::yield_now().await;
    };
    assert_eq!((refused.revoked, refused.wrong_scope), (4, 1));
    fo.stop().await;
    bo.stop().await;
}

/// What the owner's service has answered so far.
fn answered(bo: &Node) -> u64 {
    bo.supervisor.tree().children.iter().find(|child| &*child.name == NAME).unwrap().handled
}

#[tokio::test]
async fn however_many_guess_the_owner_is_asked_ten_times_a_second_and_new_keys_work_all_the_same() {
    let (bo, time, ways) = owner().await;
    let fo = replica("fo-1", &ways, &time).await;
    until(|| fo.verifier.verify(NOBODYS).now_or_never(), Option::is_none).await;
    let (before, began) = (answered(&bo), Instant::now());
    let guesses = async {
        let guess = |n: u64| fo.verifier.verify(&format!("hk_{n:064x}"));
        let guesses = stream::iter(0..).take_until(tokio::time::sleep(Duration::from_secs(2)));
        // Some of them would wait on, and the next be looked up, at any moment.
        guesses
            .map(guess)
            .buffer_unordered(64)
            .fold((0, 0), async |(all, in_vain), found| (all + 1, in_vain + u32::from(found.is_err())))
            .await
    };
    let users = async {
        for _ in 0..5 {
            let (text, _) = bo.key("ana").await;
            fo.verifier.verify(&text).await.unwrap();
        }
    };
    let ((all, in_vain), ()) = tokio::join!(guesses, users);
    let (asked, took) = (answered(&bo) - before, began.elapsed());
    println!("{all} guesses, {asked} questions in {took:?}");
    assert_eq!(in_vain, all);
    // Ten rounds a second, of one question each; a report a second; and the five keys.
    let most = (took.as_millis() as u64 / 100 + 1) + (took.as_secs() + 1) + 5;
    assert!(asked <= most, "{asked} questions in {took:?}");
    fo.stop().await;
    bo.stop().await;
}

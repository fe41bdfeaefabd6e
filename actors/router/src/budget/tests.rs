use std::time::Duration;

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use super::*;

fn budget(percent: u32, per_second: u32, now: Instant) -> Arc<Budget> {
    Arc::new(Budget::new(&config::Retry { budget_percent: percent, budget_per_second: per_second, ..config::Retry::default() }, now))
}

fn taken(budget: &Arc<Budget>, now: Instant) -> Vec<Withdrawal> {
    std::iter::from_fn(|| budget.withdraw(now)).collect()
}

#[test]
fn retries_are_a_share_of_the_calls_and_a_few_are_always_permitted() {
    let now = Instant::now();
    let budget = budget(20, 1, now);
    assert_eq!(taken(&budget, now).len(), 10, "of a service that is not called");
    for _ in 0..1_000 {
        budget.call(now);
    }
    assert_eq!(taken(&budget, now).len(), 210);
    budget.set(&config::Retry { budget_percent: 0, budget_per_second: 0, ..config::Retry::default() });
    assert!(budget.withdraw(now).is_none());
}

#[test]
fn a_retry_counts_while_it_waits_however_long_and_gives_its_place_back_if_it_is_given_up() {
    let start = Instant::now();
    let budget = budget(0, 1, start);
    let held = taken(&budget, start);
    assert_eq!(held.len(), 10);
    // Longer than the window: those in backoff are not forgotten.
    let later = start + Duration::from_secs(60);
    assert!(budget.withdraw(later).is_none());
    drop(held);
    assert_eq!((budget.held(), taken(&budget, later).len()), (0, 10));
}

#[test]
fn a_retry_that_was_sent_counts_for_the_window_or_until_it_has_ended_whichever_is_longer() {
    let start = Instant::now();
    let budget = budget(0, 1, start);
    let at = |s: u64| start + Duration::from_secs(s);
    let mut held = taken(&budget, start);
    for one in &mut held {
        one.sent(at(5));
    }
    let long = held.split_off(5);
    drop(held);
    assert!(budget.withdraw(at(14)).is_none(), "sent nine seconds ago, or still under way");
    assert_eq!(taken(&budget, at(15)).len(), 5, "over, and out of the window");
    assert_eq!(taken(&budget, at(100)).len(), 5);
    drop(long);
    assert_eq!(taken(&budget, at(100)).len(), 10);
}

#[test]
fn whatever_happens_no_more_retries_than_permitted_are_under_way_or_in_the_window() {
    let seed: u64 = rand::random();
    eprintln!("seed {seed}");
    let mut dice = StdRng::seed_from_u64(seed);
    let start = Instant::now();
    let budget = budget(20, 1, start);
    let (mut now, mut calls, mut sent, mut held) = (start, Vec::new(), Vec::new(), Vec::<Withdrawal>::new());
    for _ in 0..20_000 {
        now += Duration::from_micros(dice.random_range(0..20_000));
        match dice.random_range(0..10) {
            0..4 => {
                budget.call(now);
                calls.push(now);
            }
            4..7 => held.extend(budget.withdraw(now)),
            7 if !held.is_empty() => {
                let mut one = held.swap_remove(dice.random_range(0..held.len()));
                one.sent(now);
                sent.push(now);
            }
            8 if !held.is_empty() => drop(held.swap_remove(dice.random_range(0..held.len()))),
            _ => {}
        }
        let within = |times: &[Instant], ms: u64| times.iter().rev().take_while(|at| now - **at < Duration::from_millis(ms)).count();
        // The window moves by the second: calls of up to ten seconds permit, retries of the last nine are certain to count.
        let most = within(&calls, 10_000) / 5 + 10;
        assert!(budget.held() as usize == held.len());
        if dice.random_ratio(1, 10)
            && let Some(one) = budget.withdraw(now)
        {
            assert!(within(&sent, 9_000) + held.len() < most + 1, "{} sent and {} held of {most}", within(&sent, 9_000), held.len());
            drop(one);
        }
    }
    assert!(sent.len() > 100, "{}", sent.len());
}

#[test]
fn at_once_no_more_are_taken_than_there_are() {
    let now = Instant::now();
    let budget = budget(20, 1, now);
    let taken: usize = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    for _ in 0..2_500 {
                        budget.call(now);
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| taken(&budget, now))).collect();
        let held: Vec<_> = threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        held.len()
    });
    assert_eq!(taken, 2_010);
    assert_eq!(budget.held(), 0);
}

/// Not a check of speed but a way to see it: `cargo test --release -p horos-router cost -- --ignored --nocapture`.
#[test]
#[ignore = "prints a figure"]
fn call_cost() {
    let now = Instant::now();
    let budget = budget(20, 1, now);
    let rounds = 10_000_000u32;
    let started = Instant::now();
    for _ in 0..rounds {
        std::hint::black_box(&budget).call(now);
    }
    println!("a call: {:.1} ns", started.elapsed().as_secs_f64() * 1e9 / f64::from(rounds));
    let started = Instant::now();
    for _ in 0..rounds {
        drop(std::hint::black_box(budget.withdraw(now)).unwrap());
    }
    println!("withdraw + give back: {:.1} ns", started.elapsed().as_secs_f64() * 1e9 / f64::from(rounds));
}

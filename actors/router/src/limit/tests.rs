use std::{pin::pin, time::Duration};

use futures_util::{FutureExt as _, future::join_all, poll};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use super::*;

fn limit(limit: u32, queue: u32) -> Arc<Limit> {
    Limit::new(&config::Concurrency { limit, queue })
}

fn soon() -> Instant {
    tokio::time::Instant::now().into_std() + Duration::from_secs(60)
}

#[tokio::test(start_paused = true)]
async fn as_many_as_the_limit_have_a_place_as_many_as_the_queue_wait_and_the_rest_are_refused() {
    let limit = limit(2, 1);
    let (one, _other) = (limit.acquire(soon()).await.unwrap(), limit.acquire(soon()).await.unwrap());
    assert!(limit.try_acquire().is_none());
    let mut third = pin!(limit.acquire(soon()));
    assert!(poll!(&mut third).is_pending());
    assert_eq!(limit.acquire(soon()).await.unwrap_err(), Overloaded::Full);
    drop(one);
    let _third = third.await.unwrap();
    assert_eq!((limit.in_hand(), limit.waiting()), (2, 0));
}

#[tokio::test(start_paused = true)]
async fn who_waited_longest_is_next_and_nobody_overtakes() {
    let limit = limit(1, 10);
    let first = limit.acquire(soon()).await.unwrap();
    let mut waiting: Vec<_> = (0..5).map(|_| Box::pin(limit.acquire(soon()))).collect();
    for one in &mut waiting {
        assert!(poll!(one).is_pending());
    }
    drop(first);
    for mut one in waiting {
        assert!(limit.try_acquire().is_none());
        let Some(permit) = (&mut one).now_or_never() else { panic!("it was next") };
        drop(permit.unwrap());
    }
    assert_eq!((limit.in_hand(), limit.waiting()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn who_has_no_time_left_is_refused_and_leaves_the_queue() {
    let limit = limit(1, 10);
    let held = limit.acquire(soon()).await.unwrap();
    let began = tokio::time::Instant::now();
    let until = began.into_std() + Duration::from_millis(50);
    assert_eq!(limit.acquire(until).await.unwrap_err(), Overloaded::DeadlinePassed);
    assert_eq!(began.elapsed().as_millis(), 50);
    assert_eq!((limit.in_hand(), limit.waiting()), (1, 0));
    drop(held);
    assert!(limit.acquire(until).await.is_ok(), "a free place takes no time");
}

#[tokio::test(start_paused = true)]
async fn who_is_cancelled_leaves_no_hole_even_with_a_place_under_way() {
    let limit = limit(1, 10);
    let held = limit.acquire(soon()).await.unwrap();
    let mut cancelled = Box::pin(limit.acquire(soon()));
    let mut given = Box::pin(limit.acquire(soon()));
    let mut next = Box::pin(limit.acquire(soon()));
    assert!(poll!(&mut cancelled).is_pending() && poll!(&mut given).is_pending() && poll!(&mut next).is_pending());
    drop(cancelled);
    assert_eq!(limit.waiting(), 2);
    drop(held);
    // It has been given its place and is cancelled before it looks.
    drop(given);
    drop(next.now_or_never().unwrap().unwrap());
    assert_eq!((limit.in_hand(), limit.waiting()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn another_limit_keeps_who_holds_a_place_and_who_waits() {
    let limit = limit(1, 4);
    let mut held = vec![limit.acquire(soon()).await.unwrap()];
    let mut waiting: Vec<_> = (0..4).map(|_| Box::pin(limit.acquire(soon()))).collect();
    for one in &mut waiting {
        assert!(poll!(one).is_pending());
    }
    limit.set(&config::Concurrency { limit: 3, queue: 0 });
    let rest = waiting.split_off(2);
    for one in waiting {
        held.push(one.now_or_never().unwrap().unwrap());
    }
    limit.set(&config::Concurrency { limit: 1, queue: 0 });
    assert_eq!((limit.in_hand(), limit.waiting()), (3, 2));
    held.truncate(1);
    assert_eq!((limit.in_hand(), limit.waiting()), (1, 2));
    drop(held);
    for one in rest {
        drop(one.await.unwrap());
    }
    assert_eq!(limit.in_hand(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn however_they_come_and_go_no_place_is_lost_and_none_is_taken_twice() {
    let seed: u64 = rand::random();
    eprintln!("seed {seed}");
    let limit = limit(3, 50);
    let busy = Arc::new(std::sync::atomic::AtomicU32::new(0));
    let tasks = (0..64u64).map(|task| {
        let (limit, busy) = (Arc::clone(&limit), Arc::clone(&busy));
        tokio::spawn(async move {
            let mut dice = StdRng::seed_from_u64(seed ^ task);
            for _ in 0..100 {
                let patience = Duration::from_micros(dice.random_range(0..2_000));
                // Cut off from outside as well as by its own deadline.
                let acquire = limit.acquire(Instant::now() + patience);
                let outside = Duration::from_micros(dice.random_range(0..3_000));
                if let Ok(Ok(permit)) = tokio::time::timeout(outside, acquire).await {
                    use std::sync::atomic::Ordering::SeqCst;
                    assert!(busy.fetch_add(1, SeqCst) < 3);
                    tokio::task::yield_now().await;
                    busy.fetch_sub(1, SeqCst);
                    drop(permit);
                }
            }
        })
    });
    for task in join_all(tasks).await {
        task.unwrap();
    }
    assert_eq!((limit.in_hand(), limit.waiting()), (0, 0));
}

/// Not a check of speed but a way to see it: `cargo test --release -p horos-router cost -- --ignored --nocapture`.
#[tokio::test]
#[ignore = "prints a figure"]
async fn acquire_cost() {
    let (limit, until) = (limit(1_000, 0), soon());
    let rounds = 10_000_000u32;
    let started = Instant::now();
    for _ in 0..rounds {
        drop(std::hint::black_box(limit.acquire(until).await).unwrap());
    }
    println!("acquire + release: {:.1} ns", started.elapsed().as_secs_f64() * 1e9 / f64::from(rounds));
}

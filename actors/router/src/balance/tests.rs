mod outage;

use std::time::Duration;

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use super::*;

fn candidate(weight: u32, locality: Locality, now: Instant) -> Candidate {
    Candidate { weight, canary_percent: None, locality, load: Load::new(now) }
}

fn canary(percent: u32, now: Instant) -> Candidate {
    Candidate { canary_percent: Some(percent), ..candidate(1, Locality::Node, now) }
}

/// How often each is chosen of so many first attempts, all idle.
fn shares(balance: &Balance, calls: u32, now: Instant, healthy: impl Fn(usize) -> bool) -> Vec<u32> {
    let mut dice = StdRng::seed_from_u64(11);
    let mut shares = vec![0; balance.candidates().len()];
    for _ in 0..calls {
        shares[balance.choose(now, 0, dice.random(), &healthy).unwrap()] += 1;
    }
    shares
}

#[test]
fn idle_endpoints_are_chosen_by_their_weights() {
    let now = Instant::now();
    for weights in [[1, 1, 1], [1, 2, 7], [10, 1, 1_000]] {
        let balance = Balance::new(weights.map(|weight| candidate(weight, Locality::Node, now)));
        let total = f64::from(weights.iter().sum::<u32>());
        for (share, weight) in shares(&balance, 100_000, now, |_| true).into_iter().zip(weights) {
            let (share, wanted) = (f64::from(share) / 100_000.0, f64::from(weight) / total);
            // Five standard deviations.
            let off = 5.0 * (wanted * (1.0 - wanted) / 100_000.0).sqrt();
            assert!((share - wanted).abs() <= off, "{share} of {wanted} for {weights:?}");
        }
    }
}

#[test]
fn busy_endpoints_have_calls_in_flight_by_their_weights_and_the_less_loaded_is_chosen() {
    let now = Instant::now();
    let balance = Balance::new([3, 1, 2].map(|weight| candidate(weight, Locality::Node, now)));
    let mut dice = StdRng::seed_from_u64(5);
    let mut flying: Vec<Vec<InFlight>> = vec![vec![], vec![], vec![]];
    let begin = |flying: &mut Vec<Vec<InFlight>>, random| {
        let chosen = balance.choose(now, 0, random, |_| true).unwrap();
        flying[chosen].push(balance.candidates()[chosen].load.begin());
    };
    for _ in 0..600 {
        begin(&mut flying, dice.random());
    }
    let counts: Vec<_> = flying.iter().map(Vec::len).collect();
    for (count, wanted) in counts.iter().zip([300, 100, 200]) {
        assert!(count.abs_diff(wanted) <= wanted / 20 + 2, "{counts:?}");
    }
    flying[1].clear();
    for _ in 0..50 {
        begin(&mut flying, dice.random());
    }
    // Whenever it is drawn, of two: a sixth of the weight, it is every 2.4th time.
    assert!(flying[1].len() > 12, "the idle one catches up: {}", flying[1].len());
}

#[test]
fn the_slower_one_is_avoided_until_it_is_forgotten_that_it_was_and_noise_is_ignored() {
    let start = Instant::now();
    let balance = Balance::new([candidate(1, Locality::Node, start), candidate(1, Locality::Node, start)]);
    let answer = |at: usize, ms: u64, now| {
        for _ in 0..50 {
            balance.candidates()[at].load.begin().answered(Duration::from_millis(ms), now, true);
        }
    };
    answer(0, 10, start);
    answer(1, 19, start);
    let even = shares(&balance, 10_000, start, |_| true);
    assert!(even[0].abs_diff(even[1]) < 500, "{even:?}");
    answer(1, 100, start);
    assert_eq!(shares(&balance, 1_000, start, |_| true), [1_000, 0]);
    // The quick one goes on answering; of the slow one nothing is heard.
    let mut now = start;
    while shares(&balance, 100, now, |_| true)[1] == 0 {
        now += Duration::from_secs(1);
        answer(0, 10, now);
        assert!(now - start < Duration::from_secs(30), "it is never tried again");
    }
    assert!(now - start > Duration::from_secs(5));
}

#[test]
fn an_endpoint_that_fails_at_once_is_not_a_quick_one() {
    let now = Instant::now();
    let load = Load::new(now);
    load.begin().answered(Duration::from_millis(100), now, true);
    for _ in 0..100 {
        load.begin().answered(Duration::from_micros(10), now, false);
    }
    assert!(load.latency(now) >= Duration::from_millis(99), "{:?}", load.latency(now));
    drop(load.begin());
    assert_eq!((load.in_flight(), load.latency(now + Duration::from_secs(3_600))), (0, Duration::ZERO));
}

#[test]
fn the_nearest_are_chosen_as_long_as_one_of_them_is_healthy() {
    let now = Instant::now();
    let places = [Locality::Elsewhere, Locality::Role, Locality::Node, Locality::Node, Locality::Role];
    let balance = Balance::new(places.map(|locality| candidate(1, locality, now)));
    let chosen = |down: &[usize]| {
        let shares = shares(&balance, 200, now, |at| !down.contains(&at));
        shares.iter().enumerate().filter(|(_, share)| **share > 0).map(|(at, _)| at).collect::<Vec<_>>()
    };
    assert_eq!(chosen(&[]), [2, 3]);
    assert_eq!(chosen(&[2]), [3]);
    assert_eq!(chosen(&[2, 3]), [1, 4]);
    assert_eq!(chosen(&[1, 2, 3, 4]), [0]);
    assert_eq!(chosen(&[0, 1, 2, 3, 4]).len(), 1, "whose breaker says when to come again");
}

#[test]
fn a_canary_has_exactly_its_share_of_the_first_attempts_and_never_two_in_a_row() {
    let now = Instant::now();
    for (one, other) in [(1, 0), (5, 0), (7, 13), (30, 20), (0, 50)] {
        let balance =
            Balance::new([candidate(1, Locality::Node, now), canary(one, now), candidate(1, Locality::Elsewhere, now), canary(other, now)]);
        let shares = shares(&balance, 10_000, now, |_| true);
        assert_eq!((shares[1], shares[3], shares[2]), (one * 100, other * 100, 0));
        let mut last = usize::MAX;
        for _ in 0..200 {
            let chosen = balance.choose(now, 0, 0, |_| true).unwrap();
            assert!(chosen != last || chosen.is_multiple_of(2) || one + other > 40, "{one} and {other}");
            last = chosen;
        }
    }
    let balance = Balance::new([candidate(1, Locality::Node, now), canary(50, now)]);
    assert_eq!(shares(&balance, 1_000, now, |at| at != 1), [1_000, 0], "not one that is down");
    assert_eq!(shares(&balance, 1_000, now, |at| at != 0), [0, 1_000], "but all, when no other is left");
    assert!((0..1_000).all(|n| balance.choose(now, 1 << 1, n << 20, |_| true) == Some(0)), "a second attempt is no canary's");
    assert_eq!(balance.choose(now, 1, 0, |_| true), Some(1));
}

#[test]
fn weight_nothing_is_only_when_no_other_is_healthy() {
    let now = Instant::now();
    let balance =
        Balance::new([candidate(0, Locality::Node, now), candidate(1, Locality::Elsewhere, now), candidate(0, Locality::Node, now)]);
    assert_eq!(shares(&balance, 1_000, now, |_| true), [0, 1_000, 0]);
    let down = shares(&balance, 1_000, now, |at| at != 1);
    assert!(down[0] > 400 && down[1] == 0 && down[2] > 400, "{down:?}");
}

#[test]
fn what_was_tried_is_tried_again_only_if_nothing_else_is_left() {
    let now = Instant::now();
    let balance = Balance::new((0..32).map(|_| candidate(1, Locality::Node, now)));
    let mut dice = StdRng::seed_from_u64(3);
    for _ in 0..50 {
        let mut tried = 0;
        for _ in 0..32 {
            let chosen = balance.choose(now, tried, dice.random(), |_| true).unwrap();
            assert_eq!(tried & 1 << chosen, 0);
            tried |= 1 << chosen;
        }
        assert_eq!(tried, u32::MAX);
        assert!(balance.choose(now, tried, dice.random(), |_| true).is_some());
        assert_eq!(balance.choose(now, tried, dice.random(), |at| at == 17), Some(17));
        assert_eq!(balance.choose(now, 1 << 17, dice.random(), |at| at == 17), Some(17), "the others are down");
    }
}

#[test]
fn of_none_there_is_none_and_of_one_it_is_that() {
    let now = Instant::now();
    assert_eq!(Balance::new([]).choose(now, 0, 0, |_| true), None);
    let one = Balance::new([candidate(0, Locality::Elsewhere, now)]);
    assert_eq!(one.choose(now, u32::MAX, u64::MAX, |_| false), Some(0));
    assert_eq!(Balance::new((0..40).map(|_| candidate(1, Locality::Node, now))).candidates().len(), 32);
}

mod whatever {
    use proptest::prelude::*;

    use super::*;

    fn candidates() -> impl Strategy<Value = Vec<(u32, Option<u32>, u8)>> {
        prop::collection::vec((0u32..4, prop_oneof![3 => Just(None), 1 => (0u32..4).prop_map(Some)], 0u8..3), 1..33)
    }

    proptest! {
        #[test]
        fn stands_it_chooses_a_healthy_one_that_was_not_tried_if_there_is_one(
            given in candidates(), exclude in any::<u32>(), down in any::<u32>(), random in any::<u64>()
        ) {
            let now = Instant::now();
            let tiers = [Locality::Node, Locality::Role, Locality::Elsewhere];
            let balance = Balance::new(given.iter().map(|(weight, canary_percent, tier)| Candidate {
                canary_percent: *canary_percent,
                ..candidate(*weight, tiers[usize::from(*tier)], now)
            }));
            let healthy = |at: usize| down & 1 << at == 0;
            let chosen = balance.choose(now, exclude, random, healthy).unwrap();
            prop_assert!(chosen < given.len());
            let (untried, alive) = (|at: &usize| exclude & 1 << at == 0, |at: &usize| healthy(*at));
            let all = 0..given.len();
            if given.len() > 1 && all.clone().any(|at| untried(&at) && alive(&at)) {
                prop_assert!(untried(&chosen) && alive(&chosen));
                let regular = |at: &usize| given[*at].0 > 0 && given[*at].1.is_none();
                let better = all.clone().filter(|at| untried(at) && alive(at) && regular(at)).map(|at| given[at].2).min();
                let is_canary = exclude == 0 && given[chosen].1.is_some_and(|percent| percent > 0);
                if let Some(nearest) = better && !is_canary {
                    prop_assert!(regular(&chosen) && given[chosen].2 == nearest);
                }
            } else if given.len() > 1 && all.clone().any(|at| alive(&at)) {
                prop_assert!(alive(&chosen));
            }
        }
    }
}

/// Not a check of speed but a way to see it: `cargo test --release -p horos-router cost -- --ignored --nocapture`.
#[test]
#[ignore = "prints a figure"]
fn choose_cost() {
    let now = Instant::now();
    for count in [1, 3, 32] {
        let balance = Balance::new((0..count).map(|_| candidate(1, Locality::Node, now)));
        let rounds = 5_000_000u32;
        let started = Instant::now();
        for round in 0..rounds {
            let random = u64::from(round).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let chosen = std::hint::black_box(balance.choose(now, 0, random, |_| true)).unwrap();
            balance.candidates()[chosen].load.begin().answered(Duration::from_micros(5), now, true);
        }
        println!("choose + load, of {count}: {:.1} ns", started.elapsed().as_secs_f64() * 1e9 / f64::from(rounds));
    }
}

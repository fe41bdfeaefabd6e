use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

fn per_minute(count: u32) -> NonZeroU32 {
    NonZeroU32::new(count).unwrap()
}

fn after(limiter: &Limiter, millis: u64) -> Instant {
    limiter.start + Duration::from_millis(millis)
}

fn key(number: u32) -> Key {
    address_key(IpAddr::from(number.to_be_bytes()))
}

#[test]
fn a_minutes_worth_comes_at_once_and_then_one_at_a_time() {
    let limiter = Limiter::new(8);
    let at = |millis| after(&limiter, millis);
    for left in (0..5).rev() {
        assert_eq!(limiter.take(&key(1), per_minute(5), at(0)), Ok(left));
    }
    assert_eq!(limiter.take(&key(1), per_minute(5), at(0)), Err(Wait(Duration::from_secs(12))));
    assert_eq!(limiter.take(&key(1), per_minute(5), at(11_500)).unwrap_err().seconds(), 1);
    assert_eq!(limiter.take(&key(2), per_minute(5), at(0)), Ok(4), "another is not counted with it");
    assert_eq!(limiter.take(&key(1), per_minute(5), at(12_000)), Ok(0));
    assert!(limiter.take(&key(1), per_minute(5), at(12_001)).is_err());
    assert_eq!(limiter.take(&key(1), per_minute(5), at(90_000)), Ok(4), "who was silent long enough owes nothing");
}

#[test]
fn a_look_counts_nothing() {
    let limiter = Limiter::new(8);
    let now = after(&limiter, 5);
    for _ in 0..100 {
        assert_eq!(limiter.look(&key(1), per_minute(1), now), Ok(()));
    }
    assert_eq!(limiter.take(&key(1), per_minute(1), now), Ok(0));
    assert_eq!(limiter.look(&key(1), per_minute(1), now), Err(Wait(Duration::from_secs(60))));
}

#[test]
fn each_key_may_have_a_limit_of_its_own() {
    let limiter = Limiter::new(8);
    let now = after(&limiter, 0);
    let (few, many) = (limiter.name_key("few"), limiter.name_key("many"));
    assert_ne!(few, many);
    assert_eq!(few, limiter.name_key("few"));
    assert_eq!(limiter.take(&few, per_minute(1), now), Ok(0));
    assert!(limiter.take(&few, per_minute(1), now).is_err());
    assert_eq!(limiter.take(&many, NonZeroU32::MAX, now), Ok(u32::MAX - 1));
}

#[test]
fn an_ipv6_client_does_not_get_away_by_changing_its_address() {
    let of = |text: &str| address_key(text.parse().unwrap());
    assert_eq!(of("2001:db8:1:2::1"), of("2001:db8:1:2:ffff:ffff:ffff:ffff"));
    assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
    assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
    assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
}

#[test]
fn a_flood_of_addresses_does_not_push_out_one_that_is_at_its_limit() {
    let limiter = Limiter::new(256);
    let now = after(&limiter, 0);
    let abuser = key(u32::MAX);
    while limiter.take(&abuser, per_minute(30), now).is_ok() {}
    // A hundred times as many as there are places.
    for stranger in 0..25_600 {
        let now = after(&limiter, u64::from(stranger) / 100);
        let _counted = limiter.take(&key(stranger), per_minute(30), now);
        assert!(limiter.take(&abuser, per_minute(30), now).is_err(), "forgotten after {stranger}");
    }
    assert!(limiter.table.len() <= 256, "{}", limiter.table.len());
}

#[test]
fn a_newcomer_takes_the_place_of_whoever_owes_the_least_by_now() {
    let limiter = Limiter::new(64);
    let now = after(&limiter, 0);
    let take = |number: u32| limiter.take(&key(number), per_minute(100), now);
    for number in 0..64 {
        for _ in 0..=number {
            assert!(take(number).is_ok());
        }
    }
    assert_eq!(take(100), Ok(98), "instead of key 0, which owed one");
    while take(100).is_ok() {}
    assert_eq!(take(101), Ok(97), "instead of key 1, which owed two: the one before owes a hundred");
    assert!(take(100).is_err());
    assert_eq!(take(0), Ok(96), "instead of 101 or 2, which owe three: and so never less than it owed before");
}

#[test]
fn strangers_one_by_one_are_not_refused_for_each_other() {
    let limiter = Limiter::new(64);
    // A new address every 2.5 s: none of those that are known owes anything any longer.
    for stranger in 0..10_000 {
        let now = after(&limiter, u64::from(stranger) * 2_500);
        assert_eq!(limiter.take(&key(stranger), per_minute(30), now), Ok(29));
    }
}

#[test]
fn one_place_is_enough_to_hold_the_bound() {
    let limiter = Limiter::new(0);
    let now = after(&limiter, 0);
    let through = (0..100).filter(|i| limiter.take(&key(i % 7), per_minute(10), now).is_ok()).count();
    assert_eq!(through, 10, "all share the one place");
}

proptest! {
    /// The promise of the table: however few places it has and whoever comes, each key gets at most what GCRA grants it
    /// when it is counted alone, and never waits longer than what it is told.
    #[test]
    fn no_key_ever_gets_more_than_its_limit(
        places in 1_usize..40,
        limit in 1_u32..20,
        steps in prop::collection::vec((0_u32..60, 0_u64..4_000), 1..600),
    ) {
        let limiter = Limiter::new(places);
        let mut millis = 0;
        let mut taken: HashMap<u32, Vec<u64>> = HashMap::new();
        for (number, pause) in steps {
            millis += pause;
            match limiter.take(&key(number), per_minute(limit), after(&limiter, millis)) {
                Ok(left) => {
                    prop_assert!(left < limit);
                    taken.entry(number).or_default().push(millis);
                }
                Err(wait) => prop_assert!(wait.0 <= Duration::from_secs(60) && !wait.0.is_zero(), "{wait:?}"),
            }
            prop_assert!(limiter.table.len() <= places);
        }
        for times in taken.values() {
            for (i, from) in times.iter().enumerate() {
                for (j, to) in times.iter().enumerate().skip(i) {
                    let allowed = u64::from(limit) + u64::from(limit) * (to - from) / 60_000;
                    prop_assert!((j - i + 1) as u64 <= allowed, "{} within {} ms", j - i + 1, to - from);
                }
            }
        }
    }
}

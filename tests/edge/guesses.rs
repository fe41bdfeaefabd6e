//! Whoever guesses keys is refused, counted and told of, and costs those who have one nothing.

mod measured {
    use std::time::{Duration, Instant};

    use serde_json::Value;

    use super::super::attacks::{Attack, Order, Raid};
    use super::super::metrics;
    use crate::harness::http::{Ask, Session, Speaks, metric};
    use crate::harness::{Cluster, outside, poll_state, scale};

    /// Attackers, each with a connection from an address of its own.
    const GUESSERS: u64 = 64;
    /// Wrong keys that an address may show in a minute, by default.
    const PER_ADDRESS: u64 = 30;
    /// What the promise names, for one minute.
    const FULL: u64 = 1_000_000;

    /// The guesses come to an FO, which has a replica of the keys; the BO owns them.
    #[tokio::test]
    async fn a_million_guesses_a_minute_open_nothing_and_hold_nobody_up() {
        let (_cluster, mut bo, mut fo) = Cluster::pair_with(outside::drill().await, |node| {
            // Only guesses are counted here; a limit of requests from one address would hide them.
            node.set("HTTP_LIMITS__PER_ADDRESS", "0");
            node.set("HTTP_LIMITS__PER_IDENTITY", "0");
        })
        .await;
        let key = bo.key(&["drill", "metrics"]).await;
        let wanted = scale(30_000, FULL);
        let before = fo.process().rss();
        // As long as it may take a debug build that shares its cores; in full it is a minute's work.
        let limit = Duration::from_secs(scale(60, 300));
        let order = Order {
            attack: Attack::Guesses,
            site: fo.site(),
            key: format!("hk_{:064x}", 0),
            amount: GUESSERS,
            seconds: 2 * limit.as_secs(),
        };
        let mut raid = Raid::begin(&order).await;
        let began = Instant::now();
        let all = |tally: &Value| ["denied", "told_to_wait", "other"].map(|kind| tally[kind].as_u64().unwrap_or_default());
        let earlier: u64 = all(&raid.tally()).iter().sum();
        // Meanwhile somebody with a key, over and over.
        let (site, good) = (fo.site(), key.clone());
        let served = tokio::spawn(async move {
            let mut session = Session::open(&site, Speaks::Http2).await.unwrap();
            let ask = Ask::get("/drill/echo").key(&good);
            session.times(&ask, scale(200, 1_000), Duration::from_millis(15)).await.unwrap()
        });
        let tally = raid.until("enough guesses", limit, |tally| all(tally).iter().sum::<u64>() >= earlier + wanted).await;
        let took = began.elapsed();
        let [denied, told_to_wait, other] = all(&tally);
        let pace = ((denied + told_to_wait - earlier) as f64 / took.as_secs_f64() * 60.0) as u64;
        let times = served.await.unwrap();
        drop(raid);
        eprintln!(
            "{pace} guesses a minute: {denied} denied and {told_to_wait} told to wait by {took:?}; with a key: median {:?}, slowest {:?}",
            times[times.len() / 2],
            times.last().unwrap()
        );
        assert_eq!(other, 0, "neither refused nor told to wait: {tally}");
        assert!(pace >= scale(0, FULL), "{pace} a minute are fewer than the promise is about");
        // So many at once, and as many in each minute since the first came.
        assert!(denied <= GUESSERS * PER_ADDRESS * (took.as_secs() / 60 + 3), "{denied} were looked at in {took:?}");
        assert!(times.last().unwrap() < &Duration::from_secs(2), "{:?}", times.last());

        let page = metrics(&fo, &key).await;
        let counted = |reason: &str| metric(&page, "horos_refused_total", &[&format!("reason=\"{reason}\"")]);
        assert!(counted("unauthenticated") >= denied as f64 * 0.9, "{}", counted("unauthenticated"));
        assert!(counted("rate_guesses") >= told_to_wait as f64 * 0.9, "{}", counted("rate_guesses"));
        // A guess leaves nothing behind.
        let grown = fo.process().rss().saturating_sub(before);
        assert!(grown < 64 << 20, "{} KiB for {} guesses", grown / 1024, denied + told_to_wait);

        // The owner of the keys is told, and says so.
        let told = poll_state("the owner knows", Duration::from_secs(10), async || {
            let minutes = bo.ask(&["keys", "refused"]).await.expect_code(0).json();
            let of_fo = minutes.as_array().into_iter().flatten().filter(|it| it["node"] == "fo-1");
            let unknown = of_fo.filter_map(|it| it["refusals"]["unknown"].as_u64()).sum::<u64>();
            if unknown as f64 >= denied as f64 * 0.9 { Ok(unknown) } else { Err(minutes.to_string()) }
        })
        .await;
        eprintln!("the owner was told of {told}");
        bo.process().wait_for_line("somebody is guessing", Duration::from_secs(10), |line| line.contains("guessing")).await;
    }
}

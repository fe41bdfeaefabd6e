//! Whoever guesses keys is refused, counted and told of, and costs those who have one nothing.

mod measured {
    use std::time::{Duration, Instant};

    use serde_json::Value;

    use super::super::attacks::{Attack, Order, Raid};
    use super::super::{metrics, served};
    use crate::harness::http::{Ask, Session, Speaks, metric};
    use crate::harness::{poll_state, scale};

    #[tokio::test]
    async fn a_million_guesses_a_minute_open_nothing_and_hold_nobody_up() {
        let (_cluster, mut bo) = served(|bo| {
            // Only guesses are counted here; a limit of requests from one address would hide them.
            bo.set("HTTP_LIMITS__PER_ADDRESS", "0");
            bo.set("HTTP_LIMITS__PER_IDENTITY", "0");
        })
        .await;
        let key = bo.key(&["drill", "metrics"]).await;
        let wanted = scale(10_000, 1_000_000);
        let before = bo.process().rss();
        let order = Order { attack: Attack::Guesses, site: bo.site(), key: String::new(), amount: 64, seconds: scale(60, 900) };
        let began = Instant::now();
        let mut raid = Raid::begin(&order).await;
        // Meanwhile somebody with a key, over and over.
        let (site, good) = (bo.site(), key.clone());
        let served = tokio::spawn(async move {
            let mut session = Session::open(&site, Speaks::Http2).await.unwrap();
            let ask = Ask::get("/drill/echo").key(&good);
            session.times(&ask, scale(200, 2_000), Duration::from_millis(15)).await.unwrap()
        });
        let all = |tally: &Value| ["denied", "told_to_wait", "other"].map(|kind| tally[kind].as_u64().unwrap_or_default());
        let tally =
            raid.until("enough guesses", Duration::from_secs(scale(60, 800)), |tally| all(tally).iter().sum::<u64>() >= wanted).await;
        let took = began.elapsed();
        let times = served.await.unwrap();
        let [denied, told_to_wait, other] = all(&tally);
        let pace = (denied + told_to_wait) as f64 / took.as_secs_f64() * 60.0;
        eprintln!(
            "{denied} denied and {told_to_wait} told to wait in {took:?} ({pace:.0} a minute); with a key: median {:?}, slowest {:?}",
            times[times.len() / 2],
            times.last().unwrap()
        );
        assert_eq!(other, 0, "neither refused nor told to wait: {tally}");
        // The default of 30 a minute from each of 64 addresses, and some that fall into the next minutes.
        let minutes = took.as_secs() / 60 + 2;
        assert!(denied <= 64 * 30 * minutes, "{denied} were looked at in {took:?}");
        assert!(times.last().unwrap() < &Duration::from_secs(2), "{:?}", times.last());

        let page = metrics(&bo, &key).await;
        let counted = |reason: &str| metric(&page, "horos_refused_total", &[&format!("reason=\"{reason}\"")]);
        assert!(counted("unauthenticated") >= denied as f64 * 0.9, "{}", counted("unauthenticated"));
        assert!(counted("rate_guesses") >= told_to_wait as f64 * 0.9, "{}", counted("rate_guesses"));
        // A guess leaves nothing behind.
        let grown = bo.process().rss().saturating_sub(before);
        assert!(grown < 64 << 20, "{} KiB for {} guesses", grown / 1024, denied + told_to_wait);

        // The owner of the keys is told, and says so.
        let told = poll_state("the owner knows", Duration::from_secs(10), async || {
            let minutes = bo.ask(&["keys", "refused"]).await.expect_code(0).json();
            let unknown = minutes.as_array().into_iter().flatten().filter_map(|it| it["refusals"]["unknown"].as_u64()).sum::<u64>();
            if unknown as f64 >= denied as f64 * 0.9 { Ok(minutes) } else { Err(minutes.to_string()) }
        })
        .await;
        assert_eq!(told[0]["node"], "bo-1", "{told}");
        bo.process().wait_for_line("somebody is guessing", Duration::from_secs(10), |line| line.contains("guessing")).await;
    }
}

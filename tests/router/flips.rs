//! Calls while the row is changed a hundred times a second.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::world::{Load, World, becomes, connect, each_once, handled};
use crate::harness::scale;

/// As many places as the row is led to in turn; as the program has counters.
const RING: u64 = 256;
/// Between two changes.
const EVERY: Duration = Duration::from_millis(10);

/// Where the row leads by its `number`-th change, so that each answer tells which change it is from.
fn place(number: u64, port: u16) -> (&'static str, Option<String>, Value) {
    let name = format!("c{}", number % RING);
    match number % 4 {
        0 => ("local", Some(name), json!({})),
        1 => ("quic", Some(format!("{name}@fo-1")), json!({})),
        2 => {
            let scheme = if number % 8 == 2 { "https" } else { "h3" };
            ("http", Some(format!("{scheme}://localhost:{port}/services/{name}")), json!({}))
        }
        _ => ("noop", None, json!({ "reply": { "by": format!("n{}", number % RING) } })),
    }
}

#[tokio::test]
async fn no_call_fails_is_handled_twice_or_goes_by_a_route_of_before_while_the_row_flips_a_hundred_times_a_second() {
    let calls = scale(40_000, 1_000_000);
    let mut world = World::start().await;
    world.trust_fo().await;
    let port = world.fo.address().port();
    // The other end of `http`: the FO's gateway, on its own port, over TLS and over QUIC.
    world.edit(&format!(
        "WITH RECURSIVE n(i) AS (SELECT 2 UNION ALL SELECT i + 4 FROM n WHERE i + 4 < {RING})
        INSERT INTO routes (service_name, strategy, config) SELECT 'c' || i, 'local', '{{\"gateway\": \"public\"}}' FROM n"
    ));
    for number in [1, 2, 3, 0] {
        let (strategy, endpoint, config) = place(number, port);
        world.route("stock", strategy, endpoint.as_deref(), &config);
        let by = match number {
            0 => "c0@bo-1".to_owned(),
            3 => "n3".to_owned(),
            _ => format!("c{number}@fo-1"),
        };
        if number == 1 {
            // With it the FO has every row before it; until then its gateway knows nothing of them, and breakers open.
            becomes(&world.fo, "stock", &by).await;
        }
        becomes(&world.bo, "stock", &by).await;
    }
    let (stop, told) = mpsc::channel::<()>();
    let flips = {
        let tables = connect(&world.bo);
        std::thread::spawn(move || {
            let began = Instant::now();
            let mut flip = 0;
            // By the clock: what one edit took too long, the next has less to wait.
            while told.recv_timeout((EVERY * (flip + 1)).saturating_sub(began.elapsed())).is_err() {
                flip += 1;
                let (strategy, endpoint, config) = place(flip.into(), port);
                let sql = "UPDATE routes SET strategy = ?1, endpoint = ?2, config = ?3 WHERE service_name = 'stock'";
                tables.execute(sql, (strategy, endpoint, config.to_string())).unwrap();
            }
            (flip, began.elapsed())
        })
    };
    let began = Instant::now();
    let load =
        Load::begin(&world.bo, json!({ "service": "stock", "calls": calls, "at_once": 8, "timeout_ms": 20_000, "ring": RING })).await;
    let record = load.finished(scale(Duration::from_secs(120), Duration::from_secs(1_100))).await;
    let took = began.elapsed();
    stop.send(()).unwrap();
    let (flips, during) = flips.join().unwrap();
    eprintln!("{calls} calls in {took:?}, {flips} flips in {during:?}, {} of them seen: {}", record["turns"], record["by"]);

    assert_eq!((&record["begun"], &record["done"]), (&json!(calls), &json!(calls)), "{record}");
    assert_eq!((&record["misrouted"], &record["no_effect"], &record["unknown"]), (&json!([]), &json!({}), &json!({})), "{record}");
    assert!(record["untold"].as_u64().unwrap() <= calls / 100, "too slow to tell: {record}");
    assert!(record["turns"].as_u64().unwrap() * 10 > u64::from(flips), "the row changed, and its route did not: {record}");
    for kind in ["c@fo-", "c@bo-", "n"] {
        assert!(record["by"][kind].as_u64().is_some_and(|count| count > 0), "{kind} served nobody: {record}");
    }
    let book = each_once(&handled(world.nodes()));
    let answered: u64 = ["c@fo-", "c@bo-"].iter().map(|kind| record["by"][kind].as_u64().unwrap()).sum();
    assert_eq!(book.len() as u64, answered, "handled, and somebody else answered");
    assert!(load.numbers("refused").is_empty() && load.numbers("unknown").is_empty());
}

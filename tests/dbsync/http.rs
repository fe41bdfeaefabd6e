//! Whoever writes through an FO reads it there: the shop of `horos up`, over HTTP, with the position that the write was answered with.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::http::{Ask, Session, Speaks};
use crate::harness::{Cluster, Site, poll_state, scale};

use super::world::sqlite3;

/// Writers, each of goods of its own.
const WRITERS: u64 = 6;
/// Readers at full speed meanwhile.
const READERS: usize = 3;
/// Write-then-read pairs.
const PAIRS: (u64, u64) = (500, 100_000);

fn quantity(levels: &Value, sku: &str) -> Option<u64> {
    levels.as_array()?.iter().find(|it| it["sku"] == sku)?["quantity"].as_u64()
}

/// Sells one and looks, again and again.
async fn write_then_read(site: Site, speaks: Speaks, key: String, sku: String, pairs: u64) -> Duration {
    let mut session = Session::open(&site, speaks).await.unwrap();
    let order = json!({ "sku": sku, "quantity": 1 }).to_string();
    let mut slowest = Duration::ZERO;
    for pair in 0..pairs {
        let began = Instant::now();
        let sold = session.ask(&Ask::new("POST", "/shop/order").key(&key).body("application/json", &*order)).await.unwrap();
        assert_eq!(sold.status, 201, "{sku}, pair {pair}: {sold:?}");
        let position = sold.header("x-sync-position").unwrap_or_else(|| panic!("{sku}, pair {pair}: no position: {sold:?}")).to_owned();
        let left = sold.json()["left"].as_u64().unwrap();
        let read = session.ask(&Ask::get("/shop/levels").key(&key).header("x-sync-position", &position)).await.unwrap();
        assert_eq!(read.status, 200, "{sku}, pair {pair}: {read:?}");
        // Nobody else sells it, so anything else is stale.
        assert_eq!(quantity(&read.json(), &sku), Some(left), "{sku}, pair {pair}, after {position}: {read:?}");
        slowest = slowest.max(began.elapsed());
    }
    slowest
}

#[tokio::test]
async fn what_was_written_through_an_fo_is_read_there_and_readers_at_full_speed_see_no_error() {
    let (_cluster, bo, fo) = Cluster::pair_with(crate::harness::HOROS, |node| {
        // The shop is on the nodes of `up`.
        node.variable("HOROS_PLAYGROUND", "1");
        node.set("HTTP_LIMITS__PER_ADDRESS", "0");
        node.set("HTTP_LIMITS__PER_IDENTITY", "0");
    })
    .await;
    let key = bo.key_record(&["shop"], &["--per-minute", "10000000"]).await["secret"].as_str().unwrap().to_owned();
    poll_state("the shop has its table", Duration::from_secs(20), async || {
        let said = super::world::content(&bo.data.join("app.db"), "SELECT listed FROM goods")?;
        if said.is_empty() { Err("no goods".to_owned()) } else { Ok(()) }
    })
    .await;
    let goods: Vec<_> = (0..WRITERS).map(|n| format!("INSERT INTO goods VALUES ('pair-{n}', 1000000, 500, 300, 1);")).collect();
    sqlite3(&bo.data.join("app.db"), &goods.concat());
    let site = fo.site();
    poll_state("the FO's shop has them", Duration::from_secs(20), async || {
        let mut session = Session::open(&site, Speaks::Http1).await.map_err(|error| error.to_string())?;
        let answer = session.ask(&Ask::get("/shop/levels").key(&key)).await.map_err(|error| error.to_string())?;
        let last = format!("pair-{}", WRITERS - 1);
        if answer.status == 200 && quantity(&answer.json(), &last).is_some() { Ok(()) } else { Err(format!("{answer:?}")) }
    })
    .await;
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let readers: Vec<_> = (0..READERS)
        .map(|n| {
            let (site, key, stopped) = (site.clone(), key.clone(), stopped.clone());
            tokio::spawn(async move {
                let mut session = Session::open(&site, Speaks::ALL[n % 3]).await.unwrap();
                let (mut done, mut last) = (0_u64, u64::MAX);
                while !*stopped.borrow() {
                    let answer = session.ask(&Ask::get("/shop/levels").key(&key)).await.unwrap();
                    assert_eq!(answer.status, 200, "reader {n}, read {done}: {answer:?}");
                    let now = quantity(&answer.json(), "pair-0").unwrap();
                    assert!(now <= last, "reader {n}: time went back from {last} to {now}");
                    (done, last) = (done + 1, now);
                }
                done
            })
        })
        .collect();
    let began = Instant::now();
    let pairs = scale(PAIRS.0, PAIRS.1) / WRITERS;
    let writers: Vec<_> = (0..WRITERS)
        .map(|n| {
            let speaks = Speaks::ALL[n as usize % 3];
            tokio::spawn(write_then_read(site.clone(), speaks, key.clone(), format!("pair-{n}"), pairs))
        })
        .collect();
    let mut slowest = Duration::ZERO;
    for writer in writers {
        slowest = slowest.max(writer.await.unwrap());
    }
    stop.send(true).unwrap();
    let mut reads = 0;
    for reader in readers {
        let done = reader.await.unwrap();
        assert!(done > 0);
        reads += done;
    }
    eprintln!("{} pairs in {:?}, the slowest {slowest:?}; {reads} reads meanwhile", pairs * WRITERS, began.elapsed());
}

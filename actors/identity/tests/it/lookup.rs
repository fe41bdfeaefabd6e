//! What a look at the tables costs. `cargo test -p horos-identity --release -- --ignored lookup --nocapture`.

use std::time::{Duration, Instant};

use horos_identity::Verifier;
use horos_wire::principal::Scope as Right;

use super::world::{LIMIT, START, owner};

#[tokio::test]
#[ignore = "prints figures"]
async fn lookup_among_a_million_on_the_own_thread_and_through_the_pool() {
    const KEYS: u64 = 1_000_000;
    const LOOKS: u64 = 20_000;
    let (bo, time, _) = owner().await;
    let text = |n: u64| format!("hk_{n:064x}");
    for batch in 0..KEYS / 10_000 {
        let fill = bo.writer.transaction(Instant::now() + LIMIT, move |tx| {
            let sql = "INSERT INTO api_keys (hash, id, owner, scopes, expires_at) VALUES (?1, ?2, 'ana', '[\"stock:read\"]', ?3)";
            let mut insert = tx.prepare_cached(sql)?;
            for n in batch * 10_000..(batch + 1) * 10_000 {
                insert.execute((&horos_identity::hash(&text(n)).unwrap().0[..], format!("key_{n:08}"), START * 2))?;
            }
            Ok::<_, horos_store::rusqlite::Error>(())
        });
        fill.await.unwrap();
    }
    let pick = |n: u64| text(n.wrapping_mul(0x9e37_79b9_7f4a_7c15) % KEYS);
    let verifier = Verifier::new(&bo.writer.config().open, time.clock());
    // By turns, so that both see the same noise; the middle, because a neighbour's turn on the processor is not ours to count.
    let (mut own, mut pool) = (Vec::new(), Vec::new());
    for n in 0..LOOKS {
        let text = pick(n);
        let started = Instant::now();
        // Never seen before, so that each is looked up.
        verifier.check(&text).unwrap();
        own.push(started.elapsed());
        let started = Instant::now();
        let hash = horos_identity::hash(&text).unwrap().0;
        let sql = "SELECT id, owner, scopes, per_minute, expires_at, revoked_at FROM api_keys WHERE hash = ?1";
        let found = bo.readers.read(Instant::now() + Duration::from_secs(5), move |tables| {
            tables.prepare_cached(sql)?.query_row([&hash[..]], |row| {
                let scopes = serde_json::from_str::<Vec<Right>>(row.get_ref(2)?.as_str()?).unwrap();
                Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?, scopes, row.get::<_, Option<u32>>(3)?, row.get::<_, i64>(4)?))
            })
        });
        found.await.unwrap();
        pool.push(started.elapsed());
    }
    for (what, mut times) in [("own connection", own), ("pool of readers", pool)] {
        times.sort_unstable();
        println!("{what}: p50 {:?}, p90 {:?}", times[times.len() / 2], times[times.len() * 9 / 10]);
    }
    let one = text(1);
    verifier.check(&one).unwrap();
    let started = Instant::now();
    for _ in 0..LOOKS {
        verifier.recall(&one).unwrap().unwrap();
    }
    println!("remembered: {:?}", started.elapsed() / LOOKS as u32);
    bo.stop().await;
}

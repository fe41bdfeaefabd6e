//! What capture costs a foreign writer. A measurement, not a promise: `cargo test -p horos-dbsync capture_cost -- --ignored --nocapture`.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use horos_store::rusqlite::Connection;

use crate::it::capture_world::{World, columns};

const SCHEMA: &str = "
    CREATE TABLE item(id INTEGER PRIMARY KEY, sku TEXT, name TEXT, price INT, body TEXT);
    CREATE TABLE sold(id INTEGER PRIMARY KEY, code TEXT UNIQUE, item INT, at TEXT);
    CREATE INDEX sold_item ON sold(item);
    CREATE TABLE s(n INT, r TEXT);
    WITH RECURSIVE i(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM i WHERE n < 100000) INSERT INTO s SELECT n, hex(randomblob(16)) FROM i;";

/// What this thread has computed for, as Linux counts it: other work on the machine does not count.
fn computed() -> Duration {
    let schedstat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(schedstat.split_whitespace().next().unwrap().parse().unwrap())
}

/// The least of computing, and of time, that `work` takes, on each of `paths` in turn.
fn least(paths: [&Path; 2], times: u32, undo: &str, work: impl Fn(&Connection)) -> [(Duration, Duration); 2] {
    let mut best = [(Duration::MAX, Duration::MAX); 2];
    for _ in 0..times {
        for (path, best) in paths.iter().zip(&mut best) {
            let connection = Connection::open(path).unwrap();
            connection.execute_batch("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL").unwrap();
            connection.execute_batch(&format!("{undo}; PRAGMA wal_checkpoint(TRUNCATE)")).unwrap();
            let (start, before) = (Instant::now(), computed());
            work(&connection);
            *best = (best.0.min(computed() - before), best.1.min(start.elapsed()));
        }
    }
    best
}

#[test]
#[ignore = "a measurement"]
fn what_capture_costs() {
    let world = World::new(
        SCHEMA,
        vec![
            columns(1, "item", &["id", "sku", "name", "price", "body"], &["id"]),
            columns(2, "sold", &["id", "code", "item", "at"], &["id"]),
        ],
    );
    let single = |connection: &Connection| {
        for n in 0..300 {
            connection.execute("INSERT INTO sold(code, item, at) VALUES (?1, ?1, 'now')", [n]).unwrap();
        }
    };
    let batch = |sql: &'static str| move |connection: &Connection| connection.execute_batch(sql).unwrap();
    type Work<'a> = &'a dyn Fn(&Connection);
    // As programs and `.import` do it: one prepared statement a row.
    let rows = |connection: &Connection| {
        connection.execute_batch("BEGIN").unwrap();
        let mut insert = connection.prepare("INSERT INTO item(sku, name, price, body) VALUES (?1, ?2, ?3, ?4)").unwrap();
        let body = "x".repeat(128);
        for n in 0..100_000 {
            insert.execute((&body[..32], &body[..32], n, &body)).unwrap();
        }
        connection.execute_batch("COMMIT").unwrap();
    };
    let load = batch("INSERT INTO item(sku, name, price, body) SELECT r, r, n, r || r || r || r FROM s");
    let indexed = batch("INSERT INTO sold(code, item, at) SELECT r, n, 'now' FROM s");
    let update = batch("UPDATE item SET price = price + 1");
    let delete = batch("DELETE FROM item WHERE id > 0");
    let filled = "DELETE FROM item; INSERT INTO item(sku, name, price, body) SELECT r, r, n, r || r || r || r FROM s";
    let cases: [(&str, u32, &str, Work<'_>); 6] = [
        ("300 durable commits of a row, two indexes", 5, "DELETE FROM sold", &single),
        ("100,000 inserts of 200 bytes in a transaction, no index", 4, "DELETE FROM item", &rows),
        ("load of 100,000 rows of 200 bytes, no index", 4, "DELETE FROM item", &load),
        ("load of 100,000 rows, two indexes, one unique", 4, "DELETE FROM sold", &indexed),
        ("update of 100,000 rows", 4, filled, &update),
        ("delete of 100,000 rows", 4, filled, &delete),
    ];
    for (what, times, undo, work) in cases {
        let [without, with] = least([&world.bare(), &world.path()], times, undo, work);
        let more = |with: Duration, without: Duration| (with.as_secs_f64() / without.as_secs_f64() - 1.0) * 100.0;
        let (computing, time) = (more(with.0, without.0), more(with.1, without.1));
        println!("{what}: {:?} without, {:?} with: {computing:+.0} % of computing, {time:+.0} % of time", without.1, with.1);
    }
}

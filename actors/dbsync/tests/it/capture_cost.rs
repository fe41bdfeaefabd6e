//! What capture costs a foreign writer. A measurement, not a promise: `cargo test -p horos-dbsync capture_cost -- --ignored --nocapture`.

use std::time::{Duration, Instant};

use horos_store::rusqlite::Connection;

use crate::it::capture_world::{World, columns};

const SCHEMA: &str = "
    CREATE TABLE item(id INTEGER PRIMARY KEY, sku TEXT, name TEXT, price INT, body TEXT);
    CREATE TABLE sold(id INTEGER PRIMARY KEY, code TEXT UNIQUE, item INT, at TEXT);
    CREATE INDEX sold_item ON sold(item);
    CREATE TABLE s(n INT, r TEXT);
    WITH RECURSIVE i(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM i WHERE n < 100000) INSERT INTO s SELECT n, hex(randomblob(16)) FROM i;";

fn least(path: &std::path::Path, times: u32, undo: &str, work: impl Fn(&Connection)) -> Duration {
    let connection = Connection::open(path).unwrap();
    connection.execute_batch("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL").unwrap();
    let mut best = Duration::MAX;
    for _ in 0..times {
        connection.execute_batch(&format!("{undo}; PRAGMA wal_checkpoint(TRUNCATE)")).unwrap();
        let start = Instant::now();
        work(&connection);
        best = best.min(start.elapsed());
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
    let load = batch("INSERT INTO item(sku, name, price, body) SELECT r, r, n, r || r || r || r FROM s");
    let indexed = batch("INSERT INTO sold(code, item, at) SELECT r, n, 'now' FROM s");
    let update = batch("UPDATE item SET price = price + 1");
    let delete = batch("DELETE FROM item WHERE id > 0");
    let filled = "DELETE FROM item; INSERT INTO item(sku, name, price, body) SELECT r, r, n, r || r || r || r FROM s";
    let cases: [(&str, u32, &str, Work<'_>); 5] = [
        ("300 durable commits of a row, two indexes", 5, "DELETE FROM sold", &single),
        ("load of 100,000 rows of 200 bytes, no index", 4, "DELETE FROM item", &load),
        ("load of 100,000 rows, two indexes, one unique", 4, "DELETE FROM sold", &indexed),
        ("update of 100,000 rows", 4, filled, &update),
        ("delete of 100,000 rows", 4, filled, &delete),
    ];
    for (what, times, undo, work) in cases {
        let (without, with) = (least(&world.bare(), times, undo, work), least(&world.path(), times, undo, work));
        let more = (with.as_secs_f64() / without.as_secs_f64() - 1.0) * 100.0;
        println!("{what}: {without:?} without, {with:?} with: {more:+.0} %");
    }
}

//! How fast streams are made. A measurement, not a promise:
//! `cargo test -p horos-dbsync --release build_speed -- --ignored --nocapture`.

use std::{
    collections::{BTreeMap, HashSet},
    hint::black_box,
    ops::ControlFlow,
    sync::atomic::AtomicBool,
    time::Instant,
};

use rusqlite::Connection;

use super::tests::World;
use crate::{
    build::{Job, Request, build},
    chunk::{Chunk, ReadError, walk},
    frames::FrameWriter,
};

/// Rows of some 200 bytes: numbers, a few words out of many, a date, and an identifier that will not shrink.
const ROWS: u32 = 1_000_000;

fn schema(incompressible: bool) -> String {
    let body = if incompressible {
        "randomblob(170)".to_owned()
    } else {
        let word = "(SELECT w FROM word WHERE rowid = 1 + abs(random()) % 400)";
        let words = [word; 12].join(" || ' ' || ");
        format!("{words} || ' ' || hex(randomblob(16))")
    };
    format!(
        "CREATE TABLE word(w); WITH RECURSIVE i(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM i WHERE n < 400)
            INSERT INTO word SELECT substr(lower(hex(randomblob(8))), 1, 3 + n % 7) FROM i;
         CREATE TABLE item(id INTEGER PRIMARY KEY, price REAL, stock INT, at TEXT, body);
         WITH RECURSIVE i(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM i WHERE n < {ROWS})
            INSERT INTO item SELECT n, n * 0.37, abs(random()) % 1000, datetime(1700000000 + n, 'unixepoch'), {body} FROM i;"
    )
}

fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn timed(what: &str, bytes: u64, work: impl Fn() -> u64) {
    let mut best = f64::MAX;
    let mut out = 0;
    for _ in 0..3 {
        let start = Instant::now();
        out = work();
        best = best.min(start.elapsed().as_secs_f64());
    }
    let speed = bytes as f64 / best / 1e6;
    println!(
        "  {what}: {speed:.0} MB/s of database, {:.0} rows/s, {:.1} % of it on the wire",
        f64::from(ROWS) / best,
        out as f64 * 100.0 / bytes as f64
    );
}

#[test]
#[ignore = "a measurement"]
fn build_speed() {
    for incompressible in [false, true] {
        let world = World::new(&schema(incompressible), "full-tables: [item]");
        let bytes = std::fs::metadata(world.dir.path().join("bo.db")).unwrap().len();
        println!("{} MB, {}", bytes / 1_000_000, if incompressible { "random bytes" } else { "words" });
        let connection = Connection::open(world.dir.path().join("bo.db")).unwrap();
        connection.execute_batch("PRAGMA cache_size = -8000").unwrap();
        let table = &world.published.tables[0];
        let go_on = AtomicBool::new(false);
        let each = |work: &mut dyn FnMut(Chunk<'_>)| {
            walk::<ReadError>(&connection, &table.ordered, (None, None), &go_on, |chunk| {
                work(chunk);
                Ok(ControlFlow::Continue(()))
            })
            .unwrap();
        };
        timed("VACUUM INTO", bytes, || {
            let target = world.dir.path().join("vacuum.db");
            connection.execute("VACUUM INTO ?1", [target.to_str().unwrap()]).unwrap();
            let length = std::fs::metadata(&target).unwrap().len();
            std::fs::remove_file(target).unwrap();
            length
        });
        timed("stepping", bytes, || {
            let mut statement = connection.prepare(table.ordered.sql(false, false)).unwrap();
            let mut rows = statement.raw_query();
            while rows.next().unwrap().is_some() {}
            0
        });
        timed("reading and cutting", bytes, || {
            let mut length = 0;
            each(&mut |chunk| length += black_box(chunk.bytes().len() as u64));
            length
        });
        timed("and digesting", bytes, || {
            let mut length = 0;
            each(&mut |chunk| {
                black_box(chunk.digest());
                length += chunk.bytes().len() as u64;
            });
            length
        });
        for level in [-7, -3, -1, 1, 2, 3] {
            timed(&format!("and packing at level {level}"), bytes, || {
                let mut writer = FrameWriter::with_level(level).unwrap();
                each(&mut |chunk| {
                    black_box(chunk.digest());
                    let rows = chunk.rows;
                    writer.rows_payload(chunk.payload, rows).unwrap();
                });
                writer.bytes()
            });
        }
        let (known, have) = (BTreeMap::new(), HashSet::new());
        let request = Request { base: None, ..world.request(&known, &have) };
        timed("a snapshot", bytes, || {
            let mut length = 0;
            build(&connection, &world.published, &request, &Job::default(), &mut |bytes| {
                length += bytes.len() as u64;
                Ok(())
            })
            .unwrap();
            length
        });
        let base = world.head();
        let start = Instant::now();
        world.bo.execute_batch("UPDATE item SET stock = stock + 1 WHERE id % 5 = 0").unwrap();
        println!("  {:.0} row changes/s written and captured, in one transaction", f64::from(ROWS) / 5.0 / start.elapsed().as_secs_f64());
        let known = world.known();
        let request = Request { base: Some(base), ..world.request(&known, &have) };
        timed("a delta of every fifth row, by scattered keys", bytes / 5, || {
            let mut length = 0;
            build(&connection, &world.published, &request, &Job::default(), &mut |bytes| {
                length += bytes.len() as u64;
                Ok(())
            })
            .unwrap();
            length
        });
        println!("  at most {} MB resident", resident() / 1_000);
    }
}

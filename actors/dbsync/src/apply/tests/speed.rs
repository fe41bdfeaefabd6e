//! How fast: run by hand, in release, with `--run-ignored all --no-capture`.

use std::time::Instant;

use super::world::{Bo, Fo};

fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

#[test]
#[ignore = "a measurement"]
fn rows_and_megabytes_a_second() {
    let bo = Bo::filled(1);
    bo.run("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000000) INSERT INTO item (id, name, price) SELECT i, 'item ' || i || hex(randomblob(70)), i / 7.0 FROM n");
    let stream = bo.snapshot();
    println!("stream {} MB, peak {} MB", stream.len() >> 20, resident());
    let mut fo = Fo::new();
    let begun = Instant::now();
    fo.take(stream).unwrap();
    let size = std::fs::metadata(fo.path()).unwrap().len();
    println!("first snapshot: {:.0} MB/s of database ({} MB)", size as f64 / 1e6 / begun.elapsed().as_secs_f64(), size >> 20);
    let begun = Instant::now();
    let have = fo.offers();
    println!("{} chunks looked through at {:.0} MB/s", have.len(), size as f64 / 1e6 / begun.elapsed().as_secs_f64());
    let (stream, _) = bo.snapshot_beside(&have);
    let begun = Instant::now();
    fo.take(stream).unwrap();
    println!("one beside what is here: {:.0} MB/s", size as f64 / 1e6 / begun.elapsed().as_secs_f64());
    bo.run("UPDATE item SET price = -1 WHERE id % 5 = 0; DELETE FROM item WHERE id % 50 = 1");
    let stream = bo.delta(&fo);
    let begun = Instant::now();
    let done = fo.take(stream).unwrap();
    println!("one delta of {} changes: {:.0}/s", done.rows, done.rows as f64 / begun.elapsed().as_secs_f64());
    let mut spent = std::time::Duration::ZERO;
    for round in 0..500 {
        bo.run(&format!("UPDATE item SET price = {round} WHERE id = {}", round * 1_777));
        let stream = bo.delta(&fo);
        let begun = Instant::now();
        fo.take(stream).unwrap();
        spent += begun.elapsed();
    }
    println!("a delta of one row: {:?}; peak {} MB", spent / 500, resident());
}

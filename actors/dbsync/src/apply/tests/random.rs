//! Histories that nobody thought of: after each step the replica is exactly what is published.

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use super::world::{Bo, CutOff, Fo, SPEC};
use crate::{apply::Progress, build::Sweep};

fn statement(rng: &mut StdRng) -> String {
    let (a, b) = (rng.random_range(0..400), rng.random_range(1..400));
    match rng.random_range(0..14) {
        0 => format!("INSERT OR IGNORE INTO item (id, name, price, listed) VALUES ({a}, 'n{b}', {b} / 3.0, {})", b % 2),
        1 => format!("INSERT OR REPLACE INTO item (id, name, listed) VALUES ({a}, NULL, 1), ({b}, 'r{a}', 1)"),
        2 => format!("UPDATE OR IGNORE item SET id = id + {b} WHERE id % 17 = {}", a % 17),
        3 => format!("UPDATE item SET listed = 1 - listed WHERE id % 5 = {}", a % 5),
        4 => format!("DELETE FROM item WHERE id BETWEEN {a} AND {}", a + b % 20),
        5 => format!("INSERT OR REPLACE INTO stock VALUES ('Shop {}', 's{}', {b})", a % 4, b % 30),
        6 => format!("UPDATE OR REPLACE stock SET shop = upper(shop), sku = 's{}' WHERE amount % 7 = {}", b % 30, a % 7),
        7 => format!("DELETE FROM stock WHERE amount % 11 = {}", a % 11),
        8 => format!("INSERT INTO note VALUES ('b{a}', zeroblob({b})), (NULL, {a})"),
        9 => format!("DELETE FROM note WHERE rowid % 13 = {}", a % 13),
        10 => format!("UPDATE note SET body = body || '{b}' WHERE rowid % 3 = {}", a % 3),
        11 => format!(
            "WITH RECURSIVE n(i) AS (SELECT {a} UNION ALL SELECT i + 1 FROM n WHERE i < {}) INSERT OR IGNORE INTO item (id, name) SELECT i, 'bulk' FROM n",
            a + b
        ),
        12 => "DELETE FROM item".to_owned(),
        _ => format!("UPDATE item SET price = {b}.5, name = 'u{a}' WHERE id % 10 = {}", a % 10),
    }
}

fn history(seed: u64, steps: u32) {
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let mut bo = Bo::filled(300);
    let mut fo = Fo::new();
    for step in 0..steps {
        for _ in 0..rng.random_range(0..4) {
            bo.run(&statement(&mut rng));
        }
        if rng.random_ratio(1, 15) {
            let spec = match rng.random_range(0..3) {
                0 => SPEC.to_owned(),
                1 => SPEC.replace("[name, price]", "[name]"),
                _ => SPEC.replace("listed = 1", "id % 2 = 0").replace(", note]", "]"),
            };
            bo.reload(&spec);
        }
        if rng.random_ratio(1, 20) {
            fo = fo.restart();
        }
        if rng.random_ratio(1, 10) {
            fo.rest();
        }
        let sweep = rng.random_ratio(1, 3).then_some(Sweep { from: None, chunks: 50 });
        let delta = if fo.state().is_none() || rng.random_ratio(1, 8) { None } else { bo.try_delta(&fo, sweep) };
        let Some(stream) = delta else {
            let have = if rng.random_ratio(2, 3) { fo.offers() } else { Default::default() };
            let (stream, _) = bo.snapshot_beside(&have);
            if rng.random_ratio(1, 3) {
                let at = rng.random_range(0..stream.len());
                fo.applier.apply(Box::new(CutOff { bytes: stream.into(), at }), &Progress::default()).unwrap_err();
                continue;
            }
            fo.take(stream).unwrap_or_else(|error| panic!("seed {seed}, step {step}: {error}"));
            fo.assert_equals(&bo);
            continue;
        };
        if rng.random_ratio(1, 6) {
            let at = rng.random_range(0..stream.len());
            fo.applier.apply(Box::new(CutOff { bytes: stream.clone().into(), at }), &Progress::default()).unwrap_err();
        }
        let done = fo.take(stream).unwrap_or_else(|error| panic!("seed {seed}, step {step}: {error}"));
        assert_eq!(done.mismatches, Vec::<u32>::new(), "seed {seed}, step {step}");
        fo.assert_equals(&bo);
    }
}

/// As many as the promise names with `HOROS_TEST_FULL`, few otherwise.
fn scale(few: u32, full: u32) -> u32 {
    if std::env::var_os("HOROS_TEST_FULL").is_some() { full } else { few }
}

#[test]
fn any_history_of_statements_filters_cuts_and_restarts_arrives() {
    let seed = rand::random();
    history(seed, scale(80, 10_000));
}

#[test]
fn histories_that_were_run_before() {
    for seed in [1, 2, 3] {
        history(seed, 30);
    }
}

//! A million keys in a node's tables, and how long it takes to verify one that nobody asked for before.

use std::{path::Path, time::Instant};

use anyhow::Context as _;
use horos_identity::{Clock, KEYS_MIGRATIONS, Verifier};
use horos_store::{
    migrations::Migrations,
    open::{Access, Options, open},
    rusqlite::params,
};

/// Odd, so that its multiples visit every number of 64 bits, in an order that no index has.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// The tables and who looks them up.
pub(crate) struct Million {
    verifier: Verifier,
    keys: u64,
    /// Keys that were verified: none is asked for twice before all were, and the memory holds a hundredth of them.
    asked: u64,
}

impl Million {
    /// Makes `keys` of them in `directory`.
    pub(crate) fn make(directory: &Path, keys: u64) -> anyhow::Result<Self> {
        let started = Instant::now();
        let options = Options::new(directory.join("control.db"), Access::Owner);
        let mut database = open(&options)?;
        Migrations::new(KEYS_MIGRATIONS).apply(database.connection())?;
        let transaction = database.connection().transaction()?;
        {
            let mut insert = transaction.prepare(
                "INSERT INTO api_keys (hash, id, prefix, name, owner, scopes, created_at, created_by, expires_at)
                 VALUES (?1, ?2, ?3, 'benchmark', ?4, '[\"stock:read\",\"stock:write\"]', 1, 'operator@bench', ?5)",
            )?;
            // In the order of the hashes, which is what makes a large table quick to fill.
            let mut rows: Vec<_> = (0..keys).map(|number| (text(number), number)).collect();
            rows.sort_by_cached_key(|(text, _)| hash(text));
            for (text, number) in rows {
                let hash = hash(&text).context("that is no key")?;
                let (id, owner) = (format!("key_{number:026}"), format!("owner-{}", number % 10_000));
                insert.execute(params![&hash[..], id, &text[..11], owner, i64::MAX])?;
            }
        }
        transaction.commit()?;
        eprintln!("#   {keys} keys made in {:.1} s", started.elapsed().as_secs_f64());
        Ok(Self { verifier: Verifier::new(&options, Clock::system()), keys, asked: 0 })
    }

    /// Verifies so many, one after the other; microseconds for each.
    pub(crate) fn lookup(&mut self, count: u64) -> anyhow::Result<f64> {
        // Anywhere in the tables, never in the order of an index.
        let texts: Vec<String> = (self.asked..self.asked + count).map(|turn| text(scattered(turn, self.keys))).collect();
        self.asked += count;
        let started = Instant::now();
        for text in &texts {
            self.verifier.check(text).ok().context("a key was refused")?;
        }
        Ok(started.elapsed().as_secs_f64() * 1e6 / count as f64)
    }
}

/// The numbers below `below` in another order.
fn scattered(turn: u64, below: u64) -> u64 {
    // Coprime to every power of ten.
    turn.wrapping_mul(7_919 * 104_729) % below
}

/// The text of a key: as random to a hash as any.
fn text(number: u64) -> String {
    let [a, b, c, d] = [1, 2, 3, 4].map(|part| (number * 4 + part).wrapping_mul(STEP));
    format!("hk_{a:016x}{b:016x}{c:016x}{d:016x}")
}

fn hash(text: &str) -> Option<[u8; 32]> {
    horos_identity::hash(text).map(|hash| hash.0)
}

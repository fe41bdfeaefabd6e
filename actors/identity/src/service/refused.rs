//! What the nodes refused: on the keys' own rows, and by node and minute.

use horos_supervision::{Context, Handle};
use horos_wire::protocol::keys::{Done, KeysError, MAX_REPORTED, PAGE, Refusals, Refused, RefusedMinute, Report};
use rusqlite::{Connection, OptionalExtension as _, Row, ToSql, params};

use super::{Fault, Keys, invalid};
use crate::expiry::rfc3339;

/// Minutes kept: a day, a row a node and minute in which anything was refused.
const KEPT_MINUTES: i64 = 24 * 60;

/// Guesses of the minute that runs, over all nodes.
#[derive(Debug, Default)]
pub(super) struct Guesses {
    minute: i64,
    count: u64,
    warned: bool,
}

impl Guesses {
    /// Adds `count` in `minute`; how many there were, once a minute, when they become more than `most`.
    fn add(&mut self, minute: i64, count: u64, most: u64) -> Option<u64> {
        if self.minute != minute {
            *self = Self { minute, count: 0, warned: false };
        }
        self.count = self.count.saturating_add(count);
        let news = self.count > most && !self.warned;
        self.warned |= news;
        news.then_some(self.count)
    }
}

/// The columns of a row of `refused_minutes`, in their order.
fn counts(refusals: &Refusals) -> [i64; 8] {
    let Refusals { malformed, unknown, revoked, expired, not_yet_valid, other_audience, wrong_scope, unavailable } = *refusals;
    [malformed, unknown, revoked, expired, not_yet_valid, other_audience, wrong_scope, unavailable]
        .map(|count| i64::try_from(count).unwrap_or(i64::MAX))
}

fn refusals(row: &Row<'_>, first: usize) -> rusqlite::Result<Refusals> {
    let count = |column: usize| row.get::<_, i64>(first + column).map(|count| count.try_into().unwrap_or(0));
    Ok(Refusals {
        malformed: count(0)?,
        unknown: count(1)?,
        revoked: count(2)?,
        expired: count(3)?,
        not_yet_valid: count(4)?,
        other_audience: count(5)?,
        wrong_scope: count(6)?,
        unavailable: count(7)?,
    })
}

const COUNTS: &str = "malformed, unknown, revoked, expired, not_yet_valid, other_audience, wrong_scope, unavailable";

fn add(tx: &Connection, node: &str, report: &Report, now: i64) -> Result<(), Fault> {
    let minute = now.div_euclid(60) * 60;
    let sql = format!("SELECT {COUNTS} FROM refused_minutes WHERE minute = ?1 AND node = ?2");
    let before = tx.prepare_cached(&sql)?.query_row(params![minute, node], |row| refusals(row, 0)).optional()?;
    let sum = counts(&before.unwrap_or_default().plus(&report.refusals));
    let mut values: Vec<&dyn ToSql> = vec![&minute, &node];
    values.extend(sum.iter().map(|count| count as &dyn ToSql));
    let sql = format!("INSERT OR REPLACE INTO refused_minutes (minute, node, {COUNTS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)");
    tx.prepare_cached(&sql)?.execute(&*values)?;
    if before.is_none() {
        // Both ways: a clock that was ahead has left minutes behind that would never grow old.
        let kept = [minute - KEPT_MINUTES * 60, minute + KEPT_MINUTES * 60];
        tx.prepare_cached("DELETE FROM refused_minutes WHERE minute < ?1 OR minute > ?2")?.execute(kept)?;
    }
    // Two that are at most 2^61 have a sum that fits, whatever a node says.
    let sql = "UPDATE api_keys SET refused = min(refused, 2305843009213693952) + ?2, last_refused_at = ?3 WHERE id = ?1";
    let mut statement = tx.prepare_cached(sql)?;
    for (key, count) in &report.keys {
        statement.execute(params![key, (*count).min(1 << 61).cast_signed(), now])?;
    }
    Ok(())
}

impl Handle<Report> for Keys {
    async fn handle(&mut self, report: Report, cx: &Context) -> Result<Done, KeysError> {
        if report.keys.len() > MAX_REPORTED {
            return Err(invalid(format!("a report tells of {MAX_REPORTED} keys at most")));
        }
        let now = self.now();
        let node = cx.caller().node().name.clone();
        if let Some(guesses) = self.guesses.add(now.div_euclid(60), report.refusals.guesses(), self.parts.config.guesses_per_minute) {
            tracing::warn!(guesses, %node, "somebody is guessing keys; `horos keys refused` shows where");
        }
        self.write(cx, move |tx| add(tx, node.as_str(), &report, now)).await?;
        Ok(Done {})
    }
}

impl Handle<Refused> for Keys {
    async fn handle(&mut self, ask: Refused, cx: &Context) -> Result<Vec<RefusedMinute>, KeysError> {
        let since = self.now().saturating_sub(i64::from(ask.minutes).saturating_mul(60));
        tracing::info!(target: "horos_identity::audit", caller = %cx.caller(), minutes = ask.minutes, "refusals listed");
        self.read(cx, move |tables| {
            let sql =
                format!("SELECT minute, node, {COUNTS} FROM refused_minutes WHERE minute >= ?1 ORDER BY minute DESC, node LIMIT {PAGE}");
            let mut statement = tables.prepare_cached(&sql)?;
            let mut rows = statement.query([since])?;
            let mut found = Vec::new();
            while let Some(row) = rows.next()? {
                // A name that is none was written by hand.
                let Ok(node) = row.get::<_, String>(1)?.parse() else { continue };
                found.push(RefusedMinute { minute: rfc3339(row.get(0)?), node, refusals: refusals(row, 2)? });
            }
            Ok(found)
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_hears_of_guesses_once_a_minute() {
        let mut guesses = Guesses::default();
        assert_eq!(guesses.add(1, 1000, 1000), None);
        assert_eq!(guesses.add(1, 1, 1000), Some(1001));
        assert_eq!(guesses.add(1, 1_000_000, 1000), None);
        assert_eq!(guesses.add(2, 5, 1000), None);
        assert_eq!(guesses.add(2, u64::MAX, 1000), Some(u64::MAX));
    }
}

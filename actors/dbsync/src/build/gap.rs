//! Deleting rows without naming their keys.
//!
//! Between the published rows on either side of a key that is not published there is nothing, so "(the row before, the row after] is
//! the row after" deletes whatever a subscriber still has there and says nothing but what it may know. It says so for all unpublished
//! keys in the same gap at once.
//!
//! What it costs is the way to those two rows, over the rows in between: nothing to speak of where a fair part of the rows is
//! published; where one in a million is, a page of the log costs a reading of the table, for its keys are taken in order.

use std::cmp::Ordering;

use rusqlite::{CachedStatement, Connection, Row};

use super::{BuildError, PublishedTable, Work, delta::too_large};
use crate::{
    capture::{KeyPart, RowKey},
    filter::Table,
    frames::{Frame, KeyBytes, ROWS_HEAD},
    value::{key_values, put_key, put_row},
};

/// The statements.
#[derive(Clone, Debug)]
pub(super) struct Gaps {
    before: String,
    after: String,
    /// Whether one key is strictly greater than another, as the table compares.
    greater: String,
}

impl Gaps {
    pub(super) fn new(table: &Table) -> Gaps {
        let key = &table.key().columns;
        let side = |first: usize| {
            let terms = key.iter().zip(first..).map(|(column, number)| format!("?{number} COLLATE {}", column.collation));
            terms.collect::<Vec<_>>().join(", ")
        };
        Gaps {
            before: table.select_before(),
            after: table.select_after().to_owned(),
            greater: format!("SELECT ({}) > ({})", side(1), side(key.len() + 1)),
        }
    }
}

/// The last gap that was sent: nothing published is strictly between these; `None` is before the first row, or behind the last.
struct Gap {
    after: Option<KeyBytes>,
    before: Option<KeyBytes>,
}

impl Gap {
    /// By SQLite's own comparison: a key that only seems to be inside would be left on the FO.
    fn holds(&self, greater: &mut CachedStatement<'_>, key: &RowKey) -> Result<bool, BuildError> {
        for (bound, below) in [(&self.after, true), (&self.before, false)] {
            let Some(bound) = bound else { continue };
            let Ok(bound) = key_values(bound, key.len()) else { return Ok(false) };
            let (of_key, of_bound) = if below { (1, 1 + key.len()) } else { (1 + key.len(), 1) };
            for place in 0..key.len() {
                greater.raw_bind_parameter(of_key + place, &key[place])?;
                greater.raw_bind_parameter(of_bound + place, bound[place])?;
            }
            let mut rows = greater.raw_query();
            let row = rows.next()?;
            if row.map(|row| row.get::<_, Option<bool>>(0)).transpose()?.flatten() != Some(true) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

impl Work<'_> {
    /// Sends the gaps that those of `keys` are in that are not published.
    pub(super) fn close_gaps(&mut self, table: u16, place: usize, keys: &[RowKey]) -> Result<(), BuildError> {
        let PublishedTable { head, ordered, by_key, gaps: Some(gaps) } = &self.published.tables[place] else { return Ok(()) };
        let prepare = |sql: &str| Connection::prepare_cached(self.connection, sql);
        let (mut by_key, mut greater) = (prepare(by_key)?, prepare(&gaps.greater)?);
        let (mut before, mut after) = (prepare(&gaps.before)?, prepare(&gaps.after)?);
        let mut sorted: Vec<&RowKey> = keys.iter().filter(|key| key.len() == head.key.len() && !key.contains(&KeyPart::Null)).collect();
        sorted.sort_unstable_by(|a, b| roughly(a, b));
        let mut last: Option<Gap> = None;
        let mut payload = vec![0; ROWS_HEAD];
        for key in sorted {
            self.out.job.check()?;
            bind(&mut by_key, key)?;
            if by_key.raw_query().next()?.is_some() {
                continue;
            }
            if let Some(gap) = &last
                && gap.holds(&mut greater, key)?
            {
                continue;
            }
            bind(&mut before, key)?;
            let lower = before.raw_query().next()?.map(|row| key_of(row, ordered.key())).transpose()?;
            bind(&mut after, key)?;
            after.raw_bind_parameter(key.len() + 1, 1)?;
            let mut rows = after.raw_query();
            let row = rows.next()?;
            let gap = Gap { after: lower, before: row.map(|row| key_of(row, ordered.key())).transpose()? };
            self.out.frame(&Frame::Range { table, after: gap.after.clone(), through: gap.before.clone() })?;
            if let Some(row) = row {
                payload.truncate(ROWS_HEAD);
                if !put_row(&mut payload, row, ordered.width())? {
                    return Err(too_large(&head.name, key));
                }
                self.out.rows(&mut payload, false, table, 1)?;
            }
            last = Some(gap);
        }
        Ok(())
    }
}

fn bind(statement: &mut CachedStatement<'_>, key: &RowKey) -> Result<(), BuildError> {
    for (place, part) in key.iter().enumerate() {
        statement.raw_bind_parameter(place + 1, part)?;
    }
    Ok(())
}

fn key_of(row: &Row<'_>, positions: &[u16]) -> Result<KeyBytes, BuildError> {
    let mut bytes = Vec::new();
    put_key(&mut bytes, row, positions)?;
    Ok(bytes.into())
}

/// SQLite's order but for collations and the last digits of numbers: neighbours come one after the other, more is not asked of it.
fn roughly(a: &RowKey, b: &RowKey) -> Ordering {
    let class = |part: &KeyPart| match part {
        KeyPart::Null => 0,
        KeyPart::Integer(_) | KeyPart::Real(_) => 1,
        KeyPart::Text(_) => 2,
        KeyPart::Blob(_) => 3,
    };
    let number = |part: &KeyPart| match part {
        KeyPart::Integer(value) => *value as f64,
        KeyPart::Real(value) => *value,
        KeyPart::Null | KeyPart::Text(_) | KeyPart::Blob(_) => 0.0,
    };
    fn bytes(part: &KeyPart) -> &[u8] {
        match part {
            KeyPart::Text(bytes) | KeyPart::Blob(bytes) => bytes,
            KeyPart::Null | KeyPart::Integer(_) | KeyPart::Real(_) => &[],
        }
    }
    let lower = |part| bytes(part).iter().map(u8::to_ascii_lowercase);
    let each = a
        .iter()
        .zip(b)
        .map(|(a, b)| class(a).cmp(&class(b)).then_with(|| number(a).total_cmp(&number(b))).then_with(|| lower(a).cmp(lower(b))));
    each.fold(Ordering::Equal, Ordering::then)
}

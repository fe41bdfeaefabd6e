//! Deltas: what the log says has changed, then whole tables, repairs and checks.

use std::{collections::BTreeSet, ops::ControlFlow};

use rusqlite::types::ValueRef;
use sha2::{Digest as _, Sha256};

use super::{BuildError, Cursor, Failed, KeyRange, PublishedTable, Sweep, Swept, Work, number};
use crate::{
    capture::{self, Changes, KeyPart, Page, Position, RowKey},
    chunk::{ChunkId, in_short, scan, walk},
    frames::{Frame, KeyBytes, MAX_CHECKS, PAYLOAD, ROWS_HEAD},
    value::{MAX_KEY, key_values, put_row, put_value},
};

/// Entries of the log that are read at a time: some 1 MiB of keys and what tells them apart.
const PAGE: usize = 4_000;
/// Keys looked up between two looks at whether to go on.
const LOOK_EVERY: usize = 1_000;

/// Rows or keys that are gathered for a frame.
struct Gathered {
    payload: Vec<u8>,
    count: u32,
    deletes: bool,
}

impl Gathered {
    fn new(deletes: bool, mut payload: Vec<u8>) -> Gathered {
        payload.clear();
        payload.resize(ROWS_HEAD, 0);
        Gathered { payload, count: 0, deletes }
    }
}

impl Work<'_> {
    pub(super) fn delta(&mut self, base: Position, to: Position) -> Result<Option<Swept>, BuildError> {
        let mut page = self.page(&base)?;
        let published = self.published;
        let every = 0..published.tables.len();
        let mut whole: Vec<bool> = published.tables.iter().map(|table| !self.knows(&table.head)).collect();
        let gone = self.request.known.keys().any(|name| published.place(name).is_none());
        // A small delta names only what it touches, for most touch one table of many.
        let complete = gone || page.more || self.request.sweep.is_some() || whole.contains(&true);
        let touched: BTreeSet<usize> = if complete {
            every.collect()
        } else {
            let logged = page.tables.keys().filter_map(|number| published.numbers.get(number).copied());
            logged.chain(self.request.repairs.iter().filter_map(|range| published.place(&range.table))).collect()
        };
        let places: Vec<usize> = touched.into_iter().collect();
        self.header(Some(base), to, complete, &places)?;
        let named = |place: usize| places.binary_search(&place).map_or(u16::MAX, number);

        // Tables of which keys were found that are not published now, and may never have been.
        let mut withheld = vec![false; whole.len()];
        let mut several = false;
        loop {
            for (log_number, changes) in &page.tables {
                // What is no longer published has no place.
                let Some(place) = published.numbers.get(log_number).copied() else { continue };
                whole[place] |= changes.whole;
                if !whole[place] {
                    withheld[place] |= self.changes(named(place), place, &changes.keys)?;
                }
            }
            if !page.more {
                break;
            }
            several = true;
            page = self.page(&page.through)?;
        }
        for (place, whole) in whole.iter().enumerate() {
            if *whole {
                self.whole(named(place), place)?;
            }
        }
        if withheld.contains(&true) {
            if several {
                page = self.page(&base)?;
            }
            loop {
                for (log_number, changes) in &page.tables {
                    let Some(place) = published.numbers.get(log_number).copied() else { continue };
                    if withheld[place] && !whole[place] {
                        self.close_gaps(named(place), place, &changes.keys)?;
                    }
                }
                if !page.more {
                    break;
                }
                page = self.page(&page.through)?;
            }
        }
        for range in self.request.repairs {
            match published.place(&range.table) {
                Some(place) if !whole[place] => self.repair(named(place), place, range)?,
                // It is gone, or was just sent.
                _ => {}
            }
        }
        match &self.request.sweep {
            Some(sweep) => self.sweep(sweep).map(Some),
            None => Ok(None),
        }
    }

    fn page(&self, from: &Position) -> Result<Page, BuildError> {
        self.out.job.check()?;
        match capture::since(self.connection, from, PAGE)? {
            Changes::Page(page) => Ok(page),
            Changes::Gap(gap) => Err(BuildError::Gap(gap)),
        }
    }

    /// What became of the rows with `keys`. `true`: some are not published now, and are not to be named.
    fn changes(&mut self, table: u16, place: usize, keys: &[RowKey]) -> Result<bool, BuildError> {
        let mut withheld = false;
        let PublishedTable { head, ordered, by_key, gaps } = &self.published.tables[place];
        let mut statement = self.connection.prepare_cached(by_key)?;
        let mut gathered = |deletes| Gathered::new(deletes, self.spare.pop().unwrap_or_default());
        // In this order, so that the larger buffer goes to rows again.
        let (mut upserts, mut deletes) = (gathered(false), gathered(true));
        for (looked, key) in keys.iter().enumerate() {
            if looked % LOOK_EVERY == LOOK_EVERY - 1 {
                self.out.job.check()?;
            }
            if key.len() != head.key.len() {
                return Err(BuildError::Plan { table: head.name.clone(), reason: "the log's keys have another width" });
            }
            // A key with NULL is no one row's and never published.
            if key.contains(&KeyPart::Null) {
                continue;
            }
            for (parameter, part) in key.iter().enumerate() {
                statement.raw_bind_parameter(parameter + 1, part)?;
            }
            let mut rows = statement.raw_query();
            let mut found = false;
            loop {
                let row = match rows.next() {
                    Ok(Some(row)) => row,
                    Ok(None) => break,
                    Err(error) if error.sqlite_error_code() == Some(rusqlite::ErrorCode::TooBig) => return Err(too_large(&head.name, key)),
                    Err(error) => return Err(error.into()),
                };
                found = true;
                if !put_row(&mut upserts.payload, row, ordered.width())? {
                    return Err(too_large(&head.name, key));
                }
                upserts.count += 1;
            }
            let gathered = if found {
                if encoded(key).is_none() {
                    return Err(too_large(&head.name, key));
                }
                &mut upserts
            } else if gaps.is_some() {
                withheld = true;
                continue;
            } else {
                // A larger key was never published.
                let Some(key) = encoded(key) else { continue };
                deletes.payload.extend_from_slice(&key);
                deletes.count += 1;
                &mut deletes
            };
            if gathered.payload.len() >= PAYLOAD {
                self.flush(table, gathered)?;
            }
        }
        self.flush(table, &mut deletes)?;
        self.flush(table, &mut upserts)?;
        self.spare.extend([deletes.payload, upserts.payload]);
        Ok(withheld)
    }

    fn flush(&mut self, table: u16, gathered: &mut Gathered) -> Result<(), BuildError> {
        if gathered.count > 0 {
            self.out.rows(&mut gathered.payload, gathered.deletes, table, gathered.count)?;
            gathered.payload.truncate(ROWS_HEAD);
            gathered.payload.shrink_to(2 * PAYLOAD);
            gathered.count = 0;
        }
        Ok(())
    }

    fn repair(&mut self, table: u16, place: usize, range: &KeyRange) -> Result<(), BuildError> {
        let PublishedTable { head, ordered, .. } = &self.published.tables[place];
        let (after, through) = (range.after.as_deref(), range.through.as_deref());
        // Of a table with another key than when it was checked, which is sent whole anyway.
        if [after, through].into_iter().flatten().any(|key| key_values(key, head.key.len()).is_err()) {
            return Ok(());
        }
        self.out.frame(&Frame::Range { table, after: range.after.clone(), through: range.through.clone() })?;
        let out = &mut self.out;
        let done = walk::<Failed>(self.connection, ordered, (after, through), &out.job.cancelled, |chunk| {
            out.rows(chunk.payload, false, table, chunk.rows)?;
            Ok(ControlFlow::Continue(()))
        });
        done.map_err(|failed| failed.in_table(&head.name)).map(drop)
    }

    /// The checks, over all the tables: the header names every one.
    fn sweep(&mut self, sweep: &Sweep) -> Result<Swept, BuildError> {
        let tables = &self.published.tables;
        let most = sweep.chunks.clamp(1, MAX_CHECKS);
        let (mut place, mut after) = match &sweep.from {
            None => (0, None),
            Some(from) => match self.published.place(&from.table) {
                Some(place) => (place, from.after.clone()),
                None => (tables.iter().position(|table| table.head.name > from.table).unwrap_or(tables.len()), None),
            },
        };
        let mut swept = Swept { ranges: Vec::new(), rows: 0, next: None };
        while let Some(PublishedTable { head, ordered, .. }) = tables.get(place) {
            if swept.ranges.len() == most {
                swept.next = Some(Cursor { table: head.name.clone(), after });
                return Ok(swept);
            }
            // The table has another key since.
            after = after.filter(|key| key_values(key, head.key.len()).is_ok());
            let found = scan(self.connection, ordered, after.as_deref(), most - swept.ranges.len(), &self.out.job.cancelled);
            let found = found.map_err(|error| Failed::from(error).in_table(&head.name))?;
            let mut chunks = found.chunks;
            if chunks.is_empty() {
                // Nothing is to be there, either.
                chunks.push(ChunkId { through: KeyBytes::new(), rows: 0, digest: Sha256::digest([]).into() });
            }
            let end = chunks.len();
            for (index, chunk) in chunks.into_iter().enumerate() {
                // The last range is open, so that rows behind the BO's last one are found.
                let through = (!found.last || index + 1 < end).then_some(chunk.through);
                let range = KeyRange { table: head.name.clone(), after: after.take(), through: through.clone() };
                self.out.frame(&Frame::Check {
                    id: u32::try_from(swept.ranges.len()).unwrap_or(u32::MAX),
                    table: number(place),
                    after: range.after.clone(),
                    through: through.clone(),
                    rows: u64::from(chunk.rows),
                    digest: chunk.digest,
                })?;
                swept.rows += u64::from(chunk.rows);
                swept.ranges.push(range);
                after = through;
            }
            if found.last {
                place += 1;
                after = None;
            }
        }
        Ok(swept)
    }
}

/// The key as it travels; `None` when it is larger than any that does.
fn encoded(key: &RowKey) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    key.iter().for_each(|part| put_value(&mut bytes, value(part)));
    (bytes.len() <= MAX_KEY).then_some(bytes)
}

fn value(part: &KeyPart) -> ValueRef<'_> {
    match part {
        KeyPart::Null => ValueRef::Null,
        KeyPart::Integer(value) => ValueRef::Integer(*value),
        KeyPart::Real(value) => ValueRef::Real(*value),
        KeyPart::Text(value) => ValueRef::Text(value),
        KeyPart::Blob(value) => ValueRef::Blob(value),
    }
}

pub(super) fn too_large(table: &str, key: &RowKey) -> BuildError {
    let parts: Vec<String> = key.iter().map(|part| in_short(value(part))).collect();
    BuildError::RowTooLarge { table: table.to_owned(), key: parts.join(", ") }
}

//! A replica that is no file: what any replica must make of a stream, written down as plainly as possible and without a line of the
//! real one's.

use std::{collections::BTreeMap, ops::Bound};

use horos_wire::protocol::sync::ReplicaError;
use rusqlite::types::ValueRef;
use sha2::{Digest as _, Sha256};

use crate::{
    capture::Position,
    frames::{Frame, FrameReader, TableHead},
    value::{Rows, key_values},
};

/// A key that orders as SQLite does, for the integers and texts that these tests use.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    Null,
    Integer(i64),
    Bytes(u8, Vec<u8>),
}

type Key = Vec<Part>;

fn part(value: ValueRef<'_>) -> Part {
    match value {
        ValueRef::Null => Part::Null,
        ValueRef::Integer(value) => Part::Integer(value),
        ValueRef::Real(value) => Part::Bytes(0, value.to_bits().to_be_bytes().to_vec()),
        ValueRef::Text(bytes) => Part::Bytes(1, bytes.to_vec()),
        ValueRef::Blob(bytes) => Part::Bytes(2, bytes.to_vec()),
    }
}

#[derive(Clone, Debug)]
pub(super) struct Table {
    pub(super) head: TableHead,
    /// Encoded rows by key.
    pub(super) rows: BTreeMap<Key, Vec<u8>>,
}

impl Table {
    fn range(&self, after: Option<&[u8]>, through: Option<&[u8]>) -> Vec<Key> {
        let key = |bytes: &[u8]| -> Key { key_values(bytes, self.head.key.len()).unwrap().iter().map(|value| part(value.0)).collect() };
        let after = after.map_or(Bound::Unbounded, |bytes| Bound::Excluded(key(bytes)));
        let through = through.map_or(Bound::Unbounded, |bytes| Bound::Included(key(bytes)));
        self.rows.range((after, through)).map(|(key, _)| key.clone()).collect()
    }

    fn insert(&mut self, rows: &[u8], count: u32) {
        let width = self.head.columns.len();
        let mut reader = Rows::new(rows, width, count);
        let mut row = Vec::new();
        let mut at = 0;
        while reader.next_into(&mut row).unwrap() {
            let mut encoded = Vec::new();
            row.iter().for_each(|value| crate::value::put_value(&mut encoded, value.0));
            assert_eq!(rows[at..at + encoded.len()], encoded, "rows have one form");
            at += encoded.len();
            let mut key = Vec::new();
            self.head.key.iter().for_each(|place| crate::value::put_value(&mut key, row[usize::from(*place)].0));
            let key = key_values(&key, self.head.key.len()).unwrap().iter().map(|value| part(value.0)).collect();
            self.rows.insert(key, encoded);
        }
    }
}

#[derive(Clone, Debug, Default)]
pub(super) struct Model {
    pub(super) position: Option<Position>,
    pub(super) tables: BTreeMap<String, Table>,
    pub(super) deltas: u64,
    pub(super) snapshots: u64,
    /// Rows and keys received.
    pub(super) received: u64,
}

impl Model {
    /// Takes a stream, whole or not at all.
    pub(super) fn apply(&mut self, stream: &[u8]) -> Result<Vec<u32>, ReplicaError> {
        let mut next = self.clone();
        let mismatches = next.take(stream)?;
        *self = next;
        Ok(mismatches)
    }

    fn take(&mut self, mut stream: &[u8]) -> Result<Vec<u32>, ReplicaError> {
        let mut reader = FrameReader::new().unwrap();
        let mut names: Vec<String> = Vec::new();
        let mut mismatches = Vec::new();
        while let Some(frame) = reader.feed(&mut stream).map_err(|error| ReplicaError::Corrupt(error.to_string().into()))? {
            match frame {
                Frame::Header(header) => {
                    if header.base.is_some() && header.base != self.position {
                        return Err(ReplicaError::Mismatch { have: self.position.map(crate::source::wire) });
                    }
                    match header.base {
                        Some(_) => self.deltas += 1,
                        None => {
                            self.snapshots += 1;
                            self.tables.clear();
                        }
                    }
                    self.position = Some(header.to);
                    names = header.tables.iter().map(|head| head.name.clone()).collect();
                    if header.complete {
                        self.tables.retain(|name, _| names.contains(name));
                    }
                    for head in header.tables {
                        let known = self.tables.get_mut(&head.name);
                        match known {
                            Some(known) if known.head.fingerprint == head.fingerprint => {}
                            Some(known) => known.head = head,
                            None => drop(self.tables.insert(head.name.clone(), Table { head, rows: BTreeMap::new() })),
                        }
                    }
                }
                Frame::Whole { table } => self.table(&names, table).rows.clear(),
                Frame::Rows { table, rows, count } => {
                    self.received += u64::from(count);
                    self.table(&names, table).insert(&rows, count);
                }
                Frame::Deletes { table, keys, count } => {
                    self.received += u64::from(count);
                    let table = self.table(&names, table);
                    let mut reader = Rows::new(&keys, table.head.key.len(), count);
                    let mut key = Vec::new();
                    let mut gone: Vec<Key> = Vec::new();
                    while reader.next_into(&mut key).unwrap() {
                        gone.push(key.iter().map(|value| part(value.0)).collect());
                    }
                    gone.iter().for_each(|key| drop(table.rows.remove(key)));
                }
                Frame::Chunk { .. } | Frame::End { .. } => {}
                Frame::Range { table, after, through } => {
                    let table = self.table(&names, table);
                    for key in table.range(after.as_deref(), through.as_deref()) {
                        table.rows.remove(&key);
                    }
                }
                Frame::Check { id, table, after, through, rows, digest } => {
                    let table = self.table(&names, table);
                    let keys = table.range(after.as_deref(), through.as_deref());
                    let mut hash = Sha256::new();
                    keys.iter().for_each(|key| hash.update(&table.rows[key]));
                    if keys.len() as u64 != rows || <[u8; 32]>::from(hash.finalize()) != digest {
                        mismatches.push(id);
                    }
                }
            }
        }
        reader.finish().map_err(|error| ReplicaError::Corrupt(error.to_string().into()))?;
        Ok(mismatches)
    }

    fn table(&mut self, names: &[String], table: u16) -> &mut Table {
        self.tables.get_mut(&names[usize::from(table)]).unwrap()
    }

    /// The tables' rows, in order.
    pub(super) fn rows(&self) -> BTreeMap<String, Vec<Vec<u8>>> {
        self.tables.iter().map(|(name, table)| (name.clone(), table.rows.values().cloned().collect())).collect()
    }
}

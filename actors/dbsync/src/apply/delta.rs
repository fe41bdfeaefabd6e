//! A delta: what changed between two positions, in one transaction.

use std::{collections::BTreeSet, sync::atomic::AtomicBool, time::Instant};

use horos_wire::protocol::sync::Position;

use super::{
    Applier, ApplyError, Doing as _, Done, Input,
    live::{Live, explain_full, now},
    nonsense, position,
    rows::{self, Bounds},
    shape::{self, Part, Shape},
    state,
};
use crate::{
    capture::quote,
    chunk::digest_range,
    frames::{Frame, Header},
};

/// A delta is not broken off: what it does is small.
static NEVER: AtomicBool = AtomicBool::new(false);

/// A delta being applied.
struct Delta<'a> {
    header: &'a Header,
    shapes: Vec<Shape>,
    /// By table: it has to come whole, because what is here of it is something else.
    owed: Vec<bool>,
    /// By table: something in it was changed.
    touched: Vec<bool>,
    mismatches: Vec<u32>,
    /// Whether a table is gone.
    dropped: bool,
    /// Whether rows are gone.
    withdrew: bool,
}

impl Applier {
    pub(super) fn delta(&mut self, header: &Header, base: Position, input: &mut Input<'_>) -> Result<Done, ApplyError> {
        let have = self.live.as_ref().and_then(Live::position);
        let Some(live) = self.live.as_mut().filter(|_| have == Some(base)) else { return Err(ApplyError::Mismatch { have }) };
        let to = position(&header.to);
        if to.epoch != base.epoch || to.seq < base.seq || (to.seq == base.seq && to.stamp != base.stamp) {
            return nonsense(format!("changes that lead from {base} to {to}"));
        }
        if header.encoding != live.encoding {
            return nonsense("changes to a database whose text is stored otherwise; only a snapshot can change that");
        }
        let mut delta = Delta::new(header, live)?;
        let (steps, max_bytes) = (&mut self.steps, self.settings.max_bytes);
        let outcome = live.transaction(|live| {
            let rows = delta.run(live, input)?;
            let at = now();
            delta.write_down(live, to, at)?;
            steps.before("commit a delta")?;
            Ok((rows, at))
        });
        let (rows, at) = outcome.map_err(|error| explain_full(&live.connection, max_bytes, input.stream_bytes(), error))?;
        // From here on it is so.
        let schema_changed = header.complete || delta.owed.iter().any(|owed| *owed);
        if schema_changed && let Some(state) = state::read(&live.connection)? {
            live.state = state;
        }
        live.state.position = Some(to);
        live.state.fingerprint = header.fingerprint;
        live.state.applied_at = at;
        let tables = delta.touched_names();
        for known in &mut live.state.tables {
            if tables.iter().any(|name| known.shape.is_called(name)) {
                known.changed_at = at;
            }
        }
        self.have = None;
        if delta.withdrew {
            self.withdrawn.get_or_insert_with(Instant::now);
        }
        live.checkpoint_if_due();
        let tables = (!delta.dropped).then_some(tables);
        Ok(Done { position: to, mismatches: delta.mismatches, tables, snapshot: false, rows })
    }
}

impl<'a> Delta<'a> {
    fn new(header: &'a Header, live: &Live) -> Result<Delta<'a>, ApplyError> {
        let mut shapes = Vec::with_capacity(header.tables.len());
        let mut owed = Vec::with_capacity(header.tables.len());
        for head in &header.tables {
            match live.state.find(&head.name).filter(|known| known.shape.head.fingerprint == head.fingerprint) {
                Some(known) => {
                    shapes.push(known.shape.clone());
                    owed.push(false);
                }
                None => {
                    shapes.push(Shape::of(head)?);
                    owed.push(true);
                }
            }
        }
        distinct(&shapes)?;
        let touched = vec![false; shapes.len()];
        Ok(Delta { header, shapes, owed, touched, mismatches: Vec::new(), dropped: false, withdrew: false })
    }

    /// Everything between the header and the end; gives the number of rows.
    fn run(&mut self, live: &mut Live, input: &mut Input<'_>) -> Result<u64, ApplyError> {
        if self.header.complete {
            self.drop_others(live)?;
        }
        let mut came = vec![false; self.shapes.len()];
        let mut ranged = false;
        loop {
            match input.next()? {
                Frame::Whole { table } => {
                    let table = usize::from(table);
                    self.whole(table, live, input)?;
                    self.withdrew = true;
                    came[table] = true;
                }
                Frame::Rows { table, rows, count } => {
                    let shape = self.known(table, &came)?;
                    // Within a range its rows are gone, and a second one with a key of theirs is an error of the sender's.
                    let sql = if ranged { shape.insert() } else { shape.upsert() };
                    let mut statement = live.connection.prepare_cached(&sql).doing("write rows")?;
                    rows::run(&mut statement, shape.name(), &rows, shape.width(), count)?;
                    self.touched[usize::from(table)] = true;
                }
                Frame::Deletes { table, keys, count } => {
                    let shape = self.known(table, &came)?;
                    let mut statement = live.connection.prepare_cached(&shape.delete()).doing("delete rows")?;
                    rows::run(&mut statement, shape.name(), &keys, shape.head.key.len(), count)?;
                    self.touched[usize::from(table)] = true;
                    self.withdrew = true;
                }
                Frame::Range { table, after, through } => {
                    let shape = self.known(table, &came)?;
                    Bounds::new(shape, after.as_deref(), through.as_deref())?.delete(&live.connection, shape)?;
                    self.touched[usize::from(table)] = true;
                    self.withdrew = true;
                    ranged = true;
                }
                Frame::Check { id, table, after, through, rows, digest } => {
                    let shape = self.known(table, &came)?;
                    let here = digest_range(&live.connection, &shape.ordered, after.as_deref(), through.as_deref(), &NEVER)?;
                    if (here.rows, here.digest) != (rows, digest) {
                        self.mismatches.push(id);
                    }
                }
                Frame::End { rows, .. } => {
                    if let Some(missing) = (0..came.len()).find(|table| self.owed[*table] && !came[*table]) {
                        return nonsense(format!("table {:?} has changed and does not come whole", self.shapes[missing].name()));
                    }
                    return Ok(rows);
                }
                Frame::Header(_) | Frame::Chunk { .. } => return nonsense("a frame out of place"),
            }
        }
    }

    /// The table, if what is here of it is what the stream speaks of.
    fn known(&self, table: u16, came: &[bool]) -> Result<&Shape, ApplyError> {
        let at = usize::from(table);
        match self.shapes.get(at) {
            Some(shape) if !self.owed[at] || came[at] => Ok(shape),
            Some(shape) => nonsense(format!("changes to table {:?}, which is not here in that form", shape.name())),
            None => nonsense("a table that the stream does not name"),
        }
    }

    /// All of a table anew.
    fn whole(&mut self, table: usize, live: &mut Live, input: &mut Input<'_>) -> Result<(), ApplyError> {
        let Some(shape) = self.shapes.get(table) else { return nonsense("a table that the stream does not name") };
        let head = &self.header.tables[table];
        let name = quote(shape.name());
        if self.owed[table] {
            if let Some(old) = live.state.find(&head.name) {
                live.connection.execute_batch(&format!("DROP TABLE main.{}", quote(old.shape.name()))).doing("drop a table")?;
            }
            shape::create(&mut live.connection, head, shape, Part::Table)?;
        } else {
            live.connection.execute_batch(&format!("DELETE FROM main.{name}")).doing("empty a table")?;
        }
        {
            let mut insert = live.connection.prepare_cached(&shape.insert()).doing("write rows")?;
            loop {
                match input.next()? {
                    Frame::Rows { rows, count, .. } => {
                        rows::run(&mut insert, shape.name(), &rows, shape.width(), count)?;
                        let Frame::Chunk { .. } = input.next()? else { return nonsense("rows of a table without their digest") };
                    }
                    Frame::Chunk { .. } => return nonsense("a chunk that was not offered"),
                    next => {
                        input.give_back(next);
                        break;
                    }
                }
            }
        }
        if self.owed[table] && head.ddl.len() > 1 {
            shape::create(&mut live.connection, head, shape, Part::Indexes)?;
        }
        self.touched[table] = true;
        Ok(())
    }

    /// Drops what is published no more.
    fn drop_others(&mut self, live: &mut Live) -> Result<(), ApplyError> {
        for known in &live.state.tables {
            let name = known.shape.name();
            if !self.shapes.iter().any(|shape| shape.is_called(name)) {
                live.connection.execute_batch(&format!("DROP TABLE main.{}", quote(name))).doing("drop a table")?;
                state::forget(&live.connection, name).doing("forget a table")?;
                self.dropped = true;
                self.withdrew = true;
            }
        }
        Ok(())
    }

    fn write_down(&self, live: &Live, to: Position, at: u64) -> Result<(), ApplyError> {
        for (table, shape) in self.shapes.iter().enumerate() {
            if self.owed[table] {
                state::write_table(&live.connection, shape, at)?;
            } else if self.touched[table] {
                state::touch(&live.connection, shape.name(), at)?;
            }
        }
        let mut after = live.state.clone_head();
        after.position = Some(to);
        after.fingerprint = self.header.fingerprint;
        after.applied_at = at;
        state::write(&live.connection, &after)
    }

    fn touched_names(&self) -> Vec<String> {
        let names = self.shapes.iter().zip(&self.touched).filter(|(_, touched)| **touched).map(|(shape, _)| shape.name().to_owned());
        names.collect::<BTreeSet<String>>().into_iter().collect()
    }
}

/// No two tables of a stream have one name, to SQLite.
pub(super) fn distinct(shapes: &[Shape]) -> Result<(), ApplyError> {
    let mut seen = BTreeSet::new();
    match shapes.iter().find(|shape| !seen.insert(shape.name().to_ascii_lowercase())) {
        Some(shape) => nonsense(format!("two tables are called {:?}", shape.name())),
        None => Ok(()),
    }
}

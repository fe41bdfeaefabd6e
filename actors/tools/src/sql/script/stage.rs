//! What a script does on the writer's thread.

use std::{collections::BTreeMap, ops::Range, sync::Arc, time::Instant};

use horos_store::writer::{WriteError, Writer};
use rusqlite::{
    Connection, Statement as Prepared,
    types::{Value as Sql, ValueRef},
};
use serde_json::Value;

use super::{
    super::{
        bindings::Made,
        bounds::Limits,
        fault::Trouble,
        query::{size, unambiguous},
        rights::Confined,
        values::{self, Columns},
    },
    Plan, Step,
};

/// What statements have done.
#[derive(Clone, Debug, Default)]
pub(super) struct Done {
    pub(super) affected: u64,
    pub(super) inserted: Option<i64>,
    pub(super) results: BTreeMap<Box<str>, Vec<Value>>,
    pub(super) bytes: usize,
}

/// One run on the writer: which statements, with what, and what comes out.
pub(super) struct Stage {
    pub(super) plan: Arc<Plan>,
    pub(super) confined: Arc<Confined>,
    pub(super) steps: Range<usize>,
    pub(super) made: Made,
    pub(super) done: Done,
    pub(super) max_bytes: usize,
}

impl Stage {
    pub(super) async fn commit(self, writer: &Writer, until: Instant) -> Result<(Made, Done), WriteError<Trouble>> {
        let guard = self.confined.clone();
        // Dropped with the call, the job is withdrawn and what runs of it interrupted: that is the writer's own doing.
        writer.transaction_guarded(until, guard, move |connection| self.run(connection)).await
    }

    /// May run twice: begins each time with what it was given.
    fn run(&self, connection: &Connection) -> Result<(Made, Done), Trouble> {
        let plan = &self.plan;
        let _limits = Limits::put(connection, plan.value_bytes)?;
        if plan.rights.is_none() {
            for step in &plan.steps {
                self.confined.replaces(step.replaces);
                // Prepared, so that SQLite says what it touches, and not run.
                connection.prepare(&step.sql)?;
            }
            return Err(Trouble::Unlisted(self.confined.config()));
        }
        unambiguous(connection, &self.confined)?;
        let (mut made, mut done) = (self.made.clone(), self.done.clone());
        for step in &plan.steps[self.steps.clone()] {
            self.confined.replaces(step.replaces);
            let mut statement = connection.prepare_cached(&step.sql)?;
            if let Err(trouble) = self.step(connection, step, &mut statement, &mut made, &mut done) {
                // Whatever it was, it is not kept for the next.
                statement.discard();
                return Err(trouble);
            }
        }
        Ok((made, done))
    }

    fn step(
        &self,
        connection: &Connection,
        step: &Step,
        statement: &mut Prepared<'_>,
        made: &mut Made,
        done: &mut Done,
    ) -> Result<(), Trouble> {
        step.bindings.bind(statement, made)?;
        let (reads, gives) = (statement.readonly(), statement.column_count() > 0);
        let mut columns = None;
        let mut first = None;
        let mut given = Vec::new();
        let mut rows = statement.raw_query();
        let mut count = 0;
        while let Some(row) = rows.next()? {
            count += 1;
            if count > self.plan.max_rows {
                return Err(Trouble::TooManyRows(self.plan.max_rows));
            }
            if first.is_none() {
                first = Some(Sql::try_from(row.get_ref(0)?).map_err(rusqlite::Error::from)?);
            }
            if step.name.is_some() {
                // Not before the first row: only then has a statement that was kept been prepared for the schema of today.
                let columns = columns.get_or_insert_with(|| Columns::new(row.as_ref().column_names()));
                let row = Value::Object(columns.object(row)?);
                done.bytes += size(&row) + 1;
                if done.bytes > self.max_bytes {
                    return Err(Trouble::RowTooLarge);
                }
                given.push(row);
            }
        }
        drop(rows);
        let changed = if reads { 0 } else { connection.changes() };
        done.affected += changed;
        // The connection knows only the last one at all, which may be another tool's.
        let inserted = (step.inserts && changed > 0).then(|| connection.last_insert_rowid());
        done.inserted = inserted.or(done.inserted);
        if let Some(name) = &step.binds {
            let value = if gives { first } else { inserted.map(Sql::Integer) };
            made.lets.insert(name.clone(), value.unwrap_or(Sql::Null));
        }
        let values: usize = made.lets.values().map(|value| size(&values::json(ValueRef::from(value))) + 80).sum();
        if done.bytes + values > self.max_bytes {
            return Err(Trouble::RowTooLarge);
        }
        if let Some(name) = step.name.as_ref().filter(|_| gives) {
            done.results.insert(name.clone(), given);
        }
        Ok(())
    }
}

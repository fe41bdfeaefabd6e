//! Going back to what was served before the last snapshot.
//!
//! In one transaction of the live file, and from there: a row comes back only in the place of one that is still published, and a table
//! only in the form in which it is still published. What has been withdrawn meanwhile cannot come back, because nothing puts it there.

use horos_wire::protocol::sync::Position;

use super::{Applier, ApplyError, Doing as _, Standing, files, nonsense, place::attach, state};
use crate::{capture::quote, frames::TableHead};

const NOTHING: ApplyError = ApplyError::Nothing("there is no previous snapshot to go back to");

impl Applier {
    /// Serves the previous snapshot, and takes no changes until [`Applier::resume`]. Gives where that comes from, and how many of its
    /// rows have been withdrawn since.
    ///
    /// # Errors
    /// [`ApplyError`]; what is served is as it was.
    pub(crate) fn roll_back(&mut self) -> Result<(Position, u64), ApplyError> {
        let doing = "roll back";
        if self.state().is_some_and(|state| state.standing == Standing::Pinned) {
            return Err(ApplyError::Pinned);
        }
        let Some(live) = self.live.as_mut() else { return Err(NOTHING) };
        if !files::exists(&self.paths.previous)? {
            return Err(NOTHING);
        }
        self.have = None;
        let before = {
            let previous = super::live::connect(&self.paths.previous, 2_000)?;
            let Some(state) = state::read(&previous)? else { return nonsense("the previous snapshot is none") };
            state
        };
        let Some(position) = before.position else { return nonsense("the previous snapshot was never complete") };
        attach(&live.connection, &self.paths.previous, "previous").doing(doing)?;
        let steps = &mut self.steps;
        let outcome = live.transaction(|live| {
            let mut withdrawn = 0;
            for known in &live.state.tables {
                let shape = &known.shape;
                let TableHead { name, fingerprint, .. } = &shape.head;
                if before.find(name).is_none_or(|old| old.shape.head.fingerprint != *fingerprint) {
                    continue;
                }
                let (table, columns) = (quote(name), shape.columns_of(""));
                let (kept, there) = (shape.same_key("p", "l"), shape.same_key("l", "p"));
                let gone =
                    format!("SELECT count(*) FROM previous.{table} AS p WHERE NOT EXISTS (SELECT 1 FROM main.{table} AS l WHERE {kept})");
                let gone: i64 = live.connection.query_row(&gone, [], |row| row.get(0)).doing(doing)?;
                withdrawn += gone.cast_unsigned();
                let newer = format!("DELETE FROM main.{table} AS l WHERE NOT EXISTS (SELECT 1 FROM previous.{table} AS p WHERE {there})");
                live.connection.execute(&newer, []).doing(doing)?;
                let back = format!(
                    "INSERT OR REPLACE INTO main.{table} ({columns}) SELECT {} FROM previous.{table} AS p
                     WHERE EXISTS (SELECT 1 FROM main.{table} AS l WHERE {kept})",
                    shape.columns_of("p.")
                );
                live.connection.execute(&back, []).doing(doing)?;
            }
            let pinned = super::State { standing: Standing::Pinned, ..live.state.clone_head() };
            state::write(&live.connection, &pinned)?;
            steps.before("commit a roll-back")?;
            Ok(withdrawn)
        });
        live.connection.flush_prepared_statement_cache();
        let detached = live.connection.execute_batch("DETACH previous").doing(doing);
        let withdrawn = outcome?;
        live.state.standing = Standing::Pinned;
        live.checkpoint_if_due();
        detached?;
        Ok((position, withdrawn))
    }

    /// Takes changes again; what is served can only be replaced by a snapshot.
    ///
    /// # Errors
    /// [`ApplyError::Nothing`] when it was not rolled back.
    pub(crate) fn resume(&mut self) -> Result<(), ApplyError> {
        let Some(live) = self.live.as_mut().filter(|live| live.state.standing == Standing::Pinned) else {
            return Err(ApplyError::Nothing("the replica is not rolled back"));
        };
        live.transaction(|live| {
            let resumed = super::State { standing: Standing::Broken, ..live.state.clone_head() };
            state::write(&live.connection, &resumed)
        })?;
        live.state.standing = Standing::Broken;
        Ok(())
    }
}

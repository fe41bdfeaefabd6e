//! Putting a finished snapshot in the live file's place, and keeping what was there.

use std::time::{Duration, Instant};

use horos_wire::protocol::sync::Position;
use rusqlite::{
    Connection,
    backup::{Backup, StepResult},
};

use super::{
    Applier, ApplyError, Doing as _, files,
    live::{Live, connect, pragma},
    nonsense, state,
};
use crate::{capture::quote, frames::Encoding};

/// Longest wait for whoever writes where nobody should.
const BUSY: Duration = Duration::from_secs(5);
/// Page cache of a file that is copied from end to end, in KiB.
const CACHE_KIB: i64 = 4_000;

impl Applier {
    /// Makes the incoming file what is read. It is complete and on disk.
    pub(super) fn place(&mut self, encoding: Encoding) -> Result<(), ApplyError> {
        match &self.live {
            None => self.rename(),
            Some(live) if live.encoding == encoding => {
                self.keep_previous();
                let copied = self.copy();
                if let Some(live) = &mut self.live {
                    // Also of a copy that failed: what it left there is nobody's, and takes up the disk.
                    live.refilled();
                }
                copied?;
                self.settle_previous();
                Ok(())
            }
            // Connections that are open cannot follow a change of the encoding, which hardly ever happens: they go on with what
            // they have, and find the new file when they open it.
            Some(_) => {
                if let Some(live) = self.live.take() {
                    live.give_up()?;
                }
                self.rename()
            }
        }
    }

    /// At no instant is there anything but the old file, or none, or the new one.
    fn rename(&mut self) -> Result<(), ApplyError> {
        self.steps.before("rename a snapshot")?;
        files::set_mode(&self.paths.incoming, self.settings.readable_by.file())?;
        if files::length(&self.paths.live) == 0 {
            // A WAL of a file before must not be applied to this one.
            files::remove(&self.paths.live)?;
        }
        files::rename(&self.paths.incoming, &self.paths.live)?;
        self.steps.before("sync the directory")?;
        self.paths.sync_directory()?;
        self.live = Some(Live::open(&self.settings, &self.paths.live)?);
        Ok(())
    }

    /// All of its pages, in one transaction of the live file: readers of every process see all of it or nothing, and the file, its
    /// inode and its locks stay.
    fn copy(&mut self) -> Result<(), ApplyError> {
        let doing = "put a snapshot in place";
        let Some(live) = &mut self.live else { return nonsense("no replica to replace") };
        let incoming = connect(&self.paths.incoming, CACHE_KIB)?;
        live.connection.flush_prepared_statement_cache();
        let steps = &mut self.steps;
        copy(&incoming, &mut live.connection, self.pages_per_step, doing, || steps.before("copy pages of a snapshot"))?;
        let _ = incoming.close();
        if let Some(state) = state::read(&live.connection)? {
            live.state = state;
        }
        self.steps.before("remove the incoming file")
    }

    /// Copies what is served into a file of its own. That it cannot be kept is no reason to serve it for ever.
    fn keep_previous(&mut self) {
        if let Err(error) = self.try_keep() {
            tracing::warn!(replica = self.settings.name, error = &error as &dyn std::error::Error, "no roll-back will be possible");
            // Rather none than one of an age that nobody expects, and its room may be needed now.
            let removed = files::remove(&self.paths.keeping).and_then(|()| files::remove(&self.paths.previous));
            if let Err(error) = removed {
                tracing::warn!(error = &error as &dyn std::error::Error, "a previous snapshot cannot be removed");
            }
        }
    }

    fn try_keep(&mut self) -> Result<(), ApplyError> {
        let doing = "keep the previous snapshot";
        let Some(live) = &self.live else { return Ok(()) };
        if live.state.current().is_none() {
            // What is served was rolled back: the previous one is what it comes from.
            return Ok(());
        }
        let path = &self.paths.keeping;
        self.steps.before("keep the previous snapshot")?;
        files::remove(path)?;
        files::create(path, 0o600)?;
        let mut kept = connect(path, CACHE_KIB)?;
        unsafe_but_whole(&kept).doing(doing)?;
        let steps = &mut self.steps;
        copy(&live.connection, &mut kept, self.pages_per_step, doing, || steps.before("copy pages of the previous snapshot"))?;
        // The copied header asks for a WAL, which this file has no use for.
        let mode: String = kept.pragma_update_and_check(None, "journal_mode", "delete", |row| row.get(0)).doing(doing)?;
        debug_assert_eq!(mode, "delete");
        kept.close().map_err(|(_, error)| error).doing(doing)
    }

    /// Gives what was kept its name, without the rows that are published no more.
    pub(super) fn settle_previous(&mut self) {
        self.withdrawn = None;
        let mut settle = || -> Result<(), ApplyError> {
            if !files::exists(&self.paths.keeping)? {
                // What is there from before has to lose what was withdrawn since, too.
                if !files::exists(&self.paths.previous)? {
                    return Ok(());
                }
                files::rename(&self.paths.previous, &self.paths.keeping)?;
            }
            self.steps.before("prune the previous snapshot")?;
            self.prune(&self.paths.keeping)?;
            files::sync(&self.paths.keeping)?;
            files::rename(&self.paths.keeping, &self.paths.previous)?;
            self.paths.sync_directory()
        };
        if let Err(error) = settle() {
            tracing::warn!(replica = self.settings.name, error = &error as &dyn std::error::Error, "no roll-back will be possible");
            let _ = files::remove(&self.paths.keeping);
        }
    }
}

/// A file that is thrown away unless it is finished and synced: no journal, no syncs.
fn unsafe_but_whole(connection: &Connection) -> rusqlite::Result<()> {
    pragma(connection, "journal_mode", "off")?;
    pragma(connection, "synchronous", 0)
}

/// Copies all pages in one transaction of `to`.
fn copy(
    from: &Connection,
    to: &mut Connection,
    pages: i32,
    doing: &'static str,
    mut before_step: impl FnMut() -> Result<(), ApplyError>,
) -> Result<(), ApplyError> {
    let begun = Instant::now();
    let copying = Backup::new(from, to).doing(doing)?;
    loop {
        before_step()?;
        match copying.step(pages).doing(doing)? {
            StepResult::Done => return Ok(()),
            StepResult::More => {}
            // Somebody else writes, to a replica or a file that nobody knows of.
            _ if begun.elapsed() < BUSY => std::thread::park_timeout(Duration::from_millis(5)),
            _ => return nonsense("another process writes to the replica"),
        }
    }
}

impl Live {
    /// Closes the file so that another can have its name: with nothing beside it that would be taken for the other's.
    fn give_up(self) -> Result<(), ApplyError> {
        let path = self.connection.path().map(std::path::PathBuf::from);
        let doing = "close the replica";
        self.connection.busy_timeout(BUSY).doing(doing)?;
        let busy: i64 = self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0)).doing(doing)?;
        if busy != 0 {
            return nonsense("somebody reads the replica for too long to replace it");
        }
        self.connection.flush_prepared_statement_cache();
        self.connection.close().map_err(|(_, error)| error).doing(doing)?;
        let Some(path) = path else { return Ok(()) };
        // Who has them open keeps them.
        for suffix in ["-wal", "-shm"] {
            let beside = files::beside(&path, suffix);
            if files::exists(&beside)? {
                std::fs::remove_file(&beside).map_err(|source| ApplyError::File { doing: "remove", path: beside, source })?;
            }
        }
        Ok(())
    }
}

impl Applier {
    /// Removes from the file at `path`, which is no longer served, what is not published any more: rows whose keys are gone, and
    /// tables that are published otherwise.
    pub(super) fn prune(&self, path: &std::path::Path) -> Result<(), ApplyError> {
        let doing = "prune the previous snapshot";
        let Some(live) = &self.live else { return nonsense("no replica to prune by") };
        let kept = connect(path, CACHE_KIB)?;
        unsafe_but_whole(&kept).doing(doing)?;
        let Some(before) = state::read(&kept)? else { return nonsense("the previous snapshot is none") };
        attach(&kept, &self.paths.live, "live").doing(doing)?;
        kept.execute_batch("BEGIN").doing(doing)?;
        for known in &before.tables {
            let name = quote(known.shape.name());
            let same = live.state.find(known.shape.name()).filter(|now| now.shape.head.fingerprint == known.shape.head.fingerprint);
            match same {
                Some(now) => {
                    let gone = now.shape.same_key("p", "l");
                    let sql = format!("DELETE FROM main.{name} AS p WHERE NOT EXISTS (SELECT 1 FROM live.{name} AS l WHERE {gone})");
                    kept.execute(&sql, []).doing(doing)?;
                }
                None => {
                    kept.execute_batch(&format!("DROP TABLE main.{name}")).doing(doing)?;
                    state::forget(&kept, known.shape.name()).doing(doing)?;
                }
            }
        }
        kept.execute_batch("COMMIT; DETACH live").doing(doing)?;
        kept.close().map_err(|(_, error)| error).doing(doing)
    }

    /// Removes what a crash left behind that nothing can be made of.
    pub(super) fn tidy(&mut self) -> Result<(), ApplyError> {
        // Never pruned, so nothing to roll back to.
        files::remove(&self.paths.keeping)?;
        if !files::exists(&self.paths.incoming)? {
            return Ok(());
        }
        // In place already, but for its removal?
        let in_place = |at: Position| {
            let state = connect(&self.paths.incoming, CACHE_KIB).and_then(|file| state::read(&file));
            matches!(state, Ok(Some(state)) if state.position == Some(at))
        };
        if self.live.as_ref().and_then(Live::position).is_some_and(in_place) {
            files::remove(&self.paths.incoming)?;
            files::remove(&self.paths.partial)?;
        }
        Ok(())
    }
}

/// Attaches a file under `name`.
pub(super) fn attach(connection: &Connection, path: &std::path::Path, name: &'static str) -> rusqlite::Result<()> {
    use std::os::unix::ffi::OsStrExt as _;
    // As bytes: a path need not be UTF-8, and one that is absolute is no URI.
    let path = rusqlite::types::ValueRef::Text(path.as_os_str().as_bytes());
    let mut statement = connection.prepare(&format!("ATTACH ?1 AS {name}"))?;
    statement.raw_bind_parameter(1, rusqlite::types::ToSqlOutput::Borrowed(path))?;
    statement.raw_execute().map(drop)
}

//! A group of jobs in one transaction: who is kept, who is undone, who runs again. Synchronous; the thread drives it.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use horos_supervision::Incoming;
use horos_wire::{TraceId, tree::Outcome};
use parking_lot::Mutex;
use rusqlite::{
    Connection, InterruptHandle,
    hooks::{AuthAction, AuthContext, Authorization, Wal},
};

use super::{
    Shared,
    job::{Job, Verdict},
};
use crate::{Kind, StoreError, budget::Budget};

/// The savepoint around a job. Jobs may use others, not this one.
const SAVEPOINT: &str = "horos_job";
const SAVE: &str = "SAVEPOINT horos_job";
const RELEASE: &str = "RELEASE horos_job";
const UNDO: &str = "ROLLBACK TO horos_job; RELEASE horos_job";

/// Pragmas a job may use: those that read, and those whose effect is part of the transaction.
const PERMITTED_PRAGMAS: &[&str] = &[
    "data_version",
    "defer_foreign_keys",
    "foreign_key_check",
    "foreign_key_list",
    "freelist_count",
    "incremental_vacuum",
    "index_info",
    "index_list",
    "index_xinfo",
    "integrity_check",
    "page_count",
    "page_size",
    "quick_check",
    "schema_version",
    "table_info",
    "table_list",
    "table_xinfo",
    "user_version",
];

/// What SQLite's hooks saw of the transaction. Hooks may not touch the connection, so they only take notes.
#[derive(Debug, Default)]
struct Notes {
    in_job: AtomicBool,
    schema: AtomicBool,
    rows: Mutex<Rows>,
    /// Set by the WAL hook, that is: by a commit that wrote something.
    wrote: AtomicBool,
    frames: AtomicU32,
}

#[derive(Clone, Debug, Default)]
struct Rows {
    tables: BTreeSet<String>,
    latest: String,
    count: u64,
}

impl Rows {
    fn note(&mut self, table: &str) {
        self.count += 1;
        // Rows come in runs of one table: no look-up and no allocation for the second.
        if self.latest != table {
            table.clone_into(&mut self.latest);
            self.tables.insert(table.to_owned());
        }
    }
}

/// The write connection and its bookkeeping.
pub(super) struct Group {
    pub(super) connection: Connection,
    pub(super) budget: Arc<Budget>,
    notes: Arc<Notes>,
    interrupt: Arc<InterruptHandle>,
    in_memory: bool,
}

enum Ran {
    Kept,
    Undone,
    /// Not started: nobody waits for it any more.
    Late,
    /// The transaction is gone, and with it everything the group did.
    Lost,
}

impl Group {
    pub(super) fn new(mut connection: Connection, busy_timeout: Duration, in_memory: bool) -> Result<Group, StoreError> {
        let budget = Budget::of_writer();
        budget.govern(&mut connection, busy_timeout)?;
        let notes = Arc::new(Notes::default());
        let n = Arc::clone(&notes);
        connection.update_hook(Some(move |_, _: &str, table: &str, _| n.rows.lock().note(table)))?;
        let n = Arc::clone(&notes);
        connection.wal_hook(Some(move |_: &mut Wal, frames: i32| {
            n.wrote.store(true, Ordering::Relaxed);
            n.frames.store(frames.cast_unsigned(), Ordering::Relaxed);
            Ok(())
        }))?;
        let (n, b) = (Arc::clone(&notes), Arc::clone(&budget));
        connection.authorizer(Some(move |context: AuthContext<'_>| match authorize(&n, &context.action) {
            Authorization::Allow => b.guard().authorize(&context),
            refused => refused,
        }))?;
        let interrupt = Arc::new(connection.get_interrupt_handle());
        Ok(Group { connection, budget, notes, interrupt, in_memory })
    }

    /// Frames in the WAL after the last commit that wrote.
    pub(super) fn frames(&self) -> u32 {
        self.notes.frames.load(Ordering::Relaxed)
    }

    /// The WAL was emptied.
    pub(super) fn reset_frames(&self) {
        self.notes.frames.store(0, Ordering::Relaxed);
    }

    /// Commits `first` and what else is waiting, and answers all of them.
    ///
    /// # Errors
    /// The connection is broken; everyone concerned was answered.
    pub(super) fn commit(&mut self, shared: &Shared, first: Box<dyn Job>) -> Result<(), StoreError> {
        // Nobody is waited for: while this group's commit is on its way to the disk the next one gathers in the queue, so
        // groups are large exactly when there is load, and a lone job pays nothing.
        let again = self.attempt(shared, first, || shared.queue.try_next())?;
        if !again.is_empty() {
            shared.counters.lost_groups.fetch_add(1, Ordering::Relaxed);
        }
        for (position, job) in again.into_iter().enumerate() {
            tracing::debug!(position, "a job runs again, alone: its group was lost");
            // A job alone is never given back.
            self.attempt(shared, job, || None)?;
        }
        Ok(())
    }

    /// Returns the jobs that must run again, each alone.
    fn attempt(
        &mut self,
        shared: &Shared,
        mut first: Box<dyn Job>,
        mut more: impl FnMut() -> Option<Box<dyn Job>>,
    ) -> Result<Vec<Box<dyn Job>>, StoreError> {
        let undone = |job: Box<dyn Job>| {
            shared.counters.undone_jobs.fetch_add(1, Ordering::Relaxed);
            job.reply();
        };
        self.budget.set(first.deadline());
        let begun = self.execute("BEGIN IMMEDIATE");
        self.budget.clear();
        if let Err(error) = begun {
            let late = Instant::now() >= first.deadline() && error.kind.is_transient();
            first.overrule(if late { Verdict::DeadlinePassed } else { Verdict::NoEffect(error.clone()) });
            undone(first);
            return if error.kind.breaks_connection() { Err(error) } else { Ok(Vec::new()) };
        }
        let started = Instant::now();
        let changes_before = self.connection.total_changes();
        self.notes.schema.store(false, Ordering::Relaxed);
        self.notes.wrote.store(false, Ordering::Relaxed);
        *self.notes.rows.lock() = Rows::default();

        let mut jobs: Vec<Box<dyn Job>> = Vec::new();
        let mut kept = 0_u64;
        let mut next = Some(first);
        while let Some(mut job) = next.take() {
            let vitals = shared.vitals.get();
            if let Some(vitals) = vitals {
                let now = Instant::now();
                vitals.begin(now, incoming(&shared.sender, now - job.queued()));
            }
            let ran = self.run(shared, job.as_mut());
            if let Some(vitals) = vitals {
                let outcome = match ran {
                    Ran::Kept => Outcome::Done,
                    Ran::Undone | Ran::Lost => Outcome::Failed,
                    Ran::Late => Outcome::Refused,
                };
                vitals.end(Instant::now(), outcome);
            }
            match ran {
                Ran::Kept => kept += 1,
                Ran::Undone | Ran::Late => {}
                Ran::Lost => {
                    undone(job);
                    let (answered, again): (Vec<_>, Vec<_>) = jobs.into_iter().partition(|j| j.is_final());
                    answered.into_iter().for_each(undone);
                    return Ok(again);
                }
            }
            jobs.push(job);
            if jobs.len() < shared.config.group_jobs && started.elapsed() < shared.config.group_time {
                next = more();
            }
        }
        if kept == 0 {
            let ended = self.execute("ROLLBACK");
            jobs.into_iter().for_each(undone);
            return ended.map(|()| Vec::new());
        }
        let committing = Instant::now();
        if let Err(error) = self.execute("COMMIT") {
            return self.commit_failed(jobs, error, undone);
        }
        let took = u64::try_from(committing.elapsed().as_micros()).unwrap_or(u64::MAX);
        let counters = &shared.counters;
        counters.commits.fetch_add(1, Ordering::Relaxed);
        counters.committed_jobs.fetch_add(kept, Ordering::Relaxed);
        counters.undone_jobs.fetch_add(jobs.len() as u64 - kept, Ordering::Relaxed);
        counters.longest_commit_us.fetch_max(took, Ordering::Relaxed);
        // Announced before anyone is answered: who has an answer finds the watchers already awake.
        self.announce(shared, changes_before);
        jobs.into_iter().for_each(|job| job.reply());
        Ok(Vec::new())
    }

    fn run(&mut self, shared: &Shared, job: &mut dyn Job) -> Ran {
        if Instant::now() >= job.deadline() || !job.progress().start() {
            job.progress().abandon();
            job.overrule(Verdict::DeadlinePassed);
            return Ran::Late;
        }
        let rows_before = self.notes.rows.lock().clone();
        if let Err(error) = self.execute(SAVE) {
            job.overrule(Verdict::NoEffect(error));
            return self.give_up();
        }
        self.budget.set(job.deadline());
        *shared.current.lock() = Some((Arc::clone(job.progress()), Arc::clone(&self.interrupt)));
        self.notes.in_job.store(true, Ordering::Relaxed);
        let keep = self.budget.guard().during(job.guard(), || job.run(&self.connection));
        self.notes.in_job.store(false, Ordering::Relaxed);
        *shared.current.lock() = None;
        self.budget.clear();
        let late = !keep && Instant::now() >= job.deadline();
        if late {
            job.overrule(Verdict::DeadlinePassed);
        }
        if self.connection.is_autocommit() {
            // A statement of this job rolled everything back: SQLite does on a full disk, on an interrupt in the middle of a
            // write, and on request. <https://sqlite.org/lang_transaction.html#response_to_errors_within_a_transaction>
            if keep {
                job.overrule(Verdict::RolledBack);
            }
            job.progress().undo();
            return Ran::Lost;
        }
        if keep && job.progress().release() {
            return match self.execute(RELEASE) {
                Ok(()) => Ran::Kept,
                Err(error) => {
                    job.overrule(Verdict::NoEffect(error));
                    self.give_up()
                }
            };
        }
        if keep {
            // Its caller gave up in the meantime and was told that there is no effect.
            job.overrule(Verdict::DeadlinePassed);
        }
        *self.notes.rows.lock() = rows_before;
        job.progress().undo();
        match self.execute(UNDO) {
            Ok(()) => Ran::Undone,
            Err(_) => self.give_up(),
        }
    }

    /// Savepoints do not work any more: only the end of the transaction is certain.
    fn give_up(&mut self) -> Ran {
        if !self.connection.is_autocommit()
            && let Err(error) = self.execute("ROLLBACK")
        {
            tracing::error!(%error, "cannot roll back; the next BEGIN will say whether the connection is usable");
        }
        Ran::Lost
    }

    fn commit_failed(
        &mut self,
        mut jobs: Vec<Box<dyn Job>>,
        error: StoreError,
        undone: impl Fn(Box<dyn Job>),
    ) -> Result<Vec<Box<dyn Job>>, StoreError> {
        let open = !self.connection.is_autocommit();
        if open {
            self.execute("ROLLBACK")?;
        }
        // With the transaction still open nothing was written. SQLITE_FULL comes from writing the WAL, whose last frame is
        // the one that commits; it is not there. Any other failure may have come after it, from the sync.
        let certain = open || error.kind == Kind::Full;
        // Deferred foreign keys and space: one job's doing, and run one by one only that one fails.
        if certain && jobs.len() > 1 && matches!(error.kind, Kind::Constraint | Kind::Full) {
            let (answered, again): (Vec<_>, Vec<_>) = jobs.into_iter().partition(|j| j.is_final());
            answered.into_iter().for_each(undone);
            return Ok(again);
        }
        for mut job in jobs.drain(..) {
            if !job.is_final() {
                job.overrule(if certain { Verdict::NoEffect(error.clone()) } else { Verdict::Unknown(error.clone()) });
            }
            undone(job);
        }
        if certain { Ok(Vec::new()) } else { Err(error) }
    }

    fn announce(&self, shared: &Shared, changes_before: u64) {
        let rows = std::mem::take(&mut *self.notes.rows.lock());
        let changes = self.connection.total_changes() - changes_before;
        let schema = self.notes.schema.load(Ordering::Relaxed);
        let wrote = if self.in_memory { changes > 0 || schema } else { self.notes.wrote.load(Ordering::Relaxed) };
        if wrote {
            // The update hook is silent for some changes (WITHOUT ROWID, truncating DELETE) that are still counted. The count
            // includes undone jobs, so this errs on the side of "others".
            let others = schema || rows.count < changes || rows.tables.is_empty();
            shared.announcer.announce(rows.tables, others);
        }
    }

    fn execute(&self, sql: &str) -> Result<(), StoreError> {
        self.connection.execute_batch(sql).map_err(StoreError::from)
    }
}

fn incoming(sender: &Arc<str>, waited: Duration) -> Incoming<'_> {
    Incoming { method: "transaction", sender, size: 0, trace: TraceId::default(), waited }
}

/// What a job may do. The transaction is shared, so its limits are not the job's to move.
fn authorize(notes: &Notes, action: &AuthAction<'_>) -> Authorization {
    if !notes.in_job.load(Ordering::Relaxed) {
        return Authorization::Allow;
    }
    match action {
        AuthAction::Transaction { .. } | AuthAction::Attach { .. } | AuthAction::Detach { .. } => Authorization::Deny,
        AuthAction::Savepoint { savepoint_name, .. } if savepoint_name.eq_ignore_ascii_case(SAVEPOINT) => Authorization::Deny,
        AuthAction::Pragma { pragma_name, pragma_value } => {
            if pragma_value.is_some() {
                notes.schema.store(true, Ordering::Relaxed);
            }
            let permitted = PERMITTED_PRAGMAS.iter().any(|p| p.eq_ignore_ascii_case(pragma_name));
            if permitted { Authorization::Allow } else { Authorization::Deny }
        }
        AuthAction::CreateTable { .. }
        | AuthAction::DropTable { .. }
        | AuthAction::AlterTable { .. }
        | AuthAction::CreateView { .. }
        | AuthAction::DropView { .. }
        | AuthAction::CreateVtable { .. }
        | AuthAction::DropVtable { .. }
        | AuthAction::CreateTrigger { .. }
        | AuthAction::DropTrigger { .. }
        | AuthAction::CreateIndex { .. }
        | AuthAction::DropIndex { .. } => {
            notes.schema.store(true, Ordering::Relaxed);
            Authorization::Allow
        }
        _ => Authorization::Allow,
    }
}

//! The looks themselves: a state machine on blocking threads, one look at a time.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::DirBuilderExt as _,
    path::PathBuf,
    sync::{
        Arc,
        atomic::Ordering::SeqCst,
        mpsc::{Receiver, sync_channel},
    },
    time::{Duration, Instant},
};

use horos_store::{
    StoreError,
    open::{Access, Database, Options, open},
    rusqlite::{Connection, OptionalExtension as _, TransactionBehavior},
};

use super::{CACHE_KIB, LOCK_WAIT, Loaded, LoadedOr, Shared, SourceError, blind_names, kept::Kept, union};
use crate::{
    build,
    capture::{self, CaptureError, Look, Plan, Position, Sentinel, Witness},
    filter::{Filter, LoadError},
};

/// Between two writings of the witness while commits come in: what is written later than the commit costs nothing but the log between.
const SAVE_EVERY: Duration = Duration::from_secs(1);
/// Tries at a schema that changes while it is read, before the look fails.
const RESTLESS: u32 = 5;
/// Most entries that one transaction deletes, so that it holds up nobody for long: some milliseconds.
const TRIM_BATCH: i64 = 10_000;

/// A source's view of its file.
pub(super) struct Captor {
    shared: Arc<Shared>,
    kept: Option<Kept>,
    /// The witness as it was last written down.
    saved: Option<Witness>,
    saved_at: Option<Instant>,
    /// The witness that is being written down, on a thread of its own: a disk may take a second over it, and commits are not to wait.
    saving: Option<(Witness, Receiver<io::Result<()>>)>,
    trimmed_at: Instant,
    /// There is more to be trimmed, by the looks that follow.
    trimming: bool,
    file: Option<Opened>,
}

impl Drop for Captor {
    fn drop(&mut self) {
        // Whoever comes next writes to the same place, or removes what is there.
        self.saving.take().map(|(_, saved)| saved.recv());
    }
}

/// The file while it is open.
struct Opened {
    /// Never writes, so that `PRAGMA data_version` counts all commits.
    database: Database,
    /// None while nothing is attached.
    attached: Option<Attached>,
    /// The schema that the filters were last loaded under.
    cookie: Option<i64>,
}

struct Attached {
    sentinel: Sentinel,
    plan: Plan,
    /// The next commit without an entry is our own, or was looked at already.
    expected: bool,
}

impl Captor {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, kept: None, saved: None, saved_at: None, saving: None, trimmed_at: Instant::now(), trimming: false, file: None }
    }

    /// One look and all that follows from it.
    pub(super) fn turn(&mut self) -> Result<(), SourceError> {
        let outcome = self.look();
        if let Err(error) = &outcome
            && gives_up_connection(error)
        {
            self.file = None;
        }
        outcome
    }

    fn look(&mut self) -> Result<(), SourceError> {
        if self.kept.is_none() {
            self.prepare()?;
        }
        if self.file.is_none() {
            self.open()?;
        }
        if self.shared.doubted.swap(false, SeqCst)
            && let (Some(file), Some(kept)) = (&mut self.file, &mut self.kept)
        {
            tracing::warn!(database = %self.shared.config.name, "a replica has what the log never held: the file was put back");
            // Without a witness the log is not believed.
            (file.attached, file.cookie, kept.witness) = (None, None, None);
            self.load(true)?;
        }
        // A file that is replaced between two steps is found so by the next look; two are enough here.
        for _ in 0..2 {
            let Some(file) = &mut self.file else { return Ok(()) };
            let Some(attached) = &mut file.attached else {
                let cookie = cookie(&file.database)?;
                return if file.cookie == Some(cookie) { Err(SourceError::Nothing) } else { self.load(true) };
            };
            match attached.sentinel.look(&file.database)? {
                Look::Quiet => break,
                Look::Committed { head, logged } => {
                    let unseen = !logged && !std::mem::take(&mut attached.expected);
                    attached.expected = false;
                    let cookie = cookie(&file.database)?;
                    if file.cookie != Some(cookie) {
                        // What is published may have changed, or nothing that matters.
                        self.load(false)?;
                    } else {
                        self.told(head, unseen);
                    }
                    break;
                }
                Look::Replaced => self.open()?,
                Look::Rebase { cause, .. } => {
                    tracing::info!(database = %self.shared.config.name, ?cause, "re-based");
                    self.load(true)?;
                }
            }
        }
        self.keep_up()
    }

    fn prepare(&mut self) -> Result<(), SourceError> {
        let directory = &self.shared.config.directory;
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(SourceError::Witness)?;
        let kept = Kept::load(&self.shared.config.witness());
        self.saved = kept.witness.clone();
        self.kept = Some(kept);
        Ok(())
    }

    /// Opens the file behind the path and attaches to it.
    fn open(&mut self) -> Result<(), SourceError> {
        // The last witness of what was open before is what the file now behind the path is compared with.
        self.remember();
        self.file = None;
        let options = Options { mmap_bytes: Some(0), ..self.options(Access::ReadOnly) };
        let database = open(&options)?;
        self.file = Some(Opened { database, attached: None, cookie: None });
        self.shared.view.send_modify(|view| view.opened += 1);
        self.load(true)
    }

    fn options(&self, access: Access) -> Options {
        Options { busy_timeout: LOCK_WAIT, cache_kib: CACHE_KIB, ..Options::new(&self.shared.config.file, access) }
    }

    fn remember(&mut self) {
        if let Some(attached) = self.file.as_ref().and_then(|file| file.attached.as_ref())
            && let Some(kept) = &mut self.kept
        {
            kept.witness = Some(attached.sentinel.witness().clone());
        }
    }

    /// Loads the filters for the schema as it is, and attaches what they need: if that is something else than is attached, or `anyway`.
    fn load(&mut self, anyway: bool) -> Result<(), SourceError> {
        self.remember();
        for _ in 0..RESTLESS {
            if self.try_load(anyway)? {
                return Ok(());
            }
        }
        Err(SourceError::Restless)
    }

    /// Whether it was done; not if the schema changed meanwhile.
    fn try_load(&mut self, anyway: bool) -> Result<bool, SourceError> {
        let Self { shared, kept, file, .. } = self;
        let (Some(file), Some(kept)) = (file, kept) else { return Ok(true) };
        // Filters are loaded outside of any write transaction: with a thousand tables that takes its time.
        let transaction = file.database.unchecked_transaction()?;
        let cookie = cookie(&transaction)?;
        let mut filters: BTreeMap<Box<str>, Result<Filter, Box<str>>> = BTreeMap::new();
        for (name, spec) in &shared.filters {
            filters.insert(
                name.clone(),
                match Filter::load(&transaction, spec) {
                    Ok(filter) => Ok(filter),
                    Err(LoadError::Problems(problems)) => Err(problems.to_string().into()),
                    Err(LoadError::Database(error)) => return Err(error.into()),
                },
            );
        }
        transaction.finish()?;
        loop {
            let wanted = union::union(filters.values().flatten());
            let attached_to = file.attached.as_ref().map(|attached| &attached.plan);
            if wanted.is_empty() && attached_to.is_none() {
                file.cookie = Some(cookie);
                self.publish(cookie, filters, &Plan::new(Vec::new()), None, None);
                return Err(SourceError::Nothing);
            }
            let (tracked, fresh) = kept.number(&wanted);
            let plan = Plan { tables: tracked, keep: shared.config.keep };
            if !anyway && attached_to == Some(&plan) {
                let head = file.attached.as_ref().map(|attached| attached.sentinel.witness().position);
                file.cookie = Some(cookie);
                self.publish(cookie, filters, &plan, head, None);
                return Ok(true);
            }
            if fresh {
                kept.save(&shared.config.witness()).map_err(SourceError::Witness)?;
            }
            let mut options = Options { busy_timeout: LOCK_WAIT, cache_kib: CACHE_KIB, ..Options::new(&shared.config.file, Access::Guest) };
            options.mmap_bytes = Some(0);
            let mut writer = open(&options)?;
            let transaction = writer.connection().transaction_with_behavior(TransactionBehavior::Immediate)?;
            if self::cookie(&transaction)? != cookie {
                return Ok(false);
            }
            let done = match capture::attach(&transaction, &plan, kept.witness.as_ref()) {
                Ok(done) => done,
                Err(CaptureError::Plan { table, reason }) => {
                    // One table must not stop the publications that do without it.
                    let why: Box<str> = format!("table {table:?} cannot be captured: {reason}").into();
                    let mut stopped = 0;
                    for filter in filters.values_mut() {
                        if filter.as_ref().is_ok_and(|filter| filter.table(&table).is_some()) {
                            *filter = Err(why.clone());
                            stopped += 1;
                        }
                    }
                    if stopped == 0 {
                        return Err(CaptureError::Plan { table, reason }.into());
                    }
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            // Our triggers are part of the schema.
            let cookie = self::cookie(&transaction)?;
            transaction.commit()?;
            if let Some(cause) = done.renewed {
                tracing::info!(database = %shared.config.name, ?cause, "a new epoch: every replica gets a snapshot");
            }
            kept.attached(&wanted, &plan.tables);
            kept.witness = Some(done.witness.clone());
            let head = done.position();
            match &mut file.attached {
                Some(attached) => {
                    attached.sentinel.accept(done.witness);
                    attached.plan = plan.clone();
                    attached.expected = true;
                }
                None => {
                    let sentinel = Sentinel::new(&shared.config.file, done.witness)?;
                    file.attached = Some(Attached { sentinel, plan: plan.clone(), expected: true });
                }
            }
            file.cookie = Some(cookie);
            let blind = blind_names(&done.blind, &plan.tables);
            self.publish(cookie, filters, &plan, Some(head), Some(blind));
            self.save()?;
            return Ok(true);
        }
    }

    fn publish(
        &self,
        cookie: i64,
        filters: BTreeMap<Box<str>, Result<Filter, Box<str>>>,
        plan: &Plan,
        head: Option<Position>,
        blind: Option<Vec<Box<str>>>,
    ) {
        let load = |filter: Filter| {
            // A filter and a plan that was made from it always agree.
            let published = build::Published::new(&filter, plan).map_err(|error| Box::<str>::from(error.to_string()))?;
            let known = published.heads().map(|head| (head.name.clone(), head.fingerprint)).collect();
            Ok(Arc::new(Loaded { published, known, cookie }))
        };
        let loaded: BTreeMap<Box<str>, LoadedOr> = filters.into_iter().map(|(name, filter)| (name, filter.and_then(load))).collect();
        let before = self.shared.view.borrow().loaded.clone();
        for (name, now) in &loaded {
            let was = before.get(name);
            match (now, was) {
                (Err(why), was) if was.is_none_or(|was| was.as_ref().err() != Some(why)) => {
                    tracing::warn!(publication = %name, error = %why, "not published: its filter does not fit the database");
                    let told = format!("sync: nothing new is published as {name}: its filter does not fit the database");
                    (self.shared.conditions)(name, Some(&told));
                }
                (Ok(_), Some(Err(_))) => {
                    tracing::info!(publication = %name, "published again");
                    (self.shared.conditions)(name, None);
                }
                _ => {}
            }
        }
        self.shared.view.send_modify(|view| {
            view.head = head;
            view.loaded = Arc::new(loaded);
            if let Some(blind) = blind {
                view.blind = Arc::new(blind);
            }
        });
    }

    /// Somebody committed.
    fn told(&self, head: Position, unseen: bool) {
        self.shared.view.send_if_modified(|view| {
            let news = view.head != Some(head) || unseen;
            view.head = Some(head);
            view.hints += u64::from(unseen);
            news
        });
    }

    /// Has the witness written down and trims the log, when it is time to. Commits are not seen meanwhile, so neither waits for a disk.
    fn keep_up(&mut self) -> Result<(), SourceError> {
        if let Some((_, saved)) = &mut self.saving
            && let Ok(outcome) = saved.try_recv()
        {
            self.saved(outcome)?;
        }
        if self.saving.is_none() && self.saved_at.is_none_or(|at| at.elapsed() >= SAVE_EVERY) {
            self.begin_to_save()?;
        }
        if self.trimming || self.trimmed_at.elapsed() >= self.shared.config.trim_every {
            self.trimmed_at = Instant::now();
            self.trimming = self.trim()?;
        }
        Ok(())
    }

    /// What is to be written down, if it is something else than last time.
    fn news(&mut self) -> Option<(Kept, PathBuf)> {
        self.remember();
        self.saved_at = Some(Instant::now());
        let kept = self.kept.as_ref().filter(|kept| self.file.is_some() && kept.witness != self.saved)?;
        Some((kept.clone(), self.shared.config.witness()))
    }

    fn begin_to_save(&mut self) -> Result<(), SourceError> {
        let Some((kept, path)) = self.news() else { return Ok(()) };
        let Some(witness) = kept.witness.clone() else { return Ok(()) };
        let (done, saved) = sync_channel(1);
        tokio::task::spawn_blocking(move || {
            let _ = done.send(kept.save(&path));
        });
        self.saving = Some((witness, saved));
        self.count()
    }

    /// The witness that was being written down is there, or cannot be.
    fn saved(&mut self, outcome: io::Result<()>) -> Result<(), SourceError> {
        let Some((witness, _)) = self.saving.take() else { return Ok(()) };
        outcome.map_err(SourceError::Witness)?;
        self.saved = Some(witness);
        Ok(())
    }

    /// Writes the witness down if it is another than last time; it is on disk when this returns.
    pub(super) fn save(&mut self) -> Result<(), SourceError> {
        if let Some((witness, saved)) = self.saving.take()
            && matches!(saved.recv(), Ok(Ok(())))
        {
            self.saved = Some(witness);
        }
        let Some((kept, path)) = self.news() else { return Ok(()) };
        kept.save(&path).map_err(SourceError::Witness)?;
        self.saved = kept.witness;
        self.count()
    }

    /// Counts the log's entries.
    fn count(&self) -> Result<(), SourceError> {
        let Some(file) = &self.file else { return Ok(()) };
        let sql = "SELECT (SELECT max(seq) FROM main.\"_horos_log\") - (SELECT min(seq) FROM main.\"_horos_log\")";
        let entries: Option<i64> = file.database.query_row(sql, [], |row| row.get(0)).optional()?;
        self.shared.view.send_if_modified(|view| {
            view.entries = entries.and_then(|entries| u64::try_from(entries).ok()).unwrap_or_default();
            false
        });
        Ok(())
    }

    /// Removes what nobody needs from the log: what every subscriber has and the witness on disk is past, but for a spare for those
    /// that are away. One transaction; whether there is more.
    fn trim(&mut self) -> Result<bool, SourceError> {
        let (Some(saved), Some(file)) = (&self.saved, &mut self.file) else { return Ok(false) };
        let Some(attached) = &mut file.attached else { return Ok(false) };
        let head = attached.sentinel.witness().position;
        if saved.position.epoch != head.epoch {
            return Ok(false);
        }
        let mut limit = saved.position.seq.min(head.seq - i64::from(self.shared.config.spare));
        for position in self.shared.needs.lock().values().flatten() {
            // Of another epoch nothing can be kept that would help.
            if position.epoch == head.epoch {
                limit = limit.min(position.seq);
            }
        }
        let ends = |connection: &Connection, limit: i64| -> Result<Option<(i64, Position)>, SourceError> {
            let sql = "SELECT (SELECT min(seq) FROM main.\"_horos_log\"), seq, stamp FROM main.\"_horos_log\" \
                       WHERE seq <= ?1 ORDER BY seq DESC LIMIT 1";
            let found = connection
                .query_row(sql, [limit], |row| Ok((row.get(0)?, Position { epoch: head.epoch, seq: row.get(1)?, stamp: row.get(2)? })))
                .optional()?;
            Ok(found)
        };
        let Some((oldest, _)) = ends(&file.database, limit)? else { return Ok(false) };
        // What was begun is brought to its end.
        let least = if self.trimming { 1 } else { TRIM_BATCH.min(i64::from(self.shared.config.spare).max(1)) };
        if limit - oldest < least {
            return Ok(false);
        }
        let options = Options { busy_timeout: LOCK_WAIT, cache_kib: CACHE_KIB, ..Options::new(&self.shared.config.file, Access::Guest) };
        let mut writer = open(&options)?;
        let transaction = writer.connection().transaction_with_behavior(TransactionBehavior::Immediate)?;
        let Some((oldest, _)) = ends(&transaction, limit)? else { return Ok(false) };
        let Some((_, upto)) = ends(&transaction, limit.min(oldest + TRIM_BATCH))? else { return Ok(false) };
        let removed = capture::trim(&transaction, &upto)?;
        attached.expected = true;
        transaction.commit()?;
        Ok(removed > 0)
    }
}

/// The schema's version, which every change of it counts up.
pub(super) fn cookie(connection: &Connection) -> Result<i64, SourceError> {
    Ok(connection.query_row("PRAGMA main.schema_version", [], |row| row.get(0))?)
}

/// Whether only opening the file again may help.
fn gives_up_connection(error: &SourceError) -> bool {
    use horos_store::Kind;
    let store = |error: &StoreError| !matches!(error.kind, Kind::Busy | Kind::Stale | Kind::Interrupted);
    match error {
        SourceError::Store(error) | SourceError::Capture(CaptureError::Store(error)) => store(error),
        SourceError::Open(_) => true,
        SourceError::Capture(CaptureError::File(error)) => error.kind() == io::ErrorKind::NotFound,
        _ => false,
    }
}

//! The tools in force: swapped whole, read without a lock.
//!
//! Rows are taken up all at once. A row that is what it was before is not looked at again; a wrong one leaves in force what there was
//! before it; and whoever holds a [`Snapshot`] goes on with it until he lets it go.

mod entries;
mod making;

use std::{collections::BTreeMap, fmt, sync::Arc};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::watch;

pub(crate) use entries::{Change, Entries, Found};

use crate::{
    Definition, Kinds, Problem, Row,
    policy::{Policy, Rule},
    search::Index,
};

/// The most tools that rows make; those behind are left, and said to be.
pub const MAX_TOOLS: usize = 10_000;

/// What there is at one moment.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// By name, the program's own among them.
    pub tools: BTreeMap<Box<str>, Arc<Definition>>,
    /// Rows that are wrong, in the order of their names; the last good one of that name serves on, if there was one.
    pub wrong: Vec<Wrong>,
    /// Who may what.
    pub policy: Policy,
    /// Rises when what is listed changes.
    pub generation: u64,
    pub(crate) index: Index,
}

/// A row that cannot be a tool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong {
    /// Its name.
    pub name: Box<str>,
    /// Whether the last good one still serves.
    pub serves: bool,
    /// What is wrong.
    pub problems: Vec<Problem>,
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tool {:?}", self.name)?;
        if let Some(problem) = self.problems.first() {
            write!(f, ": {problem}")?;
        }
        if self.problems.len() > 1 { write!(f, "; and {} more", self.problems.len() - 1) } else { Ok(()) }
    }
}

/// What taking up rows has come to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Tools that are new or others than before.
    pub changed: usize,
    /// Tools that are gone.
    pub gone: usize,
    /// Rows that are wrong.
    pub wrong: usize,
}

/// The tools of a node. Cheap to clone.
#[derive(Clone)]
pub struct Registry(Arc<Inner>);

struct Inner {
    kinds: Kinds,
    own: BTreeMap<Box<str>, Arc<Definition>>,
    snapshot: ArcSwap<Snapshot>,
    changed: watch::Sender<u64>,
    /// The rows behind the snapshot. One at a time makes the next.
    rows: Mutex<Entries>,
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Registry({} tools)", self.snapshot().tools.len())
    }
}

impl Snapshot {
    /// At most `limit` of the tools that `may` be seen and fit `query`, the best first.
    pub fn search(&self, query: &str, limit: usize, may: impl Fn(&Definition) -> bool) -> Vec<Arc<Definition>> {
        self.index.search(query, limit, may)
    }

    /// What is wrong in a line, for whoever looks after the node.
    pub fn trouble(&self) -> Option<String> {
        let first = match (self.wrong.first(), self.policy.problems().first()) {
            (Some(wrong), _) => wrong.to_string(),
            (None, problem) => problem?.to_string(),
        };
        let more = self.wrong.len() + self.policy.problems().len() - 1;
        Some(if more > 0 { format!("{first}; and {more} more rows") } else { first })
    }
}

impl Registry {
    /// A registry whose rows are made into tools by `kinds`, beside the program's own.
    pub fn new(kinds: Kinds, own: Vec<Arc<Definition>>) -> Self {
        let own: BTreeMap<_, _> = own.into_iter().map(|tool| (tool.spec.name.clone(), tool)).collect();
        let index = Index::default().next(&own, &[]);
        let snapshot = Snapshot { tools: own.clone(), index, ..Snapshot::default() };
        let (snapshot, changed) = (ArcSwap::from_pointee(snapshot), watch::Sender::new(0));
        Self(Arc::new(Inner { kinds, own, snapshot, changed, rows: Mutex::default() }))
    }

    /// What there is now.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.0.snapshot.load_full()
    }

    /// Changes, to [`Snapshot::generation`], whenever what is listed does.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.changed.subscribe()
    }

    /// What makes tools of rows.
    pub fn kinds(&self) -> &Kinds {
        &self.0.kinds
    }

    /// Whether `row` would be taken up: what is looked at before it is written.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn check(&self, row: &Row) -> Result<(), Vec<Problem>> {
        if self.0.own.contains_key(&row.name) {
            return Err(vec![Problem::new("tool_name", "a tool of the program has that name")]);
        }
        making::make(&self.0.kinds, row).map(drop)
    }

    /// Makes `rows` the tools in force, beside the program's own, and `rules` the policy.
    pub fn take(&self, rows: Vec<Row>, rules: Vec<Rule>) -> Taken {
        let read: Result<_, std::convert::Infallible> =
            self.take_with(|_| Ok((Some(rows.into_iter().map(Found::Row).collect()), Policy::new(rules))));
        match read {
            Ok(taken) => taken,
            Err(never) => match never {},
        }
    }

    /// The same with what `read` finds, which is told what there was before; without rows they stay as they are. One at a time reads and
    /// takes up: what was read before can never come after what was read later.
    pub(crate) fn take_with<E>(&self, read: impl FnOnce(&Entries) -> Result<(Option<Vec<Found>>, Policy), E>) -> Result<Taken, E> {
        let mut rows = self.0.rows.lock();
        let (found, policy) = read(&rows)?;
        let before = self.snapshot();
        let Some(found) = found else {
            let taken = Taken { wrong: before.wrong.len(), ..Taken::default() };
            if before.policy != policy {
                let (tools, wrong, index) = (before.tools.clone(), before.wrong.clone(), before.index.clone());
                self.put(Snapshot { tools, wrong, policy, generation: before.generation + 1, index });
            }
            return Ok(taken);
        };
        let (next, more) = rows.next(found, &self.0.kinds, |name| self.0.own.contains_key(name));
        let mut wrong: Vec<_> = next.wrong().chain(more).collect();
        wrong.sort_by(|one, other| one.name.cmp(&other.name));
        let changes = rows.changes(&next);
        let mut taken = Taken { wrong: wrong.len(), ..Taken::default() };
        let mut listed = before.policy != policy;
        for (old, new) in &changes {
            match (old, new) {
                (Some(old), Some(new)) => listed |= old.tool != new.tool || old.spec.group != new.spec.group,
                _ => listed = true,
            }
            *(if new.is_some() { &mut taken.changed } else { &mut taken.gone }) += 1;
        }
        *rows = next;
        if changes.is_empty() && before.wrong == wrong && before.policy == policy {
            return Ok(taken);
        }
        let mut tools = before.tools.clone();
        for (old, new) in &changes {
            match (old, new) {
                (_, Some(new)) => drop(tools.insert(new.spec.name.clone(), new.clone())),
                (Some(old), None) => drop(tools.remove(&old.spec.name)),
                (None, None) => {}
            }
        }
        let index = if changes.is_empty() { before.index.clone() } else { before.index.next(&tools, &changes) };
        self.put(Snapshot { tools, wrong, policy, generation: before.generation + u64::from(listed), index });
        Ok(taken)
    }

    fn put(&self, snapshot: Snapshot) {
        let generation = snapshot.generation;
        self.0.snapshot.store(Arc::new(snapshot));
        self.0.changed.send_if_modified(|known| std::mem::replace(known, generation) != generation);
    }
}

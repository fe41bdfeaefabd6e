//! The tools in force: swapped whole, read without a lock.

use std::{collections::BTreeMap, fmt, sync::Arc};

use arc_swap::ArcSwap;
use tokio::sync::watch;

use crate::{Definition, Kinds, Problem, policy::Policy};

/// What there is at one moment.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// By name, the program's own among them.
    pub tools: BTreeMap<Box<str>, Arc<Definition>>,
    /// Rows that are wrong; the last good one of that name serves on, if there was one.
    pub wrong: Vec<Wrong>,
    /// Who may what.
    pub policy: Policy,
    /// Rises when what is listed changes.
    pub generation: u64,
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

/// The tools of a node. Cheap to clone.
#[derive(Clone)]
pub struct Registry(Arc<Inner>);

struct Inner {
    kinds: Kinds,
    snapshot: ArcSwap<Snapshot>,
    changed: watch::Sender<u64>,
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Registry({} tools)", self.snapshot().tools.len())
    }
}

impl Registry {
    /// A registry whose rows are made into tools by `kinds`, beside the program's own.
    pub fn new(kinds: Kinds, own: Vec<Arc<Definition>>) -> Self {
        let tools = own.into_iter().map(|tool| (tool.spec.name.clone(), tool)).collect();
        let snapshot = Snapshot { tools, ..Snapshot::default() };
        Self(Arc::new(Inner { kinds, snapshot: ArcSwap::from_pointee(snapshot), changed: watch::Sender::new(0) }))
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
}

//! The rows behind a snapshot, and what has become of each.

use std::sync::Arc;

use super::{Wrong, making::make};
use crate::{Definition, Kinds, Problem, Row};

/// A row as it was found.
#[derive(Debug)]
pub(crate) enum Found {
    /// As it was before, to the last byte.
    Same(Arc<Entry>),
    /// New, or another.
    Row(Row),
    /// It does not say whether it is to be a tool, so it is none.
    Unclear(Row, Problem),
}

/// A row, and what has become of it.
#[derive(Debug)]
pub(crate) struct Entry {
    /// As it stands.
    pub(crate) row: Row,
    /// What serves: made of this row, or of the last that was right.
    pub(crate) serves: Option<Arc<Definition>>,
    /// What is wrong with the row.
    pub(crate) problems: Vec<Problem>,
    /// Whether it is to be a tool is not clear.
    pub(crate) unclear: bool,
}

/// In the order of their names, each once.
#[derive(Debug, Default)]
pub(crate) struct Entries(Vec<Arc<Entry>>);

/// What served before and what serves now, where they are not the same.
pub(crate) type Change = (Option<Arc<Definition>>, Option<Arc<Definition>>);

impl Entries {
    /// The one called `name`, which is looked for at `guess` first.
    pub(crate) fn get(&self, name: &str, guess: usize) -> Option<&Arc<Entry>> {
        if let Some(entry) = self.0.get(guess).filter(|entry| *entry.row.name == *name) {
            return Some(entry);
        }
        self.0.binary_search_by(|entry| (*entry.row.name).cmp(name)).ok().map(|at| &self.0[at])
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn wrong(&self) -> impl Iterator<Item = Wrong> {
        self.0.iter().filter(|entry| !entry.problems.is_empty()).map(|entry| Wrong {
            name: entry.row.name.clone(),
            serves: entry.serves.is_some(),
            problems: entry.problems.clone(),
        })
    }

    /// Those that come of `found`, and rows besides that are wrong. The program's own tools, which `is_own` knows, have their names.
    pub(super) fn next(&self, found: Vec<Found>, kinds: &Kinds, is_own: impl Fn(&str) -> bool) -> (Self, Vec<Wrong>) {
        let mut entries = Vec::with_capacity(found.len());
        for found in found {
            entries.push(match found {
                Found::Same(entry) => entry,
                Found::Row(row) => self.entry(row, kinds, &is_own),
                Found::Unclear(row, problem) => Arc::new(Entry { row, serves: None, problems: vec![problem], unclear: true }),
            });
        }
        entries.sort_by(|one, other| one.row.name.cmp(&other.row.name));
        let mut twice = Vec::new();
        entries.dedup_by(|later, first| {
            let same = later.row.name == first.row.name;
            if same {
                let problems = vec![Problem::new("tool_name", "there is another row of that name")];
                twice.push(Wrong { name: later.row.name.clone(), serves: first.serves.is_some(), problems });
            }
            same
        });
        (Self(entries), twice)
    }

    fn entry(&self, row: Row, kinds: &Kinds, is_own: &impl Fn(&str) -> bool) -> Arc<Entry> {
        let known = self.get(&row.name, usize::MAX);
        if let Some(known) = known.filter(|known| known.row == row && !known.unclear) {
            return known.clone();
        }
        if is_own(&row.name) {
            let problems = vec![Problem::new("tool_name", "a tool of the program has that name")];
            return Arc::new(Entry { row, serves: None, problems, unclear: false });
        }
        match make(kinds, &row) {
            Ok(made) => Arc::new(Entry { row, serves: Some(Arc::new(made)), problems: Vec::new(), unclear: false }),
            Err(problems) => Arc::new(Entry { row, serves: known.and_then(|known| known.serves.clone()), problems, unclear: false }),
        }
    }

    /// What is not the same in `next`, by one pass over both.
    pub(super) fn changes(&self, next: &Self) -> Vec<Change> {
        let mut changes = Vec::new();
        let (mut old, mut new) = (self.0.iter().peekable(), next.0.iter().peekable());
        loop {
            let order = match (old.peek(), new.peek()) {
                (None, None) => return changes,
                (Some(_), None) => std::cmp::Ordering::Less,
                (None, Some(_)) => std::cmp::Ordering::Greater,
                (Some(old), Some(new)) => old.row.name.cmp(&new.row.name),
            };
            let before = if order.is_le() { old.next() } else { None };
            let after = if order.is_ge() { new.next() } else { None };
            if let (Some(before), Some(after)) = (before, after)
                && Arc::ptr_eq(before, after)
            {
                continue;
            }
            let serves = |entry: Option<&Arc<Entry>>| entry.and_then(|entry| entry.serves.clone());
            match (serves(before), serves(after)) {
                (None, None) => {}
                (Some(before), Some(after)) if Arc::ptr_eq(&before, &after) => {}
                change => changes.push(change),
            }
        }
    }
}

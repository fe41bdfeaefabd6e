//! `search_tools`: a handful of tools out of ten thousand.

use std::sync::Arc;

use crate::{Definition, Snapshot};

/// Most tools that one search gives.
pub(crate) const MOST: usize = 25;
/// How many it gives where nothing is said.
pub(crate) const USUAL: usize = 5;

/// The tools of `snapshot` that `visible` lets through and that have most of the words of `query`, best first.
pub(crate) fn search<'a>(
    snapshot: &'a Snapshot,
    query: &str,
    limit: usize,
    visible: impl Fn(&Definition) -> bool,
) -> Vec<&'a Arc<Definition>> {
    let words: Vec<String> = query.split_whitespace().map(str::to_lowercase).collect();
    let score = |definition: &Definition| {
        let text = format!("{} {}", definition.spec.name, definition.spec.description).to_lowercase();
        words.iter().filter(|word| text.contains(&***word)).count()
    };
    let found = snapshot.tools.values().filter(|definition| visible(definition));
    let mut found: Vec<_> = found.map(|definition| (score(definition), definition)).filter(|(score, _)| *score > 0).collect();
    found.sort_by_key(|(score, _)| std::cmp::Reverse(*score));
    found.into_iter().take(limit).map(|(_, definition)| definition).collect()
}

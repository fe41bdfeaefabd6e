//! `search_tools`: a handful of tools out of ten thousand.
//!
//! Words of names, titles, descriptions, categories and arguments are ranked by BM25F: rare words count for more than those that all tools
//! have, a word in a name for more than one in a description, and a word that only begins as asked for less than the word itself.
//!
//! An [`Index`] never changes: after an edit the next one shares all but what was edited, and is made anew once that has become too much.

mod segment;
mod words;

use std::{cmp::Ordering, collections::BTreeMap, collections::BinaryHeap, sync::Arc};

use segment::Segment;

use crate::{Definition, registry::Change};

/// Most bytes of a query that are read; a question in a few sentences.
pub(crate) const MAX_QUERY: usize = 1024;
/// Most words of a query that count, each once.
const MAX_WORDS: usize = 16;
/// Most words that one word of a query may be the beginning of.
const MAX_COMPLETIONS: usize = 64;
/// Most tools that are looked at for one query, a tool once for each word of it: what bounds its time. Rare words come first.
const MAX_WORK: usize = 100_000;
/// What a word counts that only begins as asked.
const BEGUN: f32 = 0.4;
/// How soon a word that stands often counts no more, and what a text's length does to it: the usual figures (Robertson and Zaragoza 2009, §3.2).
const K1: f32 = 1.2;
/// See there.
const B: f32 = 0.75;
/// Edits that are kept beside the large part, and gone through at each further one, before all is made anew.
const MAX_EDITED: usize = 64;
/// Or this part of all tools, where that is more: of ten thousand some three hundred, so that an edit costs a few milliseconds, and making
/// all of it anew, which costs forty times that, is as rare.
const PART_EDITED: usize = 32;

/// Finds tools by words.
#[derive(Clone, Debug, Default)]
pub(crate) struct Index {
    /// Most tools, as they were at some time.
    large: Arc<Segment>,
    /// Those of them that are no more, or have been edited.
    gone: Arc<[u32]>,
    /// What has come since.
    recent: Arc<Segment>,
}

struct Hit<'a> {
    score: f32,
    tool: &'a Arc<Definition>,
}

impl Index {
    /// The index of `tools`, which come of those of this one by `changes`.
    pub(crate) fn next(&self, tools: &BTreeMap<Box<str>, Arc<Definition>>, changes: &[Change]) -> Self {
        let edited = self.recent.len() + self.gone.len() + changes.len();
        if changes.is_empty() || edited > MAX_EDITED.max(tools.len() / PART_EDITED) {
            return Self { large: Arc::new(Segment::new(tools.values().cloned())), ..Self::default() };
        }
        let mut gone = self.gone.to_vec();
        let mut recent: BTreeMap<&str, &Arc<Definition>> = self.recent.tools().map(|tool| (&*tool.spec.name, tool)).collect();
        for (old, new) in changes {
            if let Some(old) = old {
                gone.extend(self.large.find(&old.spec.name));
                recent.remove(&*old.spec.name);
            }
            if let Some(new) = new {
                recent.insert(&new.spec.name, new);
            }
        }
        gone.sort_unstable();
        gone.dedup();
        let recent = Segment::new(recent.into_values().cloned());
        Self { large: self.large.clone(), gone: gone.into(), recent: Arc::new(recent) }
    }

    /// At most `limit` tools that `may` be seen, the best first; those of equal rank by their names.
    pub(crate) fn search(&self, query: &str, limit: usize, may: impl Fn(&Definition) -> bool) -> Vec<Arc<Definition>> {
        let query = &query[..query.floor_char_boundary(MAX_QUERY)];
        let mut words = words::words(query);
        words.truncate(MAX_WORDS);
        let mut scores = [vec![0.0; self.large.len()], vec![0.0; self.recent.len()]];
        let segments = [&*self.large, &*self.recent];
        let count = segments.iter().map(|segment| segment.len()).sum::<usize>();
        let length = segments.iter().map(|segment| segment.length()).sum::<f32>() / as_float(count).max(1.0);
        // How often each word, or one that begins so, stands anywhere; the rarest first.
        let mut found: Vec<_> = words
            .iter()
            .map(|word| {
                let terms = segments.map(|segment| segment.begun(word, MAX_COMPLETIONS));
                let work: usize = terms.iter().flatten().map(|term| term.postings.len()).sum();
                (work, word, terms)
            })
            .collect();
        found.sort_by_key(|(work, ..)| *work);
        let mut left = MAX_WORK;
        for (_, word, terms) in &found {
            let exact = terms.iter().flatten().filter(|term| *term.word == ***word).map(|term| term.postings.len()).sum();
            for (terms, (segment, scores)) in terms.iter().zip(segments.iter().zip(&mut scores)) {
                for term in terms {
                    // One that only begins so is as rare as the word itself where that is there: it is no way to be found before it.
                    let (here, factor) = if *term.word == ***word {
                        (exact, 1.0)
                    } else {
                        (term.postings.len().max(exact), BEGUN * as_float(word.len()) / as_float(term.word.len()))
                    };
                    let rarity = (1.0 + (as_float(count) - as_float(here) + 0.5) / (as_float(here) + 0.5)).ln();
                    for (tool, weight) in term.postings {
                        if left == 0 {
                            break;
                        }
                        left -= 1;
                        let norm = K1 * (1.0 - B + B * segment.length_of(*tool) / length.max(1.0));
                        scores[*tool as usize] += factor * rarity * weight * (K1 + 1.0) / (weight + norm);
                    }
                }
            }
        }
        for tool in &*self.gone {
            scores[0][*tool as usize] = 0.0;
        }
        let hits = segments.iter().zip(&scores).flat_map(|(segment, scores)| segment.tools().zip(scores));
        let mut hits: BinaryHeap<_> = hits
            .filter(|(_, score)| **score > 0.0)
            .map(|(tool, score)| Hit { score: score + if is_called(tool, query) { NAMED } else { 0.0 }, tool })
            .collect();
        let mut best = Vec::new();
        while best.len() < limit
            && let Some(hit) = hits.pop()
        {
            if may(hit.tool) {
                best.push(hit.tool.clone());
            }
        }
        best
    }
}

/// What a tool is given on top that is asked for by its whole name: more than all words can come to.
const NAMED: f32 = 1_000.0;

fn is_called(tool: &Definition, query: &str) -> bool {
    tool.spec.name.eq_ignore_ascii_case(query.trim())
}

#[expect(clippy::cast_precision_loss, reason = "counts of words and tools, far below 2^23; and it is a rank")]
fn as_float(count: usize) -> f32 {
    count as f32
}

impl Ord for Hit<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then_with(|| other.tool.spec.name.cmp(&self.tool.spec.name))
    }
}

impl PartialOrd for Hit<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Hit<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Hit<'_> {}

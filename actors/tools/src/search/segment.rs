//! Tools and the words in them, made once and never changed.

use std::{collections::HashMap, fmt, sync::Arc};

use serde_json::Value;

use super::words::each;
use crate::Definition;

/// What a word counts in a name; in descriptions, of tools and of their arguments, it counts one.
const NAME: f32 = 4.0;
/// In a title.
const TITLE: f32 = 3.0;
/// In a category.
const CATEGORY: f32 = 2.0;
/// In the name of an argument.
const ARGUMENT: f32 = 1.5;
const DESCRIPTION: f32 = 1.0;

/// Tools in the order of their names, and the words in them in the order of the alphabet.
#[derive(Default)]
pub(super) struct Segment {
    tools: Box<[Arc<Definition>]>,
    /// Of each tool, the sum of what its words count.
    lengths: Box<[f32]>,
    words: Box<[Box<str>]>,
    /// Where the postings of each word end.
    ends: Box<[usize]>,
    /// Tools that have a word, and what it counts there.
    postings: Box<[(u32, f32)]>,
}

/// A word that was found, and where it stands.
pub(super) struct Term<'a> {
    pub(super) word: &'a str,
    pub(super) postings: &'a [(u32, f32)],
}

impl fmt::Debug for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Segment({} tools, {} words)", self.tools.len(), self.words.len())
    }
}

impl Segment {
    /// Of `tools`, which come in the order of their names.
    pub(super) fn new(tools: impl Iterator<Item = Arc<Definition>>) -> Self {
        let tools: Box<[_]> = tools.collect();
        let mut by_word: HashMap<Box<str>, Vec<(u32, f32)>> = HashMap::new();
        let mut lengths = Vec::with_capacity(tools.len());
        for (tool, number) in tools.iter().zip(0_u32..) {
            let mut length = 0.0;
            let mut read = |text: &str, counts: f32| {
                each(text, |word| {
                    length += counts;
                    let postings = match by_word.get_mut(word) {
                        Some(postings) => postings,
                        None => by_word.entry(word.into()).or_default(),
                    };
                    match postings.last_mut() {
                        Some((last, sum)) if *last == number => *sum += counts,
                        _ => postings.push((number, counts)),
                    }
                });
            };
            let spec = &tool.spec;
            read(&spec.name, NAME);
            read(spec.title.as_deref().unwrap_or_default(), TITLE);
            read(&spec.category, CATEGORY);
            read(&spec.description, DESCRIPTION);
            for (name, schema) in spec.input.get("properties").and_then(Value::as_object).into_iter().flatten() {
                read(name, ARGUMENT);
                read(schema.get("description").and_then(Value::as_str).unwrap_or_default(), DESCRIPTION);
            }
            lengths.push(length);
        }
        let mut by_word: Vec<_> = by_word.into_iter().collect();
        by_word.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        let (mut words, mut ends, mut all) = (Vec::with_capacity(by_word.len()), Vec::with_capacity(by_word.len()), Vec::new());
        for (word, postings) in by_word {
            all.extend(postings);
            words.push(word);
            ends.push(all.len());
        }
        Self { tools, lengths: lengths.into(), words: words.into(), ends: ends.into(), postings: all.into() }
    }

    pub(super) fn len(&self) -> usize {
        self.tools.len()
    }

    pub(super) fn tools(&self) -> impl Iterator<Item = &Arc<Definition>> {
        self.tools.iter()
    }

    /// All lengths together.
    pub(super) fn length(&self) -> f32 {
        self.lengths.iter().sum()
    }

    pub(super) fn length_of(&self, tool: u32) -> f32 {
        self.lengths[tool as usize]
    }

    /// Where the tool called `name` is.
    pub(super) fn find(&self, name: &str) -> Option<u32> {
        self.tools.binary_search_by(|tool| (*tool.spec.name).cmp(name)).ok().and_then(|at| at.try_into().ok())
    }

    /// `word`, and at most `most` others that begin with it.
    pub(super) fn begun<'a>(&'a self, word: &str, most: usize) -> Vec<Term<'a>> {
        let first = self.words.partition_point(|known| **known < *word);
        let begun = self.words[first..].iter().take_while(|known| known.starts_with(word)).take(most);
        begun
            .enumerate()
            .map(|(offset, known)| {
                let at = first + offset;
                let begin = if at == 0 { 0 } else { self.ends[at - 1] };
                Term { word: known, postings: &self.postings[begin..self.ends[at]] }
            })
            .collect()
    }
}

//! What is wrong with a filter: all of it at once, each with where and what to do.

use std::fmt;

use serde::Serialize;

/// Most problems that are kept of one filter; the rest are counted.
pub const MAX_PROBLEMS: usize = 64;
/// Most characters of a condition or name that a problem repeats.
const SHOWN: usize = 120;

/// What of a table a problem is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// The table itself.
    Table,
    /// One of the columns named for it.
    Column(String),
    /// Its condition.
    Condition(String),
}

/// One thing that is wrong with a filter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The table, spelt as in the filter.
    pub table: String,
    /// What of it.
    pub part: Part,
    /// What is wrong.
    pub what: String,
    /// What to do about it.
    pub fix: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "table {:?}", shown(&self.table))?;
        match &self.part {
            Part::Table => {}
            Part::Column(name) => write!(f, ", column {:?}", shown(name))?,
            Part::Condition(text) => write!(f, ", condition `{}`", shown(text))?,
        }
        write!(f, ": {}; {}", self.what, self.fix)
    }
}

fn shown(text: &str) -> String {
    let mut short: String = text.chars().take(SHOWN).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

/// Everything that is wrong with a filter. Permanent until the filter or the database's schema is changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct FilterProblems {
    /// The first [`MAX_PROBLEMS`].
    pub list: Vec<Problem>,
    /// How many more there are.
    pub left_off: usize,
}

impl FilterProblems {
    pub(super) fn add(&mut self, table: &str, part: Part, what: impl Into<String>, fix: impl Into<String>) {
        if self.list.len() < MAX_PROBLEMS {
            self.list.push(Problem { table: table.to_owned(), part, what: what.into(), fix: fix.into() });
        } else {
            self.left_off += 1;
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }
}

impl fmt::Display for FilterProblems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.list.len() + self.left_off {
            1 => f.write_str("the filter has a problem")?,
            n => write!(f, "the filter has {n} problems")?,
        }
        for problem in &self.list {
            write!(f, "\n  {problem}")?;
        }
        if self.left_off > 0 {
            write!(f, "\n  and {} more", self.left_off)?;
        }
        Ok(())
    }
}

impl std::error::Error for FilterProblems {}

/// "did you mean …" when a candidate is near, else `otherwise`.
pub(super) fn suggest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>, otherwise: &str) -> String {
    nearest(word, candidates).map_or_else(|| otherwise.to_owned(), |name| format!("did you mean {name:?}?"))
}

/// The candidate that a misspelt `word` most likely meant: a third of the letters may differ, at least one.
fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let reach = (word.chars().count() / 3).max(1);
    let lower = word.to_lowercase();
    candidates
        .into_iter()
        .map(|it| (distance(&lower, &it.to_lowercase()), it))
        .filter(|(distance, _)| *distance <= reach)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, it)| it)
}

/// Letters to insert, delete, replace or swap with their neighbour (optimal string alignment). Names longer than 64 bytes are
/// infinitely far, so that a hostile spec costs no quadratic time.
fn distance(a: &str, b: &str) -> usize {
    const LONGEST: usize = 64;
    if a.len() > LONGEST || b.len() > LONGEST {
        return usize::MAX;
    }
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut older = vec![0; b.len() + 1];
    let mut old: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let mut least = (old[j - 1] + usize::from(a[i - 1] != b[j - 1])).min(old[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(older[j - 2] + 1);
            }
            row[j] = least;
        }
        older = std::mem::replace(&mut old, row);
    }
    old[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelling_finds_its_word_and_a_stranger_finds_none() {
        let names = ["orders", "Customers", "order_lines"];
        assert_eq!(nearest("ordres", names), Some("orders"));
        assert_eq!(nearest("costumers", names), Some("Customers"));
        assert_eq!(nearest("order-lines", names), Some("order_lines"));
        assert_eq!(nearest("invoices", names), None);
        assert_eq!(nearest(&"x".repeat(10_000), names), None);
    }

    #[test]
    fn problems_beyond_the_bound_are_counted_and_long_texts_are_cut() {
        let mut problems = FilterProblems::default();
        for _ in 0..MAX_PROBLEMS + 3 {
            problems.add("t", Part::Condition("x".repeat(1_000_000)), "is long", "shorten it");
        }
        assert_eq!((problems.list.len(), problems.left_off), (MAX_PROBLEMS, 3));
        assert!(problems.list[0].to_string().len() < 300);
        assert!(problems.to_string().ends_with("and 3 more"));
    }
}

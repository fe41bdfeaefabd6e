//! What is wrong with a configuration: all of it at once, each problem with its place and its remedy.

use std::{fmt, path::Path};

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Built in.
    Default,
    /// The file, at a line where the parser gave one.
    File {
        /// The file as the user named it.
        file: Box<str>,
        /// Counted from 1.
        line: Option<u64>,
    },
    /// An environment variable.
    Environment(Box<str>),
    /// An option on the command line.
    Flag(Box<str>),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { file, line: Some(line) } => write!(f, "{file}:{line}"),
            Self::File { file, line: None } => f.write_str(file),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::Flag(name) => write!(f, "option {name}"),
        }
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where the value came from.
    pub origin: Origin,
    /// The key, as `liveness.heartbeat`; empty when it concerns the whole source.
    pub path: Box<str>,
    /// What is wrong.
    pub what: Box<str>,
    /// What to do about it, where there is more to say than `what` does.
    pub fix: Option<Box<str>>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.origin)?;
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.what)?;
        match &self.fix {
            Some(fix) => write!(f, "; {fix}"),
            None => Ok(()),
        }
    }
}

/// Most problems kept of one configuration: past it the file is something else than a configuration.
pub const MAX_PROBLEMS: usize = 100;

/// Everything that is wrong with a configuration. Nothing was started and no port was bound.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problems {
    list: Vec<Problem>,
    left_off: usize,
}

impl Problems {
    /// Adds one, or counts it when there are [`MAX_PROBLEMS`] already.
    pub(crate) fn push(&mut self, problem: Problem) {
        if self.list.len() < MAX_PROBLEMS { self.list.push(problem) } else { self.left_off += 1 }
    }

    /// The problems in the order of the sources and keys.
    pub fn iter(&self) -> std::slice::Iter<'_, Problem> {
        self.list.iter()
    }

    /// How many there are, those left off the list included.
    pub fn len(&self) -> usize {
        self.list.len() + self.left_off
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    pub(crate) fn file(file: &Path, what: impl Into<Box<str>>, fix: Option<Box<str>>) -> Problem {
        Problem { origin: Origin::File { file: file.display().to_string().into(), line: None }, path: "".into(), what: what.into(), fix }
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.len() {
            1 => f.write_str("the configuration has a problem")?,
            n => write!(f, "the configuration has {n} problems")?,
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

impl std::error::Error for Problems {}

/// The candidate a misspelt `word` most likely meant; `None` when none is near.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // A third of the word may differ, at least one letter: `hartbeat` means heartbeat, `foo` means nothing.
    let reach = (word.chars().count() / 3).max(1);
    candidates.into_iter().map(|it| (distance(word, it), it)).filter(|(d, _)| *d <= reach).min_by_key(|(d, _)| *d).map(|(_, it)| it)
}

/// Letters to insert, delete, replace or swap with their neighbour (optimal string alignment). Words longer than a
/// key can be are infinitely far, so that a hostile file costs no quadratic time.
fn distance(a: &str, b: &str) -> usize {
    const LONGEST: usize = 64;
    if a.len() > LONGEST || b.len() > LONGEST {
        return usize::MAX;
    }
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![vec![0usize; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            rows[i][j] = match (i, j) {
                (0, _) => j,
                (_, 0) => i,
                _ => {
                    let replace = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
                    let mut least = replace.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
                    if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                        least = least.min(rows[i - 2][j - 2] + 1);
                    }
                    least
                }
            };
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelling_finds_its_word_and_a_stranger_finds_none() {
        let keys = ["heartbeat", "suspect", "down", "quic-idle"];
        assert_eq!(nearest("hartbeat", keys), Some("heartbeat"));
        assert_eq!(nearest("heratbeat", keys), Some("heartbeat"));
        assert_eq!(nearest("quic_idle", keys), Some("quic-idle"));
        assert_eq!(nearest("frequency", keys), None);
        assert_eq!(nearest(&"x".repeat(10_000), keys), None);
    }
}

//! A row of `mcp_tools_registry`, as somebody wrote it.

use std::fmt;

/// A tool as it stands in the table. Nothing of it has been checked.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Row {
    /// Its name.
    pub name: Box<str>,
    /// What it belongs to.
    pub category: Box<str>,
    /// What people call it, where the row says.
    pub title: Option<Box<str>>,
    /// What it does, for people and models.
    pub description: Box<str>,
    /// JSON Schema of its arguments.
    pub input_schema: Box<str>,
    /// JSON Schema of its result, where the row has one.
    pub output_schema: Option<Box<str>>,
    /// Which [`crate::Kind`] runs it.
    pub handler_type: Box<str>,
    /// What that is to know, as JSON.
    pub handler_config: Box<str>,
    /// `readonly` or `readwrite`.
    pub mode: Box<str>,
    /// 1 if what it does cannot be taken back.
    pub destructive: i64,
    /// 1 if doing it twice is doing it once.
    pub idempotent: i64,
    /// Tools of two groups are not for one session.
    pub group: Box<str>,
    /// Longest run, in milliseconds.
    pub timeout_ms: Option<i64>,
    /// Rises with each edit.
    pub version: i64,
    /// Seconds since 1970.
    pub updated_at: i64,
}

impl Row {
    /// Its texts, by their columns.
    pub(crate) fn texts(&self) -> impl Iterator<Item = (&'static str, &str)> {
        [
            ("tool_name", Some(&*self.name)),
            ("tool_category", Some(&*self.category)),
            ("title", self.title.as_deref()),
            ("description", Some(&*self.description)),
            ("input_schema", Some(&*self.input_schema)),
            ("output_schema", self.output_schema.as_deref()),
            ("handler_type", Some(&*self.handler_type)),
            ("handler_config", Some(&*self.handler_config)),
            ("mode", Some(&*self.mode)),
            ("group_tag", Some(&*self.group)),
        ]
        .into_iter()
        .filter_map(|(column, text)| Some((column, text?)))
    }
}

/// What is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where: a column (`handler_config.tables`), or a JSON Pointer into arguments.
    pub at: Box<str>,
    /// What, and what to do.
    pub what: Box<str>,
}

impl Problem {
    /// A problem at a place.
    pub fn new(at: impl Into<Box<str>>, what: impl Into<Box<str>>) -> Self {
        Self { at: at.into(), what: what.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.at.is_empty() { f.write_str(&self.what) } else { write!(f, "{}: {}", self.at, self.what) }
    }
}

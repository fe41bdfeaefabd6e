//! Kinds of tools: how what a row says becomes something that runs.
//!
//! A kind is a name in `handler_type` and an implementation here; a program adds its own, and no schema knows how many there are.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Instant};

use futures_util::future::BoxFuture;
use horos_wire::CallContext;
use rmcp::model::{ContentBlock, JsonObject};
use serde_json::Value;

use crate::{Caller, Mode, Problem, Row, ToolError};

/// Makes tools of rows.
pub trait Kind: Send + Sync + 'static {
    /// What `row` makes. `config` is its `handler_config`, `input` its schema, both parsed; `mode` what it may. Opens and waits for nothing:
    /// what is missing on this node is found out by calls.
    ///
    /// # Errors
    /// Everything wrong with it, each at its place (`handler_config.query`).
    fn check(&self, row: &Row, mode: Mode, config: &JsonObject, input: &JsonObject) -> Result<Made, Vec<Problem>>;
}

/// What a [`Kind`] made of a row.
pub struct Made {
    /// What runs.
    pub run: Arc<dyn Run>,
    /// The schema of its result, where the row had none and the kind knows it.
    pub output_schema: Option<JsonObject>,
    /// Arguments of the kind's own (such as a page's `cursor`), to be added to the schema's properties where it has none of that name.
    pub arguments: Vec<(Box<str>, Value)>,
}

impl fmt::Debug for Made {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Made").finish_non_exhaustive()
    }
}

/// What a tool does, once it is decided that it may and its arguments are right. Shared by all calls.
pub trait Run: Send + Sync + 'static {
    /// Does it, until [`Call::until`] at most. Dropping the future gives it up: what reads is stopped, what writes is rolled back or done.
    fn run<'a>(&'a self, call: Call<'a>) -> BoxFuture<'a, Result<Output, ToolError>>;
}

/// A call that is let through.
#[derive(Clone, Debug)]
pub struct Call<'a> {
    /// The tool.
    pub tool: &'a str,
    /// The arguments, checked.
    pub arguments: &'a JsonObject,
    /// Who asks.
    pub caller: &'a Caller,
    /// Trace, deadline, hops and claims, for what it calls in turn.
    pub context: &'a CallContext,
    /// When it is given up.
    pub until: Instant,
    /// Most bytes of JSON that its output may have.
    pub max_bytes: usize,
}

/// What came out.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Output {
    /// The result as JSON, in the shape of the tool's output schema; what has none is `content` alone. Shown as text too.
    pub structured: Option<Value>,
    /// Content besides, such as an image.
    pub content: Vec<ContentBlock>,
}

impl Output {
    /// A result that is JSON.
    pub fn json(value: Value) -> Self {
        Self { structured: Some(value), content: Vec::new() }
    }
}

/// The kinds of a node, by name. Cheap to clone.
#[derive(Clone, Default)]
pub struct Kinds(Arc<BTreeMap<Box<str>, Arc<dyn Kind>>>);

impl fmt::Debug for Kinds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl Kinds {
    /// The same with `kind` under `name`.
    #[must_use]
    pub fn with(&self, name: &str, kind: Arc<dyn Kind>) -> Self {
        let mut all = (*self.0).clone();
        all.insert(name.into(), kind);
        Self(Arc::new(all))
    }

    /// The kind called `name`.
    pub fn get(&self, name: &str) -> Option<&Arc<dyn Kind>> {
        self.0.get(name)
    }

    /// What they are called.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(|name| &**name)
    }
}

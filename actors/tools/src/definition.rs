//! A tool that is right: what is listed of it, how its arguments are checked, and what runs.

mod texts;

use std::{fmt, sync::Arc, time::Duration};

use rmcp::model::{JsonObject, Tool, ToolAnnotations};
use serde_json::Value;

use crate::{
    Problem, Run,
    arguments::Schema,
    tools::{confirmable, taken},
};

/// How long a tool may run that says nothing.
pub(crate) const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest that a tool may run.
pub(crate) const MAX_TIMEOUT: Duration = Duration::from_secs(600);
/// Longest name, in bytes (MCP 2025-11-25, "Tool names": 1 to 128 of letters, digits, `_`, `-`, `.`).
pub(crate) const MAX_NAME: usize = 128;
/// Longest description, in bytes; the Go system's figure.
pub(crate) const MAX_DESCRIPTION: usize = 1024;
/// Longest title, in bytes.
pub(crate) const MAX_TITLE: usize = 256;
/// Longest category and longest group, in bytes.
pub(crate) const MAX_LABEL: usize = 64;

/// What a tool may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Only look.
    ReadOnly,
    /// Change things.
    ReadWrite,
}

/// What a tool does to the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Behaviour {
    /// What it may do.
    pub mode: Mode,
    /// Whether what it does cannot be taken back: it is asked for twice.
    pub destructive: bool,
    /// Whether doing it twice is doing it once.
    pub idempotent: bool,
}

/// All that is said of a tool, whoever says it: a row, or the program.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Its name.
    pub name: Box<str>,
    /// What people call it.
    pub title: Option<Box<str>>,
    /// What it does.
    pub description: Box<str>,
    /// What it belongs to.
    pub category: Box<str>,
    /// JSON Schema of its arguments: an object's.
    pub input: JsonObject,
    /// JSON Schema of its result.
    pub output: Option<JsonObject>,
    /// What it does to the world.
    pub behaviour: Behaviour,
    /// Tools of two groups are not for one session; `default` goes with all.
    pub group: Box<str>,
    /// Longest run.
    pub timeout: Duration,
    /// Rises with each edit.
    pub version: i64,
}

/// A tool. Never changes: an edit makes another.
pub struct Definition {
    /// What is said of it.
    pub spec: Spec,
    /// What is listed.
    pub tool: Tool,
    /// What runs.
    pub run: Arc<dyn Run>,
    pub(crate) input: Schema,
    pub(crate) output: Option<Schema>,
}

impl fmt::Debug for Definition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Definition({} v{})", self.spec.name, self.spec.version)
    }
}

impl Definition {
    /// What `spec` says, run by `run`.
    ///
    /// # Errors
    /// Everything wrong with it.
    pub fn new(spec: Spec, run: Arc<dyn Run>) -> Result<Self, Vec<Problem>> {
        let (schemas, problems) = schemas(&spec);
        let Some((input, output)) = schemas.filter(|_| problems.is_empty()) else { return Err(problems) };
        let Behaviour { mode, destructive, idempotent } = spec.behaviour;
        let listed = if destructive { confirmable(&spec.input) } else { spec.input.clone() };
        let mut tool = Tool::new(spec.name.to_string(), spec.description.to_string(), Arc::new(listed));
        tool.title = spec.title.as_deref().map(str::to_owned);
        tool.output_schema = spec.output.clone().map(Arc::new);
        let annotations = ToolAnnotations::new().read_only(mode == Mode::ReadOnly).open_world(false);
        tool.annotations = Some(match mode {
            Mode::ReadOnly => annotations,
            Mode::ReadWrite => annotations.destructive(destructive).idempotent(idempotent),
        });
        Ok(Self { spec, tool, run, input, output })
    }

    /// Everything wrong with what `spec` says.
    pub(crate) fn problems(spec: &Spec) -> Vec<Problem> {
        schemas(spec).1
    }

    /// The arguments of a call as the tool takes them: whole numbers are integers where it says so.
    ///
    /// # Errors
    /// What is wrong with them, as JSON Pointers.
    pub fn arguments(&self, mut arguments: JsonObject) -> Result<JsonObject, Vec<Problem>> {
        self.input.exact(&mut arguments)?;
        let arguments = Value::Object(arguments);
        self.input.check(&arguments)?;
        let Value::Object(arguments) = arguments else { unreachable!("it was made one above") };
        Ok(arguments)
    }

    /// Whether `result` is what the tool says it answers; anything is, where it says nothing.
    ///
    /// # Errors
    /// What is wrong with it, as JSON Pointers.
    pub fn result(&self, result: &Value) -> Result<(), Vec<Problem>> {
        self.output.as_ref().map_or(Ok(()), |output| output.check(result))
    }
}

/// The schemas of `spec`, if they are right, and everything that is wrong with it.
fn schemas(spec: &Spec) -> (Option<(Schema, Option<Schema>)>, Vec<Problem>) {
    let mut problems = texts::check(spec);
    problems.extend(taken(spec));
    if spec.timeout.is_zero() || spec.timeout > MAX_TIMEOUT {
        problems.push(Problem::new("timeout_ms", format!("is not from 1 to {}", MAX_TIMEOUT.as_millis())));
    }
    let mut schema = |column: &str, text: &JsonObject| match Schema::new(text) {
        Ok(schema) => Some(schema),
        Err(found) => {
            let placed = |problem: Problem| Problem { at: format!("{column}{}", problem.at).into(), what: problem.what };
            problems.extend(found.into_iter().map(placed));
            None
        }
    };
    let input = schema("input_schema", &spec.input);
    let output = spec.output.as_ref().and_then(|output| schema("output_schema", output));
    (input.map(|input| (input, output)), problems)
}

//! `sql_script`: statements that change things, all of them or none.
//!
//! ```text
//! {"database": "app.db", "let": {"order": "{{uuid()}}"},
//!  "statements": [{"sql": "INSERT INTO orders (id, sku) VALUES (:order, :sku)"},
//!                 {"sql": "INSERT INTO log (parent, at) VALUES (?, ?) RETURNING id", "params": ["order", "{{now()}}"], "let": "entry"}],
//!  "tables": {"orders": ["id"], "log": ["id"]}, "writes": {"orders": ["insert"], "log": ["insert"]}}
//! ```
//!
//! One job of the database's only writer, so that an answer means it is on disk. Values that statements share (`let`) are made once and
//! given back. A trigger of the schema writes by the same list as the statement that set it off: what is not listed fails the whole, because a
//! list that is silently exceeded is none. Only the triggers by which the node captures changes are not asked.

mod stage;

use std::{collections::BTreeSet, sync::Arc, time::Instant};

use futures_util::future::BoxFuture;
use horos_wire::NoEffect;
use rmcp::model::JsonObject;
use rusqlite::types::ValueRef;
use serde_json::{Value, json};

use self::stage::{Done, Stage};
use super::{
    Shelf,
    bindings::{Bindings, Made, Scope, Source},
    bounds::Meter,
    config::{Problems, Reach, SETTINGS, number},
    fault::Circumstances,
    rights::{Confined, Rights, is_reserved},
    statement::{Kind as Does, Statement},
    values,
};
use crate::{Call, Kind, Mode, Output, PassOn, Problem, Row, Run, ToolError, Transport, kind::Made as Tool};

/// Most statements of a script: the writer stands still for others meanwhile.
const MAX_STATEMENTS: usize = 64;
/// Rows that one statement may give back where the tool does not say.
const MAX_ROWS: i64 = 500;
/// Most that it may say.
const MOST_ROWS: i64 = 10_000;
/// Bytes of a result besides rows and values.
const AROUND: usize = 160;

/// Makes tools of rows that are scripts.
pub struct Script {
    shelf: Arc<dyn Shelf>,
    pass_on: Option<Arc<dyn PassOn>>,
}

impl std::fmt::Debug for Script {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Script").field("pass_on", &self.pass_on).finish_non_exhaustive()
    }
}

impl Script {
    /// Scripts over the files of `shelf`.
    pub fn new(shelf: Arc<dyn Shelf>) -> Self {
        Self { shelf, pass_on: None }
    }

    /// The same, that passes on what is elsewhere.
    #[must_use]
    pub fn passing_on(self, pass_on: Arc<dyn PassOn>) -> Self {
        Self { pass_on: Some(pass_on), ..self }
    }
}

/// What a result has besides rows and values; the Go system's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    /// `last_insert_id`.
    LastInsert,
    /// `affected_rows`.
    Affected,
    /// Both, and `success`.
    All,
}

/// One statement, checked.
struct Step {
    /// After the mark of the tool's rights.
    sql: Box<str>,
    bindings: Bindings,
    replaces: bool,
    inserts: bool,
    /// What its rows are called in the result; none where it is a value that is wanted of them.
    name: Option<Box<str>>,
    /// The name under which its first value is known from then on.
    binds: Option<Box<str>>,
}

/// A script that is ready to run.
struct Ready {
    shelf: Arc<dyn Shelf>,
    pass_on: Option<Arc<dyn PassOn>>,
    database: Box<str>,
    plan: Arc<Plan>,
}

/// What the writer's thread needs of it.
struct Plan {
    steps: Vec<Step>,
    lets: Vec<(Box<str>, Source)>,
    defines: Arc<BTreeSet<Box<str>>>,
    rights: Option<Arc<Rights>>,
    format: Format,
    atomic: bool,
    max_rows: usize,
    value_bytes: i32,
}

impl Kind for Script {
    fn check(&self, _row: &Row, mode: Mode, config: &JsonObject, input: &JsonObject) -> Result<Tool, Vec<Problem>> {
        let mut problems = Problems::default();
        if mode == Mode::ReadOnly {
            problems.0.push(Problem::new("mode", "a script changes things: the mode is readwrite, or it is a sql_query"));
        }
        let known: Vec<&str> = SETTINGS.into_iter().chain(["statements", "let", "transaction", "return", "max_rows"]).collect();
        problems.unknown(config, "", &known);
        let reach = Reach::new(config, &mut problems);
        let format = match config.get("return").map(Value::as_str) {
            Some(Some("last_insert_rowid")) => Format::LastInsert,
            Some(Some("affected_rows")) => Format::Affected,
            None | Some(Some(_)) => Format::All,
            Some(None) => {
                problems.add("return", "\"last_insert_rowid\", \"affected_rows\" or \"all\"");
                Format::All
            }
        };
        let atomic = match config.get("transaction") {
            None | Some(Value::Bool(true)) => true,
            Some(Value::Bool(false)) => false,
            Some(_) => {
                problems.add("transaction", "true, or false for statements that are each kept by itself");
                true
            }
        };
        let max_rows = number(config, "max_rows", MAX_ROWS, MOST_ROWS, &mut problems);
        let mut scope = Scope { input, lets: BTreeSet::new() };
        let lets = lets(config, &mut scope, &mut problems);
        let rights = reach.as_ref().and_then(|reach| reach.rights.as_ref());
        let (steps, defines) = steps(config, rights, &mut scope, &mut problems);
        let Some(reach) = reach.filter(|_| problems.0.is_empty()) else { return Err(problems.0) };
        let plan = Plan {
            steps,
            lets,
            defines: Arc::new(defines),
            rights: reach.rights.map(Arc::new),
            format,
            atomic,
            max_rows: usize::try_from(max_rows).unwrap_or_default(),
            value_bytes: reach.value_bytes,
        };
        let ready = Ready { shelf: self.shelf.clone(), pass_on: self.pass_on.clone(), database: reach.database, plan: Arc::new(plan) };
        Ok(Tool { run: Arc::new(ready), output_schema: Some(schema()), arguments: Vec::new() })
    }
}

/// A name for a value: not an argument's, or nobody could tell which is meant.
fn fresh(name: &str, scope: &Scope<'_>) -> Result<Box<str>, String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    if name.is_empty() || !name.bytes().all(plain) {
        return Err("a name is made of letters, digits and `_`".into());
    }
    if scope.lets.contains(name) || scope.input.get("properties").is_some_and(|properties| properties.get(name).is_some()) {
        return Err(format!("{name:?} is the name of something else already"));
    }
    Ok(name.into())
}

/// Values made before the first statement.
fn lets(config: &JsonObject, scope: &mut Scope<'_>, problems: &mut Problems) -> Vec<(Box<str>, Source)> {
    let mut lets = Vec::new();
    match config.get("let") {
        None => {}
        Some(Value::Object(given)) => {
            for (name, value) in given {
                let at = format!("let.{name}");
                let Some(name) = problems.take(&at, fresh(name, scope)) else { continue };
                let Some(source) = problems.take(&at, scope.source(value)) else { continue };
                lets.push((name, source));
            }
        }
        Some(_) => problems.add("let", "names and what they stand for: {\"order\": \"{{uuid()}}\"}"),
    }
    // One after the other would depend on an order that JSON does not keep.
    scope.lets.extend(lets.iter().map(|(name, _)| name.clone()));
    lets
}

fn steps(config: &JsonObject, rights: Option<&Rights>, scope: &mut Scope<'_>, problems: &mut Problems) -> (Vec<Step>, BTreeSet<Box<str>>) {
    let mark = rights.map(Rights::mark).unwrap_or_default();
    let (mut steps, mut defines) = (Vec::new(), BTreeSet::new());
    let given = match config.get("statements") {
        Some(Value::Array(given)) if (1..=MAX_STATEMENTS).contains(&given.len()) => given,
        _ => {
            problems.add("statements", format!("a list of 1 to {MAX_STATEMENTS} statements: [{{\"sql\": \"…\", \"params\": […]}}]"));
            return (steps, defines);
        }
    };
    let mut names = BTreeSet::new();
    for (number, entry) in given.iter().enumerate() {
        let at = format!("statements[{number}]");
        let Some(entry) = entry.as_object() else {
            problems.add(at, "an object with `sql`");
            continue;
        };
        problems.unknown(entry, &format!("{at}."), &["sql", "params", "name", "let"]);
        let sql = entry.get("sql").and_then(Value::as_str).ok_or_else(|| "a statement".to_owned());
        let statement = problems.take(format!("{at}.sql"), sql.and_then(|sql| Statement::new(sql, Does::Change)));
        let bindings = statement.as_ref().and_then(|statement| {
            let place = format!("handler_config.{at}.");
            Bindings::new(&statement.parameters, entry.get("params"), scope, &place).map_err(|more| problems.0.extend(more)).ok()
        });
        let binds = entry.get("let").and_then(|name| {
            problems.take(format!("{at}.let"), name.as_str().ok_or_else(|| "a name".to_owned()).and_then(|name| fresh(name, scope)))
        });
        scope.lets.extend(binds.clone());
        let name = match entry.get("name").map(Value::as_str) {
            Some(Some(name)) => Some(name.into()),
            Some(None) => {
                problems.add(format!("{at}.name"), "what its rows are called");
                None
            }
            None if binds.is_some() => None,
            None => Some((number + 1).to_string().into()),
        };
        if name.clone().is_some_and(|name: Box<str>| !names.insert(name)) {
            problems.add(format!("{at}.name"), "another statement's rows are called so");
        }
        let (Some(statement), Some(bindings)) = (statement, bindings) else { continue };
        if let Some(name) = statement.defines.iter().find(|name| is_reserved(name)) {
            problems.add(format!("{at}.sql"), format!("{name:?} is a name of the database's own: call it otherwise"));
        }
        if let Some(rights) = rights {
            problems.take(format!("{at}.sql"), rights.joins(&statement.joins));
        }
        let sql = format!("{mark}{}", statement.sql).into();
        defines.extend(statement.defines);
        steps.push(Step { sql, bindings, replaces: statement.replaces, inserts: statement.inserts, name, binds });
    }
    (steps, defines)
}

fn schema() -> JsonObject {
    let schema = json!({
        "type": "object",
        "properties": {
            "success": { "type": "boolean" },
            "affected_rows": { "type": "integer", "description": "Rows that the statements inserted, updated and deleted." },
            "last_insert_id": { "type": ["integer", "null"], "description": "The rowid of the row inserted last." },
            "values": { "type": "object", "description": "Values that were made on the way, such as new ids." },
            "results": { "type": "object", "description": "Rows of statements that give some.", "additionalProperties": { "type": "array" } }
        }
    });
    let Value::Object(schema) = schema else { unreachable!("a literal object") };
    schema
}

impl Run for Ready {
    fn run<'a>(&'a self, call: Call<'a>) -> BoxFuture<'a, Result<Output, ToolError>> {
        Box::pin(self.answer(call))
    }
}

impl Ready {
    async fn answer(&self, call: Call<'_>) -> Result<Output, ToolError> {
        let began = Instant::now();
        let Ok(writer) = self.shelf.writer(&self.database).await else {
            return match &self.pass_on {
                Some(pass_on) if call.caller.transport != Transport::Link => pass_on.pass_on(call).await,
                _ => Err(ToolError::Unavailable(NoEffect::NoRoute("the tool's database".into()))),
            };
        };
        let plan = &self.plan;
        let sources = plan.lets.iter().map(|(_, source)| source).chain(plan.steps.iter().flat_map(|step| step.bindings.sources()));
        let mut made = Made::new(sources, call.arguments).map_err(ToolError::Arguments)?;
        made.lets = plan.lets.iter().map(|(name, source)| (name.clone(), made.value(source))).collect();
        let mut done = Done { bytes: AROUND, ..Done::default() };
        let whole = 0..plan.steps.len();
        let stages: Vec<_> = if plan.atomic || plan.rights.is_none() { vec![whole] } else { whole.map(|step| step..step + 1).collect() };
        for steps in stages {
            let before = steps.start;
            let confined = Arc::new(match &plan.rights {
                Some(rights) => Confined::new(rights.clone(), plan.defines.clone(), Meter::new()),
                None => Confined::noting(plan.defines.clone(), Meter::new()),
            });
            let stage = Stage { plan: plan.clone(), confined: confined.clone(), steps, made, done, max_bytes: call.max_bytes };
            let stood = Circumstances { call: &call, began, confined: &confined, value_bytes: plan.value_bytes };
            (made, done) = stage.commit(&writer, call.until).await.map_err(|error| partly(stood.write(error), before))?;
        }
        Ok(self.output(made, done))
    }

    fn output(&self, made: Made, done: Done) -> Output {
        let mut result = JsonObject::new();
        if self.plan.format == Format::All {
            result.insert("success".into(), true.into());
        }
        if self.plan.format != Format::LastInsert {
            result.insert("affected_rows".into(), done.affected.into());
        }
        if self.plan.format != Format::Affected {
            result.insert("last_insert_id".into(), done.inserted.into());
        }
        if !made.lets.is_empty() {
            let values = made.lets.iter().map(|(name, value)| (name.to_string(), values::json(ValueRef::from(value)))).collect();
            result.insert("values".into(), Value::Object(values));
        }
        if !done.results.is_empty() {
            let results = done.results.into_iter().map(|(name, rows)| (name.into(), Value::Array(rows))).collect();
            result.insert("results".into(), Value::Object(results));
        }
        Output::json(Value::Object(result))
    }
}

/// What a failure means of which `before` statements are kept.
fn partly(error: ToolError, before: usize) -> ToolError {
    match error {
        error if before == 0 => error,
        ToolError::Unknown(why) => ToolError::Unknown(why),
        ToolError::Deadline { after, .. } => ToolError::Deadline { after, undone: false },
        error => ToolError::Failed(format!("{error}; what the {before} statements before did is kept").into()),
    }
}

//! From a row to a tool: everything that is wrong with it is found, each at its place.

use std::time::Duration;

use rmcp::model::JsonObject;
use serde_json::Value;

use crate::{
    Behaviour, Definition, Kinds, Mode, Problem, Row, Spec, definition::DEFAULT_TIMEOUT, definition::MAX_TIMEOUT, schema::KEPT_TEXT,
};

/// The tool that `row` says, by the kind that it names.
///
/// # Errors
/// All that is wrong with it.
pub(super) fn make(kinds: &Kinds, row: &Row) -> Result<Definition, Vec<Problem>> {
    let mut problems = Vec::new();
    // Nothing of a text that is too long is looked at: the rest of it is not here.
    for (column, text) in row.texts() {
        if text.len() > KEPT_TEXT {
            problems.push(Problem::new(column, format!("is longer than {KEPT_TEXT} bytes")));
        }
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    let mode = mode(row, &mut problems);
    let behaviour = Behaviour {
        mode: mode.unwrap_or(Mode::ReadWrite),
        destructive: flag("destructive", row.destructive, &mut problems),
        idempotent: flag("idempotent", row.idempotent, &mut problems),
    };
    if mode == Some(Mode::ReadOnly) && behaviour.destructive {
        problems.push(Problem::new("destructive", "what only reads destroys nothing"));
    }
    let timeout = timeout(row.timeout_ms, &mut problems);
    let input = object("input_schema", &row.input_schema, &mut problems);
    let given = row.output_schema.as_deref().filter(|text| !text.trim().is_empty());
    let output = given.and_then(|text| object("output_schema", text, &mut problems));
    let config = if row.handler_config.trim().is_empty() { "{}" } else { &*row.handler_config };
    let config = object("handler_config", config, &mut problems);
    let kind = kinds.get(&row.handler_type);
    if kind.is_none() {
        let names: Vec<_> = kinds.names().collect();
        problems.push(Problem::new("handler_type", format!("there is no such kind here; there are: {}", names.join(", "))));
    }
    let (Some(kind), Some(config), Some(mut input)) = (kind, config, input) else { return Err(problems) };
    let made = match kind.check(row, behaviour.mode, &config, &input) {
        Ok(made) => Some(made),
        Err(found) => {
            problems.extend(found);
            None
        }
    };
    let Some(made) = made else {
        // What else is wrong is told as well, though nothing runs.
        let spec = spec(row, input, output, behaviour, timeout);
        problems.extend(Definition::problems(&spec));
        return Err(problems);
    };
    add(&mut input, made.arguments);
    let spec = spec(row, input, output.or(made.output_schema), behaviour, timeout);
    match Definition::new(spec, made.run) {
        Ok(definition) if problems.is_empty() => Ok(definition),
        Ok(_) => Err(problems),
        Err(found) => {
            problems.extend(found);
            Err(problems)
        }
    }
}

fn spec(row: &Row, input: JsonObject, output: Option<JsonObject>, behaviour: Behaviour, timeout: Duration) -> Spec {
    Spec {
        name: row.name.clone(),
        title: row.title.clone().filter(|title| !title.trim().is_empty()),
        description: row.description.clone(),
        category: row.category.clone(),
        input,
        output,
        behaviour,
        group: if row.group.trim().is_empty() { "default".into() } else { row.group.clone() },
        timeout,
        version: row.version,
    }
}

fn mode(row: &Row, problems: &mut Vec<Problem>) -> Option<Mode> {
    match &*row.mode {
        "readonly" => Some(Mode::ReadOnly),
        "readwrite" => Some(Mode::ReadWrite),
        _ => {
            problems.push(Problem::new("mode", "is neither readonly nor readwrite"));
            None
        }
    }
}

fn flag(column: &str, value: i64, problems: &mut Vec<Problem>) -> bool {
    if !matches!(value, 0 | 1) {
        problems.push(Problem::new(column, "is neither 0 nor 1"));
    }
    value != 0
}

/// Nothing is the default; 0, which was "none" in the Go system, is the longest there is.
fn timeout(timeout_ms: Option<i64>, problems: &mut Vec<Problem>) -> Duration {
    let Some(given) = timeout_ms else { return DEFAULT_TIMEOUT };
    match u64::try_from(given).map(Duration::from_millis) {
        Ok(Duration::ZERO) => MAX_TIMEOUT,
        Ok(timeout) if timeout <= MAX_TIMEOUT => timeout,
        _ => {
            problems.push(Problem::new("timeout_ms", format!("is not a number from 0 to {}", MAX_TIMEOUT.as_millis())));
            DEFAULT_TIMEOUT
        }
    }
}

fn object(column: &str, text: &str, problems: &mut Vec<Problem>) -> Option<JsonObject> {
    let problem = match serde_json::from_str(text) {
        Ok(Value::Object(object)) => return Some(object),
        Ok(_) => "is no JSON object".to_owned(),
        Err(error) => format!("is no JSON: {error}"),
    };
    problems.push(Problem::new(column, problem));
    None
}

/// The kind's own arguments, where the row has none of those names.
fn add(input: &mut JsonObject, arguments: Vec<(Box<str>, Value)>) {
    if arguments.is_empty() {
        return;
    }
    // Where `properties` is something else, the schema is wrong, and found to be.
    if let Some(properties) = input.entry("properties").or_insert_with(|| JsonObject::new().into()).as_object_mut() {
        for (name, schema) in arguments {
            properties.entry(String::from(name)).or_insert(schema);
        }
    }
}

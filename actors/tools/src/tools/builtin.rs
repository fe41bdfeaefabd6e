//! The two tools that every list has room for: `search_tools` finds tools, `call_tool` calls what was found.
//!
//! They are for clients that put whatever is listed before a language model, and cannot call what is not listed. `call_tool` is a name
//! for a call and no call itself: what it names goes through everything as if it had been called by its own name, and is written down so.

use std::sync::{Arc, LazyLock};

use rmcp::model::{JsonObject, Tool, ToolAnnotations};
use serde_json::{Value, json};

use super::confirm;
use crate::{Caller, Output, Problem, Snapshot, Spec, ToolError};

/// Most tools that one search gives.
const MOST: usize = 25;
/// How many it gives where nothing is said: what a model reads without losing the thread.
const USUAL: usize = 5;

/// A tool that is always there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Builtin {
    Search,
    Call,
}

static SEARCH: LazyLock<Tool> = LazyLock::new(|| {
    let input = json!({
        "type": "object",
        "properties": {
            "query": { "type": "string", "description": "What the tool should do, in a few words." },
            "limit": { "type": "integer", "minimum": 1, "maximum": MOST, "default": USUAL },
        },
        "required": ["query"],
        "additionalProperties": false,
    });
    let output = json!({
        "type": "object",
        "properties": { "tools": { "type": "array", "items": { "type": "object" } } },
        "required": ["tools"],
    });
    let description = "Finds tools by what they do. Gives the best few with their schemas, to be called by their names.";
    let mut tool = Tool::new(Builtin::Search.name(), description, Arc::new(object(input)));
    tool.output_schema = Some(Arc::new(object(output)));
    tool.annotations = Some(ToolAnnotations::new().read_only(true).open_world(false));
    tool
});

static CALL: LazyLock<Tool> = LazyLock::new(|| {
    let input = json!({
        "type": "object",
        "properties": {
            "name": { "type": "string", "description": "The name of a tool that search_tools found." },
            "arguments": { "type": "object", "description": "Its arguments, in the shape of its input schema." },
        },
        "required": ["name"],
        "additionalProperties": false,
    });
    let mut tool = Tool::new(Builtin::Call.name(), "Calls a tool that search_tools found.", Arc::new(object(input)));
    // It may do whatever the tool does that it calls.
    tool.annotations = Some(ToolAnnotations::new().read_only(false).destructive(true).open_world(false));
    tool
});

impl Builtin {
    pub(crate) const ALL: [Self; 2] = [Self::Call, Self::Search];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Search => "search_tools",
            Self::Call => "call_tool",
        }
    }

    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|builtin| builtin.name() == name)
    }

    pub(super) fn tool(self) -> Tool {
        match self {
            Self::Search => SEARCH.clone(),
            Self::Call => CALL.clone(),
        }
    }
}

fn object(value: Value) -> JsonObject {
    match value {
        Value::Object(object) => object,
        _ => unreachable!("schemas are written as objects"),
    }
}

/// What of `spec` is taken: the names of these tools, and the argument that confirms.
pub(crate) fn taken(spec: &Spec) -> Option<Problem> {
    if Builtin::named(&spec.name).is_some() {
        return Some(Problem::new("tool_name", "is the name of a tool that every node has"));
    }
    let declares = spec.input.get("properties").is_some_and(|properties| properties.get(confirm::ARGUMENT).is_some());
    let confirmed = spec.behaviour.destructive && declares;
    confirmed.then(|| Problem::new("input_schema/properties/confirm", "is the argument by which what is destructive is confirmed"))
}

/// Carries `search_tools` out.
pub(super) fn search(snapshot: &Snapshot, caller: &Caller, arguments: &JsonObject) -> Result<Output, ToolError> {
    let wrong = |at: &str, what: String| Err(ToolError::Arguments(vec![Problem::new(at, what)]));
    if let Some(other) = arguments.keys().find(|name| !matches!(name.as_str(), "query" | "limit")) {
        return wrong("", format!("there is no argument {:?}", crate::audit::cut(other)));
    }
    let Some(Value::String(query)) = arguments.get("query") else { return wrong("/query", "a string is required".into()) };
    let limit = match arguments.get("limit").map(|limit| limit.as_u64().filter(|limit| (1..=MOST as u64).contains(limit))) {
        None => USUAL,
        Some(Some(limit)) => limit as usize,
        Some(None) => return wrong("/limit", format!("from 1 to {}", MOST)),
    };
    let policy = snapshot.policy.of(caller);
    let found = snapshot.search(query, limit, |definition| policy.permits(definition));
    let tools: Vec<&Tool> = found.iter().map(|definition| &definition.tool).collect();
    Ok(Output::json(json!({ "tools": tools })))
}

/// Takes the arguments of the call that `call_tool` asks for out of its own, and gives its name.
pub(super) fn unwrap(arguments: &mut JsonObject) -> Result<String, ToolError> {
    let wrong = |at: &str, what: &str| Err(ToolError::Arguments(vec![Problem::new(at, what)]));
    let mut outer = std::mem::take(arguments);
    let Some(Value::String(name)) = outer.remove("name") else { return wrong("/name", "a string is required") };
    match outer.remove("arguments") {
        None => {}
        Some(Value::Object(inner)) => *arguments = inner,
        Some(_) => return wrong("/arguments", "it is an object"),
    }
    if !outer.is_empty() {
        return wrong("", "there are only \"name\" and \"arguments\"");
    }
    if Builtin::named(&name).is_some() {
        return wrong("/name", "it calls tools that search_tools finds, and not itself");
    }
    Ok(name)
}

//! What queries and scripts both say in `handler_config`: which file, and what of it.

use std::collections::{BTreeMap, BTreeSet};

use rmcp::model::JsonObject;
use serde_json::Value;

use super::{
    bounds::{MAX_VALUE_BYTES, VALUE_BYTES},
    functions,
    rights::{Columns, Rights, Writes, is_reserved},
};
use crate::Problem;

/// Files that are the node's own, in any spelling a file system may take for them.
const OWN: [&str; 4] = ["control.db", "keys.db", "router.db", "tools.db"];
/// Longest name of a file.
const MAX_FILE: usize = 64;

/// What is wrong with a row, as it is found.
#[derive(Debug, Default)]
pub(super) struct Problems(pub(super) Vec<Problem>);

impl Problems {
    pub(super) fn add(&mut self, at: impl AsRef<str>, what: impl Into<Box<str>>) {
        self.0.push(Problem::new(format!("handler_config.{}", at.as_ref()), what));
    }

    /// The value, or what is wrong added.
    pub(super) fn take<T>(&mut self, at: impl AsRef<str>, result: Result<T, String>) -> Option<T> {
        result.map_err(|what| self.add(at, what)).ok()
    }

    /// Names that nobody reads are misspelt ones.
    pub(super) fn unknown(&mut self, config: &JsonObject, at: &str, known: &[&str]) {
        for key in config.keys().filter(|key| !known.contains(&key.as_str())) {
            self.add(format!("{at}{key}"), format!("no such setting; there are {}", known.join(", ")));
        }
    }
}

/// A file, and what of it a tool may touch.
#[derive(Clone, Debug)]
pub(super) struct Reach {
    pub(super) database: Box<str>,
    /// The file of nodes that have a replica only.
    pub(super) replica: Option<Box<str>>,
    /// None while the row does not say: the tool is listed, and a call tells an operator what to write.
    pub(super) rights: Option<Rights>,
    pub(super) value_bytes: i32,
}

/// The settings read here.
pub(super) const SETTINGS: [&str; 6] = ["database", "replica", "tables", "writes", "functions", "max_value_bytes"];

impl Reach {
    pub(super) fn new(config: &JsonObject, problems: &mut Problems) -> Option<Self> {
        let database = match config.get("database") {
            Some(name) => problems.take("database", file(name)),
            None => {
                problems.add("database", "the name of a database file of the node, such as \"app.db\"");
                None
            }
        };
        let replica = config.get("replica").and_then(|name| problems.take("replica", file(name)));
        let tables = config.get("tables").and_then(|tables| problems.take("tables", tables_of(tables)));
        let writes = config.get("writes").and_then(|writes| problems.take("writes", writes_of(writes)));
        let functions =
            config.get("functions").and_then(|functions| problems.take("functions", functions_of(functions))).unwrap_or_default();
        let value_bytes = number(config, "max_value_bytes", i64::from(VALUE_BYTES), i64::from(MAX_VALUE_BYTES), problems);
        let value_bytes = i32::try_from(value_bytes).unwrap_or(VALUE_BYTES);
        let listed = config.contains_key("tables") || config.contains_key("writes");
        let rights = listed.then(|| Rights { tables: tables.unwrap_or_default(), writes: writes.unwrap_or_default(), functions });
        Some(Self { database: database?, replica, rights, value_bytes })
    }
}

/// A whole number from 1 to `most`, where the setting is there.
pub(super) fn number(config: &JsonObject, at: &str, default: i64, most: i64, problems: &mut Problems) -> i64 {
    match config.get(at).map(Value::as_i64) {
        None => default,
        Some(Some(number)) if (1..=most).contains(&number) => number,
        Some(_) => {
            problems.add(at, format!("a whole number from 1 to {most}"));
            default
        }
    }
}

/// A bare name: what is no name of a file in the node's own directory can lead out of it.
fn file(name: &Value) -> Result<Box<str>, String> {
    let name = name.as_str().ok_or("the name of a file")?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    let is_name =
        name.len() <= MAX_FILE && name.bytes().all(plain) && !name.starts_with(['.', '-']) && name.ends_with(".db") && name.len() > 3;
    if !is_name {
        return Err(format!(
            "a file's name, without a directory, of at most {MAX_FILE} letters, digits, `_`, `-` and `.`, that ends in .db"
        ));
    }
    if OWN.iter().any(|own| own.eq_ignore_ascii_case(name)) {
        return Err("the node's own file, which is no tool's".into());
    }
    Ok(name.into())
}

fn names(value: &Value) -> Option<BTreeSet<Box<str>>> {
    value.as_array()?.iter().map(|name| Some(name.as_str()?.to_ascii_lowercase().into())).collect()
}

fn table(name: &str) -> Result<Box<str>, String> {
    if is_reserved(name) {
        return Err(format!("{name:?} is the database's own, and no tool's"));
    }
    Ok(name.to_ascii_lowercase().into())
}

fn columns(value: &Value) -> Option<Columns> {
    match value {
        Value::Bool(true) => Some(Columns::All),
        value => names(value).map(Columns::Some),
    }
}

fn tables_of(value: &Value) -> Result<BTreeMap<Box<str>, Columns>, String> {
    const SHAPE: &str = "for each table its columns, or true for all of them: {\"goods\": [\"sku\", \"price\"], \"orders\": true}";
    let tables = value.as_object().ok_or(SHAPE)?;
    tables.iter().map(|(name, value)| Ok((table(name)?, columns(value).ok_or(SHAPE)?))).collect()
}

fn writes_of(value: &Value) -> Result<BTreeMap<Box<str>, Writes>, String> {
    const SHAPE: &str = "for each table what may be done: {\"orders\": [\"insert\", \"update\", \"delete\"]}, or with the columns of an update: {\"orders\": {\"insert\": true, \"update\": [\"status\"]}}";
    let mut all = BTreeMap::new();
    for (name, value) in value.as_object().ok_or(SHAPE)? {
        let mut writes = Writes::default();
        let verbs: Vec<(&str, &Value)> = match value {
            Value::Array(verbs) => {
                verbs.iter().map(|verb| Some((verb.as_str()?, &Value::Bool(true)))).collect::<Option<_>>().ok_or(SHAPE)?
            }
            Value::Object(verbs) => verbs.iter().map(|(verb, value)| (verb.as_str(), value)).collect(),
            _ => return Err(SHAPE.into()),
        };
        for (verb, value) in verbs {
            match (verb, value) {
                ("insert", Value::Bool(may)) => writes.insert = *may,
                ("delete", Value::Bool(may)) => writes.delete = *may,
                ("update", Value::Bool(false)) => writes.update = None,
                ("update", value) => writes.update = Some(columns(value).ok_or(SHAPE)?),
                _ => return Err(SHAPE.into()),
            }
        }
        all.insert(table(name)?, writes);
    }
    Ok(all)
}

fn functions_of(value: &Value) -> Result<BTreeSet<Box<str>>, String> {
    let functions = names(value).ok_or("a list of names")?;
    match functions.iter().find(|name| functions::is_forbidden(name)) {
        Some(name) => Err(format!("{name}() reaches out of the database, and no tool may call it")),
        None => Ok(functions),
    }
}

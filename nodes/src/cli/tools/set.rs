//! `tools set`: a tool from a file, or from options; what there is and is not named stays as it is.

use std::{
    collections::BTreeMap,
    fs,
    io::Read as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use clap::Args;
use horos_tools::sql;
use horos_wire::{
    Address,
    protocol::registry::{Expected, GetTool, MAX_JSON, RegistryError, SetTool as Ask, ToolRow, ToolText},
};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{expected, tell};
use crate::{
    cli::{
        Output, Remote, keys,
        run::End,
        typed::{self, ANSWER, Asked},
    },
    exit::Exit,
};

/// The database of tools that do not say: the one of the small cluster that `up` makes.
const DATABASE: &str = "app.db";
/// Longest file: all that a row may have, with room for how it is written.
const MAX_FILE: u64 = 8 * MAX_JSON as u64;

/// `tools set`.
#[derive(Clone, Debug, Default, Args)]
pub struct SetTool {
    /// The tool: letters, digits, _, - and .
    pub name: Box<str>,
    /// All of it from a file, as `tools show --json` writes it; - is stdin
    #[arg(long, value_name = "FILE", conflicts_with_all = ["query", "statement", "handler", "config"])]
    pub file: Option<PathBuf>,
    /// A query: one SELECT, whose :named parameters are the arguments
    #[arg(long, value_name = "SQL", conflicts_with_all = ["statement", "handler", "config"])]
    pub query: Option<Box<str>>,
    /// A statement of a script, which is done as a whole or not at all; may be repeated
    #[arg(long, value_name = "SQL", conflicts_with_all = ["handler", "config"])]
    pub statement: Vec<Box<str>>,
    /// The database that a query or script is for, by default app.db
    #[arg(long, value_name = "FILE")]
    pub database: Option<Box<str>>,
    /// The file of nodes that have only a replica of it
    #[arg(long, value_name = "FILE")]
    pub replica: Option<Box<str>>,
    /// What it may read: TABLE, or TABLE=COLUMN,COLUMN; may be repeated
    #[arg(long, value_name = "TABLE[=COLUMNS]")]
    pub tables: Vec<Box<str>>,
    /// What it may change: TABLE=insert,update,delete; may be repeated
    #[arg(long, value_name = "TABLE=VERBS")]
    pub writes: Vec<Box<str>>,
    /// What an argument is: NAME:TYPE, or NAME:TYPE:DESCRIPTION; a type of JSON Schema, with ? behind it where it may be left out
    #[arg(long, value_name = "NAME:TYPE")]
    pub param: Vec<Box<str>>,
    /// What runs it, where that is neither a query nor a script: actor, native or another
    #[arg(long, value_name = "KIND")]
    pub handler: Option<Box<str>>,
    /// What that is to know: a JSON object
    #[arg(long, value_name = "JSON")]
    pub config: Option<Box<str>>,
    /// What it does, for people and models
    #[arg(long, value_name = "TEXT")]
    pub description: Option<Box<str>>,
    /// What people call it
    #[arg(long, value_name = "TEXT")]
    pub title: Option<Box<str>>,
    /// What it belongs to; by default what its name begins with before a dot
    #[arg(long, value_name = "WORD")]
    pub category: Option<Box<str>>,
    /// JSON Schema of its arguments
    #[arg(long, value_name = "JSON", conflicts_with = "param")]
    pub schema: Option<Box<str>>,
    /// JSON Schema of its result
    #[arg(long, value_name = "JSON")]
    pub output_schema: Option<Box<str>>,
    /// readonly or readwrite; a query is readonly unless it is said
    #[arg(long, value_name = "MODE")]
    pub mode: Option<Box<str>>,
    /// What it does cannot be undone: it is asked for twice
    #[arg(long, value_name = "true|false", num_args = 0..=1, default_missing_value = "true")]
    pub destructive: Option<bool>,
    /// Doing it twice is doing it once
    #[arg(long, value_name = "true|false", num_args = 0..=1, default_missing_value = "true")]
    pub idempotent: Option<bool>,
    /// Tools of two groups are not for one session; default goes with all
    #[arg(long, value_name = "WORD")]
    pub group: Option<Box<str>>,
    /// Longest run
    #[arg(long, value_name = "SPAN", value_parser = crate::config::span)]
    pub timeout: Option<Duration>,
    /// Whether it is served at all
    #[arg(long, value_name = "true|false")]
    pub active: Option<bool>,
    /// What must be there: a version, or absent; by default what is found now
    #[arg(long, value_name = "VERSION", value_parser = expected)]
    pub expect: Option<Expected>,
    /// Why, for whoever wonders later
    #[arg(long, value_name = "TEXT")]
    pub why: Option<Box<str>>,
}

/// A tool in a file: as `tools show --json` writes it, or flat; objects may stand for themselves in place of their texts.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    name: Option<Box<str>>,
    text: Option<Box<File>>,
    version: Option<i64>,
    // What `show` tells besides.
    #[serde(rename = "created_by")]
    _created_by: Option<Value>,
    #[serde(rename = "updated_at")]
    _updated_at: Option<Value>,
    #[serde(rename = "problems")]
    _problems: Option<Value>,
    category: Option<Box<str>>,
    title: Option<Box<str>>,
    description: Option<Box<str>>,
    input_schema: Option<Value>,
    output_schema: Option<Value>,
    handler_type: Option<Box<str>>,
    handler_config: Option<Value>,
    mode: Option<Box<str>>,
    destructive: Option<bool>,
    idempotent: Option<bool>,
    group: Option<Box<str>>,
    timeout_ms: Option<i64>,
    active: Option<bool>,
}

/// A JSON text, or the value itself.
fn as_text(value: Value) -> Box<str> {
    match value {
        Value::String(text) => text.into(),
        value => value.to_string().into(),
    }
}

/// What a name begins with: what tools of one thing have in common.
fn category(name: &str) -> Box<str> {
    name.split_once('.').map_or("", |(before, _)| before).into()
}

fn new(name: &str) -> ToolText {
    ToolText {
        category: category(name),
        title: None,
        description: "".into(),
        input_schema: r#"{"type":"object"}"#.into(),
        output_schema: None,
        handler_type: "".into(),
        handler_config: "{}".into(),
        mode: "readwrite".into(),
        destructive: false,
        idempotent: false,
        group: "default".into(),
        timeout_ms: None,
        active: true,
    }
}

/// The tool that a file holds, and the version that it was written at.
fn of_file(name: &str, text: &str) -> Result<(ToolText, Option<i64>), String> {
    let file: File = serde_json::from_str(text).map_err(|error| error.to_string())?;
    if let Some(other) = file.name.as_deref().filter(|other| **other != *name) {
        return Err(format!("it is the tool {other:?}, and {name:?} was to be set"));
    }
    let version = file.version;
    let it = match file.text {
        Some(inner) => *inner,
        None => file,
    };
    let plain = new(name);
    let mode = match it.handler_type.as_deref() {
        Some("sql_query") => "readonly".into(),
        _ => plain.mode,
    };
    let text = ToolText {
        category: it.category.unwrap_or(plain.category),
        title: it.title,
        description: it.description.unwrap_or(plain.description),
        input_schema: it.input_schema.map_or(plain.input_schema, as_text),
        output_schema: it.output_schema.map(as_text),
        handler_type: it.handler_type.unwrap_or(plain.handler_type),
        handler_config: it.handler_config.map_or(plain.handler_config, as_text),
        mode: it.mode.unwrap_or(mode),
        destructive: it.destructive.unwrap_or(plain.destructive),
        idempotent: it.idempotent.unwrap_or(plain.idempotent),
        group: it.group.unwrap_or(plain.group),
        timeout_ms: it.timeout_ms,
        active: it.active.unwrap_or(plain.active),
    };
    Ok((text, version))
}

/// `goods=sku,price` as the pair that it is.
fn pair(text: &str) -> Result<(&str, Option<Vec<&str>>), String> {
    let (table, columns) = match text.split_once('=') {
        None => (text, None),
        Some((table, columns)) => (table, Some(columns.split(',').map(str::trim).collect::<Vec<_>>())),
    };
    if table.trim().is_empty() || columns.as_ref().is_some_and(|columns| columns.iter().any(|column| column.is_empty())) {
        return Err(format!("{text:?} is not TABLE or TABLE=NAME,NAME"));
    }
    Ok((table.trim(), columns))
}

/// `quantity:integer?:how many` as a property, and whether it must be there.
fn param(text: &str) -> Result<(&str, Value, bool), String> {
    const TYPES: [&str; 5] = ["string", "integer", "number", "boolean", "null"];
    let mut parts = text.splitn(3, ':');
    let (name, kind, about) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default(), parts.next());
    let (kind, required) = kind.strip_suffix('?').map_or((kind, true), |kind| (kind, false));
    if name.is_empty() || !TYPES.contains(&kind) {
        return Err(format!("{text:?} is not NAME:TYPE, with a type of {}", TYPES.join(", ")));
    }
    let mut property = Map::new();
    // What may be left out is NULL in SQL, and may be said to be null as well.
    property.insert("type".into(), if required { kind.into() } else { json!([kind, "null"]) });
    property.extend(about.map(|about| ("description".to_owned(), about.into())));
    Ok((name, property.into(), required))
}

/// The schema of a tool whose arguments are `names`, of which `params` say more.
fn schema(names: &[Box<str>], params: &[Box<str>]) -> Result<Box<str>, String> {
    let (mut properties, mut optional) = (Map::new(), Vec::new());
    for name in names {
        properties.insert(name.to_string(), json!({ "type": "string" }));
    }
    for text in params {
        let (name, property, required) = param(text)?;
        if !names.is_empty() && !names.iter().any(|it| **it == *name) {
            return Err(format!("no statement has a parameter :{name}; there are {}", names.join(", ")));
        }
        properties.insert(name.to_owned(), property);
        if !required {
            optional.push(name);
        }
    }
    let required: Vec<_> = properties.keys().filter(|name| !optional.contains(&name.as_str())).cloned().collect();
    let mut schema = json!({ "type": "object", "properties": properties, "additionalProperties": false });
    if !required.is_empty() {
        schema["required"] = required.into();
    }
    Ok(schema.to_string().into())
}

impl SetTool {
    fn statements(&self) -> impl Iterator<Item = &str> {
        self.query.iter().chain(&self.statement).map(|it| &**it)
    }

    fn is_sql(&self) -> bool {
        self.query.is_some() || !self.statement.is_empty()
    }

    /// Whether it changes what a query or script may touch, and leaves its statements.
    fn reaches(&self) -> bool {
        self.database.is_some() || self.replica.is_some() || !self.tables.is_empty() || !self.writes.is_empty()
    }

    /// `text` with what was named.
    ///
    /// # Errors
    /// What is wrong with the options, in words.
    fn change(&self, mut text: ToolText) -> Result<ToolText, String> {
        if self.is_sql() {
            text.handler_type = if self.query.is_some() { "sql_query" } else { "sql_script" }.into();
            text.mode = if self.query.is_some() { "readonly" } else { "readwrite" }.into();
        }
        if self.is_sql() || self.reaches() {
            text.handler_config = self.config(&text)?;
        }
        if self.is_sql() && self.schema.is_none() || !self.param.is_empty() {
            let names = self.parameters(&text);
            text.input_schema = schema(&names, &self.param)?;
        }
        let set = |into: &mut Box<str>, value: &Option<Box<str>>| {
            if let Some(value) = value {
                *into = value.clone();
            }
        };
        if let Some(handler) = &self.handler {
            if text.handler_type != *handler && self.config.is_none() {
                text.handler_config = "{}".into();
            }
            text.handler_type = handler.clone();
        }
        set(&mut text.handler_config, &self.config);
        set(&mut text.description, &self.description);
        set(&mut text.category, &self.category);
        set(&mut text.input_schema, &self.schema);
        set(&mut text.mode, &self.mode);
        set(&mut text.group, &self.group);
        // An empty text takes away what may be missing.
        let take = |into: &mut Option<Box<str>>, value: &Option<Box<str>>| {
            if let Some(value) = value {
                *into = Some(value.clone()).filter(|value| !value.is_empty());
            }
        };
        take(&mut text.title, &self.title);
        take(&mut text.output_schema, &self.output_schema);
        text.destructive = self.destructive.unwrap_or(text.destructive);
        text.idempotent = self.idempotent.unwrap_or(text.idempotent);
        text.active = self.active.unwrap_or(text.active);
        if let Some(timeout) = self.timeout {
            text.timeout_ms = Some(timeout.as_millis().try_into().unwrap_or(i64::MAX));
        }
        Ok(text)
    }

    /// The configuration of a query or script: what there was, with what was named.
    fn config(&self, text: &ToolText) -> Result<Box<str>, String> {
        let there: Map<String, Value> = serde_json::from_str(&text.handler_config).unwrap_or_default();
        if !self.is_sql() && !text.handler_type.starts_with("sql_") {
            return Err("--database, --replica, --tables and --writes are for tools that are SQL: name a --query or a --statement".into());
        }
        let mut config = there;
        config.entry("database").or_insert_with(|| DATABASE.into());
        for (key, value) in [("database", &self.database), ("replica", &self.replica)] {
            config.extend(value.as_deref().map(|value| (key.to_owned(), value.into())));
        }
        if let Some(query) = &self.query {
            config.insert("query".into(), (**query).into());
            config.remove("statements");
            // Names of another statement's parameters.
            config.remove("params");
        }
        if !self.statement.is_empty() {
            config.insert("statements".into(), self.statement.iter().map(|sql| json!({ "sql": sql })).collect());
            config.remove("query");
            config.remove("params");
        }
        if !self.tables.is_empty() {
            let mut tables = BTreeMap::new();
            for text in &self.tables {
                let (table, columns) = pair(text)?;
                tables.insert(table, columns.map_or(Value::Bool(true), |columns| json!(columns)));
            }
            config.insert("tables".into(), json!(tables));
        }
        if !self.writes.is_empty() {
            let mut writes = BTreeMap::new();
            for text in &self.writes {
                match pair(text)? {
                    (table, Some(verbs)) => drop(writes.insert(table, json!(verbs))),
                    (table, None) => return Err(format!("--writes {table} says not what: write {table}=insert,update,delete")),
                }
            }
            config.insert("writes".into(), json!(writes));
        }
        Ok(Value::Object(config).to_string().into())
    }

    /// The parameters of all statements of `text`, each once.
    fn parameters(&self, text: &ToolText) -> Vec<Box<str>> {
        let mut statements: Vec<String> = self.statements().map(str::to_owned).collect();
        if statements.is_empty() && text.handler_type.starts_with("sql_") {
            let config: Value = serde_json::from_str(&text.handler_config).unwrap_or_default();
            let listed = config["statements"].as_array().into_iter().flatten().filter_map(|it| it["sql"].as_str());
            statements.extend(config["query"].as_str().into_iter().chain(listed).map(str::to_owned));
        }
        let mut names = Vec::<Box<str>>::new();
        for sql in &statements {
            // What is no SQL its node says, with its place.
            for name in sql::parameters(sql).unwrap_or_default() {
                if !names.contains(&name) {
                    names.push(name);
                }
            }
        }
        names
    }
}

fn read(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    let read = if path == Path::new("-") {
        std::io::stdin().lock().take(MAX_FILE + 1).read_to_string(&mut text)?
    } else {
        fs::File::open(path)?.take(MAX_FILE + 1).read_to_string(&mut text)?
    };
    if read as u64 > MAX_FILE {
        return Err(std::io::Error::new(std::io::ErrorKind::FileTooLarge, format!("more than {MAX_FILE} bytes are no tool")));
    }
    Ok(text)
}

/// The row there is, if there is one.
async fn there<R: Remote>(name: &str, node: &mut R, at: &Address) -> Result<Option<ToolRow>, End> {
    let ask = GetTool { name: name.into() };
    match typed::ask(node, at, &ask, Instant::now() + ANSWER).await {
        Ok(row) => Ok(Some(row)),
        Err(Asked::Own(RegistryError::NoSuchTool(_))) => Ok(None),
        Err(error) => Err(keys::or_away(error.into(), at, "the tools").into()),
    }
}

pub(super) async fn set<R: Remote>(it: SetTool, node: &mut R, at: &Address, output: &Output) -> Result<(), End> {
    let usage = |why: &str| output.fail_text(Exit::Usage, why, Some("nothing was written; `{bin} tools set --help` has examples"));
    let (text, found) = match &it.file {
        Some(path) => {
            let shown = path.display();
            let text = read(path).map_err(|error| output.fail(Exit::Local, &error, Some(&format!("{shown} was not read"))))?;
            let (text, version) = of_file(&it.name, &text).map_err(|why| usage(&format!("{shown}: {why}")))?;
            (text, version.map(Expected::Version))
        }
        None => {
            let there = there(&it.name, node, at).await?;
            if there.is_none() && !it.is_sql() && it.handler.is_none() {
                let why = format!("there is no tool {:?} yet: say what it does by --query, --statement, --handler or --file", it.name);
                return Err(usage(&why).into());
            }
            let found = there.as_ref().map_or(Expected::Absent, |row| Expected::Version(row.version));
            (there.map_or_else(|| new(&it.name), |row| row.text), Some(found))
        }
    };
    let text = it.change(text).map_err(|why| usage(&why))?;
    let ask = Ask { name: it.name, text, expected: it.expect.or(found), why: it.why };
    let done = super::ask(node, at, &ask, output).await?;
    tell(&done, output)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &[&str]) -> Vec<Box<str>> {
        text.iter().map(|&it| it.into()).collect()
    }

    fn json(text: &str) -> Value {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn a_query_needs_no_more_than_its_sql_and_its_tables() {
        let it = SetTool {
            name: "stock.levels".into(),
            query: Some("SELECT sku, quantity FROM goods WHERE sku = :sku AND quantity > $least -- :none\n AND note <> ':nor this'".into()),
            tables: words(&["goods=sku, quantity,note", "orders"]),
            param: words(&["least:integer?:how many at least"]),
            ..SetTool::default()
        };
        let text = it.change(new(&it.name)).unwrap();
        assert_eq!((&*text.handler_type, &*text.mode, &*text.category), ("sql_query", "readonly", "stock"));
        let config = json(&text.handler_config);
        assert_eq!(config["database"], "app.db");
        assert_eq!(config["tables"], json(r#"{"goods":["sku","quantity","note"],"orders":true}"#));
        assert_eq!(
            json(&text.input_schema),
            json(
                r#"{"type":"object","additionalProperties":false,"required":["sku"],"properties":{
                    "sku":{"type":"string"},"least":{"type":["integer","null"],"description":"how many at least"}}}"#
            )
        );
    }

    #[test]
    fn a_script_has_the_parameters_of_all_its_statements() {
        let it = SetTool {
            name: "restock".into(),
            statement: words(&["UPDATE goods SET quantity = quantity + :n WHERE sku = :sku", "INSERT INTO log VALUES (:sku, :n, @who)"]),
            writes: words(&["goods=update", "log=insert"]),
            destructive: Some(true),
            ..SetTool::default()
        };
        let text = it.change(new(&it.name)).unwrap();
        assert_eq!((&*text.handler_type, &*text.mode, text.destructive), ("sql_script", "readwrite", true));
        assert_eq!(json(&text.input_schema)["required"], json(r#"["n","sku","who"]"#));
        assert_eq!(json(&text.handler_config)["writes"], json(r#"{"goods":["update"],"log":["insert"]}"#));
    }

    #[test]
    fn what_is_not_named_stays_as_it_is() {
        let made = SetTool {
            name: "levels".into(),
            query: Some("SELECT 1 FROM goods WHERE sku = :sku".into()),
            tables: words(&["goods"]),
            title: Some("Levels".into()),
            ..SetTool::default()
        };
        let there = made.change(new("levels")).unwrap();
        let quick = SetTool { name: "levels".into(), timeout: Some(Duration::from_secs(5)), ..SetTool::default() };
        assert_eq!(quick.change(there.clone()).unwrap(), ToolText { timeout_ms: Some(5_000), ..there.clone() });
        let wider = SetTool { tables: words(&["goods", "orders"]), ..SetTool::default() };
        let text = wider.change(there.clone()).unwrap();
        assert_eq!(json(&text.handler_config)["query"], "SELECT 1 FROM goods WHERE sku = :sku");
        assert_eq!(text.input_schema, there.input_schema);
        let typed = SetTool { param: words(&["sku:integer"]), ..SetTool::default() };
        assert_eq!(json(&typed.change(there.clone()).unwrap().input_schema)["properties"]["sku"]["type"], "integer");
        let untitled = SetTool { title: Some("".into()), ..SetTool::default() };
        assert_eq!(untitled.change(there).unwrap().title, None);
    }

    #[test]
    fn a_slip_is_told_before_anything_is_sent() {
        let sql = || SetTool { query: Some("SELECT :a".into()), ..SetTool::default() };
        for (it, why) in [
            (SetTool { tables: words(&["=sku"]), ..sql() }, "TABLE"),
            (SetTool { tables: words(&["goods="]), ..sql() }, "TABLE"),
            (SetTool { writes: words(&["goods"]), ..sql() }, "goods=insert"),
            (SetTool { param: words(&["a"]), ..sql() }, "NAME:TYPE"),
            (SetTool { param: words(&["a:text"]), ..sql() }, "string, integer"),
            (SetTool { param: words(&["b:integer"]), ..sql() }, "no statement has a parameter :b"),
            (SetTool { tables: words(&["goods"]), ..SetTool::default() }, "--query"),
        ] {
            let error = it.change(new("x")).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn a_file_is_what_show_writes_or_flat_and_says_whose_it_is() {
        let text = ToolText { title: Some("T".into()), timeout_ms: Some(5), ..new("levels") };
        let row = ToolRow { name: "levels".into(), text: text.clone(), version: 7, created_by: None, updated_at: 1, problems: vec![] };
        let written = serde_json::to_string_pretty(&row).unwrap();
        assert_eq!(of_file("levels", &written), Ok((text, Some(7))));
        assert!(of_file("other", &written).unwrap_err().contains("levels"));
        let flat = r#"{"description": "D", "handler_type": "sql_query", "handler_config": {"query": "SELECT 1"}, "input_schema": {"type": "object"}}"#;
        let (text, version) = of_file("a.b", flat).unwrap();
        assert_eq!((&*text.handler_config, &*text.mode, &*text.category, version), (r#"{"query":"SELECT 1"}"#, "readonly", "a", None));
        assert!(of_file("a", r#"{"descripton": "D"}"#).unwrap_err().contains("descripton"));
        assert!(of_file("a", "[").is_err());
    }
}

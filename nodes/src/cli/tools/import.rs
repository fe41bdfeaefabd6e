//! `tools import`: the tools and rules of a file, sent to the owner a page at a time.

use std::path::{Path, PathBuf};

use clap::Args;
use horos_store::{
    open::{Access, OpenError, Options, open},
    rusqlite::{self, Connection, types::ValueRef},
};
use horos_wire::{
    Address,
    protocol::registry::{
        Effect, ImportTools, ImportedRule, ImportedTool, LeftTool, MAX_JSON, MAX_NAME, MAX_RULES, MAX_TOOLS, MAX_WORD, PAGE, PAGE_BYTES,
        ToolText, ToolsImported,
    },
};
use serde_json::{Map, Value};

use crate::{
    cli::{Output, Remote, run::End, sync::bar},
    exit::Exit,
    render,
};

/// `tools import`.
#[derive(Clone, Debug, Args)]
pub struct ToolImport {
    /// The file
    pub file: PathBuf,
    /// The database of tools that are SQL and do not say which
    #[arg(long, value_name = "FILE")]
    pub database: Option<Box<str>>,
    /// Replace tools of the same name, by rows that are right
    #[arg(long)]
    pub replace: bool,
    /// Why
    #[arg(long, value_name = "TEXT")]
    pub why: Option<Box<str>>,
}

/// Why the file was not read. It is as it was, and nothing was sent.
#[derive(Debug, thiserror::Error)]
enum FileError {
    #[error("{} cannot be read", .0.display())]
    Open(PathBuf, #[source] OpenError),
    #[error("{} cannot be read", .0.display())]
    Sql(PathBuf, #[source] rusqlite::Error),
    #[error("{} has no table mcp_tools_registry", .0.display())]
    NoTools(PathBuf),
    #[error("{} has more than {MAX_TOOLS} tools or {MAX_RULES} rules, and no node takes so many", .0.display())]
    TooMany(PathBuf),
    #[error("reading {} ended early", .0.display())]
    Ended(PathBuf),
}

/// What a file has.
#[derive(Debug, Default)]
struct Found {
    tools: Vec<ImportedTool>,
    rules: Vec<ImportedRule>,
    left: Vec<LeftTool>,
}

/// A value as text. NULL is none.
fn text(value: ValueRef<'_>) -> Option<Box<str>> {
    match value {
        ValueRef::Null => None,
        ValueRef::Integer(number) => Some(number.to_string().into()),
        ValueRef::Real(number) => Some(number.to_string().into()),
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => Some(String::from_utf8_lossy(bytes).into()),
    }
}

fn read(path: &Path, database: Option<&str>) -> Result<Found, FileError> {
    let sql = |error| FileError::Sql(path.to_owned(), error);
    let file = open(&Options::new(path, Access::ReadOnly)).map_err(|error| FileError::Open(path.to_owned(), error))?;
    let file: &Connection = &file;
    if !file.table_exists(Some("main"), "mcp_tools_registry").map_err(sql)? {
        return Err(FileError::NoTools(path.to_owned()));
    }
    let mut found = Found::default();
    let too_many = || FileError::TooMany(path.to_owned());
    if !tools(file, database, &mut found).map_err(sql)? {
        return Err(too_many());
    }
    if file.table_exists(Some("main"), "mcp_tool_policy").map_err(sql)? && !rules(file, &mut found).map_err(sql)? {
        return Err(too_many());
    }
    Ok(found)
}

/// A column of the table, or a value in its place where the table is of an age that has it not.
fn column(file: &Connection, name: &str, otherwise: &str) -> rusqlite::Result<String> {
    Ok(if file.column_exists(Some("main"), "mcp_tools_registry", name)? { name.to_owned() } else { otherwise.to_owned() })
}

/// Whether there are not too many.
fn tools(file: &Connection, database: Option<&str>, found: &mut Found) -> rusqlite::Result<bool> {
    let mut columns = vec!["tool_name".to_owned(), "tool_category".into(), "description".into(), "input_schema".into()];
    columns.extend(["handler_type".to_owned(), "handler_config".into(), "is_active".into()]);
    for (name, otherwise) in [
        ("mode", "'readwrite'"),
        ("group_tag", "'default'"),
        ("timeout_ms", "NULL"),
        ("title", "NULL"),
        ("output_schema", "NULL"),
        ("destructive", "0"),
        ("idempotent", "0"),
    ] {
        columns.push(column(file, name, otherwise)?);
    }
    let mut statement = file.prepare(&format!("SELECT {} FROM mcp_tools_registry ORDER BY tool_name LIMIT ?1", columns.join(", ")))?;
    let mut rows = statement.query([MAX_TOOLS + 1])?;
    let mut count = 0;
    while let Some(row) = rows.next()? {
        count += 1;
        if count > MAX_TOOLS {
            return Ok(false);
        }
        let get = |at| row.get_ref(at).map(text);
        let must = |at| get(at).map(Option::unwrap_or_default);
        let flag = |at| row.get_ref(at).map(|value| value.as_i64() == Ok(1));
        let (name, handler_type) = (must(0)?, must(4)?);
        let mut config = must(5)?;
        if let (Some(database), true) = (database, handler_type.starts_with("sql_")) {
            config = within(&config, database);
        }
        let it = ToolText {
            category: must(1)?,
            description: must(2)?,
            input_schema: must(3)?,
            handler_type,
            handler_config: config,
            active: flag(6)?,
            mode: Some(must(7)?).filter(|mode| !mode.is_empty()).unwrap_or_else(|| "readwrite".into()),
            group: Some(must(8)?).filter(|group| !group.is_empty()).unwrap_or_else(|| "default".into()),
            timeout_ms: row.get_ref(9)?.as_i64().ok(),
            title: get(10)?,
            output_schema: get(11)?,
            destructive: flag(12)?,
            idempotent: flag(13)?,
        };
        let long = |text: &str, most: usize| text.len() > most;
        let some = |text: &Option<Box<str>>| text.as_deref().is_some_and(|text| text.len() > MAX_JSON);
        if long(&name, MAX_NAME)
            || [&it.category, &it.handler_type, &it.mode, &it.group].into_iter().any(|word| long(word, MAX_WORD))
            || [&it.description, &it.input_schema, &it.handler_config].into_iter().any(|text| long(text, MAX_JSON))
            || some(&it.title)
            || some(&it.output_schema)
        {
            found.left.push(LeftTool { name: name.chars().take(MAX_NAME).collect(), why: "it is larger than a tool may be".into() });
            continue;
        }
        found.tools.push(ImportedTool { name, text: it });
    }
    Ok(true)
}

/// The configuration with its database, where it has none. What is no JSON object stays what it is, and is told.
fn within(config: &str, database: &str) -> Box<str> {
    let Ok(mut object) = serde_json::from_str::<Map<String, Value>>(config) else { return config.into() };
    object.entry("database").or_insert_with(|| database.into());
    Value::Object(object).to_string().into()
}

/// Whether there are not too many.
fn rules(file: &Connection, found: &mut Found) -> rusqlite::Result<bool> {
    let mut statement = file.prepare("SELECT tool_name, role, effect FROM mcp_tool_policy ORDER BY tool_name, role, effect LIMIT ?1")?;
    let mut rows = statement.query([MAX_RULES + 1])?;
    let mut count = 0;
    while let Some(row) = rows.next()? {
        count += 1;
        if count > MAX_RULES {
            return Ok(false);
        }
        let get = |at| row.get_ref(at).map(|value| text(value).unwrap_or_default());
        // What is not clearly an allowance is none.
        let effect = if *get(2)? == *"allow" { Effect::Allow } else { Effect::Deny };
        let rule = ImportedRule { tool: get(0)?, role: get(1)?, effect };
        match found.rules.last_mut() {
            // The Go system has as many as one likes; one that denies beats the others.
            Some(last) if last.tool == rule.tool && last.role == rule.role => {
                if effect == Effect::Deny {
                    last.effect = Effect::Deny;
                }
            }
            _ => found.rules.push(rule),
        }
    }
    Ok(true)
}

/// How many of the first `tools` go in one request.
fn page(tools: &[ImportedTool]) -> usize {
    let mut bytes = 0;
    let fits = tools.iter().take(PAGE).take_while(|it| {
        let before = bytes;
        bytes += it.name.len() + it.text.description.len() + it.text.input_schema.len() + it.text.handler_config.len();
        before < PAGE_BYTES
    });
    fits.count()
}

pub(super) async fn import<R: Remote>(it: ToolImport, node: &mut R, at: &Address, output: &Output) -> Result<(), End> {
    let ToolImport { file, database, replace, why } = it;
    let path = file.clone();
    // Reading blocks, and the link is on this thread.
    let found = tokio::task::spawn_blocking(move || read(&path, database.as_deref())).await.unwrap_or(Err(FileError::Ended(file)));
    let Found { tools, rules, left } = found.map_err(|error| output.fail(Exit::Local, &error, Some("nothing was imported")))?;
    let mut total = ToolsImported { left, ..ToolsImported::default() };
    let bar = bar(output, "import [{wide_bar}] {pos}/{len} tools and rules");
    bar.set_length((tools.len() + rules.len()) as u64);
    // Rules first: no tool is there a moment without those that keep somebody from it.
    let rules = rules.chunks(PAGE).map(|rules| (Vec::new(), rules.to_vec()));
    let mut rest = &tools[..];
    let tools = std::iter::from_fn(move || {
        let (now, later) = rest.split_at(page(rest));
        rest = later;
        (!now.is_empty()).then(|| (now.to_vec(), Vec::new()))
    });
    for (tools, rules) in rules.chain(tools) {
        let count = tools.len() + rules.len();
        let ask = ImportTools { tools, rules, replace, why: why.clone() };
        let done = super::ask(node, at, &ask, output).await.inspect_err(|_| {
            let so_far = bar.position();
            bar.finish_and_clear();
            if so_far > 0 {
                output.say(&format!("{so_far} were imported before that; again is safe"));
            }
        })?;
        total.added.extend(done.added);
        total.replaced.extend(done.replaced);
        total.same.extend(done.same);
        total.left.extend(done.left);
        total.wrong.extend(done.wrong);
        total.rules += done.rules;
        total.closed.extend(done.closed);
        bar.inc(count as u64);
    }
    bar.finish_and_clear();
    output.data(&total, |style| render::tools_imported(&total, style))?;
    let (added, replaced, same) = (total.added.len(), total.replaced.len(), total.same.len());
    output.say(&format!(
        "{added} tools were added, {replaced} replaced, {same} were there already, {} were left; {} rules were added",
        total.left.len(),
        total.rules
    ));
    if !total.closed.is_empty() {
        output.say(&format!("no rule lets anybody but operators call {} of them: `{{bin}} tools allow`", total.closed.len()));
    }
    if total.left.is_empty() && total.wrong.is_empty() { Ok(()) } else { Err(Exit::Failed.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the Go system makes it, before its migrations.
    const GO: &str = "CREATE TABLE mcp_tools_registry (
            tool_name TEXT PRIMARY KEY, tool_category TEXT NOT NULL, description TEXT NOT NULL, input_schema TEXT NOT NULL,
            handler_type TEXT NOT NULL CHECK (handler_type IN ('sql_query', 'sql_script', 'go_function')),
            handler_config TEXT NOT NULL, is_active INTEGER NOT NULL DEFAULT 1, created_at INTEGER NOT NULL DEFAULT 0,
            updated_at INTEGER, created_by TEXT, version INTEGER NOT NULL DEFAULT 1);
        CREATE TABLE mcp_tool_policy (policy_id INTEGER PRIMARY KEY AUTOINCREMENT, tool_name TEXT NOT NULL, role TEXT NOT NULL DEFAULT '*',
            effect TEXT NOT NULL DEFAULT 'allow', created_at INTEGER);
        INSERT INTO mcp_tools_registry (tool_name, tool_category, description, input_schema, handler_type, handler_config) VALUES
            ('count', 'c', 'Counts.', '{}', 'sql_query', '{\"query\": \"SELECT 1\"}'),
            ('go', 'c', 'Goes.', 'null', 'go_function', '{}'), ('odd', 'c', x'ff', '{', 'sql_script', '[]');
        INSERT INTO mcp_tool_policy (tool_name, role, effect) VALUES ('count', 'admin', 'allow'), ('count', 'admin', 'deny'), ('*', '*', 'allow');";

    #[test]
    fn a_go_systems_tools_and_rules_are_read_as_they_are_and_its_file_left_so() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("go.db");
        let file = Connection::open(&path).unwrap();
        file.execute_batch(GO).unwrap();
        file.execute(
            "INSERT INTO mcp_tools_registry (tool_name, tool_category, description, input_schema, handler_type, handler_config, is_active)
             VALUES ('large', 'c', ?1, '{}', 'go_function', '{}', 0)",
            ["x".repeat(MAX_JSON + 1)],
        )
        .unwrap();
        drop(file);
        let before = std::fs::read(&path).unwrap();
        let found = read(&path, Some("shop.db")).unwrap();
        assert_eq!(found.tools.iter().map(|it| &*it.name).collect::<Vec<_>>(), ["count", "go", "odd"]);
        let count = &found.tools[0].text;
        assert_eq!(&*count.handler_config, r#"{"database":"shop.db","query":"SELECT 1"}"#);
        assert_eq!((&*count.mode, &*count.group, count.timeout_ms, count.active), ("readwrite", "default", None, true));
        assert_eq!((&*found.tools[1].text.handler_config, &*found.tools[2].text.handler_config), ("{}", "[]"));
        assert_eq!(&*found.left[0].name, "large");
        let rules: Vec<_> = found.rules.iter().map(|it| format!("{} {} {}", it.tool, it.role, it.effect)).collect();
        assert_eq!(rules, ["* * allow", "count admin deny"]);
        assert_eq!(std::fs::read(&path).unwrap(), before);
        let without = read(&path, None).unwrap();
        assert_eq!(&*without.tools[0].text.handler_config, r#"{"query": "SELECT 1"}"#);
    }

    #[test]
    fn a_file_without_tools_or_with_too_many_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("other.db");
        assert!(matches!(read(&path, None), Err(FileError::Open(..))));
        let file = Connection::open(&path).unwrap();
        file.execute_batch("CREATE TABLE other (a)").unwrap();
        assert!(matches!(read(&path, None), Err(FileError::NoTools(_))));
        file.execute_batch(GO).unwrap();
        let many = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i <= ?1)
                    INSERT INTO mcp_tools_registry (tool_name, tool_category, description, input_schema, handler_type, handler_config)
                    SELECT 'r' || i, '', '', '', 'sql_query', '' FROM n";
        file.execute(many, [MAX_TOOLS]).unwrap();
        assert!(matches!(read(&path, None), Err(FileError::TooMany(_))));
    }

    #[test]
    fn a_request_is_full_by_its_rows_or_its_bytes() {
        let text = ToolText {
            category: "".into(),
            title: None,
            description: "".into(),
            input_schema: "".into(),
            output_schema: None,
            handler_type: "".into(),
            handler_config: "".into(),
            mode: "".into(),
            destructive: false,
            idempotent: false,
            group: "".into(),
            timeout_ms: None,
            active: true,
        };
        let tool =
            |bytes: usize| ImportedTool { name: "a".into(), text: ToolText { handler_config: "x".repeat(bytes).into(), ..text.clone() } };
        assert_eq!(page(&vec![tool(1); PAGE + 9]), PAGE);
        assert_eq!(page(&vec![tool(MAX_JSON); 40]), 4);
        assert_eq!(page(&[]), 0);
    }
}

//! `sql_query`: one statement that reads, a page at a time.

use std::{collections::BTreeSet, io, sync::Arc, time::Instant};

use futures_util::future::BoxFuture;
use horos_store::readers::Readers;
use horos_wire::NoEffect;
use rmcp::model::{ContentBlock, JsonObject};
use rusqlite::{Connection, Statement as Prepared};
use serde_json::{Value, json};
use tokio::{sync::Semaphore, time::timeout_at};

use super::{
    Shelf, THREADS,
    bindings::{Bindings, Made, Scope},
    bounds::{Limits, Meter},
    config::{Problems, Reach, SETTINGS, number},
    cursor::{self, Cursors},
    fault::{Circumstances, Trouble, no_cursor},
    rights::{Confined, Rights, is_reserved},
    statement::{Kind as Does, Statement},
    values::Columns,
};
use crate::{Call, Kind, Mode, Output, PassOn, Problem, Row, Run, ToolError, Transport, kind::Made as Tool};

/// Threads of a file's readers that one tool may hold. Its further calls wait, and those of other tools pass them.
const AT_ONCE: usize = THREADS / 2;
/// Rows of a page where the tool does not say.
const PAGE_ROWS: i64 = 500;
/// Rows that a tool gives in all its pages where it does not say; the Go system's figure.
const MAX_ROWS: i64 = 10_000;
/// Most that it may say. A page is found by counting from the first row.
const MOST_ROWS: i64 = 1_000_000;
/// Bytes of a page that are not rows: the words around them, and a cursor.
const AROUND: usize = 160;

/// Makes tools of rows that are queries.
pub struct Query {
    shelf: Arc<dyn Shelf>,
    pass_on: Option<Arc<dyn PassOn>>,
}

impl std::fmt::Debug for Query {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Query").field("pass_on", &self.pass_on).finish_non_exhaustive()
    }
}

impl Query {
    /// Queries of the files of `shelf`.
    pub fn new(shelf: Arc<dyn Shelf>) -> Self {
        Self { shelf, pass_on: None }
    }

    /// The same, that passes on what is elsewhere.
    #[must_use]
    pub fn passing_on(self, pass_on: Arc<dyn PassOn>) -> Self {
        Self { pass_on: Some(pass_on), ..self }
    }
}

/// What a result looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    /// `{"columns": […], "rows": [{…}], "next": "…"}`.
    Array,
    /// The first row, or `null`.
    Object,
}

/// A query that is ready to run.
struct Ready {
    shelf: Arc<dyn Shelf>,
    pass_on: Option<Arc<dyn PassOn>>,
    cursors: Cursors,
    version: i64,
    database: Box<str>,
    replica: Option<Box<str>>,
    plan: Arc<Plan>,
    at_once: Semaphore,
}

/// What the reader's thread needs of it.
struct Plan {
    /// The statement after the mark of its rights.
    sql: Box<str>,
    defines: Arc<BTreeSet<Box<str>>>,
    bindings: Bindings,
    rights: Option<Arc<Rights>>,
    format: Format,
    page_rows: u64,
    max_rows: u64,
    value_bytes: i32,
}

impl Kind for Query {
    fn check(&self, row: &Row, _mode: Mode, config: &JsonObject, input: &JsonObject) -> Result<Tool, Vec<Problem>> {
        let mut problems = Problems::default();
        let known: Vec<&str> = SETTINGS
            .into_iter()
            .filter(|name| *name != "writes")
            .chain(["query", "params", "result_format", "page_rows", "max_rows"])
            .collect();
        problems.unknown(config, "", &known);
        let reach = Reach::new(config, &mut problems);
        let statement = match config.get("query").and_then(Value::as_str) {
            Some(sql) => problems.take("query", Statement::new(sql, Does::Query)),
            None => {
                problems.add("query", "a statement that reads");
                None
            }
        };
        let format = match config.get("result_format").map(Value::as_str) {
            None | Some(Some("array")) => Format::Array,
            Some(Some("object")) => Format::Object,
            Some(_) => {
                problems.add("result_format", "\"array\" or \"object\"");
                Format::Array
            }
        };
        let page_rows = number(config, "page_rows", PAGE_ROWS, MAX_ROWS, &mut problems).unsigned_abs();
        let max_rows = number(config, "max_rows", MAX_ROWS, MOST_ROWS, &mut problems).unsigned_abs();
        if format == Format::Array && input.get("properties").is_some_and(|properties| properties.get(cursor::ARGUMENT).is_some()) {
            problems.0.push(Problem::new(
                "input_schema.properties.cursor",
                "this is the name of the page's cursor, which is added: call the argument otherwise",
            ));
        }
        let scope = Scope { input, lets: BTreeSet::new() };
        let bindings = statement.as_ref().and_then(|statement| {
            Bindings::new(&statement.parameters, config.get("params"), &scope, "handler_config.")
                .map_err(|more| problems.0.extend(more))
                .ok()
        });
        if let Some(name) = statement.iter().flat_map(|statement| &statement.defines).find(|name| is_reserved(name)) {
            problems.add("query", format!("{name:?} is a name of the database's own: call it otherwise"));
        }
        if let (Some(statement), Some(rights)) = (&statement, reach.as_ref().and_then(|reach| reach.rights.as_ref())) {
            problems.take("query", rights.joins(&statement.joins));
        }
        let (Some(reach), Some(statement), Some(bindings), true) = (reach, statement, bindings, problems.0.is_empty()) else {
            return Err(problems.0);
        };
        let rights = reach.rights.map(Arc::new);
        let mark = rights.as_ref().map(|rights| rights.mark()).unwrap_or_default();
        let plan = Plan {
            sql: format!("{mark}{}", statement.sql).into(),
            defines: Arc::new(statement.defines),
            bindings,
            rights,
            format,
            page_rows,
            max_rows,
            value_bytes: reach.value_bytes,
        };
        let ready = Ready {
            shelf: self.shelf.clone(),
            pass_on: self.pass_on.clone(),
            cursors: Cursors::new(&row.handler_config),
            version: row.version,
            database: reach.database,
            replica: reach.replica,
            plan: Arc::new(plan),
            at_once: Semaphore::new(AT_ONCE),
        };
        let cursor =
            json!({ "type": "string", "description": "Where the page begins: `next` of the page before it. Leave it out for the first." });
        Ok(Tool {
            run: Arc::new(ready),
            output_schema: (format == Format::Array).then(page_schema),
            arguments: if format == Format::Array { vec![(cursor::ARGUMENT.into(), cursor)] } else { Vec::new() },
        })
    }
}

fn page_schema() -> JsonObject {
    let schema = json!({
        "type": "object",
        "properties": {
            "columns": { "type": "array", "items": { "type": "string" }, "description": "The names of the columns, in their order." },
            "rows": { "type": "array", "items": { "type": "object" } },
            "next": { "type": "string", "description": "`cursor` of the next page; the last page has none." },
            "truncated": { "type": "boolean", "description": "There are more rows than this tool gives." }
        },
        "required": ["columns", "rows"]
    });
    let Value::Object(schema) = schema else { unreachable!("a literal object") };
    schema
}

impl Run for Ready {
    fn run<'a>(&'a self, call: Call<'a>) -> BoxFuture<'a, Result<Output, ToolError>> {
        Box::pin(self.answer(call))
    }
}

/// A page as the reader's thread has found it.
struct Page {
    columns: Columns,
    rows: Vec<Value>,
    /// Whether there is more, or there was no room.
    more: bool,
}

/// Tells the reader's thread that nobody waits, when dropped.
struct Waiting(Arc<Confined>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.meter().abandon();
    }
}

impl Ready {
    async fn answer(&self, call: Call<'_>) -> Result<Output, ToolError> {
        let began = Instant::now();
        let plan = &self.plan;
        let skip = match call.arguments.get(cursor::ARGUMENT).filter(|_| plan.format == Format::Array) {
            None | Some(Value::Null) => 0,
            Some(text) => {
                let rows = text.as_str().and_then(|text| self.cursors.rows(text, call.tool, self.version, call.arguments));
                rows.filter(|rows| *rows < plan.max_rows).ok_or_else(no_cursor)?
            }
        };
        let Some(readers) = self.readers().await else {
            return match &self.pass_on {
                Some(pass_on) if call.caller.transport != Transport::Link => pass_on.pass_on(call).await,
                _ => Err(ToolError::Unavailable(NoEffect::NoRoute("the tool's database".into()))),
            };
        };
        let made = Made::new(plan.bindings.sources(), call.arguments).map_err(ToolError::Arguments)?;
        let confined = Arc::new(match &plan.rights {
            Some(rights) => Confined::new(rights.clone(), plan.defines.clone(), Meter::new()),
            None => Confined::noting(plan.defines.clone(), Meter::new()),
        });
        let _waiting = Waiting(confined.clone());
        let (plan, guard, max_bytes) = (plan.clone(), confined.clone(), call.max_bytes);
        let work = move |connection: &Connection| plan.page(connection, &guard, &made, skip, max_bytes);
        let Ok(Ok(_turn)) = timeout_at(call.until.into(), self.at_once.acquire()).await else {
            return Err(ToolError::Deadline { after: call.until.saturating_duration_since(began), undone: true });
        };
        let page = readers.read_guarded(call.until, confined.clone(), work).await;
        let page = page
            .map_err(|error| Circumstances { call: &call, began, confined: &confined, value_bytes: self.plan.value_bytes }.read(error))?;
        Ok(self.output(&call, page, skip))
    }

    async fn readers(&self) -> Option<Readers> {
        match self.shelf.readers(&self.database).await {
            Ok(readers) => Some(readers),
            Err(_) => self.shelf.readers(self.replica.as_deref()?).await.ok(),
        }
    }

    fn output(&self, call: &Call<'_>, page: Page, skip: u64) -> Output {
        match self.plan.format {
            // A result that has a structure is an object, in every version of MCP before 2026-07-28: no row is text alone.
            Format::Object => match page.rows.into_iter().next() {
                Some(row) => Output::json(row),
                None => Output { structured: None, content: vec![ContentBlock::text("null")] },
            },
            Format::Array => {
                let given = skip + page.rows.len() as u64;
                let mut result = JsonObject::new();
                result.insert("columns".into(), page.columns.names().into());
                result.insert("rows".into(), Value::Array(page.rows));
                if page.more && given >= self.plan.max_rows {
                    result.insert("truncated".into(), true.into());
                } else if page.more {
                    result.insert("next".into(), self.cursors.text(given, call.tool, self.version, call.arguments).into());
                }
                Output::json(Value::Object(result))
            }
        }
    }
}

impl Plan {
    fn page(&self, connection: &Connection, confined: &Confined, made: &Made, skip: u64, max_bytes: usize) -> Result<Page, Trouble> {
        let _limits = Limits::put(connection, self.value_bytes)?;
        if self.rights.is_none() {
            // Prepared, so that SQLite says what it touches, and not run.
            connection.prepare(&self.sql)?;
            return Err(Trouble::Unlisted(confined.config()));
        }
        unambiguous(connection, confined)?;
        let mut statement = connection.prepare_cached(&self.sql)?;
        let page = self.rows(&mut statement, made, skip, max_bytes);
        if page.is_err() {
            // Whatever it was, it is not kept for the next.
            statement.discard();
        }
        page
    }

    fn rows(&self, statement: &mut Prepared<'_>, made: &Made, skip: u64, max_bytes: usize) -> Result<Page, Trouble> {
        if !statement.readonly() || statement.is_explain() != 0 {
            return Err(Trouble::Writes);
        }
        self.bindings.bind(statement, made)?;
        let most = match self.format {
            Format::Array => self.page_rows.min(self.max_rows.saturating_sub(skip)),
            Format::Object => 1,
        };
        let mut page = Page { columns: Columns::default(), rows: Vec::new(), more: false };
        let mut rows = statement.raw_query();
        for _ in 0..skip {
            if rows.next()?.is_none() {
                break;
            }
        }
        let mut left = None;
        while let Some(row) = rows.next()? {
            // Not before the first row: only then has a statement that was kept been prepared for the schema of today.
            let left = left.get_or_insert_with(|| {
                page.columns = Columns::new(row.as_ref().column_names());
                max_bytes.saturating_sub(AROUND + size(&json!(page.columns.names())))
            });
            if page.rows.len() as u64 == most {
                page.more = true;
                break;
            }
            let row = Value::Object(page.columns.object(row)?);
            // And its comma.
            let bytes = size(&row) + 1;
            if bytes > *left {
                if page.rows.is_empty() {
                    return Err(Trouble::RowTooLarge);
                }
                page.more = true;
                break;
            }
            *left -= bytes;
            page.rows.push(row);
        }
        drop(rows);
        if left.is_none() {
            page.columns = Columns::new(statement.column_names());
        }
        Ok(page)
    }
}

/// A name that the statement defines is read without being listed: so nothing that is there may have it.
pub(super) fn unambiguous(connection: &Connection, confined: &Confined) -> Result<(), Trouble> {
    let mut names = confined.unlisted().peekable();
    if names.peek().is_none() {
        return Ok(());
    }
    confined.own(|| {
        let mut known =
            connection.prepare_cached("SELECT 1 FROM main.sqlite_schema WHERE name = ?1 COLLATE NOCASE AND type IN ('table', 'view')")?;
        for name in names {
            if known.exists([name])? {
                return Err(Trouble::Ambiguous(name.into()));
            }
        }
        Ok(())
    })
}

/// The bytes of a value as JSON.
pub(super) fn size(value: &Value) -> usize {
    struct Count(usize);
    impl io::Write for Count {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    // What is counted only cannot fail.
    let _ = serde_json::to_writer(&mut count, value);
    count.0
}

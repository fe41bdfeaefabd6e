//! Whether a row condition may decide what is published.
//!
//! SQLite's own parser and authorizer are the judges, in a database in memory that holds nothing but an empty copy of the
//! table's columns: nothing that a condition says can touch the real file, and no function but SQLite's own is known there. A
//! condition is prepared in two forms and never run:
//!
//! 1. between parentheses in a `SELECT`, with an authorizer that permits the one table's columns and the functions in
//!    [`FUNCTIONS`]; this gives the reasons that an operator reads;
//! 2. bare, as the `WHERE` of a partial index, where SQLite's grammar permits one expression and then the end, and the resolver
//!    permits no subquery, parameter or non-deterministic function. `1) AND (0` has no parentheses to close here, and
//!    `1 LIMIT 1` nothing to follow.
//!
//! Comments are switched off in the tokenizer (`SQLITE_DBCONFIG_ENABLE_COMMENTS`), so that none can swallow what a
//! statement says behind the condition; within string literals everything is only text. What the parser itself drops, as in
//! `0 AND (SELECT …)` and `… IN ()`, is not judged, because it is not there when the condition runs either.
//!
//! A condition that is accepted gives the same answer for the same row whenever it is asked, and does not fail for any row
//! (short of values near SQLite's limit of 1 GB; of `LIKE`/`GLOB` patterns of more than 50,000 bytes and escapes that are not one
//! letter, when those come from a column; and of `VIRTUAL` generated columns, whose expression the table's author answers for):
//! one row that fails would stop the publication of all.

use std::sync::Arc;

use parking_lot::Mutex;
use rusqlite::{
    Connection,
    config::DbConfig,
    hooks::{AuthAction, AuthContext, Authorization},
    limits::Limit,
};

use super::{catalog::Shape, ddl::quote};

/// Longest condition, in bytes: room for an `IN` with a thousand numbers. It is parsed again whenever the schema changes, and is
/// a part of every statement that reads the table; a longer list belongs in a column.
pub(super) const MAX_CONDITION: usize = 8 << 10;
/// Deepest expression; a chain of 200 `OR`s is that deep. SQLite's own bound is 1,000, which leaves room for what we add.
const MAX_DEPTH: i32 = 200;

/// The functions that a condition may call: each gives the same answer for the same values, looks at nothing else, and
/// fails for none. Anything SQLite adds later stays out until it is listed.
const FUNCTIONS: [&str; 30] = [
    "char",
    "coalesce",
    "concat",
    "concat_ws",
    "glob",
    "hex",
    "if",
    "ifnull",
    "iif",
    "instr",
    "length",
    "like",
    "likelihood",
    "likely",
    "lower",
    "ltrim",
    "max",
    "min",
    "nullif",
    "octet_length",
    "round",
    "rtrim",
    "sign",
    "substr",
    "substring",
    "trim",
    "typeof",
    "unicode",
    "unlikely",
    "upper",
];

/// Why a condition is refused, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub what: String,
    pub fix: String,
}

impl Refusal {
    fn new(what: impl Into<String>, fix: impl Into<String>) -> Refusal {
        Refusal { what: what.into(), fix: fix.into() }
    }
}

/// What the authorizer saw while a condition was prepared.
#[derive(Debug, Default)]
struct Seen {
    selects: u32,
    refusal: Option<Refusal>,
}

/// Judges `condition` over the columns of `shape`.
///
/// The outer error is SQLite's (no memory for the scratch database), the inner one the condition's.
pub(super) fn judge(shape: &Shape, condition: &str) -> rusqlite::Result<Result<(), Refusal>> {
    if let Err(refusal) = preliminary(condition) {
        return Ok(Err(refusal));
    }
    let mut scratch = scratch(shape)?;
    let table = quote(&shape.name);

    let seen = Arc::new(Mutex::new(Seen::default()));
    let names: Vec<String> = shape.columns.iter().map(|column| column.name.clone()).collect();
    let of = shape.name.clone();
    let rowid_is_a_column = shape.key.is_integer();
    let watch = Arc::clone(&seen);
    scratch.authorizer(Some(move |context: AuthContext<'_>| {
        let mut seen = watch.lock();
        let refusal = match context.action {
            AuthAction::Select => {
                seen.selects += 1;
                (seen.selects > 1).then(subquery)
            }
            AuthAction::Read { table_name, column_name } => {
                let known = column_name.is_empty() || names.iter().any(|name| name == column_name);
                if table_name != of {
                    Some(subquery())
                } else if known || rowid_is_a_column {
                    None
                } else {
                    Some(Refusal::new(
                        "it reads the rowid, which VACUUM may renumber",
                        "give the table an INTEGER PRIMARY KEY, or compare a column",
                    ))
                }
            }
            AuthAction::Function { function_name } => function(function_name),
            _ => Some(subquery()),
        };
        match refusal {
            None => Authorization::Allow,
            Some(refusal) => {
                seen.refusal.get_or_insert(refusal);
                Authorization::Deny
            }
        }
    }))?;
    let asked = scratch.prepare(&format!("SELECT 1 FROM {table} WHERE ({condition}) IS TRUE")).map(|it| it.parameter_count());
    scratch.authorizer(None::<fn(AuthContext<'_>) -> Authorization>)?;
    let refusal = seen.lock().refusal.take();
    Ok(match (refusal, asked) {
        (Some(refusal), _) => Err(refusal),
        (None, Err(error)) => Err(explain(shape, &error)),
        (None, Ok(1..)) => Err(Refusal::new("it has a parameter", "write the value itself into it")),
        (None, Ok(0)) => alone(&scratch, shape, condition),
    })
}

/// What needs no parser.
fn preliminary(condition: &str) -> Result<(), Refusal> {
    if condition.len() > MAX_CONDITION {
        let what = format!("it is {} bytes long, more than {MAX_CONDITION}", condition.len());
        return Err(Refusal::new(what, "keep a column that says whether a row is public, and compare that"));
    }
    if condition.trim().is_empty() {
        return Err(Refusal::new("it is empty", "list the table under full-tables to publish every row"));
    }
    // SQLite stops reading there, and everything behind would go unseen.
    if condition.contains('\0') {
        return Err(Refusal::new("it contains a NUL character", "remove it"));
    }
    Ok(())
}

/// The second form: one expression, then the end.
fn alone(scratch: &Connection, shape: &Shape, condition: &str) -> Result<(), Refusal> {
    let Some(first) = shape.columns.first() else {
        return Err(Refusal::new("the table has no column", "leave it out"));
    };
    let sql = format!("CREATE INDEX \"_horos_probe\" ON {} ({}) WHERE {condition}", quote(&shape.name), quote(&first.name));
    match scratch.prepare(&sql) {
        Ok(_) => Ok(()),
        Err(rusqlite::Error::SqlInputError { msg, .. }) if msg.contains("syntax error") => {
            Err(Refusal::new(format!("it is not one expression by itself ({msg})"), "write a single condition with balanced parentheses"))
        }
        Err(error) => Err(explain(shape, &error)),
    }
}

fn subquery() -> Refusal {
    Refusal::new(
        "it looks beyond its own row: a subquery or another table",
        "keep what decides in a column of the table itself (a trigger or the writing program can keep it up to date)",
    )
}

fn function(name: &str) -> Option<Refusal> {
    let lower = name.to_ascii_lowercase();
    if FUNCTIONS.contains(&lower.as_str()) {
        return None;
    }
    Some(match lower.as_str() {
        "date" | "time" | "datetime" | "julianday" | "unixepoch" | "strftime" | "timediff" | "current_date" | "current_time"
        | "current_timestamp" => Refusal::new(
            format!("it calls {lower}(), which may mean the present moment or the local time zone"),
            "compare the stored text or number with a literal: rows do not leave the filter by the clock",
        ),
        "->" | "->>" => json(&lower),
        name if name.starts_with("json") => json(name),
        "abs" | "format" | "printf" | "replace" | "unistr" | "unistr_quote" | "zeroblob" => Refusal::new(
            format!("it calls {lower}(), which fails for some values"),
            "one such row would stop the publication of all: keep the outcome in a column and compare that",
        ),
        _ => Refusal::new(
            format!("it calls {name}(), which is not certain to give the same answer for the same row"),
            format!("use only operators and {}", FUNCTIONS.join(", ")),
        ),
    })
}

fn json(name: &str) -> Refusal {
    Refusal::new(
        format!("it uses {name}, which fails for a row that holds no JSON"),
        "one such row would stop the publication of all: keep the value in a stored generated column and compare that",
    )
}

fn explain(shape: &Shape, error: &rusqlite::Error) -> Refusal {
    let message = match error {
        rusqlite::Error::SqlInputError { msg, .. } => msg.clone(),
        rusqlite::Error::SqliteFailure(_, Some(message)) => message.clone(),
        rusqlite::Error::MultipleStatement => "a second statement follows".to_owned(),
        other => other.to_string(),
    };
    // What we wrote behind the condition is not the operator's concern.
    let message = message.replace(") IS TRUE", "");
    if ["--", "/*"].iter().any(|opening| message.starts_with(&format!("unrecognized token: \"{opening}"))) {
        let fix = "leave it out; `--` and `/*` are fine within a string literal";
        return Refusal::new("it has a comment, which could swallow what follows the condition", fix);
    }
    // The scratch database has no other table, so every one that exists is missed there too.
    if message.starts_with("no such table: ") {
        return subquery();
    }
    let columns = shape.columns.iter().map(|column| column.name.as_str());
    let fix = match message.strip_prefix("no such column: ") {
        Some(name) => {
            // A misspelt name in double quotes comes with advice about string literals behind it.
            let name = name.split_once(" - ").map_or(name, |(name, _)| name);
            let name = name.rsplit('.').next().unwrap_or(name).trim_matches('"');
            super::problem::suggest(name, columns, "compare columns of this table; text stands between single quotes")
        }
        None => "write one SQL condition over the table's own columns, without `;` or comments".to_owned(),
    };
    Refusal::new(message, fix)
}

/// An empty copy of the table's columns, and nothing else.
fn scratch(shape: &Shape) -> rusqlite::Result<Connection> {
    let connection = Connection::open_in_memory()?;
    // A misspelt "column" is an error and not a string that is the same for every row.
    for (switch, on) in [
        (DbConfig::SQLITE_DBCONFIG_DQS_DML, false),
        (DbConfig::SQLITE_DBCONFIG_DQS_DDL, false),
        (DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true),
        (DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false),
        (DbConfig::SQLITE_DBCONFIG_ENABLE_COMMENTS, false),
    ] {
        connection.set_db_config(switch, on)?;
    }
    let columns: Vec<String> = shape
        .columns
        .iter()
        .map(|column| {
            let collation = if column.has_builtin_collation() { format!(" COLLATE {}", column.collation) } else { String::new() };
            format!("{} {}{collation}", quote(&column.name), column.affinity.type_name())
        })
        .collect();
    connection.execute_batch(&format!("CREATE TABLE {} ({})", quote(&shape.name), columns.join(", ")))?;
    // After the table: its statement grows with the schema, the condition's do not.
    connection.set_limit(Limit::SQLITE_LIMIT_EXPR_DEPTH, MAX_DEPTH)?;
    connection.set_limit(Limit::SQLITE_LIMIT_ATTACHED, 0)?;
    Ok(connection)
}

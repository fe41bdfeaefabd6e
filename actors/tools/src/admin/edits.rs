//! Edits of tools: written down by the table itself, with who makes them and why, and taken back to the byte.

use horos_store::rusqlite::{self, Connection, OptionalExtension as _, params};
use horos_wire::protocol::registry::{
    DeleteTool, Expected, MAX_TOOLS, PAGE, PAGE_BYTES, RegistryError, RollbackTool, SetTool, ToolEdit, ToolEdited, ToolHistory,
    ToolHistoryPage, ToolText, TurnTool,
};

use super::{
    Editor, Fault, invalid,
    rows::{self, OWN, VERSION, VERSIONS, VERSIONS_OF, kept, text},
    tools::find,
};
use crate::{Problem, Registry, Row};

/// The columns that an edit writes; in both tables under the same names.
const COLUMNS: &str = "tool_category, title, description, input_schema, output_schema, handler_type, handler_config, mode, destructive, \
     idempotent, group_tag, timeout_ms, is_active";

fn expect(name: &str, found: Option<i64>, expected: Option<Expected>) -> Result<(), RegistryError> {
    let as_expected = match expected {
        None => true,
        Some(Expected::Absent) => found.is_none(),
        Some(Expected::Version(version)) => found == Some(version),
    };
    if as_expected { Ok(()) } else { Err(RegistryError::Conflict { name: name.into(), found }) }
}

/// The version of a row, and that it is there.
fn version(tx: &Connection, name: &str) -> rusqlite::Result<Option<i64>> {
    tx.query_row("SELECT version FROM mcp_tools_registry WHERE tool_name = ?1", [name], |row| {
        Ok(row.get_ref(0)?.as_i64().unwrap_or_default())
    })
    .optional()
}

/// Counted in the transaction that adds one, so that two at once do not pass together.
pub(super) fn room(tx: &Connection) -> Result<(), Fault> {
    let count: u32 = tx.query_row("SELECT count(*) FROM mcp_tools_registry", [], |row| row.get(0))?;
    if count >= MAX_TOOLS { Err(RegistryError::TooMany.into()) } else { Ok(()) }
}

/// Whether `row` may be written.
///
/// # Errors
/// Everything that is wrong with it.
pub(super) fn check(registry: &Registry, row: &Row) -> Result<(), RegistryError> {
    let wrong: Vec<Problem> = rows::problems(registry, row);
    if wrong.is_empty() { Ok(()) } else { Err(RegistryError::Wrong(wrong.into_iter().map(Into::into).collect())) }
}

/// Writes a row, and with it who and why.
pub(super) fn put(tx: &Connection, name: &str, is_there: bool, text: &ToolText, by: Editor<'_>) -> Result<(), Fault> {
    // Not by REPLACE, and not as an upsert: each has its own idea of which triggers fire.
    let sql = if is_there {
        format!(
            "UPDATE mcp_tools_registry SET ({COLUMNS}, changed_by, change_reason)
             = (?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16) WHERE tool_name = ?1"
        )
    } else {
        room(tx)?;
        format!(
            "INSERT INTO mcp_tools_registry (tool_name, {COLUMNS}, changed_by, change_reason, created_by)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?15)"
        )
    };
    tx.prepare_cached(&sql)?.execute(params![
        name,
        text.category,
        text.title,
        text.description,
        text.input_schema,
        text.output_schema,
        text.handler_type,
        text.handler_config,
        text.mode,
        text.destructive,
        text.idempotent,
        text.group,
        text.timeout_ms,
        text.active,
        by.who,
        by.why,
    ])?;
    Ok(())
}

fn edited(tx: &Connection, name: &str, registry: &Registry) -> Result<ToolEdited, Fault> {
    let tool = find(tx, name)?.map(|kept| kept.shown(registry));
    let version = tool.as_ref().map_or(0, |tool| tool.version);
    Ok(ToolEdited { version, tool })
}

/// Makes or replaces a tool. It has been checked.
pub(super) fn set(tx: &Connection, ask: &SetTool, by: &str, registry: &Registry) -> Result<ToolEdited, Fault> {
    let found = version(tx, &ask.name)?;
    expect(&ask.name, found, ask.expected)?;
    put(tx, &ask.name, found.is_some(), &ask.text, Editor { who: by, why: ask.why.as_deref() })?;
    edited(tx, &ask.name, registry)
}

/// Deletes a tool; the deletion is a version of it.
pub(super) fn delete(tx: &Connection, ask: &DeleteTool, by: &str) -> Result<ToolEdited, Fault> {
    let Some(found) = version(tx, &ask.name)? else {
        return Err(match ask.expected {
            None => RegistryError::NoSuchTool(ask.name.clone()),
            Some(_) => RegistryError::Conflict { name: ask.name.clone(), found: None },
        }
        .into());
    };
    expect(&ask.name, Some(found), ask.expected.map(Expected::Version))?;
    tx.execute("DELETE FROM mcp_tools_registry WHERE tool_name = ?1", [&ask.name])?;
    // There is no row any more that could say who and why.
    let last = "(SELECT max(history_id) FROM mcp_tools_history WHERE tool_name = ?1 AND what = 'deleted')";
    tx.execute(
        &format!("UPDATE mcp_tools_history SET changed_by = ?2, change_reason = coalesce(?3, change_reason) WHERE history_id = {last}"),
        params![ask.name, by, ask.why],
    )?;
    let version =
        tx.query_row(&format!("SELECT version FROM mcp_tools_history WHERE history_id = {last}"), [&ask.name], |row| row.get(0))?;
    Ok(ToolEdited { version, tool: None })
}

/// Has a tool served again, or no longer.
pub(super) fn turn(tx: &Connection, ask: &TurnTool, by: &str, registry: &Registry) -> Result<ToolEdited, Fault> {
    let Some(there) = find(tx, &ask.name)? else { return Err(RegistryError::NoSuchTool(ask.name.clone()).into()) };
    expect(&ask.name, Some(there.row.version), ask.expected.map(Expected::Version))?;
    if ask.active {
        check(registry, &there.row)?;
    }
    tx.execute(
        "UPDATE mcp_tools_registry SET is_active = ?2, changed_by = ?3, change_reason = ?4 WHERE tool_name = ?1",
        params![ask.name, ask.active, by, ask.why],
    )?;
    edited(tx, &ask.name, registry)
}

/// Puts a tool back to one of its versions, whatever bytes that had.
pub(super) fn rollback(tx: &Connection, ask: &RollbackTool, by: &str, registry: &Registry) -> Result<ToolEdited, Fault> {
    let found = version(tx, &ask.name)?;
    expect(&ask.name, found, ask.expected)?;
    let was = tx
        .query_row(VERSION, params![ask.name, ask.to], |row| {
            Ok((kept(row)?, row.get::<_, i64>(OWN)?, row.get_ref(OWN + 1)?.as_i64() == Ok(0), text(row, OWN + 2)?))
        })
        .optional()?;
    let Some((was, id, whole, what)) = was else {
        return Err(RegistryError::NoSuchVersion { name: ask.name.clone(), version: ask.to }.into());
    };
    if what.as_deref() == Some("deleted") {
        return Err(invalid(format!("version {} is the tool's deletion; `horos tools remove` deletes it", ask.to)).into());
    }
    if !whole {
        return Err(invalid("it was too large then to be kept with its version, so it cannot be brought back").into());
    }
    // What was wrong then and never served must not take the place of what does now.
    check(registry, &was.row)?;
    // From row to row, so that not a byte and no type of it is another. Versions of the Go system's history have not all columns.
    let columns = COLUMNS
        .replace("destructive", "coalesce(destructive, 0)")
        .replace("idempotent", "coalesce(idempotent, 0)")
        .replace("is_active", "coalesce(is_active, 1)");
    let from = "FROM mcp_tools_history WHERE history_id = ?2";
    if found.is_some() {
        let sql = format!(
            "UPDATE mcp_tools_registry SET ({COLUMNS}, changed_by, change_reason) = (SELECT {columns}, ?3, ?4 {from}) WHERE tool_name = ?1"
        );
        tx.execute(&sql, params![ask.name, id, by, ask.why])?;
    } else {
        room(tx)?;
        let sql = format!(
            "INSERT INTO mcp_tools_registry (tool_name, {COLUMNS}, changed_by, change_reason, created_by, created_at)
             SELECT ?1, {columns}, ?3, ?4, coalesce(created_by, ?3), coalesce(created_at, unixepoch()) {from}"
        );
        tx.execute(&sql, params![ask.name, id, by, ask.why])?;
    }
    edited(tx, &ask.name, registry)
}

fn edit(row: &rusqlite::Row<'_>) -> rusqlite::Result<ToolEdit> {
    let must = |column| text(row, column).map(Option::unwrap_or_default);
    let it = kept(row)?;
    Ok(ToolEdit {
        edit: row.get(OWN)?,
        name: it.row.name.clone(),
        version: it.row.version,
        at: row.get_ref(OWN + 4)?.as_i64().unwrap_or_default(),
        who: must(OWN + 3)?,
        why: must(OWN + 5)?,
        what: must(OWN + 2)?,
        text: it.text(),
        cut: row.get_ref(OWN + 1)?.as_i64() != Ok(0),
    })
}

/// A page of edits, the newest first.
pub(super) fn history(tables: &Connection, ask: &ToolHistory) -> rusqlite::Result<ToolHistoryPage> {
    let mut statement = tables.prepare_cached(if ask.name.is_some() { VERSIONS_OF } else { VERSIONS })?;
    let mut rows = statement.query(params![ask.before.unwrap_or(i64::MAX), ask.name])?;
    let limit = usize::try_from(ask.limit).unwrap_or(PAGE).clamp(1, PAGE);
    let (mut edits, mut bytes) = (Vec::<ToolEdit>::new(), 0);
    while let Some(row) = rows.next()? {
        if edits.len() == limit || bytes >= PAGE_BYTES {
            let next = edits.last().map(|edit| edit.edit);
            return Ok(ToolHistoryPage { edits, next });
        }
        let it = edit(row)?;
        bytes += it.name.len() + it.why.len() + rows::size(&it.text);
        edits.push(it);
    }
    Ok(ToolHistoryPage { edits, next: None })
}

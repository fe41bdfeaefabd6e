//! Rules in the owner's file: who may list and call which tools.

use horos_store::rusqlite::{self, Connection, Row, params, types::ValueRef};
use horos_wire::{
    Role,
    protocol::registry::{
        DropRule, Effect, ListRules, MAX_NAME, MAX_RULES, MAX_WORD, PAGE, RegistryError, RuleEdit, RuleEdited, RuleHistory,
        RuleHistoryPage, RuleList, SetRule, ToolRule,
    },
};

use super::{Editor, Fault, invalid, rows::text, schema::KEPT_EDITS};

/// Whether a rule may speak of these.
///
/// # Errors
/// What is wrong: a rule that means nobody or nothing is a slip, and one that denies by mistake would be missed.
pub(super) fn check_rule(tool: &str, role: &str) -> Result<(), RegistryError> {
    let name = tool.strip_suffix('*').unwrap_or(tool);
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    if tool.is_empty() || name.len() > MAX_NAME || !name.bytes().all(plain) {
        return Err(invalid(format!("a rule names a tool, 1 to {MAX_NAME} of a-z, A-Z, 0-9, _, - and ., or the beginning of names and *")));
    }
    if role.is_empty() || role.len() > MAX_WORD || role.contains(char::is_control) {
        return Err(invalid(format!("a role is 1 to {MAX_WORD} bytes on one line")));
    }
    match role.split_once(':') {
        Some(("node", node)) if node.parse::<Role>().is_err() => {
            let roles = Role::ALL.map(Role::as_str).join(", ");
            Err(invalid(format!("there are no nodes and no people of the role {node:?}; there are {roles}")))
        }
        Some(("node" | "key" | "user" | "scope", "")) => Err(invalid(format!("{role:?} names nobody"))),
        _ => Ok(()),
    }
}

fn rule(row: &Row<'_>) -> rusqlite::Result<ToolRule> {
    let effect = match row.get_ref(3)? {
        ValueRef::Text(b"allow") => Some(Effect::Allow),
        ValueRef::Text(b"deny") => Some(Effect::Deny),
        _ => None,
    };
    Ok(ToolRule {
        id: row.get(0)?,
        tool: text(row, 1)?.unwrap_or_default(),
        role: text(row, 2)?.unwrap_or_default(),
        effect,
        created_at: row.get_ref(4)?.as_i64().unwrap_or_default(),
    })
}

const COLUMNS: &str = "SELECT policy_id, substr(tool_name, 1, 1024), substr(role, 1, 1024), substr(effect, 1, 16), created_at
     FROM mcp_tool_policy";

/// Does `work` and signs what the tables have written down of it. Gives the number of its last edit.
fn sign(tx: &Connection, by: Editor<'_>, subject: (&str, &str), work: impl FnOnce(&Connection) -> Result<(), Fault>) -> Result<i64, Fault> {
    let newest = "SELECT coalesce(max(edit), 0) FROM mcp_policy_history";
    let before: i64 = tx.query_row(newest, [], |row| row.get(0))?;
    work(tx)?;
    let why = by.why.unwrap_or_default();
    if tx.execute("UPDATE mcp_policy_history SET who = ?1, why = ?2 WHERE edit > ?3", params![by.who, why, before])? == 0 {
        // An edit that changes nothing is one all the same.
        tx.execute(
            "INSERT INTO mcp_policy_history (at, who, why, tool_name, role, effect_before, effect_after)
             SELECT unixepoch(), ?1, ?2, ?3, ?4, effect, effect FROM mcp_tool_policy WHERE tool_name = ?3 AND role = ?4 LIMIT 1",
            params![by.who, why, subject.0, subject.1],
        )?;
        tx.execute("DELETE FROM mcp_policy_history WHERE edit <= (SELECT max(edit) FROM mcp_policy_history) - ?1", [KEPT_EDITS])?;
    }
    Ok(tx.query_row(newest, [], |row| row.get(0))?)
}

/// Tools that the rule speaks of, among those in the table.
fn matches(tx: &Connection, tool: &str) -> rusqlite::Result<u32> {
    match tool.strip_suffix('*') {
        // Not by LIKE, to which `_` is any letter.
        Some(beginning) => {
            tx.query_row("SELECT count(*) FROM mcp_tools_registry WHERE substr(tool_name, 1, length(?1)) = ?1", [beginning], |row| {
                row.get(0)
            })
        }
        None => tx.query_row("SELECT count(*) FROM mcp_tools_registry WHERE tool_name = ?1", [tool], |row| row.get(0)),
    }
}

/// Makes the one rule that there is for a tool and a role. They have been checked.
pub(super) fn set(tx: &Connection, ask: &SetRule, by: &str) -> Result<RuleEdited, Fault> {
    let SetRule { tool, role, effect, why } = ask;
    let edit = sign(tx, Editor { who: by, why: why.as_deref() }, (tool, role), |tx| put(tx, tool, role, *effect).map(drop))?;
    let sql = format!("{COLUMNS} WHERE tool_name = ?1 AND role = ?2 ORDER BY policy_id LIMIT 1");
    let rule = tx.query_row(&sql, [tool, role], rule)?;
    Ok(RuleEdited { edit, rule: Some(rule), matches: matches(tx, tool)? })
}

/// The rule, and no other of the same tool and role. Says whether there was none.
pub(super) fn put(tx: &Connection, tool: &str, role: &str, effect: Effect) -> Result<bool, Fault> {
    let first: Option<i64> =
        tx.query_row("SELECT min(policy_id) FROM mcp_tool_policy WHERE tool_name = ?1 AND role = ?2", [tool, role], |row| row.get(0))?;
    if let Some(first) = first {
        tx.execute("DELETE FROM mcp_tool_policy WHERE tool_name = ?1 AND role = ?2 AND policy_id <> ?3", params![tool, role, first])?;
        tx.execute("UPDATE mcp_tool_policy SET effect = ?2 WHERE policy_id = ?1 AND effect IS NOT ?2", params![first, effect.as_str()])?;
        return Ok(false);
    }
    let count: u32 = tx.query_row("SELECT count(*) FROM mcp_tool_policy", [], |row| row.get(0))?;
    if count >= MAX_RULES {
        return Err(RegistryError::TooManyRules.into());
    }
    tx.execute("INSERT INTO mcp_tool_policy (tool_name, role, effect) VALUES (?1, ?2, ?3)", [tool, role, effect.as_str()])?;
    Ok(true)
}

/// As [`put`] does it, signed.
pub(super) fn import(tx: &Connection, tool: &str, role: &str, effect: Effect, by: Editor<'_>) -> Result<bool, Fault> {
    let mut new = false;
    sign(tx, by, (tool, role), |tx| {
        new = put(tx, tool, role, effect)?;
        Ok(())
    })?;
    Ok(new)
}

/// Takes away whatever rules there are for a tool and a role, also such as could not be made here.
pub(super) fn remove(tx: &Connection, ask: &DropRule, by: &str) -> Result<RuleEdited, Fault> {
    let DropRule { tool, role, why } = ask;
    let mut gone = 0;
    let edit = sign(tx, Editor { who: by, why: why.as_deref() }, (tool, role), |tx| {
        gone = tx.execute("DELETE FROM mcp_tool_policy WHERE tool_name = ?1 AND role = ?2", [tool, role])?;
        if gone == 0 { Err(RegistryError::NoSuchRule { tool: tool.clone(), role: role.clone() }.into()) } else { Ok(()) }
    })?;
    Ok(RuleEdited { edit, rule: None, matches: matches(tx, tool)? })
}

/// A page of rules.
pub(super) fn list(tables: &Connection, ask: &ListRules) -> rusqlite::Result<RuleList> {
    let sql = format!("{COLUMNS} WHERE policy_id > ?1 ORDER BY policy_id LIMIT ?2");
    let mut statement = tables.prepare_cached(&sql)?;
    let rows = statement.query_map(params![ask.after.unwrap_or(i64::MIN), PAGE as i64 + 1], rule)?;
    let mut rules = rows.collect::<rusqlite::Result<Vec<_>>>()?;
    let more = rules.len() > PAGE;
    rules.truncate(PAGE);
    let next = rules.last().filter(|_| more).map(|last| last.id);
    Ok(RuleList { rules, next })
}

/// A page of edits, the newest first.
pub(super) fn history(tables: &Connection, ask: &RuleHistory) -> rusqlite::Result<RuleHistoryPage> {
    let limit = usize::try_from(ask.limit).unwrap_or(PAGE).clamp(1, PAGE);
    let mut statement = tables.prepare_cached(
        "SELECT edit, at, who, why, tool_name, role, effect_before, effect_after FROM mcp_policy_history WHERE edit < ?1
         ORDER BY edit DESC LIMIT ?2",
    )?;
    let rows = statement.query_map(params![ask.before.unwrap_or(i64::MAX), limit as i64 + 1], |row| {
        let must = |column| text(row, column).map(Option::unwrap_or_default);
        Ok(RuleEdit {
            edit: row.get(0)?,
            at: row.get_ref(1)?.as_i64().unwrap_or_default(),
            who: must(2)?,
            why: must(3)?,
            tool: must(4)?,
            role: must(5)?,
            before: text(row, 6)?,
            after: text(row, 7)?,
        })
    })?;
    let mut edits = rows.collect::<rusqlite::Result<Vec<_>>>()?;
    let more = edits.len() > limit;
    edits.truncate(limit);
    let next = edits.last().filter(|_| more).map(|last| last.edit);
    Ok(RuleHistoryPage { edits, next })
}

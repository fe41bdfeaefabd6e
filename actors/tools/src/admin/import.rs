//! Rows and rules of another registry, taken into the owner's.

use horos_store::rusqlite::Connection;
use horos_wire::protocol::registry::{
    ImportTools, ImportedTool, LeftTool, MAX_JSON, MAX_NAME, PAGE, Problem, RegistryError, ToolsImported, WrongTool,
};

use super::{
    Editor, Fault,
    edits::{put, room},
    invalid,
    rows::{self, row},
    rules,
    tools::find,
};
use crate::Registry;

/// Whether so many may come at once.
pub(super) fn check_import(ask: &ImportTools) -> Result<(), RegistryError> {
    if ask.tools.len() + ask.rules.len() > PAGE {
        return Err(invalid(format!("at most {PAGE} rows and rules are imported at a time")));
    }
    Ok(())
}

/// What makes a row impossible to keep, as opposed to wrong.
fn too_large(it: &ImportedTool) -> Option<&'static str> {
    if it.name.is_empty() {
        Some("it has no name")
    } else if it.name.len() > MAX_NAME {
        Some("its name is too long")
    } else if rows::size(&it.text) > 4 * MAX_JSON {
        Some("it is larger than a tool may be")
    } else {
        None
    }
}

/// Takes in `ask`'s rows and rules, all in the transaction or none.
pub(super) fn import(tx: &Connection, ask: &ImportTools, by: &str, registry: &Registry) -> Result<ToolsImported, Fault> {
    let mut done = ToolsImported::default();
    let by = Editor { who: by, why: ask.why.as_deref() };
    for it in &ask.tools {
        let left = |why: &str| LeftTool { name: it.name.clone(), why: why.into() };
        if let Some(why) = too_large(it) {
            done.left.push(left(why));
            continue;
        }
        let there = find(tx, &it.name)?;
        let problems: Vec<Problem> = rows::problems(registry, &row(&it.name, &it.text)).into_iter().map(Into::into).collect();
        match &there {
            Some(there) if there.text() == it.text => {
                done.same.push(it.name.clone());
                continue;
            }
            Some(_) if !ask.replace => {
                done.left.push(left("there is another tool of that name"));
                continue;
            }
            Some(_) if !problems.is_empty() => {
                done.left.push(left("it is wrong, and would replace another"));
                done.wrong.push(WrongTool { name: it.name.clone(), problems });
                continue;
            }
            Some(_) => {}
            None => match room(tx) {
                Ok(()) => {}
                Err(Fault::Refused(full)) => {
                    done.left.push(left(&full.to_string()));
                    continue;
                }
                Err(fault) => return Err(fault),
            },
        }
        put(tx, &it.name, there.is_some(), &it.text, by)?;
        if there.is_some() { &mut done.replaced } else { &mut done.added }.push(it.name.clone());
        if !problems.is_empty() {
            done.wrong.push(WrongTool { name: it.name.clone(), problems });
        }
    }
    for rule in &ask.rules {
        // It means nothing or nobody here, so that nobody is let in or kept out who should not be.
        if let Err(why) = rules::check_rule(&rule.tool, &rule.role) {
            let name: String = format!("the rule {} {} {}", rule.effect, rule.tool, rule.role).chars().take(2 * MAX_NAME).collect();
            done.left.push(LeftTool { name: name.into(), why: why.to_string().into() });
            continue;
        }
        done.rules += u32::from(rules::import(tx, &rule.tool, &rule.role, rule.effect, by)?);
    }
    // Where they come from, what nobody is named for is for everybody; here it is for nobody, and somebody should know.
    let mut allowed = tx.prepare(
        "SELECT EXISTS (SELECT 1 FROM mcp_tool_policy WHERE effect = 'allow' AND (tool_name = ?1
             OR substr(tool_name, -1) = '*' AND substr(tool_name, 1, length(tool_name) - 1) = substr(?1, 1, length(tool_name) - 1)))",
    )?;
    for name in done.added.iter().chain(&done.replaced).chain(&done.same) {
        if !allowed.query_row([name], |row| row.get::<_, bool>(0))? {
            done.closed.push(name.clone());
        }
    }
    Ok(done)
}

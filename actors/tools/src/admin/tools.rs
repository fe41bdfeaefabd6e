//! Tools in the owner's file, as they are asked for.

use horos_store::rusqlite::{self, Connection, OptionalExtension as _};
use horos_wire::protocol::registry::{GetTool, ListTools, PAGE, PAGE_BYTES, RegistryError, ToolList, ToolRow};

use super::{
    Fault, invalid,
    rows::{self, AFTER, BY_NAME, Kept, standing},
};
use crate::Registry;

/// Longest name that a row is asked for by: rows that other programs have written may have longer ones than a tool can.
const MAX_LOOKUP: usize = 4_096;

pub(super) fn find(tx: &Connection, name: &str) -> rusqlite::Result<Option<Kept>> {
    tx.query_row(BY_NAME, [name], standing).optional()
}

/// Whether a row may be asked for by this name. Any that is there may be: rows that make no sense have to be found and deleted.
pub(super) fn check_lookup(name: &str) -> Result<(), RegistryError> {
    if name.len() > MAX_LOOKUP { Err(invalid(format!("a name is at most {MAX_LOOKUP} bytes"))) } else { Ok(()) }
}

/// One row.
pub(super) fn get(tables: &Connection, ask: &GetTool, registry: &Registry) -> Result<ToolRow, Fault> {
    let found = find(tables, &ask.name)?;
    found.map(|kept| kept.shown(registry)).ok_or_else(|| RegistryError::NoSuchTool(ask.name.clone()).into())
}

/// A page of rows.
pub(super) fn list(tables: &Connection, ask: &ListTools, registry: &Registry) -> rusqlite::Result<ToolList> {
    let mut statement = tables.prepare_cached(AFTER)?;
    let mut found = statement.query([ask.after.as_deref()])?;
    let (mut tools, mut bytes) = (Vec::<ToolRow>::new(), 0);
    while let Some(row) = found.next()? {
        if tools.len() == PAGE || bytes >= PAGE_BYTES {
            let next = tools.last().map(|tool| tool.name.clone());
            return Ok(ToolList { tools, next });
        }
        // Whoever goes on behind a name that was put right would come to it again. Each node tells of it that it is wrong.
        if row.get_ref(0)?.as_str().is_err() {
            continue;
        }
        let it = standing(row)?.shown(registry);
        bytes += it.name.len() + rows::size(&it.text) + it.problems.iter().map(|problem| problem.what.len()).sum::<usize>();
        tools.push(it);
    }
    Ok(ToolList { tools, next: None })
}

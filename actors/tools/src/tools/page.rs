//! The list, page by page.

use std::ops::Bound;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

use super::{Builtin, Listed};
use crate::{Caller, Problem, Snapshot, ToolError, definition::MAX_NAME};

/// Most tools of a page: a few hundred KiB of schemas.
pub(crate) const PAGE: usize = 250;

/// A page. A cursor is the name of the last tool before it, so it means the same whatever has come or gone since.
pub(super) fn list(snapshot: &Snapshot, caller: &Caller, cursor: Option<&str>) -> Result<Listed, ToolError> {
    let after = cursor.map(name).transpose()?;
    let from = after.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
    let rest = snapshot.tools.range::<str, _>((from, Bound::Unbounded)).map(|(_, definition)| definition);
    let policy = snapshot.policy.of(caller);
    let mut visible = rest.filter(|definition| policy.permits(definition));
    // One more than a page tells whether there is another.
    let mut tools: Vec<_> = visible.by_ref().take(PAGE + 1).map(|definition| definition.tool.clone()).collect();
    let search = Builtin::Search.name();
    if after.as_deref().is_none_or(|after| after < search) && (cursor.is_some() || !tools.is_empty()) {
        let at = tools.partition_point(|tool| *tool.name < *search);
        tools.insert(at, Builtin::Search.tool());
    }
    let next = (tools.len() > PAGE).then(|| {
        tools.truncate(PAGE);
        URL_SAFE_NO_PAD.encode(&*tools[PAGE - 1].name)
    });
    Ok(Listed { tools, next })
}

fn name(cursor: &str) -> Result<String, ToolError> {
    let decoded = if cursor.len() <= 2 * MAX_NAME { URL_SAFE_NO_PAD.decode(cursor).ok() } else { None };
    let name = decoded.and_then(|bytes| String::from_utf8(bytes).ok());
    name.ok_or_else(|| ToolError::Arguments(vec![Problem::new("cursor", "give back the nextCursor of the page before, or none")]))
}

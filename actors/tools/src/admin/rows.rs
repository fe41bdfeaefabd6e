//! What stands in the owner's tables of tools.
//!
//! Nothing here fails because of what is in a row: the columns take what SQL takes, texts that are no UTF-8 are read with the replacement
//! character, and those beyond their bound are cut behind it, so that whoever checks the row finds it too long. What fails is SQLite.

use horos_store::rusqlite::{Result, Row as SqlRow, types::ValueRef};
use horos_wire::protocol::registry::{ToolRow, ToolText};

use crate::{Problem, Registry, Row, schema::KEPT_TEXT};

/// As much of a text as is looked at: one byte beyond its bound, so that it shows.
macro_rules! within {
    ($column:literal) => {
        concat!("CASE WHEN length(CAST(", $column, " AS BLOB)) > 65536 THEN substr(", $column, ", 1, 65537) ELSE ", $column, " END, ")
    };
}
const _: () = assert!(KEPT_TEXT == 65_536, "the texts above say so too");

/// The columns of a row, from the table or its history: those of [`FIRST`] on are the same in both.
macro_rules! columns {
    () => {
        concat!(
            within!("tool_name"),
            within!("tool_category"),
            within!("title"),
            within!("description"),
            within!("input_schema"),
            within!("output_schema"),
            within!("handler_type"),
            within!("handler_config"),
            within!("mode"),
            within!("group_tag"),
            within!("created_by"),
            "timeout_ms, destructive, idempotent, is_active, version"
        )
    };
}

/// One row by its name.
pub(super) const BY_NAME: &str = concat!("SELECT ", columns!(), ", updated_at, created_at FROM mcp_tools_registry WHERE tool_name = ?1");
/// Rows by their names, behind one. What has a name that is no text is no tool, and is not asked for by name either.
pub(super) const AFTER: &str = concat!(
    "SELECT ",
    columns!(),
    ", updated_at, created_at FROM mcp_tools_registry WHERE typeof(tool_name) = 'text' AND (?1 IS NULL OR tool_name > ?1) ORDER BY tool_name"
);
/// A version by tool and number; the newest, should a program have written two.
pub(super) const VERSION: &str = concat!(
    "SELECT ",
    columns!(),
    ", history_id, cut, what FROM mcp_tools_history WHERE tool_name = ?1 AND version = ?2 ORDER BY history_id DESC LIMIT 1"
);
/// Versions, the newest first.
macro_rules! versions {
    ($condition:literal) => {
        concat!(
            "SELECT ",
            columns!(),
            ", history_id, cut, what, changed_by, changed_at, change_reason FROM mcp_tools_history WHERE history_id < ?1 AND ",
            $condition,
            " ORDER BY history_id DESC"
        )
    };
}
/// Of one tool.
pub(super) const VERSIONS_OF: &str = versions!("tool_name = ?2");
/// Of all.
pub(super) const VERSIONS: &str = versions!("?2 IS NULL");

/// Where the columns of the one table begin that the other has not.
pub(super) const OWN: usize = 16;

/// A row as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Kept {
    pub(super) row: Row,
    /// What is no 0 and no 1 is taken for 0, as by whoever serves it.
    pub(super) active: bool,
    pub(super) created_by: Option<Box<str>>,
}

/// A value as text, whatever it is.
pub(super) fn text(row: &SqlRow<'_>, column: usize) -> Result<Option<Box<str>>> {
    Ok(match row.get_ref(column)? {
        ValueRef::Null => None,
        ValueRef::Integer(number) => Some(number.to_string().into()),
        ValueRef::Real(number) => Some(number.to_string().into()),
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => Some(String::from_utf8_lossy(bytes).into()),
    })
}

/// A number; what is none is one that is wrong wherever it stands.
fn number(row: &SqlRow<'_>, column: usize) -> Result<i64> {
    Ok(row.get_ref(column)?.as_i64().unwrap_or(i64::MIN))
}

pub(super) fn kept(row: &SqlRow<'_>) -> Result<Kept> {
    let must = |column| text(row, column).map(Option::unwrap_or_default);
    let timeout_ms = match row.get_ref(11)? {
        ValueRef::Null => None,
        _ => Some(number(row, 11)?),
    };
    // Versions of the Go system's history say nothing of these.
    let flag = |column| match row.get_ref(column)? {
        ValueRef::Null => Ok(0),
        _ => number(row, column),
    };
    let active = matches!(row.get_ref(14)?, ValueRef::Integer(1) | ValueRef::Null);
    Ok(Kept {
        row: Row {
            name: must(0)?,
            category: must(1)?,
            title: text(row, 2)?,
            description: must(3)?,
            input_schema: must(4)?,
            output_schema: text(row, 5)?,
            handler_type: must(6)?,
            handler_config: must(7)?,
            mode: must(8)?,
            group: must(9)?,
            timeout_ms,
            destructive: flag(12)?,
            idempotent: flag(13)?,
            version: row.get_ref(15)?.as_i64().unwrap_or_default(),
            updated_at: 0,
        },
        active,
        created_by: text(row, 10)?,
    })
}

/// The same with when it was last edited: made, where it never was.
pub(super) fn standing(row: &SqlRow<'_>) -> Result<Kept> {
    let mut it = kept(row)?;
    let at = |column| row.get_ref(column).map(|value| value.as_i64().ok());
    it.row.updated_at = at(OWN)?.or(at(OWN + 1)?).unwrap_or_default();
    Ok(it)
}

impl Kept {
    /// What it says.
    pub(super) fn text(&self) -> ToolText {
        let row = self.row.clone();
        ToolText {
            category: row.category,
            title: row.title,
            description: row.description,
            input_schema: row.input_schema,
            output_schema: row.output_schema,
            handler_type: row.handler_type,
            handler_config: row.handler_config,
            mode: row.mode,
            destructive: row.destructive != 0,
            idempotent: row.idempotent != 0,
            group: row.group,
            timeout_ms: row.timeout_ms,
            active: self.active,
        }
    }

    /// As it is listed, with what is wrong with it.
    pub(super) fn shown(&self, registry: &Registry) -> ToolRow {
        let problems = problems(registry, &self.row).into_iter().map(Into::into).collect();
        ToolRow {
            name: self.row.name.clone(),
            text: self.text(),
            version: self.row.version,
            created_by: self.created_by.clone(),
            updated_at: self.row.updated_at,
            problems,
        }
    }
}

/// The row that `text` makes.
pub(super) fn row(name: &str, text: &ToolText) -> Row {
    Row {
        name: name.into(),
        category: text.category.clone(),
        title: text.title.clone(),
        description: text.description.clone(),
        input_schema: text.input_schema.clone(),
        output_schema: text.output_schema.clone(),
        handler_type: text.handler_type.clone(),
        handler_config: text.handler_config.clone(),
        mode: text.mode.clone(),
        destructive: text.destructive.into(),
        idempotent: text.idempotent.into(),
        group: text.group.clone(),
        timeout_ms: text.timeout_ms,
        version: 1,
        updated_at: 0,
    }
}

/// Everything that is wrong with a row, as whoever serves it finds it.
pub(super) fn problems(registry: &Registry, row: &Row) -> Vec<Problem> {
    registry.check(row).err().unwrap_or_default()
}

/// Bytes of the texts of an answer.
pub(super) fn size(text: &ToolText) -> usize {
    let some = |text: &Option<Box<str>>| text.as_deref().map_or(0, str::len);
    text.category.len()
        + some(&text.title)
        + text.description.len()
        + text.input_schema.len()
        + some(&text.output_schema)
        + text.handler_type.len()
        + text.handler_config.len()
        + text.mode.len()
        + text.group.len()
}

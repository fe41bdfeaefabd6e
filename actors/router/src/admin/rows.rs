//! What stands in the owner's tables of routes and of forced breakers.
//!
//! Nothing here fails because of what is in a row: texts that are no UTF-8 are read with the replacement character, and those beyond their
//! bounds are cut behind it, so that whoever checks the row finds it too long. What fails is SQLite.

use horos_store::rusqlite::{Result, Row as SqlRow};
use horos_wire::protocol::control::{Force, ForcedBreaker, RouteVersion};

use crate::spec::Row;

/// Behind this much of a text no more of it is read: one byte beyond the bounds of [`horos_wire::protocol::control`], so that it shows.
macro_rules! within {
    ($column:literal, $most:literal) => {
        concat!(
            "CASE WHEN length(CAST(",
            $column,
            " AS BLOB)) > ",
            $most,
            " THEN substr(",
            $column,
            ", 1, ",
            $most,
            " + 1) ELSE ",
            $column,
            " END"
        )
    };
}

/// The columns of a row.
macro_rules! columns {
    () => {
        concat!(
            "SELECT ",
            within!("service_name", "200"),
            ", ",
            within!("strategy", "32"),
            ", ",
            within!("endpoint", "2048"),
            ", ",
            within!("config", "16384"),
            ", updated_at, ",
            within!("policy", "16384"),
            " FROM routes"
        )
    };
}

pub(super) const BY_NAME: &str = concat!(columns!(), " WHERE service_name = ?1");
pub(super) const AFTER: &str = concat!(columns!(), " WHERE ?1 IS NULL OR service_name > ?1 ORDER BY service_name");
/// A row as the owner has it.
pub(super) struct Owned {
    /// All of it.
    pub(super) row: Row,
    /// What an FO is told of the configuration.
    pub(super) policy: Box<str>,
}

/// A text; the tables are STRICT, so there is nothing else.
fn text(row: &SqlRow<'_>, column: usize) -> Result<Option<Box<str>>> {
    Ok(row.get_ref(column)?.as_bytes_or_null()?.map(|bytes| String::from_utf8_lossy(bytes).into()))
}

pub(super) fn owned(row: &SqlRow<'_>) -> Result<Owned> {
    let policy = text(row, 5)?.unwrap_or_default();
    let row = Row {
        service: text(row, 0)?.unwrap_or_default(),
        strategy: text(row, 1)?.unwrap_or_default(),
        endpoint: text(row, 2)?,
        config: text(row, 3)?,
        updated_at: row.get(4).unwrap_or_default(),
    };
    Ok(Owned { row, policy })
}

impl Owned {
    /// As a BO has it: what says nothing is what an FO is told of nothing, as whoever loads the row reads it.
    pub(super) fn version(&self) -> RouteVersion {
        Row { config: self.row.config.clone().or_else(|| Some(self.policy.clone())), ..self.row.clone() }.version()
    }

    /// As an FO has it.
    pub(super) fn version_on_fo(&self) -> RouteVersion {
        Row { config: Some(self.policy.clone()), ..self.row.clone() }.version()
    }
}

pub(super) fn forced(row: &SqlRow<'_>) -> Result<ForcedBreaker> {
    Ok(ForcedBreaker {
        service: text(row, 0)?.unwrap_or_default(),
        endpoint: text(row, 1)?.unwrap_or_default(),
        state: force(text(row, 2)?.as_deref()),
        resets: row.get(3).unwrap_or_default(),
        updated_at: row.get(4).unwrap_or_default(),
    })
}

pub(super) fn force(text: Option<&str>) -> Force {
    match text {
        Some("open") => Force::Open,
        Some("closed") => Force::Closed,
        _ => Force::Auto,
    }
}

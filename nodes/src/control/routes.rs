//! Routes in the owner's file: read, written, and every edit written down, in one transaction each.

use horos_store::rusqlite::{self, Connection, OptionalExtension as _, Row, params};
use horos_wire::protocol::control::{
    ControlError, DeleteRoute, Edited, Expected, ListRoutes, MAX_CONFIG, MAX_ENDPOINT, MAX_ROUTES, MAX_SERVICE, MAX_WHY, PAGE, PAGE_BYTES,
    Route, RouteList, RouteVersion, SetRoute,
};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::service::Fault;

/// Edits kept: with the largest configurations 160 MiB, as people write them 3 MB and years.
const KEPT: i64 = 10_000;

/// Rows of this beginning say what the nodes' own replicas are fed by, and go to no FO.
pub(crate) const DBSYNC: &str = "dbsync:";

const COLUMNS: &str = "SELECT service_name, strategy, endpoint, config, updated_at FROM routes";

/// Who sees what of the routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum View {
    /// All of it.
    Whole,
    /// What an FO's replica has.
    Public,
}

fn invalid(why: impl Into<Box<str>>) -> ControlError {
    ControlError::Invalid(why.into())
}

/// Whether an edit says what it must, within its bounds. Texts go into files, logs and terminals, so none gives orders there.
pub(super) fn check_set(ask: &SetRoute) -> Result<(), ControlError> {
    check_service(&ask.service)?;
    check_why(ask.why.as_deref())?;
    if let Some(endpoint) = ask.endpoint.as_deref() {
        if endpoint.is_empty() || endpoint.len() > MAX_ENDPOINT || endpoint.contains(|c: char| c.is_control() || c.is_whitespace()) {
            return Err(invalid(format!("an endpoint is 1 to {MAX_ENDPOINT} bytes without spaces")));
        }
        let authority = endpoint.split_once("://").map_or(endpoint, |(_, rest)| rest).split(['/', '?', '#']).next().unwrap_or_default();
        if authority.contains('@') {
            return Err(invalid("an endpoint names no user and no password, for every FO is told it; the configuration may"));
        }
    }
    if let Some(config) = ask.config.as_deref() {
        if config.len() > MAX_CONFIG {
            return Err(invalid(format!("a configuration is at most {MAX_CONFIG} bytes")));
        }
        match serde_json::from_str(config) {
            Ok(Value::Object(_)) => {}
            Ok(_) => return Err(invalid("a configuration is a JSON object")),
            Err(error) => return Err(invalid(format!("the configuration is no JSON: {error}"))),
        }
    }
    Ok(())
}

/// See [`check_set`].
pub(super) fn check_delete(ask: &DeleteRoute) -> Result<(), ControlError> {
    check_service(&ask.service)?;
    check_why(ask.why.as_deref())
}

fn check_service(service: &str) -> Result<(), ControlError> {
    let odd = |c: char| c.is_control() || c.is_whitespace();
    if service.is_empty() || service.len() > MAX_SERVICE || service.contains(odd) {
        return Err(invalid(format!("a service's name is 1 to {MAX_SERVICE} bytes without spaces")));
    }
    Ok(())
}

fn check_why(why: Option<&str>) -> Result<(), ControlError> {
    if why.is_some_and(|why| why.len() > MAX_WHY || why.contains(char::is_control)) {
        return Err(invalid(format!("a reason is one line of at most {MAX_WHY} bytes")));
    }
    Ok(())
}

fn route(row: &Row<'_>) -> rusqlite::Result<Route> {
    let text = |column| row.get::<_, Option<String>>(column).map(|text| text.map(Box::<str>::from));
    let (service, written): (String, String) = (row.get(0)?, row.get(1)?);
    let (endpoint, config, updated_at): (_, _, i64) = (text(2)?, text(3)?, row.get(4)?);
    let strategy =
        written.parse().map_err(|error| rusqlite::Error::FromSqlConversionFailure(1, rusqlite::types::Type::Text, Box::new(error)))?;
    let mut digest = Sha256::new();
    for part in [Some(&*service), Some(&*written), endpoint.as_deref(), config.as_deref()] {
        // With lengths, so that what ends one cannot begin the next; and nothing is not the empty text.
        digest.update(part.map_or(u64::MAX, |part| part.len() as u64).to_le_bytes());
        digest.update(part.unwrap_or_default());
    }
    digest.update(updated_at.to_le_bytes());
    let digest: [u8; 32] = digest.finalize().into();
    let version = RouteVersion(digest.iter().take(16).fold(0, |number, byte| number << 8 | u128::from(*byte)));
    Ok(Route { service: service.into(), strategy, endpoint, config, updated_at, version })
}

fn find(tx: &Connection, service: &str) -> rusqlite::Result<Option<Route>> {
    tx.query_row(&format!("{COLUMNS} WHERE service_name = ?1"), [service], route).optional()
}

/// Makes or replaces a route, as `by` asked.
pub(super) fn set(tx: &Connection, ask: &SetRoute, by: &str) -> Result<Edited, Fault> {
    let before = find(tx, &ask.service)?;
    let found = before.as_ref().map(|route| route.version);
    let as_expected = match ask.expected {
        None => true,
        Some(Expected::Absent) => found.is_none(),
        Some(Expected::Version(version)) => found == Some(version),
    };
    if !as_expected {
        return Err(ControlError::Conflict { service: ask.service.clone(), found }.into());
    }
    if before.is_none() {
        // Counted in the transaction that adds one, so that two at once do not pass together.
        let count: u32 = tx.query_row("SELECT count(*) FROM routes", [], |row| row.get(0))?;
        if count >= MAX_ROUTES {
            return Err(ControlError::TooMany.into());
        }
    }
    tx.execute(
        "INSERT INTO routes (service_name, strategy, endpoint, config, updated_at) VALUES (?1, ?2, ?3, coalesce(?4, '{}'), unixepoch())
         ON CONFLICT (service_name) DO UPDATE SET
             strategy = excluded.strategy, endpoint = excluded.endpoint, config = excluded.config, updated_at = excluded.updated_at",
        params![ask.service, ask.strategy.as_str(), ask.endpoint, ask.config],
    )?;
    let what = json!({ "set_route": { "service": ask.service, "strategy": ask.strategy, "endpoint": ask.endpoint, "config": ask.config } });
    let edit = write_down(tx, by, &what, ask.why.as_deref())?;
    Ok(Edited { edit, route: find(tx, &ask.service)? })
}

/// Deletes a route, as `by` asked.
pub(super) fn delete(tx: &Connection, ask: &DeleteRoute, by: &str) -> Result<Edited, Fault> {
    let found = find(tx, &ask.service)?.map(|route| route.version);
    if ask.expected.is_some() && found != ask.expected {
        return Err(ControlError::Conflict { service: ask.service.clone(), found }.into());
    }
    if found.is_none() {
        return Err(ControlError::NoSuchRoute(ask.service.clone()).into());
    }
    tx.execute("DELETE FROM routes WHERE service_name = ?1", [&ask.service])?;
    let edit = write_down(tx, by, &json!({ "delete_route": { "service": ask.service } }), ask.why.as_deref())?;
    Ok(Edited { edit, route: None })
}

fn write_down(tx: &Connection, by: &str, what: &Value, why: Option<&str>) -> rusqlite::Result<i64> {
    tx.execute(
        "INSERT INTO edits (at, who, what, why) VALUES (unixepoch(), ?1, ?2, ?3)",
        params![by, what.to_string(), why.unwrap_or_default()],
    )?;
    // The newest is always kept, so numbers are never given twice.
    let edit = tx.last_insert_rowid();
    tx.execute("DELETE FROM edits WHERE id <= ?1", [edit - KEPT])?;
    Ok(edit)
}

/// A page of routes, as far as `view` goes.
pub(super) fn list(tables: &Connection, ask: &ListRoutes, view: View) -> rusqlite::Result<RouteList> {
    let mut rows = tables.prepare_cached(&format!("{COLUMNS} WHERE service_name > ?1 ORDER BY service_name"))?;
    let mut rows = rows.query([ask.after.as_deref().unwrap_or_default()])?;
    let (mut routes, mut bytes) = (Vec::<Route>::new(), 0);
    while let Some(row) = rows.next()? {
        let mut it = route(row)?;
        if view == View::Public {
            if is_dbsync(&it.service) {
                continue;
            }
            it.config = None;
        }
        if routes.len() == PAGE || bytes >= PAGE_BYTES {
            let next = routes.last().map(|route| route.service.clone());
            return Ok(RouteList { routes, next });
        }
        bytes += it.service.len() + it.endpoint.as_deref().map_or(0, str::len) + it.config.as_deref().map_or(0, str::len);
        routes.push(it);
    }
    Ok(RouteList { routes, next: None })
}

/// As the filter of the replica has it.
fn is_dbsync(service: &str) -> bool {
    service.get(..DBSYNC.len()).is_some_and(|start| start.eq_ignore_ascii_case(DBSYNC))
}

//! Routes in the owner's file: read and edited, in one transaction each.

use horos_store::rusqlite::{self, Connection, OptionalExtension as _, params};
use horos_wire::protocol::control::{
    ControlError, DeleteRoute, Edited, Expected, GetRoute, ListRoutes, MAX_ROUTES, PAGE, PAGE_BYTES, Rollback, Route, RouteList,
    RouteVersion, SetRoute, SetStrategy,
};

use super::{
    Fault, View, check,
    edits::{self, Editor, Subject, Was, sign},
    invalid,
    rows::{AFTER, BY_NAME, Owned, owned},
};
use crate::{
    spec::{self, Row},
    strategy::Strategies,
};

/// Longest name that a row is asked for by: rows that other programs have written may have longer ones than a service can.
const MAX_NAME: usize = 4_096;

fn find(tx: &Connection, service: &str) -> rusqlite::Result<Option<Owned>> {
    tx.query_row(BY_NAME, [service], owned).optional()
}

fn shown(owned: Owned, view: View, strategies: &Strategies) -> Route {
    let (version, version_on_fo) = (owned.version(), owned.version_on_fo());
    let problems = check::problems(&owned.row, strategies);
    let spec::Row { service, strategy, endpoint, config, updated_at } = owned.row;
    let config = if view == View::Public { Some(owned.policy) } else { config };
    Route { service, strategy, endpoint, config, updated_at, version, version_on_fo, problems }
}

fn route(tx: &Connection, service: &str, strategies: &Strategies) -> rusqlite::Result<Option<Route>> {
    Ok(find(tx, service)?.map(|owned| shown(owned, View::Whole, strategies)))
}

/// Whether a row may be asked for by this name. Any that is there may be: rows that make no sense have to be found and deleted.
pub(super) fn check_lookup(service: &str) -> Result<(), ControlError> {
    if service.len() > MAX_NAME { Err(invalid(format!("a name is at most {MAX_NAME} bytes"))) } else { Ok(()) }
}

/// Whether `row` may be written under its name.
///
/// # Errors
/// Everything that is wrong with it.
pub(super) fn check_row(row: &Row, strategies: &Strategies) -> Result<(), ControlError> {
    check::check_name(&row.service).map_err(|problem| invalid(problem.what))?;
    check::check(row, strategies)
}

fn expect(service: &str, found: Option<RouteVersion>, expected: Option<Expected>) -> Result<(), ControlError> {
    let as_expected = match expected {
        None => true,
        Some(Expected::Absent) => found.is_none(),
        Some(Expected::Version(version)) => found == Some(version),
    };
    if as_expected { Ok(()) } else { Err(ControlError::Conflict { service: service.into(), found }) }
}

/// Counted in the transaction that adds one, so that two at once do not pass together.
pub(super) fn room(tx: &Connection) -> Result<(), Fault> {
    let count: u32 = tx.query_row("SELECT count(*) FROM routes", [], |row| row.get(0))?;
    if count >= MAX_ROUTES { Err(ControlError::TooMany.into()) } else { Ok(()) }
}

/// Writes a row, whose bytes are what they are.
pub(super) fn put(tx: &Connection, service: &str, is_there: bool, was: &Was) -> Result<(), Fault> {
    // Not by REPLACE, and not as an upsert: each has its own idea of which triggers fire.
    let sql = if is_there {
        "UPDATE routes SET strategy = CAST(?2 AS TEXT), endpoint = CAST(?3 AS TEXT), config = CAST(?4 AS TEXT), updated_at = unixepoch()
         WHERE service_name = ?1"
    } else {
        room(tx)?;
        "INSERT INTO routes (service_name, strategy, endpoint, config, updated_at)
         VALUES (?1, CAST(?2 AS TEXT), CAST(?3 AS TEXT), CAST(?4 AS TEXT), unixepoch())"
    };
    tx.execute(sql, params![service, was.strategy, was.endpoint, was.config])?;
    Ok(())
}

impl Was {
    pub(super) fn new(row: &Row) -> Self {
        let bytes = |text: &Option<Box<str>>| text.as_deref().map(|text| text.as_bytes().to_vec());
        Self { strategy: row.strategy.as_bytes().to_vec(), endpoint: bytes(&row.endpoint), config: bytes(&row.config) }
    }

    fn row(&self, service: &str) -> Row {
        let text = |bytes: &[u8]| Box::<str>::from(String::from_utf8_lossy(bytes));
        Row {
            service: service.into(),
            strategy: text(&self.strategy),
            endpoint: self.endpoint.as_deref().map(text),
            config: self.config.as_deref().map(text),
            updated_at: 0,
        }
    }
}

/// The row that [`SetRoute`] asks for.
pub(super) fn asked(ask: &SetRoute) -> Row {
    Row {
        service: ask.service.clone(),
        strategy: ask.strategy.as_str().into(),
        endpoint: ask.endpoint.clone(),
        config: Some(ask.config.clone().unwrap_or_else(|| "{}".into())),
        updated_at: 0,
    }
}

/// Makes or replaces a route. It has been checked.
pub(super) fn set(tx: &Connection, ask: &SetRoute, by: &str, strategies: &Strategies) -> Result<Edited, Fault> {
    let found = find(tx, &ask.service)?.map(|owned| owned.version());
    expect(&ask.service, found, ask.expected)?;
    let editor = Editor { who: by, why: ask.why.as_deref(), what: "set" };
    let edit = sign(tx, editor, Subject::Route(&ask.service), |tx| put(tx, &ask.service, found.is_some(), &Was::new(&asked(ask))))?;
    Ok(Edited { edit, route: route(tx, &ask.service, strategies)? })
}

/// Changes a strategy, and the endpoint where one is given.
pub(super) fn set_strategy(tx: &Connection, ask: &SetStrategy, by: &str, strategies: &Strategies) -> Result<Edited, Fault> {
    let Some(there) = find(tx, &ask.service)? else { return Err(ControlError::NoSuchRoute(ask.service.clone()).into()) };
    expect(&ask.service, Some(there.version()), ask.expected.map(Expected::Version))?;
    let endpoint = match ask.endpoint.as_deref() {
        None => there.row.endpoint.clone(),
        Some("") => None,
        Some(given) => Some(given.into()),
    };
    let row = Row { strategy: ask.strategy.as_str().into(), endpoint, ..there.row };
    check_row(&row, strategies)?;
    let editor = Editor { who: by, why: ask.why.as_deref(), what: "set-strategy" };
    let edit = sign(tx, editor, Subject::Route(&ask.service), |tx| put(tx, &ask.service, true, &Was::new(&row)))?;
    Ok(Edited { edit, route: route(tx, &ask.service, strategies)? })
}

/// Deletes a route.
pub(super) fn delete(tx: &Connection, ask: &DeleteRoute, by: &str) -> Result<Edited, Fault> {
    let found = find(tx, &ask.service)?.map(|owned| owned.version());
    if found.is_none() && ask.expected.is_none() {
        return Err(ControlError::NoSuchRoute(ask.service.clone()).into());
    }
    expect(&ask.service, found, ask.expected.map(Expected::Version))?;
    let editor = Editor { who: by, why: ask.why.as_deref(), what: "delete" };
    let edit = sign(tx, editor, Subject::Route(&ask.service), |tx| remove(tx, &ask.service))?;
    Ok(Edited { edit, route: None })
}

fn remove(tx: &Connection, service: &str) -> Result<(), Fault> {
    tx.execute("DELETE FROM routes WHERE service_name = ?1", [service])?;
    Ok(())
}

/// Puts a route back to what it was, or away where it was not.
pub(super) fn rollback(tx: &Connection, ask: &Rollback, by: &str, strategies: &Strategies) -> Result<Edited, Fault> {
    let found = find(tx, &ask.service)?.map(|owned| owned.version());
    expect(&ask.service, found, ask.expected)?;
    let was = edits::was(tx, &ask.service, ask.to)?;
    if let Some(was) = &was {
        // What was wrong then and never served must not take the place of what does now.
        check_row(&was.row(&ask.service), strategies)?;
    }
    let editor = Editor { who: by, why: ask.why.as_deref(), what: "rollback" };
    let edit = sign(tx, editor, Subject::Route(&ask.service), |tx| match &was {
        Some(was) => put(tx, &ask.service, found.is_some(), was),
        None => remove(tx, &ask.service),
    })?;
    Ok(Edited { edit, route: route(tx, &ask.service, strategies)? })
}

/// One route, as far as `view` goes.
pub(super) fn get(tables: &Connection, ask: &GetRoute, view: View, strategies: &Strategies) -> Result<Route, Fault> {
    match find(tables, &ask.service)? {
        Some(owned) if view.has(&owned.row.service) => Ok(shown(owned, view, strategies)),
        _ => Err(ControlError::NoSuchRoute(ask.service.clone()).into()),
    }
}

/// A page of routes, as far as `view` goes.
pub(super) fn list(tables: &Connection, ask: &ListRoutes, view: View, strategies: &Strategies) -> rusqlite::Result<RouteList> {
    let mut statement = tables.prepare_cached(AFTER)?;
    let mut rows = statement.query([ask.after.as_deref()])?;
    let (mut routes, mut bytes) = (Vec::<Route>::new(), 0);
    while let Some(row) = rows.next()? {
        let owned = owned(row)?;
        if !view.has(&owned.row.service) {
            continue;
        }
        if routes.len() == PAGE || bytes >= PAGE_BYTES {
            let next = routes.last().map(|route| route.service.clone());
            return Ok(RouteList { routes, next });
        }
        let it = shown(owned, view, strategies);
        bytes += it.service.len() + it.endpoint.as_deref().map_or(0, str::len) + it.config.as_deref().map_or(0, str::len);
        routes.push(it);
    }
    Ok(RouteList { routes, next: None })
}

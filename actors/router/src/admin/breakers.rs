//! Breakers that people have forced, in the owner's file. Every node reads them from its replica; what a breaker does by itself is in no
//! table, because one node's bad network must not open everybody's.

use horos_store::rusqlite::{self, Connection, OptionalExtension as _, params};
use horos_wire::protocol::control::{
    BreakerEdited, ControlError, Force, ForceBreaker, ForcedBreaker, ForcedList, ListForced, MAX_BREAKERS, MAX_ENDPOINT, MAX_STRATEGY,
    PAGE, ResetBreaker,
};

use super::{
    Fault, View, check,
    edits::{Editor, Subject, sign},
    invalid,
    rows::forced,
};

/// Longest key of an endpoint: its strategy, a colon, where it is.
const MAX_KEY: usize = MAX_STRATEGY + 1 + MAX_ENDPOINT;

const COLUMNS: &str = "SELECT service_name, endpoint, forced, resets, updated_at FROM breakers";

/// Whether there can be such a breaker.
pub(super) fn check_breaker(service: &str, endpoint: Option<&str>) -> Result<(), ControlError> {
    check::check_name(service).map_err(|problem| invalid(problem.what))?;
    if endpoint.is_some_and(|it| it.len() > MAX_KEY || it.contains(|c: char| c.is_control() || c.is_whitespace())) {
        return Err(invalid(format!("an endpoint is at most {MAX_KEY} bytes without spaces, as `horos breaker list` shows it")));
    }
    Ok(())
}

fn find(tx: &Connection, service: &str, endpoint: &str) -> rusqlite::Result<Option<ForcedBreaker>> {
    tx.query_row(&format!("{COLUMNS} WHERE service_name = ?1 AND endpoint = ?2"), [service, endpoint], forced).optional()
}

/// The row as it is now: a breaker without one is left to itself.
fn now(tx: &Connection, service: &str, endpoint: &str) -> rusqlite::Result<ForcedBreaker> {
    Ok(find(tx, service, endpoint)?.unwrap_or_else(|| ForcedBreaker {
        service: service.into(),
        endpoint: endpoint.into(),
        state: Force::Auto,
        resets: 0,
        updated_at: 0,
    }))
}

/// Makes room for one more, by forgetting the oldest of those that say nothing but how often they were reset.
fn room(tx: &Connection) -> Result<(), Fault> {
    let count: u32 = tx.query_row("SELECT count(*) FROM breakers", [], |row| row.get(0))?;
    if count < MAX_BREAKERS {
        return Ok(());
    }
    let forgotten = tx.execute(
        "DELETE FROM breakers WHERE rowid IN (SELECT rowid FROM breakers WHERE forced IS NULL ORDER BY updated_at, rowid LIMIT 1)",
        [],
    )?;
    if forgotten == 0 { Err(ControlError::TooManyBreakers.into()) } else { Ok(()) }
}

/// Forces a breaker, or leaves it to itself.
pub(super) fn force(tx: &Connection, ask: &ForceBreaker, by: &str) -> Result<BreakerEdited, Fault> {
    let endpoint = ask.endpoint.as_deref().unwrap_or_default();
    let there = find(tx, &ask.service, endpoint)?;
    let found = there.as_ref().map_or(Force::Auto, |it| it.state);
    if ask.expected.is_some_and(|expected| expected != found) {
        return Err(ControlError::BreakerConflict { service: ask.service.clone(), found }.into());
    }
    let state = (ask.state != Force::Auto).then(|| ask.state.as_str());
    if there.is_none() && state.is_some() {
        room(tx)?;
    }
    let editor = Editor { who: by, why: ask.why.as_deref(), what: "force-breaker" };
    let edit = sign(tx, editor, Subject::Breaker(&ask.service, endpoint), |tx| {
        let (row, all) = (params![ask.service, endpoint, state], params![ask.service, endpoint]);
        match (there.is_some(), state) {
            (true, _) => {
                tx.execute("UPDATE breakers SET forced = ?3, updated_at = unixepoch() WHERE service_name = ?1 AND endpoint = ?2", row)?;
                // How often it was reset must not begin anew: a router that has seen two would take one for nothing new.
                tx.execute("DELETE FROM breakers WHERE service_name = ?1 AND endpoint = ?2 AND forced IS NULL AND resets = 0", all)?
            }
            (false, Some(_)) => {
                tx.execute("INSERT INTO breakers (service_name, endpoint, forced, updated_at) VALUES (?1, ?2, ?3, unixepoch())", row)?
            }
            (false, None) => 0,
        };
        Ok(())
    })?;
    Ok(BreakerEdited { edit, breaker: now(tx, &ask.service, endpoint)? })
}

/// Counts one reset more.
pub(super) fn reset(tx: &Connection, ask: &ResetBreaker, by: &str) -> Result<BreakerEdited, Fault> {
    let endpoint = ask.endpoint.as_deref().unwrap_or_default();
    let there = find(tx, &ask.service, endpoint)?.is_some();
    if !there {
        room(tx)?;
    }
    let editor = Editor { who: by, why: ask.why.as_deref(), what: "reset-breaker" };
    let edit = sign(tx, editor, Subject::Breaker(&ask.service, endpoint), |tx| {
        let sql = if there {
            // From the greatest number there is a wrong program may have put it; the least is as new to every router.
            "UPDATE breakers SET resets = CASE WHEN resets < 9223372036854775807 THEN resets + 1 ELSE 1 END, updated_at = unixepoch()
             WHERE service_name = ?1 AND endpoint = ?2"
        } else {
            // Above whatever a row that was deleted has had: routers remember the number.
            "INSERT INTO breakers (service_name, endpoint, resets, updated_at) VALUES (?1, ?2, unixepoch(), unixepoch())"
        };
        tx.execute(sql, [&*ask.service, endpoint])?;
        Ok(())
    })?;
    Ok(BreakerEdited { edit, breaker: now(tx, &ask.service, endpoint)? })
}

/// A page of breakers, as far as `view` goes.
pub(super) fn list(tables: &Connection, ask: &ListForced, view: View) -> rusqlite::Result<ForcedList> {
    let sql = format!("{COLUMNS} WHERE ?1 IS NULL OR (service_name, endpoint) > (?1, ?2) ORDER BY service_name, endpoint");
    let mut statement = tables.prepare_cached(&sql)?;
    let (service, endpoint) = ask.after.as_ref().map_or((None, None), |(service, endpoint)| (Some(service), Some(endpoint)));
    let mut rows = statement.query(params![service, endpoint])?;
    let mut breakers = Vec::<ForcedBreaker>::new();
    while let Some(row) = rows.next()? {
        let it = forced(row)?;
        if !view.has(&it.service) {
            continue;
        }
        if breakers.len() == PAGE {
            let next = breakers.last().map(|last| (last.service.clone(), last.endpoint.clone()));
            return Ok(ForcedList { breakers, next });
        }
        breakers.push(it);
    }
    Ok(ForcedList { breakers, next: None })
}

//! What was edited: written down by the tables themselves, signed here with who did it and why, read back, and taken back.

use horos_store::rusqlite::{self, Connection, OptionalExtension as _, Row, params};
use horos_wire::protocol::control::{BreakerEdit, Content, ControlError, Edit, History, HistoryPage, PAGE, PAGE_BYTES, RollbackTo};

use super::{Fault, rows::force};

/// Who edits, and as what: written down with whatever is done.
#[derive(Clone, Copy, Debug)]
pub(super) struct Editor<'a> {
    /// As the caller's certificate says.
    pub(super) who: &'a str,
    /// The reason that was given.
    pub(super) why: Option<&'a str>,
    /// What is being done.
    pub(super) what: &'static str,
}

/// What an edit that changes nothing is written down of.
#[derive(Clone, Copy, Debug)]
pub(super) enum Subject<'a> {
    Route(&'a str),
    Breaker(&'a str, &'a str),
}

/// Does `work` and signs what the tables have written down of it. An edit that changes nothing is one all the same. Gives its number.
pub(super) fn sign<F>(tx: &Connection, by: Editor<'_>, subject: Subject<'_>, work: F) -> Result<i64, Fault>
where
    F: FnOnce(&Connection) -> Result<(), Fault>,
{
    let newest = "SELECT coalesce(max(id), 0) FROM edits";
    let before: i64 = tx.query_row(newest, [], |row| row.get(0))?;
    work(tx)?;
    let why = by.why.unwrap_or_default();
    if tx.execute("UPDATE edits SET who = ?1, why = ?2, what = ?3 WHERE id > ?4", params![by.who, why, by.what, before])? == 0 {
        match subject {
            Subject::Route(service) => tx.execute(
                "INSERT INTO edits (at, who, why, what, service_name, before_strategy, before_endpoint, before_config,
                     after_strategy, after_endpoint, after_config)
                 SELECT unixepoch(), ?1, ?2, ?3, ?4, r.strategy, r.endpoint, r.config, r.strategy, r.endpoint, r.config
                 FROM (SELECT 1) LEFT JOIN routes AS r ON r.service_name = ?4",
                params![by.who, why, by.what, service],
            )?,
            Subject::Breaker(service, endpoint) => tx.execute(
                "INSERT INTO edits (at, who, why, what, service_name, breaker, breaker_before, breaker_after)
                 SELECT unixepoch(), ?1, ?2, ?3, ?4, ?5, coalesce(b.forced, 'auto'), coalesce(b.forced, 'auto')
                 FROM (SELECT 1) LEFT JOIN breakers AS b ON b.service_name = ?4 AND b.endpoint = ?5",
                params![by.who, why, by.what, service, endpoint],
            )?,
        };
        tx.execute("DELETE FROM edits WHERE id <= (SELECT max(id) FROM edits) - ?1", [horos_wire::protocol::control::KEPT_EDITS])?;
    }
    Ok(tx.query_row(newest, [], |row| row.get(0))?)
}

const COLUMNS: &str = "SELECT id, at, who, why, what, service_name, before_strategy, before_endpoint, before_config, before_cut,
     after_strategy, after_endpoint, after_config, after_cut, breaker, breaker_before, breaker_after FROM edits";

fn text(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<Box<str>>> {
    let value = row.get_ref(column)?;
    Ok(value.as_bytes_or_null()?.map(|bytes| String::from_utf8_lossy(bytes).into()))
}

/// A route of four columns, the first of which is NULL where there was none.
fn content(row: &Row<'_>, first: usize) -> rusqlite::Result<Option<Content>> {
    let Some(strategy) = text(row, first)? else { return Ok(None) };
    let (endpoint, config) = (text(row, first + 1)?, text(row, first + 2)?);
    Ok(Some(Content { strategy, endpoint, config, cut: row.get(first + 3)? }))
}

fn edit(row: &Row<'_>) -> rusqlite::Result<Edit> {
    let must = |column| text(row, column).map(Option::unwrap_or_default);
    let breaker = match text(row, 14)? {
        None => None,
        Some(endpoint) => {
            let after = text(row, 16)?;
            let after = after.as_deref().map(|after| force(Some(after)));
            Some(BreakerEdit { endpoint, before: force(text(row, 15)?.as_deref()), after })
        }
    };
    Ok(Edit {
        edit: row.get(0)?,
        at: row.get(1)?,
        who: must(2)?,
        why: must(3)?,
        what: must(4)?,
        service: must(5)?,
        before: content(row, 6)?,
        after: content(row, 10)?,
        breaker,
    })
}

/// A page of edits, the newest first.
pub(super) fn history(tables: &Connection, ask: &History) -> rusqlite::Result<HistoryPage> {
    let condition = if ask.service.is_some() { "service_name = ?1" } else { "?1 IS NULL" };
    let sql = format!("{COLUMNS} WHERE {condition} AND id < ?2 ORDER BY id DESC");
    let mut statement = tables.prepare_cached(&sql)?;
    let mut rows = statement.query(params![ask.service, ask.before.unwrap_or(i64::MAX)])?;
    let limit = usize::try_from(ask.limit).unwrap_or(PAGE).clamp(1, PAGE);
    let (mut edits, mut bytes) = (Vec::<Edit>::new(), 0);
    while let Some(row) = rows.next()? {
        if edits.len() == limit || bytes >= PAGE_BYTES {
            let next = edits.last().map(|edit| edit.edit);
            return Ok(HistoryPage { edits, next });
        }
        let it = edit(row)?;
        let size = |it: &Content| it.endpoint.as_deref().map_or(0, str::len) + it.config.as_deref().map_or(0, str::len);
        bytes += it.service.len() + it.why.len() + it.before.as_ref().map_or(0, size) + it.after.as_ref().map_or(0, size);
        edits.push(it);
    }
    Ok(HistoryPage { edits, next: None })
}

/// A route as it was: to the byte, whatever the bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Was {
    pub(super) strategy: Vec<u8>,
    pub(super) endpoint: Option<Vec<u8>>,
    pub(super) config: Option<Vec<u8>>,
}

impl Was {
    /// A row's first three columns; none where there is no strategy, and so no route.
    pub(super) fn read(row: &Row<'_>) -> rusqlite::Result<Option<Self>> {
        let bytes =
            |column: usize| -> rusqlite::Result<Option<Vec<u8>>> { Ok(row.get_ref(column)?.as_bytes_or_null()?.map(<[u8]>::to_vec)) };
        let Some(strategy) = bytes(0)? else { return Ok(None) };
        Ok(Some(Self { strategy, endpoint: bytes(1)?, config: bytes(2)? }))
    }
}

/// What the route was at a time; none where there was none.
pub(super) fn was(tx: &Connection, service: &str, to: RollbackTo) -> Result<Option<Was>, Fault> {
    let before = "before_strategy, before_endpoint, before_config, before_cut";
    let after = "after_strategy, after_endpoint, after_config, after_cut";
    let find = |columns: &str, condition: &str, edit: i64| {
        let sql = format!("SELECT {columns} FROM edits WHERE service_name = ?1 AND breaker IS NULL AND {condition} LIMIT 1");
        tx.query_row(&sql, params![service, edit], |row| Ok((Was::read(row)?, row.get::<_, bool>(3)?))).optional()
    };
    let unknown = |edit| Fault::Refused(ControlError::NoSuchEdit { service: service.into(), edit });
    let (was, cut) = match to {
        RollbackTo::Last => find(before, "id >= ?2 ORDER BY id DESC", 0)?.ok_or_else(|| unknown(0))?,
        RollbackTo::Before(edit) => find(before, "id = ?2", edit)?.ok_or_else(|| unknown(edit))?,
        RollbackTo::AsOf(edit) => {
            // What was edited before the oldest that is kept is not known any more.
            let known: bool = tx.query_row("SELECT coalesce(?1 BETWEEN min(id) AND max(id), 0) FROM edits", [edit], |row| row.get(0))?;
            let found = match known {
                true => find(after, "id <= ?2 ORDER BY id DESC", edit)?,
                false => return Err(unknown(edit)),
            };
            match found {
                Some(found) => found,
                // It has been edited since then alone, and was then what it was before the first of those.
                None => find(before, "id > ?2 ORDER BY id", edit)?.ok_or_else(|| unknown(edit))?,
            }
        }
    };
    if cut {
        return Err(super::invalid("it was too large then to be kept with the edit, so it cannot be brought back").into());
    }
    Ok(was)
}

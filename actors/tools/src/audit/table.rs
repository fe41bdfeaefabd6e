//! The table `mcp_tool_audit`: its schema, what is put in, what is thrown out, what is read.

use horos_store::{
    migrations::{Migration, Migrations},
    rusqlite::{self, Connection, OptionalExtension as _, Row},
};
use horos_wire::protocol::tools::AuditEntry;

use super::{
    MAX_AGE, MAX_ROWS,
    entry::{Filter, Record, cut, hex},
};

/// The schema of [`super::FILE`].
pub const MIGRATIONS: Migrations = Migrations::new(&[Migration {
    version: 1,
    name: "audit of tool calls",
    sql: "CREATE TABLE mcp_tool_audit (
        id INTEGER PRIMARY KEY,
        -- milliseconds since 1970
        at INTEGER NOT NULL,
        tool TEXT NOT NULL,
        version INTEGER,
        caller TEXT NOT NULL,
        -- http, quic or link
        transport TEXT NOT NULL,
        session TEXT,
        remote TEXT,
        outcome TEXT NOT NULL,
        duration_us INTEGER NOT NULL,
        request TEXT,
        trace BLOB,
        -- SHA-256
        arguments BLOB NOT NULL,
        confirmed INTEGER NOT NULL
    ) STRICT;",
}]);

/// Rows that one transaction deletes beside what it puts in, at least; some milliseconds' worth.
const PORTION: i64 = 1_000;

/// The numbers of the rows that there are: from `oldest` to before `next`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) oldest: i64,
    pub(super) next: i64,
}

pub(super) fn span(connection: &Connection) -> rusqlite::Result<Span> {
    connection.query_row("SELECT min(id), max(id) FROM mcp_tool_audit", [], |row| {
        let (oldest, newest): (Option<i64>, Option<i64>) = (row.get(0)?, row.get(1)?);
        let next = newest.unwrap_or(0) + 1;
        Ok(Span { oldest: oldest.unwrap_or(next), next })
    })
}

/// Puts `records` in as the rows from `span.next` on. Those that are there already are these, by a scribe that died before it knew.
pub(super) fn append(connection: &Connection, span: Span, records: &[Record]) -> rusqlite::Result<()> {
    let mut insert = connection.prepare_cached(
        "INSERT OR IGNORE INTO mcp_tool_audit
            (id, at, tool, version, caller, transport, session, remote, outcome, duration_us, request, trace, arguments, confirmed)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)",
    )?;
    for (id, record) in (span.next..).zip(records) {
        insert.execute(rusqlite::params![
            id,
            record.at,
            record.tool,
            record.version,
            record.caller,
            record.transport,
            record.session.as_deref().map(cut),
            record.remote.map(|remote| remote.to_string()),
            record.outcome,
            record.micros(),
            record.request,
            (!record.trace.is_none()).then(|| record.trace.0.to_be_bytes()),
            record.arguments,
            record.confirmed,
        ])?;
    }
    Ok(())
}

/// Throws out a portion of what is too much or too old, and says what the oldest row is then.
pub(super) fn prune(connection: &Connection, span: Span, unix_ms: i64) -> rusqlite::Result<i64> {
    let added = span.next - span.oldest;
    let portion = PORTION.max(added - MAX_ROWS).min(4 * PORTION);
    let end = span.oldest.saturating_add(portion);
    let too_much = span.next.saturating_sub(MAX_ROWS).min(end);
    let too_old = unix_ms.saturating_sub(i64::try_from(MAX_AGE.as_millis()).unwrap_or(i64::MAX));
    connection.prepare_cached("DELETE FROM mcp_tool_audit WHERE id < ?1 OR (id < ?2 AND at < ?3)")?.execute([too_much, end, too_old])?;
    let oldest = connection.prepare_cached("SELECT min(id) FROM mcp_tool_audit")?.query_row([], |row| row.get(0)).optional()?;
    Ok(oldest.flatten().unwrap_or(span.next))
}

pub(super) fn tail(connection: &Connection, count: usize, filter: &Filter) -> rusqlite::Result<Vec<AuditEntry>> {
    let mut statement = connection.prepare_cached(
        "SELECT id, at, tool, version, caller, transport, session, remote, outcome, duration_us, request, trace, arguments, confirmed
         FROM mcp_tool_audit
         WHERE (?1 IS NULL OR tool = ?1) AND (?2 IS NULL OR caller = ?2) AND (?3 IS NULL OR outcome = ?3) AND (?4 IS NULL OR at >= ?4)
             AND id < ?5 AND id > ?6
         ORDER BY id DESC LIMIT ?7",
    )?;
    let limit = i64::try_from(count).unwrap_or(i64::MAX);
    let (before, after) = (filter.before.unwrap_or(i64::MAX), filter.after.unwrap_or(i64::MIN));
    let rows =
        statement.query_map(rusqlite::params![filter.tool, filter.caller, filter.outcome, filter.since, before, after, limit], entry)?;
    rows.collect()
}

fn entry(row: &Row<'_>) -> rusqlite::Result<AuditEntry> {
    let (trace, arguments): (Option<[u8; 16]>, Vec<u8>) = (row.get(11)?, row.get(12)?);
    Ok(AuditEntry {
        id: row.get(0)?,
        at_ms: row.get(1)?,
        tool: row.get(2)?,
        version: row.get(3)?,
        caller: row.get(4)?,
        transport: row.get(5)?,
        session: row.get(6)?,
        remote: row.get(7)?,
        outcome: row.get(8)?,
        took_us: row.get(9)?,
        request: row.get(10)?,
        trace: trace.map(|trace| hex(&trace)),
        arguments: hex(&arguments),
        confirmed: row.get(13)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(rows: &[(i64, i64)]) -> Connection {
        let mut connection = Connection::open_in_memory().unwrap();
        MIGRATIONS.apply(&mut connection).unwrap();
        for (id, at) in rows {
            let record = Record { at: *at, ..Record::default() };
            append(&connection, Span { oldest: 0, next: *id }, &[record]).unwrap();
        }
        connection
    }

    fn ids(connection: &Connection) -> Vec<i64> {
        let mut ids: Vec<i64> = tail(connection, usize::MAX, &Filter::default()).unwrap().iter().map(|entry| entry.id).collect();
        ids.reverse();
        ids
    }

    #[test]
    fn the_newest_rows_stay_and_the_others_go_in_portions() {
        let connection = table(&[(1, 5), (2, 5), (PORTION + 1, 5), (MAX_ROWS, 5), (MAX_ROWS + 5, 5)]);
        let mut span = super::span(&connection).unwrap();
        assert_eq!(span, Span { oldest: 1, next: MAX_ROWS + 6 });
        span.oldest = prune(&connection, span, 6).unwrap();
        assert_eq!((span.oldest, ids(&connection)), (PORTION + 1, vec![PORTION + 1, MAX_ROWS, MAX_ROWS + 5]));
        // Far more than a portion at a time when far more came.
        let late = Span { next: 3 * MAX_ROWS, ..span };
        assert_eq!(prune(&connection, late, 6).unwrap(), MAX_ROWS);
    }

    #[test]
    fn what_is_too_old_goes_and_a_clock_that_went_back_takes_nothing_along() {
        let age = MAX_AGE.as_millis() as i64;
        let connection = table(&[(1, 100), (2, age + 90), (3, 50), (4, age + 100)]);
        let span = super::span(&connection).unwrap();
        assert_eq!(prune(&connection, span, age + 99).unwrap(), 1);
        assert_eq!(ids(&connection), [1, 2, 4]);
        assert_eq!(prune(&connection, span, age + 101).unwrap(), 2);
        assert_eq!(prune(&connection, Span { oldest: 5, next: 5 }, 0).unwrap(), 2);
        assert_eq!(ids(&connection), [2, 4]);
    }

    #[test]
    fn rows_that_are_there_already_are_not_there_twice() {
        let connection = table(&[(1, 1)]);
        let span = Span { oldest: 1, next: 2 };
        let records = [Record { at: 2, ..Record::default() }, Record { at: 3, ..Record::default() }];
        append(&connection, span, &records[..1]).unwrap();
        append(&connection, span, &records).unwrap();
        assert_eq!(ids(&connection), [1, 2, 3]);
    }
}

//! What is remembered of breakers in the node's own `router.db`, so that a node that restarts over and over does not begin with a
//! clean slate each time.
//!
//! Times stand there as the wall clock told them, and that may have jumped since: read back they are spans again, never negative,
//! and the breaker bounds them by its policy. A row that makes no sense is a closed breaker and a line in the log.

use std::time::{Duration, Instant};

use horos_store::{
    migrations::{Migration, Migrations},
    rusqlite::{self, Connection, Row},
    writer::{WriteError, Writer},
};

use super::{MAX_BREAKERS, Snapshot, State};

/// The schema of `router.db`.
pub const MIGRATIONS: Migrations = Migrations::new(&[Migration {
    version: 1,
    name: "breakers",
    sql: "CREATE TABLE breakers (
        service TEXT NOT NULL,
        endpoint TEXT NOT NULL,
        -- closed, open or half-open
        state TEXT NOT NULL,
        -- in a row
        failures INTEGER NOT NULL,
        -- how often a probe failed since it opened
        reopenings INTEGER NOT NULL,
        -- orders to reset it that have been carried out
        resets INTEGER,
        -- milliseconds since 1970, as all times
        failed_at INTEGER,
        opened_at INTEGER,
        open_until INTEGER,
        updated_at INTEGER NOT NULL,
        PRIMARY KEY (service, endpoint)
    ) STRICT;
    CREATE INDEX breakers_updated_at ON breakers (updated_at);",
}]);

/// What has not changed for longer is forgotten at the next start: nothing stays open for as long.
const KEPT: Duration = Duration::from_secs(24 * 3_600);
/// Longest a write or a read may take before it is tried again later.
const PATIENCE: Duration = Duration::from_secs(5);

/// A breaker as it is written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) state: State,
    pub(super) failures: u32,
    pub(super) reopenings: u32,
    pub(super) resets: Option<i64>,
    pub(super) failed_at: Option<i64>,
    pub(super) opened_at: Option<i64>,
    pub(super) open_until: Option<i64>,
}

impl Record {
    /// `snapshot` as taken at `unix_ms`.
    pub(super) fn of(snapshot: &Snapshot, resets: Option<i64>, unix_ms: i64) -> Self {
        let ago = |ms: u64| unix_ms.saturating_sub(i64::try_from(ms).unwrap_or(i64::MAX));
        Self {
            state: snapshot.state,
            failures: snapshot.failures,
            reopenings: snapshot.reopenings,
            resets,
            failed_at: snapshot.failed_ms_ago.map(ago),
            opened_at: snapshot.opened_ms_ago.map(ago),
            open_until: snapshot.open_for_ms.map(|ms| unix_ms.saturating_add(i64::try_from(ms).unwrap_or(i64::MAX))),
        }
    }

    /// What it is at `unix_ms`. What lies ahead although it cannot is taken for now.
    pub(super) fn snapshot(&self, unix_ms: i64) -> Snapshot {
        let span = |from: i64, to: i64| u64::try_from(to.saturating_sub(from)).unwrap_or(0);
        Snapshot {
            state: self.state,
            reason: None,
            generation: 0,
            forced: None,
            failures: self.failures,
            failed_ms_ago: self.failed_at.map(|at| span(at, unix_ms)),
            reopenings: self.reopenings,
            opened_ms_ago: self.opened_at.map(|at| span(at, unix_ms)),
            open_for_ms: self.open_until.map(|at| span(unix_ms, at)),
            probing: 0,
            calls_in_window: 0,
            failures_in_window: 0,
            slow_in_window: 0,
        }
    }
}

/// Writes down one breaker.
pub(super) async fn save(
    writer: &Writer,
    service: &str,
    endpoint: &str,
    record: Record,
    unix_ms: i64,
) -> Result<(), WriteError<rusqlite::Error>> {
    let (service, endpoint): (Box<str>, Box<str>) = (service.into(), endpoint.into());
    writer
        .transaction(Instant::now() + PATIENCE, move |connection: &Connection| {
            connection
                .prepare_cached(
                    "INSERT INTO breakers (service, endpoint, state, failures, reopenings, resets, failed_at, opened_at, open_until, updated_at)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)
                     ON CONFLICT (service, endpoint) DO UPDATE SET state = excluded.state, failures = excluded.failures,
                        reopenings = excluded.reopenings, resets = excluded.resets, failed_at = excluded.failed_at,
                        opened_at = excluded.opened_at, open_until = excluded.open_until, updated_at = excluded.updated_at",
                )?
                .execute(rusqlite::params![
                    service,
                    endpoint,
                    record.state.as_str(),
                    record.failures,
                    record.reopenings,
                    record.resets,
                    record.failed_at,
                    record.opened_at,
                    record.open_until,
                    unix_ms,
                ])
                .map(drop)
        })
        .await
}

/// A breaker's service and endpoint, and what stood there of it.
pub(super) type Remembered = (Box<str>, Box<str>, Record);

/// Reads what was written down, and forgets what is too old or too much.
pub(super) async fn recall(writer: &Writer, unix_ms: i64) -> Result<Vec<Remembered>, WriteError<rusqlite::Error>> {
    let kept = i64::try_from(KEPT.as_millis()).unwrap_or(i64::MAX);
    writer
        .transaction(Instant::now() + PATIENCE, move |connection: &Connection| {
            // Also what claims to be of a time to come: the clock was wrong then, and would keep it for ever.
            connection.execute("DELETE FROM breakers WHERE abs(updated_at - ?1) > ?2", [unix_ms, kept])?;
            connection.execute(
                "DELETE FROM breakers WHERE rowid IN (SELECT rowid FROM breakers ORDER BY updated_at DESC LIMIT -1 OFFSET ?1)",
                [MAX_BREAKERS as i64],
            )?;
            let mut statement = connection
                .prepare("SELECT service, endpoint, state, failures, reopenings, resets, failed_at, opened_at, open_until FROM breakers")?;
            let mut rows = statement.query([])?;
            let mut found = Vec::new();
            while let Some(row) = rows.next()? {
                match read(row) {
                    Ok(remembered) => found.push(remembered),
                    Err(error) => tracing::warn!(%error, "a remembered breaker is unreadable, and closed"),
                }
            }
            Ok(found)
        })
        .await
}

fn read(row: &Row<'_>) -> rusqlite::Result<Remembered> {
    let (service, endpoint): (Box<str>, Box<str>) = (row.get(0)?, row.get(1)?);
    let (state, failures, reopenings): (Box<str>, i64, i64) = (row.get(2)?, row.get(3)?, row.get(4)?);
    let state = match [State::Closed, State::Open, State::HalfOpen].into_iter().find(|known| known.as_str() == &*state) {
        Some(known) => known,
        None => {
            tracing::warn!(%service, %endpoint, %state, "a remembered breaker is in a state that is none, and closed");
            State::Closed
        }
    };
    let count = |count: i64| u32::try_from(count.max(0)).unwrap_or(u32::MAX);
    let record = Record {
        state,
        failures: count(failures),
        reopenings: count(reopenings),
        resets: row.get(5)?,
        failed_at: row.get(6)?,
        opened_at: row.get(7)?,
        open_until: row.get(8)?,
    };
    Ok((service, endpoint, record))
}

//! From `control.db` to the table in force: looked at whenever anybody has committed to it, and again while a row is wrong.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use horos_store::{
    open::{Access, OpenError, Options, open},
    rusqlite::{self, Connection, types::ValueRef},
    watch::{Detector, Reload, Watcher},
};
use horos_supervision::{ChildSpec, worker};

use crate::{
    breaker::{Forced, ForcedRow},
    router::{Entry, Found, Router, Table, Taken},
    spec::Row,
};

/// After so many beats what was wrong is tried again, without anybody having written: a file that it needs may be there by then.
const AGAIN: u32 = 5;
/// Between two signs of life.
const BEAT: Duration = Duration::from_secs(1);
/// The most routes taken up; those behind are left, and said to be.
pub const MAX_ROUTES: u32 = horos_wire::protocol::control::MAX_ROUTES;

/// Why the table could not be read. What is in force stays in force.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReloadError {
    /// There is no such file yet, or it is damaged.
    #[error("control.db cannot be opened")]
    Open(#[from] OpenError),
    /// It is locked or damaged.
    #[error("the routes cannot be read: {0}")]
    Sql(#[from] rusqlite::Error),
    /// More than [`MAX_ROUTES`]: none of them is taken up, for nobody could say which.
    #[error("there are more than {MAX_ROUTES} routes")]
    TooMany,
}

/// The child that keeps `router` at what is in `path`, which `watcher` watches: the owner's file, or a replica of it.
pub fn child(router: Router, path: PathBuf, watcher: Watcher) -> ChildSpec {
    worker("routes", move |vitals| {
        let (router, path, watcher) = (router.clone(), path.clone(), watcher.clone());
        async move {
            let reload = {
                let (router, path, vitals) = (router.clone(), path.clone(), vitals.clone());
                move |_| {
                    let (router, path, vitals) = (router.clone(), path.clone(), vitals.clone());
                    async move {
                        let taken = aside(&router, &path).await;
                        vitals.progressed(Instant::now());
                        // A file that is not there yet is no trouble: a replica comes when its owner can be reached.
                        let unread = taken.as_ref().err().filter(|_| path.exists());
                        vitals.set_trouble(unread.cloned().or_else(|| router.trouble()).as_deref());
                        taken.map(drop)
                    }
                }
            };
            let _subscription = watcher.subscribe(Detector::DataVersion, Reload::default(), reload);
            for beat in (1..=AGAIN).cycle() {
                tokio::time::sleep(BEAT).await;
                vitals.progressed(Instant::now());
                // A file that cannot be read is the subscription's to try again.
                if beat == AGAIN && router.trouble().is_some() && aside(&router, &path).await.is_ok() {
                    vitals.set_trouble(router.trouble().as_deref());
                }
            }
        }
    })
}

/// Reads the file on a thread that may wait.
async fn aside(router: &Router, path: &Path) -> Result<Taken, String> {
    let (router, path) = (router.clone(), path.to_owned());
    match tokio::task::spawn_blocking(move || load(&router, &path)).await {
        Ok(taken) => taken.map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    }
}

/// Reads all routes in `path` and makes them the ones in force.
///
/// # Errors
/// [`ReloadError`]: what is in force stays so.
pub fn load(router: &Router, path: &Path) -> Result<Taken, ReloadError> {
    let mut decided = Vec::new();
    let taken = router.take(|table| {
        let mut database = open(&Options::new(path, Access::ReadOnly))?;
        let connection = database.connection().unchecked_transaction()?;
        let rows = rows(&connection, table)?;
        decided = forced(&connection)?;
        connection.finish()?;
        Ok::<_, ReloadError>(rows)
    })?;
    router.breakers().forced(&decided);
    if taken.changed + taken.gone > 0 {
        tracing::info!(changed = taken.changed, gone = taken.gone, wrong = taken.wrong, "routes taken up");
    }
    Ok(taken)
}

/// The rows there are; of those that `table` has as they are, nothing is copied.
fn rows(connection: &Connection, table: &Table) -> Result<Vec<Found>, ReloadError> {
    if !connection.table_exists(Some("main"), "routes")? {
        return Ok(Vec::new());
    }
    // An FO has of the configuration what it needs, under another name; `config` is there without a value.
    let config = if connection.column_exists(Some("main"), "routes", "policy")? { "coalesce(config, policy)" } else { "config" };
    let mut statement =
        connection.prepare(&format!("SELECT service_name, strategy, endpoint, {config}, updated_at FROM routes LIMIT ?1"))?;
    let mut found = Vec::with_capacity(table.len());
    let mut rows = statement.query([MAX_ROUTES + 1])?;
    while let Some(row) = rows.next()? {
        let columns = [row.get_ref(0)?, row.get_ref(1)?, row.get_ref(2)?, row.get_ref(3)?];
        let updated_at = row.get_ref(4)?.as_i64().unwrap_or_default();
        let known = columns[0].as_str().ok().and_then(|name| table.get(name));
        let same = |known: &Entry| {
            let Row { service, strategy, endpoint, config, updated_at: at } = &known.row;
            let texts = [Some(&**service), Some(&**strategy), endpoint.as_deref(), config.as_deref()];
            known.wrong.is_none()
                && *at == updated_at
                && columns.iter().zip(texts).all(|(column, text)| column.as_str_or_null() == Ok(text))
        };
        found.push(match known.filter(|known| same(known)) {
            Some(known) => Found::Same(known.clone()),
            None => {
                let [service, strategy, endpoint, config] = columns.map(text);
                let (service, strategy) = (service.unwrap_or_default(), strategy.unwrap_or_default());
                Found::Row(Row { service, strategy, endpoint, config, updated_at })
            }
        });
    }
    if found.len() > MAX_ROUTES as usize { Err(ReloadError::TooMany) } else { Ok(found) }
}

/// A value of another type than the column's is shown as text, and found wrong as such.
fn text(value: ValueRef<'_>) -> Option<Box<str>> {
    match value {
        ValueRef::Null => None,
        ValueRef::Integer(number) => Some(number.to_string().into()),
        ValueRef::Real(number) => Some(number.to_string().into()),
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => Some(String::from_utf8_lossy(bytes).into()),
    }
}

fn forced(connection: &Connection) -> Result<Vec<ForcedRow>, ReloadError> {
    if !connection.table_exists(Some("main"), "breakers")? {
        return Ok(Vec::new());
    }
    let mut statement = connection.prepare("SELECT service_name, endpoint, forced, resets FROM breakers LIMIT ?1")?;
    let row = |row: &rusqlite::Row<'_>| {
        let forced = match row.get::<_, Option<String>>(2)?.as_deref() {
            Some("open") => Some(Forced::Open),
            Some("closed") => Some(Forced::Closed),
            _ => None,
        };
        Ok(ForcedRow { service: row.get::<_, String>(0)?.into(), endpoint: row.get::<_, String>(1)?.into(), forced, resets: row.get(3)? })
    };
    let found = statement.query_map([MAX_ROUTES], row)?;
    Ok(found.collect::<Result<_, _>>()?)
}

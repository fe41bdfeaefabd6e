//! `routes import`: the rows of a file, sent to the owner a page at a time.

use std::path::{Path, PathBuf};

use horos_router::admin::UNNAMED;
use horos_store::{
    open::{Access, OpenError, Options, open},
    rusqlite::{self, Connection, types::ValueRef},
};
use horos_wire::{
    Address,
    protocol::control::{
        ImportRoutes, Imported, ImportedRow, LeftRow, MAX_CONFIG, MAX_ENDPOINT, MAX_ROUTES, MAX_SERVICE, PAGE, PAGE_BYTES,
    },
};

use crate::{
    cli::{Output, Remote, run::End, sync::bar},
    exit::Exit,
    render,
};

/// Why the file was not read. It is as it was, and nothing was sent.
#[derive(Debug, thiserror::Error)]
enum FileError {
    #[error("{} cannot be read", .0.display())]
    Open(PathBuf, #[source] OpenError),
    #[error("{} cannot be read", .0.display())]
    Sql(PathBuf, #[source] rusqlite::Error),
    #[error("{} has no table of routes", .0.display())]
    NoRoutes(PathBuf),
    #[error("{} has more than {MAX_ROUTES} routes, and no node takes so many", .0.display())]
    TooMany(PathBuf),
    #[error("reading {} ended early", .0.display())]
    Ended(PathBuf),
}

/// The rows of a file, and those of them that are too large to be sent.
#[derive(Debug, Default)]
struct Rows {
    rows: Vec<ImportedRow>,
    left: Vec<LeftRow>,
}

/// A value as text. NULL is none.
fn text(value: ValueRef<'_>) -> Option<Box<str>> {
    match value {
        ValueRef::Null => None,
        ValueRef::Integer(number) => Some(number.to_string().into()),
        ValueRef::Real(number) => Some(number.to_string().into()),
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => Some(String::from_utf8_lossy(bytes).into()),
    }
}

fn read(path: &Path) -> Result<Rows, FileError> {
    let sql = |error| FileError::Sql(path.to_owned(), error);
    let database = open(&Options::new(path, Access::ReadOnly)).map_err(|error| FileError::Open(path.to_owned(), error))?;
    let database: &Connection = &database;
    if !database.table_exists(Some("main"), "routes").map_err(sql)? {
        return Err(FileError::NoRoutes(path.to_owned()));
    }
    rows(database).map_err(sql)?.ok_or_else(|| FileError::TooMany(path.to_owned()))
}

/// As the migrations take up a table that is put in place of the node's own: what has no name is given one. None where there are too many.
fn rows(database: &Connection) -> rusqlite::Result<Option<Rows>> {
    let mut statement =
        database.prepare("SELECT rowid, service_name, strategy, endpoint, config FROM routes ORDER BY service_name, rowid LIMIT ?1")?;
    let mut found = statement.query([MAX_ROUTES + 1])?;
    let (mut all, mut count) = (Rows::default(), 0);
    while let Some(row) = found.next()? {
        count += 1;
        if count > MAX_ROUTES {
            return Ok(None);
        }
        let service = match row.get_ref(1)? {
            ValueRef::Null => format!("{UNNAMED}{}", row.get::<_, i64>(0)?).into(),
            ValueRef::Blob(name) => format!("{UNNAMED}{}:{}", row.get::<_, i64>(0)?, hex::encode_upper(name)).into(),
            name => text(name).unwrap_or_default(),
        };
        let (strategy, endpoint, config) = (text(row.get_ref(2)?).unwrap_or_default(), text(row.get_ref(3)?), text(row.get_ref(4)?));
        let beyond = |text: &Option<Box<str>>, most: usize| text.as_deref().is_some_and(|text| text.len() > most);
        if service.len() > MAX_SERVICE || beyond(&endpoint, MAX_ENDPOINT) || beyond(&config, MAX_CONFIG) {
            let service = service.chars().take(MAX_SERVICE).collect();
            all.left.push(LeftRow { service, why: "it is larger than a route may be".into() });
            continue;
        }
        all.rows.push(ImportedRow { service, strategy, endpoint, config });
    }
    Ok(Some(all))
}

/// How many of the first `rows` go in one request.
fn page(rows: &[ImportedRow]) -> usize {
    let mut bytes = 0;
    let fits = rows.iter().take(PAGE).take_while(|row| {
        let before = bytes;
        bytes += row.service.len() + row.endpoint.as_deref().map_or(0, str::len) + row.config.as_deref().map_or(0, str::len);
        before < PAGE_BYTES
    });
    fits.count()
}

pub(super) async fn import<R: Remote>(
    file: PathBuf,
    replace: bool,
    why: Option<Box<str>>,
    node: &mut R,
    at: &Address,
    output: &Output,
) -> Result<(), End> {
    let path = file.clone();
    // Reading blocks, and the link is on this thread.
    let found = tokio::task::spawn_blocking(move || read(&path)).await.unwrap_or(Err(FileError::Ended(file)));
    let Rows { rows, left } = found.map_err(|error| output.fail(Exit::Local, &error, Some("nothing was imported")))?;
    let mut total = Imported { left, ..Imported::default() };
    let bar = bar(output, "import [{wide_bar}] {pos}/{len} routes");
    bar.set_length(rows.len() as u64);
    let mut rest = &rows[..];
    while !rest.is_empty() {
        let (now, later) = rest.split_at(page(rest).max(1));
        let done = super::ask(node, at, &ImportRoutes { rows: now.to_vec(), replace, why: why.clone() }, output).await;
        let done = done.inspect_err(|_| {
            bar.finish_and_clear();
            if rest.len() < rows.len() {
                output.say(&format!("{} of {} rows were imported before that; again is safe", rows.len() - rest.len(), rows.len()));
            }
        })?;
        total.added.extend(done.added);
        total.replaced.extend(done.replaced);
        total.same.extend(done.same);
        total.left.extend(done.left);
        total.wrong.extend(done.wrong);
        bar.inc(now.len() as u64);
        rest = later;
    }
    bar.finish_and_clear();
    output.data(&total, |style| render::imported(&total, style))?;
    let (added, replaced, same) = (total.added.len(), total.replaced.len(), total.same.len());
    output.say(&format!("{added} routes were added, {replaced} replaced, {same} were there already, {} were left", total.left.len()));
    if total.left.is_empty() { Ok(()) } else { Err(Exit::Failed.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_of_a_go_file_is_read_and_what_has_no_name_is_given_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("routes.db");
        let file = Connection::open(&path).unwrap();
        file.execute_batch(
            "CREATE TABLE routes (service_name TEXT PRIMARY KEY, strategy TEXT NOT NULL, endpoint TEXT, config TEXT DEFAULT '{}',
                 updated_at INTEGER NOT NULL DEFAULT 0);
             INSERT INTO routes VALUES (NULL, 'noop', NULL, NULL, 1), ('b', 'http', 'x', '{', 2), (x'00ff', 'local', 7, x'7b7d', 'x'), ('a', 'noop', NULL, '{}', 1);",
        )
        .unwrap();
        file.execute("INSERT INTO routes (service_name, strategy, config) VALUES ('large', 'noop', ?1)", ["x".repeat(MAX_CONFIG + 1)])
            .unwrap();
        drop(file);
        let before = std::fs::read(&path).unwrap();
        let read = read(&path).unwrap();
        let names: Vec<_> = read.rows.iter().map(|row| &*row.service).collect();
        assert_eq!(names, ["unnamed:1", "a", "b", "unnamed:3:00FF"]);
        assert_eq!((read.rows[3].endpoint.as_deref(), read.rows[3].config.as_deref()), (Some("7"), Some("{}")));
        assert_eq!(read.rows[0].config, None);
        assert_eq!(&*read.left[0].service, "large");
        assert_eq!(std::fs::read(&path).unwrap(), before);
    }

    #[test]
    fn a_file_without_routes_or_with_too_many_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("other.db");
        assert!(matches!(read(&path), Err(FileError::Open(..))));
        let file = Connection::open(&path).unwrap();
        file.execute_batch("CREATE TABLE other (a)").unwrap();
        assert!(matches!(read(&path), Err(FileError::NoRoutes(_))));
        file.execute_batch("CREATE TABLE routes (service_name TEXT, strategy TEXT, endpoint TEXT, config TEXT)").unwrap();
        let many = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i <= ?1)
                    INSERT INTO routes SELECT 'r' || i, 'noop', NULL, NULL FROM n";
        file.execute(many, [MAX_ROUTES]).unwrap();
        assert!(matches!(read(&path), Err(FileError::TooMany(_))));
    }

    #[test]
    fn a_request_is_full_by_its_rows_or_its_bytes() {
        let row = |bytes: usize| ImportedRow {
            service: "a".into(),
            strategy: "noop".into(),
            endpoint: None,
            config: Some("x".repeat(bytes).into()),
        };
        assert_eq!(page(&vec![row(1); PAGE + 9]), PAGE);
        assert_eq!(page(&vec![row(MAX_CONFIG); 40]), 16);
        assert_eq!(page(&[]), 0);
    }
}

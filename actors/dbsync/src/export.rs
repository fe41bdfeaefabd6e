//! What a publication holds, as a SQLite file of its own: for people, for programs that take files, and for nodes of the Go system,
//! which take nothing else.
//!
//! The file is made under a temporary name beside its place, readable by its owner only, filtered while it is written: nothing
//! unpublished is ever in it. It appears at its place whole and on disk, or not at all, and never in place of another.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use horos_store::{
    StoreError,
    open::{Access, OpenError, Options, open},
    rusqlite::{
        self, Connection, OpenFlags,
        types::{ToSql, ToSqlOutput, ValueRef},
    },
};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::filter::{Filter, FilterProblems, FilterSpec, LoadError, Table};

/// Rows between two calls to whoever watches: some tens of milliseconds.
const TELL_EVERY: u64 = 20_000;
/// The file's pages: SQLite's default since 3.12, whatever the database's are.
const PAGE: u32 = 4_096;
/// Bytes hashed at a time.
const BLOCK: usize = 1 << 20;

/// A file that was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Exported {
    /// Its rows, of all tables.
    pub rows: u64,
    /// Its size in bytes.
    pub bytes: u64,
    /// The SHA-256 of it, in hexadecimal.
    pub sha256: String,
}

/// Why no file was made. There is none then, and nothing that was there was touched.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// The database cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The filter does not fit it.
    #[error(transparent)]
    Problems(FilterProblems),
    /// Something is in the way. Move it, or name another place.
    #[error("{} is there already", .0.display())]
    Exists(PathBuf),
    /// The database could not be read, or the file not be written. Whether trying again helps, its kind says.
    #[error("the database could not be copied")]
    Database(#[source] StoreError),
    /// The file could not be made.
    #[error("{} cannot be written", .0.display())]
    Io(PathBuf, #[source] io::Error),
}

impl From<rusqlite::Error> for ExportError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Database(error.into())
    }
}

impl From<LoadError> for ExportError {
    fn from(error: LoadError) -> Self {
        match error {
            LoadError::Problems(problems) => Self::Problems(problems),
            LoadError::Database(source) => Self::Database(source),
        }
    }
}

/// Writes what `spec` publishes of the database in `from` into the new file `to`. `watch` is told now and then how many rows are
/// written, and of how many, as far as that is known.
///
/// Reads one state of the database; a writer is not held up by that, only SQLite's log of it grows meanwhile.
///
/// # Errors
/// [`ExportError`].
pub fn export(from: &Path, spec: &FilterSpec, to: &Path, watch: &mut dyn FnMut(u64, u64)) -> Result<Exported, ExportError> {
    let source = open(&Options::new(from, Access::ReadOnly))?;
    let transaction = source.unchecked_transaction()?;
    let filter = Filter::load(&source, spec)?;
    let made = write(&source, &filter, to, watch)?;
    transaction.finish()?;
    Ok(made)
}

/// The same from a connection that is in a read transaction, with a filter that was loaded in it.
///
/// # Errors
/// [`ExportError`].
pub fn write(source: &Connection, filter: &Filter, to: &Path, watch: &mut dyn FnMut(u64, u64)) -> Result<Exported, ExportError> {
    if fs::symlink_metadata(to).is_ok() {
        return Err(ExportError::Exists(to.to_owned()));
    }
    let partial = Partial::create(to)?;
    let rows = fill(source, filter, &partial.0, watch)?;
    let (bytes, sha256) = digest(&partial.0).map_err(|error| ExportError::Io(to.to_owned(), error))?;
    partial.keep(to)?;
    Ok(Exported { rows, bytes, sha256 })
}

/// The file while it is made; it goes with this unless it is kept.
struct Partial(PathBuf);

impl Partial {
    fn create(to: &Path) -> Result<Self, ExportError> {
        let mut name = to.file_name().unwrap_or_default().to_owned();
        name.push(".partial");
        let path = to.with_file_name(name);
        let io = |error: io::Error| ExportError::Io(path.clone(), error);
        // One that was left behind by a process that was killed.
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io(error)),
            _ => {}
        }
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(io)?;
        Ok(Self(path))
    }

    /// On disk first, then at its place, then that on disk too.
    fn keep(self, to: &Path) -> Result<(), ExportError> {
        let io = |error: io::Error| ExportError::Io(to.to_owned(), error);
        File::open(&self.0).and_then(|file| file.sync_all()).map_err(io)?;
        // Unlike a rename, a link replaces nothing.
        fs::hard_link(&self.0, to).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => ExportError::Exists(to.to_owned()),
            _ => io(error),
        })?;
        drop(self);
        let directory = to.parent().filter(|it| !it.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(directory).and_then(|directory| directory.sync_all()).map_err(io)
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // What is left is found by the next one.
        let _ = fs::remove_file(&self.0);
    }
}

fn fill(source: &Connection, filter: &Filter, path: &Path, watch: &mut dyn FnMut(u64, u64)) -> Result<u64, ExportError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let file = Connection::open_with_flags(path, flags)?;
    // Nobody sees the file before it is whole, so nothing has to be undone in it.
    file.execute_batch(&format!(
        "PRAGMA page_size = {PAGE}; PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA locking_mode = EXCLUSIVE;
         PRAGMA cache_size = -16384; BEGIN"
    ))?;
    let total = filter.tables().iter().try_fold(0, |sum, table| count(source, table).map(|count| sum + count))?;
    let mut done = 0;
    watch(done, total);
    for table in filter.tables() {
        let (create, indexes) = table.schema().split_first().map_or(("", &[][..]), |(create, rest)| (create.as_str(), rest));
        file.execute_batch(create)?;
        copy(source, &file, table, &mut |rows| {
            done += rows;
            watch(done, total);
        })?;
        for index in indexes {
            file.execute_batch(index)?;
        }
    }
    file.execute_batch("COMMIT")?;
    file.close().map_err(|(_, error)| error)?;
    Ok(done)
}

/// About how many rows: exact where all are published, an upper bound where some are not.
fn count(source: &Connection, table: &Table) -> rusqlite::Result<u64> {
    let name = table.name().replace('"', "\"\"");
    source.query_row(&format!("SELECT count(*) FROM main.\"{name}\""), [], |row| row.get::<_, i64>(0)).map(i64::unsigned_abs)
}

/// A value as it is, text that is no UTF-8 included.
struct AsItIs<'a>(ValueRef<'a>);

impl ToSql for AsItIs<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(self.0))
    }
}

fn copy(source: &Connection, file: &Connection, table: &Table, told: &mut dyn FnMut(u64)) -> rusqlite::Result<()> {
    let quote = |name: &String| format!("\"{}\"", name.replace('"', "\"\""));
    let columns: Vec<String> = table.columns().iter().map(quote).collect();
    let places: Vec<String> = (1..=columns.len()).map(|place| format!("?{place}")).collect();
    let into = format!("INSERT INTO {} ({}) VALUES ({})", quote(&table.name().to_owned()), columns.join(", "), places.join(", "));
    let (mut select, mut insert) = (source.prepare(table.select())?, file.prepare(&into)?);
    let mut rows = select.query([])?;
    let mut untold = 0;
    while let Some(row) = rows.next()? {
        for place in 0..columns.len() {
            insert.raw_bind_parameter(place + 1, AsItIs(row.get_ref(place)?))?;
        }
        insert.raw_execute()?;
        untold += 1;
        if untold == TELL_EVERY {
            told(untold);
            untold = 0;
        }
    }
    told(untold);
    Ok(())
}

fn digest(path: &Path) -> io::Result<(u64, String)> {
    let (mut file, mut hash, mut bytes) = (File::open(path)?, Sha256::new(), 0);
    let mut block = vec![0; BLOCK];
    loop {
        match file.read(&mut block)? {
            0 => return Ok((bytes, hex::encode(hash.finalize()))),
            read => {
                hash.update(&block[..read]);
                bytes += read as u64;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "sesame-3f2a91";

    fn database(directory: &Path) -> PathBuf {
        let path = directory.join("app.db");
        Connection::open(&path)
            .unwrap()
            .execute_batch(&format!(
                "CREATE TABLE goods (sku TEXT PRIMARY KEY, price INTEGER NOT NULL, cost TEXT, listed INTEGER) WITHOUT ROWID;
                 CREATE INDEX by_price ON goods (price);
                 INSERT INTO goods VALUES ('tea', 3, '{SECRET}', 1), ('{SECRET}', 9, 'x', NULL), ('cup', 5, '{SECRET}', 1);
                 CREATE TABLE private (secret TEXT); INSERT INTO private VALUES ('{SECRET}');"
            ))
            .unwrap();
        path
    }

    fn spec() -> FilterSpec {
        serde_json::from_str(r#"{"partial-tables": {"goods": {"columns": ["price"], "where": "listed = 1"}}}"#).unwrap()
    }

    #[test]
    fn a_file_holds_what_is_published_and_no_byte_of_anything_else() {
        let directory = tempfile::tempdir().unwrap();
        let (from, to) = (database(directory.path()), directory.path().join("public.db"));
        let mut seen = Vec::new();
        let made = export(&from, &spec(), &to, &mut |done, total| seen.push((done, total))).unwrap();
        assert_eq!((made.rows, seen.first(), seen.last()), (2, Some(&(0, 3)), Some(&(2, 3))));
        let bytes = fs::read(&to).unwrap();
        assert_eq!(made.bytes, bytes.len() as u64);
        assert_eq!(made.sha256, hex::encode(Sha256::digest(&bytes)));
        assert!(!bytes.windows(SECRET.len()).any(|part| part == SECRET.as_bytes()), "something private is in the file");
        let file = Connection::open(&to).unwrap();
        let goods: String =
            file.query_row("SELECT group_concat(sku || price || ifnull(cost, '-')) FROM goods", [], |row| row.get(0)).unwrap();
        assert_eq!(goods, "cup5-,tea3-");
        let sound: String = file.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        let indexed: i64 = file.query_row("SELECT count(*) FROM sqlite_master WHERE name LIKE '%price%'", [], |row| row.get(0)).unwrap();
        assert_eq!((sound.as_str(), indexed), ("ok", 1));
        assert!(!directory.path().join("public.db.partial").exists());
    }

    #[test]
    fn nothing_is_overwritten_and_nothing_half_is_left() {
        let directory = tempfile::tempdir().unwrap();
        let (from, to) = (database(directory.path()), directory.path().join("public.db"));
        fs::write(&to, "somebody's").unwrap();
        assert!(matches!(export(&from, &spec(), &to, &mut |_, _| ()), Err(ExportError::Exists(_))));
        assert_eq!(fs::read(&to).unwrap(), b"somebody's");
        let other = directory.path().join("other.db");
        let wrong = serde_json::from_str(r#"{"full-tables": ["nowhere"]}"#).unwrap();
        assert!(matches!(export(&from, &wrong, &other, &mut |_, _| ()), Err(ExportError::Problems(_))));
        // A file of a process that was killed is in nobody's way.
        fs::write(directory.path().join("other.db.partial"), "half").unwrap();
        export(&from, &spec(), &other, &mut |_, _| ()).unwrap();
        assert_eq!(
            fs::read_dir(directory.path()).unwrap().filter(|it| it.as_ref().unwrap().path().to_string_lossy().contains("partial")).count(),
            0
        );
    }
}

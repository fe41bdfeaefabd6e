//! A published database, its replica, and the streams between them.

use std::{
    collections::{BTreeMap, HashSet},
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
};

use bytes::Bytes;
use horos_store::open::Check;
use rusqlite::{Connection, OpenFlags, types::Value};
use tempfile::TempDir;

use crate::{
    apply::{Applier, ApplyError, Cut, Done, Progress, Source, State, live::Settings, position},
    build::{BuildError, Built, Job, KeyRange, Published, Request, Sweep, build},
    capture::{self, Attached, Key, Plan, Position, Tracked, attach},
    filter::{Filter, FilterSpec, KeyKind},
    value::put_row,
};

/// Shared by both sides' tests: three kinds of keys, an index, a filter and a projection.
pub(crate) const SCHEMA: &str = "
    CREATE TABLE item (id INTEGER PRIMARY KEY, name TEXT, price REAL, secret TEXT, listed INTEGER DEFAULT 1);
    CREATE INDEX item_by_name ON item (name);
    CREATE TABLE stock (shop TEXT COLLATE NOCASE, sku TEXT, amount INTEGER, PRIMARY KEY (shop, sku)) WITHOUT ROWID;
    CREATE TABLE note (body TEXT, mark BLOB);";
pub(crate) const SPEC: &str = "
full_tables: [stock, note]
partial_tables:
  item: { columns: [name, price], where: \"listed = 1\" }";

pub(crate) struct Bo {
    pub(crate) dir: TempDir,
    pub(crate) file: Connection,
    pub(crate) published: Published,
    filter: Filter,
    attached: Attached,
    numbers: Vec<String>,
}

/// A table keeps its number for as long as it is published.
fn plan(filter: &Filter, numbers: &mut Vec<String>) -> Plan {
    let tracked = filter.tables().iter().map(|table| Tracked {
        number: number(table.name(), numbers),
        name: table.name().to_owned(),
        columns: table.columns().to_vec(),
        key: match table.key().kind {
            KeyKind::Rowid => Key::Rowid,
            _ => Key::Columns(table.key().columns.iter().map(|column| column.name.clone()).collect()),
        },
    });
    Plan::new(tracked.collect())
}

fn number(name: &str, numbers: &mut Vec<String>) -> u32 {
    let place = numbers.iter().position(|known| known == name).unwrap_or_else(|| {
        numbers.push(name.to_owned());
        numbers.len() - 1
    });
    place as u32 + 1
}

fn load(file: &Connection, spec: &str, numbers: &mut Vec<String>, before: Option<&Attached>) -> (Published, Filter, Attached) {
    let spec: FilterSpec = serde_saphyr::from_str(spec).unwrap();
    let filter = Filter::load(file, &spec).unwrap_or_else(|error| panic!("{error}"));
    let plan = plan(&filter, numbers);
    let attached = attach(file, &plan, before.map(|before| &before.witness)).unwrap();
    (Published::new(&filter, &plan).unwrap(), filter, attached)
}

impl Bo {
    pub(crate) fn new() -> Bo {
        Bo::with(SCHEMA, SPEC)
    }

    pub(crate) fn with(schema: &str, spec: &str) -> Bo {
        let dir = tempfile::tempdir().unwrap();
        let file = Connection::open(dir.path().join("bo.db")).unwrap();
        file.execute_batch(&format!("PRAGMA synchronous = OFF; {schema}; PRAGMA journal_mode = WAL")).unwrap();
        let mut numbers = Vec::new();
        let (published, filter, attached) = load(&file, spec, &mut numbers, None);
        Bo { dir, file, published, filter, attached, numbers }
    }

    /// With `rows` items, and a tenth as many of the others.
    pub(crate) fn filled(rows: u32) -> Bo {
        let bo = Bo::new();
        bo.fill(0, rows);
        bo
    }

    pub(crate) fn fill(&self, from: u32, rows: u32) {
        let series =
            |count: u32| format!("WITH RECURSIVE n(i) AS (SELECT {from} UNION ALL SELECT i + 1 FROM n WHERE i + 1 < {})", from + count);
        self.run(&format!(
            "BEGIN; INSERT INTO item (id, name, price, secret) {} SELECT i, 'item ' || i || ' ' || hex(zeroblob(i % 40)), i / 7.0, 'private' FROM n;
             INSERT INTO stock {} SELECT 'shop ' || (i % 7), 'sku ' || i, i FROM n;
             INSERT INTO note {} SELECT 'note ' || i, zeroblob(i % 9) FROM n; COMMIT",
            series(rows),
            series((rows / 10).max(1)),
            series((rows / 10).max(1)),
        ));
    }

    pub(crate) fn run(&self, sql: &str) {
        self.file.execute_batch(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
    }

    /// The filter or the schema may have changed.
    pub(crate) fn reload(&mut self, spec: &str) {
        (self.published, self.filter, self.attached) = load(&self.file, spec, &mut self.numbers, Some(&self.attached));
    }

    pub(crate) fn head(&self) -> Position {
        capture::head(&self.file).unwrap()
    }

    pub(crate) fn stream(&self, request: &Request<'_>) -> (Vec<u8>, Built) {
        let mut stream = Vec::new();
        let built = build(&self.file, &self.published, request, &Job::default(), &mut |bytes| {
            stream.extend_from_slice(bytes);
            Ok(())
        });
        (stream, built.unwrap_or_else(|error| panic!("{error}")))
    }

    pub(crate) fn snapshot(&self) -> Vec<u8> {
        self.snapshot_beside(&HashSet::new()).0
    }

    pub(crate) fn snapshot_beside(&self, have: &HashSet<[u8; 16]>) -> (Vec<u8>, Built) {
        self.stream(&request(None, &BTreeMap::new(), have))
    }

    /// From where the replica is to the present.
    pub(crate) fn delta(&self, fo: &Applier) -> Vec<u8> {
        let (base, known) = place_of(fo);
        self.stream(&request(base, &known, &HashSet::new())).0
    }

    /// As [`Bo::delta`]; none when the log does not lead there and a snapshot has to.
    pub(crate) fn try_delta(&self, fo: &Applier, sweep: Option<Sweep>) -> Option<Vec<u8>> {
        let (base, known) = place_of(fo);
        let mut stream = Vec::new();
        let none = HashSet::new();
        let request = Request { sweep, ..request(base, &known, &none) };
        let built = build(&self.file, &self.published, &request, &Job::default(), &mut |bytes| {
            stream.extend_from_slice(bytes);
            Ok(())
        });
        match built {
            Ok(_) => Some(stream),
            Err(BuildError::Gap(_)) => None,
            Err(error) => panic!("{error}"),
        }
    }

    pub(crate) fn delta_from(&self, state: &State) -> Vec<u8> {
        let (base, known) = place_in(state);
        self.stream(&request(base, &known, &HashSet::new())).0
    }

    pub(crate) fn delta_with(&self, fo: &Applier, repairs: &[KeyRange], sweep: Option<Sweep>) -> (Vec<u8>, Built) {
        let (base, known) = place_of(fo);
        self.stream(&Request { repairs, sweep, ..request(base, &known, &HashSet::new()) })
    }

    /// Every published row, as the filter gives it.
    pub(crate) fn content(&self) -> BTreeMap<String, Vec<Vec<u8>>> {
        self.filter.tables().iter().map(|table| (table.name().to_owned(), encoded(&self.file, table.select()))).collect()
    }
}

pub(crate) fn request<'a>(base: Option<Position>, known: &'a BTreeMap<String, [u8; 16]>, have: &'a HashSet<[u8; 16]>) -> Request<'a> {
    Request { publication: "shop", base, known, have, repairs: &[], sweep: None, schema: None, made_at: 1_700_000_000_000 }
}

fn place_of(fo: &Applier) -> (Option<Position>, BTreeMap<String, [u8; 16]>) {
    fo.state().map_or_else(|| (None, BTreeMap::new()), place_in)
}

fn place_in(state: &State) -> (Option<Position>, BTreeMap<String, [u8; 16]>) {
    let base = state.current().map(|at| Position { epoch: at.epoch.to_bytes(), seq: at.seq, stamp: at.stamp });
    (base, state.tables.iter().map(|it| (it.shape.name().to_owned(), it.shape.head.fingerprint)).collect())
}

pub(crate) fn all(file: &Connection, sql: &str) -> Vec<Vec<Value>> {
    let mut statement = file.prepare(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
    let width = statement.column_count();
    let rows = statement.query_map([], |row| (0..width).map(|i| row.get(i)).collect()).unwrap();
    rows.collect::<rusqlite::Result<_>>().unwrap()
}

/// The same as bytes: text need not be UTF-8.
pub(crate) fn encoded(file: &Connection, sql: &str) -> Vec<Vec<u8>> {
    let mut statement = file.prepare(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
    let width = statement.column_count();
    let rows = statement.query_map([], |row| {
        let mut bytes = Vec::new();
        put_row(&mut bytes, row, width).map(|_| bytes)
    });
    rows.unwrap().collect::<rusqlite::Result<_>>().unwrap()
}

/// A replica's directory and its applier.
pub(crate) struct Fo {
    pub(crate) dir: TempDir,
    pub(crate) applier: Applier,
}

impl std::ops::Deref for Fo {
    type Target = Applier;
    fn deref(&self) -> &Applier {
        &self.applier
    }
}

impl std::ops::DerefMut for Fo {
    fn deref_mut(&mut self) -> &mut Applier {
        &mut self.applier
    }
}

pub(crate) fn settings(dir: &Path) -> Settings {
    Settings { name: "shop".into(), path: dir.join("fo.db"), readable_by: Default::default(), max_bytes: None, check: Check::Quick }
}

impl Fo {
    pub(crate) fn new() -> Fo {
        let dir = tempfile::tempdir().unwrap();
        let applier = open(dir.path());
        Fo { dir, applier }
    }

    /// With what is published now.
    pub(crate) fn of(bo: &Bo) -> Fo {
        let mut fo = Fo::new();
        fo.take(bo.snapshot()).unwrap();
        fo.assert_equals(bo);
        fo
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("fo.db")
    }

    pub(crate) fn take(&mut self, stream: Vec<u8>) -> Result<Done, ApplyError> {
        take(&mut self.applier, stream)
    }

    /// Brings it up to date by a delta, and compares everything.
    pub(crate) fn follow(&mut self, bo: &Bo) -> Done {
        let stream = bo.delta(&self.applier);
        let done = self.take(stream).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(done.position, position(&bo.head()));
        self.assert_equals(bo);
        done
    }

    /// The marks of all that is offered.
    pub(crate) fn offers(&mut self) -> HashSet<[u8; 16]> {
        let mut found = HashSet::new();
        let mut from = None;
        loop {
            let page = self.applier.offer(from, &AtomicBool::new(false)).unwrap();
            found.extend(page.marks);
            from = page.next;
            if from.is_none() {
                return found;
            }
        }
    }

    pub(crate) fn reader(&self) -> Connection {
        reader(&self.path())
    }

    #[track_caller]
    pub(crate) fn assert_equals(&self, bo: &Bo) {
        assert_same(&self.reader(), bo);
    }

    /// Closed and opened again, as by a restart of the node.
    pub(crate) fn restart(self) -> Fo {
        let Fo { dir, applier } = self;
        applier.close();
        let applier = open(dir.path());
        Fo { dir, applier }
    }

    pub(crate) fn files(&self) -> Vec<String> {
        files(self.dir.path())
    }
}

pub(crate) fn open(dir: &Path) -> Applier {
    let (applier, damage) = Applier::open(settings(dir)).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(damage, None);
    applier
}

pub(crate) fn take(applier: &mut Applier, stream: Vec<u8>) -> Result<Done, ApplyError> {
    applier.apply(Box::new(Some(Bytes::from(stream))), &Progress::default())
}

pub(crate) fn reader(path: &Path) -> Connection {
    Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap()
}

pub(crate) fn files(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// All published tables, and they alone, with the very values; and a sound file.
#[track_caller]
pub(crate) fn assert_same(fo: &Connection, bo: &Bo) {
    let content = bo.content();
    for (table, rows) in &content {
        let here = bo.published.heads().find(|head| head.name == *table).unwrap();
        let sql = crate::apply::shape::Shape::known(here.clone()).ordered_sql();
        let found = encoded(fo, &sql);
        assert!(found == *rows, "{table}: {} rows here, {} there", found.len(), rows.len());
    }
    let tables = all(fo, "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE '\\_horos%' ESCAPE '\\' ORDER BY name");
    let names: Vec<Vec<Value>> = content.keys().map(|name| vec![Value::Text(name.clone())]).collect();
    assert_eq!(tables, names);
    let others = all(fo, "SELECT name FROM sqlite_schema WHERE type NOT IN ('table', 'index')");
    assert_eq!(others, Vec::<Vec<Value>>::new());
    assert_eq!(all(fo, "PRAGMA integrity_check"), [[Value::Text("ok".into())]]);
}

/// A stream that is cut off after so many bytes.
pub(crate) struct CutOff {
    pub(crate) bytes: Bytes,
    pub(crate) at: usize,
}

impl Source for CutOff {
    fn chunk(&mut self) -> Result<Option<Bytes>, Cut> {
        if self.at == 0 {
            return Err(Cut("the link is gone".into()));
        }
        let piece = self.bytes.split_to(self.at.min(64 << 10).min(self.bytes.len()));
        self.at -= piece.len().min(self.at);
        Ok(Some(piece).filter(|piece| !piece.is_empty()))
    }
}

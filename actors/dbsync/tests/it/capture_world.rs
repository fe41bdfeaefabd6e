//! A database file with capture attached, foreign writers, and a full comparison as the witness.

use std::{
    collections::BTreeSet,
    io::Write as _,
    path::PathBuf,
    process::{Command, Stdio},
};

use horos_dbsync::capture::{
    Attached, Changes, Key, KeyPart, Look, Page, Plan, Position, Sentinel, TableChanges, Tracked, Witness, attach, since,
};
use horos_store::rusqlite::{Connection, OpenFlags, params_from_iter, types::ValueRef};

/// A row of any table, with its types.
pub(crate) type Cells = Vec<String>;

pub(crate) struct World {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) plan: Plan,
    pub(crate) attached: Attached,
}

pub(crate) fn columns(number: u32, name: &str, columns: &[&str], key: &[&str]) -> Tracked {
    let key = if key.is_empty() { Key::Rowid } else { Key::Columns(key.iter().map(|c| (*c).to_owned()).collect()) };
    Tracked { number, name: name.into(), columns: columns.iter().map(|c| (*c).to_owned()).collect(), key }
}

/// The `sqlite3` shell on `script`: what it printed, errors included.
pub(crate) fn shell(path: &std::path::Path, script: &str) -> String {
    let mut child = Command::new("sqlite3")
        .arg("-batch")
        .arg(path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the sqlite3 shell is installed (tests/run)");
    child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn cell(value: ValueRef<'_>) -> String {
    match value {
        ValueRef::Null => "null".into(),
        ValueRef::Integer(value) => format!("i{value}"),
        ValueRef::Real(value) => format!("r{value:?}"),
        ValueRef::Text(value) => format!("t{}", String::from_utf8_lossy(value)),
        ValueRef::Blob(value) => format!("b{value:?}"),
    }
}

impl World {
    pub(crate) fn new(schema: &str, tables: Vec<Tracked>) -> World {
        World::keeping(schema, Plan::new(tables))
    }

    pub(crate) fn keeping(schema: &str, plan: Plan) -> World {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("live.db");
        let connection = Connection::open(&path).unwrap();
        connection.execute_batch("PRAGMA journal_mode=WAL; PRAGMA foreign_keys=OFF").unwrap();
        connection.execute_batch(schema).unwrap();
        drop(connection);
        std::fs::copy(&path, dir.path().join("bare.db")).unwrap();
        let connection = Connection::open(&path).unwrap();
        let attached = attach(&connection, &plan, None).unwrap();
        World { dir, plan, attached }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("live.db")
    }

    /// The same database without us.
    pub(crate) fn bare(&self) -> PathBuf {
        self.dir.path().join("bare.db")
    }

    pub(crate) fn reader(&self) -> Connection {
        Connection::open_with_flags(self.path(), OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap()
    }

    pub(crate) fn writer(&self) -> Connection {
        Connection::open(self.path()).unwrap()
    }

    pub(crate) fn sentinel(&self) -> (Sentinel, Connection) {
        let mut sentinel = Sentinel::new(self.path(), self.attached.witness.clone()).unwrap();
        let reader = self.reader();
        // The first look knows no earlier commit.
        assert_eq!(
            sentinel.look(&reader).unwrap(),
            Look::Committed { head: self.attached.position(), logged: false },
            "nothing happened since attaching"
        );
        (sentinel, reader)
    }

    /// Attaches again, as the publisher does after a look that asked for it.
    pub(crate) fn mend(&mut self, witness: &Witness) -> Attached {
        self.attached = attach(&self.writer(), &self.plan, Some(witness)).unwrap();
        self.attached.clone()
    }

    /// Everything since `from`, in small pages.
    pub(crate) fn changes(&self, connection: &Connection, from: Position) -> Page {
        let mut whole: Option<Page> = None;
        let mut from = from;
        loop {
            let Changes::Page(page) = since(connection, &from, 7).unwrap() else { panic!("a gap after {from:?}") };
            from = page.through;
            let more = page.more;
            let sum = whole.get_or_insert_with(|| Page { tables: Default::default(), entries: 0, more: false, ..page.clone() });
            sum.entries += page.entries;
            sum.through = page.through;
            for (number, changes) in page.tables {
                let table: &mut TableChanges = sum.tables.entry(number).or_default();
                table.whole |= changes.whole;
                for key in changes.keys {
                    if !table.keys.contains(&key) {
                        table.keys.push(key);
                    }
                }
            }
            if !more {
                return whole.unwrap();
            }
        }
    }

    /// The rows of a table with the names of its key.
    fn rows(&self, connection: &Connection, tracked: &Tracked) -> BTreeSet<(Cells, Cells)> {
        let key = key_columns(tracked);
        let mut statement = connection.prepare(&format!("SELECT {}, * FROM main.{}", key.join(", "), quoted(&tracked.name))).unwrap();
        let width = statement.column_count();
        let mut rows = statement.query([]).unwrap();
        let mut found = BTreeSet::new();
        while let Some(row) = rows.next().unwrap() {
            let cells: Cells = (0..width).map(|i| cell(row.get_ref(i).unwrap())).collect();
            found.insert((cells[..key.len()].to_vec(), cells));
        }
        found
    }

    /// All captured tables.
    pub(crate) fn content(&self, connection: &Connection) -> Vec<BTreeSet<(Cells, Cells)>> {
        self.plan.tables.iter().map(|tracked| self.rows(connection, tracked)).collect()
    }

    /// What a replica has after replaying the keys of `page` with the rows of now: `before` without the rows equal to a logged
    /// key, and with the present ones. Equality of keys is SQLite's, asked of `connection`.
    pub(crate) fn replay(
        &self,
        connection: &Connection,
        before: &[BTreeSet<(Cells, Cells)>],
        before_file: &Connection,
        page: &Page,
    ) -> Vec<BTreeSet<(Cells, Cells)>> {
        let mut after = before.to_vec();
        for (table, tracked) in after.iter_mut().zip(&self.plan.tables) {
            let Some(changes) = page.tables.get(&tracked.number) else { continue };
            for key in &changes.keys {
                for row in matching(before_file, tracked, key) {
                    table.remove(&row);
                }
            }
            for key in &changes.keys {
                table.extend(matching(connection, tracked, key));
            }
        }
        after
    }
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn key_columns(tracked: &Tracked) -> Vec<String> {
    match &tracked.key {
        Key::Rowid => vec!["rowid".into()],
        Key::Columns(columns) => columns.iter().map(|c| quoted(c)).collect(),
    }
}

fn matching(connection: &Connection, tracked: &Tracked, key: &[KeyPart]) -> Vec<(Cells, Cells)> {
    let names = key_columns(tracked);
    let same: Vec<String> = names.iter().map(|name| format!("{name} IS ?")).collect();
    let sql = format!("SELECT {}, * FROM main.{} WHERE {}", names.join(", "), quoted(&tracked.name), same.join(" AND "));
    let mut statement = connection.prepare(&sql).unwrap();
    let width = statement.column_count();
    let mut rows = statement.query(params_from_iter(key)).unwrap();
    let mut found = Vec::new();
    while let Some(row) = rows.next().unwrap() {
        let cells: Cells = (0..width).map(|i| cell(row.get_ref(i).unwrap())).collect();
        found.push((cells[..names.len()].to_vec(), cells));
    }
    found
}

/// A schema as text.
pub(crate) fn schema(connection: &Connection) -> Vec<String> {
    let mut statement = connection
        .prepare("SELECT type || ' ' || name || ' ' || tbl_name || ' ' || coalesce(sql, '') FROM sqlite_master ORDER BY 1")
        .unwrap();
    statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
}

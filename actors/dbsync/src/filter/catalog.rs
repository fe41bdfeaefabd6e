//! What the database holds, as SQLite itself describes it (`pragma_table_list`, `table_xinfo`, `index_xinfo`), never as its SQL
//! text reads: a comment, a constant or an expression in a `CREATE` statement is not looked at, so it cannot travel.

use rusqlite::Connection;

use super::{Key, KeyColumn, KeyKind};

/// The collations that every SQLite has. Others live in the program that registered them.
const COLLATIONS: [&str; 3] = ["BINARY", "NOCASE", "RTRIM"];
/// The names that a rowid goes by, unless a column has taken them.
const ROWID_NAMES: [&str; 3] = ["rowid", "_rowid_", "oid"];
/// Names that begin so are ours: the change log and what belongs to it.
const OURS: &str = "_horos_";
/// Names that begin so are SQLite's.
const SYSTEM: &str = "sqlite_";

/// What a name in the database stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Table {
        without_rowid: bool,
        strict: bool,
    },
    View,
    Virtual,
    /// Belongs to a virtual table.
    Shadow,
    /// SQLite's own.
    System,
    /// Horos's own.
    Ours,
}

/// A table-like thing in the database.
#[derive(Clone, Debug)]
pub(super) struct Object {
    pub name: String,
    pub kind: Kind,
}

/// Everything in the database that could be meant by a table's name.
#[derive(Debug)]
pub(super) struct Catalog {
    pub objects: Vec<Object>,
}

impl Catalog {
    pub(super) fn read(connection: &Connection) -> rusqlite::Result<Catalog> {
        let mut statement = connection.prepare("SELECT name, type, wr, strict FROM pragma_table_list WHERE schema = 'main'")?;
        let mut objects: Vec<Object> = statement
            .query_map([], |row| {
                let (name, kind): (String, String) = (row.get(0)?, row.get(1)?);
                let kind = match kind.as_str() {
                    _ if begins(&name, SYSTEM) => Kind::System,
                    _ if begins(&name, OURS) => Kind::Ours,
                    "table" => Kind::Table { without_rowid: row.get(2)?, strict: row.get(3)? },
                    "view" => Kind::View,
                    "shadow" => Kind::Shadow,
                    // Whatever a later SQLite calls by another name is not an ordinary table.
                    _ => Kind::Virtual,
                };
                Ok(Object { name, kind })
            })?
            .collect::<rusqlite::Result<_>>()?;
        // SQLite knows a shadow table only by the module of its virtual table. When this program lacks the module, every table
        // that carries the virtual table's name in front is taken for one.
        let mut foreign = Vec::new();
        for object in objects.iter().filter(|object| object.kind == Kind::Virtual) {
            if connection.prepare(&format!("SELECT 1 FROM \"main\".{}", super::ddl::quote(&object.name))).is_err() {
                foreign.push(format!("{}_", object.name));
            }
        }
        for object in &mut objects {
            if matches!(object.kind, Kind::Table { .. }) && foreign.iter().any(|prefix| begins(&object.name, prefix)) {
                object.kind = Kind::Shadow;
            }
        }
        objects.sort_by_key(|object| object.name.to_ascii_lowercase());
        Ok(Catalog { objects })
    }

    /// The object of that name, as SQLite compares names: ASCII letters without regard to case, all others exactly.
    pub(super) fn find(&self, name: &str) -> Option<&Object> {
        self.objects.iter().find(|object| object.name.eq_ignore_ascii_case(name))
    }
}

fn begins(name: &str, prefix: &str) -> bool {
    name.as_bytes().get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix.as_bytes()))
}

/// What SQLite does to a value stored in a column (<https://www.sqlite.org/datatype3.html> §3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Affinity {
    Integer,
    Text,
    Blob,
    Real,
    Numeric,
}

impl Affinity {
    fn of(declared: &str, strict: bool) -> Affinity {
        let upper = declared.to_ascii_uppercase();
        let has = |words: &[&str]| words.iter().any(|word| upper.contains(word));
        if strict && upper == "ANY" {
            Affinity::Blob
        } else if has(&["INT"]) {
            Affinity::Integer
        } else if has(&["CHAR", "CLOB", "TEXT"]) {
            Affinity::Text
        } else if has(&["BLOB"]) || upper.is_empty() {
            Affinity::Blob
        } else if has(&["REAL", "FLOA", "DOUB"]) {
            Affinity::Real
        } else {
            Affinity::Numeric
        }
    }

    /// A type that has this affinity, and is one of those that STRICT tables know where there is one.
    pub(super) fn type_name(self) -> &'static str {
        match self {
            Affinity::Integer => "INTEGER",
            Affinity::Text => "TEXT",
            Affinity::Blob => "BLOB",
            Affinity::Real => "REAL",
            Affinity::Numeric => "NUMERIC",
        }
    }
}

/// A column as declared.
#[derive(Clone, Debug)]
pub(super) struct Column {
    pub name: String,
    pub declared: String,
    pub affinity: Affinity,
    pub collation: String,
    pub not_null: bool,
    pub generated: bool,
    pub has_default: bool,
}

impl Column {
    pub(super) fn has_builtin_collation(&self) -> bool {
        builtin(&self.collation)
    }
}

/// An index that is not the primary key's.
#[derive(Clone, Debug)]
pub(super) struct Index {
    pub name: String,
    /// Belongs to a UNIQUE constraint and has no name of its own.
    pub automatic: bool,
    pub partial: bool,
    pub columns: Vec<IndexColumn>,
}

/// A column of an index; no name stands for an expression or the rowid.
#[derive(Clone, Debug)]
pub(super) struct IndexColumn {
    pub name: Option<String>,
    pub descending: bool,
    pub collation: String,
}

impl IndexColumn {
    pub(super) fn has_builtin_collation(&self) -> bool {
        builtin(&self.collation)
    }
}

/// Everything about one table.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    pub name: String,
    pub without_rowid: bool,
    pub strict: bool,
    pub columns: Vec<Column>,
    pub key: Key,
    /// `INTEGER PRIMARY KEY DESC`, which by an old mistake of SQLite is not the rowid.
    pub quirky_key: bool,
    pub indexes: Vec<Index>,
    /// Tables that its foreign keys name.
    pub references: Vec<String>,
    pub triggers: Vec<String>,
}

/// Why a table has no key by which its rows could be told apart on another machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum NoKey {
    /// Columns are called `rowid`, `_rowid_` and `oid`.
    Shadowed,
    /// A collation that only the writing program knows decides which keys are the same.
    Collation { column: String, collation: String },
}

impl Shape {
    pub(super) fn read(connection: &Connection, name: &str, without_rowid: bool, strict: bool) -> rusqlite::Result<Result<Shape, NoKey>> {
        let mut columns = Vec::new();
        let mut declared_key: Vec<(i64, String)> = Vec::new();
        let mut statement =
            connection.prepare("SELECT name, type, \"notnull\", dflt_value IS NOT NULL, pk, hidden FROM pragma_table_xinfo(?1, 'main')")?;
        let mut rows = statement.query([name])?;
        while let Some(row) = rows.next()? {
            let column: String = row.get(0)?;
            let declared: String = row.get(1)?;
            let (_, collation, ..) = connection.column_metadata(Some("main"), name, column.as_str())?;
            let collation = collation.map_or_else(|| "BINARY".to_owned(), |it| it.to_string_lossy().into_owned());
            let ordinal: i64 = row.get(4)?;
            if ordinal > 0 {
                declared_key.push((ordinal, column.clone()));
            }
            columns.push(Column {
                affinity: Affinity::of(&declared, strict),
                name: column,
                declared,
                collation,
                not_null: row.get(2)?,
                has_default: row.get(3)?,
                generated: matches!(row.get(5)?, 2 | 3),
            });
        }
        declared_key.sort();
        let (primary, indexes) = read_indexes(connection, name)?;
        let quirky_key = primary.as_ref().is_some_and(|index| {
            let single = index.columns.len() == 1 && index.columns[0].descending && !without_rowid;
            single
                && columns.iter().any(|it| index.columns[0].name.as_ref() == Some(&it.name) && it.declared.eq_ignore_ascii_case("integer"))
        });
        let key = match key(&columns, &declared_key, primary.as_ref(), without_rowid) {
            Ok(key) => key,
            Err(reason) => return Ok(Err(reason)),
        };
        let references = names(connection, "SELECT DISTINCT \"table\" FROM pragma_foreign_key_list(?1, 'main') ORDER BY 1", name)?;
        let triggers = names(
            connection,
            "SELECT name FROM \"main\".sqlite_schema WHERE type = 'trigger' AND tbl_name = ?1 COLLATE NOCASE ORDER BY 1",
            name,
        )?;
        Ok(Ok(Shape { name: name.to_owned(), without_rowid, strict, columns, key, quirky_key, indexes, references, triggers }))
    }

    /// The column of that name, in whichever case.
    pub(super) fn position(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|column| column.name.eq_ignore_ascii_case(name))
    }
}

fn key(columns: &[Column], declared: &[(i64, String)], primary: Option<&Index>, without_rowid: bool) -> Result<Key, NoKey> {
    let column = |name: &str| columns.iter().find(|column| column.name == name);
    if declared.is_empty() {
        let free = |name: &&&str| !columns.iter().any(|column| column.name.eq_ignore_ascii_case(name));
        let name = ROWID_NAMES.iter().find(free).ok_or(NoKey::Shadowed)?;
        let key = KeyColumn { name: (*name).to_owned(), collation: "BINARY".to_owned(), explicit_collation: false, nullable: false };
        return Ok(Key { kind: KeyKind::Rowid, columns: vec![key] });
    }
    let Some(primary) = primary else {
        // A primary key without an index of its own is the rowid itself.
        let columns = declared.iter().map(|(_, name)| KeyColumn {
            name: name.clone(),
            collation: "BINARY".to_owned(),
            explicit_collation: false,
            nullable: false,
        });
        return Ok(Key { kind: KeyKind::Integer, columns: columns.collect() });
    };
    let mut key: Vec<KeyColumn> = Vec::new();
    for it in &primary.columns {
        let Some((name, column)) = it.name.as_ref().and_then(|name| Some((name, column(name)?))) else { continue };
        for collation in [&it.collation, &column.collation] {
            if !builtin(collation) {
                return Err(NoKey::Collation { column: name.clone(), collation: collation.clone() });
            }
        }
        key.push(KeyColumn {
            name: name.clone(),
            explicit_collation: !it.collation.eq_ignore_ascii_case(&column.collation),
            collation: it.collation.clone(),
            // Only in tables with a rowid does SQLite let a primary key be NULL (https://www.sqlite.org/quirks.html §5).
            nullable: !column.not_null && !without_rowid,
        });
    }
    Ok(Key { kind: KeyKind::Declared, columns: key })
}

/// The primary key's index, if it has one, and the others.
fn read_indexes(connection: &Connection, table: &str) -> rusqlite::Result<(Option<Index>, Vec<Index>)> {
    let (mut primary, mut others) = (None, Vec::new());
    let mut statement =
        connection.prepare("SELECT name, origin, partial FROM pragma_index_list(?1, 'main') ORDER BY name COLLATE NOCASE, name")?;
    let mut rows = statement.query([table])?;
    while let Some(row) = rows.next()? {
        let (name, origin): (String, String) = (row.get(0)?, row.get(1)?);
        let columns = connection
            .prepare_cached("SELECT name, \"desc\", coll FROM pragma_index_xinfo(?1, 'main') WHERE key ORDER BY seqno")?
            .query_map([&name], |row| {
                let collation: Option<String> = row.get(2)?;
                Ok(IndexColumn { name: row.get(0)?, descending: row.get(1)?, collation: collation.unwrap_or_else(|| "BINARY".to_owned()) })
            })?
            .collect::<rusqlite::Result<_>>()?;
        let index = Index { name, automatic: origin != "c", partial: row.get(2)?, columns };
        if origin == "pk" {
            primary = Some(index);
        } else {
            others.push(index);
        }
    }
    Ok((primary, others))
}

fn names(connection: &Connection, sql: &str, table: &str) -> rusqlite::Result<Vec<String>> {
    connection.prepare_cached(sql)?.query_map([table], |row| row.get(0))?.collect()
}

fn builtin(collation: &str) -> bool {
    COLLATIONS.iter().any(|known| known.eq_ignore_ascii_case(collation))
}

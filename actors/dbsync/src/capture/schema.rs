//! The shape of a captured table: what its triggers must know to find the rows that a statement removes on the side.

use horos_store::rusqlite::{Connection, OptionalExtension as _, params};

use super::{CaptureError, Key, Tracked, text};

/// The names that mean the rowid unless a column has them (<https://sqlite.org/lang_createtable.html#rowid>).
const ROWIDS: [&str; 3] = ["rowid", "_rowid_", "oid"];

/// A table.
#[derive(Debug)]
pub(super) struct Shape {
    pub(super) columns: Vec<Column>,
    /// The column that is the rowid.
    pub(super) alias: Option<String>,
    /// How the rowid is named, if it has one that can be named.
    pub(super) rowid: Option<String>,
    pub(super) uniques: Vec<Unique>,
}

#[derive(Debug)]
pub(super) struct Column {
    pub(super) name: String,
    /// What `REPLACE` puts where NULL is not permitted.
    pub(super) instead_of_null: Option<String>,
    /// Whether it is computed from others.
    pub(super) generated: bool,
}

/// A unique index.
#[derive(Debug)]
pub(super) struct Unique {
    pub(super) name: String,
    /// Its row in `sqlite_master`, if it can be dropped without its table.
    pub(super) place: Option<i64>,
    /// `None` when its text could not be read.
    pub(super) terms: Option<Vec<Term>>,
    pub(super) predicate: Option<Expression>,
    /// The columns its terms and predicate name (perhaps some more, of the same names as functions).
    pub(super) named: Vec<String>,
    /// Whether an expression may name the rowid, other than as a column.
    pub(super) names_rowid: bool,
}

#[derive(Debug)]
pub(super) struct Expression {
    pub(super) text: String,
    /// The same of the row `r`: not every release of SQLite finds a bare `rowid` where two things are joined.
    pub(super) of_row: String,
    /// Whether it may name the rowid, as a column or otherwise.
    pub(super) over_rowid: bool,
}

#[derive(Debug)]
pub(super) enum Term {
    Column { name: String, collation: String },
    Expression(Expression),
}

impl Shape {
    pub(super) fn read(connection: &Connection, tracked: &Tracked) -> Result<Shape, CaptureError> {
        let refuse = |reason| CaptureError::Plan { table: tracked.name.clone(), reason };
        let kind: Option<(String, bool)> = connection
            .query_row("SELECT type, wr FROM pragma_table_list(?1) WHERE schema = 'main'", [&tracked.name], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
            .optional()?;
        let Some((kind, without_rowid)) = kind else { return Err(refuse("there is no such table")) };
        if kind != "table" {
            return Err(refuse("only an ordinary table can have triggers that see every change"));
        }
        let mut columns = Vec::new();
        let mut primary = Vec::new();
        let mut statement = connection
            .prepare("SELECT name, \"notnull\", dflt_value, pk, hidden IN (2, 3) FROM pragma_table_xinfo(?1, 'main') ORDER BY cid")?;
        let mut rows = statement.query([&tracked.name])?;
        while let Some(row) = rows.next()? {
            let (name, not_null, default, pk): (String, bool, Option<String>, i64) = (row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?);
            if pk > 0 {
                primary.push(name.clone());
            }
            let instead_of_null = default.filter(|_| not_null).map(|default| text::default_expression(&default));
            columns.push(Column { name, instead_of_null, generated: row.get(4)? });
        }
        // A primary key without an index of its own is the rowid; `INTEGER PRIMARY KEY DESC` famously is not, and has one.
        let has_primary_index: bool = connection.query_row(
            "SELECT EXISTS (SELECT 1 FROM pragma_index_list(?1, 'main') WHERE origin = 'pk')",
            [&tracked.name],
            |row| row.get(0),
        )?;
        let alias = (!without_rowid && primary.len() == 1 && !has_primary_index).then(|| primary.remove(0));
        let uniques = uniques(connection, tracked, &columns, alias.as_deref())?;
        let rowid = (!without_rowid)
            .then(|| {
                let free = ROWIDS.iter().find(|name| !columns.iter().any(|column| column.name.eq_ignore_ascii_case(name)));
                free.map(|name| (*name).to_owned()).or_else(|| alias.as_deref().map(super::quote))
            })
            .flatten();
        let shape = Shape { columns, alias, rowid, uniques };
        match &tracked.key {
            Key::Rowid if shape.rowid.is_none() => Err(refuse("its rowid cannot be named: give it a key")),
            Key::Columns(key) if key.is_empty() || !key.iter().all(|name| shape.has(name)) => {
                Err(refuse("its key names a column that it does not have"))
            }
            Key::Rowid | Key::Columns(_) => Ok(shape),
        }
    }

    fn has(&self, name: &str) -> bool {
        self.columns.iter().any(|column| column.name.eq_ignore_ascii_case(name))
    }

    /// Whether the key is the rowid, under whatever name.
    pub(super) fn keyed_by_rowid(&self, key: &Key) -> bool {
        match key {
            Key::Rowid => true,
            Key::Columns(columns) => matches!((columns.as_slice(), &self.alias), ([one], Some(alias)) if one.eq_ignore_ascii_case(alias)),
        }
    }

    /// Whether `VACUUM` may give rows other keys.
    pub(super) fn renumbered_by_vacuum(&self, key: &Key) -> bool {
        *key == Key::Rowid && self.alias.is_none()
    }

    /// What `REPLACE` puts into `column` instead of NULL.
    pub(super) fn instead_of_null(&self, column: &str) -> Option<&str> {
        self.columns.iter().find(|c| c.name.eq_ignore_ascii_case(column))?.instead_of_null.as_deref()
    }
}

fn uniques(connection: &Connection, tracked: &Tracked, columns: &[Column], alias: Option<&str>) -> Result<Vec<Unique>, CaptureError> {
    let mut found = Vec::new();
    let mut list = connection.prepare(
        "SELECT l.name, m.rowid, m.sql FROM pragma_index_list(?1, 'main') AS l \
         LEFT JOIN main.sqlite_master AS m ON m.type = 'index' AND m.name = l.name WHERE l.\"unique\" ORDER BY l.name",
    )?;
    let mut rows = list.query([&tracked.name])?;
    while let Some(row) = rows.next()? {
        let (name, place, sql): (String, Option<i64>, Option<String>) = (row.get(0)?, row.get(1)?, row.get(2)?);
        let parts = sql.as_deref().map(text::index_parts);
        let mut readable = !matches!(parts, Some(None));
        let (texts, predicate) = parts.flatten().unwrap_or_default();
        let mut terms = Vec::new();
        let mut named = Vec::new();
        let mut info = connection.prepare("SELECT seqno, cid, name, coll FROM pragma_index_xinfo(?1, 'main') WHERE key ORDER BY seqno")?;
        let mut parts = info.query(params![name])?;
        let mut names_rowid = false;
        let mut read = |text: &str, named: &mut Vec<String>| {
            let (mut over_rowid, mut of_row, mut copied) = (false, String::new(), 0);
            for (from, to, token) in text::tokens(text) {
                let word = match &token {
                    text::Token::Word(word) => *word,
                    text::Token::Quoted(word) => word.as_str(),
                    text::Token::Literal | text::Token::Mark(_) => continue,
                };
                if let Some(column) = columns.iter().find(|column| column.name.eq_ignore_ascii_case(word)) {
                    over_rowid |= alias == Some(column.name.as_str());
                    if !named.contains(&column.name) {
                        named.push(column.name.clone());
                    }
                } else if ROWIDS.iter().any(|name| name.eq_ignore_ascii_case(word)) {
                    names_rowid = true;
                    over_rowid = true;
                    of_row.push_str(&text[copied..from]);
                    of_row.push_str("r.");
                    of_row.push_str(&text[from..to]);
                    copied = to;
                }
            }
            of_row.push_str(&text[copied..]);
            Expression { text: text.to_owned(), of_row, over_rowid }
        };
        let predicate = predicate.map(|text| read(text, &mut named));
        while let Some(part) = parts.next()? {
            let (place, cid, column, collation): (u32, i64, Option<String>, Option<String>) =
                (part.get(0)?, part.get(1)?, part.get(2)?, part.get(3)?);
            match (column, texts.get(place as usize)) {
                (Some(column), _) => {
                    if !named.contains(&column) {
                        named.push(column.clone());
                    }
                    terms.push(Term::Column { name: column, collation: collation.unwrap_or_else(|| "BINARY".into()) });
                }
                (None, Some(text)) if cid == -2 => terms.push(Term::Expression(read(text, &mut named))),
                (None, _) => readable = false,
            }
        }
        let place = place.filter(|_| sql.is_some());
        found.push(Unique { name, place, terms: readable.then_some(terms), predicate, named, names_rowid });
    }
    Ok(found)
}

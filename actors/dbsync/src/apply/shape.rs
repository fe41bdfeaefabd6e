//! A table of the replica: what the stream says of it, whether that may be, and the statements that follow from it.

use horos_store::{Kind, StoreError};
use rusqlite::{
    Connection,
    hooks::{AuthAction, AuthContext, Authorization},
};

use super::{ApplyError, Doing as _, nonsense};
use crate::{capture::quote, chunk::Ordered, frames::TableHead};

/// Most indexes of a table: what SQLite itself can plan with.
const MAX_INDEXES: usize = 64;
/// Longest statement that makes a table or an index: 2,000 columns with long names.
const MAX_STATEMENT: usize = 512 << 10;
/// SQLite's own bound on columns.
const MAX_COLUMNS: usize = 2_000;
/// The collations that every SQLite has.
const COLLATIONS: [&str; 3] = ["BINARY", "NOCASE", "RTRIM"];

/// A table of the replica.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    /// As the stream described it when its rows were sent, without the statements that made it.
    pub(crate) head: TableHead,
    /// How it is read.
    pub(super) ordered: Ordered,
}

impl Shape {
    /// What `head` says, if that can be a table.
    pub(super) fn of(head: &TableHead) -> Result<Shape, ApplyError> {
        let name = &head.name;
        let reserved = |prefix: &str| name.get(..prefix.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(prefix));
        if name.is_empty() || name.contains('\0') || reserved("sqlite_") || reserved("_horos_") {
            return nonsense(format!("{name:?} cannot be the name of a published table"));
        }
        if head.columns.is_empty() || head.columns.len() > MAX_COLUMNS {
            return nonsense(format!("table {name:?} has {} columns", head.columns.len()));
        }
        // In a sorted list equal names are neighbours.
        let mut names: Vec<String> = head.columns.iter().map(|column| column.to_ascii_lowercase()).collect();
        names.sort_unstable();
        if names.windows(2).any(|pair| pair[0] == pair[1]) || names.iter().any(|name| name.contains('\0')) {
            return nonsense(format!("table {name:?} has two columns of one name"));
        }
        let known = |it: &Option<String>| it.as_ref().is_none_or(|it| COLLATIONS.iter().any(|known| it.eq_ignore_ascii_case(known)));
        let places = head.key.iter().all(|place| usize::from(*place) < head.columns.len());
        if head.key.is_empty() || !places || head.collations.len() != head.key.len() || !head.collations.iter().all(known) {
            return nonsense(format!("the key of table {name:?} cannot be"));
        }
        Ok(Shape::known(TableHead { ddl: Vec::new(), ..head.clone() }))
    }

    /// A table that is in the file already.
    pub(super) fn known(head: TableHead) -> Shape {
        Shape { ordered: Ordered::replica(&head), head }
    }

    pub(crate) fn name(&self) -> &str {
        &self.head.name
    }

    pub(super) fn width(&self) -> usize {
        self.head.columns.len()
    }

    pub(super) fn is_called(&self, name: &str) -> bool {
        self.head.name.eq_ignore_ascii_case(name)
    }

    /// The key's columns as SQL compares them, each behind `prefix`.
    fn key_terms(&self, prefix: &str) -> Vec<String> {
        self.head.key_terms().iter().map(|term| format!("{prefix}{term}")).collect()
    }

    /// Puts a row in place of whichever has its key.
    pub(super) fn upsert(&self) -> String {
        self.put("INSERT OR REPLACE", 1)
    }

    /// Puts a row where none with its key is.
    pub(super) fn insert(&self) -> String {
        self.put("INSERT", 1)
    }

    /// Puts so many rows where none with their keys are. `FAIL`, so that SQLite need not be able to take a statement back that got
    /// half-way.
    pub(super) fn insert_or_fail(&self, rows: usize) -> String {
        self.put("INSERT OR FAIL", rows)
    }

    fn put(&self, verb: &str, rows: usize) -> String {
        let row = format!("({})", vec!["?"; self.width()].join(", "));
        format!("{verb} INTO main.{} ({}) VALUES {}", quote(self.name()), self.columns_of(""), vec![row; rows].join(", "))
    }

    /// Deletes the row with a key.
    pub(super) fn delete(&self) -> String {
        let terms: Vec<String> = self.key_terms("").iter().enumerate().map(|(i, term)| format!("{term} = ?{}", i + 1)).collect();
        format!("DELETE FROM main.{} WHERE {}", quote(self.name()), terms.join(" AND "))
    }

    /// Deletes the rows behind the first key and up to the second, whichever are given.
    pub(super) fn delete_range(&self, after: bool, through: bool) -> String {
        ranged(&format!("DELETE FROM main.{}", quote(self.name())), &self.key_terms("").join(", "), self.head.key.len(), after, through)
    }

    /// That a row of `there` has the key of a row of `here`; both are aliases of tables of this shape.
    pub(super) fn same_key(&self, here: &str, there: &str) -> String {
        // The left side's collation counts.
        let terms = self.key_terms(&format!("{there}."));
        let key = self.head.key.iter().map(|place| format!("{here}.{}", quote(&self.head.columns[usize::from(*place)])));
        terms.iter().zip(key).map(|(there, here)| format!("{there} = {here}")).collect::<Vec<_>>().join(" AND ")
    }

    /// The columns, comma separated, each behind `prefix`.
    pub(super) fn columns_of(&self, prefix: &str) -> String {
        self.head.columns.iter().map(|name| format!("{prefix}{}", quote(name))).collect::<Vec<_>>().join(", ")
    }
}

fn ranged(statement: &str, order: &str, width: usize, after: bool, through: bool) -> String {
    let parameters = |from: usize| (from..from + width).map(|i| format!("?{i}")).collect::<Vec<_>>().join(", ");
    let mut terms = Vec::new();
    if after {
        terms.push(format!("({order}) > ({})", parameters(1)));
    }
    if through {
        terms.push(format!("({order}) <= ({})", parameters(if after { width + 1 } else { 1 })));
    }
    if terms.is_empty() { statement.to_owned() } else { format!("{statement} WHERE {}", terms.join(" AND ")) }
}

/// Which of a table's statements to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Table,
    /// Behind the rows: sorted in is faster than inserted.
    Indexes,
}

/// Runs a part of the table's statements, none of which may do anything but make this table and its indexes, and looks at what
/// came of it.
pub(super) fn create(connection: &mut Connection, head: &TableHead, shape: &Shape, part: Part) -> Result<(), ApplyError> {
    let Some((table, indexes)) = head.ddl.split_first() else {
        return nonsense(format!("table {:?} is new here and comes without its definition", head.name));
    };
    if indexes.len() > MAX_INDEXES || head.ddl.iter().any(|sql| sql.len() > MAX_STATEMENT) {
        return nonsense(format!("the definition of table {:?} is too long", head.name));
    }
    guard(connection, &head.name)?;
    let run = || -> Result<(), ApplyError> {
        let statements = match part {
            Part::Table => std::slice::from_ref(table),
            Part::Indexes => indexes,
        };
        for sql in statements {
            // Refuses a second statement behind the first.
            let outcome = connection.prepare(sql).and_then(|mut statement| statement.execute([]).map(drop));
            outcome.map_err(|error| refused(&head.name, error))?;
        }
        Ok(())
    };
    let outcome = run();
    connection.authorizer(None::<fn(AuthContext<'_>) -> Authorization>).doing("lift the guard on statements")?;
    outcome?;
    inspect(connection, shape)
}

/// Everything that SQLite asks for when it makes the table `name` or an index on it; `ATTACH`, pragmas, triggers, views, virtual
/// and temporary tables, functions and the reading of other tables are not among it.
fn guard(connection: &mut Connection, name: &str) -> Result<(), ApplyError> {
    let name = name.to_owned();
    let mut made: Option<String> = None;
    let judge = move |asked: AuthContext<'_>| {
        let ours = |table: &str| table.eq_ignore_ascii_case(&name);
        let catalog = |table: &str| table == "sqlite_master";
        let permitted = asked.database_name.is_none_or(|database| database == "main")
            && match asked.action {
                AuthAction::CreateTable { table_name } => ours(table_name),
                AuthAction::CreateIndex { index_name, table_name } => {
                    made = Some(index_name.to_owned());
                    ours(table_name)
                }
                AuthAction::Insert { table_name } | AuthAction::Update { table_name, .. } => catalog(table_name),
                AuthAction::Read { table_name, .. } => catalog(table_name) || ours(table_name),
                // An index that is made is filled by that, and no other.
                AuthAction::Reindex { index_name } => made.as_deref() == Some(index_name),
                _ => false,
            };
        if permitted { Authorization::Allow } else { Authorization::Deny }
    };
    connection.authorizer(Some(judge)).doing("guard statements")
}

fn refused(name: &str, error: rusqlite::Error) -> ApplyError {
    let source = StoreError::from(error);
    match source.kind {
        Kind::Forbidden => ApplyError::Nonsense(format!("the definition of table {name:?} does more than define it")),
        Kind::Statement | Kind::TooBig | Kind::Constraint => {
            let text = std::error::Error::source(&source).map(ToString::to_string).unwrap_or_default();
            ApplyError::Nonsense(format!("table {name:?} cannot be defined: {text}"))
        }
        _ => ApplyError::Sqlite { doing: "create a table", source },
    }
}

/// Whether the table is what the stream said, and nothing besides came with it.
fn inspect(connection: &Connection, shape: &Shape) -> Result<(), ApplyError> {
    let head = &shape.head;
    let name = &head.name;
    let doing = "look at a new table";
    let others: i64 = connection
        .query_row(
            "SELECT count(*) FROM main.sqlite_schema WHERE NOT (type = 'table' AND name = ?1)
             AND NOT (type = 'index' AND tbl_name = ?1) AND tbl_name = ?1 COLLATE NOCASE",
            [name],
            |row| row.get(0),
        )
        .doing(doing)?;
    let mut statement = connection.prepare("SELECT name, hidden, pk FROM pragma_table_xinfo(?1, 'main')").doing(doing)?;
    let mut columns: Vec<(String, i64, i64)> = Vec::new();
    let mut rows = statement.query([name]).doing(doing)?;
    while let Some(row) = rows.next().doing(doing)? {
        columns.push((row.get(0).doing(doing)?, row.get(1).doing(doing)?, row.get(2).doing(doing)?));
    }
    drop(rows);
    if others != 0 || columns.is_empty() || columns.iter().any(|(_, hidden, _)| *hidden != 0) {
        return nonsense(format!("the definition of table {name:?} makes something else"));
    }
    let mut primary: Vec<&(String, i64, i64)> = columns.iter().filter(|(_, _, pk)| *pk > 0).collect();
    primary.sort_by_key(|(_, _, pk)| *pk);
    let key: Vec<&str> = head.key.iter().map(|place| head.columns[usize::from(*place)].as_str()).collect();
    let is_column = |name: &str| columns.iter().any(|(column, ..)| column.eq_ignore_ascii_case(name));
    let rowid = match key.as_slice() {
        [one] => !is_column(one) && ["rowid", "_rowid_", "oid"].iter().any(|name| one.eq_ignore_ascii_case(name)),
        _ => false,
    };
    let declared = primary.len() == key.len() && primary.iter().zip(&key).all(|((column, ..), key)| column.eq_ignore_ascii_case(key));
    if !rowid && !declared {
        return nonsense(format!("the key of table {name:?} is not its primary key"));
    }
    if head.columns.iter().any(|column| !is_column(column) && (!rowid || column != key[0])) {
        return nonsense(format!("table {name:?} lacks a column that its rows have"));
    }
    // REPLACE through another unique index would remove rows that nobody deleted.
    let unique: i64 = connection
        .query_row("SELECT count(*) FROM pragma_index_list(?1, 'main') WHERE \"unique\" AND origin <> 'pk'", [name], |row| row.get(0))
        .doing(doing)?;
    if unique != 0 {
        return nonsense(format!("table {name:?} has a unique index beside its key"));
    }
    Ok(())
}

#[cfg(test)]
impl Shape {
    /// All rows in key order.
    pub(super) fn ordered_sql(&self) -> String {
        format!("SELECT {} FROM main.{} ORDER BY {}", self.columns_of(""), quote(self.name()), self.key_terms("").join(", "))
    }
}

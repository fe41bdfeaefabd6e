//! What of a database is published to an FO: the spec that an operator writes, checked against the database, and the SQL that
//! follows from it.
//!
//! Nobody starts this: a publisher calls [`Filter::load`] whenever the schema or the spec has changed, and [`check`] is the
//! operator's dry run. Both only read. Three promises:
//!
//! - **What loads, works.** Every problem is found here, all at once ([`FilterProblems`]), each with its table, its reason and
//!   what to do. A condition that loads is deterministic, looks at its own row only and fails for no row (`filter/condition.rs`
//!   names the exceptions); a table that loads has a key.
//! - **Nothing unpublished in any byte.** [`Filter::schema`] is written anew from SQLite's description of the columns, never
//!   edited from SQL text, so no default, `CHECK`, expression, comment, trigger or view of the BO is in it. Statements name
//!   columns, and those that are published only.
//! - **Undecided means unpublished.** A row goes out when its condition *is true*, so NULL keeps it back; a table in none of the
//!   three forms does not exist on the FO.
//!
//! What becomes of each part of a table, so that programs written against the BO's schema can read the FO's:
//!
//! | on the BO | on the FO |
//! |---|---|
//! | primary key | the same, always published, collations included; a row whose key holds NULL cannot be told apart from others and is not published |
//! | no primary key | the rowid is the key and is published: [`KeyKind::Rowid`], renumbered by `VACUUM` |
//! | kept column | the same name, type and collation |
//! | column not kept | there, by name, without a value: NULL, or 0, 0.0, `''`, `x''` by its type where the BO says NOT NULL, so that a program finds what it can read. Names of columns, tables and indexes are public in a published table |
//! | generated column | a plain column that holds the value |
//! | index over kept columns | the same without `UNIQUE`: rows that exchange values would pass through a state that it forbids |
//! | index with another column, an expression or a `WHERE` | left out, so a `UNIQUE` over unpublished columns needs no values |
//! | `NOT NULL`, `CHECK`, `UNIQUE`, `DEFAULT`, `AUTOINCREMENT`, foreign keys | left out: the BO has enforced them, and an FO only copies; a parent may be unpublished, a constant private |
//! | `STRICT`, `WITHOUT ROWID` | kept |
//! | trigger, view | left out, always |
//! | virtual table (FTS, R*Tree, …) and its shadow tables | refused: an index keeps what rows withdrawn from the filter said |
//! | `sqlite_…`, `_horos_…` | refused; never published |

mod catalog;
mod condition;
mod ddl;
mod plan;
mod problem;
mod report;
mod spec;

use std::fmt;

use horos_store::StoreError;
use rusqlite::Connection;
use serde::{Serialize, Serializer};
use sha2::{Digest, Sha256};

pub(crate) use ddl::ranged;
pub use problem::{FilterProblems, MAX_PROBLEMS, Part, Problem};
pub use report::{CheckError, Report, TableReport, check};
pub use spec::{FilterSpec, PartialTable};

/// Most tables in a filter. Each costs a statement, triggers and a few KiB; a database with more is not one that is replicated
/// table by table.
pub const MAX_TABLES: usize = 1_000;

/// A filter that fits its database. Cheap to ask; loaded again when the schema or the spec has changed.
#[derive(Clone, Debug)]
pub struct Filter {
    tables: Vec<Table>,
    left_out: Vec<LeftOut>,
    fingerprint: Fingerprint,
}

/// Why a filter was not loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The spec does not fit the database: permanent until one of them is changed.
    #[error(transparent)]
    Problems(#[from] FilterProblems),
    /// The database could not be read; nothing is known about the spec.
    #[error("the schema of the database cannot be read")]
    Database(#[source] StoreError),
}

impl From<rusqlite::Error> for LoadError {
    fn from(error: rusqlite::Error) -> LoadError {
        LoadError::Database(error.into())
    }
}

impl Filter {
    /// Checks `spec` against the database behind `connection` and prepares every statement once. Reads the schema in one
    /// transaction, or in the caller's when there is one; writes nothing.
    ///
    /// # Errors
    /// [`LoadError::Problems`] with everything that is wrong with the spec.
    pub fn load(connection: &Connection, spec: &FilterSpec) -> Result<Filter, LoadError> {
        // A schema that changes between two pragmas would be described as one that never was.
        let transaction = connection.is_autocommit().then(|| connection.unchecked_transaction()).transpose()?;
        let filter = plan::load(connection, spec)?;
        if let Some(transaction) = transaction {
            transaction.finish()?;
        }
        Ok(filter)
    }

    /// The published tables, sorted by name.
    pub fn tables(&self) -> &[Table] {
        &self.tables
    }

    /// The published table of that name; ASCII letters without regard to case, as SQLite compares names.
    pub fn table(&self, name: &str) -> Option<&Table> {
        self.tables.iter().find(|table| table.name.eq_ignore_ascii_case(name))
    }

    /// The statements that make an FO's database: each table with its indexes, nothing private in them.
    pub fn schema(&self) -> Vec<String> {
        self.tables.iter().flat_map(|table| table.schema.iter().cloned()).collect()
    }

    /// The `SELECT` of the published columns of the published rows of `table`, in key order; without parameters.
    pub fn select(&self, table: &str) -> Option<&str> {
        self.table(table).map(Table::select)
    }

    /// The `SELECT` of one row by its key; no row when it is not published. See [`Table::select_by_key`].
    pub fn select_by_key(&self, table: &str) -> Option<&str> {
        self.table(table).map(Table::select_by_key)
    }

    /// Changes whenever anything changes in what is published: a table, column, key, type, index or condition. What is changed
    /// elsewhere in the database does not change it.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// What of the database does not reach an FO, and why.
    pub fn left_out(&self) -> &[LeftOut] {
        &self.left_out
    }
}

/// A published table.
#[derive(Clone, Debug)]
pub struct Table {
    name: String,
    key: Key,
    columns: Vec<String>,
    blanked: Vec<String>,
    condition: Option<String>,
    without_rowid: bool,
    schema: Vec<String>,
    selects: ddl::Selects,
}

impl Table {
    /// Its name, spelt as in the database.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What tells its rows apart.
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// The published columns, in the order in which the statements give them: the table's own, with a rowid that is the key
    /// in front.
    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    /// Where the key's columns stand among [`Table::columns`], in the key's order.
    pub fn key_positions(&self) -> Vec<usize> {
        self.key.columns.iter().filter_map(|key| self.columns.iter().position(|name| *name == key.name)).collect()
    }

    /// The columns that the FO has by name only.
    pub fn blanked(&self) -> &[String] {
        &self.blanked
    }

    /// The condition of its rows, as it was written; none publishes all.
    pub fn condition(&self) -> Option<&str> {
        self.condition.as_deref()
    }

    /// Whether it is a `WITHOUT ROWID` table, which SQLite's update hook does not see.
    pub fn is_without_rowid(&self) -> bool {
        self.without_rowid
    }

    /// Its `CREATE TABLE` for the FO, then the `CREATE INDEX` statements.
    pub fn schema(&self) -> &[String] {
        &self.schema
    }

    /// The published columns of the published rows, ascending by key; without parameters.
    pub fn select(&self) -> &str {
        &self.selects.all
    }

    /// The row with the key `?1, ?2, …`, in the key's order, if it is published. By an index, always.
    pub fn select_by_key(&self) -> &str {
        &self.selects.by_key
    }

    /// The last published row before the key `?1, ?2, …`.
    pub(crate) fn select_before(&self) -> String {
        self.selects.before(&self.key.columns)
    }

    /// As [`Table::select`]; the rows behind the key `?1, ?2, …` only if `after`, and up to the key in the parameters after those if
    /// `through`.
    pub(crate) fn select_range(&self, after: bool, through: bool) -> String {
        self.selects.range(after, through)
    }

    /// As [`Table::select`], from the first key behind `?1, ?2, …`, and at most as many rows as the last parameter says.
    pub fn select_after(&self) -> &str {
        &self.selects.after
    }
}

/// What tells a table's rows apart, on the BO and on every FO.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Key {
    /// Where it comes from.
    pub kind: KeyKind,
    /// Its columns, in order; at least one.
    pub columns: Vec<KeyColumn>,
}

impl Key {
    /// Whether it is the rowid under a name of its own.
    pub fn is_integer(&self) -> bool {
        self.kind == KeyKind::Integer
    }
}

/// Where a key comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeyKind {
    /// `INTEGER PRIMARY KEY`: the rowid itself.
    Integer,
    /// Any other primary key.
    Declared,
    /// The table has none: the rowid, which `VACUUM` and `VACUUM INTO` renumber.
    Rowid,
}

/// A column of a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KeyColumn {
    /// Its name; of a rowid, one of its names that no column has taken.
    pub name: String,
    /// The collation by which two values are the same key.
    pub collation: String,
    /// Whether that is another than the column's own.
    pub explicit_collation: bool,
    /// Whether the BO permits NULL in it; such rows are not published.
    pub nullable: bool,
}

/// Something in the database that does not reach an FO.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LeftOut {
    /// What it is.
    pub kind: LeftOutKind,
    /// Its name.
    pub name: String,
    /// The published table it belongs to, if it belongs to one.
    pub table: Option<String>,
    /// Why.
    pub reason: String,
}

/// What kind of thing is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LeftOutKind {
    /// An ordinary table.
    Table,
    /// A view.
    View,
    /// A virtual table.
    VirtualTable,
    /// A table that belongs to a virtual one.
    ShadowTable,
    /// A value of a column; its name is on the FO.
    Column,
    /// An index of a published table.
    Index,
    /// A foreign key of a published table, by the table it names.
    ForeignKey,
    /// A column's default.
    Default,
    /// A column's collation that only the writing program knows; the FO compares bytes there.
    Collation,
    /// A trigger on a published table.
    Trigger,
}

/// Identifies what is published of a database: equal fingerprints publish the same rows and columns in the same form.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    fn of(tables: &[Table]) -> Fingerprint {
        let mut hash = Sha256::new();
        // Lengths in front, so that no two lists of texts hash alike.
        let mut text = |text: &str| {
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(text.as_bytes());
        };
        text("horos filter 1");
        for table in tables {
            table.schema.iter().for_each(|sql| text(sql));
            // Key, columns, order and condition are all in it.
            text(&table.selects.all);
            text(&table.selects.by_key);
        }
        Fingerprint(hash.finalize().into())
    }

    /// The SHA-256.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Fingerprint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

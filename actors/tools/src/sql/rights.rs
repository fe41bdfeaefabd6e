//! What a tool may touch, and SQLite's authorizer that holds it to that.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use horos_store::guard::Guard;
use parking_lot::Mutex;
use rmcp::model::JsonObject;
use rusqlite::hooks::{AuthAction, AuthContext, Authorization};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{bounds::Meter, functions, statement::Joins};

/// Columns of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Columns {
    /// Every one, those that come later too.
    All,
    /// These, in lower case.
    Some(BTreeSet<Box<str>>),
}

impl Columns {
    fn has(&self, column: &str) -> bool {
        match self {
            Self::All => true,
            // The empty name stands for the table as such, of which rows are counted.
            Self::Some(columns) => column.is_empty() || columns.contains(&*column.to_ascii_lowercase()),
        }
    }
}

/// What may be changed of a table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Writes {
    pub(super) insert: bool,
    pub(super) update: Option<Columns>,
    pub(super) delete: bool,
}

/// What a tool may touch. Names are in lower case, as SQLite compares them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Rights {
    pub(super) tables: BTreeMap<Box<str>, Columns>,
    pub(super) writes: BTreeMap<Box<str>, Writes>,
    pub(super) functions: BTreeSet<Box<str>>,
}

/// Whether a table of this name is the database's or the node's own business, and in no tool's list. `extra` are tables that are made of
/// functions and tell of the file as such.
pub(super) fn is_reserved(table: &str) -> bool {
    const MODULES: [&str; 12] = [
        "bytecode",
        "completion",
        "csv",
        "dbstat",
        "fsdir",
        "fts3tokenize",
        "fts4aux",
        "fts5vocab",
        "stmt",
        "tables_used",
        "unionvtab",
        "zipfile",
    ];
    let table = table.to_ascii_lowercase();
    ["sqlite_", OWN, "_migrations", "pragma_"].iter().any(|own| table.starts_with(own)) || MODULES.contains(&table.as_str())
}

impl Rights {
    /// A comment that is another for other rights. In front of a statement it keeps one tool's prepared statement from being run under the
    /// rights of another.
    pub(super) fn mark(&self) -> Box<str> {
        let digest = Sha256::digest(format!("{self:?}"));
        let mut mark = String::from("/*");
        for byte in &digest[..16] {
            let _ = write!(mark, "{byte:02x}");
        }
        mark.push_str("*/ ");
        mark.into()
    }

    /// Whether a statement compares only what it may read, where SQLite's authorizer is not told: a join by a column tells its values.
    ///
    /// # Errors
    /// How to write it otherwise.
    pub(super) fn joins(&self, joins: &Joins) -> Result<(), String> {
        let restricted = || self.tables.iter().filter(|(_, columns)| **columns != Columns::All);
        if joins.natural && restricted().next().is_some() {
            return Err("NATURAL compares columns that it does not name: write ON".into());
        }
        for column in &joins.using {
            if let Some((table, _)) = restricted().find(|(_, columns)| !columns.has(column)) {
                return Err(format!(
                    "USING ({column}) is for columns that are listed of all tables, and {table:?} has not listed it: write ON"
                ));
            }
        }
        Ok(())
    }

    fn reads(&self, table: &str, column: &str) -> bool {
        self.tables.get(&*table.to_ascii_lowercase()).is_some_and(|columns| columns.has(column))
    }

    fn writes(&self, table: &str) -> Option<&Writes> {
        self.writes.get(&*table.to_ascii_lowercase())
    }

    fn calls(&self, function: &str) -> bool {
        !functions::is_forbidden(function) && (functions::is_common(function) || self.functions.contains(&*function.to_ascii_lowercase()))
    }
}

/// One call of a tool, as its connection sees it.
pub(super) struct Confined {
    rights: Arc<Rights>,
    /// What statements define themselves, which is read without being a table.
    defines: Arc<BTreeSet<Box<str>>>,
    /// Whether the statement that is prepared now deletes what is in its way.
    replaces: AtomicBool,
    /// Set while a statement of our own is prepared.
    own: AtomicBool,
    /// The first thing that was refused, for the log.
    refused: Mutex<Option<String>>,
    /// What would have to be in the lists: only noted where there is no list yet, and then nothing runs.
    wanted: Option<Mutex<Wanted>>,
    meter: Meter,
}

/// What a statement touches.
#[derive(Debug, Default)]
struct Wanted {
    tables: BTreeMap<String, BTreeSet<String>>,
    writes: BTreeMap<String, BTreeSet<&'static str>>,
    functions: BTreeSet<String>,
}

impl Confined {
    pub(super) fn new(rights: Arc<Rights>, defines: Arc<BTreeSet<Box<str>>>, meter: Meter) -> Self {
        let (replaces, own) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { rights, defines, replaces, own, refused: Mutex::default(), wanted: None, meter }
    }

    /// Notes what statements would need. What no list can have is refused all the same.
    pub(super) fn noting(defines: Arc<BTreeSet<Box<str>>>, meter: Meter) -> Self {
        Self { wanted: Some(Mutex::default()), ..Self::new(Arc::default(), defines, meter) }
    }

    pub(super) fn meter(&self) -> &Meter {
        &self.meter
    }

    /// What statements define themselves under names that are in no list.
    pub(super) fn unlisted(&self) -> impl Iterator<Item = &str> {
        self.defines.iter().map(|name| &**name).filter(|name| !self.rights.tables.contains_key(*name))
    }

    /// The statement that comes next.
    pub(super) fn replaces(&self, replaces: bool) {
        self.replaces.store(replaces, Ordering::Relaxed);
    }

    /// Runs `work`, whose statements are ours.
    pub(super) fn own<T>(&self, work: impl FnOnce() -> T) -> T {
        self.own.store(true, Ordering::Relaxed);
        let result = work();
        self.own.store(false, Ordering::Relaxed);
        result
    }

    /// What was refused first, for the log.
    pub(super) fn refused(&self) -> Option<String> {
        self.refused.lock().clone()
    }

    /// What to write into `handler_config` so that what was noted is allowed.
    pub(super) fn config(&self) -> JsonObject {
        let mut config = JsonObject::new();
        let Some(wanted) = &self.wanted else { return config };
        let wanted = wanted.lock();
        let columns = |columns: &BTreeSet<String>| if columns.is_empty() { json!([]) } else { json!(columns) };
        config.insert("tables".into(), Value::Object(wanted.tables.iter().map(|(table, of)| (table.clone(), columns(of))).collect()));
        if !wanted.writes.is_empty() {
            config.insert("writes".into(), json!(wanted.writes));
        }
        if !wanted.functions.is_empty() {
            config.insert("functions".into(), json!(wanted.functions));
        }
        config
    }

    fn permits(&self, context: &AuthContext<'_>) -> bool {
        // The schema of temporary tables: nobody of ours makes any.
        if context.database_name.is_some_and(|database| !database.eq_ignore_ascii_case("main")) {
            return false;
        }
        // What the node itself has put into the file to see changes: it writes down which rows a statement that was permitted has changed. Only
        // where something may be changed; and no statement defines a name such as its triggers have, which SQLite would give here as well.
        let capture = !self.rights.writes.is_empty() && context.accessor.is_some_and(is_capture);
        match context.action {
            AuthAction::Select | AuthAction::Recursive => true,
            AuthAction::Read { .. } if capture => true,
            // Each entry has a number at random, so functions are among it.
            AuthAction::Function { function_name } if capture => !functions::is_forbidden(function_name),
            AuthAction::Insert { table_name } | AuthAction::Update { table_name, .. } | AuthAction::Delete { table_name } if capture => {
                table_name.starts_with(OWN)
            }
            AuthAction::Read { table_name, column_name } => {
                !is_reserved(table_name)
                    && (self.rights.reads(table_name, column_name)
                        || column_name.is_empty() && self.defines.contains(&*table_name.to_ascii_lowercase()))
            }
            AuthAction::Function { function_name } => self.rights.calls(function_name),
            AuthAction::Insert { table_name } => {
                let replaces = self.replaces.load(Ordering::Relaxed);
                !is_reserved(table_name)
                    && self.rights.writes(table_name).is_some_and(|writes| writes.insert && (writes.delete || !replaces))
            }
            AuthAction::Update { table_name, column_name } => {
                let replaces = self.replaces.load(Ordering::Relaxed);
                !is_reserved(table_name)
                    && self.rights.writes(table_name).is_some_and(|writes| {
                        writes.update.as_ref().is_some_and(|columns| columns.has(column_name)) && (writes.delete || !replaces)
                    })
            }
            AuthAction::Delete { table_name } => {
                !is_reserved(table_name) && self.rights.writes(table_name).is_some_and(|writes| writes.delete)
            }
            _ => false,
        }
    }

    fn note(&self, wanted: &Mutex<Wanted>, context: &AuthContext<'_>) -> bool {
        let mut wanted = wanted.lock();
        let replaces = self.replaces.load(Ordering::Relaxed);
        let mut write = |table: &str, what: &'static str| {
            let writes = wanted.writes.entry(table.to_owned()).or_default();
            writes.insert(what);
            if replaces {
                writes.insert("delete");
            }
            !is_reserved(table)
        };
        match context.action {
            _ if context.accessor.is_some_and(is_capture) => true,
            AuthAction::Insert { table_name } => write(table_name, "insert"),
            AuthAction::Update { table_name, .. } => write(table_name, "update"),
            AuthAction::Delete { table_name } => write(table_name, "delete"),
            AuthAction::Read { table_name, column_name } => {
                if column_name.is_empty() && self.defines.contains(&*table_name.to_ascii_lowercase()) {
                    return true;
                }
                let columns = wanted.tables.entry(table_name.to_owned()).or_default();
                if !column_name.is_empty() {
                    columns.insert(column_name.to_owned());
                }
                !is_reserved(table_name)
            }
            AuthAction::Function { function_name } => {
                if !functions::is_common(function_name) {
                    wanted.functions.insert(function_name.to_owned());
                }
                !functions::is_forbidden(function_name)
            }
            _ => self.permits(context),
        }
    }
}

/// How names begin of what the node itself puts into files.
const OWN: &str = "_horos";

/// Whether a trigger is of those by which changes are captured (`horos_dbsync`), which no tool can make.
fn is_capture(trigger: &str) -> bool {
    trigger
        .strip_prefix("_horos_")
        .and_then(|rest| rest.split_once('_'))
        .is_some_and(|(number, _)| number.bytes().all(|byte| byte.is_ascii_digit()))
}

impl Guard for Confined {
    fn authorize(&self, context: &AuthContext<'_>) -> Authorization {
        let permitted = self.own.load(Ordering::Relaxed)
            || match &self.wanted {
                None => self.permits(context),
                Some(wanted) => self.note(wanted, context),
            };
        if permitted {
            return Authorization::Allow;
        }
        self.refused.lock().get_or_insert_with(|| format!("{:?}", context.action));
        Authorization::Deny
    }

    fn is_spent(&self) -> bool {
        self.meter.is_spent()
    }
}

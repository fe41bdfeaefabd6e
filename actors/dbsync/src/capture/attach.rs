//! Putting our triggers and tables into a file, keeping them right, and taking them away.

use std::collections::{BTreeMap, BTreeSet};

use horos_store::rusqlite::{Connection, OptionalExtension as _, TransactionBehavior, params};

use super::{
    CaptureError, Key, Plan, Position, Tracked, quote,
    schema::Shape,
    sentinel::{Cause, FileIdentity, Witness},
    triggers::{self, Lookups, Trigger, Triggers},
};

/// What the tables below look like and the entries mean.
const FORMAT: i64 = 1;
/// Our tables.
const TABLES: [&str; 3] = ["_horos_log", "_horos_meta", "_horos_tracked"];
/// The log's columns before the key's.
const LOG_COLUMNS: [&str; 3] = ["seq", "tab", "stamp"];
/// No history of ours is this long: a greater number was written by a foreign hand, and SQLite soon could not count on from it.
const LAST_SEQ: i64 = i64::MAX / 2;

/// A unique index through which a `REPLACE` may remove a row unseen, because it names a column that is not published or could
/// not be read. Anti-entropy finds such rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blind {
    /// The table's number.
    pub table: u32,
    /// The index.
    pub index: String,
}

/// What [`attach()`] left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// To be kept outside the file, once the transaction is committed.
    pub witness: Witness,
    /// Why a new epoch was begun, if one was: no position of before leads to the present.
    pub renewed: Option<Cause>,
    /// The tables of which anything may have changed unseen; the log says so, too.
    pub rebased: Vec<u32>,
    /// What capture cannot see.
    pub blind: Vec<Blind>,
}

impl Attached {
    /// The log's end.
    pub fn position(&self) -> Position {
        self.witness.position
    }
}

/// What is wrong with what is attached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inspection {
    /// Our tables that are not there, or not as we made them.
    pub broken_tables: Vec<String>,
    /// Triggers that are not there.
    pub missing: Vec<String>,
    /// Triggers with another text than they should have.
    pub altered: Vec<String>,
    /// Triggers with our names that belong to no published table.
    pub stray: Vec<String>,
    /// What capture cannot see.
    pub blind: Vec<Blind>,
}

impl Inspection {
    /// Whether everything is in its place.
    pub fn is_sound(&self) -> bool {
        self.broken_tables.is_empty() && self.missing.is_empty() && self.altered.is_empty() && self.stray.is_empty()
    }
}

/// A table as the file remembers it.
pub(super) struct Remembered {
    pub(super) number: u32,
    pub(super) name: String,
    width: u32,
    pub(super) renumbered: bool,
    key: String,
}

/// Runs `work` in the connection's transaction, or in one of its own if there is none.
fn in_transaction<T>(connection: &Connection, work: impl FnOnce() -> Result<T, CaptureError>) -> Result<T, CaptureError> {
    if !connection.is_autocommit() {
        return work();
    }
    let transaction = horos_store::rusqlite::Transaction::new_unchecked(connection, TransactionBehavior::Immediate)?;
    let done = work()?;
    transaction.commit()?;
    Ok(done)
}

/// Makes `connection`'s file capture what `plan` says. What is already right is not touched, so that calling it again costs other
/// processes nothing. `before` is what was last seen of this file; without it an existing log cannot be trusted.
///
/// In a transaction of its own unless there is one, which must then be a write transaction.
///
/// # Errors
/// [`CaptureError`]; roll back.
pub fn attach(connection: &Connection, plan: &Plan, before: Option<&Witness>) -> Result<Attached, CaptureError> {
    in_transaction(connection, || {
        let file = connection.path().filter(|path| !path.is_empty()).map(|path| FileIdentity::of(path.as_ref())).transpose()?;
        let mut shapes = Vec::new();
        let mut numbers = BTreeSet::new();
        for tracked in &plan.tables {
            if tracked.number == 0 || !numbers.insert(tracked.number) {
                return Err(CaptureError::Plan { table: tracked.name.clone(), reason: "its number is 0 or another table's" });
            }
            shapes.push((tracked, Shape::read(connection, tracked)?));
        }
        let width = plan.tables.iter().map(width).max().unwrap_or(1);
        let renewed = distrust(connection, &shapes, before, file)?;
        let mut rebased = BTreeSet::new();
        if renewed.is_some() {
            remove(connection)?;
            create(connection, width)?;
        } else {
            if let (Some(before), Some(now)) = (before, Witness::read(connection, file)?) {
                rebased.extend(before.changed(&now).into_iter().filter(|number| numbers.contains(number)));
            }
            for place in log_width(connection)?.unwrap_or(0)..width {
                connection.execute_batch(&format!("ALTER TABLE main.\"_horos_log\" ADD COLUMN k{place}"))?;
            }
            let known: BTreeSet<u32> = tracked(connection)?.into_iter().map(|table| table.number).collect();
            rebased.extend(numbers.difference(&known));
            for number in known.difference(&numbers) {
                connection.execute("DELETE FROM main.\"_horos_tracked\" WHERE number = ?1", [number])?;
            }
        }
        let blind = install(connection, &shapes, plan.keep)?;
        for number in &rebased {
            connection.execute("INSERT INTO main.\"_horos_log\"(tab, stamp) VALUES (?1, random())", [-i64::from(*number)])?;
        }
        let witness = Witness::read(connection, file)?.ok_or(CaptureError::Detached)?;
        Ok(Attached { witness, renewed, rebased: rebased.into_iter().collect(), blind })
    })
}

/// Removes every trigger and table of ours, half-made ones too. The schema is then as if we had never been there.
///
/// # Errors
/// SQLite's.
pub fn detach(connection: &Connection) -> Result<(), CaptureError> {
    in_transaction(connection, || remove(connection))
}

/// Says what is missing or altered, and changes nothing.
///
/// # Errors
/// SQLite's, or the plan does not fit the file.
pub fn inspect(connection: &Connection, plan: &Plan) -> Result<Inspection, CaptureError> {
    let mut found = Inspection::default();
    for table in TABLES {
        if !has_table(connection, table)? {
            found.broken_tables.push(table.to_owned());
        }
    }
    if found.broken_tables.is_empty() && !is_whole(connection)? {
        found.broken_tables.push("_horos_log".to_owned());
    }
    let mut present = ours(connection)?;
    for tracked in &plan.tables {
        let wanted = triggers::of(tracked, &Shape::read(connection, tracked)?, plan.keep, Lookups::All);
        found.blind.extend(wanted.blind.into_iter().map(|index| Blind { table: tracked.number, index }));
        for trigger in wanted.triggers {
            match present.remove(&trigger.name) {
                None => found.missing.push(trigger.name),
                Some(sql) if sql != trigger.sql => found.altered.push(trigger.name),
                Some(_) => {}
            }
        }
    }
    found.stray.extend(present.into_keys());
    Ok(found)
}

/// Asked by a statement: what the connection remembers of the schema may be older than the file.
fn has_table(connection: &Connection, name: &str) -> Result<bool, CaptureError> {
    let mut statement = connection.prepare_cached("SELECT EXISTS (SELECT 1 FROM main.sqlite_master WHERE type = 'table' AND name = ?1)")?;
    Ok(statement.query_row([name], |row| row.get(0))?)
}

/// The log's epoch; `None` when nothing is attached.
pub(super) fn epoch(connection: &Connection) -> Result<Option<[u8; 16]>, CaptureError> {
    if !has_table(connection, "_horos_meta")? || !has_table(connection, "_horos_log")? {
        return Ok(None);
    }
    Ok(connection
        .prepare_cached("SELECT value FROM main.\"_horos_meta\" WHERE name = 'epoch' AND typeof(value) = 'blob' AND length(value) = 16")?
        .query_row([], |row| row.get(0))
        .optional()?)
}

/// The tables that the file says are captured.
pub(super) fn tracked(connection: &Connection) -> Result<Vec<Remembered>, CaptureError> {
    let mut statement =
        connection.prepare_cached("SELECT number, name, width, renumbered, key FROM main.\"_horos_tracked\" ORDER BY number")?;
    let rows = statement.query_map([], |row| {
        Ok(Remembered { number: row.get(0)?, name: row.get(1)?, width: row.get(2)?, renumbered: row.get(3)?, key: row.get(4)? })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// How many columns each table's key has.
pub(super) fn key_widths(connection: &Connection) -> Result<BTreeMap<u32, u32>, CaptureError> {
    Ok(tracked(connection)?.into_iter().map(|table| (table.number, table.width)).collect())
}

/// Whether our tables are there and as we made them.
pub(super) fn is_whole(connection: &Connection) -> Result<bool, CaptureError> {
    if epoch(connection)?.is_none() || !has_table(connection, "_horos_tracked")? {
        return Ok(false);
    }
    let format: Option<i64> = connection
        .prepare_cached("SELECT value FROM main.\"_horos_meta\" WHERE name = 'format' AND typeof(value) = 'integer'")?
        .query_row([], |row| row.get(0))
        .optional()?;
    let greatest: Option<i64> = connection.prepare_cached("SELECT max(seq) FROM main.\"_horos_log\"")?.query_row([], |row| row.get(0))?;
    Ok(format == Some(FORMAT) && log_width(connection)?.is_some() && greatest.is_some_and(|seq| seq < LAST_SEQ))
}

/// How many key columns the log has; `None` when it is not as we made it.
fn log_width(connection: &Connection) -> Result<Option<usize>, CaptureError> {
    let mut statement = connection.prepare_cached("SELECT name, type = '' FROM pragma_table_xinfo('_horos_log', 'main') ORDER BY cid")?;
    let columns: Vec<(String, bool)> = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<Result<_, _>>()?;
    let expected = |place: usize| match LOG_COLUMNS.get(place) {
        Some(name) => (*name).to_owned(),
        None => format!("k{}", place - LOG_COLUMNS.len()),
    };
    // A column with a type would change the values.
    let as_made = columns.iter().enumerate().all(|(place, (name, untyped))| *name == expected(place) && (*untyped || place == 0));
    Ok(columns.len().checked_sub(LOG_COLUMNS.len()).filter(|width| as_made && *width > 0))
}

/// Why the log in the file cannot be gone on from, if so.
fn distrust(
    connection: &Connection,
    shapes: &[(&Tracked, Shape)],
    before: Option<&Witness>,
    file: Option<FileIdentity>,
) -> Result<Option<Cause>, CaptureError> {
    if !is_whole(connection)? {
        let untouched = ours(connection)?.is_empty() && !has_table(connection, "_horos_log")?;
        return Ok(Some(if untouched && before.is_none() { Cause::New } else { Cause::Detached }));
    }
    let Some(before) = before else { return Ok(Some(Cause::Unwitnessed)) };
    if let Some(cause) = before.contradicted(connection, file)? {
        return Ok(Some(cause));
    }
    let known = tracked(connection)?;
    for (wanted, shape) in shapes {
        let clash = known.iter().filter(|table| table.number == wanted.number).any(|table| {
            !table.name.eq_ignore_ascii_case(&wanted.name)
                || table.key != key_text(&wanted.key)
                || table.renumbered != shape.renumbered_by_vacuum(&wanted.key)
        });
        // A number that comes back may have entries of the table that had it before.
        let entries = || -> Result<bool, CaptureError> {
            let sql = "SELECT EXISTS (SELECT 1 FROM main.\"_horos_log\" WHERE tab IN (?1, -?1))";
            Ok(connection.query_row(sql, [wanted.number], |row| row.get(0))?)
        };
        if clash || !known.iter().any(|table| table.number == wanted.number) && entries()? {
            return Ok(Some(Cause::Rekeyed));
        }
    }
    Ok(None)
}

fn width(tracked: &Tracked) -> usize {
    match &tracked.key {
        Key::Rowid => 1,
        Key::Columns(columns) => columns.len(),
    }
}

fn key_text(key: &Key) -> String {
    match key {
        Key::Rowid => String::new(),
        Key::Columns(columns) => columns.iter().map(|column| quote(column)).collect::<Vec<_>>().join(", "),
    }
}

/// Makes our tables, empty but for the entry that every position can begin at.
fn create(connection: &Connection, width: usize) -> Result<(), CaptureError> {
    let keys: Vec<String> = (0..width).map(|place| format!("k{place}")).collect();
    // No AUTOINCREMENT: it would leave `sqlite_sequence` behind, and the greatest number is never deleted anyway. No constraint
    // but the key that SQLite chooses: nothing in here may fail.
    connection.execute_batch(&format!(
        "CREATE TABLE main.\"_horos_log\"(seq INTEGER PRIMARY KEY, tab, stamp, {});
         CREATE TABLE main.\"_horos_meta\"(name TEXT PRIMARY KEY, value) WITHOUT ROWID;
         CREATE TABLE main.\"_horos_tracked\"(number INTEGER PRIMARY KEY, name TEXT, width INTEGER, renumbered INTEGER, key TEXT);
         INSERT INTO main.\"_horos_meta\"(name, value) VALUES ('format', {FORMAT}), ('epoch', randomblob(16));
         INSERT INTO main.\"_horos_log\"(tab, stamp) VALUES (0, random());",
        keys.join(", ")
    ))?;
    Ok(())
}

fn remove(connection: &Connection) -> Result<(), CaptureError> {
    for name in ours(connection)?.into_keys() {
        connection.execute_batch(&format!("DROP TRIGGER main.{}", quote(&name)))?;
    }
    for table in TABLES {
        connection.execute_batch(&format!("DROP TABLE IF EXISTS main.{}", quote(table)))?;
    }
    Ok(())
}

/// Our triggers and their texts.
fn ours(connection: &Connection) -> Result<BTreeMap<String, String>, CaptureError> {
    let mut statement = connection.prepare("SELECT name, coalesce(sql, '') FROM main.sqlite_master WHERE type = 'trigger'")?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let mut found = BTreeMap::new();
    for row in rows {
        let (name, sql): (String, String) = row?;
        if triggers::is_ours(&name) {
            found.insert(name, sql);
        }
    }
    Ok(found)
}

/// Brings the triggers to what they should be.
fn install(connection: &Connection, shapes: &[(&Tracked, Shape)], keep: u32) -> Result<Vec<Blind>, CaptureError> {
    let mut present = ours(connection)?;
    let mut blind = Vec::new();
    for (tracked, shape) in shapes {
        let mut wanted = triggers::of(tracked, shape, keep, Lookups::All);
        let prefix = format!("_horos_{}_", tracked.number);
        let mine: BTreeMap<String, String> = present.extract_if(.., |name, _| name.starts_with(&prefix)).collect();
        let right =
            mine.len() == wanted.triggers.len() && wanted.triggers.iter().all(|trigger| mine.get(&trigger.name) == Some(&trigger.sql));
        if !right {
            for name in mine.keys() {
                drop_trigger(connection, name)?;
            }
            let before = compiles(connection, tracked, shape);
            make(connection, &wanted.triggers)?;
            // What an index says may mean something else in a trigger. A foreign statement that no longer compiles would be worse
            // than a lookup too few. (What did not compile before, such as a function that only its owner has, proves nothing.)
            if breaks(before, compiles(connection, tracked, shape)) {
                for trigger in &wanted.triggers {
                    drop_trigger(connection, &trigger.name)?;
                }
                wanted = triggers::of(tracked, shape, keep, Lookups::None);
                make(connection, &wanted.triggers)?;
                // Any trigger makes SQLite look at foreign keys that a single insert is spared.
                if breaks(before, compiles(connection, tracked, shape)) {
                    let reason = "with a trigger on it an insert would fail: a foreign key refers to columns of it that are not unique";
                    return Err(CaptureError::Plan { table: tracked.name.clone(), reason });
                }
            }
        }
        let Triggers { blind: unseen, .. } = wanted;
        blind.extend(unseen.into_iter().map(|index| Blind { table: tracked.number, index }));
        let width_of_key = u32::try_from(width(tracked)).unwrap_or(u32::MAX);
        let row = params![tracked.number, tracked.name, width_of_key, shape.renumbered_by_vacuum(&tracked.key), key_text(&tracked.key)];
        connection.execute(
            "INSERT INTO main.\"_horos_tracked\"(number, name, width, renumbered, key) SELECT ?1, ?2, ?3, ?4, ?5 \
             WHERE NOT EXISTS (SELECT 1 FROM main.\"_horos_tracked\" WHERE number = ?1)",
            row,
        )?;
    }
    for name in present.into_keys() {
        drop_trigger(connection, &name)?;
    }
    Ok(blind)
}

fn make(connection: &Connection, triggers: &[Trigger]) -> Result<(), CaptureError> {
    for trigger in triggers {
        connection.execute_batch(&trigger.sql)?;
    }
    Ok(())
}

fn drop_trigger(connection: &Connection, name: &str) -> Result<(), CaptureError> {
    Ok(connection.execute_batch(&format!("DROP TRIGGER main.{}", quote(name)))?)
}

/// Which of the statements that fire the triggers compile.
fn compiles(connection: &Connection, tracked: &Tracked, shape: &Shape) -> [bool; 3] {
    let table = quote(&tracked.name);
    let column = shape.columns.first().map_or_else(String::new, |column| quote(&column.name));
    [
        format!("INSERT INTO main.{table} DEFAULT VALUES"),
        format!("UPDATE main.{table} SET {column} = {column}"),
        format!("DELETE FROM main.{table}"),
    ]
    .map(|sql| connection.prepare(&sql).is_ok())
}

fn breaks(before: [bool; 3], after: [bool; 3]) -> bool {
    before.iter().zip(after).any(|(before, after)| *before && !after)
}

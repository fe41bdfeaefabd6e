//! From `control.db` to the tools in force: read whenever anybody has committed to it.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use horos_store::{
    open::{Access, OpenError, Options, open},
    rusqlite::{self, Connection, types::ValueRef},
    watch::{Detector, Reload, Watcher},
};
use horos_supervision::{ChildSpec, worker};

use crate::{
    Problem, Registry, Row,
    policy::{MAX_RULES, Policy, Rule},
    registry::{Entries, Found, MAX_TOOLS, Taken},
    schema::KEPT_TEXT,
};

/// Between two signs of life.
const BEAT: Duration = Duration::from_secs(1);
/// Most bytes that the texts of all tools may have together: ten thousand of six and a half thousand each.
pub const MAX_BYTES: usize = 64 << 20;

/// Longest name of a tool or a role in a rule, in bytes.
const MAX_TEXT: usize = 512;

/// Why the tables could not be taken up. The tools in force stay so; and so does the policy, but for what is said there.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReloadError {
    /// There is no such file yet, or it is damaged.
    #[error("control.db cannot be opened")]
    Open(#[from] OpenError),
    /// It is locked or damaged.
    #[error("the tools cannot be read: {0}")]
    Sql(#[from] rusqlite::Error),
    /// More than [`MAX_TOOLS`], or than [`MAX_BYTES`] of them: none is taken up, for nobody could say which. The policy is.
    #[error("there are more than {MAX_TOOLS} tools, or more than {} MiB of them", MAX_BYTES >> 20)]
    TooMany,
    /// More rules than `MAX_RULES`: any of them may deny, so that nobody may anything but operators.
    #[error("there are more than {MAX_RULES} rules of who may use tools, so that nobody may")]
    TooManyRules,
}

/// The child that keeps `registry` at what is in `path`, which `watcher` watches: the owner's file, or a replica of it.
pub fn child(registry: Registry, path: PathBuf, watcher: Watcher) -> ChildSpec {
    worker("tools", move |vitals| {
        let (registry, path, watcher) = (registry.clone(), path.clone(), watcher.clone());
        async move {
            let reload = {
                let vitals = vitals.clone();
                move |_| {
                    let (registry, path, vitals) = (registry.clone(), path.clone(), vitals.clone());
                    async move {
                        let taken = aside(&registry, &path).await;
                        vitals.progressed(Instant::now());
                        // A file that is not there yet is no trouble: a replica comes when its owner can be reached.
                        let unread = taken.as_ref().err().filter(|_| path.exists());
                        vitals.set_trouble(unread.cloned().or_else(|| registry.snapshot().trouble()).as_deref());
                        taken.map(drop)
                    }
                }
            };
            let _subscription = watcher.subscribe(Detector::DataVersion, Reload::default(), reload);
            loop {
                tokio::time::sleep(BEAT).await;
                vitals.progressed(Instant::now());
            }
        }
    })
}

/// Reads the file on a thread that may wait.
async fn aside(registry: &Registry, path: &Path) -> Result<Taken, String> {
    let (registry, path) = (registry.clone(), path.to_owned());
    match tokio::task::spawn_blocking(move || load(&registry, &path)).await {
        Ok(taken) => taken.map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    }
}

/// Reads all tools in `path` and who may use them, and makes them what is in force.
///
/// # Errors
/// [`ReloadError`].
pub fn load(registry: &Registry, path: &Path) -> Result<Taken, ReloadError> {
    let mut trouble = None;
    let taken = registry.take_with(|entries| {
        let mut database = open(&Options::new(path, Access::ReadOnly))?;
        let connection = database.connection().unchecked_transaction()?;
        let mut keep = |error| match error {
            ReloadError::TooMany | ReloadError::TooManyRules => {
                trouble = Some(error);
                Ok(())
            }
            error => Err(error),
        };
        let rows = match rows(&connection, entries) {
            Ok(rows) => Some(rows),
            Err(error) => keep(error).map(|()| None)?,
        };
        let policy = match policy(&connection) {
            Ok(policy) => policy,
            Err(error) => keep(error).map(|()| Policy::closed())?,
        };
        connection.finish()?;
        Ok::<_, ReloadError>((rows, policy))
    })?;
    if taken.changed + taken.gone > 0 {
        tracing::info!(changed = taken.changed, gone = taken.gone, wrong = taken.wrong, "tools taken up");
    }
    trouble.map_or(Ok(taken), Err)
}

/// A text of the table, or so many bytes in place of one that is too long to be looked at.
macro_rules! text {
    ($column:literal) => {
        concat!("CASE WHEN octet_length(", $column, ") > 65536 THEN zeroblob(65537) ELSE ", $column, " END, ")
    };
}

/// The names of [`Row`]'s texts are in the order of [`TEXTS`]. What stands for a name that is too long is no name either.
const ROWS: &str = concat!(
    "SELECT CASE WHEN octet_length(tool_name) > 512 THEN '(too long) ' || substr(tool_name, 1, 64) ELSE tool_name END, ",
    text!("tool_category"),
    text!("description"),
    text!("input_schema"),
    text!("handler_type"),
    text!("handler_config"),
    text!("mode"),
    text!("group_tag"),
    text!("title"),
    text!("output_schema"),
    "timeout_ms, version, destructive, idempotent, is_active, updated_at
    FROM mcp_tools_registry WHERE is_active IS NOT 0 ORDER BY tool_name "
);
/// Columns that are texts, which come first.
const TEXTS: usize = 10;
const _: () = assert!(KEPT_TEXT == 65_536, "the statement above says so too");

/// The rows there are; of those that `entries` has as they are, nothing is copied.
fn rows(connection: &Connection, entries: &Entries) -> Result<Vec<Found>, ReloadError> {
    if !connection.table_exists(Some("main"), "mcp_tools_registry")? {
        return Ok(Vec::new());
    }
    let mut statement = connection.prepare(ROWS)?;
    let mut found = Vec::with_capacity(entries.len());
    let mut bytes = 0;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let mut texts = [ValueRef::Null; TEXTS];
        for (column, text) in texts.iter_mut().enumerate() {
            *text = row.get_ref(column)?;
            bytes += raw(*text).map_or(0, <[u8]>::len);
        }
        if found.len() == MAX_TOOLS || bytes > MAX_BYTES {
            return Err(ReloadError::TooMany);
        }
        let column = |number: usize| row.get_ref(TEXTS + number);
        // What is no integer is none that would be right.
        let checked = |value: ValueRef<'_>| value.as_i64().unwrap_or(i64::MIN);
        let numbers = Numbers {
            timeout_ms: Some(column(0)?).filter(|value| *value != ValueRef::Null).map(checked),
            version: column(1)?.as_i64().unwrap_or_default(),
            destructive: checked(column(2)?),
            idempotent: checked(column(3)?),
            updated_at: column(5)?.as_i64().unwrap_or_default(),
        };
        let is_active = column(4)? == ValueRef::Integer(1);
        let known = raw(texts[0]).and_then(|name| entries.get(std::str::from_utf8(name).ok()?, found.len()));
        found.push(match known.filter(|known| is_active && !known.unclear && is_same(&known.row, &texts, &numbers)) {
            Some(known) => Found::Same(known.clone()),
            None if is_active => Found::Row(numbers.with(texts.map(text))),
            None => Found::Unclear(numbers.with(texts.map(text)), Problem::new("is_active", "is neither 0 nor 1; it is taken for 0")),
        });
    }
    Ok(found)
}

/// Columns of a row that are numbers.
struct Numbers {
    timeout_ms: Option<i64>,
    version: i64,
    destructive: i64,
    idempotent: i64,
    updated_at: i64,
}

impl Numbers {
    fn with(self, texts: [Option<Box<str>>; TEXTS]) -> Row {
        let [name, category, description, input_schema, handler_type, handler_config, mode, group, title, output_schema] = texts;
        Row {
            name: name.unwrap_or_default(),
            category: category.unwrap_or_default(),
            title,
            description: description.unwrap_or_default(),
            input_schema: input_schema.unwrap_or_default(),
            output_schema,
            handler_type: handler_type.unwrap_or_default(),
            handler_config: handler_config.unwrap_or_default(),
            mode: mode.unwrap_or_default(),
            destructive: self.destructive,
            idempotent: self.idempotent,
            group: group.unwrap_or_default(),
            timeout_ms: self.timeout_ms,
            version: self.version,
            updated_at: self.updated_at,
        }
    }
}

fn is_same(row: &Row, texts: &[ValueRef<'_>; TEXTS], numbers: &Numbers) -> bool {
    let Numbers { timeout_ms, version, destructive, idempotent, updated_at } = *numbers;
    let known = [
        Some(&row.name),
        Some(&row.category),
        Some(&row.description),
        Some(&row.input_schema),
        Some(&row.handler_type),
        Some(&row.handler_config),
        Some(&row.mode),
        Some(&row.group),
        row.title.as_ref(),
        row.output_schema.as_ref(),
    ];
    (row.version, row.updated_at, row.timeout_ms) == (version, updated_at, timeout_ms)
        && (row.destructive, row.idempotent) == (destructive, idempotent)
        && texts.iter().zip(known).all(|(text, known)| match (raw(*text), known) {
            (Some(bytes), Some(known)) => bytes == known.as_bytes(),
            // Nothing where there must be something is taken for nothing.
            (None, known) => *text == ValueRef::Null && known.is_none_or(|known| known.is_empty()),
            (Some(_), None) => false,
        })
}

fn raw(value: ValueRef<'_>) -> Option<&[u8]> {
    match value {
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => Some(bytes),
        ValueRef::Null | ValueRef::Integer(_) | ValueRef::Real(_) => None,
    }
}

/// A text, also where a program stored it as bytes. What is no UTF-8 has U+FFFD in it, and is found wrong for that.
fn text(value: ValueRef<'_>) -> Option<Box<str>> {
    match value {
        ValueRef::Null => None,
        ValueRef::Integer(number) => Some(number.to_string().into()),
        ValueRef::Real(number) => Some(number.to_string().into()),
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => Some(String::from_utf8_lossy(bytes).into()),
    }
}

fn policy(connection: &Connection) -> Result<Policy, ReloadError> {
    if !connection.table_exists(Some("main"), "mcp_tool_policy")? {
        return Ok(Policy::default());
    }
    // A text that no tool and no role can be is none.
    let text = |column: &str| format!("CASE WHEN octet_length({column}) <= {MAX_TEXT} THEN {column} END");
    let columns = ["tool_name", "role", "effect"].map(text).join(", ");
    let mut statement = connection.prepare(&format!("SELECT policy_id, {columns} FROM mcp_tool_policy ORDER BY policy_id"))?;
    let (mut rules, mut problems) = (Vec::new(), Vec::new());
    let mut rows = statement.query([])?;
    let mut count = 0;
    while let Some(row) = rows.next()? {
        count += 1;
        if count > MAX_RULES {
            return Err(ReloadError::TooManyRules);
        }
        let id = row.get_ref(0)?.as_i64().unwrap_or_default();
        rules.extend(Rule::read(id, [row.get_ref(1)?, row.get_ref(2)?, row.get_ref(3)?], &mut problems));
    }
    Ok(Policy::told(rules, problems))
}

//! The tables: tools, every version of each of them, and who may use them.
//!
//! Any program may write them, so they take what SQL takes (a kind that nobody has, a schema that is no JSON, a text where a number
//! should be), and what is wrong with a row is for readers to say. They have the columns of the Go system's under the same names, so that
//! its rows are taken as they are: first those of `mcp_tools_history`, then those of `mcp_tools_registry`.
//!
//! - Versions only grow. Each row that is inserted, replaced, changed, renamed or deleted leaves a version in `mcp_tools_history`, above all
//!   that its name ever had: also by `REPLACE`, also when a tool is made anew after it was deleted, and also when those versions have
//!   been forgotten, for `mcp_tools_floor` remembers the highest of them. A version that a program writes itself counts where it makes a
//!   new row, as an import does; else it is put right.
//! - `changed_by` and `change_reason` say who writes and why. They go with that one change into the history, and are empty again at once,
//!   so that no later change is put down to the same person.
//! - Nothing in the triggers can fail: no table that they write to has a constraint, so a foreign statement never fails because of them.
//!   `changes()` and `last_insert_rowid()` stay as they were, and all of it holds with `recursive_triggers` on and off. They use the syntax
//!   of SQLite 3.8.3, older than whatever else opens this file.
//! - A row that `REPLACE` removes fires no trigger of its own where `recursive_triggers` is off. So each insert first notes that a row
//!   stands in its place, in `mcp_tools_before`, which holds at most one. The table has no rowid, by which a row of another name
//!   could be replaced.

use horos_store::migrations::Migration;

/// Versions of all tools together that are kept; the oldest go. At the size of usual rows that is some ten megabytes.
#[cfg(test)]
pub(crate) const KEPT_VERSIONS: i64 = 10_000;
/// Most bytes of a text that the history keeps; readers take no longer ones either.
pub(crate) const KEPT_TEXT: usize = 65_536;

/// Now, in seconds since 1970; `unixepoch()` is younger than the oldest SQLite that must do.
macro_rules! now {
    () => {
        "CAST(strftime('%s', 'now') AS INTEGER)"
    };
}

/// A value if it is within its bound, and else as much of it. Only then: `substr` ends at a NUL.
macro_rules! fit {
    ($row:literal, $column:literal) => {
        concat!(
            "CASE WHEN length(CAST(",
            $row,
            ".",
            $column,
            " AS BLOB)) > 65536 THEN substr(",
            $row,
            ".",
            $column,
            ", 1, 65536) ELSE ",
            $row,
            ".",
            $column,
            " END"
        )
    };
}

/// Whether any value of a row is beyond its bound.
macro_rules! is_cut {
    ($row:literal) => {
        concat!(
            "max(",
            is_cut!($row, "tool_name"),
            ", ",
            is_cut!($row, "tool_category"),
            ", ",
            is_cut!($row, "title"),
            ", ",
            is_cut!($row, "description"),
            ", ",
            is_cut!($row, "input_schema"),
            ", ",
            is_cut!($row, "output_schema"),
            ", ",
            is_cut!($row, "handler_type"),
            ", ",
            is_cut!($row, "handler_config"),
            ", ",
            is_cut!($row, "mode"),
            ", ",
            is_cut!($row, "group_tag"),
            ", ",
            is_cut!($row, "created_by"),
            ")"
        )
    };
    ($row:literal, $column:literal) => {
        concat!("coalesce(length(CAST(", $row, ".", $column, " AS BLOB)) > 65536, 0)")
    };
}

/// The highest version that the history has of a name. What is no version, or no likely one, does not count: any program may have written
/// there, and a number that can grow no further would be no version of the next change.
macro_rules! last {
    ($name:literal) => {
        concat!(
            "(SELECT max(version) FROM mcp_tools_history WHERE tool_name = ",
            $name,
            " AND version BETWEEN 1 AND 1000000000000000 AND typeof(version) = 'integer')"
        )
    };
}

/// A column as a version, where it is a likely one.
macro_rules! version {
    ($value:literal, $most:literal) => {
        concat!("coalesce((SELECT v FROM (SELECT ", $value, " AS v) WHERE typeof(v) = 'integer' AND v BETWEEN 1 AND ", $most, "), 0)")
    };
}

/// Writes a version down: what became of a row, the row, the number, and who and why.
macro_rules! write_down {
    ($what:expr, $row:literal, $version:expr, $who:expr, $why:expr) => {
        concat!(
            "
        INSERT INTO mcp_tools_history (tool_name, tool_category, title, description, input_schema, output_schema, handler_type,
            handler_config, mode, group_tag, created_by, timeout_ms, destructive, idempotent, is_active, created_at, cut, version, what,
            changed_by, changed_at, change_reason)
        SELECT ",
            fit!($row, "tool_name"),
            ", ",
            fit!($row, "tool_category"),
            ", ",
            fit!($row, "title"),
            ", ",
            fit!($row, "description"),
            ", ",
            fit!($row, "input_schema"),
            ", ",
            fit!($row, "output_schema"),
            ", ",
            fit!($row, "handler_type"),
            ", ",
            fit!($row, "handler_config"),
            ", ",
            fit!($row, "mode"),
            ", ",
            fit!($row, "group_tag"),
            ", ",
            fit!($row, "created_by"),
            ", ",
            $row,
            ".timeout_ms, ",
            $row,
            ".destructive, ",
            $row,
            ".idempotent, ",
            $row,
            ".is_active, ",
            $row,
            ".created_at, ",
            is_cut!($row),
            ", ",
            $version,
            ", ",
            $what,
            ", substr(",
            $who,
            ", 1, 256), ",
            now!(),
            ", substr(",
            $why,
            ", 1, 1024);"
        )
    };
}

/// Gives a row the version that has just been written down, and takes from it who changed it, and why.
macro_rules! stamp {
    ($and:literal) => {
        concat!(
            "
        UPDATE mcp_tools_registry SET version = (SELECT version FROM mcp_tools_history WHERE history_id = last_insert_rowid()),
            changed_by = NULL, change_reason = NULL",
            $and,
            " WHERE tool_name = NEW.tool_name;"
        )
    };
}

/// Forgets all but the newest versions, which are always kept, so that ids are never given twice.
macro_rules! prune {
    () => {
        "
        DELETE FROM mcp_tools_history WHERE history_id <= (SELECT max(history_id) FROM mcp_tools_history) - 10000;"
    };
}

/// Whether an update changed what a tool is, or says who makes it and why. What is left is the triggers' own, and what changes nothing.
macro_rules! changed {
    () => {
        "(NEW.tool_category IS NOT OLD.tool_category OR NEW.title IS NOT OLD.title OR NEW.description IS NOT OLD.description
            OR NEW.input_schema IS NOT OLD.input_schema OR NEW.output_schema IS NOT OLD.output_schema
            OR NEW.handler_type IS NOT OLD.handler_type OR NEW.handler_config IS NOT OLD.handler_config OR NEW.mode IS NOT OLD.mode
            OR NEW.group_tag IS NOT OLD.group_tag OR NEW.timeout_ms IS NOT OLD.timeout_ms OR NEW.destructive IS NOT OLD.destructive
            OR NEW.idempotent IS NOT OLD.idempotent OR NEW.is_active IS NOT OLD.is_active OR NEW.created_at IS NOT OLD.created_at
            OR NEW.created_by IS NOT OLD.created_by OR NEW.changed_by IS NOT NULL OR NEW.change_reason IS NOT NULL)"
    };
}

const TOOLS: Migration = Migration {
    version: 200,
    name: "tools, their versions, and who may use them",
    sql: concat!(
        "
    CREATE TABLE mcp_tools_registry (
        tool_name TEXT NOT NULL PRIMARY KEY,
        tool_category TEXT NOT NULL DEFAULT '',
        description TEXT NOT NULL,
        input_schema TEXT NOT NULL DEFAULT '{\"type\":\"object\"}',
        handler_type TEXT NOT NULL,
        handler_config TEXT NOT NULL DEFAULT '{}',
        mode TEXT NOT NULL DEFAULT 'readwrite',
        is_active INTEGER NOT NULL DEFAULT 1,
        created_at INTEGER NOT NULL DEFAULT (",
        now!(),
        "),
        updated_at INTEGER,
        created_by TEXT,
        version INTEGER NOT NULL DEFAULT 1,
        group_tag TEXT DEFAULT 'default',
        timeout_ms INTEGER DEFAULT 30000,
        title TEXT,
        output_schema TEXT,
        destructive INTEGER NOT NULL DEFAULT 0,
        idempotent INTEGER NOT NULL DEFAULT 0,
        changed_by TEXT,
        change_reason TEXT
    ) WITHOUT ROWID;
    CREATE INDEX idx_mcp_tools_active ON mcp_tools_registry (is_active);

    CREATE TABLE mcp_tools_history (
        history_id INTEGER PRIMARY KEY,
        tool_name TEXT,
        tool_category TEXT,
        description TEXT,
        input_schema TEXT,
        handler_type TEXT,
        handler_config TEXT,
        mode TEXT,
        version INTEGER,
        changed_by TEXT,
        changed_at INTEGER DEFAULT (",
        now!(),
        "),
        change_reason TEXT,
        title TEXT,
        output_schema TEXT,
        group_tag TEXT,
        timeout_ms INTEGER,
        destructive INTEGER,
        idempotent INTEGER,
        is_active INTEGER,
        created_at INTEGER,
        created_by TEXT,
        what TEXT,
        cut INTEGER DEFAULT 0
    );
    CREATE INDEX idx_mcp_history_tool ON mcp_tools_history (tool_name, version DESC);

    CREATE TABLE mcp_tool_policy (
        policy_id INTEGER PRIMARY KEY,
        tool_name TEXT NOT NULL,
        role TEXT NOT NULL DEFAULT '*',
        effect TEXT NOT NULL DEFAULT 'allow',
        created_at INTEGER NOT NULL DEFAULT (",
        now!(),
        ")
    );
    CREATE INDEX idx_mcp_policy_tool ON mcp_tool_policy (tool_name, role);

    CREATE TABLE mcp_tools_before (version INTEGER);
    CREATE TABLE mcp_tools_floor (version INTEGER);
    INSERT INTO mcp_tools_floor (version) VALUES (0);

    CREATE TRIGGER trg_mcp_history_forgotten AFTER DELETE ON mcp_tools_history
        WHEN OLD.version > (SELECT version FROM mcp_tools_floor) AND OLD.version <= 1000000000000000 AND typeof(OLD.version) = 'integer'
            AND NOT EXISTS (SELECT 1 FROM mcp_tools_history WHERE tool_name = OLD.tool_name AND version > OLD.version)
            AND NOT EXISTS (SELECT 1 FROM mcp_tools_registry WHERE tool_name = OLD.tool_name)
    BEGIN
        UPDATE mcp_tools_floor SET version = OLD.version;
    END;

    CREATE TRIGGER trg_mcp_tools_before_insert BEFORE INSERT ON mcp_tools_registry BEGIN
        DELETE FROM mcp_tools_before;
        INSERT INTO mcp_tools_before SELECT version FROM mcp_tools_registry WHERE tool_name = NEW.tool_name;
    END;
    CREATE TRIGGER trg_mcp_tools_before_rename BEFORE UPDATE OF tool_name ON mcp_tools_registry WHEN NEW.tool_name IS NOT OLD.tool_name
    BEGIN
        DELETE FROM mcp_tools_before;
        INSERT INTO mcp_tools_before SELECT version FROM mcp_tools_registry WHERE tool_name = NEW.tool_name;
    END;
    CREATE TRIGGER trg_mcp_tools_inserted AFTER INSERT ON mcp_tools_registry BEGIN",
        write_down!(
            "CASE WHEN EXISTS (SELECT 1 FROM mcp_tools_before) THEN 'replaced' ELSE 'created' END",
            "NEW",
            concat!(
                "max(",
                version!("NEW.version", "1000000000"),
                ", 1 + max(coalesce((SELECT version FROM mcp_tools_floor), 0), coalesce(",
                last!("NEW.tool_name"),
                ", 0), ",
                version!("(SELECT version FROM mcp_tools_before)", "1000000000000000"),
                "))"
            ),
            "coalesce(NEW.changed_by, NEW.created_by, 'sql')",
            "coalesce(NEW.change_reason, CASE WHEN EXISTS (SELECT 1 FROM mcp_tools_before) THEN 'replaced' ELSE 'created' END)"
        ),
        stamp!(""),
        "
        DELETE FROM mcp_tools_before;",
        prune!(),
        "
    END;
    CREATE TRIGGER trg_mcp_tools_updated AFTER UPDATE ON mcp_tools_registry WHEN NEW.tool_name IS OLD.tool_name AND (",
        changed!(),
        " OR NEW.version IS NOT ",
        last!("NEW.tool_name"),
        ")
    BEGIN",
        write_down!(
            "'updated'",
            "NEW",
            concat!("1 + max(coalesce(", last!("NEW.tool_name"), ", 0), ", version!("OLD.version", "1000000000000000"), ")"),
            "coalesce(NEW.changed_by, 'sql')",
            "NEW.change_reason"
        ),
        stamp!(", updated_at = CAST(strftime('%s', 'now') AS INTEGER)"),
        prune!(),
        "
    END;
    CREATE TRIGGER trg_mcp_tools_renamed AFTER UPDATE ON mcp_tools_registry WHEN NEW.tool_name IS NOT OLD.tool_name BEGIN",
        write_down!(
            "'deleted'",
            "OLD",
            concat!("1 + max(coalesce(", last!("OLD.tool_name"), ", 0), ", version!("OLD.version", "1000000000000000"), ")"),
            "coalesce(NEW.changed_by, 'sql')",
            "coalesce(NEW.change_reason, 'renamed')"
        ),
        write_down!(
            "CASE WHEN EXISTS (SELECT 1 FROM mcp_tools_before) THEN 'replaced' ELSE 'created' END",
            "NEW",
            concat!(
                "1 + max(coalesce((SELECT version FROM mcp_tools_floor), 0), coalesce(",
                last!("NEW.tool_name"),
                ", 0), ",
                version!("(SELECT version FROM mcp_tools_before)", "1000000000000000"),
                ")"
            ),
            "coalesce(NEW.changed_by, 'sql')",
            "coalesce(NEW.change_reason, 'renamed')"
        ),
        stamp!(", updated_at = CAST(strftime('%s', 'now') AS INTEGER)"),
        "
        DELETE FROM mcp_tools_before;",
        prune!(),
        "
    END;
    CREATE TRIGGER trg_mcp_tools_deleted AFTER DELETE ON mcp_tools_registry BEGIN",
        write_down!(
            "'deleted'",
            "OLD",
            concat!("1 + max(coalesce(", last!("OLD.tool_name"), ", 0), ", version!("OLD.version", "1000000000000000"), ")"),
            "'sql'",
            "'deleted'"
        ),
        prune!(),
        "
    END;
    "
    ),
};

/// Some of a tool's versions are deleted, and the newest of those that are left is not the one that the row has: the row gets another, above
/// all that there were. Else whoever writes the number of one that is left would take the row back to it. Forgetting what is old, as the
/// triggers above do, never comes here: of a name the newest is the last to go.
const GAPS: Migration = Migration {
    version: 203,
    name: "versions grow where others were deleted",
    sql: "
    CREATE TRIGGER trg_mcp_history_gap AFTER DELETE ON mcp_tools_history
        WHEN OLD.version IS (SELECT version FROM mcp_tools_registry WHERE tool_name = OLD.tool_name)
            AND EXISTS (SELECT 1 FROM mcp_tools_history WHERE tool_name = OLD.tool_name)
            AND NOT EXISTS (SELECT 1 FROM mcp_tools_history WHERE tool_name = OLD.tool_name AND version >= OLD.version)
    BEGIN
        UPDATE mcp_tools_registry SET version = version WHERE tool_name = OLD.tool_name;
    END;
    ",
};

/// Tools and what belongs to them, on the owner of `control.db`. Others have tables in that file as well: whoever joins the lists puts
/// them in order of their numbers.
pub const TOOLS_MIGRATIONS: &[Migration] = &[TOOLS, crate::admin::RULE_HISTORY, GAPS, crate::admin::RULES_REPLACED];

#[cfg(test)]
mod tests;

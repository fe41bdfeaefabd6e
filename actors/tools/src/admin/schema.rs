//! Who edited the rules, when and why: written down by the tables themselves, whoever writes to them.
//!
//! As in [`crate::schema`] nothing in the triggers can fail, `changes()` and `last_insert_rowid()` stay as they were, and what other
//! programs do is put down to `sql`; the owner puts its caller's name and reason on what it has just done.

use horos_store::migrations::Migration;

/// Edits of rules that are kept, the newest. Also in the text of [`RULE_HISTORY`].
pub(super) const KEPT_EDITS: u32 = 10_000;

/// Writes an edit down: the rule's tool and role, its effect before and after.
macro_rules! edit {
    ($tool:literal, $role:literal, $before:literal, $after:literal) => {
        concat!(
            "
        INSERT INTO mcp_policy_history (at, who, why, tool_name, role, effect_before, effect_after)
        VALUES (CAST(strftime('%s', 'now') AS INTEGER), 'sql', '', substr(",
            $tool,
            ", 1, 1024), substr(",
            $role,
            ", 1, 1024),
            substr(",
            $before,
            ", 1, 16), substr(",
            $after,
            ", 1, 16));
        DELETE FROM mcp_policy_history WHERE edit <= (SELECT max(edit) FROM mcp_policy_history) - 10000;"
        )
    };
}

/// Writes down that the rule is gone that was noted, if its place has been taken.
macro_rules! replaced {
    () => {
        "
        INSERT INTO mcp_policy_history (at, who, why, tool_name, role, effect_before, effect_after)
        SELECT CAST(strftime('%s', 'now') AS INTEGER), 'sql', '', substr(tool_name, 1, 1024), substr(role, 1, 1024),
            substr(effect, 1, 16), NULL FROM mcp_policy_before WHERE policy_id = NEW.policy_id;
        DELETE FROM mcp_policy_before;
        DELETE FROM mcp_policy_history WHERE edit <= (SELECT max(edit) FROM mcp_policy_history) - 10000;"
    };
}

/// The history of `mcp_tool_policy`.
pub(crate) const RULE_HISTORY: Migration = Migration {
    version: 201,
    name: "who edited the rules of tools",
    sql: concat!(
        "
    CREATE TABLE mcp_policy_history (
        edit INTEGER PRIMARY KEY,
        at INTEGER,
        who TEXT,
        why TEXT,
        tool_name TEXT,
        role TEXT,
        effect_before TEXT,
        effect_after TEXT
    );
    INSERT INTO mcp_policy_history (at, who, why, tool_name, role, effect_after)
        SELECT created_at, 'sql', '', substr(tool_name, 1, 1024), substr(role, 1, 1024), substr(effect, 1, 16) FROM mcp_tool_policy
        ORDER BY policy_id;
    CREATE TRIGGER trg_mcp_policy_inserted AFTER INSERT ON mcp_tool_policy BEGIN",
        edit!("NEW.tool_name", "NEW.role", "NULL", "NEW.effect"),
        "
    END;
    CREATE TRIGGER trg_mcp_policy_updated AFTER UPDATE ON mcp_tool_policy
        WHEN NEW.tool_name IS OLD.tool_name AND NEW.role IS OLD.role AND NEW.effect IS NOT OLD.effect
    BEGIN",
        edit!("NEW.tool_name", "NEW.role", "OLD.effect", "NEW.effect"),
        "
    END;
    CREATE TRIGGER trg_mcp_policy_moved AFTER UPDATE ON mcp_tool_policy WHEN NEW.tool_name IS NOT OLD.tool_name OR NEW.role IS NOT OLD.role
    BEGIN",
        edit!("OLD.tool_name", "OLD.role", "OLD.effect", "NULL"),
        edit!("NEW.tool_name", "NEW.role", "NULL", "NEW.effect"),
        "
    END;
    CREATE TRIGGER trg_mcp_policy_deleted AFTER DELETE ON mcp_tool_policy BEGIN",
        edit!("OLD.tool_name", "OLD.role", "OLD.effect", "NULL"),
        "
    END;
    "
    ),
};

/// What `REPLACE` removes from `mcp_tool_policy`, too.
///
/// With `recursive_triggers` off such a rule goes without a trigger of its own. So whatever may take a rule's place first notes the rule in
/// `mcp_policy_before`, and what has come of it writes down that it is gone. What notes a rule and then takes no place (`OR IGNORE`, an
/// upsert) leaves the note, which the next to come clears; with `recursive_triggers` on the rule's own trigger has taken it back.
pub(crate) const RULES_REPLACED: Migration = Migration {
    version: 204,
    name: "rules that were replaced are in the history too",
    sql: concat!(
        "
    CREATE TABLE mcp_policy_before (policy_id INTEGER, tool_name TEXT, role TEXT, effect TEXT);
    CREATE TRIGGER trg_mcp_policy_before_insert BEFORE INSERT ON mcp_tool_policy BEGIN
        DELETE FROM mcp_policy_before;
        INSERT INTO mcp_policy_before SELECT policy_id, tool_name, role, effect FROM mcp_tool_policy WHERE policy_id = NEW.policy_id;
    END;
    CREATE TRIGGER trg_mcp_policy_before_update BEFORE UPDATE ON mcp_tool_policy WHEN NEW.policy_id IS NOT OLD.policy_id BEGIN
        DELETE FROM mcp_policy_before;
        INSERT INTO mcp_policy_before SELECT policy_id, tool_name, role, effect FROM mcp_tool_policy WHERE policy_id = NEW.policy_id;
    END;
    DROP TRIGGER trg_mcp_policy_inserted;
    CREATE TRIGGER trg_mcp_policy_inserted AFTER INSERT ON mcp_tool_policy BEGIN",
        replaced!(),
        edit!("NEW.tool_name", "NEW.role", "NULL", "NEW.effect"),
        "
    END;
    CREATE TRIGGER trg_mcp_policy_displaced AFTER UPDATE ON mcp_tool_policy WHEN NEW.policy_id IS NOT OLD.policy_id BEGIN",
        replaced!(),
        "
    END;
    DROP TRIGGER trg_mcp_policy_deleted;
    CREATE TRIGGER trg_mcp_policy_deleted AFTER DELETE ON mcp_tool_policy BEGIN
        DELETE FROM mcp_policy_before WHERE policy_id = OLD.policy_id;",
        edit!("OLD.tool_name", "OLD.role", "OLD.effect", "NULL"),
        "
    END;
    "
    ),
};

#[cfg(test)]
mod tests {
    use horos_store::{migrations::Migrations, rusqlite::Connection};

    use super::*;
    use crate::TOOLS_MIGRATIONS;

    /// The history of `sql`, done on two rules: the first of tool `a`, the other of tool `b`.
    fn edits(recursive: bool, sql: &str) -> Vec<String> {
        let mut tables = Connection::open_in_memory().unwrap();
        Migrations::new(TOOLS_MIGRATIONS).apply(&mut tables).unwrap();
        tables.pragma_update(None, "recursive_triggers", recursive).unwrap();
        tables.execute_batch("INSERT INTO mcp_tool_policy (tool_name) VALUES ('a'), ('b')").unwrap();
        let before = tables.query_row("SELECT max(edit) FROM mcp_policy_history", [], |row| row.get::<_, i64>(0)).unwrap();
        tables.execute_batch(sql).unwrap();
        let sql = "SELECT tool_name || ' ' || coalesce(effect_before, '-') || ' ' || coalesce(effect_after, '-') FROM mcp_policy_history
            WHERE edit > ?1 ORDER BY edit";
        let mut statement = tables.prepare(sql).unwrap();
        statement.query_map([before], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
    }

    #[test]
    fn a_rule_that_another_replaces_is_in_the_history_once_however_it_goes() {
        let denies = "INTO mcp_tool_policy (policy_id, tool_name, effect) VALUES";
        let replaced = ["a allow -", "c - deny"].as_slice();
        let cases: [(String, &[&str]); 11] = [
            (format!("REPLACE {denies} (1, 'c', 'deny')"), replaced),
            (format!("INSERT OR REPLACE {denies} ('1', 'c', 'deny')"), replaced),
            (format!("REPLACE {denies} (1, 'c', 'deny'), (1, 'd', 'deny')"), &["a allow -", "c - deny", "c deny -", "d - deny"]),
            (format!("REPLACE {denies} (NULL, 'c', 'deny')"), &["c - deny"]),
            (format!("INSERT {denies} (-1, 'c', 'deny'); INSERT {denies} (NULL, 'd', 'deny')"), &["c - deny", "d - deny"]),
            ("UPDATE OR REPLACE mcp_tool_policy SET policy_id = 1 WHERE policy_id = 2".into(), &["a allow -"]),
            ("UPDATE OR REPLACE mcp_tool_policy SET rowid = 1 WHERE rowid = 2".into(), &["a allow -"]),
            // None of these removes a rule.
            (format!("INSERT OR IGNORE {denies} (1, 'c', 'deny')"), &[]),
            (format!("INSERT OR IGNORE {denies} (1, 'c', 'deny'); INSERT {denies} (NULL, 'd', 'deny')"), &["d - deny"]),
            (format!("INSERT {denies} (1, 'c', 'deny') ON CONFLICT (policy_id) DO UPDATE SET effect = excluded.effect"), &["a allow deny"]),
            ("UPDATE mcp_tool_policy SET policy_id = policy_id + 10".into(), &[]),
        ];
        for (sql, expected) in &cases {
            for recursive in [false, true] {
                assert_eq!(edits(recursive, sql), *expected, "{sql}, recursive_triggers {recursive}");
            }
        }
    }

    #[test]
    fn the_bound_is_the_one_that_the_triggers_keep() {
        for (sql, count) in [(RULE_HISTORY.sql, 5), (RULES_REPLACED.sql, 4)] {
            assert_eq!(sql.matches(&format!("- {KEPT_EDITS};")).count(), count);
        }
    }
}

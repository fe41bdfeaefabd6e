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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_is_the_one_that_the_triggers_keep() {
        assert_eq!(RULE_HISTORY.sql.matches(&format!("- {KEPT_EDITS};")).count(), 5);
    }
}

//! The tables: routes, the breakers that people have forced, and every edit of both.
//!
//! Any program may write them, so they take what SQL takes (a strategy that nobody has, a configuration that is no JSON) and what is
//! wrong with a row is for readers to say. What the tables do themselves:
//!
//! - `updated_at` is the time of the last change, whoever made it.
//! - `policy` is what an FO is told of `config`: all of it but `authorization`, as long as it holds no key but those listed here, and
//!   [`INVALID_POLICY`] otherwise. It is a generated column, so no program can write one and leave the other.
//! - Triggers write down every change with the row before and after it, as made by `sql`; the owner then puts its caller's name and reason
//!   on what it has just done. They use the syntax of SQLite 3.37, the oldest that opens a `STRICT` table, and nothing in them can fail: no
//!   table that they write to has a constraint, so a foreign statement never fails because of them. `changes()` and
//!   `last_insert_rowid()` stay as they were.
//! - A row that `REPLACE` removes fires no trigger of its own. So each insert first notes the row that stands in its place, in
//!   `route_before`, which holds at most one.

use horos_store::migrations::Migration;

/// What an FO is told in place of a configuration that is not right. It is no JSON object, so it is taken for a wrong row there too.
pub const INVALID_POLICY: &str = "invalid";

/// Now, in seconds since 1970; `unixepoch()` is younger than the oldest SQLite that must do.
macro_rules! now {
    () => {
        "CAST(strftime('%s', 'now') AS INTEGER)"
    };
}

/// A text if it is within its bound, and else as much of it. Only then: `substr` ends at a NUL.
macro_rules! fit {
    ($text:literal, $most:literal) => {
        concat!("CASE WHEN length(CAST(", $text, " AS BLOB)) > ", $most, " THEN substr(", $text, ", 1, ", $most, ") ELSE ", $text, " END")
    };
}

/// Whether any text of a row is beyond its bound.
macro_rules! is_cut {
    ($strategy:literal, $endpoint:literal, $config:literal) => {
        concat!(
            "coalesce(length(CAST(",
            $strategy,
            " AS BLOB)) > 32, 0) OR coalesce(length(CAST(",
            $endpoint,
            " AS BLOB)) > 2048, 0) OR coalesce(length(CAST(",
            $config,
            " AS BLOB)) > 16384, 0)"
        )
    };
}

/// Forgets all but the newest edits, which are always kept, so that numbers are never given twice.
macro_rules! prune {
    () => {
        " DELETE FROM edits WHERE id <= (SELECT max(id) FROM edits) - 10000;"
    };
}

/// Writes down an edit of a route.
macro_rules! edit {
    ($service:literal, $s0:literal, $e0:literal, $c0:literal, $s1:literal, $e1:literal, $c1:literal) => {
        concat!(
            "INSERT INTO edits (at, who, why, what, service_name, before_strategy, before_endpoint, before_config, before_cut,
                after_strategy, after_endpoint, after_config, after_cut)
            SELECT ",
            now!(),
            ", 'sql', '', 'sql', ",
            fit!($service, "2048"),
            ",
                ",
            fit!($s0, "32"),
            ", ",
            fit!($e0, "2048"),
            ", ",
            fit!($c0, "16384"),
            ",
                ",
            is_cut!($s0, $e0, $c0),
            ",
                ",
            fit!($s1, "32"),
            ", ",
            fit!($e1, "2048"),
            ", ",
            fit!($c1, "16384"),
            ",
                ",
            is_cut!($s1, $e1, $c1),
            ";",
            prune!()
        )
    };
}

/// Writes down an edit of a breaker.
macro_rules! breaker {
    ($row:literal, $before:literal, $after:literal) => {
        concat!(
            "INSERT INTO edits (at, who, why, what, service_name, breaker, breaker_before, breaker_after)
            SELECT ",
            now!(),
            ", 'sql', '', 'sql', substr(",
            $row,
            ".service_name, 1, 2048), substr(",
            $row,
            ".endpoint, 1, 2048), ",
            $before,
            ", ",
            $after,
            ";",
            prune!()
        )
    };
}

/// The routes as the Go system has them, and who edited them.
const AS_IT_WAS: Migration = Migration {
    version: 100,
    name: "routes, and who edited them",
    // Without the trigger's condition it would set off itself where a program has recursive triggers on.
    sql: "
    CREATE TABLE routes (
        service_name TEXT NOT NULL PRIMARY KEY,
        strategy TEXT NOT NULL CHECK (strategy IN ('local', 'quic', 'http', 'mcp', 'dbsync', 'embed', 'noop')),
        endpoint TEXT,
        config TEXT DEFAULT '{}',
        updated_at INTEGER NOT NULL DEFAULT (unixepoch())
    ) STRICT;
    CREATE INDEX idx_routes_strategy ON routes (strategy);
    CREATE TRIGGER trg_routes_updated_at AFTER UPDATE ON routes WHEN NEW.updated_at IS NOT unixepoch() BEGIN
        UPDATE routes SET updated_at = unixepoch() WHERE service_name = NEW.service_name;
    END;
    CREATE TABLE edits (
        id INTEGER PRIMARY KEY,
        at INTEGER NOT NULL,
        who TEXT NOT NULL,
        what TEXT NOT NULL,
        why TEXT NOT NULL
    ) STRICT;
    ",
};

/// The rows of a table of the Go system stand in `go_routes` when this runs, see [`super::adopt`].
const OPEN: Migration = Migration {
    version: 101,
    name: "routes with any strategy, their history, forced breakers",
    sql: concat!(
        "
    CREATE TABLE new_routes (
        service_name TEXT NOT NULL PRIMARY KEY,
        strategy TEXT NOT NULL,
        endpoint TEXT,
        config TEXT DEFAULT '{}',
        updated_at INTEGER NOT NULL DEFAULT (CAST(strftime('%s', 'now') AS INTEGER)),
        policy TEXT GENERATED ALWAYS AS (CASE
            WHEN config IS NULL OR trim(config, char(9, 10, 13, 32)) = '' THEN '{}'
            WHEN length(CAST(config AS BLOB)) > 16384 OR NOT json_valid(config) THEN 'invalid'
            WHEN json_type(config) IS NOT 'object' OR json_remove(config, '$.authorization',
                '$.timeout_ms', '$.content_type', '$.tool_name', '$.insecure_tls', '$.payload', '$.gateway',
                '$.idempotent', '$.retry', '$.breaker', '$.hedge', '$.fallback', '$.concurrency', '$.rate', '$.endpoints',
                '$.weight', '$.reply', '$.policies') IS NOT '{}' THEN 'invalid'
            ELSE json_remove(config, '$.authorization')
        END) VIRTUAL
    ) STRICT;
    INSERT INTO new_routes (service_name, strategy, endpoint, config, updated_at)
        SELECT service_name, strategy, endpoint, config, updated_at FROM routes;
    DROP TABLE routes;
    ALTER TABLE new_routes RENAME TO routes;

    CREATE TABLE IF NOT EXISTS go_routes (service_name TEXT, strategy TEXT, endpoint TEXT, config TEXT, updated_at INTEGER);
    INSERT INTO routes (service_name, strategy, endpoint, config, updated_at)
        SELECT service_name, coalesce(CAST(strategy AS TEXT), ''), CAST(endpoint AS TEXT), CAST(config AS TEXT),
            coalesce(CAST(updated_at AS INTEGER), 0)
        FROM go_routes WHERE typeof(service_name) = 'text';
    INSERT INTO routes (service_name, strategy, endpoint, config, updated_at)
        SELECT CASE WHEN EXISTS (SELECT 1 FROM routes AS r WHERE r.service_name = g.made)
                THEN g.made || ':' || lower(hex(randomblob(8))) ELSE g.made END, g.strategy, g.endpoint, g.config, g.updated_at
        FROM (SELECT 'unnamed:' || rowid || CASE typeof(service_name) WHEN 'null' THEN '' ELSE ':' || hex(service_name) END AS made,
                coalesce(CAST(strategy AS TEXT), '') AS strategy, CAST(endpoint AS TEXT) AS endpoint, CAST(config AS TEXT) AS config,
                coalesce(CAST(updated_at AS INTEGER), 0) AS updated_at
            FROM go_routes WHERE typeof(service_name) <> 'text') AS g;
    DROP TABLE go_routes;

    CREATE TABLE new_edits (
        id INTEGER PRIMARY KEY,
        at INTEGER NOT NULL,
        who TEXT NOT NULL,
        why TEXT NOT NULL,
        what TEXT NOT NULL,
        service_name TEXT NOT NULL,
        before_strategy TEXT,
        before_endpoint TEXT,
        before_config TEXT,
        before_cut INTEGER NOT NULL DEFAULT 0,
        after_strategy TEXT,
        after_endpoint TEXT,
        after_config TEXT,
        after_cut INTEGER NOT NULL DEFAULT 0,
        breaker TEXT,
        breaker_before TEXT,
        breaker_after TEXT
    ) STRICT;
    CREATE INDEX edits_service ON new_edits (service_name, id);
    INSERT INTO new_edits (id, at, who, why, what, service_name, after_strategy, after_endpoint, after_config)
        SELECT id, at, who, why, 'set', json_extract(what, '$.set_route.service'), json_extract(what, '$.set_route.strategy'),
            json_extract(what, '$.set_route.endpoint'), coalesce(json_extract(what, '$.set_route.config'), '{}')
        FROM edits WHERE json_extract(what, '$.set_route.service') IS NOT NULL;
    INSERT INTO new_edits (id, at, who, why, what, service_name)
        SELECT id, at, who, why, 'delete', json_extract(what, '$.delete_route.service')
        FROM edits WHERE json_extract(what, '$.delete_route.service') IS NOT NULL;
    UPDATE new_edits SET (before_strategy, before_endpoint, before_config) =
        (SELECT e.after_strategy, e.after_endpoint, e.after_config FROM new_edits AS e
         WHERE e.service_name = new_edits.service_name AND e.id < new_edits.id ORDER BY e.id DESC LIMIT 1);
    DROP TABLE edits;
    ALTER TABLE new_edits RENAME TO edits;

    CREATE TABLE breakers (
        service_name TEXT NOT NULL,
        endpoint TEXT NOT NULL DEFAULT '',
        forced TEXT CHECK (forced IN ('open', 'closed')),
        resets INTEGER NOT NULL DEFAULT 0,
        updated_at INTEGER NOT NULL DEFAULT (CAST(strftime('%s', 'now') AS INTEGER)),
        PRIMARY KEY (service_name, endpoint)
    ) STRICT;

    CREATE INDEX idx_routes_strategy ON routes (strategy);
    CREATE TRIGGER trg_routes_updated_at AFTER UPDATE ON routes WHEN NEW.updated_at IS NOT ",
        now!(),
        " BEGIN
        UPDATE routes SET updated_at = ",
        now!(),
        " WHERE service_name = NEW.service_name;
    END;
    CREATE TRIGGER trg_breakers_updated_at AFTER UPDATE ON breakers WHEN NEW.updated_at IS NOT ",
        now!(),
        " BEGIN
        UPDATE breakers SET updated_at = ",
        now!(),
        " WHERE service_name = NEW.service_name AND endpoint = NEW.endpoint;
    END;

    CREATE TABLE route_before (strategy TEXT, endpoint TEXT, config TEXT);
    CREATE TRIGGER trg_routes_before_insert BEFORE INSERT ON routes BEGIN
        DELETE FROM route_before;
        INSERT INTO route_before SELECT strategy, endpoint, config FROM routes WHERE service_name = NEW.service_name;
    END;
    CREATE TRIGGER trg_routes_before_rename BEFORE UPDATE OF service_name ON routes WHEN NEW.service_name IS NOT OLD.service_name BEGIN
        DELETE FROM route_before;
        INSERT INTO route_before SELECT strategy, endpoint, config FROM routes WHERE service_name = NEW.service_name;
    END;
    CREATE TRIGGER trg_routes_inserted AFTER INSERT ON routes BEGIN
        ",
        edit!(
            "NEW.service_name",
            "(SELECT strategy FROM route_before)",
            "(SELECT endpoint FROM route_before)",
            "(SELECT config FROM route_before)",
            "NEW.strategy",
            "NEW.endpoint",
            "NEW.config"
        ),
        "
        DELETE FROM route_before;
    END;
    CREATE TRIGGER trg_routes_updated AFTER UPDATE ON routes WHEN NEW.service_name IS OLD.service_name
        AND (NEW.strategy IS NOT OLD.strategy OR NEW.endpoint IS NOT OLD.endpoint OR NEW.config IS NOT OLD.config) BEGIN
        ",
        edit!("NEW.service_name", "OLD.strategy", "OLD.endpoint", "OLD.config", "NEW.strategy", "NEW.endpoint", "NEW.config"),
        "
        DELETE FROM route_before;
    END;
    CREATE TRIGGER trg_routes_renamed AFTER UPDATE ON routes WHEN NEW.service_name IS NOT OLD.service_name BEGIN
        ",
        edit!("OLD.service_name", "OLD.strategy", "OLD.endpoint", "OLD.config", "NULL", "NULL", "NULL"),
        "
        ",
        edit!(
            "NEW.service_name",
            "(SELECT strategy FROM route_before)",
            "(SELECT endpoint FROM route_before)",
            "(SELECT config FROM route_before)",
            "NEW.strategy",
            "NEW.endpoint",
            "NEW.config"
        ),
        "
        DELETE FROM route_before;
    END;
    CREATE TRIGGER trg_routes_deleted AFTER DELETE ON routes BEGIN
        ",
        edit!("OLD.service_name", "OLD.strategy", "OLD.endpoint", "OLD.config", "NULL", "NULL", "NULL"),
        "
    END;

    CREATE TRIGGER trg_breakers_inserted AFTER INSERT ON breakers BEGIN
        ",
        breaker!("NEW", "'auto'", "coalesce(NEW.forced, CASE WHEN NEW.resets = 0 THEN 'auto' END)"),
        "
    END;
    CREATE TRIGGER trg_breakers_updated AFTER UPDATE ON breakers WHEN NEW.forced IS NOT OLD.forced OR NEW.resets IS NOT OLD.resets
        OR NEW.service_name IS NOT OLD.service_name OR NEW.endpoint IS NOT OLD.endpoint BEGIN
        ",
        breaker!(
            "NEW",
            "coalesce(OLD.forced, 'auto')",
            "CASE WHEN NEW.resets IS OLD.resets OR NEW.forced IS NOT OLD.forced THEN coalesce(NEW.forced, 'auto') END"
        ),
        "
    END;
    CREATE TRIGGER trg_breakers_deleted AFTER DELETE ON breakers BEGIN
        ",
        breaker!("OLD", "coalesce(OLD.forced, 'auto')", "'auto'"),
        "
    END;
    "
    ),
};

/// Routes and what belongs to them, on the owner of `control.db`. Others have tables in that file as well: whoever joins the lists puts
/// them in order of their numbers, and the next one, whosever it is, has a number above all that are there by then.
pub const ROUTES_MIGRATIONS: &[Migration] = &[AS_IT_WAS, OPEN];

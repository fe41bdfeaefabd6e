//! The tables of keys: in `control.db` on its owner, in a file of their own on every other node.

use horos_store::migrations::Migration;

/// What keys and tokens need of their file. On the owner others have tables in it as well, and whoever joins the lists puts them in the
/// order in which they were released: the next one here has a number above all that are there by then.
///
/// `key_changes`, `refused_minutes` and the columns of `api_keys` that say who and why are used on the owner only. An expiry is
/// never NULL: the greatest integer is "never".
pub const KEYS_MIGRATIONS: &[Migration] = &[Migration {
    version: 1,
    name: "keys, token issuers, revoked tokens",
    sql: "
    CREATE TABLE api_keys (
        hash BLOB NOT NULL PRIMARY KEY CHECK (length(hash) = 32),
        id TEXT NOT NULL UNIQUE,
        prefix TEXT NOT NULL DEFAULT '',
        name TEXT NOT NULL DEFAULT '',
        owner TEXT NOT NULL,
        scopes TEXT NOT NULL,
        per_minute INTEGER,
        created_at INTEGER NOT NULL DEFAULT 0,
        created_by TEXT NOT NULL DEFAULT '',
        expires_at INTEGER NOT NULL,
        revoked_at INTEGER,
        revoked_by TEXT,
        refused INTEGER NOT NULL DEFAULT 0,
        last_refused_at INTEGER,
        idempotency TEXT UNIQUE
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX api_keys_owner ON api_keys (owner, id);
    CREATE INDEX api_keys_prefix ON api_keys (prefix);
    CREATE TABLE token_issuers (
        kid TEXT NOT NULL PRIMARY KEY,
        issuer TEXT NOT NULL,
        audience TEXT NOT NULL,
        public_key TEXT NOT NULL,
        grants TEXT NOT NULL,
        own INTEGER NOT NULL DEFAULT 0,
        trusted_at INTEGER NOT NULL DEFAULT 0,
        trusted_by TEXT NOT NULL DEFAULT ''
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE revoked_tokens (
        jti TEXT NOT NULL PRIMARY KEY,
        until INTEGER NOT NULL,
        revoked_at INTEGER NOT NULL DEFAULT 0,
        revoked_by TEXT NOT NULL DEFAULT ''
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX revoked_tokens_until ON revoked_tokens (until);
    CREATE TABLE key_changes (
        seq INTEGER PRIMARY KEY,
        stamp BLOB NOT NULL CHECK (length(stamp) = 16),
        kind TEXT NOT NULL,
        subject BLOB NOT NULL
    ) STRICT;
    CREATE TABLE key_state (name TEXT NOT NULL PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
    CREATE TABLE refused_minutes (
        minute INTEGER NOT NULL,
        node TEXT NOT NULL,
        malformed INTEGER NOT NULL,
        unknown INTEGER NOT NULL,
        revoked INTEGER NOT NULL,
        expired INTEGER NOT NULL,
        not_yet_valid INTEGER NOT NULL,
        other_audience INTEGER NOT NULL,
        wrong_scope INTEGER NOT NULL,
        unavailable INTEGER NOT NULL,
        PRIMARY KEY (minute, node)
    ) STRICT, WITHOUT ROWID;
    ",
}];

//! `control.db`: what all nodes go by. One BO owns it (`control.owner`), every other node keeps a replica that it only reads.
//!
//! The owner's file holds the keys ([`crate::keys`]), the routes, and who edited those and why. The others have two files: `keys.db`,
//! which the keys' own mirror writes, and `control.db`, which is the replica of what [`crate::sync::control`] publishes for their role.
//! So no key is in any other node's `control.db`, and on an FO nothing of a route but what it needs.
//!
//! Edits are the owner's, by its service `horos.control`; with the owner away they have no effect, and everybody serves on what
//! was last replicated.

mod files;
mod routes;
mod service;

use horos_identity::KEYS_MIGRATIONS;
use horos_store::migrations::{Migration, Migrations};
use horos_supervision::{ChildSpec, Context, Exchange, ServiceSpec, exchange::RegisterError, service as hosted};
use horos_wire::protocol::control::NAME;
use tokio::runtime::Handle;

use crate::{config::Config, databases::Databases};
pub(crate) use files::{FilesError, is_replica, settle};
use service::Routes;

/// The file: the owner's, and on every other node the replica.
pub(crate) const FILE: &str = "control.db";
/// The keys' replica, on every node but the owner.
pub(crate) const KEYS_FILE: &str = "keys.db";
/// Threads that read the owner's file: they list keys and routes and fetch pages for replicas. What the port looks up goes by
/// connections of its own.
pub(crate) const READERS: usize = 1;

/// The routes as the Go system has them, and who edited them.
const ROUTES: Migration = Migration {
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

/// All that is in the owner's file, in the order in which it came there: whatever comes next, the keys' or not, has the next number.
pub(crate) const MIGRATIONS: Migrations = {
    const COUNT: usize = KEYS_MIGRATIONS.len() + 1;
    const ALL: [Migration; COUNT] = {
        let mut all = [ROUTES; COUNT];
        let mut at = 0;
        while at < KEYS_MIGRATIONS.len() {
            all[at] = KEYS_MIGRATIONS[at];
            at += 1;
        }
        all
    };
    Migrations::new(&ALL)
};

/// Whether this node owns `control.db`.
pub(crate) fn is_owner(config: &Config) -> bool {
    config.control.owner == config.node.name
}

/// What answers edits, on the owner; nothing elsewhere.
///
/// # Errors
/// [`RegisterError`] when a service has taken the name.
pub(crate) fn lay(config: &Config, exchange: &Exchange, databases: &Databases) -> Result<Option<ChildSpec>, RegisterError> {
    if !is_owner(config) {
        return Ok(None);
    }
    let databases = databases.clone();
    let open = move |_: Context| {
        let databases = databases.clone();
        async move { Ok(Routes::new(databases.open_with(FILE, MIGRATIONS, READERS).await?)) }
    };
    hosted(exchange, &Handle::current(), ServiceSpec::new(NAME.parse().expect("a literal name")), open).map(Some)
}

#[cfg(test)]
mod tests;

//! The node as a user's program has it: this program again, with a small database that tools read.

use std::{io::Read as _, process::ExitCode};

use horos_nodes::{
    Opening,
    mcp::native::Ability,
    store::migrations::{Migration, Migrations},
    supervision::{Context, Handle, OpenError, Restart, Service},
    wire::{Never, Role, protocol},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    machine::{SERVER_CORE, pin},
    server::WAITS,
};

const MIGRATIONS: Migrations = Migrations::new(&[Migration {
    version: 1,
    name: "goods",
    sql: "CREATE TABLE goods (sku TEXT PRIMARY KEY, quantity INTEGER NOT NULL, price INTEGER NOT NULL) STRICT, WITHOUT ROWID;
          INSERT INTO goods VALUES ('tea', 40, 500), ('coffee', 25, 700), ('cups', 12, 900);",
}]);

/// Whether the database is there.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct IsOpen {}

protocol! {
    /// Keeps the database open.
    pub(crate) Keeping = "keeping" v1 {
        1 is_open: IsOpen => bool;
    }
}

struct Keeper;

impl Service for Keeper {
    type Protocol = Keeping;
}

impl Handle<IsOpen> for Keeper {
    async fn handle(&mut self, _: IsOpen, _: &Context) -> Result<bool, Never> {
        Ok(true)
    }
}

/// The node's `main`; it ends with its stdin.
pub(crate) fn main() -> anyhow::Result<ExitCode> {
    pin(SERVER_CORE)?;
    std::thread::spawn(|| {
        let _ = std::io::stdin().read(&mut [0]);
        std::process::exit(0);
    });
    Ok(horos_nodes::main(|n| {
        n.on(Role::Bo).service("keeper", Restart::Permanent, |opening: Opening| async move {
            opening.database("app.db", MIGRATIONS).await?;
            Ok::<_, OpenError>(Keeper)
        });
        n.tool(WAITS, Ability::Reads, |_, _| std::future::pending());
    }))
}

//! `control.db`: what all nodes go by. One BO owns it (`control.owner`), every other node keeps a replica that it only reads.
//!
//! The owner's file holds the keys ([`crate::keys`]), the routes with all that belongs to them ([`horos_router::admin`]), and the tools
//! ([`crate::tools`]); here is only which file is which, and what of it comes from whom. The others have two files: `keys.db`, which the keys' own mirror writes, and
//! `control.db`, which is the replica of what [`crate::sync::control`] publishes for their role. So no key is in any other node's
//! `control.db`, and on an FO nothing of a route but what it needs.
//!
//! Edits are the owner's, by its service `horos.control`; with the owner away they have no effect, and everybody serves on what
//! was last replicated.

mod files;

use horos_identity::KEYS_MIGRATIONS;
use horos_router::{
    admin::{Administration, ROUTES_MIGRATIONS},
    strategy::Strategies,
};
use horos_store::migrations::{Migration, Migrations};
use horos_supervision::{ChildSpec, Context, Exchange, ServiceSpec, exchange::RegisterError, service as hosted};
use horos_tools::TOOLS_MIGRATIONS;
use horos_wire::protocol::control::NAME;
use tokio::runtime::Handle;

use crate::{config::Config, databases::Databases};
pub(crate) use files::{FilesError, is_replica, settle};

/// The file: the owner's, and on every other node the replica.
pub(crate) const FILE: &str = "control.db";
/// The keys' replica, on every node but the owner.
pub(crate) const KEYS_FILE: &str = "keys.db";
/// Threads that read the owner's file: they list keys and routes and fetch pages for replicas. What the port looks up goes by
/// connections of its own.
pub(crate) const READERS: usize = 1;

/// All that is in the owner's file, in the order of their numbers: whatever comes next, whosever it is, has a number above them all.
pub(crate) const MIGRATIONS: Migrations = {
    const OF: [&[Migration]; 3] = [KEYS_MIGRATIONS, ROUTES_MIGRATIONS, TOOLS_MIGRATIONS];
    const COUNT: usize = OF[0].len() + OF[1].len() + OF[2].len();
    const ALL: [Migration; COUNT] = {
        let mut all = [KEYS_MIGRATIONS[0]; COUNT];
        // How many of each have been taken.
        let (mut at, mut taken) = (0, [0; OF.len()]);
        while at < COUNT {
            let (mut whose, mut next) = (0, OF.len());
            while whose < OF.len() {
                let left = taken[whose] < OF[whose].len();
                if left && (next == OF.len() || OF[whose][taken[whose]].version < OF[next][taken[next]].version) {
                    next = whose;
                }
                whose += 1;
            }
            all[at] = OF[next][taken[next]];
            taken[next] += 1;
            assert!(at == 0 || all[at - 1].version < all[at].version, "two migrations of control.db have the same number");
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

/// What answers edits, on the owner; nothing elsewhere. Routes are checked by what `strategies` the owner has.
///
/// # Errors
/// [`RegisterError`] when a service has taken the name.
pub(crate) fn lay(
    config: &Config,
    exchange: &Exchange,
    databases: &Databases,
    strategies: &Strategies,
) -> Result<Option<ChildSpec>, RegisterError> {
    if !is_owner(config) {
        return Ok(None);
    }
    let (databases, strategies) = (databases.clone(), strategies.clone());
    let open = move |_: Context| {
        let (databases, strategies) = (databases.clone(), strategies.clone());
        async move {
            let file = databases.open_with(FILE, MIGRATIONS, READERS).await?;
            Ok(Administration::new(file.writer, file.readers, strategies))
        }
    };
    hosted(exchange, &Handle::current(), ServiceSpec::new(NAME.parse().expect("a literal name")), open).map(Some)
}

#[cfg(test)]
mod tests;

//! Administration of routes: who edits them, how edits are taken back, and what stands in the tables.
//!
//! [`Administration`] is the service `horos.control`. It runs on the owner of `control.db` alone, on that file, whose tables are
//! [`ROUTES_MIGRATIONS`]; every other node has a replica of them, in the same form, in which `config` is NULL on an FO and `policy` says what it
//! needs: `coalesce(config, policy)` is right on every node. Edits are checked whole before they are made, by what the release implements, and are written down in the
//! transaction that makes them, together with the route before and after. Whatever else writes to the file is not asked and not
//! hindered: what is wrong with a row is found by whoever reads it, and the last row that was right goes on.
//!
//! It is left to others to load routes into calls ([`crate::spec`]), and to say who may ask for what (the policy, by certificates).

mod adopt;
mod breakers;
mod check;
mod edits;
mod import;
mod routes;
mod rows;
mod schema;
mod service;
#[cfg(test)]
mod tests;

pub use adopt::{AdoptError, adopt, is_foreign};
pub use check::{UNNAMED, check_name};
pub use schema::{INVALID_POLICY, ROUTES_MIGRATIONS};
pub use service::Administration;

use horos_store::rusqlite;
use horos_wire::protocol::control::{ControlError, MAX_WHY};

/// Rows of this beginning say what the nodes' own replicas are fed by, and go to no FO.
pub const DBSYNC: &str = "dbsync:";

/// Who sees what of the routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum View {
    /// All of it.
    Whole,
    /// What an FO's replica has.
    Public,
}

impl View {
    /// Whether it has a row of this service: as the filter of the replica has it.
    fn has(self, service: &str) -> bool {
        self == Self::Whole || !service.get(..DBSYNC.len()).is_some_and(|start| start.eq_ignore_ascii_case(DBSYNC))
    }
}

/// Why a transaction did nothing.
#[derive(Debug)]
enum Fault {
    /// Told to the caller as it is.
    Refused(ControlError),
    Sql(rusqlite::Error),
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sql(error)
    }
}

impl From<ControlError> for Fault {
    fn from(error: ControlError) -> Self {
        Self::Refused(error)
    }
}

fn invalid(why: impl Into<Box<str>>) -> ControlError {
    ControlError::Invalid(why.into())
}

/// Reasons go into files, logs and terminals, so none gives orders there.
fn check_why(why: Option<&str>) -> Result<(), ControlError> {
    if why.is_some_and(|why| why.len() > MAX_WHY || why.contains(char::is_control)) {
        return Err(invalid(format!("a reason is one line of at most {MAX_WHY} bytes")));
    }
    Ok(())
}

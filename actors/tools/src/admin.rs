//! Administration of tools: their rows and rules on the owner of `control.db`, and what each node tells and does of its own.
//!
//! [`Administration`] is the service `horos.registry`. It runs on the owner of `control.db` alone, on that file, whose tables are
//! [`crate::TOOLS_MIGRATIONS`]; every other node has a replica of them. A tool is checked whole before it is written, by the very
//! [`crate::Kinds`] that make tools of rows, and what was edited, by whom and why is written down in the transaction that edits. Whatever
//! else writes to the file is not asked and not hindered: what is wrong with a row is found by whoever reads it, and the last row that was
//! right goes on.
//!
//! [`Node`] is the actor `horos.tools`, on every node: what it serves, who called what, calls by people, and calls that other nodes pass on.
//!
//! It is left to others to load rows ([`crate::reload`]), and to say which node may ask for what (the policy of links, by certificates).

mod edits;
mod import;
mod node;
mod rows;
mod rules;
mod schema;
mod service;
mod tools;

pub(crate) use schema::{RULE_HISTORY, RULES_REPLACED};

pub use node::Node;
pub use service::Administration;

use horos_store::rusqlite;
use horos_wire::protocol::registry::{MAX_WHY, RegistryError};

/// Why a transaction did nothing.
#[derive(Debug)]
enum Fault {
    /// Told to the caller as it is.
    Refused(RegistryError),
    Sql(rusqlite::Error),
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sql(error)
    }
}

impl From<RegistryError> for Fault {
    fn from(error: RegistryError) -> Self {
        Self::Refused(error)
    }
}

fn invalid(why: impl Into<Box<str>>) -> RegistryError {
    RegistryError::Invalid(why.into())
}

/// Who edits, and why: written down with whatever is done.
#[derive(Clone, Copy, Debug)]
struct Editor<'a> {
    /// As the caller's certificate says.
    who: &'a str,
    /// The reason that was given.
    why: Option<&'a str>,
}

/// Reasons go into files, logs and terminals, so none gives orders there.
fn check_why(why: Option<&str>) -> Result<(), RegistryError> {
    if why.is_some_and(|why| why.len() > MAX_WHY || why.contains(char::is_control)) {
        return Err(invalid(format!("a reason is one line of at most {MAX_WHY} bytes")));
    }
    Ok(())
}

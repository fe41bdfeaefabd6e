//! Tools that are SQL: a query that reads a page, and a script that changes things as one.
//!
//! ```text
//! {"database": "app.db", "query": "SELECT sku, price FROM goods WHERE price < :most",
//!  "tables": {"goods": ["sku", "price"]}}
//! ```
//!
//! Who writes a tool need not be trusted with the file, and who calls it is trusted with nothing. So a statement is confined four times over:
//!
//! 1. *Looked at* (`statement.rs`) when its row is read: it is one statement, of a kind that a tool has, its parameters are the
//!    arguments of the tool. Nothing is opened for that.
//! 2. *Authorized* (`rights.rs`) whenever SQLite prepares it, on any connection: each table, column and function that it touches, through views
//!    and triggers too, is in the tool's own list, or it is not prepared. What is the database's own (`sqlite_…`, `_horos…`) is in no list.
//! 3. *Run where it cannot do more*: queries on connections that cannot write, in a transaction that is rolled back; scripts in a job of the
//!    database's only writer, which is kept whole or not at all.
//! 4. *Bounded* (`bounds.rs`): by its deadline, at which SQLite is interrupted, by the length of any one value, by the memory it fills, by
//!    rows and bytes a page.
//!
//! What a caller learns of an error names nothing inside (`fault.rs`); the node's log says more, under the reference the caller is given.

mod bindings;
mod bounds;
mod config;
mod cursor;
mod fault;
mod functions;
mod lexer;
mod query;
mod rights;
mod script;
mod statement;
mod values;

use futures_util::future::BoxFuture;
use horos_store::{readers::Readers, writer::Writer};

pub use self::{query::Query, script::Script};

/// Threads that a shelf's readers of one file should have: twice what one tool may hold, so that a slow tool delays no other.
pub const THREADS: usize = 8;

/// The database files of a node that tools may use. `nodes` has them.
pub trait Shelf: Send + Sync + 'static {
    /// Readers of `file`, which is a bare name such as `app.db` and never one of the node's own files.
    ///
    /// They are the tools' and nobody else's: a statement may hold a thread of theirs for longer than its deadline, when one step of it is
    /// long.
    fn readers<'a>(&'a self, file: &'a str) -> BoxFuture<'a, Result<Readers, Elsewhere>>;

    /// The writer of `file`, where this node owns it.
    fn writer<'a>(&'a self, file: &'a str) -> BoxFuture<'a, Result<Writer, Elsewhere>>;
}

/// This node has not the file, or has only a replica of it where it is to be written: the call is another node's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this node has not the file")]
pub struct Elsewhere;

/// The names of the parameters of `sql` (`:name`, `@name`, `$name`), each once, in the order in which they first stand there: the arguments
/// that a tool of that statement has. None where it is not SQL enough to tell.
pub fn parameters(sql: &str) -> Option<Vec<Box<str>>> {
    let mut names = Vec::<Box<str>>::new();
    for token in lexer::tokens(sql).ok()? {
        if let lexer::Token::Parameter(parameter) = token
            && let Some(name) = parameter.strip_prefix([':', '@', '$'])
            && !names.iter().any(|known| **known == *name)
        {
            names.push(name.into());
        }
    }
    Some(names)
}

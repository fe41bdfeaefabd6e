//! SQLite done right, once: opening, the one writer of a database, its readers, migrations, the watcher, backup.
//!
//! Only this crate links rusqlite's C library; the others say what they want in closures over [`rusqlite::Connection`].
//!
//! - [`open`] sets and *reads back* every setting; nothing is passed in a connection string.
//! - [`writer`] owns the only write connection of a file, on its own thread, and groups commits.
//! - [`readers`] is a small pool of connections that cannot write.
//! - [`guard`] confines one piece of work on a connection that serves others too.
//! - [`migrations`] brings a file to the schema of this release, or refuses it.
//! - [`watch`] sees commits by any process within the poll interval and runs reloads.
//! - [`backup`] copies a live database into a file, and puts such a file back.
//!
//! Nothing here starts by itself: [`writer::WriterActor`] and [`readers::ReadersActor`] are started by whoever owns the file,
//! under a supervisor.

pub mod backup;
mod budget;
mod error;
pub mod guard;
mod identity;
pub mod migrations;
pub mod open;
mod queue;
pub mod readers;
pub mod watch;
pub mod writer;

pub use error::{Kind, StoreError};
pub use rusqlite;

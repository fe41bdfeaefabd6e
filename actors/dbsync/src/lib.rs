//! Filtered live replicas of SQLite files: what a back office (BO) publishes of a database, kept on front offices (FOs).
//!
//! - [`capture`] records which rows changed, whichever process changed them, and notices what cannot be recorded.
//! - [`export`] writes what is published into a file.
//! - [`go`] speaks the Go system's protocol, both ways.
//! - [`filter`] says what of a database is published, and refuses what could not be published faithfully or privately.
//! - [`publisher`] keeps the replicas of what is published up to date, from the [`source`] that it is read from.
//! - [`replica`] keeps what another node publishes in a file that is read while it changes.
//! - [`proxy`] passes writes on to the owner by HTTP, and lets whoever wrote read what was written.

mod apply;
mod build;
pub mod capture;
mod chunk;
pub mod export;
mod feed;
pub mod filter;
mod frames;
pub mod go;
pub mod proxy;
pub mod publisher;
pub mod replica;
pub mod source;
mod spool;
mod value;

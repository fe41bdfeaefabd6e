//! Filtered live replicas of SQLite files: what a back office (BO) publishes of a database, kept on front offices (FOs).
//!
//! - [`capture`] records which rows changed, whichever process changed them, and notices what cannot be recorded.
//! - [`filter`] says what of a database is published, and refuses what could not be published faithfully or privately.

pub mod capture;
pub mod filter;

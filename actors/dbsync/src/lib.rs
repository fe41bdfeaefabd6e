//! Filtered live replicas of SQLite files: what a back office (BO) publishes of a database, kept on front offices (FOs).
//!
//! - [`filter`] says what of a database is published, and refuses what could not be published faithfully or privately.

pub mod filter;

//! What this crate promises, on real SQLite files.

//! Tools that are SQL.

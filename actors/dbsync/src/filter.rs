//! What of a database is published.

//! What this crate promises, on real sockets, actors and SQLite files.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod it {
    mod client;
    mod client_hostile;
    mod client_world;
    mod quic;
    mod strategy;
    mod sql;
    mod sql_world;
}

//! What this crate promises, on real sockets, actors and SQLite files.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod it {
    mod admin;
    mod admin_node;
    mod admin_world;
    mod audit;
    mod client;
    mod client_hostile;
    mod client_http3;
    mod client_oauth;
    mod client_program;
    mod client_quic;
    mod client_world;
    mod http;
    mod native_and_actor;
    mod quic;
    mod registry;
    mod sql;
    mod sql_attempts;
    mod sql_hostile;
    mod sql_scripts;
    mod sql_world;
    mod strategy;
}

//! What this crate promises, on real actors and SQLite files.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod it {
    mod breakers;
    mod calls;
    mod flips;
    mod gateway;
    mod gateway_streams;
    mod gateway_world;
    mod http_strategy;
    pub(crate) mod world;
}

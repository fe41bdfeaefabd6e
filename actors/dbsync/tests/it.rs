//! What this crate promises, on real SQLite files.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod it {
    mod capture_cost;
    mod capture_random;
    mod capture_sentinel;
    mod capture_statements;
    pub(crate) mod capture_world;
    mod filter_check;
    mod filter_conditions;
    mod filter_projection;
    mod filter_random;
    mod filter_tables;
    pub(crate) mod filter_world;
    mod go;
    mod proxy_forward;
    mod proxy_outages;
    mod proxy_reads;
    mod proxy_smuggling;
    pub(crate) mod proxy_world;
    mod publish_replica;
}

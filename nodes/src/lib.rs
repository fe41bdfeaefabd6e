//! What a node is: its configuration, its supervision tree, and the command line that every program of Horos has.
//!
//! [`main`] gives a user's own binary all of it; see `examples/stock.rs`. What a service is written with stands in
//! [`supervision`], [`store`] and [`wire`].

mod admin;
mod advertise;
mod app;
mod certificates;
pub mod cli;
pub mod config;
mod control;
mod databases;
pub mod exit;
pub mod http;
mod keys;
pub mod logging;
mod maintenance;
mod memory;
mod mounts;
mod node;
mod program;
mod remote;
pub mod render;
mod router;
pub mod sync;
mod threads;
mod tools;
mod up;

// A user's crate depends on this one alone.
pub use horos_dbsync as dbsync;
pub use horos_store as store;
pub use horos_supervision as supervision;
pub use horos_wire as wire;

pub use admin::CLUSTER;
pub use app::{Allow, Horos, On, Opening};
pub use databases::{Database, MAX_DATABASES};
pub use horos_router::{self as routes, Routed, Routes};
pub use horos_tools as mcp;
pub use program::{main, main_as};
pub use remote::Operator;

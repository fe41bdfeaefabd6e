//! What a node is: its configuration, its roles, and the command line.

pub mod config;
pub mod logging;

//! What a node is: its configuration, its roles, and the command line.

pub mod cli;
pub mod config;
pub mod exit;
pub mod logging;
pub mod render;

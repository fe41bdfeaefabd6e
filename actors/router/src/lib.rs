//! Routes: a row in `control.db` decides where a service runs, and changing the row moves the next call.
//!
//! A *service* is a name. Its row says by which strategy it is reached (here, on another node, over HTTP, not at all), at which
//! endpoints, and by which policies: timeout, retries, breaker, fallback and the rest. What is not in the table is what it was
//! without: an actor of that name, here or on whichever node offers it.

pub mod admin;
pub mod backoff;
pub mod balance;
pub mod breaker;
pub mod budget;
mod call;
pub mod config;
mod counters;
pub mod gateway;
pub mod limit;
pub mod policy;
pub mod rate;
pub mod reload;
mod router;
mod service;
pub mod spec;
pub mod status;
pub mod strategy;

pub use call::Routed;
pub use router::{Router, Routes, Taken};

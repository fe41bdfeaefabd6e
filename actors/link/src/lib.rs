//! placeholder

pub mod identity;
pub mod tls;

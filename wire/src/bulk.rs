//! Bodies that no message carries: snapshots, files, rows without end.
//!
//! A bulk body travels on a stream of its own, at the lowest priority, and QUIC's flow control is its
//! back-pressure. The message carries only the [`Bulk`] that names it; whoever receives the message claims the
//! body by that name.

use std::fmt;

/// Names a bulk body. Drawn at random by its sender, so that knowing one is the right to claim it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Bulk(pub u128);

impl fmt::Display for Bulk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for Bulk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

crate::hex::hex_id!(Bulk);

//! The codes with which connections and streams end.

use quinn::{Connection, VarInt};

/// Why a connection was closed. 0, 1 and 3 are the Go system's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Close {
    /// In good order: the session ended, was idle, or the node stops.
    Done = 0x00,
    /// The protocol that was agreed on is none of [`super::ALPNS`].
    Alpn = 0x01,
    /// The peer does not speak the protocol.
    Violation = 0x03,
    /// Nobody was proved, or what proved them no longer holds.
    Unauthenticated = 0x04,
    /// A bound was reached: of connections, of sessions, or of answers that are not read. Come again later.
    Limit = 0x05,
}

impl Close {
    /// The meaning of a code, if it has one.
    pub const fn from_code(code: u64) -> Option<Self> {
        Some(match code {
            0x00 => Self::Done,
            0x01 => Self::Alpn,
            0x03 => Self::Violation,
            0x04 => Self::Unauthenticated,
            0x05 => Self::Limit,
            _ => return None,
        })
    }

    /// As it goes over the wire.
    pub const fn code(self) -> VarInt {
        VarInt::from_u32(self as u32)
    }
}

/// Why a stream was reset, or is no longer read. 2 and 3 are the Go system's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reset {
    /// The request was cancelled.
    Cancelled = 0x00,
    /// This stream was not agreed on.
    Confused = 0x02,
    /// The message is larger than [`super::MAX_MESSAGE`].
    TooLarge = 0x03,
}

impl Reset {
    /// As it goes over the wire.
    pub const fn code(self) -> VarInt {
        VarInt::from_u32(self as u32)
    }
}

/// How a session ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ended {
    pub(super) close: Close,
    pub(super) reason: &'static str,
}

impl Ended {
    pub(super) const fn violation(reason: &'static str) -> Self {
        Self { close: Close::Violation, reason }
    }

    pub(super) const fn limit(reason: &'static str) -> Self {
        Self { close: Close::Limit, reason }
    }

    pub(super) const fn done(reason: &'static str) -> Self {
        Self { close: Close::Done, reason }
    }

    pub(super) const UNAUTHENTICATED: Self = Self { close: Close::Unauthenticated, reason: "unauthenticated" };

    pub(super) fn close(self, connection: &Connection) {
        connection.close(self.close.code(), self.reason.as_bytes());
    }
}

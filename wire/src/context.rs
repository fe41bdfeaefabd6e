//! What goes with every message besides its body.

use std::{fmt, sync::Arc, time::Instant};

use serde::{Deserialize, Serialize};

/// Most hops a call may take from actor to actor before it is refused: two actors on two nodes that
/// pass a message to each other would otherwise do so until the deadline.
pub const MAX_HOPS: u8 = 32;

/// Joins all that was done for one request from outside. The sixteen bytes of a W3C trace id.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct TraceId(pub u128);

impl TraceId {
    /// Whether there is none (W3C Trace Context §3.2.2.3: all zeroes is invalid).
    pub const fn is_none(self) -> bool {
        self.0 == 0
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

crate::hex::hex_id!(TraceId);

/// Goes with every message, local or remote, and into every log line and recorder entry.
///
/// Cheap to clone: what most messages lack stands behind one pointer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CallContext {
    /// The trace the message belongs to.
    pub trace: TraceId,
    /// When the caller gives up. A callee never starts work after it, and what it calls in turn gets what is left.
    pub deadline: Option<Instant>,
    /// How many actors the work has passed through.
    pub hops: u8,
    /// What only some messages carry.
    pub claims: Option<Arc<Claims>>,
}

/// What a caller asserts beyond its own identity.
///
/// **Asserted, not proved**: a user named here is only what the calling node says, and never allows
/// more than that node's role does. Only `token` proves a user, to whoever checks its signature.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// The request from outside that caused the message.
    pub request: Option<Box<str>>,
    /// The user on whose behalf it is sent.
    pub user: Option<Box<str>>,
    /// The tenant whose data it concerns.
    pub tenant: Option<Box<str>>,
    /// Two messages with the same key are to have one effect.
    pub idempotency_key: Option<Box<str>>,
    /// The signed token that proves the user. A bearer's secret: it goes on with the call and into no log.
    pub token: Option<Box<str>>,
}

impl fmt::Debug for Claims {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Claims")
            .field("request", &self.request)
            .field("user", &self.user)
            .field("tenant", &self.tenant)
            .field("idempotency_key", &self.idempotency_key)
            .field("token", &self.token.as_ref().map(|_| format_args!("…")))
            .finish()
    }
}

impl CallContext {
    /// The context for what is called while handling a message with this one: one hop further, the same rest.
    pub fn onward(&self) -> Self {
        Self { hops: self.hops.saturating_add(1), ..self.clone() }
    }

    /// The earlier of this context's deadline and `deadline`.
    pub fn sooner(&self, deadline: Option<Instant>) -> Option<Instant> {
        match (self.deadline, deadline) {
            (Some(ours), Some(theirs)) => Some(ours.min(theirs)),
            (ours, theirs) => ours.or(theirs),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_in_no_debug_text() {
        let claims = Claims { user: Some("ana".into()), token: Some("e30.secret.sig".into()), ..Claims::default() };
        let context = CallContext { claims: Some(Arc::new(claims.clone())), ..CallContext::default() };
        for text in [format!("{claims:?}"), format!("{context:#?}")] {
            assert!(text.contains("ana") && text.contains('…') && !text.contains("secret"), "{text}");
        }
        assert!(format!("{:?}", Claims::default()).contains("token: None"));
    }
}

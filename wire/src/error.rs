//! The closed set of ways a call ends without its reply.
//!
//! The first question after a failure is not *what* broke but *may I try again*. So the set is cut by
//! the answer: [`NoEffect`] (safe to retry), [`Unknown`] (retry only what is idempotent), and the
//! callee's own typed error, which is an answer and no failure of the system at all.

use std::{convert::Infallible, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How a call ended without its reply.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError<E> {
    /// The callee did nothing: trying again is safe.
    #[error("{0} (no effect)")]
    NoEffect(#[from] NoEffect),
    /// The callee may or may not have done it: try again only what is idempotent.
    #[error("{0} (outcome unknown)")]
    Unknown(Unknown),
    /// The callee's own typed error.
    #[error("{0}")]
    Failed(E),
}

impl<E> CallError<E> {
    /// The same error with the callee's own mapped by `map`.
    pub fn map<F>(self, map: impl FnOnce(E) -> F) -> CallError<F> {
        match self {
            Self::NoEffect(reason) => CallError::NoEffect(reason),
            Self::Unknown(reason) => CallError::Unknown(reason),
            Self::Failed(error) => CallError::Failed(map(error)),
        }
    }
}

impl<E> From<Unknown> for CallError<E> {
    fn from(reason: Unknown) -> Self {
        Self::Unknown(reason)
    }
}

impl From<CallError<Infallible>> for Fault {
    fn from(error: CallError<Infallible>) -> Self {
        match error {
            CallError::NoEffect(reason) => Self::NoEffect(reason),
            CallError::Unknown(reason) => Self::Unknown(reason),
            CallError::Failed(never) => match never {},
        }
    }
}

/// What the system itself says of a call it could not bring to an answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// See [`NoEffect`].
    #[error("{0} (no effect)")]
    NoEffect(#[from] NoEffect),
    /// See [`Unknown`].
    #[error("{0} (outcome unknown)")]
    Unknown(#[from] Unknown),
}

impl<E> From<Fault> for CallError<E> {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::NoEffect(reason) => Self::NoEffect(reason),
            Fault::Unknown(reason) => Self::Unknown(reason),
        }
    }
}

/// Why nothing was done. Appended to, never reordered: it crosses nodes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema, thiserror::Error)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum NoEffect {
    /// No node in reach offers the name.
    #[error("no such actor: {0}")]
    NoSuchActor(Box<str>),
    /// A bounded queue on the way is full.
    #[error("overloaded: {0}")]
    Overloaded(Box<str>),
    /// The breaker in front of the service is open.
    #[error("circuit open, and worth another try in {retry_after:.1?}")]
    CircuitOpen {
        /// When to try again.
        retry_after: Duration,
    },
    /// The policy does not let this caller do this.
    #[error("not allowed: {0}")]
    NotAllowed(Box<str>),
    /// The callee does not speak the protocol or its version.
    #[error("version not spoken: {0}")]
    VersionNotSpoken(Box<str>),
    /// The message is over its limit.
    #[error("too large: {0}")]
    TooLarge(Box<str>),
    /// The body is no message of the protocol.
    #[error("malformed message: {0}")]
    Malformed(Box<str>),
    /// The node is known but not in reach from here.
    #[error("no route to {0}")]
    NoRoute(Box<str>),
    /// The deadline passed before the callee began.
    #[error("the deadline passed before work began")]
    Expired,
    /// The actor died while the message waited in its mailbox.
    #[error("the actor died before it took the message")]
    ActorDied,
    /// The node is stopping and takes no more work.
    #[error("the node is stopping")]
    Stopping,
    /// More than [`crate::context::MAX_HOPS`] actors have passed the work on.
    #[error("passed on too often")]
    TooManyHops,
    /// The address is none.
    #[error("{0}")]
    InvalidAddress(Box<str>),
}

/// Why nobody knows. Appended to, never reordered: it crosses nodes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema, thiserror::Error)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Unknown {
    /// The deadline passed while the callee may have been at work.
    #[error("the deadline passed")]
    DeadlinePassed,
    /// The connection to the callee's node was lost after the message was written.
    #[error("lost the connection to {0}")]
    PeerLost(Box<str>),
    /// The actor died while handling the message.
    #[error("the actor died while handling it")]
    ActorDied,
    /// The handler ended without an answer.
    #[error("the actor dropped the call without an answer")]
    NoReply,
    /// The reply came, but it is none of the protocol.
    #[error("malformed reply: {0}")]
    MalformedReply(Box<str>),
    /// The reply was over its limit.
    #[error("the reply is too large: {0}")]
    ReplyTooLarge(Box<str>),
}

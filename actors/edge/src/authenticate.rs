//! The seam to whoever can tell what a key or a token proves.

use std::{fmt, sync::Arc};

use futures_util::future::BoxFuture;
use horos_wire::principal::{Denied, Principal};

/// What a request showed. Never logged: its `Debug` shows the kind only.
#[derive(Clone, PartialEq, Eq)]
pub enum Credential {
    /// From `X-API-Key`, or from `Authorization: Bearer` where it begins as a key does.
    Key(Box<str>),
    /// From `Authorization: Bearer`.
    Token(Box<str>),
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Key(_) => "Key",
            Self::Token(_) => "Token",
        })
    }
}

/// Tells what a credential proves.
pub trait Authenticator: Send + Sync + 'static {
    /// Answers from memory; `None` when it has to look, which [`Authenticator::verify`] does. Never blocks.
    fn recall(&self, credential: &Credential) -> Option<Result<Arc<Principal>, Denied>>;

    /// Looks. An answer is final for this request. One that does not come at once is counted among the wrong guesses of its
    /// address while it is waited for.
    fn verify(&self, credential: Credential) -> BoxFuture<'static, Result<Arc<Principal>, Denied>>;

    /// `principal` asked for what it may not do, and was refused: a key that is tried on everything may have been stolen.
    fn wrong_scope(&self, principal: &Principal) {
        let _ = principal;
    }
}

//! Who a request from outside comes from, once a key or a token has proved it.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Longest scope, in bytes.
pub const MAX_SCOPE: usize = 64;
/// Most scopes of one key or token.
pub const MAX_SCOPES: usize = 64;

/// A right that a key or token grants and an endpoint wants, such as `stock` or `stock:read`.
///
/// One is held exactly or not at all: there are no wildcards, so no list grants more than it says.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "Box<str>", into = "Box<str>")]
#[schemars(with = "String")]
pub struct Scope(Box<str>);

/// Why a text is no [`Scope`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a scope is 1 to {MAX_SCOPE} of a-z, 0-9, '.', '_', '-' and ':', such as \"stock:read\"")]
pub struct ScopeError;

impl Scope {
    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for Scope {
    type Err = ScopeError;
    fn from_str(text: &str) -> Result<Self, ScopeError> {
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-' | b':');
        if text.is_empty() || text.len() > MAX_SCOPE || !text.bytes().all(plain) { Err(ScopeError) } else { Ok(Self(text.into())) }
    }
}

impl TryFrom<Box<str>> for Scope {
    type Error = ScopeError;
    fn try_from(text: Box<str>) -> Result<Self, ScopeError> {
        text.parse()
    }
}

impl From<Scope> for Box<str> {
    fn from(scope: Scope) -> Self {
        scope.0
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Whoever a key or a token proved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Principal {
    /// What it is known by where requests are counted and logged: the key's id, or the token's issuer and subject. No secret.
    pub id: Box<str>,
    /// What proved it.
    pub proof: Proof,
    /// What it may do. None is nothing.
    pub scopes: Box<[Scope]>,
    /// Requests a minute that it may make on one node, where it has a limit of its own.
    pub per_minute: Option<u32>,
}

/// What proved a [`Principal`]. Its `Debug` names who, and keeps the token to itself.
#[derive(Clone, PartialEq, Eq)]
pub enum Proof {
    /// A key, which belongs to `owner`.
    Key {
        /// Who was given it.
        owner: Box<str>,
    },
    /// A signed token: the user is proved, and the token itself goes on in the call context.
    Token {
        /// The user.
        user: Box<str>,
        /// The signed text, for the nodes that the call reaches to check themselves.
        token: Box<str>,
    },
}

impl fmt::Debug for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key { owner } => f.debug_struct("Key").field("owner", owner).finish(),
            Self::Token { user, .. } => f.debug_struct("Token").field("user", user).finish_non_exhaustive(),
        }
    }
}

impl Principal {
    /// Whether it may do what `scope` stands for.
    pub fn may(&self, scope: &Scope) -> bool {
        self.scopes.contains(scope)
    }
}

/// Why a credential proved nobody. What an outsider is told is one and the same for all but [`Denied::Unavailable`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Denied {
    /// It has not the form of a key or a token.
    #[error("malformed")]
    Malformed,
    /// No such key, or signed by nobody who is trusted here.
    #[error("unknown")]
    Unknown,
    /// It was revoked.
    #[error("revoked")]
    Revoked,
    /// Its time is over.
    #[error("expired")]
    Expired,
    /// Its time has not come.
    #[error("not valid yet")]
    NotYetValid,
    /// Issued for somebody else.
    #[error("for another audience")]
    OtherAudience,
    /// Whether it holds cannot be told now.
    #[error("cannot be checked now")]
    Unavailable,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_proved_somebody_is_in_no_debug_text() {
        let proof = Proof::Token { user: "ana".into(), token: "e30.secret.sig".into() };
        let principal = Principal { id: "i".into(), proof, scopes: Box::default(), per_minute: None };
        let text = format!("{principal:?}");
        assert!(text.contains("ana") && !text.contains("secret"), "{text}");
    }

    #[test]
    fn a_scope_is_held_exactly_or_not_at_all() {
        let scope = |text: &str| text.parse::<Scope>().unwrap();
        let holder = |scopes: &[&str]| Principal {
            id: "i".into(),
            proof: Proof::Key { owner: "o".into() },
            scopes: scopes.iter().map(|text| scope(text)).collect(),
            per_minute: None,
        };
        assert!(holder(&["stock:read", "a"]).may(&scope("stock:read")));
        for held in [&[][..], &["stock"], &["stock:"], &["stock:rea"], &["stock:read."]] {
            assert!(!holder(held).may(&scope("stock:read")), "{held:?}");
        }
        for bad in ["", "*", "stock:*", "Stock", "a b", "a,b", "é", &"a".repeat(MAX_SCOPE + 1)] {
            assert_eq!(bad.parse::<Scope>(), Err(ScopeError), "{bad:?}");
        }
    }
}

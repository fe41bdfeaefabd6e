//! Who asks, as the transport has proved it.

use std::{borrow::Cow, fmt, net::SocketAddr, sync::Arc};

use futures_util::future::BoxFuture;
use horos_wire::{
    NodeId,
    principal::{Denied, Principal, Proof},
};
use rmcp::model::Extensions;
use tokio::sync::watch;

/// Who asks. There is no anonymous one: a transport that could not prove anybody lists and calls nothing.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Who it is.
    pub who: Who,
    /// What proved it, to be proved again by the node that a call is passed on to; none for a certificate.
    pub credential: Option<Credential>,
    /// How it came.
    pub transport: Transport,
    /// The session, where there is one: of a connection, or what the protocol calls a session.
    pub session: Option<Arc<str>>,
    /// From where.
    pub remote: Option<SocketAddr>,
}

/// Whoever was proved.
#[derive(Clone, Debug)]
pub enum Who {
    /// A node of the cluster, an operator or a viewer, by certificate.
    Node(Arc<NodeId>),
    /// By key or token.
    Principal(Arc<Principal>),
}

/// How a request came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// Streamable HTTP.
    Http,
    /// A stream of QUIC.
    Quic,
    /// From another node of the cluster, which was asked first: it has had confirmed what has to be, and passes nothing on again.
    Link,
    /// From a person's command line.
    Command,
}

impl Transport {
    /// As it is written down.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Quic => "quic",
            Self::Link => "link",
            Self::Command => "command",
        }
    }
}

/// A key or a token as it was shown. Its `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct Credential(pub Arc<str>);

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credential(…)")
    }
}

/// Tells what a key or a token proves; the node's own, which its port asks as well.
pub trait Verify: Send + Sync + 'static {
    /// Looks.
    fn verify(&self, credential: &Credential) -> BoxFuture<'static, Result<Arc<Principal>, Denied>>;

    /// What changes when a key or token may have been revoked; none where nobody tells, and all is found out by looking.
    fn changes(&self) -> Option<watch::Receiver<u64>> {
        None
    }
}

impl fmt::Debug for dyn Verify {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Verify")
    }
}

/// Ends at the next change of `changes`; never, where nobody tells any.
pub(crate) async fn next_change(changes: &mut Option<watch::Receiver<u64>>) {
    if let Some(told) = changes
        && told.changed().await.is_ok()
    {
        return;
    }
    // Whoever told has gone, and everything with it.
    *changes = None;
    std::future::pending().await
}

impl Caller {
    /// Who sent the request that these belong to, if its transport has said so: itself (QUIC), or in the head of the HTTP request that
    /// brought it, which rmcp puts there whole.
    pub fn of(extensions: &Extensions) -> Option<Arc<Self>> {
        let told = extensions.get::<Arc<Self>>();
        told.or_else(|| extensions.get::<::http::request::Parts>()?.extensions.get()).cloned()
    }

    /// What it is known by in the audit, and where requests are counted. No secret.
    pub fn id(&self) -> Cow<'_, str> {
        match &self.who {
            Who::Node(node) => Cow::Owned(node.to_uri()),
            Who::Principal(principal) => Cow::Borrowed(&principal.id),
        }
    }

    /// Whether a policy's `role` means it: `*` is everybody who was proved, `node:ROLE` a certificate of that role (`node:operator`,
    /// `node:bo`), `key:OWNER` a key's owner, `user:USER` a token's user, `scope:SCOPE` whoever's key or token grants that, and any other
    /// text a scope too, as the Go system's roles are.
    pub fn is(&self, role: &str) -> bool {
        let held = |principal: &Principal, scope: &str| principal.scopes.iter().any(|held| held.as_str() == scope);
        match (&self.who, role.split_once(':')) {
            _ if role == "*" => true,
            (Who::Node(node), Some(("node", role))) => node.role.as_str() == role,
            (Who::Node(_), _) | (_, Some(("node", _))) => false,
            (Who::Principal(principal), Some(("key", name))) => matches!(&principal.proof, Proof::Key { owner } if **owner == *name),
            (Who::Principal(principal), Some(("user", name))) => matches!(&principal.proof, Proof::Token { user, .. } if **user == *name),
            (Who::Principal(principal), Some(("scope", scope))) => held(principal, scope),
            (Who::Principal(principal), _) => held(principal, role),
        }
    }
}

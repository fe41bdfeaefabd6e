//! Who sent a message, and what its handler may do besides answering.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use horos_wire::{
    ActorName, Address, Bulk, CallContext, NoEffect, NodeId, NodeName, Protocol, TraceId,
    context::Claims,
    principal::{Denied, Principal, Proof},
};

use crate::{
    bulk::{self, BulkReader, BulkWriter},
    exchange::Exchange,
    reference::Ref,
};

/// Who sent a message: an actor of this node, or the holder of a certificate.
///
/// A user named in the message's claims is only what this caller asserts.
#[derive(Clone)]
pub struct Caller(Arc<Identity>);

/// Behind one pointer: a caller goes with every message.
struct Identity {
    node: Arc<NodeId>,
    /// What stands in the recorder and in logs: made once per sender, not once per message.
    label: Arc<str>,
    local: bool,
}

impl Caller {
    /// An actor (or other part) of this node, called `label`.
    pub fn local(node: Arc<NodeId>, label: impl Into<Arc<str>>) -> Self {
        Self(Arc::new(Identity { node, label: label.into(), local: true }))
    }

    /// The node or person on the other end of a link.
    pub fn remote(node: Arc<NodeId>) -> Self {
        let label = format!("{}@{}", node.role, node.name).into();
        Self(Arc::new(Identity { node, label, local: false }))
    }

    /// The identity that the caller's certificate proves; this node's own for a local caller.
    pub fn node(&self) -> &NodeId {
        &self.0.node
    }

    /// Whether the caller is on this node.
    pub fn is_local(&self) -> bool {
        self.0.local
    }

    pub(crate) fn label(&self) -> &Arc<str> {
        &self.0.label
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0.label)
    }
}

impl fmt::Debug for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0.label, f)
    }
}

/// On whose behalf a message was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum User<'a> {
    /// No user's.
    None,
    /// The calling node says so and proves nothing: never a reason to allow more than that node's role does.
    Asserted(&'a str),
    /// A signed token proves it, checked on this node just now.
    Proven(Arc<Principal>),
    /// There is a token and it proves nobody, or another than the user named beside it. Not the same as an asserted user: whoever
    /// sent it may have tried to pass for somebody.
    Refused(Denied),
}

/// Checks the tokens that come with messages. Set once a node: [`Exchange::prove_users_with`].
pub trait Prover: Send + Sync + 'static {
    /// Whom `token` proves. Called in handlers: blocks for microseconds at most, and answers [`Denied::Unavailable`] when it would take
    /// longer.
    ///
    /// # Errors
    /// Why it proves nobody.
    fn prove(&self, token: &str) -> Result<Arc<Principal>, Denied>;
}

/// What a handler is given with each message, and what code outside actors calls from.
#[derive(Clone, Debug)]
pub struct Context {
    pub(crate) call: CallContext,
    pub(crate) caller: Caller,
    exchange: Exchange,
    me: Caller,
}

impl Context {
    /// A context that no message caused: for an actor's own doings, for tests, for `main`.
    pub fn new(exchange: Exchange, label: impl Into<Arc<str>>) -> Self {
        let me = Caller::local(exchange.node().clone(), label);
        Self { call: CallContext { trace: TraceId(rand::random()), ..CallContext::default() }, caller: me.clone(), exchange, me }
    }

    pub(crate) fn for_actor(exchange: Exchange, name: &ActorName) -> Self {
        Self::new(exchange, name.as_str())
    }

    /// The same with other claims, for a request from outside.
    #[must_use]
    pub fn with_claims(mut self, claims: Claims) -> Self {
        self.call.claims = Some(Arc::new(claims));
        self
    }

    /// The same with another call's trace, deadline, hops and claims: for work that a request from outside causes.
    #[must_use]
    pub fn with_call(mut self, call: CallContext) -> Self {
        self.call = call;
        self
    }

    /// The same with an earlier deadline.
    #[must_use]
    pub fn with_deadline(mut self, deadline: Instant) -> Self {
        self.call.deadline = self.call.sooner(Some(deadline));
        self
    }

    /// A reference to whatever answers at `address`, typed by its protocol.
    ///
    /// Nothing is looked up yet; an address that is none is reported by the first call.
    pub fn at<P: Protocol>(&self, address: &str) -> Ref<P> {
        Ref::new(self.clone(), address)
    }

    /// The same for an address that has been read before.
    pub fn reach<P: Protocol>(&self, address: Address) -> Ref<P> {
        Ref::to(self.clone(), address)
    }

    /// Claims the bulk body that a message or a reply named, waiting for it until `deadline`.
    ///
    /// # Errors
    /// [`NoEffect`] when it has not come by then, or was claimed before.
    pub async fn claim(&self, bulk: Bulk, deadline: impl Into<Deadline>) -> Result<BulkReader, NoEffect> {
        let until = deadline.into().instant(Instant::now());
        self.exchange.parking().claim(bulk, self.call.sooner(Some(until)).unwrap_or(until)).await
    }

    /// Opens a bulk body towards the caller's node, to be named in the reply.
    ///
    /// # Errors
    /// [`NoEffect`] when the node is out of reach.
    pub async fn bulk_to_caller(&self, deadline: impl Into<Deadline>) -> Result<(Bulk, BulkWriter), NoEffect> {
        let name = Bulk(rand::random());
        if self.caller.is_local() {
            let (reader, writer) = bulk::local();
            self.exchange.bulk_arrived(name, self.node().name.clone(), reader);
            return Ok((name, writer));
        }
        let until = deadline.into().instant(Instant::now());
        let writer = self.bulk_to(self.caller.node().name.clone(), name, until).await?;
        Ok((name, writer))
    }

    pub(crate) async fn bulk_to(&self, node: NodeName, name: Bulk, until: Instant) -> Result<BulkWriter, NoEffect> {
        let no_route = || NoEffect::NoRoute(node.as_str().into());
        let carrier = self.exchange.carrier().ok_or_else(no_route)?;
        tokio::time::timeout_at(until.into(), carrier.bulk(node.clone(), name)).await.unwrap_or_else(|_| Err(no_route()))
    }

    /// Who sent the message.
    pub fn caller(&self) -> &Caller {
        &self.caller
    }

    /// Trace, deadline, hops and claims of the message.
    pub fn call(&self) -> &CallContext {
        &self.call
    }

    /// On whose behalf the message was sent. A token that came along is checked on this very node, whatever the node before it
    /// made of it; each call of this checks again, so that one revoked meanwhile is refused.
    pub fn user(&self) -> User<'_> {
        let Some(claims) = self.call.claims.as_deref() else { return User::None };
        let Some(token) = claims.token.as_deref() else { return claims.user.as_deref().map_or(User::None, User::Asserted) };
        let Some(prover) = self.exchange.prover() else { return User::Refused(Denied::Unavailable) };
        match prover.prove(token) {
            Ok(principal) => match (&principal.proof, claims.user.as_deref()) {
                (Proof::Token { user, .. }, named) if named.is_none_or(|named| named == &**user) => User::Proven(principal),
                _ => User::Refused(Denied::Unknown),
            },
            Err(denied) => User::Refused(denied),
        }
    }

    /// What is left until the caller gives up.
    pub fn remaining(&self) -> Option<Duration> {
        self.call.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()))
    }

    /// The node that the handler runs on.
    pub fn node(&self) -> &NodeId {
        self.exchange.node()
    }

    /// The node's exchange.
    pub fn exchange(&self) -> &Exchange {
        &self.exchange
    }

    pub(crate) fn me(&self) -> &Caller {
        &self.me
    }
}

/// When a caller gives up: a span from now, or an instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deadline {
    /// So long from the moment of the call.
    Within(Duration),
    /// Then.
    At(Instant),
}

impl Deadline {
    /// The instant that this is, for a call made at `now`.
    pub fn instant(self, now: Instant) -> Instant {
        match self {
            // A century is as good as never, and does not overflow.
            Self::Within(span) => now.checked_add(span).unwrap_or_else(|| now + Duration::from_secs(3_153_600_000)),
            Self::At(instant) => instant,
        }
    }
}

impl From<Duration> for Deadline {
    fn from(span: Duration) -> Self {
        Self::Within(span)
    }
}

impl From<Instant> for Deadline {
    fn from(instant: Instant) -> Self {
        Self::At(instant)
    }
}

#[cfg(test)]
mod tests {
    use horos_wire::{Incarnation, NodeId};

    use super::*;

    /// Knows one token.
    struct Ana;

    impl Prover for Ana {
        fn prove(&self, token: &str) -> Result<Arc<Principal>, Denied> {
            let proof = match token {
                "good" => Proof::Token { user: "ana".into(), token: token.into() },
                "key" => Proof::Key { owner: "ana".into() },
                _ => return Err(Denied::Revoked),
            };
            Ok(Arc::new(Principal { id: "i ana".into(), proof, scopes: Box::default(), per_minute: None }))
        }
    }

    fn context(prover: Option<Arc<dyn Prover>>, user: Option<&str>, token: Option<&str>) -> Context {
        let exchange = Exchange::new(NodeId::from_uri("spiffe://shop/bo/bo-1").unwrap(), Incarnation(1));
        if let Some(prover) = prover {
            exchange.prove_users_with(prover);
        }
        let claims = Claims { user: user.map(Into::into), token: token.map(Into::into), ..Claims::default() };
        Context::new(exchange, "test").with_claims(claims)
    }

    #[test]
    fn a_user_only_named_stays_asserted_and_one_with_a_bad_token_is_refused() {
        let user = |user, token| format!("{:?}", context(Some(Arc::new(Ana)), user, token).user());
        assert_eq!(user(None, None), "None");
        assert_eq!(user(Some("ana"), None), "Asserted(\"ana\")");
        assert!(user(Some("ana"), Some("good")).starts_with("Proven"));
        assert!(user(None, Some("good")).starts_with("Proven"));
        assert_eq!(user(Some("ana"), Some("bad")), "Refused(Revoked)");
        assert_eq!(user(Some("root"), Some("good")), "Refused(Unknown)", "the token proves another");
        assert_eq!(user(Some("ana"), Some("key")), "Refused(Unknown)", "a key proves no user");
    }

    #[test]
    fn without_anybody_to_check_it_a_token_proves_nothing() {
        assert_eq!(context(None, Some("ana"), Some("good")).user(), User::Refused(Denied::Unavailable));
        assert_eq!(context(None, Some("ana"), None).user(), User::Asserted("ana"));
    }
}

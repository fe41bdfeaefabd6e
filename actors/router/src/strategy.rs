//! Strategies: the ways in which a service is reached.
//!
//! A strategy is a name in a row and an implementation here; a program adds its own by [`Strategies::register`], and no schema knows
//! how many there are. What a strategy makes of an endpoint is a [`Target`]: an actor's address, to which typed calls go without being
//! serialised when it is on this node, or a [`Transport`] for everything that speaks bytes.

mod actor;
mod http;
pub mod mcp;
mod noop;

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration, time::Instant};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use horos_wire::{ActorName, Address, CallContext, CallError};

pub use self::http::{Http, answer, secret};
use crate::{
    config::{Config, Problem},
    policy::{Policies, Policy},
};

/// The names that rows of the Go system have.
pub const KNOWN: [&str; 7] = ["local", "quic", "http", "mcp", "dbsync", "embed", "noop"];

/// A way in which services are reached.
pub trait Strategy: Send + Sync + 'static {
    /// Whether `endpoint` is one. Looks at nothing but the texts.
    ///
    /// # Errors
    /// What is wrong with it.
    fn check(&self, service: &str, endpoint: &str, config: &Config) -> Result<(), String>;

    /// Whether it only checks rows, and another is to be put in its place.
    fn is_a_placeholder(&self) -> bool {
        false
    }

    /// What is called at `endpoint`, which has been checked. Dials nothing and waits for nothing: an endpoint that is down is
    /// found out by calls, and found to be back by them.
    ///
    /// # Errors
    /// What is missing on this node. It is tried again until it is there.
    fn open(&self, service: &str, endpoint: &str, config: &Arc<Config>) -> Result<Target, String>;
}

/// What is called.
#[derive(Clone)]
pub enum Target {
    /// An actor of this node, whatever others offer under its name.
    Here(ActorName),
    /// An actor, on this node or another.
    Actor(Address),
    /// Nobody: calls succeed with this.
    Nobody(Arc<serde_json::Value>),
    /// Something that takes bytes.
    Transport(Arc<dyn Transport>),
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Here(name) => write!(f, "Here({name})"),
            Self::Actor(address) => write!(f, "Actor({address})"),
            Self::Nobody(reply) => write!(f, "Nobody({reply})"),
            Self::Transport(_) => f.write_str("Transport"),
        }
    }
}

/// What carries calls to something that is no actor. Shared by all calls; must not need them to take turns.
pub trait Transport: Send + Sync + 'static {
    /// Carries one call, until `until` at most. Dropping the future gives it up.
    fn call(&self, message: Message, context: CallContext, until: Instant) -> BoxFuture<'_, Result<Answer, Failure>>;

    /// Carries one request whose body and answer are streams, for the gateway.
    fn stream(
        &self,
        _request: ::http::Request<Body>,
        _context: CallContext,
        _until: Instant,
    ) -> BoxFuture<'_, Result<::http::Response<Body>, Failure>> {
        let refused = horos_wire::NoEffect::VersionNotSpoken("this strategy does not take streams".into());
        Box::pin(std::future::ready(Err(Failure { error: refused.into(), retry_after: None })))
    }
}

/// A body on its way in or out.
pub type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;

/// A call in bytes.
#[derive(Clone, Debug)]
pub struct Message {
    /// What it is, as a media type.
    pub content_type: Box<str>,
    /// The payload: as JSON of an actor's protocol, `{"method": {…}}`.
    pub body: Bytes,
    /// Whether it may be made twice with the effect of one.
    pub idempotent: bool,
}

/// What came back.
#[derive(Clone, Debug)]
pub struct Answer {
    /// What it is, where that was said.
    pub content_type: Option<Box<str>>,
    /// The payload.
    pub body: Bytes,
}

/// Why nothing came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What it means for the caller; the callee's own error in bytes, as a reply would be.
    pub error: CallError<Bytes>,
    /// How long the endpoint asked to be left alone.
    pub retry_after: Option<Duration>,
}

impl<E: Into<CallError<Bytes>>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self { error: error.into(), retry_after: None }
    }
}

/// The strategies of a node, and the policies that its program has of its own: all that rows name. Cheap to clone.
#[derive(Clone)]
pub struct Strategies {
    strategies: Arc<BTreeMap<Box<str>, Arc<dyn Strategy>>>,
    policies: Arc<BTreeMap<Box<str>, Arc<dyn Policy>>>,
}

impl fmt::Debug for Strategies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.strategies.keys()).entries(self.policies.keys()).finish()
    }
}

/// Why a row's strategy is none of this node's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StrategyError {
    /// The name has a meaning, and this release does not do it.
    #[error("the strategy {0} is not in this release")]
    NotImplemented(Box<str>),
    /// The name has none.
    #[error("there is no strategy {0:?}; there are {1}")]
    Unknown(Box<str>, Box<str>),
}

impl Strategies {
    /// `local`, `quic`, `noop`, and `http` and `mcp` as far as rows are checked: [`Self::register`] puts ones that reach out in their place.
    pub fn builtin() -> Self {
        let all: [(&str, Arc<dyn Strategy>); 5] = [
            ("local", Arc::new(actor::Local)),
            ("quic", Arc::new(actor::Quic)),
            ("http", Arc::new(http::Unreached)),
            ("mcp", Arc::new(mcp::Unreached)),
            ("noop", Arc::new(noop::Noop)),
        ];
        let strategies = Arc::new(all.into_iter().map(|(name, strategy)| (name.into(), strategy)).collect());
        Self { strategies, policies: Arc::default() }
    }

    /// The same with `strategy` under `name`.
    #[must_use]
    pub fn register(&self, name: &str, strategy: Arc<dyn Strategy>) -> Self {
        let mut all = (*self.strategies).clone();
        all.insert(name.into(), strategy);
        Self { strategies: Arc::new(all), policies: self.policies.clone() }
    }

    /// The same with a way out over HTTP, where the program has none of its own under that name.
    #[must_use]
    pub fn reaching_out(&self, http: Http) -> Self {
        self.in_place("http", Arc::new(http))
    }

    /// The same with `strategy` under `name`, where there is none that the program has put there: in place of one that only checks rows.
    #[must_use]
    pub fn in_place(&self, name: &str, strategy: Arc<dyn Strategy>) -> Self {
        let own = self.strategies.get(name).is_some_and(|strategy| !strategy.is_a_placeholder());
        if own { self.clone() } else { self.register(name, strategy) }
    }

    /// The same with `policy` under `name`.
    #[must_use]
    pub fn policy(&self, name: &str, policy: Arc<dyn Policy>) -> Self {
        let mut all = (*self.policies).clone();
        all.insert(name.into(), policy);
        Self { strategies: self.strategies.clone(), policies: Arc::new(all) }
    }

    /// The policies that `config` names, at work for `service`.
    pub(crate) fn policies(&self, service: &str, config: &Config) -> Result<Policies, Vec<Problem>> {
        let (mut opened, mut problems) = (Vec::new(), Vec::new());
        for (name, settings) in &config.policies {
            let policy = self.policies.get(name).ok_or_else(|| "this program has no such policy".to_owned());
            match policy.and_then(|policy| policy.open(service, settings)) {
                Ok(one) => opened.push(one),
                Err(what) => problems.push(Problem::new(format!("policies.{name}"), what)),
            }
        }
        if problems.is_empty() { Ok(Policies(opened.into())) } else { Err(problems) }
    }

    /// What they are called.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.strategies.keys().map(|name| &**name)
    }

    /// The strategy called `name`.
    ///
    /// # Errors
    /// [`StrategyError`].
    pub fn get(&self, name: &str) -> Result<&Arc<dyn Strategy>, StrategyError> {
        self.strategies.get(name).ok_or_else(|| {
            if KNOWN.contains(&name) {
                StrategyError::NotImplemented(name.into())
            } else {
                StrategyError::Unknown(name.into(), self.strategies.keys().map(|name| &**name).collect::<Vec<_>>().join(", ").into())
            }
        })
    }
}

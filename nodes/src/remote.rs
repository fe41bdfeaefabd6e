//! The command line's way to live nodes: a link like any other, under an operator's or a viewer's certificate.
//!
//! What is called on a node that was not asked is called there directly: nobody passes a person's call on under
//! its own name, so each node sees who it is.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use horos_link::{
    Config, Endpoint, Parts,
    tls::{Expected, Tls},
};
use horos_supervision::{Context, Exchange, Strategy, Supervisor, SupervisorHandle, SupervisorSpec};
use horos_wire::{
    Address, CallError, Incarnation, Never, NoEffect, Request, Scope,
    context::Claims,
    policy::Policy,
    protocol::node::{Actors, Crash, NAME, Node, NodeError, Offered, Recorder, Restart, Revoke, Status, StatusReport, Tree},
    tree::{Health, NodeTree, Recording},
};
use jiff::Timestamp;

use crate::{
    admin::CLUSTER,
    cli::{ActorPath, Remote, RemoteError, Via},
};

/// For a node to be reached.
const REACH: Duration = Duration::from_secs(3);
/// For a node to answer a question about itself.
const ANSWER: Duration = Duration::from_secs(5);

/// A connection to the node asked, and to those it told of.
pub struct Operator {
    endpoint: Endpoint,
    context: Context,
    asked: Box<str>,
    root: SupervisorHandle,
}

impl std::fmt::Debug for Operator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Operator(to {})", self.asked)
    }
}

impl Operator {
    /// Connects to the node at `via`.
    ///
    /// # Errors
    /// [`RemoteError::Identity`] or [`RemoteError::Unreachable`]; nothing was sent.
    pub async fn connect(via: &Via, policy: Policy) -> Result<Self, RemoteError> {
        let unreachable = |reason: String| RemoteError::Unreachable { endpoint: via.endpoint.clone(), reason };
        let tls = Tls::open(&via.identity, Timestamp::now()).map_err(|error| RemoteError::Identity(error.to_string()))?;
        let id = tls.credentials().id().clone();
        if id.role.is_node() {
            return Err(RemoteError::Identity(format!("{} is a node's certificate; this takes an operator's or a viewer's", id.to_uri())));
        }
        let root = Supervisor::start(SupervisorSpec::new("root", Strategy::OneForOne, Vec::new()), None)
            .await
            .map_err(|error| unreachable(error.to_string()))?;
        let exchange = Exchange::new(id.clone(), Incarnation(rand::random()));
        let parts = Parts { exchange: exchange.clone(), policy: Arc::new(policy), tls: Arc::new(tls), release: env!("CARGO_PKG_VERSION") };
        let mut addresses = tokio::net::lookup_host(via.endpoint.to_string()).await.map_err(|error| unreachable(error.to_string()))?;
        let address = addresses.next().ok_or_else(|| unreachable("the name has no address".to_owned()))?;
        let mut config = Config::new(unspecified(address));
        config.gossip = false;
        let endpoint = Endpoint::open(config, parts, HashMap::new(), root.clone()).map_err(|error| unreachable(error.to_string()))?;
        endpoint.link_to(address, Expected::AnyNode, REACH).await.map_err(unreachable)?;
        let asked = endpoint.peers().known().into_iter().find(|known| known.health == Health::Up).map(|known| known.node.name);
        let asked = asked.ok_or_else(|| unreachable("the session was closed at once".to_owned()))?;
        Ok(Self { context: Context::new(exchange, id.name.as_str()), endpoint, asked: asked.as_str().into(), root })
    }

    async fn ask<R: Request<Protocol = Node, Error = Never>>(&self, actor: &str, request: R) -> Result<R::Reply, RemoteError> {
        let node = self.context.at::<Node>(&format!("{actor}@{}", self.asked));
        node.call(request, ANSWER).await.map_err(|error| RemoteError::Call(error.map(|never| match never {})))
    }

    async fn order<R: Request<Protocol = Node, Error = NodeError>>(&self, scope: &Scope, request: R) -> Result<R::Reply, RemoteError> {
        let node = match scope {
            Scope::Any => self.asked.to_string(),
            Scope::Node(node) => node.to_string(),
            Scope::Role(role) => role.to_string(),
        };
        let address = format!("{NAME}@{node}");
        self.reach(
            &address
                .parse()
                .map_err(|error: horos_wire::address::AddressError| no_effect(NoEffect::InvalidAddress(error.to_string().into())))?,
        )
        .await?;
        self.context.at::<Node>(&address).call(request, ANSWER).await.map_err(|error| match error {
            CallError::Failed(error) => RemoteError::Node(error),
            other => RemoteError::Call(other.map(|error| error.to_string())),
        })
    }

    /// Links to whoever may answer at `address`, unless the node asked does.
    async fn reach(&self, address: &Address) -> Result<(), RemoteError> {
        let peers = self.endpoint.peers();
        let asked_itself = matches!(&address.scope, Scope::Node(node) if node.as_str() == &*self.asked);
        if asked_itself || peers.is_offered(address) {
            return Ok(());
        }
        for node in self.ask(CLUSTER, Tree { cluster: true }).await? {
            let wanted = match &address.scope {
                Scope::Any => true,
                Scope::Node(name) => node.node.name == *name,
                Scope::Role(role) => node.node.role == *role,
            };
            if !wanted || node.node.name.as_str() == &*self.asked || node.health == Health::Down {
                continue;
            }
            for place in node.addresses.iter().filter_map(|place| place.parse::<SocketAddr>().ok()) {
                match self.endpoint.link_to(place, Expected::Node(node.node.clone()), REACH).await {
                    Ok(()) => break,
                    Err(why) => tracing::debug!(node = %node.node, %place, %why, "not reached"),
                }
            }
            if peers.is_offered(address) {
                return Ok(());
            }
        }
        // Whether nobody is there or nobody answers, the call itself says best.
        Ok(())
    }

    /// Ends the links with a word, so that the nodes do not wait for a silence.
    pub async fn close(&self) {
        self.endpoint.close(Duration::from_millis(200)).await;
        self.root.stop().await;
    }
}

fn no_effect(why: NoEffect) -> RemoteError {
    RemoteError::Call(CallError::NoEffect(why))
}

fn unspecified(towards: SocketAddr) -> SocketAddr {
    match towards {
        SocketAddr::V4(_) => SocketAddr::from(([0, 0, 0, 0], 0)),
        SocketAddr::V6(_) => SocketAddr::from(([0; 8], 0)),
    }
}

impl Remote for Operator {
    async fn tree(&mut self, cluster: bool) -> Result<Vec<NodeTree>, RemoteError> {
        self.ask(if cluster { CLUSTER } else { NAME }, Tree { cluster }).await
    }

    async fn actors(&mut self, cluster: bool) -> Result<Vec<Offered>, RemoteError> {
        self.ask(if cluster { CLUSTER } else { NAME }, Actors { cluster }).await
    }

    async fn status(&mut self) -> Result<StatusReport, RemoteError> {
        self.ask(NAME, Status {}).await
    }

    async fn call_json(
        &mut self,
        address: &Address,
        body: &str,
        timeout: Duration,
        idempotency_key: Option<&str>,
    ) -> Result<String, RemoteError> {
        let until = Instant::now() + timeout;
        self.reach(address).await?;
        let claims = Claims { idempotency_key: idempotency_key.map(Into::into), ..Claims::default() };
        let context = self.context.clone().with_claims(claims);
        let answer = context.call_json(&address.to_string(), body, until).await.map_err(|error| error.map(|own| own.to_string()))?;
        Ok(answer.to_string())
    }

    async fn cast_json(&mut self, address: &Address, body: &str, timeout: Duration) -> Result<(), RemoteError> {
        let until = Instant::now() + timeout;
        self.reach(address).await?;
        self.context.cast_json(&address.to_string(), body, until).await.map_err(no_effect)
    }

    async fn recorder(&mut self, actor: &ActorPath) -> Result<Recording, RemoteError> {
        self.order(&actor.scope, Recorder { actor: actor.actor.clone() }).await
    }

    async fn restart(&mut self, actor: &ActorPath) -> Result<(), RemoteError> {
        self.order(&actor.scope, Restart { actor: actor.actor.clone() }).await.map(drop)
    }

    async fn crash(&mut self, actor: &ActorPath) -> Result<(), RemoteError> {
        self.order(&actor.scope, Crash { actor: actor.actor.clone() }).await.map(drop)
    }

    async fn revoke(&mut self, list: &str) -> Result<(), RemoteError> {
        self.order(&Scope::Any, Revoke { list: list.into() }).await.map(drop)
    }
}

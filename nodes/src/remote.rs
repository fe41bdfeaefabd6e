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

use futures_util::{StreamExt as _, stream};
use horos_link::{
    Config, Endpoint, Parts,
    tls::{Expected, Tls},
};
use horos_supervision::{Context, Exchange, Strategy, Supervisor, SupervisorHandle, SupervisorSpec};
use horos_wire::{
    Address, CallError, Incarnation, Never, NoEffect, NodeName, Request, Scope, Unknown,
    address::AddressError,
    context::Claims,
    frame::MAX_SMALL_BODY,
    policy::{Policy, RESERVED},
    protocol::{
        keys::{Keys, KeysError},
        node::{
            Actors, ControlOwner, Crash, Describe, Description, Maintain, NAME, Node, NodeError, Offered, Recorder, Restart, Revoke,
            Serving, ServingReport, Status, StatusReport, Tree,
        },
        routed::{self, CallRouted, RoutedCalls},
        router::{self, GetService, Router},
    },
    tree::{Health, NodeTree, Recording},
};
use jiff::Timestamp;

use crate::{
    admin::CLUSTER,
    cli::{ActorPath, Remote, RemoteError, Seen, Via},
};

/// For a node to be reached.
const REACH: Duration = Duration::from_secs(3);
/// For all nodes together to say how they are.
const GREET: Duration = Duration::from_secs(1);
/// Nodes asked so at a time.
const GREET_AT_ONCE: usize = 32;
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
    /// Whether the node asked has a route for what is called by its bare name: then it is that node that calls.
    async fn is_routed(&self, address: &Address, until: Instant) -> bool {
        if address.scope != Scope::Any || address.name.as_str().starts_with(RESERVED) {
            return false;
        }
        let router = self.context.at::<Router>(&format!("{}@{}", router::NAME, self.asked));
        let ask = GetService { service: address.name.as_str().into() };
        router.call(ask, within(ANSWER, until)).await.is_ok()
    }

    /// Connects to the node at `via`, until `until` at most.
    ///
    /// # Errors
    /// [`RemoteError::Identity`] or [`RemoteError::Unreachable`]; nothing was sent.
    pub async fn connect(via: &Via, policy: Policy, until: Instant) -> Result<Self, RemoteError> {
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
        let release = env!("CARGO_PKG_VERSION");
        let parts = Parts { exchange: exchange.clone(), policy: Arc::new(policy), tls: Arc::new(tls), release, public: None };
        let lookup = tokio::net::lookup_host(via.endpoint.to_string());
        let mut addresses = match tokio::time::timeout_at(until.into(), lookup).await {
            Ok(found) => found.map_err(|error| unreachable(error.to_string()))?,
            Err(_) => return Err(unreachable("its name was not resolved in time".to_owned())),
        };
        let address = addresses.next().ok_or_else(|| unreachable("the name has no address".to_owned()))?;
        let mut config = Config::new(unspecified(address));
        config.gossip = false;
        let endpoint = Endpoint::open(config, parts, HashMap::new(), root.clone()).map_err(|error| unreachable(error.to_string()))?;
        let mut operator = Self { context: Context::new(exchange, id.name.as_str()), endpoint, asked: "".into(), root };
        let linked = operator.endpoint.link_to(address, Expected::AnyNode, within(REACH, until)).await.and_then(|()| {
            let up = operator.endpoint.peers().known().into_iter().find(|known| known.health == Health::Up);
            up.ok_or_else(|| "the session was closed at once".to_owned())
        });
        match linked {
            Ok(known) => {
                operator.asked = known.node.name.as_str().into();
                Ok(operator)
            }
            Err(why) => {
                operator.close().await;
                Err(unreachable(why))
            }
        }
    }

    async fn ask<R: Request<Protocol = Node, Error = Never>>(
        &self,
        actor: &str,
        request: R,
        until: Instant,
    ) -> Result<R::Reply, RemoteError> {
        let node = self.context.at::<Node>(&format!("{actor}@{}", self.asked));
        node.call(request, until).await.map_err(|error| RemoteError::Call(error.map(|never| match never {})))
    }

    async fn order<R: Request<Protocol = Node, Error = NodeError>>(&self, scope: &Scope, request: R) -> Result<R::Reply, RemoteError> {
        let node = match scope {
            Scope::Any => self.asked.to_string(),
            Scope::Node(node) => node.to_string(),
            Scope::Role(role) => role.to_string(),
        };
        let until = Instant::now() + ANSWER;
        let address = format!("{NAME}@{node}");
        let parsed = address.parse().map_err(|error: AddressError| no_effect(NoEffect::InvalidAddress(error.to_string().into())))?;
        self.reach(&parsed, until).await?;
        self.context.at::<Node>(&address).call(request, until).await.map_err(|error| match error {
            CallError::Failed(error) => RemoteError::Node(error),
            other => RemoteError::Call(other.map(|error| error.to_string())),
        })
    }

    /// What a node says of itself, where it can be reached from here.
    async fn status_of(&self, node: &NodeTree, until: Instant) -> Option<StatusReport> {
        let name = &node.node.name;
        if name.as_str() != &*self.asked {
            if !matches!(node.health, Health::Up | Health::Suspect) {
                return None;
            }
            let mut places = node.addresses.iter().filter_map(|place| place.parse::<SocketAddr>().ok());
            let link = async |place| self.endpoint.link_to(place, Expected::Node(node.node.clone()), within(GREET, until)).await.is_ok();
            let mut linked = false;
            while let (false, Some(place)) = (linked, places.next()) {
                linked = link(place).await;
            }
            if !linked {
                return None;
            }
        }
        self.context.at::<Node>(&format!("{NAME}@{name}")).call(Status {}, until).await.ok()
    }

    /// Links to whoever may answer at `address`, unless the node asked does.
    async fn reach(&self, address: &Address, until: Instant) -> Result<(), RemoteError> {
        let peers = self.endpoint.peers();
        let asked_itself = matches!(&address.scope, Scope::Node(node) if node.as_str() == &*self.asked);
        if asked_itself || peers.is_offered(address) {
            return Ok(());
        }
        // The one asked knows the others; what they run is theirs to say.
        let known = self.ask(NAME, Tree { cluster: true }, until.min(Instant::now() + ANSWER)).await?;
        let mut wanted: Vec<_> = known
            .into_iter()
            .filter(|node| node.node.name.as_str() != &*self.asked && node.health != Health::Down)
            .filter(|node| match &address.scope {
                Scope::Any => true,
                Scope::Node(name) => node.node.name == *name,
                Scope::Role(role) => node.node.role == *role,
            })
            .collect();
        // Those that are heard of only may be gone: each costs a whole wait.
        wanted.sort_by_key(|node| match node.health {
            Health::Here | Health::Up => 0,
            Health::Suspect => 1,
            Health::Heard | Health::Down => 2,
        });
        for node in wanted {
            for place in node.addresses.iter().filter_map(|place| place.parse::<SocketAddr>().ok()) {
                if Instant::now() >= until {
                    return Err(no_effect(NoEffect::Expired));
                }
                match self.endpoint.link_to(place, Expected::Node(node.node.clone()), within(REACH, until)).await {
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
}

/// So long, or what is left until `until`.
fn within(most: Duration, until: Instant) -> Duration {
    most.min(until.saturating_duration_since(Instant::now()))
}

fn no_effect(why: NoEffect) -> RemoteError {
    RemoteError::Call(CallError::NoEffect(why))
}

/// What became of a message when the question after it was not answered.
fn unknown(error: CallError<Never>) -> Unknown {
    match error {
        CallError::Unknown(why) => why,
        CallError::NoEffect(_) => Unknown::DeadlinePassed,
        CallError::Failed(never) => match never {},
    }
}

fn unspecified(towards: SocketAddr) -> SocketAddr {
    match towards {
        SocketAddr::V4(_) => SocketAddr::from(([0, 0, 0, 0], 0)),
        SocketAddr::V6(_) => SocketAddr::from(([0; 8], 0)),
    }
}

impl Remote for Operator {
    async fn tree(&mut self, cluster: bool) -> Result<Vec<NodeTree>, RemoteError> {
        self.ask(if cluster { CLUSTER } else { NAME }, Tree { cluster }, Instant::now() + ANSWER).await
    }

    async fn nodes(&mut self) -> Result<Vec<Seen>, RemoteError> {
        let known = self.ask(NAME, Tree { cluster: true }, Instant::now() + ANSWER).await?;
        let until = Instant::now() + GREET;
        let asked =
            known.into_iter().map(async |node| Seen { status: self.status_of(&node, until).await, node: NodeTree { tree: None, ..node } });
        // All at once would be as many handshakes as there are nodes.
        Ok(stream::iter(asked).buffered(GREET_AT_ONCE).collect().await)
    }

    async fn actors(&mut self, cluster: bool) -> Result<Vec<Offered>, RemoteError> {
        self.ask(if cluster { CLUSTER } else { NAME }, Actors { cluster }, Instant::now() + ANSWER).await
    }

    async fn status(&mut self) -> Result<StatusReport, RemoteError> {
        self.ask(NAME, Status {}, Instant::now() + ANSWER).await
    }

    async fn call_json(
        &mut self,
        address: &Address,
        body: &str,
        until: Instant,
        idempotency_key: Option<&str>,
    ) -> Result<String, RemoteError> {
        let claims = Claims { idempotency_key: idempotency_key.map(Into::into), ..Claims::default() };
        let context = self.context.clone().with_claims(claims);
        if self.is_routed(address, until).await {
            let service = context.at::<RoutedCalls>(&format!("{}@{}", routed::NAME, self.asked));
            let ask = CallRouted { service: address.name.as_str().into(), message: body.into() };
            let answer = service.call(ask, until).await.map_err(|error| RemoteError::Call(error.map(|own| own.0.into_string())))?;
            return Ok(answer.into_string());
        }
        self.reach(address, until).await?;
        let answer = context.call_json(&address.to_string(), body, until).await.map_err(|error| error.map(|own| own.to_string()))?;
        Ok(answer.to_string())
    }

    async fn cast_json(&mut self, address: &Address, body: &str, until: Instant) -> Result<(), RemoteError> {
        self.reach(address, until).await?;
        // Our connection ends right after this, and what is still under way then is lost. So there has to be an answer.
        if body.len() > MAX_SMALL_BODY {
            // A large body has a stream of its own, and only its own answer tells that it has come.
            return match self.context.call_json(&address.to_string(), body, until).await {
                Ok(_) | Err(CallError::Failed(_)) => Ok(()),
                Err(error) => Err(RemoteError::Call(error.map(|own| own.to_string()))),
            };
        }
        self.context.cast_json(&address.to_string(), body, until).await.map_err(no_effect)?;
        // Small messages of one link arrive in the order they were sent: who answers this has that.
        let linked = self.endpoint.peers().known().into_iter().filter(|known| known.health == Health::Up);
        let asked = linked.map(|known| {
            let node = self.context.at::<Node>(&format!("{NAME}@{}", known.node.name));
            async move { node.call(Status {}, until).await }
        });
        let answers = futures_util::future::join_all(asked).await;
        let lost = answers.into_iter().find_map(Result::err);
        lost.map_or(Ok(()), |error| Err(RemoteError::Call(CallError::Unknown(unknown(error)))))
    }

    async fn describe(&mut self, address: &Address) -> Result<Description, RemoteError> {
        let scope = match &address.scope {
            Scope::Any => {
                let offered = self.actors(true).await?.into_iter().find(|offered| offered.name == address.name);
                offered.map_or(Scope::Any, |offered| Scope::Node(offered.node))
            }
            named => named.clone(),
        };
        self.order(&scope, Describe { actor: address.name.clone() }).await
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

    async fn serving(&mut self) -> Result<Option<ServingReport>, RemoteError> {
        match self.ask(NAME, Serving {}, Instant::now() + ANSWER).await {
            Ok(serving) => Ok(Some(serving)),
            Err(RemoteError::Call(CallError::NoEffect(NoEffect::VersionNotSpoken(_) | NoEffect::NotAllowed(_)))) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn maintain(&mut self, node: &Scope, message: Option<&str>) -> Result<(), RemoteError> {
        self.order(node, Maintain { message: message.map(Into::into) }).await.map(drop)
    }

    async fn control_owner(&mut self) -> Result<Option<NodeName>, RemoteError> {
        match self.ask(NAME, ControlOwner {}, Instant::now() + ANSWER).await {
            Ok(control) => Ok(Some(control.owner)),
            Err(RemoteError::Call(CallError::NoEffect(NoEffect::VersionNotSpoken(_) | NoEffect::NotAllowed(_)))) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn keys<R>(&mut self, at: &Address, request: R) -> Result<R::Reply, RemoteError>
    where
        R: Request<Protocol = Keys, Error = KeysError>,
    {
        let until = Instant::now() + ANSWER;
        self.reach(at, until).await?;
        self.context.at::<Keys>(&at.to_string()).call(request, until).await.map_err(|error| match error {
            CallError::Failed(error) => RemoteError::Keys(error),
            other => RemoteError::Call(other.map(|error| error.to_string())),
        })
    }

    async fn close(&mut self) {
        // Nobody acknowledges this word, and QUIC repeats it only to who goes on sending (RFC 9000 §10.2.1). So nothing is
        // waited for but the connections' own tasks: they hand it to the kernel when they have their turn.
        self.endpoint.close(Duration::ZERO).await;
        tokio::task::yield_now().await;
        self.root.stop().await;
    }
}

#[cfg(test)]
mod tests;

//! Operating a node by MCP: tools made from the protocols that its own actors speak, for routes, breakers, replication, the tree, the
//! flight recorder and health.
//!
//! A tool here is a method of a protocol: its schema is the method's, made plain (`schema`), and its call is a typed call of that method.
//! What the methods of `horos.keys` show or make is nobody's to see by MCP, and neither they nor deny lists have a tool.
//!
//! - Who may call what is the policy's, as for every tool; operators by certificate may all, viewers what only reads. A node's actors are
//!   asked in the node's own name, so what an actor would refuse a stranger is decided here and nowhere else.
//! - What takes a service from its users (a route deleted, a breaker forced, an actor restarted) is destructive: the pipeline has it asked
//!   for twice.
//! - An edit of routes is made by the node that owns `control.db`, and says there who asked for it. Asked of another node it is passed on
//!   with the caller's key ([`PassOn`]), and proved there; a certificate cannot be passed on, and its holder is told where to ask.

mod replication;
mod schema;
mod table;

use std::{fmt, marker::PhantomData, sync::Arc};

use futures_util::future::BoxFuture;
use horos_supervision::{Context, Exchange};
use horos_wire::{
    ActorName, CallError, Never, NodeName, Request,
    protocol::{
        control::{self, ControlError},
        node::NodeError,
        router::RouterError,
        sync::{ReplicaError, SyncError, replica_name, sync_name},
    },
};
use rmcp::model::JsonObject;
use serde_json::Value;

use crate::{Call, Definition, Output, PassOn, Problem, Run, ToolError, Who};

/// What the names of these tools begin with; no row takes one of them.
pub const PREFIX: &str = "horos_";

/// A node, as far as these tools ask it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Desk {
    exchange: Exchange,
    owner: NodeName,
    pass_on: Option<Arc<dyn PassOn>>,
}

impl Desk {
    /// The node of `exchange`, where `control.db` is `owner`'s. What only that node may do goes there by `pass_on`; without one it is
    /// not done elsewhere.
    pub fn new(exchange: Exchange, owner: NodeName, pass_on: Option<Arc<dyn PassOn>>) -> Self {
        Self { exchange, owner, pass_on }
    }

    /// All of the tools.
    pub fn tools(&self) -> Vec<Arc<Definition>> {
        table::tools(self)
    }

    fn is_owner(&self) -> bool {
        self.exchange.node().name == self.owner
    }

    /// From where a call is made: in this node's name, and labelled with who asked, which is what an edit's `who` says.
    fn context(&self, call: &Call<'_>) -> Context {
        Context::new(self.exchange.clone(), format!("mcp:{}", call.caller.id())).with_call(call.context.clone())
    }

    async fn elsewhere(&self, call: Call<'_>) -> Result<Output, ToolError> {
        match (&call.caller.who, &self.pass_on) {
            (Who::Principal(_), Some(pass_on)) => pass_on.pass_on(call).await,
            // Nobody can show a certificate that is somebody else's.
            _ => Err(ToolError::Denied(format!("this is done by the node {:?}, which has to be asked itself", self.owner.as_str()).into())),
        }
    }
}

/// Which actor a tool asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// One of this node.
    Here(&'static str),
    /// The same actor of whichever node the argument `node` names; of this one without it.
    Node(&'static str),
    /// The owner of `control.db`, which answers any node.
    Owner,
    /// The owner of `control.db`, which answers nobody but people, and its own tools.
    OwnerItself,
    /// The publication that the argument `publication` names, on this node.
    Publication,
    /// The replica that the argument `replica` names, on this node.
    Replica,
}

/// The argument by which [`At::Node`] is told which.
const NODE: &str = "node";
/// The argument by which [`At::Publication`] is told which.
const PUBLICATION: &str = "publication";
/// The argument by which [`At::Replica`] is told which.
const REPLICA: &str = "replica";

impl At {
    /// The argument that is the tool's own, and none of the method's.
    const fn argument(self) -> Option<(&'static str, bool)> {
        match self {
            Self::Here(_) | Self::Owner | Self::OwnerItself => None,
            Self::Node(_) => Some((NODE, false)),
            Self::Publication => Some((PUBLICATION, true)),
            Self::Replica => Some((REPLICA, true)),
        }
    }

    /// The address, with its argument taken out of `arguments`.
    fn address(self, desk: &Desk, arguments: &mut JsonObject) -> Result<String, ToolError> {
        let here = &desk.exchange.node().name;
        let mut named = |argument: &str| match arguments.remove(argument) {
            Some(Value::String(text)) => Some(text),
            _ => None,
        };
        let wrong = |argument: &str, what: String| ToolError::Arguments(vec![Problem::new(format!("/{argument}"), what)]);
        let service = |argument: &'static str, name: Option<String>, of: fn(&str) -> Result<ActorName, _>| {
            of(&name.unwrap_or_default()).map_err(|error: horos_wire::address::AddressError| wrong(argument, error.to_string()))
        };
        Ok(match self {
            Self::Here(actor) => format!("{actor}@{here}"),
            Self::Node(actor) => match named(NODE).map(|name| name.parse::<NodeName>()) {
                None => format!("{actor}@{here}"),
                Some(Ok(node)) => format!("{actor}@{node}"),
                Some(Err(error)) => return Err(wrong(NODE, error.to_string())),
            },
            Self::Owner | Self::OwnerItself => format!("{}@{}", control::NAME, desk.owner),
            Self::Publication => format!("{}@{here}", service(PUBLICATION, named(PUBLICATION), sync_name)?),
            Self::Replica => format!("{}@{here}", service(REPLICA, named(REPLICA), replica_name)?),
        })
    }
}

/// A method as a tool.
struct Ask<R> {
    desk: Desk,
    at: At,
    /// Arguments that the method must have and the tool need not.
    defaults: JsonObject,
    /// Arguments that are JSON to the tool and text to the method.
    texts: Vec<&'static str>,
    /// What a reply that is no object is called in one.
    wrapped: Option<&'static str>,
    request: PhantomData<fn() -> R>,
}

impl<R> fmt::Debug for Ask<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ask").field("at", &self.at).finish_non_exhaustive()
    }
}

impl<R> Ask<R> {
    /// The method's request.
    fn request(&self, mut arguments: JsonObject) -> Result<R, ToolError>
    where
        R: serde::de::DeserializeOwned,
    {
        for (name, value) in &self.defaults {
            arguments.entry(name.as_str()).or_insert_with(|| value.clone());
        }
        for name in &self.texts {
            if let Some(value) = arguments.get_mut(*name).filter(|value| !value.is_null()) {
                *value = Value::String(value.to_string());
            }
        }
        let read = serde_json::from_value(Value::Object(arguments));
        read.map_err(|error| ToolError::Arguments(vec![Problem::new("", error.to_string())]))
    }

    fn output(&self, reply: Value) -> Output {
        Output::json(match self.wrapped {
            Some(name) => Value::Object(JsonObject::from_iter([(name.to_owned(), reply)])),
            None => reply,
        })
    }
}

impl<R> Run for Ask<R>
where
    R: Request,
    R::Error: Told,
{
    fn run<'a>(&'a self, call: Call<'a>) -> BoxFuture<'a, Result<Output, ToolError>> {
        Box::pin(async move {
            if self.at == At::OwnerItself && !self.desk.is_owner() {
                return self.desk.elsewhere(call).await;
            }
            let mut arguments = call.arguments.clone();
            let at = self.at.address(&self.desk, &mut arguments)?;
            let request = self.request(arguments)?;
            let reply = self.desk.context(&call).at::<R::Protocol>(&at).call(request, call.until).await.map_err(|error| told(&error))?;
            match serde_json::to_value(&reply) {
                Ok(reply) => Ok(self.output(reply)),
                Err(error) => Err(broken(&error)),
            }
        })
    }
}

fn broken(error: &dyn fmt::Display) -> ToolError {
    let reference = format!("{:016x}", rand::random::<u64>());
    tracing::error!(reference, %error, "a reply could not be shown");
    ToolError::Internal { reference: reference.into() }
}

fn told<E: Told>(error: &CallError<E>) -> ToolError {
    match error {
        CallError::NoEffect(why) => ToolError::Unavailable(why.clone()),
        CallError::Unknown(why) => ToolError::Unknown(why.clone()),
        CallError::Failed(error) => error.told(),
    }
}

/// An actor's own error, in words for a model: no path and no statement is in them.
trait Told: fmt::Display {
    fn told(&self) -> ToolError {
        ToolError::Failed(self.to_string().into())
    }
}

/// What storage said is the node's own; it stands in its log.
fn not_stored(error: &dyn fmt::Display) -> ToolError {
    tracing::warn!(%error, "an order by MCP was not carried out");
    ToolError::Failed("it could not be written down, and nothing was done; try again".into())
}

impl Told for Never {}
impl Told for RouterError {}

impl Told for NodeError {
    fn told(&self) -> ToolError {
        match self {
            Self::NoSuchActor(actor) => {
                ToolError::Failed(format!("there is no actor {actor:?} on this node; horos_tree lists them").into())
            }
            other => ToolError::Failed(other.to_string().into()),
        }
    }
}

impl Told for ControlError {
    fn told(&self) -> ToolError {
        ToolError::Failed(match self {
            Self::Storage(_) => return not_stored(self),
            Self::NoSuchRoute(service) => format!("there is no route {service:?}; horos_routes_list shows them").into(),
            Self::NoSuchEdit { service, edit } => {
                format!("there is no edit {edit} of the route {service:?}; horos_routes_history shows those that are kept").into()
            }
            Self::Unknown => "whether it was done is not known; look at horos_routes_list before you try again".into(),
            other => other.to_string().into(),
        })
    }
}

impl Told for SyncError {
    fn told(&self) -> ToolError {
        match self {
            Self::Unavailable(_) => {
                tracing::warn!(error = %self, "an order by MCP was not carried out");
                ToolError::Failed("nothing is published now; horos_sync_status says more".into())
            }
            other => ToolError::Failed(other.to_string().into()),
        }
    }
}

impl Told for ReplicaError {
    fn told(&self) -> ToolError {
        if matches!(self, Self::Storage(_)) { not_stored(self) } else { ToolError::Failed(self.to_string().into()) }
    }
}

#[cfg(test)]
mod tests;

//! What every node answers about itself, under the name [`NAME`].
//!
//! The command line, the console and other nodes all use this protocol; `restart` and `crash` need
//! an operator's certificate and are audited.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    ActorName, NodeName,
    tree::{NodeTree, Recording},
};

/// The name of the actor that answers this protocol on every node.
pub const NAME: &str = "horos.node";

/// Asks for supervision trees.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Tree {
    /// Every node that the asked one knows, or only itself.
    pub cluster: bool,
}

/// Asks for the named actors a caller could address.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Actors {
    /// On every node that the asked one knows, or only itself.
    pub cluster: bool,
}

/// A named actor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Offered {
    /// Its name.
    pub name: ActorName,
    /// The node it is on.
    pub node: NodeName,
    /// Its protocol's name.
    pub protocol: Box<str>,
    /// Its protocol's version.
    pub version: u16,
    /// Its methods.
    pub methods: Vec<Box<str>>,
}

/// Asks for one actor's protocol with its JSON Schemas.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Describe {
    /// A service on the node asked.
    pub actor: ActorName,
}

/// A protocol with its JSON form.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Description {
    /// Name.
    pub protocol: Box<str>,
    /// Version.
    pub version: u16,
    /// Methods.
    pub methods: Vec<MethodDescription>,
}

/// A method with its JSON Schemas, each as JSON text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MethodDescription {
    /// Name in the JSON form.
    pub name: Box<str>,
    /// Schema of the request.
    pub request: Box<str>,
    /// Schema of the reply.
    pub reply: Box<str>,
    /// Schema of the callee's own error.
    pub error: Box<str>,
}

/// Asks for an actor's flight recorder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Recorder {
    /// An actor on the node asked: a service's name, or its path in the tree (`root/data/store`).
    pub actor: Box<str>,
}

/// Stops an actor in good order and starts it again; counts as no failure.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Restart {
    /// As in [`Recorder`].
    pub actor: Box<str>,
}

/// Kills an actor as a bug would, for drills; its supervisor decides what follows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Crash {
    /// As in [`Recorder`].
    pub actor: Box<str>,
}

/// It was done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Done {}

/// Asks how the node is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Status {}

/// How a node is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StatusReport {
    /// The node itself, without its tree.
    pub node: NodeTree,
    /// The release that it runs.
    pub version: Box<str>,
    /// Whether it takes work: false while it starts and while it drains.
    pub ready: bool,
    /// Why it is not ready; by name alone for callers whose role may not see error texts.
    pub conditions: Vec<Box<str>>,
    /// Seconds since it started.
    pub uptime_s: u64,
    /// Resident memory in bytes.
    pub resident: u64,
}

/// Adds certificates to the node's deny list, closes their sessions and passes the list on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Revoke {
    /// The signed deny list, as `identity revoke` wrote it.
    pub list: Box<str>,
}

/// Asks what the node serves over HTTP.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Serving {}

/// What a node serves over HTTP.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ServingReport {
    /// Where, as `https://192.0.2.7:7400`: the cluster's address first.
    pub addresses: Vec<Box<str>>,
    /// What users are told while maintenance is on.
    pub maintenance: Option<Box<str>>,
}

/// Asks which node this one takes for the owner of `control.db`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ControlOwner {}

/// Who owns `control.db`, as a node is configured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ControlOwnerReport {
    /// The node, `control.owner`.
    pub owner: NodeName,
}

/// Longest message of maintenance, in bytes: a line or two for people.
pub const MAX_MAINTENANCE: usize = 500;

/// Turns maintenance on, with what users are told, or off. It lasts over restarts of the node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Maintain {
    /// What users are told; none turns it off. At most [`MAX_MAINTENANCE`] bytes.
    pub message: Option<Box<str>>,
}

/// Why the node will not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, thiserror::Error)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum NodeError {
    /// No actor of that name or path.
    #[error("no actor {0:?} on this node; `horos tree` lists them")]
    NoSuchActor(Box<str>),
    /// The actor cannot be stopped on its own.
    #[error("{0}")]
    Refused(Box<str>),
}

crate::protocol! {
    /// What every node answers about itself.
    pub Node = "horos.node" v1 {
        1 tree: Tree => Vec<NodeTree>;
        2 actors: Actors => Vec<Offered>;
        3 describe: Describe => Description, NodeError;
        4 recorder: Recorder => Recording, NodeError;
        5 restart: Restart => Done, NodeError;
        6 crash: Crash => Done, NodeError;
        7 status: Status => StatusReport;
        8 revoke: Revoke => Done, NodeError;
        9 serving: Serving => ServingReport;
        10 maintain: Maintain => Done, NodeError;
        11 control_owner: ControlOwner => ControlOwnerReport;
    }
}

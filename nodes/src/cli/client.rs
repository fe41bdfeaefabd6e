//! What the command line asks of a live node: the seam between the commands and the link that carries them.

use std::{future::Future, path::PathBuf, time::Instant};

use horos_wire::{
    Address, CallError, NoEffect, NodeName, Request, Scope,
    protocol::{
        keys::{self, KeysError},
        node::{Description, Offered, ServingReport, StatusReport},
    },
    tree::{NodeTree, Recording},
};

use serde::Serialize;

use super::ActorPath;
use crate::{config::Endpoint, exit::Exit};

/// Which node to ask, and as whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Via {
    /// Where the node is.
    pub endpoint: Endpoint,
    /// Directory with the certificate to show it.
    pub identity: PathBuf,
}

/// Why a node gave no answer to the command line.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RemoteError {
    /// There is no certificate to show, or it cannot be used. Nothing was sent.
    #[error("{0}")]
    Identity(String),
    /// The node cannot be reached, or does not believe the certificate. Nothing was done.
    #[error("cannot reach {endpoint}: {reason}")]
    Unreachable {
        /// Where it was sought.
        endpoint: Endpoint,
        /// Why, in the link's words.
        reason: String,
    },
    /// It answered, or ought to have. The callee's own error is JSON, or text where it has no JSON form.
    #[error("{0}")]
    Call(#[from] CallError<String>),
    /// The node answered with its own error: no such actor, or it will not.
    #[error("{0}")]
    Node(horos_wire::protocol::node::NodeError),
    /// The owner of the keys answered with its own error.
    #[error("{0}")]
    Keys(KeysError),
    /// The owner of the keys and the routes cannot be asked. Nothing was done.
    #[error("{owner} owns {what} (control.owner) and cannot be asked: {reason}")]
    OwnerAway {
        /// Which node that is.
        owner: NodeName,
        /// What was asked about.
        what: &'static str,
        /// Why not.
        reason: NoEffect,
    },
}

impl RemoteError {
    /// What it means for the shell.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Identity(_) => Exit::Usage,
            Self::Unreachable { .. } => Exit::Unreachable,
            Self::Call(error) => Exit::of(error),
            Self::OwnerAway { reason, .. } => Exit::of(&CallError::<()>::NoEffect(reason.clone())),
            Self::Keys(KeysError::Invalid(_)) => Exit::Usage,
            Self::Keys(KeysError::Storage(_)) => Exit::NoEffect,
            Self::Keys(KeysError::Unknown) => Exit::Unknown,
            Self::Node(_) | Self::Keys(_) => Exit::Failed,
        }
    }

    /// What the user can do next.
    pub(crate) fn next_step(&self) -> Option<&'static str> {
        use NoEffect as N;
        match self {
            Self::Identity(_) => Some("`{bin} identity request` makes one, --identity names another directory"),
            Self::Unreachable { .. } => Some("is the node running? `{bin} doctor` checks this side, --via asks another node"),
            Self::Call(CallError::NoEffect(N::NoSuchActor(_))) | Self::Node(_) => {
                Some("`{bin} actors` and `{bin} tree` list what there is")
            }
            Self::OwnerAway { reason: N::NoSuchActor(_) | N::VersionNotSpoken(_), .. } => {
                Some("nothing was done; control.owner must name the same BO on every node, `{bin} actors` shows where horos.keys is")
            }
            Self::OwnerAway { .. } => Some("nothing was done; start that node, `{bin} nodes` shows who is in reach"),
            Self::Call(CallError::NoEffect(N::NotAllowed(_))) => Some("`{bin} policy show` tells which roles may"),
            Self::Call(CallError::NoEffect(N::Malformed(_))) => Some("`{bin} actors` lists the methods; the message is {\"method\": {…}}"),
            Self::Call(CallError::NoEffect(N::NoRoute(_))) => Some("`{bin} nodes` shows who is in reach"),
            Self::Call(CallError::NoEffect(_)) => Some("nothing was done; try again"),
            Self::Call(CallError::Unknown(_)) => Some("it may have been done: look before you try again"),
            Self::Call(CallError::Failed(_)) | Self::Keys(_) => None,
        }
    }
}

/// A node as the one asked sees it, and as it says itself.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Seen {
    /// As the node asked sees it, without its tree.
    #[serde(flatten)]
    pub node: NodeTree,
    /// Its own word, where it could be reached from here.
    pub status: Option<StatusReport>,
}

/// A connection to one node, as the command line uses it. Every method ends within its deadline, which holds for the whole:
/// finding and reaching the node included.
pub trait Remote {
    /// The trees of the cluster, or of the node asked only.
    fn tree(&mut self, cluster: bool) -> impl Future<Output = Result<Vec<NodeTree>, RemoteError>>;
    /// The nodes of the cluster.
    fn nodes(&mut self) -> impl Future<Output = Result<Vec<Seen>, RemoteError>>;
    /// The named actors of the cluster, or of the node asked only.
    fn actors(&mut self, cluster: bool) -> impl Future<Output = Result<Vec<Offered>, RemoteError>>;
    /// How the node asked is.
    fn status(&mut self) -> impl Future<Output = Result<StatusReport, RemoteError>>;
    /// Calls with a JSON body and gives back the JSON answer.
    fn call_json(
        &mut self,
        address: &Address,
        body: &str,
        until: Instant,
        idempotency_key: Option<&str>,
    ) -> impl Future<Output = Result<String, RemoteError>>;
    /// Sends a JSON body; done when the actor's node has it.
    fn cast_json(&mut self, address: &Address, body: &str, until: Instant) -> impl Future<Output = Result<(), RemoteError>>;
    /// The protocol of the actor at `address`, with its JSON Schemas.
    fn describe(&mut self, address: &Address) -> impl Future<Output = Result<Description, RemoteError>>;
    /// An actor's flight recorder.
    fn recorder(&mut self, actor: &ActorPath) -> impl Future<Output = Result<Recording, RemoteError>>;
    /// Stops an actor in good order and starts it again.
    fn restart(&mut self, actor: &ActorPath) -> impl Future<Output = Result<(), RemoteError>>;
    /// Kills an actor as a bug would.
    fn crash(&mut self, actor: &ActorPath) -> impl Future<Output = Result<(), RemoteError>>;
    /// Hands over a signed deny list, which the node passes on.
    fn revoke(&mut self, list: &str) -> impl Future<Output = Result<(), RemoteError>>;
    /// What the node asked serves over HTTP; nothing where it is of a release that serves none, or does not say so to us.
    fn serving(&mut self) -> impl Future<Output = Result<Option<ServingReport>, RemoteError>>;
    /// Turns maintenance of a node on, with what users are told, or off.
    fn maintain(&mut self, node: &Scope, message: Option<&str>) -> impl Future<Output = Result<(), RemoteError>>;
    /// Which node the one asked takes for the owner of the keys; nothing where it is of a release that does not say.
    fn control_owner(&mut self) -> impl Future<Output = Result<Option<NodeName>, RemoteError>>;
    /// Asks the owner of the keys, who is at `at`.
    fn keys<R>(&mut self, at: &Address, request: R) -> impl Future<Output = Result<R::Reply, RemoteError>>
    where
        R: Request<Protocol = keys::Keys, Error = KeysError>;
    /// Ends the connection with a word, so that no node waits for a silence.
    fn close(&mut self) -> impl Future<Output = ()>;
}

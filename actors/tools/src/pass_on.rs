//! Calls that are not this node's to do: passed on to the node that has what they need.
//!
//! A tool that writes, or that reads a file this node has not, is done where the file is. What goes there is the call and the *credential*
//! that was shown here, to be proved there again: no node is believed who its caller is. Whoever came by certificate has nothing that could
//! be passed on, so such a call is this node's own there, and is let through if both this node's policy allows the caller and the other's
//! allows this node.
//!
//! Nothing is retried here: what the other node did is told as it is, and the words [`ToolError::Unavailable`] and [`ToolError::Unknown`]
//! mean the same as on the link, *no effect* and *unknown*. The other side is [`crate::admin::Node`].

pub(crate) mod failure;

use std::fmt;

use futures_util::future::BoxFuture;
use horos_supervision::Context;
use horos_wire::{
    Address, CallError, NoEffect, NodeName, Scope, Unknown,
    protocol::{
        keys::Secret,
        tools::{MAX_ARGUMENTS, MAX_RESULT, NAME, PassOn as Asked, Tools},
    },
};

use crate::{Call, Output, Problem, ToolError, Transport, Who};

/// Has a call done by the node that can. Kinds are given one; `nodes` decides where it leads.
pub trait PassOn: fmt::Debug + Send + Sync + 'static {
    /// Passes `call` on and waits for what comes of it, until [`Call::until`] at most.
    ///
    /// # Errors
    /// The other node's, as they are. Of its own: [`ToolError::Unavailable`] had surely no effect; after [`ToolError::Unknown`] it may have
    /// been done.
    ///
    /// # Cancel safety
    /// Dropped, the other node is told to give it up, and it may have been done.
    fn pass_on<'a>(&'a self, call: Call<'a>) -> BoxFuture<'a, Result<Output, ToolError>>;
}

/// Passes calls on to one node, the owner of the databases.
pub struct ToNode {
    context: Context,
    node: NodeName,
    address: Address,
}

impl fmt::Debug for ToNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ToNode({})", self.node)
    }
}

impl ToNode {
    /// To `node`, from the node of `context`. Where both are the same nothing is passed on: what is not there is nowhere.
    pub fn new(context: Context, node: NodeName) -> Self {
        let name = NAME.parse().expect("a literal name that keeps the rules");
        Self { context, address: Address { name, scope: Scope::Node(node.clone()) }, node }
    }

    async fn ask(&self, call: Call<'_>) -> Result<Output, ToolError> {
        if call.caller.transport == Transport::Link {
            return Err(ToolError::Unavailable(NoEffect::TooManyHops));
        }
        if self.context.node().name == self.node {
            return Err(ToolError::Unavailable(NoEffect::NoRoute(WHERE.into())));
        }
        let credential = match (&call.caller.who, &call.caller.credential) {
            (Who::Principal(_), Some(credential)) => Some(Secret::new(&*credential.0)),
            (Who::Principal(_), None) => {
                return Err(ToolError::Denied("nothing was kept of the key or token that could be proved again".into()));
            }
            (Who::Node(_), _) => None,
        };
        let arguments = serde_json::to_string(call.arguments).map_err(|error| wrong(error.to_string()))?;
        if arguments.len() > MAX_ARGUMENTS {
            return Err(wrong(format!("they are larger than {MAX_ARGUMENTS} bytes")));
        }
        let max_bytes = call.max_bytes.min(MAX_RESULT).try_into().unwrap_or(u32::MAX);
        let ask = Asked { tool: call.tool.into(), arguments: arguments.into(), credential, max_bytes };
        let owner = self.context.clone().with_call(call.context.clone()).reach::<Tools>(self.address.clone());
        let answer = owner.call(ask, call.until).await.map_err(|error| {
            tracing::debug!(tool = call.tool, node = %self.node, %error, trace = %call.context.trace, "a call that was passed on");
            match error {
                CallError::Failed(failure) => self.told(failure.into(), &call),
                CallError::NoEffect(why) => ToolError::Unavailable(nameless(why)),
                CallError::Unknown(why) => ToolError::Unknown(unnamed(why)),
            }
        })?;
        failure::read(&answer)
    }

    /// Who came by certificate is told why that was of no use.
    fn told(&self, error: ToolError, call: &Call<'_>) -> ToolError {
        let as_us = matches!(&call.caller.who, Who::Node(who) if **who != *self.context.node());
        match error {
            ToolError::NoSuchTool(_) | ToolError::Denied(_) if as_us => {
                let why =
                    "this tool is done on another node, to which no certificate can be passed on: call it there, or with a key or a token";
                ToolError::Denied(why.into())
            }
            error => error,
        }
    }
}

impl PassOn for ToNode {
    fn pass_on<'a>(&'a self, call: Call<'a>) -> BoxFuture<'a, Result<Output, ToolError>> {
        Box::pin(self.ask(call))
    }
}

/// What stands for the other node in texts, which go to anybody.
const WHERE: &str = "the node that has its data";

fn wrong(what: String) -> ToolError {
    ToolError::Arguments(vec![Problem::new("", what)])
}

/// The same reason without the names of nodes, actors and addresses.
fn nameless(why: NoEffect) -> NoEffect {
    let it = || WHERE.into();
    match why {
        NoEffect::NoSuchActor(_) => NoEffect::NoSuchActor(it()),
        NoEffect::Overloaded(_) => NoEffect::Overloaded(it()),
        NoEffect::NotAllowed(_) => NoEffect::NotAllowed(it()),
        NoEffect::VersionNotSpoken(_) => NoEffect::VersionNotSpoken(it()),
        NoEffect::TooLarge(_) => NoEffect::TooLarge(it()),
        NoEffect::Malformed(_) => NoEffect::Malformed(it()),
        NoEffect::NoRoute(_) => NoEffect::NoRoute(it()),
        NoEffect::InvalidAddress(_) => NoEffect::InvalidAddress(it()),
        other => other,
    }
}

/// As [`nameless`].
fn unnamed(why: Unknown) -> Unknown {
    match why {
        Unknown::PeerLost(_) => Unknown::PeerLost(WHERE.into()),
        Unknown::MalformedReply(_) => Unknown::MalformedReply(WHERE.into()),
        Unknown::ReplyTooLarge(_) => Unknown::ReplyTooLarge(WHERE.into()),
        other => other,
    }
}

//! Calls by route on behalf of people: what `horos call SERVICE` asks of the node that it is connected to.
//!
//! Answered under the name [`NAME`] on every node, for operators alone: the call is then that node's own, with all that the node may do.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The name of the actor that answers this protocol on every node.
pub const NAME: &str = "horos.routed";

/// Calls a service by its route, as a service of the node would.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CallRouted {
    /// The service.
    pub service: Box<str>,
    /// What it is asked, as JSON text: `{"method": {…}}`.
    pub message: Box<str>,
}

/// The callee's own error, as JSON text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, thiserror::Error)]
#[error("{0}")]
pub struct OwnError(pub Box<str>);

crate::protocol! {
    /// Calls by route, for people. The reply is the callee's, as JSON text.
    pub RoutedCalls = "horos.routed" v1 {
        1 call: CallRouted => Box<str>, OwnError;
    }
}

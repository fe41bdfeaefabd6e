//! Requests to actors with the types that they have here; on the way there and back they are JSON.

use std::time::{Duration, Instant};

use horos_wire::{Address, CallError, NodeName, Protocol, Request, Unknown};
use serde_json::json;

use super::{Remote, RemoteError};

/// For an actor to be reached and to answer, unless it does something that takes long.
pub(super) const ANSWER: Duration = Duration::from_secs(5);

/// Why there is no reply.
pub(super) enum Asked<E> {
    /// The actor's own error. One that cannot be read here, of a later release, is among the others, as it came.
    Own(E),
    /// Everything else.
    Remote(RemoteError),
}

/// In the words of the actor, where it is its own.
impl<E: std::fmt::Display> From<Asked<E>> for RemoteError {
    fn from(asked: Asked<E>) -> Self {
        match asked {
            Asked::Own(error) => Self::Call(CallError::Failed(error.to_string())),
            Asked::Remote(error) => error,
        }
    }
}

/// Asks the actor at `at`, and waits until then for its reply.
pub(super) async fn ask<R: Remote, Q: Request>(
    node: &mut R,
    at: &Address,
    request: &Q,
    until: Instant,
) -> Result<Q::Reply, Asked<Q::Error>> {
    let body = json!({ Q::NAME: request }).to_string();
    match node.call_json(at, &body, until, None).await {
        Ok(answer) => serde_json::from_str(&answer).map_err(|error| {
            let malformed = Unknown::MalformedReply(error.to_string().into());
            Asked::Remote(RemoteError::Call(CallError::Unknown(malformed)))
        }),
        Err(RemoteError::Call(CallError::Failed(body))) => {
            Err(serde_json::from_str(&body).map_or_else(|_| Asked::Remote(RemoteError::Call(CallError::Failed(body))), Asked::Own))
        }
        Err(error) => Err(Asked::Remote(error)),
    }
}

/// The newest `limit`, the newest first, from pages that go back: `page` is asked for at most so many before what the last one gave, and
/// gives them with what the next is asked for.
pub(super) async fn newest<T, B, E>(
    limit: usize,
    mut page: impl AsyncFnMut(Option<B>, usize) -> Result<(Vec<T>, Option<B>), E>,
) -> Result<Vec<T>, E> {
    let (mut all, mut before) = (Vec::new(), None);
    // A page that is not the last holds one at least.
    while all.len() < limit {
        let (some, next) = page(before, limit - all.len()).await?;
        let none = some.is_empty();
        all.extend(some);
        before = next;
        if none || before.is_none() {
            break;
        }
    }
    all.truncate(limit);
    Ok(all)
}

/// The nodes in reach whose actor `name` speaks `P`: by its protocol and not by its name alone, which anybody's actor may have.
pub(super) async fn nodes_with<P: Protocol, R: Remote>(node: &mut R, name: &str) -> Result<Vec<NodeName>, RemoteError> {
    let offered = node.actors(true).await?.into_iter();
    let mut nodes: Vec<_> = offered.filter(|it| it.name.as_str() == name && &*it.protocol == P::NAME).map(|it| it.node).collect();
    nodes.sort();
    nodes.dedup();
    Ok(nodes)
}

//! The replicas of a node, for services that read them and for reads over HTTP that wait for what was written.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use futures_util::future::BoxFuture;
use horos_dbsync::{
    proxy::{NotReached, Positions},
    replica::{Origin, Replica, ReplicaConfig, ReplicaConfigError, WaitError},
};
use horos_supervision::ChildSpec;
use horos_wire::{ActorName, protocol::sync::Position};

use super::{Here, Party, SyncLayout, told};

/// A node's replicas, by their publications' names.
#[derive(Clone, Debug, Default)]
pub(crate) struct Replicas(Arc<BTreeMap<ActorName, Replica>>);

/// Registers the replicas of `layout`. Nothing runs before the children do.
///
/// # Errors
/// [`ReplicaConfigError`].
pub(super) fn lay(layout: &SyncLayout, here: Here<'_>) -> Result<(Replicas, Vec<ChildSpec>), ReplicaConfigError> {
    let Here { exchange, runtime, data, conditions, .. } = here;
    let (mut replicas, mut children) = (BTreeMap::new(), Vec::new());
    for (name, kept) in &layout.replicas {
        let from = match &kept.from {
            // What was pushed is published by this node, to itself.
            _ if kept.pushed_by.is_some() => Origin::Node(exchange.node().name.clone()),
            Party::Role(role) => Origin::Role(*role),
            Party::Node(name) => Origin::Node(name.clone()),
        };
        let mut config = ReplicaConfig::new(name, data.join(kept.file.as_str()), from);
        config.readable_by = kept.readable_by;
        let replica = Replica::new(config, told(conditions));
        children.push(replica.supervisor(exchange, runtime)?.into_child());
        let name = name.parse().map_err(|source| ReplicaConfigError::Name { name: name.as_str().into(), source })?;
        replicas.insert(name, replica);
    }
    Ok((Replicas(Arc::new(replicas)), children))
}

impl Replicas {
    /// The replica of the publication `name`.
    pub(crate) fn get(&self, name: &str) -> Option<&Replica> {
        self.0.iter().find_map(|(known, replica)| (known.as_str() == name).then_some(replica))
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Replica> {
        self.0.values()
    }
}

impl Positions for Replicas {
    fn wait_for<'a>(
        &'a self,
        publication: &'a ActorName,
        position: &'a Position,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<(), NotReached>> {
        let Some(replica) = self.0.get(publication) else { return Box::pin(std::future::ready(Err(NotReached::NoSnapshot))) };
        Box::pin(async move {
            replica.wait_for(position, deadline).await.map_err(|error| match error {
                WaitError::TimedOut => NotReached::TimedOut,
                WaitError::OtherEpoch => NotReached::OtherEpoch,
                WaitError::Crowded => NotReached::Crowded,
                // What cannot be told apart is not there.
                _ => NotReached::NoSnapshot,
            })
        })
    }
}

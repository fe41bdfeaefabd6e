//! Replication on this node: what it publishes of its databases, and what it keeps replicas of.
//!
//! Laid out before the services, which read replicas, and started behind them, under `root/data/sync`. What is said here holds for the
//! program's own publications ([`crate::On::publish`], [`crate::On::replica`]) and for those in [`FILE`] alike.

mod control;
mod go;
mod layout;
pub(crate) mod owner;
mod publishing;
mod replicas;

use std::{
    io,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use horos_dbsync::{
    go::ALPN,
    proxy::StampPosition,
    publisher::{Conditions as Told, PublicationMetrics, PublisherError},
    replica::{ReplicaConfigError, ReplicaMetrics},
};
use horos_edge::Conditions;
use horos_link::{AlpnHandler, Handlers, tls::Tls};
use horos_supervision::{ChildSpec, Exchange, worker};
use horos_wire::NodeName;
use tokio::runtime::Handle;

pub use layout::{FILE, LayoutError, MAX_LISTED, MAX_NAME, Party, Publication, PushTo, PushedBy, Replica, SyncLayout};

use crate::databases::Databases;
use control::Control;
pub(crate) use layout::DIRECTORY;
pub(crate) use owner::{Owner, OwnerError};
use publishing::Publishing;
pub(crate) use replicas::Replicas;

/// Between two signs of life of what only waits.
const BEAT: Duration = Duration::from_secs(1);

/// What a node publishes and keeps replicas of, laid out.
pub(crate) struct NodeSync {
    publishing: Publishing,
    pub(crate) replicas: Replicas,
    control: Control,
}

/// Why replication cannot be laid out as it is configured.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SyncError {
    #[error(transparent)]
    Publish(#[from] PublisherError),
    #[error(transparent)]
    Replicate(#[from] ReplicaConfigError),
}

/// The node, as far as replication needs it.
#[derive(Clone, Copy)]
pub(crate) struct Here<'a> {
    pub(crate) exchange: &'a Exchange,
    /// The node's own runtime, which drives QUIC too: what takes long is done on other threads.
    pub(crate) runtime: &'a Handle,
    pub(crate) tls: &'a Arc<Tls>,
    pub(crate) data: &'a Path,
    pub(crate) databases: &'a Databases,
    pub(crate) conditions: &'a Conditions,
}

/// Registers what `layout` says, and what this node has to do with the `control.db` of `owner`. Gives what is to run; nothing does before.
///
/// # Errors
/// [`SyncError`]: a name is taken.
pub(crate) fn lay(layout: &SyncLayout, owner: &NodeName, here: Here<'_>) -> Result<(NodeSync, Vec<ChildSpec>), SyncError> {
    let (publishing, mut children) = publishing::lay(layout, here)?;
    let (replicas, kept) = replicas::lay(layout, here)?;
    children.extend(kept);
    let (control, own) = control::lay(owner, here)?;
    children.extend(own);
    Ok((NodeSync { publishing, replicas, control }, children))
}

/// What takes connections of the Go system's protocol, by its ALPN; nothing where `layout` names nobody who pushes. `runtime` is for
/// the work on what comes.
///
/// # Errors
/// When there is no place for what comes.
pub(crate) fn handlers(layout: &SyncLayout, tls: &Arc<Tls>, data: &Path, runtime: &Handle) -> io::Result<Handlers> {
    let inbox = go::inbox(layout, tls, data, runtime)?;
    Ok(inbox.into_iter().map(|inbox| (ALPN.to_vec(), Arc::new(inbox) as Arc<dyn AlpnHandler>)).collect())
}

/// A worker that waits for others for as long as it takes, and is not thought stuck for that. It dies when what it waits for ends.
pub(crate) fn waiting<F>(name: &str, run: impl Fn() -> F + Send + Sync + 'static) -> ChildSpec
where
    F: Future<Output = ()> + Send + 'static,
{
    worker(name, move |vitals| {
        let running = run();
        async move {
            tokio::pin!(running);
            let mut beats = tokio::time::interval(BEAT);
            loop {
                tokio::select! {
                    () = &mut running => return,
                    _ = beats.tick() => vitals.progressed(Instant::now()),
                }
            }
        }
    })
}

/// What is wrong goes to `/readyz`; with what is there the node serves on.
fn told(conditions: &Conditions) -> Told {
    let conditions = conditions.clone();
    Arc::new(move |what: &str, wrong: Option<&str>| {
        let name = format!("sync:{what}");
        match wrong {
            Some(wrong) => conditions.note(&name, wrong),
            None => conditions.clear(&name),
        }
    })
}

impl NodeSync {
    /// Says with each answer to a write over HTTP how far the logs have got; none where nothing is published.
    pub(crate) fn stamps(&self) -> Option<StampPosition> {
        self.publishing.stamps()
    }

    /// Counters of what is published and of what is kept.
    pub(crate) fn metrics(&self) -> (Vec<PublicationMetrics>, Vec<ReplicaMetrics>) {
        let published = self.publishing.publishers().iter().flat_map(|publisher| publisher.metrics()).chain(self.control.published());
        let kept = self.replicas.all().map(|replica| replica.metrics()).chain(self.control.kept());
        (published.collect(), kept.collect())
    }
}

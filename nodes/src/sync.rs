//! Replication on this node: what it publishes of its databases, and what it keeps replicas of.
//!
//! Laid out before the services, which read replicas, and started behind them, under `root/data/sync`. What is said here holds for the
//! program's own publications ([`crate::On::publish`], [`crate::On::replica`]) and for those in [`FILE`] alike.

mod layout;
mod publishing;

use std::path::Path;

use horos_dbsync::{proxy::StampPosition, publisher::PublisherError};
use horos_edge::Conditions;
use horos_supervision::{ChildSpec, Exchange};
use tokio::runtime::Handle;

pub use layout::{FILE, LayoutError, MAX_LISTED, MAX_NAME, Party, Publication, Replica, SyncLayout};

use crate::databases::Databases;
use publishing::Publishing;

/// What a node publishes and keeps replicas of, laid out.
pub(crate) struct NodeSync {
    publishing: Publishing,
}

/// Registers what `layout` says. Nothing runs before [`NodeSync::children`] do.
///
/// # Errors
/// [`PublisherError`]: a name is taken.
pub(crate) fn lay(
    layout: &SyncLayout,
    exchange: &Exchange,
    runtime: &Handle,
    data: &Path,
    databases: &Databases,
    conditions: &Conditions,
) -> Result<(NodeSync, Vec<ChildSpec>), PublisherError> {
    let (publishing, children) = publishing::lay(layout, exchange, runtime, data, databases, conditions)?;
    Ok((NodeSync { publishing }, children))
}

impl NodeSync {
    /// Says with each answer to a write over HTTP how far the logs have got; none where nothing is published.
    pub(crate) fn stamps(&self) -> Option<StampPosition> {
        self.publishing.stamps()
    }
}

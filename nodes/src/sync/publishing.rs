//! The publications of a node, at work: a publisher a database file, and how far their logs have got for whoever just wrote.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::{BoxFuture, try_join_all};
use horos_dbsync::{
    filter::FilterSpec,
    proxy::{BoxError, Heads, StampPosition, Stamps},
    publisher::{Audience, Publication as Published, Publisher, PublisherError, PublisherLimits},
    source::{Source, SourceConfig},
};
use horos_supervision::ChildSpec;
use horos_wire::{ActorName, protocol::sync::Position};

use super::{Here, Party, SyncLayout, go, layout::DIRECTORY, told, waiting};
use crate::databases::Databases;

/// For the head of a log: a look at the file takes a millisecond or two.
const HEAD: Duration = Duration::from_secs(1);

/// What the sources of pushed databases are called, before the replica's name: as no file of the data directory is.
const GO_PREFIX: &str = "go-";

/// What a node publishes.
pub(super) struct Publishing {
    publishers: Vec<Publisher>,
    heads: Arc<LogHeads>,
}

/// Registers the publications of `layout`. Nothing runs before the children do.
///
/// # Errors
/// [`PublisherError`].
pub(super) fn lay(layout: &SyncLayout, here: Here<'_>) -> Result<(Publishing, Vec<ChildSpec>), PublisherError> {
    let Here { exchange, runtime, data, databases, conditions, .. } = here;
    let mut files: BTreeMap<&ActorName, Vec<(&String, Published)>> = BTreeMap::new();
    for (name, publication) in &layout.publications {
        let mut published = Published::new(name, publication.filter.clone());
        published.to = publication.to.iter().map(audience).collect();
        files.entry(&publication.database).or_default().push((name, published));
    }
    let (mut publishers, mut children, mut sources) = (Vec::new(), Vec::new(), Vec::new());
    let directory = data.join(DIRECTORY);
    let publisher = |config, published| Publisher::new(exchange, runtime, config, published, &PublisherLimits::default(), told(conditions));
    for (file, published) in files {
        let config = SourceConfig::new(file.as_str(), data.join(file.as_str()), &directory);
        let names: Vec<ActorName> = published.iter().filter_map(|(name, _)| name.parse().ok()).collect();
        let published = published.into_iter().map(|(_, published)| published).collect();
        let publisher = publisher(config, published)?;
        children.push(publisher.child());
        children.push(follow(file, publisher.source().clone(), databases.clone()));
        for (name, publication) in layout.publications.iter().filter(|(_, it)| it.database == *file) {
            for to in &publication.push {
                let source = publisher.source().clone();
                children.push(go::push(name, publication, to, source, here));
            }
        }
        sources.push((names, publisher.source().clone()));
        publishers.push(publisher);
    }
    // What nodes of the Go system have pushed, to the replica beside it.
    for (name, replica) in &layout.replicas {
        if let Some(by) = &replica.pushed_by {
            let filter = FilterSpec { full_tables: by.tables.clone(), ..FilterSpec::default() };
            let config = SourceConfig::new(&format!("{GO_PREFIX}{name}"), go::database(data, name), &directory);
            let publisher = publisher(config, vec![Published::new(name, filter).to_node(exchange.node().name.clone())])?;
            children.push(publisher.child());
            publishers.push(publisher);
        }
    }
    Ok((Publishing { publishers, heads: Arc::new(LogHeads(sources)) }, children))
}

fn audience(party: &Party) -> Audience {
    match party {
        Party::Role(role) => Audience::Role(*role),
        Party::Node(name) => Audience::Node(name.clone()),
    }
}

/// Has the file looked at after each commit of this node's own writer, once there is one: whichever service opens it.
pub(super) fn follow(file: &ActorName, source: Source, databases: Databases) -> ChildSpec {
    let file = file.clone();
    waiting(&format!("follow-{file}"), move || {
        let (source, databases, file) = (source.clone(), databases.clone(), file.clone());
        async move {
            // Nobody may ever open it here: it is looked at anyway.
            let writer = databases.writer(file.as_str()).await;
            source.follow(&writer).await;
        }
    })
}

impl Publishing {
    /// See [`super::NodeSync::stamps`].
    pub(super) fn stamps(&self) -> Option<StampPosition> {
        (!self.heads.0.is_empty()).then(|| StampPosition::new(self.heads.clone(), Stamps::Writes))
    }

    /// The publishers, for metrics.
    pub(super) fn publishers(&self) -> &[Publisher] {
        &self.publishers
    }
}

/// The logs of a node's published files, with the publications that each carries.
struct LogHeads(Vec<(Vec<ActorName>, Source)>);

impl Heads for LogHeads {
    fn head(&self) -> BoxFuture<'_, Result<Vec<(ActorName, Position)>, BoxError>> {
        Box::pin(async move {
            let until = Instant::now() + HEAD;
            let heads = try_join_all(self.0.iter().map(|(_, source)| source.head(until))).await?;
            let each = self.0.iter().zip(heads).flat_map(|((names, _), head)| names.iter().map(move |name| (name.clone(), head)));
            Ok(each.collect())
        })
    }
}

//! What the node itself shows at `/metrics`: its actors, its links, its memory. What HTTP counts is the port's own.
//!
//! Read when it is asked for, from what the tree and the link know anyway; nothing is counted twice. Labels are bounded:
//! sessions share one line, and of a tree that is larger than any has reason to be only the first actors are shown.

use std::{fmt, sync::Arc};

use horos_dbsync::{publisher::PublicationMetrics, replica::ReplicaMetrics};
use horos_link::{AdmissionCounters, Peers};
use horos_router::{Router, status};
use horos_wire::{
    protocol::{
        control::Force,
        router::{BreakerState, EndpointStatus, ServiceStatus},
    },
    tree::{Actor, Health},
};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet},
    metrics::MetricType,
};

use crate::{
    admin::{Insight, resident},
    sync::NodeSync,
    tools::Served,
};

/// Actors that are shown; a node has some dozens.
const MAX_ACTORS: usize = 512;
/// Services that are shown, by name.
const MAX_SERVICES: usize = 256;
/// Where each connection has an actor, named after whoever is at its other end.
const SESSIONS: &str = "root/link/sessions";

/// The node's part of `/metrics`.
pub(super) struct NodeMetrics {
    pub(super) insight: Insight,
    /// What became of whoever came by UDP, by the name of its door.
    pub(super) doors: Vec<(&'static str, Arc<AdmissionCounters>)>,
    /// What is published, and what is kept.
    pub(super) sync: Arc<NodeSync>,
    /// What is called by route.
    pub(super) router: Router,
    /// What is called by MCP.
    pub(super) served: Served,
}

impl fmt::Debug for NodeMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NodeMetrics")
    }
}

/// An actor's figures, or those of all sessions together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Figures {
    path: String,
    mailbox: u64,
    handled: u64,
    failed: u64,
    refused: u64,
    restarts: u64,
}

impl Figures {
    fn add(&mut self, actor: &Actor) {
        self.mailbox += u64::from(actor.mailbox);
        self.handled += actor.handled;
        self.failed += actor.failed;
        self.refused += actor.refused;
        self.restarts += u64::from(actor.restarts);
    }
}

/// Every actor but supervisors' own figures, which are none; by path, in the tree's order.
fn figures(tree: &Actor) -> Vec<Figures> {
    let mut found = Vec::new();
    walk(tree, String::new(), &mut found);
    found
}

fn walk(actor: &Actor, above: String, found: &mut Vec<Figures>) {
    let path = if above.is_empty() { actor.name.to_string() } else { format!("{above}/{}", actor.name) };
    if found.len() >= MAX_ACTORS {
        return;
    }
    let mut own = Figures { path: path.clone(), ..Figures::default() };
    own.add(actor);
    if path == SESSIONS {
        for session in &actor.children {
            own.add(session);
        }
        found.push(own);
        return;
    }
    found.push(own);
    for child in &actor.children {
        walk(child, path.clone(), found);
    }
}

type Column = (&'static str, &'static str, MetricType, fn(&Figures) -> u64);

const COLUMNS: [Column; 5] = [
    ("horos_actor_mailbox", "Messages that wait for an actor", MetricType::Gauge, |it| it.mailbox),
    ("horos_actor_handled", "Messages that an actor has handled", MetricType::Counter, |it| it.handled),
    ("horos_actor_failed", "Messages that an actor answered with its own error", MetricType::Counter, |it| it.failed),
    ("horos_actor_refused", "Messages that were refused at an actor's gate", MetricType::Counter, |it| it.refused),
    ("horos_actor_restarts", "Times that an actor was started again", MetricType::Counter, |it| it.restarts),
];

impl Collector for NodeMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let figures = figures(&self.insight.tree());
        for (name, help, kind, value) in COLUMNS {
            let mut family = encoder.encode_descriptor(name, help, None, kind)?;
            for it in &figures {
                let labels = [("actor", it.path.as_str())];
                show(&mut family.encode_family(&labels)?, kind, value(it))?;
            }
        }
        self.link(&mut encoder)?;
        self.replication(&mut encoder)?;
        self.routes(&mut encoder)?;
        self.tools(&mut encoder)?;
        let help = "Resident memory of the process";
        let mut metric = encoder.encode_descriptor("process_resident_memory_bytes", help, None, MetricType::Gauge)?;
        show(&mut metric, MetricType::Gauge, resident())?;
        let help = "Seconds since the node started";
        let mut metric = encoder.encode_descriptor("horos_uptime_seconds", help, None, MetricType::Gauge)?;
        show(&mut metric, MetricType::Gauge, self.insight.started.elapsed().as_secs())
    }
}

type OfPublication = (&'static str, &'static str, MetricType, fn(&PublicationMetrics) -> u64);
type OfService = (&'static str, &'static str, MetricType, fn(&ServiceStatus) -> u64);
type OfEndpoint = (&'static str, &'static str, MetricType, fn(&EndpointStatus) -> u64);
type OfReplica = (&'static str, &'static str, MetricType, fn(&ReplicaMetrics) -> u64);

const PUBLISHED: [OfPublication; 11] = [
    ("horos_sync_published", "Whether a publication is published now", MetricType::Gauge, |it| u64::from(it.published)),
    ("horos_sync_subscribers", "Nodes that follow a publication", MetricType::Gauge, |it| it.subscribers),
    ("horos_sync_subscribers_live", "Those of them that have everything", MetricType::Gauge, |it| it.live),
    ("horos_sync_lag_rows", "Changes that the one furthest behind does not have", MetricType::Gauge, |it| it.lag_rows),
    ("horos_sync_lag_milliseconds", "For how long the one longest behind has been so", MetricType::Gauge, |it| it.lag_ms),
    // Of those who are subscribed now: they go down when one leaves.
    ("horos_sync_sent_bytes", "Bytes sent to the present subscribers", MetricType::Gauge, |it| it.sent_bytes),
    ("horos_sync_deltas", "Streams of changes that they have applied", MetricType::Gauge, |it| it.deltas),
    ("horos_sync_snapshots", "Snapshots that they have applied", MetricType::Gauge, |it| it.snapshots),
    ("horos_sync_repaired_rows", "Rows found different and sent again", MetricType::Gauge, |it| it.repaired_rows),
    ("horos_sync_log_entries", "Entries in the log of changes", MetricType::Gauge, |it| it.log_entries),
    ("horos_sync_spool_bytes", "Bytes of streams that wait on disk", MetricType::Gauge, |it| it.spool_bytes),
];

const KEPT: [OfReplica; 6] = [
    ("horos_replica_stale_milliseconds", "How old a replica may be; nothing before it first had everything", MetricType::Gauge, |it| {
        it.stale_ms.unwrap_or_default()
    }),
    ("horos_replica_deltas", "Streams of changes applied", MetricType::Counter, |it| it.deltas),
    ("horos_replica_snapshots", "Snapshots applied", MetricType::Counter, |it| it.snapshots),
    ("horos_replica_received_bytes", "Bytes received", MetricType::Counter, |it| it.received_bytes),
    ("horos_replica_waiting", "Requests that wait for a position", MetricType::Gauge, |it| it.waiting),
    ("horos_replica_wal_bytes", "Bytes in the replica's WAL", MetricType::Gauge, |it| it.wal_bytes),
];

const ROUTED: [OfService; 6] = [
    ("horos_route_in_flight", "Calls of a service by its route that are in hand", MetricType::Gauge, |it| it.in_flight.into()),
    ("horos_route_calls", "Calls of a service by its route that have ended", MetricType::Counter, |it| it.calls),
    ("horos_route_failures", "Those of them that failed", MetricType::Counter, |it| it.failures),
    ("horos_route_retries", "Attempts beyond each call's first", MetricType::Counter, |it| it.retries),
    ("horos_route_p99_microseconds", "What calls take, retries and waits included", MetricType::Gauge, |it| it.latency.p99_us),
    ("horos_route_wrong", "Whether the row is wrong, and the last that was right in force", MetricType::Gauge, |it| {
        u64::from(it.problem.is_some())
    }),
];

const ENDPOINTS: [OfEndpoint; 4] = [
    ("horos_breaker_open", "Whether an endpoint is not asked at present", MetricType::Gauge, |it| {
        u64::from(it.forced == Force::Open || it.forced == Force::Auto && it.breaker != BreakerState::Closed)
    }),
    ("horos_endpoint_in_flight", "Attempts at an endpoint that are in hand", MetricType::Gauge, |it| it.in_flight.into()),
    ("horos_endpoint_calls", "Attempts at an endpoint that have ended", MetricType::Counter, |it| it.calls),
    ("horos_endpoint_failures", "Those of them that count against it", MetricType::Counter, |it| it.failures),
];

impl NodeMetrics {
    fn routes(&self, encoder: &mut DescriptorEncoder) -> fmt::Result {
        let services = status::services(&self.router, MAX_SERVICES);
        for (name, help, kind, value) in ROUTED {
            let mut family = encoder.encode_descriptor(name, help, None, kind)?;
            for it in &services {
                show(&mut family.encode_family(&[("service", &*it.service)])?, kind, value(it))?;
            }
        }
        for (name, help, kind, value) in ENDPOINTS {
            let mut family = encoder.encode_descriptor(name, help, None, kind)?;
            for (service, it) in services.iter().flat_map(|it| it.endpoints.iter().map(move |one| (&it.service, one))) {
                show(&mut family.encode_family(&[("service", &**service), ("endpoint", &*it.key)])?, kind, value(it))?;
            }
        }
        Ok(())
    }

    fn tools(&self, encoder: &mut DescriptorEncoder) -> fmt::Result {
        let (tools, snapshot) = (&self.served.tools, self.served.tools.registry().snapshot());
        let help = "Calls of tools that have ended, by how they came and how they ended";
        let mut family = encoder.encode_descriptor("horos_tool_calls", help, None, MetricType::Counter)?;
        for (transport, outcome, count) in tools.counters().outcomes() {
            let labels = [("transport", transport), ("outcome", outcome)];
            show(&mut family.encode_family(&labels)?, MetricType::Counter, count)?;
        }
        let durations = tools.counters().durations();
        let help = "What calls of tools took";
        let mut metric = encoder.encode_descriptor("horos_tool_call_seconds", help, None, MetricType::Histogram)?;
        metric.encode_histogram::<NoLabelSet>(durations.sum, durations.count, &durations.buckets, None)?;
        let help = "Sessions of MCP";
        let mut family = encoder.encode_descriptor("horos_tool_sessions", help, None, MetricType::Gauge)?;
        for (transport, count) in self.served.sessions() {
            show(&mut family.encode_family(&[("transport", transport)])?, MetricType::Gauge, count as u64)?;
        }
        if let Some(door) = &self.served.door {
            let seen = door.observe();
            let help = "What MCP's door over QUIC has refused, and why";
            let mut family = encoder.encode_descriptor("horos_tool_refusals", help, None, MetricType::Counter)?;
            for (kind, count) in [
                ("unauthenticated", seen.unauthenticated),
                ("malformed", seen.malformed),
                ("busy", seen.busy),
                ("streams", seen.streams),
                ("violations", seen.violations),
                ("limits", seen.limits),
            ] {
                show(&mut family.encode_family(&[("kind", kind)])?, MetricType::Counter, count)?;
            }
        }
        for (name, help, count) in [
            ("horos_tool_calls_in_hand", "Calls of tools in hand", tools.counters().in_hand()),
            ("horos_tools", "Tools that are served", snapshot.tools.len()),
            ("horos_tools_wrong", "Rows that are wrong, and the last that was right served if there was one", snapshot.wrong.len()),
        ] {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            show(&mut metric, MetricType::Gauge, count as u64)?;
        }
        Ok(())
    }

    fn replication(&self, encoder: &mut DescriptorEncoder) -> fmt::Result {
        let (published, kept) = self.sync.metrics();
        for (name, help, kind, value) in PUBLISHED {
            let mut family = encoder.encode_descriptor(name, help, None, kind)?;
            for it in &published {
                show(&mut family.encode_family(&[("publication", &*it.publication)])?, kind, value(it))?;
            }
        }
        for (name, help, kind, value) in KEPT {
            let mut family = encoder.encode_descriptor(name, help, None, kind)?;
            for it in &kept {
                show(&mut family.encode_family(&[("replica", &*it.replica)])?, kind, value(it))?;
            }
        }
        Ok(())
    }

    fn link(&self, encoder: &mut DescriptorEncoder) -> fmt::Result {
        let peers: &Peers = &self.insight.peers;
        let known = peers.known();
        let mut family = encoder.encode_descriptor("horos_nodes", "Other nodes, as this one sees them", None, MetricType::Gauge)?;
        for (name, health) in [("up", Health::Up), ("suspect", Health::Suspect), ("down", Health::Down), ("heard", Health::Heard)] {
            let labels = [("health", name)];
            let count = known.iter().filter(|node| node.health == health).count();
            show(&mut family.encode_family(&labels)?, MetricType::Gauge, count as u64)?;
        }
        let tree = self.insight.tree();
        let sessions =
            tree.children.iter().find(|it| &*it.name == "link").and_then(|link| link.children.iter().find(|it| &*it.name == "sessions"));
        let help = "Sessions with nodes and command lines";
        let mut metric = encoder.encode_descriptor("horos_sessions", help, None, MetricType::Gauge)?;
        show(&mut metric, MetricType::Gauge, sessions.map_or(0, |it| it.children.len()) as u64)?;
        let help = "What became of connections that were asked for by UDP";
        let mut family = encoder.encode_descriptor("horos_quic_connections", help, None, MetricType::Counter)?;
        for (door, counters) in &self.doors {
            for (outcome, count) in counters.outcomes() {
                let labels = [("door", *door), ("outcome", outcome)];
                show(&mut family.encode_family(&labels)?, MetricType::Counter, count)?;
            }
        }
        let help = "Peers that were refused for the certificate that they showed, or did not show";
        let mut family = encoder.encode_descriptor("horos_peers_refused", help, None, MetricType::Counter)?;
        for (door, counters) in &self.doors {
            for (kind, count) in counters.identities.kinds() {
                let labels = [("door", *door), ("kind", kind)];
                show(&mut family.encode_family(&labels)?, MetricType::Counter, count)?;
            }
        }
        Ok(())
    }
}

fn show(metric: &mut MetricEncoder<'_>, kind: MetricType, value: u64) -> fmt::Result {
    match kind {
        MetricType::Counter => metric.encode_counter::<NoLabelSet, u64, f64>(&value, None),
        _ => metric.encode_gauge(&i64::try_from(value).unwrap_or(i64::MAX)),
    }
}

#[cfg(test)]
mod tests {
    use horos_wire::tree::{Kind, Quantiles, State};

    use super::*;

    fn actor(name: &str, handled: u64, children: Vec<Actor>) -> Actor {
        Actor {
            name: name.into(),
            kind: Kind::Worker,
            state: State::Running,
            protocol: None,
            mailbox: 1,
            mailbox_limit: 8,
            handled,
            failed: 0,
            refused: 0,
            restarts: 2,
            last_progress_ms: None,
            wait: Quantiles::default(),
            handling: Quantiles::default(),
            busy_with: None,
            last_error: None,
            children,
        }
    }

    #[test]
    fn sessions_share_a_line_whoever_they_are_with_and_a_tree_without_end_is_cut() {
        let sessions = actor("sessions", 0, (0..1000).map(|i| actor(&format!("fo@fo-1#{i}"), 1, vec![])).collect());
        let tree = actor("root", 0, vec![actor("link", 5, vec![sessions]), actor("node", 7, vec![])]);
        let shown = figures(&tree);
        let paths: Vec<_> = shown.iter().map(|it| it.path.as_str()).collect();
        assert_eq!(paths, ["root", "root/link", SESSIONS, "root/node"]);
        assert_eq!((shown[2].handled, shown[2].restarts, shown[2].mailbox), (1000, 2002, 1001));
        let wide = actor("root", 0, (0..2 * MAX_ACTORS).map(|i| actor(&i.to_string(), 0, vec![])).collect());
        assert_eq!(figures(&wide).len(), MAX_ACTORS);
    }
}

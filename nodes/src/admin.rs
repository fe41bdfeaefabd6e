//! What a node answers about itself (protocol `horos.node`), under two names.
//!
//! `horos.node` never calls another node, so any number of nodes can ask each other at once. `horos.cluster`
//! gathers what the others' `horos.node` say. Both run beside the link and not with the users' services: a node
//! whose services are wedged still tells what is wrong with it.

use std::{
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use crate::maintenance::Maintenance;
use futures_util::{StreamExt, stream};
use horos_edge::{Conditions, Drain, Phase, Standing};
use horos_link::Peers;
use horos_supervision::{Context, Exchange, Handle, Service, SupervisorHandle, supervisor::OrderError};
use horos_wire::{
    Never, NodeName, Role,
    policy::sees_errors,
    protocol::node::{
        Actors, ControlOwner, ControlOwnerReport, Crash, Describe, Description, Done, MAX_MAINTENANCE, Maintain, MethodDescription, NAME,
        Node, NodeError, Offered, Recorder, Restart, Revoke, Serving, ServingReport, Status, StatusReport, Tree,
    },
    tree::{Actor, Health, NodeTree, Recording},
};

/// The name of the actor that asks the whole cluster.
pub const CLUSTER: &str = "horos.cluster";
/// For each node to answer when the whole cluster is asked.
const ASK: Duration = Duration::from_secs(1);
/// Nodes asked at once.
const ASK_AT_ONCE: usize = 64;

/// What the node's own actors share of it.
#[derive(Clone, Debug)]
pub(crate) struct Insight {
    pub(crate) exchange: Exchange,
    pub(crate) root: Arc<RootCell>,
    pub(crate) peers: Arc<Peers>,
    pub(crate) started: Instant,
    /// What stands in the way of its being ready; `/readyz` shows the same.
    pub(crate) conditions: Conditions,
    /// How far it has gone in stopping.
    pub(crate) drain: Drain,
    pub(crate) maintenance: Maintenance,
    /// Who owns `control.db`.
    pub(crate) control_owner: NodeName,
    /// Where HTTP is served, as people write it.
    pub(crate) http: Arc<[Box<str>]>,
}

/// The node's supervisors, known once the tree that this is part of has been laid out.
#[derive(Debug, Default)]
pub(crate) struct RootCell(OnceLock<Root>);

/// The node's supervisors.
#[derive(Debug)]
pub(crate) struct Root {
    pub(crate) handle: SupervisorHandle,
    /// By path, each the parent of those below it.
    pub(crate) supervisors: Vec<(String, SupervisorHandle)>,
}

impl RootCell {
    pub(crate) fn set(&self, root: Root) {
        // It is laid out once, before any of it is started.
        let _ = self.0.set(root);
    }

    fn get(&self) -> &Root {
        self.0.get().expect("the tree is laid out before its actors are started")
    }
}

impl Insight {
    /// The node's supervision tree.
    pub(crate) fn tree(&self) -> Actor {
        self.root.get().handle.tree()
    }

    fn here(&self, tree: bool) -> NodeTree {
        NodeTree {
            node: (**self.exchange.node()).clone(),
            incarnation: Some(self.exchange.incarnation()),
            health: Health::Here,
            addresses: self.peers.addresses().iter().map(|address| address.to_string().into()).collect(),
            tree: tree.then(|| self.root.get().handle.tree()),
            missing: None,
        }
    }

    fn others(&self) -> Vec<NodeTree> {
        let known = self.peers.known().into_iter();
        known
            .map(|known| NodeTree {
                node: known.node,
                incarnation: Some(known.incarnation),
                health: known.health,
                addresses: known.addresses.iter().map(|address| address.to_string().into()).collect(),
                tree: None,
                missing: match known.health {
                    Health::Down => Some("out of reach".into()),
                    Health::Heard => Some("heard of, not linked from here".into()),
                    Health::Here | Health::Up | Health::Suspect => None,
                },
            })
            .collect()
    }

    fn offered(&self) -> Vec<Offered> {
        let names = self.exchange.names().into_iter();
        names
            .map(|(name, inbox)| {
                let (protocol, version) = inbox.protocol();
                Offered {
                    name,
                    node: self.exchange.node().name.clone(),
                    protocol: protocol.into(),
                    version,
                    methods: inbox.methods().iter().map(|method| method.name.into()).collect(),
                }
            })
            .collect()
    }

    /// The supervisor and the child's name that `actor`, a service's name or a path, stands for.
    fn find(&self, actor: &str) -> Result<(SupervisorHandle, String), NodeError> {
        let unknown = || NodeError::NoSuchActor(actor.chars().take(200).collect());
        let path =
            if actor.contains('/') { actor.to_owned() } else { path_of(&self.root.get().handle.tree(), actor).ok_or_else(unknown)? };
        let (parent, child) = path.rsplit_once('/').ok_or_else(|| NodeError::Refused("the root is stopped by stopping the node".into()))?;
        let (_, supervisor) = self.root.get().supervisors.iter().find(|(known, _)| known == parent).ok_or_else(unknown)?;
        if !supervisor.tree().children.iter().any(|known| *known.name == *child) {
            return Err(unknown());
        }
        Ok((supervisor.clone(), child.to_owned()))
    }

    fn recording(&self, actor: &str) -> Result<Recording, NodeError> {
        let (supervisor, child) = self.find(actor)?;
        let vitals = supervisor.find(&child).ok_or_else(|| NodeError::NoSuchActor(actor.into()))?;
        Ok(vitals.recording())
    }
}

/// The path of the one actor called `name`.
fn path_of(tree: &Actor, name: &str) -> Option<String> {
    if *tree.name == *name {
        return Some(name.to_owned());
    }
    tree.children.iter().find_map(|child| path_of(child, name)).map(|path| format!("{}/{path}", tree.name))
}

/// Takes out what `role` is not to see.
fn redact(tree: &mut Actor, role: Role) {
    if !sees_errors(role) {
        tree.last_error = None;
        for child in &mut tree.children {
            redact(child, role);
        }
    }
}

/// What does not hold; why only where `reasons` may be told, which are errors' texts.
fn failing(conditions: &Conditions, reasons: bool) -> Vec<Box<str>> {
    let failing = conditions.list().into_iter().filter(|it| it.standing == Standing::Failing);
    failing
        .map(|it| match it.reason.filter(|_| reasons) {
            Some(reason) => format!("{}: {reason}", it.name).into(),
            None => it.name,
        })
        .collect()
}

fn refused(error: OrderError) -> NodeError {
    NodeError::Refused(error.to_string().into())
}

/// Answers about this node.
#[derive(Debug)]
pub(crate) struct Admin {
    pub(crate) insight: Insight,
    /// Whether this is the one that asks the others too.
    pub(crate) cluster: bool,
}

impl Admin {
    /// Whether this very actor ends with `actor`, a service's name or a path.
    fn is_part_of(&self, actor: &str) -> bool {
        let me = if self.cluster { CLUSTER } else { NAME };
        let path = path_of(&self.insight.root.get().handle.tree(), me).unwrap_or_default();
        actor == me || path == actor || path.strip_prefix(actor).is_some_and(|rest| rest.starts_with('/'))
    }
}

impl Service for Admin {
    type Protocol = Node;
}

impl Handle<Tree> for Admin {
    async fn handle(&mut self, ask: Tree, cx: &Context) -> Result<Vec<NodeTree>, Never> {
        let role = cx.caller().node().role;
        let mut trees = vec![self.insight.here(true)];
        if ask.cluster {
            let others = self.insight.others();
            if self.cluster {
                let asked = stream::iter(others).map(|node| ask_tree(cx, node)).buffered(ASK_AT_ONCE);
                trees.extend(asked.collect::<Vec<_>>().await);
            } else {
                trees.extend(others);
            }
        }
        for tree in trees.iter_mut().filter_map(|node| node.tree.as_mut()) {
            if !cx.caller().is_local() {
                redact(tree, role);
            }
        }
        Ok(trees)
    }
}

async fn ask_tree(cx: &Context, mut node: NodeTree) -> NodeTree {
    if matches!(node.health, Health::Up | Health::Suspect) {
        let there = cx.at::<Node>(&format!("{NAME}@{}", node.node.name));
        match there.call(Tree { cluster: false }, ASK).await {
            Ok(trees) => node.tree = trees.into_iter().next().and_then(|answer| answer.tree),
            Err(error) => node.missing = Some(error.to_string().into()),
        }
    }
    node
}

impl Handle<Actors> for Admin {
    async fn handle(&mut self, ask: Actors, cx: &Context) -> Result<Vec<Offered>, Never> {
        let mut offered = self.insight.offered();
        if ask.cluster && self.cluster {
            let linked = self.insight.others().into_iter().filter(|node| node.health == Health::Up);
            let asked = stream::iter(linked).map(|node| async move {
                let there = cx.at::<Node>(&format!("{NAME}@{}", node.node.name));
                there.call(Actors { cluster: false }, ASK).await.unwrap_or_else(|error| {
                    tracing::info!(node = %node.node, %error, "did not tell its actors");
                    Vec::new()
                })
            });
            offered.extend(asked.buffered(ASK_AT_ONCE).collect::<Vec<_>>().await.into_iter().flatten());
        }
        Ok(offered)
    }
}

impl Handle<Describe> for Admin {
    async fn handle(&mut self, ask: Describe, _: &Context) -> Result<Description, NodeError> {
        let inbox = self.insight.exchange.find(&ask.actor).ok_or_else(|| NodeError::NoSuchActor(ask.actor.as_str().into()))?;
        let (protocol, version) = inbox.protocol();
        let methods = inbox.methods().iter().map(|method| MethodDescription {
            name: method.name.into(),
            request: (method.request)().as_value().to_string().into(),
            reply: (method.reply)().as_value().to_string().into(),
            error: (method.error)().as_value().to_string().into(),
        });
        Ok(Description { protocol: protocol.into(), version, methods: methods.collect() })
    }
}

impl Handle<Recorder> for Admin {
    async fn handle(&mut self, ask: Recorder, _: &Context) -> Result<Recording, NodeError> {
        self.insight.recording(&ask.actor)
    }
}

impl Handle<Restart> for Admin {
    async fn handle(&mut self, ask: Restart, cx: &Context) -> Result<Done, NodeError> {
        tracing::warn!(target: "horos_nodes::audit", caller = %cx.caller(), actor = %ask.actor, "restart");
        let (supervisor, child) = self.insight.find(&ask.actor)?;
        let order = async move { supervisor.restart_child(&child).await.map_err(refused) };
        if self.is_part_of(&ask.actor) {
            // Its stop waits for the message in hand, which is this one.
            tokio::spawn(order);
        } else {
            order.await?;
        }
        Ok(Done {})
    }
}

impl Handle<Crash> for Admin {
    async fn handle(&mut self, ask: Crash, cx: &Context) -> Result<Done, NodeError> {
        tracing::warn!(target: "horos_nodes::audit", caller = %cx.caller(), actor = %ask.actor, "crash");
        let (supervisor, child) = self.insight.find(&ask.actor)?;
        supervisor.crash_child(&child).await.map_err(refused)?;
        Ok(Done {})
    }
}

impl Handle<Status> for Admin {
    async fn handle(&mut self, _: Status, cx: &Context) -> Result<StatusReport, Never> {
        let reasons = cx.caller().is_local() || sees_errors(cx.caller().node().role);
        let mut conditions = failing(&self.insight.conditions, reasons);
        if self.insight.drain.phase() != Phase::Open {
            conditions.push("stopping".into());
        }
        Ok(StatusReport {
            node: self.insight.here(false),
            version: env!("CARGO_PKG_VERSION").into(),
            ready: conditions.is_empty(),
            conditions,
            uptime_s: self.insight.started.elapsed().as_secs(),
            resident: resident(),
        })
    }
}

impl Handle<Revoke> for Admin {
    async fn handle(&mut self, ask: Revoke, cx: &Context) -> Result<Done, NodeError> {
        tracing::warn!(target: "horos_nodes::audit", caller = %cx.caller(), "deny list");
        self.insight.peers.revoke(ask.list).await.map_err(|why| NodeError::Refused(why.into()))?;
        Ok(Done {})
    }
}

impl Handle<Serving> for Admin {
    async fn handle(&mut self, _: Serving, _: &Context) -> Result<ServingReport, Never> {
        Ok(ServingReport { addresses: self.insight.http.to_vec(), maintenance: self.insight.maintenance.message() })
    }
}

impl Handle<ControlOwner> for Admin {
    async fn handle(&mut self, _: ControlOwner, _: &Context) -> Result<ControlOwnerReport, Never> {
        Ok(ControlOwnerReport { owner: self.insight.control_owner.clone() })
    }
}

impl Handle<Maintain> for Admin {
    async fn handle(&mut self, ask: Maintain, cx: &Context) -> Result<Done, NodeError> {
        let message = ask.message.as_deref().map(str::trim);
        if message.is_some_and(|message| message.is_empty() || message.len() > MAX_MAINTENANCE) {
            return Err(NodeError::Refused(format!("a message has 1 to {MAX_MAINTENANCE} bytes").into()));
        }
        tracing::warn!(target: "horos_nodes::audit", caller = %cx.caller(), on = message.is_some(), "maintenance");
        let (maintenance, message) = (self.insight.maintenance.clone(), message.map(str::to_owned));
        let set = tokio::task::spawn_blocking(move || maintenance.set(message.as_deref()));
        let set = set.await.map_err(|error| NodeError::Refused(error.to_string().into()))?;
        set.map_err(|error| NodeError::Refused(format!("it could not be written down: {error}").into()))?;
        Ok(Done {})
    }
}

/// Resident memory of this process in bytes; 0 where /proc does not tell.
pub(crate) fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = statm.split_whitespace().nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
    pages * 4096
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn why_a_condition_does_not_hold_is_for_those_who_may_see_errors() {
        let conditions = Conditions::default();
        conditions.set("keys", "cannot open /srv/shop/control.db");
        conditions.set("started", "the node is starting");
        assert_eq!(failing(&conditions, false), ["keys".into(), "started".into()]);
        assert_eq!(failing(&conditions, true)[0], "keys: cannot open /srv/shop/control.db".into());
    }
}

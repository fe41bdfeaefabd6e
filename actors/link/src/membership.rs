//! Who else is in the cluster, beyond the nodes that are linked: gossip over the links themselves.
//!
//! The engine is chitchat (scuttlebutt reconciliation, phi-accrual failure detection). It runs as the worker
//! `gossip` that [`crate::endpoint`] starts, and opens no socket: [`transport`] carries its messages on
//! authenticated links, and [`sieve`] lets nothing in that the node it is about did not sign ([`entry`]).
//! [`members`] holds what has been proven.
//!
//! Promises:
//! - Gossip is a hint. All it does is tell [`Peers`] where a node says it can be dialled; the handshake of
//!   that dial is what counts, and a node that is linked is not changed by anything heard.
//! - A node can be lied about by nobody: not added, not moved, not silenced, not taken back to what it was.
//!   It can lie about its own addresses, and then up to [`entry::MAX_ADDRESSES`] places get a handshake's first packet.
//! - Memory, packets and checked signatures are bounded, for each peer and in all.
//!
//! Left out: routing by gossip (a link says what its peer offers), and anything that must arrive.

mod entry;
mod members;
mod sieve;
#[cfg(test)]
mod tests;
mod transport;

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use chitchat::{ChitchatConfig, ChitchatHandle, Deserializable, FailureDetectorConfig, Heartbeat, spawn_chitchat};
use horos_supervision::{Exchange, Vitals};
use horos_wire::{Incarnation, NodeId, NodeName, tree::State};
use jiff::Timestamp;
use parking_lot::Mutex;
use rand::seq::SliceRandom;
use sha2::{Digest, Sha256};
use tokio::sync::{Notify, Semaphore};

pub use self::entry::TreeDigest;
use self::{
    entry::{About, Entry},
    members::Members,
};
use crate::{
    link::Link,
    peers::Peers,
    streams::{self, ResetOnDrop, Type},
    tls::Tls,
};

/// Longest gossip message: the UDP payload that the engine cuts its messages to.
pub(crate) const MAX_MESSAGE: usize = 65_507;
/// Between rounds. News reaches everybody in some log₃(n) rounds; who is up and who is not is told by the
/// links, within 2.5 s, and does not wait for this.
const EVERY: Duration = Duration::from_millis(500);
/// Linked peers addressed in a round besides those that the engine picks: it also picks nodes that are not linked.
const PEERS_A_ROUND: usize = 2;
/// How often a node signs its entry anew, changed or not: the engine's own first guess at a heartbeat's
/// interval, so that a node that falls silent counts as dead after its default eight of them, 40 s.
const RENEW: Duration = Duration::from_secs(5);
/// How long the engine remembers a life that ended; half as long, it still tells others.
const REMEMBER: Duration = Duration::from_secs(60);
/// Messages on their way in, all peers together: 4 MiB at most. The oldest goes first: gossip says everything again.
const WAITING: usize = 64;
/// Messages taken from one peer at once, and a second: a peer sends some eight a second.
const BURST: u32 = 32;
const PER_SECOND: u32 = 16;
/// Messages on their way out; more are dropped.
const SENDING: usize = 64;
/// How long one may take.
const SEND_WITHIN: Duration = Duration::from_secs(2);
/// Pause before an engine that ended is started again.
const REST: Duration = Duration::from_secs(1);

/// A message of a peer, under the name that its certificate proved.
#[derive(Debug)]
struct Arrived {
    from: NodeId,
    message: Vec<u8>,
}

/// What one peer may still send.
#[derive(Debug)]
struct Allowance {
    left: u32,
    since: Instant,
}

/// Where messages come in; it outlives the engine that empties it. All clones are one inlet.
#[derive(Clone, Debug, Default)]
pub(crate) struct Inlet(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    waiting: Mutex<VecDeque<Arrived>>,
    arrived: Notify,
    allowances: Mutex<HashMap<NodeName, Allowance>>,
    dropped: AtomicU64,
    /// Where this node's own entry stands, for an engine that is started again.
    own: Mutex<Own>,
    digests: Mutex<BTreeMap<NodeName, TreeDigest>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Own {
    sequence: u64,
    beat: u64,
}

impl Inlet {
    /// Takes a message of a linked peer, if it has not sent too many.
    pub(crate) fn received(&self, link: &Arc<Link>, message: Vec<u8>) {
        self.take(link.caller.node().clone(), message, Instant::now());
    }

    fn take(&self, from: NodeId, message: Vec<u8>, now: Instant) {
        if message.len() > MAX_MESSAGE || !self.allows(&from.name, now) {
            self.0.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let mut waiting = self.0.waiting.lock();
        if waiting.len() >= WAITING {
            waiting.pop_front();
            self.0.dropped.fetch_add(1, Ordering::Relaxed);
        }
        waiting.push_back(Arrived { from, message });
        drop(waiting);
        self.0.arrived.notify_one();
    }

    fn allows(&self, from: &NodeName, now: Instant) -> bool {
        let mut allowances = self.0.allowances.lock();
        if !allowances.contains_key(from) && allowances.len() >= members::MAX_MEMBERS {
            // Whoever has been quiet for long enough to be owed everything loses nothing by being forgotten.
            let quiet = Duration::from_secs(u64::from(BURST / PER_SECOND));
            allowances.retain(|_, allowance| now.duration_since(allowance.since) < quiet);
        }
        let allowance = allowances.entry(from.clone()).or_insert(Allowance { left: BURST, since: now });
        let earned = now.duration_since(allowance.since).as_millis() * u128::from(PER_SECOND) / 1000;
        if earned > 0 {
            allowance.left = u32::try_from(earned).unwrap_or(BURST).saturating_add(allowance.left).min(BURST);
            allowance.since = now;
        }
        let allowed = allowance.left > 0;
        allowance.left = allowance.left.saturating_sub(1);
        allowed
    }

    async fn next(&self) -> Arrived {
        loop {
            let arrived = self.0.arrived.notified();
            if let Some(next) = self.0.waiting.lock().pop_front() {
                return next;
            }
            arrived.await;
        }
    }

    fn digests(&self) -> BTreeMap<NodeName, TreeDigest> {
        self.0.digests.lock().clone()
    }
}

impl Peers {
    /// What the nodes that are heard of say of their services, signed by themselves and a few seconds old:
    /// for display, where a node is not linked and cannot be asked.
    pub fn digests(&self) -> BTreeMap<NodeName, TreeDigest> {
        self.gossip.digests()
    }
}

/// What gossip sees of its node: links to speak over, and whom to tell.
trait World: Send + Sync + 'static {
    /// The nodes that are linked.
    fn linked(&self) -> Vec<NodeId>;
    /// Sends a message over a node's link, or loses it.
    fn send(&self, to: &NodeName, message: Vec<u8>);
    /// A node said that it can be dialled there.
    fn heard(&self, node: &NodeId, incarnation: Incarnation, addresses: Vec<SocketAddr>);
    /// A node is heard of no longer.
    fn unheard(&self, node: &NodeName);
    /// What this node says of itself.
    fn about(&self) -> About;
}

struct Node {
    peers: Arc<Peers>,
    sending: Arc<Semaphore>,
}

impl World for Node {
    fn linked(&self) -> Vec<NodeId> {
        self.peers.links().iter().map(|link| link.caller.node().clone()).collect()
    }

    fn send(&self, to: &NodeName, message: Vec<u8>) {
        let Some(link) = self.peers.linked(to) else { return };
        let Ok(place) = self.sending.clone().try_acquire_owned() else { return };
        tokio::spawn(async move {
            let _place = place;
            // A message lost is one that the next round makes up for.
            let _ = tokio::time::timeout(SEND_WITHIN, async {
                let Ok(mut stream) = streams::open(&link.quinn, Type::Gossip).await else { return };
                let mut stream = ResetOnDrop::new(&mut stream);
                if stream.write_all(&message).await.is_ok() {
                    stream.finish();
                }
            })
            .await;
        });
    }

    fn heard(&self, node: &NodeId, incarnation: Incarnation, addresses: Vec<SocketAddr>) {
        self.peers.heard(node.clone(), incarnation, addresses);
    }

    fn unheard(&self, node: &NodeName) {
        self.peers.unheard(node);
    }

    fn about(&self) -> About {
        let (protocols, tree) = services(&self.peers.exchange);
        About { ready: *self.peers.ready.borrow(), addresses: self.peers.advertised.read().clone(), protocols, tree }
    }
}

/// The protocols that a node's services speak, and how the services are.
fn services(exchange: &Exchange) -> (Vec<Box<str>>, TreeDigest) {
    let mut names = exchange.names();
    names.sort_by(|(a, _), (b, _)| a.cmp(b));
    let (mut protocols, mut tree, mut hash) = (Vec::new(), TreeDigest::default(), Sha256::new());
    for (name, inbox) in names {
        let (protocol, version) = inbox.protocol();
        let state = match inbox.vitals().state() {
            State::Starting => 0,
            State::Running => 1,
            State::Stuck => 2,
            State::Restarting => 3,
            State::Stopped => 4,
            State::Failed => 5,
        };
        tree.states[state] += 1;
        hash.update(format!("{name} {protocol}/{version} {state}\n"));
        protocols.push(format!("{protocol}/{version}").into());
    }
    let hash = hash.finalize();
    tree.hash = hash.iter().take(8).fold(0, |sum, byte| sum << 8 | u64::from(*byte));
    (protocols, tree)
}

/// Everything that one node's gossip shares between its loop and the engine's socket.
struct Gossip {
    world: Arc<dyn World>,
    tls: Arc<Tls>,
    inlet: Inlet,
    incarnation: Incarnation,
    members: Mutex<Members>,
    refused: Mutex<BTreeMap<NodeName, u64>>,
    every: Duration,
}

/// Gossips for as long as the worker lives.
pub(crate) async fn run(peers: Arc<Peers>, vitals: Arc<Vitals>) {
    let (node, incarnation) = ((**peers.exchange.node()).clone(), peers.exchange.incarnation());
    let (tls, inlet) = (peers.tls.clone(), peers.gossip.clone());
    let world = Arc::new(Node { peers, sending: Arc::new(Semaphore::new(SENDING)) });
    Gossip::new(world, tls, inlet, node, incarnation, EVERY).run(&vitals).await;
}

impl Gossip {
    fn new(world: Arc<dyn World>, tls: Arc<Tls>, inlet: Inlet, node: NodeId, incarnation: Incarnation, every: Duration) -> Arc<Self> {
        let members = Mutex::new(Members::new(node, incarnation));
        Arc::new(Self { world, tls, inlet, incarnation, members, refused: Mutex::default(), every })
    }

    async fn run(self: Arc<Self>, vitals: &Vitals) {
        loop {
            let engine = match self.start().await {
                Ok(engine) => engine,
                Err(error) => {
                    tracing::error!(%error, "gossip cannot start; will try again");
                    tokio::time::sleep(REST).await;
                    continue;
                }
            };
            let ended = tokio::select! {
                ended = engine.termination_watcher() => ended,
                () = self.rounds(&engine, vitals) => Ok(()),
            };
            // The engine is a hint's: its end is no reason for the node to restart anything else.
            tracing::error!(?ended, "gossip ended; starting it again");
            self.members.lock().engine_restarted();
            tokio::time::sleep(REST).await;
        }
    }

    /// Starts an engine; dropping the handle ends it.
    async fn start(self: &Arc<Self>) -> anyhow::Result<ChitchatHandle> {
        let (chitchat_id, cluster_id) = {
            let members = self.members.lock();
            (members.my_id().clone(), members.me().cluster.to_string())
        };
        let config = ChitchatConfig {
            listen_addr: chitchat_id.gossip_advertise_addr,
            chitchat_id,
            cluster_id,
            gossip_interval: self.every,
            // Links are made elsewhere; the engine speaks over those that there are.
            seed_nodes: Vec::new(),
            failure_detector_config: FailureDetectorConfig {
                // The default window, a thousand intervals, costs 8 kB a node and remembers eight minutes.
                sampling_window_size: 100,
                dead_node_grace_period: REMEMBER,
                ..FailureDetectorConfig::default()
            },
            marked_for_deletion_grace_period: REMEMBER,
            catchup_callback: None,
            extra_liveness_predicate: None,
        };
        let engine = spawn_chitchat(config, Vec::new(), &transport::Links(self.clone())).await?;
        let own = *self.inlet.0.own.lock();
        engine
            .with_chitchat(|chitchat| {
                let state = chitchat.self_node_state();
                // What others know of this life is not taken back, or they would not hear of it again.
                state.set_max_version(own.sequence);
                if let Ok(beat) = Heartbeat::deserialize(&mut &own.beat.to_le_bytes()[..]) {
                    state.try_set_heartbeat(beat);
                }
            })
            .await;
        Ok(engine)
    }

    async fn rounds(&self, engine: &ChitchatHandle, vitals: &Vitals) {
        let mut published = None;
        let mut tick = tokio::time::interval(self.every);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            self.publish(engine, &mut published).await;
            for node in self.chosen() {
                if engine.gossip(members::address(&node)).is_err() {
                    return;
                }
            }
            self.settle(engine).await;
            vitals.progressed(Instant::now());
        }
    }

    /// Signs this node's entry anew when there is reason to.
    async fn publish(&self, engine: &ChitchatHandle, published: &mut Option<(About, tokio::time::Instant)>) {
        let about = self.world.about().bounded();
        let now = tokio::time::Instant::now();
        if published.as_ref().is_some_and(|(last, at)| *last == about && now.duration_since(*at) < RENEW) {
            return;
        }
        let credentials = self.tls.credentials();
        let chitchat = engine.chitchat();
        let mut chitchat = chitchat.lock().await;
        let state = chitchat.self_node_state();
        let own = Own { sequence: state.max_version() + 1, beat: state.heartbeat().into() };
        let entry = Entry {
            node: credentials.id().clone(),
            incarnation: self.incarnation,
            issued: Timestamp::now(),
            sequence: own.sequence,
            beat: own.beat,
            about: about.clone(),
        };
        match entry.seal(&credentials) {
            Some(text) => {
                state.set(sieve::KEY, text);
                *self.inlet.0.own.lock() = own;
            }
            None => tracing::error!("this node's gossip entry cannot be signed; others learn of it from its links only"),
        }
        *published = Some((about, now));
    }

    /// Whom to gossip with this round: those first of whom nothing is known yet.
    fn chosen(&self) -> Vec<NodeId> {
        let mut linked = self.world.linked();
        linked.shuffle(&mut rand::rng());
        let members = self.members.lock();
        linked.sort_by_key(|node| members.holds(&node.name));
        linked.truncate(PEERS_A_ROUND);
        linked
    }

    async fn settle(&self, engine: &ChitchatHandle) {
        let (alive, held) = engine
            .with_chitchat(|chitchat| (chitchat.live_nodes().cloned().collect(), chitchat.node_states().keys().cloned().collect()))
            .await;
        let mut members = self.members.lock();
        let lost = members.settle(&alive, &held, Instant::now());
        *self.inlet.0.digests.lock() = members.heard().map(|entry| (entry.node.name.clone(), entry.about.tree)).collect();
        drop(members);
        for node in lost {
            tracing::info!(%node, "heard of no longer");
            self.world.unheard(&node);
        }
    }
}

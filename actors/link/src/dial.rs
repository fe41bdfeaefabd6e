//! Who is dialled, and how often.
//!
//! Seeds are always dialled; nodes learnt from gossip only from one end, so that two nodes do not dial
//! each other: an FO dials BOs, and between two of a role the smaller name dials.

use std::{
    collections::{HashMap, hash_map::Entry},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use horos_supervision::Vitals;
use horos_wire::{NodeId, Role, tree::Health};
use rand::RngExt;
use tokio::task::{Id, JoinSet};

use crate::{
    endpoint::{ALREADY, Endpoint},
    tls::Expected,
};

/// A dial that has no answer by then is abandoned: QUIC's own first retry would take a second, and a node
/// that has just opened its port would be met that much later.
pub(crate) const PATIENCE: Duration = Duration::from_millis(150);
/// Every [`LONG_EVERY`]th dial waits longer, for peers further than 150 ms away.
const LONG_PATIENCE: Duration = Duration::from_secs(2);
const LONG_EVERY: u32 = 5;
/// Longest pause between dials while a peer has been away for less than [`EAGER_FOR`]: with
/// [`PATIENCE`] within the 250 ms in which a restarted node is to be callable.
const EAGER_PAUSE: Duration = Duration::from_millis(50);
/// Longest pause after that.
const PATIENT_PAUSE: Duration = Duration::from_secs(5);
const EAGER_FOR: Duration = Duration::from_secs(300);
/// What quinn says of an endpoint that was closed on purpose: no news.
const STOPPING: &str = "endpoint stopping";
/// Dials at once.
const DIALS: usize = 64;
/// Addresses of one host's name that are tried.
const MAX_ADDRESSES: usize = 8;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Target {
    address: SocketAddr,
    node: Option<NodeId>,
    /// Known by hearsay only. Such an address is dialled patiently, so that a node that lies about its own
    /// aims no more than a packet in some seconds at a third party.
    hearsay: bool,
}

/// Keeps dialling what is not linked.
pub(crate) async fn run(endpoint: Endpoint, vitals: Arc<Vitals>) {
    let mut changed = endpoint.peers().changed();
    let mut dialling: JoinSet<()> = JoinSet::new();
    let mut ids: HashMap<Target, Id> = HashMap::new();
    let mut named = JoinSet::new();
    for (name, expected) in &endpoint.config().seed_names {
        named.spawn(keep_looking_up(endpoint.clone(), name.clone(), expected.clone()));
    }
    for address in endpoint.config().greet.iter().take(DIALS) {
        named.spawn(greet(endpoint.clone(), *address));
    }
    loop {
        changed.mark_unchanged();
        for target in wanted(&endpoint) {
            if dialling.len() >= DIALS {
                break;
            }
            if let Entry::Vacant(entry) = ids.entry(target) {
                let dialled = keep_dialling(endpoint.clone(), entry.key().clone());
                entry.insert(dialling.spawn(dialled).id());
            }
        }
        vitals.progressed(Instant::now());
        tokio::select! {
            _ = changed.changed() => {}
            Some(ended) = dialling.join_next_with_id() => {
                let id = match ended {
                    Ok((id, ())) => id,
                    Err(error) => error.id(),
                };
                ids.retain(|_, known| *known != id);
            }
        }
    }
}

/// Tells a node of the last life that this one is back. Once: whoever dials otherwise goes on trying.
async fn greet(endpoint: Endpoint, address: SocketAddr) {
    if !endpoint.peers().is_linked_at(address)
        && let Err(why) = endpoint.dial(address, Expected::AnyNode, LONG_PATIENCE).await
    {
        tracing::debug!(%address, %why, "a node of the last life is not there");
    }
}

/// Keeps a seed linked that is known by its host's name, which may lead elsewhere tomorrow.
async fn keep_looking_up(endpoint: Endpoint, name: Box<str>, expected: Expected) {
    let peers = endpoint.peers().clone();
    let mut changed = peers.changed();
    let since = Instant::now();
    let mut said = None;
    let mut attempt = 0u32;
    loop {
        changed.mark_unchanged();
        let addresses: Vec<SocketAddr> = match tokio::net::lookup_host(&*name).await {
            Ok(addresses) => addresses.take(MAX_ADDRESSES).collect(),
            Err(error) => {
                say_once(&mut said, &name, error.to_string());
                Vec::new()
            }
        };
        if addresses.iter().any(|address| peers.is_linked_at(*address)) {
            said = None;
            attempt = 0;
            // It ends only with the endpoint.
            let _ = changed.changed().await;
            continue;
        }
        for address in addresses {
            match endpoint.dial(address, expected.clone(), patience(attempt)).await {
                Ok(_) => {
                    wait_for_link(&endpoint, address).await;
                    break;
                }
                Err(why) => say_once(&mut said, &name, why),
            }
        }
        attempt = attempt.saturating_add(1);
        tokio::time::sleep(pause(since, false)).await;
    }
}

/// Says why a node cannot be reached: once per reason, not once per dial.
fn say_once(said: &mut Option<String>, what: &str, why: String) {
    if why == STOPPING || why == ALREADY {
        return;
    }
    if said.as_ref() != Some(&why) {
        tracing::info!(node = what, %why, "cannot reach a node; will go on dialling");
        *said = Some(why);
    }
}

fn patience(attempt: u32) -> Duration {
    if attempt % LONG_EVERY == LONG_EVERY - 1 { LONG_PATIENCE } else { PATIENCE }
}

fn pause(since: Instant, hearsay: bool) -> Duration {
    let longest = if since.elapsed() < EAGER_FOR && !hearsay { EAGER_PAUSE } else { PATIENT_PAUSE };
    rand::rng().random_range(Duration::ZERO..=longest)
}

/// The session is the supervisor's now; whether it opens is seen by `peers`. Not to dial at once again:
async fn wait_for_link(endpoint: &Endpoint, address: SocketAddr) {
    let peers = endpoint.peers();
    let mut changed = peers.changed();
    let opened = async { while !peers.is_linked_at(address) && changed.changed().await.is_ok() {} };
    // One that has not opened by then never will.
    let _ = tokio::time::timeout(peers.liveness.hello, opened).await;
}

/// What is to be linked and is not.
fn wanted(endpoint: &Endpoint) -> Vec<Target> {
    let peers = endpoint.peers();
    let seeds = endpoint.config().seeds.iter().filter(|seed| !peers.is_linked_at(**seed)).map(|seed| Target {
        address: *seed,
        node: None,
        hearsay: false,
    });
    let me = peers.exchange.node();
    let learnt =
        peers.known().into_iter().filter(|known| matches!(known.health, Health::Down | Health::Heard) && dials(me, &known.node)).flat_map(
            |known| {
                let hearsay = known.health == Health::Heard;
                known.addresses.into_iter().map(move |address| Target { address, node: Some(known.node.clone()), hearsay })
            },
        );
    let learnt: Vec<_> = if endpoint.config().gossip { learnt.collect() } else { Vec::new() };
    seeds.chain(learnt).collect()
}

/// Whether `me` is the one of the two to dial.
fn dials(me: &NodeId, other: &NodeId) -> bool {
    match (me.role, other.role) {
        (Role::Fo, Role::Bo) => true,
        (Role::Bo, Role::Fo) => false,
        _ => me.name < other.name,
    }
}

/// Dials until the node is linked, or known to be dialled in vain: learnt of and no longer heard of.
async fn keep_dialling(endpoint: Endpoint, target: Target) {
    let peers = endpoint.peers().clone();
    let since = Instant::now();
    let mut said = None;
    let mut attempt = 0u32;
    loop {
        let linked = match &target.node {
            Some(node) => peers.linked(&node.name).is_some(),
            None => peers.is_linked_at(target.address),
        };
        if linked || target.node.as_ref().is_some_and(|node| !peers.known().iter().any(|known| known.node == *node)) {
            return;
        }
        let expected = target.node.clone().map_or(Expected::AnyNode, Expected::Node);
        match endpoint.dial(target.address, expected, patience(attempt)).await {
            Ok(_) => wait_for_link(&endpoint, target.address).await,
            Err(why) => say_once(&mut said, &target.address.to_string(), why),
        }
        attempt = attempt.saturating_add(1);
        tokio::time::sleep(pause(since, target.hearsay)).await;
    }
}

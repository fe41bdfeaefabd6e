//! Who has been heard of and what has been proven of them: the one table that decides what gossip may say.

use std::{
    collections::{BTreeMap, HashSet},
    net::{Ipv6Addr, SocketAddr},
    time::{Duration, Instant},
};

use chitchat::ChitchatId;
use horos_wire::{Incarnation, NodeId, NodeName};
use sha2::{Digest as _, Sha256};

use super::entry::Entry;

/// Nodes gossiped about. A digest of as many with the longest names, 118 bytes each, leaves a message of
/// [`super::MAX_MESSAGE`] room for entries; chitchat panics where it leaves less than 100 bytes.
pub(super) const MAX_MEMBERS: usize = 512;
/// A node that was never alive to the failure detector has this long from its last entry: six renewals.
const SILENCE: Duration = Duration::from_secs(30);
/// Least time between two lives of one node. Each leaves a state in the engine until it is collected, so a
/// node that made up lives of its own would otherwise fill it.
const LIFE: Duration = Duration::from_secs(2);

/// The address by which the engine knows a node; it leads nowhere but over that node's link.
pub(super) fn address(node: &NodeId) -> SocketAddr {
    let hash = Sha256::digest(node.to_uri());
    let mut octets = [0xfd; 16];
    octets[1..].copy_from_slice(&hash[..15]);
    SocketAddr::new(Ipv6Addr::from(octets).into(), 1)
}

/// A life of a node as the engine knows it.
pub(super) fn id(node: &NodeId, incarnation: Incarnation) -> ChitchatId {
    ChitchatId::new(format!("{}/{}", node.role, node.name), incarnation.0, address(node))
}

#[derive(Debug)]
struct Member {
    id: ChitchatId,
    entry: Entry,
    /// The lowest sequence that is news.
    floor: u64,
    /// Whether the engine holds a state for it.
    held: bool,
    /// Whether it counts as heard of.
    heard: bool,
    advanced: Instant,
    born: Instant,
}

/// Why an entry that holds brings nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stale {
    /// It is known, or older than what is known.
    Known,
    /// The node's life changes too fast.
    Life,
    /// No more nodes are taken in.
    Full,
}

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Members {
    me: NodeId,
    my_id: ChitchatId,
    table: BTreeMap<NodeName, Member>,
    /// Lives that the engine holds, all nodes together, as last seen.
    held: usize,
}

impl Members {
    pub(super) fn new(me: NodeId, incarnation: Incarnation) -> Self {
        let my_id = id(&me, incarnation);
        Self { me, my_id, table: BTreeMap::new(), held: 0 }
    }

    pub(super) fn me(&self) -> &NodeId {
        &self.me
    }

    pub(super) fn my_id(&self) -> &ChitchatId {
        &self.my_id
    }

    /// The engine starts with nothing in memory; what is known here is news to it once more.
    pub(super) fn engine_restarted(&mut self) {
        for member in self.table.values_mut() {
            (member.held, member.floor) = (false, member.entry.sequence);
        }
        self.held = 0;
    }

    fn member(&self, id: &ChitchatId) -> Option<&Member> {
        let (_, name) = id.node_id.split_once('/')?;
        self.table.get(&NodeName::new(name).ok()?).filter(|member| member.id == *id)
    }

    /// The heartbeat that is believed of a life when `from` claims `beat` for it; `None` for one that is not known.
    ///
    /// A node's own link speaks for it. Of others a claim counts up to what they signed: one that ran ahead
    /// would make the failure detector deaf to the real one.
    pub(super) fn believed(&self, id: &ChitchatId, from: &NodeName, beat: u64) -> Option<u64> {
        if *id == self.my_id {
            return Some(beat);
        }
        let member = self.member(id).filter(|member| member.held)?;
        Some(if member.entry.node.name == *from { beat } else { beat.min(member.entry.beat) })
    }

    /// Whether this version of a life's entry is worth the cost of checking its signature.
    pub(super) fn is_news(&self, id: &ChitchatId, version: u64) -> bool {
        *id != self.my_id && self.member(id).is_none_or(|member| version >= member.floor)
    }

    /// Takes in an entry whose signature holds; whether the engine must be told of a new life.
    pub(super) fn learn(&mut self, entry: Entry, now: Instant) -> Result<bool, Stale> {
        let id = id(&entry.node, entry.incarnation);
        if entry.node.name == self.me.name {
            return Err(Stale::Known);
        }
        if let Some(member) = self.table.get_mut(&entry.node.name) {
            if member.id == id {
                if entry.sequence < member.floor || entry.issued < member.entry.issued {
                    return Err(Stale::Known);
                }
            } else if entry.issued <= member.entry.issued {
                return Err(Stale::Known);
            } else if now.duration_since(member.born) < LIFE {
                return Err(Stale::Life);
            } else if self.held >= MAX_MEMBERS {
                return Err(Stale::Full);
            } else {
                member.id = id;
                (member.born, member.held) = (now, false);
            }
            let new = !member.held;
            self.held += usize::from(new);
            member.floor = entry.sequence.saturating_add(1);
            (member.entry, member.held, member.heard, member.advanced) = (entry, true, true, now);
            return Ok(new);
        }
        if self.held >= MAX_MEMBERS {
            return Err(Stale::Full);
        }
        if self.table.len() >= MAX_MEMBERS {
            // Whoever is gone is kept only so that nobody can replay it.
            let gone = self.table.iter().filter(|(_, member)| !member.held && !member.heard).min_by_key(|(_, member)| member.advanced);
            let gone = gone.map(|(name, _)| name.clone()).ok_or(Stale::Full)?;
            self.table.remove(&gone);
        }
        self.held += 1;
        let floor = entry.sequence.saturating_add(1);
        let name = entry.node.name.clone();
        self.table.insert(name, Member { id, entry, floor, held: true, heard: true, advanced: now, born: now });
        Ok(true)
    }

    /// Takes the engine's view: who is alive, and which lives it holds. Gives whoever is heard of no longer.
    pub(super) fn settle(&mut self, alive: &HashSet<ChitchatId>, held: &HashSet<ChitchatId>, now: Instant) -> Vec<NodeName> {
        self.held = held.len();
        let mut lost = Vec::new();
        for (name, member) in &mut self.table {
            // Collected: its next entry is a new one to the engine.
            member.held = held.contains(&member.id) || (member.held && now.duration_since(member.advanced) < LIFE);
            let silent = !alive.contains(&member.id) && now.duration_since(member.advanced) > SILENCE;
            if member.heard && silent {
                member.heard = false;
                lost.push(name.clone());
            }
        }
        lost
    }

    /// Everybody who is heard of.
    pub(super) fn heard(&self) -> impl Iterator<Item = &Entry> {
        self.table.values().filter(|member| member.heard).map(|member| &member.entry)
    }

    /// Whether there is an entry of `node` in the engine.
    pub(super) fn holds(&self, node: &NodeName) -> bool {
        self.table.get(node).is_some_and(|member| member.held)
    }
}

//! The engine's socket: its messages go over links, and what comes in has been through the sieve.

use std::{
    net::{Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Instant,
};

use async_trait::async_trait;
use chitchat::{
    ChitchatMessage, Serializable,
    transport::{Socket, Transport},
};
use horos_wire::NodeName;
use jiff::Timestamp;

use super::{Arrived, Gossip, MAX_MESSAGE, entry::Entry, members, sieve};

/// Where answers go that nobody awaits.
const NOWHERE: SocketAddr = SocketAddr::new(std::net::IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0);

/// Opens the one socket of an engine.
pub(super) struct Links(pub(super) Arc<Gossip>);

#[async_trait]
impl Transport for Links {
    async fn open(&self, _: SocketAddr) -> anyhow::Result<Box<dyn Socket>> {
        Ok(Box::new(LinkSocket(self.0.clone())))
    }
}

struct LinkSocket(Arc<Gossip>);

#[async_trait]
impl Socket for LinkSocket {
    /// Loses what cannot go out at once: the next round says it again.
    async fn send(&mut self, to: SocketAddr, message: ChitchatMessage) -> anyhow::Result<()> {
        // The engine knows nodes that are not linked, and picks them too.
        if let Some(node) = self.0.world.linked().into_iter().find(|node| members::address(node) == to) {
            let mut bytes = Vec::new();
            message.serialize(&mut bytes);
            if bytes.len() <= MAX_MESSAGE {
                self.0.world.send(&node.name, bytes);
            }
        }
        Ok(())
    }

    /// Cancel safe: nothing is awaited once a message is taken.
    async fn recv(&mut self) -> anyhow::Result<(SocketAddr, ChitchatMessage)> {
        loop {
            let arrived = self.0.inlet.next().await;
            if let Some(received) = self.0.sift(&arrived) {
                return Ok(received);
            }
        }
    }
}

impl Gossip {
    /// What of a message is for the engine; what is news goes to the node.
    fn sift(&self, arrived: &Arrived) -> Option<(SocketAddr, ChitchatMessage)> {
        let now = Timestamp::now();
        let open = |text: &str| Entry::open(text, &self.tls, now);
        let sifted = sieve::sift(&arrived.message, &arrived.from.name, &mut self.members.lock(), open, Instant::now());
        let sifted = match sifted {
            Ok(sifted) => sifted,
            Err(malformed) => {
                self.refuse(&arrived.from.name, &malformed);
                return None;
            }
        };
        if let Some(first) = sifted.refused.first() {
            self.refuse(&arrived.from.name, first);
        }
        for entry in sifted.learnt {
            self.world.heard(&entry.node, entry.incarnation, entry.about.addresses);
        }
        let from = if sifted.answered { members::address(&arrived.from) } else { NOWHERE };
        Some((from, sifted.message?))
    }

    /// Logged once for each peer: a peer that goes on says nothing new.
    fn refuse(&self, from: &NodeName, why: &dyn std::fmt::Display) {
        let mut refused = self.refused.lock();
        if refused.len() >= members::MAX_MEMBERS && !refused.contains_key(from) {
            return;
        }
        let count = refused.entry(from.clone()).or_insert(0);
        if *count == 0 {
            tracing::warn!(%from, %why, "gossip that does not hold is ignored, and from now on only counted");
        } else {
            tracing::debug!(%from, %why, count, "gossip that does not hold is ignored");
        }
        *count += 1;
    }
}

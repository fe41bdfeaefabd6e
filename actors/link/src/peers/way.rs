//! Which way an address leads: the linked nodes that offer its name, and how long one is waited for that may come back.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use futures_util::future::BoxFuture;
use horos_supervision::{
    bulk::BulkWriter,
    exchange::{Carrier, Route},
};
use horos_wire::{ActorName, Address, Bulk, NoEffect, NodeName, Role, Scope};

use super::{Linked, Peers};
use crate::link::Link;

/// How long a route to a node that has just been lost is waited for, at most: a restart's length. A call
/// that finds the node down longer than that is told so at once.
const GRACE: Duration = Duration::from_millis(500);

impl Peers {
    /// Whether any linked node offers `name` within `scope`.
    pub fn is_offered(&self, address: &Address) -> bool {
        !self.offering(&address.name, &address.scope).is_empty()
    }

    /// The nodes that offer `name` within `scope`, as links.
    fn offering(&self, name: &ActorName, scope: &Scope) -> Vec<Arc<Link>> {
        let mut links: Vec<_> = self
            .links
            .read()
            .values()
            .filter(|linked| {
                let link = &linked.link;
                let in_scope = match scope {
                    Scope::Any => true,
                    Scope::Node(node) => link.node == *node,
                    Scope::Role(role) => link.caller.node().role == *role,
                };
                let offers = link.offers.read();
                in_scope && link.takes_work() && offers.ready && offers.names.iter().any(|offer| offer.name == *name)
            })
            .map(|linked| linked.link.clone())
            .collect();
        // The suspect are called only where nobody else is left.
        if links.iter().any(|link| !link.suspect.load(Ordering::Relaxed)) {
            links.retain(|link| !link.suspect.load(Ordering::Relaxed));
        }
        links.sort_by(|a, b| a.node.cmp(&b.node));
        links
    }

    async fn find(&self, address: &Address, protocol: Option<(&'static str, u16)>, deadline: Instant) -> Result<Route, NoEffect> {
        let mut changed = self.changed.subscribe();
        let patience = deadline.min(Instant::now() + GRACE);
        loop {
            changed.mark_unchanged();
            if let Scope::Node(node) = &address.scope {
                if let Some(link) = self.linked(node).filter(|link| link.takes_work()) {
                    return link.bind(&address.name, protocol).await.map(Route::Remote);
                }
            } else {
                let links = self.offering(&address.name, &address.scope);
                let here = matches!(address.scope, Scope::Role(role) if role == self.exchange.node().role);
                let here = if here { self.exchange.find(&address.name) } else { None };
                let count = links.len() + usize::from(here.is_some());
                if count > 0 {
                    let turn = self.turn.fetch_add(1, Ordering::Relaxed) % count;
                    return match (links.get(turn), here) {
                        (Some(link), _) => link.bind(&address.name, protocol).await.map(Route::Remote),
                        (None, Some(inbox)) => Ok(Route::Local(inbox)),
                        (None, None) => unreachable!("the turn is below the count"),
                    };
                }
            }
            if !self.may_come_back(&address.scope) {
                return Err(self.no_way(address));
            }
            if tokio::time::timeout_at(patience.into(), changed.changed()).await.is_err() {
                return Err(self.no_way(address));
            }
        }
    }

    /// Whether a node in `scope` was lost so lately, or is linked but not heard out, that waiting is worth it.
    fn may_come_back(&self, scope: &Scope) -> bool {
        let links = self.links.read();
        self.known.lock().iter().any(|(name, record)| {
            let in_scope = match scope {
                Scope::Any => true,
                Scope::Node(node) => name == node,
                Scope::Role(role) => record.node.role == *role,
            };
            in_scope
                && match links.get(name) {
                    Some(linked) => linked.since.elapsed() < GRACE,
                    None => record.lost.is_some_and(|lost| lost.elapsed() < GRACE),
                }
        })
    }

    fn no_way(&self, address: &Address) -> NoEffect {
        match &address.scope {
            Scope::Node(node) if self.known.lock().contains_key(node) => NoEffect::NoRoute(node.as_str().into()),
            Scope::Node(node) => NoEffect::NoRoute(format!("{node}: no node of that name is known here").into()),
            // Whether a node that is out of reach has it, nobody here can say.
            Scope::Role(role) if !self.in_reach(*role) => NoEffect::NoRoute(format!("{role}: no node of that role is in reach").into()),
            Scope::Any | Scope::Role(_) => NoEffect::NoSuchActor(address.to_string().into()),
        }
    }

    /// Whether this node has `role`, or one that is linked and takes work.
    fn in_reach(&self, role: Role) -> bool {
        let serves = |linked: &Linked| linked.link.caller.node().role == role && linked.link.takes_work();
        self.exchange.node().role == role || self.links.read().values().any(serves)
    }
}

impl Carrier for Peers {
    fn route(&self, address: Address, protocol: Option<(&'static str, u16)>, deadline: Instant) -> BoxFuture<'_, Result<Route, NoEffect>> {
        Box::pin(async move {
            tokio::time::timeout_at(deadline.into(), self.find(&address, protocol, deadline))
                .await
                .unwrap_or_else(|_| Err(self.no_way(&address)))
        })
    }

    fn bulk(&self, node: NodeName, bulk: Bulk) -> BoxFuture<'_, Result<BulkWriter, NoEffect>> {
        Box::pin(async move {
            let link = self.linked(&node).filter(|link| link.takes_work()).ok_or_else(|| NoEffect::NoRoute(node.as_str().into()))?;
            crate::bulk::open(link, bulk).await.map(BulkWriter::new)
        })
    }
}

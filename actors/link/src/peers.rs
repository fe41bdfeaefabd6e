//! Every peer of a node: who is linked and who is known; [`way`] says which way an address leads.
//!
//! Shared by the endpoint's actors. A link is the only authority on what its peer offers; gossip only
//! tells where to dial.

mod way;

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use horos_supervision::Exchange;
use horos_wire::{
    Incarnation, NodeId, NodeName, Role,
    control::{self, Close, Hello, Offers},
    policy::Policy,
    session::Liveness,
    tree::Health,
};
use jiff::Timestamp;
use parking_lot::{Mutex, RwLock};
use quinn::RecvStream;
use tokio::sync::watch;

use crate::{
    config::Parts,
    identity::{
        PeerIdentity,
        revocation::{Adopted, DenyError},
    },
    link::{Limits, Link},
    peer::Side,
    streams::read_rest,
    tls::Tls,
};

/// Two connections between the same two lives that open within this time of each other were dialled from
/// both ends at once, and both ends keep the same one; later, the newer replaces the older.
const SIMULTANEOUS: Duration = Duration::from_secs(1);
/// Nodes remembered, linked or not; those heard of last are not taken in beyond it.
pub(crate) const MAX_NODES: usize = 1024;
/// For a gossip message to arrive whole: four rounds.
const GOSSIP_WITHIN: Duration = Duration::from_secs(2);
/// Addresses remembered of a lost node, the latest first.
const MAX_ADDRESSES: usize = 8;
/// Sessions at once with one node: the one that lasts, and those that are replaced or never open.
const SESSIONS_PER_NODE: usize = 8;
/// Sessions at once of one operator or viewer: a script that runs commands side by side.
const SESSIONS_PER_PERSON: usize = 64;
/// With nothing in hand for this long and three round trips more, a drain is over. What a peer sent before it read
/// that this node is leaving is then here, a lost packet's second sending included, and so is the last answer there.
const QUIET: Duration = Duration::from_millis(50);

/// A node as this one knows it.
#[derive(Clone, Debug)]
pub struct Known {
    /// Who.
    pub node: NodeId,
    /// Which life was last linked or heard of.
    pub incarnation: Incarnation,
    /// Where it can be dialled.
    pub addresses: Vec<SocketAddr>,
    /// How it is, seen from here.
    pub health: Health,
}

#[derive(Debug)]
struct Record {
    node: NodeId,
    incarnation: Incarnation,
    addresses: Vec<SocketAddr>,
    lost: Option<Instant>,
    linked_before: bool,
}

/// A session's place among all; see [`Peers::enter`].
pub(crate) struct Place {
    peers: Arc<Peers>,
    peer: NodeId,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut sessions = self.peers.sessions.lock();
        if let Some(count) = sessions.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                sessions.remove(&self.peer);
            }
        }
    }
}

struct Linked {
    link: Arc<Link>,
    side: Side,
    since: Instant,
}

/// A node's peers: who is linked, who is known, and which way an address leads. Cheap to share.
pub struct Peers {
    pub(crate) exchange: Exchange,
    pub(crate) policy: Arc<Policy>,
    pub(crate) tls: Arc<Tls>,
    release: &'static str,
    pub(crate) liveness: Liveness,
    pub(crate) limits: Limits,
    /// Where peers are told to dial this node; empty for one that only dials.
    pub(crate) advertised: RwLock<Vec<SocketAddr>>,
    links: RwLock<HashMap<NodeName, Linked>>,
    /// Operators and viewers: they call and are never called, so nothing leads to them.
    people: Mutex<Vec<Arc<Link>>>,
    known: Mutex<BTreeMap<NodeName, Record>>,
    /// Sessions by peer, open or about to.
    sessions: Mutex<HashMap<NodeId, usize>>,
    /// Who answered where, by certificate, when this node dialled.
    answered: Mutex<HashMap<SocketAddr, NodeName>>,
    identities: Mutex<HashMap<usize, PeerIdentity>>,
    changed: watch::Sender<u64>,
    pub(crate) ready: watch::Sender<bool>,
    turn: AtomicUsize,
    pub(crate) gossip: crate::membership::Inlet,
}

impl std::fmt::Debug for Peers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Peers({})", self.exchange.node())
    }
}

impl Peers {
    pub(crate) fn new(parts: Parts, liveness: Liveness, limits: Limits) -> Arc<Self> {
        Arc::new(Self {
            exchange: parts.exchange,
            policy: parts.policy,
            tls: parts.tls,
            release: parts.release,
            liveness,
            limits,
            advertised: RwLock::default(),
            links: RwLock::default(),
            people: Mutex::default(),
            known: Mutex::default(),
            sessions: Mutex::default(),
            answered: Mutex::default(),
            identities: Mutex::default(),
            changed: watch::Sender::new(0),
            ready: watch::Sender::new(false),
            turn: AtomicUsize::new(0),
            gossip: crate::membership::Inlet::default(),
        })
    }

    pub(crate) fn hello(&self) -> Hello {
        Hello {
            version_min: control::VERSION_MIN,
            version_max: control::VERSION_MAX,
            features: 0,
            node: (**self.exchange.node()).clone(),
            incarnation: self.exchange.incarnation(),
            release: self.release.into(),
            addresses: self.advertised.read().iter().copied().take(control::MAX_ADDRESSES).collect(),
        }
    }

    /// Says whether this node takes work; peers are told.
    pub fn set_ready(&self, ready: bool) {
        self.ready.send_if_modified(|was| std::mem::replace(was, ready) != ready);
    }

    /// The node itself.
    pub fn node(&self) -> &NodeId {
        self.exchange.node()
    }

    /// Where peers are told to dial this node.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.advertised.read().clone()
    }

    /// Changes whenever a node comes, goes, or offers something else.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    pub(crate) fn touch(&self) {
        self.changed.send_modify(|version| *version += 1);
    }

    // ---- sessions ----

    /// Takes an open session in, or says with which code it is to be closed.
    pub(crate) fn admit(&self, link: &Arc<Link>, side: Side, identity: &PeerIdentity) -> Result<(), Close> {
        self.identities.lock().insert(Arc::as_ptr(link) as usize, identity.clone());
        let hello = link.hello.get().expect("a session is open after its hello");
        if !hello.node.role.is_node() {
            self.people.lock().push(link.clone());
            return Ok(());
        }
        let now = Instant::now();
        let mut links = self.links.write();
        if let Some(old) = links.get(&link.node) {
            let same_life = old.link.hello.get().is_some_and(|old| old.incarnation == hello.incarnation);
            // Dialled from both ends at once, both keep the same one; dialled twice from one end, the first.
            let keep = old.side == side || self.preferred(&link.node, old.side);
            if same_life && now.duration_since(old.since) < SIMULTANEOUS && keep && !old.link.is_closed() {
                return Err(Close::Duplicate);
            }
            old.link.close(if same_life { Close::Duplicate } else { Close::Stale });
        }
        links.insert(link.node.clone(), Linked { link: link.clone(), side, since: now });
        drop(links);
        let mut known = self.known.lock();
        // A linked node is never turned away for one that was only heard of.
        if known.len() >= MAX_NODES && !known.contains_key(&link.node) {
            let heard = known.iter().find(|(_, record)| !record.linked_before).map(|(name, _)| name.clone());
            if let Some(heard) = heard {
                known.remove(&heard);
            }
        }
        let record = Record {
            node: hello.node.clone(),
            incarnation: hello.incarnation,
            addresses: hello.addresses.clone(),
            lost: None,
            linked_before: true,
        };
        known.insert(link.node.clone(), record);
        drop(known);
        self.touch();
        Ok(())
    }

    /// Of two connections dialled at once, both ends keep the one that the smaller name dialled.
    fn preferred(&self, peer: &NodeName, side: Side) -> bool {
        let ours = self.exchange.node().name < *peer;
        ours == (side == Side::Dialer)
    }

    pub(crate) fn remove(&self, link: &Arc<Link>) {
        self.identities.lock().remove(&(Arc::as_ptr(link) as usize));
        self.people.lock().retain(|person| !Arc::ptr_eq(person, link));
        let mut links = self.links.write();
        if links.get(&link.node).is_some_and(|linked| Arc::ptr_eq(&linked.link, link)) {
            links.remove(&link.node);
            drop(links);
            if let Some(record) = self.known.lock().get_mut(&link.node) {
                record.lost = Some(Instant::now());
            }
            self.touch();
        }
    }

    pub(crate) fn offers(&self, link: &Arc<Link>, offers: Offers) {
        let role = link.caller.node().role;
        let (names, refused): (Vec<_>, Vec<_>) = offers.names.into_iter().partition(|offer| self.believes(role, &offer.protocol));
        if let Some(first) = refused.first() {
            tracing::warn!(peer = %link.caller, name = %first.name, protocol = %first.protocol, refused = refused.len(),
                "offers what its role may not; not believed");
        }
        *link.offers.write() = Offers { names, ready: offers.ready };
        self.touch();
    }

    /// Whether a node of `role` may offer `protocol`. A person's program need not know what the nodes' programs
    /// offer, so it believes in protocols that it has never heard of; a node believes in none of those.
    fn believes(&self, role: Role, protocol: &str) -> bool {
        let unheard_of = || Role::ALL.into_iter().all(|role| !self.policy.may_offer(role, protocol));
        self.policy.may_offer(role, protocol) || (!self.exchange.node().role.is_node() && unheard_of())
    }

    pub(crate) fn linked(&self, node: &NodeName) -> Option<Arc<Link>> {
        self.links.read().get(node).map(|linked| linked.link.clone())
    }

    pub(crate) fn links(&self) -> Vec<Arc<Link>> {
        self.links.read().values().map(|linked| linked.link.clone()).collect()
    }

    /// A place for one more session with `peer`, while there are fewer than `most` in all; freed on drop.
    ///
    /// Counted from the handshake on, whether the session opens or not, and by peer, so that one stolen
    /// certificate does not take every place.
    pub(crate) fn enter(self: &Arc<Self>, peer: &NodeId, most: usize) -> Option<Place> {
        let mut sessions = self.sessions.lock();
        let mine = sessions.get(peer).copied().unwrap_or(0);
        let own = if peer.role.is_node() { SESSIONS_PER_NODE } else { SESSIONS_PER_PERSON };
        if mine >= own || sessions.values().sum::<usize>() >= most {
            return None;
        }
        sessions.insert(peer.clone(), mine + 1);
        Some(Place { peers: self.clone(), peer: peer.clone() })
    }

    /// The certificate of who answered a dial to `address` has been looked at.
    pub(crate) fn answered_at(&self, address: SocketAddr, connection: &quinn::Connection) {
        let Ok(identity) = crate::tls::peer_identity(connection) else { return };
        let mut answered = self.answered.lock();
        if answered.len() >= MAX_NODES && !answered.contains_key(&address) {
            // What is forgotten is dialled once more.
            answered.clear();
        }
        answered.insert(address, identity.id.name);
    }

    /// Whether the node at this address is linked: the link leads there, or who answered there is linked otherwise.
    ///
    /// What a peer says of its own addresses does not count: it could name another's, and nobody would dial that.
    pub(crate) fn is_linked_at(&self, address: SocketAddr) -> bool {
        let links = self.links.read();
        links.values().any(|linked| linked.link.quinn.remote_address() == address)
            || self.answered.lock().get(&address).is_some_and(|name| links.contains_key(name))
    }

    /// Whether the node at this address is linked and has said what it offers.
    pub(crate) fn is_heard_out(&self, address: SocketAddr) -> bool {
        self.links.read().values().any(|linked| linked.link.quinn.remote_address() == address && linked.link.offers.read().ready)
    }

    /// Tells every peer that no new work is taken; returns when nothing of theirs is in hand here and
    /// nothing of ours there, or at `until`.
    pub async fn drain(&self, until: Instant) {
        self.set_ready(false);
        let everyone: Vec<_> = self.links().into_iter().chain(self.people.lock().iter().cloned()).collect();
        for link in &everyone {
            // It fails only when the session is over.
            let _ = link.with_session(horos_wire::session::Session::go_away);
        }
        let quiet = QUIET + 3 * everyone.iter().map(|link| link.quinn.rtt()).max().unwrap_or_default();
        let mut look = tokio::time::interval(Duration::from_millis(5));
        let mut idle_since = Instant::now();
        loop {
            let open: Vec<_> = everyone.iter().filter(|link| !link.is_closed()).collect();
            let busy = open
                .iter()
                .any(|link| link.outstanding() > 0 || link.calls_in_flight() > 0 || !link.out.is_drained() || !link.answers.is_drained());
            let now = Instant::now();
            if busy {
                idle_since = now;
            }
            if open.is_empty() || now >= until || now.duration_since(idle_since) >= quiet {
                return;
            }
            look.tick().await;
        }
    }

    pub(crate) fn close_all(&self, close: Close) {
        let everyone: Vec<_> = self.links().into_iter().chain(self.people.lock().iter().cloned()).collect();
        for link in everyone {
            link.close(close);
        }
    }

    /// Every node this one knows, itself excluded, sorted by name.
    pub fn known(&self) -> Vec<Known> {
        let links = self.links.read();
        self.known
            .lock()
            .iter()
            .map(|(name, record)| {
                let health = match links.get(name) {
                    Some(linked) if linked.link.suspect.load(Ordering::Relaxed) => Health::Suspect,
                    Some(_) => Health::Up,
                    None if record.linked_before => Health::Down,
                    None => Health::Heard,
                };
                Known { node: record.node.clone(), incarnation: record.incarnation, addresses: record.addresses.clone(), health }
            })
            .collect()
    }

    /// A node was heard of; where it says it can be dialled is worth a try, and nothing more.
    pub(crate) fn heard(&self, node: NodeId, incarnation: Incarnation, addresses: Vec<SocketAddr>) {
        if node.cluster != self.exchange.node().cluster || node.name == self.exchange.node().name || !node.role.is_node() {
            return;
        }
        let mut known = self.known.lock();
        let room = known.len() < MAX_NODES;
        match known.get_mut(&node.name) {
            // What a link has proven is not changed by hearsay, except where a lost node may have moved to.
            Some(record) if record.linked_before => {
                if record.lost.is_some() && record.node == node {
                    let mut places = addresses;
                    places.extend(record.addresses.iter().filter(|known| !places.contains(known)).copied().collect::<Vec<_>>());
                    places.truncate(MAX_ADDRESSES);
                    record.addresses = places;
                }
            }
            Some(record) => {
                record.node = node;
                record.incarnation = incarnation;
                record.addresses = addresses;
            }
            None if room => {
                known.insert(node.name.clone(), Record { node, incarnation, addresses, lost: None, linked_before: false });
            }
            None => return,
        }
        drop(known);
        self.touch();
    }

    /// Forgets a node that was only heard of, and is heard of no longer.
    pub(crate) fn unheard(&self, node: &NodeName) {
        let mut known = self.known.lock();
        if known.get(node).is_some_and(|record| !record.linked_before) {
            known.remove(node);
            drop(known);
            self.touch();
        }
    }

    // ---- the deny list ----

    /// Puts a deny list in force if it is newer, closes the sessions that it ends, and passes it on.
    pub(crate) async fn deny(&self, text: Box<str>, from: Option<&Arc<Link>>) {
        let tls = self.tls.clone();
        // It is kept on disk, and a disk may be slow.
        let adopted = tokio::task::spawn_blocking(move || tls.deny(&text)).await;
        match adopted {
            Ok(Ok(Adopted::Newer)) => self.in_force(from),
            Ok(Ok(_)) => {}
            // It counts until this node restarts, so it is passed on all the same.
            Ok(Err(error @ DenyError::File(_))) => {
                tracing::error!(%error, "a newer deny list could not be kept");
                self.in_force(from);
            }
            Ok(Err(error)) => tracing::warn!(%error, from = from.map(|link| link.caller.to_string()), "a deny list was not taken"),
            Err(error) => tracing::error!(%error, "the deny list could not be looked at"),
        }
    }

    /// Takes a deny list from an operator.
    ///
    /// # Errors
    /// Why it is not in force, or will not be after a restart.
    pub async fn revoke(&self, list: Box<str>) -> Result<(), String> {
        let tls = self.tls.clone();
        match tokio::task::spawn_blocking(move || tls.deny(&list)).await {
            // The same again is passed on again: the operator may have a reason.
            Ok(Ok(_)) => {
                self.in_force(None);
                Ok(())
            }
            Ok(Err(error)) => {
                if matches!(error, DenyError::File(_)) {
                    self.in_force(None);
                }
                Err(error.to_string())
            }
            Err(error) => Err(error.to_string()),
        }
    }

    /// A newer deny list is in force: closes the sessions that it ends, and passes it on.
    fn in_force(&self, from: Option<&Arc<Link>>) {
        tracing::info!(number = self.tls.denied().number(), "a deny list is in force");
        self.enforce();
        let Some(list) = self.tls.denied().text() else { return };
        for link in self.links() {
            if from.is_none_or(|from| !Arc::ptr_eq(from, &link)) {
                // It fails only when the session is over.
                let _ = link.with_session(|session| session.deny_list((&*list).into()));
            }
        }
    }

    /// Closes every session whose peer is no longer admitted.
    pub fn enforce(&self) {
        let now = Timestamp::now();
        let everyone: Vec<_> = self.links().into_iter().chain(self.people.lock().iter().cloned()).collect();
        for link in everyone {
            let identity = self.identities.lock().get(&(Arc::as_ptr(&link) as usize)).cloned();
            if let Some(identity) = identity
                && let Err(refused) = self.tls.still_admits(&identity, now)
            {
                tracing::warn!(peer = %link.caller, %refused, "session closed");
                link.close(Close::Revoked);
            }
        }
    }

    // ---- gossip ----

    pub(crate) async fn gossip_from(&self, link: &Arc<Link>, mut stream: RecvStream) {
        // Gossip tolerates loss: one that dawdles does not hold its stream.
        let read = tokio::time::timeout(GOSSIP_WITHIN, read_rest(&mut stream, crate::membership::MAX_MESSAGE)).await;
        if let Ok(Some(message)) = read
            && link.caller.node().role.is_node()
        {
            self.gossip.received(link, message);
        }
    }
}

use std::{
    collections::HashSet,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use chitchat::{ChitchatId, ChitchatMessage, Serializable};
use horos_supervision::Vitals;
use horos_wire::{Incarnation, NodeId, NodeName, Role, tree::Kind};
use jiff::Timestamp;
use parking_lot::Mutex;
use proptest::prelude::*;

use super::{
    entry::{About, Entry, EntryError, MAX_AGE, TreeDigest},
    members::{self, Members, Stale},
    sieve::{self, Refused},
    *,
};
use crate::{
    identity::fixture::Cluster,
    tls::{PeerRefused, Tls},
};

fn tls(cluster: &Cluster, role: Role, name: &str) -> Arc<Tls> {
    let (directory, _) = cluster.enrol(&cluster.id(role, name));
    Arc::new(Tls::open(&directory, Timestamp::now()).unwrap())
}

fn about() -> About {
    About {
        ready: true,
        addresses: vec!["192.0.2.1:7600".parse().unwrap(), "[2001:db8::1]:7600".parse().unwrap()],
        protocols: vec!["ledger/1".into(), "stock/2".into()],
        tree: TreeDigest { states: [0, 3, 0, 0, 0, 0], hash: 7 },
    }
}

fn entry(node: &NodeId, sequence: u64) -> Entry {
    let issued = Timestamp::from_millisecond(Timestamp::now().as_millisecond()).unwrap();
    Entry { node: node.clone(), incarnation: Incarnation(5), issued, sequence, beat: 10 * sequence, about: about() }
}

fn open(text: &str, tls: &Tls) -> Result<Entry, EntryError> {
    Entry::open(text, tls, Timestamp::now())
}

#[test]
fn an_entry_is_read_as_it_was_signed() {
    let cluster = Cluster::new("shop");
    let (bo, fo) = (tls(&cluster, Role::Bo, "bo-1"), tls(&cluster, Role::Fo, "fo-1"));
    for about in [about(), About::default()] {
        let sent = Entry { about, ..entry(bo.credentials().id(), 7) };
        let text = sent.seal(&bo.credentials()).unwrap();
        assert_eq!(open(&text, &fo).unwrap(), sent);
    }
}

#[test]
fn an_entry_altered_anywhere_does_not_count() {
    let cluster = Cluster::new("shop");
    let bo = tls(&cluster, Role::Bo, "bo-1");
    let text = entry(bo.credentials().id(), 7).seal(&bo.credentials()).unwrap();
    for at in 0..text.len() {
        let mut altered = text.clone().into_bytes();
        altered[at] = if altered[at] == b'1' { b'2' } else { b'1' };
        let altered = String::from_utf8(altered).unwrap();
        assert!(open(&altered, &bo).is_err(), "byte {at} of {text}");
    }
    assert!(matches!(open(&text.replace("192.0.2.1", "192.0.2.9"), &bo), Err(EntryError::Signature)));
    assert!(open(&format!("{text}\n"), &bo).is_err() && open(text.trim_end(), &bo).is_err());
}

#[test]
fn an_entry_counts_only_when_its_own_subject_signed_it() {
    let cluster = Cluster::new("shop");
    let (bo, fo) = (tls(&cluster, Role::Bo, "bo-1"), tls(&cluster, Role::Fo, "fo-1"));
    let victim = entry(bo.credentials().id(), 7);
    // With the forger's certificate, and with the victim's over the forger's signature.
    let forged = victim.seal(&fo.credentials()).unwrap();
    assert!(matches!(open(&forged, &bo), Err(EntryError::OtherNode { .. })));
    let genuine = victim.seal(&bo.credentials()).unwrap();
    let (body, _) = genuine.rsplit_once("signature ").unwrap();
    let resigned = format!("{body}signature {}\n", hex::encode(fo.credentials().sign(body.as_bytes()).unwrap()));
    assert!(matches!(open(&resigned, &bo), Err(EntryError::Signature)));
}

#[test]
fn an_entry_of_another_clusters_authority_does_not_count() {
    let (cluster, twin) = (Cluster::new("shop"), Cluster::new("shop"));
    let (ours, theirs) = (tls(&cluster, Role::Bo, "bo-1"), tls(&twin, Role::Bo, "bo-2"));
    let text = entry(theirs.credentials().id(), 7).seal(&theirs.credentials()).unwrap();
    assert!(matches!(open(&text, &ours), Err(EntryError::Certificate(_))));
    assert!(open(&text, &theirs).is_ok());
}

#[test]
fn an_entry_of_a_revoked_node_does_not_count() {
    let cluster = Cluster::new("shop");
    let (bo, fo) = (tls(&cluster, Role::Bo, "bo-1"), tls(&cluster, Role::Fo, "fo-1"));
    let text = entry(fo.credentials().id(), 7).seal(&fo.credentials()).unwrap();
    open(&text, &bo).unwrap();
    let list =
        cluster.authority.revoke(&[crate::identity::authority::Revoke::Serial(fo.credentials().serial())], Timestamp::now()).unwrap();
    bo.deny(&list).unwrap();
    assert!(matches!(open(&text, &bo), Err(EntryError::Certificate(PeerRefused::Revoked { .. }))));
}

#[test]
fn an_old_entry_cannot_be_brought_back_for_ever() {
    let cluster = Cluster::new("shop");
    let bo = tls(&cluster, Role::Bo, "bo-1");
    let text = entry(bo.credentials().id(), 7).seal(&bo.credentials()).unwrap();
    let later = Timestamp::now() + MAX_AGE + Duration::from_secs(1);
    assert!(matches!(Entry::open(&text, &bo, later), Err(EntryError::Clock(_))));
    let earlier = Timestamp::now() - Duration::from_secs(400);
    assert!(matches!(Entry::open(&text, &bo, earlier), Err(EntryError::Clock(_))));
}

proptest! {
    #[test]
    fn no_text_makes_the_parser_panic(text in ".{0,400}", at in 0usize..900, byte in any::<u8>()) {
        let _ = Entry::parse(&text);
        let mut damaged = SAMPLE.as_bytes().to_vec();
        let length = damaged.len();
        damaged[at % length] = byte;
        let _ = Entry::parse(&String::from_utf8_lossy(&damaged));
        let _ = Entry::parse(&String::from_utf8_lossy(&damaged[..at % length]));
    }

    #[test]
    fn no_message_makes_the_sieve_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..600), kind in 0u8..4, block in 0u8..3) {
        let mut members = Members::new(node(Role::Bo, "bo-1"), Incarnation(1));
        let never = |_: &str| Err(EntryError::Signature);
        let from = "fo-1".parse().unwrap();
        let _ = sieve::sift(&bytes, &from, &mut members, never, Instant::now());
        // Past the header, where the interesting part begins.
        let head = [0x53, 0xb0, 0, kind];
        let body = match kind { 1 => vec![0, 0, block], _ => vec![block] };
        bytes.splice(0..0, head.into_iter().chain(body));
        let _ = sieve::sift(&bytes, &from, &mut members, never, Instant::now());
    }
}

const SAMPLE: &str = "horos-entry 1\nnode spiffe://shop/bo/bo-1\nincarnation 00c0ffee00c0ffee\nissued 1795262400000\nsequence 7\nbeat 42\n\
    ready yes\naddresses 192.0.2.1:7600\nprotocols stock/2\ntree 0 3 0 0 0 0 9f86d081884c7d65\ncertificate 30820100\nsignature 3045\n";

fn node(role: Role, name: &str) -> NodeId {
    crate::identity::fixture::id("shop", role, name)
}

#[test]
fn the_documented_entry_is_one() {
    let (entry, ..) = Entry::parse(SAMPLE).unwrap();
    assert_eq!((entry.sequence, entry.beat, entry.about.tree.states[1]), (7, 42, 3));
}

#[test]
fn what_is_known_of_a_node_is_not_rolled_back() {
    let mut members = Members::new(node(Role::Bo, "bo-1"), Incarnation(1));
    let other = node(Role::Bo, "bo-2");
    let start = Instant::now();
    assert_eq!(members.learn(entry(&other, 7), start), Ok(true));
    assert_eq!(members.learn(entry(&other, 7), start), Err(Stale::Known));
    assert_eq!(members.learn(entry(&other, 6), start), Err(Stale::Known));
    assert_eq!(members.learn(entry(&other, 8), start), Ok(false));
    // Another life, issued before this one, is an older one.
    let now = Timestamp::now();
    let older = Entry { incarnation: Incarnation(9), issued: now - Duration::from_secs(60), ..entry(&other, 99) };
    assert_eq!(members.learn(older.clone(), start + Duration::from_secs(5)), Err(Stale::Known));
    let newer = Entry { incarnation: Incarnation(3), issued: now + Duration::from_secs(1), ..entry(&other, 1) };
    assert_eq!(members.learn(newer.clone(), start), Err(Stale::Life), "lives do not follow each other that fast");
    assert_eq!(members.learn(newer, start + Duration::from_secs(5)), Ok(true));
    // Nor once it is gone.
    let gone = members.settle(&HashSet::new(), &HashSet::new(), start + Duration::from_secs(60));
    assert_eq!(gone, std::slice::from_ref(&other.name));
    assert_eq!(members.learn(older, start + Duration::from_secs(61)), Err(Stale::Known));
}

#[test]
fn nodes_beyond_the_bound_are_not_taken_in_and_whoever_is_gone_makes_room() {
    let mut members = Members::new(node(Role::Bo, "bo-1"), Incarnation(1));
    let start = Instant::now();
    for n in 0..members::MAX_MEMBERS {
        assert_eq!(members.learn(entry(&node(Role::Fo, &format!("fo-{n}")), 1), start), Ok(true));
    }
    let late = node(Role::Bo, "bo-2");
    assert_eq!(members.learn(entry(&late, 1), start), Err(Stale::Full));
    members.settle(&HashSet::new(), &HashSet::new(), start + Duration::from_secs(60));
    assert_eq!(members.learn(entry(&late, 1), start + Duration::from_secs(60)), Ok(true));
}

/// Messages as a liar can write them: chitchat's own types keep their fields to themselves.
fn syn(claims: &[(ChitchatId, u64, u64)]) -> Vec<u8> {
    let mut bytes = vec![0x53, 0xb0, 0, 0];
    digest(&mut bytes, claims);
    "shop".serialize(&mut bytes);
    bytes
}

fn digest(into: &mut Vec<u8>, claims: &[(ChitchatId, u64, u64)]) {
    (claims.len() as u16).serialize(into);
    for (id, beat, version) in claims {
        id.serialize(into);
        beat.serialize(into);
        0u64.serialize(into);
        version.serialize(into);
    }
}

fn ack(values: &[(ChitchatId, &str, &str, u64, u8)]) -> Vec<u8> {
    let mut operations = Vec::new();
    for (id, key, value, version, status) in values {
        operations.push(0);
        id.serialize(&mut operations);
        0u64.serialize(&mut operations);
        0u64.serialize(&mut operations);
        operations.push(1);
        key.serialize(&mut operations);
        value.serialize(&mut operations);
        version.serialize(&mut operations);
        operations.push(*status);
    }
    let mut bytes = vec![0x53, 0xb0, 0, 2];
    for block in operations.chunks(10_000) {
        bytes.push(2);
        (block.len() as u16).serialize(&mut bytes);
        bytes.extend_from_slice(block);
    }
    bytes.push(0);
    bytes
}

#[test]
fn nothing_that_an_fo_forges_reaches_the_engine() {
    let cluster = Cluster::new("shop");
    let (bo, fo) = (tls(&cluster, Role::Bo, "bo-1"), tls(&cluster, Role::Fo, "fo-1"));
    let victim = tls(&cluster, Role::Bo, "bo-2");
    let id = members::id(victim.credentials().id(), Incarnation(5));
    let from: NodeName = "fo-1".parse().unwrap();
    let mut members = Members::new(bo.credentials().id().clone(), Incarnation(1));
    let mut sift = |message: &[u8]| sieve::sift(message, &from, &mut members, |text| open(text, &bo), Instant::now()).unwrap();
    let genuine = entry(victim.credentials().id(), 7).seal(&victim.credentials()).unwrap();
    let forged = entry(victim.credentials().id(), 8).seal(&fo.credentials()).unwrap();

    // A node that does not exist, or that nobody has proven, is not made known.
    let empty = ChitchatMessage::Syn { cluster_id: "shop".into(), digest: Default::default() };
    let made_up = members::id(&node(Role::Bo, "bo-9"), Incarnation(1));
    assert_eq!(sift(&syn(&[(made_up, 1, 1), (id.clone(), u64::MAX, u64::MAX)])).message.unwrap(), empty);

    let nothing = ChitchatMessage::Ack { delta: Default::default() };
    let mut refuses = |values: &[(ChitchatId, &str, &str, u64, u8)]| {
        let sifted = sift(&ack(values));
        assert_eq!(sifted.message.unwrap(), nothing);
        assert!(sifted.learnt.is_empty());
        sifted.refused
    };
    assert!(matches!(&refuses(&[(id.clone(), "entry", &forged, 8, 0)])[..], [Refused::Entry(_, EntryError::OtherNode { .. })]));
    // A genuine entry under a version that would shut out the real ones, of another life, or as something else.
    assert!(matches!(&refuses(&[(id.clone(), "entry", &genuine, u64::MAX, 0)])[..], [Refused::Mislabelled(_)]));
    let other_life = members::id(victim.credentials().id(), Incarnation(6));
    assert!(matches!(&refuses(&[(other_life, "entry", &genuine, 7, 0)])[..], [Refused::Mislabelled(_)]));
    let elsewhere = ChitchatId { gossip_advertise_addr: "192.0.2.66:1".parse().unwrap(), ..id.clone() };
    assert!(matches!(&refuses(&[(elsewhere, "entry", &genuine, 7, 0)])[..], [Refused::Mislabelled(_)]));
    assert!(matches!(&refuses(&[(id.clone(), "entry", &genuine, 7, 1)])[..], [Refused::State(_)]));
    assert!(matches!(&refuses(&[(id.clone(), "other", &genuine, 7, 0)])[..], [Refused::State(_)]));
    // Each false entry costs a signature's check; after a few the message is done with.
    let many: Vec<_> = (1..20).map(|n| (members::id(victim.credentials().id(), Incarnation(n)), "entry", &*forged, n, 0)).collect();
    assert_eq!(refuses(&many).len(), 4);

    // The genuine one passes through the same hands, and then its heartbeat cannot be driven beyond what it signed.
    let sifted = sift(&ack(&[(id.clone(), "entry", &genuine, 7, 0)]));
    assert_eq!(sifted.learnt.len(), 1);
    assert!(!sifted.answered, "an answer to it would be to nobody");
    let driven = sift(&syn(&[(id.clone(), u64::MAX, 7)])).message.unwrap();
    let honest = sift(&syn(&[(id, 70, 7)])).message.unwrap();
    assert_eq!(driven, honest);
}

#[test]
fn a_message_that_unpacks_beyond_its_bound_is_not_unpacked() {
    let block = zstd::bulk::compress(&[0; 60_000], 0).unwrap();
    let mut bytes = vec![0x53, 0xb0, 0, 2];
    for _ in 0..500 {
        bytes.push(1);
        (block.len() as u16).serialize(&mut bytes);
        bytes.extend_from_slice(&block);
    }
    assert!(bytes.len() < MAX_MESSAGE);
    let mut members = Members::new(node(Role::Bo, "bo-1"), Incarnation(1));
    let never = |_: &str| Err(EntryError::Signature);
    assert!(sieve::sift(&bytes, &"fo-1".parse().unwrap(), &mut members, never, Instant::now()).is_err());
}

#[test]
fn a_peer_that_floods_fills_nothing_and_silences_nobody() {
    let inlet = Inlet::default();
    let (loud, quiet) = (node(Role::Fo, "fo-1"), node(Role::Fo, "fo-2"));
    let now = Instant::now();
    for _ in 0..1000 {
        inlet.take(loud.clone(), vec![0], now);
    }
    inlet.take(quiet.clone(), vec![0], now);
    inlet.take(quiet, vec![0; MAX_MESSAGE + 1], now);
    assert_eq!(inlet.0.waiting.lock().len(), BURST as usize + 1);
    assert_eq!(inlet.0.dropped.load(Ordering::Relaxed), u64::from(1000 - BURST) + 1);
    inlet.take(loud, vec![0], now + Duration::from_secs(1));
    assert_eq!(inlet.0.waiting.lock().len(), BURST as usize + 2, "what it was owed meanwhile");
}

// ---- nodes in memory ----

/// A node whose links are calls.
struct Near {
    id: NodeId,
    address: SocketAddr,
    linked: Mutex<Vec<Arc<Near>>>,
    inlet: Inlet,
    known: tokio::sync::watch::Sender<BTreeMap<NodeName, Vec<SocketAddr>>>,
    me: Weak<Near>,
}

impl Near {
    fn new(id: NodeId, port: u16) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            id,
            address: SocketAddr::from(([127, 0, 0, 1], port)),
            linked: Mutex::default(),
            inlet: Inlet::default(),
            known: Default::default(),
            me: me.clone(),
        })
    }

    fn link(self: &Arc<Self>, other: &Arc<Self>) {
        self.linked.lock().push(other.clone());
        other.linked.lock().push(self.clone());
    }
}

impl World for Near {
    fn linked(&self) -> Vec<NodeId> {
        self.linked.lock().iter().map(|near| near.id.clone()).collect()
    }

    fn send(&self, to: &NodeName, message: Vec<u8>) {
        let me = self.me.upgrade().unwrap();
        if let Some(near) = self.linked.lock().iter().find(|near| near.id.name == *to) {
            near.inlet.take(me.id.clone(), message, tokio::time::Instant::now().into_std());
        }
    }

    fn heard(&self, node: &NodeId, _: Incarnation, addresses: Vec<SocketAddr>) {
        self.known.send_modify(|known| drop(known.insert(node.name.clone(), addresses)));
    }

    fn unheard(&self, node: &NodeName) {
        self.known.send_modify(|known| drop(known.remove(node)));
    }

    fn about(&self) -> About {
        About { addresses: vec![self.address], ..about() }
    }
}

fn start(near: &Arc<Near>, tls: Arc<Tls>, incarnation: u64) -> tokio::task::JoinHandle<()> {
    let every = Duration::from_millis(50);
    let gossip = Gossip::new(near.clone(), tls, near.inlet.clone(), near.id.clone(), Incarnation(incarnation), every);
    tokio::spawn(async move { gossip.run(&Vitals::new("gossip", Kind::Worker, Duration::from_secs(2))).await })
}

async fn hears(near: &Arc<Near>, of: &Arc<Near>) {
    let mut known = near.known.subscribe();
    let told = known.wait_for(|known| known.get(&of.id.name).is_some_and(|addresses| *addresses == [of.address]));
    let told = tokio::time::timeout(Duration::from_secs(20), told).await.is_ok();
    assert!(told, "{} has not heard of {}: {:?}", near.id.name, of.id.name, near.known.borrow());
}

#[tokio::test]
async fn a_node_is_learnt_through_one_that_knows_it() {
    let cluster = Cluster::new("shop");
    let names = [(Role::Bo, "bo-1"), (Role::Bo, "bo-2"), (Role::Fo, "fo-1"), (Role::Fo, "fo-2")];
    let nodes: Vec<_> = (7000..).zip(names).map(|(port, (role, name))| Near::new(cluster.id(role, name), port)).collect();
    let [hub, others @ ..] = &nodes[..] else { unreachable!() };
    others.iter().for_each(|other| hub.link(other));
    let tasks: Vec<_> = nodes.iter().zip(names).map(|(near, (role, name))| start(near, tls(&cluster, role, name), 1)).collect();
    for near in &nodes {
        for of in nodes.iter().filter(|of| of.id != near.id) {
            hears(near, of).await;
        }
    }
    let limit = Instant::now() + Duration::from_secs(20);
    let mut digests = hub.inlet.digests();
    while digests.len() < others.len() && Instant::now() < limit {
        tokio::time::sleep(Duration::from_millis(5)).await;
        digests = hub.inlet.digests();
    }
    assert_eq!(digests.len(), others.len());
    assert!(digests.values().all(|digest| *digest == about().tree));
    tasks.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn an_engine_that_is_started_again_is_heard_at_once() {
    let cluster = Cluster::new("shop");
    let (one, two) = (Near::new(cluster.id(Role::Bo, "bo-1"), 7000), Near::new(cluster.id(Role::Bo, "bo-2"), 7001));
    one.link(&two);
    let (tls_one, tls_two) = (tls(&cluster, Role::Bo, "bo-1"), tls(&cluster, Role::Bo, "bo-2"));
    let _one = start(&one, tls_one, 1);
    let task = start(&two, tls_two.clone(), 2);
    hears(&one, &two).await;
    task.abort();
    let _ = task.await;
    one.known.send_modify(BTreeMap::clear);
    // The same life: a worker that was restarted, not a node.
    let _two = start(&two, tls_two, 2);
    hears(&one, &two).await;
    hears(&two, &one).await;
}

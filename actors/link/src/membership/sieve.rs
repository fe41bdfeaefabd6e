//! What of a peer's gossip reaches the engine: nothing but what the nodes it is about signed themselves.
//!
//! chitchat believes its peers: whoever may send to it may add nodes without end, set any node's heartbeat
//! or version so high that the real ones are ignored, and send 65 kB that unpack to 240 MB. So a message is
//! taken apart here, each statement is checked, and the engine gets a new message of what is left:
//! - Of a digest: nodes that are known, with a heartbeat no higher than they signed.
//! - Of a delta: for each node its one value, an [`Entry`] that verifies and whose sequence is the value's
//!   version, so that no other version can be claimed for it.
//!
//! The format is that of chitchat 0.11 (`message.rs`, `digest.rs`, `delta.rs`, `serialize.rs` there).

use std::time::Instant;

use chitchat::{ChitchatId, ChitchatMessage, Deserializable, Serializable};
use horos_wire::NodeName;

use super::{
    entry::{Entry, EntryError},
    members::{self, Members},
};

/// The one key of a node's state.
pub(super) const KEY: &str = "entry";
/// Longest delta once unpacked: as many entries as fit in a message, and then some.
const MAX_UNPACKED: usize = 256 * 1024;
/// chitchat's largest block, unpacked.
const MAX_BLOCK: usize = u16::MAX as usize;
/// Entries of one message that may turn out false; the rest is not looked at, since each costs a signature's check.
const MAX_FALSE: usize = 4;

const MAGIC: u16 = 45_139;
const VERSION: u8 = 0;
const SYN: u8 = 0;
const SYN_ACK: u8 = 1;
const ACK: u8 = 2;
const NO_MORE_BLOCKS: u8 = 0;
const COMPRESSED: u8 = 1;
const UNCOMPRESSED: u8 = 2;
const NODE: u8 = 0;
const KEY_VALUE: u8 = 1;
const SET_MAX_VERSION: u8 = 2;
const SET: u8 = 0;

/// Not a message of the engine.
#[derive(Debug, thiserror::Error)]
#[error("it is no gossip message of this version")]
pub(super) struct Malformed;

/// What is left of a message.
#[derive(Debug)]
pub(super) struct Sifted {
    /// For the engine; none where nothing is left.
    pub(super) message: Option<ChitchatMessage>,
    /// Whether the sender awaits the engine's answer.
    pub(super) answered: bool,
    /// Entries that are news.
    pub(super) learnt: Vec<Entry>,
    /// Statements left out, and why the first was.
    pub(super) refused: Vec<Refused>,
}

/// A statement left out because it was false.
#[derive(Debug)]
pub(super) enum Refused {
    /// The entry does not count.
    Entry(Box<str>, EntryError),
    /// The entry is another life's or another version's than the value that carries it.
    Mislabelled(Box<str>),
    /// Not what a node's state consists of.
    State(Box<str>),
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Entry(about, why) => write!(f, "entry of {about}: {why}"),
            Self::Mislabelled(about) => write!(f, "entry of {about}: it is that of another life or version"),
            Self::State(about) => write!(f, "state of {about}: it holds something else than one entry"),
        }
    }
}

/// Takes a message that came on the link of `from` apart; see the [module](self). `open` checks an entry.
pub(super) fn sift(
    mut message: &[u8],
    from: &NodeName,
    members: &mut Members,
    open: impl Fn(&str) -> Result<Entry, EntryError>,
    now: Instant,
) -> Result<Sifted, Malformed> {
    let mut rebuilt = Vec::with_capacity(message.len());
    let bytes = &mut message;
    if read::<u16>(bytes)? != MAGIC || read::<u8>(bytes)? != VERSION {
        return Err(Malformed);
    }
    let kind = read::<u8>(bytes)?;
    let claims = if kind == SYN || kind == SYN_ACK { read_digest(bytes)? } else { Vec::new() };
    let mut sifted = Sifted { message: None, answered: kind != ACK, learnt: Vec::new(), refused: Vec::new() };
    MAGIC.serialize(&mut rebuilt);
    rebuilt.push(VERSION);
    match kind {
        SYN => {
            let cluster = read::<String>(bytes)?;
            if cluster != members.me().cluster.as_str() {
                return Err(Malformed);
            }
            rebuilt.push(SYN);
            write_digest(&mut rebuilt, claims.iter().filter_map(|claim| believed(claim, from, members)));
            cluster.serialize(&mut rebuilt);
        }
        SYN_ACK | ACK => {
            let (values, new) = sift_delta(&unpack(bytes)?, members, open, now, &mut sifted)?;
            // The engine takes values only of nodes that a digest made known to it, and an `Ack` carries none.
            if kind == ACK && new.is_empty() {
                rebuilt.push(ACK);
            } else {
                rebuilt.push(SYN_ACK);
                let added = new.into_iter().filter(|(id, ..)| !claims.iter().any(|(claimed, ..)| claimed == id)).collect::<Vec<_>>();
                let known = claims.iter().filter_map(|claim| believed(claim, from, members));
                write_digest(&mut rebuilt, known.chain(added));
            }
            pack(&mut rebuilt, &values);
        }
        // `BadCluster` would only be logged; the certificate has settled the cluster.
        _ => return Err(Malformed),
    }
    sifted.message = Some(ChitchatMessage::deserialize(&mut &*rebuilt).map_err(|_| Malformed)?);
    Ok(sifted)
}

/// A node's life, its heartbeat and the version of its state.
type Claim = (ChitchatId, u64, u64);

fn believed((id, beat, version): &Claim, from: &NodeName, members: &Members) -> Option<Claim> {
    Some((id.clone(), members.believed(id, from, *beat)?, *version))
}

fn read<T: Deserializable>(bytes: &mut &[u8]) -> Result<T, Malformed> {
    T::deserialize(bytes).map_err(|_| Malformed)
}

fn read_digest(bytes: &mut &[u8]) -> Result<Vec<Claim>, Malformed> {
    let count = read::<u16>(bytes)?;
    let mut claims = Vec::new();
    for _ in 0..count {
        let id = read(bytes)?;
        let beat = read::<u64>(bytes)?;
        // The version of the last collected tombstone: nothing is ever deleted from a state here.
        let _: u64 = read(bytes)?;
        claims.push((id, beat, read(bytes)?));
    }
    Ok(claims)
}

fn write_digest(into: &mut Vec<u8>, claims: impl Iterator<Item = Claim>) {
    let claims: Vec<_> = claims.take(members::MAX_MEMBERS + 1).collect();
    (claims.len() as u16).serialize(into);
    for (id, beat, version) in claims {
        id.serialize(into);
        beat.serialize(into);
        0u64.serialize(into);
        version.serialize(into);
    }
}

/// The operations of a delta, unpacked.
fn unpack(bytes: &mut &[u8]) -> Result<Vec<u8>, Malformed> {
    let mut unpacked = Vec::new();
    let mut block = Vec::new();
    loop {
        let kind = read::<u8>(bytes)?;
        if kind == NO_MORE_BLOCKS {
            return Ok(unpacked);
        }
        let length = read::<u16>(bytes)? as usize;
        let (content, rest) = bytes.split_at_checked(length).ok_or(Malformed)?;
        *bytes = rest;
        match kind {
            COMPRESSED => {
                block.resize(MAX_BLOCK, 0);
                let length = zstd::bulk::decompress_to_buffer(content, &mut block).map_err(|_| Malformed)?;
                unpacked.extend_from_slice(&block[..length]);
            }
            UNCOMPRESSED => unpacked.extend_from_slice(content),
            _ => return Err(Malformed),
        }
        if unpacked.len() > MAX_UNPACKED {
            return Err(Malformed);
        }
    }
}

fn pack(into: &mut Vec<u8>, operations: &[u8]) {
    for block in operations.chunks(16 * 1024) {
        into.push(UNCOMPRESSED);
        (block.len() as u16).serialize(into);
        into.extend_from_slice(block);
    }
    into.push(NO_MORE_BLOCKS);
}

/// One node's part of a delta.
struct State {
    id: ChitchatId,
    /// Its one value and the version; none once there was anything else.
    value: Option<(String, u64)>,
    odd: bool,
}

/// The values that hold, as operations, and the lives among them that are new to the engine.
fn sift_delta(
    mut operations: &[u8],
    members: &mut Members,
    open: impl Fn(&str) -> Result<Entry, EntryError>,
    now: Instant,
    sifted: &mut Sifted,
) -> Result<(Vec<u8>, Vec<Claim>), Malformed> {
    let (mut values, mut new) = (Vec::new(), Vec::new());
    let bytes = &mut operations;
    let mut state: Option<State> = None;
    while !bytes.is_empty() {
        match read::<u8>(bytes)? {
            NODE => {
                let id = read(bytes)?;
                let (_, _): (u64, u64) = (read(bytes)?, read(bytes)?);
                if let Some(done) = state.replace(State { id, value: None, odd: false }) {
                    judge(done, members, &open, now, sifted, &mut values, &mut new);
                }
            }
            KEY_VALUE => {
                let (key, value, version): (String, String, u64) = (read(bytes)?, read(bytes)?, read(bytes)?);
                let status = read::<u8>(bytes)?;
                let state = state.as_mut().ok_or(Malformed)?;
                state.odd |= key != KEY || status != SET || state.value.is_some();
                state.value = Some((value, version));
            }
            SET_MAX_VERSION => {
                let _: u64 = read(bytes)?;
                state.as_mut().ok_or(Malformed)?.odd = true;
            }
            _ => return Err(Malformed),
        }
        if sifted.refused.len() >= MAX_FALSE {
            return Ok((values, new));
        }
    }
    if let Some(done) = state {
        judge(done, members, &open, now, sifted, &mut values, &mut new);
    }
    Ok((values, new))
}

fn judge(
    state: State,
    members: &mut Members,
    open: impl Fn(&str) -> Result<Entry, EntryError>,
    now: Instant,
    sifted: &mut Sifted,
    values: &mut Vec<u8>,
    new: &mut Vec<Claim>,
) {
    let State { id, value, odd } = state;
    let about = || id.node_id.chars().take(2 * horos_wire::address::MAX_NAME).collect();
    if odd {
        sifted.refused.push(Refused::State(about()));
        return;
    }
    let Some((value, version)) = value.filter(|(_, version)| members.is_news(&id, *version)) else { return };
    let entry = match open(&value) {
        Ok(entry) => entry,
        Err(why) => {
            sifted.refused.push(Refused::Entry(about(), why));
            return;
        }
    };
    if members::id(&entry.node, entry.incarnation) != id || entry.sequence != version {
        sifted.refused.push(Refused::Mislabelled(about()));
        return;
    }
    let beat = entry.beat;
    let Ok(unknown) = members.learn(entry.clone(), now) else { return };
    sifted.learnt.push(entry);
    if unknown {
        new.push((id.clone(), beat, version));
    }
    values.push(NODE);
    id.serialize(values);
    // From nothing: the one value is the whole state.
    0u64.serialize(values);
    0u64.serialize(values);
    values.push(KEY_VALUE);
    KEY.serialize(values);
    value.serialize(values);
    version.serialize(values);
    values.push(SET);
}

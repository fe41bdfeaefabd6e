//! The deny list: certificates that no longer count although their dates say so.
//!
//! One list for the whole cluster, whole every time, signed by the authority, numbered upwards. Any node
//! may hand it to any other: what it says does not depend on who brought it. A node takes a list only when
//! the authority signed it for this cluster and its number is higher than that of the one it has.
//!
//! [`DenyList`] is shared by the TLS verifiers, which look at every handshake, and by the sessions, which
//! wait for [`DenyList::subscribe`] and look at their peer again.
//!
//! The text, one spelling only (it is signed as it stands, up to the last line):
//! ```text
//! horos-deny-list 1
//! cluster shop
//! number 1795262400
//! issued 2026-11-21T12:00:00Z
//! serial 0c5e…32 digits until 2027-02-19T12:00:00Z spiffe://shop/fo/fo-1
//! fingerprint 77ab…64 digits until 2036-11-21T12:00:00Z -
//! signature 3045…DER of an ECDSA P-256 signature over SHA-256, hexadecimal
//! ```
//! No X.509 structure starts with an `h`, so the authority's key never signs a text that is also a certificate.

use std::{collections::HashMap, path::Path, sync::Arc};

use arc_swap::ArcSwap;
use horos_wire::{ClusterName, NodeId};
use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::{
    DENIED, Fingerprint, PeerIdentity, Serial,
    credentials::Trust,
    files::{self, FileError},
    signature,
};

/// Largest deny list, in bytes: some 7,000 certificates revoked before their time, far more than a cluster
/// has, and small enough to be handed around whole.
pub const MAX_DENY_LIST: usize = 1024 * 1024;

const HEADER: &str = "horos-deny-list 1";

/// Why a deny list was not taken. The one in force stays.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DenyError {
    /// Not the format described in [`self`](crate::identity::revocation).
    #[error("the deny list cannot be read at line {0}; take it from the authority's directory again")]
    Malformed(usize),
    /// Longer than [`MAX_DENY_LIST`].
    #[error("the deny list would be longer than {MAX_DENY_LIST} bytes")]
    TooLong,
    /// Not signed by this cluster's authority, or altered since.
    #[error("the deny list is not signed by this cluster's authority, or was altered; take it from the authority's directory again")]
    NotSigned,
    /// Another cluster's.
    #[error("the deny list is that of cluster {0}")]
    OtherCluster(ClusterName),
    /// Older than the one in force: whoever offered it should take ours.
    #[error("deny list {offered} is older than {current}, which is in force")]
    Older {
        /// The number offered.
        offered: u64,
        /// The number in force.
        current: u64,
    },
    /// Two different lists with one number. The authority never does that; its key may be in two hands.
    #[error("two different deny lists are numbered {0}: was the authority's directory copied? Sign a new one on the authority's machine")]
    Forked(u64),
    /// The list in force could not be written to disk: it holds until this node restarts.
    #[error(transparent)]
    File(#[from] FileError),
    /// The library refused to sign.
    #[error("cannot sign the deny list")]
    Sign(#[source] rcgen::Error),
}

/// What an entry denies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Denied {
    /// The certificate with this serial number.
    Serial(Serial),
    /// The certificate with this fingerprint.
    Fingerprint(Fingerprint),
}

/// A line of the list.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// What no longer counts.
    pub what: Denied,
    /// When it would have expired, after which the entry may leave the list.
    pub until: Timestamp,
    /// Whose it is, where the authority knew.
    pub id: Option<NodeId>,
}

/// A deny list whose signature has been checked.
#[derive(Clone, Debug)]
pub struct SignedList {
    text: Arc<str>,
    number: u64,
    issued: Timestamp,
    entries: Vec<Entry>,
    index: HashMap<Denied, usize>,
}

/// What a list says, before its signature was looked at.
#[derive(Debug, PartialEq, Eq)]
struct Unsigned {
    cluster: ClusterName,
    number: u64,
    issued: Timestamp,
    entries: Vec<Entry>,
}

impl SignedList {
    /// Reads a list and checks that the authority signed it for this cluster.
    ///
    /// # Errors
    /// [`DenyError::Malformed`], [`DenyError::NotSigned`], [`DenyError::OtherCluster`], [`DenyError::TooLong`].
    pub fn verify(text: &str, trust: &Trust) -> Result<Self, DenyError> {
        let (list, signature) = Unsigned::parse(text)?;
        let body = list.render();
        // Parsing forgives nothing that rendering would spell otherwise.
        if !text.starts_with(&body) {
            return Err(DenyError::Malformed(1));
        }
        if !trust.keys().iter().any(|key| signature::verify(key, body.as_bytes(), &signature)) {
            return Err(DenyError::NotSigned);
        }
        if list.cluster != *trust.cluster() {
            return Err(DenyError::OtherCluster(list.cluster));
        }
        let index = list.entries.iter().enumerate().map(|(at, entry)| (entry.what, at)).collect();
        Ok(Self { text: text.into(), number: list.number, issued: list.issued, entries: list.entries, index })
    }

    pub(crate) fn sign(
        cluster: &ClusterName,
        number: u64,
        issued: Timestamp,
        mut entries: Vec<Entry>,
        sign: impl FnOnce(&[u8]) -> Result<Vec<u8>, rcgen::Error>,
    ) -> Result<String, DenyError> {
        entries.sort();
        entries.dedup_by(|a, b| a.what == b.what);
        let whole = |t: Timestamp| Timestamp::from_second(t.as_second()).unwrap_or(t);
        for entry in &mut entries {
            entry.until = whole(entry.until);
        }
        let mut text = Unsigned { cluster: cluster.clone(), number, issued: whole(issued), entries }.render();
        let signature = sign(text.as_bytes()).map_err(DenyError::Sign)?;
        text.push_str(&format!("signature {}\n", hex::encode(signature)));
        if text.len() > MAX_DENY_LIST {
            return Err(DenyError::TooLong);
        }
        Ok(text)
    }

    /// Its number; a higher one is newer.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// When the authority signed it.
    pub fn issued(&self) -> Timestamp {
        self.issued
    }

    /// What it denies.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The signed text: what other nodes are given.
    pub fn text(&self) -> &Arc<str> {
        &self.text
    }

    fn find(&self, serial: Serial, fingerprint: Fingerprint) -> Option<&Entry> {
        let at = self.index.get(&Denied::Serial(serial)).or_else(|| self.index.get(&Denied::Fingerprint(fingerprint)))?;
        self.entries.get(*at)
    }
}

impl Unsigned {
    fn render(&self) -> String {
        let mut text = format!("{HEADER}\ncluster {}\nnumber {}\nissued {}\n", self.cluster, self.number, self.issued);
        for Entry { what, until, id } in &self.entries {
            let (kind, digits) = match what {
                Denied::Serial(serial) => ("serial", serial.to_string()),
                Denied::Fingerprint(fingerprint) => ("fingerprint", fingerprint.to_string()),
            };
            let id = id.as_ref().map_or_else(|| "-".to_owned(), NodeId::to_uri);
            text.push_str(&format!("{kind} {digits} until {until} {id}\n"));
        }
        text
    }

    /// The list and the bytes of its signature.
    fn parse(text: &str) -> Result<(Self, Vec<u8>), DenyError> {
        if text.len() > MAX_DENY_LIST {
            return Err(DenyError::TooLong);
        }
        let mut lines = text.lines().enumerate().map(|(at, line)| (at + 1, line));
        let mut field = |name: &str| {
            let (at, line) = lines.next().ok_or(DenyError::Malformed(0))?;
            let value = line.strip_prefix(name).and_then(|rest| rest.strip_prefix(' ')).ok_or(DenyError::Malformed(at))?;
            Ok::<_, DenyError>((at, value))
        };
        let (name, version) = HEADER.split_once(' ').unwrap_or((HEADER, ""));
        match field(name)? {
            (_, found) if found == version => {}
            (at, _) => return Err(DenyError::Malformed(at)),
        }
        let (at, value) = field("cluster")?;
        let cluster = value.parse().map_err(|_| DenyError::Malformed(at))?;
        let (at, value) = field("number")?;
        let number = value.parse().map_err(|_| DenyError::Malformed(at))?;
        let (at, value) = field("issued")?;
        let issued = value.parse().map_err(|_| DenyError::Malformed(at))?;
        let mut list = Self { cluster, number, issued, entries: Vec::new() };
        for (at, line) in &mut lines {
            if let Some(digits) = line.strip_prefix("signature ") {
                let signature = hex::decode(digits).map_err(|_| DenyError::Malformed(at))?;
                let ends_here = text.ends_with(&format!("{line}\n")) && lines.next().is_none();
                return if ends_here { Ok((list, signature)) } else { Err(DenyError::Malformed(at)) };
            }
            list.entries.push(Entry::parse(line).ok_or(DenyError::Malformed(at))?);
        }
        Err(DenyError::NotSigned)
    }
}

impl Entry {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        let what = match (words.next()?, words.next()?) {
            ("serial", digits) => Denied::Serial(digits.parse().ok()?),
            ("fingerprint", digits) => Denied::Fingerprint(digits.parse().ok()?),
            _ => return None,
        };
        if words.next()? != "until" {
            return None;
        }
        let until = words.next()?.parse().ok()?;
        let id = match words.next()? {
            "-" => None,
            uri => Some(NodeId::from_uri(uri).ok()?),
        };
        words.next().is_none().then_some(Self { what, until, id })
    }
}

/// What became of a list that was offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Adopted {
    /// It is in force now, and everybody who subscribed knows.
    Newer,
    /// It is the one in force.
    Same,
}

/// The deny list in force on this node. Cheap to clone; all clones are one list.
#[derive(Clone, Debug)]
pub struct DenyList(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    current: ArcSwap<Option<SignedList>>,
    changed: watch::Sender<u64>,
    /// Held while one list takes another's place, so that of two offers at once the newer wins.
    turn: Mutex<()>,
}

impl Default for DenyList {
    fn default() -> Self {
        Self(Arc::new(Shared { current: ArcSwap::default(), changed: watch::Sender::new(0), turn: Mutex::new(()) }))
    }
}

impl DenyList {
    /// The list kept in a node's identity directory; an empty one where none is kept yet.
    ///
    /// # Errors
    /// A list that is there and does not verify is an error and not an empty list: deleting what is on it
    /// must not be as easy as damaging the file.
    pub fn load(directory: &Path, trust: &Trust) -> Result<Self, DenyError> {
        let list = Self::default();
        list.refresh(directory, trust)?;
        Ok(list)
    }

    /// Takes the list that stands in a node's identity directory, if it is newer: somebody may have put it
    /// there by hand. Blocks on the disk.
    ///
    /// # Errors
    /// [`DenyError`]; the list in force stays.
    pub fn refresh(&self, directory: &Path, trust: &Trust) -> Result<(), DenyError> {
        let text = match files::read(&directory.join(DENIED), MAX_DENY_LIST as u64) {
            Ok(text) => text,
            Err(error) if error.is_missing() => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        match self.adopt(&text, trust) {
            Ok(_) | Err(DenyError::Older { .. }) => Ok(()), // learnt a newer one from a peer meanwhile
            Err(error) => Err(error),
        }
    }

    /// Puts a list that somebody offered in force, if it is signed and newer. In memory, at once;
    /// [`Self::keep`] makes it last.
    ///
    /// # Errors
    /// [`DenyError`]; the list in force stays.
    pub fn adopt(&self, text: &str, trust: &Trust) -> Result<Adopted, DenyError> {
        let list = SignedList::verify(text, trust)?;
        let _turn = self.0.turn.lock();
        if let Some(current) = self.0.current.load().as_ref() {
            match list.number.cmp(&current.number) {
                std::cmp::Ordering::Less => return Err(DenyError::Older { offered: list.number, current: current.number }),
                // Signatures are randomised: the same list signed twice is the same list.
                std::cmp::Ordering::Equal if list.entries == current.entries => return Ok(Adopted::Same),
                std::cmp::Ordering::Equal => return Err(DenyError::Forked(list.number)),
                std::cmp::Ordering::Greater => {}
            }
        }
        let number = list.number;
        self.0.current.store(Arc::new(Some(list)));
        self.0.changed.send_replace(number);
        Ok(Adopted::Newer)
    }

    /// Writes the list in force into a node's identity directory. Blocks on the disk.
    ///
    /// # Errors
    /// [`DenyError::File`]: the list stays in force, but a restart would forget it.
    pub fn keep(&self, directory: &Path) -> Result<(), DenyError> {
        let _turn = self.0.turn.lock(); // two at once would leave whichever was slower on disk
        match self.0.current.load().as_ref() {
            Some(list) => Ok(files::replace(&directory.join(DENIED), files::PRIVATE, &list.text)?),
            None => Ok(()),
        }
    }

    /// The entry that denies `peer`, if there is one.
    pub fn denies(&self, peer: &PeerIdentity) -> Option<Entry> {
        self.0.current.load().as_ref().as_ref()?.find(peer.serial, peer.fingerprint).cloned()
    }

    /// The number of the list in force; 0 before there was one.
    pub fn number(&self) -> u64 {
        self.0.current.load().as_ref().as_ref().map_or(0, SignedList::number)
    }

    /// The text of the list in force, for nodes that have an older one.
    pub fn text(&self) -> Option<Arc<str>> {
        self.0.current.load().as_ref().as_ref().map(|list| list.text.clone())
    }

    /// Wakes whenever another list is in force; the value is its number.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.0.changed.subscribe()
    }
}

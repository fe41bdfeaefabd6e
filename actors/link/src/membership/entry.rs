//! What a node says of itself, signed with the key of its certificate, so that whoever passes it on can
//! neither change it nor make one up.
//!
//! The text, one spelling only (it is signed as it stands, up to the last line):
//! ```text
//! horos-entry 1
//! node spiffe://shop/bo/bo-1
//! incarnation 00c0ffee00c0ffee
//! issued 1795262400000
//! sequence 7
//! beat 42
//! ready yes
//! addresses 192.0.2.1:7600 [2001:db8::1]:7600
//! protocols ledger/1 stock/2
//! tree 0 3 0 0 0 0 9f86d081884c7d65
//! certificate 3082…DER, hexadecimal
//! signature 3045…DER of an ECDSA P-256 signature over SHA-256, hexadecimal
//! ```

use std::{fmt::Write, net::SocketAddr, time::Duration};

use horos_wire::{Incarnation, NodeId};
use jiff::Timestamp;
use rustls_pki_types::CertificateDer;
use x509_parser::{certificate::X509Certificate, prelude::FromDer};

use crate::{
    identity::{Credentials, Validity, signature},
    tls::{PeerRefused, Tls, verify_holder},
};

/// Longest entry, in bytes: a certificate takes under 2 KiB in hexadecimal, the rest under 2 KiB with every list full.
pub(super) const MAX_ENTRY: usize = 6 * 1024;
/// Addresses in an entry; each is a place that others will send packets to.
pub(super) const MAX_ADDRESSES: usize = 4;
/// Protocols in an entry; a node that offers more is asked.
pub(super) const MAX_PROTOCOLS: usize = 16;
/// Longest name of a protocol with its version; one that is longer is left out.
const MAX_PROTOCOL: usize = 80;
/// How old an entry may be. A living node signs a new one every [`super::RENEW`]; the rest is for clocks.
pub(super) const MAX_AGE: Duration = Duration::from_secs(600);

const HEADER: &str = "horos-entry 1";

/// A node's services, counted: enough to see that something is wrong, and whether anything changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TreeDigest {
    /// Services by state: starting, running, stuck, restarting, stopped, failed.
    pub states: [u32; 6],
    /// Differs when a service, its protocol or its state does.
    pub hash: u64,
}

/// What a node tells of itself besides who it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct About {
    pub(super) ready: bool,
    pub(super) addresses: Vec<SocketAddr>,
    pub(super) protocols: Vec<Box<str>>,
    pub(super) tree: TreeDigest,
}

impl About {
    /// Within an entry's bounds, and spelt in one way.
    pub(super) fn bounded(mut self) -> Self {
        self.addresses.retain(|address| dialable(*address));
        self.addresses.truncate(MAX_ADDRESSES);
        self.protocols.retain(|protocol| is_protocol(protocol));
        self.protocols.sort();
        self.protocols.dedup();
        self.protocols.truncate(MAX_PROTOCOLS);
        self
    }
}

/// A node's entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) node: NodeId,
    pub(super) incarnation: Incarnation,
    /// Orders the lives of a node, whose incarnations are random.
    pub(super) issued: Timestamp,
    /// Orders the entries of one life; the version of the value that carries it.
    pub(super) sequence: u64,
    /// The node's heartbeat when it signed: the most that others may claim for it.
    pub(super) beat: u64,
    pub(super) about: About,
}

/// Why an entry does not count.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(super) enum EntryError {
    /// Longer than [`MAX_ENTRY`].
    #[error("it is longer than {MAX_ENTRY} bytes")]
    TooLong,
    /// Not the format described in [`self`](crate::membership::entry).
    #[error("it cannot be read at line {0}")]
    Malformed(usize),
    /// The certificate in it is not one that a peer could show.
    #[error("its certificate: {0}")]
    Certificate(#[from] PeerRefused),
    /// Somebody speaks for somebody else.
    #[error("it is about {} and signed by {}", .about.to_uri(), .signer.to_uri())]
    OtherNode {
        /// Whom it is about.
        about: Box<NodeId>,
        /// Whose certificate it carries.
        signer: Box<NodeId>,
    },
    /// Altered, or signed with another key.
    #[error("its signature is not that of its certificate's key")]
    Signature,
    /// Too old, or from the future.
    #[error("it was issued at {0}, which is too old or in the future by this machine's clock")]
    Clock(Timestamp),
}

impl Entry {
    /// The entry as it travels; `None` where these credentials cannot sign it.
    pub(super) fn seal(&self, credentials: &Credentials) -> Option<String> {
        let mut text = self.render(credentials.certificate()?);
        let signature = credentials.sign(text.as_bytes())?;
        let _ = writeln!(text, "signature {}", hex::encode(signature));
        (text.len() <= MAX_ENTRY).then_some(text)
    }

    /// Reads an entry that anybody may have brought, and believes it only for what its own subject signed.
    ///
    /// # Errors
    /// [`EntryError`] says why it does not count.
    pub(super) fn open(text: &str, tls: &Tls, now: Timestamp) -> Result<Self, EntryError> {
        let (entry, certificate, signature) = Self::parse(text)?;
        let body = entry.render(&certificate);
        // Parsing forgives nothing that rendering would spell otherwise.
        if text.strip_prefix(&body).is_none_or(|rest| rest != format!("signature {}\n", hex::encode(&signature))) {
            return Err(EntryError::Malformed(1));
        }
        let age = now.duration_since(entry.issued);
        if age > MAX_AGE.try_into().unwrap_or(jiff::SignedDuration::MAX)
            || -age > Validity::BACKDATE.try_into().unwrap_or(jiff::SignedDuration::MAX)
        {
            return Err(EntryError::Clock(entry.issued));
        }
        let signer = verify_holder(&certificate, tls.credentials().trust(), now)?;
        if signer.id != entry.node {
            return Err(EntryError::OtherNode { about: Box::new(entry.node), signer: Box::new(signer.id) });
        }
        tls.still_admits(&signer, now)?;
        let spki = X509Certificate::from_der(&certificate).map(|(_, parsed)| parsed.public_key().raw.to_vec());
        if !spki.is_ok_and(|spki| signature::verify(&spki, body.as_bytes(), &signature)) {
            return Err(EntryError::Signature);
        }
        Ok(entry)
    }

    fn render(&self, certificate: &CertificateDer<'_>) -> String {
        let About { ready, addresses, protocols, tree } = &self.about;
        let mut text = format!(
            "{HEADER}\nnode {}\nincarnation {}\nissued {}\nsequence {}\nbeat {}\nready {}\naddresses",
            self.node.to_uri(),
            self.incarnation,
            self.issued.as_millisecond(),
            self.sequence,
            self.beat,
            if *ready { "yes" } else { "no" },
        );
        // Writing into a string cannot fail.
        for address in addresses {
            let _ = write!(text, " {address}");
        }
        text.push_str("\nprotocols");
        for protocol in protocols {
            let _ = write!(text, " {protocol}");
        }
        text.push_str("\ntree");
        for count in tree.states {
            let _ = write!(text, " {count}");
        }
        let _ = writeln!(text, " {:016x}\ncertificate {}", tree.hash, hex::encode(certificate));
        text
    }

    /// The entry, its certificate and its signature, nothing of it proven.
    pub(super) fn parse(text: &str) -> Result<(Self, CertificateDer<'static>, Vec<u8>), EntryError> {
        if text.len() > MAX_ENTRY {
            return Err(EntryError::TooLong);
        }
        let mut lines = Lines { lines: text.lines(), at: 0 };
        let version = lines.field("horos-entry")?;
        lines.check((version == "1").then_some(()))?;
        let node = lines.field("node")?;
        let node = lines.check(NodeId::from_uri(node).ok().filter(|node| node.role.is_node()))?;
        let incarnation = lines.field("incarnation")?;
        let incarnation = Incarnation(lines.check(u64::from_str_radix(incarnation, 16).ok())?);
        let issued = lines.number("issued")?;
        let issued = lines.check(i64::try_from(issued).ok().and_then(|issued| Timestamp::from_millisecond(issued).ok()))?;
        let sequence = lines.number("sequence")?;
        let beat = lines.number("beat")?;
        let ready = match lines.field("ready")? {
            "yes" => true,
            "no" => false,
            _ => return Err(EntryError::Malformed(lines.at)),
        };
        let mut addresses = Vec::new();
        for word in lines.words("addresses")? {
            let address = word.parse().ok().filter(|address| addresses.len() < MAX_ADDRESSES && dialable(*address));
            addresses.push(lines.check(address)?);
        }
        let mut protocols: Vec<Box<str>> = Vec::new();
        for word in lines.words("protocols")? {
            let known = protocols.len() < MAX_PROTOCOLS && is_protocol(word);
            protocols.push(lines.check(known.then(|| word.into()))?);
        }
        let mut tree = TreeDigest::default();
        let mut counts = lines.words("tree")?;
        for state in &mut tree.states {
            *state = lines.check(counts.next().and_then(|count| count.parse().ok()))?;
        }
        tree.hash = lines.check(counts.next().and_then(|hash| u64::from_str_radix(hash, 16).ok()))?;
        let certificate = lines.field("certificate")?;
        let certificate = CertificateDer::from(lines.check(hex::decode(certificate).ok())?);
        let signature = lines.field("signature")?;
        let signature = lines.check(hex::decode(signature).ok())?;
        let entry = Self { node, incarnation, issued, sequence, beat, about: About { ready, addresses, protocols, tree } };
        Ok((entry, certificate, signature))
    }
}

/// Reads `name value` lines in their order.
struct Lines<'a> {
    lines: std::str::Lines<'a>,
    at: usize,
}

impl<'a> Lines<'a> {
    fn rest(&mut self, name: &str) -> Result<&'a str, EntryError> {
        self.at += 1;
        self.lines.next().and_then(|line| line.strip_prefix(name)).ok_or(EntryError::Malformed(self.at))
    }

    fn field(&mut self, name: &str) -> Result<&'a str, EntryError> {
        let rest = self.rest(name)?;
        self.check(rest.strip_prefix(' '))
    }

    fn words(&mut self, name: &str) -> Result<impl Iterator<Item = &'a str> + use<'a>, EntryError> {
        // An empty list ends its line after the name.
        Ok(self.rest(name)?.split(' ').skip(1))
    }

    fn number(&mut self, name: &str) -> Result<u64, EntryError> {
        let value = self.field(name)?;
        self.check(value.parse().ok())
    }

    fn check<T>(&self, value: Option<T>) -> Result<T, EntryError> {
        value.ok_or(EntryError::Malformed(self.at))
    }
}

/// Whether a packet sent there could reach one machine.
fn dialable(address: SocketAddr) -> bool {
    address.port() != 0 && !address.ip().is_unspecified() && !address.ip().is_multicast()
}

fn is_protocol(text: &str) -> bool {
    (1..=MAX_PROTOCOL).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}

//! What a certificate says: identity, serial number, fingerprint, validity. Parsing only; who signed
//! it is [`crate::tls`]'s question.

use std::{fmt, str::FromStr, time::Duration};

use horos_wire::{ClusterName, NodeId, address::AddressError};
use jiff::Timestamp;
use rustls_pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, prelude::FromDer};

/// A certificate's serial number. Ours are 128 random bits; another authority's longer one is no [`Serial`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Serial(pub u128);

/// SHA-256 of a certificate's DER.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fingerprint(pub [u8; 32]);

/// Why a text is no serial number or fingerprint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected {0} lower-case hexadecimal digits")]
pub struct HexError(usize);

impl Serial {
    /// A new serial number.
    pub(crate) fn random() -> Self {
        Self(rand::random::<u128>().max(1)) // RFC 5280 §4.1.2.2: positive
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Serial {
    type Err = HexError;
    fn from_str(text: &str) -> Result<Self, HexError> {
        if text.len() != 32 || !is_hex(text) {
            return Err(HexError(32));
        }
        u128::from_str_radix(text, 16).map(Self).map_err(|_| HexError(32))
    }
}

impl Fingerprint {
    /// The fingerprint of a certificate.
    pub fn of(certificate: &CertificateDer<'_>) -> Self {
        Self(Sha256::digest(certificate.as_ref()).into())
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Fingerprint {
    type Err = HexError;
    fn from_str(text: &str) -> Result<Self, HexError> {
        let mut bytes = [0; 32];
        if text.len() != 64 || !is_hex(text) || hex::decode_to_slice(text, &mut bytes).is_err() {
            return Err(HexError(64));
        }
        Ok(Self(bytes))
    }
}

/// One spelling a value, so that signed texts compare byte by byte.
fn is_hex(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'a'..=b'f'))
}

/// From when until when a certificate counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// The first second.
    pub not_before: Timestamp,
    /// The last second.
    pub not_after: Timestamp,
}

impl Validity {
    /// How far before its signing a certificate starts to count: two machines' clocks may differ by this
    /// much before a fresh certificate is refused as not yet valid.
    pub const BACKDATE: Duration = Duration::from_secs(300);
    /// Days a node's certificate counts.
    pub const NODE_DAYS: u32 = 90;
    /// Days an operator's or a viewer's certificate counts: it travels on laptops.
    pub const PERSON_DAYS: u32 = 30;
    /// Days the authority's certificate counts: ten years.
    pub const AUTHORITY_DAYS: u32 = 3653;

    /// From [`Self::BACKDATE`] before `now` until `days` after it, whole seconds.
    pub fn days(now: Timestamp, days: u32) -> Self {
        Self {
            not_before: now.saturating_sub(Self::BACKDATE).unwrap_or(Timestamp::MIN),
            not_after: now.saturating_add(Duration::from_secs(u64::from(days) * 86_400)).unwrap_or(Timestamp::MAX),
        }
        .whole_seconds()
    }

    /// Without the fractions of a second that a certificate has no room for.
    pub(crate) fn whole_seconds(self) -> Self {
        let whole = |t: Timestamp| Timestamp::from_second(t.as_second()).unwrap_or(t);
        Self { not_before: whole(self.not_before), not_after: whole(self.not_after) }
    }

    /// What a certificate of `id` gets unless the signer says otherwise.
    pub fn usual(now: Timestamp, id: &NodeId) -> Self {
        Self::days(now, if id.role.is_node() { Self::NODE_DAYS } else { Self::PERSON_DAYS })
    }
}

/// Why the names in a certificate or a request are no identity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// Not DER, or trailing bytes.
    #[error("it is no X.509 structure")]
    Der,
    /// The subject alternative names cannot be read, or are there twice.
    #[error("its subject alternative names are malformed")]
    Malformed,
    /// No URI among the names.
    #[error("it names no spiffe:// identity")]
    None,
    /// More than one URI: which one counts would be a matter of opinion.
    #[error("it names {0} identities where one must stand")]
    Several(usize),
    /// The URI is no identity.
    #[error(transparent)]
    Uri(#[from] AddressError),
    /// The serial number is longer than 128 bits.
    #[error("its serial number is longer than 128 bits")]
    Serial,
}

/// Whom a verified certificate names, and which certificate it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerIdentity {
    /// Cluster, role and name.
    pub id: NodeId,
    /// The certificate's serial number.
    pub serial: Serial,
    /// SHA-256 of the certificate.
    pub fingerprint: Fingerprint,
    /// When the certificate stops counting. Handshakes check it; who keeps a session open past it closes it.
    pub not_after: Timestamp,
}

/// What stands in a certificate, before anybody looked at its signature.
#[derive(Clone, Debug)]
pub(crate) struct Claims {
    pub(crate) id: Result<NodeId, NameError>,
    pub(crate) serial: Result<Serial, NameError>,
    pub(crate) not_before: Timestamp,
    pub(crate) not_after: Timestamp,
    pub(crate) self_issued: bool,
}

impl Claims {
    pub(crate) fn of(certificate: &CertificateDer<'_>) -> Result<Self, NameError> {
        let (rest, parsed) = X509Certificate::from_der(certificate.as_ref()).map_err(|_| NameError::Der)?;
        if !rest.is_empty() {
            return Err(NameError::Der);
        }
        let time = |t: x509_parser::time::ASN1Time| Timestamp::from_second(t.timestamp()).map_err(|_| NameError::Der);
        let id = match parsed.subject_alternative_name() {
            Ok(Some(names)) => identity(&names.value.general_names),
            Ok(None) => Err(NameError::None),
            Err(_) => Err(NameError::Malformed),
        };
        Ok(Self {
            id,
            serial: serial(parsed.raw_serial()),
            not_before: time(parsed.validity().not_before)?,
            not_after: time(parsed.validity().not_after)?,
            self_issued: parsed.subject().as_raw() == parsed.issuer().as_raw(),
        })
    }

    /// The identity, for a certificate whose signature has been checked.
    pub(crate) fn identity(self, certificate: &CertificateDer<'_>) -> Result<PeerIdentity, NameError> {
        Ok(PeerIdentity { id: self.id?, serial: self.serial?, fingerprint: Fingerprint::of(certificate), not_after: self.not_after })
    }
}

/// The one identity among `names`. Other kinds of names do not count and do not harm.
pub(crate) fn identity(names: &[GeneralName<'_>]) -> Result<NodeId, NameError> {
    Ok(NodeId::from_uri(only_uri(names)?)?)
}

/// The cluster an authority's certificate stands for: its one URI is `spiffe://cluster`, the trust domain
/// alone (SPIFFE X.509-SVID §3.1).
pub(crate) fn authority_cluster(certificate: &CertificateDer<'_>) -> Result<ClusterName, NameError> {
    let (rest, parsed) = X509Certificate::from_der(certificate.as_ref()).map_err(|_| NameError::Der)?;
    if !rest.is_empty() {
        return Err(NameError::Der);
    }
    let names = parsed.subject_alternative_name().map_err(|_| NameError::Malformed)?.ok_or(NameError::None)?;
    let uri = only_uri(&names.value.general_names)?;
    let cluster = uri.strip_prefix("spiffe://").ok_or_else(|| AddressError::Identity(uri.chars().take(100).collect()))?;
    Ok(ClusterName::new(cluster)?)
}

fn only_uri<'a>(names: &[GeneralName<'a>]) -> Result<&'a str, NameError> {
    if names.iter().any(|name| matches!(name, GeneralName::Invalid(..))) {
        return Err(NameError::Malformed); // it could be a second identity that another parser reads
    }
    let mut uris = names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    match (uris.next(), uris.count()) {
        (Some(uri), 0) => Ok(uri),
        (Some(_), more) => Err(NameError::Several(more + 1)),
        (None, _) => Err(NameError::None),
    }
}

fn serial(bytes: &[u8]) -> Result<Serial, NameError> {
    let significant = &bytes[bytes.iter().take_while(|b| **b == 0).count()..];
    let mut padded = [0; 16];
    let start = padded.len().checked_sub(significant.len()).ok_or(NameError::Serial)?;
    padded[start..].copy_from_slice(significant);
    Ok(Serial(u128::from_be_bytes(padded)))
}

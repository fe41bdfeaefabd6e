//! Why a peer was refused, in words for the log and in the alerts TLS has for it.

use std::{fmt, sync::Arc};

use horos_wire::{ClusterName, NodeId};
use jiff::Timestamp;
use rustls::{CertificateError, OtherError};
use rustls_pki_types::UnixTime;

use super::Expected;
use crate::identity::{DenyList, PeerIdentity, Serial, certificate::NameError};

/// Why a peer is not let in. Permanent for the certificate it presented, except where the text says otherwise.
///
/// A claimed identity is what the certificate says of itself where nobody trusted vouches for it: good for
/// finding the machine, not for believing it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PeerRefused {
    /// It presented none.
    #[error("no certificate was presented")]
    NoCertificate,
    /// Signed by itself.
    #[error("self-signed certificate{}", claim(.claimed))]
    SelfSigned {
        /// Whom it claims to name.
        claimed: Option<Box<NodeId>>,
    },
    /// Signed by somebody else than this cluster's authority, though it names this cluster.
    #[error("certificate not signed by this cluster's authority{}", claim(.claimed))]
    UnknownIssuer {
        /// Whom it claims to name.
        claimed: Option<Box<NodeId>>,
    },
    /// Of another cluster.
    #[error("certificate of another cluster: it names {}, and this is {cluster}", .named.to_uri())]
    OtherCluster {
        /// Whom it names.
        named: Box<NodeId>,
        /// This cluster.
        cluster: ClusterName,
    },
    /// Its time is over.
    #[error("certificate expired at {not_after}{}", claim(.claimed))]
    Expired {
        /// Whom it claims to name.
        claimed: Option<Box<NodeId>>,
        /// When it ended.
        not_after: Timestamp,
    },
    /// Its time has not come: one of the two clocks is wrong, or it was dated ahead.
    #[error("certificate counts from {not_before} only (is this machine's clock right?){}", claim(.claimed))]
    NotYetValid {
        /// Whom it claims to name.
        claimed: Option<Box<NodeId>>,
        /// When it begins.
        not_before: Timestamp,
    },
    /// On the deny list.
    #[error("certificate {serial} of {} was revoked (deny list {list})", .id.to_uri())]
    Revoked {
        /// Whose it is.
        id: Box<NodeId>,
        /// Its serial number.
        serial: Serial,
        /// The number of the list that says so.
        list: u64,
    },
    /// Somebody of the cluster, but not who was to be reached.
    #[error("{} answered where {} was expected", .id.to_uri(), expectation(.expected))]
    Unexpected {
        /// Who answered.
        id: Box<NodeId>,
        /// Who should have.
        expected: Box<Expected>,
    },
    /// The certificate is not for this side of a connection.
    #[error("certificate not meant for this use{}", claim(.claimed))]
    Purpose {
        /// Whom it claims to name.
        claimed: Option<Box<NodeId>>,
    },
    /// The certificate names nobody, several, or something malformed.
    #[error("certificate refused: {0}")]
    Name(#[from] NameError),
    /// The library's verdict, where it is none of the above.
    #[error("certificate refused: {0}")]
    Invalid(Box<str>),
}

fn claim(claimed: &Option<Box<NodeId>>) -> String {
    claimed.as_ref().map(|id| format!(", claiming to be {}", id.to_uri())).unwrap_or_default()
}

fn expectation(expected: &Expected) -> String {
    match expected {
        Expected::AnyNode => "a node".to_owned(),
        Expected::Role(role) => format!("a node of role {role}"),
        Expected::Node(id) => id.to_uri(),
    }
}

pub(crate) fn same_cluster(id: &NodeId, cluster: &ClusterName) -> Result<(), PeerRefused> {
    if id.cluster == *cluster {
        return Ok(());
    }
    Err(PeerRefused::OtherCluster { named: Box::new(id.clone()), cluster: cluster.clone() })
}

pub(crate) fn not_revoked(peer: &PeerIdentity, denied: &DenyList) -> Result<(), PeerRefused> {
    match denied.denies(peer) {
        Some(_) => Err(PeerRefused::Revoked { id: Box::new(peer.id.clone()), serial: peer.serial, list: denied.number() }),
        None => Ok(()),
    }
}

/// Prints as its text: the library logs its errors with `{:?}`.
struct Text(PeerRefused);

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl std::error::Error for Text {}

impl PeerRefused {
    /// The alert the peer gets, which is all it learns. `now` is the time of the verdict.
    pub(crate) fn into_tls(self, now: UnixTime) -> rustls::Error {
        let seconds = |t: Timestamp| UnixTime::since_unix_epoch(std::time::Duration::from_secs(t.as_second().try_into().unwrap_or(0)));
        rustls::Error::InvalidCertificate(match self {
            Self::NoCertificate => return rustls::Error::NoCertificatesPresented,
            Self::Expired { not_after, .. } => CertificateError::ExpiredContext { time: now, not_after: seconds(not_after) },
            Self::NotYetValid { not_before, .. } => CertificateError::NotValidYetContext { time: now, not_before: seconds(not_before) },
            Self::Revoked { .. } => CertificateError::Revoked,
            Self::SelfSigned { .. } | Self::UnknownIssuer { .. } => CertificateError::UnknownIssuer,
            other => CertificateError::Other(OtherError(Arc::new(Text(other)))),
        })
    }
}

/// What the other side had against our certificate, as far as its alert tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RefusedByPeer {
    /// Revoked: dialing again is of no use until this node has another certificate.
    #[error("the peer says this node's certificate was revoked; run `horos identity request` and ask the authority's holder")]
    Revoked,
    /// Expired by the peer's clock, or not yet valid.
    #[error("the peer says this node's certificate is out of date; renew it, or compare the two clocks")]
    OutOfDate,
    /// The peer believes another authority.
    #[error("the peer believes another authority than the one that signed this node's certificate; compare the two ca.pem")]
    UnknownAuthority,
    /// Refused for a reason TLS has no word for: another cluster, role or name. The peer's log has it.
    #[error("the peer does not accept this node's certificate; its log says why")]
    NotAccepted,
    /// The peer speaks none of the protocols offered.
    #[error("the peer speaks none of the protocols offered: another version, or no Horos node")]
    NoProtocol,
}

impl RefusedByPeer {
    /// Reads the alert (RFC 8446 §6, carried as RFC 9001 §4.8 says) out of a connection that ended.
    pub fn of(error: &quinn::ConnectionError) -> Option<Self> {
        let quinn::ConnectionError::ConnectionClosed(close) = error else { return None };
        match u64::from(close.error_code).checked_sub(0x100)? {
            44 => Some(Self::Revoked),
            45 => Some(Self::OutOfDate),
            48 => Some(Self::UnknownAuthority),
            42 | 43 | 46 | 49 => Some(Self::NotAccepted),
            120 => Some(Self::NoProtocol),
            _ => None,
        }
    }
}

//! What became of everybody who came to a door: counted for `/metrics`, and never reset.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use crate::tls::PeerRefused;

/// What became of the connections that were asked for at one UDP socket. Each number only grows.
#[derive(Debug, Default)]
pub struct AdmissionCounters {
    /// Handshakes that ended well, with a protocol that is served here.
    pub admitted: AtomicU64,
    /// Asked to show that they receive at their address (a QUIC Retry); whoever does comes again and is counted again.
    pub retried: AtomicU64,
    /// Refused because as many handshakes were in progress as may be.
    pub full: AtomicU64,
    /// Refused because as many handshakes from that address were in progress as may be.
    pub address_full: AtomicU64,
    /// Refused because the endpoint takes no new connections any more.
    pub stopping: AtomicU64,
    /// Handshakes that did not end in time: half-open.
    pub timed_out: AtomicU64,
    /// Handshakes that failed, other than by time or protocol; those that failed for a certificate are also in `identities`.
    pub failed: AtomicU64,
    /// Handshakes that failed because no protocol was offered, or none that is served here.
    pub unknown_protocol: AtomicU64,
    /// Closed after the handshake because their protocol had as many connections as it may.
    pub protocol_full: AtomicU64,
    /// Peers that proved who they are and were closed because there were as many sessions as there may be.
    pub sessions_full: AtomicU64,
    /// Who was refused for the certificate shown, or for showing none where one is needed.
    pub identities: Arc<IdentitiesRefused>,
}

/// Peers that came in and were refused for who they are, by kind; see [`PeerRefused`].
#[derive(Debug, Default)]
pub struct IdentitiesRefused {
    /// No certificate was shown on a protocol that wants one.
    pub no_certificate: AtomicU64,
    /// Signed by itself.
    pub self_signed: AtomicU64,
    /// Signed by an authority that is not this cluster's.
    pub unknown_issuer: AtomicU64,
    /// Of another cluster.
    pub other_cluster: AtomicU64,
    /// Its time is over.
    pub expired: AtomicU64,
    /// Its time has not come.
    pub not_yet_valid: AtomicU64,
    /// On the deny list.
    pub revoked: AtomicU64,
    /// Somebody else than was meant; only who is dialled is asked that, so it stays zero here.
    pub unexpected: AtomicU64,
    /// Not for this use.
    pub purpose: AtomicU64,
    /// Names nobody, several, or something malformed.
    pub name: AtomicU64,
    /// Refused by the library for another reason.
    pub invalid: AtomicU64,
}

/// One more.
pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

fn read(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

impl AdmissionCounters {
    /// What became of connections, by the names of the fields, in their order; [`Self::identities`] lists itself.
    pub fn outcomes(&self) -> [(&'static str, u64); 10] {
        [
            ("admitted", read(&self.admitted)),
            ("retried", read(&self.retried)),
            ("full", read(&self.full)),
            ("address_full", read(&self.address_full)),
            ("stopping", read(&self.stopping)),
            ("timed_out", read(&self.timed_out)),
            ("failed", read(&self.failed)),
            ("unknown_protocol", read(&self.unknown_protocol)),
            ("protocol_full", read(&self.protocol_full)),
            ("sessions_full", read(&self.sessions_full)),
        ]
    }
}

impl IdentitiesRefused {
    pub(crate) fn count(&self, refused: &PeerRefused) {
        count(match refused {
            PeerRefused::NoCertificate => &self.no_certificate,
            PeerRefused::SelfSigned { .. } => &self.self_signed,
            PeerRefused::UnknownIssuer { .. } => &self.unknown_issuer,
            PeerRefused::OtherCluster { .. } => &self.other_cluster,
            PeerRefused::Expired { .. } => &self.expired,
            PeerRefused::NotYetValid { .. } => &self.not_yet_valid,
            PeerRefused::Revoked { .. } => &self.revoked,
            PeerRefused::Unexpected { .. } => &self.unexpected,
            PeerRefused::Purpose { .. } => &self.purpose,
            PeerRefused::Name(_) => &self.name,
            PeerRefused::Invalid(_) => &self.invalid,
        });
    }

    /// By the names of the fields, in their order.
    pub fn kinds(&self) -> [(&'static str, u64); 11] {
        [
            ("no_certificate", read(&self.no_certificate)),
            ("self_signed", read(&self.self_signed)),
            ("unknown_issuer", read(&self.unknown_issuer)),
            ("other_cluster", read(&self.other_cluster)),
            ("expired", read(&self.expired)),
            ("not_yet_valid", read(&self.not_yet_valid)),
            ("revoked", read(&self.revoked)),
            ("unexpected", read(&self.unexpected)),
            ("purpose", read(&self.purpose)),
            ("name", read(&self.name)),
            ("invalid", read(&self.invalid)),
        ]
    }
}

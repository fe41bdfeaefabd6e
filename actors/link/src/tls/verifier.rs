//! What both sides of a handshake ask of the certificate they are shown.
//!
//! Signature, dates and purpose are the library's verdict (webpki). The rest is ours, in this order: one
//! well-formed identity, this cluster, not revoked, and for a dialer: whom it meant.

use std::sync::Arc;

use horos_wire::NodeId;
use jiff::Timestamp;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::verify_tls13_signature,
    server::{
        ParsedCertificate,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::{Expected, Live, PeerRefused, provider, refused::same_cluster};
use crate::{
    identity::{PeerIdentity, Trust, certificate::Claims},
    ration::Ration,
};

/// Which side of the connection the certificate is shown by.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shown {
    ByServer,
    ByClient,
}

/// Checks a certificate against the authorities in `trust`, and that it names somebody of their cluster.
///
/// Whatever else the peer sent with it plays no part: the authority signs no other authority, and this is
/// where that holds, since webpki takes no path length from a trust anchor.
fn verify(certificate: &CertificateDer<'_>, trust: &Trust, now: UnixTime, shown: Shown) -> Result<PeerIdentity, PeerRefused> {
    let claims = Claims::of(certificate)?;
    let supported = provider().signature_verification_algorithms;
    let verdict = match shown {
        Shown::ByServer => ParsedCertificate::try_from(certificate)
            .and_then(|parsed| verify_server_cert_signed_by_trust_anchor(&parsed, trust.roots(), &[], now, supported.all)),
        Shown::ByClient => trust.clients().verify_client_cert(certificate, &[], now).map(drop),
    };
    if let Err(error) = verdict {
        return Err(refusal(error, &claims, trust));
    }
    let peer = claims.identity(certificate)?;
    same_cluster(&peer.id, trust.cluster())?;
    Ok(peer)
}

/// The same question a holder asks about its own certificate before it shows it to anybody.
pub(crate) fn verify_holder(certificate: &CertificateDer<'_>, trust: &Trust, now: Timestamp) -> Result<PeerIdentity, PeerRefused> {
    let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(now.as_second().try_into().unwrap_or(0)));
    let peer = verify(certificate, trust, now, Shown::ByClient)?;
    if peer.id.role.is_node() {
        verify(certificate, trust, now, Shown::ByServer)?;
    }
    Ok(peer)
}

fn refusal(error: Error, claims: &Claims, trust: &Trust) -> PeerRefused {
    let claimed = || claims.id.as_ref().ok().map(|id| Box::new(id.clone()));
    match error {
        Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            PeerRefused::Expired { claimed: claimed(), not_after: claims.not_after }
        }
        Error::InvalidCertificate(CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. }) => {
            PeerRefused::NotYetValid { claimed: claimed(), not_before: claims.not_before }
        }
        // A bad signature under our authority's name is somebody else's key under our authority's name.
        Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => match &claims.id {
            Ok(id) if id.cluster != *trust.cluster() => {
                PeerRefused::OtherCluster { named: Box::new(id.clone()), cluster: trust.cluster().clone() }
            }
            _ if claims.self_issued => PeerRefused::SelfSigned { claimed: claimed() },
            _ => PeerRefused::UnknownIssuer { claimed: claimed() },
        },
        Error::InvalidCertificate(CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. }) => {
            PeerRefused::Purpose { claimed: claimed() }
        }
        other => PeerRefused::Invalid(other.to_string().into()),
    }
}

/// Says what was refused, to the log and to TLS.
fn tell(refused: PeerRefused, said: &Ration, now: UnixTime) -> Error {
    if said.allows("peers refused") {
        tracing::warn!(reason = %refused, "peer refused");
    }
    refused.into_tls(now)
}

/// Looks at what clients present. Presenting nothing is allowed here and settled by each protocol's handler.
#[derive(Debug)]
pub(super) struct ClientVerifier {
    live: Arc<Live>,
    /// The authority's name, so that a browser with certificates of its own does not offer them.
    hints: Vec<DistinguishedName>,
    said: Ration,
}

impl ClientVerifier {
    pub(super) fn new(live: Arc<Live>) -> Self {
        let hints = live.credentials.load().trust().roots().subjects();
        Self { live, hints, said: Ration::default() }
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.hints
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let credentials = self.live.credentials.load();
        match verify(certificate, credentials.trust(), now, Shown::ByClient).and_then(|peer| self.live.check(&peer)) {
            Ok(()) => Ok(ClientCertVerified::assertion()),
            Err(refused) => {
                self.live.refused.count(&refused);
                Err(tell(refused, &self.said, now))
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        holds_key(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        schemes()
    }
}

/// Looks at what a dialed node presents: a node of this cluster, and the one that was meant.
#[derive(Debug)]
pub(super) struct ServerVerifier {
    live: Arc<Live>,
    expected: Expected,
    said: Ration,
}

impl ServerVerifier {
    pub(super) fn new(live: Arc<Live>, expected: Expected) -> Self {
        Self { live, expected, said: Ration::default() }
    }

    fn expects(&self, id: &NodeId) -> Result<(), PeerRefused> {
        let meant = id.role.is_node()
            && match &self.expected {
                Expected::AnyNode => true,
                Expected::Role(role) => id.role == *role,
                Expected::Node(node) => id == node,
            };
        if meant {
            return Ok(());
        }
        Err(PeerRefused::Unexpected { id: Box::new(id.clone()), expected: Box::new(self.expected.clone()) })
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let credentials = self.live.credentials.load();
        let verdict = verify(certificate, credentials.trust(), now, Shown::ByServer).and_then(|peer| {
            self.live.check(&peer)?;
            self.expects(&peer.id)
        });
        match verdict {
            Ok(()) => Ok(ServerCertVerified::assertion()),
            Err(refused) => Err(tell(refused, &self.said, now)),
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        holds_key(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        schemes()
    }
}

/// Whether the peer holds the key of the certificate that it shows: it signed the handshake with it.
fn holds_key(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signature: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, Error> {
    verify_tls13_signature(message, certificate, signature, &provider().signature_verification_algorithms)
}

fn schemes() -> Vec<SignatureScheme> {
    provider().signature_verification_algorithms.supported_schemes()
}

/// QUIC has no TLS 1.2 (RFC 9001 §4.2).
fn tls12() -> Error {
    Error::General("TLS 1.2 is not spoken here".to_owned())
}

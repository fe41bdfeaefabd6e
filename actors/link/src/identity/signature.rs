//! ECDSA P-256 over SHA-256, the one algorithm of keys, requests, certificates and deny lists here,
//! through the TLS library's own implementation: one provider of cryptography in the whole program.

use rustls::SignatureScheme;
use rustls_pki_types::SignatureVerificationAlgorithm;

/// SubjectPublicKeyInfo of a P-256 key up to the point itself (RFC 5480 §2): DER leaves one spelling, so
/// comparing bytes is comparing algorithm, curve and length.
const P256_SPKI: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01,
    0x07, 0x03, 0x42, 0x00,
];

/// Length of an uncompressed P-256 point.
const P256_POINT: usize = 65;

/// The point in a P-256 SubjectPublicKeyInfo; `None` for any other kind of key.
pub(crate) fn p256_point(spki: &[u8]) -> Option<&[u8]> {
    spki.strip_prefix(&P256_SPKI).filter(|point| point.len() == P256_POINT)
}

/// AlgorithmIdentifier of ECDSA with SHA-256 (RFC 5758 §3.2: no parameters).
const ECDSA_SHA256: [u8; 12] = [0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];

/// How a structure signed with this algorithm ends in DER: algorithm and signature. The signature does not
/// cover either, so comparing with this leaves an altered byte nowhere to hide.
pub(crate) fn tail(signature: &[u8]) -> Vec<u8> {
    // At most 72 bytes for P-256, so the length takes one; a longer one matches nothing and does not verify.
    let length = u8::try_from(signature.len() + 1).unwrap_or(u8::MAX);
    [&ECDSA_SHA256[..], &[0x03, length, 0x00], signature].concat()
}

/// Whether `signature` is that of `message` by the holder of the key whose SubjectPublicKeyInfo is `spki`.
pub(crate) fn verify(spki: &[u8], message: &[u8], signature: &[u8]) -> bool {
    match (p256_point(spki), algorithm()) {
        (Some(point), Some(algorithm)) => algorithm.verify_signature(point, message, signature).is_ok(),
        _ => false,
    }
}

fn algorithm() -> Option<&'static dyn SignatureVerificationAlgorithm> {
    let known = crate::tls::provider().signature_verification_algorithms.mapping;
    let (_, algorithms) = known.iter().find(|(scheme, _)| *scheme == SignatureScheme::ECDSA_NISTP256_SHA256)?;
    algorithms.first().copied() // the first is the one TLS 1.3 means: P-256 with SHA-256
}

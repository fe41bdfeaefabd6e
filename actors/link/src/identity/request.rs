//! Asking for a certificate, on the machine that will use it; and taking in the one that came back.
//!
//! The private key is made here and stays here. What travels is a PKCS #10 request (RFC 2986), whose
//! own signature proves that the asker holds the key.

use std::path::{Path, PathBuf};

use horos_wire::{ClusterName, NodeId};
use jiff::Timestamp;
use rcgen::{CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, PKCS_ECDSA_P256_SHA256, SanType, string::Ia5String};
use rustls_pki_types::{CertificateSigningRequestDer, pem::PemObject};
use sha2::{Digest, Sha256};
use x509_parser::{certification_request::X509CertificationRequest, extensions::ParsedExtension, prelude::FromDer};

use super::{
    CA_CERTIFICATE, CA_KEY, CERTIFICATE, Credentials, CredentialsError, Fingerprint, KEY, MAX_PEM, REQUEST,
    certificate::{NameError, identity},
    files::{self, FileError},
    signature,
};

/// Why a request could not be made, or is not to be signed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The directory is the authority's own.
    #[error(
        "{} holds the cluster authority's key; a node's identity belongs in a directory of its own, on the node", .0.display()
    )]
    AuthorityHere(PathBuf),
    /// Not a PEM certificate request.
    #[error("this is no certificate request; send the file that `horos identity request` wrote")]
    NotARequest,
    /// The key asked for is not ECDSA P-256.
    #[error("the request's key is not ECDSA P-256; make it with `horos identity request`")]
    Key,
    /// The request's own signature does not match: altered on the way, or by somebody without the key.
    #[error("the request was altered or its sender does not hold its key: do not sign it, have it sent again")]
    Tampered,
    /// The request names no identity, or several.
    #[error("the request is not to be signed: {0}")]
    Name(#[from] NameError),
    /// What is asked for is not what the signer said.
    #[error("the request asks for {} but you said {}; sign it only under the name it asks for", .asked.to_uri(), .expected.to_uri())]
    Mismatch {
        /// The identity in the request.
        asked: Box<NodeId>,
        /// What the signer said.
        expected: Box<NodeId>,
    },
    /// The key in the directory cannot be used.
    #[error("{} holds no usable private key; move it away and run `horos identity request` again", .0.display())]
    BadKey(PathBuf),
    /// The library refused to make a key or a request.
    #[error("cannot make a key or a request")]
    Make(#[source] rcgen::Error),
}

/// A request whose signature has been checked: who asks, and for which key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The identity asked for.
    pub id: NodeId,
    /// SHA-256 of the public key: what two people read to each other before one of them signs.
    pub key: Fingerprint,
    pub(crate) spki: Vec<u8>,
}

impl Request {
    /// Reads a request and checks its signature. Whether to grant it is the signer's decision.
    ///
    /// # Errors
    /// [`RequestError`] says why the request is not to be signed.
    pub fn parse(pem: &str) -> Result<Self, RequestError> {
        if pem.len() as u64 > MAX_PEM {
            return Err(RequestError::NotARequest);
        }
        let der = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes()).map_err(|_| RequestError::NotARequest)?;
        Self::from_der(der.as_ref())
    }

    pub(crate) fn from_der(der: &[u8]) -> Result<Self, RequestError> {
        let (rest, parsed) = X509CertificationRequest::from_der(der).map_err(|_| RequestError::NotARequest)?;
        if !rest.is_empty() {
            return Err(RequestError::NotARequest);
        }
        let info = &parsed.certification_request_info;
        let spki = info.subject_pki.raw;
        if signature::p256_point(spki).is_none() {
            return Err(RequestError::Key);
        }
        let signed = &parsed.signature_value.data;
        // The signature covers what stands between the outermost header and the tail; those two are held to their one spelling.
        let tail = signature::tail(signed);
        let whole = [&*sequence_header(info.raw.len() + tail.len()), info.raw, &tail].concat();
        if der != whole || !signature::verify(spki, info.raw, signed) {
            return Err(RequestError::Tampered);
        }
        let mut names = parsed.requested_extensions().into_iter().flatten().filter_map(|extension| match extension {
            ParsedExtension::SubjectAlternativeName(names) => Some(&names.general_names),
            _ => None,
        });
        let id = match (names.next(), names.next()) {
            (Some(names), None) => identity(names)?,
            (None, _) => return Err(NameError::None.into()),
            (Some(_), Some(_)) => return Err(NameError::Malformed.into()),
        };
        Ok(Self { id, key: Fingerprint(Sha256::digest(spki).into()), spki: spki.to_vec() })
    }

    /// Confirms that the request asks for exactly `expected`.
    ///
    /// # Errors
    /// [`RequestError::Mismatch`].
    pub fn confirm(&self, expected: &NodeId) -> Result<(), RequestError> {
        if self.id == *expected {
            return Ok(());
        }
        Err(RequestError::Mismatch { asked: Box::new(self.id.clone()), expected: Box::new(expected.clone()) })
    }
}

/// The one header that DER has for a SEQUENCE of `length` bytes (X.690 §8.1.3, §10.1).
fn sequence_header(length: usize) -> Vec<u8> {
    let bytes = length.to_be_bytes();
    let digits = &bytes[bytes.iter().take_while(|byte| **byte == 0).count()..];
    match length {
        0..=0x7f => vec![0x30, length as u8],
        _ => [&[0x30, 0x80 | digits.len() as u8], digits].concat(),
    }
}

/// Makes the holder's key in `directory` and writes the request for a certificate of `id` beside it.
///
/// Returns the path of the request, which is not secret.
///
/// # Errors
/// [`FileError::Exists`] when there is a key already: [`renew`] asks again with that one.
pub fn create(directory: &Path, id: &NodeId) -> Result<PathBuf, RequestError> {
    files::private_directory(directory)?;
    refuse_authority(directory)?;
    let _lock = files::lock(directory)?;
    let key = new_key().map_err(RequestError::Make)?;
    let request = request_of(&key, id)?;
    files::create(&directory.join(KEY), files::PRIVATE, &key.serialize_pem())?;
    let path = directory.join(REQUEST);
    files::replace(&path, files::PUBLIC, &request)?;
    Ok(path)
}

/// Writes a request for a certificate of `id` with the key that is in `directory` already: for a
/// certificate about to expire, or a first request that got lost.
///
/// # Errors
/// [`FileError::Missing`] when there is no key: [`create`] makes one.
pub fn renew(directory: &Path, id: &NodeId) -> Result<PathBuf, RequestError> {
    refuse_authority(directory)?;
    let _lock = files::lock(directory)?;
    let path = directory.join(KEY);
    let pem = files::read_secret(&path, MAX_PEM)?;
    let key = KeyPair::from_pem(&pem).ok().filter(|key| key.algorithm() == &PKCS_ECDSA_P256_SHA256);
    let request = request_of(&key.ok_or(RequestError::BadKey(path))?, id)?;
    let path = directory.join(REQUEST);
    files::replace(&path, files::PUBLIC, &request)?;
    Ok(path)
}

/// Takes in what the authority's holder sent back: checks it against the key in `directory` and the
/// authority known there, then writes it. A running node takes it up at its next reload.
///
/// The authority known here wins over the one sent along: another one is believed only after somebody put
/// it into `ca.pem`, where two may stand while the cluster changes from one to the other.
///
/// # Errors
/// [`CredentialsError`]; the directory is as it was.
pub fn install(directory: &Path, certificate: &str, authority: &str, now: Timestamp) -> Result<Credentials, CredentialsError> {
    let _lock = files::lock(directory)?;
    let known = directory.join(CA_CERTIFICATE);
    let authority = match files::read(&known, MAX_PEM) {
        Ok(text) => text,
        Err(error) if error.is_missing() => authority.to_owned(),
        Err(error) => return Err(error.into()),
    };
    let key = files::read_secret(&directory.join(KEY), MAX_PEM).map_err(|error| CredentialsError::from_file(directory, error))?;
    let credentials = Credentials::assemble(directory, &key, certificate, &authority, now)?;
    files::replace(&known, files::PUBLIC, &authority)?;
    files::replace(&directory.join(CERTIFICATE), files::PUBLIC, certificate)?;
    files::remove(&directory.join(REQUEST))?;
    Ok(credentials)
}

pub(crate) fn new_key() -> Result<KeyPair, rcgen::Error> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
}

fn refuse_authority(directory: &Path) -> Result<(), RequestError> {
    if directory.join(CA_KEY).exists() {
        return Err(RequestError::AuthorityHere(directory.to_owned()));
    }
    Ok(())
}

fn request_of(key: &KeyPair, id: &NodeId) -> Result<String, RequestError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = common_name(id.name.as_str());
    params.subject_alt_names = vec![uri_name(id).map_err(RequestError::Make)?];
    params.is_ca = IsCa::NoCa;
    params.serialize_request(key).and_then(|request| request.pem()).map_err(RequestError::Make)
}

pub(crate) fn common_name(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

pub(crate) fn uri_name(id: &NodeId) -> Result<SanType, rcgen::Error> {
    Ok(SanType::URI(Ia5String::try_from(id.to_uri())?))
}

/// The trust domain alone, which stands for the whole cluster in its authority's certificate.
pub(crate) fn cluster_name(cluster: &ClusterName) -> Result<SanType, rcgen::Error> {
    Ok(SanType::URI(Ia5String::try_from(format!("spiffe://{cluster}"))?))
}

//! What a node, an operator or a viewer proves itself with, and whom it believes: loaded and checked as
//! a whole, so that what TLS is given works.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use horos_wire::{ClusterName, NodeId};
use jiff::Timestamp;
use rustls::{
    RootCertStore, SignatureScheme,
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use x509_parser::{certificate::X509Certificate, prelude::FromDer};

use super::{
    CA_CERTIFICATE, CA_KEY, CERTIFICATE, Fingerprint, KEY, MAX_PEM, PeerIdentity, Serial, Validity,
    certificate::{Claims, NameError, authority_cluster},
    files::{self, FileError},
    signature,
};
use crate::tls::{self, PeerRefused};

/// Most authorities believed at once: the old and the new during a change, and one to spare.
pub const MAX_AUTHORITIES: usize = 3;

/// Why credentials cannot be used. Each says which file and what to do; whoever had older ones keeps them.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CredentialsError {
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// There is no private key.
    #[error("{} does not exist; run `horos identity request` on this machine to make a key", .0.display())]
    NoKey(PathBuf),
    /// There is a key but no certificate.
    #[error(
        "{} does not exist; have request.pem signed by the authority's holder (`horos identity sign`) and put the answer there", .0.display()
    )]
    NoCertificate(PathBuf),
    /// There is no authority's certificate.
    #[error("{} does not exist; copy it from the authority's directory", .0.display())]
    NoAuthority(PathBuf),
    /// The authority's private key is in a node's reach.
    #[error("{} is the cluster authority's private key: no node may hold it; move it to the machine of whoever signs", .0.display())]
    AuthorityKeyHere(PathBuf),
    /// Not what such a file holds.
    #[error("{} holds no {expected}; run `horos identity request` again, or restore the file", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What should stand in it.
        expected: &'static str,
    },
    /// The authority's certificate cannot be used.
    #[error("{}: {source}; copy it from the authority's directory", .path.display())]
    Authority {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: TrustError,
    },
    /// The certificate is for another key.
    #[error("{} is not for the key in {}; run `horos identity request` and have the new request signed", .certificate.display(), .key.display())]
    KeyMismatch {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
    /// The certificate stopped counting.
    #[error("{} expired at {not_after}; run `horos identity request` and have the new request signed", .path.display())]
    Expired {
        /// The file.
        path: PathBuf,
        /// When it ended.
        not_after: Timestamp,
    },
    /// The certificate does not count yet.
    #[error("{} counts from {not_before} only, and it is {now} by this machine's clock: set the clock, or wait", .path.display())]
    NotYetValid {
        /// The file.
        path: PathBuf,
        /// When it begins.
        not_before: Timestamp,
        /// What this machine's clock says.
        now: Timestamp,
    },
    /// The certificate does not hold: another authority, another cluster, a malformed name.
    #[error("{}: {reason}; run `horos identity request` and have it signed by the authority in ca.pem", .path.display())]
    Refused {
        /// The file.
        path: PathBuf,
        /// What a peer would say to it.
        reason: PeerRefused,
    },
    /// A reload found another holder's certificate.
    #[error("{} is now that of {}, and this node is {}: restart it to change who it is", .path.display(), .found.to_uri(), .running.to_uri())]
    OtherHolder {
        /// The file.
        path: PathBuf,
        /// Whom it names.
        found: Box<NodeId>,
        /// Who this node is.
        running: Box<NodeId>,
    },
    /// The deny list kept here cannot be used.
    #[error("{}: {source}", .path.display())]
    Denied {
        /// The file.
        path: PathBuf,
        /// Why.
        source: super::revocation::DenyError,
    },
}

impl CredentialsError {
    pub(crate) fn from_file(directory: &Path, error: FileError) -> Self {
        match error {
            FileError::Missing(path) if path == directory.join(KEY) => Self::NoKey(path),
            FileError::Missing(path) if path == directory.join(CERTIFICATE) => Self::NoCertificate(path),
            FileError::Missing(path) if path == directory.join(CA_CERTIFICATE) => Self::NoAuthority(path),
            other => Self::File(other),
        }
    }
}

/// Why a `ca.pem` makes nobody believable.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrustError {
    /// No certificate, or something that is none, in the PEM.
    #[error("it holds no PEM certificate")]
    NoCertificate,
    /// More than [`MAX_AUTHORITIES`].
    #[error("it lists more than {MAX_AUTHORITIES} authorities")]
    TooMany,
    /// Not an authority's certificate.
    #[error("it holds a certificate that is no cluster authority's")]
    NotAnAuthority,
    /// The name in it is no cluster.
    #[error("the cluster in it cannot be read: {0}")]
    Name(#[from] NameError),
    /// Authorities of several clusters.
    #[error("it lists authorities of two clusters, {0} and {1}")]
    TwoClusters(ClusterName, ClusterName),
}

/// The authorities a holder believes: one, or two while the cluster changes from one to the next.
#[derive(Clone, Debug)]
pub struct Trust {
    cluster: ClusterName,
    certificates: Vec<CertificateDer<'static>>,
    keys: Vec<Vec<u8>>,
    roots: Arc<RootCertStore>,
    /// The library's view of clients, built once: it is asked in every handshake.
    clients: Arc<dyn ClientCertVerifier>,
}

impl Trust {
    /// Reads a `ca.pem`.
    ///
    /// # Errors
    /// [`TrustError`] says what is wrong with it.
    pub fn parse(pem: &str) -> Result<Self, TrustError> {
        let certificates: Vec<_> =
            CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>().map_err(|_| TrustError::NoCertificate)?;
        if certificates.len() > MAX_AUTHORITIES {
            return Err(TrustError::TooMany);
        }
        let mut roots = RootCertStore::empty();
        let mut keys = Vec::new();
        let mut cluster = None;
        for certificate in &certificates {
            let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| TrustError::NoCertificate)?;
            let spki = parsed.public_key().raw;
            // Without this a node's own certificate put in ca.pem by mistake would sign for the cluster.
            if !parsed.is_ca() || signature::p256_point(spki).is_none() {
                return Err(TrustError::NotAnAuthority);
            }
            let named = authority_cluster(certificate)?;
            if *cluster.get_or_insert_with(|| named.clone()) != named {
                let first = cluster.unwrap_or_else(|| named.clone());
                return Err(TrustError::TwoClusters(first, named));
            }
            keys.push(spki.to_vec());
            roots.add(certificate.clone()).map_err(|_| TrustError::NotAnAuthority)?;
        }
        let cluster = cluster.ok_or(TrustError::NoCertificate)?;
        let roots = Arc::new(roots);
        let clients = WebPkiClientVerifier::builder_with_provider(roots.clone(), tls::provider().clone())
            .build()
            .map_err(|_| TrustError::NotAnAuthority)?;
        Ok(Self { cluster, certificates, keys, roots, clients })
    }

    /// The cluster.
    pub fn cluster(&self) -> &ClusterName {
        &self.cluster
    }

    /// The authorities' certificates.
    pub(crate) fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.certificates
    }

    /// The authorities' public keys (SubjectPublicKeyInfo), in the same order.
    pub(crate) fn keys(&self) -> &[Vec<u8>] {
        &self.keys
    }

    pub(crate) fn roots(&self) -> &RootCertStore {
        &self.roots
    }

    pub(crate) fn clients(&self) -> &dyn ClientCertVerifier {
        self.clients.as_ref()
    }
}

/// A holder's certificate with its key, and whom the holder believes. Checked: the key fits, an authority
/// in [`Trust`] signed it, and it counted when it was loaded.
#[derive(Clone, Debug)]
pub struct Credentials {
    identity: PeerIdentity,
    validity: Validity,
    key: Arc<CertifiedKey>,
    trust: Trust,
}

impl Credentials {
    /// Loads the credentials in `directory`, as of `now`. Blocks on the disk.
    ///
    /// # Errors
    /// [`CredentialsError`] names the file and the next step.
    pub fn load(directory: &Path, now: Timestamp) -> Result<Self, CredentialsError> {
        let authority_key = directory.join(CA_KEY);
        if authority_key.exists() {
            return Err(CredentialsError::AuthorityKeyHere(authority_key));
        }
        let missing = |error| CredentialsError::from_file(directory, error);
        files::refuse_shared(directory).map_err(|error| match error {
            FileError::Missing(_) => CredentialsError::NoKey(directory.join(KEY)),
            other => other.into(),
        })?;
        let key = files::read_secret(&directory.join(KEY), MAX_PEM).map_err(missing)?;
        let certificate = files::read(&directory.join(CERTIFICATE), MAX_PEM).map_err(missing)?;
        let authority = files::read(&directory.join(CA_CERTIFICATE), MAX_PEM).map_err(missing)?;
        Self::assemble(directory, &key, &certificate, &authority, now)
    }

    /// The same checks on texts that are not in their places yet; `directory` is for the errors.
    pub(crate) fn assemble(
        directory: &Path,
        key_pem: &str,
        certificate_pem: &str,
        authority_pem: &str,
        now: Timestamp,
    ) -> Result<Self, CredentialsError> {
        let (key_path, path) = (directory.join(KEY), directory.join(CERTIFICATE));
        let unreadable = |path: &Path, expected: &'static str| CredentialsError::Unreadable { path: path.to_owned(), expected };

        let trust =
            Trust::parse(authority_pem).map_err(|source| CredentialsError::Authority { path: directory.join(CA_CERTIFICATE), source })?;
        let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(|_| unreadable(&key_path, "PEM private key"))?;
        let certificate = CertificateDer::from_pem_slice(certificate_pem.as_bytes()).map_err(|_| unreadable(&path, "PEM certificate"))?;
        let claims = Claims::of(&certificate).map_err(|_| unreadable(&path, "X.509 certificate"))?;
        let validity = Validity { not_before: claims.not_before, not_after: claims.not_after };

        // Dates first: they are the commonest fault and the only one that mends by renewing.
        if now > validity.not_after {
            return Err(CredentialsError::Expired { path, not_after: validity.not_after });
        }
        if now < validity.not_before {
            return Err(CredentialsError::NotYetValid { path, not_before: validity.not_before, now });
        }
        let identity = match tls::verify_holder(&certificate, &trust, now) {
            Ok(identity) => identity,
            Err(reason) => return Err(CredentialsError::Refused { path, reason }),
        };
        let signing = tls::provider().key_provider.load_private_key(key).map_err(|_| unreadable(&key_path, "usable private key"))?;
        // The certificate alone is sent: the authority signs no other authority, so there is nothing between.
        let key = CertifiedKey::new(vec![certificate], signing);
        if key.keys_match().is_err() {
            return Err(CredentialsError::KeyMismatch { certificate: path, key: key_path });
        }
        Ok(Self { identity, validity, key: Arc::new(key), trust })
    }

    /// Who the holder is.
    pub fn id(&self) -> &NodeId {
        &self.identity.id
    }

    /// The holder as its peers see it.
    pub fn identity(&self) -> &PeerIdentity {
        &self.identity
    }

    /// The certificate's serial number.
    pub fn serial(&self) -> Serial {
        self.identity.serial
    }

    /// The certificate's fingerprint.
    pub fn fingerprint(&self) -> Fingerprint {
        self.identity.fingerprint
    }

    /// When the certificate counts.
    pub fn validity(&self) -> Validity {
        self.validity
    }

    /// Whom the holder believes.
    pub fn trust(&self) -> &Trust {
        &self.trust
    }

    pub(crate) fn key(&self) -> &Arc<CertifiedKey> {
        &self.key
    }

    /// The certificate itself.
    pub(crate) fn certificate(&self) -> Option<&CertificateDer<'static>> {
        self.key.cert.first()
    }

    /// The holder's ECDSA P-256 signature of `message` over SHA-256; `None` where the key makes none.
    ///
    /// What is signed begins with words of its own: TLS signs what begins with 64 spaces (RFC 8446 §4.4.3), so
    /// neither can pass for the other.
    pub(crate) fn sign(&self, message: &[u8]) -> Option<Vec<u8>> {
        self.key.key.choose_scheme(&[SignatureScheme::ECDSA_NISTP256_SHA256])?.sign(message).ok()
    }
}

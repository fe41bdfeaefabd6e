//! A certificate and its key.

use std::{path::Path, sync::Arc};

use horos_link::tls::provider;
use jiff::Timestamp;
use rustls::{Error, InconsistentKeys, sign::CertifiedKey};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::{CertificateError, files};

const CHAIN: &str = "certificate in PEM, with those above it";
const KEY: &str = "private key in PEM";

/// Both, known to belong together.
#[derive(Debug)]
pub(super) struct Pair {
    key: Arc<CertifiedKey>,
    #[cfg(feature = "acme")]
    not_before: Timestamp,
    not_after: Timestamp,
}

impl Pair {
    /// Reads both files.
    pub(super) fn load(certificate: &Path, key: &Path, now: Timestamp) -> Result<Self, CertificateError> {
        let chain = files::read(certificate, CHAIN)?;
        let secret = files::read_secret(key, KEY)?;
        Self::parse(&chain, &secret, certificate, key, now)
    }

    pub(super) fn parse(chain: &[u8], secret: &[u8], certificate: &Path, key: &Path, now: Timestamp) -> Result<Self, CertificateError> {
        let malformed = |path: &Path, role, problem: String| CertificateError::Malformed { path: path.to_owned(), role, problem };
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(chain).collect();
        let chain = chain.map_err(|error| malformed(certificate, CHAIN, error.to_string()))?;
        let Some(first) = chain.first() else {
            return Err(malformed(certificate, CHAIN, "there is no CERTIFICATE block in it".to_owned()));
        };
        let (not_before, not_after) = validity(first).map_err(|problem| malformed(certificate, CHAIN, problem))?;
        // One that is not valid yet is used all the same: clients judge it by their clocks, and this one may be the wrong one.
        if now < not_before {
            tracing::warn!(path = %certificate.display(), %not_before, "the certificate is not valid yet, by this machine's clock");
        }
        if now > not_after {
            return Err(CertificateError::Expired { path: certificate.to_owned(), not_after, now });
        }
        let secret = PrivateKeyDer::from_pem_slice(secret).map_err(|error| malformed(key, KEY, error.to_string()))?;
        let secret = provider().key_provider.load_private_key(secret).map_err(|error| malformed(key, KEY, error.to_string()))?;
        let certified = CertifiedKey::new(chain, secret);
        match certified.keys_match() {
            // A key that cannot say what its public half is comes from hardware; the first handshake will tell.
            Ok(()) | Err(Error::InconsistentKeys(InconsistentKeys::Unknown)) => {}
            Err(Error::InconsistentKeys(_)) => {
                return Err(CertificateError::Mismatch { certificate: certificate.to_owned(), key: key.to_owned() });
            }
            Err(error) => return Err(malformed(certificate, CHAIN, error.to_string())),
        }
        Ok(Self {
            key: Arc::new(certified),
            #[cfg(feature = "acme")]
            not_before,
            not_after,
        })
    }

    pub(super) fn key(&self) -> &Arc<CertifiedKey> {
        &self.key
    }

    /// Whether `name` is one of its names, written out.
    #[cfg(feature = "acme")]
    pub(super) fn is_for(&self, name: &str) -> bool {
        use x509_parser::prelude::GeneralName;
        let Some(Ok((_, parsed))) = self.key.cert.first().map(|first| X509Certificate::from_der(first)) else { return false };
        let Ok(Some(names)) = parsed.subject_alternative_name() else { return false };
        names.value.general_names.iter().any(|known| matches!(known, GeneralName::DNSName(known) if known.eq_ignore_ascii_case(name)))
    }

    #[cfg(feature = "acme")]
    pub(super) fn not_before(&self) -> Timestamp {
        self.not_before
    }

    pub(super) fn not_after(&self) -> Timestamp {
        self.not_after
    }
}

fn validity(certificate: &CertificateDer<'_>) -> Result<(Timestamp, Timestamp), String> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|error| error.to_string())?;
    let validity = parsed.validity();
    let at = |seconds: i64| Timestamp::from_second(seconds).map_err(|error| error.to_string());
    Ok((at(validity.not_before.timestamp())?, at(validity.not_after.timestamp())?))
}

//! What a certificate says of itself, for whoever looks before a node starts.

use std::{net::IpAddr, path::Path};

use jiff::Timestamp;
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use super::{CertificateError, Pair};

/// A certificate that can be presented, with its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inspected {
    /// The names and addresses that it is for, as clients compare them (RFC 9525 §6).
    pub names: Vec<String>,
    /// Its last second.
    pub not_after: Timestamp,
}

/// Reads both files as the port would.
///
/// # Errors
/// As the port would say it.
pub fn inspect(certificate: &Path, key: &Path, now: Timestamp) -> Result<Inspected, CertificateError> {
    let pair = Pair::load(certificate, key, now)?;
    let names = pair.key().cert.first().map(names).unwrap_or_default();
    Ok(Inspected { names, not_after: pair.not_after() })
}

fn names(certificate: &CertificateDer<'_>) -> Vec<String> {
    let Ok((_, parsed)) = X509Certificate::from_der(certificate) else { return Vec::new() };
    let Ok(Some(alternatives)) = parsed.subject_alternative_name() else { return Vec::new() };
    let name = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => Some(IpAddr::from(<[u8; 4]>::try_from(*bytes).ok()?).to_string()),
            16 => Some(IpAddr::from(<[u8; 16]>::try_from(*bytes).ok()?).to_string()),
            _ => None,
        },
        _ => None,
    };
    alternatives.value.general_names.iter().filter_map(name).collect()
}

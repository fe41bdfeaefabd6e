//! Whom a connection by TLS believes, and what it offers to speak.

use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};

use super::options::{Options, OptionsError, Roots};

pub(crate) const H2: &[u8] = b"h2";
const HTTP1: &[u8] = b"http/1.1";

/// TLS 1.2 and 1.3 by aws-lc-rs, HTTP/2 before HTTP/1.1 (RFC 7301). There is no switch that leaves a certificate unchecked. Reads
/// files.
pub(crate) fn config(options: &Options) -> Result<ClientConfig, OptionsError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(OptionsError::Tls)?
        .with_root_certificates(roots(options)?)
        .with_no_client_auth();
    config.alpn_protocols = vec![H2.to_vec(), HTTP1.to_vec()];
    // What is sent early can be replayed by anybody.
    config.enable_early_data = false;
    Ok(config)
}

fn roots(options: &Options) -> Result<RootCertStore, OptionsError> {
    let mut roots = RootCertStore::empty();
    if options.roots == Roots::System {
        let found = rustls_native_certs::load_native_certs();
        // Systems hold old authorities that no library understands; those that it does are enough.
        let (good, bad) = roots.add_parsable_certificates(found.certs);
        tracing::debug!(good, bad, errors = ?found.errors, "authorities of the system");
    }
    for path in &options.ca_files {
        let unread = |source| OptionsError::CaFile { path: path.clone(), source };
        let mut any = false;
        for certificate in CertificateDer::pem_file_iter(path).map_err(unread)? {
            let certificate = certificate.map_err(unread)?;
            roots.add(certificate).map_err(|source| OptionsError::Ca { path: path.clone(), source })?;
            any = true;
        }
        if !any {
            return Err(unread(rustls_pki_types::pem::Error::NoItemsFound));
        }
    }
    if roots.is_empty() {
        // Not an error: a node in a bare container may call nobody, or its own services without TLS.
        tracing::warn!("no authority is known whose certificates are believed: no host is reached by https");
    }
    Ok(roots)
}

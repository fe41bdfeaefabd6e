//! How TLS is spoken over TCP.

use std::sync::Arc;

use horos_link::tls::provider;
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs::Ticketer,
    server::{NoServerSessionStorage, ResolvesServerCert},
    version::{TLS12, TLS13},
};

/// HTTP/2.
pub(super) const H2: &[u8] = b"h2";
/// HTTP/1.1.
pub(super) const HTTP1: &[u8] = b"http/1.1";
/// An authority that looks whether a name leads here (RFC 8737).
pub(crate) const ACME: &[u8] = b"acme-tls/1";

/// Whether an ACME authority may come to prove a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Challenges {
    Answered,
    Unknown,
}

/// The accepting side. Presents what `certificates` has at each handshake.
///
/// # Errors
/// The system gives no random numbers.
pub(crate) fn accepting(certificates: Arc<dyn ResolvesServerCert>, challenges: Challenges) -> Result<Arc<ServerConfig>, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(provider().clone())
        .with_protocol_versions(&[&TLS13, &TLS12])?
        .with_no_client_auth()
        .with_cert_resolver(certificates);
    config.alpn_protocols = vec![H2.to_vec(), HTTP1.to_vec()];
    if challenges == Challenges::Answered {
        config.alpn_protocols.push(ACME.to_vec());
    }
    // A session is in the ticket that its client keeps, under a key that lives in memory and changes each 6 hours: nothing
    // is stored for a client that may never return. One ticket does for a client that uses one connection.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.ticketer = Ticketer::new()?;
    config.send_tls13_tickets = 1;
    // What comes before the handshake's end can be replayed by anybody.
    config.max_early_data_size = 0;
    Ok(Arc::new(config))
}

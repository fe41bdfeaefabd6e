//! Owns how a connection proves who is at its ends: TLS 1.3 over QUIC, with certificates of the cluster's
//! authority on both sides.
//!
//! A node opens one [`Tls`] on its identity directory and asks it for the configurations its endpoint
//! needs. All of them share the credentials and the deny list in force, so a reload or a revocation counts
//! from the next handshake on, without a restart; live sessions watch [`DenyList::subscribe`] and ask
//! [`Tls::admit`] again.
//!
//! Promises:
//! - A peer is who the authority says, by the one `spiffe://` URI in its certificate. Host names play no part.
//! - A client may come without a certificate, because one port takes every protocol and TLS cannot tell them
//!   apart; a certificate that is presented must hold. **Every handler that wants a peer calls
//!   [`Tls::admit`] before it reads a stream.**
//! - No tickets, no resumption, no 0-RTT: each connection looks at certificate and deny list anew, and
//!   nothing can be replayed.
//! - One provider of cryptography, named in every configuration. Key exchange is X25519MLKEM768 where the
//!   peer has it, so that a recording made today stays closed.
//!
//! - Whoever offers the nodes' protocol is shown the node's certificate of this cluster, and nobody else's stands in for
//!   it. Others may be shown one for the public ([`Tls::server_beside`]).

mod refused;
mod verifier;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use arc_swap::ArcSwap;
use horos_wire::{NodeId, Role};
use jiff::Timestamp;
use parking_lot::Mutex;
use quinn::crypto::rustls::{HandshakeData, QuicClientConfig, QuicServerConfig};
use rustls::{
    ClientConfig, ConfigBuilder, ServerConfig, SignatureScheme, WantsVerifier,
    client::{ResolvesClientCert, Resumption},
    crypto::CryptoProvider,
    server::{ClientHello, NoServerSessionStorage, ResolvesServerCert},
    sign::CertifiedKey,
    version::TLS13,
};
use rustls_pki_types::CertificateDer;

pub use self::refused::{PeerRefused, RefusedByPeer};
pub(crate) use self::verifier::verify_holder;
use self::verifier::{ClientVerifier, ServerVerifier};
use crate::{
    counters::IdentitiesRefused,
    endpoint::ALPN,
    identity::{
        CERTIFICATE, Credentials, CredentialsError, DENIED, DenyList, PeerIdentity,
        certificate::Claims,
        revocation::{Adopted, DenyError},
    },
};

/// The name to give `quinn::Endpoint::connect`, which insists on one. It is neither sent nor checked.
pub const SERVER_NAME: &str = "node.horos.invalid";

/// The provider of cryptography in use everywhere: aws-lc-rs, post-quantum key exchange first.
pub fn provider() -> &'static Arc<CryptoProvider> {
    static PROVIDER: std::sync::LazyLock<Arc<CryptoProvider>> =
        std::sync::LazyLock::new(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()));
    &PROVIDER
}

/// Makes [`provider`] the process's default, for libraries that take no other. Call it first in `main`.
///
/// Nothing in this crate needs it. A default that is set already stays.
pub fn install_default_provider() {
    if provider().as_ref().clone().install_default().is_err() {
        tracing::debug!("a default provider of cryptography was installed already");
    }
}

/// Whom a dialer means to reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expected {
    /// Any node of the cluster: a seed, known by its address only.
    AnyNode,
    /// Any node of this role.
    Role(Role),
    /// This node.
    Node(NodeId),
}

/// A node's side of every handshake.
#[derive(Debug)]
pub struct Tls {
    directory: PathBuf,
    live: Arc<Live>,
    /// Held by a reload, so that of two at once the later reading wins.
    reloading: Mutex<()>,
}

/// What handshakes look at when they happen, and a reload replaces.
#[derive(Debug)]
pub(crate) struct Live {
    credentials: ArcSwap<Credentials>,
    denied: DenyList,
    /// Who came in and was refused for its certificate.
    refused: Arc<IdentitiesRefused>,
}

impl Tls {
    /// Loads the credentials and the deny list in `directory`, as of `now`. Blocks on the disk.
    ///
    /// # Errors
    /// [`CredentialsError`] names the file and the next step.
    pub fn open(directory: &Path, now: Timestamp) -> Result<Self, CredentialsError> {
        let credentials = Credentials::load(directory, now)?;
        let denied = DenyList::load(directory, credentials.trust()).map_err(bad_list(directory))?;
        refuse_own(directory, &credentials, &denied)?;
        let live = Arc::new(Live { credentials: ArcSwap::from_pointee(credentials), denied, refused: Arc::default() });
        Ok(Self { directory: directory.to_owned(), live, reloading: Mutex::new(()) })
    }

    /// The credentials in force.
    pub fn credentials(&self) -> Arc<Credentials> {
        self.live.credentials.load_full()
    }

    /// The deny list in force.
    pub fn denied(&self) -> &DenyList {
        &self.live.denied
    }

    /// How many of those who came in were refused for their certificate, by reason.
    pub(crate) fn refused(&self) -> &Arc<IdentitiesRefused> {
        &self.live.refused
    }

    /// Reads the directory again, deny list included, and if everything in it holds, uses it from the next handshake on.
    /// Connections that are up stay up. Blocks on the disk.
    ///
    /// # Errors
    /// [`CredentialsError`]; the credentials in force stay. A node cannot become another by a reload.
    /// A newer deny list counts even where the new credentials are refused because of it.
    pub fn reload(&self, now: Timestamp) -> Result<Arc<Credentials>, CredentialsError> {
        let _reloading = self.reloading.lock();
        let new = Arc::new(Credentials::load(&self.directory, now)?);
        let running = self.credentials();
        if new.id() != running.id() {
            return Err(CredentialsError::OtherHolder {
                path: self.directory.join(CERTIFICATE),
                found: Box::new(new.id().clone()),
                running: Box::new(running.id().clone()),
            });
        }
        self.live.denied.refresh(&self.directory, new.trust()).map_err(bad_list(&self.directory))?;
        refuse_own(&self.directory, &new, &self.live.denied)?;
        self.live.credentials.store(new.clone());
        Ok(new)
    }

    /// Puts a deny list that a peer or a person offered in force, if the authority signed it and it is newer,
    /// and keeps it in the directory. Blocks on the disk when it is.
    ///
    /// # Errors
    /// [`DenyError::File`] says the list is in force but would not survive a restart; all others that nothing changed.
    pub fn deny(&self, text: &str) -> Result<Adopted, DenyError> {
        let adopted = self.live.denied.adopt(text, self.credentials().trust())?;
        if adopted == Adopted::Newer {
            self.live.denied.keep(&self.directory)?;
        }
        Ok(adopted)
    }

    /// The certificate in force at each handshake, for others who accept connections on the node's behalf.
    pub fn certificate(&self) -> Arc<dyn ResolvesServerCert> {
        Arc::new(Own(self.live.clone()))
    }

    /// The accepting side, for these protocols in order of preference. A client that offers none of them is refused.
    pub fn server(&self, protocols: &[&[u8]]) -> quinn::ServerConfig {
        quic(self.accepting(protocols, Arc::new(Own(self.live.clone()))))
    }

    /// The same, and whoever does not offer the nodes' protocol ([`crate::ALPN`]) is shown what `public` has for it.
    ///
    /// All are asked for a certificate, because TLS asks before it chooses the protocol; with the authority's name, so that a
    /// browser which has none of ours asks nobody.
    pub fn server_beside(&self, protocols: &[&[u8]], public: Arc<dyn ResolvesServerCert>) -> quinn::ServerConfig {
        quic(self.accepting(protocols, Arc::new(ByProtocol { own: Own(self.live.clone()), public })))
    }

    fn accepting(&self, protocols: &[&[u8]], certificate: Arc<dyn ResolvesServerCert>) -> ServerConfig {
        let config = tls13().with_client_cert_verifier(Arc::new(ClientVerifier::new(self.live.clone())));
        without_memory(config.with_cert_resolver(certificate), protocols)
    }

    /// The dialing side, for these protocols, towards `expected` and nobody else.
    pub fn client(&self, protocols: &[&[u8]], expected: Expected) -> quinn::ClientConfig {
        let crypto = QuicClientConfig::try_from(self.dialing(protocols, expected)).expect("the provider has TLS13_AES_128_GCM_SHA256");
        quinn::ClientConfig::new(Arc::new(crypto))
    }

    /// The same over TCP, for HTTPS to a node that shows its certificate of this cluster; which versions of HTTP are offered, whoever
    /// dials adds. The name that is asked for is neither sent nor checked.
    pub fn https(&self, expected: Expected) -> ClientConfig {
        self.dialing(&[], expected)
    }

    fn dialing(&self, protocols: &[&[u8]], expected: Expected) -> ClientConfig {
        let mut config = ClientConfig::builder_with_provider(provider().clone())
            .with_protocol_versions(&[&TLS13])
            .expect("the provider has TLS 1.3")
            .dangerous() // rustls's word for "not by host name"; the verifier is stricter than the one it replaces
            .with_custom_certificate_verifier(Arc::new(ServerVerifier::new(self.live.clone(), expected)))
            .with_client_cert_resolver(Arc::new(Own(self.live.clone())));
        config.alpn_protocols = owned(protocols);
        config.resumption = Resumption::disabled();
        config.enable_early_data = false;
        config.enable_sni = false; // it would tell the network, in clear, what is being called
        config
    }

    /// Who is at the other end of an established connection, if it is somebody of this cluster who is not
    /// on the deny list *now* and whose certificate has not expired at `now`.
    ///
    /// # Errors
    /// [`PeerRefused`], for the log; close the connection.
    pub fn admit(&self, connection: &quinn::Connection, now: Timestamp) -> Result<PeerIdentity, PeerRefused> {
        let peer = peer_identity(connection)?;
        self.still_admits(&peer, now)?;
        Ok(peer)
    }

    /// The same question about a peer admitted earlier: for sessions, when the deny list or the credentials
    /// changed, and when the peer's `not_after` comes.
    ///
    /// # Errors
    /// [`PeerRefused::Revoked`], [`PeerRefused::Expired`] or [`PeerRefused::OtherCluster`]: close the session.
    pub fn still_admits(&self, peer: &PeerIdentity, now: Timestamp) -> Result<(), PeerRefused> {
        self.live.check(peer)?;
        if now > peer.not_after {
            return Err(PeerRefused::Expired { claimed: Some(Box::new(peer.id.clone())), not_after: peer.not_after });
        }
        Ok(())
    }
}

fn bad_list(directory: &Path) -> impl FnOnce(DenyError) -> CredentialsError {
    let path = directory.join(DENIED);
    |source| CredentialsError::Denied { path, source }
}

/// A node whose own certificate was revoked would start and be refused by everybody: better said here.
fn refuse_own(directory: &Path, credentials: &Credentials, denied: &DenyList) -> Result<(), CredentialsError> {
    let refuse = |reason| CredentialsError::Refused { path: directory.join(CERTIFICATE), reason };
    refused::not_revoked(credentials.identity(), denied).map_err(refuse)
}

impl Live {
    /// What the signature does not settle: the cluster, and whether it was revoked.
    pub(crate) fn check(&self, peer: &PeerIdentity) -> Result<(), PeerRefused> {
        refused::same_cluster(&peer.id, self.credentials.load().trust().cluster())?;
        refused::not_revoked(peer, &self.denied)
    }
}

/// Reads who is at the other end of an established connection from its certificate, which the handshake verified.
///
/// Handlers call [`Tls::admit`], which also asks the deny list as it is now.
///
/// # Errors
/// [`PeerRefused::NoCertificate`] when the peer presented none.
pub fn peer_identity(connection: &quinn::Connection) -> Result<PeerIdentity, PeerRefused> {
    let chain = connection.peer_identity().ok_or(PeerRefused::NoCertificate)?;
    let chain = chain.downcast::<Vec<CertificateDer<'static>>>().map_err(|_| PeerRefused::NoCertificate)?;
    let certificate = chain.first().ok_or(PeerRefused::NoCertificate)?;
    Ok(Claims::of(certificate)?.identity(certificate)?)
}

/// The protocol agreed on (ALPN); `None` before the handshake got that far.
pub fn protocol(connection: &quinn::Connection) -> Option<Vec<u8>> {
    connection.handshake_data()?.downcast::<HandshakeData>().ok()?.protocol
}

/// The accepting side of an endpoint for the public: nobody is asked who they are.
pub(crate) fn public(protocols: &[&[u8]], certificate: Arc<dyn ResolvesServerCert>) -> quinn::ServerConfig {
    quic(without_memory(tls13().with_no_client_auth().with_cert_resolver(certificate), protocols))
}

fn tls13() -> ConfigBuilder<ServerConfig, WantsVerifier> {
    ServerConfig::builder_with_provider(provider().clone()).with_protocol_versions(&[&TLS13]).expect("the provider has TLS 1.3")
}

/// A ticket would let a connection resume for hours on a certificate revoked meanwhile.
fn without_memory(mut config: ServerConfig, protocols: &[&[u8]]) -> ServerConfig {
    config.alpn_protocols = owned(protocols);
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    config
}

fn quic(config: ServerConfig) -> quinn::ServerConfig {
    let crypto = QuicServerConfig::try_from(config).expect("the provider has TLS13_AES_128_GCM_SHA256");
    quinn::ServerConfig::with_crypto(Arc::new(crypto))
}

fn owned(protocols: &[&[u8]]) -> Vec<Vec<u8>> {
    protocols.iter().map(|protocol| protocol.to_vec()).collect()
}

/// Presents the credentials in force, whoever asks: a holder has one certificate.
#[derive(Debug)]
struct Own(Arc<Live>);

impl Own {
    fn key(&self) -> Arc<CertifiedKey> {
        self.0.credentials.load().key().clone()
    }
}

impl ResolvesServerCert for Own {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.key())
    }
}

impl ResolvesClientCert for Own {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.key())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Shows nodes, and whoever else has a certificate of the cluster, the node's own certificate, and others what the public is to see.
#[derive(Debug)]
struct ByProtocol {
    own: Own,
    public: Arc<dyn ResolvesServerCert>,
}

impl ResolvesServerCert for ByProtocol {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        // The nodes' protocol comes first in our preference, so whoever offers it beside others speaks it.
        let offers = |wanted: &[u8]| hello.alpn().is_some_and(|mut offered| offered.any(|protocol| protocol == wanted));
        // Of the protocols beside it, those of programs: who has a certificate of the cluster dials by [`Tls::client`], which names nobody.
        // Clients of the web name a host, or have only its address, by HTTP/3.
        let holder = hello.server_name().is_none() && !offers(b"h3");
        if offers(ALPN) || holder { Some(self.own.key()) } else { self.public.resolve(hello) }
    }
}

#[cfg(test)]
mod tests;

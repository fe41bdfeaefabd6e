//! Where a node serves HTTP, and connections to it: TLS over TCP and QUIC, by any ALPN, showing any certificate.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use horos_link::identity::{CERTIFICATE, KEY};
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{Endpoint, VarInt};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde::{Deserialize, Serialize};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// For a handshake: generous, as many are made at once on two cores that both ends share.
pub(crate) const HANDSHAKE: Duration = Duration::from_secs(20);

/// Where a node serves HTTP, and whom to believe that it is this node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Site {
    pub(crate) address: SocketAddr,
    /// The name in its certificate.
    pub(crate) name: String,
    /// The certificate of the authority that signed it (PEM).
    pub(crate) authority: PathBuf,
}

impl Site {
    /// TLS as a client of `alpn` has it, showing the certificate of an identity directory, if any.
    ///
    /// # Panics
    /// When a file is not what it ought to be.
    pub(crate) fn tls(&self, alpn: &[&str], identity: Option<&Path>) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(&self.authority).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let versions = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let builder = versions.with_root_certificates(roots);
        let mut config = match identity {
            None => builder.with_no_client_auth(),
            Some(dir) => {
                let chain = CertificateDer::pem_file_iter(dir.join(CERTIFICATE)).unwrap().map(Result::unwrap).collect();
                builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_file(dir.join(KEY)).unwrap()).unwrap()
            }
        };
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        config
    }

    /// A TCP connection, from an address of loopback's other than its own where that is to stand for another host.
    pub(crate) async fn tcp(&self, from: Option<IpAddr>) -> io::Result<TcpStream> {
        let socket = TcpSocket::new_v4()?;
        if let Some(from) = from {
            socket.bind((from, 0).into())?;
        }
        let stream = socket.connect(self.address).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// A TLS connection over TCP.
    pub(crate) async fn stream(&self, tls: &Arc<ClientConfig>) -> io::Result<TlsStream<TcpStream>> {
        self.stream_from(tls, None).await
    }

    /// The same from another host.
    pub(crate) async fn stream_from(&self, tls: &Arc<ClientConfig>, from: Option<IpAddr>) -> io::Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from(self.name.clone()).unwrap();
        let connecting = async { TlsConnector::from(tls.clone()).connect(name, self.tcp(from).await?).await };
        timeout(HANDSHAKE, connecting).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    /// A QUIC connection.
    pub(crate) async fn quic(&self, endpoint: &Endpoint, tls: &ClientConfig) -> io::Result<quinn::Connection> {
        let connecting = endpoint.connect_with(quic_config(tls), self.address, &self.name).map_err(io::Error::other)?;
        timeout(HANDSHAKE, connecting).await.unwrap_or(Err(quinn::ConnectionError::TimedOut)).map_err(io::Error::other)
    }

    /// `https://…` of `path`.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("https://{}{path}", self.authority())
    }

    /// Name and port, as requests give them.
    pub(crate) fn authority(&self) -> String {
        format!("{}:{}", self.name, self.address.port())
    }
}

/// QUIC over `tls`, which must offer TLS 1.3 (RFC 9001 §4.2).
pub(crate) fn quic_config(tls: &ClientConfig) -> quinn::ClientConfig {
    let mut config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls.clone()).unwrap()));
    let mut transport = quinn::TransportConfig::default();
    // A window that no answer of a test fills, unless the test is about not reading it.
    transport.max_idle_timeout(Some(VarInt::from_u32(30_000).into()));
    config.transport_config(Arc::new(transport));
    config
}

/// An endpoint that only dials.
///
/// # Panics
/// When `host` is not of this machine.
pub(crate) fn dialer(host: impl Into<IpAddr>) -> Endpoint {
    Endpoint::client((host.into(), 0).into()).expect("loopback has a free port")
}

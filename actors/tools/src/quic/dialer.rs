//! Dialling doors of this cluster's nodes with a certificate of the cluster.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use horos_link::tls::{Expected, SERVER_NAME, Tls};
use quinn::{Connection, Endpoint};
use tokio::time::timeout;

use super::{ALPNS, DialError, SendError, transport_config};

/// Dials doors, as whoever its certificate names; what is at the other end shows one of the same cluster, or nothing is said to it.
#[derive(Debug)]
pub struct Dialer {
    endpoint: Endpoint,
    config: quinn::ClientConfig,
}

impl Dialer {
    /// With the certificate of `tls`. To be called on the runtime that is to drive it.
    ///
    /// # Errors
    /// The system gives no socket.
    pub fn new(tls: &Tls) -> io::Result<Self> {
        let mut config = tls.client(&ALPNS, Expected::AnyNode);
        config.transport_config(Arc::new(transport_config()));
        // One for both, where the system has IPv6.
        let endpoint =
            Endpoint::client((Ipv6Addr::UNSPECIFIED, 0).into()).or_else(|_| Endpoint::client((Ipv4Addr::UNSPECIFIED, 0).into()))?;
        Ok(Self { endpoint, config })
    }

    /// A connection to the door at `address`, `within` so long.
    ///
    /// # Errors
    /// [`DialError`]: nothing was asked.
    pub async fn connect(&self, address: SocketAddr, within: Duration) -> Result<Connection, DialError> {
        let towards = match (address, self.endpoint.local_addr()) {
            (SocketAddr::V4(v4), Ok(SocketAddr::V6(_))) => SocketAddr::from((v4.ip().to_ipv6_mapped(), v4.port())),
            _ => address,
        };
        let connecting = self.endpoint.connect_with(self.config.clone(), towards, SERVER_NAME)?;
        Ok(timeout(within, connecting).await.map_err(|_| DialError::Timeout(within))?.map_err(SendError::from)?)
    }

    /// Waits until those at the other end know that their connections are closed, for `within` at most.
    pub async fn close(self, within: Duration) {
        self.endpoint.close(0_u32.into(), b"the client is done");
        let _ = timeout(within, self.endpoint.wait_idle()).await;
    }
}

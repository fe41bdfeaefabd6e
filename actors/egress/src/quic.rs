//! The sockets of HTTP/3: one of each family of addresses, opened when it is first needed and again when it broke.
//!
//! Like [`Connect`](super::connect::Connect) it comes after every check, and sends nothing to any address but the one it is given: a host
//! may say that it prefers another (RFC 9000 §9.6), which is not heard, and packets from elsewhere are none of the connection's.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use quinn::{
    ClientConfig, ConnectError, Connecting, Connection, ConnectionError, Endpoint, TransportConfig, VarInt,
    crypto::rustls::QuicClientConfig,
};

use super::dial::{CONNECTION_WINDOW, DialError, PING, PONG, STREAM_WINDOW};

/// A connection says so often that it is still there. Hosts give one up after as little as 10 s.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// Streams that a host may have open besides its responses: three that matter (RFC 9114 §6.2), and some that are there to be ignored.
const HOSTS_STREAMS: u32 = 8;
/// Alerts of TLS among QUIC's errors (RFC 9001 §4.8), and the one that says that the protocol is not spoken (RFC 7301 §3.2).
const ALERTS: std::ops::Range<u64> = 0x100..0x200;
const NO_PROTOCOL: u64 = 0x178;

pub(crate) struct Sockets {
    config: ClientConfig,
    v4: Mutex<Option<Endpoint>>,
    v6: Mutex<Option<Endpoint>>,
}

impl Sockets {
    /// For connections that believe what `tls` does, and speak what it says.
    pub(crate) fn new(tls: rustls::ClientConfig) -> Self {
        let crypto = QuicClientConfig::try_from(tls).expect("aws-lc-rs has the cipher of QUIC's first packets");
        let mut config = ClientConfig::new(Arc::new(crypto));
        config.transport_config(Arc::new(transport()));
        Self { config, v4: Mutex::default(), v6: Mutex::default() }
    }

    /// Connects to `address`, which is to prove that it is `name`.
    pub(crate) async fn connect(&self, address: SocketAddr, name: &str) -> Result<Connection, DialError> {
        let unreachable = |error: &dyn std::error::Error| DialError::Unreachable(error.to_string().into());
        let connecting = match self.begin(address, name) {
            // Whoever drove the socket is gone: its runtime, or the socket broke.
            Ok(Err(ConnectError::EndpointStopping)) => {
                *self.slot(address).lock() = None;
                self.begin(address, name)
            }
            begun => begun,
        };
        let connecting = connecting.map_err(|error| unreachable(&error))?.map_err(|error| unreachable(&error))?;
        // Never `into_0rtt`: what is sent early can be replayed by anybody.
        connecting.await.map_err(|error| match &error {
            ConnectionError::TransportError(wrong) => match u64::from(wrong.code) {
                NO_PROTOCOL => DialError::Unreachable("it does not speak HTTP/3".into()),
                code if ALERTS.contains(&code) => DialError::Untrusted(wrong.to_string().into()),
                _ => unreachable(&error),
            },
            ConnectionError::ConnectionClosed(close) if u64::from(close.error_code) == NO_PROTOCOL => {
                DialError::Unreachable("it does not speak HTTP/3".into())
            }
            _ => unreachable(&error),
        })
    }

    fn begin(&self, address: SocketAddr, name: &str) -> io::Result<Result<Connecting, ConnectError>> {
        let mut slot = self.slot(address).lock();
        let endpoint = match &mut *slot {
            Some(endpoint) => endpoint,
            None => {
                let any = if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
                slot.insert(Endpoint::client(SocketAddr::new(any, 0))?)
            }
        };
        Ok(endpoint.connect_with(self.config.clone(), address, name))
    }

    fn slot(&self, address: SocketAddr) -> &Mutex<Option<Endpoint>> {
        if address.is_ipv4() { &self.v4 } else { &self.v6 }
    }
}

fn transport() -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport
        .stream_receive_window(STREAM_WINDOW.into())
        .receive_window(CONNECTION_WINDOW.into())
        .send_window(CONNECTION_WINDOW.into())
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .max_concurrent_uni_streams(VarInt::from_u32(HOSTS_STREAMS))
        .datagram_receive_buffer_size(None)
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_idle_timeout(Some((PING + PONG).try_into().expect("seconds, of which QUIC can say millions")));
    transport
}

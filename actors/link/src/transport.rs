//! What a connection may hold: the socket's buffers, and QUIC's windows and limits on either side.
//!
//! One port takes every protocol, and QUIC states its limits before TLS has told the protocols apart. So whoever comes in
//! gets what a stranger may have ([`accepting`]), and a peer that has proven itself gets the rest ([`admitted`]). A node that
//! dials states its own from the start ([`transport`]): it knows whom it dials.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use quinn::{AckFrequencyConfig, Connection, MtuDiscoveryConfig, TransportConfig, VarInt};

use crate::{config::Config, endpoint::EndpointError, peer::STREAMS, window};

/// What a peer may have sent on one stream and we not read: 1 MiB, 20 MB/s at 50 ms, as much as quinn's own default.
const STREAM_WINDOW: u32 = 1024 * 1024;
/// What a peer may have sent in all and we not read. The whole is the sum of its parts: were it less, a few streams that
/// nobody reads yet (a bulk body whose reader is slow, large bodies behind a full mailbox) would use it up, and heartbeats
/// would wait behind them until the link is down.
const WINDOW: u32 = (STREAMS as u32 + 2) * STREAM_WINDOW;
/// Two-way streams that a node opens: control, and its requests.
const TWO_WAY: u32 = 2;
/// The largest datagram. Ten segments of more overrun a GSO batch, and the connection hangs (quinn #2199).
const LARGEST: u16 = 6500;

/// What a stranger may have sent in all and we not read; and what we may have written and a stranger not acknowledged.
const STRANGERS_WINDOW: u32 = 1024 * 1024;
/// One-way streams of a stranger: the control stream and the two QPACK streams of HTTP/3 (RFC 9114 §6.2).
const STRANGERS_ONE_WAY: u32 = 3;
/// Two-way streams of a stranger, until the handler of its protocol allows more: a page's first requests.
const STRANGERS_TWO_WAY: u32 = 8;
/// Silence after which a stranger's connection is over. Between nodes the dialer's five seconds count: the shorter of the
/// two ends' holds (RFC 9000 §10.1).
pub(crate) const STRANGERS_IDLE: Duration = Duration::from_secs(30);
/// The datagrams that every path carries (RFC 9000 §14): what a stranger's path takes beyond is found out.
const EVERYWHERE: u16 = 1200;

/// The transport of the connections that a node dials; public so that a benchmark's floor uses the same.
pub fn transport(config: &Config) -> Arc<TransportConfig> {
    let mut transport = common(config.mtu);
    transport
        .initial_mtu(config.mtu.min(LARGEST))
        .max_idle_timeout(Some(Duration::from_secs(5).try_into().expect("five seconds fit a varint")))
        .keep_alive_interval(Some(Duration::from_secs(1)))
        .max_concurrent_bidi_streams(VarInt::from_u32(TWO_WAY))
        .max_concurrent_uni_streams(VarInt::from_u32(STREAMS as u32))
        .receive_window(VarInt::from_u32(WINDOW))
        // What we may have written and the peer not acknowledged; it is memory, so it is bounded like the rest.
        .send_window(window::MOST);
    Arc::new(transport)
}

/// The transport of whoever comes in; public so that a benchmark's floor uses the same. `mtu` is the largest datagram worth
/// trying.
///
/// It keeps nobody alive: a stranger that has nothing to say goes, and a node that dials keeps its link alive itself.
pub fn accepting(mtu: u16) -> Arc<TransportConfig> {
    let mut transport = common(mtu);
    transport
        .initial_mtu(EVERYWHERE)
        .max_idle_timeout(Some(STRANGERS_IDLE.try_into().expect("half a minute fits a varint")))
        .max_concurrent_bidi_streams(VarInt::from_u32(STRANGERS_TWO_WAY))
        .max_concurrent_uni_streams(VarInt::from_u32(STRANGERS_ONE_WAY))
        .receive_window(VarInt::from_u32(STRANGERS_WINDOW))
        .send_window(STRANGERS_WINDOW.into());
    Arc::new(transport)
}

/// Gives a connection that came in, and whose peer has been admitted, what a node's link has. It counts at once: the peer
/// is told with the next packet. What it may send is [`window`]'s.
pub(crate) fn admitted(connection: &Connection) {
    connection.set_max_concurrent_bi_streams(VarInt::from_u32(TWO_WAY));
    connection.set_max_concurrent_uni_streams(VarInt::from_u32(STREAMS as u32));
    connection.set_receive_window(VarInt::from_u32(WINDOW));
}

fn common(mtu: u16) -> TransportConfig {
    let mut transport = TransportConfig::default();
    // A lost tail is noticed after the peer's delay, 25 ms by default; 5 ms brings the p99 at 2 % loss from 29 to 7 ms.
    let mut acks = AckFrequencyConfig::default();
    acks.ack_eliciting_threshold(VarInt::from_u32(1)).max_ack_delay(Some(Duration::from_millis(5)));
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(mtu.min(LARGEST));
    transport
        .ack_frequency_config(Some(acks))
        .mtu_discovery_config(Some(discovery))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .datagram_receive_buffer_size(None);
    transport
}

/// A UDP socket with the buffers that GSO batches need: the 208 KiB default loses two thousand packets in 256 MB on loopback.
///
/// # Errors
/// [`EndpointError::InUse`] and [`EndpointError::Bind`].
pub fn socket(address: SocketAddr) -> Result<std::net::UdpSocket, EndpointError> {
    let bind = || -> io::Result<std::net::UdpSocket> {
        let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::DGRAM, Some(socket2::Protocol::UDP))?;
        const BUFFER: usize = 4 * 1024 * 1024;
        // The kernel's own limit may be lower, and then less is what there is.
        let _ = socket.set_recv_buffer_size(BUFFER);
        let _ = socket.set_send_buffer_size(BUFFER);
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        Ok(socket.into())
    };
    bind().map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => EndpointError::InUse { address },
        _ => EndpointError::Bind { address, source },
    })
}

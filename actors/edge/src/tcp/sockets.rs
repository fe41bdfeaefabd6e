//! Takes the two sockets of one port.

use std::{
    fmt, io,
    net::{SocketAddr, TcpListener, UdpSocket},
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};

/// Connections that the kernel keeps for the accept loop. What it allows (`net.core.somaxconn`, 4096 on Linux) may be less.
const BACKLOG: i32 = 4096;
/// With port 0 the kernel picks a free TCP port whose number may be taken for UDP.
const TRIES: usize = 16;

/// One address, bound for TCP and for UDP.
#[derive(Debug)]
pub struct Sockets {
    /// Listens.
    pub tcp: TcpListener,
    /// For QUIC.
    pub udp: UdpSocket,
    /// With the number that was found where 0 was asked for.
    pub address: SocketAddr,
}

/// One of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// HTTP/1.1 and HTTP/2.
    Tcp,
    /// HTTP/3 and node traffic.
    Udp,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        })
    }
}

/// Why an address cannot be had. Nothing was taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ListenError {
    /// Somebody has it.
    #[error("{transport} {address} is taken by another process; stop it (`ss -lpn 'sport = {port}'` names it) or listen at another port", port = .address.port())]
    InUse {
        /// Which of the two.
        transport: Transport,
        /// The address.
        address: SocketAddr,
    },
    /// It is no address of this machine.
    #[error("{address} is no address of this machine; listen at one that `ip address` shows, or at 0.0.0.0 or [::]")]
    NotHere {
        /// The address.
        address: SocketAddr,
    },
    /// It needs a right that the process has not.
    #[error("{transport} {address} may not be bound by this process; ports below 1024 need CAP_NET_BIND_SERVICE")]
    NotAllowed {
        /// Which of the two.
        transport: Transport,
        /// The address.
        address: SocketAddr,
    },
    /// No number is free for both.
    #[error("no port is free for both TCP and UDP at {ip} after {TRIES} tries; name a port", ip = .address.ip())]
    NoPort {
        /// The address.
        address: SocketAddr,
    },
    /// Anything else.
    #[error("cannot listen at {transport} {address}")]
    Io {
        /// Which of the two.
        transport: Transport,
        /// The address.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl ListenError {
    fn new(transport: Transport, address: SocketAddr, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::AddrInUse => Self::InUse { transport, address },
            io::ErrorKind::AddrNotAvailable => Self::NotHere { address },
            io::ErrorKind::PermissionDenied => Self::NotAllowed { transport, address },
            _ => Self::Io { transport, address, source },
        }
    }
}

impl Sockets {
    /// Binds `address` for TCP and then for UDP; port 0 takes a number that is free for both.
    ///
    /// # Errors
    /// [`ListenError`] says which of the two cannot be had, and what to do.
    pub fn bind(address: SocketAddr) -> Result<Self, ListenError> {
        for _ in 0..TRIES {
            let tcp = listen(address).map_err(|source| ListenError::new(Transport::Tcp, address, source))?;
            let bound = tcp.local_addr().map_err(|source| ListenError::new(Transport::Tcp, address, source))?;
            match udp(bound) {
                Ok(udp) => return Ok(Self { tcp, udp, address: bound }),
                Err(ListenError::InUse { .. }) if address.port() == 0 => {}
                Err(error) => return Err(error),
            }
        }
        Err(ListenError::NoPort { address })
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // A restarted node takes its address although connections of its last life are in TIME_WAIT.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    // On Linux every accepted socket inherits these. A client that vanishes while its answer is being made is noticed
    // after a minute, though nothing is written to it.
    socket.set_tcp_keepalive(
        &TcpKeepalive::new().with_time(Duration::from_secs(30)).with_interval(Duration::from_secs(10)).with_retries(3),
    )?;
    socket.set_tcp_nodelay(true)?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn udp(address: SocketAddr) -> Result<UdpSocket, ListenError> {
    horos_link::socket(address).map_err(|error| match error {
        horos_link::EndpointError::InUse { address } => ListenError::InUse { transport: Transport::Udp, address },
        horos_link::EndpointError::Bind { address, source } => ListenError::new(Transport::Udp, address, source),
        other => ListenError::Io { transport: Transport::Udp, address, source: io::Error::other(other) },
    })
}

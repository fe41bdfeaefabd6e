//! How a connection to an address is opened.

use std::{fmt, future::Future, io, net::SocketAddr, pin::Pin};

use tokio::net::TcpStream;

/// A connection being opened.
pub type Connecting = Pin<Box<dyn Future<Output = io::Result<TcpStream>> + Send>>;

/// Opens connections. It comes after every check: `address` is one that the policy permits, at this moment, for this request.
pub trait Connect: fmt::Debug + Send + Sync + 'static {
    /// Connects to `address` and to no other. The future is dropped when the time to connect is over.
    fn connect(&self, address: SocketAddr) -> Connecting;
}

/// TCP, as the operating system has it.
#[derive(Clone, Copy, Debug, Default)]
pub struct TcpConnector;

impl Connect for TcpConnector {
    fn connect(&self, address: SocketAddr) -> Connecting {
        Box::pin(TcpStream::connect(address))
    }
}

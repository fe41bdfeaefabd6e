//! The socket of an endpoint that is closed: none.
//!
//! A closed endpoint keeps its socket until the last of its connections is forgotten, which one that a peer gave up with its
//! very first packet is only after its idle timeout (quinn-proto 0.11.19 sets it no other timer). A node gives its port back
//! when it says so.

use std::{
    io::{self, IoSliceMut},
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use quinn::{
    AsyncUdpSocket, Endpoint, UdpPoller,
    udp::{RecvMeta, Transmit},
};

/// Takes the socket away from an endpoint that is closed. What its connections still send goes nowhere.
pub(crate) fn let_go(endpoint: &Endpoint) {
    let Ok(address) = endpoint.local_addr() else { return };
    // An endpoint listens on the socket before its latest, too, so it takes two to be rid of the first.
    for _ in 0..2 {
        // It fails only for a socket that does not know its address.
        let _ = endpoint.rebind_abstract(Arc::new(Gone(address)));
    }
}

/// Where the socket was bound.
#[derive(Debug)]
struct Gone(SocketAddr);

impl AsyncUdpSocket for Gone {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Always)
    }

    fn try_send(&self, _: &Transmit<'_>) -> io::Result<()> {
        Ok(())
    }

    fn poll_recv(&self, _: &mut Context<'_>, _: &mut [IoSliceMut<'_>], _: &mut [RecvMeta]) -> Poll<io::Result<usize>> {
        Poll::Pending
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.0)
    }
}

/// What goes nowhere may always go.
#[derive(Debug)]
struct Always;

impl UdpPoller for Always {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

//! The endpoint of the public, where it is not the nodes': `listen.public` beside `listen.cluster`.
//!
//! Opened by `nodes` when the two differ. A socket, a certificate and protocols of its own: no client certificate is asked
//! for and the nodes' protocol is not spoken. It lets in by the same rules, with the same bounds and counters.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use horos_supervision::{ChildSpec, worker};
use horos_wire::control::Close;
use quinn::EndpointConfig;
use rustls::server::ResolvesServerCert;

use crate::{
    config::Admission,
    counters::AdmissionCounters,
    door::{self, Door},
    endpoint::{ALPN, EndpointError},
    gone,
    served::{Handlers, Served},
    tls, transport,
};

/// The largest datagram tried on the way to the public: Ethernet.
const MTU: u16 = 1452;

/// An endpoint that serves the public and no nodes. Cheap to clone.
#[derive(Clone, Debug)]
pub struct PublicEndpoint {
    quinn: quinn::Endpoint,
    door: Door,
}

impl PublicEndpoint {
    /// Serves `handlers` on `socket` (see [`crate::socket`]) with the certificate that `certificate` has for each who comes.
    /// To be called on the runtime that is to drive the endpoint.
    ///
    /// # Errors
    /// [`EndpointError::Reserved`] when a handler is given for the nodes' protocol; [`EndpointError::Socket`].
    pub fn open(
        socket: std::net::UdpSocket,
        admission: Admission,
        certificate: Arc<dyn ResolvesServerCert>,
        handlers: Handlers,
    ) -> Result<Self, EndpointError> {
        if handlers.contains_key(ALPN) {
            return Err(EndpointError::Reserved);
        }
        let served = Served::new(handlers);
        let mut server = tls::public(&served.names().collect::<Vec<_>>(), certificate);
        door::bounded(&mut server, &admission, transport::accepting(MTU));
        let runtime = Arc::new(quinn::TokioRuntime);
        let quinn = quinn::Endpoint::new(EndpointConfig::default(), Some(server), socket, runtime).map_err(EndpointError::Socket)?;
        let door = Door::new(quinn.clone(), admission, Arc::default(), served);
        Ok(Self { quinn, door })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// When the socket is gone.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.quinn.local_addr()
    }

    /// What became of whoever came; none of them is asked for an identity.
    pub fn counters(&self) -> &Arc<AdmissionCounters> {
        &self.door.counters
    }

    /// The children that the link's supervisor is to start: the accept loop, and the owner of the connections.
    pub fn children(&self) -> Vec<ChildSpec> {
        let door = self.door.clone();
        let accept = worker("public-accept", move |vitals| door.clone().run(vitals, |_| std::future::ready(Err(Close::Alpn))));
        let served = self.door.served.clone();
        vec![accept, worker("public-connections", move |vitals| served.clone().run(vitals))]
    }

    /// Refuses new connections from now on; see [`crate::Endpoint::stop_accepting`].
    pub fn stop_accepting(&self) {
        self.door.shut();
    }

    /// Closes every connection that is left, waits until the peers know or `within` has passed, and gives the port back.
    ///
    /// To be called when the handlers have drained theirs; what is in hand now is cut.
    pub async fn close(&self, within: Duration) {
        self.door.shut();
        self.quinn.close((Close::GoingAway as u32).into(), b"the node is stopping");
        // A client that does not acknowledge is told again, and then left.
        let _ = tokio::time::timeout(within, self.quinn.wait_idle()).await;
        gone::let_go(&self.quinn);
    }
}

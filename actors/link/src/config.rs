//! What a node's link to others is made with.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use horos_supervision::Exchange;
use horos_wire::{policy::Policy, session::Liveness};
use rustls::server::ResolvesServerCert;

use crate::{
    link::Limits,
    tls::{Expected, Tls},
};

/// What a node's endpoint is made with. Checked by whoever reads configuration; trusted here.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where to listen; port 0 picks one. A caller that only dials listens on an unnamed port too.
    pub listen: SocketAddr,
    /// What peers are told to dial. When empty, the bound address, unless that is every address of the machine's, of which
    /// none is told; nor is any for a caller that only dials.
    pub advertise: Vec<SocketAddr>,
    /// Nodes to dial from the start.
    pub seeds: Vec<SocketAddr>,
    /// The same by `host:port`, looked up anew at every dial, with whom to expect there.
    pub seed_names: Vec<(Box<str>, Expected)>,
    /// Nodes that were linked in this node's last life: dialled once at the start, whichever end dials
    /// otherwise, so that they need not find out for themselves that it is back.
    pub greet: Vec<SocketAddr>,
    /// A secret that the node keeps over its lives. With it, whatever a peer still sends to the last life is
    /// answered with a stateless reset (RFC 9000 §10.3) and the peer knows at once; without, it waits for silence.
    pub secret: Option<Secret>,
    /// How long silence may last.
    pub liveness: Liveness,
    /// How much one link may hold.
    pub limits: Limits,
    /// What may be on its way in.
    pub admission: Admission,
    /// The datagram size to start with, 1200 to 6500 bytes. Default 1452: Ethernet.
    ///
    /// Never above 6500: ten segments of more overrun a GSO batch, and the connection hangs (quinn #2199). It is what
    /// dials start with; to those who come in, 1200 is sent first and this much as soon as it has got through.
    pub mtu: u16,
    /// Whether nodes heard of by gossip are dialled, and what is heard is passed on.
    pub gossip: bool,
}

/// Thirty-two bytes that are nobody else's; not shown.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Secret(pub [u8; 32]);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

/// Bounds on connections that are not yet anybody's. Whoever has not shown that it receives at its address gets a sixteenth
/// of the handshakes, and half of those of an address; beyond that it is asked to (a QUIC Retry).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admission {
    /// Handshakes at once. Default 1,024.
    pub handshakes: usize,
    /// Handshakes at once from one address (an IPv6 /64 counts as one). Default 64.
    pub handshakes_per_address: usize,
    /// For a handshake to end. Default 3 s.
    pub handshake_timeout: Duration,
    /// Sessions at once, nodes and people. Default 1,024.
    pub sessions: usize,
}

impl Default for Admission {
    fn default() -> Self {
        Self { handshakes: 1024, handshakes_per_address: 64, handshake_timeout: Duration::from_secs(3), sessions: 1024 }
    }
}

impl Config {
    /// The defaults, listening on `listen`.
    pub fn new(listen: SocketAddr) -> Self {
        Self {
            listen,
            advertise: Vec::new(),
            seeds: Vec::new(),
            seed_names: Vec::new(),
            greet: Vec::new(),
            secret: None,
            liveness: Liveness::default(),
            limits: Limits::default(),
            admission: Admission::default(),
            mtu: 1452,
            gossip: true,
        }
    }
}

/// What the link is given of its node.
#[derive(Clone, Debug)]
pub struct Parts {
    /// The node's directory of names.
    pub exchange: Exchange,
    /// Who may call what.
    pub policy: Arc<Policy>,
    /// The node's side of every handshake.
    pub tls: Arc<Tls>,
    /// The release, for people.
    pub release: &'static str,
    /// The certificates shown to whoever does not come by the nodes' protocol: HTTP/3 and the like. The node's own where
    /// none are given.
    pub public: Option<Arc<dyn ResolvesServerCert>>,
}

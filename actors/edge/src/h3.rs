//! HTTP/3, on the QUIC endpoint of the node.
//!
//! `link` takes connections and knows their protocol; those of ALPN `h3` come to a [`Door`], one for each endpoint, and
//! are served on the edge's runtime, so that no request holds up what drives QUIC. h3 reads and writes heads; everything
//! that a client sends is looked at before (`frames`, `uni`), and what a connection may hold, waste and wait for is
//! bounded here:
//!
//! | what | bound |
//! |---|---|
//! | connections, and of one address | `limits.connections`, `limits.connections_per_address` |
//! | requests at once | `limits.streams` |
//! | a frame other than DATA; all of one request | 64 KiB; 256 KiB in 128 frames |
//! | incomplete frames of a connection | 1 MiB |
//! | a head; its fields | `limits.head`; `limits.fields` |
//! | requests opened and given up | twice `limits.streams`, then ten a second |
//! | a head's time, an answer's untaken, a connection's idle | `timeouts` |
//!
//! Whoever goes beyond is told so in the words of RFC 9114 §8.1, and counted.

use std::{fmt, sync::Arc};

use ::h3::error::Code;
use futures_util::future::BoxFuture;
use horos_link::AlpnHandler;
use tokio::{runtime::Handle, task::JoinHandle};

use crate::{App, Config, Drain, Metrics, Peer, Plane, Reason, Version};

mod body;
mod connection;
mod frames;
mod gate;
mod head;
mod outgoing;
mod patience;
mod quic;
mod request;
mod table;
mod uni;
mod violation;

/// Connections that are on their way out to make room for others, and take a place of the endpoint's meanwhile: as many as
/// come in a second of a flood.
const LEAVING: usize = 4096;

/// HTTP/3 of one node. Cheap to clone.
#[derive(Clone)]
pub struct Http3(Arc<Inner>);

impl fmt::Debug for Http3 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Http3({} open)", self.open())
    }
}

pub(crate) struct Inner {
    app: App,
    config: Arc<Config>,
    metrics: Metrics,
    drain: Drain,
    runtime: Handle,
    table: Arc<table::Table>,
}

impl Http3 {
    /// The protocol's name in TLS (RFC 9114 §3.1).
    pub const ALPN: &[u8] = b"h3";

    /// What answers requests, and the runtime on which that is done.
    pub fn new(app: App, config: Arc<Config>, metrics: Metrics, drain: Drain, runtime: Handle) -> Self {
        let table = table::Table::new(config.limits.connections, config.limits.connections_per_address, &config.trusted_proxies);
        Self(Arc::new(Inner { app, config, metrics, drain, runtime, table }))
    }

    /// What an endpoint that listens for `plane` hands its connections of ALPN `h3` to.
    pub fn door(&self, plane: Plane) -> Arc<dyn AlpnHandler> {
        Arc::new(Door { inner: self.0.clone(), plane })
    }

    /// How many connections there are.
    pub fn open(&self) -> usize {
        self.0.table.open()
    }

    /// Returns when there is none. While the node drains they all end by its deadline.
    pub async fn emptied(&self) {
        self.0.table.emptied().await;
    }
}

/// Where one endpoint's connections come in.
struct Door {
    inner: Arc<Inner>,
    plane: Plane,
}

impl Door {
    fn turn_away(&self, connection: &quinn::Connection, reason: Reason) {
        self.inner.metrics.refused(reason, Some(Version::Http3));
        connection.close(violation::varint(Code::H3_EXCESSIVE_LOAD), reason.as_str().as_bytes());
    }
}

impl AlpnHandler for Door {
    fn connections(&self) -> usize {
        // Who makes room is decided here, so the endpoint is to refuse nobody before.
        self.inner.config.limits.connections.saturating_add(LEAVING)
    }

    fn refuse(&self, connection: &quinn::Connection) {
        self.turn_away(connection, Reason::ConnectionsFull);
    }

    fn serve(&self, connection: quinn::Connection) -> BoxFuture<'static, ()> {
        let address = connection.remote_address();
        // While the node drains, the endpoint takes nobody new. Who comes here had been let in before, and may have asked
        // already: it is served, and told to go at once.
        let place = match self.inner.table.enter(address) {
            Ok(place) => place,
            Err(reason) => {
                self.turn_away(&connection, reason);
                return Box::pin(std::future::ready(()));
            }
        };
        let peer = Peer { address, version: Version::Http3, plane: self.plane, tls: true };
        let served = Served(self.inner.runtime.spawn(connection::serve(self.inner.clone(), connection, peer, place)));
        Box::pin(async move {
            // A connection's task that fails has closed the connection by that.
            let _ = served.wait().await;
        })
    }
}

/// A connection's task; ends with whoever waits for it.
struct Served(JoinHandle<()>);

impl Served {
    async fn wait(mut self) -> Result<(), tokio::task::JoinError> {
        (&mut self.0).await
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.0.abort();
    }
}

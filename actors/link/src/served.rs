//! Owns the connections of every protocol but the nodes' own: which handler has them, and how many there may be.
//!
//! Its worker `connections` is a child of the link's supervisor beside the accept loop, so that what happens to the one ends
//! nothing of the other. A connection ends with its handler's future, or with the worker; no task outlives both.

use std::{collections::HashMap, fmt, sync::Arc, time::Instant};

use futures_util::future::BoxFuture;
use horos_supervision::Vitals;
use horos_wire::control::Close;
use quinn::Connection;
use tokio::{
    sync::{Mutex, OwnedSemaphorePermit, Semaphore, mpsc},
    task::JoinSet,
};

use crate::counters::{AdmissionCounters, count};

/// Connections of one protocol at once, where its handler says nothing else: twice what HTTP takes by default, so that a
/// handler which lets the longest idle make room has the room to do so.
const CONNECTIONS: usize = 32_768;

/// Serves the connections of one ALPN other than [`crate::ALPN`].
///
/// Whoever is at the other end may be anybody: a client certificate is asked for on the port that nodes share, and need not
/// be shown. A handler that wants to know its peer asks [`crate::tls::Tls::admit`] before it reads a stream.
///
/// A connection comes with a stranger's limits: 8 two-way and 3 one-way streams, 1 MiB sent and not read, 1 MiB written and
/// not acknowledged, 30 s of silence. The handler raises or lowers all but the last on the connection; it counts at once.
pub trait AlpnHandler: Send + Sync + 'static {
    /// Serves a connection until it ends. Polled by a task of the link's runtime; a handler that works on another runtime
    /// spawns there and waits here.
    ///
    /// # Cancel safety
    /// When the future ends or is dropped, the connection is closed with code 0 if it is not closed yet, and whatever else
    /// has a handle on it sees that. So a handler says why it closes before its future ends.
    fn serve(&self, connection: Connection) -> BoxFuture<'static, ()>;

    /// Connections at once, asked once when the endpoint opens; those beyond are [`refuse`](Self::refuse)d. A connection
    /// counts until its future ends. Default 32,768.
    fn connections(&self) -> usize {
        CONNECTIONS
    }

    /// Closes a connection for which there is no place, with the code that the protocol has for it.
    fn refuse(&self, connection: &Connection) {
        connection.close((Close::Limit as u32).into(), b"no more connections of this protocol");
    }
}

/// The protocols that an endpoint serves, by ALPN.
pub type Handlers = HashMap<Vec<u8>, Arc<dyn AlpnHandler>>;

/// The handlers, and the way to the worker that owns what they serve. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Served {
    protocols: Arc<HashMap<Vec<u8>, Protocol>>,
    queue: mpsc::Sender<Entered>,
    /// Taken up again by the worker's next life: whoever has come meanwhile is served then.
    waiting: Arc<Mutex<mpsc::Receiver<Entered>>>,
}

struct Protocol {
    handler: Arc<dyn AlpnHandler>,
    places: Arc<Semaphore>,
}

/// A connection on its way to its handler.
struct Entered {
    handler: Arc<dyn AlpnHandler>,
    held: Held,
}

/// A connection that has a place; closed when it loses it.
struct Held {
    connection: Connection,
    _place: OwnedSemaphorePermit,
}

impl Drop for Held {
    fn drop(&mut self) {
        // Nothing happens to one that is closed already.
        self.connection.close((Close::Done as u32).into(), b"");
    }
}

impl fmt::Debug for Served {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.protocols.keys().map(|protocol| String::from_utf8_lossy(protocol))).finish()
    }
}

impl Served {
    pub(crate) fn new(handlers: Handlers) -> Self {
        let protocol = |handler: Arc<dyn AlpnHandler>| {
            let places = handler.connections().min(Semaphore::MAX_PERMITS);
            Protocol { handler, places: Arc::new(Semaphore::new(places)) }
        };
        let protocols: HashMap<_, _> = handlers.into_iter().map(|(name, handler)| (name, protocol(handler))).collect();
        // Each that waits has a place, so the queue is never full.
        let most = protocols.values().map(|protocol| protocol.places.available_permits()).fold(1, usize::saturating_add);
        let (queue, waiting) = mpsc::channel(most.min(Semaphore::MAX_PERMITS));
        Self { protocols: Arc::new(protocols), queue, waiting: Arc::new(Mutex::new(waiting)) }
    }

    /// The protocols, for TLS to choose from.
    pub(crate) fn names(&self) -> impl Iterator<Item = &[u8]> {
        self.protocols.keys().map(Vec::as_slice)
    }

    /// Hands a connection to the handler of `protocol`, or closes it.
    pub(crate) fn enter(&self, protocol: &[u8], connection: Connection, counters: &AdmissionCounters) {
        let Some(Protocol { handler, places }) = self.protocols.get(protocol) else {
            connection.close((Close::Alpn as u32).into(), b"protocol not served");
            return;
        };
        let Ok(place) = places.clone().try_acquire_owned() else {
            count(&counters.protocol_full);
            handler.refuse(&connection);
            return;
        };
        count(&counters.admitted);
        let entered = Entered { handler: handler.clone(), held: Held { connection, _place: place } };
        // It fails only when the endpoint is gone, and the connection with it.
        let _ = self.queue.try_send(entered);
    }

    /// Serves until it is stopped.
    pub(crate) async fn run(self, vitals: Arc<Vitals>) {
        let mut waiting = self.waiting.lock().await;
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                Some(Entered { handler, held }) = waiting.recv() => {
                    connections.spawn(async move {
                        let served = handler.serve(held.connection.clone());
                        served.await;
                        drop(held);
                    });
                }
                Some(ended) = connections.join_next() => {
                    if let Err(error) = ended && error.is_panic() {
                        tracing::error!(%error, "a connection's handler panicked; the connection is closed");
                    }
                }
            }
            vitals.progressed(Instant::now());
        }
    }
}

//! Owns the TCP side of the port: it accepts, shakes hands, and runs HTTP/1.1 and HTTP/2 for the router.
//!
//! Started by [`crate::Edge`], a [`TcpDoor`] for each address. Its accept loop is a supervised child and runs, as every
//! connection's task does, on the runtime for HTTP. A restart of the loop leaves connections alone.
//!
//! Promises:
//! - The loop never waits for a client: handshakes are tasks with a deadline, and as many at a time as the limits say.
//! - TLS 1.3 and 1.2, with tickets that the server does not keep, no 0-RTT, no client certificates. Who offers no
//!   protocol (ALPN) speaks HTTP/1.1; who offers only unknown ones fails at the handshake. Without TLS there is only
//!   HTTP/1.1, on loopback.
//! - A client that is slow at anything costs a bounded time and memory ([`crate::connections`] looks after that).
//! - A drain answers whatever was accepted before its end: the kernel's queue is emptied, then nothing more is taken.

mod answer;
mod begun;
mod connection;
mod frames;
mod io;
mod sockets;
mod tls;

use std::{
    io::ErrorKind,
    net::{IpAddr, SocketAddr, TcpListener},
    panic::resume_unwind,
    sync::Arc,
    time::{Duration, Instant},
};

use horos_supervision::{ChildSpec, Vitals, worker};
use parking_lot::Mutex;
use tokio::{net::TcpStream, runtime::Handle, sync::watch, task::JoinHandle};

pub use self::sockets::{ListenError, Sockets, Transport};
#[cfg(feature = "acme")]
pub(crate) use self::tls::ACME;
pub(crate) use self::tls::{Challenges, accepting};
use crate::{App, Config, Drain, Metrics, Phase, Plane, connections::Connections};

/// Pauses after an accept that failed for want of something, doubled each time.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// Connections accepted before others on the runtime have their turn.
const AT_ONCE: usize = 64;

/// What all doors share.
#[derive(Clone, Debug)]
pub(crate) struct Inside {
    pub(crate) config: Arc<Config>,
    pub(crate) app: App,
    pub(crate) connections: Arc<Connections>,
    pub(crate) metrics: Metrics,
    pub(crate) drain: Drain,
    /// `None` for plain HTTP.
    pub(crate) tls: Option<Arc<rustls::ServerConfig>>,
    pub(crate) runtime: Handle,
}

/// One listener and what goes on behind it.
#[derive(Debug)]
pub(crate) struct TcpDoor {
    inside: Inside,
    plane: Plane,
    address: SocketAddr,
    /// `None` once the node drains. A restarted loop goes on with the same one.
    listener: Mutex<Option<TcpListener>>,
    /// Whether all that the kernel had accepted was taken, and nothing more is.
    closed: watch::Sender<bool>,
    http1: hyper::server::conn::http1::Builder,
}

impl TcpDoor {
    pub(crate) fn new(inside: Inside, listener: TcpListener, plane: Plane, address: SocketAddr) -> Arc<Self> {
        let http1 = connection::http1(&inside.config.limits);
        Arc::new(Self { inside, plane, address, listener: Mutex::new(Some(listener)), closed: watch::Sender::new(false), http1 })
    }

    pub(crate) fn child(self: &Arc<Self>) -> ChildSpec {
        let name = match self.plane {
            Plane::Both => "http",
            Plane::Public => "http-public",
            Plane::Cluster => "http-cluster",
        };
        let door = self.clone();
        worker(name, move |vitals| run_on(door.inside.runtime.clone(), door.clone().accept(vitals)))
    }

    /// Takes connections until the node drains, and then waits to be stopped.
    async fn accept(self: Arc<Self>, vitals: Arc<Vitals>) {
        let mut drain = self.inside.drain.watch();
        let listener = self.listener.lock().as_ref().map(TcpListener::try_clone);
        let listener = listener.map(|listener| listener.and_then(tokio::net::TcpListener::from_std));
        match listener {
            Some(Ok(listener)) => tokio::select! {
                () = self.take_all(listener, &vitals) => {}
                _ = drain.wait_for(|phase| matches!(phase, Phase::Draining { .. })) => self.close(&vitals),
            },
            // The supervisor tries again, and gives up if it stays so.
            Some(Err(error)) => return tracing::error!(address = %self.address, %error, "cannot accept connections"),
            None => {}
        }
        std::future::pending().await
    }

    async fn take_all(self: &Arc<Self>, listener: tokio::net::TcpListener, vitals: &Vitals) {
        let mut pause = FIRST_PAUSE;
        for count in 1_usize.. {
            match listener.accept().await {
                Ok((stream, peer)) => {
                    vitals.progressed(Instant::now());
                    self.admit(stream, peer);
                    pause = FIRST_PAUSE;
                    if count.is_multiple_of(AT_ONCE) {
                        tokio::task::yield_now().await;
                    }
                }
                Err(error) if is_of_one(&error) => {}
                Err(error) => {
                    // File descriptors or kernel memory, which a connection that is not used gives back. The connection stays
                    // in the kernel's queue: without a pause this would spin.
                    tracing::warn!(address = %self.address, %error, pause_ms = pause.as_millis(), "cannot accept a connection, making room");
                    self.inside.connections.make_room();
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    /// Takes what the kernel has accepted already, then closes the listener.
    fn close(self: &Arc<Self>, vitals: &Vitals) {
        let Some(listener) = self.listener.lock().take() else { return };
        loop {
            match listener.accept() {
                Ok((stream, peer)) => {
                    vitals.progressed(Instant::now());
                    let stream = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream));
                    match stream {
                        Ok(stream) => self.admit(stream, peer),
                        Err(error) => tracing::warn!(%peer, %error, "a connection was lost"),
                    }
                }
                Err(error) if is_of_one(&error) => {}
                Err(_) => break,
            }
        }
        self.closed.send_replace(true);
        tracing::info!(address = %self.address, open = self.inside.connections.open(), "no longer accepting connections");
    }

    /// Returns when nothing more is taken. Before that, no connection is no sign that none is left.
    pub(crate) async fn closed(&self) {
        // It fails only when the sender is gone, which is here.
        let _ = self.closed.subscribe().wait_for(|closed| *closed).await;
    }

    fn admit(self: &Arc<Self>, stream: TcpStream, peer: SocketAddr) {
        // Inherited from the listener where the kernel is Linux; without it small answers wait for nothing.
        let _ = stream.set_nodelay(true);
        match self.inside.connections.admit(peer) {
            Ok(place) => drop(tokio::spawn(connection::serve(self.clone(), stream, place))),
            Err(reason) => {
                self.inside.metrics.refused(reason, None);
                tracing::debug!(%peer, reason = reason.as_str(), "connection refused");
            }
        }
    }
}

/// Whether only the one connection failed, before it was accepted (accept(2), "Error handling").
fn is_of_one(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ConnectionAborted
            | ErrorKind::ConnectionReset
            | ErrorKind::ConnectionRefused
            | ErrorKind::Interrupted
            | ErrorKind::TimedOut
    )
}

/// Whether only this machine can come to `address`.
pub(crate) fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

/// Runs `future` on `runtime` for as long as it is awaited; it ends when this is dropped.
pub(crate) async fn run_on(runtime: Handle, future: impl Future<Output = ()> + Send + 'static) {
    struct Owned(JoinHandle<()>);
    impl Drop for Owned {
        fn drop(&mut self) {
            self.0.abort();
        }
    }
    let mut task = Owned(runtime.spawn(future));
    if let Err(error) = (&mut task.0).await
        && let Ok(panic) = error.try_into_panic()
    {
        resume_unwind(panic); // for the supervisor, with its text
    }
}

//! Joins the parts: what `nodes` opens, supervises, and drains.

use std::{
    fmt,
    net::{SocketAddr, TcpListener},
    sync::Arc,
    time::Instant,
};

use horos_supervision::{ChildSpec, worker};
use jiff::Timestamp;
use rustls::server::ResolvesServerCert;
use tokio::runtime::Handle;

use crate::{
    App, AppParts, Authenticator, CertificateError, Conditions, Config, Drain, Maintenance, Metrics, Mount, MountError, Plane, Reason,
    Source,
    certificates::{self, Certificates},
    connections::Connections,
    tcp::{self, Inside, TcpDoor},
};

/// A TCP listener that is bound and listens.
#[derive(Debug)]
pub struct Listener {
    /// From [`crate::Sockets::bind`].
    pub tcp: TcpListener,
    /// Whom it is for.
    pub plane: Plane,
    /// Where it listens.
    pub address: SocketAddr,
}

/// What an [`Edge`] works with, besides its configuration.
pub struct Parts {
    /// Where everything that HTTP needs is done.
    pub runtime: Handle,
    /// What is served.
    pub mounts: Vec<Mount>,
    /// What can tell what a key or a token proves.
    pub authenticator: Arc<dyn Authenticator>,
    /// Shown at `/readyz`.
    pub conditions: Conditions,
    /// Maintenance.
    pub maintenance: Maintenance,
    /// Says how far the node has gone in stopping.
    pub drain: Drain,
    /// Where everything is counted.
    pub metrics: Metrics,
    /// Where the certificate of HTTPS comes from.
    pub certificate: Source,
    /// Where TCP is accepted.
    pub listeners: Vec<Listener>,
}

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { mounts, certificate, listeners, .. } = self;
        f.debug_struct("Parts")
            .field("mounts", mounts)
            .field("certificate", certificate)
            .field("listeners", listeners)
            .finish_non_exhaustive()
    }
}

/// Why the port is not opened. Nothing runs.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EdgeError {
    /// Of what is mounted.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// Of the certificate.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// Something that is for one's own machine is about to face others.
    #[error("{what} is served on loopback only, and {address} is not; give a certificate, or listen at 127.0.0.1 or [::1]")]
    NotLoopback {
        /// Plain HTTP, or a development certificate.
        what: &'static str,
        /// The address.
        address: SocketAddr,
    },
    /// Of TLS.
    #[error("cannot set TLS up")]
    Tls(#[source] rustls::Error),
}

/// The port. Dropped, it cuts off whoever is connected.
#[derive(Debug)]
pub struct Edge {
    inside: Inside,
    certificates: Arc<Certificates>,
    conditions: Conditions,
    doors: Vec<Arc<TcpDoor>>,
}

impl Edge {
    /// Opens the port: nothing is accepted until its [children](Self::children) run. Blocks on the disk.
    ///
    /// # Errors
    /// [`EdgeError`] says what to do.
    pub fn open(config: Config, parts: Parts) -> Result<Self, EdgeError> {
        let Parts { runtime, mounts, authenticator, conditions, maintenance, drain, metrics, certificate, listeners } = parts;
        let own = match &certificate {
            Source::Plain => Some("plain HTTP"),
            Source::Development { .. } => Some("HTTPS with a development certificate"),
            _ => None,
        };
        if let Some(what) = own
            && let Some(listener) = listeners.iter().find(|listener| !tcp::is_loopback(listener.address.ip()))
        {
            return Err(EdgeError::NotLoopback { what, address: listener.address });
        }
        let is_plain = matches!(certificate, Source::Plain);
        let certificates = Certificates::open(certificate, Timestamp::now())?;
        let tls =
            if is_plain { None } else { Some(tcp::accepting(certificates.clone(), certificates.challenges()).map_err(EdgeError::Tls)?) };
        let h3 = listeners.iter().filter(|_| !is_plain).filter_map(|listener| {
            let port = config.alt_svc.unwrap_or(listener.address.port());
            (port != 0).then_some((listener.plane, port))
        });
        let parts = AppParts {
            authenticator,
            conditions: conditions.clone(),
            maintenance,
            drain: drain.clone(),
            metrics: metrics.clone(),
            h3: h3.collect(),
        };
        let config = Arc::new(config);
        let app = App::new(config.clone(), mounts, parts)?;
        let connections = Connections::new(config.limits, config.timeouts, &config.trusted_proxies, metrics.clone());
        let inside = Inside { config, app, connections, metrics, drain, tls, runtime };
        let door = |listener: Listener| TcpDoor::new(inside.clone(), listener.tcp, listener.plane, listener.address);
        let doors = listeners.into_iter().map(door).collect();
        Ok(Self { inside, certificates, conditions, doors })
    }

    /// What answers the requests.
    pub fn app(&self) -> &App {
        &self.inside.app
    }

    /// The certificate in force at each handshake, for QUIC to present the same one.
    pub fn certificates(&self) -> Arc<dyn ResolvesServerCert> {
        self.certificates.clone()
    }

    /// Connections over TCP that are open.
    pub fn open_connections(&self) -> usize {
        self.inside.connections.open()
    }

    /// What is to be supervised: the accept loops, the reaper of connections that keep to no time, and whoever looks after
    /// the certificate. All run on the runtime for HTTP.
    pub fn children(&self) -> Vec<ChildSpec> {
        let mut children: Vec<_> = self.doors.iter().map(TcpDoor::child).collect();
        let inside = self.inside.clone();
        children.push(worker("connections", move |vitals| {
            let Inside { connections, drain, runtime, .. } = inside.clone();
            tcp::run_on(runtime, async move {
                let mut phase = drain.watch();
                loop {
                    let now = *phase.borrow_and_update();
                    let pause = connections.inspect(now);
                    vitals.progressed(Instant::now());
                    // A phase that changes is looked at again at once; nobody can be left to change it, for `drain` is here.
                    let _ = tokio::time::timeout(pause, phase.changed()).await;
                }
            })
        }));
        let told = certificates::Told::new(self.conditions.clone(), &self.inside.metrics);
        let (certificates, runtime) = (self.certificates.clone(), self.inside.runtime.clone());
        children.push(worker("certificate", move |vitals| {
            tcp::run_on(runtime.clone(), certificates::watch(certificates.clone(), told.clone(), vitals))
        }));
        children
    }

    /// Returns when nothing more is accepted and every connection over TCP has ended, or at `until`. To be called while the
    /// [children](Self::children) run, once the node drains.
    pub async fn drained(&self, until: Instant) {
        let ended = async {
            // A loop that has not had its turn since the drain began may still find connections in the kernel's queue.
            for door in &self.doors {
                door.closed().await;
            }
            self.inside.connections.emptied().await;
        };
        // Past `until` the reaper cuts off who is left.
        let _ = tokio::time::timeout_at(until.into(), ended).await;
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        self.inside.connections.cut_all(Reason::Draining);
    }
}

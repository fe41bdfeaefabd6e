//! The one application behind every listener: whatever version a request comes in, it is answered here.
//!
//! Opened by whoever opens the port; the parts that speak HTTP/1.1, 2 and 3 only hand requests in and answers out.

use std::{fmt, sync::Arc};

use http::{Request, Response};

use crate::{
    Authenticator, Body, Conditions, Config, Drain, Maintenance, Metrics, Mount, MountError, Peer, Plane,
    guard::{Guard, Held},
};

/// What an [`App`] works with, besides its configuration.
#[derive(Clone)]
pub struct AppParts {
    /// Who can tell what a key or a token proves.
    pub authenticator: Arc<dyn Authenticator>,
    /// Shown at `/readyz`.
    pub conditions: Conditions,
    /// Maintenance.
    pub maintenance: Maintenance,
    /// Shown at `/readyz`: a node that is about to stop is not ready.
    pub drain: Drain,
    /// Shown at `/metrics`.
    pub metrics: Metrics,
    /// The UDP port at which a plane's HTTP/3 is served, for `Alt-Svc`; a plane without one offers none.
    pub h3: Vec<(Plane, u16)>,
}

impl fmt::Debug for AppParts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AppParts").field("h3", &self.h3).finish_non_exhaustive()
    }
}

/// Answers requests. Cheap to clone.
#[derive(Clone, Debug)]
pub struct App(Arc<Guard>);

impl App {
    /// An application that serves `mounts`.
    ///
    /// # Errors
    /// [`MountError::Taken`].
    pub fn new(config: Arc<Config>, mounts: Vec<Mount>, parts: AppParts) -> Result<Self, MountError> {
        Guard::new(config, mounts, parts).map(|guard| Self(Arc::new(guard)))
    }

    /// Answers `request`, which came from `peer`.
    ///
    /// Every failure is an answer: a panic of a service, a deadline that passes, a body that stops. The request's version
    /// must be its own: HTTP/1.1 and 1.0 have other rules for the host than HTTP/2 and 3.
    ///
    /// # Cancel safety
    /// Dropped when the client has gone; the service's future is dropped with it.
    pub fn handle(&self, request: Request<Body>, peer: Peer) -> impl Future<Output = Response<Held>> + Send + 'static {
        self.0.clone().answer(request, peer)
    }
}

//! One request, from its head to the head of its answer: what the guard knows of it, and what counts it.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use horos_wire::principal::Principal;
use http::{HeaderValue, StatusCode, Uri};
use tokio::time::Instant;

use super::{ids::Trace, in_flight::Permit};
use crate::{Metrics, Peer, metrics::MethodClass};

/// What is known of a request.
#[derive(Debug)]
pub(crate) struct Visit<'a> {
    pub(crate) peer: Peer,
    /// When it came, by the wall's clock and by the one that only goes forward.
    pub(crate) arrived: SystemTime,
    pub(crate) started: Instant,
    pub(crate) deadline: Instant,
    /// The client asked for a deadline sooner than the port's.
    pub(crate) hurried: bool,
    pub(crate) method: MethodClass,
    /// What was asked for. The request itself goes on with what its service is to see of it.
    pub(crate) uri: Uri,
    pub(crate) client: IpAddr,
    pub(crate) id: HeaderValue,
    pub(crate) trace: Trace,
    pub(crate) idempotency_key: Option<Box<str>>,
    /// What the body is announced to be, in bytes.
    pub(crate) length: u64,
    /// The host is a name that others can have too: no address, and not this machine.
    pub(crate) named: bool,
    pub(crate) asks: Asks,
    pub(crate) principal: Option<Arc<Principal>>,
    /// The limit that the request came close to.
    pub(crate) budget: Option<Budget>,
    /// Its place among the requests in hand, until the answer takes it along.
    pub(crate) permit: Option<Permit>,
    metrics: &'a Metrics,
    answered: bool,
}

/// What the head asks for.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Asks {
    pub(crate) gzip: bool,
    /// A page rather than data, as a person before a browser does.
    pub(crate) page: bool,
    pub(crate) json: bool,
    /// A key in its own field comes with the head.
    pub(crate) key: bool,
    /// `Authorization` comes with it: a key or a token.
    pub(crate) bearer: bool,
    /// It comes from a page of some origin.
    pub(crate) origin: bool,
    /// It asks what it may ask.
    pub(crate) preflight: bool,
}

impl Asks {
    /// Something comes with the head that can prove who sent it.
    pub(crate) fn proves(self) -> bool {
        self.key || self.bearer
    }
}

/// What is left of a limit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Budget {
    pub(crate) policy: &'static str,
    pub(crate) per_minute: u32,
    pub(crate) left: u32,
    /// Seconds until more may follow.
    pub(crate) wait: Option<u64>,
}

impl<'a> Visit<'a> {
    pub(crate) fn begin(peer: Peer, method: MethodClass, arrived: SystemTime, id: HeaderValue, trace: Trace, metrics: &'a Metrics) -> Self {
        metrics.started(peer.version);
        let now = Instant::now();
        Self {
            peer,
            arrived,
            started: now,
            deadline: now,
            hurried: false,
            method,
            uri: Uri::default(),
            client: peer.address.ip().to_canonical(),
            id,
            trace,
            idempotency_key: None,
            length: 0,
            named: false,
            asks: Asks::default(),
            principal: None,
            budget: None,
            permit: None,
            metrics,
            answered: false,
        }
    }

    /// The request's id as text; it was made of, or checked for, plain characters.
    pub(crate) fn id(&self) -> &str {
        self.id.to_str().unwrap_or_default()
    }

    /// Says in the log and the metrics how it ended, `took` after it began.
    pub(crate) fn end(mut self, status: StatusCode, took: Duration) {
        self.answered = true;
        self.metrics.finished(self.peer.version, self.method, status, took);
        // What failed here is worth a line of itself. The rest is for whoever asks, and so is what a client can bring about
        // at will: whoever floods a node with requests is not to fill its disk with lines.
        let at_will = status == StatusCode::SERVICE_UNAVAILABLE || (status == StatusCode::GATEWAY_TIMEOUT && self.hurried);
        if status.is_server_error() && !at_will {
            tracing::info!(target: "horos::access", request = self.id(), trace = %self.trace.id, method = self.method.as_str(),
                path = self.path(), status = status.as_u16(), took = ?rounded(took), version = self.peer.version.as_str(),
                client = %self.client, principal = self.principal.as_ref().map(|it| &*it.id), "answered");
        } else {
            tracing::debug!(target: "horos::access", request = self.id(), trace = %self.trace.id, method = self.method.as_str(),
                path = self.path(), status = status.as_u16(), took = ?rounded(took), version = self.peer.version.as_str(),
                client = %self.client, principal = self.principal.as_ref().map(|it| &*it.id), "answered");
        }
    }

    /// The path without its query, which may hold anything; a long one without its rest.
    fn path(&self) -> &str {
        let path = self.uri.path();
        &path[..path.floor_char_boundary(256)]
    }
}

impl Drop for Visit<'_> {
    fn drop(&mut self) {
        if !self.answered {
            self.metrics.cancelled(self.peer.version);
        }
    }
}

/// Microseconds are as exact as anybody reads.
fn rounded(took: Duration) -> Duration {
    Duration::from_micros(took.as_micros().try_into().unwrap_or(u64::MAX))
}

//! A host's connections: few of HTTP/2 or HTTP/3 that many requests share, or of HTTP/1.1 one a request, kept for the next.
//!
//! Each host has a pool of its own: what happens to one disturbs no other, and no connection carries requests for a host other than
//! that for which its certificate and its address were checked. A connection that was opened is not checked again while it lasts; it
//! is used for [`MAX_AGE`] at most, so that a name that moves is followed.
//!
//! What is bounded: dials in progress, connections that are shared, idle connections, and with the requests in flight all others.

use std::{sync::Arc, time::Duration};

use http::{Request, Response, Version};
use hyper::client::conn::http1;
use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};

use super::{
    body::Sending,
    carrier::{self, Incoming, Unanswered},
    dial::{DialError, Opened},
    hosts::HostEntry,
};

/// Connections to one host that may be opened at once.
const MAX_DIALS: usize = 8;
/// Requests on one connection: as many streams as every server should permit (RFC 9113 §6.5.2, RFC 9114 §6.1).
const STREAMS: usize = 100;
/// How long a connection takes new requests.
const MAX_AGE: Duration = Duration::from_secs(600);
/// How long a connection of HTTP/1.1 may take after a response until it can carry the next request.
const SETTLE: Duration = Duration::from_secs(1);
/// How long a request waits for one that is about to: longer than a task takes to be run, shorter than any dial.
const ABOUT_TO: Duration = Duration::from_millis(5);

#[derive(Clone, Copy, Debug)]
pub(crate) struct PoolBounds {
    /// Connections that requests share.
    shared: usize,
    idle: usize,
    keep: Duration,
}

impl PoolBounds {
    pub(crate) fn new(in_flight: usize, idle: usize, keep: Duration) -> Self {
        Self { shared: in_flight.div_ceil(STREAMS).max(1), idle, keep }
    }
}

pub(crate) struct Pool {
    bounds: PoolBounds,
    state: Mutex<State>,
    /// A dial has ended, or a connection can carry the next request.
    dialed: Notify,
}

#[derive(Default)]
struct State {
    shared: Vec<Shared>,
    idle: Vec<Idle>,
    dialing: usize,
    /// Connections of HTTP/1.1 whose response has just ended.
    settling: usize,
    /// What the last connection spoke.
    spoken: Option<Spoken>,
    /// How many dials failed, and why the last did.
    failures: u64,
    failure: Option<DialError>,
    opened: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Spoken {
    Http1,
    /// A version whose connections requests share.
    Later,
}

struct Shared {
    sender: carrier::Shared,
    /// One clone a stream, and this one.
    streams: Arc<()>,
    opened: Instant,
    used: Instant,
}

struct Idle {
    sender: http1::SendRequest<Sending>,
    opened: Instant,
    since: Instant,
}

/// What a pool holds, for those who look.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Held {
    pub(crate) shared: usize,
    pub(crate) idle: usize,
    pub(crate) dialing: usize,
    pub(crate) opened: u64,
}

enum Look {
    Lease(Carrier),
    Failed(DialError),
    Dial,
    Settle,
    Wait,
}

/// What a request has waited for already.
#[derive(Clone, Copy)]
struct Patience {
    /// Dials that had failed when it came.
    failures: u64,
    settling: bool,
}

impl State {
    /// What to do for a request.
    fn look(&mut self, bounds: &PoolBounds, patience: Patience, now: Instant) -> Look {
        self.shared.retain(|it| !it.sender.is_closed() && now - it.opened < MAX_AGE);
        let many = self.shared.len() >= bounds.shared;
        if let Some(least) = self.shared.iter_mut().min_by_key(|it| Arc::strong_count(&it.streams))
            && (many || Arc::strong_count(&least.streams) <= STREAMS)
        {
            least.used = now;
            return Look::Lease(Carrier::Shared { sender: least.sender.clone(), stream: least.streams.clone() });
        }
        // The one that was used last is the least likely to have been closed meanwhile.
        while let Some(Idle { sender, opened, since }) = self.idle.pop() {
            if sender.is_ready() && now - since < bounds.keep && now - opened < MAX_AGE {
                return Look::Lease(Carrier::Own { sender, opened });
            }
        }
        if self.failures > patience.failures
            && let Some(failure) = &self.failure
        {
            return Look::Failed(failure.clone());
        }
        if self.settling > 0 && patience.settling {
            return Look::Settle;
        }
        let may_dial = match self.spoken {
            Some(Spoken::Http1) => self.dialing < MAX_DIALS,
            Some(Spoken::Later) => self.shared.len() + self.dialing < bounds.shared,
            // The first tells what the others need.
            None => self.dialing == 0,
        };
        if may_dial {
            self.dialing += 1;
            Look::Dial
        } else {
            Look::Wait
        }
    }
}

/// A dial in progress; counted until it ends, in whichever way.
struct Dialing {
    host: Arc<HostEntry>,
    /// False of one that was not brought to its end: its runtime ended, or somebody's resolver panicked.
    ended: bool,
}

impl Drop for Dialing {
    fn drop(&mut self) {
        let pool = &self.host.pool;
        let mut state = pool.state.lock();
        state.dialing -= 1;
        if !self.ended {
            // Else whoever waits would dial again, and again.
            state.failures += 1;
            state.failure = Some(DialError::Unreachable("the attempt was given up".into()));
        }
        drop(state);
        pool.dialed.notify_waiters();
    }
}

/// Opens a connection for whoever waits.
async fn dial(mut dialing: Dialing) {
    let opened = dialing.host.dial().await;
    dialing.ended = true;
    let mut state = dialing.host.pool.state.lock();
    let now = Instant::now();
    match opened {
        Ok(Opened::Http1(sender)) => {
            state.spoken = Some(Spoken::Http1);
            state.opened += 1;
            // Beyond the idle ones: somebody waits for it.
            state.idle.push(Idle { sender, opened: now, since: now });
        }
        Ok(Opened::Shared(sender)) => {
            state.spoken = Some(Spoken::Later);
            state.opened += 1;
            state.shared.push(Shared { sender, streams: Arc::new(()), opened: now, used: now });
        }
        Err(why) => {
            state.failures += 1;
            state.failure = Some(why);
        }
    }
}

impl Pool {
    pub(crate) fn new(bounds: PoolBounds) -> Self {
        Self { bounds, state: Mutex::default(), dialed: Notify::new() }
    }

    pub(crate) fn held(&self) -> Held {
        let state = self.state.lock();
        Held { shared: state.shared.len(), idle: state.idle.len(), dialing: state.dialing, opened: state.opened }
    }

    /// Closes connections that nobody has used for `span`, but for those just opened: whoever waits for them comes at once.
    pub(crate) fn sweep(&self, span: Duration) {
        let now = Instant::now();
        let wanted = |opened: Instant, used: Instant| now - used < span || used == opened && now - opened < SETTLE;
        let mut state = self.state.lock();
        state.idle.retain(|it| it.sender.is_ready() && wanted(it.opened, it.since));
        state.shared.retain(|it| !it.sender.is_closed() && (Arc::strong_count(&it.streams) > 1 || wanted(it.opened, it.used)));
    }

    fn keep(&self, sender: http1::SendRequest<Sending>, opened: Instant) {
        let mut state = self.state.lock();
        if state.idle.len() < self.bounds.idle {
            state.idle.push(Idle { sender, opened, since: Instant::now() });
        }
    }
}

/// A connection that one request may use, or none before `until`.
///
/// A dial that it begins is nobody's own: whoever wanted it may give up, and the next request finds it all the same.
///
/// # Errors
/// Nothing was sent; `None` says that time was up.
pub(crate) async fn lease(host: &Arc<HostEntry>, until: Instant) -> Result<Lease, Option<DialError>> {
    let pool = &host.pool;
    let mut patience = Patience { failures: pool.state.lock().failures, settling: true };
    loop {
        let dialed = pool.dialed.notified();
        tokio::pin!(dialed);
        // From here on no dial ends unnoticed.
        dialed.as_mut().enable();
        let look = pool.state.lock().look(&pool.bounds, patience, Instant::now());
        match look {
            Look::Lease(carrier) => return Ok(Lease { carrier, host: host.clone() }),
            Look::Failed(why) => return Err(Some(why)),
            Look::Dial => drop(tokio::spawn(dial(Dialing { host: host.clone(), ended: false }))),
            Look::Settle => {
                patience.settling = tokio::time::timeout_at(until.min(Instant::now() + ABOUT_TO), dialed).await.is_ok();
                continue;
            }
            Look::Wait => {}
        }
        tokio::time::timeout_at(until, dialed).await.map_err(|_| None)?;
    }
}

/// A connection while it carries one request. Dropped before the response's end, it takes the request with it: the stream is reset, a
/// connection of HTTP/1.1 closed.
pub(crate) struct Lease {
    carrier: Carrier,
    host: Arc<HostEntry>,
}

enum Carrier {
    Shared { sender: carrier::Shared, stream: Arc<()> },
    Own { sender: http1::SendRequest<Sending>, opened: Instant },
}

impl Lease {
    /// What the connection speaks.
    pub(crate) fn version(&self) -> Version {
        match &self.carrier {
            Carrier::Shared { sender, .. } => sender.version(),
            Carrier::Own { .. } => Version::HTTP_11,
        }
    }

    /// Sends `request`, whose form must be that of [`Self::version`].
    pub(crate) async fn send(&mut self, request: Request<Sending>) -> Result<Response<Incoming>, Unanswered> {
        match &mut self.carrier {
            Carrier::Shared { sender, .. } => sender.send(request).await,
            Carrier::Own { sender, .. } => carrier::send(sender, request).await,
        }
    }

    /// The response has ended.
    pub(crate) fn give_back(self) {
        let Self { carrier: Carrier::Own { mut sender, opened }, host } = self else { return };
        if sender.is_ready() {
            host.pool.keep(sender, opened);
            return;
        }
        // The connection's own task has yet to see that the response has ended.
        host.pool.state.lock().settling += 1;
        tokio::spawn(async move {
            let settled = matches!(tokio::time::timeout(SETTLE, sender.ready()).await, Ok(Ok(())));
            host.pool.state.lock().settling -= 1;
            if settled {
                host.pool.keep(sender, opened);
            }
            host.pool.dialed.notify_waiters();
        });
    }

    /// The connection turned out to be closed. Those of HTTP/1.1 that are idle may well be too: the next try has a new one.
    pub(crate) fn closed(self) {
        let mut state = self.host.pool.state.lock();
        match self.carrier {
            Carrier::Shared { stream, .. } => state.shared.retain(|it| !Arc::ptr_eq(&it.streams, &stream)),
            Carrier::Own { .. } => state.idle.clear(),
        }
    }
}

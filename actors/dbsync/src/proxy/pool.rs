//! Connections to the owner: few of HTTP/2 that many requests share, or of HTTP/1.1 one a request, kept for the next.
//!
//! What is bounded: HTTP/2 connections ([`super::Limits::connections`]), dials in progress, idle connections, and with the requests
//! in flight all others. While the owner cannot be reached, one dial at a time finds out, with a pause between that grows to a
//! second; all others fail at once. Tasks that drive connections end with them, and they end when the pool and the last answer do.

mod dial;

use std::{fmt, sync::Arc, time::Duration};

use http::{Request, Response};
use hyper::{
    body::Incoming,
    client::conn::{TrySendError, http1, http2},
};
use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};

pub(super) use self::dial::DialError;
use self::dial::Dialer;
use super::{Config, ConfigError, Limits, body::Sending};

/// How long to wait before the next dial after one that failed; it doubles each time up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// As long as an owner that is back may go unnoticed.
const MAX_PAUSE: Duration = Duration::from_secs(1);
/// How long a connection of HTTP/1.1 may take after an answer until it can carry the next request.
const SETTLE: Duration = Duration::from_secs(1);

/// Why there is no connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Unreached {
    /// There was no time left.
    TooLate,
    /// The last dial failed, and no other is made until then.
    Away(Instant, DialError),
}

pub(super) struct Pool {
    dialer: Dialer,
    limits: Limits,
    keep: Duration,
    state: Mutex<State>,
    /// A dial has ended.
    dialed: Notify,
}

#[derive(Default)]
struct State {
    shared: Vec<Shared>,
    idle: Vec<Idle>,
    dialing: usize,
    /// What the last connection spoke.
    spoken: Option<Spoken>,
    outage: Option<Outage>,
    opened: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Spoken {
    Http1,
    Http2,
}

struct Shared {
    sender: http2::SendRequest<Sending>,
    /// One clone a stream, and this one.
    streams: Arc<()>,
}

struct Idle {
    sender: http1::SendRequest<Sending>,
    since: Instant,
}

struct Outage {
    until: Instant,
    pause: Duration,
    why: DialError,
}

/// A fresh connection.
enum Opened {
    Http1(http1::SendRequest<Sending>),
    Http2(http2::SendRequest<Sending>),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Waited {
    No,
    Yes,
}

enum Look {
    Lease(Held),
    Dial,
    Wait,
    Pause(Instant, DialError),
}

impl State {
    /// What to do for a request; `waited` for a dial already, it is not kept waiting for another.
    fn look(&mut self, limits: &Limits, keep: Duration, waited: Waited) -> Look {
        let now = Instant::now();
        self.shared.retain(|it| !it.sender.is_closed());
        let least = self.shared.iter().min_by_key(|it| Arc::strong_count(&it.streams));
        let room = least.is_some_and(|it| Arc::strong_count(&it.streams) <= limits.streams());
        if let Some(least) = least.filter(|_| room || self.shared.len() >= limits.connections) {
            return Look::Lease(Held::Shared { sender: least.sender.clone(), stream: least.streams.clone() });
        }
        // The one that was used last is the least likely to have been closed meanwhile.
        while let Some(idle) = self.idle.pop() {
            if idle.sender.is_ready() && now - idle.since < keep {
                return Look::Lease(Held::Own { sender: idle.sender });
            }
        }
        if let Some(outage) = self.outage.as_ref().filter(|outage| now < outage.until || waited == Waited::Yes) {
            return Look::Pause(outage.until, outage.why.clone());
        }
        let may_dial = match self.spoken {
            // In an outage one dial is enough to learn that it is over.
            _ if self.outage.is_some() => self.dialing == 0,
            Some(Spoken::Http1) => self.dialing < limits.dials,
            Some(Spoken::Http2) | None => self.shared.len() + self.dialing < limits.connections,
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
struct Dialing(Arc<Pool>);

impl Drop for Dialing {
    fn drop(&mut self) {
        self.0.state.lock().dialing -= 1;
        self.0.dialed.notify_waiters();
    }
}

impl Pool {
    pub(super) fn new(config: &Config) -> Result<Self, ConfigError> {
        Ok(Self {
            dialer: Dialer::new(config)?,
            limits: config.limits,
            keep: config.timeouts.idle,
            state: Mutex::default(),
            dialed: Notify::new(),
        })
    }

    /// A connection that one request may use.
    ///
    /// # Errors
    /// Nothing was sent. In an outage it costs nothing.
    pub(super) async fn lease(self: &Arc<Self>, until: Instant) -> Result<Lease, Unreached> {
        let mut waited = Waited::No;
        loop {
            let dialed = self.dialed.notified();
            tokio::pin!(dialed);
            // From here on no dial ends unnoticed.
            dialed.as_mut().enable();
            let look = self.state.lock().look(&self.limits, self.keep, waited);
            match look {
                Look::Lease(held) => return Ok(Lease { held, pool: self.clone() }),
                Look::Pause(until, why) => return Err(Unreached::Away(until, why)),
                // Nobody's own: whoever wanted it may give up, and the next request finds it all the same.
                Look::Dial => drop(tokio::spawn(dial(Dialing(self.clone())))),
                Look::Wait => {}
            }
            tokio::time::timeout_at(until, dialed).await.map_err(|_| Unreached::TooLate)?;
            waited = Waited::Yes;
        }
    }

    /// Connections opened so far.
    pub(super) fn opened(&self) -> u64 {
        self.state.lock().opened
    }

    fn keep(&self, sender: http1::SendRequest<Sending>) {
        let mut state = self.state.lock();
        if state.idle.len() < self.limits.idle {
            state.idle.push(Idle { sender, since: Instant::now() });
        }
    }
}

/// Opens a connection for whoever waits.
async fn dial(dialing: Dialing) {
    let pool = &dialing.0;
    let opened = pool.dialer.dial().await;
    let mut state = pool.state.lock();
    match opened {
        Ok(opened) => {
            state.outage = None;
            state.opened += 1;
            match opened {
                // Beyond the idle ones: somebody waits for it.
                Opened::Http1(sender) => {
                    state.spoken = Some(Spoken::Http1);
                    state.idle.push(Idle { sender, since: Instant::now() });
                }
                Opened::Http2(sender) => {
                    state.spoken = Some(Spoken::Http2);
                    state.shared.push(Shared { sender, streams: Arc::new(()) });
                }
            }
        }
        Err(why) => {
            let pause = state.outage.as_ref().map_or(FIRST_PAUSE, |last| (last.pause * 2).min(MAX_PAUSE));
            if state.outage.is_none() {
                // Said once an outage: whoever asks is told each time.
                tracing::warn!(reason = %why, owner = %pool.dialer.owner(), "the owner of the data cannot be reached");
            }
            state.outage = Some(Outage { until: Instant::now() + pause, pause, why });
        }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.lock();
        f.debug_struct("Pool")
            .field("shared", &state.shared.len())
            .field("idle", &state.idle.len())
            .field("dialing", &state.dialing)
            .finish_non_exhaustive()
    }
}

/// A connection while it carries one request. Dropped before the answer's end, it takes the request with it: the stream is reset, a
/// connection of HTTP/1.1 closed.
pub(super) struct Lease {
    held: Held,
    pool: Arc<Pool>,
}

enum Held {
    Shared { sender: http2::SendRequest<Sending>, stream: Arc<()> },
    Own { sender: http1::SendRequest<Sending> },
}

impl Lease {
    /// Whether several requests share the connection: HTTP/2.
    pub(super) fn is_shared(&self) -> bool {
        matches!(self.held, Held::Shared { .. })
    }

    /// Sends `request`, whose form must be that of [`Self::is_shared`].
    ///
    /// # Errors
    /// With the request in it: it was not sent. Else it may have been.
    pub(super) async fn send(&mut self, request: Request<Sending>) -> Result<Response<Incoming>, TrySendError<Request<Sending>>> {
        match &mut self.held {
            Held::Shared { sender, .. } => sender.try_send_request(request).await,
            Held::Own { sender } => sender.try_send_request(request).await,
        }
    }

    /// The answer has ended.
    pub(super) fn give_back(self) {
        let Self { held: Held::Own { mut sender }, pool } = self else { return };
        if sender.is_ready() {
            pool.keep(sender);
            return;
        }
        // The connection's own task has yet to see that the answer has ended.
        tokio::spawn(async move {
            if let Ok(Ok(())) = tokio::time::timeout(SETTLE, sender.ready()).await {
                pool.keep(sender);
            }
        });
    }

    /// The connection turned out to be closed. Those of HTTP/1.1 that are idle may well be too: the next try has a new one.
    pub(super) fn closed(self) {
        let mut state = self.pool.state.lock();
        match self.held {
            Held::Shared { stream, .. } => state.shared.retain(|it| !Arc::ptr_eq(&it.streams, &stream)),
            Held::Own { .. } => state.idle.clear(),
        }
    }
}

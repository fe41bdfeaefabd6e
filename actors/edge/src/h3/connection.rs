//! One HTTP/3 connection: its requests, how long it may be idle, and how it ends.
//!
//! A task on the edge's runtime, started by [`super::Door`]. It owns the tasks of its requests; all have ended when it has.
//! Where its runtime has one thread, it asks each request once itself, for most are answered then and need no task; what
//! has to wait becomes one (as with HTTP/2, `tcp::begun`).
//! Told to leave (the node drains, or another connection needs the room), it says at first that it will (a GOAWAY with the
//! highest id, RFC 9114 §5.2), serves what is still on its way, then says where it stops, finishes what is in hand, waits
//! until the client has its answers, and closes.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    pin::{Pin, pin},
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use bytes::Bytes;
use h3::{
    error::{Code, ConnectionError},
    server::{self, RequestResolver},
};
use tokio::{
    runtime::{Handle, RuntimeFlavor},
    task::{JoinSet, coop},
};

use super::{
    Inner,
    gate::Gate,
    patience::Patience,
    quic::{Quic, Shared},
    request::{self, Outcome},
    table::Place,
    uni,
    violation::{Violation, varint},
};
use crate::{Peer, Phase, Reason, Version};

/// The longest that a connection without a request is kept, whatever the configuration says: as long as QUIC's own idle
/// timeout here, since a client that pings costs as much as one that asks.
const IDLE: Duration = Duration::from_secs(30);
/// What one that is to make room for another has for what is in hand.
const FAREWELL: Duration = Duration::from_secs(1);
/// How long a peer may take none of a GOAWAY.
const SAID: Duration = Duration::from_millis(200);
/// How long is waited for what is on its way, when a connection says that it leaves and again when it says where it stops:
/// two round trips, within these.
const ON_ITS_WAY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_millis(500));
/// How long is waited until the client has the last answers.
const DELIVERED: Duration = Duration::from_secs(3);

/// How far it is.
#[derive(Clone, Copy, Debug)]
enum Stage {
    Serving,
    /// It has said that it leaves; until then what comes is still served.
    Leaving {
        until: Instant,
    },
    /// It has said that no request from this id on is served. Until then it tells so whoever had not heard it.
    Gone {
        first: u64,
        until: Instant,
    },
}

/// What happened.
#[expect(clippy::large_enum_variant, reason = "it lives from a poll to its match, and a box would be an allocation a request")]
enum Event {
    /// It is to leave, and to be gone by then.
    Leave(Instant),
    Alarm,
    Done(Result<Outcome, Failed>),
    Accepted(Result<Option<RequestResolver<Quic, Bytes>>, ConnectionError>),
}

/// A request's own work panicked: ours, for what a service does wrong is caught where it is called.
#[derive(Clone, Copy, Debug)]
struct Failed;

/// A request being served.
type Task = Pin<Box<dyn Future<Output = Outcome> + Send>>;

/// How long requests are asked in a row before others on the thread have their turn: what a handler may hold a worker for.
const LONGEST: Duration = Duration::from_micros(500);
/// Requests between looks at the clock.
const LOOK_EVERY: u32 = 8;

/// The requests that were asked in a row.
struct Row {
    /// Whether this task asks them at all.
    at_once: bool,
    count: u32,
    began: Instant,
}

impl Row {
    fn new() -> Self {
        let at_once = Handle::current().runtime_flavor() == RuntimeFlavor::CurrentThread;
        Self { at_once, count: 0, began: Instant::now() }
    }

    /// Others have had their turn.
    fn again(&mut self) {
        self.count = 0;
    }

    /// One more; whether it was long enough.
    fn next(&mut self) -> bool {
        self.count += 1;
        match self.count % LOOK_EVERY {
            1 if self.count == 1 => self.began = Instant::now(),
            0 => return self.began.elapsed() >= LONGEST,
            _ => {}
        }
        false
    }
}

/// How it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The peer closed it, it was lost, or it was ended for what the peer did.
    Over,
    /// Nothing is in hand.
    Done,
    /// Something is, and there is no more time.
    Cut,
}

struct Session {
    edge: Arc<Inner>,
    shared: Arc<Shared>,
    connection: quinn::Connection,
    h3: server::Connection<Quic, Bytes>,
    requests: JoinSet<Outcome>,
    patience: Patience,
    peer: Peer,
    place: Place,
    stage: Stage,
    /// When it is cut off.
    by: Option<Instant>,
    /// When a request last began or ended.
    active: Instant,
    /// The last request's id, if there was any.
    last: Option<u64>,
}

/// Serves a connection until it ends.
pub(super) async fn serve(edge: Arc<Inner>, connection: quinn::Connection, peer: Peer, place: Place) {
    let _open = edge.metrics.opened(Version::Http3);
    let limits = edge.config.limits;
    connection.set_max_concurrent_bi_streams(limits.streams.into());
    connection.set_max_concurrent_uni_streams(uni::OPEN.into());
    let shared = Shared::new(connection.clone(), limits.streams as usize);
    let mut builder = server::builder();
    builder.max_field_section_size(limits.head as u64).send_grease(false);
    // It waits for the peer to let us open our three streams, which RFC 9114 §6.2 demands.
    let built = tokio::time::timeout(edge.config.timeouts.head, builder.build(Quic::new(&connection, shared.clone()))).await;
    let h3 = match built {
        Ok(Ok(h3)) => h3,
        Ok(Err(error)) => return tracing::debug!(peer = %peer.address, %error, "no HTTP/3 connection"),
        Err(_) => {
            edge.metrics.refused(Reason::SlowHead, Some(Version::Http3));
            return connection.close(varint(Code::H3_STREAM_CREATION_ERROR), b"no room for the control stream");
        }
    };
    let now = Instant::now();
    let session = Session {
        patience: Patience::new(limits.streams, now),
        edge,
        shared,
        connection,
        h3,
        requests: JoinSet::new(),
        peer,
        place,
        stage: Stage::Serving,
        by: None,
        active: now,
        last: None,
    };
    session.run().await;
}

impl Session {
    async fn run(mut self) {
        let end = self.until_end().await;
        match end {
            End::Over => {
                if let Some(reason) = self.shared.verdict() {
                    self.edge.metrics.refused(reason, Some(Version::Http3));
                    tracing::debug!(peer = %self.peer.address, reason = reason.as_str(), "ended an HTTP/3 connection");
                }
            }
            End::Done => {
                let by = Instant::now() + DELIVERED;
                let by = self.by.map_or(by, |until| until.min(by));
                // A peer that is gone has them never.
                let _ = tokio::time::timeout_at(by.into(), self.shared.delivered()).await;
            }
            End::Cut => self.edge.metrics.refused(Reason::Draining, Some(Version::Http3)),
        }
        self.connection.close(varint(Code::H3_NO_ERROR), b"");
        // No request outlives its connection.
        self.requests.shutdown().await;
    }

    async fn until_end(&mut self) -> End {
        let edge = self.edge.clone();
        let mut draining = pin!(draining(edge.drain.watch()));
        let mut alarm = pin!(tokio::time::sleep_until(self.next_look().into()));
        let gate = Gate::new();
        let mut row = Row::new();
        loop {
            let event = std::future::poll_fn(|cx| {
                let seldom = gate.poll(cx, |cx| {
                    if matches!(self.stage, Stage::Serving) {
                        if let Poll::Ready(until) = draining.as_mut().poll(cx) {
                            return Poll::Ready(Event::Leave(until));
                        }
                        if self.place.poll_leave(cx).is_ready() {
                            self.edge.metrics.refused(Reason::Idle, Some(Version::Http3));
                            return Poll::Ready(Event::Leave(Instant::now() + FAREWELL));
                        }
                    }
                    alarm.as_mut().poll(cx).map(|()| Event::Alarm)
                });
                if seldom.is_ready() {
                    return seldom;
                }
                if let Poll::Ready(Some(done)) = self.requests.poll_join_next(cx) {
                    return Poll::Ready(Event::Done(done.map_err(|_| Failed)));
                }
                let accepted = pin!(self.h3.accept()).poll(cx);
                if accepted.is_pending() {
                    row.again();
                }
                accepted.map(Event::Accepted)
            });
            match event.await {
                Event::Done(outcome) => self.done(outcome),
                Event::Accepted(Ok(Some(resolver))) => {
                    if let Some(task) = self.accepted(resolver) {
                        self.ask(task, &mut row).await;
                    }
                }
                // The client will ask no more, and all that it asked is answered.
                Event::Accepted(Ok(None)) => return End::Done,
                Event::Accepted(Err(error)) => {
                    tracing::trace!(peer = %self.peer.address, %error, "over");
                    return End::Over;
                }
                Event::Leave(by) => {
                    self.leave(by).await;
                    alarm.as_mut().reset(self.next_look().into());
                }
                Event::Alarm => {
                    if let Some(end) = self.look().await {
                        return end;
                    }
                    alarm.as_mut().reset(self.next_look().into());
                }
            }
            if let Stage::Gone { until, .. } = self.stage
                && self.requests.is_empty()
                && Instant::now() >= until
            {
                return End::Done;
            }
        }
    }

    fn accepted(&mut self, resolver: RequestResolver<Quic, Bytes>) -> Option<Task> {
        let out = self.h3.inner.conn.latest()?;
        let id = out.id().into_inner();
        if let Stage::Gone { first, .. } = self.stage
            && id >= first
        {
            // h3 lets one more pass than its GOAWAY says. Its client may send it again elsewhere.
            self.edge.metrics.refused(Reason::Draining, Some(Version::Http3));
            out.reset(Code::H3_REQUEST_REJECTED);
            return None;
        }
        self.last = Some(id);
        if self.requests.is_empty() {
            self.place.busy();
        }
        Some(Box::pin(request::serve(resolver, out, self.edge.clone(), self.shared.clone(), self.peer)))
    }

    async fn ask(&mut self, mut task: Task, row: &mut Row) {
        let asked = match row.at_once {
            true => std::future::poll_fn(|cx| Poll::Ready(catch_unwind(AssertUnwindSafe(|| task.as_mut().poll(cx))))).await,
            false => Ok(Poll::Pending),
        };
        match asked {
            Ok(Poll::Ready(outcome)) => self.done(Ok(outcome)),
            Err(_panic) => self.done(Err(Failed)),
            Ok(Poll::Pending) => drop(self.requests.spawn(task)),
        }
        coop::consume_budget().await;
        if row.next() {
            row.again();
            tokio::task::yield_now().await;
        }
    }

    fn done(&mut self, outcome: Result<Outcome, Failed>) {
        self.active = Instant::now();
        if self.requests.is_empty() {
            self.place.idle(self.active);
        }
        match outcome {
            Ok(Outcome::Answered) => self.patience.answered(),
            Ok(Outcome::Wasted) => {
                if !self.patience.wasted(self.active) {
                    self.shared.end(Violation::ResetFlood);
                }
            }
            // The panic's text is the panic hook's to print: it may hold anything.
            Err(Failed) => tracing::error!(peer = %self.peer.address, "a request failed"),
        }
    }

    /// When there is next something to look at.
    fn next_look(&self) -> Instant {
        let now = Instant::now();
        let look = match self.stage {
            Stage::Serving if self.requests.is_empty() => self.active + self.idle(),
            Stage::Leaving { until } => until,
            Stage::Gone { until, .. } if now < until => until,
            Stage::Serving | Stage::Gone { .. } => now + self.idle(),
        };
        self.by.map_or(look, |by| look.min(by))
    }

    fn idle(&self) -> Duration {
        self.edge.config.timeouts.idle.min(IDLE)
    }

    /// Looks at the time.
    async fn look(&mut self) -> Option<End> {
        let now = Instant::now();
        if self.by.is_some_and(|by| now >= by) {
            return Some(if self.requests.is_empty() { End::Done } else { End::Cut });
        }
        if let Stage::Leaving { until } = self.stage
            && now >= until
        {
            self.go().await;
        }
        if self.requests.is_empty() && now >= self.active + self.idle() && matches!(self.stage, Stage::Serving) {
            self.edge.metrics.refused(Reason::Idle, Some(Version::Http3));
            return Some(End::Done);
        }
        None
    }

    /// Says that it leaves, and will be gone by then.
    async fn leave(&mut self, by: Instant) {
        self.by = Some(by);
        self.stage = Stage::Leaving { until: self.on_its_way(by) };
        if self.last.is_some() {
            // h3 counts from the last request, and ends at the highest id that there is.
            self.say(usize::MAX).await;
        }
    }

    /// Says that no request after the last is served.
    async fn go(&mut self) {
        self.say(1).await;
        let by = self.by.unwrap_or_else(Instant::now);
        // Without a request, h3 says 0.
        self.stage = Stage::Gone { first: self.last.map_or(0, |last| last + 4), until: self.on_its_way(by) };
    }

    /// When what is on its way is here, `by` at the latest.
    fn on_its_way(&self, by: Instant) -> Instant {
        let (least, most) = ON_ITS_WAY;
        by.min(Instant::now() + (self.connection.rtt() * 2).clamp(least, most))
    }

    async fn say(&mut self, more: usize) {
        // What goes wrong here ends the connection, which `accept` tells.
        let _ = tokio::time::timeout(SAID, self.h3.shutdown(more)).await;
    }
}

/// Returns when the node drains: until when.
async fn draining(mut phase: tokio::sync::watch::Receiver<Phase>) -> Instant {
    loop {
        if let Phase::Draining { until } = *phase.borrow_and_update() {
            return until;
        }
        if phase.changed().await.is_err() {
            // Nobody is left to say so.
            return std::future::pending().await;
        }
    }
}

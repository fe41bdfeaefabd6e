//! The door: who comes in, how many, and how long a session lasts.
//!
//! The link's endpoint hands connections of [`super::ALPNS`] over ([`AlpnHandler`]); a connection is one session, and everything that runs
//! for it ends with the future that [`AlpnHandler::serve`] returns.

use std::{fmt, net::IpAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use horos_link::{AlpnHandler, Handlers, tls::Tls};
use quinn::{Connection, SendStream, VarInt};
use rmcp::ServerHandler;
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch},
    task::JoinHandle,
    time::{Instant, MissedTickBehavior, interval_at, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;

use super::{
    ALPNS,
    auth::{self, Proof, Unproved},
    bounds::{Bounds, Meter, Times},
    close::Ended,
    counts::{Counts, Turn, network},
    lines::{LineError, Lines},
    message::{self, BUSY, Envelope, INVALID, Kind, PARSE, Refusal},
    observed::{Counters, Observed, count},
    outbox::{self, Writer},
    session::{INBOX, Opening, Session},
    streams,
    transport::ServerTransport,
};
use crate::{Caller, Credential, Verify, caller::next_change};

/// What is granted to a peer that was proved: what it may have sent and we not read, beyond a stranger's mebibyte.
const WINDOW: u32 = 32 << 20;
/// What we may have written and such a peer not acknowledged.
const SEND_WINDOW: u64 = 8 << 20;

/// What a door is made with.
#[derive(Clone)]
pub struct Options {
    /// Tells what a certificate proves.
    pub tls: Arc<Tls>,
    /// Tells what a key or a token proves.
    pub verify: Arc<dyn Verify>,
    /// How much.
    pub bounds: Bounds,
    /// How long.
    pub times: Times,
    /// Where sessions and their handlers run; where QUIC is driven if there is none.
    pub runtime: Option<Handle>,
}

impl Options {
    /// The defaults.
    pub fn new(tls: Arc<Tls>, verify: Arc<dyn Verify>) -> Self {
        Self { tls, verify, bounds: Bounds::default(), times: Times::default(), runtime: None }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options").field("bounds", &self.bounds).field("times", &self.times).finish_non_exhaustive()
    }
}

/// Serves a session's requests until its transport ends.
type Serve = dyn Fn(ServerTransport, CancellationToken) -> BoxFuture<'static, Result<(), Ended>> + Send + Sync;

/// What a door's sessions share.
pub(super) struct Shared {
    pub(super) options: Options,
    pub(super) unread: Arc<Meter>,
    pub(super) in_hand: Arc<Meter>,
    pub(super) large: Arc<Semaphore>,
    connections: Arc<Semaphore>,
    strangers: Arc<Semaphore>,
    addresses: Counts<IpAddr>,
    sessions: Counts<Box<str>>,
    /// How many there are.
    open: watch::Sender<usize>,
    /// Until when they are to have ended.
    drain: watch::Sender<Option<Instant>>,
    pub(super) counters: Counters,
    serve: Box<Serve>,
}

/// The door. Cheap to clone.
#[derive(Clone)]
pub struct Door(Arc<Shared>);

impl fmt::Debug for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Door({} sessions)", self.sessions())
    }
}

impl Door {
    /// A door to what `factory` makes: a handler a session, so it should make them cheaply. Each request that reaches one carries an
    /// `Arc<Caller>` in its extensions.
    pub fn new<H: ServerHandler>(factory: impl Fn() -> H + Send + Sync + 'static, options: Options) -> Self {
        let serve = move |transport: ServerTransport, over: CancellationToken| -> BoxFuture<'static, Result<(), Ended>> {
            let handler = factory();
            Box::pin(async move {
                let service = rmcp::service::serve_server_with_ct(handler, transport, over).await.map_err(|error| {
                    tracing::debug!(%error, "a session did not begin");
                    Ended::violation("the session did not begin")
                })?;
                // It ends with the transport, or with the token.
                let _ = service.waiting().await;
                Ok(())
            })
        };
        let bounds = &options.bounds;
        Self(Arc::new(Shared {
            unread: Meter::new(bounds.all_unread),
            in_hand: Meter::new(bounds.all_in_hand),
            large: Arc::new(Semaphore::new(bounds.all_large)),
            connections: Arc::new(Semaphore::new(bounds.connections)),
            strangers: Arc::new(Semaphore::new(bounds.strangers)),
            addresses: Counts::default(),
            sessions: Counts::default(),
            open: watch::Sender::new(0),
            drain: watch::Sender::new(None),
            counters: Counters::default(),
            serve: Box::new(serve),
            options,
        }))
    }

    /// What [`Handlers`] want for one name.
    pub fn handler(&self) -> Arc<dyn AlpnHandler> {
        Arc::new(self.clone())
    }

    /// The door under both its names.
    pub fn handlers(&self) -> Handlers {
        ALPNS.iter().map(|alpn| (alpn.to_vec(), self.handler())).collect()
    }

    /// Sessions that are open.
    pub fn sessions(&self) -> usize {
        *self.0.open.borrow()
    }

    /// What it has done and holds.
    pub fn observe(&self) -> Observed {
        let shared = &self.0;
        let many = |amount: usize| u64::try_from(amount).unwrap_or(u64::MAX);
        Observed {
            open: many(self.sessions()),
            in_hand: many(shared.in_hand.held()),
            unread: many(shared.unread.held()),
            ..shared.counters.observed()
        }
    }

    /// Takes no more requests, and returns when those in hand are answered and all sessions have ended; what is left at `until` is cut.
    pub async fn drain(&self, until: std::time::Instant) {
        self.0.drain.send_replace(Some(until.into()));
        let mut open = self.0.open.subscribe();
        // A moment more for the last words.
        let parting = self.0.options.times.parting;
        let _ = timeout_at(Instant::from(until) + parting, open.wait_for(|open| *open == 0)).await;
    }
}

impl AlpnHandler for Door {
    fn serve(&self, connection: Connection) -> BoxFuture<'static, ()> {
        let shared = self.0.clone();
        let served = async move {
            let open = Open::new(shared.clone());
            let ended = Box::pin(shared.clone().session(&connection)).await;
            shared.counters.closed(ended.close);
            ended.close(&connection);
            drop(open);
        };
        match &self.0.options.runtime {
            None => Box::pin(served),
            Some(runtime) => {
                let mut task = Working(runtime.spawn(served));
                Box::pin(async move {
                    // A task that fails has dropped the connection by that.
                    let _ = (&mut task.0).await;
                })
            }
        }
    }

    fn connections(&self) -> usize {
        self.0.options.bounds.connections
    }

    fn refuse(&self, connection: &Connection) {
        Ended::limit("no more connections").close(connection);
    }
}

/// A task that ends with its owner.
struct Working<T>(JoinHandle<T>);

impl<T> Drop for Working<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Counts a connection for as long as it lives.
struct Open(Arc<Shared>);

impl Open {
    fn new(shared: Arc<Shared>) -> Self {
        shared.open.send_modify(|open| *open += 1);
        Self(shared)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.send_modify(|open| *open -= 1);
    }
}

/// A peer that was proved, and what it said first.
struct Admitted {
    send: SendStream,
    lines: Lines,
    line: Bytes,
    proof: Proof,
    caller: Arc<Caller>,
    id: Arc<str>,
}

impl Shared {
    /// Serves a connection, and says how it ends.
    async fn session(self: Arc<Self>, connection: &Connection) -> Ended {
        const STOPPING: Ended = Ended::done("the server is stopping");
        if self.drain.borrow().is_some() {
            return STOPPING;
        }
        let Ok(_place) = self.connections.clone().try_acquire_owned() else { return Ended::limit("no more connections") };
        let mut drain = self.drain.subscribe();
        let admitted = tokio::select! {
            admitted = self.admit(connection) => admitted,
            _ = drain.wait_for(Option::is_some) => Err(STOPPING),
        };
        let mut admitted = match admitted {
            Ok(admitted) => admitted,
            Err(ended) => return ended,
        };
        let principal = admitted.caller.id().into_owned().into_boxed_str();
        let Some(_turn) = self.sessions.enter(principal, self.options.bounds.sessions) else {
            let refusal = Refusal::new(BUSY, "too many sessions of one principal; nothing was done, close one or come again later");
            self.part(&mut admitted.send, &Refusal { id: asked_by(&admitted.line), ..refusal }).await;
            return Ended::limit("too many sessions of one principal");
        };
        count(&self.counters.sessions);
        connection.set_receive_window(VarInt::from_u32(WINDOW));
        connection.set_send_window(SEND_WINDOW);
        self.serve(connection, admitted, drain).await
    }

    /// Finds out who it is.
    async fn admit(&self, connection: &Connection) -> Result<Admitted, Ended> {
        let Options { tls, verify, times, bounds, .. } = &self.options;
        let by_certificate = auth::certificate(tls, connection)?;
        // A flood of those who are nobody keeps out nobody who has a certificate.
        let _stranger = if by_certificate.is_none() { Some(self.stranger(connection.remote_address().ip(), bounds)?) } else { None };
        let (mut send, receive) = timeout(times.handshake, connection.accept_bi())
            .await
            .map_err(|_| Ended::violation("no stream was opened"))?
            .map_err(|_| Ended::done("gone"))?;
        let mut lines = Lines::new(receive, times.line);
        match timeout(times.handshake, lines.magic()).await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(_))) => return Err(Ended::violation("invalid magic bytes: expected MCP1")),
            Ok(Err(_)) | Err(_) => return Err(Ended::violation("no magic bytes: expected MCP1")),
        }
        let line = match timeout(times.handshake, lines.next()).await {
            Ok(Ok(Some(line))) => line,
            Ok(Ok(None)) => return Err(Ended::done("nothing was asked")),
            Ok(Err(LineError::TooLarge)) => {
                self.part(&mut send, &streams::too_large()).await;
                return Err(Ended::violation("message too large"));
            }
            Ok(Err(LineError::Truncated | LineError::Busy | LineError::Gone)) => return Err(Ended::done("gone")),
            Ok(Err(LineError::Stalled)) | Err(_) => {
                self.part(&mut send, &Refusal::new(PARSE, "parse error: no request came in time")).await;
                return Err(Ended::violation("no request came in time"));
            }
        };
        let proof = match by_certificate {
            Some(proof) => proof,
            None => match shown(&line) {
                Ok(credential) => Proof::Shown(credential),
                Err(refusal) => {
                    let ended =
                        if refusal.code == message::UNAUTHENTICATED { Ended::UNAUTHENTICATED } else { Ended::violation("no request") };
                    self.part(&mut send, &refusal).await;
                    return Err(ended);
                }
            },
        };
        let asked = timeout(times.handshake, auth::who(&proof, tls, &**verify)).await.unwrap_or(Err(Unproved::Unavailable));
        let who = match asked {
            Ok(who) => who,
            Err(unproved) => {
                let refusal = unproved.refusal();
                self.part(&mut send, &Refusal { id: asked_by(&line), ..refusal }).await;
                return Err(match unproved {
                    Unproved::Denied => Ended::UNAUTHENTICATED,
                    Unproved::Unavailable => Ended::limit("who you are cannot be checked now"),
                });
            }
        };
        let id = session_id();
        let caller = auth::caller(who, &proof, &id, connection.remote_address());
        Ok(Admitted { send, lines, line, proof, caller, id })
    }

    /// Says a last word on a stream on which nothing was said.
    async fn part(&self, send: &mut SendStream, refusal: &Refusal) {
        self.counters.refused(refusal);
        let parting = self.options.times.parting;
        let said = async {
            if send.write_all(&refusal.line()).await.is_ok() {
                outbox::finish(send, parting).await;
            }
        };
        let _ = timeout(parting, said).await;
    }

    /// A place for one who is nobody yet.
    fn stranger(&self, address: IpAddr, bounds: &Bounds) -> Result<(OwnedSemaphorePermit, Turn<IpAddr>), Ended> {
        const FULL: Ended = Ended::limit("too many connections that have proved nobody");
        let place = self.strangers.clone().try_acquire_owned().map_err(|_| FULL)?;
        let turn = self.addresses.enter(network(address), bounds.strangers_per_address).ok_or(FULL)?;
        Ok((place, turn))
    }

    /// Serves a peer that was proved.
    async fn serve(self: Arc<Self>, connection: &Connection, admitted: Admitted, mut drain: watch::Receiver<Option<Instant>>) -> Ended {
        let Admitted { send, mut lines, line, proof, caller, id } = admitted;
        let times = self.options.times.clone();
        let (inbox, incoming) = mpsc::channel(INBOX);
        let (first, mut waiting) = mpsc::channel(outbox::QUEUE);
        let opening = Opening { shared: self.clone(), connection: connection.clone(), caller, proof, id, inbox, first };
        let session = Session::new(opening);
        let over = CancellationToken::new();
        // Whatever runs for the session is told to end when this future does.
        let _over = over.clone().drop_guard();
        let mut serving = (self.serve)(ServerTransport { session: session.clone(), inbox: incoming }, over.clone());
        let mut further = Working(tokio::spawn(streams::further(session.clone())));
        let mut writer = Writer::new(send, times.stalled);
        let mut last_words = None;
        let ended = {
            let reading = async {
                match streams::first(&session, &mut lines, line).await {
                    Ok(()) => {
                        session.settle().await;
                        session.end().await;
                        std::future::pending().await
                    }
                    Err(ended) => ended,
                }
            };
            let writing = writer.run(&mut waiting);
            let draining = async {
                let until = drain.wait_for(Option::is_some).await.ok().and_then(|until| *until);
                let Some(until) = until else { return std::future::pending().await };
                let _ = timeout_at(until, session.settle()).await;
                Ended::done("the server is stopping")
            };
            tokio::pin!(reading, writing, draining);
            tokio::select! {
                served = &mut serving => served.err().unwrap_or(Ended::done("the session ended")),
                (refusal, ended) = &mut reading => { last_words = refusal; ended }
                failed = &mut writing => match failed {
                    Err(outbox::Failed::Stalled) => Ended::limit("answers are not read"),
                    Err(outbox::Failed::Stopped | outbox::Failed::Gone) | Ok(()) => Ended::done("the first stream was stopped"),
                },
                ended = &mut further.0 => ended.unwrap_or(Ended::done("the session ended")),
                ended = &mut draining => ended,
                ended = watch_over(&session, &self.options) => ended,
                _ = connection.closed() => Ended::done("gone"),
            }
        };
        over.cancel();
        if connection.close_reason().is_none() {
            self.part_first(&session, &mut writer, &mut waiting, last_words).await;
        }
        ended
    }

    /// Writes what still waits and the last words, and waits until the peer has them.
    async fn part_first(&self, session: &Session, writer: &mut Writer, waiting: &mut mpsc::Receiver<outbox::Out>, words: Option<Refusal>) {
        let times = &self.options.times;
        waiting.close();
        let parting = async {
            writer.run(waiting).await?;
            if let Some(words) = words
                && let Ok(out) = session.unread.out(words.line(), None)
            {
                outbox::write_one(&mut writer.stream, &out, times.stalled).await?;
            }
            outbox::finish(&mut writer.stream, times.parting).await;
            Ok::<_, outbox::Failed>(())
        };
        let _ = timeout(times.parting, parting).await;
    }
}

/// Ends a session that is idle, or whose proof no longer holds though it asks for nothing: at once where that is told, else within
/// [`Times::proof`].
async fn watch_over(session: &Session, options: &Options) -> Ended {
    let Options { tls, verify, times, .. } = options;
    let every = times.proof.min(times.idle / 4).max(Duration::from_millis(1));
    let mut ticks = interval_at(Instant::now() + every, every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut keys = verify.changes();
    let mut certificates = Some(tls.denied().subscribe());
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = next_change(&mut keys) => {}
            () = next_change(&mut certificates) => {}
        }
        if session.idle().is_some_and(|idle| idle >= times.idle) {
            return Ended::done("idle");
        }
        // Nobody is cut off because it cannot be told now; no request of its is let through meanwhile.
        if let Err(Unproved::Denied) = session.reprove().await {
            return Ended::UNAUTHENTICATED;
        }
    }
}

/// The id of a request.
fn asked_by(line: &[u8]) -> Option<Box<str>> {
    match Envelope::read(line).ok()?.kind {
        Kind::Request { id, .. } => Some(id.into()),
        Kind::Notification { .. } | Kind::Answer { .. } => None,
    }
}

/// What the first request shows.
fn shown(line: &[u8]) -> Result<Credential, Refusal> {
    let envelope = Envelope::read(line)?;
    let Kind::Request { id, method } = &envelope.kind else {
        return Err(Refusal::new(INVALID, "invalid request: the first message must be a request"));
    };
    let nobody = || Unproved::Denied.refusal().of(id);
    let mut request = envelope.request(method).map_err(|_| nobody())?;
    let key = message::take_key(&mut request).filter(|key| !key.is_empty()).ok_or_else(nobody)?;
    Ok(Credential(key.into()))
}

/// Nobody guesses it: 128 bits.
fn session_id() -> Arc<str> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).expect("the system has random numbers");
    let mut id = String::with_capacity(37);
    id.push_str("quic_");
    for byte in bytes {
        use std::fmt::Write as _;
        let _ = write!(id, "{byte:02x}");
    }
    id.into()
}

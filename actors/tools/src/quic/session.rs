//! A session: what its streams and its transport share, and what becomes of a message that came.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use quinn::{Connection, VarInt};
use rmcp::{
    RoleServer,
    model::{
        CancelledNotification, CancelledNotificationParam, ClientNotification, ClientRequest, GetExtensions as _, GetMeta as _,
        JsonRpcError, JsonRpcMessage, JsonRpcResponse, NumberOrString, RequestId,
    },
    service::RxJsonRpcMessage,
};
use tokio::sync::{Notify, Semaphore, mpsc};

use super::{
    META_CAPABILITIES, STREAMS, STRIKES,
    auth::{self, Proof, Unproved},
    bounds::Meter,
    close::Ended,
    door::Shared,
    lines::Turns,
    message::{self, BUSY, Envelope, INVALID, Kind, Refusal, UNAUTHENTICATED},
    observed::count,
    outbox::{Out, Unread},
    table::{Place, Settled, Table, Way},
};
use crate::{Caller, Credential};

/// A client's message, or the end of them.
pub(super) type In = Option<RxJsonRpcMessage<RoleServer>>;

/// Messages between the streams' readers and rmcp's loop.
pub(super) const INBOX: usize = 64;
/// Questions of ours to the client that it has not answered.
const ASKED: usize = 256;

/// What all parts of a session share.
pub(super) struct Session {
    pub(super) shared: Arc<Shared>,
    pub(super) connection: Connection,
    pub(super) caller: ArcSwap<Caller>,
    proof: Proof,
    proved: Mutex<Instant>,
    id: Arc<str>,
    pub(super) table: Mutex<Table>,
    pub(super) asked: Mutex<Vec<RequestId>>,
    inbox: mpsc::Sender<In>,
    /// To the first stream's writer; none is its end.
    pub(super) first: mpsc::Sender<Out>,
    pub(super) unread: Unread,
    in_flight: Arc<Meter>,
    in_hand: Arc<Meter>,
    large: Arc<Semaphore>,
    settled: Arc<Notify>,
    began: Instant,
    /// When the last message came, in milliseconds since it began.
    heard: AtomicU64,
    /// Whether rmcp has been given what settles the protocol's generation; before, only requests are for it.
    opened: AtomicBool,
    offered: AtomicBool,
    streams: AtomicBool,
    /// No more requests are taken.
    closing: AtomicBool,
    strikes: AtomicU32,
}

/// What became of a message.
#[derive(Debug)]
pub(super) enum Taken {
    /// A request, by our number.
    Request(i64),
    /// Something that is not answered.
    Heard,
}

/// Why a message was not taken.
#[derive(Debug)]
pub(super) enum NotTaken {
    /// The peer is told.
    Refused(Refusal),
    /// The session ends; the peer may be told before.
    End(Option<Refusal>, Ended),
}

impl From<Refusal> for NotTaken {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// What a session is opened with.
pub(super) struct Opening {
    pub(super) shared: Arc<Shared>,
    pub(super) connection: Connection,
    pub(super) caller: Arc<Caller>,
    pub(super) proof: Proof,
    pub(super) id: Arc<str>,
    pub(super) inbox: mpsc::Sender<In>,
    pub(super) first: mpsc::Sender<Out>,
}

impl Session {
    pub(super) fn new(opening: Opening) -> Arc<Self> {
        let Opening { shared, connection, caller, proof, id, inbox, first } = opening;
        let bounds = &shared.options.bounds;
        let now = Instant::now();
        Arc::new(Self {
            connection,
            caller: ArcSwap::new(caller),
            proof,
            proved: Mutex::new(now),
            id,
            table: Mutex::default(),
            asked: Mutex::default(),
            inbox,
            first,
            unread: Unread { session: Meter::new(bounds.unread), all: shared.unread.clone() },
            in_flight: Meter::new(bounds.in_flight),
            in_hand: Meter::new(bounds.in_hand),
            large: Arc::new(Semaphore::new(bounds.large)),
            settled: Arc::default(),
            began: now,
            heard: AtomicU64::new(0),
            opened: AtomicBool::new(false),
            offered: AtomicBool::new(false),
            streams: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            strikes: AtomicU32::new(0),
            shared,
        })
    }

    /// Turns for large messages; `patience` is how long one is waited for.
    pub(super) fn turns(&self, patience: Duration) -> Turns {
        Turns { session: self.large.clone(), all: self.shared.large.clone(), patience }
    }

    /// Takes a message that came in a line, for rmcp to act on.
    ///
    /// # Errors
    /// [`NotTaken`].
    pub(super) async fn take(self: &Arc<Self>, line: &[u8], way: Way) -> Result<Taken, NotTaken> {
        self.heard.store(u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
        let counters = &self.shared.counters;
        let taken = self.read(line, way).await;
        match &taken {
            Ok(Taken::Request(_)) => count(&counters.requests),
            Ok(Taken::Heard) | Err(NotTaken::End(None, _)) => {}
            Err(NotTaken::Refused(refusal) | NotTaken::End(Some(refusal), _)) => counters.refused(refusal),
        }
        match taken {
            Ok(taken) => {
                self.strikes.store(0, Ordering::Relaxed);
                Ok(taken)
            }
            Err(NotTaken::Refused(refusal)) if refusal.is_strike() => {
                if self.strikes.fetch_add(1, Ordering::Relaxed) + 1 >= STRIKES {
                    return Err(NotTaken::End(Some(refusal), Ended::violation("too many bad messages")));
                }
                Err(NotTaken::Refused(refusal))
            }
            Err(not_taken) => Err(not_taken),
        }
    }

    async fn read(self: &Arc<Self>, line: &[u8], way: Way) -> Result<Taken, NotTaken> {
        let envelope = Envelope::read(line)?;
        match &envelope.kind {
            Kind::Request { id, method } => {
                let refuse = |refusal: Refusal| refusal.of(id);
                let mut request = envelope.request(method).map_err(refuse)?;
                self.prove(&mut request).await.map_err(|not_taken| match not_taken {
                    NotTaken::Refused(refusal) => NotTaken::Refused(refusal.of(id)),
                    NotTaken::End(refusal, ended) => NotTaken::End(refusal.map(|refusal| refusal.of(id)), ended),
                })?;
                let number = self.enter(id, &mut request, way, line.len()).map_err(refuse)?;
                self.hand(JsonRpcMessage::request(request, RequestId::Number(number))).await?;
                Ok(Taken::Request(number))
            }
            _ if !self.opened.load(Ordering::Relaxed) => Err(Refusal::new(INVALID, "invalid request: initialize or ask first").into()),
            _ if matches!(way, Way::Own(_)) => Err(Refusal::new(INVALID, "invalid request: a stream of its own is for a request").into()),
            Kind::Notification { method } => {
                let mut notification = envelope.notification(method)?;
                if let ClientNotification::CancelledNotification(cancelled) = &mut notification {
                    let number = envelope.cancelled().and_then(|id| self.table.lock().number(id));
                    // What is not in hand any more cannot be cancelled, and the client could not know (MCP, "Cancellation").
                    let Some(number) = number else { return Ok(Taken::Heard) };
                    self.table.lock().leave(number);
                    cancelled.params.request_id = Some(RequestId::Number(number));
                }
                self.hand(JsonRpcMessage::notification(notification)).await?;
                Ok(Taken::Heard)
            }
            Kind::Answer { id, result } => {
                let result = message::answer(*result)?;
                let id = id.and_then(message::id_of);
                let asked = {
                    let mut asked = self.asked.lock();
                    let place = asked.iter().position(|asked| Some(asked) == id.as_ref());
                    place.map(|place| asked.swap_remove(place))
                };
                let Some(id) = asked else { return Err(Refusal::new(INVALID, "invalid response: to nothing that was asked").into()) };
                self.hand(match result {
                    Ok(result) => JsonRpcMessage::Response(JsonRpcResponse { jsonrpc: Default::default(), id, result }),
                    Err(error) => JsonRpcMessage::Error(JsonRpcError { jsonrpc: Default::default(), id: Some(id), error }),
                })
                .await?;
                Ok(Taken::Heard)
            }
        }
    }

    /// Proves again who asks when the last proof is old; takes out the key in any case.
    async fn prove(&self, request: &mut ClientRequest) -> Result<(), NotTaken> {
        if let Some(key) = message::take_key(request)
            && let Proof::Shown(Credential(shown)) = &self.proof
            && *key != **shown
        {
            return Err(Refusal::new(UNAUTHENTICATED, "unauthenticated: another key than the session's; open a session for it").into());
        }
        if self.proved.lock().elapsed() >= self.shared.options.times.proof {
            self.reprove().await.map_err(|unproved| match unproved {
                Unproved::Denied => NotTaken::End(Some(unproved.refusal()), Ended::UNAUTHENTICATED),
                Unproved::Unavailable => NotTaken::Refused(unproved.refusal()),
            })?;
        }
        request.extensions_mut().insert(self.caller.load_full());
        Ok(())
    }

    /// Asks again whether the proof holds, and what it grants.
    pub(super) async fn reprove(&self) -> Result<(), Unproved> {
        let options = &self.shared.options;
        let who = auth::who(&self.proof, &options.tls, &*options.verify).await?;
        self.caller.store(auth::caller(who, &self.proof, &self.id, self.connection.remote_address()));
        *self.proved.lock() = Instant::now();
        Ok(())
    }

    /// Gives a request its place.
    fn enter(&self, id: &str, request: &mut ClientRequest, way: Way, bytes: usize) -> Result<i64, Refusal> {
        if self.closing.load(Ordering::Relaxed) {
            return Err(Refusal::new(BUSY, "the server is stopping or the session has ended; nothing was done"));
        }
        let busy = || Refusal::new(BUSY, "too many requests in hand; nothing was done, try again later");
        let held = [
            self.in_flight.hold(1).ok_or_else(busy)?,
            self.in_hand.hold(bytes).ok_or_else(busy)?,
            self.shared.in_hand.hold(bytes).ok_or_else(busy)?,
        ];
        let place = Arc::new(Place { _held: held, _settled: Settled(self.settled.clone()) });
        let token = request.get_meta().get_progress_token();
        let lasting = matches!(request, ClientRequest::SubscriptionsListenRequest(_));
        let number = self.table.lock().enter(id, way, token, lasting, place.clone());
        let number = number.ok_or_else(|| Refusal::new(INVALID, "invalid request: the id is in use"))?;
        // The handler's context has it until the handler ends, be the request cancelled or not: whoever asks and cancels without end is
        // not let have more handlers at work than others.
        request.extensions_mut().insert(place);
        if !self.offered.load(Ordering::Relaxed) && offers(request) {
            self.offered.store(true, Ordering::Relaxed);
        }
        if !matches!(request, ClientRequest::PingRequest(_) | ClientRequest::DiscoverRequest(_)) {
            self.opened.store(true, Ordering::Relaxed);
        }
        Ok(number)
    }

    /// Agrees to streams for requests, if they were offered. Whether.
    pub(super) fn agree(&self) -> bool {
        let offered = self.offered.load(Ordering::Relaxed);
        if offered && !self.streams.swap(true, Ordering::Relaxed) {
            let streams = self.shared.options.bounds.streams.saturating_add(1);
            self.connection.set_max_concurrent_bi_streams(VarInt::from_u32(streams));
        }
        offered
    }

    /// Whether streams for requests were agreed on.
    pub(super) fn has_streams(&self) -> bool {
        self.streams.load(Ordering::Relaxed)
    }

    /// Gives up a request whose stream the client has given up.
    pub(super) async fn cancel(&self, number: i64) {
        if self.table.lock().leave(number).is_none() {
            return;
        }
        let params = CancelledNotificationParam::new(Some(NumberOrString::Number(number)), None);
        let cancelled = CancelledNotification::new(params);
        // It fails when the session is over, and everything cancelled.
        let _ = self.inbox.send(Some(JsonRpcMessage::notification(cancelled.into()))).await;
    }

    async fn hand(&self, message: RxJsonRpcMessage<RoleServer>) -> Result<(), NotTaken> {
        let sent = self.inbox.send(Some(message)).await;
        sent.map_err(|_| NotTaken::End(None, Ended::violation("the session is over")))
    }

    /// Remembers a question to the client. Whether there was room.
    pub(super) fn ask(&self, id: RequestId) -> bool {
        let mut asked = self.asked.lock();
        let room = asked.len() < ASKED;
        if room {
            asked.push(id);
        }
        room
    }

    /// Takes no more requests, and waits until those in hand are answered.
    pub(super) async fn settle(&self) {
        self.closing.store(true, Ordering::Relaxed);
        let lasting = self.table.lock().lasting();
        for number in lasting {
            self.cancel(number).await;
        }
        loop {
            let settled = self.settled.notified();
            tokio::pin!(settled);
            settled.as_mut().enable();
            if self.in_flight.held() == 0 {
                return;
            }
            settled.await;
        }
    }

    /// Ends rmcp's loop in good order.
    pub(super) async fn end(&self) {
        let _ = self.inbox.send(None).await;
    }

    /// How long nothing has been heard, while nothing is in hand.
    pub(super) fn idle(&self) -> Option<Duration> {
        let heard = Duration::from_millis(self.heard.load(Ordering::Relaxed));
        (self.in_flight.held() == 0).then(|| self.began.elapsed().saturating_sub(heard))
    }
}

/// Whether a request says that its client knows streams for requests: with `initialize`, or with each (MCP 2026-07-28).
fn offers(request: &ClientRequest) -> bool {
    match request {
        ClientRequest::InitializeRequest(request) => {
            request.params.capabilities.experimental.as_ref().is_some_and(|experimental| experimental.contains_key(STREAMS))
        }
        request => {
            let capabilities = request.get_meta().get(META_CAPABILITIES);
            let experimental = capabilities.and_then(|capabilities| capabilities.get("experimental"));
            experimental.is_some_and(|experimental| experimental.get(STREAMS).is_some())
        }
    }
}

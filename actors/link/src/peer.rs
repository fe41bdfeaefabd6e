//! One peer's session: the supervised actor behind a connection.
//!
//! Started by [`crate::endpoint`] for each connection that a handshake has proven; temporary, because a
//! session that ends is replaced by the next connection and never restarted. It answers heartbeats itself:
//! a node whose runtime is wedged answers none, and so counts as dead.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use horos_supervision::Vitals;
use horos_wire::{
    NoEffect,
    control::{self, Bind, Bound, Close, Control, Hello, Offer, Offers},
    session::{Event, Session},
};
use jiff::Timestamp;
use quinn::{RecvStream, SendStream};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::{
    sync::mpsc,
    task::{AbortHandle, JoinSet},
    time::{sleep_until, timeout},
};

use crate::{
    identity::PeerIdentity,
    inbound::{self, Target},
    link::Link,
    peers::{Peers, Place},
    streams::{self, Type},
    window,
};

/// Large answers on their way at once; more wait, in order of their readiness.
const LARGE_ANSWERS: usize = 16;
/// One-way streams that the peer may have open; QUIC's own stream limit is the same. With what each may hold unread, it
/// is what a peer can cost: 64 MiB.
pub(crate) const STREAMS: usize = 64;

/// How often a session looks whether its peer's certificate has expired.
const ADMITTED_EVERY: Duration = Duration::from_secs(30);

/// Which end opened the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Dialer,
    Acceptor,
}

/// What a session is started with.
pub(crate) struct PeerArgs {
    pub(crate) connection: quinn::Connection,
    pub(crate) side: Side,
    pub(crate) identity: PeerIdentity,
    pub(crate) place: Place,
    pub(crate) peers: Arc<Peers>,
    pub(crate) vitals: Arc<Vitals>,
}

/// What a session's actor hears.
pub(crate) enum PeerMsg {
    /// The peer wants a sign of life; which one stands in [`Pulse`].
    Pulse,
    /// The session is over.
    Ended(Close),
}

impl fmt::Debug for PeerMsg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pulse => f.write_str("Pulse"),
            Self::Ended(close) => write!(f, "Ended({close})"),
        }
    }
}

/// The peer's latest unanswered heartbeat. One message at most waits in the actor's mailbox for it, so
/// a peer that floods heartbeats fills nothing.
#[derive(Debug, Default)]
struct Pulse {
    sequence: AtomicU64,
    waiting: AtomicBool,
}

pub(crate) struct Peer;

pub(crate) struct PeerState {
    link: Arc<Link>,
    pulse: Arc<Pulse>,
    peers: Arc<Peers>,
    vitals: Arc<Vitals>,
    _tasks: JoinSet<()>,
    _place: Place,
}

impl Drop for PeerState {
    /// However the actor ends, nobody is left waiting on its link.
    fn drop(&mut self) {
        self.link.close(Close::Done);
        self.peers.remove(&self.link);
    }
}

impl Actor for Peer {
    type Msg = PeerMsg;
    type State = PeerState;
    type Arguments = PeerArgs;

    async fn pre_start(&self, me: ActorRef<PeerMsg>, args: PeerArgs) -> Result<PeerState, ActorProcessingErr> {
        let PeerArgs { connection, side, identity, place, peers, vitals } = args;
        let session = Session::new(peers.hello(), identity.id.clone(), peers.liveness, Instant::now());
        let (link, answers) =
            Link::new(connection, identity.id.clone(), session, peers.exchange.clone(), peers.policy.clone(), peers.limits);
        let pulse = Arc::new(Pulse::default());
        let mut tasks = JoinSet::new();
        let driver = Driver { link: link.clone(), peers: peers.clone(), identity, pulse: pulse.clone(), side, actor: me.clone() };
        tasks.spawn(async move {
            let close = driver.run(answers).await;
            // It fails only when the actor is gone already.
            let _ = me.cast(PeerMsg::Ended(close));
        });
        vitals.started();
        Ok(PeerState { link, pulse, peers, vitals, _tasks: tasks, _place: place })
    }

    async fn handle(&self, me: ActorRef<PeerMsg>, message: PeerMsg, state: &mut PeerState) -> Result<(), ActorProcessingErr> {
        match message {
            PeerMsg::Pulse => {
                state.pulse.waiting.store(false, Ordering::Release);
                let sequence = state.pulse.sequence.load(Ordering::Acquire);
                state.vitals.progressed(Instant::now());
                if let Err(close) = state.link.with_session(|session| session.answer_heartbeat(sequence)) {
                    tracing::warn!(peer = %state.link.caller, %close, "closed");
                }
            }
            PeerMsg::Ended(close) => {
                state.link.close(close);
                me.stop(Some(close.to_string()));
            }
        }
        Ok(())
    }
}

/// The long-lived streams of a session. Requests have a stream for each end, and answers come back on it: were
/// they to share one, an answer could wait behind requests that wait for a handler that waits for the answer.
struct Streams {
    control: (SendStream, RecvStream),
    /// Our requests out, their answers in.
    requests: (SendStream, RecvStream),
    /// Our answers out, the peer's requests in.
    answers_to: (SendStream, RecvStream),
}

/// Drives a session's streams until it ends.
struct Driver {
    link: Arc<Link>,
    peers: Arc<Peers>,
    identity: PeerIdentity,
    pulse: Arc<Pulse>,
    side: Side,
    actor: ActorRef<PeerMsg>,
}

impl Driver {
    async fn run(self, answers: mpsc::Receiver<Bytes>) -> Close {
        let opened = timeout(self.peers.liveness.hello, self.open_streams()).await;
        let Ok(Some(streams)) = opened else {
            tracing::warn!(peer = %self.link.caller, "opened no session in time");
            return Close::Silent;
        };
        let Streams { control: (control_out, control_in), requests, answers_to } = streams;
        let mut tasks = JoinSet::new();
        let link = self.link.clone();
        tasks.spawn(async move { write_control(&link, control_out).await });
        let link = self.link.clone();
        tasks.spawn(async move {
            // Its error is that of the connection, which the reader reports.
            let _ = link.out.write_to(requests.0).await;
            std::future::pending().await
        });
        let link = self.link.clone();
        tasks.spawn(async move {
            let _ = link.answers.write_to(answers_to.0).await;
            std::future::pending().await
        });
        let link = self.link.clone();
        tasks.spawn(async move { inbound::read_answers(link, requests.1).await });
        let link = self.link.clone();
        tasks.spawn(async move { inbound::read_requests(link, answers_to.1).await });
        let link = self.link.clone();
        let peers = self.peers.clone();
        tasks.spawn(async move { accept_streams(link, peers).await });
        let link = self.link.clone();
        tasks.spawn(async move { inbound::give_up_late(link).await });
        tasks.spawn(window::keep(self.link.clone()));
        tasks.spawn(stays_admitted(self.link.clone(), self.peers.clone(), self.identity.clone()));
        let link = self.link.clone();
        tasks.spawn(async move { write_large_answers(link, answers).await });
        let mut offers = OfferTask::new(&self.link, &self.peers);
        tasks.spawn(async move { offers.run().await });
        let mut watches = Watches::default();
        let control = self.control(control_in, &mut watches);
        let close = tokio::select! {
            close = control => close,
            ended = tasks.join_next() => match ended {
                Some(Ok(close)) => close,
                // A task of ours panicked: the session's state cannot be trusted.
                Some(Err(_)) | None => Close::Protocol,
            },
        };
        if close != Close::Done {
            tracing::info!(peer = %self.link.caller, %close, "session closed");
        }
        close
    }

    /// The dialer opens the control stream, and each end a stream for its own requests.
    async fn open_streams(&self) -> Option<Streams> {
        let connection = &self.link.quinn;
        let mut control = None;
        if self.side == Side::Dialer {
            control = Some(streams::open_two_way(connection, Type::Control).await.ok()?);
        }
        let requests = streams::open_two_way(connection, Type::Messages).await.ok()?;
        let mut answers_to = None;
        while control.is_none() || answers_to.is_none() {
            let (send, mut receive) = connection.accept_bi().await.ok()?;
            let kind = streams::read_type(&mut receive).await?;
            let place = match kind {
                Type::Control if self.side == Side::Acceptor => &mut control,
                Type::Messages => &mut answers_to,
                _ => return None,
            };
            if place.is_some() {
                return None;
            }
            streams::answer_with_priority(&send, kind);
            *place = Some((send, receive));
        }
        Some(Streams { control: control?, requests, answers_to: answers_to? })
    }

    /// Reads the control stream and keeps the session's time.
    async fn control(&self, mut stream: RecvStream, watches: &mut Watches) -> Close {
        let mut buffer = Vec::new();
        let mut chunk = vec![0; 16 * 1024];
        loop {
            let next = self.link.session.lock().next_timeout();
            let Some(next) = next else { return Close::Done };
            // A peer that never stops talking does not stop the clock.
            let outcome = tokio::select! {
                biased;
                () = sleep_until(next.into()) => self.link.with_session(|session| session.handle_timeout(Instant::now())),
                read = stream.read(&mut chunk) => match read {
                    Ok(Some(size)) => {
                        buffer.extend_from_slice(&chunk[..size]);
                        self.take(&mut buffer)
                    }
                    Ok(None) => return Close::Done,
                    Err(error) => {
                        if self.link.hello.get().is_none() {
                            tracing::info!(peer = %self.link.caller, %error, "the peer did not open the session");
                        }
                        return Close::Done;
                    }
                },
            };
            if let Err(close) = outcome {
                return close;
            }
            if let Err(close) = self.events(watches).await {
                tracing::warn!(peer = %self.link.caller, %close, "on the control stream");
                return close;
            }
            // What has come is read without waiting, so a peer that sends megabytes of tiny frames would hold the
            // runtime, and with it every other peer's heartbeats, until it has read them all.
            tokio::task::yield_now().await;
        }
    }

    /// Takes the whole frames at the start of `buffer`.
    fn take(&self, buffer: &mut Vec<u8>) -> Result<(), Close> {
        let mut used = 0;
        loop {
            match control::read(&buffer[used..]) {
                Ok(Some((frame, length))) => {
                    used += length;
                    self.link.with_session(|session| session.handle(Instant::now(), frame)).inspect_err(|close| {
                        tracing::warn!(peer = %self.link.caller, %close, "on the control stream");
                    })?;
                }
                Ok(None) => {
                    buffer.drain(..used);
                    return Ok(());
                }
                Err(error) => {
                    tracing::warn!(peer = %self.link.caller, %error, "not a control frame; the link is closed");
                    return Err(Close::Protocol);
                }
            }
        }
    }

    async fn events(&self, watches: &mut Watches) -> Result<(), Close> {
        watches.tidy();
        loop {
            let event = self.link.session.lock().poll_event();
            let Some(event) = event else { return Ok(()) };
            match event {
                Event::Opened { version, peer } => self.opened(version, peer)?,
                Event::Offers(offers) => self.peers.offers(&self.link, offers),
                Event::Bind(bind) => self.bind(bind)?,
                Event::Bound { binding, outcome } => self.link.bound(binding, outcome)?,
                Event::Watch { watch, target } => self.watch(watch, target, watches)?,
                Event::Unwatch { watch } => watches.end(watch),
                Event::Down { watch, reason } => self.link.watch_ended(watch, reason),
                Event::Heartbeat { sequence } => {
                    self.pulse.sequence.store(sequence, Ordering::Release);
                    if !self.pulse.waiting.swap(true, Ordering::AcqRel) {
                        // It fails only when the actor is gone, and the session with it.
                        let _ = self.actor.cast(PeerMsg::Pulse);
                    }
                }
                Event::Grant { target, units } => self.link.granted(target, units)?,
                Event::Cancel { correlation } => self.link.caller_gave_up(correlation),
                Event::GoAway => {
                    self.link.peer_leaves();
                    self.peers.touch();
                }
                Event::DenyList(text) => self.peers.deny(text, Some(&self.link)).await,
                Event::Suspect => {
                    tracing::info!(peer = %self.link.caller, "suspect: a heartbeat is late");
                    self.link.suspect.store(true, Ordering::Relaxed);
                    self.peers.touch();
                }
                Event::Recovered => {
                    self.link.suspect.store(false, Ordering::Relaxed);
                    self.peers.touch();
                }
            }
        }
    }

    fn opened(&self, version: u16, peer: Hello) -> Result<(), Close> {
        tracing::info!(peer = %self.link.caller, version, incarnation = %peer.incarnation, release = %peer.release, "session open");
        let _ = self.link.hello.set(peer);
        self.peers.admit(&self.link, self.side, &self.identity)?;
        if let Some(list) = self.peers.tls.denied().text() {
            self.link.with_session(|session| session.deny_list((&*list).into()))?;
        }
        Ok(())
    }

    fn bind(&self, bind: Bind) -> Result<(), Close> {
        let outcome = self.find(&bind);
        self.link.with_session(|session| session.bound(bind.binding, outcome))
    }

    fn find(&self, bind: &Bind) -> Result<Bound, NoEffect> {
        let inbox = self
            .link
            .exchange
            .find(&bind.name)
            .ok_or_else(|| NoEffect::NoSuchActor(format!("{}@{}", bind.name, self.link.exchange.node().name).into()))?;
        let (protocol, version) = inbox.protocol();
        let (caller, callee) = (self.link.caller.node().role, self.link.exchange.node().role);
        let permitted = self.link.policy.permitted(caller, callee, protocol, inbox.methods());
        if permitted.is_empty() {
            tracing::warn!(peer = %self.link.caller, actor = %bind.name, protocol, "not allowed");
            return Err(NoEffect::NotAllowed(format!("the role {caller} may not call {protocol} on a {callee}").into()));
        }
        if let Some((asked, asked_version)) = &bind.protocol
            && (&**asked != protocol || *asked_version != version)
        {
            let why = format!("{} speaks {protocol}/{version}, not {asked}/{asked_version}", bind.name);
            return Err(NoEffect::VersionNotSpoken(why.into()));
        }
        let methods = match bind.protocol {
            Some(_) => Vec::new(),
            None => inbox.methods().iter().map(|method| (method.number, method.name.into())).collect(),
        };
        let mut targets = self.link.targets.write();
        let number = targets.len() as u32 + 1;
        targets.push(Arc::new(Target::new(&self.link, number, inbox, permitted)));
        Ok(Bound { target: number, protocol: protocol.into(), version, methods })
    }

    fn watch(&self, watch: u32, target: u32, watches: &mut Watches) -> Result<(), Close> {
        let target = (target as usize).checked_sub(1).and_then(|index| self.link.targets.read().get(index).cloned());
        let target = target.ok_or(Close::Protocol)?;
        let down = target.inbox().vitals().down();
        let link = self.link.clone();
        watches.begin(watch, async move {
            let reason = down.await;
            // It fails only when the session is over.
            let _ = link.with_session(|session| session.down(watch, reason));
        });
        Ok(())
    }
}

/// The monitors that the peer has set, by its numbers; bounded by the session, which closes for one too many.
#[derive(Default)]
struct Watches {
    tasks: JoinSet<()>,
    numbers: HashMap<u32, AbortHandle>,
}

impl Watches {
    fn begin(&mut self, watch: u32, monitor: impl Future<Output = ()> + Send + 'static) {
        self.numbers.insert(watch, self.tasks.spawn(monitor));
    }

    fn end(&mut self, watch: u32) {
        if let Some(monitor) = self.numbers.remove(&watch) {
            monitor.abort();
        }
    }

    fn tidy(&mut self) {
        let mut ended = false;
        while self.tasks.try_join_next().is_some() {
            ended = true;
        }
        if ended {
            self.numbers.retain(|_, monitor| !monitor.is_finished());
        }
    }
}

async fn write_control(link: &Link, mut stream: SendStream) -> Close {
    let mut buffer = Vec::new();
    loop {
        let changed = link.session_changed.notified();
        tokio::pin!(changed);
        changed.as_mut().enable();
        {
            let mut session = link.session.lock();
            while let Some(frame) = session.poll_transmit() {
                if let Err(error) = control::write(&mut buffer, &frame) {
                    tracing::error!(peer = %link.caller, %error, frame = ?kind(&frame), "a control frame of ours is over the limit");
                    return Close::Limit;
                }
                // Written in portions, so that a long outbox is not held twice.
                if buffer.len() > 64 * 1024 {
                    break;
                }
            }
        }
        if link.is_closed() {
            return Close::Done;
        }
        if buffer.is_empty() {
            changed.await;
        } else {
            if stream.write_all(&buffer).await.is_err() {
                return Close::Done;
            }
            buffer.clear();
        }
    }
}

/// A frame's variant, for a log that must not repeat a whole list.
fn kind(frame: &Control) -> &'static str {
    match frame {
        Control::Hello(_) => "hello",
        Control::Offers(_) => "offers",
        Control::Bind(_) => "bind",
        Control::Bound { .. } => "bound",
        Control::Watch { .. } => "watch",
        Control::Unwatch { .. } => "unwatch",
        Control::Down { .. } => "down",
        Control::Heartbeat { .. } => "heartbeat",
        Control::HeartbeatAck { .. } => "heartbeat-ack",
        Control::Grant { .. } => "grant",
        Control::Cancel { .. } => "cancel",
        Control::GoAway => "go-away",
        Control::DenyList(_) => "deny-list",
    }
}

/// Ends when the peer's certificate no longer counts: revoked by a deny list, whichever way that came, or expired.
async fn stays_admitted(link: Arc<Link>, peers: Arc<Peers>, identity: PeerIdentity) -> Close {
    let mut denied = peers.tls.denied().subscribe();
    loop {
        denied.mark_unchanged();
        if let Err(refused) = peers.tls.still_admits(&identity, Timestamp::now()) {
            tracing::warn!(peer = %link.caller, %refused, "session closed");
            return Close::Revoked;
        }
        // The certificate's end is a time of the calendar, which jumps; so it is looked at and not waited for.
        let _ = timeout(ADMITTED_EVERY, denied.changed()).await;
    }
}

/// Takes the peer's one-way streams, up to [`STREAMS`] at once.
async fn accept_streams(link: Arc<Link>, peers: Arc<Peers>) -> Close {
    let mut readers: JoinSet<Result<(), Close>> = JoinSet::new();
    loop {
        tokio::select! {
            accepted = link.quinn.accept_uni(), if readers.len() < STREAMS => match accepted {
                Ok(stream) => { readers.spawn(read_stream(link.clone(), peers.clone(), stream)); }
                Err(_) => return Close::Done,
            },
            Some(ended) = readers.join_next() => match ended {
                Ok(Ok(())) => {}
                Ok(Err(close)) => return close,
                Err(_) => return Close::Protocol,
            },
        }
    }
}

async fn read_stream(link: Arc<Link>, peers: Arc<Peers>, mut stream: RecvStream) -> Result<(), Close> {
    // A stream that was reset before its first byte belongs to a sender that gave up.
    let Ok(Some(kind)) = timeout(Duration::from_secs(5), streams::read_type(&mut stream)).await else { return Ok(()) };
    match kind {
        Type::Body => inbound::read_body(link, stream).await,
        Type::Answer => inbound::read_answer(link, stream).await?,
        Type::Bulk => crate::bulk::arrived(&link, stream).await,
        Type::Gossip => peers.gossip_from(&link, stream).await,
        Type::Control | Type::Messages => return Err(Close::Protocol),
    }
    Ok(())
}

async fn write_large_answers(link: Arc<Link>, mut answers: mpsc::Receiver<Bytes>) -> Close {
    let mut writers = JoinSet::new();
    loop {
        tokio::select! {
            answer = answers.recv(), if writers.len() < LARGE_ANSWERS => {
                let Some(answer) = answer else { return Close::Done };
                let link = link.clone();
                writers.spawn(async move {
                    if let Ok(mut stream) = streams::open(&link.quinn, Type::Answer).await {
                        let mut stream = streams::ResetOnDrop::new(&mut stream);
                        // A failure is the connection's, and ends every caller on it.
                        if stream.write_all(&answer).await.is_ok() {
                            stream.finish();
                        }
                    }
                    link.answer_sent(answer.len());
                });
            }
            Some(_) = writers.join_next() => {}
        }
    }
}

/// Tells the peer what this node offers it, and again when that changes.
struct OfferTask {
    link: Arc<Link>,
    peers: Arc<Peers>,
    names: tokio::sync::watch::Receiver<u64>,
    ready: tokio::sync::watch::Receiver<bool>,
}

impl OfferTask {
    fn new(link: &Arc<Link>, peers: &Arc<Peers>) -> Self {
        Self { link: link.clone(), peers: peers.clone(), names: peers.exchange.changed(), ready: peers.ready.subscribe() }
    }

    async fn run(&mut self) -> Close {
        loop {
            let ready = *self.ready.borrow_and_update();
            self.names.mark_unchanged();
            let (caller, callee) = (self.link.caller.node().role, self.link.exchange.node().role);
            let permitted = |inbox: &Arc<dyn horos_supervision::exchange::Inbox>| {
                let (protocol, _) = inbox.protocol();
                !self.link.policy.permitted(caller, callee, protocol, inbox.methods()).is_empty()
            };
            let names = self.peers.exchange.names().into_iter().filter(|(_, inbox)| permitted(inbox)).map(|(name, inbox)| {
                let (protocol, version) = inbox.protocol();
                Offer { name, protocol: protocol.into(), version }
            });
            let offers = Offers { names: names.collect(), ready };
            if let Err(close) = self.link.with_session(|session| session.offer(offers)) {
                return close;
            }
            tokio::select! {
                Ok(()) = self.names.changed() => {}
                Ok(()) = self.ready.changed() => {}
                else => return Close::Done,
            }
        }
    }
}

//! One link: everything that the connection to one peer shares between senders, its reader and its session.
//!
//! Made by [`crate::peer`] for each connection; gone with it. Three nested bounds hold memory:
//! bytes in [`Out`], the [`Credit`] of what this peer's messages hold here, and each actor's own mailbox.
//! Casts are bound a fourth time, by a window per target, so that a slow actor's backlog waits with the
//! senders and never on the link.

use std::{
    cell::RefCell,
    collections::{HashMap, VecDeque},
    fmt,
    pin::pin,
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use horos_supervision::{
    context::Caller,
    exchange::{Answer, AnswerSink, Cancels, Exchange, Outlet, read_answer},
    mailbox::Pool,
};
use horos_wire::{
    ActorName, Format, NoEffect, NodeId, NodeName, Unknown,
    codec::{CodecError, MAX_BODY},
    control::{Bound, Close, DownReason, Hello, Offers},
    error::Fault,
    frame::{self, Kind, MAX_SMALL_BODY},
    policy::Policy,
    session::{Calls, Credit, Session, WINDOW},
};
use parking_lot::{Mutex, RwLock};
use tokio::{
    sync::{Notify, Semaphore, mpsc, oneshot, watch},
    time::timeout,
};

use crate::{
    inbound::{Bodies, Lanes, Target},
    out::{Eager, NotTaken, Out},
};

mod outlet;

use outlet::BoundTarget;

/// Calls in flight up to which each is written by itself: someone waits for it, and nothing else.
const LONE_CALLS: usize = 8;
/// Calls in flight up to which a datagram's worth of them is written at once; beyond it, gathering pays.
const EAGER_CALLS: usize = 64;
/// A peer that does not answer for a name by then is not waited for: it would have been down by then.
const BIND_PATIENCE: Duration = Duration::from_secs(3);
/// Names asked for and not yet answered.
const MAX_ASKED: usize = 1024;
/// Bytes of large answers read at once, so that a peer cannot have more of them half way than this: two of the largest.
const ANSWERS_IN: usize = 2 * frame::MAX_LARGE_FRAME;
/// Bytes of large answers that may wait to be sent: four of the largest. No more is asked for while one of the largest
/// waits, but what was asked before may all be answered at once.
const LARGE_ANSWERS_OUT: usize = 4 * MAX_BODY;
/// Abandoned calls that are remembered; the oldest are forgotten, and then merely run in vain.
const ABANDONED: usize = 1024;

/// How much one link may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes in the out-buffer before senders wait. Default 1 MiB.
    pub out_buffer: usize,
    /// The peer's messages dispatched and not yet done; further calls are refused. Default 8,192: as many actors may be
    /// slow at once as their windows ([`WINDOW`]) fill, eight, and the ninth is still served.
    pub in_flight_messages: u32,
    /// Bytes of its small messages among them, and again of its large ones. Default 8 MiB.
    pub in_flight_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { out_buffer: 1024 * 1024, in_flight_messages: 8192, in_flight_bytes: 8 * 1024 * 1024 }
    }
}

/// Whether a message of the peer's may be taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Room {
    Taken,
    /// Too much is in hand.
    Full,
    Closed,
}

thread_local! {
    /// A message is encoded here first, so that no lock is held while a user's type writes itself.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A name with the protocol that its caller was compiled with; none for JSON.
type Name = (ActorName, Option<(&'static str, u16)>);
type BindOutcome = Result<Arc<BoundTarget>, NoEffect>;
type Waiter = oneshot::Sender<Result<Answer, Fault>>;

pub(crate) struct Link {
    me: Weak<Link>,
    pub(crate) quinn: quinn::Connection,
    /// The peer, as the caller of what it sends.
    pub(crate) caller: Caller,
    pub(crate) node: NodeName,
    pub(crate) hello: OnceLock<Hello>,
    pub(crate) offers: RwLock<Offers>,
    pub(crate) suspect: AtomicBool,
    pub(crate) exchange: Exchange,
    pub(crate) policy: Arc<Policy>,
    /// Our requests.
    pub(crate) out: Out,
    /// Our answers, on the peer's stream of requests: one never waits for what holds up the other.
    pub(crate) answers: Out,
    calls: Mutex<Calls<Waiter>>,
    pub(crate) session: Mutex<Session>,
    /// Wakes the control stream's writer.
    pub(crate) session_changed: Notify,
    /// Names asked for, by the number of the question.
    binding: Mutex<HashMap<u32, Name>>,
    asked: Mutex<HashMap<Name, watch::Sender<Option<BindOutcome>>>>,
    bound: Mutex<HashMap<Name, Arc<BoundTarget>>>,
    windows: Mutex<HashMap<u32, Arc<Semaphore>>>,
    watching: Mutex<HashMap<u32, oneshot::Sender<DownReason>>>,
    /// What the peer has bound here; a target's number is its index and one.
    pub(crate) targets: RwLock<Vec<Arc<Target>>>,
    pub(crate) lanes: Lanes,
    credit: Mutex<Credit>,
    /// [`Credit::outstanding`], to be read without the lock.
    outstanding: AtomicU32,
    /// Someone waits for credit, or for room among the answers.
    starved: AtomicBool,
    credit_freed: Notify,
    /// Room for the large bodies of the peer's messages, in the order in which they were announced.
    pub(crate) bodies: Bodies,
    abandoned: Mutex<VecDeque<u64>>,
    any_abandoned: AtomicBool,
    /// Wakes who does what nobody may wait for any more.
    gave_up: Notify,
    large_answers: mpsc::Sender<Bytes>,
    /// Bytes of large answers that are being read.
    pub(crate) answers_in: Semaphore,
    answer_bytes: AtomicUsize,
    leaving: AtomicBool,
    closed: AtomicBool,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Link({})", self.caller)
    }
}

impl Link {
    pub(crate) fn new(
        quinn: quinn::Connection,
        peer: NodeId,
        session: Session,
        exchange: Exchange,
        policy: Arc<Policy>,
        limits: Limits,
    ) -> (Arc<Self>, mpsc::Receiver<Bytes>) {
        // Each large answer belongs to a message that still held credit when it was queued; the bytes are bounded apart.
        let (large_answers, queue) = mpsc::channel(limits.in_flight_messages as usize);
        let bodies = usize::try_from(limits.in_flight_bytes).unwrap_or(usize::MAX).min(u32::MAX as usize);
        let link = Arc::new_cyclic(|me| Self {
            me: me.clone(),
            quinn,
            node: peer.name.clone(),
            caller: Caller::remote(Arc::new(peer)),
            hello: OnceLock::new(),
            offers: RwLock::default(),
            suspect: AtomicBool::new(false),
            exchange,
            policy,
            out: Out::new(limits.out_buffer),
            answers: Out::new(limits.out_buffer),
            calls: Mutex::default(),
            session: Mutex::new(session),
            session_changed: Notify::new(),
            binding: Mutex::default(),
            asked: Mutex::default(),
            bound: Mutex::default(),
            windows: Mutex::default(),
            watching: Mutex::default(),
            targets: RwLock::default(),
            lanes: Lanes::default(),
            credit: Mutex::new(Credit::new(limits.in_flight_messages, limits.in_flight_bytes)),
            outstanding: AtomicU32::new(0),
            starved: AtomicBool::new(false),
            credit_freed: Notify::new(),
            bodies: Bodies::new(bodies),
            abandoned: Mutex::default(),
            any_abandoned: AtomicBool::new(false),
            gave_up: Notify::new(),
            large_answers,
            answers_in: Semaphore::new(ANSWERS_IN),
            answer_bytes: AtomicUsize::new(0),
            leaving: AtomicBool::new(false),
            closed: AtomicBool::new(false),
        });
        (link, queue)
    }

    fn me(&self) -> Arc<Self> {
        self.me.upgrade().expect("a link calls itself only while it is held")
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Whether new work may be sent: the peer is there and not about to leave.
    pub(crate) fn takes_work(&self) -> bool {
        !self.is_closed() && !self.leaving.load(Ordering::Acquire)
    }

    /// The peer said that it takes no new work.
    pub(crate) fn peer_leaves(&self) {
        self.leaving.store(true, Ordering::Release);
    }

    /// Ends the link: every caller learns that its outcome is unknown, every watcher that the node is down.
    pub(crate) fn close(&self, close: Close) {
        if self.closed.swap(true, Ordering::AcqRel) {
            return;
        }
        // To quinn the last reason counts, and the peer's, if there is one, says more than that we noticed.
        if self.quinn.close_reason().is_none() {
            self.quinn.close((close as u32).into(), close.to_string().as_bytes());
        }
        self.out.close();
        self.answers.close();
        let waiters: Vec<_> = self.calls.lock().drain().collect();
        for waiter in waiters {
            let _ = waiter.send(Err(Fault::Unknown(Unknown::PeerLost(self.node.as_str().into()))));
        }
        self.binding.lock().clear();
        self.asked.lock().clear();
        for (_, watch) in self.watching.lock().drain() {
            let _ = watch.send(DownReason::NodeDown);
        }
        for (_, window) in self.windows.lock().drain() {
            window.close();
        }
        self.bound.lock().clear();
        self.lanes.close();
        self.answers_in.close();
        self.bodies.close();
        let targets = std::mem::take(&mut *self.targets.write());
        for target in targets {
            target.close();
        }
        self.credit_freed.notify_one();
        self.session_changed.notify_one();
        self.gave_up.notify_waiters();
    }

    /// Ends the connection, and leaves the rest to the session's driver, which sees it end and closes the link.
    ///
    /// For where a caller may hold a lock that [`Link::close`] takes: an answer is refused, and a message's hold
    /// dropped, from under a lane's.
    pub(crate) fn give_up(&self, close: Close) {
        if !self.is_closed() && self.quinn.close_reason().is_none() {
            tracing::warn!(peer = %self.caller, %close, "the link is given up");
            self.quinn.close((close as u32).into(), close.to_string().as_bytes());
        }
    }

    fn no_route(&self) -> NoEffect {
        NoEffect::NoRoute(self.node.as_str().into())
    }

    /// Changes the session, and gives the link up when that was too much for it.
    pub(crate) fn with_session<T>(&self, change: impl FnOnce(&mut Session) -> Result<T, Close>) -> Result<T, Close> {
        let outcome = change(&mut self.session.lock());
        match outcome {
            Ok(value) => {
                self.session_changed.notify_one();
                Ok(value)
            }
            Err(close) => {
                self.give_up(close);
                Err(close)
            }
        }
    }

    // ---- names that the peer offers ----

    /// The outlet for `name` on the peer.
    pub(crate) async fn bind(&self, name: &ActorName, protocol: Option<(&'static str, u16)>) -> Result<Arc<dyn Outlet>, NoEffect> {
        let key = (name.clone(), protocol);
        if let Some(bound) = self.bound.lock().get(&key) {
            return Ok(bound.clone());
        }
        let mut answer = self.ask(key)?;
        let answered = timeout(BIND_PATIENCE, answer.wait_for(Option::is_some)).await;
        match answered.map_err(|_| NoEffect::NoRoute(format!("{}: no answer for {name}", self.node).into()))? {
            Ok(bound) => bound.clone().expect("awaited above").map(|target| target as Arc<dyn Outlet>),
            Err(_) => Err(self.no_route()),
        }
    }

    /// Asks for a name once, however many wait for the answer: a thousand callers that find a new link at
    /// once would otherwise ask the same a thousand times, and be closed for it.
    fn ask(&self, key: Name) -> Result<watch::Receiver<Option<BindOutcome>>, NoEffect> {
        let mut asked = self.asked.lock();
        if let Some(bound) = self.bound.lock().get(&key) {
            return Ok(watch::channel(Some(Ok(bound.clone()))).1);
        }
        if let Some(asked) = asked.get(&key) {
            return Ok(asked.subscribe());
        }
        if !self.takes_work() {
            return Err(self.no_route());
        }
        if asked.len() >= MAX_ASKED {
            return Err(NoEffect::Overloaded(format!("{} leaves too many names unanswered", self.node).into()));
        }
        let (name, protocol) = &key;
        let sent = {
            // Registered under the session's lock, so that the answer cannot come first.
            let mut session = self.session.lock();
            let sent = session.bind(name.clone(), protocol.map(|(name, version)| (name.into(), version)));
            if let Ok(number) = sent {
                self.binding.lock().insert(number, key.clone());
            }
            sent
        };
        if let Err(close) = sent {
            self.give_up(close);
            return Err(self.no_route());
        }
        self.session_changed.notify_one();
        let (sender, answer) = watch::channel(None);
        asked.insert(key, sender);
        drop(asked);
        if self.is_closed() {
            // Closed between the first look and the registration; whoever closed it did not see this question.
            self.asked.lock().clear();
        }
        Ok(answer)
    }

    /// The peer's answer to [`Link::ask`].
    pub(crate) fn bound(&self, binding: u32, outcome: Result<Bound, NoEffect>) -> Result<(), Close> {
        let Some(key) = self.binding.lock().remove(&binding) else { return Ok(()) };
        let mut asked = self.asked.lock();
        let outcome = match outcome.and_then(|bound| self.believed(bound)) {
            Ok(bound) => {
                let window = Arc::new(Semaphore::new(WINDOW as usize));
                // A number given out twice would mix up what two targets have room for.
                if self.windows.lock().insert(bound.target, window.clone()).is_some() {
                    return Err(Close::Protocol);
                }
                let target = Arc::new(BoundTarget { link: self.me(), target: bound.target, window, methods: bound.methods });
                self.bound.lock().insert(key.clone(), target.clone());
                Ok(target)
            }
            Err(why) => Err(why),
        };
        if let Some(asked) = asked.remove(&key) {
            // Those who asked may have given up; the name is bound all the same.
            let _ = asked.send(Some(outcome));
        }
        Ok(())
    }

    /// Whoever made an address may have named the node, but what its role may offer is the policy's to say.
    fn believed(&self, bound: Bound) -> Result<Bound, NoEffect> {
        let (ours, theirs) = (self.exchange.node().role, self.caller.node().role);
        if ours.is_node() && !self.policy.may_offer(theirs, &bound.protocol) {
            return Err(NoEffect::NotAllowed(format!("a {theirs} may not offer {}", bound.protocol).into()));
        }
        Ok(bound)
    }

    pub(crate) fn granted(&self, target: u32, units: u32) -> Result<(), Close> {
        let window = self.windows.lock().get(&target).cloned().ok_or(Close::Protocol)?;
        // More than was taken would be room that the peer does not have.
        if window.available_permits() + units as usize > WINDOW as usize {
            return Err(Close::Protocol);
        }
        window.add_permits(units as usize);
        Ok(())
    }

    pub(crate) fn watch_ended(&self, watch: u32, reason: DownReason) {
        if let Some(watcher) = self.watching.lock().remove(&watch) {
            let _ = watcher.send(reason);
        }
    }

    // ---- answers to our calls ----

    pub(crate) fn answered(&self, correlation: u64, kind: Kind, format: Format, body: Bytes) {
        // One that is not in flight came after its caller gave up.
        let waiter = self.calls.lock().take(correlation);
        if let Some(waiter) = waiter {
            let _ = waiter.send(read_answer(kind, format, body));
        }
    }

    /// Whether a call is still waiting for its answer.
    pub(crate) fn waits_for(&self, correlation: u64) -> bool {
        self.calls.lock().contains(correlation)
    }

    pub(crate) fn calls_in_flight(&self) -> usize {
        self.calls.lock().len()
    }

    // ---- the peer's messages ----

    pub(crate) fn try_credit(&self, size: usize) -> bool {
        self.answer_bytes.load(Ordering::Relaxed) < crate::out::MAX_ANSWERS && self.take_credit(size)
    }

    fn take_credit(&self, size: usize) -> bool {
        let mut credit = self.credit.lock();
        let taken = credit.take(size);
        self.outstanding.store(credit.outstanding(), Ordering::Relaxed);
        taken
    }

    /// Wakes whoever waits in [`Link::credit`].
    fn fed(&self) {
        // Set before the look at what there is, and read after there is more: one of the two sees the other.
        if self.starved.load(Ordering::SeqCst) && self.starved.swap(false, Ordering::SeqCst) {
            self.credit_freed.notify_one();
        }
    }

    /// Waits until the peer's message of `size` bytes has room here, where waiting helps.
    pub(crate) async fn credit(&self, size: usize, is_cast: bool) -> Room {
        loop {
            if self.is_closed() {
                return Room::Closed;
            }
            self.starved.store(true, Ordering::SeqCst);
            // The peer's own reading makes room among its answers, so its messages wait for that.
            if self.answer_bytes.load(Ordering::SeqCst) < crate::out::MAX_ANSWERS {
                if self.take_credit(size) {
                    return Room::Taken;
                }
                // What is in hand waits for actors, and they may be slow. A call is told so at once; if the reader
                // waited with it, calls to every other actor would wait too. A cast waits: its target's window, which
                // its sender keeps, bounds how long.
                if !is_cast {
                    return Room::Full;
                }
            }
            self.credit_freed.notified().await;
        }
    }

    /// The peer's messages dispatched and not yet done.
    pub(crate) fn outstanding(&self) -> u32 {
        self.outstanding.load(Ordering::Relaxed)
    }

    pub(crate) fn caller_gave_up(&self, correlation: u64) {
        let mut abandoned = self.abandoned.lock();
        if abandoned.len() == ABANDONED {
            abandoned.pop_front();
        }
        abandoned.push_back(correlation);
        self.any_abandoned.store(true, Ordering::Release);
        drop(abandoned);
        self.gave_up.notify_waiters();
    }

    pub(crate) fn answer_sent(&self, size: usize) {
        self.answer_bytes.fetch_sub(size, Ordering::SeqCst);
        self.fed();
    }

    /// Queues a large answer.
    ///
    /// # Errors
    /// How many bytes of earlier ones have not been sent yet, when that is too much.
    fn answer_large(&self, answer: Vec<u8>) -> Result<(), usize> {
        let size = answer.len();
        let waiting = self.answer_bytes.fetch_add(size, Ordering::Relaxed);
        // One answer of any size always goes; beside others it must fit.
        if (waiting > 0 && waiting + size > LARGE_ANSWERS_OUT) || self.large_answers.try_send(answer.into()).is_err() {
            self.answer_bytes.fetch_sub(size, Ordering::Relaxed);
            return Err(waiting);
        }
        Ok(())
    }

    /// Says in `scratch` that the handler ran, and that what it answered cannot be told.
    fn write_lost(scratch: &mut Vec<u8>, correlation: u64, lost: &Unknown) {
        scratch.clear();
        // The memory that the answer took is not kept for ever.
        scratch.shrink_to(4 * MAX_SMALL_BODY);
        let body = |into: &mut Vec<u8>| horos_wire::codec::encode(Format::Bincode, lost, into);
        if let Err(error) = frame::write_answer(scratch, Kind::Lost, Format::Bincode, correlation, body) {
            tracing::error!(%error, "an outcome could not be written");
        }
    }
}

impl Pool for Link {
    fn release(&self, size: u32) {
        {
            let mut credit = self.credit.lock();
            credit.give(size as usize);
            self.outstanding.store(credit.outstanding(), Ordering::Relaxed);
        }
        self.fed();
    }
}

impl Cancels for Link {
    fn cancel(&self, correlation: u64) {
        let waiting = self.calls.lock().take(correlation).is_some();
        if waiting && !self.is_closed() {
            let _ = self.with_session(|session| session.cancel(correlation));
        }
    }
}

impl AnswerSink for Link {
    fn answer(&self, correlation: u64, kind: Kind, format: Format, body: &mut dyn FnMut(&mut Vec<u8>) -> Result<(), CodecError>) {
        if self.is_closed() {
            return;
        }
        SCRATCH.with_borrow_mut(|scratch| {
            scratch.clear();
            if let Err(error) = frame::write_answer(scratch, kind, format, correlation, body) {
                let lost = match error {
                    CodecError::TooLarge(size) => Unknown::ReplyTooLarge(format!("{size} bytes, more than {MAX_BODY}").into()),
                    error => Unknown::MalformedReply(error.to_string().into()),
                };
                Self::write_lost(scratch, correlation, &lost);
            }
            if scratch.len() > frame::MAX_SMALL_FRAME {
                let size = scratch.len();
                let Err(waiting) = self.answer_large(std::mem::take(scratch)) else { return };
                // This caller alone is told; the others on the link have done nothing wrong.
                let why = format!("{size} bytes, and {waiting} bytes of earlier replies are not sent yet");
                Self::write_lost(scratch, correlation, &Unknown::ReplyTooLarge(why.into()));
            }
            let eager = eager(self.outstanding() as usize);
            if self.answers.answer(scratch, eager) == Err(NotTaken::Full) {
                self.give_up(Close::Limit);
            }
        });
    }

    fn is_abandoned(&self, correlation: u64) -> bool {
        if self.is_closed() {
            return true;
        }
        if !self.any_abandoned.load(Ordering::Acquire) {
            return false;
        }
        let mut abandoned = self.abandoned.lock();
        let Some(at) = abandoned.iter().position(|known| *known == correlation) else { return false };
        abandoned.remove(at);
        self.any_abandoned.store(!abandoned.is_empty(), Ordering::Release);
        true
    }

    fn abandoned(&self, correlation: u64) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            loop {
                let mut gave_up = pin!(self.gave_up.notified());
                // Before the look, so that what comes between the two is not missed.
                gave_up.as_mut().enable();
                if self.is_abandoned(correlation) {
                    return;
                }
                gave_up.await;
            }
        })
    }
}

/// How calls and answers are written with so many of them in flight.
const fn eager(in_flight: usize) -> Eager {
    if in_flight <= LONE_CALLS {
        Eager::Each
    } else if in_flight <= EAGER_CALLS {
        Eager::Portions
    } else {
        Eager::No
    }
}

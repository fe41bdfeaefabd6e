//! What the peer sends: from its stream of requests, from the answers on ours, and from the streams of large bodies, into mailboxes.
//!
//! The reader never waits for an actor. A target whose next message cannot be taken yet (its large body is
//! still coming, or its mailbox is full) has a *lane*, where what follows for it waits in order while
//! others pass. Lanes are bounded by the link's credit, which each message takes in the order of the
//! stream before anything else happens to it.

use std::{
    collections::{HashMap, VecDeque},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use bytes::Bytes;
use horos_supervision::{
    exchange::{Answerer, Inbox},
    mailbox::{Hold, Pool, Post, Returned, Work},
};
use horos_wire::{
    CallContext, NoEffect,
    control::Close,
    frame::{Decoder, Frame, FrameError, Kind, LargeBody, MAX_LARGE_FRAME, MAX_SMALL_FRAME},
    policy::MethodSet,
    session::{WINDOW, cost},
};
use parking_lot::Mutex;
use quinn::RecvStream;
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore, oneshot};

use crate::{
    link::{Link, Room},
    streams::read_rest,
};

/// What one read takes from a stream at most: a GRO batch.
const CHUNK: usize = 64 * 1024;
/// A large body's stream and its placeholder wait this long for each other: QUIC's idle timeout, after
/// which the connection would be gone anyway.
const RENDEZVOUS: Duration = Duration::from_secs(5);
/// The length and the fixed part of a frame: enough to see whose answer it is.
const ANSWER_HEAD: usize = 20;
/// Room for casts is given back when this much of the window has come free.
const GRANT_AT: u32 = WINDOW / 4;

/// A name that the peer has bound here.
pub(crate) struct Target {
    link: std::sync::Weak<Link>,
    number: u32,
    inbox: Arc<dyn Inbox>,
    permitted: MethodSet,
    /// Room for casts that has come free and is not yet given back.
    freed: AtomicU32,
    lane: Mutex<Lane>,
}

/// What waits for one target, in the order it was sent.
#[derive(Default)]
struct Lane {
    slots: VecDeque<Slot>,
    /// A task waits for room in the mailbox.
    waiting_for_room: bool,
    closed: bool,
}

enum Slot {
    Ready(Box<Post>),
    /// A large body that is still coming.
    Coming(u64),
}

impl Target {
    pub(crate) fn new(link: &Arc<Link>, number: u32, inbox: Arc<dyn Inbox>, permitted: MethodSet) -> Self {
        Self { link: Arc::downgrade(link), number, inbox, permitted, freed: AtomicU32::new(0), lane: Mutex::default() }
    }

    pub(crate) fn inbox(&self) -> &Arc<dyn Inbox> {
        &self.inbox
    }

    /// Takes a message, in order.
    fn deliver(self: &Arc<Self>, post: Box<Post>) {
        let mut lane = self.lane.lock();
        if lane.slots.is_empty() && !lane.waiting_for_room {
            // Nothing is in front of it: what is big is moved once less, and this is nearly always so.
            self.put(&mut lane, post);
        } else {
            lane.slots.push_back(Slot::Ready(post));
            self.flush(&mut lane);
        }
    }

    /// Delivers what can be from the front of the lane.
    ///
    /// A call that finds the mailbox full is refused at once; a cast has been let onto the link and waits.
    fn flush(self: &Arc<Self>, lane: &mut Lane) {
        while !lane.waiting_for_room {
            let post = match lane.slots.pop_front() {
                Some(Slot::Ready(post)) => post,
                Some(coming @ Slot::Coming(_)) => {
                    lane.slots.push_front(coming);
                    return;
                }
                None => return,
            };
            self.put(lane, post);
        }
    }

    /// Puts a message into the mailbox, or back to the front of the lane.
    fn put(self: &Arc<Self>, lane: &mut Lane, post: Box<Post>) {
        let Err(returned) = self.inbox.post(post) else { return };
        let Returned { post, why } = *returned;
        let is_cast = matches!(post.work, Work::Encoded { answer: None, .. });
        if lane.closed || !is_cast || !matches!(why, NoEffect::Overloaded(_)) {
            post.refuse(why);
            return;
        }
        lane.slots.push_front(Slot::Ready(post));
        lane.waiting_for_room = true;
        let target = self.clone();
        // Ends when the mailbox has room or closes for good.
        tokio::spawn(async move {
            target.inbox.room().await;
            let mut lane = target.lane.lock();
            lane.waiting_for_room = false;
            target.flush(&mut lane);
        });
    }

    /// Keeps a large body's place.
    fn expect(&self, id: u64) {
        self.lane.lock().slots.push_back(Slot::Coming(id));
    }

    /// A large body has come whole, or will not.
    fn arrived(self: &Arc<Self>, id: u64, post: Option<Box<Post>>) {
        let mut lane = self.lane.lock();
        let Some(at) = lane.slots.iter().position(|slot| matches!(slot, Slot::Coming(known) if *known == id)) else {
            // The link has closed; the message goes with it.
            return;
        };
        match post {
            Some(post) => lane.slots[at] = Slot::Ready(post),
            None => drop(lane.slots.remove(at)),
        }
        self.flush(&mut lane);
    }

    /// Drops what waits: the link is closed, and its messages were never promised a reader.
    pub(crate) fn close(&self) {
        let slots = {
            let mut lane = self.lane.lock();
            lane.closed = true;
            std::mem::take(&mut lane.slots)
        };
        for slot in slots {
            if let Slot::Ready(post) = slot {
                post.refuse(NoEffect::Stopping);
            }
        }
    }
}

impl Pool for Target {
    /// A cast of `size` bytes is done: gives the credit back, and room to the sender.
    fn release(&self, size: u32) {
        let Some(link) = self.link.upgrade() else { return };
        link.release(size);
        self.give_back(&link, size);
    }
}

impl Target {
    fn give_back(&self, link: &Link, size: u32) {
        let units = cost(size as usize);
        let freed = self.freed.fetch_add(units, Ordering::Relaxed) + units;
        if freed >= GRANT_AT && !link.is_closed() {
            let units = self.freed.swap(0, Ordering::Relaxed);
            if units > 0 {
                let _ = link.with_session(|session| session.grant(self.number, units));
            }
        }
    }
}

/// Brings the streams of large bodies together with their placeholders.
#[derive(Default)]
pub(crate) struct Lanes {
    meetings: Mutex<HashMap<u64, Meeting>>,
}

enum Meeting {
    /// The placeholder came first, and is given up at that time.
    Placeholder(Box<Expected>, Instant),
    /// The stream came first.
    Stream(oneshot::Sender<Expected>),
}

/// A large message whose body is still coming.
struct Expected {
    target: Arc<Target>,
    post: Box<Post>,
    length: usize,
    hold: Arc<LargeHold>,
    room: Queued,
}

/// A place in the queue for room.
type Queued = Pin<Box<dyn Future<Output = Result<OwnedSemaphorePermit, AcquireError>> + Send>>;

/// Room for large bodies, given in the order of their placeholders.
///
/// In that order and no other: of two bodies for one target the first is delivered first, so the second must
/// not hold the room that the first waits for.
pub(crate) struct Bodies {
    room: Arc<Semaphore>,
    all: usize,
}

impl Bodies {
    pub(crate) fn new(all: usize) -> Self {
        Self { room: Arc::new(Semaphore::new(all)), all }
    }

    /// Joins the queue; one larger than the whole waits for the whole.
    fn queue(&self, length: usize) -> Queued {
        let wanted = length.min(self.all) as u32;
        let mut queued: Queued = Box::pin(tokio::task::unconstrained(self.room.clone().acquire_many_owned(wanted)));
        // Polled once to be in the queue, which goes by the first poll; whoever awaits it later leaves its own waker.
        match queued.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(room) => Box::pin(std::future::ready(room)),
            Poll::Pending => queued,
        }
    }

    pub(crate) fn close(&self) {
        self.room.close();
    }
}

/// What a large message holds: its place among the link's messages, room for its body, and what it took of its
/// sender's window if it is a cast.
struct LargeHold {
    link: Arc<Link>,
    cast_to: Option<Arc<Target>>,
    room: Mutex<Option<OwnedSemaphorePermit>>,
}

impl Pool for LargeHold {
    fn release(&self, size: u32) {
        self.link.release(0);
        drop(self.room.lock().take());
        if let Some(target) = &self.cast_to {
            target.give_back(&self.link, size);
        }
    }
}

impl Lanes {
    pub(crate) fn close(&self) {
        self.meetings.lock().clear();
    }
}

/// Reads the peer's requests until their stream ends or breaks.
pub(crate) async fn read_requests(link: Arc<Link>, mut stream: RecvStream) -> Close {
    let mut decoder = Decoder::new(MAX_SMALL_FRAME);
    let mut targets: Vec<Arc<Target>> = Vec::new();
    loop {
        let chunk = match stream.read_chunk(CHUNK, true).await {
            Ok(Some(chunk)) => chunk,
            Ok(None) | Err(_) => return Close::Done,
        };
        decoder.push(chunk.bytes);
        let now = Instant::now();
        loop {
            let taken = match decoder.next_frame() {
                Ok(None) => break,
                Ok(Some(frame)) => request(&link, &mut targets, frame, now),
                Err(error) => Err(not_a_frame(&link, &error)),
            };
            let mut request = match taken {
                Ok(Some(request)) => request,
                Ok(None) => continue,
                Err(close) => return close,
            };
            let size = request.size();
            // A large body takes its own room, when its turn comes; nobody else waits for that.
            let size = if request.large.is_some() { 0 } else { size };
            if !link.try_credit(size) {
                match link.credit(size, request.is_cast).await {
                    Room::Taken => {}
                    Room::Full => {
                        request.refuse(&link);
                        continue;
                    }
                    Room::Closed => return Close::Done,
                }
            }
            request.hold(&link);
            if let Err(close) = request.go(&link) {
                tracing::warn!(peer = %link.caller, %close, "one body was announced twice");
                return close;
            }
        }
    }
}

/// Reads the answers to our requests until their stream ends or breaks. Never waits for anything but them.
pub(crate) async fn read_answers(link: Arc<Link>, mut stream: RecvStream) -> Close {
    let mut decoder = Decoder::new(MAX_SMALL_FRAME);
    loop {
        let chunk = match stream.read_chunk(CHUNK, true).await {
            Ok(Some(chunk)) => chunk,
            Ok(None) | Err(_) => return Close::Done,
        };
        decoder.push(chunk.bytes);
        loop {
            match decoder.next_frame() {
                Ok(None) => break,
                Ok(Some(frame)) => match frame.header.kind {
                    Kind::Call | Kind::Cast => return Close::Protocol,
                    _ if frame.header.large => return Close::Protocol,
                    kind @ (Kind::Reply | Kind::Failed | Kind::Refused | Kind::Lost) => {
                        link.answered(frame.header.correlation, kind, frame.header.format, Bytes::copy_from_slice(frame.body));
                    }
                },
                Err(error) => return not_a_frame(&link, &error),
            }
        }
    }
}

fn not_a_frame(link: &Link, error: &FrameError) -> Close {
    tracing::warn!(peer = %link.caller, %error, "not a frame; the link is closed");
    Close::Protocol
}

/// A request taken off the stream, before it has its credit.
struct Taken {
    target: Arc<Target>,
    post: Box<Post>,
    large: Option<LargeBody>,
    is_cast: bool,
}

fn request(link: &Arc<Link>, targets: &mut Vec<Arc<Target>>, frame: Frame<'_>, now: Instant) -> Result<Option<Taken>, Close> {
    let header = frame.header;
    if !matches!(header.kind, Kind::Call | Kind::Cast) {
        return Err(Close::Protocol);
    }
    let index = (header.target as usize).wrapping_sub(1);
    if index >= targets.len() {
        targets.clone_from(&link.targets.read());
    }
    // A number that was never given out is no mistake of timing.
    let target = targets.get(index).ok_or(Close::Protocol)?.clone();
    let answer = match header.kind {
        Kind::Call => Some(Answerer::new(link.clone(), header.correlation, header.format)),
        _ => None,
    };
    let is_cast = answer.is_none();
    if !target.permitted.contains(header.method) {
        let why = NoEffect::NotAllowed(format!("{} may not call method {} here", link.caller.node().role, header.method).into());
        tracing::warn!(peer = %link.caller, actor = target.inbox.vitals().name(), method = header.method, "not allowed");
        if let Some(answer) = answer {
            answer.refuse(why);
        }
        let mut size = frame.body.len();
        if header.large {
            // The large body that follows has no reader; its stream is stopped when it comes.
            let large = LargeBody::from_bytes(frame.body).map_err(|_| Close::Protocol)?;
            link.lanes.refuse(large.id);
            size = large.length as usize;
        }
        if is_cast {
            target.release_refused(size);
        }
        return Ok(None);
    }
    let large = if header.large { Some(LargeBody::from_bytes(frame.body).map_err(|_| Close::Protocol)?) } else { None };
    let size = large.map_or(frame.body.len(), |large| large.length as usize);
    let body = if large.is_some() { Bytes::new() } else { Bytes::copy_from_slice(frame.body) };
    let post = Box::new(Post {
        method: header.method,
        work: Work::Encoded { format: header.format, body, answer },
        context: CallContext {
            trace: header.trace,
            deadline: header.remaining_ms.map(|ms| now + Duration::from_millis(ms.into())),
            hops: header.hops,
            claims: header.claims.map(Arc::from),
        },
        caller: link.caller.clone(),
        size: size as u32,
        received: now,
        hold: None,
    });
    Ok(Some(Taken { target, post, large, is_cast }))
}

impl Target {
    /// Gives back what a refused cast took of the sender's window; it never took credit.
    fn release_refused(&self, size: usize) {
        let Some(link) = self.link.upgrade() else { return };
        let _ = link.with_session(|session| session.grant(self.number, cost(size)));
    }
}

impl Lanes {
    /// A placeholder that is not followed up.
    fn refuse(&self, id: u64) {
        // A stream that is waiting learns by the drop; one that comes later waits in vain and is stopped.
        self.meetings.lock().remove(&id);
    }
}

impl Taken {
    fn size(&self) -> usize {
        self.post.size as usize
    }

    fn hold(&mut self, link: &Arc<Link>) {
        if self.large.is_some() {
            return;
        }
        let pool: Arc<dyn Pool> = if self.is_cast { self.target.clone() } else { link.clone() };
        self.post.hold = Some(Hold::new(pool, self.post.size));
    }

    /// Ends a call for which there is no room.
    fn refuse(self, link: &Arc<Link>) {
        if let Some(large) = self.large {
            link.lanes.refuse(large.id);
        }
        self.post.refuse(NoEffect::Overloaded("too many messages of this link are in hand".into()));
    }

    fn go(self, link: &Arc<Link>) -> Result<(), Close> {
        let Some(large) = self.large else {
            self.target.deliver(self.post);
            return Ok(());
        };
        self.target.expect(large.id);
        let length = large.length as usize;
        let hold = Arc::new(LargeHold { link: link.clone(), cast_to: self.is_cast.then(|| self.target.clone()), room: Mutex::default() });
        let mut post = self.post;
        post.hold = Some(Hold::new(hold.clone(), large.length));
        let expected = Expected { target: self.target, post, length, hold, room: link.bodies.queue(length) };
        let met = {
            let mut meetings = link.lanes.meetings.lock();
            let met = meetings.remove(&large.id);
            if met.is_none() {
                meetings.insert(large.id, Meeting::Placeholder(Box::new(expected), Instant::now() + RENDEZVOUS));
                None
            } else {
                met.map(|met| (met, expected))
            }
        };
        match met {
            None if link.is_closed() => link.lanes.close(),
            None => {}
            Some((Meeting::Stream(stream), expected)) => {
                if let Err(expected) = stream.send(expected) {
                    expected.target.arrived(large.id, None);
                }
            }
            Some((Meeting::Placeholder(..), _)) => return Err(Close::Protocol),
        }
        Ok(())
    }
}

/// Gives up large messages whose bodies do not come: they must not hold their targets' lanes for ever.
pub(crate) async fn give_up_late(link: Arc<Link>) -> Close {
    // One look a second instead of a timer for each large message.
    let mut look = tokio::time::interval(Duration::from_secs(1));
    loop {
        look.tick().await;
        let now = Instant::now();
        let late: Vec<_> = {
            let mut meetings = link.lanes.meetings.lock();
            let is_late = |_: &u64, meeting: &mut Meeting| matches!(meeting, Meeting::Placeholder(_, until) if *until <= now);
            meetings.extract_if(is_late).collect()
        };
        for (id, meeting) in late {
            if let Meeting::Placeholder(expected, _) = meeting {
                tracing::warn!(peer = %link.caller, "a large body never came");
                expected.target.arrived(id, None);
                expected.post.refuse(NoEffect::Malformed("its body never came".into()));
            }
        }
    }
}

/// Reads the body of a large message and delivers it.
pub(crate) async fn read_body(link: Arc<Link>, mut stream: RecvStream) {
    let id = stream.id().index();
    let met = {
        let mut meetings = link.lanes.meetings.lock();
        match meetings.remove(&id) {
            Some(Meeting::Placeholder(expected, _)) => Ok(*expected),
            Some(Meeting::Stream(_)) => return,
            None => {
                let (sender, placeholder) = oneshot::channel();
                meetings.insert(id, Meeting::Stream(sender));
                Err(placeholder)
            }
        }
    };
    let expected = match met {
        Ok(expected) => expected,
        Err(placeholder) => match tokio::time::timeout(RENDEZVOUS, placeholder).await {
            Ok(Ok(expected)) => expected,
            Ok(Err(_)) | Err(_) => {
                link.lanes.meetings.lock().remove(&id);
                let _ = stream.stop(0u32.into());
                return;
            }
        },
    };
    let Expected { target, mut post, length, hold, room } = expected;
    // An error is the link's end, and the message goes with it.
    let Ok(room) = room.await else { return };
    *hold.room.lock() = Some(room);
    drop(hold);
    // One byte more than announced is too long, and not whole.
    match read_rest(&mut stream, length).await {
        Some(body) if body.len() == length => {
            if let Work::Encoded { body: place, .. } = &mut post.work {
                *place = body.into();
            }
            target.arrived(id, Some(post));
        }
        _ => {
            // Given up by its sender: nothing was done.
            target.arrived(id, None);
            post.refuse(NoEffect::Malformed("the body ended before its announced length".into()));
        }
    }
}

/// Reads a large answer.
pub(crate) async fn read_answer(link: Arc<Link>, mut stream: RecvStream) -> Result<(), Close> {
    let mut head = [0; ANSWER_HEAD];
    if stream.read_exact(&mut head).await.is_err() {
        // Given up by its sender, or the connection is lost.
        return Ok(());
    }
    let length = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
    let correlation = u64::from_le_bytes([head[12], head[13], head[14], head[15], head[16], head[17], head[18], head[19]]);
    if !(ANSWER_HEAD - 4..=MAX_LARGE_FRAME).contains(&length) {
        return Err(Close::Protocol);
    }
    // What nobody waits for, or no longer, is not read: a peer could fill memory with it.
    if !link.waits_for(correlation) {
        let _ = stream.stop(0u32.into());
        return Ok(());
    }
    let Ok(_room) = link.answers_in.acquire_many(length as u32).await else { return Ok(()) };
    let mut bytes = Vec::with_capacity(4 + length);
    bytes.extend_from_slice(&head);
    loop {
        match stream.read_chunk(CHUNK, true).await {
            Ok(Some(chunk)) if bytes.len() + chunk.bytes.len() <= 4 + length => bytes.extend_from_slice(&chunk.bytes),
            Ok(Some(_)) => return Err(Close::Protocol),
            Ok(None) => break,
            Err(_) => return Ok(()),
        }
    }
    let bytes = Bytes::from(bytes);
    let (header, body) = match horos_wire::frame::read(&bytes, MAX_LARGE_FRAME) {
        Ok(Some((frame, used))) if used == bytes.len() => (frame.header, bytes.slice_ref(frame.body)),
        Ok(_) | Err(_) => return Err(Close::Protocol),
    };
    match header.kind {
        Kind::Call | Kind::Cast => Err(Close::Protocol),
        kind @ (Kind::Reply | Kind::Failed | Kind::Refused | Kind::Lost) => {
            link.answered(header.correlation, kind, header.format, body);
            Ok(())
        }
    }
}

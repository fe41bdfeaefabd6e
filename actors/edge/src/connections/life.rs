//! How one connection fares.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use tokio::task::AbortHandle;

use super::Prefix;
use crate::{Reason, Version};

/// What a connection is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Command {
    /// Nothing.
    Stay,
    /// To finish what is in hand, take no more, and close.
    Leave,
    /// To close at once.
    Cut,
}

/// No request, in [`Life::begun`].
const NONE: u32 = u32::MAX;
/// An answer's part that nobody has seen wait: most are gone before anybody looks, and need no look at the clock.
const FRESH: u64 = u64::MAX;

/// What is known of a connection. Times are milliseconds since the table's epoch, 0 for never or not now: they fit an
/// atomic, an `Instant` does not. All are written by the connection's tasks and read by whoever looks; each stands for
/// itself, so nothing orders them.
#[derive(Debug)]
pub(crate) struct Life {
    id: u64,
    peer: SocketAddr,
    prefix: Option<Prefix>,
    epoch: Instant,
    opened: u64,
    /// A [`Version`], 0 at the handshake.
    version: AtomicU8,
    command: AtomicU8,
    leave_by: AtomicU64,
    /// When it was told to leave.
    told: AtomicU64,
    waker: AtomicWaker,
    /// Requests in hand: from their head to the end of their answer.
    active: AtomicU32,
    /// The last moment at which there were any.
    quiet: AtomicU64,
    /// A head has begun to come, and has not ended.
    head: AtomicU64,
    /// The socket has taken nothing of what there is to send.
    blocked: AtomicU64,
    /// What the stream's own eye found wrong; an index into [`Reason::ALL`], from 1.
    fault: AtomicU8,
    /// What it would be, should the protocol find a fault that it does not explain.
    suspect: AtomicU8,
    /// The request that HTTP/2 has just begun, for the task that is about to be spawned for it.
    begun: AtomicU32,
    answers: Mutex<Answers>,
}

/// The answers of HTTP/2 that are in the making.
#[derive(Debug, Default)]
struct Answers {
    places: Vec<Answer>,
    /// All places before this one are taken.
    free: usize,
}

/// An answer of HTTP/2 in the making.
#[derive(Debug, Default)]
struct Answer {
    is_taken: bool,
    /// A part of it has waited for room in the stream's window since then, or since before whoever looks next ([`FRESH`]).
    waits: u64,
    task: Option<AbortHandle>,
}

impl Life {
    pub(crate) fn new(id: u64, peer: SocketAddr, prefix: Option<Prefix>, epoch: Instant) -> Self {
        let opened = millis(epoch, Instant::now());
        Self {
            id,
            peer,
            prefix,
            epoch,
            opened,
            version: AtomicU8::new(0),
            command: AtomicU8::new(0),
            leave_by: AtomicU64::new(0),
            told: AtomicU64::new(0),
            waker: AtomicWaker::new(),
            active: AtomicU32::new(0),
            quiet: AtomicU64::new(opened),
            head: AtomicU64::new(0),
            blocked: AtomicU64::new(0),
            fault: AtomicU8::new(0),
            suspect: AtomicU8::new(0),
            begun: AtomicU32::new(NONE),
            answers: Mutex::default(),
        }
    }

    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    pub(crate) fn peer(&self) -> SocketAddr {
        self.peer
    }

    pub(crate) fn prefix(&self) -> Option<Prefix> {
        self.prefix
    }

    pub(crate) fn now(&self) -> u64 {
        millis(self.epoch, Instant::now())
    }

    /// How long ago `then` was.
    pub(crate) fn since(&self, then: u64, now: Instant) -> Duration {
        Duration::from_millis(millis(self.epoch, now).saturating_sub(then))
    }

    pub(crate) fn age(&self, now: Instant) -> Duration {
        self.since(self.opened, now)
    }

    /// What it speaks; `None` at the handshake.
    pub(crate) fn version(&self) -> Option<Version> {
        match self.version.load(Relaxed) {
            1 => Some(Version::Http1),
            2 => Some(Version::Http2),
            _ => None,
        }
    }

    pub(crate) fn speaks(&self, version: Version) {
        let code = match version {
            Version::Http1 => 1,
            Version::Http2 => 2,
            Version::Http3 => 0,
        };
        self.quiet.store(self.now(), Relaxed);
        self.version.store(code, Relaxed);
    }

    pub(crate) fn command(&self) -> Command {
        match self.command.load(Relaxed) {
            0 => Command::Stay,
            1 => Command::Leave,
            _ => Command::Cut,
        }
    }

    /// Tells it to leave by then; false if it was told before.
    pub(crate) fn leave(&self, by: Instant) -> bool {
        self.leave_by.store(millis(self.epoch, by), Relaxed);
        let is_first = self.command.compare_exchange(0, 1, Relaxed, Relaxed).is_ok();
        if is_first {
            self.told.store(self.now(), Relaxed);
        }
        self.waker.wake();
        is_first
    }

    /// Since when it has known that it is to leave.
    pub(crate) fn told_since(&self) -> Option<u64> {
        some(&self.told)
    }

    pub(crate) fn has_overstayed(&self, now: Instant) -> bool {
        millis(self.epoch, now) > self.leave_by.load(Relaxed)
    }

    pub(crate) fn cut(&self) {
        self.command.store(2, Relaxed);
        self.waker.wake();
        for answer in &mut self.answers.lock().places {
            if let Some(task) = answer.task.take() {
                task.abort();
            }
        }
    }

    /// What it is told; the task is woken when that changes.
    pub(crate) fn poll_command(&self, cx: &Context<'_>) -> Command {
        self.waker.register(cx.waker());
        self.command()
    }

    /// `None` once it is cut off.
    pub(crate) async fn unless_cut<F: Future + Unpin>(&self, mut future: F) -> Option<F::Output> {
        std::future::poll_fn(|cx| match self.poll_command(cx) {
            Command::Cut => Poll::Ready(None),
            Command::Stay | Command::Leave => std::pin::Pin::new(&mut future).poll(cx).map(Some),
        })
        .await
    }

    /// Since when there has been no request; `None` while there is one, and at the handshake.
    pub(crate) fn idle_since(&self) -> Option<u64> {
        (self.active.load(Relaxed) == 0 && self.version.load(Relaxed) != 0).then(|| self.quiet.load(Relaxed))
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.active.load(Relaxed) == 0
    }

    pub(crate) fn head_since(&self) -> Option<u64> {
        some(&self.head)
    }

    /// A head has begun, unless one had.
    pub(crate) fn head_begins(&self) {
        if self.head.load(Relaxed) == 0 {
            self.head.store(self.now(), Relaxed);
        }
    }

    pub(crate) fn head_ends(&self) {
        if self.head.load(Relaxed) != 0 {
            self.head.store(0, Relaxed);
        }
    }

    pub(crate) fn blocked_since(&self) -> Option<u64> {
        some(&self.blocked)
    }

    /// The socket takes nothing.
    pub(crate) fn blocks(&self) {
        if self.blocked.load(Relaxed) == 0 {
            self.blocked.store(self.now(), Relaxed);
        }
    }

    /// The socket has taken something.
    pub(crate) fn flows(&self) {
        if self.blocked.load(Relaxed) != 0 {
            self.blocked.store(0, Relaxed);
        }
    }

    pub(crate) fn fault(&self) -> Option<Reason> {
        reason(&self.fault)
    }

    pub(crate) fn at_fault(&self, reason: Reason) {
        self.fault.store(code(reason), Relaxed);
    }

    pub(crate) fn suspect(&self) -> Option<Reason> {
        reason(&self.suspect)
    }

    pub(crate) fn suspected(&self, reason: Reason) {
        self.suspect.store(code(reason), Relaxed);
    }

    /// The protocol is done: nothing more is expected of the client.
    pub(crate) fn is_done(&self) {
        self.head_ends();
        self.flows();
    }

    /// A request is in hand until the [`Hold`] is dropped.
    pub(crate) fn begin(self: &Arc<Self>) -> Hold {
        self.active.fetch_add(1, Relaxed);
        if self.version.load(Relaxed) != 2 {
            // HTTP/1.1 has one at a time; whether it takes its answer is seen at the socket.
            self.head_ends();
            return Hold { life: self.clone(), answer: NONE, waits: false };
        }
        let mut answers = self.answers.lock();
        let Answers { places, free: from } = &mut *answers;
        let free = places.iter().skip(*from).position(|answer| !answer.is_taken).map_or(places.len(), |further| *from + further);
        if free == places.len() {
            places.push(Answer::default());
        }
        places[free].is_taken = true;
        *from = free + 1;
        let answer = u32::try_from(free).expect("as many as there are streams");
        self.begun.store(answer, Relaxed);
        Hold { life: self.clone(), answer, waits: false }
    }

    /// The request that was begun last, for [`Life::adopt`]. HTTP/2 calls the service and says what is to run for it without
    /// a break, from the connection's one task.
    pub(crate) fn begun(&self) -> u32 {
        self.begun.swap(NONE, Relaxed)
    }

    /// The task for a request that was begun and is still in hand.
    pub(crate) fn adopt(&self, begun: u32, task: AbortHandle) {
        if let Some(answer) = self.answers.lock().places.get_mut(begun as usize)
            && answer.is_taken
        {
            answer.task = Some(task);
        }
    }

    /// Ends the answers of which the client has taken no part for longer than `limit`; says how many.
    pub(crate) fn end_stalled(&self, now: Instant, limit: Duration) -> usize {
        if self.active.load(Relaxed) == 0 {
            return 0;
        }
        let mut ended = 0;
        for answer in &mut self.answers.lock().places {
            if answer.waits == FRESH {
                answer.waits = millis(self.epoch, now);
            } else if answer.waits != 0
                && self.since(answer.waits, now) > limit
                && let Some(task) = answer.task.take()
            {
                task.abort();
                ended += 1;
            }
        }
        ended
    }
}

/// A request in hand.
#[derive(Debug)]
pub(crate) struct Hold {
    life: Arc<Life>,
    answer: u32,
    waits: bool,
}

impl Hold {
    /// A part of the answer was handed on, and nobody asks for the next until it is taken.
    pub(crate) fn waits(&mut self) {
        self.set(FRESH);
        self.waits = true;
    }

    /// All that was handed on is taken; the service has no more yet.
    pub(crate) fn is_taken(&mut self) {
        if std::mem::take(&mut self.waits) {
            self.set(0);
        }
    }

    fn set(&self, at: u64) {
        if self.answer != NONE
            && let Some(answer) = self.life.answers.lock().places.get_mut(self.answer as usize)
        {
            answer.waits = at;
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if self.answer != NONE {
            let mut answers = self.life.answers.lock();
            let Answers { places, free } = &mut *answers;
            if let Some(answer) = places.get_mut(self.answer as usize) {
                *answer = Answer::default();
            }
            while places.last().is_some_and(|answer| !answer.is_taken) {
                places.pop();
            }
            *free = (*free).min(self.answer as usize).min(places.len());
            // An idle connection keeps no room for what it once had in hand.
            if places.is_empty() && places.capacity() > 4 {
                *places = Vec::new();
            }
        }
        // Whoever is the last says when it went quiet, and says it before it does.
        let _ = self.life.active.fetch_update(Relaxed, Relaxed, |active| {
            if active == 1 {
                self.life.quiet.store(self.life.now(), Relaxed);
            }
            active.checked_sub(1)
        });
    }
}

fn some(at: &AtomicU64) -> Option<u64> {
    Some(at.load(Relaxed)).filter(|at| *at != 0)
}

/// 0 is for none.
fn code(reason: Reason) -> u8 {
    Reason::ALL.iter().position(|known| *known == reason).map_or(0, |index| index as u8 + 1)
}

fn reason(code: &AtomicU8) -> Option<Reason> {
    usize::from(code.load(Relaxed)).checked_sub(1).and_then(|index| Reason::ALL.get(index).copied())
}

/// Never 0.
fn millis(epoch: Instant, at: Instant) -> u64 {
    u64::try_from(at.saturating_duration_since(epoch).as_millis()).unwrap_or(u64::MAX).max(1)
}

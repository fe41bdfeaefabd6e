//! The bounded mailbox of a named actor.
//!
//! ractor's own mailboxes have no bound, so a service's messages wait here, and ractor carries one
//! wake-up for as many of them as there are. A full mailbox refuses a call at once; a cast waits for room with its
//! sender, until its deadline, whether it came over a link or not. The mailbox belongs to the *name*: it outlives the actor's
//! restarts, so a reference stays good and what is sent during a restart is served after it. What waits
//! when an actor **dies** is answered with [`NoEffect::ActorDied`], because a message that kills its
//! reader must not take the rest of the queue with it into the next life.

use std::{any::Any, collections::VecDeque, fmt, sync::Arc, time::Instant};

use bytes::Bytes;
use horos_wire::{CallContext, Format, NoEffect};
use parking_lot::Mutex;
use ractor::ActorRef;
use tokio::sync::Notify;

use crate::{context::Caller, exchange::Answerer, vitals::Vitals};

/// Messages that may wait for an actor by default: at 1 ms each, a second's work.
pub const DEFAULT_CAPACITY: usize = 1024;

/// A message on its way into a mailbox. Always boxed: it passes through many hands, and a mailbox that was full once
/// keeps room for pointers only.
#[derive(Debug)]
pub struct Post {
    /// Which request of the protocol.
    pub method: u16,
    /// The request and where its answer goes.
    pub work: Work,
    /// Trace, deadline, hops and claims.
    pub context: CallContext,
    /// Who sent it.
    pub caller: Caller,
    /// Bytes on the wire; 0 when it was never serialised.
    pub size: u32,
    /// When it reached this node.
    pub received: Instant,
    /// Freed when the message is done, however it ends.
    pub hold: Option<Hold>,
}

/// A message that was not taken; whoever sent it must end it.
#[derive(Debug)]
pub struct Returned {
    /// The message.
    pub post: Box<Post>,
    /// Why.
    pub why: NoEffect,
}

impl Returned {
    pub(crate) fn boxed(post: Box<Post>, why: NoEffect) -> Box<Self> {
        Box::new(Self { post, why })
    }
}

/// A request, typed or as bytes.
pub enum Work {
    /// From this node: a `LocalCall<R>`; the value moves, nothing is serialised.
    LocalCall(Box<dyn Any + Send>),
    /// The same for a cast: a `LocalCast<R>`.
    LocalCast(Box<dyn Any + Send>),
    /// From a link, or in JSON: the target decodes.
    Encoded {
        /// How the body is written.
        format: Format,
        /// The request.
        body: Bytes,
        /// Where the answer goes; none for a cast.
        answer: Option<Answerer>,
    },
}

impl Work {
    /// Whether nobody waits for an answer.
    pub(crate) fn is_cast(&self) -> bool {
        matches!(self, Self::LocalCast(_) | Self::Encoded { answer: None, .. })
    }
}

impl fmt::Debug for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LocalCall(_) => f.write_str("LocalCall"),
            Self::LocalCast(_) => f.write_str("LocalCast"),
            Self::Encoded { format, body, .. } => write!(f, "Encoded({format:?}, {} bytes)", body.len()),
        }
    }
}

/// What a message holds of its link's credit; given back on drop.
pub struct Hold {
    pool: Arc<dyn Pool>,
    size: u32,
}

/// Where a [`Hold`] goes back to.
pub trait Pool: Send + Sync {
    /// A message of `size` bytes is done.
    fn release(&self, size: u32);
}

impl Hold {
    /// What a message of `size` bytes holds of `pool`.
    pub fn new(pool: Arc<dyn Pool>, size: u32) -> Self {
        Self { pool, size }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.pool.release(self.size);
    }
}

impl fmt::Debug for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hold({} bytes)", self.size)
    }
}

/// The one message that ractor carries: the mailbox is no longer empty.
#[derive(Debug)]
pub(crate) struct Wake;

#[derive(Debug)]
enum Reader {
    /// Between lives; what is sent waits.
    Away,
    /// Waiting for a [`Wake`].
    Idle(ActorRef<Wake>),
    /// At work, or about to be.
    Awake(ActorRef<Wake>),
}

#[derive(Debug)]
struct Queue {
    posts: VecDeque<Box<Post>>,
    reader: Reader,
    life: u64,
}

/// See the [module](self).
#[derive(Debug)]
pub struct Mailbox {
    queue: Mutex<Queue>,
    /// Tells those who found it full that it is no longer.
    room: Notify,
    capacity: usize,
}

impl Mailbox {
    pub(crate) fn new(capacity: usize, vitals: &Vitals) -> Arc<Self> {
        let queue = Queue { posts: VecDeque::new(), reader: Reader::Away, life: 0 };
        let mailbox = Arc::new(Self { queue: Mutex::new(queue), room: Notify::new(), capacity });
        let watched = Arc::downgrade(&mailbox);
        vitals.watch_mailbox(capacity as u32, move || watched.upgrade().map_or(0, |mailbox| mailbox.len() as u32));
        mailbox
    }

    pub(crate) fn len(&self) -> usize {
        self.queue.lock().posts.len()
    }

    /// Takes a message if there is room.
    pub(crate) fn push(&self, post: Box<Post>) -> Result<(), Box<Returned>> {
        let mut queue = self.queue.lock();
        if queue.posts.len() >= self.capacity {
            return Err(Returned::boxed(post, NoEffect::Overloaded("the actor's mailbox is full".into())));
        }
        queue.posts.push_back(post);
        if let Reader::Idle(_) = queue.reader {
            let Reader::Idle(actor) = std::mem::replace(&mut queue.reader, Reader::Away) else { unreachable!("matched above") };
            queue.reader = Reader::Awake(actor.clone());
            drop(queue);
            // It fails only when the actor has just died: the end of its `Attached`, or its successor, will find the message.
            let _ = actor.cast(Wake);
        }
        Ok(())
    }

    /// A new life begins to read.
    pub(crate) fn attach(self: &Arc<Self>, actor: ActorRef<Wake>) -> Attached {
        let mut queue = self.queue.lock();
        queue.life += 1;
        let life = queue.life;
        queue.reader = Reader::Awake(actor.clone());
        drop(queue);
        let _ = actor.cast(Wake);
        Attached { mailbox: self.clone(), life, in_good_order: false }
    }

    /// There is no life and none will follow: what waits is refused.
    pub(crate) fn close(&self) {
        let posts = std::mem::take(&mut self.queue.lock().posts);
        self.room.notify_waiters();
        refuse_all(posts, &NoEffect::ActorDied);
    }

    /// The next message.
    pub(crate) fn pop(&self) -> Option<Box<Post>> {
        let mut queue = self.queue.lock();
        let was_full = queue.posts.len() >= self.capacity;
        let post = queue.posts.pop_front();
        drop(queue);
        if was_full {
            self.room.notify_waiters();
        }
        post
    }

    /// Resolves when there was room for a moment.
    pub(crate) async fn room(&self) {
        let room = self.room.notified();
        tokio::pin!(room);
        room.as_mut().enable();
        {
            let queue = self.queue.lock();
            if queue.posts.len() < self.capacity {
                return;
            }
        }
        room.await;
    }

    /// The reader has done its share for now: wakes it again if there is more.
    pub(crate) fn rest(&self) {
        let mut queue = self.queue.lock();
        if let Reader::Awake(actor) = &queue.reader {
            let actor = actor.clone();
            if queue.posts.is_empty() {
                queue.reader = Reader::Idle(actor);
            } else {
                drop(queue);
                let _ = actor.cast(Wake);
            }
        }
    }
}

fn refuse_all(posts: VecDeque<Box<Post>>, why: &NoEffect) {
    for post in posts {
        post.refuse(why.clone());
    }
}

impl Post {
    /// Ends the message without effect.
    pub fn refuse(self, why: NoEffect) {
        match self.work {
            Work::Encoded { answer: Some(answer), .. } => answer.refuse(why),
            Work::Encoded { answer: None, .. } | Work::LocalCast(_) => {}
            // Its own drop tells the caller that the actor died before it took the message: like `why`, no effect.
            Work::LocalCall(work) => drop(work),
        }
    }
}

/// One life's claim on the mailbox; dropped with the actor's state, however it ends.
#[derive(Debug)]
pub(crate) struct Attached {
    mailbox: Arc<Mailbox>,
    life: u64,
    in_good_order: bool,
}

impl Attached {
    /// The life ends in good order: what comes from now on is its successor's, or refused by [`Mailbox::close`].
    pub(crate) fn let_go(&mut self) {
        self.in_good_order = true;
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        let mut queue = self.mailbox.queue.lock();
        // A successor may have attached already; the queue is then its own.
        if queue.life != self.life {
            return;
        }
        queue.reader = Reader::Away;
        if self.in_good_order {
            return;
        }
        let posts = std::mem::take(&mut queue.posts);
        drop(queue);
        self.mailbox.room.notify_waiters();
        refuse_all(posts, &NoEffect::ActorDied);
    }
}

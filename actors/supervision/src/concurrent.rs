//! An actor that answers many at once.
//!
//! Not a [`service`](crate::service()), which handles one message after the other: here somebody's call that takes long keeps nobody
//! waiting. What comes is begun at once, as far as its [`Places`] go; as many again wait, and beyond that calls are refused without
//! effect, so that a node whose clients overdo it leaves room for the others. It is called over a link or in JSON, by [`answer`]; typed
//! messages of its own node are refused, for whatever calls it there has the value itself.

use std::{
    any::TypeId,
    collections::HashMap,
    marker::PhantomData,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::BoxFuture;
use horos_wire::{ActorName, CallContext, CallError, NoEffect, NodeId, Protocol, Request, Unknown, codec, protocol::Method};
use parking_lot::Mutex;
use tokio::{
    sync::{Mutex as Turn, mpsc},
    task::JoinSet,
};

use crate::{
    ChildSpec, Exchange, Vitals,
    exchange::{Inbox, RegisterError},
    mailbox::{Post, Returned, Work},
    worker,
};

/// Between two signs of life while nobody calls.
const BEAT: Duration = Duration::from_secs(1);

/// How many calls there is room for.
#[derive(Clone, Copy, Debug)]
pub struct Places {
    /// Calls under way; as many wait.
    pub at_once: usize,
    /// Calls of one node or person that are under way or wait.
    pub per_node: usize,
}

/// What answers, call by call.
pub trait Concurrent: Send + Sync + 'static {
    /// What it is asked.
    type Protocol: Protocol;

    /// Answers one message, as a rule by [`answer`].
    ///
    /// # Cancel safety
    /// Dropped midway, when the actor stops or dies: the message's answerer says then how far it was.
    fn answer(self: Arc<Self>, post: Box<Post>) -> BoxFuture<'static, ()>;
}

/// The child that has `actor` answer, and its name on the node.
///
/// # Errors
/// [`RegisterError`] when the name is taken.
///
/// # Panics
/// When `name` is no [`ActorName`].
pub fn concurrent<C: Concurrent>(exchange: &Exchange, name: &str, places: Places, actor: C) -> Result<ChildSpec, RegisterError> {
    let (sender, receiver) = mpsc::channel::<(Box<Post>, Share)>(places.at_once);
    // The channel outlives the actor's lives, each of which has its turn with it.
    let receiver = Arc::new(Turn::new(receiver));
    let actor = Arc::new(actor);
    let child = worker(name, move |vitals| {
        let (receiver, actor) = (receiver.clone(), actor.clone());
        async move {
            let mut receiver = receiver.lock().await;
            let mut calls = JoinSet::new();
            let mut beats = tokio::time::interval(BEAT);
            loop {
                tokio::select! {
                    post = receiver.recv(), if calls.len() < places.at_once => match post {
                        Some((post, share)) => {
                            let answered = actor.clone().answer(post);
                            drop(calls.spawn(async move {
                                answered.await;
                                drop(share);
                            }));
                        }
                        None => return,
                    },
                    Some(_) = calls.join_next() => {}
                    _ = beats.tick() => {}
                }
                vitals.progressed(Instant::now());
            }
        }
    });
    child.vitals.set_protocol(&format!("{}/{}", C::Protocol::NAME, C::Protocol::VERSION));
    let name: ActorName = name.parse().expect("a name that keeps the rules");
    let shares = Arc::new(Shares { most: places.per_node, held: Mutex::default() });
    let inbox = Many::<C::Protocol> { sender, shares, vitals: child.vitals.clone(), protocol: PhantomData };
    exchange.register(name, Arc::new(inbox))?;
    Ok(child)
}

/// Reads a request, has it done, and answers with what came of it. Where nobody waits any more it is not begun, and dropped if it was.
pub async fn answer<R: Request>(post: Box<Post>, work: impl AsyncFnOnce(R, CallContext) -> Result<R::Reply, CallError<R::Error>>) {
    let Post { work: Work::Encoded { format, body, answer: Some(mut answer) }, context, .. } = *post else { return };
    if answer.is_abandoned() || context.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
        return answer.refuse(NoEffect::Expired);
    }
    let ask = match codec::decode::<R>(format, &body) {
        Ok(ask) => ask,
        Err(error) => return answer.refuse(NoEffect::Malformed(error.to_string().into())),
    };
    // The request has been read: what it takes need not be kept twice.
    drop(body);
    // Given up from here on, by a stop or a crash of the actor, it may have been done.
    answer.begin(Unknown::ActorDied);
    let done = tokio::select! {
        done = work(ask, context) => done,
        () = answer.abandoned() => return,
    };
    match done {
        Ok(reply) => answer.reply(&reply),
        Err(CallError::Failed(error)) => answer.fail(&error),
        Err(CallError::NoEffect(why)) => answer.refuse(why),
        // Dropped, it says so.
        Err(CallError::Unknown(why)) => answer.begin(why),
    }
}

/// How many each node has in here.
#[derive(Debug)]
struct Shares {
    most: usize,
    held: Mutex<HashMap<NodeId, usize>>,
}

/// A node's place, given back on drop.
#[derive(Debug)]
struct Share {
    shares: Arc<Shares>,
    node: NodeId,
}

impl Shares {
    fn take(self: &Arc<Self>, node: &NodeId) -> Option<Share> {
        let mut all = self.held.lock();
        let held = all.entry(node.clone()).or_default();
        if *held >= self.most {
            return None;
        }
        *held += 1;
        Some(Share { shares: self.clone(), node: node.clone() })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut all = self.shares.held.lock();
        if let Some(held) = all.get_mut(&self.node) {
            *held -= 1;
            if *held == 0 {
                all.remove(&self.node);
            }
        }
    }
}

/// The receiving end.
struct Many<P> {
    sender: mpsc::Sender<(Box<Post>, Share)>,
    shares: Arc<Shares>,
    vitals: Arc<Vitals>,
    protocol: PhantomData<fn() -> P>,
}

impl<P: Protocol> Inbox for Many<P> {
    fn post(&self, post: Box<Post>) -> Result<(), Box<Returned>> {
        let refuse = |post, why| {
            self.vitals.refuse();
            Err(Returned::boxed(post, why))
        };
        if !matches!(post.work, Work::Encoded { answer: Some(_), .. }) {
            let why = format!("{} is called, over a link or in JSON, and by nothing else", self.vitals.name());
            return refuse(post, NoEffect::VersionNotSpoken(why.into()));
        }
        let full = || NoEffect::Overloaded(self.vitals.name().into());
        let Some(share) = self.shares.take(post.caller.node()) else { return refuse(post, full()) };
        match self.sender.try_send((post, share)) {
            Ok(()) => Ok(()),
            Err(mpsc::error::TrySendError::Full((post, _))) => refuse(post, full()),
            Err(mpsc::error::TrySendError::Closed((post, _))) => refuse(post, NoEffect::Stopping),
        }
    }

    fn protocol(&self) -> (&'static str, u16) {
        (P::NAME, P::VERSION)
    }

    fn protocol_type(&self) -> TypeId {
        TypeId::of::<P>()
    }

    fn methods(&self) -> &'static [Method] {
        P::methods()
    }

    fn vitals(&self) -> &Arc<Vitals> {
        &self.vitals
    }

    fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    fn room(&self) -> BoxFuture<'static, ()> {
        let sender = self.sender.clone();
        Box::pin(async move {
            // Whether there is room or nobody left: whoever waited tries again.
            drop(sender.reserve().await);
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_has_its_share_of_the_places_and_gives_each_back() {
        const MOST: usize = 8;
        let shares = Arc::new(Shares { most: MOST, held: Mutex::default() });
        let id = |uri| NodeId::from_uri(uri).unwrap();
        let (bo, fo) = (id("spiffe://shop/bo/bo-1"), id("spiffe://shop/fo/fo-1"));
        let mut held: Vec<_> = (0..MOST).map(|_| shares.take(&fo).unwrap()).collect();
        assert!(shares.take(&fo).is_none() && shares.take(&bo).is_some());
        held.pop();
        assert!(shares.take(&fo).is_some());
        drop(held);
        assert!(shares.held.lock().is_empty(), "nothing is kept of who has nothing here");
    }
}

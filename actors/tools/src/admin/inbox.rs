//! An actor that answers many at once.
//!
//! Not a service, which handles one message after the other: somebody's call that takes long must not keep others waiting. What comes is
//! begun at once, up to [`AT_ONCE`] calls and [`PER_NODE`] from one node; as many again wait, and beyond that they are refused without
//! effect, so that a node whose clients overdo it leaves room for the others.

use std::{any::TypeId, collections::HashMap, marker::PhantomData, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use horos_supervision::{
    ChildSpec, Exchange, Vitals,
    exchange::{Answerer, Inbox, RegisterError},
    mailbox::{Post, Returned, Work},
    worker,
};
use horos_wire::{ActorName, NoEffect, NodeId, Protocol, protocol::Method};
use parking_lot::Mutex;
use tokio::{
    sync::{Mutex as Turn, mpsc},
    task::JoinSet,
};

/// Calls under way, which hold a result of a few megabytes at most each; as many wait.
pub(super) const AT_ONCE: usize = 256;
/// Calls of one node or person that are under way or wait: a quarter of all.
pub(super) const PER_NODE: usize = 64;
/// Between two signs of life while nobody calls.
const BEAT: Duration = Duration::from_secs(1);

/// What answers, call by call.
pub(super) trait Answers: Send + Sync + 'static {
    /// Answers one message. Dropped midway, the message's answerer says how far it was.
    fn answer(self: Arc<Self>, post: Box<Post>) -> BoxFuture<'static, ()>;
}

/// How many each node has in here.
#[derive(Debug, Default)]
struct Shares(Mutex<HashMap<NodeId, usize>>);

/// A node's place, given back on drop.
#[derive(Debug)]
struct Share {
    shares: Arc<Shares>,
    node: NodeId,
}

impl Shares {
    fn take(self: &Arc<Self>, node: &NodeId) -> Option<Share> {
        let mut shares = self.0.lock();
        let held = shares.entry(node.clone()).or_default();
        if *held >= PER_NODE {
            return None;
        }
        *held += 1;
        Some(Share { shares: self.clone(), node: node.clone() })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut shares = self.shares.0.lock();
        if let Some(held) = shares.get_mut(&self.node) {
            *held -= 1;
            if *held == 0 {
                shares.remove(&self.node);
            }
        }
    }
}

/// The child that answers `P` by `answers`, and its name on the node.
///
/// # Errors
/// [`RegisterError`] when the name is taken.
pub(super) fn child<P: Protocol>(exchange: &Exchange, name: &str, answers: Arc<dyn Answers>) -> Result<ChildSpec, RegisterError> {
    let (sender, receiver) = mpsc::channel::<(Box<Post>, Share)>(AT_ONCE);
    let receiver = Arc::new(Turn::new(receiver));
    let child = worker(name, move |vitals| {
        let (receiver, answers) = (receiver.clone(), answers.clone());
        async move {
            let mut receiver = receiver.lock().await;
            let mut calls = JoinSet::new();
            let mut beats = tokio::time::interval(BEAT);
            loop {
                tokio::select! {
                    post = receiver.recv(), if calls.len() < AT_ONCE => match post {
                        Some((post, share)) => {
                            let answered = answers.clone().answer(post);
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
                vitals.progressed(std::time::Instant::now());
            }
        }
    });
    child.vitals.set_protocol(&format!("{}/{}", P::NAME, P::VERSION));
    let name: ActorName = name.parse().expect("a literal name that keeps the rules");
    let inbox = Many::<P> { sender, shares: Arc::default(), vitals: child.vitals.clone(), protocol: PhantomData };
    exchange.register(name, Arc::new(inbox))?;
    Ok(child)
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
            Err(Box::new(Returned { post, why }))
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

/// Resolves when nobody waits for the answer any more. There is no word of it to wait for, so it is looked for.
pub(super) async fn abandoned(answer: &Answerer) {
    // What is given up is work for nobody until then: a tenth of a second is nothing to a tool that somebody lost patience with.
    const LOOK: Duration = Duration::from_millis(100);
    let mut looks = tokio::time::interval(LOOK);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        if answer.is_abandoned() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_has_a_quarter_of_the_places_and_gives_each_back() {
        let shares = Arc::new(Shares::default());
        let id = |uri| NodeId::from_uri(uri).unwrap();
        let (bo, fo) = (id("spiffe://shop/bo/bo-1"), id("spiffe://shop/fo/fo-1"));
        let mut held: Vec<_> = (0..PER_NODE).map(|_| shares.take(&fo).unwrap()).collect();
        assert!(shares.take(&fo).is_none() && shares.take(&bo).is_some());
        held.pop();
        assert!(shares.take(&fo).is_some());
        drop(held);
        assert!(shares.0.lock().is_empty(), "nothing is kept of who has nothing here");
    }
}

//! Calls by route on behalf of people, by [`horos_wire::protocol::routed`].
//!
//! Not a service, which handles one message after the other: somebody's call that takes long must not keep others waiting. What
//! comes is called at once, up to [`AT_ONCE`]; the answer is the callee's, refusals and all, as if it had been called directly.

use std::{any::TypeId, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use horos_router::Router;
use horos_supervision::{
    ChildSpec, Context, Exchange, Vitals,
    exchange::{Inbox, RegisterError},
    mailbox::{Post, Returned, Work},
    worker,
};
use horos_wire::{
    CallError, NoEffect, Protocol as _, Request as _, Unknown, codec,
    protocol::{
        Method,
        routed::{CallRouted, NAME, OwnError, RoutedCalls},
    },
};
use tokio::{
    sync::{Mutex, mpsc},
    task::JoinSet,
};

/// Calls under way; further ones wait in as many places, and beyond that are refused.
const AT_ONCE: usize = 64;
/// Longest a call may take whose caller did not say.
const LONGEST: Duration = Duration::from_secs(60);
/// Between two signs of life while nobody calls.
const BEAT: Duration = Duration::from_secs(1);

/// The child that makes these calls, and its name on the node.
///
/// # Errors
/// [`RegisterError`] when a service has taken the name.
pub(super) fn child(exchange: &Exchange, router: Router) -> Result<ChildSpec, RegisterError> {
    let (sender, receiver) = mpsc::channel(AT_ONCE);
    let receiver = Arc::new(Mutex::new(receiver));
    let context = Context::new(exchange.clone(), NAME);
    let child = worker(NAME, move |vitals| {
        let (receiver, router, context) = (receiver.clone(), router.clone(), context.clone());
        async move {
            let mut receiver = receiver.lock().await;
            let mut calls = JoinSet::new();
            let mut beats = tokio::time::interval(BEAT);
            loop {
                tokio::select! {
                    post = receiver.recv(), if calls.len() < AT_ONCE => match post {
                        Some(post) => drop(calls.spawn(answer(router.clone(), context.clone(), post))),
                        None => return,
                    },
                    Some(_) = calls.join_next() => {}
                    _ = beats.tick() => {}
                }
                vitals.progressed(std::time::Instant::now());
            }
        }
    });
    let inbox = Calls { sender, vitals: child.vitals.clone() };
    exchange.register(NAME.parse().expect("a literal name"), Arc::new(inbox))?;
    Ok(child)
}

async fn answer(router: Router, context: Context, post: Box<Post>) {
    let Post { work, context: call, .. } = *post;
    let Work::Encoded { format, body, answer: Some(mut answer) } = work else { return };
    let ask = match codec::decode::<CallRouted>(format, &body) {
        Ok(ask) => ask,
        Err(error) => return answer.refuse(NoEffect::Malformed(error.to_string().into())),
    };
    if answer.is_abandoned() {
        return answer.refuse(NoEffect::Expired);
    }
    let context = context.with_call(call);
    // Given up from here on, by a stop or a crash of this actor, it may have been done.
    answer.begin(Unknown::ActorDied);
    match router.call_json(&context, &ask.service, &ask.message, LONGEST).await {
        Ok(reply) => answer.reply(&reply.to_string()),
        Err(CallError::Failed(error)) => answer.fail(&OwnError(error.to_string().into())),
        Err(CallError::NoEffect(why)) => answer.refuse(why),
        // Dropped, it says so.
        Err(CallError::Unknown(why)) => answer.begin(why),
    }
}

/// The receiving end.
struct Calls {
    sender: mpsc::Sender<Box<Post>>,
    vitals: Arc<Vitals>,
}

impl Inbox for Calls {
    fn post(&self, post: Box<Post>) -> Result<(), Box<Returned>> {
        let refuse = |post, why| {
            self.vitals.refuse();
            Err(Box::new(Returned { post, why }))
        };
        if post.method != CallRouted::METHOD || !matches!(post.work, Work::Encoded { answer: Some(_), .. }) {
            return refuse(post, NoEffect::VersionNotSpoken(format!("{NAME} is called, from other nodes, and by nothing else").into()));
        }
        match self.sender.try_send(post) {
            Ok(()) => Ok(()),
            Err(mpsc::error::TrySendError::Full(post)) => refuse(post, NoEffect::Overloaded(NAME.into())),
            Err(mpsc::error::TrySendError::Closed(post)) => refuse(post, NoEffect::Stopping),
        }
    }

    fn protocol(&self) -> (&'static str, u16) {
        (RoutedCalls::NAME, RoutedCalls::VERSION)
    }

    fn protocol_type(&self) -> TypeId {
        TypeId::of::<RoutedCalls>()
    }

    fn methods(&self) -> &'static [Method] {
        RoutedCalls::methods()
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

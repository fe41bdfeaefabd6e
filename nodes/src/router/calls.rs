//! Calls by route on behalf of people, by [`horos_wire::protocol::routed`]: the answer is the callee's, refusals and all, as if it had been
//! called directly.

use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use horos_router::Router;
use horos_supervision::{
    ChildSpec, Concurrent, Context, Exchange, Places,
    concurrent::{answer, concurrent},
    exchange::RegisterError,
    mailbox::Post,
};
use horos_wire::{
    CallError, NoEffect, Request as _,
    protocol::routed::{CallRouted, NAME, OwnError, RoutedCalls},
};

/// One node may have all that are under way; those that wait are left to others.
const PLACES: Places = Places { at_once: 64, per_node: 64 };
/// Longest a call may take whose caller did not say.
const LONGEST: Duration = Duration::from_secs(60);

/// The child that makes these calls, and its name on the node.
///
/// # Errors
/// [`RegisterError`] when a service has taken the name.
pub(super) fn child(exchange: &Exchange, router: Router) -> Result<ChildSpec, RegisterError> {
    concurrent(exchange, NAME, PLACES, Calls { router, context: Context::new(exchange.clone(), NAME) })
}

struct Calls {
    router: Router,
    context: Context,
}

impl Concurrent for Calls {
    type Protocol = RoutedCalls;

    fn answer(self: Arc<Self>, post: Box<Post>) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            if post.method != CallRouted::METHOD {
                let why = format!("{NAME} has no method {}", post.method);
                return post.refuse(NoEffect::VersionNotSpoken(why.into()));
            }
            answer(post, async |ask: CallRouted, call| {
                let context = self.context.clone().with_call(call);
                match self.router.call_json(&context, &ask.service, &ask.message, LONGEST).await {
                    Ok(reply) => Ok(reply.to_string().into()),
                    Err(CallError::Failed(error)) => Err(CallError::Failed(OwnError(error.to_string().into()))),
                    Err(CallError::NoEffect(why)) => Err(CallError::NoEffect(why)),
                    Err(CallError::Unknown(why)) => Err(CallError::Unknown(why)),
                }
            })
            .await;
        })
    }
}

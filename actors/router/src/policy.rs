//! Policies of a program's own, beside those that every route has: a quota by tenant, a shadow call, a check of whatever.
//!
//! A program registers one under a name ([`crate::strategy::Strategies::policy`]), and a row that wants it says so, with settings of its
//! own: `{"policies": {"quota": {"per_tenant": 50}}}`. It stands around the whole call, retries, hedges and all: behind the
//! route's rate and concurrency, before the choice of an endpoint. Several stand around each other in the order of their names.
//! A name that nobody registered is an error of the row, as any other.

use std::{fmt, sync::Arc, time::Instant};

use futures_util::future::BoxFuture;
use horos_wire::{CallContext, CallError, NoEffect};

/// A policy, as a program registers it.
pub trait Policy: Send + Sync + 'static {
    /// Reads the settings of one route. Called when the row is taken up, and when its owner is asked to write it.
    ///
    /// # Errors
    /// What is wrong with them.
    fn open(&self, service: &str, settings: &serde_json::Value) -> Result<Arc<dyn Around>, String>;
}

/// A policy at work around the calls of one service.
pub trait Around: Send + Sync + 'static {
    /// A call comes: lets it in, at once or when its turn has come, or refuses it. What is let in holds what is returned until it
    /// has ended.
    fn enter<'a>(&'a self, call: &'a Call<'a>) -> BoxFuture<'a, Result<Box<dyn Inside>, NoEffect>>;
}

/// A call that was let in. Dropped without a word, it was given up by its caller.
pub trait Inside: Send {
    /// It has ended so.
    fn ended(self: Box<Self>, how: Ended) {
        let _ = how;
    }
}

/// What needs to know of no end.
impl Inside for () {}

/// A call, as far as a policy may know it.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// The service.
    pub service: &'a str,
    /// The method; empty where the payload is not JSON and nobody knows.
    pub method: &'a str,
    /// Trace, user, tenant and the rest. Who a user is, it only asserts.
    pub context: &'a CallContext,
    /// When its caller gives up.
    pub until: Instant,
    /// Whether it may be made twice with the effect of one.
    pub idempotent: bool,
}

/// How a call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// With a reply.
    Answered,
    /// With the callee's own error.
    Refused,
    /// Without effect.
    NoEffect,
    /// Nobody knows.
    Unknown,
}

impl Ended {
    pub(crate) fn of<T, E>(result: &Result<T, CallError<E>>) -> Self {
        match result {
            Ok(_) => Self::Answered,
            Err(CallError::Failed(_)) => Self::Refused,
            Err(CallError::NoEffect(_)) => Self::NoEffect,
            Err(CallError::Unknown(_)) => Self::Unknown,
        }
    }
}

/// The policies of one route, in their order.
#[derive(Clone, Default)]
pub(crate) struct Policies(pub(crate) Box<[Arc<dyn Around>]>);

impl fmt::Debug for Policies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Policies({})", self.0.len())
    }
}

impl Policies {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Lets the call in through all of them. One that refuses has those before it let go.
    pub(crate) async fn enter(&self, call: &Call<'_>) -> Result<Vec<Box<dyn Inside>>, NoEffect> {
        let mut inside = Vec::with_capacity(self.0.len());
        for one in &self.0 {
            let entered = tokio::time::timeout_at(call.until.into(), one.enter(call)).await;
            inside.push(entered.unwrap_or(Err(NoEffect::Expired))?);
        }
        Ok(inside)
    }
}

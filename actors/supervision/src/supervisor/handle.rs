//! The only way in to a supervisor for other modules and crates.

use std::sync::Arc;

use horos_wire::tree;
use ractor::ActorRef;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::{
    Ended, Reply, SupervisorMsg,
    child::{ChildSpec, StartError},
    subtree::{self, Subtree},
};
use crate::vitals::Vitals;

/// Why an order to a supervisor was not carried out.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OrderError {
    /// It has no such child. No effect.
    #[error("no child is called {0:?}")]
    NoSuchChild(Box<str>),
    /// A child of that name exists. No effect.
    #[error("a child is called {0:?} already")]
    NameTaken(Box<str>),
    /// [`MAX_CHILDREN`](super::MAX_CHILDREN) exist. No effect.
    #[error("it has all the children that a supervisor may have")]
    Full,
    /// The child does not run now, so it cannot be made to die. No effect.
    #[error("{0:?} does not run")]
    NotRunning(Box<str>),
    /// The child could not be started. Added ones are forgotten, others are tried again.
    #[error("cannot start {name:?}")]
    Start {
        /// Which child.
        name: Box<str>,
        /// Why.
        source: StartError,
    },
    /// Another order or a group's restart took the child away meanwhile.
    #[error("{0:?} was removed meanwhile")]
    Overtaken(Box<str>),
    /// The supervisor is down or on its way there; whether the order had an effect is of no more interest.
    #[error("the supervisor is stopped")]
    Stopped,
}

/// Cloneable client of a supervisor. It serves all its lives.
#[derive(Clone, Debug)]
pub struct SupervisorHandle {
    pub(super) vitals: Arc<Vitals>,
    pub(super) subtree: Arc<Subtree>,
}

impl SupervisorHandle {
    /// Adds `child` behind the others and starts it; resolves when it runs.
    ///
    /// # Errors
    /// [`OrderError`]; the child is then not among the children.
    pub async fn add_child(&self, child: ChildSpec) -> Result<(), OrderError> {
        self.order(|permit, reply| SupervisorMsg::Add { child, permit, reply }).await
    }

    /// Stops a child and forgets it; resolves when it is gone.
    ///
    /// # Errors
    /// [`OrderError::NoSuchChild`] or [`OrderError::Stopped`].
    pub async fn remove_child(&self, name: &str) -> Result<(), OrderError> {
        self.order(|permit, reply| SupervisorMsg::Remove { name: name.into(), permit, reply }).await
    }

    /// Stops a child in good order and starts it again, whatever its restart kind; resolves when it runs. Not counted as a failure.
    ///
    /// # Errors
    /// [`OrderError`]; when it could not be started, it is tried again as after a death.
    pub async fn restart_child(&self, name: &str) -> Result<(), OrderError> {
        self.order(|permit, reply| SupervisorMsg::Restart { name: name.into(), permit, reply }).await
    }

    /// Makes a child die as if by a fault of its own, for drills; resolves when it is told to. All that follows a death follows.
    ///
    /// # Errors
    /// [`OrderError::NoSuchChild`], [`OrderError::NotRunning`] or [`OrderError::Stopped`].
    pub async fn crash_child(&self, name: &str) -> Result<(), OrderError> {
        self.order(|permit, reply| SupervisorMsg::Crash { name: name.into(), permit, reply }).await
    }

    /// Stops the children in reverse order, then the supervisor; resolves when it is down.
    ///
    /// For the root of a tree. A child is stopped by its supervisor's [`remove_child`](Self::remove_child): stopped by
    /// this, it would be started again.
    ///
    /// # Cancel safety
    /// The stop goes on when the future is dropped.
    pub async fn stop(&self) -> Ended {
        if let Some(actor) = self.subtree.actor() {
            actor.stop(None);
        }
        self.wait().await
    }

    /// Resolves when the present life ends, with how; at once when there is none.
    pub async fn wait(&self) -> Ended {
        let mut ended = self.subtree.ended.subscribe();
        // The sender is in `self`, so the channel cannot close meanwhile.
        ended.wait_for(Option::is_some).await.ok().and_then(|ended| ended.clone()).unwrap_or(Ended::Killed)
    }

    /// The supervisor and all below it. Asks nobody: it is told even while a runtime is blocked.
    pub fn tree(&self) -> tree::Actor {
        subtree::snapshot(&self.vitals)
    }

    /// The slot of that name, or at that path from here (`services/stock`). Of equal names the one nearest to the root.
    pub fn find(&self, name: &str) -> Option<Arc<Vitals>> {
        if name == self.vitals.name() {
            return Some(Arc::clone(&self.vitals));
        }
        let below = name.strip_prefix(self.vitals.name()).and_then(|rest| rest.strip_prefix('/'));
        self.subtree.find(name).or_else(|| self.subtree.find(below?))
    }

    /// The supervisor's own vital signs.
    pub fn vitals(&self) -> &Arc<Vitals> {
        &self.vitals
    }

    async fn order(&self, order: impl FnOnce(OwnedSemaphorePermit, Reply) -> SupervisorMsg) -> Result<(), OrderError> {
        // Never closed, so this only waits.
        let permit = Arc::clone(&self.subtree.gate).acquire_owned().await.map_err(|_| OrderError::Stopped)?;
        let actor: ActorRef<SupervisorMsg> = self.subtree.actor().ok_or(OrderError::Stopped)?;
        let (reply, outcome) = oneshot::channel();
        actor.cast(order(permit, reply)).map_err(|_| OrderError::Stopped)?;
        outcome.await.map_err(|_| OrderError::Stopped)?
    }
}

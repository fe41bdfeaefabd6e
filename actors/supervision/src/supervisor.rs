//! Owns the lives of its children: starts them in order, restarts what dies, gives up past a limit.
//!
//! Started by a node's root or by another supervisor. What it decides is in `plan`, a state machine with
//! OTP's semantics; this actor carries it out. No handler waits for anything: starts are tasks, stops are
//! signals with a deadline, and one timer serves all deadlines. Only its own start and end take their time,
//! because nothing else is left for it to do then: it has started when all its children have, and ends by
//! stopping them in reverse order. Promised: never two lives of one name at once, unless the first was
//! abandoned by an order to stop (a blocking loop cannot be killed).
//!
//! Past its [`Intensity`] it stops its children and ends with an error, which its own supervisor sees as
//! any other death. A killed supervisor takes its children with it, as ractor sees to.

mod child;
mod handle;
mod intensity;
mod plan;
mod running;
pub(crate) mod subtree;

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use horos_wire::tree::{Kind, State};
use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

pub use self::{
    child::{ChildSpec, OnStuck, Restart, Start, StartChild, StartError, on},
    handle::{OrderError, SupervisorHandle},
    intensity::Intensity,
    plan::Strategy,
};
use self::{plan::ChildId, running::Running, subtree::Subtree};
use crate::{
    backoff::Backoff,
    vitals::{StuckAt, Vitals},
};

/// How long a killed child may take to be gone before it is abandoned: a second, as what is left is to drop its state.
pub const KILL_GRACE: Duration = Duration::from_secs(1);
/// Orders to one supervisor that may be under way; further ones wait with their caller.
pub const MAX_ORDERS: usize = 64;
/// Children of one supervisor; each death looks at all of them.
pub const MAX_CHILDREN: usize = 10_000;

/// How a supervisor's life ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Asked to, with its children stopped.
    Stopped,
    /// Beyond its power: its children failed too often. With the last failure.
    Failed(Arc<str>),
    /// Killed, or its runtime is gone.
    Killed,
}

/// A supervisor and its children.
#[derive(Clone, Debug)]
pub struct SupervisorSpec {
    /// Which children are restarted when one dies.
    pub strategy: Strategy,
    /// How many failures are too many.
    pub intensity: Intensity,
    /// How long restarts wait.
    pub backoff: Backoff,
    /// Longest a child's start may take. Default 30 s: a database that replays its log.
    pub start_within: Duration,
    children: Vec<ChildSpec>,
    vitals: Arc<Vitals>,
    subtree: Arc<Subtree>,
}

impl SupervisorSpec {
    /// A supervisor called `name` of `children`, to be started in that order. Their names must differ.
    pub fn new(name: &str, strategy: Strategy, children: Vec<ChildSpec>) -> Self {
        let kind = match strategy {
            Strategy::OneForOne => Kind::OneForOne,
            Strategy::OneForAll => Kind::OneForAll,
            Strategy::RestForOne => Kind::RestForOne,
        };
        // It has no message in hand that could be stuck.
        let vitals = Vitals::new(name, kind, Duration::MAX);
        let subtree = Subtree::new(&children);
        vitals.grow(Arc::clone(&subtree));
        Self {
            strategy,
            intensity: Intensity::default(),
            backoff: Backoff::default(),
            start_within: Duration::from_secs(30),
            children,
            vitals,
            subtree,
        }
    }

    /// The same with another limit.
    #[must_use]
    pub fn intensity(self, max: u32, within: Duration) -> Self {
        Self { intensity: Intensity { max, within }, ..self }
    }

    /// The same with another backoff.
    #[must_use]
    pub fn backoff(self, backoff: Backoff) -> Self {
        Self { backoff, ..self }
    }

    /// The same with another limit for a child's start.
    #[must_use]
    pub fn start_within(self, start_within: Duration) -> Self {
        Self { start_within, ..self }
    }

    /// A handle that serves all lives of the supervisor that is made from this.
    pub fn handle(&self) -> SupervisorHandle {
        SupervisorHandle { vitals: Arc::clone(&self.vitals), subtree: Arc::clone(&self.subtree) }
    }

    /// The supervisor as another's child. A new life begins with the children specified here, without those
    /// added since, as in OTP. Keep a [`handle`](Self::handle) to add more.
    pub fn into_child(self) -> ChildSpec {
        let vitals = Arc::clone(&self.vitals);
        ChildSpec::actor(vitals, None, move |_| (Keeper, self.clone()))
    }
}

/// What a [`Supervisor`] accepts.
#[derive(Debug)]
pub(crate) enum SupervisorMsg {
    /// Adds a child and starts it.
    Add { child: ChildSpec, permit: OwnedSemaphorePermit, reply: Reply },
    /// Stops a child and forgets it.
    Remove { name: Box<str>, permit: OwnedSemaphorePermit, reply: Reply },
    /// Stops a child and starts it.
    Restart { name: Box<str>, permit: OwnedSemaphorePermit, reply: Reply },
    /// Makes a child die.
    Crash { name: Box<str>, permit: OwnedSemaphorePermit, reply: Reply },
    /// A start's task is done.
    Started { id: ChildId, attempt: u64, outcome: Result<ActorCell, StartError> },
    /// The watchdog saw the child at one message for too long.
    Stuck { id: ChildId, at: StuckAt },
    /// Timer; only this module's children can build one.
    Look(Look),
}

/// Where the outcome of an order goes.
pub(crate) type Reply = oneshot::Sender<Result<(), OrderError>>;

#[derive(Debug)]
pub(crate) struct Look(());

/// Keeps its children alive.
#[derive(Debug)]
pub enum Supervisor {}

impl Supervisor {
    /// Starts a supervisor below `parent`, or as the root of a tree, and all its children.
    ///
    /// The root of a tree must be stopped by [`SupervisorHandle::stop`]. It runs on the calling runtime.
    ///
    /// # Errors
    /// [`StartError`] when a child cannot be started; those started before it are stopped again.
    pub async fn start(spec: SupervisorSpec, parent: Option<ActorCell>) -> Result<SupervisorHandle, StartError> {
        let handle = spec.handle();
        let spawned = match parent {
            Some(parent) => Actor::spawn_linked(None, Keeper, spec, parent).await,
            None => Actor::spawn(None, Keeper, spec).await,
        };
        match spawned {
            Ok(_) => Ok(handle),
            Err(ractor::SpawnErr::StartupFailed(cause)) => {
                handle.vitals.died(&cause.to_string());
                handle.vitals.set_state(State::Failed);
                Err(StartError::new(cause.to_string()))
            }
            Err(error) => Err(StartError::new(error.to_string())),
        }
    }
}

/// The actor; apart from [`Supervisor`] so that its messages stay inside.
#[derive(Debug)]
struct Keeper;

impl Actor for Keeper {
    type Msg = SupervisorMsg;
    type Arguments = SupervisorSpec;
    type State = Running;

    async fn pre_start(&self, me: ActorRef<SupervisorMsg>, spec: SupervisorSpec) -> Result<Running, ActorProcessingErr> {
        let mut state = Running::new(me, spec);
        match state.start_all().await {
            Ok(()) => {
                state.ready();
                Ok(state)
            }
            Err(error) => {
                state.fail(&error.to_string());
                state.stop_all().await;
                Err(error.into())
            }
        }
    }

    async fn handle(&self, _: ActorRef<SupervisorMsg>, message: SupervisorMsg, state: &mut Running) -> Result<(), ActorProcessingErr> {
        state.progressed();
        match message {
            SupervisorMsg::Add { child, permit, reply } => state.add(child, permit, reply),
            SupervisorMsg::Remove { name, permit, reply } => state.remove(&name, permit, reply),
            SupervisorMsg::Restart { name, permit, reply } => state.restart(&name, permit, reply),
            SupervisorMsg::Crash { name, permit, reply } => state.crash(&name, permit, reply),
            SupervisorMsg::Started { id, attempt, outcome } => state.started(id, attempt, outcome),
            SupervisorMsg::Stuck { id, at } => state.stuck(id, &at),
            SupervisorMsg::Look(_) => state.look(),
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _: ActorRef<SupervisorMsg>,
        event: SupervisionEvent,
        state: &mut Running,
    ) -> Result<(), ActorProcessingErr> {
        state.progressed();
        match event {
            SupervisionEvent::ActorStarted(cell) => state.appeared(cell),
            SupervisionEvent::ActorFailed(cell, error) => state.ended(&cell, Err(error.to_string())),
            SupervisionEvent::ActorTerminated(cell, last, reason) => {
                // What the dead life held must be let go before the next one starts.
                // A panic in its drop is the child's fault, and must not become ours.
                let _ = std::panic::catch_unwind(AssertUnwindSafe(|| drop(last)));
                state.ended(&cell, Ok(reason));
            }
            SupervisionEvent::ProcessGroupChanged(_) => {}
        }
        Ok(())
    }

    async fn post_stop(&self, _: ActorRef<SupervisorMsg>, state: &mut Running) -> Result<(), ActorProcessingErr> {
        state.stop_all().await;
        state.verdict().map_err(Into::into)
    }
}

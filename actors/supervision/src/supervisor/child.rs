//! What a supervisor needs to know of a child.

use std::{fmt, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use ractor::{Actor, ActorCell};
use tokio::{runtime::Handle as Runtime, task::JoinHandle};

use crate::vitals::Vitals;

/// When a child is started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restart {
    /// Whenever it ends.
    Permanent,
    /// When it dies, not when it stops itself.
    Transient,
    /// Never.
    Temporary,
}

/// What happens to a child that is at one message for too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnStuck {
    /// It is shown as stuck.
    Report,
    /// It is killed, and its [`Restart`] applies. That ends a wait for something that never comes; a loop
    /// that never waits cannot be ended from outside and stays reported.
    Restart,
}

/// Why a child could not be started.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct StartError(Box<str>);

impl StartError {
    /// An error with this text.
    pub fn new(reason: impl Into<Box<str>>) -> Self {
        Self(reason.into())
    }
}

/// What a start is given.
#[derive(Clone, Debug)]
pub struct Start {
    /// To whom the new actor is linked.
    pub supervisor: ActorCell,
    /// The slot's vital signs.
    pub vitals: Arc<Vitals>,
}

/// Starts a child: spawns its actor linked to the supervisor and gives back its cell. Dropping the future calls the start off.
pub type StartChild = Arc<dyn Fn(Start) -> BoxFuture<'static, Result<ActorCell, StartError>> + Send + Sync>;

/// A child and how it is kept.
#[derive(Clone)]
pub struct ChildSpec {
    /// Its name, unique among its siblings.
    pub name: Box<str>,
    /// When it is started again.
    pub restart: Restart,
    /// How long it has to stop in good order before it is killed.
    pub shutdown: Duration,
    /// What happens when it is stuck.
    pub on_stuck: OnStuck,
    /// Its vital signs, over all its lives.
    pub vitals: Arc<Vitals>,
    /// Starts it.
    pub start: StartChild,
}

impl ChildSpec {
    /// A permanent child named as `vitals` are, with 5 s to stop, that is only reported when stuck.
    pub fn new<F>(vitals: Arc<Vitals>, start: impl Fn(Start) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<ActorCell, StartError>> + Send + 'static,
    {
        Self {
            name: vitals.name().into(),
            restart: Restart::Permanent,
            shutdown: Duration::from_secs(5),
            on_stuck: OnStuck::Report,
            vitals,
            start: Arc::new(move |given| Box::pin(start(given))),
        }
    }

    /// A child that is `make`'s actor with `make`'s arguments, made anew for each life, on `runtime` or else the supervisor's.
    ///
    /// A life starts only when the one before has let go of all it held: ractor reports a death before it
    /// drops the dead actor's state, and a port or a file in there would still be taken.
    pub fn actor<A: Actor>(
        vitals: Arc<Vitals>,
        runtime: Option<Runtime>,
        make: impl Fn(&Start) -> (A, A::Arguments) + Send + Sync + 'static,
    ) -> Self {
        let before = Arc::new(Mutex::new(None::<JoinHandle<()>>));
        let make = Arc::new(make);
        Self::new(vitals, move |start| {
            let (before, make, runtime) = (Arc::clone(&before), Arc::clone(&make), runtime.clone());
            async move {
                let last = before.lock().take();
                if let Some(last) = last {
                    let mut last = Waited { last: Some(last), before: &before };
                    // A life that ended by panic in its own drop has let go, too.
                    if let Some(last) = &mut last.last {
                        let _ = last.await;
                    }
                    last.last = None;
                }
                let spawn = async move {
                    let (actor, arguments) = make(&start);
                    Actor::spawn_linked(None, actor, arguments, start.supervisor).await
                };
                let spawned = match runtime {
                    Some(runtime) => on(&runtime, spawn).await?,
                    None => spawn.await,
                };
                let (actor, life) = spawned.map_err(|error| StartError::new(reason(&error)))?;
                *before.lock() = Some(life);
                Ok(actor.get_cell())
            }
        })
    }

    /// The same with another [`Restart`].
    #[must_use]
    pub fn restart(self, restart: Restart) -> Self {
        Self { restart, ..self }
    }

    /// The same with `shutdown` to stop in good order.
    #[must_use]
    pub fn shutdown(self, shutdown: Duration) -> Self {
        Self { shutdown, ..self }
    }

    /// The same with another [`OnStuck`].
    #[must_use]
    pub fn on_stuck(self, on_stuck: OnStuck) -> Self {
        Self { on_stuck, ..self }
    }

    /// How long its stop may take: a supervisor's is as long as its children's together.
    pub(crate) fn patience(&self) -> Duration {
        patience(&self.vitals, self.shutdown)
    }
}

pub(super) fn patience(vitals: &Vitals, shutdown: Duration) -> Duration {
    vitals.subtree().map_or(shutdown, |subtree| subtree.patience().max(shutdown))
}

impl fmt::Debug for ChildSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, restart, shutdown, on_stuck, .. } = self;
        f.debug_struct("ChildSpec")
            .field("name", name)
            .field("restart", restart)
            .field("shutdown", shutdown)
            .field("on_stuck", on_stuck)
            .finish_non_exhaustive()
    }
}

/// Puts the last life's handle back when the wait for it is called off, so that the next start waits again.
struct Waited<'a> {
    last: Option<JoinHandle<()>>,
    before: &'a Mutex<Option<JoinHandle<()>>>,
}

impl Drop for Waited<'_> {
    fn drop(&mut self) {
        if let Some(last) = self.last.take() {
            *self.before.lock() = Some(last);
        }
    }
}

/// Runs `future` on `runtime`; dropping the result calls it off there.
///
/// # Errors
/// [`StartError`] when it panicked or the runtime is shutting down.
pub async fn on<T: Send + 'static>(runtime: &Runtime, future: impl Future<Output = T> + Send + 'static) -> Result<T, StartError> {
    let mut task = AbortOnDrop(runtime.spawn(future));
    (&mut task.0).await.map_err(|error| match error.try_into_panic() {
        Ok(panic) => StartError::new(panic_text(&*panic)),
        Err(error) => StartError::new(error.to_string()),
    })
}

/// A task that ends with its owner.
#[derive(Debug)]
pub(crate) struct AbortOnDrop<T>(pub(crate) JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn reason(error: &ractor::SpawnErr) -> String {
    // ractor calls every failed start a panic; what it wraps says what it was.
    match error {
        ractor::SpawnErr::StartupFailed(cause) => cause.to_string(),
        ractor::SpawnErr::ActorAlreadyStarted | ractor::SpawnErr::ActorAlreadyRegistered(_) => error.to_string(),
    }
}

pub(crate) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("panicked: {}", text.unwrap_or("with something that is no text"))
}

//! The actor behind a loop: it has no messages, only a life that ends with the loop's.

use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use horos_wire::tree::Kind;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::task::AbortHandle;

use crate::{ChildSpec, OnStuck, Restart, Start, StartError, Vitals};

/// A child that runs a loop and nothing else; it dies with an error if the loop ends.
///
/// The loop runs on the runtime that starts it, and may end at any await: it is aborted when its supervisor stops it.
pub fn worker<F, R>(name: &str, run: R) -> ChildSpec
where
    F: Future<Output = ()> + Send + 'static,
    R: Fn(Arc<Vitals>) -> F + Send + Sync + 'static,
{
    worker_with(Vitals::new(name, Kind::Worker, Duration::from_secs(2)), run)
}

/// The same under vital signs of its own making, whose name it has: for a loop that records what it is busy with, by its own measure of
/// how long that may take.
pub fn worker_with<F, R>(vitals: Arc<Vitals>, run: R) -> ChildSpec
where
    F: Future<Output = ()> + Send + 'static,
    R: Fn(Arc<Vitals>) -> F + Send + Sync + 'static,
{
    let run = Arc::new(run);
    let start = move |start: Start| -> BoxFuture<'static, Result<ractor::ActorCell, StartError>> {
        let run = run.clone();
        Box::pin(async move {
            start.vitals.started();
            let future: BoxFuture<'static, ()> = Box::pin(run(start.vitals.clone()));
            let spawned = Actor::spawn_linked(None, Worker, future, start.supervisor).await;
            let (actor, _) = spawned.map_err(|error| StartError::new(error.to_string()))?;
            Ok(actor.get_cell())
        })
    };
    ChildSpec {
        name: vitals.name().into(),
        restart: Restart::Permanent,
        shutdown: Duration::from_secs(1),
        on_stuck: OnStuck::Report,
        vitals,
        start: Arc::new(start),
    }
}

struct Worker;

/// Ends the loop with the actor.
struct Running(AbortHandle);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The loop has ended, which it never does in good order.
#[derive(Debug)]
struct Ended(Option<String>);

impl Actor for Worker {
    type Msg = Ended;
    type State = Running;
    type Arguments = BoxFuture<'static, ()>;

    async fn pre_start(&self, me: ActorRef<Ended>, run: BoxFuture<'static, ()>) -> Result<Running, ActorProcessingErr> {
        let task = tokio::spawn(run);
        let running = Running(task.abort_handle());
        tokio::spawn(async move {
            let cause = match task.await {
                Ok(()) => None,
                Err(error) if error.is_cancelled() => return,
                Err(error) => Some(error.to_string()),
            };
            // It fails only when the actor has gone first.
            let _ = me.cast(Ended(cause));
        });
        Ok(running)
    }

    async fn handle(&self, _: ActorRef<Ended>, ended: Ended, _: &mut Running) -> Result<(), ActorProcessingErr> {
        Err(ended.0.unwrap_or_else(|| "the loop ended".to_owned()).into())
    }
}

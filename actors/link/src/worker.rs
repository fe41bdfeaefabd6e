//! The actor behind a loop: it has no messages, only a life that ends with the loop's.

use futures_util::future::BoxFuture;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::task::AbortHandle;

pub(crate) struct Worker;

/// Ends the loop with the actor.
pub(crate) struct Running(AbortHandle);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The loop has ended, which it never does in good order.
#[derive(Debug)]
pub(crate) struct Ended(Option<String>);

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

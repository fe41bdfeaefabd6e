//! The actor that owns the writer's thread.
//!
//! A broken connection ends the thread; the actor then fails, and its supervisor's restart opens the file again. Jobs keep
//! waiting in the handle's queue meanwhile, each until its own deadline.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use tokio::{sync::oneshot, time::timeout};

use super::{Writer, WriterFailure, WriterStats, panic_text, thread::Served};
use crate::open::OpenError;

/// Longest a new thread waits for its predecessor to let go of the file. A job may run until its deadline; after this the
/// supervisor's backoff does the waiting.
const HANDOVER: Duration = Duration::from_secs(5);
/// Longest a graceful stop waits for what is queued to be committed.
const DRAIN: Duration = Duration::from_secs(10);

/// What [`WriterActor`] accepts.
#[derive(Debug)]
pub enum WriterMsg {
    /// Reports counters.
    Observe {
        /// Where to.
        reply: RpcReplyPort<WriterStats>,
    },
    /// The thread ended; only this module can build an `Ended`.
    Ended(Ended),
}

/// How the thread ended.
#[derive(Debug)]
pub struct Ended(Result<(), WriterFailure>);

/// Owns the thread behind a [`Writer`]. Arguments: the handle, made once and passed again at each restart.
#[derive(Debug)]
pub struct WriterActor;

/// The thread of this incarnation.
#[derive(Debug)]
pub struct WriterState {
    writer: Writer,
    leave: Arc<AtomicBool>,
    gone: Option<oneshot::Receiver<()>>,
}

impl Drop for WriterState {
    /// Also when the actor was killed and no `post_stop` ran.
    fn drop(&mut self) {
        self.writer.shared.queue.dismiss(&self.leave);
    }
}

impl Actor for WriterActor {
    type Msg = WriterMsg;
    type State = WriterState;
    type Arguments = Writer;

    async fn pre_start(&self, me: ActorRef<WriterMsg>, writer: Writer) -> Result<WriterState, ActorProcessingErr> {
        let leave = Arc::new(AtomicBool::new(false));
        // A killed predecessor's state may outlive it inside the event that reports its death, so its drop is not waited for.
        if let Some(predecessor) = writer.shared.incarnation.lock().replace(Arc::clone(&leave)) {
            writer.shared.queue.dismiss(&predecessor);
        }
        let serving = timeout(HANDOVER, Arc::clone(&writer.shared.serving).lock_owned())
            .await
            .map_err(|_| WriterFailure::Open(OpenError::Owned { path: writer.config().open.path().map(Into::into).unwrap_or_default() }))?;
        let (started, opened) = oneshot::channel();
        let (going, gone) = oneshot::channel();
        let shared = Arc::clone(&writer.shared);
        let flag = Arc::clone(&leave);
        let run = move || {
            // Both are released however the thread ends, `serving` after the file.
            let _serving = serving;
            let _going: oneshot::Sender<()> = going;
            let served = match catch_unwind(AssertUnwindSafe(|| Served::open(&shared))) {
                Ok(Ok(served)) => served,
                Ok(Err(failure)) => {
                    let _ = started.send(Err(failure));
                    return;
                }
                Err(payload) => {
                    let _ = started.send(Err(WriterFailure::Panicked(panic_text(payload.as_ref()))));
                    return;
                }
            };
            shared.counters.opened.fetch_add(1, Ordering::Relaxed);
            // Before it is served: closed by a predecessor's good order, it would end this thread at once.
            shared.queue.reopen();
            if started.send(Ok(())).is_err() {
                return; // The actor was killed while we opened.
            }
            let ended = match catch_unwind(AssertUnwindSafe(|| served.serve(&shared, &flag))) {
                Ok(outcome) => outcome.map_err(WriterFailure::Connection),
                Err(payload) => Err(WriterFailure::Panicked(panic_text(payload.as_ref()))),
            };
            *shared.current.lock() = None;
            // An actor that is gone has dismissed us and does not want to know.
            let _ = me.cast(WriterMsg::Ended(Ended(ended)));
        };
        thread::Builder::new().name("store-writer".into()).spawn(run).map_err(WriterFailure::Spawn)?;
        // Migrations may take long; the supervisor's own limit on a start applies.
        let state = WriterState { writer, leave, gone: Some(gone) };
        match opened.await {
            Ok(Ok(())) => {}
            Ok(Err(failure)) => return Err(failure.into()),
            Err(_) => return Err(WriterFailure::Panicked("before it had opened the file".into()).into()),
        }
        Ok(state)
    }

    async fn handle(&self, me: ActorRef<WriterMsg>, message: WriterMsg, state: &mut WriterState) -> Result<(), ActorProcessingErr> {
        match message {
            WriterMsg::Observe { reply } => {
                // The asker may have gone.
                let _ = reply.send(state.writer.stats());
                Ok(())
            }
            WriterMsg::Ended(Ended(Ok(()))) => {
                me.stop(None);
                Ok(())
            }
            WriterMsg::Ended(Ended(Err(failure))) => {
                tracing::error!(error = &failure as &dyn std::error::Error, "the writer's thread ended");
                Err(failure.into())
            }
        }
    }

    /// Commits what is queued, then closes the file: the WAL is emptied, later jobs are refused.
    async fn post_stop(&self, _: ActorRef<WriterMsg>, state: &mut WriterState) -> Result<(), ActorProcessingErr> {
        state.writer.shared.queue.close();
        if let Some(gone) = state.gone.take()
            && timeout(DRAIN, gone).await.is_err()
        {
            tracing::warn!(waiting = state.writer.stats().waiting, "the writer did not drain in time; what waits has no effect");
        }
        state.writer.shared.queue.discard();
        Ok(())
    }
}

//! The actor that owns the readers' threads. A thread that dies (which takes a panic outside any read) fails the actor.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, atomic::AtomicBool},
    thread,
};

use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};

use super::{Readers, ReadersStats, serve};
use crate::writer::panic_text;

/// What [`ReadersActor`] accepts.
#[derive(Debug)]
pub enum ReadersMsg {
    /// Reports counters.
    Observe {
        /// Where to.
        reply: RpcReplyPort<ReadersStats>,
    },
    /// A thread died; only this module can build a `Died`.
    Died(Died),
}

/// What a thread died of.
#[derive(Debug)]
pub struct Died(String);

/// Owns the threads behind [`Readers`]. Arguments: the handle, made once and passed again at each restart.
#[derive(Debug)]
pub struct ReadersActor;

/// The threads of this incarnation.
#[derive(Debug)]
pub struct ReadersState {
    readers: Readers,
    leave: Arc<AtomicBool>,
}

impl Drop for ReadersState {
    fn drop(&mut self) {
        self.readers.shared.queue.dismiss(&self.leave);
    }
}

impl Actor for ReadersActor {
    type Msg = ReadersMsg;
    type State = ReadersState;
    type Arguments = Readers;

    async fn pre_start(&self, me: ActorRef<ReadersMsg>, readers: Readers) -> Result<ReadersState, ActorProcessingErr> {
        let state = ReadersState { readers, leave: Arc::new(AtomicBool::new(false)) };
        state.readers.shared.queue.reopen();
        for number in 0..state.readers.shared.config.threads {
            let shared = Arc::clone(&state.readers.shared);
            let leave = Arc::clone(&state.leave);
            let me = me.clone();
            thread::Builder::new().name(format!("store-reader-{number}")).spawn(move || {
                if let Err(payload) = catch_unwind(AssertUnwindSafe(|| serve(&shared, &leave))) {
                    // An actor that is gone does not want to know.
                    let _ = me.cast(ReadersMsg::Died(Died(panic_text(payload.as_ref()))));
                }
            })?;
        }
        Ok(state)
    }

    async fn handle(&self, _: ActorRef<ReadersMsg>, message: ReadersMsg, state: &mut ReadersState) -> Result<(), ActorProcessingErr> {
        match message {
            ReadersMsg::Observe { reply } => {
                // The asker may have gone.
                let _ = reply.send(state.readers.stats());
                Ok(())
            }
            ReadersMsg::Died(Died(text)) => Err(format!("a reader's thread panicked: {text}").into()),
        }
    }

    /// Refuses later reads; those that wait are told so.
    async fn post_stop(&self, _: ActorRef<ReadersMsg>, state: &mut ReadersState) -> Result<(), ActorProcessingErr> {
        state.readers.shared.queue.close();
        state.readers.shared.queue.discard();
        Ok(())
    }
}

//! The watchdog: one OS thread a process that looks at every actor's progress.
//!
//! Started by the first [`Vitals`](crate::Vitals), ends with the process. It needs no runtime, so a handler that
//! blocks one is seen, and named once in the log and to its supervisor, which decides. It only looks: it
//! stops nobody. A thread of its own costs one wake-up every 50 ms; while no actor lives, none.

use std::{
    sync::{
        Arc, OnceLock,
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    time::{Duration, Instant},
};

use crate::{census, vitals::Vitals};

/// How often the watchdog looks. A stuck actor is reported at most this long after its limit.
pub const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Wakes the watchdog if it sleeps for want of actors, and starts it first if need be.
pub(crate) fn wake() {
    static BELL: OnceLock<Option<SyncSender<()>>> = OnceLock::new();
    let bell = BELL.get_or_init(|| {
        let (bell, ring) = sync_channel(1);
        match std::thread::Builder::new().name("horos-watchdog".to_owned()).spawn(move || watch(&ring)) {
            Ok(_) => Some(bell),
            // Out of threads at the start of a process: it will not get far, but that is not for us to decide.
            Err(error) => {
                tracing::error!(%error, "cannot start the watchdog: stuck actors will not be reported");
                None
            }
        }
    });
    if let Some(bell) = bell {
        // Full means it is already being woken.
        let _ = bell.try_send(());
    }
}

fn watch(ring: &Receiver<()>) {
    let mut living: Vec<Arc<Vitals>> = Vec::new();
    let mut alone = true;
    loop {
        if alone && ring.recv().is_err() {
            return;
        }
        let next = Instant::now() + LOOK_EVERY;
        loop {
            match ring.recv_timeout(next.saturating_duration_since(Instant::now())) {
                // Somebody was born: no reason to look sooner.
                Ok(()) => {}
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
        census::living(&mut living);
        let now = Instant::now();
        alone = living.is_empty();
        // Drained, so that a slot is not kept alive from one look to the next.
        for vitals in living.drain(..) {
            vitals.look(now);
        }
    }
}

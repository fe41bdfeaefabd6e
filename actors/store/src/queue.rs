//! A bounded queue between callers and database threads. It belongs to the *name*, not to the thread: what waits in it
//! survives the thread's death and is served by its successor.

use std::{
    collections::VecDeque,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};

/// Why a job was not admitted. It had no effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    Full,
    Closed,
}

/// What a thread gets when it asks.
#[derive(Debug)]
pub(crate) enum Next<J> {
    Job(J),
    /// Nothing came within the wait.
    Idle,
    /// Closed and empty.
    Closed,
}

pub(crate) struct Queue<J> {
    state: Mutex<State<J>>,
    ready: Condvar,
    bound: usize,
}

struct State<J> {
    jobs: VecDeque<J>,
    closed: bool,
}

impl<J> Queue<J> {
    pub(crate) fn new(bound: usize) -> Queue<J> {
        Queue { state: Mutex::new(State { jobs: VecDeque::new(), closed: false }), ready: Condvar::new(), bound }
    }

    /// Admits `job` or refuses it at once: nobody waits here for room. Jobs that are not `wanted` any more make it.
    pub(crate) fn push(&self, job: J, wanted: impl Fn(&J) -> bool) -> Result<(), Refused> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(Refused::Closed);
        }
        if state.jobs.len() >= self.bound {
            state.jobs.retain(wanted);
        }
        if state.jobs.len() >= self.bound {
            return Err(Refused::Full);
        }
        state.jobs.push_back(job);
        drop(state);
        self.ready.notify_one();
        Ok(())
    }

    /// The next job. `leave` belongs to the thread that asks: set, it gets no more and its successor does.
    pub(crate) fn next(&self, wait: Duration, leave: &AtomicBool) -> Next<J> {
        let until = Instant::now() + wait;
        let mut state = self.state.lock();
        loop {
            if leave.load(Ordering::Relaxed) {
                return Next::Closed;
            }
            if let Some(job) = state.jobs.pop_front() {
                return Next::Job(job);
            }
            if state.closed {
                return Next::Closed;
            }
            if self.ready.wait_until(&mut state, until).timed_out() && state.jobs.is_empty() {
                return Next::Idle;
            }
        }
    }

    pub(crate) fn try_next(&self) -> Option<J> {
        self.state.lock().jobs.pop_front()
    }

    pub(crate) fn len(&self) -> usize {
        self.state.lock().jobs.len()
    }

    /// Admits no more; what was admitted is still served.
    pub(crate) fn close(&self) {
        self.state.lock().closed = true;
        self.ready.notify_all();
    }

    /// Asks the threads that watch `leave` to go, leaving the jobs to their successors.
    pub(crate) fn dismiss(&self, leave: &AtomicBool) {
        // Under the lock, or a thread between its look and its wait would sleep through it.
        let _state = self.state.lock();
        leave.store(true, Ordering::Relaxed);
        self.ready.notify_all();
    }

    /// Admits again, for a thread that starts after a close.
    pub(crate) fn reopen(&self) {
        self.state.lock().closed = false;
    }

    /// Drops what still waits, which tells its callers that it had no effect.
    pub(crate) fn discard(&self) {
        let jobs = std::mem::take(&mut self.state.lock().jobs);
        drop(jobs);
    }
}

impl<J> std::fmt::Debug for Queue<J> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue").field("waiting", &self.len()).field("bound", &self.bound).finish_non_exhaustive()
    }
}

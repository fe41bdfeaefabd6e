//! The threads that users' services run on, apart from the one that drives QUIC.
//!
//! Each is a `current_thread` runtime of its own, and a service stays on the one it was given: a service that never yields
//! holds up only those that share its thread. Measured against one runtime with two workers, calls and casts are also
//! two and a half times and one and a third times as many: an actor handles one message at a time, so work stealing
//! has nothing to steal, and its wake-ups only cost.

use std::{
    io,
    sync::atomic::{AtomicUsize, Ordering},
};

use tokio::{
    runtime::{Builder, Handle, Runtime},
    sync::oneshot,
};

/// Threads where the configuration does not say how many: one for each service up to here. More cost switches: at eight
/// busy actors eight threads on two cores carry two thirds of the calls that two do.
pub(crate) const MAX_DEFAULT: usize = 8;

/// Threads that end with their owner.
pub(crate) struct Threads {
    threads: Vec<Thread>,
    next: AtomicUsize,
}

struct Thread {
    handle: Handle,
    /// Dropped, it ends the thread, which then drops its runtime. Nobody waits for that: a service in a loop must not
    /// keep the process.
    _stop: oneshot::Sender<()>,
}

impl Threads {
    /// Starts `count` threads called `name`.
    ///
    /// # Errors
    /// When the system gives no thread or no event queue.
    pub(crate) fn start(name: &str, count: usize) -> io::Result<Self> {
        let threads = (0..count).map(|_| Thread::start(name)).collect::<io::Result<_>>()?;
        Ok(Self { threads, next: AtomicUsize::new(0) })
    }

    /// The threads in turn; without any, the caller's own.
    pub(crate) fn next(&self) -> Handle {
        match self.threads.len() {
            0 => Handle::current(),
            count => self.threads[self.next.fetch_add(1, Ordering::Relaxed) % count].handle.clone(),
        }
    }
}

/// Where HTTP's work is done: a thread of its own, or several that share it.
pub(crate) struct HttpThreads {
    handle: Handle,
    _one: Option<Thread>,
    many: Option<Runtime>,
}

impl HttpThreads {
    /// `count` threads; with none HTTP shares the caller's. One is a runtime that steals no work, which is the quicker
    /// where there are two cores and the other one drives QUIC.
    ///
    /// # Errors
    /// When the system gives no thread or no event queue.
    pub(crate) fn start(count: usize) -> io::Result<Self> {
        const NAME: &str = "http";
        Ok(match count {
            0 => Self { handle: Handle::current(), _one: None, many: None },
            1 => {
                let one = Thread::start(NAME)?;
                Self { handle: one.handle.clone(), _one: Some(one), many: None }
            }
            count => {
                let many = Builder::new_multi_thread().worker_threads(count).thread_name(NAME).enable_all().build()?;
                Self { handle: many.handle().clone(), _one: None, many: Some(many) }
            }
        })
    }

    /// To spawn there.
    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }
}

impl Drop for HttpThreads {
    fn drop(&mut self) {
        if let Some(many) = self.many.take() {
            // Waiting for its threads would block the runtime that this one drops it on.
            many.shutdown_background();
        }
    }
}

impl Thread {
    fn start(name: &str) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().thread_name(name).enable_all().build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            // Ends when its owner drops the other side; nothing is ever sent.
            let _ = runtime.block_on(stopped);
            runtime.shutdown_background();
        })?;
        Ok(Self { handle, _stop: stop })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_loop_holds_up_only_those_that_share_its_thread_and_never_the_end() {
        let threads = Threads::start("test", 2).unwrap();
        let (started, loops) = std::sync::mpsc::channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        threads.next().spawn(async move {
            started.send(()).unwrap();
            // Never yields until the test is over.
            let _ = ended.recv();
        });
        loops.recv_timeout(Duration::from_secs(10)).unwrap();
        let (done, other) = std::sync::mpsc::channel();
        threads.next().spawn(async move { done.send(()).unwrap() });
        other.recv_timeout(Duration::from_secs(10)).expect("the other thread works on");
        drop(threads);
        drop(end);
    }

    #[test]
    fn http_has_as_many_threads_as_it_is_given() {
        for count in 1..3 {
            let threads = HttpThreads::start(count).unwrap();
            let (done, ran) = std::sync::mpsc::channel();
            threads.handle().spawn(async move { done.send(std::thread::current().name().map(str::to_owned)).unwrap() });
            assert_eq!(ran.recv_timeout(Duration::from_secs(10)).unwrap().as_deref(), Some("http"));
        }
        let runtime = Builder::new_current_thread().build().unwrap();
        runtime.block_on(async { assert_eq!(HttpThreads::start(0).unwrap().handle().id(), runtime.handle().id()) });
    }

    #[test]
    fn without_threads_of_their_own_services_run_on_the_callers() {
        let runtime = Builder::new_current_thread().build().unwrap();
        let id = runtime.handle().id();
        runtime.block_on(async { assert_eq!(Threads::start("test", 0).unwrap().next().id(), id) });
    }
}

//! Runs the requests of an HTTP/2 connection: at once where they are answered at once, and as tasks of their own else.
//!
//! Owned by the connection's task. hyper hands over a future for each request. A task for each costs an allocation, two
//! ways through the scheduler and a wake-up of the connection, and most requests have their answer when they are first
//! asked. So the connection's task asks each of them once, when hyper has read all that there is: their answers then leave
//! together, as they would from tasks. What has to wait becomes a task and is woken on its own. What is promised to a task
//! holds here too: it can be ended alone, its panic is its own, and it keeps nobody from their turn for long
//! ([`LONGEST`]). On a runtime of several threads all become tasks, for those can run beside each other.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use hyper::rt::Executor;
use parking_lot::Mutex;
use tokio::runtime::{Handle, RuntimeFlavor};

use crate::connections::Life;

/// How long the requests of one connection are asked in a row before others on the thread have their turn: what a handler may
/// hold a worker for. Those that are left become tasks.
const LONGEST: Duration = Duration::from_micros(500);
/// Requests between looks at the clock.
const LOOK_EVERY: usize = 8;
/// Most that a connection keeps room for while it has none.
const ROOM: usize = 64;

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The requests that were begun and not asked yet. As many as the protocol lets a client have open.
#[derive(Default)]
pub(super) struct Begun(Mutex<Vec<(u32, Task)>>);

impl std::fmt::Debug for Begun {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Begun({})", self.0.lock().len())
    }
}

impl Begun {
    /// Asks each once. Nothing of hyper's is locked meanwhile: it is to be called between its polls.
    pub(super) fn ask(&self, life: &Life, cx: &mut Context<'_>) {
        let mut all = std::mem::take(&mut *self.0.lock());
        if all.is_empty() {
            return;
        }
        let began = Instant::now();
        let mut in_time = true;
        for (count, (place, mut task)) in all.drain(..).enumerate() {
            if count % LOOK_EVERY == LOOK_EVERY - 1 {
                in_time = in_time && began.elapsed() < LONGEST;
            }
            // A panic's text is the panic hook's to print. What panicked is dropped, and its stream reset by that.
            let waits = !in_time || matches!(catch_unwind(AssertUnwindSafe(|| task.as_mut().poll(cx))), Ok(Poll::Pending));
            if waits {
                life.adopt(place, tokio::spawn(task).abort_handle());
            }
        }
        if all.capacity() <= ROOM {
            // Nothing has been begun meanwhile: that is done by this task's polls of hyper.
            *self.0.lock() = all;
        }
    }
}

/// Takes the futures of HTTP/2's requests.
#[derive(Clone, Debug)]
pub(super) struct Spawn {
    life: Arc<Life>,
    begun: Option<Arc<Begun>>,
}

impl Spawn {
    /// For the connection of `life`; to be made on the runtime that serves it. The other half is what asks at once, if that is done.
    pub(super) fn new(life: Arc<Life>) -> (Self, Option<Arc<Begun>>) {
        let is_alone = Handle::current().runtime_flavor() == RuntimeFlavor::CurrentThread;
        let begun = is_alone.then(Arc::<Begun>::default);
        (Self { life, begun: begun.clone() }, begun)
    }
}

impl<F> Executor<F> for Spawn
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, future: F) {
        let place = self.life.begun();
        match &self.begun {
            Some(begun) => begun.0.lock().push((place, Box::pin(future))),
            None => self.life.adopt(place, tokio::spawn(future).abort_handle()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicU32, Ordering::Relaxed},
        task::Waker,
    };

    use super::*;

    fn life() -> Arc<Life> {
        Arc::new(Life::new(1, ([192, 0, 2, 1], 1).into(), None, Instant::now()))
    }

    #[tokio::test]
    async fn what_is_answered_at_once_is_asked_once_and_what_waits_becomes_a_task() {
        let (spawn, begun) = Spawn::new(life());
        let begun = begun.expect("a runtime of one thread");
        let asked = Arc::new(AtomicU32::new(0));
        let (done, waited) = tokio::sync::oneshot::channel::<()>();
        let (go, gone) = tokio::sync::oneshot::channel::<()>();
        let count = asked.clone();
        spawn.execute(async move { _ = count.fetch_add(1, Relaxed) });
        spawn.execute(async move {
            gone.await.unwrap();
            done.send(()).unwrap();
        });
        assert_eq!(asked.load(Relaxed), 0, "nothing runs while hyper reads");
        begun.ask(&spawn.life, &mut Context::from_waker(Waker::noop()));
        assert_eq!(asked.load(Relaxed), 1);
        go.send(()).unwrap();
        waited.await.unwrap();
        begun.ask(&spawn.life, &mut Context::from_waker(Waker::noop()));
        assert_eq!(asked.load(Relaxed), 1);
    }

    #[tokio::test]
    async fn a_panic_is_one_requests_own() {
        let (spawn, begun) = Spawn::new(life());
        let asked = Arc::new(AtomicU32::new(0));
        let count = asked.clone();
        spawn.execute(async { panic!("a test's own") });
        spawn.execute(async move { _ = count.fetch_add(1, Relaxed) });
        begun.unwrap().ask(&spawn.life, &mut Context::from_waker(Waker::noop()));
        assert_eq!(asked.load(Relaxed), 1);
    }

    #[tokio::test]
    async fn who_takes_long_keeps_the_others_from_nothing_but_their_first_turn() {
        let (spawn, begun) = Spawn::new(life());
        let asked = Arc::new(AtomicU32::new(0));
        for _ in 0..3 * LOOK_EVERY {
            let count = asked.clone();
            spawn.execute(async move {
                let began = Instant::now();
                while began.elapsed() < LONGEST / 4 {
                    std::hint::spin_loop();
                }
                count.fetch_add(1, Relaxed);
            });
        }
        begun.unwrap().ask(&spawn.life, &mut Context::from_waker(Waker::noop()));
        assert_eq!(asked.load(Relaxed) as usize, LOOK_EVERY - 1, "the rest are tasks");
        while (asked.load(Relaxed) as usize) < 3 * LOOK_EVERY {
            tokio::task::yield_now().await;
        }
    }

    #[test]
    fn on_several_threads_all_are_tasks() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
        runtime.block_on(async {
            let (spawn, begun) = Spawn::new(life());
            assert!(begun.is_none());
            let (done, waited) = tokio::sync::oneshot::channel::<()>();
            spawn.execute(async move { done.send(()).unwrap() });
            waited.await.unwrap();
        });
    }
}

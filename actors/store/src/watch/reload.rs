//! From "it changed" to "it was taken over": debounce, run, retry, account.
//!
//! Each subscription has a task of its own, so a slow or hanging reload stops neither detection nor its neighbours. The reload
//! itself runs in yet another task: a panic there is a failed attempt.

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use serde::Serialize;
use tokio::{
    sync::watch,
    task::{AbortHandle, JoinHandle},
    time::{sleep, timeout},
};

use super::{Changes, Detector, Seen, Watcher, WatcherStopped};

/// How long the first run waits for the watcher's first look. After it the reload runs anyway, and again when the file is seen.
const FIRST_LOOK: Duration = Duration::from_secs(1);

/// When a change is acted upon.
#[derive(Clone, Copy, Debug)]
pub struct Debounce {
    /// Acts when nothing changed for this long; zero acts at once.
    pub quiet: Duration,
    /// Acts at the latest this long after the first change, however many follow.
    pub max_wait: Duration,
}

impl Debounce {
    /// Acts at once.
    pub const NONE: Debounce = Debounce { quiet: Duration::ZERO, max_wait: Duration::ZERO };
}

/// The wait before a failed reload runs again. It is retried until it succeeds: the last good state stays in use meanwhile.
#[derive(Clone, Copy, Debug)]
pub struct Retry {
    /// After the first failure; doubles with each.
    pub first: Duration,
    /// The longest wait. Each is drawn between half of it and all of it.
    pub longest: Duration,
}

/// How changes are taken over.
#[derive(Clone, Copy, Debug)]
pub struct Reload {
    /// When.
    pub debounce: Debounce,
    /// An attempt is given up after this long. Default 10 s.
    pub timeout: Duration,
    /// The wait after a failed attempt. Default 100 ms to 5 s.
    pub retry: Retry,
}

impl Default for Reload {
    fn default() -> Reload {
        Reload {
            debounce: Debounce::NONE,
            timeout: Duration::from_secs(10),
            retry: Retry { first: Duration::from_millis(100), longest: Duration::from_secs(5) },
        }
    }
}

/// Counters of a subscription.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ReloadStats {
    /// Reloads that succeeded.
    pub reloads: u64,
    /// Attempts that failed, panicked or took too long.
    pub failures: u64,
    /// Failures since the last success.
    pub failing: u32,
    /// Why the last attempt failed; `None` once one succeeds.
    pub last_error: Option<String>,
    /// Time spent in successful reloads.
    pub total_time: Duration,
    /// The longest of them.
    pub longest_time: Duration,
}

/// A reload that runs on changes until this is dropped.
#[derive(Debug)]
pub struct Subscription {
    task: JoinHandle<()>,
    done: watch::Receiver<u64>,
    stats: Arc<Mutex<ReloadStats>>,
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Subscription {
    /// The generation that was last taken over; 0 before the first.
    pub fn generation(&self) -> u64 {
        *self.done.borrow()
    }

    /// Waits until `generation` or a later one was taken over successfully; at once if it was. Bound it with a timeout.
    ///
    /// # Errors
    /// [`WatcherStopped`].
    pub async fn wait_for_version(&self, generation: u64) -> Result<u64, WatcherStopped> {
        self.done.clone().wait_for(|done| *done >= generation).await.map(|done| *done).map_err(|_| WatcherStopped)
    }

    /// Counters.
    pub fn stats(&self) -> ReloadStats {
        self.stats.lock().clone()
    }
}

impl Watcher {
    /// Runs `reload` now and after each change that `detector` sees, in a task on the current runtime. The first run closes the
    /// gap between loading and watching: what changes after it began runs it again.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn subscribe<F, R, E>(&self, detector: Detector, how: Reload, reload: F) -> Subscription
    where
        F: FnMut(Seen) -> R + Send + 'static,
        R: Future<Output = Result<(), E>> + Send + 'static,
        E: std::fmt::Display + Send + 'static,
    {
        let stats = Arc::new(Mutex::new(ReloadStats::default()));
        let (sender, done) = watch::channel(0);
        let runner = Runner { changes: self.changes(detector), how, reload, done: sender, stats: Arc::clone(&stats) };
        Subscription { task: tokio::spawn(runner.run()), done, stats }
    }
}

struct Runner<F> {
    changes: Changes,
    how: Reload,
    reload: F,
    done: watch::Sender<u64>,
    stats: Arc<Mutex<ReloadStats>>,
}

impl<F, R, E> Runner<F>
where
    F: FnMut(Seen) -> R + Send + 'static,
    R: Future<Output = Result<(), E>> + Send + 'static,
    E: std::fmt::Display + Send + 'static,
{
    async fn run(mut self) {
        // A file that is not there yet must not hold up the first run for ever.
        let _ = timeout(FIRST_LOOK, self.changes.wait_for_version(1)).await;
        loop {
            // Marked as seen *before* the reload reads anything: a change during the run is another one.
            let seen = *self.changes.receiver.borrow_and_update();
            if self.attempt(seen).await {
                self.done.send_replace(seen.generation);
                if self.changes.next().await.is_err() {
                    return;
                }
                self.settle().await;
            } else {
                // A change may be the cure (a bad row was corrected): it cuts the wait short, but never below the first.
                let wait = self.backoff();
                sleep(self.how.retry.first.min(wait)).await;
                let rest = wait.saturating_sub(self.how.retry.first);
                if let Ok(Err(WatcherStopped)) = timeout(rest, self.changes.next()).await {
                    return;
                }
            }
        }
    }

    /// Waits until it is quiet, `max_wait` at most.
    async fn settle(&mut self) {
        let Debounce { quiet, max_wait } = self.how.debounce;
        if quiet.is_zero() {
            return;
        }
        let all_of_it = async { while let Ok(Ok(_)) = timeout(quiet, self.changes.next()).await {} };
        // Elapsed: changes keep coming, and it is time to act on those there are.
        let _ = timeout(max_wait.max(quiet), all_of_it).await;
    }

    async fn attempt(&mut self, seen: Seen) -> bool {
        let started = Instant::now();
        let mut task = AbortOnDrop::spawn((self.reload)(seen));
        let outcome = match timeout(self.how.timeout, &mut task.handle).await {
            Ok(Ok(Ok(()))) => Ok(()),
            Ok(Ok(Err(error))) => Err(error.to_string()),
            Ok(Err(join)) if join.is_panic() => Err(format!("panicked: {}", crate::writer::panic_text(join.into_panic().as_ref()))),
            Ok(Err(_)) => Err("cancelled".into()),
            Err(_) => Err(format!("not done after {:?}", self.how.timeout)),
        };
        let took = started.elapsed();
        let mut stats = self.stats.lock();
        match outcome {
            Ok(()) => {
                stats.reloads += 1;
                stats.failing = 0;
                stats.last_error = None;
                stats.total_time += took;
                stats.longest_time = stats.longest_time.max(took);
                true
            }
            Err(error) => {
                tracing::warn!(error, attempt = stats.failing + 1, "reload failed; the last good state stays");
                stats.failures += 1;
                stats.failing = stats.failing.saturating_add(1);
                stats.last_error = Some(error);
                false
            }
        }
    }

    fn backoff(&self) -> Duration {
        let doublings = self.stats.lock().failing.saturating_sub(1).min(16);
        let Retry { first, longest } = self.how.retry;
        first.saturating_mul(1 << doublings).min(longest).mul_f64(rand::random_range(0.5..1.0))
    }
}

/// A task that does not outlive its owner.
struct AbortOnDrop<T> {
    handle: JoinHandle<T>,
    abort: AbortHandle,
}

impl<T: Send + 'static> AbortOnDrop<T> {
    fn spawn(future: impl Future<Output = T> + Send + 'static) -> AbortOnDrop<T> {
        let handle = tokio::spawn(future);
        AbortOnDrop { abort: handle.abort_handle(), handle }
    }
}

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.abort.abort();
    }
}

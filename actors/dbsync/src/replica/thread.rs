//! The thread that owns a replica's files, and the queue in front of it.
//!
//! The queue belongs to the replica and not to the thread: what waits in it is served by the thread's successor. There is one
//! thread at a time, because it holds the queue's other end.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use horos_supervision::{Backoff, Vitals, backoff::Streak};
use horos_wire::protocol::sync::{Applied, ReplicaError, Resumed, RolledBack};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use super::{Changed, Inner, Tables};
use crate::{
    apply::{Applier, ApplyError, Cut, Done, Page, Settings, Source},
    frames::FrameError,
    publisher::cut,
    source::chain,
};

/// Jobs that may wait. The service hands over one at a time, and operators few.
const QUEUE: usize = 16;
/// With nothing to do for so long, the WAL is emptied.
const REST: Duration = Duration::from_secs(1);
/// Between two attempts to open files that cannot be opened.
const REOPEN: Backoff = Backoff { base: Duration::from_millis(200), cap: Duration::from_secs(10), quiet: Duration::from_secs(60) };
/// Pieces of a body on their way to the thread.
pub(super) const PIECES: usize = 4;
/// Bytes of a piece after which no more is waited for: one wake-up of the thread for what comes with some fifty datagrams.
pub(super) const PIECE: usize = 64 << 10;

type Reply<T> = oneshot::Sender<Result<T, ReplicaError>>;

/// What the thread is asked for.
pub(super) enum Job {
    Apply {
        stream: Body,
        since: Instant,
        reply: Reply<Applied>,
    },
    Have {
        from: Option<u64>,
        reply: Reply<Page>,
    },
    RollBack {
        reply: Reply<RolledBack>,
    },
    Resume {
        reply: Reply<Resumed>,
    },
    /// Only to be woken up.
    Look,
}

/// A stream on its way to the thread.
pub(super) enum Body {
    Whole(Option<Bytes>),
    /// What is at hand, as [`Piece::Bytes`] has it, and what is to come.
    Pieces(Vec<Bytes>, mpsc::Receiver<Piece>),
}

/// What comes of a stream.
pub(super) enum Piece {
    /// As they came, the first one last.
    Bytes(Vec<Bytes>),
    /// There is no more: it was whole.
    End,
    /// There is no more, and there should be.
    Cut(String),
}

impl Source for Body {
    fn chunk(&mut self) -> Result<Option<Bytes>, Cut> {
        match self {
            Body::Whole(bytes) => Ok(bytes.take()),
            // Whoever sends them sees to it that this does not wait for ever.
            Body::Pieces(at_hand, pieces) => loop {
                if let Some(bytes) = at_hand.pop() {
                    return Ok(Some(bytes));
                }
                match pieces.blocking_recv() {
                    Some(Piece::Bytes(bytes)) => *at_hand = bytes,
                    Some(Piece::End) => return Ok(None),
                    Some(Piece::Cut(why)) => return Err(Cut(why)),
                    None => return Err(Cut("it was given up".into())),
                }
            },
        }
    }
}

/// The queue.
pub(super) struct Jobs {
    sender: SyncSender<Job>,
    receiver: Mutex<Receiver<Job>>,
}

impl Jobs {
    pub(super) fn new() -> Self {
        let (sender, receiver) = sync_channel(QUEUE);
        Self { sender, receiver: Mutex::new(receiver) }
    }

    fn push(&self, job: Job) -> Result<(), ReplicaError> {
        self.sender.try_send(job).map_err(|error| match error {
            TrySendError::Full(_) => ReplicaError::Busy,
            TrySendError::Disconnected(_) => ReplicaError::Storage("the replica has stopped".into()),
        })
    }
}

impl Inner {
    /// Hands a job to the thread; the answer comes when it is done.
    pub(super) fn submit<T>(&self, job: impl FnOnce(Reply<T>) -> Job) -> Result<oneshot::Receiver<Result<T, ReplicaError>>, ReplicaError> {
        let (reply, answer) = oneshot::channel();
        self.jobs.push(job(reply))?;
        Ok(answer)
    }

    async fn ask<T>(&self, job: impl FnOnce(Reply<T>) -> Job) -> Result<T, ReplicaError> {
        answered(self.submit(job)?.await)
    }

    pub(super) async fn have(&self, from: Option<u64>) -> Result<Page, ReplicaError> {
        self.ask(|reply| Job::Have { from, reply }).await
    }

    pub(super) async fn roll_back(&self) -> Result<RolledBack, ReplicaError> {
        self.ask(|reply| Job::RollBack { reply }).await
    }

    pub(super) async fn resume(&self) -> Result<Resumed, ReplicaError> {
        self.ask(|reply| Job::Resume { reply }).await
    }
}

/// A thread that died in the middle has rolled back what it did, and says nothing.
pub(super) fn answered<T>(answer: Result<Result<T, ReplicaError>, oneshot::error::RecvError>) -> Result<T, ReplicaError> {
    answer.unwrap_or_else(|_| Err(ReplicaError::Storage("a bug, which the log of the node names".into())))
}

/// Ends the thread with the worker.
struct Leave {
    inner: Arc<Inner>,
    leave: Arc<AtomicBool>,
}

impl Drop for Leave {
    fn drop(&mut self) {
        self.leave.store(true, Ordering::Relaxed);
        // If the queue is full the thread is not asleep.
        let _ = self.inner.jobs.push(Job::Look);
    }
}

/// One life of the worker.
pub(super) async fn run(inner: Arc<Inner>, vitals: Arc<Vitals>) {
    let leave = Arc::new(AtomicBool::new(false));
    let _leave = Leave { inner: inner.clone(), leave: leave.clone() };
    let mut streak = Streak::default();
    loop {
        let (ended, end) = oneshot::channel();
        let (of_thread, left, seen) = (inner.clone(), leave.clone(), vitals.clone());
        let name = format!("replica {}", inner.config.name);
        let begun = std::thread::Builder::new().name(name).spawn(move || {
            let end = serve(&of_thread, &left, &seen);
            let _ = ended.send(end);
        });
        if let Err(error) = begun {
            tracing::error!(%error, "no thread for a replica");
            return;
        }
        match end.await {
            // The files could not be opened: not a fault of this actor, and no reason to fail upward.
            Ok(Err(error)) => {
                inner.note(|view| view.closed = Some(cut(public(&error).into())));
                tracing::warn!(replica = %inner.config.name, error = chain(&error), "its files cannot be opened");
            }
            // It was told to leave, or panicked.
            Ok(Ok(())) | Err(_) => return,
        }
        vitals.progressed(Instant::now());
        let pause = streak.failed(Instant::now(), &REOPEN, &mut rand::rng());
        tokio::time::sleep(pause).await;
    }
}

/// What anybody may be told: no path.
fn public(error: &ApplyError) -> String {
    match error {
        ApplyError::Owned(_) => "its file is owned by another process".to_owned(),
        ApplyError::Foreign { .. } => "its file is another database".to_owned(),
        ApplyError::Sqlite { doing, source } => format!("cannot {doing}: {source}"),
        ApplyError::File { doing, source, .. } => format!("cannot {doing}: {source}"),
        other => other.to_string(),
    }
}

fn serve(inner: &Arc<Inner>, leave: &AtomicBool, vitals: &Vitals) -> Result<(), ApplyError> {
    // Whoever was here before lets go of it last.
    let jobs = inner.jobs.receiver.lock();
    let config = &inner.config;
    let (mut applier, damage) = Applier::open(Settings {
        name: config.name.to_string(),
        path: config.path.clone(),
        readable_by: config.readable_by,
        max_bytes: config.max_bytes,
        check: config.check,
    })?;
    if let Some(damage) = &damage {
        tracing::error!(replica = %config.name, damage, "a snapshot will be asked for");
    }
    inner.learn(&applier);
    inner.note(|view| {
        view.closed = None;
        view.damage = damage.map(|_| "its file was damaged and is put aside; a new snapshot is asked for".into());
    });
    inner.news.notify_one();
    while !leave.load(Ordering::Relaxed) {
        match jobs.recv_timeout(REST) {
            Ok(job) => {
                inner.work(&mut applier, job);
                vitals.progressed(Instant::now());
            }
            Err(RecvTimeoutError::Timeout) => applier.rest(),
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    applier.close();
    Ok(())
}

impl Inner {
    fn work(&self, applier: &mut Applier, job: Job) {
        match job {
            Job::Apply { stream, since, reply } => {
                let outcome = applier.apply(Box::new(stream), &self.progress);
                self.learn(applier);
                let answer = match outcome {
                    Ok(done) => {
                        self.applied(&done, since);
                        Ok(Applied { position: done.position, mismatches: done.mismatches })
                    }
                    Err(error) => Err(self.refused(&error)),
                };
                let _ = reply.send(answer);
            }
            Job::Have { from, reply } => {
                let never = AtomicBool::new(false);
                let outcome = applier.offer(from, &never).map_err(|error| self.refused(&error));
                let _ = reply.send(outcome);
            }
            Job::RollBack { reply } => {
                let outcome = applier.roll_back();
                self.learn(applier);
                let answer = outcome.map_err(|error| self.refused(&error)).map(|(position, withdrawn_rows)| {
                    tracing::warn!(replica = %self.config.name, %position, withdrawn_rows, "rolled back");
                    self.changes.tell(Changed { position: None, tables: Tables::All });
                    RolledBack { position, withdrawn_rows }
                });
                self.news.notify_one();
                let _ = reply.send(answer);
            }
            Job::Resume { reply } => {
                let outcome = applier.resume().map_err(|error| self.refused(&error));
                self.learn(applier);
                self.news.notify_one();
                let _ = reply.send(outcome.map(|()| Resumed {}));
            }
            Job::Look => {}
        }
    }

    /// Makes what the files hold now known to everybody here.
    fn learn(&self, applier: &Applier) {
        let state = applier.state().map(|state| Arc::new(state.clone()));
        let at = state.as_ref().and_then(|state| state.current());
        {
            let mut view = self.view.lock();
            view.opened = true;
            view.state = state;
            view.parts = applier.has_parts();
        }
        self.waiters.moved(at);
    }

    fn applied(&self, done: &Done, since: Instant) {
        let counter = if done.snapshot { &self.snapshots } else { &self.deltas };
        counter.fetch_add(1, Ordering::Relaxed);
        self.note(|view| {
            view.last_error = None;
            view.damage = None;
            // It was all that there was when it set out.
            view.fresh = Some(since);
        });
        if done.snapshot {
            tracing::info!(replica = %self.config.name, position = %done.position, rows = done.rows, "a snapshot is in place");
        }
        let tables = match &done.tables {
            None => Tables::All,
            Some(tables) if tables.is_empty() => return,
            Some(tables) => Tables::These(tables.as_slice().into()),
        };
        self.changes.tell(Changed { position: Some(done.position), tables });
    }

    /// As the source is told; the chain of causes stays here.
    fn refused(&self, error: &ApplyError) -> ReplicaError {
        let text = |error: &dyn std::error::Error| cut(chain(error).into());
        let answer = match error {
            ApplyError::Mismatch { have } => return ReplicaError::Mismatch { have: *have },
            ApplyError::Stream(stream) => match stream {
                FrameError::Sum
                | FrameError::Digest
                | FrameError::Truncated
                | FrameError::Packed
                | FrameError::Trailing
                | FrameError::Length(_)
                | FrameError::Unknown(_)
                | FrameError::Unpack(_) => ReplicaError::Corrupt(text(stream)),
                FrameError::Magic
                | FrameError::Malformed(_)
                | FrameError::Text
                | FrameError::Key
                | FrameError::TooMany
                | FrameError::Order => ReplicaError::Malformed(text(stream)),
            },
            ApplyError::Cut(_) => ReplicaError::Corrupt(text(error)),
            ApplyError::Nonsense(_) => ReplicaError::Malformed(text(error)),
            ApplyError::TooLarge => ReplicaError::TooLarge,
            ApplyError::Backwards => ReplicaError::Backwards,
            ApplyError::Pinned => ReplicaError::Pinned,
            ApplyError::Nothing(why) => ReplicaError::Nothing((*why).into()),
            ApplyError::Foreign { .. } | ApplyError::Owned(_) | ApplyError::Sqlite { .. } | ApplyError::File { .. } => {
                ReplicaError::Storage(cut(public(error).into()))
            }
        };
        tracing::warn!(replica = %self.config.name, error = chain(error), "not applied");
        self.failed(error);
        answer
    }
}

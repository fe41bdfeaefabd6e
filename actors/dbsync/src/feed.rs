//! A subscriber's feed: brings it from where it is to where the publication is, over and over.
//!
//! One worker a subscriber, started by [`crate::publisher`] when it subscribes and taken away when its lease is over; it may end at any
//! await. One stream is on its way at a time, and what is committed meanwhile is in the next. What is promised:
//!
//! - *Only the subscriber's own word says where it is.* After anything that is not a plain answer it is asked, so a push that failed
//!   loses nothing and repeats nothing.
//! - *Nobody waits for anybody else.* A feed has its own connection, its own place in the spool and its own backoff; what is shared is
//!   a bounded number of builds at once, and none of them waits for a network.
//! - *What it has is compared with what it should have*, chunk by chunk ([`sweep`]), and healed where it differs.

mod send;
mod sweep;

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use horos_store::open::{Database, OpenError};
use horos_supervision::{Backoff, ChildSpec, Ref, Vitals, backoff::Streak, bulk::BulkError, worker};
use horos_wire::{
    CallError, NoEffect,
    protocol::sync::{Replica, ReplicaAsk, ReplicaError, ReplicaState, replica_name},
};
use tokio::sync::watch;

use crate::{
    build::{BuildError, KeyRange, Scratch},
    capture::{CaptureError, Position},
    publisher::{Published, Subscriber, cut, feed_name},
    source::{Loaded, View, captured, chain},
    spool::Stop,
};
use sweep::Sweeper;

/// Between tries at a subscriber that cannot be reached or fails.
const RETRY: Backoff = Backoff { base: Duration::from_millis(50), cap: Duration::from_secs(2), quiet: Duration::from_secs(30) };
/// Between tries at what an operator must change first: a rolled back replica, a full disk, a row that is too large.
const REFUSED: Duration = Duration::from_secs(10);
/// Longest wait for the source to follow a schema that a build found changed; then the build is tried again.
const FOLLOW: Duration = Duration::from_millis(500);
/// Streams of changes that a subscriber finds senseless before it is sent a snapshot instead.
const SENSELESS: u32 = 2;

/// Why a subscriber does not have what it should.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    #[error("it cannot be asked where it is: {0}")]
    Ask(#[source] CallError<ReplicaError>),
    #[error("it did not take what it was sent: {0}")]
    Apply(#[source] CallError<ReplicaError>),
    #[error("it takes none of what it is sent")]
    Stalled,
    #[error("the way to it broke: {0}")]
    Bulk(#[source] BulkError),
    #[error("there is no way to it: {0}")]
    NoWay(#[source] NoEffect),
    #[error("it is rolled back until an operator resumes it")]
    Pinned,
    #[error("it is still busy with what it was sent before")]
    Busy,
    #[error("what it needs cannot be read: {0}")]
    Build(#[source] BuildError),
    #[error("the database cannot be opened: {0}")]
    Open(#[source] OpenError),
    #[error(transparent)]
    Spool(Stop),
    #[error("the spool cannot be read: {0}")]
    SpoolRead(#[source] std::io::Error),
}

impl Fault {
    /// Whether trying again soon is of no use.
    fn is_lasting(&self) -> bool {
        match self {
            Self::Pinned | Self::Build(BuildError::RowTooLarge { .. }) => true,
            Self::Ask(CallError::Failed(error)) | Self::Apply(CallError::Failed(error)) => match error {
                ReplicaError::NotMySource | ReplicaError::TooLarge | ReplicaError::Backwards | ReplicaError::Pinned => true,
                ReplicaError::Mismatch { .. }
                | ReplicaError::Corrupt(_)
                | ReplicaError::Busy
                | ReplicaError::Storage(_)
                | ReplicaError::Malformed(_)
                | ReplicaError::Nothing(_) => false,
            },
            _ => false,
        }
    }
}

/// The feed of `subscriber` as a child of the publication's feeds.
pub(crate) fn child(published: Arc<Published>, subscriber: Arc<Subscriber>) -> ChildSpec {
    worker(&feed_name(&subscriber.node), move |vitals| Feed::new(published.clone(), subscriber.clone()).run(vitals))
}

/// What is known of where the subscriber is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// It must be asked.
    Unknown,
    /// There, or nowhere yet.
    At(Option<Position>),
}

/// One life of a feed.
struct Feed {
    published: Arc<Published>,
    subscriber: Arc<Subscriber>,
    replica: Ref<Replica>,
    view: watch::Receiver<View>,
    place: Place,
    /// The tables that it has.
    known: BTreeMap<String, [u8; 16]>,
    /// Whether it has chunks that a snapshot need not send.
    resume: bool,
    /// How often in a row it found a stream senseless.
    senseless: u32,
    /// What it has wrong.
    repairs: Vec<KeyRange>,
    /// A comparison that is over but for these repairs; by order, if it has a number.
    unverified: Option<Option<u64>>,
    sweeper: Sweeper,
    /// The feed's own connection, and which opening of the file it belongs to.
    connection: Option<(u64, Database)>,
    /// What the stream before left.
    scratch: Scratch,
}

/// Why something is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Due {
    /// A sweep of so many chunks goes with it; 0 for none.
    sweep: usize,
}

impl Feed {
    fn new(published: Arc<Published>, subscriber: Arc<Subscriber>) -> Self {
        // The publication's own name was checked when it was made, so this one is an address, too.
        let name = replica_name(&published.publication.name).map_or_else(|_| String::new(), |name| name.to_string());
        let replica = published.context.at(&format!("{name}@{}", subscriber.node));
        let chunks = published.guessed_rows() / sweep::ROWS_A_CHUNK;
        let sweeper = Sweeper::new(published.publication.verify_every, chunks, Instant::now());
        let view = published.source.view();
        {
            let mut progress = subscriber.progress.lock();
            // Of a life before, which may have ended anywhere.
            progress.sending = false;
            progress.snapshot = None;
        }
        Self {
            replica,
            view,
            place: Place::Unknown,
            known: BTreeMap::new(),
            resume: false,
            senseless: 0,
            repairs: Vec::new(),
            unverified: None,
            sweeper,
            connection: None,
            scratch: Scratch::default(),
            published,
            subscriber,
        }
    }

    async fn run(mut self, vitals: Arc<Vitals>) {
        let mut streak = Streak::default();
        loop {
            let outcome = self.turn().await;
            vitals.progressed(Instant::now());
            let Err(fault) = outcome else {
                streak = Streak::default();
                continue;
            };
            self.place = Place::Unknown;
            let pause = streak.failed(Instant::now(), &RETRY, &mut rand::rng());
            // The first try again follows at once; whoever fails at once again and again must not be asked without a pause.
            let pause = if fault.is_lasting() { REFUSED } else { pause.max(RETRY.base / 5) };
            self.tell(&fault);
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                // A subscriber that says something new is there again, or was resumed.
                () = self.subscriber.told.notified(), if pause > RETRY.base => {}
            }
        }
    }

    fn tell(&self, fault: &Fault) {
        let text = cut(chain(fault).into());
        let mut progress = self.subscriber.progress.lock();
        progress.sending = false;
        progress.snapshot = None;
        if progress.last_error.as_ref() != Some(&text) {
            tracing::info!(publication = %self.published.publication.name, node = %self.subscriber.node, error = %text, "not fed");
            progress.last_error = Some(text);
        }
    }

    /// Until one thing was done, or failed.
    async fn turn(&mut self) -> Result<(), Fault> {
        self.learn().await?;
        let Some((loaded, opened, due)) = self.due().await else { return Ok(()) };
        let outcome = self.send(&loaded, opened, due).await;
        self.subscriber.progress.lock().sending = false;
        match outcome {
            Ok(()) => {
                self.healed();
                Ok(())
            }
            Err(Fault::Build(BuildError::Gap(_))) => {
                let (publication, node) = (&self.published.publication.name, &self.subscriber.node);
                tracing::info!(%publication, %node, "the log does not lead on from where it is: it gets a snapshot");
                self.place = Place::At(None);
                Ok(())
            }
            // The file is ahead of what the source has seen of it.
            Err(Fault::Build(BuildError::SchemaChanged | BuildError::Plan { .. } | BuildError::Capture(CaptureError::Detached))) => {
                self.published.source.nudge();
                // The last look may have followed already; then there is nothing to wait for but the next one.
                let _ = tokio::time::timeout(FOLLOW, self.view.changed()).await;
                self.view.mark_changed();
                Ok(())
            }
            Err(fault @ Fault::Apply(CallError::Failed(ReplicaError::Backwards))) => {
                let had = self.subscriber.progress.lock().position;
                self.published.source.doubt();
                let renewed = self.view.wait_for(|view| view.head.map(|head| head.epoch) != had.map(|had| had.epoch));
                match tokio::time::timeout(FOLLOW, renewed).await {
                    Ok(Ok(_)) => {}
                    Ok(Err(_)) | Err(_) => return Err(fault),
                }
                self.view.mark_changed();
                self.place = Place::Unknown;
                Ok(())
            }
            Err(fault) => Err(fault),
        }
    }

    /// Finds out where the subscriber is, unless that is known.
    async fn learn(&mut self) -> Result<(), Fault> {
        if let Some(said) = self.subscriber.take_said() {
            // What it says when it subscribes saves a question; later on something else than was known is reason to ask.
            if self.place == Place::Unknown && self.subscriber.progress.lock().position.is_none() {
                self.known = said.known;
                self.resume = said.resume;
                self.be_at(said.have);
                return Ok(());
            }
            self.place = Place::Unknown;
        }
        if self.place != Place::Unknown {
            return Ok(());
        }
        let status = self.replica.call(ReplicaAsk {}, self.published.limits.ask).await.map_err(Fault::Ask)?;
        match status.state {
            ReplicaState::Pinned => return Err(Fault::Pinned),
            ReplicaState::Receiving { .. } => return Err(Fault::Busy),
            ReplicaState::Broken | ReplicaState::Empty | ReplicaState::Live => {}
        }
        self.known = status.tables.iter().map(|table| (table.name.as_ref().to_owned(), table.mark.to_bytes())).collect();
        self.resume = status.resume;
        let whole = status.state != ReplicaState::Live || self.wants_snapshot();
        self.be_at(status.position.filter(|_| !whole).map(captured));
        Ok(())
    }

    fn be_at(&mut self, position: Option<Position>) {
        self.place = Place::At(position);
        self.published.source.needs(&self.published.publication.name, &self.subscriber.node, position);
        self.subscriber.progress.lock().position = position;
    }

    /// Waits until there is something to send, and says with which filter; none when where the subscriber is has to be learnt anew.
    async fn due(&mut self) -> Option<(Arc<Loaded>, u64, Due)> {
        loop {
            if self.subscriber.has_said() {
                return None;
            }
            let now = Instant::now();
            let found = {
                let view = self.view.borrow_and_update();
                let loaded = view.loaded.get(&self.published.publication.name).and_then(|loaded| loaded.as_ref().ok());
                view.head.zip(loaded.cloned()).map(|(head, loaded)| (head, loaded, view.opened, view.hints))
            };
            let mut until = now + Duration::from_secs(3600);
            if let Some((head, loaded, opened, hints)) = found {
                let at = match self.place {
                    Place::Unknown => return None,
                    Place::At(at) => at,
                };
                let behind = at != Some(head) || self.known != loaded.known;
                {
                    let mut progress = self.subscriber.progress.lock();
                    if !behind {
                        progress.behind_since = None;
                        progress.last_error = None;
                    } else if progress.behind_since.is_none() {
                        progress.behind_since = Some(now);
                    }
                }
                self.sweeper.hinted(hints, now);
                // One that only waits for its last repairs is not begun again.
                let run = match self.unverified {
                    Some(_) => None,
                    None => self.subscriber.progress.lock().walk.as_ref().filter(|walk| !walk.done).map(|walk| walk.run),
                };
                let sweep = if at.is_none() { 0 } else { self.sweeper.due(run, behind, now) };
                if behind || sweep > 0 || !self.repairs.is_empty() {
                    return Some((loaded, opened, Due { sweep }));
                }
                until = self.sweeper.next().max(now + Duration::from_millis(1));
            }
            tokio::select! {
                // The source outlives the feed: its sender is in the publication.
                _ = self.view.changed() => {}
                () = self.subscriber.told.notified() => {}
                () = tokio::time::sleep_until(until.into()) => {}
            }
        }
    }
}

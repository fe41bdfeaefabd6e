//! One stream: built on a blocking thread, and on its way while it still grows if it is large.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use horos_store::open::{Database, open};
use horos_supervision::Ref;
use horos_wire::{
    CallError,
    protocol::sync::{Applied, Apply, HaveAsk, MAX_HAVE, Replica, ReplicaError, Stream},
};
use tokio::sync::oneshot;

use super::{Due, Fault, Feed, Place, SENSELESS, sweep::ROWS_A_CHUNK};
use crate::{
    build::{self, BuildError, Built, Job, KeyRange, Request, Scratch, Sweep, build_with},
    capture::{CaptureError, Position},
    publisher::{PublisherLimits, Subscriber},
    source::{Loaded, captured},
    spool::{Finished, Sink, SpoolReader, Stop},
};

/// After the last byte: what a subscriber may take to make indexes, check and put a snapshot in its place, besides a second for every
/// [`PLACED`] bytes.
const PLACE: Duration = Duration::from_secs(120);
/// Compressed bytes that a slow disk puts in place in a second.
const PLACED: u64 = 1 << 20;
/// Longest that a subscriber may take to say which chunks it has: it reads all that it has for that.
const HAVE: Duration = Duration::from_secs(300);
/// How long the answer may lag behind a stream that broke, to say why.
const LAST_WORD: Duration = Duration::from_secs(5);

/// What a build gives back: the feed's connection, and the stream or why there is none.
type Made = (Option<(u64, Database)>, Scratch, Result<(Built, Finished), BuildFault>);

/// Why nothing was built.
#[derive(Debug)]
enum BuildFault {
    Open(horos_store::open::OpenError),
    Build(BuildError),
    Sink(Stop),
}

/// Ends the build when nobody waits for it any more.
struct Cancels(Arc<Job>);

impl Drop for Cancels {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

impl Feed {
    /// Sends what the subscriber does not have, in one stream.
    pub(super) async fn send(&mut self, loaded: &Arc<Loaded>, opened: u64, due: Due) -> Result<(), Fault> {
        let Place::At(base) = self.place else { return Ok(()) };
        let published = self.published.clone();
        let asking = match base {
            // The list is held until the build is over, so there are only so many of them.
            None if self.resume => published.asking.clone().acquire_owned().await.ok(),
            _ => None,
        };
        let have = if asking.is_some() { have(&self.replica, &published.limits).await? } else { HashSet::new() };
        let places = if base.is_none() { &published.snapshots } else { &published.builders };
        let place = places.clone().acquire_owned().await.ok();
        let job = Arc::new(Job::default());
        let _cancels = Cancels(job.clone());
        {
            let mut progress = self.subscriber.progress.lock();
            progress.sending = true;
            if base.is_none() {
                progress.snapshot = Some(job.clone());
                progress.total_rows = progress.total_rows.max(published.guessed_rows());
            }
        }
        let started = Instant::now();
        let (begun, spooled) = oneshot::channel();
        let sink = Sink::new(published.spools.clone(), begun);
        let sweep = (due.sweep > 0).then(|| Sweep { from: self.sweeper.cursor().cloned(), chunks: due.sweep });
        let repairs = self.repairs.clone();
        let work = Work {
            options: published.options(),
            publication: published.publication.name.clone(),
            connection: self.connection.take().filter(|(of, _)| *of == opened),
            scratch: std::mem::take(&mut self.scratch),
            opened,
            loaded: loaded.clone(),
            base,
            known: self.known.clone(),
            have,
            repairs,
            sweep,
            job,
        };
        let made = tokio::task::spawn_blocking(move || {
            let made = work.run(sink);
            // The places are for what reads the database, not for what waits for a network.
            drop((place, asking));
            made
        });
        let (built, applied) = match spooled.await {
            Err(_) => {
                let (built, finished) = self.made(made).await?;
                let Finished::Inline(bytes) = finished else { return Err(Fault::Spool(Stop::Cancelled)) };
                let size = bytes.len() as u64;
                let apply = Apply { stream: Stream::Inline(bytes), bytes: Some(size) };
                let applied = self.replica.call(apply, published.limits.apply).await;
                if applied.is_ok() {
                    self.subscriber.sent(size);
                }
                (built, applied)
            }
            Ok(reader) => {
                let applied = push(&self.replica, &published.limits, &self.subscriber, reader).await;
                // What stopped the build is the better reason for what followed from it.
                let (built, _) = self.made(made).await?;
                (built, applied?)
            }
        };
        let applied = applied.map_err(|error| self.refused(error, base))?;
        self.took(base, loaded, &built, &applied, started);
        Ok(())
    }

    /// What the build came to; the connection is the feed's again.
    async fn made(&mut self, made: tokio::task::JoinHandle<Made>) -> Result<(Built, Finished), Fault> {
        let (connection, scratch, outcome) = match made.await {
            Ok(made) => made,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => return Err(Fault::Spool(Stop::Cancelled)),
            },
        };
        self.connection = connection;
        self.scratch = scratch;
        outcome.map_err(|fault| match fault {
            BuildFault::Open(error) => Fault::Open(error),
            BuildFault::Build(error) => Fault::Build(error),
            BuildFault::Sink(stop) => Fault::Spool(stop),
        })
    }

    fn refused(&mut self, error: CallError<ReplicaError>, base: Option<Position>) -> Fault {
        // What it finds senseless as a change, it may take as a whole.
        if base.is_some() && matches!(error, CallError::Failed(ReplicaError::Malformed(_) | ReplicaError::Corrupt(_))) {
            self.senseless += 1;
        }
        Fault::Apply(error)
    }

    /// The subscriber has it.
    fn took(&mut self, base: Option<Position>, loaded: &Loaded, built: &Built, applied: &Applied, started: Instant) {
        let now = Instant::now();
        self.senseless = 0;
        self.known.clone_from(&loaded.known);
        self.resume = false;
        let position = captured(applied.position);
        // It has what it was sent, or says something that must be looked into.
        if position == built.to {
            self.be_at(Some(position))
        } else {
            self.place = Place::Unknown
        }
        let repaired = std::mem::take(&mut self.repairs);
        let mut progress = self.subscriber.progress.lock();
        progress.snapshot = None;
        progress.last_error = None;
        match base {
            None => {
                progress.snapshots += 1;
                progress.total_rows = built.rows + built.spared;
            }
            Some(_) => progress.deltas += 1,
        }
        if !repaired.is_empty() {
            progress.repaired_rows += built.rows;
            if let Some(walk) = progress.walk.as_mut().filter(|walk| !walk.done) {
                walk.repaired += built.rows;
            }
        }
        if progress.behind_since.is_some() {
            // Whatever it does not have now was committed after this was built.
            progress.behind_since = Some(started);
        }
        let Some(swept) = &built.swept else { return };
        let guessed = progress.total_rows / ROWS_A_CHUNK;
        let wrong: Vec<KeyRange> =
            applied.mismatches.iter().filter_map(|id| swept.ranges.get(usize::try_from(*id).ok()?)).cloned().collect();
        let chunks = swept.ranges.len() as u64;
        let batch = self.sweeper.swept(chunks, swept.next.clone(), now.saturating_duration_since(started), now);
        if let Some(walk) = progress.walk.as_mut().filter(|walk| batch.run == Some(walk.run) && !walk.done) {
            walk.chunks += chunks;
            walk.rows += swept.rows;
            walk.mismatches += wrong.len() as u64;
            walk.total = self.sweeper.total().unwrap_or_default().max(guessed).max(walk.chunks);
            if batch.last {
                walk.total = walk.chunks;
            }
        }
        let mut tables: Vec<&str> = wrong.iter().map(|range| &*range.table).collect();
        tables.dedup();
        for table in tables {
            let ranges = wrong.iter().filter(|range| range.table == table).count();
            let (publication, node) = (&self.published.publication.name, &self.subscriber.node);
            tracing::warn!(%publication, %node, table, ranges, "the replica differs from what is published: it is healed");
        }
        if batch.last && wrong.is_empty() {
            verified(&mut progress, batch.run);
        }
        self.unverified = (batch.last && !wrong.is_empty()).then_some(batch.run);
        self.repairs = wrong;
    }

    /// The last batch of a comparison had something to heal, and that is done now.
    pub(super) fn healed(&mut self) {
        if self.repairs.is_empty()
            && let Some(run) = self.unverified.take()
        {
            verified(&mut self.subscriber.progress.lock(), run);
        }
    }

    /// Whether changes are of no use to the subscriber any more.
    pub(super) fn wants_snapshot(&self) -> bool {
        self.senseless >= SENSELESS
    }
}

/// Sends a spool as it grows, and waits for the answer.
async fn push(
    replica: &Ref<Replica>,
    limits: &PublisherLimits,
    subscriber: &Subscriber,
    mut spool: SpoolReader,
) -> Result<Result<Applied, CallError<ReplicaError>>, Fault> {
    let (bulk, mut writer) = replica.bulk(limits.ask).await.map_err(Fault::NoWay)?;
    let apply = replica.call(Apply { stream: Stream::Body(bulk), bytes: None }, limits.stream);
    let pump = async {
        let mut size = 0;
        while let Some(chunk) = spool.chunk().await.map_err(Fault::SpoolRead)? {
            let bytes = chunk.len() as u64;
            tokio::time::timeout(limits.stall, writer.write(chunk)).await.map_err(|_| Fault::Stalled)?.map_err(Fault::Bulk)?;
            subscriber.sent(bytes);
            size += bytes;
        }
        tokio::time::timeout(limits.stall, writer.finish()).await.map_err(|_| Fault::Stalled)?.map_err(Fault::Bulk)?;
        Ok(size)
    };
    tokio::pin!(apply);
    let pumped = {
        tokio::pin!(pump);
        tokio::select! {
            // Refused, or out of reach: the rest is not wanted.
            applied = &mut apply => return Ok(applied),
            pumped = &mut pump => pumped,
        }
    };
    let patience = match &pumped {
        Ok(size) => PLACE + Duration::from_secs(size / PLACED),
        Err(_) => LAST_WORD,
    };
    match (tokio::time::timeout(patience, apply).await, pumped) {
        // The subscriber's word for why it stopped the stream says more than that it did.
        (Ok(Err(CallError::Failed(error))), _) => Ok(Err(CallError::Failed(error))),
        (_, Err(fault)) => Err(fault),
        (Ok(applied), Ok(_)) => Ok(applied),
        (Err(_), Ok(_)) => Err(Fault::Stalled),
    }
}

/// The chunks that the subscriber has.
async fn have(replica: &Ref<Replica>, limits: &PublisherLimits) -> Result<HashSet<[u8; 16]>, Fault> {
    let mut have = HashSet::new();
    let mut from = None;
    let until = Instant::now() + HAVE;
    loop {
        let page = replica.call(HaveAsk { from }, until.min(Instant::now() + limits.apply)).await.map_err(Fault::Ask)?;
        let room = MAX_HAVE - have.len();
        have.extend(page.chunks.iter().take(room).map(|chunk| chunk.to_bytes()));
        // A page must lead on, or somebody who lies would keep this going.
        let on = page.next.filter(|next| from.is_none_or(|from| *next > from));
        if on.is_none() || page.chunks.is_empty() || have.len() >= MAX_HAVE {
            return Ok(have);
        }
        from = on;
    }
}

/// Everything was compared and is as it should be.
fn verified(progress: &mut crate::publisher::Progress, run: Option<u64>) {
    progress.verified_at = Some(now_ms());
    if let Some(walk) = progress.walk.as_mut().filter(|walk| run == Some(walk.run)) {
        walk.done = true;
    }
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// What a build needs, on its way to a blocking thread.
struct Work {
    options: horos_store::open::Options,
    publication: Box<str>,
    connection: Option<(u64, Database)>,
    scratch: Scratch,
    opened: u64,
    loaded: Arc<Loaded>,
    base: Option<Position>,
    known: std::collections::BTreeMap<String, [u8; 16]>,
    have: HashSet<[u8; 16]>,
    repairs: Vec<KeyRange>,
    sweep: Option<Sweep>,
    job: Arc<Job>,
}

impl Work {
    fn run(mut self, mut sink: Sink) -> Made {
        let connection = match self.connection.map_or_else(|| open(&self.options), |(_, database)| Ok(database)) {
            Ok(connection) => connection,
            Err(error) => return (None, self.scratch, Err(BuildFault::Open(error))),
        };
        let request = Request {
            publication: &self.publication,
            base: self.base,
            known: &self.known,
            have: &self.have,
            repairs: &self.repairs,
            sweep: self.sweep,
            schema: Some(self.loaded.cookie),
            made_at: now_ms(),
        };
        let mut stopped = None;
        let built = build_with(&mut self.scratch, &connection, &self.loaded.published, &request, &self.job, &mut |part| {
            sink.push(part).map_err(|stop| {
                stopped = Some(stop);
                build::Stop
            })
        });
        let outcome = match (built, stopped) {
            (Ok(built), _) => Ok((built, sink.finish())),
            (Err(BuildError::Stopped), Some(stop)) => Err(BuildFault::Sink(stop)),
            (Err(error), _) => Err(BuildFault::Build(error)),
        };
        let keep = !matches!(&outcome, Err(BuildFault::Build(BuildError::Store(_) | BuildError::Capture(CaptureError::Store(_)))));
        (keep.then_some((self.opened, connection)), self.scratch, outcome)
    }
}

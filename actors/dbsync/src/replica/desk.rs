//! The service of a replica. Its handlers hand over to the replica's thread and wait.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use horos_supervision::{Context, Handle, Service, bulk::BulkReader};
use horos_wire::{
    policy::sees_errors,
    protocol::sync::{
        Applied, Apply, ChunkMark, Have, HaveAsk, MAX_INLINE, Replica as Protocol, ReplicaAsk, ReplicaError, ReplicaStatus, Resume,
        Resumed, Rollback, RolledBack, Stream,
    },
};
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

use super::{
    Inner,
    thread::{Body, Job, PIECE, PIECES, Piece, answered},
};

/// Until a body that was announced has come.
const CLAIM: Duration = Duration::from_secs(10);

/// The service `horos.replica.NAME`.
pub(super) struct Desk {
    replica: Arc<Inner>,
}

impl Desk {
    pub(super) fn new(replica: Arc<Inner>) -> Self {
        Self { replica }
    }

    /// What it holds, and what it holds in reserve, is its source's business and nobody else's.
    fn admit(&self, cx: &Context) -> Result<(), ReplicaError> {
        let node = cx.caller().node();
        if self.replica.is_source(node) {
            return Ok(());
        }
        tracing::warn!(replica = %self.replica.config.name, caller = %cx.caller(), "refused: not its source");
        Err(ReplicaError::NotMySource)
    }

    /// Passes a body on to the thread as it comes, and waits for what it says.
    async fn pump(&self, mut body: BulkReader, announced: Option<u64>) -> Result<Applied, ReplicaError> {
        let (pieces, stream) = mpsc::channel(PIECES);
        let since = Instant::now();
        let answer = self.replica.submit(|reply| Job::Apply { stream: Body::Pieces(Vec::new(), stream), since, reply })?;
        tokio::pin!(answer);
        let mut received = 0_u64;
        loop {
            let chunk = tokio::select! {
                biased;
                // Refused: the rest is not wanted, and dropping the body stops its sender.
                outcome = &mut answer => return answered(outcome),
                chunk = timeout(self.replica.config.stall, body.chunk()) => chunk,
            };
            let piece = match chunk {
                Err(_) => Piece::Cut("nothing came for too long".into()),
                Ok(Err(error)) => Piece::Cut(error.to_string()),
                Ok(Ok(Some(bytes))) => {
                    let (size, bytes) = with_what_is_here(bytes, &mut body);
                    received = received.saturating_add(size as u64);
                    match announced {
                        Some(size) if received > size => Piece::Cut(format!("it is longer than the {size} bytes announced")),
                        _ => Piece::Bytes(bytes),
                    }
                }
                Ok(Ok(None)) => match announced {
                    Some(size) if received != size => Piece::Cut(format!("{size} bytes were announced, and {received} came")),
                    _ => Piece::End,
                },
            };
            let last = !matches!(piece, Piece::Bytes(_));
            // It takes no more once it has refused; its answer says why.
            let taken = tokio::select! {
                taken = pieces.send(piece) => taken.is_ok(),
                outcome = &mut answer => return answered(outcome),
            };
            if last || !taken {
                drop(pieces);
                return answered(answer.await);
            }
        }
    }
}

/// `first`, and what has come with it: a datagram has a kilobyte, and each is not worth waking the thread up. The last one comes first.
fn with_what_is_here(first: Bytes, body: &mut BulkReader) -> (usize, Vec<Bytes>) {
    let mut size = first.len();
    let mut pieces = vec![first];
    // An end, or why there is none, is said again when it is asked for.
    while size < PIECE
        && let Some(bytes) = body.at_hand()
    {
        size += bytes.len();
        pieces.push(bytes);
    }
    pieces.reverse();
    (size, pieces)
}

impl Service for Desk {
    type Protocol = Protocol;
}

impl Handle<Apply> for Desk {
    async fn handle(&mut self, apply: Apply, cx: &Context) -> Result<Applied, ReplicaError> {
        self.admit(cx)?;
        match apply.stream {
            Stream::Inline(bytes) => {
                if bytes.len() > MAX_INLINE || apply.bytes.is_some_and(|size| size != bytes.len() as u64) {
                    return Err(ReplicaError::Malformed("the stream is not as long as announced, or too long for a message".into()));
                }
                let (stream, since) = (Body::Whole(Some(Bytes::from(bytes))), Instant::now());
                let answer: oneshot::Receiver<_> = self.replica.submit(|reply| Job::Apply { stream, since, reply })?;
                answered(answer.await)
            }
            Stream::Body(bulk) => {
                let body = cx.claim(bulk, CLAIM).await.map_err(|error| ReplicaError::Corrupt(error.to_string().into()))?;
                self.pump(body, apply.bytes).await
            }
        }
    }
}

impl Handle<ReplicaAsk> for Desk {
    async fn handle(&mut self, _: ReplicaAsk, cx: &Context) -> Result<ReplicaStatus, ReplicaError> {
        let caller = cx.caller().node();
        if caller.role.is_node() && !self.replica.view.lock().opened {
            // A source that were told of no position would send everything.
            return Err(ReplicaError::Busy);
        }
        let mut status = self.replica.status();
        if !sees_errors(caller.role) && caller != cx.node() {
            status.last_error = None;
        }
        Ok(status)
    }
}

impl Handle<HaveAsk> for Desk {
    async fn handle(&mut self, ask: HaveAsk, cx: &Context) -> Result<Have, ReplicaError> {
        self.admit(cx)?;
        let page = self.replica.have(ask.from).await?;
        Ok(Have { chunks: page.marks.into_iter().map(ChunkMark::from_bytes).collect(), next: page.next })
    }
}

impl Handle<Rollback> for Desk {
    async fn handle(&mut self, _: Rollback, cx: &Context) -> Result<RolledBack, ReplicaError> {
        tracing::warn!(replica = %self.replica.config.name, caller = %cx.caller(), "a roll-back is ordered");
        self.replica.roll_back().await
    }
}

impl Handle<Resume> for Desk {
    async fn handle(&mut self, _: Resume, cx: &Context) -> Result<Resumed, ReplicaError> {
        tracing::warn!(replica = %self.replica.config.name, caller = %cx.caller(), "changes are to be taken again");
        self.replica.resume().await
    }
}

//! Bulk bodies: sent beside a message, claimed by its receiver.
//!
//! ```no_run
//! # use std::time::Duration;
//! # use horos_supervision::Context;
//! # use horos_wire::{Bulk, Bytes, protocol};
//! # use schemars::JsonSchema;
//! # use serde::{Deserialize, Serialize};
//! # #[derive(Debug, Serialize, Deserialize, JsonSchema)] pub struct Put { name: String, body: Bulk }
//! # protocol! { pub Files = "files" v1 { 1 put: Put => u64; } }
//! # async fn example(cx: &Context) -> Result<(), Box<dyn std::error::Error>> {
//! let files = cx.at::<Files>("files@bo").pinned(Duration::from_secs(1)).await?;
//! let (body, mut writer) = files.bulk(Duration::from_secs(1)).await?;
//! let put = files.call(Put { name: "a.csv".into(), body }, Duration::from_secs(60));
//! let write = async {
//!     writer.write(Bytes::from_static(b"sku,quantity\n")).await?;
//!     writer.finish().await
//! };
//! let (size, written) = futures_util::join!(put, write);
//! # Ok(())
//! # }
//! ```

use std::{
    collections::HashMap,
    fmt,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use horos_wire::{Bulk, NoEffect, NodeName};
use parking_lot::Mutex;
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout_at,
};

/// Bodies from one node that have come and are not yet claimed; one more, and its oldest is stopped.
pub const MAX_PARKED: usize = 64;
/// Claims of this node's actors whose body has not yet come.
pub const MAX_CLAIMS: usize = 256;
/// For a body and its claim to meet; then either is given up.
pub const PARKED_FOR: Duration = Duration::from_secs(30);
/// Chunks on their way between two actors of one node.
const LOCAL_CHUNKS: usize = 4;

/// Why a bulk body ended before its end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BulkError {
    /// The sender gave up, or its node is gone: what was read is not the whole.
    #[error("the body ended before its end: {0}")]
    Broken(Box<str>),
    /// The reader wants no more.
    #[error("the reader has stopped")]
    Stopped,
}

/// The reading end of a bulk body. Dropping it stops the sender.
pub struct BulkReader(Box<dyn BulkSource>);

/// Where a [`BulkReader`] reads from.
pub trait BulkSource: Send {
    /// The next bytes if they have come already: what spares most chunks a future of their own.
    fn at_hand(&mut self) -> Option<Bytes> {
        None
    }
    /// The next bytes; `None` at the end.
    fn chunk(&mut self) -> BoxFuture<'_, Result<Option<Bytes>, BulkError>>;
}

impl BulkReader {
    /// Reads from `source`.
    pub fn new(source: impl BulkSource + 'static) -> Self {
        Self(Box::new(source))
    }

    /// The next bytes if they are here already; `None` says nothing of whether there will be more.
    pub fn at_hand(&mut self) -> Option<Bytes> {
        self.0.at_hand()
    }

    /// The next bytes, as many as have come; `None` when the body has ended whole.
    ///
    /// # Errors
    /// [`BulkError::Broken`] when it will not.
    ///
    /// # Cancel safety
    /// No bytes are lost by dropping the future.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, BulkError> {
        match self.0.at_hand() {
            Some(bytes) => Ok(Some(bytes)),
            None => self.0.chunk().await,
        }
    }
}

impl fmt::Debug for BulkReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BulkReader")
    }
}

/// The writing end of a bulk body. Dropping it unfinished tells the reader that the body is not whole.
pub struct BulkWriter(Box<dyn BulkSink>);

/// Where a [`BulkWriter`] writes to.
pub trait BulkSink: Send {
    /// Writes all of `bytes`, waiting for room.
    fn write(&mut self, bytes: Bytes) -> BoxFuture<'_, Result<(), BulkError>>;
    /// Ends the body.
    fn finish(&mut self) -> BoxFuture<'_, Result<(), BulkError>>;
}

impl BulkWriter {
    /// Writes to `sink`.
    pub fn new(sink: impl BulkSink + 'static) -> Self {
        Self(Box::new(sink))
    }

    /// Writes all of `bytes`, as quickly as the reader reads.
    ///
    /// # Errors
    /// [`BulkError`] when the reader has stopped or is out of reach.
    pub async fn write(&mut self, bytes: Bytes) -> Result<(), BulkError> {
        self.0.write(bytes).await
    }

    /// Ends the body: the reader knows that it is whole.
    ///
    /// # Errors
    /// [`BulkError`] when the reader has stopped or is out of reach.
    pub async fn finish(mut self) -> Result<(), BulkError> {
        self.0.finish().await
    }
}

impl fmt::Debug for BulkWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BulkWriter")
    }
}

/// Bodies and claims that wait for each other.
#[derive(Default)]
pub(crate) struct Parking(Mutex<HashMap<Bulk, Parked>>);

struct Parked {
    since: Instant,
    what: What,
}

enum What {
    /// With the node it came from, so that one that sends bodies for nothing crowds out only its own.
    Body(BulkReader, NodeName),
    Claim(oneshot::Sender<BulkReader>),
}

impl Parking {
    /// A body has come. One that nobody claims is stopped after [`PARKED_FOR`], or for its sender's [`MAX_PARKED`]th after it.
    pub(crate) fn arrived(&self, bulk: Bulk, from: NodeName, body: BulkReader) {
        let mut parked = self.0.lock();
        match parked.remove(&bulk) {
            Some(Parked { what: What::Claim(claim), .. }) => {
                drop(parked);
                // Whoever claimed it may have given up; dropping the body stops its sender.
                let _ = claim.send(body);
            }
            // A second body of the same name is nobody's.
            Some(known) => drop(parked.insert(bulk, known)),
            None => {
                make_room(&mut parked, MAX_PARKED, |what| matches!(what, What::Body(_, known) if *known == from));
                parked.insert(bulk, Parked { since: Instant::now(), what: What::Body(body, from) });
            }
        }
    }

    pub(crate) async fn claim(&self, bulk: Bulk, until: Instant) -> Result<BulkReader, NoEffect> {
        let gone = || NoEffect::Malformed(format!("no body {bulk} came, or it was claimed before").into());
        let waiting = {
            let mut parked = self.0.lock();
            match parked.remove(&bulk) {
                Some(Parked { what: What::Body(body, _), .. }) => return Ok(body),
                Some(Parked { what: What::Claim(_), .. }) => return Err(gone()),
                None => {
                    make_room(&mut parked, MAX_CLAIMS, |what| matches!(what, What::Claim(_)));
                    let (claim, waiting) = oneshot::channel();
                    parked.insert(bulk, Parked { since: Instant::now(), what: What::Claim(claim) });
                    waiting
                }
            }
        };
        match timeout_at(until.min(Instant::now() + PARKED_FOR).into(), waiting).await {
            Ok(Ok(body)) => Ok(body),
            Ok(Err(_)) | Err(_) => {
                self.0.lock().remove(&bulk);
                Err(gone())
            }
        }
    }
}

/// Drops what has waited too long, and the oldest of `kind` while there are `most` of it.
fn make_room(parked: &mut HashMap<Bulk, Parked>, most: usize, kind: impl Fn(&What) -> bool) {
    parked.retain(|_, parked| parked.since.elapsed() < PARKED_FOR);
    while parked.values().filter(|parked| kind(&parked.what)).count() >= most {
        let of_kind = parked.iter().filter(|(_, parked)| kind(&parked.what));
        let Some(oldest) = of_kind.min_by_key(|(_, parked)| parked.since).map(|(bulk, _)| *bulk) else { return };
        parked.remove(&oldest);
    }
}

/// A body between two actors of one node.
pub(crate) fn local() -> (BulkReader, BulkWriter) {
    let (sender, receiver) = mpsc::channel(LOCAL_CHUNKS);
    (BulkReader::new(LocalSource { receiver, ended: false }), BulkWriter::new(LocalSink { sender }))
}

struct LocalSource {
    receiver: mpsc::Receiver<Option<Bytes>>,
    ended: bool,
}

struct LocalSink {
    sender: mpsc::Sender<Option<Bytes>>,
}

impl BulkSource for LocalSource {
    fn chunk(&mut self) -> BoxFuture<'_, Result<Option<Bytes>, BulkError>> {
        Box::pin(async move {
            if self.ended {
                return Ok(None);
            }
            match self.receiver.recv().await {
                Some(Some(bytes)) => Ok(Some(bytes)),
                Some(None) => {
                    self.ended = true;
                    Ok(None)
                }
                None => Err(BulkError::Broken("its sender gave up".into())),
            }
        })
    }
}

impl BulkSink for LocalSink {
    fn write(&mut self, bytes: Bytes) -> BoxFuture<'_, Result<(), BulkError>> {
        Box::pin(async move { self.sender.send(Some(bytes)).await.map_err(|_| BulkError::Stopped) })
    }
    fn finish(&mut self) -> BoxFuture<'_, Result<(), BulkError>> {
        Box::pin(async move { self.sender.send(None).await.map_err(|_| BulkError::Stopped) })
    }
}

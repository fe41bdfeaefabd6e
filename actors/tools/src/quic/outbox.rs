//! What is said to a peer: counted until it is taken, written many lines at a time, and given up when nobody reads.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use quinn::{SendStream, WriteError};
use tokio::{sync::mpsc, time::timeout};

use super::{
    bounds::{Held, Meter},
    close::Ended,
    table::Place,
};

/// Lines that wait for a stream's writer; who has another one waits itself. Their bytes are counted as well.
pub(super) const QUEUE: usize = 256;
/// Lines written at a time.
const BATCH: usize = 64;

/// A line on its way out.
#[derive(Debug)]
pub(super) struct Out {
    line: Bytes,
    _unread: (Held, Held),
    /// The request that it answers is in hand until this is written.
    _place: Option<Arc<Place>>,
}

/// Counts what a session has said and its peer has not taken.
#[derive(Clone, Debug)]
pub(super) struct Unread {
    pub(super) session: Arc<Meter>,
    pub(super) all: Arc<Meter>,
}

impl Unread {
    /// # Errors
    /// The session is to end: its peer reads too little.
    pub(super) fn out(&self, line: Vec<u8>, place: Option<Arc<Place>>) -> Result<Out, Ended> {
        const UNREAD: Ended = Ended::limit("answers are not read");
        let unread = (self.session.hold_anyway(line.len()), self.all.hold_anyway(line.len()));
        let greedy = self.session.held() > self.session.most() / 16;
        if self.session.is_over() || (self.all.is_over() && greedy) {
            return Err(UNREAD);
        }
        Ok(Out { line: line.into(), _unread: unread, _place: place })
    }
}

/// Why a line was not written.
#[derive(Debug)]
pub(crate) enum Failed {
    /// The peer took nothing for too long.
    Stalled,
    /// The peer stopped the stream.
    Stopped,
    /// The connection is gone.
    Gone,
}

impl From<WriteError> for Failed {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Stopped(_) => Self::Stopped,
            WriteError::ConnectionLost(_) | WriteError::ClosedStream | WriteError::ZeroRttRejected => Self::Gone,
        }
    }
}

/// Writes them all; the peer has to take something every `stalled`.
pub(crate) async fn write(stream: &mut SendStream, mut chunks: &mut [Bytes], stalled: Duration) -> Result<(), Failed> {
    while !chunks.is_empty() {
        let written = timeout(stalled, stream.write_chunks(chunks)).await.map_err(|_| Failed::Stalled)??;
        chunks = &mut chunks[written.chunks..];
    }
    Ok(())
}

/// The first stream's writer.
#[derive(Debug)]
pub(super) struct Writer {
    pub(super) stream: SendStream,
    stalled: Duration,
    /// What is being written, and what is left of it from `at` on: kept here, so that whoever is interrupted in the middle of a line goes
    /// on in the middle of it.
    batch: Vec<Out>,
    chunks: Vec<Bytes>,
    at: usize,
}

impl Writer {
    pub(super) fn new(stream: SendStream, stalled: Duration) -> Self {
        Self { stream, stalled, batch: Vec::new(), chunks: Vec::new(), at: 0 }
    }

    /// Writes what comes, until there is no more to come.
    ///
    /// # Cancel safety
    /// Nothing is lost, and nothing written twice.
    pub(super) async fn run(&mut self, lines: &mut mpsc::Receiver<Out>) -> Result<(), Failed> {
        loop {
            self.flush().await?;
            if lines.recv_many(&mut self.batch, BATCH).await == 0 {
                return Ok(());
            }
            self.chunks.extend(self.batch.iter().map(|out| out.line.clone()));
        }
    }

    async fn flush(&mut self) -> Result<(), Failed> {
        while self.at < self.chunks.len() {
            let write = self.stream.write_chunks(&mut self.chunks[self.at..]);
            self.at += timeout(self.stalled, write).await.map_err(|_| Failed::Stalled)??.chunks;
        }
        self.at = 0;
        self.chunks.clear();
        self.batch.clear();
        Ok(())
    }
}

/// Writes one.
pub(super) async fn write_one(stream: &mut SendStream, out: &Out, stalled: Duration) -> Result<(), Failed> {
    write(stream, &mut [out.line.clone()], stalled).await
}

/// Ends the stream, and waits until the peer has all of it, or has gone, or `within` has passed.
pub(super) async fn finish(stream: &mut SendStream, within: Duration) {
    if stream.finish().is_ok() {
        let _ = timeout(within, stream.stopped()).await;
    }
}

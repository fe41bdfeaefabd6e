//! Lines off a stream: bounded while they are read, and with a time in which one that has begun must end.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use quinn::RecvStream;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout_at},
};

use super::{MAGIC, Reset};

/// What any line may have without asking: nearly all calls.
pub(crate) const SMALL: usize = 64 * 1024;
/// Taken off the stream at a time.
const CHUNK: usize = 64 * 1024;

/// Turns for messages beyond [`SMALL`]: the session's, then all sessions'.
#[derive(Clone, Debug)]
pub(crate) struct Turns {
    pub(crate) session: Arc<Semaphore>,
    pub(crate) all: Arc<Semaphore>,
    /// How long one is waited for. What waits holds up the connection's window, so streams wait less than the first does.
    pub(crate) patience: Duration,
}

/// Why there is no line.
#[derive(Debug)]
pub(crate) enum LineError {
    /// It is longer than it may be.
    TooLarge,
    /// It began and did not end in time.
    Stalled,
    /// Too many large ones are being read.
    Busy,
    /// The stream ended in the middle of it.
    Truncated,
    /// The peer reset the stream, or the connection is gone.
    Gone,
}

/// Reads lines.
#[derive(Debug)]
pub(crate) struct Lines {
    stream: RecvStream,
    /// Came, and not looked at yet.
    rest: Bytes,
    /// The beginning of a line.
    partial: Vec<u8>,
    most: usize,
    within: Duration,
    turns: Option<Turns>,
    turn: Option<(OwnedSemaphorePermit, OwnedSemaphorePermit)>,
}

impl Lines {
    /// Without turns nothing beyond [`SMALL`] is read: a stranger's first line.
    pub(crate) fn new(stream: RecvStream, within: Duration) -> Self {
        Self { stream, rest: Bytes::new(), partial: Vec::new(), most: SMALL, within, turns: None, turn: None }
    }

    /// From now on lines may have `most` bytes.
    pub(crate) fn allow(&mut self, most: usize, turns: Turns) {
        self.most = most;
        self.turns = Some(turns);
    }

    /// Reads [`MAGIC`]; whatever else comes is given back.
    pub(crate) async fn magic(&mut self) -> Result<Result<(), Vec<u8>>, LineError> {
        let mut read = Vec::with_capacity(MAGIC.len());
        while read.len() < MAGIC.len() {
            if self.rest.is_empty() && !self.fill(None).await? {
                return Err(LineError::Truncated);
            }
            let taken = self.rest.split_to(self.rest.len().min(MAGIC.len() - read.len()));
            read.extend_from_slice(&taken);
        }
        Ok(if read == MAGIC { Ok(()) } else { Err(read) })
    }

    /// The next line that is not blank, without its end; none at the end of the stream. Waits for its beginning as long as it takes.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, LineError> {
        let mut until = None;
        loop {
            match self.rest.iter().position(|byte| *byte == b'\n') {
                Some(end) => {
                    let mut line = self.rest.split_to(end + 1);
                    line.truncate(end);
                    if self.partial.len() + line.len() > self.most {
                        return Err(LineError::TooLarge);
                    }
                    if !self.partial.is_empty() {
                        self.grow(line.len(), until).await?;
                        self.partial.extend_from_slice(&line);
                        line = std::mem::take(&mut self.partial).into();
                    }
                    // Whoever has the line now has it counted elsewhere.
                    self.turn = None;
                    let line = trimmed(line);
                    if !line.is_empty() {
                        return Ok(Some(line));
                    }
                    until = None;
                }
                None => {
                    let rest = std::mem::take(&mut self.rest);
                    if self.partial.len() + rest.len() > self.most {
                        return Err(LineError::TooLarge);
                    }
                    if !rest.is_empty() {
                        until.get_or_insert_with(|| Instant::now() + self.within);
                        self.grow(rest.len(), until).await?;
                        self.partial.extend_from_slice(&rest);
                    }
                    if !self.fill(until).await? {
                        // A line without its end at the end of the stream is one all the same, as for the Go system's decoder.
                        let line = trimmed(std::mem::take(&mut self.partial).into());
                        self.turn = None;
                        return Ok(Some(line).filter(|line| !line.is_empty()));
                    }
                }
            }
        }
    }

    /// Has a turn before the line grows beyond [`SMALL`].
    async fn grow(&mut self, by: usize, until: Option<Instant>) -> Result<(), LineError> {
        if self.partial.len() + by <= SMALL || self.turn.is_some() {
            return Ok(());
        }
        let Some(turns) = &self.turns else { return Err(LineError::TooLarge) };
        let patience = Instant::now() + turns.patience;
        let until = until.map_or(patience, |until| until.min(patience));
        let turn = async {
            let session = turns.session.clone().acquire_owned().await.ok()?;
            Some((session, turns.all.clone().acquire_owned().await.ok()?))
        };
        self.turn = timeout_at(until, turn).await.map_err(|_| LineError::Busy)?;
        Ok(())
    }

    /// Whether there is more.
    async fn fill(&mut self, until: Option<Instant>) -> Result<bool, LineError> {
        let read = self.stream.read_chunk(CHUNK, true);
        let chunk = match until {
            Some(until) => timeout_at(until, read).await.map_err(|_| LineError::Stalled)?,
            None => read.await,
        };
        match chunk.map_err(|_| LineError::Gone)? {
            Some(chunk) => {
                self.rest = chunk.bytes;
                Ok(true)
            }
            None => Ok(false),
        }
    }

    /// Waits for the end of a stream that has nothing more to say. Whether it ended in good order; whatever else comes is not read.
    pub(crate) async fn end(&mut self) -> bool {
        if !self.rest.iter().all(u8::is_ascii_whitespace) {
            self.stop(Reset::Confused);
            return true;
        }
        self.rest.clear();
        loop {
            match self.stream.read_chunk(CHUNK, true).await {
                Ok(None) => return true,
                Ok(Some(chunk)) if chunk.bytes.iter().all(u8::is_ascii_whitespace) => {}
                Ok(Some(_)) => {
                    self.stop(Reset::Confused);
                    return true;
                }
                Err(_) => return false,
            }
        }
    }

    /// Reads no more.
    pub(crate) fn stop(&mut self, why: Reset) {
        // It fails for a stream that has ended.
        let _ = self.stream.stop(why.code());
    }
}

/// Without `\r` at the end and a byte order mark at the beginning (RFC 8259 §8.1), as rmcp and the Go system have it.
fn trimmed(mut line: Bytes) -> Bytes {
    if line.ends_with(b"\r") {
        line.truncate(line.len() - 1);
    }
    if line.starts_with(b"\xEF\xBB\xBF") {
        drop(line.split_to(3));
    }
    line
}

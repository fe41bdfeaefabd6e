//! What is here already of a snapshot that has yet to be sent: the rows of one that was cut off, and those that are read.
//!
//! They are cut into chunks as on the BO, whose marks are offered; of a chunk that both have only the digest is sent, and the rows
//! are taken from here. Nothing here is trusted: what is taken over is hashed again.

use std::{ops::ControlFlow, sync::atomic::AtomicBool};

use horos_wire::protocol::sync::{HAVE_PAGE, MAX_HAVE};
use rusqlite::Connection;

use super::{
    Applier, ApplyError, files,
    live::{Live, connect},
    nonsense,
    shape::Shape,
    state,
};
use crate::chunk::{ReadError, walk};

/// Most bytes of keys that are remembered to find the chunks by: with [`MAX_HAVE`] marks, 26 MB in all.
const MAX_KEYS: usize = 16 << 20;
/// Page cache for a file that is only read through once, in KiB.
const CACHE_KIB: i64 = 2_000;

/// A page of marks: the first halves of digests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Page {
    /// The marks.
    pub(crate) marks: Vec<[u8; 16]>,
    /// Where the next page begins; none when there is no more.
    pub(crate) next: Option<u64>,
}

/// Which file a chunk is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Partial,
    Live,
}

/// A table's chunks.
struct Span {
    place: Place,
    shape: Shape,
    /// The first of them.
    first: u32,
}

/// The chunks that were offered.
pub(super) struct Have {
    /// Sorted, each with its chunk.
    marks: Vec<([u8; 16], u32)>,
    /// The keys behind which the chunks begin, one after the other; of a table's first chunk none.
    keys: Vec<u8>,
    /// Where each chunk's key ends.
    ends: Vec<u32>,
    spans: Vec<Span>,
    partial: Option<Connection>,
}

impl Applier {
    /// The chunks that are here, page by page. The first page looks at all rows, at a few hundred MB a second.
    ///
    /// # Errors
    /// [`ApplyError`] when they cannot be read.
    pub(crate) fn offer(&mut self, from: Option<u64>, cancelled: &AtomicBool) -> Result<Page, ApplyError> {
        // Nothing changes without that this is forgotten, so whoever gave up waiting finds it when he asks again.
        if self.have.is_none() || files::exists(&self.paths.incoming)? {
            self.have = None;
            self.have = Some(self.look_through(cancelled)?);
        }
        let Some(have) = &self.have else { return nonsense("no chunks") };
        let start = usize::try_from(from.unwrap_or(0)).unwrap_or(usize::MAX).min(have.marks.len());
        let end = have.marks.len().min(start + HAVE_PAGE);
        let next = (end < have.marks.len()).then_some(end as u64);
        Ok(Page { marks: have.marks[start..end].iter().map(|(mark, _)| *mark).collect(), next })
    }

    fn look_through(&mut self, cancelled: &AtomicBool) -> Result<Have, ApplyError> {
        self.retire_incoming()?;
        let mut have = Have { marks: Vec::new(), keys: Vec::new(), ends: Vec::new(), spans: Vec::new(), partial: None };
        if files::exists(&self.paths.partial)?
            && let Err(error) = have.look_at_partial(self, cancelled)
        {
            // It was never synced: after a power cut it may be anything. What was gathered of it must go with it.
            tracing::warn!(error = &error as &dyn std::error::Error, "what was received of a snapshot cannot be gone on from");
            have = Have { marks: Vec::new(), keys: Vec::new(), ends: Vec::new(), spans: Vec::new(), partial: None };
            files::remove(&self.paths.partial)?;
        }
        if let Some(live) = &self.live {
            for known in &live.state.tables {
                have.scan(&live.connection, Place::Live, &known.shape, cancelled)?;
            }
        }
        have.marks.sort_unstable();
        have.marks.dedup_by_key(|(mark, _)| *mark);
        Ok(have)
    }

    /// Makes a snapshot that was cut off the partial one, unless there is a larger one.
    pub(super) fn retire_incoming(&mut self) -> Result<(), ApplyError> {
        let (incoming, partial) = (&self.paths.incoming, &self.paths.partial);
        if !files::exists(incoming)? {
            return Ok(());
        }
        self.have = None;
        // To open it is to undo what a crash left half done.
        let sound = connect(incoming, CACHE_KIB).and_then(|file| {
            let state = state::read(&file)?;
            let _ = file.close();
            Ok(state.is_some_and(|state| state.publication == self.settings.name))
        });
        if matches!(sound, Ok(true)) && files::length(incoming) > files::length(partial) {
            files::remove(partial)?;
            files::rename(incoming, partial)
        } else {
            files::remove(incoming)
        }
    }
}

impl Have {
    fn look_at_partial(&mut self, applier: &Applier, cancelled: &AtomicBool) -> Result<(), ApplyError> {
        let file = connect(&applier.paths.partial, CACHE_KIB)?;
        let Some(state) = state::read(&file)? else { return nonsense("it is no replica") };
        for known in &state.tables {
            self.scan(&file, Place::Partial, &known.shape, cancelled)?;
        }
        self.partial = Some(file);
        Ok(())
    }

    fn scan(&mut self, file: &Connection, place: Place, shape: &Shape, cancelled: &AtomicBool) -> Result<(), ApplyError> {
        let first = self.ends.len() as u32;
        self.spans.push(Span { place, shape: shape.clone(), first });
        let mut last: Vec<u8> = Vec::new();
        walk::<ApplyError>(file, &shape.ordered, (None, None), cancelled, |chunk| {
            if self.ends.len() >= MAX_HAVE || self.keys.len() + last.len() > MAX_KEYS {
                return Ok(ControlFlow::Break(()));
            }
            let mut mark = [0; 16];
            mark.copy_from_slice(&chunk.digest()[..16]);
            self.marks.push((mark, self.ends.len() as u32));
            self.keys.extend_from_slice(&last);
            self.ends.push(self.keys.len() as u32);
            last.clear();
            last.extend_from_slice(chunk.key);
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(())
    }

    /// Gives `take` the rows of the chunk with this digest.
    pub(super) fn fetch(
        &self,
        live: Option<&Live>,
        digest: &[u8; 32],
        rows: u32,
        take: impl FnOnce(&[u8]) -> Result<(), ApplyError>,
    ) -> Result<(), ApplyError> {
        let found = self.marks.binary_search_by(|(mark, _)| mark[..].cmp(&digest[..16])).ok();
        let Some(chunk) = found.map(|at| self.marks[at].1) else { return nonsense("a chunk that was not offered") };
        let span = &self.spans[self.spans.partition_point(|span| span.first <= chunk) - 1];
        let file = match span.place {
            Place::Partial => self.partial.as_ref(),
            Place::Live => live.map(|live| &live.connection),
        };
        let Some(file) = file else { return nonsense("a chunk that was not offered") };
        let begin = if chunk == 0 { 0 } else { self.ends[chunk as usize - 1] as usize };
        let after = &self.keys[begin..self.ends[chunk as usize] as usize];
        let after = (chunk != span.first).then_some(after);
        let mut take = Some(take);
        let never = AtomicBool::new(false);
        walk::<ApplyError>(file, &span.shape.ordered, (after, None), &never, |found| {
            if found.rows != rows || found.digest() != *digest {
                // Changed since, or by the disk.
                return Err(ApplyError::Cut("a chunk is here no more".into()));
            }
            if let Some(take) = take.take() {
                take(found.bytes())?;
            }
            Ok(ControlFlow::Break(()))
        })?;
        match take {
            None => Ok(()),
            Some(_) => Err(ApplyError::Cut("a chunk is here no more".into())),
        }
    }
}

impl From<ReadError> for ApplyError {
    fn from(error: ReadError) -> ApplyError {
        match error {
            ReadError::Sqlite(error) => ApplyError::Sqlite { doing: "read rows", source: error.into() },
            ReadError::Key(error) => error.into(),
            ReadError::Cancelled => ApplyError::Cut("the node stops".into()),
            other @ ReadError::TooLarge { .. } => ApplyError::Nonsense(other.to_string()),
        }
    }
}

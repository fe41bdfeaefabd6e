//! Streams on their way through a file: what is built quickly and taken slowly.
//!
//! A build reads in one transaction, and a transaction that is held open keeps SQLite's log from being reset; so a build never waits
//! for its subscriber. What is larger than a message is written to a file and read from there while it still grows. The file has no
//! name from the moment it was made: nobody else opens it, and it is gone with its last handle, a crash of the node included. All
//! spools of a source together are bounded ([`Spools`]); who finds no room fails and comes back later.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
};

use bytes::Bytes;
use horos_wire::protocol::sync::MAX_INLINE;
use tokio::sync::{oneshot, watch};

/// Room for all spools of a source beside twice the size of its database, in bytes.
const FLOOR: u64 = 64 << 20;
/// Bytes read at a time: what a stream of QUIC has in flight.
const BLOCK: usize = 256 * 1024;
/// How the files begin while they have a name, for the instant between being made and losing it.
const PREFIX: &str = "spool-";

/// Why a stream cannot be written on. The builder stops at once.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Stop {
    /// Nobody wants it any more.
    #[error("cancelled")]
    Cancelled,
    /// All spools together are as large as they may be.
    #[error("the spools are full: {0} bytes are on their way")]
    Full(u64),
    /// The file cannot be written.
    #[error("the spool cannot be written: {0}")]
    Io(#[from] io::Error),
}

/// The spools of a source.
#[derive(Debug)]
pub(crate) struct Spools {
    directory: PathBuf,
    database: PathBuf,
    most: Option<u64>,
    used: AtomicU64,
}

impl Spools {
    /// Spools in `directory`, of `most` bytes in all or else twice the size of `database` and 64 MiB.
    pub(crate) fn new(directory: PathBuf, database: PathBuf, most: Option<u64>) -> Self {
        Self { directory, database, most, used: AtomicU64::new(0) }
    }

    /// Bytes that are on their way.
    pub(crate) fn used(&self) -> u64 {
        self.used.load(SeqCst)
    }

    /// Removes what a crash has left between making a file and taking its name away.
    pub(crate) fn sweep(&self) {
        let Ok(entries) = fs::read_dir(&self.directory) else { return };
        for entry in entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX)) {
            let _ = fs::remove_file(entry.path());
        }
    }

    fn limit(&self) -> u64 {
        let size = |path: &std::path::Path| fs::metadata(path).map_or(0, |of| of.len());
        let mut log = self.database.as_os_str().to_owned();
        log.push("-wal");
        self.most.unwrap_or_else(|| 2 * (size(&self.database) + size(log.as_ref())) + FLOOR)
    }

    fn make(&self) -> io::Result<(File, File)> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.directory)?;
        let path = self.directory.join(format!("{PREFIX}{:032x}", rand::random::<u128>()));
        let writer = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        let reader = File::open(&path);
        fs::remove_file(&path)?;
        Ok((writer, reader?))
    }
}

/// Room that a spool takes, given back when it is gone.
#[derive(Debug)]
struct Room {
    spools: Arc<Spools>,
    taken: AtomicU64,
}

impl Drop for Room {
    fn drop(&mut self) {
        self.spools.used.fetch_sub(self.taken.load(SeqCst), SeqCst);
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Grown {
    bytes: u64,
    whole: bool,
}

/// Where a builder writes its stream, on a blocking thread.
#[derive(Debug)]
pub(crate) struct Sink {
    spools: Arc<Spools>,
    inline: Vec<u8>,
    spooled: Option<Spooled>,
    /// Told when the stream turns out to be too large for a message.
    begun: Option<oneshot::Sender<SpoolReader>>,
    limit: u64,
}

#[derive(Debug)]
struct Spooled {
    file: File,
    room: Arc<Room>,
    grown: watch::Sender<Grown>,
}

impl Sink {
    /// A sink that gives the other end of a spool to `begun`, if it comes to one; dropped there, it stops the build.
    pub(crate) fn new(spools: Arc<Spools>, begun: oneshot::Sender<SpoolReader>) -> Self {
        let limit = spools.limit();
        Self { spools, inline: Vec::new(), spooled: None, begun: Some(begun), limit }
    }

    /// Takes the next part of the stream.
    ///
    /// # Errors
    /// [`Stop`]: the stream is of no use, and what was written of it goes.
    pub(crate) fn push(&mut self, part: &[u8]) -> Result<(), Stop> {
        if self.spooled.is_none() && self.inline.len() + part.len() <= MAX_INLINE {
            self.inline.extend_from_slice(part);
            return Ok(());
        }
        if self.spooled.is_none() {
            let (writer, reader) = self.spools.make()?;
            let room = Arc::new(Room { spools: self.spools.clone(), taken: AtomicU64::new(0) });
            let grown = watch::Sender::new(Grown::default());
            let reader = SpoolReader { file: Arc::new(reader), _room: room.clone(), grown: grown.subscribe(), read: 0 };
            self.spooled = Some(Spooled { file: writer, room, grown });
            let inline = std::mem::take(&mut self.inline);
            self.write(&inline)?;
            let told = self.begun.take().map(|begun| begun.send(reader));
            if !matches!(told, Some(Ok(()))) {
                return Err(Stop::Cancelled);
            }
        }
        self.write(part)
    }

    fn write(&mut self, part: &[u8]) -> Result<(), Stop> {
        let Some(spooled) = &mut self.spooled else { return Ok(()) };
        if spooled.grown.is_closed() {
            return Err(Stop::Cancelled);
        }
        let size = part.len() as u64;
        let used = self.spools.used.fetch_add(size, SeqCst) + size;
        spooled.room.taken.fetch_add(size, SeqCst);
        if used > self.limit {
            return Err(Stop::Full(used - size));
        }
        spooled.file.write_all(part)?;
        spooled.grown.send_modify(|grown| grown.bytes += size);
        Ok(())
    }

    /// The stream is whole. What there is of it here: all, unless it was spooled.
    pub(crate) fn finish(self) -> Finished {
        match &self.spooled {
            None => Finished::Inline(self.inline),
            Some(spooled) => {
                spooled.grown.send_modify(|grown| grown.whole = true);
                Finished::Spooled
            }
        }
    }
}

/// How a stream came to its end.
#[derive(Debug)]
pub(crate) enum Finished {
    /// Small enough for a message.
    Inline(Vec<u8>),
    /// In the spool.
    Spooled,
}

/// The other end of a spool.
#[derive(Debug)]
pub(crate) struct SpoolReader {
    file: Arc<File>,
    _room: Arc<Room>,
    grown: watch::Receiver<Grown>,
    read: u64,
}

impl SpoolReader {
    /// The next bytes, waiting for them; none at the end of a stream that is whole.
    ///
    /// # Errors
    /// The file's, or that its builder gave up.
    pub(crate) async fn chunk(&mut self) -> io::Result<Option<Bytes>> {
        let read = self.read;
        let grown = self.grown.wait_for(|grown| grown.bytes > read || grown.whole).await;
        let grown = *grown.map_err(|_| io::Error::other("the build was given up"))?;
        let left = usize::try_from(grown.bytes - read).unwrap_or(usize::MAX).min(BLOCK);
        if left == 0 {
            return Ok(None);
        }
        let file = self.file.clone();
        let block = tokio::task::spawn_blocking(move || {
            let mut block = vec![0; left];
            file.read_exact_at(&mut block, read).map(|()| block)
        });
        let block = block.await.map_err(io::Error::other)??;
        self.read += block.len() as u64;
        Ok(Some(block.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spools(most: Option<u64>) -> (tempfile::TempDir, Arc<Spools>) {
        let directory = tempfile::tempdir().unwrap();
        let spools = Spools::new(directory.path().join("spool"), directory.path().join("a.db"), most);
        (directory, Arc::new(spools))
    }

    #[tokio::test]
    async fn a_small_stream_stays_in_memory() {
        let (_directory, spools) = spools(None);
        let (begun, mut told) = oneshot::channel();
        let mut sink = Sink::new(spools.clone(), begun);
        sink.push(b"one").unwrap();
        sink.push(&vec![7; MAX_INLINE - 3]).unwrap();
        let Finished::Inline(bytes) = sink.finish() else { panic!("spooled") };
        assert_eq!((bytes.len(), spools.used()), (MAX_INLINE, 0));
        assert!(told.try_recv().is_err());
    }

    #[tokio::test]
    async fn a_large_one_is_read_while_it_grows_and_leaves_nothing() {
        let (_directory, spools) = spools(None);
        let (begun, told) = oneshot::channel();
        let mut sink = Sink::new(spools.clone(), begun);
        let part: Vec<u8> = (0..300_000_u32).map(|n| n as u8).collect();
        sink.push(&part).unwrap();
        let mut reader = told.await.unwrap();
        assert_eq!(fs::read_dir(&spools.directory).unwrap().count(), 0, "it has no name");
        let mut got = Vec::new();
        while got.len() < part.len() {
            got.extend_from_slice(&reader.chunk().await.unwrap().unwrap());
        }
        sink.push(b"end").unwrap();
        assert_eq!(reader.chunk().await.unwrap().unwrap(), "end");
        assert!(matches!(sink.finish(), Finished::Spooled));
        assert_eq!((reader.chunk().await.unwrap(), got), (None, part));
        assert_eq!(spools.used(), 300_003);
        drop(reader);
        assert_eq!(spools.used(), 0);
    }

    #[tokio::test]
    async fn what_is_given_up_is_never_taken_for_whole() {
        let (_directory, spools) = spools(None);
        let (begun, told) = oneshot::channel();
        let mut sink = Sink::new(spools.clone(), begun);
        sink.push(&vec![1; MAX_INLINE + 1]).unwrap();
        let mut reader = told.await.unwrap();
        drop(sink);
        while let Ok(chunk) = reader.chunk().await {
            assert!(chunk.is_some(), "an end without the end");
        }
    }

    #[test]
    fn spools_are_bounded_together_and_a_build_that_nobody_reads_stops() {
        let (_directory, spools) = spools(Some(1_000_000));
        let sink = || {
            let (begun, told) = oneshot::channel();
            (Sink::new(spools.clone(), begun), told)
        };
        let ((mut first, one), (mut second, two)) = (sink(), sink());
        first.push(&vec![0; 600_000]).unwrap();
        assert!(matches!(second.push(&vec![0; 600_000]), Err(Stop::Full(600_000))));
        drop((first, one, second, two));
        assert_eq!(spools.used(), 0);
        let (mut third, told) = sink();
        third.push(&vec![0; 600_000]).unwrap();
        drop(told);
        assert!(matches!(third.push(b"more"), Err(Stop::Cancelled)));
    }
}

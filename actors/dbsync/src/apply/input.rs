//! Frames out of bytes that come when they come.

use std::sync::{
    Arc,
    mpsc::{Receiver, SyncSender, sync_channel},
};

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};

use super::{ApplyError, Progress};
use crate::frames::{Frame, FrameError, FrameReader, Header};

/// Frames that wait for the thread that writes: the rows of sixteen chunks, and their digests. With one chunk the two threads took
/// turns, and neither core was busy.
const AHEAD: usize = 32;
/// Bytes of rows in them: eight chunks of the mean size. A frame that is larger waits alone.
const AHEAD_BYTES: usize = 1 << 20;

/// The sender is gone, or took too long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cut(pub(crate) String);

/// Where a stream comes from. Blocks until there is more.
pub(crate) trait Source: Send {
    /// The next bytes; `None` at the end.
    ///
    /// # Errors
    /// [`Cut`]: there will be no more.
    fn chunk(&mut self) -> Result<Option<Bytes>, Cut>;
}

/// A stream that has come whole.
impl Source for Option<Bytes> {
    fn chunk(&mut self) -> Result<Option<Bytes>, Cut> {
        Ok(self.take())
    }
}

/// Reads the frames of one stream.
pub(crate) struct Input<'a> {
    frames: Frames,
    progress: &'a Progress,
    /// A frame that was read and given back.
    back: Option<Frame>,
}

/// Who makes frames of bytes.
enum Frames {
    /// Whoever asks for one.
    Here(Box<Unpacker>),
    /// A thread of its own, ahead of the one that asks.
    Ahead(Receiver<Unpacked>, Taker),
}

/// Whoever takes what was unpacked; nobody waits for room any more once this is gone.
struct Taker(Arc<Room>);

impl Drop for Taker {
    fn drop(&mut self) {
        *self.0.waiting.lock() = None;
        self.0.taken.notify_one();
    }
}

/// How much may still be unpacked ahead.
#[derive(Debug, Default)]
struct Room {
    /// Bytes that wait; none once nobody takes them any more.
    waiting: Mutex<Option<usize>>,
    taken: Condvar,
}

impl Room {
    fn new() -> Arc<Room> {
        Arc::new(Room { waiting: Mutex::new(Some(0)), taken: Condvar::new() })
    }

    /// Waits for room for `size` bytes.
    fn enter(&self, size: usize) {
        let mut waiting = self.waiting.lock();
        self.taken.wait_while(&mut waiting, |waiting| waiting.is_some_and(|waiting| waiting > 0 && waiting + size > AHEAD_BYTES));
        if let Some(waiting) = &mut *waiting {
            *waiting += size;
        }
    }

    fn took(&self, size: usize) {
        if let Some(waiting) = &mut *self.waiting.lock() {
            *waiting -= size;
        }
        self.taken.notify_one();
    }
}

/// What of a frame counts: everything else of it is small.
fn size(frame: &Result<Frame, ApplyError>) -> usize {
    match frame {
        Ok(Frame::Rows { rows, .. }) => rows.len(),
        _ => 0,
    }
}

struct Unpacked {
    frame: Result<Frame, ApplyError>,
    /// Bytes received since the frame before.
    bytes: usize,
}

impl<'a> Input<'a> {
    pub(crate) fn new(source: Box<dyn Source>, progress: &'a Progress) -> Result<Input<'a>, ApplyError> {
        progress.begin();
        let unpacker = Unpacker { source, reader: FrameReader::new()?, at_hand: Bytes::new(), bytes: 0 };
        Ok(Input { frames: Frames::Here(Box::new(unpacker)), progress, back: None })
    }

    /// From here on a thread of its own receives, unpacks and verifies: with a long stream that is a third of the work. The thread
    /// ends with the stream; when this is dropped earlier, with the next frame or when its source is given up. Nobody waits for it,
    /// and it has no file.
    pub(super) fn ahead(&mut self) {
        let (give, take) = sync_channel::<Box<Unpacker>>(1);
        let (frames, next) = sync_channel(AHEAD);
        let room = Room::new();
        let entry = room.clone();
        let begun = std::thread::Builder::new().name("unpack".into()).spawn(move || {
            if let Ok(unpacker) = take.recv() {
                unpacker.all(&frames, &entry);
            }
        });
        match begun {
            Ok(_) => {
                if let Frames::Here(unpacker) = std::mem::replace(&mut self.frames, Frames::Ahead(next, Taker(room))) {
                    // It waits for nothing else.
                    let _ = give.send(unpacker);
                }
            }
            // It only takes longer.
            Err(error) => tracing::debug!(%error, "no thread to unpack a snapshot"),
        }
    }

    /// What the stream is about. Called first.
    pub(super) fn header(&mut self) -> Result<Header, ApplyError> {
        match self.next()? {
            Frame::Header(header) => Ok(header),
            _ => Err(FrameError::Order.into()),
        }
    }

    /// The next frame. [`Frame::End`] comes only if all was as it was sent and nothing follows; after it nothing may be asked for.
    pub(super) fn next(&mut self) -> Result<Frame, ApplyError> {
        if let Some(frame) = self.back.take() {
            return Ok(frame);
        }
        let Unpacked { frame, bytes } = match &mut self.frames {
            Frames::Here(unpacker) => unpacker.one(),
            Frames::Ahead(next, room) => {
                let unpacked = next.recv().map_err(|_| ApplyError::Cut("what unpacks the stream has failed".into()))?;
                room.0.took(size(&unpacked.frame));
                unpacked
            }
        };
        self.progress.received(bytes);
        frame
    }

    /// The frame is the next one once more.
    pub(super) fn give_back(&mut self, frame: Frame) {
        self.back = Some(frame);
    }

    pub(super) fn took(&self, rows: u32) {
        self.progress.took(rows);
    }

    /// Bytes received.
    pub(super) fn stream_bytes(&self) -> u64 {
        self.progress.stream_bytes()
    }
}

/// Receives, unpacks and verifies.
struct Unpacker {
    source: Box<dyn Source>,
    reader: FrameReader,
    /// What has come and was not read yet.
    at_hand: Bytes,
    /// Received and not told yet.
    bytes: usize,
}

impl Unpacker {
    fn one(&mut self) -> Unpacked {
        let frame = self.next();
        Unpacked { frame, bytes: std::mem::take(&mut self.bytes) }
    }

    /// Gives all frames to `frames`, up to the last one or the first failure.
    fn all(mut self: Box<Self>, frames: &SyncSender<Unpacked>, room: &Room) {
        loop {
            let unpacked = self.one();
            room.enter(size(&unpacked.frame));
            let last = matches!(unpacked.frame, Err(_) | Ok(Frame::End { .. }));
            if frames.send(unpacked).is_err() || last {
                return;
            }
        }
    }

    fn next(&mut self) -> Result<Frame, ApplyError> {
        loop {
            let mut rest: &[u8] = &self.at_hand;
            let frame = self.reader.feed(&mut rest)?;
            let used = self.at_hand.len() - rest.len();
            let _ = self.at_hand.split_to(used);
            match frame {
                Some(Frame::End { rows, sha256 }) => {
                    self.nothing_follows()?;
                    return Ok(Frame::End { rows, sha256 });
                }
                Some(frame) => return Ok(frame),
                None => match self.receive()? {
                    Some(bytes) => self.at_hand = bytes,
                    None => return Err(FrameError::Truncated.into()),
                },
            }
        }
    }

    fn receive(&mut self) -> Result<Option<Bytes>, ApplyError> {
        let bytes = self.source.chunk().map_err(|Cut(why)| ApplyError::Cut(why))?;
        self.bytes += bytes.as_ref().map_or(0, Bytes::len);
        Ok(bytes)
    }

    fn nothing_follows(&mut self) -> Result<(), ApplyError> {
        while self.at_hand.is_empty() {
            match self.receive()? {
                Some(bytes) => self.at_hand = bytes,
                None => return Ok(()),
            }
        }
        Err(FrameError::Trailing.into())
    }
}

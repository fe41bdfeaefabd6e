//! Frames out of bytes that come when they come.

use bytes::Bytes;

use super::{ApplyError, Progress};
use crate::frames::{Frame, FrameError, FrameReader, Header};

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
    source: Box<dyn Source + 'a>,
    reader: FrameReader,
    /// What has come and was not read yet.
    at_hand: Bytes,
    progress: &'a Progress,
    /// A frame that was read and given back.
    back: Option<Frame>,
}

impl<'a> Input<'a> {
    pub(crate) fn new(source: Box<dyn Source + 'a>, progress: &'a Progress) -> Result<Input<'a>, ApplyError> {
        progress.begin();
        Ok(Input { source, reader: FrameReader::new()?, at_hand: Bytes::new(), progress, back: None })
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

    fn receive(&mut self) -> Result<Option<Bytes>, ApplyError> {
        let bytes = self.source.chunk().map_err(|Cut(why)| ApplyError::Cut(why))?;
        self.progress.received(bytes.as_ref().map_or(0, Bytes::len));
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

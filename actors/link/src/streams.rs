//! The streams of a link besides control and messages: each opens with one byte that says what it is.

use quinn::{Connection, ConnectionError, RecvStream, SendStream, WriteError};

/// What a stream carries. Numbers are never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Type {
    /// Two-way: control frames.
    Control = 1,
    /// Two-way, one from each end: its opener's calls and casts; their answers come back on it.
    Messages = 2,
    /// One-way: the body of a large message, announced on the message stream.
    Body = 3,
    /// One-way: a large answer, frame and all.
    Answer = 4,
    /// One-way: a bulk body.
    Bulk = 5,
    /// One-way: one gossip message.
    Gossip = 6,
}

impl Type {
    /// What comes first when the connection is full: control, then messages, then the rest by size.
    const fn priority(self) -> i32 {
        match self {
            Self::Control => 127,
            Self::Messages => 64,
            Self::Gossip => 32,
            Self::Body | Self::Answer => 16,
            Self::Bulk => 0,
        }
    }

    const fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Control,
            2 => Self::Messages,
            3 => Self::Body,
            4 => Self::Answer,
            5 => Self::Bulk,
            6 => Self::Gossip,
            _ => return None,
        })
    }
}

/// Opens a one-way stream.
pub(crate) async fn open(connection: &Connection, kind: Type) -> Result<SendStream, ConnectionError> {
    let mut stream = connection.open_uni().await?;
    prepare(&mut stream, kind).await?;
    Ok(stream)
}

/// Opens a two-way stream.
pub(crate) async fn open_two_way(connection: &Connection, kind: Type) -> Result<(SendStream, RecvStream), ConnectionError> {
    let (mut send, receive) = connection.open_bi().await?;
    prepare(&mut send, kind).await?;
    Ok((send, receive))
}

async fn prepare(stream: &mut SendStream, kind: Type) -> Result<(), ConnectionError> {
    let _ = stream.set_priority(kind.priority());
    match stream.write_all(&[kind as u8]).await {
        Ok(()) => Ok(()),
        Err(WriteError::ConnectionLost(error)) => Err(error),
        Err(_) => Err(ConnectionError::LocallyClosed),
    }
}

/// Sets the priority of the answering half of a two-way stream that the peer opened.
pub(crate) fn answer_with_priority(stream: &SendStream, kind: Type) {
    let _ = stream.set_priority(kind.priority());
}

/// Reads what a stream is; `None` for a stream that ends first or says a number this release does not know.
pub(crate) async fn read_type(stream: &mut RecvStream) -> Option<Type> {
    let mut byte = [0];
    stream.read_exact(&mut byte).await.ok()?;
    Type::from_byte(byte[0])
}

/// What is taken of a stream at a time.
const CHUNK: usize = 64 * 1024;

/// The rest of a stream, of at most `limit` bytes; none when it is longer, was given up or is lost.
///
/// In its order, as its type was read. `RecvStream::read_to_end` takes it in any, and quinn-proto 0.11.19 gives out anew what has been
/// read in order already and had come twice: more than was sent, and a panic where bytes are counted.
pub(crate) async fn read_rest(stream: &mut RecvStream, limit: usize) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    while let Some(chunk) = stream.read_chunk(CHUNK, true).await.ok()? {
        if bytes.len() + chunk.bytes.len() > limit {
            let _ = stream.stop(0u32.into());
            return None;
        }
        bytes.extend_from_slice(&chunk.bytes);
    }
    Some(bytes)
}

/// Resets a stream that is given up before its end, where quinn's own drop would end it as if it were whole.
pub(crate) struct ResetOnDrop<'a> {
    stream: &'a mut SendStream,
    finished: bool,
}

impl<'a> ResetOnDrop<'a> {
    pub(crate) fn new(stream: &'a mut SendStream) -> Self {
        Self { stream, finished: false }
    }

    pub(crate) async fn write_all(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        self.stream.write_all(bytes).await
    }

    pub(crate) fn finish(mut self) {
        self.finished = self.stream.finish().is_ok();
    }
}

impl Drop for ResetOnDrop<'_> {
    fn drop(&mut self) {
        if !self.finished {
            let _ = self.stream.reset(0u32.into());
        }
    }
}

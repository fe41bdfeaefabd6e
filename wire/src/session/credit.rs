//! How much may be on the way.

use crate::codec::MAX_BODY;

/// Room for casts to one target over one session, in units of [`cost`]: 1 MiB, so about a thousand
/// small messages or sixteen of 64 KiB. What does not fit waits with its sender, so a slow actor's
/// backlog never lies on the link, where it would stop the others.
pub const WINDOW: u32 = 1024 * 1024;

/// What a message takes beyond its body: the memory of its envelope and its place in the mailbox.
const OVERHEAD: usize = 1024;

/// What a message of `body` bytes takes of a [`WINDOW`]; never more than the whole of it, so that the
/// largest message can go when nothing else is on the way.
pub fn cost(body: usize) -> u32 {
    (body.min(MAX_BODY) + OVERHEAD).min(WINDOW as usize) as u32
}

/// Bounds what one session has dispatched and not yet done, in messages and bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credit {
    messages: u32,
    bytes: u64,
    max_bytes: u64,
    max_messages: u32,
}

impl Credit {
    /// All of `messages` and `bytes` free.
    pub fn new(messages: u32, bytes: u64) -> Self {
        Self { messages, bytes, max_bytes: bytes, max_messages: messages }
    }

    /// Takes one message of `size` bytes; false when there is no room, and nothing is taken.
    ///
    /// A message larger than the whole takes the whole.
    pub fn take(&mut self, size: usize) -> bool {
        let size = (size as u64).min(self.max_bytes);
        if self.messages == 0 || self.bytes < size {
            return false;
        }
        self.messages -= 1;
        self.bytes -= size;
        true
    }

    /// Gives back what [`Credit::take`] took.
    pub fn give(&mut self, size: usize) {
        let size = (size as u64).min(self.max_bytes);
        self.messages = (self.messages + 1).min(self.max_messages);
        self.bytes = (self.bytes + size).min(self.max_bytes);
    }

    /// How many messages are out.
    pub fn outstanding(&self) -> u32 {
        self.max_messages - self.messages
    }
}

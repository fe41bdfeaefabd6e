//! Follows the frames of an HTTP/2 client without keeping any (RFC 9113 §4): what `h2` does not tell its caller.
//!
//! Pure: bytes in, what is noticed out. Three things are of interest. Whether something has begun and not ended (half a
//! preface, half a HEADERS frame, a header block without its last CONTINUATION), for the deadline that heads have. How
//! much of a header block has come. And frames that cost the server work and the client nothing, against an allowance.

use std::time::Instant;

use crate::Reason;

const PREFACE: u64 = 24;
const HEADER: usize = 9;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
/// No kind of frame: the preface.
const NOTHING: u8 = u8::MAX;
const RST_STREAM: u8 = 3;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

/// Streams that a client may take back beyond those that time restores. A browser that leaves a page takes back what it
/// had asked for, at most [`crate::Limits::streams`] (128) at once; this is twice that.
const RESETS: f64 = 256.0;
/// Restored a second. Who takes back more than that, for long, never wanted an answer (CVE-2023-44487).
const RESETS_A_SECOND: f64 = 32.0;
/// Taken back without giving rise to a suspicion.
const FEW_RESETS: f32 = 16.0;
/// Frames that neither carry nor open anything (PING, SETTINGS, PRIORITY, WINDOW_UPDATE, unknown ones) beyond those that
/// time and traffic restore (CVE-2019-9512, -9513, -9515).
const IDLE_FRAMES: f64 = 2048.0;
/// Restored a second.
const IDLE_FRAMES_A_SECOND: f64 = 256.0;
/// Restored by each KiB that the client takes or sends: clients open windows by two frames for what may be one of ours.
const IDLE_FRAMES_A_KIB: f64 = 1.0;

/// An allowance that is used up and restored.
#[derive(Clone, Copy, Debug)]
struct Allowance {
    left: f32,
    most: f32,
}

impl Allowance {
    const fn new(most: f64) -> Self {
        Self { left: most as f32, most: most as f32 }
    }

    fn restore(&mut self, by: f64) {
        self.left = (self.left + by as f32).min(self.most);
    }

    /// False when there is none left.
    fn take(&mut self) -> bool {
        self.left -= 1.0;
        self.left >= 0.0
    }
}

/// What has come so far.
#[derive(Debug)]
pub(crate) struct Frames {
    /// Bytes of the preface or of a frame's payload that are still to come.
    ahead: u64,
    header: [u8; HEADER],
    /// How much of `header` is there.
    known: u8,
    kind: u8,
    /// A header block has not ended.
    in_block: bool,
    /// Bytes of it.
    block: u32,
    /// It has more than a head may have.
    is_oversized: bool,
    /// Blocks that had, and nobody was told of.
    oversized: u32,
    /// Pieces that have come to their end, so that a new one is told from one that is still the same.
    ended: u32,
    resets: Allowance,
    idle: Allowance,
    restored: Instant,
}

impl Frames {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            ahead: PREFACE,
            header: [0; HEADER],
            known: 0,
            kind: NOTHING,
            in_block: false,
            block: 0,
            is_oversized: false,
            oversized: 0,
            ended: 0,
            resets: Allowance::new(RESETS),
            idle: Allowance::new(IDLE_FRAMES),
            restored: now,
        }
    }

    /// Whether something other than a body has begun and not ended.
    pub(crate) fn is_midway(&self) -> bool {
        self.in_block || self.known > 0 || (self.ahead > 0 && self.kind != DATA && !(self.kind == NOTHING && self.ahead == PREFACE))
    }

    /// Changes whenever something ends.
    pub(crate) fn ended(&self) -> u32 {
        self.ended
    }

    /// Header blocks that were longer than a head may be, since this was asked last. `h2` answers them itself, 431.
    pub(crate) fn take_oversized(&mut self) -> u32 {
        std::mem::take(&mut self.oversized)
    }

    /// What most likely went wrong where `h2` only says that the client is to calm down: it does not say about what.
    pub(crate) fn suspect(&self) -> Reason {
        if self.resets.most - self.resets.left > FEW_RESETS {
            return Reason::ResetFlood;
        }
        match self.kind {
            HEADERS | CONTINUATION => Reason::HeadTooLarge,
            DATA => Reason::FrameFlood,
            _ => Reason::ResetFlood,
        }
    }

    /// The client has taken as many bytes.
    pub(crate) fn sent(&mut self, bytes: usize) {
        self.idle.restore(bytes as f64 / 1024.0 * IDLE_FRAMES_A_KIB);
    }

    /// The client has sent this.
    ///
    /// # Errors
    /// Why it should be heard no further. `head` is the most that a header block may have.
    pub(crate) fn received(&mut self, mut bytes: &[u8], head: usize, now: impl Fn() -> Instant) -> Result<(), Reason> {
        self.idle.restore(bytes.len() as f64 / 1024.0 * IDLE_FRAMES_A_KIB);
        while !bytes.is_empty() {
            if self.ahead > 0 {
                let skipped = usize::try_from(self.ahead).unwrap_or(usize::MAX).min(bytes.len());
                self.ahead -= skipped as u64;
                bytes = &bytes[skipped..];
                if self.ahead == 0 {
                    self.ends();
                }
                continue;
            }
            let missing = (HEADER - usize::from(self.known)).min(bytes.len());
            let known = usize::from(self.known);
            self.header[known..known + missing].copy_from_slice(&bytes[..missing]);
            self.known += missing as u8;
            bytes = &bytes[missing..];
            if usize::from(self.known) == HEADER {
                self.known = 0;
                self.begins(head, &now)?;
            }
        }
        Ok(())
    }

    fn begins(&mut self, head: usize, now: &impl Fn() -> Instant) -> Result<(), Reason> {
        let [a, b, c, kind, flags, ..] = self.header;
        let length = u32::from_be_bytes([0, a, b, c]);
        self.kind = kind;
        self.ahead = u64::from(length);
        match kind {
            HEADERS | CONTINUATION => {
                if kind == HEADERS {
                    (self.block, self.is_oversized) = (0, false);
                }
                self.block = self.block.saturating_add(length);
                self.in_block = flags & END_HEADERS == 0;
                // Padding and priority are in it too: 262 bytes of a frame at most.
                if self.block as usize > head.saturating_add(262) && !std::mem::replace(&mut self.is_oversized, true) {
                    self.oversized += 1;
                }
            }
            DATA => {}
            RST_STREAM => {
                self.restore(now);
                if !self.resets.take() {
                    return Err(Reason::ResetFlood);
                }
            }
            _ => {
                if !self.idle.take() {
                    self.restore(now);
                    // The clock is read only where the allowance seems used up.
                    if self.idle.left < 0.0 {
                        return Err(Reason::FrameFlood);
                    }
                }
            }
        }
        if length == 0 {
            self.ends();
        }
        Ok(())
    }

    fn ends(&mut self) {
        if !self.in_block {
            self.ended = self.ended.wrapping_add(1);
        }
    }

    fn restore(&mut self, now: &impl Fn() -> Instant) {
        let now = now();
        let passed = now.saturating_duration_since(self.restored).as_secs_f64();
        self.restored = now;
        self.resets.restore(passed * RESETS_A_SECOND);
        self.idle.restore(passed * IDLE_FRAMES_A_SECOND);
    }
}

#[cfg(test)]
mod tests;

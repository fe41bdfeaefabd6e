//! How much, and how long.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

/// How much a door, a session and a stream may hold.
#[derive(Clone, Debug)]
pub struct Bounds {
    /// Connections at once, of both names together. Default 4,096.
    pub connections: usize,
    /// Of them such as have proved nobody yet. Default 512.
    pub strangers: usize,
    /// The same from one address (an IPv6 /64 counts as one). Default 64.
    pub strangers_per_address: usize,
    /// Sessions of one principal. Default 1,024: a node of many workers has one key.
    pub sessions: usize,
    /// Requests of a session that are not answered yet, or whose handlers have not ended. Default 1,024.
    pub in_flight: usize,
    /// Streams for requests that a session may have open at once. Default 128.
    pub streams: u32,
    /// Bytes of requests in hand, as they came: of a session 32 MiB, three of the largest.
    pub in_hand: usize,
    /// The same of all sessions: 256 MiB.
    pub all_in_hand: usize,
    /// Bytes of answers that a session's peer has not taken. Default 32 MiB; beyond, the session is closed.
    pub unread: usize,
    /// The same of all sessions, 256 MiB. Beyond, those are closed that hold more than a sixteenth of `unread`.
    pub all_unread: usize,
    /// Messages beyond 64 KiB that are being read at once: of a session 4.
    pub large: usize,
    /// The same of all sessions: 32, that is 320 MiB.
    pub all_large: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            connections: 4096,
            strangers: 512,
            strangers_per_address: 64,
            sessions: 1024,
            in_flight: 1024,
            streams: 128,
            in_hand: 32 << 20,
            all_in_hand: 256 << 20,
            unread: 32 << 20,
            all_unread: 256 << 20,
            large: 4,
            all_large: 32,
        }
    }
}

/// How long things may take.
#[derive(Clone, Debug)]
pub struct Times {
    /// For the first stream, then for the magic, then for the first request; and for each further stream's magic. Default 10 s each,
    /// which is the Go system's handshake timeout.
    pub handshake: Duration,
    /// Without a message, and without a request in hand. Default 5 min.
    pub idle: Duration,
    /// For the rest of a line, once its beginning is there. Default 60 s: ten megabytes at 1.4 Mbit/s.
    pub line: Duration,
    /// For a peer to take anything of what is written to it. Default 20 s.
    pub stalled: Duration,
    /// How long a proof holds before the key, token or certificate is looked at again, whether anything is asked or not: so long a session
    /// may outlast what opened it, where nobody tells of that. Default 5 s.
    pub proof: Duration,
    /// For the last words to reach the peer. Default 2 s.
    pub parting: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(10),
            idle: Duration::from_secs(300),
            line: Duration::from_secs(60),
            stalled: Duration::from_secs(20),
            proof: Duration::from_secs(5),
            parting: Duration::from_secs(2),
        }
    }
}

/// Counts what is held, up to a bound.
#[derive(Debug)]
pub(super) struct Meter {
    held: AtomicUsize,
    most: usize,
}

impl Meter {
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { held: AtomicUsize::new(0), most })
    }

    /// Holds so much more, until the guard goes; nothing if that is too much.
    pub(super) fn hold(self: &Arc<Self>, amount: usize) -> Option<Held> {
        let more = |held: usize| held.checked_add(amount).filter(|sum| *sum <= self.most);
        self.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(Held { meter: self.clone(), amount })
    }

    /// Holds so much more, be it too much.
    pub(super) fn hold_anyway(self: &Arc<Self>, amount: usize) -> Held {
        self.held.fetch_add(amount, Ordering::Relaxed);
        Held { meter: self.clone(), amount }
    }

    pub(super) fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    pub(super) fn is_over(&self) -> bool {
        self.held() > self.most
    }

    pub(super) fn most(&self) -> usize {
        self.most
    }
}

/// What is held.
#[derive(Debug)]
pub(super) struct Held {
    meter: Arc<Meter>,
    amount: usize,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.meter.held.fetch_sub(self.amount, Ordering::Relaxed);
    }
}

//! How often the same thing is logged when a flood of strangers would have it logged without end.

use std::{
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
    time::Instant,
};

/// Most lines of a kind logged in [`WINDOW`]. A flood of strangers, or one peer that dials five times a second for a week,
/// must not fill the disk: this is some 13 MB a day. The rest are counted.
const LINES: u32 = 60;

/// Seconds after which lines are logged again.
const WINDOW: u64 = 60;

/// The lines of one kind that may still be logged.
#[derive(Debug)]
pub(crate) struct Ration {
    began: Instant,
    window: AtomicU64,
    seen: AtomicU32,
}

impl Default for Ration {
    fn default() -> Self {
        Self { began: Instant::now(), window: AtomicU64::new(0), seen: AtomicU32::new(0) }
    }
}

impl Ration {
    /// Whether this line is logged. Says first how many of the last busy window were not; `what` is what they were about.
    pub(crate) fn allows(&self, what: &'static str) -> bool {
        let (log, suppressed) = self.count(self.began.elapsed().as_secs() / WINDOW);
        if suppressed > 0 {
            tracing::warn!(suppressed, what, "more happened than was logged");
        }
        log
    }

    /// Whether this line is logged, and how many of the last busy window were not. Threads may miscount by a few at the
    /// turn of a window; the bound on the log holds all the same.
    fn count(&self, window: u64) -> (bool, u32) {
        let suppressed = match self.window.swap(window, Ordering::Relaxed) {
            same if same == window => 0,
            _ => self.seen.swap(0, Ordering::Relaxed).saturating_sub(LINES),
        };
        (self.seen.fetch_add(1, Ordering::Relaxed) < LINES, suppressed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_strangers_fills_no_log_and_is_counted() {
        let ration = Ration::default();
        let logged = |window, times: usize| (0..times).filter(|_| ration.count(window).0).count();
        assert_eq!(logged(100, 1000), 60);
        assert_eq!(ration.count(101), (true, 940));
        assert_eq!(logged(101, 5), 5);
        assert_eq!(ration.count(102), (true, 0));
    }
}

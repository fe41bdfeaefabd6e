//! How many requests a client may open and give up. Pure: the caller tells the time.

use std::time::Instant;

/// Given up in one second without an answered one to make up for it: a page that a reader leaves quickly.
const A_SECOND: u32 = 10;

/// What is left of a connection's patience with its client (CVE-2023-44487 is what it is for).
#[derive(Debug)]
pub(super) struct Patience {
    most: u32,
    left: u32,
    /// When what passes with time was last added.
    at: Instant,
}

impl Patience {
    /// Two of all that a client may have open at once, given up at once.
    pub(super) fn new(streams: u32, now: Instant) -> Self {
        let most = streams.saturating_mul(2).max(64);
        Self { most, left: most, at: now }
    }

    /// A request was answered.
    pub(super) fn answered(&mut self) {
        self.left = self.most.min(self.left + 1);
    }

    /// A request came to nothing by its client's doing; false when there were too many.
    pub(super) fn wasted(&mut self, now: Instant) -> bool {
        let seconds = now.saturating_duration_since(self.at).as_secs();
        if seconds > 0 {
            self.at = now;
            let more = u32::try_from(seconds).unwrap_or(u32::MAX).saturating_mul(A_SECOND);
            self.left = self.most.min(self.left.saturating_add(more));
        }
        let had = self.left;
        self.left = had.saturating_sub(1);
        had > 0
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_flood_of_cancelled_requests_ends() {
        let now = Instant::now();
        let mut patience = Patience::new(128, now);
        assert_eq!((0..10_000).filter(|_| patience.wasted(now)).count(), 256);
    }

    #[test]
    fn one_for_each_that_is_answered_and_ten_a_second_never_end() {
        let mut now = Instant::now();
        let mut patience = Patience::new(1, now);
        for _ in 0..10_000 {
            assert!(patience.wasted(now));
            patience.answered();
        }
        for _ in 0..1_000 {
            now += Duration::from_secs(1);
            assert!((0..10).all(|_| patience.wasted(now)));
        }
    }
}

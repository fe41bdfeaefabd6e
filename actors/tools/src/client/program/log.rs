//! What a program says on its standard error goes to the node's log, a line at a time, and never holds the program up.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::io::AsyncRead;

use super::lines::Lines;
use crate::client::error::cut;

/// Longest part of a line that is kept, in bytes; the log has no more of it than of any stranger's text.
const LINE: usize = 1024;
/// Lines in any [`SPAN`]: what a person could read. Of more there is only the number.
const LINES: u32 = 50;
/// See [`LINES`].
const SPAN: Duration = Duration::from_secs(5);

/// Reads until there is no more.
pub(super) async fn follow<R: AsyncRead + Unpin>(stderr: R, program: Arc<str>) {
    let mut lines = Lines::new(stderr, LINE);
    let mut pace = Pace::new(Instant::now());
    while let Ok(Some(line)) = lines.next().await {
        let (say, left_out) = pace.line(Instant::now());
        if left_out > 0 {
            tracing::warn!(%program, lines = left_out, "it said more than is logged");
        }
        if say {
            tracing::info!(%program, "{}", cut(&String::from_utf8_lossy(&line.text)));
        }
    }
    let left_out = pace.left_out;
    if left_out > 0 {
        tracing::warn!(%program, lines = left_out, "it said more than is logged");
    }
}

/// How much was logged lately.
struct Pace {
    since: Instant,
    said: u32,
    left_out: u64,
}

impl Pace {
    fn new(now: Instant) -> Self {
        Self { since: now, said: 0, left_out: 0 }
    }

    /// Whether one more may be said, and how many were left out before it, if that is to be told.
    fn line(&mut self, now: Instant) -> (bool, u64) {
        let mut left_out = 0;
        if now.duration_since(self.since) >= SPAN {
            left_out = self.left_out;
            *self = Self::new(now);
        }
        let say = self.said < LINES;
        if say {
            self.said += 1;
        } else {
            self.left_out += 1;
        }
        (say, left_out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_flood_of_lines_the_first_are_said_and_the_others_counted() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let said = (0..1_000).filter(|_| pace.line(start).0).count();
        assert_eq!(said, LINES as usize);
        assert_eq!(pace.line(start + SPAN), (true, 1_000 - u64::from(LINES)));
        assert_eq!(pace.line(start + SPAN), (true, 0));
    }
}

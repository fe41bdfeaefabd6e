//! How many restarts are too many: a sliding window over the last ones. Pure.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// More than `max` failures within `within`, and the supervisor gives up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Intensity {
    /// Restarts that are still borne.
    pub max: u32,
    /// Over how long they are counted.
    pub within: Duration,
}

impl Default for Intensity {
    /// Five in 30 s: a fault that passes is ridden out, one that stays reaches the parent within seconds.
    fn default() -> Self {
        Self { max: 5, within: Duration::from_secs(30) }
    }
}

/// The last failures; never more than `max + 1` are kept.
#[derive(Debug)]
pub(crate) struct Window {
    rule: Intensity,
    failures: VecDeque<Instant>,
}

impl Window {
    pub(crate) fn new(rule: Intensity) -> Self {
        Self { rule, failures: VecDeque::new() }
    }

    /// Counts a failure; whether it was one too many.
    pub(crate) fn exceeded(&mut self, now: Instant) -> bool {
        while self.failures.front().is_some_and(|first| now.saturating_duration_since(*first) > self.rule.within) {
            self.failures.pop_front();
        }
        if self.failures.len() >= self.rule.max as usize {
            return true;
        }
        self.failures.push_back(now);
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_failures_within_the_window_count() {
        let mut window = Window::new(Intensity { max: 2, within: Duration::from_secs(10) });
        let at = |s| Instant::now() + Duration::from_secs(s);
        assert!(!window.exceeded(at(0)));
        assert!(!window.exceeded(at(9)));
        assert!(!window.exceeded(at(12)), "the first has left the window");
        assert!(window.exceeded(at(13)));
    }

    #[test]
    fn no_restart_allowed_means_the_first_failure_is_too_many() {
        assert!(Window::new(Intensity { max: 0, within: Duration::from_secs(10) }).exceeded(Instant::now()));
    }
}

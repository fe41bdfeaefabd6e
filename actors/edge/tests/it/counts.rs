//! What was counted, for whichever port counts it.

use horos_edge::{Metrics, Reason};

use super::world::eventually;

/// Whoever counts.
pub(crate) trait Counting {
    fn metrics(&self) -> &Metrics;

    /// Waits until `reason` was counted `times`.
    async fn counted(&self, reason: Reason, times: u64) {
        eventually(reason.as_str(), || match self.metrics().count(reason) {
            count if count == times => Ok(()),
            count => Err(format!("{count} of {times}; {:?}", self.counts())),
        })
        .await;
    }

    /// All that was counted.
    fn counts(&self) -> Vec<(&'static str, u64)> {
        let all = Reason::ALL.map(|reason| (reason.as_str(), self.metrics().count(reason)));
        all.into_iter().filter(|(_, count)| *count > 0).collect()
    }
}

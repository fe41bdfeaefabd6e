//! When rows become visible on the FO, as a program there sees it that looks again and again.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::Context as _;

use crate::{cluster::now, database};

/// Between two looks: the error of a figure, on the careful side.
const LOOK: Duration = Duration::from_micros(500);

/// A thread that looks at the table `events` of the replica.
pub(crate) struct Watch {
    /// The row after which it ends.
    until: Arc<AtomicI64>,
    thread: JoinHandle<anyhow::Result<Vec<(i64, u64)>>>,
}

impl Watch {
    pub(crate) fn start(replica: &Path) -> anyhow::Result<Self> {
        let database = database::reader(replica)?;
        let until = Arc::new(AtomicI64::new(i64::MAX));
        let end = until.clone();
        let thread = std::thread::spawn(move || {
            let mut newest = database.prepare("SELECT ifnull(max(id), 0) FROM events")?;
            let mut seen = Vec::new();
            let mut last: i64 = newest.query_row([], |row| row.get(0))?;
            while last < end.load(Ordering::Relaxed) {
                let id: i64 = newest.query_row([], |row| row.get(0))?;
                let at = now();
                seen.extend((last + 1..=id).map(|id| (id, at)));
                last = id.max(last);
                std::thread::park_timeout(LOOK);
            }
            Ok(seen)
        });
        Ok(Self { until, thread })
    }

    /// Milliseconds from each commit until its row was seen.
    pub(crate) fn since(self, committed: &[(i64, u64)]) -> anyhow::Result<Vec<f64>> {
        self.until.store(committed.iter().map(|(id, _)| *id).max().unwrap_or_default(), Ordering::Relaxed);
        let seen = self.thread.join().map_err(|_| anyhow::anyhow!("the watch panicked"))??;
        let seen: std::collections::HashMap<i64, u64> = seen.into_iter().collect();
        let delay = |(id, at): &(i64, u64)| {
            let seen = seen.get(id).with_context(|| format!("row {id} was never seen"))?;
            Ok(seen.saturating_sub(*at) as f64 / 1e6)
        };
        committed.iter().map(delay).collect()
    }
}

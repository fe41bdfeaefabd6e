//! The actor of one breaker: writes down what it goes through, and shows it in the tree.
//!
//! Started by `registry`'s keeper at the endpoint's first use. Transitions are written at once, counts of failures at most once a
//! second: what a crash can lose is what a second counted. Calls never wait for it, and while it is dead the breaker works on.
//! While the breaker is not closed the actor is shown as busy with that, and its flight recorder holds the last times it was.

use std::{
    sync::{Arc, LazyLock},
    time::{Duration, Instant},
};

use horos_supervision::{Incoming, Vitals};
use horos_wire::{TraceId, tree::Outcome};
use tokio::time::sleep;

use super::{
    Snapshot, State,
    registry::{Entry, Shared},
    store::{self, Record},
};

/// Counts are written no more often.
const EVERY: Duration = Duration::from_secs(1);
/// A write that failed is tried again after this, as its table's owner has its own restarts to make first.
const AGAIN: Duration = Duration::from_secs(5);
/// The end of an open time may be told so differently before it is written again: clocks drift.
const DRIFT_MS: u64 = 1_000;

static SENDER: LazyLock<Arc<str>> = LazyLock::new(|| "calls".into());

/// What was last written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Written {
    generation: u64,
    record: Record,
}

impl Written {
    fn is(&self, snapshot: &Snapshot, record: &Record) -> bool {
        let alike = match (self.record.open_until, record.open_until) {
            (Some(one), Some(other)) => one.abs_diff(other) <= DRIFT_MS,
            // That it is over follows from the clock.
            (_, None) => true,
            (None, Some(_)) => false,
        };
        self.generation == snapshot.generation && self.record.failures == record.failures && self.record.resets == record.resets && alike
    }
}

/// Runs for as long as its route stands.
pub(super) async fn keep(shared: Arc<Shared>, entry: Arc<Entry>, vitals: Arc<Vitals>) {
    let mut shown = None;
    loop {
        let looked = Instant::now();
        let snapshot = entry.breaker.snapshot(looked);
        if shown != Some((snapshot.state, snapshot.forced)) {
            show(&entry, &vitals, &snapshot);
            if shown.is_some() || snapshot.state != State::Closed || snapshot.forced.is_some() {
                shared.wake();
            }
            shown = Some((snapshot.state, snapshot.forced));
        }
        let unix_ms = shared.unix_ms();
        let record = Record::of(&snapshot, entry.resets(), unix_ms);
        let pristine = snapshot.generation == 0 && record.failures == 0;
        let written = *entry.written.lock();
        let is_written = written.map_or(pristine, |written| written.is(&snapshot, &record));
        let Some(writer) = shared.writer().filter(|_| !is_written) else {
            tokio::select! {
                () = entry.breaker.turned() => {}
                // A count that goes up and down at every call is not looked at each time either.
                () = async { entry.breaker.counted().await; sleep(EVERY.saturating_sub(looked.elapsed())).await } => {}
            }
            continue;
        };
        match store::save(writer, &entry.service, &entry.endpoint, record, unix_ms).await {
            Ok(()) => {
                *entry.written.lock() = Some(Written { generation: snapshot.generation, record });
                vitals.progressed(Instant::now());
                tokio::select! {
                    () = entry.breaker.turned() => {}
                    () = sleep(EVERY) => {}
                }
            }
            Err(error) => {
                let error = super::chain(&error);
                tracing::warn!(service = %entry.service, endpoint = %entry.endpoint, %error, "a breaker's state is not written down yet");
                sleep(AGAIN).await;
            }
        }
    }
}

fn show(entry: &Entry, vitals: &Vitals, snapshot: &Snapshot) {
    let now = Instant::now();
    vitals.end(now, Outcome::Done);
    let method = match (snapshot.forced, snapshot.state) {
        (Some(super::Forced::Open), _) => "ForcedOpen",
        (Some(super::Forced::Closed), _) => "ForcedClosed",
        (None, State::Closed) => "Closed",
        (None, State::Open) => "Open",
        (None, State::HalfOpen) => "HalfOpen",
    };
    if method != "Closed" {
        vitals.begin(now, Incoming { method, sender: &SENDER, size: 0, trace: TraceId(0), waited: Duration::ZERO });
    }
    if snapshot.generation > 0 {
        let (service, endpoint, reason) = (&entry.service, &entry.endpoint, snapshot.reason);
        tracing::info!(%service, %endpoint, state = method, ?reason, retry_after_ms = snapshot.open_for_ms, "a breaker has turned");
    }
}

//! Waiting for a state, with a limit, and saying what was seen last when it does not come.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

/// Between the first two looks. Doubles up to [`SLOWEST`]: a state that comes at once is seen at
/// once, one that takes seconds costs little of the two cores it is computed on.
const FASTEST: Duration = Duration::from_millis(2);
/// Between two looks later on; the error of any duration measured by polling.
const SLOWEST: Duration = Duration::from_millis(50);

/// Looks until `look` gives `Ok`, which it returns; `Err` is the state seen, in words.
///
/// A look that itself hangs counts as the last state seen.
///
/// # Panics
/// When `limit` is over, with `what` was awaited and the last state seen.
pub(crate) async fn poll_state<T>(what: &str, limit: Duration, mut look: impl AsyncFnMut() -> Result<T, String>) -> T {
    let start = Instant::now();
    let deadline = start + limit;
    let mut pause = FASTEST;
    let mut last = "no look has ended yet".to_owned();
    loop {
        match timeout_at(deadline, look()).await {
            Ok(Ok(seen)) => return seen,
            Ok(Err(state)) => last = state,
            Err(_) => panic!("{what}: a look still hung after {limit:?}; the last that ended saw: {last}"),
        }
        let now = Instant::now();
        assert!(now < deadline, "{what}: not within {limit:?}; last seen: {last}");
        sleep(pause.min(deadline - now)).await;
        pause = (pause * 2).min(SLOWEST);
    }
}

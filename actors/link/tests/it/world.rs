//! What these tests share besides nodes: amounts, seeds, states polled with a limit, the log, and panics.

use std::{
    fmt::Write,
    hash::{BuildHasher, RandomState},
    panic,
    sync::{
        Once,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use rand::{SeedableRng, rngs::StdRng};
use tracing::{
    Event, Metadata, Subscriber,
    field::{Field, Visit},
    span,
};

/// How much to do: `normal` on every change, `full` with `HOROS_TEST_FULL=1`, which does what the promise names.
pub(crate) fn scale<T>(normal: T, full: T) -> T {
    if std::env::var_os("HOROS_TEST_FULL").is_some_and(|value| value == "1") { full } else { normal }
}

/// The seed of a random test, printed; `HOROS_TEST_SEED` decides it.
pub(crate) fn seed() -> u64 {
    let given =
        std::env::var_os("HOROS_TEST_SEED").map(|text| text.to_string_lossy().parse().expect("HOROS_TEST_SEED is a decimal number"));
    let seed = given.unwrap_or_else(|| RandomState::new().hash_one("seed"));
    eprintln!("seed {seed}: repeat with HOROS_TEST_SEED={seed}");
    seed
}

pub(crate) fn dice(seed: u64) -> StdRng {
    StdRng::seed_from_u64(seed)
}

/// Polls a state until it is as it should be; fails with the last one seen.
pub(crate) async fn eventually<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Result<T, String>) -> T {
    let end = Instant::now() + limit;
    loop {
        match look() {
            Ok(value) => return value,
            Err(seen) => assert!(Instant::now() < end, "{what}: not within {limit:?}; last seen: {seen}"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The value below which `share` of the samples lie.
pub(crate) fn quantile(samples: &mut [Duration], share: f64) -> Duration {
    samples.sort();
    samples[((samples.len() - 1) as f64 * share) as usize]
}

/// The memory of this process that is in use, in KiB.
pub(crate) fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux has /proc");
    // In pages, which are 4 KiB on every machine this is tested on.
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok()).expect("the second number is the resident set") * 4
}

/// Lines kept of the log; tests look for their own soon after they caused them.
const LINES: usize = 20_000;
static LOG: Mutex<Vec<String>> = Mutex::new(Vec::new());
static PANICS: Mutex<Vec<String>> = Mutex::new(Vec::new());
static START: Once = Once::new();

/// Begins to keep the log and to notice panics in the code under test.
pub(crate) fn watch() {
    START.call_once(|| {
        tracing::subscriber::set_global_default(Keep(AtomicU64::new(1))).expect("nobody else sets one");
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |what| {
            let asked = what.payload_as_str().is_some_and(|text| text.contains("asked to"));
            let ours = what.location().is_some_and(|at| at.file().contains("/src/") && !at.file().contains("/registry/"));
            if !asked && ours {
                PANICS.lock().push(what.to_string());
            }
            // A backtrace takes longer than what these tests measure.
            if !asked {
                usual(what);
            }
        }));
    });
}

/// Nothing of ours has panicked so far, in this test or one beside it.
pub(crate) fn no_panics() {
    let panics = PANICS.lock();
    assert!(panics.is_empty(), "{panics:#?}");
}

/// The first line of the log that holds all of `parts`.
pub(crate) fn logged(parts: &[&str]) -> Option<String> {
    LOG.lock().iter().find(|line| parts.iter().all(|part| line.contains(part))).cloned()
}

/// Waits for a line of the log that holds all of `parts`.
pub(crate) async fn says(parts: &[&str]) -> String {
    let what = format!("the log says {parts:?}");
    eventually(&what, Duration::from_secs(8), || logged(parts).ok_or_else(|| "no such line".to_owned())).await
}

/// Keeps every event as a line.
struct Keep(AtomicU64);

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let _ = write!(self.0, " {field}={value:?}");
    }
}

impl Subscriber for Keep {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= tracing::Level::INFO && metadata.target().starts_with("horos")
    }
    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(self.0.fetch_add(1, Ordering::Relaxed))
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn event(&self, event: &Event<'_>) {
        let mut line = Line(event.metadata().level().to_string());
        event.record(&mut line);
        let mut log = LOG.lock();
        if log.len() < LINES {
            log.push(line.0);
        }
    }
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

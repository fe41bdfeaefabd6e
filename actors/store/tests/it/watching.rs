use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use horos_store::{
    rusqlite::Connection,
    watch::{Debounce, Detector, Reload, Retry, WatchConfig, Watcher},
};
use tokio::time::timeout;

use crate::support::{LIMIT, World, until};

fn watch(path: &std::path::Path) -> Watcher {
    Watcher::start(WatchConfig { interval: Duration::from_millis(5), ..WatchConfig::new(path) }).unwrap()
}

/// A watcher that looks only when it is nudged.
fn watch_when_told(path: &std::path::Path) -> Watcher {
    Watcher::start(WatchConfig { interval: Duration::from_secs(3600), ..WatchConfig::new(path) }).unwrap()
}

#[tokio::test]
async fn commits_of_another_connection_and_of_our_own_are_seen() {
    let world = World::new().await;
    let watcher = watch(&world.path);
    let mut changes = watcher.changes(Detector::DataVersion);
    let first = timeout(LIMIT, changes.wait_for_version(1)).await.unwrap().unwrap();
    Connection::open(&world.path).unwrap().execute("INSERT INTO item (label) VALUES ('other')", []).unwrap();
    let second = timeout(LIMIT, changes.wait_for_version(first.generation + 1)).await.unwrap().unwrap();
    world.insert("own").await.unwrap();
    timeout(LIMIT, changes.wait_for_version(second.generation + 1)).await.unwrap().unwrap();
    world.stop().await;
}

#[tokio::test]
async fn our_own_commit_is_seen_without_a_poll() {
    let world = World::new().await;
    let watcher = watch_when_told(&world.path);
    let mut changes = watcher.changes(Detector::DataVersion);
    let first = timeout(LIMIT, changes.wait_for_version(1)).await.unwrap().unwrap();
    world.writer.nudge_on_commit(&watcher.nudge());
    world.insert("own").await.unwrap();
    timeout(LIMIT, changes.wait_for_version(first.generation + 1)).await.unwrap().unwrap();
    world.stop().await;
}

#[tokio::test]
async fn every_detector_sees_its_change_and_negative_tokens_count() {
    let world = World::new().await;
    let watcher = watch_when_told(&world.path);
    let user = watcher.changes(Detector::UserVersion);
    let max = watcher.changes(Detector::MaxColumn { table: "item".into(), column: "id".into() });
    let nowhere = watcher.changes(Detector::MaxColumn { table: "no\"where".into(), column: "id".into() });
    watcher.look().await.unwrap();
    assert_eq!((user.current().token, max.current().token), (0, 0));
    let other = Connection::open(&world.path).unwrap();
    for token in [42, -1, -2_000_000_000, 42] {
        let before = user.current().generation;
        other.pragma_update(None, "user_version", token).unwrap();
        watcher.look().await.unwrap();
        assert_eq!((user.current().generation, user.current().token), (before + 1, token));
    }
    assert_eq!(max.current().generation, 1, "no row changed");
    other.execute("INSERT INTO item (id, label) VALUES (100, 'x')", []).unwrap();
    watcher.look().await.unwrap();
    assert_eq!((max.current().generation, max.current().token), (2, 100));
    assert!(watcher.stats().last_error.unwrap().contains("does not fit the schema"));
    other.execute_batch("CREATE TABLE \"no\"\"where\" (id INTEGER)").unwrap();
    watcher.look().await.unwrap();
    assert_eq!((nowhere.current().generation, watcher.stats().last_error), (1, None));
    world.stop().await;
}

#[tokio::test]
async fn a_missing_file_is_waited_for_and_a_replaced_one_is_a_change() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.db");
    let watcher = watch_when_told(&path);
    let changes = watcher.changes(Detector::UserVersion);
    watcher.look().await.unwrap();
    assert!(changes.current().generation == 0 && watcher.stats().last_error.is_some());
    let make = |path: &std::path::Path| Connection::open(path).unwrap().execute_batch("CREATE TABLE t (x)").unwrap();
    make(&path);
    watcher.look().await.unwrap();
    assert_eq!(changes.current().generation, 1);
    let other = directory.path().join("b.db");
    make(&other);
    std::fs::rename(other, &path).unwrap();
    watcher.look().await.unwrap();
    assert_eq!(changes.current().generation, 2, "the same token, another file");
    std::fs::remove_file(&path).unwrap();
    watcher.look().await.unwrap();
    assert!(watcher.stats().last_error.is_some());
    make(&path);
    watcher.look().await.unwrap();
    assert_eq!(changes.current().generation, 3);
}

/// How often this process has `path` open.
fn open_files(path: &std::path::Path) -> usize {
    let open = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    open.filter(|entry| std::fs::read_link(entry.path()).is_ok_and(|target| target == path)).count()
}

#[tokio::test]
async fn followers_share_one_connection_and_the_thread_ends_with_them() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().canonicalize().unwrap().join("a.db");
    Connection::open(&path).unwrap().execute_batch("CREATE TABLE t (x)").unwrap();
    let watcher = watch(&path);
    let all: Vec<_> = (0..50).map(|_| watcher.changes(Detector::DataVersion)).collect();
    for mut each in all.clone() {
        timeout(LIMIT, each.wait_for_version(1)).await.unwrap().unwrap();
    }
    assert_eq!((watcher.stats().opened, open_files(&path)), (1, 1));
    let nudge = watcher.nudge();
    drop(watcher);
    nudge.give();
    assert_eq!(open_files(&path), 1, "somebody follows still");
    drop(all);
    // The connection is the thread's, and goes with it.
    until(|| open_files(&path), |open| *open == 0).await;
    nudge.give();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_missed_in_a_storm_of_writers() {
    let world = World::new().await;
    let watcher = watch(&world.path);
    world.writer.nudge_on_commit(&watcher.nudge());
    let taken = Arc::new(AtomicU64::new(0));
    let (seen, path) = (Arc::clone(&taken), world.path.clone());
    let subscription = watcher.subscribe(Detector::DataVersion, Reload::default(), move |_| {
        let (seen, path) = (Arc::clone(&seen), path.clone());
        async move {
            let count: u64 = tokio::task::spawn_blocking(move || {
                Connection::open(path)
                    .unwrap()
                    .query_row("SELECT count(*) FROM item", [], |row| row.get::<_, i64>(0))
                    .unwrap()
                    .cast_unsigned()
            })
            .await
            .unwrap();
            seen.store(count, Ordering::SeqCst);
            Ok::<_, String>(())
        }
    });
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let path = world.path.clone();
    let stranger = std::thread::spawn(move || {
        let mut random = seed | 1;
        let connection = Connection::open(path).unwrap();
        connection.busy_timeout(LIMIT).unwrap();
        for n in 0..200 {
            connection.execute("INSERT INTO item (label) VALUES (?1)", [format!("s{n}")]).unwrap();
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            std::thread::park_timeout(Duration::from_micros(random >> 54));
        }
    });
    for n in 0..200 {
        world.insert(format!("o{n}")).await.unwrap();
    }
    tokio::task::spawn_blocking(move || stranger.join().unwrap()).await.unwrap();
    let count = Arc::clone(&taken);
    until(move || count.load(Ordering::SeqCst), |n| *n == 400).await;
    assert!(subscription.stats().failures == 0);
    world.stop().await;
}

#[tokio::test]
async fn debounce_acts_at_the_latest_after_its_maximum_however_many_changes_follow() {
    let world = World::new().await;
    let watcher = watch(&world.path);
    let runs = Arc::new(AtomicU32::new(0));
    let r = Arc::clone(&runs);
    // Changes come every few milliseconds, so it is never quiet for that long: only the maximum can fire.
    let debounce = Debounce { quiet: Duration::from_millis(100), max_wait: Duration::from_millis(150) };
    let how = Reload { debounce, ..Reload::default() };
    let subscription = watcher.subscribe(Detector::UserVersion, how, move |_| {
        r.fetch_add(1, Ordering::SeqCst);
        async { Ok::<_, String>(()) }
    });
    timeout(LIMIT, subscription.wait_for_version(1)).await.unwrap().unwrap();
    assert_eq!(runs.load(Ordering::SeqCst), 1, "the first run");
    let other = Connection::open(&world.path).unwrap();
    let started = Instant::now();
    let mut bumps = 0;
    while runs.load(Ordering::SeqCst) < 3 {
        bumps += 1;
        other.pragma_update(None, "user_version", bumps).unwrap();
        tokio::time::sleep(Duration::from_millis(2)).await;
        assert!(started.elapsed() < LIMIT, "starved by a steady stream of changes");
    }
    assert!(bumps > 10, "{bumps} changes made {} runs", runs.load(Ordering::SeqCst));
    world.stop().await;
}

#[tokio::test]
async fn a_burst_within_the_quiet_time_is_one_reload_with_its_last_state() {
    let world = World::new().await;
    let watcher = watch_when_told(&world.path);
    let changes = watcher.changes(Detector::UserVersion);
    let (runs, taken) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicI64::new(-1)));
    let (r, t) = (Arc::clone(&runs), Arc::clone(&taken));
    let quiet = Duration::from_millis(500);
    let how = Reload { debounce: Debounce { quiet, max_wait: LIMIT }, ..Reload::default() };
    let subscription = watcher.subscribe(Detector::UserVersion, how, move |seen| {
        r.fetch_add(1, Ordering::SeqCst);
        t.store(seen.token, Ordering::SeqCst);
        async { Ok::<_, String>(()) }
    });
    timeout(LIMIT, subscription.wait_for_version(1)).await.unwrap().unwrap();
    let other = Connection::open(&world.path).unwrap();
    let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
    for token in 1..=5 {
        other.pragma_update(None, "user_version", token).unwrap();
        watcher.look().await.unwrap();
        longest = longest.max(last.elapsed());
        last = Instant::now();
    }
    assert_eq!(changes.current().generation, 6, "each was a change of its own");
    let during = runs.load(Ordering::SeqCst);
    timeout(LIMIT, subscription.wait_for_version(6)).await.unwrap().unwrap();
    assert!(last.elapsed() >= quiet, "it did not wait for quiet");
    assert_eq!(taken.load(Ordering::SeqCst), 5);
    // On a machine that stood still for so long in between it was quiet there, too.
    if longest < quiet / 2 {
        assert_eq!((during, runs.load(Ordering::SeqCst)), (1, 2), "one for the start, one for the burst");
    }
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_wait_for_a_version_misses_its_wake_up_and_one_for_what_never_comes_ends_with_its_deadline() {
    let world = World::new().await;
    let watcher = watch_when_told(&world.path);
    let changes = watcher.changes(Detector::UserVersion);
    watcher.look().await.unwrap();
    let bumps = 200;
    // Waits begin while versions come: before, between check and wake-up, and after.
    let mut waits = tokio::task::JoinSet::new();
    for generation in 1..=bumps + 1 {
        for _ in 0..4 {
            let mut changes = changes.clone();
            waits.spawn(async move {
                tokio::task::yield_now().await;
                timeout(LIMIT, changes.wait_for_version(generation)).await.map(|seen| seen.unwrap().generation >= generation)
            });
        }
    }
    let other = Connection::open(&world.path).unwrap();
    other.pragma_update(None, "synchronous", "OFF").unwrap();
    for token in 1..=bumps {
        other.pragma_update(None, "user_version", i64::try_from(token).unwrap()).unwrap();
        watcher.look().await.unwrap();
    }
    while let Some(wait) = waits.join_next().await {
        assert_eq!(wait.unwrap(), Ok(true));
    }
    let mut changes = changes;
    assert!(timeout(Duration::from_millis(20), changes.wait_for_version(bumps + 2)).await.is_err());
    world.stop().await;
}

#[tokio::test]
async fn a_failing_panicking_or_hanging_reload_is_retried_and_disturbs_nobody() {
    let world = World::new().await;
    let watcher = watch(&world.path);
    let how = Reload {
        timeout: Duration::from_millis(50),
        retry: Retry { first: Duration::from_millis(1), longest: Duration::from_millis(5) },
        ..Reload::default()
    };
    let attempts = Arc::new(AtomicU32::new(0));
    let a = Arc::clone(&attempts);
    let bad = watcher.subscribe(Detector::DataVersion, how, move |_| {
        let attempt = a.fetch_add(1, Ordering::SeqCst);
        async move {
            match attempt {
                0 => Err("not ready".to_owned()),
                1 => panic!("worse"),
                2 => std::future::pending().await,
                _ => Ok(()),
            }
        }
    });
    let good = watcher.subscribe(Detector::DataVersion, how, |_| async { Ok::<_, String>(()) });
    timeout(LIMIT, good.wait_for_version(1)).await.unwrap().unwrap();
    timeout(LIMIT, bad.wait_for_version(1)).await.unwrap().unwrap();
    let stats = bad.stats();
    assert_eq!((stats.reloads, stats.failures, stats.failing, stats.last_error), (1, 3, 0, None));
    let changes = watcher.stats().changes_detected;
    assert_eq!(changes, 0, "retries are not changes");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_during_the_first_run_is_taken_over_too() {
    let world = World::new().await;
    let watcher = watch(&world.path);
    let path = world.path.clone();
    let changed = Arc::new(AtomicBool::new(false));
    let (sender, mut latest) = tokio::sync::watch::channel(0);
    let _subscription = watcher.subscribe(Detector::DataVersion, Reload::default(), move |_| {
        let connection = Connection::open(&path).unwrap();
        let last = connection.query_row("SELECT count(*) FROM item", [], |row| row.get::<_, i64>(0)).unwrap();
        if !changed.swap(true, Ordering::SeqCst) {
            // Between the load and its end.
            connection.execute("INSERT INTO item (label) VALUES ('meanwhile')", []).unwrap();
        }
        sender.send_replace(last);
        async { Ok::<_, String>(()) }
    });
    timeout(LIMIT, latest.wait_for(|n| *n == 1)).await.unwrap().unwrap();
    world.stop().await;
}

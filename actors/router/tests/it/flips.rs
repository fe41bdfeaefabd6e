//! Routes that change while calls are made.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use horos_router::{Routes, reload};
use horos_store::rusqlite::Connection;

use super::world::{Count, Counting, LONG, World, row};

/// A route a flip, and at which flips a call that began and ended between two of them can have been served by whom.
const ROUTES: [(&str, &str, &str); 3] = [("local", "one", "one"), ("quic", "two@bo-1", "two"), ("noop", "", "")];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_fails_is_made_twice_or_goes_by_a_route_of_before_while_routes_flip() {
    let full = std::env::var_os("HOROS_TEST_FULL").is_some();
    let calls: u64 = if full { 1_000_000 } else { 60_000 };
    let world = Arc::new(World::new(&["one", "two"], None).await);
    world.routes(&[("stock", ROUTES[0].0, ROUTES[0].1, "{}")]);
    // Flips begun and ended: a call that saw n ended flips before it may be served by the n-th route or a later one.
    let (begun, ended, done) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let flips = {
        let (world, begun, ended, done) = (world.clone(), begun.clone(), ended.clone(), done.clone());
        tokio::spawn(async move {
            let mut every = tokio::time::interval(Duration::from_millis(10));
            while !done.load(Ordering::Relaxed) {
                every.tick().await;
                let flip = begun.fetch_add(1, Ordering::SeqCst) + 1;
                let (strategy, endpoint, _) = ROUTES[flip as usize % ROUTES.len()];
                world.routes(&[("stock", strategy, endpoint, "{}")]);
                ended.store(flip, Ordering::SeqCst);
            }
            begun.load(Ordering::SeqCst)
        })
    };
    let next = Arc::new(AtomicU64::new(0));
    let callers: Vec<_> = (0..8)
        .map(|_| {
            let (world, begun, ended, next) = (world.clone(), begun.clone(), ended.clone(), next.clone());
            tokio::spawn(async move {
                let stock = world.context.routed::<Counting>("stock");
                let mut nobody = 0_u64;
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= calls {
                        return nobody;
                    }
                    let earliest = ended.load(Ordering::SeqCst);
                    let answer = stock.call(Count { number }, LONG).await.unwrap_or_else(|error| panic!("call {number}: {error}"));
                    let latest = begun.load(Ordering::SeqCst);
                    let by = answer.map_or(String::new(), |counted| counted.by);
                    nobody += u64::from(by.is_empty());
                    let permitted = (earliest..=latest).any(|flip| ROUTES[flip as usize % ROUTES.len()].2 == by);
                    assert!(permitted, "call {number} was served by {by:?}, with the flips {earliest} to {latest}");
                }
            })
        })
        .collect();
    let mut nobody = 0;
    for caller in callers {
        nobody += caller.await.unwrap();
    }
    done.store(true, Ordering::Relaxed);
    let flips = flips.await.unwrap();
    let mut book: Vec<u64> = world.book.lock().iter().map(|(_, number)| *number).collect();
    let counted = book.len() as u64;
    book.sort_unstable();
    book.dedup();
    println!("{calls} calls, {flips} flips, {nobody} by nobody");
    assert_eq!(book.len() as u64, counted, "a call was handled twice");
    assert_eq!(counted + nobody, calls);
}

#[tokio::test]
async fn a_row_that_another_program_writes_is_in_force_and_one_that_is_wrong_disturbs_no_other() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("control.db");
    let tables = Connection::open(&file).unwrap();
    tables.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE routes (service_name TEXT PRIMARY KEY, strategy TEXT, endpoint TEXT, config TEXT, updated_at INTEGER)").unwrap();
    let world = World::new(&["one", "two"], None).await;
    let watcher = horos_store::watch::Watcher::start(horos_store::watch::WatchConfig::new(&file)).unwrap();
    let child = reload::child(world.router.clone(), file.clone(), watcher);
    let spec = horos_supervision::SupervisorSpec::new("reload", horos_supervision::supervisor::Strategy::OneForOne, vec![child]);
    let _running = horos_supervision::Supervisor::start(spec, None).await.unwrap();
    let stock = world.context.routed::<Counting>("stock");
    let until = async |wanted: &str| {
        let late = Instant::now() + LONG;
        loop {
            let by = stock.call(Count { number: 0 }, LONG).await.ok().flatten().map(|counted| counted.by);
            if by.as_deref() == Some(wanted) {
                return;
            }
            assert!(Instant::now() < late, "by {by:?} and never by {wanted}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tables.execute_batch("INSERT INTO routes VALUES ('stock', 'local', 'one', NULL, 0)").unwrap();
    until("one").await;
    // A row without a name, one with a value of another type, one of nonsense, and beside them one that is right.
    tables
        .execute_batch("INSERT INTO routes VALUES (NULL, 'local', 'x', '{}', 0), ('odd', x'ff00', 7, 8.5, 'then'), ('bad', 'grpc', NULL, '{{', 0); UPDATE routes SET endpoint = 'two' WHERE service_name = 'stock'")
        .unwrap();
    until("two").await;
    tables.execute_batch("UPDATE routes SET config = 'nonsense', endpoint = 'one' WHERE service_name = 'stock'").unwrap();
    tables.execute_batch("INSERT INTO routes VALUES ('other', 'local', 'one', '{}', 0)").unwrap();
    let late = Instant::now() + LONG;
    while !world.router.is_routed("other") {
        assert!(Instant::now() < late);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    until("two").await;
    tables.execute_batch("UPDATE routes SET config = '{}' WHERE service_name = 'stock'").unwrap();
    until("one").await;
}

#[tokio::test]
async fn ten_thousand_routes_of_which_one_changed_leave_the_others_as_they_are() {
    let world = World::new(&["one"], None).await;
    let rows = |changed: &str| {
        (0..10_000).map(|n| row(&format!("s{n}"), "local", if n == 77 { changed } else { "one" }, "{}")).collect::<Vec<_>>()
    };
    assert_eq!(world.router.take_up(rows("one")).changed, 10_000);
    let began = Instant::now();
    let taken = world.router.take_up(rows("elsewhere"));
    println!("taken up in {:?}", began.elapsed());
    assert_eq!((taken.changed, taken.gone, taken.wrong), (1, 0, 0));
    assert_eq!(world.router.take_up(Vec::new()).gone, 10_000);
}

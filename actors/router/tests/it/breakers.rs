//! Breakers and their actors, on a real file: what is remembered, what is shown, what an operator decides.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use horos_router::{
    breaker::{Breaker, Breakers, Forced, ForcedRow, Outcome, Reason, State, store::MIGRATIONS},
    config,
};
use horos_store::{
    open::{Access, Durability, Options},
    rusqlite::{self, Connection},
    writer::{Writer, WriterConfig},
};
use horos_supervision::{Strategy, Supervisor, SupervisorHandle, SupervisorSpec};
use horos_wire::tree::Actor;
use parking_lot::Mutex;
use tempfile::TempDir;

const LIMIT: Duration = Duration::from_secs(20);

fn policy() -> config::Breaker {
    config::Breaker { failures: 3, open_ms: 600_000, successes: 1, ..config::Breaker::default() }
}

/// One life of a node: the file's writer, and the breakers below it.
struct Node {
    breakers: Breakers,
    supervisor: SupervisorHandle,
    below: SupervisorHandle,
    conditions: Arc<Mutex<Vec<String>>>,
}

impl Node {
    async fn start(directory: &Path) -> Self {
        Self::start_at(directory, || wall_clock(0)).await
    }

    async fn start_at(directory: &Path, clock: fn() -> i64) -> Self {
        let mut options = Options::new(directory.join("router.db"), Access::Owner);
        options.durability = Durability::Normal;
        let writer = Writer::new(WriterConfig::new(options, MIGRATIONS));
        let conditions = Arc::new(Mutex::new(Vec::new()));
        let told = Arc::clone(&conditions);
        let tell = move |what: &str, wrong: Option<&str>| {
            let mut told = told.lock();
            told.retain(|one: &String| !one.starts_with(&format!("{what}: ")));
            told.extend(wrong.map(|wrong| format!("{what}: {wrong}")));
        };
        let breakers = Breakers::with_clock(Some(writer.clone()), Arc::new(tell), clock);
        let spec = breakers.supervisor();
        let below = spec.handle();
        let children = vec![writer.child("writer"), spec.into_child()];
        let supervisor = Supervisor::start(SupervisorSpec::new("root", Strategy::RestForOne, children), None).await.unwrap();
        Self { breakers, supervisor, below, conditions }
    }

    fn breaker(&self, endpoint: &str) -> Arc<Breaker> {
        self.breakers.breaker("mail", endpoint, policy())
    }

    fn actors(&self) -> Vec<Actor> {
        let tree = self.supervisor.tree();
        let breakers = tree.children.iter().find(|child| &*child.name == "breakers").unwrap();
        breakers.children.iter().filter(|child| child.name.starts_with("breaker ")).cloned().collect()
    }

    fn actor(&self, endpoint: &str) -> Option<Actor> {
        self.actors().into_iter().find(|actor| *actor.name == *format!("breaker mail {endpoint}"))
    }

    /// Ends as a node does; what is not written by then is not.
    async fn stop(self) {
        self.supervisor.stop().await;
    }
}

/// The wall clock, so far off.
fn wall_clock(off_ms: i64) -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    i64::try_from(now.as_millis()).unwrap() + off_ms
}

fn fail(breaker: &Arc<Breaker>, times: u32) {
    for _ in 0..times {
        let now = Instant::now();
        if let Ok(ticket) = breaker.admit(now) {
            ticket.record(Outcome::Failure, Duration::from_millis(1), now);
        }
    }
}

fn state(breaker: &Breaker) -> State {
    breaker.snapshot(Instant::now()).state
}

fn row(directory: &Path, endpoint: &str) -> Option<(String, u32)> {
    let connection = Connection::open(directory.join("router.db")).unwrap();
    let found =
        connection.query_row("SELECT state, failures FROM breakers WHERE endpoint = ?1", [endpoint], |row| Ok((row.get(0)?, row.get(1)?)));
    match found {
        Ok(row) => Some(row),
        Err(rusqlite::Error::QueryReturnedNoRows) => None,
        Err(error) => panic!("{error}"),
    }
}

async fn eventually<T: std::fmt::Debug>(what: &str, look: impl Fn() -> T, is: impl Fn(&T) -> bool) -> T {
    let end = Instant::now() + LIMIT;
    loop {
        let seen = look();
        if is(&seen) {
            return seen;
        }
        assert!(Instant::now() < end, "{what}: last seen {seen:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn written(directory: &Path, endpoint: &str, wanted: (&str, u32)) {
    eventually(endpoint, || row(directory, endpoint), |row| row.as_ref().is_some_and(|row| (&*row.0, row.1) == wanted)).await;
}

#[tokio::test]
async fn an_open_breaker_is_open_in_the_next_life_and_each_is_its_own() {
    let directory = TempDir::new().unwrap();
    let node = Node::start(directory.path()).await;
    let (one, other) = (node.breaker("one"), node.breaker("other"));
    assert!(Arc::ptr_eq(&one, &node.breaker("one")) && !Arc::ptr_eq(&one, &other));
    fail(&one, 3);
    fail(&other, 1);
    written(directory.path(), "one", ("open", 0)).await;
    written(directory.path(), "other", ("closed", 1)).await;
    node.stop().await;
    let node = Node::start(directory.path()).await;
    let (one, other) = (node.breaker("one"), node.breaker("other"));
    assert_eq!((state(&one), state(&other)), (State::Open, State::Closed));
    let left = one.admit(Instant::now()).unwrap_err().retry_after;
    assert!(left <= Duration::from_secs(600) && left > Duration::from_secs(550), "{left:?}");
    let listed = node.breakers.list();
    let opened = wall_clock(0) - listed[0].opened_at.unwrap();
    assert!((0..60_000).contains(&opened) && &*listed[0].endpoint == "one", "{listed:?}");
    assert_eq!(listed[0].breaker.reason, Some(Reason::Restored));
    node.stop().await;
}

#[tokio::test]
async fn a_node_that_restarts_at_each_failure_opens_all_the_same() {
    let directory = TempDir::new().unwrap();
    for life in 0..3 {
        let node = Node::start(directory.path()).await;
        let breaker = node.breaker("one");
        assert_eq!(state(&breaker), State::Closed, "life {life}");
        fail(&breaker, 1);
        let wanted = if life < 2 { ("closed", life + 1) } else { ("open", 0) };
        written(directory.path(), "one", wanted).await;
        node.stop().await;
    }
}

#[tokio::test]
async fn a_killed_actor_is_restarted_and_writes_what_happened_meanwhile() {
    let directory = TempDir::new().unwrap();
    let node = Node::start(directory.path()).await;
    let breaker = node.breaker("one");
    fail(&breaker, 1);
    written(directory.path(), "one", ("closed", 1)).await;
    node.below.crash_child("breaker mail one").await.unwrap();
    fail(&breaker, 2);
    written(directory.path(), "one", ("open", 0)).await;
    eventually("its next life", || node.actor("one"), |actor| actor.as_ref().is_some_and(|actor| actor.restarts == 1)).await;
    let shown = eventually("shown open", || node.actor("one").unwrap().busy_with, |busy| busy.is_some()).await;
    assert_eq!(&*shown.unwrap().method, "Open");
    node.stop().await;
}

#[tokio::test]
async fn a_killed_keeper_starts_them_all_again_and_new_ones_too() {
    let directory = TempDir::new().unwrap();
    let node = Node::start(directory.path()).await;
    fail(&node.breaker("one"), 1);
    written(directory.path(), "one", ("closed", 1)).await;
    node.below.crash_child("keeper").await.unwrap();
    fail(&node.breaker("other"), 3);
    written(directory.path(), "other", ("open", 0)).await;
    fail(&node.breaker("one"), 2);
    written(directory.path(), "one", ("open", 0)).await;
    assert_eq!(node.actors().len(), 2);
    node.stop().await;
}

#[tokio::test]
async fn an_actor_is_started_at_the_first_use_and_stopped_when_the_route_is_gone() {
    let directory = TempDir::new().unwrap();
    let node = Node::start(directory.path()).await;
    let (used, _unused) = (node.breaker("used"), node.breaker("unused"));
    drop(used.admit(Instant::now()).unwrap());
    eventually("one actor", || node.actors().len(), |count| *count == 1).await;
    assert!(node.actor("used").is_some());
    fail(&used, 3);
    let condition = |wanted: Option<&'static str>| {
        let told = Arc::clone(&node.conditions);
        async move { eventually("the condition", || told.lock().clone(), |told| told.first().map(String::as_str) == wanted).await }
    };
    condition(Some("breakers: open: mail used")).await;
    node.breakers.retire("mail", "used");
    node.breakers.retire("mail", "unused");
    node.breakers.retire("mail", "never there");
    eventually("no actor", || node.actors().len(), |count| *count == 0).await;
    condition(None).await;
    assert!(node.breakers.list().is_empty());
    // The route is back, and nothing has been forgotten for that.
    let again = node.breaker("used");
    assert!(!Arc::ptr_eq(&used, &again));
    assert_eq!(state(&again), State::Open);
    eventually("its actor", || node.actor("used").is_some(), |there| *there).await;
    node.stop().await;
}

fn forced(endpoint: &str, forced: Option<Forced>, resets: i64) -> ForcedRow {
    ForcedRow { service: "mail".into(), endpoint: endpoint.into(), forced, resets }
}

#[tokio::test]
async fn operators_force_and_reset_one_or_all_and_a_reset_is_carried_out_once() {
    let directory = TempDir::new().unwrap();
    let node = Node::start(directory.path()).await;
    node.breakers.forced(&[forced("", None, 4)]);
    let (one, other) = (node.breaker("one"), node.breaker("other"));
    fail(&one, 3);
    node.breakers.forced(&[forced("", None, 4)]);
    assert_eq!(state(&one), State::Open, "no new order");
    node.breakers.forced(&[forced("", Some(Forced::Open), 4), forced("one", Some(Forced::Closed), 0)]);
    assert_eq!((one.forced(), other.forced()), (Some(Forced::Closed), Some(Forced::Open)));
    assert_eq!(node.breaker("a third").forced(), Some(Forced::Open));
    eventually("shown", || node.actor("other").and_then(|actor| actor.busy_with), |busy| busy.is_some()).await;
    assert_eq!(&*node.actor("other").unwrap().busy_with.unwrap().method, "ForcedOpen");
    node.breakers.forced(&[]);
    assert_eq!((one.forced(), other.forced()), (None, None));
    assert_eq!((state(&one), state(&other)), (State::Closed, State::HalfOpen), "what was forced open is probed");
    fail(&one, 3);
    node.breakers.forced(&[forced("one", None, 1)]);
    assert_eq!(state(&one), State::Closed, "reset");
    fail(&one, 3);
    written(directory.path(), "one", ("open", 0)).await;
    node.stop().await;
    // The next life reads the same rows, and does not reset again.
    let node = Node::start(directory.path()).await;
    let one = node.breaker("one");
    node.breakers.forced(&[forced("one", None, 1)]);
    assert_eq!(state(&one), State::Open);
    node.breakers.forced(&[forced("one", None, 2)]);
    assert_eq!(state(&one), State::Closed);
    node.stop().await;
}

#[tokio::test]
async fn whatever_stands_in_the_table_and_wherever_the_clock_has_gone_it_starts_and_recovers() {
    let directory = TempDir::new().unwrap();
    let node = Node::start(directory.path()).await;
    fail(&node.breaker("open"), 3);
    written(directory.path(), "open", ("open", 0)).await;
    node.stop().await;
    let connection = Connection::open(directory.path().join("router.db")).unwrap();
    let (now, most) = (wall_clock(0), i64::MAX);
    let rows = [
        ("nonsense", "opened", 5, 0, Some(now), Some(now + 1_000)),
        ("future", "open", 0, 0, Some(most), Some(most)),
        ("past", "open", 0, 0, Some(i64::MIN), Some(i64::MIN)),
        ("huge", "open", most, most, Some(now), Some(most)),
        ("negative", "closed", -5, -5, None, None),
        ("half", "half-open", 0, 2, Some(now), None),
        ("empty", "", 0, 0, None, None),
    ];
    for (endpoint, state, failures, reopenings, opened_at, open_until) in rows {
        let sql = "INSERT INTO breakers (service, endpoint, state, failures, reopenings, failed_at, opened_at, open_until, updated_at)
            VALUES ('mail', ?1, ?2, ?3, ?4, ?5, ?5, ?6, ?7)";
        connection.execute(sql, rusqlite::params![endpoint, state, failures, reopenings, opened_at, open_until, now]).unwrap();
    }
    let sql = "INSERT INTO breakers (service, endpoint, state, failures, reopenings, updated_at) VALUES (CAST(x'ff' AS TEXT), 'bad', 'open', 0, 0, ?1)";
    connection.execute(sql, [now]).unwrap();
    connection
        .execute(
            "INSERT INTO breakers (service, endpoint, state, failures, reopenings, updated_at) VALUES ('mail', 'old', 'open', 0, 0, ?1)",
            [i64::MAX],
        )
        .unwrap();
    drop(connection);
    let node = Node::start(directory.path()).await;
    let states: Vec<_> = ["nonsense", "future", "past", "huge", "negative", "half", "empty", "old"]
        .map(|endpoint| {
            (endpoint, state(&node.breaker(endpoint)), node.breaker(endpoint).snapshot(Instant::now()).open_for_ms.unwrap_or(0))
        })
        .into();
    assert_eq!(states[0].1, State::Closed);
    assert!(states[1].1 == State::Open && states[1].2 <= 600_000, "{states:?}");
    assert_eq!(states[2].1, State::HalfOpen);
    assert!(states[3].1 == State::Open && states[3].2 <= 8 * 600_000, "{states:?}");
    assert_eq!((states[4].1, states[5].1, states[6].1, states[7].1), (State::Closed, State::HalfOpen, State::Closed, State::Closed));
    node.stop().await;
    // A clock that went back by an hour makes an open time an hour longer: it is taken for the longest there can be.
    static OFF: AtomicI64 = AtomicI64::new(0);
    for (off, wanted) in [(-3_600_000, State::Open), (3_600_000, State::HalfOpen)] {
        OFF.store(off, SeqCst);
        let node = Node::start_at(directory.path(), || wall_clock(OFF.load(SeqCst))).await;
        let breaker = node.breaker("open");
        let snapshot = breaker.snapshot(Instant::now());
        assert_eq!(snapshot.state, wanted, "{snapshot:?}");
        assert!(snapshot.open_for_ms.unwrap_or(0) <= 600_000, "{snapshot:?}");
        node.stop().await;
    }
}

#[tokio::test]
async fn without_a_file_and_before_anything_has_started_breakers_work() {
    let breakers = Breakers::new(None, Arc::new(|_, _| {}));
    let breaker = breakers.breaker("mail", "one", policy());
    fail(&breaker, 3);
    assert_eq!(state(&breaker), State::Open);
    let long = "é".repeat(5_000);
    fail(&breakers.breaker("mail", &long, policy()), 3);
    let supervisor = Supervisor::start(breakers.supervisor(), None).await.unwrap();
    eventually("their actors", || supervisor.tree().children.len(), |count| *count == 3).await;
    assert!(supervisor.tree().children.iter().all(|child| child.name.len() < 400));
    assert_eq!(breakers.list().iter().filter(|one| one.breaker.refuses()).count(), 2);
    supervisor.stop().await;
}

#[tokio::test]
async fn a_storm_of_failures_is_written_no_more_than_once_a_second() {
    let directory = TempDir::new().unwrap();
    let node = Node::start(directory.path()).await;
    let policy = config::Breaker { failures: 0, failure_percent: 0, ..config::Breaker::default() };
    let breaker = node.breakers.breaker("mail", "storm", policy);
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(1_500) {
        fail(&breaker, 1_000);
        tokio::task::yield_now().await;
    }
    let wanted = breaker.snapshot(Instant::now()).failures;
    written(directory.path(), "storm", ("closed", wanted)).await;
    let (handled, took) = (node.actor("storm").unwrap().handled, began.elapsed().as_secs());
    assert!(handled <= took + 2, "{handled} writes in {took} s");
    node.stop().await;
}

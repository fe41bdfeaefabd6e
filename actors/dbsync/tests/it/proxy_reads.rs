//! Whoever wrote reads what was written, whatever the replica's lag; and made-up bookmarks cost little.

use std::{
    collections::{HashMap, VecDeque},
    convert::Infallible,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use futures_util::future::BoxFuture;
use horos_dbsync::proxy::{
    Body, Bookmark, BoxError, ByMethod, Config, Heads, NotReached, Positions, ReadLimits, StampPosition, Stamps, WaitForPosition,
    WriteProxy,
};
use horos_wire::{
    ActorName, CallContext,
    protocol::sync::{Epoch, Position},
};
use http::{Request, Response};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use parking_lot::Mutex;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use tokio::sync::watch;
use tower::{Layer as _, Service, service_fn};

use super::proxy_world::{Server, Speaks, ask, full, get, handler, nothing, of, proxy, scale, speaking};

const EPOCH: Epoch = Epoch(7);

fn shop() -> ActorName {
    "shop".parse().unwrap()
}

fn at(seq: i64) -> Position {
    Position { epoch: EPOCH, seq, stamp: seq ^ 0x5555 }
}

/// What the owner has: values by key, and the log of who wrote which.
#[derive(Default)]
struct Book {
    rows: Mutex<HashMap<String, u64>>,
    log: Mutex<Vec<(String, u64)>>,
}

impl Book {
    fn write(&self, key: &str) -> u64 {
        let mut log = self.log.lock();
        let mut rows = self.rows.lock();
        let value = rows.entry(key.to_owned()).or_default();
        *value += 1;
        log.push((key.to_owned(), *value));
        *value
    }
}

impl Heads for Book {
    fn head(&self) -> BoxFuture<'_, Result<Vec<(ActorName, Position)>, BoxError>> {
        let head = self.log.lock().len() as i64;
        Box::pin(std::future::ready(Ok(vec![(shop(), at(head)), ("other".parse().unwrap(), at(head))])))
    }
}

/// A copy that follows the owner's log when the test lets it.
struct Replica {
    rows: Mutex<HashMap<String, u64>>,
    position: watch::Sender<i64>,
    waits: AtomicU64,
}

impl Replica {
    fn new() -> Arc<Self> {
        Arc::new(Self { rows: Mutex::default(), position: watch::Sender::new(0), waits: AtomicU64::new(0) })
    }

    fn apply(&self, book: &Book, upto: usize) {
        let entries: VecDeque<_> = book.log.lock().iter().take(upto).skip(*self.position.borrow() as usize).cloned().collect();
        let mut rows = self.rows.lock();
        let count = entries.len() as i64;
        for (key, value) in entries {
            rows.insert(key, value);
        }
        drop(rows);
        self.position.send_modify(|position| *position += count);
    }
}

impl Positions for Replica {
    fn wait_for<'a>(
        &'a self,
        publication: &'a ActorName,
        position: &'a Position,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<(), NotReached>> {
        assert_eq!(*publication, shop(), "only what these handlers read is waited for");
        Box::pin(async move {
            if position.epoch != EPOCH {
                return Err(NotReached::OtherEpoch);
            }
            self.waits.fetch_add(1, Relaxed);
            let mut reached = self.position.subscribe();
            match tokio::time::timeout_at(deadline.into(), reached.wait_for(|at| *at >= position.seq)).await {
                Ok(_) => Ok(()),
                Err(_) => Err(NotReached::TimedOut),
            }
        })
    }
}

/// An owner that writes on `POST` and reads on `GET`, and says where it is.
async fn owner(book: &Arc<Book>, reads: &Arc<AtomicU64>) -> Server {
    let (rows, reads) = (book.clone(), reads.clone());
    let service = service_fn(move |request: Request<Incoming>| {
        let (rows, reads) = (rows.clone(), reads.clone());
        async move {
            let key = request.uri().path().to_owned();
            let value = if request.method() == "POST" {
                rows.write(&key)
            } else {
                reads.fetch_add(1, Relaxed);
                rows.rows.lock().get(&key).copied().unwrap_or(0)
            };
            Ok::<_, Infallible>(Response::new(full(value.to_string())))
        }
    });
    let stamped = StampPosition::new(book.clone(), Stamps::Writes).layer(service);
    Server::open(Speaks::Http2, of(stamped)).await
}

fn client() -> horos_dbsync::proxy::ClientOf {
    Arc::new(|extensions| extensions.get::<IpAddr>().copied())
}

type Reads = WaitForPosition<WriteProxy>;

/// A front office: reads from the replica, writes through `writes`.
fn front_office(
    replica: &Arc<Replica>,
    writes: &WriteProxy,
    limits: ReadLimits,
) -> (Reads, impl Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send> + Clone + Send + Sync + 'static) {
    let rows = replica.clone();
    let local = service_fn(move |request: Request<Body>| {
        let value = rows.rows.lock().get(request.uri().path()).copied().unwrap_or(0);
        async move { Ok::<_, Infallible>(Response::new(full(value.to_string()))) }
    });
    let waits = WaitForPosition::new(replica.clone(), [shop()], writes.clone(), client(), limits);
    (waits.clone(), ByMethod::new(waits.layer(local), writes.clone()))
}

fn configured(server: &Server) -> Config {
    speaking(&server.url(), Speaks::Http2)
}

/// Lets a read carry what a write was answered: as a program does, or as a browser.
fn carry(read: &mut Request<Body>, written: &super::proxy_world::Seen, browser: bool) {
    if browser {
        let pair = written.header("set-cookie").split(';').next().unwrap();
        read.headers_mut().insert("cookie", format!("theme=dark; {pair}").parse().unwrap());
    } else {
        read.headers_mut().insert("x-sync-position", written.header("x-sync-position").parse().unwrap());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_wrote_reads_it_while_the_replica_lags() {
    let pairs = scale(3_000, 100_000);
    let seed: u64 =
        std::env::var_os("HOROS_TEST_SEED").map_or_else(|| rand::rng().random(), |seed| seed.to_str().unwrap().parse().unwrap());
    eprintln!("seed {seed}: repeat with HOROS_TEST_SEED={seed}");
    let (book, asked) = (Arc::new(Book::default()), Arc::new(AtomicU64::new(0)));
    let server = owner(&book, &asked).await;
    let replica = Replica::new();
    let writes = proxy(configured(&server));
    let limits = ReadLimits { wait: Duration::from_millis(10), per_second: 1_000_000, burst: 1_000_000, ..ReadLimits::default() };
    let (reads, front) = front_office(&replica, &writes, limits);
    let following = tokio::spawn({
        let (book, replica) = (book.clone(), replica.clone());
        let mut dice = StdRng::seed_from_u64(seed);
        async move {
            loop {
                // Mostly a moment behind, now and then longer than a reader waits.
                let lag = if dice.random_ratio(1, 40) { 60 } else { dice.random_range(0..4) };
                let upto = book.log.lock().len();
                tokio::time::sleep(Duration::from_millis(lag)).await;
                replica.apply(&book, upto);
            }
        }
    });
    let left = Arc::new(AtomicI64::new(pairs));
    let clients = (0..48).map(|n| {
        let (front, left) = (front.clone(), left.clone());
        tokio::spawn(async move {
            let mut stale = 0;
            while left.fetch_sub(1, Relaxed) > 0 {
                let path = format!("/key-{n}");
                let written = ask(&front, Request::post(&path).body(nothing()).unwrap()).await;
                assert_eq!(written.status, 200, "{written:?}");
                let mut read = get(&path);
                carry(&mut read, &written, n % 2 == 0);
                let read = ask(&front, read).await;
                assert_eq!(read.status, 200, "{read:?}");
                stale += u64::from(read.text() != written.text());
            }
            stale
        })
    });
    let mut stale = 0;
    for client in futures_util::future::join_all(clients).await {
        stale += client.unwrap();
    }
    following.abort();
    assert_eq!(stale, 0);
    let stats = reads.stats();
    eprintln!("{stats:?}");
    assert!(stats.waited > 0 && stats.asked_owner > 0 && stats.there > 0, "each way was taken: {stats:?}");
    assert_eq!(stats.there + stats.waited + stats.asked_owner, pairs as u64);
    assert_eq!(asked.load(Relaxed), stats.asked_owner);
}

#[tokio::test]
async fn a_position_that_is_not_known_here_is_the_owners_to_answer_without_a_wait() {
    let (book, asked) = (Arc::new(Book::default()), Arc::new(AtomicU64::new(0)));
    let server = owner(&book, &asked).await;
    let replica = Replica::new();
    let (_, front) =
        front_office(&replica, &proxy(configured(&server)), ReadLimits { wait: Duration::from_secs(60), ..ReadLimits::default() });
    book.write("/x");
    let elsewhere = Bookmark::new(vec![(shop(), Position { epoch: Epoch(8), seq: 1, stamp: 1 })]).unwrap().to_string();
    let long = format!("shop={}", "1".repeat(8_000));
    let many = vec!["a=b"; 1000].join(",");
    let started = Instant::now();
    for position in [&*elsewhere, "unknown", "nonsense", "", "shop=1.2.3", "shop=\u{fc}", &long, &many] {
        let mut read = get("/x");
        read.headers_mut().insert("x-sync-position", http::HeaderValue::from_bytes(position.as_bytes()).unwrap());
        assert_eq!(ask(&front, read).await.text(), "1", "{position:?}");
    }
    let mut read = get("/x");
    read.headers_mut().insert("cookie", "horos-sync-position.fo-9=unknown".parse().unwrap());
    assert_eq!(ask(&front, read).await.text(), "1");
    assert_eq!((asked.load(Relaxed), replica.waits.load(Relaxed)), (9, 0));
    assert!(started.elapsed() < Duration::from_secs(30), "nobody waited");
    // Without a bookmark, and with one of what is not read here, the replica answers as it is.
    for bookmark in [None, Some(Bookmark::new(vec![("other".parse().unwrap(), at(99))]).unwrap().header())] {
        let mut read = get("/x");
        if let Some(bookmark) = bookmark {
            read.headers_mut().insert("x-sync-position", bookmark);
        }
        assert_eq!(ask(&front, read).await.text(), "0");
    }
}

#[tokio::test]
async fn made_up_positions_cost_each_client_its_ration_and_nobody_elses() {
    let (book, asked) = (Arc::new(Book::default()), Arc::new(AtomicU64::new(0)));
    let server = owner(&book, &asked).await;
    let replica = Replica::new();
    let writes = proxy(configured(&server));
    let limits = ReadLimits { wait: Duration::from_millis(200), waits_per_client: 8, per_second: 1, burst: 20, ..ReadLimits::default() };
    let (reads, front) = front_office(&replica, &writes, limits);
    let forged = |address: [u8; 4]| {
        let mut read = get("/x");
        read.headers_mut().insert("x-sync-position", Bookmark::new(vec![(shop(), at(i64::MAX))]).unwrap().header());
        read.extensions_mut().insert(IpAddr::from(address));
        read
    };
    let started = Instant::now();
    let storm = futures_util::future::join_all((0..500).map(|_| ask(&front, forged([192, 0, 2, 66]))));
    let writer = async {
        for n in 1..=50 {
            assert_eq!(ask(&front, post_to("/y")).await.text(), n.to_string(), "writes go on");
        }
    };
    let (answers, ()) = tokio::join!(storm, writer);
    let refused: Vec<_> = answers.iter().filter(|seen| seen.status == 429).collect();
    let served = answers.iter().filter(|seen| seen.status == 200).count();
    assert_eq!(refused.len() + served, 500);
    let most = 20 + started.elapsed().as_secs() as usize + 1;
    assert!(served <= most, "{served} reads at the owner in {:?}", started.elapsed());
    assert!(refused.iter().all(|seen| seen.problem("effect") == "none" && seen.headers.contains_key("retry-after")));
    assert_eq!(reads.stats().refused, refused.len() as u64);
    // Somebody else is not who pays.
    assert_eq!(ask(&front, forged([192, 0, 2, 1])).await.status, 200);
    assert!(started.elapsed() < Duration::from_secs(20), "the waits are capped");
}

fn post_to(path: &str) -> Request<Body> {
    Request::post(path).body(nothing()).unwrap()
}

#[tokio::test]
async fn reads_at_the_owner_leave_room_for_writes() {
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let opened = gate.clone();
    let slow = handler(move |request| {
        let gate = opened.clone();
        async move {
            if request.method() == "GET" {
                gate.acquire().await?.forget();
            }
            Ok(Response::new(full("done")))
        }
    });
    let server = Server::open(Speaks::Http2, slow).await;
    let writes = proxy(configured(&server));
    let limits = ReadLimits { at_owner: 4, ..ReadLimits::default() };
    let (_, front) = front_office(&Replica::new(), &writes, limits);
    let unknown = || {
        let mut read = get("/x");
        read.headers_mut().insert("x-sync-position", "unknown".parse().unwrap());
        read
    };
    let held: Vec<_> = (0..4)
        .map(|_| {
            tokio::spawn({
                let front = front.clone();
                let read = unknown();
                async move { ask(&front, read).await.status }
            })
        })
        .collect();
    super::proxy_world::eventually("four reads at the owner", || writes.stats().in_flight == 4).await;
    let seen = ask(&front, unknown()).await;
    assert_eq!((seen.status, &*seen.problem("code")), (503, "reads_full"));
    assert_eq!(ask(&front, post_to("/x")).await.status, 200);
    gate.add_permits(5);
    for held in held {
        assert_eq!(held.await.unwrap(), 200);
    }
    assert_eq!(ask(&front, unknown()).await.status, 200, "what ended left its place");
}

#[tokio::test]
async fn a_replica_that_is_behind_and_an_owner_that_is_away_is_503_and_never_an_old_answer() {
    let (book, asked) = (Arc::new(Book::default()), Arc::new(AtomicU64::new(0)));
    let mut server = owner(&book, &asked).await;
    let replica = Replica::new();
    let limits = ReadLimits { wait: Duration::from_millis(50), ..ReadLimits::default() };
    let (_, front) = front_office(&replica, &proxy(configured(&server)), limits);
    let written = ask(&front, post_to("/x")).await;
    server.kill().await;
    for browser in [false, true] {
        let mut read = get("/x");
        carry(&mut read, &written, browser);
        let seen = ask(&front, read).await;
        assert_eq!((seen.status, &*seen.problem("effect")), (503, "none"));
    }
    assert_eq!(ask(&front, get("/x")).await.text(), "0", "others read on");
    replica.apply(&book, 1);
    let mut read = get("/x");
    carry(&mut read, &written, true);
    assert_eq!(ask(&front, read).await.text(), "1", "and so does the writer, as soon as the replica is there");
}

#[tokio::test]
async fn after_a_write_whose_outcome_is_unknown_the_owner_is_read_from() {
    let book = Arc::new(Book::default());
    let rows = book.clone();
    let loses = handler(move |request| {
        let rows = rows.clone();
        async move {
            if request.method() == "POST" {
                rows.write("/x");
                return Err("the answer is lost".into());
            }
            let value = rows.rows.lock().get("/x").copied().unwrap_or(0);
            Ok(Response::new(full(value.to_string())))
        }
    });
    let server = Server::open(Speaks::Http2, loses).await;
    let (_, front) = front_office(&Replica::new(), &proxy(configured(&server)), ReadLimits::default());
    let written = ask(&front, post_to("/x")).await;
    assert_eq!((written.status, &*written.problem("effect")), (502, "unknown"));
    for browser in [false, true] {
        let mut read = get("/x");
        carry(&mut read, &written, browser);
        assert_eq!(ask(&front, read).await.text(), "1");
    }
}

#[tokio::test]
async fn an_answer_without_a_position_or_with_nonsense_for_one_is_unknown() {
    for said in [None, Some("nonsense"), Some("unknown")] {
        let says = handler(move |_| async move {
            let mut answer = Response::new(nothing());
            if let Some(said) = said {
                answer.headers_mut().insert("x-sync-position", said.parse()?);
            }
            Ok(answer)
        });
        let server = Server::open(Speaks::Http2, says).await;
        let proxy = proxy(configured(&server));
        let seen = ask(&proxy, post_to("/x")).await;
        assert_eq!(seen.header("x-sync-position"), "unknown");
        assert!(seen.header("set-cookie").contains("=unknown; "));
        assert!(!ask(&proxy, get("/x")).await.headers.contains_key("set-cookie"), "a read sets none");
    }
}

#[tokio::test]
async fn a_wait_leaves_half_of_the_callers_time_to_the_owner() {
    let (book, asked) = (Arc::new(Book::default()), Arc::new(AtomicU64::new(0)));
    let server = owner(&book, &asked).await;
    let limits = ReadLimits { wait: Duration::from_secs(60), ..ReadLimits::default() };
    let (_, front) = front_office(&Replica::new(), &proxy(configured(&server)), limits);
    let written = ask(&front, post_to("/x")).await;
    let mut read = get("/x");
    carry(&mut read, &written, false);
    let started = Instant::now();
    read.extensions_mut().insert(CallContext { deadline: Some(started + Duration::from_secs(4)), ..CallContext::default() });
    assert_eq!(ask(&front, read).await.text(), "1");
    assert!((2..4).contains(&started.elapsed().as_secs()), "{:?}", started.elapsed());
}

#[tokio::test]
async fn what_is_read_at_the_owner_is_read_as_it_was_asked() {
    let server = Server::open(
        Speaks::Http2,
        handler(|request| async move {
            let text = format!("{} {}", request.method(), request.uri().path_and_query().unwrap());
            let body = request.into_body().collect().await?.to_bytes();
            Ok(Response::new(full(format!("{text} {}", body.len()))))
        }),
    );
    let server = server.await;
    let (_, front) = front_office(&Replica::new(), &proxy(configured(&server)), ReadLimits::default());
    let mut read = get("/x?a=%20b");
    read.headers_mut().insert("x-sync-position", "unknown".parse().unwrap());
    assert_eq!(ask(&front, read).await.text(), "GET /x?a=%20b 0");
}

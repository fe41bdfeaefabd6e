//! Each host by itself: connections, breaker, rate and bounds.

use std::{
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use horos_egress::{
    Bound, Bounds, BreakerOptions, Circuit, Egress, EgressError, HostStatus, Limits, Options, Resolve, Resolving, Roots, Timeouts,
};
use http::Response;
use tokio::sync::Semaphore;

use super::{
    server::{Authority, Then, full, plain, raw, says, serve},
    world::{Crowd, Internet, LONG, dice, get, limits, read, scale, until},
};

fn host(egress: &Egress, name: &str) -> HostStatus {
    egress.status().hosts.into_iter().find(|host| host.origin.contains(name)).unwrap()
}

fn breaker(failures: u32, open: Duration) -> BreakerOptions {
    BreakerOptions { failures: NonZeroU32::new(failures).unwrap(), open }
}

/// As many requests as there are.
fn unhurried() -> Bounds {
    Bounds { rate_per_host: NonZeroU32::MAX, burst_per_host: NonZeroU32::MAX, ..Bounds::default() }
}

#[tokio::test]
async fn a_connection_is_kept_for_the_next_request_to_its_host_and_to_no_other() {
    let internet = Internet::new().await;
    let server = plain(async |_| full(Response::new("here"))).await;
    internet.site("a.example", "93.184.216.34", server.address);
    internet.site("b.example", "93.184.216.34", server.address);
    let egress = internet.egress();
    for _ in 0..10 {
        read(&egress, "http://a.example/", &limits()).await.unwrap();
        read(&egress, "http://b.example/", &limits()).await.unwrap();
    }
    assert_eq!((host(&egress, "a.").opened, host(&egress, "b.").opened, server.connections()), (1, 1, 2));
    assert_eq!(internet.lookups.lock().len(), 2);
}

#[tokio::test]
async fn many_requests_share_one_connection_of_http_2() {
    let authority = Authority::new();
    let server = serve(Some(authority.acceptor("127.0.0.1", &["h2"])), async |_| full(Response::new("here"))).await;
    let file = authority.file();
    let options = Options {
        trusted: vec![server.address.to_string().parse().unwrap()],
        roots: Roots::Files,
        ca_files: vec![file.path().to_owned()],
        ..Options::default()
    };
    let egress = Egress::new(options).unwrap();
    let url = format!("https://{}/", server.address);
    for _ in 0..scale(5, 100) {
        let limits = limits();
        let all = (0..50).map(|_| read(&egress, &url, &limits));
        assert!(futures_util::future::join_all(all).await.into_iter().all(|outcome| outcome.unwrap() == "here"));
    }
    assert_eq!((server.connections(), host(&egress, "127").shared), (1, 1));
}

#[tokio::test]
async fn a_kept_connection_that_the_host_has_closed_is_not_the_requests_end() {
    let internet = Internet::new().await;
    // Answers once a connection, and closes it without saying so before.
    let server = says("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nhere", Then::Close).await;
    internet.site("a.example", "93.184.216.34", server.address);
    let egress = Egress::new(Options { bounds: unhurried(), ..internet.options() }).unwrap();
    for _ in 0..scale(20, 500) {
        // A host may also close it just when the request is written: then nobody knows, and that is said.
        match read(&egress, "http://a.example/", &limits()).await {
            Ok(body) => assert_eq!(body, "here"),
            Err(EgressError::Lost { .. }) => {}
            Err(error) => panic!("{error:?}"),
        }
        until("the connection is closed", || (egress.status().connections == 0, egress.status().connections)).await;
    }
}

#[tokio::test]
async fn what_nobody_uses_is_closed() {
    let internet = Internet::new().await;
    let server = plain(async |_| full(Response::new("here"))).await;
    internet.site("a.example", "93.184.216.34", server.address);
    let timeouts = Timeouts { keep: Duration::from_millis(200), ..Timeouts::default() };
    let egress = Egress::new(Options { timeouts, ..internet.options() }).unwrap();
    read(&egress, "http://a.example/", &limits()).await.unwrap();
    assert_eq!(egress.status().connections, 1);
    until("it is closed without a request", || (egress.status().connections == 0, egress.status())).await;
}

#[tokio::test]
async fn a_host_that_fails_is_left_alone_and_heals() {
    let internet = Internet::new().await;
    let good = Arc::new(AtomicBool::new(false));
    let its = good.clone();
    let server = raw(move |mut stream, _| {
        let good = its.load(SeqCst);
        async move {
            use tokio::io::AsyncWriteExt as _;
            let bytes: &[u8] =
                if good { b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\nconnection: close\r\n\r\nhere" } else { b"rubbish\r\n\r\n" };
            let _ = stream.write_all(bytes).await;
        }
    })
    .await;
    let other = plain(async |_| full(Response::new("here"))).await;
    internet.site("bad.example", "93.184.216.34", server.address);
    internet.site("other.example", "93.184.216.35", other.address);
    let egress = Egress::new(Options { breaker: breaker(3, Duration::from_millis(300)), ..internet.options() }).unwrap();
    let limits = limits();
    let ask = || read(&egress, "http://bad.example/", &limits);
    for _ in 0..3 {
        assert!(matches!(ask().await, Err(EgressError::Nonsense { .. })));
    }
    let error = ask().await.unwrap_err();
    assert!(matches!(error, EgressError::CircuitOpen { .. }) && !error.may_have_been_sent(), "{error}");
    assert!(error.retry_after().is_some_and(|span| span <= Duration::from_millis(300)));
    assert_eq!((host(&egress, "bad").circuit, server.requests()), (Circuit::Open, 3));
    read(&egress, "http://other.example/", &limits).await.unwrap();
    good.store(true, SeqCst);
    until("its time is over", || (host(&egress, "bad").circuit == Circuit::HalfOpen, host(&egress, "bad"))).await;
    assert_eq!(ask().await.unwrap(), "here");
    assert_eq!(host(&egress, "bad").circuit, Circuit::Closed);
}

#[tokio::test]
async fn a_host_that_cannot_be_reached_counts_once_however_many_wait_for_it() {
    let internet = Internet::new().await;
    internet.name("a.example", &[&["93.184.216.34"]]);
    internet.silent("93.184.216.34");
    let timeouts = Timeouts { connect: Duration::from_millis(300), ..Timeouts::default() };
    let egress = Egress::new(Options { timeouts, breaker: breaker(2, Duration::from_secs(60)), ..internet.options() }).unwrap();
    let limits = limits();
    let ask = || get(&egress, "http://a.example/", &limits);
    for outcome in futures_util::future::join_all((0..10).map(|_| ask())).await {
        assert!(matches!(outcome, Err(EgressError::Unreachable { .. })), "{outcome:?}");
    }
    assert_eq!(host(&egress, "a.").circuit, Circuit::Closed);
    assert!(matches!(ask().await, Err(EgressError::Unreachable { .. })));
    assert!(matches!(ask().await, Err(EgressError::CircuitOpen { .. })));
    assert_eq!(internet.connected.lock().len(), 2);
}

/// Whoever waited for it dialled again, and again, without end.
#[tokio::test]
async fn a_dial_that_comes_to_no_end_is_one_that_failed() {
    #[derive(Debug)]
    struct Broken;

    impl Resolve for Broken {
        fn resolve(&self, _: &str) -> Resolving {
            Box::pin(async { panic!("this resolver is broken") })
        }
    }

    let egress = Egress::new(Options { resolver: Arc::new(Broken), ..Options::default() }).unwrap();
    let limits = limits();
    let asked = tokio::time::timeout(LONG / 3, get(&egress, "https://good.example/", &limits));
    let error = asked.await.expect("it is told").unwrap_err();
    assert!(matches!(error, EgressError::Unreachable { .. }) && !error.may_have_been_sent(), "{error:?}");
}

/// Requests that wait for a connection do not hold up a runtime that ends.
#[test]
fn a_runtime_ends_with_requests_in_flight() {
    for round in 0..scale(50, 2_000) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let internet = Internet::new().await;
            let server = plain(async |_| full(Response::new("here"))).await;
            internet.site("good.example", "93.184.216.34", server.address);
            let egress = Egress::new(Options { bounds: unhurried(), ..internet.options() }).unwrap();
            for _ in 0..60 {
                let egress = egress.clone();
                tokio::spawn(async move { while read(&egress, "http://good.example/", &limits()).await.is_ok() {} });
            }
            until("they are at it", || (server.requests() > round % 50, server.requests())).await;
        });
        let (ended, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            drop(runtime);
            let _ = ended.send(());
        });
        told.recv_timeout(LONG).unwrap_or_else(|_| panic!("round {round}"));
    }
}

#[tokio::test]
async fn what_is_refused_here_or_given_up_says_nothing_about_a_host() {
    let internet = Internet::new().await;
    internet.name("inside.example", &[&["10.0.0.1"]]);
    let silent = says("", Then::Wait).await;
    internet.site("silent.example", "93.184.216.34", silent.address);
    let egress = Egress::new(Options { breaker: breaker(2, Duration::from_secs(60)), ..internet.options() }).unwrap();
    for _ in 0..5 {
        assert!(get(&egress, "http://inside.example/", &limits()).await.unwrap_err().refusal().is_some());
        let hasty = Limits::within(Duration::from_millis(50));
        assert!(matches!(get(&egress, "http://silent.example/", &hasty).await, Err(EgressError::TimedOut { .. })));
    }
    assert_eq!((host(&egress, "inside").circuit, host(&egress, "silent").circuit), (Circuit::Closed, Circuit::Closed));
    assert_eq!((host(&egress, "inside").failed, host(&egress, "silent").failed), (0, 0));
    assert_eq!(egress.status().refused, 5);
}

#[tokio::test]
async fn more_than_the_rate_is_refused_with_a_time_to_come_again() {
    let internet = Internet::new().await;
    let server = plain(async |_| full(Response::new("here"))).await;
    internet.site("a.example", "93.184.216.34", server.address);
    let (one, three) = (NonZeroU32::MIN, NonZeroU32::new(3).unwrap());
    let bounds = Bounds { rate_per_host: one, burst_per_host: three, ..Bounds::default() };
    let egress = Egress::new(Options { bounds, ..internet.options() }).unwrap();
    let limits = limits();
    let outcomes = futures_util::future::join_all((0..10).map(|_| read(&egress, "http://a.example/", &limits))).await;
    let refused: Vec<_> = outcomes.iter().filter_map(|outcome| outcome.as_ref().err()).collect();
    assert!((6..=7).contains(&refused.len()), "{outcomes:?}");
    assert!(refused.iter().all(|error| matches!(error, EgressError::RateLimited { .. }) && error.retry_after().is_some()));
    assert_eq!(host(&egress, "a.").turned_away, refused.len() as u64);

    // The owner's own are not held to it.
    let options = Options { bounds, trusted: vec![server.address.to_string().parse().unwrap()], ..Options::default() };
    let (egress, url) = (Egress::new(options).unwrap(), format!("http://{}/", server.address));
    let outcomes = futures_util::future::join_all((0..10).map(|_| read(&egress, &url, &limits))).await;
    assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
}

#[tokio::test]
async fn what_is_beyond_a_bound_is_refused_at_once() {
    let internet = Internet::new().await;
    let gate = Arc::new(Semaphore::new(0));
    let its = gate.clone();
    let server = plain(move |_| {
        let gate = its.clone();
        async move {
            gate.acquire().await.unwrap().forget();
            full(Response::new("here"))
        }
    })
    .await;
    for (index, name) in ["a.example", "b.example", "c.example", "d.example"].iter().enumerate() {
        internet.site(name, &format!("93.184.216.{}", 10 + index), server.address);
    }
    let bounds = Bounds { in_flight: 5, in_flight_per_host: 2, connections: 4, hosts: 3, ..Bounds::default() };
    let timeouts = Timeouts { connect: Duration::from_millis(300), ..Timeouts::default() };
    let egress = Egress::new(Options { bounds, timeouts, ..internet.options() }).unwrap();
    let ask = |name: &'static str| {
        let egress = egress.clone();
        tokio::spawn(async move { read(&egress, &format!("http://{name}/"), &limits()).await })
    };
    let mut asking = vec![ask("a.example"), ask("a.example")];
    until("two at one host", || (server.requests() == 2, server.requests())).await;
    assert!(matches!(ask("a.example").await.unwrap(), Err(EgressError::Overloaded(Bound::RequestsToHost))));
    asking.extend([ask("b.example"), ask("c.example")]);
    until("four connections", || (server.requests() == 4, server.requests())).await;
    assert!(matches!(ask("d.example").await.unwrap(), Err(EgressError::Overloaded(Bound::Hosts))));
    assert!(matches!(ask("b.example").await.unwrap(), Err(EgressError::Overloaded(Bound::Connections))));
    assert_eq!(egress.status().overloaded, 3);
    gate.add_permits(100);
    for asked in asking {
        assert_eq!(asked.await.unwrap().unwrap(), "here");
    }
    assert_eq!(egress.status().in_flight, 0);
    // The host that was unused for longest made room.
    assert_eq!(ask("d.example").await.unwrap().unwrap(), "here");
    assert_eq!(egress.status().hosts.len(), 3);
}

#[tokio::test]
async fn idle_connections_make_room_for_those_that_are_needed() {
    let internet = Internet::new().await;
    let server = plain(async |_| full(Response::new("here"))).await;
    let egress = Egress::new(Options { bounds: Bounds { connections: 2, ..unhurried() }, ..internet.options() }).unwrap();
    for index in 0..scale(10, 200) {
        internet.site(&format!("host-{index}.example"), "93.184.216.34", server.address);
        assert_eq!(read(&egress, &format!("http://host-{index}.example/"), &limits()).await.unwrap(), "here");
        assert!(egress.status().connections <= 2);
    }
}

#[tokio::test]
async fn hosts_without_end_are_forgotten_without_end() {
    let internet = Internet::new().await;
    let egress = Egress::new(Options { bounds: Bounds { hosts: 16, ..Bounds::default() }, ..internet.options() }).unwrap();
    for index in 0..scale(200, 5_000) {
        let error = get(&egress, &format!("http://host-{index}.example/"), &limits()).await.unwrap_err();
        assert!(matches!(error, EgressError::Unresolved { .. }), "{error}");
    }
    assert_eq!(egress.status().hosts.len(), 16);
}

/// Callers who give up at any moment, hosts of every sort: nothing is lost, and nobody waits for what another holds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_callers_and_hosts_do_every_place_is_free_again() {
    let mut random = dice();
    let internet = Internet::new().await;
    let slow_crowd = Crowd::default();
    let good_crowd = slow_crowd.clone();
    let good = plain(move |_| {
        good_crowd.come();
        async { full(Response::new("here")) }
    })
    .await;
    let slow = plain(move |_| {
        let crowd = slow_crowd.clone();
        crowd.come();
        async move {
            crowd.behind(5).await;
            full(Response::new("x".repeat(100_000)))
        }
    })
    .await;
    let cut = says("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhere", Then::Close).await;
    let silent = says("", Then::Wait).await;
    for (name, address, server) in [
        ("good.example", "93.184.216.1", &good),
        ("slow.example", "93.184.216.2", &slow),
        ("cut.example", "93.184.216.3", &cut),
        ("silent.example", "93.184.216.4", &silent),
    ] {
        internet.site(name, address, server.address);
    }
    internet.name("inside.example", &[&["10.0.0.1"]]);
    internet.name("away.example", &[&["93.184.216.5"]]);
    internet.silent("93.184.216.5");
    let timeouts = Timeouts { connect: Duration::from_millis(50), head: Duration::from_millis(50), ..Timeouts::default() };
    let bounds = Bounds { in_flight: 60, connections: 30, hosts: 4, ..unhurried() };
    let breaker = breaker(20, Duration::from_millis(10));
    let egress = Egress::new(Options { timeouts, bounds, breaker, ..internet.options() }).unwrap();
    let names = ["good", "slow", "cut", "silent", "inside", "away", "nobody"];
    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..scale(1_000, 20_000) {
        let url = format!("http://{}.example/", names[random(names.len() as u64) as usize]);
        let (its, patience, reads) = (egress.clone(), Duration::from_micros(random(60_000)), random(2) == 0);
        asking.spawn(async move {
            let whole = async {
                let response = get(&its, &url, &limits()).await?;
                if reads { response.into_body().bytes().await.map(drop) } else { Ok(()) }
            };
            let _ = tokio::time::timeout(patience, whole).await;
        });
        assert!(egress.status().connections <= 30 && egress.status().in_flight <= 60 && egress.status().hosts.len() <= 4);
        if asking.len() >= 80 {
            asking.join_next().await.unwrap().unwrap();
        }
    }
    while asking.join_next().await.is_some() {}
    let free = || (egress.status().in_flight == 0 && egress.status().hosts.iter().all(|host| host.dialing == 0), egress.status());
    until("every place is free", free).await;
    // The good host is served: at once, or when its breaker has forgotten how busy this machine was.
    let end = tokio::time::Instant::now() + LONG;
    while let Err(error) = read(&egress, "http://good.example/", &limits()).await {
        assert!(tokio::time::Instant::now() < end, "{error}: {:?}", egress.status());
    }
    assert_eq!(internet.canary.seen(), 0);
}

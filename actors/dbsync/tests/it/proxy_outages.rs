//! What is said where the owner's answer is not to be had, and that nothing is ever done twice.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use horos_dbsync::proxy::{Owner, Why};
use horos_wire::{CallContext, Role};
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::{Notify, mpsc},
};
use tower::ServiceExt as _;

use super::proxy_world::{
    BOTH, Cluster, Server, Speaks, ask, config, counting, eventually, full, handler, nothing, post, proxy, raw, read_head, scale, speaking,
    streamed,
};

#[tokio::test]
async fn an_owner_that_is_away_is_told_at_once_and_one_that_is_back_is_found_again() {
    for speaks in BOTH {
        let count = Arc::new(AtomicU64::new(0));
        let mut server = Server::open(speaks, counting(&count)).await;
        let address = server.address;
        let proxy = proxy(speaking(&server.url(), speaks));
        assert_eq!(ask(&proxy, post("x")).await.status, 200);
        server.kill().await;
        // The connection from the pool is dead: a second one is tried, and that is refused.
        let mut last = ask(&proxy, post("x")).await;
        for _ in 0..20 {
            assert_eq!((last.status, &*last.problem("effect")), (503, "none"), "{speaks:?} {last:?}");
            assert!(last.headers.contains_key("retry-after") && !last.headers.contains_key("x-sync-position"));
            last = ask(&proxy, post("x")).await;
        }
        assert!(matches!(*proxy.owner().borrow(), Owner::Away { why: Why::Unreachable, .. }));
        let _server = Server::open_on(address, speaks, None, counting(&count)).await;
        let end = Instant::now() + Duration::from_secs(10);
        while ask(&proxy, post("x")).await.status != 200 {
            assert!(Instant::now() < end, "not found again");
        }
        assert_eq!(count.load(Relaxed), 2, "each that was answered was done once");
    }
}

#[tokio::test]
async fn while_the_owner_is_away_few_dials_find_out_for_all() {
    let (listener, address) = raw().await;
    let dials = Arc::new(AtomicU64::new(0));
    let counted = dials.clone();
    let _closing = tokio::spawn(async move {
        loop {
            drop(listener.accept().await.unwrap());
            counted.fetch_add(1, Relaxed);
        }
    });
    let cluster = Cluster::new(&[(Role::Bo, "bo-1"), (Role::Fo, "fo-1")]);
    let mut config = config(&format!("https://{address}"));
    config.tls = Some(cluster.client("fo-1", &cluster.id(Role::Bo, "bo-1")));
    let proxy = proxy(config);
    let started = Instant::now();
    let asked = (0..1000).map(|_| async {
        let seen = ask(&proxy, post("x")).await;
        assert!(seen.status == 503, "{seen:?}");
    });
    futures_util::future::join_all(asked).await;
    // 50, 100, 200, 400, 800, 1000 … ms apart; the first few at once.
    let most = 8 + (started.elapsed().as_millis() / 50) as u64;
    assert!(dials.load(Relaxed) <= most, "{} dials in {:?}", dials.load(Relaxed), started.elapsed());
}

#[tokio::test]
async fn a_connection_that_the_owner_closed_meanwhile_costs_no_request() {
    let rounds = scale(20, 500);
    for speaks in BOTH {
        let count = Arc::new(AtomicU64::new(0));
        let mut server = Server::open(speaks, counting(&count)).await;
        let address = server.address;
        let proxy = proxy(speaking(&server.url(), speaks));
        for _ in 0..rounds {
            assert_eq!(ask(&proxy, post("x")).await.status, 200, "{speaks:?}");
            server.kill().await;
            server = Server::open_on(address, speaks, None, counting(&count)).await;
        }
        assert_eq!(count.load(Relaxed), rounds, "each was done once");
    }
}

#[tokio::test]
async fn an_owner_that_takes_its_leave_loses_nothing_and_does_nothing_twice() {
    let each = scale(150, 5_000);
    for speaks in BOTH {
        let count = Arc::new(AtomicU64::new(0));
        let server = Server::open(speaks, counting(&count)).await;
        let proxy = proxy(speaking(&server.url(), speaks));
        let writers = (0..16).map(|_| {
            let proxy = proxy.clone();
            tokio::spawn(async move {
                let (mut done, mut lost) = (0, 0);
                for _ in 0..each {
                    let seen = ask(&proxy, post("x")).await;
                    match seen.status {
                        200 => done += 1,
                        502 if seen.problem("effect") == "unknown" => lost += 1,
                        // A second connection that ended as it was taken.
                        503 if seen.problem("effect") == "none" => {}
                        other => panic!("{other}: {seen:?}"),
                    }
                }
                (done, lost)
            })
        });
        let writers: Vec<_> = writers.collect();
        let mut drains = tokio::time::interval(Duration::from_millis(5));
        while writers.iter().any(|writer| !writer.is_finished()) {
            drains.tick().await;
            server.drain();
        }
        let (mut done, mut lost) = (0, 0);
        for writer in writers {
            let (its_done, its_lost) = writer.await.unwrap();
            (done, lost) = (done + its_done, lost + its_lost);
        }
        let (really, asked) = (count.load(Relaxed), 16 * each);
        eprintln!("{speaks:?}: {asked} asked, {done} done, {lost} unknown, {} connections", server.connections());
        assert!(server.connections() > 10 && done > 0, "connections ended all the time");
        match speaks {
            // A request that meets the end of its connection was not begun, and HTTP/2 says so (RFC 9113 §6.8).
            Speaks::Http2 => assert_eq!((really, lost), (done, 0)),
            // HTTP/1.1 cannot: whoever asked is told that it does not know.
            Speaks::Http1 => assert!((done..=done + lost).contains(&really), "{really} really done"),
        }
    }
}

#[tokio::test]
async fn an_owner_that_dies_with_a_request_in_hand_is_never_asked_twice() {
    for speaks in BOTH {
        for method in ["POST", "PUT", "DELETE", "GET"] {
            let count = Arc::new(AtomicU64::new(0));
            let counted = count.clone();
            let dies = handler(move |request| {
                let count = counted.clone();
                async move {
                    request.into_body().collect().await?;
                    count.fetch_add(1, Relaxed);
                    Err("no answer".into())
                }
            });
            let server = Server::open(speaks, dies).await;
            let proxy = proxy(speaking(&server.url(), speaks));
            let seen = ask(&proxy, Request::builder().method(method).uri("/").body(full("x")).unwrap()).await;
            assert_eq!((seen.status, &*seen.problem("effect"), &*seen.problem("code")), (502, "unknown", "answer_lost"), "{speaks:?}");
            assert_eq!(count.load(Relaxed), 1, "{speaks:?} {method}");
            assert_eq!(seen.headers.contains_key("x-sync-position"), method != "GET");
            assert!(!seen.text().contains("127.0.0.1"), "nothing of what is behind");
        }
    }
}

#[tokio::test]
async fn an_owner_that_dies_in_the_middle_of_an_answer_leaves_no_half_answer_that_looks_whole() {
    for (speaks, announced) in [(Speaks::Http1, false), (Speaks::Http1, true), (Speaks::Http2, false), (Speaks::Http2, true)] {
        let next = Arc::new(parking_lot::Mutex::new(None));
        let taken = next.clone();
        let answering = handler(move |_| {
            let parts = taken.lock().take();
            async move {
                let mut answer = Response::new(parts.map_or_else(nothing, streamed));
                if announced {
                    answer.headers_mut().insert("content-length", "100".parse()?);
                }
                Ok(answer)
            }
        });
        let server = Server::open(speaks, answering).await;
        let proxy = proxy(speaking(&server.url(), speaks));
        let answer_of = |next: &parking_lot::Mutex<_>| {
            let (sender, parts) = mpsc::channel(1);
            *next.lock() = Some(parts);
            sender
        };
        let sender = answer_of(&next);
        let Ok(answer) = proxy.clone().oneshot(post("x")).await;
        assert_eq!(answer.status(), StatusCode::OK);
        let mut body = answer.into_body();
        sender.send(Ok("half of")).await.unwrap();
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "half of");
        sender.send(Err("the owner dies".into())).await.unwrap();
        let broken = body.frame().await.expect("an error, and no end").unwrap_err();
        assert_eq!(broken.to_string(), "the answer broke off", "{speaks:?}");
        assert_eq!((proxy.stats().broken, proxy.stats().in_flight), (1, 1));
        drop(body);
        assert_eq!(proxy.stats().in_flight, 0);

        // The same through the front office's port: the client sees that it broke.
        let sender = answer_of(&next);
        let front = super::proxy_world::front(proxy).await;
        let mut tcp = tokio::net::TcpStream::connect(front.address).await.unwrap();
        tcp.write_all(b"POST / HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        let head = read_head(&mut tcp).await;
        assert!(head.starts_with("HTTP/1.1 200") && head.contains("content-length: 100") == announced, "{head}");
        sender.send(Ok("half of")).await.unwrap();
        sender.send(Err("the owner dies".into())).await.unwrap();
        let mut rest = Vec::new();
        let _ = tcp.read_to_end(&mut rest).await;
        let rest = String::from_utf8_lossy(&rest);
        assert!(!rest.contains("0\r\n\r\n") && rest.len() < 100, "an end where there is none: {rest}");
    }
}

#[tokio::test]
async fn an_answer_that_stalls_is_broken_off() {
    for speaks in BOTH {
        let server = Server::open(
            speaks,
            handler(move |_| async move {
                let (sender, parts) = mpsc::channel(1);
                sender.try_send(Ok("part"))?;
                // Never another, and never the end.
                std::mem::forget(sender);
                Ok(Response::new(streamed(parts)))
            }),
        );
        let server = server.await;
        let mut config = speaking(&server.url(), speaks);
        config.timeouts.stalled = Duration::from_millis(50);
        let proxy = proxy(config);
        let seen = ask(&proxy, post("x")).await;
        assert_eq!(seen.body.unwrap_err(), "the answer stopped coming", "{speaks:?}");
        assert_eq!((proxy.stats().in_flight, proxy.stats().broken), (0, 1));
    }
}

#[tokio::test]
async fn the_callers_deadline_travels_and_a_slow_owner_is_told_from_one_that_was_not_reached() {
    for speaks in BOTH {
        let heard = Arc::new(parking_lot::Mutex::new(String::new()));
        let told = heard.clone();
        let server = Server::open(
            speaks,
            handler(move |request| {
                *told.lock() = format!("{:?}", request.headers().get("request-timeout"));
                std::future::pending()
            }),
        );
        let server = server.await;
        let proxy = proxy(speaking(&server.url(), speaks));
        let mut request = post("x");
        let deadline = Instant::now() + Duration::from_millis(500);
        request.extensions_mut().insert(CallContext { deadline: Some(deadline), ..CallContext::default() });
        let seen = ask(&proxy, request).await;
        assert!(Instant::now() < deadline + Duration::from_secs(1));
        assert_eq!((seen.status, &*seen.problem("effect"), &*seen.problem("code")), (504, "unknown", "no_answer_in_time"));
        assert_eq!(seen.header("x-sync-position"), "unknown");
        assert!(seen.header("set-cookie").starts_with("horos-sync-position.fo-1=unknown; "));
        let patience: f64 = heard.lock().split('"').nth(1).unwrap().parse().unwrap();
        assert!(patience > 0.1 && patience <= 0.45, "{patience}");
        assert_eq!(proxy.stats().timed_out, 1);
    }
    // Somebody who takes connections and says nothing.
    let (_listener, address) = raw().await;
    let cluster = Cluster::new(&[(Role::Bo, "bo-1"), (Role::Fo, "fo-1")]);
    let mut config = config(&format!("https://{address}"));
    config.tls = Some(cluster.client("fo-1", &cluster.id(Role::Bo, "bo-1")));
    config.timeouts.answer = Duration::from_millis(100);
    let seen = ask(&proxy(config.clone()), post("x")).await;
    assert_eq!((seen.status, &*seen.problem("effect"), &*seen.problem("code")), (504, "none", "not_sent_in_time"));
    config.timeouts.answer = Duration::from_secs(30);
    config.timeouts.connect = Duration::from_millis(100);
    let seen = ask(&proxy(config), post("x")).await;
    assert_eq!((seen.status, &*seen.problem("effect"), &*seen.problem("code")), (503, "none", "owner_away"));
}

#[tokio::test]
async fn a_client_that_goes_takes_its_request_along() {
    for speaks in BOTH {
        let (begun, ended) = (Arc::new(Notify::new()), Arc::new(AtomicU64::new(0)));
        let (telling, counting) = (begun.clone(), ended.clone());
        struct Ends(Arc<AtomicU64>);
        impl Drop for Ends {
            fn drop(&mut self) {
                self.0.fetch_add(1, Relaxed);
            }
        }
        let server = Server::open(
            speaks,
            handler(move |_| {
                let ends = Ends(counting.clone());
                telling.notify_one();
                async move {
                    let _ends = ends;
                    std::future::pending().await
                }
            }),
        );
        let server = server.await;
        let proxy = proxy(speaking(&server.url(), speaks));
        let asking = tokio::spawn({
            let proxy = proxy.clone();
            async move { ask(&proxy, post("x")).await }
        });
        begun.notified().await;
        asking.abort();
        eventually("the owner's handler has ended", || ended.load(Relaxed) == 1).await;
        eventually("nothing in flight", || proxy.stats().in_flight == 0).await;
    }
}

#[tokio::test]
async fn what_is_no_answer_is_not_passed_on_as_one() {
    for nonsense in [
        "nonsense\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\nnobody asked for this",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
        &format!("HTTP/1.1 200 OK\r\nx-long: {}\r\n\r\n", "x".repeat(200_000)),
    ] {
        let (listener, address) = raw().await;
        let nonsense = nonsense.to_owned();
        let answering = tokio::spawn(async move {
            let (mut tcp, _) = listener.accept().await.unwrap();
            read_head(&mut tcp).await;
            let _ = tcp.write_all(nonsense.as_bytes()).await;
            let _ = tcp.read_to_end(&mut Vec::new()).await;
        });
        let proxy = proxy(config(&format!("http://{address}")));
        let seen = ask(&proxy, Request::post("/").body(nothing()).unwrap()).await;
        assert_eq!((seen.status, &*seen.problem("effect")), (502, "unknown"), "{seen:?}");
        drop(proxy);
        answering.await.unwrap();
    }
}

#[tokio::test]
async fn the_owner_is_ready_by_its_own_word_and_by_no_other_answer() {
    let status = Arc::new(AtomicU64::new(200));
    let told = status.clone();
    let says = handler(move |request| {
        let status = if request.uri().path() == "/readyz" { told.load(Relaxed) } else { 500 };
        async move { Ok(Response::builder().status(status as u16).body(nothing())?) }
    });
    let mut server = Server::open(Speaks::Http2, says.clone()).await;
    let address = server.address;
    let mut config = speaking(&server.url(), Speaks::Http2);
    config.timeouts.probe = Duration::from_millis(5);
    let proxy = proxy(config);
    assert_eq!(*proxy.owner().borrow(), Owner::Unknown);
    let watched = proxy.clone();
    let _watching = tokio::spawn(async move { watched.watch().await });
    let mut owner = proxy.owner();
    let within = Duration::from_secs(20);
    for answer in [200, 503, 200, 404, 401, 302] {
        status.store(answer, Relaxed);
        let expected = |owner: &Owner| match owner {
            Owner::Ready { .. } => answer == 200,
            Owner::Away { why: Why::Status(status), .. } => u64::from(status.as_u16()) == answer,
            _ => false,
        };
        tokio::time::timeout(within, owner.wait_for(expected)).await.expect("it is noticed").unwrap();
    }
    let since = |owner: Owner| match owner {
        Owner::Away { since, .. } => since,
        other => panic!("{other:?}"),
    };
    let away = since(*owner.borrow());
    server.kill().await;
    let gone = |owner: &Owner| matches!(owner, Owner::Away { why: Why::Unreachable | Why::Silent, .. });
    tokio::time::timeout(within, owner.wait_for(gone)).await.expect("it is noticed").unwrap();
    assert_eq!(since(*owner.borrow()), away, "away since it was first away, whatever else became of it");
    status.store(200, Relaxed);
    let _server = Server::open_on(address, Speaks::Http2, None, says).await;
    tokio::time::timeout(within, owner.wait_for(Owner::is_ready)).await.expect("it is noticed").unwrap();
}

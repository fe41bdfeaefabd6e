//! What passes through the write proxy, and what does not.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use horos_dbsync::proxy::{BoxError, Owner, Why};
use horos_wire::Role;
use http::{Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use tokio::sync::{Semaphore, mpsc};
use tower::ServiceExt as _;

use super::proxy_world::{
    BOTH, Cluster, Handler, Server, Speaks, ask, config, counting, eventually, full, get, handler, nothing, of, post, proxy, raw, speaking,
    streamed,
};

/// Answers with what was asked.
fn echo() -> Handler {
    handler(|request| async move {
        let head = format!("{} {} {:?}", request.method(), request.uri().path_and_query().unwrap(), request.headers());
        let body = request.into_body().collect().await?.to_bytes();
        Ok(Response::new(full(format!("{head}\n{}", String::from_utf8_lossy(&body)))))
    })
}

#[tokio::test]
async fn a_write_reaches_the_owner_and_its_answer_the_client() {
    let cluster = Cluster::new(&[(Role::Bo, "bo-1"), (Role::Fo, "fo-1")]);
    for speaks in BOTH {
        for tls in [false, true] {
            let accepting = tls.then(|| cluster.server("bo-1"));
            let server = Server::open_on("127.0.0.1:0".parse().unwrap(), speaks, accepting, echo()).await;
            let mut config = speaking(&server.url(), speaks);
            if tls {
                config.owner = server.url().replace("http", "https").parse().unwrap();
                config.tls = Some(cluster.client("fo-1", &cluster.id(Role::Bo, "bo-1")));
                config.version = Default::default();
            }
            config.client = Arc::new(|extensions| extensions.get::<IpAddr>().copied());
            let proxy = proxy(config);
            for _ in 0..3 {
                let mut request = post("two teas");
                request.headers_mut().insert("authorization", "Bearer hk_1".parse().unwrap());
                request.extensions_mut().insert(IpAddr::from([192, 0, 2, 1]));
                let seen = ask(&proxy, request).await;
                assert_eq!(seen.status, 200, "{speaks:?} {seen:?}");
                let text = seen.text();
                assert!(text.starts_with("POST /order ") && text.ends_with("\ntwo teas"), "{text}");
                for field in ["\"authorization\": \"Bearer hk_1\"", "\"x-forwarded-for\": \"192.0.2.1\"", "\"content-length\": \"8\""] {
                    assert!(text.contains(field), "{field} in {text}");
                }
                let host = format!("\"host\": \"{}\"", server.address);
                assert_eq!(text.contains(&host), speaks == Speaks::Http1, "HTTP/2 has it elsewhere: {text}");
            }
            assert_eq!(server.connections(), 1, "{speaks:?}");
            assert_eq!((proxy.stats().answered, proxy.stats().in_flight), (3, 0));
        }
    }
}

#[tokio::test]
async fn whoever_is_at_the_owners_address_and_is_not_the_owner_gets_nothing() {
    let cluster = Cluster::new(&[(Role::Bo, "bo-1"), (Role::Bo, "bo-2"), (Role::Fo, "fo-1")]);
    let other = Cluster::new(&[(Role::Bo, "bo-1")]);
    let count = Arc::new(AtomicU64::new(0));
    for stranger in [cluster.server("bo-2"), cluster.server("fo-1"), other.server("bo-1")] {
        let server = Server::open_on("127.0.0.1:0".parse().unwrap(), Speaks::Http2, Some(stranger), counting(&count)).await;
        let mut config = config(&server.url().replace("http", "https"));
        config.tls = Some(cluster.client("fo-1", &cluster.id(Role::Bo, "bo-1")));
        let proxy = proxy(config);
        let seen = ask(&proxy, post("secret")).await;
        assert_eq!((seen.status, &*seen.problem("effect"), &*seen.problem("code")), (502, "none", "owner_not_known"));
        assert!(matches!(*proxy.owner().borrow(), Owner::Away { why: Why::Stranger, .. }));
    }
    assert_eq!(count.load(Relaxed), 0);
}

#[tokio::test]
async fn bodies_stream_both_ways_part_by_part() {
    for speaks in BOTH {
        let server =
            Server::open(speaks, handler(|request| async { Ok(Response::new(request.into_body().map_err(Into::into).boxed_unsync())) }));
        let server = server.await;
        let proxy = proxy(speaking(&server.url(), speaks));
        let (sender, parts) = mpsc::channel(1);
        let request = Request::post("/").body(streamed(parts)).unwrap();
        let Ok(answer) = proxy.oneshot(request).await;
        let mut body = answer.into_body();
        for part in ["one", "two", "three"] {
            // The next part is not there yet when this one comes back.
            sender.send(Ok(part)).await.unwrap();
            assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), part, "{speaks:?}");
        }
        drop(sender);
        assert_eq!(body.collect().await.unwrap().to_bytes(), "", "nothing but the end");
    }
}

#[tokio::test]
async fn a_body_larger_than_the_limit_is_refused_said_or_not() {
    for speaks in BOTH {
        let count = Arc::new(AtomicU64::new(0));
        let server = Server::open(speaks, counting(&count)).await;
        let mut config = speaking(&server.url(), speaks);
        config.limits.body = 10;
        let proxy = proxy(config);
        assert_eq!(ask(&proxy, post("0123456789")).await.status, 200);
        let seen = ask(&proxy, post("0123456789a")).await;
        assert_eq!((seen.status, &*seen.problem("effect")), (413, "none"));
        let connections = server.connections();

        let (sender, parts) = mpsc::channel(8);
        for part in ["01234", "56789", "a"] {
            sender.send(Ok(part)).await.unwrap();
        }
        let seen = ask(&proxy, Request::post("/").body(streamed(parts)).unwrap()).await;
        assert_eq!((seen.status, &*seen.problem("effect")), (413, "unknown"), "the owner has seen its beginning");
        assert_eq!(seen.header("x-sync-position"), "unknown");
        assert_eq!(count.load(Relaxed), 1, "the owner never saw the end of it, and did nothing");
        assert_eq!(ask(&proxy, post("x")).await.status, 200, "the next request has another connection or stream");
        assert!(server.connections() <= connections + 1);
    }
}

#[tokio::test]
async fn a_body_that_the_client_breaks_off_is_no_whole_body_for_the_owner() {
    for speaks in BOTH {
        let count = Arc::new(AtomicU64::new(0));
        let server = Server::open(speaks, counting(&count)).await;
        let proxy = proxy(speaking(&server.url(), speaks));
        let (sender, parts) = mpsc::channel(8);
        sender.send(Ok("half of")).await.unwrap();
        sender.send(Err("the client is gone".into())).await.unwrap();
        let seen = ask(&proxy, Request::post("/").body(streamed(parts)).unwrap()).await;
        assert_eq!((seen.status, &*seen.problem("code")), (400, "body_cut"), "{speaks:?}");
        assert_eq!(count.load(Relaxed), 0);
    }
}

#[tokio::test]
async fn no_more_is_in_flight_than_may_be_and_the_rest_is_told_at_once() {
    for speaks in BOTH {
        let go = Arc::new(Semaphore::new(0));
        let waiting = go.clone();
        let server = Server::open(
            speaks,
            handler(move |_| {
                let go = waiting.clone();
                async move {
                    go.acquire().await?.forget();
                    Ok(Response::new(full("done")))
                }
            }),
        );
        let server = server.await;
        let mut config = speaking(&server.url(), speaks);
        config.limits.in_flight = 4;
        config.limits.connections = 2;
        let proxy = proxy(config);
        let held: Vec<_> = (0..4)
            .map(|_| {
                tokio::spawn({
                    let proxy = proxy.clone();
                    async move { ask(&proxy, post("x")).await }
                })
            })
            .collect();
        eventually("four in flight", || proxy.stats().in_flight == 4).await;
        let asked = Instant::now();
        let seen = ask(&proxy, post("x")).await;
        assert_eq!((seen.status, &*seen.problem("effect"), seen.header("retry-after")), (503, "none", "1"));
        assert!(asked.elapsed() < Duration::from_secs(2));
        go.add_permits(4);
        for held in held {
            assert_eq!(held.await.unwrap().status, 200);
        }
        assert_eq!((proxy.stats().full, proxy.stats().in_flight), (1, 0));
    }
}

#[tokio::test]
async fn an_answer_in_flight_is_counted_until_its_end_or_until_nobody_wants_it() {
    for speaks in BOTH {
        let (sender, parts) = mpsc::channel(8);
        let parts = Arc::new(parking_lot::Mutex::new(Some(parts)));
        let server = Server::open(
            speaks,
            handler(move |_| {
                let parts = parts.lock().take();
                async move { Ok(Response::new(parts.map_or_else(nothing, streamed))) }
            }),
        );
        let server = server.await;
        let proxy = proxy(speaking(&server.url(), speaks));
        let Ok(answer) = proxy.clone().oneshot(post("x")).await;
        sender.send(Ok("part")).await.unwrap();
        assert_eq!(proxy.stats().in_flight, 1);
        drop(answer);
        assert_eq!(proxy.stats().in_flight, 0);
        // The owner learns that nobody reads on.
        eventually("the owner's stream is closed", || sender.is_closed()).await;
        assert_eq!(ask(&proxy, post("x")).await.status, 200);
    }
}

#[tokio::test]
async fn many_requests_share_few_connections_of_http_2() {
    let server = Server::open(Speaks::Http2, echo()).await;
    let mut config = speaking(&server.url(), Speaks::Http2);
    config.limits.in_flight = 256;
    config.limits.connections = 4;
    let proxy = proxy(config);
    for _ in 0..4 {
        let asked = (0..256).map(|_| {
            let proxy = proxy.clone();
            tokio::spawn(async move { ask(&proxy, post("x")).await.status })
        });
        for status in futures_util::future::join_all(asked).await {
            assert_eq!(status.unwrap(), 200);
        }
    }
    assert!((1..=4).contains(&server.connections()), "{}", server.connections());
    assert_eq!(proxy.stats().connections, server.connections());
}

#[tokio::test]
async fn clients_that_do_not_take_their_answers_hold_up_nobody_elses() {
    let endless = handler(|request| async move {
        if request.uri().path() != "/endless" {
            return Ok(Response::new(full("done")));
        }
        let chunk = Bytes::from(vec![0; 64 * 1024]);
        let parts = futures_util::stream::repeat_with(move || Ok::<_, BoxError>(Frame::data(chunk.clone())));
        Ok(Response::new(StreamBody::new(parts).boxed_unsync()))
    });
    let server = Server::open(Speaks::Http2, endless).await;
    let mut config = speaking(&server.url(), Speaks::Http2);
    (config.limits.connections, config.limits.in_flight) = (1, 32);
    let proxy = proxy(config);
    let mut held = Vec::new();
    for _ in 0..31 {
        let Ok(answer) = proxy.clone().oneshot(get("/endless")).await;
        assert_eq!(answer.status(), StatusCode::OK);
        held.push(answer);
    }
    for _ in 0..10 {
        let asked = tokio::time::timeout(Duration::from_secs(10), ask(&proxy, post("x"))).await;
        assert_eq!(asked.expect("nobody holds it up").text(), "done");
    }
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn two_nodes_that_take_each_other_for_the_owner_do_not_ask_in_circles() {
    let (listener, address) = raw().await;
    drop(listener);
    let circle = proxy(config(&format!("http://{address}")));
    let _server = Server::open_on(address, Speaks::Http1, None, of(circle.clone())).await;
    let seen = ask(&circle, post("x")).await;
    assert_eq!((seen.status, &*seen.problem("effect")), (508, "none"));
}

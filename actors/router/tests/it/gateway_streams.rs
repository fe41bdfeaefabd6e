//! Bodies through the gateway: whole or broken, both ways, as quickly as they are read, and with nothing kept.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::Request;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::gateway_world::{Answer, LONG, MEMORY, OutBody, Site, eventually, resident, send, serve, whole};

const PUBLIC: &str = r#"{"gateway": "public"}"#;
const MIB: u64 = 1 << 20;

/// How much to do: `normal` on every change, `full` with `HOROS_TEST_FULL=1`, which does what the promise names.
fn scale<T>(normal: T, full: T) -> T {
    if std::env::var_os("HOROS_TEST_FULL").is_some_and(|value| value == "1") { full } else { normal }
}

/// `mib` MiB, each part with its number.
fn numbered(mib: u64) -> OutBody {
    let parts = stream::iter((0..mib * 16).map(|number| {
        let part: Vec<u8> = number.to_le_bytes().repeat(8192);
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>(Frame::data(Bytes::from(part)))
    }));
    BodyExt::boxed(StreamBody::new(parts))
}

fn post(path: &str, kind: &str, body: OutBody) -> Request<OutBody> {
    Request::post(path).header("content-type", kind).body(body).unwrap()
}

/// Reads it all, and checks that it is [`numbered`]; answers how much it was and how much memory was in use at most.
async fn read_numbered(mut body: Incoming) -> (u64, usize) {
    let (mut length, mut most, mut part) = (0_u64, 0, Vec::new());
    while let Some(frame) = tokio::time::timeout(LONG, body.frame()).await.unwrap() {
        part.extend_from_slice(&frame.unwrap().into_data().unwrap());
        while part.len() >= 65_536 {
            assert!(part[..65_536] == (length / 65_536).to_le_bytes().repeat(8192), "at {length}");
            part.drain(..65_536);
            length += 65_536;
        }
        most = most.max(resident());
    }
    (length + part.len() as u64, most)
}

#[tokio::test]
async fn a_body_goes_both_ways_at_once_and_nothing_of_it_is_kept() {
    let _alone = MEMORY.write().await;
    let far = Site::new(&[]).await;
    let near = Site::new(&[far.address]).await;
    far.routes(&[("press", "local", "", PUBLIC)]);
    near.routes(&[("press", "local", "", PUBLIC), ("far", "http", &far.url("/press"), PUBLIC)]);
    let mib = scale(40, 100);
    for path in ["/press", "/far"] {
        let before = resident();
        let answer = send(near.address, post(path, "x/echo", numbered(mib))).await;
        assert_eq!((answer.status().as_u16(), answer.headers()["content-type"].to_str().unwrap()), (200, "x/echo"), "{path}");
        let (length, most) = read_numbered(answer.into_body()).await;
        assert_eq!(length, mib * MIB);
        assert!(most < before + 24, "{path}: {before} MiB before, {most} MiB at most");
    }
}

#[tokio::test]
async fn what_fits_a_message_and_what_does_not_come_back_alike() {
    let _much = MEMORY.read().await;
    let site = Site::new(&[]).await;
    site.routes(&[("press", "local", "", PUBLIC)]);
    for length in [0, 1, 16_383, 16_384, 16_385, 1_000_000] {
        let body: Bytes = (0..length).map(|n: usize| n as u8).collect();
        let answer = site.post("/press", &[("content-type", "x/echo")], body.clone()).await;
        assert_eq!((answer.status.as_u16(), answer.header("content-type")), (200, Some("x/echo")));
        assert_eq!(answer.body, body, "{length}");
    }
    assert_eq!(site.seen.read.load(Relaxed), 1 + 16_383 + 16_384 + 16_385 + 1_000_000);
}

#[tokio::test]
async fn an_answer_of_a_gibibyte_passes_through() {
    let _alone = MEMORY.write().await;
    let far = Site::new(&[]).await;
    let near = Site::new(&[far.address]).await;
    far.routes(&[("press", "local", "", PUBLIC)]);
    near.routes(&[("press", "local", "", PUBLIC), ("far", "http", &far.url("/press"), PUBLIC)]);
    let length = scale(128, 1024) * MIB;
    for path in ["/press", "/far"] {
        let before = resident();
        let mut body = send(near.address, post(path, &format!("x/stream-{length}"), whole("x"))).await.into_body();
        let (mut read, mut most) = (0, 0);
        while let Some(frame) = tokio::time::timeout(LONG, body.frame()).await.unwrap() {
            read += frame.unwrap().into_data().unwrap().len() as u64;
            most = most.max(resident());
        }
        assert_eq!(read, length, "{path}");
        assert!(most < before + 24, "{path}: {before} MiB before, {most} MiB at most");
    }
}

#[tokio::test]
async fn who_reads_slowly_is_waited_for_and_who_goes_ends_it() {
    let _much = MEMORY.read().await;
    let far = Site::new(&[]).await;
    let near = Site::new(&[far.address]).await;
    far.routes(&[("press", "local", "", PUBLIC)]);
    near.routes(&[("press", "local", "", PUBLIC), ("far", "http", &far.url("/press"), PUBLIC)]);
    for (path, seen) in [("/press", &near.seen), ("/far", &far.seen)] {
        let mut body = send(near.address, post(path, "x/stream-endless", whole("x"))).await.into_body();
        let mut read = 0;
        while read < MIB {
            read += body.frame().await.unwrap().unwrap().into_data().unwrap().len() as u64;
        }
        // It stands still as soon as what is between is full.
        let (mut before, mut same) = (0, 0);
        eventually("the writer waits", || {
            let now = seen.written.load(Relaxed);
            same = if now == before { same + 1 } else { 0 };
            before = now;
            (same > 40, now)
        })
        .await;
        assert!(before < read + 64 * MIB, "{path}: {before} bytes were taken for {read} read");
        assert!(!seen.stopped.load(Relaxed));
        drop(body);
        eventually("the writer is stopped", || (seen.stopped.load(Relaxed), seen.written.load(Relaxed))).await;
    }
}

#[tokio::test]
async fn an_answer_that_breaks_off_does_not_look_whole() {
    let far = Site::new(&[]).await;
    let near = Site::new(&[far.address]).await;
    far.routes(&[("press", "local", "", PUBLIC)]);
    near.routes(&[
        ("press", "local", "", r#"{"gateway": "public", "breaker": {"minimum_calls": 10}}"#),
        ("far", "http", &far.url("/press"), PUBLIC),
    ]);
    for path in ["/press", "/far"] {
        let body = send(near.address, post(path, "x/stream-broken", whole("x"))).await.into_body();
        assert!(body.collect().await.is_err(), "{path}");
    }
    // An endpoint that begins well and breaks off each time is none to go on with.
    let mut opened = false;
    for _ in 0..30 {
        let answer = send(near.address, post("/press", "x/stream-broken", whole("x"))).await;
        opened = answer.status() == 503;
        drop(answer.into_body().collect().await);
        if opened {
            break;
        }
    }
    assert!(opened, "its breaker opens");
}

#[tokio::test]
async fn a_request_that_breaks_off_does_not_look_whole() {
    let far = Site::new(&[]).await;
    let near = Site::new(&[far.address]).await;
    far.routes(&[("press", "local", "", PUBLIC)]);
    near.routes(&[("press", "local", "", PUBLIC), ("far", "http", &far.url("/press"), PUBLIC)]);
    for (path, seen) in [("/press", &near.seen), ("/far", &far.seen)] {
        let mut socket = TcpStream::connect(near.address).await.unwrap();
        let head = format!("POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: x/echo\r\ncontent-length: 1000000\r\n\r\n");
        socket.write_all(head.as_bytes()).await.unwrap();
        socket.write_all(&[b'x'; 100_000]).await.unwrap();
        eventually("it is on its way", || (seen.read.load(Relaxed) >= 30_000, seen.read.load(Relaxed))).await;
        drop(socket);
        eventually("it is known to be broken", || (seen.broken.load(Relaxed) || seen.stopped.load(Relaxed), seen.read.load(Relaxed))).await;
        assert!(!seen.whole.load(Relaxed));
    }
    // A chunk that is none: the client is still there to be told, though the service never answers.
    let mut socket = TcpStream::connect(near.address).await.unwrap();
    let head = "POST /press HTTP/1.1\r\nhost: x\r\ncontent-type: x/hang\r\ntransfer-encoding: chunked\r\n\r\n5000\r\n";
    socket.write_all(head.as_bytes()).await.unwrap();
    socket.write_all(&[b'x'; 0x5000]).await.unwrap();
    socket.write_all(b"\r\nzz\r\n").await.unwrap();
    let mut told = Vec::new();
    tokio::time::timeout(LONG, socket.read_to_end(&mut told)).await.unwrap().unwrap();
    let told = String::from_utf8_lossy(&told);
    assert!(told.starts_with("HTTP/1.1 400 ") && told.contains("broken-body"), "{told}");
}

/// Is dropped with whatever it is in.
struct Dropped(Arc<AtomicBool>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

#[tokio::test]
async fn a_client_that_goes_takes_its_call_back() {
    let (arrived, dropped) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let (seen, gone) = (arrived.clone(), dropped.clone());
    let server = serve(move |_: Request<Incoming>| {
        let (seen, held) = (seen.clone(), Dropped(gone.clone()));
        async move {
            seen.fetch_add(1, Relaxed);
            std::future::pending::<()>().await;
            drop(held);
            Ok(http::Response::new(whole("")))
        }
    })
    .await;
    let site = Site::new(&[server]).await;
    let url = format!("http://{server}/");
    site.routes(&[("json", "http", &url, r#"{"gateway": "public", "payload": "json"}"#), ("bytes", "http", &url, PUBLIC)]);
    for (number, path) in ["/json", "/bytes"].into_iter().enumerate() {
        let mut socket = TcpStream::connect(site.address).await.unwrap();
        let head = format!("POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{{}}");
        socket.write_all(head.as_bytes()).await.unwrap();
        eventually("it has arrived", || (arrived.load(Relaxed) == number as u64 + 1, ())).await;
        assert!(!dropped.load(Relaxed));
        drop(socket);
        eventually("it is taken back", || (dropped.swap(false, Relaxed), ())).await;
    }
}

#[tokio::test]
async fn an_answer_that_stops_coming_is_cut_off_after_the_routes_time() {
    let server = serve(|_: Request<Incoming>| async {
        let first = stream::iter([Ok::<_, Box<dyn std::error::Error + Send + Sync>>(Frame::data(Bytes::from_static(b"begun")))]);
        Ok(http::Response::new(BodyExt::boxed(StreamBody::new(first.chain(stream::pending())))))
    })
    .await;
    let site = Site::new(&[server]).await;
    site.routes(&[("slow", "http", &format!("http://{server}/"), r#"{"gateway": "public", "timeout_ms": 300}"#)]);
    let mut body = send(site.address, post("/slow", "x/y", whole("x"))).await.into_body();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "begun");
    let end = tokio::time::timeout(Duration::from_secs(10), body.frame()).await.unwrap();
    assert!(end.is_some_and(|frame| frame.is_err()));
}

#[tokio::test]
async fn a_place_among_the_calls_in_hand_is_kept_while_an_answer_flows() {
    let site = Site::new(&[]).await;
    site.routes(&[("press", "local", "", r#"{"gateway": "public", "concurrency": {"limit": 1}}"#)]);
    let flowing = send(site.address, post("/press", "x/stream-endless", whole("x"))).await;
    assert_eq!(flowing.status(), 200);
    let refused = site.post("/press", &[("content-type", "x/echo")], "x").await;
    assert_eq!(refused.problem(), (503, "overloaded".to_owned(), "none".to_owned()));
    drop(flowing);
    let free = async || loop {
        if site.post("/press", &[("content-type", "x/echo")], "x").await.status == 200 {
            break;
        }
    };
    tokio::time::timeout(LONG, free()).await.expect("the place is free again");
}

#[tokio::test]
async fn what_is_small_is_tried_again_and_a_stream_is_sent_once() {
    let hits = Arc::new(AtomicU64::new(0));
    let counted = hits.clone();
    let server = serve(move |request: Request<Incoming>| {
        let number = counted.fetch_add(1, Relaxed);
        async move {
            let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
            let mut answer = http::Response::new(whole(body));
            if number.is_multiple_of(2) {
                *answer.status_mut() = http::StatusCode::SERVICE_UNAVAILABLE;
                answer.headers_mut().insert("retry-after", "0".parse().unwrap());
            }
            Ok(answer)
        }
    })
    .await;
    let site = Site::new(&[server]).await;
    let config = r#"{"gateway": "public", "retry": {"retries": 3, "base_ms": 1}, "breaker": {"failures": 0, "failure_percent": 0}}"#;
    site.routes(&[("odd", "http", &format!("http://{server}/"), config)]);
    let small = site.post("/odd", &[], "small").await;
    assert_eq!((small.status.as_u16(), small.text(), hits.load(Relaxed)), (200, "small", 2));
    let large = Answer::of(send(site.address, post("/odd", "x/y", numbered(1))).await).await;
    assert_eq!((large.problem(), hits.load(Relaxed)), ((503, "overloaded".to_owned(), "none".to_owned()), 3));
}

//! Sizes and times: everything ends, and nothing is cut short in silence.

use std::{io::Write as _, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use horos_egress::{BodyError, Egress, EgressError, Limits, Options, RequestBodyError, RequestError, Target, Timeouts};
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full, StreamBody};
use tokio::time::Instant;

use super::{
    server::{Then, full, plain, raw, says},
    world::{Internet, LONG, get, limits, post, read, until},
};

const URL: &str = "http://good.example/";

async fn site(server: std::net::SocketAddr, timeouts: Timeouts) -> Egress {
    let internet = Internet::new().await;
    internet.site("good.example", "93.184.216.34", server);
    Egress::new(Options { timeouts, ..internet.options() }).unwrap()
}

/// Much shorter than [`LONG`], and longer than anything takes that is not meant to hang.
const SHORT: Duration = Duration::from_millis(500);

fn short() -> Timeouts {
    Timeouts { connect: SHORT, head: SHORT, idle: SHORT, ..Timeouts::default() }
}

fn at_most(response_bytes: u64) -> Limits {
    Limits { response_bytes, ..limits() }
}

#[tokio::test]
async fn a_response_up_to_the_limit_is_read_and_one_byte_more_is_an_error() {
    let server = plain(async |_| full(Response::new("0123456789"))).await;
    let egress = site(server.address, Timeouts::default()).await;
    assert_eq!(read(&egress, URL, &at_most(10)).await.unwrap(), "0123456789");
    let error = get(&egress, URL, &at_most(9)).await.unwrap_err();
    assert!(matches!(error, EgressError::Response(BodyError::TooLarge { limit: 9 })), "before any of it is read: {error}");
    assert!(error.may_have_been_sent() && error.is_permanent());
}

#[tokio::test]
async fn a_response_that_does_not_say_its_size_is_never_taken_for_whole_when_it_is_cut() {
    for head in
        ["HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\n01234\r\n5\r\n56789\r\n0\r\n\r\n", "HTTP/1.0 200 OK\r\n\r\n0123456789"]
    {
        let server = says(head, Then::Close).await;
        let egress = site(server.address, Timeouts::default()).await;
        assert_eq!(read(&egress, URL, &at_most(10)).await.unwrap(), "0123456789");
        let mut body = get(&egress, URL, &at_most(9)).await.unwrap().into_body();
        let mut error = None;
        while let Some(frame) = body.frame().await {
            assert!(error.is_none(), "nothing comes behind an error");
            error = frame.err();
        }
        assert_eq!(error, Some(BodyError::TooLarge { limit: 9 }));
        assert!(matches!(read(&egress, URL, &at_most(9)).await, Err(EgressError::Response(BodyError::TooLarge { .. }))));
    }
}

#[tokio::test]
async fn a_response_that_breaks_off_is_an_error() {
    for bytes in [
        "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n01234",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\n01234\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\n012",
    ] {
        let server = says(bytes, Then::Close).await;
        let egress = site(server.address, Timeouts::default()).await;
        let error = read(&egress, URL, &limits()).await.unwrap_err();
        assert!(matches!(error, EgressError::Response(BodyError::Broken)), "{bytes}: {error}");
    }
}

#[tokio::test]
async fn what_swells_when_unpacked_is_not_unpacked() {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    packed.write_all(&vec![0; 32 << 20]).unwrap();
    let packed = Bytes::from(packed.finish().unwrap());
    let its = packed.clone();
    let server = plain(move |_| {
        let packed = its.clone();
        async move { full(Response::builder().header("content-encoding", "gzip").body(packed).unwrap()) }
    })
    .await;
    let egress = site(server.address, Timeouts::default()).await;
    let response = get(&egress, URL, &at_most(packed.len() as u64)).await.unwrap();
    assert_eq!(response.headers()["content-encoding"], "gzip");
    assert_eq!(response.into_body().bytes().await.unwrap(), packed);
}

#[tokio::test]
async fn a_request_is_not_larger_than_the_limit() {
    let server = plain(async |request: Request<hyper::body::Incoming>| {
        let read = request.into_body().collect().await;
        full(Response::new(if read.is_ok() { "whole" } else { "cut" }))
    })
    .await;
    let egress = site(server.address, Timeouts::default()).await;
    let four = Limits { request_bytes: 4, ..limits() };
    assert_eq!(post(&egress, URL, "1234", &four).await.unwrap().into_body().bytes().await.unwrap(), "whole");
    let error = post(&egress, URL, "12345", &four).await.unwrap_err();
    assert!(matches!(error, EgressError::RequestTooLarge { limit: 4 }) && !error.may_have_been_sent(), "{error}");
    assert_eq!(server.requests(), 1);
    // What does not say its size is found out on the way: the host sees a request that breaks off.
    let target: Target = URL.parse().unwrap();
    let frames =
        stream::iter(["123", "45"]).map(|part| Ok::<_, std::convert::Infallible>(Frame::data(Bytes::from_static(part.as_bytes()))));
    let error = egress.send(Request::post(target.to_uri()).body(StreamBody::new(frames)).unwrap(), &four).await.unwrap_err();
    assert!(matches!(error, EgressError::RequestBody(RequestBodyError::TooLarge)) && error.may_have_been_sent(), "{error}");
}

#[tokio::test]
async fn a_source_that_fails_or_stalls_is_not_the_hosts_fault() {
    let server = plain(async |request: Request<hyper::body::Incoming>| {
        let _ = request.into_body().collect().await;
        full(Response::new("whole"))
    })
    .await;
    let egress = site(server.address, short()).await;
    let target: Target = URL.parse().unwrap();
    let first = || Ok(Frame::data(Bytes::from_static(b"1")));
    let failing = stream::iter([first(), Err(std::io::Error::other("no more"))]);
    let error = egress.send(Request::post(target.to_uri()).body(StreamBody::new(failing)).unwrap(), &limits()).await.unwrap_err();
    assert!(matches!(error, EgressError::RequestBody(RequestBodyError::Failed)), "{error}");
    let stalling = stream::iter([first()]).chain(stream::pending());
    let error = egress.send(Request::post(target.to_uri()).body(StreamBody::new(stalling)).unwrap(), &limits()).await.unwrap_err();
    assert!(matches!(error, EgressError::RequestBody(RequestBodyError::Stalled)), "{error}");
    assert_eq!(egress.status().hosts[0].failed, 0);
}

#[tokio::test]
async fn a_host_that_takes_its_time_ends_by_its_limit() {
    let started = Instant::now();
    // Accepts, and never answers; begins a head, and never ends it.
    for bytes in ["", "HTTP/1.1 200 OK\r\nx: "] {
        let server = says(bytes, Then::Wait).await;
        let egress = site(server.address, short()).await;
        let error = get(&egress, URL, &limits()).await.unwrap_err();
        assert!(matches!(error, EgressError::TimedOut { .. }) && error.may_have_been_sent(), "{bytes}: {error}");
        assert_eq!(egress.status().hosts[0].failed, 1);
    }
    // A head byte by byte.
    let server = raw(async |mut stream, _| {
        use tokio::io::AsyncWriteExt as _;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nx: ").await;
        while stream.write_all(b"y").await.is_ok() {
            tokio::time::sleep(SHORT / 20).await;
        }
    })
    .await;
    let egress = site(server.address, short()).await;
    assert!(matches!(get(&egress, URL, &limits()).await, Err(EgressError::TimedOut { .. })));
    assert!(started.elapsed() < LONG);
}

#[tokio::test]
async fn a_connection_that_does_not_come_about_ends_by_its_limit() {
    let internet = Internet::new().await;
    internet.name("good.example", &[&["93.184.216.34"]]);
    internet.silent("93.184.216.34");
    let egress = Egress::new(Options { timeouts: short(), ..internet.options() }).unwrap();
    let error = get(&egress, URL, &limits()).await.unwrap_err();
    assert!(matches!(error, EgressError::Unreachable { .. }) && !error.may_have_been_sent(), "{error}");
    let error = get(&egress, URL, &Limits::within(SHORT / 10)).await.unwrap_err();
    assert!(matches!(error, EgressError::TooLate { .. }) && !error.may_have_been_sent(), "{error}");
}

#[tokio::test]
async fn a_body_that_stops_coming_ends_by_its_limit_and_one_that_drips_by_the_deadline() {
    let server = says("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n01234", Then::Wait).await;
    let egress = site(server.address, short()).await;
    let error = read(&egress, URL, &limits()).await.unwrap_err();
    assert!(matches!(error, EgressError::Response(BodyError::Stalled)), "{error}");
    let server = raw(async |mut stream, _| {
        use tokio::io::AsyncWriteExt as _;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n").await;
        while stream.write_all(b"y").await.is_ok() && stream.flush().await.is_ok() {
            tokio::time::sleep(SHORT / 20).await;
        }
    })
    .await;
    let egress = site(server.address, short()).await;
    let error = read(&egress, URL, &Limits::within(SHORT * 3)).await.unwrap_err();
    assert!(matches!(error, EgressError::Response(BodyError::TooLate)), "{error}");
    assert_eq!(egress.status().in_flight, 0);
}

#[tokio::test]
async fn the_total_ends_what_its_caller_would_let_go_on() {
    let server = says("", Then::Wait).await;
    let egress = site(server.address, Timeouts { total: SHORT, ..Timeouts::default() }).await;
    let started = Instant::now();
    assert!(matches!(get(&egress, URL, &limits()).await, Err(EgressError::TimedOut { .. })));
    assert!(started.elapsed() < LONG);
}

/// A large body that is taken slowly is not a slow answer.
#[tokio::test]
async fn a_host_has_its_time_for_an_answer_from_the_last_part_that_it_took() {
    let server = plain(async |request: Request<hyper::body::Incoming>| {
        let mut body = request.into_body();
        let mut bytes = 0;
        while let Some(Ok(frame)) = body.frame().await {
            bytes += frame.into_data().map_or(0, |data| data.len());
        }
        full(Response::new(bytes.to_string()))
    })
    .await;
    let egress = site(server.address, short()).await;
    let target: Target = URL.parse().unwrap();
    let frames = stream::iter(0..8).then(|_| async {
        tokio::time::sleep(SHORT / 4).await;
        Ok::<_, std::convert::Infallible>(Frame::data(Bytes::from_static(b"1234")))
    });
    let answer = egress.send(Request::post(target.to_uri()).body(StreamBody::new(frames)).unwrap(), &limits()).await.unwrap();
    assert_eq!(answer.into_body().bytes().await.unwrap(), "32");
}

#[tokio::test]
async fn whoever_gives_up_frees_his_place_at_once() {
    let server = says("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n01234", Then::Wait).await;
    let silent = says("", Then::Wait).await;
    let egress = site(server.address, Timeouts::default()).await;
    let response = get(&egress, URL, &limits()).await.unwrap();
    assert_eq!((egress.status().in_flight, egress.status().hosts[0].in_flight), (1, 1));
    drop(response);
    assert_eq!((egress.status().in_flight, egress.status().hosts[0].in_flight), (0, 0));
    until("the connection is closed", || (egress.status().connections == 0, egress.status().connections)).await;

    let egress = site(silent.address, Timeouts::default()).await;
    let its = egress.clone();
    let asking = tokio::spawn(async move { get(&its, URL, &limits()).await.map(|_| ()) });
    until("the request is there", || (silent.requests() == 1, silent.requests())).await;
    asking.abort();
    assert!(asking.await.unwrap_err().is_cancelled());
    assert_eq!((egress.status().in_flight, egress.status().hosts[0].failed), (0, 0));
    until("the connection is closed", || (egress.status().connections == 0, egress.status().connections)).await;
}

#[tokio::test]
async fn what_is_not_the_callers_to_say_is_not_sent() {
    let server = plain(async |_| full(Response::new("here"))).await;
    let egress = site(server.address, Timeouts::default()).await;
    let target: Target = URL.parse().unwrap();
    let ask = |name: &str, value: &str| {
        let request = Request::post(target.to_uri()).header(name, value).body(Full::new(Bytes::from_static(b"body"))).unwrap();
        let egress = egress.clone();
        async move { egress.send(request, &limits()).await.map(|_| ()) }
    };
    for name in ["host", "connection", "transfer-encoding", "te", "upgrade", "proxy-authorization", "expect"] {
        let error = ask(name, "x").await.unwrap_err();
        assert!(matches!(error, EgressError::Request(RequestError::Field(_))) && !error.may_have_been_sent(), "{name}: {error}");
    }
    assert!(matches!(ask("content-length", "5").await, Err(EgressError::Request(RequestError::Length))));
    assert_eq!(server.connections(), 0);
    ask("content-length", "4").await.unwrap();
}

//! HTTP/3: what is promised of any request holds over QUIC too.

use std::{
    net::{SocketAddr, UdpSocket},
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use horos_egress::{
    BodyError, Bound, Bounds, BreakerOptions, Circuit, Egress, EgressError, Limits, Options, RequestBodyError, RequestError, Roots,
    Timeouts,
};
use http::{Method, Response, StatusCode, Version};
use http_body::Frame;
use http_body_util::{BodyExt as _, Empty, Full, StreamBody};
use quinn::VarInt;
use tokio::sync::Semaphore;

use super::{
    http3_server::{Asked, Host, asking, body, frame, get3, head, read3, say},
    server::{Authority, full, serve},
    world::{Crowd, Internet, LONG, dice, limits, scale, until},
};

const CANCELLED: u32 = 0x10c;

async fn echo(request: http::Request<()>, mut asked: Asked) {
    let length = request.headers().get("content-length").map_or("none", |length| length.to_str().unwrap());
    let about = format!("{} {} {length} ", request.method(), request.uri());
    let said = body(&mut asked).await.unwrap_or_else(|| b"half".into());
    say(asked, Response::new(()), [about.as_bytes(), &said].concat()).await;
}

/// A source that gives as the test lets it.
fn gated(
    parts: usize,
    part: Bytes,
) -> (Arc<Semaphore>, StreamBody<impl futures_util::Stream<Item = Result<Frame<Bytes>, std::io::Error>>>) {
    let gate = Arc::new(Semaphore::new(0));
    let its = gate.clone();
    let parts = stream::iter(0..parts).then(move |_| {
        let (gate, part) = (its.clone(), part.clone());
        async move {
            gate.acquire().await.unwrap().forget();
            Ok(Frame::data(part))
        }
    });
    (gate, StreamBody::new(parts))
}

#[tokio::test]
async fn a_request_that_says_http_3_goes_over_http_3() {
    let host = Host::answering(echo);
    let (egress, url) = (host.egress(), format!("{}p?q", host.url()));
    let ask = async |method: Method, body: &'static str| {
        let response = egress.send(asking(method, &url, Full::new(Bytes::from_static(body.as_bytes()))), &limits()).await.unwrap();
        assert_eq!((response.version(), response.status()), (Version::HTTP_3, StatusCode::OK));
        String::from_utf8(response.into_body().bytes().await.unwrap().into()).unwrap()
    };
    assert_eq!(ask(Method::GET, "").await, format!("GET {url} none "));
    assert_eq!(ask(Method::POST, "").await, format!("POST {url} 0 "));
    assert_eq!(ask(Method::POST, "body").await, format!("POST {url} 4 body"));
    let its = egress.status().hosts.remove(0);
    assert_eq!((host.server.connections(), its.shared, its.opened, its.answered, its.quic), (1, 1, 1, 3, true));
    assert_eq!(egress.status().in_flight, 0);
}

#[tokio::test]
async fn many_requests_share_one_connection_of_http_3() {
    let host = Host::answering(echo);
    let (egress, url) = (host.egress(), host.url());
    for _ in 0..scale(5, 100) {
        let limits = limits();
        let all = (0..50).map(|_| read3(&egress, &url, &limits));
        assert!(futures_util::future::join_all(all).await.into_iter().all(|outcome| outcome.is_ok()));
    }
    assert_eq!((host.server.connections(), egress.status().hosts[0].shared), (1, 1));
}

#[tokio::test]
async fn a_host_over_quic_is_not_the_same_host_over_tcp() {
    let host = Host::answering(echo);
    let tcp = serve(Some(host.authority.acceptor("127.0.0.1", &["h2"])), async |_| full(Response::new("tcp"))).await;
    let egress = host.egress_with(Options::default());
    read3(&egress, &host.url(), &limits()).await.unwrap();
    assert_eq!(tcp.connections(), 0);
    let error = super::world::read(&egress, &host.url(), &limits()).await.unwrap_err();
    assert!(matches!(error, EgressError::Unreachable { .. }), "nobody listens on TCP: {error}");
    let hosts: Vec<_> = egress.status().hosts.into_iter().map(|host| (host.quic, host.failed)).collect();
    assert!(hosts.contains(&(true, 0)) && hosts.contains(&(false, 1)), "{hosts:?}");
}

/// What is forbidden over TCP is forbidden over UDP: not one packet goes there.
#[tokio::test]
async fn each_address_is_checked_where_it_is_connected_to() {
    let canary = UdpSocket::bind("127.0.0.1:0").unwrap();
    canary.set_nonblocking(true).unwrap();
    let port = canary.local_addr().unwrap().port();
    let internet = Internet::new().await;
    internet.name("inside.example", &[&["127.0.0.1"]]);
    internet.name("half.example", &[&["127.0.0.1", "93.184.216.34"]]);
    internet.name("turns.example", &[&["10.0.0.1"], &["127.0.0.1"]]);
    let egress = Egress::new(Options { ports: vec![port..=port], ..internet.options() }).unwrap();
    for url in [
        "https://inside.example",
        "https://half.example",
        "https://turns.example",
        "https://turns.example",
        "https://127.0.0.1",
        "https://[::1]",
    ] {
        let error = get3(&egress, &format!("{url}:{port}/"), &limits()).await.unwrap_err();
        assert!(error.refusal().is_some() && !error.may_have_been_sent(), "{url}: {error:?}");
    }
    let error = get3(&egress, "https://inside.example:9/", &limits()).await.unwrap_err();
    assert!(error.refusal().is_some(), "its port: {error:?}");
    let error = get3(&egress, &format!("http://inside.example:{port}/"), &limits()).await.unwrap_err();
    assert!(matches!(error, EgressError::Request(RequestError::PlainHttp3)) && error.is_permanent(), "{error:?}");
    assert_eq!((egress.status().refused, egress.status().connections), (7, 0));
    assert!(canary.recv_from(&mut [0; 2048]).is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock));
}

/// A host that would rather be asked elsewhere would choose who is sent packets.
#[tokio::test]
async fn a_host_is_asked_where_it_was_checked_and_nowhere_else() {
    let canary = UdpSocket::bind("127.0.0.1:0").unwrap();
    canary.set_nonblocking(true).unwrap();
    let SocketAddr::V4(elsewhere) = canary.local_addr().unwrap() else { unreachable!("it was bound to one of IPv4") };
    let authority = Authority::new();
    let mut config = authority.quic("127.0.0.1", &["h3"]);
    config.preferred_address_v4(Some(elsewhere));
    let host = Host::configured("127.0.0.1", authority, config, async |_, connection| {
        let mut control = connection.open_uni().await.unwrap();
        control.write_all(&[&[0][..], &frame(4, b"")].concat()).await.unwrap();
        while let Ok((mut send, _)) = connection.accept_bi().await {
            send.write_all(&[head(200, &[("alt-svc", "h3=\":9\"; persist=1")]), frame(0, b"here")].concat()).await.unwrap();
            send.finish().unwrap();
        }
    });
    let egress = host.egress();
    for _ in 0..20 {
        assert_eq!(read3(&egress, &host.url(), &limits()).await.unwrap(), "here");
    }
    assert_eq!(host.server.connections(), 1);
    assert!(canary.recv_from(&mut [0; 2048]).is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock));
}

#[tokio::test]
async fn an_address_of_either_family_has_a_socket() {
    if UdpSocket::bind("[::1]:0").is_err() {
        return eprintln!("this machine has no IPv6");
    }
    let hosts = [Host::named("::1", "::1", echo), Host::named("127.0.0.1", "127.0.0.1", echo)];
    for host in hosts {
        assert_eq!(read3(&host.egress(), &host.url(), &limits()).await.unwrap(), format!("GET {} none ", host.url()));
    }
}

#[tokio::test]
async fn the_next_address_is_tried_beside_one_that_is_silent() {
    let host = Host::named("127.0.0.1", "stock.internal", echo);
    let port = host.address().port();
    let _silent = UdpSocket::bind(("127.0.0.2", port)).unwrap();
    let internet = Internet::new().await;
    internet.name("stock.internal", &[&["127.0.0.2", "127.0.0.1"]]);
    let file = host.authority.file();
    let options = Options {
        trusted: vec![format!("stock.internal:{port}").parse().unwrap()],
        ca_files: vec![file.path().to_owned()],
        ..internet.options()
    };
    let egress = Egress::new(options).unwrap();
    let url = format!("https://stock.internal:{port}/");
    assert_eq!(read3(&egress, &url, &limits()).await.unwrap(), format!("GET {url} none "));
    assert_eq!((egress.status().connections, egress.status().hosts[0].failed), (1, 0));
}

#[tokio::test]
async fn who_cannot_prove_to_be_the_host_is_asked_nothing() {
    let host = Host::answering(echo);
    let stranger = Authority::new().file();
    let options = Options {
        trusted: vec![host.address().to_string().parse().unwrap()],
        roots: Roots::Files,
        ca_files: vec![stranger.path().to_owned()],
        ..Options::default()
    };
    let egress = Egress::new(options).unwrap();
    let error = get3(&egress, &host.url(), &limits()).await.unwrap_err();
    assert!(matches!(error, EgressError::Untrusted { .. }) && !error.may_have_been_sent(), "{error:?}");
    assert_eq!((host.server.requests(), egress.status().hosts[0].failed), (0, 1));
}

#[tokio::test]
async fn a_host_without_http_3_is_not_asked_by_another_way() {
    let other = Host::speaking(&["other"], async |_, _| ());
    let error = get3(&other.egress(), &other.url(), &limits()).await.unwrap_err();
    assert!(matches!(&error, EgressError::Unreachable { why, .. } if why.contains("HTTP/3")) && !error.may_have_been_sent(), "{error:?}");
    // Nobody answers at all there: only time tells.
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap();
    let timeouts = Timeouts { connect: Duration::from_millis(300), ..Timeouts::default() };
    let breaker = BreakerOptions { failures: NonZeroU32::MIN, open: LONG };
    let options =
        Options { trusted: vec![address.to_string().parse().unwrap()], timeouts, breaker, roots: Roots::Files, ..Options::default() };
    let egress = Egress::new(options).unwrap();
    let url = format!("https://{address}/");
    let error = get3(&egress, &url, &limits()).await.unwrap_err();
    assert!(matches!(error, EgressError::Unreachable { .. }) && !error.may_have_been_sent(), "{error:?}");
    assert_eq!(egress.status().hosts[0].circuit, Circuit::Open);
    assert!(matches!(get3(&egress, &url, &limits()).await, Err(EgressError::CircuitOpen { .. })));
    assert_eq!(egress.status().connections, 0);
}

#[tokio::test]
async fn a_redirect_is_followed_over_http_3_to_the_same_origin_and_over_tcp_to_any_other() {
    let host = Host::answering(async |request: http::Request<()>, asked| {
        let location = match request.uri().path() {
            "/away" => "https://other.example/",
            "/inside" => "https://127.0.0.1:443/",
            "/back" => "/here",
            _ => return echo(request, asked).await,
        };
        say(asked, Response::builder().status(302).header("location", location).body(()).unwrap(), "").await;
    });
    let other = serve(Some(host.authority.acceptor("other.example", &["h2"])), async |request| {
        full(Response::new(format!("{:?}", request.version())))
    })
    .await;
    let internet = Internet::new().await;
    internet.site("other.example", "93.184.216.34", other.address);
    let egress = host.egress_with(internet.options());
    let follow = Limits { redirects: 1, ..limits() };
    let at = |path: &str| format!("{}{path}", host.url());
    assert_eq!(read3(&egress, &at("back"), &follow).await.unwrap(), format!("GET {} none ", at("here")));
    assert_eq!(read3(&egress, &at("away"), &follow).await.unwrap(), "HTTP/2.0");
    let error = read3(&egress, &at("inside"), &follow).await.unwrap_err();
    assert!(error.refusal().is_some(), "{error:?}");
    assert_eq!((other.connections(), host.server.connections()), (1, 1));
}

#[tokio::test]
async fn a_request_streams_up_while_its_response_streams_down() {
    let host = Host::answering(async |_, mut asked: Asked| {
        asked.send_response(Response::new(())).await.unwrap();
        // Each part comes back before the next is there.
        while let Ok(Some(mut part)) = asked.recv_data().await {
            use bytes::Buf as _;
            asked.send_data(part.copy_to_bytes(part.remaining())).await.unwrap();
        }
        asked.finish().await.unwrap();
    });
    let (gate, source) = gated(5, Bytes::from(vec![b'x'; 100_000]));
    let response = host.egress().send(asking(Method::POST, &host.url(), source), &limits()).await.unwrap();
    let mut body = response.into_body();
    for part in 0..5 {
        gate.add_permits(1);
        let mut came = 0;
        while came < 100_000 {
            came += body.frame().await.expect("there is more").unwrap().into_data().unwrap().len();
        }
        assert_eq!(came, 100_000, "{part}");
    }
    assert!(body.frame().await.is_none());
}

/// What `look` shows once nothing of it changes any more: while so many other requests go to the host and back on the same connection, what
/// has room to go on would have.
async fn settled(look: impl Fn() -> usize, ask: impl AsyncFn()) -> usize {
    const REQUESTS: usize = 50;
    loop {
        let before = look();
        for _ in 0..REQUESTS {
            ask().await;
        }
        if before > 0 && look() == before {
            return before;
        }
    }
}

/// Neither side takes more than it was asked to: what is not read is not sent, and memory does not grow.
#[tokio::test]
async fn whoever_does_not_read_is_not_sent_more() {
    let (sent, stopped) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let its = (sent.clone(), stopped.clone());
    let host = Host::answering(move |request, mut asked| {
        let (sent, stopped) = its.clone();
        async move {
            if request.uri().path() == "/small" {
                return say(asked, Response::new(()), "here").await;
            }
            asked.send_response(Response::new(())).await.unwrap();
            while asked.send_data(Bytes::from(vec![0; 10_000])).await.is_ok() {
                sent.fetch_add(10_000, SeqCst);
            }
            stopped.fetch_add(1, SeqCst);
        }
    });
    let egress = host.egress();
    let mut response = get3(&egress, &host.url(), &limits()).await.unwrap();
    let small = format!("{}small", host.url());
    // A stream's window, and what the host's QUIC holds itself.
    let first = settled(|| sent.load(SeqCst), async || assert_eq!(read3(&egress, &small, &limits()).await.unwrap(), "here")).await;
    assert!(first < 600_000, "{first}");
    let mut read = 0;
    while read < 2 << 20 {
        read += response.body_mut().frame().await.unwrap().unwrap().into_data().unwrap().len();
    }
    until("more comes", || (sent.load(SeqCst) > first, sent.load(SeqCst))).await;
    drop(response);
    until("its place is free", || (egress.status().in_flight == 0, egress.status())).await;
    until("it is told to stop", || (stopped.load(SeqCst) == 1, sent.load(SeqCst))).await;

    // The other way round: the source is asked for no more than the host takes.
    let first = Arc::new(AtomicBool::new(true));
    let host = Host::raw(move |_, mut send, _receive| {
        let takes_nothing = first.swap(false, SeqCst);
        async move {
            if takes_nothing {
                std::future::pending().await
            }
            send.write_all(&[head(200, &[]), frame(0, b"here")].concat()).await.unwrap();
            send.finish().unwrap();
        }
    });
    let egress = host.egress();
    let (gate, source) = gated(10_000, Bytes::from(vec![0; 10_000]));
    gate.add_permits(10_000);
    let asking = tokio::spawn({
        let (egress, request) = (egress.clone(), asking(Method::POST, &host.url(), source));
        async move { egress.send(request, &Limits { request_bytes: u64::MAX, ..limits() }).await.map(drop) }
    });
    until("it is taken", || (gate.available_permits() < 10_000, gate.available_permits())).await;
    let small = async || assert_eq!(read3(&egress, &host.url(), &limits()).await.unwrap(), "here");
    let last = settled(|| gate.available_permits(), small).await;
    assert!(last > 9_500, "{} of 10,000 parts were taken", 10_000 - last);
    asking.abort();
}

#[tokio::test]
async fn whoever_gives_up_resets_his_stream_and_no_other() {
    let seen = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let its = seen.clone();
    let host = Host::raw(move |_, mut send, mut receive| {
        let seen = its.clone();
        async move {
            // A request that is not ended waits for its body, and any for an answer.
            let stopped = send.stopped();
            let reset = receive.read_to_end(1 << 20).await;
            if let Err(quinn::ReadToEndError::Read(quinn::ReadError::Reset(code))) = reset {
                seen.lock().push(("request", code));
            }
            if let Ok(Some(code)) = stopped.await {
                seen.lock().push(("response", code));
            }
            drop(send.write_all(&head(200, &[])).await);
        }
    });
    let (egress, url) = (host.egress(), host.url());
    let (_gate, source) = gated(1, Bytes::from_static(b"x"));
    let its = egress.clone();
    let asking = tokio::spawn({
        let request = asking(Method::POST, &url, source);
        async move { its.send(request, &limits()).await.map(drop) }
    });
    until("the request is there", || (host.server.requests() == 1, host.server.requests())).await;
    asking.abort();
    assert!(asking.await.unwrap_err().is_cancelled());
    assert_eq!((egress.status().in_flight, egress.status().hosts[0].failed), (0, 0));
    let cancelled = VarInt::from_u32(CANCELLED);
    until("both halves are ended", || {
        let seen = seen.lock();
        (seen.contains(&("request", cancelled)) && seen.contains(&("response", cancelled)), seen.clone())
    })
    .await;
    assert_eq!((egress.status().hosts[0].shared, host.server.connections()), (1, 1), "the connection is as good as before");
}

#[tokio::test]
async fn a_body_has_its_limits_over_http_3_too() {
    let host = Host::answering(async |request: http::Request<()>, mut asked: Asked| {
        let response = match request.uri().path() {
            "/said" => Response::builder().header("content-length", "1000").body(()).unwrap(),
            _ => Response::new(()),
        };
        let _ = asked.send_response(response).await;
        if request.uri().path() == "/stalls" {
            let _ = asked.send_data(Bytes::from_static(b"half")).await;
            return std::future::pending().await;
        }
        for _ in 0..10 {
            let _ = asked.send_data(Bytes::from(vec![b'x'; 100])).await;
        }
        let _ = asked.finish().await;
    });
    let timeouts = Timeouts { idle: Duration::from_millis(300), head: Duration::from_millis(500), ..Timeouts::default() };
    let egress = host.egress_with(Options { timeouts, ..Options::default() });
    let at = |path: &str| format!("{}{path}", host.url());
    let small = Limits { response_bytes: 999, ..limits() };
    for path in ["said", "unsaid"] {
        let error = read3(&egress, &at(path), &small).await.unwrap_err();
        assert!(matches!(error, EgressError::Response(BodyError::TooLarge { limit: 999 })), "{path}: {error:?}");
        assert_eq!(read3(&egress, &at(path), &Limits { response_bytes: 1000, ..limits() }).await.unwrap().len(), 1000);
    }
    let error = read3(&egress, &at("stalls"), &limits()).await.unwrap_err();
    assert!(matches!(error, EgressError::Response(BodyError::Stalled)), "{error:?}");
    let error = read3(&egress, &at("stalls"), &Limits::within(Duration::from_millis(100))).await.unwrap_err();
    assert!(matches!(error, EgressError::Response(BodyError::TooLate)), "{error:?}");
    assert_eq!(egress.status().in_flight, 0);

    let upload = Limits { request_bytes: 250, ..limits() };
    let (gate, source) = gated(3, Bytes::from(vec![0; 100]));
    gate.add_permits(3);
    let error = egress.send(asking(Method::POST, &at("unsaid"), source), &upload).await.err();
    // It may have been answered before its body was known to be too large.
    assert!(matches!(error, None | Some(EgressError::RequestBody(RequestBodyError::TooLarge))), "{error:?}");
}

#[tokio::test]
async fn a_request_whose_source_fails_is_not_taken_for_whole() {
    let whole = Arc::new(AtomicUsize::new(0));
    let its = whole.clone();
    let host = Host::answering(move |_, mut asked| {
        let whole = its.clone();
        async move {
            if body(&mut asked).await.is_some() {
                whole.fetch_add(1, SeqCst);
                say(asked, Response::new(()), "whole").await;
            }
        }
    });
    let egress = host.egress();
    for late in [false, true] {
        let parts = [Ok(Frame::data(Bytes::from_static(b"half"))), Err(std::io::Error::other("no more"))];
        let source = StreamBody::new(stream::iter(parts).then(move |part| async move {
            if late {
                tokio::task::yield_now().await;
            }
            part
        }));
        let error = egress.send(asking(Method::POST, &host.url(), source), &limits()).await.unwrap_err();
        assert!(matches!(error, EgressError::RequestBody(RequestBodyError::Failed)) && error.may_have_been_sent(), "{error:?}");
    }
    assert_eq!(egress.send(asking(Method::GET, &host.url(), Empty::<Bytes>::new()), &limits()).await.unwrap().status(), StatusCode::OK);
    assert_eq!((whole.load(SeqCst), host.server.connections()), (1, 1));
}

#[tokio::test]
async fn what_nobody_uses_is_closed_over_quic_too() {
    let host = Host::answering(echo);
    let timeouts = Timeouts { keep: Duration::from_millis(200), ..Timeouts::default() };
    let egress = host.egress_with(Options { timeouts, ..Options::default() });
    read3(&egress, &host.url(), &limits()).await.unwrap();
    assert_eq!((egress.status().connections, host.endpoint.open_connections()), (1, 1));
    until("it is closed without a request", || (egress.status().connections == 0, egress.status())).await;
    until("the host knows", || (host.endpoint.open_connections() == 0, host.endpoint.open_connections())).await;
}

#[tokio::test]
async fn connections_and_requests_are_bounded_over_quic_too() {
    let gate = Arc::new(Semaphore::new(0));
    let its = gate.clone();
    let host = Host::answering(move |_, asked| {
        let gate = its.clone();
        async move {
            gate.acquire().await.unwrap().forget();
            say(asked, Response::new(()), "here").await;
        }
    });
    let other = Host::answering(echo);
    let bounds = Bounds { in_flight_per_host: 2, connections: 1, ..Bounds::default() };
    let timeouts = Timeouts { connect: Duration::from_millis(300), ..Timeouts::default() };
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), [&*host.authority.pem, &other.authority.pem].concat()).unwrap();
    let options = Options {
        trusted: [&host, &other].map(|host| host.address().to_string().parse().unwrap()).into(),
        roots: Roots::Files,
        ca_files: vec![file.path().to_owned()],
        bounds,
        timeouts,
        ..Options::default()
    };
    let egress = Egress::new(options).unwrap();
    let ask = |url: String| {
        let egress = egress.clone();
        tokio::spawn(async move { read3(&egress, &url, &limits()).await })
    };
    let asking = [ask(host.url()), ask(host.url())];
    until("two at one host", || (host.server.requests() == 2, host.server.requests())).await;
    assert!(matches!(ask(host.url()).await.unwrap(), Err(EgressError::Overloaded(Bound::RequestsToHost))));
    assert!(matches!(ask(other.url()).await.unwrap(), Err(EgressError::Overloaded(Bound::Connections))));
    gate.add_permits(2);
    for asked in asking {
        assert_eq!(asked.await.unwrap().unwrap(), "here");
    }
    // One that nobody uses makes room.
    until("there is room", || (egress.status().in_flight == 0, egress.status())).await;
    let end = tokio::time::Instant::now() + LONG;
    while let Err(error) = ask(other.url()).await.unwrap() {
        assert!(tokio::time::Instant::now() < end, "{error}");
    }
    assert!(egress.status().connections <= 1);
}

/// A host that says goodbye is asked by another connection; what it had not taken had no effect.
#[tokio::test]
async fn a_host_that_says_goodbye_finishes_what_it_took_and_had_no_part_in_the_rest() {
    let gate = Arc::new(Semaphore::new(0));
    let its = gate.clone();
    let host = Host::new(move |server, connection| {
        let gate = its.clone();
        async move {
            let mut control = connection.open_uni().await.unwrap();
            control.write_all(&[&[0][..], &frame(4, b"")].concat()).await.unwrap();
            let (mut first, _) = connection.accept_bi().await.unwrap();
            server.requests.fetch_add(1, SeqCst);
            let is_second = server.connections() > 1;
            if !is_second {
                let _second = connection.accept_bi().await.unwrap();
                // It takes stream 0, and none from stream 4 on.
                control.write_all(&frame(7, &[4])).await.unwrap();
                gate.acquire().await.unwrap().forget();
            }
            let text: &[u8] = if is_second { b"again" } else { b"first" };
            first.write_all(&[head(200, &[]), frame(0, text)].concat()).await.unwrap();
            first.finish().unwrap();
            connection.closed().await;
        }
    });
    let (egress, url) = (host.egress(), host.url());
    let ask = || {
        let (egress, url) = (egress.clone(), url.clone());
        tokio::spawn(async move { read3(&egress, &url, &limits()).await })
    };
    let first = ask();
    until("the first is there", || (host.server.requests() == 1, host.server.requests())).await;
    let error = ask().await.unwrap().unwrap_err();
    assert!(matches!(error, EgressError::NotTaken { .. }) && !error.may_have_been_sent(), "{error:?}");
    assert_eq!(ask().await.unwrap().unwrap(), "again");
    gate.add_permits(1);
    assert_eq!(first.await.unwrap().unwrap(), "first");
    until("only the second is left", || (egress.status().connections == 1, egress.status())).await;
}

#[tokio::test]
async fn a_connection_that_the_host_has_closed_is_not_the_next_requests_end() {
    let host = Host::raw(async |connection, mut send, _| {
        send.write_all(&[head(200, &[]), frame(0, b"here")].concat()).await.unwrap();
        send.finish().unwrap();
        let _ = send.stopped().await;
        connection.close(VarInt::from_u32(0x100), b"");
    });
    let egress = host.egress();
    for round in 1..=scale(3, 100) {
        assert_eq!(read3(&egress, &host.url(), &limits()).await.unwrap(), "here");
        until("it is known", || (egress.status().connections == 0, egress.status())).await;
        assert_eq!((host.server.connections(), egress.status().hosts[0].failed), (round, 0));
    }
}

/// Connections and sockets belong to the runtime that they were opened on; the next one has its own.
#[test]
fn what_a_runtime_opened_is_opened_again_when_it_is_gone() {
    let runtime = || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let hosts = runtime();
    let (host, egress) = hosts.block_on(async {
        let host = Host::answering(echo);
        let egress = host.egress();
        (host, egress)
    });
    for round in 1..=3 {
        let runtime = runtime();
        runtime.block_on(read3(&egress, &host.url(), &limits())).unwrap();
        drop(runtime);
        assert_eq!((host.server.connections(), egress.status().connections), (round, 0));
    }
    hosts.block_on(async { drop(host) });
}

/// A host that is slow to take a long part is not one that does not answer.
#[tokio::test]
async fn a_large_part_that_is_taken_slowly_is_no_slow_answer() {
    let host = Host::answering(async |_, mut asked: Asked| {
        let mut bytes = 0;
        while let Ok(Some(part)) = asked.recv_data().await {
            use bytes::Buf as _;
            if (bytes + part.remaining()) >> 18 > bytes >> 18 {
                tokio::time::sleep(Duration::from_millis(60)).await;
            }
            bytes += part.remaining();
        }
        say(asked, Response::new(()), bytes.to_string()).await;
    });
    // What the sender keeps, at most 1 MiB, is gone in a quarter of it; all of it takes longer.
    let head = Duration::from_secs(1);
    let egress = host.egress_with(Options { timeouts: Timeouts { head, ..Timeouts::default() }, ..Options::default() });
    let (began, whole) = (std::time::Instant::now(), Full::new(Bytes::from(vec![0; 6 << 20])));
    let response = egress.send(asking(Method::POST, &host.url(), whole), &limits()).await.unwrap();
    assert_eq!(response.into_body().bytes().await.unwrap(), (6 << 20).to_string());
    assert!(began.elapsed() > head, "it was not slow");
}

/// Callers who give up at any moment, answers of every sort: nothing is lost, and nobody waits for what another holds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_callers_and_hosts_do_over_http_3_every_place_is_free_again() {
    let mut random = dice();
    let crowd = Crowd::default();
    let host = Host::answering(move |request: http::Request<()>, mut asked: Asked| {
        let crowd = crowd.clone();
        async move {
            crowd.come();
            match request.uri().path() {
                "/slow" => {
                    crowd.behind(5).await;
                    say(asked, Response::new(()), vec![b'x'; 100_000]).await;
                }
                "/cut" => {
                    let _ = asked.send_response(Response::builder().header("content-length", "9").body(()).unwrap()).await;
                    say(asked, Response::new(()), "").await;
                }
                "/rejected" => asked.stop_stream(h3::error::Code::H3_REQUEST_REJECTED),
                // Until whoever asked has surely gone.
                "/silent" => crowd.behind(100).await,
                _ => echo(request, asked).await,
            }
        }
    });
    let rates = NonZeroU32::MAX;
    let bounds = Bounds { in_flight: 60, in_flight_per_host: 50, rate_per_host: rates, burst_per_host: rates, ..Bounds::default() };
    let timeouts = Timeouts { head: Duration::from_millis(50), ..Timeouts::default() };
    let breaker = BreakerOptions { failures: NonZeroU32::MAX, ..BreakerOptions::default() };
    let egress = host.egress_with(Options { timeouts, bounds, breaker, ..Options::default() });
    let paths = ["", "good", "slow", "cut", "rejected", "silent"];
    let mut all = tokio::task::JoinSet::new();
    for _ in 0..scale(600, 20_000) {
        let url = format!("{}{}", host.url(), paths[random(paths.len() as u64) as usize]);
        let (its, patience, reads) = (egress.clone(), Duration::from_micros(random(60_000)), random(2) == 0);
        let (part, parts) = (Bytes::from(vec![b'x'; random(50_000) as usize]), random(3) as usize);
        all.spawn(async move {
            let (gate, source) = gated(parts, part);
            gate.add_permits(parts);
            let whole = async {
                let response = its.send(asking(Method::POST, &url, source), &limits()).await?;
                if reads { response.into_body().bytes().await.map(drop) } else { Ok(()) }
            };
            let _ = tokio::time::timeout(patience, whole).await;
        });
        let status = egress.status();
        assert!(status.connections <= 8 && status.in_flight <= 60, "{status:?}");
        if all.len() >= 70 {
            all.join_next().await.unwrap().unwrap();
        }
    }
    while all.join_next().await.is_some() {}
    until("every place is free", || (egress.status().in_flight == 0, egress.status())).await;
    // At once, or when it has done what nobody waits for any more.
    let end = tokio::time::Instant::now() + LONG;
    while let Err(error) = read3(&egress, &host.url(), &limits()).await {
        assert!(tokio::time::Instant::now() < end, "{error}: {:?}", egress.status());
    }
}

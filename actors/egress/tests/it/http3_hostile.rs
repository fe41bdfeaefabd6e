//! Hosts that answer over HTTP/3 with something else, or with too much of it.

use std::sync::Arc;

use bytes::Bytes;
use horos_egress::{BodyError, EgressError, Limits};
use http::{Method, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use quinn::VarInt;
use tokio::sync::Notify;

use super::{
    http3_server::{Host, asking, frame, get3, head, read3, varint},
    world::{LONG, dice, limits, scale},
};

async fn answer(bytes: Vec<u8>) -> (Host, Result<Bytes, EgressError>) {
    let host = Host::says(bytes);
    let outcome = tokio::time::timeout(LONG, read3(&host.egress(), &host.url(), &limits())).await.expect("it ends");
    (host, outcome)
}

#[tokio::test]
async fn what_is_not_http_3_is_nonsense() {
    let many: Vec<_> = (0..200).map(|n| (format!("x-{n}"), "y".to_owned())).collect();
    let many: Vec<_> = many.iter().map(|(name, value)| (&**name, &**value)).collect();
    let wide = "y".repeat(40_000);
    for (what, bytes) in [
        ("nothing", Vec::new()),
        ("HTTP/1.1", b"HTTP/1.1 200 OK\r\n\r\n".to_vec()),
        ("a body without a head", frame(0, b"x")),
        ("settings", frame(4, b"")),
        ("a push", frame(5, &[0, 0, 0])),
        ("half a head", head(200, &[])[..4].to_vec()),
        ("no fields", frame(1, b"")),
        ("no status", frame(1, &[0, 0])),
        ("a status of three letters", frame(1, b"\0\0\x27\0:status\x03abc")),
        ("a table that was never offered", frame(1, &[2, 0, 0x80])),
        ("a field of the table that was never offered", frame(1, &[0, 0, 0x80])),
        ("an entry that no table has", frame(1, &[0, 0, 0xff, 0xff, 0x7f])),
        ("a length beyond all numbers", frame(1, &[[0, 0].as_slice(), &[0xff; 20]].concat())),
        ("a name in capitals", head(200, &[("X", "y")])),
        ("a value with a line's end", head(200, &[("x", "y\r\nz: w")])),
        ("a field of a connection", head(200, &[("transfer-encoding", "chunked")])),
        ("another field of a connection", head(200, &[("connection", "close")])),
        ("a length that is none", head(200, &[("content-length", "+4")])),
        ("two lengths", head(200, &[("content-length", "4"), ("content-length", "5")])),
        ("another protocol", head(101, &[])),
        ("too many fields", head(200, &many)),
        ("too wide a head", head(200, &[("x", &wide), ("y", &wide)])),
        ("a head of which there is no end", [varint(1), varint(1 << 40), vec![0; 100]].concat()),
        ("heads before the head without end", head(103, &[]).repeat(200)),
        ("an answer that is to follow", head(100, &[])),
    ] {
        let (host, outcome) = answer(bytes).await;
        let error = outcome.expect_err(what);
        assert!(matches!(error, EgressError::Nonsense { .. }), "{what}: {error:?}");
        assert!(error.may_have_been_sent(), "{what}");
        assert_eq!(host.server.requests(), 1, "{what}: it is not asked twice");
    }
}

#[tokio::test]
async fn what_means_nothing_is_passed_over() {
    let bytes = [
        frame(0x21, b"ignored"),
        head(103, &[("link", "</x>")]),
        head(100, &[]),
        head(200, &[("content-length", "4")]),
        frame(0, b""),
        frame(0x21, b""),
        frame(0, b"he"),
        frame(0x40, b"ignored"),
        frame(0, b"re"),
        frame(1, b"these trailers are for nobody"),
        frame(0x21, b""),
    ]
    .concat();
    assert_eq!(answer(bytes).await.1.unwrap(), "here");
}

#[tokio::test]
async fn half_a_body_is_an_error_and_no_end() {
    for (what, bytes) in [
        ("half a frame", [head(200, &[]), frame(0, b"here")[..4].to_vec()].concat()),
        ("less than was said", [head(200, &[("content-length", "5")]), frame(0, b"here")].concat()),
        ("more than was said", [head(200, &[("content-length", "3")]), frame(0, b"here")].concat()),
        ("a body where there is none", [head(204, &[]), frame(0, b"here")].concat()),
        ("a body behind its trailers", [head(200, &[]), frame(1, b""), frame(0, b"here")].concat()),
        ("a goodbye on a request's stream", [head(200, &[]), frame(7, b"\0")].concat()),
    ] {
        let error = answer(bytes).await.1.expect_err(what);
        assert!(matches!(error, EgressError::Response(BodyError::Broken)), "{what}: {error:?}");
    }
    let came = Arc::new(Notify::new());
    let its = came.clone();
    let host = Host::raw(move |_, mut send, _| {
        let came = its.clone();
        async move {
            send.write_all(&[head(200, &[]), frame(0, b"half")].concat()).await.unwrap();
            // Not before it has come: a reset overtakes what was sent.
            came.notified().await;
            send.reset(VarInt::from_u32(0x102)).unwrap();
        }
    });
    let mut response = host.egress().send(asking(Method::GET, &host.url(), Empty::<Bytes>::new()), &limits()).await.unwrap();
    let half = response.body_mut().frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(half, "half");
    came.notify_one();
    let error = response.body_mut().frame().await.unwrap().unwrap_err();
    assert!(matches!(error, BodyError::Broken), "{error:?}");
}

#[tokio::test]
async fn what_has_no_body_needs_none() {
    let host = Host::says(head(200, &[("content-length", "1000")]));
    let response = host
        .egress()
        .send(asking(Method::HEAD, &host.url(), Empty::<Bytes>::new()), &Limits { response_bytes: 0, ..limits() })
        .await
        .unwrap();
    assert_eq!(response.headers()["content-length"], "1000");
    assert_eq!(response.into_body().bytes().await.unwrap(), "");
    let host = Host::says(head(304, &[("content-length", "1000")]));
    let response = get3(&host.egress(), &host.url(), &limits()).await.unwrap();
    assert_eq!((response.status(), response.into_body().bytes().await.unwrap()), (StatusCode::NOT_MODIFIED, Bytes::new()));
}

#[tokio::test]
async fn a_stream_that_was_rejected_had_no_effect_and_any_other_may_have_had_one() {
    for (code, taken) in [(0x10b, false), (0x102, true), (0x10c, true), (0x100, true)] {
        let host = Host::raw(move |_, mut send, _| async move { send.reset(VarInt::from_u32(code)).unwrap() });
        let error = read3(&host.egress(), &host.url(), &limits()).await.unwrap_err();
        let expected = if taken { matches!(error, EgressError::Lost { .. }) } else { matches!(error, EgressError::NotTaken { .. }) };
        assert!(expected && error.may_have_been_sent() == taken, "{code:#x}: {error:?}");
    }
    let host = Host::raw(async |connection, _, _| connection.close(VarInt::from_u32(0x100), b""));
    let error = read3(&host.egress(), &host.url(), &limits()).await.unwrap_err();
    assert!(matches!(error, EgressError::Lost { .. }) && error.may_have_been_sent(), "{error:?}");
}

/// A host that stops a request's body has not given up the request: what it says counts.
#[tokio::test]
async fn an_answer_before_the_end_of_the_request_is_an_answer() {
    let host = Host::raw(async |_, mut send, mut receive| {
        receive.stop(VarInt::from_u32(0x100)).unwrap();
        send.write_all(&[head(413, &[]), frame(0, b"too large")].concat()).await.unwrap();
        send.finish().unwrap();
        let _ = send.stopped().await;
    });
    let body = http_body_util::Full::new(Bytes::from(vec![0; 8 << 20]));
    let response = host.egress().send(asking(Method::POST, &host.url(), body), &limits()).await.unwrap();
    assert_eq!((response.status(), response.into_body().bytes().await.unwrap()), (StatusCode::PAYLOAD_TOO_LARGE, "too large".into()));
}

#[tokio::test]
async fn a_control_stream_that_is_none_ends_the_connection() {
    for (what, streams) in [
        ("no settings", vec![[vec![0], frame(7, b"\0")].concat()]),
        ("settings twice", vec![[vec![0], frame(4, b""), frame(4, b"")].concat()]),
        ("two control streams", vec![[vec![0], frame(4, b"")].concat(); 2]),
        ("a body on it", vec![[vec![0], frame(4, b""), frame(0, b"x")].concat()]),
        ("a head on it", vec![[vec![0], frame(4, b""), head(200, &[])].concat()]),
        ("settings without end", vec![[vec![0], varint(4), varint(1 << 40), vec![0; 50]].concat()]),
        ("frames without end", vec![[vec![0], frame(4, b""), frame(0x21, b"").repeat(2_000)].concat()]),
        ("a push", vec![[vec![0], frame(4, b"")].concat(), vec![1, 0]]),
        ("a goodbye to a stream that is no request", vec![[vec![0], frame(4, b""), frame(7, &[3])].concat()]),
        ("goodbyes that grow", vec![[vec![0], frame(4, b""), frame(7, &[4]), frame(7, &[8])].concat()]),
    ] {
        let host = Host::new(move |_, connection| {
            let streams = streams.clone();
            async move {
                let mut open = Vec::new();
                for bytes in streams {
                    let mut stream = connection.open_uni().await.unwrap();
                    let _ = stream.write_all(&bytes).await;
                    open.push(stream);
                }
                let asked = connection.accept_bi().await;
                connection.closed().await;
                drop((asked, open));
            }
        });
        let outcome = tokio::time::timeout(LONG, read3(&host.egress(), &host.url(), &limits())).await.expect(what);
        assert!(outcome.is_err(), "{what}: {outcome:?}");
    }
}

/// Streams that mean nothing are ignored, as servers open them to keep clients honest, but not without end.
#[tokio::test]
async fn streams_that_mean_nothing_are_passed_over_but_not_without_end() {
    for (streams, good) in [(20, true), (10_000, false)] {
        let host = Host::new(move |_, connection| async move {
            let mut control = connection.open_uni().await.unwrap();
            control.write_all(&[&[0][..], &frame(4, b"")].concat()).await.unwrap();
            let (mut send, _) = connection.accept_bi().await.unwrap();
            for _ in 0..streams {
                let Ok(mut stream) = connection.open_uni().await else { return };
                let _ = stream.write_all(&[0x21, b'x']).await;
            }
            let _ = send.write_all(&[head(200, &[]), frame(0, b"here")].concat()).await;
            let _ = send.finish();
            connection.closed().await;
        });
        let outcome = read3(&host.egress(), &host.url(), &limits()).await;
        assert_eq!(outcome.is_ok(), good, "{streams}: {outcome:?}");
    }
}

/// Whatever a host says, it comes to an end, and nobody panics.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_at_random_come_to_an_end() {
    let mut random = dice();
    let good = [head(200, &[("content-length", "4"), ("x", "a value of some length")]), frame(0, b"here"), frame(1, &[0, 0])].concat();
    let answers: Vec<Bytes> = (0..scale(300, 20_000))
        .map(|_| {
            let mut bytes = good.clone();
            for _ in 0..=random(3) {
                let at = random(bytes.len() as u64) as usize;
                match random(3) {
                    0 => bytes[at] = random(256) as u8,
                    1 => bytes.truncate(at.max(1)),
                    _ => bytes.insert(at, random(256) as u8),
                }
            }
            bytes.into()
        })
        .collect();
    let left = std::sync::Arc::new(parking_lot::Mutex::new(answers.clone()));
    let host = Host::raw(move |_, mut send, _| {
        let bytes = left.lock().pop().unwrap_or_default();
        async move {
            let _ = send.write_chunk(bytes).await;
            let _ = send.finish();
            let _ = send.stopped().await;
        }
    });
    let breaker = horos_egress::BreakerOptions { failures: std::num::NonZeroU32::MAX, ..Default::default() };
    let egress = host.egress_with(horos_egress::Options { breaker, ..Default::default() });
    let mut good = 0;
    for bytes in &answers {
        let outcome = tokio::time::timeout(LONG, read3(&egress, &host.url(), &limits())).await.unwrap_or_else(|_| panic!("{bytes:?}"));
        good += usize::from(outcome.is_ok());
    }
    assert!(good > 0);
    assert_eq!(egress.status().in_flight, 0);
}

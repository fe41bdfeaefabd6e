//! Hosts that answer with something else than HTTP, or with too much of it.

use bytes::Bytes;
use horos_egress::{BodyError, Circuit, Egress, EgressError, Limits, Options, Roots, Timeouts};
use tokio::net::TcpListener;

use super::{
    server::{Authority, Then, raw, says},
    world::{Internet, LONG, get, limits, read},
};

const URL: &str = "http://good.example/";

async fn site(server: std::net::SocketAddr) -> Egress {
    let internet = Internet::new().await;
    internet.site("good.example", "93.184.216.34", server);
    let head = std::time::Duration::from_secs(10);
    Egress::new(Options { timeouts: Timeouts { head, ..Timeouts::default() }, ..internet.options() }).unwrap()
}

#[tokio::test]
async fn what_is_not_http_is_nonsense() {
    let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "x: y\r\n".repeat(1_000));
    let wide = format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "y".repeat(200 * 1024));
    for (what, bytes) in [
        ("mail", "220 mail.example ESMTP\r\n"),
        ("ssh", "SSH-2.0-OpenSSH_9.9\r\n"),
        ("Redis", "-ERR wrong number of arguments\r\n"),
        ("no status", "HTTP/1.1\r\n\r\n"),
        ("a status of words", "HTTP/1.1 OK\r\n\r\n"),
        ("HTTP/0.9", "<html>hello</html>"),
        ("a version that is none", "HTTP/7.7 200 OK\r\n\r\n"),
        ("a field without a name", "HTTP/1.1 200 OK\r\n: x\r\n\r\n"),
        ("a space before the colon", "HTTP/1.1 200 OK\r\ncontent-length : 1\r\n\r\nx"),
        ("a folded field", "HTTP/1.1 200 OK\r\nx: y\r\n z\r\n\r\n"),
        ("two lengths", "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nxx"),
        ("a length that is none", "HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n"),
        ("a zero byte in a field", "HTTP/1.1 200 OK\r\nx: \0\r\n\r\n"),
        ("too many fields", &many),
        ("too wide a field", &wide),
        ("a protocol that nobody asked for", "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n"),
    ] {
        let server = says(bytes.to_owned(), Then::Close).await;
        let error = get(&site(server.address).await, URL, &limits()).await.expect_err(what);
        assert!(matches!(error, EgressError::Nonsense { .. } | EgressError::Lost { .. }), "{what}: {error:?}");
        assert!(error.may_have_been_sent(), "{what}");
        assert_eq!(server.requests(), 1, "{what}: it is not asked twice");
    }
}

#[tokio::test]
async fn bad_chunks_are_an_error_and_no_end() {
    for (what, chunks) in [
        ("a size that is none", "zz\r\nx\r\n0\r\n\r\n"),
        ("a size that wraps", "10000000000000001\r\nx\r\n0\r\n\r\n"),
        ("a negative size", "-1\r\nx\r\n0\r\n\r\n"),
        ("more than the size", "1\r\nxyz\r\n0\r\n\r\n"),
        ("no end of the size's line", &"1".repeat(20_000)),
        ("an endless extension", &format!("1;{}", "x".repeat(100_000))),
    ] {
        let server = says(format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{chunks}"), Then::Close).await;
        let error = read(&site(server.address).await, URL, &limits()).await.expect_err(what);
        assert!(matches!(error, EgressError::Response(BodyError::Broken)), "{what}: {error}");
    }
}

#[tokio::test]
async fn heads_and_interim_answers_without_end_come_to_one() {
    for (what, first, again) in [
        ("fields", "HTTP/1.1 200 OK\r\n", "x: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy\r\n"),
        ("one field", "HTTP/1.1 200 OK\r\nx: ", "yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy"),
    ] {
        let server = raw(move |mut stream, _| async move {
            use tokio::io::AsyncWriteExt as _;
            let _ = stream.write_all(first.as_bytes()).await;
            let again = again.repeat(256);
            while stream.write_all(again.as_bytes()).await.is_ok() {}
        })
        .await;
        let outcome = tokio::time::timeout(LONG, get(&site(server.address).await, URL, &limits())).await.expect(what);
        assert!(matches!(outcome, Err(EgressError::Nonsense { .. } | EgressError::Lost { .. })), "{what}: {outcome:?}");
    }
    // Interim answers are HTTP, so only time ends them.
    let server = raw(async |mut stream, _| {
        use tokio::io::AsyncWriteExt as _;
        while stream.write_all(b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n").await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let deadline = Limits::within(std::time::Duration::from_millis(1_500));
    let outcome = tokio::time::timeout(LONG, get(&site(server.address).await, URL, &deadline)).await.unwrap();
    assert!(matches!(outcome, Err(EgressError::TimedOut { .. })), "{outcome:?}");
}

/// A second response behind the first is for nobody: the next request has a connection of its own.
#[tokio::test]
async fn a_split_response_poisons_no_other() {
    let two = "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ngoodHTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil";
    let server = says(two, Then::Wait).await;
    let egress = site(server.address).await;
    for _ in 0..3 {
        assert_eq!(read(&egress, URL, &limits()).await.unwrap(), "good");
    }
    assert_eq!(server.connections(), 3);
}

#[tokio::test]
async fn a_body_of_a_gigabyte_is_not_read() {
    let server = raw(async |mut stream, _| {
        use tokio::io::AsyncWriteExt as _;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
        let part = Bytes::from(vec![b'x'; 64 * 1024]);
        while stream.write_all(&part).await.is_ok() {}
    })
    .await;
    let egress = site(server.address).await;
    let error = read(&egress, URL, &Limits { response_bytes: 1 << 20, ..limits() }).await.unwrap_err();
    assert!(matches!(error, EgressError::Response(BodyError::TooLarge { .. })), "{error}");
    let host = egress.status().hosts.remove(0);
    assert_eq!((host.circuit, host.failed), (Circuit::Closed, 0), "how large it is speaks against nobody");
}

/// What a host of HTTP/2 does with the one stream that it is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum With {
    Reset(h2::Reason),
    /// Goodbye, having taken nothing.
    GoAway,
    /// A head beyond all measure.
    WideHead,
    /// A reset in the middle of the body.
    HalfABody,
}

async fn http_2(with: With) -> Result<Bytes, EgressError> {
    let authority = Authority::new();
    let acceptor = authority.acceptor("127.0.0.1", &["h2"]);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let stream = acceptor.accept(stream).await.unwrap();
            let mut connection = h2::server::handshake(stream).await.unwrap();
            while let Some(Ok((_request, mut respond))) = connection.accept().await {
                match with {
                    With::Reset(reason) => respond.send_reset(reason),
                    With::GoAway => connection.abrupt_shutdown(h2::Reason::ENHANCE_YOUR_CALM),
                    With::WideHead => {
                        let head = http::Response::builder().header("x", "y".repeat(100 * 1024)).body(()).unwrap();
                        let _ = respond.send_response(head, true);
                    }
                    With::HalfABody => {
                        let head = http::Response::builder().header("content-length", "10").body(()).unwrap();
                        let mut stream = respond.send_response(head, false).unwrap();
                        stream.send_data(Bytes::from_static(b"01234"), false).unwrap();
                        let mut pings = connection.ping_pong().unwrap();
                        tokio::spawn(async move {
                            // So that the reset does not overtake the data: what was written before has come when this is answered.
                            pings.ping(h2::Ping::opaque()).await.unwrap();
                            stream.send_reset(h2::Reason::INTERNAL_ERROR);
                        });
                    }
                }
            }
        }
    });
    let file = authority.file();
    let options = Options {
        trusted: vec![address.to_string().parse().unwrap()],
        roots: Roots::Files,
        ca_files: vec![file.path().to_owned()],
        ..Options::default()
    };
    let egress = Egress::new(options).unwrap();
    read(&egress, &format!("https://{address}/"), &Limits::within(std::time::Duration::from_secs(10))).await
}

#[tokio::test]
async fn a_stream_that_was_refused_had_no_effect_and_any_other_may_have_had_one() {
    let error = http_2(With::Reset(h2::Reason::REFUSED_STREAM)).await.unwrap_err();
    assert!(matches!(error, EgressError::NotTaken { .. }) && !error.may_have_been_sent(), "{error:?}");
    for with in [With::Reset(h2::Reason::INTERNAL_ERROR), With::GoAway, With::WideHead] {
        let error = http_2(with).await.unwrap_err();
        assert!(
            matches!(error, EgressError::Lost { .. } | EgressError::Nonsense { .. }) && error.may_have_been_sent(),
            "{with:?}: {error:?}"
        );
    }
    let error = http_2(With::HalfABody).await.unwrap_err();
    assert!(matches!(error, EgressError::Response(BodyError::Broken)), "{error:?}");
}

//! What a client that behaves gets over TCP, and how the sockets are had.

use std::{
    net::{TcpListener, UdpSocket},
    sync::Arc,
};

use horos_edge::{Edge, EdgeError, ListenError, Reason, Sockets, Transport, Version};
use tokio::io::AsyncWriteExt as _;

use crate::it::world::{Counting as _, Port, ask, body_of, eventually, get, quick, read_to_end, shake, shake_with, tls, tls_of};

#[tokio::test]
async fn https_answers_over_http1_and_http2() {
    let port = Port::open(quick()).await;
    let mut http1 = port.tls(&[b"http/1.1"]).await;
    for _ in 0..2 {
        let answer = get(&mut http1, "/t/hello").await;
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("hello"), "{answer}");
    }
    let mut http2 = port.http2().await;
    for stream in [1, 3] {
        http2.write_all(&ask(stream, "/t/hello")).await.unwrap();
        assert_eq!(body_of(&mut http2, stream).await, b"hello");
    }
    assert_eq!((port.metrics.open(Version::Http1), port.metrics.open(Version::Http2)), (1, 1));
    drop((http1, http2));
    port.connections(0).await;
    assert!(port.counts().is_empty(), "nobody did anything wrong: {:?}", port.counts());
}

#[tokio::test]
async fn the_protocol_is_the_one_agreed_on() {
    let port = Port::open(quick()).await;
    assert_eq!(port.tls(&[b"h2", b"http/1.1"]).await.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    assert_eq!(port.tls(&[b"http/1.1", b"h2"]).await.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    assert_eq!(port.tls(&[b"spdy/3", b"http/1.1"]).await.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    let mut silent = port.tls(&[]).await;
    assert!(get(&mut silent, "/t/hello").await.ends_with("hello"), "who offers no protocol speaks HTTP/1.1");
    let refused = shake(port.tcp().await, &[b"spdy/3"]).await;
    assert!(refused.is_err(), "who offers only unknown ones is refused");
    port.counted(Reason::UnknownProtocol, 1).await;
}

#[tokio::test]
async fn answers_of_all_sizes_arrive_whole() {
    let port = Port::open(quick()).await;
    let (mut http1, mut http2) = (port.http1().await, port.http2_with(&[(4, 1 << 30)]).await);
    http2.write_all(&crate::it::world::frame(crate::it::world::WINDOW_UPDATE, 0, 0, &(1_u32 << 30).to_be_bytes())).await.unwrap();
    for (index, size) in [0, 1, 2048, 2049, 16_384, 16_385, 16_386, 1_000_000].into_iter().enumerate() {
        let path = format!("/t/bytes/{size}");
        let stream = index as u32 * 2 + 1;
        http2.write_all(&ask(stream, &path)).await.unwrap();
        assert_eq!(body_of(&mut http2, stream).await.len(), size, "HTTP/2");
        let answer = get(&mut http1, &path).await;
        assert_eq!(answer.split_once("\r\n\r\n").unwrap().1.len(), size, "HTTP/1.1");
    }
}

#[tokio::test]
async fn a_connection_that_the_client_wants_closed_is_closed() {
    let port = Port::open(quick()).await;
    let mut http1 = port.http1().await;
    http1.write_all(b"GET /t/hello HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await.unwrap();
    assert!(read_to_end(&mut http1).await.ends_with(b"hello"));
    drop(http1);
    port.connections(0).await;
}

#[tokio::test]
async fn a_loop_that_dies_is_started_again_and_connections_live_on() {
    let port = Port::open(quick()).await;
    let mut client = port.http1().await;
    assert!(get(&mut client, "/t/hello").await.ends_with("hello"));
    for (child, lives) in [("http", 2), ("connections", 2), ("certificate", 2), ("http", 3)] {
        port.supervisor().crash_child(child).await.unwrap();
        let vitals = port.supervisor().find(child).unwrap();
        eventually(child, || if vitals.lives() == lives { Ok(()) } else { Err(vitals.lives().to_string()) }).await;
        assert!(get(&mut client, "/t/hello").await.ends_with("hello"), "after {child}");
        assert!(get(&mut port.http1().await, "/t/hello").await.ends_with("hello"), "after {child}");
    }
}

#[tokio::test]
async fn a_client_that_left_is_worked_for_no_longer() {
    let port = Port::open(quick()).await;
    let (mut http1, mut http2) = (port.http1().await, port.http2().await);
    http1.write_all(b"GET /t/wait HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    http2.write_all(&ask(1, "/t/wait")).await.unwrap();
    port.waiting(2).await;
    drop((http1, http2));
    port.waiting(0).await;
    port.connections(0).await;
    assert!(port.counts().is_empty(), "leaving is no offence: {:?}", port.counts());
}

#[tokio::test]
async fn a_ticket_resumes_a_session_without_the_server_keeping_it() {
    let port = Port::open(quick()).await;
    let config = tls(&[b"http/1.1"]);
    let mut kinds = Vec::new();
    for _ in 0..2 {
        let mut client = shake_with(port.tcp().await, config.clone()).await.unwrap();
        // The ticket comes with what the server says first.
        assert!(get(&mut client, "/t/hello").await.ends_with("hello"));
        kinds.push(client.get_ref().1.handshake_kind().unwrap());
    }
    assert_eq!(kinds[1], rustls::HandshakeKind::Resumed, "{kinds:?}");
}

#[tokio::test]
async fn tls_1_2_is_still_spoken() {
    let port = Port::open(quick()).await;
    let config = tls_of(&[&rustls::version::TLS12], &[b"http/1.1"]);
    let mut client = shake_with(port.tcp().await, config).await.unwrap();
    assert!(get(&mut client, "/t/hello").await.ends_with("hello"));
    assert_eq!(client.get_ref().1.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_2));
}

#[tokio::test]
async fn a_stopped_port_can_be_had_again_at_once() {
    let port = Port::open(quick()).await;
    let address = port.address;
    let mut client = port.http1().await;
    assert!(get(&mut client, "/t/hello").await.ends_with("hello"));
    // The server closes first, so that its side is left in TIME_WAIT.
    port.close().await;
    read_to_end(&mut client).await;
    drop(client);
    assert_eq!(Sockets::bind(address).unwrap().address, address);
}

#[test]
fn port_0_takes_a_number_that_is_free_for_both() {
    let sockets = Sockets::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    assert_ne!(sockets.address.port(), 0);
    assert_eq!(sockets.tcp.local_addr().unwrap(), sockets.address);
    assert_eq!(sockets.udp.local_addr().unwrap(), sockets.address);
}

#[test]
fn a_taken_port_is_named_with_its_transport() {
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let error = Sockets::bind(tcp.local_addr().unwrap()).unwrap_err();
    assert!(matches!(error, ListenError::InUse { transport: Transport::Tcp, .. }), "{error:?}");
    let told = error.to_string();
    assert!(told.contains("TCP") && told.contains(&tcp.local_addr().unwrap().to_string()) && told.contains("ss -lpn"), "{told}");

    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = udp.local_addr().unwrap();
    let error = Sockets::bind(address).unwrap_err();
    assert!(matches!(error, ListenError::InUse { transport: Transport::Udp, .. }), "{error:?}");
    assert!(error.to_string().contains("UDP"), "{error}");
    TcpListener::bind(address).expect("the TCP half was given back");
}

#[tokio::test]
async fn plain_http_is_refused_to_other_machines_and_answers_this_one() {
    let directory = tempfile::TempDir::new().unwrap();
    let port = Port::with(quick(), horos_edge::Source::Plain, directory).await;
    assert!(get(&mut port.tcp().await, "/t/hello").await.ends_with("hello"));

    let Sockets { tcp, .. } = Sockets::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let parts = crate::it::world::parts(horos_edge::Source::Plain, tcp, "192.0.2.1:443".parse().unwrap());
    let error = Edge::open(quick(), parts).unwrap_err();
    assert!(matches!(error, EdgeError::NotLoopback { .. }) && error.to_string().contains("192.0.2.1:443"), "{error}");
    drop(Arc::new(port));
}

//! A node that stops fails no request that it has accepted.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use horos_edge::{Phase, Reason};
use tokio::{io::AsyncWriteExt as _, net::TcpStream};

use super::world::*;

#[tokio::test]
async fn what_is_in_hand_is_finished_and_everybody_is_told() {
    let port = Port::open(quick()).await;
    let (mut http1, mut idle, mut http2) = (port.http1().await, port.http1().await, port.http2().await);
    http1.write_all(b"GET /t/wait HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    assert!(get(&mut idle, "/t/hello").await.ends_with("hello"));
    http2.write_all(&ask(1, "/t/wait")).await.unwrap();
    port.waiting(2).await;

    let until = port.drain(LONG);
    assert!(frame_of(&mut http2, GOAWAY).await.is_some(), "HTTP/2 is told while its request is in hand");
    eventually("the listener closes", || match std::net::TcpStream::connect(port.address) {
        Err(_) => Ok(()),
        Ok(_) => Err("it takes connections".to_owned()),
    })
    .await;
    port.gate.add_permits(2);
    let answer = read_answer(&mut http1).await;
    assert!(answer.ends_with("waited") && answer.to_ascii_lowercase().contains("connection: close"), "{answer}");
    assert_eq!(body_of(&mut http2, 1).await, b"waited");
    assert!(read_to_end(&mut idle).await.is_empty(), "who has no request is closed");
    drop((http1, idle, http2));
    port.edge.drained(until).await;
    assert!(Instant::now() < until && port.edge.open_connections() == 0);
    assert_eq!(port.metrics.count(Reason::Draining), 0);
}

#[tokio::test]
async fn a_request_on_an_open_connection_is_still_answered_and_then_it_closes() {
    let port = Port::open(quick()).await;
    let mut client = port.http1().await;
    assert!(get(&mut client, "/t/hello").await.ends_with("hello"));
    port.drain(LONG);
    let answer = get(&mut client, "/t/hello").await;
    assert!(answer.ends_with("hello") && answer.to_ascii_lowercase().contains("connection: close"), "{answer}");
    assert!(read_to_end(&mut client).await.is_empty());
}

#[tokio::test]
async fn what_the_kernel_had_accepted_is_served() {
    let port = Port::open(quick()).await;
    // The accept loop has no turn before the drain: the runtime has one thread, and this does not wait.
    let waiting: Vec<_> = (0..8).map(|_| std::net::TcpStream::connect(port.address).unwrap()).collect();
    port.drain(LONG);
    for stream in waiting {
        stream.set_nonblocking(true).unwrap();
        let mut client = shake(TcpStream::from_std(stream).unwrap(), &[b"http/1.1"]).await.unwrap();
        let answer = get(&mut client, "/t/hello").await;
        assert!(answer.ends_with("hello") && answer.to_ascii_lowercase().contains("connection: close"), "{answer}");
    }
}

#[tokio::test]
async fn what_is_left_at_the_deadline_is_cut_off() {
    let port = Port::open(quick()).await;
    let (mut http1, mut http2) = (port.http1().await, port.http2().await);
    http1.write_all(b"GET /t/wait HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    http2.write_all(&ask(1, "/t/wait")).await.unwrap();
    port.waiting(2).await;
    let begun = Instant::now();
    let until = port.drain(Duration::from_millis(500));
    read_to_end(&mut http1).await;
    read_to_end(&mut http2).await;
    assert!(begun.elapsed() >= Duration::from_millis(500) && begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    port.edge.drained(until).await;
    port.counted(Reason::Draining, 2).await;
    port.connections(0).await;
    // Their services are stopped too.
    port.waiting(0).await;
}

#[tokio::test]
async fn an_idle_http2_client_that_reads_nothing_is_not_waited_for() {
    let port = Port::open(quick()).await;
    let mut served = port.http2().await;
    served.write_all(&ask(1, "/t/hello")).await.unwrap();
    assert_eq!(body_of(&mut served, 1).await, b"hello");
    // One that has asked nothing, one that has its answer, one whose request is in hand: none reads from here on, so none
    // answers the PING that is to tell that it has heard.
    let mute = port.http2().await;
    let mut busy = port.http2().await;
    busy.write_all(&ask(1, "/t/wait")).await.unwrap();
    port.waiting(1).await;
    let begun = Instant::now();
    let until = port.drain(LONG);
    port.connections(1).await;
    assert!((Duration::from_millis(900)..Duration::from_secs(5)).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    port.gate.add_permits(1);
    port.waiting(0).await;
    let answered = Instant::now();
    port.edge.drained(until).await;
    assert!(answered.elapsed() > Duration::from_millis(900), "who was just answered may have more on its way");
    assert!(Instant::now() < until, "nobody is waited for");
    assert_eq!(body_of(&mut busy, 1).await, b"waited", "and what was said before can still be read");
    assert_eq!(port.counts(), [("idle", 3)]);
    drop((mute, served));
}

#[tokio::test]
async fn a_node_that_is_not_ready_serves_as_before() {
    let port = Port::open(quick()).await;
    port.drain.go(Phase::NotReady);
    let mut client = port.http1().await;
    for _ in 0..2 {
        let answer = get(&mut client, "/t/hello").await;
        assert!(answer.ends_with("hello") && !answer.to_ascii_lowercase().contains("connection: close"), "{answer}");
    }
}

#[tokio::test]
async fn under_load_no_request_fails() {
    let port = Arc::new(Port::open(quick()).await);
    let answered = Arc::new(AtomicUsize::new(0));
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..scale(8, 64) {
        let (shared, count) = (port.clone(), answered.clone());
        clients.spawn(async move {
            let mut client = shared.http1().await;
            loop {
                let answer = get(&mut client, "/t/bytes/3000").await;
                assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
                count.fetch_add(1, Relaxed);
                if answer.to_ascii_lowercase().contains("connection: close") {
                    return;
                }
            }
        });
        let (shared, count) = (port.clone(), answered.clone());
        clients.spawn(async move {
            let mut client = shared.http2().await;
            for stream in (1..).step_by(2) {
                client.write_all(&ask(stream, "/t/hello")).await.unwrap();
                loop {
                    let frame = next_frame(&mut client).await.expect("an answer before the end");
                    match frame.kind {
                        PING if frame.flags & ACK == 0 => client.write_all(&self::frame(PING, ACK, 0, &frame.payload)).await.unwrap(),
                        // The last stream that is answered: 2^31-1 at first, so that what is on its way still is.
                        GOAWAY if frame.payload[..4] != 0x7fff_ffff_u32.to_be_bytes() => return,
                        DATA if frame.flags & END_STREAM != 0 => break,
                        _ => {}
                    }
                }
                count.fetch_add(1, Relaxed);
            }
        });
    }
    let enough = scale(500, 20_000);
    eventually("load", || match answered.load(Relaxed) {
        some if some >= enough => Ok(()),
        some => Err(some.to_string()),
    })
    .await;
    let until = port.drain(LONG);
    while let Some(client) = clients.join_next().await {
        client.unwrap();
    }
    port.edge.drained(until).await;
    assert!(Instant::now() < until, "nobody had to be cut off");
    assert!(port.counts().is_empty(), "{:?}", port.counts());
}

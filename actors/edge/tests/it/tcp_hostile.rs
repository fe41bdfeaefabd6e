//! Clients that are slow, greedy or out to break something: each is ended and counted, and the others are served.

use std::time::{Duration, Instant};

use horos_edge::{Config, Limits, Reason, Timeouts};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::world::*;

const MS: fn(u64) -> Duration = Duration::from_millis;

/// Somebody else is served meanwhile.
async fn others_are_served(port: &Port) {
    assert!(get(&mut port.http1().await, "/t/hello").await.ends_with("hello"));
    let mut http2 = port.http2().await;
    http2.write_all(&ask(1, "/t/hello")).await.unwrap();
    assert_eq!(body_of(&mut http2, 1).await, b"hello");
}

#[tokio::test]
async fn a_handshake_that_stands_still_is_ended() {
    let port = Port::open(quick()).await;
    let mut silent = port.tcp().await;
    let mut half = port.tcp().await;
    half.write_all(&[22, 3, 1, 2, 0, 1, 0, 1]).await.unwrap();
    others_are_served(&port).await;
    assert!(read_to_end(&mut silent).await.is_empty());
    read_to_end(&mut half).await;
    port.counted(Reason::HandshakeTimeout, 2).await;
    port.connections(0).await;
}

#[tokio::test]
async fn what_is_no_handshake_is_counted() {
    let port = Port::open(quick()).await;
    let mut plain = port.tcp().await;
    plain.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    read_to_end(&mut plain).await;
    port.counted(Reason::HandshakeFailed, 1).await;
}

#[tokio::test]
async fn a_head_that_drips_is_ended_at_its_deadline() {
    let port = Port::open(quick()).await;
    let mut slow = port.http1().await;
    let begun = Instant::now();
    // A byte now and then, as slow-loris does: it is the whole head that has the deadline, not its parts.
    let dripping = async {
        for byte in b"GET /t/hello HTTP/1.1\r\nhost: localhost\r\nx: ".iter().chain(std::iter::repeat(&b'x')) {
            if slow.write_all(&[*byte]).await.is_err() || slow.flush().await.is_err() {
                return;
            }
            tokio::time::sleep(MS(20)).await;
        }
    };
    tokio::select! {
        () = dripping => {}
        () = port.counted(Reason::SlowHead, 1) => {}
    }
    assert!(begun.elapsed() < MS(1500), "{:?}", begun.elapsed());
    read_to_end(&mut slow).await;
    others_are_served(&port).await;
    port.connections(0).await;
}

#[tokio::test]
async fn an_idle_connections_next_head_has_its_own_deadline() {
    let port = Port::open(quick()).await;
    let mut client = port.http1().await;
    for _ in 0..3 {
        // Longer than a head may take: what counts is the time from its first byte.
        tokio::time::sleep(MS(500)).await;
        assert!(get(&mut client, "/t/hello").await.ends_with("hello"));
    }
    client.write_all(b"GET /t/he").await.unwrap();
    read_to_end(&mut client).await;
    port.counted(Reason::SlowHead, 1).await;
}

#[tokio::test]
async fn a_body_that_drips_is_ended() {
    let port = Port::open(quick()).await;
    let mut client = port.http1().await;
    client.write_all(b"POST /t/echo HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\nabc").await.unwrap();
    let answer = String::from_utf8(read_to_end(&mut client).await).unwrap();
    assert!(answer.starts_with("HTTP/1.1 4"), "{answer}");
    port.counted(Reason::SlowBody, 1).await;
}

#[tokio::test]
async fn http2_that_begins_something_and_does_not_end_it_is_ended() {
    let port = Port::open(quick()).await;
    let block = head("/t/hello");
    let unfinished: [(&str, Vec<u8>); 4] = [
        ("half a frame's header", frame(HEADERS, 0, 1, &[])[..5].to_vec()),
        ("half a HEADERS frame", frame(HEADERS, END_HEADERS, 1, &block)[..20].to_vec()),
        ("a header block without its end", frame(HEADERS, 0, 1, &block)),
        ("half a SETTINGS frame", frame(SETTINGS, 0, 0, &[0; 6])[..12].to_vec()),
    ];
    let mut count = 0;
    let mut half = port.tls(&[b"h2"]).await;
    half.write_all(&PREFACE[..10]).await.unwrap();
    read_to_end(&mut half).await;
    count += 1;
    port.counted(Reason::SlowHead, count).await;
    for (what, bytes) in unfinished {
        let mut client = port.http2().await;
        client.write_all(&bytes).await.unwrap();
        read_to_end(&mut client).await;
        count += 1;
        eprintln!("{what}: ended");
        port.counted(Reason::SlowHead, count).await;
    }
    others_are_served(&port).await;
}

#[tokio::test]
async fn http2_that_is_slow_but_goes_on_is_not_ended() {
    let config = Config { timeouts: Timeouts { head: MS(1500), ..quick().timeouts }, ..quick() };
    let port = Port::open(config).await;
    let mut client = port.http2().await;
    // Each frame takes less than a head may; together they take longer. What is sent at a time ends in the middle of the
    // next frame, so that at no moment nothing has begun.
    let asked: Vec<u8> = [1, 3, 5, 7, 9].into_iter().flat_map(|stream| ask(stream, "/t/hello")).collect();
    let part = asked.len() / 5;
    let mut parts = asked[..part / 2].chunks(part / 2).chain(asked[part / 2..].chunks(part)).peekable();
    while let Some(part) = parts.next() {
        client.write_all(part).await.unwrap();
        if parts.peek().is_some() {
            tokio::time::sleep(MS(400)).await;
        }
    }
    assert_eq!(body_of(&mut client, 9).await, b"hello");
    assert!(port.counts().is_empty(), "{:?}", port.counts());
}

#[tokio::test]
async fn a_refusal_reaches_a_client_that_is_still_sending() {
    let port = Port::open(quick()).await;
    for _ in 0..scale(5, 100) {
        let mut client = port.http1().await;
        client.write_all(b"POST /t/echo HTTP/1.1\r\nhost: localhost\r\ncontent-length: 50000000\r\n\r\n").await.unwrap();
        let mut sent = 0;
        while sent < 512 * 1024 && client.write_all(&[b'x'; 8 * 1024]).await.is_ok() {
            sent += 8 * 1024;
            tokio::task::yield_now().await;
        }
        let answer = String::from_utf8(read_to_end(&mut client).await).unwrap();
        assert!(answer.starts_with("HTTP/1.1 413 "), "after {sent} bytes: {answer:?}");
    }
}

#[tokio::test]
async fn a_head_too_large_is_told_so_over_http1() {
    let port = Port::open(quick()).await;
    let mut large = port.http1().await;
    let head = format!("GET /t/hello HTTP/1.1\r\nhost: localhost\r\nx: {}\r\n\r\n", "x".repeat(40_000));
    large.write_all(head.as_bytes()).await.unwrap();
    assert!(read_to_end(&mut large).await.starts_with(b"HTTP/1.1 431 "));
    port.counted(Reason::HeadTooLarge, 1).await;

    let mut many = port.http1().await;
    let fields: String = (0..150).map(|field| format!("x-{field}: 1\r\n")).collect();
    many.write_all(format!("GET /t/hello HTTP/1.1\r\nhost: localhost\r\n{fields}\r\n").as_bytes()).await.unwrap();
    assert!(read_to_end(&mut many).await.starts_with(b"HTTP/1.1 431 "));
    port.counted(Reason::HeadTooLarge, 2).await;

    // One that never ends is cut short at the limit, not at the deadline.
    let mut endless = port.http1().await;
    endless.write_all(b"GET /t/hello HTTP/1.1\r\nhost: localhost\r\nx: ").await.unwrap();
    let part = [b'x'; 16 * 1024];
    while endless.write_all(&part).await.is_ok() && port.metrics.count(Reason::HeadTooLarge) < 3 {}
    port.counted(Reason::HeadTooLarge, 3).await;
    others_are_served(&port).await;
}

#[tokio::test]
async fn a_head_too_large_costs_its_request_only_over_http2() {
    let port = Port::open(quick()).await;
    let mut client = port.http2().await;
    // Too large for the application, and too large for it to see.
    for (stream, size) in [(1, 40_000), (3, 100_000)] {
        let block = [head("/t/hello"), field("x", &"x".repeat(size))].concat();
        let mut parts = block.chunks(16_000).enumerate().peekable();
        while let Some((index, part)) = parts.next() {
            let (kind, first) = if index == 0 { (HEADERS, END_STREAM) } else { (CONTINUATION, 0) };
            let last = if parts.peek().is_none() { END_HEADERS } else { 0 };
            client.write_all(&frame(kind, first | last, stream, part)).await.unwrap();
        }
        assert_eq!(frame_of(&mut client, HEADERS).await.unwrap().stream, stream);
        port.counted(Reason::HeadTooLarge, u64::from(stream).div_ceil(2)).await;
    }
    client.write_all(&ask(5, "/t/hello")).await.unwrap();
    assert_eq!(body_of(&mut client, 5).await, b"hello");

    let fields: Vec<u8> = (0..150).flat_map(|index| field(&format!("x-{index}"), "1")).collect();
    client.write_all(&frame(HEADERS, END_STREAM | END_HEADERS, 7, &[head("/t/hello"), fields].concat())).await.unwrap();
    port.counted(Reason::HeadTooLarge, 3).await;
}

#[tokio::test]
async fn a_header_bomb_ends_the_connection() {
    let port = Port::open(quick()).await;
    let mut client = port.http2().await;
    // One field of 4,000 bytes, indexed, and then named by a byte each: 64 MiB from 16 KiB (RFC 7541 §7.3).
    let mut bomb = vec![0x40, 1, b'x', 127, 0x80 | (3873 & 127) as u8, (3873 >> 7) as u8];
    bomb.extend(std::iter::repeat_n(b'y', 4000));
    let bomb = [head("/t/hello"), bomb, vec![0xbe; 11_000]].concat();
    client.write_all(&frame(HEADERS, END_STREAM | END_HEADERS, 1, &bomb)).await.unwrap();
    let goaway = frame_of(&mut client, GOAWAY).await.expect("it is told why");
    assert_eq!(goaway.payload[4..8], 11_u32.to_be_bytes(), "ENHANCE_YOUR_CALM");
    port.counted(Reason::HeadTooLarge, 1).await;
    others_are_served(&port).await;
}

#[tokio::test]
async fn a_continuation_flood_is_ended() {
    for size in [0, 1, 1000] {
        let port = Port::open(quick()).await;
        let mut client = port.http2().await;
        client.write_all(&frame(HEADERS, END_STREAM, 1, &head("/t/hello"))).await.unwrap();
        let more = frame(CONTINUATION, 0, 1, &vec![0; size]);
        // A connection that is closed is read on for a second or a MiB; that is less than this.
        let mut sent = 0;
        while sent < 1_000_000 && client.write_all(&more).await.is_ok() {
            sent += 1;
        }
        assert!(sent < 1_000_000, "frames of {size} bytes: the connection is still there");
        eventually("counted", || match port.counts() {
            counts if counts.iter().any(|(name, _)| matches!(*name, "head_too_large" | "protocol")) => Ok(()),
            counts => Err(format!("{counts:?}")),
        })
        .await;
        port.connections(0).await;
        others_are_served(&port).await;
    }
}

#[tokio::test]
async fn a_rapid_reset_is_ended() {
    // In one write, so that streams end before they are accepted, and one by one, so that each reaches a service.
    for at_once in [64, 1] {
        let port = Port::open(quick()).await;
        let mut client = port.http2().await;
        let mut stream = 1;
        let flooding = async {
            loop {
                let mut frames = Vec::new();
                for _ in 0..at_once {
                    frames.extend(ask(stream, "/t/wait"));
                    frames.extend(frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
                    stream += 2;
                }
                if client.write_all(&frames).await.is_err() || client.flush().await.is_err() {
                    break;
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(LONG, flooding).await.expect("it is ended");
        assert!(stream < 40_000, "{stream}");
        port.counted(Reason::ResetFlood, 1).await;
        others_are_served(&port).await;
    }
}

#[tokio::test]
async fn as_many_as_a_client_may_have_it_may_take_back() {
    let port = Port::open(quick()).await;
    let mut client = port.http2().await;
    let mut stream = 1;
    let mut frames = Vec::new();
    for _ in 0..128 {
        frames.extend(ask(stream, "/t/wait"));
        stream += 2;
    }
    for taken_back in (1..stream).step_by(2) {
        frames.extend(frame(RST_STREAM, 0, taken_back, &8_u32.to_be_bytes()));
    }
    client.write_all(&frames).await.unwrap();
    client.write_all(&ask(stream, "/t/hello")).await.unwrap();
    assert_eq!(body_of(&mut client, stream).await, b"hello");
    assert!(port.counts().is_empty(), "{:?}", port.counts());
}

#[tokio::test]
async fn frames_that_carry_nothing_are_bounded() {
    let floods = [frame(PING, 0, 0, &[0; 8]), frame(SETTINGS, 0, 0, &[]), frame(2, 0, 1, &[0; 5]), frame(0xfa, 0, 0, &[])];
    for flood in floods {
        let port = Port::open(quick()).await;
        let client = port.http2().await;
        let (mut reads, mut writes) = tokio::io::split(client);
        // It takes what it is answered, or it would be the slow reader.
        let reading = tokio::spawn(async move { while reads.read(&mut [0; 16 * 1024]).await.is_ok_and(|read| read > 0) {} });
        let many = flood.repeat(256);
        let flooding = async { while writes.write_all(&many).await.is_ok() {} };
        tokio::time::timeout(LONG, flooding).await.expect("it is ended");
        reading.await.unwrap();
        port.counted(Reason::FrameFlood, 1).await;
        others_are_served(&port).await;
    }
}

#[tokio::test]
async fn an_answer_that_is_not_taken_is_ended_and_its_connection_lives() {
    // Windows that are shut from the start, shut in the middle, and shut before the last bytes.
    for (window, size) in [(0, 10), (0, 100_000), (30_000, 100_000), (99_000, 100_000), (10, 5_000)] {
        let port = Port::open(quick()).await;
        let mut client = port.http2_with(&[(4, window)]).await;
        client.write_all(&frame(WINDOW_UPDATE, 0, 0, &1_000_000_u32.to_be_bytes())).await.unwrap();
        client.write_all(&ask(1, &format!("/t/bytes/{size}"))).await.unwrap();
        let ended = frame_of(&mut client, RST_STREAM).await.expect("the connection lives");
        assert_eq!(ended.stream, 1);
        port.counted(Reason::SlowReader, 1).await;
        client.write_all(&[frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 255, 255]), ask(3, "/t/hello")].concat()).await.unwrap();
        assert_eq!(body_of(&mut client, 3).await, b"hello", "window {window} of {size}");
    }
}

#[tokio::test]
async fn an_answer_that_is_taken_slowly_is_not_ended() {
    let config = Config { timeouts: Timeouts { stalled: MS(1500), ..quick().timeouts }, ..quick() };
    let port = Port::open(config).await;
    let mut client = port.http2_with(&[(4, 0)]).await;
    client.write_all(&ask(1, "/t/bytes/60000")).await.unwrap();
    for _ in 0..4 {
        tokio::time::sleep(MS(500)).await;
        client.write_all(&frame(WINDOW_UPDATE, 0, 1, &16_384_u32.to_be_bytes())).await.unwrap();
    }
    assert_eq!(body_of(&mut client, 1).await.len(), 60_000);
    assert!(port.counts().is_empty(), "{:?}", port.counts());
}

#[tokio::test]
async fn a_service_that_thinks_is_no_slow_reader() {
    let port = Port::open(quick()).await;
    let (mut http1, mut http2) = (port.http1().await, port.http2().await);
    http1.write_all(b"GET /t/wait HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    http2.write_all(&ask(1, "/t/wait")).await.unwrap();
    tokio::time::sleep(MS(1000)).await;
    port.gate.add_permits(2);
    assert!(read_answer(&mut http1).await.ends_with("waited"));
    assert_eq!(body_of(&mut http2, 1).await, b"waited");
    assert!(port.counts().is_empty(), "{:?}", port.counts());
}

#[tokio::test]
async fn a_client_that_reads_nothing_is_cut_off() {
    let port = Port::open(quick()).await;
    let mut http1 = port.http1().await;
    http1.write_all(b"GET /t/endless HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    port.counted(Reason::SlowReader, 1).await;
    port.connections(0).await;

    let most = 0x7fff_ffff_u32;
    let mut http2 = port.http2_with(&[(4, most)]).await;
    http2.write_all(&frame(WINDOW_UPDATE, 0, 0, &(most - 65_535).to_be_bytes())).await.unwrap();
    http2.write_all(&ask(1, "/t/endless")).await.unwrap();
    eventually("counted", || match port.metrics.count(Reason::SlowReader) {
        2.. => Ok(()),
        _ => Err(format!("{:?}", port.counts())),
    })
    .await;
    port.connections(0).await;
    drop((http1, http2));
}

#[tokio::test]
async fn connections_without_a_request_are_closed_after_their_time() {
    let config = Config { timeouts: Timeouts { idle: MS(300), ..quick().timeouts }, ..quick() };
    let port = Port::open(config).await;
    let mut silent = port.http1().await;
    let mut used = port.http1().await;
    assert!(get(&mut used, "/t/hello").await.ends_with("hello"));
    let mut http2 = port.http2().await;
    http2.write_all(&ask(1, "/t/hello")).await.unwrap();
    body_of(&mut http2, 1).await;
    let mut mute = port.tls(&[b"h2"]).await;
    assert!(read_to_end(&mut silent).await.is_empty());
    assert!(read_to_end(&mut used).await.is_empty());
    assert!(frame_of(&mut http2, GOAWAY).await.is_some(), "HTTP/2 is told");
    read_to_end(&mut mute).await;
    drop((silent, used, http2, mute));
    port.connections(0).await;
    assert_eq!(port.counts(), [("idle", 4)], "each counts once, whether it leaves when it is told or not");
}

#[tokio::test]
async fn at_the_limit_the_longest_idle_makes_room() {
    let config = Config { limits: Limits { connections: 3, ..quick().limits }, ..quick() };
    let port = Port::open(config).await;
    let mut clients = Vec::new();
    for _ in 0..3 {
        let (mut client, since) = (port.http1().await, Instant::now());
        // Until it is idle since another millisecond than the one before: that is what the table's clock counts.
        while since.elapsed() < MS(2) {
            assert!(get(&mut client, "/t/hello").await.ends_with("hello"));
        }
        clients.push(client);
    }
    // The first is used again: now the second has been idle longest.
    assert!(get(&mut clients[0], "/t/hello").await.ends_with("hello"));
    let mut fourth = port.http1().await;
    assert!(get(&mut fourth, "/t/hello").await.ends_with("hello"));
    assert!(read_to_end(&mut clients[1]).await.is_empty(), "the second was closed");
    for open in [0, 2] {
        assert!(get(&mut clients[open], "/t/hello").await.ends_with("hello"), "{open} is still open");
    }
    port.counted(Reason::Idle, 1).await;
}

#[tokio::test]
async fn connections_in_use_make_no_room() {
    let config = Config { limits: Limits { connections: 2, ..quick().limits }, ..quick() };
    let port = Port::open(config).await;
    let mut busy = Vec::new();
    for _ in 0..2 {
        let mut client = port.http1().await;
        client.write_all(b"GET /t/wait HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
        busy.push(client);
    }
    port.waiting(2).await;
    assert!(shake(port.tcp().await, &[]).await.is_err(), "there is no room");
    port.counted(Reason::ConnectionsFull, 1).await;
    port.gate.add_permits(2);
    for client in &mut busy {
        assert!(read_answer(client).await.ends_with("waited"));
    }
    others_are_served(&port).await;
}

#[tokio::test]
async fn handshakes_in_progress_are_bounded_and_the_oldest_makes_room() {
    let mut config = quick();
    config.limits.handshakes = 2;
    config.timeouts.handshake = LONG;
    let port = Port::open(config).await;
    let mut silent = [port.tcp().await, port.tcp().await];
    port.connections(2).await;
    assert!(shake(port.tcp().await, &[]).await.is_err(), "those at it have not had their chance");
    port.counted(Reason::HandshakesFull, 1).await;
    tokio::time::sleep(MS(900)).await;
    others_are_served(&port).await;
    assert!(read_to_end(&mut silent[0]).await.is_empty(), "the oldest was cut off");
    port.counted(Reason::HandshakeTimeout, 1).await;
}

#[tokio::test]
async fn a_malformed_head_is_counted_by_what_is_wrong_with_it() {
    for (head, status, reason) in [
        ("GET /t/hello HTTP/1.1\r\n\r\n", 400, Reason::BadHost),
        ("GET /t/hello HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", 400, Reason::BadHost),
        ("GET /t/../x HTTP/1.1\r\nhost: a\r\n\r\n", 400, Reason::BadPath),
        ("GET no-path HTTP/1.1\r\nhost: a\r\n\r\n", 400, Reason::BadPath),
        ("GET http://[ HTTP/1.1\r\nhost: a\r\n\r\n", 400, Reason::BadPath),
        ("POST /t/echo HTTP/1.1\r\nhost: a\r\ncontent-length: 1x\r\n\r\n", 400, Reason::BadLength),
        ("POST /t/echo HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n", 400, Reason::BadLength),
        ("POST /t/echo HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip\r\n\r\n", 400, Reason::BadLength),
        ("GET /t/hello HTTP/1.1\r\nhost: a\r\nno field\r\n\r\n", 400, Reason::BadField),
        ("GET /t/hello HTTP/1.1\r\nhost: a\r\nx: \u{0}\r\n\r\n", 400, Reason::BadField),
        ("GE@ /t/hello HTTP/1.1\r\nhost: a\r\n\r\n", 400, Reason::Protocol),
        ("GET /t/hello HTTP/3.7\r\nhost: a\r\n\r\n", 400, Reason::Protocol),
    ] {
        let port = Port::open(quick()).await;
        let mut client = port.http1().await;
        client.write_all(head.as_bytes()).await.unwrap();
        let answer = read_answer(&mut client).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{head:?}: {answer}");
        drop(client);
        port.counted(reason, 1).await;
        port.connections(0).await;
        assert_eq!(port.counts(), [(reason.as_str(), 1)], "{head:?}");
    }
}

#[tokio::test]
async fn what_is_no_http_is_refused() {
    let port = Port::open(quick()).await;
    let mut http1 = port.http1().await;
    http1.write_all(b"\x00\x01\x02\x03 this is no request\r\n\r\n").await.unwrap();
    assert!(read_to_end(&mut http1).await.starts_with(b"HTTP/1.1 400 "));
    port.counted(Reason::Protocol, 1).await;
    let mut http2 = port.tls(&[b"h2"]).await;
    http2.write_all(b"GET /t/hello HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    read_to_end(&mut http2).await;
    port.counted(Reason::Protocol, 2).await;
    let mut large = port.http2().await;
    large.write_all(&frame(DATA, 0, 1, &[0; 20_000])).await.unwrap();
    let goaway = frame_of(&mut large, GOAWAY).await.unwrap();
    assert_eq!(goaway.payload[4..8], 6_u32.to_be_bytes(), "FRAME_SIZE_ERROR");
    port.counted(Reason::FrameTooLarge, 1).await;
}

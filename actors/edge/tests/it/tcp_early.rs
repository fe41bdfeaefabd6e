//! Who is answered before it has sent its body sees the answer, and is not listened to for ever.

use std::time::{Duration, Instant};

use horos_edge::{Config, Limits, Reason};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::world::*;

/// A body that is read on for, at most; see `LINGER_BYTES`.
const MOST: usize = 4 * 1024 * 1024;

fn small_bodies() -> Config {
    Config { limits: Limits { body: 1000, ..quick().limits }, ..quick() }
}

/// The head of a POST whose body is to come.
fn post(stream: u32, path: &str, length: Option<usize>) -> Vec<u8> {
    let mut block = [field(":method", "POST"), field(":scheme", "https"), field(":authority", "localhost"), field(":path", path)].concat();
    if let Some(length) = length {
        block.extend(field("content-length", &length.to_string()));
    }
    frame(HEADERS, END_HEADERS, stream, &block)
}

#[tokio::test]
async fn over_http2_the_answer_ends_before_anything_else_is_said_of_its_stream() {
    let port = Port::open(small_bodies()).await;
    // Known by its length, found out in its middle, and of no interest at all.
    for (path, length) in [("/t/echo", Some(80_000)), ("/t/echo", None), ("/nowhere", None), ("/t/hello", None)] {
        let mut client = port.http2().await;
        client.write_all(&post(1, path, length)).await.unwrap();
        client.write_all(&frame(DATA, 0, 1, &[0; 16_000])).await.unwrap();
        assert!(!body_of(&mut client, 1).await.is_empty(), "{path}");
        // The rest, as a client sends that has not looked yet, and something else.
        for part in 2..=5 {
            client.write_all(&frame(DATA, if part == 5 { END_STREAM } else { 0 }, 1, &[0; 16_000])).await.unwrap();
        }
        client.write_all(&ask(3, "/t/hello")).await.unwrap();
        loop {
            let came = next_frame(&mut client).await.expect("the connection lives");
            assert_ne!(came.kind, RST_STREAM, "{path}: {came:?}");
            if came.kind == DATA && came.stream == 3 {
                break;
            }
        }
    }
}

#[tokio::test]
async fn over_http2_a_body_that_nobody_wants_is_read_for_a_time_and_so_much() {
    let port = Port::open(small_bodies()).await;
    // One that says nothing more.
    let mut silent = port.http2().await;
    silent.write_all(&post(1, "/t/echo", Some(100_000))).await.unwrap();
    body_of(&mut silent, 1).await;
    let begun = Instant::now();
    let reset = frame_of(&mut silent, RST_STREAM).await.expect("the connection lives");
    assert_eq!((reset.stream, reset.payload), (1, 0_u32.to_be_bytes().to_vec()), "NO_ERROR (RFC 9113 §8.1)");
    assert!(begun.elapsed() > Duration::from_millis(500), "{:?}", begun.elapsed());
    // One that goes on for ever, as fast as it may.
    let mut endless = port.http2().await;
    endless.write_all(&post(1, "/t/echo", None)).await.unwrap();
    let (begun, mut sent, mut room) = (Instant::now(), 0, [65_535_usize; 2]);
    let reset = loop {
        while room.iter().all(|room| *room >= 8000) {
            endless.write_all(&frame(DATA, 0, 1, &[0; 8000])).await.unwrap();
            room = room.map(|room| room - 8000);
            sent += 8000;
        }
        let came = next_frame(&mut endless).await.expect("the connection lives");
        match came.kind {
            WINDOW_UPDATE => room[came.stream as usize] += u32::from_be_bytes(came.payload.try_into().unwrap()) as usize,
            RST_STREAM => break came.payload,
            _ => {}
        }
    };
    assert_eq!(reset, 0_u32.to_be_bytes());
    assert!(sent < MOST + 512 * 1024, "it is still listened to");
    assert!(sent >= MOST || begun.elapsed() > Duration::from_millis(900), "{sent} bytes, {:?}", begun.elapsed());
    port.counted(Reason::BodyTooLarge, 2).await;
    drop((silent, endless));
    port.connections(0).await;
}

#[tokio::test]
async fn over_http1_the_answer_is_there_when_the_client_has_sent_what_it_had() {
    let port = Port::open(small_bodies()).await;
    let length = MOST / 2;
    let mut client = port.http1().await;
    let head = format!("POST /t/echo HTTP/1.1\r\nhost: localhost\r\ncontent-length: {length}\r\n\r\n");
    client.write_all(head.as_bytes()).await.unwrap();
    client.write_all(&vec![0; length]).await.expect("it is read to its end");
    let answer = read_answer(&mut client).await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    assert_eq!(client.read(&mut [0; 1]).await.unwrap_or(0), 0);
    port.counted(Reason::BodyTooLarge, 1).await;
    port.connections(0).await;
}

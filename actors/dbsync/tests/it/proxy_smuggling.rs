//! Requests that are meant to be read in two ways, byte for byte: from a raw client through a front office's port to a raw owner.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::mpsc,
};

use super::proxy_world::{Server, config, front, proxy, raw};

/// An owner that answers each head it reads and keeps every byte that it was sent.
struct Owner {
    heard: mpsc::Receiver<Vec<u8>>,
    port: Server,
}

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok";

impl Owner {
    async fn open() -> Self {
        let (listener, address) = raw().await;
        let (sender, heard) = mpsc::channel(16);
        tokio::spawn(async move {
            while let Ok((mut tcp, _)) = listener.accept().await {
                let sender = sender.clone();
                tokio::spawn(async move {
                    let mut all = Vec::new();
                    // Whatever comes within a moment of the last, so that what hides behind a request is heard too.
                    while let Ok(Ok(n @ 1..)) = tokio::time::timeout(Duration::from_millis(300), tcp.read_buf(&mut all)).await {
                        let _ = n;
                    }
                    let _ = tcp.write_all(ANSWER).await;
                    let _ = sender.send(all).await;
                });
            }
        });
        let port = front(proxy(config(&format!("http://{address}")))).await;
        Self { heard, port }
    }

    /// What the client was answered, and what each connection to the owner was sent.
    async fn sent(&mut self, bytes: &str) -> (String, Vec<String>) {
        let mut tcp = TcpStream::connect(self.port.address).await.unwrap();
        tcp.write_all(bytes.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let _ = tokio::time::timeout(Duration::from_secs(2), tcp.read_to_end(&mut answer)).await;
        let mut heard = Vec::new();
        while let Ok(one) = self.heard.try_recv() {
            heard.push(String::from_utf8_lossy(&one).to_lowercase());
        }
        (String::from_utf8_lossy(&answer).into_owned(), heard)
    }
}

fn heads(heard: &str) -> usize {
    heard.matches(" http/1.1\r\n").count()
}

#[tokio::test]
async fn a_body_whose_length_is_said_in_two_ways_reaches_the_owner_as_one_or_not_at_all() {
    let mut owner = Owner::open().await;
    let hidden = "GET /admin HTTP/1.1\r\nhost: a\r\n\r\n";
    for (n, smuggled) in [
        // The length ends before the hidden request, the chunks behind it; and the other way round.
        format!("POST /a HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{hidden}"),
        format!("POST /a HTTP/1.1\r\nhost: a\r\nconnection: close\r\ntransfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n{:x}\r\n{hidden}\r\n0\r\n\r\n", hidden.len()),
        format!("POST /a HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: 0\r\ncontent-length: {}\r\n\r\n{hidden}", hidden.len()),
        format!("POST /a HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: +{}\r\n\r\n{hidden}", hidden.len()),
        format!("POST /a HTTP/1.1\r\nhost: a\r\nconnection: close\r\ntransfer-encoding: xchunked\r\ncontent-length: 3\r\n\r\nabc{hidden}"),
        format!("POST /a HTTP/1.1\r\nhost: a\r\nconnection: close\r\ntransfer-encoding : chunked\r\ncontent-length: 3\r\n\r\nabc{hidden}"),
        format!("POST /a HTTP/1.1\r\nhost: a\r\nconnection: close\r\ntransfer-encoding: chunked\r\ntransfer-encoding: identity\r\n\r\n0\r\n\r\n{hidden}"),
        format!("POST /a HTTP/1.1\r\nhost: a\r\nconnection: close, content-length\r\ncontent-length: {}\r\n\r\n{hidden}", hidden.len()),
        format!("POST /a HTTP/1.1\r\nhost: a\r\nconnection: close, transfer-encoding\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{hidden}"),
    ]
    .iter()
    .enumerate()
    {
        let (answer, heard) = owner.sent(smuggled).await;
        for heard in &heard {
            // As a body with its length, or in chunks, it is data; as a head of its own it would be a request.
            let (head, body) = heard.split_once("\r\n\r\n").unwrap();
            assert_eq!(heads(head), 1, "case {n}: {heard}");
            assert!(!head.contains("/admin"), "case {n}: {heard}");
            let lengths = head.matches("\r\ncontent-length:").count() + head.matches("\r\ntransfer-encoding:").count();
            assert_eq!(lengths, 1, "case {n}: {heard}");
            match head.split("\r\ncontent-length: ").nth(1) {
                Some(rest) => assert_eq!(rest.split("\r\n").next().unwrap(), body.len().to_string(), "case {n}: {heard}"),
                None => assert!(body.ends_with("0\r\n\r\n") && body.matches("0\r\n\r\n").count() == 1, "case {n}: {heard}"),
            }
        }
        assert!(heard.len() <= 1, "case {n}: {heard:?}");
        let refused = answer.starts_with("HTTP/1.1 400") || answer.is_empty();
        assert!(refused || heard.len() == 1, "case {n}: {answer} {heard:?}");
    }
}

#[tokio::test]
async fn no_field_and_no_trailer_gets_through_as_anothers_word() {
    let mut owner = Owner::open().await;
    let (answer, heard) = owner
        .sent(concat!(
            "POST /a HTTP/1.1\r\nhost: evil.example\r\n",
            "connection: close, x-forwarded-for, x-hop, authorization\r\n",
            "x-forwarded-for: 6.6.6.6\r\nforwarded: for=6.6.6.6\r\nx_forwarded_for: 6.6.6.6\r\nx-real-ip: 6.6.6.6\r\n",
            "x-hop: 6.6.6.6\r\nte: trailers\r\ntrailer: x-forwarded-for\r\nproxy-authorization: 6.6.6.6\r\nkeep-alive: 6.6.6.6\r\n",
            "transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nx-forwarded-for: 6.6.6.6\r\nauthorization: 6.6.6.6\r\n\r\n",
        ))
        .await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let [heard] = &heard[..] else { panic!("{heard:?}") };
    for word in ["6.6.6.6", "evil.example", "trailer", "x-hop", "keep-alive"] {
        assert!(!heard.contains(word), "{word} in {heard}");
    }
    assert!(heard.ends_with("3\r\nabc\r\n0\r\n\r\n"), "{heard}");
    assert!(heard.contains("\r\nhost: 127.0.0.1:") && heard.contains("\r\nvia: 1.1 horos-fo-1\r\n"), "{heard}");
}

#[tokio::test]
async fn a_connection_does_not_become_another_protocol() {
    let mut owner = Owner::open().await;
    let asked = "connection: close, upgrade\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n\r\n";
    let (answer, heard) = owner.sent(&format!("GET / HTTP/1.1\r\nhost: a\r\nupgrade: websocket\r\n{asked}")).await;
    assert!(answer.starts_with("HTTP/1.1 501 ") && answer.contains("\"code\":\"no_upgrade\""), "{answer}");
    assert!(heard.is_empty());
    // Cleartext HTTP/2 need not be taken up, so the request goes on as what it is, and its upgrade does not.
    let (answer, heard) = owner
        .sent("GET / HTTP/1.1\r\nhost: a\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\nconnection: close, upgrade, http2-settings\r\n\r\n")
        .await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(!heard[0].contains("upgrade") && !heard[0].contains("http2-settings"), "{heard:?}");
}

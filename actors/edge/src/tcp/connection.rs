//! One connection, from the handshake to its end.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use hyper::server::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{io::ReadBuf, net::TcpStream, time::timeout};
use tokio_rustls::TlsAcceptor;

use super::{
    TcpDoor,
    answer::Serve,
    begun::Spawn,
    frames::Frames,
    io::{Io, Left, Socket, Stream},
    tls::{ACME, H2},
};
use crate::{
    Limits, Peer, Reason, Version,
    connections::{Command, Life, Place},
};

/// Plain text that TLS takes before the socket has taken it: two records.
const TLS_BUFFER: usize = 32 * 1024;
/// What HTTP/1.1 reads ahead of a service, or writes ahead of the client, where heads are not allowed more.
const HTTP1_BUFFER: usize = 64 * 1024;
/// Bytes of bodies that a client may send ahead of the services that read them: on one stream and on all of a connection.
/// Fixed: a window that grows with the path is one that a client can make grow.
const STREAM_WINDOW: u32 = 128 * 1024;
const CONNECTION_WINDOW: u32 = 256 * 1024;
/// Bytes of an answer in HTTP/2's hands.
const SEND_BUFFER: usize = 64 * 1024;
/// Streams on which the server had to point out an error, before the client is sent off (CVE-2025-8671).
const ERROR_RESETS: usize = 128;
/// What is answered before all of it has come is read on for so long, or so much, as a client sends before it looks at its
/// answer. Closed with bytes unread, the kernel would answer with a reset that can overtake the answer (RFC 9112 §9.6); a
/// stream of HTTP/2 would be reset by us.
pub(super) const LINGER: Duration = Duration::from_secs(1);
pub(super) const LINGER_BYTES: usize = 4 * 1024 * 1024;
/// The same after a fault: who floods looks at no answer.
const LINGER_BYTES_AT_FAULT: usize = 1024 * 1024;

pub(super) fn http1(limits: &Limits) -> http1::Builder {
    let mut builder = http1::Builder::new();
    // The deadline for heads is kept by the reaper: hyper's begins before the head does, with the wait for it. A client
    // that closes its half is taken to be gone, and what it asked for is no longer worked at.
    builder.header_read_timeout(None).half_close(false).keep_alive(true);
    builder.max_header_size(limits.head).max_buf_size(limits.head.max(HTTP1_BUFFER));
    // Up to 100 the parser has its room on the stack; whether fewer are allowed is for the application to say.
    if limits.fields > 100 {
        builder.max_headers(limits.fields);
    }
    builder
}

fn http2(door: &TcpDoor, spawn: Spawn) -> http2::Builder<Spawn> {
    let (limits, timeouts) = (&door.inside.config.limits, &door.inside.config.timeouts);
    let mut builder = http2::Builder::new(spawn);
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.streams)
        .max_header_list_size(u32::try_from(header_list(limits)).unwrap_or(u32::MAX))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .adaptive_window(false)
        .max_send_buf_size(SEND_BUFFER)
        // All that a client may have open, it may take back at once.
        .max_pending_accept_reset_streams(limits.streams as usize)
        .max_local_error_reset_streams(ERROR_RESETS)
        // A client that vanished while its answer is being made is found by a PING.
        .keep_alive_interval((timeouts.idle / 2).max(Duration::from_secs(1)))
        .keep_alive_timeout(timeouts.stalled);
    builder
}

/// What `h2` takes of a head, decoded. Up to here it is the application that says no, with its reasons and its counter; beyond,
/// `h2` answers 431 itself.
fn header_list(limits: &Limits) -> usize {
    2 * limits.head
}

/// Shakes hands and serves until either side has enough. Counts why, where that is a refusal.
pub(super) async fn serve(door: Arc<TcpDoor>, tcp: TcpStream, place: Place) {
    let life = place.life().clone();
    // The handshake's state is in a box of its own, and gone when the connection is in use.
    let shaken = life.unless_cut(Box::pin(shake(&door, tcp, &life))).await.flatten();
    let Some((stream, version)) = shaken else { return };
    place.speaks(version);
    let _open = door.inside.metrics.opened(version);
    let left = Left::default();
    let ended = match version {
        Version::Http2 => Box::pin(serve_http2(&door, &life, stream, left.clone())).await,
        Version::Http1 | Version::Http3 => Box::pin(serve_http1(&door, &life, stream, left.clone())).await,
    };
    let Some(ended) = ended else { return }; // cut off, and counted by whoever did
    life.is_done();
    let fault = life.fault().or_else(|| ended.err().and_then(|error| blame(&error, &life)));
    if let Some(reason) = fault {
        door.inside.metrics.refused(reason, Some(version));
        tracing::debug!(peer = %life.peer(), %version, reason = reason.as_str(), "connection ended");
    }
    let left = left.lock().take();
    if let Some(stream) = left {
        // Whoever waits for room or for the drain's end still waits for this one, which is cut off like any other.
        let most = if fault.is_some() { LINGER_BYTES_AT_FAULT } else { LINGER_BYTES };
        let _ = life.unless_cut(Box::pin(timeout(LINGER, linger(stream, most)))).await;
    }
}

/// `None` has been counted.
async fn shake(door: &TcpDoor, tcp: TcpStream, life: &Arc<Life>) -> Option<(Box<Stream>, Version)> {
    let socket = Socket::new(tcp, life.clone());
    let Some(tls) = &door.inside.tls else { return Some((Box::new(Stream::Plain(socket)), Version::Http1)) };
    let metrics = &door.inside.metrics;
    let (begun, guard) = (Instant::now(), metrics.handshaking());
    let accept = TlsAcceptor::from(tls.clone()).accept_with(socket, |session| session.set_buffer_limit(Some(TLS_BUFFER)));
    let reason = match timeout(door.inside.config.timeouts.handshake, accept).await {
        Ok(Ok(stream)) => {
            guard.done(begun.elapsed());
            let version = match stream.get_ref().1.alpn_protocol() {
                Some(ACME) => return None, // the certificate was the answer
                Some(H2) => Version::Http2,
                _ => Version::Http1,
            };
            return Some((Box::new(Stream::Tls(stream)), version));
        }
        Ok(Err(error)) => {
            tracing::debug!(peer = %life.peer(), %error, "handshake failed");
            match error.get_ref().and_then(|error| error.downcast_ref()) {
                Some(rustls::Error::NoApplicationProtocol) => Reason::UnknownProtocol,
                _ => Reason::HandshakeFailed,
            }
        }
        Err(_) => Reason::HandshakeTimeout,
    };
    metrics.refused(reason, None);
    None
}

fn inner(door: &TcpDoor, life: &Arc<Life>, version: Version) -> Serve {
    let inside = &door.inside;
    Serve {
        app: inside.app.clone(),
        peer: Peer { address: life.peer(), version, plane: door.plane, tls: inside.tls.is_some() },
        life: life.clone(),
        drain: inside.drain.clone(),
    }
}

/// `None` when it was cut off.
async fn serve_http1(door: &TcpDoor, life: &Arc<Life>, stream: Box<Stream>, left: Left) -> Option<hyper::Result<()>> {
    let io = TokioIo::new(Io::new(stream, life.clone(), None, 0, door.inside.metrics.clone(), left));
    let mut connection = door.http1.serve_connection(io, inner(door, life, Version::Http1));
    drive(life, |cx, leaves| {
        let mut connection = Pin::new(&mut connection);
        if leaves {
            connection.as_mut().graceful_shutdown();
        }
        connection.poll(cx)
    })
    .await
}

/// `None` when it was cut off.
async fn serve_http2(door: &TcpDoor, life: &Arc<Life>, stream: Box<Stream>, left: Left) -> Option<hyper::Result<()>> {
    let frames = Box::new(Frames::new(Instant::now()));
    let io = TokioIo::new(Io::new(
        stream,
        life.clone(),
        Some(frames),
        header_list(&door.inside.config.limits),
        door.inside.metrics.clone(),
        left,
    ));
    let (spawn, begun) = Spawn::new(life.clone());
    let mut connection = http2(door, spawn).serve_connection(io, inner(door, life, Version::Http2));
    drive(life, |cx, leaves| {
        let mut connection = Pin::new(&mut connection);
        if leaves {
            connection.as_mut().graceful_shutdown();
        }
        let polled = connection.poll(cx);
        if let (Some(begun), Poll::Pending) = (&begun, &polled) {
            // An answer wakes this task, which then writes it together with the others.
            begun.ask(life, cx);
        }
        polled
    })
    .await
}

/// Polls a connection and passes on, once, that it is to leave.
async fn drive<T>(life: &Life, mut poll: impl FnMut(&mut Context<'_>, bool) -> Poll<T>) -> Option<T> {
    let mut was_told = false;
    std::future::poll_fn(|cx| {
        let leaves = match life.poll_command(cx) {
            Command::Cut => return Poll::Ready(None),
            Command::Leave => !std::mem::replace(&mut was_told, true),
            Command::Stay => false,
        };
        poll(cx, leaves).map(Some)
    })
    .await
}

/// Reads until the client closes too, or has sent so much.
async fn linger(mut stream: Box<Stream>, most: usize) -> io::Result<()> {
    let mut space = [0; 1024];
    let mut read = 0;
    while read < most {
        let got = std::future::poll_fn(|cx| {
            let mut buf = ReadBuf::new(&mut space);
            stream.poll_read(cx, &mut buf).map_ok(|()| buf.filled().len())
        })
        .await?;
        if got == 0 {
            break;
        }
        read += got;
    }
    Ok(())
}

/// What hyper found wrong with a head of HTTP/1.1, by its words: it tells nothing else. Words that are not known are no more
/// than a protocol that is not kept.
fn malformed(words: &str) -> Reason {
    match words {
        "invalid URI" => Reason::BadPath,
        "URI too long" => Reason::HeadTooLarge,
        "invalid HTTP header parsed" => Reason::BadField,
        "invalid content-length parsed" | "invalid transfer-encoding parsed" | "unexpected transfer-encoding parsed" => Reason::BadLength,
        _ => Reason::Protocol,
    }
}

/// What a connection's end says against its client; a client that just went away did nothing wrong.
fn blame(error: &hyper::Error, life: &Life) -> Option<Reason> {
    if error.is_parse_too_large() {
        return Some(Reason::HeadTooLarge);
    }
    if error.is_parse() {
        return Some(malformed(&error.to_string()));
    }
    if error.is_timeout() {
        return Some(Reason::Idle); // it left a PING unanswered
    }
    let error = std::error::Error::source(error)?.downcast_ref::<h2::Error>()?;
    if error.is_remote() || error.is_io() {
        return None;
    }
    Some(match error.reason()? {
        h2::Reason::NO_ERROR => return None,
        h2::Reason::FRAME_SIZE_ERROR => Reason::FrameTooLarge,
        h2::Reason::ENHANCE_YOUR_CALM => life.suspect().unwrap_or(Reason::Protocol),
        _ => Reason::Protocol,
    })
}

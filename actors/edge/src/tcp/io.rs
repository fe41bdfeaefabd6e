//! The two ends of a connection's stream: the socket below TLS, which sees whether the client takes anything, and the
//! plain stream above it, which sees what the client says.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Instant,
};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::server::TlsStream;

use super::frames::Frames;
use crate::{Metrics, Reason, Version, connections::Life};

/// The socket.
#[derive(Debug)]
pub(super) struct Socket {
    tcp: TcpStream,
    life: Arc<Life>,
}

impl Socket {
    pub(super) fn new(tcp: TcpStream, life: Arc<Life>) -> Self {
        Self { tcp, life }
    }

    fn note(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match written {
            Poll::Pending => self.life.blocks(),
            Poll::Ready(_) => self.life.flows(),
        }
        written
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_read(cx, buf)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.tcp).poll_write(cx, bytes);
        self.note(written)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.tcp).poll_write_vectored(cx, bytes);
        self.note(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}

/// With TLS or, on loopback and when asked, without.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "it is boxed, and plain HTTP is for one's own machine")]
pub(super) enum Stream {
    Tls(TlsStream<Socket>),
    Plain(Socket),
}

macro_rules! either {
    ($stream:expr, $inner:ident => $do:expr) => {
        match $stream {
            Stream::Tls($inner) => $do,
            Stream::Plain($inner) => $do,
        }
    };
}

impl Stream {
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        either!(self, inner => Pin::new(inner).poll_read(cx, buf))
    }
}

/// Where a stream is left when the protocol is done with it.
pub(super) type Left = Arc<Mutex<Option<Box<Stream>>>>;

/// What the HTTP state machines read and write.
#[derive(Debug)]
pub(super) struct Io {
    /// Always there until it is dropped.
    stream: Option<Box<Stream>>,
    life: Arc<Life>,
    /// For HTTP/2.
    frames: Option<Box<Frames>>,
    head: usize,
    metrics: Metrics,
    /// Neither the end nor an error was read.
    is_open: bool,
    left: Left,
}

impl Io {
    pub(super) fn new(
        stream: Box<Stream>,
        life: Arc<Life>,
        frames: Option<Box<Frames>>,
        head: usize,
        metrics: Metrics,
        left: Left,
    ) -> Self {
        Self { stream: Some(stream), life, frames, head, metrics, is_open: true, left }
    }

    fn stream(&mut self) -> &mut Stream {
        self.stream.as_mut().expect("it is taken only by drop")
    }

    fn heard(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Some(frames) = &mut self.frames else {
            // While a request is in hand these are its body, or the next request's head, whose time begins with its turn.
            if self.life.is_idle() {
                self.life.head_begins();
            }
            return Ok(());
        };
        let before = frames.ended();
        if let Err(reason) = frames.received(bytes, self.head, Instant::now) {
            self.life.at_fault(reason);
            return Err(io::Error::new(io::ErrorKind::InvalidData, reason.as_str()));
        }
        for _ in 0..frames.take_oversized() {
            self.metrics.refused(Reason::HeadTooLarge, Some(Version::Http2));
        }
        if frames.ended() != before || !frames.is_midway() {
            self.life.head_ends();
        }
        if frames.is_midway() {
            self.life.head_begins();
        }
        Ok(())
    }

    fn note(&mut self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let (Some(frames), Poll::Ready(Ok(bytes))) = (&mut self.frames, &written) {
            frames.sent(*bytes);
        }
        written
    }
}

impl Drop for Io {
    fn drop(&mut self) {
        if let Some(frames) = &self.frames {
            self.life.suspected(frames.suspect());
        }
        if self.is_open {
            *self.left.lock() = self.stream.take();
        }
    }
}

impl AsyncRead for Io {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = self.stream().poll_read(cx, buf);
        let bytes = &buf.filled()[before..];
        match &read {
            Poll::Pending => {}
            Poll::Ready(Ok(())) if !bytes.is_empty() => self.heard(bytes)?,
            Poll::Ready(_) => self.is_open = false,
        }
        read
    }
}

impl AsyncWrite for Io {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = either!(self.stream(), inner => Pin::new(inner).poll_write(cx, bytes));
        self.note(written)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let written = either!(self.stream(), inner => Pin::new(inner).poll_write_vectored(cx, bytes));
        self.note(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.as_ref().is_some_and(|stream| either!(&**stream, inner => inner.is_write_vectored()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self.stream(), inner => Pin::new(inner).poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self.stream(), inner => Pin::new(inner).poll_shutdown(cx))
    }
}

//! How an attack goes on until the node ends it.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use super::DRIP;

/// What is sent on and on.
pub(super) trait Frames {
    fn next(&mut self) -> Option<Vec<u8>>;
}

pub(super) struct Once(pub(super) Vec<u8>);

impl Frames for Once {
    fn next(&mut self) -> Option<Vec<u8>> {
        (!self.0.is_empty()).then(|| std::mem::take(&mut self.0))
    }
}

/// For each new stream.
pub(super) struct Each<F> {
    pub(super) next: u32,
    pub(super) make: F,
}

impl<F: Fn(u32) -> Vec<u8>> Frames for Each<F> {
    fn next(&mut self) -> Option<Vec<u8>> {
        let stream = self.next;
        self.next = stream.checked_add(2).filter(|next| *next < 1 << 31)?;
        Some((self.make)(stream))
    }
}

/// Sends until the node has had enough; what it says is read, so that it is not the reader that is slow.
pub(super) async fn floods<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(stream: S, mut frames: impl Frames) -> Result<()> {
    let (reader, mut writer) = tokio::io::split(stream);
    let reading = tokio::spawn(ended(reader));
    while let Some(frame) = frames.next() {
        if reading.is_finished() || writer.write_all(&frame).await.is_err() {
            break;
        }
    }
    timeout(Duration::from_secs(20), reading).await.context("it is not ended")??
}

/// A byte at a time, until the node ends it.
pub(super) async fn drips<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(stream: S, byte: u8) -> Result<()> {
    let (reader, mut writer) = tokio::io::split(stream);
    let reading = tokio::spawn(ended(reader));
    let until = Instant::now() + Duration::from_secs(60);
    while !reading.is_finished() && writer.write_all(&[byte]).await.is_ok() {
        if Instant::now() > until {
            bail!("it may go on for ever");
        }
        let _ = writer.flush().await;
        sleep(DRIP).await;
    }
    Ok(())
}

/// Until the node closes it.
pub(super) async fn ended<S: AsyncRead + Unpin>(mut stream: S) -> Result<()> {
    let mut sink = vec![0; 4096];
    while stream.read(&mut sink).await.is_ok_and(|read| read > 0) {}
    Ok(())
}

/// Until the node closes it or has answered and been quiet: HTTP/2 ends the one request, not the connection.
pub(super) async fn answered<S: AsyncRead + Unpin>(mut stream: S) -> Result<()> {
    let mut sink = vec![0; 4096];
    let mut read = 0;
    loop {
        match timeout(Duration::from_secs(3), stream.read(&mut sink)).await {
            Ok(Ok(more)) if more > 0 => read += more,
            Err(_) if read < 60 => {}
            _ => return Ok(()),
        }
    }
}

/// Until the node ends a connection that nobody reads.
pub(super) async fn reset(stream: &TcpStream) -> Result<()> {
    tokio::select! {
        _ = stream.ready(tokio::io::Interest::ERROR) => Ok(()),
        () = sleep(Duration::from_secs(60)) => bail!("it may go on for ever"),
    }
}

pub(super) async fn together<F: Future<Output = Result<()>>>(streams: impl Iterator<Item = F>) {
    // Each stream waits for its own credit: polled together, not one after the other.
    let mut streams: Vec<_> = streams.map(Box::pin).collect();
    std::future::poll_fn(|cx| {
        streams.retain_mut(|stream| stream.as_mut().poll(cx).is_pending());
        if streams.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
}

//! A request on its way: its head, its body as the host takes it, its end.

use std::{future::poll_fn, pin::Pin, task::Poll};

use bytes::Bytes;
use futures_util::FutureExt as _;
use h3::error::Code;
use http_body::Body as _;
use quinn::WriteError;
use tokio::task::JoinHandle;

use super::{frames::data_header, quic::varint};
use crate::body::{Fate, Sending};

/// The body's source failed: what it was is in its [`Fate`].
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the request's body broke off")]
pub(super) struct Failed;

/// A request whose body the host takes while it answers. It ends with its owner, and the host is told.
pub(super) struct Uploading(JoinHandle<Result<(), Failed>>);

impl Drop for Uploading {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Uploading {
    /// Sends `head` and `body`: all of it now, as with most requests, or with a task of its own that is given back.
    pub(super) fn begin(stream: quinn::SendStream, head: Bytes, body: Sending) -> Result<Option<Self>, Failed> {
        let mut upload = Box::pin(upload(Outgoing { stream, fate: body.fate(), ended: false }, head, body));
        match (&mut upload).now_or_never() {
            Some(outcome) => outcome.map(|()| None),
            None => Ok(Some(Self(tokio::spawn(upload)))),
        }
    }

    /// Resolves at its end.
    pub(super) fn poll(&mut self, cx: &mut std::task::Context<'_>) -> Poll<Result<(), Failed>> {
        // One that panicked has broken off.
        self.0.poll_unpin(cx).map(|outcome| outcome.unwrap_or(Err(Failed)))
    }
}

/// The half of a request's stream on which it goes. Dropped before the end, quinn would end it as if it were whole.
struct Outgoing {
    stream: quinn::SendStream,
    fate: Fate,
    ended: bool,
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        if !self.ended {
            // RFC 9114 §4.1.1. It fails for one that the host has stopped.
            let _ = self.stream.reset(varint(Code::H3_REQUEST_CANCELLED));
        }
    }
}

impl Outgoing {
    /// Whether the host takes more.
    async fn write(&mut self, mut chunks: &mut [Bytes]) -> bool {
        while let Some(chunk) = chunks.first() {
            if chunk.is_empty() {
                chunks = &mut chunks[1..];
                continue;
            }
            match self.stream.write_chunks(chunks).await {
                // However long the part is, the host is at it.
                Ok(_) => self.fate.restart(),
                // What it thinks of the request is in its response, or in how that breaks off.
                Err(WriteError::Stopped(_) | WriteError::ConnectionLost(_) | WriteError::ClosedStream | WriteError::ZeroRttRejected) => {
                    self.ended = true;
                    return false;
                }
            }
        }
        true
    }
}

async fn upload(mut out: Outgoing, mut head: Bytes, mut body: Sending) -> Result<(), Failed> {
    loop {
        // A small body goes with the head; one that is not there yet does not hold it up.
        let at_once = poll_fn(|cx| Poll::Ready(Pin::new(&mut body).poll_frame(cx))).await;
        let frame = match at_once {
            Poll::Ready(frame) => frame,
            Poll::Pending => {
                if !out.write(&mut [std::mem::take(&mut head)]).await {
                    return Ok(());
                }
                poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await
            }
        };
        let Some(frame) = frame else { break };
        let data = frame.map_err(|_| Failed)?.into_data().unwrap_or_default();
        if !data.is_empty() && !out.write(&mut [std::mem::take(&mut head), data_header(data.len()), data]).await {
            return Ok(());
        }
    }
    if out.write(&mut [head]).await {
        out.ended = true;
        // It fails for one that the host has stopped.
        let _ = out.stream.finish();
    }
    Ok(())
}

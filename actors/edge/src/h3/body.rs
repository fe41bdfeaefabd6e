//! A request's body as it comes. QUIC's flow control is its back-pressure: nothing is read that nobody asks for.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, Bytes};
use h3::{error::Code, server::RequestStream};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};

use super::{outgoing::Outgoing, quic::Incoming};

/// A part that is shorter is copied: it would hold on to the packets that it came in, which may be a hundred times its size.
const SHORT: usize = 1024;

/// Why a body has no rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum BodyError {
    /// Nobody is left to answer.
    #[error("the client gave up its request")]
    Gone,
    #[error("the body is not as long as the head says")]
    Length,
    #[error("the trailers are too many, or none")]
    Trailers,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Data,
    Trailers,
    End,
}

/// A request's body. Dropped before its end, it tells the client to stop sending, without an error.
pub(super) struct RequestBody {
    stream: RequestStream<Incoming, Bytes>,
    out: Arc<Outgoing>,
    at: At,
    /// What came with the head.
    first: Option<Bytes>,
    /// What the head says is to come.
    left: Option<u64>,
    fields: usize,
}

impl RequestBody {
    /// `left` is what the head says is to come, `fields` the limit of the trailers.
    pub(super) fn new(stream: RequestStream<Incoming, Bytes>, out: Arc<Outgoing>, left: Option<u64>, fields: usize) -> Self {
        Self { stream, out, at: At::Data, first: None, left, fields }
    }

    /// Looks whether there is none, as with most requests: then no service needs to be told of one.
    pub(super) fn look(&mut self, cx: &mut Context<'_>) -> Result<bool, BodyError> {
        match Pin::new(&mut *self).poll_frame(cx) {
            Poll::Ready(None) => Ok(true),
            Poll::Ready(Some(Ok(frame))) => {
                self.first = frame.into_data().ok();
                // Trailers without a body mean nothing to any service here.
                Ok(self.first.is_none())
            }
            Poll::Ready(Some(Err(error))) => Err(error),
            Poll::Pending => Ok(false),
        }
    }

    fn malformed(&mut self, error: BodyError) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.at = At::End;
        self.stream.stop_sending(Code::H3_MESSAGE_ERROR);
        Poll::Ready(Some(Err(error)))
    }

    fn gone(&mut self) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.at = At::End;
        Poll::Ready(Some(Err(BodyError::Gone)))
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(Frame::data(first))));
        }
        if self.at == At::Data {
            let part = match ready!(self.stream.poll_recv_data(cx)) {
                Ok(Some(mut part)) => Some(part.copy_to_bytes(part.remaining())),
                Ok(None) => None,
                Err(_) => return self.gone(),
            };
            if let Some(part) = part {
                self.out.read(part.len());
                if let Some(left) = &mut self.left {
                    match left.checked_sub(part.len() as u64) {
                        Some(less) => *left = less,
                        // RFC 9114 §4.1.2.
                        None => return self.malformed(BodyError::Length),
                    }
                }
                let part = if part.len() < SHORT { Bytes::copy_from_slice(&part) } else { part };
                return Poll::Ready(Some(Ok(Frame::data(part))));
            }
            self.at = At::Trailers;
            if self.left.is_some_and(|left| left > 0) {
                return self.malformed(BodyError::Length);
            }
        }
        if self.at == At::Trailers {
            let trailers: Option<HeaderMap> = match ready!(self.stream.poll_recv_trailers(cx)) {
                Ok(trailers) => trailers,
                Err(_) => return self.gone(),
            };
            self.at = At::End;
            if let Some(trailers) = trailers {
                if trailers.len() > self.fields {
                    return self.malformed(BodyError::Trailers);
                }
                return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
            }
        }
        Poll::Ready(None)
    }

    fn is_end_stream(&self) -> bool {
        self.at == At::End && self.first.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        let here = self.first.as_ref().map_or(0, |first| first.len() as u64);
        match (self.left, self.at) {
            (Some(left), _) => SizeHint::with_exact(left + here),
            (None, At::Data) => SizeHint::default(),
            (None, At::Trailers | At::End) => SizeHint::with_exact(here),
        }
    }
}

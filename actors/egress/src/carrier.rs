//! What carries a request: a connection of HTTP/1.1 of its own, or a stream of one of HTTP/2 or HTTP/3.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, Version, header::CONTENT_LENGTH, header::HOST};
use http_body::{Body, Frame, SizeHint};
use hyper::client::conn::{TrySendError, http1, http2};

use super::{body::Sending, error::BoxError, http3, target::Target};

/// One hop of a request.
pub(crate) struct Outgoing {
    pub(crate) method: Method,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Sending,
}

/// A request that got no response.
pub(crate) enum Unanswered {
    /// Nothing was written of it: here it is.
    Unsent(Box<Request<Sending>>),
    /// The host says that it has not looked at it, and never will.
    NotTaken,
    /// The host takes no head as large as its.
    TooLarge,
    /// Nobody knows what became of it.
    Lost(Arc<str>),
    /// What came back is not HTTP.
    Nonsense(Arc<str>),
}

/// A connection that many requests share.
#[derive(Clone)]
pub(crate) enum Shared {
    Http2(http2::SendRequest<Sending>),
    Http3(http3::Sender),
}

impl Shared {
    /// Whether it takes no more requests.
    pub(crate) fn is_closed(&self) -> bool {
        match self {
            Self::Http2(sender) => sender.is_closed(),
            Self::Http3(sender) => sender.is_closed(),
        }
    }

    pub(crate) fn version(&self) -> Version {
        match self {
            Self::Http2(_) => Version::HTTP_2,
            Self::Http3(_) => Version::HTTP_3,
        }
    }

    pub(crate) async fn send(&mut self, request: Request<Sending>) -> Result<Response<Incoming>, Unanswered> {
        match self {
            Self::Http2(sender) => of_hyper(sender.try_send_request(request).await),
            // On the heap, for it is far larger than the others.
            Self::Http3(sender) => Box::pin(sender.send(request)).await.map(|response| response.map(Incoming::Http3)),
        }
    }
}

/// Sends `request` on a connection of its own.
pub(crate) async fn send(own: &mut http1::SendRequest<Sending>, request: Request<Sending>) -> Result<Response<Incoming>, Unanswered> {
    of_hyper(own.try_send_request(request).await)
}

/// A request in the form of `version`.
pub(crate) fn form(outgoing: Outgoing, target: &Target, version: Version) -> Request<Sending> {
    let Outgoing { method, headers, body } = outgoing;
    // hyper says the length itself.
    let length = body.size_hint().exact().filter(|_| version == Version::HTTP_3);
    let length = length.filter(|length| *length > 0 || !matches!(method, Method::GET | Method::HEAD | Method::DELETE));
    let mut request = Request::new(body);
    *request.method_mut() = method;
    *request.headers_mut() = headers;
    *request.version_mut() = version;
    if version == Version::HTTP_11 {
        *request.uri_mut() = target.path.clone().into();
        request.headers_mut().insert(HOST, target.origin.authority());
    } else {
        *request.uri_mut() = target.to_uri();
    }
    if let Some(length) = length {
        request.headers_mut().insert(CONTENT_LENGTH, length.into());
    }
    request
}

/// The other way round, for a request that was not sent.
pub(crate) fn unform(request: Request<Sending>) -> Outgoing {
    let (mut parts, body) = request.into_parts();
    parts.headers.remove(HOST);
    parts.headers.remove(CONTENT_LENGTH);
    Outgoing { method: parts.method, headers: parts.headers, body }
}

fn of_hyper(outcome: Result<Response<hyper::body::Incoming>, TrySendError<Request<Sending>>>) -> Result<Response<Incoming>, Unanswered> {
    match outcome {
        Ok(response) => Ok(response.map(Incoming::Hyper)),
        Err(mut error) => Err(match error.take_message() {
            Some(request) => Unanswered::Unsent(Box::new(request)),
            None => unanswered(&error.into_error()),
        }),
    }
}

/// What became of a request that was on a connection when that failed.
fn unanswered(error: &hyper::Error) -> Unanswered {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = std::error::Error::source(error);
    while let Some(error) = cause {
        if error.downcast_ref::<h2::Error>().is_some_and(not_taken) {
            return Unanswered::NotTaken;
        }
        cause = error.source();
    }
    let why: Arc<str> = error.to_string().into();
    if error.is_parse() { Unanswered::Nonsense(why) } else { Unanswered::Lost(why) }
}

/// Whether the host says of a stream that it has not looked at it, and never will (RFC 9113 §8.7): it refused the stream, or it has
/// said goodbye and the stream is behind the last that it took. To those before that one h2 does not give this error.
fn not_taken(error: &h2::Error) -> bool {
    let refused = error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
    error.is_remote() && (refused || error.is_go_away())
}

/// A response's body as its connection gives it.
pub(crate) enum Incoming {
    Hyper(hyper::body::Incoming),
    Http3(http3::Body),
}

impl Body for Incoming {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match &mut *self {
            Self::Hyper(body) => Pin::new(body).poll_frame(cx).map_err(Into::into),
            Self::Http3(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Hyper(body) => body.is_end_stream(),
            Self::Http3(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Hyper(body) => body.size_hint(),
            Self::Http3(body) => body.size_hint(),
        }
    }
}

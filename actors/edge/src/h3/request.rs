//! One request and its answer.
//!
//! A task of its own, owned by its connection. It ends when the answer is sent, when the client no longer wants it, or
//! with the connection, and the service's work ends with it. No wait is without a limit: the head has
//! `timeouts.head`, the service what the application gives it, and the client `timeouts.stalled` to take some of the answer.

use std::{
    pin::{Pin, pin},
    sync::Arc,
    task::Poll,
    time::Duration,
};

use axum::body::Body;
use bytes::Bytes;
use h3::{
    error::{Code, StreamError},
    server::{RequestResolver, RequestStream},
};
use http::{
    HeaderMap, HeaderValue, Method, Response, StatusCode,
    header::{CONNECTION, CONTENT_LENGTH, HeaderName, TE, TRANSFER_ENCODING, UPGRADE},
};
use http_body::Body as _;
use tokio::time::error::Elapsed;

use super::{
    Inner,
    body::{BodyError, RequestBody},
    frames, head,
    outgoing::{Heads, Outgoing, Unsent},
    quic::{Quic, Shared},
};
use crate::{Held, Peer, Reason, Version};

/// Fields of one hop of HTTP/1.1, which mean nothing here (RFC 9114 §4.2).
const HOP: [HeaderName; 5] =
    [CONNECTION, HeaderName::from_static("keep-alive"), HeaderName::from_static("proxy-connection"), TRANSFER_ENCODING, UPGRADE];

/// Bodies up to this size are copied behind their head.
const SMALL: usize = 1024;

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It was answered, or would have been, had we not failed.
    Answered,
    /// It came to nothing by its client's doing.
    Wasted,
}

/// Why an answer has no rest.
enum Broken {
    /// The client does not want it, or is gone.
    Gone,
    /// The client took none of it for so long.
    Stalled,
    /// The service failed in the middle of it, or said something that cannot be sent.
    Service(Box<dyn std::error::Error + Send + Sync>),
}

impl From<Unsent> for Broken {
    fn from(unsent: Unsent) -> Self {
        match unsent {
            Unsent::Gone => Self::Gone,
            Unsent::Stalled => Self::Stalled,
        }
    }
}

/// Serves a request.
pub(super) async fn serve(
    resolver: RequestResolver<Quic, Bytes>,
    out: Arc<Outgoing>,
    edge: Arc<Inner>,
    shared: Arc<Shared>,
    peer: Peer,
) -> Outcome {
    let refused = |reason| edge.metrics.refused(reason, Some(Version::Http3));
    let stalled = edge.config.timeouts.stalled;
    let (request, stream) = match within(edge.config.timeouts.head, pin!(resolver.resolve_request())).await {
        Ok(Ok(resolved)) => resolved,
        Ok(Err(StreamError::HeaderTooBig { .. })) => {
            refused(Reason::HeadTooLarge);
            // h3 has written the answer.
            if out.send(&mut [out.heads()], stalled).await.is_ok() {
                out.finish(&shared);
            }
            return Outcome::Answered;
        }
        Ok(Err(error)) => {
            // A client that gave up is no more than that; an error of the connection is counted there.
            if matches!(&error, StreamError::StreamError { code, .. } if *code == Code::H3_MESSAGE_ERROR) {
                refused(Reason::Protocol);
            }
            tracing::debug!(peer = %peer.address, %error, "no request");
            return Outcome::Wasted;
        }
        Err(_) => {
            refused(Reason::SlowHead);
            return Outcome::Wasted;
        }
    };
    let (mut send, recv) = stream.split();
    let mut answer = Answer { send: &mut send, out: &out, shared: &shared, stalled };
    if request.headers().len() > edge.config.limits.fields {
        refused(Reason::HeadTooLarge);
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
        let sent = answer_to(&mut answer, response.map(Held::from), false, pin!(out.stopped())).await;
        return answer.outcome(sent, &edge, peer);
    }
    let mut body = match check(request.headers()) {
        Ok(length) => RequestBody::new(recv, out.clone(), length, edge.config.limits.fields),
        Err(reason) => {
            refused(reason);
            out.reset(Code::H3_MESSAGE_ERROR);
            return Outcome::Wasted;
        }
    };
    let body = match std::future::poll_fn(|cx| Poll::Ready(body.look(cx))).await {
        Ok(true) => Body::empty(),
        Ok(false) => Body::new(body),
        Err(error) => {
            if error != BodyError::Gone {
                refused(if error == BodyError::Length { Reason::BadLength } else { Reason::Protocol });
                out.reset(Code::H3_MESSAGE_ERROR);
            }
            return Outcome::Wasted;
        }
    };
    out.handed_on();
    let is_head = request.method() == Method::HEAD;
    // Not begun until the service or the client makes us wait: most requests never need it.
    let mut stopped = pin!(async { out.stopped().await });
    let response = {
        // Boxed, so that what keeps this one has no room for both at once.
        let mut handled = Box::pin(edge.app.handle(request.map(|()| body), peer));
        tokio::select! {
            biased;
            response = handled.as_mut() => response,
            _ = &mut stopped => {
                out.reset(Code::H3_REQUEST_CANCELLED);
                return Outcome::Wasted;
            }
        }
    };
    let sent = answer_to(&mut answer, response, is_head, stopped).await;
    answer.outcome(sent, &edge, peer)
}

/// Waits for `future` at most `limit`. Most are ready when they are first asked, and need neither a clock nor a timer.
pub(super) async fn within<F: Future>(limit: Duration, mut future: Pin<&mut F>) -> Result<F::Output, Elapsed> {
    match std::future::poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await {
        Poll::Ready(output) => Ok(output),
        Poll::Pending => tokio::time::timeout(limit, future).await,
    }
}

/// An answer on its way.
struct Answer<'a> {
    send: &'a mut RequestStream<Heads, Bytes>,
    out: &'a Arc<Outgoing>,
    shared: &'a Shared,
    stalled: Duration,
}

impl Answer<'_> {
    fn outcome(&self, sent: Result<(), Broken>, edge: &Inner, peer: Peer) -> Outcome {
        match sent {
            Ok(()) => {
                self.out.finish(self.shared);
                Outcome::Answered
            }
            Err(Broken::Gone) => {
                self.out.reset(Code::H3_REQUEST_CANCELLED);
                Outcome::Wasted
            }
            Err(Broken::Stalled) => {
                edge.metrics.refused(Reason::SlowReader, Some(Version::Http3));
                self.out.reset(Code::H3_REQUEST_CANCELLED);
                Outcome::Wasted
            }
            Err(Broken::Service(error)) => {
                tracing::warn!(peer = %peer.address, %error, "an answer broke off");
                self.out.reset(Code::H3_INTERNAL_ERROR);
                Outcome::Answered
            }
        }
    }
}

/// What comes next of a body.
enum Part {
    Data(Bytes),
    Trailers(HeaderMap),
    End,
}

impl Part {
    fn of(frame: Option<Result<http_body::Frame<Bytes>, axum::Error>>) -> Result<Self, Broken> {
        let Some(frame) = frame else { return Ok(Self::End) };
        match frame.map_err(|error| Broken::Service(error.into()))?.into_data() {
            Ok(data) => Ok(Self::Data(data)),
            // A frame that is neither is of a kind that does not exist yet.
            Err(frame) => Ok(frame.into_trailers().map_or(Self::Data(Bytes::new()), Self::Trailers)),
        }
    }
}

/// Sends `response`. Its head goes with the first part of its body where that is there, so that a small answer is one write.
async fn answer_to(
    answer: &mut Answer<'_>,
    response: Response<Held>,
    is_head: bool,
    mut stopped: Pin<&mut impl Future>,
) -> Result<(), Broken> {
    let (mut head, mut body) = response.into_parts();
    if head.headers.keys().any(is_of_one_hop) {
        strip(&mut head.headers);
    }
    let is_bodiless = is_head || matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) || head.status.is_informational();
    let mut left = content_length(&head.headers);
    if let (None, Some(exact), false) = (left, body.size_hint().exact(), is_bodiless) {
        head.headers.insert(CONTENT_LENGTH, exact.into());
        left = Some(exact);
    }
    let mut part = if is_bodiless {
        left = None;
        Some(Part::End)
    } else {
        look(&mut body).await?
    };
    // A small body that is whole goes into the same piece: fewer pieces cost less on their way into packets.
    let rest = match &mut part {
        Some(Part::Data(data)) if data.len() <= SMALL && body.is_end_stream() && left == Some(data.len() as u64) => std::mem::take(data),
        _ => Bytes::new(),
    };
    if !rest.is_empty() {
        (part, left) = (Some(Part::End), None);
    }
    let mut with_rest = false;
    let written = match head::encode(head.status, &head.headers, &rest) {
        Some(frames) => frames,
        None => {
            answer.send.send_response(Response::from_parts(head, ())).await.map_err(|error| Broken::Service(error.into()))?;
            with_rest = !rest.is_empty();
            answer.out.heads()
        }
    };
    let mut chunks = [written, Bytes::new(), Bytes::new()];
    if with_rest {
        (chunks[1], chunks[2]) = (frames::data_header(rest.len()), rest);
    }
    loop {
        let here = match part.take() {
            Some(part) => part,
            None => {
                answer.out.send(&mut chunks, answer.stalled).await?;
                tokio::select! {
                    biased;
                    frame = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)) => Part::of(frame)?,
                    _ = &mut stopped => return Err(Broken::Gone),
                }
            }
        };
        match here {
            Part::Data(data) => {
                if let Some(left) = &mut left {
                    *left = left.checked_sub(data.len() as u64).ok_or_else(|| Broken::Service("it is longer than its head says".into()))?;
                }
                if !data.is_empty() {
                    chunks[1] = frames::data_header(data.len());
                    chunks[2] = data;
                }
                part = if body.is_end_stream() { Some(Part::End) } else { look(&mut body).await? };
                if !matches!(part, Some(Part::End)) {
                    answer.out.send(&mut chunks, answer.stalled).await?;
                }
            }
            Part::Trailers(mut trailers) => {
                answer.out.send(&mut chunks, answer.stalled).await?;
                strip(&mut trailers);
                answer.send.send_trailers(trailers).await.map_err(|error| Broken::Service(error.into()))?;
                chunks[0] = answer.out.heads();
                part = Some(Part::End);
            }
            Part::End => {
                answer.out.send(&mut chunks, answer.stalled).await?;
                return match left {
                    None | Some(0) => Ok(()),
                    Some(_) => Err(Broken::Service("it is shorter than its head says".into())),
                };
            }
        }
    }
}

/// The next part, if it is there.
async fn look(body: &mut Held) -> Result<Option<Part>, Broken> {
    let frame = std::future::poll_fn(|cx| {
        Poll::Ready(match Pin::new(&mut *body).poll_frame(cx) {
            Poll::Ready(frame) => Some(frame),
            Poll::Pending => None,
        })
    });
    frame.await.map(Part::of).transpose()
}

/// Takes out what is of one hop (RFC 9110 §7.6.1): a service may be written for HTTP/1.1.
fn strip(headers: &mut HeaderMap) {
    if let Some(named) = headers.get(CONNECTION).cloned() {
        for name in named.to_str().unwrap_or_default().split(',') {
            headers.remove(name.trim());
        }
    }
    for name in HOP {
        headers.remove(name);
    }
}

fn is_of_one_hop(name: &HeaderName) -> bool {
    HOP.contains(name)
}

/// Whether a request is without what makes it malformed (RFC 9114 §4.2), and the length that it says its body has.
fn check(headers: &HeaderMap) -> Result<Option<u64>, Reason> {
    // One pass over a few fields costs less than a look for each of those names.
    let (mut length, mut sound) = (None, true);
    for (name, value) in headers {
        match name {
            name if *name == CONTENT_LENGTH => {
                let said = digits(value).ok_or(Reason::BadLength)?;
                if length.replace(said).is_some_and(|before| before != said) {
                    return Err(Reason::BadLength);
                }
            }
            name if *name == TE => sound &= value == "trailers",
            name => sound &= !is_of_one_hop(name),
        }
    }
    if sound { Ok(length) } else { Err(Reason::BadField) }
}

/// The length that an answer's head says its body has, where it says so as it should.
fn content_length(headers: &HeaderMap) -> Option<u64> {
    let mut values = headers.get_all(CONTENT_LENGTH).iter();
    let first = digits(values.next()?)?;
    values.all(|value| digits(value) == Some(first)).then_some(first)
}

fn digits(value: &HeaderValue) -> Option<u64> {
    let text = value.to_str().ok()?;
    if text.bytes().all(|b| b.is_ascii_digit()) { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use http::header::{ETAG, HOST};

    use super::*;

    fn headers(fields: &[(HeaderName, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn what_is_of_one_hop_is_not_sent() {
        let mut answer = headers(&[(CONNECTION, "close, ETag"), (ETAG, "x"), (TRANSFER_ENCODING, "chunked"), (HOST, "x")]);
        strip(&mut answer);
        assert_eq!(answer, headers(&[(HOST, "x")]));
    }

    #[test]
    fn a_request_with_fields_of_one_hop_is_malformed() {
        assert_eq!(check(&headers(&[(TE, "trailers"), (HOST, "x")])), Ok(None));
        for field in [(TE, "gzip"), (CONNECTION, "close"), (TRANSFER_ENCODING, "chunked"), (UPGRADE, "h2c")] {
            assert_eq!(check(&headers(std::slice::from_ref(&field))), Err(Reason::BadField), "{field:?}");
        }
    }

    #[test]
    fn a_length_is_one_number() {
        let length = |values: &[&'static str]| check(&headers(&values.iter().map(|value| (CONTENT_LENGTH, *value)).collect::<Vec<_>>()));
        assert_eq!(length(&[]), Ok(None));
        assert_eq!(length(&["12"]), Ok(Some(12)));
        assert_eq!(length(&["12", "12"]), Ok(Some(12)));
        for wrong in [&["12", "13"][..], &["+12"], &["-1"], &[""], &["12, 12"], &["99999999999999999999"]] {
            assert_eq!(length(wrong), Err(Reason::BadLength), "{wrong:?}");
        }
    }
}

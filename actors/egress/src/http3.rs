//! HTTP/3, on a connection of QUIC that was opened to an address that was checked.
//!
//! [`open`] takes the connection; its task ends with it, and it ends when its last [`Sender`] is dropped: responses that are being read
//! hold one. h3 reads and writes heads and the control streams; bodies pass by it, and all that a host sends is bounded before h3 sees it:
//!
//! | what | bound |
//! |---|---|
//! | a head, interim ones and trailers too; its fields | 64 KiB; 128 |
//! | of one response besides its body | 256 KiB in 128 frames |
//! | what came and is not read, of a response and of all | 256 KiB, 1 MiB |
//! | frames of the control stream | 4 KiB; 1024 in a connection's life |
//! | streams that a host opens | 8 at once; 64 in a connection's life |
//!
//! Whoever goes beyond is told so in the words of RFC 9114 §8.1. What is left out: pushes, trailers, 0-RTT (what is sent early can be
//! replayed by anybody), extended CONNECT, datagrams.

mod frames;
mod quic;
mod uni;
mod upload;

use std::{
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use futures_util::FutureExt as _;
use h3::{
    client::{RequestStream, SendRequest},
    error::{Code, ConnectionError, StreamError},
    quic::StreamErrorIncoming,
};
use http::{
    HeaderMap, HeaderName, Method, Request, Response, StatusCode,
    header::{CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING, UPGRADE},
};
use http_body::{Frame, SizeHint};
use parking_lot::Mutex;
use tokio::{sync::OwnedSemaphorePermit, task::AbortHandle};

use self::{
    frames::Piece,
    quic::{Asked, Next, Opener, Quic, Receiving, Shared},
    upload::Uploading,
};
use super::{
    body::Sending,
    carrier::Unanswered,
    dial::{DialError, MAX_FIELDS, MAX_HEAD},
    error::BoxError,
};

/// Its name in TLS (RFC 9114 §3.1).
pub(crate) const ALPN: &[u8] = b"h3";

/// Of a connection from one neighbour to the next, and none in HTTP/3 (RFC 9114 §4.2).
const OF_CONNECTIONS: [HeaderName; 5] =
    [CONNECTION, TRANSFER_ENCODING, UPGRADE, HeaderName::from_static("keep-alive"), HeaderName::from_static("proxy-connection")];

/// A connection, for whoever has requests for it. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Sender(Arc<Open>);

struct Open {
    shared: Arc<Shared>,
    /// h3 writes one head at a time, to the stream in `next`, and waits for nothing. When this goes, h3 closes the connection.
    heads: Mutex<SendRequest<Opener, Bytes>>,
    next: Next,
    /// What reads the control streams; it ends with the connection, and with the runtime that drives QUIC.
    driver: AbortHandle,
}

/// Says what is to be said first on `connection`, which holds `room` for as long as it lasts.
pub(crate) async fn open(connection: quinn::Connection, room: OwnedSemaphorePermit) -> Result<Sender, DialError> {
    let shared = Shared::new(connection);
    let next = Next::default();
    let quic = Quic::new(&shared, &next);
    let built = h3::client::builder().max_field_section_size(MAX_HEAD as u64).send_grease(false).build(quic).await;
    let (mut driver, heads) = built.map_err(|error| DialError::Unreachable(error.to_string().into()))?;
    let driving = tokio::spawn(async move {
        let _room = room;
        let error = poll_fn(|cx| driver.poll_close(cx)).await;
        tracing::debug!(%error, "a connection ended");
    });
    Ok(Sender(Arc::new(Open { shared, heads: Mutex::new(heads), next, driver: driving.abort_handle() })))
}

impl Sender {
    /// Whether it takes no more requests.
    pub(crate) fn is_closed(&self) -> bool {
        let shared = &self.0.shared;
        *shared.last.borrow() != u64::MAX || shared.connection.close_reason().is_some() || self.0.driver.is_finished()
    }

    /// Sends `request`, whose URI is absolute, and waits for the head of its response.
    ///
    /// Dropped, it resets the stream, and so does the body that it gives.
    pub(crate) async fn send(&self, request: Request<Sending>) -> Result<Response<Body>, Unanswered> {
        let shared = &self.0.shared;
        // A host that is asked for more at once than it permits has it wait here.
        let Ok((send, receive)) = shared.connection.open_bi().await else { return Err(Unanswered::Unsent(Box::new(request))) };
        if self.is_closed() {
            return Err(Unanswered::Unsent(Box::new(request)));
        }
        let asked = Asked::new(receive, shared);
        let (parts, body) = request.into_parts();
        let is_head = parts.method == Method::HEAD;
        let stream = self.head(Request::from_parts(parts, ()), asked.clone())?;
        let head = std::mem::take(&mut *asked.head.lock()).freeze();
        let broke_off = |error: upload::Failed| Unanswered::Lost(error.to_string().into());
        let mut uploading = Uploading::begin(send, head, body).map_err(broke_off)?;

        let mut last = shared.last.subscribe();
        let answered = response(stream, asked.receiving.clone());
        tokio::pin!(answered);
        let answer = loop {
            let sent = poll_fn(|cx| uploading.as_mut().map_or(Poll::Pending, |uploading| uploading.poll(cx)));
            tokio::select! {
                biased;
                answer = &mut answered => break answer,
                sent = sent => {
                    sent.map_err(broke_off)?;
                    uploading = None;
                }
                // RFC 9114 §5.2: whatever the host has not taken by then it never will.
                Ok(_) = last.wait_for(|last| asked.number() >= *last) => return Err(Unanswered::NotTaken),
            }
        };
        let answer = answer.map_err(|error| unanswered(shared, asked.number(), &error))?;
        let left = check(&answer, is_head).map_err(|why| {
            asked.receiving.lock().give_up(Code::H3_MESSAGE_ERROR);
            Unanswered::Nonsense(why.into())
        })?;
        let mut body = Body { receiving: asked.receiving, uploading, left, first: None, ended: false };
        body.look();
        Ok(answer.map(|()| body))
    }

    /// Has h3 write a head to the buffer of `asked`: nothing is sent yet.
    fn head(&self, head: Request<()>, asked: Asked) -> Result<RequestStream<Asked, Bytes>, Unanswered> {
        let mut heads = self.0.heads.lock();
        *self.0.next.lock() = Some(asked);
        match heads.send_request(head).now_or_never() {
            Some(Ok(stream)) => Ok(stream),
            Some(Err(StreamError::HeaderTooBig { .. })) => Err(Unanswered::TooLarge),
            // The connection was closed just now.
            Some(Err(_)) | None => Err(Unanswered::NotTaken),
        }
    }
}

/// The head of the response, behind the interim ones, which nobody asked for.
async fn response(mut stream: RequestStream<Asked, Bytes>, receiving: Arc<Mutex<Receiving>>) -> Result<Response<()>, StreamError> {
    loop {
        let head = stream.recv_response().await?;
        if !head.status().is_informational() || head.status() == StatusCode::SWITCHING_PROTOCOLS {
            receiving.lock().body_follows();
            return Ok(head);
        }
    }
}

/// What became of a request without a response.
fn unanswered(shared: &Shared, number: u64, error: &StreamError) -> Unanswered {
    let why: Arc<str> = error.to_string().into();
    if let Some(violation) = shared.verdict() {
        return Unanswered::Nonsense(violation.to_string().into());
    }
    match error {
        // RFC 9114 §4.1.1: nothing was done for it.
        StreamError::RemoteTerminate { code: Code::H3_REQUEST_REJECTED, .. } => Unanswered::NotTaken,
        _ if *shared.last.borrow() <= number => Unanswered::NotTaken,
        StreamError::StreamError { .. }
        | StreamError::HeaderTooBig { .. }
        | StreamError::ConnectionError { 0: ConnectionError::Local { .. }, .. } => Unanswered::Nonsense(why),
        _ => Unanswered::Lost(why),
    }
}

/// What of a response's head h3 does not look at. Gives the length of the body, where it is said.
fn check(answer: &Response<()>, is_head: bool) -> Result<Option<u64>, &'static str> {
    if answer.headers().len() > MAX_FIELDS {
        return Err("its head has more fields than are read");
    }
    if OF_CONNECTIONS.iter().any(|name| answer.headers().contains_key(name)) {
        return Err("its head has fields that are none of HTTP/3");
    }
    let said = length(answer.headers())?;
    let without = is_head || matches!(answer.status(), StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    Ok(if without { Some(0) } else { said })
}

fn length(headers: &HeaderMap) -> Result<Option<u64>, &'static str> {
    let mut all = headers.get_all(CONTENT_LENGTH).iter();
    let Some(first) = all.next() else { return Ok(None) };
    let digits = first.to_str().ok().filter(|text| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()));
    let said = digits.and_then(|text| text.parse().ok()).filter(|_| all.all(|other| other == first));
    said.map(Some).ok_or("its length is none")
}

/// A response's body, as it comes. Dropped before its end, it resets the stream.
pub(crate) struct Body {
    receiving: Arc<Mutex<Receiving>>,
    /// The request's own body, where the host has yet to take the rest of it.
    uploading: Option<Uploading>,
    /// What the head says is to come.
    left: Option<u64>,
    /// What came with the head.
    first: Option<Result<Bytes, Broken>>,
    ended: bool,
}

/// Why a response has no rest.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error(transparent)]
    Stream(#[from] StreamErrorIncoming),
    #[error("it is not as long as its head says")]
    Length,
    #[error(transparent)]
    Request(#[from] upload::Failed),
}

impl Body {
    /// Whether there is one at all is often known with the head.
    fn look(&mut self) {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        if let Poll::Ready(first) = self.poll_data(&mut cx) {
            self.ended = !matches!(first, Ok(Some(_)));
            self.first = first.transpose();
        }
    }

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Broken>> {
        if let Some(uploading) = &mut self.uploading
            && let Poll::Ready(outcome) = uploading.poll(cx)
        {
            self.uploading = None;
            outcome?;
        }
        let mut receiving = self.receiving.lock();
        let Some(Piece::Data(data)) = ready!(receiving.poll_piece(cx))? else {
            return Poll::Ready(if self.left.is_some_and(|left| left > 0) { Err(Broken::Length) } else { Ok(None) });
        };
        if let Some(left) = &mut self.left {
            // RFC 9114 §4.1.2.
            let Some(less) = left.checked_sub(data.len() as u64) else {
                receiving.give_up(Code::H3_MESSAGE_ERROR);
                return Poll::Ready(Err(Broken::Length));
            };
            *left = less;
        }
        Poll::Ready(Ok(Some(data)))
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(first.map(Frame::data).map_err(BoxError::from)));
        }
        if self.ended {
            return Poll::Ready(None);
        }
        let outcome = ready!(self.poll_data(cx));
        self.ended = !matches!(outcome, Ok(Some(_)));
        Poll::Ready(outcome.map_err(BoxError::from).transpose().map(|data| data.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.ended && self.first.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        let here: u64 = self.first.iter().flatten().map(|first| first.len() as u64).sum();
        match self.left {
            Some(left) => SizeHint::with_exact(left + here),
            None => SizeHint::default(),
        }
    }
}

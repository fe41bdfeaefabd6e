//! Joins hyper to the router: a request goes in with its peer, its answer is watched on its way out.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderValue, Request, Response, header};
use http_body::{Frame, SizeHint};
use hyper::{body::Incoming, rt::Executor, service::Service};

use crate::{
    App, Body, Drain, Peer, Phase, Version,
    connections::{Hold, Life},
};

/// A part of an answer that is handed to HTTP/2 at a time: what its frames hold (RFC 9113 §4.2, the default).
const PART: usize = 16 * 1024;
/// A part up to this size is handed on whole. It is what a client can leave lying in the stream's buffer unseen.
const SMALL: usize = 2 * 1024;

/// Answers the requests of one connection.
#[derive(Debug)]
pub(super) struct Serve {
    pub(super) app: App,
    pub(super) peer: Peer,
    pub(super) life: Arc<Life>,
    pub(super) drain: Drain,
}

impl Service<Request<Incoming>> for Serve {
    type Response = Response<Answer>;
    type Error = Infallible;
    type Future = Answering;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let hold = self.life.begin();
        // Boxed: hyper keeps a place for the future in every HTTP/1.1 connection, idle or not.
        let answer = Box::pin(self.app.handle(request.map(Body::new), self.peer));
        Answering { answer, hold: Some(hold), drain: self.drain.clone(), version: self.peer.version }
    }
}

/// An answer to be.
pub(super) struct Answering {
    answer: BoxFuture<'static, Response<Body>>,
    /// Until the answer is there, and then its body's.
    hold: Option<Hold>,
    drain: Drain,
    version: Version,
}

impl Future for Answering {
    type Output = Result<Response<Answer>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut response = ready!(self.answer.as_mut().poll(cx));
        let (version, hold) = (self.version, self.hold.take().expect("hyper asks no more once it is answered"));
        if version == Version::Http1 && matches!(self.drain.phase(), Phase::Draining { .. }) {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        Poll::Ready(Ok(response.map(|body| Answer::new(body, hold, version))))
    }
}

/// An answer's body, whose parts show whether the client takes them.
///
/// hyper asks for the next part once the stream's window has room for the one before. A large part goes out in pieces,
/// the last of them a single byte: it gets its room only when all before it has, so an answer that is not taken to its
/// end is still in hand and is seen. Without that, up to a part of each answer would lie in HTTP/2's buffers for as long
/// as the client keeps the window shut, with nobody to notice.
#[derive(Debug)]
pub(super) struct Answer {
    body: Body,
    /// What is left of a part that goes out in pieces.
    rest: Bytes,
    hold: Hold,
    version: Version,
}

impl Answer {
    fn new(body: Body, hold: Hold, version: Version) -> Self {
        Self { body, rest: Bytes::new(), hold, version }
    }

    fn piece(&mut self) -> Bytes {
        let last = self.rest.len() - 1;
        let piece = if last == 0 { 1 } else { last.min(PART) };
        self.rest.split_to(piece)
    }
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let me = &mut *self;
        if me.version == Version::Http1 {
            return Pin::new(&mut me.body).poll_frame(cx);
        }
        if !me.rest.is_empty() {
            me.hold.waits();
            return Poll::Ready(Some(Ok(Frame::data(me.piece()))));
        }
        let frame = match Pin::new(&mut me.body).poll_frame(cx) {
            Poll::Pending => {
                me.hold.is_taken();
                return Poll::Pending;
            }
            Poll::Ready(Some(Ok(frame))) => frame,
            Poll::Ready(end) => return Poll::Ready(end),
        };
        me.hold.waits();
        Poll::Ready(Some(Ok(match frame.into_data() {
            Ok(data) if data.len() > SMALL => {
                me.rest = data;
                Frame::data(me.piece())
            }
            Ok(data) => Frame::data(data),
            Err(frame) => frame,
        })))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let mut hint = self.body.size_hint();
        let rest = self.rest.len() as u64;
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + rest);
        }
        hint.set_lower(hint.lower() + rest);
        hint
    }
}

/// Spawns the tasks of HTTP/2's requests, where the connection's [`Life`] can end them one by one.
#[derive(Clone, Debug)]
pub(super) struct Spawn(pub(super) Arc<Life>);

impl<F> Executor<F> for Spawn
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, future: F) {
        self.0.adopt(tokio::spawn(future).abort_handle());
    }
}

//! Joins hyper to the router: a request goes in with its peer, its answer is watched on its way out.
//!
//! A request over HTTP/2 that is answered before its body has come is listened to for a while longer ([`Asked`]). Over
//! HTTP/1.1 the connection as a whole is (`super::connection`).

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderValue, Request, Response, header};
use http_body::{Frame, SizeHint};
use hyper::{body::Incoming, service::Service};
use tokio::{runtime::Handle, time::timeout};

use super::connection::{LINGER, LINGER_BYTES};
use crate::{
    App, Body, Drain, Held, Peer, Phase, Version,
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
        let version = self.peer.version;
        let request = request.map(|body| match version {
            // Most have none, and need no box to say so.
            _ if http_body::Body::is_end_stream(&body) => Body::empty(),
            Version::Http2 => Body::new(Asked(Some(body))),
            Version::Http1 | Version::Http3 => Body::new(body),
        });
        let answer = Box::pin(self.app.handle(request, self.peer));
        Answering { answer, hold: Some(hold), drain: self.drain.clone(), version }
    }
}

/// A request's body over HTTP/2. Dropped before its end, what still comes of it is read for a while and thrown away.
///
/// Without that the stream would be reset as soon as it is answered, which the protocol allows (RFC 9113 §8.1) and many
/// clients take for a failure: that the body was too large, or the key wrong, is then shown to nobody (curl 7.88 for one).
/// One that has its answer stops sending or ends the stream; for the others there is a bound in time and bytes. Meanwhile it
/// counts as one of the connection's streams, so there are never more of these than of those.
#[derive(Debug)]
struct Asked(Option<Incoming>);

impl http_body::Body for Asked {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Some(body) = &mut self.0 else { return Poll::Ready(None) };
        let frame = Pin::new(body).poll_frame(cx);
        if let Poll::Ready(None | Some(Err(_))) = &frame {
            self.0 = None;
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(http_body::Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.0.as_ref().map_or(SizeHint::with_exact(0), http_body::Body::size_hint)
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        let Some(body) = self.0.take().filter(|body| !http_body::Body::is_end_stream(body)) else { return };
        let mut rest = Rest { body, left: LINGER_BYTES };
        // Mostly the connection is gone, or the end has come already: then nothing is left to be done.
        if Pin::new(&mut rest).poll(&mut Context::from_waker(Waker::noop())).is_pending()
            && let Ok(runtime) = Handle::try_current()
        {
            // It ends by itself, and with its connection at once.
            runtime.spawn(timeout(LINGER, rest));
        }
    }
}

/// Reads a body that nobody wants any more.
struct Rest {
    body: Incoming,
    left: usize,
}

impl Future for Rest {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        while self.left > 0 {
            let Some(Ok(frame)) = ready!(http_body::Body::poll_frame(Pin::new(&mut self.body), cx)) else { break };
            self.left = self.left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
        }
        Poll::Ready(())
    }
}

/// An answer to be.
pub(super) struct Answering {
    answer: BoxFuture<'static, Response<Held>>,
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
    body: Held,
    /// What is left of a part that goes out in pieces.
    rest: Bytes,
    hold: Hold,
    version: Version,
}

impl Answer {
    fn new(body: Held, hold: Hold, version: Version) -> Self {
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

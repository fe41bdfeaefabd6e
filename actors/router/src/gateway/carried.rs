//! Calls in bytes, whole or as streams: to actors that take them, and over whatever carries bytes elsewhere.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::stream;
use horos_supervision::{
    Context,
    bulk::{BulkReader, BulkWriter},
};
use horos_wire::{
    Address, CallContext, CallError, NoEffect, Unknown, codec,
    protocol::bytes::{ByteService, Content},
};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response,
    header::{
        ACCEPT, ACCEPT_LANGUAGE, CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_TYPE, ETAG, EXPIRES,
        LAST_MODIFIED,
    },
};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use parking_lot::Mutex;
use tokio::{
    task::AbortHandle,
    time::{timeout, timeout_at},
};

use super::{LONGEST, body::Flow, whole};
use crate::{
    breaker::Outcome,
    call::{Attempted, Kind, here, once},
    router::Router,
    service::{Entered, Service},
    strategy::{Answer, Body, Failure, Message, Target, Transport},
};

/// What a client says that a server elsewhere may know. A list of what goes on and not of what stays: keys and cookies come under
/// any name, and what is between two neighbours only (RFC 9110 §7.6.1) is not on it either.
const GOES_OUT: [HeaderName; 4] = [ACCEPT, ACCEPT_LANGUAGE, CONTENT_LANGUAGE, CONTENT_TYPE];
/// What a server elsewhere says that a client here may be told as if this node said it: what is in the body, and no cookie.
const COMES_BACK: [HeaderName; 8] =
    [CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_TYPE, ETAG, EXPIRES, LAST_MODIFIED];

/// What bytes are where nobody said it.
const BYTES: HeaderValue = HeaderValue::from_static("application/octet-stream");

/// A request's body.
#[derive(Clone, Debug)]
pub(super) enum Parcel {
    Whole(Bytes),
    /// Taken by whoever sends it on, once.
    Stream(Arc<Mutex<Option<Body>>>),
}

/// An answer, of which all but its head may still be to come.
#[derive(Debug)]
pub(super) struct Download {
    headers: HeaderMap,
    body: Flowing,
}

#[derive(Debug)]
enum Flowing {
    Whole(Bytes),
    Stream(Body, Holds),
}

/// What lasts as long as an answer flows.
#[derive(Debug)]
struct Holds {
    service: Arc<Service>,
    place: usize,
    /// Its place among the calls in hand.
    entered: Option<Entered>,
    /// What is left of the request is sent on meanwhile.
    _pump: Option<Pump>,
}

impl Download {
    fn whole(kind: Option<HeaderValue>, body: Bytes) -> Self {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, kind.unwrap_or(BYTES));
        Self { headers, body: Flowing::Whole(body) }
    }

    pub(super) fn answer(self) -> Response<Body> {
        let body = match self.body {
            Flowing::Whole(body) => whole(body),
            Flowing::Stream(body, holds) => {
                let idle = holds.service.timeout();
                Flow::new(body, idle, LONGEST, holds, Holds::broke_off).boxed_unsync()
            }
        };
        let mut answer = Response::new(body);
        *answer.headers_mut() = self.headers;
        answer
    }
}

impl Holds {
    fn broke_off(&self) {
        // The head was counted for a success when it came; this counts against the endpoint beside it.
        let now = Instant::now();
        if let Some(breaker) = self.service.endpoints()[self.place].breaker()
            && let Ok(ticket) = breaker.admit(now)
        {
            ticket.record(Outcome::Failure, Duration::ZERO, now);
        }
    }
}

/// A call in bytes, as the loop of all calls makes it.
pub(super) struct Carried<'a> {
    pub(super) router: &'a Router,
    pub(super) context: &'a Context,
    pub(super) service: &'a str,
    pub(super) headers: &'a HeaderMap,
}

impl Kind for Carried<'_> {
    type Work = Parcel;
    type Spare = Parcel;
    type Reply = Download;
    /// In JSON.
    type Error = Bytes;
    type Bound = Service;

    fn context(&self) -> &Context {
        self.context
    }

    fn bind(&self) -> Result<Arc<Service>, NoEffect> {
        self.router.service(self.service)
    }

    fn service(bound: &Arc<Service>) -> &Arc<Service> {
        bound
    }

    fn method<'a>(&'a self, _: &'a Parcel) -> &'a str {
        "handle"
    }

    fn spare(&self, work: &Parcel) -> Option<Parcel> {
        match work {
            Parcel::Whole(_) => Some(work.clone()),
            // Nothing of it is kept, so it is sent once, to one endpoint.
            Parcel::Stream(_) => None,
        }
    }

    fn again(&self, spare: &Parcel) -> Option<Parcel> {
        Some(spare.clone())
    }

    async fn attempt(&self, bound: &Arc<Service>, place: usize, work: Parcel, until: Instant) -> Result<Download, Attempted<Bytes>> {
        let bound = bound.clone();
        let address = match bound.target(place) {
            Target::Nobody(_) => return Ok(Download::whole(None, Bytes::new())),
            Target::Transport(transport) => {
                let transport = transport.clone();
                return self.over(&*transport, bound, place, work, until).await.map_err(Failure::attempted);
            }
            Target::Here(name) => here(self.context, name),
            Target::Actor(address) => address.clone(),
        };
        self.ask(address, bound, place, work, until).await.map_err(Attempted::from)
    }

    async fn elsewhere(&self, name: &str, work: Parcel, until: Instant) -> Result<Download, CallError<Bytes>> {
        let kind = Carried { service: name, ..*self };
        let bound = kind.bind()?;
        once(&kind, bound, work, until.into()).await
    }

    fn keep(&self, reply: &mut Download, entered: Entered) {
        if let Flowing::Stream(_, holds) = &mut reply.body {
            holds.entered = Some(entered);
        }
    }
}

impl Carried<'_> {
    async fn over(
        &self,
        transport: &dyn Transport,
        service: Arc<Service>,
        place: usize,
        work: Parcel,
        until: Instant,
    ) -> Result<Download, Failure> {
        let context = CallContext { deadline: Some(until), ..self.context.call().onward() };
        let (again, body) = match work {
            Parcel::Whole(bytes) => (Some(bytes.clone()), whole(bytes)),
            Parcel::Stream(stream) => (None, stream.lock().take().ok_or(NoEffect::Expired)?),
        };
        let mut request = Request::new(body);
        *request.method_mut() = Method::POST;
        pass(self.headers, request.headers_mut(), &GOES_OUT);
        let late = |_| Failure::from(Unknown::DeadlinePassed);
        let streamed = timeout_at(until.into(), transport.stream(request, context.clone(), until)).await.map_err(late)?;
        match (streamed, again) {
            // One that takes messages only.
            (Err(Failure { error: CallError::NoEffect(NoEffect::VersionNotSpoken(_)), .. }), Some(body)) => {
                let kind = self.headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or("application/octet-stream");
                let idempotent = service.is_idempotent("handle", &context);
                let message = Message { content_type: kind.into(), body, idempotent };
                let Answer { content_type, body } =
                    timeout_at(until.into(), transport.call(message, context, until)).await.map_err(late)??;
                Ok(Download::whole(content_type.and_then(|kind| HeaderValue::try_from(&*kind).ok()), body))
            }
            (Err(failure), _) => Err(failure),
            (Ok(response), _) => {
                let (parts, body) = response.into_parts();
                let mut headers = HeaderMap::new();
                pass(&parts.headers, &mut headers, &COMES_BACK);
                headers.entry(CONTENT_TYPE).or_insert(BYTES);
                let holds = Holds { service, place, entered: None, _pump: None };
                Ok(Download { headers, body: Flowing::Stream(body, holds) })
            }
        }
    }

    async fn ask(
        &self,
        address: Address,
        service: Arc<Service>,
        place: usize,
        work: Parcel,
        until: Instant,
    ) -> Result<Download, CallError<Bytes>> {
        let target = self.context.reach::<ByteService>(address).pinned(until).await?;
        let kind = self.headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).map(Box::from);
        let mut content = Content { content_type: kind, body: Bytes::new(), stream: None };
        let mut pump = None;
        match work {
            Parcel::Whole(bytes) => content.body = bytes,
            Parcel::Stream(stream) => {
                let body = stream.lock().take().ok_or(NoEffect::Expired)?;
                let (bulk, writer) = target.bulk(until).await?;
                content.stream = Some(bulk);
                pump = Some(Pump::start(body, writer));
            }
        }
        let refused = |refused| Bytes::from(serde_json::to_vec(&refused).unwrap_or_default());
        let Content { content_type, body, stream } = target.call(content, until).await.map_err(|error| error.map(refused))?;
        let kind = content_type.and_then(|kind| HeaderValue::try_from(&*kind).ok());
        let Some(stream) = stream else {
            // As over a link: what is larger has to be a stream, wherever its service runs.
            if body.len() > codec::MAX_BODY {
                return Err(Unknown::ReplyTooLarge(format!("{} bytes in one message", body.len()).into()).into());
            }
            return Ok(Download::whole(kind, body));
        };
        let reader = self.context.claim(stream, until).await.map_err(|why| Unknown::MalformedReply(why.to_string().into()))?;
        let Download { headers, .. } = Download::whole(kind, Bytes::new());
        let holds = Holds { service, place, entered: None, _pump: pump };
        Ok(Download { headers, body: Flowing::Stream(read(reader), holds) })
    }
}

/// Sends what comes of a request's body on to an actor, as quickly as it is read there. Dropped, it ends, and what was sent is known
/// there not to be the whole.
#[derive(Debug)]
struct Pump(AbortHandle);

impl Pump {
    fn start(mut body: Body, mut writer: BulkWriter) -> Self {
        let pumping = async move {
            while let Some(frame) = body.frame().await {
                // What fails is told to whoever waits for the answer, by the body itself; the writer is let go of unfinished.
                let Ok(frame) = frame else { return };
                let Ok(data) = frame.into_data() else { continue };
                // Whoever reads it may have enough.
                if !data.is_empty() && writer.write(data).await.is_err() {
                    return;
                }
            }
            let _ = writer.finish().await;
        };
        let pumping = async move { drop(timeout(LONGEST, pumping).await) };
        Self(tokio::spawn(pumping).abort_handle())
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// An actor's stream as a body.
fn read(reader: BulkReader) -> Body {
    let frames = stream::try_unfold(reader, |mut reader| async move {
        let chunk = reader.chunk().await.map_err(super::BoxError::from)?;
        Ok(chunk.map(|bytes| (Frame::data(bytes), reader)))
    });
    StreamBody::new(frames).boxed_unsync()
}

fn pass(from: &HeaderMap, to: &mut HeaderMap, names: &[HeaderName]) {
    for name in names {
        for value in from.get_all(name) {
            to.append(name, value.clone());
        }
    }
}

//! Typed references: how an actor is called, wherever it is.

use std::{borrow::Cow, fmt, marker::PhantomData, sync::Arc, task::Poll, time::Instant};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use horos_wire::{
    Address, Bulk, CallContext, CallError, Format, NoEffect, NodeName, Protocol, Request, Scope, Unknown,
    codec::{self, CodecError},
    context::MAX_HOPS,
    control::DownReason,
    error::Fault,
    frame::Kind,
};
use parking_lot::Mutex;
use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, Visitor},
};
use serde_json::value::RawValue;
use tokio::{sync::oneshot, time::timeout_at};

use crate::{
    bulk::{self, BulkWriter},
    context::{Context, Deadline},
    exchange::{Answer, AnswerSink, Answerer, Answering, Inbox, Outgoing, Route, Sent, ends, read_answer},
    mailbox::{Post, Returned, Work},
};

/// A reference to an actor, typed by its protocol and good for as long as the name is.
///
/// It survives the actor's restarts, its node's, and the link's: each call goes where the address leads then.
pub struct Ref<P> {
    context: Context,
    address: Result<Address, Box<str>>,
    /// The way found last; a role's address has none, because its calls spread.
    way: ArcSwapOption<Route>,
    protocol: PhantomData<fn() -> P>,
}

impl<P: Protocol> Clone for Ref<P> {
    fn clone(&self) -> Self {
        let way = ArcSwapOption::new(self.way.load_full());
        Self { context: self.context.clone(), address: self.address.clone(), way, protocol: PhantomData }
    }
}

impl<P: Protocol> fmt::Debug for Ref<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ref<{}>({:?})", P::NAME, self.address)
    }
}

impl<P: Protocol> Ref<P> {
    pub(crate) fn new(context: Context, address: &str) -> Self {
        let address = address.parse::<Address>().map_err(|error| error.to_string().into());
        Self { context, address, way: ArcSwapOption::empty(), protocol: PhantomData }
    }

    pub(crate) fn to(context: Context, address: Address) -> Self {
        Self { context, address: Ok(address), way: ArcSwapOption::empty(), protocol: PhantomData }
    }

    /// Sends `request` and waits for its answer until `deadline`, or the context's if that is sooner.
    ///
    /// # Errors
    /// [`CallError::NoEffect`]: nothing was done, try again as you like. [`CallError::Unknown`]: it may
    /// have been done. [`CallError::Failed`]: the callee's own answer.
    ///
    /// # Cancel safety
    /// Dropping the future gives up the call: a callee that has not begun will not.
    pub async fn call<R: Request<Protocol = P>>(&self, request: R, deadline: impl Into<Deadline>) -> Result<R::Reply, CallError<R::Error>> {
        let (context, now, until) = self.onward(deadline.into())?;
        match &*self.way(until).await? {
            Route::Local(inbox) => {
                let (reply, answer) = oneshot::channel();
                let work = Work::LocalCall(Box::new(LocalCall::<R> { request: Some(request), reply: Some(reply), begun: false }));
                let post = Box::new(Post {
                    method: R::METHOD,
                    work,
                    context,
                    caller: self.context.me().clone(),
                    size: 0,
                    received: now,
                    hold: None,
                });
                inbox.post(post).map_err(|returned| returned.why)?;
                match timeout_at(until.into(), answer).await {
                    Ok(Ok(outcome)) => outcome,
                    Ok(Err(_)) => Err(Unknown::NoReply.into()),
                    Err(_) => Err(Unknown::DeadlinePassed.into()),
                }
            }
            Route::Remote(outlet) => {
                let call = {
                    let mut encode = |into: &mut Vec<u8>| codec::encode(Format::Bincode, &request, into);
                    let message = Outgoing { method: R::METHOD, format: Format::Bincode, context: &context, now, encode: &mut encode };
                    outlet.call(message)?
                };
                let answer = answered(call, until).await?;
                decode_answer::<R>(&answer)
            }
        }
    }

    /// Sends `request` and waits only for room: until `deadline`, or the context's if that is sooner.
    ///
    /// Success means that it is on its way, no more: at most once.
    ///
    /// # Errors
    /// [`NoEffect`]; [`NoEffect::Overloaded`] when there was no room in time.
    ///
    /// # Cancel safety
    /// Dropping the future before it ends takes the message back.
    pub async fn cast<R: Request<Protocol = P>>(&self, request: R, deadline: impl Into<Deadline>) -> Result<(), NoEffect> {
        let (context, now, until) = self.onward(deadline.into())?;
        match &*self.way(until).await? {
            Route::Local(inbox) => {
                let work = Work::LocalCast(Box::new(LocalCast::<R> { request: Some(request) }));
                let post = Box::new(Post {
                    method: R::METHOD,
                    work,
                    context,
                    caller: self.context.me().clone(),
                    size: 0,
                    received: now,
                    hold: None,
                });
                post_when_there_is_room(&**inbox, post, until).await
            }
            Route::Remote(outlet) => {
                let cast = {
                    let mut encode = |into: &mut Vec<u8>| codec::encode(Format::Bincode, &request, into);
                    let message = Outgoing { method: R::METHOD, format: Format::Bincode, context: &context, now, encode: &mut encode };
                    outlet.cast(message)?
                };
                sent(cast, until).await
            }
        }
    }

    /// Resolves when the actor dies or is stopped, or its node is out of reach: at once when the node
    /// says so, within 3 s when it vanishes.
    ///
    /// # Errors
    /// [`NoEffect`] when there is no such actor to watch before `deadline`; [`NoEffect::Overloaded`] when this node has set
    /// as many watches as the actor's puts up with ([`horos_wire::control::MAX_WATCHES`]).
    pub async fn watch(&self, deadline: impl Into<Deadline>) -> Result<Watch, NoEffect> {
        let (_, _, until) = self.onward(deadline.into())?;
        Ok(match &*self.way(until).await? {
            Route::Local(inbox) => Watch(ends(inbox.vitals())),
            Route::Remote(outlet) => Watch(outlet.watch()?),
        })
    }

    /// A reference to the one node that a call would go to now, for what belongs together: a bulk body and
    /// the message that names it.
    ///
    /// # Errors
    /// [`NoEffect`] when nobody answers at the address before `deadline`.
    pub async fn pinned(&self, deadline: impl Into<Deadline>) -> Result<Self, NoEffect> {
        let (_, _, until) = self.onward(deadline.into())?;
        let way = self.way(until).await?;
        let node = match &*way {
            Route::Local(_) => self.context.exchange().node().name.clone(),
            Route::Remote(outlet) => outlet.node().clone(),
        };
        let address = self.address.clone().map(|address| Address { scope: Scope::Node(node), ..address });
        Ok(Self { context: self.context.clone(), address, way: ArcSwapOption::new(Some(way)), protocol: PhantomData })
    }

    /// The node that its address names, as that of a [pinned](Ref::pinned) one does; none when that is a role or anybody.
    pub fn node(&self) -> Option<&NodeName> {
        match &self.address {
            Ok(Address { scope: Scope::Node(node), .. }) => Some(node),
            _ => None,
        }
    }

    /// Opens a bulk body towards the actor's node. To be named in a message to the same reference, which
    /// must be to one node (see [`Ref::pinned`]).
    ///
    /// # Errors
    /// [`NoEffect`] when the node is out of reach.
    pub async fn bulk(&self, deadline: impl Into<Deadline>) -> Result<(Bulk, BulkWriter), NoEffect> {
        let (_, _, until) = self.onward(deadline.into())?;
        let name = Bulk(rand::random());
        let writer = match &*self.way(until).await? {
            Route::Local(_) => {
                let (reader, writer) = bulk::local();
                self.context.exchange().bulk_arrived(name, self.context.node().name.clone(), reader);
                writer
            }
            Route::Remote(outlet) => self.context.bulk_to(outlet.node().clone(), name, until).await?,
        };
        Ok((name, writer))
    }

    fn onward(&self, deadline: Deadline) -> Result<(CallContext, Instant, Instant), NoEffect> {
        let now = Instant::now();
        let mut context = self.context.call.onward();
        if context.hops > MAX_HOPS {
            return Err(NoEffect::TooManyHops);
        }
        let until = deadline.instant(now);
        let until = context.deadline.map_or(until, |ours| ours.min(until));
        if until <= now {
            return Err(NoEffect::Expired);
        }
        context.deadline = Some(until);
        Ok((context, now, until))
    }

    async fn way(&self, until: Instant) -> Result<Arc<Route>, NoEffect> {
        if let Some(way) = self.way.load_full().filter(|way| way.is_open()) {
            return Ok(way);
        }
        let address = self.address.as_ref().map_err(|why| NoEffect::InvalidAddress(why.clone()))?;
        let way = Arc::new(find(&self.context, address, Some((P::NAME, P::VERSION)), until).await?);
        if let Route::Local(inbox) = &*way
            && inbox.protocol_type() != std::any::TypeId::of::<P>()
        {
            let (name, version) = inbox.protocol();
            return Err(NoEffect::VersionNotSpoken(format!("{address} speaks {name}/{version}, not {}/{}", P::NAME, P::VERSION).into()));
        }
        if !matches!(address.scope, Scope::Role(_)) {
            self.way.store(Some(way.clone()));
        }
        Ok(way)
    }
}

/// A watch that has been set; resolves to why the actor is down. Dropped, it is taken back.
pub struct Watch(futures_util::future::BoxFuture<'static, DownReason>);

impl Future for Watch {
    type Output = DownReason;
    fn poll(mut self: std::pin::Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> std::task::Poll<DownReason> {
        self.0.as_mut().poll(cx)
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Watch")
    }
}

/// Where `address` leads from here.
async fn find(context: &Context, address: &Address, protocol: Option<(&'static str, u16)>, until: Instant) -> Result<Route, NoEffect> {
    let exchange = context.exchange();
    let here = exchange.node();
    let may_be_here = match &address.scope {
        Scope::Any => true,
        Scope::Node(node) => *node == here.name,
        // A role's calls spread over all its nodes, so the carrier chooses, among them this one.
        Scope::Role(role) => *role == here.role && exchange.carrier().is_none(),
    };
    if may_be_here && let Some(inbox) = exchange.find(&address.name) {
        return Ok(Route::Local(inbox));
    }
    match (exchange.carrier(), &address.scope) {
        (Some(carrier), scope) if *scope != Scope::Node(here.name.clone()) => carrier.route(address.clone(), protocol, until).await,
        _ => Err(NoEffect::NoSuchActor(address.to_string().into())),
    }
}

/// Posts a cast, as one over a link: a full mailbox makes its sender wait, until `until` at most.
async fn post_when_there_is_room(inbox: &dyn Inbox, mut post: Box<Post>, until: Instant) -> Result<(), NoEffect> {
    loop {
        let Err(returned) = inbox.post(post) else { return Ok(()) };
        let Returned { post: back, why } = *returned;
        if !matches!(why, NoEffect::Overloaded(_)) {
            return Err(why);
        }
        if timeout_at(until.into(), inbox.room()).await.is_err() {
            inbox.vitals().refuse();
            return Err(why);
        }
        post = back;
    }
}

async fn sent<T>(sent: Sent<T>, until: Instant) -> Result<T, NoEffect> {
    match sent {
        Sent::Now(done) => Ok(done),
        Sent::Later(room) => match timeout_at(until.into(), room).await {
            Ok(done) => done,
            Err(_) => Err(NoEffect::Overloaded("no room on the way before the deadline".into())),
        },
    }
}

async fn answered(call: Sent<Answering>, until: Instant) -> Result<Answer, Fault> {
    let Answering { answer, cancel } = sent(call, until).await?;
    match timeout_at(until.into(), answer).await {
        Ok(Ok(outcome)) => {
            cancel.answered();
            outcome
        }
        Ok(Err(_)) => Err(Fault::Unknown(Unknown::NoReply)),
        Err(_) => Err(Fault::Unknown(Unknown::DeadlinePassed)),
    }
}

fn decode_answer<R: Request>(answer: &Answer) -> Result<R::Reply, CallError<R::Error>> {
    let malformed = |error: CodecError| CallError::Unknown(Unknown::MalformedReply(error.to_string().into()));
    if answer.failed {
        Err(CallError::Failed(codec::decode::<R::Error>(answer.format, &answer.body).map_err(malformed)?))
    } else {
        codec::decode::<R::Reply>(answer.format, &answer.body).map_err(malformed)
    }
}

/// Where the answer to a call within the node goes.
type ReplyTo<R> = oneshot::Sender<Result<<R as Request>::Reply, CallError<<R as Request>::Error>>>;

/// A call within the node: the values move.
pub(crate) struct LocalCall<R: Request> {
    request: Option<R>,
    reply: Option<ReplyTo<R>>,
    begun: bool,
}

/// A cast within the node.
pub(crate) struct LocalCast<R: Request> {
    request: Option<R>,
}

impl<R: Request> LocalCall<R> {
    /// The request; `None` when the caller has given up.
    pub(crate) fn begin(&mut self) -> Option<R> {
        if self.reply.as_ref().is_none_or(oneshot::Sender::is_closed) {
            self.reply = None;
            return None;
        }
        self.begun = true;
        self.request.take()
    }

    pub(crate) fn end(mut self, outcome: Result<R::Reply, R::Error>) {
        self.send(outcome.map_err(CallError::Failed));
    }

    fn send(&mut self, outcome: Result<R::Reply, CallError<R::Error>>) {
        if let Some(reply) = self.reply.take() {
            // The caller may have given up meanwhile; nobody else wants the answer.
            let _ = reply.send(outcome);
        }
    }
}

impl<R: Request> LocalCast<R> {
    pub(crate) fn begin(&mut self) -> Option<R> {
        self.request.take()
    }
}

impl<R: Request> Drop for LocalCall<R> {
    fn drop(&mut self) {
        self.send(Err(if self.begun { CallError::Unknown(Unknown::ActorDied) } else { CallError::NoEffect(NoEffect::ActorDied) }));
    }
}

// Calls in JSON, for callers that were not compiled with the protocol: `{"method": {…}}` in, JSON out.
impl Context {
    /// Calls `address` with `{"method": {…}}`.
    ///
    /// # Errors
    /// As [`Ref::call`]; the callee's own error is JSON too.
    pub async fn call_json(
        &self,
        address: &str,
        message: &str,
        deadline: impl Into<Deadline>,
    ) -> Result<serde_json::Value, CallError<serde_json::Value>> {
        let target = Ref::<JsonCaller>::new(self.clone(), address);
        let Answer { format, failed, body } = self.ask_json(&target, Bytes::copy_from_slice(message.as_bytes()), deadline.into()).await?;
        let value = codec::decode::<serde_json::Value>(format, &body).map_err(malformed_reply)?;
        if failed { Err(CallError::Failed(value)) } else { Ok(value) }
    }

    /// The same for those who pass the message and its answer on as they are: neither is made into values.
    ///
    /// # Errors
    /// As [`Ref::call`]; the callee's own error is JSON too.
    pub async fn call_json_bytes(
        &self,
        address: Address,
        message: Bytes,
        deadline: impl Into<Deadline>,
    ) -> Result<Bytes, CallError<Bytes>> {
        let target = Ref::<JsonCaller>::to(self.clone(), address);
        let Answer { failed, body, .. } = self.ask_json(&target, message, deadline.into()).await?;
        // What comes from another node is what that sent: JSON or not.
        serde_json::from_slice::<&RawValue>(&body)
            .map_err(|error| CallError::Unknown(Unknown::MalformedReply(error.to_string().into())))?;
        if failed { Err(CallError::Failed(body)) } else { Ok(body) }
    }

    async fn ask_json(&self, target: &Ref<JsonCaller>, message: Bytes, deadline: Deadline) -> Result<Answer, Fault> {
        let (route, method, body, context, now, until) = json_route(target, message, deadline).await?;
        match route {
            Route::Local(inbox) => {
                let (sender, answer) = oneshot::channel();
                let sink = Arc::new(OneAnswer(Mutex::new(Some(sender))));
                let work = Work::Encoded { format: Format::Json, body, answer: Some(Answerer::new(sink, 1, Format::Json)) };
                let post = Box::new(Post { method, work, context, caller: self.me().clone(), size: 0, received: now, hold: None });
                inbox.post(post).map_err(|returned| {
                    let Returned { post, why } = *returned;
                    post.refuse(why.clone());
                    why
                })?;
                match timeout_at(until.into(), answer).await {
                    Ok(Ok(outcome)) => outcome,
                    Ok(Err(_)) => Err(Unknown::NoReply.into()),
                    Err(_) => Err(Unknown::DeadlinePassed.into()),
                }
            }
            Route::Remote(outlet) => {
                let mut encode = json_body(&body);
                let message = Outgoing { method, format: Format::Json, context: &context, now, encode: &mut encode };
                answered(outlet.call(message)?, until).await
            }
        }
    }

    /// Casts `{"method": {…}}` to `address`.
    ///
    /// # Errors
    /// As [`Ref::cast`].
    pub async fn cast_json(&self, address: &str, message: &str, deadline: impl Into<Deadline>) -> Result<(), NoEffect> {
        let target = Ref::<JsonCaller>::new(self.clone(), address);
        let message = Bytes::copy_from_slice(message.as_bytes());
        let (route, method, body, context, now, until) = json_route(&target, message, deadline.into()).await?;
        match route {
            Route::Local(inbox) => {
                let work = Work::Encoded { format: Format::Json, body, answer: None };
                let post = Box::new(Post { method, work, context, caller: self.me().clone(), size: 0, received: now, hold: None });
                post_when_there_is_room(&*inbox, post, until).await
            }
            Route::Remote(outlet) => {
                let mut encode = json_body(&body);
                let message = Outgoing { method, format: Format::Json, context: &context, now, encode: &mut encode };
                sent(outlet.cast(message)?, until).await
            }
        }
    }
}

/// Where `message` goes, which method it is, and its arguments.
async fn json_route(
    target: &Ref<JsonCaller>,
    message: Bytes,
    deadline: Deadline,
) -> Result<(Route, u16, Bytes, CallContext, Instant, Instant), NoEffect> {
    let (context, now, until) = target.onward(deadline)?;
    let address = target.address.as_ref().map_err(|why| NoEffect::InvalidAddress(why.clone()))?;
    let (name, body) = split_json(&message)?;
    let route = find(&target.context, address, None, until).await?;
    let number = match &route {
        Route::Local(inbox) => inbox.methods().iter().find(|method| method.name == name).map(|method| method.number),
        Route::Remote(outlet) => outlet.methods().iter().find(|(_, known)| **known == *name).map(|(number, _)| *number),
    };
    let number = number.ok_or_else(|| {
        let known: Vec<&str> = match &route {
            Route::Local(inbox) => inbox.methods().iter().map(|method| method.name).collect(),
            Route::Remote(outlet) => outlet.methods().iter().map(|(_, name)| &**name).collect(),
        };
        NoEffect::Malformed(format!("{address} has no method {name:?}; it has {}", known.join(", ")).into())
    })?;
    Ok((route, number, body, context, now, until))
}

/// Stands for the protocol that a caller in JSON does not know.
struct JsonCaller;

impl Protocol for JsonCaller {
    const NAME: &'static str = "";
    const VERSION: u16 = 0;
    fn methods() -> &'static [horos_wire::protocol::Method] {
        &[]
    }
}

fn json_body(body: &Bytes) -> impl FnMut(&mut Vec<u8>) -> Result<(), CodecError> + use<'_> {
    |into| {
        if body.len() > codec::MAX_BODY {
            return Err(CodecError::TooLarge(body.len()));
        }
        into.extend_from_slice(body);
        Ok(())
    }
}

/// Takes `{"method": {…}}` apart. The arguments stay where they are.
fn split_json(message: &Bytes) -> Result<(Cow<'_, str>, Bytes), NoEffect> {
    let example = r#"expected one method with its arguments, as in {"reserve": {"sku": "A1", "quantity": 2}}"#;
    let OneMethod(parts) = serde_json::from_slice(message).map_err(|error| NoEffect::Malformed(format!("{error}; {example}").into()))?;
    let (name, body) = parts.ok_or_else(|| NoEffect::Malformed(example.into()))?;
    Ok((name, message.slice_ref(body.get().as_bytes())))
}

/// An object of one member; none where it has another number of them.
struct OneMethod<'a>(Option<(Cow<'a, str>, &'a RawValue)>);

impl<'de> Deserialize<'de> for OneMethod<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = OneMethod<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<OneMethod<'de>, A::Error> {
                let first = members.next_entry::<Name<'de>, &'de RawValue>()?;
                let mut others = false;
                while members.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {
                    others = true;
                }
                Ok(OneMethod(first.filter(|_| !others).map(|(Name(name), body)| (name, body))))
            }
        }
        deserializer.deserialize_map(Members)
    }
}

/// A member's name, copied only where it was written with escapes.
#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

fn malformed_reply<E>(error: CodecError) -> CallError<E> {
    CallError::Unknown(Unknown::MalformedReply(error.to_string().into()))
}

/// Takes the one answer to a local call in JSON.
struct OneAnswer(Mutex<Option<oneshot::Sender<Result<Answer, Fault>>>>);

impl AnswerSink for OneAnswer {
    fn answer(&self, _: u64, kind: Kind, format: Format, body: &mut dyn FnMut(&mut Vec<u8>) -> Result<(), CodecError>) {
        let Some(sender) = self.0.lock().take() else { return };
        let mut bytes = Vec::new();
        let outcome = match body(&mut bytes) {
            Ok(()) => read_answer(kind, format, bytes.into()),
            Err(error) => Err(Fault::Unknown(Unknown::MalformedReply(error.to_string().into()))),
        };
        let _ = sender.send(outcome);
    }

    fn is_abandoned(&self, _: u64) -> bool {
        self.0.lock().as_ref().is_none_or(oneshot::Sender::is_closed)
    }

    fn abandoned(&self, _: u64) -> BoxFuture<'_, ()> {
        Box::pin(std::future::poll_fn(|context| match self.0.lock().as_mut() {
            Some(sender) => sender.poll_closed(context),
            None => Poll::Ready(()),
        }))
    }
}

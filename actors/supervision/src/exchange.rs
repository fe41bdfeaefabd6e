//! What joins a node's actors to each other and to other nodes: the directory of names here, and the
//! carrier that knows the way elsewhere.
//!
//! A node owns one [`Exchange`]; there is nothing process-wide, so many nodes live in one test.

use std::{
    any::{Any, TypeId},
    collections::HashMap,
    fmt,
    sync::{Arc, OnceLock},
    time::Instant,
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use horos_wire::{
    ActorName, Address, Bulk, CallContext, Format, Incarnation, NoEffect, NodeId, NodeName, Unknown,
    codec::{self, CodecError},
    control::DownReason,
    error::Fault,
    frame::Kind,
    protocol::Method,
};
use parking_lot::RwLock;
use tokio::sync::{oneshot, watch};

use crate::{
    bulk::{BulkReader, BulkWriter, Parking},
    context::Prover,
    mailbox::{Post, Returned},
    vitals::Vitals,
};

/// Joins a node's actors to each other and to other nodes. Cheap to clone.
#[derive(Clone)]
pub struct Exchange(Arc<Inner>);

struct Inner {
    node: Arc<NodeId>,
    incarnation: Incarnation,
    names: RwLock<HashMap<ActorName, Arc<dyn Inbox>>>,
    changed: watch::Sender<u64>,
    carrier: OnceLock<Arc<dyn Carrier>>,
    parking: Parking,
    prover: OnceLock<Arc<dyn Prover>>,
    attached: RwLock<HashMap<TypeId, Arc<dyn Any + Send + Sync>>>,
}

impl fmt::Debug for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Exchange({})", self.0.node)
    }
}

/// A name that is taken, or one name too many.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RegisterError {
    /// Another actor of this node has the name.
    #[error("the name {0} is taken on this node")]
    Taken(ActorName),
    /// More than [`horos_wire::control::MAX_OFFERS`].
    #[error("a node offers at most {} names", horos_wire::control::MAX_OFFERS)]
    TooMany,
}

impl Exchange {
    /// The exchange of a node.
    pub fn new(node: NodeId, incarnation: Incarnation) -> Self {
        Self(Arc::new(Inner {
            node: Arc::new(node),
            incarnation,
            names: RwLock::default(),
            changed: watch::Sender::new(0),
            carrier: OnceLock::new(),
            parking: Parking::default(),
            prover: OnceLock::new(),
            attached: RwLock::default(),
        }))
    }

    /// The node.
    pub fn node(&self) -> &Arc<NodeId> {
        &self.0.node
    }

    /// The node's life.
    pub fn incarnation(&self) -> Incarnation {
        self.0.incarnation
    }

    /// Gives the node's actors a part of the node that this crate does not know, by its type; one attached before is replaced.
    ///
    /// For what a node has one of: its router. Nothing is attached by whoever sends messages, so there are as many as the program
    /// has such types.
    pub fn attach<T: Any + Send + Sync>(&self, part: Arc<T>) {
        self.0.attached.write().insert(TypeId::of::<T>(), part);
    }

    /// The part of this type, if the node has one.
    pub fn attached<T: Any + Send + Sync>(&self) -> Option<Arc<T>> {
        self.0.attached.read().get(&TypeId::of::<T>()).cloned()?.downcast().ok()
    }

    /// Makes `name` reachable.
    ///
    /// # Errors
    /// [`RegisterError`].
    pub fn register(&self, name: ActorName, inbox: Arc<dyn Inbox>) -> Result<(), RegisterError> {
        let mut names = self.0.names.write();
        if names.contains_key(&name) {
            return Err(RegisterError::Taken(name));
        }
        if names.len() >= horos_wire::control::MAX_OFFERS {
            return Err(RegisterError::TooMany);
        }
        names.insert(name, inbox);
        drop(names);
        self.0.changed.send_modify(|version| *version += 1);
        Ok(())
    }

    /// Takes `name` out of reach.
    pub fn unregister(&self, name: &ActorName) {
        if self.0.names.write().remove(name).is_some() {
            self.0.changed.send_modify(|version| *version += 1);
        }
    }

    /// The actor of that name on this node.
    pub fn find(&self, name: &ActorName) -> Option<Arc<dyn Inbox>> {
        self.0.names.read().get(name).cloned()
    }

    /// Every name on this node, sorted.
    pub fn names(&self) -> Vec<(ActorName, Arc<dyn Inbox>)> {
        let mut names: Vec<_> = self.0.names.read().iter().map(|(name, inbox)| (name.clone(), inbox.clone())).collect();
        names.sort_by(|a, b| a.0.cmp(&b.0));
        names
    }

    /// Changes whenever a name comes or goes.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.0.changed.subscribe()
    }

    /// Gives the node its way to others. Later calls are ignored: a node has one endpoint for life.
    pub fn connect(&self, carrier: Arc<dyn Carrier>) {
        let _ = self.0.carrier.set(carrier);
    }

    /// Gives the node its way to check the tokens that come with messages. Later calls are ignored; without one
    /// every token is refused.
    pub fn prove_users_with(&self, prover: Arc<dyn Prover>) {
        let _ = self.0.prover.set(prover);
    }

    pub(crate) fn prover(&self) -> Option<&Arc<dyn Prover>> {
        self.0.prover.get()
    }

    /// A bulk body has come from a node, another or this one.
    pub fn bulk_arrived(&self, bulk: Bulk, from: NodeName, body: BulkReader) {
        self.0.parking.arrived(bulk, from, body);
    }

    pub(crate) fn parking(&self) -> &Parking {
        &self.0.parking
    }

    /// The way to other nodes.
    pub fn carrier(&self) -> Option<&Arc<dyn Carrier>> {
        self.0.carrier.get()
    }
}

/// The receiving end of a named actor, whatever its type.
pub trait Inbox: Send + Sync {
    /// Takes a message if there is room.
    ///
    /// # Errors
    /// The message back, with the reason.
    fn post(&self, post: Box<Post>) -> Result<(), Box<Returned>>;
    /// The protocol's name and version.
    fn protocol(&self) -> (&'static str, u16);
    /// The protocol's type, where sender and receiver are in one program.
    fn protocol_type(&self) -> TypeId;
    /// The protocol's methods.
    fn methods(&self) -> &'static [Method];
    /// What the actor is doing.
    fn vitals(&self) -> &Arc<Vitals>;
    /// Whether it will never take a message again.
    fn is_closed(&self) -> bool;
    /// Resolves when there was room for a moment; whoever awaited it tries again.
    fn room(&self) -> BoxFuture<'static, ()>;
}

/// Knows the way to actors on other nodes; `link` is the one implementation outside tests.
pub trait Carrier: Send + Sync {
    /// The way to `address`, waiting until `deadline` for a name to be bound.
    ///
    /// `protocol` is what the caller was compiled with; none for JSON.
    fn route(&self, address: Address, protocol: Option<(&'static str, u16)>, deadline: Instant) -> BoxFuture<'_, Result<Route, NoEffect>>;

    /// Opens a bulk body towards a linked node.
    fn bulk(&self, node: NodeName, bulk: Bulk) -> BoxFuture<'_, Result<BulkWriter, NoEffect>>;
}

/// Resolves when the actor's present life ends.
pub fn ends(vitals: &Vitals) -> BoxFuture<'static, DownReason> {
    let mut downs = vitals.downs();
    downs.mark_unchanged();
    Box::pin(async move {
        match downs.changed().await {
            Ok(()) => downs.borrow().as_ref().map_or(DownReason::Died, |down| down.reason.clone()),
            // The slot itself is gone.
            Err(_) => DownReason::Stopped,
        }
    })
}

/// Where an address leads.
#[derive(Clone)]
pub enum Route {
    /// To an actor of this node.
    Local(Arc<dyn Inbox>),
    /// To another node.
    Remote(Arc<dyn Outlet>),
}

impl fmt::Debug for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local(inbox) => write!(f, "Local({})", inbox.vitals().name()),
            Self::Remote(outlet) => write!(f, "Remote({})", outlet.node()),
        }
    }
}

impl Route {
    pub(crate) fn is_open(&self) -> bool {
        match self {
            Self::Local(inbox) => !inbox.is_closed(),
            Self::Remote(outlet) => outlet.is_open(),
        }
    }
}

/// A message about to be encoded onto a link.
pub struct Outgoing<'a> {
    /// Which request.
    pub method: u16,
    /// How its body is written.
    pub format: Format,
    /// Trace, deadline, hops and claims.
    pub context: &'a CallContext,
    /// The time, read once per message.
    pub now: Instant,
    /// Appends the body.
    pub encode: &'a mut dyn FnMut(&mut Vec<u8>) -> Result<(), CodecError>,
}

impl fmt::Debug for Outgoing<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Outgoing({}, {:?})", self.method, self.format)
    }
}

/// A bound actor on another node.
pub trait Outlet: Send + Sync {
    /// Its node.
    fn node(&self) -> &NodeName;
    /// Whether the link is up.
    fn is_open(&self) -> bool;
    /// Its methods with their numbers, when it was bound without a protocol.
    fn methods(&self) -> &[(u16, Box<str>)];
    /// Writes a call.
    ///
    /// # Errors
    /// Why it was not written.
    fn call(&self, message: Outgoing<'_>) -> Result<Sent<Answering>, NoEffect>;
    /// Writes a cast.
    ///
    /// # Errors
    /// Why it was not written.
    fn cast(&self, message: Outgoing<'_>) -> Result<Sent<()>, NoEffect>;
    /// Resolves when the actor dies; dropped, polled or not, it takes the watch back.
    ///
    /// # Errors
    /// [`NoEffect::Overloaded`] when as many watches are set as the actor's node puts up with.
    fn watch(&self) -> Result<BoxFuture<'static, DownReason>, NoEffect>;
}

/// What has become of a message given to an [`Outlet`].
pub enum Sent<T> {
    /// It is on its way.
    Now(T),
    /// There is no room yet. Awaiting this sends it; dropping it takes it back without effect.
    Later(BoxFuture<'static, Result<T, NoEffect>>),
}

impl<T> fmt::Debug for Sent<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Now(_) => "Now",
            Self::Later(_) => "Later",
        })
    }
}

/// A call whose answer is awaited.
pub struct Answering {
    /// The answer, or why there is none.
    pub answer: oneshot::Receiver<Result<Answer, Fault>>,
    /// Dropped when the caller has its answer or has given up.
    pub cancel: Cancel,
}

impl fmt::Debug for Answering {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Answering({})", self.cancel.correlation)
    }
}

/// Takes a call back when it is dropped before its answer has come.
pub struct Cancel {
    /// None when the answer has come.
    link: Option<Arc<dyn Cancels>>,
    correlation: u64,
}

/// A link, as far as giving up goes.
pub trait Cancels: Send + Sync {
    /// The caller of `correlation` no longer waits. Does nothing when the answer has come.
    fn cancel(&self, correlation: u64);
}

impl Cancel {
    /// Takes `correlation` back on `link` when dropped.
    pub fn new(link: Arc<dyn Cancels>, correlation: u64) -> Self {
        Self { link: Some(link), correlation }
    }

    /// The answer has come: there is nothing to take back.
    pub fn answered(mut self) {
        self.link = None;
    }
}

impl Drop for Cancel {
    fn drop(&mut self) {
        if let Some(link) = &self.link {
            link.cancel(self.correlation);
        }
    }
}

impl fmt::Debug for Cancel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cancel({})", self.correlation)
    }
}

/// An answer as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// How the body is written.
    pub format: Format,
    /// Whether it is the callee's own error.
    pub failed: bool,
    /// The reply or the error.
    pub body: Bytes,
}

/// Where an answer is written to: a link, or a caller of this node that speaks JSON.
pub trait AnswerSink: Send + Sync {
    /// Writes an answer of `kind` to the call `correlation`; `body` appends its body.
    fn answer(&self, correlation: u64, kind: Kind, format: Format, body: &mut dyn FnMut(&mut Vec<u8>) -> Result<(), CodecError>);
    /// Whether the caller of `correlation` has said that it no longer waits.
    fn is_abandoned(&self, correlation: u64) -> bool;
    /// Resolves when the caller of `correlation` no longer waits.
    fn abandoned(&self, correlation: u64) -> BoxFuture<'_, ()>;
}

/// The duty to answer a call. One that is dropped unfulfilled answers by itself, so no caller ever hangs.
pub struct Answerer {
    sink: Option<Arc<dyn AnswerSink>>,
    correlation: u64,
    format: Format,
    begun: Option<Unknown>,
}

impl Answerer {
    /// The duty to answer `correlation` on `sink` in `format`.
    pub fn new(sink: Arc<dyn AnswerSink>, correlation: u64, format: Format) -> Self {
        Self { sink: Some(sink), correlation, format, begun: None }
    }

    /// Whether the caller no longer waits: work that has not begun need not.
    pub fn is_abandoned(&self) -> bool {
        self.sink.as_ref().is_some_and(|sink| sink.is_abandoned(self.correlation))
    }

    /// Resolves when the caller no longer waits: work that has begun may be given up.
    ///
    /// # Cancel safety
    /// Dropped, nothing is lost; the next one resolves as well.
    pub async fn abandoned(&self) {
        if let Some(sink) = &self.sink {
            sink.abandoned(self.correlation).await;
        }
    }

    /// Work begins: from now on a missing answer means `lost`, and no longer that nothing was done.
    pub fn begin(&mut self, lost: Unknown) {
        self.begun = Some(lost);
    }

    /// Answers.
    pub fn reply<T: serde::Serialize>(mut self, reply: &T) {
        self.send(Kind::Reply, reply);
    }

    /// Answers with the actor's own error.
    pub fn fail<E: serde::Serialize>(mut self, error: &E) {
        self.send(Kind::Failed, error);
    }

    /// Ends the call without effect.
    pub fn refuse(mut self, why: NoEffect) {
        self.send_in(Kind::Refused, Format::Bincode, &why);
    }

    fn send<T: serde::Serialize>(&mut self, kind: Kind, body: &T) {
        self.send_in(kind, self.format, body);
    }

    fn send_in<T: serde::Serialize>(&mut self, kind: Kind, format: Format, body: &T) {
        if let Some(sink) = self.sink.take() {
            sink.answer(self.correlation, kind, format, &mut |into| codec::encode(format, body, into));
        }
    }
}

impl Drop for Answerer {
    fn drop(&mut self) {
        if self.sink.is_some() {
            match self.begun.take() {
                Some(lost) => self.send_in(Kind::Lost, Format::Bincode, &lost),
                None => self.send_in(Kind::Refused, Format::Bincode, &NoEffect::ActorDied),
            }
        }
    }
}

impl fmt::Debug for Answerer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Answerer({})", self.correlation)
    }
}

/// Reads what stands in an answer frame.
///
/// # Errors
/// The fault that the frame reports, or that it is malformed.
pub fn read_answer(kind: Kind, format: Format, body: Bytes) -> Result<Answer, Fault> {
    let malformed = |error: CodecError| Fault::Unknown(Unknown::MalformedReply(error.to_string().into()));
    match kind {
        Kind::Reply => Ok(Answer { format, failed: false, body }),
        Kind::Failed => Ok(Answer { format, failed: true, body }),
        Kind::Refused => Err(codec::decode::<NoEffect>(Format::Bincode, &body).map_or_else(malformed, Fault::NoEffect)),
        Kind::Lost => Err(codec::decode::<Unknown>(Format::Bincode, &body).map_or_else(malformed, Fault::Unknown)),
        Kind::Call | Kind::Cast => Err(Fault::Unknown(Unknown::MalformedReply("a request in place of an answer".into()))),
    }
}
